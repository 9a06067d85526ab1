// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_wire.c - the host's layouts and those of programs
 */
#include <linux/string.h>

#include "bufshare_priv.h"

/* The wire: what the compiler lays out is what the header says. */
static_assert(sizeof(struct virtio_bufshare_config) == VIRTIO_BUFSHARE_CONFIG_SIZE);
static_assert(offsetof(struct virtio_bufshare_config, reserved) == 72);
static_assert(sizeof(struct virtio_bufshare_req) == 24);
static_assert(sizeof(struct virtio_bufshare_resp) == 24);
static_assert(sizeof(struct virtio_bufshare_batch) == 32);
static_assert(sizeof(struct virtio_bufshare_batch_resp) == 32);
static_assert(sizeof(struct virtio_bufshare_handle) == 8);
static_assert(sizeof(struct virtio_bufshare_window) == 8);
static_assert(sizeof(struct virtio_bufshare_id) == 16);
static_assert(sizeof(struct virtio_bufshare_extent) == 16);
static_assert(sizeof(struct virtio_bufshare_access) == 16);
static_assert(sizeof(struct virtio_bufshare_plane) == 24);
static_assert(sizeof(struct virtio_bufshare_image) == 120);
static_assert(sizeof(struct virtio_bufshare_meta) == 176);
static_assert(sizeof(struct virtio_bufshare_get_caps) == 32);
static_assert(sizeof(struct virtio_bufshare_get_caps_resp) == 320);
static_assert(sizeof(struct virtio_bufshare_cursor) == 40);
static_assert(sizeof(struct virtio_bufshare_peer) == 56);
static_assert(sizeof(struct virtio_bufshare_list_resp) == 40);
static_assert(sizeof(struct virtio_bufshare_export) == 96);
static_assert(sizeof(struct virtio_bufshare_export_resp) == 48);
static_assert(sizeof(struct virtio_bufshare_by_id) == 40);
static_assert(sizeof(struct virtio_bufshare_unexport) == 48);
static_assert(sizeof(struct virtio_bufshare_attach) == 64);
static_assert(sizeof(struct virtio_bufshare_attach_resp) == 72);
static_assert(sizeof(struct virtio_bufshare_map) == 48);
static_assert(sizeof(struct virtio_bufshare_map_resp) == 56);
static_assert(sizeof(struct virtio_bufshare_sync) == 72);
static_assert(sizeof(struct virtio_bufshare_quiesce) == 48);
static_assert(sizeof(struct virtio_bufshare_set_meta) == 48);
static_assert(sizeof(struct virtio_bufshare_set_meta_resp) == 32);
static_assert(sizeof(struct virtio_bufshare_get_meta) == 48);
static_assert(sizeof(struct virtio_bufshare_get_meta_resp) == 32);
static_assert(sizeof(struct virtio_bufshare_buffer) == 120);
static_assert(sizeof(struct virtio_bufshare_query_resp) == 144);
static_assert(sizeof(struct virtio_bufshare_event) == 72);
static_assert(sizeof(struct virtio_bufshare_push) == 80);
static_assert(sizeof(struct virtio_bufshare_push_resp) == 40);
static_assert(sizeof(struct virtio_bufshare_return) == 16);
static_assert(sizeof(struct virtio_bufshare_pushed) == 136);
/* An event that this driver knows fits into the smallest buffer. */
static_assert(sizeof(struct virtio_bufshare_event) <= VIRTIO_BUFSHARE_MIN_EVENT_SIZE);

/* The user interface: the same on 32 and 64 bits. */
static_assert(offsetof(struct bufshare_info, backings) == BUFSHARE_INFO_SIZE_VER0);
static_assert(sizeof(struct bufshare_info) == 104);
static_assert(sizeof(struct bufshare_table) == BUFSHARE_TABLE_SIZE_VER0);
static_assert(sizeof(struct bufshare_alloc) == BUFSHARE_ALLOC_SIZE_VER0);
static_assert(offsetof(struct bufshare_export, stream_fd) == BUFSHARE_EXPORT_SIZE_VER0);
static_assert(sizeof(struct bufshare_export) == 88);
static_assert(offsetof(struct bufshare_import, size) == 48);
static_assert(sizeof(struct bufshare_import) == BUFSHARE_IMPORT_SIZE_VER0);
static_assert(sizeof(struct bufshare_meta_io) == BUFSHARE_META_IO_SIZE_VER0);
static_assert(offsetof(struct bufshare_query, buffer.stream) == BUFSHARE_QUERY_SIZE_VER0);
static_assert(sizeof(struct bufshare_query) == 128);
static_assert(sizeof(struct bufshare_quiesce) == BUFSHARE_QUIESCE_SIZE_VER0);
static_assert(sizeof(struct bufshare_event) == BUFSHARE_EVENT_SIZE_VER0);
static_assert(offsetof(struct bufshare_meta, epoch) == BUFSHARE_META_SIZE_VER0);
static_assert(sizeof(struct bufshare_meta) == 176);
static_assert(sizeof(struct bufshare_access) == BUFSHARE_ACCESS_SIZE_VER0);
static_assert(sizeof(struct bufshare_push) == BUFSHARE_PUSH_SIZE_VER0);
static_assert(sizeof(struct bufshare_return) == BUFSHARE_RETURN_SIZE_VER0);
static_assert(sizeof(struct bufshare_pushed) == 144);
static_assert(sizeof(struct bufshare_returned) == 80);

