// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver is unbound, removed and put to sleep while buffers are shared

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use core::mem::offset_of;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bufshare_agent::ops::{MovableKind, Op, Source, Yield};
use bufshare_agent::wire::{Command, Status};
use bufshare_protocol::ioctl::{self, Export, MetaIo, Table};
use bufshare_protocol::wire::Meta;
use bufshare_tests::channel::{Program, errno_of};
use bufshare_tests::client::{
    AttachKind, Client, Patch, Sight, Step, bytes, refused, share_works, status,
};
use bufshare_tests::delay::{self, Delay};
use bufshare_tests::driver::{STATE, bind, bound, events, requests, unbind, unload_when_free};
use bufshare_tests::leaks;
use bufshare_tests::pair::{DRIVER, Plan, Shared, Side, TwoVms};
use bufshare_tests::report::Skip;
use bufshare_tests::vm::{DEVICE, Vm};
use bufshare_tests::wait;

static VMS: Shared = Shared::new(Plan::new);
const SIZE: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(20);

fn all_works(vms: &mut TwoVms, seed: u32) -> Result<()> {
    share_works(&mut vms.a.client()?, &mut vms.b.client()?, seed)
}

#[test]
fn unbinding_the_importers_driver_takes_its_imports_and_binding_it_works_again() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, mine, export) = a.offer(SIZE, 1)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        b.watch(map, 1)?;
        let device = unbind(&vms.b)?;
        b.wait_sigbus(map, LIMIT)?;
        ensure!(b.sights()? == [Sight::Sigbus]);
        for refusal in [refused(b.info())?, refused(b.import(&export.id))?] {
            ensure!(refusal.errno == libc::ENODEV, "{refusal}");
        }
        a.wait_event_of("Released", &export.id)?;
        ensure!(a.compare(mine, 1)? == Sight::Pattern);
        vms.daemon()?
            .settles("the attachments to go", |now| now.attachments == 0)?;
        // Who keeps an old import is in nobody's way, and does not see new ones.
        bind(&vms.b, &device)?;
        let mut new = vms.b.client()?;
        let import = new.import(&export.id)?;
        let new_map = new.map(import.buf)?;
        ensure!(new.compare(new_map, 1)? == Sight::Pattern);
        ensure!(b.compare(map, 1)? == Sight::Sigbus);
        let refusal = refused(b.info())?;
        ensure!(refusal.errno == libc::ENODEV, "{refusal}");
        drop(b);
        ensure!(new.compare(new_map, 1)? == Sight::Pattern);
        drop((a, new));
        all_works(vms, 10)
    });
}

#[test]
fn a_driver_whose_imports_are_all_closed_is_unbound_and_bound_again() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        // The daemon keeps the window for the next import of the buffer.
        let (_, _, export) = a.offer(SIZE, 5)?;
        b.cycle(&export.id, 3, 5, LIMIT)?;
        let device = unbind(&vms.b)?;
        bind(&vms.b, &device)?;
        let mut new = vms.b.client()?;
        let import = new.import(&export.id)?;
        let map = new.map(import.buf)?;
        ensure!(new.compare(map, 5)? == Sight::Pattern);
        drop((a, b, new));
        all_works(vms, 50)
    });
}

