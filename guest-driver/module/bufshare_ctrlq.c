// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_ctrlq.c - requests on the control queue
 *
 * A request belongs to its waiter and to the queue at the same time. A waiter
 * that is killed or out of patience just leaves; the buffers stay the device's
 * until it gives them back or is reset. Nothing that the device writes is
 * believed: length, type, cookie and status of an answer are checked here, the
 * rest where it is used.
 *
 * An answer that nobody waits for is to make no interrupt: each takes a VMM its time. It is
 * taken with the next that does, with the next event, or when its place is needed.
 */
#include <linux/errno.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "bufshare_priv.h"

static unsigned int request_timeout_ms = BUFSHARE_MAX_TIMEOUT_MS;
module_param(request_timeout_ms, uint, 0644);
MODULE_PARM_DESC(request_timeout_ms, "Patience with the host, milliseconds (default and at most 9000)");

/* What a status of the host is to a program. */
static const int bufshare_errno[] = {
	[VIRTIO_BUFSHARE_S_OK] = 0,
	[VIRTIO_BUFSHARE_S_UNSUPPORTED] = -EOPNOTSUPP,
	[VIRTIO_BUFSHARE_S_BAD_LENGTH] = -EPROTO,	/* we made it: a bug on one side */
	[VIRTIO_BUFSHARE_S_BAD_FIELD] = -EINVAL,
	[VIRTIO_BUFSHARE_S_NO_ROOM] = -EPROTO,		/* likewise */
	[VIRTIO_BUFSHARE_S_NOT_FOUND] = -ENOENT,
	[VIRTIO_BUFSHARE_S_DENIED] = -EACCES,
	[VIRTIO_BUFSHARE_S_NOT_RAM] = -EOPNOTSUPP,
	[VIRTIO_BUFSHARE_S_OVERLAP] = -EINVAL,
	[VIRTIO_BUFSHARE_S_UNALIGNED] = -EINVAL,
	[VIRTIO_BUFSHARE_S_TOO_LARGE] = -EFBIG,
	[VIRTIO_BUFSHARE_S_TOO_MANY] = -EDQUOT,
	[VIRTIO_BUFSHARE_S_TOO_FRAGMENTED] = -E2BIG,
	[VIRTIO_BUFSHARE_S_NO_WINDOW] = -ENOSPC,
	[VIRTIO_BUFSHARE_S_NO_SPACE] = -ENOSPC,
	[VIRTIO_BUFSHARE_S_BUSY] = -EBUSY,
	[VIRTIO_BUFSHARE_S_REVOKED] = -ESTALE,
	[VIRTIO_BUFSHARE_S_META_TOO_LARGE] = -EMSGSIZE,
	[VIRTIO_BUFSHARE_S_BAD_META] = -EINVAL,
	[VIRTIO_BUFSHARE_S_NO_WAY] = -EOPNOTSUPP,
	[VIRTIO_BUFSHARE_S_RO_NOT_ENFORCED] = -EROFS,
	[VIRTIO_BUFSHARE_S_NO_SHMEM] = -EOPNOTSUPP,
	[VIRTIO_BUFSHARE_S_MAP_FAILED] = -EIO,
	[VIRTIO_BUFSHARE_S_UNBALANCED] = -EINVAL,
	[VIRTIO_BUFSHARE_S_HOST_ERROR] = -EREMOTEIO,
	[VIRTIO_BUFSHARE_S_EXISTS] = -EEXIST,
};

/* One that is unknown is of a newer host, and a refusal all the same. */
static int bufshare_status_errno(u32 status)
{
	return status < ARRAY_SIZE(bufshare_errno) ? bufshare_errno[status] : -EREMOTEIO;
}

/**
 * bufshare_timeout() - how long to wait for the host
 *
 * Return: jiffies, not zero.
 */
long bufshare_timeout(void)
{
	unsigned int ms = min(READ_ONCE(request_timeout_ms), BUFSHARE_MAX_TIMEOUT_MS);

	return max(msecs_to_jiffies(ms), 1UL);
}

/**
 * bufshare_time_left() - how long to wait for what a call has waited for before
 * @until: when its time is over, jiffies
 *
 * Return: jiffies, not zero, and no more than bufshare_timeout().
 */
long bufshare_time_left(unsigned long until)
{
	return clamp((long)(until - jiffies), 1L, bufshare_timeout());
}

