// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_shm.c - the window region
 *
 * The region gets struct pages, so that the ordinary DMA interface and kernel
 * mappings work for every importer of a buffer in it. It is not managed by the
 * device: an imported dma-buf may outlive the driver's binding, and with it
 * device mappings that other drivers hold. The next binding shares it with them
 * then.
 */
#include <linux/align.h>
#include <linux/errno.h>
#include <linux/ioport.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>

#include "bufshare_priv.h"

/* The regions that have struct pages, of whatever binding. */
static DEFINE_MUTEX(bufshare_shm_mutex);	/* the list, and the end of what is on it */
static LIST_HEAD(bufshare_shm_list);

/* Make struct pages for a region. NULL: it cannot be used. */
static struct bufshare_shm *bufshare_shm_make(struct bufshare_device *bd,
					      const struct virtio_shm_region *region)
{
	struct bufshare_shm *shm;

	shm = kzalloc_obj(*shm);
	if (!shm)
		return ERR_PTR(-ENOMEM);
	shm->res = request_mem_region(region->addr, region->len, KBUILD_MODNAME);
	if (!shm->res) {
		dev_err(bd->dev, "another driver uses the shared-memory region (%#llx bytes at %#llx)\n",
			region->len, region->addr);
		kfree(shm);
		return ERR_PTR(-EBUSY);
	}
	shm->pgmap.type = MEMORY_DEVICE_GENERIC;
	shm->pgmap.nr_range = 1;
	shm->pgmap.range.start = region->addr;
	shm->pgmap.range.end = region->addr + region->len - 1;
	shm->virt = memremap_pages(&shm->pgmap, dev_to_node(bd->dma_dev));
	if (IS_ERR(shm->virt)) {
		dev_warn(bd->dev, "the shared-memory region cannot be mapped (%ld): this VM can export, not import\n",
			 PTR_ERR(shm->virt));
		release_mem_region(region->addr, region->len);
		kfree(shm);
		return NULL;
	}
	kref_init(&shm->ref);
	shm->start = region->addr;
	shm->size = region->len;
	shm->dev = get_device(bd->dma_dev);
	return shm;
}

/* The region, or that of an earlier binding which other drivers still use. */
static struct bufshare_shm *bufshare_shm_get_or_make(struct bufshare_device *bd,
						     const struct virtio_shm_region *region)
{
	struct bufshare_shm *shm;

	list_for_each_entry(shm, &bufshare_shm_list, node) {
		if (shm->start == region->addr && shm->size == region->len)
			return bufshare_shm_get(shm);
		if (shm->start < region->addr + region->len &&
		    region->addr < shm->start + shm->size) {
			dev_err(bd->dev, "the shared-memory region overlaps an earlier one, where drivers still use imported buffers: end their use of these, then bind this driver again\n");
			return ERR_PTR(-EBUSY);
		}
	}
	shm = bufshare_shm_make(bd, region);
	if (!IS_ERR_OR_NULL(shm))
		list_add(&shm->node, &bufshare_shm_list);
	return shm;
}

/**
 * bufshare_shm_open() - take the window region of a device
 * @bd: the device
 *
 * Return: the region, one reference; NULL: there is none that can be used; or a
 * negative errno.
 */
struct bufshare_shm *bufshare_shm_open(struct bufshare_device *bd)
{
	struct virtio_shm_region region;
	struct bufshare_shm *shm;
	unsigned long align = memremap_compat_align();

	if (!virtio_get_shm_region(bd->vdev, &region, VIRTIO_BUFSHARE_SHMID) || !region.len) {
		dev_warn(bd->dev, "the VMM offers no shared-memory region: this VM can export, not import\n");
		return NULL;
	}
	if (!IS_ALIGNED(region.addr | region.len, align) ||
	    region.addr + region.len < region.addr) {
		dev_warn(bd->dev, "the shared-memory region (%#llx bytes at %#llx) is not aligned to %#lx: this VM can export, not import\n",
			 region.len, region.addr, align);
		return NULL;
	}

	mutex_lock(&bufshare_shm_mutex);
	shm = bufshare_shm_get_or_make(bd, &region);
	mutex_unlock(&bufshare_shm_mutex);
	return shm;
}

static void bufshare_shm_free(struct kref *ref)
{
	struct bufshare_shm *shm = container_of(ref, struct bufshare_shm, ref);

	list_del(&shm->node);
	memunmap_pages(&shm->pgmap);
	/*
	 * Not by its address: when the PCI device has been taken out, the tree of
	 * all resources does not lead to ours any more.
	 */
	release_resource(shm->res);
	kfree(shm->res);
	put_device(shm->dev);
	kfree(shm);
	mutex_unlock(&bufshare_shm_mutex);
}

/**
 * bufshare_shm_put() - drop a reference of the region; may sleep
 * @shm: the region, may be NULL
 */
void bufshare_shm_put(struct bufshare_shm *shm)
{
	if (shm)
		kref_put_mutex(&shm->ref, bufshare_shm_free, &bufshare_shm_mutex);
}
