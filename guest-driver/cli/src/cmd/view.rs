// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bufshare view`: another machine's frames on this one's screen.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bufshare::{BufferId, Device, Event, EventKind, Image, Import, Mapping, Rights, Status};
use bufshare_media::drm::{self, Screen};

use crate::args::View;
use crate::cmd::capture::Deadline;
use crate::content;
use crate::durations::Durations;
use crate::failure::{Failure, Result};
use crate::frame::Frame;
use crate::image::{self, Mapped};
use crate::inbox::{Inbox, Waiting};
use crate::output::{EventRecord, Output, Record, ScreenRecord, ViewSummary, Viewed, micros};
use crate::pump::Pump;
use crate::session::{Held, Session, find_peer};
use crate::stop::{Input, Stop, ended};

/// Looks at frames until there were enough.
pub(crate) fn run(session: &Session, args: &View) -> Result<()> {
    let mut stop = Stop::new(Input::Ignored)?;
    let device = session.open()?;
    let camera = find_peer(&device.peers()?, &args.from)?.id;
    let events = session.events()?;
    let mut viewer = Viewer::new(session.output, &device, camera, args);

    let started = Instant::now();
    let result = viewer.look(&mut stop, &events, args);
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
        viewer.hold(&mut stop, &events)?;
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

/// A camera without viewer announces nothing new for that long.
const SETTLE: Duration = Duration::from_millis(500);
/// Longest wait for that.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);
/// From the first byte that a driver fills of a buffer to the announcement of that frame.
const FILL_LIMIT: Duration = Duration::from_secs(5);
/// So many events and frames are taken at most before it is asked whether the time is up,
/// and once it is: more than the driver keeps.
const LATE_TURNS: u32 = 1024;

fn no_frame(args: &View) -> Failure {
    let seconds = args.timeout.as_secs_f64();
    Failure::timeout(format!(
        "no new frame from \"{}\" within {seconds} s; does `bufshare capture` run there?",
        args.from
    ))
}

fn no_hash() -> Failure {
    Failure::new("its camera announces no hash; `bufshare capture --verify` does")
}

/// The buffer does not exist any more.
fn is_gone(failure: &Failure) -> bool {
    matches!(failure.status(), Some(Status::NotFound | Status::Revoked))
}

/// Whether the reply is there already: another viewer has looked at the frame, and what the
/// camera announced of the buffer is out of date. Nothing else is like it: before that, the
/// byte differs from the reply.
fn answered(mapping: &Mapping, frame: &Frame) -> Result<bool> {
    match frame.reply {
        Some(reply) => {
            let offset = usize::try_from(reply.offset).unwrap_or(usize::MAX);
            Ok(content::byte_at(mapping, offset)? == reply.value)
        }
        None => Ok(false),
    }
}

/// A frame's buffers. The one that announces it goes last: with it begins the way back.
struct Imports {
    others: Vec<Import>,
    first: Import,
}

impl Imports {
    /// In the order of the frame's planes.
    fn all(&self) -> impl Iterator<Item = &Import> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Mapped with these rights, those that are read alone for reading.
    fn map(&self, rights: Rights) -> Result<Mappings> {
        let others = self
            .others
            .iter()
            .map(|other| other.buffer.map(Rights::READ));
        Ok(Mappings {
            first: self.first.buffer.map(rights)?,
            others: others.collect::<std::result::Result<_, _>>()?,
        })
    }
}

/// Their memory.
struct Mappings {
    first: Mapping,
    others: Vec<Mapping>,
}

impl Mappings {
    fn all(&self) -> impl Iterator<Item = &Mapping> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// How many bytes of each are the frame's. `None`: not within these.
    fn sizes(&self, frame: &Frame) -> Option<Vec<usize>> {
        let bytes = frame.parts.iter().map(|part| part.bytes);
        let bytes = std::iter::once(frame.bytes).chain(bytes);
        let size = |(mapping, bytes): (&Mapping, u64)| {
            let bytes = usize::try_from(bytes).ok()?;
            (bytes <= mapping.len()).then_some(bytes)
        };
        self.all().zip(bytes).map(size).collect()
    }
}

/// A frame that we hold. The card gives it up before the imports end.
struct Shown {
    picture: Option<drm::Shown>,
    imports: Imports,
    since: Instant,
    record: Viewed,
}

struct Viewer<'a> {
    output: Output,
    device: &'a Device,
    camera: u64,
    display: bool,
    verify: bool,
    card: Option<std::path::PathBuf>,
    screen: Option<Screen>,
    inbox: Inbox,
    shown: Option<Shown>,
    mapped: HashSet<BufferId>,
    frames: u64,
    mismatches: u64,
    bytes: u64,
    ways: Vec<&'static str>,
    first_maps: Durations,
    repeat_maps: Durations,
    holds: Durations,
    windows_peak: u32,
    last_seen: bool,
}

