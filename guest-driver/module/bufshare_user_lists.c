// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_user_lists.c - metadata and access lists in the memory of programs
 *
 * They have the size that the program says, which may know fewer fields than we do, or
 * more.
 */
#include <linux/errno.h>
#include <linux/uaccess.h>

#include "bufshare_priv.h"

/**
 * bufshare_meta_read() - the metadata that a program gives
 * @bd: the device
 * @from: their address
 * @size: their bytes
 * @meta: where to put them
 * @status: set to what the host would say, if it would refuse them
 *
 * Return: 0 or a negative errno.
 */
int bufshare_meta_read(struct bufshare_device *bd, u64 from, u32 size, struct bufshare_meta *meta,
		       u32 *status)
{
	u32 i;
	int ret;

	if (!bufshare_entry_fits(size, BUFSHARE_META_SIZE_VER0))
		return -EINVAL;
	ret = copy_struct_from_user(meta, sizeof(*meta), u64_to_user_ptr(from), size);
	if (ret)
		return ret;
	/* Whether they are set where they have to be, or must not be, the host looks. */
	if (meta->must_know & ~VIRTIO_BUFSHARE_KNOW_BUFFERS ||
	    meta->flags & ~VIRTIO_BUFSHARE_STREAM_ENDED || meta->reserved)
		return -EINVAL;
	for (i = 0; i < BUFSHARE_MAX_PLANES; i++) {
		if (meta->image.planes[i].reserved)
			return -EINVAL;
	}
	if (meta->blob_len > bd->caps.max_blob) {
		*status = VIRTIO_BUFSHARE_S_META_TOO_LARGE;
		return -EMSGSIZE;
	}
	return 0;
}

/**
 * bufshare_meta_room() - how long a blob a program has room for
 * @to: address of the metadata that it wants, of which only this is read
 * @size: their bytes
 * @room: where to put it
 *
 * Return: 0 or a negative errno.
 */
int bufshare_meta_room(u64 to, u32 size, u32 *room)
{
	struct bufshare_meta __user *meta = u64_to_user_ptr(to);

	if (!bufshare_entry_fits(size, BUFSHARE_META_SIZE_VER0))
		return -EINVAL;
	return get_user(*room, &meta->blob_len);
}

/**
 * bufshare_acl_read() - the access list that a program gives
 * @from: its address
 * @size: bytes of each line
 * @lines: where to put them
 * @num: lines
 *
 * Return: 0 or a negative errno.
 */
int bufshare_acl_read(u64 from, u32 size, struct bufshare_access *lines, u32 num)
{
	u32 i;
	int ret;

	/* Of an empty list, too: so says the host. */
	if (!bufshare_entry_fits(size, BUFSHARE_ACCESS_SIZE_VER0))
		return -EINVAL;
	for (i = 0; i < num; i++) {
		ret = copy_struct_from_user(&lines[i], sizeof(*lines),
					    u64_to_user_ptr(from + (u64)i * size), size);
		if (ret)
			return ret;
		if (lines[i].reserved || lines[i].rights & ~(BUFSHARE_READ | BUFSHARE_WRITE) ||
		    !(lines[i].rights & BUFSHARE_READ))
			return -EINVAL;
	}
	return 0;
}
