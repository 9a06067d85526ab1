// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_alloc.c - ALLOC: dma-bufs of this VM's RAM in few pieces
 *
 * Each piece costs the importing VMM a mapping unless its host has udmabuf, so
 * one contiguous piece is tried first. All pages are single ones (split), which
 * makes mapping and freeing them the same whatever they came from.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/iosys-map.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/overflow.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "bufshare_priv.h"

static unsigned int contig_limit_mb;
module_param(contig_limit_mb, uint, 0644);
MODULE_PARM_DESC(contig_limit_mb, "Memory of contiguous pieces, of all programs together, that no control group is charged for, MiB (default 0: an eighth of the RAM)");

/* Bytes that ALLOC took without charging a control group. */
static atomic64_t bufshare_uncharged = ATOMIC64_INIT(0);

/**
 * bufshare_mem_uncharged() - how much ALLOC took without charging anybody
 *
 * Return: bytes.
 */
u64 bufshare_mem_uncharged(void)
{
	return atomic64_read(&bufshare_uncharged);
}

static void bufshare_free_pages(struct page *page, unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i++) {
		__free_page(bufshare_nth_page(page, i));
		if (!(i % SZ_1K))
			cond_resched();
	}
}

static void bufshare_mem_free(struct bufshare_mem *mem)
{
	u32 i;

	for (i = 0; i < mem->nr_pieces; i++)
		bufshare_free_pages(mem->pieces[i].page, mem->pieces[i].nr);
	atomic64_sub(mem->uncharged, &bufshare_uncharged);
	kvfree(mem->pieces);
	kfree(mem);
}

/* Up to 1 << MAX_PAGE_ORDER pages; the tail that is too much is given back. */
static struct page *bufshare_get_block(unsigned long nr, gfp_t gfp)
{
	unsigned int order = get_order(nr << PAGE_SHIFT);
	struct page *page;

	if (order > MAX_PAGE_ORDER)
		return NULL;
	page = alloc_pages(gfp, order);
	if (!page)
		return NULL;
	if (order)
		split_page(page, order);
	bufshare_free_pages(bufshare_nth_page(page, nr), (1UL << order) - nr);
	return page;
}

/*
 * More than the page allocator gives at once. The kernel charges no control group
 * for such memory, and a module cannot: beyond a limit of our own, ALLOC gets
 * pieces that are charged. An eighth of the RAM is some screens full, and little
 * enough to escape from a group's limit.
 */
static struct page *bufshare_get_contig(struct bufshare_mem *mem, unsigned long nr,
					unsigned long align)
{
	struct page *page = NULL;
#ifdef BUFSHARE_HAVE_CONTIG_PAGES
	u64 limit = (u64)READ_ONCE(contig_limit_mb) << 20;
	u64 size = (u64)nr << PAGE_SHIFT;

	if (!limit)
		limit = (u64)totalram_pages() / 8 << PAGE_SHIFT;
	if (atomic64_add_return(size, &bufshare_uncharged) > limit) {
		atomic64_sub(size, &bufshare_uncharged);
		return NULL;
	}
	page = alloc_contig_pages(nr, GFP_KERNEL | __GFP_NOWARN, numa_mem_id(), NULL);
	if (page && !IS_ALIGNED(page_to_pfn(page), align)) {
		bufshare_free_pages(page, nr);
		page = NULL;
	}
	if (page)
		mem->uncharged = size;
	else
		atomic64_sub(size, &bufshare_uncharged);
#endif
	return page;
}

/*
 * The next piece: the whole rest if it can be had, else the largest power of
 * two, not less than align pages. An order that failed is not tried again:
 * that would cost as much each time.
 */
