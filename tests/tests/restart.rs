// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests that restart while they share
//!
//! Nothing in the VMM takes an exporter's memory away from importers when it
//! restarts, so the daemon has to, before the new guest writes into it. The
//! new guest then writes into nearly all of its memory: an importer that could
//! still read would see it.

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bufshare_agent::wire::Ready;
use bufshare_tests::client::{Client, Map, Sight, Source, refused, status};
use bufshare_tests::daemon::Sign;
use bufshare_tests::pair::{Plan, Shared, Side, TwoVms};
use bufshare_tests::pci::PciConfig;
use bufshare_tests::vm::Vm;
use bufshare_tests::wait;
use serde_json::json;

static VMS: Shared = Shared::new(|| {
    // As long as a busy machine needs: tests look at what is held up meanwhile.
    let wait = wait::scaled(Duration::from_secs(5)).as_secs().to_string();
    Plan::new()
        .options(&["--revoke-wait", &wait])
        .both(|machine| machine.memory = 256)
});
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
        .context("/proc/meminfo has no MemFree")?;
    let mut client = vm.client()?;
    let chunks = free * 1024 * 85 / 100 / CHUNK;
    ensure!(chunks > 10, "the guest has only {free} KiB free");
    for _ in 0..chunks {
        let buf = client.make(Source::Heap("system".to_owned()), CHUNK)?;
        let map = client.map(buf)?;
        client.fill(map, 0xbad)?;
    }
    Ok(())
}

/// An importer reads all of three buffers without a pause while `restart` runs.
fn the_importer_never_reads_the_next_guest(
    vms: &mut TwoVms,
    restart: impl FnOnce(&mut TwoVms) -> Result<()>,
) -> Result<()> {
    let before = vms.settled()?.descriptors;
    let missed = vms.missed_by_b()?;
    let mut a = vms.a.client()?;
    let mut watchers = Vec::new();
    for seed in 1..=3 {
        let (_, _, export) = a.offer(SIZE, seed)?;
        let mut b = vms.b.client()?;
        b.info()?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        b.watch(map, seed)?;
        watchers.push((b, map, export.id));
    }
    for (b, map, _) in &mut watchers {
        b.reads_on(*map)?;
    }
    restart(vms)?;
    for (b, map, id) in &mut watchers {
        wait::until("the reader to be refused", wait::COMMAND, || {
            let (_, last) = b.watched(*map)?;
            Ok((last == Some(Sight::Sigbus)).then_some(()))
        })?;
        let sights = b.sights()?;
        ensure!(
            sights == [Sight::Sigbus],
            "the importer read bytes of the next guest: {sights:x?}"
        );
        b.wait_event_of("Revoked", id)?;
        ensure!(status(b.import(id))? == "NOT_FOUND");
    }
    vms.missed_no_more_by_b(missed)
        .context("the importer did not release in time")?;
    drop((a, watchers));
    shares_again(vms, before)
}

#[test]
fn an_importer_never_reads_the_bytes_of_a_guest_after_a_reset() {
    VMS.with(|vms| {
        let restart = |vms: &mut TwoVms| {
            vms.a.reset()?;
            use_all_memory(&vms.a)
        };
        the_importer_never_reads_the_next_guest(vms, restart)
    });
}

#[test]
fn an_importer_never_reads_the_bytes_of_a_guest_after_its_reboot() {
    VMS.with(|vms| {
        let restart = |vms: &mut TwoVms| {
            vms.a.reboot()?;
            use_all_memory(&vms.a)
        };
        the_importer_never_reads_the_next_guest(vms, restart)
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
            reset_that_is_held(vms)?;
            vms.b.qmp().execute("cont", json!({}))?;
            vms.a.qmp().answer("system_reset")?;
            vms.a.boot()?;
            use_all_memory(&vms.a)
        };
        the_importer_never_reads_the_next_guest(vms, restart)
    });
}

/// B's readers of three buffers of A.
type Readers = Vec<(Client, Map)>;

fn three_readers(vms: &TwoVms, a: &mut Client) -> Result<Readers> {
    let mut readers = Vec::new();
    for seed in 1..=3 {
        let (_, _, export) = a.offer(SIZE, seed)?;
        let mut b = vms.b.client()?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        b.watch(map, seed)?;
        readers.push((b, map));
    }
    Ok(readers)
}

/// They go on to read, and nothing but what they were given.
fn still_reading(readers: &mut Readers) -> Result<()> {
    for (b, map) in readers {
        b.reads_on(*map)?;
    }
    Ok(())
}

