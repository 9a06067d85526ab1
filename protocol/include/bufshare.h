/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR BSD-3-Clause */
/*
 * User interface of /dev/bufshare
 *
 * Structures have the same layout on 32 and 64 bits. Reserved fields and
 * unknown flag bits that are read must be zero, else EINVAL. They grow at their
 * end: an ioctl's number says how long the program's structure is, at least as long as
 * here. What is shorter than the driver knows counts as filled with zeroes, and as much
 * is written back; what is longer must end in zeroes, else E2BIG. Entries of tables
 * and metadata likewise have the size that the program says. Each ioctl that the
 * host may refuse has a status field: on failure errno says the kind and status,
 * a BUFSHARE_S_* value, the exact reason. The driver
 * may have found that reason without asking. 0: there is none beside the errno, or the
 * host did not answer. It is not written with E2BIG of the structure, EFAULT and
 * ENODEV. INFO asks the host, too, which has no reason to refuse it; DMA_BUF_IOCTL_SYNC
 * of an import says the errno alone.
 *
 * Waits for the host end on a fatal signal (EINTR), when the host does not
 * answer in time (ETIMEDOUT) and when the device goes away (ENODEV).
 *
 * read() returns one struct bufshare_event, or as much of a longer one as there is room
 * for. Each open file has its own queue and gets all events from its opening on, and news
 * that is of it alone: BUFSHARE_EVT_PUSHED and _RETURNED. That may be read before
 * other events that have a lower seq.
 *
 * poll() reports that there is an event. Another thread may read it first, and a PUSHED may
 * be taken back: then a read() waits for the next. So who does not want that opens the
 * file with O_NONBLOCK, and takes EAGAIN for what it is.
 *
 * BUFSHARE_EVT_OVERFLOW says that events are missing from here on: @value of
 * them, or 0 for an unknown number. A suspend of this VM, and any reset of the device,
 * end all exports and imports of it with such an OVERFLOW alone, and no REVOKED. So
 * whoever holds some has to look after each: poll() an export_fd, DMA_BUF_IOCTL_SYNC
 * an import.
 */
#ifndef _UAPI_BUFSHARE_H
#define _UAPI_BUFSHARE_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define BUFSHARE_NAME_LEN	32
#define BUFSHARE_ID_LEN		16
#define BUFSHARE_MAX_PLANES	4
#define BUFSHARE_MAX_ACL	16
#define BUFSHARE_MAX_BLOB	4096
#define BUFSHARE_MAX_ENTRY	1024	/* bytes of entry_size, meta_size, access_size */

#define BUFSHARE_READ		0x1
#define BUFSHARE_WRITE		0x2

#define BUFSHARE_IMPORT_HANDLE	0x1	/* a handle instead of a descriptor */
#define BUFSHARE_IMPORT_CONSUME	0x2	/* with a handle: it is given the frames of the buffer */
/* Of one open file: half of the imports that a VM may have unless its operator says more. */
#define BUFSHARE_MAX_HANDLES	512
#define BUFSHARE_MAX_BATCH	16	/* frames of a PUSH, and of a RETURN */

/*
 * The constants from here up to struct bufshare_id are as in virtio_bufshare.h, which has the same
 * numbers with VIRTIO_ before their names.
 */

/* struct bufshare_info.caps */
#define BUFSHARE_CAP_MAP		0x1	/* imports can be mapped here */
#define BUFSHARE_CAP_UDMABUF		0x2	/* host confines shared pages */
#define BUFSHARE_CAP_RO_ENFORCED	0x4	/* VMM enforces read-only maps */

/* Kinds of what may be exported; bits of struct bufshare_info.backings */
#define BUFSHARE_BACKING_EXTENTS	0	/* the memory of a dma-buf */
#define BUFSHARE_BACKING_STREAM		3	/* none: a stream */

/* How the bytes of an import become visible. */
#define BUFSHARE_WAY_NONE		0	/* it is a stream: there are no bytes */
#define BUFSHARE_WAY_DIRECT		1	/* the exporter's RAM, as it is */
#define BUFSHARE_WAY_UDMABUF		2	/* the shared pages of it alone */
#define BUFSHARE_WAY_POOL		3	/* memory of the device; not served yet */
#define BUFSHARE_WAY_COPY_WINDOW	4	/* a copy, in a window; not served yet */
#define BUFSHARE_WAY_COPY_GUEST		5	/* a copy, in the importer's RAM; not served yet */

/* What holds of an import, whatever its way; bits. */
#define BUFSHARE_COHERENT	0x1	/* SYNC moves no data: may be left out */
#define BUFSHARE_RO_HELD	0x2	/* the importer's VMM keeps it from writing */
#define BUFSHARE_REVOCABLE	0x4	/* revoked without the importer's VMM */
#define BUFSHARE_MOVABLE	0x8	/* the bytes may move to other memory */
#define BUFSHARE_SURVIVES	0x10	/* outlives the exporter's VM */

