// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_window.c - the window of an attachment: its buffer's place in the region
 *
 * The buffer is mapped into the window region when it is first needed, and stays there
 * until its dma-buf goes or its exporter revokes it. UNMAP reports to the host that
 * nothing in this VM can touch the window any more. Devices of static importers and
 * kernel mappings cannot be stopped: while there are any, UNMAP is held back, so that
 * the host does not take the place for unused; it takes the memory away without us when
 * its patience ends, and puts zero pages there. Until they are gone, no other buffer is
 * accepted in that place.
 */
#include <linux/bits.h>
#include <linux/bug.h>
#include <linux/errno.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/string.h>

#include "bufshare_priv.h"

/* What may follow which state, but for a reset of the device: see the enum. */
static const u8 bufshare_window_next[] = {
	[BUFSHARE_WINDOW_UNMAPPED] = BIT(BUFSHARE_WINDOW_MAPPING),
	[BUFSHARE_WINDOW_MAPPING] = BIT(BUFSHARE_WINDOW_MAPPED) |
				    BIT(BUFSHARE_WINDOW_UNMAPPED) |
				    BIT(BUFSHARE_WINDOW_UNMAPPING),
	[BUFSHARE_WINDOW_MAPPED] = BIT(BUFSHARE_WINDOW_REVOKING) |
				   BIT(BUFSHARE_WINDOW_UNMAPPING),
	[BUFSHARE_WINDOW_REVOKING] = BIT(BUFSHARE_WINDOW_HELD) |
				     BIT(BUFSHARE_WINDOW_UNMAPPING),
	[BUFSHARE_WINDOW_HELD] = BIT(BUFSHARE_WINDOW_UNMAPPING),
	[BUFSHARE_WINDOW_UNMAPPING] = BIT(BUFSHARE_WINDOW_UNMAPPED),
	[BUFSHARE_WINDOW_LOST] = BIT(BUFSHARE_WINDOW_UNMAPPED),
};

/* Waiters look at it without the lock. */
static void bufshare_window_set_locked(struct bufshare_window *win,
				       enum bufshare_window_state state)
{
	lockdep_assert_held(&win->imp->bd->lock);
	WARN_ON_ONCE(!(bufshare_window_next[win->state] & BIT(state)));
	WRITE_ONCE(win->state, state);
}

/**
 * bufshare_window_init() - make a window that is not mapped
 * @win: the window
 * @imp: the attachment
 *
 * Return: 0 or a negative errno.
 */
int bufshare_window_init(struct bufshare_window *win, struct bufshare_imp *imp)
{
	win->unmap_req = bufshare_batch_alloc(VIRTIO_BUFSHARE_CMD_UNMAP,
					      sizeof(struct virtio_bufshare_window));
	if (!win->unmap_req)
		return -ENOMEM;
	win->unmap_req->closing = true;
	win->imp = imp;
	INIT_LIST_HEAD(&win->stale);
	init_waitqueue_head(&win->wait);
	return 0;
}

/**
 * bufshare_window_destroy() - undo bufshare_window_init()
 * @win: the window, unmapped
 */
void bufshare_window_destroy(struct bufshare_window *win)
{
	bufshare_req_put(win->unmap_req);
}

/**
 * bufshare_window_used_locked() - does something use it that cannot be stopped
 * @win: the window; the device's lock is held
 *
 * Return: true if so.
 */
bool bufshare_window_used_locked(const struct bufshare_window *win)
{
	return win->uses[BUFSHARE_USE_DEVICE] || win->uses[BUFSHARE_USE_KERNEL];
}

static void bufshare_unmap_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	struct bufshare_window *win = req->owner;
	struct bufshare_imp *imp = win->imp;

	/* Whatever the answer, there is nothing else that could be done. */
	if (req->err && bd->alive)
		dev_dbg(bd->dev, "UNMAP: status %u (%d)\n", req->status, req->err);
	bufshare_window_set_locked(win, BUFSHARE_WINDOW_UNMAPPED);
	bufshare_imp_settle_locked(imp);
	wake_up_all(&bd->idle);
	bufshare_imp_put_locked(imp);
}

static void bufshare_window_unmap_locked(struct bufshare_window *win)
{
	struct virtio_bufshare_batch *out = win->unmap_req->out;
	struct virtio_bufshare_window *entry = (void *)(out + 1);
	struct bufshare_imp *imp = win->imp;

	entry->window = cpu_to_le64(win->number);
	win->unmap_req->owner = win;
	win->unmap_req->complete = bufshare_unmap_complete;
	imp->bd->unmaps++;
	kref_get(&imp->ref);
	bufshare_window_set_locked(win, BUFSHARE_WINDOW_UNMAPPING);
	if (bufshare_send_locked(imp->bd, win->unmap_req)) {
		/* The device has gone, and the window with it. */
		bufshare_window_set_locked(win, BUFSHARE_WINDOW_UNMAPPED);
		bufshare_imp_put_locked(imp);	/* not the last: the caller has one */
	}
}

