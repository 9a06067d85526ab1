// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two queues: chains in, responses and events out.
//!
//! A request is read from guest memory once, into bytes of its own, and never
//! looked at again. Every chain is completed exactly once: with a response if
//! it has room for one, else with length 0. Chains of a driver that was
//! reset meanwhile are not completed; its ring is not ours any more. Those of one
//! that was merely paused are completed when it goes on.
//!
//! A ring that makes no sense (see [`Fault`]) is not looked at again until it is
//! started again. What was taken from it before is still completed.

mod avail;
mod under_way;

use std::ops::Deref;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bufshare_protocol::event::Event;
use bufshare_protocol::limits::{MAX_REQUEST, MAX_RESPONSE, MIN_EVENT_SIZE, RESPONSE_HEADER};
use bufshare_protocol::request::{self, Header, Request};
use bufshare_protocol::response::{self, Reply};
use bufshare_protocol::status::Status;
use smallvec::SmallVec;
use vhost_user_backend::VringT;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemory};

use super::limits::{MAX_DESCRIPTORS, MAX_PER_KICK, MAX_WALKED_PER_KICK};
use super::{GuestMem, Vring};
use crate::broker::{Token, TooLong};
use crate::locks::lock;
pub use avail::Fault;
use avail::Next;
use under_way::{Pending, UnderWay};

/// Bytes that a buffer for an event has to have, however long events are.
const EVENT: usize = MIN_EVENT_SIZE;

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
}

/// Those of one chain. An honest driver mostly has one.
type Segments = SmallVec<[Segment; 1]>;

/// A descriptor chain, walked once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Index to complete it with.
    pub head: u16,
    /// What the driver wrote.
    pub readable: Segments,
    /// Where the device may write.
    pub writable: Segments,
    /// Descriptors that were looked at.
    pub walked: usize,
    /// It ends where it should not, reads after it writes, or has more than
    /// [`MAX_DESCRIPTORS`].
    pub malformed: bool,
}

impl Layout {
    /// Walks a chain. `own` says whether memory is the VM's own RAM: a chain
    /// that points into a window would let the device write for the guest
    /// where the guest itself may not.
    pub fn walk<M>(chain: DescriptorChain<M>, own: impl Fn(u64, u64) -> bool) -> Self
    where
        M: Deref + Clone,
        M::Target: GuestMemory,
    {
        let mut layout = Self {
            head: chain.head_index(),
            ..Self::default()
        };
        let mut more = true;
        for desc in chain {
            if layout.walked >= MAX_DESCRIPTORS {
                break;
            }
            layout.walked = layout.walked.saturating_add(1);
            more = desc.has_next();
            if desc.len() == 0 {
                continue;
            }
            let segment = Segment {
                addr: desc.addr().0,
                len: desc.len(),
            };
            if !own(segment.addr, u64::from(segment.len)) {
                layout.malformed = true;
            } else if desc.is_write_only() {
                layout.writable.push(segment);
            } else if layout.writable.is_empty() {
                layout.readable.push(segment);
            } else {
                layout.malformed = true;
            }
        }
        // The iterator ends without a word at a loop, at an index out of range
        // and at a descriptor outside of memory.
        layout.malformed |= more;
        layout
    }

    /// Bytes that may be written, as far as anybody needs to know.
    #[must_use]
    pub fn room(&self) -> usize {
        let lengths = self.writable.iter().map(|s| u64::from(s.len));
        let room = lengths.fold(0_u64, u64::saturating_add);
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// The readable bytes, and no more than `limit` of them, in place of what is in `bytes`.
    /// `None`: memory that cannot be read.
    pub fn read<'a, M: GuestMemory>(
        &self,
        mem: &M,
        limit: usize,
        bytes: &'a mut Vec<u8>,
    ) -> Option<&'a [u8]> {
        bytes.clear();
        for segment in self.readable.iter() {
            let rest = limit.saturating_sub(bytes.len());
            if rest == 0 {
                break;
            }
            let len = usize::try_from(segment.len).unwrap_or(usize::MAX).min(rest);
            let at = bytes.len();
            bytes.resize(at.saturating_add(len), 0);
            let part = bytes.get_mut(at..)?;
            mem.read_slice(part, GuestAddress(segment.addr)).ok()?;
        }
        Some(bytes)
    }

    /// Writes `bytes` from the beginning of the room; returns how many.
    pub fn write<M: GuestMemory>(&self, mem: &M, bytes: &[u8]) -> u32 {
        let mut rest = bytes;
        let mut written = 0_u32;
        for segment in self.writable.iter() {
            if rest.is_empty() {
                break;
            }
            let len = usize::try_from(segment.len)
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let (part, tail) = rest.split_at(len);
            if mem.write_slice(part, GuestAddress(segment.addr)).is_err() {
                break;
            }
            written = written.saturating_add(u32::try_from(len).unwrap_or(u32::MAX));
            rest = tail;
        }
        written
    }

    /// The request in this chain, by way of `bytes`. Never fails without saying what to
    /// answer.
    fn parse<M: GuestMemory>(
        &self,
        mem: &M,
        bytes: &mut Vec<u8>,
    ) -> (Header, Result<Request, Status>) {
        // One more byte than any request has: enough to see it is too long.
        let limit = MAX_REQUEST.saturating_add(1);
        let Some(bytes) = self.read(mem, limit, bytes) else {
            return (Header::default(), Err(Status::BadLength));
        };
        let (header, result) = match request::parse(bytes) {
            Ok((header, request)) => (header, Ok(request)),
            Err((header, status)) => (header.unwrap_or_default(), Err(status)),
        };
        if self.malformed {
            return (header, Err(Status::BadLength));
        }
        (header, result)
    }
}

