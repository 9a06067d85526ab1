// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_export.c - EXPORT: a dma-buf of this VM for other VMs
 *
 * Of a dma-buf that ALLOC made we know the pages. Of any other we are an
 * importer: attached, pinned, and looking at nothing but DMA addresses, which
 * are of use only where they are guest-physical addresses.
 *
 * The backing is released when the host has answered that nobody can reach it
 * any more. If it never does, a reset of the device is that answer.
 */
#include <linux/anon_inodes.h>
#include <linux/cc_platform.h>
#include <linux/dma-resv.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/ioport.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "bufshare_priv.h"

static_assert(sizeof(struct virtio_bufshare_access) == sizeof(struct bufshare_access));

/**
 * struct bufshare_extents - a list of extents in the making
 * @list: the extents
 * @nr: their number
 * @max: room in @list
 * @total: bytes
 * @align: alignment, a power of two
 */
struct bufshare_extents {
	struct virtio_bufshare_extent *list;
	u32 nr;
	u32 max;
	u64 total;
	u64 align;
};

static int bufshare_extent_add(struct bufshare_extents *ext, u64 addr, u64 len, u32 *status)
{
	struct virtio_bufshare_extent *last = ext->nr ? &ext->list[ext->nr - 1] : NULL;

	if (last && le64_to_cpu(last->addr) + le64_to_cpu(last->len) == addr) {
		le64_add_cpu(&last->len, len);
	} else {
		if (ext->nr == ext->max) {
			*status = VIRTIO_BUFSHARE_S_TOO_FRAGMENTED;
			return -E2BIG;
		}
		ext->list[ext->nr].addr = cpu_to_le64(addr);
		ext->list[ext->nr].len = cpu_to_le64(len);
		ext->nr++;
	}
	ext->total += len;
	return 0;
}

/* What only a finished list shows. */
static int bufshare_extents_check(const struct bufshare_extents *ext, u64 size, u32 *status)
{
	u32 i;

	if (!ext->nr || ext->total != size)
		return -EINVAL;
	for (i = 0; i < ext->nr; i++) {
		if (!IS_ALIGNED(le64_to_cpu(ext->list[i].addr) | le64_to_cpu(ext->list[i].len),
				ext->align)) {
			*status = VIRTIO_BUFSHARE_S_UNALIGNED;
			return -EINVAL;
		}
	}
	return 0;
}

static int bufshare_own_extents(struct bufshare_exp *exp, const struct bufshare_mem *mem,
				struct bufshare_extents *ext, u32 *status)
{
	u32 i;
	int ret = 0;

	for (i = 0; i < mem->nr_pieces && !ret; i++)
		ret = bufshare_extent_add(ext, PFN_PHYS(page_to_pfn(mem->pieces[i].page)),
					  (u64)mem->pieces[i].nr << PAGE_SHIFT, status);
	return ret;
}

/*
 * The exporter wants to move what we have pinned. That cannot be hidden from
 * other VMs in version 1: take the buffer back from them.
 */
static void bufshare_exp_invalidate(struct dma_buf_attachment *attach);

static const struct dma_buf_attach_ops bufshare_attach_ops = {
	.allow_peer2peer = false,
	.invalidate_mappings = bufshare_exp_invalidate,
};

