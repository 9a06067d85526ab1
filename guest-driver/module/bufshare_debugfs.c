// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_debugfs.c - /sys/kernel/debug/bufshare/state
 *
 * For people; not an interface for programs.
 */
#include <linux/debugfs.h>
#include <linux/seq_file.h>
#include <linux/slab.h>

#include "bufshare_priv.h"

/* Beyond this a table is cut, and says so. */
#define BUFSHARE_DEBUG_LINES	256

static const char * const bufshare_export_wires[] = {
	[BUFSHARE_EXPORT_NEW] = "new",
	[BUFSHARE_EXPORT_SENT] = "sent",
	[BUFSHARE_EXPORT_LIVE] = "live",
	[BUFSHARE_EXPORT_CLOSING] = "closing",
	[BUFSHARE_EXPORT_STUCK] = "stuck",
	[BUFSHARE_EXPORT_GONE] = "gone",
};

static const char * const bufshare_import_wires[] = {
	[BUFSHARE_IMPORT_NEW] = "new",
	[BUFSHARE_IMPORT_ATTACHING] = "attaching",
	[BUFSHARE_IMPORT_ATTACHED] = "attached",
	[BUFSHARE_IMPORT_DETACHING] = "detaching",
	[BUFSHARE_IMPORT_GONE] = "gone",
};

static const char * const bufshare_window_states[] = {
	[BUFSHARE_WINDOW_UNMAPPED] = "unmapped",
	[BUFSHARE_WINDOW_MAPPING] = "mapping",
	[BUFSHARE_WINDOW_MAPPED] = "mapped",
	[BUFSHARE_WINDOW_REVOKING] = "revoking",
	[BUFSHARE_WINDOW_HELD] = "held",
	[BUFSHARE_WINDOW_UNMAPPING] = "unmapping",
	[BUFSHARE_WINDOW_LOST] = "lost",
};

/**
 * struct bufshare_line - what is shown of an export or import
 * @id: the buffer
 * @state: what the host knows of it
 * @size: bytes
 * @handle: imports: of the attachment
 * @owner: imports: exporting peer
 * @extents: exports: pieces
 * @window: imports: what UNMAP names
 * @offset: imports: place in the window region
 * @window_state: imports: where the window is
 * @devices: imports: device mappings
 * @kernels: imports: kernel mappings
 * @way: imports: VIRTIO_BUFSHARE_WAY_*
 * @properties: imports: VIRTIO_BUFSHARE_COHERENT and the others
 * @ended: the export has ended, or the import was revoked
 * @closed: its file is gone
 * @quiesced: exports: the host may take it for that
 */
struct bufshare_line {
	struct virtio_bufshare_id id;
	const char *state;
	u64 size;
	u64 handle;
	u64 owner;
	u32 extents;
	u64 window;
	u64 offset;
	const char *window_state;
	u32 devices;
	u32 kernels;
	u32 way;
	u32 properties;
	bool ended;
	bool closed;
	bool quiesced;
};

static u32 bufshare_exports_snapshot(struct bufshare_device *bd, struct bufshare_line *lines,
				     u32 *total)
{
	struct bufshare_exp *exp;
	u32 n = 0;

	*total = 0;
	bufshare_lock(bd);
	list_for_each_entry(exp, &bd->exports, node) {
		if ((*total)++ >= BUFSHARE_DEBUG_LINES)
			continue;
		lines[n++] = (struct bufshare_line) {
			.id = exp->id,
			.state = bufshare_export_wires[exp->wire],
			.size = exp->size,
			.extents = exp->nr_extents,
			.ended = exp->dead,
			.closed = exp->closed,
			.quiesced = exp->quiesced,
		};
	}
	bufshare_unlock(bd);
	return n;
}