/// What a process of the guest does with its memory is no concern of the driver's
/// removal: only the process waits.
#[test]
fn a_driver_is_unbound_while_ioctls_wait_for_their_programs_memory() {
    VMS.with(|vms| {
        let (mut a, b) = (vms.a.client()?, vms.b.client()?);
        let (buf, mine, export) = a.offer(SIZE, 7)?;
        let export_fd = Patch::Descriptor {
            at: offset_of!(MetaIo, export_fd),
            number: export.number,
        };
        let fd = Patch::Descriptor {
            at: offset_of!(Export, dmabuf_fd),
            number: buf.number,
        };
        let (one, eight) = (1_u32.to_ne_bytes(), 8_u32.to_ne_bytes());
        let table = bytes(
            Table::SIZE,
            &[
                (offset_of!(Table, count), &one),
                (offset_of!(Table, entry_size), &eight),
            ],
        );
        let size = u32::try_from(Meta::SIZE)?.to_ne_bytes();
        let record = |at| Patch::Address {
            at,
            of: bytes(Meta::SIZE, &[(offset_of!(Meta, blob_len), &one)]),
        };
        let meta_size = (offset_of!(Export, meta_size), &size[..]);
        let access_size = 16_u32.to_ne_bytes();
        let access_size = (offset_of!(Export, access_size), &access_size[..]);
        let acl = (offset_of!(Export, num_acl), &one[..]);
        let stalled = [
            // Memory that the driver reads, and memory that it writes.
            a.stall(
                ioctl::EXPORT,
                &bytes(Export::SIZE, &[meta_size, access_size, acl]),
                &[fd.clone(), record(offset_of!(Export, meta))],
                offset_of!(Export, acl),
            )?,
            a.stall(
                ioctl::EXPORT,
                &bytes(Export::SIZE, &[meta_size, access_size]),
                &[fd, record(offset_of!(Export, meta))],
                offset_of!(Export, blob),
            )?,
            a.stall(
                ioctl::SET_META,
                &bytes(MetaIo::SIZE, &[(offset_of!(MetaIo, meta_size), &size)]),
                &[export_fd, record(offset_of!(MetaIo, meta))],
                offset_of!(MetaIo, blob),
            )?,
            a.stall(ioctl::PEERS, &table, &[], offset_of!(Table, entries))?,
            a.stall(ioctl::LIST, &table, &[], offset_of!(Table, entries))?,
        ];
        let device = unbind(&vms.a)?;
        ensure!(a.compare(mine, 7)? == Sight::Pattern);
        // What the first reads is a line without rights; the last two had their answers before.
        let wanted = [libc::EINVAL, libc::ENODEV, libc::ENODEV, 0, 0];
        for (stalled, wanted) in stalled.into_iter().zip(wanted) {
            let errno = a.unstall(stalled)?;
            ensure!(errno == wanted, "errno {errno}, not {wanted}");
        }
        bind(&vms.a, &device)?;
        drop((a, b));
        all_works(vms, 70)
    });
}

/// The second has a processor to spare for what is held up.
static HELD: Shared = Shared::new(|| Plan::new().second(delay::apart));

/// Unbinds b's driver while an ioctl of one more process, perhaps about the buffer that a
/// exports, is held up in `symbol`. Returns what came of that.
fn unbind_during(
    vms: &TwoVms,
    symbol: &str,
    op: impl FnOnce(&mut Client, String) -> Result<Op>,
) -> Result<Yield> {
    let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
    // The region's end would wait for the one that is held up; so it is kept.
    let (_, _, export) = a.offer(SIZE, 1)?;
    vms.b.insert("importer", &[])?;
    let kept = b.import(&export.id)?;
    let user = b.attach(kept.buf, AttachKind::Plain)?;
    b.step(user, Step::Vmap)?;
    let mut held = vms.b.client()?;
    let op = op(&mut held, export.id.clone())?;
    delay::put_apart(&vms.b, held.program().pid())?;
    let delay = Delay::of(&vms.b, symbol)?;
    let ioctl = held.begin(op)?;
    delay.holds()?;
    unbind(&vms.b)?;
    ensure!(delay.over()?, "the ioctl was not waited for");
    held.finish(ioctl, "the ioctl", wait::COMMAND)
}

/// A VM that was left with a window has to be powered off.
fn begin_anew(vms: &mut TwoVms) -> Result<()> {
    vms.b.check()?;
    vms.b.kill()?;
    vms.restart(Side::B)?;
    all_works(vms, 60)
}

/// It is held up between the host's answer and the first use of the window region,
/// which an unbound driver gives up.
#[test]
fn a_driver_is_not_unbound_before_an_import_that_has_begun_is_made() {
    HELD.with(|vms| {
        let begun = unbind_during(vms, "dma_buf_export", |_, id| {
            Ok(Op::Import { id, write: true })
        })?;
        ensure!(matches!(begun, Yield::Imported { .. }), "{begun:?}");
        begin_anew(vms)
    });
}

