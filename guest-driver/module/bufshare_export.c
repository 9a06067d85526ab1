// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_export.c - EXPORT: a dma-buf of this VM for other VMs
 *
 * The backing is released when the host has answered that nobody can reach it
 * any more, and never if it does not. A reset of the device is no such answer:
 * it completes also when the host cannot unmap the memory from other VMs.
 */
#include <linux/anon_inodes.h>
#include <linux/cc_platform.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/uaccess.h>

#include "bufshare_priv.h"

static void bufshare_export_said_free(struct bufshare_export_said *said)
{
	if (said)
		kfree(said->blob);
	kfree(said);
}

static void bufshare_exp_free(struct kref *ref)
{
	struct bufshare_exp *exp = container_of(ref, struct bufshare_exp, ref);
	struct bufshare_device *bd = exp->bd;

	bufshare_lock(bd);
	list_del(&exp->node);
	hash_del(&exp->by_id);
	hash_del(&exp->by_dmabuf);
	bufshare_unlock(bd);
	bufshare_req_put(exp->unexport_req);
	bufshare_export_said_free(exp->said);
	kfree(exp);
	bufshare_device_put(bd);
}

static void bufshare_exp_release_work(struct work_struct *work)
{
	struct bufshare_exp *exp = container_of(work, struct bufshare_exp, release_work);
	struct bufshare_device *bd = exp->bd;

	bufshare_lock(bd);
	exp->wire = BUFSHARE_EXPORT_GONE;
	bufshare_unlock(bd);
	/* The queue is drained before the module goes. */
	if (exp->dmabuf)
		bufshare_backing_put(exp);
	kref_put(&exp->ref, bufshare_exp_free);
}

/**
 * bufshare_exp_release_locked() - nobody can reach the memory of an export any more
 * @bd: the device that says so; its lock is held
 * @exp: the export
 *
 * It may be of an earlier binding of the driver, which changes nothing any more: the
 * work takes its lock.
 */
void bufshare_exp_release_locked(struct bufshare_device *bd, struct bufshare_exp *exp)
{
	lockdep_assert_held(&bd->lock);
	if (exp->bd == bd)
		exp->wire = BUFSHARE_EXPORT_GONE;
	queue_work(bufshare_release_wq, &exp->release_work);
}

static void bufshare_exp_gone_locked(struct bufshare_exp *exp)
{
	bufshare_exp_release_locked(exp->bd, exp);
}

/**
 * bufshare_unexport_alloc() - make the request that ends an export
 * @id: the buffer, or NULL if that is to be filled in
 *
 * Return: the request, one reference, or NULL.
 */
struct bufshare_req *bufshare_unexport_alloc(const struct virtio_bufshare_id *id)
{
	struct virtio_bufshare_unexport *out;
	struct bufshare_req *req;

	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_UNEXPORT, sizeof(*out), 0,
				 sizeof(struct virtio_bufshare_resp), 0);
	if (!req)
		return NULL;
	out = req->out;
	if (id)
		out->id = *id;
	out->mode = cpu_to_le32(VIRTIO_BUFSHARE_UNEXPORT_FORCED);
	/* No deadline of ours: the operator gives importers their time. */
	return req;
}

static void bufshare_unexport_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	struct bufshare_exp *exp = req->owner;

	exp->unknown = req->err && req->status == VIRTIO_BUFSHARE_S_NOT_FOUND;
	if (!req->err || (exp->unknown && exp->ended)) {
		bufshare_exp_gone_locked(exp);
	} else {
		exp->wire = BUFSHARE_EXPORT_STUCK;
		if (bd->alive && !exp->unknown) {
			bd->complaints.stuck++;
			bd->complaints.stuck_status = req->status;
			bd->complaints.stuck_err = req->err;
			bufshare_complain_locked(bd);
		}
	}
	wake_up_all(&bd->idle);
}

/* Take the next step, if there is one to take. */
static void bufshare_exp_settle_locked(struct bufshare_exp *exp)
{
	struct virtio_bufshare_unexport *out = exp->unexport_req->out;

	if (exp->wire != BUFSHARE_EXPORT_LIVE || !exp->closed)
		return;
	out->id = exp->id;
	out->mode = cpu_to_le32(bufshare_quiesce_unexport_mode_locked(exp));
	exp->unexport_req->owner = exp;
	exp->unexport_req->complete = bufshare_unexport_complete;
	exp->wire = BUFSHARE_EXPORT_CLOSING;
	if (bufshare_send_locked(exp->bd, exp->unexport_req))
		exp->wire = BUFSHARE_EXPORT_STUCK;
}

