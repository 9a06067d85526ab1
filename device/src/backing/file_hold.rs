// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that are given to a VMM, and the host kernel's word on whether it still
//! holds them.
//!
//! A VMM whose device is stopped cannot be asked what it maps, and what its guest
//! does proves nothing. The kernel knows. A RAM file is given as an open file
//! description of its own, marked by a lock on a byte that no file has. Whatever
//! descriptor or mapping is left of it keeps the description; when the last one
//! goes, so does the lock. A dma-buf cannot be opened twice, but the kernel
//! reports how many hold it.
//!
//! A VMM passes the files on to its other back ends, which may keep them until
//! they are notified of a change: a file can count as held that no guest sees any
//! more.
//!
//! # What an answer is worth
//!
//! *Against guests*, whatever they do: both answers are right, but for that.
//!
//! *Against the VMM that was given the file*: for a dma-buf, that nobody holds it is
//! proved, since nobody can have it without being counted. For RAM it is not: that VMM
//! was given the exporter's whole RAM (`ram-fd=allow`). It can open the file again,
//! without a mark, or take the mark away.
//!
//! *Against other processes that have the RAM file* (the exporter's VMM, other VMMs it
//! was given to, their back ends): they cannot have a file count as returned. A lock of
//! theirs on other bytes, or on a whole range, is not taken for the mark: the mark excludes
//! all others, so where there is another one it is gone. A lock on just the mark's byte,
//! for which one can wait, cannot be distinguished from it: the file counts as held until
//! that process ends. So a file that counts as held keeps memory from its owner, but ends
//! no session of a VMM that says it has unmapped it. The kernel does not say whose such a
//! lock is, and no other evidence is sound: a process's descriptors do not show its
//! mappings, kcmp(2) takes the right to trace it, and the process that connected the front
//! end may not be the VMM.
//!
//! Such a process can do more harm to an importer whose device is stopped, and so cannot
//! be asked: that its VMM has dropped all windows is not seen before the process ends,
//! and a VM that was switched off is not connected again before that. `ram-fd=allow` is
//! for VMMs that are trusted with that.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::FileId;

/// Where marks begin in a file: beyond the end of any.
const MARKS: i64 = 1 << 62;

/// The next mark. One that comes round again while the first is in use cannot be made.
static NEXT: AtomicU32 = AtomicU32::new(0);

#[derive(Debug)]
enum Mark {
    /// A lock on this byte.
    Lock(i64),
    /// One holder more than us.
    Count,
    /// None could be made.
    Missing,
    /// A kernel that takes its time: says that it is asked, and waits for its answer.
    #[cfg(test)]
    Slow(Slow),
}

#[cfg(test)]
type Slow = (
    std::sync::mpsc::Sender<()>,
    std::sync::Mutex<std::sync::mpsc::Receiver<bool>>,
);

/// A file as it was given for one window.
#[derive(Debug)]
pub struct FileHold {
    file: Arc<File>,
    mark: Mark,
}

impl FileHold {
    /// A RAM file: the description to send, and what reports its end. If the
    /// host does not let it be opened again (it belongs to another user, and is
    /// no memfd; or its VMM has a lease on it), the file itself is to be sent, and
    /// nothing is known of it (see [`FileHold::is_marked`]).
    #[must_use]
    pub fn ram(file: &Arc<File>) -> (Arc<File>, Self) {
        let byte = MARKS.saturating_add(NEXT.fetch_add(1, Ordering::Relaxed).into());
        let (sent, mark) = match again(file, byte) {
            Ok(sent) => (Arc::new(sent), Mark::Lock(byte)),
            Err(error) => {
                log::debug!("a RAM file cannot be opened again and marked: {error}");
                (file.clone(), Mark::Missing)
            }
        };
        let file = file.clone();
        (sent, Self { file, mark })
    }

    /// A dma-buf that nobody else holds yet: a descriptor to send, which counts as
    /// a holder until it is dropped, and what reports its end.
    ///
    /// # Errors
    /// As `dup`.
    pub fn dmabuf(file: &Arc<File>) -> io::Result<(Arc<File>, Self)> {
        let sent = Arc::new(file.try_clone()?);
        let hold = Self {
            file: file.clone(),
            mark: holders(file).map_or(Mark::Missing, |_| Mark::Count),
        };
        Ok((sent, hold))
    }

    /// Which file it is.
    ///
    /// # Errors
    /// As `fstat`.
    pub fn id(&self) -> io::Result<FileId> {
        FileId::of(&self.file)
    }

    /// The descriptor that it keeps.
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Whether the kernel reports whether it is held. If not, only the end of the VMM's
    /// process shows that the VMM does not hold it.
    #[must_use]
    pub fn is_marked(&self) -> bool {
        !matches!(self.mark, Mark::Missing)
    }

