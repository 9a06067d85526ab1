/* SPDX-License-Identifier: GPL-2.0 */
/*
 * bufshare_priv.h - what the files of this driver share
 *
 * Files; each calls only those of its own line and below:
 *   main				the driver: probe and remove
 *   session, function_reset		from the first word to the host until the reset
 *   file, ioctl, sysfs, debugfs, event	what programs and the host ask for
 *   export, kept, producer,		a buffer's way out of this VM and into it
 *     import, handle
 *   import_dmabuf, cpu_access,		what an import consists of
 *     revoke, consumer, attachment,
 *     window
 *   backing, quiesce, alloc, mmap,	its memory
 *     scratch, sg, shm
 *   caps, user_lists, wire, ctrlq,	requests and answers
 *     complaints
 *   device, event_ring		what all of them hold
 * Upwards, ctrlq calls those who wait for a request, and backing ends an export whose
 * memory its owner wants back.
 *
 * Objects
 *   struct bufshare_device  one virtio device, from probe on. Counted: open
 *			     files, exports and imported dma-bufs outlive an
 *			     unbind and find it dead (alive is false).
 *   struct bufshare_shm     the window region and its struct pages. Counted:
 *			     outlives an unbind when other drivers still use
 *			     imported dma-bufs, and is the next binding's then.
 *   struct bufshare_req     one request on the control queue. Counted: one
 *			     reference of who waits, one of the queue. A waiter
 *			     may leave at any time; the buffers stay until the
 *			     device gave them back.
 *   struct bufshare_exp     an EXPORT. Its backing is kept until the host has
 *			     said that no importer can reach it, if need be for
 *			     ever, and the module with it. A later session of
 *			     any device may bring that answer.
 *   struct bufshare_imp     an ATTACH, with its dma-buf.
 *   struct bufshare_window  a MAP of it: one, until parts of a buffer can be mapped.
 *   struct bufshare_file    one opening of /dev/bufshare: its events and its handles,
 *			     each of which holds the dma-buf of an import.
 *
 * Exports and imports are state machines driven from complete() callbacks of
 * requests, under bufshare_device.lock. So whatever a waiter that gave up had
 * asked for is undone when the answer comes: an import without an owner is
 * unmapped and detached, an export without an owner is unexported.
 *
 * References of an import are dropped with that lock, since answers drop some: so
 * who finds it in a list has one that counts. Those of an export are dropped without
 * it, as the last one drops a reference of the device: it takes the lock to leave
 * the lists.
 *
 * Lock order, outermost first:
 *   bufshare_in_reset		read: a callback of a reset of the function runs
 *   bufshare_device.session	begin and end of a session with the host
 *   bufshare_device.inside	read: EXPORT and IMPORT, but no access to user memory
 *   bufshare_file.read_lock	one reader of a file takes an event, and waits for one
 *   mmap_lock			taken by the kernel around mmap and faults
 *   dma_resv of a dma-buf	taken by importers, and by us in process context
 *   bufshare_imp.fault_sem, bufshare_mem.fault_sem	read: check and insert of a PTE
 *   bufshare_maps.lock		device mappings of one dma-buf
 *   bufshare_device.files_lock	list of open files
 *   bufshare_device.lock	everything else; taken in hard interrupts
 *   bufshare_mem.lock		who uses memory of ALLOC, or is not to
 *   lock of bufshare_kept.c	list of kept exports
 *   bufshare_file.lock		one file's events
 *   lock of bufshare_file.handles	one file's handles
 *   wait queues
 * Two more are taken with none of these held:
 *   bufshare_shm_mutex		regions, and the beginning and end of their struct pages
 *   bufshare_priv_lock		who the virtio device is; also under bufshare_in_reset
 * No lock but the first three is held while waiting for the host, and the work that
 * revokes an import takes only the locks of that import. Where the kernel leaves no choice,
 * a MAP is waited for with dma_resv (a kernel mapping without an attachment) or with
 * mmap_lock for reading (a fault that may not be retried), and a QUIESCE with dma_resv (a
 * mapping) or likewise: neither answer waits for another VM. With mmap_lock for writing
 * nothing is waited for. No code of other drivers is called under bufshare_device.lock:
 * who is to be told what is told when it has been released, by bufshare_notify() or by a
 * work. So is the log, which a console may hold up: what is said under that lock is
 * dev_dbg(), which somebody has to turn on, and one line for each backing that was kept
 * and is given back. Intake and delivery of events take no dma_resv: who holds one may
 * wait for what an event brings.
 */
#ifndef _BUFSHARE_PRIV_H
#define _BUFSHARE_PRIV_H

#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/dma-buf.h>
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hashtable.h>
#include <linux/kref.h>
#include <linux/ktime.h>
#include <linux/list.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/miscdevice.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/rwsem.h>
#include <linux/scatterlist.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/virtio.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "compat.h"
#include <virtio_bufshare.h>
#include <bufshare.h>

/*
 * A task that waits for the host cannot be frozen, and a suspend gives up when a
 * task cannot for 20 s. No call of a program waits more than twice, and none waits anew
 * because another has failed. A task that unbinds or
 * unloads the driver, or resets the function, may take longer: a suspend that begins
 * meanwhile fails with EBUSY, and can be asked for again.
 */
#define BUFSHARE_MAX_TIMEOUT_MS		9000U
/*
 * How long an unbind and a reset of the function wait for a step of each other. The
 * beginning and the end of a session do not count: the VM may stand still there for as long
 * as the host waits for importers, and its clock goes on. Otherwise ioctls and other
 * drivers' buffers are waited for, for a timeout each.
 */
#define BUFSHARE_RESET_WAIT_MS	(5 * BUFSHARE_MAX_TIMEOUT_MS)
/* After our last callback a reset has nothing left to wait for but its processor. */
#define BUFSHARE_RESET_REST_MS	5000
#define BUFSHARE_RESET_POLL_MS	10
#define BUFSHARE_NUM_EVENT_BUFS		32
/* Events that are taken at once: interrupts are off for as long as that takes. */
#define BUFSHARE_INTAKE_EVENTS		4
/* Events that wait for a reader, or for the delivery to readers. */
#define BUFSHARE_RING_EVENTS		256
/*
 * Handles of all files that are given the frames of one import: with each frame interrupts
 * are off for as long as it takes to give it to them, or to take it back.
 */
#define BUFSHARE_MAX_FRAME_HANDLES		64
/* Events that the delivery takes at once: interrupts are off for as long as that takes. */
#define BUFSHARE_DELIVER_EVENTS		32
/*
 * Bytes of what programs give and take, as it was first published: they know no less of
 * it. What is added to a structure does not change these.
 */
#define BUFSHARE_INFO_SIZE_VER0		96
#define BUFSHARE_TABLE_SIZE_VER0	32
#define BUFSHARE_ALLOC_SIZE_VER0	24
#define BUFSHARE_EXPORT_SIZE_VER0	80
#define BUFSHARE_IMPORT_SIZE_VER0	88
#define BUFSHARE_META_IO_SIZE_VER0	56
#define BUFSHARE_QUERY_SIZE_VER0	112
#define BUFSHARE_QUIESCE_SIZE_VER0	16
#define BUFSHARE_META_SIZE_VER0		160
#define BUFSHARE_ACCESS_SIZE_VER0	16
#define BUFSHARE_EVENT_SIZE_VER0	72
#define BUFSHARE_HANDLE_TO_FD_SIZE_VER0	16
#define BUFSHARE_CLOSE_SIZE_VER0	8
#define BUFSHARE_PUSH_SIZE_VER0	32
#define BUFSHARE_RETURN_SIZE_VER0	24
/* Sizes of entries and records are multiples of this, so that all fields are aligned. */
#define BUFSHARE_ENTRY_ALIGN		8
/* Bytes of the longest event that a program reads: a frame with its record. */
#define BUFSHARE_MAX_READ \
	(sizeof(struct bufshare_pushed) + VIRTIO_BUFSHARE_MAX_FRAME_RECORD)