/*
 * What others are to be told when bufshare_device.lock has been released.
 *
 * The device is notified then, and not while it is held: that may
 * take as long as the VMM pleases, and others would spin meanwhile with
 * interrupts off. Which queues are to be notified is decided while it is held;
 * that they live until then is seen to by RCU: bufshare_notified() waits.
 *
 * Nobody is preempted in between: a request that another task adds meanwhile needs
 * no notification of its own, since this one is to come. On a PREEMPT_RT kernel that
 * holds, too: there the lock sleeps when it is taken, but not when it is released.
 */
static void bufshare_notify(struct virtqueue *ctrl, struct virtqueue *eventq)
	__releases(RCU_SCHED)
{
	if (ctrl)
		virtqueue_notify(ctrl);
	if (eventq)
		virtqueue_notify(eventq);
	rcu_read_unlock_sched();
}

static void bufshare_take_kicks_locked(struct bufshare_device *bd, struct virtqueue **ctrl,
				       struct virtqueue **eventq)
	__acquires(RCU_SCHED)
{
	rcu_read_lock_sched();
	*ctrl = bd->kick_ctrl ? bd->ctrl : NULL;
	*eventq = bd->kick_eventq ? bd->eventq : NULL;
	bd->kick_ctrl = false;
	bd->kick_eventq = false;
}

/* Is there somebody whom only an answer helps? */
static bool bufshare_awaits_locked(const struct bufshare_device *bd)
{
	return bd->awaited || !list_empty(&bd->pending);
}

/*
 * Before the lock is released: whatever has been sent under it, the device interrupts for an
 * answer that is awaited. Not where it is sent: other answers may have come, for which there
 * is no interrupt any more, and who sends does not expect those to be taken.
 */
static void bufshare_listen_locked(struct bufshare_device *bd)
{
	if (bd->silent && bufshare_awaits_locked(bd))
		bufshare_ctrl_drain_locked(bd);
}

/**
 * bufshare_lock() - take bufshare_device.lock; not in interrupts
 * @bd: the device
 */
void bufshare_lock(struct bufshare_device *bd)
	__acquires(&bd->lock)
{
	spin_lock_irq(&bd->lock);
}

/**
 * bufshare_unlock() - release bufshare_device.lock, then notify the device
 * @bd: the device
 *
 * Answers may be taken before.
 */
void bufshare_unlock(struct bufshare_device *bd)
	__releases(&bd->lock)
{
	struct virtqueue *ctrl, *eventq;

	bufshare_listen_locked(bd);
	bufshare_take_kicks_locked(bd, &ctrl, &eventq);
	spin_unlock_irq(&bd->lock);
	bufshare_notify(ctrl, eventq);
}

/**
 * bufshare_interrupt() - take what the device has given, in an interrupt
 * @bd: the device
 * @take_locked: called with bufshare_device.lock held; then the device is notified
 */
void bufshare_interrupt(struct bufshare_device *bd,
			void (*take_locked)(struct bufshare_device *bd))
{
	struct virtqueue *ctrl, *eventq;
	unsigned long flags;

	spin_lock_irqsave(&bd->lock, flags);
	take_locked(bd);
	bufshare_listen_locked(bd);
	bufshare_take_kicks_locked(bd, &ctrl, &eventq);
	spin_unlock_irqrestore(&bd->lock, flags);
	bufshare_notify(ctrl, eventq);
}

/**
 * bufshare_notified() - wait until nobody notifies the device any more
 * @bd: the device, to which nothing is sent any more
 */
void bufshare_notified(struct bufshare_device *bd)
{
	WARN_ON_ONCE(READ_ONCE(bd->alive));
	synchronize_rcu();
}

/**
 * bufshare_req_alloc() - make a request
 * @type: VIRTIO_BUFSHARE_CMD_*
 * @len: bytes of the request's structure, zeroed here but for its header
 * @more: bytes that follow it, zeroed
 * @resp_len: bytes of the answer's structure
 * @resp_more: bytes of room for what follows that
 *
 * Return: the request, one reference, or NULL.
 */
struct bufshare_req *bufshare_req_alloc(u32 type, size_t len, size_t more, size_t resp_len,
					size_t resp_more)
{
	struct virtio_bufshare_req *hdr;
	struct bufshare_req *req;

	req = kzalloc_obj(*req);
	if (!req)
		return NULL;
	/* The device reads and writes these: plain kmalloc memory, never the stack. */
	req->out = kzalloc(len + more, GFP_KERNEL);
	req->in = kzalloc(resp_len + resp_more, GFP_KERNEL);
	if (!req->out || !req->in) {
		kfree(req->out);
		kfree(req->in);
		kfree(req);
		return NULL;
	}
	kref_init(&req->ref);
	INIT_LIST_HEAD(&req->node);
	init_completion(&req->done);
	req->out_len = len + more;
	req->in_len = resp_len + resp_more;
	req->resp_len = resp_len;
	req->fail_len = sizeof(struct virtio_bufshare_resp);
	hdr = req->out;
	hdr->type = cpu_to_le32(type);
	hdr->length = cpu_to_le32(len);
	hdr->resp_length = cpu_to_le32(resp_len);
	return req;
}

