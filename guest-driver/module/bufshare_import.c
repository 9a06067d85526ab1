// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_import.c - IMPORT: another VM's buffer as a dma-buf of this one
 */
#include <linux/bits.h>
#include <linux/err.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/jiffies.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/string.h>
#include <linux/wait.h>

#include "bufshare_priv.h"

/* Is the way that the host chose one of those that are accepted? */
static bool bufshare_imp_way_accepted(const struct bufshare_imp *imp,
				      const struct bufshare_import *arg)
{
	const bool none = imp->way == VIRTIO_BUFSHARE_WAY_NONE;

	/* It is that of a stream, and of nothing else. */
	if (none != !imp->size)
		return false;
	if (!arg->ways)
		return imp->properties & VIRTIO_BUFSHARE_COHERENT;
	return imp->way < BITS_PER_TYPE(arg->ways) && arg->ways & BIT(imp->way);
}

/* Is what the host granted what was asked for, and something that we can serve? */
static int bufshare_imp_check(const struct bufshare_imp *imp, const struct bufshare_import *arg)
{
	struct bufshare_device *bd = imp->bd;

	if (!imp->handle || imp->rights & ~arg->rights ||
	    !(imp->rights & VIRTIO_BUFSHARE_READ) || !bufshare_imp_way_accepted(imp, arg) ||
	    arg->required & ~imp->properties ||
	    (arg->max_windows && imp->windows > arg->max_windows)) {
		dev_err_ratelimited(bd->dev, "the host granted handle %llu, %llu bytes, rights %#x, way %u, properties %#x, %u windows\n",
				    imp->handle, imp->size, imp->rights, imp->way,
				    imp->properties, imp->windows);
		return -EPROTO;
	}
	/* There is nothing of a stream that a descriptor could give. */
	if (!imp->size)
		return arg->flags & BUFSHARE_IMPORT_HANDLE ? 0 : -EINVAL;
	if (!bd->shm)
		return -EOPNOTSUPP;
	/* The exporter's pages may be smaller than ours. */
	if (!PAGE_ALIGNED(imp->size))
		return -EOPNOTSUPP;
	if (imp->size > bd->shm->size)
		return -EFBIG;
	return 0;
}

/* Is an import what a program asks for, once it is made? */
static bool bufshare_imp_is_like_locked(const struct bufshare_imp *imp,
					const struct bufshare_import *arg)
{
	return !memcmp(&imp->id, &arg->id, sizeof(imp->id)) && imp->wanted == arg->rights &&
	       imp->mode == (arg->fd_flags & O_ACCMODE) && !imp->revoked &&
	       !list_empty(&imp->handles) &&
	       (imp->consumes || !(arg->flags & BUFSHARE_IMPORT_CONSUME));
}

/* Is it granted as the program accepts it? */
static bool bufshare_imp_is_accepted(const struct bufshare_imp *imp,
				     const struct bufshare_import *arg)
{
	return bufshare_imp_way_accepted(imp, arg) && !(arg->required & ~imp->properties) &&
	       (!arg->max_windows || imp->windows <= arg->max_windows);
}

/* An import that some handle holds, or that is being made for one, or NULL. */
static struct bufshare_imp *bufshare_imp_find_locked(struct bufshare_device *bd,
						     const struct bufshare_import *arg)
{
	const struct virtio_bufshare_id *id = (const void *)&arg->id;
	struct bufshare_imp *imp;

	hash_for_each_possible(bd->imports_by_id, imp, by_id, bufshare_id_hash(id)) {
		if (bufshare_imp_is_like_locked(imp, arg) &&
		    (!imp->dmabuf || bufshare_imp_is_accepted(imp, arg)))
			return imp;
	}
	return NULL;
}

/* Wait until an import is made, or is not. */
static int bufshare_imp_wait_made(struct bufshare_imp *imp, unsigned long until)
{
	struct bufshare_device *bd = imp->bd;
	long left;

	left = wait_event_killable_timeout(bd->idle,
					   READ_ONCE(imp->dmabuf) ||
					   list_empty_careful(&imp->handles) ||
					   !READ_ONCE(bd->alive), bufshare_time_left(until));
	if (!READ_ONCE(bd->alive))
		return -ENODEV;
	if (left < 0)
		return -EINTR;
	return left ? 0 : -ETIMEDOUT;
}

/* Why an import was not made, if that is a reason not to make another one. */
static int bufshare_imp_failed_locked(const struct bufshare_imp *imp, struct bufshare_import *arg)
{
	if (imp->dmabuf || !list_empty(&imp->handles))
		return 0;
	/* Its maker was killed, or wanted something else. */
	if (imp->err == -EINTR || imp->ways != arg->ways || imp->required != arg->required ||
	    imp->max_windows != arg->max_windows)
		return 0;
	arg->status = imp->status;
	return imp->err;
}

/*
 * An import as the program asks for, with its dma-buf, or NULL if there is none: when who
 * makes one is done, and in the time that the program has.
 */
static struct bufshare_imp *bufshare_imp_look_locked(struct bufshare_device *bd,
						     struct bufshare_import *arg,
						     unsigned long until)
	__must_hold(&bd->lock)
{
	struct bufshare_imp *imp;
	int ret;

	while ((imp = bufshare_imp_find_locked(bd, arg)) && !imp->dmabuf) {
		kref_get(&imp->ref);
		bufshare_unlock(bd);
		ret = bufshare_imp_wait_made(imp, until);
		bufshare_lock(bd);
		if (!ret)
			ret = bufshare_imp_failed_locked(imp, arg);
		bufshare_imp_put_locked(imp);
		if (ret)
			return ERR_PTR(ret);
	}
	return imp;
}