static void bufshare_export_complete(struct bufshare_device *bd, struct bufshare_req *req)
{
	struct bufshare_exp *exp = req->owner;
	struct virtio_bufshare_export_resp resp;

	if (!req->err) {
		memcpy(&resp, req->in, sizeof(resp));
		exp->id = resp.id;
		exp->generation = le64_to_cpu(resp.generation);
		hash_add(bd->exports_by_id, &exp->by_id, bufshare_id_hash(&exp->id));
		exp->wire = BUFSHARE_EXPORT_LIVE;
		bufshare_exp_settle_locked(exp);
	} else if (req->status != VIRTIO_BUFSHARE_S_OK || !req->reached) {
		bufshare_exp_gone_locked(exp);
	} else {
		/* No answer, or one without sense: it may be exported. */
		exp->wire = BUFSHARE_EXPORT_STUCK;
	}
	wake_up_all(&bd->idle);
}

static void bufshare_exp_end_locked(struct bufshare_exp *exp)
{
	WRITE_ONCE(exp->dead, true);
	bufshare_exp_forget_frame_locked(exp);
	exp->closed = true;
	bufshare_exp_settle_locked(exp);
	wake_up_all(&exp->wait);
}

/**
 * bufshare_exp_end() - end an export without its owner's asking
 * @exp: the export
 */
void bufshare_exp_end(struct bufshare_exp *exp)
{
	struct bufshare_device *bd = exp->bd;

	bufshare_lock(bd);
	bufshare_exp_end_locked(exp);
	bufshare_unlock(bd);
}

/*
 * The host does not know the buffer any more, and has not said yet that it ended the
 * export. Queues do not wait for each other: that word may be to come.
 */
static bool bufshare_exp_half_answered(const struct bufshare_exp *exp)
{
	return exp->wire == BUFSHARE_EXPORT_STUCK && exp->unknown && !exp->ended &&
	       list_empty(&exp->kept);
}

/**
 * bufshare_exp_by_id_locked() - find an export of ours
 * @bd: the device; its lock is held
 * @id: the buffer
 *
 * Return: it, or NULL if there is none, or nobody can reach its memory any more.
 */
struct bufshare_exp *bufshare_exp_by_id_locked(struct bufshare_device *bd,
					       const struct virtio_bufshare_id *id)
{
	struct bufshare_exp *exp;

	lockdep_assert_held(&bd->lock);
	hash_for_each_possible(bd->exports_by_id, exp, by_id, bufshare_id_hash(id)) {
		if (exp->wire != BUFSHARE_EXPORT_GONE && !memcmp(&exp->id, id, sizeof(*id)))
			return exp;
	}
	return NULL;
}

/**
 * bufshare_export_revoked_locked() - the host has ended an export of ours
 * @exp: the export; its device's lock is held
 *
 * The backing stays until our UNEXPORT, at the closing, is answered. The host
 * may not know the buffer any more by then: that is its answer, but only
 * together with this word. A host that has forgotten everything does not know
 * the buffer either.
 */
void bufshare_export_revoked_locked(struct bufshare_exp *exp)
{
	WRITE_ONCE(exp->dead, true);
	bufshare_exp_forget_frame_locked(exp);
	wake_up_all(&exp->wait);
	if (bufshare_exp_half_answered(exp)) {
		bufshare_exp_gone_locked(exp);
		wake_up_all(&exp->bd->idle);
	}
	exp->ended = true;
}

/**
 * bufshare_exports_end_locked() - no export is to be left
 * @bd: the device, leaving; its lock is held
 */
void bufshare_exports_end_locked(struct bufshare_device *bd)
{
	struct bufshare_exp *exp;

	lockdep_assert_held(&bd->lock);
	list_for_each_entry(exp, &bd->exports, node) {
		/* One that was not sent cannot be any more. */
		if (exp->wire != BUFSHARE_EXPORT_NEW && exp->wire != BUFSHARE_EXPORT_GONE)
			bufshare_exp_end_locked(exp);
	}
}

