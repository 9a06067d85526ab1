// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Numbers of the commands on queue 0
//!
//! Some are named and not served yet: the device answers
//! [`Unsupported`](crate::status::Status::Unsupported).

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)+) => {
        $($(#[$doc])* pub const $name: u32 = $value;)+

        /// Every command number of this version, in numeric order.
        pub const ALL: &[u32] = &[$($name),+];

        /// Each under its name in the C header.
        pub(crate) const CONSTS: &[(&str, u64)] =
            &[$((concat!("VIRTIO_BUFSHARE_CMD_", stringify!($name)), $value)),+];

        /// Name of a command for people, `None` if it is unknown.
        ///
        /// ```
        /// use bufshare_protocol::command;
        /// assert_eq!(command::name(command::ATTACH), Some("ATTACH"));
        /// assert_eq!(command::name(0), None);
        /// ```
        #[must_use]
        pub const fn name(kind: u32) -> Option<&'static str> {
            match kind {
                $($value => Some(stringify!($name)),)+
                _ => None,
            }
        }
    };
}

/// Commands that are named and not served yet.
pub const NOT_SERVED: &[u32] = &[FENCE];

commands! {
    /// Agree on a version, return the device's limits.
    GET_CAPS = 0x0100,
    /// List the peers.
    PEERS = 0x0101,
    /// Offer a buffer of one's own RAM.
    EXPORT = 0x0200,
    /// Revoke an offered buffer.
    UNEXPORT = 0x0201,
    /// Begin to use another peer's buffer.
    ATTACH = 0x0202,
    /// End that use.
    DETACH = 0x0203,
    /// Make an attached buffer appear in the shared-memory region.
    MAP = 0x0204,
    /// Undo one MAP.
    UNMAP = 0x0205,
    /// Begin or end CPU access.
    SYNC = 0x0206,
    /// Give up all windows that are not in use.
    FLUSH = 0x0207,
    /// State whether the exporter writes to its buffer.
    QUIESCE = 0x0208,
    /// Replace a buffer's metadata.
    SET_META = 0x0300,
    /// Return a buffer's metadata.
    GET_META = 0x0301,
    /// Describe one buffer.
    QUERY = 0x0302,
    /// List the buffers one owns or may attach to.
    LIST = 0x0303,
    /// Hand frames over.
    PUSH = 0x0400,
    /// Give frames back.
    RETURN = 0x0401,
    /// State how far accesses have come. Not served yet.
    FENCE = 0x0402,
}
