// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_scratch.c - kernel mappings of nothing
 *
 * The dma-buf core warns of a kernel mapping that fails (WARN_ON_ONCE). Where the host or
 * another VM would be the reason, the kernel gets scratch memory instead.
 */
#include <linux/errno.h>
#include <linux/gfp.h>
#include <linux/iosys-map.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "bufshare_priv.h"

/**
 * bufshare_scratch_vmap() - have a kernel mapping that shows one page of zeroes repeatedly
 * @scratch: where to keep it; the dma-buf's reservation lock is held
 * @size: bytes of the dma-buf, whole pages
 * @map: the mapping
 *
 * Return: 0 or -ENOMEM.
 */
int bufshare_scratch_vmap(struct bufshare_scratch *scratch, u64 size, struct iosys_map *map)
{
	unsigned long nr = size >> PAGE_SHIFT, i;
	struct page **pages;

	scratch->page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	if (!scratch->page)
		return -ENOMEM;
	pages = kvmalloc_objs(*pages, nr);
	if (!pages)
		goto err;
	for (i = 0; i < nr; i++)
		pages[i] = scratch->page;
	WRITE_ONCE(scratch->virt, vmap(pages, nr, VM_MAP, PAGE_KERNEL));
	kvfree(pages);
	if (!scratch->virt)
		goto err;
	iosys_map_set_vaddr(map, scratch->virt);
	return 0;

err:
	__free_page(scratch->page);
	return -ENOMEM;
}

/**
 * bufshare_scratch_vunmap() - end it
 * @scratch: the mapping; the dma-buf's reservation lock is held
 *
 * Return: false: there is none, the dma-buf's kernel mapping shows its memory.
 */
bool bufshare_scratch_vunmap(struct bufshare_scratch *scratch)
{
	if (!scratch->virt)
		return false;
	vunmap(scratch->virt);
	WRITE_ONCE(scratch->virt, NULL);
	__free_page(scratch->page);
	return true;
}
