// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a consumer makes of the changes of the offers: which stream it joins, what it consumes,
//! and which frames it takes

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::consumer::{MAX_WINDOWS, Part, Wanted};
use crate::error::{Error, Result};
use crate::offers::MAX_IDLE;
use crate::{
    BufferId, BufferInfo, Change, ConsumerEvent, ConsumerOptions, Event, EventKind, Frame, Image,
    Joined, Meta, Operation, PushedFrame, Rect, Rejection, Status,
};

/// Whom [`Following`] asks
pub(crate) trait Source {
    fn now(&self) -> Instant;
    fn next_change(&mut self, timeout: Option<Duration>) -> Result<Option<Change>>;
    fn query(&self, id: BufferId) -> Result<BufferInfo>;
    fn join(&self, id: BufferId) -> Result<Joined>;
    fn get_meta(&self, id: BufferId) -> Result<(u64, Meta)>;
    /// If mapping it takes no more VMM mappings than that.
    fn consume(&mut self, buffer: &BufferInfo, max_windows: u32) -> Result<Part>;
    /// Asks nobody.
    fn is_revoked(&self, part: &Part) -> bool;
    fn return_frame(&self, part: &Part, frame: u64) -> Result<()>;
}

/// What the host may have to be asked for. It stays at the front until that has answered.
#[derive(Debug)]
enum Task {
    Join(BufferInfo),
    /// Read the stream's record anew, if that of this number is newer.
    Record(u64),
    Consume(BufferInfo),
    /// Join the stream anew.
    Renew,
    /// Events were lost: see which imports are still there.
    Verify,
    Frame(Event),
}

/// The image of a frame and its blob
type Described = (Option<Image>, Arc<[u8]>);

/// The buffers of a frame and what describes it, or why it is none
type Checked = std::result::Result<(Vec<Arc<Part>>, Described), Rejection>;

/// A buffer that is consumed
#[derive(Debug)]
struct Consumed {
    part: Arc<Part>,
    /// It outlives that until it is revoked: frames in it do not count then.
    stream: Option<BufferId>,
    /// 0: not read yet.
    meta_seq: u64,
    image: Option<Image>,
    blob: Arc<[u8]>,
}

/// The stream that is joined
#[derive(Debug)]
struct Current {
    info: BufferInfo,
    /// Leaves it when dropped. `None`: it has to be joined anew.
    joined: Option<Joined>,
    record_seq: u64,
    image: Option<Image>,
}

/// What was refused and may not be the next time
#[derive(Debug)]
struct Later {
    task: Task,
    /// VMM mappings that were left for it, which were too few; 0: that was not why.
    too_few: u32,
}

/// The state of a consumer
#[derive(Debug)]
pub(crate) struct Following {
    wanted: Wanted,
    rejoin: bool,
    /// VMM mappings that all parts may take.
    max_windows: u32,
    /// A stream was there, and is over or was refused; and no other is wanted.
    done: bool,
    current: Option<Current>,
    /// Parts of streams that are offered, of any stream: they may come before it.
    offered: BTreeMap<BufferId, BufferInfo>,
    consumed: BTreeMap<BufferId, Consumed>,
    tasks: VecDeque<Task>,
    ready: VecDeque<ConsumerEvent>,
    /// What was refused, and that was said: streams and parts of them.
    refused: BTreeMap<BufferId, BufferInfo>,
    /// What was refused and may not be the next time: tried one by one.
    later: VecDeque<Later>,
    /// When the first of those is tried; `None`: at once.
    retry: Option<Instant>,
}

/// Between two tries of what was refused: soon for people, and no load for the host.
const RETRY: Duration = Duration::from_secs(1);

impl Following {
    pub(crate) fn new(wanted: Wanted, options: &ConsumerOptions) -> Self {
        Self {
            wanted,
            rejoin: options.rejoin,
            max_windows: match options.max_windows {
                0 => MAX_WINDOWS,
                windows => windows,
            },
            done: false,
            current: None,
            offered: BTreeMap::new(),
            consumed: BTreeMap::new(),
            tasks: VecDeque::new(),
            ready: VecDeque::new(),
            refused: BTreeMap::new(),
            later: VecDeque::new(),
            retry: None,
        }
    }

    pub(crate) fn stream(&self) -> Option<BufferId> {
        self.current.as_ref().map(|current| current.info.id)
    }

