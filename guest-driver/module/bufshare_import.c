// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_import.c - IMPORT: another VM's buffer as a dma-buf of this one
 *
 * The buffer is mapped into the window region when it is first needed, and
 * stays there until its dma-buf goes or its exporter revokes it. A mmap() does not
 * need it yet: it would wait for the host with the mmap_lock, which page faults of
 * all threads need, and who looks at the process. The first page fault does, which
 * may release that lock; and DMA_BUF_IOCTL_SYNC before it, which can say what is
 * wrong.
 *
 * Revocation: revoked is set, so that nothing new begins; then the revoke work
 * waits out the faults that are between their check and their insertion, zaps
 * all user space mappings, and notifies dynamic importers. UNMAP reports to the
 * host that this is done. Devices of static importers and kernel mappings
 * cannot be stopped: while there are any, UNMAP is held back, so that the host
 * does not take the place for unused; it takes the memory away without us when
 * its patience ends, and puts zero pages there. Until they are gone, no other
 * buffer is accepted in that place.
 */
#include <linux/bits.h>
#include <linux/dma-resv.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/iosys-map.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "bufshare_priv.h"

/* The host takes the window after about a second. */
#define BUFSHARE_REVOKE_WAIT	msecs_to_jiffies(500)

/* How long an orderly end may take. */
#define BUFSHARE_LEAVE_WAIT	msecs_to_jiffies(1000)

static bool force_sync;
module_param(force_sync, bool, 0644);
MODULE_PARM_DESC(force_sync, "Notify the host of CPU access even where memory is coherent (default off)");

/* Waiters look at it without the lock. */
static void bufshare_imp_set_wire(struct bufshare_imp *imp, enum bufshare_import_wire wire)
{
	WRITE_ONCE(imp->wire, wire);
}

/* With bufshare_device.lock: lists lead to imports that have a reference. */
static void bufshare_imp_free_locked(struct kref *ref)
{
	struct bufshare_imp *imp = container_of(ref, struct bufshare_imp, ref);

	list_del(&imp->node);
	hash_del(&imp->by_handle);
	bufshare_req_put(imp->unmap_req);
	bufshare_req_put(imp->detach_req);
	kfree(imp);
}

static void bufshare_imp_put_locked(struct bufshare_imp *imp)
{
	lockdep_assert_held(&imp->bd->lock);
	kref_put(&imp->ref, bufshare_imp_free_locked);
}

static void bufshare_imp_settle_locked(struct bufshare_imp *imp);
static void bufshare_imp_revoke_locked(struct bufshare_imp *imp);

static void bufshare_unmap_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	struct bufshare_imp *imp = req->owner;

	/* Whatever the answer, there is nothing else that could be done. */
	if (req->err && bd->alive)
		dev_dbg(bd->dev, "UNMAP: status %u (%d)\n", req->status, req->err);
	bufshare_imp_set_wire(imp, BUFSHARE_IMPORT_ATTACHED);
	bufshare_imp_settle_locked(imp);
	wake_up_all(&bd->idle);
	bufshare_imp_put_locked(imp);
}

static void bufshare_detach_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	struct bufshare_imp *imp = req->owner;

	if (req->err && req->status != VIRTIO_BUFSHARE_S_NOT_FOUND && bd->alive)
		dev_dbg(bd->dev, "DETACH: status %u (%d)\n", req->status, req->err);
	bufshare_imp_set_wire(imp, BUFSHARE_IMPORT_GONE);
	wake_up_all(&bd->idle);
	bufshare_imp_put_locked(imp);
}

static void bufshare_imp_send_locked(struct bufshare_imp *imp, struct bufshare_req *req,
				     enum bufshare_import_wire wire,
				     void (*complete)(struct bufshare_device *bd,
						      struct bufshare_req *req))
{
	req->owner = imp;
	req->complete = complete;
	kref_get(&imp->ref);
	bufshare_imp_set_wire(imp, wire);
	if (bufshare_send_locked(imp->bd, req)) {
		bufshare_imp_set_wire(imp, BUFSHARE_IMPORT_GONE);
		bufshare_imp_put_locked(imp);	/* not the last: the caller has one */
	}
}

static void bufshare_imp_unmap_locked(struct bufshare_imp *imp)
{
	struct virtio_bufshare_batch *out = imp->unmap_req->out;
	struct virtio_bufshare_window *entry = (void *)(out + 1);

	entry->window = cpu_to_le64(imp->window);
	imp->bd->unmaps++;
	bufshare_imp_send_locked(imp, imp->unmap_req, BUFSHARE_IMPORT_UNMAPPING,
				 bufshare_unmap_complete);
}

static void bufshare_imp_detach_locked(struct bufshare_imp *imp)
{
	struct virtio_bufshare_batch *out = imp->detach_req->out;
	struct virtio_bufshare_handle *entry = (void *)(out + 1);

	entry->handle = cpu_to_le64(imp->handle);
	bufshare_imp_send_locked(imp, imp->detach_req, BUFSHARE_IMPORT_DETACHING,
				 bufshare_detach_complete);
}

