// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every ioctl: those of `/dev/bufshare` and `DMA_BUF_IOCTL_SYNC`
//!
//! Addresses and counts in the arguments are set here, from slices that live
//! until the call returns, so that the functions are safe to call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use bufshare_protocol::ioctl::{
    self as abi, Access, Alloc, Buffer, Close, Export, HandleToFd, Import, Info, Meta, MetaIo,
    Peer, Push, Query, Quiesce, Return, ReturnFrame, Table,
};
use bufshare_protocol::types::Rights;
use rustix::fs::OFlags;
use rustix::io::Errno;

/// Flags of a new descriptor: closed on exec, else we would leak buffers.
const CLOEXEC: u32 = OFlags::CLOEXEC.bits();

/// An argument struct of an ioctl.
///
/// # Safety
/// The kernel writes into it: it must consist of integers, for which any bytes are valid.
unsafe trait Argument {}

// SAFETY: integers and arrays of them alone.
unsafe impl Argument for Info {}
// SAFETY: as above.
unsafe impl Argument for Table {}
// SAFETY: as above.
unsafe impl Argument for Alloc {}
// SAFETY: as above; the structs in it are such, too.
unsafe impl Argument for Export {}
// SAFETY: as above.
unsafe impl Argument for Import {}
// SAFETY: as above; the structs in it are such, too.
unsafe impl Argument for MetaIo {}
// SAFETY: as above; the struct in it is such, too.
unsafe impl Argument for Query {}
// SAFETY: integers alone.
unsafe impl Argument for Quiesce {}
// SAFETY: integers alone.
unsafe impl Argument for HandleToFd {}
// SAFETY: integers alone.
unsafe impl Argument for Close {}
// SAFETY: integers alone.
unsafe impl Argument for Push {}
// SAFETY: integers alone.
unsafe impl Argument for Return {}
// SAFETY: one integer.
unsafe impl Argument for DmaBufSync {}

