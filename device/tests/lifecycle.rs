// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Front ends that come, go, stop, pause, stall and die.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;

use bufshare_protocol::event::EventKind;
use bufshare_protocol::request::Request;
use bufshare_protocol::response::Response;
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{BufferId, Extent};
use common::daemon::{Daemon, Setup, Start};
use common::frontend::{Asked, Options, PAGE};
use common::other::Other;
use common::vm::{DATA, Vm, unexport_request};
use common::{soon, until};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Proto;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};

fn two() -> (Daemon, Vm, Vm) {
    two_with(Daemon::start)
}

fn two_with(start: Start) -> (Daemon, Vm, Vm) {
    boot(start(&Setup::default()))
}

fn boot(daemon: Daemon) -> (Daemon, Vm, Vm) {
    let a = Vm::boot(&daemon.socket("a"));
    let b = Vm::boot(&daemon.socket("b"));
    (daemon, a, b)
}

/// `from` exports a page and `to` maps it. Returns the handle.
fn share(from: &mut Vm, to: &mut Vm) -> u64 {
    let id = from.export(DATA, PAGE);
    let handle = to.attach(id);
    to.map(handle, PAGE);
    handle
}

fn without(features: Proto) -> Options {
    let options = Options::default();
    Options {
        protocol: options.protocol - features,
        ..options
    }
}

#[test]
fn exporter_stop_is_answered_when_the_importer_has_unmapped() {
    // This thread may have to wait for a processor longer than a driver gets.
    let (daemon, mut a, mut b) = boot(Daemon::start(&Setup {
        release: Some(soon()),
        ..Setup::that_waits("60")
    }));
    let handle = share(&mut a, &mut b);
    b.front.shm.hold(true);
    let shm = b.front.shm.clone();

    let stop = std::thread::spawn(move || {
        a.front.stop();
        // Counted at the moment of the answer.
        (a, shm.windows())
    });
    assert_eq!(b.event_of(EventKind::Revoked).handle, handle);
    b.unmap(handle);
    until("the unmap request", || daemon.session("b")["jobs"] != 0);
    assert!(
        !stop.is_finished(),
        "answered while b's VMM maps a's memory"
    );
    b.front.shm.hold(false);
    let (a, windows) = stop.join().unwrap();

    assert_eq!(windows, 0);
    assert_eq!(daemon.peer("a")["unproved_stops"], 0);
    assert_eq!(daemon.broker("b")["deadlines_missed"], 0);
    drop((a, b));
    daemon.finish();
}

#[test]
fn stop_with_a_map_request_outstanding_is_answered_at_once() {
    let (daemon, mut a, mut b) = two();
    share(&mut a, &mut b);
    let id = a.export(DATA + PAGE, PAGE);
    let handle = b.attach(id);
    b.front.shm.forget_asked();
    b.front.shm.hold(true);
    b.submit(&Request::Map {
        handle,
        offset: 0,
        len: PAGE,
    });
    b.front.shm.until_waiting();

    b.front.stop();
    // It did not wait for the end of the request, which nobody has answered yet.
    assert_eq!(daemon.session("b")["jobs"], 1);
    b.front.shm.hold(false);

    b.front.shm.until("the map", |asked| {
        asked.iter().any(|a| matches!(a, Asked::Map { .. }))
    });
    // That one was on its way and cannot be called back. No other follows.
    assert_eq!(b.front.shm.forgive_while_stopped(), 1);
    b.start_fresh();
    let handle = b.attach(id);
    b.map(handle, PAGE);
    assert_eq!(b.front.shm.windows(), 1);
    drop((a, b));
    daemon.finish();
}

#[test]
fn nothing_is_asked_of_a_front_end_whose_device_is_stopped() {
    let (daemon, mut a, mut b) = two();
    let first = a.export(DATA, PAGE);
    let second = a.export(DATA + PAGE, PAGE);
    let handles = [b.attach(first), b.attach(second)];
    b.map(handles[0], PAGE);
    b.map(handles[1], PAGE);
    b.unmap(handles[1]);

    let bases = b.front.stop();
    let pending = a.submit(&unexport_request(first));
    a.request(&Request::GetCaps { version: 2 }).unwrap();
    let stop = std::thread::spawn(move || {
        a.front.stop();
        a
    });
    until("an unmap job", || daemon.session("b")["jobs"] != 0);
    let windows = b.front.shm.windows();
    assert!(!stop.is_finished());
    b.resume(&bases);
    let mut a = stop.join().unwrap();

    assert_eq!(windows, 2, "paused with its windows");
    // The one that the driver still has mapped shows zero pages.
    until("the unmaps after the resumption", || {
        b.front.shm.windows_of(&a.front.ram_file) == 0 && b.front.shm.windows() == 1
    });
    let _ = pending;
    a.start_fresh();
    share(&mut a, &mut b);
    drop((a, b));
    daemon.finish();
}

/// B stops while it is asked for the first half of a buffer of A, and maps that all the
/// same. Returns the buffer, and where B's queues were.
fn stop_in_the_middle_of_a_mapping(a: &mut Vm, b: &mut Vm) -> (BufferId, Vec<u16>) {
    let extents = [0, 2].map(|page| Extent {
        addr: DATA + page * PAGE,
        len: PAGE,
    });
    let request = Vm::export_of(extents.to_vec(), vec![]);
    let Ok(Response::Exported { id, .. }) = a.request(&request) else {
        panic!("EXPORT");
    };
    let handle = b.attach(id);
    b.front.shm.hold(true);
    b.submit(&Request::Map {
        handle,
        offset: 0,
        len: 2 * PAGE,
    });
    b.front.shm.until_waiting();
    let bases = b.front.stop();
    b.front.shm.hold(false);
    until("the first part", || b.front.shm.windows() == 1);
    assert_eq!(b.front.shm.forgive_while_stopped(), 1);
    (id, bases)
}

