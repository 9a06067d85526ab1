// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Metadata of a buffer: name, image, opaque bytes

use alloc::vec::Vec;

use crate::limits::{MAX_BLOB, MAX_FRAME_BUFFERS, MAX_PLANES};
use crate::status::Status;
use crate::types::Name;
use crate::wire;

/// What a reader of metadata has to know: planes are in several buffers of a frame.
pub const KNOW_BUFFERS: u32 = 0x1;

/// Flag of a stream: no frame comes any more in this epoch.
pub const STREAM_ENDED: u32 = 0x1;

/// One plane of an image
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Plane {
    /// Bytes from the start of the buffer.
    pub offset: u64,
    /// Bytes per row.
    pub stride: u32,
    /// Rows of this plane.
    pub rows: u32,
    /// Which of the buffers of a frame it is in; 0: this one, the first.
    pub buffer: u32,
}

impl Plane {
    /// Offset of the byte after the plane, `None` if there is no such offset.
    #[must_use]
    pub fn end(self) -> Option<u64> {
        let len = u64::from(self.stride).checked_mul(u64::from(self.rows))?;
        self.offset.checked_add(len)
    }
}

/// What the pixels mean
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Image {
    /// DRM fourcc, not zero.
    pub fourcc: u32,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// DRM format modifier.
    pub modifier: u64,
    /// 1 to [`MAX_PLANES`] planes.
    pub planes: Vec<Plane>,
}

impl Image {
    /// Whether every plane that is in this buffer, of `size` bytes, ends within it.
    ///
    /// ```
    /// use bufshare_protocol::types::{Image, Plane};
    /// let plane = Plane { offset: 4096, stride: 256, rows: 16, buffer: 0 };
    /// let image = Image { fourcc: 1, planes: vec![plane], ..Image::default() };
    /// assert!(image.fits(8192));
    /// assert!(!image.fits(8191));
    /// ```
    #[must_use]
    pub fn fits(&self, size: u64) -> bool {
        let mut own = self.planes.iter().filter(|plane| plane.buffer == 0);
        own.all(|plane| plane.end().is_some_and(|end| end <= size))
    }

    /// Whether each plane ends within the buffer that it is in, of those of a frame, which
    /// have these sizes, bytes.
    #[must_use]
    pub fn fits_frame(&self, sizes: &[u64]) -> bool {
        self.planes.iter().all(|plane| {
            let buffer = usize::try_from(plane.buffer).ok();
            let size = buffer.and_then(|buffer| sizes.get(buffer));
            size.is_some_and(|size| plane.end().is_some_and(|end| end <= *size))
        })
    }

    /// What a reader has to know to make sense of it.
    fn must_know(&self) -> u32 {
        if self.planes.iter().any(|plane| plane.buffer != 0) {
            KNOW_BUFFERS
        } else {
            0
        }
    }

    /// `None` if `raw` says "not an image".
    fn from_wire(raw: &wire::Image) -> Result<Option<Self>, Status> {
        if raw.planes.iter().any(|plane| plane.reserved != 0) {
            return Err(Status::Unsupported);
        }
        if raw.fourcc == 0 {
            return if *raw == wire::Image::default() {
                Ok(None)
            } else {
                Err(Status::BadMeta)
            };
        }
        let count = usize::try_from(raw.num_planes).map_err(|_| Status::BadMeta)?;
        let (used, unused) = raw.planes.split_at_checked(count).ok_or(Status::BadMeta)?;
        let last = MAX_FRAME_BUFFERS.saturating_sub(1);
        let apart = |plane: &wire::Plane| usize::try_from(plane.buffer).is_ok_and(|n| n <= last);
        if used.is_empty()
            || !used.iter().all(apart)
            || unused.iter().any(|plane| *plane != wire::Plane::default())
        {
            return Err(Status::BadMeta);
        }
        Ok(Some(Self {
            fourcc: raw.fourcc,
            width: raw.width,
            height: raw.height,
            modifier: raw.modifier,
            planes: used
                .iter()
                .map(|plane| Plane {
                    offset: plane.offset,
                    stride: plane.stride,
                    rows: plane.rows,
                    buffer: plane.buffer,
                })
                .collect(),
        }))
    }

