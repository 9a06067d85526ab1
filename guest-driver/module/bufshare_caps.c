// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_caps.c - what the device is and allows
 */
#include <linux/errno.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/pci.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>

#include "bufshare_priv.h"

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
		.event_size = le32_to_cpu(config->event_size),
		.max_batch = min(le32_to_cpu(config->max_batch), BUFSHARE_MAX_BATCH),
		.ways = le32_to_cpu(config->ways),
		.backings = le32_to_cpu(config->backings),
	};

	if (!caps.version) {
		dev_err(bd->dev, "this VM was reset with buffers mapped, which its VMM does not survive: power it off and on\n");
		return -ENODEV;
	}
	if (caps.version < VIRTIO_BUFSHARE_VERSION) {
		dev_err(bd->dev, "the device speaks version %u, this driver needs %u\n",
			caps.version, VIRTIO_BUFSHARE_VERSION);
		return -EINVAL;
	}
	if (!is_power_of_2(caps.map_align) || caps.map_align > PAGE_SIZE << MAX_PAGE_ORDER ||
	    !caps.max_extents || !caps.max_batch ||
	    caps.event_size < VIRTIO_BUFSHARE_MIN_EVENT_SIZE ||
	    caps.event_size > VIRTIO_BUFSHARE_MAX_EVENT_SIZE) {
		dev_err(bd->dev, "configuration space: version %u, alignment %u, %u extents, batches of %u, events of %u bytes: not a buffer-sharing device of this driver's kind\n",
			caps.version, caps.map_align, caps.max_extents, caps.max_batch,
			caps.event_size);
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

/**
 * bufshare_read_config() - what the configuration space says
 * @bd: the device, of which nothing runs yet
 *
 * Return: 0 or a negative errno.
 */
int bufshare_read_config(struct bufshare_device *bd)
{
	/* What is reserved belongs to versions to come: it may be anything, or cut off. */
	const u32 known = offsetof(struct virtio_bufshare_config, reserved);
	struct virtio_bufshare_config config = { };
	u32 room = bufshare_config_room(bd);
	struct bufshare_caps caps;
	int ret;

	if (room < known) {
		dev_err(bd->dev, "the VMM gives the device %u bytes of configuration space, it needs %u\n",
			room, known);
		return -EINVAL;
	}
	virtio_cread_bytes(bd->vdev, 0, &config, known);
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

	req = bufshare_req_alloc(VIRTIO_BUFSHARE_CMD_GET_CAPS, sizeof(*out), 0, sizeof(*resp), 0);
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

/**
 * bufshare_greet() - agree on a version with the host, and ask for the limits in force
 * @bd: the device, whose session has begun
 *
 * Return: 0 or a negative errno.
 */
int bufshare_greet(struct bufshare_device *bd)
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
	/* It has event buffers of the size that its configuration space said. */
	if (caps.event_size != bd->event_size) {
		dev_err(bd->dev, "the device wants event buffers of %u bytes, it has some of %u\n",
			caps.event_size, bd->event_size);
		return -EPROTO;
	}
	bufshare_set_caps(bd, &caps, resp.name);
	return 0;
}
