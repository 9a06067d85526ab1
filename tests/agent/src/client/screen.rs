// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A display driver of this guest

use std::io;
use std::os::fd::BorrowedFd;

use anyhow::{Context as _, Result};
use bufshare_media::drm::{Head, Imported};
use bufshare_media::fourcc::Fourcc;
use bufshare_media::image::{Image, LINEAR, Plane};

/// Show a buffer as XRGB8888 on the screen of this driver, until what is given is dropped.
pub(crate) fn show(
    driver: &str,
    dmabuf: BorrowedFd<'_>,
    width: u32,
    height: u32,
) -> Result<Imported> {
    let (heads, without) = Head::all(None);
    let head = heads
        .iter()
        .find(|head| head.driver == driver)
        .with_context(|| format!("no card of driver {driver} has a screen: {without:?}"))?;
    let plane = Plane {
        buffer: 0,
        offset: 0,
        stride: width * 4,
        rows: height,
    };
    let image = Image {
        fourcc: Fourcc::new(b"XR24"),
        width,
        height,
        modifier: LINEAR,
        planes: vec![plane],
    };
    head.show_dmabufs(&[dmabuf], &image).map_err(with_errno)
}

/// The error's number is what tests look at.
fn with_errno(error: bufshare_media::Error) -> anyhow::Error {
    let errno = error.cause().and_then(io::Error::raw_os_error);
    match errno {
        Some(errno) => {
            anyhow::Error::new(io::Error::from_raw_os_error(errno)).context(error.to_string())
        }
        None => anyhow::Error::new(error),
    }
}
