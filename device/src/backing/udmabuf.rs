// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! *udmabuf*: a host dma-buf of exactly the shared pages.
//!
//! The importer's VMM sees those pages and nothing else of the exporter, and
//! scattered extents become one mapping. It needs `/dev/udmabuf` and RAM in a
//! memfd sealed against shrinking, which is QEMU's default.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use bufshare_protocol::types::Extent;

use super::{Error, FdPiece, FileId, PAGE, Ram, memfd};

/// Where Linux has the device.
const DEVICE: &str = "/dev/udmabuf";

/// `_IOW('u', 0x43, struct udmabuf_create_list)`: the head alone, 8 bytes.
const UDMABUF_CREATE_LIST: libc::c_ulong = 0x4008_7543;

/// `UDMABUF_FLAGS_CLOEXEC`.
const UDMABUF_FLAGS_CLOEXEC: u32 = 1;

/// `struct udmabuf_create_item` without its padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// The memfd.
    pub memfd: RawFd,
    /// Bytes from its start.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// Makes one dma-buf of pages of memfds. Linux, or a test.
pub trait Maker: Send + Sync {
    /// A dma-buf of `items`, one after the other.
    ///
    /// # Errors
    /// As the ioctl.
    fn make(&self, items: &[Item]) -> io::Result<OwnedFd>;
}

/// `/dev/udmabuf`.
#[derive(Debug)]
pub struct Device(File);

impl Device {
    /// The host's device, if it has one and it works: one page of a sealed
    /// memfd is tried.
    ///
    /// # Errors
    /// Why it does not work.
    pub fn open() -> io::Result<Self> {
        Self::open_at(Path::new(DEVICE))
    }

    fn open_at(path: &Path) -> io::Result<Self> {
        let device = Self(OpenOptions::new().read(true).write(true).open(path)?);
        let page = memfd::sealed(c"bufshare-probe", PAGE)?;
        device.make(&[Item {
            memfd: page.as_raw_fd(),
            offset: 0,
            size: PAGE,
        }])?;
        Ok(device)
    }
}

impl Maker for Device {
    fn make(&self, items: &[Item]) -> io::Result<OwnedFd> {
        let list = encode(items)?;
        // SAFETY: the list is as long as its own count says, 8-byte aligned,
        // and outlives the call; the kernel only reads it.
        let fd = unsafe { libc::ioctl(self.0.as_raw_fd(), UDMABUF_CREATE_LIST, list.as_ptr()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made by the kernel for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// `struct udmabuf_create_list` with its items, as aligned words.
fn encode(items: &[Item]) -> io::Result<Vec<u64>> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let count = u32::try_from(items.len()).map_err(invalid)?;
    let mut list = vec![pair(UDMABUF_FLAGS_CLOEXEC, count)];
    for item in items {
        let memfd = u32::try_from(item.memfd).map_err(invalid)?;
        list.extend([pair(memfd, 0), item.offset, item.size]);
    }
    Ok(list)
}

/// Two adjacent 32-bit fields of a C structure.
fn pair(first: u32, second: u32) -> u64 {
    let [a, b, c, d] = first.to_ne_bytes();
    let [e, f, g, h] = second.to_ne_bytes();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// One piece: a dma-buf of all extents.
///
/// # Errors
/// [`Error`] if an extent is not RAM any more or the host makes no udmabuf.
pub fn pieces(
    ram: &Ram,
    extents: &[Extent],
    shm_offset: u64,
    maker: &dyn Maker,
) -> Result<Vec<FdPiece>, Error> {
    let mut len = 0_u64;
    let mut items = Vec::with_capacity(extents.len());
    for extent in extents {
        let (region, offset) = ram.locate(extent)?;
        if extent.len == 0
            || !offset.is_multiple_of(PAGE)
            || !extent.len.is_multiple_of(PAGE)
            || !shm_offset.is_multiple_of(PAGE)
        {
            return Err(Error::Unaligned {
                offset,
                len: extent.len,
                page: PAGE,
            });
        }
        len = len.checked_add(extent.len).ok_or(Error::Overflow)?;
        items.push(Item {
            memfd: region.file.as_raw_fd(),
            offset,
            size: extent.len,
        });
    }
    let file = File::from(maker.make(&items)?);
    Ok(vec![FdPiece {
        id: FileId::of(&file)?,
        file: Arc::new(file),
        fd_offset: 0,
        len,
        shm_offset,
    }])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{memfd, ram};
    use super::*;
    use std::sync::Mutex;

    /// Remembers what it was asked for and returns a plain memfd.
    struct Fake(Mutex<Vec<Item>>);

    impl Maker for Fake {
        fn make(&self, items: &[Item]) -> io::Result<OwnedFd> {
            self.0.lock().unwrap().extend(items);
            let len = items.iter().map(|i| i.size).sum();
            Ok(memfd(len, false).try_clone().unwrap().into())
        }
    }

    #[test]
    fn pieces_are_one_dmabuf_of_all_extents() {
        let fake = Fake(Mutex::new(Vec::new()));
        let extents = [
            Extent {
                addr: 0x10_1000,
                len: 0x2000,
            },
            Extent {
                addr: 0x10000,
                len: 0x1000,
            },
        ];

        let pieces = pieces(&ram(), &extents, 0x5000, &fake).unwrap();

        let asked: Vec<_> = fake
            .0
            .lock()
            .unwrap()
            .iter()
            .map(|i| (i.offset, i.size))
            .collect();
        assert_eq!(asked, [(0x21000, 0x2000), (0x8000, 0x1000)]);
        let got: Vec<_> = pieces
            .iter()
            .map(|p| (p.fd_offset, p.len, p.shm_offset))
            .collect();
        assert_eq!(got, [(0, 0x3000, 0x5000)]);
    }

    #[test]
    fn list_is_laid_out_as_in_the_kernel_header() {
        let items = [Item {
            memfd: 7,
            offset: 0x1000,
            size: 0x2000,
        }];

        let words = encode(&items).unwrap();

        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        assert_eq!(bytes.len(), 8 + 24);
        assert_eq!(bytes[0..4], 1_u32.to_ne_bytes());
        assert_eq!(bytes[4..8], 1_u32.to_ne_bytes());
        assert_eq!(bytes[8..12], 7_u32.to_ne_bytes());
        assert_eq!(bytes[12..16], [0; 4]);
        assert_eq!(bytes[16..24], 0x1000_u64.to_ne_bytes());
        assert_eq!(bytes[24..32], 0x2000_u64.to_ne_bytes());
    }

    #[test]
    fn open_of_something_else_fails() {
        assert!(Device::open_at(Path::new("/dev/null")).is_err());
        assert!(Device::open_at(Path::new("/does/not/exist")).is_err());
    }
}
