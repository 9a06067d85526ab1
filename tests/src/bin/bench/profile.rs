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
//!
//! What the processors of the VMs do meanwhile, their own kernels tell, in a run of its own:
//! tracing takes its time there.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use bufshare_tests::child::Process;

use crate::guest_trace;
use crate::machines::{Carrier, Machines};
use crate::program::output;
use crate::wakeups::{Event, Wakeups, What};

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
            let text = trace(&path)?;
            let events = text.lines().filter_map(parse);
            let wakeups = Wakeups::of(events, &threads, ["a: CPU", kicked])?;
            println!(
                "{} of {size} bytes: {:.1} us to and fro",
                carrier.name(),
                1e6 / rate
            );
            println!("{}", wakeups.text(wakeups.seconds() * rate)?);
        }
        for (carrier, size) in [(Carrier::HandOver, PAGE), (Carrier::Serial, SMALL)] {
            for text in guest_trace::run(&mut machines, carrier, size)? {
                println!("{text}");
            }
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

/// A line of perf.
fn parse(line: &str) -> Option<Event> {
    let (head, what) = What::parse(line)?;
    let mut words = head.split_whitespace();
    let thread = words.next()?.parse().ok()?;
    let seconds: f64 = words.next()?.trim_end_matches(':').parse().ok()?;
    Some(Event {
        thread,
        us: seconds * 1e6,
        what,
    })
}
