// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The broker: who shares what with whom, as a pure state machine.
//!
//! It knows no descriptor, thread, clock or virtqueue. Requests and what
//! happens to the virtual machines come in as calls, what has to be done goes
//! out as [`Effect`]s, which the adapters carry out in order *after* they have
//! dropped the lock around the broker, and report by [`Broker::complete`].
//! So no lock can be held while a VMM is asked for something, and the same code
//! runs in the daemon, in unit tests and in the model-based property test.
//!
//! Rules that hold at every return (checked in tests by `check`):
//! - every request gets exactly one [`Effect::Reply`], unless its peer is reset
//!   or gone before;
//! - windows of one peer never overlap, stay within its region and its budget,
//!   and a range is used again only after the proof that it was unmapped;
//! - a buffer is gone only when no VMM can map it any more.
//!
//! | module | subject |
//! |---|---|
//! | [`types`] | what goes in and out |
//! | [`limits`] | every limit, with its reason |
//! | `backing` | backings and buffers |
//! | `exports` | EXPORT, UNEXPORT, metadata |
//! | `revocations` | revocation, by request or unasked |
//! | `imports`, `attachments` | ATTACH, MAP, SYNC and their ends |
//! | `ram` | the RAM of the VMs |
//! | `tables` | PEERS, LIST, QUERY, GET_CAPS, snapshots |
//! | `windows`, `region` | windows, their budget, cache and quarantine |
//! | `events` | what waits to be told to a peer |
//! | `balance` | counts of references |
//! | `holds` | whose memory the VMMs hold, the end of all sharing |

mod attachments;
mod backing;
mod balance;
mod events;
mod exports;
mod holds;
mod imports;
pub mod limits;
mod ram;
mod region;
mod revocations;
mod tables;
#[cfg(test)]
mod tests;
pub mod types;
mod windows;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bufshare_protocol::event::Event;
use bufshare_protocol::request::Request;
use bufshare_protocol::response::{Reply, Response};
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{BufferId, Rights};

pub use holds::Hold;
pub use limits::Limits;
pub use tables::{PeerSnapshot, Snapshot};
pub use types::{
    Allow, Config, ConfigError, DeadlineId, Effect, EffectId, IdSource, MapSource, Outcome,
    PeerConfig, PeerId, Piece, RamRegion, Token, VmmRequest,
};

use attachments::Attachments;
use backing::{Backing, BackingId, Buffer};
use events::EventQueue;
use ram::region_of;
use windows::{Change, EffectIds, Windows};

/// What is over at a deadline.
#[derive(Debug)]
enum Deadline {
    /// The time in which importers may release a backing that is revoked.
    Release {
        backing: BackingId,
        /// One that was stopped, else all who ran.
        only: Option<PeerId>,
    },
}

/// Begun and not ended accesses by class.
#[derive(Debug, Default)]
struct SyncCounts {
    read: u32,
    write: u32,
}

#[derive(Debug, Default)]
struct Counters {
    requests: u64,
    refused: u64,
    map_requests: u64,
    map_cached: u64,
    vmm_maps: u64,
    vmm_unmaps: u64,
    zero_maps: u64,
    barriers: u64,
    revocations: u64,
    deadlines_missed: u64,
}

impl Counters {
    /// One more request to the VMM.
    fn count(&mut self, request: &VmmRequest) {
        let (counter, more) = match request {
            VmmRequest::Map { source, .. } => (&mut self.vmm_maps, source.mappings()),
            VmmRequest::Unmap { pieces } => (&mut self.vmm_unmaps, pieces.len()),
            VmmRequest::MapZeroPages { .. } => (&mut self.zero_maps, 1),
            VmmRequest::Barrier => (&mut self.barriers, 1),
        };
        *counter = counter.saturating_add(count(more));
    }
}

#[derive(Debug)]
struct Peer {
    config: PeerConfig,
    up: bool,
    /// Stopped, and not known to be reset.
    stopped: bool,
    /// It has stopped, and its buffers with this number and higher ones are yet to be
    /// taken back.
    revoked_below: Option<BackingId>,
    /// Its buffers that are not in its RAM any more, and are yet to be taken back.
    lost: BTreeSet<BackingId>,
    can_map: bool,
    /// In order.
    ram: Vec<RamRegion>,
    attachments: Attachments,
    /// The generations of its own buffers and of those that it may attach to.
    known: BTreeSet<u64>,
    windows: Windows,
    /// FLUSH requests that wait until no window is on its way out.
    flushes: Vec<Token>,
    events: EventQueue,
    exports: u32,
    /// Exports since the start.
    exported: u64,
    /// Buffers of its that nobody reaches any more, and whose UNEXPORT its driver left
    /// without this answer: the latest `max_buffers` of them.
    owed: VecDeque<BufferId>,
    counters: Counters,
}

