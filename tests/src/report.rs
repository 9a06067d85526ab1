// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Log folders, skips, the health of the guests' kernels

use std::any::Any;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::{faults, lab};

/// Environment variable: what cannot run is a failure.
pub const REQUIRE: &str = "BUFSHARE_REQUIRE_VM";

/// Begins each log that a failure shows, after the error.
pub(crate) const LOGS: &str = "\n---- ";

/// Part of the error by which a test fails when a guest's kernel is not well.
pub(crate) const COMPLAINED: &str = "complained";

/// Lines of each log that a failure shows.
const SHOWN: usize = 40;

/// A kernel that says one of these is not well: one a line, after comments.
const BAD: &str = include_str!("../guest/complaints.list");

/// Why a test cannot run here.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Skip {
    reason: String,
    /// Somebody can do something about it.
    fixable: bool,
}

impl Skip {
    /// Something is missing that a script makes; the reason says which.
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            fixable: true,
        }
    }

    /// This guest kernel or VMM cannot do it at all: a failure unless tests/kernels.toml
    /// says that it may be so.
    pub fn impossible(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            fixable: false,
        }
    }

    pub(crate) fn is_fixable(&self) -> bool {
        self.fixable
    }
}

/// Make the empty log folder of a test.
///
/// # Errors
/// From the file system.
pub fn folder(name: &str) -> Result<PathBuf> {
    let logs = lab::target().join("test-logs").join(lab::series());
    let folder = logs.join(name);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("emptying {}", folder.display()));
        }
        _ => {}
    }
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

/// Make the log folder of a test that has no VMs of its own a link to theirs.
///
/// # Errors
/// From the file system.
pub(crate) fn link(name: &str, logs: &Path) -> Result<()> {
    let folder = folder(name)?;
    let to = logs.file_name().context("the VMs' logs have no folder")?;
    let linked = fs::remove_dir(&folder).and_then(|()| symlink(to, &folder));
    linked.with_context(|| format!("linking {}", folder.display()))
}

/// Last part of a function's path.
#[must_use]
pub fn name_of<F>(_: &F) -> String {
    let path = std::any::type_name::<F>().replace("::{{closure}}", "");
    path.replace("::", ".")
}

/// Run a test and turn what came of it into a pass, a skip or a panic.
///
/// # Panics
/// When it failed, or could not run although it had to.
pub fn run<F: FnOnce() -> Result<()>>(body: F) {
    let name = name_of(&body);
    let result = catch(body);
    conclude(&name, result);
}

/// A panic is an error too. An error says first which line of the test it comes from.
#[inline(never)]
pub(crate) fn catch(body: impl FnOnce() -> Result<()>) -> Result<()> {
    let result = catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|panic| Err(anyhow::anyhow!("panicked: {}", text_of(&*panic))));
    result.map_err(|error| {
        let lines = lines_of_test(&error.backtrace().to_string());
        if lines.is_empty() || error.is::<Skip>() {
            return error;
        }
        error.context(format!("at {}", lines.join(", from ")))
    })
}

/// The lines in `tests/tests` of an error's backtrace, the innermost first, as far as
/// [`catch`]. There are none unless `RUST_LIB_BACKTRACE` is 1: .cargo/config.toml sets it.
fn lines_of_test(backtrace: &str) -> Vec<String> {
    // It shows what is in the current folder as './FILE:LINE:COLUMN'.
    let current = std::env::current_dir().unwrap_or_default();
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut lines = Vec::new();
    for line in backtrace.lines().map(str::trim) {
        if line.contains("bufshare_tests::report::catch") {
            break;
        }
        let place = line.strip_prefix("at ").map(|place| current.join(place));
        let place = place.as_deref().and_then(|place| {
            let place = place.strip_prefix(crate_folder).ok()?;
            place.starts_with("tests").then(|| place.to_str())?
        });
        if let Some((place, _column)) = place.and_then(|place| place.rsplit_once(':')) {
            lines.push(format!("tests/{place}"));
        }
    }
    lines.dedup();
    lines
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default()
}

#[allow(clippy::panic, reason = "this is how a test fails")]
pub(crate) fn conclude(name: &str, result: Result<()>) {
    let Err(error) = faults::judge(name, result) else {
        return;
    };
    let Some(skip) = error.downcast_ref::<Skip>() else {
        panic!("{name}: {error:#}");
    };
    let required = skip.is_fixable() && std::env::var(REQUIRE).as_deref() == Ok("1");
    assert!(!required, "{name}: could not run, and {REQUIRE}=1: {skip}");
    // Not with eprintln, which the test harness swallows.
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {skip}");
    let list = lab::target().join("test-logs/skipped");
    let _ = fs::create_dir_all(lab::target().join("test-logs"));
    let file = fs::OpenOptions::new().create(true).append(true).open(list);
    let _ = file.and_then(|mut file| writeln!(file, "{name}: {skip}"));
}

/// The ends of all logs in a folder.
#[must_use]
pub fn tails(folder: &Path) -> String {
    let mut text = String::new();
    let Ok(entries) = fs::read_dir(folder) else {
        return text;
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if !(name.ends_with(".log") || name.ends_with(".console") || name.ends_with(".jsonl")) {
            continue;
        }
        let bytes = fs::read(&path).unwrap_or_default();
        let all = String::from_utf8_lossy(&bytes);
        let mut last = VecDeque::new();
        for line in all.lines() {
            if last.len() == SHOWN {
                last.pop_front();
            }
            last.push_back(line);
        }
        let _ = write!(text, "{LOGS}{}", path.display());
        for line in last {
            let cut: String = line.chars().take(400).collect();
            let _ = write!(text, "\n{cut}");
        }
    }
    text
}

