// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A session's worker: it starts and stops the rings, serves requests, and writes answers and
//! events.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bufshare_protocol::device::{QUEUE_CONTROL, QUEUE_EVENT};
use bufshare_protocol::response::Reply;
use log::Level;
use vhost_user_backend::VringT;
use virtio_queue::QueueT;

use super::{EVENT_AGAIN, Session};
use crate::broker::Token;
use crate::dispatcher::Link;
use crate::locks::lock;
use crate::vhost::Vring;
use crate::vhost::limits::MAX_PER_KICK;
use crate::vhost::queue::{Delivered, Fault, Take, Taken};

/// How long a ring that has a kick descriptor waits for its call descriptor,
/// which front ends send next: what is signalled between the two is lost. After
/// that the driver is taken to poll.
const CALL_WAIT: Duration = Duration::from_millis(100);

/// What threads of other sessions, and of the program, have for the driver. Only its own
/// session's write into its rings: how long that takes is up to the guest, and no other VM
/// is to wait for it.
#[derive(Default)]
pub(super) struct Outbox {
    /// Answers, at most one for each request that is under way.
    pub(super) replies: Mutex<Vec<(Token, Reply)>>,
    /// How often there was an answer or an event.
    pub(super) posted: AtomicU64,
    /// How much of that the worker has written.
    pub(super) written: AtomicU64,
}

#[derive(Default)]
pub(super) struct Phase {
    pub(super) running: bool,
    /// The front end waits for the answer to its stop.
    stopping: bool,
    /// The session is over: nothing starts any more.
    ended: bool,
    /// Nothing is held for a driver that might go on.
    forgotten: bool,
    /// Where the control queue was when it was stopped last.
    last_base: u16,
    /// Chains that were taken before the driver was fresh.
    chains_before: u64,
    /// Since when a call descriptor is missing.
    no_call_since: Option<Instant>,
}

impl Session {
    /// The rings are not ours any more. Revokes what the VM exported.
    pub fn stop(&self) {
        if !self.stop_rings(&mut lock(&self.phase)) {
            return;
        }
        self.limiters
            .session
            .log(Level::Info, &self.name, format_args!("driver stopped"));
        let windows = self
            .dispatcher
            .caps(self.peer)
            .map_or(0, |caps| caps.windows_used);
        self.stopped_mapped.store(windows > 0, Ordering::Release);
        self.dispatcher.stop(self.peer, || self.lifeline.closing());
        lock(&self.phase).stopping = false;
        // The control queue runs if only the other one was stopped, and may have been
        // kicked meanwhile.
        self.wake();
    }

    /// The rings are not ours any more, and no others come.
    pub fn end_rings(&self) {
        let mut phase = lock(&self.phase);
        phase.ended = true;
        self.stop_rings(&mut phase);
    }

    /// Whether the front end would crash if a driver started the device now.
    ///
    /// QEMU 11.1.3 drops its windows when it resets a device, but at the next
    /// start looks up the memory that they had, and does not find it. A driver
    /// that leaves in order has flushed them. After a hard reset the device is
    /// not to be started before a power cycle; a driver that goes on after a
    /// pause is safe.
    pub(super) fn must_not_start(&self) -> bool {
        self.stopped_mapped.load(Ordering::Acquire) && self.shmem.is_qemu()
    }

    /// Whether they were running. If so, they are not started before `stopping` is over.
    fn stop_rings(&self, phase: &mut Phase) -> bool {
        if !phase.running {
            return false;
        }
        phase.running = false;
        phase.stopping = true;
        self.shmem.set_running(false);
        phase.no_call_since = None;
        phase.last_base = self.control.stop().unwrap_or_default();
        self.events.stop();
        true
    }

    fn own(&self) -> impl Fn(u64, u64) -> bool + use<> {
        let ram = lock(&self.ram).clone();
        move |addr, len| ram.contains(addr, len)
    }

    /// Starts to serve when the control queue runs.
    fn start_if_ready(&self, rings: &[Vring]) {
        let (Some(control), Some(events)) = (ring(rings, QUEUE_CONTROL), ring(rings, QUEUE_EVENT))
        else {
            return;
        };
        let mut phase = lock(&self.phase);
        if phase.running || phase.stopping || phase.ended || self.lifeline.closing() {
            return;
        }
        let base = {
            let state = control.get_ref();
            let queue = state.get_queue();
            if !queue.ready() || !state.is_enabled() {
                return;
            }
            queue.next_avail()
        };
        // A ring that goes on where it was belongs to a driver that was merely
        // paused. (One that was stopped at 0 after a whole round looks fresh
        // too; it is notified of what is gone, which a fresh one does not mind.)
        let chains = self.control.counters.chains.load(Ordering::Relaxed);
        let whole_round = phase.last_base == 0 && chains > phase.chains_before;
        let fresh = base == 0 && !whole_round;
        if fresh {
            phase.chains_before = chains;
            self.forget_driver(&mut phase);
        }
        phase.forgotten = false;
        let epoch = self.dispatcher.start(self.peer, self.shmem.can_map());
        phase.running = true;
        self.control.start(control.clone(), epoch);
        self.events.start(events.clone());
        self.shmem.set_running(true);
        self.stopped_mapped.store(false, Ordering::Release);
        drop(phase);
        // Not in the loop's head, which would hold the lock: one may be deferred again.
        let deferred = core::mem::take(&mut *lock(&self.deferred));
        for taken in deferred {
            self.one(taken);
        }
        let how = if fresh { "started" } else { "resumed" };
        self.limiters
            .session
            .log(Level::Info, &self.name, format_args!("driver {how}"));
        self.deliver();
    }