#[test]
fn half_a_mapping_is_taken_from_a_stopped_importer_before_the_stop_is_answered() {
    let (daemon, mut a, mut b) = boot(impatient(Daemon::start));
    let (_, bases) = stop_in_the_middle_of_a_mapping(&mut a, &mut b);

    a.front.stop();

    // Counted at the moment of the answer.
    assert_eq!(b.front.shm.windows_of(&a.front.ram_file), 0);
    assert_eq!(daemon.peer("a")["unproved_stops"], 0);
    assert_eq!(b.front.shm.forgive_while_stopped(), 1, "the forced unmap");
    b.front.shm.forget_asked();
    b.resume(&bases);
    b.request(&Request::GetCaps { version: 2 }).unwrap();
    assert_eq!(daemon.session("b")["jobs"], 0);
    let asked = b.front.shm.asked();
    assert!(!asked.iter().any(|a| matches!(a, Asked::Map { .. })));
    a.start_fresh();
    share(&mut a, &mut b);
    drop((a, b));
    daemon.finish();
}

#[test]
fn half_a_mapping_is_unmapped_when_the_importer_goes_on() {
    let (daemon, mut a, mut b) = two();
    let (id, bases) = stop_in_the_middle_of_a_mapping(&mut a, &mut b);

    b.resume(&bases);

    until("the unmap", || b.front.shm.windows() == 0);
    // A MAP of the same pages would fail with the old one until that is over.
    until("the end of the old request", || {
        daemon.session("b")["jobs"] == 0
    });
    let handle = b.attach(id);
    b.map(handle, 2 * PAGE);
    assert_eq!(b.front.shm.windows(), 2);
    drop((a, b));
    daemon.finish();
}

#[test]
fn rest_of_a_mapping_is_not_asked_for_after_the_vmm_dropped_its_first_part() {
    let (daemon, mut a, mut b) = two();
    let (id, _) = stop_in_the_middle_of_a_mapping(&mut a, &mut b);

    // The reset drops the first part. The driver looks before the daemon does.
    b.front.device_reset();
    b.front.read_config(0, 4).unwrap();
    b.start_fresh();
    b.request(&Request::GetCaps { version: 2 }).unwrap();

    until("the end of the old request", || {
        daemon.session("b")["jobs"] == 0
    });
    assert_eq!(
        b.front.shm.windows(),
        0,
        "shows a's memory without an owner"
    );
    a.unexport(id);
    share(&mut a, &mut b);
    assert_eq!(b.front.shm.windows(), 1);
    drop((a, b));
    daemon.finish();
}

#[test]
fn windows_that_survive_a_reset_are_unmapped_when_the_device_runs_again() {
    let daemon = Daemon::start(&Setup::default());
    let options = Options {
        keep_windows: true,
        ..Options::default()
    };
    let mut a = Vm::boot(&daemon.socket("a"));
    let mut b = Vm::boot_with(&daemon.socket("b"), &options);
    share(&mut a, &mut b);

    b.reset();

    until("the unmap", || b.front.shm.windows() == 0);
    drop((a, b));
    daemon.finish();
}

/// The daemon does not wait long for front ends whose device is stopped.
fn impatient(start: Start) -> Daemon {
    start(&Setup::that_waits("1"))
}

/// All of `vms` stop at once. Each waits for the next one, and serves nothing
/// meanwhile, so that one has to be answered too early.
fn stop_in_a_circle(daemon: &Daemon, vms: &mut [&mut Vm], names: &[&str]) {
    let shms: Vec<_> = vms.iter().map(|vm| vm.front.shm.clone()).collect();
    // None unmaps anything before all have stopped.
    for shm in &shms {
        shm.hold(true);
    }
    std::thread::scope(|scope| {
        for vm in &mut *vms {
            scope.spawn(|| vm.front.stop());
        }
        until("all of them to stop", || {
            let up = |name: &&str| daemon.broker(name)["up"] == true;
            !names.iter().any(up)
        });
        for shm in &shms {
            shm.hold(false);
        }
    });

    // One that waits until the time is over for all, and forces nobody, leaves more.
    let unproved = names
        .iter()
        .map(|name| daemon.peer(name)["unproved_stops"].as_u64());
    assert_eq!(unproved.sum::<Option<u64>>(), Some(1));
    for vm in vms {
        until("the forced unmap", || vm.front.shm.windows() == 0);
        assert_eq!(vm.front.shm.forgive_while_stopped(), 1);
    }
}

#[test]
fn two_stops_at_once_are_answered_and_neither_keeps_access() {
    let (daemon, mut a, mut b) = boot(impatient(Daemon::start));
    share(&mut a, &mut b);
    share(&mut b, &mut a);

    stop_in_a_circle(&daemon, &mut [&mut a, &mut b], &["a", "b"]);

    a.start_fresh();
    b.start_fresh();
    share(&mut a, &mut b);
    assert_eq!(b.front.shm.windows(), 1);
    assert_eq!(a.front.shm.windows(), 0);
    drop((a, b));
    daemon.finish();
}

