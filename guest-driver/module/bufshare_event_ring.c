// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_event_ring.c - events that wait for their reader
 *
 * An event that finds no room is counted, and an OVERFLOW event of our own (seq 0)
 * reports it in the place where the events are missing. An OVERFLOW event that finds none
 * counts as those that it reports.
 *
 * What is news of one file alone, as a frame that it was given, is in a list, and not lost.
 */
#include <linux/limits.h>
#include <linux/overflow.h>
#include <linux/poll.h>
#include <linux/string.h>
#include <linux/wait.h>

#include "bufshare_priv.h"

/**
 * bufshare_overflow() - make an event of our own: others are missing here
 * @ev: the event
 * @missing: how many, 0: unknown
 */
void bufshare_overflow(struct bufshare_event *ev, u64 missing)
{
	memset(ev, 0, sizeof(*ev));
	ev->type = VIRTIO_BUFSHARE_EVT_OVERFLOW;
	ev->length = sizeof(*ev);
	ev->value = missing;
}

static void bufshare_ring_append_locked(struct bufshare_ring *ring, const struct bufshare_event *ev)
{
	ring->events[(ring->head + ring->count) % BUFSHARE_RING_EVENTS] = *ev;
	ring->count++;
}

/* What is to be reported of dropped events. */
static void bufshare_ring_gap(const struct bufshare_ring *ring, struct bufshare_event *ev)
{
	bufshare_overflow(ev, ring->dropped == BUFSHARE_DROPPED_UNKNOWN ? 0 : ring->dropped);
}

/* Returns how many events are lost by it that were not before. */
static u32 bufshare_ring_drop_locked(struct bufshare_ring *ring, const struct bufshare_event *ev)
{
	bool reports = ev->type == VIRTIO_BUFSHARE_EVT_OVERFLOW;
	u64 missing = reports ? ev->value : 1;

	if (!missing || check_add_overflow(ring->dropped, missing, &ring->dropped))
		ring->dropped = BUFSHARE_DROPPED_UNKNOWN;
	return !reports;
}

/**
 * bufshare_ring_push_locked() - add an event
 * @ring: the ring; its owner's lock is held
 * @ev: the event
 *
 * Return: how many events are lost by it that were not before, 0 or 1.
 */
u32 bufshare_ring_push_locked(struct bufshare_ring *ring, const struct bufshare_event *ev)
{
	struct bufshare_event gap;

	if (ring->dropped && ring->count + 2 <= BUFSHARE_RING_EVENTS) {
		bufshare_ring_gap(ring, &gap);
		bufshare_ring_append_locked(ring, &gap);
		ring->dropped = 0;
	}
	if (ring->dropped || ring->count == BUFSHARE_RING_EVENTS)
		return bufshare_ring_drop_locked(ring, ev);
	bufshare_ring_append_locked(ring, ev);
	return 0;
}

/**
 * bufshare_ring_peek_locked() - look at the oldest event
 * @ring: the ring; its owner's lock is held
 * @ev: where to put it
 *
 * Return: false if there is none.
 */
bool bufshare_ring_peek_locked(const struct bufshare_ring *ring, struct bufshare_event *ev)
{
	if (ring->count)
		*ev = ring->events[ring->head];
	else if (ring->dropped)
		bufshare_ring_gap(ring, ev);
	else
		return false;
	return true;
}

/**
 * bufshare_ring_consume_locked() - remove the event that was looked at
 * @ring: the ring; its owner's lock is held
 *
 * Others may have come since. If what was looked at is what was dropped, it was the first
 * of them that put it into the ring, as its oldest event.
 */
void bufshare_ring_consume_locked(struct bufshare_ring *ring)
{
	if (ring->count) {
		ring->head = (ring->head + 1) % BUFSHARE_RING_EVENTS;
		ring->count--;
	} else {
		ring->dropped = 0;
	}
}

/**
 * bufshare_report_locked() - have one file read something that is not lost
 * @bf: the file; its device's lock is held
 * @news: what it is
 * @type: VIRTIO_BUFSHARE_EVT_PUSHED or _RETURNED
 * @seq: number of the event that brought it
 */
void bufshare_report_locked(struct bufshare_file *bf, struct bufshare_news *news, u32 type,
			    u64 seq)
{
	lockdep_assert_held(&bf->bd->lock);
	news->type = type;
	news->seq = seq;
	list_add_tail(&news->node, &bf->news);
	wake_up_interruptible_poll(&bf->wait, EPOLLIN | EPOLLRDNORM);
}