static struct page *bufshare_get_piece(struct bufshare_mem *mem, unsigned long rest,
				       unsigned long align, int *max_order, unsigned long *nr)
{
	bool first = *max_order > MAX_PAGE_ORDER;
	const gfp_t gfp = GFP_HIGHUSER | __GFP_ACCOUNT;
	const gfp_t hard = gfp | __GFP_NORETRY | __GFP_NOWARN;
	struct page *page = NULL;
	int order;

	*nr = rest;
	if (get_order(rest << PAGE_SHIFT) <= *max_order)
		page = bufshare_get_block(rest, rest == 1 ? gfp : hard);
	if (!page && first && rest > 1)
		page = bufshare_get_contig(mem, rest, align);
	if (page)
		return page;

	for (order = min3(ilog2(rest), MAX_PAGE_ORDER, *max_order); order >= ilog2(align);
	     order--) {
		if (fatal_signal_pending(current))
			return NULL;
		*max_order = order;
		*nr = 1UL << order;
		page = bufshare_get_block(*nr, order ? hard : gfp);
		if (page)
			return page;
	}
	return NULL;
}

static int bufshare_mem_add(struct bufshare_mem *mem, u32 *room, struct page *page,
			    unsigned long nr)
{
	struct bufshare_piece *last, *grown;
	unsigned long first = 0;
	u32 want;

	if (mem->nr_pieces) {
		last = &mem->pieces[mem->nr_pieces - 1];
		if (page_to_pfn(last->page) + last->nr == page_to_pfn(page)) {
			last->nr += nr;
			return 0;
		}
		/* The buddy allocator often returns descending blocks. */
		if (page_to_pfn(page) + nr == page_to_pfn(last->page)) {
			last->page = page;
			last->nr += nr;
			return 0;
		}
		first = last->first + last->nr;
	}
	if (mem->nr_pieces == *room) {
		want = *room ? *room * 2 : 8;
		grown = kvmalloc_objs(*grown, want, GFP_KERNEL_ACCOUNT);
		if (!grown)
			return -ENOMEM;
		if (mem->pieces)
			memcpy(grown, mem->pieces, array_size(*room, sizeof(*grown)));
		kvfree(mem->pieces);
		mem->pieces = grown;
		*room = want;
	}
	mem->pieces[mem->nr_pieces].page = page;
	mem->pieces[mem->nr_pieces].nr = nr;
	mem->pieces[mem->nr_pieces].first = first;
	mem->nr_pieces++;
	return 0;
}

