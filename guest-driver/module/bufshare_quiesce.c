// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_quiesce.c - QUIESCE: nothing of this VM writes to memory of ALLOC
 *
 * That is a promise to the host, of each export of the memory. It is kept from before
 * the first request on until the host has answered for all of them that it does not
 * rely on it any more: an answer to QUIESCE ACTIVE or to UNEXPORT. The end of a reset
 * says so, too. A host that does not answer has the memory stay quiesced.
 *
 * Nothing uses the memory meanwhile. Page table entries of programs were zapped, after the
 * faults that had not seen it were waited out. What cannot be stopped, mappings for
 * devices and for the kernel, is counted, and there is none. Whatever comes then asks the
 * host to end it, and waits for the answer. That never waits for another VM, so it may
 * be waited for under a reservation lock. All waiters share one time, so that they do
 * not wait for a silent host in turn.
 */
#include <linux/errno.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

#include "bufshare_priv.h"

/**
 * bufshare_quiesce_init() - memory that nobody has exported yet
 * @mem: the memory
 */
void bufshare_quiesce_init(struct bufshare_mem *mem)
{
	init_rwsem(&mem->fault_sem);
	spin_lock_init(&mem->lock);
	INIT_LIST_HEAD(&mem->exports);
	init_waitqueue_head(&mem->wait);
}

/* One reason less that nothing uses the memory. */
static void bufshare_quiesce_drop_locked(struct bufshare_mem *mem)
{
	lockdep_assert_held(&mem->lock);
	WRITE_ONCE(mem->quiesced, mem->quiesced - 1);
	if (!mem->quiesced)
		WRITE_ONCE(mem->resuming, false);
	wake_up_all(&mem->wait);
}

/* The host does not rely on an export any more. */
static void bufshare_quiesce_ended_locked(struct bufshare_exp *exp)
{
	if (!exp->quiesced)
		return;
	exp->quiesced = false;
	bufshare_quiesce_drop_locked(exp->mem);
}

/**
 * bufshare_quiesce_add() - there is another export of the memory
 * @exp: the export, new
 * @mem: the memory
 */
void bufshare_quiesce_add(struct bufshare_exp *exp, struct bufshare_mem *mem)
{
	exp->mem = mem;
	spin_lock_irq(&mem->lock);
	list_add_tail(&exp->in_mem, &mem->exports);
	spin_unlock_irq(&mem->lock);
}

/**
 * bufshare_quiesce_del_locked() - nobody reaches the memory by an export any more
 * @exp: the export; bufshare_device.lock of its device is held
 */
void bufshare_quiesce_del_locked(struct bufshare_exp *exp)
{
	struct bufshare_mem *mem = exp->mem;

	lockdep_assert_held(&exp->bd->lock);
	if (!mem)
		return;
	spin_lock(&mem->lock);
	list_del(&exp->in_mem);
	if (exp->quiesce_req) {
		exp->quiesce_req->owner = NULL;
		exp->quiesce_req = NULL;
		WRITE_ONCE(mem->asked, mem->asked - 1);
		wake_up_all(&mem->wait);
	}
	bufshare_quiesce_ended_locked(exp);
	spin_unlock(&mem->lock);
	exp->mem = NULL;
}

/**
 * bufshare_quiesce_lapse() - the device was reset: the host relies on nothing any more
 * @bd: the device, not alive; all its requests have ended
 */
void bufshare_quiesce_lapse(struct bufshare_device *bd)
{
	struct bufshare_exp *exp;

	bufshare_lock(bd);
	list_for_each_entry(exp, &bd->exports, node) {
		if (!exp->mem)
			continue;
		spin_lock(&exp->mem->lock);
		bufshare_quiesce_ended_locked(exp);
		spin_unlock(&exp->mem->lock);
	}
	bufshare_unlock(bd);
}

/**
 * bufshare_quiesce_unexport_mode_locked() - how an export is to be ended
 * @exp: the export; bufshare_device.lock of its device is held
 *
 * The host takes a buffer for quiesced if it said so, and was asked for nothing else since.
 *
 * Return: VIRTIO_BUFSHARE_UNEXPORT_QUIESCED or VIRTIO_BUFSHARE_UNEXPORT_FORCED.
 */
