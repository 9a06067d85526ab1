// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_main.c - the driver of the buffer-sharing virtio device
 */
#include <linux/bitops.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/device.h>
#include <linux/dma-mapping.h>
#include <linux/errno.h>
#include <linux/ktime.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/reboot.h>
#include <linux/rwsem.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>

#include "bufshare_priv.h"

/* The wire: what the compiler lays out is what the header says. */
static_assert(sizeof(struct virtio_bufshare_config) == 64);
static_assert(sizeof(struct virtio_bufshare_req) == 16);
static_assert(sizeof(struct virtio_bufshare_resp) == 16);
static_assert(sizeof(struct virtio_bufshare_id) == 16);
static_assert(sizeof(struct virtio_bufshare_extent) == 16);
static_assert(sizeof(struct virtio_bufshare_access) == 16);
static_assert(sizeof(struct virtio_bufshare_plane) == 16);
static_assert(sizeof(struct virtio_bufshare_image) == 88);
static_assert(sizeof(struct virtio_bufshare_meta) == 128);
static_assert(sizeof(struct virtio_bufshare_get_caps) == 24);
static_assert(sizeof(struct virtio_bufshare_get_caps_resp) == 120);
static_assert(sizeof(struct virtio_bufshare_cursor) == 24);
static_assert(sizeof(struct virtio_bufshare_peer) == 56);
static_assert(sizeof(struct virtio_bufshare_list_resp) == 32);
static_assert(sizeof(struct virtio_bufshare_export) == 160);
static_assert(sizeof(struct virtio_bufshare_export_resp) == 40);
static_assert(sizeof(struct virtio_bufshare_by_id) == 32);
static_assert(sizeof(struct virtio_bufshare_attach) == 40);
static_assert(sizeof(struct virtio_bufshare_attach_resp) == 64);
static_assert(sizeof(struct virtio_bufshare_by_handle) == 24);
static_assert(sizeof(struct virtio_bufshare_map) == 40);
static_assert(sizeof(struct virtio_bufshare_map_resp) == 40);
static_assert(sizeof(struct virtio_bufshare_sync) == 64);
static_assert(sizeof(struct virtio_bufshare_set_meta) == 160);
static_assert(sizeof(struct virtio_bufshare_set_meta_resp) == 24);
static_assert(sizeof(struct virtio_bufshare_get_meta_resp) == 152);
static_assert(sizeof(struct virtio_bufshare_buffer) == 104);
static_assert(sizeof(struct virtio_bufshare_query_resp) == 120);
static_assert(sizeof(struct virtio_bufshare_event) == 64);

/* The user interface: the same on 32 and 64 bits. */
static_assert(sizeof(struct bufshare_info) == 96);
static_assert(sizeof(struct bufshare_table) == 24);
static_assert(sizeof(struct bufshare_alloc) == 24);
static_assert(sizeof(struct bufshare_export) == 192);
static_assert(sizeof(struct bufshare_import) == 72);
static_assert(sizeof(struct bufshare_meta_io) == 168);
static_assert(sizeof(struct bufshare_query) == 112);

static_assert(VIRTIO_BUFSHARE_READ == BUFSHARE_READ && VIRTIO_BUFSHARE_WRITE == BUFSHARE_WRITE);

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

/* Protects the virtio device's @priv: a reset of the function does not hold its lock. */
static DEFINE_SPINLOCK(bufshare_priv_lock);

/* Read: a callback of a reset runs. The core does not hold the module meanwhile. */
static DECLARE_RWSEM(bufshare_in_reset);

/* Bit 0: a device is bound. There is one /dev/bufshare. */
static unsigned long bufshare_bound;

/*
 * Releases the backing of exports. It calls other drivers, which may flush
 * ordinary queues (so no WQ_MEM_RECLAIM) and take their time (so nothing else
 * runs here, and one export does not wait for another). It outlives a binding,
 * since the drivers that it calls may not be done in time.
 */
struct workqueue_struct *bufshare_release_wq;

static void bufshare_device_free(struct kref *ref)
{
	struct bufshare_device *bd = container_of(ref, struct bufshare_device, ref);

	put_device(bd->dma_dev);
	put_device(bd->dev);
	kfree(bd->event_bufs);
	kfree(bd);
}

