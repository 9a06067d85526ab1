// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/dev/bufshare`: everything that asks the driver

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use bufshare_protocol::event::{self, Event};
use bufshare_protocol::ioctl::{self as abi, Buffer as RawBuffer, Peer as RawPeer, Table};
use bufshare_protocol::limits::{MAX_BLOB, MAX_LIST};
use bufshare_protocol::types::{BufferId, Meta, Name, Rights, Way};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::{
    BufferInfo, DmaBuf, Export, ExportOptions, Import, Info, MissingFeature, Offers, Peer, ioctl,
};

/// The open device
///
/// Each has its own queue of events, which begins when it is opened. All
/// functions may be called from several threads at once; each event goes to
/// one of them. Exports and imports live on when the device is dropped.
///
/// Calls that ask the host wait for its answer: until the driver's timeout
/// (`ETIMEDOUT`), the end of the device (`ENODEV`) or a fatal signal.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
}

impl Device {
    /// Where the driver puts the device.
    pub const PATH: &str = "/dev/bufshare";

    /// Opens the device.
    ///
    /// # Errors
    /// There is none, or the caller may not open it.
    pub fn open() -> Result<Self> {
        Self::open_at(Self::PATH)
    }

    /// Opens the device at another path.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_at(path: impl AsRef<Path>) -> Result<Self> {
        // Nonblocking, so that of two threads that saw the same event the
        // slower one goes back to poll instead of waiting in read.
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let open = || rustix::fs::open(path.as_ref(), flags, Mode::empty());
        let fd = rustix::io::retry_on_intr(open)
            .map_err(|errno| Error::new(crate::error::OPEN, errno))?;
        Ok(Self { fd })
    }

    /// The device, its limits, and who we are. The host is asked for the windows in use.
    ///
    /// `examples/limits.rs`:
    ///
    /// ```no_run
    #[doc = include_str!("../examples/limits.rs")]
    /// ```
    ///
    /// # Errors
    /// The device is gone, or the host does not answer.
    pub fn info(&self) -> Result<Info> {
        let op = "ask for the device's limits";
        let raw = ioctl::info(self.as_fd()).map_err(|errno| Error::new(op, errno))?;
        Ok(Info {
            version: raw.version,
            caps: raw.caps,
            max_windows: raw.max_windows,
            max_extents: raw.max_extents,
            max_buffers: raw.max_buffers,
            max_attachments: raw.max_attachments,
            max_blob: raw.max_blob,
            map_align: raw.map_align,
            shm_size: raw.shm_size,
            max_buffer_size: raw.max_buffer_size,
            peer_id: raw.peer_id,
            windows_used: raw.windows_used,
            name: Name::from_wire(&raw.name).map_err(|_| Error::nonsense(op))?,
        })
    }

    /// What the driver cannot do because of the kernel it was built for; `None` from a
    /// driver that does not say.
    ///
    /// # Errors
    /// The device's folder in `/sys` cannot be read.
    pub fn missing_features(&self) -> Result<Option<Vec<MissingFeature>>> {
        let op = "read what the kernel cannot do";
        let device = rustix::fs::fstat(&self.fd)
            .map_err(|errno| Error::new(op, errno))?
            .st_rdev;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let folder = format!("/sys/dev/char/{major}:{minor}");
        let text = match std::fs::read_to_string(format!("{folder}/missing_features")) {
            // Without the folder, /sys is not mounted.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::metadata(&folder).map(|_| None)
            }
            read => read.map(Some),
        };
        match text {
            Ok(text) => Ok(text.as_deref().map(MissingFeature::parse)),
            Err(error) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                Err(Error::new(op, errno))
            }
        }
    }

    /// All peers, ourselves included.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn peers(&self) -> Result<Vec<Peer>> {
        let op = "list the peers";
        let fetch =
            |table: &mut Table, room: &mut [RawPeer]| ioctl::peers(self.as_fd(), table, room);
        walk(op, fetch)?
            .iter()
            .map(|raw| Peer::from_wire(raw).map_err(|_| Error::nonsense(op)))
            .collect()
    }

    /// The peer with this name, ourselves included; `None` if the host's operator lets us
    /// share nothing with a peer of that name.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn peer(&self, name: &str) -> Result<Option<Peer>> {
        let peers = self.peers()?;
        Ok(peers.into_iter().find(|peer| peer.name.as_str() == name))
    }

    /// All buffers that we export or may import.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn list(&self) -> Result<Vec<BufferInfo>> {
        let op = "list the buffers";
        let fetch =
            |table: &mut Table, room: &mut [RawBuffer]| ioctl::list(self.as_fd(), table, room);
        walk(op, fetch)?
            .iter()
            .map(|raw| BufferInfo::from_wire(raw).map_err(|_| Error::nonsense(op)))
            .collect()
    }

    /// Allocates a dma-buf of this VM's RAM, in few pieces, so that it can be
    /// exported. The size is rounded up to whole pages.
    ///
    /// # Errors
    /// There is too little memory (`ENOMEM`), `size` is 0 (`EINVAL`) or more than the largest
    /// buffer of [`info`](Self::info) (`EFBIG`).
    pub fn alloc(&self, size: u64) -> Result<DmaBuf> {
        let op = "allocate a buffer";
        let fd = ioctl::alloc(self.as_fd(), size).map_err(|errno| Error::new(op, errno))?;
        DmaBuf::from_fd(fd)
    }

    /// Offers a dma-buf, ours or any driver's, to other VMs.
    ///
    /// It stays offered until the [`Export`] is dropped, also when `buffer` is
    /// dropped before.
    ///
    /// # Errors
    /// The driver or the host refuses; [`Error::status`] says why. A `buffer` that
    /// is open for reading only is refused with EACCES unless
    /// [`ExportOptions::access`] names peers, all for reading.
    ///
    /// `examples/export_to.rs`:
    ///
    /// ```no_run
    #[doc = include_str!("../examples/export_to.rs")]
    /// ```
    pub fn export(&self, buffer: impl AsFd, options: &ExportOptions) -> Result<Export> {
        let op = crate::error::EXPORT;
        let acl: Vec<_> = options.access.iter().map(|line| line.to_wire()).collect();
        let mut raw = abi::Export {
            meta: options.meta.to_wire(),
            ..abi::Export::default()
        };
        let blob = &options.meta.blob;
        let fd = ioctl::export(self.as_fd(), &mut raw, buffer.as_fd(), &acl, blob)
            .map_err(|errno| Error::of_host(op, errno, raw.status))?;
        Ok(Export::new(fd, BufferId(raw.id.b), raw.generation))
    }

    /// Takes another VM's buffer as a dma-buf of our own.
    ///
    /// `rights` are [`Rights::READ`] or [`Rights::RW`].
    ///
    /// # Errors
    /// The driver or the host refuses; [`Error::status`] says why. A buffer
    /// that does not exist and one that is not granted are both
    /// [`NotFound`](crate::Status::NotFound).
    pub fn import(&self, id: BufferId, rights: Rights) -> Result<Import> {
        let op = "import the buffer";
        let mut raw = abi::Import {
            id: id.to_wire(),
            rights: rights.to_wire(),
            ..abi::Import::default()
        };
        let fd = ioctl::import(self.as_fd(), &mut raw)
            .map_err(|errno| Error::of_host(op, errno, raw.status))?;
        Ok(Import {
            buffer: DmaBuf::from_fd(fd)?,
            id,
            rights: Rights::from_wire(raw.rights).ok_or_else(|| Error::nonsense(op))?,
            generation: raw.generation,
            owner: raw.owner,
            way: Way::from_wire(raw.way).ok_or_else(|| Error::nonsense(op))?,
            windows: raw.windows,
        })
    }

    /// Replaces the metadata of a buffer that this VM exports. Returns its new
    /// sequence number; importers get an event.
    ///
    /// # Errors
    /// The driver or the host refuses; [`Error::status`] says why.
    pub fn set_meta(&self, id: BufferId, meta: &Meta) -> Result<u64> {
        let op = "set the buffer's metadata";
        let mut raw = abi::MetaIo {
            id: id.to_wire(),
            meta: meta.to_wire(),
            ..abi::MetaIo::default()
        };
        ioctl::set_meta(self.as_fd(), &mut raw, &meta.blob)
            .map_err(|errno| Error::of_host(op, errno, raw.status))?;
        Ok(raw.seq)
    }

    /// The metadata of a buffer and its sequence number.
    ///
    /// # Errors
    /// There is no such buffer for this VM.
    pub fn get_meta(&self, id: BufferId) -> Result<(u64, Meta)> {
        let op = "get the buffer's metadata";
        let mut raw = abi::MetaIo {
            id: id.to_wire(),
            ..abi::MetaIo::default()
        };
        let mut blob = [0; MAX_BLOB];
        ioctl::get_meta(self.as_fd(), &mut raw, &mut blob)
            .map_err(|errno| Error::of_host(op, errno, raw.status))?;
        let blob = usize::try_from(raw.meta.blob_len)
            .ok()
            .and_then(|len| blob.get(..len));
        let meta = blob.and_then(|blob| Meta::from_wire(&raw.meta, blob).ok());
        Ok((raw.seq, meta.ok_or_else(|| Error::nonsense(op))?))
    }

    /// What is known of a buffer.
    ///
    /// # Errors
    /// There is no such buffer for this VM.
    pub fn query(&self, id: BufferId) -> Result<BufferInfo> {
        let op = "ask about the buffer";
        let buffer = RawBuffer {
            id: id.to_wire(),
            ..RawBuffer::default()
        };
        let mut raw = abi::Query {
            buffer,
            ..abi::Query::default()
        };
        ioctl::query(self.as_fd(), &mut raw)
            .map_err(|errno| Error::of_host(op, errno, raw.status))?;
        BufferInfo::from_wire(&raw.buffer).map_err(|_| Error::nonsense(op))
    }

    /// The buffers that other VMs offer: those there are, then what changes.
    /// Events begin when the device is opened, so that no buffer is missed.
    #[must_use]
    pub fn offers(self) -> Offers {
        Offers::new(self)
    }

    /// Waits for the next event; `None` if there was none in time. Without a
    /// timeout it waits as long as it takes. A signal does not end the wait.
    ///
    /// With another event loop, poll the [descriptor](AsFd) for reading and
    /// call this with a timeout of zero until it returns `None`.
    ///
    /// # Errors
    /// The device is gone.
    pub fn next_event(&self, timeout: Option<Duration>) -> Result<Option<Event>> {
        let op = "read an event";
        // A time too far to be represented is never.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            if let Some(event) = self.read_event(op)? {
                return Ok(Some(event));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if !self.wait(left).map_err(|errno| Error::new(op, errno))? {
                return Ok(None);
            }
        }
    }

    /// An event if there is one now.
    fn read_event(&self, op: &'static str) -> Result<Option<Event>> {
        let mut bytes = [0; event::SIZE];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut bytes)) {
            Ok(event::SIZE) => Event::from_bytes(&bytes)
                .map(Some)
                .map_err(|_| Error::nonsense(op)),
            Ok(0) => Err(Error::new(op, Errno::NODEV)),
            Ok(_) => Err(Error::nonsense(op)),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(Error::new(op, errno)),
        }
    }

    /// Whether there may be something to read within `left`; also true when a
    /// signal ended the wait early.
    fn wait(&self, left: Option<Duration>) -> rustix::io::Result<bool> {
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        match poll(&mut fds, left.as_ref()) {
            Ok(ready) => Ok(ready != 0),
            Err(Errno::INTR) => Ok(true),
            Err(errno) => Err(errno),
        }
    }
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Device {
    /// Readable when there is an event.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reads a whole table, piece by piece.
fn walk<T: Copy + Default>(
    op: &'static str,
    mut fetch: impl FnMut(&mut Table, &mut [T]) -> io::Result<()>,
) -> Result<Vec<T>> {
    let mut all = Vec::new();
    let mut room = [T::default(); MAX_LIST];
    let mut cursor = 0;
    loop {
        let mut table = Table {
            cursor,
            ..Table::default()
        };
        fetch(&mut table, &mut room).map_err(|errno| Error::of_host(op, errno, table.status))?;
        let count = usize::try_from(table.count).ok();
        let entries = count.and_then(|count| room.get(..count));
        all.extend_from_slice(entries.ok_or_else(|| Error::nonsense(op))?);
        match table.cursor {
            0 => return Ok(all),
            // A cursor that does not rise would keep us here for ever.
            next if next > cursor => cursor = next,
            _ => return Err(Error::nonsense(op)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use bufshare_protocol::event::EventKind;

    use super::*;

    fn event(seq: u64) -> Event {
        Event {
            kind: EventKind::Offer,
            seq,
            peer: 2,
            id: BufferId([7; 16]),
            handle: 0,
            value: 4096,
        }
    }

    /// A device whose events come from the other end of a socket.
    fn fake() -> (Device, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Device { fd: ours.into() }, theirs)
    }

    #[test]
    fn open_without_device_is_enoent() {
        let error = Device::open_at("/nonexistent/bufshare").unwrap_err();
        assert_eq!(Errno::from_io_error(&error.errno), Some(Errno::NOENT));
    }

    #[test]
    fn events_come_in_order_and_then_none() {
        let (device, driver) = fake();
        driver.send(&event(1).to_bytes()).unwrap();
        driver.send(&event(2).to_bytes()).unwrap();
        assert_eq!(device.next_event(None).unwrap(), Some(event(1)));
        assert_eq!(
            device.next_event(Some(Duration::ZERO)).unwrap(),
            Some(event(2))
        );
        assert_eq!(device.next_event(Some(Duration::ZERO)).unwrap(), None);
    }

    #[test]
    fn next_event_waits_for_a_late_event() {
        let (device, driver) = fake();
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            driver.send(&event(1).to_bytes()).unwrap();
            driver
        });
        assert_eq!(
            device.next_event(Some(Duration::MAX)).unwrap(),
            Some(event(1))
        );
        late.join().unwrap();
    }

    #[test]
    fn next_event_ends_with_its_timeout() {
        let (device, _driver) = fake();
        let start = Instant::now();
        let timeout = Duration::from_millis(30);
        assert_eq!(device.next_event(Some(timeout)).unwrap(), None);
        assert!(start.elapsed() >= timeout);
    }

    #[test]
    fn next_event_survives_signals() {
        use std::os::unix::thread::JoinHandleExt;
        // A handler, lest the signal ends the process; without SA_RESTART.
        extern "C" fn ignore(_: libc::c_int) {}
        let handler = ignore as extern "C" fn(libc::c_int);
        // SAFETY: an all-zero sigaction is a valid one.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as libc::sighandler_t;
        // SAFETY: the handler does nothing; no other test uses this signal.
        let set = unsafe { libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()) };
        assert_eq!(set, 0);

        let (device, driver) = fake();
        let reader = std::thread::spawn(move || device.next_event(None));
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(5));
            // SAFETY: the thread has not been joined, so that its id is valid.
            unsafe { libc::pthread_kill(reader.as_pthread_t(), libc::SIGUSR2) };
        }
        driver.send(&event(1).to_bytes()).unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), Some(event(1)));
    }

    #[test]
    fn event_that_makes_no_sense_is_an_error() {
        let (device, driver) = fake();
        for bytes in [&[0u8; 64][..], &event(1).to_bytes()[..63]] {
            driver.send(bytes).unwrap();
            let error = device.next_event(None).unwrap_err();
            assert_eq!(Errno::from_io_error(&error.errno), Some(Errno::PROTO));
        }
    }

    #[test]
    fn end_of_the_device_is_an_error() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let device = Device { fd: ours.into() };
        theirs.write_all(&event(1).to_bytes()).unwrap();
        drop(theirs);
        assert_eq!(device.next_event(None).unwrap(), Some(event(1)));
        let error = device.next_event(None).unwrap_err();
        assert_eq!(Errno::from_io_error(&error.errno), Some(Errno::NODEV));
    }

    /// Serves the numbers 1 to `last` as table entries that are their own keys.
    fn serve(last: u64) -> impl FnMut(&mut Table, &mut [u64]) -> io::Result<()> {
        move |table, room| {
            let entries: Vec<_> = (1..=last)
                .filter(|n| *n > table.cursor)
                .take(room.len())
                .collect();
            room[..entries.len()].copy_from_slice(&entries);
            table.count = entries.len().try_into().unwrap();
            table.cursor = entries.last().copied().filter(|n| *n < last).unwrap_or(0);
            Ok(())
        }
    }

    #[test]
    fn table_is_read_to_its_end() {
        for last in [0, 1, 64, 65, 200] {
            assert_eq!(
                walk("x", serve(last)).unwrap(),
                (1..=last).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn table_that_never_ends_is_an_error() {
        let stuck = |table: &mut Table, _: &mut [u64]| {
            table.count = 0;
            table.cursor = 5;
            Ok(())
        };
        assert!(walk("x", stuck).is_err());
    }

    #[test]
    fn table_longer_than_its_room_is_an_error() {
        let liar = |table: &mut Table, _: &mut [u64]| {
            table.count = 65;
            Ok(())
        };
        assert!(walk("x", liar).is_err());
    }

    #[test]
    fn refused_table_tells_the_status() {
        let refuse = |table: &mut Table, _: &mut [u64]| {
            table.status = crate::Status::HostError.to_wire();
            Err(Errno::REMOTEIO.into())
        };
        let error = walk("x", refuse).unwrap_err();
        assert_eq!(error.status, Some(crate::Status::HostError));
    }
}
