// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The frames that are published and not back yet: which one may be filled again, also
//! when the events that say so were lost.

use std::time::{Duration, Instant};

use crate::frame::Frame;

/// A published frame that is not back yet.
pub(crate) struct Out {
    pub(crate) frame: Frame,
    pub(crate) since: Instant,
    /// Events were lost while it was out: its RELEASED may be one of them.
    release_lost: bool,
    /// When a RELEASED last came without the reply.
    unanswered: Option<Instant>,
}

/// At most one for each buffer of the camera.
pub(crate) struct Outstanding {
    out: Vec<Option<Out>>,
    /// Events were lost, and from then on none says alone that a frame is back.
    lost_events: bool,
    /// The highest number of a frame that is back.
    newest_back: u64,
}

impl Outstanding {
    /// For so many buffers.
    pub(crate) fn new(buffers: usize) -> Self {
        Self {
            out: (0..buffers).map(|_| None).collect(),
            lost_events: false,
            newest_back: 0,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.out.iter().flatten().count()
    }

    /// No buffer is left for the camera to fill.
    pub(crate) fn is_full(&self) -> bool {
        self.out.iter().all(Option::is_some)
    }

    /// The one that is out for the longest time.
    pub(crate) fn oldest(&self) -> Option<&Out> {
        self.out.iter().flatten().min_by_key(|out| out.since)
    }

    pub(crate) fn frame(&self, index: usize) -> Option<&Frame> {
        Some(&self.out.get(index)?.as_ref()?.frame)
    }

    /// It is published in this buffer, since then. Answers whether there is such a buffer.
    pub(crate) fn publish(&mut self, index: usize, frame: Frame, since: Instant) -> bool {
        let place = self.out.get_mut(index);
        let found = place.is_some();
        if let Some(place) = place {
            *place = Some(Out {
                frame,
                since,
                release_lost: false,
                unanswered: None,
            });
        }
        found
    }

    /// Events were lost just now.
    pub(crate) fn events_lost(&mut self) {
        self.lost_events = true;
        for out in self.out.iter_mut().flatten() {
            out.release_lost = true;
        }
    }

    /// Whether a RELEASED alone says that a frame is back.
    pub(crate) fn events_are_complete(&self) -> bool {
        !self.lost_events
    }

    /// The buffers with a frame, that of the highest number first: it says something of
    /// those below.
    pub(crate) fn newest_first(&self) -> Vec<usize> {
        let mut waiting: Vec<(u64, usize)> = self
            .out
            .iter()
            .enumerate()
            .filter_map(|(index, out)| Some((out.as_ref()?.frame.number, index)))
            .collect();
        waiting.sort_unstable_by(|one, other| other.cmp(one));
        waiting.into_iter().map(|(_, index)| index).collect()
    }

    /// Whether the frame in this buffer, which nobody has attached, is back. Its RELEASED
    /// may be lost, and one that came may be of the frame before: of a viewer that had
    /// attached the buffer since then. `replied`: the reply is in its place; `None`: the
    /// viewer writes none.
    pub(crate) fn is_back(&self, index: usize, released: bool, replied: Option<bool>) -> bool {
        self.frame(index).is_some_and(|frame| match replied {
            // The viewer writes it while it has the buffer.
            Some(replied) => replied,
            // A viewer takes frames in the order of their numbers.
            None => released || frame.number < self.newest_back,
        })
    }

    /// A RELEASED came, and the reply is not there.
    pub(crate) fn unanswered(&mut self, index: usize, at: Instant) {
        if let Some(out) = self.out.get_mut(index).and_then(Option::as_mut) {
            out.unanswered = Some(at);
        }
    }

    /// The buffers that were released without a reply so long ago, and when. Until the time
    /// is up the viewer may still look at them: the RELEASED may be of the frame before.
    pub(crate) fn wrong(&self, age: Duration) -> Vec<(usize, Instant)> {
        let all = self.out.iter().enumerate();
        all.filter_map(|(index, out)| Some((index, out.as_ref()?.unanswered?)))
            .filter(|(_, at)| at.elapsed() >= age)
            .collect()
    }

    /// Those that the viewer has passed over: it takes frames in the order of their numbers,
    /// and a later one is back. Of any other it may not have looked at it yet; or somebody
    /// else had the buffer, and no viewer is there.
    pub(crate) fn passed(&self) -> Vec<(usize, Instant)> {
        let mut all = self.wrong(Duration::ZERO);
        all.retain(|(index, _)| {
            let frame = self.frame(*index);
            frame.is_some_and(|frame| frame.number < self.newest_back)
        });
        all
    }

    /// The buffers whose frame may be back without anything that could ever say so: the
    /// viewer writes no reply, and events were lost while the frame was out.
    pub(crate) fn unconfirmed(&self) -> Vec<usize> {
        let is = |out: &Out| out.release_lost && out.frame.reply.is_none();
        let all = self.out.iter().enumerate();
        all.filter(|(_, out)| out.as_ref().is_some_and(is))
            .map(|(index, _)| index)
            .collect()
    }

    /// It is back.
    pub(crate) fn take(&mut self, index: usize) -> Option<Out> {
        let out = self.out.get_mut(index)?.take()?;
        self.newest_back = self.newest_back.max(out.frame.number);
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::ReplyByte;

    fn frame(number: u64, reply: bool) -> Frame {
        Frame {
            run: 1,
            number,
            sequence: 0,
            last: false,
            hash: None,
            bytes: 1,
            parts: Vec::new(),
            reply: reply.then_some(ReplyByte {
                offset: 0,
                value: 1,
            }),
        }
    }

    /// Frames 1, 2, ... in the buffers 0, 1, ...
    fn out(buffers: u8, reply: bool) -> Outstanding {
        let mut out = Outstanding::new(buffers.into());
        for (index, number) in (1..=buffers).enumerate() {
            assert!(!out.is_full());
            assert!(out.publish(index, frame(number.into(), reply), Instant::now()));
        }
        out
    }

    #[test]
    fn a_buffer_has_one_frame_until_that_is_back() {
        let mut out = out(2, true);
        assert_eq!((out.count(), out.is_full()), (2, true));
        assert_eq!(out.oldest().unwrap().frame.number, 1);
        assert_eq!(out.take(0).unwrap().frame.number, 1);
        assert!(out.take(0).is_none());
        assert_eq!((out.count(), out.is_full()), (1, false));
        assert!(!out.publish(2, frame(3, true), Instant::now()));
        assert!(out.take(2).is_none());
        assert!(out.events_are_complete());
    }

    #[test]
    fn a_frame_without_its_reply_is_passed_over_when_a_later_one_is_back() {
        let mut out = out(3, true);
        let now = Instant::now();
        out.unanswered(0, now);
        out.unanswered(2, now);
        assert!(out.passed().is_empty(), "somebody else may have had them");
        assert_eq!(out.wrong(Duration::ZERO).len(), 2);

        out.take(1);

        assert_eq!(out.passed(), [(0, now)]);
    }

    #[test]
    fn after_lost_events_a_reply_says_that_a_frame_is_back() {
        let mut out = out(2, true);
        out.events_lost();
        assert!(!out.events_are_complete());
        assert!(out.is_back(0, false, Some(true)));
        assert!(!out.is_back(1, true, Some(false)), "of the frame before");
        assert!(out.unconfirmed().is_empty());
    }

    #[test]
    fn after_lost_events_a_newer_frame_says_that_one_without_reply_is_back() {
        let mut out = out(3, false);
        out.events_lost();
        assert_eq!(out.newest_first(), [2, 1, 0]);
        assert!(!out.is_back(0, false, None));
        assert!(out.is_back(1, true, None));
        out.take(1);
        assert!(out.is_back(0, false, None));
        assert!(!out.is_back(2, false, None));
    }

    /// A viewer that joined may have attached the buffer before its frame was published.
    #[test]
    fn a_release_without_the_reply_says_that_a_frame_is_back_only_when_the_time_is_up() {
        let mut out = out(2, true);
        assert!(!out.is_back(0, true, Some(false)));
        assert!(out.wrong(Duration::ZERO).is_empty());
        let at = Instant::now();
        out.unanswered(0, at);
        out.unanswered(2, at);
        assert_eq!(out.wrong(Duration::ZERO), [(0, at)]);
        assert!(out.wrong(Duration::from_secs(3600)).is_empty());
        assert!(out.is_back(0, true, Some(true)), "it was looked at since");
        out.take(0);
        assert!(out.publish(0, frame(3, true), Instant::now()));
        assert!(out.wrong(Duration::ZERO).is_empty());
    }

    /// Or the camera would wait for it in vain.
    #[test]
    fn a_frame_without_reply_whose_release_was_lost_is_unconfirmed() {
        let mut out = out(2, false);
        assert!(out.unconfirmed().is_empty());
        out.take(0);
        out.events_lost();
        assert_eq!(out.unconfirmed(), [1]);
        // What is published from then on has all its events.
        assert!(out.publish(0, frame(3, false), Instant::now()));
        assert_eq!(out.unconfirmed(), [1]);
        out.take(1);
        assert!(out.unconfirmed().is_empty());
    }
}