/**
 * bufshare_device_put() - drop a reference
 * @bd: the device
 */
void bufshare_device_put(struct bufshare_device *bd)
{
	kref_put(&bd->ref, bufshare_device_free);
}

/**
 * bufshare_enter() - begin to use what there is only while the driver is bound
 * @bd: the device
 *
 * That is the window region and @dma_dev; requests need no such care. The driver's
 * removal waits for the bufshare_exit() that follows. So memory of a program is not
 * touched in between: a program can have that take as long as it likes.
 *
 * Return: false if the driver is being unbound, then nothing has begun.
 */
bool bufshare_enter(struct bufshare_device *bd)
{
	/* It is written only by remove(). */
	if (!down_read_trylock(&bd->inside))
		return false;
	if (!READ_ONCE(bd->unbinding))
		return true;
	up_read(&bd->inside);
	return false;
}

/**
 * bufshare_exit() - the end of what bufshare_enter() began
 * @bd: the device
 */
void bufshare_exit(struct bufshare_device *bd)
{
	up_read(&bd->inside);
}

static struct bufshare_device *bufshare_device_alloc(struct virtio_device *vdev)
{
	struct bufshare_device *bd;

	bd = kzalloc_obj(*bd);
	if (!bd)
		return NULL;
	bd->event_bufs = kzalloc_objs(*bd->event_bufs, BUFSHARE_NUM_EVENT_BUFS);
	if (!bd->event_bufs) {
		kfree(bd);
		return NULL;
	}
	kref_init(&bd->ref);
	bd->vdev = vdev;
	bd->dev = get_device(&vdev->dev);
	bd->dma_dev = get_device(vdev->dev.parent);
	mutex_init(&bd->session);
	init_rwsem(&bd->inside);
	spin_lock_init(&bd->lock);
	INIT_LIST_HEAD(&bd->pending);
	INIT_LIST_HEAD(&bd->inflight);
	INIT_LIST_HEAD(&bd->parked);
	INIT_LIST_HEAD(&bd->exports);
	INIT_LIST_HEAD(&bd->imports);
	INIT_WORK(&bd->event_work, bufshare_event_work);
	INIT_DELAYED_WORK(&bd->kept_work, bufshare_kept_work);
	init_waitqueue_head(&bd->idle);
	mutex_init(&bd->files_lock);
	INIT_LIST_HEAD(&bd->files);
	return bd;
}

/*
 * The addresses of an EXPORT are guest-physical. Those that the DMA interface
 * gives are so only without an IOMMU, an offset or bounce buffers in between:
 * ask it for a page.
 */
static bool bufshare_dma_is_phys(struct bufshare_device *bd)
{
	struct page *page;
	dma_addr_t addr;
	bool same;

	if (virtio_has_feature(bd->vdev, VIRTIO_F_ACCESS_PLATFORM))
		return false;
	page = alloc_page(GFP_KERNEL);
	if (!page)
		return false;
	addr = dma_map_page(bd->dma_dev, page, 0, PAGE_SIZE, DMA_BIDIRECTIONAL);
	same = !dma_mapping_error(bd->dma_dev, addr);
	if (same) {
		same = addr == page_to_phys(page);
		dma_unmap_page(bd->dma_dev, addr, PAGE_SIZE, DMA_BIDIRECTIONAL);
	}
	__free_page(page);
	return same;
}

/*
 * Foreign buffers are mapped for our parent, which has the limits of a PCI
 * function whose driver says nothing: pieces of 64 KiB, none across 4 GiB. The
 * addresses go to the host, which has no such limit. No other driver maps for a
 * virtio device's parent meanwhile; the next one finds it as it was.
 */
static void bufshare_dma_limits_lift(struct bufshare_device *bd)
{
	if (!bd->dma_dev->dma_parms)
		return;
	bd->max_seg_size = bd->dma_dev->dma_parms->max_segment_size;
	bd->seg_boundary = bd->dma_dev->dma_parms->segment_boundary_mask;
	dma_set_max_seg_size(bd->dma_dev, UINT_MAX);
	dma_set_seg_boundary(bd->dma_dev, ULONG_MAX);
}

