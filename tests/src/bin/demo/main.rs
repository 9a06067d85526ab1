// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two stock VMs share a camera's dma-bufs without a copy
//!
//! `scripts/demo` builds what this needs and runs it.

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

mod outcome;
mod records;

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use bufshare_agent::wire::{Status, Stream};
use bufshare_tests::channel::Program;
use bufshare_tests::image::Picture;
use bufshare_tests::lab;
use bufshare_tests::pair::{Plan, TwoVms};
use bufshare_tests::vm::CARD;
use bufshare_tests::{report, wait};
use clap::Parser;

use crate::outcome::{Evidence, Outcome};
use crate::records::{Exported, Records, Verbosity};

/// For one frame, or the start of a program, in an emulated guest.
const LIMIT: Duration = Duration::from_secs(60);
/// How long one program is listened to before the other is.
const TURN: Duration = Duration::from_millis(5);

/// In a folder of the user's choice, where another `logs` may be theirs.
const LOGS: &str = "demo-logs";

/// Buffers in rotation.
const BUFFERS: u32 = 4;
const PIXEL: u64 = 4;
const MIB: u64 = 1 << 20;

/// The sizes of vivid's webcam, which is slow enough to be measured. Its HDMI input
/// has a scaler and so any size, but 60 pictures a second.
const WEBCAM: [Size; 6] = [
    Size::new(320, 180),
    Size::new(640, 360),
    Size::new(640, 480),
    Size::new(1280, 720),
    Size::new(1920, 1080),
    Size::new(3840, 2160),
];

/// QEMU's name of the second card. Linux 6.12 can show foreign buffers on no other.
const SECOND_CARD: &str = "cirrus";

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
    /// Where to write result.json, screen.png and demo-logs/ [default: target/demo]
    #[arg(long)]
    out: Option<PathBuf>,
    /// For tests: MiB of the screen's memory, which limits its size
    #[arg(long, hide = true)]
    screen_memory: Option<u32>,
}

/// Pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    width: u32,
    height: u32,
}

impl Size {
    const fn new(width: u32, height: u32) -> Self {
        Self { width, height }
    }

    /// Of a frame.
    fn bytes(self) -> u64 {
        u64::from(self.width) * u64::from(self.height) * PIXEL
    }

