// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the driver does on two processors of its guest at the same time
//!
//! A module of the tests holds one of the two up at the place where it matters.

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bufshare_agent::ops::Op;
use bufshare_agent::wire::Command;
use bufshare_tests::client::{refused, share_works};
use bufshare_tests::delay::{self, Delay};
use bufshare_tests::driver;
use bufshare_tests::pair::{Plan, Shared};
use bufshare_tests::pci::PciConfig;
use bufshare_tests::vm::Vm;
use bufshare_tests::wait;
use serde_json::{Value, json};

static VMS: Shared = Shared::new(|| {
    Plan::new()
        .options(&["--revoke-wait", "1"])
        .first(|machine| {
            delay::apart(machine);
            // What is said while devices sleep is shown as well.
            machine.kernel.push("no_console_suspend".to_owned());
        })
});
const SIZE: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// What the driver says of itself.
fn state(vm: &Vm) -> Result<String> {
    Ok(String::from_utf8(vm.read_file(driver::STATE)?)?)
}

/// Has this processor take the device's interrupts, all of which come by its pin.
fn interrupts_go_to(vm: &Vm, processor: u32) -> Result<()> {
    let number = vm.read_file(&format!("{}/irq", driver::pci_device(vm)?))?;
    let folder = format!("/proc/irq/{}", String::from_utf8(number)?.trim());
    let processor = processor.to_string();
    vm.write_file(&format!("{folder}/smp_affinity_list"), processor.as_bytes())?;
    let mut client = vm.client()?;
    let what = format!("an interrupt of processor {processor}");
    wait::until(&what, wait::COMMAND, || {
        // It moves with the next one.
        client.list()?;
        let at = vm.read_file(&format!("{folder}/effective_affinity_list"))?;
        Ok((at.trim_ascii_end() == processor.as_bytes()).then_some(()))
    })
}

/// The end of an import comes in one interrupt with the answer that says that it has begun.
#[test]
fn a_revocation_is_not_missed_when_its_event_comes_with_the_answer_to_the_import() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        a.info()?;
        let (_, _, export) = b.offer(SIZE, 1)?;
        a.wait_event_of("Offer", &export.id)?;
        let pci = PciConfig::of(&vms.a)?;
        pci.set_interrupts(false)?;
        let import = Op::Import {
            id: export.id,
            write: true,
        };
        let asked = a.begin(import)?;
        let daemon = vms.daemon()?;
        daemon.settles("the import", |now| now.attachments == 1)?;
        b.close(export.number)?;
        daemon.settles("the end of the export", |now| now.buffers == 0)?;
        // The kernel looks at the queue of events first.
        PciConfig::of(&vms.a)?.set_interrupts(true)?;
        a.finish(asked, "IMPORT", wait::COMMAND)?;
        let state = state(&vms.a)?;
        let revoked = |line: &str| line.contains(" revoked, window");
        ensure!(state.lines().any(revoked), "none is revoked: {state}");
        drop((a, b));
        share_works(&mut vms.b.client()?, &mut vms.a.client()?, 2)
    });
}

/// The session ends on one processor while the other is about to deliver an event that was
/// taken before.
#[test]
fn a_reader_has_the_last_event_before_it_hears_that_the_device_has_gone() {
    VMS.with(|vms| {
        const WORKS: &str = "/sys/devices/virtual/workqueue/cpumask";
        interrupts_go_to(&vms.a, 0)?;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        while a.event(Duration::ZERO)?.is_some() {}
        let others = vms.a.read_file(WORKS)?;
        vms.a.write_file(WORKS, b"2")?;
        let delay = Delay::of(&vms.a, "bufshare_deliver_work")?;
        let before = driver::events(&vms.a)?;
        let (_, _, export) = b.offer(SIZE, 5)?;
        delay.holds()?;
        wait::until("the event to be taken", wait::COMMAND, || {
            Ok((driver::events(&vms.a)? > before).then_some(()))
        })?;
        let device = driver::bound(&vms.a)?.context("no device")?;
        let unbinding = vms.a.channel().ask(Command::WriteFile {
            path: "/sys/bus/virtio/drivers/virtio_bufshare/unbind".to_owned(),
            data: device.as_bytes().to_vec(),
        })?;
        wait::until("the session to end", wait::COMMAND, || {
            Ok(state(&vms.a)?.contains("\" dead").then_some(()))
        })?;
        let early = a.event(Duration::ZERO).context("before the last event")?;
        ensure!(early.is_none(), "{early:?} was delivered already");
        ensure!(!delay.over()?, "it was delivered already");
        delay.end()?;
        unbinding.wait(LIMIT).context("unbinding")?;
        a.wait_event_of("Offer", &export.id)?;
        let refusal = refused(a.event(Duration::ZERO))?;
        ensure!(refusal.errno == libc::ENODEV, "{refusal}");
        vms.a.write_file(WORKS, &others)?;
        driver::bind(&vms.a, &device)?;
        drop((a, b));
        share_works(&mut vms.a.client()?, &mut vms.b.client()?, 6)
    });
}