/// Calls the kernel, which must read and write no memory but `argument` and
/// what its addresses say. Again if a signal interrupted that: of a request that the host was
/// asked, only one does that ends the process.
///
/// # Safety
/// `request` must be the number that belongs to `T`, and each address in
/// `argument` must be good for what that request does there.
unsafe fn call<T: Argument>(fd: BorrowedFd<'_>, request: u32, argument: &mut T) -> io::Result<()> {
    #[allow(
        clippy::cast_lossless,
        clippy::cast_possible_wrap,
        reason = "the C library's type of a request number differs"
    )]
    let request = request as libc::Ioctl;
    let argument: *mut T = argument;
    loop {
        // SAFETY: `argument` is exclusively borrowed and as large as `request`
        // says; the rest is the caller's promise.
        if unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The address of a slice as the kernel takes it.
fn address<T>(slice: &[T]) -> u64 {
    slice.as_ptr().expose_provenance() as u64
}

fn address_mut<T>(slice: &mut [T]) -> u64 {
    slice.as_mut_ptr().expose_provenance() as u64
}

fn count<T>(slice: &[T]) -> io::Result<u32> {
    u32::try_from(slice.len()).map_err(|_| Errno::INVAL.into())
}

/// Bytes of an entry.
fn size<T>(_: &[T]) -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

/// A descriptor that the kernel has just made for us.
fn own(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(Errno::PROTO.into());
    }
    // SAFETY: a successful ioctl installed it for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// INFO.
pub(crate) fn info(fd: BorrowedFd<'_>) -> io::Result<Info> {
    let mut info = Info::default();
    // SAFETY: an `Info` belongs to INFO; it has no addresses.
    unsafe { call(fd, abi::INFO, &mut info) }?;
    Ok(info)
}

/// PEERS: fills `entries` from `table.cursor` on.
pub(crate) fn peers(fd: BorrowedFd<'_>, table: &mut Table, entries: &mut [Peer]) -> io::Result<()> {
    table.count = count(entries)?;
    table.entries = address_mut(entries);
    table.entry_size = size(entries);
    // SAFETY: a `Table` belongs to PEERS; its address is of `count` entries
    // that are exclusively borrowed.
    unsafe { call(fd, abi::PEERS, table) }
}

/// LIST: fills `entries` from `table.cursor` on.
pub(crate) fn list(
    fd: BorrowedFd<'_>,
    table: &mut Table,
    entries: &mut [Buffer],
) -> io::Result<()> {
    table.count = count(entries)?;
    table.entries = address_mut(entries);
    table.entry_size = size(entries);
    // SAFETY: a `Table` belongs to LIST; its address is of `count` entries
    // that are exclusively borrowed.
    unsafe { call(fd, abi::LIST, table) }
}

/// ALLOC: a dma-buf of `size` bytes.
pub(crate) fn alloc(fd: BorrowedFd<'_>, size: u64) -> io::Result<OwnedFd> {
    let fd_flags = CLOEXEC | OFlags::RDWR.bits();
    let mut alloc = Alloc {
        size,
        fd_flags,
        ..Alloc::default()
    };
    // SAFETY: an `Alloc` belongs to ALLOC; it has no addresses.
    unsafe { call(fd, abi::ALLOC, &mut alloc) }?;
    own(alloc.fd)
}

/// EXPORT: `export` is set here; its status is valid when this fails. `meta` says
/// everything but the length of `blob`.
pub(crate) fn export(
    fd: BorrowedFd<'_>,
    export: &mut Export,
    dmabuf: Option<BorrowedFd<'_>>,
    acl: &[Access],
    mut meta: Meta,
    blob: &[u8],
) -> io::Result<OwnedFd> {
    meta.blob_len = count(blob)?;
    let meta = [meta];
    export.dmabuf_fd = dmabuf.map_or(-1, |dmabuf| dmabuf.as_raw_fd());
    export.fd_flags = CLOEXEC;
    export.num_acl = count(acl)?;
    export.acl = address(acl);
    export.access_size = size(acl);
    export.meta = address(&meta);
    export.meta_size = size(&meta);
    export.blob = address(blob);
    // SAFETY: an `Export` belongs to EXPORT, which only reads at its three
    // addresses, of slices as long as its counts and sizes say.
    unsafe { call(fd, abi::EXPORT, export) }?;
    own(export.export_fd)
}

/// IMPORT: `import` is the id and the rights; the rest is set here. Its status
/// is valid when this fails.
pub(crate) fn import(fd: BorrowedFd<'_>, import: &mut Import) -> io::Result<OwnedFd> {
    let writes = import.rights & Rights::WRITE.to_wire() != 0;
    let mode = if writes { OFlags::RDWR } else { OFlags::RDONLY };
    import.fd_flags = CLOEXEC | mode.bits();
    // SAFETY: an `Import` belongs to IMPORT; it has no addresses.
    unsafe { call(fd, abi::IMPORT, import) }?;
    own(import.fd)
}

/// IMPORT that gives a handle, by its flags. As [`import`] otherwise.
pub(crate) fn import_handle(fd: BorrowedFd<'_>, import: &mut Import) -> io::Result<u32> {
    let writes = import.rights & Rights::WRITE.to_wire() != 0;
    let mode = if writes { OFlags::RDWR } else { OFlags::RDONLY };
    import.fd_flags = mode.bits();
    // SAFETY: an `Import` belongs to IMPORT; it has no addresses.
    unsafe { call(fd, abi::IMPORT, import) }?;
    Ok(import.handle)
}

/// `HANDLE_TO_FD`: a descriptor of the dma-buf of a handle.
pub(crate) fn handle_to_fd(fd: BorrowedFd<'_>, handle: u32) -> io::Result<OwnedFd> {
    let mut argument = HandleToFd {
        handle,
        fd_flags: CLOEXEC,
        ..HandleToFd::default()
    };
    // SAFETY: a `HandleToFd` belongs to `HANDLE_TO_FD`; it has no addresses.
    unsafe { call(fd, abi::HANDLE_TO_FD, &mut argument) }?;
    own(argument.fd)
}

/// CLOSE: ends a handle.
pub(crate) fn close(fd: BorrowedFd<'_>, close: &mut Close) -> io::Result<()> {
    // SAFETY: a `Close` belongs to CLOSE; it has no addresses.
    unsafe { call(fd, abi::CLOSE, close) }
}

/// PUSH: frames of `size` bytes each with their records. The answer is valid when this fails.
pub(crate) fn push(
    fd: BorrowedFd<'_>,
    push: &mut Push,
    frames: &[u8],
    size: usize,
) -> io::Result<()> {
    push.frames = address(frames);
    push.count = u32::try_from(frames.len().checked_div(size).unwrap_or_default())
        .map_err(|_| Errno::INVAL)?;
    push.entry_size = u32::try_from(size).map_err(|_| Errno::INVAL)?;
    // SAFETY: a `Push` belongs to PUSH, which only reads at its address, `count` times
    // `entry_size` bytes, which is no more than `frames` has.
    unsafe { call(fd, abi::PUSH, push) }
}

/// RETURN. The answer is valid when this fails.
pub(crate) fn give_back(
    fd: BorrowedFd<'_>,
    back: &mut Return,
    frames: &[ReturnFrame],
) -> io::Result<()> {
    back.frames = address(frames);
    back.count = count(frames)?;
    back.entry_size = size(frames);
    // SAFETY: a `Return` belongs to RETURN, which only reads at its address, `count` entries.
    unsafe { call(fd, abi::RETURN, back) }
}

/// SET_META: `io` is the export, `meta` says everything but the length of `blob`.
pub(crate) fn set_meta(
    fd: BorrowedFd<'_>,
    io: &mut MetaIo,
    mut meta: Meta,
    blob: &[u8],
) -> io::Result<()> {
    meta.blob_len = count(blob)?;
    let meta = [meta];
    io.meta = address(&meta);
    io.meta_size = size(&meta);
    io.blob = address(blob);
    // SAFETY: a `MetaIo` belongs to SET_META, which only reads at its two addresses, of
    // `meta_size` and `blob_len` bytes.
    unsafe { call(fd, abi::SET_META, io) }
}

/// GET_META: `io` is the id; `blob` is the room for the blob. Returns the metadata, which says
/// how long that is.
pub(crate) fn get_meta(fd: BorrowedFd<'_>, io: &mut MetaIo, blob: &mut [u8]) -> io::Result<Meta> {
    let mut meta = [Meta {
        blob_len: count(blob)?,
        ..Meta::default()
    }];
    io.meta = address_mut(&mut meta);
    io.meta_size = size(&meta);
    io.blob = address_mut(blob);
    // SAFETY: a `MetaIo` belongs to GET_META; its addresses are of `meta_size` and `blob_len`
    // bytes that are exclusively borrowed. Any bytes are a valid `Meta`.
    unsafe { call(fd, abi::GET_META, io) }?;
    let [meta] = meta;
    Ok(meta)
}

/// QUERY: `query` is the id.
pub(crate) fn query(fd: BorrowedFd<'_>, query: &mut Query) -> io::Result<()> {
    // SAFETY: a `Query` belongs to QUERY; it has no addresses.
    unsafe { call(fd, abi::QUERY, query) }
}

/// QUIESCE: `quiesce` is the export and the mode. Its status is valid when this fails.
pub(crate) fn quiesce(fd: BorrowedFd<'_>, quiesce: &mut Quiesce) -> io::Result<()> {
    // SAFETY: a `Quiesce` belongs to QUIESCE; it has no addresses.
    unsafe { call(fd, abi::QUIESCE, quiesce) }
}

/// `struct dma_buf_sync` of `linux/dma-buf.h`.
#[repr(C)]
struct DmaBufSync {
    flags: u64,
}

/// `DMA_BUF_IOCTL_SYNC`: `_IOW('b', 0, struct dma_buf_sync)`.
const DMA_BUF_IOCTL_SYNC: u32 = 0x4008_6200;
const DMA_BUF_SYNC_END: u64 = 1 << 2;

/// Which end of CPU access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edge {
    Start,
    End,
}

