/* SPDX-License-Identifier: GPL-2.0 */
/*
 * compat.h - what differs between kernel versions
 *
 * Built and run with Linux 6.12 and 7.3, as Debian has them. The differences are
 * found in the headers and the exported symbols of the kernel, here or by Kbuild,
 * and not by its version.
 */
#ifndef _BUFSHARE_COMPAT_H
#define _BUFSHARE_COMPAT_H

#include <linux/dma-buf.h>
#include <linux/overflow.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#if LINUX_VERSION_MAJOR < 6 || (LINUX_VERSION_MAJOR == 6 && LINUX_VERSION_PATCHLEVEL < 12)
#error "virtio_bufshare needs Linux 6.12 or newer"
#endif

/* The old names of the callback that ends the mappings of dynamic importers. */
#ifndef BUFSHARE_HAVE_INVALIDATE_MAPPINGS
#define invalidate_mappings		move_notify
#define dma_buf_invalidate_mappings	dma_buf_move_notify
#endif

/*
 * Linux 6.12 has these from one of its stable releases on. The last argument, flags,
 * may be left out.
 */
#define __bufshare_second(first, second, ...) \
	((void)(first), (second))
#define __bufshare_objs(alloc, what, count, ...) \
	((typeof(what) *)alloc(array_size(sizeof(what), count), \
			       __bufshare_second(0, ##__VA_ARGS__, GFP_KERNEL)))

#ifndef kzalloc_obj
#define kzalloc_obj(what, ...)		__bufshare_objs(kzalloc, what, 1, ##__VA_ARGS__)
#endif
#ifndef kzalloc_objs
#define kzalloc_objs(what, count, ...)	__bufshare_objs(kzalloc, what, count, ##__VA_ARGS__)
#endif
#ifndef kvzalloc_obj
#define kvzalloc_obj(what, ...)		__bufshare_objs(kvzalloc, what, 1, ##__VA_ARGS__)
#endif
#ifndef kvmalloc_objs
#define kvmalloc_objs(what, count, ...)	__bufshare_objs(kvmalloc, what, count, ##__VA_ARGS__)
#endif

#ifndef BUFSHARE_HAVE_COPY_STRUCT_TO_USER
/* The other way of copy_struct_from_user(): cut, or filled with zeroes. */
static inline __must_check int copy_struct_to_user(void __user *dst, size_t usize, const void *src,
						   size_t ksize, bool *ignored_trailing)
{
	size_t size = min(ksize, usize);

	if (usize > ksize && clear_user(dst + size, usize - size))
		return -EFAULT;
	if (ignored_trailing)
		*ignored_trailing = usize < ksize && memchr_inv(src + size, 0, ksize - size);
	return copy_to_user(dst, src, size) ? -EFAULT : 0;
}
#endif

#endif /* _BUFSHARE_COMPAT_H */
