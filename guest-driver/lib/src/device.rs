// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/dev/bufshare`: everything that asks the driver

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bufshare_protocol::ioctl::{self as abi, Buffer as RawBuffer, Peer as RawPeer, Table};
use bufshare_protocol::limits::{MAX_BLOB, MAX_FRAME_RECORD, MAX_LIST};
use bufshare_protocol::request::{QUIESCE_ACTIVE, QUIESCE_QUIESCED};
use bufshare_protocol::{response, types};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::{
    BufferId, BufferInfo, DmaBuf, Event, Export, ExportOptions, FrameImport, Import, Info, Joined,
    Meta, MissingFeature, Offers, Operation, Peer, Properties, Push, Rights, Status, Stream, Way,
    frame, ioctl,
};

/// The open device
///
/// Each has its own queue of events, which begins when it is opened. All
/// functions may be called from several threads at once; each event goes to
/// one of them. Exports and imports live on when the device is dropped.
///
/// # Blocking
/// Functions that "ask the host" wait for its answer, for as long as the driver has patience: 9
/// seconds, or less if its module's parameter `request_timeout_ms` says so, and `ETIMEDOUT` then.
/// The wait ends sooner when the device goes (`ENODEV`) or a signal kills the process; no other
/// signal ends it. The kernel has no form of these calls that does not wait: a program that may
/// not wait for another one, as a compositor, calls them on a thread of its own, as
/// `examples/event_loop.rs` of [`Offers`] does.
#[derive(Debug)]
pub struct Device {
    fd: Arc<OwnedFd>,
}

impl Device {
    /// Where the driver puts the device.
    pub const PATH: &str = "/dev/bufshare";

