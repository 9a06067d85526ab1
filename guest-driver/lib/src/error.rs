// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What failed and why

use std::fmt;
use std::io;

use rustix::io::Errno;

use crate::{Operation, Status};

/// Result of most functions of this crate
pub type Result<T> = std::result::Result<T, Error>;

/// What failed and why
///
/// Displayed as one line, for example `cannot import the buffer: there is no such buffer for
/// this VM: unknown, revoked or not granted (NOT_FOUND)`, or `cannot list the buffers:
/// Connection timed out (os error 110): the host did not answer in time`. What to do about it is
/// for the program to say, in its users' terms: [`op`](Self::op), [`errno`](Self::errno) and
/// [`status`](Self::status) say what it is.
#[derive(Debug)]
#[non_exhaustive]
pub struct Error {
    /// What was tried.
    pub op: Operation,
    /// The kernel's reason. Of what the host refused it is the kind alone.
    pub errno: io::Error,
    /// The exact reason of a refusal, the host's or, in the host's terms, the driver's; also
    /// [`Revoked`](Status::Revoked) if the memory of a buffer in use is gone. `None`: there is
    /// none beside the errno.
    pub status: Option<Status>,
    /// Of a call about several frames, the index of the first that is wrong, if it is one of
    /// them that failed.
    pub entry: Option<usize>,
}

impl Error {
    /// The first of several frames that is what failed, counted from 0.
    pub(crate) fn of_entry(self, entry: u32, count: usize) -> Self {
        let entry = usize::try_from(entry).ok();
        Self {
            entry: entry.filter(|entry| *entry < count),
            ..self
        }
    }

    /// The host was not asked.
    pub(crate) fn new(op: Operation, errno: impl Into<io::Error>) -> Self {
        Self {
            op,
            errno: errno.into(),
            status: None,
            entry: None,
        }
    }

    /// An ioctl failed that reports the host's status.
    pub(crate) fn of_host(op: Operation, errno: io::Error, status: u32) -> Self {
        Self {
            op,
            errno,
            status: Status::from_wire(status),
            entry: None,
        }
    }

    /// The driver's answer makes no sense.
    pub(crate) fn nonsense(op: Operation) -> Self {
        Self::new(op, Errno::PROTO)
    }

    /// The memory of a buffer went while it was in use.
    pub(crate) fn revoked(op: Operation, errno: Errno) -> Self {
        Self {
            op,
            errno: errno.into(),
            status: Some(Status::Revoked),
            entry: None,
        }
    }

