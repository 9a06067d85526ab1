// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_mmap.c - memory in user space, ALLOC's and that of imports
 *
 * Page table entries are made by faults alone, and all of them belong to the
 * mapping of the dma-buf's inode, whatever file was mmap()ed: there they can be
 * taken away at any time, and faults bring them back.
 */
#include <linux/errno.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/pgtable.h>

#include "bufshare_priv.h"

/* The piece that a page of the memory is in. */
static const struct bufshare_piece *bufshare_piece_of(const struct bufshare_piece *pieces,
						      u32 nr_pieces, unsigned long n)
{
	u32 low = 0, high = nr_pieces - 1, mid;

	while (low < high) {
		mid = high - (high - low) / 2;
		if (pieces[mid].first <= n)
			low = mid;
		else
			high = mid - 1;
	}
	return &pieces[low];
}

/**
 * bufshare_mmap_insert() - make the page table entries that a fault needs
 * @vmf: the fault, in what bufshare_mmap_prepare() has set up
 * @pieces: the memory, all of it
 * @nr_pieces: their number, not zero
 *
 * All that the page of page table entries has room for: who uses a page of a buffer
 * mostly uses all.
 *
 * Return: for the kernel.
 */
vm_fault_t bufshare_mmap_insert(struct vm_fault *vmf, const struct bufshare_piece *pieces,
				u32 nr_pieces)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long addr = max(vmf->address & PMD_MASK, vma->vm_start);
	unsigned long left = min(PMD_SIZE - (addr & ~PMD_MASK), vma->vm_end - addr) >> PAGE_SHIFT;
	unsigned long n = vma->vm_pgoff + ((addr - vma->vm_start) >> PAGE_SHIFT);
	const struct bufshare_piece *piece = bufshare_piece_of(pieces, nr_pieces, n);
	vm_fault_t ret = VM_FAULT_NOPAGE;

	for (; left && ret == VM_FAULT_NOPAGE; left--, n++, addr += PAGE_SIZE) {
		if (n == piece->first + piece->nr)
			piece++;
		ret = vmf_insert_pfn(vma, addr, page_to_pfn(piece->page) + (n - piece->first));
	}
	return ret;
}

/*
 * A fault waits here, and nowhere else, for whatever keeps the memory from being used:
 * once for each retry that the kernel allows it, without the mmap_lock. That belongs to
 * the vma, so the dma-buf is held instead. What came of it, the next try sees.
 */
static vm_fault_t bufshare_mmap_wait(struct vm_fault *vmf, bool asked,
				     int (*wait)(void *priv, bool asked))
{
	void *priv = vmf->vma->vm_private_data;
	struct file *file;

	if (vmf->flags & FAULT_FLAG_RETRY_NOWAIT)
		return VM_FAULT_RETRY;
	file = get_file(vmf->vma->vm_file);
	release_fault_lock(vmf);
	wait(priv, asked);
	fput(file);
	return VM_FAULT_RETRY;
}

/**
 * bufshare_mmap_fault() - a fault that may have to wait for the host
 * @vmf: the fault, in what bufshare_mmap_prepare() has set up
 * @try: makes the entries and sets @fault, or returns a negative errno, -EINPROGRESS: @wait
 *	is to be called first; @asked: it was, for this fault
 * @wait: has @try succeed, or returns a negative errno; both get the vma's vm_private_data
 *
 * Return: for the kernel.
 */
vm_fault_t bufshare_mmap_fault(struct vm_fault *vmf,
			       int (*try)(void *priv, struct vm_fault *vmf, bool asked,
					  vm_fault_t *fault),
			       int (*wait)(void *priv, bool asked))
{
	void *priv = vmf->vma->vm_private_data;
	bool asked = vmf->flags & FAULT_FLAG_TRIED;
	vm_fault_t fault = VM_FAULT_SIGBUS;
	int ret;

	ret = try(priv, vmf, asked, &fault);
	if (ret != -EINPROGRESS)
		return fault;
	if (vmf->flags & FAULT_FLAG_ALLOW_RETRY)
		return bufshare_mmap_wait(vmf, asked, wait);
	/* For a futex, say. Who was killed is not to try again: that could be for ever. */
	if (!wait(priv, asked))
		try(priv, vmf, true, &fault);
	return fault;
}

/**
 * bufshare_mmap_prepare() - have faults make what is seen of a dma-buf's memory
 * @vma: where; whatever its file was, it is the dma-buf's now
 * @size: bytes of the memory, whole pages
 * @ops: with the faults, which call bufshare_mmap_insert()
 * @priv: their vm_private_data; the vma holds the dma-buf
 *
 * Return: 0 or a negative errno.
 */
int bufshare_mmap_prepare(struct vm_area_struct *vma, u64 size,
			  const struct vm_operations_struct *ops, void *priv)
{
	unsigned long nr = size >> PAGE_SHIFT;

	/* A private copy of shared memory would go stale in silence. */
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	if (vma->vm_pgoff + vma_pages(vma) < vma->vm_pgoff ||
	    vma->vm_pgoff + vma_pages(vma) > nr)
		return -EINVAL;
	/* No entry is made here: a zap could miss it, as the vma is not linked yet. */
	vm_flags_set(vma, VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_ops = ops;
	vma->vm_private_data = priv;
	return 0;
}
