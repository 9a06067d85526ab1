// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The commands `capture` and `view` where a camera or a screen is not as usual

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bufshare_agent::wire::{Ran, Status, Stream};
use bufshare_tests::channel::{self, Program};
use bufshare_tests::client::{Client, Sight, bytes};
use bufshare_tests::pair::{Plan, Shared, TwoVms};
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
    for buffer in &listed {
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
                    "frame 1: no screen for it: bochs-drm /dev/dri/card0",
                    "pictures in pixel format NV12 cannot be copied to a screen",
                ][..],
            ),
            (
                "BA81",
                &["frame 1: no screen shows pixel format BA81; --no-display does without"],
            ),
        ] {
            let line = format!("{CAPTURE} --format {format}");
            let mut program = vms.a.spawn(&words(&line))?;
            let viewed = vms.b.run(&words(VIEW), LIMIT)?;
            program.signal(libc::SIGTERM)?;
            program.end(LIMIT, |_, _| {})?;
            refused(&viewed, why)?;
        }
        Ok(())
    });
}

/// Reads all of a frame, which is much where nobody else does.
#[test]
fn content_is_hashed_only_where_that_is_asked_for() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        let plain = |line: &str| line.replace(" --verify", "");
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
            let captured = records(&channel::succeeded("capture", captured)?)?;
            counted(
                record(&captured, "capture_summary")?,
                &[("replies_ok", 3), ("mismatches", 0)],
            )?;
            let hash = record(&captured, "captured")?.get("xxh3");
            ensure!(
                hash.is_some_and(Value::is_string) == capture.contains("--verify"),
                "{capture}: {hash:?}"
            );
        }
        let camera = vms.a.spawn(&words(&plain(CAPTURE)))?;
        let viewed = vms.b.run(&words(&view), LIMIT)?;
        camera.signal(libc::SIGTERM)?;
        to_its_end(camera)?;
        refused(&viewed, &["frame 1: its camera announces no hash"])
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
        camera.signal(libc::SIGTERM)?;
        let captured = records(&channel::succeeded("capture", to_its_end(camera)?)?)?;
        let summary = record(&captured, "capture_summary")?;
        ensure!(member(summary, "ended") == Some("stopped"), "{summary}");
        view.signal(libc::SIGTERM)?;
        channel::succeeded("view", to_its_end(view)?)?;
        let missing = format!("{VIEW} --card /dev/dri/card9");
        let camera = vms.a.spawn(&words(CAPTURE))?;
        let ran = vms.b.run(&words(&missing), LIMIT)?;
        camera.signal(libc::SIGTERM)?;
        to_its_end(camera)?;
        refused(&ran, &["/dev/dri/card9"])
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

