// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bufshare capture`: a camera's frames for other machines.
//!
//! Each buffer goes round: the driver fills it, it is pushed, and when all viewers have given it
//! back (Returned), the driver gets it again.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bufshare::{
    Access, EventKind, Export, FRAME_LAST, Image, Meta, Name, Producer, ProducerEvent,
    ProducerOptions, Rights, Slot,
};
use bufshare_media::v4l2::Filled;

use crate::args::Capture;
use crate::audience::{Attached, Audience};
use crate::camera::Camera;
use crate::clock;
use crate::content;
use crate::durations::Durations;
use crate::failure::{Failure, Result};
use crate::image;
use crate::output::{
    CaptureSummary, Captured, EventRecord, Exported, ImageRecord, Output, Record, StreamRecord,
    micros,
};
use crate::rights;
use crate::rotation;
use crate::session::{Session, stream_name};
use crate::stop::{Input, Stop, ended};
use crate::supply::Supply;
use crate::verify::{self, ReplyByte, Verification, reply_byte};

/// How long an event may take from the driver to us.
const LAST_LOOK: Duration = Duration::from_millis(500);
/// So many events are taken before anything else is looked at: more than the driver keeps.
const EVENTS_AT_ONCE: u32 = 1024;

/// Runs the camera until enough frames were given back.
pub(crate) fn run(session: &Session, args: &Capture) -> Result<()> {
    let mut stop = Stop::new(Input::Ignored)?;
    let name = stream_name(&args.name)?;
    let device = session.open_for_frames()?;
    let access = rights::to_grant(session.output, &device, &args.to)?;
    let camera = Camera::new(session.output, &args.camera, access.len())?;
    session.output.print(&Record::Camera(camera.record()))?;
    let producer = Producer::new(device, &options(&camera, name, &access, args))
        .map_err(|e| Failure::from(e).about(format!("cannot offer the stream \"{name}\"")))?;
    let mut rotation = Rotation::new(session.output, producer, camera, &access, args)?;

    let started = Instant::now();
    rotation.camera.start()?;
    let result = rotation.turn(&mut stop, args);
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
        rotation.hold(&mut stop)?;
    }
    rotation.verdict()
}

/// A stream with a slot for each of the camera's buffers.
fn options(camera: &Camera, name: Name, access: &[Access], args: &Capture) -> ProducerOptions {
    let mut sizes = camera.sizes();
    // Verification and reply are behind the frame's bytes, which others may hash yet.
    if let Some(first) = sizes.first_mut().filter(|_| args.verify) {
        *first = first.saturating_add(verify::ROOM as u64);
    }
    let mut options = ProducerOptions::new(name)
        .image(image::to_metadata(&camera.image))
        .slots(camera.buffers)
        .sizes(sizes);
    options.access = access.to_vec();
    options.max_held = rotation::max_held(camera.buffers, access.len());
    options
}

/// A frame that viewers have.
struct Out {
    sequence: u32,
    /// By the [clock](clock::now).
    since: u64,
    hash: Option<u64>,
    reply: Option<Wanted>,
}

/// A reply, and what was in its place before.
struct Wanted {
    reply: ReplyByte,
    before: u8,
}

/// Camera, stream and the books.
struct Rotation {
    output: Output,
    producer: Producer,
    camera: Camera,
    /// The slots that the camera's driver has, by their number, which is that of its buffers.
    filling: BTreeMap<u32, Slot>,
    /// What is said of the image in each buffer, by slot.
    images: BTreeMap<u32, Image>,
    /// By the number of the frame.
    out: BTreeMap<u64, Out>,
    extents: Vec<u32>,
    viewers: Vec<u64>,
    name: Name,
    audience: Audience,
    verify: bool,
    replies: bool,
    wanted: u64,
    pushed: u64,
    bytes_shared: u64,
    supply: Supply,
    replies_ok: u64,
    mismatches: u64,
    unanswered: u64,
    round_trips: Durations,
    /// For a frame of the camera, and for viewers.
    camera_limit: Deadline,
    viewer_limit: Deadline,
}