/// It is held up where it attaches the device, which goes with the driver, to a buffer of
/// another driver. The export may still reach the host, or not any more.
#[test]
fn a_driver_is_not_unbound_before_an_export_that_has_begun_has_its_memory() {
    HELD.with(|vms| {
        vms.b.insert("exporter", &[])?;
        let begun = unbind_during(vms, "dma_buf_dynamic_attach", |held, _| {
            let buf = held.make(Source::Movable(MovableKind::Movable), SIZE)?;
            Ok(Op::Export {
                buf: buf.number,
                access: Vec::new(),
                name: String::new(),
                blob: Vec::new(),
            })
        });
        if !matches!(begun, Ok(Yield::Exported { .. })) {
            let refusal = refused(begun)?;
            ensure!(refusal.errno == libc::ENODEV, "{refusal}");
        }
        begin_anew(vms)
    });
}

/// After the sleep the device is of no use, as another driver has a buffer mapped.
#[test]
fn a_driver_that_could_not_wake_its_device_is_unbound_without_a_warning() {
    HELD.with(|vms| {
        if vms.b.read_file(TEST).is_err() {
            return Err(Skip::impossible("the guest kernel has no /sys/power/pm_test").into());
        }
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 1)?;
        vms.b.insert("importer", &[])?;
        let import = b.import(&export.id)?;
        let user = b.attach(import.buf, AttachKind::Plain)?;
        b.step(user, Step::Vmap)?;
        vms.b.write_file(TEST, b"devices")?;
        vms.b.sleep()?;
        let refusal = refused(b.info())?;
        ensure!(refusal.errno == libc::ENODEV, "{refusal}");
        unbind(&vms.b)?;
        vms.b.check()?;
        drop((a, b));
        // A VM that was left with a window has to be powered off.
        vms.b.kill()?;
        vms.restart(Side::B)?;
        all_works(vms, 90)
    });
}

/// The processors that a process may use.
const ANYWHERE: &str = "3";
const APART: &str = "2";

/// Has a process of the guest write to a file of the driver's in sysfs.
fn begin_write(vm: &Vm, file: &str, text: &str, processors: &str) -> Result<Program> {
    let script = format!("echo {text} >/sys/bus/virtio/drivers/virtio_bufshare/{file}");
    let busybox = "/bin/busybox";
    vm.spawn(&[busybox, "taskset", processors, busybox, "sh", "-c", &script])
}

/// Who unbinds the driver is killed while the host does not answer: the windows that
/// the host keeps are waited for all the same, without which the device cannot be used
/// again before the VM is powered off.
#[test]
fn a_driver_whose_unbinding_process_is_killed_gives_its_windows_back() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 5)?;
        b.cycle(&export.id, 1, 5, LIMIT)?;
        let device = bound(&vms.b)?.context("no device")?;
        let idle = vms.daemon()?.snapshot()?.peer("b")?.windows_idle;
        ensure!(idle == 1, "the daemon keeps {idle} windows");
        let before = requests(&vms.b)?;
        vms.daemon()?.pause()?;
        let begun = (|| {
            let unbinding = begin_write(&vms.b, "unbind", &device, ANYWHERE)?;
            wait::until("the driver to wait for the host", LIMIT, || {
                Ok((requests(&vms.b)? > before).then_some(()))
            })?;
            unbinding.signal(libc::SIGKILL)?;
            for _ in 0..10 {
                let state = String::from_utf8(vms.b.read_file(STATE)?)?;
                ensure!(state.contains("\" alive"), "it did not wait: {state}");
            }
            Ok(unbinding)
        })();
        vms.daemon()?.go_on()?;
        let mut unbinding = begun?;
        let status = unbinding.end(LIMIT, |_, _| {})?;
        ensure!(status == Status::Signal(libc::SIGKILL), "{status:?}");
        let peer = vms.daemon()?.snapshot()?.peer("b")?.clone();
        ensure!(peer.windows_idle == 0, "{peer:?}");
        bind(&vms.b, &device)?;
        drop((a, b));
        all_works(vms, 110)
    });
}

