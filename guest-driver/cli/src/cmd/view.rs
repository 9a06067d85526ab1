// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bufshare view`: another machine's frames on this one's screen.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bufshare::{
    BufferId, Consumer, ConsumerEvent, ConsumerOptions, EventKind, FRAME_LAST, Frame, FrameRecord,
    Import, Mapping, Name, Rights, Status,
};
use bufshare_media::drm::{self, Screen};

use crate::args::View;
use crate::clock;
use crate::cmd::capture::Deadline;
use crate::content;
use crate::durations::Durations;
use crate::failure::{Failure, Result};
use crate::image::{self, Mapped};
use crate::output::{
    EventRecord, Output, Record, ScreenRecord, StreamRecord, ViewSummary, Viewed, micros,
};
use crate::session::{Session, find_peer, stream_name};
use crate::stop::{Input, Stop, ended};
use crate::verify::Verification;

/// How long an event may take from the driver to us.
const LAST_LOOK: Duration = Duration::from_millis(500);
/// So many events are taken once the time is up: more than the driver keeps.
const LATE_EVENTS: u32 = 1024;

/// Looks at frames until there were enough.
pub(crate) fn run(session: &Session, args: &View) -> Result<()> {
    let mut stop = Stop::new(Input::Ignored)?;
    let name = stream_name(&args.name)?;
    let device = session.open_for_frames()?;
    let camera = find_peer(&device.peers()?, &args.from)?.id;
    // The library keeps some back for other streams: this program has one.
    let options = ConsumerOptions::new()
        .rejoin(true)
        .max_windows(device.info()?.max_windows);
    // A reply is written into the frame.
    let options = options.write_if_granted(args.verify);
    let mut consumer = Consumer::of_peer(device, camera, name, &options);
    let mut viewer = Viewer::new(session.output, (camera, name), args);

    let started = Instant::now();
    let result = viewer.look(&mut consumer, &mut stop, args);
    let seconds = started.elapsed().as_secs_f64();
    let ended = ended(&stop, &result);
    let released = if !args.hold || result.is_err() {
        viewer.release()
    } else {
        // It is printed again when it is released.
        viewer.report_shown()
    };
    let printed = session
        .output
        .print(&Record::ViewSummary(viewer.summary(seconds, ended)));
    // The first error is the reason of those that follow.
    result?;
    released?;
    printed?;

    if args.hold && !stop.requested() {
        stop.listen_to(args.until.input(Input::Line))?;
        viewer.hold(&mut consumer, &mut stop)?;
    }
    viewer.release()?;
    match viewer.mismatches {
        0 => Ok(()),
        wrong => Err(Failure::new(format!(
            "{wrong} of {} frames are not what the camera sent",
            viewer.frames
        ))),
    }
}

fn no_hash() -> Failure {
    Failure::new("its camera says no hash; `bufshare capture --verify` does")
}

/// A frame failed because a buffer of it does not exist any more. What is not of the library, as
/// the screen's card, has no word for that.
fn is_gone(failure: &Failure, is_revoked: impl FnOnce() -> bool) -> bool {
    matches!(failure.status(), Some(Status::NotFound | Status::Revoked)) || is_revoked()
}

/// Why no frame came in so many seconds. The stream may have ended, after so many frames of so
/// many that were wanted.
fn lack(from: &str, name: &Name, ended: Option<(u64, u64)>, seconds: f64) -> String {
    let stream = format!("the stream \"{name}\" of \"{from}\"");
    match ended {
        Some((seen, wanted)) => format!(
            "{stream} ended after {seen} of {wanted} frames, and no other came within {seconds} s"
        ),
        None => format!(
            "no new frame of {stream} within {seconds} s; does `bufshare capture` run there?"
        ),
    }
}

/// How many bytes of each of these are the frame's: those that its record says, else all.
fn sizes(record: &FrameRecord, mappings: &[&Mapping]) -> Vec<usize> {
    let used = record.bytes_used.iter().zip(mappings);
    let used = used.map(|(bytes, mapping)| match *bytes as usize {
        0 => mapping.len(),
        bytes => bytes,
    });
    used.collect()
}

/// A frame that we hold. The card gives it up before it is returned.
struct Shown {
    picture: Option<drm::Shown>,
    frame: Frame,
    record: Viewed,
}

struct Viewer {
    output: Output,
    camera: u64,
    name: Name,
    display: bool,
    verify: bool,
    card: Option<std::path::PathBuf>,
    screen: Option<Screen>,
    /// Bytes that were copied to screens before that one.
    copied: u64,
    shown: Option<Shown>,
    mapped: HashSet<BufferId>,
    frames: u64,
    mismatches: u64,
    rejected: u64,
    missed: u64,
    /// Epoch and sequence of the frame before.
    before: Option<(u64, u64)>,
    bytes: u64,
    ways: Vec<&'static str>,
    buffers: HashSet<BufferId>,
    first_maps: Durations,
    repeat_maps: Durations,
    holds: Durations,
    windows_peak: u32,
    /// No frame comes any more in this epoch.
    last_seen: bool,
}

