// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What happened

use std::fmt;

use bufshare_protocol::event::{EventKind as Wire, SIZE};
use bufshare_protocol::ioctl as abi;
use bufshare_protocol::wire;

use crate::numbered::numbered;
use crate::{BufferId, PushedFrame};

numbered! {
    /// What happened
    ///
    /// Nothing that is known here depends on a kind that is not. Source: `VIRTIO_BUFSHARE_EVT_*`
    /// of `virtio_bufshare.h`.
    EventKind of Wire:
    /// The driver of [`peer`](Event::peer) runs.
    PeerUp;
    /// The driver of [`peer`](Event::peer) is gone. A [`Revoked`](Self::Revoked) of each of its
    /// buffers follows.
    PeerDown;
    /// [`peer`](Event::peer) offers the buffer [`id`](Event::id); [`value`](Event::value) is its
    /// size in bytes: 0 of a [stream](crate::Stream), of which the other events are, too.
    Offer;
    /// [`peer`](Event::peer) has no import of this VM's own buffer [`id`](Event::id) any more, or
    /// has left the stream. That it has one now is no event.
    /// Does not come of a buffer that is being revoked.
    Released;
    /// The buffer [`id`](Event::id) is revoked. There is one for each import of it, with its
    /// [`handle`](Event::handle), and one without (0) if this VM has none. [`peer`](Event::peer)
    /// is the exporter: this VM itself if the host ended an export of its own.
    Revoked;
    /// The buffer [`id`](Event::id) has new metadata; [`value`](Event::value) is its sequence
    /// number.
    Meta;
    /// [`value`](Event::value) events were lost in this place, 0: an unknown number, or none.
    /// After a suspend of this VM and after a reset of the device it is the only event of all
    /// imports and exports that ended: ask [`DmaBuf::is_revoked`](crate::DmaBuf::is_revoked) of
    /// each import and [`Export::has_ended`](crate::Export::has_ended) of each export, and
    /// [renew](crate::Joined::renew) each join.
    Overflow;
    /// [`peer`](Event::peer) hands over frame [`value`](Event::value), whose first buffer is
    /// [`id`](Event::id).
    Pushed;
    /// Nobody has frame [`value`](Event::value) any more, whose first buffer is this VM's own
    /// [`id`](Event::id).
    Returned;
}

impl EventKind {
    /// The name in the C header without its prefix, as `PEER_UP`; `UNKNOWN` for one that this
    /// version of the library does not know.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.to_protocol().map_or("UNKNOWN", Wire::name)
    }
}

impl fmt::Display for EventKind {
    /// Its [`name`](Self::name), with the number where there is no other.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(number) => f.pad(&format!("{}({number})", self.name())),
            known => f.pad(known.name()),
        }
    }
}

/// One event, from [`Device::next_event`](crate::Device::next_event)
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Event {
    /// What happened; it says what the other fields mean.
    pub kind: EventKind,
    /// Number of the event, from 1, in the session of the driver with the host; 0 of an
    /// [`Overflow`](EventKind::Overflow) that the driver made.
    pub seq: u64,
    /// The peer's id: the buffer's owner, or who released it. 0 if it is about none.
    pub peer: u64,
    /// The buffer; [`BufferId::ZERO`] if it is about none.
    pub id: BufferId,
    /// The host's number of the import; 0 if it is about none. Of a
    /// [`Pushed`](EventKind::Pushed) that of the [`FrameImport`](crate::FrameImport::handle).
    pub handle: u64,
    /// Number of the export, as [`BufferInfo::generation`](crate::BufferInfo::generation); 0 if
    /// it is about none.
    pub generation: u64,
    /// See [`EventKind`].
    pub value: u64,
    /// The frame of a [`Pushed`](EventKind::Pushed).
    pub frame: Option<Box<PushedFrame>>,
    /// When this VM's driver learned of a [`Returned`](EventKind::Returned), nanoseconds of
    /// `CLOCK_MONOTONIC`; 0 of others, and from a driver that does not say.
    pub arrival: u64,
}

impl Event {
    /// An event of this kind about nothing, all numbers 0: for tests of programs, which then set
    /// its fields.
    #[must_use]
    pub fn new(kind: EventKind) -> Self {
        Self {
            kind,
            seq: 0,
            peer: 0,
            id: BufferId::ZERO,
            handle: 0,
            generation: 0,
            value: 0,
            frame: None,
            arrival: 0,
        }
    }

