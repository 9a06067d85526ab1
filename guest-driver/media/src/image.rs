// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the pixels in memory mean, in the terms of DRM

use crate::fourcc::Fourcc;

/// `DRM_FORMAT_MOD_LINEAR`.
pub const LINEAR: u64 = 0;
/// `DRM_FORMAT_MOD_INVALID`: the layout is not that of a DRM format.
pub const NO_DRM_LAYOUT: u64 = 0x00ff_ffff_ffff_ffff;

/// One plane of a picture
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    /// Which of the memories of a picture it is in, 0 to 3.
    pub buffer: u32,
    /// Bytes from the start of the memory.
    pub offset: u64,
    /// Bytes per row; 0 of a compressed picture.
    pub stride: u32,
    /// Rows of this plane.
    pub rows: u32,
}

/// A picture
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its DRM pixel format; of one that has none, with [`NO_DRM_LAYOUT`], V4L2's.
    pub fourcc: Fourcc,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// DRM format modifier.
    pub modifier: u64,
    /// At least one.
    pub planes: Vec<Plane>,
}

impl Image {
    /// Why no card shows it.
    #[must_use]
    pub fn unshowable(&self) -> Option<String> {
        match self.modifier {
            LINEAR => None,
            NO_DRM_LAYOUT => Some(format!("no screen shows pixel format {}", self.fourcc)),
            _ => Some("only linear pictures can be shown".to_owned()),
        }
    }
}
