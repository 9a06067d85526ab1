// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_attachment.c - the attachment of an import: ATTACH, DETACH and its life
 */
#include <linux/bits.h>
#include <linux/bug.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "bufshare_priv.h"

/* What may follow which state; GONE may follow each, as a device may go at any time. */
static const u8 bufshare_import_next[] = {
	[BUFSHARE_IMPORT_NEW] = BIT(BUFSHARE_IMPORT_ATTACHING),
	[BUFSHARE_IMPORT_ATTACHING] = BIT(BUFSHARE_IMPORT_ATTACHED),
	[BUFSHARE_IMPORT_ATTACHED] = BIT(BUFSHARE_IMPORT_DETACHING),
	[BUFSHARE_IMPORT_DETACHING] = 0,
	[BUFSHARE_IMPORT_GONE] = 0,
};

/**
 * bufshare_imp_set_wire_locked() - the host knows something else of an import
 * @imp: the import; its device's lock is held
 * @wire: what it knows
 */
void bufshare_imp_set_wire_locked(struct bufshare_imp *imp, enum bufshare_import_wire wire)
{
	lockdep_assert_held(&imp->bd->lock);
	WARN_ON_ONCE(wire != BUFSHARE_IMPORT_GONE &&
		     !(bufshare_import_next[imp->wire] & BIT(wire)));
	imp->wire = wire;
}

static void bufshare_imp_destroy(struct bufshare_imp *imp)
{
	bufshare_window_destroy(&imp->window);
	bufshare_frame_destroy(imp);
	bufshare_req_put(imp->detach_req);
	kfree(imp);
}

/* With bufshare_device.lock: lists lead to imports that have a reference. */
static void bufshare_imp_free_locked(struct kref *ref)
{
	struct bufshare_imp *imp = container_of(ref, struct bufshare_imp, ref);

	list_del(&imp->node);
	hash_del(&imp->by_id);
	hash_del(&imp->by_handle);
	bufshare_imp_destroy(imp);
}

/**
 * bufshare_imp_put_locked() - drop a reference of an import
 * @imp: the import; its device's lock is held
 */
void bufshare_imp_put_locked(struct bufshare_imp *imp)
{
	lockdep_assert_held(&imp->bd->lock);
	kref_put(&imp->ref, bufshare_imp_free_locked);
}

static void bufshare_detach_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	struct bufshare_imp *imp = req->owner;

	if (req->err && req->status != VIRTIO_BUFSHARE_S_NOT_FOUND && bd->alive)
		dev_dbg(bd->dev, "DETACH: status %u (%d)\n", req->status, req->err);
	bufshare_imp_set_wire_locked(imp, BUFSHARE_IMPORT_GONE);
	wake_up_all(&bd->idle);
	bufshare_imp_put_locked(imp);
}

static void bufshare_imp_detach_locked(struct bufshare_imp *imp)
{
	struct virtio_bufshare_batch *out = imp->detach_req->out;
	struct virtio_bufshare_handle *entry = (void *)(out + 1);

	entry->handle = cpu_to_le64(imp->handle);
	imp->detach_req->owner = imp;
	imp->detach_req->complete = bufshare_detach_complete;
	kref_get(&imp->ref);
	bufshare_imp_set_wire_locked(imp, BUFSHARE_IMPORT_DETACHING);
	if (bufshare_send_locked(imp->bd, imp->detach_req)) {
		bufshare_imp_set_wire_locked(imp, BUFSHARE_IMPORT_GONE);
		bufshare_imp_put_locked(imp);	/* not the last: the caller has one */
	}
}

/**
 * bufshare_imp_settle_locked() - take the next step, if there is one to take
 * @imp: the import; its device's lock is held, and the caller has a reference
 */
void bufshare_imp_settle_locked(struct bufshare_imp *imp)
{
	bufshare_window_settle_locked(&imp->window);
	if (imp->wire == BUFSHARE_IMPORT_ATTACHED &&
	    imp->window.state == BUFSHARE_WINDOW_UNMAPPED && (imp->released || imp->bd->leaving))
		bufshare_imp_detach_locked(imp);
}

/**
 * bufshare_imp_release_locked() - the dma-buf of an import is gone, or will not come
 * @imp: the import, whose reference is the dma-buf's; its device's lock is held
 */
void bufshare_imp_release_locked(struct bufshare_imp *imp)
{
	imp->released = true;
	bufshare_imp_settle_locked(imp);
	bufshare_imp_put_locked(imp);
}

static void bufshare_attach_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	struct bufshare_imp *imp = req->owner;
	struct virtio_bufshare_attach_resp resp;

	if (req->err) {
		bufshare_imp_set_wire_locked(imp, BUFSHARE_IMPORT_GONE);
	} else {
		memcpy(&resp, req->in, sizeof(resp));
		imp->handle = le64_to_cpu(resp.handle);
		imp->size = le64_to_cpu(resp.size);
		imp->generation = le64_to_cpu(resp.generation);
		imp->owner = le64_to_cpu(resp.owner);
		imp->rights = le32_to_cpu(resp.rights);
		imp->way = le32_to_cpu(resp.way);
		imp->properties = le32_to_cpu(resp.properties);
		imp->windows = le32_to_cpu(resp.windows);
		imp->window.len = imp->size;
		hash_add(bd->imports_by_handle, &imp->by_handle, imp->handle);
		bufshare_imp_set_wire_locked(imp, BUFSHARE_IMPORT_ATTACHED);
		bufshare_imp_settle_locked(imp);
	}
	bufshare_imp_put_locked(imp);
}

/**
 * bufshare_imp_by_handle_locked() - find an import that the host names
 * @bd: the device; its lock is held
 * @handle: of the attachment
 *
 * Return: it, or NULL.
 */