#[test]
fn three_stops_in_a_circle_are_answered_and_none_keeps_access() {
    let (daemon, mut a, mut b) = boot(impatient(Daemon::start));
    let mut c = Vm::boot(&daemon.socket("c"));
    share(&mut a, &mut b);
    share(&mut b, &mut c);
    share(&mut c, &mut a);

    stop_in_a_circle(&daemon, &mut [&mut a, &mut b, &mut c], &["a", "b", "c"]);

    drop((a, b, c));
    daemon.finish();
}

#[test]
fn importer_that_stays_stopped_loses_access_by_force_before_the_stop_is_answered() {
    let (daemon, mut a, mut b) = boot(impatient(Daemon::spawn));
    let mut c = Vm::boot(&daemon.socket("c"));
    share(&mut a, &mut b);
    share(&mut a, &mut c);
    let bases = b.front.stop();

    a.front.stop();

    // Counted at the moment of the answer.
    assert_eq!(b.front.shm.windows_of(&a.front.ram_file), 0);
    assert_eq!(b.front.shm.forgive_while_stopped(), 1, "asked once");
    assert_eq!(daemon.peer("a")["unproved_stops"], 0);
    let log = daemon.log();
    assert!(log.contains("a: stopped while b is stopped too"), "{log}");
    assert!(log.contains("QEMU 11.1 dies of that"), "{log}");
    b.resume(&bases);
    c.request(&Request::GetCaps { version: 2 }).unwrap();
    a.start_fresh();
    share(&mut a, &mut b);
    drop((a, b, c));
    daemon.finish();
}

#[test]
fn log_does_not_say_that_qemu_dies_if_the_importer_is_another_vmm() {
    let daemon = impatient(Daemon::spawn);
    let mut a = Vm::boot(&daemon.socket("a"));
    let other = without(Proto::SHARED_OBJECT);
    let mut b = Vm::boot_with(&daemon.socket("b"), &other);
    share(&mut a, &mut b);
    b.front.stop();

    a.front.stop();

    assert!(b.front.shm.forgive_while_stopped() > 0);
    let log = daemon.log();
    assert!(log.contains("a: stopped while b is stopped too"), "{log}");
    assert!(!log.contains("QEMU"), "{log}");
    drop((a, b));
    daemon.finish();
}

#[test]
fn importer_that_was_reset_and_has_no_driver_is_not_waited_for() {
    let (daemon, mut a, mut b) = boot(impatient(Daemon::start));
    share(&mut a, &mut b);
    b.front.stop();

    // Nobody notifies the daemon of any of this.
    b.front.device_reset();

    assert_eq!(a.event_of(EventKind::Released).peer, 2);
    // So there is nothing to wait for.
    assert_eq!(daemon.broker("b")["windows"], 0);
    a.front.stop();
    assert_eq!(daemon.peer("a")["unproved_stops"], 0);
    drop((a, b));
    daemon.finish();
}

#[test]
fn stop_of_an_exporter_is_answered_although_the_importer_stalls() {
    let (daemon, mut a, mut b) = boot(impatient(Daemon::spawn));
    share(&mut a, &mut b);
    b.front.shm.hold(true);

    a.front.stop();

    assert_eq!(daemon.peer("a")["unproved_stops"], 1);
    assert!(daemon.log().contains("did not prove"));
    until("the missed deadline to be counted", || {
        daemon.broker("b")["deadlines_missed"] == 1
    });
    assert_eq!(b.front.shm.windows(), 1);
    b.front.shm.hold(false);
    until("the unmap", || {
        b.front.shm.windows_of(&a.front.ram_file) == 0
    });
    drop((a, b));
    daemon.finish();
}

/// B is paused with a buffer of A mapped, and A's stop is held up for it.
struct Held {
    daemon: Daemon,
    b: Vm,
    bases: Vec<u16>,
    /// A's connection.
    connection: std::os::fd::RawFd,
    /// Gives A, and how many of B's windows showed its RAM at the answer.
    stop: std::thread::JoinHandle<(Vm, usize)>,
}

fn held() -> Held {
    held_with(Daemon::start)
}

fn held_with(start: Start) -> Held {
    let daemon = start(&Setup::that_waits("unlimited"));
    let mut a = Vm::boot(&daemon.socket("a"));
    let mut b = Vm::boot(&daemon.socket("b"));
    share(&mut a, &mut b);
    let bases = b.front.stop();
    let shm = b.front.shm.clone();
    let connection = a.front.raw().as_raw_fd();
    let stop = std::thread::spawn(move || {
        a.front.stop();
        let windows = shm.windows_of(&a.front.ram_file);
        (a, windows)
    });
    until("the stop", || daemon.broker("a")["up"] == false);
    assert!(!stop.is_finished());
    Held {
        daemon,
        b,
        bases,
        connection,
        stop,
    }
}

#[test]
fn unlimited_wait_holds_a_stop_until_a_paused_importer_has_lost_access() {
    let Held {
        daemon,
        mut b,
        bases,
        stop,
        ..
    } = held();

    b.resume(&bases);

    let (a, windows) = stop.join().unwrap();
    assert_eq!(windows, 0);
    assert_eq!(daemon.peer("a")["unproved_stops"], 0);
    drop((a, b));
    daemon.finish();
}

