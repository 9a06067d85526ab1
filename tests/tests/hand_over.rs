// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames that one VM hands over and another gives back

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bufshare_tests::client::{Client, Consumer, Export, Sight, refused};
use bufshare_tests::daemon::Traffic;
use bufshare_tests::driver;
use bufshare_tests::pair::{Plan, Shared, TwoVms, with_own};
use bufshare_tests::vm::Vm;

static VMS: Shared = Shared::new(Plan::new);
const SIZE: u64 = 64 << 10;

/// A buffer of A whose frames B consumes.
fn stream(a: &mut Client, b: &mut Client) -> Result<(Export, Consumer)> {
    let (_, _, export) = a.offer(SIZE, 1)?;
    let consumer = b.consume(&export.id)?;
    Ok((export, consumer))
}

fn given(b: &mut Client, consumer: &Consumer, frame: u64) -> Result<()> {
    let event = b.wait_event("Pushed", |event| event.kind == "Pushed")?;
    ensure!(
        event.handle == consumer.handle && event.value == frame,
        "{event:?}"
    );
    Ok(())
}

fn returned(a: &mut Client, export: &Export, frame: u64) -> Result<()> {
    let event = a.wait_event_of("Returned", &export.id)?;
    ensure!(event.value == frame, "{event:?}");
    Ok(())
}

fn nothing_returned(a: &mut Client) -> Result<()> {
    while let Some(event) = a.event(Duration::ZERO)? {
        ensure!(event.kind != "Returned", "{event:?}");
    }
    Ok(())
}

/// So many frames are with a VM, when the host has all that it asked for until now.
fn holds(vms: &mut TwoVms, name: &str, asked: &mut Client, id: &str, frames: u64) -> Result<()> {
    asked.query(id)?;
    let held = vms.daemon()?.snapshot()?.peer(name)?.frames_held;
    ensure!(held == frames, "{name} has {held} frames");
    Ok(())
}

fn attachments_become(vms: &mut TwoVms, count: u64) -> Result<()> {
    let what = format!("{count} attachments");
    vms.daemon()?
        .settles(&what, |now| now.attachments == count)?;
    Ok(())
}

fn refuses<T: std::fmt::Debug>(result: Result<T>, errno: i32, status: &str) -> Result<()> {
    let refused = refused(result)?;
    let said = refused.errno == errno && refused.status.as_deref() == Some(status);
    ensure!(said, "{refused:?}");
    Ok(())
}

/// SPEC 7.17, and SPEC 7.18.
#[test]
fn a_frame_that_is_pushed_is_read_returned_and_pushed_again() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, fill, export) = a.offer(SIZE, 1)?;
        let consumer = b.consume(&export.id)?;
        let view = b.map(consumer.buf)?;
        for seed in 1..4 {
            a.fill(fill, seed)?;
            let frame = a.push(&[&[&export]], seed.into())?;
            let event = b.wait_event_of("Pushed", &export.id)?;
            ensure!(
                event.handle == consumer.handle && event.value == frame,
                "{event:?}"
            );
            let told = event.frame.context("no record")?;
            ensure!(
                told.sequence == u64::from(seed) && told.others.is_empty(),
                "{told:?}"
            );
            ensure!(told.arrival != 0, "{told:?}");
            ensure!(b.compare(view, seed)? == Sight::Pattern);
            nothing_returned(&mut a)?;
            b.give_back(&[(&consumer, frame)])?;
            returned(&mut a, &export, frame)?;
        }
        Ok(())
    });
}

/// The daemon counts what goes over the queues, whoever sends it.
#[test]
fn a_frame_takes_one_request_and_one_event_each_way_and_no_map() {
    const FRAMES: u64 = 1000;
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let all = (0..3).map(|_| stream(&mut a, &mut b));
        let (exports, consumers): (Vec<_>, Vec<_>) =
            all.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        for consumer in &consumers {
            let view = b.map(consumer.buf)?;
            ensure!(b.compare(view, 1)? == Sight::Pattern);
        }
        let (exports, consumers): (Vec<_>, Vec<_>) =
            (exports.iter().collect(), consumers.iter().collect());
        while a.event(Duration::ZERO)?.is_some() || b.event(Duration::ZERO)?.is_some() {}
        let maps = |vms: &mut TwoVms| -> Result<u64> {
            Ok(vms.daemon()?.snapshot()?.peer("b")?.map_requests)
        };
        let traffic = |vms: &mut TwoVms| -> Result<[Traffic; 2]> {
            let daemon = vms.daemon()?;
            Ok([daemon.traffic("a")?, daemon.traffic("b")?])
        };
        let (before, mapped) = (traffic(vms)?, maps(vms)?);
        let producing = a.begin_producing(&exports, FRAMES)?;
        let order = b.consume_all(&consumers, FRAMES)?;
        ensure!(order.is_empty(), "frames came as {order:?}");
        a.finish_producing(producing)?;
        for (before, after) in before.iter().zip(traffic(vms)?) {
            let chains = after.chains - before.chains;
            let events = after.events - before.events;
            ensure!(
                (chains, events) == (FRAMES, FRAMES),
                "{chains} chains, {events} events"
            );
        }
        ensure!(maps(vms)? == mapped, "it was mapped again");
        Ok(())
    });
}

