/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR BSD-3-Clause */
/*
 * Wire format of the buffer-sharing virtio device
 *
 * One device per virtual machine ("peer"). A peer EXPORTs a buffer whose
 * backing is its own RAM; another peer ATTACHes to it and MAPs it into its
 * own shared-memory region (shmid 0). Everything is little endian, every
 * reserved field is zero and checked, every length is exact.
 *
 * Queue 0 (control): one request per descriptor chain, the driver's request
 * first, then room for the device's response. Each chain is completed exactly
 * once and, where its response room holds a header, always with a status.
 * Queue 1 (event): device-writable buffers of struct virtio_bufshare_event.
 *
 * No device feature bit is used: capabilities are in the configuration space
 * and in the answer to GET_CAPS.
 */
#ifndef _VIRTIO_BUFSHARE_H
#define _VIRTIO_BUFSHARE_H

#include <linux/types.h>

#define VIRTIO_BUFSHARE_ID		37	/* VIRTIO_ID_DMABUF */
#define VIRTIO_BUFSHARE_VERSION		1

#define VIRTIO_BUFSHARE_QUEUE_CONTROL	0
#define VIRTIO_BUFSHARE_QUEUE_EVENT	1
#define VIRTIO_BUFSHARE_NUM_QUEUES	2
#define VIRTIO_BUFSHARE_SHMID		0

/* Limits of the format; the device's own, often lower, are in its config. */
#define VIRTIO_BUFSHARE_NAME_LEN	32	/* name, NUL padded, UTF-8 */
#define VIRTIO_BUFSHARE_ID_LEN		16
#define VIRTIO_BUFSHARE_MAX_PLANES	4	/* as DRM framebuffers */
#define VIRTIO_BUFSHARE_MAX_ACL		16
#define VIRTIO_BUFSHARE_MAX_EXTENTS	1024	/* udmabuf's default list limit */
#define VIRTIO_BUFSHARE_MAX_BLOB	4096	/* one page */
#define VIRTIO_BUFSHARE_MAX_LIST	64	/* entries per PEERS or LIST answer */

/* Capabilities (config.caps). */
#define VIRTIO_BUFSHARE_CAP_MAP		0x1	/* imports can be mapped here */
#define VIRTIO_BUFSHARE_CAP_UDMABUF	0x2	/* host confines shared pages */
#define VIRTIO_BUFSHARE_CAP_RO_ENFORCED	0x4	/* VMM enforces read-only maps */

/* Rights and classes of access. */
#define VIRTIO_BUFSHARE_READ		0x1
#define VIRTIO_BUFSHARE_WRITE		0x2

/* Ways: how the exporter's bytes become visible to the importer. */
#define VIRTIO_BUFSHARE_WAY_DIRECT	1
#define VIRTIO_BUFSHARE_WAY_UDMABUF	2
#define VIRTIO_BUFSHARE_WAY_COPY		3	/* not served in version 1 */

/**
 * struct virtio_bufshare_config - device configuration space, read-only
 * @version: VIRTIO_BUFSHARE_VERSION; 0: the device was reset with windows mapped
 *	and its VMM would not survive a start; do not start it, see FLUSH
 * @caps: VIRTIO_BUFSHARE_CAP_*
 * @max_windows: VMM mappings this peer may hold at once, idle ones included;
 *	a mapped buffer takes one per extent (direct) or one (udmabuf)
 * @max_extents: extents per EXPORT
 * @max_buffers: buffers this peer may export at once
 * @max_attachments: attachments this peer may hold at once
 * @max_blob: bytes of opaque metadata per buffer
 * @map_align: alignment of addresses and sizes, bytes, a power of two
 * @shm_size: bytes of shared-memory region VIRTIO_BUFSHARE_SHMID
 * @max_buffer_size: bytes per buffer
 * @peer_id: this peer's id
 * @reserved: zero
 */
