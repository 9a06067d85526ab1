// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The windows of one peer: ranges of its shared-memory region that show
//! another peer's memory.
//!
//! ```text
//! Queued -> Mapping -> Mapped -> Live <-> Idle
//!              |          |        |       |
//!              +----------+--------+-------+
//!                         v
//!                     Unmapping -> Quarantined -> (free)
//!                      |     ^
//!                      v     +------+  the last user leaves
//!           MappingZeroPages -> ZeroPages
//! ```
//!
//! A VMM acknowledges a request *before* it takes effect, but serves requests
//! one at a time. So a mapping counts as visible, and a range as free, only
//! when a later request was acknowledged: `Mapped` and `Quarantined` wait for
//! that barrier. Until then a window keeps its range and its share of the budget.
//!
//! A window that is unmapped by force still has users: clients in the guest's
//! kernel that cannot be stopped, or a driver that does not answer. They are
//! shown zero pages in its place, not a hole, and the place belongs to them until
//! the last one leaves: nobody finds another buffer where his own was.

mod free_ranges;
mod index;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use bufshare_protocol::status::Status;
use bufshare_protocol::types::{Extent, Way};

use serde::{Deserialize, Serialize};

use super::backing::BackingId;
use super::limits::GUARD;
use super::refcount;
use super::types::{EffectId, MapSource, Outcome, PeerId, Piece, Token, VmmRequest};
use super::usage::Gauge;
use free_ranges::FreeRanges;
use index::Index;

/// Number of a window in its table; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct WindowId(u64);

/// What makes two maps of one peer the same window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Key {
    pub(super) backing: BackingId,
    pub(super) writable: bool,
    pub(super) way: Way,
}

/// A MAP request that waits for its window.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Waiter {
    pub(super) token: Token,
    pub(super) handle: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum State {
    /// Waits for budget or space; holds nothing yet.
    Queued,
    /// The VMM has been asked to map.
    Mapping,
    /// The VMM said it mapped, by this effect; without a barrier yet.
    Mapped(EffectId),
    /// Visible to the guest, in use.
    Live,
    /// Visible to the guest, not in use since this tick; kept for reuse.
    Idle(u64),
    /// The VMM has been asked to unmap.
    Unmapping,
    /// The VMM said it unmapped, by this effect; without a barrier yet.
    Quarantined(EffectId),
    /// As quarantined, but with users; the VMM has been asked to map zero pages.
    MappingZeroPages(EffectId),
    /// Shows zero pages to those who have not left yet.
    ZeroPages,
    /// As zero pages, but the VMM did not map them: shows nothing.
    Empty,
    /// Nobody knows what the VMM has mapped here.
    Stuck,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Window {
    pub(super) key: Key,
    pub(super) owner: PeerId,
    pub(super) way: Way,
    pub(super) extents: Vec<Extent>,
    pub(super) size: u64,
    /// Set once it has a place.
    pub(super) offset: u64,
    /// VMM mappings, relative to the region once placed.
    pub(super) pieces: Vec<Piece>,
    pub(super) state: State,
    pub(super) waiters: Vec<Waiter>,
    /// Sum of the map counts of its attachments.
    pub(super) users: u64,
    /// Unmap it as soon as that is possible; nobody may map it any more.
    pub(super) revoked: bool,
    /// The owner's memory is proved to be gone from it.
    vacated: bool,
}

impl Window {
    /// VMM mappings it takes.
    pub(super) fn cost(&self) -> u32 {
        u32::try_from(self.pieces.len()).unwrap_or(u32::MAX)
    }

    /// Whether the VMM is yet to unmap it.
    fn is_leaving(&self) -> bool {
        matches!(
            self.state,
            State::Unmapping | State::Quarantined(_) | State::MappingZeroPages(_)
        ) || (self.state == State::Mapping && self.revoked)
    }

    /// Whether the guest sees the backing and has not released it.
    pub(super) fn in_use(&self) -> bool {
        self.state == State::Live
    }

    /// Whether it still stands for the owner's backing, visible or not.
    pub(super) fn shows_backing(&self) -> bool {
        !self.vacated
    }

    /// Whether the guest may be able to see the owner's memory through it.
    pub(super) fn exposes(&self) -> bool {
        self.state != State::Queued && !self.vacated
    }
}

/// What others have to know of, or to do.
#[derive(Debug)]
pub(super) enum Change {
    /// Send the VMM this request.
    Ask { id: EffectId, request: VmmRequest },
    /// The window is ready for its waiters.
    Ready { window: WindowId },
    /// These requests failed.
    Failed {
        waiters: Vec<Waiter>,
        status: Status,
    },
    /// This backing is gone from a window, and that is proved.
    Vacated { backing: BackingId },
}

/// Memory that the VMM said it unmapped, or did not map, and that the host still counts as
/// held.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    window: WindowId,
    backing: BackingId,
    owner: PeerId,
    cost: u32,
    size: u64,
}