#define BUFSHARE_PEER_UP	0x1	/* peer.state: its driver runs */

/* struct bufshare_buffer.flags */
#define BUFSHARE_BUFFER_OWNED		0x1	/* the asker exported it */
#define BUFSHARE_BUFFER_REVOKING	0x2	/* UNEXPORT under way */
#define BUFSHARE_BUFFER_QUIESCED	0x4	/* see QUIESCE; its owner sees it */
#define BUFSHARE_BUFFER_STREAM		0x8	/* it is a stream: it has no bytes */

/* struct bufshare_meta.must_know, .flags */
#define BUFSHARE_KNOW_BUFFERS	0x1	/* planes are in several buffers of a frame */
#define BUFSHARE_STREAM_ENDED	0x1	/* no frame comes any more in this epoch */

/* struct bufshare_event.type, and which of the other fields it has */
#define BUFSHARE_EVT_PEER_UP	0x1000	/* peer */
#define BUFSHARE_EVT_PEER_DOWN	0x1001	/* peer; before its REVOKEDs */
#define BUFSHARE_EVT_OFFER	0x1002	/* peer, id, value = size */
#define BUFSHARE_EVT_RELEASED	0x1003	/* peer's last attachment, id */
#define BUFSHARE_EVT_REVOKED	0x1004	/* id, handle of an import, or 0 */
#define BUFSHARE_EVT_META	0x1005	/* id, value = sequence number */
#define BUFSHARE_EVT_OVERFLOW	0x1006	/* value = events missing; LIST */
#define BUFSHARE_EVT_PUSHED	0x1007	/* peer, id, handle, value = frame */
#define BUFSHARE_EVT_RETURNED	0x1008	/* own id, value = frame */

/* Fields status: why the host refused, or what it would say */
#define BUFSHARE_S_OK			0
#define BUFSHARE_S_UNSUPPORTED		1	/* unknown command, flag or set field */
#define BUFSHARE_S_BAD_LENGTH		2	/* not the length its fields say */
#define BUFSHARE_S_BAD_FIELD		3	/* out of range */
#define BUFSHARE_S_NO_ROOM		4	/* response room too small: not done */
#define BUFSHARE_S_NOT_FOUND		5	/* no such buffer, handle, window for you */
#define BUFSHARE_S_DENIED		6	/* operator or exporter does not allow it */
#define BUFSHARE_S_NOT_RAM		7	/* extent is not this VM's own RAM */
#define BUFSHARE_S_OVERLAP		8	/* extents overlap each other */
#define BUFSHARE_S_UNALIGNED		9	/* not a multiple of map_align */
#define BUFSHARE_S_TOO_LARGE		10	/* buffer over max_buffer_size */
#define BUFSHARE_S_TOO_MANY		11	/* over max_buffers, max_attachments, ... */
#define BUFSHARE_S_TOO_FRAGMENTED	12	/* over max_extents or max_windows */
#define BUFSHARE_S_NO_WINDOW		13	/* window budget used up */
#define BUFSHARE_S_NO_SPACE		14	/* no free range in the region */
#define BUFSHARE_S_BUSY			15	/* still mapped; UNEXPORT under way */
#define BUFSHARE_S_REVOKED		16	/* being revoked, or gone */
#define BUFSHARE_S_META_TOO_LARGE	17	/* over max_blob: refused, not cut */
#define BUFSHARE_S_BAD_META		18	/* name or image not valid, or too large */
#define BUFSHARE_S_NO_WAY		19	/* none that is allowed and accepted */
#define BUFSHARE_S_RO_NOT_ENFORCED	20	/* VMM would not enforce read-only */
#define BUFSHARE_S_NO_SHMEM		21	/* VMM has no shared-memory requests */
#define BUFSHARE_S_MAP_FAILED		22	/* VMM refused the mapping */
#define BUFSHARE_S_UNBALANCED		23	/* SYNC end with no begin */
#define BUFSHARE_S_HOST_ERROR		24	/* host failed; see its log */
#define BUFSHARE_S_EXISTS		25	/* the peer has a stream of that name */

#define BUFSHARE_MAX_FRAME_BUFFERS	4	/* as planes of an image */
#define BUFSHARE_MAX_CONSUMERS		4	/* of one peer, given frames of one buffer */
#define BUFSHARE_MAX_FRAME_RECORD	768	/* bytes of a frame's record */
#define BUFSHARE_MAX_DAMAGE		16	/* rectangles of a frame */

