// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A limit for log lines.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use log::Level;

use crate::locks::lock;

/// Lines per period that one guest may cause in the log.
const LINES: u32 = 10;

/// Period of [`LINES`].
const PERIOD: Duration = Duration::from_secs(10);

/// Keeps one guest from filling the host's disk with log lines.
#[derive(Debug)]
pub(crate) struct Limiter(Mutex<Spent>);

#[derive(Debug)]
struct Spent {
    since: Instant,
    lines: u32,
    dropped: u64,
}

impl Default for Limiter {
    fn default() -> Self {
        Self(Mutex::new(Spent {
            since: Instant::now(),
            lines: 0,
            dropped: 0,
        }))
    }
}

impl Limiter {
    /// Whether a line may be written now; if so, how many were not since the
    /// last one.
    fn pass(&self, now: Instant) -> Option<u64> {
        let mut spent = lock(&self.0);
        if now.saturating_duration_since(spent.since) >= PERIOD {
            spent.since = now;
            spent.lines = 0;
        }
        if spent.lines >= LINES {
            spent.dropped = spent.dropped.saturating_add(1);
            return None;
        }
        spent.lines = spent.lines.saturating_add(1);
        Some(std::mem::take(&mut spent.dropped))
    }

    /// Warns about something that the guest of `peer` did.
    pub(crate) fn warn(&self, peer: &str, what: fmt::Arguments<'_>) {
        self.log(Level::Warn, peer, what);
    }

    /// Says something that the guest of `peer` can repeat.
    pub(crate) fn log(&self, level: Level, peer: &str, what: fmt::Arguments<'_>) {
        if !log::log_enabled!(level) {
            return;
        }
        match self.pass(Instant::now()) {
            None => {}
            Some(0) => log::log!(level, "{peer}: {what}"),
            Some(dropped) => {
                log::log!(level, "{peer}: {what} ({dropped} lines left out before)");
            }
        }
    }
}

/// The limiters of one peer, whatever session it has: a VMM can begin one after the other.
/// What one part says does not keep another from saying something.
#[derive(Debug, Default)]
pub(crate) struct Limiters {
    /// Of front ends that come and go.
    pub(crate) connections: Limiter,
    /// Of what they hand in.
    pub(crate) admission: Limiter,
    /// Of drivers and their requests.
    pub(crate) session: Limiter,
    /// Of mapping requests.
    pub(crate) shmem: Limiter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limiter_beyond_its_lines_drops_and_reports_later() {
        let limiter = Limiter::default();
        let start = Instant::now();

        let passed = (0..25).filter(|_| limiter.pass(start).is_some()).count();

        assert_eq!(passed, 10);
        assert_eq!(limiter.pass(start + PERIOD), Some(15));
    }
}
