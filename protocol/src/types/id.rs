// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names of buffers

use core::fmt;
use core::str::FromStr;

use crate::limits::ID_LEN;
use crate::wire;

/// Name of a buffer: 128 random bits made by the device
///
/// Written as 32 hexadecimal digits.
///
/// ```
/// use bufshare_protocol::types::BufferId;
/// let id: BufferId = "000102030405060708090a0b0c0d0e0f".parse()?;
/// assert_eq!(id.0[15], 15);
/// assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0e0f");
/// # Ok::<(), bufshare_protocol::types::ParseIdError>(())
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BufferId(pub [u8; ID_LEN]);

impl BufferId {
    /// Never the name of a buffer.
    pub const ZERO: Self = Self([0; ID_LEN]);

    pub(crate) const fn from_wire(raw: &wire::Id) -> Self {
        Self(raw.b)
    }

    /// The id as it goes over the wire and to the kernel.
    #[must_use]
    pub const fn to_wire(self) -> wire::Id {
        wire::Id { b: self.0 }
    }

    /// Whether this is [`BufferId::ZERO`].
    #[must_use]
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }
}

impl fmt::Display for BufferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BufferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferId({self})")
    }
}

/// A text is not 32 hexadecimal digits
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseIdError;

impl fmt::Display for ParseIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a buffer id is 32 hexadecimal digits")
    }
}

impl core::error::Error for ParseIdError {}

impl FromStr for BufferId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let mut digits = text
            .chars()
            .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()));
        let mut digit = || digits.next().flatten().ok_or(ParseIdError);
        let mut id = Self::ZERO;
        for byte in &mut id.0 {
            *byte = (digit()? << 4) | digit()?;
        }
        match digits.next() {
            None => Ok(id),
            Some(_) => Err(ParseIdError),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn id_other_than_32_digits_is_refused() {
        let good = "00112233445566778899aAbBcCdDeEfF";
        assert_eq!(
            good.parse::<BufferId>().unwrap().to_string(),
            good.to_lowercase()
        );
        for bad in [
            "",
            &good[1..],
            &(good.to_string() + "0"),
            &good.replace('0', "g"),
        ] {
            assert_eq!(bad.parse::<BufferId>(), Err(ParseIdError), "{bad}");
        }
    }
}