struct virtio_bufshare_config {
	__le32 version;
	__le32 caps;
	__le32 max_windows;
	__le32 max_extents;
	__le32 max_buffers;
	__le32 max_attachments;
	__le32 max_blob;
	__le32 map_align;
	__le64 shm_size;
	__le64 max_buffer_size;
	__le64 peer_id;
	__le64 reserved;
};

/* Commands (queue 0). */
#define VIRTIO_BUFSHARE_CMD_GET_CAPS	0x0100
#define VIRTIO_BUFSHARE_CMD_PEERS	0x0101
#define VIRTIO_BUFSHARE_CMD_EXPORT	0x0200
#define VIRTIO_BUFSHARE_CMD_UNEXPORT	0x0201
#define VIRTIO_BUFSHARE_CMD_ATTACH	0x0202
#define VIRTIO_BUFSHARE_CMD_DETACH	0x0203
#define VIRTIO_BUFSHARE_CMD_MAP		0x0204
#define VIRTIO_BUFSHARE_CMD_UNMAP	0x0205
#define VIRTIO_BUFSHARE_CMD_SYNC	0x0206
#define VIRTIO_BUFSHARE_CMD_FLUSH	0x0207	/* header only */
#define VIRTIO_BUFSHARE_CMD_SET_META	0x0300
#define VIRTIO_BUFSHARE_CMD_GET_META	0x0301
#define VIRTIO_BUFSHARE_CMD_QUERY	0x0302
#define VIRTIO_BUFSHARE_CMD_LIST	0x0303

/* Events (queue 1). */
#define VIRTIO_BUFSHARE_EVT_PEER_UP	0x1000	/* peer */
#define VIRTIO_BUFSHARE_EVT_PEER_DOWN	0x1001	/* peer; before its REVOKEDs */
#define VIRTIO_BUFSHARE_EVT_OFFER	0x1002	/* peer, id, value = size */
#define VIRTIO_BUFSHARE_EVT_RELEASED	0x1003	/* peer's last attachment, id */
#define VIRTIO_BUFSHARE_EVT_REVOKED	0x1004	/* id, handle; 0: see below */
#define VIRTIO_BUFSHARE_EVT_META	0x1005	/* id, value = sequence number */
#define VIRTIO_BUFSHARE_EVT_OVERFLOW	0x1006	/* value = events dropped; LIST */

/* Status of a response. An unknown id and a forbidden one are NOT_FOUND. */
#define VIRTIO_BUFSHARE_S_OK			0
#define VIRTIO_BUFSHARE_S_UNSUPPORTED		1	/* command or option unknown */
#define VIRTIO_BUFSHARE_S_BAD_LENGTH		2	/* not the length its fields say */
#define VIRTIO_BUFSHARE_S_BAD_FIELD		3	/* not zero, or out of range */
#define VIRTIO_BUFSHARE_S_NO_ROOM		4	/* response room too small */
#define VIRTIO_BUFSHARE_S_NOT_FOUND		5	/* no such buffer or handle for you */
#define VIRTIO_BUFSHARE_S_DENIED		6	/* operator does not allow it */
#define VIRTIO_BUFSHARE_S_NOT_RAM		7	/* extent is not this VM's own RAM */
#define VIRTIO_BUFSHARE_S_OVERLAP		8	/* extents overlap each other */
#define VIRTIO_BUFSHARE_S_UNALIGNED		9	/* not a multiple of map_align */
#define VIRTIO_BUFSHARE_S_TOO_LARGE		10	/* buffer over max_buffer_size */
#define VIRTIO_BUFSHARE_S_TOO_MANY		11	/* max_buffers or max_attachments */
#define VIRTIO_BUFSHARE_S_TOO_FRAGMENTED	12	/* over max_extents or max_windows */
#define VIRTIO_BUFSHARE_S_NO_WINDOW		13	/* window budget used up */
#define VIRTIO_BUFSHARE_S_NO_SPACE		14	/* no free range in the region */
#define VIRTIO_BUFSHARE_S_BUSY			15	/* still mapped */
#define VIRTIO_BUFSHARE_S_REVOKED		16	/* the exporter revoked it */
#define VIRTIO_BUFSHARE_S_META_TOO_LARGE	17	/* over max_blob: refused, not cut */
#define VIRTIO_BUFSHARE_S_BAD_META		18	/* image beyond buffer, name not UTF-8 */
#define VIRTIO_BUFSHARE_S_NO_WAY		19	/* no udmabuf, raw RAM not allowed */
#define VIRTIO_BUFSHARE_S_RO_NOT_ENFORCED	20	/* VMM would not enforce read-only */
#define VIRTIO_BUFSHARE_S_NO_SHMEM		21	/* VMM has no shared-memory requests */
#define VIRTIO_BUFSHARE_S_MAP_FAILED		22	/* VMM refused the mapping */
#define VIRTIO_BUFSHARE_S_UNBALANCED		23	/* UNMAP or SYNC end with no begin */
#define VIRTIO_BUFSHARE_S_HOST_ERROR		24	/* host failed; see its log */

