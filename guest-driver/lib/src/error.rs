// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What failed, why, and what to do

use std::fmt;
use std::io;

use bufshare_protocol::status::Status;
use rustix::io::Errno;

const ACCESS: i32 = Errno::ACCESS.raw_os_error();

/// What [`Device::export`](crate::Device::export) tries.
pub(crate) const EXPORT: &str = "export the buffer";

/// Result of most functions of this crate
pub type Result<T> = std::result::Result<T, Error>;

/// What failed, why, and what to do
///
/// Displayed as one line, for example `cannot import the buffer: there is no
/// such buffer for this VM: unknown, taken back or not granted (NOT_FOUND, No
/// such file or directory (os error 2)). Check the id; …`
#[derive(Debug)]
#[non_exhaustive]
pub struct Error {
    /// What was tried, as in "cannot …".
    pub op: &'static str,
    /// The kernel's reason.
    pub errno: io::Error,
    /// The host's reason, if the host was asked and refused.
    pub status: Option<Status>,
}

impl Error {
    /// The host was not asked.
    pub(crate) fn new(op: &'static str, errno: impl Into<io::Error>) -> Self {
        Self {
            op,
            errno: errno.into(),
            status: None,
        }
    }

    /// An ioctl failed that tells the host's status.
    pub(crate) fn of_host(op: &'static str, errno: io::Error, status: u32) -> Self {
        let status = Status::from_wire(status).filter(|status| *status != Status::Ok);
        Self { op, errno, status }
    }

    /// The driver's answer makes no sense.
    pub(crate) fn nonsense(op: &'static str) -> Self {
        Self::new(op, Errno::PROTO)
    }

    /// The exporter took the buffer back while it was in use.
    pub(crate) fn revoked(op: &'static str) -> Self {
        Self {
            op,
            errno: Errno::FAULT.into(),
            status: Some(Status::Revoked),
        }
    }

    /// Whether the exporter took the buffer back.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.status == Some(Status::Revoked)
    }

    /// A sentence that says what to do about it; empty if there is nothing
    /// more to say.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self.status {
            Some(status) => advice_on_status(status),
            None if self.op == EXPORT && self.errno.raw_os_error() == Some(ACCESS) => {
                "The dma-buf is open for reading only, so others cannot be let write it: open it for reading and writing (O_RDWR, DRM_RDWR), or list the peers that may read it"
            }
            None => Errno::from_io_error(&self.errno).map_or("", advice_on_errno),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => {
                write!(
                    f,
                    "cannot {}: {status} ({}, {})",
                    self.op,
                    status.name(),
                    self.errno
                )?;
            }
            None => write!(f, "cannot {}: {}", self.op, self.errno)?,
        }
        match self.advice() {
            "" => Ok(()),
            advice => write!(f, ". {advice}"),
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

fn advice_on_status(status: Status) -> &'static str {
    match status {
        Status::Ok => "",
        Status::Unsupported => {
            "Update the host's daemon and this driver to versions that know each other"
        }
        Status::BadLength | Status::BadField | Status::NoRoom | Status::Unbalanced => {
            "Check the arguments; if they are right, the driver has a bug: please report it"
        }
        Status::NotFound => {
            "Check the id; if it was right, the exporter has closed the buffer, or has not granted it to this VM"
        }
        Status::Denied => {
            "Ask the host's operator to allow these two VMs to share with these rights"
        }
        Status::NotRam => {
            "Export memory of this VM, from Device::alloc, a dma-heap or a udmabuf; what is imported or lies on a device cannot be exported"
        }
        Status::Overlap => "Export a buffer in which no page occurs twice",
        Status::Unaligned => "Make the size a multiple of map_align, which Device::info tells",
        Status::TooLarge => "Stay below max_buffer_size, which Device::info tells",
        Status::TooMany => "Drop exports or imports that are no longer used",
        Status::TooFragmented => "Allocate it with Device::alloc, which takes memory in few pieces",
        Status::NoWindow => {
            "Drop other imports, or have the exporter allocate with Device::alloc, which takes few pieces"
        }
        Status::NoSpace => {
            "Drop other imports, or ask the host's operator for a larger shared-memory region"
        }
        Status::Busy => {
            "Drop its mappings and the dma-bufs of it that other drivers hold, then try again"
        }
        Status::Revoked => "Drop it and import what the exporter offers next",
        Status::MetaTooLarge => {
            "Shorten the blob to max_blob, which Device::info tells, or put it into a buffer"
        }
        Status::BadMeta => {
            "Check that each plane's offset + stride * rows lies within the buffer, and the name for control characters"
        }
        Status::NoTransport => {
            "Ask the host's operator to make /dev/udmabuf available, or to allow sharing of whole RAM"
        }
        Status::RoNotEnforced => {
            "Ask for reading and writing if both are granted, or ask the host's operator about this VM's VMM"
        }
        Status::NoShmem => {
            "Run this VM with a VMM that has vhost-user shared-memory requests; it can export meanwhile"
        }
        Status::MapFailed => "Look into the log of this VM's VMM",
        Status::HostError => "Look into the log of the host's daemon",
    }
}

