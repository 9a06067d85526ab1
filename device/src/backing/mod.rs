// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the bytes of one VM become a file that another VM's front end can map.
//!
//! One interface: given the owner's RAM and the extents of a buffer, the list
//! of [`FdPiece`]s that the importer's front end is asked to map. What takes the
//! place of a revoked buffer is in [`zero_pages`]; whether a VMM still holds the files
//! that it was given is in [`file_hold`].

pub mod direct;
pub mod file_hold;
pub mod memfd;
pub mod udmabuf;
pub mod zero_pages;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Weak};

use bufshare_protocol::types::{Extent, Way};

use crate::broker::MapSource;

/// Page of the host, bytes. Everything that is mapped is a multiple of it.
pub const PAGE: u64 = 4096;

/// Which file behind a descriptor, whatever its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// Device of its file system.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
}

impl FileId {
    /// The identity of an open file.
    ///
    /// # Errors
    /// As `fstat`.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        let meta = stat(file)?;
        Ok(Self {
            dev: meta.st_dev,
            ino: meta.st_ino,
        })
    }
}

fn stat(file: impl AsFd) -> io::Result<libc::stat> {
    // SAFETY: all zeroes is a valid stat; it is plain data.
    let mut meta: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `meta` is writable for its size.
    if unsafe { libc::fstat(file.as_fd().as_raw_fd(), &raw mut meta) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(meta)
}

/// Bytes of an open file.
///
/// # Errors
/// As `fstat`.
pub fn length(file: impl AsFd) -> io::Result<u64> {
    u64::try_from(stat(file)?.st_size).map_err(io::Error::other)
}

/// One region of a VM's own RAM.
#[derive(Clone, Debug)]
pub struct Region<F = Arc<File>> {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
    /// The file behind it.
    pub file: F,
    /// Where the region begins in the file, bytes.
    pub file_offset: u64,
    /// Identity of the file.
    pub id: FileId,
    /// Page size of the file (more than [`PAGE`] on hugetlbfs).
    pub page: u64,
    /// Whether a udmabuf can be made of it: a memfd sealed against shrinking
    /// and not against writing.
    pub sealed: bool,
}

impl Region {
    /// Looks at a region's file once, when the front end announces it.
    ///
    /// # Errors
    /// As `fstat`.
    pub fn new(addr: u64, len: u64, file: Arc<File>, file_offset: u64) -> io::Result<Self> {
        let id = FileId::of(&file)?;
        let page = page_size(&file);
        let sealed = is_sealed(&file);
        Ok(Self {
            addr,
            len,
            file,
            file_offset,
            id,
            page,
            sealed,
        })
    }
}

impl<F> Region<F> {
    /// The same region with its file held in another way.
    fn with<G>(&self, file: G) -> Region<G> {
        Region {
            addr: self.addr,
            len: self.len,
            file,
            file_offset: self.file_offset,
            id: self.id,
            page: self.page,
            sealed: self.sealed,
        }
    }

    /// Whether both are the same bytes at the same address.
    #[must_use]
    pub fn same<G>(&self, other: &Region<G>) -> bool {
        self.addr == other.addr
            && self.len == other.len
            && self.file_offset == other.file_offset
            && self.id == other.id
            && self.sealed == other.sealed
    }

    /// Offset in the file of `[addr, addr + len)`, if the region holds it.
    fn offset_of(&self, addr: u64, len: u64) -> Option<u64> {
        let inside = addr.checked_sub(self.addr)?;
        let end = inside.checked_add(len)?;
        if end > self.len {
            return None;
        }
        self.file_offset.checked_add(inside)
    }
}

/// A VM's own RAM as its front end last announced it. Holding it keeps the
/// files open.
#[derive(Clone, Debug)]
pub struct Ram<F = Arc<File>> {
    /// The regions.
    pub regions: Vec<Region<F>>,
}

/// The same, but its files are closed as soon as the VM's memory table has them no
/// more. What waits in a queue has this: a front end can replace its RAM any number of
/// times meanwhile, and each time would cost as many descriptors as it has regions.
pub type WeakRam = Ram<Weak<File>>;

impl<F> Default for Ram<F> {
    fn default() -> Self {
        Self {
            regions: Vec::new(),
        }
    }
}

impl WeakRam {
    /// Those regions whose files are still open.
    #[must_use]
    pub fn upgrade(&self) -> Ram {
        let open = |region: &Region<Weak<File>>| Some(region.with(region.file.upgrade()?));
        Ram {
            regions: self.regions.iter().filter_map(open).collect(),
        }
    }
}

impl Ram {
    /// The same RAM, without keeping its files open.
    #[must_use]
    pub fn downgrade(&self) -> WeakRam {
        let weak = |region: &Region| region.with(Arc::downgrade(&region.file));
        Ram {
            regions: self.regions.iter().map(weak).collect(),
        }
    }

    /// Keeps the descriptors of `old` for regions that are the same, so that what was
    /// queued for them can still be done. A front end that knows no memory slots names
    /// all its RAM anew for each change.
    pub fn keep_files(&mut self, old: &Self) {
        for region in &mut self.regions {
            if let Some(same) = old.regions.iter().find(|other| other.same(region)) {
                *region = same.clone();
            }
        }
    }
}

impl<F> Ram<F> {
    /// Whether one region holds all of `[addr, addr + len)`.
    #[must_use]
    pub fn contains(&self, addr: u64, len: u64) -> bool {
        self.regions
            .iter()
            .any(|region| region.offset_of(addr, len).is_some())
    }

    /// Whether both are the same bytes at the same addresses.
    #[must_use]
    pub fn same<G>(&self, other: &Ram<G>) -> bool {
        self.regions.len() == other.regions.len()
            && self
                .regions
                .iter()
                .zip(&other.regions)
                .all(|(a, b)| a.same(b))
    }

    /// The region of an extent and the extent's offset in its file.
    fn locate(&self, extent: &Extent) -> Result<(&Region<F>, u64), Error> {
        self.regions
            .iter()
            .find_map(|region| {
                let offset = region.offset_of(extent.addr, extent.len)?;
                Some((region, offset))
            })
            .ok_or(Error::NotRam {
                addr: extent.addr,
                len: extent.len,
            })
    }
}

/// One mapping that the front end is asked for.
#[derive(Clone, Debug)]
pub struct FdPiece {
    /// The file to map.
    pub file: Arc<File>,
    /// Its identity, by which the mapping is known when it comes back in the
    /// front end's memory table.
    pub id: FileId,
    /// Where to begin in the file.
    pub fd_offset: u64,
    /// Bytes.
    pub len: u64,
    /// Where to begin in the shared-memory region.
    pub shm_offset: u64,
}

/// Why no file stands for the bytes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The owner's front end took the memory away meanwhile.
    #[error("{len:#x} bytes at {addr:#x} are no longer RAM of the exporter")]
    NotRam {
        /// Guest-physical address.
        addr: u64,
        /// Bytes.
        len: u64,
    },
    /// The file is shorter than its region.
    #[error("RAM file of the exporter is shorter than its region")]
    Short,
    /// An offset cannot be mapped.
    #[error(
        "offset {offset:#x} or length {len:#x} is no multiple of the file's page of {page:#x} bytes; huge pages cannot be shared in parts without udmabuf"
    )]
    Unaligned {
        /// Offset in the file.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Page of the file.
        page: u64,
    },
    /// Sums beyond 64 bits.
    #[error("lengths overflow")]
    Overflow,
    /// This host cannot do it.
    #[error("{0} is not available on this host")]
    Unavailable(Way),
    /// The host refused.
    #[error("{0}")]
    Host(#[from] io::Error),
}