u32 bufshare_quiesce_unexport_mode_locked(struct bufshare_exp *exp)
{
	lockdep_assert_held(&exp->bd->lock);
	return exp->quiesced && !exp->quiesce_req ? VIRTIO_BUFSHARE_UNEXPORT_QUIESCED :
						    VIRTIO_BUFSHARE_UNEXPORT_FORCED;
}

static bool bufshare_quiesce_begins(const struct bufshare_req *req)
{
	const struct virtio_bufshare_quiesce *out = req->out;

	return out->mode == cpu_to_le32(VIRTIO_BUFSHARE_QUIESCE_QUIESCED);
}

static void bufshare_quiesce_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	bool unknown = req->err && req->status == VIRTIO_BUFSHARE_S_NOT_FOUND;
	struct bufshare_exp *exp = req->owner;
	struct bufshare_mem *mem;
	bool begins, failed;

	/* The export has ended, or this is about what was asked before. */
	if (!exp)
		return;
	mem = exp->mem;
	spin_lock(&mem->lock);
	exp->quiesce_req = NULL;
	WRITE_ONCE(mem->asked, mem->asked - 1);
	begins = bufshare_quiesce_begins(req);
	/* A device that has gone is about to be reset, which ends it: wait for that. */
	failed = req->err && !unknown && (begins || req->err != -ENODEV);
	if (failed && begins) {
		mem->begin_err = req->err;
		mem->begin_status = req->status;
	} else if (failed) {
		mem->err = req->err;
		mem->status = req->status;
		WRITE_ONCE(mem->resuming, false);
	}
	/* Without an answer, or with one that makes no sense, the host may rely on it. */
	if (begins ? req->status != VIRTIO_BUFSHARE_S_OK || !req->reached : !req->err || unknown)
		bufshare_quiesce_ended_locked(exp);
	wake_up_all(&mem->wait);
	spin_unlock(&mem->lock);
}

/* The request is new, its mode set. -ENODEV: nothing has happened. */
static int bufshare_quiesce_send_locked(struct bufshare_exp *exp, struct bufshare_req *req)
{
	struct virtio_bufshare_unexport *unexport = exp->unexport_req->out;
	struct virtio_bufshare_quiesce *out = req->out;
	bool begins = bufshare_quiesce_begins(req);
	struct bufshare_mem *mem = exp->mem;
	int ret;

	out->id = exp->id;
	req->owner = exp;
	req->complete = bufshare_quiesce_complete;
	/* Also while the driver leaves: what waits for it is not to wait for the reset. */
	req->closing = !begins;
	/* It may overtake an UNEXPORT that waits for a place. */
	if (!begins && exp->unexport_req->state == BUFSHARE_REQ_PENDING)
		unexport->mode = cpu_to_le32(VIRTIO_BUFSHARE_UNEXPORT_FORCED);

	spin_lock(&mem->lock);
	if (exp->quiesce_req)
		exp->quiesce_req->owner = NULL;
	else
		WRITE_ONCE(mem->asked, mem->asked + 1);
	exp->quiesce_req = req;
	if (begins) {
		exp->quiesced = true;
		WRITE_ONCE(mem->quiesced, mem->quiesced + 1);
	}
	spin_unlock(&mem->lock);

	ret = bufshare_send_locked(exp->bd, req);
	if (!ret)
		return 0;
	spin_lock(&mem->lock);
	exp->quiesce_req = NULL;
	WRITE_ONCE(mem->asked, mem->asked - 1);
	if (begins)
		bufshare_quiesce_ended_locked(exp);
	spin_unlock(&mem->lock);
	return ret;
}

/* The host is to be asked about this export, to begin or to end it. */
static bool bufshare_quiesce_is_due(const struct bufshare_exp *exp, bool begins)
{
	if (begins)
		return exp->wire == BUFSHARE_EXPORT_LIVE && !exp->quiesced;
	return exp->quiesced &&
	       (!exp->quiesce_req || bufshare_quiesce_begins(exp->quiesce_req));
}