    /// Planes beyond [`MAX_PLANES`] are counted but left out, so that the
    /// receiver refuses the image.
    fn to_wire(&self) -> wire::Image {
        let mut planes = [wire::Plane::default(); MAX_PLANES];
        for (raw, plane) in planes.iter_mut().zip(&self.planes) {
            *raw = wire::Plane {
                offset: plane.offset,
                stride: plane.stride,
                rows: plane.rows,
                buffer: plane.buffer,
                reserved: 0,
            };
        }
        wire::Image {
            fourcc: self.fourcc,
            num_planes: u32::try_from(self.planes.len()).unwrap_or(u32::MAX),
            width: self.width,
            height: self.height,
            modifier: self.modifier,
            planes,
        }
    }
}

/// What metadata says of a stream alone
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct StreamState {
    /// Another at each start of its producer.
    pub epoch: u64,
    /// No frame comes any more in this epoch.
    pub ended: bool,
}

/// Metadata of a buffer or a stream
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Meta {
    /// For people.
    pub name: Name,
    /// The image in the buffer, or in each frame of the stream, if it is one.
    pub image: Option<Image>,
    /// Opaque bytes, at most [`MAX_BLOB`].
    pub blob: Vec<u8>,
    /// As it is by default of a buffer.
    pub stream: StreamState,
}

impl Meta {
    /// Checks the head of metadata; returns the length of the blob.
    ///
    /// # Errors
    /// [`Status::MetaTooLarge`] if the blob is over [`MAX_BLOB`],
    /// [`Status::Unsupported`] if a reader has to know what is not known here.
    pub(crate) fn blob_len(raw: &wire::Meta) -> Result<usize, Status> {
        if raw.must_know & !KNOW_BUFFERS != 0 || raw.flags & !STREAM_ENDED != 0 || raw.reserved != 0
        {
            return Err(Status::Unsupported);
        }
        match usize::try_from(raw.blob_len) {
            Ok(len) if len <= MAX_BLOB => Ok(len),
            _ => Err(Status::MetaTooLarge),
        }
    }

    /// Checks metadata that somebody wants to set.
    ///
    /// # Errors
    /// [`Status::MetaTooLarge`] if the blob is over [`MAX_BLOB`],
    /// [`Status::BadLength`] if `blob` is not as long as `raw` says,
    /// [`Status::Unsupported`] if it says more than is known here, [`Status::BadMeta`] if the
    /// name or the image is not well-formed.
    pub fn from_wire(raw: &wire::Meta, blob: &[u8]) -> Result<Self, Status> {
        if Self::blob_len(raw)? != blob.len() {
            return Err(Status::BadLength);
        }
        let meta = Self {
            name: Name::from_wire(&raw.name)?,
            image: Image::from_wire(&raw.image)?,
            blob: Vec::from(blob),
            stream: StreamState {
                epoch: raw.epoch,
                ended: raw.flags & STREAM_ENDED != 0,
            },
        };
        // Else readers who do not know it would make another image of it.
        (meta.must_know() == raw.must_know)
            .then_some(meta)
            .ok_or(Status::BadMeta)
    }

    /// Makes sense of metadata that an answer gave, which may come from somebody who knows
    /// more: an image that cannot be understood is none.
    ///
    /// # Errors
    /// As [`from_wire`](Self::from_wire), but [`Status::Unsupported`].
    pub fn understood(raw: &wire::Meta, blob: &[u8]) -> Result<Self, Status> {
        let known = raw.must_know & !KNOW_BUFFERS == 0;
        let mut raw = *raw;
        if !known {
            (raw.image, raw.must_know) = (wire::Image::default(), 0);
        }
        for plane in &mut raw.image.planes {
            plane.reserved = 0;
        }
        (raw.flags, raw.reserved) = (raw.flags & STREAM_ENDED, 0);
        let known = raw;
        Self::from_wire(&known, blob)
    }

