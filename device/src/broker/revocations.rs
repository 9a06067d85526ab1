// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Revocation: from the moment that nobody may attach or map a backing any more until no
//! VMM reaches it.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use bufshare_protocol::status::Status;

use super::backing::{Backing, BackingId, PeerMap, Revoking};
use super::records::Slot;
use super::types::{DeadlineId, Effect, PeerId, Token};
use super::windows::{Window, Windows};
use super::{Broker, DONE, Deadline, Peer};

impl Broker {
    pub(super) fn revoking(&mut self, backing: BackingId) -> Option<&mut Revoking> {
        self.backings.get_mut(backing)?.revoking.as_deref_mut()
    }

    /// Whether a backing is there for importers: not being revoked, nor to be in one of
    /// the next steps, because its owner has stopped or it is in no RAM.
    pub(super) fn is_offered(&self, id: BackingId) -> bool {
        let backing = self.backings.get(id);
        backing.is_some_and(|backing| self.offers(backing))
    }

    pub(super) fn offers(&self, backing: &Backing) -> bool {
        let offers = |owner: &Peer| owner.life.runs() && !owner.lost.contains(&backing.number);
        backing.revoking.is_none() && self.peers.get(&backing.owner).is_some_and(offers)
    }

    /// Revokes a backing: nobody may attach or map it from now on, those who have it
    /// mapped are notified and given until the deadline, idle windows go at once. It is
    /// freed when its last window is proved to be gone.
    pub(super) fn revoke(&mut self, id: BackingId, waiter: Option<Token>) {
        let Some(backing) = self.backings.get_mut(id) else {
            return;
        };
        backing.revoking = Some(Box::new(Revoking {
            waiter,
            ..Revoking::default()
        }));
        let importers: Vec<PeerId> = backing.grants.peers().collect();
        let buffers = backing.buffers.clone();
        if let Some(state) = self.peers.get_mut(&backing.owner) {
            state.counters.revocations = state.counters.revocations.saturating_add(1);
        }
        for buffer in buffers {
            self.report_revoked(buffer, &importers);
        }
        for peer in importers {
            self.with_windows(peer, |windows, out| {
                for window in windows.of(id.only()) {
                    windows.revoke(window, false, Status::Revoked, out);
                }
            });
        }
        self.arm_release(id, None);
        self.free_if_unreached(id);
    }

    /// A buffer is revoked: its attachments are, and all who know of it are notified.
    fn report_revoked(&mut self, slot: Slot, importers: &[PeerId]) {
        self.recall_frame(slot);
        let Some(buffer) = self.buffers.get(slot) else {
            return;
        };
        let (id, owner, generation) = (buffer.id, buffer.owner, buffer.generation);
        if let Some(state) = self.peers.get_mut(&owner) {
            let importers = importers.iter().map(|peer| peer.to_wire());
            state.events.forget(id, importers);
        }
        // Before anyone is notified, so that the processor waits at once for all those that
        // no cache holds.
        let mut ended = PeerMap::default();
        if let Some(buffer) = self.buffers.get_mut(slot) {
            for (peer, attached) in buffer.attached.iter_mut() {
                if let Some(state) = self.peers.get_mut(&peer) {
                    ended.insert(peer, state.attachments.revoke(attached.first.take()));
                }
            }
        }
        for peer in importers {
            let Some(state) = self.peers.get_mut(peer) else {
                continue;
            };
            let handles = ended.remove(*peer).unwrap_or_default();
            // One that is stopped may yet go on with what it has.
            if state.life.runs() || !handles.is_empty() {
                self.notify(*peer, |events| {
                    if handles.is_empty() {
                        events.withdrawn(owner.to_wire(), id, generation);
                    } else {
                        events.forget(id, core::iter::empty());
                    }
                    for handle in handles {
                        events.revoked(owner.to_wire(), id, generation, handle);
                    }
                });
            } else {
                state.events.forget(id, core::iter::empty());
            }
        }
    }

