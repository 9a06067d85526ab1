// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_file.c - open files of /dev/bufshare, and their events
 *
 * An event that a file has no room for is counted, and an OVERFLOW event of our own
 * (seq 0) reports it in the place where the events are missing.
 */
#include <linux/errno.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "bufshare_priv.h"

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

/**
 * bufshare_files_push() - give all files an event
 * @bd: the device
 * @ev: the event
 */
void bufshare_files_push(struct bufshare_device *bd, const struct bufshare_event *ev)
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
 * bufshare_files_lost() - report to all files that events are missing
 * @bd: the device
 * @lost: how many, 0: unknown
 */
void bufshare_files_lost(struct bufshare_device *bd, u64 lost)
{
	struct bufshare_event ev = {
		.type = VIRTIO_BUFSHARE_EVT_OVERFLOW,
		.value = lost,
	};

	bufshare_lock(bd);
	bd->stats.lost += lost;
	bufshare_unlock(bd);
	bufshare_files_push(bd, &ev);
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

/* Is there an event. */
static bool bufshare_file_readable(struct bufshare_file *bf)
{
	return READ_ONCE(bf->count) || READ_ONCE(bf->dropped);
}

/* Look at the oldest event. */
static bool bufshare_file_peek(struct bufshare_file *bf, struct bufshare_event *ev)
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

/* Remove the event that bufshare_file_peek() gave. */
static void bufshare_file_consume(struct bufshare_file *bf, const struct bufshare_event *ev)
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

static int bufshare_fop_open(struct inode *inode, struct file *file)
{
	/* The misc device cannot be deregistered during this call. */
	struct bufshare_device *bd = container_of(file->private_data, struct bufshare_device,
						  misc);
	struct bufshare_file *bf;

	bf = kvzalloc_obj(*bf, GFP_KERNEL_ACCOUNT);
	if (!bf)
		return -ENOMEM;
	spin_lock_init(&bf->lock);
	mutex_init(&bf->read_lock);
	init_waitqueue_head(&bf->wait);
	bf->bd = bufshare_device_get(bd);
	file->private_data = bf;
	mutex_lock(&bd->files_lock);
	list_add_tail(&bf->node, &bd->files);
	mutex_unlock(&bd->files_lock);
	return stream_open(inode, file);
}

static int bufshare_fop_release(struct inode *inode, struct file *file)
{
	struct bufshare_file *bf = file->private_data;
	struct bufshare_device *bd = bf->bd;

	mutex_lock(&bd->files_lock);
	list_del(&bf->node);
	mutex_unlock(&bd->files_lock);
	kvfree(bf);
	bufshare_device_put(bd);
	return 0;
}

static ssize_t bufshare_fop_read(struct file *file, char __user *buf, size_t len, loff_t *pos)
{
	struct bufshare_file *bf = file->private_data;
	struct bufshare_event ev;
	size_t done = 0;
	int ret = 0;

	if (len < sizeof(ev))
		return -EINVAL;
	if (file->f_flags & O_NONBLOCK) {
		if (!mutex_trylock(&bf->read_lock))
			return -EAGAIN;
	} else if (mutex_lock_interruptible(&bf->read_lock)) {
		return -ERESTARTSYS;
	}
	while (len - done >= sizeof(ev)) {
		if (!bufshare_file_peek(bf, &ev)) {
			if (done)
				break;
			ret = -ENODEV;
			if (!READ_ONCE(bf->bd->alive))
				break;
			ret = -EAGAIN;
			if (file->f_flags & O_NONBLOCK)
				break;
			ret = wait_event_interruptible(bf->wait, bufshare_file_readable(bf) ||
						       !READ_ONCE(bf->bd->alive));
			if (ret)
				break;
			continue;
		}
		if (copy_to_user(buf + done, &ev, sizeof(ev))) {
			ret = -EFAULT;
			break;
		}
		bufshare_file_consume(bf, &ev);
		done += sizeof(ev);
	}
	mutex_unlock(&bf->read_lock);
	return done ? done : ret;
}

static __poll_t bufshare_fop_poll(struct file *file, poll_table *wait)
{
	struct bufshare_file *bf = file->private_data;
	__poll_t mask = 0;

	poll_wait(file, &bf->wait, wait);
	if (bufshare_file_readable(bf))
		mask |= EPOLLIN | EPOLLRDNORM;
	if (!READ_ONCE(bf->bd->alive))
		mask |= EPOLLHUP;
	return mask;
}

const struct file_operations bufshare_fops = {
	.owner = THIS_MODULE,
	.open = bufshare_fop_open,
	.release = bufshare_fop_release,
	.read = bufshare_fop_read,
	.poll = bufshare_fop_poll,
	.unlocked_ioctl = bufshare_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};
