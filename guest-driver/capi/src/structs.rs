// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The structures of libbufshare.h; the tests of `header` have the compiler compare them

use std::ffi::{c_char, c_void};

use bufshare::{Meta, Name, Plane};
use bufshare_protocol::ioctl::{Access, Id, Image};
use bufshare_protocol::limits::NAME_LEN;

use crate::failure::{Failure, Result};
use crate::memory::Grows;

/// A name as C has it: at most 31 bytes and a NUL.
pub(crate) type CName = [u8; NAME_LEN];

pub(crate) fn name_to_c(name: Name) -> CName {
    let mut bytes = CName::default();
    for (to, from) in bytes.iter_mut().zip(name.as_str().bytes()) {
        *to = from;
    }
    bytes
}

pub(crate) fn name_of_c(text: Option<&str>) -> Result<Name> {
    Name::new(text.unwrap_or_default()).map_err(|error| Failure::invalid(&error.to_string()))
}

/// What has no meaning yet, and so may have one for a later version.
pub(crate) fn reserved(field: u32) -> Result<()> {
    match field {
        0 => Ok(()),
        _ => Err(Failure::invalid("a reserved field is not zero")),
    }
}

pub(crate) fn image_of_c(raw: &Image) -> Result<bufshare::Image> {
    let planes = usize::try_from(raw.num_planes).ok();
    let planes = planes.and_then(|planes| raw.planes.get(..planes));
    let planes = planes.filter(|planes| !planes.is_empty());
    let planes = planes.ok_or_else(|| Failure::invalid("an image has 1 to 4 planes"))?;
    for plane in planes {
        reserved(plane.reserved)?;
    }
    let image = bufshare::Image::new(raw.fourcc, raw.width, raw.height).modifier(raw.modifier);
    Ok(planes.iter().fold(image, |image, raw| {
        image.plane(Plane::new(raw.offset, raw.stride, raw.rows).buffer(raw.buffer))
    }))
}

pub(crate) fn image_to_c(image: &bufshare::Image) -> Image {
    let mut raw = Image {
        fourcc: image.fourcc,
        num_planes: u32::try_from(image.planes.len()).unwrap_or_default(),
        width: image.width,
        height: image.height,
        modifier: image.modifier,
        ..Image::default()
    };
    for (raw, plane) in raw.planes.iter_mut().zip(&image.planes) {
        raw.offset = plane.offset;
        raw.stride = plane.stride;
        raw.rows = plane.rows;
        raw.buffer = plane.buffer;
    }
    raw
}

/// Bytes of a field.
const fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

// `to`: the last field that the first version had.
macro_rules! structs {
    ($($name:ident = $c:literal to $last:ident { $($field:ident: $type:ty,)+ })+) => {
        $(
            #[doc = concat!("`struct ", $c, "`")]
            #[repr(C)]
            #[derive(Clone, Copy, Debug)]
            pub(crate) struct $name {
                $(pub(crate) $field: $type,)+
            }

            // SAFETY: numbers, addresses and arrays of numbers alone, with the size first.
            unsafe impl Grows for $name {
                #[allow(clippy::arithmetic_side_effects, reason = "of a constant")]
                const SIZE_VER0: usize = std::mem::offset_of!($name, $last)
                    + size_of_field(|all: &$name| &all.$last);
            }
        )+

        /// The layout: of each structure its bytes, and those of its first version; of each of its
        /// fields where it begins and its bytes.
        #[cfg(test)]
        pub(crate) fn layout() -> String {
            let mut lines = String::new();
            $(
                let (size, first) = (size_of::<$name>(), $name::SIZE_VER0);
                lines += &format!("struct {} {size} {first}\n", $c);
                $(
                    let offset = std::mem::offset_of!($name, $field);
                    let length = size_of::<$type>();
                    lines += &format!("\t{} {offset} {length}\n", stringify!($field));
                )+
            )+
            lines
        }

        /// Assertions in C that the header says the same.
        #[cfg(test)]
        pub(crate) fn assertions() -> String {
            let mut c = String::new();
            $(
                let size = std::mem::size_of::<$name>();
                c += &format!("_Static_assert(sizeof(struct {}) == {size}, \"{}\");\n", $c, $c);
                $(
                    let field = concat!($c, ", ", stringify!($field));
                    let offset = std::mem::offset_of!($name, $field);
                    let length = std::mem::size_of::<$type>();
                    c += &format!("_Static_assert(offsetof(struct {field}) == {offset}, \"{field}\");\n");
                    c += &format!(
                        "_Static_assert(sizeof(((struct {} *)0)->{}) == {length}, \"{field}\");\n",
                        $c, stringify!($field)
                    );
                )+
            )+
            c
        }
    };
}