    pub(crate) fn next(
        &mut self,
        source: &mut impl Source,
        timeout: Option<Duration>,
    ) -> Result<Option<ConsumerEvent>> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let left = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // Changes and tasks since it waited.
        let mut taken = 0;
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            if taken > MAX_IDLE {
                return Ok(Some(ConsumerEvent::Pending));
            }
            taken = u32::saturating_add(taken, 1);
            if let Some(task) = self.tasks.pop_front() {
                if let Err(error) = self.run(source, &task) {
                    self.tasks.push_front(task);
                    return Err(error);
                }
                continue;
            }
            let retry = self.until_retry(source.now());
            if retry == Some(Duration::ZERO) {
                let task = self.next_retry().and_then(|index| self.later.remove(index));
                self.tasks.extend(task.map(|later| later.task));
                continue;
            }
            let left = left();
            let wait = match (left, retry) {
                (Some(left), Some(retry)) => Some(left.min(retry)),
                (left, retry) => left.or(retry),
            };
            match source.next_change(wait)? {
                Some(change) => self.take(change),
                None if wait == left => return Ok(None),
                // It is time for what is to be tried again.
                None => taken = 0,
            }
        }
    }

    fn take(&mut self, change: Change) {
        match change {
            Change::Offered { buffer, .. } => self.offer(buffer),
            Change::Metadata { buffer, .. } => {
                // That of a buffer is read when a frame needs it.
                if self.stream() == Some(buffer.id) {
                    self.tasks.push_back(Task::Record(buffer.meta_seq));
                }
            }
            Change::Revoked { buffer, .. } => self.revoke(&buffer),
            Change::Other(event) => self.take_event(event),
        }
    }

    fn offer(&mut self, buffer: BufferInfo) {
        if let Some(stream) = buffer.stream {
            if self.stream() == Some(stream) {
                self.tasks.push_back(Task::Consume(buffer.clone()));
            }
            self.offered.insert(buffer.id, buffer);
        } else if !self.done && self.current.is_none() && self.wanted.is(&buffer) {
            self.tasks.push_back(Task::Join(buffer));
        }
    }

    fn revoke(&mut self, buffer: &BufferInfo) {
        self.forget(buffer.id);
        if self.stream() == Some(buffer.id) {
            self.leave(buffer.id);
        }
    }

    /// There is no such buffer any more.
    fn forget(&mut self, id: BufferId) {
        self.later.retain(|later| match &later.task {
            Task::Join(buffer) | Task::Consume(buffer) => buffer.id != id,
            _ => true,
        });
        self.offered.remove(&id);
        self.refused.remove(&id);
        self.end_import(id);
    }

    /// The import of that buffer is of no use any more.
    fn end_import(&mut self, id: BufferId) {
        if let Some(consumed) = self.consumed.remove(&id) {
            // There may be room for another one.
            self.retry = None;
            self.ready.push_back(ConsumerEvent::Revoked {
                buffer: id,
                frame: consumed.part.revoke(),
            });
        }
    }

    /// The stream is over. Buffers of it are revoked one by one.
    fn leave(&mut self, stream: BufferId) {
        self.current = None;
        self.later
            .retain(|later| !matches!(later.task, Task::Record(_) | Task::Renew));
        self.done = !self.rejoin;
        self.ready.push_back(ConsumerEvent::Over { stream });
    }

    fn take_event(&mut self, event: Event) {
        match event.kind {
            // What comes of a handle that is not known is of one that was closed.
            EventKind::Pushed => self.tasks.push_back(Task::Frame(event)),
            // Of an import; that of its offer came, or comes.
            EventKind::Revoked if self.consumed.contains_key(&event.id) => {
                self.forget(event.id);
            }
            EventKind::Overflow => {
                self.tasks.push_back(Task::Verify);
                self.ready.push_back(ConsumerEvent::Other(event));
            }
            _ => {
                // Its offer was not read yet, and is not reported any more.
                if event.kind == EventKind::Revoked {
                    self.forget(event.id);
                }
                self.ready.push_back(ConsumerEvent::Other(event));
            }
        }
    }

    fn run(&mut self, source: &mut impl Source, task: &Task) -> Result<()> {
        match task {
            Task::Join(stream) => self.join(source, stream.clone()),
            Task::Record(seq) => self.read_record(source, *seq),
            Task::Consume(buffer) => self.consume(source, buffer.clone()),
            Task::Renew => self.renew(source),
            Task::Verify => self.verify(source),
            Task::Frame(event) => self.frame(source, event),
        }
    }

    /// Says it once, and tries it again if that may help.
    fn refuse(&mut self, now: Instant, buffer: BufferInfo, error: Error, task: Task) {
        if may_pass(&error) {
            let too_few = match needs_room(&error) {
                true => self.windows_left(),
                false => 0,
            };
            self.later.push_back(Later { task, too_few });
        }
        self.retry = now.checked_add(RETRY);
        if self.refused.insert(buffer.id, buffer.clone()).is_none() {
            self.ready
                .push_back(ConsumerEvent::Refused { buffer, error });
        }
    }

    /// Which is to be tried next of what was refused. A buffer for which there is no more room
    /// than there was is passed over, so that nobody is asked for it in vain.
    fn next_retry(&self) -> Option<usize> {
        let left = self.windows_left();
        let mut later = self.later.iter();
        later.position(|later| match later.task {
            Task::Consume(_) => later.too_few < left,
            _ => true,
        })
    }

    /// How long until that.
    fn until_retry(&self, now: Instant) -> Option<Duration> {
        self.next_retry()?;
        let left = self.retry.map(|retry| retry.saturating_duration_since(now));
        Some(left.unwrap_or_default())
    }

    /// VMM mappings that further parts may take.
    fn windows_left(&self) -> u32 {
        // One for each at least, so that it limits their number, too.
        let parts = self.consumed.values();
        let used = parts.map(|consumed| consumed.part.windows().max(1));
        self.max_windows
            .saturating_sub(used.fold(0, u32::saturating_add))
    }

    /// Its record is read before its buffers are consumed.
    fn join(&mut self, source: &mut impl Source, stream: BufferInfo) -> Result<()> {
        if self.current.is_some() || self.done {
            return Ok(());
        }
        let joined = source.join(stream.id);
        let both = joined.and_then(|joined| Ok((joined, source.get_meta(stream.id)?)));
        match settled(both)? {
            Ok((joined, (record_seq, record))) => {
                let parts = self.offered.values();
                let parts = parts.filter(|part| part.stream == Some(stream.id));
                self.tasks.extend(parts.cloned().map(Task::Consume));
                self.refused.remove(&stream.id);
                self.current = Some(Current {
                    info: stream.clone(),
                    joined: Some(joined),
                    record_seq,
                    image: record.image.clone(),
                });
                self.ready
                    .push_back(ConsumerEvent::Joined { stream, record });
            }
            // It is gone again.
            Err(error) if error.is_absent() => {}
            Err(error) => {
                self.done = !self.rejoin && !may_pass(&error);
                let task = Task::Join(stream.clone());
                self.refuse(source.now(), stream, error, task);
            }
        }
        Ok(())
    }

    fn read_record(&mut self, source: &mut impl Source, seq: u64) -> Result<()> {
        let current = self.current.as_mut();
        let Some(current) = current.filter(|current| current.record_seq < seq) else {
            return Ok(());
        };
        match settled(source.get_meta(current.info.id))? {
            // What is read may be newer than what was heard of.
            Ok((seq, record)) => {
                current.record_seq = seq;
                current.image.clone_from(&record.image);
                self.refused.remove(&current.info.id);
                self.ready.push_back(ConsumerEvent::Record { record });
            }
            // Then it is over, which is to be heard next.
            Err(error) if error.is_absent() => {}
            Err(error) => {
                let buffer = current.info.clone();
                // The newest alone.
                self.later
                    .retain(|later| !matches!(later.task, Task::Record(_)));
                self.refuse(source.now(), buffer, error, Task::Record(seq));
            }
        }
        Ok(())
    }

    fn consume(&mut self, source: &mut impl Source, buffer: BufferInfo) -> Result<()> {
        let id = buffer.id;
        // The stream may be over meanwhile, or the buffer revoked.
        let wanted = self.stream().is_some() && self.stream() == buffer.stream;
        let known = self.consumed.get(&id).map(|known| known.meta_seq);
        if !wanted || known.is_some_and(|seq| seq != 0) || !self.offered.contains_key(&id) {
            return Ok(());
        }
        if known.is_none() {
            let part = match self.windows_left() {
                0 => Err(no_room()),
                left => source.consume(&buffer, left).map_err(|error| {
                    let partly = left < self.max_windows;
                    match error.status {
                        // It may be too much for what the others leave alone.
                        Some(Status::TooFragmented) if partly => no_room(),
                        _ => error,
                    }
                }),
            };
            match settled(part)? {
                Ok(part) => {
                    // Kept also if the host does not answer next: a frame may be there.
                    let consumed = Consumed {
                        part: Arc::new(part),
                        stream: buffer.stream,
                        meta_seq: 0,
                        image: None,
                        blob: Arc::default(),
                    };
                    self.consumed.insert(id, consumed);
                }
                Err(error) => {
                    self.not_consumed(source.now(), buffer, error);
                    return Ok(());
                }
            }
        }
        match settled(source.get_meta(id))? {
            Ok((seq, meta)) => {
                self.refused.remove(&id);
                if let Some(consumed) = self.consumed.get_mut(&id) {
                    (consumed.meta_seq, consumed.image) = (seq, meta.image);
                    consumed.blob = meta.blob.into();
                }
            }
            Err(error) => {
                self.consumed.remove(&id);
                self.not_consumed(source.now(), buffer, error);
            }
        }
        Ok(())
    }

    fn not_consumed(&mut self, now: Instant, buffer: BufferInfo, error: Error) {
        if !error.is_absent() {
            let task = Task::Consume(buffer.clone());
            self.refuse(now, buffer, error, task);
        }
    }

    fn renew(&mut self, source: &mut impl Source) -> Result<()> {
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        let mut joined = settled(source.join(current.info.id))?;
        if joined.as_ref().is_err_and(has_no_handle) && current.joined.take().is_some() {
            // That of the old join may be the one that is missing.
            joined = settled(source.join(current.info.id))?;
        }
        match joined {
            Ok(joined) => {
                current.joined = Some(joined);
                self.refused.remove(&current.info.id);
            }
            // The offers say so next.
            Err(error) if error.is_absent() => {}
            Err(error) => {
                let buffer = current.info.clone();
                self.refuse(source.now(), buffer, error, Task::Renew);
            }
        }
        Ok(())
    }

    /// After a suspend all imports are gone, and what they are of may still be offered. What was
    /// refused before may not be now.
    fn verify(&mut self, source: &mut impl Source) -> Result<()> {
        self.later
            .retain(|later| matches!(later.task, Task::Record(_)));
        let (stream, mut joins) = (self.stream(), false);
        for buffer in self.refused.values() {
            let task = match buffer.is_stream {
                true if stream.is_none() => Task::Join(buffer.clone()),
                false if stream == buffer.stream => Task::Consume(buffer.clone()),
                _ => continue,
            };
            joins |= buffer.is_stream;
            self.later.push_back(Later { task, too_few: 0 });
        }
        self.done &= !joins;
        self.retry = None;
        self.renew(source)?;
        let gone = self.consumed.iter();
        let gone = gone.filter(|(_, consumed)| source.is_revoked(&consumed.part));
        for id in gone.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end_import(id);
            if let Some(buffer) = self.offered.get(&id) {
                self.tasks.push_back(Task::Consume(buffer.clone()));
            }
        }
        Ok(())
    }

    fn frame(&mut self, source: &mut impl Source, event: &Event) -> Result<()> {
        let (Some(first), Some(pushed)) = (self.consumed.get(&event.id), &event.frame) else {
            return Ok(());
        };
        // One that was revoked and is consumed anew has another handle.
        if first.part.import.handle() != event.handle {
            return Ok(());
        }
        let over = first.stream != self.stream();
        let first = Arc::clone(&first.part);
        if over {
            let _ = source.return_frame(&first, event.value);
            return Ok(());
        }
        match self.check(source, event, pushed)? {
            Ok((parts, described)) => {
                let (number, arrival) = (event.value, pushed.arrival);
                let mut record = pushed.record.clone();
                // A frame without damage may have changed anywhere.
                if let Some(image) = &described.0
                    && !record.damage.iter().all(|rect| is_within(rect, image))
                {
                    record.damage.clear();
                }
                let frame = Frame::new(number, arrival, record, described, parts);
                self.ready.push_back(ConsumerEvent::Frame(frame));
            }
            Err(why) => {
                // It fails if it was revoked, and is returned then.
                let _ = source.return_frame(&first, event.value);
                self.ready.push_back(ConsumerEvent::Rejected {
                    frame: event.value,
                    sequence: pushed.record.sequence,
                    why,
                });
            }
        }
        Ok(())
    }

    /// The buffers of a frame, its image and its blob, if that can be what its producer says.
    fn check(
        &mut self,
        source: &mut impl Source,
        event: &Event,
        pushed: &PushedFrame,
    ) -> Result<Checked> {
        if !pushed.record.is_understood() {
            return Ok(Err(Rejection::NotUnderstood));
        }
        let ids = [event.id].into_iter().chain(pushed.others.iter().copied());
        let mut parts = Vec::new();
        for id in ids {
            // A frame may be read before the offer of its other buffers.
            if !self.consumed.contains_key(&id) && !self.offered.contains_key(&id) {
                match settled(source.query(id))? {
                    Ok(buffer) if buffer.stream.is_some() => {
                        self.offered.insert(id, buffer);
                    }
                    _ => return Ok(Err(Rejection::Buffer(id))),
                }
            }
            if let Some(buffer) = self.offered.get(&id)
                && !self.refused.contains_key(&id)
            {
                self.consume(source, buffer.clone())?;
            }
            match self.consumed.get(&id) {
                Some(consumed) if consumed.stream == self.stream() => {
                    parts.push(Arc::clone(&consumed.part));
                }
                _ => return Ok(Err(Rejection::Buffer(id))),
            }
        }
        let Some(first) = self.consumed.get_mut(&event.id) else {
            return Ok(Err(Rejection::Buffer(event.id)));
        };
        if first.meta_seq < pushed.meta_seq {
            match settled(source.get_meta(event.id))? {
                Ok((seq, meta)) => {
                    (first.meta_seq, first.image) = (seq, meta.image);
                    first.blob = meta.blob.into();
                }
                Err(_) => return Ok(Err(Rejection::Buffer(event.id))),
            }
        }
        let general = self.current.as_ref().and_then(|now| now.image.as_ref());
        let image = first.image.as_ref().or(general).cloned();
        let sizes: Vec<_> = parts.iter().map(|part| part.size()).collect();
        let blob = Arc::clone(&first.blob);
        Ok(fits(pushed, image.as_ref(), &sizes).map(|()| (parts, (image, blob))))
    }
}

