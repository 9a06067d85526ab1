// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cameras and screens of Linux, by their dma-bufs
//!
//! For programs that pass frames from one driver to another: what they need of V4L2 and DRM,
//! and nothing else. It knows no other device: dma-bufs come and go as file descriptors, and
//! what is in them is described by plain types.
//!
//! - [`v4l2`]: a video driver's queue, which fills dma-bufs (a camera) or sends them; the formats
//!   and sizes that it offers, and which of them to take.
//! - [`drm`]: a card's screens; a dma-buf on one of them or, where its card does not take it, a
//!   copy in the card's own memory.
//! - [`fourcc`] and [`image`]: pixel formats by their V4L2 and their DRM names, and a picture's
//!   planes.
//! - [`dma_heap`] and [`udmabuf`]: dma-bufs of memory that is no camera's or screen's.
//!
//! The structures of the kernel's headers are here once; their sizes are checked when this is
//! compiled, their members and numbers against the headers by the tests. `unsafe` names ioctls (in
//! `v4l2::abi`, `dma_heap` and `udmabuf`), calls them (in `ioctl`), and owns the descriptors that
//! they make; nothing else.

#[cfg(test)]
mod ctest;
pub mod dma_heap;
pub mod drm;
mod error;
pub mod fourcc;
pub mod image;
mod ioctl;
pub mod udmabuf;
pub mod v4l2;

pub use error::{Error, Result};