/* Exports and imports are found by name in about as many lists as there are of each. */
#define BUFSHARE_HASH_BITS		10
/* Room for the module's name, half an id in hex, and a peer's number. */
#define BUFSHARE_LABEL_LEN		64

/**
 * struct bufshare_caps - limits of the device, checked and in CPU byte order
 * @version: of the wire format in force
 * @caps: VIRTIO_BUFSHARE_CAP_*, without MAP when the region cannot be used
 * @max_windows: VMM mappings this VM may hold
 * @max_extents: pieces per export
 * @max_buffers: exports at once
 * @max_attachments: imports at once
 * @max_blob: bytes of opaque metadata
 * @map_align: alignment of pieces, a power of two
 * @shm_size: bytes of the window region
 * @max_buffer_size: bytes per buffer
 * @peer_id: our id
 * @event_size: bytes of an event buffer
 * @max_batch: entries of a batch, as far as programs have so many
 * @ways: ways that an import may be given, as bits: 1 << VIRTIO_BUFSHARE_WAY_*
 * @backings: kinds of backing that an export may have, as bits: 1 << kind
 */
struct bufshare_caps {
	u32 version;
	u32 caps;
	u32 max_windows;
	u32 max_extents;
	u32 max_buffers;
	u32 max_attachments;
	u32 max_blob;
	u32 map_align;
	u64 shm_size;
	u64 max_buffer_size;
	u64 peer_id;
	u32 event_size;
	u32 max_batch;
	u32 ways;
	u32 backings;
};

struct bufshare_imp;
struct bufshare_file;

/**
 * struct bufshare_stats - counters for debugfs
 * @requests: requests given to the device
 * @refused: answers that were not OK
 * @malformed: answers and events that made no sense
 * @timeouts: waiters that gave up
 * @orphans: answers that came after their waiter had gone
 * @events: events taken
 * @lost: events that the device or a full ring dropped, as far as their number is known
 * @revoked: imports revoked by their exporters
 */
struct bufshare_stats {
	u64 requests;
	u64 refused;
	u64 malformed;
	u64 timeouts;
	u64 orphans;
	u64 events;
	u64 lost;
	u64 revoked;
};

/* More than can be counted are as many as are unknown. */
#define BUFSHARE_DROPPED_UNKNOWN	U64_MAX

/**
 * struct bufshare_ring - events that wait for their reader; protected by its owner's lock
 * @head: index of the oldest event
 * @count: events in @events
 * @dropped: events that are missing since @events was full, BUFSHARE_DROPPED_UNKNOWN: an
 *	unknown number
 * @events: the events; written where they are not yet counted
 */
struct bufshare_ring {
	u32 head;
	u32 count;
	u64 dropped;
	struct bufshare_event events[BUFSHARE_RING_EVENTS];
};

/**
 * struct bufshare_complaints - what the host does wrong, yet to be said in the log
 * @malformed: events that made no sense
 * @type: of the last of those, as far as it can be believed
 * @length: likewise
 * @used: bytes of that one's buffer that the device said it has written
 * @gaps: events that came after a gap
 * @seq: number of the last of those
 * @aside: event buffers that could not be given back
 * @broken: the event queue is
 * @answers: answers that made no sense
 * @answer_type: command of the last of those
 * @answer_used: bytes that the device said it has written of it
 * @bad_maps: windows that are not within the region, or not of the buffer's size
 * @map_len: bytes of the last of those
 * @map_offset: its place
 * @map_region: bytes of the region
 * @map_window: its number
 * @stale_maps: windows where something still uses a revoked buffer
 * @stuck: UNEXPORTs that were not done
 * @stuck_status: status of the last of those
 * @stuck_err: likewise, as a negative errno
 * @ctrl_err: why a request could not be put into the control queue, or 0
 * @ctrl_broken: the control queue is broken
 */
struct bufshare_complaints {
	u32 malformed;
	u32 type;
	u32 length;
	u32 used;
	u32 gaps;
	u64 seq;
	u32 aside;
	bool broken;
	u32 answers;
	u32 answer_type;
	u32 answer_used;
	u32 bad_maps;
	u64 map_len;
	u64 map_offset;
	u64 map_region;
	u64 map_window;
	u32 stale_maps;
	u32 stuck;
	u32 stuck_status;
	int stuck_err;
	int ctrl_err;
	bool ctrl_broken;
};

/**
 * struct bufshare_shm - the window region
 * @ref: of the device and of each import
 * @node: on the list of all regions
 * @pgmap: its struct pages; constant
 * @res: its address range, ours alone; constant
 * @dev: the device whose range @res is part of; constant, counted
 * @start: physical address; constant
 * @size: bytes; constant
 * @virt: kernel address, write-back cached; constant
 * @lost: imports that other drivers use although the device was reset, of any
 *	binding
 */
struct bufshare_shm {
	struct kref ref;
	struct list_head node;
	struct dev_pagemap pgmap;
	struct resource *res;
	struct device *dev;
	phys_addr_t start;
	u64 size;
	void *virt;
	atomic_t lost;
};

/**
 * struct bufshare_device - one device
 * @ref: of the driver, open files, exports, imported dma-bufs
 * @vdev: the virtio device; constant; used only while bound
 * @dev: for messages; constant, counted
 * @dma_dev: whose DMA addresses foreign exports use; constant; only while bound
 * @max_seg_size: limit of @dma_dev before we were bound; constant
 * @seg_boundary: likewise
 * @reset_method: the first way to reset @dma_dev, while that is forbidden
 * @misc: /dev/bufshare; constant while registered
 * @debugfs: our folder; constant while bound
 * @reboot: leaves before a reboot; constant while registered
 * @wq: intake and delivery of events; constant while bound
 * @revoke_wq: revocation of imports, in parallel; constant while bound
 * @caps: limits; written as a session begins, under @lock. Each stands alone: only who
 *	wants all of one time takes @lock to read
 * @name: our name; likewise
 * @shm: window region or NULL; constant while bound
 * @dma_is_phys: DMA addresses of @dma_dev are guest-physical; constant
 * @session: held while @ctrl comes or goes; suspend, reboot and unbind do not wait for
 *	each other otherwise
 * @rebooting: no session begins any more; @session
 * @resetting: a reset of the function has begun; @session
 * @reset_until: when an unbind does not wait for the last reset any more; @session
 * @inside: read: @dma_dev or @shm is used by an ioctl; write: wait for those
 * @unbinding: none of them begins any more, nor a session; @session to write
 * @lock: see each field
 * @alive: requests can be sent; @lock to write
 * @leaving: only requests that give something back are sent; @lock
 * @pumping: bufshare_pump() is running; @lock
 * @ctrl: control queue, NULL when there is none; @lock
 * @eventq: event queue; @lock
 * @kick_ctrl: bufshare_unlock() notifies the device of @ctrl; @lock
 * @kick_eventq: likewise of @eventq
 * @pending: requests waiting for room in @ctrl; @lock
 * @inflight: requests the device has; @lock
 * @parked: requests that wait for the end of another whose answer may take long; @lock
 * @slow: how many of those the device has; @lock
 * @max_slow: how many of those it may have; written as a session begins, under @lock
 * @awaited: how many requests the device has that are not unawaited; @lock
 * @silent: the device makes no interrupt for answers; @lock
 * @cookie: of the last request; @lock
 * @exports: struct bufshare_exp.node; @lock
 * @exports_by_id: struct bufshare_exp.by_id; @lock
 * @exports_by_dmabuf: struct bufshare_exp.by_dmabuf; @lock
 * @imports: struct bufshare_imp.node; @lock
 * @imports_by_id: struct bufshare_imp.by_id; @lock
 * @imports_by_handle: struct bufshare_imp.by_handle; @lock
 * @stale: struct bufshare_window.stale, normally none: no other is accepted there; @lock
 * @maps: MAPs that the host has not answered; @lock
 * @maps_until: when it has to have answered one of them, jiffies; @lock
 * @unmaps: how many UNMAPs were sent; @lock
 * @stats: counters; @lock
 * @idle: woken when an import has left its window, or an export is answered or its
 *	backing released
 * @event_bufs: buffers for @eventq, device-writable; constant while there is one
 * @event_size: bytes of each; likewise
 * @aside: those that could not be given back to @eventq; @lock
 * @nr_aside: how many; @lock
 * @event_seq: number of the last event; @lock
 * @epoch: how many sessions have begun after another; @lock to write
 * @events: those that were taken and not delivered; @lock
 * @complaints: what @deliver_work has to say in the log; @lock
 * @deliver: those that are being delivered; @deliver_work alone
 * @delivered: the session is over, and files have all its events; written by
 *	@deliver_work, and as a session begins, under @lock
 * @intake_work: goes on where an interrupt of @eventq stops, and tries again to give back
 *	what is @aside; on @wq
 * @deliver_work: gives @events to all files, and @complaints to the log; on @wq
 * @kept_work: asks for exports that are kept; on bufshare_release_wq
 * @files_lock: protects @files
 * @files: struct bufshare_file.node
 */
