// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Durations of a run that may go on for months.

use std::collections::VecDeque;

use crate::output::Spread;

/// The latest durations that are kept for the percentiles: half an hour at 30 a second, in
/// 512 KiB.
const KEPT: usize = 1 << 16;

/// Durations in microseconds: how many, the extremes, and the latest.
#[derive(Debug, Default)]
pub(crate) struct Durations {
    count: u64,
    min: f64,
    max: f64,
    latest: VecDeque<f64>,
}

impl Durations {
    /// Adds one.
    pub(crate) fn push(&mut self, micros: f64) {
        if self.count == 0 {
            (self.min, self.max) = (micros, micros);
        }
        self.count = self.count.saturating_add(1);
        self.min = self.min.min(micros);
        self.max = self.max.max(micros);
        if self.latest.len() == KEPT {
            self.latest.pop_front();
        }
        self.latest.push_back(micros);
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Nearest-rank percentiles of the latest, the rest of all; None of nothing.
    pub(crate) fn spread(&self) -> Option<Spread> {
        let mut sorted: Vec<f64> = self.latest.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let rank = |percent: usize| {
            let rank = sorted.len().saturating_mul(percent).div_ceil(100);
            sorted.get(rank.saturating_sub(1)).copied()
        };
        Some(Spread {
            count: self.count,
            min: self.min,
            p50: rank(50)?,
            p99: rank(99)?,
            max: self.max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(durations: impl IntoIterator<Item = u32>) -> Durations {
        let mut all = Durations::default();
        for duration in durations {
            all.push(duration.into());
        }
        all
    }

    #[test]
    fn percentiles_are_members() {
        let spread = of((1..=200).rev()).spread().unwrap();
        assert_eq!(
            (spread.min, spread.p50, spread.p99, spread.max),
            (1.0, 100.0, 198.0, 200.0)
        );
        assert_eq!(of([7]).spread().unwrap().p99, 7.0);
        assert_eq!(Durations::default().spread(), None);
    }

    #[test]
    fn of_many_the_latest_are_kept() {
        let many = u32::try_from(KEPT).unwrap();
        // First the least and the most of all, then as many others as are kept.
        let all = of([1, 1_000_000].into_iter().chain((0..many).map(|_| 50)));
        assert_eq!(all.latest.len(), KEPT);
        let spread = all.spread().unwrap();
        assert_eq!(spread.count, u64::from(many) + 2);
        assert_eq!((spread.min, spread.max), (1.0, 1_000_000.0));
        assert_eq!((spread.p50, spread.p99), (50.0, 50.0));
    }
}