/// The broker. See the module's text.
pub struct Broker {
    peers: BTreeMap<PeerId, Peer>,
    policy: BTreeMap<(PeerId, PeerId), Rights>,
    /// By generation.
    buffers: BTreeMap<u64, Box<Buffer>>,
    backings: BTreeMap<BackingId, Box<Backing>>,
    generations: BTreeMap<[u8; 16], u64>,
    effect_ids: EffectIds,
    effect_peers: BTreeMap<EffectId, PeerId>,
    next_deadline: u64,
    deadlines: BTreeMap<DeadlineId, Deadline>,
    limits: Limits,
    shm_size: u64,
    host_udmabuf: bool,
    revoke_ack: core::time::Duration,
    /// The program is to end: nothing is exported any more.
    closed: bool,
    /// The first backing that was not looked at since.
    close_from: BackingId,
    /// [`limits::MAX_REVOKE`], but in tests.
    at_once: usize,
    ids: Box<dyn IdSource + Send>,
    out: Vec<Effect>,
    /// By changes of RAM, since the start.
    #[cfg(test)]
    extents_looked_at: u64,
}

impl Broker {
    /// A broker for `config`, with every peer down.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(config: Config, ids: Box<dyn IdSource + Send>) -> Result<Self, ConfigError> {
        if config.peers.is_empty() {
            return Err(ConfigError::NoPeer);
        }
        if config.peers.len() > limits::MAX_PEERS {
            return Err(ConfigError::TooManyPeers(config.peers.len()));
        }
        if config.shm_size < limits::MIN_SHM_SIZE || !config.shm_size.is_power_of_two() {
            return Err(ConfigError::ShmSize(config.shm_size));
        }
        for (name, value, max) in config.limits.checked() {
            if value == 0 || value > max {
                return Err(ConfigError::Limit {
                    name,
                    value: value.into(),
                    max: max.into(),
                });
            }
        }
        let mut peers = BTreeMap::new();
        for (number, peer) in (1u32..).zip(config.peers) {
            if peer.name.as_str().is_empty() {
                return Err(ConfigError::NoName);
            }
            if peers.values().any(|p: &Peer| p.config.name == peer.name) {
                return Err(ConfigError::DuplicateName(peer.name.as_str().to_owned()));
            }
            peers.insert(
                PeerId(number),
                Peer {
                    config: peer,
                    up: false,
                    stopped: false,
                    revoked_below: None,
                    lost: BTreeSet::new(),
                    can_map: false,
                    ram: Vec::new(),
                    attachments: Attachments::default(),
                    known: BTreeSet::new(),
                    windows: Windows::new(config.shm_size, config.limits.max_windows),
                    flushes: Vec::new(),
                    events: EventQueue::default(),
                    exports: 0,
                    exported: 0,
                    owed: VecDeque::new(),
                    counters: Counters::default(),
                },
            );
        }
        let mut policy = BTreeMap::new();
        for line in &config.allow {
            let Some(exporter) = peers.get(&line.exporter) else {
                return Err(ConfigError::UnknownPeer(line.exporter));
            };
            if !peers.contains_key(&line.importer) {
                return Err(ConfigError::UnknownPeer(line.importer));
            }
            let name = exporter.config.name.as_str();
            if line.exporter == line.importer {
                return Err(ConfigError::SelfShare(name.to_owned()));
            }
            if !line.rights.contains(Rights::READ) {
                return Err(ConfigError::NoRights(name.to_owned()));
            }
            policy.insert((line.exporter, line.importer), line.rights);
        }
        Ok(Self {
            peers,
            policy,
            buffers: BTreeMap::new(),
            backings: BTreeMap::new(),
            generations: BTreeMap::new(),
            effect_ids: EffectIds::default(),
            effect_peers: BTreeMap::new(),
            next_deadline: 1,
            deadlines: BTreeMap::new(),
            limits: config.limits,
            shm_size: config.shm_size,
            host_udmabuf: config.host_udmabuf,
            revoke_ack: config.revoke_ack,
            closed: false,
            close_from: BackingId(0),
            at_once: limits::MAX_REVOKE,
            ids,
            out: Vec::new(),
            #[cfg(test)]
            extents_looked_at: 0,
        })
    }

    /// The driver of `peer` runs. `can_map`: its VMM takes shared-memory
    /// requests. Idempotent. A driver that was stopped and not reset goes on
    /// with what it has; it is told that it may have missed events.
    pub fn peer_up(&mut self, peer: PeerId, can_map: bool) -> Vec<Effect> {
        // Before it exports anew: that is not to be taken back.
        self.revoke_some(peer, usize::MAX);
        if let Some(state) = self.peers.get_mut(&peer) {
            state.can_map = can_map;
            if core::mem::take(&mut state.stopped) {
                self.notify(peer, EventQueue::missed);
                self.revoke_late(peer);
            }
        }
        if let Some(state) = self.peers.get_mut(&peer)
            && !core::mem::replace(&mut state.up, true)
        {
            self.report_peer(peer, true);
        }
        self.finish()
    }

    /// The rings of `peer` stopped, and it is not known yet whether its driver
    /// was reset or its VM merely paused. Nobody can attach or map what it exported any
    /// more, and all of it is to be taken back by [`Broker::revoke_next`], which is called
    /// until that is done; what it attached stays until [`Broker::peer_reset`].
    pub fn peer_stopped(&mut self, peer: PeerId) -> Vec<Effect> {
        self.begin_stop(peer);
        self.finish()
    }

    /// Goes on with a stop, or with what is not in RAM any more: at most
    /// [`limits::MAX_REVOKE`] buffers are looked at in one call. Returns whether those were
    /// the last.
    pub fn revoke_next(&mut self, peer: PeerId) -> (bool, Vec<Effect>) {
        let last = self.revoke_some(peer, self.at_once);
        (last, self.finish())
    }

    /// The front end of `peer` is not served any more, and may hold what it has for
    /// some time: as stopped, and all its windows go, used or not.
    pub fn peer_leaves(&mut self, peer: PeerId) -> Vec<Effect> {
        self.begin_stop(peer);
        self.unmap_windows(peer, BackingId::ALL);
        self.finish()
    }

    /// The driver of `peer` is gone: as stopped, and all that it attached is
    /// let go, its open requests and its events are forgotten.
    pub fn peer_reset(&mut self, peer: PeerId) -> Vec<Effect> {
        self.stop(peer);
        self.reset(peer);
        self.finish()
    }

    /// The front end has unmapped all windows of `peer` by itself.
    pub fn windows_gone(&mut self, peer: PeerId) -> Vec<Effect> {
        self.forget_windows(peer, Windows::dropped)
    }

    fn forget_windows(
        &mut self,
        peer: PeerId,
        forget: impl FnOnce(&mut Windows) -> Vec<BackingId>,
    ) -> Vec<Effect> {
        let Some(state) = self.peers.get_mut(&peer) else {
            return Vec::new();
        };
        for effect in state.windows.outstanding() {
            self.effect_peers.remove(&effect);
        }
        let backings = forget(&mut state.windows);
        for backing in backings {
            self.vacated(peer, backing);
        }
        self.finish()
    }

    /// The front end of `peer` is gone, and its VMM with it: as a reset, and
    /// its windows, its RAM and the effects aimed at it are forgotten.
    pub fn peer_gone(&mut self, peer: PeerId) -> Vec<Effect> {
        self.stop(peer);
        self.reset(peer);
        if let Some(state) = self.peers.get_mut(&peer) {
            state.can_map = false;
            state.ram.clear();
            state.owed.clear();
        }
        self.forget_windows(peer, Windows::forget)
    }

    /// The stop of `peer` was answered although other VMMs may map its memory.
    pub fn stop_unproved(&mut self, peer: PeerId) {
        for (_, backing) in self.backings.range_mut(BackingId::all_of(peer)) {
            if let Some(revoking) = &mut backing.revoking {
                revoking.unproved = true;
            }
        }
    }

    /// The time is over of those importers of `owner` whose device is stopped, and
    /// which so could not be asked to let go: their windows go, used or not.
    /// Returns who they are.
    pub fn revoke_from_stopped(&mut self, owner: PeerId) -> (Vec<PeerId>, Vec<Effect>) {
        let mut stopped = self.shown_to(owner);
        stopped.retain(|peer| self.peers.get(peer).is_some_and(|state| !state.up));
        for peer in &stopped {
            self.unmap_windows(*peer, BackingId::all_of(owner));
        }
        (stopped, self.finish())
    }

    /// As [`Broker::revoke_from_stopped`], but what `peer` alone has of owners that go
    /// on already, because the answer to their stop did not wait any longer. Returns
    /// whether there is any.
    pub fn revoke_unproved(&mut self, peer: PeerId) -> (bool, Vec<Effect>) {
        let mut any = false;
        for backing in self.shown_in(peer) {
            if self.revoking(backing).is_some_and(|r| r.unproved) {
                any |= self.unmap_windows(peer, backing.only());
            }
        }
        (any, self.finish())
    }

    /// The peers whose VMM may still map memory of `peer`.
    #[must_use]
    pub fn exposed_to(&self, peer: PeerId) -> Vec<PeerId> {
        self.importers(|windows| windows.show(peer) || windows.keep(peer), peer)
    }

    /// Those of them whose guest may see it.
    #[must_use]
    pub fn shown_to(&self, peer: PeerId) -> Vec<PeerId> {
        self.importers(|windows| windows.show(peer), peer)
    }

    fn importers(&self, which: impl Fn(&Windows) -> bool, owner: PeerId) -> Vec<PeerId> {
        self.peers
            .iter()
            .filter(|(id, state)| **id != owner && which(&state.windows))
            .map(|(id, _)| *id)
            .collect()
    }

    /// One request. Its answer is one [`Effect::Reply`], among the effects
    /// returned here or by a later call.
    pub fn handle(&mut self, peer: PeerId, token: Token, request: Request) -> Vec<Effect> {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.counters.requests = state.counters.requests.saturating_add(1);
            let reply = match request {
                Request::GetCaps { version } => Some(self.get_caps(peer, version)),
                Request::Peers { cursor } => Some(self.list_peers(peer, cursor)),
                Request::Export(export) => Some(self.export(peer, export)),
                Request::Unexport { id } => self.unexport(peer, token, id),
                Request::Attach { id, rights } => Some(self.attach(peer, id, rights)),
                Request::Detach { handle } => Some(self.detach(peer, handle)),
                Request::Map {
                    handle,
                    offset,
                    len,
                } => self.map(peer, token, handle, offset, len),
                Request::Unmap { handle } => Some(self.unmap(peer, handle)),
                Request::Sync {
                    target,
                    op,
                    access,
                    offset,
                    len,
                } => Some(self.sync(peer, target, op, access, offset, len)),
                Request::Flush => {
                    self.flush(peer, token);
                    None
                }
                Request::SetMeta { id, meta } => Some(self.set_meta(peer, id, meta)),
                Request::GetMeta { id } => Some(self.get_meta(peer, id)),
                Request::Query { id } => Some(self.query(peer, id)),
                Request::List { cursor } => Some(self.list(peer, cursor)),
            };
            if let Some(reply) = reply {
                self.reply(peer, token, reply);
            }
        }
        self.finish()
    }

    /// Counts a request that could not be parsed.
    pub fn refuse(&mut self, peer: PeerId) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.counters.requests = state.counters.requests.saturating_add(1);
            state.counters.refused = state.counters.refused.saturating_add(1);
        }
    }

    /// An effect is about to end, and somebody still holds the files that the VMM said it
    /// has unmapped, or has not mapped. Their owner does not get that memory back before
    /// [`Broker::let_go`].
    pub fn keeps(&mut self, effect: EffectId) {
        if let Some(peer) = self.effect_peers.get(&effect)
            && let Some(state) = self.peers.get_mut(peer)
            && let Some(backing) = state.windows.keeps(effect)
            && let Some(backing) = self.backings.get_mut(&backing)
        {
            backing.reach(*peer);
        }
    }

    /// Nobody holds the files of an effect of `peer` any more that ended before.
    pub fn file_released(&mut self, peer: PeerId, effect: EffectId) -> Vec<Effect> {
        self.with_windows(peer, |windows, _, out| windows.file_released(effect, out));
        self.finish()
    }

    /// An effect ended. One that is not known (any more) does nothing.
    pub fn complete(&mut self, effect: EffectId, outcome: Outcome) -> Vec<Effect> {
        if let Some(peer) = self.effect_peers.remove(&effect) {
            self.with_windows(peer, |windows, ids, out| {
                windows.complete(effect, outcome, ids, out);
            });
        }
        self.finish()
    }

    /// A deadline has passed.
    pub fn deadline(&mut self, deadline: DeadlineId) -> Vec<Effect> {
        match self.deadlines.remove(&deadline) {
            Some(Deadline::Release { backing, only }) => {
                if let Some(revoking) = self.revoking(backing) {
                    revoking.deadlines.retain(|one| *one != deadline);
                }
                self.release_is_late(backing, only);
            }
            None => {}
        }
        self.finish()
    }

    /// Takes the next event of `peer`, to be called with a descriptor at hand.
    pub fn next_event(&mut self, peer: PeerId) -> Option<Event> {
        self.peers.get_mut(&peer)?.events.next()
    }

    fn finish(&mut self) -> Vec<Effect> {
        core::mem::take(&mut self.out)
    }

    fn reply(&mut self, peer: PeerId, token: Token, reply: Reply) {
        if reply.is_err()
            && let Some(state) = self.peers.get_mut(&peer)
        {
            state.counters.refused = state.counters.refused.saturating_add(1);
        }
        self.out.push(Effect::Reply { peer, token, reply });
    }

    /// Lets `tell` put something into the event queue of `peer`.
    fn notify(&mut self, peer: PeerId, tell: impl FnOnce(&mut EventQueue)) {
        if let Some(state) = self.peers.get_mut(&peer) {
            tell(&mut state.events);
            let effect = Effect::Events { peer };
            if !self.out.contains(&effect) {
                self.out.push(effect);
            }
        }
    }

    /// What the operator lets `exporter` grant to `importer`.
    fn allowed(&self, exporter: PeerId, importer: PeerId) -> Rights {
        self.policy
            .get(&(exporter, importer))
            .copied()
            .unwrap_or(Rights::NONE)
    }

    /// Whether the two may share anything, and so know of each other.
    fn related(&self, a: PeerId, b: PeerId) -> bool {
        !self.allowed(a, b).is_empty() || !self.allowed(b, a).is_empty()
    }

    fn report_peer(&mut self, about: PeerId, up: bool) {
        let others: Vec<PeerId> = self
            .peers
            .iter()
            .filter(|(id, state)| **id != about && state.up)
            .map(|(id, _)| *id)
            .filter(|id| self.related(about, *id))
            .collect();
        for other in others {
            self.notify(other, |events| events.peer(about.to_wire(), up));
        }
    }

    /// `peer` does not run any more. Its buffers are yet to be taken back.
    fn begin_stop(&mut self, peer: PeerId) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        state.stopped = true;
        state.revoked_below = Some(*BackingId::all_of(peer).start());
        if core::mem::replace(&mut state.up, false) {
            self.report_peer(peer, false);
        }
    }

    fn stop(&mut self, peer: PeerId) {
        self.begin_stop(peer);
        self.revoke_some(peer, usize::MAX);
    }

    fn reset(&mut self, peer: PeerId) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        state.stopped = false;
        state.events.clear();
        state.windows.abandon();
        state.flushes.clear();
        // A pending UNEXPORT is forgotten, not answered.
        for (_, backing) in self.backings.range_mut(BackingId::all_of(peer)) {
            if let Some(revoking) = &mut backing.revoking {
                revoking.waiter = None;
                revoking.left = true;
            }
        }
        self.drop_attachments(peer);
        self.with_windows(peer, |windows, ids, out| {
            for id in windows.all() {
                windows.revoke(id, true, Status::Revoked, ids, out);
            }
        });
    }

    /// Changes the windows of `peer` and does what follows from it.
    fn with_windows(
        &mut self,
        peer: PeerId,
        change: impl FnOnce(&mut Windows, &mut EffectIds, &mut Vec<Change>),
    ) {
        let mut changes = Vec::new();
        if let Some(state) = self.peers.get_mut(&peer) {
            change(&mut state.windows, &mut self.effect_ids, &mut changes);
        }
        for change in changes {
            self.follow(peer, change);
        }
        if let Some(state) = self.peers.get_mut(&peer)
            && !state.flushes.is_empty()
            && state.windows.none_leaving()
        {
            for token in core::mem::take(&mut state.flushes) {
                self.reply(peer, token, DONE);
            }
        }
    }

    /// Does what follows from a change of the windows of `peer`.
    fn follow(&mut self, peer: PeerId, change: Change) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        match change {
            Change::Ask { id, request } => {
                state.counters.count(&request);
                self.effect_peers.insert(id, peer);
                self.out.push(Effect::Ask { id, peer, request });
            }
            Change::Ready { window } => self.window_ready(peer, window),
            Change::Failed { waiters, status } => {
                for waiter in waiters {
                    if let Some(attachment) = state.attachments.get_mut(waiter.handle) {
                        balance::fewer(&mut attachment.pending, 1, "waiting maps");
                    }
                    state.counters.refused = state.counters.refused.saturating_add(1);
                    self.out.push(Effect::Reply {
                        peer,
                        token: waiter.token,
                        reply: Err(status),
                    });
                }
            }
            Change::Vacated { backing } => self.vacated(peer, backing),
        }
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

const DONE: Reply = Ok(Response::Done);