impl<'a> Viewer<'a> {
    fn new(output: Output, device: &'a Device, camera: u64, args: &View) -> Self {
        Self {
            output,
            device,
            camera,
            display: !args.no_display,
            verify: args.verify,
            card: args.card.clone(),
            screen: None,
            inbox: Inbox::default(),
            shown: None,
            mapped: HashSet::new(),
            frames: 0,
            mismatches: 0,
            bytes: 0,
            ways: Vec::new(),
            first_maps: Durations::default(),
            repeat_maps: Durations::default(),
            holds: Durations::default(),
            windows_peak: 0,
            last_seen: false,
        }
    }

    fn look(&mut self, stop: &mut Stop, events: &Pump, args: &View) -> Result<()> {
        let poll = Duration::from_millis(args.poll);
        let mut deadline = Deadline::new(args.timeout);
        let mut late: u32 = 0;
        self.join(stop)?;
        while !stop.requested() && !self.enough(args.frames) {
            // We may have stood still: what came meanwhile counts, but not without end.
            if deadline.passed() {
                late = late.saturating_add(1);
                if late > LATE_TURNS {
                    return Err(no_frame(args));
                }
            }
            if let Some(waiting) = self.inbox.take() {
                if self.show(waiting, stop, events)? {
                    deadline.restart();
                    late = 0;
                }
                self.collect(stop, events)?;
                continue;
            }
            let [ready] = stop.wait([events.as_fd()], Some(poll.min(deadline.left())))?;
            if ready {
                if let Some((at, event)) = events.take()? {
                    self.event(at, &event)?;
                }
                continue;
            }
            if stop.requested() {
                continue;
            }
            self.ask()?;
            // We may have stood still, and have no event of what is there.
            if deadline.passed() && self.inbox.is_empty() {
                return Err(no_frame(args));
            }
        }
        Ok(())
    }

    /// Takes the events that came meanwhile, without waiting for any.
    fn collect(&mut self, stop: &mut Stop, events: &Pump) -> Result<()> {
        for _ in 0..LATE_TURNS {
            let [true] = stop.wait([events.as_fd()], Some(Duration::ZERO))? else {
                break;
            };
            if let Some((at, event)) = events.take()? {
                self.event(at, &event)?;
            }
        }
        Ok(())
    }

    /// Whether what is in a buffer is not the frame that was announced, as another viewer
    /// had that before, and the camera's driver fills the buffer again. That is announced
    /// soon. Nor is it a frame if the buffer is gone. `None`: a stop was requested before
    /// anybody could know.
    fn is_replaced(
        &mut self,
        id: BufferId,
        stop: &mut Stop,
        events: &Pump,
    ) -> Result<Option<bool>> {
        let deadline = Deadline::new(FILL_LIMIT);
        self.read_meta(id, Instant::now(), "list")?;
        while self.inbox.knows(id) && !self.inbox.holds(id) {
            if stop.requested() {
                return Ok(None);
            }
            if deadline.passed() {
                return Ok(Some(false));
            }
            let [ready] = stop.wait([events.as_fd()], Some(deadline.left()))?;
            if ready && let Some((at, event)) = events.take()? {
                self.event(at, &event)?;
            }
        }
        Ok(Some(true))
    }

    /// Takes stock. A camera that had another viewer may have frames that we find
    /// with its driver again. It runs out of buffers soon, as nobody hands any
    /// back; from then on what is announced is what waits for us.
    fn join(&mut self, stop: &mut Stop) -> Result<()> {
        self.ask()?;
        if !self.inbox.had_viewer() {
            return Ok(());
        }
        let limit = Instant::now().checked_add(SETTLE_LIMIT);
        let mut before = None;
        while before.as_ref() != Some(&self.inbox.state())
            && limit.is_none_or(|limit| Instant::now() < limit)
            && !stop.requested()
        {
            before = Some(self.inbox.state());
            stop.wait_for_it(Some(SETTLE))?;
            self.ask()?;
        }
        Ok(())
    }

    fn enough(&self, frames: u64) -> bool {
        if frames == 0 {
            self.last_seen && self.inbox.is_empty()
        } else {
            self.frames >= frames
        }
    }

    /// Looks for buffers whose metadata is newer than what we saw.
    fn ask(&mut self) -> Result<()> {
        let since = Instant::now();
        let buffers = self.device.list()?;
        let gone: Vec<BufferId> = self
            .inbox
            .buffers()
            .filter(|id| buffers.iter().all(|buffer| buffer.id != *id))
            .collect();
        for id in gone {
            self.forget(id);
        }
        for buffer in buffers {
            let offered = buffer.owner == self.camera && !buffer.owned;
            if offered && self.inbox.is_news(buffer.id, buffer.meta_seq) {
                self.read_meta(buffer.id, since, "list")?;
            }
        }
        Ok(())
    }

