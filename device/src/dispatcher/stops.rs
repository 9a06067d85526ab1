// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A front end that stops its device waits until no other VMM maps its VM's memory.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use log::Level;

use super::{Dispatcher, State};
use crate::broker::{Effect, PeerId};

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
pub(super) const FORCED_WAIT: Duration = Duration::from_secs(5);

/// How often a stop that waits looks whether its session has ended.
pub(super) const STOP_LOOK: Duration = Duration::from_millis(100);

/// When it first says for whom it waits.
pub(super) const STOP_SAY_FIRST: Duration = Duration::from_secs(2);

/// How often it says that again.
pub(super) const STOP_SAY: Duration = Duration::from_secs(10);

/// A front end that waits for the answer to its stop. It serves no request.
#[derive(Default)]
pub(super) struct Stopping {
    /// Importers that have been forced.
    pub(super) forced: BTreeSet<PeerId>,
    /// It is to be answered now, so that it can serve what is forced upon it.
    released: bool,
    /// Somebody may have unmapped something since it was looked at last.
    pub(super) look: bool,
}

/// Which stops wait for each other.
pub(super) struct Circles(pub(super) BTreeMap<PeerId, BTreeSet<PeerId>>);

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
    pub(super) fn hold(&self, one: PeerId, other: PeerId) -> bool {
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

impl Dispatcher {
    /// How long importers that run are waited for, of which those that are stopped get
    /// `limit`: they may take all the time that they have to release a buffer, and their VMM
    /// is asked then.
    pub(super) fn wait_for_running(&self, limit: Duration) -> Duration {
        limit.max(self.release).saturating_add(FORCED_WAIT)
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
            RevokeWait::Limit(limit) => self.wait_for_running(limit),
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
    pub(super) fn forced_line(&self, importers: &[PeerId]) -> Option<String> {
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

    pub(super) fn stopping(&self, peer: PeerId) -> Option<&Stopping> {
        self.slots.get(&peer)?.stop.as_ref()
    }
}
