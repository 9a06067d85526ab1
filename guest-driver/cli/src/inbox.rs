// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The frames that wait to be looked at. Every announced frame has to be handed
//! back, or the camera runs out of buffers: none may be lost here.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use bufshare_protocol::types::{BufferId, Image};

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
    /// By frame number.
    waiting: BTreeMap<u64, Waiting>,
    /// Of the camera's program; numbers of different ones do not compare.
    run: u64,
    newest: u64,
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
        if waiting.frame.run != self.run {
            // The camera's program was started anew.
            self.run = waiting.frame.run;
            self.newest = 0;
            self.waiting.clear();
        }
        // Another frame in the same buffer takes the place of what was there.
        self.waiting.retain(|_, other| other.id != waiting.id);
        self.waiting.insert(waiting.frame.number, waiting);
    }

    /// The oldest frame.
    pub(crate) fn take(&mut self) -> Option<Waiting> {
        self.waiting.pop_first().map(|(_, waiting)| waiting)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a frame is older than one that was looked at.
    pub(crate) fn is_late(&self, frame: &Frame) -> bool {
        frame.number < self.newest
    }

    /// A frame was looked at.
    pub(crate) fn done(&mut self, frame: &Frame) {
        if self.is_late(frame) {
            self.missed = self.missed.saturating_sub(1);
        } else if self.newest > 0 {
            let between = frame.number.saturating_sub(self.newest).saturating_sub(1);
            self.missed = self.missed.saturating_add(between);
        }
        self.newest = self.newest.max(frame.number);
    }

    /// Numbers between those looked at that were not.
    pub(crate) fn missed(&self) -> u64 {
        self.missed
    }

    /// A buffer does not exist any more.
    pub(crate) fn forget(&mut self, id: BufferId) {
        self.seen.remove(&id);
        self.waiting.retain(|_, waiting| waiting.id != id);
    }

    /// The buffers known.
    pub(crate) fn buffers(&self) -> impl Iterator<Item = BufferId> {
        self.seen.keys().copied()
    }

    /// What is known, to see whether it changes.
    pub(crate) fn state(&self) -> HashMap<BufferId, u64> {
        self.seen.clone()
    }

    /// Numbers higher than the camera has buffers: some came back to it.
    pub(crate) fn had_viewer(&self) -> bool {
        let buffers = self.seen.len() as u64;
        self.waiting.keys().any(|number| *number > buffers)
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
                hash: 0,
                bytes: 0,
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
    fn another_run_starts_anew() {
        let mut inbox = Inbox::default();
        inbox.put(waiting(1, 1, 90));
        assert_eq!(numbers(&mut inbox), [90]);
        inbox.put(waiting(1, 1, 91));
        inbox.put(waiting(2, 2, 1));
        assert_eq!(numbers(&mut inbox), [1]);
        assert_eq!(inbox.missed(), 0);
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