static bool bufshare_exports_answered(struct bufshare_device *bd)
{
	struct bufshare_exp *exp;
	bool under_way = false;

	bufshare_lock(bd);
	list_for_each_entry(exp, &bd->exports, node)
		under_way |= exp->wire == BUFSHARE_EXPORT_SENT ||
			     exp->wire == BUFSHARE_EXPORT_CLOSING ||
			     bufshare_exp_half_answered(exp);
	under_way &= bd->alive;
	bufshare_unlock(bd);
	return !under_way;
}

/**
 * bufshare_exports_wait_answered() - wait until the host has said all it can
 * @bd: the device, all its exports ended
 *
 * Those that it did not answer in time are kept.
 */
void bufshare_exports_wait_answered(struct bufshare_device *bd)
{
	wait_event_timeout(bd->idle, bufshare_exports_answered(bd), bufshare_timeout());
}

/**
 * bufshare_exports_keep() - keep what others may still reach
 * @bd: the device, reset: it says no more in this session
 */
void bufshare_exports_keep(struct bufshare_device *bd)
{
	struct bufshare_exp *exp;
	u32 count = 0;
	u64 bytes = 0;

	bufshare_lock(bd);
	list_for_each_entry(exp, &bd->exports, node) {
		if (exp->wire == BUFSHARE_EXPORT_NEW || exp->wire == BUFSHARE_EXPORT_GONE ||
		    !list_empty(&exp->kept))
			continue;
		/* Of a stream there is nothing to reach. */
		if (!exp->dmabuf) {
			bufshare_exp_gone_locked(exp);
			continue;
		}
		exp->wire = BUFSHARE_EXPORT_STUCK;
		bufshare_kept_add_locked(exp);
		count++;
		bytes += exp->size;
	}
	bufshare_unlock(bd);
	if (count)
		dev_err(bd->dev, "the host did not say that other VMs no longer reach %u exported buffers: their %llu bytes are kept until the host says so to a later session (do not reboot this VM while importers run)\n",
			count, bytes);
}

static bool bufshare_exports_released(struct bufshare_device *bd)
{
	struct bufshare_exp *exp;
	bool left = false;

	bufshare_lock(bd);
	list_for_each_entry(exp, &bd->exports, node)
		left |= exp->wire == BUFSHARE_EXPORT_GONE && exp->dmabuf;
	bufshare_unlock(bd);
	return !left;
}

/**
 * bufshare_exports_wait_released() - wait until foreign memory is detached
 * @bd: the device, which is about to go
 */
void bufshare_exports_wait_released(struct bufshare_device *bd)
{
	if (!wait_event_timeout(bd->idle, bufshare_exports_released(bd), bufshare_timeout()))
		dev_warn(bd->dev, "another driver does not let us detach from its buffers\n");
}

/* One file less, with its reference. */
static void bufshare_exp_close(struct bufshare_exp *exp)
{
	struct bufshare_device *bd = exp->bd;

	bufshare_lock(bd);
	if (!--exp->files) {
		bufshare_exp_forget_frame_locked(exp);
		exp->closed = true;
		if (exp->wire == BUFSHARE_EXPORT_NEW)
			bufshare_exp_gone_locked(exp);
		else
			bufshare_exp_settle_locked(exp);
		wake_up_all(&bd->idle);
	}
	bufshare_unlock(bd);
	kref_put(&exp->ref, bufshare_exp_free);
}

static int bufshare_exp_fop_release(struct inode *inode, struct file *file)
{
	struct bufshare_exp *exp = file->private_data;

	bufshare_exp_close(exp);
	return 0;
}

static __poll_t bufshare_exp_fop_poll(struct file *file, poll_table *wait)
{
	struct bufshare_exp *exp = file->private_data;

	poll_wait(file, &exp->wait, wait);
	return READ_ONCE(exp->dead) || !READ_ONCE(exp->bd->alive) ? EPOLLHUP : 0;
}

static void bufshare_exp_fop_fdinfo(struct seq_file *m, struct file *file)
{
	struct bufshare_exp *exp = file->private_data;

	seq_printf(m, "bufshare-id:\t%*phN\n", (int)sizeof(exp->id), &exp->id);
	seq_printf(m, "bufshare-size:\t%llu\n", exp->size);
}