#[test]
fn stopped_importer_that_pretends_to_be_reset_keeps_the_stop_held() {
    let Held {
        daemon,
        mut b,
        bases,
        stop,
        ..
    } = held();

    // As a new driver does, but QEMU still has the window.
    b.front.read_config(0, 4).unwrap();

    let state = daemon.broker("b");
    assert_eq!(
        (&state["windows"], &state["attachments"]),
        (&1.into(), &1.into())
    );
    assert!(
        !stop.is_finished(),
        "answered while b's VMM maps a's memory"
    );
    b.resume(&bases);
    let (a, windows) = stop.join().unwrap();
    assert_eq!(windows, 0);
    drop((a, b));
    daemon.finish();
}

#[test]
fn stop_that_is_held_is_answered_when_the_importer_was_reset() {
    let Held {
        daemon,
        mut b,
        stop,
        ..
    } = held();

    b.front.device_reset();

    let (a, windows) = stop.join().unwrap();
    assert_eq!(windows, 0);
    assert_eq!(daemon.peer("a")["unproved_stops"], 0);
    drop((a, b));
    daemon.finish();
}

#[test]
fn stop_that_is_held_goes_on_when_the_importer_leaves_with_its_windows() {
    let Held {
        daemon, b, stop, ..
    } = held();

    let threads = daemon.threads();
    // SAFETY: an open socket.
    unsafe { libc::shutdown(b.front.raw().as_raw_fd(), libc::SHUT_RDWR) };
    // Its main thread, its worker and its shared-memory thread.
    until("the end of b's threads", || daemon.threads() + 3 <= threads);

    assert_ne!(daemon.session("b"), serde_json::Value::Null);
    assert_eq!(daemon.broker("b")["windows"], 1);
    assert!(
        !stop.is_finished(),
        "answered while b's VMM maps a's memory"
    );
    drop(b);
    let (a, _) = stop.join().unwrap();
    assert_eq!(daemon.peer("a")["unproved_stops"], 0);
    drop(a);
    daemon.finish();
}

#[test]
fn log_says_which_process_holds_a_stop_up_after_its_session() {
    let Held {
        daemon, b, stop, ..
    } = held_with(Daemon::spawn);
    // SAFETY: an open socket.
    unsafe { libc::shutdown(b.front.raw().as_raw_fd(), libc::SHUT_RDWR) };

    let pid = std::process::id();
    until("the state of b's session", || {
        daemon.report()["holds"][0]["state"] == "ended"
    });
    let hold = daemon.report()["holds"][0].clone();
    assert_eq!(
        (&hold["importer"], &hold["owner"]),
        (&"b".into(), &"a".into())
    );
    assert_eq!(hold["vmm_pid"], pid);
    let line = format!(
        "a: its stop waits. b: its VMM (connected by process {pid}) still maps 4096 bytes of a in 1 window; its \
         session has ended, so it cannot be asked: end that process"
    );
    until(&line, || daemon.log().contains(&line));
    assert!(!stop.is_finished());
    // Which is the way out.
    drop(b);
    let (a, _) = stop.join().unwrap();
    assert_eq!(daemon.peer("a")["unproved_stops"], 0);
    drop(a);
    daemon.finish();
}

/// Nobody can open the RAM file of `vm` a second time, so it cannot be marked.
fn forbid_to_open_ram(vm: &Vm) {
    // Whoever opens the file now has to wait, or to do without. The attempt ends the
    // lease, of which its owner hears by a signal.
    // SAFETY: no handler is set.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    let ram = vm.front.ram_file.as_raw_fd();
    // SAFETY: takes no pointer.
    let leased = unsafe { libc::fcntl(ram, libc::F_SETLEASE, libc::F_RDLCK) };
    assert_eq!(leased, 0, "{}", std::io::Error::last_os_error());
}

fn boot_by(other: &Other) -> Vm {
    let options = Options {
        socket: Some(other.socket.clone()),
        ..Options::default()
    };
    Vm::boot_with(Path::new("unused"), &options)
}

/// B, whose VMM is another process, has a page of A mapped for which the host does
/// not report who holds it, and its session has ended.
fn unmarked(daemon: &Daemon) -> (Vm, Vm, Other) {
    let mut a = Vm::boot(&daemon.socket("a"));
    let other = Other::connect(&daemon.socket("b"));
    let mut b = boot_by(&other);
    forbid_to_open_ram(&a);
    share(&mut a, &mut b);
    // SAFETY: an open socket.
    unsafe { libc::shutdown(other.socket.as_raw_fd(), libc::SHUT_RDWR) };
    until("the state of b's session", || {
        daemon.report()["holds"][0]["state"] == "ended"
    });
    (a, b, other)
}

