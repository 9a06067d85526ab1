// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Limits of time

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Environment variable: how many times longer everything may take here.
pub const FACTOR: &str = "BUFSHARE_TIMEOUT_FACTOR";

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
    static VALUE: OnceLock<f64> = OnceLock::new();
    let factor = VALUE.get_or_init(|| {
        let value = std::env::var(FACTOR)
            .ok()
            .and_then(|text| text.parse().ok());
        value
            .filter(|value: &f64| value.is_finite() && *value > 0.0)
            .unwrap_or(1.0)
    });
    limit.mul_f64(*factor)
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
