// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_ioctl.c - the ioctls of /dev/bufshare
 *
 * The argument of each ioctl is copied in once, and copied out also when it
 * failed, for its status. A new file descriptor or handle is installed last, when
 * nothing can fail any more.
 */
#include <linux/errno.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/nospec.h>
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
	info->ways = caps.ways;
	info->backings = caps.backings;
	info->max_batch = caps.max_batch;
	return 0;
}

/*
 * Copy the entries of an answer out, each of entry bytes as the host has them and as we
 * do. In the program's table they have the size that it says: cut, or filled with zeroes.
 */
static int bufshare_table_copy(const struct bufshare_table *arg, u32 count, size_t entry,
			       void (*convert)(void *to, const void *from), const void *from)
{
	size_t size = arg->entry_size, i;
	void *table, *ours;
	int ret = -ENOMEM;

	ours = kzalloc(entry, GFP_KERNEL);
	table = kvcalloc(max(count, 1U), size, GFP_KERNEL);
	if (!ours || !table)
		goto out;
	for (i = 0; i < count; i++) {
		convert(ours, from + i * entry);
		memcpy(table + i * size, ours, min(size, entry));
	}
	ret = copy_to_user(u64_to_user_ptr(arg->entries), table, count * size) ? -EFAULT : 0;
out:
	kvfree(table);
	kfree(ours);
	return ret;
}

/*
 * PEERS and LIST: as many entries as one answer may have; the loop is the caller's. An
 * entry has as many bytes for the host as for us.
 */
static int bufshare_table(struct bufshare_device *bd, struct bufshare_table *arg, u32 type,
			  size_t entry, void (*convert)(void *to, const void *from))
{
	struct virtio_bufshare_list_resp resp;
	struct virtio_bufshare_cursor *out;
	struct bufshare_req *req;
	u32 room, count;
	int ret;

	arg->status = 0;
	if (!arg->count || !bufshare_entry_fits(arg->entry_size, BUFSHARE_ENTRY_ALIGN) ||
	    arg->reserved)
		return -EINVAL;
	room = min(arg->count, VIRTIO_BUFSHARE_MAX_LIST);
	req = bufshare_req_alloc(type, sizeof(*out), 0, sizeof(resp), room * entry);
	if (!req)
		return -ENOMEM;
	out = req->out;
	out->cursor = cpu_to_le64(arg->cursor);
	out->entry_size = cpu_to_le32(entry);
	ret = bufshare_call(bd, req, &arg->status);
	if (ret)
		goto out;

	memcpy(&resp, req->in, sizeof(resp));
	count = le32_to_cpu(resp.count);
	if (count > room || req->used != sizeof(resp) + count * entry) {
		ret = bufshare_malformed(bd);
		goto out;
	}
	ret = bufshare_table_copy(arg, count, entry, convert, req->in + sizeof(resp));
	if (ret)
		goto out;
	arg->cursor = le64_to_cpu(resp.next);
	arg->count = count;
out:
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

static int bufshare_ioc_handle_to_fd_any(struct bufshare_device *bd, void *data,
					 struct bufshare_newfd *newfd)
{
	return bufshare_ioc_handle_to_fd(newfd->bf, data, newfd);
}

static int bufshare_ioc_close_any(struct bufshare_device *bd, void *data,
				  struct bufshare_newfd *newfd)
{
	return bufshare_ioc_close(newfd->bf, data);
}

static int bufshare_ioc_push_any(struct bufshare_device *bd, void *data,
				 struct bufshare_newfd *newfd)
{
	return bufshare_ioc_push(newfd->bf, data);
}

static int bufshare_ioc_return_any(struct bufshare_device *bd, void *data,
				   struct bufshare_newfd *newfd)
{
	return bufshare_ioc_return(newfd->bf, data);
}

/* SET_META */
static int bufshare_ioc_set_meta(struct bufshare_device *bd, void *data,
				 struct bufshare_newfd *newfd)
{
	struct bufshare_meta_io *arg = data;
	struct virtio_bufshare_set_meta_resp resp;
	struct virtio_bufshare_set_meta *out;
	struct virtio_bufshare_meta *record;
	struct bufshare_req *req;
	struct bufshare_meta meta;
	int ret;

	arg->status = 0;
	if (arg->reserved)
		return -EINVAL;
	ret = bufshare_meta_read(bd, arg->meta, arg->meta_size, &meta, &arg->status);
	if (ret)
		return ret;
	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_SET_META, sizeof(*out),
				 sizeof(*record) + meta.blob_len, sizeof(resp), 0);
	if (!req)
		return -ENOMEM;
	out = req->out;
	ret = bufshare_exp_id(bd, arg->export_fd, &out->id, &arg->status);
	if (ret)
		goto out;
	memcpy(&arg->id, &out->id, sizeof(arg->id));
	out->meta_size = cpu_to_le32(sizeof(*record));
	record = (struct virtio_bufshare_meta *)(out + 1);
	bufshare_meta_to_wire(record, &meta);
	ret = -EFAULT;
	if (copy_from_user(record + 1, u64_to_user_ptr(arg->blob), meta.blob_len))
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

/* Copy the metadata of an answer out, and their blob if there is room for it. */
static int bufshare_meta_copy(const struct bufshare_meta_io *arg, u32 room,
			      const struct virtio_bufshare_meta *record, const void *blob)
{
	struct bufshare_meta meta;
	int ret = 0;

	bufshare_meta_from_wire(&meta, record);
	if (meta.blob_len > room)
		ret = -EMSGSIZE;
	else if (copy_to_user(u64_to_user_ptr(arg->blob), blob, meta.blob_len))
		return -EFAULT;
	/* Also when there is too little room: they say how much is needed. */
	if (copy_struct_to_user(u64_to_user_ptr(arg->meta), arg->meta_size, &meta, sizeof(meta),
				NULL))
		return -EFAULT;
	return ret;
}

/* GET_META */
static int bufshare_ioc_get_meta(struct bufshare_device *bd, void *data,
				 struct bufshare_newfd *newfd)
{
	struct bufshare_meta_io *arg = data;
	struct virtio_bufshare_get_meta_resp resp;
	struct virtio_bufshare_meta record;
	const size_t least = sizeof(resp) + sizeof(record);
	struct virtio_bufshare_get_meta *out;
	struct bufshare_req *req;
	u32 room;
	int ret;

	arg->status = 0;
	if (arg->export_fd || arg->reserved)
		return -EINVAL;
	ret = bufshare_meta_room(arg->meta, arg->meta_size, &room);
	if (ret)
		return ret;
	/* Always room for the largest: the length needed is to be returned. */
	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_GET_META, sizeof(*out), 0, sizeof(resp),
				 sizeof(record) + VIRTIO_BUFSHARE_MAX_BLOB);
	if (!req)
		return -ENOMEM;
	out = req->out;
	memcpy(&out->id, &arg->id, sizeof(out->id));
	out->meta_size = cpu_to_le32(sizeof(record));
	ret = bufshare_call(bd, req, &arg->status);
	if (ret)
		goto out;

	memcpy(&resp, req->in, sizeof(resp));
	memcpy(&record, req->in + sizeof(resp), sizeof(record));
	if (req->used < least || le32_to_cpu(record.blob_len) != req->used - least) {
		ret = bufshare_malformed(bd);
		goto out;
	}
	arg->seq = le64_to_cpu(resp.seq);
	ret = bufshare_meta_copy(arg, room, &record, req->in + least);
out:
	bufshare_req_put(req);
	return ret;
}

