// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the driver does on two processors of its guest at the same time
//!
//! A module of the tests holds one of the two up at the place where it matters.

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use anyhow::{Context as _, Result, ensure};
use bufshare_agent::hand::Op;
use bufshare_tests::delay::{self, Delay};
use bufshare_tests::driver;
use bufshare_tests::hand::share_works;
use bufshare_tests::pair::{Plan, Shared};
use bufshare_tests::pci::PciConfig;
use bufshare_tests::vm::Vm;
use bufshare_tests::wait;

static VMS: Shared = Shared::new(|| Plan::new().second(delay::apart));
const SIZE: u64 = 1 << 20;

/// What the driver says of itself.
fn state(vm: &Vm) -> Result<String> {
    Ok(String::from_utf8(
        vm.read_file("/sys/kernel/debug/bufshare/state")?,
    )?)
}

/// The events that the driver has taken.
fn events(vm: &Vm) -> Result<u64> {
    let state = state(vm)?;
    let number = state.lines().find_map(|line| line.strip_prefix("events "));
    number
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("the driver does not say how many events: {state}"))
}

/// Has the second processor take the device's interrupts, all of which come by its pin.
fn interrupts_go_to_the_second_processor(vm: &Vm) -> Result<()> {
    let number = vm.read_file(&format!("{}/irq", driver::pci_device(vm)?))?;
    let folder = format!("/proc/irq/{}", String::from_utf8(number)?.trim());
    vm.write_file(&format!("{folder}/smp_affinity_list"), b"1")?;
    let mut hand = vm.hand()?;
    wait::until("the second processor's interrupt", wait::COMMAND, || {
        // It moves with the next one.
        hand.list()?;
        let at = vm.read_file(&format!("{folder}/effective_affinity_list"))?;
        Ok((at == b"1\n").then_some(()))
    })
}

/// The end of an import comes on one processor while the other is about to take the
/// answer that says that it has begun.
#[test]
fn a_revocation_is_not_missed_when_its_event_is_taken_before_the_answer_to_the_import() {
    VMS.with(|vms| {
        interrupts_go_to_the_second_processor(&vms.b)?;
        let (mut a, mut b) = (vms.a.hand()?, vms.b.hand()?);
        b.info()?;
        let (_, _, export) = a.offer(SIZE, 1)?;
        b.wait_event_of("Offer", &export.id)?;
        let before = events(&vms.b)?;
        let pci = PciConfig::of(&vms.b)?;
        pci.set_interrupts(false)?;
        let import = Op::Import {
            id: export.id,
            write: true,
        };
        let asked = b.begin(import)?;
        let daemon = vms.daemon()?;
        daemon.settles("the import", |now| now.attachments == 1)?;
        a.close(export.number)?;
        daemon.settles("the end of the export", |now| now.buffers == 0)?;
        let pci = PciConfig::of(&vms.b)?;
        let delay = Delay::of(&vms.b, "bufshare_ctrl_done", 4000)?;
        pci.set_interrupts(true)?;
        delay.holds()?;
        wait::until("the event to be taken", wait::COMMAND, || {
            Ok((events(&vms.b)? > before).then_some(()))
        })?;
        ensure!(!delay.over()?, "the answer was taken before the event");
        b.finish(asked, "IMPORT", wait::COMMAND)?;
        delay.end()?;
        let state = state(&vms.b)?;
        let revoked = |line: &str| line.ends_with(" revoked");
        ensure!(state.lines().any(revoked), "none is revoked: {state}");
        drop((a, b));
        share_works(&mut vms.a.hand()?, &mut vms.b.hand()?, 2)
    });
}
