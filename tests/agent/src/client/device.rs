// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/dev/bufshare`, by the guest library

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bufshare::{
    Access, BufferId, BufferInfo, Error, EventKind, ExportOptions, Meta, Name, Push, Rights,
};
use bufshare_agent::ops::{Buffer, Event, Frame, Info, Peer, Refusal};

/// The open device.
pub(crate) struct Device(bufshare::Device);

/// A buffer that is offered.
pub(crate) struct Export(bufshare::Export);

/// A stream of this VM.
pub(crate) struct Stream(bufshare::Stream);

/// A stream of another VM, joined.
#[allow(dead_code, reason = "it is left by dropping this")]
pub(crate) struct Joined(bufshare::Joined);

/// A buffer of another VM whose frames are given.
pub(crate) struct Consumer(bufshare::FrameImport);

/// A buffer of another VM.
pub(crate) struct Import {
    pub(crate) fd: OwnedFd,
    pub(crate) size: u64,
    pub(crate) generation: u64,
    pub(crate) write: bool,
    pub(crate) way: u32,
    pub(crate) windows: u32,
}

/// What the library said, if it was the library.
pub(crate) fn refusal(error: &anyhow::Error) -> Option<Refusal> {
    let inner = error.downcast_ref::<Error>()?;
    Some(Refusal {
        what: format!("{error:#}"),
        errno: inner.errno.raw_os_error().unwrap_or(0),
        status: inner.status.map(|status| status.name().to_owned()),
    })
}

impl Device {
    pub(crate) fn open() -> Result<Self> {
        Ok(Self(bufshare::Device::open()?))
    }

    pub(crate) fn info(&self) -> Result<Info> {
        let info = self.0.info()?;
        Ok(Info {
            name: info.name.as_str().to_owned(),
            caps: info.caps,
            max_windows: info.max_windows,
            windows_used: info.windows_used,
            max_extents: info.max_extents,
            max_buffers: info.max_buffers,
            max_attachments: info.max_attachments,
            max_blob: info.max_blob,
            shm_size: info.shm_size,
            max_buffer_size: info.max_buffer_size,
            peer_id: info.peer_id,
        })
    }

    pub(crate) fn peers(&self) -> Result<Vec<Peer>> {
        let peers = self.0.peers()?.into_iter();
        Ok(peers
            .map(|peer| Peer {
                id: peer.id,
                name: peer.name.as_str().to_owned(),
                up: peer.up,
            })
            .collect())
    }

    pub(crate) fn list(&self) -> Result<Vec<Buffer>> {
        Ok(self.0.list()?.into_iter().map(buffer).collect())
    }

    pub(crate) fn query(&self, id: &str) -> Result<Buffer> {
        Ok(buffer(self.0.query(parse(id)?)?))
    }

    pub(crate) fn get_meta(&self, id: &str) -> Result<(u64, String, Vec<u8>)> {
        let (seq, meta) = self.0.get_meta(parse(id)?)?;
        Ok((seq, meta.name.as_str().to_owned(), meta.blob))
    }

    pub(crate) fn set_meta(&self, export: &Export, name: &str, blob: &[u8]) -> Result<u64> {
        Ok(self.0.set_meta(&export.0, &meta(name, blob)?)?)
    }

    pub(crate) fn quiesce(&self, export: &Export, quiesced: bool) -> Result<()> {
        Ok(if quiesced {
            self.0.quiesce(&export.0)
        } else {
            self.0.resume(&export.0)
        }?)
    }

    pub(crate) fn alloc(&self, size: u64) -> Result<OwnedFd> {
        Ok(self.0.alloc(size)?.into())
    }

