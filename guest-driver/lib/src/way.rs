// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the exporter's bytes become visible here

use std::fmt;

use bufshare_protocol::types::Way as Wire;

use crate::numbered::numbered;

numbered! {
    /// How an import reaches the exporter's bytes; the host chooses it
    ///
    /// Made to be shown to people; [`Properties`](crate::Properties) say what holds. Source:
    /// `VIRTIO_BUFSHARE_WAY_*` of `virtio_bufshare.h`.
    Way of Wire but None:
    /// This VM's VMM maps the exporter's RAM itself, piece by piece.
    Direct;
    /// This VM's VMM maps a dma-buf of the host, of just the shared pages.
    Udmabuf;
    /// This VM's VMM maps memory of the host.
    Pool;
    /// This VM's VMM maps memory of the host that gets a copy.
    CopyWindow;
    /// RAM of this VM gets a copy.
    CopyGuest;
}

impl Way {
    /// Those whose bits are set.
    pub(crate) fn all_of(bits: u32) -> Vec<Self> {
        let set = (0..u32::BITS).filter(|way| bits & 1 << way != 0);
        set.map(Self::from_number).collect()
    }

    /// A word: `direct`, `udmabuf`, `pool`, `copy` or `copy-guest`; `unknown` for one that this
    /// version of the library does not know.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.to_protocol().map_or("unknown", Wire::name)
    }
}

impl fmt::Display for Way {
    /// Its [`name`](Self::name), with the number where there is no other.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(number) => f.pad(&format!("{}({number})", self.name())),
            known => f.pad(known.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_bits_is_a_list_of_ways() {
        let ways = [Way::Direct, Way::CopyGuest, Way::Unknown(31)];
        assert_eq!(Way::all_of(1 << 1 | 1 << 5 | 1 << 31), ways);
    }

    #[test]
    fn ways_keep_their_numbers_known_or_not() {
        for number in 1..8 {
            let way = Way::from_number(number);
            assert_eq!(way.number(), number);
            let known = Wire::from_wire(number);
            assert_eq!(way.name(), known.map_or("unknown", Wire::name));
            match known {
                Some(_) => assert_eq!(way.to_string(), way.name()),
                None => assert_eq!(way.to_string(), format!("unknown({number})")),
            }
        }
    }
}
