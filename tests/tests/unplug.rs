// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The PCI device is unplugged, or its function is reset, while buffers are imported

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bufshare_agent::wire::{Command, Status};
use bufshare_tests::channel::errno_of;
use bufshare_tests::client::{AttachKind, Sight, Step, pattern, refused, share_works};
use bufshare_tests::delay::{self, Apart, Delay};
use bufshare_tests::driver;
use bufshare_tests::pair::{Plan, Shared, Side, TwoVms};
use bufshare_tests::report::Skip;
use bufshare_tests::vm::{DEVICE, Vm};
use bufshare_tests::wait;
use serde_json::{Value, json};

static VMS: Shared = Shared::new(|| {
    Plan::new().second(|machine| {
        delay::apart(machine);
        let words = [
            "-device",
            "pcie-root-port,id=bay,chassis=1,slot=1",
            "-device",
            // By its usual mask its addresses would have 28 bits.
            "edu,dma_mask=0xffffffffffffffff",
        ];
        machine.qemu = words.map(str::to_owned).to_vec();
        machine.device = format!("{DEVICE},bus=bay");
    })
});
/// The daemon waits for importers that are paused.
static STRICT: Shared = Shared::new(|| {
    let plan = Plan::new().options(&["--revoke-wait", "unlimited"]);
    plan.first(|machine| {
        let words = ["-device", "pcie-root-port,id=bay,chassis=1,slot=1"];
        machine.qemu = words.map(str::to_owned).to_vec();
        machine.device = format!("{DEVICE},bus=bay");
    })
});
const SIZE: u64 = 1 << 20;
const PAGE: u32 = 4096;
/// The guest has to agree to an unplug: by ACPI at once, by PCIe's button after 5 s.
const LIMIT: Duration = Duration::from_secs(60);

/// Takes the device out.
fn unplug(vms: &mut TwoVms) -> Result<()> {
    let qmp = vms.b.qmp();
    qmp.execute("device_del", json!({ "id": "bufshare" }))?;
    wait::until("the device to be deleted", LIMIT, || {
        // Parts of it are deleted, too, and have no name.
        let event = qmp.event("DEVICE_DELETED", LIMIT)?;
        let name = event.pointer("/data/device").and_then(Value::as_str);
        Ok((name == Some("bufshare")).then_some(()))
    })?;
    qmp.execute("chardev-remove", json!({ "id": "bufshare" }))?;
    vms.daemon()?.settles("the importer to leave", |now| {
        now.attachments == 0 && now.windows == 0
    })?;
    Ok(())
}

/// Puts a new one in, by a new connection.
fn plug(vms: &TwoVms) -> Result<()> {
    let path = vms.b.socket().context("there is no daemon")?;
    let address = json!({ "type": "unix", "data": { "path": path } });
    let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
    let words = json!({ "id": "bufshare", "backend": backend });
    vms.b.qmp().execute("chardev-add", words)?;

    let mut words = DEVICE.split(',');
    let mut device = serde_json::Map::new();
    device.insert("driver".to_owned(), json!(words.next()));
    device.insert("bus".to_owned(), json!("bay"));
    device.insert("chardev".to_owned(), json!("bufshare"));
    for word in words {
        let (key, value) = word.split_once('=').context("a property of the device")?;
        let number = value.parse::<u64>();
        let value = number.map_or(json!(value), |number| json!(number));
        device.insert(key.to_owned(), value);
    }
    vms.b.qmp().execute("device_add", Value::Object(device))?;
    wait::until("the driver to have its device", LIMIT, || {
        driver::bound(&vms.b)
    })?;
    wait::until("/dev/bufshare", LIMIT, || {
        let names = vms.b.list_dir("/dev")?;
        Ok(names.iter().any(|name| name == "bufshare").then_some(()))
    })
}

/// The kernel has lost nothing of what it knows of addresses, and gives the device's
/// to nobody else while something still leads there.
fn addresses_are_kept(vm: &Vm) -> Result<()> {
    let bad = ["nonexistent resource", "Conflicting mapping"];
    let log = vm.kernel_log()?;
    let found: Vec<&String> = log
        .iter()
        .filter(|line| bad.iter().any(|word| line.contains(word)))
        .collect();
    ensure!(found.is_empty(), "the kernel said: {found:?}");
    Ok(())
}

fn works(vms: &TwoVms, seed: u32) -> Result<()> {
    share_works(&mut vms.a.client()?, &mut vms.b.client()?, seed)
}

