// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Deadlines of the broker, by time.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::Dispatcher;
use crate::broker::DeadlineId;
use crate::locks::lock;

/// Deadlines by time.
#[derive(Default)]
pub(super) struct Deadlines {
    pub(super) queue: Mutex<DeadlineQueue>,
    pub(super) wake: Condvar,
}

#[derive(Default)]
pub(super) struct DeadlineQueue {
    /// By time.
    armed: BTreeSet<(Instant, DeadlineId)>,
    times: BTreeMap<DeadlineId, Instant>,
    stopped: bool,
    /// Has a bug.
    #[cfg(test)]
    pub(super) bug: bool,
}

impl Deadlines {
    pub(super) fn arm(&self, id: DeadlineId, after: Duration) {
        let now = Instant::now();
        let at = now.checked_add(after).unwrap_or(now);
        let mut queue = lock(&self.queue);
        queue.armed.insert((at, id));
        queue.times.insert(id, at);
        drop(queue);
        self.wake.notify_one();
    }

    /// The thread may wake up for it all the same, and waits for the next one then.
    pub(super) fn disarm(&self, id: DeadlineId) {
        let mut queue = lock(&self.queue);
        if let Some(at) = queue.times.remove(&id) {
            queue.armed.remove(&(at, id));
        }
    }

    pub(super) fn stop(&self) {
        lock(&self.queue).stopped = true;
        self.wake.notify_one();
    }

    /// Waits for the next deadline; `None` at the end.
    pub(super) fn next(&self) -> Option<DeadlineId> {
        let mut queue = lock(&self.queue);
        loop {
            #[cfg(test)]
            assert!(!queue.bug, "as a bug would");
            if queue.stopped {
                return None;
            }
            let now = Instant::now();
            match queue.armed.first().copied() {
                Some((at, id)) if at <= now => {
                    queue.armed.pop_first();
                    queue.times.remove(&id);
                    return Some(id);
                }
                Some((at, _)) => {
                    let rest = at.saturating_duration_since(now);
                    queue = self
                        .wake
                        .wait_timeout(queue, rest)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
                None => {
                    queue = self
                        .wake
                        .wait(queue)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    pub(super) fn run(dispatcher: &Weak<Dispatcher>) {
        while let Some(dispatcher) = dispatcher.upgrade() {
            let next = || {
                dispatcher
                    .deadlines
                    .next()
                    .map(|id| dispatcher.deadline(id))
            };
            match catch_unwind(AssertUnwindSafe(next)) {
                Ok(Some(())) => {}
                Ok(None) => return,
                // Without deadlines nobody can be made to release anything.
                Err(_) => return dispatcher.fail(),
            }
        }
    }
}
