// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver of this guest that exports dma-bufs which it can move
//!
//! See `tests/guest/exporter`.

use std::fs::File;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use bufshare_agent::ops::MovableKind;

use super::ioctl::{self, Argument};

const DEVICE: &str = "/dev/bufshare_exporter";

/// `struct exporter_make`.
#[repr(C)]
struct Make {
    size: u64,
    kind: u32,
    fd: i32,
}

/// `struct exporter_move`.
#[repr(C)]
struct Move {
    fd: i32,
    pins: u32,
}

// SAFETY: plain data without padding.
unsafe impl Argument for Make {}
// SAFETY: plain data without padding.
unsafe impl Argument for Move {}

const MAKE: u32 = ioctl::read_write::<Make>(0xb7, 0);
const MOVE: u32 = ioctl::read_write::<Move>(0xb7, 1);

fn open() -> Result<File> {
    File::open(DEVICE).with_context(|| format!("opening {DEVICE}"))
}

/// A buffer of it.
pub(crate) fn make(kind: MovableKind, size: u64) -> Result<OwnedFd> {
    let mut make = Make {
        size,
        kind: match kind {
            MovableKind::Movable => 0,
            MovableKind::Rude => 1,
            MovableKind::Revocable => 2,
        },
        fd: -1,
    };
    ioctl::call(&open()?, MAKE, &mut make).context("making a buffer that moves")?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(make.fd) })
}

/// Has it move a buffer.
pub(crate) fn move_away(buffer: BorrowedFd<'_>) -> Result<()> {
    let mut request = Move {
        fd: buffer.as_raw_fd(),
        pins: 0,
    };
    let moved = ioctl::call(&open()?, MOVE, &mut request);
    moved.with_context(|| format!("moving a buffer that is pinned {} times", request.pins))?;
    Ok(())
}
