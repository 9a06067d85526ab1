// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a user of the command can do about an error, in terms of the command.

use bufshare::{Error, Operation, Status};
use rustix::io::Errno;

const OLD: &str = "Update the host's daemon and the guest's driver";
const READ_ONLY: &str = "Open it for reading and writing (O_RDWR, DRM_RDWR), or name the peers that may read it (--to PEER:r)";
const IMPORTED: &str = "Have the machine whose memory it is grant it to the other one, too";
const MANY_HANDLES: &str =
    "Follow fewer buffers and streams by one program, or raise its limit of open files (ulimit -n)";
const NO_ACCESS: &str = "Run it as root, or as a member of the group bufshare, to which the udev rule of the guest driver gives /dev/bufshare";

/// The camera's buffers are allocated in few pieces already.
const MANY_WINDOWS: &str = "End other imports of this machine, have the stream made of fewer or smaller buffers (`bufshare capture` with --buffers or --size), or ask the host's operator for more windows (max-windows)";
const STREAM_READ_ONLY: &str =
    "Have the stream's machine grant rw (`bufshare capture --to PEER:rw`)";

/// A sentence, or nothing if there is nothing to say.
pub(crate) fn on(error: &Error) -> &'static str {
    let errno = Errno::from_io_error(&error.errno);
    on_operation(error.op, error.status, errno).unwrap_or_else(|| match error.status {
        Some(status) => on_status(status),
        None => errno.map_or("", on_errno),
    })
}

/// What is to be said of that operation alone.
fn on_operation(
    op: Operation,
    status: Option<Status>,
    errno: Option<Errno>,
) -> Option<&'static str> {
    Some(match (op, status, errno) {
        (Operation::Consume, Some(Status::TooFragmented | Status::NoWindow), _)
        | (Operation::Consume, None, Some(Errno::DQUOT)) => MANY_WINDOWS,
        (Operation::Consume, Some(Status::RoNotEnforced), _) => STREAM_READ_ONLY,
        (Operation::Consume | Operation::Join, None, Some(Errno::MFILE)) => MANY_HANDLES,
        (Operation::HandOver, None, Some(Errno::OPNOTSUPP)) => OLD,
        (Operation::Export, None, Some(Errno::ACCESS)) => READ_ONLY,
        (Operation::Export, None, Some(Errno::PERM)) => IMPORTED,
        (Operation::Open, None, Some(Errno::ACCESS | Errno::PERM)) => NO_ACCESS,
        _ => return None,
    })
}

fn on_status(status: Status) -> &'static str {
    match status {
        Status::Unsupported => OLD,
        Status::BadLength | Status::BadField | Status::NoRoom | Status::Unbalanced => {
            "This is a bug of the driver or of this command: please report it"
        }
        Status::NotFound => {
            "Check the id with `bufshare list`: the exporter may have ended, or has not granted \
             the buffer to this machine"
        }
        Status::Denied => {
            "See `bufshare list` for what is granted and `bufshare peers` for what may be shared, \
             and ask the exporter or the host's operator for more"
        }
        Status::NotRam => {
            "Export memory of this machine: `bufshare alloc`, or `bufshare export` with --heap or \
             --udmabuf"
        }
        Status::Overlap => "Export a buffer in which no page occurs twice",
        Status::Unaligned => "Use a multiple of the alignment that `bufshare info` prints",
        Status::TooLarge => "Use less than the largest buffer that `bufshare info` prints",
        Status::TooMany => "End other exports or imports of this machine",
        Status::TooFragmented => "Use `bufshare alloc`, which takes memory in few pieces",
        Status::NoWindow => {
            "End other imports of this machine, or have the exporter use `bufshare alloc`, which \
             takes memory in few pieces"
        }
        Status::NoSpace => {
            "End other imports of this machine, or ask the host's operator for a larger \
             shared-memory region"
        }
        Status::Busy => "End the programs that use the buffer, then try again",
        Status::Revoked => "See `bufshare list` for what is exported now",
        Status::MetaTooLarge => "Use a shorter --name, or less metadata",
        Status::BadMeta => {
            "Check --name for control characters, and that the image fits the buffer; a stream has \
             a name, and keeps it"
        }
        Status::NoWay => {
            "If `bufshare list` says that it is a stream, use the buffers that are part of it; else \
             ask the host's operator to make /dev/udmabuf available, or to set ram-fd=allow for \
             the exporter"
        }
        Status::RoNotEnforced => {
            "Use --rights rw if `bufshare list` shows rw; else have the exporter grant rw"
        }
        Status::NoShmem => {
            "Run this machine with QEMU 11.1 or newer, or export here instead of importing"
        }
        Status::MapFailed => "See the log of this machine's VMM",
        Status::HostError => "See the log of the host's daemon",
        Status::Exists => "Choose another name, or end the stream that has it",
        // One of a newer host.
        _ => "Update this command: the host and its driver are newer",
    }
}

