// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An exporter promises to write nothing, until something of it is about to

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bufshare_agent::ops::{Op, Yield};
use bufshare_agent::wire::Status;
use bufshare_tests::client::{
    AttachKind, Client, Export, Map, Sight, Source, Step, refused, share_works,
};
use bufshare_tests::driver::{bind, requests, unbind};
use bufshare_tests::pair::{self, Plan, Shared, TwoVms};
use bufshare_tests::vm::Vm;
use bufshare_tests::wait;
use serde_json::json;

/// The driver of `tests/guest/importer`, in the exporting VM, and its device.
static VMS: Shared = Shared::new(|| {
    Plan::new().first(|machine| {
        let words = ["-device", "edu,dma_mask=0xffffffffffffffff"];
        machine.qemu.extend(words.map(str::to_owned));
    })
});
const SIZE: u64 = 1 << 20;
const PATIENCE: &str = "/sys/module/virtio_bufshare/parameters/request_timeout_ms";
const LIMIT: Duration = Duration::from_secs(20);

fn is_quiesced(a: &mut Client, export: &Export) -> Result<bool> {
    Ok(a.query(&export.id)?.quiesced)
}

/// Quiesces it, and the host says so.
fn quiesce(a: &mut Client, export: &Export) -> Result<()> {
    a.quiesce(export)?;
    ensure!(is_quiesced(a, export)?, "the host does not know");
    Ok(())
}

fn is_busy(a: &mut Client, export: &Export) -> Result<()> {
    let refusal = refused(a.quiesce(export))?;
    ensure!(refusal.errno == libc::EBUSY, "{refusal}");
    ensure!(refusal.status.is_none(), "the host was asked: {refusal}");
    ensure!(!is_quiesced(a, export)?, "refused and quiesced");
    Ok(())
}

/// Has `check` go on while the host does not, and a driver wait for it no longer than so.
fn without_the_host<T>(
    vms: &mut TwoVms,
    patience: &[u8],
    check: impl FnOnce(&mut TwoVms) -> Result<T>,
) -> Result<T> {
    let before = vms.a.read_file(PATIENCE)?;
    vms.a.write_file(PATIENCE, patience)?;
    vms.daemon()?.pause()?;
    let checked = check(vms);
    vms.daemon()?.go_on()?;
    vms.a.write_file(PATIENCE, before.trim_ascii())?;
    checked
}

/// Has a process begin to write, and returns when its driver has asked the host.
fn begin_to_fill(vm: &Vm, client: &mut Client, map: Map, seed: u32) -> Result<u64> {
    let before = requests(vm)?;
    let map = map.number;
    let begun = client.begin(Op::Fill { map, seed })?;
    wait::until("the write to ask the host", wait::COMMAND, || {
        Ok((requests(vm)? > before).then_some(()))
    })?;
    Ok(begun)
}

/// Ends of exports that came with the promise.
fn promised(vms: &mut TwoVms) -> Result<u64> {
    Ok(vms.daemon()?.snapshot()?.peer("a")?.unexports_quiesced)
}

/// Has the driver of `tests/guest/importer`.
fn has_importer(vm: &Vm) -> Result<()> {
    if vm.list_dir("/sys/module/bufshare_importer")?.is_empty() {
        vm.insert("importer", &[])?;
    }
    Ok(())
}

/// SPEC 7.11.
#[test]
fn a_quiesced_buffer_is_shown_as_that_to_its_exporter_and_read_by_its_importer() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 1)?;
        let theirs = b.import_pattern(&export.id, 1)?;
        // Also twice.
        for _ in 0..2 {
            quiesce(&mut a, &export)?;
            ensure!(
                !b.query(&export.id)?.quiesced,
                "it is nobody else's business"
            );
        }
        let all = a.list()?;
        ensure!(all.iter().any(|one| one.id == export.id && one.quiesced));
        let buffers = vms.daemon()?.snapshot()?.buffers;
        ensure!(buffers.iter().all(|buffer| buffer.quiesced), "{buffers:?}");
        ensure!(b.compare(theirs, 1)? == Sight::Pattern);
        b.import_pattern(&export.id, 1)?;
        ensure!(is_quiesced(&mut a, &export)?, "an importer ended it");
        for _ in 0..2 {
            a.resume(&export)?;
            ensure!(!is_quiesced(&mut a, &export)?);
        }
        Ok(())
    });
}

