// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ends a test program in which a test hangs.
//!
//! A front end waits for the daemon's answer without a limit, and a test for threads that
//! do. Nothing else would end a daemon's deadlock, nor say which test met it.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// Until it is dropped, the test that made it has this time.
pub struct Watchdog {
    _end: mpsc::Sender<()>,
}

impl Watchdog {
    pub fn new(limit: Duration) -> Self {
        let (end, ended) = mpsc::channel::<()>();
        let test = thread::current().name().unwrap_or("?").to_owned();
        thread::spawn(move || {
            if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                let mut text = format!("\nthe test {test} hangs: it has taken {limit:?}\n");
                let own = std::process::id().to_string();
                let children = tasks(&own, "children").collect::<String>();
                for process in [own.as_str()]
                    .into_iter()
                    .chain(children.split_whitespace())
                {
                    describe(process, &mut text);
                }
                // Not by a macro, which the test harness keeps for itself.
                let _ = std::io::stderr().write_all(text.as_bytes());
                std::process::abort();
            }
        });
        Self { _end: end }
    }
}

/// A file of each thread of a process, where it can be read.
fn tasks(process: &str, file: &str) -> impl Iterator<Item = String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task"));
    let files = tasks.into_iter().flatten().flatten();
    let files = files.map(move |task| task.path().join(file));
    files.map(|path| fs::read_to_string(path).unwrap_or_default())
}

/// What each thread does: its name, its system call, and where in the kernel it waits (which
/// only root may see).
fn describe(process: &str, text: &mut String) {
    let _ = writeln!(text, "---- threads of process {process}");
    let does = tasks(process, "syscall").zip(tasks(process, "wchan"));
    for (name, (call, place)) in tasks(process, "comm").zip(does) {
        let _ = writeln!(text, "{}: in {place}, call {}", name.trim(), call.trim());
    }
    // Of a daemon that is a process of its own this is its log.
    let log = format!("/proc/{process}/fd/2");
    if process != std::process::id().to_string()
        && fs::metadata(&log).is_ok_and(|log| log.is_file())
    {
        let log = fs::read(&log).unwrap_or_default();
        let _ = writeln!(text, "---- its log\n{}", String::from_utf8_lossy(&log));
    }
}
