// SPDX-License-Identifier: GPL-2.0
/*
 * A driver for tests that imports dma-bufs: for a PCI device that does DMA (QEMU's
 * "edu"), and for the kernel itself. It does one step of the dma-buf interface at
 * a time, as a test asks for it.
 *
 * An open file of /dev/bufshare_importer has one dma-buf. Its ioctls are below;
 * their arguments are as in tests/agent/src/client/importer.rs.
 */
#include <linux/delay.h>
#include <linux/dma-buf.h>
#include <linux/dma-fence.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/iosys-map.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

#ifndef HAVE_INVALIDATE_MAPPINGS
#define invalidate_mappings move_notify
#endif

/* Registers of "edu", and the address of its memory as its DMA sees it. */
#define EDU_DMA_SRC	0x80
#define EDU_DMA_DST	0x88
#define EDU_DMA_CNT	0x90
#define EDU_DMA_CMD	0x98
#define EDU_DMA_START	1
#define EDU_DMA_TO_RAM	2
#define EDU_MEMORY	0x40000
#define EDU_MEMORY_SIZE	4096
#define EDU_WAIT_MS	20000

/* How often one file may map its buffer at once. */
#define IMPORTER_MAPS	2

enum importer_attach_kind {
	IMPORTER_PLAIN,		/* not attached */
	IMPORTER_STATIC,	/* attached, no callback */
	IMPORTER_DYNAMIC,	/* attached, unmaps when the exporter asks for it */
	IMPORTER_STUBBORN,	/* attached, does not unmap although it is asked */
};

struct importer_attach {
	__s32 fd;
	__u32 kind;
};

struct importer_transfer {
	__u64 offset;
	__u64 data;
	__u32 len;
	__u32 write;
};

struct importer_state {
	__u32 mapped;
	__u32 invalidated;
};

#define IMPORTER_ATTACH		_IOW(0xb6, 0, struct importer_attach)
#define IMPORTER_MAP		_IO(0xb6, 1)
#define IMPORTER_UNMAP		_IO(0xb6, 2)
#define IMPORTER_DMA		_IOW(0xb6, 3, struct importer_transfer)
#define IMPORTER_VMAP		_IO(0xb6, 4)
#define IMPORTER_VUNMAP		_IO(0xb6, 5)
#define IMPORTER_COPY		_IOW(0xb6, 6, struct importer_transfer)
#define IMPORTER_BEGIN		_IO(0xb6, 7)
#define IMPORTER_END		_IO(0xb6, 8)
#define IMPORTER_STATE		_IOR(0xb6, 9, struct importer_state)
#define IMPORTER_FENCE		_IO(0xb6, 10)
#define IMPORTER_SIGNAL		_IO(0xb6, 11)

static struct pci_dev *edu_pci;
static void __iomem *edu_regs;
static void *edu_staging;		/* EDU_MEMORY_SIZE bytes */
static dma_addr_t edu_staging_addr;
static DEFINE_MUTEX(edu_lock);		/* the device and edu_staging */
static DEFINE_SPINLOCK(importer_fence_lock);

/**
 * struct importer - one open file
 * @lock: all but what the reservation lock protects
 * @dmabuf: NULL until IMPORTER_ATTACH
 * @attach: NULL if not attached
 * @kind: how it is attached
 * @sgts: its mappings, the oldest first; the reservation lock of @dmabuf, unless
 *	@kind is static
 * @mapped: their number; likewise
 * @invalidated: how often the exporter asked; likewise
 * @vmap: if @vmapped
 * @vmapped: there is a kernel mapping
 * @fence: of IMPORTER_FENCE, not signalled, or NULL
 */
struct importer {
	struct mutex lock;	/* all but @sgts, @mapped and @invalidated */
	struct dma_buf *dmabuf;
	struct dma_buf_attachment *attach;
	u32 kind;
	struct sg_table *sgts[IMPORTER_MAPS];
	u32 mapped;
	u32 invalidated;
	struct iosys_map vmap;
	bool vmapped;
	struct dma_fence *fence;
};

static const char *importer_fence_name(struct dma_fence *fence)
{
	return KBUILD_MODNAME;
}

static const struct dma_fence_ops importer_fence_ops = {
	.get_driver_name = importer_fence_name,
	.get_timeline_name = importer_fence_name,
};

