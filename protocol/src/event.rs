// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the device reports unasked
//!
//! The event of queue 1 and the one that `read()` of `/dev/bufshare` returns
//! have the same layout; on the little-endian machines that are supported they
//! have the same bytes.

use core::fmt;

use crate::status::Status;
use crate::types::BufferId;
use crate::wire;

/// Bytes of an event.
pub const SIZE: usize = wire::Event::SIZE;

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $value:literal, $name:literal;)+) => {
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
    /// `id` is revoked; `handle` is the attachment, 0 if the buffer is one's own.
    Revoked = 0x1004, "REVOKED";
    /// `id` has new metadata; `value` is its sequence number.
    Meta = 0x1005, "META";
    /// `value` events were dropped, 0: an unknown number; LIST says how things are now.
    Overflow = 0x1006, "OVERFLOW";
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One event
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// See [`EventKind`].
    pub value: u64,
}

impl Event {
    /// Encodes the event.
    #[must_use]
    pub fn to_bytes(self) -> [u8; SIZE] {
        wire::Event {
            r#type: self.kind.to_wire(),
            flags: 0,
            seq: self.seq,
            peer: self.peer,
            id: self.id.to_wire(),
            handle: self.handle,
            value: self.value,
            reserved: 0,
        }
        .to_bytes()
    }

    /// Decodes an event.
    ///
    /// # Errors
    /// [`Status::Unsupported`] if the kind is unknown, [`Status::BadField`] if
    /// a reserved field is set.
    pub fn from_bytes(bytes: &[u8; SIZE]) -> Result<Self, Status> {
        let raw = wire::Event::from_bytes(bytes);
        let kind = EventKind::from_wire(raw.r#type).ok_or(Status::Unsupported)?;
        if raw.flags != 0 || raw.reserved != 0 {
            return Err(Status::BadField);
        }
        Ok(Self {
            kind,
            seq: raw.seq,
            peer: raw.peer,
            id: BufferId::from_wire(&raw.id),
            handle: raw.handle,
            value: raw.value,
        })
    }
}