/// Who binds the driver is killed while the host does not answer: the device is bound
/// when it does.
#[test]
fn a_driver_whose_binding_process_is_killed_is_bound() {
    HELD.with(|vms| {
        let device = unbind(&vms.b)?;
        // For the driver's first request, to a device that is ready.
        let first = "bufshare_req_alloc";
        let delay = Delay::of(&vms.b, first)?;
        let mut binding = begin_write(&vms.b, "bind", &device, APART)?;
        delay.holds()?;
        vms.daemon()?.pause()?;
        let killed = (|| {
            let delay = Delay::begun(&vms.b, first);
            binding.signal(libc::SIGKILL)?;
            ensure!(!delay.over()?, "held up for too short a time");
            delay.end()
        })();
        vms.daemon()?.go_on()?;
        killed?;
        let status = binding.end(LIMIT, |_, _| {})?;
        ensure!(status == Status::Signal(libc::SIGKILL), "{status:?}");
        let bound = bound(&vms.b)?;
        ensure!(bound.as_ref() == Some(&device), "bound: {bound:?}");
        all_works(vms, 120)
    });
}

#[test]
fn unbinding_the_exporters_driver_takes_its_buffers_and_binding_it_works_again() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        b.info()?;
        let (_, mine, export) = a.offer(SIZE, 2)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        b.watch(map, 2)?;
        let device = unbind(&vms.a)?;
        b.wait_sigbus(map, LIMIT)?;
        ensure!(b.sights()? == [Sight::Sigbus]);
        b.wait_event_of("Revoked", &export.id)?;
        // The memory is still the process's own.
        ensure!(a.compare(mine, 2)? == Sight::Pattern);
        let refusal = refused(a.info())?;
        ensure!(refusal.errno == libc::ENODEV, "{refusal}");
        bind(&vms.a, &device)?;
        ensure!(a.compare(mine, 2)? == Sight::Pattern);
        drop((a, b));
        all_works(vms, 20)
    });
}

#[test]
fn the_module_stays_while_a_buffer_lives_and_goes_when_none_does() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 3)?;
        let import = b.import(&export.id)?;
        let map = b.map(import.buf)?;
        ensure!(b.compare(map, 3)? == Sight::Pattern);
        for vm in [&vms.a, &vms.b] {
            let error = vm
                .unload(DRIVER)
                .err()
                .context("the module was removed while it was used")?;
            ensure!(errno_of(&error) == Some(libc::EAGAIN), "{error:#}");
        }
        ensure!(b.compare(map, 3)? == Sight::Pattern);
        drop((a, b));
        vms.settled()?;
        for _ in 0..2 {
            unload_when_free(&vms.b, DRIVER)?;
            vms.b.load(DRIVER, "")?;
        }
        all_works(vms, 30)
    });
}

#[test]
fn a_driver_that_is_unloaded_has_freed_all_that_it_allocated() {
    VMS.with(|vms| {
        leaks::forget(&vms.a)?;
        leaks::forget(&vms.b)?;
        all_works(vms, 30)?;
        for vm in [&vms.a, &vms.b] {
            unload_when_free(vm, DRIVER)?;
            leaks::nothing(vm)?;
            vm.load(DRIVER, "")?;
        }
        all_works(vms, 31)
    });
}

#[test]
fn a_guest_sleeps_and_wakes_and_shares_again() {
    VMS.with(|vms| {
        if vms.b.read_file(TEST).is_err() {
            return Err(Skip::impossible("the guest kernel has no /sys/power/pm_test").into());
        }
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 4)?;
        let map = b.import_pattern(&export.id, 4)?;
        let (_, own, offered) = b.offer(SIZE, 5)?;
        let theirs = a.import_pattern(&offered.id, 5)?;
        // Devices are put to sleep and woken, the machine itself is not.
        vms.b.write_file(TEST, b"devices")?;
        vms.b.sleep()?;
        // The device's reset ends both directions; the exporter keeps its memory.
        ensure!(b.compare(map, 4)? == Sight::Sigbus);
        a.wait_event_of("Revoked", &offered.id)?;
        ensure!(a.compare(theirs, 5)? == Sight::Sigbus);
        ensure!(b.compare(own, 5)? == Sight::Pattern);
        ensure!(status(a.import(&offered.id))? == "NOT_FOUND");
        b.wait_event("Overflow", |event| event.kind == "Overflow")?;
        // What the other VM has is still there.
        b.import_pattern(&export.id, 4)?;
        drop((a, b));
        all_works(vms, 40)
    });
}

