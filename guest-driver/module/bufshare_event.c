// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_event.c - from the event queue to the queues of open files
 *
 * A buffer goes back to the device as soon as it has been copied. An event
 * that a file has no room for is counted, and an OVERFLOW event of our own
 * (seq 0) reports it in the place where the events are missing.
 */
#include <linux/errno.h>
#include <linux/poll.h>
#include <linux/scatterlist.h>

#include "bufshare_priv.h"

#define BUFSHARE_EVENTS_PER_RUN		64

/**
 * bufshare_event_done() - interrupt of the event queue, maybe a spurious one
 * @vq: the queue
 */
void bufshare_event_done(struct virtqueue *vq)
{
	struct bufshare_device *bd = vq->vdev->priv;

	virtqueue_disable_cb(vq);
	queue_work(bd->wq, &bd->event_work);
}

static int bufshare_event_add_locked(struct bufshare_device *bd, struct virtio_bufshare_event *buf)
{
	struct scatterlist sg;

	memset(buf, 0, sizeof(*buf));
	sg_init_one(&sg, buf, sizeof(*buf));
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
		ret = bufshare_event_add_locked(bd, &bd->event_bufs[i]);
	bd->kick_eventq |= virtqueue_kick_prepare(bd->eventq);
	bufshare_unlock(bd);
	return ret;
}

static void bufshare_file_append_locked(struct bufshare_file *bf, const struct bufshare_event *ev)
{
	bf->ring[(bf->head + bf->count) % BUFSHARE_FILE_EVENTS] = *ev;
	bf->count++;
}

/* Returns how many events the file has lost by this one. */
static u32 bufshare_file_push(struct bufshare_file *bf, const struct bufshare_event *ev)
{
	struct bufshare_event gap = {
		.type = VIRTIO_BUFSHARE_EVT_OVERFLOW,
	};
	u32 lost = 0;

	spin_lock(&bf->lock);
	if (bf->dropped && bf->count + 2 <= BUFSHARE_FILE_EVENTS) {
		gap.value = bf->dropped;
		bufshare_file_append_locked(bf, &gap);
		bf->dropped = 0;
	}
	if (bf->dropped || bf->count == BUFSHARE_FILE_EVENTS) {
		bf->dropped++;
		lost = 1;
	} else {
		bufshare_file_append_locked(bf, ev);
	}
	spin_unlock(&bf->lock);
	wake_up_interruptible_poll(&bf->wait, EPOLLIN | EPOLLRDNORM);
	return lost;
}

static void bufshare_push(struct bufshare_device *bd, const struct bufshare_event *ev)
{
	struct bufshare_file *bf;
	u32 lost = 0;

	mutex_lock(&bd->files_lock);
	list_for_each_entry(bf, &bd->files, node)
		lost += bufshare_file_push(bf, ev);
	mutex_unlock(&bd->files_lock);
	if (lost) {
		bufshare_lock(bd);
		bd->stats.lost += lost;
		bufshare_unlock(bd);
	}
}

/**
 * bufshare_event_lost() - report to all files that events are missing
 * @bd: the device
 * @lost: how many, 0: unknown
 */
void bufshare_event_lost(struct bufshare_device *bd, u64 lost)
{
	struct bufshare_event ev = {
		.type = VIRTIO_BUFSHARE_EVT_OVERFLOW,
		.value = lost,
	};

	bufshare_lock(bd);
	bd->stats.lost += lost;
	bufshare_unlock(bd);
	bufshare_push(bd, &ev);
}

/**
 * bufshare_files_wake() - make readers and pollers look at the device again
 * @bd: the device
 */
void bufshare_files_wake(struct bufshare_device *bd)
{
	struct bufshare_file *bf;

	mutex_lock(&bd->files_lock);
	list_for_each_entry(bf, &bd->files, node)
		wake_up_all(&bf->wait);
	mutex_unlock(&bd->files_lock);
}

/**
 * bufshare_file_readable() - is there an event
 * @bf: the file
 *
 * Return: true if so.
 */
bool bufshare_file_readable(struct bufshare_file *bf)
{
	return READ_ONCE(bf->count) || READ_ONCE(bf->dropped);
}

/**
 * bufshare_file_peek() - look at the oldest event
 * @bf: the file; its read_lock is held
 * @ev: the event
 *
 * Return: false if there is none.
 */