    /// Whether the buffer's memory is gone: the exporter revoked it, this VM was suspended since
    /// the import, or the device that showed it is gone.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.status == Some(Status::Revoked)
    }

    /// Whether there is no such buffer or stream for this VM: it is [revoked](Self::is_revoked),
    /// or unknown, or was never granted; or whether an export of this VM that was named has ended.
    /// The [status](Self::status) says so, whoever found it, the host or the driver.
    ///
    /// That a buffer goes between its offer and the call that is to use it is ordinary: its
    /// exporter may end at any time.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self.status, Some(Status::NotFound | Status::Revoked))
    }

    /// Which one, where there may have been several.
    fn entry_text(&self) -> String {
        let entry = self.entry.map(|entry| format!(" at index {entry}"));
        entry.unwrap_or_default()
    }

    /// What the errno stands for here, where its own text does not say so.
    fn reason(&self) -> Option<&'static str> {
        use Operation::{
            Alloc, Begin, Consume, CreateStream, End, Export, Fill, FindPeer, GetMeta, GiveBack,
            HandOver, Import, Info, Join, List, NextEvent, Peers, Push, Query, Read, SetMeta,
            Write,
        };
        let errno = Errno::from_io_error(&self.errno)?;
        Some(match (self.op, errno) {
            (FindPeer, Errno::NOENT) => {
                "the host's operator allows this VM to share with no peer of that name"
            }
            (HandOver, Errno::OPNOTSUPP) => "this VM's driver is of a version that does not",
            (Export, Errno::ACCESS) => "the dma-buf is open for reading only",
            (Export, Errno::PERM) => "the dma-buf is an import of another VM's buffer",
            (Export, Errno::DQUOT) => {
                "the exports of this VM would pin more memory of other drivers than its driver \
                 allows"
            }
            (Export, Errno::INVAL) => {
                "it is no dma-buf of whole pages, its access list has more than 16 peers or \
                 rights that cannot be granted, or it is part of a stream and has a list"
            }
            (Export, Errno::ALREADY) => "it is in a slot of this producer already",
            (CreateStream, Errno::INVAL) => {
                "its slots have no sizes and it has no image, or they have more than 4 buffers, \
                 or its access list has more than 16 peers or rights that cannot be granted"
            }
            (Export, Errno::OPNOTSUPP) => {
                "its driver cannot keep the buffer in its place, this VM has a vIOMMU, or the \
                 memory of this VM is encrypted"
            }
            (Import | Consume, Errno::INVAL) => "only READ, and READ with WRITE, can be asked for",
            (Import | Consume | Join, Errno::BUSY) => {
                "other drivers of this VM use buffers that were imported before its device was \
                 reset"
            }
            (Consume, Errno::MFILE) => {
                "this open device has 512 buffers and streams already, or this process as many \
                 descriptors as it may"
            }
            (Join, Errno::MFILE) => "this open device has 512 buffers and streams already",
            (Consume, Errno::DQUOT) => {
                "with it, the stream's buffers take more mappings than this program has set for them"
            }
            (Consume, Errno::USERS) => "too many programs of this VM consume it already",
            (Push, Errno::INVAL) => {
                "there are no frames or more than 16, or one is in no buffer or more than 4, or \
                 has more than 16 rectangles of damage"
            }
            (Export, Errno::EXIST) => {
                "it is exported to the same peers already, and with other metadata"
            }
            (Join, Errno::INVAL) => "it is a buffer, not a stream",
            (GiveBack, Errno::INVAL) => "there are no frames or more than 16",
            (Alloc, Errno::FBIG) => "it is larger than the largest buffer of the device",
            (Begin, Errno::ACCESS) => "the buffer is not mapped for that",
            (Read | Write | Fill, Errno::ACCESS) => "the access was not begun for that",
            (Read | Write | Fill, Errno::RANGE) => "the bytes are not all inside the buffer",
            (Begin | End, Errno::NOTTY) => "it is no dma-buf",
            (
                Info | Peers | List | Query | Alloc | Export | CreateStream | Import | Consume
                | Join | Push | GiveBack | SetMeta | GetMeta | NextEvent,
                errno,
            ) => match errno {
                Errno::TIMEDOUT => "the host did not answer in time",
                Errno::NODEV => "the device is gone",
                Errno::PROTO => "the answer makes no sense",
                Errno::NOTTY => "it is no bufshare device",
                _ => return None,
            },
            _ => return None,
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            op, errno, status, ..
        } = self;
        match (status, Errno::from_io_error(errno)) {
            // Not the host's answer, which would be ESTALE: what the driver and the MMU say.
            (Some(Status::Revoked), Some(Errno::NODEV | Errno::FAULT)) => write!(
                f,
                "cannot {op}: its memory is gone: its exporter revoked it, this VM was suspended, \
                 or the device is gone ({})",
                Status::Revoked.name()
            ),
            (Some(status), _) => {
                let entry = self.entry_text();
                write!(f, "cannot {op}{entry}: {status} ({})", status.name())
            }
            (None, _) => {
                write!(f, "cannot {op}{}: {errno}", self.entry_text())?;
                match self.reason() {
                    Some(reason) => write!(f, ": {reason}"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    /// Keeps the kind and the text.
    fn from(error: Error) -> Self {
        Self::new(error.errno.kind(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(op: Operation, errno: Errno, status: u32) -> String {
        Error::of_host(op, errno.into(), status).to_string()
    }

    #[test]
    fn text_names_operation_and_reason() {
        assert_eq!(
            text(Operation::Import, Errno::NOENT, 5),
            "cannot import the buffer: there is no such buffer for this VM: unknown, revoked or \
             not granted (NOT_FOUND)"
        );
    }

    #[test]
    fn text_without_status_is_the_errno() {
        let error = Error::of_host(Operation::Open, Errno::NOENT.into(), 0);
        assert_eq!(error.status, None);
        assert_eq!(
            error.to_string(),
            "cannot open the bufshare device: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn an_errno_that_could_mean_anything_says_what_it_means_here() {
        for (op, errno, reason) in [
            (Operation::Export, Errno::ACCESS, "open for reading only"),
            (
                Operation::Export,
                Errno::PERM,
                "import of another VM's buffer",
            ),
            (
                Operation::HandOver,
                Errno::OPNOTSUPP,
                "of a version that does not",
            ),
            (Operation::Export, Errno::DQUOT, "than its driver allows"),
            (Operation::Export, Errno::INVAL, "and has a list"),
            (Operation::Export, Errno::ALREADY, "producer already"),
            (Operation::Export, Errno::OPNOTSUPP, "is encrypted"),
            (Operation::Import, Errno::INVAL, "can be asked for"),
            (Operation::Import, Errno::BUSY, "device was reset"),
            (Operation::Join, Errno::BUSY, "device was reset"),
            (
                Operation::Join,
                Errno::MFILE,
                "512 buffers and streams already",
            ),
            (Operation::Consume, Errno::MFILE, "as it may"),
            (Operation::Consume, Errno::DQUOT, "has set for them"),
            (
                Operation::CreateStream,
                Errno::INVAL,
                "that cannot be granted",
            ),
            (Operation::Read, Errno::RANGE, "not all inside the buffer"),
            (
                Operation::List,
                Errno::TIMEDOUT,
                "the host did not answer in time",
            ),
            (Operation::Export, Errno::NODEV, "the device is gone"),
            // Those say it by themselves.
            (Operation::Open, Errno::ACCESS, "(os error 13)"),
            (Operation::Map, Errno::NODEV, "(os error 19)"),
        ] {
            let text = text(op, errno, 0);
            assert!(text.ends_with(reason), "{text}");
        }
    }

    #[test]
    fn a_producer_of_which_no_size_is_known_is_not_blamed_on_its_access_list_alone() {
        let text = text(Operation::CreateStream, Errno::INVAL, 0);
        assert!(text.contains("its slots have no sizes"), "{text}");
    }

    #[test]
    fn text_of_a_refusal_is_the_hosts_reason_alone() {
        for status in Status::ALL {
            let text = text(Operation::Export, Errno::ACCESS, status.number());
            let name = status.name();
            assert_eq!(text, format!("cannot export the buffer: {status} ({name})"));
        }
        let newer = text(Operation::Import, Errno::PROTO, 4711);
        assert!(newer.ends_with("4711 (UNKNOWN)"), "{newer}");
    }

    #[test]
    fn memory_that_is_gone_is_not_blamed_on_the_exporter_alone() {
        for (op, errno) in [
            (Operation::Map, Errno::NODEV),
            (Operation::Read, Errno::FAULT),
        ] {
            let error = Error::revoked(op, errno);
            assert!(error.is_revoked() && error.is_absent());
            let text = error.to_string();
            assert!(
                text.contains("suspended") && text.ends_with("(REVOKED)"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_buffer_is_absent_where_the_host_says_so() {
        let absent = |status: Status| {
            Error::of_host(Operation::Import, Errno::NOENT.into(), status.number()).is_absent()
        };
        for status in Status::ALL {
            let wanted = matches!(status, Status::NotFound | Status::Revoked);
            assert_eq!(absent(*status), wanted, "{status:?}");
        }
        // As of a device file that is not there.
        assert!(!Error::new(Operation::Open, Errno::NOENT).is_absent());
    }

    #[test]
    fn io_error_keeps_kind_and_text() {
        let error = Error::new(Operation::Query, Errno::TIMEDOUT);
        let text = error.to_string();
        let error = io::Error::from(error);
        assert_eq!(
            (error.kind(), error.to_string()),
            (io::ErrorKind::TimedOut, text)
        );
    }
}