/* The next of those; the device's lock keeps it there. */
static struct bufshare_exp *bufshare_quiesce_next_locked(struct bufshare_mem *mem,
							 struct bufshare_device *bd, bool begins)
{
	struct bufshare_exp *exp, *next = NULL;

	lockdep_assert_held(&bd->lock);
	spin_lock(&mem->lock);
	list_for_each_entry(exp, &mem->exports, in_mem) {
		if (exp->bd != bd || !bufshare_quiesce_is_due(exp, begins))
			continue;
		/* Others first, if the host refuses it. */
		list_move_tail(&exp->in_mem, &mem->exports);
		next = exp;
		break;
	}
	spin_unlock(&mem->lock);
	return next;
}

/*
 * Ask the host about all exports for which that is due, each once, and do not wait.
 * -ENODEV: the device has gone, -ENOMEM.
 */
static int bufshare_quiesce_ask(struct bufshare_mem *mem, struct bufshare_device *bd, bool begins)
{
	u32 mode = begins ? VIRTIO_BUFSHARE_QUIESCE_QUIESCED : VIRTIO_BUFSHARE_QUIESCE_ACTIVE;
	struct virtio_bufshare_quiesce *out;
	struct bufshare_exp *exp;
	struct bufshare_req *req;
	int ret = 0;
	size_t left;

	spin_lock_irq(&mem->lock);
	left = list_count_nodes(&mem->exports);
	spin_unlock_irq(&mem->lock);
	do {
		req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_QUIESCE, sizeof(*out), 0,
					 sizeof(struct virtio_bufshare_resp), 0);
		if (!req)
			return -ENOMEM;
		out = req->out;
		out->mode = cpu_to_le32(mode);
		bufshare_lock(bd);
		exp = bufshare_quiesce_next_locked(mem, bd, begins);
		if (exp)
			ret = bufshare_quiesce_send_locked(exp, req);
		bufshare_unlock(bd);
		bufshare_req_put(req);
	} while (exp && !ret && left-- > 1);
	return ret;
}

/*
 * The device whose host may rely on the memory, counted, or NULL. There is one at most:
 * before another is bound, this one was reset.
 */
static struct bufshare_device *bufshare_quiesce_device(struct bufshare_mem *mem)
{
	struct bufshare_device *bd = NULL;
	struct bufshare_exp *exp;

	spin_lock_irq(&mem->lock);
	list_for_each_entry(exp, &mem->exports, in_mem) {
		if (exp->quiesced) {
			bd = bufshare_device_get(exp->bd);
			break;
		}
	}
	spin_unlock_irq(&mem->lock);
	return bd;
}

static void bufshare_quiesce_timed_out(struct bufshare_mem *mem)
{
	struct bufshare_device *bd = bufshare_quiesce_device(mem);

	if (!bd)
		return;
	bufshare_lock(bd);
	bd->stats.timeouts++;
	bufshare_unlock(bd);
	dev_err_ratelimited(bd->dev, "the host does not answer\n");
	bufshare_device_put(bd);
}

/* As long as the device is dead, and not reset, there is nobody to ask. */
static int bufshare_quiesce_ask_end(struct bufshare_mem *mem)
{
	struct bufshare_device *bd = bufshare_quiesce_device(mem);
	int ret;

	if (!bd)
		return 0;
	ret = bufshare_quiesce_ask(mem, bd, false);
	bufshare_device_put(bd);
	return ret == -ENODEV ? 0 : ret;
}

static bool bufshare_quiesce_has_time_locked(const struct bufshare_mem *mem)
{
	return mem->resuming && time_before(jiffies, mem->until);
}

/*
 * Can the memory be used? 0: yes. -EINPROGRESS: to be asked or waited for. For who has
 * waited before: why the host has not said so.
 */
static int bufshare_quiesce_look_locked(const struct bufshare_mem *mem, bool asked)
{
	lockdep_assert_held(&mem->lock);
	if (!mem->quiesced)
		return 0;
	if (!asked || bufshare_quiesce_has_time_locked(mem))
		return -EINPROGRESS;
	if (mem->resuming)
		return -ETIMEDOUT;
	return mem->err ?: -EINPROGRESS;
}