/// What a console shows, beginning at byte `from`.
///
/// # Errors
/// When it cannot be read.
pub fn console(path: &Path, from: usize) -> Result<Vec<u8>> {
    let mut bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(bytes.split_off(from.min(bytes.len())))
}

/// What a kernel should not have said, in this part of its console.
#[must_use]
pub fn complaints(console: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(console);
    let late = late_cameras(&text);
    let words = || BAD.lines().filter(|word| !word.starts_with('#'));
    let bad = |line: &&str| words().any(|word| line.contains(word));
    text.lines()
        .enumerate()
        .filter(|(number, _)| !late.contains(number))
        .map(|(_, line)| line)
        .filter(bad)
        .map(str::to_owned)
        .collect()
}

/// Numbers of the lines by which Linux says that vivid's thread, that of its camera or its
/// output, computed a time in the past. It does when it is held up between looking at the clock and waiting, which
/// happens where the host is busy, and it is a fault of vivid alone.
fn late_cameras(text: &str) -> Vec<usize> {
    const START: &str = "schedule_timeout: wrong timeout value";
    const END: &str = "</TASK>";
    /// Lines of such a report; a longer one is something else.
    const MOST: usize = 30;
    let lines: Vec<&str> = text.lines().collect();
    let starts = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| line.contains(START));
    let mut traces = Vec::new();
    for (start, _) in starts {
        let report = lines.iter().enumerate().skip(start).take(MOST);
        let mut trace = None;
        let mut of_vivid = false;
        for (number, line) in report {
            of_vivid |= ["vivid_thread_vid_cap", "vivid_thread_vid_out"]
                .iter()
                .any(|function| line.contains(function));
            if line.ends_with("Call Trace:") && trace.is_none() {
                trace = Some(number);
            }
            if line.contains(END) {
                traces.extend(trace.filter(|_| of_vivid));
                break;
            }
        }
    }
    traces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_of_a_kernel_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let console = folder.path().join("a.console");
        fs::write(
            &console,
            "old BUG: x\n[1.0] fine\n[2.0] WARNING: CPU: 0\n[3.0] general protection fault\n",
        )
        .unwrap();
        let new = super::console(&console, 11).unwrap();
        assert_eq!(
            complaints(&new),
            ["[2.0] WARNING: CPU: 0", "[3.0] general protection fault"]
        );
        assert!(super::console(&console, 1000).unwrap().is_empty());
    }

    /// First lines of reports, as Linux 7.2 prints them.
    #[test]
    fn the_reports_of_a_kernel_with_debugging_are_complaints() {
        for line in [
            "BUG: KASAN: slab-use-after-free in bufshare_put+0x1/0x2 [virtio_bufshare]",
            "WARNING: possible circular locking dependency detected",
            "WARNING: inconsistent lock state",
            "WARNING: suspicious RCU usage",
            "WARNING: held lock freed!",
            "[ BUG: Invalid wait context ]",
            "INFO: trying to register non-static key.",
            "turning off the locking correctness validator.",
            "BUG: sleeping function called from invalid context at mm/x.c:1",
            "DMA-API: virtio-pci 0000:00:04.0: device driver frees DMA memory with different size",
            "DMA-API: debugging out of memory - disabling",
            "UBSAN: array-index-out-of-bounds in bufshare_sg.c:1:2",
            "ODEBUG: free active (active state 0) object: x object type: work_struct",
            "BUG kmalloc-64 (Not tainted): Poison overwritten",
            "unreferenced object 0xffff888003c5d600 (size 64):",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "virtio_bufshare virtio3: malformed answer to command 0x101, 7 bytes",
        ] {
            let line = format!("[    1.000000] {line}\n");
            assert_eq!(complaints(line.as_bytes()).len(), 1, "{line}");
        }
    }

    #[test]
    fn a_camera_that_is_late_is_no_complaint_but_all_else_is() {
        let report = |function: &str| {
            format!(
                "[1.0] schedule_timeout: wrong timeout value fffffffffffffffe\n[1.0] CPU: 0\n\
                 [1.0] Call Trace:\n[1.0]  <TASK>\n[1.0]  {function}+0x2e0/0x4d0\n\
                 [1.0]  </TASK>\n"
            )
        };
        let found = |text: String| complaints(text.as_bytes()).len();
        assert_eq!(found(report("vivid_thread_vid_cap")), 0);
        assert_eq!(found(report("vivid_thread_vid_out")), 0);
        assert_eq!(found(report("bufshare_vq_wait")), 1);
        let two = report("vivid_thread_vid_cap") + "[2.0] Call Trace:\n";
        assert_eq!(found(two), 1);
        let cut = report("vivid_thread_vid_cap").replace("</TASK>", "");
        assert_eq!(found(cut), 1);
    }

    #[test]
    fn a_name_is_that_of_the_function() {
        let body = || ();
        assert!(name_of(&body).ends_with("a_name_is_that_of_the_function"));
    }
}