    /// Revokes what its owner did not ask to be revoked, and notifies it.
    pub(super) fn revoke_unasked(&mut self, id: BackingId) {
        let Some(backing) = self.backings.get(id) else {
            return;
        };
        if backing.revoking.is_some() {
            return;
        }
        let owner = backing.owner;
        for slot in backing.buffers.clone() {
            if let Some(buffer) = self.buffers.get(slot) {
                let (id, generation) = (buffer.id, buffer.generation);
                self.notify(owner, |events| {
                    events.ended(owner.to_wire(), id, generation);
                });
            }
        }
        self.revoke(id, None);
    }

    /// Goes on with what is to be revoked of `peer`, because it is in no RAM or for its
    /// stop: at most `most` backings are looked at. Returns whether none is left.
    pub(super) fn revoke_some(&mut self, peer: PeerId, most: usize) -> bool {
        let Some(state) = self.peers.get_mut(&peer) else {
            return true;
        };
        let lost = std::iter::from_fn(|| state.lost.pop_first());
        let mut next: Vec<BackingId> = lost.take(most).collect();
        let rest = most.saturating_sub(next.len());
        let mut last = rest > 0;
        if let Some(from) = state.revoked_below.filter(|_| last) {
            let own = self.backings.range(from..=*BackingId::all_of(peer).end());
            let own: Vec<BackingId> = own.map(|backing| backing.number).take(rest).collect();
            last = own.len() < rest;
            state.revoked_below = own.last().map(|id| id.next()).filter(|_| !last);
            next.extend(own);
        }
        for id in next {
            if !self.runs(peer) {
                self.forget_quiesced(id);
            }
            self.revoke_unasked(id);
        }
        last
    }

    /// What its owner's driver has promised of a backing counts no more: it may be gone.
    fn forget_quiesced(&mut self, id: BackingId) {
        let backing = self.backings.get(id);
        for slot in backing.iter().flat_map(|backing| &backing.buffers) {
            if let Some(buffer) = self.buffers.get_mut(*slot) {
                buffer.quiesced = false;
            }
        }
    }

    /// Gives those who use a backing that is being revoked, or `only` one of them, until a
    /// deadline.
    pub(super) fn arm_release(&mut self, backing: BackingId, only: Option<PeerId>) {
        let Some(revoked) = self.backings.get(backing) else {
            return;
        };
        let uses = |peer: PeerId| {
            let state = self.peers.get(&peer);
            only.is_none_or(|only| only == peer)
                && state.is_some_and(|state| state.windows.use_backing(backing))
        };
        if !revoked.reached_by().any(uses) {
            return;
        }
        let id = DeadlineId(self.next_deadline);
        self.next_deadline = self.next_deadline.wrapping_add(1);
        let deadline = Deadline::Release { backing, only };
        self.deadlines.insert(id, deadline);
        if let Some(revoking) = self.revoking(backing) {
            revoking.deadlines.push(id);
        }
        self.out.push(Effect::Arm {
            id,
            after: self.limits.release(),
        });
    }

    /// The time to release a backing is over: importers that have not lose the window all
    /// the same. Those that are stopped cannot have, and cannot look; theirs comes when
    /// they go on.
    pub(super) fn release_is_late(&mut self, id: BackingId, only: Option<PeerId>) {
        let Some(backing) = self.backings.get(id) else {
            return;
        };
        let Some(revoking) = &backing.revoking else {
            return;
        };
        let is_over = |peer: &PeerId| {
            let over = match only {
                Some(only) => only == *peer,
                None => !revoking.late.contains(peer),
            };
            over && !self.lifecycle(*peer).is_stopped()
        };
        let peers: Vec<PeerId> = backing.reached_by().filter(is_over).collect();
        for peer in peers {
            self.unmap_windows(peer, id.only());
        }
    }