/**
 * bufshare_batch_alloc() - make a request that is a batch, of one entry
 * @type: VIRTIO_BUFSHARE_CMD_UNMAP, _DETACH or _RETURN
 * @entry_size: bytes of the entry; it follows the structure, zeroed
 *
 * Return: the request, one reference, or NULL.
 */
struct bufshare_req *bufshare_batch_alloc(u32 type, size_t entry_size)
{
	struct virtio_bufshare_batch *out;
	struct bufshare_req *req;

	req = bufshare_req_alloc(type, sizeof(*out), entry_size,
				 sizeof(struct virtio_bufshare_batch_resp), 0);
	if (!req)
		return NULL;
	/* A refusal says which entry it is about, unless it is about the request itself. */
	req->fail_len = sizeof(struct virtio_bufshare_batch_resp);
	out = req->out;
	out->count = cpu_to_le32(1);
	out->entry_size = cpu_to_le32(entry_size);
	return req;
}

static void bufshare_req_free(struct kref *ref)
{
	struct bufshare_req *req = container_of(ref, struct bufshare_req, ref);

	kfree(req->out);
	kfree(req->in);
	kfree(req);
}

/**
 * bufshare_req_put() - drop a reference of a request
 * @req: the request, may be NULL
 */
void bufshare_req_put(struct bufshare_req *req)
{
	if (req)
		kref_put(&req->ref, bufshare_req_free);
}

/**
 * bufshare_max_slow() - how many slow requests the device may have at a time
 * @vq: the control queue
 *
 * A request takes two descriptors where there are no indirect ones. A quarter of
 * those places is left to requests that other VMs cannot hold up.
 *
 * Return: the number, not zero.
 */
u32 bufshare_max_slow(struct virtqueue *vq)
{
	u32 places = virtqueue_get_vring_size(vq) / 2;

	return max(places - places / 4, 1U);
}

/* The end of a request, whatever it was. Drops the queue's reference. */
static void bufshare_finish_locked(struct bufshare_device *bd, struct bufshare_req *req, int err)
{
	list_del_init(&req->node);
	if (!req->unawaited && req->state == BUFSHARE_REQ_INFLIGHT)
		bd->awaited--;
	if (req->slow && req->state == BUFSHARE_REQ_INFLIGHT) {
		bd->slow--;
		if (!list_empty(&bd->parked))
			list_move(bd->parked.next, &bd->pending);
	}
	req->err = err;
	req->state = BUFSHARE_REQ_DONE;
	if (req->orphan)
		bd->stats.orphans++;
	/* Waiters take the lock; first, as it may be sent once more from here on. */
	complete(&req->done);
	if (req->complete)
		req->complete(bd, req);
	bufshare_req_put(req);
}

/**
 * bufshare_answer_malformed_locked() - an answer makes no sense
 * @bd: the device; its lock is held
 * @req: the request
 * @used: bytes of the answer
 */
void bufshare_answer_malformed_locked(struct bufshare_device *bd, const struct bufshare_req *req,
				      u32 used)
{
	const struct virtio_bufshare_req *out = req->out;

	bd->stats.malformed++;
	bd->complaints.answers++;
	bd->complaints.answer_type = le32_to_cpu(out->type);
	bd->complaints.answer_used = used;
	bufshare_complain_locked(bd);
}

/* Judge the answer that the device says it has written. */
static int bufshare_parse_locked(struct bufshare_device *bd, struct bufshare_req *req, u32 used)
{
	const struct virtio_bufshare_req *out = req->out;
	struct virtio_bufshare_resp resp;
	u32 status, length;

	if (used < sizeof(resp) || used > req->in_len)
		goto malformed;
	memcpy(&resp, req->in, sizeof(resp));
	if (resp.type != out->type || resp.cookie != out->cookie || resp.flags)
		goto malformed;
	status = le32_to_cpu(resp.status);
	length = le32_to_cpu(resp.length);
	if (status == VIRTIO_BUFSHARE_S_OK) {
		/* Who asked for more than the structure looks how much more there is. */
		if (length != req->resp_len || used < length)
			goto malformed;
		req->used = used;
		return 0;
	}
	if (used != length || (length != sizeof(resp) && length != req->fail_len))
		goto malformed;
	req->status = status;
	req->used = used;
	bd->stats.refused++;
	dev_dbg(bd->dev, "command %#x: the host answered with status %u\n",
		le32_to_cpu(out->type), status);
	return bufshare_status_errno(status);

malformed:
	bufshare_answer_malformed_locked(bd, req, used);
	return -EPROTO;
}

