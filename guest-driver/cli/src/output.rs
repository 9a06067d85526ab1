// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is printed: each thing once as text for people and as one JSON object.

use std::fmt::Write as _;
use std::io::Write as _;

use bufshare::{BufferId, BufferInfo, Event, EventKind, Image, Name, Rights};
use bufshare_media::drm::Screen;
use bufshare_media::fourcc::Fourcc;
use serde::Serialize;

use crate::failure::{Failure, Result};
use crate::stop;

/// Prints records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// As JSON.
    pub(crate) json: bool,
}

impl Output {
    /// One line, at once.
    pub(crate) fn print(self, record: &Record) -> Result<()> {
        let line = if self.json {
            serde_json::to_string(record).map_err(|e| Failure::new(e.to_string()))?
        } else {
            record.text()
        };
        stop::while_printing(|| {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{line}").and_then(|()| out.flush())
        })
        .map_err(|e| Failure::stdout(&e))
    }

    /// One line on stderr about something that works, but maybe not as wanted.
    pub(crate) fn warn(self, text: &str) {
        let line = if self.json {
            serde_json::json!({ "warning": text }).to_string()
        } else {
            format!("bufshare: warning: {text}")
        };
        // What the command does goes on even when nobody can read this.
        let _ = stop::while_printing(|| writeln!(std::io::stderr(), "{line}"));
    }
}

/// One thing to print; the variant's name is the JSON member `type`.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Record {
    Info(Info),
    Peer(Peer),
    Buffer(Buffer),
    /// A buffer is exported now.
    Exported(Exported),
    Imported(Imported),
    Dump(Dump),
    Written(Written),
    Event(EventRecord),
    /// A camera is ready.
    Camera(CameraRecord),
    /// What happened to a stream.
    Stream(StreamRecord),
    /// The camera gave a frame and got it back.
    Captured(Captured),
    CaptureSummary(CaptureSummary),
    /// A screen was chosen.
    Screen(ScreenRecord),
    /// A frame was looked at and handed back.
    Viewed(Viewed),
    ViewSummary(ViewSummary),
    /// Camera and screen in one machine.
    Selftest(Selftest),
}

#[derive(Debug, Serialize)]
pub(crate) struct Info {
    pub(crate) name: String,
    pub(crate) peer_id: u64,
    pub(crate) version: u32,
    /// Of "map", "udmabuf", "ro_enforced".
    pub(crate) caps: Vec<&'static str>,
    pub(crate) max_windows: u32,
    pub(crate) windows_used: u32,
    pub(crate) max_extents: u32,
    pub(crate) max_buffers: u32,
    pub(crate) max_attachments: u32,
    pub(crate) max_blob: u32,
    pub(crate) map_align: u32,
    pub(crate) shm_size: u64,
    pub(crate) max_buffer_size: u64,
    /// What the kernel cannot do; `None` if the driver does not say.
    pub(crate) missing: Option<Vec<Missing>>,
}

/// Something that the driver cannot do on this kernel.
#[derive(Debug, Serialize)]
pub(crate) struct Missing {
    pub(crate) feature: String,
    /// Completes "This kernel cannot".
    pub(crate) cannot: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Peer {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) up: bool,
    pub(crate) itself: bool,
    /// What we may grant it: "-", "r", "rw".
    pub(crate) export_rights: &'static str,
    /// What it may grant us.
    pub(crate) import_rights: &'static str,
}