/// More events than wait in an open file of the device, 256, are not read, and then those
/// are missing that a reset of the device takes: nobody knows how many.
#[test]
fn a_slow_reader_is_told_that_an_unknown_number_of_events_is_missing_after_a_sleep() {
    VMS.with(|vms| {
        if vms.b.read_file(TEST).is_err() {
            return Err(Skip::impossible("the guest kernel has no /sys/power/pm_test").into());
        }
        let (mut a, mut slow) = (vms.a.client()?, vms.b.client()?);
        let buf = a.alloc(4096)?;
        // Who opens the device earlier is given each event earlier.
        slow.info()?;
        let full = events(&vms.b)? + 257;
        wait::until("the slow reader to miss an event", 3 * LIMIT, || {
            let export = a.export(buf)?;
            a.close(export.number)?;
            Ok((events(&vms.b)? >= full).then_some(()))
        })?;
        let mut other = vms.b.client()?;
        other.info()?;
        vms.b.write_file(TEST, b"devices")?;
        vms.b.sleep()?;
        other.wait_event("Overflow", |event| event.kind == "Overflow")?;
        let mut last = None;
        while let Some(event) = slow.event(Duration::ZERO)? {
            last = Some(event);
        }
        let last = last.context("no event")?;
        ensure!(last.kind == "Overflow" && last.value == 0, "{last:?}");
        drop((a, slow, other));
        all_works(vms, 41)
    });
}

/// The device of the second has half of the configuration space that it should have.
static SHORT: Shared = Shared::new(|| {
    Plan::new().second(|machine| {
        machine.device = DEVICE.replace("config_size=256", "config_size=32");
    })
});

/// The room that this VMM gives a configuration is always larger: the rest reads as ones.
#[test]
fn a_device_whose_configuration_is_cut_short_is_refused_with_a_message() {
    SHORT.with(|vms| {
        let bound = bound(&vms.b)?;
        ensure!(bound.is_none(), "bound: {bound:?}");
        let log = vms.b.kernel_log()?;
        let said = "not a buffer-sharing device of this driver's kind";
        ensure!(log.iter().any(|line| line.contains(said)), "{log:?}");
        // It can be tried again.
        let devices = vms.b.list_dir("/sys/bus/virtio/devices")?;
        let device = devices
            .iter()
            .find(|device| {
                let path = format!("/sys/bus/virtio/devices/{device}/device");
                vms.b.read_file(&path).is_ok_and(|id| id == b"0x0025\n")
            })
            .with_context(|| format!("no device 37 in {devices:?}"))?;
        let refusal = bind(&vms.b, device).err().context("it was bound")?;
        ensure!(errno_of(&refusal) == Some(libc::EINVAL), "{refusal:#}");
        Ok(())
    });
}

/// Memory that no control group is charged for, of this guest's ALLOCs.
fn uncharged(vm: &Vm) -> Result<u64> {
    let state = String::from_utf8(vm.read_file(STATE)?)?;
    let line = state
        .lines()
        .find_map(|line| line.strip_prefix("uncharged "));
    let number = line.and_then(|line| line.strip_suffix(" bytes"));
    let number = number.and_then(|number| number.parse().ok());
    number.with_context(|| format!("the driver does not say how much: {state}"))
}

