/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR BSD-3-Clause */
/*
 * Wire format of the buffer-sharing virtio device
 *
 * One device per virtual machine ("peer"). A peer EXPORTs a buffer whose
 * backing is its own RAM; another peer ATTACHes to it and MAPs it into its
 * own shared-memory region (shmid 0). Everything is little endian, every
 * reserved field is zero and checked. SPEC.md is normative and says more.
 *
 * Queue 0 (control): one request per descriptor chain, the driver's request
 * first, then room for the device's response. Each chain is completed exactly
 * once and, where its response room holds a header, always with a status.
 * Queue 1 (event): device-writable buffers of config.event_size bytes, for one
 * struct virtio_bufshare_event each.
 *
 * Structures grow at their end. A request says how long its structure is
 * (length) and how long the one of its response shall be (resp_length), both
 * multiples of 8. What is shorter than the device knows counts as filled with zeroes;
 * what is longer must end in zeroes. A response is cut, or filled with zeroes, to
 * resp_length; a driver ignores what it does not know of it, and unknown bits. Entries
 * of arrays and the record of metadata have a size of their own, and grow likewise.
 *
 * No device feature bit is used: capabilities are in the configuration space
 * and in the answer to GET_CAPS.
 */
#ifndef _VIRTIO_BUFSHARE_H
#define _VIRTIO_BUFSHARE_H

#include <linux/types.h>

#define VIRTIO_BUFSHARE_ID		37	/* VIRTIO_ID_DMABUF */
#define VIRTIO_BUFSHARE_VERSION		2

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
#define VIRTIO_BUFSHARE_MAX_BATCH	16	/* entries per UNMAP or DETACH */
#define VIRTIO_BUFSHARE_MAX_STRUCT	4096	/* bytes of length and resp_length */
#define VIRTIO_BUFSHARE_MAX_ENTRY	1024	/* bytes of entry_size and the like */
#define VIRTIO_BUFSHARE_MAX_EXTENT_SIZE	32	/* bytes of extent_size */
#define VIRTIO_BUFSHARE_MAX_FRAME_BUFFERS	4	/* as planes of an image */
#define VIRTIO_BUFSHARE_MAX_CONSUMERS	4	/* of one peer, given frames of one buffer */
#define VIRTIO_BUFSHARE_MAX_FRAME_RECORD	768	/* bytes of a frame's record */
#define VIRTIO_BUFSHARE_MAX_DAMAGE	16	/* rectangles of a frame */
#define VIRTIO_BUFSHARE_MIN_EVENT_SIZE	512	/* least config.event_size */
#define VIRTIO_BUFSHARE_MAX_EVENT_SIZE	4096	/* most config.event_size */
#define VIRTIO_BUFSHARE_CONFIG_SIZE	256	/* bytes of the configuration space */

/* Capabilities (config.caps). */
#define VIRTIO_BUFSHARE_CAP_MAP		0x1	/* imports can be mapped here */
#define VIRTIO_BUFSHARE_CAP_UDMABUF	0x2	/* host confines shared pages */
#define VIRTIO_BUFSHARE_CAP_RO_ENFORCED	0x4	/* VMM enforces read-only maps */

/* Rights and classes of access. */
#define VIRTIO_BUFSHARE_READ		0x1
#define VIRTIO_BUFSHARE_WRITE		0x2

/* Ways: how the exporter's bytes become visible to the importer. */
#define VIRTIO_BUFSHARE_WAY_NONE	0	/* that of a stream: there are no bytes */
#define VIRTIO_BUFSHARE_WAY_DIRECT	1	/* the exporter's RAM, as it is */
#define VIRTIO_BUFSHARE_WAY_UDMABUF	2	/* the shared pages of it alone */
#define VIRTIO_BUFSHARE_WAY_POOL	3	/* memory of the device; not served yet */
#define VIRTIO_BUFSHARE_WAY_COPY_WINDOW	4	/* a copy, in a window; not served yet */
#define VIRTIO_BUFSHARE_WAY_COPY_GUEST	5	/* a copy, in the importer's RAM; not served yet */

