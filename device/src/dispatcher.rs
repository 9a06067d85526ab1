// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one broker of the process, and the dispatch of its effects.
//!
//! Every call locks the broker, lets it change its state, queues the mapping
//! jobs that follow (so that one peer's jobs stay in the order in which the
//! broker meant them), unlocks, and only then completes requests and delivers
//! events.
//!
//! A panic within a change leaves a broker of which nothing is certain. Nobody is
//! shown or given anything of it any more, no front end gets the answer that its memory
//! is mapped nowhere, and the daemon ends (see [`Dispatcher::failed`]).
//!
//! | module | subject |
//! |---|---|
//! | `link` | a session, as the dispatcher sees it |
//! | `stops` | who stops waits until nobody maps its memory |
//! | `end` | whose VMM maps whose memory, and the wait for it when the program ends |
//! | `deadlines` | when the broker is told that a deadline has passed |
//! | `report` | what the control socket reports |

mod deadlines;
mod end;
mod link;
mod report;
mod stops;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use bufshare_protocol::event::Event;
use bufshare_protocol::request::Request;
use bufshare_protocol::response::{Caps, Reply};
use smallvec::SmallVec;

use crate::backing::{Ram, WeakRam};
use crate::broker::{
    Broker, DeadlineId, Effect, EffectId, Lifecycle, Outcome, PeerId, RamRegion, Token, TooLong,
    VmmRequest,
};
use crate::log_rate::Limiter;
use crate::os::stop::Stop;

pub use end::{Connector, HoldReport, HolderState};
pub use link::{Job, Link};
pub use report::{PeerReport, Report, SessionFacts};
pub use stops::RevokeWait;

use deadlines::Deadlines;
use link::deliver;
use stops::{STOP_LOOK, STOP_SAY, STOP_SAY_FIRST, Stopping};

#[derive(Default)]
struct Slot {
    name: Arc<str>,
    link: Option<Arc<dyn Link>>,
    ram: Arc<WeakRam>,
    /// Counts stops: a request read before the last one is not handled.
    epoch: u64,
    /// Its front end waits for the answer to its stop.
    stop: Option<Stopping>,
    sessions: u64,
    unproved_stops: u64,
    /// For what is said of each of those.
    unproved: Arc<Limiter>,
    /// For what is said of importers that are forced. Two VMMs can bring about stops of
    /// both kinds as often as they like.
    forced: Arc<Limiter>,
}

struct State {
    broker: Broker,
    slots: BTreeMap<PeerId, Slot>,
}

/// Whatever a step mostly has one of.
type Few<T> = SmallVec<[T; 1]>;

/// What is left to do when the broker is unlocked.
#[derive(Default)]
struct After {
    replies: Few<(Arc<dyn Link>, Token, Reply)>,
    events: Few<Arc<dyn Link>>,
    /// Something that a stop or the end waits for may have happened.
    unexposed: bool,
}

/// One step whose answers and events are yet to be delivered.
struct Delivering<'a>(&'a AtomicUsize);

impl<'a> Delivering<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Delivering<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The one broker and what it needs around it.
pub struct Dispatcher {
    state: Mutex<State>,
    changed: Condvar,
    /// Steps whose answers and events are yet to be delivered.
    delivering: AtomicUsize,
    deadlines: Deadlines,
    revoke_wait: RevokeWait,
    /// How long an importer's driver has to release a buffer.
    release: Duration,
    /// The broker is left in the middle of a change.
    failed: AtomicBool,
    /// Requested then.
    on_failure: OnceLock<Arc<Stop>>,
    /// How often those that wait for a change were woken.
    #[cfg(test)]
    notified: AtomicUsize,
}

impl Dispatcher {
    /// A dispatcher for `names`, the peers of `broker` in their order.
    #[must_use]
    pub fn new(broker: Broker, names: &[String], revoke_wait: RevokeWait) -> Arc<Self> {
        let slots = (1_u32..)
            .zip(names)
            .map(|(number, name)| {
                let slot = Slot {
                    name: Arc::from(name.as_str()),
                    ..Slot::default()
                };
                (PeerId(number), slot)
            })
            .collect();
        Arc::new(Self {
            release: broker.release_time(),
            state: Mutex::new(State { broker, slots }),
            changed: Condvar::new(),
            delivering: AtomicUsize::new(0),
            deadlines: Deadlines::default(),
            revoke_wait,
            failed: AtomicBool::new(false),
            on_failure: OnceLock::new(),
            #[cfg(test)]
            notified: AtomicUsize::new(0),
        })
    }

    /// Starts the thread that notifies the broker of passed deadlines. It ends
    /// with the dispatcher.
    ///
    /// # Errors
    /// As `pthread_create`.
    pub fn start_deadlines(self: &Arc<Self>) -> io::Result<JoinHandle<()>> {
        let dispatcher = Arc::downgrade(self);
        std::thread::Builder::new()
            .name("deadlines".into())
            .spawn(move || Deadlines::run(&dispatcher))
    }