    /// Whether a descriptor or a mapping of it is left anywhere, if that can be known. A
    /// marked file counts as held while the kernel does not report it: who holds it may be
    /// the cause.
    #[must_use]
    pub fn held(&self) -> Option<bool> {
        match &self.mark {
            Mark::Lock(byte) => Some(locked(&self.file, *byte).unwrap_or(true)),
            Mark::Count => Some(holders(&self.file).map_or(true, |count| count > 1)),
            Mark::Missing => None,
            #[cfg(test)]
            Mark::Slow((asked, answer)) => {
                asked.send(()).ok()?;
                crate::locks::lock(answer).recv().ok()
            }
        }
    }

    /// One whose kernel says when it is asked, and gives the answers that it is sent.
    #[cfg(test)]
    pub(crate) fn slow() -> (
        Self,
        std::sync::mpsc::Receiver<()>,
        std::sync::mpsc::Sender<bool>,
    ) {
        let (asked, is_asked) = std::sync::mpsc::channel();
        let (answer, answers) = std::sync::mpsc::channel();
        let hold = Self {
            file: super::tests::memfd(4096, true),
            mark: Mark::Slow((asked, std::sync::Mutex::new(answers))),
        };
        (hold, is_asked, answer)
    }
}

/// The same file with a description of its own, which alone holds a lock on `byte`.
fn again(file: &File, byte: i64) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // Its VMM may have a lease on it, and who opens it would wait for that to end. A
    // memory file is used the same way with the flag as without.
    let own = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    lock(&own, libc::F_OFD_SETLK, byte)?;
    Ok(own)
}

/// Whether the mark on `byte` is there. A lock that is not just like it is somebody
/// else's, and could not be there beside the mark.
fn locked(file: &File, byte: i64) -> io::Result<bool> {
    let found = lock(file, libc::F_OFD_GETLK, byte)?;
    let mark = mark_on(byte);
    Ok((found.l_type, found.l_start, found.l_len) == (mark.l_type, mark.l_start, mark.l_len))
}

/// A lock on `byte` beside which there can be no other.
fn mark_on(byte: i64) -> libc::flock {
    // SAFETY: all zeroes is a valid flock; it is plain data.
    let mut mark: libc::flock = unsafe { std::mem::zeroed() };
    // The constants are small numbers of another type.
    mark.l_type = libc::c_short::try_from(libc::F_WRLCK).unwrap_or_default();
    mark.l_whence = libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default();
    mark.l_start = byte;
    mark.l_len = 1;
    mark
}

/// One lock command with the mark on `byte`; returns what the kernel answers with.
fn lock(file: &File, command: i32, byte: i64) -> io::Result<libc::flock> {
    let mut lock = mark_on(byte);
    // SAFETY: the descriptor is open and `lock` is writable for its size.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock)
}

/// What is read of a description's information at most. What the kernel says of a dma-buf
/// takes less than 1 KiB, and so does each lock or lease of which there can be one.
const MAX_INFORMATION: u64 = 16 << 10;

/// How many references there are to a dma-buf, ours included.
///
/// # Errors
/// It is no dma-buf, or what the kernel says cannot be read.
fn holders(file: &File) -> io::Result<u64> {
    // The kernel lists locks first, one in a line, and whoever was given the description
    // can make any number of them. They are its own, so ours as well, to take away.
    let mut all = mark_on(0);
    all.l_type = libc::c_short::try_from(libc::F_UNLCK).unwrap_or_default();
    all.l_len = 0;
    // SAFETY: the descriptor is open and `all` initialised.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const all) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let path = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
    let mut information = Vec::new();
    File::open(path)?
        .take(MAX_INFORMATION)
        .read_to_end(&mut information)?;
    count_in(&information).ok_or_else(|| io::Error::other("it is not said how many hold the file"))
}