static u32 bufshare_imports_snapshot(struct bufshare_device *bd, struct bufshare_line *lines,
				     u32 *total)
{
	struct bufshare_imp *imp;
	u32 n = 0;

	*total = 0;
	bufshare_lock(bd);
	list_for_each_entry(imp, &bd->imports, node) {
		if ((*total)++ >= BUFSHARE_DEBUG_LINES)
			continue;
		lines[n++] = (struct bufshare_line) {
			.id = imp->id,
			.state = bufshare_import_wires[imp->wire],
			.size = imp->size,
			.handle = imp->handle,
			.owner = imp->owner,
			.window = imp->window.number,
			.offset = imp->window.offset,
			.window_state = bufshare_window_states[imp->window.state],
			.devices = imp->window.uses[BUFSHARE_USE_DEVICE],
			.kernels = imp->window.uses[BUFSHARE_USE_KERNEL],
			.way = imp->way,
			.properties = imp->properties,
			.ended = imp->revoked,
			.closed = imp->released,
		};
	}
	bufshare_unlock(bd);
	return n;
}

static int state_show(struct seq_file *m, void *unused)
{
	struct bufshare_device *bd = m->private;
	u8 name[VIRTIO_BUFSHARE_NAME_LEN];
	struct bufshare_stats stats;
	struct bufshare_caps caps;
	struct bufshare_line *lines;
	u32 n, i, total;
	bool alive;
	u64 bytes;

	lines = kvmalloc_objs(*lines, BUFSHARE_DEBUG_LINES);
	if (!lines)
		return -ENOMEM;
	bufshare_lock(bd);
	stats = bd->stats;
	caps = bd->caps;
	memcpy(name, bd->name, sizeof(name));
	alive = bd->alive;
	bufshare_unlock(bd);

	seq_printf(m, "peer %llu \"%.*s\" %s, caps %#x, ways %#x\n", caps.peer_id,
		   VIRTIO_BUFSHARE_NAME_LEN, name, alive ? "alive" : "dead", caps.caps, caps.ways);
	if (bd->shm)
		seq_printf(m, "window %#llx bytes at %pa\n", bd->shm->size, &bd->shm->start);
	seq_printf(m, "dma-is-phys %d\n", bd->dma_is_phys);
	seq_printf(m, "requests %llu\nrefused %llu\nmalformed %llu\ntimeouts %llu\norphans %llu\n",
		   stats.requests, stats.refused, stats.malformed, stats.timeouts, stats.orphans);
	seq_printf(m, "events %llu\nlost %llu\nrevoked %llu\n", stats.events, stats.lost,
		   stats.revoked);

	seq_printf(m, "uncharged %llu bytes\n", bufshare_mem_uncharged());
	n = bufshare_kept_total(&bytes);
	seq_printf(m, "kept %u backings, %llu bytes\n", n, bytes);

	n = bufshare_exports_snapshot(bd, lines, &total);
	seq_printf(m, "exports %u\n", total);
	for (i = 0; i < n; i++)
		seq_printf(m, "  %*phN size %llu extents %u %s%s%s%s\n", (int)sizeof(lines[i].id),
			   &lines[i].id, lines[i].size, lines[i].extents, lines[i].state,
			   lines[i].ended ? " dead" : "", lines[i].closed ? " closed" : "",
			   lines[i].quiesced ? " quiesced" : "");
	if (n < total)
		seq_puts(m, "  ...\n");

	n = bufshare_imports_snapshot(bd, lines, &total);
	seq_printf(m, "imports %u\n", total);
	for (i = 0; i < n; i++)
		seq_printf(m, "  %*phN size %llu owner %llu handle %llu way %u properties %#x %s%s%s, window %llu offset %#llx devices %u kernel %u %s\n",
			   (int)sizeof(lines[i].id), &lines[i].id, lines[i].size, lines[i].owner,
			   lines[i].handle, lines[i].way, lines[i].properties, lines[i].state,
			   lines[i].ended ? " revoked" : "", lines[i].closed ? " closed" : "",
			   lines[i].window, lines[i].offset, lines[i].devices, lines[i].kernels,
			   lines[i].window_state);
	if (n < total)
		seq_puts(m, "  ...\n");
	kvfree(lines);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(state);

/**
 * bufshare_debugfs_add() - make our folder
 * @bd: the device; bufshare_device.debugfs is to be removed before it goes
 */
void bufshare_debugfs_add(struct bufshare_device *bd)
{
	bd->debugfs = debugfs_create_dir("bufshare", NULL);
	debugfs_create_file("state", 0400, bd->debugfs, bd, &state_fops);
}