/**
 * bufshare_window_settle_locked() - UNMAP, if nothing can touch it any more
 * @win: the window; the device's lock is held, and the caller has a reference of the
 *	attachment
 */
void bufshare_window_settle_locked(struct bufshare_window *win)
{
	bool ends = win->state == BUFSHARE_WINDOW_HELD;

	/* All user space mappings hold the dma-buf. */
	if (win->state == BUFSHARE_WINDOW_MAPPED || win->state == BUFSHARE_WINDOW_REVOKING)
		ends = win->imp->released;
	if (ends && !bufshare_window_used_locked(win))
		bufshare_window_unmap_locked(win);
}

/**
 * bufshare_window_revoke_locked() - no new use
 * @win: the window; the device's lock is held, and the caller has a reference of the
 *	attachment, which is revoked
 *
 * Return: true if bufshare_window_revoked_locked() is to be called when user space
 * mappings have been ended.
 */
bool bufshare_window_revoke_locked(struct bufshare_window *win)
{
	wake_up_all(&win->wait);
	/* What is not mapped yet will not be, see bufshare_map_result_locked(). */
	if (win->state != BUFSHARE_WINDOW_MAPPED)
		return false;
	bufshare_window_set_locked(win, BUFSHARE_WINDOW_REVOKING);
	if (bufshare_window_used_locked(win))
		list_add_tail(&win->stale, &win->imp->bd->stale);
	return true;
}

/**
 * bufshare_window_revoked_locked() - no user space mapping is left, nor comes
 * @win: the window; the device's lock is held, and the caller has a reference of the
 *	attachment
 */
void bufshare_window_revoked_locked(struct bufshare_window *win)
{
	/* It is not, if the dma-buf went before, or the device. */
	if (win->state != BUFSHARE_WINDOW_REVOKING)
		return;
	bufshare_window_set_locked(win, BUFSHARE_WINDOW_HELD);
	bufshare_window_settle_locked(win);
}

/**
 * bufshare_window_forget_locked() - the device was reset: it knows no window any more
 * @win: the window; the device's lock is held
 *
 * Return: false if something still uses the window all the same.
 */
bool bufshare_window_forget_locked(struct bufshare_window *win)
{
	bool used = bufshare_window_used_locked(win);

	if (used && win->state != BUFSHARE_WINDOW_LOST)
		atomic_inc(&win->imp->shm->lost);
	WRITE_ONCE(win->state, used ? BUFSHARE_WINDOW_LOST : BUFSHARE_WINDOW_UNMAPPED);
	return !used;
}

/* Is the place still used for a buffer that was revoked? */
static bool bufshare_place_stale_locked(const struct bufshare_window *win)
{
	const struct bufshare_window *other;

	list_for_each_entry(other, &win->imp->bd->stale, stale) {
		if (win->offset < other->offset + other->len &&
		    other->offset < win->offset + win->len)
			return true;
	}
	return false;
}

/* Is the place that the host says one that we can take? */
static int bufshare_window_check_locked(const struct bufshare_window *win, u64 len)
{
	struct bufshare_device *bd = win->imp->bd;
	u64 size = bd->shm->size;	/* not the dma-buf's region: it may have gone */

	if (!win->number || len != win->len || !PAGE_ALIGNED(win->offset) ||
	    win->offset > size || len > size - win->offset) {
		bd->stats.malformed++;
		bd->complaints.bad_maps++;
		bd->complaints.map_len = len;
		bd->complaints.map_offset = win->offset;
		bd->complaints.map_region = size;
		bd->complaints.map_window = win->number;
		bufshare_complain_locked(bd);
		return -EPROTO;
	}
	if (bufshare_place_stale_locked(win)) {
		bd->complaints.stale_maps++;
		bufshare_complain_locked(bd);
		return -EPROTO;
	}
	return 0;
}