/// Its driver marks each frame as broken, as that of one with a bad cable may.
/// The camera is given up, and the driver's mark on each frame is the reason: on all of them,
/// or on those that come after one that a viewer shows. Returns what was counted.
fn gives_up_broken(vms: &TwoVms, one_is_shown: bool) -> Result<Value> {
    let device = load_camera(vms, VIVID)?;
    let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
    // One press for each frame of a second, or more: then all are broken.
    let mut press = || a.set_control(&device, "Inject V4L2_BUF_FLAG_ERROR", 1);
    if !one_is_shown {
        press()?;
    }
    let line = "/bin/bufshare --json capture --to display:rw --fps 1 --frames 0 --buffers 8 \
                --timeout 3";
    let mut camera = vms.a.spawn(&words(line))?;
    if one_is_shown {
        let frame = b.wait_event("of a frame", |event| event.kind == "Meta")?;
        b.import(&frame.id)?;
    }
    let summary = wait::until("the camera to be given up", LIMIT, || {
        press()?;
        let line = camera.try_line(Duration::from_millis(100))?;
        let record: Option<Value> = line.map(|line| serde_json::from_str(&line)).transpose()?;
        Ok(record.filter(|record| member(record, "type") == Some("capture_summary")))
    })?;
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

/// As many events as the driver keeps for an open file (`BUFSHARE_FILE_EVENTS`).
const KEPT_EVENTS: u32 = 256;

/// Three frames for as many buffers, of which the camera's program, which stands still
/// meanwhile, misses that they were released: other events take their places.
fn lose_releases(vms: &TwoVms, to: &str) -> Result<(Vec<Value>, String)> {
    load_camera(vms, VIVID)?;
    let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
    let (_, _, other) = a.offer(1 << 16, 1)?;
    // In which three frames have to come.
    let limit = wait::scaled(Duration::from_secs(10));
    let line = format!(
        "/bin/bufshare --json capture --to {to} --fps 30 --frames 3 --buffers 3 --verify --timeout {}",
        limit.as_secs()
    );
    let camera = vms.a.spawn(&words(&line))?;
    for _ in 0..3 {
        b.wait_event("of a frame", |event| event.kind == "Meta")?;
    }
    camera.signal(libc::SIGSTOP)?;
    // One by one, or the host makes one event of several. When it goes on its time is up,
    // and what came meanwhile has to count all the same.
    let (since, mut lost) = (Instant::now(), 0);
    while lost < KEPT_EVENTS || since.elapsed() < limit + Duration::from_secs(1) {
        b.cycle(&other.id, 1, 1, LIMIT)?;
        a.wait_event_of("Released", &other.id)?;
        lost += 1;
    }
    let view = format!("{VIEW} --no-display");
    channel::succeeded("view", vms.b.run(&words(&view), LIMIT)?)?;
    camera.signal(libc::SIGCONT)?;
    let captured = to_its_end(camera)?;
    let warnings = captured.stderr.clone();
    let records = records(&channel::succeeded("capture", captured)?)?;
    Ok((records, warnings))
}

#[test]
fn frames_whose_release_was_lost_with_other_events_are_reclaimed() {
    VMS.with(|vms| {
        let (records, _) = lose_releases(vms, "display:rw")?;
        counted(
            record(&records, "capture_summary")?,
            &[("replies_ok", 3), ("unconfirmed", 0)],
        )
    });
}

/// Nothing says that they were looked at, and the viewer has ended.
#[test]
fn frames_of_a_reader_whose_release_was_lost_are_reclaimed_with_a_warning() {
    READERS.with(|vms| {
        let (records, warnings) = lose_releases(vms, "display:r")?;
        ensure!(
            warnings.contains("events were lost, and nobody has frame 1, 2, 3 any more"),
            "{warnings}"
        );
        counted(
            record(&records, "capture_summary")?,
            &[
                ("frames", 3),
                ("returned", 0),
                ("unconfirmed", 3),
                ("mismatches", 0),
            ],
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
            &[("frames", 3), ("mismatches", 0), ("missed", 0)],
        )?;
        let captured = records(&channel::succeeded("capture", captured)?)?;
        counted(
            record(&captured, "capture_summary")?,
            &[
                ("returned", 3),
                ("replies_ok", 0),
                ("mismatches", 0),
                ("unconfirmed", 0),
            ],
        )
    });
}

/// Until a buffer is filled again, what is announced of it is the frame that came back; here
/// that lasts, as the camera's program stands still.
#[test]
fn a_frame_that_a_viewer_has_looked_at_is_no_frame_for_the_next_one() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        let mut b = vms.b.client()?;
        let line =
            "/bin/bufshare --json capture --to display:rw --fps 30 --frames 4 --buffers 4 --verify";
        let camera = vms.a.spawn(&words(line))?;
        for _ in 0..4 {
            b.wait_event("of a frame", |event| event.kind == "Meta")?;
        }
        camera.signal(libc::SIGSTOP)?;
        for (frames, first) in [(1, 1), (3, 2)] {
            let line = format!(
                "/bin/bufshare --json view --from camera --frames {frames} --verify --no-display"
            );
            let viewed = vms.b.run(&words(&line), LIMIT)?;
            let viewed = records(&channel::succeeded("view", viewed)?)?;
            counted(record(&viewed, "viewed")?, &[("frame", first)])?;
            counted(
                record(&viewed, "view_summary")?,
                &[("frames", frames), ("mismatches", 0), ("missed", 0)],
            )?;
        }
        camera.signal(libc::SIGCONT)?;
        let captured = records(&channel::succeeded("capture", to_its_end(camera)?)?)?;
        counted(
            record(&captured, "capture_summary")?,
            &[("returned", 4), ("replies_ok", 4), ("mismatches", 0)],
        )
    });
}

/// The number of the frame that a buffer's metadata announces.
fn announced(client: &mut Client, id: &str) -> Result<u64> {
    let (_, _, blob) = client.get_meta(id)?;
    let number = blob.get(8..).and_then(<[u8]>::first_chunk);
    Ok(u64::from_le_bytes(*number.context("no frame")?))
}