struct bufshare_device {
	struct kref ref;
	struct virtio_device *vdev;
	struct device *dev;
	struct device *dma_dev;
	unsigned int max_seg_size;
	unsigned long seg_boundary;
	u8 reset_method;
	struct miscdevice misc;
	struct dentry *debugfs;
	struct notifier_block reboot;
	struct workqueue_struct *wq;
	struct workqueue_struct *revoke_wq;
	struct bufshare_caps caps;
	u8 name[VIRTIO_BUFSHARE_NAME_LEN];
	struct bufshare_shm *shm;
	bool dma_is_phys;
	struct mutex session;	/* its begin and end, and the next three */
	bool rebooting;
	bool resetting;
	ktime_t reset_until;
	struct rw_semaphore inside;
	bool unbinding;

	spinlock_t lock;	/* all of the following, where it says so */
	bool alive;
	bool leaving;
	bool pumping;
	struct virtqueue *ctrl;
	struct virtqueue *eventq;
	bool kick_ctrl;
	bool kick_eventq;
	struct list_head pending;
	struct list_head inflight;
	struct list_head parked;
	u32 slow;
	u32 max_slow;
	u32 awaited;
	bool silent;
	u64 cookie;
	struct list_head exports;
	DECLARE_HASHTABLE(exports_by_id, BUFSHARE_HASH_BITS);
	DECLARE_HASHTABLE(exports_by_dmabuf, BUFSHARE_HASH_BITS);
	struct list_head imports;
	DECLARE_HASHTABLE(imports_by_id, BUFSHARE_HASH_BITS);
	DECLARE_HASHTABLE(imports_by_handle, BUFSHARE_HASH_BITS);
	struct list_head stale;
	u32 maps;
	unsigned long maps_until;
	u64 unmaps;
	struct bufshare_stats stats;
	wait_queue_head_t idle;

	void *event_bufs[BUFSHARE_NUM_EVENT_BUFS];
	u32 event_size;
	void *aside[BUFSHARE_NUM_EVENT_BUFS];
	u32 nr_aside;
	u64 event_seq;
	u32 epoch;
	struct bufshare_ring events;
	struct bufshare_complaints complaints;
	struct bufshare_event deliver[BUFSHARE_DELIVER_EVENTS];
	bool delivered;
	struct delayed_work intake_work;
	struct work_struct deliver_work;
	struct delayed_work kept_work;

	struct mutex files_lock;	/* files */
	struct list_head files;
};

/* Where a request is. */
enum bufshare_req_state {
	BUFSHARE_REQ_NEW,	/* not sent */
	BUFSHARE_REQ_PENDING,	/* on bufshare_device.pending or .parked */
	BUFSHARE_REQ_INFLIGHT,	/* on bufshare_device.inflight; the device owns the buffers */
	BUFSHARE_REQ_DONE,	/* answered or given up; ours again, and may be sent again */
};

/**
 * struct bufshare_req - one request
 * @ref: of the waiter and of the queue
 * @node: on bufshare_device.pending, .parked or .inflight; bufshare_device.lock
 * @state: where it is; bufshare_device.lock
 * @reached: the device has had it; bufshare_device.lock
 * @orphan: its waiter has gone; bufshare_device.lock
 * @closing: it gives something back; constant
 * @slow: its answer comes when other VMs please; constant
 * @unawaited: nobody waits for its answer, which makes no interrupt; constant once sent
 * @out: the request's structure and what follows it; constant once INFLIGHT
 * @out_len: bytes of both; constant
 * @in: room for the answer; the device's while INFLIGHT
 * @in_len: its bytes; constant
 * @resp_len: bytes of the answer's structure, if it is OK; constant
 * @fail_len: bytes that one which is not OK may have instead of its header's; constant
 * @used: bytes of the answer, 0: there was none that made sense; valid when DONE. At least
 *	@resp_len of an OK one; @fail_len of another one, or just a header
 * @err: 0 or a negative errno; valid when DONE
 * @status: VIRTIO_BUFSHARE_S_* of the answer, OK when there was none; when DONE
 * @cookie: as sent; constant from the sending on
 * @done: completed when DONE, or when waiting has become pointless
 * @owner: for @complete; bufshare_device.lock from the sending on
 * @complete: called once for each sending, when DONE, under bufshare_device.lock, maybe in
 *	a hard interrupt; may send requests; may be NULL
 */
struct bufshare_req {
	struct kref ref;
	struct list_head node;
	enum bufshare_req_state state;
	bool reached;
	bool orphan;
	bool closing;
	bool slow;
	bool unawaited;
	void *out;
	u32 out_len;
	void *in;
	u32 in_len;
	u32 resp_len;
	u32 fail_len;
	u32 used;
	int err;
	u32 status;
	u64 cookie;
	struct completion done;
	void *owner;
	void (*complete)(struct bufshare_device *bd, struct bufshare_req *req);
};

/**
 * struct bufshare_piece - physically contiguous memory
 * @page: the first page
 * @nr: number of pages
 * @first: which page of the whole the first is
 */
struct bufshare_piece {
	struct page *page;
	unsigned long nr;
	unsigned long first;
};

/* Pages of one piece may lie in two sections, whose struct pages need not be adjacent. */
static inline struct page *bufshare_nth_page(struct page *page, unsigned long n)
{
	return pfn_to_page(page_to_pfn(page) + n);
}

/**
 * struct bufshare_maps - device mappings of one dma-buf of ours
 * @lock: protects @list
 * @list: struct bufshare_map.node
 */
struct bufshare_maps {
	struct mutex lock;	/* list */
	struct list_head list;
};

