// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Front ends that mean harm: to the daemon, or through it to other VMs.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bufshare_protocol::event::EventKind;
use bufshare_protocol::request::Request;
use bufshare_protocol::response::Response;
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{BufferId, Extent};
use common::daemon::{Daemon, Setup};
use common::frontend::{Asked, Options, PAGE, SHM_GPA, memfd};
use common::until;
use common::vm::{DATA, Ticket, Vm, unexport_request};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_device_bufshare::host::descriptors::needed;
use vhost_device_bufshare::vhost::limits::MAX_KEPT_MARKS;
use vmm_sys_util::eventfd::EventFd;

fn unsealed() -> Options {
    Options {
        sealed: false,
        ..Options::default()
    }
}

/// A kick or call descriptor that is something else.
fn as_eventfd(file: impl IntoRawFd) -> EventFd {
    // SAFETY: the number is given up by the one and taken by the other.
    unsafe { EventFd::from_raw_fd(file.into_raw_fd()) }
}

/// Whoever writes to it waits.
fn block(eventfd: &EventFd) {
    // SAFETY: takes no pointer.
    let rc = unsafe { libc::fcntl(eventfd.as_raw_fd(), libc::F_SETFL, 0) };
    assert_eq!(rc, 0);
    let _ = eventfd.read();
    eventfd.write(u64::MAX - 1).unwrap();
}

/// The front end of B is not served any more, for what stands in the log, and A is.
fn is_refused(daemon: &Daemon, a: &mut Vm, said: &[&str]) {
    daemon.until_gone("b");
    let log = daemon.log();
    for part in said {
        assert!(log.contains(part), "'{part}' is not in:\n{log}");
    }
    a.export(DATA, PAGE);
}

#[test]
fn call_descriptor_that_blocks_holds_nobody_up() {
    let daemon = Daemon::start(&Setup::default());
    let mut a = Vm::boot(&daemon.socket("a"));
    let b = Vm::boot(&daemon.socket("b"));
    // Not empty, or the read above would wait.
    for ring in &b.front.rings {
        ring.call.write(1).unwrap();
        block(&ring.call);
    }

    // B is notified of each.
    for page in 0..3 {
        a.export(DATA + page * PAGE, PAGE);
    }

    a.request(&Request::GetCaps { version: 2 }).unwrap();
    a.reset();
    a.request(&Request::GetCaps { version: 2 }).unwrap();
    assert_eq!(daemon.session("b")["running"], true);
    drop((a, b));
    daemon.finish();
}

/// Says so when it is dropped, also by a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn malformed(daemon: &Daemon) -> u64 {
    daemon.session("b")["malformed"].as_u64().unwrap()
}

#[test]
fn driver_that_makes_junk_available_for_events_without_end_holds_nobody_up() {
    let mut daemon = Daemon::spawn(&Setup::default());
    let mut a = Vm::boot(&daemon.socket("a"));
    let mut b = Vm::boot(&daemon.socket("b"));
    b.make_events_junk();
    let over = AtomicBool::new(false);

    let b = std::thread::scope(|scope| {
        let junk = scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                b.publish_junk();
            }
            b
        });
        let end = Over(&over);
        until("junk", || malformed(&daemon) > 0);
        for page in 0..100 {
            let id = a.export(DATA + page * PAGE, PAGE);
            if page % 2 == 0 {
                a.unexport(id);
            }
        }
        a.reset();
        a.export(DATA, PAGE);
        let before = malformed(&daemon);
        until("more junk", || malformed(&daemon) > before);
        daemon.end();
        drop(end);
        junk.join().unwrap()
    });
    drop((a, b));
    daemon.finish();
}