#[test]
fn a_device_is_unplugged_while_a_process_has_a_buffer_mapped() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, mine, export) = a.offer(SIZE, 1)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        b.watch(map, 1)?;
        unplug(vms)?;
        b.wait_sigbus(map, LIMIT)?;
        ensure!(b.sights()? == [Sight::Sigbus]);
        let refusal = refused(b.info())?;
        ensure!(refusal.errno == libc::ENODEV, "{refusal}");
        a.wait_event_of("Released", &export.id)?;
        ensure!(a.compare(mine, 1)? == Sight::Pattern);
        // The old import is still open.
        plug(vms)?;
        works(vms, 10)?;
        ensure!(b.compare(map, 1)? == Sight::Sigbus);
        drop((a, b));
        works(vms, 20)?;
        addresses_are_kept(&vms.b)
    });
}

/// What another driver has mapped cannot be taken from it.
#[test]
fn a_device_is_unplugged_while_drivers_have_a_buffer_mapped() {
    VMS.with(|vms| {
        if vms.b.list_dir("/sys/module/bufshare_importer")?.is_empty() {
            vms.b.insert("importer", &[])?;
        }
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, mine, export) = a.offer(SIZE, 1)?;
        let import = b.import(&export.id)?;
        let device = b.attach(import.buf, AttachKind::Static)?;
        b.step(device, Step::Map)?;
        let kernel = b.attach(import.buf, AttachKind::Plain)?;
        b.step(kernel, Step::Vmap)?;
        unplug(vms)?;

        let (offset, len) = (0, PAGE);
        let read_and_write = |b: &mut bufshare_tests::client::Client, live: u32| -> Result<()> {
            let live = pattern(live, PAGE.into());
            let data = pattern(99, PAGE.into());
            let seen = b.step_read(kernel, Step::CpuRead { offset, len })?;
            ensure!(seen != live, "the kernel reads what the exporter writes");
            let seen = b.step_read(device, Step::DmaRead { offset, len })?;
            ensure!(seen != live, "the device reads what the exporter writes");
            let write = Step::CpuWrite {
                offset,
                data: data.clone(),
            };
            b.step(kernel, write)?;
            b.step(device, Step::DmaWrite { offset, data })
        };
        a.fill(mine, 2)?;
        read_and_write(&mut b, 2)?;
        ensure!(a.compare(mine, 2)? == Sight::Pattern);

        // The new one has the old one's address. The host cannot know who looks there.
        plug(vms)?;
        let mut new = vms.b.client()?;
        let refusal = refused(new.import(&export.id))?;
        ensure!(refusal.errno == libc::EBUSY, "{refusal}");
        read_and_write(&mut b, 2)?;
        ensure!(a.compare(mine, 2)? == Sight::Pattern);
        b.step(device, Step::Unmap)?;
        let refusal = refused(new.import(&export.id))?;
        ensure!(refusal.errno == libc::EBUSY, "{refusal}");
        b.step(kernel, Step::Vunmap)?;
        new.import_pattern(&export.id, 2)?;
        drop((b, new));
        works(vms, 20)?;
        drop(a);
        addresses_are_kept(&vms.b)
    });
}

/// Memory that the kernel has for its descriptions of pages, in pages.
fn memmap_pages(vm: &Vm) -> Result<u64> {
    let text = String::from_utf8(vm.read_file("/proc/vmstat")?)?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("nr_memmap_pages "));
    let line = line.context("/proc/vmstat has no nr_memmap_pages")?;
    line.parse().context("no number of pages")
}

/// The window region of a device that has gone is given up with its last use, although a
/// program still has the import open.
#[test]
fn an_open_import_does_not_keep_what_an_unplugged_device_had() {
    VMS.with(|vms| {
        if vms.b.list_dir("/sys/module/bufshare_importer")?.is_empty() {
            vms.b.insert("importer", &[])?;
        }
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 1)?;
        let import = b.import(&export.id)?;
        let kernel = b.attach(import.buf, AttachKind::Plain)?;
        b.step(kernel, Step::Vmap)?;
        unplug(vms)?;
        let used = memmap_pages(&vms.b)?;
        b.step(kernel, Step::Vunmap)?;
        wait::until("the pages of the region to go", LIMIT, || {
            Ok((memmap_pages(&vms.b)? < used).then_some(()))
        })?;
        plug(vms)?;
        works(vms, 50)?;
        drop((a, b));
        addresses_are_kept(&vms.b)
    });
}