structs! {
    DeviceInfo = "bufshare_device_info" to name {
        size: u32,
        version: u32,
        caps: u32,
        max_windows: u32,
        windows_used: u32,
        max_buffers: u32,
        max_attachments: u32,
        map_align: u32,
        max_buffer_size: u64,
        shm_size: u64,
        peer_id: u64,
        name: CName,
    }
    PeerInfo = "bufshare_peer_info" to name {
        size: u32,
        up: u32,
        id: u64,
        export_rights: u32,
        import_rights: u32,
        name: CName,
    }
    BufferInfo = "bufshare_buffer_info" to name {
        size: u32,
        flags: u32,
        id: Id,
        stream: Id,
        owner: u64,
        bytes: u64,
        generation: u64,
        meta_seq: u64,
        rights: u32,
        fourcc: u32,
        attachments: u32,
        reserved: u32,
        name: CName,
    }
    ExportOptions = "bufshare_export_options" to reserved {
        size: u32,
        num_access: u32,
        access: *const Access,
        name: *const c_char,
        image: *const Image,
        blob: *const c_void,
        blob_len: u32,
        reserved: u32,
    }
    ImportInfo = "bufshare_import_info" to properties {
        size: u32,
        rights: u32,
        bytes: u64,
        owner: u64,
        generation: u64,
        way: u32,
        properties: u32,
    }
    MetaInfo = "bufshare_meta_info" to name {
        size: u32,
        flags: u32,
        seq: u64,
        epoch: u64,
        image: Image,
        blob_len: u32,
        reserved: u32,
        name: CName,
    }
    EventInfo = "bufshare_event_info" to value {
        size: u32,
        kind: u32,
        seq: u64,
        peer: u64,
        id: Id,
        handle: u64,
        generation: u64,
        value: u64,
    }
    ProducerOptions = "bufshare_producer_options" to epoch {
        size: u32,
        slots: u32,
        path: *const c_char,
        name: *const c_char,
        image: *const Image,
        sizes: *const u64,
        num_sizes: u32,
        max_held: u32,
        access: *const Access,
        num_access: u32,
        blob_len: u32,
        blob: *const c_void,
        epoch: u64,
    }
    ProducerEvent = "bufshare_producer_event" to arrival {
        size: u32,
        kind: u32,
        slot: u32,
        reserved: u32,
        frame: u64,
        peer: u64,
        arrival: u64,
    }
    ConsumerOptions = "bufshare_consumer_options" to reserved {
        size: u32,
        flags: u32,
        path: *const c_char,
        peer: *const c_char,
        name: *const c_char,
        id: *const Id,
        max_windows: u32,
        reserved: u32,
    }
    ConsumerEvent = "bufshare_consumer_event" to error {
        size: u32,
        kind: u32,
        frame: *mut crate::consumer::CFrame,
        id: Id,
        number: u64,
        epoch: u64,
        ended: u32,
        error: i32,
    }
}

pub(crate) fn meta_to_c(seq: u64, meta: &Meta) -> MetaInfo {
    let flag = |is, flag| if is { flag } else { 0 };
    let image = meta.image.as_ref();
    MetaInfo {
        size: 0,
        flags: flag(image.is_some(), META_INFO_IMAGE) | flag(meta.ended, META_INFO_ENDED),
        seq,
        epoch: meta.epoch,
        image: image.map(image_to_c).unwrap_or_default(),
        blob_len: u32::try_from(meta.blob.len()).unwrap_or(u32::MAX),
        reserved: 0,
        name: name_to_c(meta.name),
    }
}

macro_rules! consts {
    ($($name:ident = $value:expr;)+) => {
        $(pub(crate) const $name: u32 = $value;)+

        /// The values.
        #[cfg(test)]
        pub(crate) fn values() -> String {
            [$(format!("BUFSHARE_{} {}\n", stringify!($name), $name)),+].concat()
        }

        /// Assertions in C that the header says the same.
        #[cfg(test)]
        pub(crate) fn const_assertions() -> String {
            let mut c = String::new();
            $(
                let (name, value) = (stringify!($name), $value);
                c += &format!("_Static_assert(BUFSHARE_{name} == {value}, \"{name}\");\n");
            )+
            c
        }
    };
}

consts! {
    BUFFER_INFO_OWNED = 1;
    BUFFER_INFO_STREAM = 2;
    META_INFO_IMAGE = 1;
    META_INFO_ENDED = 2;
    PRODUCER_OTHER = 0;
    PRODUCER_RETURNED = 1;
    PRODUCER_LEFT = 2;
    PRODUCER_LOST = 3;
    PRODUCER_ENDED = 4;
    CONSUMER_WRITE = 1;
    CONSUMER_REJOIN = 2;
    CONSUMER_OTHER = 0;
    CONSUMER_JOINED = 1;
    CONSUMER_RECORD = 2;
    CONSUMER_FRAME = 3;
    CONSUMER_REJECTED = 4;
    CONSUMER_REVOKED = 5;
    CONSUMER_REFUSED = 6;
    CONSUMER_OVER = 7;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::refused;

    #[test]
    fn metadata_is_told_whole() {
        let image = bufshare::Image::new(1, 64, 32).plane(Plane::new(8, 256, 32).buffer(1));
        let meta = Meta::new().name(Name::new("frames").unwrap()).image(image);
        let raw = meta_to_c(5, &meta.epoch(7).blob([1, 2]));
        assert_eq!((raw.flags, raw.seq), (META_INFO_IMAGE, 5));
        assert_eq!(
            (raw.epoch, raw.blob_len, &raw.name[..7]),
            (7, 2, &b"frames\0"[..])
        );
        assert_eq!((raw.image.width, raw.image.planes[0].buffer), (64, 1));
        let none = meta_to_c(0, &Meta::new().ended(true));
        assert_eq!((none.flags, none.image.num_planes), (META_INFO_ENDED, 0));
    }

    #[test]
    fn an_image_has_planes_and_nothing_unknown() {
        let mut image = Image {
            num_planes: 2,
            ..Image::default()
        };
        assert_eq!(image_of_c(&image).unwrap().planes.len(), 2);
        image.planes[1].reserved = 1;
        refused(image_of_c(&image).unwrap_err().keep(), "reserved");
        for planes in [0, 5] {
            image.num_planes = planes;
            refused(image_of_c(&image).unwrap_err().keep(), "1 to 4 planes");
        }
    }
}