/// A request that another task adds meanwhile is seen by the host with the first one's
/// notification only: it would wait until the task that owes that runs again.
#[test]
fn a_task_is_not_preempted_before_it_notifies_the_device() {
    VMS.with(|vms| {
        let mut a = vms.a.client()?;
        let pid = a.program().pid();
        // The way to the host begins where the kernel may preempt, and so it is seen to.
        let delay = Delay::none(&vms.a, "bufshare_req_alloc", pid)?;
        a.list()?;
        ensure!(delay.preemptible()?, "preemption is not seen");
        delay.end()?;
        let delay = Delay::none(&vms.a, "virtqueue_notify", pid)?;
        a.list()?;
        ensure!(!delay.preemptible()?, "it may be preempted");
        delay.end()
    });
}

/// Has the second processor take the keyboard's interrupts.
fn keys_go_to_the_second_processor(vm: &Vm) -> Result<()> {
    vm.write_file("/proc/irq/1/smp_affinity_list", b"1")?;
    wait::until("the second processor's key", wait::COMMAND, || {
        press(vm, &["shift"])?;
        let interrupts = String::from_utf8(vm.read_file("/proc/interrupts")?)?;
        let mut words = interrupts
            .lines()
            .map(str::split_whitespace)
            .find(|words| words.clone().next() == Some("1:"))
            .context("the guest has no keyboard")?;
        let second = words.nth(2).context("the guest has one processor")?;
        Ok((second.parse::<u64>()? > 0).then_some(()))
    })
}

/// Presses these keys together.
fn press(vm: &Vm, keys: &[&str]) -> Result<()> {
    let keys: Vec<Value> = keys
        .iter()
        .map(|key| json!({ "type": "qcode", "data": key }))
        .collect();
    vm.qmp()
        .execute("send-key", json!({ "keys": keys }))
        .map(drop)
}

/// Takes the device away and has the kernel find it again: it is the last one then, and
/// the first that is put to sleep.
fn becomes_the_last_device(vm: &Vm) -> Result<()> {
    vm.write_file("/sys/power/pm_async", b"0")?;
    vm.write_file(&format!("{}/remove", driver::pci_device(vm)?), b"1")?;
    vm.write_file("/sys/bus/pci/rescan", b"1")?;
    wait::until("the driver to have its device", wait::COMMAND, || {
        driver::bound(vm)
    })
    .map(drop)
}

/// Ctrl-alt-del reboots a guest without a word to its programs, and without a look at
/// whether it is about to sleep. It comes while the driver waits for a stuck importer, to
/// put its device to sleep, and is held up after the driver until the device has woken.
#[test]
fn a_reboot_by_ctrl_alt_del_meets_a_sleep_that_has_begun() {
    VMS.with(|vms| {
        keys_go_to_the_second_processor(&vms.a)?;
        becomes_the_last_device(&vms.a)?;
        // Devices are put to sleep and woken at once, the machine itself is not.
        vms.a.write_file("/sys/power/pm_test", b"devices")?;
        let pause = "/sys/module/suspend/parameters/pm_test_delay";
        vms.a.write_file(pause, b"0")?;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 3)?;
        b.import_pattern(&export.id, 3)?;
        Delay::of(&vms.a, "device_shutdown")?;
        vms.b.pause_process()?;
        let console = vms.logs().join("a.console");
        let said = std::fs::read(&console)?.len();
        vms.daemon()?.expect_unproved_stops(1);
        let rebooted = (|| {
            drop(vms.a.channel().ask(Command::Sleep)?);
            let daemon = vms.daemon()?;
            wait::until("the driver to end its exports", wait::COMMAND, || {
                let buffers = daemon.snapshot()?.buffers;
                Ok(buffers.iter().any(|buffer| buffer.revoking).then_some(()))
            })?;
            press(&vms.a, &["ctrl", "alt", "delete"])?;
            // -ESHUTDOWN
            let refusal = "failed to resume: error -108";
            wait::until("the driver to begin no session", LIMIT, || {
                let console = std::fs::read(&console)?;
                let since = console.get(said..).context("the console is a new one")?;
                Ok(String::from_utf8_lossy(since)
                    .contains(refusal)
                    .then_some(()))
            })?;
            vms.a.boot()
        })();
        vms.b.resume_process()?;
        rebooted?;
        drop((a, b));
        share_works(&mut vms.a.client()?, &mut vms.b.client()?, 4)
    });
}