/// A request that was taken from the control queue.
#[derive(Debug)]
pub struct Taken {
    /// Under which it is answered.
    pub token: Token,
    /// What it says, or the status to answer at once.
    pub request: Result<Request, Status>,
    /// In which epoch it was read.
    pub epoch: u64,
    /// Whether the chain was malformed.
    pub malformed: bool,
    /// Whether there is room for a response.
    pub answerable: bool,
}

/// What [`Control::take`] found.
#[derive(Debug)]
pub enum Take {
    /// A request.
    Request(Taken),
    /// The ring was empty, and is not any more.
    More,
    /// The ring is empty: the driver is asked for a kick.
    Empty,
    /// Nothing is to be taken, whatever the ring holds: it does not run, or has had
    /// a fault, or so many requests are under way that one has to be answered first.
    Idle,
    /// The ring cannot be served any more; said once.
    Fault(Fault),
}

/// Why [`Events::deliver`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// There is no event, or no room for it.
    All,
    /// It has done enough for once, and is to be called again.
    Some,
    /// The ring cannot be served any more; said once.
    Fault(Fault),
}

/// What happened on a queue.
#[derive(Debug, Default)]
pub struct Counters {
    /// Chains taken.
    pub chains: AtomicU64,
    /// Chains that were malformed.
    pub malformed: AtomicU64,
    /// Chains without room for what had to be written.
    pub no_room: AtomicU64,
    /// Events written.
    pub events: AtomicU64,
    /// Rings that could not be served any more.
    pub faults: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[derive(Default)]
struct Gate {
    /// The ring, while it runs.
    ring: Option<Vring>,
    /// It cannot be served.
    fault: bool,
    epoch: u64,
    /// The bytes of the request that is being read, or of the answer that is being written.
    /// The memory that the longest took is kept.
    bytes: Vec<u8>,
    /// At most `max_requests`.
    under_way: UnderWay,
    /// Nothing was taken because of that limit.
    full: bool,
    /// Answers that came while the ring did not run, at most one for each request.
    held: Vec<(Token, Reply)>,
    /// The worker takes requests and will signal at the end.
    batching: bool,
    /// Completed and not signalled.
    unsignalled: bool,
}

impl Gate {
    /// Signals what was completed and not signalled, if there is a call descriptor. If there is
    /// none, the end of the next batch does, when one was given.
    fn signal_rest(&mut self) {
        if let Some(ring) = &self.ring
            && ring.get_ref().get_call().is_some()
            && std::mem::take(&mut self.unsignalled)
        {
            signal(ring);
        }
    }
}

/// Queue 0.
pub struct Control {
    mem: GuestMem,
    gate: Mutex<Gate>,
    /// How many are under way, for those who must not wait for the gate.
    pending: AtomicUsize,
    /// How many may be.
    max_requests: usize,
    /// What happened.
    pub counters: Counters,
}

impl Control {
    /// A queue that does not run.
    #[must_use]
    pub fn new(mem: GuestMem, max_requests: u32) -> Self {
        Self {
            mem,
            gate: Mutex::new(Gate::default()),
            pending: AtomicUsize::new(0),
            max_requests: usize::try_from(max_requests).unwrap_or(usize::MAX),
            counters: Counters::default(),
        }
    }

    /// The ring runs. Unless [`Control::forget`] was called since it was stopped, it
    /// goes on where it was, and is given the answers that came meanwhile.
    pub fn start(&self, ring: Vring, epoch: u64) {
        let held = {
            let mut gate = lock(&self.gate);
            gate.ring = Some(ring);
            gate.fault = false;
            gate.full = false;
            gate.epoch = epoch;
            std::mem::take(&mut gate.held)
        };
        for (token, reply) in held {
            self.reply(token, &reply);
        }
    }

