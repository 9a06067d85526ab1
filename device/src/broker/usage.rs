// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What one peer uses of what is limited: the one place where it is charged.

use serde::{Deserialize, Serialize};

use bufshare_protocol::status::Status;

use super::limits::Limits;
use super::refcount;

/// How much of one thing a peer uses, and may.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Gauge {
    used: u32,
    max: u32,
    /// Most it ever used.
    peak: u32,
}

impl Gauge {
    fn new(max: u32) -> Self {
        Self {
            used: 0,
            max,
            peak: 0,
        }
    }

    pub(super) fn used(&self) -> u32 {
        self.used
    }

    pub(super) fn peak(&self) -> u32 {
        self.peak
    }

    /// Whether so many more are allowed.
    pub(super) fn fits(&self, more: u32) -> bool {
        let used = self.used.checked_add(more);
        used.is_some_and(|used| used <= self.max)
    }

    /// One more.
    ///
    /// # Errors
    /// [`Status::TooMany`] beyond what is allowed.
    pub(super) fn charge(&mut self) -> Result<(), Status> {
        if !self.fits(1) {
            return Err(Status::TooMany);
        }
        self.take(1);
        Ok(())
    }

    /// So many more, of which it is known that they are allowed.
    pub(super) fn take(&mut self, more: u32) {
        refcount::more(&mut self.used, more, "what a peer uses");
        self.peak = self.peak.max(self.used);
    }

    /// So many fewer.
    pub(super) fn give(&mut self, fewer: u32) {
        refcount::fewer(&mut self.used, fewer, "what a peer uses");
    }

    /// None any more.
    pub(super) fn clear(&mut self) {
        self.used = 0;
    }

    /// Whether it uses no more than it may.
    #[cfg(test)]
    pub(super) fn is_kept(&self) -> bool {
        self.used <= self.max
    }

    /// Names what is wrong, if it is.
    #[cfg(test)]
    pub(super) fn check(&self, what: &str, found: usize) -> Result<(), String> {
        if found == self.used as usize && self.is_kept() {
            return Ok(());
        }
        let (used, max) = (self.used, self.max);
        Err(format!("{found} {what}, {used} counted, {max} allowed"))
    }
}

/// All that is counted of one peer. What else it can make grow is bounded by these, or by
/// a limit of its own where it is kept (see [`super::limits`]).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Usage {
    /// Buffers exported, those being revoked included.
    pub(super) buffers: Gauge,
    pub(super) attachments: Gauge,
    /// VMM mappings, those on their way out included.
    pub(super) mappings: Gauge,
}

impl Usage {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            buffers: Gauge::new(limits.max_buffers),
            attachments: Gauge::new(limits.max_attachments),
            mappings: Gauge::new(limits.max_windows),
        }
    }
}
