// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_device.c - a device's life, and its way to the host's memory
 */
#include <linux/device.h>
#include <linux/dma-mapping.h>
#include <linux/mm.h>
#include <linux/rwsem.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>

#include "bufshare_priv.h"

/*
 * Releases the backing of exports. It calls other drivers, which may flush
 * ordinary queues (so no WQ_MEM_RECLAIM) and take their time (so nothing else
 * runs here, and one export does not wait for another). It outlives a binding,
 * since the drivers that it calls may not be done in time.
 */
struct workqueue_struct *bufshare_release_wq;

static void bufshare_device_free(struct kref *ref)
{
	struct bufshare_device *bd = container_of(ref, struct bufshare_device, ref);

	put_device(bd->dma_dev);
	put_device(bd->dev);
	bufshare_event_free(bd);
	kvfree(bd);
}

/**
 * bufshare_device_put() - drop a reference
 * @bd: the device
 */
void bufshare_device_put(struct bufshare_device *bd)
{
	kref_put(&bd->ref, bufshare_device_free);
}

/**
 * bufshare_enter() - begin to use what there is only while the driver is bound
 * @bd: the device
 *
 * That is the window region and @dma_dev; requests need no such care. The driver's
 * removal waits for the bufshare_exit() that follows. So memory of a program is not
 * touched in between: a program can have that take as long as it likes.
 *
 * Return: false if the driver is being unbound, then nothing has begun.
 */
bool bufshare_enter(struct bufshare_device *bd)
{
	/* It is written only by remove(). */
	if (!down_read_trylock(&bd->inside))
		return false;
	if (!READ_ONCE(bd->unbinding))
		return true;
	up_read(&bd->inside);
	return false;
}

/**
 * bufshare_exit() - the end of what bufshare_enter() began
 * @bd: the device
 */
void bufshare_exit(struct bufshare_device *bd)
{
	up_read(&bd->inside);
}

/**
 * bufshare_device_alloc() - a device that is not used yet
 * @vdev: its virtio device
 *
 * Return: it, with one reference, or NULL.
 */
struct bufshare_device *bufshare_device_alloc(struct virtio_device *vdev)
{
	struct bufshare_device *bd;

	bd = kvzalloc_obj(*bd);
	if (!bd)
		return NULL;
	kref_init(&bd->ref);
	bd->vdev = vdev;
	bd->dev = get_device(&vdev->dev);
	bd->dma_dev = get_device(vdev->dev.parent);
	mutex_init(&bd->session);
	init_rwsem(&bd->inside);
	spin_lock_init(&bd->lock);
	INIT_LIST_HEAD(&bd->pending);
	INIT_LIST_HEAD(&bd->inflight);
	INIT_LIST_HEAD(&bd->parked);
	INIT_LIST_HEAD(&bd->exports);
	INIT_LIST_HEAD(&bd->imports);
	INIT_LIST_HEAD(&bd->stale);
	hash_init(bd->exports_by_id);
	hash_init(bd->exports_by_dmabuf);
	hash_init(bd->imports_by_id);
	hash_init(bd->imports_by_handle);
	init_waitqueue_head(&bd->idle);
	mutex_init(&bd->files_lock);
	INIT_LIST_HEAD(&bd->files);
	return bd;
}

/**
 * bufshare_dma_is_phys() - are DMA addresses guest-physical
 * @bd: the device
 *
 * The addresses of an EXPORT are guest-physical. Those that the DMA interface
 * gives are so only without an IOMMU, an offset or bounce buffers in between:
 * ask it for a page.
 *
 * Return: true if so.
 */
bool bufshare_dma_is_phys(struct bufshare_device *bd)
{
	struct page *page;
	dma_addr_t addr;
	bool same;

	if (virtio_has_feature(bd->vdev, VIRTIO_F_ACCESS_PLATFORM))
		return false;
	page = alloc_page(GFP_KERNEL);
	if (!page)
		return false;
	addr = dma_map_page(bd->dma_dev, page, 0, PAGE_SIZE, DMA_BIDIRECTIONAL);
	same = !dma_mapping_error(bd->dma_dev, addr);
	if (same) {
		same = addr == page_to_phys(page);
		dma_unmap_page(bd->dma_dev, addr, PAGE_SIZE, DMA_BIDIRECTIONAL);
	}
	__free_page(page);
	return same;
}

/**
 * bufshare_dma_limits_lift() - have foreign buffers mapped in as few pieces as they have
 * @bd: the device
 *
 * Foreign buffers are mapped for our parent, which has the limits of a PCI
 * function whose driver says nothing: pieces of 64 KiB, none across 4 GiB. The
 * addresses go to the host, which has no such limit. No other driver maps for a
 * virtio device's parent meanwhile; the next one finds it as it was.
 */
void bufshare_dma_limits_lift(struct bufshare_device *bd)
{
	if (!bd->dma_dev->dma_parms)
		return;
	bd->max_seg_size = bd->dma_dev->dma_parms->max_segment_size;
	bd->seg_boundary = bd->dma_dev->dma_parms->segment_boundary_mask;
	dma_set_max_seg_size(bd->dma_dev, UINT_MAX);
	dma_set_seg_boundary(bd->dma_dev, ULONG_MAX);
}

/**
 * bufshare_dma_limits_restore() - undo bufshare_dma_limits_lift()
 * @bd: the device
 */
void bufshare_dma_limits_restore(struct bufshare_device *bd)
{
	if (!bd->dma_dev->dma_parms)
		return;
	dma_set_max_seg_size(bd->dma_dev, bd->max_seg_size);
	dma_set_seg_boundary(bd->dma_dev, bd->seg_boundary);
}