static_assert(VIRTIO_BUFSHARE_READ == BUFSHARE_READ && VIRTIO_BUFSHARE_WRITE == BUFSHARE_WRITE);
static_assert(VIRTIO_BUFSHARE_MAX_ENTRY == BUFSHARE_MAX_ENTRY);
static_assert(VIRTIO_BUFSHARE_MAX_BATCH == BUFSHARE_MAX_BATCH);
static_assert(VIRTIO_BUFSHARE_BACKING_EXTENTS == BUFSHARE_BACKING_EXTENTS);
static_assert(VIRTIO_BUFSHARE_BACKING_STREAM == BUFSHARE_BACKING_STREAM);
static_assert(VIRTIO_BUFSHARE_MAX_FRAME_BUFFERS == BUFSHARE_MAX_PLANES);
static_assert(sizeof(struct virtio_bufshare_extent) <= VIRTIO_BUFSHARE_MAX_EXTENT_SIZE);
/* A frame with the longest record goes over the wire. */
static_assert(sizeof(struct virtio_bufshare_push) + VIRTIO_BUFSHARE_MAX_FRAME_RECORD <=
	      VIRTIO_BUFSHARE_MAX_ENTRY);

/* What is copied from the one to the other is laid out alike. */
static_assert(sizeof(struct virtio_bufshare_peer) == sizeof(struct bufshare_peer));
static_assert(sizeof(struct virtio_bufshare_buffer) == sizeof(struct bufshare_buffer));
static_assert(sizeof(struct virtio_bufshare_meta) == sizeof(struct bufshare_meta));
static_assert(sizeof(struct virtio_bufshare_access) == sizeof(struct bufshare_access));
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
		to->image.planes[i].buffer = cpu_to_le32(from->image.planes[i].buffer);
	}
	to->blob_len = cpu_to_le32(from->blob_len);
	to->must_know = cpu_to_le32(from->must_know);
	to->epoch = cpu_to_le64(from->epoch);
	to->flags = cpu_to_le32(from->flags);
}

/**
 * bufshare_meta_from_wire() - metadata as programs want it
 * @to: their form
 * @from: the host's; what we do not know of them is for programs to judge
 */
void bufshare_meta_from_wire(struct bufshare_meta *to, const struct virtio_bufshare_meta *from)
{
	u32 i;

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
		to->image.planes[i].buffer = le32_to_cpu(from->image.planes[i].buffer);
		to->image.planes[i].reserved = le32_to_cpu(from->image.planes[i].reserved);
	}
	to->blob_len = le32_to_cpu(from->blob_len);
	to->must_know = le32_to_cpu(from->must_know);
	to->epoch = le64_to_cpu(from->epoch);
	to->flags = le32_to_cpu(from->flags);
	to->reserved = le32_to_cpu(from->reserved);
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
	memcpy(&to->stream, &from->stream, sizeof(to->stream));
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

/**
 * bufshare_event_from_wire() - an event as programs want it
 * @to: their form
 * @from: the host's, filled with zeroes where it was shorter
 */
void bufshare_event_from_wire(struct bufshare_event *to, const struct virtio_bufshare_event *from)
{
	to->type = le32_to_cpu(from->type);
	to->flags = 0;
	to->length = sizeof(*to);
	to->reserved = 0;
	to->seq = le64_to_cpu(from->seq);
	to->peer = le64_to_cpu(from->peer);
	memcpy(&to->id, &from->id, sizeof(to->id));
	to->handle = le64_to_cpu(from->handle);
	to->generation = le64_to_cpu(from->generation);
	to->value = le64_to_cpu(from->value);
}
