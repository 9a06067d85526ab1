// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an exporter revokes is really gone

use std::time::{Duration, Instant};

use anyhow::ensure;
use bufshare_agent::ops::Op;
use bufshare_tests::client::{Sight, refused, status};
use bufshare_tests::display::Display;
use bufshare_tests::pair::{Plan, Shared};
use bufshare_tests::wait;
use serde_json::json;

static VMS: Shared = Shared::new(|| {
    // For many buffers at once.
    Plan::new()
        .options(&["--max-windows", "256"])
        .second(|machine| Display::that_imports().add_to(machine))
});
const SIZE: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn after_an_unexport_every_access_of_the_importer_fails() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        b.info()?;
        let (_, mine, export) = a.offer(SIZE, 1)?;
        let (_, _, other) = a.offer(SIZE, 2)?;
        let (import, unmapped, kept) = (
            b.import(&export.id)?,
            b.import(&export.id)?,
            b.import(&other.id)?,
        );
        let (map, kept) = (b.map(import.buf)?, b.map(kept.buf)?);
        ensure!(b.compare(map, 1)? == Sight::Pattern);

        a.close(export.number)?;
        b.wait_event_of("Revoked", &export.id)?;
        // Reads and writes, again, and what comes later.
        for _ in 0..2 {
            ensure!(b.compare(map, 1)? == Sight::Sigbus);
            ensure!(b.poke(map, SIZE - 8, b"written!")? == Sight::Sigbus);
        }
        for buf in [import.buf, unmapped.buf] {
            let refusal = refused(b.sync(buf, true, false))?;
            ensure!(refusal.errno == libc::ENODEV, "{refusal}");
            let refusal = refused(b.map(buf))?;
            ensure!(refusal.errno == libc::ENODEV, "{refusal}");
        }
        ensure!(status(b.import(&export.id))? == "NOT_FOUND");
        ensure!(b.list()?.iter().all(|buffer| buffer.id != export.id));

        // The exporter's memory is its own, another buffer is as it was.
        ensure!(a.compare(mine, 1)? == Sight::Pattern);
        ensure!(b.compare(kept, 2)? == Sight::Pattern);
        Ok(())
    });
}

#[test]
fn a_driver_of_the_importer_cannot_attach_to_what_was_revoked() {
    VMS.with(|vms| {
        let display = Display::that_imports();
        display.load(&vms.b)?;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        b.info()?;
        let (width, height) = (640, 480);
        let (_, _, export) = a.offer(u64::from(width * height * 4), 3)?;
        let import = b.import(&export.id)?;
        a.close(export.number)?;
        b.wait_event_of("Revoked", &export.id)?;
        let buf = import.buf.number;
        let show = Op::Show {
            buf,
            driver: display.driver.to_owned(),
            width,
            height,
        };
        let refusal = refused(b.call(show, LIMIT))?;
        ensure!(refusal.errno == libc::ENODEV, "{refusal}");
        Ok(())
    });
}

/// A descriptor opened by O_PATH keeps a dma-buf, but not its file: the kernel uses
/// the memory of that for the next file that is opened.
#[test]
fn a_revocation_touches_no_file_but_that_of_the_import() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        b.info()?;
        let (_, mine, export) = a.offer(SIZE, 8)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        ensure!(b.compare(map, 8)? == Sight::Pattern);
        b.close(map.number)?;
        b.keep_path(import.buf)?;
        let others = b.private_files(64, 9)?;
        a.close(export.number)?;
        b.wait_event_of("Revoked", &export.id)?;
        vms.daemon()?
            .settles("the window to go", |now| now.windows == 0)?;
        ensure!(
            b.compare_private(others)? == Sight::Pattern,
            "the revocation took the memory of another file"
        );
        b.close(import.buf.number)?;
        ensure!(a.compare(mine, 8)? == Sight::Pattern);
        Ok(())
    });
}

#[test]
fn the_memory_is_the_exporters_to_export_again() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (buf, mine, first) = a.offer(SIZE, 4)?;
        let old = b.import(&first.id)?;
        let old = b.map(old.buf)?;
        a.close(first.number)?;
        a.fill(mine, 5)?;
        let second = a.export(buf)?;
        ensure!(second.id != first.id && second.generation > first.generation);
        let new = b.import(&second.id)?;
        let new = b.map(new.buf)?;
        ensure!(b.compare(new, 5)? == Sight::Pattern);
        ensure!(
            b.compare(old, 5)? == Sight::Sigbus,
            "the old import shows the new export"
        );
        Ok(())
    });
}

#[test]
fn a_paused_importer_does_not_hold_the_exporter_up() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 6)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        ensure!(b.compare(map, 6)? == Sight::Pattern);
        vms.b.qmp().execute("stop", json!({}))?;
        let started = Instant::now();
        a.close(export.number)?;
        // The exporter goes on at once. (Its memory stays where it is until the
        // window is gone: QEMU serves no such request while a VM is paused.)
        let (_, mine, other) = a.offer(SIZE, 7)?;
        ensure!(a.compare(mine, 7)? == Sight::Pattern);
        a.close(other.number)?;
        let took = started.elapsed();
        ensure!(took < wait::scaled(Duration::from_secs(5)), "took {took:?}");
        vms.b.qmp().execute("cont", json!({}))?;
        b.wait_event_of("Revoked", &export.id)?;
        ensure!(b.compare(map, 6)? == Sight::Sigbus);
        b.close(map.number)?;
        b.close(import.buf.number)?;
        vms.settled()?;
        // It is well, and imports again.
        let (_, _, export) = a.offer(SIZE, 7)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        ensure!(b.compare(map, 7)? == Sight::Pattern);
        Ok(())
    });
}

/// The answers that a paused importer keeps back fill no queue.
#[test]
fn requests_are_answered_while_a_paused_importer_has_many_buffers_that_were_closed() {
    VMS.with(|vms| {
        /// More than the exporter's queue has places.
        const MANY: u32 = 70;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let mut exports = Vec::new();
        for seed in 0..MANY {
            let (_, _, export) = a.offer(4096, seed)?;
            b.import_pattern(&export.id, seed)?;
            exports.push(export);
        }
        vms.b.qmp().execute("stop", json!({}))?;
        let ids: Vec<String> = exports.iter().map(|export| export.id.clone()).collect();
        let asked = exports
            .into_iter()
            .try_for_each(|export| a.close(export.number))
            .and_then(|()| a.offer(SIZE, 1))
            .and_then(|(_, _, export)| a.query(&export.id));
        vms.b.qmp().execute("cont", json!({}))?;
        asked?;
        // Those that had to wait are asked for.
        for id in ids {
            wait::until("the end of an export", LIMIT, || {
                let buffers = vms.daemon()?.snapshot()?.buffers;
                Ok(buffers.iter().all(|buffer| buffer.id != id).then_some(()))
            })?;
        }
        Ok(())
    });
}
