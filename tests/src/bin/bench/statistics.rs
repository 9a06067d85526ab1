// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The middle of many figures, and how far they lie from it

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The quartiles of some figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Quartiles {
    /// A quarter of them is below.
    pub(crate) low: f64,
    /// Half of them is.
    pub(crate) median: f64,
    /// A quarter of them is above.
    pub(crate) high: f64,
}

impl Quartiles {
    /// Of these figures, between neighbours where no figure is at the place.
    ///
    /// # Errors
    /// When there are none.
    pub(crate) fn of(figures: &[f64]) -> Result<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1);
        let last = last.context("nothing was measured")?;
        let at = |quarter: usize| {
            let place = last * quarter;
            let (index, rest) = (place / 4, place % 4);
            let lower = sorted.get(index)?;
            let upper = sorted.get(index + usize::from(rest != 0))?;
            let part = f64::from(u32::try_from(rest).ok()?) / 4.0;
            Some(lower + (upper - lower) * part)
        };
        let quartiles = at(1).zip(at(2)).zip(at(3));
        let ((low, median), high) = quartiles.context("nothing was measured")?;
        Ok(Self { low, median, high })
    }

    /// Half of what lies between the outer two, as a part of the median, in percent.
    pub(crate) fn noise(&self) -> f64 {
        (self.high - self.low) / 2.0 / self.median * 100.0
    }
}

/// Half of the figures are below it.
///
/// # Errors
/// When there are none.
pub(crate) fn median(figures: &[f64]) -> Result<f64> {
    Ok(Quartiles::of(figures)?.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_neighbours() {
        let of = |figures: &[f64]| Quartiles::of(figures).unwrap();
        let four = of(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((four.low, four.median, four.high), (1.75, 2.5, 3.25));
        let five = of(&[5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!((five.low, five.median, five.high), (2.0, 3.0, 4.0));
        let one = of(&[7.0]);
        assert_eq!((one.low, one.median, one.high), (7.0, 7.0, 7.0));
        assert!(Quartiles::of(&[]).is_err());
    }

    #[test]
    fn noise_is_a_part_of_the_median() {
        let quartiles = Quartiles {
            low: 9.0,
            median: 10.0,
            high: 12.0,
        };
        assert_eq!(quartiles.noise(), 15.0);
    }
}
