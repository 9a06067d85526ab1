// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A card's own memory with a copy of a picture in it, for cards that cannot show the picture
//! where it is

use std::rc::Rc;

use drm::buffer::{Buffer as _, DrmFourcc};
use drm::control::dumbbuffer::DumbBuffer;
use drm::control::{Device as _, framebuffer};

use super::card::{Card, Head, Size, fit};
use super::{Memory, Rows};
use crate::error::{Error, Result};
use crate::fourcc::{Fourcc, pixel_bytes};
use crate::image::{Image, LINEAR, Plane};

/// A dumb buffer of a screen's size.
#[derive(Debug)]
pub(super) struct Canvas {
    card: Rc<Card>,
    buffer: DumbBuffer,
    pub(super) framebuffer: framebuffer::Handle,
    size: Size,
    pixel: usize,
    /// Bytes copied into it so far.
    pub(super) copied: u64,
}

impl Canvas {
    /// Black, of this size, for pictures in the pixel format `fourcc` of DRM.
    pub(super) fn new(head: &Head, size: Size, fourcc: Fourcc) -> Result<Self> {
        let unknown = || {
            Error::new(format!(
                "{}: pictures in pixel format {fourcc} cannot be copied to a screen",
                head.name
            ))
        };
        let pixel = pixel_bytes(fourcc).ok_or_else(unknown)?;
        let drm_format = DrmFourcc::try_from(fourcc.0).map_err(|_| unknown())?;
        let bits = u32::from(pixel).saturating_mul(8);
        let buffer = head
            .card
            .create_dumb_buffer(size, drm_format, bits)
            .map_err(|e| Error::io(format!("{}: make a dumb buffer", head.name), e))?;
        let plane = Plane {
            buffer: 0,
            offset: 0,
            stride: buffer.pitch(),
            rows: size.1,
        };
        let image = Image {
            fourcc,
            width: size.0,
            height: size.1,
            modifier: LINEAR,
            planes: vec![plane],
        };
        let framebuffer = match head.framebuffer(&[buffer.handle()], &image) {
            Ok(framebuffer) => framebuffer,
            Err(error) => {
                // Its error would hide the reason.
                let _ = head.card.destroy_dumb_buffer(buffer);
                return Err(error);
            }
        };
        Ok(Self {
            card: Rc::clone(&head.card),
            buffer,
            framebuffer,
            size,
            pixel: pixel.into(),
            copied: 0,
        })
    }

    /// Copies a picture into the middle, scaled down if it is too large. The rest
    /// stays black, as long as all pictures have the same size. They have the pixel format that it
    /// was made for.
    pub(super) fn paint(&mut self, source: &dyn Memory, image: &Image) -> Result<()> {
        let plane = image
            .planes
            .first()
            .ok_or_else(|| Error::new("it has no plane"))?;
        let picture = (image.width, image.height);
        let shown = fit(picture, self.size);
        let place = Place {
            left: middle(self.size.0, shown.0),
            top: middle(self.size.1, shown.1),
        };
        let pitch = usize::try_from(self.buffer.pitch()).unwrap_or(usize::MAX);
        let pixel = self.pixel;
        let mut map = self
            .card
            .map_dumb_buffer(&mut self.buffer)
            .map_err(|e| Error::io("map a dumb buffer", e))?;
        let outside = || Error::new("the picture does not fit its memory");
        let rows = Rows {
            buffer: plane.buffer,
            first: plane.offset,
            stride: plane.stride.into(),
            len: line_bytes(image, plane, pixel).ok_or_else(outside)?,
        };
        let mut row = 0..shown.1;
        let mut numbers = row.clone().map(|row| scaled(row, picture.1, shown.1));
        let mut copied = 0_u64;
        source.read_rows(rows, &mut numbers, &mut |line| {
            let to = row
                .next()
                .and_then(|row| place.start(row, pitch, pixel))
                .and_then(|start| map.get_mut(start..)?.get_mut(..bytes(shown.0, pixel)))
                .ok_or_else(outside)?;
            copy_row(line, to, pixel, image.width, shown.0);
            copied = copied.saturating_add(to.len() as u64);
            Ok(())
        })?;
        self.copied = self.copied.saturating_add(copied);
        Ok(())
    }
}

