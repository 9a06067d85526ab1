// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random ids.

use bufshare_protocol::types::BufferId;

use crate::broker::IdSource;

/// 16 bytes that nobody can guess.
#[must_use]
pub fn bytes() -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    // SAFETY: writes at most the given length into the array.
    let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // Up to 256 bytes come whole.
    (usize::try_from(n) == Ok(bytes.len())).then_some(bytes)
}

/// Ids of buffers from the kernel's generator.
#[derive(Debug)]
pub struct RandomIds;

impl IdSource for RandomIds {
    fn fresh(&mut self) -> Option<BufferId> {
        bytes().map(BufferId).filter(|id| !id.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_ids_differ() {
        assert_ne!(RandomIds.fresh().unwrap(), RandomIds.fresh().unwrap());
    }
}
