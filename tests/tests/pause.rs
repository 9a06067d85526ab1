// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VMs that are paused and resumed by their VMM

use anyhow::ensure;
use bufshare_tests::hand::Sight;
use bufshare_tests::pair::{Plan, Shared};
use serde_json::json;

static VMS: Shared = Shared::new(Plan::new);
const SIZE: u64 = 1 << 20;

#[test]
fn a_share_survives_a_pause_of_the_exporter() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.hand()?, vms.b.hand()?);
        let (_, mine, export) = a.offer(SIZE, 1)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        vms.a.qmp().execute("stop", json!({}))?;
        ensure!(vms.a.status()? == "paused");
        // What is mapped stays; what the pause takes away is told, not hidden.
        let during = b.compare(map, 1)?;
        vms.a.qmp().execute("cont", json!({}))?;
        ensure!(a.compare(mine, 1)? == Sight::Pattern);
        match during {
            Sight::Pattern => ensure!(b.compare(map, 1)? == Sight::Pattern),
            Sight::Sigbus => drop(b.wait_event_of("Revoked", &export.id)?),
            Sight::Other { .. } => anyhow::bail!("the importer read {during:x?}"),
        }
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
fn an_importer_goes_on_after_a_pause() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.hand()?, vms.b.hand()?);
        b.info()?;
        let (_, mine, export) = a.offer(SIZE, 3)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        vms.b.qmp().execute("stop", json!({}))?;
        a.fill(mine, 4)?;
        vms.b.qmp().execute("cont", json!({}))?;
        // Either all of it goes on, or the import was taken back and that is told.
        match b.compare(map, 4)? {
            Sight::Pattern => {}
            Sight::Sigbus => drop(b.wait_event_of("Revoked", &export.id)?),
            other @ Sight::Other { .. } => anyhow::bail!("the importer read {other:x?}"),
        }
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        ensure!(b.compare(map, 4)? == Sight::Pattern);
        Ok(())
    });
}
