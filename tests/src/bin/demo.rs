// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two stock VMs share a camera's dma-bufs without a copy
//!
//! `scripts/demo` builds what this needs and runs it.

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use std::collections::HashMap;
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bufshare_agent::wire::{Status, Stream};
use bufshare_tests::channel::Program;
use bufshare_tests::daemon::PeerState;
use bufshare_tests::image::Picture;
use bufshare_tests::lab;
use bufshare_tests::pair::{Plan, TwoVms};
use bufshare_tests::{report, wait};
use clap::Parser;
use serde::{Deserialize, Serialize};

/// For one frame, or the start of a program, in an emulated guest.
const LIMIT: Duration = Duration::from_secs(60);
/// How long one program is listened to before the other is.
const TURN: Duration = Duration::from_millis(5);

/// Two stock VMs share a camera's dma-bufs without a copy
#[derive(Debug, Parser)]
struct Options {
    /// Frames to hand over
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    frames: u64,
    /// Pixels of a frame and of the screen
    #[arg(long, default_value = "640x480")]
    size: Size,
    /// Leave the VMs running at the end, until Enter is pressed
    #[arg(long)]
    keep_vms: bool,
    /// Show every frame
    #[arg(long)]
    verbose: bool,
    /// Where to write result.json, screen.png and the logs [default: target/demo]
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy)]
struct Size {
    width: u32,
    height: u32,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text
            .split_once('x')
            .and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
        match numbers {
            Some((width @ 1..=8192, height @ 1..=8192)) => Ok(Self { width, height }),
            _ => Err("a size is WIDTHxHEIGHT, as 640x480".to_owned()),
        }
    }
}

/// A line of the guests' programs. What is not used here is left out.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Record {
    Exported {
        id: String,
        buffer: Option<usize>,
        image: Option<Image>,
        extents: u64,
    },
    Captured {
        frame: u64,
        round_trip_us: f64,
        reply_ok: Option<bool>,
    },
    CaptureSummary(CaptureSummary),
    Viewed {
        frame: u64,
        id: String,
        hash_ok: bool,
        map_us: f64,
        map: String,
        hold_us: Option<f64>,
    },
    ViewSummary(ViewSummary),
    #[serde(other)]
    Other,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Image {
    width: u32,
    height: u32,
    stride: u32,
}

#[derive(Debug, Clone, Deserialize)]
struct CaptureSummary {
    frames: u64,
    mismatches: u64,
    sequence_gaps: u64,
    bytes_shared: u64,
    bytes_copied: u64,
}