/*
 * The dma-buf of an import that is there already, with a reference, which the handle, if
 * there is one, is bound to. Else one that the host knows nothing of is *made.
 */
static struct dma_buf *bufshare_imp_find(struct bufshare_device *bd, struct bufshare_import *arg,
					 struct bufshare_handle *handle, unsigned long until,
					 struct bufshare_imp **made)
{
	struct bufshare_imp *imp, *new;
	struct dma_buf *dmabuf = NULL;
	int ret;

	new = bufshare_imp_alloc(bd, arg);
	if (!new)
		return ERR_PTR(-ENOMEM);
	bufshare_lock(bd);
	imp = bufshare_imp_look_locked(bd, arg, until);
	ret = PTR_ERR_OR_ZERO(imp);
	/* Who revokes all imports is to come to an end. */
	if (!imp && bd->leaving)
		ret = -ENODEV;
	if (handle && !ret)
		ret = bufshare_handle_bind_locked(handle, imp ?: new);
	if (imp && !ret) {
		dmabuf = imp->dmabuf;
		get_dma_buf(dmabuf);
	} else if (!ret) {
		bufshare_imp_add_locked(new);
		*made = new;
	}
	bufshare_unlock(bd);
	if (!*made)
		bufshare_imp_discard(new);
	return ret ? ERR_PTR(ret) : dmabuf;
}

/* Have the host attach, and make the dma-buf. */
static struct dma_buf *bufshare_imp_make(struct bufshare_imp *imp, struct bufshare_import *arg,
					 struct bufshare_handle *handle, unsigned long until)
{
	struct bufshare_device *bd = imp->bd;
	struct dma_buf *dmabuf = NULL;
	int ret;

	ret = bufshare_imp_attach(imp, arg, until);
	if (!ret)
		ret = bufshare_imp_check(imp, arg);
	if (!ret) {
		/* From here on the dma-buf has our reference. */
		dmabuf = bufshare_imp_dmabuf(imp, arg->fd_flags);
		ret = PTR_ERR_OR_ZERO(dmabuf);
	}
	if (!ret)
		return dmabuf;
	bufshare_lock(bd);
	imp->err = ret;
	imp->status = arg->status;
	if (handle)
		bufshare_handle_unbind_locked(handle);
	bufshare_imp_release_locked(imp);
	bufshare_unlock(bd);
	/* Who waits for it fails likewise, or makes his own. */
	wake_up_all(&bd->idle);
	return ERR_PTR(ret);
}

/* What the program is told. */
static void bufshare_imp_answer(const struct bufshare_imp *imp, struct bufshare_import *arg)
{
	arg->rights = imp->rights;
	arg->size = imp->size;
	arg->generation = imp->generation;
	arg->owner = imp->owner;
	arg->way = imp->way;
	arg->properties = imp->properties;
	arg->windows = imp->windows;
}

/* Uses the window region: only between bufshare_enter() and bufshare_exit(). */
static int bufshare_import(struct bufshare_device *bd, struct bufshare_import *arg,
			   struct bufshare_newfd *newfd)
{
	const unsigned long until = jiffies + bufshare_timeout();
	struct bufshare_handle *handle = newfd->handle;
	struct bufshare_imp *made = NULL;
	struct dma_buf *dmabuf;
	int ret;

	dmabuf = bufshare_imp_find(bd, arg, handle, until, &made);
	if (made)
		dmabuf = bufshare_imp_make(made, arg, handle, until);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	bufshare_imp_answer(dmabuf->priv, arg);
	/* A stream that others have joined. */
	if (!handle && !dmabuf->size) {
		dma_buf_put(dmabuf);
		return -EINVAL;
	}
	if (handle) {
		handle->dmabuf = dmabuf;
		arg->handle = handle->number;
		arg->fd = -1;
		return 0;
	}
	ret = bufshare_newfd_prepare(newfd, arg->fd_flags, dmabuf->file);
	if (ret)
		dma_buf_put(dmabuf);
	arg->fd = newfd->fd;
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
	bool consumes = arg->flags & BUFSHARE_IMPORT_CONSUME;
	int ret;

	if (arg->flags & ~(BUFSHARE_IMPORT_HANDLE | BUFSHARE_IMPORT_CONSUME) || arg->handle ||
	    (consumes && !by_handle) ||
	    arg->fd_flags & ~(O_CLOEXEC | O_ACCMODE) || (arg->fd_flags & O_ACCMODE) == O_WRONLY)
		return -EINVAL;
	if (by_handle && arg->fd_flags & O_CLOEXEC)
		return -EINVAL;
	if (arg->rights != BUFSHARE_READ && arg->rights != (BUFSHARE_READ | BUFSHARE_WRITE))
		return -EINVAL;
	if (by_handle) {
		struct bufshare_handle *handle = bufshare_handle_new(newfd->bf, consumes);

		if (IS_ERR(handle))
			return PTR_ERR(handle);
		newfd->handle = handle;
	}
	if (!bufshare_enter(bd))
		return -ENODEV;
	ret = bufshare_import(bd, arg, newfd);
	bufshare_exit(bd);
	return ret;
}
