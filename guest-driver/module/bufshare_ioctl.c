// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_ioctl.c - the ioctls of /dev/bufshare
 *
 * The argument of each ioctl is copied in once, and copied out also when it
 * failed, for its status. A new file descriptor is installed last, when nothing
 * can fail any more.
 */
#include <linux/errno.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "bufshare_priv.h"

static void bufshare_buffer_entry(void *to, const void *from)
{
	bufshare_buffer_from_wire(to, from);
}

static void bufshare_peer_entry(void *to, const void *from)
{
	bufshare_peer_from_wire(to, from);
}

static int bufshare_malformed(struct bufshare_device *bd)
{
	dev_err_ratelimited(bd->dev, "malformed answer\n");
	bufshare_lock(bd);
	bd->stats.malformed++;
	bufshare_unlock(bd);
	return -EPROTO;
}

/* INFO */
static int bufshare_ioc_info(struct bufshare_device *bd, void *data, struct bufshare_newfd *newfd)
{
	struct bufshare_info *info = data;
	struct bufshare_caps caps;
	int ret;

	memset(info, 0, sizeof(*info));
	ret = bufshare_get_caps(bd, &info->windows_used);
	if (ret)
		return ret;
	bufshare_lock(bd);
	caps = bd->caps;
	memcpy(info->name, bd->name, sizeof(info->name));
	bufshare_unlock(bd);
	info->version = caps.version;
	info->caps = caps.caps;
	info->max_windows = caps.max_windows;
	info->max_extents = caps.max_extents;
	info->max_buffers = caps.max_buffers;
	info->max_attachments = caps.max_attachments;
	info->max_blob = caps.max_blob;
	info->map_align = caps.map_align;
	info->shm_size = caps.shm_size;
	info->max_buffer_size = caps.max_buffer_size;
	info->peer_id = caps.peer_id;
	return 0;
}

/* PEERS and LIST: as many entries as one answer may have; the loop is the caller's. */
static int bufshare_table(struct bufshare_device *bd, struct bufshare_table *arg, u32 type,
			  size_t entry, void (*convert)(void *to, const void *from))
{
	struct virtio_bufshare_list_resp resp;
	struct virtio_bufshare_cursor *out;
	struct bufshare_req *req;
	void *table = NULL;
	u32 room, count, i;
	int ret;

	arg->status = 0;
	if (!arg->count)
		return -EINVAL;
	room = min(arg->count, VIRTIO_BUFSHARE_MAX_LIST);
	req = bufshare_req_alloc(type, sizeof(*out), sizeof(resp) + room * entry);
	if (!req)
		return -ENOMEM;
	req->in_min = sizeof(resp);
	out = req->out;
	out->cursor = cpu_to_le64(arg->cursor);
	ret = bufshare_call(bd, req, &arg->status);
	if (ret)
		goto out;

	memcpy(&resp, req->in, sizeof(resp));
	count = le32_to_cpu(resp.count);
	if (count > room || req->used != sizeof(resp) + count * entry) {
		ret = bufshare_malformed(bd);
		goto out;
	}
	ret = -ENOMEM;
	table = kcalloc(max(count, 1U), entry, GFP_KERNEL);
	if (!table)
		goto out;
	for (i = 0; i < count; i++)
		convert(table + i * entry, req->in + sizeof(resp) + i * entry);
	ret = -EFAULT;
	if (copy_to_user(u64_to_user_ptr(arg->entries), table, count * entry))
		goto out;
	arg->cursor = le64_to_cpu(resp.next);
	arg->count = count;
	ret = 0;
out:
	kfree(table);
	bufshare_req_put(req);
	return ret;
}

static int bufshare_ioc_peers(struct bufshare_device *bd, void *data, struct bufshare_newfd *newfd)
{
	return bufshare_table(bd, data, VIRTIO_BUFSHARE_CMD_PEERS, sizeof(struct bufshare_peer),
			      bufshare_peer_entry);
}

