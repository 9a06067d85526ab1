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

mod holds;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bufshare_protocol::event::Event;
use bufshare_protocol::request::Request;
use bufshare_protocol::response::{Caps, Reply};
use log::Level;
use serde::Serialize;

use crate::backing::{Ram, WeakRam};
use crate::broker::{
    Broker, DeadlineId, Effect, EffectId, Lifecycle, Outcome, PeerId, RamRegion, Snapshot, Token,
    VmmRequest,
};
use crate::host::stop::Stop;
use crate::sync::{Limiter, lock};

pub use holds::{Connector, HoldReport, HolderState};

/// How long the answer to a front end that stops its device (for a reset, a reboot
/// or a pause) waits until nobody maps that VM's memory any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevokeWait {
    /// That long. Then those importers whose device is stopped too, because their VM
    /// is paused or their guest is hostile, lose the windows by force: QEMU 11.1.3
    /// ends when it is asked to unmap then. So a guest that stops its device harms
    /// itself, and cannot hold up others. A VMM that does not answer is not waited
    /// for much longer; but one that holds memory after its session is, without a
    /// limit: nobody can ask it for anything, and to go on would let it read what
    /// the exporter writes next. The log and the control socket name its process,
    /// which the operator has to end.
    Limit(Duration),
    /// Until that is proved for all, or the session ends: a VM that is paused loses
    /// nothing, and a hostile one can hold up its exporters' resets.
    Unlimited,
}

impl Default for RevokeWait {
    /// Five times the default of [`crate::broker::Limits::release_ms`].
    fn default() -> Self {
        Self::Limit(Duration::from_secs(5))
    }
}

/// How long after that a VMM may take to unmap, or to die of being forced to.
const FORCED_WAIT: Duration = Duration::from_secs(5);

/// How often a stop that waits looks whether its session has ended.
const STOP_LOOK: Duration = Duration::from_millis(100);

/// When it first says for whom it waits.
const STOP_SAY_FIRST: Duration = Duration::from_secs(2);

/// How often it says that again.
const STOP_SAY: Duration = Duration::from_secs(10);

/// A request to one front end, for its session's shared-memory thread.
#[derive(Clone, Debug)]
pub struct Job {
    /// To be reported.
    pub id: EffectId,
    /// The request.
    pub request: VmmRequest,
    /// For one to map: the owner's RAM at the time the broker decided.
    pub ram: Arc<WeakRam>,
}

/// What the control socket reports about one session.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SessionFacts {
    /// Protocol features that the front end negotiated.
    pub features: Vec<&'static str>,
    /// Whether the front end can be asked to map.
    pub can_map: bool,
    /// Whether the queues run.
    pub running: bool,
    /// Regions of the VM's own RAM.
    pub ram_regions: usize,
    /// Regions of its memory table that are windows, and so cannot be exported.
    pub window_regions: usize,
    /// Requests that wait for their answer.
    pub pending: usize,
    /// Chains taken from the control queue.
    pub chains: u64,
    /// Chains that were malformed.
    pub malformed: u64,
    /// Chains that had no room for a response.
    pub no_room: u64,
    /// Queues that made no sense, and were not served until the driver's next reset.
    pub ring_faults: u64,
    /// How often its worker was woken.
    pub wakeups: u64,
    /// Events written.
    pub events: u64,
    /// Event buffers that were too small.
    pub short_event_buffers: u64,
    /// Mapping jobs that wait or run.
    pub jobs: usize,
    /// Mapping requests that the front end refused.
    pub refused: u64,
}

/// A session, as the dispatcher sees it.
pub trait Link: Send + Sync {
    /// Queues a mapping job. Called with the broker locked: must not block.
    fn job(&self, job: Job);
    /// The front end has unmapped its windows itself: forgets all jobs, also the one
    /// that is being done. Called with the broker locked: must not block.
    fn forget_jobs(&self);
    /// Answers a request. Called by any thread: must not wait for what the guest does.
    fn reply(&self, token: Token, reply: &Reply);
    /// There is something at [`Dispatcher::next_event`], to be taken as long as there is room.
    /// Called by any thread: must not wait for what the guest does.
    fn events(&self);
    /// Whether all answers and events were written that there was room for. Called with
    /// the broker locked: must not block.
    fn delivered(&self) -> bool;
    /// Unmap requests are to be sent although the device is stopped. Called with the
    /// broker locked: must not block.
    fn force(&self);
    /// A bug kept something from it that it cannot do without: ends it. Must not block.
    fn fail(&self);
    /// The process that connected the front end, if it is known. Called with the
    /// broker locked: must not block.
    fn vmm_pid(&self) -> Option<u32>;
    /// Whether the front end is QEMU, as far as that can be known. Called with the broker
    /// locked: must not block.
    fn is_qemu(&self) -> bool;
    /// For the control socket.
    fn facts(&self) -> SessionFacts;
}

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

