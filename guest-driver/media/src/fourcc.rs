// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Four-character codes
//!
//! V4L2 and DRM each have their own; one memory layout often has two names, and one name may mean
//! two layouts.

use std::fmt;
use std::str::FromStr;

/// A four-character code as the kernel's headers make it
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fourcc(pub u32);

impl Fourcc {
    /// The code of four characters.
    #[must_use]
    pub const fn new(code: &[u8; 4]) -> Self {
        Self(u32::from_le_bytes(*code))
    }
}

impl fmt::Display for Fourcc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.to_le_bytes();
        if bytes.iter().all(|b| b.is_ascii_graphic() || *b == b' ') {
            let text: String = bytes.iter().map(|b| char::from(*b)).collect();
            f.write_str(text.trim_end())
        } else {
            write!(f, "{:#010x}", self.0)
        }
    }
}

impl fmt::Debug for Fourcc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Rows of each plane and their strides, as fractions of the picture's:
/// (stride numerator, stride denominator, row denominator).
type PlaneShape = (u32, u32, u32);

/// One memory layout under its V4L2 and its DRM name.
pub(crate) struct Layout {
    pub(crate) v4l2: Fourcc,
    pub(crate) drm: Fourcc,
    names: &'static [&'static str],
    pub(crate) planes: &'static [PlaneShape],
    /// Each plane is in a memory of its own.
    pub(crate) apart: bool,
}

impl Layout {
    /// The one of a V4L2 pixel format.
    pub(crate) fn of(v4l2: Fourcc) -> Option<&'static Self> {
        LAYOUTS.iter().find(|layout| layout.v4l2 == v4l2)
    }
}

const PACKED: &[PlaneShape] = &[(1, 1, 1)];
const SEMI_420: &[PlaneShape] = &[(1, 1, 1), (1, 1, 2)];
const SEMI_422: &[PlaneShape] = &[(1, 1, 1), (1, 1, 1)];
const PLANAR_420: &[PlaneShape] = &[(1, 1, 1), (1, 2, 2), (1, 2, 2)];

/// DRM names say the bits of a little-endian word, V4L2's the bytes in memory. Best for a
/// screen first: each pixel its colour, then shared colours, then none.
const LAYOUTS: &[Layout] = &[
    // B G R x in memory
    Layout {
        v4l2: Fourcc::new(b"XR24"),
        drm: Fourcc::new(b"XR24"),
        names: &["XRGB8888"],
        planes: PACKED,
        apart: false,
    },
    Layout {
        v4l2: Fourcc::new(b"BGR4"),
        drm: Fourcc::new(b"XR24"),
        names: &["BGR32"],
        planes: PACKED,
        apart: false,
    },
    // B G R A
    Layout {
        v4l2: Fourcc::new(b"AR24"),
        drm: Fourcc::new(b"AR24"),
        names: &["ARGB8888"],
        planes: PACKED,
        apart: false,
    },
    // R G B x
    Layout {
        v4l2: Fourcc::new(b"XB24"),
        drm: Fourcc::new(b"XB24"),
        names: &["XBGR8888"],
        planes: PACKED,
        apart: false,
    },
    // R G B A
    Layout {
        v4l2: Fourcc::new(b"AB24"),
        drm: Fourcc::new(b"AB24"),
        names: &["ABGR8888"],
        planes: PACKED,
        apart: false,
    },
    // x R G B
    Layout {
        v4l2: Fourcc::new(b"BX24"),
        drm: Fourcc::new(b"BX24"),
        names: &["BGRX8888"],
        planes: PACKED,
        apart: false,
    },
    // R G B
    Layout {
        v4l2: Fourcc::new(b"RGB3"),
        drm: Fourcc::new(b"BG24"),
        names: &["BGR888"],
        planes: PACKED,
        apart: false,
    },
    // B G R
    Layout {
        v4l2: Fourcc::new(b"BGR3"),
        drm: Fourcc::new(b"RG24"),
        names: &["RGB888"],
        planes: PACKED,
        apart: false,
    },
    Layout {
        v4l2: Fourcc::new(b"RGBP"),
        drm: Fourcc::new(b"RG16"),
        names: &["RGB565"],
        planes: PACKED,
        apart: false,
    },
    Layout {
        v4l2: Fourcc::new(b"YUYV"),
        drm: Fourcc::new(b"YUYV"),
        names: &[],
        planes: PACKED,
        apart: false,
    },
    Layout {
        v4l2: Fourcc::new(b"UYVY"),
        drm: Fourcc::new(b"UYVY"),
        names: &[],
        planes: PACKED,
        apart: false,
    },
    Layout {
        v4l2: Fourcc::new(b"NV12"),
        drm: Fourcc::new(b"NV12"),
        names: &[],
        planes: SEMI_420,
        apart: false,
    },
    Layout {
        v4l2: Fourcc::new(b"NM12"),
        drm: Fourcc::new(b"NV12"),
        names: &["NV12M"],
        planes: SEMI_420,
        apart: true,
    },
    Layout {
        v4l2: Fourcc::new(b"NV16"),
        drm: Fourcc::new(b"NV16"),
        names: &[],
        planes: SEMI_422,
        apart: false,
    },
    Layout {
        v4l2: Fourcc::new(b"NM16"),
        drm: Fourcc::new(b"NV16"),
        names: &["NV16M"],
        planes: SEMI_422,
        apart: true,
    },
    Layout {
        v4l2: Fourcc::new(b"YU12"),
        drm: Fourcc::new(b"YU12"),
        names: &["YUV420"],
        planes: PLANAR_420,
        apart: false,
    },
    Layout {
        v4l2: Fourcc::new(b"YM12"),
        drm: Fourcc::new(b"YU12"),
        names: &["YUV420M"],
        planes: PLANAR_420,
        apart: true,
    },
    Layout {
        v4l2: Fourcc::new(b"GREY"),
        drm: Fourcc::new(b"R8  "),
        names: &["R8"],
        planes: PACKED,
        apart: false,
    },
];