static void bufshare_dma_limits_restore(struct bufshare_device *bd)
{
	if (!bd->dma_dev->dma_parms)
		return;
	dma_set_max_seg_size(bd->dma_dev, bd->max_seg_size);
	dma_set_seg_boundary(bd->dma_dev, bd->seg_boundary);
}

/* What the device says of itself, as far as it makes sense. */
static int bufshare_parse_caps(struct bufshare_device *bd,
			       const struct virtio_bufshare_config *config,
			       struct bufshare_caps *to)
{
	struct bufshare_caps caps = {
		.version = le32_to_cpu(config->version),
		.caps = le32_to_cpu(config->caps),
		.max_windows = le32_to_cpu(config->max_windows),
		.max_extents = min(le32_to_cpu(config->max_extents), VIRTIO_BUFSHARE_MAX_EXTENTS),
		.max_buffers = le32_to_cpu(config->max_buffers),
		.max_attachments = le32_to_cpu(config->max_attachments),
		.max_blob = min(le32_to_cpu(config->max_blob), VIRTIO_BUFSHARE_MAX_BLOB),
		.map_align = le32_to_cpu(config->map_align),
		.shm_size = le64_to_cpu(config->shm_size),
		.max_buffer_size = le64_to_cpu(config->max_buffer_size),
		.peer_id = le64_to_cpu(config->peer_id),
	};

	if (!caps.version) {
		dev_err(bd->dev, "this VM was reset with buffers mapped, which its VMM does not survive: power it off and on\n");
		return -ENODEV;
	}
	if (config->reserved || !is_power_of_2(caps.map_align) ||
	    caps.map_align > PAGE_SIZE << MAX_PAGE_ORDER || !caps.max_extents) {
		dev_err(bd->dev, "configuration space: version %u, alignment %u, %u extents: not a buffer-sharing device of this driver's kind\n",
			caps.version, caps.map_align, caps.max_extents);
		return -EINVAL;
	}
	if (!bd->shm)
		caps.caps &= ~VIRTIO_BUFSHARE_CAP_MAP;
	*to = caps;
	return 0;
}

/* Programs look at it, if the function was reset under them. */
static void bufshare_set_caps(struct bufshare_device *bd, const struct bufshare_caps *caps,
			      const u8 *name)
{
	bufshare_lock(bd);
	bd->caps = *caps;
	if (name)
		memcpy(bd->name, name, sizeof(bd->name));
	bufshare_unlock(bd);
}

/*
 * The room that a PCI device has for its configuration. virtio_pci takes a read
 * beyond it for a bug of ours, and no virtio interface reports it. This finds
 * the same capability as virtio_pci: the first whose BAR exists.
 */
static u32 bufshare_config_room(struct bufshare_device *bd)
{
	struct pci_dev *pdev;
	u8 type, bar;
	u32 len = 0;
	int pos;

	if (!dev_is_pci(bd->dma_dev))
		return U32_MAX;
	pdev = to_pci_dev(bd->dma_dev);
	for (pos = pci_find_capability(pdev, PCI_CAP_ID_VNDR); pos;
	     pos = pci_find_next_capability(pdev, pos, PCI_CAP_ID_VNDR)) {
		pci_read_config_byte(pdev, pos + offsetof(struct virtio_pci_cap, cfg_type), &type);
		pci_read_config_byte(pdev, pos + offsetof(struct virtio_pci_cap, bar), &bar);
		if (type != VIRTIO_PCI_CAP_DEVICE_CFG || bar >= PCI_STD_NUM_BARS ||
		    !pci_resource_len(pdev, bar) ||
		    !(pci_resource_flags(pdev, bar) & (IORESOURCE_IO | IORESOURCE_MEM)))
			continue;
		pci_read_config_dword(pdev, pos + offsetof(struct virtio_pci_cap, length), &len);
		break;
	}
	return len;
}

