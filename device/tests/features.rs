// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Front ends and drivers that lack features, and what the device offers to all.

mod common;

use bufshare_protocol::status::Status;
use common::daemon::{Daemon, Setup};
use common::frontend::{Asked, Options, PAGE, without};
use common::pair::share;
use common::until;
use common::vm::{DATA, Vm};
use vhost::vhost_user::Frontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Proto;
use vhost::{VhostBackend, VringConfigData};

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
    assert_eq!(whole[56..60], 1024_u32.to_le_bytes(), "bytes of an event");
    assert_eq!(whole[60..64], 16_u32.to_le_bytes(), "entries of a batch");
    assert_eq!(whole[64..68], 2_u32.to_le_bytes(), "direct alone");
    assert_eq!(whole[68..72], 9_u32.to_le_bytes(), "extents and streams");
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
