// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names for people

use core::fmt;

use crate::limits::NAME_LEN;
use crate::status::Status;

/// A short text that is safe to print
///
/// UTF-8, at most 31 bytes, no control characters; on the wire NUL padded to
/// 32 bytes. May be empty.
///
/// ```
/// use bufshare_protocol::types::Name;
/// let name = Name::new("camera 0")?;
/// assert_eq!(name.as_str(), "camera 0");
/// assert!(Name::new("\u{1b}[2J").is_err());
/// # Ok::<(), bufshare_protocol::status::Status>(())
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(
    feature = "serde",
    serde(try_from = "[u8; NAME_LEN]", into = "[u8; NAME_LEN]")
)]
pub struct Name([u8; NAME_LEN]);

impl Name {
    /// No name.
    pub const EMPTY: Self = Self([0; NAME_LEN]);

    /// Checks a text.
    ///
    /// # Errors
    /// [`Status::BadMeta`] if it is too long or has a control character.
    pub fn new(text: &str) -> Result<Self, Status> {
        let mut name = Self::EMPTY;
        let Some((bytes, [_nul, ..])) = name.0.split_at_mut_checked(text.len()) else {
            return Err(Status::BadMeta);
        };
        if text.chars().any(char::is_control) {
            return Err(Status::BadMeta);
        }
        bytes.copy_from_slice(text.as_bytes());
        Ok(name)
    }

    /// Checks a name as it came over the wire or from the kernel.
    ///
    /// # Errors
    /// [`Status::BadMeta`] if it is not UTF-8, has a control character, lacks
    /// its closing NUL, or has anything behind that.
    pub fn from_wire(raw: &[u8; NAME_LEN]) -> Result<Self, Status> {
        let text = raw.split(|&byte| byte == 0).next().unwrap_or_default();
        let name = Self::new(core::str::from_utf8(text).map_err(|_| Status::BadMeta)?)?;
        if name.0 == *raw {
            Ok(name)
        } else {
            Err(Status::BadMeta)
        }
    }

    /// The name as it goes over the wire and to the kernel.
    #[must_use]
    pub const fn to_wire(self) -> [u8; NAME_LEN] {
        self.0
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let text = self.0.split(|&byte| byte == 0).next().unwrap_or_default();
        core::str::from_utf8(text).unwrap_or_default()
    }

    /// Whether there is no text.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }
}

impl TryFrom<[u8; NAME_LEN]> for Name {
    type Error = Status;

    fn try_from(raw: [u8; NAME_LEN]) -> Result<Self, Status> {
        Self::from_wire(&raw)
    }
}

impl From<Name> for [u8; NAME_LEN] {
    fn from(name: Name) -> Self {
        name.0
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_31_bytes_is_the_longest() {
        let longest = "äääääääääääääää1";
        assert_eq!(longest.len(), 31);
        assert_eq!(Name::new(longest).unwrap().as_str(), longest);
        assert_eq!(Name::new("äääääääääääääää12"), Err(Status::BadMeta));
        assert_eq!(Name::new("äääääääääääääää123456"), Err(Status::BadMeta));
    }

    #[test]
    fn name_bytes_that_are_not_a_padded_text_are_refused() {
        let mut raw = [0; NAME_LEN];
        assert_eq!(Name::from_wire(&raw), Ok(Name::EMPTY));
        raw[1] = b'x';
        assert_eq!(
            Name::from_wire(&raw),
            Err(Status::BadMeta),
            "behind the NUL"
        );
        assert_eq!(
            Name::from_wire(&[b'x'; NAME_LEN]),
            Err(Status::BadMeta),
            "no NUL"
        );
        raw[0] = 0xff;
        assert_eq!(Name::from_wire(&raw), Err(Status::BadMeta), "not UTF-8");
        raw[0] = b'\n';
        assert_eq!(Name::from_wire(&raw), Err(Status::BadMeta), "control");
    }
}
