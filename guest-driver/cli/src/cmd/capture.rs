// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bufshare capture`: a camera's frames for another machine.
//!
//! Each buffer goes round: the driver fills it, we publish it, the viewer
//! attaches, looks and releases it (RELEASED here), and the driver gets it back.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bufshare::{Access, Device, Event, EventKind, Export, ExportOptions, Meta, Name, Rights};
use bufshare_media::v4l2::Filled;

use crate::args::Capture;
use crate::camera::{Camera, Memory};
use crate::content;
use crate::durations::Durations;
use crate::failure::{Failure, Result};
use crate::frame::{Frame, Part};
use crate::image;
use crate::output::{
    CaptureSummary, Captured, EventRecord, Exported, ImageRecord, Output, Record, micros,
};
use crate::outstanding::{Out, Outstanding};
use crate::pump::Pump;
use crate::rights;
use crate::session::{Held, Session};
use crate::stop::{Input, Stop, ended};
use crate::supply::Supply;

/// How long an event may take from the driver to us.
const LAST_LOOK: Duration = Duration::from_millis(500);
/// So many events are taken when the time is up: more than the driver keeps.
const LATE_EVENTS: u32 = 1024;

/// Runs the camera until enough frames were handed back.
pub(crate) fn run(session: &Session, args: &Capture) -> Result<()> {
    let mut stop = Stop::new(Input::Ignored)?;
    let device = session.open()?;
    let viewer = rights::to_grant_one(session.output, &device, &args.to)?;
    let camera = Camera::new(session.output, &args.camera, |bytes| {
        Ok(device.alloc(bytes)?)
    })?;
    session.output.print(&Record::Camera(camera.record()))?;
    let events = session.events()?;
    let mut rotation = Rotation::new(session.output, &device, camera, viewer, args)?;

    let started = Instant::now();
    rotation.camera.start()?;
    let result = rotation.turn(&mut stop, &events, args);
    let seconds = started.elapsed().as_secs_f64();
    // What was achieved is reported even when it then failed.
    let ended = ended(&stop, &result);
    let stopped = rotation.camera.queue.stop();
    let printed = session
        .output
        .print(&Record::CaptureSummary(rotation.summary(seconds, ended)));
    // The first error is the reason of those that follow.
    result?;
    printed?;
    stopped.map_err(|e| Failure::io("stop the camera", &e))?;

    if args.hold && !stop.requested() {
        stop.listen_to(args.until.input(Input::Line))?;
        rotation.hold(&mut stop, &events)?;
    }
    match rotation.mismatches {
        0 => Ok(()),
        wrong => Err(Failure::new(format!(
            "{wrong} of {} frames came back with a wrong reply",
            rotation.round_trips.count()
        ))),
    }
}

/// Of one buffer of the camera.
struct Exports {
    /// The one that announces the frame.
    first: Export,
    others: Vec<Export>,
}

impl Exports {
    fn all(&self) -> impl Iterator<Item = &Export> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

/// Camera, exports and the books.
struct Rotation<'a> {
    output: Output,
    device: &'a Device,
    viewer: u64,
    run: u64,
    /// Of a frame's first buffer.
    meta: Meta,
    /// As the camera's buffers; they end before those.
    exports: Vec<Exports>,
    extents: Vec<u32>,
    camera: Camera,
    out: Outstanding,
    /// Reclaimed although nothing says that they were looked at.
    unconfirmed: u64,
    replies: bool,
    verify: bool,
    wanted: u64,
    published: u64,
    bytes_shared: u64,
    supply: Supply,
    replies_ok: u64,
    mismatches: u64,
    round_trips: Durations,
}

