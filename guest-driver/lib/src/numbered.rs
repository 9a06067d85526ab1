// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Enums of what has a number in the C header, of which a newer host or driver may have more

/// Defines an enum with the variants that the protocol's `$wire` has, but for `$other`, and one
/// for every other number.
///
/// That no variant is left out is checked by the compiler.
macro_rules! numbered {
    (
        $(#[$doc:meta])*
        $name:ident of $wire:ident $(but $other:ident)?:
        $($(#[$variant_doc:meta])* $variant:ident;)+
    ) => {
        $(#[$doc])*
        ///
        /// A later version of this library may give a number of [`Unknown`](Self::Unknown) a
        /// variant of its own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
            /// One that this version of the library does not know, by its number.
            Unknown(u32),
        }

        impl $name {
            /// Every one that this version of the library knows, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            pub(crate) fn from_number(number: u32) -> Self {
                match $wire::from_wire(number) {
                    $(Some($wire::$variant) => Self::$variant,)+
                    $(Some($wire::$other) => Self::Unknown(number),)?
                    None => Self::Unknown(number),
                }
            }

            /// The number in the C header.
            #[must_use]
            pub fn number(self) -> u32 {
                match self {
                    $(Self::$variant => $wire::$variant.to_wire(),)+
                    Self::Unknown(number) => number,
                }
            }

            /// `None`: its number has no name here.
            fn to_protocol(self) -> Option<$wire> {
                match self {
                    $(Self::$variant => Some($wire::$variant),)+
                    Self::Unknown(_) => None,
                }
            }
        }
    };
}

pub(crate) use numbered;

#[cfg(test)]
mod tests {
    use crate::{EventKind, Status, Way};

    macro_rules! check {
        ($($name:ident),+) => {$(
            assert!($name::ALL.is_sorted_by(|a, b| a.number() < b.number()));
            for known in $name::ALL {
                assert_eq!($name::from_number(known.number()), *known);
            }
        )+};
    }

    #[test]
    fn all_are_in_the_order_of_their_numbers_and_found_by_them() {
        check!(EventKind, Status, Way);
    }
}