static int bufshare_read_config(struct bufshare_device *bd)
{
	struct virtio_bufshare_config config;
	u32 room = bufshare_config_room(bd);
	struct bufshare_caps caps;
	int ret;

	if (room < sizeof(config)) {
		dev_err(bd->dev, "the VMM gives the device %u bytes of configuration space, it needs %zu\n",
			room, sizeof(config));
		return -EINVAL;
	}
	virtio_cread_bytes(bd->vdev, 0, &config, sizeof(config));
	ret = bufshare_parse_caps(bd, &config, &caps);
	if (!ret)
		bufshare_set_caps(bd, &caps, NULL);
	return ret;
}

static int bufshare_ask_caps(struct bufshare_device *bd, bool killable,
			     struct virtio_bufshare_get_caps_resp *resp)
{
	struct virtio_bufshare_get_caps *out;
	struct bufshare_req *req;
	int ret;

	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_GET_CAPS, sizeof(*out), sizeof(*resp));
	if (!req)
		return -ENOMEM;
	out = req->out;
	out->version = cpu_to_le32(VIRTIO_BUFSHARE_VERSION);
	bufshare_lock(bd);
	ret = bufshare_send_locked(bd, req);
	bufshare_unlock(bd);
	if (!ret)
		ret = bufshare_wait_for(bd, req, bufshare_timeout(), killable, NULL);
	if (!ret)
		memcpy(resp, req->in, sizeof(*resp));
	bufshare_req_put(req);
	return ret;
}

/**
 * bufshare_get_caps() - ask the device for what changes of its capabilities
 * @bd: the device
 * @windows_used: VMM mappings that this VM holds
 *
 * Return: 0 or a negative errno.
 */
int bufshare_get_caps(struct bufshare_device *bd, u32 *windows_used)
{
	struct virtio_bufshare_get_caps_resp resp;
	int ret;

	ret = bufshare_ask_caps(bd, true, &resp);
	if (!ret)
		*windows_used = le32_to_cpu(resp.windows_used);
	return ret;
}

static int bufshare_greet(struct bufshare_device *bd)
{
	struct virtio_bufshare_get_caps_resp resp;
	struct bufshare_caps caps;
	int ret;

	/* If who binds the driver is killed, the device is of use all the same. */
	ret = bufshare_ask_caps(bd, false, &resp);
	if (!ret)
		ret = bufshare_parse_caps(bd, &resp.config, &caps);
	if (ret) {
		dev_err(bd->dev, "the device did not report its capabilities: %d\n", ret);
		return ret;
	}
	if (caps.version != VIRTIO_BUFSHARE_VERSION) {
		dev_err(bd->dev, "the device wants version %u, this driver speaks %u\n",
			caps.version, VIRTIO_BUFSHARE_VERSION);
		return -EPROTO;
	}
	bufshare_set_caps(bd, &caps, resp.name);
	return 0;
}

/* Queues, events, and the first words. On failure the device has been reset. */
static int bufshare_start(struct bufshare_device *bd)
{
	struct virtqueue_info infos[VIRTIO_BUFSHARE_NUM_QUEUES] = {
		[VIRTIO_BUFSHARE_QUEUE_CONTROL] = { "control", bufshare_ctrl_done },
		[VIRTIO_BUFSHARE_QUEUE_EVENT] = { "event", bufshare_event_done },
	};
	struct virtqueue *vqs[VIRTIO_BUFSHARE_NUM_QUEUES];
	int ret;

	ret = bufshare_read_config(bd);
	if (ret)
		return ret;
	ret = virtio_find_vqs(bd->vdev, VIRTIO_BUFSHARE_NUM_QUEUES, vqs, infos, NULL);
	if (ret) {
		dev_err(bd->dev, "no virtqueues: %d\n", ret);
		return ret;
	}
	bd->event_seq = 0;
	bufshare_lock(bd);
	bd->ctrl = vqs[VIRTIO_BUFSHARE_QUEUE_CONTROL];
	bd->eventq = vqs[VIRTIO_BUFSHARE_QUEUE_EVENT];
	bd->max_slow = bufshare_max_slow(bd->ctrl);
	bufshare_unlock(bd);

	virtio_device_ready(bd->vdev);
	ret = bufshare_event_fill(bd);
	if (ret)
		return ret;
	bufshare_lock(bd);
	WRITE_ONCE(bd->alive, true);
	bd->leaving = false;
	bufshare_unlock(bd);
	/* Events may have come while we were not alive. */
	queue_work(bd->wq, &bd->event_work);
	ret = bufshare_greet(bd);
	if (!ret)
		bufshare_kept_ask(bd);
	return ret;
}