/// Who resets the PCI function in the guest gets either a driver that knows, or no
/// reset: that is what `missing_features` says.
#[test]
fn a_reset_of_the_function_revokes_what_is_shared_or_is_refused() {
    VMS.with(|vms| {
        let refuses = driver::lacks(&vms.b, "function-reset")?;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 1)?;
        let map = b.import_pattern(&export.id, 1)?;
        let (_, own, offered) = b.offer(SIZE, 2)?;
        let theirs = a.import_pattern(&offered.id, 2)?;

        let function = driver::pci_device(&vms.b)?;
        let reset = vms.b.write_file(&format!("{function}/reset"), b"1");
        if refuses {
            let error = reset.err().context("the function was reset")?;
            ensure!(errno_of(&error) == Some(libc::ENOTTY), "{error:#}");
            ensure!(b.compare(map, 1)? == Sight::Pattern);
            ensure!(a.compare(theirs, 2)? == Sight::Pattern);
        } else {
            reset?;
            ensure!(b.compare(map, 1)? == Sight::Sigbus);
            a.wait_event_of("Revoked", &offered.id)?;
            ensure!(a.compare(theirs, 2)? == Sight::Sigbus);
            b.wait_event("Overflow", |event| event.kind == "Overflow")?;
        }
        ensure!(b.compare(own, 2)? == Sight::Pattern);
        b.import_pattern(&export.id, 1)?;
        drop((a, b));
        works(vms, 30)?;

        // Without the driver it is nobody's business.
        let device = driver::unbind(&vms.b)?;
        vms.b.write_file(&format!("{function}/reset"), b"1")?;
        driver::bind(&vms.b, &device)?;
        works(vms, 40)
    });
}

/// Where there are no such callbacks nothing of the following can happen.
fn needs_resets(vm: &Vm) -> Result<()> {
    if driver::lacks(vm, "function-reset")? {
        let reason = "the guest kernel reports nothing of such resets to virtio drivers";
        return Err(Skip::impossible(reason).into());
    }
    Ok(())
}

/// Unbinds the driver while a reset of the function is held up: it begins to go, and is
/// looked at so often without having gone, before the reset may go on. That is soon: the
/// driver does not wait for long after its last callback, however slow the machine is.
fn unbind_while_held(vm: &Vm, delay: &Delay<'_>) -> Result<String> {
    const LOOKS: u32 = 3;
    delay.holds()?;
    let device = driver::bound(vm)?.context("no device")?;
    let unbinding = vm.channel().ask(Command::WriteFile {
        path: "/sys/bus/virtio/drivers/virtio_bufshare/unbind".to_owned(),
        data: device.as_bytes().to_vec(),
    })?;
    let mut begun = 0;
    wait::until("the unbind to wait", LIMIT, || {
        let names = vm.list_dir("/sys/class/misc")?;
        begun += u32::from(!names.iter().any(|name| name == "bufshare"));
        // That goes after the driver's own reset of the device.
        let there = vm.read_file("/sys/kernel/debug/bufshare/state").is_ok();
        ensure!(!delay.over()?, "held up for too short a time");
        ensure!(there, "the reset was not waited for");
        Ok((begun > LOOKS).then_some(()))
    })?;
    delay.release()?;
    unbinding.wait(LIMIT).context("unbinding")?;
    Ok(device)
}

/// It is held up where the function has been reset and the driver does not know it yet.
#[test]
fn a_driver_is_not_unbound_before_a_reset_of_the_function_has_ended() {
    VMS.with(|vms| {
        needs_resets(&vms.b)?;
        let script = format!("echo 1 >{}/reset", driver::pci_device(&vms.b)?);
        let delay = Delay::of(&vms.b, "virtio_device_reset_done")?;
        let reset = Apart::begin(&vms.b, &script, LIMIT)?;
        let device = unbind_while_held(&vms.b, &delay)?;
        reset.end()?;
        delay.end()?;
        driver::bind(&vms.b, &device)?;
        works(vms, 60)
    });
}

/// It is held up where the driver has failed to begin anew, and the core is to say so to
/// the device.
#[test]
fn a_driver_is_not_unbound_before_a_failed_reset_of_the_function_has_ended() {
    VMS.with(|vms| {
        needs_resets(&vms.b)?;
        if vms.b.list_dir("/sys/module/bufshare_importer")?.is_empty() {
            vms.b.insert("importer", &[])?;
        }
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 1)?;
        let import = b.import(&export.id)?;
        let user = b.attach(import.buf, AttachKind::Plain)?;
        b.step(user, Step::Vmap)?;
        let script = format!("echo 1 >{}/reset", driver::pci_device(&vms.b)?);
        // The driver and the core have reset the device, and the core has written its status
        // three times.
        let delay = Delay::after(&vms.b, "vp_modern_set_status", 5)?;
        let reset = Apart::begin(&vms.b, &script, LIMIT)?;
        unbind_while_held(&vms.b, &delay)?;
        let log = vms.b.kernel_log()?;
        let failed = |line: &String| line.contains("was reset with buffers mapped");
        ensure!(log.iter().any(failed), "the driver has not failed");
        reset.end()?;
        vms.b.check()?;
        drop((a, b));
        // A VM that was left with a window has to be powered off.
        vms.b.kill()?;
        vms.restart(Side::B)?;
        works(vms, 70)
    });
}