/**
 * struct bufshare_scratch - a kernel mapping that shows no memory of a dma-buf
 * @virt: kernel address, NULL: there is none
 * @page: what it shows, repeatedly
 */
struct bufshare_scratch {
	void *virt;
	struct page *page;
};

/**
 * struct bufshare_mem - ALLOC: RAM of our own, behind a dma-buf
 * @size: bytes; constant
 * @nr_pieces: number of @pieces; constant
 * @pieces: the memory; constant
 * @uncharged: bytes of it that no control group is charged for; constant
 * @maps: device mappings
 * @inode: of the dma-buf, counted, with the user space mappings: its file may go
 *	before it does; constant from the dma-buf's making on
 * @vmap: kernel address; the dma-buf's reservation lock
 * @scratch: kernel mapping instead of @vmap, as the memory stayed quiesced; as long as there
 *	is one, no CPU access begins; likewise
 * @fault_sem: read: a fault checks @quiesced and inserts; write: none is between
 * @lock: protects all of the following
 * @exports: struct bufshare_exp.in_mem
 * @users: device mappings and kernel mappings
 * @accesses: CPU accesses that have begun and not ended
 * @waiters: who is about to be one of these
 * @quiesced: exports that the host may take for quiesced, and one more while QUIESCE is
 *	carried out: unless it is 0, nothing uses the memory
 * @asked: QUIESCE requests that have no answer
 * @quiescing: a QUIESCE of a program is being carried out
 * @resuming: somebody wants to use the memory, and has waited until @until at the most
 * @until: when the host has to have answered, jiffies
 * @err: why it did not say that the memory is active, since @resuming began
 * @status: likewise, VIRTIO_BUFSHARE_S_*
 * @begin_err: why it did not say that the memory is quiesced, since @quiescing began
 * @begin_status: likewise
 * @wait: waiters for a change of these
 */
struct bufshare_mem {
	u64 size;
	u32 nr_pieces;
	struct bufshare_piece *pieces;
	u64 uncharged;
	struct bufshare_maps maps;
	struct inode *inode;
	void *vmap;
	struct bufshare_scratch scratch;
	struct rw_semaphore fault_sem;

	spinlock_t lock;	/* all of the following */
	struct list_head exports;
	u32 users;
	u32 accesses;
	u32 waiters;
	u32 quiesced;
	u32 asked;
	bool quiescing;
	bool resuming;
	unsigned long until;
	int err;
	u32 status;
	int begin_err;
	u32 begin_status;
	wait_queue_head_t wait;
};

/**
 * struct bufshare_news - an event of one file alone, that is not lost
 * @node: on bufshare_file.news until it is read, or taken back; bufshare_device.lock
 * @type: VIRTIO_BUFSHARE_EVT_PUSHED of a handle, or _RETURNED of an export; likewise
 * @seq: number of the event; likewise
 */
struct bufshare_news {
	struct list_head node;
	u32 type;
	u64 seq;
};

/**
 * struct bufshare_handle - a handle of an open file
 * @bf: the file, whose end is the handle's; constant
 * @number: how the file calls it; constant
 * @consumes: it is given the frames of its buffer; constant
 * @dmabuf: what it holds, counted; NULL while it is made
 * @imp: the import of that; NULL before it is known; bufshare_device.lock
 * @by_imp: on bufshare_imp.handles; bufshare_device.lock
 * @by_frame: on bufshare_frame.consumers; bufshare_device.lock
 * @has_frame: it was given bufshare_imp.frame, and has not returned it; bufshare_device.lock
 * @news: that it was
 */
struct bufshare_handle {
	struct bufshare_file *bf;
	u32 number;
	bool consumes;
	struct dma_buf *dmabuf;
	struct bufshare_imp *imp;
	struct list_head by_imp;
	struct list_head by_frame;
	bool has_frame;
	struct bufshare_news news;
};

/* What the host knows of an export. */
enum bufshare_export_wire {
	BUFSHARE_EXPORT_NEW,		/* nothing */
	BUFSHARE_EXPORT_SENT,		/* EXPORT under way */
	BUFSHARE_EXPORT_LIVE,		/* others may attach */
	BUFSHARE_EXPORT_CLOSING,	/* UNEXPORT under way */
	BUFSHARE_EXPORT_STUCK,		/* not what is needed to release the backing */
	BUFSHARE_EXPORT_GONE,		/* nobody can reach the backing */
};

/*
 * Where the frame is whose first buffer an export is.
 *
 *   from	to		when
 *   IDLE	SENT		PUSH is sent
 *   SENT	OUT		it is done, and said the frame's number
 *   SENT	IDLE		it is refused, or did not reach the device
 *   SENT	RETURNED	the frame was returned, and the answer, whatever it is, is not
 *				looked at yet, or made no sense: queues do not wait for each other
 *   OUT	RETURNED	it was returned
 *   RETURNED	IDLE		the file that pushed it has read that, or is closed
 */
enum bufshare_export_frame {
	BUFSHARE_FRAME_IDLE,		/* there is none */
	BUFSHARE_FRAME_SENT,		/* maybe pushed; its number is not known */
	BUFSHARE_FRAME_OUT,		/* others may have it */
	BUFSHARE_FRAME_RETURNED,	/* nobody has it, and that was not read */
};

/**
 * struct bufshare_export_said - what a program says of an export
 * @meta: the metadata
 * @num_acl: lines of @acl
 * @acl: for whom it is, in the order of the peers' ids
 * @stream: the stream that it is part of, or zero
 * @blob: meta.blob_len bytes; owned
 */
struct bufshare_export_said {
	struct bufshare_meta meta;
	u32 num_acl;
	struct bufshare_access acl[BUFSHARE_MAX_ACL];
	struct virtio_bufshare_id stream;
	void *blob;
};

/**
 * struct bufshare_exp - one export
 * @ref: of each file, and of the backing until it is released
 * @bd: the device; constant, counted
 * @node: on bufshare_device.exports; bufshare_device.lock
 * @by_id: in bufshare_device.exports_by_id from LIVE on; bufshare_device.lock
 * @by_dmabuf: in bufshare_device.exports_by_dmabuf from its EXPORT on; bufshare_device.lock
 * @said: what the program said of it; constant, owned
 * @files: open files of it; bufshare_device.lock
 * @wire: what the host knows; bufshare_device.lock
 * @closed: UNEXPORT when possible; bufshare_device.lock
 * @ended: the host said that it ended the export by itself; bufshare_device.lock
 * @unknown: the host does not know the buffer any more; bufshare_device.lock
 * @dead: it has ended, or the device is gone; bufshare_device.lock to write
 * @id: the buffer's name, valid from LIVE on; bufshare_device.lock to write
 * @generation: likewise
 * @size: bytes; constant
 * @nr_extents: pieces; constant
 * @unexport_req: made in advance, since a close cannot fail; owned
 * @wait: pollers of the export file
 * @release_work: releases the backing; on bufshare_release_wq, once
 * @kept: on the list of exports that are kept; with bufshare_kept.c's lock to write
 * @asked: the round of questions that it was last part of; bufshare_kept.c's lock
 * @mem: the backing if it is memory of ALLOC, else NULL; as @dmabuf
 * @in_mem: on bufshare_mem.exports
 * @quiesced: the host may take it for quiesced; bufshare_device.lock and
 *	bufshare_mem.lock to write
 * @quiesce_req: the last QUIESCE, as long as it has no answer; likewise
 * @dmabuf: the backing; constant until released, then NULL; bufshare_device.lock
 *	to write
 * @attach: foreign backing: our attachment, or NULL; likewise
 * @sgt: foreign backing: its mapping, or NULL; likewise
 * @pinned: foreign backing: it is pinned; likewise
 * @charged: foreign backing: it counts for the limit of pinned memory; likewise
 * @frame: where the frame is whose first buffer this is; bufshare_device.lock
 * @number: of that frame, unless IDLE or SENT; likewise
 * @arrival: when the driver learned that it was returned; likewise
 * @pusher: the file that pushed it, and reads that it was returned, or NULL: it was closed,
 *	or there is no frame; likewise
 * @by_pusher: on bufshare_file.pushed; likewise
 * @by_push: on a list of the last PUSH while that has no answer; likewise
 * @entry: in that one; likewise
 * @news: that it was returned
 */
