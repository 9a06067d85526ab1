// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_cpu_access.c - SYNC: programs and drivers access an import by the CPU
 */
#include <linux/errno.h>
#include <linux/module.h>

#include "bufshare_priv.h"

static bool force_sync;
module_param(force_sync, bool, 0644);
MODULE_PARM_DESC(force_sync, "Notify the host of CPU access even where memory is coherent (default off)");

/* Does the host have to know of CPU access? Only where that moves data. */
static bool bufshare_imp_syncs(const struct bufshare_imp *imp)
{
	return !(imp->properties & VIRTIO_BUFSHARE_COHERENT) || READ_ONCE(force_sync);
}

/*
 * The accesses are those that the host counts, whoever waits: an END counts from its
 * sending on, unless it is refused, so that it can be repeated then.
 */
static void bufshare_sync_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	const struct virtio_bufshare_sync *out = req->out;
	bool begins = out->op == cpu_to_le32(VIRTIO_BUFSHARE_SYNC_BEGIN);
	struct bufshare_imp *imp = req->owner;

	if (begins == !req->err)
		imp->accesses++;
	bufshare_imp_put_locked(imp);
}

static int bufshare_sync_call(struct bufshare_imp *imp, struct bufshare_req *req, bool begins)
{
	struct bufshare_device *bd = imp->bd;
	int ret = -EINVAL;

	bufshare_lock(bd);
	if (begins || imp->accesses) {
		kref_get(&imp->ref);
		ret = bufshare_send_locked(bd, req);
		if (ret)
			bufshare_imp_put_locked(imp);	/* not the last: the dma-buf has one */
		else if (!begins)
			imp->accesses--;
	}
	bufshare_unlock(bd);
	return ret ?: bufshare_wait(bd, req, NULL);
}

/* Notify the host of CPU access. */
static int bufshare_imp_sync(struct bufshare_imp *imp, enum dma_data_direction dir, bool begins)
{
	struct virtio_bufshare_sync *out;
	struct bufshare_req *req;
	u32 access;
	int ret;

	access = dir == DMA_TO_DEVICE ? VIRTIO_BUFSHARE_WRITE :
		 dir == DMA_FROM_DEVICE ? VIRTIO_BUFSHARE_READ :
		 VIRTIO_BUFSHARE_READ | VIRTIO_BUFSHARE_WRITE;
	/* Who may not write has nothing to publish. */
	access &= imp->rights;
	if (!access)
		return -EACCES;

	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_SYNC, sizeof(*out), 0,
				 sizeof(struct virtio_bufshare_resp), 0);
	if (!req)
		return -ENOMEM;
	out = req->out;
	out->handle = cpu_to_le64(imp->handle);
	out->op = cpu_to_le32(begins ? VIRTIO_BUFSHARE_SYNC_BEGIN : VIRTIO_BUFSHARE_SYNC_END);
	out->access = cpu_to_le32(access);
	out->len = cpu_to_le64(imp->size);
	req->owner = imp;
	req->complete = bufshare_sync_complete;
	ret = bufshare_sync_call(imp, req, begins);
	bufshare_req_put(req);
	return ret == -ESTALE ? -ENODEV : ret;
}

/**
 * bufshare_imp_begin_cpu_access() - begin_cpu_access: dma_buf_ops
 * @dmabuf: the import
 * @dir: what is to be accessed
 *
 * It has the buffer mapped into this VM, so that whoever asks can be told what is wrong.
 *
 * Return: 0 or a negative errno.
 */
int bufshare_imp_begin_cpu_access(struct dma_buf *dmabuf, enum dma_data_direction dir)
{
	struct bufshare_imp *imp = dmabuf->priv;
	int ret;

	ret = bufshare_window_map(&imp->window, false, true);
	if (!ret)
		ret = bufshare_wait_for_devices(dmabuf, dir);
	if (ret)
		return ret;
	if (bufshare_imp_syncs(imp)) {
		ret = bufshare_imp_sync(imp, dir, true);
		if (ret)
			return ret;
	} else {
		bufshare_lock(imp->bd);
		imp->accesses++;
		bufshare_unlock(imp->bd);
	}
	bufshare_maps_sync(&imp->maps, true);
	return 0;
}

/**
 * bufshare_imp_end_cpu_access() - end_cpu_access: dma_buf_ops
 * @dmabuf: the import
 * @dir: what was accessed
 *
 * Return: 0 or a negative errno.
 */
int bufshare_imp_end_cpu_access(struct dma_buf *dmabuf, enum dma_data_direction dir)
{
	struct bufshare_imp *imp = dmabuf->priv;
	int ret;

	bufshare_maps_sync(&imp->maps, false);
	/* Nobody says whose access ends: count those of all. */
	if (!READ_ONCE(imp->accesses))
		return -EINVAL;
	ret = bufshare_window_map(&imp->window, false, true);
	if (ret)
		return ret;
	if (bufshare_imp_syncs(imp))
		return bufshare_imp_sync(imp, dir, false);
	bufshare_lock(imp->bd);
	if (imp->accesses)
		imp->accesses--;
	else
		ret = -EINVAL;
	bufshare_unlock(imp->bd);
	return ret;
}