impl Rotation {
    /// Has all buffers filled.
    fn new(
        output: Output,
        producer: Producer,
        camera: Camera,
        access: &[Access],
        args: &Capture,
    ) -> Result<Self> {
        let name = stream_name(&args.name)?;
        output.print(&Record::Stream(StreamRecord::new(
            "offered",
            producer.id(),
            &name,
            None,
        )))?;
        let image = image::to_metadata(&camera.image);
        let writers = access.iter();
        let mut rotation = Self {
            output,
            producer,
            camera,
            filling: BTreeMap::new(),
            images: BTreeMap::new(),
            out: BTreeMap::new(),
            extents: Vec::new(),
            viewers: access.iter().map(|line| line.peer).collect(),
            name,
            audience: Audience::default(),
            verify: args.verify,
            replies: args.verify && { writers }.any(|line| line.rights.contains(Rights::WRITE)),
            wanted: args.frames,
            pushed: 0,
            bytes_shared: 0,
            supply: Supply::default(),
            replies_ok: 0,
            mismatches: 0,
            unanswered: 0,
            round_trips: Durations::default(),
            camera_limit: Deadline::new(args.timeout),
            viewer_limit: Deadline::new(args.timeout),
        };
        for _ in 0..rotation.camera.buffers {
            let slot = rotation.producer.acquire();
            let slot = slot.ok_or_else(|| Failure::new("the stream has too few buffers"))?;
            rotation.report(&slot, &image)?;
            rotation.images.insert(slot.number(), image.clone());
            rotation.fill(slot)?;
        }
        Ok(rotation)
    }

    /// Says what a slot consists of.
    fn report(&mut self, slot: &Slot, image: &Image) -> Result<()> {
        let several = slot.exports().len() > 1;
        for ((plane, export), buffer) in (0u32..).zip(slot.exports()).zip(slot.buffers()) {
            let extents = self.producer.device().query(export.id())?.extents;
            self.extents.push(extents);
            self.output.print(&Record::Exported(Exported {
                id: export.id().to_string(),
                generation: export.generation(),
                size: buffer.len() as u64,
                extents,
                source: "camera",
                buffer: Some(slot.number()),
                plane: several.then_some(plane),
                image: (plane == 0).then(|| ImageRecord::from(image)),
                sha256: None,
                xxh3: None,
            }))?;
        }
        Ok(())
    }

    /// Gives a slot to the camera's driver.
    fn fill(&mut self, slot: Slot) -> Result<()> {
        let dmabufs: Vec<_> = slot.buffers().map(AsFd::as_fd).collect();
        self.camera.fill(slot.number(), &dmabufs)?;
        self.filling.insert(slot.number(), slot);
        Ok(())
    }

    fn wants_more(&self) -> bool {
        self.wanted == 0 || self.pushed < self.wanted
    }

    /// Runs until all frames are back, but for the last one if that is to be held.
    fn turn(&mut self, stop: &mut Stop, args: &Capture) -> Result<()> {
        let mut looked = false;
        while !stop.requested() && (self.wants_more() || self.out.len() > usize::from(args.hold)) {
            let left = match self.late(args.timeout) {
                None => {
                    looked = false;
                    self.left()
                }
                // We may have stood still: what came meanwhile counts.
                Some(_) if !looked => {
                    looked = true;
                    LAST_LOOK
                }
                Some(failure) => return Err(failure),
            };
            let filled = if self.waits_for_camera() {
                let fds = [self.producer.as_fd(), self.camera.queue.as_fd()];
                let [_, filled] = stop.wait(fds, Some(left))?;
                filled
            } else {
                stop.wait([self.producer.as_fd()], Some(left))?;
                false
            };
            self.take_events()?;
            if filled && let Some(filled) = self.camera.dequeue()? {
                self.filled(&filled)?;
            }
        }
        if !self.wants_more() {
            self.end()?;
        }
        Ok(())
    }

