// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_session.c - from the first word to the host until the reset of the device
 */
#include <linux/errno.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>

#include "bufshare_priv.h"

/**
 * bufshare_start() - begin a session: queues, events, and the first words
 * @bd: the device; its session lock is held
 *
 * Return: 0 or a negative errno; then bufshare_leave() is to follow.
 */
int bufshare_start(struct bufshare_device *bd)
{
	struct virtqueue_info infos[VIRTIO_BUFSHARE_NUM_QUEUES] = {
		[VIRTIO_BUFSHARE_QUEUE_CONTROL] = { "control", bufshare_ctrl_done },
		[VIRTIO_BUFSHARE_QUEUE_EVENT] = { "event", bufshare_event_done },
	};
	struct virtqueue *vqs[VIRTIO_BUFSHARE_NUM_QUEUES];
	int ret;

	ret = bufshare_read_config(bd);
	if (!ret)
		ret = bufshare_event_alloc(bd);
	if (ret)
		return ret;
	ret = virtio_find_vqs(bd->vdev, VIRTIO_BUFSHARE_NUM_QUEUES, vqs, infos, NULL);
	if (ret) {
		dev_err(bd->dev, "no virtqueues: %d\n", ret);
		return ret;
	}
	bufshare_lock(bd);
	bd->event_seq = 0;
	bd->nr_aside = 0;
	bd->ctrl = vqs[VIRTIO_BUFSHARE_QUEUE_CONTROL];
	bd->eventq = vqs[VIRTIO_BUFSHARE_QUEUE_EVENT];
	bd->max_slow = bufshare_max_slow(bd->ctrl);
	bd->silent = false;
	bufshare_unlock(bd);

	virtio_device_ready(bd->vdev);
	ret = bufshare_event_fill(bd);
	if (ret)
		return ret;
	bufshare_lock(bd);
	/* What there was is gone: have programs look anew, before the first new event. */
	if (bd->delivered) {
		WRITE_ONCE(bd->epoch, bd->epoch + 1);
		bufshare_events_lost_locked(bd, 0);
	}
	WRITE_ONCE(bd->delivered, false);
	WRITE_ONCE(bd->alive, true);
	bd->leaving = false;
	bufshare_unlock(bd);
	/* Events may have come while we were not alive. */
	bufshare_intake(bd);
	ret = bufshare_greet(bd);
	if (!ret)
		bufshare_kept_ask(bd);
	return ret;
}

/*
 * Have the host unmap the windows that it keeps for our next MAP, until then at the
 * latest. False: no answer.
 */
static bool bufshare_flush(struct bufshare_device *bd, unsigned long until)
{
	struct bufshare_req *req;
	long left;
	int ret;

	if (!bd->shm || !READ_ONCE(bd->alive))
		return true;
	left = bufshare_time_left(until);
	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_FLUSH, sizeof(struct virtio_bufshare_req), 0,
				 sizeof(struct virtio_bufshare_resp), 0);
	if (!req)
		return true;
	req->closing = true;
	bufshare_lock(bd);
	ret = bufshare_send_locked(bd, req);
	bufshare_unlock(bd);
	/* Nor is a window left mapped because who unbinds the driver is killed. */
	if (!ret)
		ret = bufshare_wait_for(bd, req, left, false, NULL);
	if (ret)
		dev_warn(bd->dev, "windows may be left mapped: %d\n", ret);
	bufshare_req_put(req);
	return ret != -ETIMEDOUT;
}

/* How many UNMAPs were sent: each may leave a window with the host. */
static u64 bufshare_unmaps(struct bufshare_device *bd)
{
	u64 unmaps;

	bufshare_lock(bd);
	unmaps = bd->unmaps;
	bufshare_unlock(bd);
	return unmaps;
}

/*
 * The end of a session, with whatever is open: every export is ended; no user
 * space mapping of a window is left; the windows are given back (QEMU 11.1
 * crashes at the next start if its reset of the device has to drop one); nobody
 * waits for the host any more; the device is reset. What the host has not said
 * to be out of others' reach by then is never given back.
 *
 * Windows come first: it is other VMs that keep back the answers for exports. A
 * host that does not even answer FLUSH is waited for once. While the exports are
 * waited for, other drivers may end their use of imports: those windows are flushed
 * once more, whether or not the exports were answered. All that takes at most two
 * timeouts.
 */
static void bufshare_stop(struct bufshare_device *bd)
{
	unsigned long until;
	u64 unmaps;

	bufshare_lock(bd);
	bd->leaving = true;
	bufshare_exports_end_locked(bd);
	bufshare_unlock(bd);
	bufshare_imports_revoke_all(bd);
	bufshare_imports_wait_left(bd);
	until = jiffies + 2 * bufshare_timeout();
	unmaps = bufshare_unmaps(bd);
	if (bufshare_flush(bd, until)) {
		bufshare_exports_wait_answered(bd);
		if (bufshare_unmaps(bd) != unmaps)
			bufshare_flush(bd, until);
	}

	/* A REVOKED that has come may be what lets an export's memory go. */
	bufshare_intake(bd);
	bufshare_lock(bd);
	bufshare_fail_locked(bd);
	bufshare_unlock(bd);
	cancel_delayed_work_sync(&bd->kept_work);
	bufshare_notified(bd);

	virtio_reset_device(bd->vdev);
	cancel_delayed_work_sync(&bd->intake_work);
	flush_work(&bd->deliver_work);
	bufshare_cancel_all(bd);
	bufshare_quiesce_lapse(bd);
	bufshare_imports_gone(bd);
	bufshare_exports_keep(bd);
	bd->vdev->config->del_vqs(bd->vdev);
}

/**
 * bufshare_reset_renew() - a step of a reset has ended: the time for the next begins
 * @bd: the device; its session lock is held
 */
void bufshare_reset_renew(struct bufshare_device *bd)
{
	if (bd->resetting)
		bd->reset_until = ktime_add_ms(ktime_get(), BUFSHARE_RESET_WAIT_MS);
}

/**
 * bufshare_leave() - end the session, if there is one
 * @bd: the device
 */
void bufshare_leave(struct bufshare_device *bd)
{
	mutex_lock(&bd->session);
	if (bd->ctrl)
		bufshare_stop(bd);
	bufshare_reset_renew(bd);
	mutex_unlock(&bd->session);
}

/**
 * bufshare_suspend() - before a sleep of the system or a reset of the PCI function
 * @bd: the device
 */
void bufshare_suspend(struct bufshare_device *bd)
{
	bufshare_leave(bd);
	/* Other drivers' buffers are given back before their devices sleep. */
	bufshare_exports_wait_released(bd);
}

/**
 * bufshare_resume() - after it
 * @bd: the device
 *
 * Return: 0 or a negative errno.
 */
int bufshare_resume(struct bufshare_device *bd)
{
	int ret;

	mutex_lock(&bd->session);
	ret = bd->rebooting || bd->unbinding ? -ESHUTDOWN : bufshare_start(bd);
	bufshare_reset_renew(bd);
	mutex_unlock(&bd->session);
	if (ret)
		bufshare_leave(bd);
	return ret;
}