static int bufshare_foreign_extents(struct bufshare_exp *exp, struct bufshare_extents *ext,
				    u32 *status)
{
	struct bufshare_device *bd = exp->bd;
	struct dma_buf *dmabuf = exp->dmabuf;
	u64 addr, len, left = exp->size;
	struct scatterlist *sg;
	long waited;
	int ret, i;

	if (!bd->dma_is_phys) {
		dev_dbg(bd->dev, "DMA addresses are not guest-physical here: only buffers of ALLOC can be exported\n");
		return -EOPNOTSUPP;
	}

	exp->attach = dma_buf_dynamic_attach(dmabuf, bd->dma_dev, &bufshare_attach_ops, exp);
	if (IS_ERR(exp->attach)) {
		ret = PTR_ERR(exp->attach);
		exp->attach = NULL;
		return ret;
	}
	ret = dma_resv_lock_interruptible(dmabuf->resv, NULL);
	if (ret)
		return ret;
	ret = dma_buf_pin(exp->attach);
	if (ret)
		goto out;
	exp->pinned = true;
	exp->sgt = dma_buf_map_attachment(exp->attach, DMA_BIDIRECTIONAL);
	if (IS_ERR(exp->sgt)) {
		ret = PTR_ERR(exp->sgt);
		exp->sgt = NULL;
		goto out;
	}
	/* The memory may still be on its way to where the addresses say. */
	waited = dma_resv_wait_timeout(dmabuf->resv, DMA_RESV_USAGE_KERNEL, true,
				       bufshare_timeout());
	if (waited <= 0)
		ret = waited ? waited : -ETIMEDOUT;
out:
	dma_resv_unlock(dmabuf->resv);
	if (ret)
		return ret;

	for_each_sgtable_dma_sg(exp->sgt, sg, i) {
		addr = sg_dma_address(sg);
		len = min_t(u64, sg_dma_len(sg), left);
		if (!len)
			break;
		if (!PAGE_ALIGNED(addr | len)) {
			*status = VIRTIO_BUFSHARE_S_UNALIGNED;
			return -EINVAL;
		}
		if (region_intersects(addr, len, IORESOURCE_SYSTEM_RAM, IORES_DESC_NONE) !=
		    REGION_INTERSECTS) {
			dev_dbg(bd->dev, "a dma-buf of %s is not in RAM\n", dmabuf->exp_name);
			*status = VIRTIO_BUFSHARE_S_NOT_RAM;
			return -EOPNOTSUPP;
		}
		ret = bufshare_extent_add(ext, addr, len, status);
		if (ret)
			return ret;
		left -= len;
	}
	return 0;
}

/* Nobody else can reach the memory: give it up. May sleep. */
static void bufshare_exp_drop_backing(struct bufshare_exp *exp)
{
	struct dma_buf *dmabuf = exp->dmabuf;

	if (!dmabuf)
		return;
	if (exp->attach) {
		dma_resv_lock(dmabuf->resv, NULL);
		if (exp->sgt)
			dma_buf_unmap_attachment(exp->attach, exp->sgt, DMA_BIDIRECTIONAL);
		if (exp->pinned)
			dma_buf_unpin(exp->attach);
		dma_resv_unlock(dmabuf->resv);
		dma_buf_detach(dmabuf, exp->attach);
		exp->attach = NULL;
	}
	exp->dmabuf = NULL;
	dma_buf_put(dmabuf);
}

static void bufshare_exp_free(struct kref *ref)
{
	struct bufshare_exp *exp = container_of(ref, struct bufshare_exp, ref);
	struct bufshare_device *bd = exp->bd;

	spin_lock_irq(&bd->lock);
	list_del(&exp->node);
	spin_unlock_irq(&bd->lock);
	bufshare_req_put(exp->unexport_req);
	kfree(exp);
	bufshare_device_put(bd);
}

static void bufshare_exp_release_work(struct work_struct *work)
{
	struct bufshare_exp *exp = container_of(work, struct bufshare_exp, release_work);

	bufshare_exp_drop_backing(exp);
	kref_put(&exp->ref, bufshare_exp_free);
}

static void bufshare_exp_gone_locked(struct bufshare_exp *exp)
{
	exp->wire = BUFSHARE_EXPORT_GONE;
	queue_work(exp->bd->wq, &exp->release_work);
}

static void bufshare_unexport_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	struct bufshare_exp *exp = req->owner;

	if (!req->err || req->status == VIRTIO_BUFSHARE_S_NOT_FOUND) {
		bufshare_exp_gone_locked(exp);
		return;
	}
	exp->wire = BUFSHARE_EXPORT_STUCK;
	if (bd->alive)
		dev_err_ratelimited(bd->dev, "UNEXPORT: status %u (%d): the memory is kept until a reset\n",
				    req->status, req->err);
}