    /// Tells viewers that no more frames come; the last one says so, too.
    fn end(&mut self) -> Result<()> {
        match self.producer.end() {
            Err(error) if !error.is_absent() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The camera has a buffer to fill.
    fn waits_for_camera(&self) -> bool {
        self.wants_more() && !self.filling.is_empty()
    }

    /// Until something may be late.
    fn left(&self) -> Duration {
        if self.waits_for_camera() {
            match self.audience.is_there() {
                true => self.camera_limit.left(),
                false => self.camera_limit.left().min(self.viewer_limit.left()),
            }
        } else {
            self.viewer_limit.left()
        }
    }

    /// What was waited for in vain.
    fn late(&self, timeout: Duration) -> Option<Failure> {
        let seconds = timeout.as_secs_f64();
        if self.waits_for_camera() && self.camera_limit.passed() {
            return Some(Failure::timeout(self.supply.lack(seconds)));
        }
        // A viewer may keep a frame until the next one comes.
        if (self.audience.is_there() && self.waits_for_camera()) || !self.viewer_limit.passed() {
            return None;
        }
        Some(Failure::timeout(match self.out.keys().next() {
            Some(frame) => format!(
                "frame {frame} was not given back within {seconds} s; does `bufshare view` run \
                 there?"
            ),
            None => format!(
                "nobody viewed the stream \"{}\" within {seconds} s; does `bufshare view` run \
                 there?",
                self.name
            ),
        }))
    }

    /// Hands the frame in a buffer that the camera gave over, if there is one, and somebody for
    /// whom it is.
    fn filled(&mut self, filled: &Filled) -> Result<()> {
        let slot = self.filling.remove(&filled.index);
        let slot = slot.ok_or_else(|| Failure::new("the camera filled an unknown buffer"))?;
        if !self.supply.gave(filled) {
            return self.fill(slot);
        }
        self.camera_limit.restart();
        if !self.is_watched(&slot)? {
            return self.fill(slot);
        }
        self.push(slot, filled)
    }

    /// Whether somebody views, of which the host is asked until it is so.
    fn is_watched(&mut self, slot: &Slot) -> Result<bool> {
        if self.audience.is_there() {
            return Ok(true);
        }
        let consumers = self.producer.consumers()?;
        let (mut buffers, mut of) = (0_usize, 0_usize);
        if consumers > 0 {
            let device = self.producer.device();
            let all = self.filling.values().chain([slot]);
            for export in all.flat_map(Slot::exports) {
                let is_attached = device.query(export.id())?.attachments > 0;
                buffers = buffers.saturating_add(is_attached.into());
                of = of.saturating_add(1);
            }
        }
        let said = Attached {
            consumers,
            buffers,
            of,
        };
        Ok(self.audience.look(said, Instant::now()))
    }

    fn push(&mut self, slot: Slot, filled: &Filled) -> Result<()> {
        let mut record = self.camera.frame_record(filled);
        if self.pushed.saturating_add(1) == self.wanted {
            record.flags |= FRAME_LAST;
        }
        let bytes = record.bytes_used.iter().map(|bytes| u64::from(*bytes));
        let bytes: u64 = bytes.sum();
        self.describe(&slot, filled)?;
        let (hash, reply) = match self.verify {
            true => {
                let (hash, reply) = self.verification(&slot, filled)?;
                (Some(hash), reply)
            }
            false => (None, None),
        };
        let since = clock::now();
        let frame = self.producer.push(slot, record).map_err(|error| {
            Failure::from(error).about(format!("frame {}", self.pushed.saturating_add(1)))
        })?;
        self.viewer_limit.restart();
        self.out.insert(
            frame,
            Out {
                sequence: filled.sequence,
                since,
                hash,
                reply,
            },
        );
        self.pushed = self.pushed.saturating_add(1);
        self.bytes_shared = self.bytes_shared.saturating_add(bytes);
        Ok(())
    }

    /// Has the metadata of a frame's first buffer say where it is, if that is not as the frame
    /// before there.
    fn describe(&mut self, slot: &Slot, filled: &Filled) -> Result<()> {
        let image = self.camera.image_of(filled)?;
        let meta = Meta::new().name(self.name).image(image.clone());
        if self.images.insert(slot.number(), image) != meta.image {
            let first = slot.exports().next();
            let first: &Export = first.ok_or_else(|| Failure::new("a slot has no buffer"))?;
            self.producer.device().set_meta(first, &meta)?;
        }
        Ok(())
    }

    /// Says in the frame what viewers are to find in it.
    fn verification(&self, slot: &Slot, filled: &Filled) -> Result<(u64, Option<Wanted>)> {
        let mappings = (0..slot.buffers().len()).map(|index| slot.mapping(index));
        let mappings = mappings.collect::<std::result::Result<Vec<_>, _>>()?;
        let bytes = self.camera.frame_bytes(filled);
        let bytes = bytes.iter().map(|bytes| *bytes as usize);
        let hash = content::xxh3({ mappings.iter().copied() }.zip(bytes))?;
        let first = mappings.first().copied();
        let first = first.ok_or_else(|| Failure::new("a slot has no buffer"))?;
        let wanted = match self.replies {
            true => {
                let reply = reply_byte(first, self.pushed.saturating_add(1))?;
                let before = content::byte_at(first, place(reply))?;
                Some(Wanted { reply, before })
            }
            false => None,
        };
        let reply = wanted.as_ref().map(|wanted| wanted.reply);
        Verification { hash, reply }.write(first)?;
        Ok((hash, wanted))
    }

    /// What happened, without waiting for anything.
    fn take_events(&mut self) -> Result<()> {
        for _ in 0..EVENTS_AT_ONCE {
            let Some(event) = self.producer.next_event(Some(Duration::ZERO))? else {
                break;
            };
            self.event(event)?;
        }
        Ok(())
    }

    fn event(&mut self, event: ProducerEvent) -> Result<()> {
        match event {
            ProducerEvent::Returned {
                slot,
                frame,
                arrival,
                ..
            } => self.returned(slot, frame, arrival)?,
            ProducerEvent::Left { peer, .. } => {
                self.audience.forget();
                let left = StreamRecord::new("left", self.producer.id(), &self.name, Some(peer));
                self.output.print(&Record::Stream(left))?;
            }
            ProducerEvent::Lost { .. } => {
                return Err(Failure::revoked("the host revoked a buffer"));
            }
            ProducerEvent::Ended => return Err(Failure::revoked("the host revoked the stream")),
            ProducerEvent::Other(event) => match event.kind {
                // Somebody may have left.
                EventKind::Overflow => self.audience.forget(),
                EventKind::PeerUp | EventKind::PeerDown if self.viewers.contains(&event.peer) => {
                    self.output
                        .print(&Record::Event(EventRecord::from(&event)))?
                }
                _ => {}
            },
            _ => {}
        }
        Ok(())
    }

    /// Looks at the reply in a buffer that came back, and has it filled again.
    fn returned(&mut self, number: u32, frame: u64, arrival: u64) -> Result<()> {
        let Some(out) = self.out.remove(&frame) else {
            return Ok(());
        };
        // A slot that was lost meanwhile is none any more, which is said next.
        let Some(slot) = self.producer.acquire_number(number) else {
            return Ok(());
        };
        self.viewer_limit.restart();
        // Of a driver that does not say.
        let arrival = if arrival == 0 { clock::now() } else { arrival };
        let round_trip_us = micros(clock::between(out.since, arrival));
        self.round_trips.push(round_trip_us);
        let reply_ok = match &out.reply {
            None => None,
            Some(Wanted { reply, before }) => {
                let found = content::byte_at(slot.mapping(0)?, place(*reply))?;
                // One that was never looked at is not answered.
                (found != *before).then_some(found == reply.value)
            }
        };
        match (reply_ok, &out.reply) {
            (Some(true), _) => self.replies_ok = self.replies_ok.saturating_add(1),
            (Some(false), _) => self.mismatches = self.mismatches.saturating_add(1),
            (None, Some(_)) => self.unanswered = self.unanswered.saturating_add(1),
            (None, None) => {}
        }
        let id = slot.exports().next();
        self.output.print(&Record::Captured(Captured {
            frame,
            buffer: number,
            id: id.map(|export| export.id().to_string()).unwrap_or_default(),
            sequence: out.sequence,
            xxh3: out.hash.map(content::digits),
            round_trip_us,
            reply_ok,
        }))?;
        if self.wants_more() {
            if self.filling.is_empty() {
                self.camera_limit.restart();
            }
            self.fill(slot)?;
        }
        Ok(())
    }

    /// Leaves the last frame with its viewers; reports when it comes back.
    fn hold(&mut self, stop: &mut Stop) -> Result<()> {
        while !stop.requested() {
            stop.wait([self.producer.as_fd()], None)?;
            self.take_events()?;
        }
        Ok(())
    }

    /// Whether what was to be verified is right.
    fn verdict(&self) -> Result<()> {
        let back = self.round_trips.count();
        if self.mismatches > 0 {
            let wrong = self.mismatches;
            return Err(Failure::new(format!(
                "{wrong} of {back} frames came back with a wrong reply"
            )));
        }
        if self.unanswered > 0 && self.replies_ok == 0 {
            return Err(Failure::new(format!(
                "none of {back} frames came back with a reply; `bufshare view --verify` writes one"
            )));
        }
        Ok(())
    }

    fn summary(&self, seconds: f64, ended: &'static str) -> CaptureSummary {
        CaptureSummary {
            frames: self.pushed,
            returned: self.round_trips.count(),
            replies_ok: self.replies_ok,
            mismatches: self.mismatches,
            unanswered: self.unanswered,
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

fn place(reply: ReplyByte) -> usize {
    usize::try_from(reply.offset).unwrap_or(usize::MAX)
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