    pub(crate) fn export(
        &self,
        buffer: BorrowedFd<'_>,
        access: &[(String, bool)],
        name: &str,
        blob: &[u8],
    ) -> Result<Export> {
        let peers = if access.is_empty() {
            Vec::new()
        } else {
            self.0.peers()?
        };
        let mut lines = Vec::new();
        for (name, write) in access {
            let peer = peers.iter().find(|peer| peer.name.as_str() == name);
            let peer = peer.with_context(|| format!("no peer {name}"))?.id;
            lines.push(Access::new(peer, rights(*write)));
        }
        let mut options = ExportOptions::new().meta(meta(name, blob)?);
        options.access = lines;
        Ok(Export(self.0.export(buffer, &options)?))
    }

    pub(crate) fn import(&self, id: &str, write: bool) -> Result<Import> {
        let import = self.0.import(parse(id)?, rights(write))?;
        Ok(Import {
            size: import.buffer.len() as u64,
            generation: import.generation,
            write: import.rights.contains(Rights::WRITE),
            way: import.way.number(),
            windows: import.windows,
            fd: import.buffer.into(),
        })
    }

    pub(crate) fn create(&self, name: &str, epoch: u64) -> Result<Stream> {
        let options = ExportOptions::new().meta(meta(name, &[])?.epoch(epoch));
        Ok(Stream(self.0.create_stream(&options)?))
    }

    pub(crate) fn export_part(&self, stream: &Stream, buffer: BorrowedFd<'_>) -> Result<Export> {
        let options = ExportOptions::new();
        Ok(Export(self.0.export_part(&stream.0, buffer, &options)?))
    }

    pub(crate) fn set_record(
        &self,
        stream: &Stream,
        name: &str,
        epoch: u64,
        ended: bool,
    ) -> Result<()> {
        let record = meta(name, &[])?.epoch(epoch).ended(ended);
        self.0.set_meta(stream.0.export(), &record)?;
        Ok(())
    }

    pub(crate) fn get_record(&self, id: &str) -> Result<(u64, bool)> {
        let (_, record) = self.0.get_meta(parse(id)?)?;
        Ok((record.epoch, record.ended))
    }

    pub(crate) fn join(&self, id: &str) -> Result<Joined> {
        Ok(Joined(self.0.join(parse(id)?)?))
    }

    pub(crate) fn consume(&self, id: &str, write: bool) -> Result<Consumer> {
        Ok(Consumer(self.0.consume(parse(id)?, rights(write))?))
    }

    pub(crate) fn push(
        &self,
        frames: &[Vec<&Export>],
        max_held: u32,
        sequence: u64,
    ) -> Result<u64> {
        let frames = (sequence..).zip(frames).map(|(sequence, exports)| {
            let first = exports.first().context("a frame in no buffer")?;
            let mut frame = Push::new(&first.0);
            frame.buffers = exports.iter().map(|export| &export.0).collect();
            frame.max_held = max_held;
            frame.record.sequence = sequence;
            Ok(frame)
        });
        let frames: Result<Vec<_>> = frames.collect();
        Ok(self.0.push(&frames?)?)
    }

    pub(crate) fn give_back(&self, frames: &[(&Consumer, u64)]) -> Result<()> {
        let frames: Vec<_> = frames.iter().map(|(one, frame)| (&one.0, *frame)).collect();
        Ok(self.0.give_back(&frames)?)
    }

    /// The next event of a frame, within this limit; others are dropped.
    fn frame_event(&self, limit: Duration) -> Result<bufshare::Event> {
        loop {
            let event = self.0.next_event(Some(limit))?;
            let event = event.with_context(|| format!("no frame within {limit:?}"))?;
            if matches!(event.kind, EventKind::Pushed | EventKind::Returned) {
                return Ok(event);
            }
        }
    }