    /// `peer` goes on, and still maps what was revoked meanwhile. It is given as long to
    /// release that as everybody, but once, and not if the owner goes on already: then
    /// that goes at once, however its clients use it.
    pub(super) fn revoke_late(&mut self, peer: PeerId) {
        for backing in self.shown_in(peer) {
            let Some(revoking) = self.revoking(backing) else {
                continue;
            };
            if revoking.late.insert(peer) && !revoking.unproved {
                self.arm_release(backing, Some(peer));
                continue;
            }
            self.unmap_windows(peer, backing.only());
        }
    }

    /// The backings that `peer` has windows of.
    pub(super) fn shown_in(&self, peer: PeerId) -> BTreeSet<BackingId> {
        let state = self.peers.get(&peer);
        state
            .map(|state| state.windows.backings())
            .unwrap_or_default()
    }

    /// Unmaps those windows of `peer` that show these backings, used or not. Returns
    /// whether there are any.
    pub(super) fn unmap_windows(
        &mut self,
        peer: PeerId,
        backings: RangeInclusive<BackingId>,
    ) -> bool {
        let (mut any, mut missed) = (false, false);
        self.with_windows(peer, |windows, out| {
            for id in windows.shown(backings) {
                any = true;
                missed |= windows.get(id).is_some_and(Window::in_use);
                windows.revoke(id, true, Status::Revoked, out);
            }
        });
        if missed && let Some(state) = self.peers.get_mut(&peer) {
            state.counters.deadlines_missed = state.counters.deadlines_missed.saturating_add(1);
        }
        any
    }

    /// The stop of `peer` was answered although other VMMs may map its memory.
    pub fn stop_unproved(&mut self, peer: PeerId) {
        self.backings
            .for_revoking(peer, |revoking| revoking.unproved = true);
    }

    /// The time is over of those importers of `owner` whose device is stopped, and
    /// which so could not be asked to release its memory: their windows go, used or
    /// not. Returns who they are.
    pub fn revoke_from_stopped(&mut self, owner: PeerId) -> (Vec<PeerId>, Vec<Effect>) {
        let mut stopped = self.shown_to(owner);
        stopped.retain(|peer| !self.runs(*peer));
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

    /// One window less of `peer` shows a backing, or one file hold less is of it.
    pub(super) fn vacated(&mut self, peer: PeerId, id: BackingId) {
        if let Some(backing) = self.backings.get_mut(id) {
            backing.leave(peer);
            let owner = backing.owner;
            let effect = Effect::Unexposed { owner };
            if (self.closed || !self.runs(owner)) && self.out.last() != Some(&effect) {
                self.out.push(effect);
            }
        }
        self.free_if_unreached(id);
    }

    /// Removes a backing that is being revoked and that no VMM reaches, and its buffers.
    fn free_if_unreached(&mut self, id: BackingId) {
        let ended =
            |backing: &Backing| backing.revoking.is_some() && backing.reached_by().next().is_none();
        if !self.backings.get(id).is_some_and(ended) {
            return;
        }
        let Some(mut backing) = self.backings.remove(id) else {
            return;
        };
        let Some(revoking) = backing.revoking.take() else {
            return;
        };
        for deadline in revoking.deadlines {
            self.deadlines.remove(&deadline);
            self.out.push(Effect::Disarm { id: deadline });
        }
        for slot in backing.buffers {
            let Some(buffer) = self.buffers.remove(slot) else {
                continue;
            };
            let peers = backing.grants.peers().chain([backing.owner]);
            for peer in peers {
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.known.remove(&buffer.generation);
                }
            }
            let Some(state) = self.peers.get_mut(&backing.owner) else {
                continue;
            };
            state.usage.buffers.give(1);
            if buffer.is_stream() {
                state.streams.remove(&buffer.name);
            }
            if revoking.left || state.life.is_stopped() {
                let max = usize::try_from(self.limits.max_buffers).unwrap_or(usize::MAX);
                if state.owed.len() >= max {
                    state.owed.pop_front();
                }
                state.owed.push_back(buffer.id);
            }
        }
        if let Some(token) = revoking.waiter {
            self.reply(backing.owner, token, DONE);
        }
    }
}