/* Clocks of a frame's time. None of one VM is that of another. */
#define BUFSHARE_CLOCK_NONE		0	/* it has no time */
#define BUFSHARE_CLOCK_MONOTONIC	1	/* of the exporter */
#define BUFSHARE_CLOCK_REALTIME		2	/* UTC, as far as the exporter knows it */
#define BUFSHARE_CLOCK_TAI		3	/* likewise */

/* struct bufshare_frame_record.flags */
#define BUFSHARE_FRAME_DISCONT		0x1	/* does not follow the one before */
#define BUFSHARE_FRAME_CORRUPTED	0x2	/* the contents may be wrong */
#define BUFSHARE_FRAME_GAP		0x4	/* there are no contents */
#define BUFSHARE_FRAME_LAST		0x8	/* no frame follows */
#define BUFSHARE_FRAME_INTERLACED	0x10	/* two fields, line by line */
#define BUFSHARE_FRAME_BOTTOM_FIRST	0x20	/* the field of the second line is first */
#define BUFSHARE_FRAME_EXPOSURE_END	0x40	/* pts is the end of the exposure */

/**
 * struct bufshare_id - name of a buffer
 * @b: bytes
 */
struct bufshare_id {
	__u8 b[BUFSHARE_ID_LEN];
};

/**
 * struct bufshare_info - INFO: the device and its limits
 * @version: of the wire format in force
 * @caps: BUFSHARE_CAP_*
 * @max_windows: VMM mappings this VM may hold at once
 * @max_extents: pieces per exported buffer
 * @max_buffers: buffers exported at once
 * @max_attachments: imports at once
 * @max_blob: bytes of opaque metadata
 * @map_align: alignment of pieces, bytes
 * @shm_size: bytes of the window region
 * @max_buffer_size: bytes per buffer
 * @peer_id: our id
 * @windows_used: VMM mappings held now, idle ones included
 * @ways: ways that an import may be given, as bits: 1 << BUFSHARE_WAY_*
 * @name: our name, given by the host's operator
 * @backings: kinds of what the host takes an EXPORT of, as bits: 1 << BUFSHARE_BACKING_*.
 *	Without STREAM it hands no frames over
 * @max_batch: frames of a PUSH, up to BUFSHARE_MAX_BATCH; 0: this driver hands no frames over
 *
 * An older driver leaves what it does not know as the caller had it: zero.
 */
struct bufshare_info {
	__u32 version;
	__u32 caps;
	__u32 max_windows;
	__u32 max_extents;
	__u32 max_buffers;
	__u32 max_attachments;
	__u32 max_blob;
	__u32 map_align;
	__u64 shm_size;
	__u64 max_buffer_size;
	__u64 peer_id;
	__u32 windows_used;
	__u32 ways;
	__u8 name[BUFSHARE_NAME_LEN];
	__u32 backings;
	__u32 max_batch;
};

/**
 * struct bufshare_peer - one peer; as struct virtio_bufshare_peer
 * @id: its id
 * @name: given by the host's operator
 * @state: BUFSHARE_PEER_UP or 0
 * @export_rights: what we may grant it
 * @import_rights: what it may grant us
 * @reserved: zero
 */
struct bufshare_peer {
	__u64 id;
	__u8 name[BUFSHARE_NAME_LEN];
	__u32 state;
	__u32 export_rights;
	__u32 import_rights;
	__u32 reserved;
};

/**
 * struct bufshare_buffer - one buffer; as struct virtio_bufshare_buffer
 * @id: its name
 * @owner: the exporting peer
 * @size: bytes
 * @generation: of the export
 * @meta_seq: sequence number of the metadata
 * @rights: ours
 * @flags: BUFSHARE_BUFFER_*
 * @extents: number of pieces, if ours
 * @attachments: of all peers if ours, else our own
 * @mapped: how many of those are mapped
 * @fourcc: of the image, 0: none; whether it can be made sense of, GET_META says
 * @name: for people
 * @stream: the stream that it is part of, or zero
 */
struct bufshare_buffer {
	struct bufshare_id id;
	__u64 owner;
	__u64 size;
	__u64 generation;
	__u64 meta_seq;
	__u32 rights;
	__u32 flags;
	__u32 extents;
	__u32 attachments;
	__u32 mapped;
	__u32 fourcc;
	__u8 name[BUFSHARE_NAME_LEN];
	struct bufshare_id stream;
};

/**
 * struct bufshare_table - PEERS and LIST: read a table in pieces
 * @cursor: in: 0 to start, then the last answer's; out: 0: this was all
 * @entries: in: address of struct bufshare_peer or bufshare_buffer
 * @count: in: room, entries, not zero; out: entries written
 * @entry_size: in: bytes of an entry in the table, 8 to BUFSHARE_MAX_ENTRY, a multiple
 *	of 8
 * @status: out: status of the host
 * @reserved: zero
 */
