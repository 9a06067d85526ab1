// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The commands `capture` and `view` where a camera or a screen is not as usual

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bufshare_agent::wire::{Ran, Status, Stream};
use bufshare_tests::channel::{self, Program};
use bufshare_tests::client::{Client, Consumer, bytes};
use bufshare_tests::pair::{Plan, Shared, TwoVms, with_own};
use bufshare_tests::vm::{CARD, Vm};
use bufshare_tests::wait;
use serde_json::Value;

static VMS: Shared = Shared::new(|| {
    Plan::named("camera", "display").options(&[
        "--allow",
        "camera:display:rw",
        "--allow",
        "display:camera:rw",
    ])
});
/// QEMU maps for writing all the same.
static READERS: Shared = Shared::new(|| {
    Plan::named("camera", "display")
        .options(&["--allow", "camera:display:rw"])
        .second(|machine| machine.enforces_ro = true)
});
/// For a few frames of an emulated camera.
const LIMIT: Duration = Duration::from_secs(60);
const CAPTURE: &str = "/bin/bufshare --json capture --to display:rw --fps 30 --frames 3 --verify";
const VIEW: &str = "/bin/bufshare --json view --from camera --frames 3 --verify";
/// How vivid names a camera of one plane that has few sizes.
const VIVID: &str = "n_devs=1 node_types=0x1 num_inputs=1 input_types=0x0";

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// A camera driver of these parameters, and the device.
fn load_camera(vms: &TwoVms, parameters: &str) -> Result<String> {
    load_camera_of(&vms.a, parameters)
}

fn load_camera_of(vm: &Vm, parameters: &str) -> Result<String> {
    // It may stay from the test before.
    match vm.unload("vivid") {
        Err(error) if channel::errno_of(&error) != Some(libc::ENOENT) => return Err(error),
        _ => {}
    }
    vm.load("vivid", parameters)?;
    vm.video("vivid-000-vid-cap")
}

/// Lines of JSON.
fn records(output: &str) -> Result<Vec<Value>> {
    let parse = |line: &str| serde_json::from_str(line).with_context(|| line.to_owned());
    output.lines().map(parse).collect()
}

/// The one of this type.
fn record<'a>(records: &'a [Value], name: &str) -> Result<&'a Value> {
    let is = |record: &&Value| record.get("type").and_then(Value::as_str) == Some(name);
    let found = records.iter().find(is);
    found.with_context(|| format!("no {name} in {records:?}"))
}

/// What a program says until it ends.
fn to_its_end(mut program: Program) -> Result<Ran> {
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let status = program.end(LIMIT, |stream, line| {
        let text = match stream {
            Stream::Out => &mut stdout,
            Stream::Err => &mut stderr,
        };
        text.push_str(line.trim_end());
        text.push('\n');
    })?;
    Ok(Ran {
        status,
        stdout,
        stderr,
        timed_out: false,
        left_open: false,
    })
}

/// Both at the same time, to their ends.
fn both(vms: &TwoVms, capture: &str, view: &str) -> Result<(Ran, Ran)> {
    let program = vms.a.spawn(&words(capture))?;
    let viewed = vms.b.run(&words(view), LIMIT)?;
    Ok((to_its_end(program)?, viewed))
}

/// These members have these values.
fn counted(record: &Value, members: &[(&str, u64)]) -> Result<()> {
    for (name, value) in members {
        ensure!(
            record.get(name).and_then(Value::as_u64) == Some(*value),
            "{name} is not {value}: {record}"
        );
    }
    Ok(())
}

/// Three frames go over and come back with a reply.
fn works(vms: &TwoVms, capture: &str) -> Result<Vec<Value>> {
    let (captured, viewed) = both(vms, capture, &format!("{VIEW} --no-display"))?;
    channel::succeeded("view", viewed)?;
    let records = records(&channel::succeeded("capture", captured)?)?;
    counted(record(&records, "capture_summary")?, &[("replies_ok", 3)])?;
    Ok(records)
}

fn member<'a>(record: &'a Value, name: &str) -> Option<&'a str> {
    record.get(name).and_then(Value::as_str)
}

/// Refused with an error that has these parts in it.
fn refused(ran: &Ran, parts: &[&str]) -> Result<()> {
    ensure!(ran.status == Status::Exit(1), "{ran:?}");
    for part in parts {
        ensure!(ran.stderr.contains(part), "no \"{part}\" in {ran:?}");
    }
    Ok(())
}

#[test]
fn a_camera_fills_what_is_allocated_for_it_whatever_its_driver_allocates() {
    VMS.with(|vms| {
        for allocator in ["allocators=0", "allocators=1"] {
            load_camera(vms, &format!("{VIVID} {allocator}"))?;
            works(vms, CAPTURE)?;
        }
        Ok(())
    });
}