struct bufshare_exp {
	struct kref ref;
	struct bufshare_device *bd;
	struct list_head node;
	struct hlist_node by_id;
	struct hlist_node by_dmabuf;
	struct bufshare_export_said *said;
	u32 files;
	enum bufshare_export_wire wire;
	bool closed;
	bool ended;
	bool unknown;
	bool dead;
	struct virtio_bufshare_id id;
	u64 generation;
	u64 size;
	u32 nr_extents;
	struct bufshare_req *unexport_req;
	wait_queue_head_t wait;
	struct work_struct release_work;
	struct list_head kept;
	u64 asked;
	struct bufshare_mem *mem;
	struct list_head in_mem;
	bool quiesced;
	struct bufshare_req *quiesce_req;
	struct dma_buf *dmabuf;
	struct dma_buf_attachment *attach;
	struct sg_table *sgt;
	bool pinned;
	bool charged;
	enum bufshare_export_frame frame;
	u64 number;
	u64 arrival;
	struct bufshare_file *pusher;
	struct list_head by_pusher;
	struct list_head by_push;
	u32 entry;
	struct bufshare_news news;
};

/**
 * struct bufshare_extents - a list of extents in the making
 * @list: the extents
 * @nr: their number
 * @max: room in @list
 * @total: bytes
 * @align: alignment, a power of two
 */
struct bufshare_extents {
	struct virtio_bufshare_extent *list;
	u32 nr;
	u32 max;
	u64 total;
	u64 align;
};

/*
 * What the host knows of an import. GONE may follow each: the host refused it, or the
 * device has gone or was reset.
 *
 *   from	to		when
 *   NEW	ATTACHING	ATTACH is sent
 *   ATTACHING	ATTACHED	it is done
 *   ATTACHED	DETACHING	DETACH is sent: no window is mapped, and the dma-buf is gone
 *				or the session ends
 *   DETACHING	GONE		it is answered, however
 */
enum bufshare_import_wire {
	BUFSHARE_IMPORT_NEW,		/* nothing */
	BUFSHARE_IMPORT_ATTACHING,	/* ATTACH under way */
	BUFSHARE_IMPORT_ATTACHED,	/* windows may be mapped */
	BUFSHARE_IMPORT_DETACHING,	/* DETACH under way */
	BUFSHARE_IMPORT_GONE,		/* detached, refused, or forgotten by a reset */
};

/*
 * Where a window is. A reset of the device leads from each to UNMAPPED, or to LOST if it
 * is still used; else it is UNMAPPED unless the import is ATTACHED.
 *
 *   from	to		when
 *   UNMAPPED	MAPPING		somebody needs it, and MAP is sent
 *   MAPPING	MAPPED		it is done, and wanted
 *   MAPPING	UNMAPPED	it is refused
 *   MAPPING	UNMAPPING	it is done, but the place cannot be taken, or the import is
 *				revoked or released meanwhile
 *   MAPPED	REVOKING	the import is revoked
 *   MAPPED	UNMAPPING	the import is released
 *   REVOKING	HELD		no user space mapping is left
 *   REVOKING	UNMAPPING	the import is released
 *   HELD	UNMAPPING	nothing uses it any more, which may be so at once
 *   UNMAPPING	UNMAPPED	UNMAP is answered, however, or cannot be sent
 *   LOST	UNMAPPED	nothing uses it any more
 *
 * Uses begin in MAPPED alone, and user space sees it only there. Who needs it waits in
 * MAPPING; a state in which its content moves would be another to wait in.
 */
enum bufshare_window_state {
	BUFSHARE_WINDOW_UNMAPPED,	/* nowhere */
	BUFSHARE_WINDOW_MAPPING,	/* MAP under way */
	BUFSHARE_WINDOW_MAPPED,		/* it shows the buffer */
	BUFSHARE_WINDOW_REVOKING,	/* user space mappings are being ended */
	BUFSHARE_WINDOW_HELD,		/* they are: UNMAP waits for other uses */
	BUFSHARE_WINDOW_UNMAPPING,	/* UNMAP under way */
	BUFSHARE_WINDOW_LOST,		/* the device has forgotten it, and it is still used */
};

/* What uses a window and cannot be stopped. */
enum bufshare_use {
	BUFSHARE_USE_DEVICE,	/* a device mapping */
	BUFSHARE_USE_KERNEL,	/* a kernel mapping */
	BUFSHARE_NR_USES
};

/**
 * struct bufshare_window - a range of the window region that shows an attachment's buffer
 * @imp: the attachment; constant
 * @state: where it is; bufshare_device.lock to write
 * @number: what UNMAP names, another one for each MAP; bufshare_device.lock
 * @offset: place in the region, bytes; changes only in MAPPING
 * @len: bytes; constant once the import is ATTACHED
 * @until: when the host has to have answered the last MAP, jiffies; bufshare_device.lock
 * @err: why the last MAP was of no use, or 0; bufshare_device.lock
 * @uses: how many of each kind; bufshare_device.lock
 * @stale: on bufshare_device.stale while it is revoked and used; bufshare_device.lock
 * @wait: waiters for the end of MAPPING
 * @unmap_req: made in advance, since a close cannot fail; owned
 */
struct bufshare_window {
	struct bufshare_imp *imp;
	enum bufshare_window_state state;
	u64 number;
	u64 offset;
	u64 len;
	unsigned long until;
	int err;
	u32 uses[BUFSHARE_NR_USES];
	struct list_head stale;
	wait_queue_head_t wait;
	struct bufshare_req *unmap_req;
};

/**
 * struct bufshare_frame - the frame that an import was given last
 * @pushed: what programs read of it, but for the handle; bufshare_device.lock
 * @record: VIRTIO_BUFSHARE_MAX_FRAME_RECORD bytes, of which pushed.record_size are its
 *	record; likewise
 * @number: of the frame; likewise
 * @consumers: struct bufshare_handle.by_frame: handles that are given frames, which the
 *	program can return by now; likewise
 * @nr_consumers: those, and those of which an IMPORT has not returned, at most
 *	BUFSHARE_MAX_FRAME_HANDLES; likewise
 * @holders: handles that have not returned it; likewise
 * @return_req: the last RETURN, made in advance, since a close cannot fail; owned
 */
struct bufshare_frame {
	struct bufshare_pushed pushed;
	void *record;
	u64 number;
	struct list_head consumers;
	u32 nr_consumers;
	u32 holders;
	struct bufshare_req *return_req;
};