#[test]
fn descriptor_of_a_queue_that_is_no_eventfd_is_refused() {
    type Give = fn(&Frontend, &EventFd) -> vhost::Result<()>;
    let cases: [(&str, Give); 3] = [
        ("kick", |front, fd| front.set_vring_kick(0, fd)),
        ("call", |front, fd| front.set_vring_call(0, fd)),
        ("error", |front, fd| front.set_vring_err(0, fd)),
    ];
    for (what, give) in cases {
        let daemon = Daemon::spawn(&Setup::default());
        let mut a = Vm::boot(&daemon.socket("a"));
        let b = Vm::boot(&daemon.socket("b"));
        let (_reader, writer) = std::io::pipe().unwrap();

        // The session may end before its answer.
        let _ = give(&b.front.raw(), &as_eventfd(writer));

        let said = format!("as {what} descriptor of a queue, which has to be an eventfd");
        is_refused(&daemon, &mut a, &[&said]);
        drop((a, b));
        drop(Vm::boot(&daemon.socket("b")));
        daemon.finish();
    }
}

#[test]
fn second_kick_descriptor_of_a_queue_that_runs_is_refused() {
    let daemon = Daemon::spawn(&Setup::default());
    let mut a = Vm::boot(&daemon.socket("a"));
    let b = Vm::boot(&daemon.socket("b"));
    let second = EventFd::new(libc::EFD_NONBLOCK).unwrap();

    // The session may end before its answer. Else a write to the first one would wake
    // the daemon without end.
    let _ = b.front.raw().set_vring_kick(0, &second);

    let said = "b: the front end is refused: it gave queue 0 a second kick descriptor";
    is_refused(&daemon, &mut a, &[said]);
    drop((a, b));
    daemon.finish();
}

/// The vhost-user crate takes them, and serves what they are for.
#[test]
fn protocol_features_that_nobody_offered_are_refused() {
    let daemon = Daemon::spawn(&Setup::default());
    let mut a = Vm::boot(&daemon.socket("a"));
    let b = Vm::boot(&daemon.socket("b"));
    let other = VhostUserProtocolFeatures::RESET_DEVICE;

    // The session may end before its answer.
    let _ = (b.front.raw()).set_protocol_features(b.front.protocol | other);

    let said = format!(
        "b: the front end is refused: it asks for protocol features that were not offered: {:#x}",
        other.bits()
    );
    is_refused(&daemon, &mut a, &[&said]);
    drop((a, b));
    daemon.finish();
}

#[test]
fn vmm_that_refuses_mappings_does_not_keep_the_log_from_naming_what_it_holds() {
    let daemon = Daemon::spawn(&Setup::default());
    let mut a = Vm::boot(&daemon.socket("a"));
    let mut b = Vm::boot(&daemon.socket("b"));
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    b.map(handle, PAGE);
    b.front.shm.hoard();
    b.unmap(handle);
    b.ok(&Request::Flush);
    b.front.shm.hoard_no_more();

    b.front.shm.refuse(usize::MAX);
    until("what it holds", || {
        // Its lines are left out soon.
        for _ in 0..20 {
            assert!(b.try_map(handle, PAGE).is_err());
        }
        daemon.log().contains("still holds them")
    });

    b.front.shm.release();
    drop((a, b));
    daemon.finish();
}

#[test]
fn front_ends_that_come_again_and_again_do_not_fill_the_log() {
    let daemon = Daemon::spawn(&Setup::default());
    for _ in 0..40 {
        let mut front = UnixStream::connect(daemon.socket("b")).unwrap();
        // No message is as long as this one says.
        let _ = front.write_all(&[0xff; 12]);
        let _ = front.read_to_end(&mut Vec::new());
    }

    let log = daemon.log();
    let lines = log.lines().filter(|line| line.contains(" b: ")).count();
    // Where it listens, and ten in each of a few periods.
    assert!((2..=40).contains(&lines), "{log}");
    drop(Vm::boot(&daemon.socket("b")));
    daemon.finish();
}

#[test]
fn what_the_vhost_user_crate_says_of_front_ends_does_not_fill_the_log() {
    const TIMES: usize = 100;
    let daemon = Daemon::spawn(&Setup::default());
    // SET_VRING_NUM of 8 bytes: queue 0 is to have no entries.
    let no_entries = [8_u32, 1, 8, 0, 0].map(u32::to_ne_bytes).concat();
    let before = daemon.log().lines().count();
    for _ in 0..TIMES {
        let mut front = UnixStream::connect(daemon.socket("b")).unwrap();
        front.write_all(&no_entries).unwrap();
        let _ = front.read_to_end(&mut Vec::new());
    }

    let log = daemon.log();
    // Ten in each of a few periods.
    assert!(log.lines().count() <= before + TIMES / 2, "{log}");
    drop(Vm::boot(&daemon.socket("b")));
    daemon.finish();
}

