// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A simulated host: VMMs that map late, and a record of every answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bufshare_protocol::event::Event;
use bufshare_protocol::request::{Attach, Export, Request};
use bufshare_protocol::response::{Reply, Response};
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{BufferId, Extent, Name, Rights, Way};

use crate::broker::*;

pub(super) const A: PeerId = PeerId(1);
pub(super) const B: PeerId = PeerId(2);
pub(super) const C: PeerId = PeerId(3);
/// Whose memory zero pages are.
pub(super) const NOBODY: PeerId = PeerId(0);
pub(super) const PAGE: u64 = 4096;
pub(super) const SHM: u64 = 1 << 20;
/// RAM of every peer: 8 MiB from 1 MiB on.
pub(super) const RAM: u64 = 1 << 20;

struct Ids(u64);

impl IdSource for Ids {
    fn fresh(&mut self) -> Option<BufferId> {
        self.0 += 1;
        let mut id = [0xab; 16];
        id[..8].copy_from_slice(&self.0.to_le_bytes());
        Some(BufferId(id))
    }
}

/// What one mapping of a VMM shows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shown {
    pub(super) len: u64,
    pub(super) owner: PeerId,
    pub(super) addr: u64,
}

/// A VMM as QEMU is: it acknowledges a request before that takes effect, and
/// it takes effect before the next one is looked at.
#[derive(Default)]
pub(super) struct Vmm {
    pub(super) requests: VecDeque<(EffectId, VmmRequest)>,
    /// By offset. What a request under way adds is in it at once, what it
    /// removes goes only with the next request: the worst of both.
    pub(super) mappings: BTreeMap<u64, Shown>,
    /// Mappings whose request was acknowledged but not followed by another.
    pub(super) no_barrier: Vec<u64>,
    leaving: Vec<u64>,
    /// What comes of the next maps instead, if anything.
    pub(super) no_map: Option<Outcome>,
    /// The last request that waits is followed by a barrier, and ends with that.
    pub(super) proves: bool,
}

impl Vmm {
    /// Whether it shows anything of `peer`.
    pub(super) fn shows(&self, peer: PeerId) -> bool {
        self.mappings.values().any(|shown| shown.owner == peer)
    }

    /// Another request is looked at.
    fn take_effect(&mut self) {
        self.no_barrier.clear();
        for offset in core::mem::take(&mut self.leaving) {
            self.mappings.remove(&offset);
        }
    }

    /// Maps, if nothing is there.
    fn show(&mut self, at: u64, what: Shown) {
        for (offset, shown) in &self.mappings {
            assert!(
                at + what.len <= *offset || offset + shown.len <= at,
                "the VMM was asked to map over a mapping"
            );
        }
        assert!(at + what.len <= SHM - limits::GUARD, "over the guard");
        self.mappings.insert(at, what);
        self.no_barrier.push(at);
    }
}

pub(super) struct Host {
    pub(super) broker: Broker,
    pub(super) vmms: BTreeMap<PeerId, Vmm>,
    pub(super) replies: BTreeMap<(PeerId, Token), Reply>,
    pub(super) deadlines: VecDeque<DeadlineId>,
    /// Whose memory other VMMs may map.
    exposed: BTreeSet<PeerId>,
    /// Requests without an answer.
    pub(super) unanswered: BTreeSet<(PeerId, Token)>,
    next_token: u64,
    budget: u32,
    /// Files of what is unmapped from now on are kept, by these effects.
    pub(super) kept: Option<Vec<(PeerId, EffectId)>>,
}

pub(super) fn config(limits: Limits) -> Config {
    let peer = |name: &str| PeerConfig {
        name: Name::new(name).unwrap(),
        raw_ram: true,
        enforces_ro: false,
    };
    let allow = |exporter, importer| Allow {
        exporter,
        importer,
        rights: Rights::RW,
    };
    Config {
        peers: vec![peer("a"), peer("b"), peer("c")],
        allow: vec![allow(A, B), allow(A, C), allow(B, A)],
        shm_size: SHM,
        host_udmabuf: false,
        limits,
        started_us: 1000,
    }
}

impl Host {
    pub(super) fn with(config: Config) -> Self {
        let budget = config.limits.max_windows;
        let mut host = Self {
            broker: Broker::new(config, Box::new(Ids(0))).unwrap(),
            vmms: BTreeMap::new(),
            replies: BTreeMap::new(),
            deadlines: VecDeque::new(),
            exposed: BTreeSet::new(),
            unanswered: BTreeSet::new(),
            next_token: 0,
            budget,
            kept: None,
        };
        for peer in [A, B, C] {
            host.connect(peer);
        }
        host
    }

    pub(super) fn new() -> Self {
        Self::with(config(Limits::default()))
    }

    pub(super) fn connect(&mut self, peer: PeerId) {
        self.vmms.insert(peer, Vmm::default());
        let ram = vec![RamRegion {
            addr: RAM,
            len: 8 << 20,
            sealed: true,
        }];
        self.set_ram(peer, ram);
        self.broker.peer_connected(peer);
        assert_eq!(self.broker.lifecycle(peer), Lifecycle::Connected);
        let effects = self.broker.peer_up(peer, true);
        self.take(effects);
        assert_eq!(self.broker.lifecycle(peer), Lifecycle::Running);
    }