/// A front end that waits for the answer to its stop. It serves no request.
#[derive(Default)]
struct Stopping {
    /// Importers that have been forced.
    forced: BTreeSet<PeerId>,
    /// It is to be answered now, so that it can serve what is forced upon it.
    released: bool,
    /// Somebody may have unmapped something since it was looked at last.
    look: bool,
}

struct State {
    broker: Broker,
    slots: BTreeMap<PeerId, Slot>,
}

/// What is left to do when the broker is unlocked.
#[derive(Default)]
struct After {
    replies: Vec<(Arc<dyn Link>, Token, Reply)>,
    events: Vec<Arc<dyn Link>>,
    /// Something that a stop or the end waits for may have happened.
    unexposed: bool,
}

impl After {
    fn run(self) {
        for (link, token, reply) in self.replies {
            deliver(&*link, |link| link.reply(token, &reply));
        }
        for link in self.events {
            deliver(&*link, |link| link.events());
        }
    }
}

/// Delivers something to one session. If a bug keeps it from that, only this session
/// ends, and the others get what is theirs, whoever's thread this is.
fn deliver(link: &dyn Link, delivery: impl FnOnce(&dyn Link)) {
    if catch_unwind(AssertUnwindSafe(|| delivery(link))).is_err() {
        link.fail();
    }
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
    timer: Timer,
    revoke_wait: RevokeWait,
    /// The broker is left in the middle of a change.
    failed: AtomicBool,
    /// Requested then.
    on_failure: OnceLock<Arc<Stop>>,
    /// How often those that wait for a change were woken.
    #[cfg(test)]
    notified: AtomicUsize,
}

/// One peer on the control socket.
#[derive(Debug, Serialize)]
pub struct PeerReport {
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Sessions until now.
    pub sessions: u64,
    /// Stops that were answered before all importers were proved to have released the
    /// memory.
    pub unproved_stops: u64,
    /// The process that connected the front end: the VMM, unless that was handed the
    /// connection. None if the process has no number here.
    pub vmm_pid: Option<u32>,
    /// The session, if a front end is connected.
    pub session: Option<SessionFacts>,
}

/// All that the control socket reports.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Version of the program.
    pub version: &'static str,
    /// The program revokes everything in order to end.
    pub ending: bool,
    /// The peers.
    pub peers: Vec<PeerReport>,
    /// Whose VMM may map whose memory now.
    pub holds: Vec<HoldReport>,
    /// The broker.
    pub broker: Snapshot,
}

