// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which threads of this process belong to which daemon, and which of them
//! panicked.
//!
//! A thread inherits its blocked signals from the one that starts it. So each
//! daemon has a number, written as blocked real-time signals, which nobody
//! sends: all its threads have it, whoever starts them and whatever their name.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};

/// Number of the last daemon. The tests themselves have 0.
static LAST: AtomicU64 = AtomicU64::new(0);

/// Each with the number of its daemon.
static PANICS: Mutex<Vec<(u64, String)>> = Mutex::new(Vec::new());

/// The threads of one daemon.
pub struct Threads(u64);

impl Threads {
    /// Runs `start`, and owns all threads that come of it.
    pub fn of<T>(start: impl FnOnce() -> T) -> (Self, T) {
        static HOOK: Once = Once::new();
        HOOK.call_once(record_panics);
        let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let _blocked = Blocked::new(number);
        (Self(number), start())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        tasks
            .filter(|task| settled_number(&task.as_ref().unwrap().path()) == Some(self.0))
            .count()
    }

    /// Panics until now, also of threads that have ended, and caught ones.
    pub fn panics(&self) -> Vec<String> {
        let panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = panics.iter().filter(|(number, _)| *number == self.0);
        ours.map(|(_, what)| what.clone()).collect()
    }
}

fn record_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // No thread vanishes in its own hook; without /proc the process aborts.
        let number = number(Path::new("/proc/thread-self")).unwrap();
        if number != 0 {
            let name = std::thread::current().name().map(str::to_owned);
            let what = format!("thread {name:?} {info}");
            let mut panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
            panics.push((number, what));
        }
        print(info);
    }));
}

/// All real-time signals, as a number.
fn all() -> u64 {
    (1 << (libc::SIGRTMAX() - libc::SIGRTMIN() + 1)) - 1
}

/// The daemon of a thread, by its blocked signals. `None`: it has ended.
fn number(task: &Path) -> Option<u64> {
    let status = fs::read_to_string(task.join("status")).ok()?;
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let blocked = u64::from_str_radix(blocked.unwrap().trim(), 16).unwrap();
    Some((blocked >> (libc::SIGRTMIN() - 1)) & all())
}

/// A thread that ends or starts another one blocks all signals for a moment.
fn settled_number(task: &Path) -> Option<u64> {
    loop {
        let number = number(task)?;
        if number != all() {
            return Some(number);
        }
        std::thread::yield_now();
    }
}

/// A number as blocked signals of this thread, for the time of its life.
struct Blocked(libc::sigset_t);

impl Blocked {
    fn new(number: u64) -> Self {
        assert!(number < all());
        let mut old = signals();
        // SAFETY: no new set; the old one is writable.
        let rc = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut old) };
        assert_eq!(rc, 0);
        let mut new = old;
        for (bit, signal) in (libc::SIGRTMIN()..=libc::SIGRTMAX()).enumerate() {
            let rc = if number >> bit & 1 == 1 {
                // SAFETY: the set is initialised.
                unsafe { libc::sigaddset(&raw mut new, signal) }
            } else {
                // SAFETY: as above.
                unsafe { libc::sigdelset(&raw mut new, signal) }
            };
            assert_eq!(rc, 0);
        }
        set_mask(&new);
        Self(old)
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        set_mask(&self.0);
    }
}

fn signals() -> libc::sigset_t {
    // SAFETY: all zeroes is a valid signal set; it is plain data.
    unsafe { std::mem::zeroed() }
}

fn set_mask(mask: &libc::sigset_t) {
    // SAFETY: the set is initialised; the old one is not wanted.
    let rc = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
    assert_eq!(rc, 0);
}
