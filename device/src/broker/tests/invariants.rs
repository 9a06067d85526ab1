// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What must hold of the broker whenever it returns.

use std::collections::{BTreeMap, BTreeSet};

use crate::broker::backing::{BackingId, Buffer, Grant};
use crate::broker::types::{DeadlineId, PeerId};
use crate::broker::{Broker, Peer};

impl Broker {
    /// Requests of a peer that have no answer yet.
    pub(super) fn unanswered(&self, peer: PeerId) -> usize {
        let state = &self.peers[&peer];
        let maps: usize = state.windows.iter().map(|w| w.waiters.len()).sum();
        let own = self.backings.range(BackingId::all_of(peer));
        let revoking = own.filter_map(|backing| backing.revoking.as_ref());
        maps + state.flushes.len() + revoking.filter(|r| r.waiter.is_some()).count()
    }

    fn grants(&self) -> impl Iterator<Item = (BackingId, PeerId, &Grant)> {
        self.backings.iter().flat_map(|backing| {
            let grants = backing.grants.iter();
            grants.map(move |(peer, grant)| (backing.number, peer, grant))
        })
    }

    /// Whether some other peer's VMM may still map memory of `peer`.
    pub(super) fn exposed(&self, peer: PeerId) -> bool {
        !self.exposed_to(peer).is_empty()
    }