impl Viewer {
    fn new(output: Output, (camera, name): (u64, Name), args: &View) -> Self {
        Self {
            output,
            camera,
            name,
            display: !args.no_display,
            verify: args.verify,
            card: args.card.clone(),
            screen: None,
            copied: 0,
            shown: None,
            mapped: HashSet::new(),
            frames: 0,
            mismatches: 0,
            rejected: 0,
            missed: 0,
            before: None,
            bytes: 0,
            ways: Vec::new(),
            buffers: HashSet::new(),
            first_maps: Durations::default(),
            repeat_maps: Durations::default(),
            holds: Durations::default(),
            windows_peak: 0,
            last_seen: false,
        }
    }

    fn look(&mut self, consumer: &mut Consumer, stop: &mut Stop, args: &View) -> Result<()> {
        let mut deadline = Deadline::new(args.timeout);
        let mut late: u32 = 0;
        while !stop.requested() && !self.enough(args.frames) {
            if deadline.passed() {
                late = late.saturating_add(1);
            }
            if let Some(event) = consumer.next_event(Some(Duration::ZERO))? {
                if self.event(consumer, event)? {
                    deadline.restart();
                    late = 0;
                }
                // What else comes is not waited for without end.
                if late <= LATE_EVENTS {
                    // A signal is heard also where frames never cease.
                    stop.wait([], Some(Duration::ZERO))?;
                    continue;
                }
            }
            if late > 1 {
                return Err(self.no_frame(args));
            }
            // We may have stood still: what came meanwhile counts.
            let left = match late {
                0 => deadline.left(),
                _ => LAST_LOOK,
            };
            stop.wait([consumer.as_fd()], Some(left))?;
        }
        Ok(())
    }

    fn no_frame(&self, args: &View) -> Failure {
        let ended = self.last_seen.then_some((self.frames, args.frames));
        let seconds = args.timeout.as_secs_f64();
        Failure::timeout(lack(&args.from, &self.name, ended, seconds))
    }

    fn enough(&self, frames: u64) -> bool {
        if frames == 0 {
            self.last_seen
        } else {
            self.frames >= frames
        }
    }

    /// Answers whether it was a frame that was looked at.
    fn event(&mut self, consumer: &Consumer, event: ConsumerEvent) -> Result<bool> {
        match event {
            ConsumerEvent::Frame(frame) => return self.frame(consumer, frame),
            ConsumerEvent::Joined { stream, record, .. } => {
                self.last_seen = false;
                self.say("joined", stream.id)?;
                self.ended(record.ended, stream.id)?;
            }
            ConsumerEvent::Record { record, .. } => {
                let stream = consumer.stream().unwrap_or(BufferId::ZERO);
                self.ended(record.ended, stream)?;
            }
            ConsumerEvent::Over { stream, .. } => self.say("over", stream)?,
            ConsumerEvent::Rejected {
                frame,
                sequence,
                why,
                ..
            } => {
                self.rejected = self.rejected.saturating_add(1);
                self.output.warn(&format!(
                    "frame {frame}, number {sequence} of its camera, was given back unseen: {why}"
                ));
            }
            ConsumerEvent::Revoked { buffer, frame, .. } => {
                self.mapped.remove(&buffer);
                let shown = self.shown.as_ref().map(|shown| shown.frame.number());
                if frame.is_some() && frame == shown {
                    self.release()?;
                }
            }
            ConsumerEvent::Refused { buffer, error, .. } => {
                let what = if buffer.is_stream { "stream" } else { "buffer" };
                let about = format!("{what} {} of \"{}\"", buffer.id, self.name);
                return Err(Failure::from(error).about(about));
            }
            ConsumerEvent::Other(event)
                if event.peer == self.camera && event.kind == EventKind::PeerDown =>
            {
                self.output
                    .print(&Record::Event(EventRecord::from(&event)))?;
            }
            _ => {}
        }
        Ok(false)
    }

    fn say(&self, state: &'static str, stream: BufferId) -> Result<()> {
        let record = StreamRecord::new(state, stream, &self.name, Some(self.camera));
        self.output.print(&Record::Stream(record))
    }

    /// Says once that no frame comes any more: the last one says so, and then the stream's record.
    fn ended(&mut self, ended: bool, stream: BufferId) -> Result<()> {
        if ended && !std::mem::replace(&mut self.last_seen, true) {
            self.say("ended", stream)?;
        }
        Ok(())
    }

