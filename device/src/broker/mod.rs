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
//!   and a range is used again only when it is proved to be unmapped;
//! - a buffer is gone only when no VMM can map it any more.
//!
//! | module | subject |
//! |---|---|
//! | [`types`] | what goes in and out |
//! | [`limits`] | every limit, with its reason |
//! | `backing` | backings and buffers |
//! | `lifecycle` | a peer's life: front end and driver come, stop and go |
//! | `policy` | what the operator allows |
//! | `exports` | EXPORT, QUIESCE, UNEXPORT, metadata |
//! | `revocations` | revocation, by request or unasked |
//! | `imports`, `attachments` | ATTACH, MAP, SYNC and their ends |
//! | `frames` | PUSH and RETURN |
//! | `ram` | the RAM of the VMs |
//! | `queries` | PEERS, LIST, QUERY, GET_CAPS, snapshots |
//! | `windows` | windows, their budget, cache and quarantine |
//! | `records` | records in slots, found by their key |
//! | `usage` | what of a peer is counted and limited |
//! | `events` | the events that wait for a peer |
//! | `refcount` | counts of references |
//! | `end` | whose memory the VMMs hold, the end of all sharing |
#![forbid(unsafe_code)]

mod attachments;
mod backing;
mod end;
mod events;
mod exports;
mod frames;
mod imports;
mod lifecycle;
pub mod limits;
mod policy;
mod queries;
mod ram;
mod records;
mod refcount;
mod revocations;
#[cfg(test)]
mod tests;
pub mod types;
mod usage;
mod windows;

use serde::{Deserialize, Serialize};

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bufshare_protocol::event::Event;
use bufshare_protocol::request::Request;
use bufshare_protocol::response::{Reply, Response};
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{BufferId, Name};

pub use end::Hold;
pub use lifecycle::Lifecycle;
pub use limits::Limits;
pub use queries::{PeerSnapshot, Snapshot};
pub use types::TooLong;
pub use types::{
    Allow, Config, ConfigError, DeadlineId, Effect, EffectId, IdSource, MapSource, Outcome,
    PeerConfig, PeerId, Piece, RamRegion, Token, VmmRequest,
};

use attachments::Attachments;
use backing::{BackingId, Backings, Buffer};
use events::EventQueue;
use policy::Policy;
use ram::region_of;
use records::{Records, Slot};
use usage::Usage;
use windows::{Change, Changes, EffectIds, Windows};

/// What is over at a deadline.
#[derive(Debug, Serialize, Deserialize)]
enum Deadline {
    /// The time in which importers may release a backing that is revoked.
    Release {
        backing: BackingId,
        /// One that was stopped, else all who ran.
        only: Option<PeerId>,
    },
}

/// Begun and not ended accesses by class.
#[derive(Debug, Default, Serialize, Deserialize)]
struct SyncCounts {
    read: u32,
    write: u32,
}

#[derive(Debug, Default, Serialize, Deserialize)]
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
    unexports_quiesced: u64,
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

#[derive(Debug, Serialize, Deserialize)]
struct Peer {
    config: PeerConfig,
    life: Lifecycle,
    /// It has stopped, and its backings with this number and higher ones are yet to be
    /// revoked.
    revoked_below: Option<BackingId>,
    /// Its backings that are not in its RAM any more, or that grant more than the policy
    /// allows, and are yet to be revoked.
    lost: BTreeSet<BackingId>,
    can_map: bool,
    /// In order.
    ram: Vec<RamRegion>,
    attachments: Attachments,
    /// Its own buffers and those that it may attach to, by generation.
    known: BTreeMap<u64, Slot>,
    windows: Windows,
    /// FLUSH requests that wait until no window is on its way out.
    flushes: Vec<Token>,
    /// The number of the last frame that it pushed.
    frames: u64,
    /// Frames that it was given and has not given back, by who pushed them in which stream.
    held: BTreeMap<(PeerId, BufferId), u32>,
    events: EventQueue,
    usage: Usage,
    /// The number of its last export.
    exported: u64,
    /// The names of the streams that it exports.
    streams: BTreeSet<Name>,
    /// Buffers of its that nobody reaches any more, and whose UNEXPORT its driver left
    /// without this answer: the latest `max_buffers` of them.
    owed: VecDeque<BufferId>,
    counters: Counters,
}

