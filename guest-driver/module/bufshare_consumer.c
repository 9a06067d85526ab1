// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_consumer.c - frames that other VMs hand over: PUSHED and RETURN
 *
 * The host gives a frame to an attachment. All handles of that import which consume are
 * given it, each of one open file, and the host has it back when all of these have
 * returned it, or are closed. So an import has one frame at a time, and needs room for one.
 * A program that has died has closed its files.
 *
 * Each import has one RETURN under way at the most, in the request that was made with it: so a
 * host that does not answer costs no memory. A RETURN of several frames is as many requests,
 * of which the device is notified once: none is refused because of another.
 */
#include <linux/errno.h>
#include <linux/ktime.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "bufshare_priv.h"

/**
 * bufshare_frame_init() - have room for the frames of an import
 * @imp: the import, new, which the host is to give frames
 *
 * Return: 0 or a negative errno; either needs bufshare_frame_destroy().
 */
int bufshare_frame_init(struct bufshare_imp *imp)
{
	struct bufshare_frame *frame = &imp->frame;

	frame->record = kzalloc(VIRTIO_BUFSHARE_MAX_FRAME_RECORD, GFP_KERNEL_ACCOUNT);
	frame->return_req = bufshare_batch_alloc(VIRTIO_BUFSHARE_CMD_RETURN,
						 sizeof(struct virtio_bufshare_return));
	if (!frame->record || !frame->return_req)
		return -ENOMEM;
	frame->return_req->closing = true;
	/*
	 * The next frame comes as an event, before which its answer is taken. An import that
	 * goes is detached, and that answer is awaited.
	 */
	frame->return_req->unawaited = true;
	return 0;
}

/**
 * bufshare_frame_destroy() - free what bufshare_frame_init() has made, if anything
 * @imp: the import, of which nothing is left
 */
void bufshare_frame_destroy(struct bufshare_imp *imp)
{
	bufshare_req_put(imp->frame.return_req);
	kfree(imp->frame.record);
}

static void bufshare_return_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	struct bufshare_imp *imp = req->owner;

	/*
	 * The buffer may have been revoked meanwhile, and that word be to come. Nothing else
	 * is a reason to refuse: there is nothing that could be done better the next time.
	 */
	if (req->status != VIRTIO_BUFSHARE_S_OK && req->status != VIRTIO_BUFSHARE_S_NOT_FOUND &&
	    req->status != VIRTIO_BUFSHARE_S_UNBALANCED)
		bufshare_answer_malformed_locked(bd, req, req->used);
	bufshare_imp_put_locked(imp);
}

/* Has the host not yet answered that it has the last frame back? */
static bool bufshare_return_waits_locked(const struct bufshare_frame *frame)
{
	return frame->return_req->state == BUFSHARE_REQ_PENDING ||
	       frame->return_req->state == BUFSHARE_REQ_INFLIGHT;
}

/*
 * Nobody here has the frame: the host is to have it back. The request is free, as the frame
 * was not taken before. The caller has a reference of the import.
 */
static void bufshare_frame_return_locked(struct bufshare_imp *imp)
{
	struct bufshare_req *req = imp->frame.return_req;
	struct virtio_bufshare_batch *out = req->out;
	struct virtio_bufshare_return *entry = (void *)(out + 1);

	/* A detach returns it, too, and so does the end of the session. */
	if (imp->wire != BUFSHARE_IMPORT_ATTACHED)
		return;
	entry->handle = cpu_to_le64(imp->handle);
	entry->frame = cpu_to_le64(imp->frame.number);
	req->owner = imp;
	req->complete = bufshare_return_complete;
	kref_get(&imp->ref);
	if (bufshare_send_locked(imp->bd, req))
		bufshare_imp_put_locked(imp);	/* not the last: the caller has one */
}

/**
 * bufshare_frame_reserve_locked() - a handle is to be given the frames of its import
 * @handle: the handle, being bound to it; its device's lock is held
 *
 * Return: 0 or -EUSERS: there are BUFSHARE_MAX_FRAME_HANDLES.
 */
int bufshare_frame_reserve_locked(struct bufshare_handle *handle)
{
	struct bufshare_frame *frame = &handle->imp->frame;

	if (!handle->consumes)
		return 0;
	if (frame->nr_consumers == BUFSHARE_MAX_FRAME_HANDLES)
		return -EUSERS;
	frame->nr_consumers++;
	return 0;
}

/**
 * bufshare_frame_join_locked() - a handle is given frames from here on
 * @handle: the handle, which its file knows; its device's lock is held
 */