/// As long as every buffer on the way to the daemon and back can be full.
const NOTHING_MOVES: Duration = Duration::from_millis(500);

#[test]
fn front_end_that_asks_and_does_not_read_is_seen_to_end() {
    let daemon = Daemon::spawn(&Setup::default());
    let front = UnixStream::connect(daemon.socket("b")).unwrap();
    // Request, version, length.
    let get_features = [1_u32, 1, 0].map(u32::to_ne_bytes).concat();
    until("the session", || !daemon.session("b").is_null());
    front.set_write_timeout(Some(NOTHING_MOVES)).unwrap();
    while (&front).write_all(&get_features).is_ok() {}
    // Unless the daemon only got no processor for so long.
    until("the daemon to wait for room for an answer", || {
        daemon.is_in(libc::SYS_sendmsg)
    });

    drop(front);

    daemon.until_gone("b");
    drop(Vm::boot(&daemon.socket("b")));
    daemon.finish();
}

/// B says where its RAM is, which is left out, and puts its rings there.
fn puts_rings_into_its_ram(b: &Vm) {
    let mut raw = b.front.raw();
    raw.add_mem_region(&b.front.ram_region()).unwrap();
    raw.set_vring_num(0, 64).unwrap();
    // Whoever serves these rings touches what is not there.
    assert!(raw.set_vring_addr(0, &rings(b)).is_err());
}

/// Where a driver puts its rings.
fn rings(vm: &Vm) -> VringConfigData {
    let base = vm.front.ram.ptr as u64;
    VringConfigData {
        queue_max_size: 64,
        queue_size: 64,
        flags: 0,
        desc_table_addr: base,
        avail_ring_addr: base + 0x1000,
        used_ring_addr: base + 0x2000,
        log_addr: None,
    }
}

#[test]
fn vm_whose_ram_can_be_made_shorter_is_refused_and_the_log_says_what_to_type() {
    let daemon = Daemon::spawn(&Setup::default());
    let mut a = Vm::boot(&daemon.socket("a"));
    let b = Vm::connect(&daemon.socket("b"), &unsealed());

    puts_rings_into_its_ram(&b);

    let said = [
        "b: its memory of 0x2000000 bytes at 0x0 is left out",
        "/memfd:guest-ram",
        "is not sealed",
        "-object memory-backend-memfd,id=m,size=SIZE,share=on -machine memory-backend=m",
        "unsealed-ram=allow",
        "b: the front end is refused: its driver's rings lie at ",
    ];
    is_refused(&daemon, &mut a, &said);
    // It would have ended the daemon.
    b.front.ram_file.set_len(0).unwrap();
    a.export(DATA + PAGE, PAGE);
    drop((a, b));
    daemon.finish();
}

#[test]
fn memory_table_that_is_left_out_as_a_whole_is_refused() {
    let daemon = Daemon::spawn(&Setup::default());
    let mut a = Vm::boot(&daemon.socket("a"));
    let b = Vm::connect(&daemon.socket("b"), &unsealed());

    let table = [b.front.ram_region()];
    assert!(b.front.raw().set_mem_table(&table).is_err());

    let said = [
        "b: its memory of 0x2000000 bytes at 0x0 is left out",
        "b: the front end is refused: all memory in its memory table is left out",
    ];
    is_refused(&daemon, &mut a, &said);
    drop((a, b));
    daemon.finish();
}