/* QUERY */
static int bufshare_ioc_query(struct bufshare_device *bd, void *data, struct bufshare_newfd *newfd)
{
	struct bufshare_query *arg = data;
	struct virtio_bufshare_query_resp resp;
	struct virtio_bufshare_by_id *out;
	struct bufshare_req *req;
	int ret;

	arg->status = 0;
	if (arg->reserved)
		return -EINVAL;
	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_QUERY, sizeof(*out), 0, sizeof(resp), 0);
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

/* QUIESCE */
static int bufshare_ioc_quiesce(struct bufshare_device *bd, void *data,
				struct bufshare_newfd *newfd)
{
	struct bufshare_quiesce *arg = data;

	arg->status = 0;
	if (arg->mode > BUFSHARE_QUIESCE_QUIESCED || arg->reserved)
		return -EINVAL;
	return bufshare_exp_quiesce(bd, arg->export_fd, arg->mode == BUFSHARE_QUIESCE_QUIESCED,
				    &arg->status);
}

/**
 * struct bufshare_ioc - one ioctl
 * @cmd: its number, with the size that its argument has for us
 * @least: bytes that its argument has for every program
 * @local: it asks neither the host nor the device, and works when these are gone
 * @call: what it does
 */
struct bufshare_ioc {
	unsigned int cmd;
	size_t least;
	bool local;
	int (*call)(struct bufshare_device *bd, void *data, struct bufshare_newfd *newfd);
};

