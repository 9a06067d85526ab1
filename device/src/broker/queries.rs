// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be read of the broker: GET_CAPS, PEERS, LIST, QUERY, snapshots.

use bufshare_protocol::device;
use bufshare_protocol::limits::MAX_LIST;
use bufshare_protocol::response::{BufferInfo, Caps, PeerInfo, Reply, Response};
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{BufferId, Rights, Way, Ways};
use serde::Serialize;

use super::backing::{Backing, BackingId, Buffer};
use super::limits::MAP_ALIGN;
use super::types::PeerId;
use super::windows::State;
use super::{Broker, Peer, count};

/// Capabilities and limits of one peer's device.
fn caps_bits(can_map: bool, udmabuf: bool, enforces_ro: bool) -> u32 {
    let mut caps = 0;
    if can_map {
        caps |= device::CAP_MAP;
    }
    if udmabuf {
        caps |= device::CAP_UDMABUF;
    }
    if enforces_ro {
        caps |= device::CAP_RO_ENFORCED;
    }
    caps
}

impl Broker {
    /// Capabilities and limits of one peer's device, as its configuration
    /// space and GET_CAPS report them. `None` if there is no such peer.
    #[must_use]
    pub fn caps(&self, peer: PeerId) -> Option<Caps> {
        let state = self.peers.get(&peer)?;
        Some(Caps {
            version: device::VERSION,
            caps: caps_bits(state.can_map, self.host_udmabuf, state.config.enforces_ro),
            max_windows: self.limits.max_windows,
            max_extents: self.limits.max_extents,
            max_buffers: self.limits.max_buffers,
            max_attachments: self.limits.max_attachments,
            max_blob: self.limits.max_blob,
            map_align: u32::try_from(MAP_ALIGN).unwrap_or(u32::MAX),
            shm_size: self.shm_size,
            max_buffer_size: self.max_buffer_size(),
            peer_id: peer.to_wire(),
            name: state.config.name,
            windows_used: state.usage.mappings.used(),
            ways: self.ways(peer),
        })
    }

    /// How buffers of others may be shown to `peer`, if it can map at all.
    fn ways(&self, peer: PeerId) -> Ways {
        let mut ways = Ways::NONE;
        if self.host_udmabuf {
            ways = ways.with(Way::Udmabuf);
        }
        let raw = |(owner, state): (&PeerId, &Peer)| {
            state.config.raw_ram && !self.policy.allowed(*owner, peer).is_empty()
        };
        if self.peers.iter().any(raw) {
            ways = ways.with(Way::Direct);
        }
        ways
    }

    pub(super) fn get_caps(&self, peer: PeerId, version: u32) -> Reply {
        if version == 0 {
            return Err(Status::BadField);
        }
        if version < device::VERSION {
            return Err(Status::Unsupported);
        }
        let caps = self.caps(peer).ok_or(Status::HostError)?;
        Ok(Response::Caps(caps))
    }

    /// The asker and the peers it may share with.
    pub(super) fn list_peers(&self, peer: PeerId, cursor: u64) -> Reply {
        let mut entries = self
            .peers
            .iter()
            .filter(|(id, _)| id.to_wire() > cursor)
            .filter(|(id, _)| **id == peer || self.policy.related(peer, **id))
            .map(|(id, state)| PeerInfo {
                id: id.to_wire(),
                name: state.config.name,
                up: state.life.runs(),
                export_rights: self.policy.allowed(peer, *id),
                import_rights: self.policy.allowed(*id, peer),
            });
        let page: Vec<PeerInfo> = entries.by_ref().take(MAX_LIST).collect();
        let more = entries.next().is_some();
        Ok(Response::Peers {
            entries: page,
            more,
        })
    }

    /// The buffers that the asker exported or may attach to.
    pub(super) fn list(&mut self, peer: PeerId, cursor: u64) -> Reply {
        let after = cursor.checked_add(1).ok_or(Status::BadField)?;
        let state = self.peers.get(&peer).ok_or(Status::HostError)?;
        let known = state.known.range(after..);
        let mut entries = known.filter_map(|(_, slot)| self.info(peer, self.buffers.get(*slot)?));
        let page: Vec<BufferInfo> = entries.by_ref().take(MAX_LIST).collect();
        let more = entries.next().is_some();
        for buffer in &page {
            self.show(peer, buffer.id);
        }
        Ok(Response::Buffers {
            entries: page,
            more,
        })
    }

    pub(super) fn query(&mut self, peer: PeerId, id: BufferId) -> Reply {
        let slot = self.buffers.find(&id).ok_or(Status::NotFound)?;
        let buffer = self.buffers.get(slot).ok_or(Status::NotFound)?;
        let info = self.info(peer, buffer).ok_or(Status::NotFound)?;
        self.show(peer, id);
        Ok(Response::Buffer(info))
    }

