// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Counts of references. One that would leave its range is a bug of the broker:
//! tests fail, and the daemon says so and goes on with the nearest value.

use std::sync::atomic::{AtomicU32, Ordering};

/// Lines about that in the log. A guest may be able to repeat what leads there.
const LINES: u32 = 10;

/// What can be counted in.
pub(super) trait Counter: Copy {
    const MIN: Self;
    const MAX: Self;
    fn plus(self, n: Self) -> Option<Self>;
    fn minus(self, n: Self) -> Option<Self>;
}

macro_rules! counter {
    ($($number:ty),*) => {$(
        impl Counter for $number {
            const MIN: Self = Self::MIN;
            const MAX: Self = Self::MAX;
            fn plus(self, n: Self) -> Option<Self> {
                self.checked_add(n)
            }
            fn minus(self, n: Self) -> Option<Self> {
                self.checked_sub(n)
            }
        }
    )*};
}

counter!(u32, u64, usize);

/// Counts `n` more.
pub(super) fn more<T: Counter>(count: &mut T, n: T, what: &str) {
    *count = count.plus(n).unwrap_or_else(|| {
        wrong(what);
        T::MAX
    });
}

/// Counts `n` fewer.
pub(super) fn fewer<T: Counter>(count: &mut T, n: T, what: &str) {
    *count = count.minus(n).unwrap_or_else(|| {
        wrong(what);
        T::MIN
    });
}

/// Says that a count of `what` is wrong.
#[cold]
pub(super) fn wrong(what: &str) {
    static SAID: AtomicU32 = AtomicU32::new(0);
    if SAID.fetch_add(1, Ordering::Relaxed) < LINES {
        log::error!("a bug: the count of {what} is wrong; please report this");
    }
    debug_assert!(false, "the count of {what} is wrong");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_comes_out_again() {
        let mut count = 0_u32;
        more(&mut count, 3, "tests");
        fewer(&mut count, 2, "tests");
        assert_eq!(count, 1);
    }

    #[test]
    #[cfg_attr(
        debug_assertions,
        should_panic(expected = "the count of tests is wrong")
    )]
    fn a_count_below_its_range_is_noticed() {
        let mut count = 1_u32;
        fewer(&mut count, 2, "tests");
        assert_eq!(count, 0);
    }

    #[test]
    #[cfg_attr(
        debug_assertions,
        should_panic(expected = "the count of tests is wrong")
    )]
    fn a_count_over_its_range_is_noticed() {
        let mut count = u64::MAX;
        more(&mut count, 1, "tests");
        assert_eq!(count, u64::MAX);
    }
}
