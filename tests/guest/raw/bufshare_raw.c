// SPDX-License-Identifier: GPL-2.0
/*
 * A hostile driver for tests: it puts whatever it is given on the control queue
 * of the buffer-sharing device, descriptors included, and returns what came
 * back.
 *
 * Write to /sys/kernel/debug/bufshare_raw: struct raw_call and the request.
 * Read from it: 32 bits, the used length, and the room as the device left it;
 * nothing if the device did not complete the chain.
 */
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#define RAW_MAX		SZ_64K
#define RAW_WAIT_MS	10000

enum {
	RAW_NORMAL,	/* request, then room */
	RAW_LOOP,	/* the request's descriptor follows itself */
	RAW_SWAPPED,	/* room, then request */
	RAW_OUTSIDE,	/* the request is outside of memory; room follows */
	RAW_NO_NEXT,	/* the next descriptor is beyond the table */
};

struct raw_call {
	__u32 shape;
	__u32 room;
};

static struct virtqueue *raw_vq;
static struct dentry *raw_file;
static DEFINE_MUTEX(raw_lock);	/* all of the following */
static void *raw_out, *raw_in;
static u32 raw_answer[RAW_MAX / 4 + 1];
static size_t raw_answer_len;

static void raw_desc(u16 i, void *at, u64 addr, u32 len, u16 flags, u16 next)
{
	struct vring_desc *desc = phys_to_virt(virtqueue_get_desc_addr(raw_vq));

	desc[i].addr = cpu_to_virtio64(raw_vq->vdev, at ? virt_to_phys(at) : addr);
	desc[i].len = cpu_to_virtio32(raw_vq->vdev, len);
	desc[i].flags = cpu_to_virtio16(raw_vq->vdev, flags);
	desc[i].next = cpu_to_virtio16(raw_vq->vdev, next);
}

static void raw_chain(const struct raw_call *call, u32 len)
{
	u16 more = call->room ? VRING_DESC_F_NEXT : 0;
	u16 end = virtqueue_get_vring_size(raw_vq);

	switch (call->shape) {
	case RAW_LOOP:
		raw_desc(0, raw_out, 0, len, VRING_DESC_F_NEXT, 0);
		return;
	case RAW_SWAPPED:
		raw_desc(0, raw_in, 0, call->room, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1);
		raw_desc(1, raw_out, 0, len, 0, 0);
		return;
	case RAW_OUTSIDE:
		raw_desc(0, NULL, 1ULL << 45, len, more, 1);
		break;
	case RAW_NO_NEXT:
		raw_desc(0, raw_out, 0, len, VRING_DESC_F_NEXT, end);
		return;
	default:
		raw_desc(0, raw_out, 0, len, more, 1);
	}
	raw_desc(1, raw_in, 0, call->room, VRING_DESC_F_WRITE, 0);
}

static int raw_run(const struct raw_call *call, u32 len)
{
	struct vring_avail *avail = phys_to_virt(virtqueue_get_avail_addr(raw_vq));
	struct vring_used *used = phys_to_virt(virtqueue_get_used_addr(raw_vq));
	struct virtio_device *vdev = raw_vq->vdev;
	u16 size = virtqueue_get_vring_size(raw_vq);
	u16 idx = virtio16_to_cpu(vdev, avail->idx);
	int ms;

	memset(raw_in, 0, RAW_MAX);
	raw_chain(call, len);
	avail->ring[idx % size] = cpu_to_virtio16(vdev, 0);
	virtio_wmb(false);
	avail->idx = cpu_to_virtio16(vdev, idx + 1);
	virtio_mb(false);
	virtqueue_notify(raw_vq);
	for (ms = 0; ms < RAW_WAIT_MS; ms++) {
		if (READ_ONCE(used->idx) == cpu_to_virtio16(vdev, idx + 1)) {
			virtio_rmb(false);
			raw_answer[0] = virtio32_to_cpu(vdev, used->ring[idx % size].len);
			memcpy(raw_answer + 1, raw_in, call->room);
			raw_answer_len = sizeof(u32) + call->room;
			return 0;
		}
		usleep_range(900, 1100);
	}
	return -ETIMEDOUT;
}

static ssize_t raw_write(struct file *file, const char __user *from, size_t count, loff_t *pos)
{
	struct raw_call call;
	size_t len = count - sizeof(call);
	int ret = -EINVAL;

	if (count < sizeof(call) || len > RAW_MAX)
		return -EINVAL;
	mutex_lock(&raw_lock);
	raw_answer_len = 0;
	if (copy_from_user(&call, from, sizeof(call)) ||
	    copy_from_user(raw_out, from + sizeof(call), len))
		ret = -EFAULT;
	else if (call.room <= RAW_MAX)
		ret = raw_run(&call, len);
	mutex_unlock(&raw_lock);
	return ret ?: count;
}

static ssize_t raw_read(struct file *file, char __user *to, size_t count, loff_t *pos)
{
	ssize_t ret;

	mutex_lock(&raw_lock);
	ret = simple_read_from_buffer(to, count, pos, raw_answer, raw_answer_len);
	mutex_unlock(&raw_lock);
	return ret;
}

static const struct file_operations raw_fops = {
	.owner = THIS_MODULE,
	.write = raw_write,
	.read = raw_read,
};

static int raw_probe(struct virtio_device *vdev)
{
	struct virtqueue_info infos[] = { { "control", NULL }, { "event", NULL } };
	struct virtqueue *vqs[2];
	int ret;

	ret = virtio_find_vqs(vdev, 2, vqs, infos, NULL);
	if (ret)
		return ret;
	raw_vq = vqs[0];
	raw_out = kzalloc(RAW_MAX, GFP_KERNEL);
	raw_in = kzalloc(RAW_MAX, GFP_KERNEL);
	if (!raw_out || !raw_in) {
		kfree(raw_out);
		kfree(raw_in);
		vdev->config->del_vqs(vdev);
		return -ENOMEM;
	}
	virtio_device_ready(vdev);
	raw_file = debugfs_create_file("bufshare_raw", 0600, NULL, NULL, &raw_fops);
	return 0;
}

static void raw_remove(struct virtio_device *vdev)
{
	debugfs_remove(raw_file);
	virtio_reset_device(vdev);
	vdev->config->del_vqs(vdev);
	kfree(raw_out);
	kfree(raw_in);
}

static const struct virtio_device_id raw_ids[] = { { 37, VIRTIO_DEV_ANY_ID }, { 0 } };

static struct virtio_driver raw_driver = {
	.driver.name = KBUILD_MODNAME,
	.id_table = raw_ids,
	.probe = raw_probe,
	.remove = raw_remove,
};
module_virtio_driver(raw_driver);

MODULE_DESCRIPTION("Hostile driver for tests of the buffer-sharing device");
MODULE_LICENSE("GPL");
