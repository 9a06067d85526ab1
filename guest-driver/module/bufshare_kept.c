// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_kept.c - exports whose memory is kept
 *
 * What the host has not said to be out of other VMs' reach when a session with it
 * ends is given to nobody: it is kept with the export, which holds this module. It
 * is an importer which is stopped or broken that keeps the host's answer back. Each
 * later session asks the host anew, of whatever binding of the driver the export
 * was. Only an UNEXPORT that is done counts: a host that was restarted does not know
 * the buffer either.
 *
 * The host answers UNEXPORT when no other VM reaches the buffer, and QUERY at once. So
 * QUERY finds those that are to be unexported, round after round: one that is still
 * reached takes no place in the queue, and does not keep the next from being asked for.
 */
#include <linux/errno.h>
#include <linux/jiffies.h>
#include <linux/limits.h>
#include <linux/list.h>
#include <linux/spinlock.h>
#include <linux/string.h>

#include "bufshare_priv.h"

/* From the end of one round to the next, if some are still reached. */
#define BUFSHARE_KEPT_PAUSE	msecs_to_jiffies(2000)

/* bufshare_exp.asked: no round asks for it any more, in this session. */
#define BUFSHARE_KEPT_NEVER	U64_MAX

static DEFINE_SPINLOCK(bufshare_kept_lock);	/* all of the following */
static LIST_HEAD(bufshare_kept_list);
static u32 bufshare_kept_count;
static u64 bufshare_kept_bytes;
static u64 bufshare_kept_rounds;

/**
 * bufshare_kept_add_locked() - keep an export
 * @exp: the export; bufshare_device.lock of its device is held
 */
void bufshare_kept_add_locked(struct bufshare_exp *exp)
{
	spin_lock(&bufshare_kept_lock);
	exp->asked = 0;
	list_add_tail(&exp->kept, &bufshare_kept_list);
	bufshare_kept_count++;
	bufshare_kept_bytes += exp->size;
	spin_unlock(&bufshare_kept_lock);
}

static void bufshare_kept_del(struct bufshare_exp *exp)
{
	spin_lock(&bufshare_kept_lock);
	list_del_init(&exp->kept);
	bufshare_kept_count--;
	bufshare_kept_bytes -= exp->size;
	spin_unlock(&bufshare_kept_lock);
}

/**
 * bufshare_kept_total() - how much is kept
 * @bytes: how many bytes
 *
 * Return: how many exports.
 */
u32 bufshare_kept_total(u64 *bytes)
{
	u32 count;

	spin_lock_irq(&bufshare_kept_lock);
	count = bufshare_kept_count;
	*bytes = bufshare_kept_bytes;
	spin_unlock_irq(&bufshare_kept_lock);
	return count;
}

/* The waiter may have gone, and touches the export no more. */
static void bufshare_kept_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	struct bufshare_exp *exp = req->owner;

	if (req->err) {
		if (req->status == VIRTIO_BUFSHARE_S_NOT_FOUND)
			return;
		/* By the next round, and not by this one again: the host erred. */
		spin_lock(&bufshare_kept_lock);
		exp->asked = bufshare_kept_rounds;
		spin_unlock(&bufshare_kept_lock);
		/* The round may be over by now. */
		if (bd->alive && !bd->leaving)
			queue_delayed_work(bufshare_release_wq, &bd->kept_work,
					   BUFSHARE_KEPT_PAUSE);
		return;
	}
	dev_info(bd->dev, "other VMs no longer reach an exported buffer that was kept: its %llu bytes are given back\n",
		 exp->size);
	bufshare_kept_del(exp);
	bufshare_exp_release_locked(bd, exp);
}

/* One that this round has not asked for. It stays where it is until its UNEXPORT. */
static struct bufshare_exp *bufshare_kept_next(u64 round)
{
	struct bufshare_exp *exp, *next = NULL;

	spin_lock_irq(&bufshare_kept_lock);
	list_for_each_entry(exp, &bufshare_kept_list, kept) {
		/* One whose EXPORT was not answered has no name to ask by. */
		if (exp->asked >= round || !memchr_inv(&exp->id, 0, sizeof(exp->id)))
			continue;
		exp->asked = round;
		next = exp;
		break;
	}
	spin_unlock_irq(&bufshare_kept_lock);
	return next;
}

static int bufshare_kept_query(struct bufshare_device *bd, const struct bufshare_exp *exp,
			       u32 *status)
{
	struct virtio_bufshare_by_id *out;
	struct bufshare_req *req;
	int ret;

	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_QUERY, sizeof(*out), 0,
				 sizeof(struct virtio_bufshare_query_resp), 0);
	if (!req)
		return -ENOMEM;
	out = req->out;
	out->id = exp->id;
	ret = bufshare_call(bd, req, status);
	bufshare_req_put(req);
	return ret;
}

static int bufshare_kept_unexport(struct bufshare_device *bd, struct bufshare_exp *exp)
{
	struct bufshare_req *req;
	int ret;

	req = bufshare_unexport_alloc(&exp->id);
	if (!req)
		return -ENOMEM;
	req->owner = exp;
	req->complete = bufshare_kept_complete;
	spin_lock_irq(&bufshare_kept_lock);
	exp->asked = BUFSHARE_KEPT_NEVER;
	spin_unlock_irq(&bufshare_kept_lock);
	ret = bufshare_call(bd, req, NULL);
	bufshare_req_put(req);
	return ret;
}

/* Ask for one. Returns 0: it has its answer; -EBUSY: it is still reached; or an error. */
static int bufshare_kept_try(struct bufshare_device *bd, struct bufshare_exp *exp)
{
	u32 status = VIRTIO_BUFSHARE_S_OK;
	int ret;

	ret = bufshare_kept_query(bd, exp, &status);
	if (!ret)
		return -EBUSY;
	if (status != VIRTIO_BUFSHARE_S_NOT_FOUND)
		return ret;
	ret = bufshare_kept_unexport(bd, exp);
	return ret == -ENOENT ? 0 : ret;
}

/**
 * bufshare_kept_work() - ask the host for what is kept
 * @work: bufshare_device.kept_work
 */
void bufshare_kept_work(struct work_struct *work)
{
	struct bufshare_device *bd = container_of(to_delayed_work(work), struct bufshare_device,
						  kept_work);
	struct bufshare_exp *exp;
	bool again = false;
	u64 round;
	int ret;

	spin_lock_irq(&bufshare_kept_lock);
	round = ++bufshare_kept_rounds;
	spin_unlock_irq(&bufshare_kept_lock);
	while ((exp = bufshare_kept_next(round))) {
		ret = bufshare_kept_try(bd, exp);
		/* The session is over: the next asks. */
		if (ret == -ENODEV)
			return;
		again = again || ret;
		/* A host that does not answer is not waited for again and again. */
		if (ret == -ETIMEDOUT)
			break;
	}
	if (again)
		queue_delayed_work(bufshare_release_wq, &bd->kept_work, BUFSHARE_KEPT_PAUSE);
}

/**
 * bufshare_kept_ask() - a session has begun: ask the host for what is kept
 * @bd: the device
 */
void bufshare_kept_ask(struct bufshare_device *bd)
{
	struct bufshare_exp *exp;

	spin_lock_irq(&bufshare_kept_lock);
	list_for_each_entry(exp, &bufshare_kept_list, kept)
		exp->asked = 0;
	spin_unlock_irq(&bufshare_kept_lock);
	queue_delayed_work(bufshare_release_wq, &bd->kept_work, 0);
}