/// Whether what is said of a frame can be, in buffers of these sizes, bytes.
fn fits(
    pushed: &PushedFrame,
    image: Option<&Image>,
    sizes: &[u64],
) -> std::result::Result<(), Rejection> {
    let record = &pushed.record;
    let room = sizes.iter().copied().chain(std::iter::repeat(0));
    let mut used = record.bytes_used.iter().zip(room);
    if !used.all(|(used, size)| u64::from(*used) <= size) {
        return Err(Rejection::BytesUsed);
    }
    let Some(image) = image else {
        return Ok(());
    };
    if !image.fits_frame(sizes) || !has_rows(image) {
        return Err(Rejection::Image);
    }
    match &record.crop {
        Some(crop) if !is_within(crop, image) => Err(Rejection::Crop),
        _ => Ok(()),
    }
}

fn is_within(rect: &Rect, image: &Image) -> bool {
    let within = |start: i32, length: u32, whole: u32| {
        let end = i64::from(start).saturating_add(length.into());
        start >= 0 && end <= whole.into()
    };
    within(rect.x, rect.width, image.width) && within(rect.y, rect.height, image.height)
}

/// Whether a linear image has as many rows as it is high. Planes of no bytes fit any buffer. Of
/// another layout the planes' rows need not be those of the image, or are not known.
fn has_rows(image: &Image) -> bool {
    if image.modifier != LINEAR {
        return true;
    }
    let mut planes = image.planes.iter();
    let high = image.planes.first();
    high.is_some_and(|first| first.rows >= image.height)
        && planes.all(|plane| plane.stride != 0 && plane.rows != 0)
}

