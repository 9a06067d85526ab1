// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the fixtures promise: no panic of a daemon goes unnoticed, and none of
//! a test is taken for one.

#![allow(clippy::panic, clippy::unwrap_used)]

mod common;

use std::thread::JoinHandle;

use common::daemon::{Daemon, Setup};
use common::threads::Threads;
use common::until;

/// A thread that starts a thread that panics.
fn panics_below() -> JoinHandle<()> {
    std::thread::spawn(|| {
        let below = std::thread::spawn(|| panic!("on purpose"));
        assert!(below.join().is_err());
    })
}

#[test]
fn panic_belongs_to_the_daemon_whose_thread_started_the_thread() {
    let (first, thread) = Threads::of(panics_below);
    let (second, ()) = Threads::of(|| ());
    thread.join().unwrap();
    panics_below().join().unwrap();

    let panics = first.panics();

    assert_eq!(panics.len(), 1, "{panics:?}");
    assert!(panics[0].contains("on purpose"), "{panics:?}");
    assert_eq!(second.panics(), [""; 0]);
}

#[test]
fn threads_are_counted_until_they_end() {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (threads, _) = Threads::of(|| {
        std::thread::spawn(move || {
            let waits = std::thread::spawn(move || stopped.recv());
            waits.join().unwrap().unwrap_err();
        })
    });
    until("both threads", || threads.count() == 2);

    drop(stop);

    until("their end", || threads.count() == 0);
}

#[test]
#[should_panic(expected = "Daemon::finish was not called")]
fn daemon_that_is_not_finished_fails_its_test() {
    drop(Daemon::start(&Setup::default()));
}
