// SPDX-License-Identifier: GPL-2.0
/*
 * bufshare_complaints.c - what the host does wrong, said in the log
 *
 * It is found with bufshare_device.lock held, often in an interrupt, and a console may take
 * its time: so it is noted, and a work says it.
 */
#include <linux/string.h>

#include "bufshare_priv.h"

static void bufshare_complain_of_events(struct bufshare_device *bd,
					const struct bufshare_complaints *found)
{
	if (found->malformed)
		dev_err_ratelimited(bd->dev, "%u malformed events, the last of type %#x, length %u, %u bytes\n",
				    found->malformed, found->type, found->length, found->used);
	if (found->gaps)
		dev_err_ratelimited(bd->dev, "%u events came after a gap, the last is %llu\n",
				    found->gaps, found->seq);
	if (found->aside)
		dev_err_ratelimited(bd->dev, "%u times an event buffer could not be given back\n",
				    found->aside);
	if (found->broken)
		dev_err(bd->dev, "the event queue is broken: the device is not used any more\n");
}

static void bufshare_complain_of_answers(struct bufshare_device *bd,
					 const struct bufshare_complaints *found)
{
	if (found->answers)
		dev_err_ratelimited(bd->dev, "%u times a malformed answer, the last to command %#x, %u bytes\n",
				    found->answers, found->answer_type, found->answer_used);
	if (found->bad_maps)
		dev_err_ratelimited(bd->dev, "%u times the host maps nonsense, the last is %llu bytes at %#llx of a region of %#llx, window %llu\n",
				    found->bad_maps, found->map_len, found->map_offset,
				    found->map_region, found->map_window);
	if (found->stale_maps)
		dev_err_ratelimited(bd->dev, "%u times the host maps where a device still uses a revoked buffer\n",
				    found->stale_maps);
	if (found->stuck)
		dev_err_ratelimited(bd->dev, "UNEXPORT: status %u (%d): the memory is kept, of %u exports\n",
				    found->stuck_status, found->stuck_err, found->stuck);
	if (found->ctrl_err)
		dev_err_ratelimited(bd->dev, "control queue: %d\n", found->ctrl_err);
	if (found->ctrl_broken)
		dev_err(bd->dev, "the control queue is broken: the device is not used any more\n");
}

/**
 * bufshare_complain_locked() - have what was noted in bufshare_device.complaints said
 * @bd: the device, bound; its lock is held
 */
void bufshare_complain_locked(struct bufshare_device *bd)
{
	lockdep_assert_held(&bd->lock);
	queue_work(bd->wq, &bd->deliver_work);
}

/**
 * bufshare_complain() - say in the log what was noted
 * @bd: the device
 */
void bufshare_complain(struct bufshare_device *bd)
{
	struct bufshare_complaints found;

	bufshare_lock(bd);
	found = bd->complaints;
	memset(&bd->complaints, 0, sizeof(bd->complaints));
	bufshare_unlock(bd);
	bufshare_complain_of_events(bd, &found);
	bufshare_complain_of_answers(bd, &found);
}
