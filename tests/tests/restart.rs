// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests that restart while they share
//!
//! Nothing in the VMM takes an exporter's memory away from importers when it
//! restarts, so the daemon has to, before the new guest writes into it. The
//! new guest then writes into nearly all of its memory: an importer that could
//! still read would see it.

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use anyhow::{Context as _, Result, ensure};
use bufshare_agent::wire::Ready;
use bufshare_tests::hand::{Sight, Source, refused, status};
use bufshare_tests::pair::{Plan, Shared, Side, TwoVms};
use bufshare_tests::vm::Vm;
use bufshare_tests::wait;
use serde_json::json;

static VMS: Shared = Shared::new(|| Plan::new().both(|machine| machine.memory = 256));
const SIZE: u64 = 32 << 20;

/// Write into nearly all memory that is free.
fn use_all_memory(vm: &Vm) -> Result<()> {
    const CHUNK: u64 = 4 << 20;
    let text = vm.read_file("/proc/meminfo")?;
    let text = String::from_utf8_lossy(&text);
    let free = text
        .lines()
        .find_map(|line| line.strip_prefix("MemFree:"))
        .and_then(|rest| rest.trim_end_matches("kB").trim().parse::<u64>().ok())
        .context("/proc/meminfo tells no MemFree")?;
    let mut hand = vm.hand()?;
    for _ in 0..free * 1024 * 85 / 100 / CHUNK {
        let buf = hand.make(Source::Heap("system".to_owned()), CHUNK)?;
        let map = hand.map(buf)?;
        hand.fill(map, 0xbad)?;
    }
    Ok(())
}

/// An importer reads all of three buffers without a pause while `restart` runs.
fn the_importer_never_reads_the_next_guest(
    vms: &mut TwoVms,
    restart: impl FnOnce(&mut TwoVms) -> Result<()>,
    harmless: impl Fn(&Sight) -> bool,
) -> Result<()> {
    let before = vms.settled()?.descriptors;
    let mut a = vms.a.hand()?;
    let mut watchers = Vec::new();
    for seed in 1..=3 {
        let (_, _, export) = a.offer(SIZE, seed)?;
        let mut b = vms.b.hand()?;
        b.info()?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        b.watch(map, seed)?;
        watchers.push((b, map, export.id));
    }
    for (b, map, _) in &mut watchers {
        ensure!(b.watched(*map, false)?.1 == Sight::Pattern);
    }
    restart(vms)?;
    for (b, map, id) in &mut watchers {
        wait::until("the reader to be refused", wait::COMMAND, || {
            let (_, last) = b.watched(*map, false)?;
            Ok((last == Sight::Sigbus).then_some(()))
        })?;
        let sights = b.sights();
        ensure!(
            sights.iter().all(&harmless),
            "the importer read bytes of the next guest: {sights:x?}"
        );
        b.wait_event_of("Revoked", id)?;
        ensure!(status(b.import(id))? == "NOT_FOUND");
    }
    drop((a, watchers));
    vms.settled()?;
    vms.daemon()?
        .settles("the descriptors to be as before", |now| {
            now.descriptors == before
        })?;
    // And they share again.
    let (mut a, mut b) = (vms.a.hand()?, vms.b.hand()?);
    let (_, _, export) = a.offer(SIZE, 9)?;
    let import = b.import(&export.id)?;
    let map = b.map(import.buf)?;
    ensure!(b.compare(map, 9)? == Sight::Pattern);
    Ok(())
}

fn refused_access(sight: &Sight) -> bool {
    *sight == Sight::Sigbus
}

#[test]
fn an_importer_never_reads_the_bytes_of_a_guest_after_a_reset() {
    VMS.with(|vms| {
        let restart = |vms: &mut TwoVms| {
            vms.a.reset()?;
            use_all_memory(&vms.a)
        };
        the_importer_never_reads_the_next_guest(vms, restart, refused_access)
    });
}

#[test]
fn an_importer_never_reads_the_bytes_of_a_guest_after_its_reboot() {
    VMS.with(|vms| {
        let restart = |vms: &mut TwoVms| {
            vms.a.reboot()?;
            use_all_memory(&vms.a)
        };
        the_importer_never_reads_the_next_guest(vms, restart, refused_access)
    });
}

/// The daemon waits for importers that are paused, too.
static STRICT: Shared = Shared::new(|| {
    Plan::new()
        .options(&["--revoke-wait", "unlimited"])
        .both(|machine| machine.memory = 256)
});

