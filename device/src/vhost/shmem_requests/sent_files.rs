// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The files by which a front end maps memory of other VMs: which it was sent, which it
//! still holds, and what it keeps although it said that it has unmapped it.
//!
//! The host's kernel is asked about them, also when a front end says that it has unmapped
//! something, or not mapped it. What the guest sees is as the VMM says, as far as anybody
//! can know; but the owner gets its memory back only when nobody holds the file any more.
//! QEMU closes it up to 0.1 s later (its RCU thread does), so nothing else waits for that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::budget::{Budget, Lot};
use super::{LOOK, ShmemRequests, ShmemThread, State};
use crate::backing::file_hold::FileHold;
use crate::backing::{FdPiece, FileId};
use crate::broker::{EffectId, PeerId};
use crate::locks::lock;
use crate::vhost::limits::{
    LOOK_TIME, MARK_FREE, MAX_KEPT_DMABUFS, MAX_KEPT_MARKS, MAX_OWNER_FILES,
};

/// How long a VMM that says it has not mapped something may take to release it.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);

/// How long files may be held after the VMM said that it does not have them, before the
/// operator is notified; and how soon he is notified of others.
pub(super) const KEPT_SAY: Duration = Duration::from_secs(10);

/// A file that shows another VM's memory.
#[derive(Clone)]
pub(super) struct WindowFile {
    pub(super) hold: Arc<FileHold>,
    /// Of which files it is one.
    pub(super) lot: Lot,
}

/// A file that nobody has seen released yet since the VMM said that it has unmapped it, or
/// not mapped it.
pub(super) struct Kept {
    /// The effect that ended so.
    pub(super) effect: EffectId,
    pub(super) file: WindowFile,
    pub(super) len: u64,
    pub(super) since: Instant,
    /// When the kernel was last asked since then; it was held.
    pub(super) seen: Option<Instant>,
    /// The operator was notified.
    pub(super) said: bool,
}

/// What was given at one time. The kernel is asked about it while nothing is locked:
/// whoever has one of the files can make its answers slow, by locks of its own, and
/// the broker's lock is held while jobs are queued here.
pub(super) struct WindowFiles {
    /// Windows that the VMM did not say it has unmapped.
    pub(super) windows: Vec<Arc<FileHold>>,
    /// What it said it has not, and may be held.
    pub(super) kept: Vec<Arc<FileHold>>,
    pub(super) changes: u64,
}

impl WindowFiles {
    /// Whether the VMM had windows and is known to have none of them any more, whatever
    /// else it holds.
    pub(super) fn dropped(&self) -> bool {
        let dropped = |hold: &Arc<FileHold>| hold.held() == Some(false);
        !self.windows.is_empty() && self.windows.iter().all(dropped)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<FileHold>> {
        self.windows.iter().chain(&self.kept)
    }
}

/// Whose descriptors it counts with, and how many are reserved for those.
fn reserve_of(lot: Lot) -> (Option<PeerId>, usize) {
    if lot.udmabuf {
        (None, MAX_KEPT_DMABUFS)
    } else {
        (Some(lot.owner), MAX_OWNER_FILES)
    }
}

impl State {
    /// What is given out now.
    pub(super) fn window_files(&self) -> WindowFiles {
        let hold = |file: &WindowFile| file.hold.clone();
        WindowFiles {
            windows: self.files.values().map(hold).collect(),
            kept: self.kept.iter().map(|kept| hold(&kept.file)).collect(),
            changes: self.file_changes,
        }
    }

    /// Whether the dispatcher is yet to hear that what the job in hand has unmapped is kept.
    pub(super) fn is_keeping(&self) -> bool {
        let in_hand = |kept: &Kept| Some(kept.effect) == self.in_hand;
        self.kept.iter().any(in_hand)
    }

    /// Whether that is still all.
    pub(super) fn has_only(&self, files: &WindowFiles) -> bool {
        self.file_changes == files.changes
    }

    pub(super) fn files_mut(&mut self) -> &mut BTreeMap<u64, WindowFile> {
        self.file_changes = self.file_changes.wrapping_add(1);
        &mut self.files
    }