#[test]
fn region_that_ends_beyond_its_file_ends_nobody() {
    let region = 16 * PAGE;
    for (peer, sealed, file, at) in [
        ("name=b", true, PAGE, 0),
        ("name=b", true, region, 15 * PAGE),
        ("name=b,unsealed-ram=allow", false, PAGE, 0),
    ] {
        let daemon = Daemon::spawn(&Setup {
            peers: vec!["name=a,ram-fd=allow", peer],
            allow: vec!["a:b:rw"],
            ..Setup::default()
        });
        let mut a = Vm::boot(&daemon.socket("a"));
        let options = Options {
            ram: region,
            ram_in: Some((Arc::new(memfd(file, sealed)), at)),
            ..Options::default()
        };
        let b = Vm::connect(&daemon.socket("b"), &options);

        puts_rings_into_its_ram(&b);

        let said = [
            "b: its memory of 0x10000 bytes at 0x0 is left out",
            "ends before the region does",
            "b: the front end is refused: its driver's rings lie at ",
        ];
        is_refused(&daemon, &mut a, &said);
        drop((a, b));
        daemon.finish();
    }
}

#[test]
fn ram_that_can_be_made_shorter_is_used_where_the_operator_allows_it() {
    let daemon = Daemon::start(&Setup {
        peers: vec!["name=a,ram-fd=allow,unsealed-ram=allow", "name=b"],
        allow: vec!["a:b:rw"],
        ..Setup::default()
    });
    let mut a = Vm::boot_with(&daemon.socket("a"), &unsealed());
    let mut b = Vm::boot(&daemon.socket("b"));
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    b.map(handle, PAGE);
    drop((a, b));
    daemon.finish();
}

/// A page that some other device of the VM shows at this address.
fn page_at(gpa: u64, file: &File) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: gpa,
        memory_size: PAGE,
        // Nobody looks there.
        userspace_addr: 0x1000_0000_0000 + gpa,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    }
}

fn try_export(vm: &mut Vm, addr: u64) -> Result<(), Status> {
    let request = Vm::export_of(vec![Extent { addr, len: PAGE }], vec![]);
    vm.request(&request).map(drop)
}

#[test]
fn memory_that_is_no_sealed_memory_file_is_left_out_and_the_rest_is_served() {
    let daemon = Daemon::start(&Setup::default());
    let mut a = Vm::boot(&daemon.socket("a"));
    let mut raw = a.front.raw();
    let disk = File::open("/proc/self/exe").unwrap();
    let open = memfd(PAGE, false);
    let sealed = memfd(PAGE, true);
    let places = [1_u64 << 33, 1 << 34, 1 << 35];

    for (gpa, file) in places.into_iter().zip([&disk, &open, &sealed]) {
        raw.add_mem_region(&page_at(gpa, file)).unwrap();
    }

    assert_eq!(daemon.session("a")["ram_regions"], 2);
    assert_eq!(daemon.session("a")["window_regions"], 2);
    assert_eq!(try_export(&mut a, places[0]), Err(Status::NotRam));
    assert_eq!(try_export(&mut a, places[1]), Err(Status::NotRam));
    assert_eq!(try_export(&mut a, places[2]), Ok(()));
    for (gpa, file) in places.into_iter().zip([&disk, &open, &sealed]) {
        raw.remove_mem_region(&page_at(gpa, file)).unwrap();
    }
    assert_eq!(daemon.session("a")["ram_regions"], 1);
    assert_eq!(a.event_of(EventKind::Revoked).kind, EventKind::Revoked);
    drop((a, raw));
    daemon.finish();
}

#[test]
fn memory_table_without_end_is_refused() {
    let daemon = Daemon::spawn(&Setup::default());
    let mut a = Vm::boot(&daemon.socket("a"));
    let b = Vm::boot(&daemon.socket("b"));
    let mut raw = b.front.raw();
    let file = memfd(PAGE, true);
    let mut listed = 0;

    while raw
        .add_mem_region(&page_at((1 << 33) + listed * PAGE, &file))
        .is_ok()
    {
        listed += 1;
        assert!(listed < 1000, "takes any number");
    }

    assert_eq!(listed, 287, "and the RAM");
    let said = "b: the front end is refused: its memory table has more than";
    is_refused(&daemon, &mut a, &[said]);
    drop((a, b, raw));
    daemon.finish();
}

