// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_reset.c - resets of the PCI function under the driver
 *
 * Who writes to the function's "reset" in sysfs resets the device. A newer kernel
 * has virtio drivers stop before and start after. On an older one nobody would
 * notice: windows would be gone under user mappings, and requests would never be
 * answered. There, and only there is this file part of the module, the function has no
 * way of being reset while it is bound.
 */
#include <linux/pci.h>

#include "bufshare_priv.h"

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
