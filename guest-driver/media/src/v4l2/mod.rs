// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Video drivers: cameras, and what sends video
//!
//! A [`Queue`] is asked for a [`Format`], is given memory, and fills it (or sends what is in it),
//! buffer by buffer. A picture has one memory or, of a multi-planar driver, up to
//! [`MAX_PLANES`] of them. [`Offer`] is what a camera can give, and chooses of it.

mod abi;
mod colour;
mod offer;
mod queue;

pub use abi::{Memory, Side};
pub use colour::Colour;
pub use offer::{Choice, Offer, describe};
pub use queue::{
    FieldOrder, Filled, FilledPlane, Format, MAX_PLANES, PlaneFormat, Queue, Sizes, Written,
};