/*
 * Have the host unmap the windows that it keeps for our next MAP, until then at the
 * latest. False: no answer.
 */
static bool bufshare_flush(struct bufshare_device *bd, unsigned long until)
{
	struct bufshare_req *req;
	long left;
	int ret;

	if (!bd->shm || !READ_ONCE(bd->alive))
		return true;
	left = clamp((long)(until - jiffies), 1L, bufshare_timeout());
	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_FLUSH, sizeof(struct virtio_bufshare_req),
				 sizeof(struct virtio_bufshare_resp));
	if (!req)
		return true;
	req->closing = true;
	bufshare_lock(bd);
	ret = bufshare_send_locked(bd, req);
	bufshare_unlock(bd);
	/* Nor is a window left mapped because who unbinds the driver is killed. */
	if (!ret)
		ret = bufshare_wait_for(bd, req, left, false, NULL);
	if (ret)
		dev_warn(bd->dev, "windows may be left mapped: %d\n", ret);
	bufshare_req_put(req);
	return ret != -ETIMEDOUT;
}

/* How many UNMAPs were sent: each may leave a window with the host. */
static u64 bufshare_unmaps(struct bufshare_device *bd)
{
	u64 unmaps;

	bufshare_lock(bd);
	unmaps = bd->unmaps;
	bufshare_unlock(bd);
	return unmaps;
}

/*
 * The end of a session, with whatever is open: every export is ended; no user
 * space mapping of a window is left; the windows are given back (QEMU 11.1
 * crashes at the next start if its reset of the device has to drop one); nobody
 * waits for the host any more; the device is reset. What the host has not said
 * to be out of others' reach by then is never given back.
 *
 * Windows come first: it is other VMs that keep back the answers for exports. A
 * host that does not even answer FLUSH is waited for once. While the exports are
 * waited for, other drivers may end their use of imports: those windows are flushed
 * once more, whether or not the exports were answered. All that takes at most two
 * timeouts.
 */
static void bufshare_stop(struct bufshare_device *bd)
{
	unsigned long until;
	u64 unmaps;

	bufshare_lock(bd);
	bd->leaving = true;
	bufshare_exports_end_locked(bd);
	bufshare_unlock(bd);
	bufshare_imports_revoke_all(bd);
	bufshare_imports_wait_left(bd);
	until = jiffies + 2 * bufshare_timeout();
	unmaps = bufshare_unmaps(bd);
	if (bufshare_flush(bd, until)) {
		bufshare_exports_wait_answered(bd);
		if (bufshare_unmaps(bd) != unmaps)
			bufshare_flush(bd, until);
	}
	/* A REVOKED that has come may be what lets an export's memory go. */
	flush_work(&bd->event_work);

	bufshare_lock(bd);
	bufshare_fail_locked(bd);
	bufshare_unlock(bd);
	bufshare_files_wake(bd);
	cancel_delayed_work_sync(&bd->kept_work);
	bufshare_notified(bd);

	virtio_reset_device(bd->vdev);
	cancel_work_sync(&bd->event_work);
	bufshare_cancel_all(bd);
	bufshare_imports_gone(bd);
	bufshare_exports_keep(bd);
	bd->vdev->config->del_vqs(bd->vdev);
}

/* A step of a reset has ended: the time for the next begins. With @session held. */
static void bufshare_reset_renew(struct bufshare_device *bd)
{
	if (bd->resetting)
		bd->reset_until = ktime_add_ms(ktime_get(), BUFSHARE_RESET_WAIT_MS);
}

/* End the session, if there is one. */
static void bufshare_leave(struct bufshare_device *bd)
{
	mutex_lock(&bd->session);
	if (bd->ctrl)
		bufshare_stop(bd);
	bufshare_reset_renew(bd);
	mutex_unlock(&bd->session);
}

/*
 * Before a reboot or kexec: leave in order, as at remove. A notifier does it, as
 * virtio drivers of Linux 6.12 have no shutdown callback. A reboot by ctrl-alt-del
 * does not wait for a suspend that is under way.
 */