    /// What is to be requested if a bug leaves the broker in the middle of a change.
    pub fn stop_on_failure(&self, stop: Arc<Stop>) {
        // Set once, by the daemon.
        let _ = self.on_failure.set(stop);
    }

    /// Whether a bug has left the broker in the middle of a change.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    fn fail(&self) {
        if self.failed.swap(true, Ordering::AcqRel) {
            return;
        }
        log::error!(
            "a bug stopped the broker in the middle of a change: the daemon ends; what VMMs map of \
             other VMs' memory stays mapped until they end"
        );
        if let Some(stop) = self.on_failure.get() {
            stop.request();
        }
    }

    /// Locks the broker, unless a panic has interrupted a change of it.
    fn state(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.lock() {
            Ok(state) => Some(state),
            Err(_) => {
                self.fail();
                None
            }
        }
    }

    /// Ends the thread of the deadlines.
    pub fn stop_deadlines(&self) {
        self.deadlines.stop();
    }

    /// A front end has connected.
    pub fn connect(&self, peer: PeerId, link: Arc<dyn Link>) {
        self.step(|broker, slots| {
            if let Some(slot) = slots.get_mut(&peer) {
                slot.link = Some(link);
                slot.sessions = slot.sessions.saturating_add(1);
            }
            broker.peer_connected(peer);
            Vec::new()
        });
    }

    /// The session is ending: revokes what the VM exported, and asks for all its windows.
    /// Those that it holds all the same are on its account until
    /// [`Dispatcher::disconnect`].
    pub fn leave(&self, peer: PeerId) {
        self.step(|broker, slots| {
            if let Some(slot) = slots.get_mut(&peer) {
                slot.epoch = slot.epoch.wrapping_add(1);
            }
            broker.peer_leaves(peer)
        });
        self.revoke_next(peer);
    }

    /// Revokes what a peer exported that has stopped, or what of it is in no RAM, in steps:
    /// between two of them others have their requests served.
    fn revoke_next(&self, peer: PeerId) {
        loop {
            // Also if the broker failed.
            let mut last = true;
            self.step(|broker, _| {
                let effects;
                (last, effects) = broker.revoke_next(peer);
                effects
            });
            if last {
                return;
            }
        }
    }

    /// The front end is gone, with all that it had.
    pub fn disconnect(&self, peer: PeerId) {
        // Dropped only when the lock is: a session may hold the last reference
        // to much.
        let mut link = None;
        self.step(|broker, slots| {
            if let Some(slot) = slots.get_mut(&peer) {
                link = slot.link.take();
                slot.ram = Arc::default();
                slot.epoch = slot.epoch.wrapping_add(1);
            }
            broker.peer_gone(peer)
        });
    }

    /// The driver is a new one, or there is none: releases all that the old
    /// one had. `windows_gone`: the front end has unmapped its windows itself.
    pub fn reset(&self, peer: PeerId, windows_gone: bool) {
        // In steps, if its stop is still at that, or is yet to begin: `peer_reset` would do
        // the rest at once.
        self.step(|broker, _| broker.peer_stopped(peer));
        self.revoke_next(peer);
        self.step(|broker, slots| {
            let Some(slot) = slots.get_mut(&peer) else {
                return Vec::new();
            };
            slot.epoch = slot.epoch.wrapping_add(1);
            if !windows_gone {
                return broker.peer_reset(peer);
            }
            // First, so that the reset asks for nothing to be done about them. What was
            // asked for since they were found to be gone is not done either: it would
            // be about windows of a driver that comes later, or leave one that nobody
            // knows.
            let mut effects = broker.windows_gone(peer);
            if let Some(link) = &slot.link {
                link.forget_jobs();
            }
            effects.extend(broker.peer_reset(peer));
            effects
        });
    }

    /// The driver's queues run. It is a new one if [`Dispatcher::reset`] was called
    /// since they stopped. Returns the epoch for [`Dispatcher::request`].
    pub fn start(&self, peer: PeerId, can_map: bool) -> u64 {
        let mut epoch = 0;
        self.step(|broker, slots| {
            if let Some(slot) = slots.get_mut(&peer) {
                epoch = slot.epoch;
            }
            broker.peer_up(peer, can_map)
        });
        epoch
    }

    /// The VM's own RAM, which has changed.
    pub fn set_ram(&self, peer: PeerId, ram: &Ram) {
        let regions = ram
            .regions
            .iter()
            .map(|region| RamRegion {
                addr: region.addr,
                len: region.len,
                sealed: region.sealed,
            })
            .collect();
        self.step(|broker, slots| {
            let Some(slot) = slots.get_mut(&peer) else {
                return Vec::new();
            };
            slot.ram = Arc::new(ram.downgrade());
            broker.set_ram(peer, regions)
        });
        self.revoke_next(peer);
    }

    /// One request, read in `epoch`. Given back if the rings have stopped since:
    /// it counts if the driver goes on, and not if it was reset.
    pub fn request(
        &self,
        peer: PeerId,
        epoch: u64,
        token: Token,
        request: Request,
    ) -> Option<Request> {
        let mut back = None;
        self.step(|broker, slots| match slots.get(&peer) {
            Some(slot) if slot.epoch != epoch => Vec::new(),
            Some(_) if broker.lifecycle(peer).runs() => broker.handle(peer, token, request),
            _ => {
                back = Some(request);
                Vec::new()
            }
        });
        back
    }

    /// Counts a request that could not be parsed.
    pub fn refuse(&self, peer: PeerId) {
        if let Some(mut state) = self.state() {
            state.broker.refuse(peer);
        }
    }

    /// A mapping job ended.
    pub fn complete(&self, id: EffectId, outcome: Outcome) {
        self.step(|broker, _| broker.complete(id, outcome));
    }

    /// As [`Dispatcher::complete`], while somebody still holds the files that the VMM said it
    /// has unmapped, or has not mapped: see [`Dispatcher::file_released`].
    pub fn complete_held(&self, id: EffectId, outcome: Outcome) {
        self.step(|broker, _| {
            broker.keeps(id);
            broker.complete(id, outcome)
        });
    }

    /// Nobody does any more.
    pub fn file_released(&self, peer: PeerId, id: EffectId) {
        self.step(|broker, _| broker.file_released(peer, id));
    }

    /// A deadline has passed.
    pub fn deadline(&self, id: DeadlineId) {
        self.step(|broker, _| broker.deadline(id));
    }

    /// The next event for `peer`, for which the caller has room of so many bytes.
    ///
    /// # Errors
    /// As [`Broker::next_event`].
    #[must_use]
    pub fn next_event(&self, peer: PeerId, room: usize) -> Option<Result<Event, TooLong>> {
        self.state()?.broker.next_event(peer, room)
    }

    /// Capabilities of one peer's device.
    #[must_use]
    pub fn caps(&self, peer: PeerId) -> Option<Caps> {
        self.state()?.broker.caps(peer)
    }

    /// One change of the broker, and all that follows.
    fn step(&self, change: impl FnOnce(&mut Broker, &mut BTreeMap<PeerId, Slot>) -> Vec<Effect>) {
        // Dropped after the lock.
        let _alarm = Alarm(self);
        let (after, _delivering) = {
            let Some(mut state) = self.state() else {
                return;
            };
            let State { broker, slots } = &mut *state;
            let effects = change(broker, slots);
            let delivering = Delivering::new(&self.delivering);
            (self.route(slots, effects), delivering)
        };
        self.run(after);
    }

    /// Does what needs the lock dropped.
    fn run(&self, after: After) {
        if after.unexposed {
            #[cfg(test)]
            self.notified.fetch_add(1, Ordering::AcqRel);
            self.changed.notify_all();
        }
        for (link, token, reply) in after.replies {
            deliver(&*link, |link| link.reply(token, &reply));
        }
        for link in after.events {
            deliver(&*link, |link| link.events());
        }
    }

    /// Queues jobs and deadlines; returns what needs the lock dropped.
    fn route(&self, slots: &mut BTreeMap<PeerId, Slot>, effects: Vec<Effect>) -> After {
        let mut after = After::default();
        let mut notified = BTreeSet::new();
        for effect in effects {
            let link = |peer: PeerId| slots.get(&peer).and_then(|slot| slot.link.clone());
            match effect {
                Effect::Unexposed { owner } => {
                    after.unexposed = true;
                    if let Some(stop) = slots.get_mut(&owner).and_then(|s| s.stop.as_mut()) {
                        stop.look = true;
                    }
                }
                Effect::Reply { peer, token, reply } => {
                    if let Some(link) = link(peer) {
                        after.replies.push((link, token, reply));
                    }
                }
                Effect::Events { peer } => {
                    if notified.insert(peer)
                        && let Some(link) = link(peer)
                    {
                        after.events.push(link);
                    }
                }
                Effect::Ask { id, peer, request } => {
                    let ram = match &request {
                        VmmRequest::Map { source, .. } => slots.get(&source.owner),
                        _ => None,
                    };
                    let ram = ram.map(|slot| slot.ram.clone()).unwrap_or_default();
                    if let Some(link) = link(peer) {
                        link.job(Job { id, request, ram });
                    }
                }
                Effect::Arm { id, after } => self.deadlines.arm(id, after),
                Effect::Disarm { id } => self.deadlines.disarm(id),
            }
        }
        after
    }
}

/// Ends the daemon if the thread panics meanwhile.
struct Alarm<'a>(&'a Dispatcher);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if self.0.state.is_poisoned() {
            self.0.fail();
        }
    }
}

impl State {
    fn is_leaving(&self, peer: PeerId) -> bool {
        self.broker.lifecycle(peer) == Lifecycle::Leaving
    }

    fn name(&self, peer: PeerId) -> Arc<str> {
        let slot = self.slots.get(&peer);
        slot.map_or_else(|| Arc::from(""), |slot| slot.name.clone())
    }

    fn names(&self, peers: &[PeerId]) -> String {
        let names: Vec<Arc<str>> = peers.iter().map(|peer| self.name(*peer)).collect();
        names.join(", ")
    }
}

#[cfg(test)]
mod tests;
