// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory is not used for anything else while the host has not said that no other VM reaches it

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bufshare_agent::wire::Command;
use bufshare_tests::channel::{Pending, Transcript, errno_of};
use bufshare_tests::client::{AttachKind, Client, Sight, Source, Step, share_works};
use bufshare_tests::daemon::{self, SOCKETS};
use bufshare_tests::driver::{bind, bound, unbind, unload_when_free};
use bufshare_tests::pair::{self, DRIVER, Plan, Shared, TwoVms};
use bufshare_tests::vm::{Machine, Vm};
use bufshare_tests::wait;
use serde_json::json;

/// The daemon waits for importers that are paused.
static VMS: Shared = Shared::new(|| Plan::new().options(&["--revoke-wait", "unlimited"]));
static STUCK: Shared = Shared::new(|| Plan::new().options(&["--revoke-wait", "1"]));
const SIZE: u64 = 4 << 20;
/// Without udmabuf each piece of a buffer of another driver takes a window.
const PIECES: [&str; 2] = ["--max-windows", "256"];
const LIMIT: Duration = Duration::from_secs(60);

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

/// How often the driver has said since boot that it keeps this memory.
fn said_to_keep(vm: &Vm, buffers: usize, bytes: u64) -> Result<usize> {
    let said = format!("{buffers} exported buffers: their {bytes} bytes");
    let log = vm.kernel_log()?;
    Ok(log.iter().filter(|line| line.contains(&said)).count())
}

/// The driver has said once more that it keeps this memory.
fn says_to_keep(vm: &Vm, buffers: usize, bytes: u64, before: usize) -> Result<()> {
    let times = said_to_keep(vm, buffers, bytes)?;
    ensure!(
        times > before,
        "the kernel's log does not say that {buffers} buffers of {bytes} bytes are kept"
    );
    Ok(())
}

/// The exporting process ends and the driver leaves the device, after nobody is
/// left who could take the memory from the importer.
#[test]
fn what_a_guest_writes_after_its_daemon_and_its_driver_went_is_not_seen_by_importers() {
    pair::with_own(
        |_| Ok(Plan::new().options(&PIECES)),
        |vms| {
            let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
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
            says_to_keep(&vms.a, 3, total, 0)?;
            // Nor does the driver go, which knows what is not to be used.
            let refusal = vms.a.unload(DRIVER).err().context("it was removed")?;
            ensure!(errno_of(&refusal) == Some(libc::EAGAIN), "{refusal:#}");
            drop(b);
            Ok(())
        },
    );
}

/// A driver that leaves in order has had every answer, and keeps nothing.
#[test]
fn a_driver_that_leaves_while_the_host_answers_keeps_nothing() {
    pair::with_own(
        |_| Ok(Plan::new().options(&PIECES)),
        |vms| {
            let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
            two_are_mapped(&mut a, &mut b)?;
            unbind(&vms.a)?;
            drop((a, b));
            unload_when_free(&vms.a, DRIVER)?;
            vms.a.load(DRIVER, "")?;
            let kept = kept(&vms.a)?;
            ensure!(kept == backings(0), "{kept}");
            Ok(())
        },
    );
}

/// A buffer of ALLOC and one of another driver, which B has mapped.
fn two_are_mapped(a: &mut Client, b: &mut Client) -> Result<()> {
    let (_, _, export) = a.offer(SIZE, 1)?;
    let heap = a.make(Source::Heap("system".to_owned()), SIZE)?;
    let other = a.export(heap)?;
    for id in [&export.id, &other.id] {
        let import = b.import(id)?;
        b.make_window(import.buf)?;
    }
    Ok(())
}

/// What the driver keeps, as it says.
fn kept(vm: &Vm) -> Result<String> {
    let state = String::from_utf8(vm.read_file("/sys/kernel/debug/bufshare/state")?)?;
    let line = state.lines().find(|line| line.starts_with("kept "));
    line.map(str::to_owned)
        .with_context(|| format!("the driver does not say what it keeps: {state}"))
}

/// How the driver says that it keeps so many buffers of [`SIZE`].
fn backings(count: u64) -> String {
    format!("kept {count} backings, {} bytes", count * SIZE)
}

/// The driver comes to keep so many buffers of [`SIZE`].
fn keeps(vm: &Vm, count: u64) -> Result<()> {
    let what = format!("the driver to say '{}'", backings(count));
    wait::until(&what, LIMIT, || {
        Ok((kept(vm)? == backings(count)).then_some(()))
    })
}

/// A's driver has given all back, sharing works again, and nothing holds the module.
fn all_is_given_back(vms: &TwoVms) -> Result<()> {
    keeps(&vms.a, 0)?;
    share_works(&mut vms.a.client()?, &mut vms.b.client()?, 5)?;
    unload_when_free(&vms.a, DRIVER)?;
    vms.a.load(DRIVER, "")
}

