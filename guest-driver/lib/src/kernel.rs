// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest's kernel does not give the driver

use std::fmt;

/// Something that the driver cannot do on this kernel
///
/// [`Display`](fmt::Display) completes the sentence "This kernel cannot ...", the
/// consequence included.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MissingFeature {
    /// ALLOC's pieces are no larger than what the page allocator gives.
    ContiguousAlloc,
    /// Devices of dynamic importers are not refused after a revocation.
    RefusalWhenRevoked,
    /// The driver of an exported buffer may move it.
    FixedBacking,
    /// The device's PCI function is not reset while the driver is bound.
    FunctionReset,
    /// One that this version of the library does not know, by the driver's name for it.
    Other(String),
}

impl MissingFeature {
    /// The driver's name for it.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::ContiguousAlloc => "contiguous-alloc",
            Self::RefusalWhenRevoked => "refusal-when-revoked",
            Self::FixedBacking => "fixed-backing",
            Self::FunctionReset => "function-reset",
            Self::Other(name) => name,
        }
    }

    fn from_name(name: &str) -> Self {
        [
            Self::ContiguousAlloc,
            Self::RefusalWhenRevoked,
            Self::FixedBacking,
            Self::FunctionReset,
        ]
        .into_iter()
        .find(|known| known.name() == name)
        .unwrap_or_else(|| Self::Other(name.to_owned()))
    }

    /// Those in the driver's attribute: one name a line.
    pub(crate) fn parse(text: &str) -> Vec<Self> {
        text.lines()
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(Self::from_name)
            .collect()
    }
}

impl fmt::Display for MissingFeature {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ContiguousAlloc => to.write_str(
                "allocate pieces of more than 4 MiB: each piece of a buffer takes a window of its \
                 importers, unless the host has udmabuf",
            ),
            Self::RefusalWhenRevoked => to.write_str(
                "refuse a buffer that was revoked to a device that is attached dynamically: the \
                 device reads zeroes, and what it writes is lost",
            ),
            Self::FixedBacking => to.write_str(
                "keep a driver from moving a buffer of its own that is exported: the export ends \
                 when it does",
            ),
            Self::FunctionReset => to.write_str(
                "reset the device's PCI function (a write to its 'reset' in /sys) while the driver \
                 is bound: that says ENOTTY",
            ),
            Self::Other(name) => write!(
                to,
                "do '{}': this program is older than the driver and does not know the consequence",
                name.escape_default()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_a_feature() {
        assert_eq!(MissingFeature::parse(""), []);
        assert_eq!(
            MissingFeature::parse(
                "contiguous-alloc\nrefusal-when-revoked\nfixed-backing\nfunction-reset\n"
            ),
            [
                MissingFeature::ContiguousAlloc,
                MissingFeature::RefusalWhenRevoked,
                MissingFeature::FixedBacking,
                MissingFeature::FunctionReset,
            ]
        );
    }

    #[test]
    fn an_unknown_feature_keeps_its_name() {
        let features = MissingFeature::parse("\n a-new\u{1b}one \ncontiguous-alloc");
        let [new, old] = features.as_slice() else {
            panic!("{features:?}");
        };
        assert_eq!(new.name(), "a-new\u{1b}one");
        assert!(new.to_string().starts_with("do 'a-new\\u{1b}one': "));
        assert_eq!(*old, MissingFeature::ContiguousAlloc);
    }
}
