// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where processes run, and for how long they have

use std::path::PathBuf;
use std::time::Duration;

fn tasks(process: u32) -> impl Iterator<Item = PathBuf> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    tasks.map(|task| task.unwrap().path())
}

/// What all threads of a process have run so far.
pub fn cpu_time(process: u32) -> Duration {
    let times = tasks(process).map(|task| {
        let stat = std::fs::read_to_string(task.join("schedstat")).unwrap();
        let nanoseconds = stat.split_whitespace().next().unwrap();
        Duration::from_nanos(nanoseconds.parse().unwrap())
    });
    times.sum()
}

/// The CPUs that this process may run on.
pub fn cpus() -> Vec<usize> {
    // SAFETY: a set of bits, all of which may be 0.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is writable and as long as is said.
    let rc = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    assert_eq!(rc, 0);
    let all = 0..usize::try_from(libc::CPU_SETSIZE).unwrap();
    // SAFETY: the number is within the set.
    all.filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) })
        .collect()
}

/// Has all threads of a process, and those that they start, run on one CPU.
pub fn pin(process: u32, cpu: usize) {
    // SAFETY: a set of bits, all of which may be 0.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the number is one that the kernel gave, so it is within the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    for task in tasks(process) {
        let thread = task.file_name().unwrap().to_str().unwrap().parse().unwrap();
        // SAFETY: the set is initialised and as long as is said.
        let rc = unsafe { libc::sched_setaffinity(thread, size_of_val(&set), &raw const set) };
        assert_eq!(rc, 0);
    }
}