/* Properties of an attachment: what holds, whatever its way. */
#define VIRTIO_BUFSHARE_COHERENT	0x1	/* SYNC moves no data: may be left out */
#define VIRTIO_BUFSHARE_RO_HELD		0x2	/* the importer's VMM keeps it from writing */
#define VIRTIO_BUFSHARE_REVOCABLE	0x4	/* revoked without the importer's VMM */
#define VIRTIO_BUFSHARE_MOVABLE		0x8	/* the bytes may move to other memory */
#define VIRTIO_BUFSHARE_SURVIVES	0x10	/* outlives the exporter's VM */

/* Kinds of backing of an EXPORT. */
#define VIRTIO_BUFSHARE_BACKING_EXTENTS	0	/* extents of the exporter's RAM */
#define VIRTIO_BUFSHARE_BACKING_POOL	1	/* a range of a pool; not served yet */
#define VIRTIO_BUFSHARE_BACKING_DEFERRED	2	/* said at the first use; not served yet */
#define VIRTIO_BUFSHARE_BACKING_STREAM	3	/* none: it is a stream */

/* Modes of an UNEXPORT. */
#define VIRTIO_BUFSHARE_UNEXPORT_FORCED	0	/* importers have until the deadline */
#define VIRTIO_BUFSHARE_UNEXPORT_GRACEFUL	1	/* until they detach; not served yet */
#define VIRTIO_BUFSHARE_UNEXPORT_QUIESCED	2	/* forced, and it stays quiesced */

/**
 * struct virtio_bufshare_config - device configuration space, read-only
 * @version: VIRTIO_BUFSHARE_VERSION; 0, as all that follows: the device was reset with
 *	windows mapped and its VMM would not survive a start; do not start it, see FLUSH
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
 * @event_size: bytes that an event may have, VIRTIO_BUFSHARE_MIN_EVENT_SIZE to
 *	VIRTIO_BUFSHARE_MAX_EVENT_SIZE
 * @max_batch: entries per UNMAP or DETACH
 * @ways: ways that an ATTACH may be given, to some buffers, as bits:
 *	1 << VIRTIO_BUFSHARE_WAY_*
 * @backings: kinds of backing that an EXPORT may have, as bits: 1 << kind
 * @reserved: zero; fields to come, which a driver that does not know them ignores
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
	__le32 event_size;
	__le32 max_batch;
	__le32 ways;
	__le32 backings;
	__le64 reserved[23];
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
#define VIRTIO_BUFSHARE_CMD_QUIESCE	0x0208
#define VIRTIO_BUFSHARE_CMD_SET_META	0x0300
#define VIRTIO_BUFSHARE_CMD_GET_META	0x0301
#define VIRTIO_BUFSHARE_CMD_QUERY	0x0302
#define VIRTIO_BUFSHARE_CMD_LIST	0x0303
#define VIRTIO_BUFSHARE_CMD_PUSH	0x0400
#define VIRTIO_BUFSHARE_CMD_RETURN	0x0401
#define VIRTIO_BUFSHARE_CMD_FENCE	0x0402	/* not served yet */

/* Events (queue 1). */
#define VIRTIO_BUFSHARE_EVT_PEER_UP	0x1000	/* peer */
#define VIRTIO_BUFSHARE_EVT_PEER_DOWN	0x1001	/* peer; before its REVOKEDs */
#define VIRTIO_BUFSHARE_EVT_OFFER	0x1002	/* peer, id, value = size */
#define VIRTIO_BUFSHARE_EVT_RELEASED	0x1003	/* peer's last attachment, id */
#define VIRTIO_BUFSHARE_EVT_REVOKED	0x1004	/* id, handle; 0: see below */
#define VIRTIO_BUFSHARE_EVT_META	0x1005	/* id, value = sequence number */
#define VIRTIO_BUFSHARE_EVT_OVERFLOW	0x1006	/* value = events missing; LIST */
#define VIRTIO_BUFSHARE_EVT_PUSHED	0x1007	/* peer, id, handle, value = frame */
#define VIRTIO_BUFSHARE_EVT_RETURNED	0x1008	/* own id, value = frame */