/// The test driver refuses one request after a button of it was pressed.
#[test]
fn a_camera_that_takes_no_dmabufs_is_refused_and_works_when_it_takes_them() {
    VMS.with(|vms| {
        let device = load_camera(vms, &format!("{VIVID} allocators=1"))?;
        let mut client = vms.a.client()?;
        for (button, why) in [
            (
                "Inject VIDIOC_REQBUFS Error",
                "its driver fills no memory but its own",
            ),
            ("Inject VIDIOC_QBUF Error", "queue buffer 0"),
        ] {
            client.set_control(&device, button, 1)?;
            let ran = vms.a.run(&words(CAPTURE), LIMIT)?;
            refused(&ran, &[why])?;
            works(vms, CAPTURE)?;
        }
        Ok(())
    });
}

#[test]
fn a_size_that_a_camera_does_not_have_is_refused_with_those_that_it_has() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        let line = format!("{CAPTURE} --size 648x480");
        let ran = vms.a.run(&words(&line), LIMIT)?;
        refused(
            &ran,
            &[
                "gives 640x480 XR24 instead of 648x480 XR24",
                "its driver lists 320x180,",
                " 1920x1080",
            ],
        )
    });
}

/// In the description that each buffer has for others.
fn listed_as(vms: &TwoVms, fourcc: &str) -> Result<()> {
    let listed = records(&vms.b.output(&["/bin/bufshare", "--json", "list"])?)?;
    ensure!(
        !listed.is_empty()
            && listed
                .iter()
                .all(|buffer| member(buffer, "fourcc") == Some(fourcc)),
        "not all {fourcc}: {listed:?}"
    );
    Ok(())
}

/// With and without a DRM name; the screen has neither.
#[test]
fn a_pixel_format_that_a_camera_offers_is_shared_as_it_is() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        for (format, bytes) in [("YUYV", 640 * 480 * 2), ("BA81", 640 * 480)] {
            let program = vms
                .a
                .spawn(&words(&format!("{CAPTURE} --hold --format {format}")))?;
            let view = format!("{VIEW} --no-display");
            let viewed = channel::succeeded("view", vms.b.run(&words(&view), LIMIT)?)?;
            counted(
                record(&records(&viewed)?, "view_summary")?,
                &[
                    ("frames", 3),
                    ("mismatches", 0),
                    ("bytes_shared", 3 * bytes),
                ],
            )?;
            listed_as(vms, format)?;
            program.end_input()?;
            let captured = records(&channel::succeeded("capture", to_its_end(program)?)?)?;
            let camera = record(&captured, "camera")?;
            ensure!(member(camera, "format") == Some(format), "{camera}");
            counted(camera, &[("stride", bytes / 480)])?;
            counted(
                record(&captured, "capture_summary")?,
                &[
                    ("frames", 3),
                    ("mismatches", 0),
                    ("bytes_shared", 3 * bytes),
                ],
            )?;
        }
        Ok(())
    });
}

/// That has all formats. What is chosen of fewer is tested where it is chosen.
#[test]
fn a_camera_that_has_xrgb8888_gives_that_without_a_warning() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        let (captured, viewed) = both(vms, CAPTURE, &format!("{VIEW} --no-display"))?;
        channel::succeeded("view", viewed)?;
        ensure!(captured.stderr.is_empty(), "{captured:?}");
        let records = records(&channel::succeeded("capture", captured)?)?;
        let camera = record(&records, "camera")?;
        ensure!(member(camera, "format") == Some("XR24"), "{camera}");
        counted(camera, &[("width", 640), ("height", 480)])
    });
}

#[test]
fn a_pixel_format_that_a_camera_does_not_have_is_refused_with_those_that_it_has() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        let line = format!("{CAPTURE} --format MJPG");
        let ran = vms.a.run(&words(&line), LIMIT)?;
        refused(&ran, &["no pixel format MJPG, only ", " YUYV ", " XR24 "])
    });
}

/// How many of the buffers that the other VM exports hold something: they were zeroes.
fn filled(vms: &TwoVms) -> Result<usize> {
    let mut client = vms.b.client()?;
    let listed = records(&vms.b.output(&["/bin/bufshare", "--json", "list"])?)?;
    let mut filled = 0;
    let is_stream = |buffer: &&Value| buffer.get("is_stream").and_then(Value::as_bool);
    for buffer in listed.iter().filter(|one| is_stream(one) == Some(false)) {
        let import = client.import(member(buffer, "id").context("no id")?)?;
        let map = client.map(import.buf)?;
        let bytes = client.peek(map, 4096, 4096)?.context("it is gone")?;
        filled += usize::from(bytes.iter().any(|byte| *byte != 0));
        client.close(map.number)?;
        client.close(import.buf.number)?;
    }
    Ok(filled)
}