#[derive(Debug, Clone, Deserialize)]
struct ViewSummary {
    frames: u64,
    hashes_match: bool,
    mismatches: u64,
    missed: u64,
    bytes_shared: u64,
    bytes_copied: u64,
    transports: Vec<String>,
    buffers: usize,
    first_map_us: Option<Spread>,
    repeat_map_us: Option<Spread>,
    on_screen: Option<u64>,
    seconds: f64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Spread {
    p50: f64,
}

/// What is written to result.json.
#[derive(Debug, Serialize)]
struct Outcome {
    frames: u64,
    bytes_shared: u64,
    bytes_copied: u64,
    hashes_match: bool,
    replies_ok: u64,
    screen_matches: bool,
    transport: String,
    width: u32,
    height: u32,
    buffers: usize,
    extents_max: u64,
    windows_peak: u64,
    vmm_maps: u64,
    map_requests: u64,
    map_cached: u64,
    first_map_us: Option<f64>,
    repeat_map_us: Option<f64>,
    handover_us_p50: Option<f64>,
    handover_us_p99: Option<f64>,
    handovers_measured: usize,
    camera_frames_skipped: u64,
    seconds: f64,
    boot_seconds: f64,
    accel: String,
    qemu: String,
    guest_kernel: String,
}

/// What a guest's program has told.
#[derive(Debug, Default)]
struct Told {
    exported: Vec<(String, usize, Image)>,
    extents_max: u64,
    round_trips: HashMap<u64, f64>,
    replies_ok: u64,
    holds: HashMap<u64, f64>,
    last: Option<(u64, String)>,
    capture: Option<CaptureSummary>,
    view: Option<ViewSummary>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let out = options
        .out
        .clone()
        .unwrap_or_else(|| lab::target().join("demo"));
    let logs = out.join("logs");
    let started = Instant::now();
    match prepare(&logs).and_then(|()| run(&options, &out, &logs, started)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: error: {error:#}");
            let tails = report::tails(&logs);
            if !tails.is_empty() {
                eprintln!("{tails}\n---- demo: error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn prepare(logs: &Path) -> Result<()> {
    if logs.exists() {
        std::fs::remove_dir_all(logs).with_context(|| format!("emptying {}", logs.display()))?;
    }
    std::fs::create_dir_all(logs).with_context(|| format!("making {}", logs.display()))
}

fn run(options: &Options, out: &Path, logs: &Path, started: Instant) -> Result<()> {
    let say = |text: &str| eprintln!("demo: [{:5.1} s] {text}", started.elapsed().as_secs_f64());
    let Size { width, height } = options.size;
    // The host confines what it shares if it can; else the camera's VM lends its RAM.
    let confined = Path::new("/dev/udmabuf").exists();
    say("starting the daemon and two VMs");
    let plan = Plan::named("camera", "display")
        .options(&["--allow", "camera:display:rw"])
        .both(|machine| machine.screen = (width, height))
        .first(|machine| machine.ram_fd = !confined)
        .second(|machine| {
            machine.ram_fd = false;
            machine.modules.push("bochs".to_owned());
        });
    let mut vms = TwoVms::boot(plan, logs)?;
    vms.a
        .load("vivid", "n_devs=1 node_types=0x1 allocators=1")?;
    say(&format!(
        "both are up: Linux {}, QEMU {}",
        vms.ready_a.kernel,
        vms.lab().qemu_version
    ));

    let frames = options.frames.to_string();
    let size = format!("{width}x{height}");
    let mut view = vms.b.spawn(&[
        "/bin/bufshare",
        "--json",
        "view",
        "--from",
        "camera",
        "--frames",
        &frames,
        "--hold",
    ])?;
    let mut capture = vms.a.spawn(&[
        "/bin/bufshare",
        "--json",
        "capture",
        "--to",
        "display:rw",
        "--size",
        &size,
        "--frames",
        &frames,
        "--hold",
    ])?;
    let mut told = Told::default();
    say(&format!("camera: capturing {size}, display: showing"));
    let camera = Teller {
        who: "camera",
        program: &mut capture,
        done: |told, _| told.capture.is_some(),
    };
    let display = Teller {
        who: "display",
        program: &mut view,
        done: |told, _| told.view.is_some(),
    };
    follow(options, &mut told, &mut [camera, display], say)?;

    // The last frame is still on the screen and still exported.
    let peer = display_state(&mut vms)?;
    let screen = vms.b.screen()?;
    screen.write_png(&out.join("screen.png"))?;
    let last = last_frame(&mut vms, &told, capture.pid())
        .context("reading the last frame from the camera's memory")?;
    let same = last.same_as(&screen);
    say("display: the screen is saved");

    release(options, &mut told, &mut capture, &mut view)?;
    if options.keep_vms {
        eprintln!(
            "demo: the VMs run; logs are in {}; Enter ends them",
            logs.display()
        );
        std::io::stdin().lock().read_line(&mut String::new())?;
    }
    let outcome = outcome(&told, &vms, &peer, options.size, same.is_ok())?;
    let text = serde_json::to_string_pretty(&outcome)?;
    std::fs::write(out.join("result.json"), text + "\n")?;
    vms.finish().context("at the end")?;
    print_table(&outcome, out)?;
    same.context("the screen does not show the camera's last frame")?;
    judge(options, &outcome, &told)
}

/// A program in a guest, and whether it has told all.
struct Teller<'a> {
    who: &'a str,
    program: &'a mut Program,
    done: fn(&Told, &Options) -> bool,
}

/// Read the programs' output until each has told all. The first that fails ends it.
fn follow(
    options: &Options,
    told: &mut Told,
    tellers: &mut [Teller<'_>],
    say: impl Fn(&str),
) -> Result<()> {
    let mut since = Instant::now();
    loop {
        let mut waiting = Vec::new();
        for Teller { who, program, done } in &mut *tellers {
            if done(told, options) {
                continue;
            }
            waiting.push(*who);
            while let Some(line) = program.try_line(TURN).with_context(|| (*who).to_owned())? {
                since = Instant::now();
                let record =
                    serde_json::from_str(&line).with_context(|| format!("{who}: {line}"))?;
                if let Some(text) = note(told, record, options) {
                    say(&format!("{who}: {text}"));
                }
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        let limit = wait::scaled(LIMIT);
        ensure!(
            since.elapsed() < limit,
            "{} told nothing for {limit:?}",
            waiting.join(" and ")
        );
    }
}

/// Keep what a program said; perhaps there is something to tell of it.
fn note(told: &mut Told, record: Record, options: &Options) -> Option<String> {
    // About ten lines for all frames together.
    let worth = |frame: u64| {
        options.verbose || frame.is_multiple_of(options.frames.div_ceil(10)) || frame == 1
    };
    match record {
        Record::Exported {
            id,
            buffer: Some(buffer),
            image: Some(image),
            extents,
        } => {
            told.extents_max = told.extents_max.max(extents);
            told.exported.push((id.clone(), buffer, image));
            Some(format!(
                "buffer {buffer} exported as {id}, {extents} pieces"
            ))
        }
        Record::Captured {
            frame,
            round_trip_us,
            reply_ok,
        } => {
            told.round_trips.insert(frame, round_trip_us);
            told.replies_ok += u64::from(reply_ok == Some(true));
            let reply = match reply_ok {
                Some(true) => "the display's reply read",
                Some(false) => "WRONG reply",
                None => "no reply asked for",
            };
            options
                .verbose
                .then(|| format!("frame {frame} back after {round_trip_us:.0} us, {reply}"))
        }
        Record::Viewed {
            frame,
            id,
            hash_ok,
            map_us,
            map,
            hold_us,
        } => {
            if let Some(hold) = hold_us {
                told.holds.insert(frame, hold);
            }
            told.last = Some((frame, id));
            let verdict = if hash_ok {
                "hash matches"
            } else {
                "WRONG HASH"
            };
            (worth(frame) || !hash_ok)
                .then(|| format!("frame {frame}: {verdict}, {map} map {map_us:.0} us"))
        }
        Record::CaptureSummary(summary) => {
            told.capture = Some(summary);
            None
        }
        Record::ViewSummary(summary) => {
            told.view = Some(summary);
            None
        }
        Record::Exported { .. } | Record::Other => None,
    }
}

/// The camera's own memory of the frame that is on the screen.
fn last_frame(vms: &mut TwoVms, told: &Told, pid: i32) -> Result<Picture> {
    let (frame, id) = told.last.as_ref().context("no frame was shown")?;
    let shown = told.view.as_ref().and_then(|view| view.on_screen);
    ensure!(
        shown == Some(*frame),
        "frame {shown:?} is on the screen, {frame} was viewed last"
    );
    let found = told.exported.iter().find(|(other, _, _)| other == id);
    let (_, buffer, image) = found.with_context(|| format!("the camera did not export {id}"))?;
    let mut hand = vms.a.hand()?;
    let buf = hand.adopt(pid, *buffer)?;
    let map = hand.map_with(buf, false)?;
    let len = u64::from(image.stride) * u64::from(image.height);
    let memory = hand
        .peek(map, 0, len)?
        .context("the camera's buffer is gone")?;
    Picture::from_xrgb(&memory, image.width, image.height, image.stride)
}

/// Let the display go of the last frame, then the camera, and wait for their ends.
fn release(
    options: &Options,
    told: &mut Told,
    capture: &mut Program,
    view: &mut Program,
) -> Result<()> {
    end("display", options, told, view)?;
    // The camera tells of the last frame before it is told to end.
    let camera = Teller {
        who: "camera",
        program: &mut *capture,
        done: |told, options| told.round_trips.contains_key(&options.frames),
    };
    follow(options, told, &mut [camera], |_| {})?;
    end("camera", options, told, capture)
}

fn end(who: &str, options: &Options, told: &mut Told, program: &mut Program) -> Result<()> {
    program.write("\n")?;
    let mut errors = String::new();
    let status = program.end(LIMIT, |stream, line| match serde_json::from_str(&line) {
        Ok(record) if stream == Stream::Out => {
            note(told, record, options);
        }
        _ => errors.push_str(&line),
    })?;
    ensure!(
        status == Status::Exit(0),
        "{who}: its program ended badly: {status:?} {errors}"
    );
    Ok(())
}

fn display_state(vms: &mut TwoVms) -> Result<PeerState> {
    vms.daemon()?.snapshot()?.peer("display").cloned()
}

fn outcome(
    told: &Told,
    vms: &TwoVms,
    peer: &PeerState,
    size: Size,
    screen_matches: bool,
) -> Result<Outcome> {
    let (Some(capture), Some(view)) = (&told.capture, &told.view) else {
        bail!("a program told no summary")
    };
    let mut handovers: Vec<f64> = told
        .round_trips
        .iter()
        .filter_map(|(frame, trip)| Some((trip - told.holds.get(frame)?) / 2.0))
        .collect();
    handovers.sort_by(f64::total_cmp);
    let version = vms
        .b
        .qmp()
        .execute("query-version", serde_json::json!({}))?;
    let part = |name: &str| {
        version
            .pointer(&format!("/qemu/{name}"))
            .map(ToString::to_string)
            .unwrap_or_default()
    };
    Ok(Outcome {
        frames: view.frames,
        bytes_shared: view.bytes_shared.min(capture.bytes_shared),
        bytes_copied: peer.copied_bytes + view.bytes_copied.max(capture.bytes_copied),
        hashes_match: view.hashes_match && view.mismatches == 0,
        replies_ok: told.replies_ok,
        screen_matches,
        transport: view.transports.join("+"),
        width: size.width,
        height: size.height,
        buffers: view.buffers,
        extents_max: told.extents_max,
        windows_peak: peer.windows_peak,
        vmm_maps: peer.vmm_maps,
        map_requests: peer.map_requests,
        map_cached: peer.map_cached,
        first_map_us: view.first_map_us.map(|spread| spread.p50),
        repeat_map_us: view.repeat_map_us.map(|spread| spread.p50),
        handover_us_p50: percentile(&handovers, 50),
        handover_us_p99: percentile(&handovers, 99),
        handovers_measured: handovers.len(),
        camera_frames_skipped: capture.sequence_gaps,
        seconds: view.seconds,
        boot_seconds: (vms.boot_time.as_secs_f64() * 10.0).round() / 10.0,
        accel: vms.lab().accel.clone(),
        qemu: format!("{}.{}.{}", part("major"), part("minor"), part("micro")),
        guest_kernel: vms.ready_b.kernel.clone(),
    })
}

fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted
        .get(rank - 1)
        .map(|value| (value * 10.0).round() / 10.0)
}

/// Everything that has to be right, or why not.
fn judge(options: &Options, outcome: &Outcome, told: &Told) -> Result<()> {
    let (Some(capture), Some(view)) = (&told.capture, &told.view) else {
        bail!("a program told no summary")
    };
    let wanted = options.frames;
    ensure!(
        capture.frames == wanted,
        "the camera handed over {} of {wanted} frames",
        capture.frames
    );
    ensure!(
        outcome.frames == wanted,
        "the display saw {} of {wanted} frames",
        outcome.frames
    );
    ensure!(
        view.missed == 0,
        "the display missed {} frames",
        view.missed
    );
    ensure!(
        outcome.hashes_match,
        "{} frames arrived wrong",
        view.mismatches
    );
    ensure!(
        capture.mismatches == 0,
        "{} replies of the display were wrong",
        capture.mismatches
    );
    ensure!(
        outcome.replies_ok == wanted,
        "{} of {wanted} replies were read",
        outcome.replies_ok
    );
    ensure!(
        outcome.bytes_copied == 0,
        "{} bytes were copied",
        outcome.bytes_copied
    );
    Ok(())
}

fn print_table(outcome: &Outcome, out: &Path) -> Result<()> {
    let micros =
        |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.0} us"));
    let rows = [
        (
            "frames",
            format!(
                "{} of {}x{} in {:.1} s",
                outcome.frames, outcome.width, outcome.height, outcome.seconds
            ),
        ),
        (
            "hashes",
            if outcome.hashes_match {
                "all match"
            } else {
                "WRONG"
            }
            .to_owned(),
        ),
        (
            "replies",
            format!("{} read by the camera", outcome.replies_ok),
        ),
        (
            "screen",
            if outcome.screen_matches {
                "shows the last frame"
            } else {
                "WRONG"
            }
            .to_owned(),
        ),
        ("bytes shared", outcome.bytes_shared.to_string()),
        ("bytes copied", outcome.bytes_copied.to_string()),
        ("transport", outcome.transport.clone()),
        (
            "windows",
            format!(
                "{} at most, {} mappings asked of QEMU",
                outcome.windows_peak, outcome.vmm_maps
            ),
        ),
        ("first map", micros(outcome.first_map_us)),
        ("repeated map", micros(outcome.repeat_map_us)),
        (
            "handover",
            format!(
                "{} median, {} p99",
                micros(outcome.handover_us_p50),
                micros(outcome.handover_us_p99)
            ),
        ),
        (
            "machines",
            format!(
                "QEMU {} ({}), Linux {}",
                outcome.qemu, outcome.accel, outcome.guest_kernel
            ),
        ),
        ("boot", format!("{:.1} s for both", outcome.boot_seconds)),
        (
            "written",
            format!("{}/result.json, screen.png", out.display()),
        ),
    ];
    let mut stdout = std::io::stdout().lock();
    for (name, value) in rows {
        writeln!(stdout, "{name:<14} {value}")?;
    }
    Ok(())
}