/* Take the next step, if there is one to take. The caller has a reference. */
static void bufshare_imp_settle_locked(struct bufshare_imp *imp)
{
	if (imp->wire == BUFSHARE_IMPORT_MAPPED && !imp->users &&
	    (imp->released || imp->zapped))
		bufshare_imp_unmap_locked(imp);
	else if (imp->wire == BUFSHARE_IMPORT_ATTACHED && (imp->released || imp->bd->leaving))
		bufshare_imp_detach_locked(imp);
}

/* Is the place still used for a buffer that was revoked? */
static bool bufshare_place_stale_locked(struct bufshare_imp *imp, u64 offset)
{
	struct bufshare_imp *other;

	list_for_each_entry(other, &imp->bd->imports, node) {
		if (other != imp && other->revoked && other->users &&
		    offset < other->shm_offset + other->size &&
		    other->shm_offset < offset + imp->size)
			return true;
	}
	return false;
}

static int bufshare_map_result_locked(struct bufshare_imp *imp, struct bufshare_req *req)
{
	struct bufshare_shm *shm = imp->bd->shm;	/* the dma-buf may have gone */
	struct virtio_bufshare_map_resp resp;
	u64 offset;

	if (req->err) {
		bufshare_imp_set_wire(imp, BUFSHARE_IMPORT_ATTACHED);
		return req->status == VIRTIO_BUFSHARE_S_REVOKED ? -ENODEV : req->err;
	}

	memcpy(&resp, req->in, sizeof(resp));
	offset = le64_to_cpu(resp.shm_offset);
	imp->window = le64_to_cpu(resp.window);
	bufshare_imp_set_wire(imp, BUFSHARE_IMPORT_MAPPED);
	if (imp->window && le64_to_cpu(resp.len) == imp->size && PAGE_ALIGNED(offset) &&
	    offset <= shm->size && imp->size <= shm->size - offset) {
		if (!bufshare_place_stale_locked(imp, offset)) {
			imp->shm_offset = offset;
			return 0;
		}
		dev_err_ratelimited(imp->bd->dev, "the host maps where a device still uses a revoked buffer\n");
	} else {
		imp->bd->stats.malformed++;
		dev_err_ratelimited(imp->bd->dev, "the host maps %llu bytes at %#llx of a region of %#llx, window %llu\n",
				    le64_to_cpu(resp.len), offset, shm->size, imp->window);
	}
	/* Never used, so nothing to zap: only UNMAP is left to do, of whatever window. */
	WRITE_ONCE(imp->revoked, true);
	imp->zapped = true;
	return -EPROTO;
}

static void bufshare_map_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	struct bufshare_imp *imp = req->owner;

	bd->maps--;
	bd->maps_until = jiffies + bufshare_timeout();
	imp->map_err = bufshare_map_result_locked(imp, req);
	bufshare_imp_settle_locked(imp);
	wake_up_all(&imp->wait);
	wake_up_all(&bd->idle);
	bufshare_imp_put_locked(imp);
}

static int bufshare_imp_start_map_locked(struct bufshare_imp *imp, struct bufshare_req *req)
{
	struct virtio_bufshare_map *out = req->out;
	struct bufshare_device *bd = imp->bd;
	int ret;

	imp->map_until = jiffies + bufshare_timeout();
	if (!bd->maps++)
		bd->maps_until = imp->map_until;
	out->handle = cpu_to_le64(imp->handle);
	out->len = cpu_to_le64(imp->size);
	req->owner = imp;
	req->complete = bufshare_map_complete;
	kref_get(&imp->ref);
	bufshare_imp_set_wire(imp, BUFSHARE_IMPORT_MAPPING);
	ret = bufshare_send_locked(bd, req);
	if (ret) {
		bufshare_imp_set_wire(imp, BUFSHARE_IMPORT_ATTACHED);
		bufshare_imp_put_locked(imp);
		bd->maps--;
	}
	return ret;
}

static bool bufshare_imp_map_ended(const struct bufshare_imp *imp)
{
	return READ_ONCE(imp->wire) != BUFSHARE_IMPORT_MAPPING || READ_ONCE(imp->revoked) ||
	       !READ_ONCE(imp->bd->alive);
}

static long bufshare_imp_wait_map(struct bufshare_imp *imp, bool killable, long left)
{
	if (killable)
		return wait_event_killable_timeout(imp->wait, bufshare_imp_map_ended(imp), left);
	return wait_event_idle_timeout(imp->wait, bufshare_imp_map_ended(imp), left);
}

/*
 * How long the MAP under way may still be waited for, jiffies. It has one time, whoever
 * waits: a page fault that waits again after its retry does not begin anew. Callers of
 * kernel mappings hold locks: who wants these waits, too, and then for a MAP of its own.
 * So that a silent host does not have each of them wait in turn, and a suspend for all of
 * them, it has one time to answer any MAP.
 */
static long bufshare_map_time_locked(const struct bufshare_imp *imp)
{
	return min((long)(imp->map_until - jiffies), (long)(imp->bd->maps_until - jiffies));
}

/*
 * Can the buffer be used by whoever needs it in the window? 0: it is there.
 * -EINPROGRESS: to be asked or waited for, by bufshare_imp_map(). Else that it will not
 * be: -ENODEV, as it was revoked or the device has gone; -ETIMEDOUT; and for who has asked
 * before, why the host did not map it.
 */