/* Move requests to the queue while it has room. */
static void bufshare_pump_locked(struct bufshare_device *bd)
{
	struct scatterlist out, in, *sgs[] = { &out, &in };
	struct bufshare_req *req;
	bool kick = false;
	int ret;

	/* A complete() callback below may send: the loop takes that, too. */
	if (bd->pumping)
		return;
	bd->pumping = true;
	while (bd->ctrl && (req = list_first_entry_or_null(&bd->pending, struct bufshare_req,
							   node))) {
		if (req->slow && bd->slow >= bd->max_slow) {
			list_move_tail(&req->node, &bd->parked);
			continue;
		}
		sg_init_one(&out, req->out, req->out_len);
		sg_init_one(&in, req->in, req->in_len);
		ret = virtqueue_add_sgs(bd->ctrl, sgs, 1, 1, req, GFP_ATOMIC);
		if (!ret) {
			req->state = BUFSHARE_REQ_INFLIGHT;
			req->reached = true;
			bd->slow += req->slow;
			bd->awaited += !req->unawaited;
			list_move_tail(&req->node, &bd->inflight);
			bd->stats.requests++;
			kick = true;
			continue;
		}
		/* The next answer makes room, if there will be one. */
		if (ret != -EIO && !list_empty(&bd->inflight))
			break;
		bd->complaints.ctrl_err = ret;
		bufshare_complain_locked(bd);
		bufshare_finish_locked(bd, req, -EIO);
	}
	bd->pumping = false;
	if (kick)
		bd->kick_ctrl |= virtqueue_kick_prepare(bd->ctrl);
}

/* Have a request that is done as it was when it was new, but for what it asks for. */
static void bufshare_rearm_locked(struct bufshare_req *req)
{
	req->reached = false;
	req->orphan = false;
	req->used = 0;
	req->err = 0;
	req->status = VIRTIO_BUFSHARE_S_OK;
	memset(req->in, 0, req->in_len);
	reinit_completion(&req->done);
}

/**
 * bufshare_send_locked() - give a request to the device, as soon as it has room
 * @bd: the device; its lock is held
 * @req: the request, new, or done and to be sent once more; nobody waits for it any more
 *
 * Return: 0, then complete() and the completion will come; or -ENODEV, then
 * nothing has happened.
 */
int bufshare_send_locked(struct bufshare_device *bd, struct bufshare_req *req)
{
	struct virtio_bufshare_req *hdr = req->out;

	lockdep_assert_held(&bd->lock);
	if (!bd->alive || (bd->leaving && !req->closing))
		return -ENODEV;
	if (req->state == BUFSHARE_REQ_DONE)
		bufshare_rearm_locked(req);
	req->cookie = ++bd->cookie;
	hdr->cookie = cpu_to_le64(req->cookie);
	kref_get(&req->ref);
	req->state = BUFSHARE_REQ_PENDING;
	list_add_tail(&req->node, &bd->pending);
	bufshare_pump_locked(bd);
	return 0;
}

/**
 * bufshare_wait_for() - wait for the end of a request, for so long
 * @bd: the device
 * @req: the request, sent
 * @time: jiffies, not zero
 * @killable: a signal that kills us ends it, too
 * @status: where to put the answer's status, may be NULL
 *
 * Unless this returns 0, the answer's room may still be the device's.
 *
 * Return: 0 or a negative errno: the answer's, -EINTR: we were killed,
 * -ETIMEDOUT, -ENODEV: the device has gone.
 */
int bufshare_wait_for(struct bufshare_device *bd, struct bufshare_req *req, long time,
		      bool killable, u32 *status)
{
	bool timed_out = false;
	long left;
	int ret;

	if (killable)
		left = wait_for_completion_killable_timeout(&req->done, time);
	else
		left = wait_for_completion_timeout(&req->done, time);

	bufshare_lock(bd);
	if (req->state == BUFSHARE_REQ_DONE) {
		ret = req->err;
		if (status)
			*status = req->status;
	} else {
		if (!bd->alive)
			ret = -ENODEV;
		else
			ret = left ? -EINTR : -ETIMEDOUT;
		if (ret == -ETIMEDOUT) {
			bd->stats.timeouts++;
			timed_out = true;
		}
		if (req->state == BUFSHARE_REQ_PENDING)
			bufshare_finish_locked(bd, req, ret);
		else
			req->orphan = true;
	}
	bufshare_unlock(bd);
	if (timed_out)
		dev_err_ratelimited(bd->dev, "the host does not answer\n");
	return ret;
}