static const struct file_operations bufshare_exp_fops = {
	.owner = THIS_MODULE,
	.release = bufshare_exp_fop_release,
	.poll = bufshare_exp_fop_poll,
	.show_fdinfo = bufshare_exp_fop_fdinfo,
};

/**
 * bufshare_exp_fget() - the file of an export that a program names
 * @bd: the device
 * @fd: the program's descriptor
 *
 * Return: it, counted, or a negative errno.
 */
struct file *bufshare_exp_fget(struct bufshare_device *bd, int fd)
{
	struct file *file = fget(fd);
	struct bufshare_exp *exp;

	if (!file)
		return ERR_PTR(-EBADF);
	exp = file->private_data;
	if (file->f_op == &bufshare_exp_fops && exp->bd == bd)
		return file;
	fput(file);
	return ERR_PTR(-EINVAL);
}

/**
 * bufshare_exp_is_live_locked() - can others attach, and has it not ended
 * @exp: the export; its device's lock is held
 *
 * Return: true if so.
 */
bool bufshare_exp_is_live_locked(const struct bufshare_exp *exp)
{
	lockdep_assert_held(&exp->bd->lock);
	return exp->wire == BUFSHARE_EXPORT_LIVE && !exp->dead;
}

/**
 * bufshare_exp_id() - the buffer of an export that a program has the file of
 * @bd: the device
 * @fd: the program's descriptor
 * @id: where to put the buffer's name
 * @status: where to put why not, in the host's terms
 *
 * Return: 0 or a negative errno.
 */
int bufshare_exp_id(struct bufshare_device *bd, int fd, struct virtio_bufshare_id *id,
		    u32 *status)
{
	struct file *file = bufshare_exp_fget(bd, fd);
	struct bufshare_exp *exp;
	int ret = 0;

	if (IS_ERR(file))
		return PTR_ERR(file);
	exp = file->private_data;
	bufshare_lock(bd);
	if (!bufshare_exp_is_live_locked(exp)) {
		*status = VIRTIO_BUFSHARE_S_NOT_FOUND;
		ret = -ENOENT;
	}
	*id = exp->id;
	bufshare_unlock(bd);
	fput(file);
	return ret;
}

/* The memory of an export, and its dma-buf, counted. To end what is left, of an ended one, too. */
static int bufshare_exp_mem(struct bufshare_exp *exp, bool begins, struct bufshare_mem **mem,
			    struct dma_buf **dmabuf, u32 *status)
{
	struct bufshare_device *bd = exp->bd;
	int ret = -EOPNOTSUPP;

	/* A stream. */
	if (!exp->size)
		return -EOPNOTSUPP;
	bufshare_lock(bd);
	/* A stream never had any. */
	if (exp->size && (!exp->dmabuf || (begins && !bufshare_exp_is_live_locked(exp)))) {
		*status = VIRTIO_BUFSHARE_S_NOT_FOUND;
		ret = -ENOENT;
	} else if (exp->mem) {
		*mem = exp->mem;
		*dmabuf = exp->dmabuf;
		get_dma_buf(*dmabuf);
		ret = 0;
	}
	bufshare_unlock(bd);
	return ret;
}

/**
 * bufshare_exp_quiesce() - begin or end that nothing writes to the memory of an export
 * @bd: the device
 * @fd: a program's descriptor of the export
 * @begins: which of the two
 * @status: where to put what the host said
 *
 * Return: 0 or a negative errno.
 */
int bufshare_exp_quiesce(struct bufshare_device *bd, int fd, bool begins, u32 *status)
{
	struct file *file = bufshare_exp_fget(bd, fd);
	struct bufshare_exp *exp;
	struct bufshare_mem *mem;
	struct dma_buf *dmabuf;
	int ret;

	if (IS_ERR(file))
		return PTR_ERR(file);
	exp = file->private_data;
	ret = bufshare_exp_mem(exp, begins, &mem, &dmabuf, status);
	if (ret)
		goto out;
	if (begins)
		ret = bufshare_quiesce_begin(exp, mem, status);
	else
		ret = bufshare_quiesce_end(mem, false, true, status);
	dma_buf_put(dmabuf);
out:
	fput(file);
	return ret;
}

/* From here on, fput() of the file undoes everything. Without a dma-buf it is a stream. */
static struct file *bufshare_exp_file(struct bufshare_device *bd, struct dma_buf *dmabuf)
{
	struct bufshare_exp *exp;
	struct file *file;

