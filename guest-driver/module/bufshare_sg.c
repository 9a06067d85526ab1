// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_sg.c - device attachments of dma-bufs that this driver exports
 *
 * Each attachment has a scatter list of its own, cut to what its device can
 * take in one piece.
 */
#include <linux/dma-mapping.h>
#include <linux/errno.h>
#include <linux/scatterlist.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "bufshare_priv.h"

/**
 * struct bufshare_map - one attachment
 * @node: on bufshare_maps.list; its lock
 * @dev: whose; constant
 * @sgt: the memory; constant, but for the DMA addresses
 * @mapped: the DMA addresses are valid; bufshare_maps.lock
 * @dir: for this direction; likewise
 */
struct bufshare_map {
	struct list_head node;
	struct device *dev;
	struct sg_table sgt;
	bool mapped;
	enum dma_data_direction dir;
};

/**
 * bufshare_maps_init() - make an empty set of attachments
 * @maps: the set
 */
void bufshare_maps_init(struct bufshare_maps *maps)
{
	mutex_init(&maps->lock);
	INIT_LIST_HEAD(&maps->list);
}

static int bufshare_sg_fill(struct sg_table *sgt, struct device *dev,
			    const struct bufshare_piece *pieces, u32 nr_pieces)
{
	unsigned long seg, i, nents = 0;
	struct scatterlist *sg;
	u32 p;
	int ret;

	/* Length fields of a scatter list have 32 bits. */
	seg = min_t(unsigned long, dma_get_max_seg_size(dev), SZ_1G) >> PAGE_SHIFT;
	seg = max(seg, 1UL);
	for (p = 0; p < nr_pieces; p++)
		nents += DIV_ROUND_UP(pieces[p].nr, seg);
	if (nents > UINT_MAX)
		return -E2BIG;
	ret = sg_alloc_table(sgt, nents, GFP_KERNEL);
	if (ret)
		return ret;
	sg = sgt->sgl;
	for (p = 0; p < nr_pieces; p++) {
		for (i = 0; i < pieces[p].nr; i += seg) {
			sg_set_page(sg, bufshare_nth_page(pieces[p].page, i),
				    min(seg, pieces[p].nr - i) << PAGE_SHIFT, 0);
			sg = sg_next(sg);
		}
	}
	return 0;
}

/**
 * bufshare_maps_attach() - attach: dma_buf_ops
 * @maps: attachments of the dma-buf
 * @attach: the new one
 * @pieces: the memory
 * @nr_pieces: their number
 *
 * Return: 0 or a negative errno.
 */
int bufshare_maps_attach(struct bufshare_maps *maps, struct dma_buf_attachment *attach,
			 const struct bufshare_piece *pieces, u32 nr_pieces)
{
	struct bufshare_map *map;
	int ret;

	map = kzalloc_obj(*map);
	if (!map)
		return -ENOMEM;
	ret = bufshare_sg_fill(&map->sgt, attach->dev, pieces, nr_pieces);
	if (ret) {
		kfree(map);
		return ret;
	}
	map->dev = attach->dev;
	attach->priv = map;
	mutex_lock(&maps->lock);
	list_add_tail(&map->node, &maps->list);
	mutex_unlock(&maps->lock);
	return 0;
}

/**
 * bufshare_maps_detach() - detach: dma_buf_ops
 * @maps: attachments of the dma-buf
 * @attach: the one that ends
 */
void bufshare_maps_detach(struct bufshare_maps *maps, struct dma_buf_attachment *attach)
{
	struct bufshare_map *map = attach->priv;

	mutex_lock(&maps->lock);
	list_del(&map->node);
	mutex_unlock(&maps->lock);
	sg_free_table(&map->sgt);
	kfree(map);
}

/**
 * bufshare_maps_map() - map_dma_buf: dma_buf_ops
 * @maps: attachments of the dma-buf
 * @attach: one of them
 * @dir: direction
 *
 * Return: the scatter list with DMA addresses, or a negative errno.
 */
struct sg_table *bufshare_maps_map(struct bufshare_maps *maps,
				   struct dma_buf_attachment *attach,
				   enum dma_data_direction dir)
{
	struct bufshare_map *map = attach->priv;
	int ret = -EBUSY;

	mutex_lock(&maps->lock);
	if (!map->mapped) {
		ret = dma_map_sgtable(map->dev, &map->sgt, dir, 0);
		map->mapped = !ret;
		map->dir = dir;
	}
	mutex_unlock(&maps->lock);
	return ret ? ERR_PTR(ret) : &map->sgt;
}

/**
 * bufshare_maps_unmap() - unmap_dma_buf: dma_buf_ops
 * @maps: attachments of the dma-buf
 * @attach: one of them, mapped
 * @dir: direction
 */
void bufshare_maps_unmap(struct bufshare_maps *maps, struct dma_buf_attachment *attach,
			 enum dma_data_direction dir)
{
	struct bufshare_map *map = attach->priv;

	mutex_lock(&maps->lock);
	map->mapped = false;
	dma_unmap_sgtable(map->dev, &map->sgt, dir, 0);
	mutex_unlock(&maps->lock);
}

/**
 * bufshare_maps_sync() - begin or end CPU access for all devices
 * @maps: attachments of the dma-buf
 * @for_cpu: it begins
 *
 * Each mapping is synchronised for the direction it was made for, whatever the
 * CPU does: that is what says which caches may be stale.
 */
void bufshare_maps_sync(struct bufshare_maps *maps, bool for_cpu)
{
	struct bufshare_map *map;

	mutex_lock(&maps->lock);
	list_for_each_entry(map, &maps->list, node) {
		if (!map->mapped)
			continue;
		if (for_cpu)
			dma_sync_sgtable_for_cpu(map->dev, &map->sgt, map->dir);
		else
			dma_sync_sgtable_for_device(map->dev, &map->sgt, map->dir);
	}
	mutex_unlock(&maps->lock);
}
