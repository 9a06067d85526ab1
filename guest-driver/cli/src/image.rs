// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A picture as others are told of it, and as cameras and screens take it.

use std::io;

use bufshare::{Image, Mapping, Plane, Rights};
use bufshare_media::drm::{Memory, Rows};
use bufshare_media::fourcc::Fourcc;
use bufshare_media::{Error, Result, image};

/// For other machines.
pub(crate) fn to_metadata(picture: &image::Image) -> Image {
    let image = Image::new(picture.fourcc.0, picture.width, picture.height);
    let mut image = image.modifier(picture.modifier);
    for plane in &picture.planes {
        image =
            image.plane(Plane::new(plane.offset, plane.stride, plane.rows).buffer(plane.buffer));
    }
    image
}

/// For a screen.
pub(crate) fn from_metadata(image: &Image) -> image::Image {
    let plane = |plane: &Plane| image::Plane {
        buffer: plane.buffer,
        offset: plane.offset,
        stride: plane.stride,
        rows: plane.rows,
    };
    image::Image {
        fourcc: Fourcc(image.fourcc),
        width: image.width,
        height: image.height,
        modifier: image.modifier,
        planes: image.planes.iter().map(plane).collect(),
    }
}

/// The mapped memories of a picture.
pub(crate) struct Mapped<'a>(pub(crate) Vec<&'a Mapping>);

/// The library's error as the cause of another.
fn because(error: bufshare::Error) -> Error {
    Error::io("read the picture", io::Error::other(error))
}

impl Memory for Mapped<'_> {
    fn read_rows(
        &self,
        rows: Rows,
        numbers: &mut dyn Iterator<Item = u32>,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let memory = usize::try_from(rows.buffer).unwrap_or(usize::MAX);
        let memory = self.0.get(memory);
        let memory = memory.ok_or_else(|| Error::new("a plane is in no memory"))?;
        let access = memory.begin(Rights::READ).map_err(because)?;
        let mut line = vec![0; rows.len];
        for number in numbers {
            let start = usize::try_from(rows.start(number)).unwrap_or(usize::MAX);
            access.read_at_checked(start, &mut line).map_err(because)?;
            take(&line)?;
        }
        access.finish().map_err(because)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_comes_back_as_it_was() {
        let picture = image::Image {
            fourcc: Fourcc::new(b"NV12"),
            width: 640,
            height: 480,
            modifier: 7,
            planes: vec![
                image::Plane {
                    buffer: 0,
                    offset: 128,
                    stride: 640,
                    rows: 480,
                },
                image::Plane {
                    buffer: 1,
                    offset: 0,
                    stride: 640,
                    rows: 240,
                },
            ],
        };
        assert_eq!(from_metadata(&to_metadata(&picture)), picture);
    }
}