/// Until their VM ended, they never saw anything but what they were given and what is
/// `harmless`.
fn saw_nothing_else(readers: &mut Readers, harmless: impl Fn(&Sight) -> bool) -> Result<()> {
    for (b, _) in readers {
        let sights = b.last_sights()?;
        ensure!(sights.iter().all(&harmless), "the importer saw {sights:x?}");
    }
    Ok(())
}

/// Resets A while B's device is stopped, and returns when the daemon holds the
/// reset up.
fn reset_that_is_held(vms: &mut TwoVms) -> Result<()> {
    let daemon = vms.daemon()?;
    wait::until("the importer's stop", wait::COMMAND, || {
        let up = daemon.snapshot()?.peer("b")?.up;
        Ok((!up).then_some(()))
    })?;
    let mapped = daemon.holdings()?.windows;
    vms.a.qmp().send("system_reset", json!({}))?;
    let daemon = vms.daemon()?;
    wait::until("the exporter's stop", wait::COMMAND, || {
        let up = daemon.snapshot()?.peer("a")?.up;
        Ok((!up).then_some(()))
    })?;
    let now = daemon.holdings()?;
    ensure!(
        mapped >= 3 && now.windows == mapped,
        "the reset was not held up: {mapped} windows before, {now:?}"
    );
    Ok(())
}

/// The two share, and the daemon holds what it held before.
fn shares_again(vms: &mut TwoVms, before: usize) -> Result<()> {
    let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
    let (_, _, export) = a.offer(SIZE, 9)?;
    let import = b.import(&export.id)?;
    let map = b.map(import.buf)?;
    ensure!(b.compare(map, 9)? == Sight::Pattern);
    drop((a, b));
    vms.settled_as(before)
}

/// The exporter's reset was answered after the importer's VMM had ended; all goes
/// on with a new one.
fn the_reset_went_on_without_the_importer(vms: &mut TwoVms, before: usize) -> Result<()> {
    vms.a.qmp().answer("system_reset")?;
    let now = vms.daemon()?.holdings()?;
    ensure!(now.windows == 0, "answered before: {now:?}");
    vms.b.wait_end()?;
    vms.a.boot()?;
    vms.restart(Side::B)?;
    shares_again(vms, before)
}

/// QEMU 11.1.3 does not survive to be asked for anything then. One that does
/// would have unmapped.
#[test]
fn an_importer_that_stays_paused_is_taken_off_before_a_reset_is_answered() {
    VMS.with(|vms| {
        let before = vms.settled()?.descriptors;
        let missed = vms.missed_by_b()?;
        let mut a = vms.a.client()?;
        let mut readers = three_readers(vms, &mut a)?;
        still_reading(&mut readers)?;
        vms.b.qmp().execute("stop", json!({}))?;
        reset_that_is_held(vms)?;
        the_reset_went_on_without_the_importer(vms, before)?;
        ensure!(
            vms.missed_by_b()? > missed,
            "no missed deadline was counted"
        );
        saw_nothing_else(&mut readers, |_| false)
    });
}

/// Starts the stopped device with its first ring at an odd address.
fn start_with_an_odd_ring(config: &PciConfig) -> Result<()> {
    const STATUS: u32 = 0x14;
    const SELECT: u32 = 0x16;
    const ENABLE: u32 = 0x1c;
    const DESC: u32 = 0x20;
    const DRIVER_OK: u8 = 15;
    config.set_bus_master(true)?;
    config.set_common(SELECT, &[0, 0])?;
    for (field, address) in [(DESC, 0x1008_u32), (DESC + 8, 0x2000), (DESC + 16, 0x3000)] {
        config.set_common(field, &address.to_le_bytes())?;
        config.set_common(field + 4, &[0; 4])?;
    }
    config.set_common(ENABLE, &[1, 0])?;
    config.set_common(STATUS, &[DRIVER_OK])
}

/// A guest stops its device, so that its VMM cannot be asked to unmap, goes on to
/// read, and pretends that the device was reset.
fn hostile_readers(vms: &mut TwoVms, a: &mut Client) -> Result<Readers> {
    let mut readers = three_readers(vms, a)?;
    still_reading(&mut readers)?;
    let config = PciConfig::of(&vms.b)?;
    let daemon_log = vms.logs().join("daemon.log");
    let said = std::fs::read(&daemon_log)?.len();
    config.set_bus_master(false)?;
    config.read_device_config()?;
    let log = std::fs::read(&daemon_log)?;
    let since = String::from_utf8_lossy(log.get(said..).context("the log is a new one")?);
    ensure!(
        since.contains("it is asked not to start"),
        "the device's configuration was not read"
    );
    still_reading(&mut readers)?;
    Ok(readers)
}