    /// Looks at a frame. One whose memory goes meanwhile, as its camera's program ends, is none.
    fn frame(&mut self, consumer: &Consumer, frame: Frame) -> Result<bool> {
        let is_revoked = || frame.imports().any(|import| import.buffer.is_revoked());
        let about = |failure: Failure| failure.about(format!("frame {}", frame.number()));
        let (picture, record) = match self.show(consumer, &frame) {
            Err(failure) if is_gone(&failure, is_revoked) => return Ok(false),
            shown => shown.map_err(about)?,
        };
        let stream = consumer.stream().unwrap_or(BufferId::ZERO);
        self.ended(frame.record().flags & FRAME_LAST != 0, stream)?;
        // The one before is off the screen now.
        self.release()?;
        self.shown = Some(Shown {
            picture,
            frame,
            record,
        });
        if !self.display {
            self.release()?;
        }
        Ok(true)
    }

    /// Checks a frame if that is asked for, puts it on the screen, and answers. Returns what keeps
    /// it there, and what is to be said of it.
    fn show(&mut self, consumer: &Consumer, frame: &Frame) -> Result<(Option<drm::Shown>, Viewed)> {
        let start = Instant::now();
        let count = frame.imports().len();
        let mappings = (0..count).map(|index| frame.mapping(index));
        let mappings = mappings.collect::<std::result::Result<Vec<_>, _>>()?;
        for mapping in &mappings {
            content::byte_at(mapping, 0)?;
        }
        let map_us = micros(start.elapsed());
        let (import, memory) = frame
            .imports()
            .next()
            .zip(mappings.first().copied())
            .ok_or_else(|| Failure::new("it is in no buffer"))?;
        let (id, way) = (import.id, import.way.name());
        let windows = frame.imports().map(|import| import.windows).sum();
        let bytes = sizes(frame.record(), &mappings);

        let start = Instant::now();
        let said = match self.verify {
            true => Some(Verification::read(memory)?.ok_or_else(no_hash)?),
            false => None,
        };
        let seen = match said {
            None => None,
            Some(said) => {
                let hash = content::xxh3({ mappings.iter().copied() }.zip(bytes.iter().copied()))?;
                Some((hash, hash == said.hash))
            }
        };
        let hash_us = seen.map(|_| micros(start.elapsed()));

        let start = Instant::now();
        let picture = match self.display {
            true => Some(self.put_on_screen(frame, &mappings)?),
            false => None,
        };
        let show_us = picture.is_some().then(|| micros(start.elapsed()));
        let reply = said.and_then(|said| said.reply);
        let reply = reply.filter(|_| memory.rights().contains(Rights::WRITE));
        if let Some(reply) = reply {
            let offset = usize::try_from(reply.offset).unwrap_or(usize::MAX);
            content::write_at(memory, offset, &[reply.value])?;
        }

        let first = self.mapped.insert(id);
        if first {
            let used = consumer.device().info()?.windows_used;
            self.windows_peak = self.windows_peak.max(used);
        }
        let record = Viewed {
            frame: frame.number(),
            id: id.to_string(),
            sequence: frame.record().sequence,
            hash_ok: seen.map(|(_, ok)| ok),
            xxh3: seen.map(|(hash, _)| content::digits(hash)),
            map_us,
            map: if first { "first" } else { "repeat" },
            hash_us,
            show_us,
            hold_us: None,
            release_us: None,
            way,
            windows,
            replied: reply.is_some(),
        };
        self.buffers.insert(id);
        self.count(frame.record(), &record, &bytes, first);
        Ok((picture, record))
    }

    fn put_on_screen(&mut self, frame: &Frame, mappings: &[&Mapping]) -> Result<drm::Shown> {
        let image = frame.image();
        let image = image.ok_or_else(|| Failure::new("it is not described as an image"))?;
        let dmabufs: Vec<_> = frame.imports().map(dmabuf).collect();
        let image = image::from_metadata(image);
        let memory = Mapped(mappings.to_vec());
        match &mut self.screen {
            Some(screen) if screen.fits(&image) => {
                return Ok(screen.show(&dmabufs, &image, &memory)?);
            }
            // Of a camera that was started in another way. A card is controlled by one file only.
            Some(screen) => {
                self.copied = self.copied.saturating_add(screen.copied());
                self.release()?;
                self.screen = None;
            }
            None => {}
        }
        let opened = Screen::open(self.card.as_deref(), &dmabufs, &image, &memory);
        let (screen, shown) =
            opened.map_err(|e| Failure::from(e).hint("--no-display does without"))?;
        self.output
            .print(&Record::Screen(ScreenRecord::from(&screen)))?;
        self.screen = Some(screen);
        Ok(shown)
    }