	exp = kzalloc_obj(*exp);
	if (!exp)
		return ERR_PTR(-ENOMEM);
	kref_init(&exp->ref);
	kref_get(&exp->ref);	/* the second is the backing's */
	exp->files = 1;
	init_waitqueue_head(&exp->wait);
	INIT_LIST_HEAD(&exp->kept);
	INIT_LIST_HEAD(&exp->news.node);
	INIT_LIST_HEAD(&exp->by_pusher);
	INIT_LIST_HEAD(&exp->by_push);
	INIT_WORK(&exp->release_work, bufshare_exp_release_work);
	exp->unexport_req = bufshare_unexport_alloc(NULL);
	if (!exp->unexport_req) {
		kfree(exp);
		return ERR_PTR(-ENOMEM);
	}
	exp->unexport_req->closing = true;
	exp->unexport_req->slow = true;
	file = anon_inode_getfile("[bufshare-export]", &bufshare_exp_fops, exp, O_RDWR);
	if (IS_ERR(file)) {
		bufshare_req_put(exp->unexport_req);
		kfree(exp);
		return file;
	}
	exp->bd = bufshare_device_get(bd);
	if (dmabuf)
		bufshare_backing_get(exp, dmabuf);
	bufshare_lock(bd);
	list_add_tail(&exp->node, &bd->exports);
	bufshare_unlock(bd);
	return file;
}

static int bufshare_access_order(const void *a, const void *b)
{
	const struct bufshare_access *one = a, *other = b;

	return one->peer < other->peer ? -1 : one->peer > other->peer;
}

/* What an EXPORT has in its caller's memory, and the stream that it names. */
static struct bufshare_export_said *bufshare_export_read(struct bufshare_device *bd,
							 struct bufshare_export *arg)
{
	struct bufshare_export_said *said;
	void *blob;
	int ret;

	said = kzalloc_obj(*said, GFP_KERNEL_ACCOUNT);
	if (!said)
		return ERR_PTR(-ENOMEM);
	said->num_acl = arg->num_acl;
	ret = bufshare_meta_read(bd, arg->meta, arg->meta_size, &said->meta, &arg->status);
	if (!ret && arg->flags & BUFSHARE_EXPORT_PART)
		ret = bufshare_exp_id(bd, arg->stream_fd, &said->stream, &arg->status);
	if (!ret)
		ret = bufshare_acl_read(arg->acl, arg->access_size, said->acl, arg->num_acl);
	if (!ret) {
		blob = memdup_user(u64_to_user_ptr(arg->blob), said->meta.blob_len);
		ret = PTR_ERR_OR_ZERO(blob);
	}
	if (ret) {
		kfree(said);
		return ERR_PTR(ret);
	}
	said->blob = blob;
	/* Lists of the same peers are the same. The host refuses a peer that is in one twice. */
	sort(said->acl, said->num_acl, sizeof(*said->acl), bufshare_access_order, NULL);
	return said;
}

/* Are two for the same peers, with the same rights? */
static bool bufshare_export_same_peers(const struct bufshare_export_said *a,
				       const struct bufshare_export_said *b)
{
	return a->num_acl == b->num_acl &&
	       !memcmp(a->acl, b->acl, a->num_acl * sizeof(*a->acl)) &&
	       !memcmp(&a->stream, &b->stream, sizeof(a->stream));
}

static bool bufshare_export_same_meta(const struct bufshare_export_said *a,
				      const struct bufshare_export_said *b)
{
	return !memcmp(&a->meta, &b->meta, sizeof(a->meta)) &&
	       !memcmp(a->blob, b->blob, a->meta.blob_len);
}

/* Can it become, or is it, what others attach to? */
static bool bufshare_exp_begins_locked(const struct bufshare_exp *exp)
{
	return !exp->closed && !exp->dead &&
	       (exp->wire == BUFSHARE_EXPORT_NEW || exp->wire == BUFSHARE_EXPORT_SENT ||
		exp->wire == BUFSHARE_EXPORT_LIVE);
}

/* The export of the same dma-buf to the same peers, or NULL. */
static struct bufshare_exp *bufshare_exp_same_locked(const struct bufshare_exp *exp)
{
	struct bufshare_exp *other;

