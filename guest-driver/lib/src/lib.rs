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
//! | module | subject |
//! |---|---|
//! | `device` | [`Device`]: everything that asks the driver |
//! | `export`, `import` | [`Export`], [`Import`]: what lives as long as it is held |
//! | `dmabuf` | [`DmaBuf`]: a descriptor and its size |
//! | `mapping` | [`Mapping`], [`CpuAccess`]: the CPU's view, begin and end of access |
//! | `region` | mmap and the copies to and from shared memory |
//! | `ioctl` | every ioctl |
//! | `kernel` | [`MissingFeature`]: what the driver cannot do on this kernel |
//! | `offers` | [`Offers`]: the buffers of other VMs, those present and those to come |
//! | `error` | [`Error`]: what failed and why |
//!
//! `unsafe` is in `region` and `ioctl` alone.

mod device;
mod dmabuf;
mod error;
mod export;
mod import;
mod ioctl;
mod kernel;
mod mapping;
mod offers;
mod region;

pub use device::Device;
pub use dmabuf::DmaBuf;
pub use error::{Error, Result};
pub use export::{Export, ExportOptions};
pub use import::Import;
pub use kernel::MissingFeature;
pub use mapping::{CpuAccess, Mapping};
pub use offers::{Change, Offers};

pub use bufshare_protocol::device::{CAP_MAP, CAP_RO_ENFORCED, CAP_UDMABUF};
pub use bufshare_protocol::event::{Event, EventKind};
pub use bufshare_protocol::response::{BufferInfo, Caps as Info, PeerInfo as Peer};
pub use bufshare_protocol::status::Status;
pub use bufshare_protocol::types::{Access, BufferId, Image, Meta, Name, Plane, Rights, Way};