#[test]
fn the_next_access_of_a_program_to_its_mapping_ends_it() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (buf, mine, export) = a.offer(SIZE, 1)?;
        let theirs = b.import_pattern(&export.id, 1)?;
        let second = a.map(buf)?;
        a.touch(second)?;
        for seed in 2..5 {
            quiesce(&mut a, &export)?;
            a.fill(mine, seed)?;
            ensure!(!is_quiesced(&mut a, &export)?, "it writes and is quiesced");
            ensure!(b.compare(theirs, seed)? == Sight::Pattern);
        }
        // By each mapping that there is, and a new one; and to read is enough.
        quiesce(&mut a, &export)?;
        ensure!(a.compare(second, 4)? == Sight::Pattern);
        ensure!(!is_quiesced(&mut a, &export)?);
        quiesce(&mut a, &export)?;
        let new = a.map(buf)?;
        ensure!(is_quiesced(&mut a, &export)?, "a mapping alone ended it");
        ensure!(a.compare(new, 4)? == Sight::Pattern);
        ensure!(!is_quiesced(&mut a, &export)?);
        quiesce(&mut a, &export)?;
        ensure!(a.fill_in_child(mine, 5)? == Sight::Pattern);
        ensure!(!is_quiesced(&mut a, &export)?);
        ensure!(b.compare(theirs, 5)? == Sight::Pattern);
        Ok(())
    });
}

#[test]
fn cpu_access_that_has_begun_keeps_memory_from_being_quiesced_and_ends_it() {
    VMS.with(|vms| {
        let mut a = vms.a.client()?;
        let (buf, _, export) = a.offer(SIZE, 1)?;
        for write in [false, true] {
            a.sync(buf, write, false)?;
            is_busy(&mut a, &export)?;
            a.sync(buf, write, true)?;
            quiesce(&mut a, &export)?;
            a.sync(buf, write, false)?;
            ensure!(!is_quiesced(&mut a, &export)?);
            a.sync(buf, write, true)?;
        }
        // An end without its begin changes nothing.
        quiesce(&mut a, &export)?;
        a.sync(buf, true, true)?;
        ensure!(is_quiesced(&mut a, &export)?);
        Ok(())
    });
}

/// Others are waited for before an access begins; whoever does not get so far has none.
#[test]
fn cpu_access_that_a_signal_ended_before_it_began_does_not_keep_memory_from_being_quiesced() {
    VMS.with(|vms| {
        has_importer(&vms.a)?;
        let (mut a, mut killed) = (vms.a.client()?, vms.a.client()?);
        let (buf, _, export) = a.offer(SIZE, 1)?;
        let importer = a.attach(buf, AttachKind::Plain)?;
        a.step(importer, Step::Fence)?;
        let theirs = killed.adopt(a.program().pid(), 0)?;
        killed.begin(Op::Sync {
            buf: theirs.number,
            write: true,
            end: false,
        })?;
        vms.a
            .waits_in(killed.program().pid(), "dma_fence_default_wait")?;
        killed.program().signal(libc::SIGKILL)?;
        killed.program().end(LIMIT, |_, _| {})?;
        a.step(importer, Step::Signal)?;
        quiesce(&mut a, &export)
    });
}

