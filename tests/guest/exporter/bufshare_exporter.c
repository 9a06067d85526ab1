// SPDX-License-Identifier: GPL-2.0
/*
 * A driver for tests that exports dma-bufs which it can move: a buffer's content goes
 * to other memory, and its memory is used for something else.
 *
 * The ioctls of /dev/bufshare_exporter are below; their arguments are as in
 * tests/agent/src/client/exporter.rs.
 */
#include <linux/delay.h>
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/jiffies.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

#ifndef HAVE_INVALIDATE_MAPPINGS
#define dma_buf_invalidate_mappings dma_buf_move_notify
#endif

#define EXPORTER_MAX_SIZE	(4 << 20)
#define EXPORTER_FENCES		(20 * HZ)
/* What the memory holds that a buffer was moved from. */
#define EXPORTER_OTHER		0xee

enum exporter_kind {
	EXPORTER_MOVABLE,	/* does not move while it is pinned */
	EXPORTER_RUDE,		/* moves all the same */
	EXPORTER_REVOCABLE,	/* is only for importers that can be made to unmap */
};

struct exporter_make {
	__u64 size;
	__u32 kind;
	__s32 fd;
};

struct exporter_move {
	__s32 fd;
	__u32 pins;
};

#define EXPORTER_MAKE	_IOWR(0xb7, 0, struct exporter_make)
#define EXPORTER_MOVE	_IOWR(0xb7, 1, struct exporter_move)

/**
 * struct exporter - one buffer
 * @kind: enum exporter_kind; constant
 * @order: of its memory; constant
 * @page: its memory; the dma-buf's reservation lock
 * @old: where it was before it moved, or NULL; likewise
 * @pins: how often it is pinned; likewise
 */
struct exporter {
	u32 kind;
	unsigned int order;
	struct page *page;
	struct page *old;
	u32 pins;
};

static int exporter_attach(struct dma_buf *dmabuf, struct dma_buf_attachment *attach)
{
	struct exporter *ex = dmabuf->priv;
	bool revocable = false;

#ifdef HAVE_REVOCABLE
	revocable = dma_buf_attach_revocable(attach);
#endif
	return ex->kind == EXPORTER_REVOCABLE && !revocable ? -EOPNOTSUPP : 0;
}

/* It takes its time, so it is not over before it is waited for. */
static void exporter_idle(struct work_struct *work)
{
	msleep(20);
}

static DECLARE_WORK(exporter_work, exporter_idle);

/* It may wait for work of its own on an ordinary queue. */
static void exporter_detach(struct dma_buf *dmabuf, struct dma_buf_attachment *attach)
{
	schedule_work(&exporter_work);
	flush_work(&exporter_work);
}

static int exporter_pin(struct dma_buf_attachment *attach)
{
	struct exporter *ex = attach->dmabuf->priv;

	ex->pins++;
	return 0;
}

static void exporter_unpin(struct dma_buf_attachment *attach)
{
	struct exporter *ex = attach->dmabuf->priv;

	ex->pins--;
}

static struct sg_table *exporter_map(struct dma_buf_attachment *attach,
				     enum dma_data_direction dir)
{
	struct exporter *ex = attach->dmabuf->priv;
	struct sg_table *sgt = kzalloc_obj(*sgt);
	int ret;

	if (!sgt)
		return ERR_PTR(-ENOMEM);
	ret = sg_alloc_table(sgt, 1, GFP_KERNEL);
	if (ret) {
		kfree(sgt);
		return ERR_PTR(ret);
	}
	sg_set_page(sgt->sgl, ex->page, attach->dmabuf->size, 0);
	ret = dma_map_sgtable(attach->dev, sgt, dir, 0);
	if (ret) {
		sg_free_table(sgt);
		kfree(sgt);
		return ERR_PTR(ret);
	}
	return sgt;
}

static void exporter_unmap(struct dma_buf_attachment *attach, struct sg_table *sgt,
			   enum dma_data_direction dir)
{
	dma_unmap_sgtable(attach->dev, sgt, dir, 0);
	sg_free_table(sgt);
	kfree(sgt);
}

static vm_fault_t exporter_fault(struct vm_fault *vmf)
{
	struct dma_buf *dmabuf = vmf->vma->vm_private_data;
	struct exporter *ex = dmabuf->priv;
	vm_fault_t ret;

	if (dma_resv_lock_interruptible(dmabuf->resv, NULL))
		return VM_FAULT_NOPAGE;
	ret = vmf_insert_pfn(vmf->vma, vmf->address & PAGE_MASK,
			     page_to_pfn(ex->page) + vmf->pgoff);
	dma_resv_unlock(dmabuf->resv);
	return ret;
}

static const struct vm_operations_struct exporter_vm_ops = {
	.fault = exporter_fault,
};

static int exporter_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_MAYSHARE) ||
	    vma->vm_pgoff + vma_pages(vma) > dmabuf->size >> PAGE_SHIFT)
		return -EINVAL;
	vm_flags_set(vma, VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_ops = &exporter_vm_ops;
	vma->vm_private_data = dmabuf;
	return 0;
}