struct bufshare_table {
	__u64 cursor;
	__u64 entries;
	__u32 count;
	__u32 entry_size;
	__u32 status;
	__u32 reserved;
};

/**
 * struct bufshare_alloc - ALLOC: a dma-buf of this VM's RAM in few pieces
 * @size: in: bytes, rounded up to whole pages and to the alignment of pieces
 * @fd_flags: in: O_CLOEXEC and O_RDWR or O_RDONLY
 * @flags: in: zero
 * @fd: out: the dma-buf
 * @extents: out: pieces it has
 */
struct bufshare_alloc {
	__u64 size;
	__u32 fd_flags;
	__u32 flags;
	__s32 fd;
	__u32 extents;
};

/**
 * struct bufshare_access - one line of an access list
 * @peer: who may import
 * @rights: BUFSHARE_READ, or READ | WRITE
 * @reserved: zero
 */
struct bufshare_access {
	__u64 peer;
	__u32 rights;
	__u32 reserved;
};

/**
 * struct bufshare_plane - one plane of an image
 * @offset: bytes from the start of the buffer
 * @stride: bytes per row
 * @rows: rows of this plane
 * @buffer: which of the buffers of a frame it is in; 0: this one, the first
 * @reserved: zero
 */
struct bufshare_plane {
	__u64 offset;
	__u32 stride;
	__u32 rows;
	__u32 buffer;
	__u32 reserved;
};

/**
 * struct bufshare_image - what the pixels mean; all zero: not an image
 * @fourcc: DRM fourcc
 * @num_planes: 1 to BUFSHARE_MAX_PLANES
 * @width: pixels
 * @height: pixels
 * @modifier: DRM format modifier
 * @planes: the planes
 */
struct bufshare_image {
	__u32 fourcc;
	__u32 num_planes;
	__u32 width;
	__u32 height;
	__u64 modifier;
	struct bufshare_plane planes[BUFSHARE_MAX_PLANES];
};

/**
 * struct bufshare_meta - metadata
 * @name: for people, UTF-8, NUL padded
 * @image: typed image description
 * @blob_len: bytes of opaque data; GET_META: in: room, out: length
 * @must_know: BUFSHARE_KNOW_*: who finds an unknown bit takes it for no image. Set
 *	for what there is, or it is EINVAL
 * @epoch: of a stream, another at each start of its producer; else zero
 * @flags: of a stream, BUFSHARE_STREAM_*; else zero
 * @reserved: zero
 */
struct bufshare_meta {
	__u8 name[BUFSHARE_NAME_LEN];
	struct bufshare_image image;
	__u32 blob_len;
	__u32 must_know;
	__u64 epoch;
	__u32 flags;
	__u32 reserved;
};

#define BUFSHARE_EXPORT_STREAM	0x1	/* it is a stream, of no dma-buf */
#define BUFSHARE_EXPORT_PART	0x2	/* it is part of a stream */

/**
 * struct bufshare_export - EXPORT: offer a dma-buf, ours or any driver's, or a stream
 * @dmabuf_fd: in: the dma-buf; -1 with BUFSHARE_EXPORT_STREAM
 * @fd_flags: in: O_CLOEXEC or 0
 * @flags: in: BUFSHARE_EXPORT_*
 * @num_acl: in: lines of the access list; 0: all peers the operator allows
 * @acl: in: address of struct bufshare_access
 * @blob: in: address of meta.blob_len bytes
 * @meta: in: address of struct bufshare_meta
 * @meta_size: in: bytes of it, as here or more, up to BUFSHARE_MAX_ENTRY, a multiple of 8
 * @access_size: in: bytes of a line of @acl, likewise, also if there is none
 * @id: out: the buffer's name
 * @generation: out: number of this export, not used again (SPEC.md, section 5.2)
 * @export_fd: out: closing the last copy of it ends the export
 * @status: out: status of the host
 * @stream_fd: in: with BUFSHARE_EXPORT_PART the export of the stream, whose access list the
 *	buffer has: num_acl is zero then. Else zero
 * @reserved: zero
 *
 * As long as an export of the same dma-buf to the same peers with the same rights, and in
 * the same stream, has not ended, EXPORT gives another file of that: the same id, which
 * ends with its last file. EEXIST with status 0: its EXPORT had other metadata.
 *
 * A stream has a name, in its metadata, that no other stream of this VM has (else EEXIST).
 * Others join it by IMPORT with BUFSHARE_IMPORT_HANDLE, and leave it by CLOSE.
 *
 * EACCES: the dma-buf is not open for writing, and the access list would have
 * others write it. An empty list would, too: name the peers with BUFSHARE_READ.
 * EPERM: the dma-buf is an import. Only its exporter exports its memory.
 * EDQUOT with status 0: the exports of this VM would pin more memory of other
 * drivers than the module's parameter pin_limit_mb allows.
 *
 * poll() of export_fd gives POLLHUP when the export has ended while the file is
 * open: the host revoked it, this VM was suspended, or the device is gone.
 */
