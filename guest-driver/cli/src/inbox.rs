// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The frames that wait to be looked at. Every announced frame has to be handed
//! back, or the camera runs out of buffers: none may be lost here.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use bufshare::{BufferId, Image};

use crate::frame::Frame;

/// A frame that waits.
pub(crate) struct Waiting {
    pub(crate) id: BufferId,
    pub(crate) frame: Frame,
    pub(crate) image: Option<Image>,
    /// When its event came.
    pub(crate) since: Instant,
    /// "event" or "list".
    pub(crate) woken_by: &'static str,
}

/// What was announced, and how far we are.
#[derive(Default)]
pub(crate) struct Inbox {
    /// Newest metadata seen, by buffer.
    seen: HashMap<BufferId, u64>,
    /// By run and number. The other machine may run several cameras for us, or run one anew;
    /// numbers of different runs do not compare.
    waiting: BTreeMap<(u64, u64), Waiting>,
    /// The run that a buffer belongs to, and the highest number looked at of each such run.
    runs: HashMap<BufferId, u64>,
    newest: HashMap<u64, u64>,
    missed: u64,
}

impl Inbox {
    /// Whether metadata number `seq` of a buffer has not been read yet.
    pub(crate) fn is_news(&self, id: BufferId, seq: u64) -> bool {
        self.seen.get(&id).is_none_or(|seen| *seen < seq)
    }

    /// Metadata number `seq` was read. Answers whether it was not known; then call
    /// [`put`](Self::put) if it is a frame's.
    pub(crate) fn read(&mut self, id: BufferId, seq: u64) -> bool {
        self.seen.insert(id, seq) != Some(seq)
    }

    /// A frame to be looked at.
    pub(crate) fn put(&mut self, waiting: Waiting) {
        self.runs.insert(waiting.id, waiting.frame.run);
        self.forget_runs();
        // Another frame in the same buffer takes the place of what was there.
        self.waiting.retain(|_, other| other.id != waiting.id);
        let key = (waiting.frame.run, waiting.frame.number);
        self.waiting.insert(key, waiting);
    }

