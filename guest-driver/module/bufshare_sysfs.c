// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_sysfs.c - attributes of /sys/class/misc/bufshare
 *
 * README.md beside this file describes them.
 */
#include <linux/device.h>
#include <linux/sysfs.h>

#include "bufshare_priv.h"

/* A name never gets another meaning: programs know it. */
static const char * const bufshare_missing_features[] = {
#ifndef BUFSHARE_HAVE_CONTIG_PAGES
	"contiguous-alloc",
#endif
#ifdef BUFSHARE_HAVE_CACHED_MAPPINGS
	"refusal-when-revoked",
#endif
#ifndef BUFSHARE_HAVE_INVALIDATE_MAPPINGS
	"fixed-backing",
#endif
#ifndef BUFSHARE_HAVE_RESET_CALLBACKS
	"function-reset",
#endif
	NULL,
};

static ssize_t missing_features_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	const char * const *name;
	int len = 0;

	for (name = bufshare_missing_features; *name; name++)
		len += sysfs_emit_at(buf, len, "%s\n", *name);
	return len;
}
static DEVICE_ATTR_RO(missing_features);

static struct attribute *bufshare_attrs[] = {
	&dev_attr_missing_features.attr,
	NULL,
};

static const struct attribute_group bufshare_group = {
	.attrs = bufshare_attrs,
};

const struct attribute_group *bufshare_groups[] = {
	&bufshare_group,
	NULL,
};
