/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * libbufshare: dma-bufs shared with other virtual machines, and streams of frames in them
 *
 * Link with: pkg-config --cflags --libs bufshare
 *
 * Results. Functions return 0 or more, or a negative errno. Then bufshare_last_message()
 * says in a sentence what failed, why, and what to do, and bufshare_last_status() the
 * host's exact reason (BUFSHARE_S_* of bufshare.h), if there is one. Both are of the calling
 * thread and of its last call that failed. As a thread or the process ends, in what atexit(),
 * destructors and pthread keys run, there may be neither, and the errno alone.
 *
 * Objects are opaque. Each comes from a function that says who ends it, and how. One is used
 * by one thread at a time; it may go from thread to thread. A child of fork() has none of them:
 * it may only exec, or _exit(). Whatever it returned or closed would be gone for its parent, too.
 *
 * Descriptors that are passed in stay the caller's. Those that are returned are the
 * caller's, with FD_CLOEXEC, but for the get_fd functions, whose descriptor is the object's
 * and for poll() alone.
 *
 * Structures begin with their size, which the caller sets: to sizeof, after all else is zero.
 * So they can grow. Of one that is read, what is behind the size counts as zero, and what a
 * newer program says that this library does not know is -E2BIG unless it is zero. Of one that is
 * written, as much is written as both know, and size says how much. A size below that of the
 * first version, an unknown flag and a reserved field that is not zero are -EINVAL.
 *
 * Waiting. Functions that ask the host wait for its answer, for as long as the driver has
 * patience: 9 seconds (-ETIMEDOUT). No function waits for another VM. Those that begin CPU access
 * (slot_map, frame_map, frame_read) wait for the devices of this VM that use the buffer, with no
 * limit: poll() of its descriptor says whether there is any. Timeouts are in milliseconds: 0 does
 * not wait, -1 waits as long as it takes.
 *
 * Event loops. poll() the descriptor of get_fd for POLLIN. Before the first poll(), and when it
 * is readable or hung up, call next_event with a timeout of 0 until it returns 0. Other VMs may
 * make events as fast as they are taken: a program with more to do may stop earlier, if it calls
 * again before it polls. After -ETIMEDOUT, too, it has to call again: what the host did not answer
 * is still to do, and the descriptor need not become readable for that. Nor does it for what a
 * push found (bufshare_producer_push()), and for what is to be tried again after
 * BUFSHARE_CONSUMER_REFUSED.
 *
 * CPU access to mapped memory of another VM's raises SIGBUS when its exporter revokes it.
 * bufshare_frame_read() gives -ESTALE instead.
 */
#ifndef LIBBUFSHARE_H
#define LIBBUFSHARE_H

#include <stddef.h>
#include <stdint.h>

#include "bufshare.h"