static int bufshare_reboot(struct notifier_block *nb, unsigned long event, void *data)
{
	struct bufshare_device *bd = container_of(nb, struct bufshare_device, reboot);

	mutex_lock(&bd->session);
	bd->rebooting = true;
	mutex_unlock(&bd->session);
	bufshare_leave(bd);
	return NOTIFY_DONE;
}

static void bufshare_set_priv(struct virtio_device *vdev, struct bufshare_device *bd)
{
	spin_lock(&bufshare_priv_lock);
	vdev->priv = bd;
	spin_unlock(&bufshare_priv_lock);
}

static int bufshare_probe(struct virtio_device *vdev)
{
	struct bufshare_device *bd;
	int ret;

	if (!vdev->config->get || !virtio_has_feature(vdev, VIRTIO_F_VERSION_1)) {
		dev_err(&vdev->dev, "not a virtio 1 device with a configuration space\n");
		return -EINVAL;
	}
	if (test_and_set_bit(0, &bufshare_bound)) {
		dev_err(&vdev->dev, "this VM has a buffer-sharing device already, one is supported\n");
		return -EBUSY;
	}
	ret = -ENOMEM;
	bd = bufshare_device_alloc(vdev);
	if (!bd)
		goto err_bound;
	bufshare_set_priv(vdev, bd);
	bd->wq = alloc_ordered_workqueue("bufshare", WQ_HIGHPRI | WQ_MEM_RECLAIM);
	if (!bd->wq)
		goto err_device;
	/* It calls other drivers, which may flush ordinary queues: no WQ_MEM_RECLAIM. */
	bd->revoke_wq = alloc_workqueue("bufshare-revoke", WQ_UNBOUND | WQ_HIGHPRI, 0);
	if (!bd->revoke_wq)
		goto err_wq;

	bufshare_reset_forbid(bd);
	bufshare_dma_limits_lift(bd);
	bd->dma_is_phys = bufshare_dma_is_phys(bd);
	bd->shm = bufshare_shm_open(bd);
	if (IS_ERR(bd->shm)) {
		ret = PTR_ERR(bd->shm);
		goto err_revoke_wq;
	}
	mutex_lock(&bd->session);
	ret = bufshare_start(bd);
	mutex_unlock(&bd->session);
	if (ret)
		goto err_start;
	bd->reboot.notifier_call = bufshare_reboot;
	ret = register_reboot_notifier(&bd->reboot);
	if (ret)
		goto err_start;

	bufshare_debugfs_add(bd);
	bd->misc.minor = MISC_DYNAMIC_MINOR;
	bd->misc.name = "bufshare";
	bd->misc.fops = &bufshare_fops;
	bd->misc.parent = &vdev->dev;
	bd->misc.mode = 0660;
	bd->misc.groups = bufshare_groups;
	ret = misc_register(&bd->misc);
	if (ret)
		goto err_debugfs;

	dev_info(bd->dev, "peer %llu \"%.*s\", %s%s\n", bd->caps.peer_id,
		 VIRTIO_BUFSHARE_NAME_LEN, bd->name,
		 bd->caps.caps & VIRTIO_BUFSHARE_CAP_MAP ? "exports and imports" : "exports only",
		 bd->dma_is_phys ? "" : ", behind an IOMMU: exports own buffers only");
	return 0;

err_debugfs:
	debugfs_remove_recursive(bd->debugfs);
	unregister_reboot_notifier(&bd->reboot);
err_start:
	bufshare_leave(bd);
	bufshare_shm_put(bd->shm);
err_revoke_wq:
	bufshare_dma_limits_restore(bd);
	bufshare_reset_allow(bd);
	destroy_workqueue(bd->revoke_wq);
err_wq:
	destroy_workqueue(bd->wq);
err_device:
	bufshare_set_priv(vdev, NULL);
	bufshare_device_put(bd);
err_bound:
	clear_bit(0, &bufshare_bound);
	return ret;
}