    /// The head as it goes over the wire and to the kernel; the blob follows.
    #[must_use]
    pub fn to_wire(&self) -> wire::Meta {
        wire::Meta {
            name: self.name.to_wire(),
            image: self.image.as_ref().map(Image::to_wire).unwrap_or_default(),
            blob_len: u32::try_from(self.blob.len()).unwrap_or(u32::MAX),
            must_know: self.must_know(),
            epoch: self.stream.epoch,
            flags: if self.stream.ended { STREAM_ENDED } else { 0 },
            reserved: 0,
        }
    }

    fn must_know(&self) -> u32 {
        self.image.as_ref().map_or(0, Image::must_know)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_whose_end_overflows_does_not_fit() {
        let far = Plane {
            offset: u64::MAX,
            stride: 1,
            rows: 1,
            buffer: 0,
        };
        let image = Image {
            fourcc: 1,
            planes: Vec::from([far]),
            ..Image::default()
        };
        assert!(!image.fits(u64::MAX));
    }

    #[test]
    fn image_that_a_newer_reader_has_to_explain_is_none() {
        let plane = wire::Plane {
            stride: 4,
            rows: 1,
            reserved: 1,
            ..wire::Plane::default()
        };
        let mut raw = wire::Meta::default();
        raw.image.fourcc = 1;
        raw.image.num_planes = 1;
        raw.image.planes[0] = plane;
        assert_eq!(Meta::from_wire(&raw, &[]), Err(Status::Unsupported));
        assert!(Meta::understood(&raw, &[]).unwrap().image.is_some());
        raw.must_know = 2;
        assert_eq!(Meta::from_wire(&raw, &[]), Err(Status::Unsupported));
        assert_eq!(Meta::understood(&raw, &[]), Ok(Meta::default()));
    }

    #[test]
    fn planes_of_several_buffers_are_said_to_those_who_may_not_know() {
        let plane = |buffer| Plane {
            stride: 4,
            rows: 2,
            buffer,
            ..Plane::default()
        };
        let image = |buffers: &[u32]| Meta {
            image: Some(Image {
                fourcc: 1,
                planes: buffers.iter().map(|buffer| plane(*buffer)).collect(),
                ..Image::default()
            }),
            ..Meta::default()
        };
        let apart = image(&[0, 1]);
        let raw = apart.to_wire();
        assert_eq!(raw.must_know, KNOW_BUFFERS);
        assert_eq!(Meta::from_wire(&raw, &[]).as_ref(), Ok(&apart));
        let silent = wire::Meta {
            must_know: 0,
            ..raw
        };
        assert_eq!(Meta::from_wire(&silent, &[]), Err(Status::BadMeta));
        let whole = image(&[0, 0]).to_wire();
        assert_eq!(whole.must_know, 0);
        let loud = wire::Meta {
            must_know: KNOW_BUFFERS,
            ..whole
        };
        assert_eq!(Meta::from_wire(&loud, &[]), Err(Status::BadMeta));
        let beyond = image(&[4]).to_wire();
        assert_eq!(Meta::from_wire(&beyond, &[]), Err(Status::BadMeta));

        let image = apart.image.unwrap();
        assert!(image.fits(8) && !image.fits(7));
        assert!(image.fits_frame(&[8, 8]) && image.fits_frame(&[9, 8, 1]));
        assert!(!image.fits_frame(&[8, 7]) && !image.fits_frame(&[8]));
    }

    #[test]
    fn image_with_bad_plane_count_is_refused() {
        for count in [0, 5, u32::MAX] {
            let raw = wire::Image {
                fourcc: 1,
                num_planes: count,
                ..wire::Image::default()
            };
            assert_eq!(Image::from_wire(&raw), Err(Status::BadMeta), "{count}");
        }
    }

    #[test]
    fn image_without_fourcc_must_be_all_zero() {
        let raw = wire::Image {
            width: 1,
            ..wire::Image::default()
        };
        assert_eq!(Image::from_wire(&raw), Err(Status::BadMeta));
        assert_eq!(Image::from_wire(&wire::Image::default()), Ok(None));
    }
}