/* Take the next step, if there is one to take. */
static void bufshare_exp_settle_locked(struct bufshare_exp *exp)
{
	struct virtio_bufshare_by_id *out = exp->unexport_req->out;

	if (exp->wire != BUFSHARE_EXPORT_LIVE || !exp->closed)
		return;
	out->id = exp->id;
	exp->unexport_req->owner = exp;
	exp->unexport_req->complete = bufshare_unexport_complete;
	exp->wire = BUFSHARE_EXPORT_CLOSING;
	if (bufshare_send_locked(exp->bd, exp->unexport_req))
		exp->wire = BUFSHARE_EXPORT_STUCK;
}

static void bufshare_export_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	struct bufshare_exp *exp = req->owner;
	struct virtio_bufshare_export_resp resp;

	if (!req->err) {
		memcpy(&resp, req->in, sizeof(resp));
		exp->id = resp.id;
		exp->generation = le64_to_cpu(resp.generation);
		exp->wire = BUFSHARE_EXPORT_LIVE;
		bufshare_exp_settle_locked(exp);
	} else if (req->status != VIRTIO_BUFSHARE_S_OK || !req->reached) {
		bufshare_exp_gone_locked(exp);
	} else {
		/* No answer, or one without sense: it may be exported. */
		exp->wire = BUFSHARE_EXPORT_STUCK;
	}
}

static void bufshare_exp_invalidate(struct dma_buf_attachment *attach)
{
	struct bufshare_exp *exp = attach->importer_priv;
	struct bufshare_device *bd = exp->bd;

	/* Before the pinning it may move, and pinning itself may move it. */
	dma_resv_assert_held(attach->dmabuf->resv);
	if (!exp->pinned)
		return;
	dev_warn_once(bd->dev, "%s moves a pinned buffer: its export ends\n",
		      attach->dmabuf->exp_name);
	spin_lock_irq(&bd->lock);
	WRITE_ONCE(exp->dead, true);
	exp->closed = true;
	bufshare_exp_settle_locked(exp);
	wake_up_all(&exp->wait);
	spin_unlock_irq(&bd->lock);
}

/**
 * bufshare_export_revoked_locked() - the host has ended an export of ours
 * @bd: the device; its lock is held
 * @id: the buffer
 *
 * The backing stays until our UNEXPORT, at the closing, is answered.
 */
void bufshare_export_revoked_locked(struct bufshare_device *bd,
				    const struct virtio_bufshare_id *id)
{
	struct bufshare_exp *exp;

	list_for_each_entry(exp, &bd->exports, node) {
		if (exp->wire != BUFSHARE_EXPORT_LIVE || memcmp(&exp->id, id, sizeof(*id)))
			continue;
		WRITE_ONCE(exp->dead, true);
		wake_up_all(&exp->wait);
		return;
	}
}

/**
 * bufshare_exports_gone() - the device was reset: no export is left
 * @bd: the device, not alive
 *
 * Flush bufshare_device.wq afterwards.
 */
void bufshare_exports_gone(struct bufshare_device *bd)
{
	struct bufshare_exp *exp;

	spin_lock_irq(&bd->lock);
	list_for_each_entry(exp, &bd->exports, node) {
		if (exp->wire == BUFSHARE_EXPORT_NEW || exp->wire == BUFSHARE_EXPORT_GONE)
			continue;
		bufshare_exp_gone_locked(exp);
		WRITE_ONCE(exp->dead, true);
		wake_up_all(&exp->wait);
	}
	spin_unlock_irq(&bd->lock);
}

static int bufshare_exp_fop_release(struct inode *inode, struct file *file)
{
	struct bufshare_exp *exp = file->private_data;
	struct bufshare_device *bd = exp->bd;
	bool unsent;

	spin_lock_irq(&bd->lock);
	exp->closed = true;
	unsent = exp->wire == BUFSHARE_EXPORT_NEW;
	if (unsent)
		exp->wire = BUFSHARE_EXPORT_GONE;
	else
		bufshare_exp_settle_locked(exp);
	spin_unlock_irq(&bd->lock);

	if (unsent) {
		bufshare_exp_drop_backing(exp);
		kref_put(&exp->ref, bufshare_exp_free);
	}
	kref_put(&exp->ref, bufshare_exp_free);
	return 0;
}