/// In one memory or in one for each plane, as the format is; the driver begins the first plane of
/// NV16M behind 128 bytes of its memory.
#[test]
fn a_multi_planar_camera_fills_a_memory_for_each_plane_and_the_other_vm_has_them_all() {
    VMS.with(|vms| {
        load_camera(vms, &format!("{VIVID} multiplanar=2"))?;
        let pixels = 640 * 480;
        for (format, name, planes, bytes) in [
            ("XRGB8888", "XR24", 1, 4 * pixels),
            ("NV16M", "NV16", 2, 128 + 2 * pixels),
            ("YUV420M", "YU12", 3, pixels + pixels / 2),
        ] {
            let program = vms
                .a
                .spawn(&words(&format!("{CAPTURE} --hold --format {format}")))?;
            let view = format!("{VIEW} --no-display");
            let viewed = channel::succeeded("view", vms.b.run(&words(&view), LIMIT)?)?;
            counted(
                record(&records(&viewed)?, "view_summary")?,
                &[
                    ("frames", 3),
                    ("mismatches", 0),
                    ("bytes_shared", 3 * bytes),
                ],
            )?;
            // A fourth buffer may be with the driver, empty.
            let filled = filled(vms)?;
            let wanted = usize::try_from(planes)?;
            ensure!(
                filled >= 3 * wanted,
                "{format}: {filled} of {planes} memories for each frame hold something"
            );
            program.end_input()?;
            let captured = records(&channel::succeeded("capture", to_its_end(program)?)?)?;
            counted(record(&captured, "camera")?, &[("planes", planes)])?;
            let exported = captured.iter().filter(|record| {
                record.get("image").is_some()
                    && record.pointer("/image/fourcc").and_then(Value::as_str) == Some(name)
                    && record.pointer("/image/planes").and_then(Value::as_u64) == Some(planes)
            });
            ensure!(exported.count() == 4, "{captured:?}");
            counted(
                record(&captured, "capture_summary")?,
                &[("frames", 3), ("bytes_shared", 3 * bytes)],
            )?;
            let back = captured.iter();
            let back = back.filter(|record| member(record, "type") == Some("captured"));
            let back: Vec<&Value> = back.collect();
            let right = |frame: &&Value| frame.get("reply_ok").and_then(Value::as_bool);
            ensure!(
                back.len() == 3 && back.iter().all(|frame| right(frame) == Some(true)),
                "not three pictures that were answered: {back:?}"
            );
            // On a slow machine the camera gives a picture, and its number, twice.
            let numbers = back
                .iter()
                .map(|frame| frame.get("sequence").and_then(Value::as_u64));
            let hashes: HashMap<_, _> = numbers
                .zip(back.iter().map(|frame| member(frame, "xxh3")))
                .collect();
            let different: HashSet<_> = hashes.values().collect();
            ensure!(
                different.len() == hashes.len(),
                "not another picture each time: {back:?}"
            );
        }
        Ok(())
    });
}

/// They take more windows than the library lets a stream take where nothing is said.
#[test]
fn a_stream_of_many_buffers_of_several_planes_is_viewed() {
    VMS.with(|vms| {
        load_camera(vms, &format!("{VIVID} multiplanar=2"))?;
        let line = format!("{CAPTURE} --buffers 12 --format YUV420M --size 320x180");
        let captured = works(vms, &line)?;
        let exported = captured
            .iter()
            .filter(|one| member(one, "type") == Some("exported"));
        ensure!(exported.count() == 36, "{captured:?}");
        Ok(())
    });
}

/// Neither by a card nor as a copy, and nobody waits for another frame.
#[test]
fn a_frame_that_no_screen_can_show_ends_the_view_with_the_reason() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        vms.b.load(CARD, "")?;
        for (format, why) in [
            (
                "NV12",
                &[
                    ": no screen for it: bochs-drm /dev/dri/card0",
                    "pictures in pixel format NV12 cannot be copied to a screen",
                ][..],
            ),
            (
                "BA81",
                &[": no screen shows pixel format BA81; --no-display does without"],
            ),
        ] {
            let line = format!("{} --format {format}", endless(CAPTURE));
            let mut program = vms.a.spawn(&words(&line))?;
            let viewed = vms.b.run(&words(VIEW), LIMIT)?;
            program.signal(libc::SIGTERM)?;
            program.end(LIMIT, |_, _| {})?;
            refused(&viewed, why)?;
        }
        Ok(())
    });
}

fn plain(line: &str) -> String {
    line.replace(" --verify", "")
}

/// Until a signal: what a viewer that ends gives back would else be the last that is wanted.
fn endless(capture: &str) -> String {
    capture.replace("--frames 3", "--frames 0")
}

/// Reads all of a frame, which is much where nobody else does.
#[test]
fn content_is_hashed_and_answered_only_where_that_is_asked_for() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        let view = format!("{VIEW} --no-display");
        for capture in [CAPTURE.to_owned(), plain(CAPTURE)] {
            let (captured, viewed) = both(vms, &capture, &plain(&view))?;
            let viewed = records(&channel::succeeded("view", viewed)?)?;
            for name in ["hash_ok", "xxh3", "hash_us"] {
                let value = record(&viewed, "viewed")?.get(name);
                ensure!(value == Some(&Value::Null), "{name}: {value:?}");
            }
            let summary = record(&viewed, "view_summary")?;
            ensure!(
                summary.get("hashes_match") == Some(&Value::Null),
                "{summary}"
            );
            let verifies = capture.contains("--verify");
            let said = records(&captured.stdout)?;
            counted(
                record(&said, "capture_summary")?,
                &[
                    ("returned", 3),
                    ("replies_ok", 0),
                    ("mismatches", 0),
                    ("unanswered", if verifies { 3 } else { 0 }),
                ],
            )?;
            let hash = record(&said, "captured")?.get("xxh3");
            ensure!(
                hash.is_some_and(Value::is_string) == verifies,
                "{capture}: {hash:?}"
            );
            if verifies {
                refused(&captured, &["none of 3 frames came back with a reply"])?;
            } else {
                channel::succeeded("capture", captured)?;
            }
        }
        let camera = vms.a.spawn(&words(&endless(&plain(CAPTURE))))?;
        let viewed = vms.b.run(&words(&view), LIMIT)?;
        camera.signal(libc::SIGTERM)?;
        to_its_end(camera)?;
        refused(&viewed, &["its camera says no hash"])
    });
}