/// The broker. See the module's text.
///
/// All of it is plain data that can be written down and read again, but for where new ids
/// come from: see [`Broker::resume`].
#[derive(Serialize, Deserialize)]
pub struct Broker {
    peers: BTreeMap<PeerId, Peer>,
    policy: Policy,
    buffers: Records<Buffer>,
    backings: Backings,
    effect_ids: EffectIds,
    effect_peers: BTreeMap<EffectId, PeerId>,
    next_deadline: u64,
    deadlines: BTreeMap<DeadlineId, Deadline>,
    limits: Limits,
    shm_size: u64,
    host_udmabuf: bool,
    /// The program is to end: nothing is exported any more.
    closed: bool,
    /// The first backing that was not looked at since.
    close_from: BackingId,
    /// [`limits::MAX_REVOKE`], but in tests.
    at_once: usize,
    #[serde(skip, default = "types::no_ids")]
    ids: Box<dyn IdSource + Send>,
    /// Empty at every return.
    #[serde(skip)]
    out: Vec<Effect>,
    /// For whom there is an [`Effect::Events`] in it.
    #[serde(skip)]
    notified: BTreeSet<PeerId>,
    /// By changes of RAM, since the start.
    #[cfg(test)]
    #[serde(skip)]
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
        for (name, value, max) in config.limits.all() {
            if value == 0 || value > max {
                return Err(ConfigError::Limit {
                    name,
                    value: value.into(),
                    max: max.into(),
                });
            }
        }
        let (requests, windows) = (config.limits.max_requests, config.limits.max_windows);
        if requests <= windows {
            return Err(ConfigError::Requests { requests, windows });
        }
        let exported = backing::first_export(config.started_us)
            .ok_or(ConfigError::Clock(config.started_us))?;
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
                    life: Lifecycle::Absent,
                    revoked_below: None,
                    lost: BTreeSet::new(),
                    can_map: false,
                    ram: Vec::new(),
                    attachments: Attachments::new(config.started_us),
                    known: BTreeMap::new(),
                    windows: Windows::new(config.shm_size),
                    flushes: Vec::new(),
                    frames: 0,
                    held: BTreeMap::new(),
                    events: EventQueue::new(config.limits.max_events),
                    usage: Usage::new(&config.limits),
                    exported,
                    streams: BTreeSet::new(),
                    owed: VecDeque::new(),
                    counters: Counters::default(),
                },
            );
        }
        let policy = Policy::new(&peers, &config.allow)?;
        Ok(Self {
            peers,
            policy,
            buffers: Records::default(),
            backings: Backings::default(),
            effect_ids: EffectIds::default(),
            effect_peers: BTreeMap::new(),
            next_deadline: 1,
            deadlines: BTreeMap::new(),
            limits: config.limits,
            shm_size: config.shm_size,
            host_udmabuf: config.host_udmabuf,
            closed: false,
            close_from: BackingId(0),
            at_once: limits::MAX_REVOKE,
            ids,
            out: Vec::new(),
            notified: BTreeSet::new(),
            #[cfg(test)]
            extents_looked_at: 0,
        })
    }

    /// One request. Its answer is one [`Effect::Reply`], among the effects
    /// returned here or by a later call.
    pub fn handle(&mut self, peer: PeerId, token: Token, request: Request) -> Vec<Effect> {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.counters.requests = state.counters.requests.saturating_add(1);
            let reply = match request {
                Request::GetCaps { version } => Some(self.get_caps(peer, version)),
                Request::Peers { cursor } => Some(self.list_peers(peer, cursor)),
                Request::Export(export) => Some(self.export(peer, *export)),
                Request::Unexport { id, quiesced } => self.unexport(peer, token, id, quiesced),
                Request::Quiesce { id, quiesced } => Some(self.quiesce(peer, id, quiesced)),
                Request::Attach(attach) => Some(self.attach(peer, &attach)),
                Request::Detach { handles } => Some(self.detach(peer, &handles)),
                Request::Map {
                    handle,
                    offset,
                    len,
                } => self.map(peer, token, handle, offset, len).transpose(),
                Request::Unmap { windows } => Some(self.unmap(peer, &windows)),
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
                Request::Push { frames } => Some(self.push(peer, frames)),
                Request::Return { frames } => Some(self.give_back(peer, &frames)),
                Request::SetMeta { id, meta } => Some(self.set_meta(peer, id, *meta)),
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
    /// [`Broker::file_released`].
    pub fn keeps(&mut self, effect: EffectId) {
        if let Some(peer) = self.effect_peers.get(&effect)
            && let Some(state) = self.peers.get_mut(peer)
            && let Some(backing) = state.windows.keeps(effect)
            && let Some(backing) = self.backings.get_mut(backing)
        {
            backing.reach(*peer);
        }
    }

    /// Nobody holds the files of an effect of `peer` any more that ended before.
    pub fn file_released(&mut self, peer: PeerId, effect: EffectId) -> Vec<Effect> {
        self.with_windows(peer, |windows, out| windows.file_released(effect, out));
        self.finish()
    }

    /// An effect ended. One that is not known (any more) does nothing.
    pub fn complete(&mut self, effect: EffectId, outcome: Outcome) -> Vec<Effect> {
        if let Some(peer) = self.effect_peers.remove(&effect) {
            if outcome == Outcome::Proved
                && let Some(state) = self.peers.get_mut(&peer)
            {
                state.counters.count(&VmmRequest::Barrier);
            }
            self.with_windows(peer, |windows, out| {
                windows.complete(effect, outcome, out);
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

    /// Takes the next event of `peer`, to be called with a descriptor at hand that has room for
    /// so many bytes.
    ///
    /// # Errors
    /// It has not enough.
    pub fn next_event(&mut self, peer: PeerId, room: usize) -> Option<Result<Event, TooLong>> {
        let events = &mut self.peers.get_mut(&peer)?.events;
        if events.next_length()? > room {
            return Some(Err(TooLong));
        }
        events.next().map(Ok)
    }

    /// How long an importer's driver has to release a buffer that is revoked.
    #[must_use]
    pub fn release_time(&self) -> core::time::Duration {
        self.limits.release()
    }

    /// Goes on after it was read, with new ids from there: until then it exports nothing. The
    /// broker has no clock, so each deadline is armed for the whole of its time again.
    pub fn resume(&mut self, ids: Box<dyn IdSource + Send>) -> Vec<Effect> {
        self.ids = ids;
        let after = self.limits.release();
        for (id, deadline) in &self.deadlines {
            match deadline {
                Deadline::Release { .. } => self.out.push(Effect::Arm { id: *id, after }),
            }
        }
        self.finish()
    }

    fn finish(&mut self) -> Vec<Effect> {
        self.notified.clear();
        core::mem::take(&mut self.out)
    }

    fn reply(&mut self, peer: PeerId, token: Token, reply: Reply) {
        let refused = match &reply {
            Ok(Response::Batch { status, .. } | Response::Pushed { status, .. }) => {
                *status != Status::Ok
            }
            reply => reply.is_err(),
        };
        if refused && let Some(state) = self.peers.get_mut(&peer) {
            state.counters.refused = state.counters.refused.saturating_add(1);
        }
        self.out.push(Effect::Reply { peer, token, reply });
    }

    /// Lets `push` put something into the event queue of `peer`.
    fn notify(&mut self, peer: PeerId, push: impl FnOnce(&mut EventQueue)) {
        if let Some(state) = self.peers.get_mut(&peer) {
            push(&mut state.events);
            if self.notified.insert(peer) {
                self.out.push(Effect::Events { peer });
            }
        }
    }

    /// Changes the windows of `peer` and does what follows from it.
    fn with_windows(&mut self, peer: PeerId, change: impl FnOnce(&mut Windows, &mut Changes<'_>)) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        let mut changes = Changes {
            ids: &mut self.effect_ids,
            mappings: &mut state.usage.mappings,
            list: Vec::new(),
        };
        change(&mut state.windows, &mut changes);
        for change in changes.list {
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
                        refcount::fewer(&mut attachment.pending, 1, "waiting maps");
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