/// Says once that the owner's memory is gone from the window.
fn report_vacated(window: &mut Window, out: &mut Changes<'_>) {
    if !core::mem::replace(&mut window.vacated, true) {
        out.push(Change::Vacated {
            backing: window.key.backing,
        });
    }
}

/// What a change of the windows needs, and what follows from it.
pub(super) struct Changes<'a> {
    pub(super) ids: &'a mut EffectIds,
    pub(super) mappings: &'a mut Gauge,
    pub(super) list: Vec<Change>,
}

impl Changes<'_> {
    fn push(&mut self, change: Change) {
        self.list.push(change);
    }
}

/// Gives out effect ids, growing.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct EffectIds(u64);

impl EffectIds {
    fn next(&mut self) -> EffectId {
        let id = EffectId(self.0).next();
        self.0 = id.0;
        id
    }
}

/// The windows of one peer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Windows {
    table: BTreeMap<WindowId, Window>,
    index: Index,
    /// The window that a new map of the key joins.
    current: BTreeMap<Key, WindowId>,
    /// Those that wait for budget or space. They have growing numbers.
    queue: BTreeSet<WindowId>,
    /// Requests to the VMM, each of which is a barrier if it is not of a window.
    outstanding: BTreeMap<EffectId, Option<WindowId>>,
    /// By the effect that ended so. The guest sees nothing of it, so it takes no place
    /// and no share of the budget; but its owner does not get it back yet.
    kept: BTreeMap<EffectId, Kept>,
    region: FreeRanges,
    shm_size: u64,
    next: u64,
    tick: u64,
    /// The VMM does not answer: nothing can be proved in this session.
    broken: bool,
}

impl Windows {
    pub(super) fn new(shm_size: u64) -> Self {
        Self {
            table: BTreeMap::new(),
            index: Index::default(),
            current: BTreeMap::new(),
            queue: BTreeSet::new(),
            outstanding: BTreeMap::new(),
            kept: BTreeMap::new(),
            region: FreeRanges::new(shm_size.saturating_sub(GUARD)),
            shm_size,
            next: 0,
            tick: 0,
            broken: false,
        }
    }

    /// The session is over: its VMM is not ours any more. Returns what it may have had, each
    /// as often.
    pub(super) fn forget(&mut self) -> Vec<BackingId> {
        let kept = self.kept.values().map(|kept| kept.backing);
        let shown = self.table.values().filter(|window| window.shows_backing());
        let backings = shown.map(|window| window.key.backing).chain(kept).collect();
        *self = Self {
            next: self.next,
            ..Self::new(self.shm_size)
        };
        backings
    }

    /// The VMM has dropped its windows. It may hold what it has unmapped before.
    pub(super) fn dropped(&mut self) -> Vec<BackingId> {
        let kept = core::mem::take(&mut self.kept);
        let backings = self.forget();
        self.kept = kept;
        backings
    }

    fn insert(&mut self, id: WindowId, window: Window) {
        self.index.add(id, &window);
        self.table.insert(id, window);
    }

    fn remove(&mut self, id: WindowId) -> Option<Window> {
        let window = self.table.remove(&id)?;
        self.index.remove(id, &window);
        Some(window)
    }

    /// Changes a window, and what it is found by.
    fn change<T>(&mut self, id: WindowId, change: impl FnOnce(&mut Window) -> T) -> Option<T> {
        let window = self.table.get_mut(&id)?;
        self.index.remove(id, window);
        let result = change(window);
        self.index.add(id, window);
        Some(result)
    }