	hash_for_each_possible(exp->bd->exports_by_dmabuf, other, by_dmabuf,
			       (unsigned long)exp->dmabuf) {
		if (other->dmabuf == exp->dmabuf && bufshare_exp_begins_locked(other) &&
		    bufshare_export_same_peers(other->said, exp->said))
			return other;
	}
	return NULL;
}

static bool bufshare_exp_is_made(struct bufshare_exp *exp)
{
	enum bufshare_export_wire wire = READ_ONCE(exp->wire);

	return (wire != BUFSHARE_EXPORT_NEW && wire != BUFSHARE_EXPORT_SENT) ||
	       READ_ONCE(exp->closed) || !READ_ONCE(exp->bd->alive);
}

/* Wait until the host has answered to an EXPORT of another program, or that was given up. */
static int bufshare_exp_wait_made_locked(struct bufshare_exp *exp, unsigned long until)
	__must_hold(&exp->bd->lock)
{
	struct bufshare_device *bd = exp->bd;
	long left;

	kref_get(&exp->ref);
	bufshare_unlock(bd);
	left = wait_event_killable_timeout(bd->idle, bufshare_exp_is_made(exp),
					   bufshare_time_left(until));
	/* It may be the last reference, whose end takes the lock. */
	kref_put(&exp->ref, bufshare_exp_free);
	bufshare_lock(bd);
	if (left < 0)
		return -EINTR;
	return left ? 0 : -ETIMEDOUT;
}

/*
 * Have an export be the one of its dma-buf to its peers. If there is one already it is
 * *same, with a file more and its reference.
 */
static int bufshare_exp_claim(struct bufshare_exp *exp, struct bufshare_exp **same)
{
	const unsigned long until = jiffies + bufshare_timeout();
	struct bufshare_device *bd = exp->bd;
	struct bufshare_exp *other;
	int ret = 0;

	bufshare_lock(bd);
	while ((other = bufshare_exp_same_locked(exp)) && other->wire != BUFSHARE_EXPORT_LIVE) {
		ret = bufshare_exp_wait_made_locked(other, until);
		if (!ret && !bd->alive)
			ret = -ENODEV;
		if (ret)
			goto out;
	}
	if (!other) {
		hash_add(bd->exports_by_dmabuf, &exp->by_dmabuf, (unsigned long)exp->dmabuf);
	} else if (bufshare_export_same_meta(other->said, exp->said)) {
		other->files++;
		kref_get(&other->ref);
		*same = other;
	} else {
		ret = -EEXIST;
	}
out:
	bufshare_unlock(bd);
	return ret;
}

static int bufshare_export_acl(struct virtio_bufshare_access *to,
			       const struct bufshare_access *from, u32 num, bool writable)
{
	u32 i;

	/* No list: as far as the operator, or the stream, allows, which may be to write. */
	if (!writable && !num)
		return -EACCES;
	for (i = 0; i < num; i++) {
		if (from[i].rights & BUFSHARE_WRITE && !writable)
			return -EACCES;
		to[i].peer = cpu_to_le64(from[i].peer);
		to[i].rights = cpu_to_le32(from[i].rights);
	}
	return 0;
}

static struct bufshare_req *bufshare_export_request(const struct bufshare_export *arg,
						    const struct bufshare_export_said *said,
						    const struct bufshare_extents *ext,
						    struct bufshare_exp *exp)
{
	/* Who may only read it cannot have others write it. */
	bool writable = !exp->dmabuf || exp->dmabuf->file->f_mode & FMODE_WRITE;
	size_t acl_len = arg->num_acl * sizeof(struct virtio_bufshare_access);
	size_t ext_len = ext->nr * sizeof(*ext->list);
	struct virtio_bufshare_export *out;
	struct virtio_bufshare_meta *meta;
	struct bufshare_req *req;
	u8 *tail;
	int ret;

	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_EXPORT, sizeof(*out),
				 sizeof(*meta) + acl_len + ext_len + said->meta.blob_len,
				 sizeof(struct virtio_bufshare_export_resp), 0);
	if (!req)
		return ERR_PTR(-ENOMEM);
	out = req->out;
	out->size = cpu_to_le64(exp->size);
	out->backing = cpu_to_le32(exp->dmabuf ? VIRTIO_BUFSHARE_BACKING_EXTENTS :
						 VIRTIO_BUFSHARE_BACKING_STREAM);
	out->stream = said->stream;
	out->meta_size = cpu_to_le32(sizeof(*meta));
	out->num_acl = cpu_to_le32(arg->num_acl);
	out->access_size = cpu_to_le32(sizeof(struct virtio_bufshare_access));
	out->num_extents = cpu_to_le32(ext->nr);
	out->extent_size = cpu_to_le32(sizeof(*ext->list));

	meta = (struct virtio_bufshare_meta *)(out + 1);
	bufshare_meta_to_wire(meta, &said->meta);
	tail = (u8 *)(meta + 1);
	ret = bufshare_export_acl((struct virtio_bufshare_access *)tail, said->acl, arg->num_acl,
				  writable);
	if (ret) {
		bufshare_req_put(req);
		return ERR_PTR(ret);
	}
	memcpy(tail + acl_len, ext->list, ext_len);
	memcpy(tail + acl_len + ext_len, said->blob, said->meta.blob_len);
	return req;
}

