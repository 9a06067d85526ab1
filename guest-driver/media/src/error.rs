// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What was not done, and why

use std::fmt;
use std::io;

/// Result of functions that do several things
pub type Result<T> = std::result::Result<T, Error>;

/// What was not done, and why
///
/// Displayed as one line, for example `bochs-drm /dev/dri/card0 refuses the dma-buf: Invalid
/// argument (os error 22)`.
#[derive(Debug)]
pub struct Error {
    what: String,
    cause: Option<io::Error>,
}

impl Error {
    /// A reason of our own.
    pub fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            cause: None,
        }
    }

    /// What was tried, and what came of it.
    pub fn io(what: impl fmt::Display, cause: io::Error) -> Self {
        Self {
            what: what.to_string(),
            cause: Some(cause),
        }
    }

    /// What the system, or who gave us a function to call, said. `None`: it was not asked.
    #[must_use]
    pub fn cause(&self) -> Option<&io::Error> {
        self.cause.as_ref()
    }

    /// Puts what it was about in front.
    #[must_use]
    pub fn about(mut self, what: impl fmt::Display) -> Self {
        self.what = format!("{what}: {}", self.what);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.cause {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}

/// The cause is part of the text, and so no source of its own.
impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_with_its_cause() {
        let error = Error::io("open", io::Error::from_raw_os_error(libc::ENOENT)).about("card9");
        let text = error.to_string();
        assert!(text.starts_with("card9: open: No such file"), "{text}");
        let errno = error.cause().and_then(io::Error::raw_os_error);
        assert_eq!(errno, Some(libc::ENOENT));
        assert!(Error::new("no card").cause().is_none());
    }
}
