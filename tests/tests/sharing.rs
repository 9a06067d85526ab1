// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A buffer of one VM is used by the other

use anyhow::{Context as _, Result, ensure};
use bufshare_tests::client::{Sight, pattern, refused, status};
use bufshare_tests::pair::{Plan, Shared};
use bufshare_tests::vm::Vm;

static VMS: Shared = Shared::new(Plan::new);
const SIZE: u64 = 1 << 20;

#[test]
fn writes_of_either_side_are_seen_by_the_other() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, mine, export) = a.offer(SIZE, 1)?;
        let import = b.import(&export.id)?;
        ensure!(
            import.buf.size == SIZE && import.write && import.generation == export.generation,
            "{import:?}"
        );
        let theirs = b.map(import.buf)?;
        ensure!(b.compare(theirs, 1)? == Sight::Pattern);

        b.sync(import.buf, true, false)?;
        b.fill(theirs, 2)?;
        b.sync(import.buf, true, true)?;
        ensure!(a.compare(mine, 2)? == Sight::Pattern);

        a.poke(mine, SIZE - 5, b"hello")?;
        ensure!(b.peek(theirs, SIZE - 5, 5)? == Some(b"hello".to_vec()));
        Ok(())
    });
}

#[test]
fn each_vm_exports_and_imports_at_the_same_time() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, from_a) = a.offer(SIZE, 3)?;
        let (_, _, from_b) = b.offer(2 * SIZE, 4)?;
        ensure!(from_a.id != from_b.id);
        let in_b = b.import(&from_a.id)?;
        let in_a = a.import(&from_b.id)?;
        let (in_a, in_b) = (a.map(in_a.buf)?, b.map(in_b.buf)?);
        ensure!(a.compare(in_a, 4)? == Sight::Pattern);
        ensure!(b.compare(in_b, 3)? == Sight::Pattern);
        Ok(())
    });
}

#[test]
fn every_byte_of_a_large_buffer_arrives() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(32 << 20, 5)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        ensure!(b.compare(map, 5)? == Sight::Pattern);
        Ok(())
    });
}

/// The other VM sees the pieces one after the other, as its host has mapped them.
#[test]
fn memory_of_an_alloc_in_many_pieces_is_mapped_in_their_order() {
    /// The most that a kernel gives at once.
    const PIECE: u64 = 4 << 20;
    const CONTIGUOUS: &str = "/sys/module/virtio_bufshare/parameters/contig_limit_mb";
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let mut bufs = Vec::new();
        for _ in 0..20 {
            bufs.push(a.alloc(PIECE)?);
        }
        // What is free first are pieces apart from each other.
        for buf in bufs.iter().step_by(2) {
            a.close(buf.number)?;
        }
        vms.a.write_file(CONTIGUOUS, b"1")?;
        let offer = a.offer(8 * PIECE, 24);
        vms.a.write_file(CONTIGUOUS, b"0")?;
        let (_, _, export) = offer?;
        let pieces = a.query(&export.id)?.extents;
        ensure!(pieces > 1, "it is in one piece");
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        ensure!(b.compare(map, 24)? == Sight::Pattern, "{pieces} pieces");
        Ok(())
    });
}

#[test]
fn memory_of_an_alloc_is_mapped_when_it_is_used() {
    VMS.with(|vms| {
        let mut a = vms.a.client()?;
        let buf = a.alloc(32 << 20)?;
        let map = a.map(buf)?;
        let (places, faults) = a.touch(map)?;
        ensure!(places == 16);
        ensure!(
            faults >= places,
            "{faults} page faults of a mapping that was new"
        );
        // Some of the process itself, perhaps.
        let (_, faults) = a.touch(map)?;
        ensure!(faults < places, "{faults} page faults for a second time");
        Ok(())
    });
}

