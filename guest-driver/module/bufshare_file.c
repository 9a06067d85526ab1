// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_file.c - open files of /dev/bufshare, and their events
 */
#include <linux/errno.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "bufshare_priv.h"

/* Returns how many events the file has lost by these. */
static u32 bufshare_file_push(struct bufshare_file *bf, const struct bufshare_event *events,
			      u32 count)
{
	const u32 epoch = READ_ONCE(bf->bd->epoch);
	u32 lost = 0, i;

	spin_lock(&bf->lock);
	for (i = 0; i < count; i++) {
		lost += bufshare_ring_push_locked(&bf->ring, &events[i]);
		if (bf->epoch == epoch)
			continue;
		/*
		 * The first event of a session: all of the last were delivered before. It is
		 * the last in the ring, or is reported when the ring has been read.
		 */
		WRITE_ONCE(bf->before, bf->ring.count + !!bf->ring.dropped);
		/* Pairs with bufshare_file_has_news(). */
		smp_store_release(&bf->epoch, epoch);
	}
	spin_unlock(&bf->lock);
	wake_up_interruptible_poll(&bf->wait, EPOLLIN | EPOLLRDNORM);
	return lost;
}

/**
 * bufshare_files_push() - give all files events
 * @bd: the device
 * @events: the events, the oldest first
 * @count: how many
 */
