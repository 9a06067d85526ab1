// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_shm.c - the window region
 *
 * The region gets struct pages, so that the ordinary DMA interface and kernel
 * mappings work for every importer of a buffer in it. It is not managed by the
 * device: an imported dma-buf may outlive the driver's binding, and with it
 * device mappings that other drivers hold.
 */
#include <linux/align.h>
#include <linux/errno.h>
#include <linux/ioport.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>

#include "bufshare_priv.h"

/**
 * bufshare_shm_open() - take the window region of a device
 * @bd: the device
 *
 * Return: the region, one reference; NULL: there is none that can be used;
 * -EBUSY: dma-bufs imported before an unbind still use it; or another errno.
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

	shm = kzalloc_obj(*shm);
	if (!shm)
		return ERR_PTR(-ENOMEM);
	if (!request_mem_region(region.addr, region.len, KBUILD_MODNAME)) {
		dev_err(bd->dev, "the shared-memory region is in use, maybe by buffers imported before an unbind: close these\n");
		kfree(shm);
		return ERR_PTR(-EBUSY);
	}
	shm->pgmap.type = MEMORY_DEVICE_GENERIC;
	shm->pgmap.nr_range = 1;
	shm->pgmap.range.start = region.addr;
	shm->pgmap.range.end = region.addr + region.len - 1;
	shm->virt = memremap_pages(&shm->pgmap, dev_to_node(bd->dma_dev));
	if (IS_ERR(shm->virt)) {
		dev_warn(bd->dev, "the shared-memory region cannot be mapped (%ld): this VM can export, not import\n",
			 PTR_ERR(shm->virt));
		release_mem_region(region.addr, region.len);
		kfree(shm);
		return NULL;
	}
	kref_init(&shm->ref);
	shm->start = region.addr;
	shm->size = region.len;
	return shm;
}

static void bufshare_shm_free(struct kref *ref)
{
	struct bufshare_shm *shm = container_of(ref, struct bufshare_shm, ref);

	memunmap_pages(&shm->pgmap);
	release_mem_region(shm->start, shm->size);
	kfree(shm);
}

/**
 * bufshare_shm_put() - drop a reference of the region; may sleep
 * @shm: the region, may be NULL
 */
void bufshare_shm_put(struct bufshare_shm *shm)
{
	if (shm)
		kref_put(&shm->ref, bufshare_shm_free);
}