/* The time of those who want to use the memory begins, if it is not running. */
static void bufshare_quiesce_resume_locked(struct bufshare_mem *mem)
{
	if (bufshare_quiesce_has_time_locked(mem))
		return;
	WRITE_ONCE(mem->resuming, true);
	mem->until = jiffies + bufshare_timeout();
	mem->err = 0;
	mem->status = VIRTIO_BUFSHARE_S_OK;
}

static bool bufshare_quiesce_has_news(const struct bufshare_mem *mem, bool quiescing)
{
	return !READ_ONCE(mem->quiesced) || !READ_ONCE(mem->resuming) ||
	       (quiescing && !READ_ONCE(mem->quiescing));
}

static long bufshare_quiesce_wait(struct bufshare_mem *mem, bool quiescing, bool killable,
				  long left)
{
	if (killable)
		return wait_event_killable_timeout(mem->wait,
						   bufshare_quiesce_has_news(mem, quiescing),
						   left);
	return wait_event_idle_timeout(mem->wait, bufshare_quiesce_has_news(mem, quiescing), left);
}

/**
 * bufshare_quiesce_look() - can memory be used
 * @mem: the memory; with its fault_sem, the answer stays true if it is yes
 * @asked: bufshare_quiesce_end() was called before
 *
 * Return: 0; -EINPROGRESS: not without bufshare_quiesce_end(); or a negative errno.
 */
int bufshare_quiesce_look(struct bufshare_mem *mem, bool asked)
{
	int ret;

	spin_lock_irq(&mem->lock);
	ret = bufshare_quiesce_look_locked(mem, asked);
	spin_unlock_irq(&mem->lock);
	return ret;
}

/* The host cannot be asked: for a page fault that comes again, and for all who wait. */
static void bufshare_quiesce_give_up(struct bufshare_mem *mem, int err)
{
	spin_lock_irq(&mem->lock);
	mem->err = err;
	WRITE_ONCE(mem->resuming, false);
	wake_up_all(&mem->wait);
	spin_unlock_irq(&mem->lock);
}

/**
 * bufshare_quiesce_end() - have memory that can be used: the only place that waits for it
 * @mem: the memory; its dma-buf is held
 * @asked: this was called before, for the same access
 * @killable: a signal that kills us ends the wait
 * @status: where to put what the host said, may be NULL
 *
 * Return: 0; -EINTR: we were killed; -ETIMEDOUT: the host does not answer; or a negative
 * errno.
 */
int bufshare_quiesce_end(struct bufshare_mem *mem, bool asked, bool killable, u32 *status)
{
	bool quiescing;
	long left;
	int ret;

	for (;;) {
		spin_lock_irq(&mem->lock);
		ret = bufshare_quiesce_look_locked(mem, asked);
		if (ret == -EINPROGRESS)
			bufshare_quiesce_resume_locked(mem);
		else if (ret && status)
			*status = mem->status;
		quiescing = mem->quiescing;
		left = max((long)(mem->until - jiffies), 1L);
		spin_unlock_irq(&mem->lock);
		if (ret == -ETIMEDOUT)
			bufshare_quiesce_timed_out(mem);
		if (ret != -EINPROGRESS)
			return ret;

		asked = true;
		/* A QUIESCE that is being carried out is waited for first. */
		ret = quiescing ? 0 : bufshare_quiesce_ask_end(mem);
		if (ret) {
			bufshare_quiesce_give_up(mem, ret);
			return ret;
		}
		if (bufshare_quiesce_wait(mem, quiescing, killable, left) < 0)
			return -EINTR;
	}
}

static bool bufshare_quiesce_is_busy_locked(const struct bufshare_mem *mem)
{
	return mem->users || mem->accesses || mem->waiters || mem->quiescing || mem->asked ||
	       bufshare_quiesce_has_time_locked(mem);
}

/**
 * bufshare_quiesce_begin() - QUIESCE: nothing is to use the memory of an export
 * @exp: the export; its file is held
 * @mem: its memory; its dma-buf is held
 * @status: where to put what the host said
 *
 * Return: 0 or a negative errno. If it is -EINTR or -ETIMEDOUT the host may take the memory
 * for quiesced; it was asked not to, unless it took it for that before. With another the
 * memory is as it was.
 */