/// Both are ended by signals alone, after a viewer that takes the card and the peer's number.
#[test]
fn a_camera_without_end_is_ended_by_a_signal_and_a_held_view_stays_without_input() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        vms.b.load(CARD, "")?;
        let peer = vms.a.client()?.info()?.peer_id;
        let line =
            "/bin/bufshare --json capture --to display:rw --fps 30 --frames 0 --hold --ignore-stdin";
        let camera = vms.a.spawn(&words(line))?;
        camera.end_input()?;
        let line = format!(
            "/bin/bufshare --json view --from {peer} --frames 3 --card /dev/dri/card0 --hold \
             --ignore-stdin"
        );
        let mut view = vms.b.spawn(&words(&line))?;
        view.end_input()?;
        let mut viewed = Vec::new();
        while viewed
            .last()
            .is_none_or(|record| member(record, "type") != Some("view_summary"))
        {
            viewed.push(serde_json::from_str(&view.line(LIMIT)?)?);
        }
        let screen = record(&viewed, "screen")?;
        ensure!(member(screen, "screen").is_some_and(|name| name.contains("card0")), "{screen}");
        counted(record(&viewed, "view_summary")?, &[("frames", 3), ("mismatches", 0)])?;
        view.signal(libc::SIGTERM)?;
        channel::succeeded("view", to_its_end(view)?)?;
        camera.signal(libc::SIGTERM)?;
        let captured = records(&channel::succeeded("capture", to_its_end(camera)?)?)?;
        let summary = record(&captured, "capture_summary")?;
        ensure!(member(summary, "ended") == Some("stopped"), "{summary}");
        let missing = format!("{VIEW} --card /dev/dri/card9");
        let camera = vms.a.spawn(&words(&endless(CAPTURE)))?;
        let ran = vms.b.run(&words(&missing), LIMIT)?;
        camera.signal(libc::SIGTERM)?;
        to_its_end(camera)?;
        refused(&ran, &["/dev/dri/card9"])
    });
}

/// It keeps one frame, and does not go on to those of the next camera.
#[test]
fn a_held_view_ends_when_its_frame_is_revoked() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        vms.b.load(CARD, "")?;
        let camera = vms.a.spawn(&words(ENDLESS))?;
        let mut view = vms
            .b
            .spawn(&words(&format!("{VIEW} --hold --ignore-stdin")))?;
        let summary = until_record(&mut view, "view_summary")?;
        ensure!(
            summary.get("on_screen").is_some_and(Value::is_u64),
            "{summary}"
        );
        stops(camera, 3)?;
        let viewed = to_its_end(view)?;
        refused(&viewed, &["was revoked", "\"status\":\"REVOKED\""])?;
        // It was on the screen, and is not any more.
        let last = records(&viewed.stdout)?;
        let last = record(&last, "viewed")?;
        ensure!(last.get("frame") == summary.get("on_screen"), "{last}");
        Ok(())
    });
}

/// A camera that is unplugged can be stopped as little as it gives frames.
#[test]
fn a_camera_that_is_gone_is_said_to_give_no_frame_and_what_it_gave_is_reported() {
    VMS.with(|vms| {
        let device = load_camera(vms, VIVID)?;
        let mut client = vms.a.client()?;
        let line = "/bin/bufshare --json capture --to display:rw --fps 30 --frames 0 --verify";
        let camera = vms.a.spawn(&words(line))?;
        let view = format!("{VIEW} --no-display");
        channel::succeeded("view", vms.b.run(&words(&view), LIMIT)?)?;
        client.set_control(&device, "Disconnect", 1)?;
        let captured = to_its_end(camera)?;
        ensure!(
            captured.status == Status::Exit(1) && !captured.stderr.contains("stop the camera"),
            "{captured:?}"
        );
        let records = records(&captured.stdout)?;
        let summary = record(&records, "capture_summary")?;
        ensure!(member(summary, "ended") == Some("failed"), "{summary}");
        Ok(())
    });
}

