// SPDX-License-Identifier: GPL-2.0
/*
 * For tests: whoever calls a function of the kernel first is held up at its
 * beginning, without giving up its processor. So the guest needs two of them.
 *
 * insmod bufshare_delay.ko symbol=NAME ms=N [skip=CALLS]; the parameter "held" is Y from the
 * moment on that somebody is there, and "over" when that one may go on.
 */
#include <linux/atomic.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/processor.h>
#include <linux/timekeeping.h>

static char *symbol;
module_param(symbol, charp, 0444);
MODULE_PARM_DESC(symbol, "Function of the kernel");

static int skip;
module_param(skip, int, 0444);
MODULE_PARM_DESC(skip, "Calls to let pass before");

static unsigned int ms;
module_param(ms, uint, 0444);
MODULE_PARM_DESC(ms, "For how long, milliseconds");

static bool held;
module_param(held, bool, 0444);
MODULE_PARM_DESC(held, "Somebody was or is held up");

static bool over;
module_param(over, bool, 0444);
MODULE_PARM_DESC(over, "Somebody was held up and may go on");

static atomic_t calls;

static int delay_pre(struct kprobe *probe, struct pt_regs *regs)
{
	u64 start;

	if (atomic_inc_return(&calls) == skip + 1) {
		WRITE_ONCE(held, true);
		/* Not mdelay(): an emulated machine may have counted its loops wrong. */
		start = ktime_get_mono_fast_ns();
		while (ktime_get_mono_fast_ns() - start < (u64)ms * NSEC_PER_MSEC)
			cpu_relax();
		WRITE_ONCE(over, true);
	}
	return 0;
}

static struct kprobe delay_probe = {
	.pre_handler = delay_pre,
};

static int __init delay_init(void)
{
	delay_probe.symbol_name = symbol;
	return register_kprobe(&delay_probe);
}
module_init(delay_init);

static void __exit delay_exit(void)
{
	unregister_kprobe(&delay_probe);
}
module_exit(delay_exit);

MODULE_DESCRIPTION("Holds up a function of the kernel for tests");
MODULE_LICENSE("GPL");