static int bufshare_imp_look_locked(const struct bufshare_imp *imp, bool asked)
{
	lockdep_assert_held(&imp->bd->lock);
	if (imp->revoked)
		return -ENODEV;
	if (imp->wire == BUFSHARE_IMPORT_MAPPED)
		return 0;	/* stays of use even if the host has died */
	if (!imp->bd->alive)
		return -ENODEV;
	if (imp->wire == BUFSHARE_IMPORT_MAPPING)
		return bufshare_map_time_locked(imp) > 0 ? -EINPROGRESS : -ETIMEDOUT;
	if (imp->wire != BUFSHARE_IMPORT_ATTACHED || imp->bd->leaving)
		return -ENODEV;
	return asked && imp->map_err ? imp->map_err : -EINPROGRESS;
}

/*
 * Have the buffer in the window: the only place that asks for it and waits. The dma-buf
 * is held. Returns as bufshare_imp_look_locked(), but not -EINPROGRESS; -EINTR: we were
 * killed.
 *
 * Who calls it holds none of the kernel's locks where that can be avoided. The dma-buf
 * core calls attach and begin_cpu_access without the reservation lock ("locking
 * convention" in its documentation), and page faults release the mmap_lock. What is left
 * is a kernel mapping without an attachment, which has the reservation lock, and a page
 * fault that may not be retried, which has the mmap_lock for reading.
 */
static int bufshare_imp_map(struct bufshare_imp *imp, bool asked, bool killable)
{
	struct bufshare_device *bd = imp->bd;
	struct bufshare_req *req = NULL;
	long left;
	int ret;

	bufshare_lock(bd);
	while ((ret = bufshare_imp_look_locked(imp, asked)) == -EINPROGRESS) {
		if (imp->wire == BUFSHARE_IMPORT_ATTACHED && !req) {
			bufshare_unlock(bd);
			req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_MAP,
						 sizeof(struct virtio_bufshare_map), 0,
						 sizeof(struct virtio_bufshare_map_resp), 0);
			if (!req)
				return -ENOMEM;
			bufshare_lock(bd);
			continue;
		}
		if (imp->wire == BUFSHARE_IMPORT_ATTACHED) {
			ret = bufshare_imp_start_map_locked(imp, req);
			if (ret)
				break;
			bufshare_req_put(req);
			req = NULL;
		}
		/* If this waiter leaves, the answer is still used: see map_complete(). */
		asked = true;
		left = max(bufshare_map_time_locked(imp), 1L);
		bufshare_unlock(bd);
		left = bufshare_imp_wait_map(imp, killable, left);
		bufshare_lock(bd);
		ret = -EINTR;
		if (left < 0)
			break;
		/* The time may be over, or longer than it was: the host answered another. */
	}
	if (ret == -ETIMEDOUT)
		bd->stats.timeouts++;
	bufshare_unlock(bd);
	bufshare_req_put(req);
	return ret;
}

/* Count a user that cannot be stopped, unless it is too late. */
static int bufshare_imp_use(struct bufshare_imp *imp)
{
	struct bufshare_device *bd = imp->bd;
	int ret = -ENODEV;

	bufshare_lock(bd);
	if (!imp->revoked && imp->wire == BUFSHARE_IMPORT_MAPPED) {
		imp->users++;
		ret = 0;
	}
	bufshare_unlock(bd);
	return ret;
}

/* Not by the last user itself, which may hold the dma-buf's reservation lock. */
static void bufshare_drop_work(struct work_struct *work)
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

static void bufshare_imp_unuse(struct bufshare_imp *imp)
{
	struct bufshare_device *bd = imp->bd;

	bufshare_lock(bd);
	if (!--imp->users && imp->lost) {
		imp->lost = false;
		atomic_dec(&imp->shm->lost);
		/* Nothing leads there any more, as in bufshare_imports_gone(). */
		kref_get(&imp->ref);
		bufshare_device_get(bd);
		queue_work(bufshare_release_wq, &imp->drop_work);
	}
	bufshare_imp_settle_locked(imp);
	bufshare_unlock(bd);
}

/* Where it is, while it is there. */
static void bufshare_imp_piece(const struct bufshare_imp *imp, struct bufshare_piece *piece)
{
	piece->page = pfn_to_page(PHYS_PFN(imp->shm->start + imp->shm_offset));
	piece->nr = imp->size >> PAGE_SHIFT;
	piece->first = 0;
}

/* Mapping it for a device must not have to wait for the host. */
static int bufshare_imp_attach(struct dma_buf *dmabuf, struct dma_buf_attachment *attach)
{
	return bufshare_imp_map(dmabuf->priv, false, true);
}

static struct sg_table *bufshare_imp_map_dma_buf(struct dma_buf_attachment *attach,
						 enum dma_data_direction dir)
{
	struct bufshare_imp *imp = attach->dmabuf->priv;
	struct bufshare_piece piece;
	struct sg_table *sgt;
	int ret;