/*
 * No session begins any more. A reset of the function that has begun ends
 * first, with all that the core does after our last callback: the device may
 * not do what is asked of it until then, or has its status written by two. The
 * core has no lock for that. A reset holds the lock of the PCI function, an
 * unbind that of the virtio device, so neither must wait for the other's
 * without a limit. An unbind of the PCI function's driver holds both: then no
 * reset is under way, and what is waited for here is at most the rest of the
 * last one's time.
 */
static void bufshare_begin_unbinding(struct bufshare_device *bd)
{
	bool over;

	mutex_lock(&bd->session);
	for (;;) {
		over = device_trylock(bd->dma_dev);
		if (over)
			device_unlock(bd->dma_dev);
		if (over || ktime_after(ktime_get(), bd->reset_until))
			break;
		mutex_unlock(&bd->session);
		msleep(BUFSHARE_RESET_POLL_MS);
		mutex_lock(&bd->session);
	}
	if (bd->resetting && !over)
		dev_err(bd->dev, "a reset of the function has not ended, or failed: unbinding all the same\n");
	WRITE_ONCE(bd->unbinding, true);
	mutex_unlock(&bd->session);
}

static void bufshare_remove(struct virtio_device *vdev)
{
	struct bufshare_device *bd = vdev->priv;

	misc_deregister(&bd->misc);
	unregister_reboot_notifier(&bd->reboot);
	bufshare_begin_unbinding(bd);
	bufshare_leave(bd);
	/* Also when there was no session: the core wants it, and one may have failed to begin. */
	virtio_reset_device(vdev);
	/* No ioctl waits for the host any more: have the last ones leave. */
	down_write(&bd->inside);
	up_write(&bd->inside);
	bufshare_exports_wait_released(bd);
	bufshare_dma_limits_restore(bd);
	bufshare_reset_allow(bd);
	debugfs_remove_recursive(bd->debugfs);
	destroy_workqueue(bd->revoke_wq);
	destroy_workqueue(bd->wq);
	bufshare_shm_put(bd->shm);
	bufshare_set_priv(vdev, NULL);
	bufshare_device_put(bd);
	clear_bit(0, &bufshare_bound);
}

#if defined(CONFIG_PM_SLEEP) || defined(BUFSHARE_HAVE_RESET_CALLBACKS)
/* Before a sleep of the system or a reset of the PCI function. */
static void bufshare_suspend(struct bufshare_device *bd)
{
	bufshare_leave(bd);
	/* Other drivers' buffers are given back before their devices sleep. */
	bufshare_exports_wait_released(bd);
}

static int bufshare_resume(struct bufshare_device *bd)
{
	int ret;

	mutex_lock(&bd->session);
	ret = bd->rebooting || bd->unbinding ? -ESHUTDOWN : bufshare_start(bd);
	bufshare_reset_renew(bd);
	mutex_unlock(&bd->session);
	if (ret) {
		bufshare_leave(bd);
		return ret;
	}
	/* What there was is gone: have programs look anew. */
	bufshare_event_lost(bd, 0);
	return 0;
}
#endif

#ifdef CONFIG_PM_SLEEP
/*
 * No remove() runs meanwhile: tasks that unbind keep a sleep from beginning, and it holds
 * the lock of the PCI function, as an unplug does.
 */
static int bufshare_freeze(struct virtio_device *vdev)
{
	bufshare_suspend(vdev->priv);
	return 0;
}

static int bufshare_restore(struct virtio_device *vdev)
{
	return bufshare_resume(vdev->priv);
}
#endif

#ifdef BUFSHARE_HAVE_RESET_CALLBACKS
/* A reference to the device, or NULL. A remove() that no longer waits may end at any time. */
static struct bufshare_device *bufshare_device_of(struct virtio_device *vdev)
{
	struct bufshare_device *bd;

	spin_lock(&bufshare_priv_lock);
	bd = vdev->priv;
	if (bd)
		bufshare_device_get(bd);
	spin_unlock(&bufshare_priv_lock);
	return bd;
}

static void bufshare_set_resetting(struct bufshare_device *bd, bool resetting)
{
	mutex_lock(&bd->session);
	bd->resetting = resetting;
	bd->reset_until = ktime_add_ms(ktime_get(), BUFSHARE_RESET_REST_MS);
	bufshare_reset_renew(bd);
	mutex_unlock(&bd->session);
}