void bufshare_files_push(struct bufshare_device *bd, const struct bufshare_event *events, u32 count)
{
	struct bufshare_file *bf;
	u32 lost = 0;

	mutex_lock(&bd->files_lock);
	list_for_each_entry(bf, &bd->files, node)
		lost += bufshare_file_push(bf, events, count);
	mutex_unlock(&bd->files_lock);
	if (lost) {
		bufshare_lock(bd);
		bd->stats.lost += lost;
		bufshare_unlock(bd);
	}
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

/*
 * Is there news to be read before other events are? All news is of this session: the end of
 * the last took back its own. The program learns first that another one has begun.
 */
static bool bufshare_file_has_news(struct bufshare_file *bf)
{
	u32 epoch;

	if (list_empty_careful(&bf->news))
		return false;
	/* Pairs with bufshare_file_push(). */
	epoch = smp_load_acquire(&bf->epoch);
	return epoch == READ_ONCE(bf->bd->epoch) && !READ_ONCE(bf->before);
}

/* Is there an event. */
static bool bufshare_file_readable(struct bufshare_file *bf)
{
	return READ_ONCE(bf->ring.count) || READ_ONCE(bf->ring.dropped) ||
	       bufshare_file_has_news(bf);
}

/* Does no event come any more? To be asked before looking for one, which may be the last. */
static bool bufshare_file_over(struct bufshare_file *bf)
{
	/* Pairs with bufshare_deliver_work(). */
	return smp_load_acquire(&bf->bd->delivered);
}

/**
 * struct bufshare_next - what a file is to read next
 * @news: of bufshare_file.news, NULL: it is of bufshare_file.ring
 * @seq: its number
 * @length: bytes of it, in bufshare_file.out
 */
struct bufshare_next {
	const struct bufshare_news *news;
	u64 seq;
	u32 length;
};

static u32 bufshare_news_read_locked(const struct bufshare_news *news, void *to)
{
	if (news->type == VIRTIO_BUFSHARE_EVT_PUSHED)
		return bufshare_pushed_read_locked(container_of(news, struct bufshare_handle,
								news), to);
	return bufshare_returned_read_locked(container_of(news, struct bufshare_exp, news), to);
}

static void bufshare_news_consume_locked(struct bufshare_news *news)
{
	if (news->type == VIRTIO_BUFSHARE_EVT_RETURNED)
		bufshare_exp_forget_frame_locked(container_of(news, struct bufshare_exp, news));
	else
		list_del_init(&news->node);
}

/* The oldest event. False: there is none. */
static bool bufshare_file_peek(struct bufshare_file *bf, struct bufshare_next *next)
{
	struct bufshare_event *ev = (void *)bf->out;
	bool found;

	/* It stays there: nobody else reads. */
	spin_lock(&bf->lock);
	found = bufshare_ring_peek_locked(&bf->ring, ev);
	spin_unlock(&bf->lock);
	bufshare_lock(bf->bd);
	next->news = NULL;
	if (bufshare_file_has_news(bf))
		next->news = list_first_entry(&bf->news, struct bufshare_news, node);
	/* Both are of this session, or the event is of the driver's own. */
	if (next->news && found && ev->seq < next->news->seq)
		next->news = NULL;
	if (next->news) {
		next->seq = next->news->seq;
		next->length = bufshare_news_read_locked(next->news, bf->out);
	} else {
		next->length = sizeof(*ev);
	}
	bufshare_unlock(bf->bd);
	return found || next->news;
}

/* It was read. */
static void bufshare_file_consume(struct bufshare_file *bf, const struct bufshare_next *next)
{
	struct bufshare_news *first;

	if (next->news) {
		bufshare_lock(bf->bd);
		first = list_first_entry_or_null(&bf->news, struct bufshare_news, node);
		/* Or it was taken back meanwhile. */
		if (first == next->news && first->seq == next->seq)
			bufshare_news_consume_locked(first);
		bufshare_unlock(bf->bd);
		return;
	}
	spin_lock(&bf->lock);
	bufshare_ring_consume_locked(&bf->ring);
	if (bf->before)
		WRITE_ONCE(bf->before, bf->before - 1);
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
	INIT_LIST_HEAD(&bf->news);
	INIT_LIST_HEAD(&bf->pushed);
	bufshare_handles_init(bf);
	bf->bd = bufshare_device_get(bd);
	file->private_data = bf;
	mutex_lock(&bd->files_lock);
	bf->epoch = READ_ONCE(bd->epoch);
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
	bufshare_handles_destroy(bf);
	bufshare_file_forget_pushed(bf);
	kvfree(bf);
	bufshare_device_put(bd);
	return 0;
}

static ssize_t bufshare_fop_read(struct file *file, char __user *buf, size_t len, loff_t *pos)
{
	struct bufshare_file *bf = file->private_data;
	struct bufshare_event *ev = (void *)bf->out;
	struct bufshare_next next;
	ssize_t ret;
	bool over;

	if (len < BUFSHARE_EVENT_SIZE_VER0)
		return -EINVAL;
	if (file->f_flags & O_NONBLOCK) {
		if (!mutex_trylock(&bf->read_lock))
			return -EAGAIN;
	} else if (mutex_lock_interruptible(&bf->read_lock)) {
		return -ERESTARTSYS;
	}
	for (;;) {
		over = bufshare_file_over(bf);
		if (bufshare_file_peek(bf, &next))
			break;
		ret = -ENODEV;
		if (over)
			goto out;
		ret = -EAGAIN;
		if (file->f_flags & O_NONBLOCK)
			goto out;
		ret = wait_event_interruptible(bf->wait, bufshare_file_readable(bf) ||
					       bufshare_file_over(bf));
		if (ret)
			goto out;
	}
	len = min_t(size_t, len, next.length);
	ev->length = len;
	if (ev->type == VIRTIO_BUFSHARE_EVT_PUSHED)
		bufshare_pushed_cut(bf->out, len);
	ret = -EFAULT;
	if (!copy_to_user(buf, bf->out, len)) {
		bufshare_file_consume(bf, &next);
		ret = len;
	}
out:
	mutex_unlock(&bf->read_lock);
	return ret;
}

static __poll_t bufshare_fop_poll(struct file *file, poll_table *wait)
{
	struct bufshare_file *bf = file->private_data;
	__poll_t mask = 0;

	poll_wait(file, &bf->wait, wait);
	if (bufshare_file_over(bf))
		mask |= EPOLLHUP;
	if (bufshare_file_readable(bf))
		mask |= EPOLLIN | EPOLLRDNORM;
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