static void exporter_free(struct exporter *ex)
{
	__free_pages(ex->page, ex->order);
	if (ex->old)
		__free_pages(ex->old, ex->order);
	kfree(ex);
}

static void exporter_release(struct dma_buf *dmabuf)
{
	exporter_free(dmabuf->priv);
}

static const struct dma_buf_ops exporter_ops = {
	.attach = exporter_attach,
	.detach = exporter_detach,
	.pin = exporter_pin,
	.unpin = exporter_unpin,
	.map_dma_buf = exporter_map,
	.unmap_dma_buf = exporter_unmap,
	.mmap = exporter_mmap,
	.release = exporter_release,
};

static int exporter_make(struct exporter_make *arg)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct dma_buf *dmabuf;
	struct exporter *ex;
	int fd;

	if (!arg->size || arg->size > EXPORTER_MAX_SIZE || !is_power_of_2(arg->size) ||
	    arg->size < PAGE_SIZE || arg->kind > EXPORTER_REVOCABLE)
		return -EINVAL;
	ex = kzalloc_obj(*ex);
	if (!ex)
		return -ENOMEM;
	ex->kind = arg->kind;
	ex->order = get_order(arg->size);
	ex->page = alloc_pages(GFP_KERNEL | __GFP_ZERO | __GFP_COMP, ex->order);
	if (!ex->page) {
		kfree(ex);
		return -ENOMEM;
	}
	info.ops = &exporter_ops;
	info.size = arg->size;
	info.flags = O_RDWR;
	info.priv = ex;
	dmabuf = dma_buf_export(&info);
	if (IS_ERR(dmabuf)) {
		exporter_free(ex);
		return PTR_ERR(dmabuf);
	}
	fd = dma_buf_fd(dmabuf, O_CLOEXEC);
	if (fd < 0) {
		dma_buf_put(dmabuf);
		return fd;
	}
	arg->fd = fd;
	return 0;
}

/* Once, and only if nobody has it pinned or that does not count. */
static int exporter_move_locked(struct dma_buf *dmabuf)
{
	struct exporter *ex = dmabuf->priv;
	struct page *to;
	long waited;

	if (ex->pins && ex->kind != EXPORTER_RUDE)
		return -EBUSY;
	if (ex->old)
		return -EALREADY;
	to = alloc_pages(GFP_KERNEL | __GFP_COMP, ex->order);
	if (!to)
		return -ENOMEM;
	dma_buf_invalidate_mappings(dmabuf);
	waited = dma_resv_wait_timeout(dmabuf->resv, DMA_RESV_USAGE_BOOKKEEP, false,
				       EXPORTER_FENCES);
	if (waited <= 0) {
		__free_pages(to, ex->order);
		return waited ? waited : -ETIMEDOUT;
	}
	unmap_mapping_range(file_inode(dmabuf->file)->i_mapping, 0, 0, 1);
	memcpy(page_address(to), page_address(ex->page), dmabuf->size);
	memset(page_address(ex->page), EXPORTER_OTHER, dmabuf->size);
	ex->old = ex->page;
	ex->page = to;
	return 0;
}

static int exporter_move(struct exporter_move *arg)
{
	struct dma_buf *dmabuf = dma_buf_get(arg->fd);
	struct exporter *ex;
	int ret = -EINVAL;

	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	if (dmabuf->ops == &exporter_ops) {
		ex = dmabuf->priv;
		dma_resv_lock(dmabuf->resv, NULL);
		arg->pins = ex->pins;
		ret = exporter_move_locked(dmabuf);
		dma_resv_unlock(dmabuf->resv);
	}
	dma_buf_put(dmabuf);
	return ret;
}

static long exporter_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	void __user *user = (void __user *)arg;
	struct exporter_make make;
	struct exporter_move move;
	int ret;

	switch (cmd) {
	case EXPORTER_MAKE:
		if (copy_from_user(&make, user, sizeof(make)))
			return -EFAULT;
		ret = exporter_make(&make);
		/* For tests, whose memory is there. */
		return copy_to_user(user, &make, sizeof(make)) ? -EFAULT : ret;
	case EXPORTER_MOVE:
		if (copy_from_user(&move, user, sizeof(move)))
			return -EFAULT;
		ret = exporter_move(&move);
		return copy_to_user(user, &move, sizeof(move)) ? -EFAULT : ret;
	default:
		return -ENOTTY;
	}
}

static const struct file_operations exporter_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = exporter_ioctl,
};

static struct miscdevice exporter_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "bufshare_exporter",
	.fops = &exporter_fops,
};
module_misc_device(exporter_misc);

MODULE_DESCRIPTION("Exporter of dma-bufs that move, for tests");
MODULE_LICENSE("GPL");
MODULE_INFO(import_ns, "DMA_BUF");