/* All zero: what was there before is nobody's business, here or elsewhere. */
static int bufshare_mem_clear(struct page *page, unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i++) {
		clear_highpage(bufshare_nth_page(page, i));
		if (i % SZ_1K)
			continue;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

static struct bufshare_mem *bufshare_mem_make(u64 size, unsigned long align)
{
	unsigned long rest = size >> PAGE_SHIFT, nr;
	struct bufshare_mem *mem;
	int ret, max_order = MAX_PAGE_ORDER + 1;	/* one more: nothing tried yet */
	struct page *page;
	u32 room = 0;

	mem = kzalloc_obj(*mem, GFP_KERNEL_ACCOUNT);
	if (!mem)
		return ERR_PTR(-ENOMEM);
	mem->size = size;
	bufshare_maps_init(&mem->maps);
	bufshare_quiesce_init(mem);
	while (rest) {
		ret = -EINTR;
		if (fatal_signal_pending(current))
			goto err;
		page = bufshare_get_piece(mem, rest, align, &max_order, &nr);
		ret = -ENOMEM;
		if (!page)
			goto err;
		ret = bufshare_mem_clear(page, nr);
		if (!ret)
			ret = bufshare_mem_add(mem, &room, page, nr);
		if (ret) {
			bufshare_free_pages(page, nr);
			goto err;
		}
		rest -= nr;
		cond_resched();
	}
	return mem;

err:
	bufshare_mem_free(mem);
	return ERR_PTR(ret);
}

static struct sg_table *bufshare_mem_map_dma_buf(struct dma_buf_attachment *attach,
						 enum dma_data_direction dir)
{
	struct bufshare_mem *mem = attach->dmabuf->priv;
	struct sg_table *sgt;
	int ret;

	ret = bufshare_mem_use(mem, &mem->users, true);
	if (ret)
		return ERR_PTR(ret);
	sgt = bufshare_maps_map(&mem->maps, attach, mem->pieces, mem->nr_pieces, dir);
	if (IS_ERR(sgt))
		bufshare_mem_unuse(mem, &mem->users);
	return sgt;
}

static void bufshare_mem_unmap_dma_buf(struct dma_buf_attachment *attach, struct sg_table *sgt,
				       enum dma_data_direction dir)
{
	struct bufshare_mem *mem = attach->dmabuf->priv;

	bufshare_maps_unmap(&mem->maps, sgt);
	bufshare_mem_unuse(mem, &mem->users);
}

static int bufshare_mem_begin_cpu_access(struct dma_buf *dmabuf, enum dma_data_direction dir)
{
	struct bufshare_mem *mem = dmabuf->priv;
	int ret;

	/* The one kernel mapping that there is would show nothing of the access. */
	if (READ_ONCE(mem->scratch.virt))
		return -EIO;
	ret = bufshare_mem_use(mem, &mem->accesses, true);
	if (ret)
		return ret;
	ret = bufshare_wait_for_devices(dmabuf, dir);
	if (ret) {
		bufshare_mem_unuse(mem, &mem->accesses);
		return ret;
	}
	bufshare_maps_sync(&mem->maps, true);
	return 0;
}

static int bufshare_mem_end_cpu_access(struct dma_buf *dmabuf, enum dma_data_direction dir)
{
	struct bufshare_mem *mem = dmabuf->priv;

	bufshare_maps_sync(&mem->maps, false);
	/* Nobody says whose access ends: count those of all. */
	bufshare_mem_unuse(mem, &mem->accesses);
	return 0;
}

static int bufshare_mem_vmap_pages(struct bufshare_mem *mem)
{
	unsigned long n = 0, j;
	struct page **pages;
	u32 i;

	pages = kvmalloc_objs(*pages, mem->size >> PAGE_SHIFT);
	if (!pages)
		return -ENOMEM;
	for (i = 0; i < mem->nr_pieces; i++)
		for (j = 0; j < mem->pieces[i].nr; j++)
			pages[n++] = bufshare_nth_page(mem->pieces[i].page, j);
	mem->vmap = vmap(pages, n, VM_MAP, PAGE_KERNEL);
	kvfree(pages);
	return mem->vmap ? 0 : -ENOMEM;
}

/*
 * The core calls this once for all users, under the reservation lock, and warns of a
 * failure: so the wait ends by no signal, and of memory that the host has us leave alone
 * there is a mapping of scratch memory.
 */
static int bufshare_mem_vmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct bufshare_mem *mem = dmabuf->priv;
	int ret;

	ret = bufshare_mem_use(mem, &mem->users, false);
	if (ret) {
		pr_warn_ratelimited("quiesced memory could not be mapped for the kernel (%d): what is written there is lost\n",
				    ret);
		return bufshare_scratch_vmap(&mem->scratch, mem->size, map);
	}
	ret = bufshare_mem_vmap_pages(mem);
	if (ret) {
		bufshare_mem_unuse(mem, &mem->users);
		return ret;
	}
	iosys_map_set_vaddr(map, mem->vmap);
	return 0;
}

static void bufshare_mem_vunmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct bufshare_mem *mem = dmabuf->priv;

	iosys_map_clear(map);
	if (bufshare_scratch_vunmap(&mem->scratch))
		return;
	vunmap(mem->vmap);
	mem->vmap = NULL;
	bufshare_mem_unuse(mem, &mem->users);
}

/* The time from the check to the entry's making is what QUIESCE waits out. */
static int bufshare_mem_try_fault(void *priv, struct vm_fault *vmf, bool asked, vm_fault_t *fault)
{
	struct bufshare_mem *mem = priv;
	int ret;

	down_read(&mem->fault_sem);
	ret = bufshare_quiesce_look(mem, asked);
	if (!ret)
		*fault = bufshare_mmap_insert(vmf, mem->pieces, mem->nr_pieces);
	up_read(&mem->fault_sem);
	return ret;
}

static int bufshare_mem_fault_wait(void *priv, bool asked)
{
	return bufshare_quiesce_end(priv, asked, true, NULL);
}

