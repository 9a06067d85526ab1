// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Drivers of the importing VM use an imported buffer
//!
//! They know nothing of bufshare. Pixels are compared, not return codes.

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use std::time::Duration;

use anyhow::{Result, ensure};
use bufshare_agent::ops::{Op, Sight, Yield};
use bufshare_tests::client::{Buf, Client, Import, Map};
use bufshare_tests::display::Display;
use bufshare_tests::image::Picture;
use bufshare_tests::pair::{Plan, Shared, TwoVms};
use bufshare_tests::report::Skip;
use bufshare_tests::vm::Vm;
use bufshare_tests::wait;

static VMS: Shared = Shared::new(|| {
    Plan::new()
        .both(|machine| machine.screen = SIZE)
        .second(|machine| Display::that_imports().add_to(machine))
});
const SIZE: (u32, u32) = (640, 480);
/// What vivid's HDMI connectors have.
const HDMI: (u32, u32) = (1280, 720);
const LIMIT: Duration = Duration::from_secs(60);

fn bytes_of((width, height): (u32, u32)) -> u64 {
    u64::from(width) * u64::from(height) * 4
}

fn load_vivid(vm: &Vm) -> Result<()> {
    // First vmalloc, capture and output by a cable; then contiguous, capture.
    vm.load(
        "vivid",
        "n_devs=2 allocators=0,1 node_types=0x101,0x1 num_inputs=1,1 input_types=0x3,0x0 num_outputs=1 output_types=0x1",
    )
}

/// A picture in which every pixel differs from its neighbours.
fn drawing((width, height): (u32, u32), seed: u32) -> Vec<u8> {
    let pixel = |x: u32, y: u32| {
        let [low, middle, high, _] = (x * 7 + y * 13 + seed * 101).to_le_bytes();
        [
            low,
            middle ^ seed.to_le_bytes()[0],
            high ^ low.rotate_left(3),
            0,
        ]
    };
    (0..height)
        .flat_map(|y| (0..width).flat_map(move |x| pixel(x, y)))
        .collect()
}

struct Shares {
    a: Client,
    b: Client,
    mine: Map,
    theirs: Map,
    import: Import,
}

/// The same buffer in both VMs.
fn share(vms: &TwoVms, size: (u32, u32)) -> Result<Shares> {
    let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
    let buf: Buf = a.alloc(bytes_of(size))?;
    let mine = a.map(buf)?;
    let export = a.export(buf)?;
    let import = b.import(&export.id)?;
    let theirs = b.map(import.buf)?;
    Ok(Shares {
        a,
        b,
        mine,
        theirs,
        import,
    })
}

fn captures_into_it(vms: &mut TwoVms, name: &str, size: (u32, u32)) -> Result<()> {
    load_vivid(&vms.b)?;
    let device = vms.b.video(name)?;
    let mut both = share(vms, size)?;
    let (width, height) = size;
    let buf = both.import.buf.number;
    both.b.call(
        Op::CaptureInto {
            buf,
            device,
            width,
            height,
        },
        LIMIT,
    )?;
    let len = bytes_of(size);
    let exporter = both.a.peek(both.mine, 0, len)?.unwrap_or_default();
    let importer = both.b.peek(both.theirs, 0, len)?.unwrap_or_default();
    ensure!(exporter == importer, "the two VMs see different pictures");
    let picture = Picture::from_xrgb(&exporter, width, height, width * 4)?;
    ensure!(picture.colours(8) >= 8, "the picture is empty");
    Ok(())
}

#[test]
fn vivid_captures_into_it_by_a_kernel_mapping() {
    VMS.with(|vms| captures_into_it(vms, "vivid-000-vid-cap", HDMI));
}

#[test]
fn vivid_captures_into_it_as_contiguous_device_memory() {
    VMS.with(|vms| captures_into_it(vms, "vivid-001-vid-cap", SIZE));
}

#[test]
fn vivid_sends_what_the_other_vm_drew() {
    VMS.with(|vms| {
        load_vivid(&vms.b)?;
        let output = vms.b.video("vivid-000-vid-out")?;
        let capture = vms.b.video("vivid-000-vid-cap")?;
        let (width, height) = HDMI;
        let mut both = share(vms, HDMI)?;
        let drawn = drawing(HDMI, 1);
        both.a.poke(both.mine, 0, &drawn)?;
        let buf = both.import.buf.number;
        let op = Op::OutputFrom {
            buf,
            output,
            capture: Some(capture),
            width,
            height,
        };
        let Yield::Data(received) = both.b.call(op, LIMIT)? else {
            anyhow::bail!("no picture")
        };
        let wanted = Picture::from_xrgb(&drawn, width, height, width * 4)?;
        Picture::from_xrgb(&received, width, height, width * 4)?.same_as(&wanted)
    });
}

/// Has the display of this VM show a buffer.
fn show(client: &mut Client, display: &Display, buf: Buf) -> Result<()> {
    let (width, height) = SIZE;
    let show = Op::Show {
        buf: buf.number,
        driver: display.driver.to_owned(),
        width,
        height,
    };
    client.call(show, LIMIT).map(drop)
}