#[test]
fn front_end_that_takes_all_it_can_leaves_the_others_their_descriptors() {
    let daemon = Daemon::spawn(&Setup {
        // The soft limit is raised.
        open_files: Some((64, needed(3, 48))),
        ..Setup::default()
    });
    let greedy = ["a", "b"].map(|name| {
        let vm = Vm::boot(&daemon.socket(name));
        let mut raw = vm.front.raw();
        let file = memfd(PAGE, true);
        for page in 0..287 {
            raw.add_mem_region(&page_at((1 << 33) + page * PAGE, &file))
                .unwrap();
        }
        vm
    });
    let mut c = Vm::boot(&daemon.socket("c"));
    let [mut a, mut b] = greedy;

    for (page, vm) in [&mut a, &mut b].into_iter().enumerate() {
        let id = c.export(DATA + page as u64 * PAGE, PAGE);
        let handle = vm.attach(id);
        vm.map(handle, PAGE);
    }

    assert!(daemon.fds() > 2 * 287);
    drop((a, b, c));
    daemon.finish();
}

/// Adds `count` regions of a page to the RAM of `vm`, each with a file of its own, and
/// returns where they begin.
fn add_pages(raw: &mut Frontend, count: u64) -> u64 {
    let base = 1 << 33;
    for page in 0..count {
        let file = memfd(PAGE, true);
        raw.add_mem_region(&page_at(base + page * PAGE, &file))
            .unwrap();
    }
    base
}

fn remove_pages(raw: &mut Frontend, base: u64, count: u64) {
    let file = memfd(PAGE, true);
    for page in 0..count {
        raw.remove_mem_region(&page_at(base + page * PAGE, &file))
            .unwrap();
    }
}

#[test]
fn mappings_that_wait_keep_no_descriptors_of_ram_that_was_replaced() {
    const REGIONS: u64 = 100;
    const ROUNDS: usize = 5;
    let daemon = Daemon::spawn(&Setup::default());
    let mut a = Vm::boot(&daemon.socket("a"));
    let mut b = Vm::boot(&daemon.socket("b"));
    let mut raw = a.front.raw();
    // The first one is under way, and all others wait for it.
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    let map = |handle| Request::Map {
        handle,
        offset: 0,
        len: PAGE,
    };
    b.front.shm.hold(true);
    b.submit(&map(handle));
    b.front.shm.until_waiting();
    let before = daemon.fds();

    for _ in 0..ROUNDS {
        let base = add_pages(&mut raw, REGIONS);
        let id = a.export(base, PAGE);
        let handle = b.attach(id);
        b.submit(&map(handle));
        b.request(&Request::GetCaps { version: 2 }).unwrap();
        remove_pages(&mut raw, base, REGIONS);
    }

    assert_eq!(daemon.session("b")["jobs"], 1 + ROUNDS);
    assert!(daemon.fds() <= before, "{before}, then {}", daemon.fds());
    b.front.shm.hold(false);
    until("the end of the requests", || {
        daemon.session("b")["jobs"] == 0
    });
    assert_eq!(b.front.shm.windows(), 1, "the others were revoked");
    drop((a, b, raw));
    daemon.finish();
}

#[test]
fn mappings_under_way_are_made_when_ram_is_named_anew() {
    let daemon = Daemon::start(&Setup::default());
    let mut a = Vm::boot(&daemon.socket("a"));
    let mut b = Vm::boot(&daemon.socket("b"));
    let mut c = Vm::boot(&daemon.socket("c"));
    let raw = a.front.raw();
    let handles = [&mut c, &mut a].map(|vm| {
        let id = vm.export(DATA, PAGE);
        b.attach(id)
    });
    b.front.shm.hold(true);
    let maps = handles.map(|handle| {
        b.submit(&Request::Map {
            handle,
            offset: 0,
            len: PAGE,
        })
    });
    b.front.shm.until_waiting();
    until("both requests", || daemon.session("b")["jobs"] == 2);

    // With other descriptors, and something more.
    let more = memfd(PAGE, true);
    let table = [a.front.ram_region(), page_at(1 << 33, &more)];
    raw.set_mem_table(&table).unwrap();
    until("the new table", || daemon.session("a")["ram_regions"] == 2);
    b.front.shm.hold(false);

    for map in maps {
        b.finish(map).unwrap();
    }
    drop((a, b, c, raw));
    daemon.finish();
}