    /// The ring is not ours: on return, nothing of it is touched any more.
    /// Returns where the ring was.
    pub fn stop(&self) -> Option<u16> {
        let mut gate = lock(&self.gate);
        // The end of this batch finds no ring, or another one.
        gate.signal_rest();
        gate.unsignalled = false;
        let ring = gate.ring.take()?;
        Some(ring.queue_next_avail())
    }

    /// The driver of the ring, which does not run, is gone: nobody waits for answers.
    pub fn forget(&self) {
        let mut gate = lock(&self.gate);
        gate.under_way.clear();
        gate.held.clear();
        self.count_pending(&gate.under_way);
    }

    /// Requests that wait for their answer.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    fn count_pending(&self, under_way: &UnderWay) {
        self.pending.store(under_way.len(), Ordering::Relaxed);
    }

    /// Takes one request, unless so many are under way already that [`Control::reply`]
    /// will say when to go on. The first one begins a batch: until [`Control::end_batch`]
    /// the driver is not to kick, and completions are not signalled.
    pub fn take(&self, own: impl Fn(u64, u64) -> bool) -> Take {
        let gate = &mut *lock(&self.gate);
        let Some(ring) = gate.ring.as_ref().filter(|_| !gate.fault) else {
            return Take::Idle;
        };
        let Some(slot) = gate.under_way.vacancy(self.max_requests) else {
            gate.full = true;
            return Take::Idle;
        };
        // What the driver is told of kicks is a hint; what fails here fails again below.
        if !std::mem::replace(&mut gate.batching, true) {
            let _ = ring.disable_notification();
        }
        let mem = self.mem.memory();
        let chain = match avail::next(ring, &*mem) {
            Next::Chain(chain) if gate.under_way.has_head(chain.head_index()) => {
                Err(Fault::HeadInUse(chain.head_index()))
            }
            Next::Chain(chain) => Ok(chain),
            Next::Empty if ring.enable_notification().unwrap_or(false) => {
                let _ = ring.disable_notification();
                return Take::More;
            }
            Next::Empty => return Take::Empty,
            Next::Off => return Take::Idle,
            Next::Fault(fault) => Err(fault),
        };
        let chain = match chain {
            Ok(chain) => chain,
            Err(fault) => {
                gate.fault = true;
                count(&self.counters.faults);
                return Take::Fault(fault);
            }
        };
        count(&self.counters.chains);
        let mut layout = Layout::walk(chain, own);
        let (header, request) = layout.parse(&*mem, &mut gate.bytes);
        // What cannot be answered is not done either.
        let length = usize::try_from(header.resp_length).unwrap_or(usize::MAX);
        let request = request.and_then(|request| {
            let fits = length <= layout.room();
            fits.then_some(request).ok_or(Status::NoRoom)
        });
        // Only the room is still needed.
        layout.readable = Segments::default();
        if layout.malformed {
            count(&self.counters.malformed);
        }
        let (malformed, answerable) = (layout.malformed, layout.room() >= RESPONSE_HEADER);
        let token = gate.under_way.add(slot, layout, header);
        self.count_pending(&gate.under_way);
        Take::Request(Taken {
            token,
            request,
            epoch: gate.epoch,
            malformed,
            answerable,
        })
    }

    /// Completes a request. One that is not known (any more) does nothing.
    /// Returns whether the worker has to look: [`Control::take`] has waited for that, or
    /// there is no call descriptor. One that comes is signalled at the end of its batch.
    pub fn reply(&self, token: Token, reply: &Reply) -> bool {
        let gate = &mut *lock(&self.gate);
        if !gate.under_way.has(token) {
            return false;
        }
        let Some(ring) = &gate.ring else {
            gate.held.push((token, reply.clone()));
            return false;
        };
        let Some(Pending { layout, header, .. }) = gate.under_way.remove(token) else {
            return false;
        };
        self.count_pending(&gate.under_way);
        let room = layout.room().min(MAX_RESPONSE);
        response::encode(&header, reply, room, &mut gate.bytes);
        if gate.bytes.is_empty() {
            count(&self.counters.no_room);
        }
        let mem = self.mem.memory();
        let written = layout.write(&*mem, &gate.bytes);
        complete(ring, &*mem, layout.head, written);
        let mute = !gate.batching && ring.get_ref().get_call().is_none();
        if gate.batching || mute {
            gate.unsignalled = true;
        } else {
            signal(ring);
        }
        std::mem::take(&mut gate.full) || mute
    }

