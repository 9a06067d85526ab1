// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_import_dmabuf.c - the dma-buf of an import
 *
 * A mmap() does not need the buffer in the window region yet: it would wait for the host
 * with the mmap_lock, which page faults of all threads need, and who looks at the process.
 * The first page fault does, which may release that lock; and DMA_BUF_IOCTL_SYNC before
 * it, which can say what is wrong.
 */
#include <linux/bits.h>
#include <linux/err.h>
#include <linux/errno.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/iosys-map.h>
#include <linux/mm.h>
#include <linux/module.h>

#include "bufshare_priv.h"

/* Mapping it for a device must not have to wait for the host. */
static int bufshare_imp_attach_dev(struct dma_buf *dmabuf, struct dma_buf_attachment *attach)
{
	struct bufshare_imp *imp = dmabuf->priv;

	return bufshare_window_map(&imp->window, false, true);
}

static struct sg_table *bufshare_imp_map_dma_buf(struct dma_buf_attachment *attach,
						 enum dma_data_direction dir)
{
	struct bufshare_imp *imp = attach->dmabuf->priv;
	struct bufshare_piece piece;
	struct sg_table *sgt;
	int ret;

	/*
	 * Many importers say BIDIRECTIONAL for a buffer that they only read; it
	 * is the VMM that enforces a read-only share. Plain writing is a mistake.
	 */
	if (dir == DMA_FROM_DEVICE && !(imp->rights & VIRTIO_BUFSHARE_WRITE))
		return ERR_PTR(-EACCES);
	ret = bufshare_window_use(&imp->window, BUFSHARE_USE_DEVICE);
	if (ret)
		return ERR_PTR(ret);
	bufshare_window_piece(&imp->window, &piece);
	sgt = bufshare_maps_map(&imp->maps, attach, &piece, 1, dir);
	if (IS_ERR(sgt))
		bufshare_window_unuse(&imp->window, BUFSHARE_USE_DEVICE);
	return sgt;
}

static void bufshare_imp_unmap_dma_buf(struct dma_buf_attachment *attach, struct sg_table *sgt,
				       enum dma_data_direction dir)
{
	struct bufshare_imp *imp = attach->dmabuf->priv;

	bufshare_maps_unmap(&imp->maps, sgt);
	bufshare_window_unuse(&imp->window, BUFSHARE_USE_DEVICE);
}

/*
 * The core warns of a kernel mapping that fails (WARN_ON_ONCE), and what other VMs
 * do must not make this kernel warn. So of a buffer that was revoked, or that the
 * host does not map, there is a mapping of scratch memory. In the second case the
 * import ends, too: nobody is to take the scratch memory for the buffer. For the
 * same reason the wait ends by no signal.
 */
static int bufshare_imp_vmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct bufshare_imp *imp = dmabuf->priv;
	struct bufshare_device *bd = imp->bd;
	int ret;

	ret = bufshare_window_map(&imp->window, false, false);
	if (!ret)
		ret = bufshare_window_use(&imp->window, BUFSHARE_USE_KERNEL);
	if (!ret) {
		iosys_map_set_vaddr(map, imp->shm->virt + imp->window.offset);
		return 0;
	}
	if (ret != -ENODEV) {
		dev_warn_ratelimited(bd->dev, "a buffer of peer %llu could not be mapped for the kernel (%d): its import ends\n",
				     imp->owner, ret);
		bufshare_lock(bd);
		bufshare_imp_revoke_locked(imp);
		bufshare_unlock(bd);
	}
	return bufshare_scratch_vmap(&imp->scratch, imp->size, map);
}

static void bufshare_imp_vunmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct bufshare_imp *imp = dmabuf->priv;

	iosys_map_clear(map);
	if (!bufshare_scratch_vunmap(&imp->scratch))
		bufshare_window_unuse(&imp->window, BUFSHARE_USE_KERNEL);
}

/* The time from the check to the entry's making is what a revocation waits out. */
static int bufshare_imp_try_fault(void *priv, struct vm_fault *vmf, bool asked, vm_fault_t *fault)
{
	struct bufshare_imp *imp = priv;
	struct bufshare_device *bd = imp->bd;
	struct bufshare_piece piece;
	int ret;

	down_read(&imp->fault_sem);
	bufshare_lock(bd);
	ret = bufshare_window_look_locked(&imp->window, asked);
	bufshare_unlock(bd);
	if (!ret) {
		bufshare_window_piece(&imp->window, &piece);
		*fault = bufshare_mmap_insert(vmf, &piece, 1);
	}
	up_read(&imp->fault_sem);
	return ret;
}

static int bufshare_imp_fault_wait(void *priv, bool asked)
{
	struct bufshare_imp *imp = priv;

	return bufshare_window_map(&imp->window, asked, true);
}

static vm_fault_t bufshare_imp_fault(struct vm_fault *vmf)
{
	return bufshare_mmap_fault(vmf, bufshare_imp_try_fault, bufshare_imp_fault_wait);
}

static const struct vm_operations_struct bufshare_imp_vm_ops = {
	.fault = bufshare_imp_fault,
};

