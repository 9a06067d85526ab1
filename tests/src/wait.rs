// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Limits of time

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::factor::factor;

/// For a guest to boot.
pub const BOOT: Duration = Duration::from_secs(120);
/// For a command that does little.
pub const COMMAND: Duration = Duration::from_secs(20);
/// For a program to stop after it was asked to: QEMU may have much memory to give back.
pub const STOP: Duration = Duration::from_secs(20);

const PAUSE: Duration = Duration::from_millis(5);

/// `limit`, on this machine.
#[must_use]
pub fn scaled(limit: Duration) -> Duration {
    limit * factor()
}

/// Ask until there is an answer.
///
/// # Errors
/// What `ask` says, or that there was none within the limit.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let limit = scaled(limit);
    let started = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if started.elapsed() >= limit {
            bail!("waited {limit:?} for {what}");
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use crate::factor::parse;

    #[test]
    fn a_factor_is_a_whole_number_and_nothing_else_is_taken_for_1() {
        assert_eq!(
            ["", "1", "10", "1000"].map(parse),
            [1, 1, 10, 1000].map(Some)
        );
        for text in ["0", "1001", "-1", "1.5", "abc", "2 ", "99999999999"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