impl<'a> Rotation<'a> {
    /// Exports all buffers.
    fn new(
        output: Output,
        device: &'a Device,
        camera: Camera,
        viewer: Access,
        args: &Capture,
    ) -> Result<Self> {
        let name = Name::new("camera").unwrap_or(Name::EMPTY);
        let image = image::to_metadata(&camera.image);
        let meta = Meta::new().name(name).image(image.clone());
        let (mut exports, mut extents) = (Vec::new(), Vec::new());
        for (index, slot) in (0u32..).zip(&camera.slots) {
            let export = |plane: u32, memory: &Memory| -> Result<(Export, u32)> {
                let mut options = ExportOptions::new().allow(viewer.peer, viewer.rights);
                options.meta = if plane == 0 {
                    meta.clone()
                } else {
                    Meta::new().name(meta.name)
                };
                let export = device.export(&memory.dmabuf, &options).map_err(|error| {
                    Failure::from(error).about(format!("cannot export the camera's buffer {index}"))
                })?;
                let extents = device.query(export.id())?.extents;
                output.print(&Record::Exported(Exported {
                    id: export.id().to_string(),
                    generation: export.generation(),
                    size: memory.dmabuf.len() as u64,
                    extents,
                    source: "camera",
                    buffer: Some(index),
                    plane: (!slot.others.is_empty()).then_some(plane),
                    image: (plane == 0).then(|| ImageRecord::from(&image)),
                    sha256: None,
                    xxh3: None,
                }))?;
                Ok((export, extents))
            };
            let (first, pieces) = export(0, &slot.first)?;
            extents.push(pieces);
            let mut others = Vec::new();
            for (plane, memory) in (1..).zip(&slot.others) {
                let (other, pieces) = export(plane, memory)?;
                extents.push(pieces);
                others.push(other);
            }
            exports.push(Exports { first, others });
        }
        Ok(Self {
            output,
            device,
            viewer: viewer.peer,
            run: now(),
            meta,
            out: Outstanding::new(exports.len()),
            unconfirmed: 0,
            exports,
            extents,
            camera,
            replies: viewer.rights.contains(Rights::WRITE),
            verify: args.verify,
            wanted: args.frames,
            published: 0,
            bytes_shared: 0,
            supply: Supply::default(),
            replies_ok: 0,
            mismatches: 0,
            round_trips: Durations::default(),
        })
    }

    fn wants_more(&self) -> bool {
        self.wanted == 0 || self.published < self.wanted
    }

    /// Runs until all frames are back, but for the last one if that is to be held.
    fn turn(&mut self, stop: &mut Stop, events: &Pump, args: &Capture) -> Result<()> {
        let mut deadline = Deadline::new(args.timeout);
        let mut late: u32 = 0;
        while !stop.requested() && (self.wants_more() || self.out.count() > usize::from(args.hold))
        {
            let left = if deadline.passed() {
                LAST_LOOK
            } else {
                deadline.left()
            };
            let ready = if self.waits_for_camera() {
                stop.wait([events.as_fd(), self.camera.queue.as_fd()], Some(left))?
            } else {
                let [event] = stop.wait([events.as_fd()], Some(left))?;
                [event, false]
            };
            let [event, filled] = ready;
            let mut progress = false;
            if event && let Some((at, event)) = events.take()? {
                progress |= self.event(at, &event)?;
            }
            if filled && let Some(filled) = self.camera.dequeue()? {
                progress |= self.filled(&filled)?;
            }
            if !event {
                // Its buffer would be missed for as long as others go round.
                progress |= self.take_wrong(self.out.wrong(args.timeout))?;
            }
            if !progress && deadline.passed() && !stop.requested() {
                late = late.saturating_add(1);
                // We may have stood still: what came meanwhile counts.
                if late == 1 || (event && late < LATE_EVENTS) {
                    continue;
                }
                progress =
                    self.take_wrong(self.out.wrong(Duration::ZERO))? | self.take_unconfirmed()?;
                if !progress {
                    return Err(self.stuck(args.timeout));
                }
            }
            if progress {
                late = 0;
                deadline.restart();
            }
        }
        if stop.requested() {
            self.take_wrong(self.out.passed())?;
        }
        Ok(())
    }

    /// The camera has a buffer to fill.
    fn waits_for_camera(&self) -> bool {
        self.wants_more() && !self.out.is_full()
    }

    /// Says for what it waits in vain.
    fn stuck(&self, timeout: Duration) -> Failure {
        let seconds = timeout.as_secs_f64();
        let lack = || self.supply.lack(seconds);
        let Some(out) = self.out.oldest() else {
            return Failure::timeout(lack());
        };
        let late = format!(
            "frame {} was not handed back within {seconds} s; does `bufshare view` run there?",
            out.frame.number
        );
        // A viewer shows a frame until the next one comes, and a camera may keep its last
        // buffer until it is given another one.
        Failure::timeout(match (self.waits_for_camera(), self.out.count()) {
            (false, _) => late,
            (true, 1) => lack(),
            (true, _) => format!("{late} And {}", lack()),
        })
    }

