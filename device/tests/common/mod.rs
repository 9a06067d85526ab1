// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests of the running daemon share.

#![allow(dead_code, missing_docs, unreachable_pub)]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_lossless,
    clippy::cast_possible_wrap,
    clippy::multiple_unsafe_ops_per_block,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

pub mod daemon;
pub mod deny;
pub mod frontend;
pub mod held;
pub mod other;
pub mod pair;
pub mod program;
mod soon;
pub mod threads;
pub mod unmarked;
pub mod vm;
pub mod watchdog;

use std::time::{Duration, Instant};

pub use soon::soon;

/// No test takes as long.
pub fn hangs() -> Duration {
    soon() * 15
}

/// Looks again and again until `done`. Fails with `what`.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let limit = soon();
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
