// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Safe interface to `/dev/bufshare`
//!
//! A program in one virtual machine exports a dma-buf, a program in another
//! imports it as a dma-buf of its own. No byte is copied.
//!
//! The exporter:
//!
//! ```no_run
//! use bufshare::{Device, ExportOptions, Rights};
//!
//! let device = Device::open()?;
//! let buffer = device.alloc(1 << 20)?;
//!
//! let mapping = buffer.map(Rights::RW)?;
//! let access = mapping.begin(Rights::WRITE)?;
//! access.write_at(0, b"hello")?;
//! access.finish()?;
//!
//! let export = device.export(&buffer, &ExportOptions::default())?;
//! println!("{}", export.id());
//! std::thread::park(); // The export ends when `export` is dropped.
//! # Ok::<(), bufshare::Error>(())
//! ```
//!
//! The importer:
//!
//! ```no_run
//! use bufshare::{Device, EventKind, Rights};
//!
//! let device = Device::open()?;
//! while let Some(event) = device.next_event(None)? {
//!     if event.kind != EventKind::Offer {
//!         continue;
//!     }
//!     let import = device.import(event.id, Rights::READ)?;
//!     let mapping = import.buffer.map(Rights::READ)?;
//!     let access = mapping.begin(Rights::READ)?;
//!     let mut hello = [0; 5];
//!     access.read_at_checked(0, &mut hello)?;
//!     access.finish()?;
//! }
//! # Ok::<(), bufshare::Error>(())
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
//! | `error` | [`Error`]: what failed, why, what to do |
//!
//! `unsafe` is in `region` and `ioctl` alone.

mod device;
mod dmabuf;
mod error;
mod export;
mod import;
mod ioctl;
mod mapping;
mod region;

pub use device::Device;
pub use dmabuf::DmaBuf;
pub use error::{Error, Result};
pub use export::{Export, ExportOptions};
pub use import::Import;
pub use mapping::{CpuAccess, Mapping};

pub use bufshare_protocol::event::{Event, EventKind};
pub use bufshare_protocol::response::{BufferInfo, Caps as Info, PeerInfo as Peer};
pub use bufshare_protocol::status::Status;
pub use bufshare_protocol::types::{Access, BufferId, Image, Meta, Name, Plane, Rights, Transport};