    /// Publishes the frame in a buffer that the camera gave. Answers whether there is one.
    fn filled(&mut self, filled: &Filled) -> Result<bool> {
        let whole = self.supply.gave(filled);
        if whole {
            self.publish(filled)?;
        } else {
            self.camera.refill(filled.index)?;
        }
        Ok(whole)
    }

    /// Announces a filled buffer to the viewer.
    fn publish(&mut self, filled: &Filled) -> Result<()> {
        let slot = self.camera.slot(filled.index)?;
        let number = self.published.saturating_add(1);
        let index = usize::try_from(filled.index).unwrap_or(usize::MAX);
        let unknown = || Failure::new("the camera filled an unknown buffer");
        let exports = self.exports.get(index).ok_or_else(unknown)?;
        let bytes = self.camera.frame_bytes(filled, slot);
        let mut sizes = bytes.iter().map(|bytes| *bytes as u64);
        let first = sizes.next().ok_or_else(unknown)?;
        let parts: Vec<Part> = exports
            .others
            .iter()
            .zip(sizes)
            .map(|(export, bytes)| Part {
                id: export.id(),
                bytes,
            })
            .collect();
        let total = parts
            .iter()
            .fold(first, |sum, part| sum.saturating_add(part.bytes));
        let frame = Frame {
            run: self.run,
            number,
            sequence: filled.sequence,
            last: number == self.wanted,
            hash: self
                .verify
                .then(|| content::xxh3(slot.mappings().into_iter().zip(bytes)))
                .transpose()?,
            bytes: first,
            parts,
            reply: self
                .replies
                .then(|| self.camera.reply(slot, number))
                .transpose()?,
        };
        let meta = self.meta.clone().image(self.camera.image_of(filled)?);
        let since = Instant::now();
        let meta = meta.blob(frame.encode());
        self.device
            .set_meta(&exports.first, &meta)
            .map_err(|e| Failure::from(e).about(format!("cannot publish frame {number}")))?;
        if !self.out.publish(index, frame, since) {
            return Err(unknown());
        }
        self.published = number;
        self.bytes_shared = self.bytes_shared.saturating_add(total);
        Ok(())
    }

    /// Answers whether it brought a buffer back.
    fn event(&mut self, at: Instant, event: &Event) -> Result<bool> {
        for export in self.exports.iter().flat_map(Exports::all) {
            if Held::Export(export).ends_with(event, self.device)? {
                return Err(Failure::revoked("the host revoked a buffer"));
            }
        }
        if event.kind == EventKind::Overflow {
            self.out.events_lost();
        }
        let released = (event.kind == EventKind::Released && event.peer == self.viewer)
            .then(|| {
                self.exports
                    .iter()
                    .position(|exports| exports.all().any(|export| export.id() == event.id))
            })
            .flatten();
        match (event.kind, released) {
            (EventKind::PeerUp | EventKind::PeerDown, _) if event.peer == self.viewer => {
                self.output
                    .print(&Record::Event(EventRecord::from(event)))?;
            }
            (_, Some(index)) if self.out.events_are_complete() => {
                return Ok(self.is_back(at, index, true)? && self.returned(at, index)?);
            }
            _ => {}
        }
        let mut progress = false;
        if !self.out.events_are_complete() {
            for index in self.out.newest_first() {
                if self.is_back(at, index, released == Some(index))? {
                    progress |= self.returned(at, index)?;
                }
            }
        }
        Ok(progress)
    }