static __poll_t bufshare_exp_fop_poll(struct file *file, poll_table *wait)
{
	struct bufshare_exp *exp = file->private_data;

	poll_wait(file, &exp->wait, wait);
	return READ_ONCE(exp->dead) || !READ_ONCE(exp->bd->alive) ? EPOLLHUP : 0;
}

static void bufshare_exp_fop_fdinfo(struct seq_file *m, struct file *file)
{
	struct bufshare_exp *exp = file->private_data;

	seq_printf(m, "bufshare-id:\t%*phN\n", (int)sizeof(exp->id), &exp->id);
	seq_printf(m, "bufshare-size:\t%llu\n", exp->size);
}

static const struct file_operations bufshare_exp_fops = {
	.owner = THIS_MODULE,
	.release = bufshare_exp_fop_release,
	.poll = bufshare_exp_fop_poll,
	.show_fdinfo = bufshare_exp_fop_fdinfo,
};

/* From here on, fput() of the file undoes everything. */
static struct file *bufshare_exp_file(struct bufshare_device *bd, struct dma_buf *dmabuf)
{
	struct bufshare_exp *exp;
	struct file *file;

	exp = kzalloc_obj(*exp);
	if (!exp)
		return ERR_PTR(-ENOMEM);
	kref_init(&exp->ref);
	kref_get(&exp->ref);	/* the second is the backing's */
	init_waitqueue_head(&exp->wait);
	INIT_WORK(&exp->release_work, bufshare_exp_release_work);
	exp->unexport_req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_UNEXPORT,
					       sizeof(struct virtio_bufshare_by_id),
					       sizeof(struct virtio_bufshare_resp));
	if (!exp->unexport_req) {
		kfree(exp);
		return ERR_PTR(-ENOMEM);
	}
	exp->unexport_req->closing = true;
	file = anon_inode_getfile("[bufshare-export]", &bufshare_exp_fops, exp, O_RDWR);
	if (IS_ERR(file)) {
		bufshare_req_put(exp->unexport_req);
		kfree(exp);
		return file;
	}
	exp->bd = bufshare_device_get(bd);
	get_dma_buf(dmabuf);
	exp->dmabuf = dmabuf;
	exp->size = dmabuf->size;
	spin_lock_irq(&bd->lock);
	list_add_tail(&exp->node, &bd->exports);
	spin_unlock_irq(&bd->lock);
	return file;
}

static int bufshare_export_request(struct bufshare_device *bd, struct bufshare_export *arg,
				   const struct bufshare_extents *ext, u64 size,
				   struct bufshare_req **made)
{
	size_t acl_len = arg->num_acl * sizeof(struct bufshare_access);
	size_t ext_len = ext->nr * sizeof(*ext->list);
	struct virtio_bufshare_access *to;
	struct virtio_bufshare_export *out;
	struct bufshare_access *from;
	struct bufshare_req *req;
	u8 *tail;
	u32 i;

	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_EXPORT,
				 sizeof(*out) + acl_len + ext_len + arg->meta.blob_len,
				 sizeof(struct virtio_bufshare_export_resp));
	if (!req)
		return -ENOMEM;
	out = req->out;
	out->size = cpu_to_le64(size);
	out->num_extents = cpu_to_le32(ext->nr);
	out->num_acl = cpu_to_le32(arg->num_acl);
	bufshare_meta_to_wire(&out->meta, &arg->meta);

	tail = (u8 *)(out + 1);
	from = memdup_user(u64_to_user_ptr(arg->acl), acl_len);
	if (IS_ERR(from)) {
		bufshare_req_put(req);
		return PTR_ERR(from);
	}
	to = (struct virtio_bufshare_access *)tail;
	for (i = 0; i < arg->num_acl; i++) {
		if (from[i].reserved || from[i].rights & ~(BUFSHARE_READ | BUFSHARE_WRITE) ||
		    !(from[i].rights & BUFSHARE_READ)) {
			kfree(from);
			bufshare_req_put(req);
			return -EINVAL;
		}
		to[i].peer = cpu_to_le64(from[i].peer);
		to[i].rights = cpu_to_le32(from[i].rights);
	}
	kfree(from);
	tail += acl_len;
	memcpy(tail, ext->list, ext_len);
	tail += ext_len;
	if (copy_from_user(tail, u64_to_user_ptr(arg->blob), arg->meta.blob_len)) {
		bufshare_req_put(req);
		return -EFAULT;
	}
	*made = req;
	return 0;
}