    fn event(&mut self, at: Instant, event: &Event) -> Result<()> {
        if event.kind == EventKind::Overflow {
            return self.ask();
        }
        if event.peer != self.camera {
            return Ok(());
        }
        match event.kind {
            EventKind::Offer => self.read_meta(event.id, at, "event"),
            EventKind::Meta if self.inbox.is_news(event.id, event.value) => {
                self.read_meta(event.id, at, "event")
            }
            EventKind::Revoked => {
                self.forget(event.id);
                Ok(())
            }
            EventKind::PeerDown => {
                self.output
                    .print(&Record::Event(EventRecord::from(event)))?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn forget(&mut self, id: BufferId) {
        self.inbox.forget(id);
        self.mapped.remove(&id);
    }

    /// Notes the frame in a buffer, if it is one and a new one.
    fn read_meta(&mut self, id: BufferId, since: Instant, woken_by: &'static str) -> Result<()> {
        let (seq, meta) = match self.device.get_meta(id) {
            Ok(answer) => answer,
            Err(error) => {
                let failure = Failure::from(error);
                if is_gone(&failure) {
                    // Gone already; its REVOKED is on the way.
                    self.forget(id);
                    return Ok(());
                }
                return Err(failure);
            }
        };
        // The size is checked again against the import.
        if self.inbox.read(id, seq)
            && let Some(frame) = Frame::decode(&meta.blob, u64::MAX)
        {
            self.inbox.put(Waiting {
                id,
                frame,
                image: meta.image,
                since,
                woken_by,
            });
        }
        Ok(())
    }

    /// Imports a frame, checks it if that is asked for, puts it on the screen, answers, and lets
    /// the one before go. Answers whether it was there to be looked at.
    fn show(&mut self, waiting: Waiting, stop: &mut Stop, events: &Pump) -> Result<bool> {
        let Waiting {
            id,
            frame,
            image,
            since,
            woken_by,
        } = waiting;
        let about = |e: Failure| e.about(format!("frame {}", frame.number));
        let rights = if frame.reply.is_some() {
            Rights::RW
        } else {
            Rights::READ
        };
        let start = Instant::now();
        let imports = match self.import(id, &frame, rights) {
            Ok(imports) => imports,
            Err(failure) if is_gone(&failure) => {
                self.forget(id);
                return Ok(false);
            }
            Err(failure) => return Err(about(failure)),
        };
        let mappings = imports.map(rights).map_err(about)?;
        for mapping in mappings.all() {
            content::byte_at(mapping, 0).map_err(about)?;
        }
        let map_us = micros(start.elapsed());

        let size = mappings.first.len() as u64;
        let fits = frame.reply.is_none_or(|reply| reply.offset < size);
        let bytes = mappings.sizes(&frame).filter(|_| fits);
        let bytes =
            bytes.ok_or_else(|| about(Failure::new("its description does not fit its buffers")))?;
        if answered(&mappings.first, &frame).map_err(about)? {
            return Ok(false);
        }
        let start = Instant::now();
        let seen = if self.verify {
            let announced = frame.hash.ok_or_else(|| about(no_hash()))?;
            let hash = content::xxh3(mappings.all().zip(bytes)).map_err(about)?;
            Some((hash, hash == announced))
        } else {
            None
        };
        let hash_us = seen.map(|_| micros(start.elapsed()));
        let hash_ok = seen.map(|(_, ok)| ok);
        // Once one was really wrong, each may be: they are not waited for.
        let wrong = hash_ok == Some(false) && self.mismatches == 0;
        if wrong && self.is_replaced(id, stop, events).map_err(about)? != Some(false) {
            return Ok(false);
        }

        let start = Instant::now();
        // One that comes late is checked, but older than what is on the screen.
        let picture = if self.display && !self.inbox.is_late(&frame) {
            Some(
                self.put_on_screen(&imports, image.as_ref(), &mappings)
                    .map_err(about)?,
            )
        } else {
            None
        };
        let show_us = picture.is_some().then(|| micros(start.elapsed()));
        if let Some(reply) = frame.reply {
            let offset = usize::try_from(reply.offset).unwrap_or(usize::MAX);
            content::write_at(&mappings.first, offset, &[reply.value]).map_err(about)?;
        }
        drop(mappings);

        let first = self.mapped.insert(id);
        let way = imports.first.way.name();
        let shown = Shown {
            picture,
            record: Viewed {
                frame: frame.number,
                id: id.to_string(),
                sequence: frame.sequence,
                hash_ok,
                xxh3: seen.map(|(hash, _)| content::digits(hash)),
                map_us,
                map: if first { "first" } else { "repeat" },
                hash_us,
                show_us,
                hold_us: None,
                release_us: None,
                way,
                windows: imports.all().map(|import| import.windows).sum(),
                replied: frame.reply.is_some(),
                woken_by,
            },
            imports,
            since,
        };
        self.count(&frame, &shown.record, first);
        if shown.picture.is_some() {
            // The one before is off the screen now.
            self.release()?;
            self.shown = Some(shown);
        } else {
            self.hand_back(shown)?;
        }
        if first {
            let used = self.device.info()?.windows_used;
            self.windows_peak = self.windows_peak.max(used);
        }
        Ok(true)
    }

    /// Imports a frame, whole.
    fn import(&self, id: BufferId, frame: &Frame, rights: Rights) -> Result<Imports> {
        let first = self.device.import(id, rights)?;
        let others = frame.parts.iter();
        let others = others.map(|part| self.device.import(part.id, rights));
        Ok(Imports {
            others: others.collect::<std::result::Result<_, _>>()?,
            first,
        })
    }

    fn put_on_screen(
        &mut self,
        imports: &Imports,
        image: Option<&Image>,
        mappings: &Mappings,
    ) -> Result<drm::Shown> {
        let sizes: Vec<u64> = mappings.all().map(|memory| memory.len() as u64).collect();
        let image = image
            .filter(|image| image.fits_frame(&sizes))
            .ok_or_else(|| Failure::new("it is not described as an image, or does not fit"))?;
        let dmabufs: Vec<_> = imports.all().map(|import| import.buffer.as_fd()).collect();
        let image = image::from_metadata(image);
        let memory = Mapped(mappings.all().collect());
        if let Some(screen) = &mut self.screen {
            return Ok(screen.show(&dmabufs, &image, &memory)?);
        }
        let opened = Screen::open(self.card.as_deref(), &dmabufs, &image, &memory);
        let (screen, shown) =
            opened.map_err(|e| Failure::from(e).hint("--no-display does without"))?;
        self.output
            .print(&Record::Screen(ScreenRecord::from(&screen)))?;
        self.screen = Some(screen);
        Ok(shown)
    }

    fn count(&mut self, frame: &Frame, record: &Viewed, first: bool) {
        self.inbox.done(frame);
        self.last_seen |= frame.last;
        self.frames = self.frames.saturating_add(1);
        let parts = frame.parts.iter().map(|part| part.bytes);
        let bytes = parts.fold(frame.bytes, u64::saturating_add);
        self.bytes = self.bytes.saturating_add(bytes);
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

    /// Hands the frame on the screen back.
    fn release(&mut self) -> Result<()> {
        self.shown
            .take()
            .map_or(Ok(()), |shown| self.hand_back(shown))
    }

    fn hand_back(&mut self, shown: Shown) -> Result<()> {
        let Shown {
            picture,
            imports,
            since,
            mut record,
        } = shown;
        drop(picture);
        // The last thing that keeps the attachment: with it begins the way back.
        let hold = micros(since.elapsed());
        let release = Instant::now();
        drop(imports);
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

    /// Keeps the last frame until a stop is requested, or until its buffer is revoked.
    fn hold(&mut self, stop: &mut Stop, events: &Pump) -> Result<()> {
        while !stop.requested() {
            let [ready] = stop.wait([events.as_fd()], None)?;
            if !ready {
                continue;
            }
            let Some((_, event)) = events.take()? else {
                continue;
            };
            let ends = match &self.shown {
                Some(shown) => {
                    let mut ends = false;
                    for import in shown.imports.all() {
                        ends |= Held::Import(import).ends_with(&event, self.device)?;
                    }
                    ends
                }
                None => false,
            };
            if ends {
                self.output
                    .print(&Record::Event(EventRecord::from(&event)))?;
                self.release()?;
            }
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
            missed: self.inbox.missed(),
            bytes_shared: self.bytes,
            ways: self.ways.clone(),
            buffers: self.mapped.len(),
            first_map_us: self.first_maps.spread(),
            repeat_map_us: self.repeat_maps.spread(),
            hold_us: self.holds.spread(),
            windows_used_peak: self.windows_peak,
            on_screen: self.shown.as_ref().map(|shown| shown.record.frame),
            screen: self.screen.as_ref().map(|screen| screen.name().to_owned()),
            screen_bytes_copied: self.screen.as_ref().map_or(0, Screen::copied),
            seconds,
            ended,
        }
    }
}