static int bufshare_map_result_locked(struct bufshare_window *win, struct bufshare_req *req)
{
	struct bufshare_imp *imp = win->imp;
	struct virtio_bufshare_map_resp resp;
	int ret;

	if (req->err) {
		bufshare_window_set_locked(win, BUFSHARE_WINDOW_UNMAPPED);
		return req->status == VIRTIO_BUFSHARE_S_REVOKED ? -ENODEV : req->err;
	}
	memcpy(&resp, req->in, sizeof(resp));
	win->number = le64_to_cpu(resp.window);
	win->offset = le64_to_cpu(resp.shm_offset);
	ret = bufshare_window_check_locked(win, le64_to_cpu(resp.len));
	/* Nobody wants it any more. */
	if (!ret && (imp->revoked || imp->released))
		ret = -ENODEV;
	if (!ret) {
		bufshare_window_set_locked(win, BUFSHARE_WINDOW_MAPPED);
		return 0;
	}
	/* Never used, so nothing to zap: only UNMAP is left to do, of whatever window. */
	bufshare_window_unmap_locked(win);
	return ret;
}

static void bufshare_map_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	struct bufshare_window *win = req->owner;
	struct bufshare_imp *imp = win->imp;

	bd->maps--;
	bd->maps_until = jiffies + bufshare_timeout();
	win->err = bufshare_map_result_locked(win, req);
	bufshare_imp_settle_locked(imp);
	wake_up_all(&win->wait);
	wake_up_all(&bd->idle);
	bufshare_imp_put_locked(imp);
}

static int bufshare_window_start_map_locked(struct bufshare_window *win, struct bufshare_req *req)
{
	struct virtio_bufshare_map *out = req->out;
	struct bufshare_imp *imp = win->imp;
	struct bufshare_device *bd = imp->bd;
	int ret;

	win->until = jiffies + bufshare_timeout();
	if (!bd->maps++)
		bd->maps_until = win->until;
	out->handle = cpu_to_le64(imp->handle);
	out->len = cpu_to_le64(win->len);
	req->owner = win;
	req->complete = bufshare_map_complete;
	kref_get(&imp->ref);
	bufshare_window_set_locked(win, BUFSHARE_WINDOW_MAPPING);
	ret = bufshare_send_locked(bd, req);
	if (ret) {
		bufshare_window_set_locked(win, BUFSHARE_WINDOW_UNMAPPED);
		bufshare_imp_put_locked(imp);	/* not the last: the dma-buf has one */
		bd->maps--;
	}
	return ret;
}

static bool bufshare_window_map_ended(const struct bufshare_window *win)
{
	return READ_ONCE(win->state) != BUFSHARE_WINDOW_MAPPING || READ_ONCE(win->imp->revoked) ||
	       !READ_ONCE(win->imp->bd->alive);
}

static long bufshare_window_wait(struct bufshare_window *win, bool killable, long left)
{
	if (killable)
		return wait_event_killable_timeout(win->wait, bufshare_window_map_ended(win),
						   left);
	return wait_event_idle_timeout(win->wait, bufshare_window_map_ended(win), left);
}

/*
 * How long the MAP under way may still be waited for, jiffies. It has one time, whoever
 * waits: a page fault that waits again after its retry does not begin anew. Callers of
 * kernel mappings hold locks: who wants these waits, too, and then for a MAP of its own.
 * So that a silent host does not have each of them wait in turn, and a suspend for all of
 * them, it has one time to answer any MAP.
 */
static long bufshare_map_time_locked(const struct bufshare_window *win)
{
	return min((long)(win->until - jiffies), (long)(win->imp->bd->maps_until - jiffies));
}

/**
 * bufshare_window_look_locked() - can the buffer be used by whoever needs it there
 * @win: the window; the device's lock is held
 * @asked: the caller has asked for it before
 *
 * Return: 0: it is there. -EINPROGRESS: to be asked or waited for, by
 * bufshare_window_map(). Else that it will not be: -ENODEV, as it was revoked or the
 * device has gone; -ETIMEDOUT; why the host's answer to MAP was of no use, while that is
 * being undone; and for who has asked before, why the host did not map it.
 */
int bufshare_window_look_locked(const struct bufshare_window *win, bool asked)
{
	const struct bufshare_imp *imp = win->imp;

	lockdep_assert_held(&imp->bd->lock);
	if (imp->revoked)
		return -ENODEV;
	if (win->state == BUFSHARE_WINDOW_MAPPED)
		return 0;	/* it can be used even if the host has died */
	if (!imp->bd->alive)
		return -ENODEV;
	switch (win->state) {
	case BUFSHARE_WINDOW_MAPPING:
		return bufshare_map_time_locked(win) > 0 ? -EINPROGRESS : -ETIMEDOUT;
	case BUFSHARE_WINDOW_UNMAPPING:
		return win->err ?: -ENODEV;
	case BUFSHARE_WINDOW_UNMAPPED:
		if (imp->wire != BUFSHARE_IMPORT_ATTACHED || imp->bd->leaving)
			return -ENODEV;
		return asked && win->err ? win->err : -EINPROGRESS;
	default:
		return -ENODEV;
	}
}