fn on_errno(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT | Errno::NXIO => {
            "Check that the machine has the device and that the module virtio_bufshare is loaded"
        }
        // The driver has no place for the host's reason when a program maps a buffer.
        Errno::NOSPC => {
            "End other imports of this machine, or have the exporter use `bufshare alloc`, which \
             takes memory in few pieces, or ask the host's operator for a larger shared-memory \
             region"
        }
        Errno::FBIG => on_status(Status::TooLarge),
        Errno::TOOBIG => on_status(Status::TooFragmented),
        Errno::IO => on_status(Status::MapFailed),
        Errno::REMOTEIO => on_status(Status::HostError),
        Errno::NODEV => "Try again when the device is back",
        Errno::TIMEDOUT => "See the log of the host's daemon",
        Errno::STALE => "See `bufshare list` for what is exported now",
        Errno::PROTO => "Update the driver and this command to versions that belong together",
        Errno::NOTTY => "The descriptor is not a dma-buf, or --node is not the bufshare device",
        Errno::RANGE => "Stay within the buffer",
        Errno::NOMEM => "Free memory, or ask for less",
        Errno::DQUOT => {
            "End other exports of this machine: together they may pin only so much memory of \
             other drivers (pin_limit_mb of the module virtio_bufshare)"
        }
        Errno::USERS => "End other programs of this machine that follow the same buffer",
        Errno::MFILE | Errno::NFILE => "Raise the limit of open files (ulimit -n)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_cannot_be_mapped_is_no_matter_of_access_to_the_device() {
        for errno in [Errno::ACCESS, Errno::PERM] {
            assert_eq!(on_errno(errno), "");
        }
        let limits = [Errno::NOSPC, Errno::FBIG, Errno::TOOBIG];
        for errno in limits.into_iter().chain([Errno::IO, Errno::REMOTEIO]) {
            assert!(!on_errno(errno).is_empty(), "{errno}");
        }
    }

    #[test]
    fn a_stream_that_takes_too_much_is_no_matter_of_exports_nor_of_how_it_is_allocated() {
        let of = |status, errno| on_operation(Operation::Consume, status, Some(errno));
        for advice in [
            of(None, Errno::DQUOT),
            of(Some(Status::TooFragmented), Errno::TOOBIG),
            of(Some(Status::NoWindow), Errno::NOSPC),
        ] {
            let advice = advice.unwrap();
            assert!(advice.contains("--buffers"), "{advice}");
            for word in ["exports", "pin_limit_mb", "bufshare alloc"] {
                assert!(!advice.contains(word), "{advice}");
            }
        }
        // Of a buffer that a command imports by itself.
        let status = Some(Status::TooFragmented);
        assert_eq!(
            on_operation(Operation::Import, status, Some(Errno::TOOBIG)),
            None
        );
        assert!(on_errno(Errno::DQUOT).contains("pin_limit_mb"));
    }

    /// `bufshare view` has no such option.
    #[test]
    fn a_stream_that_cannot_be_only_read_is_no_matter_of_rights_that_are_typed() {
        let status = Some(Status::RoNotEnforced);
        let of = |op| on_operation(op, status, Some(Errno::ACCESS));
        assert_eq!(of(Operation::Consume), Some(STREAM_READ_ONLY));
        assert_eq!(of(Operation::Import), None);
        assert!(!STREAM_READ_ONLY.contains("--rights"));
    }

    #[test]
    fn every_refusal_has_advice_for_users_of_the_command() {
        let newer = on_status(Status::Unknown(u32::MAX));
        for status in Status::ALL {
            let text = on_status(*status);
            assert!(!text.is_empty() && !text.ends_with('.'), "{status:?}");
            assert!(text != newer, "{status:?} has no advice of its own");
        }
        let texts = Status::ALL.iter().map(|status| on_status(*status));
        let texts = texts.chain([newer]);
        let errnos = (1..134).map(|n| on_errno(Errno::from_raw_os_error(n)));
        for text in texts.chain(errnos) {
            for word in ["::", "Device", "Drop ", "library"] {
                assert!(!text.contains(word), "for programs, not for users: {text}");
            }
        }
    }
}