/* Status of a response. An unknown id and a forbidden one are NOT_FOUND. */
#define VIRTIO_BUFSHARE_S_OK			0
#define VIRTIO_BUFSHARE_S_UNSUPPORTED		1	/* unknown command, flag or set field */
#define VIRTIO_BUFSHARE_S_BAD_LENGTH		2	/* not the length its fields say */
#define VIRTIO_BUFSHARE_S_BAD_FIELD		3	/* out of range */
#define VIRTIO_BUFSHARE_S_NO_ROOM		4	/* response room too small: not done */
#define VIRTIO_BUFSHARE_S_NOT_FOUND		5	/* no such buffer, handle, window for you */
#define VIRTIO_BUFSHARE_S_DENIED		6	/* operator or exporter does not allow it */
#define VIRTIO_BUFSHARE_S_NOT_RAM		7	/* extent is not this VM's own RAM */
#define VIRTIO_BUFSHARE_S_OVERLAP		8	/* extents overlap each other */
#define VIRTIO_BUFSHARE_S_UNALIGNED		9	/* not a multiple of map_align */
#define VIRTIO_BUFSHARE_S_TOO_LARGE		10	/* buffer over max_buffer_size */
#define VIRTIO_BUFSHARE_S_TOO_MANY		11	/* over max_buffers, max_attachments, ... */
#define VIRTIO_BUFSHARE_S_TOO_FRAGMENTED	12	/* over max_extents or max_windows */
#define VIRTIO_BUFSHARE_S_NO_WINDOW		13	/* window budget used up */
#define VIRTIO_BUFSHARE_S_NO_SPACE		14	/* no free range in the region */
#define VIRTIO_BUFSHARE_S_BUSY			15	/* still mapped; UNEXPORT under way */
#define VIRTIO_BUFSHARE_S_REVOKED		16	/* being revoked, or gone */
#define VIRTIO_BUFSHARE_S_META_TOO_LARGE	17	/* over max_blob: refused, not cut */
#define VIRTIO_BUFSHARE_S_BAD_META		18	/* name or image not valid, or too large */
#define VIRTIO_BUFSHARE_S_NO_WAY		19	/* none that is allowed and accepted */
#define VIRTIO_BUFSHARE_S_RO_NOT_ENFORCED	20	/* VMM would not enforce read-only */
#define VIRTIO_BUFSHARE_S_NO_SHMEM		21	/* VMM has no shared-memory requests */
#define VIRTIO_BUFSHARE_S_MAP_FAILED		22	/* VMM refused the mapping */
#define VIRTIO_BUFSHARE_S_UNBALANCED		23	/* SYNC end with no begin */
#define VIRTIO_BUFSHARE_S_HOST_ERROR		24	/* host failed; see its log */
#define VIRTIO_BUFSHARE_S_EXISTS		25	/* the peer has a stream of that name */

/**
 * struct virtio_bufshare_req - header of each request
 * @type: VIRTIO_BUFSHARE_CMD_*
 * @flags: zero
 * @length: bytes of the request's structure, this header included; what follows it
 *	(arrays, a blob) begins there
 * @resp_length: bytes that the response's structure shall have, its header included;
 *	what follows it begins there
 * @cookie: chosen by the driver, returned as it is
 */
struct virtio_bufshare_req {
	__le32 type;
	__le32 flags;
	__le32 length;
	__le32 resp_length;
	__le64 cookie;
};

/**
 * struct virtio_bufshare_resp - header of each response
 * @type: the request's type
 * @status: VIRTIO_BUFSHARE_S_*; unless OK nothing follows this header, but where an
 *	entry of a batch is wrong (struct virtio_bufshare_batch_resp)
 * @length: bytes of the response's structure, this header included: the request's
 *	resp_length, or less if nothing follows this header
 * @flags: zero
 * @cookie: the request's cookie
 */
struct virtio_bufshare_resp {
	__le32 type;
	__le32 status;
	__le32 length;
	__le32 flags;
	__le64 cookie;
};

/**
 * struct virtio_bufshare_batch - UNMAP, DETACH: one thing done to many
 * @hdr: request header
 * @count: 1 to config.max_batch
 * @entry_size: bytes of an entry, 8 to VIRTIO_BUFSHARE_MAX_ENTRY, a multiple of 8;
 *	entries grow as structures do
 *
 * Followed by @count entries (struct virtio_bufshare_window or _handle). It is
 * done to all of them or to none.
 */
struct virtio_bufshare_batch {
	struct virtio_bufshare_req hdr;
	__le32 count;
	__le32 entry_size;
};