    /// Whether another file may be given, to a VMM with so many `windows`.
    pub(super) fn has_room(&self, lot: Lot, file: &File, windows: usize) -> bool {
        let of_kind = |file: &&WindowFile| reserve_of(file.lot) == reserve_of(lot);
        let kept = self.kept.iter().map(|kept| &kept.file).filter(of_kind);
        let kept_limit = if lot.udmabuf {
            MAX_KEPT_DMABUFS
        } else {
            MAX_KEPT_MARKS
        };
        if kept.clone().count() >= kept_limit {
            return false;
        }
        let descriptors = |files: &mut dyn Iterator<Item = &WindowFile>| -> BTreeSet<_> {
            files.map(|file| file.hold.descriptor()).collect()
        };
        let hold = descriptors(&mut self.files.values().filter(of_kind));
        let kept = descriptors(&mut kept.clone());
        let (_, reserved) = reserve_of(lot);
        if hold.contains(&file.as_raw_fd()) || kept.contains(&file.as_raw_fd()) {
            return true;
        }
        // Those of windows do not count.
        if kept.difference(&hold).count() >= reserved {
            return false;
        }
        kept.union(&hold).count() < reserved || self.beyond_reserves() < windows
    }

    /// Descriptors beyond those that are reserved for files of each owner. There is one for
    /// each window.
    fn beyond_reserves(&self) -> usize {
        let mut all: BTreeMap<_, BTreeSet<RawFd>> = BTreeMap::new();
        let kept = self.kept.iter().map(|kept| &kept.file);
        for file in self.files.values().chain(kept) {
            let files = all.entry(reserve_of(file.lot)).or_default();
            files.insert(file.hold.descriptor());
        }
        let beyond = all
            .iter()
            .map(|((_, reserved), files)| files.len().saturating_sub(*reserved));
        beyond.sum()
    }

    /// The kept files that are to be looked at next, and how long until then; none if
    /// there are none.
    pub(super) fn next_look(&self, now: Instant) -> Option<(Duration, Lot)> {
        let looks = self.budgets.iter();
        let looks = looks.filter_map(|(lot, budget)| Some((budget.next_look()?, *lot)));
        let (at, lot) = looks.min()?;
        Some((at.saturating_duration_since(now), lot))
    }

    pub(super) fn budget(&mut self, lot: Lot) -> &mut Budget {
        self.budgets.entry(lot).or_default()
    }

    /// How many bytes of `kept` are held for too long, if the operator is to be notified of
    /// that: if he was not of all of them, but not again and again.
    fn say_late(&mut self, kept: &mut [Kept]) -> u64 {
        if self.kept_said.is_some_and(|at| at.elapsed() < KEPT_SAY) {
            return 0;
        }
        let is_late = |one: &Kept| {
            let held = one.seen.map(|at| at.saturating_duration_since(one.since));
            held.is_some_and(|held| held >= KEPT_SAY)
        };
        let late = || kept.iter().filter(|one| is_late(one));
        if late().all(|one| one.said) {
            return 0;
        }
        let bytes = late().fold(0_u64, |sum, one| sum.saturating_add(one.len));
        for one in kept {
            one.said |= is_late(one);
        }
        self.kept_said = Some(Instant::now());
        bytes
    }
}

impl ShmemRequests {
    /// Whether the VMM may have any window that it was asked for.
    #[must_use]
    pub fn may_show(&self) -> bool {
        let windows: Vec<WindowFile> = lock(&self.state).files.values().cloned().collect();
        let held = |window: &WindowFile| window.hold.held() != Some(false);
        windows.iter().any(held)
    }

    /// Whether the VMM, or what it has passed files on to, holds any. Where the kernel
    /// does not report that, it does until it has ended.
    pub(super) fn holds(&self) -> bool {
        let held = |hold: &Arc<FileHold>| hold.held().unwrap_or_else(|| !self.vmm.has_ended());
        self.window_files().all().any(held)
    }

    pub(super) fn window_files(&self) -> WindowFiles {
        lock(&self.state).window_files()
    }

    /// Whether the VMM had windows and has dropped them all by itself. If so,
    /// forgets them and all jobs, which are about them; the one that the thread has
    /// in hand ends before its next request. What is kept of windows before is not
    /// forgotten.
    pub fn forget_dropped(&self) -> bool {
        let files = self.window_files();
        if !files.dropped() {
            return false;
        }
        let mut state = lock(&self.state);
        // Else it may have been asked for another one meanwhile. The dispatcher does not
        // hear of what is kept by an effect that it has forgotten.
        let dropped = state.has_only(&files) && !state.is_keeping();
        if dropped {
            // The files are closed with `files`, when nothing is locked.
            state.files_mut().clear();
            state.forget_jobs();
        }
        dropped
    }

