// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The limit of time of the daemon's tests. Those in src/ have this file, too.

use std::time::Duration;

#[path = "../../../tests/src/factor.rs"]
mod factor;

/// For everything that happens at once on an idle machine. Not the time that
/// anything is expected to take.
pub fn soon() -> Duration {
    Duration::from_secs(20).saturating_mul(factor::factor())
}
