// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Accesses to an import that is not in its VM's window region yet

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bufshare_agent::ops::Op;
use bufshare_agent::wire::Status;
use bufshare_tests::client::{Client, Import, Map, Sight, refused, share_works};
use bufshare_tests::driver::{bind, bound, requests, timeouts};
use bufshare_tests::pair::{Plan, Shared, TwoVms};
use bufshare_tests::vm::Vm;
use bufshare_tests::wait;

static VMS: Shared = Shared::new(Plan::new);
const SIZE: u64 = 64 << 10;
const LIMIT: Duration = Duration::from_secs(20);

/// Has a thread of the process read an import that the host was not asked for yet, and
/// waits until it is. The host does not answer.
fn begin_access(vm: &Vm, client: &mut Client, import: Import, seed: u32) -> Result<Map> {
    let before = requests(vm)?;
    let map = client.map(import.buf)?;
    ensure!(requests(vm)? == before, "mmap() asked the host");
    let watch = Op::Watch {
        map: map.number,
        seed,
    };
    client.call(watch, wait::COMMAND)?;
    wait::until("the access to ask the host", wait::COMMAND, || {
        Ok((requests(vm)? > before).then_some(()))
    })?;
    Ok(map)
}

/// What page faults and /proc need of a process is not held by a thread that waits.
fn others_go_on(vm: &Vm, client: &mut Client) -> Result<()> {
    let buf = client.alloc(SIZE)?;
    let map = client.map(buf)?;
    client.fill(map, 9)?;
    ensure!(client.compare(map, 9)? == Sight::Pattern);
    client.close(map.number)?;
    let pid = client.program().pid();
    let maps = String::from_utf8(vm.read_file(&format!("/proc/{pid}/maps"))?)?;
    ensure!(maps.contains("dmabuf"), "no import in {maps}");
    Ok(())
}

/// Has `check` go on while the daemon does not.
fn without_the_host<T>(
    vms: &mut TwoVms,
    check: impl FnOnce(&mut TwoVms) -> Result<T>,
) -> Result<T> {
    vms.daemon()?.pause()?;
    let checked = check(vms);
    vms.daemon()?.go_on()?;
    checked
}

#[test]
fn an_access_that_waits_for_the_host_stops_no_other_thread_and_ends_with_its_process() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 1)?;
        let import = b.import(&export.id)?;
        let before = timeouts(&vms.b)?;
        without_the_host(vms, |vms| {
            let map = begin_access(&vms.b, &mut b, import, 1)?;
            others_go_on(&vms.b, &mut b)?;
            let (rounds, last) = b.watched(map)?;
            ensure!((rounds, last) == (0, None), "it read {last:?}");
            b.program().signal(libc::SIGKILL)?;
            let status = b.program().end(LIMIT, |_, _| {})?;
            ensure!(status == Status::Signal(libc::SIGKILL), "{status:?}");
            ensure!(timeouts(&vms.b)? == before, "its time was over before");
            Ok(())
        })?;
        share_works(&mut a, &mut vms.b.client()?, 2)
    });
}

/// It reads what the exporter wrote, as if nothing had been.
#[test]
fn an_access_that_waited_for_the_host_goes_on_when_it_answers() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 3)?;
        let import = b.import(&export.id)?;
        let map = without_the_host(vms, |vms| begin_access(&vms.b, &mut b, import, 3))?;
        b.reads_on(map)
    });
}

/// The driver ends all imports when it is unbound, whatever the host does.
#[test]
fn a_revocation_ends_an_access_that_waits_for_the_host() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 4)?;
        let import = b.import(&export.id)?;
        let device = bound(&vms.b)?.context("no device")?;
        let before = timeouts(&vms.b)?;
        let mut unbinding = without_the_host(vms, |vms| {
            let map = begin_access(&vms.b, &mut b, import, 4)?;
            let script = format!("echo {device} >/sys/bus/virtio/drivers/virtio_bufshare/unbind");
            let unbinding = vms.b.spawn(&["/bin/busybox", "sh", "-c", &script])?;
            b.wait_sigbus(map, LIMIT)?;
            // The driver waits for the host in vain, too, but for longer.
            ensure!(timeouts(&vms.b)? == before, "its time was over before");
            Ok(unbinding)
        })?;
        let status = unbinding.end(Duration::from_secs(60), |_, _| {})?;
        ensure!(status == Status::Exit(0), "{status:?}");
        bind(&vms.b, &device)?;
        drop((a, b));
        share_works(&mut vms.a.client()?, &mut vms.b.client()?, 5)
    });
}

/// A VM that can hold one buffer.
static ONE_WINDOW: Shared = Shared::new(|| Plan::new().options(&["--max-windows", "1"]));

#[test]
fn without_a_window_sync_says_why_and_a_bare_access_is_sigbus_until_there_is_one() {
    ONE_WINDOW.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, first) = a.offer(SIZE, 6)?;
        let (_, _, second) = a.offer(SIZE, 7)?;
        let held = b.import(&first.id)?;
        let shown = b.map(held.buf)?;
        ensure!(b.compare(shown, 6)? == Sight::Pattern);

        let import = b.import(&second.id)?;
        let map = b.map(import.buf)?;
        for _ in 0..2 {
            let refusal = refused(b.sync(import.buf, true, false))?;
            ensure!(refusal.errno == libc::ENOSPC, "{refusal}");
            ensure!(b.compare(map, 7)? == Sight::Sigbus);
        }
        // Programs that use the library get an error, and no signal.
        let command = ["/bin/bufshare", "import", &second.id, "--mmap"];
        let ran = vms.b.run(&command, wait::COMMAND)?;
        let said = "cannot map the buffer: No space left on device";
        ensure!(
            ran.status == Status::Exit(1) && ran.stderr.contains(said),
            "{ran:?}"
        );

        // Nobody was harmed, and what was refused is not for ever.
        ensure!(b.compare(shown, 6)? == Sight::Pattern);
        b.close(shown.number)?;
        b.close(held.buf.number)?;
        ensure!(b.compare(map, 7)? == Sight::Pattern);
        b.sync(import.buf, true, false)?;
        b.sync(import.buf, true, true)
    });
}