    /// Opens the device at [`PATH`](Self::PATH). Asks nobody and does not wait.
    ///
    /// # Errors
    /// There is none (`ENOENT`, `ENXIO`), or the caller may not open it (`EACCES`).
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
        let fd =
            rustix::io::retry_on_intr(open).map_err(|errno| Error::new(Operation::Open, errno))?;
        Ok(Self { fd: Arc::new(fd) })
    }

    /// The device, its limits, and who this VM is. Asks the host, for the mappings in use.
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
        let op = Operation::Info;
        let raw = ioctl::info(self.as_fd()).map_err(|errno| Error::new(op, errno))?;
        Info::from_wire(&raw).ok_or_else(|| Error::nonsense(op))
    }

    /// Whether frames can be handed over: [pushed](Self::push), or given to who
    /// [joins](Self::join) a stream. Asks the host.
    ///
    /// # Errors
    /// They cannot, as the host's device is of an earlier version
    /// ([`Unsupported`](crate::Status::Unsupported)), or this VM's driver (`EOPNOTSUPP`, without a
    /// status); or as [`info`](Self::info).
    pub fn check_frames(&self) -> Result<()> {
        let info = self.info()?;
        let (op, errno) = (Operation::HandOver, Errno::OPNOTSUPP);
        if info.max_batch == 0 {
            Err(Error::new(op, errno))
        } else if info.streams {
            Ok(())
        } else {
            Err(Error {
                status: Some(Status::Unsupported),
                ..Error::new(op, errno)
            })
        }
    }

    /// What the driver cannot do because of the kernel it was built for; `None` from a
    /// driver that does not say. Reads `/sys`, which does not wait.
    ///
    /// # Errors
    /// The device's folder in `/sys` cannot be read.
    pub fn missing_features(&self) -> Result<Option<Vec<MissingFeature>>> {
        let op = Operation::MissingFeatures;
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

    /// The peers that this VM may share anything with, and itself. Asks the host, once for every
    /// 64 of them.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn peers(&self) -> Result<Vec<Peer>> {
        let op = Operation::Peers;
        let fetch =
            |table: &mut Table, room: &mut [RawPeer]| ioctl::peers(self.as_fd(), table, room);
        walk(op, fetch)?
            .iter()
            .map(response::PeerInfo::from_wire)
            .map(|peer| peer.map(Peer::from_protocol))
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| Error::nonsense(op))
    }

    /// The peer with this name, this VM included; `None` if the host's operator lets this VM
    /// share nothing with a peer of that name. Asks the host, as [`peers`](Self::peers).
    ///
    /// # Errors
    /// The host does not answer.
    pub fn peer(&self, name: &str) -> Result<Option<Peer>> {
        let peers = self.peers()?;
        Ok(peers.into_iter().find(|peer| peer.name.as_str() == name))
    }

    /// All buffers that this VM exports or may import, in the order of their generations. Asks
    /// the host, once for every 64 of them.
    ///
    /// Whoever wants to know what changes, too, takes [`offers`](Self::offers).
    ///
    /// # Errors
    /// The host does not answer.
    pub fn list(&self) -> Result<Vec<BufferInfo>> {
        let op = Operation::List;
        let fetch =
            |table: &mut Table, room: &mut [RawBuffer]| ioctl::list(self.as_fd(), table, room);
        walk(op, fetch)?
            .iter()
            .map(|raw| buffer_info(op, raw))
            .collect()
    }

    /// Allocates a dma-buf of at least `size` bytes of this VM's RAM, in few pieces, so that it
    /// can be exported. It is rounded up to whole pages, and to
    /// [`Info::map_align`](crate::Info::map_align). Asks nobody, but may wait for memory.
    ///
    /// # Errors
    /// There is too little memory (`ENOMEM`), or `size` is 0 (`EINVAL`) or more than
    /// [`Info::max_buffer_size`](crate::Info::max_buffer_size) (`EFBIG`).
    pub fn alloc(&self, size: u64) -> Result<DmaBuf> {
        let op = Operation::Alloc;
        let fd = ioctl::alloc(self.as_fd(), size).map_err(|errno| Error::new(op, errno))?;
        DmaBuf::from_fd(fd)
    }

    /// Offers a dma-buf, ours or any driver's, to other VMs.
    ///
    /// It stays offered until the [`Export`] is dropped, also when `buffer` is
    /// dropped before. A buffer that is exported already, to the same peers with the same rights,
    /// is the same export: with the same id, until the last [`Export`] of it is dropped.
    ///
    /// Asks the host; of a buffer of another driver that is being moved it also
    /// waits for the end of that, no longer than for the host.
    ///
    /// # Errors
    /// The driver or the host refuses; [`Error::status`] says why. A `buffer` that
    /// is open for reading only is refused with `EACCES` unless
    /// [`ExportOptions::access`] names peers, all for reading; one that is an import with
    /// `EPERM`; one that is exported to the same peers, but was with other metadata, with
    /// `EEXIST`; and with `EDQUOT`, without a status, if the exports of this VM would pin more
    /// memory of other drivers than the parameter `pin_limit_mb` of the driver's module allows.
    ///
    /// `examples/export_to.rs`:
    ///
    /// ```no_run
    #[doc = include_str!("../examples/export_to.rs")]
    /// ```
    pub fn export(&self, buffer: impl AsFd, options: &ExportOptions) -> Result<Export> {
        let raw = abi::Export::default();
        self.offer(Operation::Export, raw, Some(buffer.as_fd()), options)
    }

    /// As [`export`](Self::export), of a buffer that is part of a stream of this VM: it is for
    /// all for whom that is, as `options` cannot say. It stays part of it when the stream is over.
    ///
    /// # Errors
    /// As [`export`](Self::export); `options` has an access list (`EINVAL`); the stream is over
    /// ([`Error::is_absent`]).
    pub fn export_part(
        &self,
        stream: &Stream,
        buffer: impl AsFd,
        options: &ExportOptions,
    ) -> Result<Export> {
        let raw = abi::Export {
            flags: abi::EXPORT_PART,
            stream_fd: stream.as_fd().as_raw_fd(),
            ..abi::Export::default()
        };
        self.offer(Operation::Export, raw, Some(buffer.as_fd()), options)
    }

    /// Offers a stream: `options` say to whom, and its name, which has to be unlike that of all
    /// other streams of this VM, and what its frames are. Asks the host.
    ///
    /// # Errors
    /// This VM has a stream of that name ([`Exists`](crate::Status::Exists)), also one of another
    /// program: end that, or choose another name. The name is empty
    /// ([`BadMeta`](crate::Status::BadMeta)); `options` name more than 16 peers, or other rights
    /// than can be granted (`EINVAL`). The exports of this VM, to which streams count, are as many
    /// as [`Info::max_buffers`](crate::Info::max_buffers) ([`TooMany`](crate::Status::TooMany)):
    /// end some. Else as [`export`](Self::export), but for what is about memory.
    pub fn create_stream(&self, options: &ExportOptions) -> Result<Stream> {
        let raw = abi::Export {
            flags: abi::EXPORT_STREAM,
            ..abi::Export::default()
        };
        self.offer(Operation::CreateStream, raw, None, options)
            .map(Stream::new)
    }

    fn offer(
        &self,
        op: Operation,
        mut raw: abi::Export,
        buffer: Option<BorrowedFd<'_>>,
        options: &ExportOptions,
    ) -> Result<Export> {
        let acl: Vec<_> = options.access.iter().map(|line| line.to_wire()).collect();
        let (meta, blob) = (options.meta.to_protocol().to_wire(), &options.meta.blob);
        let fd = ioctl::export(self.as_fd(), &mut raw, buffer, &acl, meta, blob)
            .map_err(|errno| Error::of_host(op, errno, raw.status))?;
        Ok(Export::new(fd, BufferId(raw.id.b), raw.generation))
    }

    /// Joins another VM's stream, until what is returned is dropped. Asks the host twice, or
    /// once if a program of this VM has joined it already.
    ///
    /// To join is to be counted by its exporter, and to hear of its end: see [`Joined`]. Its
    /// [record](Self::get_meta) is to be read next, and then its buffers
    /// [consumed](Self::consume): those of [`list`](Self::list) and of later offers whose
    /// [`stream`](crate::BufferInfo::stream) it is.
    ///
    /// # Errors
    /// There is no such stream for this VM ([`Error::is_absent`]), or it is a buffer (`EINVAL`).
    /// This device has 512 buffers that it consumes and streams (`EMFILE`): open another one for
    /// more. The imports of this VM, to which joins count, are as many as
    /// [`Info::max_attachments`](crate::Info::max_attachments)
    /// ([`TooMany`](crate::Status::TooMany)): end some. Other drivers of this VM use buffers that
    /// were imported before its device was reset (`EBUSY`): they have to end that. The device is
    /// gone, or the host does not answer.
    pub fn join(&self, id: BufferId) -> Result<Joined> {
        let op = Operation::Join;
        // What it is does not change. As the import of a buffer it would be refused for reasons
        // that are none here.
        if !self.ask_about(op, id)?.is_stream {
            return Err(Error::new(op, Errno::INVAL));
        }
        Joined::new(self.fd.clone(), id)
    }

    /// Takes another VM's buffer as a dma-buf of this VM.
    ///
    /// `rights` are [`Rights::READ`] or [`Rights::RW`]; see [`Info::rights_to_read`] where
    /// reading is enough. Asks the host. The buffer is not mapped yet: that is done when it is
    /// first needed, and is waited for then.
    ///
    /// # Errors
    /// The driver or the host refuses; [`Error::status`] says why. A buffer
    /// that does not exist and one that is not granted are both
    /// [`NotFound`](crate::Status::NotFound). What [is a stream](BufferInfo::is_stream) has no
    /// bytes ([`NoWay`](crate::Status::NoWay)): [join](Self::join) it.
    pub fn import(&self, id: BufferId, rights: Rights) -> Result<Import> {
        let op = Operation::Import;
        let mut raw = abi::Import {
            id: id.to_wire(),
            rights: rights.to_wire(),
            ..abi::Import::default()
        };
        let fd = ioctl::import(self.as_fd(), &mut raw)
            .map_err(|errno| Error::of_host(op, errno, raw.status))?;
        imported(id, fd, &raw)
    }

    /// As [`import`](Self::import), and is given the frames of the buffer from now on: whatever
    /// its exporter [pushes](Self::push) whose first buffer this is. This device reads an event
    /// [`Pushed`](crate::EventKind::Pushed) of each, and has to [give it back](Self::give_back).
    /// Asks the host, unless a program of this VM consumes it already, with the same rights.
    ///
    /// Another thread that reads events of this device may have one of a frame before this
    /// returns.
    ///
    /// # Errors
    /// As [`import`](Self::import); and this device has 512 buffers that it consumes and streams
    /// that it has joined: open another one for more; or this process has as many descriptors as
    /// it may (both `EMFILE`). 64 of this VM consume the buffer with these rights (`EUSERS`). Four
    /// imports of it by this VM, with different rights, or about to end, are given its frames
    /// ([`TooMany`](crate::Status::TooMany)): ask with the rights that the others have, or later.
    pub fn consume(&self, id: BufferId, rights: Rights) -> Result<FrameImport> {
        self.consume_within(id, rights, 0)
    }

    /// As [`consume`](Self::consume), if mapping it takes no more VMM mappings than that; 0: as
    /// many as there are.
    ///
    /// # Errors
    /// As [`consume`](Self::consume); it takes more
    /// ([`TooFragmented`](crate::Status::TooFragmented)).
    pub(crate) fn consume_within(
        &self,
        id: BufferId,
        rights: Rights,
        max_windows: u32,
    ) -> Result<FrameImport> {
        let op = Operation::Consume;
        let mut raw = abi::Import {
            id: id.to_wire(),
            rights: rights.to_wire(),
            flags: abi::IMPORT_HANDLE | abi::IMPORT_CONSUME,
            max_windows,
            ..abi::Import::default()
        };
        let handle = ioctl::import_handle(self.as_fd(), &mut raw)
            .map_err(|errno| Error::of_host(op, errno, raw.status))?;
        let import = ioctl::handle_to_fd(self.as_fd(), handle)
            .map_err(|errno| Error::new(op, errno))
            .and_then(|fd| imported(id, fd, &raw));
        match import {
            Ok(import) => Ok(FrameImport::new(self.fd.clone(), handle, import)),
            Err(error) => {
                let mut close = abi::Close {
                    handle,
                    ..abi::Close::default()
                };
                let _ = ioctl::close(self.as_fd(), &mut close);
                Err(error)
            }
        }
    }

    /// Hands frames over, at most 16, all or none; returns the number of the first, whose
    /// successors are those of the others. Asks the host, which waits for nobody.
    ///
    /// The caller has ended its access, and its devices theirs, and begins none before the event
    /// [`Returned`](crate::EventKind::Returned) of the frame, which this device reads: when all
    /// consumers have given it back, or at once if there are none. The end of its first export,
    /// whether this program or the host ends it, is as much for the frame's other buffers, and
    /// there is no such event then. If the host does not answer in time, or a signal ends the
    /// wait, it may yet push the frames: then there are such events.
    ///
    /// # Errors
    /// [`Error::entry`] says which is the first that is wrong.
    /// A buffer is part of a frame that was not returned, or whose return was not read
    /// (`EBUSY`); an export has ended ([`Error::is_absent`]), or is that of a stream
    /// ([`BadField`](crate::Status::BadField)); a record says more bytes than a
    /// buffer has, or nonsense ([`BadMeta`](crate::Status::BadMeta)); there is more damage than
    /// 16 rectangles, or there are more buffers than 4 (`EINVAL`); the host does not answer.
    pub fn push(&self, frames: &[Push<'_>]) -> Result<u64> {
        let op = Operation::Push;
        let (bytes, size) = frame::entries(frames)?;
        // Of what fails before the driver looks at them, no frame is the cause.
        let mut raw = abi::Push {
            entry: u32::MAX,
            ..abi::Push::default()
        };
        ioctl::push(self.as_fd(), &mut raw, &bytes, size).map_err(|errno| {
            Error::of_host(op, errno, raw.status).of_entry(raw.entry, frames.len())
        })?;
        Ok(raw.frame)
    }

    /// Gives frames back, at most 16, all or none. Does not wait for the host.
    ///
    /// # Errors
    /// [`Error::entry`] says which is the first that is wrong.
    /// A consumer does not have that frame, or not any more, as the buffer was revoked
    /// ([`Unbalanced`](crate::Status::Unbalanced)); one is of another device
    /// (`ENOENT`); the device is gone (`ENODEV`).
    pub fn give_back(&self, frames: &[(&FrameImport, u64)]) -> Result<()> {
        let op = Operation::GiveBack;
        let foreign = |(one, _): &(&FrameImport, u64)| !one.is_of(&self.fd);
        if let Some(entry) = frames.iter().position(foreign) {
            let error = Error::new(op, Errno::NOENT);
            return Err(error.of_entry(u32::try_from(entry).unwrap_or(u32::MAX), frames.len()));
        }
        let entries: Vec<_> = frames
            .iter()
            .map(|(one, frame)| one.entry(*frame))
            .collect();
        let mut raw = abi::Return {
            entry: u32::MAX,
            ..abi::Return::default()
        };
        ioctl::give_back(self.as_fd(), &mut raw, &entries).map_err(|errno| {
            Error::of_host(op, errno, raw.status).of_entry(raw.entry, frames.len())
        })
    }

    /// As [`import`](Self::import), but `None` if there is no such buffer for this VM, as
    /// [`Error::is_absent`] says: its exporter may end it between its offer and this call, which
    /// is ordinary.
    ///
    /// It asks the host and waits for the answer, as `import` does.
    ///
    /// # Errors
    /// All others of [`import`](Self::import).
    pub fn import_if_offered(&self, id: BufferId, rights: Rights) -> Result<Option<Import>> {
        if_present(self.import(id, rights))
    }

    /// Replaces the metadata of what is exported. Returns its new
    /// sequence number; all who may import it get an event
    /// [`Meta`](crate::EventKind::Meta). Asks the host.
    ///
    /// # Errors
    /// The export has ended ([`Error::is_absent`]), the name of a stream would be another one
    /// ([`BadMeta`](crate::Status::BadMeta)), or the driver or the host refuses;
    /// [`Error::status`] says why.
    pub fn set_meta(&self, export: &Export, meta: &Meta) -> Result<u64> {
        let op = Operation::SetMeta;
        let mut raw = abi::MetaIo {
            export_fd: export.as_raw_fd(),
            ..abi::MetaIo::default()
        };
        let record = meta.to_protocol().to_wire();
        ioctl::set_meta(self.as_fd(), &mut raw, record, &meta.blob)
            .map_err(|errno| Error::of_host(op, errno, raw.status))?;
        Ok(raw.seq)
    }

    /// Promises the host that nothing of this VM writes to the memory of an export, which
    /// [`alloc`](Self::alloc) has to have made. An export that is dropped in this state is
    /// one whose memory the host may take from an importer that does not let go of it, without
    /// its help; a host of this version does not yet.
    ///
    /// It is the memory that is quiesced, so the host is asked about each export of it.
    /// [`Mapping`](crate::Mapping)s stay and need nothing: whatever uses the memory next ends the
    /// state, and waits for the host's answer to that, as a page fault of this process, a begin of
    /// CPU access, or a driver's mapping. A fault that waits in vain is `SIGBUS`, unless the access
    /// is one of the checked forms of [`CpuAccess`](crate::CpuAccess). [`resume`](Self::resume)
    /// waits beforehand. To quiesce what is quiesced is no error. Asks the host.
    ///
    /// # Errors
    /// The memory is in use (`EBUSY`): a driver has it mapped, CPU access was begun and has
    /// not ended, or somebody else quiesces it or is about to use it. It is of another driver, or
    /// none, as a stream's (`EOPNOTSUPP`). The export has ended ([`Error::is_absent`]). The host refuses or does not
    /// answer; the memory can be used all the same, as soon as the host says so.
    pub fn quiesce(&self, export: &Export) -> Result<()> {
        self.set_quiesced(Operation::Quiesce, export, QUIESCE_QUIESCED)
    }

    /// Ends what [`quiesce`](Self::quiesce) began, as the next use of the memory would. It is no
    /// error if there is nothing to end. Asks the host, and waits for somebody else's `quiesce`.
    ///
    /// # Errors
    /// The export and all that it shared are gone ([`Error::is_absent`]), its memory is not of this
    /// library's [`alloc`](Self::alloc), or it has none, as a stream (`EOPNOTSUPP`), or the host refuses or does not answer:
    /// then the memory stays quiesced, and the next use of it asks again.
    pub fn resume(&self, export: &Export) -> Result<()> {
        self.set_quiesced(Operation::Resume, export, QUIESCE_ACTIVE)
    }

    fn set_quiesced(&self, op: Operation, export: &Export, mode: u32) -> Result<()> {
        let mut raw = abi::Quiesce {
            export_fd: export.as_raw_fd(),
            mode,
            ..abi::Quiesce::default()
        };
        ioctl::quiesce(self.as_fd(), &mut raw)
            .map_err(|errno| Error::of_host(op, errno, raw.status))
    }

    /// The sequence number of the metadata of a buffer, and the metadata. Asks the host.
    ///
    /// An image that this version of the library cannot make sense of is none.
    ///
    /// # Errors
    /// There is no such buffer for this VM ([`Error::is_absent`]), or the host does not answer.
    pub fn get_meta(&self, id: BufferId) -> Result<(u64, Meta)> {
        let op = Operation::GetMeta;
        let mut raw = abi::MetaIo {
            id: id.to_wire(),
            ..abi::MetaIo::default()
        };
        let mut blob = [0; MAX_BLOB];
        let record = ioctl::get_meta(self.as_fd(), &mut raw, &mut blob)
            .map_err(|errno| Error::of_host(op, errno, raw.status))?;
        let blob = usize::try_from(record.blob_len)
            .ok()
            .and_then(|len| blob.get(..len));
        let meta = blob.and_then(|blob| types::Meta::understood(&record, blob).ok());
        let meta = meta.ok_or_else(|| Error::nonsense(op))?;
        Ok((raw.seq, Meta::from_protocol(meta)))
    }

    /// What is known of a buffer. Asks the host.
    ///
    /// # Errors
    /// There is no such buffer for this VM ([`Error::is_absent`]), or the host does not answer.
    pub fn query(&self, id: BufferId) -> Result<BufferInfo> {
        self.ask_about(Operation::Query, id)
    }

    fn ask_about(&self, op: Operation, id: BufferId) -> Result<BufferInfo> {
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
        buffer_info(op, &raw.buffer)
    }

    /// The buffers that other VMs offer: those there are, then what changes.
    /// Events begin when the device is opened, so that no buffer is missed. This asks nobody
    /// yet: [`Offers::next_change`] does.
    #[must_use]
    pub fn offers(self) -> Offers {
        Offers::new(self)
    }

    /// Waits for the next event; `None` if there was none in time. Without a
    /// timeout it waits as long as it takes, with one of zero not at all. A signal does not end
    /// the wait.
    ///
    /// With another event loop, poll the [descriptor](AsFd) for reading and
    /// call this with a timeout of zero until it returns `None`.
    ///
    /// # Errors
    /// The device is gone (`ENODEV`); events that came before that are returned first. An event
    /// makes no sense (`EPROTO`), as one of a newer driver: it is lost, and if it was of a frame,
    /// that is given back.
    pub fn next_event(&self, timeout: Option<Duration>) -> Result<Option<Event>> {
        let op = Operation::NextEvent;
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
    fn read_event(&self, op: Operation) -> Result<Option<Event>> {
        let mut bytes = [0; MAX_READ];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut bytes)) {
            Ok(0) => Err(Error::new(op, Errno::NODEV)),
            Ok(length) => {
                let bytes = bytes.get(..length).unwrap_or_default();
                let event = Event::from_bytes(bytes);
                if event.is_none() {
                    self.return_unread(bytes);
                }
                event.map(Some).ok_or_else(|| Error::nonsense(op))
            }
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(Error::new(op, errno)),
        }
    }

    /// Gives a frame back that nobody is told of: its exporter would wait for it for ever.
    fn return_unread(&self, bytes: &[u8]) {
        if let Some((handle, frame)) = Event::frame_of_bytes(bytes) {
            let reserved = 0;
            let entry = abi::ReturnFrame {
                handle,
                reserved,
                frame,
            };
            // Fails if it is back already, by the end of its buffer.
            let _ = ioctl::give_back(self.as_fd(), &mut abi::Return::default(), &[entry]);
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
    /// For `poll`: readable (`POLLIN`) when there is an event, and hung up (`POLLHUP`) when the
    /// device is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What IMPORT said.
fn imported(id: BufferId, fd: OwnedFd, raw: &abi::Import) -> Result<Import> {
    Ok(Import {
        buffer: DmaBuf::imported(fd)?,
        id,
        rights: Rights::known(raw.rights),
        generation: raw.generation,
        owner: raw.owner,
        way: Way::from_number(raw.way),
        properties: Properties::from_wire(raw.properties),
        windows: raw.windows,
    })
}

fn buffer_info(op: Operation, raw: &RawBuffer) -> Result<BufferInfo> {
    match response::BufferInfo::from_wire(raw) {
        Ok(buffer) => Ok(BufferInfo::from_protocol(&buffer)),
        Err(_) => Err(Error::nonsense(op)),
    }
}

/// `None` for a buffer that is not there, which is no error here.
fn if_present<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Bytes of the longest event that is read: a frame with the longest record.
const MAX_READ: usize = abi::Pushed::SIZE + MAX_FRAME_RECORD;

/// Entries of a whole table: those of a host with as many VMs and buffers as it may have, 64 with
/// 65536 each. A host that never comes to an end must not take all memory.
const MAX_TABLE: usize = 64 * 65536;

/// Reads a whole table, piece by piece.
fn walk<T: Copy + Default>(
    op: Operation,
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
            // Else it would keep us here for ever.
            next if next > cursor && count != Some(0) && all.len() < MAX_TABLE => cursor = next,
            _ => return Err(Error::nonsense(op)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use bufshare_protocol::event::{Event as WireEvent, EventKind as WireKind, SIZE};

    use super::*;
    use crate::{EventKind, Status};

    fn event(seq: u64) -> Event {
        Event {
            seq,
            peer: 2,
            id: BufferId([7; 16]),
            generation: 3,
            value: 4096,
            ..Event::new(EventKind::Offer)
        }
    }

    /// The same as the driver gives it.
    fn bytes(seq: u64) -> Vec<u8> {
        let event = WireEvent {
            kind: WireKind::Offer,
            seq,
            peer: 2,
            id: BufferId([7; 16]),
            handle: 0,
            generation: 3,
            value: 4096,
            frame: None,
        };
        event.to_bytes()
    }

    /// A device whose events come from the other end of a socket.
    fn fake() -> (Device, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (
            Device {
                fd: Arc::new(ours.into()),
            },
            theirs,
        )
    }

    #[test]
    fn open_without_device_is_enoent() {
        let error = Device::open_at("/nonexistent/bufshare").unwrap_err();
        assert_eq!(Errno::from_io_error(&error.errno), Some(Errno::NOENT));
    }

    #[test]
    fn what_cannot_be_quiesced_or_resumed_says_which_of_the_two() {
        let (device, other) = fake();
        let export = Export::new(other.into(), BufferId([7; 16]), 1);
        for (result, op) in [
            (device.quiesce(&export), Operation::Quiesce),
            (device.resume(&export), Operation::Resume),
        ] {
            let error = result.unwrap_err();
            assert_eq!((error.op, error.status), (op, None));
            assert_eq!(Errno::from_io_error(&error.errno), Some(Errno::NOTTY));
        }
    }

    #[test]
    fn events_come_in_order_and_then_none() {
        let (device, driver) = fake();
        driver.send(&bytes(1)).unwrap();
        driver.send(&bytes(2)).unwrap();
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
            driver.send(&bytes(1)).unwrap();
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
        driver.send(&bytes(1)).unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), Some(event(1)));
    }

    #[test]
    fn event_of_another_length_is_an_error() {
        let (device, driver) = fake();
        driver.send(&bytes(1)[..SIZE - 1]).unwrap();
        let error = device.next_event(None).unwrap_err();
        assert_eq!(Errno::from_io_error(&error.errno), Some(Errno::PROTO));
    }

    #[test]
    fn event_of_an_unknown_kind_is_no_end() {
        let (device, driver) = fake();
        driver.send(&[0xff; SIZE]).unwrap();
        driver.send(&bytes(2)).unwrap();
        let unknown = device.next_event(None).unwrap().unwrap();
        assert_eq!(unknown.kind, EventKind::Unknown(u32::MAX));
        assert_eq!(device.next_event(None).unwrap(), Some(event(2)));
    }

    #[test]
    fn end_of_the_device_is_an_error() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let device = Device {
            fd: Arc::new(ours.into()),
        };
        theirs.write_all(&bytes(1)).unwrap();
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
                walk(Operation::List, serve(last)).unwrap(),
                (1..=last).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn table_that_never_ends_is_an_error() {
        for (count, step) in [(1, 0), (0, 1), (64, 1)] {
            let endless = |table: &mut Table, _: &mut [u64]| {
                (table.count, table.cursor) = (count, table.cursor.max(5) + step);
                Ok(())
            };
            assert!(walk(Operation::List, endless).is_err(), "{count} {step}");
        }
    }

    #[test]
    fn table_longer_than_its_room_is_an_error() {
        let liar = |table: &mut Table, _: &mut [u64]| {
            table.count = 65;
            Ok(())
        };
        assert!(walk(Operation::List, liar).is_err());
    }

    #[test]
    fn refused_table_tells_the_status() {
        let refuse = |table: &mut Table, _: &mut [u64]| {
            table.status = Status::HostError.number();
            Err(Errno::REMOTEIO.into())
        };
        let error = walk(Operation::List, refuse).unwrap_err();
        assert_eq!(error.status, Some(Status::HostError));
    }

    #[test]
    fn a_buffer_that_is_not_there_is_none_and_every_other_error_is_one() {
        let refuse = |status: Status| {
            let error = Error::of_host(Operation::Import, Errno::NOENT.into(), status.number());
            if_present::<()>(Err(error))
        };
        for status in Status::ALL {
            match (status, refuse(*status)) {
                (Status::NotFound | Status::Revoked, answer) => assert_eq!(answer.unwrap(), None),
                (_, answer) => assert_eq!(answer.unwrap_err().status, Some(*status)),
            }
        }
        assert!(if_present::<()>(Err(Error::new(Operation::Import, Errno::TIMEDOUT))).is_err());
        assert_eq!(if_present(Ok(1)).unwrap(), Some(1));
    }
}
