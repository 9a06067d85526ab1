// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_function_reset.c - resets of the PCI function under the driver
 *
 * Who writes to the function's "reset" in sysfs resets the device. A newer kernel
 * has virtio drivers stop before and start after. On an older one nobody would
 * notice: windows would be gone under user mappings, and requests would never be
 * answered. There the function has no way of being reset while it is bound.
 */
#include <linux/delay.h>
#include <linux/device.h>
#include <linux/errno.h>
#include <linux/ktime.h>
#include <linux/pci.h>
#include <linux/rwsem.h>

#include "bufshare_priv.h"

/* Protects the virtio device's @priv: a reset of the function does not hold its lock. */
static DEFINE_SPINLOCK(bufshare_priv_lock);

/* Read: a callback of a reset runs. The core does not hold the module meanwhile. */
static DECLARE_RWSEM(bufshare_in_reset);

/**
 * bufshare_set_priv() - who a reset of the function finds
 * @vdev: the virtio device
 * @bd: the device that it is now, or NULL
 */
void bufshare_set_priv(struct virtio_device *vdev, struct bufshare_device *bd)
{
	spin_lock(&bufshare_priv_lock);
	vdev->priv = bd;
	spin_unlock(&bufshare_priv_lock);
}

/**
 * bufshare_begin_unbinding() - no session begins any more
 * @bd: the device
 *
 * A reset of the function that has begun ends
 * first, with all that the core does after our last callback: the device may
 * not do what is asked of it until then, or has its status written by two. The
 * core has no lock for that. A reset holds the lock of the PCI function, an
 * unbind that of the virtio device, so neither must wait for the other's
 * without a limit. An unbind of the PCI function's driver holds both: then no
 * reset is under way, and what is waited for here is at most the rest of the
 * last one's time.
 */
void bufshare_begin_unbinding(struct bufshare_device *bd)
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

/**
 * bufshare_reset_wait_left() - wait until no callback of a reset runs any more
 */
void bufshare_reset_wait_left(void)
{
	down_write(&bufshare_in_reset);
	up_write(&bufshare_in_reset);
}

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

/**
 * bufshare_reset_prepare() - before a reset of the function
 * @vdev: the virtio device
 *
 * Return: 0 or a negative errno.
 */
int bufshare_reset_prepare(struct virtio_device *vdev)
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

/**
 * bufshare_reset_done() - after it
 * @vdev: the virtio device
 *
 * Return: 0 or a negative errno.
 */
int bufshare_reset_done(struct virtio_device *vdev)
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
#else
/**
 * bufshare_reset_forbid() - have requests to reset the function fail
 * @bd: the device
 */
void bufshare_reset_forbid(struct bufshare_device *bd)
{
	struct pci_dev *pdev;

	if (!dev_is_pci(bd->dma_dev))
		return;
	pdev = to_pci_dev(bd->dma_dev);
	/* The list ends here. It is what writing "" to "reset_method" does. */
	bd->reset_method = pdev->reset_methods[0];
	pdev->reset_methods[0] = 0;
}

/**
 * bufshare_reset_allow() - undo bufshare_reset_forbid()
 * @bd: the device
 */
void bufshare_reset_allow(struct bufshare_device *bd)
{
	struct pci_dev *pdev;

	if (!dev_is_pci(bd->dma_dev))
		return;
	pdev = to_pci_dev(bd->dma_dev);
	/* Unless the administrator has set another meanwhile. */
	if (!pdev->reset_methods[0])
		pdev->reset_methods[0] = bd->reset_method;
}
#endif