    /// What must hold at every return; names what does not.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut reached: BTreeMap<(BackingId, PeerId), u32> = BTreeMap::new();
        let mut attached: BTreeMap<(u64, PeerId), (u32, u32)> = BTreeMap::new();
        for (id, peer) in &self.peers {
            self.check_peer(*id, peer)
                .map_err(|e| format!("peer {id}: {e}"))?;
            for backing in peer.windows.reached() {
                *reached.entry((backing, *id)).or_default() += 1;
            }
            for (_, attachment) in peer.attachments.iter() {
                let attached = attached.entry((attachment.generation, *id)).or_default();
                attached.0 += 1;
                attached.1 += u32::from(attachment.maps > 0);
            }
        }
        for (backing, peer, grant) in self.grants() {
            if reached.remove(&(backing, peer)).unwrap_or_default() != grant.reached {
                return Err("a backing does not know who reaches it".into());
            }
        }
        if !reached.is_empty() {
            return Err("a window of no backing".into());
        }
        for backing in self.backings.iter() {
            let owner = &self.peers[&backing.owner];
            let may = |(peer, grant): (PeerId, &Grant)| {
                let allowed = self.policy.allowed(backing.owner, peer);
                allowed.contains(grant.rights)
            };
            let going = backing.revoking.is_some() || owner.lost.contains(&backing.number);
            if !going && !backing.grants.iter().all(may) {
                return Err("a backing is offered beyond the policy".into());
            }
        }
        if !self.buffers.check() || !self.backings.check() {
            return Err("a buffer or backing is not found by its key".into());
        }
        let mut counted = BTreeMap::new();
        for (_, buffer) in self.buffers.iter() {
            for (peer, found) in buffer.attached.iter() {
                counted.insert((buffer.generation, peer), (found.attachments, found.mapped));
                let attachments = &self.peers[&peer].attachments;
                let linked = attachments.linked(found.first, buffer.generation);
                let backing = self.backings.of(buffer);
                if backing.map(|backing| backing.number) != Some(buffer.backing) {
                    return Err("a buffer of no backing".into());
                }
                let revoking = backing.is_none_or(|backing| backing.revoking.is_some());
                let all = if revoking { 0 } else { found.attachments };
                if linked != Some(all as usize) {
                    return Err("a buffer does not lead to its attachments".into());
                }
            }
        }
        let generations: BTreeSet<u64> = self
            .buffers
            .iter()
            .map(|(_, buffer)| buffer.generation)
            .collect();
        attached.retain(|(generation, _), _| generations.contains(generation));
        if counted != attached {
            return Err("a buffer does not know its attachments".into());
        }
        let deadlines: BTreeSet<DeadlineId> = self
            .backings
            .iter()
            .filter_map(|backing| backing.revoking.as_ref())
            .flat_map(|revoking| revoking.deadlines.iter().copied())
            .collect();
        if !deadlines.iter().eq(self.deadlines.keys()) {
            return Err("a deadline of nothing, or one that was forgotten".into());
        }
        self.check_frames()?;
        self.check_bounds()
    }

    fn check_peer(&self, id: PeerId, peer: &Peer) -> Result<(), String> {
        peer.windows.check(&peer.usage.mappings)?;
        let usage = &peer.usage;
        usage
            .attachments
            .check("attachments", peer.attachments.iter().count())?;
        peer.events.check(
            |handle| peer.attachments.get(handle).is_some_and(|a| a.revoked),
            |handle| self.has_frame(id, handle),
            |buffer| {
                let buffer = self
                    .owned(id, buffer)
                    .and_then(|slot| self.buffers.get(slot));
                let backing = buffer.and_then(|buffer| self.backings.of(buffer));
                backing.is_some_and(|backing| backing.revoking.is_none())
            },
        )?;
        let knows = |b: &Buffer| b.owner == id || self.grant(id, b).is_some();
        let known = self.buffers.iter().filter(|(_, buffer)| knows(buffer));
        let known = known.map(|(slot, buffer)| (buffer.generation, slot));
        if known.collect::<BTreeMap<_, _>>() != peer.known {
            return Err("it does not know its buffers".into());
        }
        let own = self.buffers.iter().filter(|(_, b)| b.owner == id);
        let names: Vec<_> = own
            .filter(|(_, buffer)| buffer.is_stream())
            .map(|(_, buffer)| buffer.name)
            .collect();
        if names.len() != peer.streams.len() || !names.iter().all(|n| peer.streams.contains(n)) {
            return Err("it does not know the names of its streams".into());
        }
        let exports = self.buffers.iter().filter(|(_, b)| b.owner == id).count();
        let own = || self.backings.range(BackingId::all_of(id));
        if exports != own().map(|backing| backing.buffers.len()).sum::<usize>() {
            return Err("a buffer is not of its owner's backing".into());
        }
        if !peer.life.runs()
            && !own().all(|backing| {
                let step = peer
                    .revoked_below
                    .is_some_and(|below| backing.number >= below);
                step || backing.revoking.is_some()
            })
        {
            return Err("a buffer of a peer that does not run".into());
        }
        let promised = own().filter(|backing| {
            let step = peer
                .revoked_below
                .is_some_and(|below| backing.number >= below);
            !peer.life.runs() && !step
        });
        let mut promised = promised.flat_map(|backing| &backing.buffers);
        if promised.any(|slot| {
            self.buffers
                .get(*slot)
                .is_some_and(|buffer| buffer.quiesced)
        }) {
            return Err("a quiesced buffer of a peer that does not run".into());
        }
        usage.buffers.check("buffers", exports)?;
        for window in peer.windows.iter().filter(|w| w.shows_backing()) {
            if self.backings.get(window.key.backing).is_none() {
                return Err("a window of no backing".into());
            }
        }
        peer.attachments.check()?;
        for (handle, attachment) in peer.attachments.iter() {
            if !attachment.revoked && self.buffers.find(&attachment.id).is_none() {
                return Err(format!("handle {handle} is of no buffer"));
            }
        }
        let users: u64 = peer.windows.iter().map(|w| w.users).sum();
        let maps: u64 = peer
            .attachments
            .iter()
            .map(|(_, a)| a)
            .filter(|a| a.window.is_some_and(|w| peer.windows.get(w).is_some()))
            .map(|a| u64::from(a.maps))
            .sum();
        if users != maps {
            return Err(format!("{users} users, {maps} maps"));
        }
        let waiters: usize = peer.windows.iter().map(|w| w.waiters.len()).sum();
        let pending: u32 = peer.attachments.iter().map(|(_, a)| a.pending).sum();
        if waiters != pending as usize {
            return Err(format!("{waiters} waiters, {pending} counted"));
        }
        Ok(())
    }

    /// Everything that a guest can make grow, with its bound (see `limits`).
    fn check_bounds(&self) -> Result<(), String> {
        let peers = self.peers.len();
        let limits = &self.limits;
        let (windows, buffers, attachments) = (
            limits.max_windows as usize,
            limits.max_buffers as usize,
            limits.max_attachments as usize,
        );
        let mut sizes = Vec::new();
        let mut outstanding = 0;
        for (id, peer) in &self.peers {
            // REVOKED or PUSHED of each attachment, REVOKED of an own export and RETURNED.
            let kept = 2 * attachments + 3 * buffers + buffers * (peers - 1) + 2 * (peers - 1);
            let droppable = limits.max_events as usize * (peers - 1);
            outstanding += peer.windows.outstanding().len();
            sizes.extend([
                (
                    "windows",
                    peer.windows.iter().count(),
                    windows + attachments,
                ),
                (
                    "requests to the VMM",
                    peer.windows.outstanding().len(),
                    peer.windows.iter().count() + 1,
                ),
                ("events", peer.events.len(), kept + droppable + 1),
                (
                    "ended exports",
                    peer.events.ended_exports() as usize,
                    2 * buffers,
                ),
                ("answers owed", peer.owed.len(), buffers),
                (
                    "unanswered requests",
                    self.unanswered(*id),
                    limits.max_requests as usize,
                ),
            ]);
        }
        let mut deadlines = 0;
        for backing in self.backings.iter() {
            let late = backing.revoking.as_ref().map_or(0, |r| r.late.len());
            deadlines += usize::from(backing.revoking.is_some()) + late;
            sizes.push(("late importers", late, peers - 1));
            sizes.push(("access list", backing.grants.len(), peers - 1));
        }
        sizes.extend([
            ("deadlines", self.deadlines.len(), deadlines),
            ("effects", self.out.len(), 0),
            ("effects under way", self.effect_peers.len(), outstanding),
        ]);
        for (what, size, most) in sizes {
            if size > most {
                return Err(format!("{size} {what}, {most} at most"));
            }
        }
        Ok(())
    }
}