#[test]
fn window_of_one_device_is_not_exported_by_another_of_the_same_vm() {
    let daemon = Daemon::start(&Setup::default());
    let mut a = Vm::boot(&daemon.socket("a"));
    let half = Options::default().ram;
    let ram = Arc::new(memfd(2 * half, true));
    let [mut b, mut c] = [("b", 0), ("c", half)].map(|(name, at)| {
        let options = Options {
            ram_in: Some((ram.clone(), at)),
            ..Options::default()
        };
        Vm::boot_with(&daemon.socket(name), &options)
    });
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    let (at, _) = b.map(handle, PAGE);
    let mut raw = c.front.raw();

    // As a VMM does for all devices of its VM.
    for region in b.front.window_regions() {
        raw.add_mem_region(&region).unwrap();
    }

    assert_eq!(try_export(&mut c, SHM_GPA + at), Err(Status::NotRam));
    assert_eq!(daemon.session("c")["window_regions"], 1);
    assert_eq!(try_export(&mut c, DATA), Ok(()));
    drop((a, b, c, raw));
    daemon.finish();
}

/// A page of A that B can map, whose VMM keeps all files from now on.
fn hoarder(daemon: &Daemon) -> (Vm, Vm, BufferId, u64) {
    let mut a = Vm::boot(&daemon.socket("a"));
    let mut b = Vm::boot(&daemon.socket("b"));
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    b.front.shm.hoard();
    (a, b, id, handle)
}

/// B has nothing mapped, and asks for nothing.
fn until_unmapped(daemon: &Daemon, b: &Vm) {
    until("the unmap and its barrier", || {
        b.front.shm.windows() == 0
            && daemon.session("b")["jobs"] == 0
            && daemon.broker("b")["windows"] == 0
    });
}

/// A page that was unexported comes back when B's VMM has released it, and not before.
fn comes_back_with_the_files(daemon: Daemon, mut a: Vm, mut b: Vm, unexport: Ticket) {
    until_unmapped(&daemon, &b);
    a.request(&Request::GetCaps { version: 2 }).unwrap();
    assert!(!a.is_done(unexport), "b's VMM has the page");
    let holds = &daemon.report()["holds"];
    assert_eq!(
        (&holds[0]["importer"], &holds[0]["bytes"]),
        (&"b".into(), &PAGE.into())
    );
    // B's guest is served meanwhile, in the same place.
    let other = a.export(DATA + PAGE, PAGE);
    let handle = b.attach(other);
    b.map(handle, PAGE);

    b.front.shm.release();

    a.finish(unexport).unwrap();
    until("the end of the hold", || {
        daemon.report()["holds"][0]["windows"] == 1
    });
    drop((a, b));
    daemon.finish();
}

#[test]
fn vmm_that_keeps_what_it_said_it_unmapped_is_not_believed() {
    let daemon = Daemon::start(&Setup::default());
    let (mut a, mut b, id, handle) = hoarder(&daemon);
    b.map(handle, PAGE);
    b.unmap(handle);

    let unexport = a.submit(&unexport_request(id));

    b.front.shm.until("the unmap", |asked| {
        asked.iter().any(|a| matches!(a, Asked::Unmap { .. }))
    });
    comes_back_with_the_files(daemon, a, b, unexport);
}

#[test]
fn vmm_that_keeps_what_it_unmapped_before_is_not_believed_later() {
    let daemon = Daemon::start(&Setup::default());
    let (mut a, mut b, id, handle) = hoarder(&daemon);
    b.map(handle, PAGE);
    b.unmap(handle);
    b.ok(&Request::Flush);
    until_unmapped(&daemon, &b);

    let unexport = a.submit(&unexport_request(id));

    comes_back_with_the_files(daemon, a, b, unexport);
}

#[test]
fn vmm_that_keeps_what_it_refused_to_map_is_not_believed() {
    let daemon = Daemon::start(&Setup::default());
    let (mut a, mut b, id, handle) = hoarder(&daemon);
    b.front.shm.refuse(1);
    assert_eq!(b.try_map(handle, PAGE), Err(Status::MapFailed));

    let unexport = a.submit(&unexport_request(id));

    comes_back_with_the_files(daemon, a, b, unexport);
}

