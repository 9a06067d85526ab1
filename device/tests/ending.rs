// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The end of the daemon, and what it says of those who still map memory.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Instant;

use bufshare_protocol::event::EventKind;
use bufshare_protocol::request::Request;
use bufshare_protocol::status::Status;
use bufshare_protocol::types::Extent;
use common::daemon::{Daemon, Setup, Start, impatient};
use common::frontend::PAGE;
use common::held::{Held, held_with, paused};
use common::pair::{boot, map_that_waits, share, two_with};
use common::unmarked::unmarked;
use common::vm::{DATA, Vm, unexport_request};
use common::{soon, until};
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;

fn end_while_idle(start: Start) {
    start(&Setup::default()).finish();
}

fn end_while_connected(start: Start) {
    let (daemon, mut a, mut b) = two_with(start);
    share(&mut a, &mut b);

    daemon.finish();
}

/// An end that nobody waits for. What it leaves.
fn at_once(daemon: &mut Daemon) -> Vec<String> {
    let start = Instant::now();
    let left = daemon.end_at_once();
    // Much less than it would wait for importers.
    assert!(start.elapsed() < soon(), "it waited");
    left
}

/// The daemon waits for importers for longer than any test does.
fn patient(start: Start) -> Daemon {
    start(&Setup::that_waits("600"))
}

fn end_with_a_map_outstanding(start: Start) {
    let (mut daemon, mut a, mut b) = boot(patient(start));
    map_that_waits(&mut a, &mut b, DATA);

    let left = at_once(&mut daemon);

    // It could still read the request, and the file that came with it.
    assert_eq!(left.len(), 1, "{left:?}");
    drop((a, b));
    daemon.finish();
}

fn end_while_a_stop_waits(start: Start) {
    let (mut daemon, mut a, mut b) = boot(patient(start));
    share(&mut a, &mut b);
    b.front.shm.hold(true);
    let raw = a.front.raw();
    let stop = std::thread::spawn(move || raw.get_vring_base(0));
    assert_eq!(b.event_of(EventKind::Revoked).kind, EventKind::Revoked);

    let left = at_once(&mut daemon);

    assert_eq!(left.len(), 1, "{left:?}");
    assert!(stop.join().unwrap().is_err());
    drop((a, b));
    daemon.finish();
}

fn end_while_a_stop_is_held(start: Start) {
    let Held {
        mut daemon,
        b,
        stop,
        ..
    } = held_with(start);

    let left = at_once(&mut daemon);

    assert_eq!(left.len(), 1, "{left:?}");
    assert!(stop.join().is_err(), "the front end had no answer");
    drop(b);
    daemon.finish();
}

#[test]
fn daemon_ends_while_idle() {
    end_while_idle(Daemon::start);
}

#[test]
fn daemon_ends_while_connected() {
    end_while_connected(Daemon::start);
}

#[test]
fn daemon_ends_with_a_map_outstanding() {
    end_with_a_map_outstanding(Daemon::start);
}

#[test]
fn daemon_ends_while_a_stop_waits() {
    end_while_a_stop_waits(Daemon::start);
}

#[test]
fn daemon_ends_while_a_stop_is_held() {
    end_while_a_stop_is_held(Daemon::start);
}

#[test]
fn sigterm_while_idle_ends_with_status_0() {
    end_while_idle(Daemon::spawn);
}

#[test]
fn sigterm_while_connected_ends_with_status_0() {
    end_while_connected(Daemon::spawn);
}

#[test]
fn sigterm_with_a_map_outstanding_and_another_end_at_once() {
    end_with_a_map_outstanding(Daemon::spawn);
}

#[test]
fn sigterm_while_a_stop_waits_and_another_end_at_once() {
    end_while_a_stop_waits(Daemon::spawn);
}

#[test]
fn sigterm_while_a_stop_is_held_and_another_end_at_once() {
    end_while_a_stop_is_held(Daemon::spawn);
}

#[test]
fn sigterm_while_a_buffer_is_mapped_revokes_it_before_the_end() {
    let (mut daemon, mut a, mut b) = two_with(Daemon::spawn);
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    let (at, _) = b.map(handle, PAGE);
    a.front.ram.write(DATA, b"shared");
    assert_eq!(b.front.shm.region.read(at, 6), b"shared");

    daemon.signal(libc::SIGTERM);

    assert_eq!(b.event_of(EventKind::Revoked).handle, handle);
    assert_eq!(a.event_of(EventKind::Revoked).id, id);
    assert!(!daemon.has_ended(), "b still maps a's memory");
    // It is answered when b has unmapped it.
    let unexport = a.submit(&unexport_request(id));
    a.request(&Request::GetCaps { version: 2 }).unwrap();
    assert!(!a.is_done(unexport));
    b.unmap(handle);
    a.finish(unexport).unwrap();
    assert_eq!(daemon.wait().code(), Some(0));
    assert_eq!(b.front.shm.windows(), 0);
    a.front.ram.write(DATA, b"secret");
    assert_eq!(b.front.shm.region.read(at, 6), [0; 6]);
    drop((a, b));
    daemon.finish_ended();
}