#[test]
fn a_kernel_mapping_of_memory_that_a_silent_host_keeps_quiesced_is_scratch_memory() {
    VMS.with(|vms| {
        has_importer(&vms.a)?;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (buf, _, export) = a.offer(SIZE, 1)?;
        let theirs = b.import_pattern(&export.id, 1)?;
        quiesce(&mut a, &export)?;
        let importer = a.attach(buf, AttachKind::Plain)?;
        let read = Step::CpuRead { offset: 0, len: 8 };
        without_the_host(vms, b"300", |_| {
            a.step(importer, Step::Vmap)?;
            ensure!(a.step_read(importer, read)? == [0; 8]);
            let data = vec![0x5a; 8];
            a.step(importer, Step::CpuWrite { offset: 0, data })?;
            ensure!(b.compare(theirs, 1)? == Sight::Pattern);
            Ok(())
        })?;
        // The host is there again, the mapping is what it was.
        let refusal = refused(a.sync(buf, true, false))?;
        ensure!(refusal.errno == libc::EIO, "{refusal}");
        a.step(importer, Step::Vunmap)?;
        a.sync(buf, true, false)?;
        a.sync(buf, true, true)?;
        a.step(importer, Step::Vmap)?;
        is_busy(&mut a, &export)?;
        let data = vec![0x5a; 8];
        a.step(importer, Step::CpuWrite { offset: 0, data })?;
        ensure!(b.peek(theirs, 0, 8)? == Some(vec![0x5a; 8]));
        a.step(importer, Step::Vunmap)?;
        quiesce(&mut a, &export)
    });
}

#[test]
fn mappings_for_devices_and_the_kernel_keep_memory_from_being_quiesced_and_end_it() {
    VMS.with(|vms| {
        has_importer(&vms.a)?;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (buf, _, export) = a.offer(SIZE, 1)?;
        let theirs = b.import_pattern(&export.id, 1)?;
        let importer = a.attach(buf, AttachKind::Static)?;
        for (begin, end) in [
            (Step::Map, Step::Unmap),
            (Step::Vmap, Step::Vunmap),
            (Step::Begin, Step::End),
        ] {
            // An attachment alone does nothing.
            quiesce(&mut a, &export)?;
            a.step(importer, begin.clone())?;
            ensure!(!is_quiesced(&mut a, &export)?, "{begin:?} did not end it");
            is_busy(&mut a, &export)?;
            a.step(importer, end)?;
        }
        quiesce(&mut a, &export)?;
        a.step(importer, Step::Map)?;
        let data = vec![0x5a; 4096];
        a.step(importer, Step::DmaWrite { offset: 0, data })?;
        a.step(importer, Step::Unmap)?;
        ensure!(b.peek(theirs, 0, 4096)? == Some(vec![0x5a; 4096]));
        quiesce(&mut a, &export)
    });
}

#[test]
fn memory_of_another_driver_is_not_quiesced() {
    VMS.with(|vms| {
        let mut a = vms.a.client()?;
        let buf = a.make(Source::Heap("system".to_owned()), 4096)?;
        let export = a.export(buf)?;
        for result in [a.quiesce(&export), a.resume(&export)] {
            let refusal = refused(result)?;
            ensure!(refusal.errno == libc::EOPNOTSUPP, "{refusal}");
        }
        ensure!(!is_quiesced(&mut a, &export)?);
        Ok(())
    });
}

/// The state is the memory's, and the host hears of it for each export.
#[test]
fn all_exports_of_one_memory_are_quiesced_and_active_together() {
    VMS.with(|vms| {
        let mut a = vms.a.client()?;
        let (buf, mine, one) = a.offer(SIZE, 1)?;
        let two = a.export_to(buf, &[("b", true)], "", b"")?;
        a.quiesce(&two)?;
        ensure!(is_quiesced(&mut a, &one)? && is_quiesced(&mut a, &two)?);
        // What comes later is not, until it is asked for.
        let three = a.export_to(buf, &[("b", false)], "", b"")?;
        ensure!(!is_quiesced(&mut a, &three)?);
        a.quiesce(&one)?;
        ensure!(is_quiesced(&mut a, &three)?);
        // Another memory is another matter.
        let (_, other, _) = a.offer(SIZE, 2)?;
        a.fill(other, 3)?;
        a.close(two.number)?;
        vms.daemon()?
            .settles("the buffer to be gone", |now| now.buffers == 3)?;
        ensure!(is_quiesced(&mut a, &one)? && is_quiesced(&mut a, &three)?);
        a.fill(mine, 4)?;
        ensure!(!is_quiesced(&mut a, &one)? && !is_quiesced(&mut a, &three)?);
        // The last that is quiesced takes the state with it.
        a.close(three.number)?;
        quiesce(&mut a, &one)?;
        a.close(one.number)?;
        a.fill(mine, 5)?;
        ensure!(a.compare(mine, 5)? == Sight::Pattern);
        Ok(())
    });
}