static int bufshare_ioc_list(struct bufshare_device *bd, void *data, struct bufshare_newfd *newfd)
{
	return bufshare_table(bd, data, VIRTIO_BUFSHARE_CMD_LIST, sizeof(struct bufshare_buffer),
			      bufshare_buffer_entry);
}

static int bufshare_ioc_alloc_any(struct bufshare_device *bd, void *data,
				  struct bufshare_newfd *newfd)
{
	return bufshare_ioc_alloc(bd, data, newfd);
}

static int bufshare_ioc_export_any(struct bufshare_device *bd, void *data,
				   struct bufshare_newfd *newfd)
{
	struct bufshare_export *arg = data;

	arg->status = 0;
	return bufshare_ioc_export(bd, arg, newfd);
}

static int bufshare_ioc_import_any(struct bufshare_device *bd, void *data,
				   struct bufshare_newfd *newfd)
{
	struct bufshare_import *arg = data;

	arg->status = 0;
	return bufshare_ioc_import(bd, arg, newfd);
}

/* SET_META */
static int bufshare_ioc_set_meta(struct bufshare_device *bd, void *data,
				 struct bufshare_newfd *newfd)
{
	struct bufshare_meta_io *arg = data;
	struct virtio_bufshare_set_meta_resp resp;
	struct virtio_bufshare_set_meta *out;
	struct bufshare_req *req;
	int ret;

	arg->status = 0;
	if (arg->reserved || arg->meta.reserved)
		return -EINVAL;
	if (arg->meta.blob_len > bd->caps.max_blob) {
		arg->status = VIRTIO_BUFSHARE_S_META_TOO_LARGE;
		return -EMSGSIZE;
	}
	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_SET_META, sizeof(*out) + arg->meta.blob_len,
				 sizeof(resp));
	if (!req)
		return -ENOMEM;
	out = req->out;
	memcpy(&out->id, &arg->id, sizeof(out->id));
	bufshare_meta_to_wire(&out->meta, &arg->meta);
	ret = -EFAULT;
	if (copy_from_user(out + 1, u64_to_user_ptr(arg->blob), arg->meta.blob_len))
		goto out;
	ret = bufshare_call(bd, req, &arg->status);
	if (!ret) {
		memcpy(&resp, req->in, sizeof(resp));
		arg->seq = le64_to_cpu(resp.seq);
	}
out:
	bufshare_req_put(req);
	return ret;
}

/* GET_META */
static int bufshare_ioc_get_meta(struct bufshare_device *bd, void *data,
				 struct bufshare_newfd *newfd)
{
	struct bufshare_meta_io *arg = data;
	u32 room = arg->meta.blob_len;
	struct virtio_bufshare_get_meta_resp resp;
	struct virtio_bufshare_by_id *out;
	struct bufshare_req *req;
	int ret;

	arg->status = 0;
	if (arg->reserved || arg->meta.reserved)
		return -EINVAL;
	/* Always room for the largest: the length needed is to be returned. */
	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_GET_META, sizeof(*out),
				 sizeof(resp) + VIRTIO_BUFSHARE_MAX_BLOB);
	if (!req)
		return -ENOMEM;
	req->in_min = sizeof(resp);
	out = req->out;
	memcpy(&out->id, &arg->id, sizeof(out->id));
	ret = bufshare_call(bd, req, &arg->status);
	if (ret)
		goto out;

	memcpy(&resp, req->in, sizeof(resp));
	if (le32_to_cpu(resp.meta.blob_len) != req->used - sizeof(resp)) {
		ret = bufshare_malformed(bd);
		goto out;
	}
	arg->seq = le64_to_cpu(resp.seq);
	bufshare_meta_from_wire(&arg->meta, &resp.meta);
	if (arg->meta.blob_len > room)
		ret = -EMSGSIZE;
	else if (copy_to_user(u64_to_user_ptr(arg->blob), req->in + sizeof(resp),
			      arg->meta.blob_len))
		ret = -EFAULT;
