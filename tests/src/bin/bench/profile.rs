// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each wake-up of a hand-over, and what it costs
//!
//! `perf` records the scheduler of the host while frames go to and fro, one at a time. What
//! counts are the wake-ups of threads of the daemon and of both QEMUs: who woke whom, after
//! how long that one ran, and for how long. The same of a few bytes over virtio-serial is
//! beside it: two VMs that share nothing can do no less.
//!
//! Who is woken by a timer is said to be woken by whoever the timer interrupts. Such links
//! are seldom, and left out.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use bufshare_tests::child::Process;

use crate::machines::{Carrier, Machines};
use crate::program::output;
use crate::statistics::median;

/// The frames: a hand-over is the same whatever it is of.
const PAGE: u64 = 4096;
const SMALL: u64 = 64;
/// How long the scheduler is recorded.
const SECONDS: &str = "3";
/// Frames of one request to the guests, few enough for the last one to end soon.
const FRAMES: u64 = 500;
/// The name of a thread of the daemon that serves a session's queues.
const WORKER: &str = "vring_worker";
/// Begins that of the one that serves its socket. The VM's follows.
const SESSION: &str = "main ";
/// Of a frame; what is less often is not of the frame.
const SELDOM: f64 = 0.2;

/// Where it is written.
#[derive(Debug, clap::Args)]
pub(crate) struct Profile {
    /// Where to write what perf recorded, and the logs
    #[arg(long)]
    out: PathBuf,
}

impl Profile {
    /// Prints the tables.
    pub(crate) fn run(&self) -> Result<()> {
        std::fs::create_dir_all(&self.out)?;
        let mut machines = Machines::boot(&[PAGE], &self.out.join("logs"))?;
        let threads = threads(&mut machines)?;
        // Each begins with the kick of the VM that sends.
        for (carrier, size, kicked) in [
            (Carrier::HandOver, PAGE, "daemon"),
            (Carrier::Serial, SMALL, "a: main"),
        ] {
            let path = self.out.join(format!("{}.perf", carrier.name()));
            let rate = record(&mut machines, carrier, size, &path)?;
            let profile = Wakeups::of(&trace(&path)?, &threads, ["a: CPU", kicked])?;
            print!("{}", profile.text(carrier, size, rate)?);
        }
        machines.finish()
    }
}

/// What the threads are called, by their numbers.
fn threads(machines: &mut Machines) -> Result<HashMap<u32, String>> {
    let vms = &mut machines.vms;
    let mut all = HashMap::new();
    for (name, process) in [("a", vms.a.pid()), ("b", vms.b.pid())] {
        for (thread, comm) in tasks(process)? {
            let role = if thread == process { "main" } else { &comm };
            all.insert(thread, format!("{name}: {role}"));
        }
    }
    let mut worker = None;
    for (thread, comm) in tasks(vms.daemon()?.pid())? {
        // The thread that serves a session's queues bears no VM's name. It is started shortly
        // before one that does.
        if comm == WORKER {
            worker = Some(thread);
        } else if let Some(vm) = comm.strip_prefix(SESSION)
            && let Some(worker) = worker.take()
        {
            all.insert(worker, format!("daemon: queues of {vm}"));
        }
        all.insert(thread, format!("daemon: {comm}"));
    }
    Ok(all)
}

/// The threads of a process in the order of their numbers, and what they are called.
fn tasks(process: u32) -> Result<BTreeMap<u32, String>> {
    let mut tasks = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str());
        let comm = std::fs::read_to_string(path.join("comm"))?;
        tasks.insert(number.context("a task")?.parse()?, comm.trim().to_owned());
    }
    Ok(tasks)
}