/**
 * struct virtio_bufshare_req - header of each request
 * @type: VIRTIO_BUFSHARE_CMD_*
 * @flags: zero in version 1
 * @cookie: chosen by the driver, returned as it is
 */
struct virtio_bufshare_req {
	__le32 type;
	__le32 flags;
	__le64 cookie;
};

/**
 * struct virtio_bufshare_resp - header of each response
 * @type: the request's type
 * @status: VIRTIO_BUFSHARE_S_*; unless OK nothing follows this header
 * @cookie: the request's cookie
 */
struct virtio_bufshare_resp {
	__le32 type;
	__le32 status;
	__le64 cookie;
};

/**
 * struct virtio_bufshare_id - name of a buffer, random, made by the device
 * @b: bytes; all zero is never a buffer
 */
struct virtio_bufshare_id {
	__u8 b[VIRTIO_BUFSHARE_ID_LEN];
};

/**
 * struct virtio_bufshare_extent - a piece of the exporter's RAM
 * @addr: guest-physical address, a multiple of map_align
 * @len: bytes, a multiple of map_align, not zero
 */
struct virtio_bufshare_extent {
	__le64 addr;
	__le64 len;
};

/**
 * struct virtio_bufshare_access - one line of an access list
 * @peer: who may attach
 * @rights: VIRTIO_BUFSHARE_READ, or READ | WRITE
 * @reserved: zero
 */
struct virtio_bufshare_access {
	__le64 peer;
	__le32 rights;
	__le32 reserved;
};

/**
 * struct virtio_bufshare_plane - one plane of an image
 * @offset: bytes from the start of the buffer
 * @stride: bytes per row
 * @rows: rows of this plane; offset + stride * rows <= buffer size
 */
struct virtio_bufshare_plane {
	__le64 offset;
	__le32 stride;
	__le32 rows;
};

/**
 * struct virtio_bufshare_image - what the pixels mean
 * @fourcc: DRM fourcc; 0: not an image, then every other field is zero
 * @num_planes: 1 to VIRTIO_BUFSHARE_MAX_PLANES; planes beyond are zero
 * @width: pixels
 * @height: pixels
 * @modifier: DRM format modifier
 * @planes: the planes
 */
struct virtio_bufshare_image {
	__le32 fourcc;
	__le32 num_planes;
	__le32 width;
	__le32 height;
	__le64 modifier;
	struct virtio_bufshare_plane planes[VIRTIO_BUFSHARE_MAX_PLANES];
};

/**
 * struct virtio_bufshare_meta - metadata; blob_len bytes of blob end the message
 * @name: for people, UTF-8, NUL padded, may be empty
 * @image: typed image description
 * @blob_len: bytes of opaque data
 * @reserved: zero
 */
struct virtio_bufshare_meta {
	__u8 name[VIRTIO_BUFSHARE_NAME_LEN];
	struct virtio_bufshare_image image;
	__le32 blob_len;
	__le32 reserved;
};