/// How often the device has interrupted a VM, for whichever queue.
fn interrupts(vm: &Vm) -> Result<u64> {
    let device = driver::bound(vm)?.context("the driver has no device")?;
    let table = String::from_utf8(vm.read_file("/proc/interrupts")?)?;
    let ours = table.lines().filter(|line| {
        let name = line.split_whitespace().next_back();
        let queue = name.and_then(|name| name.strip_prefix(device.as_str()));
        queue.is_some_and(|queue| queue.is_empty() || queue.starts_with('-'))
    });
    // The interrupt's number, and then a column for each CPU.
    let counts = ours.flat_map(|line| line.split_whitespace().skip(1));
    Ok(counts.filter_map(|count| count.parse::<u64>().ok()).sum())
}

/// Its event does; the answer to RETURN says nothing that anybody waits for.
#[test]
fn a_frame_interrupts_its_consumer_once() {
    const FRAMES: u64 = 1000;
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (export, consumer) = stream(&mut a, &mut b)?;
        let before = interrupts(&vms.b)?;
        let producing = a.begin_producing(&[&export], FRAMES)?;
        b.consume_all(&[&consumer], FRAMES)?;
        a.finish_producing(producing)?;
        let count = interrupts(&vms.b)? - before;
        // Others may be of older events, and one of 65536 answers makes one all the same.
        ensure!(count < FRAMES + FRAMES / 10, "{count} for {FRAMES} frames");
        ensure!(
            count > FRAMES / 2,
            "{count} for {FRAMES} frames: not all are counted"
        );
        Ok(())
    });
}

/// The answer to RETURN is there by then, and nobody has looked at it.
#[test]
fn a_request_that_follows_a_returned_frame_is_answered() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (export, consumer) = stream(&mut a, &mut b)?;
        for sequence in 0..10 {
            let frame = a.push(&[&[&export]], sequence)?;
            given(&mut b, &consumer, frame)?;
            b.give_back(&[(&consumer, frame)])?;
            returned(&mut a, &export, frame)?;
            b.query(&export.id)?;
        }
        Ok(())
    });
}

/// Nothing but answers makes room, and these are to RETURN alone.
#[test]
fn more_frames_are_returned_at_once_than_the_queue_has_room_for() {
    // It has 64 places, and a request takes one at least.
    const FRAMES: usize = 80;
    /// Of one RETURN.
    const BATCH: usize = 16;
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let all = (0..FRAMES).map(|_| stream(&mut a, &mut b));
        let all = all.collect::<Result<Vec<_>>>()?;
        let mut held = Vec::new();
        for (sequence, (export, consumer)) in (0..).zip(&all) {
            let frame = a.push(&[&[export]], sequence)?;
            given(&mut b, consumer, frame)?;
            held.push((consumer, frame));
        }
        for some in held.chunks(BATCH) {
            b.give_back(some)?;
        }
        for ((export, _), (_, frame)) in all.iter().zip(&held) {
            returned(&mut a, export, *frame)?;
        }
        Ok(())
    });
}

/// A consumer of a guest is an open file; the host sees one of the VM.
#[test]
fn files_of_one_vm_are_each_given_a_frame_and_the_last_returns_it() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let mut other = vms.b.client()?;
        let (export, consumer) = stream(&mut a, &mut b)?;
        let second = other.consume(&export.id)?;
        attachments_become(vms, 1)?;
        let frame = a.push(&[&[&export]], 0)?;
        given(&mut b, &consumer, frame)?;
        given(&mut other, &second, frame)?;
        b.give_back(&[(&consumer, frame)])?;
        holds(vms, "b", &mut b, &export.id, 1)?;
        nothing_returned(&mut a)?;
        other.give_back(&[(&second, frame)])?;
        returned(&mut a, &export, frame)?;

        // One that dies has returned it.
        let frame = a.push(&[&[&export]], 1)?;
        b.give_back(&[(&consumer, frame)])?;
        other.kill()?;
        returned(&mut a, &export, frame)?;

        // Nobody is left who is given any.
        b.close(consumer.number)?;
        b.close(consumer.buf.number)?;
        let frame = a.push(&[&[&export]], 2)?;
        returned(&mut a, &export, frame)
    });
}