/// Has frames go one at a time until perf has recorded enough. Frames a second.
fn record(machines: &mut Machines, carrier: Carrier, size: u64, path: &Path) -> Result<f64> {
    machines.carry(carrier, size, FRAMES)?;
    let mut command = Command::new("perf");
    command
        .args(["record", "--quiet", "--all-cpus", "--output"])
        .arg(path);
    command.args(["--event", "sched:sched_waking,sched:sched_switch"]);
    command.args(["--", "sleep", SECONDS]);
    let log = path.with_extension("log");
    let mut perf = Process::start("perf", command, Vec::new(), &log)?;
    let (started, mut frames) = (Instant::now(), 0.0);
    let status = loop {
        if let Some(status) = perf.ended()? {
            break status;
        }
        frames += f64::from(u32::try_from(machines.carry(carrier, size, FRAMES)?.len())?);
    };
    ensure!(status.success(), "perf: {status}: see {}", log.display());
    Ok(frames / started.elapsed().as_secs_f64())
}

fn trace(path: &Path) -> Result<String> {
    let mut command = Command::new("perf");
    command.args([
        "script",
        "--ns",
        "--fields",
        "tid,time,event,trace",
        "--input",
    ]);
    command.arg(path);
    output(command)
}

/// Who wakes, and who is woken.
type Link = (String, String);

/// What there is of one link, microseconds each.
#[derive(Debug, Default, PartialEq)]
struct Costs {
    /// From the waking until it ran.
    late: Vec<f64>,
    /// For how long it then ran, until it slept.
    ran: Vec<f64>,
    /// When it was woken, from the last start of a frame.
    at: Vec<f64>,
}

/// A thread that was woken.
struct Woken {
    link: Link,
    since: f64,
    /// When it was last given a CPU, and how long it has had one.
    running: Option<f64>,
    ran: f64,
    has_run: bool,
}

/// The wake-ups of a trace.
#[derive(Debug, PartialEq)]
struct Wakeups {
    links: HashMap<Link, Costs>,
    /// Of the trace.
    seconds: f64,
}

impl Wakeups {
    /// `first` begins the names of who wakes, and who is woken, at the start of a frame.
    fn of(trace: &str, threads: &HashMap<u32, String>, first: [&str; 2]) -> Result<Self> {
        let [first_by, first_woken] = first;
        let mut links: HashMap<Link, Costs> = HashMap::new();
        let mut woken: HashMap<u32, Woken> = HashMap::new();
        let (mut begin, mut end, mut start) = (None, 0.0, None);
        for line in trace.lines() {
            let Some(event) = parse(line) else { continue };
            let now = event.us;
            begin.get_or_insert(now);
            end = now;
            match event.what {
                What::Wakes { thread } => {
                    let Some(name) = threads.get(&thread) else {
                        continue;
                    };
                    // Somebody else's doing: an interrupt, or a limit of time.
                    let Some(by) = threads.get(&event.thread) else {
                        continue;
                    };
                    if by.starts_with(first_by) && name.starts_with(first_woken) {
                        start = Some(now);
                    }
                    let link = (by.clone(), name.clone());
                    let costs = links.entry(link.clone()).or_default();
                    costs.at.extend(start.map(|start| now - start));
                    woken.insert(
                        thread,
                        Woken {
                            link,
                            since: now,
                            running: None,
                            ran: 0.0,
                            has_run: false,
                        },
                    );
                }
                What::Switches { from, sleeps, to } => {
                    if let Some(one) = woken.get_mut(&from) {
                        one.ran += one.running.take().map_or(0.0, |since| now - since);
                    }
                    if sleeps
                        && let Some(one) = woken.remove(&from)
                        && let Some(costs) = links.get_mut(&one.link)
                    {
                        costs.ran.push(one.ran);
                    }
                    if let Some(one) = woken.get_mut(&to) {
                        one.running = Some(now);
                        if !one.has_run
                            && let Some(costs) = links.get_mut(&one.link)
                        {
                            costs.late.push(now - one.since);
                        }
                        one.has_run = true;
                    }
                }
            }
        }
        let begin = begin.context("perf recorded nothing")?;
        Ok(Self {
            links,
            seconds: (end - begin) / 1e6,
        })
    }