/// `DMA_BUF_IOCTL_SYNC`, also restarted at `EAGAIN`, as the kernel's documentation demands.
pub(crate) fn sync(fd: BorrowedFd<'_>, rights: Rights, edge: Edge) -> io::Result<()> {
    // DMA_BUF_SYNC_READ and _WRITE are the bits of `Rights`.
    let class = u64::from(rights.to_wire());
    let flags = match edge {
        Edge::Start => class,
        Edge::End => class | DMA_BUF_SYNC_END,
    };
    loop {
        let mut sync = DmaBufSync { flags };
        // SAFETY: a `DmaBufSync` belongs to this request; it has no addresses.
        match unsafe { call(fd, DMA_BUF_IOCTL_SYNC, &mut sync) } {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// A descriptor that knows none of our requests.
    fn null() -> std::fs::File {
        std::fs::File::open("/dev/null").unwrap()
    }

    #[test]
    fn request_to_another_device_is_enotty() {
        let null = null();
        let fd = null.as_fd();
        let errors = [
            info(fd).unwrap_err(),
            peers(fd, &mut Table::default(), &mut [Peer::default(); 2]).unwrap_err(),
            list(fd, &mut Table::default(), &mut [Buffer::default(); 2]).unwrap_err(),
            alloc(fd, 4096).unwrap_err(),
            export(
                fd,
                &mut Export::default(),
                Some(fd),
                &[Access::default()],
                Meta::default(),
                b"blob",
            )
            .unwrap_err(),
            import(fd, &mut Import::default()).unwrap_err(),
            set_meta(fd, &mut MetaIo::default(), Meta::default(), b"blob").unwrap_err(),
            get_meta(fd, &mut MetaIo::default(), &mut [0; 16]).unwrap_err(),
            query(fd, &mut Query::default()).unwrap_err(),
            quiesce(fd, &mut Quiesce::default()).unwrap_err(),
            import_handle(fd, &mut Import::default()).unwrap_err(),
            handle_to_fd(fd, 1).unwrap_err(),
            close(fd, &mut Close::default()).unwrap_err(),
            push(fd, &mut Push::default(), &[0; 64], 32).unwrap_err(),
            give_back(fd, &mut Return::default(), &[ReturnFrame::default()]).unwrap_err(),
            sync(fd, Rights::RW, Edge::Start).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(Errno::from_io_error(&error), Some(Errno::NOTTY), "{error}");
        }
    }

    #[test]
    fn export_argument_tells_addresses_and_lengths() {
        let null = null();
        let (acl, blob) = ([Access::default(); 3], [7; 5]);
        let mut argument = Export::default();
        let meta = Meta::default();
        let dmabuf = Some(null.as_fd());
        export(null.as_fd(), &mut argument, dmabuf, &acl, meta, &blob).unwrap_err();
        assert_eq!(
            (argument.num_acl, argument.acl),
            (3, acl.as_ptr().addr() as u64)
        );
        assert_eq!(
            (argument.access_size, argument.meta_size, argument.blob),
            (16, 176, blob.as_ptr().addr() as u64)
        );
        assert_eq!(argument.dmabuf_fd, null.as_raw_fd());
        assert_eq!(argument.fd_flags, libc::O_CLOEXEC as u32);
    }

    #[test]
    fn import_descriptor_is_writable_only_if_asked() {
        let null = null();
        for (rights, mode) in [(Rights::READ, libc::O_RDONLY), (Rights::RW, libc::O_RDWR)] {
            let mut argument = Import {
                rights: rights.to_wire(),
                ..Import::default()
            };
            import(null.as_fd(), &mut argument).unwrap_err();
            assert_eq!(argument.fd_flags, (mode | libc::O_CLOEXEC) as u32);
        }
    }

    #[test]
    fn descriptor_below_zero_is_no_descriptor() {
        assert_eq!(
            Errno::from_io_error(&own(-1).unwrap_err()),
            Some(Errno::PROTO)
        );
    }
}