/* From here on, a stop waits for the export. */
static int bufshare_export_send(struct bufshare_exp *exp, const struct bufshare_export *arg,
				const struct bufshare_export_said *said,
				const struct bufshare_extents *ext, struct bufshare_req **sent)
{
	struct bufshare_device *bd = exp->bd;
	struct bufshare_req *req;
	int ret;

	req = bufshare_export_request(arg, said, ext, exp);
	if (IS_ERR(req))
		return PTR_ERR(req);
	req->owner = exp;
	req->complete = bufshare_export_complete;
	bufshare_lock(bd);
	exp->wire = BUFSHARE_EXPORT_SENT;
	ret = bufshare_send_locked(bd, req);
	if (ret)
		exp->wire = BUFSHARE_EXPORT_NEW;
	bufshare_unlock(bd);
	if (ret)
		bufshare_req_put(req);
	else
		*sent = req;
	return ret;
}

/* Find the memory, if it has any, and send the request. */
static int bufshare_export_begin(struct bufshare_exp *exp, struct bufshare_export *arg,
				 const struct bufshare_export_said *said,
				 struct bufshare_req **sent)
{
	struct bufshare_device *bd = exp->bd;
	struct bufshare_extents ext = {
		.max = bd->caps.max_extents,
		.align = bd->caps.map_align,
	};
	int ret;

	if (!exp->dmabuf)
		return bufshare_export_send(exp, arg, said, &ext, sent);
	ext.list = kvmalloc_objs(*ext.list, ext.max);
	if (!ext.list)
		return -ENOMEM;
	ret = bufshare_backing_extents(exp, &ext, &arg->status);
	if (!ret) {
		exp->nr_extents = ext.nr;
		ret = bufshare_export_send(exp, arg, said, &ext, sent);
	}
	kvfree(ext.list);
	return ret;
}

/* What the program is told. */
static int bufshare_exp_answer(struct bufshare_exp *exp, struct bufshare_export *arg)
{
	struct bufshare_device *bd = exp->bd;
	int ret = 0;

	bufshare_lock(bd);
	if (exp->dead)
		ret = bd->alive ? -ESTALE : -ENODEV;
	memcpy(&arg->id, &exp->id, sizeof(arg->id));
	arg->generation = exp->generation;
	bufshare_unlock(bd);
	return ret;
}

static int bufshare_export_run(struct bufshare_exp *exp, struct bufshare_export *arg,
			       const struct bufshare_export_said *said)
{
	struct bufshare_device *bd = exp->bd;
	struct bufshare_req *req = NULL;
	int ret;

	if (!bufshare_enter(bd))
		return -ENODEV;
	ret = bufshare_export_begin(exp, arg, said, &req);
	if (ret) {
		/* At once: the file's end comes too late for a driver that is unbound. */
		bufshare_lock(bd);
		bufshare_exp_gone_locked(exp);
		bufshare_unlock(bd);
		wake_up_all(&bd->idle);
	}
	bufshare_exit(bd);
	if (ret) {
		/* What was pinned may be pinned again when this call returns. */
		flush_work(&exp->release_work);
		return ret;
	}
	ret = bufshare_wait(bd, req, &arg->status);
	bufshare_req_put(req);
	if (ret)
		return ret;

	return bufshare_exp_answer(exp, arg);
}

