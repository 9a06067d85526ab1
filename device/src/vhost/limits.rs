// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What one front end may take of the process, each limit with its reason.

/// Regions of a memory table, windows among them: what the vhost-user crate tells
/// front ends.
pub const MAX_REGIONS: usize = 509;

/// Those that are RAM, of which each takes a descriptor: QEMU has at most 256 memory
/// devices, and cuts what is there from the start into a few pieces.
pub const MAX_RAM_REGIONS: usize = 288;

/// Files that may be held after the VMM said that it has unmapped them, or not mapped
/// them, before another one is lent to it. Each takes a descriptor. A VMM that closes them
/// 0.1 s later, as QEMU does, can be asked for a thousand mappings in a second.
pub const MAX_KEPT: usize = 128;

/// Files that a front end was sent, before those that it has no more are forgotten. It
/// has at most [`MAX_KEPT`] and one for each of its windows, of which there are fewer than
/// [`MAX_REGIONS`].
pub const MAX_SENT: usize = 1024;

/// Address space that all memory tables together may take: half of what a process
/// on x86-64 has.
const MAX_TABLES_BYTES: u64 = 1 << 46;

/// The share of one of so many peers.
#[must_use]
pub fn max_table_bytes(peers: usize) -> u64 {
    let peers = u64::try_from(peers).unwrap_or(u64::MAX);
    MAX_TABLES_BYTES
        .checked_div(peers)
        .unwrap_or(MAX_TABLES_BYTES)
}
