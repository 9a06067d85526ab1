// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guests' programs print, and what is kept of it

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// A line of the guests' programs. What is not used here is left out.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Record {
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
    Screen(Screen),
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

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Screen {
    pub(crate) driver: String,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) shows: String,
    pub(crate) shown_width: u32,
    pub(crate) shown_height: u32,
    pub(crate) why: Option<String>,
}

impl Screen {
    /// The card reads the imported buffers themselves.
    pub(crate) fn is_direct(&self) -> bool {
        self.shows == "dmabuf"
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Image {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) stride: u32,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct CaptureSummary {
    pub(crate) frames: u64,
    pub(crate) mismatches: u64,
    pub(crate) sequence_gaps: u64,
    pub(crate) bytes_shared: u64,
    pub(crate) ended: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ViewSummary {
    pub(crate) frames: u64,
    pub(crate) hashes_match: bool,
    pub(crate) mismatches: u64,
    pub(crate) missed: u64,
    pub(crate) bytes_shared: u64,
    pub(crate) ways: Vec<String>,
    pub(crate) buffers: usize,
    pub(crate) first_map_us: Option<Spread>,
    pub(crate) repeat_map_us: Option<Spread>,
    pub(crate) on_screen: Option<u64>,
    pub(crate) screen_bytes_copied: u64,
    pub(crate) seconds: f64,
    pub(crate) ended: String,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Spread {
    pub(crate) p50: f64,
}

/// A buffer that the camera exported.
#[derive(Debug, Clone)]
pub(crate) struct Exported {
    pub(crate) id: String,
    /// Which of the camera's.
    pub(crate) buffer: usize,
    pub(crate) image: Image,
    pub(crate) extents: u64,
}

/// What was printed so far.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) exported: Vec<Exported>,
    pub(crate) round_trips: HashMap<u64, f64>,
    pub(crate) replies_ok: u64,
    pub(crate) screen: Option<Screen>,
    pub(crate) viewed: HashSet<String>,
    pub(crate) holds: HashMap<u64, f64>,
    pub(crate) last: Option<(u64, String)>,
    capture: Option<CaptureSummary>,
    view: Option<ViewSummary>,
}

/// How many frames are worth a line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verbosity {
    pub(crate) frames: u64,
    pub(crate) all: bool,
}

impl Records {
    /// The camera's summary, once it has done all; one that failed prints one, too,
    /// and then ends with the reason.
    pub(crate) fn capture(&self) -> Option<&CaptureSummary> {
        self.capture
            .as_ref()
            .filter(|summary| summary.ended == "done")
    }

    /// The display's, likewise.
    pub(crate) fn view(&self) -> Option<&ViewSummary> {
        self.view.as_ref().filter(|summary| summary.ended == "done")
    }

    /// The buffer that is on the screen.
    pub(crate) fn on_screen(&self) -> Result<&Exported> {
        let (frame, id) = self.last.as_ref().context("no frame was shown")?;
        let shown = self.view().and_then(|view| view.on_screen);
        anyhow::ensure!(
            shown == Some(*frame),
            "frame {shown:?} is on the screen, {frame} was viewed last"
        );
        let found = self.exported.iter().find(|export| export.id == *id);
        found.with_context(|| format!("the camera did not export {id}"))
    }

    /// Keep a line of a program; perhaps there is something to say of it.
    pub(crate) fn note(&mut self, line: &str, verbosity: Verbosity) -> Result<Option<String>> {
        let record = serde_json::from_str(line).with_context(|| line.to_owned())?;
        Ok(self.keep(record, verbosity))
    }

    fn keep(&mut self, record: Record, verbosity: Verbosity) -> Option<String> {
        // About ten lines for all frames together.
        let worth = |frame: u64| {
            verbosity.all || frame == 1 || frame.is_multiple_of(verbosity.frames.div_ceil(10))
        };
        match record {
            Record::Exported {
                id,
                buffer: Some(buffer),
                image: Some(image),
                extents,
            } => {
                let text = format!("buffer {buffer} exported as {id}, {extents} pieces");
                self.exported.push(Exported {
                    id,
                    buffer,
                    image,
                    extents,
                });
                Some(text)
            }
            Record::Captured {
                frame,
                round_trip_us,
                reply_ok,
            } => {
                self.round_trips.insert(frame, round_trip_us);
                self.replies_ok += u64::from(reply_ok == Some(true));
                let reply = match reply_ok {
                    Some(true) => "the display's reply read",
                    Some(false) => "WRONG reply",
                    None => "no reply asked for",
                };
                verbosity
                    .all
                    .then(|| format!("frame {frame} back after {round_trip_us:.0} us, {reply}"))
            }
            Record::Screen(screen) => {
                let text = format!("{}x{}, {}", screen.width, screen.height, shown_by(&screen));
                self.screen = Some(screen);
                Some(text)
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
                    self.holds.insert(frame, hold);
                }
                self.viewed.insert(id.clone());
                self.last = Some((frame, id));
                let verdict = if hash_ok {
                    "hash matches"
                } else {
                    "WRONG HASH"
                };
                (worth(frame) || !hash_ok)
                    .then(|| format!("frame {frame}: {verdict}, {map} map {map_us:.0} us"))
            }
            Record::CaptureSummary(summary) => {
                self.capture = Some(summary);
                None
            }
            Record::ViewSummary(summary) => {
                self.view = Some(summary);
                None
            }
            Record::Exported { .. } | Record::Other => None,
        }
    }
}

/// What shows the frames, and how.
pub(crate) fn shown_by(screen: &Screen) -> String {
    if screen.is_direct() {
        return format!("{} shows the imported buffers", screen.driver);
    }
    let same = (screen.shown_width, screen.shown_height) == (screen.width, screen.height);
    let size = if same {
        String::new()
    } else {
        format!(", {}x{}", screen.shown_width, screen.shown_height)
    };
    format!(
        "{} shows copies of the frames{size} ({})",
        screen.driver,
        screen.why.as_deref().unwrap_or("it did not say why")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: Verbosity = Verbosity {
        frames: 1,
        all: false,
    };

    fn summary(ended: &str) -> String {
        format!(
            r#"{{"type":"view_summary","frames":1,"hashes_match":true,"mismatches":0,"missed":0,
            "bytes_shared":4,"ways":["direct"],"buffers":1,"first_map_us":null,
            "repeat_map_us":null,"on_screen":null,"screen_bytes_copied":0,"seconds":1,
            "ended":"{ended}"}}"#
        )
    }

    #[test]
    fn a_program_that_failed_has_not_done_all() {
        let mut records = Records::default();
        records.note(&summary("failed"), SOME).unwrap();
        assert!(records.view().is_none(), "its error is still to be read");
        records.note(&summary("done"), SOME).unwrap();
        assert!(records.view().is_some());
    }

    #[test]
    fn a_copy_on_the_screen_is_said() {
        let mut screen = Screen {
            driver: "bochs-drm".to_owned(),
            width: 640,
            height: 480,
            shows: "dmabuf".to_owned(),
            shown_width: 640,
            shown_height: 480,
            why: None,
        };
        assert_eq!(shown_by(&screen), "bochs-drm shows the imported buffers");
        screen.shows = "copy".to_owned();
        screen.why = Some("it is refused".to_owned());
        let text = shown_by(&screen);
        assert_eq!(text, "bochs-drm shows copies of the frames (it is refused)");
        screen.shown_height = 360;
        assert!(shown_by(&screen).contains("640x360"));
    }
}