static vm_fault_t bufshare_mem_fault(struct vm_fault *vmf)
{
	struct bufshare_mem *mem = vmf->vma->vm_private_data;
	vm_fault_t fault;

	if (vmf->flags & FAULT_FLAG_ALLOW_RETRY)
		return bufshare_mmap_fault(vmf, bufshare_mem_try_fault, bufshare_mem_fault_wait);
	/* What it has waited for is not to be over before its only retry. */
	bufshare_mem_keep_active(mem, true);
	fault = bufshare_mmap_fault(vmf, bufshare_mem_try_fault, bufshare_mem_fault_wait);
	bufshare_mem_keep_active(mem, false);
	return fault;
}

static const struct vm_operations_struct bufshare_mem_vm_ops = {
	.fault = bufshare_mem_fault,
};

static int bufshare_mem_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	struct bufshare_mem *mem = dmabuf->priv;

	return bufshare_mmap_prepare(vma, mem->size, &bufshare_mem_vm_ops, mem);
}

static void bufshare_mem_release(struct dma_buf *dmabuf)
{
	struct bufshare_mem *mem = dmabuf->priv;

	iput(mem->inode);
	bufshare_mem_free(mem);
}

static const struct dma_buf_ops bufshare_mem_ops = {
	.map_dma_buf = bufshare_mem_map_dma_buf,
	.unmap_dma_buf = bufshare_mem_unmap_dma_buf,
	.begin_cpu_access = bufshare_mem_begin_cpu_access,
	.end_cpu_access = bufshare_mem_end_cpu_access,
	.mmap = bufshare_mem_mmap,
	.vmap = bufshare_mem_vmap,
	.vunmap = bufshare_mem_vunmap,
	.release = bufshare_mem_release,
};

/**
 * bufshare_mem_of() - is this a dma-buf that ALLOC made
 * @dmabuf: any dma-buf
 *
 * Return: its memory, or NULL.
 */
struct bufshare_mem *bufshare_mem_of(struct dma_buf *dmabuf)
{
	return dmabuf->ops == &bufshare_mem_ops ? dmabuf->priv : NULL;
}

/**
 * bufshare_ioc_alloc() - ALLOC
 * @bd: the device
 * @arg: what is asked and answered
 * @newfd: the dma-buf
 *
 * Return: 0 or a negative errno.
 */
int bufshare_ioc_alloc(struct bufshare_device *bd, struct bufshare_alloc *arg,
		       struct bufshare_newfd *newfd)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	unsigned long align = max_t(u32, bd->caps.map_align, PAGE_SIZE);
	struct bufshare_mem *mem;
	struct dma_buf *dmabuf;
	u64 size;
	int ret;

	if (arg->flags || !arg->size || arg->size > bd->caps.max_buffer_size)
		return !arg->flags && arg->size ? -EFBIG : -EINVAL;
	size = ALIGN(arg->size, align);
	if (size < arg->size || size > bd->caps.max_buffer_size || size > SIZE_MAX)
		return -EFBIG;
	if (arg->fd_flags & ~(O_CLOEXEC | O_ACCMODE) || (arg->fd_flags & O_ACCMODE) == O_WRONLY)
		return -EINVAL;
	/* More than there is would only make the system search. */
	if (size >> PAGE_SHIFT > totalram_pages())
		return -ENOMEM;

	mem = bufshare_mem_make(size, align >> PAGE_SHIFT);
	if (IS_ERR(mem))
		return PTR_ERR(mem);
	info.ops = &bufshare_mem_ops;
	info.size = size;
	info.flags = arg->fd_flags & O_ACCMODE;
	info.priv = mem;
	dmabuf = dma_buf_export(&info);
	if (IS_ERR(dmabuf)) {
		bufshare_mem_free(mem);
		return PTR_ERR(dmabuf);
	}
	mem->inode = file_inode(dmabuf->file);
	ihold(mem->inode);
	ret = bufshare_newfd_prepare(newfd, arg->fd_flags, dmabuf->file);
	if (ret) {
		dma_buf_put(dmabuf);
		return ret;
	}
	arg->fd = newfd->fd;
	arg->extents = mem->nr_pieces;
	return 0;
}
