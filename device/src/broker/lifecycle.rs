// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A peer's life: its front end connects and goes, its driver starts, stops and is reset.
//!
//! ```text
//!            connected          up
//!   Absent ------------> Connected -----> Running
//!     ^                    ^                | |
//!     |              reset |        stopped | | leaves
//!     |                    |                v |
//!     |                  Stopped <----------+ |
//!     |    gone            | leaves           v
//!     +--------------------+-----------> Leaving
//!     ^                                       |
//!     +---------------------------------------+ gone
//! ```
//!
//! A driver that was stopped may also go on (`up`), and an end of the front end (`gone`)
//! may come at any time. Whoever does not run has no requests served, and what it exported
//! is revoked, in steps.

use bufshare_protocol::status::Status;
use serde::{Deserialize, Serialize};

use super::Broker;
use super::backing::BackingId;
use super::events::EventQueue;
use super::types::{Effect, PeerId};
use super::windows::Windows;

/// Where a peer is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lifecycle {
    /// No front end is connected.
    #[default]
    Absent,
    /// No driver runs: none has started yet, or it was reset.
    Connected,
    /// The driver runs.
    Running,
    /// The rings are stopped, and it is not known whether the driver was reset or its VM is
    /// paused: it keeps what it attached.
    Stopped,
    /// The session has ended, and it is not known yet that its VMM has, too.
    Leaving,
}

impl Lifecycle {
    /// Whether the driver runs.
    #[must_use]
    pub fn runs(self) -> bool {
        self == Self::Running
    }

    /// Whether it had a driver that was not reset, and that does not run.
    #[must_use]
    pub fn is_stopped(self) -> bool {
        matches!(self, Self::Stopped | Self::Leaving)
    }
}

impl Broker {
    /// Where `peer` is in its life.
    #[must_use]
    pub fn lifecycle(&self, peer: PeerId) -> Lifecycle {
        let state = self.peers.get(&peer);
        state.map(|state| state.life).unwrap_or_default()
    }

    /// Whether the driver of `peer` runs.
    pub(super) fn runs(&self, peer: PeerId) -> bool {
        self.lifecycle(peer).runs()
    }

    /// The front end of `peer` is there.
    pub fn peer_connected(&mut self, peer: PeerId) {
        if let Some(state) = self.peers.get_mut(&peer)
            && state.life == Lifecycle::Absent
        {
            state.life = Lifecycle::Connected;
        }
    }

    /// The driver of `peer` runs. `can_map`: its VMM takes shared-memory
    /// requests. Idempotent. A driver that was stopped and not reset goes on
    /// with what it has, and is notified that it may have missed events.
    pub fn peer_up(&mut self, peer: PeerId, can_map: bool) -> Vec<Effect> {
        // Before it exports anew: that is not to be revoked.
        self.revoke_some(peer, usize::MAX);
        let Some(state) = self.peers.get_mut(&peer) else {
            return Vec::new();
        };
        // Whoever leaves does not come back.
        if state.life == Lifecycle::Leaving {
            return self.finish();
        }
        state.can_map = can_map;
        let before = core::mem::replace(&mut state.life, Lifecycle::Running);
        if before.is_stopped() {
            self.notify(peer, EventQueue::missed);
            self.revoke_late(peer);
        }
        if !before.runs() {
            self.report_peer(peer, true);
        }
        self.finish()
    }

    /// The rings of `peer` stopped, and it is not known yet whether its driver
    /// was reset or its VM merely paused. Nobody can attach or map what it exported any
    /// more, and all of it is to be revoked by [`Broker::revoke_next`], which is called
    /// until that is done; what it attached stays until [`Broker::peer_reset`].
    pub fn peer_stopped(&mut self, peer: PeerId) -> Vec<Effect> {
        self.begin_stop(peer, Lifecycle::Stopped);
        self.finish()
    }

    /// Goes on with a stop, or with what is not in RAM any more: at most
    /// [`super::limits::MAX_REVOKE`] backings are looked at in one call. Returns whether those
    /// were the last.
    pub fn revoke_next(&mut self, peer: PeerId) -> (bool, Vec<Effect>) {
        let last = self.revoke_some(peer, self.at_once);
        (last, self.finish())
    }

    /// The front end of `peer` is not served any more, and may hold what it has for
    /// some time: as stopped, and all its windows go, used or not, and it has no frame any
    /// more. Whoever leaves does not come back.
    pub fn peer_leaves(&mut self, peer: PeerId) -> Vec<Effect> {
        self.begin_stop(peer, Lifecycle::Leaving);
        self.end_consumers(peer);
        self.unmap_windows(peer, BackingId::ALL);
        self.finish()
    }

    /// The driver of `peer` is gone: as stopped, and all that it attached is
    /// released, its open requests and its events are forgotten.
    pub fn peer_reset(&mut self, peer: PeerId) -> Vec<Effect> {
        self.reset(peer);
        if let Some(state) = self.peers.get_mut(&peer)
            && state.life == Lifecycle::Stopped
        {
            state.life = Lifecycle::Connected;
        }
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
        state.usage.mappings.clear();
        for backing in backings {
            self.vacated(peer, backing);
        }
        self.finish()
    }

    /// The front end of `peer` is gone, and its VMM with it: as a reset, and
    /// its windows, its RAM and the effects aimed at it are forgotten.
    pub fn peer_gone(&mut self, peer: PeerId) -> Vec<Effect> {
        self.reset(peer);
        if let Some(state) = self.peers.get_mut(&peer) {
            state.life = Lifecycle::Absent;
            state.can_map = false;
            state.ram.clear();
            state.owed.clear();
        }
        self.forget_windows(peer, Windows::forget)
    }

    /// Those who may know of `about`, and run, learn that it runs now, or does not.
    fn report_peer(&mut self, about: PeerId, up: bool) {
        let others: Vec<PeerId> = self
            .peers
            .iter()
            .filter(|(id, state)| **id != about && state.life.runs())
            .map(|(id, _)| *id)
            .filter(|id| self.policy.related(about, *id))
            .collect();
        for other in others {
            self.notify(other, |events| events.peer(about.to_wire(), up));
        }
    }

    /// `peer` does not run any more. Its backings are yet to be revoked.
    fn begin_stop(&mut self, peer: PeerId, life: Lifecycle) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        let before = state.life;
        if before != Lifecycle::Leaving {
            state.life = life;
        }
        state.revoked_below = Some(*BackingId::all_of(peer).start());
        if before.runs() {
            self.report_peer(peer, false);
        }
    }

    /// Stops `peer`, and forgets what its driver had.
    fn reset(&mut self, peer: PeerId) {
        self.begin_stop(peer, Lifecycle::Stopped);
        self.revoke_some(peer, usize::MAX);
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        state.events.clear();
        state.windows.abandon();
        state.flushes.clear();
        // A pending UNEXPORT is forgotten, not answered.
        self.backings.for_revoking(peer, |revoking| {
            revoking.waiter = None;
            revoking.left = true;
        });
        self.drop_attachments(peer);
        self.with_windows(peer, |windows, out| {
            for id in windows.all() {
                windows.revoke(id, true, Status::Revoked, out);
            }
        });
    }
}
