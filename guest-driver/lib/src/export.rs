// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A buffer offered to other VMs

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bufshare_protocol::types::{Access, BufferId, Meta};

/// What an export says besides its bytes
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportOptions {
    /// Who may import it. Empty: all peers that the host's operator allows, as
    /// far as he allows.
    pub access: Vec<Access>,
    /// Name, image, opaque bytes.
    pub meta: Meta,
}

/// A buffer offered to other VMs
///
/// Dropping it ends the export: importers are told, and their mappings end.
/// So does the end of the process. Whoever holds a copy of the
/// [descriptor](AsFd) keeps the export alive.
#[derive(Debug)]
#[must_use = "dropping it ends the export"]
pub struct Export {
    fd: OwnedFd,
    id: BufferId,
    generation: u64,
}

impl Export {
    pub(crate) fn new(fd: OwnedFd, id: BufferId, generation: u64) -> Self {
        Self { fd, id, generation }
    }

    /// The buffer's name, to be passed to the importer.
    #[must_use]
    pub fn id(&self) -> BufferId {
        self.id
    }

    /// Number of this export, never used again while the host's daemon lives.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Ends the export, as dropping it does.
    pub fn close(self) {}
}

impl AsFd for Export {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Export> for OwnedFd {
    /// The export lives on until the descriptor and its copies are closed.
    fn from(export: Export) -> Self {
        export.fd
    }
}
