// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Zero pages for the windows of one VM whose backing was revoked while clients in
//! its guest still looked.
//!
//! They may write there too, since QEMU enforces nothing else. What they write
//! is their VM's own: each session has a file of its own, as large as its
//! shared-memory region, of which only what is touched takes memory (of the
//! VMM that touches it), and that is given back when the last client leaves.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::{FdPiece, FileId, memfd};
use crate::broker::Piece;

/// The zero pages of one session.
#[derive(Debug)]
pub struct ZeroPages {
    file: Arc<File>,
    id: FileId,
}

impl ZeroPages {
    /// Zero pages for a region of `size` bytes. They take no memory yet.
    ///
    /// # Errors
    /// As `memfd_create`.
    pub fn new(size: u64) -> io::Result<Self> {
        let file = memfd::sealed(c"bufshare-zero-pages", size)?;
        let id = FileId::of(&file)?;
        let file = Arc::new(file);
        Ok(Self { file, id })
    }

    /// Which file it is.
    #[must_use]
    pub fn id(&self) -> FileId {
        self.id
    }

    /// What to map at `piece`.
    #[must_use]
    pub fn piece(&self, piece: Piece) -> FdPiece {
        FdPiece {
            file: self.file.clone(),
            id: self.id,
            fd_offset: piece.shm_offset,
            len: piece.len,
            shm_offset: piece.shm_offset,
        }
    }

    /// Whatever was at `piece` is not looked at any more.
    ///
    /// # Errors
    /// As `fallocate`.
    pub fn release(&self, piece: Piece) -> io::Result<()> {
        let (Ok(offset), Ok(len)) = (
            libc::off_t::try_from(piece.shm_offset),
            libc::off_t::try_from(piece.len),
        ) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let flags = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: takes no pointer.
        if unsafe { libc::fallocate(self.file.as_raw_fd(), flags, offset, len) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::PAGE;
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    const PIECE: Piece = Piece {
        shm_offset: 4 * PAGE,
        len: 2 * PAGE,
    };

    #[test]
    fn zero_pages_have_one_file_which_holds_every_place() {
        let zero_pages = ZeroPages::new(64 * PAGE).unwrap();

        let first = zero_pages.piece(PIECE);
        let second = zero_pages.piece(Piece {
            shm_offset: 63 * PAGE,
            len: PAGE,
        });

        assert_eq!(first.fd_offset, PIECE.shm_offset);
        assert_eq!(first.id, second.id);
        assert_eq!(first.file.metadata().unwrap().len(), 64 * PAGE);
        assert_eq!(first.file.metadata().unwrap().blocks(), 0);
    }

    #[test]
    fn released_zero_pages_are_zero_again_and_take_no_memory() {
        let zero_pages = ZeroPages::new(64 * PAGE).unwrap();
        let file = zero_pages.piece(PIECE).file;
        file.write_all_at(&[7; 8192], PIECE.shm_offset).unwrap();

        zero_pages.release(PIECE).unwrap();

        let mut back = [1; 8192];
        file.read_exact_at(&mut back, PIECE.shm_offset).unwrap();
        assert!(back.iter().all(|byte| *byte == 0));
        zero_pages.release(PIECE).unwrap();
        assert_eq!(file.metadata().unwrap().blocks(), 0);
    }
}