/// As a viewer does that joins when the buffer is with the camera's driver again.
#[test]
fn a_frame_is_not_back_when_what_was_attached_before_it_is_released() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        let mut b = vms.b.client()?;
        let line = "/bin/bufshare --json capture --to display:rw --fps 1 --frames 0 --verify";
        let camera = vms.a.spawn(&words(line))?;
        let view = |frames: u32| {
            let line = format!(
                "/bin/bufshare --json view --from camera --frames {frames} --verify --no-display"
            );
            records(&channel::succeeded(
                "view",
                vms.b.run(&words(&line), LIMIT)?,
            )?)
        };
        let (id, import) = wait::until("an attachment before the next frame", LIMIT, || {
            let viewed = view(1)?;
            let viewed = record(&viewed, "viewed")?;
            let id = member(viewed, "id").context("no id")?;
            let import = b.import(id)?;
            let number = viewed.get("frame").and_then(Value::as_u64);
            if number == Some(announced(&mut b, id)?) {
                return Ok(Some((id.to_owned(), import)));
            }
            b.close(import.buf.number)?;
            Ok(None)
        })?;
        let before = announced(&mut b, &id)?;
        let number = wait::until("the next frame in that buffer", LIMIT, || {
            Ok(Some(announced(&mut b, &id)?).filter(|number| *number != before))
        })?;
        b.close(import.buf.number)?;
        let viewed = view(4)?;
        let is = |record: &Value| record.get("frame").and_then(Value::as_u64) == Some(number);
        ensure!(viewed.iter().any(is), "frame {number} was lost: {viewed:?}");
        camera.signal(libc::SIGTERM)?;
        let captured = records(&channel::succeeded("capture", to_its_end(camera)?)?)?;
        counted(record(&captured, "capture_summary")?, &[("mismatches", 0)])
    });
}

#[test]
fn a_frame_that_comes_back_without_its_reply_is_wrong_when_the_time_is_up() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        let mut b = vms.b.client()?;
        let line = "/bin/bufshare --json capture --to display:rw --fps 30 --frames 1 --timeout 3";
        let camera = vms.a.spawn(&words(line))?;
        let frame = b.wait_event("of a frame", |event| event.kind == "Meta")?;
        let import = b.import(&frame.id)?;
        b.close(import.buf.number)?;
        let captured = to_its_end(camera)?;
        refused(&captured, &["1 of 1 frames came back with a wrong reply"])?;
        counted(
            record(&records(&captured.stdout)?, "capture_summary")?,
            &[("returned", 1), ("replies_ok", 0), ("mismatches", 1)],
        )
    });
}

/// Looks at the frame that is announced next as a viewer does, and answers it or not.
fn look(vms: &TwoVms, events: &mut Client, answer: bool) -> Result<()> {
    let frame = events.wait_event("of a frame", |event| event.kind == "Meta")?;
    let (_, _, blob) = events.get_meta(&frame.id)?;
    let offset = blob.get(40..).and_then(<[u8]>::first_chunk);
    let offset = u64::from_le_bytes(*offset.context("no frame")?);
    // Its end releases what it has mapped.
    let mut viewer = vms.b.client()?;
    let import = viewer.import(&frame.id)?;
    if answer {
        let map = viewer.map(import.buf)?;
        let sight = viewer.poke(map, offset, blob.get(48..49).context("no reply")?)?;
        ensure!(sight == Sight::Pattern, "{sight:?}");
    }
    Ok(())
}

#[test]
fn a_frame_that_comes_back_without_its_reply_is_wrong_although_others_go_round() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        let mut b = vms.b.client()?;
        // In which a frame has to go round.
        let limit = wait::scaled(Duration::from_secs(3)).as_secs();
        let line = format!(
            "/bin/bufshare --json capture --to display:rw --fps 5 --frames 0 --timeout {limit}"
        );
        let mut camera = vms.a.spawn(&words(&line))?;
        look(vms, &mut b, false)?;
        let wrong = wait::until("the frame to be reclaimed", LIMIT, || {
            look(vms, &mut b, true)?;
            while let Some(line) = camera.try_line(Duration::ZERO)? {
                let record: Value = serde_json::from_str(&line)?;
                if record.get("reply_ok").and_then(Value::as_bool) == Some(false) {
                    return Ok(Some(record));
                }
            }
            Ok(None)
        })?;
        counted(&wrong, &[("frame", 1)])?;
        camera.signal(libc::SIGTERM)?;
        let captured = to_its_end(camera)?;
        refused(&captured, &["came back with a wrong reply"])?;
        counted(
            record(&records(&captured.stdout)?, "capture_summary")?,
            &[("mismatches", 1)],
        )
    });
}

#[test]
fn a_frame_that_comes_back_without_its_reply_is_wrong_when_the_camera_is_asked_to_stop() {
    VMS.with(|vms| {
        load_camera(vms, VIVID)?;
        let mut b = vms.b.client()?;
        let line = "/bin/bufshare --json capture --to display:rw --fps 5 --frames 0 --buffers 4";
        let mut camera = vms.a.spawn(&words(line))?;
        look(vms, &mut b, false)?;
        look(vms, &mut b, true)?;
        // It comes after what is reported of the first.
        wait::until("the second frame to be back", LIMIT, || {
            let line = camera.try_line(Duration::from_millis(100))?;
            let record: Option<Value> = line.map(|line| serde_json::from_str(&line)).transpose()?;
            Ok(record.filter(|record| member(record, "type") == Some("captured")))
        })?;
        camera.signal(libc::SIGTERM)?;
        let captured = to_its_end(camera)?;
        refused(&captured, &["1 of 2 frames came back with a wrong reply"])
    });
}