/**
 * bufshare_wait() - wait for the end of a request
 * @bd: the device
 * @req: the request, sent
 * @status: where to put the answer's status, may be NULL
 *
 * Return: as bufshare_wait_for().
 */
int bufshare_wait(struct bufshare_device *bd, struct bufshare_req *req, u32 *status)
{
	return bufshare_wait_for(bd, req, bufshare_timeout(), true, status);
}

/**
 * bufshare_call() - send a request and wait for its end
 * @bd: the device
 * @req: the request, new
 * @status: where to put the answer's status, may be NULL
 *
 * Return: as bufshare_wait_for().
 */
int bufshare_call(struct bufshare_device *bd, struct bufshare_req *req, u32 *status)
{
	int ret;

	bufshare_lock(bd);
	ret = bufshare_send_locked(bd, req);
	bufshare_unlock(bd);
	return ret ?: bufshare_wait(bd, req, status);
}

/**
 * bufshare_fail_locked() - no further request; whoever waits may go
 * @bd: the device; its lock is held
 *
 * What the device has stays its own until a reset.
 */
void bufshare_fail_locked(struct bufshare_device *bd)
{
	struct bufshare_req *req, *next;
	struct bufshare_imp *imp;
	struct bufshare_exp *exp;

	lockdep_assert_held(&bd->lock);
	WRITE_ONCE(bd->alive, false);
	list_splice_tail_init(&bd->parked, &bd->pending);
	list_for_each_entry_safe(req, next, &bd->pending, node)
		bufshare_finish_locked(bd, req, -ENODEV);
	list_for_each_entry(req, &bd->inflight, node)
		complete(&req->done);
	list_for_each_entry(imp, &bd->imports, node)
		wake_up_all(&imp->window.wait);
	wake_up_all(&bd->idle);
	list_for_each_entry(exp, &bd->exports, node)
		wake_up_all(&exp->wait);
	/* Readers, when they have been given what there is. */
	queue_work(bd->wq, &bd->deliver_work);
}

static void bufshare_take_answers_locked(struct bufshare_device *bd)
{
	struct bufshare_req *req;
	unsigned int used;

	while (bd->ctrl && (req = virtqueue_get_buf(bd->ctrl, &used)))
		bufshare_finish_locked(bd, req, bufshare_parse_locked(bd, req, used));
}

/**
 * bufshare_ctrl_drain_locked() - take all answers that are there
 * @bd: the device; its lock is held
 */
void bufshare_ctrl_drain_locked(struct bufshare_device *bd)
{
	lockdep_assert_held(&bd->lock);
	if (!bd->ctrl)
		return;
	do {
		virtqueue_disable_cb(bd->ctrl);
		bufshare_take_answers_locked(bd);
		bd->silent = !bufshare_awaits_locked(bd);
	} while (!bd->silent && !virtqueue_enable_cb(bd->ctrl));

	if (virtqueue_is_broken(bd->ctrl) && bd->alive) {
		bd->complaints.ctrl_broken = true;
		bufshare_fail_locked(bd);
	}
	bufshare_pump_locked(bd);
}

/**
 * bufshare_ctrl_done() - interrupt of the control queue, maybe a spurious one
 * @vq: the queue
 */
void bufshare_ctrl_done(struct virtqueue *vq)
{
	bufshare_interrupt(vq->vdev->priv, bufshare_ctrl_drain_locked);
}

/**
 * bufshare_cancel_all() - end every request of a device that has been reset
 * @bd: the device, not alive
 *
 * What it answered before the reset counts.
 */
void bufshare_cancel_all(struct bufshare_device *bd)
{
	struct bufshare_req *req;

	bufshare_lock(bd);
	bufshare_take_answers_locked(bd);
	while (bd->ctrl && virtqueue_detach_unused_buf(bd->ctrl))
		;
	while ((req = list_first_entry_or_null(&bd->inflight, struct bufshare_req, node)))
		bufshare_finish_locked(bd, req, -ENODEV);
	while (bd->eventq && virtqueue_detach_unused_buf(bd->eventq))
		;
	bd->ctrl = NULL;
	bd->eventq = NULL;
	bufshare_unlock(bd);
}