/**
 * struct bufshare_imp - one import
 * @ref: of the dma-buf (before: of the maker), of each request under way and of
 *	@revoke_work and @drop_work; dropped with bufshare_device.lock
 * @bd: the device; constant, counted by the dma-buf
 * @shm: the window region, counted by the dma-buf; NULL before and after its life, of a
 *	stream, and when the device has gone and nothing leads there; bufshare_device.lock
 *	to write
 * @node: on bufshare_device.imports; bufshare_device.lock
 * @by_id: in bufshare_device.imports_by_id; bufshare_device.lock
 * @by_handle: in bufshare_device.imports_by_handle from ATTACHED on; bufshare_device.lock
 * @handles: struct bufshare_handle.by_imp: as long as there is one, others find the import,
 *	and it has a dma-buf, or is about to have one; bufshare_device.lock
 * @wanted: rights that were asked for; constant
 * @ways: likewise, and the next two: what the maker accepts
 * @required: likewise
 * @max_windows: likewise
 * @err: why it was not made, valid when it has no handles and no dma-buf; bufshare_device.lock
 * @status: likewise, VIRTIO_BUFSHARE_S_*
 * @mode: O_RDWR or O_RDONLY, of the dma-buf's file; constant
 * @consumes: the host gives it frames; constant
 * @frame: the last of them
 * @wire: what the host knows; bufshare_device.lock
 * @id: the buffer; constant
 * @handle: of the attachment, 0 until ATTACHED; bufshare_device.lock
 * @size: bytes; constant once ATTACHED
 * @generation: likewise
 * @owner: exporting peer; likewise
 * @rights: granted; likewise
 * @way: likewise
 * @properties: VIRTIO_BUFSHARE_COHERENT and the others; likewise
 * @windows: likewise
 * @window: where it is in the region
 * @released: the dma-buf is gone or never came: the program's side, whatever @wire is and
 *	whether or not it is revoked; never unset; bufshare_device.lock
 * @revoked: no new use: the exporter's side, or the session's, likewise;
 *	bufshare_device.lock to write
 * @fault_sem: read: a fault looks at @window and inserts; write: none is between
 * @detach_req: made in advance, since a close cannot fail; owned
 * @dmabuf: NULL before and after its life; its file may go before it does;
 *	bufshare_device.lock
 * @label: exporter's name of @dmabuf; constant from its making on
 * @inode: of @dmabuf, counted, with the user space mappings; bufshare_device.lock
 * @accesses: CPU accesses that have begun and not ended; bufshare_device.lock
 * @scratch: kernel mapping made after a revocation, or as the host did not map the buffer;
 *	the dma-buf's reservation lock
 * @revoke_work: on bufshare_device.revoke_wq, once
 * @drop_work: drops @shm when the last use of a LOST @window ends; on bufshare_release_wq,
 *	once
 * @maps: device mappings
 */
struct bufshare_imp {
	struct kref ref;
	struct bufshare_device *bd;
	struct bufshare_shm *shm;
	struct list_head node;
	struct hlist_node by_id;
	struct hlist_node by_handle;
	struct list_head handles;
	u32 wanted;
	u32 ways;
	u32 required;
	u32 max_windows;
	int err;
	u32 status;
	u32 mode;
	bool consumes;
	struct bufshare_frame frame;
	enum bufshare_import_wire wire;
	struct virtio_bufshare_id id;
	u64 handle;
	u64 size;
	u64 generation;
	u64 owner;
	u32 rights;
	u32 way;
	u32 properties;
	u32 windows;
	struct bufshare_window window;
	bool released;
	bool revoked;
	struct rw_semaphore fault_sem;
	struct bufshare_req *detach_req;
	struct dma_buf *dmabuf;
	char label[BUFSHARE_LABEL_LEN];
	struct inode *inode;
	u32 accesses;
	struct bufshare_scratch scratch;
	struct work_struct revoke_work;
	struct work_struct drop_work;
	struct bufshare_maps maps;
};

/**
 * struct bufshare_file - one opening of /dev/bufshare
 * @bd: the device; constant, counted
 * @node: on bufshare_device.files; bufshare_device.files_lock
 * @lock: protects @ring
 * @ring: its events but frames
 * @epoch: bufshare_device.epoch of the last of them, or of the opening; written by the
 *	delivery
 * @before: how many of @ring are to be read before @news: those of earlier sessions, and
 *	the OVERFLOW that begins this one; @lock to write
 * @news: struct bufshare_news.node, the oldest first; bufshare_device.lock
 * @pushed: struct bufshare_exp.by_pusher; bufshare_device.lock
 * @read_lock: one reader at a time
 * @out: what that one copies to its program; @read_lock
 * @wait: readers and pollers
 * @handles: struct bufshare_handle by number; its own lock
 */
struct bufshare_file {
	struct bufshare_device *bd;
	struct list_head node;
	spinlock_t lock;	/* ring */
	struct bufshare_ring ring;
	u32 epoch;
	u32 before;
	struct list_head news;
	struct list_head pushed;
	struct mutex read_lock;	/* one reader at a time */
	u8 out[BUFSHARE_MAX_READ] __aligned(8);
	wait_queue_head_t wait;
	struct xarray handles;
};

/**
 * struct bufshare_newfd - a file that an ioctl gives to its caller
 * @bf: the opening of /dev/bufshare that was called
 * @fd: reserved number, -1: none
 * @file: goes there once the answer has been copied out
 * @handle: a handle of @bf that nobody finds yet, likewise, or NULL
 */
struct bufshare_newfd {
	struct bufshare_file *bf;
	int fd;
	struct file *file;
	struct bufshare_handle *handle;
};

/**
 * bufshare_newfd_prepare() - reserve a descriptor for a new file
 * @newfd: where to keep it
 * @fd_flags: O_CLOEXEC counts
 * @file: the file; on success its reference is @newfd's
 *
 * Return: 0 or a negative errno.
 */
static inline int bufshare_newfd_prepare(struct bufshare_newfd *newfd, u32 fd_flags,
					 struct file *file)
{
	int fd = get_unused_fd_flags(fd_flags & O_CLOEXEC);

	if (fd < 0)
		return fd;
	newfd->fd = fd;
	newfd->file = file;
	return 0;
}

/* bufshare_device.c */
extern struct workqueue_struct *bufshare_release_wq;
struct bufshare_device *bufshare_device_alloc(struct virtio_device *vdev);
void bufshare_device_put(struct bufshare_device *bd);
bool bufshare_enter(struct bufshare_device *bd);
void bufshare_exit(struct bufshare_device *bd);
bool bufshare_dma_is_phys(struct bufshare_device *bd);
void bufshare_dma_limits_lift(struct bufshare_device *bd);
void bufshare_dma_limits_restore(struct bufshare_device *bd);

static inline struct bufshare_device *bufshare_device_get(struct bufshare_device *bd)
{
	kref_get(&bd->ref);
	return bd;
}

/* bufshare_event_ring.c */
void bufshare_overflow(struct bufshare_event *ev, u64 missing);
u32 bufshare_ring_push_locked(struct bufshare_ring *ring, const struct bufshare_event *ev);
bool bufshare_ring_peek_locked(const struct bufshare_ring *ring, struct bufshare_event *ev);
void bufshare_ring_consume_locked(struct bufshare_ring *ring);
void bufshare_report_locked(struct bufshare_file *bf, struct bufshare_news *news, u32 type,
			    u64 seq);

/* bufshare_ctrlq.c */
struct bufshare_req *bufshare_req_alloc(u32 type, size_t len, size_t more, size_t resp_len,
					size_t resp_more);
struct bufshare_req *bufshare_batch_alloc(u32 type, size_t entry_size);
void bufshare_req_put(struct bufshare_req *req);
void bufshare_lock(struct bufshare_device *bd) __acquires(&bd->lock);
void bufshare_unlock(struct bufshare_device *bd) __releases(&bd->lock);
void bufshare_interrupt(struct bufshare_device *bd,
			void (*take_locked)(struct bufshare_device *bd));
