// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The demo: the camera of one VM on the screen of the other

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bufshare_tests::child;
use bufshare_tests::lab::{self, Lab};
use bufshare_tests::report;
use serde_json::Value;

/// Beyond the limits of its own.
const LIMIT: Duration = Duration::from_secs(600);

struct Demo {
    success: bool,
    table: String,
    errors: String,
    out: PathBuf,
}

fn demo(name: &str, words: &[&str]) -> Result<Demo> {
    // What is missing is a reason to skip, not to fail.
    Lab::find()?;
    let daemon = lab::daemon_program()?;
    let out = report::folder(name)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_bufshare-demo"));
    command
        .args(words)
        .arg("--out")
        .arg(&out)
        .env("BUFSHARE_DAEMON", daemon);
    let output = child::output("the demo", command, LIMIT)?;
    Ok(Demo {
        success: output.status.success(),
        table: String::from_utf8_lossy(&output.stdout).into_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        out,
    })
}

/// What a demo found out.
struct Found {
    result: Value,
    table: String,
}

impl Found {
    fn number(&self, name: &str) -> Result<u64> {
        let number = self.result.get(name).and_then(Value::as_u64);
        number.with_context(|| format!("{name} in {}", self.result))
    }

    fn text(&self, name: &str) -> Result<&str> {
        let text = self.result.get(name).and_then(Value::as_str);
        text.with_context(|| format!("{name} in {}", self.result))
    }
}

/// Runs it, and checks all that can only be right if both VMs have the same memory.
fn shares(name: &str, width: u64, height: u64, frames: u64, more: &[&str]) -> Result<Found> {
    let (count, size) = (frames.to_string(), format!("{width}x{height}"));
    let words = ["--frames", &count, "--size", &size];
    let demo = demo(name, &[&words, more].concat())?;
    ensure!(demo.success, "{}", demo.errors);
    let path = demo.out.join("result.json");
    let found = Found {
        result: serde_json::from_slice(&std::fs::read(&path)?)?,
        table: demo.table,
    };
    for name in ["frames", "replies_ok", "handovers_measured"] {
        ensure!(found.number(name)? == frames, "{name} in {}", found.result);
    }
    for name in ["hashes_match", "screen_matches", "same_memory"] {
        let value = found.result.get(name);
        ensure!(
            value == Some(&Value::Bool(true)),
            "{name} in {}",
            found.result
        );
    }
    ensure!(found.number("bytes_shared")? == frames * width * height * 4);
    // Each buffer is mapped once, whatever the number of frames.
    let maps = match found.text("way")? {
        "udmabuf" => found.number("buffers")?,
        _ => found.number("extents")?,
    };
    ensure!(found.number("vmm_maps")? == maps, "{}", found.result);
    let picture = std::fs::read(demo.out.join("screen.png"))?;
    ensure!(picture.starts_with(b"\x89PNG"), "screen.png is no picture");
    Ok(found)
}

/// The display's card reads the imported buffers.
fn is_direct(found: &Found) -> Result<()> {
    ensure!(
        found.text("screen_shows")? == "dmabuf" && found.number("screen_bytes_copied")? == 0,
        "{}",
        found.result
    );
    ensure!(
        found.table.contains("shows the imported buffers"),
        "{}",
        found.table
    );
    Ok(())
}

/// It reads copies of them, and the demo says so, with this reason.
fn is_copy(found: &Found, why: &str) -> Result<()> {
    ensure!(
        found.text("screen_shows")? == "copy" && found.number("screen_bytes_copied")? > 0,
        "{}",
        found.result
    );
    ensure!(found.text("screen_why")?.contains(why), "{}", found.result);
    ensure!(
        found.table.contains("shows copies of the frames") && found.table.contains(why),
        "{}",
        found.table
    );
    Ok(())
}

/// In a mode of the frame's size; copies only where the kernel's drivers take no
/// foreign buffers.
fn is_shown_whole(found: &Found) -> Result<()> {
    for name in ["width", "height"] {
        let screen = found.number(&format!("screen_{name}"))?;
        ensure!(screen == found.number(name)?, "{}", found.result);
    }
    if lab::series() == "stable" {
        is_copy(found, "bochs-drm /dev/dri/card0 refuses the dma-buf")
    } else {
        is_direct(found)
    }
}

#[test]
fn frames_of_the_camera_are_shown_without_a_copy() {
    report::run(|| {
        let found = shares("demo.frames", 640, 480, 10, &[])?;
        is_direct(&found)
    });
}

#[test]
fn frames_smaller_than_any_usual_screen_are_shown() {
    report::run(|| is_shown_whole(&shares("demo.160x120", 160, 120, 5, &[])?));
}

#[test]
fn frames_of_full_hd_are_shown() {
    report::run(|| is_shown_whole(&shares("demo.1920x1080", 1920, 1080, 5, &[])?));
}

#[test]
fn frames_of_ultra_hd_are_shown() {
    report::run(|| is_shown_whole(&shares("demo.3840x2160", 3840, 2160, 3, &[])?));
}

#[test]
fn frames_of_an_odd_size_are_shown() {
    report::run(|| is_shown_whole(&shares("demo.1367x769", 1367, 769, 5, &[])?));
}

#[test]
fn frames_larger_than_the_screen_are_shown_smaller() {
    report::run(|| {
        let memory = ["--screen-memory", "8"];
        let found = shares("demo.scaled", 2560, 1440, 3, &memory)?;
        let (width, height) = (
            found.number("screen_width")?,
            found.number("screen_height")?,
        );
        ensure!(width < 2560 && height < 1440, "{}", found.result);
        is_copy(&found, "bochs-drm /dev/dri/card0")
    });
}

#[test]
fn a_size_that_the_camera_does_not_have_is_an_error_that_says_so() {
    report::run(|| {
        let demo = demo("demo.size", &["--frames", "1", "--size", "6000x64"])?;
        ensure!(!demo.success, "it went well");
        for part in [
            "gives 5120x64 XR24 instead of 6000x64",
            "its driver lists 16x16 to",
        ] {
            ensure!(demo.errors.contains(part), "{}", demo.errors);
        }
        Ok(())
    });
}