struct bufshare_export {
	__s32 dmabuf_fd;
	__u32 fd_flags;
	__u32 flags;
	__u32 num_acl;
	__u64 acl;
	__u64 blob;
	__u64 meta;
	__u32 meta_size;
	__u32 access_size;
	struct bufshare_id id;
	__u64 generation;
	__s32 export_fd;
	__u32 status;
	__s32 stream_fd;
	__u32 reserved;
};

/**
 * struct bufshare_import - IMPORT: another VM's buffer as a dma-buf
 * @id: in: the buffer
 * @rights: in: wanted; out: granted
 * @fd_flags: in: O_CLOEXEC and O_RDWR or O_RDONLY
 * @flags: in: BUFSHARE_IMPORT_*
 * @ways: in: ways that are accepted, as bits: 1 << BUFSHARE_WAY_*; 0: WAY_DIRECT
 *	and WAY_UDMABUF. Who joins a stream accepts WAY_NONE
 * @required: in: properties without which it is refused (EOPNOTSUPP)
 * @max_windows: in: VMM mappings that mapping it may take (else E2BIG); 0: any number
 * @fd: out: the dma-buf, or -1 with BUFSHARE_IMPORT_HANDLE; closing its last copy is the
 *	detach, if no handle is left either
 * @status: out: status of the host
 * @size: out: bytes
 * @generation: out: of the export
 * @owner: out: exporting peer
 * @way: out: BUFSHARE_WAY_*, for people
 * @properties: out: what holds of it, BUFSHARE_COHERENT and the others
 * @windows: out: VMM mappings that mapping it takes
 * @handle: in: zero; out: with BUFSHARE_IMPORT_HANDLE the handle, not zero, else zero
 *
 * A handle stands for the dma-buf within this open file of /dev/bufshare, and keeps it as
 * a descriptor does, with the window that it has in this VM: until CLOSE, or until the
 * file is closed everywhere. Processes that share the open file share its handles. It has
 * no O_CLOEXEC, so that is EINVAL with BUFSHARE_IMPORT_HANDLE. EMFILE: the file has
 * BUFSHARE_MAX_HANDLES; nothing was imported then. EUSERS: 64 handles of all files of this
 * VM are given the frames of that dma-buf.
 *
 * With BUFSHARE_IMPORT_CONSUME the handle is given the frames that come after IMPORT has
 * returned, and perhaps one that came just before.
 *
 * As long as any file of this VM has a handle of a buffer, an IMPORT of it with the same
 * rights and the same access mode is the same dma-buf, if its way, properties and windows
 * are accepted, and it is given frames or none are asked for. The host is not asked then. One
 * that is being made is waited for; if it fails, so do those who asked for the same.
 * With other rights or another access mode, or if those are not accepted, a program has an
 * attachment of its own, and is given the frames by that. EDQUOT with
 * BUFSHARE_S_TOO_MANY: this VM has BUFSHARE_MAX_CONSUMERS of the buffer that
 * are given its frames, or as many as INFO says of all.
 *
 * EROFS: BUFSHARE_READ alone was wanted, and the VMM does not enforce read-only
 * mappings (no BUFSHARE_CAP_RO_ENFORCED in INFO). QEMU does not: there only
 * READ | WRITE can be imported, by whom the exporter and the operator grant both.
 * ENODEV of DMA_BUF_IOCTL_SYNC and mmap(), and SIGBUS of what is mapped: the
 * exporter revoked the buffer, this VM was suspended, or the device is gone.
 *
 * mmap() asks the host nothing. It is the start of DMA_BUF_IOCTL_SYNC that has the
 * import mapped into this VM, or else the first access to its memory; either waits for
 * the host. Of what the host refuses, the one says the errno (ENOSPC: this VM has too
 * many windows, or no room for this one), and the other is SIGBUS. Either asks again
 * the next time.
 */
struct bufshare_import {
	struct bufshare_id id;
	__u32 rights;
	__u32 fd_flags;
	__u32 flags;
	__u32 ways;
	__u32 required;
	__u32 max_windows;
	__s32 fd;
	__u32 status;
	__u64 size;
	__u64 generation;
	__u64 owner;
	__u32 way;
	__u32 properties;
	__u32 windows;
	__u32 handle;
};