/**
 * struct virtio_bufshare_get_caps - GET_CAPS
 * @hdr: request header
 * @version: highest version the driver speaks, not zero
 * @reserved: zero
 */
struct virtio_bufshare_get_caps {
	struct virtio_bufshare_req hdr;
	__le32 version;
	__le32 reserved;
};

/**
 * struct virtio_bufshare_get_caps_resp - answer to GET_CAPS
 * @hdr: response header
 * @config: as the configuration space; config.version is the one in force
 * @name: this peer's name, given by the operator
 * @windows_used: VMM mappings held now, idle ones included
 * @reserved: zero
 */
struct virtio_bufshare_get_caps_resp {
	struct virtio_bufshare_resp hdr;
	struct virtio_bufshare_config config;
	__u8 name[VIRTIO_BUFSHARE_NAME_LEN];
	__le32 windows_used;
	__le32 reserved;
};

/**
 * struct virtio_bufshare_cursor - PEERS and LIST
 * @hdr: request header
 * @cursor: 0 to start, then the answer's next
 */
struct virtio_bufshare_cursor {
	struct virtio_bufshare_req hdr;
	__le64 cursor;
};

#define VIRTIO_BUFSHARE_PEER_UP		0x1	/* peer.state: its driver runs */

/**
 * struct virtio_bufshare_peer - one peer; the asker itself is listed too
 * @id: its id, constant while the device process lives
 * @name: given by the operator
 * @state: VIRTIO_BUFSHARE_PEER_UP or 0
 * @export_rights: what the asker may grant it
 * @import_rights: what it may grant the asker
 * @reserved: zero
 */
struct virtio_bufshare_peer {
	__le64 id;
	__u8 name[VIRTIO_BUFSHARE_NAME_LEN];
	__le32 state;
	__le32 export_rights;
	__le32 import_rights;
	__le32 reserved;
};

/**
 * struct virtio_bufshare_list_resp - head of the answer to PEERS and LIST
 * @hdr: response header
 * @next: cursor of the next request, 0: this was all
 * @count: entries that follow (struct virtio_bufshare_peer or _buffer)
 * @reserved: zero
 */
struct virtio_bufshare_list_resp {
	struct virtio_bufshare_resp hdr;
	__le64 next;
	__le32 count;
	__le32 reserved;
};

/**
 * struct virtio_bufshare_export - EXPORT
 * @hdr: request header
 * @size: bytes, the sum of the extents
 * @num_extents: 1 to config.max_extents
 * @num_acl: 0 to VIRTIO_BUFSHARE_MAX_ACL; 0: all peers the operator allows
 * @meta: metadata
 *
 * Followed by num_acl struct virtio_bufshare_access, num_extents struct
 * virtio_bufshare_extent and meta.blob_len bytes.
 */
struct virtio_bufshare_export {
	struct virtio_bufshare_req hdr;
	__le64 size;
	__le32 num_extents;
	__le32 num_acl;
	struct virtio_bufshare_meta meta;
};

/**
 * struct virtio_bufshare_export_resp - answer to EXPORT
 * @hdr: response header
 * @id: the buffer's name
 * @generation: number of this export, never used again by this device process
 */
struct virtio_bufshare_export_resp {
	struct virtio_bufshare_resp hdr;
	struct virtio_bufshare_id id;
	__le64 generation;
};

/**
 * struct virtio_bufshare_by_id - UNEXPORT, GET_META, QUERY
 * @hdr: request header
 * @id: the buffer
 *
 * UNEXPORT is answered when no importer can reach the memory any more. An
 * importer's driver is notified (REVOKED) and given time to zap its mappings
 * and UNMAP; one that does not answer in time loses the memory anyway. Where
 * it was there are zero pages then, and nothing else before the UNMAP.
 *
 * Nothing but this answer says so. A driver that resets the device without it
 * does not use the memory for anything else. It may ask again in a later session:
 * the device has the answer, unless it was restarted. NOT_FOUND says so only for a
 * buffer whose export the device has ended by itself (see REVOKED).
 */
