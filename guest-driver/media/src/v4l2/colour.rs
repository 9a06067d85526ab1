// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the colours of a picture are, by the numbers of ITU-T H.273 instead of V4L2's

use crate::fourcc::{Fourcc, is_ycbcr};

/// Of a picture, by ITU-T H.273; 0 where the driver does not say, or where that has no number
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Colour {
    /// `ColourPrimaries`.
    pub primaries: u8,
    /// `TransferCharacteristics`.
    pub transfer: u8,
    /// `MatrixCoefficients` of Y'CbCr, if the driver says them itself.
    pub matrix: u8,
    /// 1: limited, 2: full, if the driver says it itself.
    pub range: u8,
}

/// V4L2's numbers of `enum v4l2_colorspace`.
mod space {
    pub(super) const SMPTE170M: u32 = 1;
    pub(super) const SMPTE240M: u32 = 2;
    pub(super) const REC709: u32 = 3;
    pub(super) const SYSTEM_M: u32 = 5;
    pub(super) const SYSTEM_BG: u32 = 6;
    pub(super) const JPEG: u32 = 7;
    pub(super) const SRGB: u32 = 8;
    pub(super) const BT2020: u32 = 10;
    pub(super) const DCI_P3: u32 = 12;
}

/// V4L2's numbers of `enum v4l2_xfer_func`.
mod function {
    pub(super) const REC709: u32 = 1;
    pub(super) const SRGB: u32 = 2;
    pub(super) const SMPTE240M: u32 = 4;
    pub(super) const NONE: u32 = 5;
    pub(super) const DCI_P3: u32 = 6;
    pub(super) const SMPTE2084: u32 = 7;
}

/// V4L2's numbers of `enum v4l2_ycbcr_encoding`.
mod encoding {
    pub(super) const BT601: u32 = 1;
    pub(super) const REC709: u32 = 2;
    pub(super) const XV601: u32 = 3;
    pub(super) const XV709: u32 = 4;
    pub(super) const BT2020: u32 = 6;
    pub(super) const BT2020_CONST_LUM: u32 = 7;
    pub(super) const SMPTE240M: u32 = 8;
}

/// V4L2's numbers of `enum v4l2_quantization`.
mod quantization {
    pub(super) const FULL_RANGE: u32 = 1;
    pub(super) const LIM_RANGE: u32 = 2;
}

