// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How many times longer everything may take on this machine
//!
//! This file is also part of the guests' init and of the daemon's tests.

use std::env::{self, VarError};
use std::sync::OnceLock;

/// Environment variable: limits of time are multiplied by this whole number.
pub const FACTOR: &str = "BUFSHARE_TIMEOUT_FACTOR";

/// That number, or 1 if there is none.
///
/// # Panics
/// When it cannot be used: nobody asked for 1 instead.
#[must_use]
#[allow(clippy::panic, reason = "no test can run then")]
pub fn factor() -> u32 {
    static VALUE: OnceLock<u32> = OnceLock::new();
    *VALUE.get_or_init(|| {
        let text = match env::var(FACTOR) {
            Err(VarError::NotPresent) => String::new(),
            Err(VarError::NotUnicode(text)) => text.to_string_lossy().into_owned(),
            Ok(text) => text,
        };
        parse(&text).unwrap_or_else(|| {
            panic!("{FACTOR} is '{text}' and has to be a whole number from 1 to 1000")
        })
    })
}

/// Nothing is 1, as for scripts/lib.sh.
pub(crate) fn parse(text: &str) -> Option<u32> {
    if text.is_empty() {
        return Some(1);
    }
    text.parse()
        .ok()
        .filter(|factor| (1..=1000).contains(factor))
}
