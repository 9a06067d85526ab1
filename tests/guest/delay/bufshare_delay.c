// SPDX-License-Identifier: GPL-2.0
/*
 * For tests: whoever calls a function of the kernel first is held up at its
 * beginning, without giving up its processor. So the guest needs two of them.
 *
 * The parameter "symbol" is written last: the function's name, or nothing to hold up
 * nobody any more. Before it: "ms", for how long at most, "skip", how many calls may
 * pass before, and "pid", the only process whose calls count, if not 0. "held" is Y from
 * the moment on that somebody is there, and "over" when that one may go on, which
 * "release" brings about at once. "preemptible" is Y if the kernel might have had another
 * task run there instead.
 */
#include <linux/atomic.h>
#include <linux/errno.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/processor.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/string.h>
#include <linux/timekeeping.h>

static int skip;
module_param(skip, int, 0644);
MODULE_PARM_DESC(skip, "Calls to let pass before");

static int pid;
module_param(pid, int, 0644);
MODULE_PARM_DESC(pid, "The only process whose calls count, if not 0");

static unsigned int ms;
module_param(ms, uint, 0644);
MODULE_PARM_DESC(ms, "For how long at most, milliseconds");

static bool release;
module_param(release, bool, 0644);
MODULE_PARM_DESC(release, "Hold up nobody any longer");

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
		while (!READ_ONCE(release) &&
		       ktime_get_mono_fast_ns() - start < (u64)ms * NSEC_PER_MSEC)
			cpu_relax();
		WRITE_ONCE(over, true);
	}
	return 0;
}

static char symbol[KSYM_NAME_LEN];

static struct kprobe delay_probe;

static void delay_stop(void)
{
	if (symbol[0])
		unregister_kprobe(&delay_probe);
	symbol[0] = '\0';
}

/* The kernel calls one at a time, and not while a module's other parameters are written. */
static int delay_set_symbol(const char *text, const struct kernel_param *kp)
{
	char name[KSYM_NAME_LEN];
	int ret;

	if (strscpy(name, text, sizeof(name)) < 0)
		return -ENAMETOOLONG;
	delay_stop();
	if (!*strim(name))
		return 0;

	/*
	 * What modules were loaded with is given back a grace period later, which
	 * interrupts all processors and waits for them. Who is held up in an interrupt
	 * takes none, and the guest's other processor would wait for as long.
	 */
	synchronize_rcu();
	atomic_set(&calls, 0);
	release = false;
	held = false;
	over = false;
	preemptible = false;
	strscpy(symbol, strim(name));
	delay_probe = (struct kprobe) {
		.symbol_name = symbol,
		.pre_handler = delay_pre,
	};
	ret = register_kprobe(&delay_probe);
	if (ret)
		symbol[0] = '\0';
	return ret;
}

static int delay_get_symbol(char *text, const struct kernel_param *kp)
{
	return sysfs_emit(text, "%s\n", symbol);
}

static const struct kernel_param_ops delay_symbol_ops = {
	.set = delay_set_symbol,
	.get = delay_get_symbol,
};

module_param_cb(symbol, &delay_symbol_ops, NULL, 0644);
MODULE_PARM_DESC(symbol, "Function of the kernel");

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
	return delay_own < 0 ? -ENXIO : 0;
}
module_init(delay_init);

static void __exit delay_exit(void)
{
	delay_stop();
}
module_exit(delay_exit);

MODULE_DESCRIPTION("Holds up a function of the kernel for tests");
MODULE_LICENSE("GPL");
