// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_backing.c - the memory behind an export
 *
 * Of a dma-buf that ALLOC made we know the pages. Of any other we are an
 * importer: attached, pinned, and looking at nothing but DMA addresses, which
 * are of use only where they are guest-physical addresses.
 *
 * Memory that another VM may still reach is never given back, whatever becomes
 * of the process that exported it, of the driver's binding or of the device. A
 * backing holds a reference of the module.
 */
#include <linux/dma-resv.h>
#include <linux/errno.h>
#include <linux/ioport.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/scatterlist.h>

#include "bufshare_priv.h"

static unsigned int pin_limit_mb;
module_param(pin_limit_mb, uint, 0644);
MODULE_PARM_DESC(pin_limit_mb, "Memory of other drivers that the exports of all programs together may pin, MiB (default 0: half of the RAM)");

/* Bytes of other drivers' memory that exports pin. */
static atomic64_t bufshare_pinned = ATOMIC64_INIT(0);

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

static int bufshare_own_extents(const struct bufshare_mem *mem, struct bufshare_extents *ext,
				u32 *status)
{
	u32 i;
	int ret = 0;

	for (i = 0; i < mem->nr_pieces && !ret; i++)
		ret = bufshare_extent_add(ext, PFN_PHYS(page_to_pfn(mem->pieces[i].page)),
					  (u64)mem->pieces[i].nr << PAGE_SHIFT, status);
	return ret;
}

#ifndef BUFSHARE_HAVE_INVALIDATE_MAPPINGS
/*
 * The exporter says that it moves what we have pinned, which it must not. That
 * cannot be hidden from other VMs: revoke the buffer. Where this callback can
 * be left out, it says more than we can promise: see below.
 */
static void bufshare_backing_move_notify(struct dma_buf_attachment *attach)
{
	struct bufshare_exp *exp = attach->importer_priv;

	/* Before the pinning it may move, and pinning itself may move it. */
	dma_resv_assert_held(attach->dmabuf->resv);
	if (!exp->pinned)
		return;
	dev_warn_once(exp->bd->dev, "%s moves a pinned buffer: its export ends\n",
		      attach->dmabuf->exp_name);
	bufshare_exp_end(exp);
}
#endif

/*
 * An importer with invalidate_mappings promises to unmap in bounded time. We can
 * not: what the host does not confirm stays mapped. Without the callback the
 * attachment is a pinned one that cannot be revoked, and exporters that need to
 * revoke refuse it (dma_buf_attach_revocable()). A pinned buffer does not move, so
 * nobody has to wait for other VMs by a fence either.
 */
static const struct dma_buf_attach_ops bufshare_attach_ops = {
	.allow_peer2peer = false,
#ifndef BUFSHARE_HAVE_INVALIDATE_MAPPINGS
	.move_notify = bufshare_backing_move_notify,
#endif
};

/*
 * A pinned buffer cannot be moved or swapped out, and any process may export
 * any number. Half of the RAM is also what the kernel lets a tmpfs or graphics
 * buffers have: the rest is for those whose memory can be reclaimed. It is one
 * limit for all programs, as those of graphics drivers are: RLIMIT_MEMLOCK is
 * 8 MiB by default, less than a frame. Who may open /dev/bufshare is the
 * administrator's choice.
 */
static int bufshare_pin_charge(struct bufshare_exp *exp)
{
	u64 limit = (u64)READ_ONCE(pin_limit_mb) << 20;

	if (!limit)
		limit = (u64)totalram_pages() / 2 << PAGE_SHIFT;
	if (atomic64_add_return(exp->size, &bufshare_pinned) > limit) {
		atomic64_sub(exp->size, &bufshare_pinned);
		dev_warn_ratelimited(exp->bd->dev, "an export of %llu bytes would pin more memory of other drivers than %llu bytes (pin_limit_mb)\n",
				     exp->size, limit);
		return -EDQUOT;
	}
	exp->charged = true;
	return 0;
}

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

	ret = bufshare_pin_charge(exp);
	if (ret)
		return ret;
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

/**
 * bufshare_backing_get() - hold a dma-buf for an export
 * @exp: the export, new
 * @dmabuf: the dma-buf
 */
void bufshare_backing_get(struct bufshare_exp *exp, struct dma_buf *dmabuf)
{
	struct bufshare_mem *mem = bufshare_mem_of(dmabuf);

	get_dma_buf(dmabuf);
	exp->dmabuf = dmabuf;
	exp->size = dmabuf->size;
	if (mem)
		bufshare_quiesce_add(exp, mem);
	/* We were called by a file of this module. */
	__module_get(THIS_MODULE);
}

/**
 * bufshare_backing_extents() - find out where a backing is, and keep it there
 * @exp: the export
 * @ext: room for the extents
 * @status: what to say on failure, VIRTIO_BUFSHARE_S_*; stays as it is if there
 *	is nothing to say
 *
 * Return: 0 or a negative errno.
 */
int bufshare_backing_extents(struct bufshare_exp *exp, struct bufshare_extents *ext, u32 *status)
{
	const struct bufshare_mem *mem = bufshare_mem_of(exp->dmabuf);
	int ret;

	if (mem)
		ret = bufshare_own_extents(mem, ext, status);
	else
		ret = bufshare_foreign_extents(exp, ext, status);
	return ret ?: bufshare_extents_check(ext, exp->size, status);
}

/**
 * bufshare_backing_put() - give up a backing that no other VM can reach
 * @exp: the export
 *
 * May sleep, for as long as the dma-buf's exporter pleases. The caller is on
 * bufshare_release_wq, which is drained before the module goes: the reference of
 * the module that the backing has may be the last.
 */
void bufshare_backing_put(struct bufshare_exp *exp)
{
	struct bufshare_device *bd = exp->bd;
	struct dma_buf *dmabuf = exp->dmabuf;

	if (exp->attach) {
		dma_resv_lock(dmabuf->resv, NULL);
		if (exp->sgt)
			dma_buf_unmap_attachment(exp->attach, exp->sgt, DMA_BIDIRECTIONAL);
		if (exp->pinned) {
			dma_buf_unpin(exp->attach);
			/* From here on it may move. */
			exp->pinned = false;
		}
		dma_resv_unlock(dmabuf->resv);
		dma_buf_detach(dmabuf, exp->attach);
		exp->attach = NULL;
	}
	if (exp->charged)
		atomic64_sub(exp->size, &bufshare_pinned);
	bufshare_lock(bd);
	bufshare_quiesce_del_locked(exp);
	exp->dmabuf = NULL;
	wake_up_all(&bd->idle);
	bufshare_unlock(bd);
	dma_buf_put(dmabuf);
	module_put(THIS_MODULE);
}