	/*
	 * Many importers say BIDIRECTIONAL for a buffer that they only read; it
	 * is the VMM that enforces a read-only share. Plain writing is a mistake.
	 */
	if (dir == DMA_FROM_DEVICE && !(imp->rights & VIRTIO_BUFSHARE_WRITE))
		return ERR_PTR(-EACCES);
	ret = bufshare_imp_use(imp);
	if (ret)
		return ERR_PTR(ret);
	bufshare_imp_piece(imp, &piece);
	sgt = bufshare_maps_map(&imp->maps, attach, &piece, 1, dir);
	if (IS_ERR(sgt))
		bufshare_imp_unuse(imp);
	return sgt;
}

static void bufshare_imp_unmap_dma_buf(struct dma_buf_attachment *attach, struct sg_table *sgt,
				       enum dma_data_direction dir)
{
	struct bufshare_imp *imp = attach->dmabuf->priv;

	bufshare_maps_unmap(&imp->maps, sgt);
	bufshare_imp_unuse(imp);
}

/* A kernel mapping that shows one page of zeroes over and over, as scratch memory. */
static int bufshare_imp_vmap_scratch(struct bufshare_imp *imp, struct iosys_map *map)
{
	unsigned long nr = imp->size >> PAGE_SHIFT, i;
	struct page **pages;

	imp->scratch_page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	if (!imp->scratch_page)
		return -ENOMEM;
	pages = kvmalloc_objs(*pages, nr);
	if (!pages)
		goto err;
	for (i = 0; i < nr; i++)
		pages[i] = imp->scratch_page;
	imp->scratch = vmap(pages, nr, VM_MAP, PAGE_KERNEL);
	kvfree(pages);
	if (!imp->scratch)
		goto err;
	iosys_map_set_vaddr(map, imp->scratch);
	return 0;

err:
	__free_page(imp->scratch_page);
	return -ENOMEM;
}

/*
 * The core warns of a kernel mapping that fails (WARN_ON_ONCE), and what other VMs
 * do must not make this kernel warn. So of a buffer that was revoked, or that the
 * host does not map, there is a mapping of scratch memory. In the second case the
 * import ends, too: nobody is to take the scratch memory for the buffer. For the
 * same reason the wait ends by no signal.
 */
static int bufshare_imp_vmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct bufshare_imp *imp = dmabuf->priv;
	struct bufshare_device *bd = imp->bd;
	int ret;

	ret = bufshare_imp_map(imp, false, false);
	if (!ret)
		ret = bufshare_imp_use(imp);
	if (!ret) {
		iosys_map_set_vaddr(map, imp->shm->virt + imp->shm_offset);
		return 0;
	}
	if (ret != -ENODEV) {
		dev_warn_ratelimited(bd->dev, "a buffer of peer %llu could not be mapped for the kernel (%d): its import ends\n",
				     imp->owner, ret);
		bufshare_lock(bd);
		bufshare_imp_revoke_locked(imp);
		bufshare_unlock(bd);
	}
	return bufshare_imp_vmap_scratch(imp, map);
}

static void bufshare_imp_vunmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct bufshare_imp *imp = dmabuf->priv;

	iosys_map_clear(map);
	if (!imp->scratch) {
		bufshare_imp_unuse(imp);
		return;
	}
	vunmap(imp->scratch);
	imp->scratch = NULL;
	__free_page(imp->scratch_page);
}

/*
 * A fault waits here, and nowhere else, for whatever keeps the import from being seen:
 * once for each retry that the kernel allows it, without the mmap_lock. That belongs to
 * the vma, so the dma-buf is held instead. What came of it, the next try sees.
 */
static vm_fault_t bufshare_imp_fault_wait(struct bufshare_imp *imp, struct vm_fault *vmf,
					  bool asked)
{
	struct file *file;

	if (vmf->flags & FAULT_FLAG_RETRY_NOWAIT)
		return VM_FAULT_RETRY;
	file = get_file(vmf->vma->vm_file);
	release_fault_lock(vmf);
	bufshare_imp_map(imp, asked, true);
	fput(file);
	return VM_FAULT_RETRY;
}

/* The time from the check to the entry's making is what a revocation waits out. */
static int bufshare_imp_try_fault(struct bufshare_imp *imp, struct vm_fault *vmf, bool asked,
				  vm_fault_t *fault)
{
	struct bufshare_device *bd = imp->bd;
	struct bufshare_piece piece;
	int ret;

	down_read(&imp->fault_sem);
	bufshare_lock(bd);
	ret = bufshare_imp_look_locked(imp, asked);
	bufshare_unlock(bd);
	if (!ret) {
		bufshare_imp_piece(imp, &piece);
		*fault = bufshare_mmap_insert(vmf, &piece, 1);
	}
	up_read(&imp->fault_sem);
	return ret;
}

static vm_fault_t bufshare_imp_fault(struct vm_fault *vmf)
{
	struct bufshare_imp *imp = vmf->vma->vm_private_data;
	bool asked = vmf->flags & FAULT_FLAG_TRIED;
	vm_fault_t fault = VM_FAULT_SIGBUS;
	int ret;

	ret = bufshare_imp_try_fault(imp, vmf, asked, &fault);
	if (ret != -EINPROGRESS)
		return fault;
	if (vmf->flags & FAULT_FLAG_ALLOW_RETRY)
		return bufshare_imp_fault_wait(imp, vmf, asked);
	/* For a futex, say. Who was killed is not to try again: that could be for ever. */
	if (!bufshare_imp_map(imp, asked, true))
		bufshare_imp_try_fault(imp, vmf, true, &fault);
	return fault;
}

