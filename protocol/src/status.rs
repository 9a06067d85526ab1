// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Status codes of a response

use core::fmt;

macro_rules! statuses {
    ($($(#[$doc:meta])* $variant:ident = $value:literal, $name:literal, $text:literal;)+) => {
        /// Each status under its name in the C header.
        pub(crate) const CONSTS: &[(&str, u64)] =
            &[$((concat!("VIRTIO_BUFSHARE_S_", $name), $value)),+];

        /// How a request ended
        ///
        /// An unknown buffer and a forbidden one are both
        /// [`NotFound`](Status::NotFound), so that nobody can probe for ids.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Status {
            $($(#[$doc])* $variant = $value,)+
        }

        impl Status {
            /// Every status, in numeric order.
            pub const ALL: &[Status] = &[$(Status::$variant),+];

            /// The status with this number, `None` if it is unknown.
            #[must_use]
            pub const fn from_wire(value: u32) -> Option<Self> {
                match value {
                    $($value => Some(Status::$variant),)+
                    _ => None,
                }
            }

            /// The number on the wire.
            #[must_use]
            pub const fn to_wire(self) -> u32 {
                match self {
                    $(Status::$variant => $value,)+
                }
            }

            /// The name in the C header without its prefix.
            ///
            /// ```
            /// use bufshare_protocol::status::Status;
            /// assert_eq!(Status::NotFound.name(), "NOT_FOUND");
            /// ```
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Status::$variant => $name,)+
                }
            }
        }

        impl fmt::Display for Status {
            /// A sentence for people.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Status::$variant => $text,)+
                })
            }
        }
    };
}

statuses! {
    /// Done.
    Ok = 0, "OK", "done";
    /// Command, option, flag or field that the device does not know or does not serve.
    Unsupported = 1, "UNSUPPORTED", "the device does not know or does not serve this command, option or field";
    /// Not the length that the fields say, or one that none has.
    BadLength = 2, "BAD_LENGTH", "the message is shorter or longer than its fields say";
    /// A value out of its range.
    BadField = 3, "BAD_FIELD", "a value is out of its range, or a stream is named where a buffer has to be";
    /// Response room too small for the answer.
    NoRoom = 4, "NO_ROOM", "there is too little room for the answer";
    /// No such buffer, attachment or window for this peer.
    NotFound = 5, "NOT_FOUND", "there is no such buffer for this VM: unknown, revoked or not granted";
    /// The policy or the grant does not allow it.
    Denied = 6, "DENIED", "the host's operator or the buffer's exporter does not allow that";
    /// An extent is not this VM's own RAM.
    NotRam = 7, "NOT_RAM", "the buffer does not lie in this VM's own RAM";
    /// Extents overlap each other.
    Overlap = 8, "OVERLAP", "pieces of the buffer overlap each other";
    /// Address or length of an extent is not a multiple of `map_align`.
    Unaligned = 9, "UNALIGNED", "a piece of the buffer is not aligned as the device needs it";
    /// Buffer over `max_buffer_size`.
    TooLarge = 10, "TOO_LARGE", "the buffer, or the record of the frame, is larger than the device allows";
    /// `max_buffers`, `max_attachments` or another number of SPEC 11 reached.
    TooMany = 11, "TOO_MANY", "this VM already has as many buffers, streams, imports or consumers of the buffer as the device allows";
    /// More extents than `max_extents`, or more mappings than allowed.
    TooFragmented = 12, "TOO_FRAGMENTED", "the buffer lies in more pieces than the device can map";
    /// Window budget used up.
    NoWindow = 13, "NO_WINDOW", "this VM holds as many mappings as its VMM may have";
    /// No free range in the shared-memory region.
    NoSpace = 14, "NO_SPACE", "the shared-memory region has no free range of this size";
    /// Still mapped, or another UNEXPORT waits.
    Busy = 15, "BUSY", "the buffer is still mapped, its end is already waited for, or a frame that it is part of was not returned";
    /// The buffer is being revoked, or is gone.
    Revoked = 16, "REVOKED", "the buffer was revoked";
    /// Blob over `max_blob`; refused, never cut.
    MetaTooLarge = 17, "META_TOO_LARGE", "the opaque metadata is longer than the device allows";
    /// Name or image not well-formed, or the image larger than the buffer.
    BadMeta = 18, "BAD_META", "the name, the image or the record of the frame is not valid, or does not fit the buffer, or a stream has no name or another one";
    /// No way that is accepted and allowed, or a property that is missing.
    NoWay = 19, "NO_WAY", "the host has no way to share the buffer that is allowed and accepted, or it is a stream, which has no bytes and is joined";
    /// Read-only asked, but the VMM would not enforce it.
    RoNotEnforced = 20, "RO_NOT_ENFORCED", "this VM's VMM would not enforce a read-only mapping";
    /// The VMM cannot map: shared-memory requests are missing.
    NoShmem = 21, "NO_SHMEM", "this VM's VMM cannot map other VMs' memory";
    /// The VMM refused the mapping, or is not asked any more.
    MapFailed = 22, "MAP_FAILED", "this VM's VMM refused the mapping";
    /// SYNC end without begin.
    Unbalanced = 23, "UNBALANCED", "the end of an access without its begin, or the return of a frame that was not given";
    /// The host failed, or is ending.
    HostError = 24, "HOST_ERROR", "the host failed, or is ending";
    /// The peer has a stream of that name already.
    Exists = 25, "EXISTS", "this VM already has a stream of that name";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_all_round_trips() {
        for (n, status) in Status::ALL.iter().enumerate() {
            assert_eq!(status.to_wire() as usize, n);
            assert_eq!(Status::from_wire(status.to_wire()), Some(*status));
        }
        assert_eq!(Status::from_wire(26), None);
    }
}