struct bufshare_imp *bufshare_imp_by_handle_locked(struct bufshare_device *bd, u64 handle)
{
	struct bufshare_imp *imp;

	lockdep_assert_held(&bd->lock);
	hash_for_each_possible(bd->imports_by_handle, imp, by_handle, handle) {
		if (imp->handle == handle && imp->wire != BUFSHARE_IMPORT_GONE)
			return imp;
	}
	return NULL;
}

/**
 * bufshare_imp_alloc() - make an import that the host knows nothing of
 * @bd: the device
 * @arg: what the program asks for
 *
 * Nobody finds it yet.
 *
 * Return: it, with one reference, or NULL.
 */
struct bufshare_imp *bufshare_imp_alloc(struct bufshare_device *bd,
					const struct bufshare_import *arg)
{
	struct bufshare_imp *imp;

	imp = kzalloc_obj(*imp, GFP_KERNEL_ACCOUNT);
	if (!imp)
		return NULL;
	kref_init(&imp->ref);
	imp->bd = bd;
	memcpy(&imp->id, &arg->id, sizeof(imp->id));
	imp->wanted = arg->rights;
	imp->ways = arg->ways;
	imp->required = arg->required;
	imp->max_windows = arg->max_windows;
	imp->mode = arg->fd_flags & O_ACCMODE;
	imp->consumes = arg->flags & BUFSHARE_IMPORT_CONSUME;
	INIT_LIST_HEAD(&imp->handles);
	INIT_LIST_HEAD(&imp->frame.consumers);
	imp->detach_req = bufshare_batch_alloc(VIRTIO_BUFSHARE_CMD_DETACH,
					       sizeof(struct virtio_bufshare_handle));
	if (!imp->detach_req || (imp->consumes && bufshare_frame_init(imp)) ||
	    bufshare_window_init(&imp->window, imp)) {
		bufshare_req_put(imp->detach_req);
		bufshare_frame_destroy(imp);
		kfree(imp);
		return NULL;
	}
	imp->detach_req->closing = true;
	init_rwsem(&imp->fault_sem);
	INIT_WORK(&imp->revoke_work, bufshare_revoke_work);
	INIT_WORK(&imp->drop_work, bufshare_drop_work);
	bufshare_maps_init(&imp->maps);
	return imp;
}

/**
 * bufshare_imp_discard() - free an import that nobody found
 * @imp: the import, which was not added
 */
void bufshare_imp_discard(struct bufshare_imp *imp)
{
	bufshare_imp_destroy(imp);
}

/**
 * bufshare_imp_add_locked() - an import can be found from here on
 * @imp: the import, new; its device's lock is held
 */
void bufshare_imp_add_locked(struct bufshare_imp *imp)
{
	lockdep_assert_held(&imp->bd->lock);
	list_add_tail(&imp->node, &imp->bd->imports);
	hash_add(imp->bd->imports_by_id, &imp->by_id, bufshare_id_hash(&imp->id));
}

static int bufshare_imp_send_attach_locked(struct bufshare_imp *imp, struct bufshare_req *req,
					   bool *lost)
{
	struct bufshare_device *bd = imp->bd;
	int ret;

	/* The session in which it was made has ended, and maybe another begun. */
	if (imp->wire != BUFSHARE_IMPORT_NEW)
		return -ENODEV;
	/*
	 * A device that was reset may map there: it does not know who looks at what. Not
	 * the mapping is refused but the import, since kernel mappings must not fail.
	 * There are no more of them as long as the session lasts, and the import does not
	 * outlast it.
	 */
	if (bd->shm && atomic_read(&bd->shm->lost)) {
		*lost = true;
		return -EBUSY;
	}
	kref_get(&imp->ref);
	bufshare_imp_set_wire_locked(imp, BUFSHARE_IMPORT_ATTACHING);
	ret = bufshare_send_locked(bd, req);
	if (ret) {
		bufshare_imp_set_wire_locked(imp, BUFSHARE_IMPORT_GONE);
		bufshare_imp_put_locked(imp);	/* not the last: the caller has one */
	}
	return ret;
}

/**
 * bufshare_imp_attach() - ATTACH, and its answer
 * @imp: the import, new
 * @arg: what the program asks for, and where the status of the answer goes
 * @until: when the program's time is over, jiffies
 *
 * Return: 0, then @imp says what was granted, or a negative errno.
 */
int bufshare_imp_attach(struct bufshare_imp *imp, struct bufshare_import *arg,
			unsigned long until)
{
	struct bufshare_device *bd = imp->bd;
	struct virtio_bufshare_attach *out;
	struct bufshare_req *req;
	bool lost = false;
	int ret;

	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_ATTACH, sizeof(*out), 0,
				 sizeof(struct virtio_bufshare_attach_resp), 0);
	if (!req)
		return -ENOMEM;
	out = req->out;
	out->id = imp->id;
	out->rights = cpu_to_le32(arg->rights);
	/* Bits of these that we do not know are for the host to judge. */
	out->ways = cpu_to_le32(arg->ways);
	out->required = cpu_to_le32(arg->required);
	out->max_windows = cpu_to_le32(arg->max_windows);
	if (imp->consumes)
		out->flags = cpu_to_le32(VIRTIO_BUFSHARE_ATTACH_CONSUMER);
	req->owner = imp;
	req->complete = bufshare_attach_complete;

	bufshare_lock(bd);
	ret = bufshare_imp_send_attach_locked(imp, req, &lost);
	bufshare_unlock(bd);
	if (lost)
		dev_err_ratelimited(bd->dev, "other drivers use buffers that were imported before the device was reset: no other is imported until they end that\n");
	if (!ret)
		ret = bufshare_wait_for(bd, req, bufshare_time_left(until), true, &arg->status);
	bufshare_req_put(req);
	return ret;
}