static int bufshare_export_send(struct bufshare_device *bd, struct bufshare_exp *exp,
				struct bufshare_req *req, struct bufshare_export *arg)
{
	int ret;

	req->owner = exp;
	req->complete = bufshare_export_complete;
	spin_lock_irq(&bd->lock);
	exp->wire = BUFSHARE_EXPORT_SENT;
	ret = bufshare_send_locked(bd, req);
	if (ret)
		exp->wire = BUFSHARE_EXPORT_NEW;
	spin_unlock_irq(&bd->lock);
	if (!ret)
		ret = bufshare_wait(bd, req, &arg->status);
	if (ret)
		return ret;

	spin_lock_irq(&bd->lock);
	if (exp->dead)
		ret = bd->alive ? -ESTALE : -ENODEV;
	memcpy(&arg->id, &exp->id, sizeof(arg->id));
	arg->generation = exp->generation;
	spin_unlock_irq(&bd->lock);
	return ret;
}

/**
 * bufshare_ioc_export() - EXPORT
 * @bd: the device
 * @arg: what is asked and answered
 * @newfd: the file whose end is the end of the export
 *
 * Return: 0 or a negative errno.
 */
int bufshare_ioc_export(struct bufshare_device *bd, struct bufshare_export *arg,
			struct bufshare_newfd *newfd)
{
	struct bufshare_extents ext = {
		.max = bd->caps.max_extents,
		.align = bd->caps.map_align,
	};
	struct bufshare_req *req = NULL;
	const struct bufshare_mem *mem;
	struct bufshare_exp *exp;
	struct dma_buf *dmabuf;
	struct file *file;
	int ret;

	if (arg->flags || arg->fd_flags & ~O_CLOEXEC || arg->meta.reserved ||
	    arg->num_acl > BUFSHARE_MAX_ACL)
		return -EINVAL;
	if (arg->meta.blob_len > bd->caps.max_blob) {
		arg->status = VIRTIO_BUFSHARE_S_META_TOO_LARGE;
		return -EMSGSIZE;
	}
	/* Encrypted memory: the host would show ciphertext to others. */
	if (cc_platform_has(CC_ATTR_GUEST_MEM_ENCRYPT))
		return -EOPNOTSUPP;

	dmabuf = dma_buf_get(arg->dmabuf_fd);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	if (bufshare_is_import(dmabuf)) {
		/* It is its owner's to share. */
		dma_buf_put(dmabuf);
		return -EPERM;
	}
	file = bufshare_exp_file(bd, dmabuf);
	dma_buf_put(dmabuf);
	if (IS_ERR(file))
		return PTR_ERR(file);
	exp = file->private_data;

	ret = -EINVAL;
	if (!PAGE_ALIGNED(exp->size) || !exp->size)
		goto out;
	ret = -EFBIG;
	if (exp->size > bd->caps.max_buffer_size) {
		arg->status = VIRTIO_BUFSHARE_S_TOO_LARGE;
		goto out;
	}
	ret = -ENOMEM;
	ext.list = kvmalloc_objs(*ext.list, ext.max);
	if (!ext.list)
		goto out;
	mem = bufshare_mem_of(dmabuf);
	if (mem)
		ret = bufshare_own_extents(exp, mem, &ext, &arg->status);
	else
		ret = bufshare_foreign_extents(exp, &ext, &arg->status);
	if (!ret)
		ret = bufshare_extents_check(&ext, exp->size, &arg->status);
	if (ret)
		goto out;
	exp->nr_extents = ext.nr;

	ret = bufshare_export_request(bd, arg, &ext, exp->size, &req);
	if (ret)
		goto out;
	ret = bufshare_export_send(bd, exp, req, arg);
	if (ret)
		goto out;
	ret = bufshare_newfd_prepare(newfd, arg->fd_flags, file);
	if (!ret)
		arg->export_fd = newfd->fd;
out:
	bufshare_req_put(req);
	kvfree(ext.list);
	if (ret)
		fput(file);
	return ret;
}