#[test]
fn the_end_of_a_quiesced_export_takes_it_from_its_importer_and_gives_the_memory_back() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        b.info()?;
        let (buf, mine, export) = a.offer(SIZE, 1)?;
        let theirs = b.import_pattern(&export.id, 1)?;
        b.watch(theirs, 1)?;
        quiesce(&mut a, &export)?;
        let before = promised(vms)?;
        a.close(export.number)?;
        b.wait_sigbus(theirs, LIMIT)?;
        ensure!(b.sights()? == [Sight::Sigbus]);
        b.wait_event_of("Revoked", &export.id)?;
        let settled = |now: &bufshare_tests::daemon::Holdings| now.buffers == 0;
        vms.daemon()?.settles("the buffer to be gone", settled)?;
        ensure!(promised(vms)? == before + 1, "it ended as any other");
        a.fill(mine, 2)?;
        ensure!(a.compare(mine, 2)? == Sight::Pattern);
        // Nothing is left of the state.
        let export = a.export(buf)?;
        ensure!(!is_quiesced(&mut a, &export)?);
        quiesce(&mut a, &export)?;
        a.resume(&export)?;
        a.close(export.number)?;
        vms.daemon()?.settles("that, too, to be gone", settled)?;
        ensure!(
            promised(vms)? == before + 1,
            "it promised what it did not keep"
        );
        Ok(())
    });
}

/// SPEC 7.4: who writes again waits for the host, and for no importer.
#[test]
fn a_write_after_the_end_of_a_quiesced_export_does_not_wait_for_a_stopped_importer() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, mine, export) = a.offer(SIZE, 1)?;
        b.import_pattern(&export.id, 1)?;
        quiesce(&mut a, &export)?;
        vms.b.qmp().execute("stop", json!({}))?;
        let checked = (|| {
            a.close(export.number)?;
            let now = |vms: &mut TwoVms| -> Result<(bool, bool)> {
                let buffers = vms.daemon()?.snapshot()?.buffers;
                let buffer = buffers.first().context("the importer has let go")?;
                Ok((buffer.revoking, buffer.quiesced))
            };
            wait::until("the end to begin", wait::COMMAND, || {
                Ok((now(vms)? == (true, true)).then_some(()))
            })?;
            a.fill(mine, 2)?;
            let found = now(vms)?;
            ensure!(found == (true, false), "revoking, quiesced: {found:?}");
            ensure!(a.compare(mine, 2)? == Sight::Pattern);
            Ok(())
        })();
        vms.b.qmp().execute("cont", json!({}))?;
        checked?;
        vms.daemon()?
            .settles("the buffer to be gone", |now| now.buffers == 0)?;
        Ok(())
    });
}

#[test]
fn a_write_that_waits_for_the_host_goes_on_when_it_answers() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, mine, export) = a.offer(SIZE, 1)?;
        let theirs = b.import_pattern(&export.id, 1)?;
        quiesce(&mut a, &export)?;
        let begun = without_the_host(vms, b"9000", |vms| {
            let begun = begin_to_fill(&vms.a, &mut a, mine, 2)?;
            // It has not written.
            ensure!(b.compare(theirs, 1)? == Sight::Pattern);
            Ok(begun)
        })?;
        a.finish(begun, "writing", wait::COMMAND)?;
        ensure!(b.compare(theirs, 2)? == Sight::Pattern);
        ensure!(!is_quiesced(&mut a, &export)?);
        Ok(())
    });
}