/* Between an address of the bus and the device's own memory. */
static int edu_move(dma_addr_t addr, u32 len, bool to_ram)
{
	int ms;

	writeq(to_ram ? EDU_MEMORY : addr, edu_regs + EDU_DMA_SRC);
	writeq(to_ram ? addr : EDU_MEMORY, edu_regs + EDU_DMA_DST);
	writeq(len, edu_regs + EDU_DMA_CNT);
	writeq(EDU_DMA_START | (to_ram ? EDU_DMA_TO_RAM : 0), edu_regs + EDU_DMA_CMD);
	for (ms = 0; ms < EDU_WAIT_MS; ms++) {
		if (!(readq(edu_regs + EDU_DMA_CMD) & EDU_DMA_START))
			return 0;
		usleep_range(900, 1100);
	}
	return -ETIMEDOUT;
}

static int edu_transfer(dma_addr_t addr, u32 len, bool to_ram)
{
	int ret;

	ret = edu_move(to_ram ? edu_staging_addr : addr, len, false);
	if (!ret)
		ret = edu_move(to_ram ? addr : edu_staging_addr, len, true);
	return ret;
}

/* It takes its time, so it is not over before it is waited for. */
static void importer_idle(struct work_struct *work)
{
	msleep(20);
}

static DECLARE_WORK(importer_work, importer_idle);

static int importer_add(struct importer *im, struct sg_table *sgt)
{
	if (IS_ERR(sgt))
		return PTR_ERR(sgt);
	im->sgts[im->mapped++] = sgt;
	return 0;
}

static struct sg_table *importer_oldest(struct importer *im)
{
	struct sg_table *sgt = im->sgts[0];

	im->mapped--;
	memmove(im->sgts, im->sgts + 1, im->mapped * sizeof(*im->sgts));
	return sgt;
}

/* Under the exporter's lock. It may wait for work of its own on an ordinary queue. */
static void importer_invalidate(struct dma_buf_attachment *attach)
{
	struct importer *im = attach->importer_priv;

	schedule_work(&importer_work);
	flush_work(&importer_work);
	im->invalidated++;
	while (im->kind == IMPORTER_DYNAMIC && im->mapped)
		dma_buf_unmap_attachment(attach, importer_oldest(im), DMA_BIDIRECTIONAL);
}

static const struct dma_buf_attach_ops importer_ops = {
	.allow_peer2peer = true,
	.invalidate_mappings = importer_invalidate,
};

static int importer_attach(struct importer *im, const struct importer_attach *arg)
{
	struct dma_buf_attachment *attach = NULL;
	struct dma_buf *dmabuf;

	if (im->dmabuf)
		return -EBUSY;
	if (arg->kind != IMPORTER_PLAIN && !edu_pci)
		return -ENXIO;
	dmabuf = dma_buf_get(arg->fd);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	im->kind = arg->kind;
	if (arg->kind == IMPORTER_STATIC)
		attach = dma_buf_attach(dmabuf, &edu_pci->dev);
	else if (arg->kind != IMPORTER_PLAIN)
		attach = dma_buf_dynamic_attach(dmabuf, &edu_pci->dev, &importer_ops, im);
	if (IS_ERR(attach)) {
		dma_buf_put(dmabuf);
		return PTR_ERR(attach);
	}
	im->dmabuf = dmabuf;
	im->attach = attach;
	return 0;
}

static int importer_map(struct importer *im)
{
	int ret = -EBUSY;

	if (!im->attach)
		return -EINVAL;
	/* A static importer must not hold the lock. */
	if (im->kind == IMPORTER_STATIC) {
		if (im->mapped == IMPORTER_MAPS)
			return -EBUSY;
		return importer_add(im, dma_buf_map_attachment_unlocked(im->attach,
									DMA_BIDIRECTIONAL));
	}
	dma_resv_lock(im->dmabuf->resv, NULL);
	if (im->mapped < IMPORTER_MAPS)
		ret = importer_add(im, dma_buf_map_attachment(im->attach, DMA_BIDIRECTIONAL));
	dma_resv_unlock(im->dmabuf->resv);
	return ret;
}

/* Only the oldest mapping. */
static int importer_unmap(struct importer *im)
{
	if (!im->attach)
		return -EINVAL;
	if (im->kind == IMPORTER_STATIC) {
		if (!im->mapped)
			return -EINVAL;
		dma_buf_unmap_attachment_unlocked(im->attach, importer_oldest(im),
						  DMA_BIDIRECTIONAL);
		return 0;
	}
	dma_resv_lock(im->dmabuf->resv, NULL);
	if (im->mapped)
		dma_buf_unmap_attachment(im->attach, importer_oldest(im), DMA_BIDIRECTIONAL);
	dma_resv_unlock(im->dmabuf->resv);
	return 0;
}

