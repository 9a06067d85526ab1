// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_revoke.c - an import may not be used any more
 *
 * Its exporter revokes the buffer, or the session with the host ends. First the import is
 * marked, so that nothing new begins; then the revoke work waits out the faults that are
 * between their check and their insertion, zaps all user space mappings, and notifies
 * dynamic importers. Its window is unmapped when that is done.
 */
#include <linux/dma-resv.h>
#include <linux/fs.h>
#include <linux/mm.h>

#include "bufshare_priv.h"

/* The host takes the window after about a second. */
#define BUFSHARE_REVOKE_WAIT	msecs_to_jiffies(500)

/* How long an orderly end may take. */
#define BUFSHARE_LEAVE_WAIT	msecs_to_jiffies(1000)

/*
 * The inode is kept for this, and not the file: an O_PATH descriptor keeps a
 * dma-buf whose file has gone, and the file's memory may be another file by now.
 */
static void bufshare_imp_zap(struct bufshare_imp *imp)
{
	struct bufshare_device *bd = imp->bd;
	struct inode *inode;

	bufshare_lock(bd);
	inode = imp->inode;
	if (inode)
		ihold(inode);
	bufshare_unlock(bd);
	if (!inode)
		return;	/* the dma-buf has gone, and its mappings before */
	/*
	 * A fault that found the window mapped is inside fault_sem: wait for it.
	 * Its page table entry is there when the zap begins. Later ones find it revoked.
	 */
	down_write(&imp->fault_sem);
	up_write(&imp->fault_sem);
	unmap_mapping_range(inode->i_mapping, 0, 0, 1);
	iput(inode);
}

/* Ask dynamic importers to end their mappings, and wait for their fences. */
static void bufshare_imp_invalidate(struct bufshare_imp *imp)
{
	struct bufshare_device *bd = imp->bd;
	struct dma_buf *dmabuf = NULL;

	/* Who uses the dma-buf has a reference of it, so its file is there. */
	bufshare_lock(bd);
	if (bufshare_window_used_locked(&imp->window)) {
		dmabuf = imp->dmabuf;
		get_dma_buf(dmabuf);
	}
	bufshare_unlock(bd);
	if (!dmabuf)
		return;
	dma_resv_lock(dmabuf->resv, NULL);
	dma_buf_invalidate_mappings(dmabuf);
	dma_resv_wait_timeout(dmabuf->resv, DMA_RESV_USAGE_BOOKKEEP, false, BUFSHARE_REVOKE_WAIT);
	dma_resv_unlock(dmabuf->resv);
	dma_buf_put(dmabuf);
}

/**
 * bufshare_revoke_work() - end what uses a revoked import, as far as it can be ended
 * @work: bufshare_imp.revoke_work
 */
void bufshare_revoke_work(struct work_struct *work)
{
	struct bufshare_imp *imp = container_of(work, struct bufshare_imp, revoke_work);
	struct bufshare_device *bd = imp->bd;

	bufshare_imp_zap(imp);
	bufshare_imp_invalidate(imp);

	bufshare_lock(bd);
	bufshare_window_revoked_locked(&imp->window);
	bufshare_imp_settle_locked(imp);
	bufshare_imp_put_locked(imp);
	bufshare_unlock(bd);
	bufshare_device_put(bd);
}

/**
 * bufshare_imp_revoke_locked() - an import may not be used any more
 * @imp: the import; its device's lock is held, and the caller has a reference
 */
void bufshare_imp_revoke_locked(struct bufshare_imp *imp)
{
	lockdep_assert_held(&imp->bd->lock);
	if (imp->revoked)
		return;
	imp->bd->stats.revoked++;
	WRITE_ONCE(imp->revoked, true);
	if (bufshare_window_revoke_locked(&imp->window)) {
		kref_get(&imp->ref);
		bufshare_device_get(imp->bd);
		queue_work(imp->bd->revoke_wq, &imp->revoke_work);
	}
	bufshare_imp_settle_locked(imp);	/* when leaving: an unmapped one is detached */
	bufshare_frame_recall_locked(imp);
}

/**
 * bufshare_imports_revoke_all() - no import may be used any more
 * @bd: the device, leaving: no import is added
 *
 * Returns when no user space mapping is left.
 */
void bufshare_imports_revoke_all(struct bufshare_device *bd)
{
	struct bufshare_imp *imp, *next;

	bufshare_lock(bd);
	imp = list_first_entry(&bd->imports, struct bufshare_imp, node);
	while (!list_entry_is_head(imp, &bd->imports, node)) {
		kref_get(&imp->ref);
		bufshare_imp_revoke_locked(imp);
		/* Each alone: one is as long as interrupts are off. */
		bufshare_unlock(bd);
		bufshare_lock(bd);
		next = list_next_entry(imp, node);
		bufshare_imp_put_locked(imp);
		imp = next;
	}
	bufshare_unlock(bd);
	flush_workqueue(bd->revoke_wq);
}

static bool bufshare_imports_left(struct bufshare_device *bd)
{
	struct bufshare_imp *imp;
	bool under_way = false;

	bufshare_lock(bd);
	list_for_each_entry(imp, &bd->imports, node)
		under_way |= imp->window.state == BUFSHARE_WINDOW_MAPPING ||
			     imp->window.state == BUFSHARE_WINDOW_UNMAPPING ||
			     imp->wire == BUFSHARE_IMPORT_DETACHING;
	under_way &= bd->alive;
	bufshare_unlock(bd);
	return !under_way;
}

/**
 * bufshare_imports_wait_left() - wait until the windows have been given back
 * @bd: the device, leaving, all its imports revoked
 *
 * Those that the kernel still uses are not waited for.
 */
void bufshare_imports_wait_left(struct bufshare_device *bd)
{
	wait_event_timeout(bd->idle, bufshare_imports_left(bd), BUFSHARE_LEAVE_WAIT);
}

/**
 * bufshare_imports_gone() - the device was reset: it knows no import any more
 * @bd: the device, not alive
 *
 * An open file alone does not keep the window region, which may be gone soon.
 */
void bufshare_imports_gone(struct bufshare_device *bd)
{
	struct bufshare_imp *imp;

	bufshare_lock(bd);
	list_for_each_entry(imp, &bd->imports, node) {
		bufshare_imp_set_wire_locked(imp, BUFSHARE_IMPORT_GONE);
		if (bufshare_window_forget_locked(&imp->window)) {
			/* Not the last reference, which would sleep: the device has one. */
			bufshare_shm_put(imp->shm);
			imp->shm = NULL;
		}
	}
	bufshare_unlock(bd);
}

/**
 * bufshare_drop_work() - nothing leads into the window region of an import any more
 * @work: bufshare_imp.drop_work
 *
 * Not done by the last user itself, which may hold the dma-buf's reservation lock.
 */
void bufshare_drop_work(struct work_struct *work)
{
	struct bufshare_imp *imp = container_of(work, struct bufshare_imp, drop_work);
	struct bufshare_device *bd = imp->bd;
	struct bufshare_shm *shm;

	bufshare_lock(bd);
	shm = imp->shm;
	imp->shm = NULL;
	bufshare_imp_put_locked(imp);
	bufshare_unlock(bd);
	bufshare_shm_put(shm);
	bufshare_device_put(bd);
}