    /// Parameters of vivid for a camera that has this size.
    fn vivid(self) -> &'static str {
        if WEBCAM.contains(&self) {
            "n_devs=1 node_types=0x1 num_inputs=1 input_types=0x0"
        } else {
            "n_devs=1 node_types=0x1 num_inputs=1 input_types=0x3 ccs_cap_mode=4"
        }
    }

    /// MiB of memory of a screen of this size: Linux 6.12 wants twice that of a
    /// picture, and has one of its own there.
    fn screen_memory(self) -> u32 {
        let mib = (4 * self.bytes()).div_ceil(MIB).next_power_of_two();
        u32::try_from(mib.clamp(16, 256)).unwrap_or(256)
    }

    /// MiB of RAM that a guest needs for the frames, once for each buffer of the
    /// camera and once more, lest the pieces get small.
    fn guest_memory(self) -> u32 {
        let mib = (2 * u64::from(BUFFERS) * self.bytes()).div_ceil(MIB);
        u32::try_from(mib).unwrap_or(u32::MAX)
    }

    /// MiB of a region with windows on all buffers.
    fn region(self) -> u64 {
        let mib = (2 * u64::from(BUFFERS) * self.bytes()).div_ceil(MIB);
        mib.next_power_of_two().max(256)
    }

    /// Whether the second card shows it as it is: its lines have less than 4096 bytes,
    /// of three for a pixel, and all together 4 MiB; its driver makes colours coarser
    /// to keep to that.
    fn suits_second_card(self) -> bool {
        let line = u64::from(self.width) * 3;
        self.width.is_multiple_of(8) && line < 4096 && line * u64::from(self.height) <= 4 * MIB
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text
            .split_once('x')
            .and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
        match numbers {
            // Smaller ones QEMU's screen does not have.
            Some((width @ 64..=8192, height @ 64..=8192)) => Ok(Self { width, height }),
            _ => Err("a size is WIDTHxHEIGHT, from 64x64 on, as 640x480".to_owned()),
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let out = options
        .out
        .clone()
        .unwrap_or_else(|| lab::target().join("demo"));
    let started = Instant::now();
    match prepare(&out).and_then(|logs| run(&options, &out, &logs, started)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: error: {error:#}");
            let tails = report::tails(&out.join(LOGS));
            if !tails.is_empty() {
                eprintln!("{tails}\n---- demo: error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Make the folder of the logs in `out`, without those of an earlier demo.
fn prepare(out: &Path) -> Result<PathBuf> {
    let logs = out.join(LOGS);
    if logs.exists() {
        std::fs::remove_dir_all(&logs).with_context(|| format!("emptying {}", logs.display()))?;
    }
    std::fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
    Ok(logs)
}

fn run(options: &Options, out: &Path, logs: &Path, started: Instant) -> Result<()> {
    let say = |text: &str| eprintln!("demo: [{:5.1} s] {text}", started.elapsed().as_secs_f64());
    let size = options.size;
    say("starting the daemon and two VMs");
    let mut vms = TwoVms::boot(plan(options), logs)?;
    vms.a.load("vivid", size.vivid())?;
    say(&format!(
        "both are up: Linux {}, QEMU {}",
        vms.ready_a.kernel,
        vms.lab().qemu_version
    ));

    let frames = options.frames.to_string();
    let pixels = format!("{}x{}", size.width, size.height);
    let buffers = BUFFERS.to_string();
    let words = ["/bin/bufshare", "--json", "view", "--from", "camera"];
    let mut view = vms
        .b
        .spawn(&[&words[..], &["--frames", &frames, "--verify", "--hold"]].concat())?;
    let words = ["/bin/bufshare", "--json", "capture", "--to", "display:rw"];
    let camera = ["--size", &pixels, "--buffers", &buffers];
    let mut capture = vms.a.spawn(
        &[
            &words[..],
            &camera,
            &["--frames", &frames, "--verify", "--hold"],
        ]
        .concat(),
    )?;
    let mut records = Records::default();
    say(&format!("camera: capturing {pixels}, display: showing"));
    let camera = Teller {
        who: "camera",
        program: &mut capture,
        done: |records, _| records.capture().is_some(),
    };
    let display = Teller {
        who: "display",
        program: &mut view,
        done: |records, _| records.view().is_some(),
    };
    follow(options, &mut records, &mut [camera, display], say)?;

    // The last frame is still on the screen and still exported.
    let evidence = gather(&mut vms, &records, out, (capture.pid(), view.pid()))?;
    say("display: the screen is saved");

    release(options, &mut records, &mut capture, &mut view)?;
    let outcome = Outcome::new(&records, &vms, &evidence, size)?;
    let text = serde_json::to_string_pretty(&outcome)?;
    std::fs::write(out.join("result.json"), text + "\n")?;
    outcome.print(&records, out)?;
    if options.keep_vms {
        eprintln!(
            "demo: the VMs run; logs are in {}; Enter ends them",
            logs.display()
        );
        std::io::stdin().lock().read_line(&mut String::new())?;
    }
    vms.finish().context("at the end")?;
    evidence
        .screen
        .context("the screen does not show the camera's last frame")?;
    evidence.memory.context("the VMs do not share the memory")?;
    outcome.judge(&records, options.frames)
}

/// The daemon and the VMs.
fn plan(options: &Options) -> Plan {
    let size = options.size;
    // The host confines what it shares if it can; else the camera's VM lends its RAM.
    let confined = lab::has_udmabuf();
    let region = format!("{}M", size.region());
    Plan::named("camera", "display")
        .options(&["--allow", "camera:display:rw", "--shm-size", &region])
        // The largest frames are in many pieces, and there are no other vhost devices.
        .options(&["--max-windows", "256"])
        .both(|machine| machine.memory += size.guest_memory())
        .first(|machine| machine.ram_fd = !confined)
        .second(|machine| {
            machine.ram_fd = false;
            machine.screen = (size.width, size.height);
            machine.screen_memory = options
                .screen_memory
                .unwrap_or_else(|| size.screen_memory());
            // The first is tried first.
            machine.modules.push(CARD.to_owned());
            if size.suits_second_card() {
                machine.modules.push(SECOND_CARD.to_owned());
                let device = format!("cirrus-vga,id={SECOND_CARD}");
                machine.qemu.extend(["-device".to_owned(), device]);
            }
        })
}

/// A program in a guest, and whether it has reported all.
struct Teller<'a> {
    who: &'a str,
    program: &'a mut Program,
    done: fn(&Records, &Options) -> bool,
}

impl Options {
    fn verbosity(&self) -> Verbosity {
        Verbosity {
            frames: self.frames,
            all: self.verbose,
        }
    }
}

/// Read the programs' output until each has reported all. The first that fails ends it.
fn follow(
    options: &Options,
    records: &mut Records,
    tellers: &mut [Teller<'_>],
    say: impl Fn(&str),
) -> Result<()> {
    let mut since = Instant::now();
    loop {
        let mut waiting = Vec::new();
        for Teller { who, program, done } in &mut *tellers {
            if done(records, options) {
                continue;
            }
            waiting.push(*who);
            while let Some(line) = program.try_line(TURN).with_context(|| (*who).to_owned())? {
                since = Instant::now();
                let text = records.note(&line, options.verbosity());
                if let Some(text) = text.with_context(|| (*who).to_owned())? {
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
            "{} printed nothing for {limit:?}",
            waiting.join(" and ")
        );
    }
}

/// Look at what can only be right if the display has the camera's own memory.
fn gather(
    vms: &mut TwoVms,
    records: &Records,
    out: &Path,
    (capture, view): (i32, i32),
) -> Result<Evidence> {
    let peer = vms.daemon()?.snapshot()?.peer("display").cloned()?;
    let shown = records.screen.as_ref().context("no screen was chosen")?;
    let card = [CARD, SECOND_CARD]
        .into_iter()
        .find(|card| shown.driver.starts_with(card))
        .with_context(|| format!("no card of driver {} was given", shown.driver))?;
    let screen = vms.b.screen_of(card)?;
    screen.write_png(&out.join("screen.png"))?;
    let export = records.on_screen()?;
    let last = camera_frame(vms, export, capture)
        .context("reading the last frame from the camera's memory")?;
    Ok(Evidence {
        peer,
        screen: last.on_screen(screen.width, screen.height).same_as(&screen),
        memory: same_memory(vms, export, (capture, view)),
    })
}

/// The camera's own memory of a frame.
fn camera_frame(vms: &TwoVms, export: &Exported, capture: i32) -> Result<Picture> {
    /// Bytes that are fetched at a time.
    const PART: u64 = 4 * MIB;
    let mut client = vms.a.client()?;
    let buf = client.adopt(capture, export.buffer)?;
    let map = client.map_with(buf, false)?;
    let image = export.image;
    let len = u64::from(image.stride) * u64::from(image.height);
    let mut memory = Vec::new();
    let mut at = 0;
    while at < len {
        let part = PART.min(len - at);
        let bytes = client.peek(map, at, part)?;
        memory.extend(bytes.context("the camera's buffer is gone")?);
        at += part;
    }
    Picture::from_xrgb(&memory, image.width, image.height, image.stride)
}

/// Write into the frame in each VM, and read that in the other.
fn same_memory(vms: &TwoVms, export: &Exported, (capture, view): (i32, i32)) -> Result<()> {
    let (mut camera, mut display) = (vms.a.client()?, vms.b.client()?);
    let buf = camera.adopt(capture, export.buffer)?;
    let ours = camera.map(buf)?;
    // What no earlier run can have left there.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let mark = now.as_nanos().to_le_bytes();
    let len = mark.len() as u64;
    camera.poke(ours, 0, &mark)?;
    // It has imported all of the camera's buffers, in whatever order.
    let mut theirs = None;
    for index in 0..BUFFERS as usize {
        let buf = display.adopt(view, index)?;
        let map = display.map(buf)?;
        if display.peek(map, 0, len)?.as_deref() == Some(&mark[..]) {
            theirs = Some(map);
        }
    }
    let theirs = theirs.context("the display does not read what the camera's VM wrote")?;
    let mark = mark.map(|byte| !byte);
    display.poke(theirs, len, &mark)?;
    ensure!(
        camera.peek(ours, len, len)?.as_deref() == Some(&mark[..]),
        "the camera's VM does not read what the display wrote"
    );
    Ok(())
}

/// Have the display release the last frame, then the camera, and wait for their ends.
fn release(
    options: &Options,
    records: &mut Records,
    capture: &mut Program,
    view: &mut Program,
) -> Result<()> {
    end("display", options, records, view)?;
    // The camera reports the last frame before it is asked to end.
    let camera = Teller {
        who: "camera",
        program: &mut *capture,
        done: |records, options| records.round_trips.len() as u64 == options.frames,
    };
    follow(options, records, &mut [camera], |_| {})?;
    end("camera", options, records, capture)
}

fn end(who: &str, options: &Options, records: &mut Records, program: &mut Program) -> Result<()> {
    program.write("\n")?;
    let mut errors = String::new();
    let status = program.end(LIMIT, |stream, line| {
        if stream != Stream::Out || records.note(&line, options.verbosity()).is_err() {
            errors.push_str(&line);
        }
    })?;
    ensure!(
        status == Status::Exit(0),
        "{who}: its program ended badly: {status:?} {errors}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_logs_of_an_earlier_demo_are_removed() {
        let out = tempfile::tempdir().unwrap();
        let theirs = out.path().join("logs/file");
        std::fs::create_dir(out.path().join("logs")).unwrap();
        std::fs::write(&theirs, "").unwrap();
        let earlier = prepare(out.path()).unwrap().join("earlier.log");
        std::fs::write(&earlier, "").unwrap();
        prepare(out.path()).unwrap();
        assert!(theirs.exists(), "{}", theirs.display());
        assert!(!earlier.exists(), "{}", earlier.display());
    }

    #[test]
    fn a_size_has_room() {
        for (size, screen, guest, region) in [
            (Size::new(640, 480), 16, 10, 256),
            (Size::new(1920, 1080), 32, 64, 256),
            (Size::new(3840, 2160), 128, 254, 256),
            (Size::new(5120, 2880), 256, 450, 512),
        ] {
            assert_eq!(size.screen_memory(), screen, "{size:?}");
            assert_eq!(size.guest_memory(), guest, "{size:?}");
            assert_eq!(size.region(), region, "{size:?}");
        }
    }

    #[test]
    fn the_second_card_is_for_what_it_shows_exactly() {
        assert!(Size::new(640, 480).suits_second_card());
        assert!(Size::new(1280, 720).suits_second_card());
        assert!(!Size::new(1366, 768).suits_second_card());
        assert!(!Size::new(1920, 1080).suits_second_card());
        assert!(!Size::new(161, 121).suits_second_card());
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!("1920x1080".parse(), Ok(Size::new(1920, 1080)));
        for text in ["", "640", "640x", "0x480", "32x32", "640x9000", "a x b"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