    /// The memory table of `peer` is another one.
    pub(super) fn set_ram(&mut self, peer: PeerId, ram: Vec<RamRegion>) {
        let effects = self.broker.set_ram(peer, ram);
        self.take(effects);
        while !self.revoke_next(peer) {}
    }

    pub(super) fn disconnect(&mut self, peer: PeerId) {
        self.vmms.remove(&peer);
        let effects = self.broker.peer_gone(peer);
        self.take(effects);
    }

    /// The rings of `peer` stop.
    pub(super) fn stop(&mut self, peer: PeerId) {
        let effects = self.broker.peer_stopped(peer);
        self.take(effects);
        while !self.revoke_next(peer) {}
    }

    /// One step of the revocation of what `peer` exports. Whether it was the last.
    pub(super) fn revoke_next(&mut self, peer: PeerId) -> bool {
        let (done, effects) = self.broker.revoke_next(peer);
        self.take(effects);
        done
    }

    /// Whoever waits until memory of a peer that does not run is mapped nowhere has to be
    /// notified.
    fn check_exposed(&mut self, effects: &[Effect]) {
        let exposed: BTreeSet<PeerId> = [A, B, C]
            .into_iter()
            .filter(|peer| self.broker.exposed(*peer))
            .collect();
        for owner in self.exposed.difference(&exposed).copied() {
            if self.broker.closed || !self.broker.lifecycle(owner).runs() {
                assert!(effects.contains(&Effect::Unexposed { owner }), "of {owner}");
            }
        }
        self.exposed = exposed;
    }

    /// The broker is written down and read again, as by a daemon that is started again.
    pub(super) fn restore(&mut self) {
        let written = postcard::to_stdvec(&self.broker).unwrap();
        let mut broker: Broker = postcard::from_bytes(&written).unwrap();
        // No id comes twice.
        let exports: u64 = self.broker.peers.values().map(|peer| peer.exported).sum();
        let armed = core::mem::take(&mut self.deadlines);
        let effects = broker.resume(Box::new(Ids(exports)));
        assert_eq!(postcard::to_stdvec(&broker).unwrap(), written);
        self.broker = broker;
        self.take(effects);
        assert_eq!(self.deadlines, armed, "deadlines of before");
    }

    pub(super) fn take(&mut self, effects: Vec<Effect>) {
        self.check_exposed(&effects);
        for effect in effects {
            match effect {
                Effect::Reply { peer, token, reply } => {
                    self.check_reply(peer, &reply);
                    let again = self.replies.insert((peer, token), reply);
                    assert!(again.is_none(), "{token:?} was answered twice");
                    self.unanswered.remove(&(peer, token));
                }
                Effect::Events { .. } | Effect::Unexposed { .. } => {}
                Effect::Arm { id, .. } => self.deadlines.push_back(id),
                Effect::Disarm { id } => self.deadlines.retain(|armed| *armed != id),
                Effect::Ask { id, peer, request } => {
                    if let Some(vmm) = self.vmms.get_mut(&peer) {
                        vmm.requests.push_back((id, request));
                    }
                }
            }
        }
        self.broker.check().unwrap();
    }

    /// A MAP is answered only when the guest can really see it.
    fn check_reply(&self, peer: PeerId, reply: &Reply) {
        if let Ok(Response::Mapped {
            shm_offset, len, ..
        }) = reply
        {
            let vmm = &self.vmms[&peer];
            let mut at = *shm_offset;
            while at < shm_offset + len {
                let shown = vmm.mappings.get(&at).expect("answered, but not mapped");
                let before = vmm.no_barrier.contains(&at);
                assert!(!before, "answered before the barrier");
                at += shown.len;
            }
            assert_eq!(at, shm_offset + len);
        }
    }

