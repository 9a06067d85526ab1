// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Safe interface to `/dev/bufshare`
//!
//! A program in one virtual machine exports a dma-buf, a program in another
//! imports it as a dma-buf of its own. No byte is copied.
//!
//! The exporter, `examples/exporter.rs`:
//!
//! ```no_run
#![doc = include_str!("../examples/exporter.rs")]
//! ```
//!
//! The importer, `examples/importer.rs`:
//!
//! ```no_run
#![doc = include_str!("../examples/importer.rs")]
//! ```
//!
//! [`DmaBuf`] and [`Mapping`] know nothing of bufshare: they serve any driver's
//! dma-buf, and an imported buffer serves any driver.
//!
//! Frame after frame is handed over by a [`Producer`] and a [`Consumer`]: a stream with a name,
//! and a few buffers that go round. What they are made of ([`Stream`], [`Push`], [`FrameImport`],
//! [`Offers`]) is for programs that need it otherwise.
//!
//! # What waits, and for what
//!
//! | call | waits for |
//! |---|---|
//! | [`Device::open`], [`missing_features`](Device::missing_features), [`Export::has_ended`] | nobody |
//! | [`Device::alloc`] | memory |
//! | [`Device::give_back`] | nobody |
//! | the other functions of [`Device`], but [`next_event`](Device::next_event) | the host's answer, see [`Device`] |
//! | [`Device::next_event`] | an event, within its timeout; with zero nobody |
//! | [`Offers::next_change`], [`Consumer::next_event`] | the same, and where it asks the host, the answer |
//! | [`Producer::next_event`] | an event, within its timeout; with zero nobody |
//! | [`Producer::acquire`], dropping a [`Slot`], giving back a [`Frame`] | nobody |
//! | other functions of [`Producer`] and [`Consumer`] that say so | the host's answer |
//! | [`DmaBuf::map`], [`is_revoked`](DmaBuf::is_revoked), [`Mapping::begin`], [`CpuAccess::finish`] | of an import that needs it, the host's answer; [`begin`](Mapping::begin) and [`is_revoked`](DmaBuf::is_revoked) for devices, without limit |
//! | dropping anything | nobody |
//!
//! For an event loop, `poll` says
//!
//! | of | readable | writable | hung up |
//! |---|---|---|---|
//! | [`Device`], [`Offers`], [`Producer`], [`Consumer`] | there are events | | the device is gone |
//! | [`Export`] | | | the export has ended |
//! | [`DmaBuf`], [`Import`] | no device of this VM writes it | no device of this VM uses it | |
//!
//! # How it grows
//!
//! Structs and enums that may gain fields and variants are `non_exhaustive`. What a program
//! makes of them has a function `new`, or a `Default`, and public fields. Numbers of a newer
//! driver that have no name here are passed on as `Unknown`, and no error.
//!
//! # Modules
//!
//! | module | subject |
//! |---|---|
//! | `device` | [`Device`]: everything that asks the driver |
//! | `info`, `kernel` | [`Info`], [`MissingFeature`]: what there is, and what cannot be done |
//! | `peer`, `buffer_info` | [`Peer`], [`BufferInfo`]: what the host says of them |
//! | `name`, `meta` | [`Name`], [`Meta`], [`Image`], [`Plane`]: what an exporter says of a buffer |
//! | `export`, `import` | [`Export`], [`Import`]: what lives as long as it is held |
//! | `way` | [`Way`]: how the bytes of an import become visible |
//! | `event` | [`Event`]: what happened |
//! | `frame` | [`FrameImport`], [`Push`]: what is handed over and comes back |
//! | `frame_record` | [`FrameRecord`]: what a producer says of a frame |
//! | `stream` | [`Stream`], [`Joined`]: frames that are to come, and for whom |
//! | `offers` | [`Offers`]: the buffers of other VMs, those present and those to come |
//! | `producer`, `slots` | [`Producer`]: a stream of this VM's, its buffers, and which are free |
//! | `consumer`, `following` | [`Consumer`]: another VM's stream, found, joined and consumed |
//! | `dmabuf` | [`DmaBuf`]: a descriptor and its size |
//! | `mapping` | [`Mapping`], [`CpuAccess`]: the CPU's view, begin and end of access |
//! | `region` | mmap and the copies to and from shared memory |
//! | `ioctl` | every ioctl |
//! | `error`, `operation`, `status` | [`Error`], [`Operation`], [`Status`]: what failed and why |
//! | `numbered` | what the enums of numbers have in common: [`EventKind`], [`Status`], [`Way`] |
//!
//! `unsafe` is in `region` and `ioctl` alone.
#![cfg_attr(not(test), deny(unsafe_code))]

mod buffer_info;
mod consumer;
mod device;
mod dmabuf;
mod error;
mod event;
mod export;
mod following;
mod frame;
mod frame_record;
mod import;
mod info;
#[allow(unsafe_code, reason = "the kernel is given addresses")]
mod ioctl;
mod kernel;
mod mapping;
mod meta;
mod name;
mod numbered;
mod offers;
mod operation;
mod peer;
mod producer;
mod properties;
#[allow(unsafe_code, reason = "other VMs write the same memory")]
mod region;
mod slots;
mod status;
mod stream;
mod way;

pub use buffer_info::BufferInfo;
pub use consumer::{Consumer, ConsumerEvent, ConsumerOptions, Frame, Rejection};
pub use device::Device;
pub use dmabuf::DmaBuf;
pub use error::{Error, Result};
pub use event::{Event, EventKind};
pub use export::{Access, Export, ExportOptions};
pub use frame::{FrameImport, Push, PushedFrame};
pub use frame_record::{Clock, Colour, FrameRecord, FrameTime, Luminance, Rect};
pub use import::Import;
pub use info::Info;
pub use kernel::MissingFeature;
pub use mapping::{CpuAccess, Mapping};
pub use meta::{Image, Meta, Plane};
pub use name::{InvalidName, Name};
pub use offers::{Change, Offers};
pub use operation::Operation;
pub use peer::Peer;
pub use producer::{Producer, ProducerEvent, ProducerOptions, Slot};
pub use properties::Properties;
pub use status::Status;
pub use stream::{Joined, Stream};
pub use way::Way;

pub use bufshare_protocol::device::{CAP_MAP, CAP_RO_ENFORCED, CAP_UDMABUF};
pub use bufshare_protocol::types::frame::{
    FRAME_BOTTOM_FIRST, FRAME_CORRUPTED, FRAME_DISCONT, FRAME_EXPOSURE_END, FRAME_GAP,
    FRAME_INTERLACED, FRAME_LAST,
};
pub use bufshare_protocol::types::{BufferId, ParseIdError, Rights};