#define BUFSHARE_IOC(name, least, func) \
	[_IOC_NR(BUFSHARE_IOC_##name)] = { BUFSHARE_IOC_##name, least, false, func }
#define BUFSHARE_IOC_LOCAL(name, least, func) \
	[_IOC_NR(BUFSHARE_IOC_##name)] = { BUFSHARE_IOC_##name, least, true, func }

static const struct bufshare_ioc bufshare_iocs[] = {
	BUFSHARE_IOC(INFO, BUFSHARE_INFO_SIZE_VER0, bufshare_ioc_info),
	BUFSHARE_IOC(PEERS, BUFSHARE_TABLE_SIZE_VER0, bufshare_ioc_peers),
	BUFSHARE_IOC(ALLOC, BUFSHARE_ALLOC_SIZE_VER0, bufshare_ioc_alloc_any),
	BUFSHARE_IOC(EXPORT, BUFSHARE_EXPORT_SIZE_VER0, bufshare_ioc_export_any),
	BUFSHARE_IOC(IMPORT, BUFSHARE_IMPORT_SIZE_VER0, bufshare_ioc_import_any),
	BUFSHARE_IOC(SET_META, BUFSHARE_META_IO_SIZE_VER0, bufshare_ioc_set_meta),
	BUFSHARE_IOC(GET_META, BUFSHARE_META_IO_SIZE_VER0, bufshare_ioc_get_meta),
	BUFSHARE_IOC(QUERY, BUFSHARE_QUERY_SIZE_VER0, bufshare_ioc_query),
	BUFSHARE_IOC(LIST, BUFSHARE_TABLE_SIZE_VER0, bufshare_ioc_list),
	BUFSHARE_IOC(QUIESCE, BUFSHARE_QUIESCE_SIZE_VER0, bufshare_ioc_quiesce),
	BUFSHARE_IOC_LOCAL(HANDLE_TO_FD, BUFSHARE_HANDLE_TO_FD_SIZE_VER0,
			   bufshare_ioc_handle_to_fd_any),
	BUFSHARE_IOC_LOCAL(CLOSE, BUFSHARE_CLOSE_SIZE_VER0, bufshare_ioc_close_any),
	BUFSHARE_IOC(PUSH, BUFSHARE_PUSH_SIZE_VER0, bufshare_ioc_push_any),
	BUFSHARE_IOC(RETURN, BUFSHARE_RETURN_SIZE_VER0, bufshare_ioc_return_any),
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
	struct bufshare_file *bf = file->private_data;
	struct bufshare_newfd newfd = { .bf = bf, .fd = -1 };
	void __user *user = (void __user *)arg;
	size_t user_size = _IOC_SIZE(cmd), size;
	const struct bufshare_ioc *ioc;
	union {
		struct bufshare_info info;
		struct bufshare_table table;
		struct bufshare_alloc alloc;
		struct bufshare_export export;
		struct bufshare_import import;
		struct bufshare_meta_io meta;
		struct bufshare_query query;
		struct bufshare_quiesce quiesce;
		struct bufshare_handle_to_fd handle_to_fd;
		struct bufshare_close close;
		struct bufshare_push push;
		struct bufshare_return give_back;
	} data;
	int ret;

	if (_IOC_TYPE(cmd) != BUFSHARE_IOC_MAGIC || _IOC_NR(cmd) >= ARRAY_SIZE(bufshare_iocs))
		return -ENOTTY;
	ioc = &bufshare_iocs[array_index_nospec(_IOC_NR(cmd), ARRAY_SIZE(bufshare_iocs))];
	/* Some numbers are of no ioctl. */
	if (!ioc->call || _IOC_DIR(cmd) != _IOC_DIR(ioc->cmd))
		return -ENOTTY;
	if (user_size < ioc->least)
		return -EINVAL;
	if (!ioc->local && !READ_ONCE(bf->bd->alive))
		return -ENODEV;
	/* The argument's size is the program's: it may know fewer fields than we do, or more. */
	size = _IOC_SIZE(ioc->cmd);
	memset(&data, 0, sizeof(data));
	ret = copy_struct_from_user(&data, size, user, user_size);
	if (ret)
		return ret;

	ret = ioc->call(bf->bd, &data, &newfd);
	if (copy_struct_to_user(user, user_size, &data, size, NULL) && !ret)
		ret = -EFAULT;
	if (newfd.fd >= 0) {
		if (ret) {
			put_unused_fd(newfd.fd);
			fput(newfd.file);
		} else {
			fd_install(newfd.fd, newfd.file);
		}
	}
	if (newfd.handle) {
		if (ret)
			bufshare_handle_cancel(newfd.handle);
		else
			bufshare_handle_install(newfd.handle);
	}
	return ret;
}
