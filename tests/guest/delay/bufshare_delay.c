// SPDX-License-Identifier: GPL-2.0
/*
 * For tests: whoever calls a function of the kernel first is held up at its
 * beginning, without giving up its processor. So the guest needs two of them.
 *
 * insmod bufshare_delay.ko symbol=NAME ms=N [skip=CALLS] [pid=PROCESS]; the parameter
 * "held" is Y from the moment on that somebody is there, and "over" when that one may go
 * on. "preemptible" is Y if the kernel might have had another task run there instead.
 */
#include <linux/atomic.h>
#include <linux/errno.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/processor.h>
#include <linux/sched.h>
#include <linux/timekeeping.h>

static char *symbol;
module_param(symbol, charp, 0444);
MODULE_PARM_DESC(symbol, "Function of the kernel");

static int skip;
module_param(skip, int, 0444);
MODULE_PARM_DESC(skip, "Calls to let pass before");

static int pid;
module_param(pid, int, 0444);
MODULE_PARM_DESC(pid, "The only process whose calls count, if not 0");

static unsigned int ms;
module_param(ms, uint, 0444);
MODULE_PARM_DESC(ms, "For how long, milliseconds");

static bool held;
module_param(held, bool, 0444);
MODULE_PARM_DESC(held, "Somebody was or is held up");

static bool over;
module_param(over, bool, 0444);
MODULE_PARM_DESC(over, "Somebody was held up and may go on");

static bool preemptible;
module_param(preemptible, bool, 0444);
MODULE_PARM_DESC(preemptible, "Who was held up could have been preempted");

static atomic_t calls;

/* What a probe itself adds to the number of reasons not to preempt. */
static int delay_own;

static int delay_preempt(void)
{
	return preempt_count() & PREEMPT_MASK;
}

static int delay_measure(struct kprobe *probe, struct pt_regs *regs)
{
	delay_own = delay_preempt();
	return 0;
}

static noinline void delay_nothing(void)
{
	barrier();
}

static int delay_pre(struct kprobe *probe, struct pt_regs *regs)
{
	u64 start;

	if (pid && task_tgid_nr(current) != pid)
		return 0;
	if (atomic_inc_return(&calls) == skip + 1) {
		preemptible = delay_preempt() == delay_own;
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
	struct kprobe probe = {
		.addr = (kprobe_opcode_t *)delay_nothing,
		.pre_handler = delay_measure,
	};
	int ret;

	delay_own = -1;
	ret = register_kprobe(&probe);
	if (ret)
		return ret;
	delay_nothing();
	unregister_kprobe(&probe);
	if (delay_own < 0)
		return -ENXIO;

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