    /// Handle and number of the frame that `read()` of the device gave, if it did, also if nothing
    /// else of it makes sense.
    pub(crate) fn frame_of_bytes(bytes: &[u8]) -> Option<(u32, u64)> {
        let raw = wire::Event::from_bytes(bytes.first_chunk::<SIZE>()?);
        let pushed = EventKind::from_number(raw.r#type) == EventKind::Pushed;
        let handle = u32::try_from(raw.handle).ok()?;
        pushed.then_some((handle, raw.value))
    }

    /// What `read()` of the device gave; `None` if it makes no sense. A newer driver cuts its
    /// own to the room that there was.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let raw = wire::Event::from_bytes(bytes.first_chunk::<SIZE>()?);
        let kind = EventKind::from_number(raw.r#type);
        let frame = match kind {
            EventKind::Pushed => Some(Box::new(PushedFrame::parse(bytes)?)),
            _ => None,
        };
        let arrival = match kind {
            // An older driver has none.
            EventKind::Returned => bytes.get(ARRIVAL..).and_then(<[u8]>::first_chunk),
            _ => None,
        };
        Some(Self {
            kind,
            seq: raw.seq,
            peer: raw.peer,
            id: BufferId(raw.id.b),
            handle: raw.handle,
            generation: raw.generation,
            value: raw.value,
            frame,
            arrival: arrival.copied().map_or(0, u64::from_ne_bytes),
        })
    }
}

/// Where that is in what is read.
const ARRIVAL: usize = core::mem::offset_of!(abi::Returned, arrival);

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn events_are_what_the_protocol_makes_of_them() {
        for kind in Wire::ALL {
            let sent = bufshare_protocol::event::Event {
                kind: *kind,
                seq: 1,
                peer: 2,
                id: BufferId([3; 16]),
                handle: 4,
                generation: 5,
                value: 6,
                frame: None,
            };
            let mut bytes = sent.to_bytes();
            // A frame is behind it, in one buffer.
            bytes.resize(abi::Pushed::SIZE, 0);
            bytes[offset_of!(abi::Pushed, num_buffers)] = 1;
            let event = Event::from_bytes(&bytes).unwrap();
            assert_eq!(event.frame.is_some(), *kind == Wire::Pushed);
            assert_eq!(
                (event.kind.name(), event.kind.number()),
                (kind.name(), kind.to_wire())
            );
            assert_eq!(
                (event.seq, event.peer, event.id, event.handle),
                (1, 2, BufferId([3; 16]), 4)
            );
            assert_eq!((event.generation, event.value), (5, 6));
        }
    }

    #[test]
    fn a_frame_of_which_nothing_makes_sense_still_has_its_handle_and_number() {
        let mut sent = bufshare_protocol::event::Event {
            kind: Wire::Pushed,
            seq: 1,
            peer: 2,
            id: BufferId([3; 16]),
            handle: 4,
            generation: 5,
            value: 6,
            frame: None,
        };
        let mut bytes = sent.to_bytes();
        bytes.resize(abi::Pushed::SIZE, 0xff);
        assert_eq!(Event::from_bytes(&bytes), None);
        assert_eq!(Event::frame_of_bytes(&bytes), Some((4, 6)));
        sent.kind = Wire::Returned;
        assert_eq!(Event::frame_of_bytes(&sent.to_bytes()), None);
    }

    #[test]
    fn a_returned_frame_says_when_if_its_driver_does() {
        let mut bytes = [0; abi::Returned::SIZE];
        for (kind, size, arrival) in [
            (Wire::Returned, abi::Returned::SIZE, 4711),
            (Wire::Returned, abi::Returned::SIZE - 1, 0),
            (Wire::Returned, SIZE, 0),
            (Wire::Released, abi::Returned::SIZE, 0),
        ] {
            bytes[..4].copy_from_slice(&kind.to_wire().to_le_bytes());
            bytes[ARRIVAL..].copy_from_slice(&4711_u64.to_ne_bytes());
            let event = Event::from_bytes(&bytes[..size]).unwrap();
            assert_eq!(event.arrival, arrival, "{kind:?} of {size}");
        }
    }

    #[test]
    fn an_event_of_a_newer_driver_keeps_its_number() {
        let mut bytes = [0; SIZE];
        bytes[..4].copy_from_slice(&4711_u32.to_le_bytes());
        let event = Event::from_bytes(&bytes).unwrap();
        assert_eq!(event, Event::new(EventKind::Unknown(4711)));
        assert_eq!(event.kind.to_string(), "UNKNOWN(4711)");
    }
}