    /// The answer shows a buffer to `peer`, which has to learn of its end.
    fn show(&mut self, peer: PeerId, id: BufferId) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.events.show(id);
        }
    }

    /// What `peer` may know of a buffer; nothing if it neither owns it nor may attach to it.
    fn info(&self, peer: PeerId, buffer: &Buffer) -> Option<BufferInfo> {
        let owned = buffer.owner == peer;
        let backing = self.backings.of(buffer)?;
        let rights = if owned {
            Rights::RW
        } else {
            let grant = backing.grants.get(peer)?;
            self.offers(backing).then_some(grant.rights)?
        };
        let (mut attachments, mut mapped) = (0u32, 0u32);
        for (importer, attached) in buffer.attached.iter() {
            if owned || importer == peer {
                attachments = attachments.saturating_add(attached.attachments);
                mapped = mapped.saturating_add(attached.mapped);
            }
        }
        Some(BufferInfo {
            id: buffer.id,
            owner: buffer.owner.to_wire(),
            size: buffer.size,
            generation: buffer.generation,
            meta_seq: buffer.meta_seq,
            rights,
            owned,
            revoking: backing.revoking.is_some(),
            quiesced: owned && self.is_quiesced(buffer),
            extents: if owned {
                u32::try_from(backing.extents.len()).unwrap_or(u32::MAX)
            } else {
                0
            },
            attachments,
            mapped,
            fourcc: buffer.fourcc,
            name: buffer.name,
            is_stream: buffer.is_stream(),
            stream: buffer.stream(),
        })
    }

    /// Everything the host's operator may see.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            shm_size: self.shm_size,
            max_windows: self.limits.max_windows,
            host_udmabuf: self.host_udmabuf,
            peers: self
                .peers
                .keys()
                .map(|id| self.peer_snapshot(*id))
                .collect(),
            buffers: self
                .backings
                .iter()
                .flat_map(|backing| {
                    let buffers = backing.buffers.iter();
                    let buffers = buffers.filter_map(|slot| self.buffers.get(*slot));
                    buffers.map(|buffer| self.buffer_snapshot(backing, buffer))
                })
                .collect(),
        }
    }

    fn buffer_snapshot(&self, backing: &Backing, buffer: &Buffer) -> BufferSnapshot {
        let (importers, stream) = (buffer.attached.peers(), buffer.stream());
        BufferSnapshot {
            id: buffer.id.to_string(),
            owner: self.name_of(buffer.owner),
            name: buffer.name.as_str().to_owned(),
            size: buffer.size,
            extents: count(backing.extents.len()),
            generation: buffer.generation,
            meta_seq: buffer.meta_seq,
            revoking: backing.revoking.is_some(),
            quiesced: self.is_quiesced(buffer),
            is_stream: buffer.is_stream(),
            stream: (!stream.is_zero()).then(|| stream.to_string()),
            importers: importers.map(|peer| self.name_of(peer)).collect(),
        }
    }

    fn name_of(&self, peer: PeerId) -> String {
        self.peers
            .get(&peer)
            .map(|state| state.config.name.as_str().to_owned())
            .unwrap_or_default()
    }

    fn peer_snapshot(&self, peer: PeerId) -> PeerSnapshot {
        let mut snapshot = PeerSnapshot {
            id: peer.0,
            name: self.name_of(peer),
            ..PeerSnapshot::default()
        };
        let Some(state) = self.peers.get(&peer) else {
            return snapshot;
        };
        snapshot.up = state.life.runs();
        snapshot.can_map = state.can_map;
        snapshot.ram_bytes = state
            .ram
            .iter()
            .fold(0, |sum, region| sum.saturating_add(region.len));
        snapshot.exports = state.usage.buffers.used();
        snapshot.exported_bytes = self
            .backings
            .range(BackingId::all_of(peer))
            .fold(0, |sum, backing| sum.saturating_add(backing.size));
        snapshot.attachments = count(state.attachments.len());
        snapshot.mapped = count(state.attachments.mapped());
        snapshot.windows = state.usage.mappings.used();
        snapshot.windows_peak = state.usage.mappings.peak();
        for window in state.windows.iter() {
            let number = match window.state {
                State::Queued => &mut snapshot.windows_queued,
                State::Live => &mut snapshot.windows_live,
                State::Idle(_) => &mut snapshot.windows_idle,
                State::Stuck => &mut snapshot.windows_stuck,
                State::ZeroPages | State::Empty => &mut snapshot.windows_zero,
                State::Mapping
                | State::Mapped(_)
                | State::Unmapping
                | State::Quarantined(_)
                | State::MappingZeroPages(_) => &mut snapshot.windows_moving,
            };
            *number = number.saturating_add(1);
            if !window.shows_backing() {
                continue;
            }
            let bytes = match window.way {
                Way::None => continue,
                Way::Direct => &mut snapshot.direct_bytes,
                Way::Udmabuf => &mut snapshot.udmabuf_bytes,
                Way::Pool | Way::CopyWindow | Way::CopyGuest => &mut snapshot.copied_bytes,
            };
            *bytes = bytes.saturating_add(window.size);
        }
        snapshot.vmm_requests_outstanding = count(state.windows.outstanding().len());
        snapshot.events_waiting = count(state.events.len());
        snapshot.events_dropped = state.events.total_dropped;
        snapshot.requests = state.counters.requests;
        snapshot.refused = state.counters.refused;
        snapshot.map_requests = state.counters.map_requests;
        snapshot.map_cached = state.counters.map_cached;
        snapshot.vmm_maps = state.counters.vmm_maps;
        snapshot.vmm_unmaps = state.counters.vmm_unmaps;
        snapshot.vmm_zero_maps = state.counters.zero_maps;
        snapshot.barriers = state.counters.barriers;
        snapshot.revocations = state.counters.revocations;
        snapshot.unexports_quiesced = state.counters.unexports_quiesced;
        snapshot.frames = state.frames;
        snapshot.frames_held = state
            .held
            .values()
            .fold(0, |sum, held| sum.saturating_add(*held));
        snapshot.deadlines_missed = state.counters.deadlines_missed;
        snapshot
    }
}