/// Begins to unbind the driver, which takes as long as the host does.
fn begin_unbind(vm: &Vm, device: &str) -> Result<Pending> {
    vm.channel().ask(Command::WriteFile {
        path: "/sys/bus/virtio/drivers/virtio_bufshare/unbind".to_owned(),
        data: device.as_bytes().to_vec(),
    })
}

/// The stop of A is held up until the importer goes on, but not the driver's wait for
/// its answers: those are given in its next session.
#[test]
fn kept_memory_is_given_back_when_the_importer_went_on_meanwhile() {
    VMS.with(|vms| {
        let missed = vms.missed_by_b()?;
        let said = said_to_keep(&vms.a, 2, 2 * SIZE)?;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        two_are_mapped(&mut a, &mut b)?;
        let device = bound(&vms.a)?.context("no device")?;
        vms.b.qmp().execute("stop", json!({}))?;
        let unbinding = begin_unbind(&vms.a, &device)?;
        let daemon = vms.daemon()?;
        wait::until("the exporter's stop", LIMIT, || {
            Ok((!daemon.snapshot()?.peer("a")?.up).then_some(()))
        })?;
        vms.b.qmp().execute("cont", json!({}))?;
        unbinding.wait(LIMIT).context("unbinding")?;
        says_to_keep(&vms.a, 2, 2 * SIZE, said)?;
        bind(&vms.a, &device)?;
        drop((a, b));
        all_is_given_back(vms)?;
        vms.missed_no_more_by_b(missed)
            .context("the importer was forced although nobody limits its time")?;
        Ok(())
    });
}

/// The stop of A is answered although the importer's VMM, which is stuck, did not
/// unmap: the driver's next session asks, and waits until it does.
#[test]
fn kept_memory_is_given_back_when_the_importers_vmm_goes_on_later() {
    STUCK.with(|vms| {
        let missed = vms.missed_by_b()?;
        let said = said_to_keep(&vms.a, 2, 2 * SIZE)?;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        two_are_mapped(&mut a, &mut b)?;
        vms.b.pause_process()?;
        let rebound = unbind(&vms.a).and_then(|device| {
            says_to_keep(&vms.a, 2, 2 * SIZE, said)?;
            bind(&vms.a, &device)
        });
        vms.daemon()?.expect_unproved_stops(1);
        let pending = rebound.and_then(|()| kept(&vms.a));
        vms.b.resume_process()?;
        let pending = pending?;
        ensure!(pending == backings(2), "{pending}");
        ensure!(
            vms.missed_by_b()? > missed,
            "no missed deadline was counted"
        );
        drop((a, b));
        all_is_given_back(vms)
    });
}

/// Most requests for the end of an export wait in the driver for the answers to others,
/// which a stuck importer keeps back, when `end_session` is run.
fn ends_with_requests_that_were_not_sent(
    vms: &mut TwoVms,
    end_session: fn(&Vm) -> Result<()>,
) -> Result<()> {
    /// More than the driver asks for at a time.
    const MANY: u32 = 40;
    const PAGE: u64 = 4096;
    let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
    let mut exports = Vec::new();
    for seed in 0..MANY {
        let (_, _, export) = a.offer(PAGE, seed)?;
        b.import_pattern(&export.id, seed)?;
        exports.push(export);
    }
    // The last one is nobody's but the exporter's.
    let (_, _, unused) = a.offer(PAGE, MANY)?;
    exports.push(unused);
    let (count, bytes) = (exports.len(), u64::from(MANY + 1) * PAGE);
    let said = said_to_keep(&vms.a, count, bytes)?;
    vms.b.pause_process()?;
    let ended = exports
        .into_iter()
        .try_for_each(|export| a.close(export.number))
        .and_then(|()| end_session(&vms.a))
        .and_then(|()| says_to_keep(&vms.a, count, bytes, said));
    vms.daemon()?.expect_unproved_stops(1);
    vms.b.resume_process()?;
    ended?;
    drop((a, b));
    all_is_given_back(vms)
}

#[test]
fn kept_memory_is_given_back_although_the_unbound_driver_did_not_ask_for_it() {
    STUCK.with(|vms| ends_with_requests_that_were_not_sent(vms, |vm| bind(vm, &unbind(vm)?)));
}

#[test]
fn kept_memory_is_given_back_although_the_driver_did_not_ask_for_it_before_a_sleep() {
    STUCK.with(|vms| {
        ends_with_requests_that_were_not_sent(vms, |vm| {
            // Devices are put to sleep and woken, the machine itself is not.
            vm.write_file("/sys/power/pm_test", b"devices")?;
            // It takes as long as the host does.
            vm.channel().ask(Command::Sleep)?.wait(LIMIT).map(drop)
        })
    });
}

