// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_wire.c - the host's layouts and those of programs
 */
#include <linux/string.h>

#include "bufshare_priv.h"

/* The wire: what the compiler lays out is what the header says. */
static_assert(sizeof(struct virtio_bufshare_config) == 64);
static_assert(sizeof(struct virtio_bufshare_req) == 16);
static_assert(sizeof(struct virtio_bufshare_resp) == 16);
static_assert(sizeof(struct virtio_bufshare_id) == 16);
static_assert(sizeof(struct virtio_bufshare_extent) == 16);
static_assert(sizeof(struct virtio_bufshare_access) == 16);
static_assert(sizeof(struct virtio_bufshare_plane) == 16);
static_assert(sizeof(struct virtio_bufshare_image) == 88);
static_assert(sizeof(struct virtio_bufshare_meta) == 128);
static_assert(sizeof(struct virtio_bufshare_get_caps) == 24);
static_assert(sizeof(struct virtio_bufshare_get_caps_resp) == 120);
static_assert(sizeof(struct virtio_bufshare_cursor) == 24);
static_assert(sizeof(struct virtio_bufshare_peer) == 56);
static_assert(sizeof(struct virtio_bufshare_list_resp) == 32);
static_assert(sizeof(struct virtio_bufshare_export) == 160);
static_assert(sizeof(struct virtio_bufshare_export_resp) == 40);
static_assert(sizeof(struct virtio_bufshare_by_id) == 32);
static_assert(sizeof(struct virtio_bufshare_attach) == 40);
static_assert(sizeof(struct virtio_bufshare_attach_resp) == 64);
static_assert(sizeof(struct virtio_bufshare_by_handle) == 24);
static_assert(sizeof(struct virtio_bufshare_map) == 40);
static_assert(sizeof(struct virtio_bufshare_map_resp) == 40);
static_assert(sizeof(struct virtio_bufshare_sync) == 64);
static_assert(sizeof(struct virtio_bufshare_set_meta) == 160);
static_assert(sizeof(struct virtio_bufshare_set_meta_resp) == 24);
static_assert(sizeof(struct virtio_bufshare_get_meta_resp) == 152);
static_assert(sizeof(struct virtio_bufshare_buffer) == 104);
static_assert(sizeof(struct virtio_bufshare_query_resp) == 120);
static_assert(sizeof(struct virtio_bufshare_event) == 64);

/* The user interface: the same on 32 and 64 bits. */
static_assert(sizeof(struct bufshare_info) == 96);
static_assert(sizeof(struct bufshare_table) == 24);
static_assert(sizeof(struct bufshare_alloc) == 24);
static_assert(sizeof(struct bufshare_export) == 192);
static_assert(sizeof(struct bufshare_import) == 72);
static_assert(sizeof(struct bufshare_meta_io) == 168);
static_assert(sizeof(struct bufshare_query) == 112);

static_assert(VIRTIO_BUFSHARE_READ == BUFSHARE_READ && VIRTIO_BUFSHARE_WRITE == BUFSHARE_WRITE);

/* What is copied from the one to the other is laid out alike. */
static_assert(sizeof(struct virtio_bufshare_peer) == sizeof(struct bufshare_peer));
static_assert(sizeof(struct virtio_bufshare_buffer) == sizeof(struct bufshare_buffer));
static_assert(sizeof(struct virtio_bufshare_meta) == sizeof(struct bufshare_meta));
static_assert(sizeof(struct virtio_bufshare_event) == sizeof(struct bufshare_event));

/**
 * bufshare_meta_to_wire() - metadata as the host wants it
 * @to: its form
 * @from: ours
 */
void bufshare_meta_to_wire(struct virtio_bufshare_meta *to, const struct bufshare_meta *from)
{
	u32 i;

	memcpy(to->name, from->name, sizeof(to->name));
	to->image.fourcc = cpu_to_le32(from->image.fourcc);
	to->image.num_planes = cpu_to_le32(from->image.num_planes);
	to->image.width = cpu_to_le32(from->image.width);
	to->image.height = cpu_to_le32(from->image.height);
	to->image.modifier = cpu_to_le64(from->image.modifier);
	for (i = 0; i < BUFSHARE_MAX_PLANES; i++) {
		to->image.planes[i].offset = cpu_to_le64(from->image.planes[i].offset);
		to->image.planes[i].stride = cpu_to_le32(from->image.planes[i].stride);
		to->image.planes[i].rows = cpu_to_le32(from->image.planes[i].rows);
	}
	to->blob_len = cpu_to_le32(from->blob_len);
}

/**
 * bufshare_meta_from_wire() - metadata as programs want it
 * @to: their form
 * @from: the host's
 */
void bufshare_meta_from_wire(struct bufshare_meta *to, const struct virtio_bufshare_meta *from)
{
	u32 i;

	memset(to, 0, sizeof(*to));
	memcpy(to->name, from->name, sizeof(to->name));
	to->image.fourcc = le32_to_cpu(from->image.fourcc);
	to->image.num_planes = le32_to_cpu(from->image.num_planes);
	to->image.width = le32_to_cpu(from->image.width);
	to->image.height = le32_to_cpu(from->image.height);
	to->image.modifier = le64_to_cpu(from->image.modifier);
	for (i = 0; i < BUFSHARE_MAX_PLANES; i++) {
		to->image.planes[i].offset = le64_to_cpu(from->image.planes[i].offset);
		to->image.planes[i].stride = le32_to_cpu(from->image.planes[i].stride);
		to->image.planes[i].rows = le32_to_cpu(from->image.planes[i].rows);
	}
	to->blob_len = le32_to_cpu(from->blob_len);
}

/**
 * bufshare_buffer_from_wire() - what is known of a buffer, as programs want it
 * @to: their form
 * @from: the host's
 */
void bufshare_buffer_from_wire(struct bufshare_buffer *to,
			       const struct virtio_bufshare_buffer *from)
{
	memcpy(&to->id, &from->id, sizeof(to->id));
	to->owner = le64_to_cpu(from->owner);
	to->size = le64_to_cpu(from->size);
	to->generation = le64_to_cpu(from->generation);
	to->meta_seq = le64_to_cpu(from->meta_seq);
	to->rights = le32_to_cpu(from->rights);
	to->flags = le32_to_cpu(from->flags);
	to->extents = le32_to_cpu(from->extents);
	to->attachments = le32_to_cpu(from->attachments);
	to->mapped = le32_to_cpu(from->mapped);
	to->fourcc = le32_to_cpu(from->fourcc);
	memcpy(to->name, from->name, sizeof(to->name));
}

/**
 * bufshare_peer_from_wire() - what is known of a peer, as programs want it
 * @to: their form
 * @from: the host's
 */
void bufshare_peer_from_wire(struct bufshare_peer *to, const struct virtio_bufshare_peer *from)
{
	to->id = le64_to_cpu(from->id);
	memcpy(to->name, from->name, sizeof(to->name));
	to->state = le32_to_cpu(from->state);
	to->export_rights = le32_to_cpu(from->export_rights);
	to->import_rights = le32_to_cpu(from->import_rights);
	to->reserved = 0;
}