#[test]
fn all_mappings_of_an_alloc_show_the_same_memory_in_a_child_and_in_another_process_too() {
    const SKIP: u64 = 3 * 4096;
    VMS.with(|vms| {
        let (mut a, mut other) = (vms.a.client()?, vms.a.client()?);
        let buf = a.alloc(SIZE)?;
        let (used, unused) = (a.map(buf)?, a.map(buf)?);
        a.fill(used, 21)?;
        let part = a.map_from(buf, SKIP)?;
        let theirs = other.adopt(a.program().pid(), 0)?;
        let theirs = other.map(theirs)?;
        ensure!(other.compare(theirs, 21)? == Sight::Pattern);
        // A child maps what its parent has not yet, and inherits what is mapped.
        for (map, seed) in [(unused, 22), (used, 23)] {
            ensure!(a.fill_in_child(map, seed)? == Sight::Pattern);
            for map in [used, unused] {
                ensure!(a.compare(map, seed)? == Sight::Pattern);
            }
            ensure!(other.compare(theirs, seed)? == Sight::Pattern);
            let rest = a.peek(part, 0, SIZE - SKIP)?.context("no memory")?;
            let skip = usize::try_from(SKIP)?;
            ensure!(pattern(seed, SIZE).get(skip..) == Some(rest.as_slice()));
        }
        Ok(())
    });
}

#[test]
fn a_buffer_of_one_page_and_an_odd_size_are_whole_pages() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        for (asked, got) in [(1, 4096), (4096, 4096), (4097, 8192)] {
            let buf = a.alloc(asked)?;
            ensure!(buf.size == got, "{asked} became {}", buf.size);
            let export = a.export(buf)?;
            ensure!(b.import(&export.id)?.buf.size == got);
        }
        Ok(())
    });
}

#[test]
fn two_imports_of_a_buffer_show_the_same_bytes() {
    VMS.with(|vms| {
        let (mut a, mut b, mut other) = (vms.a.client()?, vms.b.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 6)?;
        let (one, two) = (b.import(&export.id)?, other.import(&export.id)?);
        let (one, two) = (b.map(one.buf)?, other.map(two.buf)?);
        b.fill(one, 7)?;
        ensure!(other.compare(two, 7)? == Sight::Pattern);
        // One releases the buffer, the other keeps it.
        b.kill()?;
        ensure!(other.compare(two, 7)? == Sight::Pattern);
        Ok(())
    });
}

#[test]
fn a_mapping_keeps_the_import_after_its_descriptor_is_closed() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 8)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        // The mapping keeps the buffer although its descriptor is closed.
        b.close(import.buf.number)?;
        ensure!(b.compare(map, 8)? == Sight::Pattern);
        let snapshot = vms.daemon()?.snapshot()?;
        ensure!(snapshot.peer("b")?.attachments == 1, "{:?}", snapshot.peers);
        b.close(map.number)?;
        vms.daemon()?
            .settles("the detach", |now| now.attachments == 0)?;
        Ok(())
    });
}

#[test]
fn metadata_travels_and_changes_are_reported() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        b.info()?;
        let buf = a.alloc(SIZE)?;
        let blob: Vec<u8> = (0..=255).cycle().take(4096).collect();
        let export = a.export_to(buf, &[("b", true)], "späte Grüße", &blob)?;
        let offer = b.wait_event_of("Offer", &export.id)?;
        ensure!(offer.value == SIZE, "{offer:?}");
        ensure!(b.get_meta(&export.id)? == (1, "späte Grüße".to_owned(), blob));
        let import = b.import(&export.id)?;
        ensure!(a.set_meta(&export, "new", b"tiny")? == 2);
        let event = b.wait_event_of("Meta", &export.id)?;
        ensure!(event.value == 2, "{event:?}");
        ensure!(b.get_meta(&export.id)? == (2, "new".to_owned(), b"tiny".to_vec()));
        let listed = b.list()?;
        ensure!(
            listed.len() == 1 && listed.iter().all(|one| one.name == "new" && !one.owned),
            "{listed:?}"
        );
        let own = a.query(&export.id)?;
        ensure!(
            own.owned && own.attachments == 1 && own.size == SIZE && own.extents >= 1,
            "{own:?}"
        );
        b.close(import.buf.number)?;
        Ok(())
    });
}

#[test]
fn the_last_release_is_reported_to_the_exporter() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 9)?;
        let (one, two) = (b.import(&export.id)?, b.import(&export.id)?);
        b.close(one.buf.number)?;
        b.close(two.buf.number)?;
        let event = a.wait_event_of("Released", &export.id)?;
        ensure!(event.peer == b.info()?.peer_id, "{event:?}");
        // Had it been said twice, that would come before what is said of the next buffer.
        let (_, _, other) = a.offer(SIZE, 10)?;
        let import = b.import(&other.id)?;
        b.close(import.buf.number)?;
        let event = a.wait_event("Released", |event| event.kind == "Released")?;
        ensure!(event.id == other.id, "released twice: {event:?}");
        Ok(())
    });
}