out:
	bufshare_req_put(req);
	return ret;
}

/* QUERY */
static int bufshare_ioc_query(struct bufshare_device *bd, void *data, struct bufshare_newfd *newfd)
{
	const size_t after_id = offsetof(struct bufshare_buffer, owner);
	struct bufshare_query *arg = data;
	struct virtio_bufshare_query_resp resp;
	struct virtio_bufshare_by_id *out;
	struct bufshare_req *req;
	int ret;

	arg->status = 0;
	if (arg->reserved ||
	    memchr_inv(&arg->buffer.owner, 0, sizeof(arg->buffer) - after_id))
		return -EINVAL;
	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_QUERY, sizeof(*out), sizeof(resp));
	if (!req)
		return -ENOMEM;
	out = req->out;
	memcpy(&out->id, &arg->buffer.id, sizeof(out->id));
	ret = bufshare_call(bd, req, &arg->status);
	if (!ret) {
		memcpy(&resp, req->in, sizeof(resp));
		bufshare_buffer_from_wire(&arg->buffer, &resp.buffer);
	}
	bufshare_req_put(req);
	return ret;
}

/**
 * struct bufshare_ioc - one ioctl
 * @cmd: its number, with the size of its argument
 * @call: what it does
 */
struct bufshare_ioc {
	unsigned int cmd;
	int (*call)(struct bufshare_device *bd, void *data, struct bufshare_newfd *newfd);
};

#define BUFSHARE_IOC(name, func) \
	[_IOC_NR(BUFSHARE_IOC_##name)] = { BUFSHARE_IOC_##name, func }

static const struct bufshare_ioc bufshare_iocs[] = {
	BUFSHARE_IOC(INFO, bufshare_ioc_info),
	BUFSHARE_IOC(PEERS, bufshare_ioc_peers),
	BUFSHARE_IOC(ALLOC, bufshare_ioc_alloc_any),
	BUFSHARE_IOC(EXPORT, bufshare_ioc_export_any),
	BUFSHARE_IOC(IMPORT, bufshare_ioc_import_any),
	BUFSHARE_IOC(SET_META, bufshare_ioc_set_meta),
	BUFSHARE_IOC(GET_META, bufshare_ioc_get_meta),
	BUFSHARE_IOC(QUERY, bufshare_ioc_query),
	BUFSHARE_IOC(LIST, bufshare_ioc_list),
};

/**
 * bufshare_ioctl() - an ioctl of /dev/bufshare
 * @file: the file
 * @cmd: its number
 * @arg: the program's argument
 *
 * Return: 0 or a negative errno.
 */
long bufshare_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct bufshare_newfd newfd = { .fd = -1 };
	struct bufshare_file *bf = file->private_data;
	void __user *user = (void __user *)arg;
	unsigned int nr = _IOC_NR(cmd);
	union {
		struct bufshare_info info;
		struct bufshare_table table;
		struct bufshare_alloc alloc;
		struct bufshare_export export;
		struct bufshare_import import;
		struct bufshare_meta_io meta;
		struct bufshare_query query;
	} data;
	int ret;

	if (nr >= ARRAY_SIZE(bufshare_iocs) || bufshare_iocs[nr].cmd != cmd)
		return -ENOTTY;
	if (!READ_ONCE(bf->bd->alive))
		return -ENODEV;
	memset(&data, 0, sizeof(data));
	if (_IOC_DIR(cmd) & _IOC_WRITE && copy_from_user(&data, user, _IOC_SIZE(cmd)))
		return -EFAULT;

	ret = bufshare_iocs[nr].call(bf->bd, &data, &newfd);
	if (copy_to_user(user, &data, _IOC_SIZE(cmd)) && !ret)
		ret = -EFAULT;
	if (newfd.fd >= 0) {
		if (ret) {
			put_unused_fd(newfd.fd);
			fput(newfd.file);
		} else {
			fd_install(newfd.fd, newfd.file);
		}
	}
	return ret;
}