/// SPEC 7.17, and SPEC 7.18.
#[test]
fn misuse_is_refused_and_loses_nothing() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (export, consumer) = stream(&mut a, &mut b)?;
        let (other, second) = stream(&mut a, &mut b)?;
        refuses(b.give_back(&[(&consumer, 1)]), libc::EINVAL, "UNBALANCED")?;
        let frame = a.push(&[&[&export]], 0)?;
        refuses(a.push(&[&[&other], &[&export]], 1), libc::EBUSY, "BUSY")?;
        refuses(b.give_back(&[(&second, frame)]), libc::EINVAL, "UNBALANCED")?;
        let twice = [(&consumer, frame), (&consumer, frame)];
        refuses(b.give_back(&twice), libc::EINVAL, "UNBALANCED")?;
        b.give_back(&twice[..1])?;
        refuses(b.give_back(&twice[..1]), libc::EINVAL, "UNBALANCED")?;
        returned(&mut a, &export, frame)?;
        let frame = a.push(&[&[&export, &other]], 1)?;
        let event = b.wait_event("Pushed", |event| {
            event.kind == "Pushed" && event.value == frame
        })?;
        let told = event.frame.context("no record")?;
        ensure!(told.others == std::slice::from_ref(&other.id), "{told:?}");
        b.give_back(&[(&consumer, frame)])?;
        returned(&mut a, &export, frame)
    });
}

/// What was given and cannot be read any more is taken back.
#[test]
fn a_revocation_returns_what_a_consumer_has_not_read() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (export, consumer) = stream(&mut a, &mut b)?;
        let frame = a.push(&[&[&export]], 0)?;
        a.close(export.number)?;
        b.wait_event_of("Revoked", &export.id)?;
        refuses(
            b.give_back(&[(&consumer, frame)]),
            libc::EINVAL,
            "UNBALANCED",
        )?;
        ensure!(
            b.event(Duration::ZERO)?
                .is_none_or(|event| event.kind != "Pushed")
        );
        Ok(())
    });
}

/// As long as somebody has a handle of it.
#[test]
fn one_buffer_is_one_dma_buf_of_a_vm_whoever_imports_it() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let mut other = vms.b.client()?;
        let (export, consumer) = stream(&mut a, &mut b)?;
        let import = other.import(&export.id)?;
        attachments_become(vms, 1)?;
        let (first, second) = (b.map(consumer.buf)?, other.map(import.buf)?);
        ensure!(b.compare(first, 1)? == Sight::Pattern);
        ensure!(other.compare(second, 1)? == Sight::Pattern);
        b.close(first.number)?;
        b.close(consumer.buf.number)?;
        b.close(consumer.number)?;
        ensure!(other.compare(second, 1)? == Sight::Pattern);
        // No handle leads to it any more.
        let again = b.import(&export.id)?;
        attachments_become(vms, 2)?;
        let third = b.map(again.buf)?;
        ensure!(b.compare(third, 1)? == Sight::Pattern);
        Ok(())
    });
}

/// A pair and a third VM: A may have both others read and write what it has.
fn three() -> Plan {
    let allowed = ["--allow", "a:b:rw", "--allow", "a:c:rw"];
    Plan::named("a", "b").and("c").options(&allowed)
}

/// SPEC 7.17: nobody waits for one that is slow, stopped or dead, but for the buffer that it has.
#[test]
fn a_consumer_that_is_slow_or_dies_stops_no_other_vm() {
    with_own(
        |_| Ok(three()),
        |vms| {
            let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
            let third = |vms: &TwoVms| vms.more.first().context("no third VM")?.client();
            let mut c = third(vms)?;
            let (first, mine) = stream(&mut a, &mut b)?;
            let (second, other) = stream(&mut a, &mut b)?;
            let slow = [c.consume(&first.id)?, c.consume(&second.id)?];

            // It has a frame, and so it is not given another one that it may miss.
            let held = a.push(&[&[&first]], 0)?;
            given(&mut c, &slow[0], held)?;
            b.give_back(&[(&mine, held)])?;
            for sequence in 1..20 {
                let frame = a.push_with(&[&[&second]], 1, sequence)?;
                b.wait_event("Pushed", |event| event.value == frame)?;
                b.give_back(&[(&other, frame)])?;
                returned(&mut a, &second, frame)?;
            }
            refuses(a.push(&[&[&first]], 20), libc::EBUSY, "BUSY")?;
            nothing_returned(&mut a)?;

            // It dies with it.
            vms.more.first_mut().context("no third VM")?.kill()?;
            returned(&mut a, &first, held)?;
            let frame = a.push(&[&[&first], &[&second]], 21)?;
            b.give_back(&[(&mine, frame), (&other, frame + 1)])?;
            returned(&mut a, &first, frame)?;
            returned(&mut a, &second, frame + 1)?;

            vms.restart_more(0)?;
            let mut c = third(vms)?;
            let back = c.consume(&first.id)?;
            let frame = a.push(&[&[&first]], 23)?;
            given(&mut c, &back, frame)?;
            c.give_back(&[(&back, frame)])?;
            holds(vms, "c", &mut c, &first.id, 0)?;
            holds(vms, "b", &mut b, &first.id, 1)?;
            nothing_returned(&mut a)?;
            b.give_back(&[(&mine, frame)])?;
            returned(&mut a, &first, frame)
        },
    );
}
