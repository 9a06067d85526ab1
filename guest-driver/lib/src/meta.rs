// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Metadata of a buffer: name, image, opaque bytes

use bufshare_protocol::types;

use crate::Name;

/// One plane of an image
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Plane {
    /// Bytes from the start of the buffer.
    pub offset: u64,
    /// Bytes per row.
    pub stride: u32,
    /// Rows of this plane.
    pub rows: u32,
    /// Which of the buffers of a [frame](crate::Push::buffers) it is in; 0: this one, the first.
    pub buffer: u32,
}

impl Plane {
    /// A plane of `rows` rows of `stride` bytes, from `offset` bytes on.
    #[must_use]
    pub fn new(offset: u64, stride: u32, rows: u32) -> Self {
        Self {
            offset,
            stride,
            rows,
            buffer: 0,
        }
    }

    /// The plane is in this one of the buffers of a frame, 0 to 3.
    #[must_use]
    pub fn buffer(mut self, buffer: u32) -> Self {
        self.buffer = buffer;
        self
    }

    fn to_protocol(&self) -> types::Plane {
        types::Plane {
            offset: self.offset,
            stride: self.stride,
            rows: self.rows,
            buffer: self.buffer,
        }
    }

    fn from_protocol(plane: &types::Plane) -> Self {
        Self::new(plane.offset, plane.stride, plane.rows).buffer(plane.buffer)
    }
}

/// What the pixels in a buffer mean, in the terms of DRM
///
/// ```
/// use bufshare::{Image, Plane};
/// let xrgb = u32::from_le_bytes(*b"XR24");
/// let image = Image::new(xrgb, 640, 480).plane(Plane::new(0, 2560, 480));
/// assert!(image.fits(1_228_800));
/// assert!(!image.fits(1_228_799));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Image {
    /// DRM fourcc, not 0.
    pub fourcc: u32,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// DRM format modifier; 0 is `DRM_FORMAT_MOD_LINEAR`.
    pub modifier: u64,
    /// 1 to 4 planes. An image with none or more is refused by the call that it is passed to
    /// ([`BadMeta`](crate::Status::BadMeta)).
    pub planes: Vec<Plane>,
}

impl Image {
    /// A linear image of `width` times `height` pixels that has no plane yet.
    #[must_use]
    pub fn new(fourcc: u32, width: u32, height: u32) -> Self {
        Self {
            fourcc,
            width,
            height,
            modifier: 0,
            planes: Vec::new(),
        }
    }

    /// Sets the DRM format modifier.
    #[must_use]
    pub fn modifier(mut self, modifier: u64) -> Self {
        self.modifier = modifier;
        self
    }

    /// Adds the next plane.
    #[must_use]
    pub fn plane(mut self, plane: Plane) -> Self {
        self.planes.push(plane);
        self
    }

    /// Whether every plane is in this buffer, of `size` bytes, and ends within it.
    #[must_use]
    pub fn fits(&self, size: u64) -> bool {
        self.fits_frame(&[size])
    }

    /// Whether every plane is in one of a frame's buffers, of these sizes, bytes, and ends
    /// within it. Of a frame that was [pushed](crate::PushedFrame), nobody else has seen to that:
    /// its exporter may have changed the image since.
    #[must_use]
    pub fn fits_frame(&self, sizes: &[u64]) -> bool {
        self.to_protocol().fits_frame(sizes)
    }

    fn to_protocol(&self) -> types::Image {
        types::Image {
            fourcc: self.fourcc,
            width: self.width,
            height: self.height,
            modifier: self.modifier,
            planes: self.planes.iter().map(Plane::to_protocol).collect(),
        }
    }

    fn from_protocol(image: &types::Image) -> Self {
        Self {
            fourcc: image.fourcc,
            width: image.width,
            height: image.height,
            modifier: image.modifier,
            planes: image.planes.iter().map(Plane::from_protocol).collect(),
        }
    }
}

/// What an exporter says of a buffer besides its bytes
///
/// ```
/// use bufshare::{Meta, Name};
/// let meta = Meta::new().name(Name::new("frame 1")?).blob(b"opaque");
/// assert_eq!(meta.blob.len(), 6);
/// # Ok::<(), bufshare::InvalidName>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Meta {
    /// For people.
    pub name: Name,
    /// The image in the buffer, if it is one.
    pub image: Option<Image>,
    /// Bytes that only the programs understand, at most
    /// [`Info::max_blob`](crate::Info::max_blob).
    pub blob: Vec<u8>,
    /// Of a [stream](crate::Stream) another number at each start of its producer; else 0.
    pub epoch: u64,
    /// Of a [stream](crate::Stream): no frame comes any more in this epoch.
    pub ended: bool,
}

impl Meta {
    /// No name, no image, no bytes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the name.
    #[must_use]
    pub fn name(mut self, name: Name) -> Self {
        self.name = name;
        self
    }

    /// Says that the buffer holds this image.
    #[must_use]
    pub fn image(mut self, image: Image) -> Self {
        self.image = Some(image);
        self
    }

    /// Sets the bytes that only the programs understand.
    #[must_use]
    pub fn blob(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.blob = bytes.into();
        self
    }

    /// Sets the epoch of a stream.
    #[must_use]
    pub fn epoch(mut self, epoch: u64) -> Self {
        self.epoch = epoch;
        self
    }

    /// Says whether a stream has ended.
    #[must_use]
    pub fn ended(mut self, ended: bool) -> Self {
        self.ended = ended;
        self
    }

    pub(crate) fn to_protocol(&self) -> types::Meta {
        types::Meta {
            name: self.name.to_protocol(),
            image: self.image.as_ref().map(Image::to_protocol),
            blob: self.blob.clone(),
            stream: types::StreamState {
                epoch: self.epoch,
                ended: self.ended,
            },
        }
    }

    pub(crate) fn from_protocol(meta: types::Meta) -> Self {
        Self {
            name: Name::from_protocol(meta.name),
            image: meta.image.as_ref().map(Image::from_protocol),
            blob: meta.blob,
            epoch: meta.stream.epoch,
            ended: meta.stream.ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_passes_through_the_protocol_as_it_is() {
        let image = Image::new(875_713_112, 64, 32)
            .modifier(7)
            .plane(Plane::new(4096, 256, 32))
            .plane(Plane::new(16384, 128, 16));
        let meta = Meta::new()
            .name(Name::new("frame").unwrap())
            .image(image)
            .blob([1, 2, 3])
            .epoch(7)
            .ended(true);
        for meta in [meta, Meta::new()] {
            assert_eq!(Meta::from_protocol(meta.to_protocol()), meta);
        }
    }
}