/// A kernel without such memory has none at all.
#[test]
fn memory_that_nobody_is_charged_for_is_limited_and_given_back() {
    VMS.with(|vms| {
        const LIMIT_MB: &str = "/sys/module/virtio_bufshare/parameters/contig_limit_mb";
        const MIB: u64 = 1 << 20;
        let mut a = vms.a.client()?;
        let before = uncharged(&vms.a)?;
        ensure!(before == 0, "{before} bytes before");
        vms.a.write_file(LIMIT_MB, b"16")?;
        let bufs = [a.alloc(12 * MIB), a.alloc(12 * MIB)];
        let most = uncharged(&vms.a);
        vms.a.write_file(LIMIT_MB, b"0")?;
        for buf in bufs {
            a.close(buf?.number)?;
        }
        let info = vms.a.output(&["/bin/bufshare", "--json", "info"])?;
        let has_it = !info.contains("\"contiguous-alloc\"");
        // The first fits the limit, and the second does not with it.
        let (most, wanted) = (most?, if has_it { 12 * MIB } else { 0 });
        ensure!(most == wanted, "{most} bytes, not {wanted}: {info}");
        wait::until("all to be given back", LIMIT, || {
            Ok((uncharged(&vms.a)? == 0).then_some(()))
        })
    });
}

const TEST: &str = "/sys/power/pm_test";
const PATIENCE: &str = "/sys/module/virtio_bufshare/parameters/request_timeout_ms";

/// Has a guest freeze its tasks, and thaw them after some seconds, while so many threads
/// of a process wait for a host that does not answer: the outcome of what it began.
fn freeze_while_waiting(
    vms: &mut TwoVms,
    client: &mut Client,
    op: Op,
    threads: usize,
) -> Result<Result<Yield>> {
    if vms.b.read_file(TEST).is_err() {
        return Err(Skip::impossible("the guest kernel has no /sys/power/pm_test").into());
    }
    let pid = client.program().pid();
    let before = vms.b.read_file(PATIENCE)?;
    vms.b.write_file(PATIENCE, b"60000")?;
    // Only tasks are frozen; devices go on.
    vms.b.write_file(TEST, b"freezer")?;
    vms.daemon()?.pause()?;
    let begun = client.begin(op)?;
    let result = wait::until("the threads to wait for the host", wait::COMMAND, || {
        let mut waiting = 0;
        for thread in vms.b.list_dir(&format!("/proc/{pid}/task"))? {
            let stat = vms
                .b
                .read_file(&format!("/proc/{pid}/task/{thread}/stat"))?;
            waiting += usize::from(String::from_utf8(stat)?.contains(") D "));
        }
        Ok((waiting == threads).then_some(()))
    })
    .and_then(|()| {
        let state = Command::WriteFile {
            path: "/sys/power/state".to_owned(),
            data: b"freeze".to_vec(),
        };
        vms.b.channel().call(state, Duration::from_secs(60))
    });
    vms.daemon()?.go_on()?;
    vms.b.write_file(PATIENCE, before.trim_ascii())?;
    vms.b.write_file(TEST, b"none")?;
    result.context("freezing the guest's tasks")?;
    Ok(client.finish(begun, "waiting for the host", wait::COMMAND))
}

/// The tasks of a guest are frozen before it sleeps, also those that wait for a host
/// that does not answer.
#[test]
fn a_request_without_an_answer_does_not_keep_a_guest_from_sleeping() {
    VMS.with(|vms| {
        let mut b = vms.b.client()?;
        b.info()?;
        let refusal = refused(freeze_while_waiting(vms, &mut b, Op::List, 1)?)?;
        ensure!(refusal.errno == libc::ETIMEDOUT, "{refusal}");
        drop(b);
        all_works(vms, 60)
    });
}

/// So are those whose access to an import waits for it.
#[test]
fn accesses_without_an_answer_do_not_keep_a_guest_from_sleeping() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let mut bufs = Vec::new();
        for seed in 0..4 {
            let (_, _, export) = a.offer(SIZE, seed)?;
            bufs.push(b.import(&export.id)?.buf.number);
        }
        let op = Op::TouchTogether { bufs };
        // The host may answer when they try once more, after the sleep.
        match freeze_while_waiting(vms, &mut b, op, 4)?? {
            Yield::TouchedTogether { sights } => ensure!(sights.len() == 4, "{sights:?}"),
            other => bail!("odd outcome {other:?}"),
        }
        drop((a, b));
        all_works(vms, 80)
    });
}
