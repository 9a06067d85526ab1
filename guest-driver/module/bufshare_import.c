// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_import.c - IMPORT: another VM's buffer as a dma-buf of this one
 */
#include <linux/bits.h>
#include <linux/err.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/mm.h>

#include "bufshare_priv.h"

/* Is the way that the host chose one of those that are accepted? */
static bool bufshare_imp_way_accepted(const struct bufshare_imp *imp,
				      const struct bufshare_import *arg)
{
	if (!arg->ways)
		return imp->properties & VIRTIO_BUFSHARE_COHERENT;
	return imp->way < BITS_PER_TYPE(arg->ways) && arg->ways & BIT(imp->way);
}

/* Is what the host granted what was asked for, and something that we can serve? */
static int bufshare_imp_check(const struct bufshare_imp *imp, const struct bufshare_import *arg)
{
	struct bufshare_device *bd = imp->bd;

	if (!imp->handle || !imp->size || imp->rights & ~arg->rights ||
	    !(imp->rights & VIRTIO_BUFSHARE_READ) || !bufshare_imp_way_accepted(imp, arg) ||
	    arg->required & ~imp->properties ||
	    (arg->max_windows && imp->windows > arg->max_windows)) {
		dev_err_ratelimited(bd->dev, "the host granted handle %llu, %llu bytes, rights %#x, way %u, properties %#x, %u windows\n",
				    imp->handle, imp->size, imp->rights, imp->way,
				    imp->properties, imp->windows);
		return -EPROTO;
	}
	if (!bd->shm)
		return -EOPNOTSUPP;
	/* The exporter's pages may be smaller than ours. */
	if (!PAGE_ALIGNED(imp->size))
		return -EOPNOTSUPP;
	if (imp->size > bd->shm->size)
		return -EFBIG;
	return 0;
}

/* Uses the window region: only between bufshare_enter() and bufshare_exit(). */
static int bufshare_imp_make(struct bufshare_device *bd, struct bufshare_import *arg,
			     struct bufshare_newfd *newfd)
{
	struct bufshare_imp *imp;
	struct dma_buf *dmabuf;
	int ret;

	imp = bufshare_imp_alloc(bd, &arg->id);
	if (!imp)
		return -ENOMEM;
	ret = bufshare_imp_attach(imp, arg);
	if (!ret)
		ret = bufshare_imp_check(imp, arg);
	if (ret)
		goto err_drop;
	dmabuf = bufshare_imp_dmabuf(imp, arg->fd_flags);
	if (IS_ERR(dmabuf)) {
		ret = PTR_ERR(dmabuf);
		goto err_drop;
	}
	/* From here on the dma-buf has our reference. */
	if (newfd->handle) {
		newfd->dmabuf = dmabuf;
	} else {
		ret = bufshare_newfd_prepare(newfd, arg->fd_flags, dmabuf->file);
		if (ret) {
			dma_buf_put(dmabuf);
			return ret;
		}
	}
	arg->fd = newfd->fd;
	arg->handle = newfd->handle;
	arg->rights = imp->rights;
	arg->size = imp->size;
	arg->generation = imp->generation;
	arg->owner = imp->owner;
	arg->way = imp->way;
	arg->properties = imp->properties;
	arg->windows = imp->windows;
	return 0;

err_drop:
	bufshare_lock(bd);
	bufshare_imp_release_locked(imp);
	bufshare_unlock(bd);
	return ret;
}

/**
 * bufshare_ioc_import() - IMPORT
 * @bd: the device
 * @arg: what is asked and answered
 * @newfd: the dma-buf, or its handle
 *
 * Return: 0 or a negative errno.
 */
int bufshare_ioc_import(struct bufshare_device *bd, struct bufshare_import *arg,
			struct bufshare_newfd *newfd)
{
	bool by_handle = arg->flags & BUFSHARE_IMPORT_HANDLE;
	int ret;

	if (arg->flags & ~BUFSHARE_IMPORT_HANDLE || arg->handle ||
	    arg->fd_flags & ~(O_CLOEXEC | O_ACCMODE) || (arg->fd_flags & O_ACCMODE) == O_WRONLY)
		return -EINVAL;
	if (by_handle && arg->fd_flags & O_CLOEXEC)
		return -EINVAL;
	if (arg->rights != BUFSHARE_READ && arg->rights != (BUFSHARE_READ | BUFSHARE_WRITE))
		return -EINVAL;
	if (by_handle) {
		ret = bufshare_handle_reserve(newfd->bf, &newfd->handle);
		if (ret)
			return ret;
	}
	if (!bufshare_enter(bd))
		return -ENODEV;
	ret = bufshare_imp_make(bd, arg, newfd);
	bufshare_exit(bd);
	return ret;
}
