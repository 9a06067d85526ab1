// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether somebody views a stream, which no event says

use std::time::{Duration, Instant};

/// One that joins imports the buffers one by one. When it has imported none for so long, it has all
/// that it can: the library tries what was refused about once a second.
const SETTLED: Duration = Duration::from_secs(2);

/// What is known of those who view. Frames that are handed over before they have imported what they
/// can are lost to them.
#[derive(Default)]
pub(crate) struct Audience {
    is_there: bool,
    /// How many buffers are attached, and since when.
    attached: Option<(usize, Instant)>,
}

/// What the host says of a stream.
#[derive(Clone, Copy)]
pub(crate) struct Attached {
    /// VMs that have joined it.
    pub(crate) consumers: u32,
    /// Buffers of it that some VM has imported.
    pub(crate) buffers: usize,
    /// All that it has.
    pub(crate) of: usize,
}

impl Audience {
    /// Somebody views, as far as is known.
    pub(crate) fn is_there(&self) -> bool {
        self.is_there
    }

    /// Somebody left, or may have.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// The same by what the host says now.
    pub(crate) fn look(&mut self, said: Attached, now: Instant) -> bool {
        if said.consumers == 0 || said.buffers == 0 {
            self.forget();
            return false;
        }
        let since = match self.attached {
            Some((buffers, since)) if buffers == said.buffers => since,
            _ => now,
        };
        self.attached = Some((said.buffers, since));
        let settled = now.saturating_duration_since(since) >= SETTLED;
        self.is_there = settled || said.buffers >= said.of;
        self.is_there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(consumers: u32, buffers: usize) -> Attached {
        Attached {
            consumers,
            buffers,
            of: 4,
        }
    }

    #[test]
    fn one_that_has_all_buffers_views_at_once() {
        let (mut audience, now) = (Audience::default(), Instant::now());
        assert!(!audience.look(said(0, 0), now));
        assert!(!audience.look(said(1, 0), now));
        assert!(!audience.look(said(1, 3), now));
        assert!(audience.look(said(1, 4), now));
        assert!(audience.is_there());
        audience.forget();
        assert!(!audience.is_there());
    }

    #[test]
    fn one_that_can_import_some_buffers_views_when_it_imports_no_more() {
        let (mut audience, start) = (Audience::default(), Instant::now());
        let most = SETTLED - Duration::from_millis(1);
        assert!(!audience.look(said(1, 1), start));
        // It is slow, and misses nothing for that.
        assert!(!audience.look(said(1, 2), start + most));
        assert!(!audience.look(said(1, 2), start + most + most));
        assert!(audience.look(said(1, 2), start + most + SETTLED));
        assert!(audience.is_there());
    }

    #[test]
    fn one_that_can_import_no_buffer_does_not_view() {
        let (mut audience, start) = (Audience::default(), Instant::now());
        for seconds in 0..10 {
            let now = start + Duration::from_secs(seconds);
            assert!(!audience.look(said(1, 0), now));
        }
        // Nor do attachments of one that has not joined.
        assert!(!audience.look(said(0, 4), start));
    }
}