    fn set_state(&mut self, id: WindowId, state: State) {
        self.change(id, |window| window.state = state);
    }

    pub(super) fn get(&self, id: WindowId) -> Option<&Window> {
        self.table.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Window> {
        self.table.values()
    }

    /// Requests to the VMM that are not answered yet.
    pub(super) fn outstanding(&self) -> impl ExactSizeIterator<Item = EffectId> {
        self.outstanding.keys().copied()
    }

    /// Whether the guest may see memory of `owner`.
    pub(super) fn show(&self, owner: PeerId) -> bool {
        self.some_of(BackingId::all_of(owner))
            .any(|(_, window)| window.exposes())
    }

    /// Whether the VMM holds memory of `owner` that it said it has not mapped.
    pub(super) fn keep(&self, owner: PeerId) -> bool {
        self.kept.values().any(|kept| kept.owner == owner)
    }

    /// What the VMM may have: owner, mappings and bytes.
    pub(super) fn exposed(&self) -> impl Iterator<Item = (PeerId, u32, u64)> {
        let shown = self.table.values().filter(|window| window.exposes());
        let shown = shown.map(|window| (window.owner, window.cost(), window.size));
        // Until that is proved, its window counts.
        let counted = |id| self.table.get(&id).is_some_and(Window::exposes);
        let kept = self.kept.values().filter(move |kept| !counted(kept.window));
        shown.chain(kept.map(|kept| (kept.owner, kept.cost, kept.size)))
    }

    /// The window that a map of `key` would join.
    pub(super) fn current(&self, key: Key) -> Option<WindowId> {
        self.current.get(&key).copied()
    }

    /// A new window in the queue: one mapping per extent if direct, else one.
    pub(super) fn request(
        &mut self,
        key: Key,
        owner: PeerId,
        way: Way,
        extents: &[Extent],
        waiter: Waiter,
    ) -> WindowId {
        let mut pieces = Vec::new();
        let mut size = 0u64;
        for extent in extents {
            if way == Way::Direct {
                pieces.push(Piece {
                    shm_offset: size,
                    len: extent.len,
                });
            }
            size = size.saturating_add(extent.len);
        }
        if way != Way::Direct {
            pieces.push(Piece {
                shm_offset: 0,
                len: size,
            });
        }
        let id = WindowId(self.next);
        self.next = self.next.wrapping_add(1);
        self.insert(
            id,
            Window {
                key,
                owner,
                way,
                extents: extents.to_vec(),
                size,
                offset: 0,
                pieces,
                state: State::Queued,
                waiters: vec![waiter],
                users: 0,
                revoked: false,
                vacated: false,
            },
        );
        self.current.insert(key, id);
        self.queue.insert(id);
        id
    }

    /// Lets a waiter wait for a window that is not visible yet.
    pub(super) fn wait(&mut self, id: WindowId, waiter: Waiter) {
        if let Some(window) = self.table.get_mut(&id) {
            window.waiters.push(waiter);
        }
    }

    /// One more user of a visible window.
    pub(super) fn enter(&mut self, id: WindowId) {
        self.change(id, |window| {
            refcount::more(&mut window.users, 1, "users of a window");
            window.state = State::Live;
        });
    }

    /// `users` fewer users.
    pub(super) fn leave(&mut self, id: WindowId, users: u64, out: &mut Changes<'_>) {
        self.tick = self.tick.wrapping_add(1);
        let tick = self.tick;
        let Some(window) = self.table.get_mut(&id) else {
            return;
        };
        refcount::fewer(&mut window.users, users, "users of a window");
        if window.users > 0 {
            return;
        }
        match window.state {
            State::Live if !window.revoked => {
                self.set_state(id, State::Idle(tick));
                self.pump(out);
            }
            State::Live | State::ZeroPages => self.unmap(id, out),
            State::Empty => {
                self.free(id, out);
                self.pump(out);
            }
            _ => {}
        }
    }

    /// Forgets users and waiters: the driver they belong to is gone.
    pub(super) fn abandon(&mut self) {
        for window in self.table.values_mut() {
            window.users = 0;
            window.waiters.clear();
        }
    }

    /// Unmaps every window that is kept for reuse.
    pub(super) fn flush(&mut self, out: &mut Changes<'_>) {
        for id in self.index.idle().collect::<Vec<_>>() {
            self.unmap(id, out);
        }
    }

    /// Whether no window is on its way out.
    pub(super) fn none_leaving(&self) -> bool {
        self.index.leaving().next().is_none()
    }

    /// Takes the waiters of a window.
    pub(super) fn take_waiters(&mut self, id: WindowId) -> Vec<Waiter> {
        self.table
            .get_mut(&id)
            .map(|window| core::mem::take(&mut window.waiters))
            .unwrap_or_default()
    }

    /// Nobody may map this window any more; it is unmapped at once, or when
    /// its last user leaves if it is in use and not `forced`. Its waiters get
    /// `status`.
    pub(super) fn revoke(
        &mut self,
        id: WindowId,
        forced: bool,
        status: Status,
        out: &mut Changes<'_>,
    ) {
        let Some((state, users)) = self.close(id, status, out) else {
            return;
        };
        match state {
            State::Queued => {
                self.queue.remove(&id);
                if let Some(mut window) = self.remove(id) {
                    report_vacated(&mut window, out);
                }
                self.pump(out);
            }
            State::Mapped(_) | State::Idle(_) => self.unmap(id, out),
            State::Live if forced || users == 0 => self.unmap(id, out),
            State::ZeroPages if users == 0 => self.unmap(id, out),
            State::Empty if users == 0 => {
                self.free(id, out);
                self.pump(out);
            }
            State::Live
            | State::ZeroPages
            | State::Empty
            | State::Mapping
            | State::Unmapping
            | State::Quarantined(_)
            | State::MappingZeroPages(_)
            | State::Stuck => {}
        }
    }

    /// Nobody may map this window any more, and its waiters get `status`. Its state, and
    /// how many users it has.
    fn close(
        &mut self,
        id: WindowId,
        status: Status,
        out: &mut Changes<'_>,
    ) -> Option<(State, u64)> {
        let closed = self.change(id, |window| {
            window.revoked = true;
            let waiters = core::mem::take(&mut window.waiters);
            if !waiters.is_empty() {
                out.push(Change::Failed { waiters, status });
            }
            (window.key, window.state, window.users)
        });
        let (key, state, users) = closed?;
        if self.current.get(&key) == Some(&id) {
            self.current.remove(&key);
        }
        Some((state, users))
    }

    /// All windows.
    pub(super) fn all(&self) -> Vec<WindowId> {
        self.table.keys().copied().collect()
    }

    /// Every window of these backings.
    pub(super) fn of(&self, backings: RangeInclusive<BackingId>) -> Vec<WindowId> {
        self.index.of(backings).collect()
    }

    /// Those of them that may show memory of others.
    pub(super) fn shown(&self, backings: RangeInclusive<BackingId>) -> Vec<WindowId> {
        let shown = self.some_of(backings);
        let shown = shown.filter(|(_, window)| window.exposes());
        shown.map(|(id, _)| id).collect()
    }

    /// Whether the guest uses a backing, and sees it.
    pub(super) fn use_backing(&self, backing: BackingId) -> bool {
        let mut windows = self.some_of(backing.only());
        windows.any(|(_, window)| window.in_use())
    }

    /// The backings that have windows.
    pub(super) fn backings(&self) -> BTreeSet<BackingId> {
        self.index.backings()
    }

    fn some_of(
        &self,
        backings: RangeInclusive<BackingId>,
    ) -> impl Iterator<Item = (WindowId, &Window)> {
        let windows = self.index.of(backings);
        windows.filter_map(|id| Some((id, self.table.get(&id)?)))
    }

    fn unmap(&mut self, id: WindowId, out: &mut Changes<'_>) {
        let unmapped = self.change(id, |window| {
            window.state = State::Unmapping;
            (window.key, window.pieces.clone())
        });
        let Some((key, pieces)) = unmapped else {
            return;
        };
        if self.current.get(&key) == Some(&id) {
            self.current.remove(&key);
        }
        self.ask(Some(id), VmmRequest::Unmap { pieces }, out);
    }

    /// Places queued windows in their order, evicting idle ones, least
    /// recently used first, as far as that helps.
    pub(super) fn pump(&mut self, out: &mut Changes<'_>) {
        while let Some(&id) = self.queue.first() {
            let Some(window) = self.table.get(&id) else {
                self.queue.pop_first();
                continue;
            };
            let (cost, size) = (window.cost(), window.size);
            if self.broken {
                self.fail_front(id, Status::MapFailed, out);
            } else if out.mappings.fits(cost) && self.region.fits(size) {
                self.place(id, cost, size, out);
            } else {
                match self.victims(cost, size, out.mappings) {
                    Ok(victims) => {
                        for victim in victims {
                            self.unmap(victim, out);
                        }
                        return;
                    }
                    Err(status) => self.fail_front(id, status, out),
                }
            }
        }
    }

    /// Which idle windows have to go for a new one, least recently used first.
    /// None, if waiting for those that leave already is enough; an error if all of
    /// them are not.
    fn victims(&self, cost: u32, size: u64, mappings: &Gauge) -> Result<Vec<WindowId>, Status> {
        let mut mappings = mappings.clone();
        let mut region = self.region.clone();
        let leaving = self.index.leaving().filter_map(|id| self.table.get(&id));
        // One that has users leaves its place to zero pages.
        for window in leaving.filter(|window| window.users == 0) {
            mappings.give(window.cost());
            region.give(window.offset, window.size);
        }
        let mut victims = Vec::new();
        let idle = self.index.idle();
        let mut idle = idle.filter_map(|id| Some((id, self.table.get(&id)?)));
        loop {
            if mappings.fits(cost) && region.fits(size) {
                return Ok(victims);
            }
            let Some((id, window)) = idle.next() else {
                return Err(if mappings.fits(cost) {
                    Status::NoSpace
                } else {
                    Status::NoWindow
                });
            };
            mappings.give(window.cost());
            region.give(window.offset, window.size);
            victims.push(id);
        }
    }

    fn place(&mut self, id: WindowId, cost: u32, size: u64, out: &mut Changes<'_>) {
        self.queue.pop_first();
        let Some(offset) = self.region.take(size) else {
            return;
        };
        let request = self.change(id, |window| {
            window.offset = offset;
            for piece in &mut window.pieces {
                piece.shm_offset = piece.shm_offset.saturating_add(offset);
            }
            window.state = State::Mapping;
            VmmRequest::Map {
                source: MapSource {
                    owner: window.owner,
                    way: window.way,
                    extents: window.extents.clone(),
                },
                writable: window.key.writable,
                shm_offset: offset,
            }
        });
        let Some(request) = request else {
            return self.region.give(offset, size);
        };
        out.mappings.take(cost);
        self.ask(Some(id), request, out);
    }

    /// Sends the VMM a request, of a window unless it is a barrier.
    fn ask(&mut self, window: Option<WindowId>, request: VmmRequest, out: &mut Changes<'_>) {
        let id = out.ids.next();
        self.outstanding.insert(id, window);
        out.push(Change::Ask { id, request });
    }

    fn fail_front(&mut self, id: WindowId, status: Status, out: &mut Changes<'_>) {
        self.queue.pop_first();
        self.close(id, status, out);
        if let Some(mut window) = self.remove(id) {
            report_vacated(&mut window, out);
        }
    }

    /// The VMM answered an effect. Unknown ones (of an earlier session) do
    /// nothing.
    pub(super) fn complete(&mut self, effect: EffectId, outcome: Outcome, out: &mut Changes<'_>) {
        let Some(window) = self.outstanding.remove(&effect) else {
            return;
        };
        let asked = window.and_then(|id| Some((id, self.table.get(&id)?.state)));
        match asked {
            Some((id, State::Mapping)) => self.mapped(id, effect, outcome, out),
            Some((id, State::Unmapping)) => self.unmapped(id, effect, outcome, out),
            Some((id, State::MappingZeroPages(unmap))) => {
                self.zero_pages_mapped(id, unmap, outcome, out);
            }
            _ => {}
        }
        match (outcome, asked) {
            (Outcome::Done | Outcome::Refused, _) => self.barrier_done(effect, out),
            // The barrier went after this effect and before the next one.
            (Outcome::Proved, _) => self.barrier_done(effect.next(), out),
            // What was to be mapped is not, and that is all.
            (Outcome::HostError, Some((_, State::Mapping | State::MappingZeroPages(_)))) => {}
            (Outcome::Stuck | Outcome::HostError, _) => self.broken = true,
        }
        self.need_barrier(out);
        self.pump(out);
    }

    /// An effect is about to end whose files somebody still holds, whatever the VMM says.
    /// Returns what they show.
    pub(super) fn keeps(&mut self, effect: EffectId) -> Option<BackingId> {
        let id = self.outstanding.get(&effect)?.as_ref()?;
        let may_keep = |window: &&Window| {
            matches!(window.state, State::Mapping | State::Unmapping) && window.exposes()
        };
        let window = self.table.get(id).filter(may_keep)?;
        let kept = Kept {
            window: *id,
            backing: window.key.backing,
            owner: window.owner,
            cost: window.cost(),
            size: window.size,
        };
        let backing = kept.backing;
        let old = self.kept.insert(effect, kept);
        old.is_none().then_some(backing)
    }

    /// Nobody holds the files of an effect any more that ended before.
    pub(super) fn file_released(&mut self, effect: EffectId, out: &mut Changes<'_>) {
        if let Some(kept) = self.kept.remove(&effect) {
            out.push(Change::Vacated {
                backing: kept.backing,
            });
        }
    }

    fn mapped(&mut self, id: WindowId, effect: EffectId, outcome: Outcome, out: &mut Changes<'_>) {
        let Some(window) = self.table.get(&id) else {
            return;
        };
        let (state, status) = match outcome {
            Outcome::Done | Outcome::Proved if window.revoked => return self.unmap(id, out),
            Outcome::Done | Outcome::Proved => return self.set_state(id, State::Mapped(effect)),
            // Its earlier pieces were mapped and unmapped again.
            Outcome::Refused => (Some(State::Quarantined(effect)), Status::MapFailed),
            Outcome::Stuck => (Some(State::Stuck), Status::MapFailed),
            Outcome::HostError => (None, Status::HostError),
        };
        self.close(id, status, out);
        match state {
            Some(state) => self.set_state(id, state),
            None => self.free(id, out),
        }
    }

    fn unmapped(
        &mut self,
        id: WindowId,
        effect: EffectId,
        outcome: Outcome,
        out: &mut Changes<'_>,
    ) {
        let Some(window) = self.table.get(&id) else {
            return;
        };
        match outcome {
            Outcome::Stuck | Outcome::HostError => self.set_state(id, State::Stuck),
            Outcome::Done | Outcome::Proved | Outcome::Refused
                if window.users == 0 || self.broken =>
            {
                self.set_state(id, State::Quarantined(effect));
            }
            // At once: until then the users look at a hole.
            Outcome::Done | Outcome::Proved | Outcome::Refused => {
                let piece = Piece {
                    shm_offset: window.offset,
                    len: window.size,
                };
                self.set_state(id, State::MappingZeroPages(effect));
                self.ask(Some(id), VmmRequest::MapZeroPages { piece }, out);
            }
        }
    }

    fn zero_pages_mapped(
        &mut self,
        id: WindowId,
        unmap: EffectId,
        outcome: Outcome,
        out: &mut Changes<'_>,
    ) {
        let Some(window) = self.table.get_mut(&id) else {
            return;
        };
        match outcome {
            Outcome::Stuck => self.set_state(id, State::Stuck),
            Outcome::HostError => self.set_state(id, State::Quarantined(unmap)),
            // Sent after the unmapping was acknowledged, so it is a barrier.
            Outcome::Refused => self.vacate(id, out),
            Outcome::Done | Outcome::Proved => {
                let piece = Piece {
                    shm_offset: window.offset,
                    len: window.size,
                };
                let left = window.users == 0;
                report_vacated(window, out);
                self.hold(id, vec![piece], State::ZeroPages, out);
                if left {
                    self.unmap(id, out);
                }
            }
        }
    }

    /// Nothing is in the window's place any more, and that is proved. It is
    /// free if it has no users.
    fn vacate(&mut self, id: WindowId, out: &mut Changes<'_>) {
        let Some(window) = self.table.get_mut(&id) else {
            return;
        };
        report_vacated(window, out);
        let left = window.users == 0;
        self.hold(id, Vec::new(), State::Empty, out);
        if left {
            self.free(id, out);
        }
    }

    /// The window consists of these VMM mappings now.
    fn hold(&mut self, id: WindowId, pieces: Vec<Piece>, state: State, out: &mut Changes<'_>) {
        let costs = self.change(id, |window| {
            let before = window.cost();
            window.pieces = pieces;
            window.state = state;
            (before, window.cost())
        });
        if let Some((before, after)) = costs {
            out.mappings.give(before);
            out.mappings.take(after);
        }
    }

    /// Everything acknowledged before `effect` was sent has happened.
    fn barrier_done(&mut self, effect: EffectId, out: &mut Changes<'_>) {
        for id in self.index.awaiting_before(effect) {
            match self.table.get(&id).map(|window| window.state) {
                Some(State::Mapped(_)) => {
                    self.set_state(id, State::Live);
                    out.push(Change::Ready { window: id });
                }
                _ => self.vacate(id, out),
            }
        }
    }

    fn free(&mut self, id: WindowId, out: &mut Changes<'_>) {
        if let Some(mut window) = self.remove(id) {
            out.mappings.give(window.cost());
            self.region.give(window.offset, window.size);
            report_vacated(&mut window, out);
        }
    }

    /// If something waits for a barrier and no request is under way that will
    /// bring it, sends one.
    fn need_barrier(&mut self, out: &mut Changes<'_>) {
        if self.broken {
            return;
        }
        let Some(newest) = self.index.newest_awaiting() else {
            return;
        };
        let under_way = self
            .outstanding
            .last_key_value()
            .is_some_and(|(last, _)| *last > newest);
        if !under_way {
            self.ask(None, VmmRequest::Barrier, out);
        }
    }

    /// What the VMM may have, each as often.
    #[cfg(test)]
    pub(super) fn reached(&self) -> impl Iterator<Item = BackingId> {
        let shown = self.table.values().filter(|window| window.shows_backing());
        let kept = self.kept.values().map(|kept| kept.backing);
        shown.map(|window| window.key.backing).chain(kept)
    }

    /// What must hold at all times; names what does not.
    #[cfg(test)]
    #[allow(
        clippy::arithmetic_side_effects,
        reason = "a test that overflows fails"
    )]
    pub(super) fn check(&self, mappings: &Gauge) -> Result<(), String> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut held = 0;
        for (id, window) in &self.table {
            if window.state == State::Queued {
                if !self.queue.contains(id) {
                    return Err(format!("{id:?} is queued but not in the queue"));
                }
                continue;
            }
            held += window.cost();
            if window.offset + window.size > self.shm_size - GUARD {
                return Err(format!("{id:?} leaves the region"));
            }
            for (start, len) in &ranges {
                if window.offset < start + len && *start < window.offset + window.size {
                    return Err(format!("{id:?} overlaps another window"));
                }
            }
            ranges.push((window.offset, window.size));
            if matches!(window.state, State::Idle(_)) && window.users != 0 {
                return Err(format!("{id:?} is idle with {} users", window.users));
            }
            if matches!(window.state, State::ZeroPages | State::Empty) && window.users == 0 {
                return Err(format!("{id:?} is kept for nobody"));
            }
        }
        if self.index != Index::of_table(&self.table) {
            return Err("the index is not the table's".into());
        }
        if held != mappings.used() || !mappings.is_kept() {
            return Err(format!("{held} mappings held, {} counted", mappings.used()));
        }
        let taken: u64 = ranges.iter().map(|(_, len)| len).sum();
        if taken + self.region.total() != self.shm_size - GUARD {
            return Err("space was lost".into());
        }
        let queued = |window: &&Window| window.state == State::Queued;
        if self.queue.len() != self.table.values().filter(queued).count() {
            return Err("the queue holds what is not queued".into());
        }
        if self.region.ranges() > self.table.len() + 1 {
            return Err("free ranges are not merged".into());
        }
        for (key, id) in &self.current {
            match self.table.get(id) {
                Some(window) if window.key == *key && !window.revoked => {}
                _ => return Err(format!("{key:?} leads to a window that is gone")),
            }
        }
        Ok(())
    }
}