    /// Whether somebody has a buffer, or a part of it, attached.
    fn is_attached(&self, index: usize) -> Result<bool> {
        for export in self
            .exports
            .get(index)
            .iter()
            .flat_map(|exports| exports.all())
        {
            if self.device.query(export.id())?.attachments > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the frame in this buffer is back; `released`: a RELEASED of it came then.
    fn is_back(&mut self, at: Instant, index: usize, released: bool) -> Result<bool> {
        let Some(frame) = self.out.frame(index).cloned() else {
            return Ok(false);
        };
        if self.is_attached(index)? {
            return Ok(false);
        }
        let replied = self.replied(index, &frame)?;
        if released && replied == Some(false) {
            self.out.unanswered(index, at);
        }
        Ok(self.out.is_back(index, released, replied))
    }

    /// Whether the reply to this frame is in its buffer; `None`: the viewer writes none.
    fn replied(&self, index: usize, frame: &Frame) -> Result<Option<bool>> {
        let Some(reply) = frame.reply else {
            return Ok(None);
        };
        let slot = self.camera.slot(u32::try_from(index).unwrap_or(u32::MAX))?;
        let offset = usize::try_from(reply.offset).unwrap_or(usize::MAX);
        Ok(Some(
            content::byte_at(&slot.first.mapping, offset)? == reply.value,
        ))
    }

    /// Reclaims those of these frames, released at that time without the reply, that nobody
    /// has. Answers whether there were any.
    fn take_wrong(&mut self, released: Vec<(usize, Instant)>) -> Result<bool> {
        let mut progress = false;
        for (index, at) in released {
            if !self.is_attached(index)? {
                progress |= self.returned(at, index)?;
            }
        }
        Ok(progress)
    }

    /// Has the frames filled again of which nothing will ever say that they are back, and
    /// which nobody has. Answers whether there were any.
    fn take_unconfirmed(&mut self) -> Result<bool> {
        let mut numbers = Vec::new();
        for index in self.out.unconfirmed() {
            if self.is_attached(index)? {
                continue;
            }
            let Some(Out { frame, .. }) = self.out.take(index) else {
                continue;
            };
            numbers.push(frame.number.to_string());
            self.unconfirmed = self.unconfirmed.saturating_add(1);
            if self.wants_more() {
                self.camera
                    .refill(u32::try_from(index).unwrap_or(u32::MAX))?;
            }
        }
        if !numbers.is_empty() {
            self.output.warn(&format!(
                "events were lost, and nobody has frame {} any more: reclaimed, whether it was looked at or not",
                numbers.join(", ")
            ));
        }
        Ok(!numbers.is_empty())
    }

    /// Checks the reply in a buffer that came back, and has it filled again.
    fn returned(&mut self, at: Instant, index: usize) -> Result<bool> {
        let Some(Out { frame, since, .. }) = self.out.take(index) else {
            // Attached and released by somebody before it was published.
            return Ok(false);
        };
        let round_trip_us = micros(at.saturating_duration_since(since));
        let buffer = u32::try_from(index).unwrap_or(u32::MAX);
        let reply_ok = self.replied(index, &frame)?;
        match reply_ok {
            Some(true) => self.replies_ok = self.replies_ok.saturating_add(1),
            Some(false) => self.mismatches = self.mismatches.saturating_add(1),
            None => {}
        }
        self.round_trips.push(round_trip_us);
        let id = self
            .exports
            .get(index)
            .map(|exports| exports.first.id().to_string())
            .unwrap_or_default();
        self.output.print(&Record::Captured(Captured {
            frame: frame.number,
            buffer,
            id,
            sequence: frame.sequence,
            xxh3: frame.hash.map(content::digits),
            round_trip_us,
            reply_ok,
        }))?;
        if self.wants_more() {
            self.camera.refill(buffer)?;
        }
        Ok(true)
    }

    /// Keeps what is left exported; reports when it comes back.
    fn hold(&mut self, stop: &mut Stop, events: &Pump) -> Result<()> {
        while !stop.requested() {
            let [ready] = stop.wait([events.as_fd()], None)?;
            if ready && let Some((at, event)) = events.take()? {
                self.event(at, &event)?;
            }
        }
        self.take_wrong(self.out.passed())?;
        Ok(())
    }

    fn summary(&self, seconds: f64, ended: &'static str) -> CaptureSummary {
        CaptureSummary {
            frames: self.published,
            returned: self.round_trips.count(),
            unconfirmed: self.unconfirmed,
            replies_ok: self.replies_ok,
            mismatches: self.mismatches,
            sequence_gaps: self.supply.gaps(),
            broken: self.supply.broken(),
            frame_bytes: self.camera.format.size(),
            bytes_shared: self.bytes_shared,
            extents: self.extents.clone(),
            round_trip_us: self.round_trips.spread(),
            seconds,
            ended,
        }
    }
}

/// A number that no other run has.
fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0))
}

/// A time limit for progress.
pub(crate) struct Deadline {
    limit: Duration,
    since: Instant,
}

impl Deadline {
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: Instant::now(),
        }
    }

    pub(crate) fn restart(&mut self) {
        self.since = Instant::now();
    }

    pub(crate) fn left(&self) -> Duration {
        self.limit.saturating_sub(self.since.elapsed())
    }

    pub(crate) fn passed(&self) -> bool {
        self.left().is_zero()
    }
}
