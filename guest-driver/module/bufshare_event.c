// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_event.c - the event queue
 *
 * Intake begins in the queue's interrupt, under bufshare_device.lock, and goes on in a
 * work if there is much to take. It copies an event, does at once what the event says (an
 * import is revoked, an export has ended), puts it into a ring, and gives the buffer back
 * to the device. Delivery to open files is another work, which takes their locks. So
 * nobody who waits for what an event brings waits for a reader of events. Of frames the
 * intake itself wakes the readers: they are few, and each hand-over waits for that.
 */
#include <linux/errno.h>
#include <linux/jiffies.h>
#include <linux/scatterlist.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "bufshare_priv.h"

/* How long a buffer that could not be given back to the device waits for the next time. */
#define BUFSHARE_EVENT_PAUSE	msecs_to_jiffies(100)

static_assert(BUFSHARE_NUM_EVENT_BUFS % BUFSHARE_INTAKE_EVENTS == 0);

/**
 * bufshare_event_free() - free all event buffers
 * @bd: the device, which has none of them
 */
void bufshare_event_free(struct bufshare_device *bd)
{
	u32 i;

	for (i = 0; i < BUFSHARE_NUM_EVENT_BUFS; i++) {
		kfree(bd->event_bufs[i]);
		bd->event_bufs[i] = NULL;
	}
	bd->event_size = 0;
}

/**
 * bufshare_event_alloc() - have event buffers of the size that the device says
 * @bd: the device, which has none of them
 *
 * Return: 0 or a negative errno.
 */
int bufshare_event_alloc(struct bufshare_device *bd)
{
	u32 i;

	if (bd->event_size == bd->caps.event_size)
		return 0;
	bufshare_event_free(bd);
	for (i = 0; i < BUFSHARE_NUM_EVENT_BUFS; i++) {
		bd->event_bufs[i] = kzalloc(bd->caps.event_size, GFP_KERNEL);
		if (!bd->event_bufs[i]) {
			bufshare_event_free(bd);
			return -ENOMEM;
		}
	}
	bd->event_size = bd->caps.event_size;
	return 0;
}

static int bufshare_event_add_locked(struct bufshare_device *bd, void *buf)
{
	struct scatterlist sg;

	/*
	 * So much of it is read, whatever the device writes. Of a frame it is as much as the
	 * device says: what it did not write is what it gave before.
	 */
	memset(buf, 0, sizeof(struct virtio_bufshare_event));
	sg_init_one(&sg, buf, bd->event_size);
	return virtqueue_add_inbuf(bd->eventq, &sg, 1, buf, GFP_ATOMIC);
}

/**
 * bufshare_event_fill() - give all event buffers to the device, which has none
 * @bd: the device
 *
 * Return: 0 or a negative errno.
 */
int bufshare_event_fill(struct bufshare_device *bd)
{
	u32 i, n;
	int ret = 0;

	bufshare_lock(bd);
	n = min_t(u32, virtqueue_get_vring_size(bd->eventq), BUFSHARE_NUM_EVENT_BUFS);
	for (i = 0; i < n && !ret; i++)
		ret = bufshare_event_add_locked(bd, bd->event_bufs[i]);
	bd->kick_eventq |= virtqueue_kick_prepare(bd->eventq);
	bufshare_unlock(bd);
	return ret;
}

static void bufshare_event_malformed_locked(struct bufshare_device *bd,
					    const struct virtio_bufshare_event *wire, u32 used)
{
	bd->stats.malformed++;
	bd->complaints.malformed++;
	bd->complaints.type = le32_to_cpu(wire->type);
	bd->complaints.length = le32_to_cpu(wire->length);
	bd->complaints.used = used;
	bufshare_complain_locked(bd);
}

/*
 * What the device has written into a buffer, used bytes, as far as this driver knows it.
 * An event that is shorter counts as filled with zeroes. One of a type that is unknown here
 * may be known to programs. False: it makes no sense.
 */
static bool bufshare_event_parse_locked(struct bufshare_device *bd, const void *buf, u32 used,
					struct virtio_bufshare_event *wire)
{
	const u32 least = offsetofend(struct virtio_bufshare_event, seq);
	u32 length;

