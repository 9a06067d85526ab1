// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The wake-ups and interrupts inside the VMs while frames go to and fro

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use bufshare_tests::vm::Vm;

use crate::machines::{Carrier, Machines};
use crate::wakeups::{Event, Wakeups, What};

const TRACING: &str = "/sys/kernel/debug/tracing";
const EVENTS: [&str; 3] = [
    "sched/sched_waking",
    "sched/sched_switch",
    "irq/irq_handler_entry",
];
/// So few that their events fit into the kernel's memory for them.
const FRAMES: u64 = 200;
const BUFFER_KB: &[u8] = b"8192";
/// Who has the CPU where nobody has, and wakes where an interrupt does.
const NOBODY: u32 = 0;
const INTERRUPT: &str = "interrupt";

/// Has frames go, and tells what each VM did for one.
///
/// # Errors
/// When a guest's kernel does not trace.
pub(crate) fn run(machines: &mut Machines, carrier: Carrier, size: u64) -> Result<Vec<String>> {
    for vm in [&machines.vms.a, &machines.vms.b] {
        set(vm, "buffer_size_kb", BUFFER_KB)?;
        for event in EVENTS {
            set(vm, &format!("events/{event}/enable"), b"1")?;
        }
        set(vm, "trace", b"")?;
        set(vm, "tracing_on", b"1")?;
    }
    machines.carry(carrier, size, FRAMES)?;
    let mut texts = Vec::new();
    for (name, vm) in [("a", &machines.vms.a), ("b", &machines.vms.b)] {
        set(vm, "tracing_on", b"0")?;
        let trace = vm.read_file(&format!("{TRACING}/trace"))?;
        let trace = String::from_utf8_lossy(&trace);
        let mut text = format!("{} of {size} bytes, in {name}, traced:", carrier.name());
        for (handler, count) in interrupts(&trace) {
            write!(text, " {:.2} interrupts of {handler},", of_a_frame(count)?)?;
        }
        text = text.trim_end_matches(',').to_owned();
        let names = names(&trace);
        let events = trace.lines().filter_map(parse);
        let wakeups = Wakeups::of(events, &names, [INTERRUPT, ""])?;
        writeln!(text)?;
        text.push_str(&wakeups.text(of_a_frame_count()?)?);
        texts.push(text);
    }
    Ok(texts)
}

fn set(vm: &Vm, file: &str, value: &[u8]) -> Result<()> {
    let path = format!("{TRACING}/{file}");
    vm.write_file(&path, value).with_context(|| path.clone())
}

fn of_a_frame_count() -> Result<f64> {
    Ok(f64::from(u32::try_from(FRAMES)?))
}

fn of_a_frame(count: u32) -> Result<f64> {
    Ok(f64::from(count) / of_a_frame_count()?)
}

/// How often each handler was called.
fn interrupts(trace: &str) -> BTreeMap<&str, u32> {
    let mut counts = BTreeMap::new();
    for line in trace.lines() {
        if let Some((_, handler)) = line.split_once("irq_handler_entry: ")
            && let Some((_, name)) = handler.split_once(" name=")
        {
            *counts.entry(name).or_default() += 1;
        }
    }
    counts
}

/// What the threads that were woken are called, by their numbers.
fn names(trace: &str) -> HashMap<u32, String> {
    let mut names = HashMap::from([(NOBODY, INTERRUPT.to_owned())]);
    for line in trace.lines() {
        if let Some((_, What::Wakes { thread })) = What::parse(line)
            && let Some((_, rest)) = line.split_once(" comm=")
            && let Some((comm, _)) = rest.rsplit_once(" pid=")
        {
            names.entry(thread).or_insert_with(|| comm.to_owned());
        }
    }
    names
}

/// A line of the kernel: who has the CPU (its name and number), which, in what context, when.
fn parse(line: &str) -> Option<Event> {
    let (head, what) = What::parse(line)?;
    let mut words = head.split_whitespace().rev();
    let seconds: f64 = words.next()?.trim_end_matches(':').parse().ok()?;
    let context = words.next()?;
    let (_, number) = words.nth(1)?.rsplit_once('-')?;
    let thread = if context.contains(['h', 'H', 's']) {
        NOBODY
    } else {
        number.parse().ok()?
    };
    Some(Event {
        thread,
        us: seconds * 1e6,
        what,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "\
# tracer: nop
          <idle>-0       [000] d.h2.    53.000010: irq_handler_entry: irq=11 name=virtio3
          <idle>-0       [000] d.h2.    53.000020: sched_waking: comm=kworker/0:1 pid=12 prio=120 target_cpu=000
     kworker/0:1-12      [000] d..2.    53.000040: sched_waking: comm=init pid=99 prio=120 target_cpu=000
            init-99      [000] dNh3.    53.000050: sched_waking: comm=kworker/0:1 pid=12 prio=120 target_cpu=000
";

    #[test]
    fn who_wakes_in_an_interrupt_is_the_interrupt() {
        let events: Vec<Event> = TRACE.lines().filter_map(parse).collect();
        let by: Vec<u32> = events.iter().map(|event| event.thread).collect();
        assert_eq!(by, [NOBODY, 12, NOBODY]);
        assert!((events[0].us - 53_000_020.0).abs() < 0.1);
        let names = names(TRACE);
        assert_eq!(names[&12], "kworker/0:1");
        assert_eq!(names[&99], "init");
    }

    #[test]
    fn interrupts_are_counted_by_their_handlers() {
        assert_eq!(interrupts(TRACE), BTreeMap::from([("virtio3", 1)]));
    }
}