#ifdef __cplusplus
extern "C" {
/*
 * Some functions have the name of a structure of an ioctl, whose constructor they hide. Where
 * both are used that is "struct bufshare_alloc".
 */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#endif

/* Of the last call of this thread that failed; "" if there was none. Good until the next. */
const char *bufshare_last_message(void);
/* BUFSHARE_S_*; 0: there is no reason beside the errno. */
uint32_t bufshare_last_status(void);

/* The open device, with its own queue of events. */
struct bufshare;

/**
 * bufshare_open() - open the device
 * @path: NULL: /dev/bufshare
 * @device: out: to be closed by bufshare_close()
 *
 * Asks nobody. -ENOENT: there is none. -EACCES: the caller may not open it.
 */
int bufshare_open(const char *path, struct bufshare **device);
/* What was exported and imported stays. NULL is nothing. */
void bufshare_close(struct bufshare *device);
int bufshare_get_fd(const struct bufshare *device);

struct bufshare_device_info {
	uint32_t size;
	uint32_t version;	/* of the wire format in force */
	uint32_t caps;		/* BUFSHARE_CAP_* */
	uint32_t max_windows;	/* VMM mappings this VM may hold at once */
	uint32_t windows_used;
	uint32_t max_buffers;	/* exported at once */
	uint32_t max_attachments; /* imports at once */
	uint32_t map_align;	/* bytes */
	uint64_t max_buffer_size; /* bytes */
	uint64_t shm_size;	/* bytes of the region in which imports appear */
	uint64_t peer_id;	/* this VM's */
	char name[BUFSHARE_NAME_LEN]; /* this VM's; ends with a NUL */
};

/* Asks the host. */
int bufshare_get_info(struct bufshare *device, struct bufshare_device_info *info);

struct bufshare_peer_info {
	uint32_t size;
	uint32_t up;		/* 1: its driver runs */
	uint64_t id;
	uint32_t export_rights;	/* the most that this VM may grant it, BUFSHARE_READ | _WRITE */
	uint32_t import_rights;	/* the most that it may grant this VM */
	char name[BUFSHARE_NAME_LEN];
};

/**
 * bufshare_find_peer() - find a VM by its name
 *
 * Asks the host. -ENOENT: the host's operator allows this VM to share with no peer of that name.
 */
int bufshare_find_peer(struct bufshare *device, const char *name,
		       struct bufshare_peer_info *peer);

#define BUFSHARE_BUFFER_INFO_OWNED	0x1	/* this VM exports it */
#define BUFSHARE_BUFFER_INFO_STREAM	0x2	/* it is a stream, which has no bytes */

struct bufshare_buffer_info {
	uint32_t size;
	uint32_t flags;		/* BUFSHARE_BUFFER_INFO_* */
	struct bufshare_id id;
	struct bufshare_id stream; /* that it is part of, or zero */
	uint64_t owner;		/* the exporting peer */
	uint64_t bytes;
	uint64_t generation;	/* number of the export */
	uint64_t meta_seq;	/* sequence number of the metadata */
	uint32_t rights;	/* this VM's */
	uint32_t fourcc;	/* of the image; 0: none */
	uint32_t attachments;	/* imports: of all VMs if it is this one's, else of this VM */
	uint32_t reserved;
	char name[BUFSHARE_NAME_LEN];
};

/**
 * bufshare_list() - all buffers and streams that this VM exports or may import
 * @each: is called for each, until it returns something else than 0, which is returned
 *
 * Asks the host, once for every 64 of them. @each may call any function.
 */
int bufshare_list(struct bufshare *device,
		  int (*each)(void *data, const struct bufshare_buffer_info *buffer), void *data);

/**
 * bufshare_alloc() - allocate a dma-buf of this VM's RAM, in few pieces
 * @bytes: rounded up to whole pages, and to map_align
 *
 * Returns its descriptor. Asks nobody. -EFBIG: more than max_buffer_size.
 */
int bufshare_alloc(struct bufshare *device, uint64_t bytes);

struct bufshare_export_options {
	uint32_t size;
	uint32_t num_access;	/* 0: for all peers that the operator allows */
	const struct bufshare_access *access;
	const char *name;	/* for people, at most 31 bytes; NULL: none */
	const struct bufshare_image *image; /* NULL: none */
	const void *blob;	/* bytes that only the programs understand */
	uint32_t blob_len;
	uint32_t reserved;
};

/**
 * bufshare_export() - offer a dma-buf, ours or any driver's, to other VMs
 * @options: NULL: to all, without metadata
 * @id: out: what it is imported by; may be NULL
 *
 * Returns a descriptor: closing the last copy of it ends the export, and poll() says POLLHUP
 * when the host has ended it. Asks the host. -EACCES: @dmabuf is open for reading only.
 */
int bufshare_export(struct bufshare *device, int dmabuf,
		    const struct bufshare_export_options *options, struct bufshare_id *id);

struct bufshare_import_info {
	uint32_t size;
	uint32_t rights;	/* granted */
	uint64_t bytes;
	uint64_t owner;		/* the exporting peer */
	uint64_t generation;	/* number of the export */
	uint32_t way;		/* BUFSHARE_WAY_*, for people */
	uint32_t properties;	/* BUFSHARE_COHERENT and the others */
};

/**
 * bufshare_import() - take another VM's buffer as a dma-buf of this VM
 * @rights: BUFSHARE_READ, or BUFSHARE_READ | BUFSHARE_WRITE
 * @info: may be NULL
 *
 * Returns its descriptor; the last that is closed ends the import. Asks the host. -ENOENT:
 * there is no such buffer for this VM. -EROFS: reading alone cannot be enforced here.
 */
int bufshare_import(struct bufshare *device, const struct bufshare_id *id, uint32_t rights,
		    struct bufshare_import_info *info);

#define BUFSHARE_META_INFO_IMAGE	0x1	/* there is an image */
#define BUFSHARE_META_INFO_ENDED	0x2	/* of a stream: no frame comes any more in this epoch */

struct bufshare_meta_info {
	uint32_t size;
	uint32_t flags;		/* BUFSHARE_META_INFO_* */
	uint64_t seq;		/* sequence number of the metadata */
	uint64_t epoch;		/* of a stream: another at each start of its producer */
	struct bufshare_image image; /* zero: there is none, or none that this version knows */
	uint32_t blob_len;	/* bytes of the blob, however much room there was */
	uint32_t reserved;
	char name[BUFSHARE_NAME_LEN];
};

/**
 * bufshare_get_meta() - what its exporter says of a buffer, or of a stream: its record
 * @id: of any that bufshare_list() has, of a frame's buffer, or of BUFSHARE_CONSUMER_JOINED
 * @blob: out: the bytes that only the programs understand, as much as there is room for
 * @blob_size: room there, bytes, up to BUFSHARE_MAX_BLOB; 0: @blob may be NULL
 *
 * Asks the host. -ENOENT: there is no such buffer for this VM, or none any more.
 */
int bufshare_get_meta(struct bufshare *device, const struct bufshare_id *id,
		      struct bufshare_meta_info *meta, void *blob, size_t blob_size);

struct bufshare_event_info {
	uint32_t size;
	uint32_t kind;		/* BUFSHARE_EVT_*; ignore those that you do not know */
	uint64_t seq;
	uint64_t peer;
	struct bufshare_id id;
	uint64_t handle;
	uint64_t generation;
	uint64_t value;
};

/**
 * bufshare_next_event() - what happened to peers and buffers
 *
 * Returns 1, or 0 if it was nothing in time. -ENODEV: the device is gone. On
 * BUFSHARE_EVT_OVERFLOW events were lost: list what there is.
 */
int bufshare_next_event(struct bufshare *device, struct bufshare_event_info *event,
			int timeout_ms);

/*
 * A stream of this VM's: its name, and a few slots of 1 to 4 buffers, which go round
 */
struct bufshare_producer;
/* What a frame is written into. */
struct bufshare_slot;

struct bufshare_producer_options {
	uint32_t size;
	uint32_t slots;		/* to be allocated; others can be added */
	const char *path;	/* of the device; NULL: /dev/bufshare */
	const char *name;	/* of the stream, 1 to 31 bytes, unlike all others of this VM */
	const struct bufshare_image *image; /* what each frame is; NULL: not said */
	const uint64_t *sizes;	/* bytes of each buffer of a slot; NULL: what the image needs */
	uint32_t num_sizes;	/* 1 to 4, or 0 */
	uint32_t max_held;	/* a VM that has so many frames is given no more; 0: no limit.
				 * It has one that any of its programs has. So that no VM stops
				 * the others, more slots are needed than all may have together */
	const struct bufshare_access *access;
	uint32_t num_access;	/* 0: for all peers that the operator allows */
	uint32_t blob_len;
	const void *blob;	/* bytes that only the programs understand */
	uint64_t epoch;		/* another at each start; 0: the time of the start */
};

/**
 * bufshare_producer_open() - create a stream and its slots
 * @producer: out: to be closed by bufshare_producer_close()
 *
 * Asks the host, for the stream and each buffer. -EEXIST: this VM has a stream of that name.
 * -EOPNOTSUPP: the host's device, or this VM's driver, is of a version that hands no frames over.
 */
int bufshare_producer_open(const struct bufshare_producer_options *options,
			   struct bufshare_producer **producer);
/* Ends the stream, and revokes the buffers, also those that consumers have. NULL is nothing. */
void bufshare_producer_close(struct bufshare_producer *producer);
int bufshare_producer_get_fd(const struct bufshare_producer *producer);
void bufshare_producer_get_id(const struct bufshare_producer *producer, struct bufshare_id *id);

/**
 * bufshare_producer_add() - make a slot of dma-bufs of any driver's, as a camera's
 *
 * Returns its number. Asks the host, for each. -EALREADY: one is in a slot of this producer, or
 * twice in @dmabufs.
 */
int bufshare_producer_add(struct bufshare_producer *producer, const int *dmabufs,
			  uint32_t count);

/**
 * bufshare_producer_remove() - take a slot away, and revoke its buffers
 * @number: that of the slot
 *
 * A frame in it that is out is out no more, and who has it loses the memory: so one consumer that
 * keeps frames does not stop the others. Returns 1, or 0 if there is none of that number, or the
 * caller has acquired it. Waits for nobody.
 */
int bufshare_producer_remove(struct bufshare_producer *producer, uint32_t number);

/**
 * bufshare_producer_acquire() - take a free slot
 * @number: that of the slot; -1: the one that was free the longest
 * @slot: out: to be pushed, or released by bufshare_slot_release()
 *
 * Returns 1, or 0 if there is none now. Asks nobody and does not wait.
 */
int bufshare_producer_acquire(struct bufshare_producer *producer, int number,
			      struct bufshare_slot **slot);
/* Gives it back without a push. NULL is nothing. */
void bufshare_slot_release(struct bufshare_slot *slot);
/* From 0, in the order in which they were made. */
int bufshare_slot_number(const struct bufshare_slot *slot);
/* How many buffers it has. */
int bufshare_slot_num_buffers(const struct bufshare_slot *slot);
/* A descriptor of the dma-buf, for drivers of this VM. */
int bufshare_slot_dup_fd(const struct bufshare_slot *slot, uint32_t index);

/**
 * bufshare_slot_map() - map a buffer, and begin CPU access to it
 *
 * Asks nobody, but waits, with no limit, until no device of this VM uses the buffer.
 * The access ends with the push, or the release, and the address is good until then.
 */
int bufshare_slot_map(struct bufshare_slot *slot, uint32_t index, void **address,
		      size_t *length);

/**
 * bufshare_producer_push() - hand the frame in a slot over
 * @slot: is not the caller's any more, whatever is returned
 * @record: what is said of it; its epoch is the producer's. NULL: nothing
 * @record_size: bytes of it, a multiple of 8
 * @frame: out: its number; may be NULL
 *
 * Asks the host, which waits for nobody. If that fails the slot is free again, unless the
 * host did not answer: then it may yet push the frame, and it is pushed again with the next.
 *
 * That a slot is lost may show here, and poll() says nothing of it. Who may have to wait long in
 * the next poll() calls next_event until it returns 0 before that.
 */
int bufshare_producer_push(struct bufshare_producer *producer, struct bufshare_slot *slot,
			   const struct bufshare_frame_record *record, size_t record_size,
			   uint64_t *frame);

/* Frames that were pushed and have not come back. */
int bufshare_producer_out(const struct bufshare_producer *producer);
/* VMs that have joined now. Asks the host. */
int bufshare_producer_consumers(struct bufshare_producer *producer);
/*
 * Says in the stream's record that no frame comes any more. Asks the host. A consumer that has not
 * heard of it before the close hears of that alone; BUFSHARE_FRAME_LAST of a record is not lost.
 */
int bufshare_producer_end(struct bufshare_producer *producer);

#define BUFSHARE_PRODUCER_OTHER		0	/* nothing of this stream */
#define BUFSHARE_PRODUCER_RETURNED	1	/* nobody has the frame any more: its slot is free */
#define BUFSHARE_PRODUCER_LEFT		2	/* no program of the peer is joined any more */
#define BUFSHARE_PRODUCER_LOST		3	/* the slot is no more: the host revoked it */
#define BUFSHARE_PRODUCER_ENDED		4	/* so is the stream: make another producer */

struct bufshare_producer_event {
	uint32_t size;
	uint32_t kind;		/* BUFSHARE_PRODUCER_*; ignore those that you do not know */
	uint32_t slot;		/* RETURNED, LOST */
	uint32_t reserved;
	uint64_t frame;		/* RETURNED */
	uint64_t peer;		/* LEFT */
	uint64_t arrival;	/* RETURNED: when this VM's driver learned of it, ns of CLOCK_MONOTONIC */
};

/* Returns 1, or 0 if it was nothing in time. Asks nobody. -ENODEV: the device is gone. */
int bufshare_producer_next_event(struct bufshare_producer *producer,
				 struct bufshare_producer_event *event, int timeout_ms);

/*
 * Another VM's stream, found by its name, and its frames
 */
struct bufshare_consumer;
/* A frame that this program has. */
struct bufshare_frame;

#define BUFSHARE_CONSUMER_WRITE		0x1	/* the frames are to be written, too */
#define BUFSHARE_CONSUMER_REJOIN	0x2	/* the next stream of that name is joined, too */

struct bufshare_consumer_options {
	uint32_t size;
	uint32_t flags;		/* BUFSHARE_CONSUMER_* */
	const char *path;	/* of the device; NULL: /dev/bufshare */
	const char *peer;	/* name of the VM */
	const char *name;	/* of the stream */
	const struct bufshare_id *id; /* of the stream, instead of these two; else NULL */
	uint32_t max_windows;	/* VMM mappings for the stream's buffers, of those of this VM; 0: 32 */
	uint32_t reserved;
};

/**
 * bufshare_consumer_open() - follow a stream, which need not be there yet
 * @consumer: out: to be closed by bufshare_consumer_close()
 *
 * If @options name a peer, asks the host for it. -ENOENT: there is no such peer. -EOPNOTSUPP: as
 * bufshare_producer_open(). If they have an id, asks nobody, and finds neither: where no frames
 * can be handed over, the stream never comes.
 */
int bufshare_consumer_open(const struct bufshare_consumer_options *options,
			   struct bufshare_consumer **consumer);
/* Leaves the stream. Frames that the caller has stay. NULL is nothing. */
void bufshare_consumer_close(struct bufshare_consumer *consumer);
int bufshare_consumer_get_fd(const struct bufshare_consumer *consumer);

#define BUFSHARE_CONSUMER_OTHER		0	/* nothing of this stream: call again */
#define BUFSHARE_CONSUMER_JOINED	1	/* the stream is there */
#define BUFSHARE_CONSUMER_RECORD	2	/* it has another record */
#define BUFSHARE_CONSUMER_FRAME		3	/* a frame */
#define BUFSHARE_CONSUMER_REJECTED	4	/* a frame that cannot be was returned unseen */
#define BUFSHARE_CONSUMER_REVOKED	5	/* a buffer is no more, and the frame in it */
/*
 * The stream, its record or a buffer of it cannot be had now. After that, call next_event again
 * within a second or so also if poll() says nothing: what may pass is tried again about once a
 * second, by these calls, and is not said again. Anything else is tried again only after events
 * were lost, and a record when there is another. -EDQUOT: with it the buffers of the stream would
 * take more mappings than max_windows; it is tried again when others of them are revoked. Frames
 * in a buffer that is refused are REJECTED.
 */
#define BUFSHARE_CONSUMER_REFUSED	6
#define BUFSHARE_CONSUMER_OVER		7	/* the stream is no more */

struct bufshare_consumer_event {
	uint32_t size;
	uint32_t kind;		/* BUFSHARE_CONSUMER_*; ignore those that you do not know */
	struct bufshare_frame *frame; /* FRAME: the caller's, for bufshare_frame_return() */
	struct bufshare_id id;	/* JOINED, REVOKED, REFUSED, OVER */
	uint64_t number;	/* REJECTED; REVOKED: of the frame that the caller has, or 0. It
				 * still goes through bufshare_frame_return() */
	uint64_t epoch;		/* JOINED, RECORD */
	uint32_t ended;		/* JOINED, RECORD: 1: no frame comes any more in this epoch */
	int32_t error;		/* REJECTED, REFUSED: -errno; bufshare_last_message() says more */
};

/**
 * bufshare_consumer_next_event() - what happened to the stream
 *
 * Returns 1, or 0 if it was nothing in time. Asks the host where the stream, a buffer or
 * metadata is new, or events were lost. -ETIMEDOUT: it did not answer; nothing is lost, and the
 * next call asks again, which has to come without a poll(). -ENODEV: the device is gone.
 *
 * What other VMs offer and is not of this stream is taken in, too, and is no event here. But a
 * call takes in some 64 events and requests: if nothing came of those it returns
 * BUFSHARE_CONSUMER_OTHER, before @timeout_ms if need be. The host's answers are waited for also
 * after that.
 */
int bufshare_consumer_next_event(struct bufshare_consumer *consumer,
				 struct bufshare_consumer_event *event, int timeout_ms);

/**
 * bufshare_frame_return() - give a frame back
 * @frame: is not the caller's any more, whatever is returned. NULL is nothing
 *
 * Does not wait, but if bufshare_frame_map() was called: the host may have to be asked for the end
 * of that access. -ESTALE: it was revoked, and so is given back already.
 */
int bufshare_frame_return(struct bufshare_frame *frame);
/* Its number, of those of its exporter. */
uint64_t bufshare_frame_number(const struct bufshare_frame *frame);
/* When this VM's driver learned of it, ns of CLOCK_MONOTONIC. */
uint64_t bufshare_frame_arrival(const struct bufshare_frame *frame);
/* What its producer says of it, as much as there is room for; what it did not say is zero. */
void bufshare_frame_get_record(const struct bufshare_frame *frame,
			       struct bufshare_frame_record *record, size_t record_size);
/*
 * Returns 1, or 0 if it is no image. Of each plane rows times stride bytes from its offset on are
 * in the frame's buffers, and nothing else is sure: width and height, and what they have to do
 * with stride and rows, are another VM's word. Who goes through pixels by them checks first that
 * a row of the format is within stride, and that there are as many rows.
 */
int bufshare_frame_get_image(const struct bufshare_frame *frame, struct bufshare_image *image);
/* How many buffers it has. */
int bufshare_frame_num_buffers(const struct bufshare_frame *frame);
/* Bytes of a buffer; 0: there is none of that index. */
uint64_t bufshare_frame_size(const struct bufshare_frame *frame, uint32_t index);
/*
 * Which one it is: the same id with each frame in it, and of BUFSHARE_CONSUMER_REVOKED. So a
 * program can keep what it made of a buffer, as a texture, for the next frame. -EINVAL: there is
 * none of that index.
 */
int bufshare_frame_get_buffer_id(const struct bufshare_frame *frame, uint32_t index,
				 struct bufshare_id *id);
/* A descriptor of the dma-buf, for drivers of this VM: the same dma-buf with each frame in it. */
int bufshare_frame_dup_fd(const struct bufshare_frame *frame, uint32_t index);

/**
 * bufshare_frame_read() - copy bytes out of a buffer
 *
 * Asks the host if the import is not coherent, or was never mapped, and waits, with no limit,
 * until no device of this VM writes the buffer. -ESTALE: they are gone. -ERANGE: they are not all
 * in the buffer. If it fails, @bytes may have been written.
 */
int bufshare_frame_read(struct bufshare_frame *frame, uint32_t index, uint64_t offset,
			void *bytes, size_t length);

/**
 * bufshare_frame_map() - map a buffer, and begin CPU access to it
 *
 * Asks and waits as bufshare_frame_read() does; if the frames are to be written, too, until no
 * device of this VM uses the buffer at all.
 * The access ends when the frame is returned, and the address is good until then.
 */
int bufshare_frame_map(struct bufshare_frame *frame, uint32_t index, void **address,
		       size_t *length);

#ifdef __cplusplus
#pragma GCC diagnostic pop
}
#endif

#endif /* LIBBUFSHARE_H */