static const struct vm_operations_struct bufshare_imp_vm_ops = {
	.fault = bufshare_imp_fault,
};

/* Asks nobody, and refuses what will never be seen. */
static int bufshare_imp_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	struct bufshare_imp *imp = dmabuf->priv;
	int ret;

	if (!(imp->rights & VIRTIO_BUFSHARE_WRITE)) {
		if (vma->vm_flags & VM_WRITE)
			return -EACCES;
		vm_flags_clear(vma, VM_MAYWRITE);
	}
	bufshare_lock(imp->bd);
	ret = bufshare_imp_look_locked(imp, false);
	bufshare_unlock(imp->bd);
	if (ret == -ENODEV)
		return ret;
	return bufshare_mmap_prepare(vma, imp->size, &bufshare_imp_vm_ops, imp);
}

/* Does the host have to know of CPU access? Only where that moves data. */
static bool bufshare_imp_syncs(const struct bufshare_imp *imp)
{
	return !(imp->properties & VIRTIO_BUFSHARE_COHERENT) || READ_ONCE(force_sync);
}

/*
 * The accesses are those that the host counts, whoever waits: an END counts from its
 * sending on, unless it is refused, so that it can be repeated then.
 */
static void bufshare_sync_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	const struct virtio_bufshare_sync *out = req->out;
	bool begins = out->op == cpu_to_le32(VIRTIO_BUFSHARE_SYNC_BEGIN);
	struct bufshare_imp *imp = req->owner;

	if (begins == !req->err)
		imp->accesses++;
	bufshare_imp_put_locked(imp);
}

static int bufshare_sync_call(struct bufshare_imp *imp, struct bufshare_req *req, bool begins)
{
	struct bufshare_device *bd = imp->bd;
	int ret = -EINVAL;

	bufshare_lock(bd);
	if (begins || imp->accesses) {
		kref_get(&imp->ref);
		ret = bufshare_send_locked(bd, req);
		if (ret)
			bufshare_imp_put_locked(imp);	/* not the last: the dma-buf has one */
		else if (!begins)
			imp->accesses--;
	}
	bufshare_unlock(bd);
	return ret ?: bufshare_wait(bd, req, NULL);
}

/* Notify the host of CPU access. */
static int bufshare_imp_sync(struct bufshare_imp *imp, enum dma_data_direction dir, bool begins)
{
	struct virtio_bufshare_sync *out;
	struct bufshare_req *req;
	u32 access;
	int ret;

	access = dir == DMA_TO_DEVICE ? VIRTIO_BUFSHARE_WRITE :
		 dir == DMA_FROM_DEVICE ? VIRTIO_BUFSHARE_READ :
		 VIRTIO_BUFSHARE_READ | VIRTIO_BUFSHARE_WRITE;
	/* Who may not write has nothing to publish. */
	access &= imp->rights;
	if (!access)
		return -EACCES;

	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_SYNC, sizeof(*out), 0,
				 sizeof(struct virtio_bufshare_resp), 0);
	if (!req)
		return -ENOMEM;
	out = req->out;
	out->handle = cpu_to_le64(imp->handle);
	out->op = cpu_to_le32(begins ? VIRTIO_BUFSHARE_SYNC_BEGIN : VIRTIO_BUFSHARE_SYNC_END);
	out->access = cpu_to_le32(access);
	out->len = cpu_to_le64(imp->size);
	req->owner = imp;
	req->complete = bufshare_sync_complete;
	ret = bufshare_sync_call(imp, req, begins);
	bufshare_req_put(req);
	return ret == -ESTALE ? -ENODEV : ret;
}

static int bufshare_imp_begin_cpu_access(struct dma_buf *dmabuf, enum dma_data_direction dir)
{
	struct bufshare_imp *imp = dmabuf->priv;
	int ret;

	ret = bufshare_imp_map(imp, false, true);
	if (ret)
		return ret;
	if (bufshare_imp_syncs(imp)) {
		ret = bufshare_imp_sync(imp, dir, true);
		if (ret)
			return ret;
	} else {
		bufshare_lock(imp->bd);
		imp->accesses++;
		bufshare_unlock(imp->bd);
	}
	bufshare_maps_sync(&imp->maps, true);
	return 0;
}

static int bufshare_imp_end_cpu_access(struct dma_buf *dmabuf, enum dma_data_direction dir)
{
	struct bufshare_imp *imp = dmabuf->priv;
	int ret;

	bufshare_maps_sync(&imp->maps, false);
	/* Nobody says whose access ends: count those of all. */
	if (!READ_ONCE(imp->accesses))
		return -EINVAL;
	ret = bufshare_imp_map(imp, false, true);
	if (ret)
		return ret;
	if (bufshare_imp_syncs(imp))
		return bufshare_imp_sync(imp, dir, false);
	bufshare_lock(imp->bd);
	if (imp->accesses)
		imp->accesses--;
	else
		ret = -EINVAL;
	bufshare_unlock(imp->bd);
	return ret;
}

