// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors: how many the process may need at the most, and that it has them, so
//! that no peer can take those of another.

use std::io;

use crate::vhost::limits::{MAX_KEPT_DMABUFS, MAX_OWNER_FILES, MAX_RAM_REGIONS};

/// For the process itself: standard streams, signals, timers, control socket, files
/// that are opened for a moment by any thread.
const PROCESS: u64 = 64;

/// For one peer, without its memory: sockets and eventfds of the session (about 30),
/// and those of two messages under way.
const SESSION: u64 = 160;

/// Why the process cannot have them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The hard limit is too low.
    #[error(
        "{needed} descriptors are needed for {peers} peers with {windows} mappings each, but the \
         hard limit of open files is {hard}: raise it (LimitNOFILE= of the unit, ulimit -Hn), or \
         have fewer peers or a smaller --max-windows"
    )]
    TooFew {
        /// Descriptors that may be needed.
        needed: u64,
        /// Peers.
        peers: usize,
        /// Mappings of each.
        windows: u32,
        /// What is allowed.
        hard: u64,
    },
    /// As `getrlimit` and `setrlimit`.
    #[error("the limit of open files cannot be had: {0}")]
    System(#[from] io::Error),
}

/// How many may be needed.
///
/// Each mapping keeps the file that it shows: a udmabuf, or the exporter's RAM, whose
/// own front end may have replaced it. So does, for a moment, the one mapping that is
/// being made: all RAM of its exporter. A mapping that waits for its turn keeps none. One
/// that was unmapped does while somebody has the file open; no owner of such files can use
/// up what there is for those of another.
#[must_use]
pub fn needed(peers: usize, windows: u32) -> u64 {
    let ram = u64::try_from(MAX_RAM_REGIONS).unwrap_or(u64::MAX);
    let dmabufs = u64::try_from(MAX_KEPT_DMABUFS).unwrap_or(u64::MAX);
    let owners = u64::try_from(peers.saturating_sub(1)).unwrap_or(u64::MAX);
    let files = u64::try_from(MAX_OWNER_FILES).unwrap_or(u64::MAX);
    let peer = SESSION
        .saturating_add(ram.saturating_mul(2))
        .saturating_add(windows.into())
        .saturating_add(dmabufs)
        .saturating_add(owners.saturating_mul(files));
    let peers = u64::try_from(peers).unwrap_or(u64::MAX);
    peer.saturating_mul(peers).saturating_add(PROCESS)
}

/// Raises the limit of open files as far as it goes.
///
/// # Errors
/// [`Error`] if that is less than may be needed.
pub fn reserve(peers: usize, windows: u32) -> Result<(), Error> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure is writable.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } < 0 {
        return Err(io::Error::last_os_error().into());
    }
    let (needed, hard) = (needed(peers, windows), limit.rlim_max);
    if hard < needed {
        return Err(Error::TooFew {
            needed,
            peers,
            windows,
            hard,
        });
    }
    limit.rlim_cur = hard;
    // SAFETY: the structure is initialised.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } < 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(())
}
