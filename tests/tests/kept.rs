// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory is not used for anything else while the host has not said that no other VM reaches it

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bufshare_tests::channel::GuestError;
use bufshare_tests::driver::unbind;
use bufshare_tests::hand::{Sight, Source};
use bufshare_tests::lab::Lab;
use bufshare_tests::pair::{DRIVER, Plan, TwoVms, explain};
use bufshare_tests::report;
use bufshare_tests::vm::Vm;
use bufshare_tests::wait;

const SIZE: u64 = 4 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a test with a pair of its own, whose daemon it ends.
fn with_a_daemon_that_ends(name: &str, body: fn(&mut TwoVms) -> Result<()>) {
    report::run(|| {
        Lab::find()?;
        let logs = report::folder(name)?;
        let run = || {
            let mut vms = TwoVms::boot(Plan::new(), &logs)?;
            body(&mut vms)?;
            vms.finish_without_daemon()
        };
        run().map_err(|error| explain(error, &logs))
    });
}

/// Has the guest write to as many pages as it gives to files.
fn fill_memory(vm: &Vm) -> Result<()> {
    // A file system of this kind takes half of the memory, then it is full.
    let script = "yes written! | dd of=/tmp/filled bs=64k 2>/dev/null; \
                  wc -c </tmp/filled && rm /tmp/filled";
    let ran = vm.run(&["/bin/busybox", "sh", "-c", script], LIMIT)?;
    let bytes: u64 = ran.stdout.trim().parse().context("no number of bytes")?;
    ensure!(bytes > 100 << 20, "only {bytes} bytes were written");
    Ok(())
}

/// What the driver has said since boot about memory that it keeps.
fn said_to_keep(vm: &Vm, buffers: usize, bytes: u64) -> Result<()> {
    let said = format!("{buffers} exported buffers: their {bytes} bytes");
    let log = vm.kernel_log()?;
    ensure!(
        log.iter().any(|line| line.contains(&said)),
        "the kernel's log has no '{said}'"
    );
    Ok(())
}

/// The exporting process ends and the driver leaves the device, after nobody is
/// left who could take the memory from the importer.
fn nothing_that_comes_later_is_seen(vms: &mut TwoVms) -> Result<()> {
    let (mut a, mut b) = (vms.a.hand()?, vms.b.hand()?);
    let sources = [
        (Source::Alloc, SIZE),
        (Source::Heap("system".to_owned()), SIZE),
        // In single pages, each of which takes a window.
        (Source::Udmabuf { scattered: false }, 64 * 4096),
    ];
    let total = sources.iter().map(|(_, size)| size).sum();
    let mut maps = Vec::new();
    for (seed, (source, size)) in (1..).zip(sources) {
        let buf = a.make(source, size)?;
        let mine = a.map(buf)?;
        a.fill(mine, seed)?;
        let export = a.export(buf)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        ensure!(b.compare(map, seed)? == Sight::Pattern);
        maps.push((map, seed));
    }
    vms.daemon()?.kill()?;
    a.kill()?;
    unbind(&vms.a)?;
    fill_memory(&vms.a)?;
    for (map, seed) in maps {
        let seen = b.compare(map, seed)?;
        ensure!(
            seen == Sight::Pattern,
            "of buffer {seed} the importer sees {seen:x?}"
        );
    }
    said_to_keep(&vms.a, 3, total)?;
    // Nor does the driver go, which knows what is not to be used.
    let refusal = vms.a.unload(DRIVER).err().context("it was removed")?;
    let errno = refusal.downcast_ref::<GuestError>().and_then(|e| e.errno);
    ensure!(
        [libc::EBUSY, libc::EAGAIN].map(Some).contains(&errno),
        "{refusal:#}"
    );
    drop(b);
    Ok(())
}

#[test]
fn what_a_guest_writes_after_its_daemon_and_its_driver_went_is_not_seen_by_importers() {
    with_a_daemon_that_ends("kept_unbind", nothing_that_comes_later_is_seen);
}

/// A driver that leaves in order has had every answer, and keeps nothing.
#[test]
fn a_driver_that_leaves_while_the_host_answers_keeps_nothing() {
    report::run(|| {
        Lab::find()?;
        let logs = report::folder("kept_nothing")?;
        let run = || {
            let vms = TwoVms::boot(Plan::new(), &logs)?;
            let (mut a, mut b) = (vms.a.hand()?, vms.b.hand()?);
            let (_, _, export) = a.offer(SIZE, 1)?;
            let heap = a.make(Source::Heap("system".to_owned()), SIZE)?;
            let other = a.export(heap)?;
            for id in [&export.id, &other.id] {
                let import = b.import(id)?;
                b.map(import.buf)?;
            }
            unbind(&vms.a)?;
            drop((a, b));
            wait::until("the module to be free", LIMIT, || {
                Ok(vms.a.unload(DRIVER).is_ok().then_some(()))
            })?;
            vms.a.load(DRIVER, "")?;
            let state = vms.a.read_file("/sys/kernel/debug/bufshare/state")?;
            let state = String::from_utf8(state)?;
            ensure!(state.contains("kept 0 backings, 0 bytes\n"), "{state}");
            vms.finish()
        };
        run().map_err(|error| explain(error, &logs))
    });
}
