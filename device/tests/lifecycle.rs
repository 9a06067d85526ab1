// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sessions of front ends that come, go and die.

mod common;

use std::os::fd::AsRawFd;

use bufshare_protocol::event::EventKind;
use bufshare_protocol::request::Request;
use bufshare_protocol::status::Status;
use common::daemon::{Daemon, Setup, impatient};
use common::frontend::{Asked, PAGE};
use common::held::paused;
use common::pair::{boot, map_that_waits, map_without_its_barrier, share, two};
use common::until;
use common::vm::{DATA, Vm};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VringConfigData};

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
    let (daemon, a, mut b, bases) = paused(Daemon::start);
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
    let (daemon, a, mut b, bases) = paused(Daemon::start);
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
fn front_end_that_dies_with_a_map_outstanding_ends_its_session() {
    let (daemon, mut a, mut b) = two();
    let id = map_that_waits(&mut a, &mut b, DATA);

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
    let id = map_that_waits(&mut a, &mut b, DATA);

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

#[test]
fn memory_of_a_map_whose_vmm_dies_before_its_barrier_comes_back() {
    let (daemon, mut a, mut b) = two();
    let (id, _) = map_without_its_barrier(&mut a, &mut b);

    drop(b);

    a.unexport(id);
    drop(a);
    daemon.finish();
}

#[test]
fn exporter_that_leaves_takes_its_memory_along() {
    let (daemon, mut a, mut b) = two();
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    b.map(handle, PAGE);

    drop(a);

    assert_eq!(b.event_of(EventKind::Revoked).handle, handle);
    b.unmap(handle);
    b.front.shm.until("the unmap", |asked| {
        asked.iter().any(|a| matches!(a, Asked::Unmap { .. }))
    });
    assert_eq!(b.try_map(handle, PAGE), Err(Status::Revoked));
    drop(b);
    daemon.finish();
}

#[test]
fn importer_that_leaves_is_reported_to_the_exporter() {
    let (daemon, mut a, mut b) = two();
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    b.map(handle, PAGE);

    drop(b);

    let event = a.event_of(EventKind::Released);
    assert_eq!((event.id, event.peer), (id, 2));
    a.unexport(id);
    drop(a);
    daemon.finish();
}