#[test]
fn every_signal_by_which_programs_are_ended_revokes_buffers() {
    for signal in [libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        let (mut daemon, mut a, mut b) = two_with(Daemon::spawn);
        share(&mut a, &mut b);

        daemon.signal(signal);

        assert_eq!(daemon.wait().code(), Some(0), "signal {signal}");
        assert_eq!(b.front.shm.windows_of(&a.front.ram_file), 0);
        drop((a, b));
        daemon.finish_ended();
    }
}

#[test]
fn sigterm_takes_memory_from_importers_that_run_and_do_not_release_it() {
    let (mut daemon, mut a, mut b) = two_with(Daemon::spawn);
    share(&mut a, &mut b);
    share(&mut b, &mut a);

    daemon.end();

    // What its clients still look at shows zero pages.
    assert_eq!(b.front.shm.windows_of(&a.front.ram_file), 0);
    assert_eq!(a.front.shm.windows_of(&b.front.ram_file), 0);
    drop((a, b));
    daemon.finish();
}

#[test]
fn sigterm_while_an_importer_is_paused_says_so_and_does_not_force_it() {
    let (mut daemon, mut a, mut b) = boot(impatient(Daemon::spawn));
    let mut c = Vm::boot(&daemon.socket("c"));
    share(&mut a, &mut b);
    share(&mut a, &mut c);
    b.front.stop();

    daemon.signal(libc::SIGTERM);
    let left = daemon.wait_still_mapped();

    assert_eq!(left.len(), 1, "{left:?}");
    let pid = std::process::id();
    let line =
        format!("b: its VMM (connected by process {pid}) still maps 4096 bytes of a in 1 window; ");
    assert!(left[0].starts_with(&line), "{left:?}");
    assert!(left[0].contains("paused"), "{left:?}");
    assert_eq!(b.front.shm.windows_of(&a.front.ram_file), 1);
    assert_eq!(b.front.shm.forgive_while_stopped(), 0, "it may go on");
    assert_eq!(c.front.shm.windows_of(&a.front.ram_file), 0);
    drop((a, b, c));
    daemon.finish_ended();
}

#[test]
fn sigterm_while_the_host_does_not_report_who_holds_memory_is_status_3() {
    let mut daemon = impatient(Daemon::spawn);
    let (a, b, other) = unmarked(&daemon);

    daemon.signal(libc::SIGTERM);
    let left = daemon.wait_still_mapped();

    assert_eq!(left.len(), 1, "{left:?}");
    let line = format!(
        "b: its VMM (connected by process {}) still maps 4096 bytes of a in 1 window; its session has ended",
        other.pid()
    );
    assert!(left[0].starts_with(&line), "{left:?}");
    drop((a, b, other));
    daemon.finish_ended();
}

#[test]
fn program_that_ends_takes_no_front_end_and_no_export() {
    let (mut daemon, mut a, mut b, bases) = paused(Daemon::spawn);

    daemon.signal(libc::SIGTERM);

    until("the end to begin", || daemon.report()["ending"] == true);
    let report = daemon.report();
    let hold = &report["holds"][0];
    assert_eq!(
        (&hold["importer"], &hold["owner"]),
        (&"b".into(), &"a".into())
    );
    assert_eq!(
        (&hold["windows"], &hold["bytes"]),
        (&1.into(), &4096.into())
    );
    assert_eq!(hold["state"], "stopped");
    assert_eq!(hold["vmm_pid"], std::process::id());
    let export = Vm::export_of(
        vec![Extent {
            addr: DATA,
            len: PAGE,
        }],
        vec![],
    );
    assert_eq!(a.request(&export), Err(Status::HostError));
    assert!(Frontend::connect(daemon.socket("c"), 2).is_err());
    // It ends when the paused one goes on, and so has lost access.
    b.resume(&bases);
    assert_eq!(daemon.wait().code(), Some(0));
    assert_eq!(b.front.shm.windows_of(&a.front.ram_file), 0);
    drop((a, b));
    daemon.finish_ended();
}