/// The camera is given up, and its driver's mark on each frame, as one with a bad cable may make
/// it, is the reason: on all of them, or on those that come after one that a viewer shows.
fn gives_up_broken(vms: &TwoVms, one_is_shown: bool) -> Result<Value> {
    let device = load_camera(vms, VIVID)?;
    let mut a = vms.a.client()?;
    // One press for each frame of a second, or more: then all are broken.
    let mut press = || a.set_control(&device, "Inject V4L2_BUF_FLAG_ERROR", 1);
    if !one_is_shown {
        press()?;
    }
    let line = "/bin/bufshare --json capture --to display:rw --fps 1 --frames 0 --buffers 8 \
                --timeout 3";
    let mut camera = vms.a.spawn(&words(line))?;
    let viewer = if one_is_shown {
        Some(Viewer::of(vms, 8, 1)?)
    } else {
        None
    };
    let summary = wait::until("the camera to be given up", LIMIT, || {
        press()?;
        let line = camera.try_line(Duration::from_millis(100))?;
        let record: Option<Value> = line.map(|line| serde_json::from_str(&line)).transpose()?;
        Ok(record.filter(|record| member(record, "type") == Some("capture_summary")))
    })?;
    drop(viewer);
    ensure!(member(&summary, "ended") == Some("failed"), "{summary}");
    let broken = summary.get("broken").and_then(Value::as_u64);
    let why = format!("the last {} as broken", broken.context("no count of them")?);
    refused(&to_its_end(camera)?, &["no whole frame within 3 s", &why])?;
    Ok(summary)
}

#[test]
fn a_camera_whose_frames_are_all_broken_is_given_up_with_that_reason() {
    VMS.with(|vms| counted(&gives_up_broken(vms, false)?, &[("frames", 0)]));
}

/// A viewer shows a frame until the next one comes, and so is not why none does.
#[test]
fn a_camera_whose_frames_are_broken_while_one_is_shown_is_given_up_with_that_reason() {
    VMS.with(|vms| counted(&gives_up_broken(vms, true)?, &[("returned", 0)]));
}

/// One that does with frames what a test wants.
struct Viewer {
    client: Client,
    consumers: Vec<Consumer>,
    /// What it has: the consumer's place, and the frame.
    frames: Vec<(usize, u64)>,
}

impl Viewer {
    /// Joins the camera's stream of so many buffers, and waits for so many frames.
    fn of(vms: &TwoVms, buffers: usize, frames: usize) -> Result<Self> {
        Self::on(&vms.b, (buffers, buffers), frames)
    }

    /// The same on this VM, which imports so many of the buffers.
    fn on(vm: &Vm, (buffers, imported): (usize, usize), frames: usize) -> Result<Self> {
        let mut client = vm.client()?;
        let found = wait::until("a stream with its buffers", LIMIT, || {
            let listed = client.list()?;
            let parts = listed.iter().filter(|one| one.stream.is_some());
            let parts: Vec<_> = parts.map(|one| one.id.clone()).collect();
            let stream = listed.into_iter().find(|one| one.is_stream);
            Ok(stream
                .filter(|_| parts.len() == buffers)
                .map(|stream| (stream.id, parts)))
        })?;
        let (stream, parts) = found;
        client.join(&stream)?;
        let parts = parts.iter().take(imported);
        let consumers = parts.map(|id| client.consume(id));
        let mut viewer = Self {
            consumers: consumers.collect::<Result<_>>()?,
            client,
            frames: Vec::new(),
        };
        for _ in 0..frames {
            viewer.wait_frame()?;
        }
        Ok(viewer)
    }

    fn wait_frame(&mut self) -> Result<()> {
        let event = self
            .client
            .wait_event("of a frame", |event| event.kind == "Pushed")?;
        let place = self
            .consumers
            .iter()
            .position(|one| one.handle == event.handle);
        let place = place.context("a frame of no consumer")?;
        self.frames.push((place, event.value));
        Ok(())
    }

    /// Writes the last byte of its oldest frame, and gives that back.
    fn answer(&mut self, byte: u8) -> Result<()> {
        let (place, frame) = self.frames.remove(0);
        let consumer = *self.consumers.get(place).context("no consumer")?;
        let map = self.client.map(consumer.buf)?;
        self.client.poke(map, consumer.buf.size - 1, &[byte])?;
        self.client.close(map.number)?;
        self.client.give_back(&[(&consumer, frame)])
    }
}

/// Else it would get none, and the camera be given up.
#[test]
fn a_viewer_that_imports_some_buffers_only_gets_the_frames_in_these() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        let camera = vms.a.spawn(&words(&plain(ENDLESS)))?;
        let mut viewer = Viewer::on(&vms.b, (4, 2), 1)?;
        for _ in 0..3 {
            viewer.answer(0)?;
            viewer.wait_frame()?;
        }
        stops(camera, 4).map(drop)
    });
}

/// The other one has all frames that it is given and returns none; a screen keeps its frame until
/// the next one is on it.
#[test]
fn a_screen_goes_on_while_a_viewer_on_another_vm_hangs() {
    with_own(
        |_| {
            let allowed = ["--allow", "camera:display:rw", "--allow", "camera:other:rw"];
            Ok(Plan::named("camera", "display")
                .and("other")
                .options(&allowed))
        },
        |vms| {
            load_camera(vms, VIVID)?;
            vms.b.load(CARD, "")?;
            let line = "/bin/bufshare --json capture --to display:rw --to other:rw --fps 30 \
                        --frames 0 --verify";
            let refused_line = format!("{line} --buffers 3");
            let ran = vms.a.run(&words(&refused_line), LIMIT)?;
            refused(&ran, &["--buffers: for 2 machines at least 4"])?;
            let camera = vms.a.spawn(&words(line))?;
            let hung = Viewer::on(vms.more.first().context("no third VM")?, (4, 4), 2)?;
            let viewed = vms
                .b
                .run(&words(&VIEW.replace("--frames 3", "--frames 6")), LIMIT)?;
            let viewed = records(&channel::succeeded("view", viewed)?)?;
            counted(
                record(&viewed, "view_summary")?,
                &[("frames", 6), ("mismatches", 0)],
            )?;
            drop(hung);
            stops(camera, 8).map(drop)
        },
    );
}

