// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_mmap.c - ALLOC's memory in user space
 *
 * Page table entries are made by faults alone, and all of them belong to the
 * mapping of the dma-buf's inode, whatever file was mmap()ed: there they can be
 * taken away at any time, and faults bring them back.
 */
#include <linux/errno.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/pgtable.h>

#include "bufshare_priv.h"

/* The piece that a page of the memory is in. */
static const struct bufshare_piece *bufshare_mem_piece(const struct bufshare_mem *mem,
						       unsigned long n)
{
	u32 low = 0, high = mem->nr_pieces - 1, mid;

	while (low < high) {
		mid = high - (high - low) / 2;
		if (mem->pieces[mid].first <= n)
			low = mid;
		else
			high = mid - 1;
	}
	return &mem->pieces[low];
}

/*
 * All that the page of page table entries has room for: who uses a page of a buffer
 * mostly uses all.
 */
static vm_fault_t bufshare_mem_insert(const struct bufshare_mem *mem, struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long addr = max(vmf->address & PMD_MASK, vma->vm_start);
	unsigned long left = min(PMD_SIZE - (addr & ~PMD_MASK), vma->vm_end - addr) >> PAGE_SHIFT;
	unsigned long n = vma->vm_pgoff + ((addr - vma->vm_start) >> PAGE_SHIFT);
	const struct bufshare_piece *piece = bufshare_mem_piece(mem, n);
	vm_fault_t ret = VM_FAULT_NOPAGE;

	for (; left && ret == VM_FAULT_NOPAGE; left--, n++, addr += PAGE_SIZE) {
		if (n == piece->first + piece->nr)
			piece++;
		ret = vmf_insert_pfn(vma, addr, page_to_pfn(piece->page) + (n - piece->first));
	}
	return ret;
}

static vm_fault_t bufshare_mem_fault(struct vm_fault *vmf)
{
	return bufshare_mem_insert(vmf->vma->vm_private_data, vmf);
}

static const struct vm_operations_struct bufshare_mem_vm_ops = {
	.fault = bufshare_mem_fault,
};

/**
 * bufshare_mem_mmap() - mmap: dma_buf_ops
 * @dmabuf: a dma-buf that ALLOC made
 * @vma: where; whatever its file was, it is the dma-buf's now
 *
 * Return: 0 or a negative errno.
 */
int bufshare_mem_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	struct bufshare_mem *mem = dmabuf->priv;
	unsigned long nr = mem->size >> PAGE_SHIFT;

	/* A private copy of shared memory would go stale in silence. */
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	if (vma->vm_pgoff + vma_pages(vma) < vma->vm_pgoff ||
	    vma->vm_pgoff + vma_pages(vma) > nr)
		return -EINVAL;
	/* No entry is made here: a zap could miss it, as the vma is not linked yet. */
	vm_flags_set(vma, VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_ops = &bufshare_mem_vm_ops;
	vma->vm_private_data = mem;	/* the vma holds the dma-buf */
	return 0;
}