struct virtio_bufshare_by_id {
	struct virtio_bufshare_req hdr;
	struct virtio_bufshare_id id;
};

/**
 * struct virtio_bufshare_attach - ATTACH
 * @hdr: request header
 * @id: the buffer
 * @rights: wanted, VIRTIO_BUFSHARE_READ or READ | WRITE
 * @reserved: zero
 */
struct virtio_bufshare_attach {
	struct virtio_bufshare_req hdr;
	struct virtio_bufshare_id id;
	__le32 rights;
	__le32 reserved;
};

/**
 * struct virtio_bufshare_attach_resp - answer to ATTACH
 * @hdr: response header
 * @handle: of this attachment, never zero, never used again in a session
 * @size: bytes of the buffer
 * @generation: of the export
 * @owner: the exporting peer
 * @rights: granted
 * @way: VIRTIO_BUFSHARE_WAY_*
 * @windows: VMM mappings that a MAP will take
 * @reserved: zero
 */
struct virtio_bufshare_attach_resp {
	struct virtio_bufshare_resp hdr;
	__le64 handle;
	__le64 size;
	__le64 generation;
	__le64 owner;
	__le32 rights;
	__le32 way;
	__le32 windows;
	__le32 reserved;
};

/**
 * struct virtio_bufshare_by_handle - UNMAP, DETACH
 * @hdr: request header
 * @handle: of the attachment
 *
 * Maps are counted. DETACH of a mapped attachment is BUSY.
 *
 * The device may keep the window of an unmapped buffer for the next MAP. FLUSH
 * gives up all such windows, and is answered when the VMM has unmapped them. A
 * driver sends it before it resets the device: QEMU 11.1.3 does not survive
 * the next start of a device that was reset with windows mapped.
 */
struct virtio_bufshare_by_handle {
	struct virtio_bufshare_req hdr;
	__le64 handle;
};

/**
 * struct virtio_bufshare_map - MAP
 * @hdr: request header
 * @handle: of the attachment
 * @offset: bytes into the buffer; 0 in version 1
 * @len: bytes; the buffer's size in version 1
 */
struct virtio_bufshare_map {
	struct virtio_bufshare_req hdr;
	__le64 handle;
	__le64 offset;
	__le64 len;
};

#define VIRTIO_BUFSHARE_MAP_COHERENT	0x1	/* SYNC moves no data: may be left out */
#define VIRTIO_BUFSHARE_MAP_CACHED	0x2	/* served by an idle window, VMM not asked */

/**
 * struct virtio_bufshare_map_resp - answer to MAP
 * @hdr: response header
 * @shm_offset: where the buffer begins in the shared-memory region
 * @len: bytes, contiguous there whatever the extents
 * @flags: VIRTIO_BUFSHARE_MAP_*
 * @reserved: zero
 */
struct virtio_bufshare_map_resp {
	struct virtio_bufshare_resp hdr;
	__le64 shm_offset;
	__le64 len;
	__le32 flags;
	__le32 reserved;
};

#define VIRTIO_BUFSHARE_SYNC_BEGIN	0
#define VIRTIO_BUFSHARE_SYNC_END	1

/**
 * struct virtio_bufshare_sync - SYNC: begin or end of CPU access
 * @hdr: request header
 * @handle: of the attachment; 0: the owner speaks, by @id
 * @id: the owner's buffer, zero when @handle is not
 * @op: VIRTIO_BUFSHARE_SYNC_BEGIN or _END
 * @access: VIRTIO_BUFSHARE_READ, WRITE or both
 * @offset: bytes into the buffer
 * @len: bytes, offset + len <= size
 *
 * Begins are counted per attachment (and for the owner) and class; an END
 * without its BEGIN is UNBALANCED.
 */
struct virtio_bufshare_sync {
	struct virtio_bufshare_req hdr;
	__le64 handle;
	struct virtio_bufshare_id id;
	__le32 op;
	__le32 access;
	__le64 offset;
	__le64 len;
};

