// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Many imports: one after another, and at once

use std::time::Duration;

use anyhow::ensure;
use bufshare_tests::client::{Refused, Sight, refused};
use bufshare_tests::pair::{Plan, Shared};
use serde_json::json;

static VMS: Shared = Shared::new(|| Plan::new().options(&["--max-windows", "256"]));
const PAGE: u64 = 4096;
const LIMIT: Duration = Duration::from_secs(300);
/// KiB by which the daemon's own memory, some 300 KiB, may grow: the allocator's
/// rounding. A leak of 26 bytes in each of 10,000 rounds is more.
const GROWTH: u64 = 256;

#[test]
fn ten_thousand_imports_of_a_buffer_leave_nothing_behind() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(64 * PAGE, 1)?;
        // What is allocated once is there after some rounds.
        b.cycle(&export.id, 500, 1, LIMIT)?;
        let before = vms
            .daemon()?
            .settles("the attachments to go", |now| now.attachments == 0)?;
        let own = vms.daemon()?.own_memory()?;
        let maps = vms.daemon()?.snapshot()?.peer("b")?.vmm_maps;

        let (first_us, total_us) = b.cycle(&export.id, 10_000, 1, LIMIT)?;
        println!(
            "10,000 cycles in {} ms, the first in {first_us} us",
            total_us / 1000
        );

        let after = vms
            .daemon()?
            .settles("the attachments to go", |now| now.attachments == 0)?;
        let grown = vms.daemon()?.own_memory()?.saturating_sub(own);
        ensure!(after == before, "{before:?} became {after:?}");
        ensure!(grown <= GROWTH, "the daemon grew by {grown} KiB");
        let peer = vms.daemon()?.snapshot()?.peer("b")?.clone();
        ensure!(peer.windows == 1 && peer.windows_idle == 1, "{peer:?}");
        ensure!(
            peer.vmm_maps == maps,
            "the VMM was asked for {} more mappings",
            peer.vmm_maps - maps
        );
        Ok(())
    });
}

#[test]
fn buffers_that_come_and_go_leave_nothing_behind() {
    VMS.with(|vms| {
        let before = vms.settled()?;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let mut own = 0;
        for round in 0..150 {
            let (buf, mine, export) = a.offer(4 * PAGE, round)?;
            b.cycle(&export.id, 1, round, LIMIT)?;
            for number in [export.number, mine.number, buf.number] {
                a.close(number)?;
            }
            if round == 50 {
                own = vms.daemon()?.own_memory()?;
            }
        }
        drop((a, b));
        vms.settled_as(before.descriptors)?;
        let after = vms.settled()?;
        ensure!(after == before, "{before:?} became {after:?}");
        let grown = vms.daemon()?.own_memory()?.saturating_sub(own);
        ensure!(grown <= GROWTH, "the daemon grew by {grown} KiB");
        Ok(())
    });
}

#[test]
fn imports_beyond_the_window_budget_are_refused_and_harm_nobody() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let max = b.info()?.max_windows;
        let mut imports = Vec::new();
        let mut refusal: Option<Refused> = None;
        for seed in 0..max + 8 {
            let (_, _, export) = a.offer(PAGE, seed)?;
            let import = b.import(&export.id)?;
            match b.make_window(import.buf).and_then(|()| b.map(import.buf)) {
                Ok(map) => {
                    ensure!(b.compare(map, seed)? == Sight::Pattern);
                    imports.push((import, map, seed));
                }
                Err(error) => {
                    refusal = Some(refused::<()>(Err(error))?);
                    break;
                }
            }
        }
        let refusal =
            refusal.ok_or_else(|| anyhow::anyhow!("{} windows were mapped", imports.len()))?;
        ensure!(refusal.errno == libc::ENOSPC, "{refusal}");
        ensure!(
            imports.len() == usize::try_from(max)?,
            "refused after {} of {max}",
            imports.len()
        );
        ensure!(b.info()?.windows_used == max);
        ensure!(vms.b.status()? == "running");

        // All that was mapped still shows its bytes.
        for (_, map, seed) in &imports {
            ensure!(b.compare(*map, *seed)? == Sight::Pattern);
        }
        // One window less in use is one for another buffer.
        let (import, map, _) = imports.remove(0);
        b.close(map.number)?;
        b.close(import.buf.number)?;
        let (_, _, export) = a.offer(PAGE, 1000)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        ensure!(b.compare(map, 1000)? == Sight::Pattern);
        // The VMM answers.
        vms.b.qmp().execute("query-status", json!({})).map(drop)
    });
}

#[test]
fn imports_beyond_the_window_region_are_refused_and_harm_nobody() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let region = b.info()?.shm_size;
        // One buffer, many VMs would share it; so as many buffers as the exporter's RAM allows.
        let size = region / 4;
        let mut maps = Vec::new();
        let mut refusal = None;
        for seed in 0..4 {
            let buf = a.alloc(size)?;
            let export = a.export(buf)?;
            let import = b.import(&export.id)?;
            match b.make_window(import.buf).and_then(|()| b.map(import.buf)) {
                Ok(map) => maps.push((seed, map)),
                Err(error) => refusal = Some(refused::<()>(Err(error))?),
            }
        }
        // A page of the region is kept back, so the fourth quarter does not fit.
        let refusal = refusal.ok_or_else(|| anyhow::anyhow!("the whole region was mapped"))?;
        ensure!(
            refusal.errno == libc::ENOSPC && maps.len() == 3,
            "{refusal}; {} mapped",
            maps.len()
        );
        Ok(())
    });
}
