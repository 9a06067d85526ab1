// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_sg.c - device mappings of dma-bufs that this driver exports
 *
 * Each mapping has a scatter list of its own, which is the importer's until it
 * unmaps: one attachment may have several, and each shows where the memory was
 * when it was made. It is cut to what its device can take in one piece.
 */
#include <linux/container_of.h>
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/errno.h>
#include <linux/scatterlist.h>
#include <linux/sched.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "bufshare_priv.h"

/*
 * There may be several mappings of the same memory at once. The DMA API takes that from
 * those alone who synchronise them by themselves.
 */
#define BUFSHARE_MAP_ATTRS	DMA_ATTR_SKIP_CPU_SYNC

/**
 * struct bufshare_map - one mapping
 * @node: on bufshare_maps.list; its lock
 * @dev: for this device; constant
 * @dir: for this direction; constant
 * @sgt: the memory, as the importer has it; constant
 */
struct bufshare_map {
	struct list_head node;
	struct device *dev;
	enum dma_data_direction dir;
	struct sg_table sgt;
};

/**
 * bufshare_maps_init() - make an empty set of mappings
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
 * bufshare_maps_map() - map_dma_buf: dma_buf_ops
 * @maps: mappings of the dma-buf
 * @attach: for this attachment
 * @pieces: the memory
 * @nr_pieces: their number
 * @dir: direction
 *
 * Return: a scatter list with DMA addresses, the caller's until
 * bufshare_maps_unmap(), or a negative errno.
 */
struct sg_table *bufshare_maps_map(struct bufshare_maps *maps,
				   struct dma_buf_attachment *attach,
				   const struct bufshare_piece *pieces, u32 nr_pieces,
				   enum dma_data_direction dir)
{
	struct bufshare_map *map;
	int ret;

	map = kzalloc_obj(*map);
	if (!map)
		return ERR_PTR(-ENOMEM);
	map->dev = attach->dev;
	map->dir = dir;
	ret = bufshare_sg_fill(&map->sgt, map->dev, pieces, nr_pieces);
	if (ret)
		goto err_free;
	ret = dma_map_sgtable(map->dev, &map->sgt, dir, BUFSHARE_MAP_ATTRS);
	if (ret)
		goto err_table;
	dma_sync_sgtable_for_device(map->dev, &map->sgt, dir);
	mutex_lock(&maps->lock);
	list_add_tail(&map->node, &maps->list);
	mutex_unlock(&maps->lock);
	return &map->sgt;

err_table:
	sg_free_table(&map->sgt);
err_free:
	kfree(map);
	return ERR_PTR(ret);
}

/**
 * bufshare_maps_unmap() - unmap_dma_buf: dma_buf_ops
 * @maps: mappings of the dma-buf
 * @sgt: what bufshare_maps_map() returned
 */
void bufshare_maps_unmap(struct bufshare_maps *maps, struct sg_table *sgt)
{
	struct bufshare_map *map = container_of(sgt, struct bufshare_map, sgt);

	/* From here on nobody synchronises it. */
	mutex_lock(&maps->lock);
	list_del(&map->node);
	mutex_unlock(&maps->lock);
	dma_sync_sgtable_for_cpu(map->dev, sgt, map->dir);
	dma_unmap_sgtable(map->dev, sgt, map->dir, BUFSHARE_MAP_ATTRS);
	sg_free_table(sgt);
	kfree(map);
}

/**
 * bufshare_wait_for_devices() - wait for what devices do with a dma-buf, as CPU access begins
 * @dmabuf: the dma-buf; its reservation lock is not held
 * @dir: what is to be accessed
 *
 * The core does so, too, but after begin_cpu_access(), and a signal that ends that wait has
 * no end_cpu_access() follow: an access counted by then would count for ever.
 *
 * Return: 0, or -ERESTARTSYS: a signal ended the wait.
 */
int bufshare_wait_for_devices(struct dma_buf *dmabuf, enum dma_data_direction dir)
{
	long ret = dma_resv_wait_timeout(dmabuf->resv,
					 dma_resv_usage_rw(dir != DMA_FROM_DEVICE), true,
					 MAX_SCHEDULE_TIMEOUT);

	return ret < 0 ? ret : 0;
}

/**
 * bufshare_maps_sync() - begin or end CPU access for all devices
 * @maps: mappings of the dma-buf
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
		if (for_cpu)
			dma_sync_sgtable_for_cpu(map->dev, &map->sgt, map->dir);
		else
			dma_sync_sgtable_for_device(map->dev, &map->sgt, map->dir);
	}
	mutex_unlock(&maps->lock);
}
