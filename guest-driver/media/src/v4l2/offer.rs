// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a camera can give, what to take of it, and what its pictures are for others

use super::{Format, Queue};
use crate::error::{Error, Result};
use crate::fourcc::{self, Fourcc, Layout, ShownBy};
use crate::image::{Image, LINEAR, NO_DRM_LAYOUT, Plane};

/// The size that is asked for where none is wanted: every webcam has it.
const USUAL_SIZE: (u32, u32) = (640, 480);

/// The pixel formats of a camera
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Those that its driver lists.
    pub all: Vec<Fourcc>,
    /// The one that is set.
    pub present: Fourcc,
}

/// A pixel format to set
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// V4L2's.
    pub format: Fourcc,
    /// Who shows it; `None` if it was asked for.
    pub shown_by: Option<ShownBy>,
}

impl Offer {
    /// Asks the driver.
    pub fn of(queue: &Queue) -> Result<Self> {
        Ok(Self {
            all: queue
                .formats()
                .map_err(|e| Error::io("list the pixel formats", e))?,
            present: queue
                .format()
                .map_err(|e| Error::io("ask for the present pixel format", e))?,
        })
    }

    /// The format to set: the one that is wanted; else the one that screens show best; else, if
    /// none does, the present one.
    pub fn choose(&self, wanted: Option<Fourcc>) -> Result<Choice> {
        if let Some(format) = wanted {
            return if self.all.contains(&format) {
                Ok(Choice {
                    format,
                    shown_by: None,
                })
            } else {
                Err(Error::new(format!(
                    "no pixel format {format}, only {}",
                    self.names()
                )))
            };
        }
        let mut known = fourcc::shown().filter(|(format, _)| self.all.contains(format));
        let (format, shown_by) = known.next().unwrap_or((self.present, ShownBy::NoCard));
        Ok(Choice {
            format,
            shown_by: Some(shown_by),
        })
    }

    /// The formats that are listed, for people.
    #[must_use]
    pub fn names(&self) -> String {
        if self.all.is_empty() {
            return "what its driver does not list".to_owned();
        }
        let names: Vec<String> = self.all.iter().map(ToString::to_string).collect();
        names.join(" ")
    }
}

impl Queue {
    /// Sets the format, and the size exactly if one is wanted, pixels across and down; else 640
    /// times 480 or the nearest.
    pub fn agree(&mut self, size: Option<(u32, u32)>, format: Fourcc) -> Result<Format> {
        let (width, height) = size.unwrap_or(USUAL_SIZE);
        let found = self
            .set_format(width, height, format)
            .map_err(|e| Error::io("set the format", e))?;
        let other_size = size.is_some() && (found.width, found.height) != (width, height);
        if !other_size && found.fourcc == format {
            return Ok(found);
        }
        let offer = match self.sizes(format) {
            Ok(sizes) if sizes.is_empty() => String::new(),
            Ok(sizes) => {
                let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
                format!("; its driver lists {}", sizes.join(", "))
            }
            Err(error) => format!("; its driver does not list its sizes: {error}"),
        };
        Err(Error::new(format!(
            "gives {}x{} {} instead of {width}x{height} {format}{offer}",
            found.width, found.height, found.fourcc
        )))
    }
}

/// What a camera's picture is for others, by the terms of DRM. `offsets` are where it begins in
/// each of its memories, 0 where none is given. A format that has no DRM name here keeps its V4L2
/// code, which may mean something else in DRM: the modifier says that it is not meant. `None`: the
/// sizes make no sense.
#[must_use]
pub fn describe(format: &Format, offsets: &[u32]) -> Option<Image> {
    let begin = |memory: usize| u64::from(offsets.get(memory).copied().unwrap_or(0));
    let (fourcc, modifier, planes) = match Layout::of(format.fourcc) {
        None => (format.fourcc, NO_DRM_LAYOUT, unnamed(format, begin)?),
        Some(layout) => (layout.drm, LINEAR, named(format, layout, begin)?),
    };
    Some(Image {
        fourcc,
        width: format.width,
        height: format.height,
        modifier,
        planes,
    })
}

