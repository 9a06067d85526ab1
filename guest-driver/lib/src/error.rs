// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What failed and why

use std::fmt;
use std::io;

use bufshare_protocol::status::Status;
use rustix::io::Errno;

/// What [`Device::open`](crate::Device::open) tries.
pub(crate) const OPEN: &str = "open the bufshare device";
/// What [`Device::export`](crate::Device::export) tries.
pub(crate) const EXPORT: &str = "export the buffer";

/// Result of most functions of this crate
pub type Result<T> = std::result::Result<T, Error>;

/// What failed and why
///
/// Displayed as one line, for example `cannot import the buffer: there is no
/// such buffer for this VM: unknown, revoked or not granted (NOT_FOUND)`.
/// What to do about it is for the program to say, in its users' terms.
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

    /// An ioctl failed that reports the host's status.
    pub(crate) fn of_host(op: &'static str, errno: io::Error, status: u32) -> Self {
        let status = Status::from_wire(status).filter(|status| *status != Status::Ok);
        Self { op, errno, status }
    }

    /// The driver's answer makes no sense.
    pub(crate) fn nonsense(op: &'static str) -> Self {
        Self::new(op, Errno::PROTO)
    }

    /// The exporter revoked the buffer while it was in use.
    pub(crate) fn revoked(op: &'static str, errno: Errno) -> Self {
        Self {
            op,
            errno: errno.into(),
            status: Some(Status::Revoked),
        }
    }

    /// Whether the buffer's memory is gone: the exporter revoked it, or the
    /// device that showed it is gone.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.status == Some(Status::Revoked)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "cannot {}: {status} ({})", self.op, status.name()),
            None => {
                write!(f, "cannot {}: {}", self.op, self.errno)?;
                // The driver's reason; the host's refusals have a status.
                match Errno::from_io_error(&self.errno) {
                    Some(Errno::ACCESS) if self.op == EXPORT => {
                        f.write_str(": the dma-buf is open for reading only")
                    }
                    Some(Errno::PERM) if self.op == EXPORT => {
                        f.write_str(": the dma-buf is an import of another VM's buffer")
                    }
                    _ => Ok(()),
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

    #[test]
    fn text_names_operation_and_reason() {
        let error = Error::of_host("import the buffer", Errno::NOENT.into(), 5);
        assert_eq!(
            error.to_string(),
            "cannot import the buffer: there is no such buffer for this VM: unknown, revoked or \
             not granted (NOT_FOUND)"
        );
    }

    #[test]
    fn text_without_status_is_the_errno() {
        let error = Error::of_host("open the bufshare device", Errno::NOENT.into(), 0);
        assert_eq!(error.status, None);
        assert_eq!(
            error.to_string(),
            "cannot open the bufshare device: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn a_refused_read_only_export_says_that_it_is() {
        let text = Error::of_host(EXPORT, Errno::ACCESS.into(), 0).to_string();
        assert!(text.ends_with("open for reading only"), "{text}");
        let text = Error::of_host(EXPORT, Errno::PERM.into(), 0).to_string();
        assert!(text.ends_with("import of another VM's buffer"), "{text}");
        let text = Error::of_host("open /dev/bufshare", Errno::ACCESS.into(), 0).to_string();
        assert!(text.ends_with("(os error 13)"), "{text}");
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