/// As many events as the driver keeps for an open file (`BUFSHARE_FILE_EVENTS`).
const KEPT_EVENTS: u32 = 256;

/// Its program stands still meanwhile, longer than it would wait, and other events take the
/// places of all that the driver keeps for it.
#[test]
fn frames_that_come_back_while_the_camera_stands_still_and_misses_events_are_back() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, other) = a.offer(1 << 16, 1)?;
        let limit = wait::scaled(Duration::from_secs(10));
        let line = format!(
            "/bin/bufshare --json capture --to display:rw --fps 30 --frames 3 --buffers 3 \
             --timeout {}",
            limit.as_secs()
        );
        let camera = vms.a.spawn(&words(&line))?;
        let mut viewer = Viewer::of(vms, 3, 3)?;
        camera.signal(libc::SIGSTOP)?;
        let since = std::time::Instant::now();
        // One by one, or the host makes one event of several.
        let mut lost = 0;
        while lost < KEPT_EVENTS || since.elapsed() < limit + Duration::from_secs(1) {
            b.cycle(&other.id, 1, 1, LIMIT)?;
            a.wait_event_of("Released", &other.id)?;
            lost += 1;
        }
        for _ in 0..3 {
            viewer.answer(0)?;
        }
        camera.signal(libc::SIGCONT)?;
        let captured = records(&channel::succeeded("capture", to_its_end(camera)?)?)?;
        counted(
            record(&captured, "capture_summary")?,
            &[("frames", 3), ("returned", 3)],
        )
    });
}

#[test]
fn a_viewer_that_may_not_write_sees_each_frame_and_writes_no_reply() {
    READERS.with(|vms| {
        load_camera(vms, VIVID)?;
        let capture = CAPTURE.replace("display:rw", "display:r");
        let (captured, viewed) = both(vms, &capture, &format!("{VIEW} --no-display"))?;
        let viewed = records(&channel::succeeded("view", viewed)?)?;
        counted(
            record(&viewed, "view_summary")?,
            &[("frames", 3), ("mismatches", 0)],
        )?;
        let captured = records(&channel::succeeded("capture", captured)?)?;
        counted(
            record(&captured, "capture_summary")?,
            &[
                ("returned", 3),
                ("replies_ok", 0),
                ("mismatches", 0),
                ("unanswered", 0),
            ],
        )
    });
}

#[test]
fn a_frame_that_comes_back_with_another_reply_is_wrong() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        let line = "/bin/bufshare --json capture --to display:rw --fps 30 --frames 1 --verify";
        let camera = vms.a.spawn(&words(line))?;
        let mut viewer = Viewer::of(vms, 4, 1)?;
        // Neither what is there nor what is wanted.
        let (place, _) = *viewer.frames.first().context("no frame")?;
        let buf = viewer.consumers.get(place).context("no consumer")?.buf;
        let map = viewer.client.map(buf)?;
        let said = viewer.client.peek(map, buf.size - VERIFICATION, 32)?;
        viewer.client.close(map.number)?;
        let wanted = *said.context("it is gone")?.get(24).context("no byte")?;
        viewer.answer(if wanted == 1 { 2 } else { 1 })?;
        let captured = to_its_end(camera)?;
        refused(&captured, &["1 of 1 frames came back with a wrong reply"])?;
        counted(
            record(&records(&captured.stdout)?, "capture_summary")?,
            &[("returned", 1), ("replies_ok", 0), ("mismatches", 1)],
        )
    });
}

/// So far before the end of a frame's first buffer there is what `capture --verify` says of it.
const VERIFICATION: u64 = 64;

/// That, without a reply.
fn verification(hash: u64) -> Vec<u8> {
    bytes(32, &[(0, b"BSVF\x01\0\x20\0"), (8, &hash.to_le_bytes())])
}

#[test]
fn a_frame_that_is_not_what_the_camera_says_is_a_mismatch() {
    VMS.with(|vms| {
        let mut a = vms.a.client()?;
        let stream = a.create("camera", 1)?;
        let part = a.part(&stream, 4096)?;
        let mut b = vms.b.client()?;
        let import = b.import(&part.id)?;
        let map = b.map(import.buf)?;
        b.poke(map, 4096 - VERIFICATION, &verification(0))?;
        b.close(map.number)?;
        b.close(import.buf.number)?;
        wait::until("the buffer to be imported by nobody", LIMIT, || {
            Ok((a.query(&part.id)?.attachments == 0).then_some(()))
        })?;
        let line = "/bin/bufshare --json view --from camera --frames 1 --verify --no-display";
        let view = vms.b.spawn(&words(line))?;
        wait::until("the viewer to import the buffer", LIMIT, || {
            Ok((a.query(&part.id)?.attachments > 0).then_some(()))
        })?;
        a.push(&[&[&part]], 1)?;
        refused(
            &to_its_end(view)?,
            &["1 of 1 frames are not what the camera sent"],
        )
    });
}