/// What is known without a layout: each memory is a plane.
fn unnamed(format: &Format, begin: impl Fn(usize) -> u64) -> Option<Vec<Plane>> {
    let planes = format.planes.iter().enumerate().map(|(memory, plane)| {
        let offset = begin(memory);
        // The stride is 0 if it has no rows, as a compressed picture.
        let bytes = u64::from(plane.size).saturating_sub(offset);
        let rows = bytes.checked_div(plane.stride.into());
        let rows = rows.and_then(|rows| u32::try_from(rows).ok());
        Some(Plane {
            buffer: u32::try_from(memory).ok()?,
            offset,
            stride: plane.stride,
            rows: rows.map_or(0, |rows| rows.min(format.height)),
        })
    });
    planes.collect()
}

/// The planes one behind the other in one memory, or each in its own.
fn named(format: &Format, layout: &Layout, begin: impl Fn(usize) -> u64) -> Option<Vec<Plane>> {
    let memories = if layout.apart { layout.planes.len() } else { 1 };
    if format.planes.len() != memories {
        return None;
    }
    let mut planes = Vec::new();
    let mut end = begin(0);
    for (number, (numerator, denominator, rows)) in layout.planes.iter().enumerate() {
        // The last row of chroma is there, too, where it has half as many rows.
        let rows = format
            .height
            .checked_add(rows.checked_sub(1)?)?
            .checked_div(*rows)?;
        let plane = if layout.apart {
            Plane {
                buffer: u32::try_from(number).ok()?,
                offset: begin(number),
                stride: format.planes.get(number)?.stride,
                rows,
            }
        } else {
            Plane {
                buffer: 0,
                offset: end,
                stride: format
                    .stride()
                    .checked_mul(*numerator)?
                    .checked_div(*denominator)?,
                rows,
            }
        };
        end = end.checked_add(u64::from(plane.stride).checked_mul(u64::from(rows))?)?;
        planes.push(plane);
    }
    Some(planes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v4l2::{Colour, PlaneFormat};

    fn offer(all: &[&[u8; 4]], present: &[u8; 4]) -> Offer {
        Offer {
            all: all.iter().map(|code| Fourcc::new(code)).collect(),
            present: Fourcc::new(present),
        }
    }

    fn chosen(all: &[&[u8; 4]], present: &[u8; 4]) -> (String, Option<ShownBy>) {
        let choice = offer(all, present).choose(None).unwrap();
        (choice.format.to_string(), choice.shown_by)
    }

    #[test]
    fn what_every_screen_shows_is_taken_first() {
        for (all, format) in [
            (&[b"YUYV", b"AR24", b"XR24", b"BGR4"][..], "XR24"),
            // The same bytes by another name.
            (&[b"MJPG", b"YUYV", b"BGR4"][..], "BGR4"),
        ] {
            let expected = (format.to_owned(), Some(ShownBy::AllCards));
            assert_eq!(chosen(all, b"YUYV"), expected);
        }
    }

    #[test]
    fn of_a_webcam_what_some_screens_show_is_taken() {
        // By whatever order its driver lists them, whatever is set.
        for (all, format) in [
            (&[b"MJPG", b"YUYV"][..], "YUYV"),
            (&[b"NV12", b"MJPG"][..], "NV12"),
            (&[b"MJPG", b"NV12", b"YUYV", b"H264"][..], "YUYV"),
            (&[b"GREY", b"YUYV"][..], "YUYV"),
            (&[b"YUYV", b"RGBP"][..], "RGBP"),
        ] {
            let expected = (format.to_owned(), Some(ShownBy::SomeCards));
            assert_eq!(chosen(all, b"MJPG"), expected);
        }
    }

    #[test]
    fn of_a_camera_whose_formats_no_screen_shows_the_present_one_is_taken() {
        let expected = ("MJPG".to_owned(), Some(ShownBy::NoCard));
        assert_eq!(chosen(&[b"H264", b"MJPG"], b"MJPG"), expected);
        // A driver that lists nothing has one all the same.
        assert_eq!(chosen(&[], b"MJPG"), expected);
        assert!(offer(&[], b"MJPG").names().contains("does not list"));
    }

    #[test]
    fn what_is_asked_for_is_taken_or_refused_with_all_that_there_is() {
        let webcam = offer(&[b"MJPG", b"YUYV"], b"YUYV");
        for code in [b"MJPG", b"YUYV"] {
            let choice = webcam.choose(Some(Fourcc::new(code))).unwrap();
            assert_eq!((choice.format, choice.shown_by), (Fourcc::new(code), None));
        }
        let error = webcam.choose(Some(Fourcc::new(b"XR24"))).unwrap_err();
        assert_eq!(error.to_string(), "no pixel format XR24, only MJPG YUYV");
    }

    fn vga(code: &[u8; 4], stride: u32, size: u32) -> Format {
        Format {
            width: 640,
            height: 480,
            fourcc: Fourcc::new(code),
            planes: vec![PlaneFormat { stride, size }],
            colour: Colour::default(),
        }
    }

    fn plane(offset: u64, stride: u32, rows: u32) -> Plane {
        Plane {
            buffer: 0,
            offset,
            stride,
            rows,
        }
    }

    #[test]
    fn a_format_without_a_drm_name_is_described_and_shown_by_nobody() {
        let of = |code, stride, size| describe(&vga(code, stride, size), &[]).unwrap();
        let jpeg = of(b"MJPG", 0, 614_400);
        assert_eq!(jpeg.fourcc, Fourcc::new(b"MJPG"));
        assert_eq!(jpeg.planes, [plane(0, 0, 0)]);
        // V4L2's is Bayer, DRM's is RGB565.
        let bayer = of(b"RG16", 1280, 614_400);
        assert_eq!(bayer.planes, [plane(0, 1280, 480)]);
        assert_eq!(of(b"RG16", 1280, 1280).planes, [plane(0, 1280, 1)]);
        for image in [jpeg, bayer] {
            assert!(image.unshowable().is_some());
        }
        let mut packed = of(b"XR24", 2560, 1_228_800);
        assert_eq!(packed.unshowable(), None);
        packed.modifier = 1;
        assert!(packed.unshowable().unwrap().contains("linear"));
    }

    #[test]
    fn a_packed_picture_has_one_plane() {
        let image = describe(&vga(b"XR24", 2560, 1_228_800), &[]).unwrap();
        assert_eq!(image.fourcc, Fourcc::new(b"XR24"));
        assert_eq!(image.planes, [plane(0, 2560, 480)]);
    }

    #[test]
    fn nv12_has_its_colours_behind_its_brightness() {
        let image = describe(&vga(b"NV12", 640, 460_800), &[]).unwrap();
        assert_eq!(image.planes[1], plane(307_200, 640, 240));
    }

    #[test]
    fn names_of_equal_layouts_meet() {
        let image = describe(&vga(b"BGR4", 2560, 1_228_800), &[]).unwrap();
        assert_eq!(image.fourcc, Fourcc::new(b"XR24"));
    }

    #[test]
    fn planes_of_one_memory_are_one_behind_the_other() {
        let image = describe(&vga(b"YU12", 640, 460_800), &[]).unwrap();
        let chroma = [plane(307_200, 320, 240), plane(384_000, 320, 240)];
        assert_eq!(image.planes[0], plane(0, 640, 480));
        assert_eq!(image.planes[1..], chroma);
        // Where the driver leaves room in front of them.
        let image = describe(&vga(b"NV16", 640, 614_528), &[128]).unwrap();
        assert_eq!(
            image.planes,
            [plane(128, 640, 480), plane(307_328, 640, 480)]
        );
    }

    #[test]
    fn the_chroma_of_an_odd_height_has_a_row_for_the_last_one() {
        let format = Format {
            height: 479,
            ..vga(b"YU12", 640, 460_160)
        };
        let image = describe(&format, &[]).unwrap();
        let rows = image.planes.iter().map(|plane| plane.rows);
        assert_eq!(rows.collect::<Vec<_>>(), [479, 240, 240]);
    }

    #[test]
    fn each_plane_is_in_its_memory_where_the_driver_begins_it() {
        let mut format = vga(b"NM16", 640, 307_328);
        // Its one memory is not what the format says.
        assert_eq!(describe(&format, &[]), None);
        format.planes.push(PlaneFormat {
            stride: 704,
            size: 337_920,
        });
        let image = describe(&format, &[128, 0]).unwrap();
        assert_eq!(image.fourcc, Fourcc::new(b"NV16"));
        let second = Plane {
            buffer: 1,
            ..plane(0, 704, 480)
        };
        assert_eq!(image.planes, [plane(128, 640, 480), second]);
        format.fourcc = Fourcc::new(b"XR24");
        assert_eq!(describe(&format, &[]), None);
        // One that is unknown here has as many, and is not shown.
        format.fourcc = Fourcc::new(b"VM12");
        let image = describe(&format, &[]).unwrap();
        assert_eq!(
            image.planes,
            [
                plane(0, 640, 480),
                Plane {
                    rows: 480,
                    ..second
                }
            ]
        );
        assert!(image.unshowable().is_some());
    }
}