#[test]
fn stop_of_an_exporter_waits_for_files_that_were_unmapped() {
    let daemon = Daemon::start(&Setup::that_waits("unlimited"));
    let (mut a, mut b, _, handle) = hoarder(&daemon);
    b.map(handle, PAGE);
    b.unmap(handle);

    let stop = std::thread::spawn(move || {
        a.front.stop();
        a
    });
    until("the stop", || daemon.broker("a")["up"] == false);
    until_unmapped(&daemon, &b);
    b.request(&Request::GetCaps { version: 2 }).unwrap();
    assert!(!stop.is_finished(), "b's VMM has the page");
    b.front.shm.release();

    until("the answer", || stop.is_finished());
    drop((stop.join().unwrap(), b));
    daemon.finish();
}

#[test]
fn of_two_stops_that_wait_for_each_other_one_is_answered_unproved() {
    let daemon = Daemon::start(&Setup::that_waits("unlimited"));
    let (mut a, mut b, _, handle) = hoarder(&daemon);
    b.map(handle, PAGE);
    b.unmap(handle);
    b.ok(&Request::Flush);
    let id = b.export(DATA, PAGE);
    let handle = a.attach(id);
    a.front.shm.hoard();
    a.map(handle, PAGE);
    a.unmap(handle);
    a.ok(&Request::Flush);

    // As QEMU, they close nothing before their own stop is answered.
    let stops = [a, b].map(|mut vm| {
        std::thread::spawn(move || {
            vm.front.stop();
            vm.front.shm.release();
            vm
        })
    });

    until("both answers", || stops.iter().all(JoinHandle::is_finished));
    let vms = stops.map(|stop| stop.join().unwrap());
    // The first answer proved nothing.
    assert_eq!(daemon.peer("a")["unproved_stops"], 1);
    assert_eq!(daemon.peer("b")["unproved_stops"], 0);
    drop(vms);
    daemon.finish();
}

/// The VMM of `to` keeps a page of `from` that its guest has unmapped.
fn keep(from: &mut Vm, to: &mut Vm) {
    let id = from.export(DATA, PAGE);
    let handle = to.attach(id);
    to.front.shm.hoard();
    to.map(handle, PAGE);
    to.unmap(handle);
    to.ok(&Request::Flush);
}

/// A waits for B, which waits for C, which waits for A, because the VMM of A keeps
/// something of C, or its guest has it mapped.
fn stop_in_a_ring_of_three(shown: bool) {
    let daemon = Daemon::start(&Setup::that_waits("unlimited"));
    let mut a = Vm::boot(&daemon.socket("a"));
    let mut b = Vm::boot(&daemon.socket("b"));
    let mut c = Vm::boot(&daemon.socket("c"));
    keep(&mut a, &mut b);
    keep(&mut b, &mut c);
    if shown {
        let id = c.export(DATA, PAGE);
        let handle = a.attach(id);
        a.map(handle, PAGE);
    } else {
        keep(&mut c, &mut a);
    }

    let stops = [a, b, c].map(|mut vm| {
        std::thread::spawn(move || {
            let bases = vm.front.stop();
            vm.front.shm.release();
            // It was a pause.
            vm.resume(&bases);
            vm
        })
    });

    until("all answers", || stops.iter().all(JoinHandle::is_finished));
    let vms = stops.map(|stop| stop.join().unwrap());
    for (name, unproved) in [("a", 1), ("b", 0), ("c", 0)] {
        assert_eq!(daemon.peer(name)["unproved_stops"], unproved, "{name}");
    }
    drop(vms);
    daemon.finish();
}

#[test]
fn of_three_stops_that_wait_in_a_ring_one_is_answered_unproved() {
    stop_in_a_ring_of_three(false);
}

#[test]
fn stop_of_a_paused_importer_in_a_ring_of_three_is_answered_unproved() {
    stop_in_a_ring_of_three(true);
}