static void bufshare_imp_release(struct dma_buf *dmabuf)
{
	struct bufshare_imp *imp = dmabuf->priv;
	struct bufshare_device *bd = imp->bd;
	struct inode *inode = imp->inode;
	struct bufshare_shm *shm;

	/* All mappings hold the dma-buf: there is none. */
	bufshare_lock(bd);
	imp->dmabuf = NULL;
	imp->inode = NULL;
	imp->released = true;
	shm = imp->shm;
	imp->shm = NULL;
	bufshare_imp_settle_locked(imp);
	bufshare_imp_put_locked(imp);
	bufshare_unlock(bd);
	iput(inode);
	bufshare_shm_put(shm);
	bufshare_device_put(bd);
}

#define BUFSHARE_IMP_OPS					\
	.attach = bufshare_imp_attach,				\
	.map_dma_buf = bufshare_imp_map_dma_buf,		\
	.unmap_dma_buf = bufshare_imp_unmap_dma_buf,		\
	.begin_cpu_access = bufshare_imp_begin_cpu_access,	\
	.end_cpu_access = bufshare_imp_end_cpu_access,		\
	.mmap = bufshare_imp_mmap,				\
	.release = bufshare_imp_release

static const struct dma_buf_ops bufshare_imp_ops = {
	BUFSHARE_IMP_OPS,
	.vmap = bufshare_imp_vmap,
	.vunmap = bufshare_imp_vunmap,
};

/*
 * Without kernel mappings, which the core refuses without a warning: that of
 * scratch memory takes a part of the RAM that grows with the buffer, and another
 * VM says how large that is.
 */
static const struct dma_buf_ops bufshare_imp_large_ops = {
	BUFSHARE_IMP_OPS,
};

/* Up to the size of the RAM, a mapping takes at most a 256th of it. */
static const struct dma_buf_ops *bufshare_imp_ops_for(const struct bufshare_imp *imp)
{
	return imp->size >> PAGE_SHIFT > totalram_pages() ? &bufshare_imp_large_ops :
							    &bufshare_imp_ops;
}

/**
 * bufshare_is_import() - is this a dma-buf that IMPORT made
 * @dmabuf: any dma-buf
 *
 * Return: true if so.
 */
bool bufshare_is_import(struct dma_buf *dmabuf)
{
	return dmabuf->ops == &bufshare_imp_ops || dmabuf->ops == &bufshare_imp_large_ops;
}

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
	 * A fault that did not see revoked is inside fault_sem: wait for it.
	 * Its page table entry is there when the zap begins. Later ones see it.
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
	if (imp->users) {
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

static void bufshare_revoke_work(struct work_struct *work)
{
	struct bufshare_imp *imp = container_of(work, struct bufshare_imp, revoke_work);
	struct bufshare_device *bd = imp->bd;

	bufshare_imp_zap(imp);
	bufshare_imp_invalidate(imp);

	bufshare_lock(bd);
	imp->zapped = true;
	if (imp->users)
		dev_dbg(bd->dev, "import %llu was revoked and is still mapped by %u devices or drivers\n",
			imp->handle, imp->users);
	bufshare_imp_settle_locked(imp);
	bufshare_imp_put_locked(imp);
	bufshare_unlock(bd);
	bufshare_device_put(bd);
}

static void bufshare_imp_revoke_locked(struct bufshare_imp *imp)
{
	if (imp->revoked)
		return;
	imp->bd->stats.revoked++;
	WRITE_ONCE(imp->revoked, true);
	wake_up_all(&imp->wait);
	if (imp->dmabuf) {
		kref_get(&imp->ref);
		bufshare_device_get(imp->bd);
		queue_work(imp->bd->revoke_wq, &imp->revoke_work);
	} else {
		imp->zapped = true;
	}
	bufshare_imp_settle_locked(imp);	/* when leaving: an unmapped one is detached */
}

/**
 * bufshare_import_revoked_locked() - the host reports that a buffer is revoked
 * @bd: the device; its lock is held
 * @handle: of the attachment
 */
void bufshare_import_revoked_locked(struct bufshare_device *bd, u64 handle)
{
	struct bufshare_imp *imp;

	hash_for_each_possible(bd->imports_by_handle, imp, by_handle, handle) {
		if (imp->handle == handle && imp->wire != BUFSHARE_IMPORT_GONE) {
			bufshare_imp_revoke_locked(imp);
			return;
		}
	}
}

/**
 * bufshare_imports_revoke_all() - no import may be used any more
 * @bd: the device, leaving
 *
 * Returns when no user space mapping is left.
 */
void bufshare_imports_revoke_all(struct bufshare_device *bd)
{
	struct bufshare_imp *imp;

	bufshare_lock(bd);
	list_for_each_entry(imp, &bd->imports, node)
		bufshare_imp_revoke_locked(imp);
	bufshare_unlock(bd);
	flush_workqueue(bd->revoke_wq);
}

static bool bufshare_imports_left(struct bufshare_device *bd)
{
	struct bufshare_imp *imp;
	bool under_way = false;

	bufshare_lock(bd);
	list_for_each_entry(imp, &bd->imports, node)
		under_way |= imp->wire == BUFSHARE_IMPORT_MAPPING ||
			     imp->wire == BUFSHARE_IMPORT_UNMAPPING ||
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
		bufshare_imp_set_wire(imp, BUFSHARE_IMPORT_GONE);
		if (!imp->users) {
			/* Not the last reference, which would sleep: the device has one. */
			bufshare_shm_put(imp->shm);
			imp->shm = NULL;
		} else if (!imp->lost) {
			imp->lost = true;
			atomic_inc(&imp->shm->lost);
		}
	}
	bufshare_unlock(bd);
}

