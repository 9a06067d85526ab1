// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long a shared-memory thread has the host's kernel look through the locks on files
//! of one owner.
//!
//! Whoever has a RAM file, its owner's VMM above all, can make locks on it without number.
//! Each question about the file, each new mark on it and each end of a descriptor of it
//! then goes through all of them. The same thread unmaps what other owners wait for. So
//! each owner has a budget of its own: its files are asked about, and marked, for a part of
//! the time only, and no other owner's files wait for that.

use std::time::{Duration, Instant};

use super::LOOK;
use super::sent_files::KEPT_SAY;
use crate::broker::PeerId;
use crate::vhost::limits::{LOCK_SHARE, MARK_TIME};

/// How soon the kernel is asked about a file that is kept; then ever more seldom.
const KEPT_LOOK: Duration = Duration::from_millis(1);

/// Files of one owner: pieces of its RAM, or dma-bufs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lot {
    /// Whose memory it is.
    pub(super) owner: PeerId,
    /// Whether they are dma-bufs, and not parts of that VM's RAM.
    pub(super) udmabuf: bool,
}

/// What is spent on one lot.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// When the kernel is to be asked about what is kept, and how long to wait then; none
    /// if nothing is.
    look: Option<(Instant, Duration)>,
    /// When the part of the time that was spent is made up for.
    rested: Option<Instant>,
}

impl Budget {
    /// The kernel took this long.
    pub(super) fn spend(&mut self, now: Instant, took: Duration) {
        let rest = self.rest(now);
        let rest = rest.saturating_add(took.saturating_mul(LOCK_SHARE));
        self.rested = Some(after(now, rest.min(KEPT_SAY)));
    }

    /// How long nothing is to be asked.
    pub(super) fn rest(&self, now: Instant) -> Duration {
        let rested = self.rested.unwrap_or(now);
        rested.saturating_duration_since(now)
    }

    /// Whether another file may be marked.
    pub(super) fn may_mark(&self, now: Instant) -> bool {
        self.rest(now) <= MARK_TIME.saturating_mul(LOCK_SHARE)
    }

    /// Something more is kept. That puts off no look that is due sooner.
    pub(super) fn keep(&mut self, now: Instant) {
        let soon = after(now, KEPT_LOOK);
        let at = self.look.map_or(soon, |(at, _)| at.min(soon));
        self.look = Some((at, KEPT_LOOK));
    }

    /// The kernel was asked about what is kept. Whether something is left.
    pub(super) fn looked(&mut self, now: Instant, left: bool) {
        self.look = self.look.filter(|_| left).map(|(_, pause)| {
            let pause = pause.saturating_mul(2).min(LOOK);
            (after(now, pause), pause)
        });
    }

    /// When it is to be asked next; none if nothing is kept.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let (at, _) = self.look?;
        Some(self.rested.map_or(at, |rested| rested.max(at)))
    }
}

/// The time after a `pause`.
fn after(now: Instant, pause: Duration) -> Instant {
    now.checked_add(pause).unwrap_or(now)
}

/// How long this thread has run, in the kernel too: others that run meanwhile are nobody's
/// fault.
pub(super) fn thread_time() -> Duration {
    // SAFETY: all zeroes is a valid timespec; it is plain data.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: `time` is writable. It stays zero if there is no such clock.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn nine_tenths_of_the_time_at_least_nothing_is_asked() {
        let now = Instant::now();
        let mut budget = Budget::default();
        budget.keep(now);
        assert_eq!(budget.next_look(), Some(now + KEPT_LOOK));

        budget.spend(now, 100 * MS);
        budget.looked(now, true);
        assert_eq!(budget.next_look(), Some(now + 1000 * MS));
        assert_eq!(budget.rest(now + 400 * MS), 600 * MS);

        // Also if more is kept meanwhile, and what is spent adds up.
        budget.keep(now + 400 * MS);
        assert_eq!(budget.next_look(), Some(now + 1000 * MS));
        budget.spend(now + 400 * MS, 10 * MS);
        assert_eq!(budget.next_look(), Some(now + 1100 * MS));

        // Nothing is left, and the rest is not forgotten.
        budget.looked(now + 400 * MS, false);
        assert_eq!(budget.next_look(), None);
        budget.keep(now + 500 * MS);
        assert_eq!(budget.next_look(), Some(now + 1100 * MS));

        // But no answer has the others of the lot wait for ever.
        budget.spend(now, 1_000_000 * MS);
        assert_eq!(budget.next_look(), Some(now + KEPT_SAY));
    }

    #[test]
    fn kernel_that_answers_at_once_is_asked_ever_more_seldom() {
        let now = Instant::now();
        let mut budget = Budget::default();
        budget.keep(now);

        for pause in [2, 4, 8, 16, 32, 64, 100, 100] {
            budget.looked(now, true);
            assert_eq!(budget.next_look(), Some(now + pause * MS));
        }

        budget.keep(now);
        assert_eq!(budget.next_look(), Some(now + KEPT_LOOK));
        // However soon the next ones follow.
        budget.keep(now + KEPT_LOOK / 2);
        assert_eq!(budget.next_look(), Some(now + KEPT_LOOK));
    }

    #[test]
    fn files_are_marked_until_that_took_too_long() {
        let now = Instant::now();
        let mut budget = Budget::default();
        // A big buffer, each piece of which takes its time.
        for _ in 0..256 {
            assert!(budget.may_mark(now));
            budget.spend(now, MS);
        }
        assert!(budget.may_mark(now));

        budget.spend(now, MARK_TIME);

        assert!(!budget.may_mark(now));
        assert!(!budget.may_mark(now + MS));
        assert!(budget.may_mark(now + 256 * 10 * MS));
    }

    #[test]
    fn time_of_a_thread_goes_by_while_it_runs() {
        let before = thread_time();
        let end = Instant::now() + Duration::from_secs(60);
        while thread_time() <= before {
            assert!(Instant::now() < end, "it does not");
        }
    }
}