/**
 * bufshare_window_map() - have the buffer there: who needs it asks and waits here alone
 * @win: the window; the caller holds the dma-buf
 * @asked: the caller has asked for it before
 * @killable: a signal that kills us ends the wait
 *
 * Who calls it holds none of the kernel's locks where that can be avoided. The dma-buf
 * core calls attach and begin_cpu_access without the reservation lock ("locking
 * convention" in its documentation), and page faults release the mmap_lock. What is left
 * is a kernel mapping without an attachment, which has the reservation lock, and a page
 * fault that may not be retried, which has the mmap_lock for reading.
 *
 * Return: as bufshare_window_look_locked(), but not -EINPROGRESS; -EINTR: we were
 * killed; -ENOMEM.
 */
int bufshare_window_map(struct bufshare_window *win, bool asked, bool killable)
{
	struct bufshare_device *bd = win->imp->bd;
	struct bufshare_req *req = NULL;
	long left;
	int ret;

	bufshare_lock(bd);
	while ((ret = bufshare_window_look_locked(win, asked)) == -EINPROGRESS) {
		if (win->state == BUFSHARE_WINDOW_UNMAPPED && !req) {
			bufshare_unlock(bd);
			req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_MAP,
						 sizeof(struct virtio_bufshare_map), 0,
						 sizeof(struct virtio_bufshare_map_resp), 0);
			bufshare_lock(bd);
			if (req)
				continue;
			/* For a page fault that asks again. */
			ret = -ENOMEM;
			if (win->state == BUFSHARE_WINDOW_UNMAPPED)
				win->err = ret;
			break;
		}
		if (win->state == BUFSHARE_WINDOW_UNMAPPED) {
			ret = bufshare_window_start_map_locked(win, req);
			if (ret)
				break;
			bufshare_req_put(req);
			req = NULL;
		}
		/* If this waiter leaves, the answer is still used: see map_complete(). */
		asked = true;
		left = max(bufshare_map_time_locked(win), 1L);
		bufshare_unlock(bd);
		left = bufshare_window_wait(win, killable, left);
		bufshare_lock(bd);
		ret = -EINTR;
		if (left < 0)
			break;
		/* The time may be over, or longer than it was: the host answered another. */
	}
	if (ret == -ETIMEDOUT)
		bd->stats.timeouts++;
	bufshare_unlock(bd);
	bufshare_req_put(req);
	return ret;
}

/**
 * bufshare_window_use() - count a use that cannot be stopped, unless it is too late
 * @win: the window; the caller holds the dma-buf
 * @use: what it is
 *
 * Return: 0, then bufshare_window_unuse() is to follow, or -ENODEV.
 */
int bufshare_window_use(struct bufshare_window *win, enum bufshare_use use)
{
	struct bufshare_device *bd = win->imp->bd;
	int ret = -ENODEV;

	bufshare_lock(bd);
	if (win->state == BUFSHARE_WINDOW_MAPPED) {
		win->uses[use]++;
		ret = 0;
	}
	bufshare_unlock(bd);
	return ret;
}

/**
 * bufshare_window_unuse() - the end of what bufshare_window_use() counted
 * @win: the window; the caller holds the dma-buf
 * @use: what it was
 */
void bufshare_window_unuse(struct bufshare_window *win, enum bufshare_use use)
{
	struct bufshare_imp *imp = win->imp;
	struct bufshare_device *bd = imp->bd;

	bufshare_lock(bd);
	win->uses[use]--;
	if (!bufshare_window_used_locked(win))
		list_del_init(&win->stale);
	if (win->state == BUFSHARE_WINDOW_LOST && !bufshare_window_used_locked(win)) {
		bufshare_window_set_locked(win, BUFSHARE_WINDOW_UNMAPPED);
		atomic_dec(&imp->shm->lost);
		/* Nothing leads there any more, as in bufshare_imports_gone(). */
		kref_get(&imp->ref);
		bufshare_device_get(bd);
		queue_work(bufshare_release_wq, &imp->drop_work);
	}
	bufshare_imp_settle_locked(imp);
	bufshare_unlock(bd);
}

/**
 * bufshare_window_piece() - where it is, while it is there
 * @win: the window, mapped or used
 * @piece: where to put it
 */
void bufshare_window_piece(const struct bufshare_window *win, struct bufshare_piece *piece)
{
	piece->page = pfn_to_page(PHYS_PFN(win->imp->shm->start + win->offset));
	piece->nr = win->len >> PAGE_SHIFT;
	piece->first = 0;
}
