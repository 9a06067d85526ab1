// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_producer.c - frames that are handed over to other VMs: PUSH and RETURNED
 *
 * The open file that pushed a frame, and no other, reads that it was returned. It is
 * remembered at the frame's first export, which is in one frame at a time, from the sending
 * on: who does not wait for the answer may have pushed it nevertheless. The export does
 * not keep the file: who closes it does not want to know.
 */
#include <linux/errno.h>
#include <linux/file.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "bufshare_priv.h"

/**
 * struct bufshare_pushing - a PUSH that a program waits for
 * @bf: the file that pushes
 * @count: its frames
 * @files: the files of all exports, counted: first those of the first frame
 * @nr_files: how many
 * @first: the export of each frame that counts as its own
 */
struct bufshare_pushing {
	struct bufshare_file *bf;
	u32 count;
	struct file *files[BUFSHARE_MAX_BATCH * BUFSHARE_MAX_PLANES];
	u32 nr_files;
	struct bufshare_exp *first[BUFSHARE_MAX_BATCH];
};

/**
 * struct bufshare_push_sent - a PUSH that the host has not answered; of its request
 * @exports: struct bufshare_exp.by_push, by their entries, but for those that ended
 */
struct bufshare_push_sent {
	struct list_head exports;
};

/**
 * bufshare_exp_forget_frame_locked() - an export is in no frame
 * @exp: the first export of one, maybe of none; its device's lock is held
 */
void bufshare_exp_forget_frame_locked(struct bufshare_exp *exp)
{
	list_del_init(&exp->news.node);
	list_del_init(&exp->by_pusher);
	list_del_init(&exp->by_push);
	exp->pusher = NULL;
	exp->frame = BUFSHARE_FRAME_IDLE;
}

/**
 * bufshare_file_forget_pushed() - a file is closed
 * @bf: the file, in which no call is any more, and which has no handles any more
 *
 * What others have of its frames comes back, which nobody reads. No export leads to the file.
 */
void bufshare_file_forget_pushed(struct bufshare_file *bf)
{
	struct bufshare_exp *exp, *next;

	bufshare_lock(bf->bd);
	list_for_each_entry_safe(exp, next, &bf->news, news.node)
		bufshare_exp_forget_frame_locked(exp);
	list_for_each_entry_safe(exp, next, &bf->pushed, by_pusher) {
		list_del_init(&exp->by_pusher);
		exp->pusher = NULL;
	}
	bufshare_unlock(bf->bd);
}

/**
 * bufshare_returned_locked() - the host reports that nobody has a frame any more
 * @exp: the first export of it; its device's lock is held
 * @ev: the event
 *
 * Return: false if it makes no sense.
 */
bool bufshare_returned_locked(struct bufshare_exp *exp, const struct bufshare_event *ev)
{
	/* On its way when the export ended. */
	if (exp->dead || exp->closed)
		return true;
	if (exp->frame != BUFSHARE_FRAME_SENT &&
	    (exp->frame != BUFSHARE_FRAME_OUT || exp->number != ev->value))
		return false;
	if (exp->pusher) {
		exp->frame = BUFSHARE_FRAME_RETURNED;
		exp->number = ev->value;
		exp->arrival = ktime_get_ns();
		bufshare_report_locked(exp->pusher, &exp->news, ev->type, ev->seq);
	} else {
		bufshare_exp_forget_frame_locked(exp);
	}
	return true;
}

/**
 * bufshare_returned_read_locked() - the return of a frame as its producer reads it
 * @exp: the first export of it; its device's lock is held
 * @to: where to put it
 *
 * Return: bytes of it.
 */
u32 bufshare_returned_read_locked(const struct bufshare_exp *exp, void *to)
{
	struct bufshare_returned returned = {
		.event = {
			.type = exp->news.type,
			.length = sizeof(returned),
			.seq = exp->news.seq,
			.peer = exp->bd->caps.peer_id,
			.generation = exp->generation,
			.value = exp->number,
		},
		.arrival = exp->arrival,
	};

	memcpy(&returned.event.id, &exp->id, sizeof(returned.event.id));
	memcpy(to, &returned, sizeof(returned));
	return sizeof(returned);
}

