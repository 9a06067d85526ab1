// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Processes and VMs that are killed while they share
//!
//! Whoever is left is notified, nothing hangs, and the daemon's tables, descriptors
//! and windows are again as they were.

use std::time::Duration;

use anyhow::ensure;
use bufshare_tests::client::{Sight, status};
use bufshare_tests::pair::{Plan, Shared, Side};

static VMS: Shared = Shared::new(Plan::new);
const SIZE: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn the_death_of_the_exporting_process_takes_the_buffer_away() {
    VMS.with(|vms| {
        let before = vms.settled()?.descriptors;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        b.info()?;
        let (_, _, export) = a.offer(SIZE, 1)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        b.watch(map, 1)?;
        a.kill()?;
        b.wait_sigbus(map, LIMIT)?;
        b.wait_event_of("Revoked", &export.id)?;
        ensure!(
            b.sights()? == [Sight::Sigbus],
            "the importer saw other bytes"
        );
        ensure!(b.compare(map, 1)? == Sight::Sigbus);
        ensure!(status(b.import(&export.id))? == "NOT_FOUND");
        drop(b);
        vms.settled_as(before)
    });
}

#[test]
fn the_death_of_the_importing_process_releases_the_buffer() {
    VMS.with(|vms| {
        let before = vms.settled()?.descriptors;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, mine, export) = a.offer(SIZE, 2)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        b.watch(map, 2)?;
        b.kill()?;
        a.wait_event_of("Released", &export.id)?;
        let holdings = vms
            .daemon()?
            .settles("the attachment to go", |now| now.attachments == 0)?;
        ensure!(holdings.buffers == 1, "{holdings:?}");
        ensure!(a.compare(mine, 2)? == Sight::Pattern);
        // Another process imports it anew.
        let mut other = vms.b.client()?;
        let import = other.import(&export.id)?;
        let map = other.map(import.buf)?;
        ensure!(other.compare(map, 2)? == Sight::Pattern);
        drop((a, other));
        vms.settled_as(before)
    });
}

#[test]
fn the_death_of_the_exporting_vm_takes_its_buffers_away() {
    VMS.with(|vms| {
        let before = vms.settled()?.descriptors;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let peer = a.info()?.peer_id;
        b.info()?;
        let (_, _, export) = a.offer(SIZE, 3)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        b.watch(map, 3)?;
        vms.a.kill()?;
        b.wait_sigbus(map, LIMIT)?;
        b.wait_event("PeerDown", |event| {
            event.kind == "PeerDown" && event.peer == peer
        })?;
        b.wait_event_of("Revoked", &export.id)?;
        ensure!(
            b.sights()? == [Sight::Sigbus],
            "the importer saw other bytes"
        );
        ensure!(b.list()?.is_empty());
        ensure!(
            b.peers()?
                .iter()
                .all(|other| other.up == (other.id != peer))
        );
        // The one that is left still answers, and closing what is gone is fine.
        b.close(map.number)?;
        b.close(import.buf.number)?;
        vms.settled()?;
        // A new VM takes its place.
        vms.restart(Side::A)?;
        b.wait_event("PeerUp", |event| {
            event.kind == "PeerUp" && event.peer == peer
        })?;
        let mut a = vms.a.client()?;
        let (_, _, export) = a.offer(SIZE, 4)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        ensure!(b.compare(map, 4)? == Sight::Pattern);
        drop((a, b));
        vms.settled_as(before)
    });
}

#[test]
fn the_death_of_the_importing_vm_releases_the_buffer() {
    VMS.with(|vms| {
        let before = vms.settled()?.descriptors;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let peer = b.info()?.peer_id;
        let (_, mine, export) = a.offer(SIZE, 5)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        b.watch(map, 5)?;
        vms.b.kill()?;
        a.wait_event("PeerDown", |event| {
            event.kind == "PeerDown" && event.peer == peer
        })?;
        a.wait_event_of("Released", &export.id)?;
        let holdings = vms.daemon()?.settles("windows to go", |now| {
            now.attachments == 0 && now.windows == 0
        })?;
        ensure!(holdings.buffers == 1, "{holdings:?}");
        ensure!(a.compare(mine, 5)? == Sight::Pattern);
        vms.restart(Side::B)?;
        let mut b = vms.b.client()?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        ensure!(b.compare(map, 5)? == Sight::Pattern);
        drop((a, b));
        vms.settled_as(before)
    });
}