    fn text(&self, carrier: Carrier, size: u64, rate: f64) -> Result<String> {
        let frames = self.seconds * rate;
        let mut lines = Vec::new();
        let mut all = 0.0;
        for ((by, name), costs) in &self.links {
            let count = f64::from(u32::try_from(costs.late.len())?) / frames;
            if count < SELDOM {
                continue;
            }
            all += count;
            let [late, ran, at] = [&costs.late, &costs.ran, &costs.at].map(|times| median(times));
            let line = format!(
                "{count:>9.2} {:>10.1} {:>10.1}  {by} -> {name}",
                late?, ran?
            );
            lines.push((at?, line));
        }
        lines.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let mut text = String::new();
        writeln!(
            text,
            "{} of {size} bytes: {:.1} us to and fro, {all:.1} wake-ups",
            carrier.name(),
            1e6 / rate
        )?;
        writeln!(
            text,
            "a frame has  late us     ran us  who wakes -> who is woken (medians)"
        )?;
        for (_, line) in lines {
            writeln!(text, "{line}")?;
        }
        Ok(text)
    }
}

/// Of the scheduler.
struct Event {
    /// Who had the CPU.
    thread: u32,
    us: f64,
    what: What,
}

enum What {
    Wakes { thread: u32 },
    Switches { from: u32, sleeps: bool, to: u32 },
}

/// A line of perf, if it is one of ours. A thread's name may be anything, but for what stands
/// behind it.
fn parse(line: &str) -> Option<Event> {
    let (head, rest) = line.split_once(": sched:sched_")?;
    let mut words = head.split_whitespace();
    let thread = words.next()?.parse().ok()?;
    let us = words.next()?.parse::<f64>().ok()? * 1e6;
    let number = |text: &str, name: &str| {
        let (_, value) = text.rsplit_once(name)?;
        value.split_whitespace().next()?.parse().ok()
    };
    let what = if let Some(rest) = rest.strip_prefix("waking:") {
        let thread = number(rest, " pid=")?;
        What::Wakes { thread }
    } else {
        let rest = rest.strip_prefix("switch:")?;
        let (prev, next) = rest.split_once(" ==> ")?;
        let (_, state) = prev.rsplit_once("prev_state=")?;
        What::Switches {
            from: number(prev, " prev_pid=")?,
            // One that may run on was only pushed aside.
            sleeps: !state.starts_with('R'),
            to: number(next, " next_pid=")?,
        }
    };
    Some(Event { thread, us, what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wakeup_costs_what_passes_until_it_runs_and_what_it_then_runs() {
        let trace = "\
 1 10.000010: sched:sched_waking: comm=a b pid=2 prio=120 target_cpu=000
 1 10.000015: sched:sched_switch: prev_comm=x prev_pid=1 prev_prio=120 prev_state=S ==> next_comm=a b next_pid=2 next_prio=120
 2 10.000020: sched:sched_switch: prev_comm=a b prev_pid=2 prev_prio=120 prev_state=R+ ==> next_comm=z next_pid=9 next_prio=120
 9 10.000030: sched:sched_switch: prev_comm=z prev_pid=9 prev_prio=120 prev_state=S ==> next_comm=a b next_pid=2 next_prio=120
 2 10.000034: sched:sched_waking: comm=z pid=9 prio=120 target_cpu=000
 2 10.000040: sched:sched_switch: prev_comm=a b prev_pid=2 prev_prio=120 prev_state=S ==> next_comm=y next_pid=9 next_prio=120
";
        let threads = HashMap::from([(1, "a: CPU 0".to_owned()), (2, "daemon".to_owned())]);
        let found = Wakeups::of(trace, &threads, ["a: CPU", "daemon"]).unwrap();
        let link = ("a: CPU 0".to_owned(), "daemon".to_owned());
        assert_eq!(found.links.len(), 1, "that of a stranger is none");
        let costs = &found.links[&link];
        let round = |times: &[f64]| times.iter().map(|time| time.round()).collect::<Vec<_>>();
        assert_eq!(round(&costs.late), [5.0]);
        assert_eq!(round(&costs.ran), [15.0]);
        assert!((found.seconds - 30e-6).abs() < 1e-9);
    }
}