/// Bytes of a pixel in a DRM format whose pixels stand alone. `None`: its pixels share colours or
/// lie in several planes.
#[must_use]
pub fn pixel_bytes(drm: Fourcc) -> Option<u8> {
    match &drm.0.to_le_bytes() {
        b"XR24" | b"AR24" | b"XB24" | b"AB24" | b"BX24" => Some(4),
        b"BG24" | b"RG24" => Some(3),
        b"RG16" => Some(2),
        b"R8  " => Some(1),
        _ => None,
    }
}

/// Of V4L2's formats without a DRM name here, those of brightness and colour differences.
const OTHER_YCBCR: &[&[u8; 4]] = &[
    b"YVYU", b"VYUY", b"NV21", b"NM21", b"NV61", b"NM61", b"NV24", b"NV42", b"YV12", b"YM21",
    b"422P", b"MJPG", b"JPEG",
];

/// Whether the pixels of a V4L2 format are Y'CbCr, as far as is known.
pub(crate) fn is_ycbcr(v4l2: Fourcc) -> bool {
    match Layout::of(v4l2) {
        // All others of these are red, green and blue, or grey.
        Some(layout) => pixel_bytes(layout.drm).is_none(),
        None => OTHER_YCBCR.iter().any(|code| Fourcc::new(code) == v4l2),
    }
}

/// Which cards show pictures of a format
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShownBy {
    /// XRGB8888: as good as all.
    AllCards,
    /// Those that say so.
    SomeCards,
    /// It has no DRM name.
    NoCard,
}

/// The V4L2 pixel formats that cards can show, best first.
pub fn shown() -> impl Iterator<Item = (Fourcc, ShownBy)> {
    LAYOUTS.iter().map(|layout| {
        let by = if layout.drm == Fourcc::new(b"XR24") {
            ShownBy::AllCards
        } else {
            ShownBy::SomeCards
        };
        (layout.v4l2, by)
    })
}

/// A V4L2 pixel format given by its code or by the DRM name of its layout
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelFormat(pub Fourcc);

impl FromStr for PixelFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        LAYOUTS
            .iter()
            .find(|layout| {
                layout.v4l2.to_string() == upper || layout.names.contains(&upper.as_str())
            })
            .map(|layout| layout.v4l2)
            .or_else(|| code(text))
            .map(Self)
            .ok_or_else(|| format!("unknown pixel format; known: {}", known()))
    }
}

/// A code as it is typed. Its last characters may be blanks, which are left out.
fn code(text: &str) -> Option<Fourcc> {
    let mut code = [b' '; 4];
    let typed = code
        .get_mut(..text.len())
        .filter(|typed| !typed.is_empty())?;
    typed.copy_from_slice(text.as_bytes());
    let fine = text.bytes().all(|byte| byte.is_ascii_graphic());
    fine.then(|| Fourcc::new(&code))
}

fn known() -> String {
    let mut names = Vec::new();
    for layout in LAYOUTS {
        names.push(layout.v4l2.to_string());
        names.extend(layout.names.iter().map(|name| (*name).to_owned()));
    }
    names.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_shown_as_its_characters() {
        assert_eq!(Fourcc::new(b"XR24").to_string(), "XR24");
        assert_eq!(Fourcc::new(b"R8  ").to_string(), "R8");
        assert_eq!(Fourcc(3).to_string(), "0x00000003");
    }

    #[test]
    fn a_format_has_a_v4l2_and_a_drm_name() {
        assert_eq!("XRGB8888".parse(), Ok(PixelFormat(Fourcc::new(b"XR24"))));
        assert_eq!("xr24".parse(), Ok(PixelFormat(Fourcc::new(b"XR24"))));
        assert_eq!("rgb888".parse(), Ok(PixelFormat(Fourcc::new(b"BGR3"))));
        assert_eq!("NV12M".parse(), Ok(PixelFormat(Fourcc::new(b"NM12"))));
        // Others have a code alone, as it is.
        assert_eq!("MJPG".parse(), Ok(PixelFormat(Fourcc::new(b"MJPG"))));
        assert_eq!("pBAA".parse(), Ok(PixelFormat(Fourcc::new(b"pBAA"))));
        assert_eq!("Y16".parse(), Ok(PixelFormat(Fourcc::new(b"Y16 "))));
        for text in ["", "H.264", "h 64", "é24"] {
            let error = text.parse::<PixelFormat>().unwrap_err();
            assert!(error.contains("XRGB8888"), "{text}: {error}");
        }
    }

    #[test]
    fn formats_of_brightness_and_colour_differences_are_known() {
        for code in [b"YUYV", b"NV12", b"NM16", b"YM12", b"NV21", b"MJPG"] {
            assert!(is_ycbcr(Fourcc::new(code)), "{}", Fourcc::new(code));
        }
        for code in [b"XR24", b"BGR4", b"RGB3", b"RGBP", b"GREY", b"BA81"] {
            assert!(!is_ycbcr(Fourcc::new(code)), "{}", Fourcc::new(code));
        }
    }

    #[test]
    fn pixels_of_packed_formats_stand_alone() {
        for layout in LAYOUTS {
            let shared = ["YUYV", "UYVY", "NV12", "NV16", "YU12"];
            let alone = !shared.contains(&layout.drm.to_string().as_str());
            assert_eq!(pixel_bytes(layout.drm).is_some(), alone, "{}", layout.drm);
        }
    }
}