/**
 * struct virtio_bufshare_batch_resp - answer to UNMAP and DETACH
 * @hdr: response header; its status is that of @entry
 * @entry: index of the first entry that is wrong; if none is, @count of the request
 * @reserved: zero
 */
struct virtio_bufshare_batch_resp {
	struct virtio_bufshare_resp hdr;
	__le32 entry;
	__le32 reserved;
};

/**
 * struct virtio_bufshare_handle - entry of DETACH
 * @handle: of the attachment
 *
 * DETACH of a mapped attachment is BUSY.
 */
struct virtio_bufshare_handle {
	__le64 handle;
};

/**
 * struct virtio_bufshare_window - entry of UNMAP
 * @window: of the answer to MAP
 *
 * Each entry undoes one MAP. A window that more MAPs than UNMAPs named stays; then
 * its number is gone, and not used again. One that is not mapped is NOT_FOUND.
 *
 * The device may keep what an unmapped window showed for the next MAP. FLUSH
 * gives up all that it keeps so, and is answered when the VMM has unmapped it. A
 * driver sends it before it resets the device: QEMU 11.1.3 does not survive
 * the next start of a device that was reset with windows mapped.
 */
struct virtio_bufshare_window {
	__le64 window;
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
 * @buffer: which of the buffers of a frame it is in; 0: this one, the first
 * @reserved: zero
 */
struct virtio_bufshare_plane {
	__le64 offset;
	__le32 stride;
	__le32 rows;
	__le32 buffer;
	__le32 reserved;
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

#define VIRTIO_BUFSHARE_STREAM_ENDED	0x1	/* no frame comes any more in this epoch */

/**
 * struct virtio_bufshare_meta - metadata, a record of its own size
 * @name: for people, UTF-8, NUL padded, may be empty
 * @image: typed image description
 * @blob_len: bytes of opaque data, which end the message
 * @must_know: what a reader has to know to make sense of it, VIRTIO_BUFSHARE_KNOW_*: one
 *	who finds an unknown bit takes it for no image
 * @epoch: of a stream, another at each start of its producer; else zero
 * @flags: of a stream, VIRTIO_BUFSHARE_STREAM_*; else zero
 * @reserved: zero
 */
struct virtio_bufshare_meta {
	__u8 name[VIRTIO_BUFSHARE_NAME_LEN];
	struct virtio_bufshare_image image;
	__le32 blob_len;
	__le32 must_know;
	__le64 epoch;
	__le32 flags;
	__le32 reserved;
};

#define VIRTIO_BUFSHARE_KNOW_BUFFERS	0x1	/* planes are in several buffers of a frame */

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
 * @entry_size: bytes that an entry of the answer shall have, 8 to
 *	VIRTIO_BUFSHARE_MAX_ENTRY, a multiple of 8; entries are cut or filled with zeroes
 *	as structures are
 * @reserved: zero
 */
struct virtio_bufshare_cursor {
	struct virtio_bufshare_req hdr;
	__le64 cursor;
	__le32 entry_size;
	__le32 reserved;
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
 * @count: entries that follow (struct virtio_bufshare_peer or _buffer), each of the
 *	request's entry_size bytes
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
 * @size: bytes; the sum of the extents. BACKING_STREAM: zero
 * @backing: VIRTIO_BUFSHARE_BACKING_*
 * @meta_size: bytes of the record of metadata, up to VIRTIO_BUFSHARE_MAX_ENTRY
 * @num_acl: 0 to VIRTIO_BUFSHARE_MAX_ACL; 0: all peers the operator allows
 * @access_size: bytes of a line of the access list, up to VIRTIO_BUFSHARE_MAX_ENTRY
 * @num_extents: 1 to config.max_extents; BACKING_STREAM: zero
 * @extent_size: bytes of an extent, up to VIRTIO_BUFSHARE_MAX_EXTENT_SIZE
 * @pool: the pool, zero unless @backing is BACKING_POOL
 * @offset: bytes into the pool, zero unless @backing is BACKING_POOL
 * @stream: the stream that it is part of, which the asker exported: its access list is
 *	that of the stream, and @num_acl is zero. Zero: of none
 *
 * Followed by struct virtio_bufshare_meta, num_acl struct virtio_bufshare_access,
 * num_extents struct virtio_bufshare_extent and meta.blob_len bytes.
 */
struct virtio_bufshare_export {
	struct virtio_bufshare_req hdr;
	__le64 size;
	__le32 backing;
	__le32 meta_size;
	__le32 num_acl;
	__le32 access_size;
	__le32 num_extents;
	__le32 extent_size;
	struct virtio_bufshare_id pool;
	__le64 offset;
	struct virtio_bufshare_id stream;
};

/**
 * struct virtio_bufshare_export_resp - answer to EXPORT
 * @hdr: response header
 * @id: the buffer's name
 * @generation: number of this export, not used again (SPEC.md, section 5.2)
 */
struct virtio_bufshare_export_resp {
	struct virtio_bufshare_resp hdr;
	struct virtio_bufshare_id id;
	__le64 generation;
};

/**
 * struct virtio_bufshare_by_id - QUERY
 * @hdr: request header
 * @id: the buffer
 */
struct virtio_bufshare_by_id {
	struct virtio_bufshare_req hdr;
	struct virtio_bufshare_id id;
};

/**
 * struct virtio_bufshare_unexport - UNEXPORT
 * @hdr: request header
 * @id: the buffer
 * @mode: VIRTIO_BUFSHARE_UNEXPORT_*
 * @deadline_ms: UNEXPORT_GRACEFUL: milliseconds after which it is forced, 0: never.
 *	Zero of other modes: importers have the time that the operator gives them
 *
 * UNEXPORT_QUIESCED is for a buffer that is quiesced (else BAD_FIELD) and stays so until
 * the answer, unless a QUIESCE with QUIESCE_ACTIVE is answered before.
 *
 * Answered when no importer can reach the memory any more. An
 * importer's driver is notified (REVOKED) and given time to zap its mappings
 * and UNMAP; one that does not answer in time loses the memory anyway. Where
 * it was there are zero pages then, or nothing, and nothing else before the UNMAP.
 *
 * Nothing but this answer says so. A driver that resets the device without it
 * does not use the memory for anything else. It may ask again in a later session, once:
 * the device has the answer of the latest max_buffers, unless it or the VMM was
 * restarted. NOT_FOUND says so only for a
 * buffer whose export the device has ended by itself (see REVOKED).
 */
struct virtio_bufshare_unexport {
	struct virtio_bufshare_req hdr;
	struct virtio_bufshare_id id;
	__le32 mode;
	__le32 deadline_ms;
};

/**
 * struct virtio_bufshare_attach - ATTACH
 * @hdr: request header
 * @id: the buffer
 * @rights: wanted, VIRTIO_BUFSHARE_READ or READ | WRITE
 * @ways: ways that are accepted, as bits: 1 << VIRTIO_BUFSHARE_WAY_*; 0: WAY_DIRECT and
 *	WAY_UDMABUF. UNSUPPORTED if no device of this version serves any of them, NO_WAY
 *	if none can be had. WAY_DIRECT is given only where WAY_UDMABUF cannot be. A stream
 *	is joined by who accepts WAY_NONE
 * @required: properties without which it is refused (NO_WAY; one that the device does
 *	not know: UNSUPPORTED)
 * @max_windows: VMM mappings that a MAP may take (else TOO_FRAGMENTED); 0: any number
 * @flags: VIRTIO_BUFSHARE_ATTACH_*
 * @reserved: zero
 */
struct virtio_bufshare_attach {
	struct virtio_bufshare_req hdr;
	struct virtio_bufshare_id id;
	__le32 rights;
	__le32 ways;
	__le32 required;
	__le32 max_windows;
	__le32 flags;
	__le32 reserved;
};

#define VIRTIO_BUFSHARE_ATTACH_CONSUMER	0x1	/* it is given the frames of the buffer */

/**
 * struct virtio_bufshare_attach_resp - answer to ATTACH
 * @hdr: response header
 * @handle: of this attachment, never zero, not used again (SPEC.md, section 5.2)
 * @size: bytes of the buffer
 * @generation: of the export
 * @owner: the exporting peer
 * @rights: granted
 * @way: VIRTIO_BUFSHARE_WAY_*, for people: what holds is in @properties
 * @properties: VIRTIO_BUFSHARE_COHERENT and the others
 * @windows: VMM mappings that a MAP will take
 */
struct virtio_bufshare_attach_resp {
	struct virtio_bufshare_resp hdr;
	__le64 handle;
	__le64 size;
	__le64 generation;
	__le64 owner;
	__le32 rights;
	__le32 way;
	__le32 properties;
	__le32 windows;
};

/**
 * struct virtio_bufshare_map - MAP
 * @hdr: request header
 * @handle: of the attachment
 * @offset: bytes into the buffer; what is not 0 is not served yet
 * @len: bytes; what is not the buffer's size is not served yet
 */
struct virtio_bufshare_map {
	struct virtio_bufshare_req hdr;
	__le64 handle;
	__le64 offset;
	__le64 len;
};

#define VIRTIO_BUFSHARE_MAP_CACHED	0x1	/* nothing had to be mapped for it */

/**
 * struct virtio_bufshare_map_resp - answer to MAP
 * @hdr: response header
 * @window: number of this range of the attachment where it is mapped, not zero. As
 *	long as it is mapped, MAPs of the same range have the same, and are counted
 * @shm_offset: where it begins in the shared-memory region
 * @len: bytes, contiguous there whatever the extents
 * @flags: VIRTIO_BUFSHARE_MAP_*
 * @reserved: zero
 */
struct virtio_bufshare_map_resp {
	struct virtio_bufshare_resp hdr;
	__le64 window;
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

#define VIRTIO_BUFSHARE_QUIESCE_ACTIVE	0	/* the exporter may write; from EXPORT on */
#define VIRTIO_BUFSHARE_QUIESCE_QUIESCED	1	/* nothing of its VM writes */

/**
 * struct virtio_bufshare_quiesce - QUIESCE, owner only: does the exporter write?
 * @hdr: request header
 * @id: the buffer
 * @mode: VIRTIO_BUFSHARE_QUIESCE_*
 * @reserved: zero
 *
 * While a buffer is quiesced, the device may rely on it at any time that nothing of the
 * exporter's VM writes to its memory, whatever else was exported of that. The driver
 * keeps that promise from before the request on until QUIESCE_ACTIVE is answered OK or
 * NOT_FOUND, until an answer to UNEXPORT says that nobody reaches the memory, or until
 * the end of a reset. The answer waits for no other VM.
 */
struct virtio_bufshare_quiesce {
	struct virtio_bufshare_req hdr;
	struct virtio_bufshare_id id;
	__le32 mode;
	__le32 reserved;
};

/**
 * struct virtio_bufshare_set_meta - SET_META, owner only
 * @hdr: request header
 * @id: the buffer
 * @meta_size: bytes of the record of metadata, up to VIRTIO_BUFSHARE_MAX_ENTRY
 * @reserved: zero
 *
 * Followed by struct virtio_bufshare_meta, which replaces all metadata, and
 * meta.blob_len bytes. Raises the sequence number and sends META to every peer that
 * may attach.
 */
struct virtio_bufshare_set_meta {
	struct virtio_bufshare_req hdr;
	struct virtio_bufshare_id id;
	__le32 meta_size;
	__le32 reserved;
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
 * struct virtio_bufshare_get_meta - GET_META
 * @hdr: request header
 * @id: the buffer
 * @meta_size: bytes that the record of metadata shall have, 8 to
 *	VIRTIO_BUFSHARE_MAX_ENTRY
 * @reserved: zero
 */
struct virtio_bufshare_get_meta {
	struct virtio_bufshare_req hdr;
	struct virtio_bufshare_id id;
	__le32 meta_size;
	__le32 reserved;
};

/**
 * struct virtio_bufshare_get_meta_resp - answer to GET_META
 * @hdr: response header
 * @seq: its sequence number
 *
 * Followed by struct virtio_bufshare_meta, of the size that was asked for, and
 * meta.blob_len bytes.
 */
struct virtio_bufshare_get_meta_resp {
	struct virtio_bufshare_resp hdr;
	__le64 seq;
};

#define VIRTIO_BUFSHARE_BUFFER_OWNED	0x1	/* the asker exported it */
#define VIRTIO_BUFSHARE_BUFFER_REVOKING	0x2	/* UNEXPORT under way */
#define VIRTIO_BUFSHARE_BUFFER_QUIESCED	0x4	/* see QUIESCE; its owner sees it */
#define VIRTIO_BUFSHARE_BUFFER_STREAM	0x8	/* it is a stream: it has no bytes */

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
 * @stream: the stream that it is part of, or zero
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
	struct virtio_bufshare_id stream;
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

/* Clocks of a frame's time. None of one VM is that of another. */
#define VIRTIO_BUFSHARE_CLOCK_NONE	0	/* it has no time */
#define VIRTIO_BUFSHARE_CLOCK_MONOTONIC	1	/* of the exporter */
#define VIRTIO_BUFSHARE_CLOCK_REALTIME	2	/* UTC, as far as the exporter knows it */
#define VIRTIO_BUFSHARE_CLOCK_TAI	3	/* likewise */

#define VIRTIO_BUFSHARE_FRAME_DISCONT		0x1	/* does not follow the one before */
#define VIRTIO_BUFSHARE_FRAME_CORRUPTED		0x2	/* the contents may be wrong */
#define VIRTIO_BUFSHARE_FRAME_GAP		0x4	/* there are no contents */
#define VIRTIO_BUFSHARE_FRAME_LAST		0x8	/* no frame follows */
#define VIRTIO_BUFSHARE_FRAME_INTERLACED	0x10	/* two fields, line by line */
#define VIRTIO_BUFSHARE_FRAME_BOTTOM_FIRST	0x20	/* the field of the second line is first */
#define VIRTIO_BUFSHARE_FRAME_EXPOSURE_END	0x40	/* pts is the end of the exposure */

/**
 * struct virtio_bufshare_rect - a rectangle of an image, pixels
 * @x: signed
 * @y: signed
 * @width: 0: none
 * @height: 0: none
 */
struct virtio_bufshare_rect {
	__le32 x;
	__le32 y;
	__le32 width;
	__le32 height;
};

/**
 * struct virtio_bufshare_frame - what a frame is
 * @flags: VIRTIO_BUFSHARE_FRAME_*; who does not know one ignores it
 * @must_know: what a consumer has to know to make sense of the frame, as bits; none has a
 *	meaning yet. Who finds one that it does not know returns the frame
 * @sequence: the producer's count of frames, those that it lost included
 * @pts: when it is to be shown, or was taken, ns, signed; by @clock
 * @duration: ns, 0: unknown
 * @clock: VIRTIO_BUFSHARE_CLOCK_*
 * @transform: how the contents are to be turned to be upright, 0 to 7 as wl_output's
 * @bytes_used: bytes of each of its buffers that have contents, 0: all
 * @crop: what is to be seen, or empty: all
 * @colour_primaries: ITU-T H.273, 0: not said; as the next two
 * @transfer_characteristics: likewise
 * @matrix_coefficients: likewise
 * @full_range: 0: not said, 1: limited, 2: full
 * @chroma_location: 0: not said, else one more than H.273's ChromaLocType
 * @reserved: zero
 * @mastering: red, green, blue and white of the mastering display, x and y each in
 *	0.00002, or zero (SMPTE ST 2086)
 * @max_luminance: of that display, cd/m2
 * @min_luminance: of that display, 0.0001 cd/m2
 * @max_cll: brightest pixel, cd/m2, 0: not said
 * @max_fall: brightest frame on average, cd/m2, 0: not said
 * @num_damage: lines of @damage; 0: all may have changed
 * @epoch: another at each start of the producer
 * @damage: what has changed since the frame before; rectangles beyond are zero
 *
 * It grows at its end, and is handed on whole: a device hands on what it does not know.
 */
struct virtio_bufshare_frame {
	__le32 flags;
	__le32 must_know;
	__le64 sequence;
	__le64 pts;
	__le64 duration;
	__le32 clock;
	__le32 transform;
	__le32 bytes_used[VIRTIO_BUFSHARE_MAX_FRAME_BUFFERS];
	struct virtio_bufshare_rect crop;
	__u8 colour_primaries;
	__u8 transfer_characteristics;
	__u8 matrix_coefficients;
	__u8 full_range;
	__u8 chroma_location;
	__u8 reserved[3];
	__le16 mastering[8];
	__le32 max_luminance;
	__le32 min_luminance;
	__le16 max_cll;
	__le16 max_fall;
	__le32 num_damage;
	__le64 epoch;
	struct virtio_bufshare_rect damage[VIRTIO_BUFSHARE_MAX_DAMAGE];
};

/**
 * struct virtio_bufshare_push - entry of PUSH, owner only: hand a frame over
 * @buffers: what it is in: see plane.buffer; those beyond @num_buffers are zero
 * @num_buffers: 1 to VIRTIO_BUFSHARE_MAX_FRAME_BUFFERS
 * @max_held: a consumer whose peer has so many frames of the asker, and more, of the stream
 *	that the first buffer is part of, or of none, is not given this one; 0: all are
 * @flags: zero
 * @record_size: bytes of the frame's record, a multiple of 8, up to
 *	VIRTIO_BUFSHARE_MAX_FRAME_RECORD
 *
 * The frame's record is the last @record_size bytes of the entry; what is before it is this
 * structure, which grows as others.
 */
struct virtio_bufshare_push {
	struct virtio_bufshare_id buffers[VIRTIO_BUFSHARE_MAX_FRAME_BUFFERS];
	__le32 num_buffers;
	__le32 max_held;
	__le32 flags;
	__le32 record_size;
};

/**
 * struct virtio_bufshare_push_resp - answer to PUSH
 * @hdr: response header
 * @entry: the first entry that is wrong, or their number
 * @reserved: zero
 * @frame: number of the first frame, if all were handed over; the others' follow. Not used
 *	again
 */
struct virtio_bufshare_push_resp {
	struct virtio_bufshare_resp hdr;
	__le32 entry;
	__le32 reserved;
	__le64 frame;
};

/**
 * struct virtio_bufshare_return - entry of RETURN: give a frame back
 * @handle: the attachment that was given it
 * @frame: its number
 */
struct virtio_bufshare_return {
	__le64 handle;
	__le64 frame;
};

/**
 * struct virtio_bufshare_event - one event
 * @type: VIRTIO_BUFSHARE_EVT_*
 * @flags: zero; what a driver does not know of them, it ignores, as unknown types
 * @length: bytes of this structure, at most config.event_size; what a driver does not
 *	know of it, it ignores
 * @reserved: zero
 * @seq: number of the event in this session, from 1, without gaps
 * @peer: whom it is about (owner of the buffer, or who released it)
 * @id: the buffer, or zero
 * @handle: the attachment, or zero
 * @generation: of the export, or zero
 * @value: see VIRTIO_BUFSHARE_EVT_*
 *
 * REVOKED with a handle ends that attachment. With handle 0 and the receiver
 * as peer its own export ended without its asking; with another peer, a
 * buffer that it has not attached (any more) is not offered any more.
 *
 * PEER_UP, PEER_DOWN, RELEASED, and REVOKED of an attachment or an own export, are
 * never dropped; RELEASED is taken back when the export ends. After its DETACH, REVOKED
 * of an attachment has no handle. While as many
 * of own exports wait to be taken as max_buffers, EXPORT is refused (TOO_MANY).
 * META and OFFER of one buffer are coalesced, the newest value counts. OVERFLOW
 * reports what is dropped. Events are numbered when they are delivered.
 */
struct virtio_bufshare_event {
	__le32 type;
	__le32 flags;
	__le32 length;
	__le32 reserved;
	__le64 seq;
	__le64 peer;
	struct virtio_bufshare_id id;
	__le64 handle;
	__le64 generation;
	__le64 value;
};

/**
 * struct virtio_bufshare_pushed - the event PUSHED
 * @event: as of other events; @id is the first of the frame's buffers, @handle the
 *	attachment of it that is given the frame, @value the number of the frame
 * @others: the other buffers; those beyond @num_buffers are zero
 * @num_buffers: those of the frame, the first included
 * @record_size: bytes of the frame's record
 * @meta_seq: sequence number that the metadata of @id had when it was pushed
 *
 * The frame's record is the last @record_size bytes of the event; what is before it grows.
 */
struct virtio_bufshare_pushed {
	struct virtio_bufshare_event event;
	struct virtio_bufshare_id others[3];	/* VIRTIO_BUFSHARE_MAX_FRAME_BUFFERS less one */
	__le32 num_buffers;
	__le32 record_size;
	__le64 meta_seq;
};

#endif /* _VIRTIO_BUFSHARE_H */