/* What the answer to a PUSH says of one of its frames, whether or not somebody waits for it. */
static void bufshare_push_answered_locked(struct bufshare_exp *exp, const struct bufshare_req *req)
{
	bool refused = req->status != VIRTIO_BUFSHARE_S_OK || !req->reached;
	struct virtio_bufshare_push_resp resp;
	u64 number;

	list_del_init(&exp->by_push);
	memcpy(&resp, req->in, sizeof(resp));
	number = le64_to_cpu(resp.frame) + exp->entry;
	if (exp->frame == BUFSHARE_FRAME_RETURNED) {
		/* The host has said that it was done, and of which frame. */
		if (refused || (!req->err && number != exp->number))
			bufshare_answer_malformed_locked(exp->bd, req, req->used);
	} else if (!req->err) {
		exp->frame = BUFSHARE_FRAME_OUT;
		exp->number = number;
	} else if (refused) {
		bufshare_exp_forget_frame_locked(exp);
	}
	/* Else no answer, or one without sense: it may be out. */
}

static void bufshare_push_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	struct bufshare_push_sent *sent = req->owner;
	struct bufshare_exp *exp, *next;

	list_for_each_entry_safe(exp, next, &sent->exports, by_push)
		bufshare_push_answered_locked(exp, req);
	kfree(sent);
}

/* Take the record of a frame, which ends its entry, and see that nothing is before it. */
static int bufshare_push_read_record(struct bufshare_push *arg, u64 from, u32 length, void *to)
{
	const u32 room = arg->entry_size - sizeof(struct bufshare_push_frame);
	int ret;

	if (length % BUFSHARE_ENTRY_ALIGN || length > room)
		return -EINVAL;
	if (length > VIRTIO_BUFSHARE_MAX_FRAME_RECORD) {
		arg->status = VIRTIO_BUFSHARE_S_TOO_LARGE;
		return -EFBIG;
	}
	from += sizeof(struct bufshare_push_frame);
	ret = check_zeroed_user(u64_to_user_ptr(from), room - length);
	if (ret <= 0)
		return ret ?: -E2BIG;
	return copy_from_user(to, u64_to_user_ptr(from + room - length), length) ? -EFAULT : 0;
}

/* Take one frame of a PUSH from its program; for the host it has size bytes. */
static int bufshare_push_read(struct bufshare_pushing *pushing, struct bufshare_push *arg, u32 i,
			      struct virtio_bufshare_push *to, size_t size)
{
	const u64 from = arg->frames + (u64)i * arg->entry_size;
	struct bufshare_push_frame frame;
	struct file *file;
	u32 n;
	int ret;

	if (copy_from_user(&frame, u64_to_user_ptr(from), sizeof(frame)))
		return -EFAULT;
	if (!frame.num_buffers || frame.num_buffers > BUFSHARE_MAX_PLANES || frame.flags)
		return -EINVAL;
	ret = bufshare_push_read_record(arg, from, frame.record_size,
					(void *)to + size - frame.record_size);
	if (ret)
		return ret;
	for (n = frame.num_buffers; n < BUFSHARE_MAX_PLANES; n++) {
		if (frame.buffers[n])
			return -EINVAL;
	}
	for (n = 0; n < frame.num_buffers; n++) {
		file = bufshare_exp_fget(pushing->bf->bd, frame.buffers[n]);
		if (IS_ERR(file))
			return PTR_ERR(file);
		pushing->files[pushing->nr_files++] = file;
		if (!n)
			pushing->first[i] = file->private_data;
	}
	to->num_buffers = cpu_to_le32(frame.num_buffers);
	to->max_held = cpu_to_le32(frame.max_held);
	to->record_size = cpu_to_le32(frame.record_size);
	return 0;
}

/* Name the buffers of one frame, the next of which has this file. */
static int bufshare_push_name_locked(struct file *const **file, struct virtio_bufshare_push *to,
				     u32 *status)
{
	struct bufshare_exp *exp;
	u32 n;

	for (n = 0; n < le32_to_cpu(to->num_buffers); n++, (*file)++) {
		exp = (**file)->private_data;
		if (!bufshare_exp_is_live_locked(exp)) {
			*status = VIRTIO_BUFSHARE_S_NOT_FOUND;
			return -ENOENT;
		}
		to->buffers[n] = exp->id;
	}
	return 0;
}

/* One export is the first of a frame from here on, unless it is already. */
static int bufshare_push_begin_locked(struct bufshare_pushing *pushing, u32 entry,
				      struct bufshare_push_sent *sent, u32 *status)
{
	struct bufshare_exp *exp = pushing->first[entry];

	if (exp->frame != BUFSHARE_FRAME_IDLE) {
		*status = VIRTIO_BUFSHARE_S_BUSY;
		return -EBUSY;
	}
	exp->frame = BUFSHARE_FRAME_SENT;
	exp->entry = entry;
	exp->pusher = pushing->bf;
	list_add_tail(&exp->by_pusher, &pushing->bf->pushed);
	list_add_tail(&exp->by_push, &sent->exports);
	return 0;
}