    /// Signals what was completed since the first [`Control::take`].
    pub fn end_batch(&self) {
        let mut gate = lock(&self.gate);
        gate.batching = false;
        gate.signal_rest();
    }
}

#[derive(Default)]
struct EventRing {
    /// The ring, while it runs.
    ring: Option<Vring>,
    /// It cannot be served.
    fault: bool,
}

/// Queue 1.
pub struct Events {
    mem: GuestMem,
    ring: Mutex<EventRing>,
    polled: AtomicBool,
    /// What happened.
    pub counters: Counters,
}

impl Events {
    /// A queue that does not run.
    #[must_use]
    pub fn new(mem: GuestMem) -> Self {
        Self {
            mem,
            ring: Mutex::default(),
            polled: AtomicBool::new(false),
            counters: Counters::default(),
        }
    }

    /// The ring runs.
    pub fn start(&self, ring: Vring) {
        *lock(&self.ring) = EventRing {
            ring: Some(ring),
            fault: false,
        };
    }

    /// The ring is the driver's again.
    pub fn stop(&self) {
        *lock(&self.ring) = EventRing::default();
        self.driver_polls(false);
    }

    /// Whether the driver needs no signal. Else events wait until it can be
    /// signalled.
    pub fn driver_polls(&self, polls: bool) {
        self.polled.store(polls, Ordering::Relaxed);
    }

    /// Writes events from `next` as long as there are events and room, but not for
    /// ever.
    pub fn deliver(
        &self,
        own: impl Fn(u64, u64) -> bool,
        next: impl Fn(usize) -> Option<Result<Event, TooLong>>,
    ) -> Delivered {
        let guard = &mut *lock(&self.ring);
        let Some(ring) = guard.ring.as_ref().filter(|_| !guard.fault) else {
            return Delivered::All;
        };
        if ring.get_ref().get_call().is_none() && !self.polled.load(Ordering::Relaxed) {
            return Delivered::All;
        }
        let mut written = false;
        let delivered = self.fill(ring, &own, &next, &mut written);
        if let Delivered::Fault(_) = delivered {
            guard.fault = true;
            count(&self.counters.faults);
        }
        if written {
            signal(ring);
        }
        delivered
    }

    fn fill(
        &self,
        ring: &Vring,
        own: &impl Fn(u64, u64) -> bool,
        next: &impl Fn(usize) -> Option<Result<Event, TooLong>>,
        written: &mut bool,
    ) -> Delivered {
        let mem = self.mem.memory();
        let mut walked = 0_usize;
        for _ in 0..MAX_PER_KICK {
            if walked >= MAX_WALKED_PER_KICK {
                break;
            }
            let chain = match avail::next(ring, &*mem) {
                Next::Chain(chain) => chain,
                Next::Empty if ring.enable_notification().unwrap_or(false) => continue,
                Next::Empty | Next::Off => return Delivered::All,
                Next::Fault(fault) => return Delivered::Fault(fault),
            };
            let layout = Layout::walk(chain, own);
            walked = walked.saturating_add(layout.walked);
            if layout.malformed || layout.room() < EVENT {
                count(if layout.malformed {
                    &self.counters.malformed
                } else {
                    &self.counters.no_room
                });
                complete(ring, &*mem, layout.head, 0);
                *written = true;
                continue;
            }
            let event = match next(layout.room()) {
                Some(Ok(event)) => event,
                // As one that is too small for any.
                Some(Err(TooLong)) => {
                    count(&self.counters.no_room);
                    complete(ring, &*mem, layout.head, 0);
                    *written = true;
                    continue;
                }
                None => {
                    ring.get_mut().get_queue_mut().go_to_previous_position();
                    return Delivered::All;
                }
            };
            let len = layout.write(&*mem, &event.to_bytes());
            complete(ring, &*mem, layout.head, len);
            count(&self.counters.events);
            *written = true;
        }
        Delivered::Some
    }
}

/// Gives a chain back, with so many bytes written.
fn complete<M: GuestMemory>(ring: &Vring, mem: &M, head: u16, written: u32) {
    let mut state = ring.get_mut();
    // Fails only if the driver placed its ring outside of memory.
    let _ = state.get_queue_mut().add_used(mem, head, written);
}

/// Signals the driver, if it wants to be signalled.
fn signal(ring: &Vring) {
    if ring.needs_notification().unwrap_or(true) {
        // A call eventfd that is full is signalled already.
        let _ = ring.signal_used_queue();
    }
}

#[cfg(test)]
pub(super) mod tests;