/// The files to map for one buffer, back to back from `shm_offset`.
///
/// # Errors
/// [`Error`]: nothing was made then.
pub fn pieces(
    ram: &Ram,
    source: &MapSource,
    shm_offset: u64,
    udmabuf: Option<&dyn udmabuf::Maker>,
) -> Result<Vec<FdPiece>, Error> {
    match (source.way, udmabuf) {
        (Way::Direct, _) => direct::pieces(ram, &source.extents, shm_offset),
        (Way::Udmabuf, Some(maker)) => udmabuf::pieces(ram, &source.extents, shm_offset, maker),
        (way, _) => Err(Error::Unavailable(way)),
    }
}

/// The file system of a file.
fn file_system(fd: BorrowedFd<'_>) -> io::Result<libc::statfs> {
    // SAFETY: all zeroes is a valid statfs; it is plain data.
    let mut info: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `info` is writable for its size.
    if unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut info) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(info)
}

/// Page size of the file: that of its hugetlbfs, else [`PAGE`].
fn page_size(file: &File) -> u64 {
    match file_system(file.as_fd()) {
        Ok(info) if info.f_type == libc::HUGETLBFS_MAGIC => {
            u64::try_from(info.f_bsize).unwrap_or(PAGE).max(PAGE)
        }
        _ => PAGE,
    }
}

