// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_main.c - the driver of the buffer-sharing virtio device
 */
#include <linux/bitops.h>
#include <linux/debugfs.h>
#include <linux/device.h>
#include <linux/errno.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/reboot.h>
#include <linux/rwsem.h>
#include <linux/virtio_config.h>

#include "bufshare_priv.h"

/* Bit 0: a device is bound. There is one /dev/bufshare. */
static unsigned long bufshare_bound;

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
	INIT_DELAYED_WORK(&bd->intake_work, bufshare_intake_work);
	INIT_WORK(&bd->deliver_work, bufshare_deliver_work);
	INIT_DELAYED_WORK(&bd->kept_work, bufshare_kept_work);
	bufshare_set_priv(vdev, bd);
	bd->wq = alloc_workqueue("bufshare", WQ_UNBOUND | WQ_HIGHPRI | WQ_MEM_RECLAIM, 0);
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
	bufshare_reset_wait_left();
	destroy_workqueue(bufshare_release_wq);
}
module_exit(bufshare_module_exit);

MODULE_DESCRIPTION("Share dma-bufs between virtual machines");
MODULE_AUTHOR("The bufshare developers");
MODULE_LICENSE("GPL");
MODULE_INFO(import_ns, "DMA_BUF");