/* Send it. Then @sent is the request's. */
static int bufshare_push_send_locked(struct bufshare_pushing *pushing, struct bufshare_push *arg,
				     struct bufshare_req *req, size_t size,
				     struct bufshare_push_sent *sent)
{
	void *to = req->out + sizeof(struct virtio_bufshare_batch);
	struct file *const *file = pushing->files;
	struct bufshare_exp *exp, *next;
	int ret = 0;
	u32 i;

	for (i = 0; i < pushing->count && !ret; i++, to += size) {
		arg->entry = i;
		ret = bufshare_push_name_locked(&file, to, &arg->status);
		if (!ret)
			ret = bufshare_push_begin_locked(pushing, i, sent, &arg->status);
	}
	req->owner = sent;
	req->complete = bufshare_push_complete;
	if (!ret) {
		arg->entry = arg->count;
		ret = bufshare_send_locked(pushing->bf->bd, req);
	}
	if (!ret)
		return 0;
	list_for_each_entry_safe(exp, next, &sent->exports, by_push)
		bufshare_exp_forget_frame_locked(exp);
	return ret;
}

/* What the answer says beside its status. Of a refusal as a whole no entry is wrong. */
static void bufshare_push_answer_locked(const struct bufshare_req *req, struct bufshare_push *arg)
{
	struct virtio_bufshare_push_resp resp;

	if (req->state != BUFSHARE_REQ_DONE || req->used < sizeof(resp))
		return;
	memcpy(&resp, req->in, sizeof(resp));
	arg->entry = min(le32_to_cpu(resp.entry), arg->count);
	arg->frame = req->err ? 0 : le64_to_cpu(resp.frame);
}

/* Send it and wait for the answer. */
static int bufshare_push_call(struct bufshare_pushing *pushing, struct bufshare_push *arg,
			      struct bufshare_req *req, size_t size)
{
	struct bufshare_device *bd = pushing->bf->bd;
	struct bufshare_push_sent *sent;
	int ret;

	sent = kzalloc_obj(*sent);
	if (!sent)
		return -ENOMEM;
	INIT_LIST_HEAD(&sent->exports);
	bufshare_lock(bd);
	ret = bufshare_push_send_locked(pushing, arg, req, size, sent);
	bufshare_unlock(bd);
	if (ret) {
		kfree(sent);
		return ret;
	}
	ret = bufshare_wait(bd, req, &arg->status);
	bufshare_lock(bd);
	bufshare_push_answer_locked(req, arg);
	bufshare_unlock(bd);
	return ret;
}

/* PUSH, but for the structures that it needs. */
static int bufshare_push(struct bufshare_pushing *pushing, struct bufshare_push *arg)
{
	/* Room for the longest record that an entry of the program may have. */
	const size_t size = sizeof(struct virtio_bufshare_push) +
			    min_t(size_t, arg->entry_size - sizeof(struct bufshare_push_frame),
				  VIRTIO_BUFSHARE_MAX_FRAME_RECORD);
	struct virtio_bufshare_batch *out;
	struct bufshare_req *req;
	int ret = 0;
	u32 i;

	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_PUSH, sizeof(*out), arg->count * size,
				 sizeof(struct virtio_bufshare_push_resp), 0);
	if (!req)
		return -ENOMEM;
	req->fail_len = sizeof(struct virtio_bufshare_push_resp);
	out = req->out;
	out->count = cpu_to_le32(arg->count);
	out->entry_size = cpu_to_le32(size);
	for (i = 0; i < arg->count && !ret; i++) {
		arg->entry = i;
		ret = bufshare_push_read(pushing, arg, i, (void *)(out + 1) + i * size, size);
	}
	if (!ret) {
		arg->entry = arg->count;
		ret = bufshare_push_call(pushing, arg, req, size);
	}
	bufshare_req_put(req);
	return ret;
}

/**
 * bufshare_ioc_push() - PUSH
 * @bf: the file
 * @arg: what is asked and answered
 *
 * Return: 0 or a negative errno.
 */
int bufshare_ioc_push(struct bufshare_file *bf, struct bufshare_push *arg)
{
	struct bufshare_pushing *pushing;
	int ret;

	arg->frame = 0;
	arg->entry = arg->count;
	arg->status = 0;
	if (!arg->count || arg->count > BUFSHARE_MAX_BATCH ||
	    !bufshare_entry_fits(arg->entry_size, sizeof(struct bufshare_push_frame)))
		return -EINVAL;
	pushing = kzalloc_obj(*pushing);
	if (!pushing)
		return -ENOMEM;
	pushing->bf = bf;
	pushing->count = arg->count;
	ret = bufshare_push(pushing, arg);
	while (pushing->nr_files)
		fput(pushing->files[--pushing->nr_files]);
	kfree(pushing);
	return ret;
}