#[test]
fn memory_that_the_host_cannot_watch_is_held_until_the_importers_process_has_ended() {
    let daemon = Daemon::start(&Setup::default());
    let (mut a, b, mut other) = unmarked(&daemon);
    assert_eq!(daemon.report()["holds"][0]["vmm_pid"], other.pid());
    let stop = std::thread::spawn(move || {
        a.front.stop();
        a
    });
    until("the stop", || daemon.broker("a")["up"] == false);
    // The session is not over, nor is the stop answered, but by this.
    assert!(!stop.is_finished());

    other.end();

    let a = stop.join().unwrap();
    daemon.until_gone("b");
    assert_eq!(daemon.peer("a")["unproved_stops"], 0);
    drop((a, b));
    daemon.finish();
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
fn memory_that_the_host_cannot_watch_is_not_given_to_a_vmm_that_it_does_not_know() {
    let daemon = Daemon::spawn(&Setup::default());
    let mut a = Vm::boot(&daemon.socket("a"));
    let before = Vm::boot(&daemon.socket("b"));
    // Whoever connects the next one has ended before it is served.
    let mut other = Other::connect(&daemon.socket("b"));
    other.end();
    drop(before);
    let mut b = boot_by(&other);
    forbid_to_open_ram(&a);

    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    assert_eq!(b.try_map(handle, PAGE), Err(Status::HostError));

    let line = "b: a buffer cannot be mapped: the host reports neither who has it mapped";
    assert!(daemon.log().contains(line), "{}", daemon.log());
    // A front end of a process that is known gets it.
    let mut c = Vm::boot(&daemon.socket("c"));
    forbid_to_open_ram(&a);
    let handle = c.attach(id);
    c.map(handle, PAGE);
    drop((a, b));
    c.unmap(handle);
    c.ok(&Request::Flush);
    drop(c);
    daemon.finish();
}

#[test]
fn front_end_that_cannot_be_served_any_more_is_asked_to_unmap_before_it_is_left() {
    let (daemon, mut a, mut b) = boot(impatient(Daemon::spawn));
    share(&mut a, &mut b);
    b.front.stop();
    let mut frontend = b.front.raw();

    // What QEMU sends for a guest that puts its rings at an odd address. The
    // vhost-user crate ends the connection at that.
    let ram = b.front.ram.ptr as u64;
    let odd = VringConfigData {
        queue_max_size: 16,
        queue_size: 16,
        flags: 0,
        desc_table_addr: ram + 8,
        used_ring_addr: ram + 0x1000,
        avail_ring_addr: ram + 0x2000,
        log_addr: None,
    };
    let refused = frontend.set_vring_addr(0, &odd).is_err();
    assert!(refused || frontend.set_vring_enable(0, true).is_err());

    until("the unmap", || b.front.shm.windows() == 0);
    a.front.stop();
    assert_eq!(daemon.peer("a")["unproved_stops"], 0);
    daemon.until_gone("b");
    let log = daemon.log();
    assert!(log.contains("b: it cannot be served any more"), "{log}");
    assert_eq!(b.front.shm.forgive_while_stopped(), 1);
    drop(b);
    let mut b = Vm::boot(&daemon.socket("b"));
    a.start_fresh();
    share(&mut a, &mut b);
    drop((a, b));
    daemon.finish();
}

#[test]
fn front_end_that_hangs_up_is_not_kept_until_others_have_unmapped_its_memory() {
    let daemon = Daemon::start(&Setup::that_waits("unlimited"));
    let mut a = Vm::boot(&daemon.socket("a"));
    let mut b = Vm::boot(&daemon.socket("b"));
    share(&mut a, &mut b);
    let bases = b.front.stop();
    // No request has this number, so the vhost-user crate ends the connection.
    let unknown: Vec<u8> = [101_u32, 1, 0].map(u32::to_ne_bytes).concat();
    let connection = a.front.raw().as_raw_fd();
    // SAFETY: an open socket, and a buffer of that length.
    let sent = unsafe { libc::write(connection, unknown.as_ptr().cast(), unknown.len()) };
    assert_eq!(sent, 12);
    until("its leave", || daemon.broker("a")["up"] == false);
    assert!(!daemon.session("a").is_null(), "b maps its memory");

    // SAFETY: an open socket.
    unsafe { libc::shutdown(connection, libc::SHUT_RDWR) };

    daemon.until_gone("a");
    let shm = b.front.shm.clone();
    let shown = || shm.windows_of(&a.front.ram_file);
    assert_eq!(shown(), 1);
    b.resume(&bases);
    until("the unmap", || shown() == 0);
    drop((a, b));
    daemon.finish();
}

#[test]
fn front_end_that_asks_on_and_hangs_up_is_not_kept_until_others_have_unmapped_its_memory() {
    let daemon = Daemon::start(&Setup::that_waits("unlimited"));
    let mut a = Vm::boot(&daemon.socket("a"));
    let mut b = Vm::boot(&daemon.socket("b"));
    share(&mut a, &mut b);
    let bases = b.front.stop();
    let connection = a.front.raw().as_raw_fd();
    let send = |message: &[u8]| {
        // SAFETY: an open socket, and a buffer of that length.
        unsafe {
            libc::send(
                connection,
                message.as_ptr().cast(),
                message.len(),
                libc::MSG_DONTWAIT,
            )
        }
    };
    // GET_VRING_BASE of queue 0, which waits for b.
    let stop: Vec<u8> = [11_u32, 1, 8, 0, 0].map(u32::to_ne_bytes).concat();
    assert_eq!(send(&stop), 20);
    until("its stop", || daemon.broker("a")["up"] == false);
    // More than fits on the way to those that wait.
    let get_features: Vec<u8> = [1_u32, 1, 0].map(u32::to_ne_bytes).concat();
    for _ in 0..1000 {
        if send(&get_features) < 0 {
            break;
        }
    }

    // SAFETY: an open socket.
    unsafe { libc::shutdown(connection, libc::SHUT_RDWR) };

    daemon.until_gone("a");
    b.resume(&bases);
    drop((a, b));
    daemon.finish();
}

#[test]
fn front_end_that_refuses_to_unmap_is_not_believed_while_it_holds_the_memory() {
    let (daemon, mut a, mut b) = two();
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    b.map(handle, PAGE);
    b.front.shm.refuse_unmaps();

    let ticket = a.submit(&unexport_request(id));
    b.unmap(handle);

    b.front.shm.until("the refusal", |asked| {
        asked
            .iter()
            .any(|a| matches!(a, Asked::RefusedUnmap { .. }))
    });
    // Nothing is known of it any more, so it cannot be served.
    until("the end of b's session", || {
        daemon.session("b")["running"] == false
    });
    assert_eq!(b.front.shm.windows(), 1);
    assert!(!a.is_done(ticket));
    drop(b);
    a.finish(ticket).unwrap();
    drop(a);
    daemon.finish();
}

#[test]
fn device_is_not_started_while_its_stop_is_under_way() {
    let daemon = Daemon::start(&Setup::that_waits("unlimited"));
    let mut a = Vm::boot(&daemon.socket("a"));
    let mut b = Vm::boot(&daemon.socket("b"));
    share(&mut a, &mut b);
    let bases = b.front.stop();
    let raw = a.front.raw();
    // The control queue still runs.
    let stop = std::thread::spawn(move || raw.get_vring_base(1));
    until("the stop", || daemon.broker("a")["up"] == false);
    let wakeups = || daemon.session("a")["wakeups"].as_u64();

    // When it wakes for the second time it has done what the first one was for.
    for _ in 0..2 {
        let before = wakeups();
        a.front.rings[0].kick.write(1).unwrap();
        until("a's worker to wake", || wakeups() > before);
    }

    assert_eq!(daemon.session("a")["running"], false);
    assert_eq!(daemon.broker("a")["up"], false);
    assert!(!stop.is_finished(), "answered while b maps a's memory");
    b.resume(&bases);
    stop.join().unwrap().unwrap();
    // Only then, for whoever stops a part of a device.
    until("the start", || daemon.session("a")["running"] == true);
    a.request(&Request::GetCaps { version: 2 }).unwrap();
    drop((a, b));
    daemon.finish();
}

#[test]
fn stop_that_is_held_ends_when_the_importer_does() {
    let Held {
        daemon, b, stop, ..
    } = held();

    drop(b);

    let (a, _) = stop.join().unwrap();
    assert_eq!(daemon.peer("a")["unproved_stops"], 0);
    drop(a);
    daemon.finish();
}

#[test]
fn stop_that_is_held_ends_with_its_front_end() {
    let Held {
        daemon,
        b,
        connection,
        stop,
        ..
    } = held();

    // SAFETY: an open socket.
    unsafe { libc::shutdown(connection, libc::SHUT_RDWR) };

    daemon.until_gone("a");
    assert!(stop.join().is_err(), "the front end had no answer");
    drop(b);
    daemon.finish();
}

#[test]
fn reset_importer_is_reported_to_the_exporter_and_loses_its_windows() {
    let (daemon, mut a, mut b) = two();
    share(&mut a, &mut b);

    b.reset();

    assert_eq!(a.event_of(EventKind::Released).peer, 2);
    until("the unmap", || b.front.shm.windows() == 0);
    drop((a, b));
    daemon.finish();
}

#[test]
fn paused_importer_keeps_its_window_and_goes_on_with_it() {
    let (daemon, mut a, mut b) = two();
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    let (at, _) = b.map(handle, PAGE);

    b.pause_and_resume();

    b.request(&Request::GetCaps { version: 2 }).unwrap();
    assert_eq!(b.front.shm.windows(), 1, "no unmap was asked for");
    assert_eq!(b.map(handle, PAGE), (at, true));
    b.unmap(handle);
    b.unmap(handle);
    b.detach(handle);
    a.event_of(EventKind::Released);
    drop((a, b));
    daemon.finish();
}

#[test]
fn resumed_driver_is_notified_of_what_it_lost() {
    let (daemon, mut a, mut b) = two();
    let id = a.export(DATA, PAGE);

    a.pause_and_resume();

    let event = a.event_of(EventKind::Revoked);
    assert_eq!((event.id, event.handle), (id, 0));
    assert_eq!(b.event_of(EventKind::PeerDown).peer, 1);
    assert_eq!(b.event_of(EventKind::PeerUp).peer, 1);
    share(&mut a, &mut b);
    drop((a, b));
    daemon.finish();
}

#[test]
fn fresh_driver_is_not_notified_of_what_another_lost() {
    let (daemon, mut a, mut b) = two();
    a.export(DATA, PAGE);

    a.reset();
    share(&mut b, &mut a);

    let kinds: Vec<EventKind> = a.events().iter().map(|e| e.kind).collect();
    assert!(!kinds.contains(&EventKind::Revoked), "{kinds:?}");
    drop((a, b));
    daemon.finish();
}

#[test]
fn front_end_that_dies_with_a_map_outstanding_ends_its_session() {
    let (daemon, mut a, mut b) = two();
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    b.front.shm.hold(true);
    b.submit(&Request::Map {
        handle,
        offset: 0,
        len: PAGE,
    });
    b.front.shm.until_waiting();

    drop(b);

    daemon.until_gone("b");
    let mut b = Vm::boot(&daemon.socket("b"));
    let handle = b.attach(id);
    b.map(handle, PAGE);
    drop((a, b));
    daemon.finish();
}

#[test]
fn front_end_that_leaves_its_channel_open_leaves_nothing_behind() {
    let daemon = Daemon::start(&Setup::default());
    let mut a = Vm::boot(&daemon.socket("a"));
    let threads = daemon.threads();
    let mut b = Vm::boot(&daemon.socket("b"));
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    b.front.shm.hold(true);
    b.submit(&Request::Map {
        handle,
        offset: 0,
        len: PAGE,
    });
    b.front.shm.until_waiting();

    // SAFETY: an open socket.
    unsafe { libc::shutdown(b.front.raw().as_raw_fd(), libc::SHUT_RDWR) };

    until("the end of its threads", || daemon.threads() == threads);
    // It could still read the request, and the file that came with it.
    assert_ne!(daemon.session("b"), serde_json::Value::Null);
    drop(b);
    daemon.until_gone("b");
    let mut next = Vm::boot(&daemon.socket("b"));
    let handle = next.attach(id);
    next.map(handle, PAGE);
    drop((a, next));
    daemon.finish();
}

#[test]
fn second_front_end_waits_until_the_first_has_gone() {
    let daemon = Daemon::start(&Setup::default());
    let first = Vm::boot(&daemon.socket("a"));
    let path = daemon.socket("a");
    // Connections that nobody has accepted yet have no inode.
    let waiting = || {
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
        let columns = sockets.lines().map(|line| line.split_whitespace());
        let ends = columns.map(|mut columns| (columns.nth(6), columns.next()));
        let wanted = (Some("0"), path.to_str());
        ends.filter(|end| *end == wanted).count()
    };
    let socket = path.clone();
    let second = std::thread::spawn(move || Vm::boot(&socket));
    until("the second to connect", || waiting() == 1);
    // Whatever the second does, the first goes on.
    let mut first = first;
    first.export(DATA, PAGE);
    assert_eq!(waiting(), 1, "the second was accepted");
    assert!(!second.is_finished());

    drop(first);

    drop(second.join().unwrap());
    assert!(daemon.peer("a")["sessions"].as_u64().unwrap() >= 2);
    daemon.finish();
}

#[test]
fn thousand_sessions_leave_nothing_behind() {
    let daemon = Daemon::spawn(&Setup::default());
    let mut b = Vm::boot(&daemon.socket("b"));
    let mut once = || {
        let mut a = Vm::boot(&daemon.socket("a"));
        share(&mut a, &mut b);
        share(&mut b, &mut a);
        drop(a);
        let handle = b.event_of(EventKind::Revoked).handle;
        b.unmap(handle);
        b.detach(handle);
        daemon.until_gone("a");
        let Ok(bufshare_protocol::response::Response::Buffers { entries, .. }) =
            b.request(&Request::List { cursor: 0 })
        else {
            panic!("LIST");
        };
        for buffer in entries.iter().filter(|buffer| buffer.owned) {
            b.unexport(buffer.id);
        }
    };
    once();
    // The accept loop makes the next session's things when someone connects,
    // and has given back the last one's when the report says so.
    until("the threads of the first session", || {
        daemon.threads() <= 12
    });
    let (fds, threads) = (daemon.fds(), daemon.threads());

    for _ in 0..1000 {
        once();
    }

    until("the descriptors of the last session", || {
        daemon.fds() <= fds
    });
    until("the threads of the last session", || {
        daemon.threads() <= threads
    });
    drop(b);
    daemon.finish();
}

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
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    b.front.shm.hold(true);
    b.submit(&Request::Map {
        handle,
        offset: 0,
        len: PAGE,
    });
    b.front.shm.until_waiting();

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
fn program_that_ends_takes_no_front_end_and_no_export() {
    let daemon = Daemon::spawn(&Setup::that_waits("unlimited"));
    let (mut daemon, mut a, mut b) = boot(daemon);
    share(&mut a, &mut b);
    let bases = b.front.stop();

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

#[test]
fn front_end_without_shmem_can_export_and_gets_no_shmem() {
    let daemon = Daemon::spawn(&Setup::default());
    let mut a = Vm::boot_with(&daemon.socket("a"), &without(Proto::SHMEM));
    let mut b = Vm::boot(&daemon.socket("b"));
    let handle = share(&mut a, &mut b);
    let theirs = b.export(DATA, PAGE);

    let refused = a
        .try_attach(theirs)
        .and_then(|handle| a.try_map(handle, PAGE));

    assert_eq!(refused.unwrap_err(), Status::NoShmem);
    assert_eq!(a.front.config[4] & 1, 0, "CAP_MAP");
    assert_eq!(b.front.read_config(4, 1).unwrap()[0] & 1, 1, "CAP_MAP");
    assert!(daemon.log().contains("did not negotiate SHMEM"));
    b.unmap(handle);
    drop((a, b));
    daemon.finish();
}

#[test]
fn front_end_without_backend_channel_can_export_and_gets_no_shmem() {
    let daemon = Daemon::spawn(&Setup::default());
    let mut a = Vm::boot_with(
        &daemon.socket("a"),
        &without(Proto::BACKEND_REQ | Proto::SHMEM),
    );
    let mut b = Vm::boot(&daemon.socket("b"));
    share(&mut a, &mut b);
    let theirs = b.export(DATA, PAGE);

    let refused = a
        .try_attach(theirs)
        .and_then(|handle| a.try_map(handle, PAGE));

    assert_eq!(refused.unwrap_err(), Status::NoShmem);
    assert!(daemon.log().contains("did not negotiate BACKEND_REQ"));
    assert!(daemon.log().contains("did not negotiate SHMEM"));
    drop((a, b));
    daemon.finish();
}

#[test]
fn front_end_without_shared_object_has_its_barrier_in_the_page_that_is_never_mapped() {
    let daemon = Daemon::start(&Setup::default());
    let mut a = Vm::boot(&daemon.socket("a"));
    let mut b = Vm::boot_with(&daemon.socket("b"), &without(Proto::SHARED_OBJECT));

    share(&mut a, &mut b);

    let guard = (16 << 20) - PAGE;
    let asked = b.front.shm.asked();
    assert!(
        asked.contains(&Asked::RefusedUnmap {
            shm_offset: guard,
            len: PAGE
        }),
        "{asked:?}"
    );
    drop((a, b));
    daemon.finish();
}

#[test]
fn log_says_at_connect_what_a_front_end_lacks_and_it_cannot_import_without_that() {
    for (feature, name) in [
        (Proto::BACKEND_REQ, "BACKEND_REQ"),
        (Proto::BACKEND_SEND_FD, "BACKEND_SEND_FD"),
        (Proto::REPLY_ACK, "REPLY_ACK"),
        (Proto::SHMEM, "SHMEM"),
    ] {
        let daemon = Daemon::spawn(&Setup::default());
        let mut a = Vm::boot(&daemon.socket("a"));
        let id = a.export(DATA, PAGE);

        // No driver yet.
        let mut b = Vm::connect(&daemon.socket("b"), &without(feature));

        let said = format!("b: the front end did not negotiate {name}");
        until(&said, || daemon.log().contains(&said));
        let session = daemon.session("b");
        assert_eq!(session["can_map"], false, "{name}");
        let negotiated = session["features"].as_array().unwrap().clone();
        assert_eq!(negotiated.len(), 7, "{negotiated:?}");
        assert!(!negotiated.iter().any(|f| f == name), "{negotiated:?}");
        assert!(!daemon.log().contains("a: the front end did not negotiate"));
        b.start_fresh();
        assert_eq!(b.try_attach(id), Err(Status::NoShmem), "{name}");
        drop((a, b));
        daemon.finish();
    }
}

#[test]
fn log_says_all_that_a_front_end_without_protocol_features_lacks() {
    let daemon = Daemon::spawn(&Setup::default());
    let front = Frontend::connect(daemon.socket("a"), 2).unwrap();
    front.set_owner().unwrap();
    assert_ne!(front.get_features().unwrap(), 0);

    front.set_features(1 << 32).unwrap();

    let said = "a: the front end did not negotiate SHARED_OBJECT";
    until(said, || daemon.log().contains(said));
    assert_eq!(daemon.log().matches("did not negotiate").count(), 8);
    assert_eq!(daemon.session("a")["can_map"], false);
    drop(front);
    daemon.finish();
}

#[test]
fn driver_without_event_idx_is_served() {
    let daemon = Daemon::start(&Setup::default());
    let options = Options {
        event_idx: false,
        ..Options::default()
    };
    let mut a = Vm::boot_with(&daemon.socket("a"), &options);
    let mut b = Vm::boot_with(&daemon.socket("b"), &options);

    share(&mut a, &mut b);

    drop((a, b));
    daemon.finish();
}

#[test]
fn config_space_is_answered_in_every_range() {
    let daemon = Daemon::start(&Setup::default());
    let mut a = Vm::boot(&daemon.socket("a"));

    let whole = a.front.read_config(0, 256).unwrap();
    let tail = a.front.read_config(240, 16).unwrap();

    assert_eq!(whole[0..4], 2_u32.to_le_bytes());
    assert_eq!(whole[8..12], 48_u32.to_le_bytes());
    assert_eq!(whole[32..40], (16_u64 << 20).to_le_bytes());
    assert_eq!(whole[48..56], 1_u64.to_le_bytes());
    assert_eq!(whole[56..60], 512_u32.to_le_bytes(), "bytes of an event");
    assert_eq!(whole[60..64], 16_u32.to_le_bytes(), "entries of a batch");
    assert_eq!(whole[64..68], 2_u32.to_le_bytes(), "direct alone");
    assert_eq!(whole[68..72], 1_u32.to_le_bytes(), "extents alone");
    assert_eq!(whole[72..], [0; 184], "to come");
    assert_eq!(tail, [0; 16]);
    drop(a);
    daemon.finish();
}

#[test]
fn largest_queue_of_virtio_is_accepted() {
    let daemon = Daemon::start(&Setup::default());
    let a = Vm::connect(&daemon.socket("a"), &Options::default());
    let raw = a.front.raw();
    raw.set_mem_table(&[a.front.ram_region()]).unwrap();

    raw.set_vring_num(0, 32768).unwrap();
    let base = a.front.ram.ptr as u64;
    let data = VringConfigData {
        queue_max_size: 32768,
        queue_size: 32768,
        flags: 0,
        desc_table_addr: base,
        avail_ring_addr: base + 0x10_0000,
        used_ring_addr: base + 0x20_0000,
        log_addr: None,
    };
    raw.set_vring_addr(0, &data).unwrap();

    drop((a, raw));
    daemon.finish();
}