/// The end of the export and the end of the promise go to the host in either order.
#[test]
fn a_write_goes_on_although_the_export_ends_before_the_host_answers_it() {
    VMS.with(|vms| {
        for write_first in [true, false] {
            let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
            let (_, mine, export) = a.offer(SIZE, 1)?;
            b.import_pattern(&export.id, 1)?;
            let mut other = vms.a.client()?;
            let adopted = other.adopt(a.program().pid(), 0)?;
            let map = other.map(adopted)?;
            ensure!(other.compare(map, 1)? == Sight::Pattern);
            quiesce(&mut a, &export)?;
            let before = promised(vms)?;
            let begun = without_the_host(vms, b"9000", |vms| {
                if write_first {
                    let begun = begin_to_fill(&vms.a, &mut other, map, 2)?;
                    a.close(export.number)?;
                    Ok(begun)
                } else {
                    a.close(export.number)?;
                    begin_to_fill(&vms.a, &mut other, map, 2)
                }
            })?;
            other.finish(begun, "writing", wait::COMMAND)?;
            ensure!(a.compare(mine, 2)? == Sight::Pattern);
            vms.daemon()?
                .settles("the buffer to be gone", |now| now.buffers == 0)?;
            // What was asked for before the end is not promised by it.
            let made = promised(vms)? - before;
            ensure!(made == u64::from(!write_first), "{made}, {write_first}");
        }
        Ok(())
    });
}

#[test]
fn a_write_that_waits_for_the_host_ends_with_its_process() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, mine, export) = a.offer(SIZE, 1)?;
        b.import_pattern(&export.id, 1)?;
        quiesce(&mut a, &export)?;
        without_the_host(vms, b"9000", |vms| {
            begin_to_fill(&vms.a, &mut a, mine, 2)?;
            a.program().signal(libc::SIGKILL)?;
            let status = a.program().end(LIMIT, |_, _| {})?;
            ensure!(status == Status::Signal(libc::SIGKILL), "{status:?}");
            Ok(())
        })?;
        vms.daemon()?
            .settles("the buffer to be gone", |now| now.buffers == 0)?;
        share_works(&mut vms.a.client()?, &mut b, 3)
    });
}

#[test]
fn a_host_that_does_not_answer_keeps_memory_quiesced_until_it_does() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (buf, mine, export) = a.offer(SIZE, 1)?;
        let theirs = b.import_pattern(&export.id, 1)?;
        quiesce(&mut a, &export)?;
        without_the_host(vms, b"300", |_| {
            // Each tries anew.
            for _ in 0..2 {
                ensure!(a.poke(mine, 0, &[1; 8])? == Sight::Sigbus);
                let refusal = refused(a.sync(buf, true, false))?;
                ensure!(refusal.errno == libc::ETIMEDOUT, "{refusal}");
                let refusal = refused(a.resume(&export))?;
                ensure!(refusal.errno == libc::ETIMEDOUT, "{refusal}");
                let refusal = refused(a.quiesce(&export))?;
                ensure!(refusal.errno == libc::EBUSY, "{refusal}");
            }
            ensure!(b.compare(theirs, 1)? == Sight::Pattern);
            Ok(())
        })?;
        a.fill(mine, 2)?;
        ensure!(b.compare(theirs, 2)? == Sight::Pattern);
        ensure!(!is_quiesced(&mut a, &export)?);
        quiesce(&mut a, &export)
    });
}

/// It may hear of that later: then it hears at once that it is over.
#[test]
fn memory_whose_quiescing_was_not_answered_is_active_as_soon_as_the_host_answers() {
    VMS.with(|vms| {
        let mut a = vms.a.client()?;
        let (_, mine, export) = a.offer(SIZE, 1)?;
        without_the_host(vms, b"300", |_| {
            let refusal = refused(a.quiesce(&export))?;
            ensure!(refusal.errno == libc::ETIMEDOUT, "{refusal}");
            // The promise holds: it may have been heard.
            ensure!(a.poke(mine, 0, &[1; 8])? == Sight::Sigbus);
            Ok(())
        })?;
        wait::until("the host to have heard all", LIMIT, || {
            Ok((!is_quiesced(&mut a, &export)?).then_some(()))
        })?;
        a.fill(mine, 2)?;
        quiesce(&mut a, &export)
    });
}