const ENDLESS: &str = "/bin/bufshare --json capture --to display:rw --fps 30 --frames 0 --verify";

/// What a program prints until a record of this type.
fn until_record(program: &mut Program, name: &str) -> Result<Value> {
    loop {
        let record: Value = serde_json::from_str(&program.line(LIMIT)?)?;
        if member(&record, "type") == Some(name) {
            return Ok(record);
        }
    }
}

/// Stopped by a signal, having handed over at least so many frames.
fn stops(camera: Program, frames: u64) -> Result<Vec<Value>> {
    camera.signal(libc::SIGTERM)?;
    let captured = records(&channel::succeeded("capture", to_its_end(camera)?)?)?;
    let summary = record(&captured, "capture_summary")?;
    ensure!(member(summary, "ended") == Some("stopped"), "{summary}");
    let count = summary.get("frames").and_then(Value::as_u64);
    ensure!(count >= Some(frames), "{summary}");
    counted(summary, &[("mismatches", 0)])?;
    Ok(captured)
}

#[test]
fn a_viewer_that_dies_gives_its_frames_back_and_another_views_on() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        let camera = vms.a.spawn(&words(ENDLESS))?;
        let line = "/bin/bufshare --json view --from camera --verify --no-display";
        let mut first = vms.b.spawn(&words(line))?;
        until_record(&mut first, "viewed")?;
        first.signal(libc::SIGSTOP)?;
        first.kill()?;
        let view = format!("{VIEW} --no-display");
        let viewed = records(&channel::succeeded(
            "view",
            vms.b.run(&words(&view), LIMIT)?,
        )?)?;
        counted(
            record(&viewed, "view_summary")?,
            &[("frames", 3), ("mismatches", 0)],
        )?;
        let captured = stops(camera, 4)?;
        let left = captured
            .iter()
            .filter(|one| member(one, "state") == Some("left"));
        ensure!(left.count() >= 1, "{captured:?}");
        Ok(())
    });
}

/// The second joins when the first has frames.
#[test]
fn two_viewers_of_one_camera_see_the_same_frames() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        let camera = vms.a.spawn(&words(ENDLESS))?;
        let line = "/bin/bufshare --json view --from camera --verify --no-display";
        let mut first = vms.b.spawn(&words(line))?;
        until_record(&mut first, "viewed")?;
        let view = format!("{VIEW} --no-display");
        let viewed = records(&channel::succeeded(
            "view",
            vms.b.run(&words(&view), LIMIT)?,
        )?)?;
        let frame = record(&viewed, "viewed")?.get("frame").cloned();
        loop {
            let seen = until_record(&mut first, "viewed")?;
            ensure!(seen.get("hash_ok") == Some(&Value::Bool(true)), "{seen}");
            let number = |value: Option<&Value>| value.and_then(Value::as_u64);
            ensure!(
                number(seen.get("frame")) <= number(frame.as_ref()),
                "{seen}"
            );
            if seen.get("frame") == frame.as_ref() {
                break;
            }
        }
        first.signal(libc::SIGTERM)?;
        channel::succeeded("view", to_its_end(first)?)?;
        stops(camera, 4).map(drop)
    });
}

/// Until the second one says that a frame is its last.
#[test]
fn a_camera_that_is_started_again_is_viewed_on() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        let line = "/bin/bufshare --json view --from camera --verify --no-display";
        let mut view = vms.b.spawn(&words(line))?;
        let first = vms.a.spawn(&words(ENDLESS))?;
        until_record(&mut view, "viewed")?;
        stops(first, 1)?;
        wait::until("the stream to be over", LIMIT, || {
            let said = until_record(&mut view, "stream")?;
            Ok((member(&said, "state") == Some("over")).then_some(()))
        })?;
        let second = vms.a.spawn(&words(CAPTURE))?;
        let said = until_record(&mut view, "stream")?;
        ensure!(member(&said, "state") == Some("joined"), "{said}");
        let viewed = records(&channel::succeeded("view", to_its_end(view)?)?)?;
        let seen = viewed
            .iter()
            .filter(|one| member(one, "type") == Some("viewed"));
        ensure!(seen.count() == 3, "{viewed:?}");
        let summary = record(&viewed, "view_summary")?;
        counted(summary, &[("mismatches", 0)])?;
        ensure!(member(summary, "ended") == Some("done"), "{summary}");
        let captured = records(&channel::succeeded("capture", to_its_end(second)?)?)?;
        counted(record(&captured, "capture_summary")?, &[("replies_ok", 3)])
    });
}