/// The importer that does not release the driver's exports is not the one that answers for
/// the driver's own windows: those are given back, without which the device cannot be
/// used again before the VM is powered off.
#[test]
fn a_driver_that_has_imported_is_bound_again_while_an_importer_of_its_own_is_stuck() {
    STUCK.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        // The daemon keeps the window for the next import of the buffer.
        let (_, _, theirs) = b.offer(SIZE, 6)?;
        a.cycle(&theirs.id, 1, 6, LIMIT)?;
        // The driver's answer to its UNMAP is not waited for when a descriptor is closed.
        wait::until("the daemon to keep the window", LIMIT, || {
            let kept = vms.daemon()?.snapshot()?.peer("a")?.windows_idle;
            Ok((kept == 1).then_some(()))
        })?;
        two_are_mapped(&mut a, &mut b)?;
        vms.b.pause_process()?;
        let rebound = unbind(&vms.a).and_then(|device| bind(&vms.a, &device));
        vms.daemon()?.expect_unproved_stops(1);
        vms.b.resume_process()?;
        rebound?;
        drop((a, b));
        all_is_given_back(vms)
    });
}

/// Another driver of the same VM ends its use of an import while the host is waited for:
/// that window is given back, too, although the exports are not.
#[test]
fn a_window_that_is_given_back_while_an_importer_is_stuck_is_not_left_mapped() {
    STUCK.with(|vms| {
        vms.a.insert("importer", &[])?;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, used) = b.offer(SIZE, 7)?;
        let import = a.import(&used.id)?;
        let user = a.attach(import.buf, AttachKind::Plain)?;
        a.step(user, Step::Vmap)?;
        // The driver's first step with windows is seen by this one, which the daemon keeps.
        let (_, _, theirs) = b.offer(SIZE, 8)?;
        a.cycle(&theirs.id, 1, 8, LIMIT)?;
        let windows = |vms: &mut TwoVms| -> Result<(u64, u64)> {
            let now = vms.daemon()?.snapshot()?;
            let peer = now.peer("a")?;
            Ok((peer.windows_live, peer.windows_idle))
        };
        wait::until("one window in use and one kept", LIMIT, || {
            Ok((windows(vms)? == (1, 1)).then_some(()))
        })?;
        two_are_mapped(&mut a, &mut b)?;
        vms.b.pause_process()?;
        let rebound = (|| {
            let device = bound(&vms.a)?.context("no device")?;
            let unbinding = begin_unbind(&vms.a, &device)?;
            wait::until("the kept window to be given back", LIMIT, || {
                Ok((windows(vms)? == (1, 0)).then_some(()))
            })?;
            a.step(user, Step::Vunmap)?;
            unbinding.wait(LIMIT).context("unbinding")?;
            bind(&vms.a, &device)?;
            kept(&vms.a)
        })();
        vms.daemon()?.expect_unproved_stops(1);
        vms.b.resume_process()?;
        let pending = rebound?;
        ensure!(pending == backings(2), "{pending}");
        drop((a, b));
        unload_when_free(&vms.a, "bufshare_importer")?;
        all_is_given_back(vms)
    });
}

/// A third machine, of the daemon's peer of that name.
fn third(vms: &TwoVms, name: &str) -> Result<Vm> {
    let sockets = vms.a.socket().and_then(Path::parent);
    let mut machine = Machine::new(name);
    machine.memory = 256;
    machine.modules.push(DRIVER.to_owned());
    machine.socket = Some(daemon::socket(sockets.context("no sockets")?, name));
    let transcript = Transcript::new(&vms.logs().join(format!("transcript-{name}.jsonl")))?;
    let mut vm = Vm::start(vms.lab(), machine, vms.logs(), &transcript)?;
    vm.boot()?;
    Ok(vm)
}

/// The last of six buffers is that of an importer which ends; that of the others is stuck.
#[test]
fn kept_memory_is_given_back_although_another_importer_is_stuck() {
    let plan = |_: &Path| {
        let peer = format!("name=c,socket={SOCKETS}/c.sock,ram-fd=allow");
        let words = ["--peer", &peer, "--allow", "a:c:rw", "--revoke-wait", "1"];
        Ok(Plan::new().options(&words))
    };
    pair::with_own(plan, |vms| {
        let mut vm_c = third(vms, "c")?;
        let (mut a, mut b, mut c) = (vms.a.client()?, vms.b.client()?, vm_c.client()?);
        for seed in 1..=6 {
            let (_, _, export) = a.offer(SIZE, seed)?;
            let importer = if seed == 6 { &mut c } else { &mut b };
            importer.import_pattern(&export.id, seed)?;
        }
        vm_c.pause_process()?;
        vms.b.pause_process()?;
        let given_back = unbind(&vms.a).and_then(|device| {
            says_to_keep(&vms.a, 6, 6 * SIZE, 0)?;
            bind(&vms.a, &device)?;
            vm_c.kill()?;
            keeps(&vms.a, 5)
        });
        vms.daemon()?.expect_unproved_stops(1);
        vms.b.resume_process()?;
        given_back?;
        drop((a, b));
        all_is_given_back(vms)
    });
}