    /// The VMM of `peer` serves its next request.
    pub(super) fn serve(&mut self, peer: PeerId) -> bool {
        let Some(vmm) = self.vmms.get_mut(&peer) else {
            return false;
        };
        let Some((id, request)) = vmm.requests.pop_front() else {
            return false;
        };
        let maps = matches!(
            request,
            VmmRequest::Map { .. } | VmmRequest::MapZeroPages { .. }
        );
        // One that is not asked does nothing, and so is no barrier.
        if !(maps && vmm.no_map == Some(Outcome::HostError)) {
            vmm.take_effect();
        }
        let outcome = match request {
            _ if maps && vmm.no_map.is_some() => vmm.no_map.unwrap_or(Outcome::Refused),
            VmmRequest::Map {
                source, shm_offset, ..
            } => {
                let mut at = shm_offset;
                let pieces = match source.way {
                    Way::Direct => source.extents,
                    _ => vec![Extent {
                        addr: source.extents[0].addr,
                        len: source.extents.iter().map(|e| e.len).sum(),
                    }],
                };
                for extent in pieces {
                    vmm.show(
                        at,
                        Shown {
                            len: extent.len,
                            owner: source.owner,
                            addr: extent.addr,
                        },
                    );
                    at += extent.len;
                }
                Outcome::Done
            }
            VmmRequest::Unmap { pieces } => {
                if let Some(kept) = &mut self.kept {
                    kept.push((peer, id));
                    self.broker.keeps(id);
                }
                for piece in pieces {
                    let shown = vmm.mappings.get(&piece.shm_offset);
                    assert_eq!(shown.map(|s| s.len), Some(piece.len), "not a mapping");
                    vmm.leaving.push(piece.shm_offset);
                }
                Outcome::Done
            }
            VmmRequest::MapZeroPages { piece } => {
                vmm.show(
                    piece.shm_offset,
                    Shown {
                        len: piece.len,
                        owner: NOBODY,
                        addr: 0,
                    },
                );
                Outcome::Done
            }
            VmmRequest::Barrier => Outcome::Refused,
        };
        assert!(vmm.mappings.len() <= self.budget as usize, "over budget");
        let outcome = if outcome == Outcome::Done && vmm.proves && vmm.requests.is_empty() {
            vmm.take_effect();
            Outcome::Proved
        } else {
            outcome
        };
        let effects = self.broker.complete(id, outcome);
        self.take(effects);
        true
    }

    /// Every VMM serves all it was asked.
    pub(super) fn settle(&mut self) {
        for _ in 0..10_000 {
            let mut served = false;
            for peer in [A, B, C] {
                served |= self.serve(peer);
            }
            if !served {
                return;
            }
        }
        panic!("the VMMs are asked for ever");
    }

    pub(super) fn send(&mut self, peer: PeerId, request: Request) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.unanswered.insert((peer, token));
        let effects = self.broker.handle(peer, token, request);
        self.take(effects);
        token
    }

    pub(super) fn answer(&self, peer: PeerId, token: Token) -> Option<&Reply> {
        self.replies.get(&(peer, token))
    }

    /// Sends a request and lets everything settle.
    pub(super) fn call(&mut self, peer: PeerId, request: Request) -> Reply {
        let token = self.send(peer, request);
        self.settle();
        self.replies
            .get(&(peer, token))
            .cloned()
            .expect("no answer though all has settled")
    }

    /// What the guest calls the mapping of an attachment, 0 if it has none.
    pub(super) fn window(&self, peer: PeerId, handle: u64) -> u64 {
        let attachment = self.broker.peers[&peer].attachments.get(handle);
        attachment.map_or(0, |attachment| attachment.number)
    }

    /// Undoes one map of an attachment.
    pub(super) fn unmap(&mut self, peer: PeerId, handle: u64) -> Reply {
        let windows = vec![self.window(peer, handle)];
        one(self.call(peer, Request::Unmap { windows }))
    }

    pub(super) fn detach(&mut self, peer: PeerId, handle: u64) -> Reply {
        let handles = vec![handle];
        one(self.call(peer, Request::Detach { handles }))
    }

    pub(super) fn export(&mut self, peer: PeerId, pages: u64) -> BufferId {
        match self.call(peer, export(&[(RAM, pages)])) {
            Ok(Response::Exported { id, .. }) => id,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn attach(&mut self, peer: PeerId, id: BufferId) -> u64 {
        match self.call(peer, Request::Attach(Attach::new(id, Rights::RW))) {
            Ok(Response::Attached { handle, .. }) => handle,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn events(&mut self, peer: PeerId) -> Vec<Event> {
        core::iter::from_fn(|| self.broker.next_event(peer, usize::MAX))
            .map(|event| event.expect("there is room"))
            .collect()
    }

    pub(super) fn peer(&self, peer: PeerId) -> PeerSnapshot {
        self.broker.snapshot().peers[peer.0 as usize - 1].clone()
    }
}

pub(super) fn export(extents: &[(u64, u64)]) -> Request {
    Request::Export(Box::new(Export {
        size: extents.iter().map(|(_, pages)| pages * PAGE).sum(),
        extents: extents
            .iter()
            .map(|(addr, pages)| Extent {
                addr: *addr,
                len: pages * PAGE,
            })
            .collect(),
        ..Export::default()
    }))
}

/// The answer to a batch of one.
pub(super) fn one(reply: Reply) -> Reply {
    match reply? {
        Response::Batch {
            status: Status::Ok,
            entry: 1,
        } => Ok(Response::Done),
        Response::Batch { status, entry: 0 } => Err(status),
        other => panic!("{other:?}"),
    }
}

pub(super) fn unexport_request(id: BufferId) -> Request {
    Request::Unexport {
        id,
        quiesced: false,
    }
}

pub(super) fn unexport_quiesced(id: BufferId) -> Request {
    Request::Unexport { id, quiesced: true }
}

pub(super) fn quiesce(id: BufferId, quiesced: bool) -> Request {
    Request::Quiesce { id, quiesced }
}

pub(super) fn map(handle: u64, pages: u64) -> Request {
    Request::Map {
        handle,
        offset: 0,
        len: pages * PAGE,
    }
}

pub(super) fn status(reply: Reply) -> Status {
    reply.expect_err("a refusal was expected")
}