/* Asks nobody, and refuses what will never be seen. */
static int bufshare_imp_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	struct bufshare_imp *imp = dmabuf->priv;
	int ret;

	if (!(imp->rights & VIRTIO_BUFSHARE_WRITE)) {
		if (vma->vm_flags & VM_WRITE)
			return -EACCES;
		vm_flags_clear(vma, VM_MAYWRITE);
	}
	bufshare_lock(imp->bd);
	ret = bufshare_window_look_locked(&imp->window, false);
	bufshare_unlock(imp->bd);
	if (ret == -ENODEV)
		return ret;
	return bufshare_mmap_prepare(vma, imp->size, &bufshare_imp_vm_ops, imp);
}

static void bufshare_imp_release(struct dma_buf *dmabuf)
{
	struct bufshare_imp *imp = dmabuf->priv;
	struct bufshare_device *bd = imp->bd;
	struct inode *inode = imp->inode;
	struct bufshare_shm *shm;

	/* All mappings hold the dma-buf: there is none. */
	bufshare_lock(bd);
	imp->dmabuf = NULL;
	imp->inode = NULL;
	shm = imp->shm;
	imp->shm = NULL;
	bufshare_imp_release_locked(imp);
	bufshare_unlock(bd);
	iput(inode);
	bufshare_shm_put(shm);
	bufshare_device_put(bd);
}

#define BUFSHARE_IMP_OPS					\
	.attach = bufshare_imp_attach_dev,				\
	.map_dma_buf = bufshare_imp_map_dma_buf,		\
	.unmap_dma_buf = bufshare_imp_unmap_dma_buf,		\
	.begin_cpu_access = bufshare_imp_begin_cpu_access,	\
	.end_cpu_access = bufshare_imp_end_cpu_access,		\
	.mmap = bufshare_imp_mmap,				\
	.release = bufshare_imp_release

static const struct dma_buf_ops bufshare_imp_ops = {
	BUFSHARE_IMP_OPS,
	.vmap = bufshare_imp_vmap,
	.vunmap = bufshare_imp_vunmap,
};

/*
 * Without kernel mappings, which the core refuses without a warning: that of
 * scratch memory takes a part of the RAM that grows with the buffer, and another
 * VM says how large that is.
 */
static const struct dma_buf_ops bufshare_imp_large_ops = {
	BUFSHARE_IMP_OPS,
};

/* Up to the size of the RAM, a mapping takes at most a 256th of it. */
static const struct dma_buf_ops *bufshare_imp_ops_for(const struct bufshare_imp *imp)
{
	return imp->size >> PAGE_SHIFT > totalram_pages() ? &bufshare_imp_large_ops :
							    &bufshare_imp_ops;
}

/**
 * bufshare_is_import() - is this a dma-buf that IMPORT made
 * @dmabuf: any dma-buf
 *
 * Return: true if so.
 */
bool bufshare_is_import(struct dma_buf *dmabuf)
{
	return dmabuf->ops == &bufshare_imp_ops || dmabuf->ops == &bufshare_imp_large_ops;
}

/*
 * What bufinfo and /proc show as the exporter's name: ours, the beginning of the
 * buffer's id, and its owner. A program may add a name (DMA_BUF_SET_NAME).
 */
static const char *bufshare_imp_label(struct bufshare_imp *imp)
{
	const int id_len = sizeof(imp->id) / 2;

	scnprintf(imp->label, sizeof(imp->label), KBUILD_MODNAME ":%*phN@%llu", id_len, &imp->id,
		  imp->owner);
	return imp->label;
}

/**
 * bufshare_imp_dmabuf() - make the dma-buf of an import
 * @imp: the import, attached; on success the caller's reference is the dma-buf's
 * @fd_flags: O_RDWR or O_RDONLY; the rest does not count
 *
 * Uses the window region: only between bufshare_enter() and bufshare_exit().
 *
 * Return: it, or a negative errno.
 */
struct dma_buf *bufshare_imp_dmabuf(struct bufshare_imp *imp, u32 fd_flags)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct bufshare_device *bd = imp->bd;
	struct dma_buf *dmabuf;

	info.exp_name = bufshare_imp_label(imp);
	info.ops = bufshare_imp_ops_for(imp);
	info.size = imp->size;
	info.flags = fd_flags & O_ACCMODE;
	info.priv = imp;
	dmabuf = dma_buf_export(&info);
	if (IS_ERR(dmabuf))
		return dmabuf;
	bufshare_device_get(bd);
	bufshare_lock(bd);
	/*
	 * Nothing of a stream, or of one that is revoked by now, leads into the window region,
	 * which there need not be for a stream.
	 */
	if (imp->size && !imp->revoked)
		imp->shm = bufshare_shm_get(bd->shm);
	WRITE_ONCE(imp->dmabuf, dmabuf);
	imp->inode = file_inode(dmabuf->file);
	ihold(imp->inode);
	bufshare_unlock(bd);
	/* Who asked for the same one waits for it. */
	wake_up_all(&bd->idle);
	return dmabuf;
}