/// A screen is kept for frames of the same size, and chosen anew for those of another one.
#[test]
fn a_camera_that_is_started_again_with_another_size_is_shown_on() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        vms.b.load(CARD, "")?;
        let line = "/bin/bufshare --json view --from camera --verify";
        let mut view = vms.b.spawn(&words(line))?;
        let mut screens = Vec::new();
        for size in ["640x480", "640x480", "320x180"] {
            let camera = vms.a.spawn(&words(&format!("{ENDLESS} --size {size}")))?;
            wait::until("the camera to be viewed", LIMIT, || {
                let said = until_record(&mut view, "stream")?;
                Ok((member(&said, "state") == Some("joined")).then_some(()))
            })?;
            // One may be of the camera before.
            let mut viewed = 0;
            while viewed < 2 {
                let record: Value = serde_json::from_str(&view.line(LIMIT)?)?;
                match member(&record, "type") {
                    Some("viewed") => viewed += 1,
                    Some("screen") => screens.push(record),
                    _ => {}
                }
            }
            stops(camera, 1)?;
        }
        view.signal(libc::SIGTERM)?;
        let viewed = records(&channel::succeeded("view", to_its_end(view)?)?)?;
        counted(record(&viewed, "view_summary")?, &[("mismatches", 0)])?;
        let number = |record: &Value, name| record.get(name).and_then(Value::as_u64);
        let sizes = screens
            .iter()
            .map(|one| (number(one, "shown_width"), number(one, "shown_height")));
        let wanted = [(Some(640), Some(480)), (Some(320), Some(180))];
        ensure!(sizes.eq(wanted), "not a screen for each size: {screens:?}");
        Ok(())
    });
}

#[test]
fn a_view_of_more_frames_than_there_are_says_that_the_stream_ended() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        let view = VIEW.replace("--frames 3", "--frames 5");
        let timeout = wait::scaled(Duration::from_secs(10)).as_secs();
        let line = format!("{view} --no-display --timeout {timeout}");
        let (captured, viewed) = both(vms, CAPTURE, &line)?;
        channel::succeeded("capture", captured)?;
        refused(&viewed, &["of \\\"camera\\\" ended after 3 of 5 frames"])?;
        let viewed = records(&viewed.stdout)?;
        let ended = viewed
            .iter()
            .filter(|one| member(one, "state") == Some("ended"));
        ensure!(ended.count() == 1, "{viewed:?}");
        Ok(())
    });
}

/// Each is a stream with a name of its own.
#[test]
fn two_cameras_of_one_vm_are_viewed_at_once() {
    VMS.with(|vms| {
        load_camera(
            vms,
            "n_devs=2 node_types=0x1,0x1 num_inputs=1,1 input_types=0x0,0x0",
        )?;
        let (mut cameras, mut views) = (Vec::new(), Vec::new());
        for name in ["vivid-000-vid-cap", "vivid-001-vid-cap"] {
            let device = vms.a.video(name)?;
            let line = format!("{CAPTURE} --device {device} --name {name}");
            cameras.push(vms.a.spawn(&words(&line))?);
            let line = format!("{VIEW} --no-display --name {name}");
            views.push(vms.b.spawn(&words(&line))?);
        }
        for view in views {
            let viewed = records(&channel::succeeded("view", to_its_end(view)?)?)?;
            counted(
                record(&viewed, "view_summary")?,
                &[("frames", 3), ("mismatches", 0)],
            )?;
        }
        for camera in cameras {
            let captured = records(&channel::succeeded("capture", to_its_end(camera)?)?)?;
            counted(
                record(&captured, "capture_summary")?,
                &[("returned", 3), ("replies_ok", 3), ("mismatches", 0)],
            )?;
        }
        Ok(())
    });
}

#[test]
fn a_second_camera_of_the_same_name_is_refused() {
    VMS.with(|vms| {
        load_camera(
            vms,
            "n_devs=2 node_types=0x1,0x1 num_inputs=1,1 input_types=0x0,0x0",
        )?;
        let mut first = vms.a.spawn(&words(ENDLESS))?;
        until_record(&mut first, "stream")?;
        let line = format!("{CAPTURE} --device {}", vms.a.video("vivid-001-vid-cap")?);
        let ran = vms.a.run(&words(&line), LIMIT)?;
        refused(&ran, &["the stream \\\"camera\\\"", "Choose another name"])?;
        stops(first, 0).map(drop)
    });
}

/// Each exports and imports at the same time.
#[test]
fn two_vms_view_each_others_cameras_at_once() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        load_camera_of(&vms.b, VIVID)?;
        let back = CAPTURE.replace("display:", "camera:");
        let viewer = "/bin/bufshare --json view --from display --frames 3 --verify --no-display";
        let producers = [vms.a.spawn(&words(CAPTURE))?, vms.b.spawn(&words(&back))?];
        let viewer = vms.a.spawn(&words(viewer))?;
        let viewed = vms.b.run(&words(&format!("{VIEW} --no-display")), LIMIT)?;
        for ran in [viewed, to_its_end(viewer)?] {
            let viewed = records(&channel::succeeded("view", ran)?)?;
            counted(
                record(&viewed, "view_summary")?,
                &[("frames", 3), ("mismatches", 0)],
            )?;
        }
        for producer in producers {
            let captured = records(&channel::succeeded("capture", to_its_end(producer)?)?)?;
            counted(record(&captured, "capture_summary")?, &[("replies_ok", 3)])?;
        }
        Ok(())
    });
}