void bufshare_notified(struct bufshare_device *bd);
u32 bufshare_max_slow(struct virtqueue *vq);
void bufshare_answer_malformed_locked(struct bufshare_device *bd, const struct bufshare_req *req,
				      u32 used);
int bufshare_send_locked(struct bufshare_device *bd, struct bufshare_req *req);
int bufshare_wait_for(struct bufshare_device *bd, struct bufshare_req *req, long time,
		      bool killable, u32 *status);
int bufshare_wait(struct bufshare_device *bd, struct bufshare_req *req, u32 *status);
int bufshare_call(struct bufshare_device *bd, struct bufshare_req *req, u32 *status);
long bufshare_timeout(void);
long bufshare_time_left(unsigned long until);
void bufshare_ctrl_done(struct virtqueue *vq);
void bufshare_ctrl_drain_locked(struct bufshare_device *bd);
void bufshare_fail_locked(struct bufshare_device *bd);
void bufshare_cancel_all(struct bufshare_device *bd);

/* bufshare_complaints.c */
void bufshare_complain_locked(struct bufshare_device *bd);
void bufshare_complain(struct bufshare_device *bd);

/* bufshare_caps.c */
int bufshare_read_config(struct bufshare_device *bd);
int bufshare_greet(struct bufshare_device *bd);
int bufshare_get_caps(struct bufshare_device *bd, u32 *windows_used);

/* bufshare_user_lists.c */
int bufshare_meta_read(struct bufshare_device *bd, u64 from, u32 size, struct bufshare_meta *meta,
		       u32 *status);
int bufshare_meta_room(u64 to, u32 size, u32 *room);
int bufshare_acl_read(u64 from, u32 size, struct bufshare_access *lines, u32 num);

/* Can a record or an entry of a table have so many bytes, if a program says so? */
static inline bool bufshare_entry_fits(u32 size, u32 least)
{
	return size >= least && size <= BUFSHARE_MAX_ENTRY && !(size % BUFSHARE_ENTRY_ALIGN);
}

/* bufshare_wire.c */
void bufshare_meta_to_wire(struct virtio_bufshare_meta *to, const struct bufshare_meta *from);
void bufshare_meta_from_wire(struct bufshare_meta *to, const struct virtio_bufshare_meta *from);
void bufshare_buffer_from_wire(struct bufshare_buffer *to,
			       const struct virtio_bufshare_buffer *from);
void bufshare_peer_from_wire(struct bufshare_peer *to, const struct virtio_bufshare_peer *from);
void bufshare_event_from_wire(struct bufshare_event *to, const struct virtio_bufshare_event *from);

/* Names are random. */
static inline u64 bufshare_id_hash(const struct virtio_bufshare_id *id)
{
	u64 key;

	memcpy(&key, id, sizeof(key));
	return key;
}

/* bufshare_event.c */
void bufshare_event_done(struct virtqueue *vq);
void bufshare_intake(struct bufshare_device *bd);
void bufshare_intake_work(struct work_struct *work);
void bufshare_deliver_work(struct work_struct *work);
void bufshare_events_lost_locked(struct bufshare_device *bd, u64 lost);
int bufshare_event_alloc(struct bufshare_device *bd);
void bufshare_event_free(struct bufshare_device *bd);
int bufshare_event_fill(struct bufshare_device *bd);

/* bufshare_file.c */
extern const struct file_operations bufshare_fops;
void bufshare_files_push(struct bufshare_device *bd, const struct bufshare_event *events,
			 u32 count);
void bufshare_files_wake(struct bufshare_device *bd);

/* bufshare_shm.c */
struct bufshare_shm *bufshare_shm_open(struct bufshare_device *bd);
void bufshare_shm_put(struct bufshare_shm *shm);

static inline struct bufshare_shm *bufshare_shm_get(struct bufshare_shm *shm)
{
	kref_get(&shm->ref);
	return shm;
}

/* bufshare_sg.c */
void bufshare_maps_init(struct bufshare_maps *maps);
struct sg_table *bufshare_maps_map(struct bufshare_maps *maps,
				   struct dma_buf_attachment *attach,
				   const struct bufshare_piece *pieces, u32 nr_pieces,
				   enum dma_data_direction dir);
void bufshare_maps_unmap(struct bufshare_maps *maps, struct sg_table *sgt);
void bufshare_maps_sync(struct bufshare_maps *maps, bool for_cpu);
int bufshare_wait_for_devices(struct dma_buf *dmabuf, enum dma_data_direction dir);

/* bufshare_scratch.c */
int bufshare_scratch_vmap(struct bufshare_scratch *scratch, u64 size, struct iosys_map *map);
bool bufshare_scratch_vunmap(struct bufshare_scratch *scratch);

/* bufshare_quiesce.c */
void bufshare_quiesce_init(struct bufshare_mem *mem);
void bufshare_quiesce_add(struct bufshare_exp *exp, struct bufshare_mem *mem);
void bufshare_quiesce_del_locked(struct bufshare_exp *exp);
void bufshare_quiesce_lapse(struct bufshare_device *bd);
u32 bufshare_quiesce_unexport_mode_locked(struct bufshare_exp *exp);
int bufshare_quiesce_look(struct bufshare_mem *mem, bool asked);
int bufshare_quiesce_end(struct bufshare_mem *mem, bool asked, bool killable, u32 *status);
int bufshare_quiesce_begin(struct bufshare_exp *exp, struct bufshare_mem *mem, u32 *status);
void bufshare_mem_keep_active(struct bufshare_mem *mem, bool keep);
int bufshare_mem_use(struct bufshare_mem *mem, u32 *count, bool killable);
void bufshare_mem_unuse(struct bufshare_mem *mem, u32 *count);

/* bufshare_alloc.c */
int bufshare_ioc_alloc(struct bufshare_device *bd, struct bufshare_alloc *arg,
		       struct bufshare_newfd *newfd);
struct bufshare_mem *bufshare_mem_of(struct dma_buf *dmabuf);
u64 bufshare_mem_uncharged(void);

/* bufshare_mmap.c */
vm_fault_t bufshare_mmap_insert(struct vm_fault *vmf, const struct bufshare_piece *pieces,
				u32 nr_pieces);
vm_fault_t bufshare_mmap_fault(struct vm_fault *vmf,
			       int (*try)(void *priv, struct vm_fault *vmf, bool asked,
					  vm_fault_t *fault),
			       int (*wait)(void *priv, bool asked));
int bufshare_mmap_prepare(struct vm_area_struct *vma, u64 size,
			  const struct vm_operations_struct *ops, void *priv);

/* bufshare_export.c */
struct bufshare_req *bufshare_unexport_alloc(const struct virtio_bufshare_id *id);
int bufshare_ioc_export(struct bufshare_device *bd, struct bufshare_export *arg,
			struct bufshare_newfd *newfd);
struct file *bufshare_exp_fget(struct bufshare_device *bd, int fd);
bool bufshare_exp_is_live_locked(const struct bufshare_exp *exp);
struct bufshare_exp *bufshare_exp_by_id_locked(struct bufshare_device *bd,
					       const struct virtio_bufshare_id *id);
void bufshare_export_revoked_locked(struct bufshare_exp *exp);
int bufshare_exp_id(struct bufshare_device *bd, int fd, struct virtio_bufshare_id *id,
		    u32 *status);