void bufshare_frame_join_locked(struct bufshare_handle *handle)
{
	if (handle->consumes && list_empty(&handle->by_frame))
		list_add_tail(&handle->by_frame, &handle->imp->frame.consumers);
}

/* Returns whether the frame of its import is with no handle any more by this. */
static bool bufshare_frame_release_locked(struct bufshare_handle *handle)
{
	if (!handle->has_frame)
		return false;
	handle->has_frame = false;
	list_del_init(&handle->news.node);
	return !--handle->imp->frame.holders;
}

/**
 * bufshare_frame_leave_locked() - a handle returns what it has, and is given no more
 * @handle: the handle, being closed; its device's lock is held
 */
void bufshare_frame_leave_locked(struct bufshare_handle *handle)
{
	struct bufshare_imp *imp = handle->imp;

	if (!handle->consumes)
		return;
	imp->frame.nr_consumers--;
	list_del_init(&handle->by_frame);
	if (bufshare_frame_release_locked(handle))
		bufshare_frame_return_locked(imp);
}

/**
 * bufshare_frame_recalled_locked() - the frame of an import is with nobody here any more
 * @imp: the import, which the host has revoked; its device's lock is held
 *
 * Return: true if a handle had it.
 */
bool bufshare_frame_recalled_locked(struct bufshare_imp *imp)
{
	struct bufshare_handle *handle;
	bool last = false;

	list_for_each_entry(handle, &imp->frame.consumers, by_frame)
		last |= bufshare_frame_release_locked(handle);
	return last;
}

/**
 * bufshare_frame_recall_locked() - return the frame of an import, as if its handles had
 * @imp: the import, revoked by whomever; its device's lock is held
 */
void bufshare_frame_recall_locked(struct bufshare_imp *imp)
{
	if (bufshare_frame_recalled_locked(imp))
		bufshare_frame_return_locked(imp);
}

/*
 * Take a frame from its event. What the device may write to is read once, and of wire, the
 * event's beginning, which was read before, nothing is read again. False: it makes no sense.
 */
static bool bufshare_frame_parse_locked(struct bufshare_imp *imp,
					const struct virtio_bufshare_event *wire, const void *buf)
{
	struct bufshare_frame *frame = &imp->frame;
	struct virtio_bufshare_pushed head;
	u32 length = le32_to_cpu(wire->length), num, record;

	if (length < sizeof(head))
		return false;
	memcpy(&head, buf, sizeof(head));
	num = le32_to_cpu(head.num_buffers);
	record = le32_to_cpu(head.record_size);
	if (!num || num > VIRTIO_BUFSHARE_MAX_FRAME_BUFFERS ||
	    record > VIRTIO_BUFSHARE_MAX_FRAME_RECORD || record > length - sizeof(head))
		return false;
	if (memcmp(&wire->id, &imp->id, sizeof(imp->id)) ||
	    le64_to_cpu(wire->peer) != imp->owner ||
	    le64_to_cpu(wire->generation) != imp->generation)
		return false;
	memset(&frame->pushed, 0, sizeof(frame->pushed));
	bufshare_event_from_wire(&frame->pushed.event, wire);
	memcpy(frame->pushed.others, head.others, (num - 1) * sizeof(head.others[0]));
	frame->pushed.num_buffers = num;
	frame->pushed.record_size = record;
	frame->pushed.meta_seq = le64_to_cpu(head.meta_seq);
	frame->pushed.arrival = ktime_get_ns();
	memcpy(frame->record, buf + length - record, record);
	frame->number = le64_to_cpu(wire->value);
	return true;
}

/**
 * bufshare_pushed_locked() - the host hands a frame over
 * @bd: the device; its lock is held
 * @imp: the attachment, or NULL: there is none of this number
 * @wire: the event's beginning
 * @buf: the event, which the device may write to
 *
 * Return: false if it makes no sense.
 */
bool bufshare_pushed_locked(struct bufshare_device *bd, struct bufshare_imp *imp,
			    const struct virtio_bufshare_event *wire, const void *buf)
{
	struct bufshare_handle *handle;
	struct bufshare_frame *frame;

	/* Its DETACH returned it. */
	if (!imp || imp->wire != BUFSHARE_IMPORT_ATTACHED)
		return true;
	frame = &imp->frame;
	/* The host gives one when it has the last, and has answered that. */
	if (!imp->consumes || frame->holders || bufshare_return_waits_locked(frame) ||
	    !bufshare_frame_parse_locked(imp, wire, buf))
		return false;
	list_for_each_entry(handle, &frame->consumers, by_frame) {
		if (imp->revoked)
			break;	/* by this driver: the host may not know */
		handle->has_frame = true;
		frame->holders++;
		bufshare_report_locked(handle->bf, &handle->news, VIRTIO_BUFSHARE_EVT_PUSHED,
				       frame->pushed.event.seq);
	}
	if (!frame->holders)
		bufshare_frame_return_locked(imp);
	return true;
}