    /// Pushes frames in the buffers that are free, each when its last was returned. Returns how
    /// long that took, until all were returned.
    pub(crate) fn produce(
        &self,
        exports: &[&Export],
        frames: u64,
        limit: Duration,
    ) -> Result<Duration> {
        let mut free: VecDeque<&Export> = exports.iter().copied().collect();
        let began = Instant::now();
        let (mut pushed, mut returned) = (0, 0);
        while returned < frames {
            while pushed < frames
                && let Some(export) = free.pop_front()
            {
                self.push(&[vec![export]], 0, pushed)?;
                pushed += 1;
            }
            let event = self.frame_event(limit)?;
            let export = exports.iter().find(|export| export.0.id() == event.id);
            free.push_back(export.context("a frame of another export was returned")?);
            returned += 1;
        }
        Ok(began.elapsed())
    }

    /// Pushes frames of one export, each when the last was returned: how long each took until
    /// then.
    pub(crate) fn hand_over(
        &self,
        export: &Export,
        frames: u64,
        limit: Duration,
    ) -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        for sequence in 0..frames {
            let began = Instant::now();
            self.push(&[vec![export]], 0, sequence)?;
            let event = self.frame_event(limit)?;
            times.push(began.elapsed());
            let returned = event.kind == EventKind::Returned && event.id == export.0.id();
            ensure!(returned, "instead of the frame came {event:?}");
        }
        Ok(times)
    }

    /// Gives so many frames back as they come. Returns their sequence numbers, unless these are
    /// in order.
    pub(crate) fn consume_all(
        &self,
        consumers: &[&Consumer],
        frames: u64,
        limit: Duration,
    ) -> Result<Vec<u64>> {
        let mut sequences = Vec::new();
        for _ in 0..frames {
            let event = self.frame_event(limit)?;
            let mut all = consumers.iter();
            let consumer = all.find(|consumer| consumer.handle() == event.handle);
            let consumer = consumer.context("a frame of another handle")?;
            let frame = event.frame.context("an event without its frame")?;
            sequences.push(frame.record.sequence);
            self.give_back(&[(consumer, event.value)])?;
        }
        if sequences.iter().copied().eq(0..frames) {
            sequences.clear();
        }
        Ok(sequences)
    }

    pub(crate) fn event(&self, limit: Duration) -> Result<Option<Event>> {
        Ok(self.0.next_event(Some(limit))?.map(|event| Event {
            kind: format!("{:?}", event.kind),
            peer: event.peer,
            id: event.id.to_string(),
            handle: event.handle,
            value: event.value,
            frame: event.frame.map(|frame| Frame {
                others: frame.others.iter().map(ToString::to_string).collect(),
                sequence: frame.record.sequence,
                arrival: frame.arrival,
            }),
        }))
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Stream {
    pub(crate) fn id(&self) -> String {
        self.0.id().to_string()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Consumer {
    pub(crate) fn buffer(&self) -> Result<OwnedFd> {
        Ok(self.0.as_fd().try_clone_to_owned()?)
    }

    pub(crate) fn size(&self) -> u64 {
        self.0.import().buffer.len() as u64
    }

    pub(crate) fn handle(&self) -> u64 {
        self.0.handle()
    }
}

impl Export {
    pub(crate) fn id(&self) -> String {
        self.0.id().to_string()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.0.generation()
    }
}

impl AsFd for Export {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn parse(id: &str) -> Result<BufferId> {
    id.parse()
        .ok()
        .with_context(|| format!("{id} is not the name of a buffer"))
}

fn rights(write: bool) -> Rights {
    if write { Rights::RW } else { Rights::READ }
}

fn meta(name: &str, blob: &[u8]) -> Result<Meta> {
    let name = if name.is_empty() {
        Name::EMPTY
    } else {
        Name::new(name).ok().context("not a name")?
    };
    Ok(Meta::new().name(name).blob(blob))
}

fn buffer(info: BufferInfo) -> Buffer {
    Buffer {
        id: info.id.to_string(),
        name: info.name.as_str().to_owned(),
        size: info.size,
        owned: info.owned,
        attachments: info.attachments,
        mapped: info.mapped,
        extents: info.extents,
        quiesced: info.quiesced,
        is_stream: info.is_stream,
        stream: info.stream.map(|id| id.to_string()),
    }
}
