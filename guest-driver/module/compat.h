/* SPDX-License-Identifier: GPL-2.0 */
/*
 * compat.h - what differs between kernel versions
 *
 * Built and run with Linux 6.12 and 7.3, as Debian has them. The differences are
 * found by Kbuild in the headers and the exported symbols of the kernel, not by
 * its version.
 */
#ifndef _BUFSHARE_COMPAT_H
#define _BUFSHARE_COMPAT_H

#include <linux/dma-buf.h>
#include <linux/version.h>

#if LINUX_VERSION_MAJOR < 6 || (LINUX_VERSION_MAJOR == 6 && LINUX_VERSION_PATCHLEVEL < 12)
#error "virtio_bufshare needs Linux 6.12 or newer"
#endif

/* The old names of the callback that ends the mappings of dynamic importers. */
#ifndef BUFSHARE_HAVE_INVALIDATE_MAPPINGS
#define invalidate_mappings		move_notify
#define dma_buf_invalidate_mappings	dma_buf_move_notify
#endif

#endif /* _BUFSHARE_COMPAT_H */