    /// Serves the control queue, but not for ever.
    fn serve(&self) {
        let own = self.own();
        for _ in 0..MAX_PER_KICK {
            if self.lifeline.closing() {
                return self.control.end_batch();
            }
            match self.control.take(&own) {
                Take::Request(taken) => self.one(taken),
                Take::More => {}
                Take::Empty | Take::Idle => return self.control.end_batch(),
                Take::Fault(fault) => {
                    self.control.end_batch();
                    return self.fault("control", fault);
                }
            }
        }
        self.control.end_batch();
        self.wake();
    }

    /// Has the worker look at both queues, after the rest of its work.
    pub(super) fn wake(&self) {
        // A counter that is full wakes all the same.
        let _ = self.again.write(1);
    }

    fn fault(&self, queue: &str, fault: Fault) {
        self.limiters.session.warn(
            &self.name,
            format_args!(
                "the {queue} queue is broken: {fault}; it is not served until the driver resets \
                 the device"
            ),
        );
    }

    /// Handles a request, or keeps it for a driver that goes on after a pause.
    fn one(&self, taken: Taken) {
        if taken.malformed {
            self.limiters.session.warn(
                &self.name,
                format_args!("malformed descriptor chain on the control queue"),
            );
        }
        if !taken.answerable {
            self.limiters.session.warn(
                &self.name,
                format_args!("request without room for a response"),
            );
        }
        match taken.request {
            Ok(request) => {
                log::trace!("{}: request {:?}: {request:?}", self.name, taken.token);
                let (epoch, token) = (taken.epoch, taken.token);
                if let Some(request) = self.dispatcher.request(self.peer, epoch, token, request) {
                    lock(&self.deferred).push(Taken {
                        request: Ok(request),
                        // What is to be said of it was said.
                        answerable: true,
                        ..taken
                    });
                }
            }
            Err(status) => {
                self.limiters
                    .session
                    .warn(&self.name, format_args!("bad request: {status}"));
                self.dispatcher.refuse(self.peer);
                self.reply(taken.token, &Err(status));
            }
        }
    }

    /// The old driver is gone: nobody waits for what it asked, and it holds
    /// nothing any more.
    pub(super) fn forget_driver(&self, phase: &mut Phase) {
        let dropped = self.shmem.forget_dropped();
        if core::mem::replace(&mut phase.forgotten, true) && !dropped {
            return;
        }
        lock(&self.deferred).clear();
        lock(&self.outbox.replies).clear();
        self.control.forget();
        self.dispatcher.reset(self.peer, dropped);
    }

    /// The front end has dropped all windows while the queues were stopped, as it
    /// does when the device is reset.
    pub fn windows_dropped(&self) {
        let mut phase = lock(&self.phase);
        if !phase.running {
            self.forget_driver(&mut phase);
        }
    }

    /// Gives the driver the answers that other threads have for it. For the worker.
    fn answer_all(&self) {
        let replies = std::mem::take(&mut *lock(&self.outbox.replies));
        for (token, reply) in replies {
            self.reply(token, &reply);
        }
    }

    /// Has the worker write what was put into the outbox, or waits in the dispatcher.
    pub(super) fn post(&self) {
        self.outbox.posted.fetch_add(1, Ordering::AcqRel);
        self.wake();
    }

    /// Writes events as long as there is room, but not for ever. Whether nothing is left
    /// that could be written.
    pub(super) fn deliver(&self) -> bool {
        let next = |room| self.dispatcher.next_event(self.peer, room);
        match self.events.deliver(self.own(), next) {
            Delivered::All => {}
            Delivered::Some => {
                self.wake();
                return false;
            }
            Delivered::Fault(fault) => self.fault("event", fault),
        }
        true
    }

    pub(super) fn dispatch(&self, event: u16, rings: &[Vring]) {
        if !self.can_signal(rings) {
            std::thread::sleep(Duration::from_millis(1));
            self.wake();
            return;
        }
        let posted = self.outbox.posted.load(Ordering::Acquire);
        self.start_if_ready(rings);
        if event == EVENT_AGAIN {
            self.answer_all();
            if self.deliver() {
                self.outbox.written.store(posted, Ordering::Release);
            }
        } else if u32::from(event) == QUEUE_EVENT {
            self.deliver();
        }
        if u32::from(event) != QUEUE_EVENT {
            self.serve();
        }
    }

    /// Whether every ring that runs can be signalled, or never will be.
    fn can_signal(&self, rings: &[Vring]) -> bool {
        let missing = rings.iter().any(|ring| {
            let state = ring.get_ref();
            state.get_queue().ready() && state.is_enabled() && state.get_call().is_none()
        });
        let mut phase = lock(&self.phase);
        if !missing {
            phase.no_call_since = None;
            return true;
        }
        let since = *phase.no_call_since.get_or_insert_with(Instant::now);
        let polls = since.elapsed() >= CALL_WAIT;
        self.events.driver_polls(polls);
        polls
    }
}

fn ring(rings: &[Vring], index: u32) -> Option<&Vring> {
    rings.get(usize::try_from(index).ok()?)
}
