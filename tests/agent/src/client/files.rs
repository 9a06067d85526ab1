// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that have nothing to do with buffers, and must not be touched with them

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use bufshare_agent::ops::Sight;

use super::memory::Mapping;
use super::{compare, fill};

const SIZE: usize = 4096;

/// The same file by a descriptor that only names it; the other is closed.
pub(crate) fn keep_path(fd: OwnedFd) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    let kept = std::os::unix::fs::OpenOptionsExt::custom_flags(File::options().read(true), flags)
        .open(&path)
        .with_context(|| format!("opening {path} by O_PATH"))?;
    drop(fd);
    Ok(kept.into())
}

/// Anonymous files, each with a page of it mapped privately and written to.
pub(crate) struct PrivateFiles {
    seed: u32,
    files: Vec<(OwnedFd, Mapping)>,
}

impl PrivateFiles {
    pub(crate) fn new(count: u32, seed: u32) -> Result<Self> {
        let mut files = Vec::new();
        for _ in 0..count {
            // SAFETY: a terminated string.
            let file = unsafe { libc::memfd_create(c"private".as_ptr(), libc::MFD_CLOEXEC) };
            if file < 0 {
                return Err(io::Error::last_os_error()).context("memfd_create");
            }
            // SAFETY: the kernel has just made this descriptor for us.
            let file = unsafe { File::from_raw_fd(file) };
            file.set_len(SIZE as u64)?;
            let mapping = Mapping::private(file.as_fd(), SIZE).context("mmap")?;
            fill(&mapping, seed)?;
            files.push((file.into(), mapping));
        }
        Ok(Self { seed, files })
    }

    /// Whether all that was written is still there.
    pub(crate) fn compare(&self) -> Result<Sight> {
        for (_, mapping) in &self.files {
            let sight = compare(mapping, self.seed)?;
            if sight != Sight::Pattern {
                return Ok(sight);
            }
        }
        Ok(Sight::Pattern)
    }
}
