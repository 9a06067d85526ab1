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
 */
#include <linux/errno.h>
#include <linux/list.h>
#include <linux/spinlock.h>
#include <linux/string.h>

#include "bufshare_priv.h"

/*
 * Each takes a place in the control queue, which has 32, for as long as an importer
 * pleases.
 */
#define BUFSHARE_KEPT_ASKED	4

static DEFINE_SPINLOCK(bufshare_kept_lock);	/* all of the following */
static LIST_HEAD(bufshare_kept_list);
static u32 bufshare_kept_count;
static u64 bufshare_kept_bytes;
static u64 bufshare_kept_sessions;

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

static void bufshare_kept_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	struct bufshare_exp *exp = req->owner;

	bd->kept_asked--;
	if (bd->alive)
		queue_work(bufshare_release_wq, &bd->kept_work);
	if (req->err)
		return;
	dev_info(bd->dev, "other VMs no longer reach an exported buffer that was kept: its %llu bytes are given back\n",
		 exp->size);
	bufshare_kept_del(exp);
	bufshare_exp_release_locked(bd, exp);
}

/* One that this session has not asked for. It stays where it is until its answer. */
static struct bufshare_exp *bufshare_kept_next(struct bufshare_device *bd)
{
	struct bufshare_exp *exp, *next = NULL;

	spin_lock_irq(&bufshare_kept_lock);
	list_for_each_entry(exp, &bufshare_kept_list, kept) {
		/* One whose EXPORT was not answered has no name to ask by. */
		if (exp->asked == bd->kept_session || !memchr_inv(&exp->id, 0, sizeof(exp->id)))
			continue;
		exp->asked = bd->kept_session;
		next = exp;
		break;
	}
	spin_unlock_irq(&bufshare_kept_lock);
	return next;
}

static int bufshare_kept_send(struct bufshare_device *bd, struct bufshare_exp *exp)
{
	struct virtio_bufshare_by_id *out;
	struct bufshare_req *req;
	int ret;

	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_UNEXPORT, sizeof(*out),
				 sizeof(struct virtio_bufshare_resp));
	if (!req)
		return -ENOMEM;
	out = req->out;
	out->id = exp->id;
	req->owner = exp;
	req->complete = bufshare_kept_complete;
	bufshare_lock(bd);
	bd->kept_asked++;
	ret = bufshare_send_locked(bd, req);
	if (ret)
		bd->kept_asked--;
	bufshare_unlock(bd);
	bufshare_req_put(req);
	return ret;
}

/**
 * bufshare_kept_work() - ask the host for what is kept
 * @work: bufshare_device.kept_work
 */
void bufshare_kept_work(struct work_struct *work)
{
	struct bufshare_device *bd = container_of(work, struct bufshare_device, kept_work);
	struct bufshare_exp *exp;

	while (READ_ONCE(bd->kept_asked) < BUFSHARE_KEPT_ASKED) {
		exp = bufshare_kept_next(bd);
		/* If it cannot be asked for now, the next session does. */
		if (!exp || bufshare_kept_send(bd, exp))
			return;
	}
}

/**
 * bufshare_kept_ask() - a session has begun: ask the host for what is kept
 * @bd: the device
 */
void bufshare_kept_ask(struct bufshare_device *bd)
{
	spin_lock_irq(&bufshare_kept_lock);
	bd->kept_session = ++bufshare_kept_sessions;
	spin_unlock_irq(&bufshare_kept_lock);
	queue_work(bufshare_release_wq, &bd->kept_work);
}
