// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The demo: the camera of one VM on the screen of the other

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use bufshare_tests::lab::{self, Lab};
use bufshare_tests::report;
use serde_json::Value;

struct Demo {
    success: bool,
    errors: String,
    out: PathBuf,
}

fn demo(name: &str, words: &[&str]) -> Result<Demo> {
    // What is missing is a reason to skip, not to fail.
    Lab::find()?;
    let daemon = lab::daemon_program()?;
    let out = report::folder(name)?;
    let output = Command::new(env!("CARGO_BIN_EXE_bufshare-demo"))
        .args(words)
        .arg("--out")
        .arg(&out)
        .env("BUFSHARE_DAEMON", daemon)
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(Demo {
        success: output.status.success(),
        errors,
        out,
    })
}

#[test]
fn frames_of_the_camera_are_shown_without_a_copy() {
    report::run(|| {
        let demo = demo("demo.frames", &["--frames", "10"])?;
        ensure!(demo.success, "{}", demo.errors);
        let path = demo.out.join("result.json");
        let result: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        let number = |name: &str| {
            result
                .get(name)
                .and_then(Value::as_u64)
                .with_context(|| format!("{name} in {result}"))
        };
        ensure!(number("frames")? == 10 && number("replies_ok")? == 10);
        ensure!(number("bytes_copied")? == 0);
        ensure!(number("bytes_shared")? == 10 * 640 * 480 * 4);
        ensure!(number("handovers_measured")? == 10);
        // Each buffer is mapped once, whatever the number of frames.
        ensure!(
            number("vmm_maps")? == number("buffers")?,
            "{} mappings",
            number("vmm_maps")?
        );
        for name in ["hashes_match", "screen_matches"] {
            ensure!(result.get(name) == Some(&Value::Bool(true)), "{name}");
        }
        let picture = std::fs::read(demo.out.join("screen.png"))?;
        ensure!(picture.starts_with(b"\x89PNG"), "screen.png is no picture");
        Ok(())
    });
}

#[test]
fn a_size_that_the_camera_does_not_have_is_an_error_that_says_so() {
    report::run(|| {
        let demo = demo("demo.size", &["--frames", "1", "--size", "648x480"])?;
        ensure!(!demo.success, "it went well");
        ensure!(
            demo.errors.contains("instead of 648x480"),
            "{}",
            demo.errors
        );
        Ok(())
    });
}
