// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bufshare capture`: a camera's frames for another machine.
//!
//! Each buffer goes round: the driver fills it, we hash and publish it, the viewer
//! attaches, looks and lets go, which is RELEASED here, and the driver gets it back.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bufshare::{Device, Event, Export, ExportOptions};
use bufshare_protocol::event::EventKind;
use bufshare_protocol::types::{Access, Meta, Name, Rights};

use crate::args::Capture;
use crate::camera::Camera;
use crate::content;
use crate::durations::Durations;
use crate::failure::{Failure, Result};
use crate::frame::Frame;
use crate::output::{
    CaptureSummary, Captured, EventRecord, Exported, ImageRecord, Output, Record, micros,
};
use crate::pump::Pump;
use crate::rights;
use crate::session::{Held, Session};
use crate::stop::{Input, Stop, ended};
use crate::v4l2::Filled;

/// Runs the camera until enough frames were handed back.
pub(crate) fn run(session: &Session, args: &Capture) -> Result<()> {
    let mut stop = Stop::new(Input::Ignored)?;
    let device = session.open()?;
    let viewer = rights::to_grant_one(session.output, &device, &args.to)?;
    let camera = Camera::new(&args.camera, |bytes| Ok(device.alloc(bytes)?))?;
    session.output.print(&Record::Camera(camera.record()))?;
    let events = session.events()?;
    let mut rotation = Rotation::new(session.output, &device, camera, viewer, args)?;

    let started = Instant::now();
    rotation.camera.start()?;
    let result = rotation.turn(&mut stop, &events, args);
    let seconds = started.elapsed().as_secs_f64();
    // What was achieved is told even when it then failed.
    let ended = ended(&stop, &result);
    let stopped = rotation.camera.video.stop();
    let printed = session
        .output
        .print(&Record::CaptureSummary(rotation.summary(seconds, ended)));
    // The first error is the reason of those that follow.
    result?;
    printed?;
    stopped.map_err(|e| Failure::io("stop the camera", &e))?;

    if args.hold && !stop.told() {
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

/// A published frame that is not back yet.
struct Out {
    frame: Frame,
    since: Instant,
}

/// Camera, exports and the books.
struct Rotation<'a> {
    output: Output,
    device: &'a Device,
    viewer: u64,
    run: u64,
    meta: Meta,
    /// As the camera's buffers; they end before those.
    exports: Vec<Export>,
    extents: Vec<u32>,
    camera: Camera,
    out: Vec<Option<Out>>,
    /// Events were lost, and from then on none says alone that a frame is back.
    lost_events: bool,
    /// The highest number of a frame that is back.
    newest_back: u64,
    replies: bool,
    wanted: u64,
    published: u64,
    last_sequence: Option<u32>,
    sequence_gaps: u64,
    broken: u64,
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
        let meta = Meta {
            name,
            image: Some(camera.image.clone()),
            blob: Vec::new(),
        };
        let options = ExportOptions {
            access: vec![viewer],
            meta: meta.clone(),
        };
        let (mut exports, mut extents) = (Vec::new(), Vec::new());
        for (index, slot) in (0u32..).zip(&camera.slots) {
            let export = device.export(&slot.dmabuf, &options).map_err(|error| {
                Failure::from(error).about(format!("cannot export the camera's buffer {index}"))
            })?;
            let pieces = device.query(export.id())?.extents;
            output.print(&Record::Exported(Exported {
                id: export.id().to_string(),
                generation: export.generation(),
                size: slot.mapping.len() as u64,
                extents: pieces,
                source: "camera",
                buffer: Some(index),
                image: Some(ImageRecord::from(&camera.image)),
                sha256: None,
                xxh3: None,
            }))?;
            exports.push(export);
            extents.push(pieces);
        }
        Ok(Self {
            output,
            device,
            viewer: viewer.peer,
            run: now(),
            meta,
            out: exports.iter().map(|_| None).collect(),
            lost_events: false,
            newest_back: 0,
            exports,
            extents,
            camera,
            replies: viewer.rights.contains(Rights::WRITE),
            wanted: args.frames,
            published: 0,
            last_sequence: None,
            sequence_gaps: 0,
            broken: 0,
            replies_ok: 0,
            mismatches: 0,
            round_trips: Durations::default(),
        })
    }

    fn wants_more(&self) -> bool {
        self.wanted == 0 || self.published < self.wanted
    }

    fn outstanding(&self) -> usize {
        self.out.iter().flatten().count()
    }

    /// Runs until all frames are back, but for the last one if that is to be held.
    fn turn(&mut self, stop: &mut Stop, events: &Pump, args: &Capture) -> Result<()> {
        let mut deadline = Deadline::new(args.timeout);
        while !stop.told() && (self.wants_more() || self.outstanding() > usize::from(args.hold)) {
            let with_driver = self.outstanding() < self.out.len();
            let ready = if self.wants_more() && with_driver {
                stop.wait(
                    [events.as_fd(), self.camera.video.as_fd()],
                    Some(deadline.left()),
                )?
            } else {
                let [event] = stop.wait([events.as_fd()], Some(deadline.left()))?;
                [event, false]
            };
            let [event, filled] = ready;
            let mut progress = false;
            if event && let Some((at, event)) = events.take()? {
                progress |= self.event(at, &event)?;
            }
            if filled && let Some((filled, _)) = self.camera.dequeue()? {
                self.publish(filled)?;
                progress = true;
            }
            if progress {
                deadline.restart();
            } else if deadline.passed() && !stop.told() {
                return Err(self.stuck(args.timeout));
            }
        }
        Ok(())
    }

    /// Says for what it waits in vain.
    fn stuck(&self, timeout: Duration) -> Failure {
        let oldest = self.out.iter().flatten().min_by_key(|out| out.since);
        let seconds = timeout.as_secs_f64();
        Failure::timeout(match oldest {
            Some(out) => format!(
                "frame {} was not handed back within {seconds} s; does `bufshare view` run there?",
                out.frame.number
            ),
            None => format!("the camera gave no frame within {seconds} s"),
        })
    }

    /// Hashes a filled buffer and tells the viewer about it.
    fn publish(&mut self, filled: Filled) -> Result<()> {
        if let Some(last) = self.last_sequence {
            let lost = filled.sequence.wrapping_sub(last).saturating_sub(1);
            self.sequence_gaps = self.sequence_gaps.saturating_add(u64::from(lost));
        }
        self.last_sequence = Some(filled.sequence);
        if filled.broken {
            self.broken = self.broken.saturating_add(1);
            return self.camera.queue(filled.index);
        }
        let slot = self.camera.slot(filled.index)?;
        let number = self.published.saturating_add(1);
        let bytes = self.camera.frame_bytes().min(slot.mapping.len());
        let frame = Frame {
            run: self.run,
            number,
            sequence: filled.sequence,
            last: number == self.wanted,
            hash: content::xxh3(&slot.mapping, bytes)?,
            bytes: bytes as u64,
            reply: self
                .replies
                .then(|| self.camera.reply(slot, number))
                .transpose()?,
        };
        let index = usize::try_from(filled.index).unwrap_or(usize::MAX);
        let export = self.exports.get(index);
        let (Some(export), Some(out)) = (export, self.out.get_mut(index)) else {
            return Err(Failure::new("the camera filled an unknown buffer"));
        };
        let since = Instant::now();
        let meta = Meta {
            blob: frame.encode(),
            ..self.meta.clone()
        };
        self.device
            .set_meta(export.id(), &meta)
            .map_err(|e| Failure::from(e).about(format!("cannot publish frame {number}")))?;
        *out = Some(Out { frame, since });
        self.published = number;
        Ok(())
    }

    /// Answers whether it brought a buffer back.
    fn event(&mut self, at: Instant, event: &Event) -> Result<bool> {
        for export in &self.exports {
            if Held::Export(export).ends_with(event, self.device)? {
                return Err(Failure::revoked("the host revoked a buffer"));
            }
        }
        self.lost_events |= event.kind == EventKind::Overflow;
        let released = (event.kind == EventKind::Released && event.peer == self.viewer)
            .then(|| {
                self.exports
                    .iter()
                    .position(|export| export.id() == event.id)
            })
            .flatten();
        match (event.kind, released) {
            (EventKind::PeerUp | EventKind::PeerDown, _) if event.peer == self.viewer => {
                self.output
                    .print(&Record::Event(EventRecord::from(event)))?;
            }
            (_, Some(index)) if !self.lost_events => return self.returned(at, index),
            _ => {}
        }
        let mut progress = false;
        if self.lost_events {
            // The highest number first: it says something of those below.
            let mut waiting: Vec<(u64, usize)> = self
                .out
                .iter()
                .enumerate()
                .filter_map(|(index, out)| Some((out.as_ref()?.frame.number, index)))
                .collect();
            waiting.sort_unstable_by(|one, other| other.cmp(one));
            for (_, index) in waiting {
                if self.is_back(index, released == Some(index))? {
                    progress |= self.returned(at, index)?;
                }
            }
        }
        Ok(progress)
    }

    /// Whether the frame in this buffer is back. Its RELEASED may be lost, and one that came
    /// may be of the frame before.
    fn is_back(&self, index: usize, released: bool) -> Result<bool> {
        let frame = self.out.get(index).and_then(Option::as_ref);
        let (Some(Out { frame, .. }), Some(export)) = (frame, self.exports.get(index)) else {
            return Ok(false);
        };
        if self.device.query(export.id())?.attachments > 0 {
            return Ok(false);
        }
        match frame.reply {
            // The viewer writes it while it has the buffer.
            Some(reply) => {
                let slot = self.camera.slot(u32::try_from(index).unwrap_or(u32::MAX))?;
                let offset = usize::try_from(reply.offset).unwrap_or(usize::MAX);
                Ok(content::byte_at(&slot.mapping, offset)? == reply.value)
            }
            // A viewer takes frames in the order of their numbers.
            None => Ok(released || frame.number < self.newest_back),
        }
    }

    /// Checks the reply in a buffer that came back, and has it filled again.
    fn returned(&mut self, at: Instant, index: usize) -> Result<bool> {
        let Some(Out { frame, since }) = self.out.get_mut(index).and_then(Option::take) else {
            // Attached and released by somebody before it was published.
            return Ok(false);
        };
        self.newest_back = self.newest_back.max(frame.number);
        let round_trip_us = micros(at.saturating_duration_since(since));
        let buffer = u32::try_from(index).unwrap_or(u32::MAX);
        let slot = self.camera.slot(buffer)?;
        let reply_ok = match frame.reply {
            Some(reply) => {
                let offset = usize::try_from(reply.offset).unwrap_or(usize::MAX);
                Some(content::byte_at(&slot.mapping, offset)? == reply.value)
            }
            None => None,
        };
        match reply_ok {
            Some(true) => self.replies_ok = self.replies_ok.saturating_add(1),
            Some(false) => self.mismatches = self.mismatches.saturating_add(1),
            None => {}
        }
        self.round_trips.push(round_trip_us);
        let id = self
            .exports
            .get(index)
            .map(|export| export.id().to_string())
            .unwrap_or_default();
        self.output.print(&Record::Captured(Captured {
            frame: frame.number,
            buffer,
            id,
            sequence: frame.sequence,
            xxh3: format!("{:016x}", frame.hash),
            round_trip_us,
            reply_ok,
        }))?;
        if self.wants_more() {
            self.camera.queue(buffer)?;
        }
        Ok(true)
    }

    /// Keeps what is left exported; tells when it comes back.
    fn hold(&mut self, stop: &mut Stop, events: &Pump) -> Result<()> {
        while !stop.told() {
            let [ready] = stop.wait([events.as_fd()], None)?;
            if ready && let Some((at, event)) = events.take()? {
                self.event(at, &event)?;
            }
        }
        Ok(())
    }

    fn summary(&self, seconds: f64, ended: &'static str) -> CaptureSummary {
        let frame_bytes = u64::from(self.camera.picture.size);
        CaptureSummary {
            frames: self.published,
            returned: self.round_trips.count(),
            replies_ok: self.replies_ok,
            mismatches: self.mismatches,
            sequence_gaps: self.sequence_gaps,
            broken: self.broken,
            frame_bytes,
            bytes_shared: self.published.saturating_mul(frame_bytes),
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