impl Colour {
    /// Of V4L2's four numbers. What follows of the colour space alone is said, as V4L2 defines
    /// it; what depends on the pixel format, too, is not. Drivers say an encoding also of formats
    /// that have none.
    pub(super) fn of(
        format: Fourcc,
        space: u32,
        transfer: u32,
        encoding: u32,
        quantization: u32,
    ) -> Self {
        Self {
            primaries: match space {
                space::REC709 | space::JPEG | space::SRGB => 1,
                space::SYSTEM_M => 4,
                space::SYSTEM_BG => 5,
                space::SMPTE170M => 6,
                space::SMPTE240M => 7,
                space::BT2020 => 9,
                space::DCI_P3 => 11,
                _ => 0,
            },
            transfer: match (transfer, space) {
                (function::REC709, _)
                | (
                    0,
                    space::SMPTE170M
                    | space::REC709
                    | space::SYSTEM_M
                    | space::SYSTEM_BG
                    | space::BT2020,
                ) => 1,
                (function::SMPTE240M, _) | (0, space::SMPTE240M) => 7,
                (function::NONE, _) => 8,
                (function::SRGB, _) | (0, space::SRGB | space::JPEG) => 13,
                (function::SMPTE2084, _) => 16,
                (function::DCI_P3, _) | (0, space::DCI_P3) => 17,
                _ => 0,
            },
            matrix: match encoding {
                _ if !is_ycbcr(format) => 0,
                encoding::REC709 | encoding::XV709 => 1,
                encoding::BT601 | encoding::XV601 => 6,
                encoding::SMPTE240M => 7,
                encoding::BT2020 => 9,
                encoding::BT2020_CONST_LUM => 10,
                _ => 0,
            },
            range: match quantization {
                quantization::LIM_RANGE => 1,
                quantization::FULL_RANGE => 2,
                _ => 0,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctest;

    #[test]
    fn numbers_are_those_of_the_kernel_headers() {
        let row = |name, number: u32| (name, number as usize);
        ctest::check(
            &["sys/time.h", "linux/videodev2.h"],
            &[
                row("V4L2_COLORSPACE_SMPTE170M", space::SMPTE170M),
                row("V4L2_COLORSPACE_SMPTE240M", space::SMPTE240M),
                row("V4L2_COLORSPACE_REC709", space::REC709),
                row("V4L2_COLORSPACE_470_SYSTEM_M", space::SYSTEM_M),
                row("V4L2_COLORSPACE_470_SYSTEM_BG", space::SYSTEM_BG),
                row("V4L2_COLORSPACE_JPEG", space::JPEG),
                row("V4L2_COLORSPACE_SRGB", space::SRGB),
                row("V4L2_COLORSPACE_BT2020", space::BT2020),
                row("V4L2_COLORSPACE_DCI_P3", space::DCI_P3),
                row("V4L2_XFER_FUNC_709", function::REC709),
                row("V4L2_XFER_FUNC_SRGB", function::SRGB),
                row("V4L2_XFER_FUNC_SMPTE240M", function::SMPTE240M),
                row("V4L2_XFER_FUNC_NONE", function::NONE),
                row("V4L2_XFER_FUNC_DCI_P3", function::DCI_P3),
                row("V4L2_XFER_FUNC_SMPTE2084", function::SMPTE2084),
                row("V4L2_YCBCR_ENC_601", encoding::BT601),
                row("V4L2_YCBCR_ENC_709", encoding::REC709),
                row("V4L2_YCBCR_ENC_XV601", encoding::XV601),
                row("V4L2_YCBCR_ENC_XV709", encoding::XV709),
                row("V4L2_YCBCR_ENC_BT2020", encoding::BT2020),
                row(
                    "V4L2_YCBCR_ENC_BT2020_CONST_LUM",
                    encoding::BT2020_CONST_LUM,
                ),
                row("V4L2_YCBCR_ENC_SMPTE240M", encoding::SMPTE240M),
                row("V4L2_QUANTIZATION_FULL_RANGE", quantization::FULL_RANGE),
                row("V4L2_QUANTIZATION_LIM_RANGE", quantization::LIM_RANGE),
            ],
        );
    }

    #[test]
    fn what_a_driver_says_goes_before_what_its_colour_space_implies() {
        let all = |colour: Colour| {
            let Colour {
                primaries,
                transfer,
                matrix,
                range,
            } = colour;
            [primaries, transfer, matrix, range]
        };
        let of = |space, transfer, encoding, quantization| {
            let format = Fourcc::new(b"NV12");
            all(Colour::of(format, space, transfer, encoding, quantization))
        };
        assert_eq!(of(space::SRGB, 0, 0, 0), [1, 13, 0, 0]);
        let said = (
            function::SMPTE2084,
            encoding::BT2020,
            quantization::LIM_RANGE,
        );
        assert_eq!(of(space::BT2020, said.0, said.1, said.2), [9, 16, 9, 1]);
        assert_eq!(of(0, 0, 0, 0), [0; 4]);
        assert_eq!(of(u32::MAX, 99, 99, 99), [0; 4]);
    }

    #[test]
    fn red_green_and_blue_have_no_matrix() {
        let matrix = |format| Colour::of(Fourcc::new(format), 0, 0, encoding::REC709, 0).matrix;
        assert_eq!([matrix(b"YUYV"), matrix(b"MJPG")], [1, 1]);
        assert_eq!([matrix(b"XR24"), matrix(b"BA81")], [0, 0]);
    }
}