/**
 * struct bufshare_handle_to_fd - HANDLE_TO_FD: a descriptor of an import, on demand
 * @handle: in: of IMPORT
 * @fd_flags: in: O_CLOEXEC or 0; whether it can be written is what IMPORT said
 * @fd: out: the dma-buf, the same each time
 * @reserved: zero
 *
 * ENOENT: this open file has no such handle. EINVAL: it is one of a stream. The host is not
 * asked: of a buffer that was revoked there is a descriptor, too, and also when the device is
 * gone.
 */
struct bufshare_handle_to_fd {
	__u32 handle;
	__u32 fd_flags;
	__s32 fd;
	__u32 reserved;
};

/**
 * struct bufshare_close - CLOSE: end a handle
 * @handle: in: of IMPORT; it may be that of a later import then
 * @reserved: zero
 *
 * Descriptors that were made of it stay. ENOENT: this open file has no such handle. It
 * works also when the device is gone.
 */
struct bufshare_close {
	__u32 handle;
	__u32 reserved;
};

/**
 * struct bufshare_meta_io - SET_META and GET_META
 * @id: GET_META: in: the buffer; SET_META: out: the buffer
 * @blob: in: address of meta.blob_len bytes
 * @seq: out: sequence number
 * @meta: in: address of struct bufshare_meta, read (SET_META) or written; a GET_META
 *	with too little room for the blob is EMSGSIZE and writes the length needed there
 * @meta_size: in: bytes of it, as here or more, up to BUFSHARE_MAX_ENTRY, a multiple of 8
 * @export_fd: SET_META: in: the export, of EXPORT: who has it may change the metadata.
 *	GET_META: zero
 * @status: out: status of the host
 * @reserved: zero
 */
struct bufshare_meta_io {
	struct bufshare_id id;
	__u64 blob;
	__u64 seq;
	__u64 meta;
	__u32 meta_size;
	__s32 export_fd;
	__u32 status;
	__u32 reserved;
};

/**
 * struct bufshare_query - QUERY
 * @status: out: status of the host
 * @reserved: zero
 * @buffer: in: buffer.id; out: all
 */
struct bufshare_query {
	__u32 status;
	__u32 reserved;
	struct bufshare_buffer buffer;
};

#define BUFSHARE_QUIESCE_ACTIVE		0
#define BUFSHARE_QUIESCE_QUIESCED	1

/**
 * struct bufshare_quiesce - QUIESCE: promise the host that nothing writes to the memory
 * @export_fd: an export of memory of ALLOC (of another driver's, and of a stream:
 *	EOPNOTSUPP)
 * @mode: BUFSHARE_QUIESCE_*
 * @status: out: status of the host
 * @reserved: zero
 *
 * It is the memory that is quiesced: the host is asked for each export that there is of it,
 * whichever is named. One that is made later is active for the host, until QUIESCE again.
 *
 * Programs' mappings stay, and need nothing: what touches one, and each map for a device
 * or the kernel, and each DMA_BUF_IOCTL_SYNC that begins, ends the state, and waits until
 * the host has answered that. If it does not answer in time, a page fault is SIGBUS, a map
 * for the kernel shows scratch memory (what is written there is lost, and until that map has
 * ended, each SYNC that begins is EIO), and the others are ETIMEDOUT; the memory stays
 * quiesced, and the next try asks again. So QUIESCE_ACTIVE is for who wants to wait now, and
 * not later.
 *
 * EBUSY: a device or the kernel has the memory mapped, a CPU access that was begun has not
 * ended (of a process that has gone, too), or somebody else is about to quiesce or to use
 * it. Other failures leave the memory active too, but the host is asked for that if it may
 * have taken it for quiesced (EINTR, ETIMEDOUT): what comes next may wait for that answer.
 *
 * The end of an export that is quiesced is an UNEXPORT with UNEXPORT_QUIESCED. The memory
 * stays quiesced until its answer, or until it is used as above.
 */
struct bufshare_quiesce {
	__s32 export_fd;
	__u32 mode;
	__u32 status;
	__u32 reserved;
};

/**
 * struct bufshare_rect - a rectangle of an image, pixels
 * @x: from the left
 * @y: from above
 * @width: 0: none
 * @height: 0: none
 */
struct bufshare_rect {
	__s32 x;
	__s32 y;
	__u32 width;
	__u32 height;
};