/*
 * By the newest mapping. The reservation lock keeps the exporter from moving it
 * meanwhile.
 */
static int importer_dma_locked(struct importer *im, const struct importer_transfer *arg)
{
	u64 offset = arg->offset;
	struct scatterlist *sg;
	int i;

	if (!im->mapped)
		return -ENODEV;
	for_each_sgtable_dma_sg(im->sgts[im->mapped - 1], sg, i) {
		if (offset >= sg_dma_len(sg)) {
			offset -= sg_dma_len(sg);
			continue;
		}
		if (arg->len > sg_dma_len(sg) - offset)
			return -EINVAL;
		return edu_transfer(sg_dma_address(sg) + offset, arg->len, arg->write);
	}
	return -EINVAL;
}

static int importer_dma(struct importer *im, const struct importer_transfer *arg)
{
	void __user *user = u64_to_user_ptr(arg->data);
	int ret;

	if (!im->attach || !arg->len || arg->len > EDU_MEMORY_SIZE)
		return -EINVAL;
	mutex_lock(&edu_lock);
	ret = -EFAULT;
	if (arg->write && copy_from_user(edu_staging, user, arg->len))
		goto out;
	if (!arg->write)
		memset(edu_staging, 0xee, EDU_MEMORY_SIZE);
	dma_resv_lock(im->dmabuf->resv, NULL);
	ret = importer_dma_locked(im, arg);
	dma_resv_unlock(im->dmabuf->resv);
	if (!ret && !arg->write && copy_to_user(user, edu_staging, arg->len))
		ret = -EFAULT;
out:
	mutex_unlock(&edu_lock);
	return ret;
}

static int importer_vmap(struct importer *im)
{
	int ret;

	if (!im->dmabuf || im->vmapped)
		return -EINVAL;
	ret = dma_buf_vmap_unlocked(im->dmabuf, &im->vmap);
	im->vmapped = !ret;
	return ret;
}

static int importer_vunmap(struct importer *im)
{
	if (!im->vmapped)
		return -EINVAL;
	dma_buf_vunmap_unlocked(im->dmabuf, &im->vmap);
	im->vmapped = false;
	return 0;
}

static int importer_copy(struct importer *im, const struct importer_transfer *arg)
{
	void __user *user = u64_to_user_ptr(arg->data);
	void *copy;
	int ret = 0;

	if (!im->vmapped || arg->offset > im->dmabuf->size ||
	    arg->len > im->dmabuf->size - arg->offset)
		return -EINVAL;
	copy = kvmalloc(arg->len, GFP_KERNEL);
	if (!copy)
		return -ENOMEM;
	if (arg->write) {
		if (copy_from_user(copy, user, arg->len))
			ret = -EFAULT;
		else
			iosys_map_memcpy_to(&im->vmap, arg->offset, copy, arg->len);
	} else {
		iosys_map_memcpy_from(copy, &im->vmap, arg->offset, arg->len);
		if (copy_to_user(user, copy, arg->len))
			ret = -EFAULT;
	}
	kvfree(copy);
	return ret;
}

/* A device writes to the dma-buf, as far as others can know. */
static int importer_fence(struct importer *im)
{
	struct dma_fence *fence;
	int ret;

	if (im->fence)
		return -EBUSY;
	fence = kzalloc_obj(*fence);
	if (!fence)
		return -ENOMEM;
	dma_fence_init(fence, &importer_fence_ops, &importer_fence_lock,
		       dma_fence_context_alloc(1), 1);
	dma_resv_lock(im->dmabuf->resv, NULL);
	ret = dma_resv_reserve_fences(im->dmabuf->resv, 1);
	if (!ret)
		dma_resv_add_fence(im->dmabuf->resv, fence, DMA_RESV_USAGE_WRITE);
	dma_resv_unlock(im->dmabuf->resv);
	if (ret)
		dma_fence_put(fence);
	else
		im->fence = fence;
	return ret;
}

/* It has written. */
static int importer_signal(struct importer *im)
{
	if (!im->fence)
		return -EINVAL;
	dma_fence_signal(im->fence);
	dma_fence_put(im->fence);
	im->fence = NULL;
	return 0;
}

static void importer_state(struct importer *im, struct importer_state *state)
{
	dma_resv_lock(im->dmabuf->resv, NULL);
	state->mapped = im->mapped;
	state->invalidated = im->invalidated;
	dma_resv_unlock(im->dmabuf->resv);
}