int bufshare_quiesce_begin(struct bufshare_exp *exp, struct bufshare_mem *mem, u32 *status)
{
	struct bufshare_device *bd = exp->bd;
	bool before, undo, silent;
	long left = 1;
	int ret;

	spin_lock_irq(&mem->lock);
	if (bufshare_quiesce_is_busy_locked(mem)) {
		spin_unlock_irq(&mem->lock);
		return -EBUSY;
	}
	before = mem->quiesced;
	WRITE_ONCE(mem->quiesced, mem->quiesced + 1);
	WRITE_ONCE(mem->quiescing, true);
	/* Who wanted to use it has left. */
	WRITE_ONCE(mem->resuming, false);
	mem->err = 0;
	mem->begin_err = 0;
	mem->begin_status = VIRTIO_BUFSHARE_S_OK;
	spin_unlock_irq(&mem->lock);

	/* A fault that did not see it has made its entry when the zap begins. */
	down_write(&mem->fault_sem);
	up_write(&mem->fault_sem);
	unmap_mapping_range(mem->inode->i_mapping, 0, 0, 1);

	ret = bufshare_quiesce_ask(mem, bd, true);
	if (!ret)
		left = wait_event_killable_timeout(mem->wait, !READ_ONCE(mem->asked),
						   bufshare_timeout());

	spin_lock_irq(&mem->lock);
	silent = mem->asked;
	if (!ret && silent)
		ret = left < 0 ? -EINTR : -ETIMEDOUT;
	else if (!ret)
		ret = mem->begin_err;
	*status = mem->begin_status;
	if (!ret && !exp->quiesced) {
		/* The host has ended the export, or we were reset. */
		ret = READ_ONCE(bd->alive) ? -ENOENT : -ENODEV;
		*status = VIRTIO_BUFSHARE_S_NOT_FOUND;
	}
	WRITE_ONCE(mem->quiescing, false);
	bufshare_quiesce_drop_locked(mem);
	undo = ret && !before && mem->quiesced;
	if (undo)
		bufshare_quiesce_resume_locked(mem);
	spin_unlock_irq(&mem->lock);

	if (undo && silent)
		bufshare_quiesce_ask_end(mem);
	else if (undo)
		bufshare_quiesce_end(mem, false, true, NULL);
	if (ret == -ETIMEDOUT)
		bufshare_quiesce_timed_out(mem);
	return ret;
}

/**
 * bufshare_mem_keep_active() - have memory not be quiesced anew
 * @mem: the memory
 * @keep: from now on; else no more
 */
void bufshare_mem_keep_active(struct bufshare_mem *mem, bool keep)
{
	spin_lock_irq(&mem->lock);
	mem->waiters += keep ? 1 : -1;
	spin_unlock_irq(&mem->lock);
}

/**
 * bufshare_mem_use() - begin a use of memory that cannot be stopped
 * @mem: the memory
 * @count: what of it is counted, one more on success
 * @killable: as for bufshare_quiesce_end()
 *
 * Return: 0 or a negative errno.
 */
int bufshare_mem_use(struct bufshare_mem *mem, u32 *count, bool killable)
{
	int ret = 0;

	spin_lock_irq(&mem->lock);
	/* As long as somebody waits, it is not quiesced anew. */
	mem->waiters++;
	if (mem->quiesced) {
		spin_unlock_irq(&mem->lock);
		ret = bufshare_quiesce_end(mem, false, killable, NULL);
		spin_lock_irq(&mem->lock);
	}
	mem->waiters--;
	if (!ret)
		++*count;
	spin_unlock_irq(&mem->lock);
	return ret;
}

/**
 * bufshare_mem_unuse() - end such a use
 * @mem: the memory
 * @count: what of it is counted; it may be none, as CPU accesses end without a beginning
 */
void bufshare_mem_unuse(struct bufshare_mem *mem, u32 *count)
{
	spin_lock_irq(&mem->lock);
	if (*count)
		--*count;
	spin_unlock_irq(&mem->lock);
}