/**
 * struct virtio_bufshare_set_meta - SET_META, owner only; the blob follows
 * @hdr: request header
 * @id: the buffer
 * @meta: replaces all metadata
 *
 * Raises the sequence number and sends META to every peer that may attach.
 */
struct virtio_bufshare_set_meta {
	struct virtio_bufshare_req hdr;
	struct virtio_bufshare_id id;
	struct virtio_bufshare_meta meta;
};

/**
 * struct virtio_bufshare_set_meta_resp - answer to SET_META
 * @hdr: response header
 * @seq: sequence number in force now; EXPORT's metadata has 1
 */
struct virtio_bufshare_set_meta_resp {
	struct virtio_bufshare_resp hdr;
	__le64 seq;
};

/**
 * struct virtio_bufshare_get_meta_resp - answer to GET_META; the blob follows
 * @hdr: response header
 * @seq: its sequence number
 * @meta: metadata
 */
struct virtio_bufshare_get_meta_resp {
	struct virtio_bufshare_resp hdr;
	__le64 seq;
	struct virtio_bufshare_meta meta;
};

#define VIRTIO_BUFSHARE_BUFFER_OWNED	0x1	/* the asker exported it */
#define VIRTIO_BUFSHARE_BUFFER_REVOKING	0x2	/* UNEXPORT under way */

/**
 * struct virtio_bufshare_buffer - one buffer as QUERY and LIST report it
 * @id: its name
 * @owner: the exporting peer
 * @size: bytes
 * @generation: of the export
 * @meta_seq: sequence number of the metadata
 * @rights: the asker's
 * @flags: VIRTIO_BUFSHARE_BUFFER_*
 * @extents: number of pieces; 0 unless the asker owns it
 * @attachments: of all peers if the asker owns it, else of the asker
 * @mapped: how many of those are mapped
 * @fourcc: of the image, 0: none
 * @name: for people
 */
struct virtio_bufshare_buffer {
	struct virtio_bufshare_id id;
	__le64 owner;
	__le64 size;
	__le64 generation;
	__le64 meta_seq;
	__le32 rights;
	__le32 flags;
	__le32 extents;
	__le32 attachments;
	__le32 mapped;
	__le32 fourcc;
	__u8 name[VIRTIO_BUFSHARE_NAME_LEN];
};

/**
 * struct virtio_bufshare_query_resp - answer to QUERY
 * @hdr: response header
 * @buffer: the buffer
 */
struct virtio_bufshare_query_resp {
	struct virtio_bufshare_resp hdr;
	struct virtio_bufshare_buffer buffer;
};

/**
 * struct virtio_bufshare_event - one event
 * @type: VIRTIO_BUFSHARE_EVT_*
 * @flags: zero
 * @seq: number of the event in this session, from 1, without gaps
 * @peer: whom it is about (owner of the buffer, or who released it)
 * @id: the buffer, or zero
 * @handle: the attachment, or zero
 * @value: see VIRTIO_BUFSHARE_EVT_*
 * @reserved: zero
 *
 * REVOKED with a handle ends that attachment. With handle 0 and the receiver
 * as peer its own export ended without its asking; with another peer, a
 * buffer that it never attached is not offered any more.
 *
 * RELEASED, and REVOKED of an attachment or an own export, are never dropped.
 * REVOKED of an attachment is not sent any more after its DETACH. While as many
 * of own exports wait to be taken as max_buffers, EXPORT is refused (TOO_MANY).
 * META and OFFER of one buffer are coalesced, the newest value counts. OVERFLOW
 * reports what is dropped. Events are numbered when they are delivered.
 */
struct virtio_bufshare_event {
	__le32 type;
	__le32 flags;
	__le64 seq;
	__le64 peer;
	struct virtio_bufshare_id id;
	__le64 handle;
	__le64 value;
	__le64 reserved;
};

#endif /* _VIRTIO_BUFSHARE_H */