/// The number of references in the information about a dma-buf. Its name, which comes
/// last, is any bytes that one of its holders chose.
fn count_in(information: &[u8]) -> Option<u64> {
    let mut lines = information.split(|&byte| byte == b'\n');
    let count = lines.find_map(|line| line.strip_prefix(b"count:"))?;
    str::from_utf8(count).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::tests::memfd;
    use super::*;
    use std::os::fd::OwnedFd;

    fn map(file: &File) -> *mut libc::c_void {
        // SAFETY: a new mapping anywhere.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        at
    }

    #[test]
    fn ram_is_held_until_the_last_descriptor_and_mapping_are_gone() {
        let ram = memfd(8192, true);
        let (sent, hold) = FileHold::ram(&ram);
        let (other, another) = FileHold::ram(&ram);
        let copy: OwnedFd = sent.try_clone().unwrap().into();
        let at = map(&sent);

        drop(sent);
        assert_eq!(hold.held(), Some(true), "by a descriptor and a mapping");
        drop(copy);
        assert_eq!(hold.held(), Some(true), "by a mapping");
        // SAFETY: mapped above, and nobody looks at it.
        assert_eq!(unsafe { libc::munmap(at, 4096) }, 0);

        assert_eq!(hold.held(), Some(false));
        assert_eq!(another.held(), Some(true), "each is hold for itself");
        drop(other);
        assert_eq!(another.held(), Some(false));
    }

    #[test]
    fn ram_that_its_owner_maps_is_not_held_by_that() {
        let ram = memfd(4096, true);
        let at = map(&ram);
        let (sent, hold) = FileHold::ram(&ram);
        assert_eq!(hold.held(), Some(true));

        drop(sent);

        assert_eq!(hold.held(), Some(false));
        // SAFETY: mapped above, and nobody looks at it.
        assert_eq!(unsafe { libc::munmap(at, 4096) }, 0);
    }

    #[test]
    fn nothing_is_known_of_what_cannot_be_marked() {
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let socket = Arc::new(File::from(OwnedFd::from(socket)));

        let (sent, hold) = FileHold::ram(&socket);
        assert!(Arc::ptr_eq(&sent, &socket), "sent as it is");
        drop(sent);

        assert_eq!(hold.held(), None);
    }

    /// Another process with the same file.
    fn stranger(ram: &File) -> File {
        let path = format!("/proc/self/fd/{}", ram.as_raw_fd());
        let options = OpenOptions::new().read(true).write(true).open(path);
        options.unwrap()
    }

    /// A lock on all bytes from `start` on.
    fn lock_from(file: &File, kind: i32, start: i64) -> io::Result<()> {
        let mut lock = mark_on(start);
        lock.l_type = libc::c_short::try_from(kind).unwrap();
        lock.l_len = 0;
        // SAFETY: the descriptor is open and the lock initialised.
        match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    #[test]
    fn lock_of_somebody_else_is_not_taken_for_a_mark() {
        for kind in [libc::F_RDLCK, libc::F_WRLCK] {
            let ram = memfd(4096, true);
            let stranger = stranger(&ram);
            let (sent, hold) = FileHold::ram(&ram);
            assert!(hold.is_marked());

            assert!(lock_from(&stranger, kind, MARKS).is_err(), "the mark is");
            assert_eq!(hold.held(), Some(true));
            drop(sent);
            lock_from(&stranger, kind, MARKS).unwrap();

            assert_eq!(hold.held(), Some(false));
            // Nothing can be marked now.
            assert!(!FileHold::ram(&ram).1.is_marked());
        }
    }

    #[test]
    fn copy_of_a_mark_has_a_file_count_as_held_and_never_as_returned() {
        let ram = memfd(4096, true);
        let stranger = stranger(&ram);
        let (sent, hold) = FileHold::ram(&ram);
        let Mark::Lock(byte) = hold.mark else {
            panic!("not marked");
        };

        assert!(lock(&stranger, libc::F_OFD_SETLK, byte).is_err());
        drop(sent);
        lock(&stranger, libc::F_OFD_SETLK, byte).unwrap();

        assert_eq!(hold.held(), Some(true));
        drop(stranger);
        assert_eq!(hold.held(), Some(false));
    }

    #[test]
    fn ram_that_its_owner_has_a_lease_on_is_not_waited_for() {
        let ram = memfd(4096, true);
        // The lease is broken by the attempt, of which its owner hears by a signal.
        // SAFETY: no handler is set.
        unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
        // SAFETY: takes no pointer.
        let leased = unsafe { libc::fcntl(ram.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) };
        assert_eq!(leased, 0, "{}", io::Error::last_os_error());

        let (sent, hold) = FileHold::ram(&ram);

        assert!(Arc::ptr_eq(&sent, &ram), "sent as it is");
        assert!(!hold.is_marked());
    }

    #[test]
    fn holders_of_a_dma_buf_are_counted_whatever_its_name() {
        let name = b"size:\t4096\ncount:\t2\nexp_name:\tudmabuf\nname:\t\xff\ncount:\t1\n";
        assert_eq!(count_in(name), Some(2));
    }

    #[test]
    fn number_of_holders_that_is_not_said_is_not_known() {
        assert_eq!(
            count_in(b"lock:\t1: OFDLCK  ADVISORY  WRITE -1 00:0e:7 0 0\n"),
            None
        );
        assert_eq!(count_in(b"count:\t\xff\n"), None);
        assert_eq!(count_in(b""), None);
    }

    #[test]
    fn marked_file_counts_as_held_while_the_kernel_does_not_report_it() {
        // Nobody counts the holders of a memfd.
        let hold = FileHold {
            file: memfd(4096, true),
            mark: Mark::Count,
        };
        assert_eq!(hold.held(), Some(true));
    }

    #[test]
    fn locks_that_a_holder_has_made_are_gone_before_the_kernel_is_asked() {
        let file = memfd(4096, true);
        let holder = file.try_clone().unwrap();
        for byte in 0..64 {
            lock(&holder, libc::F_OFD_SETLK, byte * 2).unwrap();
        }

        assert!(holders(&file).is_err(), "it is no dma-buf");

        let path = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
        let left = std::fs::read_to_string(path).unwrap();
        assert!(!left.contains("lock:"), "{left}");
    }

    #[test]
    fn nothing_is_known_of_a_file_whose_holders_are_not_counted() {
        let (_sent, hold) = FileHold::dmabuf(&memfd(4096, true)).unwrap();

        assert_eq!(hold.held(), None);
    }
}