/**
 * bufshare_pushed_read_locked() - a frame as its consumer reads it
 * @handle: the handle that has it; its device's lock is held
 * @to: where to put it: BUFSHARE_MAX_READ bytes
 *
 * Return: its bytes.
 */
u32 bufshare_pushed_read_locked(const struct bufshare_handle *handle, void *to)
{
	const struct bufshare_frame *frame = &handle->imp->frame;
	struct bufshare_pushed pushed = frame->pushed;

	pushed.event.handle = handle->number;
	memcpy(to, &pushed, sizeof(pushed));
	memcpy(to + sizeof(pushed), frame->record, pushed.record_size);
	return sizeof(pushed) + pushed.record_size;
}

/**
 * bufshare_pushed_cut() - say how much of a record is left where there is little room
 * @event: what bufshare_pushed_read_locked() gave
 * @length: bytes of it that a program reads
 */
void bufshare_pushed_cut(void *event, u32 length)
{
	struct bufshare_pushed *pushed = event;

	pushed->record_size = length > sizeof(*pushed) ? length - sizeof(*pushed) : 0;
}

/* The handle of a file that has a frame, or why there is none. */
static struct bufshare_handle *bufshare_holder_locked(struct bufshare_file *bf,
						      const struct bufshare_return_frame *entry,
						      u32 *status)
{
	/* Who closes it takes the lock before it is freed. */
	struct bufshare_handle *handle = xa_load(&bf->handles, entry->handle);

	if (!handle) {
		*status = VIRTIO_BUFSHARE_S_NOT_FOUND;
		return NULL;
	}
	if (!handle->has_frame || handle->imp->frame.number != entry->frame) {
		*status = VIRTIO_BUFSHARE_S_UNBALANCED;
		return NULL;
	}
	return handle;
}

/* Give back all, or none. */
static int bufshare_return_locked(struct bufshare_file *bf, struct bufshare_return *arg,
				  const struct bufshare_return_frame *frames)
{
	struct bufshare_handle *handles[BUFSHARE_MAX_BATCH];
	u32 i, j;

	for (i = 0; i < arg->count; i++) {
		arg->entry = i;
		handles[i] = bufshare_holder_locked(bf, &frames[i], &arg->status);
		if (!handles[i])
			return arg->status == VIRTIO_BUFSHARE_S_NOT_FOUND ? -ENOENT : -EINVAL;
		for (j = 0; j < i; j++) {
			if (handles[j] == handles[i]) {
				arg->status = VIRTIO_BUFSHARE_S_UNBALANCED;
				return -EINVAL;
			}
		}
	}
	arg->entry = i;
	for (i = 0; i < arg->count; i++) {
		if (bufshare_frame_release_locked(handles[i]))
			bufshare_frame_return_locked(handles[i]->imp);
	}
	return 0;
}

/**
 * bufshare_ioc_return() - RETURN
 * @bf: the file
 * @arg: what is asked and answered
 *
 * Return: 0 or a negative errno.
 */
int bufshare_ioc_return(struct bufshare_file *bf, struct bufshare_return *arg)
{
	struct bufshare_return_frame frames[BUFSHARE_MAX_BATCH];
	u32 i;
	int ret;

	arg->entry = arg->count;
	arg->status = 0;
	if (!arg->count || arg->count > BUFSHARE_MAX_BATCH ||
	    !bufshare_entry_fits(arg->entry_size, sizeof(frames[0])))
		return -EINVAL;
	for (i = 0; i < arg->count; i++) {
		arg->entry = i;
		ret = copy_struct_from_user(&frames[i], sizeof(frames[i]),
					    u64_to_user_ptr(arg->frames + (u64)i * arg->entry_size),
					    arg->entry_size);
		if (!ret && frames[i].reserved)
			ret = -EINVAL;
		if (ret)
			return ret;
	}
	bufshare_lock(bf->bd);
	ret = bufshare_return_locked(bf, arg, frames);
	bufshare_unlock(bf->bd);
	return ret;
}