/// B's display shows what A draws into a buffer.
fn shows(vms: &TwoVms, display: &Display, seed: u32) -> Result<()> {
    let (width, height) = SIZE;
    let mut both = share(vms, SIZE)?;
    let drawn = drawing(SIZE, seed);
    both.a.poke(both.mine, 0, &drawn)?;
    show(&mut both.b, display, both.import.buf)?;
    let wanted = Picture::from_xrgb(&drawn, width, height, width * 4)?;
    display.screen(&vms.b)?.same_as(&wanted)
}

#[test]
fn a_display_shows_what_the_other_vm_drew() {
    VMS.with(|vms| {
        let display = Display::that_imports();
        display.load(&vms.b)?;
        for seed in [1, 2] {
            shows(vms, &display, seed)?;
        }
        Ok(())
    });
}

/// A driver of the importing guest has a buffer mapped while it is revoked,
/// and goes on to write into it.
fn a_driver_writes_into_what_was_revoked(vms: &mut TwoVms, name: &str) -> Result<()> {
    load_vivid(&vms.b)?;
    let device = vms.b.video(name)?;
    let size = if name.starts_with("vivid-000") {
        HDMI
    } else {
        SIZE
    };
    let (width, height) = size;
    let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
    b.info()?;
    let (buf, mine, export) = a.offer(bytes_of(size), 1)?;
    let import = b.import(&export.id)?;
    let theirs = b.map(import.buf)?;
    ensure!(b.compare(theirs, 1)? == Sight::Pattern);
    let lend = Op::LendVideo {
        buf: import.buf.number,
        device,
        width,
        height,
    };
    let Yield::Lent { video } = b.call(lend, LIMIT)? else {
        anyhow::bail!("no video device was given the buffer")
    };

    a.close(export.number)?;
    b.wait_event_of("Revoked", &export.id)?;
    let importer = vms.b.name().to_owned();
    let daemon = vms.daemon()?;
    daemon.settles("the buffer to be revoked", |now| now.buffers == 0)?;
    wait::until("the zero pages", wait::COMMAND, || {
        let filled = daemon.snapshot()?.peer(&importer)?.windows_zero;
        Ok((filled == 1).then_some(()))
    })?;
    // The memory is the exporter's alone again.
    a.fill(mine, 2)?;
    b.call(Op::CaptureLent { video }, LIMIT)?;

    ensure!(
        a.compare(mine, 2)? == Sight::Pattern,
        "the driver wrote into the exporter's memory"
    );
    ensure!(b.compare(theirs, 1)? == Sight::Sigbus);
    for number in [video, theirs.number, import.buf.number] {
        b.close(number)?;
    }
    vms.settled()?;
    // The place is of use again.
    let export = a.export(buf)?;
    let import = b.import(&export.id)?;
    let theirs = b.map(import.buf)?;
    ensure!(b.compare(theirs, 2)? == Sight::Pattern);
    Ok(())
}

#[test]
fn a_kernel_mapping_of_what_was_revoked_leads_to_zero_pages() {
    VMS.with(|vms| a_driver_writes_into_what_was_revoked(vms, "vivid-000-vid-cap"));
}

#[test]
fn a_device_mapping_of_what_was_revoked_leads_to_zero_pages() {
    VMS.with(|vms| a_driver_writes_into_what_was_revoked(vms, "vivid-001-vid-cap"));
}

/// The driver has it mapped to write, the program reads and writes. A kernel that
/// checks its drivers complains of a mapping synchronised for another direction
/// than it was made for.
#[test]
fn a_program_reads_and_writes_what_a_device_has_mapped_to_write() {
    VMS.with(|vms| {
        load_vivid(&vms.b)?;
        let device = vms.b.video("vivid-001-vid-cap")?;
        let (width, height) = SIZE;
        let mut both = share(vms, SIZE)?;
        let own = both.b.alloc(bytes_of(SIZE))?;
        for buf in [both.import.buf, own] {
            let lend = Op::LendVideo {
                buf: buf.number,
                device: device.clone(),
                width,
                height,
            };
            let Yield::Lent { video } = both.b.call(lend, LIMIT)? else {
                anyhow::bail!("no video device was given the buffer")
            };
            for end in [false, true] {
                both.b.sync(buf, true, end)?;
            }
            both.b.call(Op::CaptureLent { video }, LIMIT)?;
            both.b.close(video)?;
        }
        if vms.b.list_dir("/sys/kernel/debug/dma-api").is_err() {
            let reason = "the guest kernel checks no DMA mappings: scripts/debug-kernel does";
            return Err(Skip::impossible(reason).into());
        }
        Ok(())
    });
}

#[test]
fn a_buffer_that_a_driver_uses_is_revoked_without_harm() {
    VMS.with(|vms| {
        let display = Display::that_imports();
        display.load(&vms.b)?;
        let mut a = vms.a.client()?;
        let mut b = vms.b.client()?;
        b.info()?;
        let (_, _, export) = a.offer(bytes_of(SIZE), 1)?;
        let import = b.import(&export.id)?;
        show(&mut b, &display, import.buf)?;
        a.close(export.number)?;
        b.wait_event_of("Revoked", &export.id)?;
        // The display reads zero pages until it releases the buffer.
        vms.daemon()?
            .settles("the buffer to go", |now| now.buffers == 0)?;
        b.close(import.buf.number)?;
        vms.settled()?;
        // The display goes on with another buffer.
        shows(vms, &display, 3)
    });
}