/* The file of an export of what the program names. */
static struct file *bufshare_export_open(struct bufshare_device *bd,
					 const struct bufshare_export *arg)
{
	struct dma_buf *dmabuf;
	struct file *file;

	if (arg->flags & BUFSHARE_EXPORT_STREAM)
		return bufshare_exp_file(bd, NULL);
	dmabuf = dma_buf_get(arg->dmabuf_fd);
	if (IS_ERR(dmabuf))
		return ERR_CAST(dmabuf);
	/* It is its owner's to share. */
	file = ERR_PTR(-EPERM);
	if (!bufshare_is_import(dmabuf))
		file = bufshare_exp_file(bd, dmabuf);
	dma_buf_put(dmabuf);
	return file;
}

/* Can it be shared at all? */
static int bufshare_export_check(const struct bufshare_exp *exp, struct bufshare_export *arg)
{
	if (!exp->dmabuf)
		return 0;
	if (!PAGE_ALIGNED(exp->size) || !exp->size)
		return -EINVAL;
	if (exp->size <= exp->bd->caps.max_buffer_size)
		return 0;
	arg->status = VIRTIO_BUFSHARE_S_TOO_LARGE;
	return -EFBIG;
}

/* Another file of an export, which takes over a file of the count and its reference. */
static struct file *bufshare_exp_reopen(struct bufshare_exp *exp)
{
	struct file *file;

	file = anon_inode_getfile("[bufshare-export]", &bufshare_exp_fops, exp, O_RDWR);
	if (IS_ERR(file))
		bufshare_exp_close(exp);
	return file;
}

/* The export of a file, or the one that there is already, whose file it is then. */
static int bufshare_export(struct file **file, struct bufshare_export *arg)
{
	struct bufshare_exp *exp = (*file)->private_data, *same = NULL;
	struct file *other;
	int ret;

	ret = bufshare_export_check(exp, arg);
	if (!ret && exp->dmabuf)
		ret = bufshare_exp_claim(exp, &same);
	if (ret)
		return ret;
	if (!same)
		return bufshare_export_run(exp, arg, exp->said);
	other = bufshare_exp_reopen(same);
	if (IS_ERR(other))
		return PTR_ERR(other);
	fput(*file);
	*file = other;
	return bufshare_exp_answer(same, arg);
}

static bool bufshare_export_arg_valid(const struct bufshare_export *arg)
{
	const bool stream = arg->flags & BUFSHARE_EXPORT_STREAM;
	const bool part = arg->flags & BUFSHARE_EXPORT_PART;

	if (arg->flags & ~(BUFSHARE_EXPORT_STREAM | BUFSHARE_EXPORT_PART) || arg->reserved ||
	    arg->fd_flags & ~O_CLOEXEC || arg->num_acl > BUFSHARE_MAX_ACL)
		return false;
	if (stream && (part || arg->dmabuf_fd != -1))
		return false;
	return part ? !arg->num_acl : !arg->stream_fd;
}

/**
 * bufshare_ioc_export() - EXPORT
 * @bd: the device
 * @arg: what is asked and answered
 * @newfd: the file whose end is the end of the export
 *
 * Return: 0 or a negative errno.
 */
int bufshare_ioc_export(struct bufshare_device *bd, struct bufshare_export *arg,
			struct bufshare_newfd *newfd)
{
	struct bufshare_export_said *said;
	struct bufshare_exp *exp;
	struct file *file;
	int ret;

	if (!bufshare_export_arg_valid(arg))
		return -EINVAL;
	/* Encrypted memory: the host would show ciphertext to others. */
	if (cc_platform_has(CC_ATTR_GUEST_MEM_ENCRYPT))
		return -EOPNOTSUPP;

	said = bufshare_export_read(bd, arg);
	if (IS_ERR(said))
		return PTR_ERR(said);
	file = bufshare_export_open(bd, arg);
	if (IS_ERR(file)) {
		bufshare_export_said_free(said);
		return PTR_ERR(file);
	}
	exp = file->private_data;
	exp->said = said;
	ret = bufshare_export(&file, arg);
	if (!ret)
		ret = bufshare_newfd_prepare(newfd, arg->fd_flags, file);
	if (ret)
		fput(file);
	else
		arg->export_fd = newfd->fd;
	return ret;
}