/*
 * The device to prepare, a reference, or NULL if the driver is not bound. A probe or
 * remove() that has begun ends first, with what the core does afterwards: it has the
 * virtio device's lock, which a reset does not take.
 */
static struct bufshare_device *bufshare_reset_begin(struct virtio_device *vdev)
{
	/* Polls are counted, not the time: a clock goes on while the VM stands still. */
	unsigned int polls = BUFSHARE_RESET_WAIT_MS / BUFSHARE_RESET_POLL_MS;
	struct bufshare_device *bd;

	while (!device_trylock(&vdev->dev)) {
		if (!polls--) {
			dev_err(&vdev->dev, "the driver has not come or gone: the function is reset all the same\n");
			return NULL;
		}
		bd = bufshare_device_of(vdev);
		if (bd) {
			/* Another processor may go on: sleep until a session has begun or ended. */
			mutex_lock(&bd->session);
			mutex_unlock(&bd->session);
			bufshare_device_put(bd);
		}
		msleep(BUFSHARE_RESET_POLL_MS);
	}
	bd = bufshare_device_of(vdev);
	if (bd)
		bufshare_set_resetting(bd, true);
	device_unlock(&vdev->dev);
	return bd;
}

static int bufshare_reset_prepare(struct virtio_device *vdev)
{
	/* Then the core resets the function, and does not call us when that is done. */
	int ret = -EOPNOTSUPP;
	struct bufshare_device *bd;

	down_read(&bufshare_in_reset);
	bd = bufshare_reset_begin(vdev);
	if (bd) {
		bufshare_suspend(bd);
		ret = 0;
		bufshare_device_put(bd);
	}
	up_read(&bufshare_in_reset);
	return ret;
}

static int bufshare_reset_done(struct virtio_device *vdev)
{
	struct bufshare_device *bd;
	int ret = -EOPNOTSUPP;

	down_read(&bufshare_in_reset);
	/* NULL: an unbind has waited for as long as it does. */
	bd = bufshare_device_of(vdev);
	if (bd) {
		bufshare_set_resetting(bd, true);
		ret = bufshare_resume(bd);
		bufshare_set_resetting(bd, false);
		bufshare_device_put(bd);
	}
	up_read(&bufshare_in_reset);
	return ret;
}
#endif

static const struct virtio_device_id bufshare_ids[] = {
	{ VIRTIO_BUFSHARE_ID, VIRTIO_DEV_ANY_ID },
	{ 0 },
};
MODULE_DEVICE_TABLE(virtio, bufshare_ids);

static struct virtio_driver bufshare_driver = {
	.driver.name = KBUILD_MODNAME,
	.id_table = bufshare_ids,
	.probe = bufshare_probe,
	.remove = bufshare_remove,
#ifdef CONFIG_PM_SLEEP
	.freeze = bufshare_freeze,
	.restore = bufshare_restore,
#endif
#ifdef BUFSHARE_HAVE_RESET_CALLBACKS
	.reset_prepare = bufshare_reset_prepare,
	.reset_done = bufshare_reset_done,
#endif
};

static int __init bufshare_module_init(void)
{
	int ret;

	bufshare_release_wq = alloc_workqueue("bufshare-release", WQ_UNBOUND, 0);
	if (!bufshare_release_wq)
		return -ENOMEM;
	ret = register_virtio_driver(&bufshare_driver);
	if (ret)
		destroy_workqueue(bufshare_release_wq);
	return ret;
}
module_init(bufshare_module_init);

/* No backing is left, or it would hold the module; its release may yet run. */
static void __exit bufshare_module_exit(void)
{
	unregister_virtio_driver(&bufshare_driver);
	down_write(&bufshare_in_reset);
	up_write(&bufshare_in_reset);
	destroy_workqueue(bufshare_release_wq);
}
module_exit(bufshare_module_exit);

MODULE_DESCRIPTION("Share dma-bufs between virtual machines");
MODULE_AUTHOR("The bufshare developers");
MODULE_LICENSE("GPL");
MODULE_INFO(import_ns, "DMA_BUF");