    fn count(&mut self, said: &FrameRecord, record: &Viewed, bytes: &[usize], first: bool) {
        if let Some((epoch, sequence)) = self.before
            && epoch == said.epoch
        {
            let between = said.sequence.saturating_sub(sequence).saturating_sub(1);
            self.missed = self.missed.saturating_add(between);
        }
        self.before = Some((said.epoch, said.sequence));
        self.frames = self.frames.saturating_add(1);
        let bytes = bytes.iter().map(|bytes| *bytes as u64);
        self.bytes = bytes.fold(self.bytes, u64::saturating_add);
        if record.hash_ok == Some(false) {
            self.mismatches = self.mismatches.saturating_add(1);
        }
        if !self.ways.contains(&record.way) {
            self.ways.push(record.way);
        }
        if first {
            self.first_maps.push(record.map_us);
        } else {
            self.repeat_maps.push(record.map_us);
        }
    }

    /// Gives the frame that we have back.
    fn release(&mut self) -> Result<()> {
        let Some(shown) = self.shown.take() else {
            return Ok(());
        };
        let Shown {
            picture,
            frame,
            mut record,
        } = shown;
        drop(picture);
        let hold = micros(clock::between(frame.arrival(), clock::now()));
        let release = Instant::now();
        match frame.give_back() {
            // Its camera has ended, or ended it.
            Err(error) if error.is_revoked() => {}
            given => given?,
        }
        record.hold_us = Some(hold);
        record.release_us = Some(micros(release.elapsed()));
        self.holds.push(hold);
        self.output.print(&Record::Viewed(record))
    }

    fn report_shown(&self) -> Result<()> {
        match &self.shown {
            Some(shown) => self.output.print(&Record::Viewed(shown.record.clone())),
            None => Ok(()),
        }
    }

    /// Keeps the last frame until a stop is requested; it is an error if its buffer is revoked.
    /// Others are given back unseen: the camera goes on.
    fn hold(&mut self, consumer: &mut Consumer, stop: &mut Stop) -> Result<()> {
        let held = self.shown.as_ref().map(|shown| shown.frame.number());
        while !stop.requested() {
            if let Some(frame) = held.filter(|_| self.shown.is_none()) {
                return Err(Failure::revoked(format!("frame {frame} was revoked")));
            }
            match consumer.next_event(Some(Duration::ZERO))? {
                Some(ConsumerEvent::Frame(frame)) => drop(frame),
                Some(event) => {
                    self.event(consumer, event)?;
                }
                None => {
                    stop.wait([consumer.as_fd()], None)?;
                    continue;
                }
            }
            stop.wait([], Some(Duration::ZERO))?;
        }
        Ok(())
    }

    fn summary(&self, seconds: f64, ended: &'static str) -> ViewSummary {
        ViewSummary {
            frames: self.frames,
            hashes_match: self
                .verify
                .then_some(self.frames > 0 && self.mismatches == 0),
            mismatches: self.mismatches,
            missed: self.missed,
            rejected: self.rejected,
            bytes_shared: self.bytes,
            ways: self.ways.clone(),
            buffers: self.buffers.len(),
            first_map_us: self.first_maps.spread(),
            repeat_map_us: self.repeat_maps.spread(),
            hold_us: self.holds.spread(),
            windows_used_peak: self.windows_peak,
            on_screen: self.shown.as_ref().map(|shown| shown.record.frame),
            screen: self.screen.as_ref().map(|screen| screen.name().to_owned()),
            screen_bytes_copied: self
                .screen
                .iter()
                .map(Screen::copied)
                .fold(self.copied, u64::saturating_add),
            seconds,
            ended,
        }
    }
}

fn dmabuf(import: &Import) -> std::os::fd::BorrowedFd<'_> {
    import.buffer.as_fd()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_has_ended_is_said_to_be_the_reason_that_no_frame_comes() {
        let name = Name::new("front").unwrap();
        assert_eq!(
            lack("car", &name, Some((3, 5)), 1.5),
            "the stream \"front\" of \"car\" ended after 3 of 5 frames, and no other came \
             within 1.5 s"
        );
        let runs = lack("car", &name, None, 1.5);
        let why = "no new frame of the stream \"front\" of \"car\" within 1.5 s; does";
        assert!(runs.starts_with(why), "{runs}");
    }

    #[test]
    fn what_a_card_says_of_memory_that_is_gone_is_no_error() {
        let gone = std::io::Error::from_raw_os_error(libc::ENODEV);
        let failure = bufshare_media::Error::io("bochs-drm refuses the dma-buf", gone).into();
        assert!(is_gone(&failure, || true));
        assert!(!is_gone(&failure, || false));
        assert!(is_gone(&Failure::revoked("the camera has ended"), || false));
    }
}