/// SPEC 3.2: the host does not know whether its driver will go on.
#[test]
fn memory_of_a_vm_that_was_paused_is_usable_and_its_quiesced_export_has_ended() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        b.info()?;
        let (_, mine, export) = a.offer(SIZE, 1)?;
        b.import_pattern(&export.id, 1)?;
        quiesce(&mut a, &export)?;
        vms.a.qmp().execute("stop", json!({}))?;
        let stopped = b.wait_event_of("Revoked", &export.id);
        vms.a.qmp().execute("cont", json!({}))?;
        stopped?;
        a.wait_event_of("Revoked", &export.id)?;
        let refusal = refused(a.quiesce(&export))?;
        let status = refusal.status.as_deref();
        ensure!(
            (refusal.errno, status) == (libc::ENOENT, Some("NOT_FOUND")),
            "{refusal}"
        );
        a.fill(mine, 2)?;
        ensure!(a.compare(mine, 2)? == Sight::Pattern);
        a.resume(&export)?;
        a.close(export.number)?;
        vms.daemon()?
            .settles("the buffer to be gone", |now| now.buffers == 0)?;
        Ok(())
    });
}

#[test]
fn memory_is_usable_when_the_driver_has_left_the_device() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, mine, export) = a.offer(SIZE, 1)?;
        b.import_pattern(&export.id, 1)?;
        quiesce(&mut a, &export)?;
        let device = unbind(&vms.a)?;
        a.fill(mine, 2)?;
        ensure!(a.compare(mine, 2)? == Sight::Pattern);
        for result in [a.quiesce(&export), a.resume(&export)] {
            let refusal = refused(result)?;
            ensure!(refusal.errno == libc::ENODEV, "{refusal}");
        }
        bind(&vms.a, &device)?;
        drop((a, b));
        share_works(&mut vms.a.client()?, &mut vms.b.client()?, 3)
    });
}

/// Only the reset of the device ends a promise to a host that is gone.
#[test]
fn memory_whose_host_was_killed_is_usable_after_the_reset_of_the_device() {
    pair::with_own(
        |_| Ok(Plan::new()),
        |vms| {
            let mut a = vms.a.client()?;
            let (_, mine, export) = a.offer(SIZE, 1)?;
            quiesce(&mut a, &export)?;
            vms.a.write_file(PATIENCE, b"300")?;
            vms.daemon()?.kill()?;
            ensure!(a.poke(mine, 0, &[1; 8])? == Sight::Sigbus);
            unbind(&vms.a)?;
            a.fill(mine, 2)?;
            ensure!(a.compare(mine, 2)? == Sight::Pattern);
            Ok(())
        },
    );
}

/// Faults, and quiescing of what they make, for some time.
#[test]
fn a_reader_sees_its_memory_however_often_that_is_quiesced() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, mine, export) = a.offer(SIZE, 1)?;
        let theirs = b.import_pattern(&export.id, 1)?;
        a.watch(mine, 1)?;
        let (mut done, mut busy) = (0, 0);
        for _ in 0..100 {
            match a.quiesce(&export) {
                Ok(()) => done += 1,
                Err(error) => {
                    let refusal = refused::<()>(Err(error))?;
                    ensure!(refusal.errno == libc::EBUSY, "{refusal}");
                    busy += 1;
                }
            }
        }
        ensure!(done > 0, "busy {busy} times");
        a.reads_on(mine)?;
        ensure!(a.sights()? == []);
        a.close(mine.number)?;
        quiesce(&mut a, &export)?;
        ensure!(b.compare(theirs, 1)? == Sight::Pattern);
        let all = a.call(Op::List, wait::COMMAND)?;
        ensure!(matches!(all, Yield::Buffers(all) if all.len() == 1));
        Ok(())
    });
}
