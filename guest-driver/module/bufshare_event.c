// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_event.c - the event queue
 *
 * A buffer goes back to the device as soon as it has been copied.
 */
#include <linux/errno.h>
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
		bufshare_files_lost(bd, missing < U32_MAX ? missing : 0);
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

	bufshare_files_push(bd, &ev);
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