impl Report {
    /// Nothing is known any more.
    fn of_failed() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            ending: true,
            peers: Vec::new(),
            holds: Vec::new(),
            broker: Snapshot::default(),
        }
    }
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
            state: Mutex::new(State { broker, slots }),
            changed: Condvar::new(),
            delivering: AtomicUsize::new(0),
            timer: Timer::default(),
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
    pub fn start_timer(self: &Arc<Self>) -> io::Result<JoinHandle<()>> {
        let dispatcher = Arc::downgrade(self);
        std::thread::Builder::new()
            .name("deadlines".into())
            .spawn(move || Timer::run(&dispatcher))
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

    /// Ends the timer thread.
    pub fn stop_timer(&self) {
        self.timer.stop();
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

    /// The front end stops the device: revokes what the VM exported, and returns
    /// when no other VMM can map any of it, or the time is over (see
    /// [`RevokeWait`]), or the session has `ended`.
    ///
    /// One that comes while another stop of the same peer is in work waits for that first.
    pub fn stop(&self, peer: PeerId, ended: impl Fn() -> bool) {
        let mut left = None;
        if self.begin_stop(peer, &ended) {
            self.step(|broker, _| broker.peer_stopped(peer));
            self.revoke_next(peer);
            left = self.wait_for_importers(peer, &ended);
        }
        let Some(left) = left else {
            // It may only be answered when it is proved that nobody maps its memory.
            while !ended() {
                std::thread::sleep(STOP_LOOK);
            }
            return;
        };

        let Some(mut state) = self.state() else {
            return;
        };
        let (name, names) = (state.name(peer), state.names(&left));
        let State { broker, slots } = &mut *state;
        // What is left behind by a session that ended is not written to any more.
        let unproved = !left.is_empty() && !ended();
        if unproved {
            broker.stop_unproved(peer);
        }
        // It may have been an importer itself that was not waited for any longer.
        let (any, effects) = broker.revoke_unproved(peer);
        if let Some(slot) = slots.get_mut(&peer) {
            slot.stop = None;
            slot.unproved_stops = slot.unproved_stops.saturating_add(unproved.into());
            if any && let Some(link) = &slot.link {
                link.force();
            }
        }
        let said = slots.get(&peer).map(|slot| slot.unproved.clone());
        let after = self.route(slots, effects);
        drop(state);
        self.run(after);
        if unproved && let Some(said) = said {
            said.log(
                Level::Error,
                &name,
                format_args!(
                    "stopped, but the VMM of {names} did not prove that it unmapped this VM's \
                     memory"
                ),
            );
        }
    }

    /// Waits until no other stop of the peer is in work. Returns whether this one is now:
    /// not if the session has `ended`, or the broker failed.
    fn begin_stop(&self, peer: PeerId, ended: impl Fn() -> bool) -> bool {
        let Some(mut state) = self.state() else {
            return false;
        };
        loop {
            match state.slots.get_mut(&peer) {
                None => return false,
                Some(slot) if slot.stop.is_none() => {
                    slot.stop = Some(Stopping::default());
                    return true;
                }
                Some(_) if ended() => return false,
                Some(_) => {}
            }
            let Ok((locked, _)) = self.changed.wait_timeout(state, STOP_LOOK) else {
                return false;
            };
            state = locked;
        }
    }

    /// Returns when no other VMM maps memory of `peer`, or it is time to go on. Who
    /// is left, if that is known.
    fn wait_for_importers(&self, peer: PeerId, ended: impl Fn() -> bool) -> Option<Vec<PeerId>> {
        let started = Instant::now();
        let mut say = STOP_SAY_FIRST;
        let mut give_up = match self.revoke_wait {
            RevokeWait::Limit(limit) => limit.saturating_add(FORCED_WAIT),
            RevokeWait::Unlimited => Duration::MAX,
        };
        let mut state = self.state()?;
        let mut left = state.waits_for(peer);
        let mut looked = Instant::now();
        loop {
            let stop = state.slots.get_mut(&peer).and_then(|s| s.stop.as_mut());
            let look = stop.is_some_and(|stop| std::mem::take(&mut stop.look));
            // Nobody says that a ring of stops was closed, or that the first of one was
            // answered.
            if look || looked.elapsed() >= STOP_LOOK {
                left = state.waits_for(peer);
                looked = Instant::now();
            }
            let released = state.stopping(peer).is_some_and(|stop| stop.released);
            if left.is_empty() || released || ended() {
                // Also those that are not waited for prove nothing.
                return Some(state.broker.exposed_to(peer));
            }
            let waited = started.elapsed();
            if waited >= say {
                say = waited.saturating_add(STOP_SAY);
                let name = state.name(peer);
                let mut holds = state.holds();
                holds.retain(|hold| *hold.owner == *name);
                drop(state);
                for hold in holds {
                    let way_out = hold.state.way_out();
                    log::warn!("{name}: its stop waits. {hold}{way_out}");
                }
                state = self.state()?;
                continue;
            }
            if let RevokeWait::Limit(limit) = self.revoke_wait
                && waited >= limit
            {
                let (forced, effects) = state.force(peer);
                if !forced.is_empty() || !effects.is_empty() {
                    give_up = waited.saturating_add(FORCED_WAIT);
                    let name = state.name(peer);
                    let said = state.slots.get(&peer).map(|slot| slot.forced.clone());
                    let line = state.forced_line(&forced);
                    let mut after = self.route(&mut state.slots, effects);
                    // Some of them may be released.
                    after.unexposed = true;
                    drop(state);
                    self.run(after);
                    if let (Some(said), Some(line)) = (said, line) {
                        said.log(Level::Error, &name, format_args!("{line}"));
                    }
                    state = self.state()?;
                    continue;
                }
                let lost = left.iter().any(|peer| state.is_leaving(*peer));
                if !lost && waited >= give_up {
                    return Some(left);
                }
            }
            let waited = self.changed.wait_timeout(state, STOP_LOOK);
            (state, _) = waited.ok()?;
        }
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

    /// The next event for `peer`, for which the caller has room.
    #[must_use]
    pub fn next_event(&self, peer: PeerId) -> Option<Event> {
        self.state()?.broker.next_event(peer)
    }

    /// Capabilities of one peer's device.
    #[must_use]
    pub fn caps(&self, peer: PeerId) -> Option<Caps> {
        self.state()?.broker.caps(peer)
    }

    /// Everything, for the control socket.
    #[must_use]
    pub fn report(&self) -> Report {
        let (broker, ending, holds, rows) = {
            let Some(state) = self.state() else {
                return Report::of_failed();
            };
            let rows: Vec<_> = state
                .slots
                .iter()
                .map(|(id, slot)| {
                    let report = PeerReport {
                        id: id.0,
                        name: slot.name.to_string(),
                        sessions: slot.sessions,
                        unproved_stops: slot.unproved_stops,
                        vmm_pid: slot.link.as_ref().and_then(|link| link.vmm_pid()),
                        session: None,
                    };
                    (report, slot.link.clone())
                })
                .collect();
            let broker = &state.broker;
            (broker.snapshot(), broker.closed(), state.holds(), rows)
        };
        let peers = rows
            .into_iter()
            .map(|(mut report, link)| {
                report.session = link.map(|link| link.facts());
                report
            })
            .collect();
        Report {
            version: env!("CARGO_PKG_VERSION"),
            ending,
            peers,
            holds,
            broker,
        }
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
        after.run();
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
                Effect::Arm { id, after } => self.timer.arm(id, after),
                Effect::Disarm { id } => self.timer.disarm(id),
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

/// Which stops wait for each other.
struct Circles(BTreeMap<PeerId, BTreeSet<PeerId>>);

impl Circles {
    /// Whose stop waits for whom, whether that waits itself or not.
    fn of(state: &State) -> Self {
        let stopping = state.slots.iter().filter(|(_, slot)| slot.stop.is_some());
        let waits = |peer| state.broker.exposed_to(peer).into_iter().collect();
        Self(stopping.map(|(peer, _)| (*peer, waits(*peer))).collect())
    }

    fn waiting(&self) -> impl Iterator<Item = PeerId> {
        self.0.keys().copied()
    }

    /// Whether each of two waits for the other, through others or not.
    fn hold(&self, one: PeerId, other: PeerId) -> bool {
        self.reaches(one, other) && self.reaches(other, one)
    }

    fn reaches(&self, from: PeerId, to: PeerId) -> bool {
        let mut seen = BTreeSet::new();
        let mut next = vec![from];
        while let Some(peer) = next.pop() {
            // Not one of those that wait: it leads nowhere.
            let Some(waits_for) = self.0.get(&peer) else {
                continue;
            };
            if waits_for.contains(&to) {
                return true;
            }
            next.extend(waits_for.iter().filter(|peer| seen.insert(**peer)));
        }
        false
    }
}

impl State {
    /// The importers for which the stop of `owner` waits.
    ///
    /// QEMU closes what it has unmapped some time later, and not while it waits for the
    /// answer to a stop of its own. So stops can wait for each other in a circle. Of those
    /// that wait only for what importers in their circle keep, the first is answered
    /// although nobody proved anything: no guest sees what is kept. Then its VMM goes on,
    /// and lets the next one be answered, which waits on.
    fn waits_for(&self, owner: PeerId) -> Vec<PeerId> {
        let left = self.broker.exposed_to(owner);
        let only_kept = |left: &[PeerId], owner| {
            let shown = self.broker.shown_to(owner);
            !left.iter().any(|importer| shown.contains(importer))
        };
        if left.is_empty() || !only_kept(&left, owner) {
            return left;
        }
        let circles = Circles::of(self);
        let can_be_first = |peer: PeerId| {
            let left = self.broker.exposed_to(peer);
            only_kept(&left, peer) && left.iter().all(|importer| circles.hold(peer, *importer))
        };
        let before = |peer: &PeerId| *peer < owner && circles.hold(owner, *peer);
        let mut earlier = circles.waiting().filter(before);
        if can_be_first(owner) && !earlier.any(can_be_first) {
            return Vec::new();
        }
        left
    }

    /// Takes memory of `owner` from those importers whose device is stopped.
    /// Returns those that were not forced before; only they have anything to lose.
    fn force(&mut self, owner: PeerId) -> (Vec<PeerId>, Vec<Effect>) {
        let (mut stopped, effects) = self.broker.revoke_from_stopped(owner);
        if let Some(stop) = self.slots.get_mut(&owner).and_then(|s| s.stop.as_mut()) {
            stopped.retain(|importer| stop.forced.insert(*importer));
        }
        for importer in &stopped {
            let Some(slot) = self.slots.get_mut(importer) else {
                continue;
            };
            if let Some(link) = &slot.link {
                link.force();
            }
            // Of those that wait for each other the first goes last.
            if let Some(stop) = slot.stop.as_mut().filter(|stop| stop.forced.is_empty()) {
                stop.released = true;
            }
        }
        (stopped, effects)
    }

    /// What the log says of the importers that a stop forces: all in one line, as a limit
    /// of lines must leave none out. Nothing of those whose session is over, since
    /// nobody can ask them.
    fn forced_line(&self, importers: &[PeerId]) -> Option<String> {
        let (mut names, mut qemus) = (Vec::new(), Vec::new());
        for importer in importers {
            let slot = self.slots.get(importer);
            let slot = slot.filter(|_| !self.is_leaving(*importer));
            let Some((slot, link)) = slot.and_then(|slot| Some((slot, slot.link.as_ref()?))) else {
                continue;
            };
            names.push(&*slot.name);
            if link.is_qemu() {
                qemus.push(&*slot.name);
            }
        }
        let (are, map, vmms) = match names.len() {
            0 => return None,
            1 => ("is", "maps", "its VMM is"),
            _ => ("are", "map", "their VMMs are"),
        };
        let cost = if qemus.is_empty() {
            String::new()
        } else {
            format!("; QEMU 11.1 dies of that ({})", qemus.join(", "))
        };
        Some(format!(
            "stopped while {} {are} stopped too, and {map} this VM's memory: {vmms} asked to unmap \
             that all the same{cost} (see --revoke-wait)",
            names.join(", ")
        ))
    }

    fn stopping(&self, peer: PeerId) -> Option<&Stopping> {
        self.slots.get(&peer)?.stop.as_ref()
    }

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

/// Deadlines by time.
#[derive(Default)]
struct Timer {
    queue: Mutex<TimerQueue>,
    wake: Condvar,
}

#[derive(Default)]
struct TimerQueue {
    /// By time.
    armed: BTreeSet<(Instant, DeadlineId)>,
    times: BTreeMap<DeadlineId, Instant>,
    stopped: bool,
    /// Has a bug.
    #[cfg(test)]
    bug: bool,
}

impl Timer {
    fn arm(&self, id: DeadlineId, after: Duration) {
        let now = Instant::now();
        let at = now.checked_add(after).unwrap_or(now);
        let mut queue = lock(&self.queue);
        queue.armed.insert((at, id));
        queue.times.insert(id, at);
        drop(queue);
        self.wake.notify_one();
    }

    /// The thread may wake up for it all the same, and waits for the next one then.
    fn disarm(&self, id: DeadlineId) {
        let mut queue = lock(&self.queue);
        if let Some(at) = queue.times.remove(&id) {
            queue.armed.remove(&(at, id));
        }
    }

    fn stop(&self) {
        lock(&self.queue).stopped = true;
        self.wake.notify_one();
    }

    /// Waits for the next deadline; `None` at the end.
    fn next(&self) -> Option<DeadlineId> {
        let mut queue = lock(&self.queue);
        loop {
            #[cfg(test)]
            assert!(!queue.bug, "as a bug would");
            if queue.stopped {
                return None;
            }
            let now = Instant::now();
            match queue.armed.first().copied() {
                Some((at, id)) if at <= now => {
                    queue.armed.pop_first();
                    queue.times.remove(&id);
                    return Some(id);
                }
                Some((at, _)) => {
                    let rest = at.saturating_duration_since(now);
                    queue = self
                        .wake
                        .wait_timeout(queue, rest)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
                None => {
                    queue = self
                        .wake
                        .wait(queue)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn run(dispatcher: &Weak<Dispatcher>) {
        while let Some(dispatcher) = dispatcher.upgrade() {
            let next = || dispatcher.timer.next().map(|id| dispatcher.deadline(id));
            match catch_unwind(AssertUnwindSafe(next)) {
                Ok(Some(())) => {}
                Ok(None) => return,
                // Without deadlines nobody can be made to release anything.
                Err(_) => return dispatcher.fail(),
            }
        }
    }
}

#[cfg(test)]
mod tests;