/// `DRM_FORMAT_MOD_LINEAR`.
const LINEAR: u64 = 0;

/// An error that ends the call, because it is to be tried again: the host has not answered, or
/// the device is gone. Any other is an answer.
fn settled<T>(result: Result<T>) -> Result<std::result::Result<T, Error>> {
    match result {
        Ok(found) => Ok(Ok(found)),
        Err(error) => match (error.status, Errno::from_io_error(&error.errno)) {
            (None, Some(Errno::TIMEDOUT | Errno::NODEV | Errno::INTR)) => Err(error),
            _ => Ok(Err(error)),
        },
    }
}

/// The buffers of the stream leave it too few VMM mappings.
fn no_room() -> Error {
    Error::new(Operation::Consume, Errno::DQUOT)
}

fn needs_room(error: &Error) -> bool {
    error.status.is_none() && Errno::from_io_error(&error.errno) == Some(Errno::DQUOT)
}

fn has_no_handle(error: &Error) -> bool {
    error.status.is_none() && Errno::from_io_error(&error.errno) == Some(Errno::MFILE)
}

/// Whether that which was refused may not be some time later: others use what there is too
/// little of, or have not ended what they did before a reset.
fn may_pass(error: &Error) -> bool {
    match (error.status, Errno::from_io_error(&error.errno)) {
        (Some(status), _) => matches!(
            status,
            Status::TooMany | Status::NoWindow | Status::NoSpace | Status::Busy | Status::HostError
        ),
        (None, Some(errno)) => matches!(
            errno,
            Errno::BUSY
                | Errno::NOMEM
                | Errno::MFILE
                | Errno::NFILE
                | Errno::USERS
                | Errno::DQUOT
                // The driver could not put the request into its queue.
                | Errno::IO
        ),
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests;