impl Peer {
    pub(crate) fn new(peer: &bufshare::Peer, own_id: u64) -> Self {
        Self {
            id: peer.id,
            name: peer.name.to_string(),
            up: peer.up,
            itself: peer.id == own_id,
            export_rights: rights(peer.export_rights),
            import_rights: rights(peer.import_rights),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Buffer {
    pub(crate) id: String,
    pub(crate) owner: u64,
    pub(crate) owned: bool,
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) rights: &'static str,
    pub(crate) generation: u64,
    pub(crate) meta_seq: u64,
    pub(crate) extents: u32,
    pub(crate) attachments: u32,
    pub(crate) mapped: u32,
    pub(crate) fourcc: Option<String>,
    pub(crate) revoking: bool,
    pub(crate) quiesced: bool,
    pub(crate) is_stream: bool,
    /// The stream that it is part of.
    pub(crate) stream: Option<String>,
}

impl From<&BufferInfo> for Buffer {
    fn from(buffer: &BufferInfo) -> Self {
        Self {
            id: buffer.id.to_string(),
            owner: buffer.owner,
            owned: buffer.owned,
            name: buffer.name.to_string(),
            size: buffer.size,
            rights: rights(buffer.rights),
            generation: buffer.generation,
            meta_seq: buffer.meta_seq,
            extents: buffer.extents,
            attachments: buffer.attachments,
            mapped: buffer.mapped,
            fourcc: (buffer.fourcc != 0).then(|| Fourcc(buffer.fourcc).to_string()),
            revoking: buffer.revoking,
            quiesced: buffer.quiesced,
            is_stream: buffer.is_stream,
            stream: buffer.stream.map(|stream| stream.to_string()),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Exported {
    pub(crate) id: String,
    pub(crate) generation: u64,
    pub(crate) size: u64,
    /// Pieces of memory it consists of.
    pub(crate) extents: u32,
    /// "alloc", "heap", "udmabuf", "vgem", "fd" or "camera".
    pub(crate) source: &'static str,
    /// Of the camera's buffer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) buffer: Option<u32>,
    /// Which dma-buf of a frame that has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) plane: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<ImageRecord>,
    /// Of the content, when this command filled it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) xxh3: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ImageRecord {
    pub(crate) fourcc: String,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) stride: u32,
    pub(crate) planes: usize,
}

impl From<&Image> for ImageRecord {
    fn from(image: &Image) -> Self {
        Self {
            fourcc: Fourcc(image.fourcc).to_string(),
            width: image.width,
            height: image.height,
            stride: image.planes.first().map_or(0, |plane| plane.stride),
            planes: image.planes.len(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Imported {
    pub(crate) id: String,
    pub(crate) owner: u64,
    pub(crate) size: u64,
    pub(crate) generation: u64,
    pub(crate) rights: &'static str,
    pub(crate) way: &'static str,
    pub(crate) windows: u32,
    pub(crate) import_us: f64,
    /// From before the import until the first byte was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) map_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first_byte: Option<u8>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Dump {
    pub(crate) id: String,
    pub(crate) size: u64,
    pub(crate) way: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) xxh3: Option<String>,
    /// Where the bytes went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) out: Option<String>,
    pub(crate) map_us: f64,
    pub(crate) read_us: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Written {
    pub(crate) id: String,
    pub(crate) offset: u64,
    pub(crate) bytes: usize,
    pub(crate) way: &'static str,
}

#[derive(Debug, Serialize)]
pub(crate) struct EventRecord {
    #[serde(skip)]
    kind: EventKind,
    /// "PEER_UP", "OFFER", … as in the header; "UNKNOWN(number)" of a newer driver.
    pub(crate) event: String,
    pub(crate) seq: u64,
    pub(crate) peer: u64,
    /// None: not about a buffer.
    pub(crate) id: Option<String>,
    pub(crate) handle: u64,
    pub(crate) value: u64,
}

impl From<&Event> for EventRecord {
    fn from(event: &Event) -> Self {
        Self {
            kind: event.kind,
            event: event.kind.to_string(),
            seq: event.seq,
            peer: event.peer,
            id: (!event.id.is_zero()).then(|| event.id.to_string()),
            handle: event.handle,
            value: event.value,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct CameraRecord {
    pub(crate) device: String,
    pub(crate) format: String,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) stride: u32,
    pub(crate) buffers: u32,
    /// Dma-bufs of a frame.
    pub(crate) planes: usize,
}

#[derive(Debug, Serialize)]
pub(crate) struct StreamRecord {
    /// "offered", "joined", "left", "ended" or "over".
    pub(crate) state: &'static str,
    pub(crate) id: String,
    pub(crate) name: String,
    /// Whose it is; of "left", who left.
    pub(crate) peer: Option<u64>,
}

impl StreamRecord {
    pub(crate) fn new(state: &'static str, id: BufferId, name: &Name, peer: Option<u64>) -> Self {
        Self {
            state,
            id: id.to_string(),
            name: name.to_string(),
            peer,
        }
    }

    fn write(&self, to: &mut String) -> std::fmt::Result {
        let (name, peer) = (printable(&self.name), self.peer.unwrap_or(0));
        match self.state {
            "offered" => write!(to, "stream \"{name}\" offered: waiting for viewers"),
            "joined" => write!(to, "stream \"{name}\" of peer {peer} joined"),
            "left" => write!(to, "peer {peer} views stream \"{name}\" no more"),
            "ended" => write!(
                to,
                "stream \"{name}\" has ended: its last frame was handed over"
            ),
            _ => write!(
                to,
                "stream \"{name}\" is over: its camera's program has ended"
            ),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct ScreenRecord {
    pub(crate) screen: String,
    pub(crate) driver: String,
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// What its card reads: "dmabuf", the imported memory, or "copy", a copy of it.
    pub(crate) shows: &'static str,
    /// The picture's size on the screen.
    pub(crate) shown_width: u32,
    pub(crate) shown_height: u32,
    /// Why a copy.
    pub(crate) why: Option<String>,
}

impl From<&Screen> for ScreenRecord {
    fn from(screen: &Screen) -> Self {
        let (width, height) = screen.size();
        let (shown_width, shown_height) = screen.shown_size();
        let why = screen.copies_because();
        Self {
            screen: screen.name().to_owned(),
            driver: screen.driver().to_owned(),
            width,
            height,
            shows: why.map_or("dmabuf", |_| "copy"),
            shown_width,
            shown_height,
            why: why.map(str::to_owned),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Captured {
    pub(crate) frame: u64,
    pub(crate) buffer: u32,
    pub(crate) id: String,
    /// The driver's frame counter.
    pub(crate) sequence: u32,
    /// None: not asked for.
    pub(crate) xxh3: Option<String>,
    /// From before its PUSH until it was known to be returned by all viewers.
    pub(crate) round_trip_us: f64,
    /// None: there is none, or none was asked for.
    pub(crate) reply_ok: Option<bool>,
}

#[derive(Debug, Serialize)]
pub(crate) struct CaptureSummary {
    /// Handed over.
    pub(crate) frames: u64,
    /// Given back.
    pub(crate) returned: u64,
    pub(crate) replies_ok: u64,
    /// Wrong reply bytes.
    pub(crate) mismatches: u64,
    /// Given back without the reply that was asked for.
    pub(crate) unanswered: u64,
    /// Frames that the camera dropped for want of a free buffer.
    pub(crate) sequence_gaps: u64,
    pub(crate) broken: u64,
    /// Of one; the most that a compressed one has.
    pub(crate) frame_bytes: u64,
    pub(crate) bytes_shared: u64,
    /// Per buffer.
    pub(crate) extents: Vec<u32>,
    pub(crate) round_trip_us: Option<Spread>,
    pub(crate) seconds: f64,
    /// Why it ended: "done", "stopped" or "failed".
    pub(crate) ended: &'static str,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Viewed {
    pub(crate) frame: u64,
    pub(crate) id: String,
    pub(crate) sequence: u64,
    /// None, as the next one: not asked for.
    pub(crate) hash_ok: Option<bool>,
    pub(crate) xxh3: Option<String>,
    /// From before it was mapped until the first byte was read through the mapping.
    pub(crate) map_us: f64,
    /// "first" of this buffer, or "repeat": that was mapped before.
    pub(crate) map: &'static str,
    pub(crate) hash_us: Option<f64>,
    /// Import into the card and switching to it.
    pub(crate) show_us: Option<f64>,
    /// From when the driver learned of it until its return began; None while it is on the screen.
    pub(crate) hold_us: Option<f64>,
    /// What RETURN took.
    pub(crate) release_us: Option<f64>,
    pub(crate) way: &'static str,
    pub(crate) windows: u32,
    pub(crate) replied: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct ViewSummary {
    pub(crate) frames: u64,
    /// None: not asked for.
    pub(crate) hashes_match: Option<bool>,
    pub(crate) mismatches: u64,
    /// Sequence numbers never seen between the first and the last.
    pub(crate) missed: u64,
    /// Given back unseen, as nothing sensible could be made of them.
    pub(crate) rejected: u64,
    pub(crate) bytes_shared: u64,
    pub(crate) ways: Vec<&'static str>,
    pub(crate) buffers: usize,
    pub(crate) first_map_us: Option<Spread>,
    pub(crate) repeat_map_us: Option<Spread>,
    pub(crate) hold_us: Option<Spread>,
    pub(crate) windows_used_peak: u32,
    /// The frame on the screen now.
    pub(crate) on_screen: Option<u64>,
    pub(crate) screen: Option<String>,
    /// Bytes that were copied to show them; 0 where the card reads the dma-bufs.
    pub(crate) screen_bytes_copied: u64,
    pub(crate) seconds: f64,
    pub(crate) ended: &'static str,
}

#[derive(Debug, Serialize)]
pub(crate) struct Selftest {
    pub(crate) frames: u64,
    pub(crate) format: String,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) stride: u32,
    pub(crate) frame_bytes: u64,
    pub(crate) different_frames: usize,
    pub(crate) replies_ok: u64,
    pub(crate) show_us: Option<Spread>,
    pub(crate) screen: Option<String>,
    /// As in the screen's record.
    pub(crate) screen_shows: Option<&'static str>,
}

/// Of many durations, in microseconds; the percentiles are of the latest ones.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) count: u64,
    pub(crate) min: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

/// Rights in short.
pub(crate) fn rights(rights: Rights) -> &'static str {
    if rights.contains(Rights::RW) {
        "rw"
    } else if rights.contains(Rights::READ) {
        "r"
    } else if rights.contains(Rights::WRITE) {
        "w"
    } else {
        "-"
    }
}

/// Microseconds with one decimal.
pub(crate) fn micros(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 1e7).round() / 10.0
}

impl Record {
    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, to: &mut String) -> std::fmt::Result {
        match self {
            Self::Info(info) => info.write(to),
            Self::Peer(peer) => write!(
                to,
                "{:>3} {:<16} {:<4} export {:<2} import {:<2}{}",
                peer.id,
                printable(&peer.name),
                if peer.up { "up" } else { "down" },
                peer.export_rights,
                peer.import_rights,
                if peer.itself { " (this machine)" } else { "" },
            ),
            Self::Buffer(buffer) => buffer.write(to),
            Self::Exported(exported) => exported.write(to),
            Self::Imported(imported) => imported.write(to),
            Self::Dump(dump) => {
                let hash = dump
                    .sha256
                    .as_ref()
                    .or(dump.xxh3.as_ref())
                    .map_or("-", String::as_str);
                write!(
                    to,
                    "{hash}  {} ({} bytes, {})",
                    dump.id, dump.size, dump.way
                )
            }
            Self::Written(written) => write!(
                to,
                "{} bytes written at {:#x} of {} ({})",
                written.bytes, written.offset, written.id, written.way
            ),
            Self::Event(event) => {
                write!(to, "{:<9} peer {}", event.event, event.peer)?;
                if let Some(id) = &event.id {
                    write!(to, " buffer {id}")?;
                }
                if event.handle != 0 {
                    write!(to, " handle {}", event.handle)?;
                }
                match event.kind {
                    EventKind::Offer => write!(to, " {} bytes", event.value),
                    EventKind::Meta => write!(to, " sequence {}", event.value),
                    EventKind::Overflow if event.value == 0 => {
                        write!(to, " an unknown number of events lost")
                    }
                    EventKind::Overflow => write!(to, " {} events lost", event.value),
                    _ => Ok(()),
                }
            }
            Self::Camera(camera) => camera.write(to),
            Self::Screen(screen) => screen.write(to),
            Self::Stream(stream) => stream.write(to),
            Self::Captured(frame) => write!(
                to,
                "frame {} buffer {} back after {:.1} us{}",
                frame.frame,
                frame.buffer,
                frame.round_trip_us,
                match frame.reply_ok {
                    Some(true) => ", reply right",
                    Some(false) => ", reply WRONG",
                    None => "",
                }
            ),
            Self::CaptureSummary(summary) => summary.write(to),
            Self::Viewed(frame) => {
                write!(
                    to,
                    "frame {}{} ({}), {} map {:.1} us",
                    frame.frame,
                    match frame.hash_ok {
                        Some(true) => " right",
                        Some(false) => " WRONG",
                        None => "",
                    },
                    frame.way,
                    frame.map,
                    frame.map_us,
                )?;
                match frame.hold_us {
                    Some(hold) => write!(to, ", held {hold:.1} us"),
                    None => write!(to, ", on the screen"),
                }
            }
            Self::ViewSummary(summary) => summary.write(to),
            Self::Selftest(test) => write!(
                to,
                "{} frames of {}x{} {}, screen of {}: {} different, {} replies right",
                test.frames,
                test.width,
                test.height,
                test.format,
                test.screen_shows.unwrap_or("nothing"),
                test.different_frames,
                test.replies_ok
            ),
        }
    }
}

impl Info {
    fn write(&self, to: &mut String) -> std::fmt::Result {
        writeln!(to, "name             {}", printable(&self.name))?;
        writeln!(to, "peer             {}", self.peer_id)?;
        writeln!(to, "version          {}", self.version)?;
        writeln!(to, "capabilities     {}", self.caps.join(" "))?;
        writeln!(
            to,
            "windows          {} of {}",
            self.windows_used, self.max_windows
        )?;
        writeln!(to, "window region    {} bytes", self.shm_size)?;
        writeln!(to, "largest buffer   {} bytes", self.max_buffer_size)?;
        writeln!(to, "pieces a buffer  {}", self.max_extents)?;
        writeln!(to, "exports          up to {}", self.max_buffers)?;
        writeln!(to, "imports          up to {}", self.max_attachments)?;
        writeln!(to, "metadata         up to {} bytes", self.max_blob)?;
        write!(to, "alignment        {} bytes", self.map_align)?;
        for missing in self.missing.iter().flatten() {
            write!(to, "\nkernel cannot    {}", missing.cannot)?;
        }
        Ok(())
    }
}

impl Buffer {
    fn write(&self, to: &mut String) -> std::fmt::Result {
        let what = match self.is_stream {
            true => "stream".to_owned(),
            false => format!("{:>10} bytes", self.size),
        };
        let whose = match (self.owned, self.is_stream) {
            (true, true) => "own".to_owned(),
            (true, false) => format!("own, {} pieces", self.extents),
            (false, _) => format!("of peer {}", self.owner),
        };
        write!(to, "{} {what:>16} {:<2} {whose}", self.id, self.rights)?;
        if self.is_stream {
            write!(to, ", {} joins", self.attachments)?;
        } else {
            write!(to, ", {} imports, {} mapped", self.attachments, self.mapped)?;
        }
        if let Some(stream) = &self.stream {
            write!(to, ", of stream {stream}")?;
        }
        if let Some(fourcc) = &self.fourcc {
            write!(to, ", image {}", printable(fourcc))?;
        }
        if !self.name.is_empty() {
            write!(to, ", \"{}\"", printable(&self.name))?;
        }
        if self.revoking {
            write!(to, ", being revoked")?;
        }
        if self.quiesced {
            write!(to, ", quiesced")?;
        }
        Ok(())
    }
}

impl Exported {
    fn write(&self, to: &mut String) -> std::fmt::Result {
        write!(
            to,
            "{} {} bytes in {} pieces",
            self.id, self.size, self.extents
        )?;
        if let Some(image) = &self.image {
            write!(to, ", {}x{} {}", image.width, image.height, image.fourcc)?;
        }
        if let Some(sha256) = &self.sha256 {
            write!(to, ", sha256 {sha256}")?;
        }
        Ok(())
    }
}

impl Imported {
    fn write(&self, to: &mut String) -> std::fmt::Result {
        write!(
            to,
            "{} {} bytes of peer {}, {}, {}, {} windows, imported in {:.1} us",
            self.id, self.size, self.owner, self.rights, self.way, self.windows, self.import_us
        )?;
        if let (Some(map), Some(byte)) = (self.map_us, self.first_byte) {
            write!(to, ", first byte {byte:#04x} after {map:.1} us")?;
        }
        Ok(())
    }
}

impl CameraRecord {
    fn write(&self, to: &mut String) -> std::fmt::Result {
        let (device, width, height, format) = (&self.device, self.width, self.height, &self.format);
        let buffers = self.buffers;
        write!(
            to,
            "camera {device}: {width}x{height} {format} into {buffers} buffers"
        )?;
        if self.planes > 1 {
            write!(to, " of {} planes", self.planes)?;
        }
        Ok(())
    }
}

impl ScreenRecord {
    fn write(&self, to: &mut String) -> std::fmt::Result {
        let (screen, width, height) = (&self.screen, self.width, self.height);
        write!(to, "screen {screen}, {width}x{height}: shows ")?;
        match &self.why {
            None => write!(to, "the imported buffers"),
            Some(why) => write!(
                to,
                "copies of the frames, as {}x{}: {why}",
                self.shown_width, self.shown_height
            ),
        }
    }
}

impl CaptureSummary {
    fn write(&self, to: &mut String) -> std::fmt::Result {
        write!(
            to,
            "{} frames, {} back; {} bytes shared",
            self.frames, self.returned, self.bytes_shared
        )?;
        if self.replies_ok > 0 || self.mismatches > 0 || self.unanswered > 0 {
            write!(
                to,
                "; {} replies right, {} wrong, {} missing",
                self.replies_ok, self.mismatches, self.unanswered
            )?;
        }
        if let Some(spread) = &self.round_trip_us {
            write!(
                to,
                "; round trip {:.1} us, p99 {:.1} us",
                spread.p50, spread.p99
            )?;
        }
        Ok(())
    }
}

impl ViewSummary {
    fn write(&self, to: &mut String) -> std::fmt::Result {
        write!(to, "{} frames", self.frames)?;
        if self.hashes_match.is_some() {
            write!(to, ", {} wrong", self.mismatches)?;
        }
        write!(to, ", {} missed", self.missed)?;
        if self.rejected > 0 {
            write!(to, ", {} rejected", self.rejected)?;
        }
        if !self.ways.is_empty() {
            write!(to, ", over {}", self.ways.join(" and "))?;
        }
        if let Some(first) = &self.first_map_us {
            write!(to, "; first map {:.1} us", first.p50)?;
        }
        if let Some(repeat) = &self.repeat_map_us {
            write!(to, ", repeated {:.1} us", repeat.p50)?;
        }
        write!(to, "; up to {} windows", self.windows_used_peak)
    }
}

/// What another machine wrote must not move the cursor.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let plain = !c.is_control();
            plain
                .then_some(c)
                .into_iter()
                .chain((!plain).then(|| c.escape_default()).into_iter().flatten())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_tells_its_type_first() {
        let written = Record::Written(Written {
            id: "ab".to_owned(),
            offset: 4096,
            bytes: 2,
            way: "direct",
        });
        assert_eq!(
            serde_json::to_string(&written).unwrap(),
            r#"{"type":"written","id":"ab","offset":4096,"bytes":2,"way":"direct"}"#
        );
        assert_eq!(written.text(), "2 bytes written at 0x1000 of ab (direct)");
    }

    #[test]
    fn an_unknown_number_of_lost_events_is_not_none() {
        let lost = |value| {
            let mut event = Event::new(EventKind::Overflow);
            event.value = value;
            Record::Event(EventRecord::from(&event)).text()
        };
        assert_eq!(lost(3), "OVERFLOW  peer 0 3 events lost");
        assert_eq!(lost(0), "OVERFLOW  peer 0 an unknown number of events lost");
    }

    #[test]
    fn a_stream_is_shown_as_one_and_a_buffer_with_the_stream_that_it_is_part_of() {
        let listed = |change: &dyn Fn(&mut BufferInfo)| {
            let mut info = BufferInfo::default();
            (info.owner, info.attachments) = (2, 1);
            info.rights = Rights::READ;
            change(&mut info);
            let buffer = Buffer::from(&info);
            let json = serde_json::to_value(&buffer).unwrap();
            let json = (json["is_stream"].clone(), json["stream"].clone());
            (Record::Buffer(buffer).text(), json)
        };
        let none = "0".repeat(32);
        let (text, json) = listed(&|info| info.is_stream = true);
        assert_eq!(
            text,
            format!("{none}           stream r  of peer 2, 1 joins")
        );
        assert_eq!(json, (true.into(), serde_json::Value::Null));
        let (text, json) = listed(&|info| {
            info.size = 4096;
            info.stream = Some(bufshare::BufferId([0xab; 16]));
        });
        let stream = "ab".repeat(16);
        assert_eq!(
            text,
            format!(
                "{none}       4096 bytes r  of peer 2, 1 imports, 0 mapped, of stream {stream}"
            )
        );
        assert_eq!(json, (false.into(), stream.into()));
    }

    #[test]
    fn what_happens_to_a_stream_is_said_and_of_whom() {
        let id = bufshare::BufferId([0xab; 16]);
        let name = bufshare::Name::new("front").unwrap();
        for (state, peer, said) in [
            (
                "offered",
                None,
                "stream \"front\" offered: waiting for viewers",
            ),
            ("left", Some(3), "peer 3 views stream \"front\" no more"),
            ("joined", Some(2), "stream \"front\" of peer 2 joined"),
            (
                "ended",
                Some(2),
                "stream \"front\" has ended: its last frame was handed over",
            ),
            (
                "over",
                Some(2),
                "stream \"front\" is over: its camera's program has ended",
            ),
        ] {
            let record = StreamRecord::new(state, id, &name, peer);
            let json = serde_json::to_value(&record).unwrap();
            assert_eq!(
                (json["state"].as_str(), json["peer"].as_u64()),
                (Some(state), peer)
            );
            assert_eq!(Record::Stream(record).text(), said);
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(printable("a\u{1b}[2Jé"), "a\\u{1b}[2Jé");
    }

    fn print_more_than_a_pipe_holds() {
        let _stop = stop::Stop::new(stop::Input::Ignored).unwrap();
        let written = Record::Written(Written {
            id: "x".repeat(1 << 20),
            offset: 0,
            bytes: 0,
            way: "direct",
        });
        Output { json: false }.print(&written).unwrap();
    }

    /// It runs itself once more, in a process that the signal may end.
    #[test]
    fn a_signal_ends_a_program_whose_output_nobody_reads() {
        use std::io::Read as _;
        use std::os::unix::process::ExitStatusExt as _;

        const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);
        const CHILD: &str = "BUFSHARE_TEST_PRINTS_TOO_MUCH";
        if std::env::var_os(CHILD).is_some() {
            return print_more_than_a_pipe_holds();
        }
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("output::tests::a_signal_ends_a_program_whose_output_nobody_reads")
            .env(CHILD, "1")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = libc::pid_t::try_from(child.id()).unwrap();
        let mut output = child.stdout.take().unwrap();
        // The test harness says less than this before.
        output.read_exact(&mut [0; 4096]).unwrap();
        // SAFETY: our child, which nobody has waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        let (sender, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(child.wait().unwrap()));
        let Ok(status) = ended.recv_timeout(LIMIT) else {
            // SAFETY: still our child: the wait for it has not ended.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            panic!("it did not end by SIGTERM in {LIMIT:?}");
        };
        assert_eq!(status.signal(), Some(libc::SIGTERM), "{status}");
    }

    #[test]
    fn microseconds_have_one_decimal() {
        assert_eq!(micros(std::time::Duration::from_nanos(1_234_567)), 1234.6);
    }
}
