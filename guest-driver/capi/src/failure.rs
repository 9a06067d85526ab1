// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a function that failed leaves: -errno, a message and a status, of each thread

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};

use bufshare::{Error, Operation, Status};

/// Why a function failed
#[derive(Debug)]
pub(crate) struct Failure {
    /// Positive.
    errno: c_int,
    status: Option<Status>,
    message: String,
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// The program is wrong.
    pub(crate) fn invalid(message: &str) -> Self {
        Self::new(libc::EINVAL, message)
    }

    pub(crate) fn new(errno: c_int, message: impl Into<String>) -> Self {
        Self {
            errno,
            status: None,
            message: message.into(),
        }
    }

    /// Keeps it for the calling thread, unless that is ending: then there is no place for it any
    /// more, and the errno has to do. Returns -errno.
    pub(crate) fn keep(self) -> c_int {
        let message = CString::new(self.message.replace('\0', "?")).unwrap_or_default();
        let status = self.status.map_or(0, Status::number);
        let _ = LAST.try_with(|last| last.replace((message, status)));
        self.errno.saturating_neg()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let errno = match error.errno.raw_os_error() {
            // Of a mapping, it is EFAULT or ENODEV.
            _ if error.is_revoked() => libc::ESTALE,
            Some(errno) if errno > 0 => errno,
            _ => libc::EIO,
        };
        let message = match advice(&error) {
            "" => error.to_string(),
            advice => format!("{error}; {advice}"),
        };
        Self {
            errno,
            status: error.status,
            message,
        }
    }
}

/// What a program's user can do, where the reason alone does not say it.
fn advice(error: &Error) -> &'static str {
    match (error.op, error.status, error.errno.raw_os_error()) {
        (Operation::Open, _, Some(libc::ENOENT | libc::ENXIO)) => {
            "see that the VM has the device, and load the module virtio_bufshare"
        }
        (Operation::Open, _, Some(libc::EACCES | libc::EPERM)) => {
            "run it as a member of the group bufshare"
        }
        (Operation::FindPeer, ..) => "ask for one that `bufshare peers` prints",
        (_, Some(status), _) => match status {
            Status::NotFound => "see `bufshare list` for what is offered to this VM",
            Status::Denied => "have its exporter, or the host's operator, allow it",
            Status::RoNotEnforced => "ask for BUFSHARE_READ | BUFSHARE_WRITE",
            Status::TooMany => "close other exports or imports of this VM",
            Status::NoWindow | Status::NoSpace => "close other imports of this VM",
            Status::NoWay => "have the host's operator allow one",
            Status::BadMeta => {
                "give a name of 1 to 31 bytes, an image whose planes are within the buffers, and \
                 a record whose values are in their ranges"
            }
            Status::Exists => "give another name, or end the program that has that one",
            Status::HostError => "see the log of the host's daemon",
            Status::MapFailed => "see the log of this VM's VMM",
            Status::Unsupported => "update the host's daemon and the guest's driver",
            _ => "",
        },
        (_, None, Some(libc::ETIMEDOUT)) => "see the log of the host's daemon",
        (_, None, Some(libc::ENODEV)) => "open it again when it is back",
        (Operation::Export, None, Some(libc::EACCES)) => {
            "open it for reading and writing, or name the peers that may read it"
        }
        _ => "",
    }
}

thread_local! {
    // Gone where C still calls: in atexit(), destructors of C++ and of pthread keys.
    static LAST: RefCell<(CString, u32)> = RefCell::default();
}

/// The result of a function: what it gives, or -errno.
pub(crate) fn run(function: impl FnOnce() -> Result<c_int>) -> c_int {
    function().unwrap_or_else(Failure::keep)
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_last_message() -> *const c_char {
    let message = LAST.try_with(|last| last.borrow().0.as_ptr());
    message.unwrap_or(c"".as_ptr())
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_last_status() -> u32 {
    LAST.try_with(|last| last.borrow().1).unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::ffi::CStr;
    use std::ptr;
    use std::sync::mpsc;

    use super::*;
    use crate::structs::{ConsumerOptions, ProducerOptions};

    unsafe extern "C" {
        fn bufshare_open(path: *const c_char, device: *mut *mut u8) -> c_int;
        fn bufshare_consumer_open(from: *const ConsumerOptions, to: *mut *mut u8) -> c_int;
        fn bufshare_producer_open(from: *const ProducerOptions, to: *mut *mut u8) -> c_int;
        fn bufshare_frame_return(frame: *mut u8) -> c_int;
    }

    pub(crate) fn last() -> String {
        // SAFETY: it is a text until the next call.
        let message = unsafe { CStr::from_ptr(bufshare_last_message()) };
        message.to_string_lossy().into_owned()
    }

    #[test]
    fn without_a_device_there_is_an_errno_and_a_message_that_says_what_to_do() {
        let mut device = ptr::null_mut();
        // SAFETY: a text, and a place for the result.
        let opened = unsafe { bufshare_open(c"/nonexistent/bufshare".as_ptr(), &raw mut device) };
        assert_eq!((opened, bufshare_last_status()), (-libc::ENOENT, 0));
        assert!(
            last().ends_with("load the module virtio_bufshare"),
            "{}",
            last()
        );
        assert!(device.is_null());
        let other = std::thread::spawn(last).join().unwrap();
        assert_eq!(other, "", "of another thread");
    }

    #[test]
    fn a_call_in_a_thread_that_is_ending_fails_by_its_errno_alone() {
        /// Calls when it is dropped, and says what came of it.
        struct Late(mpsc::Sender<(c_int, String, u32)>);
        impl Drop for Late {
            fn drop(&mut self) {
                let errno = Failure::invalid("late").keep();
                let _ = self.0.send((errno, last(), bufshare_last_status()));
            }
        }
        thread_local! {
            static LATE: RefCell<Option<Late>> = const { RefCell::new(None) };
        }
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::spawn(|| {
            // What is used first is dropped last.
            LATE.set(Some(Late(sender)));
            Failure::invalid("in time").keep();
            assert_eq!(last(), "in time");
        });
        thread.join().unwrap();
        assert_eq!(
            receiver.recv().unwrap(),
            (-libc::EINVAL, String::new(), 0),
            "it was to be too late"
        );
    }

    #[test]
    fn null_is_refused_and_not_followed() {
        let mut made = ptr::null_mut();
        // SAFETY: NULL is refused.
        let consumer = unsafe { bufshare_consumer_open(ptr::null(), &raw mut made) };
        assert_eq!(consumer, -libc::EINVAL);
        // SAFETY: NULL is refused.
        let producer = unsafe { bufshare_producer_open(ptr::null(), &raw mut made) };
        assert_eq!(producer, -libc::EINVAL);
        assert_eq!(last(), "a structure is needed, not NULL");
        // SAFETY: NULL is nothing.
        assert_eq!(unsafe { bufshare_frame_return(ptr::null_mut()) }, 0);
    }

    #[test]
    fn a_message_has_no_nul_and_its_status_is_the_number_of_the_header() {
        let mut failure = Failure::invalid("a\0b");
        assert_eq!(failure.errno, libc::EINVAL);
        failure.status = Some(Status::Revoked);
        assert_eq!(failure.keep(), -libc::EINVAL);
        assert_eq!((last(), bufshare_last_status()), ("a?b".into(), 16));
    }
}
