// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Metadata of a buffer: name, image, opaque bytes

use alloc::vec::Vec;

use crate::limits::{MAX_BLOB, MAX_PLANES};
use crate::status::Status;
use crate::types::Name;
use crate::wire;

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
    /// Whether every plane ends within a buffer of `size` bytes.
    ///
    /// ```
    /// use bufshare_protocol::types::{Image, Plane};
    /// let plane = Plane { offset: 4096, stride: 256, rows: 16 };
    /// let image = Image { fourcc: 1, planes: vec![plane], ..Image::default() };
    /// assert!(image.fits(8192));
    /// assert!(!image.fits(8191));
    /// ```
    #[must_use]
    pub fn fits(&self, size: u64) -> bool {
        self.planes
            .iter()
            .all(|plane| plane.end().is_some_and(|end| end <= size))
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
        if used.is_empty() || unused.iter().any(|plane| *plane != wire::Plane::default()) {
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

/// Metadata of a buffer
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Meta {
    /// For people.
    pub name: Name,
    /// The image in the buffer, if it is one.
    pub image: Option<Image>,
    /// Opaque bytes, at most [`MAX_BLOB`].
    pub blob: Vec<u8>,
}

impl Meta {
    /// Checks the head of metadata; returns the length of the blob.
    ///
    /// # Errors
    /// [`Status::MetaTooLarge`] if the blob is over [`MAX_BLOB`],
    /// [`Status::Unsupported`] if a reader has to know what is not known here.
    pub(crate) fn blob_len(raw: &wire::Meta) -> Result<usize, Status> {
        if raw.must_know != 0 {
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
        Ok(Self {
            name: Name::from_wire(&raw.name)?,
            image: Image::from_wire(&raw.image)?,
            blob: Vec::from(blob),
        })
    }

    /// Makes sense of metadata that an answer gave, which may come from somebody who knows
    /// more: an image that cannot be understood is none.
    ///
    /// # Errors
    /// As [`from_wire`](Self::from_wire), but [`Status::Unsupported`].
    pub fn understood(raw: &wire::Meta, blob: &[u8]) -> Result<Self, Status> {
        let mut image = if raw.must_know == 0 {
            raw.image
        } else {
            wire::Image::default()
        };
        for plane in &mut image.planes {
            plane.reserved = 0;
        }
        let known = wire::Meta {
            image,
            must_know: 0,
            ..*raw
        };
        Self::from_wire(&known, blob)
    }

    /// The head as it goes over the wire and to the kernel; the blob follows.
    #[must_use]
    pub fn to_wire(&self) -> wire::Meta {
        wire::Meta {
            name: self.name.to_wire(),
            image: self.image.as_ref().map(Image::to_wire).unwrap_or_default(),
            blob_len: u32::try_from(self.blob.len()).unwrap_or(u32::MAX),
            must_know: 0,
        }
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