fn advice_on_errno(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT | Errno::NXIO => {
            "Check that the VM has the device and that the module virtio_bufshare is loaded"
        }
        Errno::ACCESS | Errno::PERM => "Check the rights asked for, and who may open the device",
        Errno::NODEV => "The device is gone; open it anew when it is back",
        Errno::TIMEDOUT => "The host did not answer in time; look into the log of its daemon",
        Errno::STALE => "Drop the buffer and import what the exporter offers next",
        Errno::PROTO => {
            "The driver and this library disagree; update both to versions that know each other"
        }
        Errno::NOTTY => {
            "The descriptor is not what it should be: neither /dev/bufshare nor a dma-buf"
        }
        Errno::RANGE => "Stay within the buffer",
        Errno::MSGSIZE => "Shorten the blob to max_blob, which Device::info tells",
        Errno::NOMEM => "Free memory, or ask for less",
        Errno::DQUOT => {
            "Drop exports that are no longer used: together they may pin only so much memory of other drivers (pin_limit_mb of the module virtio_bufshare)"
        }
        Errno::MFILE | Errno::NFILE => "Close descriptors that are no longer used",
        Errno::NOSYS => "Use a kernel with CONFIG_CROSS_MEMORY_ATTACH, or the unchecked functions",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_operation_reason_and_remedy() {
        let error = Error::of_host("import the buffer", Errno::NOENT.into(), 5);
        assert_eq!(
            error.to_string(),
            "cannot import the buffer: there is no such buffer for this VM: unknown, taken back \
             or not granted (NOT_FOUND, No such file or directory (os error 2)). Check the id; if \
             it was right, the exporter has closed the buffer, or has not granted it to this VM"
        );
    }

    #[test]
    fn text_without_status_is_the_errno_and_a_remedy() {
        let error = Error::of_host("open /dev/bufshare", Errno::NOENT.into(), 0);
        assert_eq!(error.status, None);
        assert_eq!(
            error.to_string(),
            "cannot open /dev/bufshare: No such file or directory (os error 2). Check that the VM \
             has the device and that the module virtio_bufshare is loaded"
        );
    }

    #[test]
    fn a_refused_read_only_export_says_what_to_open() {
        let text = Error::of_host(EXPORT, Errno::ACCESS.into(), 0).to_string();
        assert!(text.contains("open for reading only"), "{text}");
        let text = Error::of_host("open /dev/bufshare", Errno::ACCESS.into(), 0).to_string();
        assert!(text.contains("who may open the device"), "{text}");
    }

    #[test]
    fn every_refusal_has_advice() {
        for status in Status::ALL.iter().filter(|status| **status != Status::Ok) {
            let advice = Error::of_host("x", Errno::INVAL.into(), status.to_wire()).advice();
            assert!(!advice.is_empty() && !advice.ends_with('.'), "{status:?}");
        }
    }

    #[test]
    fn io_error_keeps_kind_and_text() {
        let error = Error::new("x", Errno::TIMEDOUT);
        let text = error.to_string();
        let error = io::Error::from(error);
        assert_eq!(
            (error.kind(), error.to_string()),
            (io::ErrorKind::TimedOut, text)
        );
    }
}
