// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names for people

use std::fmt;
use std::str::FromStr;

use bufshare_protocol::limits::NAME_LEN;
use bufshare_protocol::types;

/// The name of a peer or of a buffer: a short text that is safe to print
///
/// UTF-8, at most 31 bytes, no control characters; it may be empty.
///
/// ```
/// use bufshare::Name;
/// let name = Name::new("camera 0")?;
/// assert_eq!(name.as_str(), "camera 0");
/// assert!(Name::new("\u{1b}[2J").is_err());
/// # Ok::<(), bufshare::InvalidName>(())
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(types::Name);

/// A text is longer than 31 bytes or has a control character
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidName;

impl Name {
    /// No name.
    pub const EMPTY: Self = Self(types::Name::EMPTY);

    /// Checks a text.
    ///
    /// # Errors
    /// It is longer than 31 bytes or has a control character.
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        types::Name::new(text).map(Self).map_err(|_| InvalidName)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether there is no text.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the driver put into a name field; `None` if that is no name.
    pub(crate) fn from_wire(raw: &[u8; NAME_LEN]) -> Option<Self> {
        types::Name::from_wire(raw).map(Self).ok()
    }

    pub(crate) fn from_protocol(name: types::Name) -> Self {
        Self(name)
    }

    pub(crate) fn to_protocol(self) -> types::Name {
        self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name is at most 31 bytes of UTF-8 without control characters")
    }
}

impl std::error::Error for InvalidName {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_is_as_long_as_the_text_of_the_error_says() {
        let long = "n".repeat(32);
        assert_eq!(Name::new(&long[..31]).unwrap().as_str(), &long[..31]);
        assert_eq!(Name::new(&long), Err(InvalidName));
        assert_eq!("a\nb".parse::<Name>(), Err(InvalidName));
    }
}
