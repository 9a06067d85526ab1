// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A card's own memory with a copy of a picture in it, for cards that cannot show
//! the picture where it is.

use std::rc::Rc;

use bufshare::{Image, Mapping, Plane, Rights};
use drm::buffer::{Buffer as _, DrmFourcc};
use drm::control::dumbbuffer::DumbBuffer;
use drm::control::{Device as _, framebuffer};

use crate::drm::{Card, Head, Size, fit};
use crate::failure::{Failure, Result};
use crate::fourcc::{Fourcc, pixel_bytes};

/// A dumb buffer of a screen's size.
pub(crate) struct Canvas {
    card: Rc<Card>,
    buffer: DumbBuffer,
    pub(crate) framebuffer: framebuffer::Handle,
    size: Size,
    fourcc: u32,
    pixel: usize,
    /// Bytes copied into it so far.
    pub(crate) copied: u64,
}

impl Canvas {
    /// Black, of this size, for pictures in the pixel format `fourcc` of DRM.
    pub(crate) fn new(head: &Head, size: Size, fourcc: u32) -> Result<Self> {
        let format = Fourcc(fourcc);
        let unknown = || {
            Failure::new(format!(
                "{}: pictures in pixel format {format} cannot be copied to a screen",
                head.name
            ))
        };
        let pixel = pixel_bytes(format).ok_or_else(unknown)?;
        let drm_format = DrmFourcc::try_from(fourcc).map_err(|_| unknown())?;
        let bits = u32::from(pixel).saturating_mul(8);
        let buffer = head
            .card
            .create_dumb_buffer(size, drm_format, bits)
            .map_err(|e| Failure::io(format!("{}: make a dumb buffer", head.name), &e))?;
        let plane = Plane::new(0, buffer.pitch(), size.1);
        let image = Image::new(fourcc, size.0, size.1).plane(plane);
        let framebuffer = match head.framebuffer(buffer.handle(), &image) {
            Ok(framebuffer) => framebuffer,
            Err(failure) => {
                // Its error would hide the reason.
                let _ = head.card.destroy_dumb_buffer(buffer);
                return Err(failure);
            }
        };
        Ok(Self {
            card: Rc::clone(&head.card),
            buffer,
            framebuffer,
            size,
            fourcc,
            pixel: pixel.into(),
            copied: 0,
        })
    }

    /// Copies a picture into the middle, scaled down if it is too large. The rest
    /// stays black, as long as all pictures have the same size.
    pub(crate) fn paint(&mut self, source: &Mapping, image: &Image) -> Result<()> {
        let plane = image
            .planes
            .first()
            .filter(|_| image.fourcc == self.fourcc)
            .ok_or_else(|| Failure::new("its pixel format is not that of the frames before"))?;
        let picture = (image.width, image.height);
        let shown = fit(picture, self.size);
        let place = Place {
            left: middle(self.size.0, shown.0),
            top: middle(self.size.1, shown.1),
        };
        let pitch = usize::try_from(self.buffer.pitch()).unwrap_or(usize::MAX);
        let mut map = self
            .card
            .map_dumb_buffer(&mut self.buffer)
            .map_err(|e| Failure::io("map a dumb buffer", &e))?;
        let outside = || Failure::new("the picture does not fit its memory");
        let access = source.begin(Rights::READ)?;
        let mut line = vec![0; line_bytes(image, plane, self.pixel).ok_or_else(outside)?];
        for row in 0..shown.1 {
            let from = u64::from(scaled(row, picture.1, shown.1))
                .saturating_mul(plane.stride.into())
                .saturating_add(plane.offset);
            access.read_at(usize::try_from(from).map_err(|_| outside())?, &mut line)?;
            let to = place
                .start(row, pitch, self.pixel)
                .and_then(|start| map.get_mut(start..)?.get_mut(..bytes(shown.0, self.pixel)))
                .ok_or_else(outside)?;
            copy_row(&line, to, self.pixel, image.width, shown.0);
            self.copied = self.copied.saturating_add(to.len() as u64);
        }
        access.finish()?;
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
            let plane = Plane::new(0, stride, rows);
            line_bytes(&Image::new(1, width, height), &plane, 4)
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