static void bufshare_attach_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	struct bufshare_imp *imp = req->owner;
	struct virtio_bufshare_attach_resp resp;

	bufshare_imp_set_wire(imp, BUFSHARE_IMPORT_GONE);
	if (!req->err) {
		memcpy(&resp, req->in, sizeof(resp));
		imp->handle = le64_to_cpu(resp.handle);
		imp->size = le64_to_cpu(resp.size);
		imp->generation = le64_to_cpu(resp.generation);
		imp->owner = le64_to_cpu(resp.owner);
		imp->rights = le32_to_cpu(resp.rights);
		imp->way = le32_to_cpu(resp.way);
		imp->properties = le32_to_cpu(resp.properties);
		imp->windows = le32_to_cpu(resp.windows);
		hash_add(bd->imports_by_handle, &imp->by_handle, imp->handle);
		bufshare_imp_set_wire(imp, BUFSHARE_IMPORT_ATTACHED);
		bufshare_imp_settle_locked(imp);
	}
	bufshare_imp_put_locked(imp);
}

static struct bufshare_imp *bufshare_imp_alloc(struct bufshare_device *bd,
					       const struct bufshare_import *arg)
{
	struct bufshare_imp *imp;

	imp = kzalloc_obj(*imp, GFP_KERNEL_ACCOUNT);
	if (!imp)
		return NULL;
	imp->unmap_req = bufshare_batch_alloc(VIRTIO_BUFSHARE_CMD_UNMAP,
					      sizeof(struct virtio_bufshare_window));
	imp->detach_req = bufshare_batch_alloc(VIRTIO_BUFSHARE_CMD_DETACH,
					       sizeof(struct virtio_bufshare_handle));
	if (!imp->unmap_req || !imp->detach_req) {
		bufshare_req_put(imp->unmap_req);
		bufshare_req_put(imp->detach_req);
		kfree(imp);
		return NULL;
	}
	imp->unmap_req->closing = true;
	imp->detach_req->closing = true;
	kref_init(&imp->ref);
	imp->bd = bd;
	memcpy(&imp->id, &arg->id, sizeof(imp->id));
	init_rwsem(&imp->fault_sem);
	init_waitqueue_head(&imp->wait);
	INIT_WORK(&imp->revoke_work, bufshare_revoke_work);
	INIT_WORK(&imp->drop_work, bufshare_drop_work);
	bufshare_maps_init(&imp->maps);
	bufshare_lock(bd);
	list_add_tail(&imp->node, &bd->imports);
	bufshare_unlock(bd);
	return imp;
}

static int bufshare_imp_send_attach_locked(struct bufshare_imp *imp, struct bufshare_req *req)
{
	struct bufshare_device *bd = imp->bd;
	int ret;

	/*
	 * A device that was reset may map there: it does not know who looks at what. Not
	 * the mapping is refused but the import, since kernel mappings must not fail.
	 * There are no more of them as long as the session lasts, and the import does not
	 * outlast it.
	 */
	if (bd->shm && atomic_read(&bd->shm->lost)) {
		dev_err_ratelimited(bd->dev, "other drivers use buffers that were imported before the device was reset: no other is imported until they end that\n");
		return -EBUSY;
	}
	kref_get(&imp->ref);
	bufshare_imp_set_wire(imp, BUFSHARE_IMPORT_ATTACHING);
	ret = bufshare_send_locked(bd, req);
	if (ret) {
		bufshare_imp_set_wire(imp, BUFSHARE_IMPORT_GONE);
		bufshare_imp_put_locked(imp);
	}
	return ret;
}

static int bufshare_imp_request(struct bufshare_imp *imp, struct bufshare_import *arg)
{
	struct bufshare_device *bd = imp->bd;
	struct virtio_bufshare_attach *out;
	struct bufshare_req *req;
	int ret;

	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_ATTACH, sizeof(*out), 0,
				 sizeof(struct virtio_bufshare_attach_resp), 0);
	if (!req)
		return -ENOMEM;
	out = req->out;
	out->id = imp->id;
	out->rights = cpu_to_le32(arg->rights);
	/* Bits of these that we do not know are for the host to judge. */
	out->ways = cpu_to_le32(arg->ways);
	out->required = cpu_to_le32(arg->required);
	out->max_windows = cpu_to_le32(arg->max_windows);
	req->owner = imp;
	req->complete = bufshare_attach_complete;

	bufshare_lock(bd);
	ret = bufshare_imp_send_attach_locked(imp, req);
	bufshare_unlock(bd);
	if (!ret)
		ret = bufshare_wait(bd, req, &arg->status);
	bufshare_req_put(req);
	return ret;
}