/// Of no bytes.
const HASH_OF_NOTHING: u64 = 0x2d06_8005_38d3_94c2;

/// Metadata as `capture` announces a frame of no bytes, whose reply is the buffer's first.
fn announcement(number: u64, hash: u64, reply: u8) -> Vec<u8> {
    bytes(
        64,
        &[
            (0, b"BSFR\x01\0\x40\0"),
            (8, &number.to_le_bytes()),
            (20, &[1]),
            (24, &hash.to_le_bytes()),
            (48, &[reply]),
        ],
    )
}

/// A viewer that came to a buffer between two announcements sees what it was not promised.
#[test]
fn a_frame_that_is_replaced_while_it_is_looked_at_is_not_a_wrong_one() {
    VMS.with(|vms| {
        let mut a = vms.a.client()?;
        let (_, map, export) = a.offer(4096, 1)?;
        a.poke(map, 0, &[0])?;
        a.set_meta(&export, "camera", &announcement(1, !HASH_OF_NOTHING, 7))?;
        let line = "/bin/bufshare --json view --from camera --frames 1 --verify --no-display";
        let view = vms.b.spawn(&words(line))?;
        wait::until("the viewer to attach the buffer", LIMIT, || {
            Ok((a.query(&export.id)?.attachments > 0).then_some(()))
        })?;
        a.set_meta(&export, "camera", &announcement(2, HASH_OF_NOTHING, 9))?;
        let viewed = records(&channel::succeeded("view", to_its_end(view)?)?)?;
        counted(record(&viewed, "viewed")?, &[("frame", 2)])?;
        ensure!(a.peek(map, 0, 1)?.as_deref() == Some(&[9][..]), "no reply");
        // One that stays as it is, is wrong.
        a.set_meta(&export, "camera", &announcement(3, !HASH_OF_NOTHING, 7))?;
        let ran = vms.b.run(&words(line), LIMIT)?;
        refused(&ran, &["1 of 1 frames are not what the camera sent"])
    });
}

/// Each was looked at, as its reply says, before it is announced.
#[test]
fn frames_that_are_none_do_not_keep_a_viewer_waiting() {
    VMS.with(|vms| {
        let mut a = vms.a.client()?;
        let (_, map, export) = a.offer(4096, 1)?;
        a.poke(map, 0, &[7])?;
        let line = "/bin/bufshare --json view --from camera --no-display --timeout 2";
        let mut view = vms.b.spawn(&words(line))?;
        let mut number = 0;
        let summary = wait::until("the viewer to give up", LIMIT, || {
            number += 1;
            a.set_meta(&export, "camera", &announcement(number, HASH_OF_NOTHING, 7))?;
            let line = view.try_line(Duration::from_millis(1))?;
            let record: Option<Value> = line.map(|line| serde_json::from_str(&line)).transpose()?;
            Ok(record.filter(|record| member(record, "type") == Some("view_summary")))
        })?;
        counted(&summary, &[("frames", 0)])?;
        refused(&to_its_end(view)?, &["no new frame from", "within 2 s"])
    });
}

/// Each begins its numbers anew, and has its own buffers.
#[test]
fn two_cameras_of_one_vm_are_viewed_at_once() {
    VMS.with(|vms| {
        load_camera(
            vms,
            "n_devs=2 node_types=0x1,0x1 num_inputs=1,1 input_types=0x0,0x0",
        )?;
        let mut cameras = Vec::new();
        for name in ["vivid-000-vid-cap", "vivid-001-vid-cap"] {
            let line = format!("{CAPTURE} --device {}", vms.a.video(name)?);
            cameras.push(vms.a.spawn(&words(&line))?);
        }
        let view = "/bin/bufshare --json view --from camera --frames 6 --verify --no-display";
        let viewed = vms.b.run(&words(view), LIMIT)?;
        let viewed = records(&channel::succeeded("view", viewed)?)?;
        counted(
            record(&viewed, "view_summary")?,
            &[("frames", 6), ("mismatches", 0), ("missed", 0)],
        )?;
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
                &[("frames", 3), ("mismatches", 0), ("missed", 0)],
            )?;
        }
        for producer in producers {
            let captured = records(&channel::succeeded("capture", to_its_end(producer)?)?)?;
            counted(record(&captured, "capture_summary")?, &[("replies_ok", 3)])?;
        }
        Ok(())
    });
}