    /// Waits while the VMM holds what it was given, at most for `limit` or until
    /// `ended`. Returns whether it does not.
    pub fn wait_released(&self, limit: Duration, ended: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        let mut pause = Duration::from_millis(1);
        while self.holds() {
            if start.elapsed() >= limit || ended() {
                return false;
            }
            std::thread::sleep(pause);
            pause = pause.saturating_mul(2).min(LOOK);
        }
        true
    }

    /// Whether somebody holds files that the VMM said it has not, by this effect.
    pub(super) fn keeps(&self, effect: EffectId) -> bool {
        lock(&self.state)
            .kept
            .iter()
            .any(|kept| kept.effect == effect)
    }

    /// Does what has the kernel look through the locks on files of `lot`, on the budget of
    /// that; `free` of that time does not count.
    pub(super) fn spend<T>(&self, lot: Lot, free: Duration, what: impl FnOnce() -> T) -> T {
        let before = (self.clock)();
        let result = what();
        let took = (self.clock)().saturating_sub(before).saturating_sub(free);
        lock(&self.state).budget(lot).spend(Instant::now(), took);
        result
    }

    /// Asks the kernel who still holds the files of `lot` that the VMM said it has not: at
    /// least about one, and for about [`LOOK_TIME`]; about the next ones the next time.
    /// Returns the effects of which nothing is left, and what the operator is to be
    /// notified of now: how many bytes are held for too long.
    pub(super) fn look_at_kept(&self, lot: Lot) -> (Vec<EffectId>, u64) {
        let all: Vec<Arc<FileHold>> = {
            let state = lock(&self.state);
            let kept = state.kept.iter().map(|kept| &kept.file);
            let kept = kept.filter(|file| file.lot == lot);
            kept.map(|file| file.hold.clone()).collect()
        };
        let mut asked = BTreeSet::new();
        let mut gone = BTreeSet::new();
        let asking = self.spend(lot, Duration::ZERO, || {
            let started = (self.clock)();
            for hold in &all {
                asked.insert(Arc::as_ptr(hold));
                // What nobody can know counts as the VMM says.
                if hold.held() != Some(true) {
                    gone.insert(Arc::as_ptr(hold));
                }
                if (self.clock)().saturating_sub(started) >= LOOK_TIME {
                    break;
                }
            }
            (self.clock)().saturating_sub(started)
        });
        let mut state = lock(&self.state);
        let kept = std::mem::take(&mut state.kept);
        let is_in = |set: &BTreeSet<_>, kept: &Kept| set.contains(&Arc::as_ptr(&kept.file.hold));
        let (gone, kept): (Vec<Kept>, Vec<Kept>) =
            kept.into_iter().partition(|kept| is_in(&gone, kept));
        // Those that were asked about are the last the next time.
        let (asked, mut kept): (Vec<Kept>, Vec<Kept>) =
            kept.into_iter().partition(|kept| is_in(&asked, kept));
        let seen = Some(Instant::now());
        kept.extend(asked.into_iter().map(|one| Kept { seen, ..one }));
        let late = state.say_late(&mut kept);
        let mut done: BTreeSet<EffectId> = gone.iter().map(|gone| gone.effect).collect();
        for left in &kept {
            done.remove(&left.effect);
        }
        if !gone.is_empty() {
            state.file_changes = state.file_changes.wrapping_add(1);
        }
        let left = kept.iter().any(|kept| kept.file.lot == lot);
        state.kept = kept;
        state.budget(lot).looked(Instant::now(), left);
        drop(state);
        if let Some(longest) = gone.iter().map(|gone| gone.since.elapsed()).max() {
            log::debug!("{} files were held for up to {longest:?}", gone.len());
        }
        // The end of a descriptor takes as long as a question about its file, unless it is the
        // last of a VM's RAM: that this is freed is no fault of the VM.
        let before = (self.clock)();
        drop((gone, all));
        let took = (self.clock)().saturating_sub(before).min(asking);
        lock(&self.state).budget(lot).spend(Instant::now(), took);
        (done.into_iter().collect(), late)
    }