int bufshare_exp_quiesce(struct bufshare_device *bd, int fd, bool begins, u32 *status);
void bufshare_exp_end(struct bufshare_exp *exp);
void bufshare_exp_release_locked(struct bufshare_device *bd, struct bufshare_exp *exp);
void bufshare_exports_end_locked(struct bufshare_device *bd);
void bufshare_exports_wait_answered(struct bufshare_device *bd);
void bufshare_exports_keep(struct bufshare_device *bd);
void bufshare_exports_wait_released(struct bufshare_device *bd);

/* bufshare_kept.c */
void bufshare_kept_add_locked(struct bufshare_exp *exp);
u32 bufshare_kept_total(u64 *bytes);
void bufshare_kept_work(struct work_struct *work);
void bufshare_kept_ask(struct bufshare_device *bd);

/* bufshare_backing.c */
void bufshare_backing_get(struct bufshare_exp *exp, struct dma_buf *dmabuf);
int bufshare_backing_extents(struct bufshare_exp *exp, struct bufshare_extents *ext, u32 *status);
void bufshare_backing_put(struct bufshare_exp *exp);

/* bufshare_window.c */
int bufshare_window_init(struct bufshare_window *win, struct bufshare_imp *imp);
void bufshare_window_destroy(struct bufshare_window *win);
bool bufshare_window_used_locked(const struct bufshare_window *win);
void bufshare_window_settle_locked(struct bufshare_window *win);
bool bufshare_window_revoke_locked(struct bufshare_window *win);
void bufshare_window_revoked_locked(struct bufshare_window *win);
bool bufshare_window_forget_locked(struct bufshare_window *win);
int bufshare_window_look_locked(const struct bufshare_window *win, bool asked);
int bufshare_window_map(struct bufshare_window *win, bool asked, bool killable);
int bufshare_window_use(struct bufshare_window *win, enum bufshare_use use);
void bufshare_window_unuse(struct bufshare_window *win, enum bufshare_use use);
void bufshare_window_piece(const struct bufshare_window *win, struct bufshare_piece *piece);

/* bufshare_attachment.c */
struct bufshare_imp *bufshare_imp_by_handle_locked(struct bufshare_device *bd, u64 handle);
struct bufshare_imp *bufshare_imp_alloc(struct bufshare_device *bd,
					const struct bufshare_import *arg);
void bufshare_imp_discard(struct bufshare_imp *imp);
void bufshare_imp_add_locked(struct bufshare_imp *imp);
int bufshare_imp_attach(struct bufshare_imp *imp, struct bufshare_import *arg,
			unsigned long until);
void bufshare_imp_set_wire_locked(struct bufshare_imp *imp, enum bufshare_import_wire wire);
void bufshare_imp_put_locked(struct bufshare_imp *imp);
void bufshare_imp_settle_locked(struct bufshare_imp *imp);
void bufshare_imp_release_locked(struct bufshare_imp *imp);

/* bufshare_revoke.c */
void bufshare_revoke_work(struct work_struct *work);
void bufshare_drop_work(struct work_struct *work);
void bufshare_imp_revoke_locked(struct bufshare_imp *imp);
void bufshare_imports_revoke_all(struct bufshare_device *bd);
void bufshare_imports_wait_left(struct bufshare_device *bd);
void bufshare_imports_gone(struct bufshare_device *bd);

/* bufshare_cpu_access.c */
int bufshare_imp_begin_cpu_access(struct dma_buf *dmabuf, enum dma_data_direction dir);
int bufshare_imp_end_cpu_access(struct dma_buf *dmabuf, enum dma_data_direction dir);

/* bufshare_import_dmabuf.c */
struct dma_buf *bufshare_imp_dmabuf(struct bufshare_imp *imp, u32 fd_flags);
bool bufshare_is_import(struct dma_buf *dmabuf);

/* bufshare_import.c */
int bufshare_ioc_import(struct bufshare_device *bd, struct bufshare_import *arg,
			struct bufshare_newfd *newfd);

/* bufshare_handle.c */
void bufshare_handles_init(struct bufshare_file *bf);
void bufshare_handles_destroy(struct bufshare_file *bf);
struct bufshare_handle *bufshare_handle_new(struct bufshare_file *bf, bool consumes);
void bufshare_handle_cancel(struct bufshare_handle *handle);
void bufshare_handle_install(struct bufshare_handle *handle);
int bufshare_handle_bind_locked(struct bufshare_handle *handle, struct bufshare_imp *imp);
void bufshare_handle_unbind_locked(struct bufshare_handle *handle);
int bufshare_ioc_handle_to_fd(struct bufshare_file *bf, struct bufshare_handle_to_fd *arg,
			      struct bufshare_newfd *newfd);
int bufshare_ioc_close(struct bufshare_file *bf, const struct bufshare_close *arg);

/* bufshare_consumer.c */
int bufshare_frame_init(struct bufshare_imp *imp);
void bufshare_frame_destroy(struct bufshare_imp *imp);
int bufshare_frame_reserve_locked(struct bufshare_handle *handle);
void bufshare_frame_join_locked(struct bufshare_handle *handle);
void bufshare_frame_leave_locked(struct bufshare_handle *handle);
bool bufshare_frame_recalled_locked(struct bufshare_imp *imp);
void bufshare_frame_recall_locked(struct bufshare_imp *imp);
bool bufshare_pushed_locked(struct bufshare_device *bd, struct bufshare_imp *imp,
			    const struct virtio_bufshare_event *wire, const void *buf);
u32 bufshare_pushed_read_locked(const struct bufshare_handle *handle, void *to);
void bufshare_pushed_cut(void *event, u32 length);
int bufshare_ioc_return(struct bufshare_file *bf, struct bufshare_return *arg);

/* bufshare_producer.c */
void bufshare_exp_forget_frame_locked(struct bufshare_exp *exp);
void bufshare_file_forget_pushed(struct bufshare_file *bf);
bool bufshare_returned_locked(struct bufshare_exp *exp, const struct bufshare_event *ev);
u32 bufshare_returned_read_locked(const struct bufshare_exp *exp, void *to);
int bufshare_ioc_push(struct bufshare_file *bf, struct bufshare_push *arg);

/* bufshare_ioctl.c */
long bufshare_ioctl(struct file *file, unsigned int cmd, unsigned long arg);

/* bufshare_session.c */
int bufshare_start(struct bufshare_device *bd);
void bufshare_leave(struct bufshare_device *bd);
void bufshare_reset_renew(struct bufshare_device *bd);
void bufshare_suspend(struct bufshare_device *bd);
int bufshare_resume(struct bufshare_device *bd);

/* bufshare_function_reset.c */
void bufshare_set_priv(struct virtio_device *vdev, struct bufshare_device *bd);
void bufshare_begin_unbinding(struct bufshare_device *bd);
void bufshare_reset_wait_left(void);
#ifdef BUFSHARE_HAVE_RESET_CALLBACKS
int bufshare_reset_prepare(struct virtio_device *vdev);
int bufshare_reset_done(struct virtio_device *vdev);

static inline void bufshare_reset_forbid(struct bufshare_device *bd)
{
}

static inline void bufshare_reset_allow(struct bufshare_device *bd)
{
}
#else
void bufshare_reset_forbid(struct bufshare_device *bd);
void bufshare_reset_allow(struct bufshare_device *bd);
#endif

/* bufshare_sysfs.c */
extern const struct attribute_group *bufshare_groups[];

/* bufshare_debugfs.c */
void bufshare_debugfs_add(struct bufshare_device *bd);

#endif /* _BUFSHARE_PRIV_H */
