// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices of exporters and importers that stop: what a pause or a reset waits for, what it
//! takes from whom, and what there is after it.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use std::os::fd::AsRawFd;

use bufshare_protocol::event::EventKind;
use bufshare_protocol::request::Request;
use bufshare_protocol::response::Response;
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{BufferId, Extent};
use common::daemon::{Daemon, Setup, impatient};
use common::frontend::{Asked, Options, PAGE, without};
use common::held::{Held, held, held_with, paused};
use common::other::Other;
use common::pair::{boot, map_that_waits, map_without_its_barrier, share, two};
use common::unmarked::{boot_by, forbid_to_open_ram, unmarked};
use common::vm::{DATA, Vm, unexport_request};
use common::{soon, until};
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Proto;

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
    b.front.shm.forget_asked();
    let id = map_that_waits(&mut a, &mut b, DATA + PAGE);

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
fn map_whose_vmm_stops_before_its_barrier_is_answered_when_it_goes_on() {
    let (daemon, mut a, mut b) = two();
    let (_, ticket) = map_without_its_barrier(&mut a, &mut b);

    let bases = b.front.stop();
    b.front.shm.hold(false);
    until("the barrier", || daemon.session("b")["jobs"] == 0);
    assert!(!b.is_done(ticket), "the ring is not the daemon's");
    b.resume(&bases);

    b.finish(ticket).unwrap();
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
fn device_is_not_started_while_its_stop_is_under_way() {
    let (daemon, mut a, mut b, bases) = paused(Daemon::start);
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
