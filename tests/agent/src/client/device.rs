// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/dev/bufshare`, by the guest library

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bufshare::{Access, BufferId, BufferInfo, Error, ExportOptions, Meta, Name, Rights};
use bufshare_agent::ops::{Buffer, Event, Info, Peer, Refusal};

/// The open device.
pub(crate) struct Device(bufshare::Device);

/// A buffer that is offered.
pub(crate) struct Export(bufshare::Export);

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

    pub(crate) fn event(&self, limit: Duration) -> Result<Option<Event>> {
        Ok(self.0.next_event(Some(limit))?.map(|event| Event {
            kind: format!("{:?}", event.kind),
            peer: event.peer,
            id: event.id.to_string(),
            handle: event.handle,
            value: event.value,
        }))
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
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
    }
}