#[test]
fn vmms_that_keep_memory_of_each_other_do_not_fill_the_log_with_unproved_stops() {
    const STOPS: usize = 100;
    let daemon = Daemon::spawn(&Setup::that_waits("unlimited"));
    let mut a = Vm::boot(&daemon.socket("a"));
    let mut b = Vm::boot(&daemon.socket("b"));
    keep(&mut a, &mut b);
    keep(&mut b, &mut a);
    let stop = std::thread::spawn(move || {
        b.front.stop();
        b
    });
    until("the stop", || daemon.broker("b")["up"] == false);

    // Each closes the ring again, and is answered at once.
    for _ in 0..STOPS {
        a.pause_and_resume();
        a.request(&Request::GetCaps { version: 2 }).unwrap();
    }

    assert_eq!(daemon.peer("a")["unproved_stops"], STOPS);
    let log = daemon.log();
    let lines = log.lines().filter(|line| line.contains("did not prove"));
    // Ten in each of a few periods.
    assert!((1..=40).contains(&lines.count()), "{log}");
    a.front.shm.release();
    until("the answer", || stop.is_finished());
    drop((stop.join().unwrap(), a));
    daemon.finish();
}

/// A buffer of A in many pieces, of which B's VMM keeps as many files as it can get: B's
/// handle, and how often it was mapped.
fn hoard_all(daemon: &Daemon, a: &mut Vm, b: &mut Vm) -> (u64, usize) {
    let extents: Vec<Extent> = (0..PIECES)
        .map(|piece| Extent {
            addr: DATA + (2 * piece as u64 + 16) * PAGE,
            len: PAGE,
        })
        .collect();
    let Ok(Response::Exported { id, .. }) = a.request(&Vm::export_of(extents, vec![])) else {
        panic!("EXPORT");
    };
    let handle = b.attach(id);
    let mut maps = 0;
    while b.try_map(handle, PIECES as u64 * PAGE).is_ok() {
        b.unmap(handle);
        b.ok(&Request::Flush);
        maps += 1;
        assert!(maps < 1000, "takes any number");
    }
    assert_eq!(daemon.report()["holds"][0]["importer"], "b");
    (handle, maps)
}

/// Of that buffer.
const PIECES: usize = 128;

/// As many mappings as it has pieces, and more.
fn for_pieces() -> Setup {
    let mut setup = Setup::default();
    setup.extra.extend(["--max-windows", "256"]);
    setup
}

#[test]
fn vmm_that_keeps_all_files_of_an_owner_gets_no_more_of_them_but_those_of_others() {
    let daemon = Daemon::start(&for_pieces());
    let (mut a, mut b, ..) = hoarder(&daemon);
    let mut c = Vm::boot(&daemon.socket("c"));
    let of_c = c.export(DATA, PAGE);
    let of_c = b.attach(of_c);

    let (handle, maps) = hoard_all(&daemon, &mut a, &mut b);

    assert_eq!(maps * PIECES, MAX_KEPT_MARKS);
    b.map(of_c, PAGE);
    b.front.shm.release();
    until("room for one more", || {
        b.try_map(handle, PIECES as u64 * PAGE).is_ok()
    });
    drop((a, b, c));
    daemon.finish();
}

#[test]
fn mappings_of_a_vmm_that_keeps_all_files_hold_up_no_stop_of_others() {
    let daemon = Daemon::start(&for_pieces());
    let (mut a, mut b, ..) = hoarder(&daemon);
    let mut c = Vm::boot(&daemon.socket("c"));
    let of_c = c.export(DATA, PAGE);
    let of_c = b.attach(of_c);
    b.map(of_c, PAGE);
    hoard_all(&daemon, &mut a, &mut b);
    let handles: Vec<u64> = (0..20)
        .map(|page| {
            let id = a.export(DATA + (1000 + page) * PAGE, PAGE);
            b.attach(id)
        })
        .collect();
    b.front.shm.hoard_no_more();

    let maps: Vec<Ticket> = handles
        .into_iter()
        .map(|handle| {
            b.submit(&Request::Map {
                handle,
                offset: 0,
                len: PAGE,
            })
        })
        .collect();
    c.front.stop();

    assert_eq!(daemon.peer("c")["unproved_stops"], 0);
    for map in maps {
        assert_eq!(b.finish(map), Err(Status::HostError));
    }
    drop((a, b, c));
    daemon.finish();
}