#[test]
fn a_buffer_that_is_not_for_us_is_like_none_at_all() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let buf = a.alloc(SIZE)?;
        // For nobody but ourselves, which the operator does not allow either.
        let own = refused(a.export_to(buf, &[("a", true)], "", &[]))?;
        ensure!(own.status.as_deref() == Some("DENIED"), "{own}");
        let export = a.export_to(buf, &[("b", false)], "", &[])?;
        let unknown = refused(b.import("0123456789abcdef0123456789abcdef"))?;
        ensure!(
            unknown.errno == libc::ENOENT && unknown.status.as_deref() == Some("NOT_FOUND"),
            "{unknown}"
        );
        // Granted to read only: write access is denied, and read-only cannot be enforced by this VMM.
        ensure!(status(b.import_with(&export.id, true))? == "DENIED");
        ensure!(status(b.import_with(&export.id, false))? == "RO_NOT_ENFORCED");
        // Its own buffer nobody imports.
        ensure!(status(a.import(&export.id))? == "DENIED");
        Ok(())
    });
}

#[test]
fn peers_have_the_operators_names() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        ensure!(a.info()?.name == "a" && b.info()?.name == "b");
        let peers = a.peers()?;
        let names: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
        ensure!(
            names == ["a", "b"] && peers.iter().all(|peer| peer.up),
            "{peers:?}"
        );
        Ok(())
    });
}

#[test]
fn what_the_importer_does_not_write_stays_as_it_is() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        // Three buffers side by side; only the middle one is shared.
        let mut maps = Vec::new();
        let mut bufs = Vec::new();
        for seed in [10, 11, 12] {
            let buf = a.alloc(SIZE)?;
            let map = a.map(buf)?;
            a.fill(map, seed)?;
            maps.push(map);
            bufs.push(buf);
        }
        let export = a.export(bufs[1])?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        b.poke(map, 0, &pattern(99, SIZE))?;
        ensure!(a.compare(maps[0], 10)? == Sight::Pattern);
        ensure!(a.compare(maps[1], 99)? == Sight::Pattern);
        ensure!(a.compare(maps[2], 12)? == Sight::Pattern);
        Ok(())
    });
}

/// The kernel's list of all dma-bufs.
fn dma_bufs(vm: &Vm) -> Result<String> {
    let text = vm.read_file("/sys/kernel/debug/dma_buf/bufinfo")?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn an_import_is_named_by_its_id_and_its_owner_and_as_a_program_names_it() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 1)?;
        let import = b.import(&export.id)?;
        let owner = a.info()?.peer_id;
        let start = export.id.get(..16).context("a short id")?;
        let name = format!("virtio_bufshare:{start}@{owner}");
        let list = dma_bufs(&vms.b)?;
        ensure!(list.contains(&name), "no {name} in {list}");
        b.set_name(import.buf, "a frame")?;
        let list = dma_bufs(&vms.b)?;
        ensure!(list.contains("a frame") && list.contains(&name), "{list}");
        b.close(import.buf.number)?;
        let list = dma_bufs(&vms.b)?;
        ensure!(!list.contains("a frame") && !list.contains(&name), "{list}");
        Ok(())
    });
}

/// With `force_sync`, the host is asked also where memory is coherent. It counts
/// reading and writing apart.
#[test]
fn an_end_of_an_access_that_was_refused_can_be_repeated() {
    VMS.with(|vms| {
        const FORCE: &str = "/sys/module/virtio_bufshare/parameters/force_sync";
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 40)?;
        let import = b.import(&export.id)?;
        vms.b.write_file(FORCE, b"Y")?;
        b.sync(import.buf, false, false)?;
        let refusal = refused(b.sync(import.buf, true, true));
        let repeated = b.sync(import.buf, false, true);
        let beyond = refused(b.sync(import.buf, false, true));
        vms.b.write_file(FORCE, b"N")?;
        for refusal in [refusal?, beyond?] {
            ensure!(refusal.errno == libc::EINVAL, "{refusal}");
        }
        repeated
    });
}