/// The seals of a memfd or of a file of tmpfs or hugetlbfs; none of anything else. No
/// file system is asked, so it cannot take long.
fn seals(fd: BorrowedFd<'_>) -> Option<libc::c_int> {
    // SAFETY: F_GET_SEALS takes no pointer.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    (seals >= 0).then_some(seals)
}

/// Whether udmabuf takes the file: sealed against shrinking, not against
/// writing.
fn is_sealed(file: &File) -> bool {
    let seals = seals(file.as_fd()).unwrap_or_default();
    seals & libc::F_SEAL_SHRINK != 0 && seals & libc::F_SEAL_WRITE == 0
}

/// What the kernel calls a dma-buf in /proc, before its name.
const DMA_BUF: &str = "/dmabuf:";

/// What a program has to know of a file before it touches its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// A memfd or a file of tmpfs, sealed against shrinking: touching it up to its
    /// end cannot fail by what its owner does.
    Lasting,
    /// Its owner can end whoever touches it: by making it shorter, or by a hole in a
    /// file of hugetlbfs, which cannot be filled when the pool has no page left.
    Vanishing,
    /// A dma-buf, as windows are that show a udmabuf.
    DmaBuf,
    /// Anything else: to touch it may take as long as its owner likes.
    Other,
}

impl MemoryKind {
    /// Of this file. If it is not memory, then that is found without asking its file
    /// system, which may be one of its owner's that never answers: neither `fstat` nor
    /// `mmap` is safe before.
    ///
    /// # Errors
    /// As `fstatfs` and `readlink`.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let Some(seals) = seals(fd) else {
            let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
            let dma_buf = path.as_os_str().as_bytes().starts_with(DMA_BUF.as_bytes());
            return Ok(if dma_buf { Self::DmaBuf } else { Self::Other });
        };
        Ok(match file_system(fd)?.f_type {
            libc::TMPFS_MAGIC if seals & libc::F_SEAL_SHRINK != 0 => Self::Lasting,
            _ => Self::Vanishing,
        })
    }

    /// Whether it is of memory, and so can be looked at without having to wait.
    #[must_use]
    pub fn is_memory(self) -> bool {
        matches!(self, Self::Lasting | Self::Vanishing)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::fd::FromRawFd;

    /// A memfd of `len` bytes, sealed against shrinking if asked.
    pub(crate) fn memfd(len: u64, seal: bool) -> Arc<File> {
        // SAFETY: the name is NUL-terminated.
        let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_ALLOW_SEALING) };
        assert!(fd >= 0);
        // SAFETY: just made, owned by nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len).unwrap();
        if seal {
            // SAFETY: F_ADD_SEALS takes no pointer.
            let rc = unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
            assert_eq!(rc, 0);
        }
        Arc::new(file)
    }

    pub(crate) fn ram() -> Ram {
        let file = memfd(0x40000, true);
        Ram {
            regions: vec![
                Region::new(0x10000, 0x10000, file.clone(), 0x8000).unwrap(),
                Region::new(0x10_0000, 0x10000, file, 0x20000).unwrap(),
            ],
        }
    }

    #[test]
    fn ram_contains_only_what_one_region_holds() {
        let ram = ram();

        assert!(ram.contains(0x10000, 0x10000));
        assert!(ram.contains(0x1ffff, 1));
        assert!(!ram.contains(0x1ffff, 2));
        assert!(!ram.contains(0xffff, 1));
        assert!(!ram.contains(u64::MAX, 2));
    }

    #[test]
    fn only_sealed_memory_of_small_pages_lasts() {
        let kind = |file: &File| MemoryKind::of(file.as_fd()).unwrap();
        let flags = libc::MFD_ALLOW_SEALING | libc::MFD_HUGETLB;
        // SAFETY: the name is NUL-terminated.
        let fd = unsafe { libc::memfd_create(c"huge".as_ptr(), flags) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: just made, owned by nobody else.
        let huge = unsafe { File::from_raw_fd(fd) };
        // SAFETY: F_ADD_SEALS takes no pointer.
        let rc = unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
        assert_eq!(rc, 0);

        assert_eq!(kind(&memfd(0x1000, true)), MemoryKind::Lasting);
        assert_eq!(kind(&memfd(0x1000, false)), MemoryKind::Vanishing);
        // A hole in it cannot be filled when the pool is empty, sealed or not.
        assert_eq!(kind(&huge), MemoryKind::Vanishing);
        assert_eq!(
            kind(&File::open("/proc/self/maps").unwrap()),
            MemoryKind::Other
        );
    }

    #[test]
    fn weak_ram_has_only_files_that_somebody_else_keeps_open() {
        let ram = Ram {
            regions: [0, 0x1000]
                .map(|addr| Region::new(addr, 0x1000, memfd(0x1000, true), 0).unwrap())
                .into(),
        };
        let weak = ram.downgrade();
        assert!(weak.upgrade().same(&ram));

        let [first, _] = <[Region; 2]>::try_from(ram.regions).unwrap();

        let left = weak.upgrade();
        assert!(left.contains(first.addr, first.len));
        assert_eq!(left.regions.len(), 1);
    }

    #[test]
    fn ram_keeps_the_descriptors_of_regions_that_stay() {
        let old = ram();
        let again = |region: &Region| Region {
            file: Arc::new(region.file.try_clone().unwrap()),
            ..region.clone()
        };
        let mut new = Ram {
            regions: old.regions.iter().map(again).collect(),
        };
        new.regions[1].addr += PAGE;

        new.keep_files(&old);

        assert!(Arc::ptr_eq(&new.regions[0].file, &old.regions[0].file));
        assert!(!Arc::ptr_eq(&new.regions[1].file, &old.regions[1].file));
    }

    #[test]
    fn region_knows_its_seals() {
        let sealed = Region::new(0, 0x1000, memfd(0x1000, true), 0).unwrap();
        let open = Region::new(0, 0x1000, memfd(0x1000, false), 0).unwrap();

        assert!(sealed.sealed);
        assert!(!open.sealed);
        assert_eq!(sealed.page, PAGE);
    }

    #[test]
    fn pieces_of_a_way_not_served_are_refused() {
        let source = MapSource {
            owner: crate::broker::PeerId(1),
            way: Way::CopyWindow,
            extents: vec![],
        };

        let result = pieces(&ram(), &source, 0, None);

        assert!(matches!(result, Err(Error::Unavailable(Way::CopyWindow))));
    }
}