impl Drop for Canvas {
    fn drop(&mut self) {
        // Both only fail if they are gone already, with the card.
        let _ = self.card.destroy_framebuffer(self.framebuffer);
        let _ = self.card.destroy_dumb_buffer(self.buffer);
    }
}

/// Where on the screen.
struct Place {
    left: u32,
    top: u32,
}

impl Place {
    /// The first byte of a row.
    fn start(&self, row: u32, pitch: usize, pixel: usize) -> Option<usize> {
        let row = usize::try_from(self.top.checked_add(row)?).ok()?;
        row.checked_mul(pitch)?.checked_add(bytes(self.left, pixel))
    }
}

fn middle(room: u32, length: u32) -> u32 {
    room.saturating_sub(length) / 2
}

fn bytes(pixels: u32, pixel: usize) -> usize {
    usize::try_from(pixels)
        .unwrap_or(usize::MAX)
        .saturating_mul(pixel)
}

/// The bytes of a row of pixels. None: the plane, which another machine describes, does not
/// hold so many, or so many rows.
fn line_bytes(image: &Image, plane: &Plane, pixel: usize) -> Option<usize> {
    let row = bytes(image.width, pixel);
    let stride = usize::try_from(plane.stride).ok()?;
    let holds = image.height != 0 && image.height <= plane.rows && row <= stride;
    holds.then_some(row)
}

/// Which of `source` rows or columns is seen as number `at` of `shown`.
fn scaled(at: u32, source: u32, shown: u32) -> u32 {
    let at = u64::from(at).saturating_mul(source.into());
    u32::try_from(at.checked_div(shown.into()).unwrap_or(0)).unwrap_or(u32::MAX)
}

/// Copies a row of pixels, leaving some out if there are more than fit.
fn copy_row(from: &[u8], to: &mut [u8], pixel: usize, source: u32, shown: u32) {
    if source == shown {
        to.copy_from_slice(from);
        return;
    }
    for (column, to) in (0u32..).zip(to.chunks_exact_mut(pixel)) {
        let start = bytes(scaled(column, source, shown), pixel);
        let found = from.get(start..).and_then(|rest| rest.get(..pixel));
        if let Some(found) = found {
            to.copy_from_slice(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_copied_or_thinned_out() {
        let row = *b"aabbccddeeff";
        let mut same = [0; 12];
        copy_row(&row, &mut same, 2, 6, 6);
        assert_eq!(same, row);
        let mut half = [0; 6];
        copy_row(&row, &mut half, 2, 6, 3);
        assert_eq!(&half, b"aaccee");
        let mut four = [0; 8];
        copy_row(&row, &mut four, 2, 6, 4);
        assert_eq!(&four, b"aabbddee");
    }

    #[test]
    fn a_row_longer_than_its_plane_is_not_allocated() {
        let of = |width, height, stride, rows| {
            let plane = Plane {
                buffer: 0,
                offset: 0,
                stride,
                rows,
            };
            let image = Image {
                fourcc: Fourcc::new(b"XR24"),
                width,
                height,
                modifier: LINEAR,
                planes: vec![plane],
            };
            line_bytes(&image, &plane, 4)
        };
        assert_eq!(of(640, 480, 2560, 480), Some(2560));
        assert_eq!(of(640, 480, 4096, 500), Some(2560));
        assert_eq!(of(641, 480, 2560, 480), None);
        assert_eq!(of(640, 481, 2560, 480), None);
        assert_eq!(of(u32::MAX, 1, 4, 1), None);
        // Without rows a plane has no bytes, whatever its stride is.
        assert_eq!(of(1 << 29, 0, u32::MAX, 0), None);
    }

    #[test]
    fn a_picture_is_in_the_middle() {
        let place = Place {
            left: middle(640, 160),
            top: middle(480, 120),
        };
        assert_eq!((place.left, place.top), (240, 180));
        assert_eq!(place.start(0, 2560, 4), Some(180 * 2560 + 960));
        assert_eq!(place.start(119, 2560, 4), Some(299 * 2560 + 960));
        assert_eq!(place.start(0, usize::MAX, 4), None);
        assert_eq!(middle(1, 3), 0);
    }
}