    /// Gives a file out for a window: what is to be sent, and kept until that is done.
    /// None if the epoch has passed.
    ///
    /// From here on the mark counts as held, so that the VMM cannot seem to have
    /// dropped a window that it is about to be asked for.
    pub(super) fn give_file(
        &self,
        piece: &FdPiece,
        lot: Lot,
        epoch: u64,
    ) -> io::Result<Option<Arc<File>>> {
        let mut state = lock(&self.state);
        if !state.has_room(lot, &piece.file, self.windows) {
            return Err(io::Error::other(
                "its VMM said that it has unmapped, or not mapped, many others, but it or another \
                 back end of its VM still holds them",
            ));
        }
        if !state.budget(lot).may_mark(Instant::now()) {
            return Err(io::Error::other(
                "the host's kernel takes too long to mark the RAM of its owner, on which somebody \
                 has many locks: the owner's VMM, or one that imports from it",
            ));
        }
        drop(state);
        let (file, hold) = self.spend(lot, MARK_FREE, || {
            Ok::<_, io::Error>(if lot.udmabuf {
                FileHold::dmabuf(&piece.file)?
            } else {
                FileHold::ram(&piece.file)
            })
        })?;
        if !hold.is_marked() && !self.vmm.is_known() {
            return Err(io::Error::other(
                "the host reports neither who has it mapped (it belongs to another user, or its \
                 VMM keeps it from being opened) nor when the importer's VMM ends (something else \
                 connected its socket)",
            ));
        }
        let mut state = lock(&self.state);
        if state.epoch != epoch {
            return Ok(None);
        }
        let given = WindowFile {
            hold: Arc::new(hold),
            lot,
        };
        let old = state.files_mut().insert(piece.shm_offset, given);
        drop(state);
        drop(old);
        Ok(Some(file))
    }

    /// Gives out a file of a page, as for a window at the start of the region.
    #[cfg(test)]
    pub(in crate::vhost) fn give_a_page(&self) -> Arc<File> {
        use crate::backing::{PAGE, tests::memfd};

        let file = memfd(PAGE, true);
        let piece = FdPiece {
            id: FileId::of(&file).unwrap(),
            file,
            fd_offset: 0,
            len: PAGE,
            shm_offset: 0,
        };
        let lot = Lot {
            owner: PeerId(2),
            udmabuf: false,
        };
        self.give_file(&piece, lot, 0).unwrap().unwrap()
    }

    /// There is no window here any more.
    pub(super) fn returned(&self, shm_offset: u64) {
        let hold = lock(&self.state).files_mut().remove(&shm_offset);
        // It may be the last of a VM's RAM, which takes its time.
        drop(hold);
    }

    /// The VMM says that it has no window of `len` bytes here any more, by `effect`. The
    /// kernel is asked about that later: what comes next may be for another owner, and the
    /// answers can be slow.
    pub(super) fn said_returned(&self, effect: EffectId, shm_offset: u64, len: u64) {
        let mut state = lock(&self.state);
        let Some(file) = state.files_mut().remove(&shm_offset) else {
            return;
        };
        if !file.hold.is_marked() {
            drop(state);
            // It may be the last of a VM's RAM, which takes its time.
            return drop(file);
        }
        let now = Instant::now();
        state.budget(file.lot).keep(now);
        state.kept.push(Kept {
            effect,
            file,
            len,
            since: now,
            seen: None,
            said: false,
        });
    }

    /// Which files the VMM has.
    pub(super) fn file_ids(&self) -> Option<BTreeSet<FileId>> {
        let files = self.window_files();
        let ids = files.all().map(|hold| hold.id().ok());
        ids.chain([Some(self.zero_pages.id())]).collect()
    }

    /// The VMM says that it has no window here: whether that is to be believed. If
    /// nobody knows, then of one whose queues run, and which so looked it up.
    pub(super) fn has_released(&self, shm_offset: u64) -> bool {
        let start = Instant::now();
        loop {
            let file = lock(&self.state).files.get(&shm_offset).cloned();
            let Some(file) = file else {
                return true;
            };
            let held = file.hold.held();
            let state = lock(&self.state);
            match held {
                Some(true) => {}
                Some(false) => return true,
                None => return state.running,
            }
            if state.closed || start.elapsed() >= REFUSAL_WAIT {
                return false;
            }
            drop(
                self.wake
                    .wait_timeout(state, LOOK)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
    }
}

impl ShmemThread<'_> {
    /// Notifies the dispatcher of what nobody holds any more, and the operator of what
    /// somebody does.
    pub(super) fn look_at_kept(&self, lot: Lot) {
        let (done, late) = self.shmem.look_at_kept(lot);
        for effect in done {
            self.dispatcher.file_released(self.sent.peer, effect);
        }
        if late > 0 {
            // Nothing else that the VMM does may have this line left out; it has a limit of
            // its own.
            log::warn!(
                "{}: its VMM said that it has unmapped, or not mapped, {late:#x} bytes of other \
                 VMs, but it or another back end of its VM still holds them: their owners do not \
                 get them back until that releases them or ends",
                self.name
            );
        }
    }
}