/// The state of the broker for people and tests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Bytes of each shared-memory region.
    pub shm_size: u64,
    /// VMM mappings each peer may hold.
    pub max_windows: u32,
    /// Whether this host makes udmabufs.
    pub host_udmabuf: bool,
    /// The peers.
    pub peers: Vec<PeerSnapshot>,
    /// The exported buffers.
    pub buffers: Vec<BufferSnapshot>,
}

/// The state of one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PeerSnapshot {
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Whether its driver runs.
    pub up: bool,
    /// Whether its VMM takes shared-memory requests.
    pub can_map: bool,
    /// Bytes of RAM it may export from.
    pub ram_bytes: u64,
    /// Buffers it exports, those being revoked included.
    pub exports: u32,
    /// Their bytes.
    pub exported_bytes: u64,
    /// Attachments it holds.
    pub attachments: u64,
    /// How many of those are mapped.
    pub mapped: u64,
    /// VMM mappings it holds.
    pub windows: u32,
    /// Most it ever held.
    pub windows_peak: u32,
    /// Windows that wait for budget or space.
    pub windows_queued: u32,
    /// Windows in use.
    pub windows_live: u32,
    /// Windows kept for reuse.
    pub windows_idle: u32,
    /// Windows whose backing was revoked under their users, who see zero pages, or nothing
    /// if the VMM did not map these.
    pub windows_zero: u32,
    /// Windows between those states.
    pub windows_moving: u32,
    /// Windows whose VMM does not answer.
    pub windows_stuck: u32,
    /// Bytes of *direct* windows.
    pub direct_bytes: u64,
    /// Bytes of *udmabuf* windows.
    pub udmabuf_bytes: u64,
    /// Bytes of windows whose content was copied.
    pub copied_bytes: u64,
    /// Requests to its VMM that are not answered yet.
    pub vmm_requests_outstanding: u64,
    /// Events that wait for it.
    pub events_waiting: u64,
    /// Events dropped since the start.
    pub events_dropped: u64,
    /// Requests since the start.
    pub requests: u64,
    /// Requests refused.
    pub refused: u64,
    /// MAP requests.
    pub map_requests: u64,
    /// MAP requests served without asking the VMM.
    pub map_cached: u64,
    /// Mappings the VMM was asked for.
    pub vmm_maps: u64,
    /// Unmappings the VMM was asked for.
    pub vmm_unmaps: u64,
    /// Mappings of zero pages the VMM was asked for.
    pub vmm_zero_maps: u64,
    /// Barriers the VMM was asked for.
    pub barriers: u64,
    /// Its backings that were revoked.
    pub revocations: u64,
    /// How often it promised to write nothing until the end of an UNEXPORT.
    pub unexports_quiesced: u64,
    /// Frames that it pushed.
    pub frames: u64,
    /// Frames of others that it was given and has not returned.
    pub frames_held: u32,
    /// How often windows that it used were taken from it, mostly as it had not released them
    /// in time.
    pub deadlines_missed: u64,
}

/// The state of one buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BufferSnapshot {
    /// Its id.
    pub id: String,
    /// Name of the exporting peer.
    pub owner: String,
    /// Its own name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Pieces.
    pub extents: u64,
    /// Number of the export.
    pub generation: u64,
    /// Sequence number of its metadata.
    pub meta_seq: u64,
    /// Whether it is being revoked.
    pub revoking: bool,
    /// Whether nothing of its exporter's VM writes to it.
    pub quiesced: bool,
    /// Whether it is a stream: its importers are those that have joined it.
    pub is_stream: bool,
    /// The id of the stream that it is part of, which may be over.
    pub stream: Option<String>,
    /// Names of the peers that have it attached.
    pub importers: Vec<String>,
}
