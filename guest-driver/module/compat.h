/* SPDX-License-Identifier: GPL-2.0 */
/*
 * compat.h - what differs between kernel versions; nothing else in this driver
 * looks at the version
 *
 * Built and run with Linux 7.2.
 */
#ifndef _BUFSHARE_COMPAT_H
#define _BUFSHARE_COMPAT_H

#include <linux/version.h>

#if LINUX_VERSION_MAJOR < 7 || (LINUX_VERSION_MAJOR == 7 && LINUX_VERSION_PATCHLEVEL < 2)
#error "virtio_bufshare needs Linux 7.2 or newer"
#endif

#endif /* _BUFSHARE_COMPAT_H */
