// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checked values that requests, responses and the broker share

mod extent;
pub mod frame;
mod id;
mod meta;
mod name;
mod properties;
mod rights;
mod way;

pub use extent::{Access, Extent};
pub use frame::{FrameRecord, Push, Pushed};
pub use id::{BufferId, ParseIdError};
pub use meta::{Image, KNOW_BUFFERS, Meta, Plane, STREAM_ENDED, StreamState};
pub use name::Name;
pub use properties::Properties;
pub use rights::Rights;
pub use way::{Way, Ways};