	/* Once: the device may write there again. */
	memcpy(wire, buf, sizeof(*wire));
	length = le32_to_cpu(wire->length);
	if (used > bd->event_size || length > used || length < least) {
		bufshare_event_malformed_locked(bd, wire, used);
		return false;
	}
	if (length < sizeof(*wire))
		memset((void *)wire + length, 0, sizeof(*wire) - length);
	return true;
}

/* Have an event delivered. */
static void bufshare_event_put_locked(struct bufshare_device *bd, const struct bufshare_event *ev)
{
	bd->stats.lost += bufshare_ring_push_locked(&bd->events, ev);
	queue_work(bd->wq, &bd->deliver_work);
}

/**
 * bufshare_events_lost_locked() - report to all files that events are missing
 * @bd: the device, bound; its lock is held
 * @lost: how many, 0: unknown
 */
void bufshare_events_lost_locked(struct bufshare_device *bd, u64 lost)
{
	struct bufshare_event ev;

	bufshare_overflow(&ev, lost);
	bd->stats.lost += lost;
	bufshare_event_put_locked(bd, &ev);
}

/* Do at once what an event says. */
static void bufshare_event_apply_locked(struct bufshare_device *bd,
					const struct virtio_bufshare_event *wire, const void *buf)
{
	struct bufshare_event ev;
	struct bufshare_imp *imp;
	struct bufshare_exp *exp;
	u64 missing;

	bufshare_event_from_wire(&ev, wire);
	missing = ev.seq - bd->event_seq - 1;
	bd->event_seq = ev.seq;
	if (missing) {
		bd->complaints.gaps++;
		bd->complaints.seq = ev.seq;
		/* A number that goes back says nothing of how many. */
		bufshare_events_lost_locked(bd, missing < U32_MAX ? missing : 0);
	}

	bd->stats.events++;
	/*
	 * An event may be about a buffer whose id or handle is in an answer that came
	 * before it but was not looked at yet. It is there now, as the event has come.
	 */
	bufshare_ctrl_drain_locked(bd);
	imp = ev.handle ? bufshare_imp_by_handle_locked(bd, ev.handle) : NULL;
	exp = ev.peer == bd->caps.peer_id ? bufshare_exp_by_id_locked(bd, &wire->id) : NULL;
	switch (ev.type) {
	case VIRTIO_BUFSHARE_EVT_REVOKED:
		if (imp) {
			bufshare_frame_recalled_locked(imp);
			bufshare_imp_revoke_locked(imp);
		} else if (exp && !ev.handle) {
			bufshare_export_revoked_locked(exp);
		}
		break;
	case VIRTIO_BUFSHARE_EVT_PUSHED:
		/* Not for all files, as the next one: each goes to those who asked for it. */
		if (!bufshare_pushed_locked(bd, imp, wire, buf))
			bufshare_event_malformed_locked(bd, wire, le32_to_cpu(wire->length));
		return;
	case VIRTIO_BUFSHARE_EVT_RETURNED:
		if (exp && !bufshare_returned_locked(exp, &ev))
			bufshare_event_malformed_locked(bd, wire, le32_to_cpu(wire->length));
		return;
	case VIRTIO_BUFSHARE_EVT_OVERFLOW:
		bd->stats.lost += ev.value;
		break;
	}
	bufshare_event_put_locked(bd, &ev);
}

/* Give a buffer back, now or later: there may be no memory to map it for the device. */
static void bufshare_event_give_locked(struct bufshare_device *bd, void *buf)
{
	if (!bufshare_event_add_locked(bd, buf))
		return;
	bd->aside[bd->nr_aside++] = buf;
	bd->complaints.aside++;
	bufshare_complain_locked(bd);
	/* Unless it is to run at once: then it sees to it itself. */
	queue_delayed_work(bd->wq, &bd->intake_work, BUFSHARE_EVENT_PAUSE);
}

/* Try it again. False: not with all. */
static bool bufshare_event_give_aside_locked(struct bufshare_device *bd)
{
	if (!bd->alive || !bd->eventq)
		return true;
	while (bd->nr_aside) {
		if (bufshare_event_add_locked(bd, bd->aside[bd->nr_aside - 1]))
			return false;
		bd->nr_aside--;
		bd->kick_eventq |= virtqueue_kick_prepare(bd->eventq);
	}
	return true;
}

