// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Little-endian fields and the macros that make structs of them

use crate::layout::Struct;

/// Bytes not read yet. Behind the end there are zeros.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads `bytes` from their start.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((head, rest)) => {
                self.0 = rest;
                *head
            }
            None => {
                let mut value = [0; N];
                for (to, from) in value.iter_mut().zip(core::mem::take(&mut self.0)) {
                    *to = *from;
                }
                value
            }
        }
    }
}

/// Room not written yet. What is too much is lost.
#[derive(Debug)]
pub struct Writer<'a>(&'a mut [u8]);

impl<'a> Writer<'a> {
    /// Writes to `room` from its start.
    #[must_use]
    pub fn new(room: &'a mut [u8]) -> Self {
        Self(room)
    }

    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        let room = core::mem::take(&mut self.0);
        if room.len() < N {
            room.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        } else if let Some((head, rest)) = room.split_first_chunk_mut() {
            *head = bytes;
            self.0 = rest;
        }
    }
}

/// A value with a fixed length on the wire
pub trait Wire: Copy {
    /// Bytes on the wire.
    const LEN: usize;

    /// Takes the value off the front.
    fn read(reader: &mut Reader<'_>) -> Self;

    /// Appends the value.
    fn write(self, writer: &mut Writer<'_>);

    /// Takes so many values off the front.
    fn read_array<const N: usize>(reader: &mut Reader<'_>) -> [Self; N] {
        core::array::from_fn(|_| Self::read(reader))
    }

    /// Appends the values.
    fn write_array<const N: usize>(values: [Self; N], writer: &mut Writer<'_>) {
        for value in values {
            value.write(writer);
        }
    }

    /// Takes the value off the front of `bytes` and returns it with what follows,
    /// `None` if there are fewer than [`LEN`](Self::LEN).
    fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        if bytes.len() < Self::LEN {
            return None;
        }
        let mut reader = Reader::new(bytes);
        let value = Self::read(&mut reader);
        Some((value, reader.0))
    }

    /// The value in bytes of any length: what is missing counts as zeroes, and what is
    /// too much must be zeroes, else it says more than this code knows: `None`.
    fn grown(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let value = Self::read(&mut reader);
        let unknown = bytes.get(Self::LEN..).unwrap_or_default();
        unknown.iter().all(|byte| *byte == 0).then_some(value)
    }
}

macro_rules! wire_int {
    ($($int:ty),+) => {$(
        impl Wire for $int {
            const LEN: usize = size_of::<Self>();

            fn read(reader: &mut Reader<'_>) -> Self {
                Self::from_le_bytes(reader.take())
            }

            fn write(self, writer: &mut Writer<'_>) {
                writer.put(self.to_le_bytes());
            }
        }
    )+};
}

wire_int!(u16, u32, u64);

impl Wire for u8 {
    const LEN: usize = 1;

    fn read(reader: &mut Reader<'_>) -> Self {
        let [value] = reader.take();
        value
    }

    fn write(self, writer: &mut Writer<'_>) {
        writer.put([self]);
    }

    // Names and ids, in one piece.
    fn read_array<const N: usize>(reader: &mut Reader<'_>) -> [Self; N] {
        reader.take()
    }

    fn write_array<const N: usize>(values: [Self; N], writer: &mut Writer<'_>) {
        writer.put(values);
    }
}

impl<T: Wire, const N: usize> Wire for [T; N] {
    const LEN: usize = N * T::LEN;

    fn read(reader: &mut Reader<'_>) -> Self {
        T::read_array(reader)
    }

    fn write(self, writer: &mut Writer<'_>) {
        T::write_array(self, writer);
    }
}

/// A struct that a C header defines
pub trait Layout {
    /// Its row of the table [`LAYOUT`](crate::layout::LAYOUT).
    const LAYOUT: Struct;
}

/// Defines a struct with the layout of a C struct, and its row of the table.
macro_rules! layout_struct {
    ($(#[$doc:meta])* $name:ident = $c_name:literal {
        $($(#[$field_doc:meta])* $field:ident: $ty:ty,)+
    }) => {
        $(#[$doc])*
        #[doc = concat!("\n\n`struct ", $c_name, "`.")]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $ty,)+
        }

        impl $name {
            /// Bytes of the struct.
            pub const SIZE: usize = size_of::<Self>();
        }

        impl $crate::wire::Layout for $name {
            const LAYOUT: $crate::layout::Struct = $crate::layout::Struct {
                name: $c_name,
                size: Self::SIZE,
                fields: &[$($crate::layout::Field {
                    name: $crate::layout::plain(stringify!($field)),
                    offset: core::mem::offset_of!($name, $field),
                    size: size_of::<$ty>(),
                },)+],
            };
        }

        // No padding: the fields alone fill the struct.
        const _: () = assert!($name::SIZE == 0 $(+ size_of::<$ty>())+);
    };
}

/// As [`layout_struct`], with a codec to and from little endian.
macro_rules! wire_struct {
    ($(#[$doc:meta])* $name:ident = $c_name:literal {
        $($(#[$field_doc:meta])* $field:ident: $ty:ty,)+
    }) => {
        layout_struct! {
            $(#[$doc])* $name = $c_name {
                $($(#[$field_doc])* $field: $ty,)+
            }
        }

        impl $crate::wire::Wire for $name {
            const LEN: usize = Self::SIZE;

            fn read(reader: &mut $crate::wire::Reader<'_>) -> Self {
                Self { $($field: $crate::wire::Wire::read(reader),)+ }
            }

            fn write(self, writer: &mut $crate::wire::Writer<'_>) {
                $($crate::wire::Wire::write(self.$field, writer);)+
            }
        }

        impl $name {
            /// Decodes from little endian. Checks nothing.
            #[must_use]
            pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
                let mut reader = $crate::wire::Reader::new(bytes);
                $crate::wire::Wire::read(&mut reader)
            }

            /// Encodes to little endian.
            #[must_use]
            pub fn to_bytes(self) -> [u8; Self::SIZE] {
                let mut bytes = [0; Self::SIZE];
                $crate::wire::Wire::write(self, &mut $crate::wire::Writer::new(&mut bytes));
                bytes
            }
        }
    };
}

pub(crate) use {layout_struct, wire_struct};