bool bufshare_file_peek(struct bufshare_file *bf, struct bufshare_event *ev)
{
	bool found = true;

	spin_lock(&bf->lock);
	if (bf->count) {
		*ev = bf->ring[bf->head];
	} else if (bf->dropped) {
		memset(ev, 0, sizeof(*ev));
		ev->type = VIRTIO_BUFSHARE_EVT_OVERFLOW;
		ev->value = bf->dropped;
	} else {
		found = false;
	}
	spin_unlock(&bf->lock);
	return found;
}

/**
 * bufshare_file_consume() - remove the event that bufshare_file_peek() gave
 * @bf: the file; its read_lock is held since then
 * @ev: that event
 */
void bufshare_file_consume(struct bufshare_file *bf, const struct bufshare_event *ev)
{
	spin_lock(&bf->lock);
	/*
	 * What was reported as dropped is no event of the ring, which may have
	 * filled since.
	 */
	if (ev->type == VIRTIO_BUFSHARE_EVT_OVERFLOW && !ev->seq && bf->dropped && !bf->count) {
		bf->dropped -= min(bf->dropped, ev->value);
	} else if (bf->count) {
		bf->head = (bf->head + 1) % BUFSHARE_FILE_EVENTS;
		bf->count--;
	}
	spin_unlock(&bf->lock);
}

static void bufshare_dispatch(struct bufshare_device *bd, const struct virtio_bufshare_event *wire,
			      unsigned int used)
{
	struct bufshare_event ev = {
		.type = le32_to_cpu(wire->type),
		.seq = le64_to_cpu(wire->seq),
		.peer = le64_to_cpu(wire->peer),
		.handle = le64_to_cpu(wire->handle),
		.value = le64_to_cpu(wire->value),
	};
	u64 missing;

	if (used != sizeof(*wire) || wire->flags || ev.type < VIRTIO_BUFSHARE_EVT_PEER_UP ||
	    ev.type > VIRTIO_BUFSHARE_EVT_OVERFLOW) {
		dev_err_ratelimited(bd->dev, "malformed event, type %#x, %u bytes\n",
				    ev.type, used);
		bufshare_lock(bd);
		bd->stats.malformed++;
		bufshare_unlock(bd);
		return;
	}
	memcpy(ev.id.b, wire->id.b, sizeof(ev.id.b));

	missing = ev.seq - bd->event_seq - 1;
	bd->event_seq = ev.seq;
	if (missing) {
		dev_err_ratelimited(bd->dev, "event %llu came after a gap\n", ev.seq);
		/* A number that goes back says nothing of how many. */
		bufshare_event_lost(bd, missing < U32_MAX ? missing : 0);
	}

	bufshare_lock(bd);
	bd->stats.events++;
	/*
	 * An event may be about a buffer whose id or handle is in an answer that came
	 * before it but was not looked at yet. It is there now, as the event has come.
	 */
	bufshare_ctrl_drain_locked(bd);
	if (ev.type == VIRTIO_BUFSHARE_EVT_REVOKED) {
		if (ev.handle)
			bufshare_import_revoked_locked(bd, ev.handle);
		else if (ev.peer == bd->caps.peer_id)
			bufshare_export_revoked_locked(bd, &wire->id);
	}
	bufshare_unlock(bd);

	bufshare_push(bd, &ev);
}

/**
 * bufshare_event_work() - take events
 * @work: bufshare_device.event_work
 */
void bufshare_event_work(struct work_struct *work)
{
	struct bufshare_device *bd = container_of(work, struct bufshare_device, event_work);
	struct virtio_bufshare_event *buf, ev;
	unsigned int used;
	u32 i;

	for (i = 0; i < BUFSHARE_EVENTS_PER_RUN; i++) {
		bufshare_lock(bd);
		if (!bd->alive || !bd->eventq)
			goto gone;
		do {
			virtqueue_disable_cb(bd->eventq);
			buf = virtqueue_get_buf(bd->eventq, &used);
		} while (!buf && !virtqueue_enable_cb(bd->eventq));
		if (!buf) {
			if (virtqueue_is_broken(bd->eventq) && bd->alive) {
				dev_err(bd->dev, "the event queue is broken: the device is not used any more\n");
				bufshare_fail_locked(bd);
				goto gone;
			}
			bufshare_unlock(bd);
			return;
		}
		ev = *buf;
		if (bufshare_event_add_locked(bd, buf))
			dev_err_ratelimited(bd->dev, "an event buffer was lost\n");
		bd->kick_eventq |= virtqueue_kick_prepare(bd->eventq);
		bufshare_unlock(bd);

		bufshare_dispatch(bd, &ev, used);
	}
	/* Others want to run, too. */
	queue_work(bd->wq, &bd->event_work);
	return;

gone:
	bufshare_unlock(bd);
	bufshare_files_wake(bd);
}