/**
 * struct bufshare_frame_record - what a frame is; as struct virtio_bufshare_frame
 * @flags: BUFSHARE_FRAME_*; who does not know one ignores it
 * @must_know: what a consumer has to know to make sense of the frame, as bits; none has a
 *	meaning yet. Who finds one that it does not know returns the frame
 * @sequence: the producer's count of frames, those that it lost included
 * @pts: when it is to be shown, or was taken, ns; by @clock
 * @duration: ns, 0: unknown
 * @clock: BUFSHARE_CLOCK_*
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
struct bufshare_frame_record {
	__u32 flags;
	__u32 must_know;
	__u64 sequence;
	__s64 pts;
	__u64 duration;
	__u32 clock;
	__u32 transform;
	__u32 bytes_used[BUFSHARE_MAX_FRAME_BUFFERS];
	struct bufshare_rect crop;
	__u8 colour_primaries;
	__u8 transfer_characteristics;
	__u8 matrix_coefficients;
	__u8 full_range;
	__u8 chroma_location;
	__u8 reserved[3];
	__u16 mastering[8];
	__u32 max_luminance;
	__u32 min_luminance;
	__u16 max_cll;
	__u16 max_fall;
	__u32 num_damage;
	__u64 epoch;
	struct bufshare_rect damage[BUFSHARE_MAX_DAMAGE];
};

/**
 * struct bufshare_push_frame - a frame that is handed over
 * @buffers: what it is in: see plane.buffer: exports, each of EXPORT
 * @num_buffers: 1 to BUFSHARE_MAX_PLANES; those beyond are zero
 * @max_held: a VM that has so many frames of this one's of the same stream, or of none if the
 *	first buffer is part of none, is not given it; 0: all are
 * @flags: zero
 * @record_size: bytes of its record, a multiple of 8; beyond
 *	BUFSHARE_MAX_FRAME_RECORD: EFBIG
 *
 * Its record is the last @record_size bytes of the entry, and zeroes are between (else
 * E2BIG): struct virtio_bufshare_frame, or a part of it, or what a later version has behind
 * it. It goes as it is, in little endian.
 */
struct bufshare_push_frame {
	__s32 buffers[BUFSHARE_MAX_PLANES];
	__u32 num_buffers;
	__u32 max_held;
	__u32 flags;
	__u32 record_size;
};

/**
 * struct bufshare_push - PUSH: hand frames over
 * @frames: in: address of them, struct bufshare_push_frame with its record each
 * @count: in: 1 to struct bufshare_info.max_batch. Of more the host says EINVAL, of more than
 *	BUFSHARE_MAX_BATCH the driver
 * @entry_size: in: bytes of each with its record, up to BUFSHARE_MAX_ENTRY, a multiple of 8
 * @frame: out: number of the first among this VM's frames; those of the others follow. Not
 *	used again as long as the host's daemon lives: with another they begin at 1
 * @entry: out: the first that is wrong, or @count
 * @status: out: status of the host
 *
 * All are handed over, or none. Nobody's access to the memory of a frame may be under way,
 * nor begin before the frame is returned: that waits for no device.
 *
 * Each consumer of the first buffer is given the frame. When the last has returned it, this
 * open file, and no other, reads BUFSHARE_EVT_RETURNED; at once if there was none.
 * EBUSY: a frame that a buffer is part of was not returned, or nobody has read that of its
 * first one. A file that is closed reads nothing; its frames are returned nevertheless.
 *
 * ETIMEDOUT, EINTR and EPROTO: the host may have pushed them, or do so yet. Until this file
 * reads RETURNED, which says the number then, a PUSH of that first buffer is EBUSY; if the
 * host refuses, it can be pushed again from then on.
 */
struct bufshare_push {
	__u64 frames;
	__u32 count;
	__u32 entry_size;
	__u64 frame;
	__u32 entry;
	__u32 status;
};

/**
 * struct bufshare_return_frame - a frame that is given back
 * @handle: the one that was given it, of IMPORT
 * @reserved: zero
 * @frame: its number
 */
struct bufshare_return_frame {
	__u32 handle;
	__u32 reserved;
	__u64 frame;
};

/**
 * struct bufshare_return - RETURN: give frames back
 * @frames: in: address of them, struct bufshare_return_frame
 * @count: in: 1 to BUFSHARE_MAX_BATCH
 * @entry_size: in: bytes of each, as here or more, up to BUFSHARE_MAX_ENTRY, a multiple
 *	of 8
 * @entry: out: the first that is wrong, or @count
 * @status: out: what the host would say of that
 *
 * All are given back, or none. It does not wait for the host, which is told when all
 * handles of this VM that were given the frame have returned it. ENOENT: this open file has
 * no such handle. EINVAL with BUFSHARE_S_UNBALANCED: it does not have this frame, or
 * not any more, as the buffer was revoked. CLOSE returns what the handle has, and so does
 * the end of the file.
 */
struct bufshare_return {
	__u64 frames;
	__u32 count;
	__u32 entry_size;
	__u32 entry;
	__u32 status;
};

