// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a command failed, for people and for programs.

use std::fmt;
use std::io;

use bufshare::Status;
use serde::Serialize;

use crate::advice;

/// Result of most functions here.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// One reason, ready to be printed.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    errno: Option<i32>,
    status: Option<Status>,
    /// The reader of our output is gone.
    unread: bool,
}

/// A failure as JSON.
#[derive(Serialize)]
struct Json<'a> {
    error: &'a str,
    errno: Option<i32>,
    status: Option<&'a str>,
}

impl Failure {
    /// One of our own making.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            errno: None,
            status: None,
            unread: false,
        }
    }

    /// Of the system: what was tried, and what came of it.
    pub(crate) fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        Self {
            message: format!("{what}: {error}"),
            errno: error.raw_os_error(),
            status: None,
            unread: false,
        }
    }

    /// Of the standard output.
    pub(crate) fn stdout(error: &io::Error) -> Self {
        Self {
            unread: error.kind() == io::ErrorKind::BrokenPipe,
            ..Self::io("cannot write to the standard output", error)
        }
    }

    /// Of the library: its error, and what is to be said of it.
    fn by_library(error: &bufshare::Error, message: &dyn fmt::Display) -> Self {
        Self {
            errno: error.errno.raw_os_error(),
            status: error.status,
            unread: false,
            message: match advice::on(error) {
                "" => message.to_string(),
                advice => format!("{message}. {advice}"),
            },
        }
    }

    /// A wait that took too long.
    pub(crate) fn timeout(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            errno: Some(libc::ETIMEDOUT),
            status: None,
            unread: false,
        }
    }

    /// A buffer that we need does not exist any more.
    pub(crate) fn revoked(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            errno: None,
            status: Some(Status::Revoked),
            unread: false,
        }
    }

    /// Says what it was about.
    pub(crate) fn about(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Says what helps.
    pub(crate) fn hint(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{}; {what}", self.message);
        self
    }

    /// The host's reason.
    pub(crate) fn status(&self) -> Option<Status> {
        self.status
    }

    /// The reader of our output is gone, which is not worth a word.
    pub(crate) fn is_unread_output(&self) -> bool {
        self.unread
    }

    /// One JSON object.
    pub(crate) fn to_json(&self) -> String {
        let json = Json {
            error: &self.message,
            errno: self.errno,
            status: self.status.map(Status::name),
        };
        serde_json::to_string(&json).unwrap_or_else(|_| "{\"error\":\"unprintable\"}".to_owned())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self {
            errno: error.raw_os_error(),
            status: None,
            message: error.to_string(),
            unread: false,
        }
    }
}

/// Also of what the library said when it was called for it.
impl From<bufshare_media::Error> for Failure {
    fn from(error: bufshare_media::Error) -> Self {
        let cause = error.cause();
        let by_library = cause
            .and_then(io::Error::get_ref)
            .and_then(|cause| cause.downcast_ref::<bufshare::Error>());
        match by_library {
            Some(library) => Self::by_library(library, &error),
            None => Self {
                message: error.to_string(),
                errno: cause.and_then(io::Error::raw_os_error),
                status: None,
                unread: false,
            },
        }
    }
}

impl From<bufshare::Error> for Failure {
    fn from(error: bufshare::Error) -> Self {
        Self::by_library(&error, &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_library_gets_the_commands_advice() {
        let error = bufshare::Device::open_at("/nonexistent/bufshare").unwrap_err();
        assert_eq!(
            Failure::from(error).to_string(),
            "cannot open the bufshare device: No such file or directory (os error 2). Check that \
             the machine has the device and that the module virtio_bufshare is loaded"
        );
    }

    #[test]
    fn what_the_library_said_to_a_screen_keeps_its_number_and_its_advice() {
        let error = bufshare::Device::open_at("/nonexistent/bufshare").unwrap_err();
        let direct = Failure::from(error);
        let error = bufshare::Device::open_at("/nonexistent/bufshare").unwrap_err();
        let error = bufshare_media::Error::io("read the picture", io::Error::other(error));
        let failure = Failure::from(error);
        assert_eq!(failure.errno, Some(libc::ENOENT));
        assert_eq!(failure.to_string(), format!("read the picture: {direct}"));
    }

    #[test]
    fn only_an_output_without_reader_is_not_worth_a_word() {
        let broken = io::Error::from_raw_os_error(libc::EPIPE);
        assert!(Failure::stdout(&broken).is_unread_output());
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        assert!(!Failure::stdout(&full).is_unread_output());
        // So a USB camera says that it stalls.
        assert!(!Failure::io("/dev/video0: start", &broken).is_unread_output());
        assert!(!Failure::from(broken).is_unread_output());
    }

    #[test]
    fn json_has_the_three_members() {
        let failure = Failure {
            message: "no \"such\" buffer".to_owned(),
            errno: Some(2),
            status: Some(Status::NotFound),
            unread: false,
        };
        assert_eq!(
            failure.about("import").to_json(),
            r#"{"error":"import: no \"such\" buffer","errno":2,"status":"NOT_FOUND"}"#
        );
        assert_eq!(
            Failure::new("x").to_json(),
            r#"{"error":"x","errno":null,"status":null}"#
        );
    }
}