#[test]
fn an_importer_that_is_paused_at_a_reset_never_reads_the_bytes_of_the_next_guest() {
    STRICT.with(|vms| {
        let restart = |vms: &mut TwoVms| {
            vms.b.qmp().execute("stop", json!({}))?;
            vms.a.qmp().send("system_reset", json!({}))?;
            let daemon = vms.daemon()?;
            wait::until("the exporter's stop", wait::COMMAND, || {
                let up = daemon.snapshot()?.peer("a")?.up;
                Ok((!up).then_some(()))
            })?;
            let now = daemon.holdings()?;
            ensure!(now.windows == 3, "the reset was not held up: {now:?}");
            vms.b.qmp().execute("cont", json!({}))?;
            vms.a.qmp().answer("system_reset")?;
            vms.a.boot()?;
            use_all_memory(&vms.a)
        };
        the_importer_never_reads_the_next_guest(vms, restart, refused_access)
    });
}

#[test]
fn an_importer_that_was_paused_meanwhile_has_no_access_when_it_goes_on() {
    VMS.with(|vms| {
        let restart = |vms: &mut TwoVms| {
            vms.b.qmp().execute("stop", json!({}))?;
            vms.a.reset()?;
            vms.b.qmp().execute("cont", json!({})).map(drop)
        };
        // It may be quicker than its VMM: only --revoke-wait unlimited prevents that.
        the_importer_never_reads_the_next_guest(vms, restart, |_| true)
    });
}

/// An importer with a mapped buffer restarts, and imports it anew.
fn the_importer_lets_go_and_imports_again(
    vms: &mut TwoVms,
    restart: impl FnOnce(&mut Vm) -> Result<Ready>,
) -> Result<()> {
    let before = vms.settled()?.descriptors;
    let (mut a, mut b) = (vms.a.hand()?, vms.b.hand()?);
    let (_, mine, export) = a.offer(1 << 20, 5)?;
    let import = b.import(&export.id)?;
    let map = b.map(import.buf)?;
    ensure!(b.compare(map, 5)? == Sight::Pattern);
    restart(&mut vms.b)?;
    a.wait_event_of("Released", &export.id)?;
    ensure!(
        a.compare(mine, 5)? == Sight::Pattern,
        "the importer's restart changed the exporter's memory"
    );
    let mut b = vms.b.hand()?;
    let import = b.import(&export.id)?;
    let map = b.map(import.buf)?;
    ensure!(b.compare(map, 5)? == Sight::Pattern);
    let snapshot = vms.daemon()?.snapshot()?;
    ensure!(snapshot.peer("b")?.attachments == 1, "{snapshot:?}");
    drop((a, b));
    vms.settled()?;
    vms.daemon()?
        .settles("the descriptors to be as before", |now| {
            now.descriptors == before
        })?;
    Ok(())
}

#[test]
fn an_importer_that_reboots_lets_go_and_imports_again() {
    VMS.with(|vms| the_importer_lets_go_and_imports_again(vms, Vm::reboot));
}

/// QEMU 11.1.3 would crash if the device were started after this reset, so the
/// daemon and the driver do without it until the next power cycle. Nobody else
/// is touched.
#[test]
fn an_importer_that_is_reset_lets_go_and_imports_again_after_a_power_cycle() {
    VMS.with(|vms| {
        let before = vms.settled()?.descriptors;
        let (mut a, mut b) = (vms.a.hand()?, vms.b.hand()?);
        let (_, mine, export) = a.offer(1 << 20, 6)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        ensure!(b.compare(map, 6)? == Sight::Pattern);
        vms.b.reset()?;
        a.wait_event_of("Released", &export.id)?;
        ensure!(
            a.compare(mine, 6)? == Sight::Pattern,
            "the importer's reset changed the exporter's memory"
        );
        ensure!(vms.b.status()? == "running", "its VMM did not survive");
        let refusal = refused(vms.b.hand()?.info())?;
        ensure!(refusal.errno == libc::ENOENT, "{refusal}");

        vms.b.kill()?;
        vms.daemon()?
            .settles("the windows to go", |now| now.windows == 0)?;
        vms.restart(Side::B)?;
        let mut b = vms.b.hand()?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        ensure!(b.compare(map, 6)? == Sight::Pattern);
        drop((a, b));
        vms.settled()?;
        vms.daemon()?
            .settles("the descriptors to be as before", |now| {
                now.descriptors == before
            })?;
        Ok(())
    });
}

#[test]
fn an_importer_that_is_reset_with_nothing_imported_goes_on() {
    VMS.with(|vms| {
        vms.b.reset()?;
        let (mut a, mut b) = (vms.a.hand()?, vms.b.hand()?);
        let (_, _, export) = a.offer(1 << 20, 7)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        ensure!(b.compare(map, 7)? == Sight::Pattern);
        Ok(())
    });
}