/**
 * struct bufshare_event - what read() returns; as struct virtio_bufshare_event
 * @type: BUFSHARE_EVT_*
 * @flags: zero
 * @length: bytes that read() returned
 * @reserved: zero
 * @seq: number of the event in the session of driver and host, from 1; 0: an OVERFLOW of
 *	the driver's own. OVERFLOW reports gaps, and that another session has begun, before
 *	all events of that
 * @peer: whom it is about
 * @id: the buffer, or zero
 * @handle: the attachment, or zero; of BUFSHARE_EVT_PUSHED the handle of IMPORT
 * @generation: of the export, or zero
 * @value: see BUFSHARE_EVT_*
 */
struct bufshare_event {
	__u32 type;
	__u32 flags;
	__u32 length;
	__u32 reserved;
	__u64 seq;
	__u64 peer;
	struct bufshare_id id;
	__u64 handle;
	__u64 generation;
	__u64 value;
};

/**
 * struct bufshare_pushed - what read() returns of a BUFSHARE_EVT_PUSHED
 * @event: as of other events; @id is the first of the frame's buffers, @handle the handle
 *	that is given it, @value its number
 * @others: the other buffers; those beyond @num_buffers are zero
 * @num_buffers: those of the frame, the first included
 * @record_size: bytes of the frame's record, as far as there was room for it
 * @meta_seq: sequence number that the metadata of @id had when it was pushed
 * @arrival: when the driver learned of it, ns of this VM's CLOCK_MONOTONIC
 *
 * The record of the frame is the last @record_size bytes of the event: as it was pushed, or
 * its beginning. Only handles with BUFSHARE_IMPORT_CONSUME are given frames, one at a time
 * each, in the order in which they were pushed. None is lost, and what was not read is taken
 * back when it is revoked.
 */
struct bufshare_pushed {
	struct bufshare_event event;
	struct bufshare_id others[3];	/* BUFSHARE_MAX_PLANES less one */
	__u32 num_buffers;
	__u32 record_size;
	__u64 meta_seq;
	__u64 arrival;
};

/**
 * struct bufshare_returned - what read() returns of a BUFSHARE_EVT_RETURNED
 * @event: as of other events; @id is the first of the frame's buffers, @value its number
 * @arrival: when the driver learned of it, ns of this VM's CLOCK_MONOTONIC
 *
 * Who reads with less room, or from an older driver, gets the event alone.
 */
struct bufshare_returned {
	struct bufshare_event event;
	__u64 arrival;
};

#define BUFSHARE_IOC_MAGIC	0xBE
#define BUFSHARE_IOC_INFO	_IOWR(BUFSHARE_IOC_MAGIC, 0x00, struct bufshare_info)
#define BUFSHARE_IOC_PEERS	_IOWR(BUFSHARE_IOC_MAGIC, 0x01, struct bufshare_table)
#define BUFSHARE_IOC_ALLOC	_IOWR(BUFSHARE_IOC_MAGIC, 0x02, struct bufshare_alloc)
#define BUFSHARE_IOC_EXPORT	_IOWR(BUFSHARE_IOC_MAGIC, 0x03, struct bufshare_export)
#define BUFSHARE_IOC_IMPORT	_IOWR(BUFSHARE_IOC_MAGIC, 0x04, struct bufshare_import)
#define BUFSHARE_IOC_SET_META	_IOWR(BUFSHARE_IOC_MAGIC, 0x05, struct bufshare_meta_io)
#define BUFSHARE_IOC_GET_META	_IOWR(BUFSHARE_IOC_MAGIC, 0x06, struct bufshare_meta_io)
#define BUFSHARE_IOC_QUERY	_IOWR(BUFSHARE_IOC_MAGIC, 0x07, struct bufshare_query)
#define BUFSHARE_IOC_LIST	_IOWR(BUFSHARE_IOC_MAGIC, 0x08, struct bufshare_table)
#define BUFSHARE_IOC_QUIESCE	_IOWR(BUFSHARE_IOC_MAGIC, 0x09, struct bufshare_quiesce)
#define BUFSHARE_IOC_HANDLE_TO_FD _IOWR(BUFSHARE_IOC_MAGIC, 0x0A, struct bufshare_handle_to_fd)
#define BUFSHARE_IOC_CLOSE	_IOWR(BUFSHARE_IOC_MAGIC, 0x0B, struct bufshare_close)
#define BUFSHARE_IOC_PUSH	_IOWR(BUFSHARE_IOC_MAGIC, 0x0C, struct bufshare_push)
#define BUFSHARE_IOC_RETURN	_IOWR(BUFSHARE_IOC_MAGIC, 0x0D, struct bufshare_return)

#endif /* _UAPI_BUFSHARE_H */
