// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_handle.c - handles: how an open file of /dev/bufshare holds imports
 *
 * As with GEM and PRIME, a handle is a number of one open file, and a descriptor is made
 * of it on demand. It holds the import's dma-buf as a descriptor does, so an import that
 * has a handle keeps its window, and nothing here leads to a dma-buf that it does not
 * hold. Whoever shares the open file, by fork() or because it was sent, has its handles.
 */
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/xarray.h>

#include "bufshare_priv.h"

/**
 * bufshare_handles_init() - an open file that has no handles
 * @bf: the file
 */
void bufshare_handles_init(struct bufshare_file *bf)
{
	xa_init_flags(&bf->handles, XA_FLAGS_ALLOC1 | XA_FLAGS_ACCOUNT);
}

/**
 * bufshare_handles_destroy() - close all handles of a file
 * @bf: the file, in which no call is any more
 */
void bufshare_handles_destroy(struct bufshare_file *bf)
{
	struct dma_buf *dmabuf;
	unsigned long handle;

	xa_for_each(&bf->handles, handle, dmabuf)
		dma_buf_put(dmabuf);
	xa_destroy(&bf->handles);
}

/**
 * bufshare_handle_reserve() - find a number for a new handle
 * @bf: the file
 * @handle: where to put it, not zero; not touched by a failure
 *
 * Nobody finds the handle before bufshare_handle_install(), which cannot fail.
 *
 * Return: 0, -EMFILE: the file has BUFSHARE_MAX_HANDLES, or -ENOMEM.
 */
int bufshare_handle_reserve(struct bufshare_file *bf, u32 *handle)
{
	u32 id;
	int ret = xa_alloc(&bf->handles, &id, NULL, XA_LIMIT(1, BUFSHARE_MAX_HANDLES),
			   GFP_KERNEL);

	/* A failure, too, may leave a number there: that of somebody else. */
	if (!ret)
		*handle = id;
	return ret == -EBUSY ? -EMFILE : ret;
}

/**
 * bufshare_handle_unreserve() - undo bufshare_handle_reserve()
 * @bf: the file
 * @handle: the number
 */
void bufshare_handle_unreserve(struct bufshare_file *bf, u32 handle)
{
	xa_release(&bf->handles, handle);
}

/**
 * bufshare_handle_install() - from here on the handle can be used
 * @bf: the file
 * @handle: the number, reserved
 * @dmabuf: what it holds: the caller's reference
 */
void bufshare_handle_install(struct bufshare_file *bf, u32 handle, struct dma_buf *dmabuf)
{
	/* Where it goes is there since the number was reserved. */
	xa_store(&bf->handles, handle, dmabuf, 0);
}

/* The dma-buf of a handle, with a reference, or NULL. */
static struct dma_buf *bufshare_handle_get(struct bufshare_file *bf, u32 handle)
{
	struct dma_buf *dmabuf;

	xa_lock(&bf->handles);
	dmabuf = xa_load(&bf->handles, handle);
	if (dmabuf)
		get_dma_buf(dmabuf);
	xa_unlock(&bf->handles);
	return dmabuf;
}

/**
 * bufshare_ioc_handle_to_fd() - HANDLE_TO_FD
 * @bf: the file
 * @arg: what is asked and answered
 * @newfd: the dma-buf
 *
 * Return: 0 or a negative errno.
 */
int bufshare_ioc_handle_to_fd(struct bufshare_file *bf, struct bufshare_handle_to_fd *arg,
			      struct bufshare_newfd *newfd)
{
	struct dma_buf *dmabuf;
	int ret;

	if (arg->fd_flags & ~O_CLOEXEC || arg->reserved)
		return -EINVAL;
	dmabuf = bufshare_handle_get(bf, arg->handle);
	if (!dmabuf)
		return -ENOENT;
	ret = bufshare_newfd_prepare(newfd, arg->fd_flags, dmabuf->file);
	if (ret)
		dma_buf_put(dmabuf);
	else
		arg->fd = newfd->fd;
	return ret;
}

/**
 * bufshare_ioc_close() - CLOSE
 * @bf: the file
 * @arg: what is asked
 *
 * Return: 0 or a negative errno.
 */
int bufshare_ioc_close(struct bufshare_file *bf, const struct bufshare_close *arg)
{
	struct dma_buf *dmabuf;

	if (arg->reserved)
		return -EINVAL;
	/* A number that is only reserved stays so. */
	xa_lock(&bf->handles);
	dmabuf = xa_load(&bf->handles, arg->handle);
	if (dmabuf)
		__xa_erase(&bf->handles, arg->handle);
	xa_unlock(&bf->handles);
	if (!dmabuf)
		return -ENOENT;
	dma_buf_put(dmabuf);
	return 0;
}