/* Is the way that the host chose one of those that are accepted? */
static bool bufshare_imp_way_accepted(const struct bufshare_imp *imp,
				      const struct bufshare_import *arg)
{
	if (!arg->ways)
		return imp->properties & VIRTIO_BUFSHARE_COHERENT;
	return imp->way < BITS_PER_TYPE(arg->ways) && arg->ways & BIT(imp->way);
}

/* Is what the host granted what was asked for, and something that we can serve? */
static int bufshare_imp_check(const struct bufshare_imp *imp, const struct bufshare_import *arg)
{
	struct bufshare_device *bd = imp->bd;

	if (!imp->handle || !imp->size || imp->rights & ~arg->rights ||
	    !(imp->rights & VIRTIO_BUFSHARE_READ) || !bufshare_imp_way_accepted(imp, arg) ||
	    arg->required & ~imp->properties ||
	    (arg->max_windows && imp->windows > arg->max_windows)) {
		dev_err_ratelimited(bd->dev, "the host granted handle %llu, %llu bytes, rights %#x, way %u, properties %#x, %u windows\n",
				    imp->handle, imp->size, imp->rights, imp->way,
				    imp->properties, imp->windows);
		return -EPROTO;
	}
	if (!bd->shm)
		return -EOPNOTSUPP;
	/* The exporter's pages may be smaller than ours. */
	if (!PAGE_ALIGNED(imp->size))
		return -EOPNOTSUPP;
	if (imp->size > bd->shm->size)
		return -EFBIG;
	return 0;
}

/*
 * What bufinfo and /proc show as the exporter's name: ours, the beginning of the
 * buffer's id, and its owner. A program may add a name (DMA_BUF_SET_NAME).
 */
static const char *bufshare_imp_label(struct bufshare_imp *imp)
{
	const int id_len = sizeof(imp->id) / 2;

	scnprintf(imp->label, sizeof(imp->label), KBUILD_MODNAME ":%*phN@%llu", id_len, &imp->id,
		  imp->owner);
	return imp->label;
}

/* Uses the window region: only between bufshare_enter() and bufshare_exit(). */
static int bufshare_imp_make(struct bufshare_device *bd, struct bufshare_import *arg,
			     struct bufshare_newfd *newfd)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct bufshare_imp *imp;
	struct dma_buf *dmabuf;
	int ret;

	imp = bufshare_imp_alloc(bd, arg);
	if (!imp)
		return -ENOMEM;
	ret = bufshare_imp_request(imp, arg);
	if (!ret)
		ret = bufshare_imp_check(imp, arg);
	if (ret)
		goto drop;

	info.exp_name = bufshare_imp_label(imp);
	info.ops = bufshare_imp_ops_for(imp);
	info.size = imp->size;
	info.flags = arg->fd_flags & O_ACCMODE;
	info.priv = imp;
	dmabuf = dma_buf_export(&info);
	if (IS_ERR(dmabuf)) {
		ret = PTR_ERR(dmabuf);
		goto drop;
	}
	/* From here on the dma-buf has our reference. */
	bufshare_device_get(bd);
	bufshare_lock(bd);
	/* Nothing of one that is revoked by now leads into the window region. */
	if (!imp->revoked)
		imp->shm = bufshare_shm_get(bd->shm);
	imp->dmabuf = dmabuf;
	imp->inode = file_inode(dmabuf->file);
	ihold(imp->inode);
	bufshare_unlock(bd);

	ret = bufshare_newfd_prepare(newfd, arg->fd_flags, dmabuf->file);
	if (ret) {
		dma_buf_put(dmabuf);
		return ret;
	}
	arg->fd = newfd->fd;
	arg->rights = imp->rights;
	arg->size = imp->size;
	arg->generation = imp->generation;
	arg->owner = imp->owner;
	arg->way = imp->way;
	arg->properties = imp->properties;
	arg->windows = imp->windows;
	return 0;

drop:
	bufshare_lock(bd);
	imp->released = true;
	bufshare_imp_settle_locked(imp);
	bufshare_imp_put_locked(imp);
	bufshare_unlock(bd);
	return ret;
}

/**
 * bufshare_ioc_import() - IMPORT
 * @bd: the device
 * @arg: what is asked and answered
 * @newfd: the dma-buf
 *
 * Return: 0 or a negative errno.
 */
int bufshare_ioc_import(struct bufshare_device *bd, struct bufshare_import *arg,
			struct bufshare_newfd *newfd)
{
	int ret;

	if (arg->flags || arg->reserved ||
	    arg->fd_flags & ~(O_CLOEXEC | O_ACCMODE) || (arg->fd_flags & O_ACCMODE) == O_WRONLY)
		return -EINVAL;
	if (arg->rights != BUFSHARE_READ && arg->rights != (BUFSHARE_READ | BUFSHARE_WRITE))
		return -EINVAL;
	if (!bufshare_enter(bd))
		return -ENODEV;
	ret = bufshare_imp_make(bd, arg, newfd);
	bufshare_exit(bd);
	return ret;
}
