// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the device reports unasked
//!
//! The event of queue 1 and the one that `read()` of `/dev/bufshare` returns
//! have the same layout; on the little-endian machines that are supported they
//! have the same bytes.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::limits::MAX_FRAME_BUFFERS;
use crate::status::Status;
use crate::types::{BufferId, FrameRecord, Pushed};
use crate::wire::{self, Wire};

/// Bytes of an event, as far as it is known.
pub const SIZE: usize = wire::Event::SIZE;

/// Bytes of an event up to the end of its length.
const HEAD: usize = core::mem::offset_of!(wire::Event, reserved);

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $value:literal, $name:literal;)+) => {
        /// Each kind under its name in the C header.
        pub(crate) const CONSTS: &[(&str, u64)] =
            &[$((concat!("VIRTIO_BUFSHARE_EVT_", $name), $value)),+];

        /// What happened
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[repr(u32)]
        pub enum EventKind {
            $($(#[$doc])* $variant = $value,)+
        }

        impl EventKind {
            /// Every kind, in numeric order.
            pub const ALL: &[EventKind] = &[$(EventKind::$variant),+];

            /// The kind with this number, `None` if it is unknown.
            #[must_use]
            pub const fn from_wire(value: u32) -> Option<Self> {
                match value {
                    $($value => Some(EventKind::$variant),)+
                    _ => None,
                }
            }

            /// The number on the wire.
            #[must_use]
            pub const fn to_wire(self) -> u32 {
                match self {
                    $(EventKind::$variant => $value,)+
                }
            }

            /// The name in the C header without its prefix.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(EventKind::$variant => $name,)+
                }
            }
        }
    };
}

kinds! {
    /// `peer`'s driver runs.
    PeerUp = 0x1000, "PEER_UP";
    /// `peer`'s driver is gone; its REVOKEDs follow.
    PeerDown = 0x1001, "PEER_DOWN";
    /// `peer` offers `id`; `value` is its size in bytes.
    Offer = 0x1002, "OFFER";
    /// `peer`'s last attachment to one's own `id` has ended.
    Released = 0x1003, "RELEASED";
    /// `id` of the exporter `peer` is revoked; `handle` is the attachment, 0 if there is none.
    Revoked = 0x1004, "REVOKED";
    /// `id` has new metadata; `value` is its sequence number.
    Meta = 0x1005, "META";
    /// `value` events were dropped, 0: an unknown number; LIST says how things are now.
    Overflow = 0x1006, "OVERFLOW";
    /// `peer` hands frame `value` over, whose first buffer is `id`, to the attachment `handle`.
    Pushed = 0x1007, "PUSHED";
    /// All who were given frame `value` have given it back; its first buffer is one's own `id`.
    Returned = 0x1008, "RETURNED";
}

/// One event
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// Number of the event in this session, from 1; 0 of an overflow that the driver saw.
    pub seq: u64,
    /// Whom it is about: the buffer's owner, or who released it.
    pub peer: u64,
    /// The buffer, or zero.
    pub id: BufferId,
    /// The attachment, or zero.
    pub handle: u64,
    /// Of the export, or zero.
    pub generation: u64,
    /// See [`EventKind`].
    pub value: u64,
    /// Of a PUSHED alone. The events of one frame have it in common.
    pub frame: Option<Arc<Pushed>>,
}

impl Event {
    /// How long it is.
    #[must_use]
    pub fn length(&self) -> usize {
        let frame = self.frame.as_ref();
        frame.map_or(SIZE, |frame| {
            wire::Pushed::SIZE.saturating_add(frame.record.bytes().len())
        })
    }

    /// Encodes the event.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let event = wire::Event {
            r#type: self.kind.to_wire(),
            flags: 0,
            length: u32::try_from(self.length()).unwrap_or(u32::MAX),
            reserved: 0,
            seq: self.seq,
            peer: self.peer,
            id: self.id.to_wire(),
            handle: self.handle,
            generation: self.generation,
            value: self.value,
        };
        let Some(frame) = &self.frame else {
            return event.to_bytes().into();
        };
        let mut others = [wire::Id::default(); MAX_FRAME_BUFFERS - 1];
        for (raw, id) in others.iter_mut().zip(&frame.others) {
            *raw = id.to_wire();
        }
        let count = u32::try_from(frame.others.len()).unwrap_or(u32::MAX);
        let pushed = wire::Pushed {
            event,
            others,
            num_buffers: count.saturating_add(1),
            record_size: u32::try_from(frame.record.bytes().len()).unwrap_or(u32::MAX),
            meta_seq: frame.meta_seq,
        };
        [pushed.to_bytes().as_slice(), frame.record.bytes()].concat()
    }

    /// Decodes the event at the front of `bytes` and returns it with what follows, or
    /// why it is none that is known, and what follows. What a longer one says beyond what
    /// is known is ignored.
    ///
    /// `None` if `bytes` do not begin with a whole event.
    #[must_use]
    pub fn split(bytes: &[u8]) -> Option<(Result<Self, Status>, &[u8])> {
        let head = wire::Event::grown(bytes.get(..HEAD)?)?;
        let length = usize::try_from(head.length).ok().filter(|n| *n >= HEAD)?;
        let (bytes, rest) = bytes.split_at_checked(length)?;
        let known = bytes.get(..SIZE).unwrap_or(bytes);
        Some((Self::known(wire::Event::grown(known)?, bytes), rest))
    }

    fn known(raw: wire::Event, bytes: &[u8]) -> Result<Self, Status> {
        let kind = EventKind::from_wire(raw.r#type).ok_or(Status::Unsupported)?;
        let frame = match kind {
            EventKind::Pushed => Some(Arc::new(pushed(bytes)?)),
            _ => None,
        };
        Ok(Self {
            kind,
            seq: raw.seq,
            peer: raw.peer,
            id: BufferId::from_wire(&raw.id),
            handle: raw.handle,
            generation: raw.generation,
            value: raw.value,
            frame,
        })
    }
}

/// What a PUSHED says beside.
fn pushed(bytes: &[u8]) -> Result<Pushed, Status> {
    let (raw, rest) = wire::Pushed::split(bytes).ok_or(Status::BadLength)?;
    let record = usize::try_from(raw.record_size).ok();
    let record = record.and_then(|record| rest.len().checked_sub(record));
    let record = record.and_then(|place| rest.get(place..));
    let count = usize::try_from(raw.num_buffers.wrapping_sub(1)).ok();
    let others = count.and_then(|count| raw.others.get(..count));
    Ok(Pushed {
        others: others
            .ok_or(Status::BadField)?
            .iter()
            .map(BufferId::from_wire)
            .collect(),
        meta_seq: raw.meta_seq,
        record: FrameRecord::received(record.ok_or(Status::BadLength)?)?,
    })
}
