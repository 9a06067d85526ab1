// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What came of a demo: result.json, the table, the verdict

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use bufshare_tests::daemon::PeerState;
use bufshare_tests::pair::TwoVms;
use serde::Serialize;

use crate::Size;
use crate::records::{Records, shown_by};

/// What is written to result.json.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    frames: u64,
    bytes_shared: u64,
    /// The daemon's count for a way of sharing that does not exist yet, so always 0. That
    /// nothing was copied is shown by `same_memory` and `vmm_maps`.
    bytes_copied: u64,
    hashes_match: bool,
    replies_ok: u64,
    screen_matches: bool,
    /// What each VM wrote into the last frame at the end, the other read.
    same_memory: bool,
    /// "dmabuf": the display's card read the imported buffers; "copy".
    screen_shows: String,
    screen_why: Option<String>,
    screen_bytes_copied: u64,
    screen_width: u32,
    screen_height: u32,
    way: String,
    width: u32,
    height: u32,
    buffers: usize,
    /// Pieces of all those buffers.
    extents: u64,
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

/// What was looked at while the last frame was still on the screen.
#[derive(Debug)]
pub(crate) struct Evidence {
    /// The display's state in the daemon.
    pub(crate) peer: PeerState,
    /// The screen's pixels are those of the camera's memory.
    pub(crate) screen: Result<()>,
    /// Both VMs write and read the same bytes.
    pub(crate) memory: Result<()>,
}

impl Outcome {
    /// From all that was seen.
    pub(crate) fn new(
        records: &Records,
        vms: &TwoVms,
        seen: &Evidence,
        size: Size,
    ) -> Result<Self> {
        let capture = records.capture().context("the camera gave no summary")?;
        let view = records.view().context("the display gave no summary")?;
        let screen = records.screen.as_ref().context("no screen was chosen")?;
        let peer = &seen.peer;
        let mut handovers: Vec<f64> = records
            .round_trips
            .iter()
            .filter_map(|(frame, trip)| Some((trip - records.holds.get(frame)?) / 2.0))
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
        let extents = records.exported.iter().map(|export| export.extents);
        let viewed = records
            .exported
            .iter()
            .filter(|export| records.viewed.contains(&export.id));
        Ok(Self {
            frames: view.frames,
            bytes_shared: view.bytes_shared.min(capture.bytes_shared),
            bytes_copied: peer.copied_bytes,
            hashes_match: view.hashes_match && view.mismatches == 0,
            replies_ok: records.replies_ok,
            screen_matches: seen.screen.is_ok(),
            same_memory: seen.memory.is_ok(),
            screen_shows: screen.shows.clone(),
            screen_why: screen.why.clone(),
            screen_bytes_copied: view.screen_bytes_copied,
            screen_width: screen.width,
            screen_height: screen.height,
            way: view.ways.join("+"),
            width: size.width,
            height: size.height,
            buffers: view.buffers,
            extents: viewed.map(|export| export.extents).sum(),
            extents_max: extents.max().unwrap_or(0),
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

    /// The mappings that sharing without a copy takes: each buffer is mapped once,
    /// whole by a udmabuf, else piece by piece.
    fn maps_needed(&self) -> u64 {
        if self.way == "udmabuf" {
            self.buffers as u64
        } else {
            self.extents
        }
    }

    /// Everything that has to be right, or why not.
    pub(crate) fn judge(&self, records: &Records, wanted: u64) -> Result<()> {
        let capture = records.capture().context("the camera gave no summary")?;
        let view = records.view().context("the display gave no summary")?;
        ensure!(
            capture.frames == wanted,
            "the camera handed over {} of {wanted} frames",
            capture.frames
        );
        ensure!(
            self.frames == wanted,
            "the display saw {} of {wanted} frames",
            self.frames
        );
        ensure!(
            view.missed <= capture.sequence_gaps,
            "the display missed {} frames, the camera {}",
            view.missed,
            capture.sequence_gaps
        );
        ensure!(
            self.hashes_match,
            "{} frames arrived wrong",
            view.mismatches
        );
        ensure!(
            capture.mismatches == 0,
            "{} replies of the display were wrong",
            capture.mismatches
        );
        ensure!(
            self.replies_ok == wanted,
            "{} of {wanted} replies were read",
            self.replies_ok
        );
        ensure!(
            self.vmm_maps == self.maps_needed(),
            "{} mappings were asked of QEMU, not {}",
            self.vmm_maps,
            self.maps_needed()
        );
        Ok(())
    }

    /// For people.
    pub(crate) fn print(&self, records: &Records, out: &Path) -> Result<()> {
        let micros =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.0} us"));
        let verdict = |good: bool, text: &str| if good { text } else { "WRONG" }.to_owned();
        let rows = [
            (
                "frames",
                format!(
                    "{} of {}x{} in {:.1} s",
                    self.frames, self.width, self.height, self.seconds
                ),
            ),
            ("hashes", verdict(self.hashes_match, "all match")),
            (
                "replies",
                format!(
                    "{}, written by the display, read by the camera in the same buffers",
                    self.replies_ok
                ),
            ),
            (
                "memory",
                verdict(self.same_memory, "what one VM writes the other reads"),
            ),
            (
                "screen",
                verdict(
                    self.screen_matches,
                    "shows each pixel of the last frame in the camera's memory",
                ),
            ),
            (
                "shown",
                records.screen.as_ref().map(shown_by).unwrap_or_default(),
            ),
            ("bytes shared", self.bytes_shared.to_string()),
            ("way", self.way.clone()),
            (
                "mappings",
                format!(
                    "{} asked of QEMU for {} buffers in {} pieces",
                    self.vmm_maps, self.buffers, self.extents
                ),
            ),
            ("first map", micros(self.first_map_us)),
            ("repeated map", micros(self.repeat_map_us)),
            (
                "handover",
                format!(
                    "{} median, {} p99",
                    micros(self.handover_us_p50),
                    micros(self.handover_us_p99)
                ),
            ),
            (
                "machines",
                format!(
                    "QEMU {} ({}), Linux {}",
                    self.qemu, self.accel, self.guest_kernel
                ),
            ),
            ("boot", format!("{:.1} s for both", self.boot_seconds)),
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
}

fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted
        .get(rank - 1)
        .map(|value| (value * 10.0).round() / 10.0)
}
