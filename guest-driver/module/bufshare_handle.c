// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_handle.c - handles: how an open file of /dev/bufshare holds imports
 *
 * As with GEM and PRIME, a handle is a number of one open file, and a descriptor is made
 * of it on demand. It holds the import's dma-buf as a descriptor does, so an import that
 * has a handle keeps its window, and nothing here leads to a dma-buf that it does not
 * hold. An import is found by others through its handles, as long as it has any. Whoever
 * shares the open file, by fork() or because it was sent, has its handles.
 */
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/slab.h>
#include <linux/xarray.h>

#include "bufshare_priv.h"

/* Nothing leads to it any more, but maybe the import. */
static void bufshare_handle_free(struct bufshare_handle *handle)
{
	struct bufshare_device *bd = handle->bf->bd;

	bufshare_lock(bd);
	bufshare_handle_unbind_locked(handle);
	bufshare_unlock(bd);
	if (handle->dmabuf)
		dma_buf_put(handle->dmabuf);
	kfree(handle);
}

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
	struct bufshare_handle *handle;
	unsigned long number;

	xa_for_each(&bf->handles, number, handle)
		bufshare_handle_free(handle);
	xa_destroy(&bf->handles);
}

/**
 * bufshare_handle_new() - make a handle that holds nothing yet
 * @bf: the file
 * @consumes: it is to be given the frames of its buffer
 *
 * Nobody finds the handle before bufshare_handle_install(), which cannot fail.
 *
 * Return: it, or -EMFILE: the file has BUFSHARE_MAX_HANDLES, or -ENOMEM.
 */
struct bufshare_handle *bufshare_handle_new(struct bufshare_file *bf, bool consumes)
{
	struct bufshare_handle *handle;
	int ret;

	handle = kzalloc_obj(*handle, GFP_KERNEL_ACCOUNT);
	if (!handle)
		return ERR_PTR(-ENOMEM);
	handle->bf = bf;
	handle->consumes = consumes;
	INIT_LIST_HEAD(&handle->by_imp);
	INIT_LIST_HEAD(&handle->by_frame);
	INIT_LIST_HEAD(&handle->news.node);
	ret = xa_alloc(&bf->handles, &handle->number, NULL, XA_LIMIT(1, BUFSHARE_MAX_HANDLES),
		       GFP_KERNEL);
	if (ret) {
		kfree(handle);
		return ERR_PTR(ret == -EBUSY ? -EMFILE : ret);
	}
	return handle;
}

/**
 * bufshare_handle_cancel() - undo bufshare_handle_new()
 * @handle: the handle, which may hold a dma-buf by now
 */
void bufshare_handle_cancel(struct bufshare_handle *handle)
{
	xa_release(&handle->bf->handles, handle->number);
	bufshare_handle_free(handle);
}

/**
 * bufshare_handle_install() - from here on the handle can be used
 * @handle: the handle, which holds a dma-buf
 */
void bufshare_handle_install(struct bufshare_handle *handle)
{
	struct bufshare_file *bf = handle->bf;
	u32 number = handle->number;

	/* Where it goes is there since the number was reserved. */
	xa_store(&bf->handles, number, handle, 0);
	bufshare_lock(bf->bd);
	/* It may be closed by now: who closes it takes the lock before it is freed. */
	if (xa_load(&bf->handles, number) == handle)
		bufshare_frame_join_locked(handle);
	bufshare_unlock(bf->bd);
}

/**
 * bufshare_handle_bind_locked() - a handle is one of an import from here on
 * @handle: the handle, of none
 * @imp: the import; its device's lock is held
 *
 * Return: 0 or -EUSERS: it is to be given frames, and there are BUFSHARE_MAX_FRAME_HANDLES.
 */
int bufshare_handle_bind_locked(struct bufshare_handle *handle, struct bufshare_imp *imp)
{
	int ret;

	lockdep_assert_held(&imp->bd->lock);
	handle->imp = imp;
	ret = bufshare_frame_reserve_locked(handle);
	if (ret)
		handle->imp = NULL;
	else
		list_add_tail(&handle->by_imp, &imp->handles);
	return ret;
}

/**
 * bufshare_handle_unbind_locked() - a handle is not one of its import any more
 * @handle: the handle, maybe of none; its device's lock is held
 */
void bufshare_handle_unbind_locked(struct bufshare_handle *handle)
{
	if (!handle->imp)
		return;
	bufshare_frame_leave_locked(handle);
	list_del_init(&handle->by_imp);
	handle->imp = NULL;
}

/* The dma-buf of a handle, with a reference, or NULL. */
static struct dma_buf *bufshare_handle_get(struct bufshare_file *bf, u32 number)
{
	struct bufshare_handle *handle;
	struct dma_buf *dmabuf = NULL;

	xa_lock(&bf->handles);
	handle = xa_load(&bf->handles, number);
	if (handle) {
		dmabuf = handle->dmabuf;
		get_dma_buf(dmabuf);
	}
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
	ret = -EINVAL;
	/* That of a stream is there to be held, and to be nothing else. */
	if (dmabuf->size)
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
	struct bufshare_handle *handle;

	if (arg->reserved)
		return -EINVAL;
	/* A number that is only reserved stays so. */
	xa_lock(&bf->handles);
	handle = xa_load(&bf->handles, arg->handle);
	if (handle)
		__xa_erase(&bf->handles, arg->handle);
	xa_unlock(&bf->handles);
	if (!handle)
		return -ENOENT;
	bufshare_handle_free(handle);
	return 0;
}
