// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why the host refused

use std::fmt;

use bufshare_protocol::status::Status as Wire;

use crate::numbered::numbered;

numbered! {
    /// Why the host refused a request: its exact reason, where the errno is only the kind
    ///
    /// [`Display`](fmt::Display) is the reason as a sentence without what to do about it.
    /// Source: the status codes of `virtio_bufshare.h`.
    Status of Wire but Ok:
    /// The device does not know or does not serve this request, or an option of it.
    Unsupported;
    /// A message of the driver's does not have the length that its fields say.
    BadLength;
    /// A value is out of its range, or what is named is a [stream](crate::Stream), and has to be a
    /// buffer.
    BadField;
    /// The driver left too little room for the answer.
    NoRoom;
    /// No such buffer for this VM: unknown, revoked or never granted. These cannot be told
    /// apart, so that nobody can probe for ids.
    NotFound;
    /// The host's operator does not allow these VMs to share so, the exporter granted less, or
    /// the buffer to be imported is this VM's own.
    Denied;
    /// The exported memory is not this VM's own RAM.
    NotRam;
    /// A page occurs twice in the exported buffer.
    Overlap;
    /// The address or length of a piece is no multiple of
    /// [`Info::map_align`](crate::Info::map_align).
    Unaligned;
    /// Larger than [`Info::max_buffer_size`](crate::Info::max_buffer_size).
    TooLarge;
    /// [`Info::max_buffers`](crate::Info::max_buffers),
    /// [`Info::max_attachments`](crate::Info::max_attachments) or another limit is reached:
    /// streams count as buffers, and who joins one has an import.
    TooMany;
    /// In more pieces than [`Info::max_extents`](crate::Info::max_extents), or an import would
    /// take more mappings than [`Info::max_windows`](crate::Info::max_windows).
    TooFragmented;
    /// [`Info::max_windows`](crate::Info::max_windows) mappings are in use.
    NoWindow;
    /// The shared-memory region has no free range of this size.
    NoSpace;
    /// The buffer is still mapped, its end is already waited for, or a frame that it is part of
    /// was not returned.
    Busy;
    /// The buffer was revoked, by its exporter or by the host.
    Revoked;
    /// The opaque metadata is longer than [`Info::max_blob`](crate::Info::max_blob).
    MetaTooLarge;
    /// The name, the image or the record of a frame is not valid, or does not fit the buffer; or
    /// a stream is to have no name, or another one than it has.
    BadMeta;
    /// The host has no way to share the exporter's memory that its operator allows; or it is a
    /// [stream](crate::Stream), which is joined, and not imported.
    NoWay;
    /// Imported for reading alone, and this VM's VMM does not enforce that; see
    /// [`Info::rights_to_read`](crate::Info::rights_to_read).
    RoNotEnforced;
    /// This VM's VMM cannot map other VMs' memory.
    NoShmem;
    /// This VM's VMM refused the mapping, or cannot be asked any more.
    MapFailed;
    /// An end without its begin.
    Unbalanced;
    /// The host failed, or is ending.
    HostError;
    /// This VM has a stream of that name.
    Exists;
}

impl Status {
    /// What the driver put into a status field; `None` for 0, which is no refusal.
    pub(crate) fn from_wire(number: u32) -> Option<Self> {
        (number != Wire::Ok.to_wire()).then(|| Self::from_number(number))
    }

    /// The name in the C header without its prefix, as `NOT_FOUND`; `UNKNOWN` for one that
    /// this version of the library does not know.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.to_protocol().map_or("UNKNOWN", Wire::name)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_protocol() {
            Some(status) => status.fmt(f),
            None => write!(
                f,
                "the host's reason has a number that is not known here: {}",
                self.number()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_of_the_host_is_known_by_name_and_number() {
        assert_eq!(Status::from_wire(0), None);
        for wire in Wire::ALL.iter().filter(|status| **status != Wire::Ok) {
            let status = Status::from_wire(wire.to_wire()).unwrap();
            assert!(Status::ALL.contains(&status), "{wire:?}");
            assert_eq!(
                (status.name(), status.number(), status.to_string()),
                (wire.name(), wire.to_wire(), wire.to_string())
            );
        }
    }

    #[test]
    fn a_refusal_of_a_newer_host_keeps_its_number() {
        let status = Status::from_wire(4711).unwrap();
        assert_eq!(status, Status::Unknown(4711));
        assert_eq!((status.name(), status.number()), ("UNKNOWN", 4711));
        assert!(status.to_string().ends_with(": 4711"), "{status}");
    }

    #[test]
    fn a_reason_says_what_is_and_not_what_to_do() {
        for status in Status::ALL {
            let text = format!(" {status}");
            assert!(!text.ends_with('.') && !text.contains('\n'), "{text}");
            for word in [
                " please", " use ", " try ", " check ", " ask ", " update ", " see ", " log", "::",
                "--",
            ] {
                assert!(!text.to_lowercase().contains(word), "advice: {text}");
            }
        }
    }
}
