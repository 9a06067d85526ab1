// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_producer.c - frames that are handed over to other VMs: PUSH and RETURNED
 *
 * The open file that pushed a frame, and no other, reads that it was returned. It is
 * remembered at the frame's first export, which is in one frame at a time. The export does
 * not keep the file: who closes it does not want to know.
 */
#include <linux/errno.h>
#include <linux/file.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "bufshare_priv.h"

/**
 * struct bufshare_pushing - a PUSH under way
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
 * bufshare_exp_forget_pusher_locked() - nobody is to read that a frame was returned
 * @exp: the first export of it, maybe of none; its device's lock is held
 */
void bufshare_exp_forget_pusher_locked(struct bufshare_exp *exp)
{
	list_del_init(&exp->news.node);
	list_del_init(&exp->by_pusher);
	exp->pusher = NULL;
}

/**
 * bufshare_file_forget_pushed() - a file is closed
 * @bf: the file, in which no call is any more
 */
void bufshare_file_forget_pushed(struct bufshare_file *bf)
{
	struct bufshare_exp *exp, *next;

	bufshare_lock(bf->bd);
	list_for_each_entry_safe(exp, next, &bf->pushed, by_pusher)
		bufshare_exp_forget_pusher_locked(exp);
	bufshare_unlock(bf->bd);
}

/**
 * bufshare_returned_locked() - the host reports that nobody has a frame any more
 * @exp: the first export of it; its device's lock is held
 * @ev: the event
 */
void bufshare_returned_locked(struct bufshare_exp *exp, const struct bufshare_event *ev)
{
	/* Nobody is there to read it; or the host says it twice. */
	if (!exp->pusher || !list_empty(&exp->news.node))
		return;
	exp->returned = ev->value;
	bufshare_report_locked(exp->pusher, &exp->news, ev->type, ev->seq);
}

/**
 * bufshare_returned_read_locked() - the return of a frame as its producer reads it
 * @exp: the first export of it; its device's lock is held
 * @ev: where to put it
 */
void bufshare_returned_read_locked(const struct bufshare_exp *exp, struct bufshare_event *ev)
{
	memset(ev, 0, sizeof(*ev));
	ev->type = exp->news.type;
	ev->length = sizeof(*ev);
	ev->seq = exp->news.seq;
	ev->peer = exp->bd->caps.peer_id;
	memcpy(&ev->id, &exp->id, sizeof(ev->id));
	ev->generation = exp->generation;
	ev->value = exp->returned;
}

/* Before the host's word that they were returned: that is looked at after its answers. */
static void bufshare_push_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	struct bufshare_pushing *pushing = req->owner;
	struct bufshare_exp *exp;
	u32 i;

	if (req->err)
		return;
	for (i = 0; i < pushing->count; i++) {
		exp = pushing->first[i];
		if (exp->dead)
			continue;
		exp->pusher = pushing->bf;
		list_move_tail(&exp->by_pusher, &pushing->bf->pushed);
	}
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

/* Name the buffers of all frames. Those whose return nobody has read are not pushed. */
static int bufshare_push_name_locked(const struct bufshare_pushing *pushing,
				     struct bufshare_push *arg, void *entries, size_t size)
{
	struct file *const *file = pushing->files;
	struct virtio_bufshare_push *to;
	struct bufshare_exp *exp;
	u32 i, n;

	for (i = 0; i < pushing->count; i++) {
		arg->entry = i;
		to = entries + i * size;
		for (n = 0; n < le32_to_cpu(to->num_buffers); n++, file++) {
			exp = (*file)->private_data;
			if (!bufshare_exp_is_live_locked(exp)) {
				arg->status = VIRTIO_BUFSHARE_S_NOT_FOUND;
				return -ENOENT;
			}
			to->buffers[n] = exp->id;
		}
		if (!list_empty(&pushing->first[i]->news.node)) {
			arg->status = VIRTIO_BUFSHARE_S_BUSY;
			return -EBUSY;
		}
	}
	return 0;
}

/* Send it and wait for the answer. */
static int bufshare_push_call(struct bufshare_pushing *pushing, struct bufshare_push *arg,
			      struct bufshare_req *req, size_t size)
{
	struct bufshare_device *bd = pushing->bf->bd;
	void *entries = req->out + sizeof(struct virtio_bufshare_batch);
	struct virtio_bufshare_push_resp resp;
	int ret;

	req->owner = pushing;
	req->complete = bufshare_push_complete;
	bufshare_lock(bd);
	ret = bufshare_push_name_locked(pushing, arg, entries, size);
	if (!ret)
		ret = bufshare_send_locked(bd, req);
	bufshare_unlock(bd);
	if (ret)
		return ret;
	ret = bufshare_wait(bd, req, &arg->status);
	bufshare_lock(bd);
	if (req->state == BUFSHARE_REQ_DONE) {
		memcpy(&resp, req->in, sizeof(resp));
		arg->entry = le32_to_cpu(resp.entry);
		arg->frame = le64_to_cpu(resp.frame);
	} else {
		/* Whoever gives up does not learn what comes of it. */
		req->complete = NULL;
	}
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
	if (!ret)
		ret = bufshare_push_call(pushing, arg, req, size);
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
	arg->entry = 0;
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
