// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VMs that are paused and resumed by their VMM

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use std::time::Duration;

use anyhow::ensure;
use bufshare_tests::client::Sight;
use bufshare_tests::pair::{Plan, Shared};
use bufshare_tests::wait;
use serde_json::json;

static VMS: Shared = Shared::new(Plan::new);
const SIZE: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_pause_of_the_exporter_revokes_its_buffers_and_both_are_notified() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        // Both listen to events.
        a.info()?;
        b.info()?;
        let (_, mine, export) = a.offer(SIZE, 1)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        ensure!(b.compare(map, 1)? == Sight::Pattern);
        vms.a.qmp().execute("stop", json!({}))?;
        ensure!(vms.a.status()? == "paused");
        b.wait_event_of("Revoked", &export.id)?;
        ensure!(b.compare(map, 1)? == Sight::Sigbus);
        vms.a.qmp().execute("cont", json!({}))?;
        a.wait_event_of("Revoked", &export.id)?;
        ensure!(a.compare(mine, 1)? == Sight::Pattern);
        let (_, _, export) = a.offer(SIZE, 2)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        ensure!(
            b.compare(map, 2)? == Sight::Pattern,
            "sharing does not work after a pause"
        );
        Ok(())
    });
}

#[test]
fn a_paused_importer_goes_on_with_what_it_has() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        b.info()?;
        let (_, mine, export) = a.offer(SIZE, 3)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        vms.b.qmp().execute("stop", json!({}))?;
        a.fill(mine, 4)?;
        vms.b.qmp().execute("cont", json!({}))?;
        ensure!(b.compare(map, 4)? == Sight::Pattern);
        let again = b.import(&export.id)?;
        let map = b.map(again.buf)?;
        ensure!(b.compare(map, 4)? == Sight::Pattern);
        Ok(())
    });
}

#[test]
fn an_importer_that_reads_through_a_pause_never_reads_a_hole() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        b.info()?;
        for seed in 10..20 {
            let (_, _, export) = a.offer(SIZE, seed)?;
            let import = b.import(&export.id)?;
            let map = b.map(import.buf)?;
            b.watch(map, seed)?;
            vms.b.qmp().execute("stop", json!({}))?;
            vms.b.qmp().execute("cont", json!({}))?;
            // A round that began after the pause, or the last one.
            let (before, _) = b.watched(map)?;
            wait::until("the importer to read on", LIMIT, || {
                let (rounds, last) = b.watched(map)?;
                Ok((rounds > before + 1 || last == Some(Sight::Sigbus)).then_some(()))
            })?;
            let sights = b.sights()?;
            ensure!(
                sights.iter().all(|sight| *sight == Sight::Sigbus),
                "pause {seed}: the importer read {sights:x?}"
            );
            b.close(map.number)?;
            b.close(import.buf.number)?;
            a.close(export.number)?;
        }
        Ok(())
    });
}