/* Take the oldest event and give its buffer back. False: there is none. */
static bool bufshare_event_take_locked(struct bufshare_device *bd)
{
	struct virtio_bufshare_event wire;
	unsigned int used;
	void *buf;

	buf = virtqueue_get_buf(bd->eventq, &used);
	if (!buf)
		return false;
	if (bufshare_event_parse_locked(bd, buf, used, &wire))
		bufshare_event_apply_locked(bd, &wire, buf);
	bufshare_event_give_locked(bd, buf);
	return true;
}

/*
 * Take events, at most so many. If these were not all, the queue's interrupt stays off, and
 * whoever asked has to see to it that the others are taken. Buffers given back are kicked
 * when the lock is released.
 */
static bool bufshare_intake_locked(struct bufshare_device *bd, u32 most)
{
	u32 left = most;

	lockdep_assert_held(&bd->lock);
	/* bufshare_start() takes what has come before. */
	if (!bd->alive || !bd->eventq)
		return false;
	do {
		virtqueue_disable_cb(bd->eventq);
		while (left && bufshare_event_take_locked(bd))
			left--;
	} while (left && !virtqueue_enable_cb(bd->eventq));
	if (left < most)
		bd->kick_eventq |= virtqueue_kick_prepare(bd->eventq);

	if (virtqueue_is_broken(bd->eventq) && bd->alive) {
		bd->complaints.broken = true;
		bufshare_fail_locked(bd);
	}
	return !left;
}

/**
 * bufshare_intake() - take the events that there are
 * @bd: the device
 *
 * As many as it had buffers: those that had come when this was called. It may give as many
 * more in that time as it likes, which the work takes.
 */
void bufshare_intake(struct bufshare_device *bd)
{
	u32 left = BUFSHARE_NUM_EVENT_BUFS;
	bool more;

	do {
		bufshare_lock(bd);
		more = bufshare_intake_locked(bd, BUFSHARE_INTAKE_EVENTS);
		bufshare_unlock(bd);
		left -= BUFSHARE_INTAKE_EVENTS;
	} while (more && left);
	if (more)
		mod_delayed_work(bd->wq, &bd->intake_work, 0);
}

static void bufshare_intake_begin_locked(struct bufshare_device *bd)
{
	if (bufshare_intake_locked(bd, BUFSHARE_INTAKE_EVENTS))
		mod_delayed_work(bd->wq, &bd->intake_work, 0);
}

/**
 * bufshare_event_done() - interrupt of the event queue, maybe a spurious one
 * @vq: the queue
 */
void bufshare_event_done(struct virtqueue *vq)
{
	bufshare_interrupt(vq->vdev->priv, bufshare_intake_begin_locked);
}

/**
 * bufshare_intake_work() - go on where an interrupt has stopped
 * @work: bufshare_device.intake_work
 */
void bufshare_intake_work(struct work_struct *work)
{
	struct bufshare_device *bd = container_of(to_delayed_work(work), struct bufshare_device,
						  intake_work);
	bool given;

	bufshare_lock(bd);
	given = bufshare_event_give_aside_locked(bd);
	bufshare_unlock(bd);
	if (!given)
		queue_delayed_work(bd->wq, &bd->intake_work, BUFSHARE_EVENT_PAUSE);
	bufshare_intake(bd);
}

/* Take the oldest events that were not delivered. Returns how many, 0: there is none. */
static u32 bufshare_deliver_next(struct bufshare_device *bd)
{
	u32 n = 0;

	bufshare_lock(bd);
	while (n < BUFSHARE_DELIVER_EVENTS &&
	       bufshare_ring_peek_locked(&bd->events, &bd->deliver[n])) {
		bufshare_ring_consume_locked(&bd->events);
		n++;
	}
	if (!n && !bd->alive) {
		/* Pairs with bufshare_file_over(): who sees it sees what was pushed before. */
		smp_store_release(&bd->delivered, true);
	}
	bufshare_unlock(bd);
	return n;
}

/**
 * bufshare_deliver_work() - give events to open files, and wake their readers at the end
 * @work: bufshare_device.deliver_work
 */
void bufshare_deliver_work(struct work_struct *work)
{
	struct bufshare_device *bd = container_of(work, struct bufshare_device, deliver_work);
	u32 n;

	bufshare_complain(bd);
	while ((n = bufshare_deliver_next(bd))) {
		bufshare_files_push(bd, bd->deliver, n);
		cond_resched();
	}
	if (READ_ONCE(bd->delivered))
		bufshare_files_wake(bd);
}