#[test]
fn an_importer_that_stops_its_device_is_taken_off_before_a_reset_is_answered() {
    VMS.with(|vms| {
        let before = vms.settled()?.descriptors;
        let mut a = vms.a.client()?;
        let mut readers = hostile_readers(vms, &mut a)?;
        reset_that_is_held(vms)?;
        the_reset_went_on_without_the_importer(vms, before)?;
        saw_nothing_else(&mut readers, |_| false)
    });
}

/// The daemon cannot go on with a VMM that sends what this guest makes it send.
/// The VMM lives, and so it is asked to unmap before it is given up.
#[test]
fn an_importer_that_spoils_its_session_loses_what_it_has_mapped() {
    VMS.with(|vms| {
        let before = vms.settled()?.descriptors;
        let mut a = vms.a.client()?;
        let mut readers = three_readers(vms, &mut a)?;
        still_reading(&mut readers)?;
        vms.daemon()?.allow(Sign::Unserved);
        let config = PciConfig::of(&vms.b)?;
        config.set_bus_master(false)?;
        // The guest may not be answered any more.
        let _ = start_with_an_odd_ring(&config);
        vms.daemon()?
            .settles("the windows to go", |now| now.windows == 0)?;
        let log = std::fs::read_to_string(vms.logs().join("daemon.log"))?;
        ensure!(log.contains("b: it cannot be served any more"), "{log}");
        // QEMU 11.1.3 aborts when the session ends in the middle of a start, which it does
        // once nothing is mapped: one that has ended maps nothing.
        let pid = vms.b.pid();
        wait::until(
            "its VMM to map its own RAM alone, or to end",
            wait::COMMAND,
            || {
                let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
                Ok((maps.matches("memfd:memory-backend").count() <= 1).then_some(()))
            },
        )?;
        vms.b.kill()?;
        vms.a.reset()?;
        vms.restart(Side::B)?;
        shares_again(vms, before)?;
        saw_nothing_else(&mut readers, |sight| {
            matches!(sight, Sight::Sigbus | Sight::Other { word: 0, .. })
        })
    });
}

#[test]
fn an_importer_that_stops_its_device_holds_up_a_reset_that_waits_without_limit() {
    STRICT.with(|vms| {
        let before = vms.settled()?.descriptors;
        let mut a = vms.a.client()?;
        let mut readers = hostile_readers(vms, &mut a)?;
        reset_that_is_held(vms)?;
        still_reading(&mut readers)?;
        let now = vms.daemon()?.holdings()?;
        ensure!(now.windows >= 3, "the reset was not held up: {now:?}");
        vms.b.kill()?;
        the_reset_went_on_without_the_importer(vms, before)?;
        saw_nothing_else(&mut readers, |_| false)
    });
}

/// An importer with a mapped buffer restarts, and imports it anew.
fn the_importer_releases_and_imports_again(
    vms: &mut TwoVms,
    restart: impl FnOnce(&mut Vm) -> Result<Ready>,
) -> Result<()> {
    let before = vms.settled()?.descriptors;
    let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
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
    let mut b = vms.b.client()?;
    let import = b.import(&export.id)?;
    let map = b.map(import.buf)?;
    ensure!(b.compare(map, 5)? == Sight::Pattern);
    let snapshot = vms.daemon()?.snapshot()?;
    ensure!(snapshot.peer("b")?.attachments == 1, "{snapshot:?}");
    drop((a, b));
    vms.settled_as(before)
}

#[test]
fn an_importer_that_reboots_releases_and_imports_again() {
    VMS.with(|vms| the_importer_releases_and_imports_again(vms, Vm::reboot));
}

/// QEMU 11.1.3 would crash if the device were started after this reset, so the
/// daemon and the driver do without it until the next power cycle. Nobody else
/// is touched.
#[test]
fn an_importer_that_is_reset_releases_and_imports_again_after_a_power_cycle() {
    VMS.with(|vms| {
        let before = vms.settled()?.descriptors;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
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
        let refusal = refused(vms.b.client()?.info())?;
        ensure!(refusal.errno == libc::ENOENT, "{refusal}");

        vms.b.kill()?;
        vms.daemon()?
            .settles("the windows to go", |now| now.windows == 0)?;
        vms.restart(Side::B)?;
        let mut b = vms.b.client()?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        ensure!(b.compare(map, 6)? == Sight::Pattern);
        drop((a, b));
        vms.settled_as(before)
    });
}

#[test]
fn an_importer_that_is_reset_with_nothing_imported_goes_on() {
    VMS.with(|vms| {
        vms.b.reset()?;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(1 << 20, 7)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        ensure!(b.compare(map, 7)? == Sight::Pattern);
        Ok(())
    });
}