static long importer_call(struct importer *im, unsigned int cmd, void __user *user)
{
	struct importer_transfer transfer;
	struct importer_attach attach;
	struct importer_state state;

	if (cmd == IMPORTER_ATTACH)
		return copy_from_user(&attach, user, sizeof(attach)) ? -EFAULT :
		       importer_attach(im, &attach);
	if (!im->dmabuf)
		return -EINVAL;
	switch (cmd) {
	case IMPORTER_MAP:
		return importer_map(im);
	case IMPORTER_UNMAP:
		return importer_unmap(im);
	case IMPORTER_DMA:
	case IMPORTER_COPY:
		if (copy_from_user(&transfer, user, sizeof(transfer)))
			return -EFAULT;
		return cmd == IMPORTER_DMA ? importer_dma(im, &transfer) :
		       importer_copy(im, &transfer);
	case IMPORTER_VMAP:
		return importer_vmap(im);
	case IMPORTER_VUNMAP:
		return importer_vunmap(im);
	case IMPORTER_BEGIN:
		return dma_buf_begin_cpu_access(im->dmabuf, DMA_BIDIRECTIONAL);
	case IMPORTER_END:
		return dma_buf_end_cpu_access(im->dmabuf, DMA_BIDIRECTIONAL);
	case IMPORTER_FENCE:
		return importer_fence(im);
	case IMPORTER_SIGNAL:
		return importer_signal(im);
	case IMPORTER_STATE:
		importer_state(im, &state);
		return copy_to_user(user, &state, sizeof(state)) ? -EFAULT : 0;
	default:
		return -ENOTTY;
	}
}

static long importer_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct importer *im = file->private_data;
	long ret;

	mutex_lock(&im->lock);
	ret = importer_call(im, cmd, (void __user *)arg);
	mutex_unlock(&im->lock);
	return ret;
}

static int importer_open(struct inode *inode, struct file *file)
{
	struct importer *im = kzalloc_obj(*im);

	if (!im)
		return -ENOMEM;
	mutex_init(&im->lock);
	file->private_data = im;
	return 0;
}

static int importer_release(struct inode *inode, struct file *file)
{
	struct importer *im = file->private_data;

	if (im->fence)
		importer_signal(im);
	if (im->vmapped)
		importer_vunmap(im);
	if (im->attach) {
		while (im->mapped)
			importer_unmap(im);
		dma_buf_detach(im->dmabuf, im->attach);
	}
	if (im->dmabuf)
		dma_buf_put(im->dmabuf);
	kfree(im);
	return 0;
}

static const struct file_operations importer_fops = {
	.owner = THIS_MODULE,
	.open = importer_open,
	.release = importer_release,
	.unlocked_ioctl = importer_ioctl,
};

static struct miscdevice importer_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "bufshare_importer",
	.fops = &importer_fops,
};

static int edu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	int ret;

	if (edu_pci)
		return -EBUSY;
	ret = pcim_enable_device(pdev);
	if (ret)
		return ret;
	ret = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	if (ret)
		return ret;
	edu_regs = pcim_iomap(pdev, 0, 0);
	if (!edu_regs)
		return -ENOMEM;
	edu_staging = dmam_alloc_coherent(&pdev->dev, EDU_MEMORY_SIZE, &edu_staging_addr,
					  GFP_KERNEL);
	if (!edu_staging)
		return -ENOMEM;
	pci_set_master(pdev);
	edu_pci = pdev;
	return 0;
}

/* Only at the module's end: nobody has it open. */
static void edu_remove(struct pci_dev *pdev)
{
	edu_pci = NULL;
}

static const struct pci_device_id edu_ids[] = { { PCI_DEVICE(0x1234, 0x11e8) }, { } };

static struct pci_driver edu_driver = {
	.name = KBUILD_MODNAME,
	.id_table = edu_ids,
	.probe = edu_probe,
	.remove = edu_remove,
	.driver.suppress_bind_attrs = true,
};

static int __init importer_init(void)
{
	int ret = pci_register_driver(&edu_driver);

	if (ret)
		return ret;
	ret = misc_register(&importer_misc);
	if (ret)
		pci_unregister_driver(&edu_driver);
	return ret;
}
module_init(importer_init);

static void __exit importer_exit(void)
{
	misc_deregister(&importer_misc);
	pci_unregister_driver(&edu_driver);
}
module_exit(importer_exit);

MODULE_DESCRIPTION("Importer of dma-bufs for tests");
MODULE_LICENSE("GPL");
MODULE_INFO(import_ns, "DMA_BUF");