    /// The frame to look at next: each run's are in order, and of the runs none waits for
    /// ever.
    pub(crate) fn take(&mut self) -> Option<Waiting> {
        let mut firsts: Vec<(Instant, (u64, u64))> = Vec::new();
        for (key, waiting) in &self.waiting {
            if firsts.last().is_none_or(|(_, last)| last.0 != key.0) {
                firsts.push((waiting.since, *key));
            }
        }
        let (_, key) = firsts.into_iter().min()?;
        self.waiting.remove(&key)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a frame is older than one that was looked at.
    pub(crate) fn is_late(&self, frame: &Frame) -> bool {
        frame.number < self.newest_of(frame.run)
    }

    fn newest_of(&self, run: u64) -> u64 {
        self.newest.get(&run).copied().unwrap_or(0)
    }

    /// A frame was looked at.
    pub(crate) fn done(&mut self, frame: &Frame) {
        if self.is_late(frame) {
            self.missed = self.missed.saturating_sub(1);
            return;
        }
        let newest = self.newest_of(frame.run);
        if newest > 0 {
            let between = frame.number.saturating_sub(newest).saturating_sub(1);
            self.missed = self.missed.saturating_add(between);
        }
        self.newest.insert(frame.run, frame.number);
    }

    /// Numbers between those looked at that were not.
    pub(crate) fn missed(&self) -> u64 {
        self.missed
    }

    /// Whether a frame was announced of a buffer and not looked at yet.
    pub(crate) fn holds(&self, id: BufferId) -> bool {
        self.waiting.values().any(|waiting| waiting.id == id)
    }

    /// Whether a buffer exists, as far as is known.
    pub(crate) fn knows(&self, id: BufferId) -> bool {
        self.seen.contains_key(&id)
    }

    /// A buffer does not exist any more.
    pub(crate) fn forget(&mut self, id: BufferId) {
        self.seen.remove(&id);
        self.runs.remove(&id);
        self.waiting.retain(|_, waiting| waiting.id != id);
        self.forget_runs();
    }

    /// Only as many runs are known as there are buffers: another machine makes their numbers.
    fn forget_runs(&mut self) {
        let runs = &self.runs;
        self.newest
            .retain(|run, _| runs.values().any(|known| known == run));
    }

    /// The buffers known.
    pub(crate) fn buffers(&self) -> impl Iterator<Item = BufferId> {
        self.seen.keys().copied()
    }

    /// What is known, to see whether it changes.
    pub(crate) fn state(&self) -> HashMap<BufferId, u64> {
        self.seen.clone()
    }

    /// Numbers higher than a run has buffers: some came back to it.
    pub(crate) fn had_viewer(&self) -> bool {
        self.waiting.keys().any(|(run, number)| {
            let buffers = self.runs.values().filter(|known| *known == run).count();
            *number > buffers as u64
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(buffer: u8, run: u64, number: u64) -> Waiting {
        Waiting {
            id: BufferId([buffer; 16]),
            frame: Frame {
                run,
                number,
                sequence: 0,
                last: false,
                hash: None,
                bytes: 0,
                parts: Vec::new(),
                reply: None,
            },
            image: None,
            since: Instant::now(),
            woken_by: "event",
        }
    }

    fn numbers(inbox: &mut Inbox) -> Vec<u64> {
        std::iter::from_fn(|| {
            let frame = inbox.take()?.frame;
            inbox.done(&frame);
            Some(frame.number)
        })
        .collect()
    }

    #[test]
    fn frames_come_out_in_order() {
        let mut inbox = Inbox::default();
        for (buffer, number) in [(1, 3), (2, 1), (3, 2)] {
            inbox.put(waiting(buffer, 1, number));
        }
        assert_eq!(numbers(&mut inbox), [1, 2, 3]);
        assert_eq!(inbox.missed(), 0);
    }

    #[test]
    fn a_late_frame_is_not_lost() {
        let mut inbox = Inbox::default();
        inbox.put(waiting(1, 1, 1));
        inbox.put(waiting(2, 1, 3));
        assert_eq!(numbers(&mut inbox), [1, 3]);
        assert_eq!(inbox.missed(), 1);
        inbox.put(waiting(3, 1, 2));
        assert!(inbox.is_late(&waiting(3, 1, 2).frame));
        assert_eq!(numbers(&mut inbox), [2]);
        assert_eq!(inbox.missed(), 0);
    }

    #[test]
    fn a_buffer_holds_one_frame() {
        let mut inbox = Inbox::default();
        inbox.put(waiting(1, 1, 1));
        inbox.put(waiting(1, 1, 5));
        assert_eq!(numbers(&mut inbox), [5]);
    }

    #[test]
    fn a_buffer_holds_a_frame_until_it_is_taken_or_the_buffer_is_gone() {
        let mut inbox = Inbox::default();
        let id = BufferId([1; 16]);
        for _ in 0..2 {
            assert!(!inbox.holds(id) && !inbox.knows(id));
            inbox.read(id, 1);
            inbox.put(waiting(1, 1, 1));
            assert!(inbox.holds(id) && inbox.knows(id));
            inbox.take();
            assert!(!inbox.holds(id) && inbox.knows(id));
            inbox.put(waiting(1, 1, 2));
            inbox.forget(id);
        }
    }

    #[test]
    fn numbers_of_different_runs_do_not_compare() {
        let mut inbox = Inbox::default();
        inbox.put(waiting(1, 1, 90));
        assert_eq!(numbers(&mut inbox), [90]);
        inbox.put(waiting(1, 1, 91));
        inbox.put(waiting(2, 2, 1));
        assert!(!inbox.is_late(&waiting(2, 2, 1).frame));
        assert_eq!(numbers(&mut inbox), [91, 1]);
        assert_eq!(inbox.missed(), 0);
    }

    #[test]
    fn two_runs_at_once_lose_no_frame_and_do_not_starve_each_other() {
        let mut inbox = Inbox::default();
        let mut seen = Vec::new();
        // Each run has a frame waiting at any time.
        for number in 1..=4 {
            for run in [1, 2] {
                let buffer = u8::try_from(run * 8 + number % 2).unwrap();
                inbox.put(waiting(buffer, run, number));
            }
            if number > 1 {
                for _ in 0..2 {
                    let frame = inbox.take().unwrap().frame;
                    inbox.done(&frame);
                    seen.push((frame.run, frame.number));
                }
            }
        }
        assert_eq!(seen, [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (2, 3)]);
        assert_eq!(inbox.missed(), 0);
        assert_eq!(numbers(&mut inbox), [4, 4]);
    }

    #[test]
    fn runs_without_buffers_are_forgotten() {
        let mut inbox = Inbox::default();
        for run in 1..100 {
            inbox.put(waiting(1, run, 5));
            assert_eq!(numbers(&mut inbox), [5]);
        }
        assert_eq!(inbox.newest.len(), 1);
        inbox.forget(BufferId([1; 16]));
        assert!(inbox.newest.is_empty());
    }

    #[test]
    fn metadata_is_read_once() {
        let mut inbox = Inbox::default();
        let id = BufferId([1; 16]);
        assert!(inbox.is_news(id, 1));
        assert!(inbox.read(id, 1));
        assert!(!inbox.is_news(id, 1));
        assert!(!inbox.read(id, 1));
        assert!(inbox.is_news(id, 2));
        inbox.forget(id);
        assert!(inbox.is_news(id, 1));
    }

    #[test]
    fn an_earlier_viewer_leaves_high_numbers() {
        let mut inbox = Inbox::default();
        for buffer in 1..=4 {
            inbox.read(BufferId([buffer; 16]), 1);
            inbox.put(waiting(buffer, 1, u64::from(buffer)));
        }
        assert!(!inbox.had_viewer());
        inbox.put(waiting(1, 1, 5));
        assert!(inbox.had_viewer());
    }
}