/// The driver's end is held up after it has left the device.
#[test]
fn the_function_is_not_reset_before_an_unbind_has_ended() {
    VMS.with(|vms| {
        needs_resets(&vms.b)?;
        let path = format!("{}/reset", driver::pci_device(&vms.b)?);
        let device = driver::bound(&vms.b)?.context("no device")?;
        let script = format!("echo {device} >/sys/bus/virtio/drivers/virtio_bufshare/unbind");
        let delay = Delay::of(&vms.b, "debugfs_remove")?;
        let unbinding = Apart::begin(&vms.b, &script, LIMIT)?;
        delay.holds()?;
        let script = format!("echo 1 >{path} && echo reset >/tmp/reset");
        let mut reset = vms.b.spawn(&["/bin/busybox", "sh", "-c", &script])?;
        let stack = format!("/proc/{}/stack", reset.pid());
        let mut begun = false;
        wait::until("the unbind to go on", LIMIT, || {
            let stack = vms.b.read_file(&stack).unwrap_or_default();
            begun |= String::from_utf8_lossy(&stack).contains("bufshare_reset_prepare");
            let done = vms.b.read_file("/tmp/reset").is_ok();
            if delay.over()? {
                return Ok(Some(()));
            }
            ensure!(!done, "the unbind was not waited for");
            Ok(None)
        })?;
        ensure!(begun, "held up for too short a time");
        unbinding.end()?;
        let status = reset.end(LIMIT, |_, _| {})?;
        ensure!(status == Status::Exit(0), "{status:?}");
        delay.end()?;
        driver::bind(&vms.b, &device)?;
        works(vms, 80)
    });
}

/// For how long a reset and an unbind wait for each other, by the driver's own clock.
const PATIENCE: Duration = Duration::from_secs(45);

/// Of a reset of A's function and an unbind of its driver, one ends the session with an
/// importer that is paused, and the other comes to wait for it in `symbol`. The daemon
/// answers the end of the session only when the importer goes on. A stands still until
/// then, and its clock goes on for longer than the two would wait for each other.
fn two_ends_while_the_vm_stands(vms: &mut TwoVms, order: [&str; 2], symbol: &str) -> Result<()> {
    needs_resets(&vms.a)?;
    let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
    let (_, _, export) = a.offer(SIZE, 1)?;
    b.import_pattern(&export.id, 1)?;
    let function = driver::pci_device(&vms.a)?;
    let device = driver::bound(&vms.a)?.context("no device")?;
    let script = |action: &str| match action {
        "reset" => format!("echo 1 >{function}/reset"),
        _ => format!("echo {device} >/sys/bus/virtio/drivers/virtio_bufshare/unbind"),
    };
    vms.b.qmp().execute("stop", json!({}))?;
    let [first, second] = order.map(script);
    let mut first = vms.a.spawn(&["/bin/busybox", "sh", "-c", &first])?;
    vms.a
        .waits_in(first.pid(), "bufshare_exports_wait_answered")?;
    let mut second = vms.a.spawn(&["/bin/busybox", "sh", "-c", &second])?;
    vms.a.waits_in(second.pid(), symbol)?;
    let waiting = Instant::now();
    let daemon = vms.daemon()?;
    wait::until("the exporter's stop", LIMIT, || {
        Ok((!daemon.snapshot()?.peer("a")?.up).then_some(()))
    })?;
    // It is this time that is tested.
    thread::sleep((PATIENCE + Duration::from_secs(1)).saturating_sub(waiting.elapsed()));
    vms.b.qmp().execute("cont", json!({}))?;
    for (action, program) in order.into_iter().zip([&mut first, &mut second]) {
        let status = program.end(LIMIT, |_, _| {})?;
        ensure!(status == Status::Exit(0), "{action}: {status:?}");
    }
    let log = vms.a.kernel_log()?;
    let found = log.iter().find(|line| line.contains("all the same"));
    ensure!(found.is_none(), "one was not waited for: {found:?}");
    driver::bind(&vms.a, &device)?;
    drop((a, b));
    works(vms, 90)
}

#[test]
fn an_unbind_waits_for_a_reset_of_the_function_for_which_the_vm_stood_still() {
    STRICT.with(|vms| two_ends_while_the_vm_stands(vms, ["reset", "unbind"], "bufshare_remove"));
}

#[test]
fn a_reset_of_the_function_waits_for_an_unbind_for_which_the_vm_stood_still() {
    STRICT.with(|vms| {
        two_ends_while_the_vm_stands(vms, ["unbind", "reset"], "bufshare_reset_prepare")
    });
}
