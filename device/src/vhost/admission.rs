// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a front end hands in, looked at before anything is done with it.
//!
//! A VMM may be hostile, and serves one VM: nothing that comes from it may hold up
//! or end this process, which serves others. So kick and call descriptors are
//! eventfds, the back-end channel is a stream socket, and memory that is touched is
//! inside a memory file that nobody can make shorter. Everything else in the memory table,
//! and the windows in it, are only listed here: the front end will name them again to take
//! them away. The vhost-user crate does not hear of them.
//!
//! A file of another file system is not even looked at: the VMM may serve that itself,
//! with FUSE, and never answer. It can hold up the closing of the descriptor all the
//! same: then this session's own thread waits, and at the end of the program the kernel,
//! until the VMM ends. Nobody can refuse a descriptor before it is there.
//!
//! Formats: vhost-user specification, "Message Specification".

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::{fs, io};

use vhost::vhost_user::message::FrontendReq;

use super::features;
use super::limits::{MAX_RAM_REGIONS, MAX_REGIONS};
use super::ram_files::Files;
use crate::backing::{self, FileId, MemoryKind};
use crate::broker::PeerId;
use crate::locks::lock;
use crate::log_rate::Limiters;

/// Bit of the payload of SET_VRING_KICK, _CALL and _ERR: there is no descriptor.
const NO_FD: u64 = 1 << 8;

/// Bytes before the regions in SET_MEM_TABLE (their number, padding), and before the
/// region in ADD_MEM_REG (padding).
const REGIONS_AT: usize = 8;

/// Bytes of a region: guest address, length, address in the front end, offset in the
/// file.
const REGION: usize = 32;

/// What QEMU calls an eventfd in /proc.
const EVENTFD: &str = "anon_inode:[eventfd]";

/// Why a message is refused, and with it the front end.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A kick or call descriptor is something else.
    #[error("it gave {0} as {1} descriptor of a queue, which has to be an eventfd")]
    NotEventfd(String, &'static str),
    /// Reading a kick descriptor takes one kick, not all.
    #[error(
        "it gave an eventfd made with EFD_SEMAPHORE as kick descriptor of a queue: one write to it \
         could wake this program for ever"
    )]
    Semaphore,
    /// The event loop of the vhost-user crate would go on to watch the first one.
    #[error(
        "it gave queue {0} a second kick descriptor, without GET_VRING_BASE since the first: one \
         write to that could wake this program for ever"
    )]
    SecondKick(u8),
    /// The back-end channel is something else.
    #[error("it gave {0} as back-end channel, which has to be a Unix stream socket")]
    NotSocket(String),
    /// What the vhost-user crate would take all the same, as if it could serve it.
    #[error("it asks for protocol features that were not offered: {0:#x}")]
    NotOffered(u64),
    /// The message cannot be understood.
    #[error("its message of type {0} has a wrong length or number of descriptors")]
    Malformed(u32),
    /// More memory than this peer's share.
    #[error("its memory table has more than {0} bytes")]
    TooLarge(u64),
    /// More regions than are allowed.
    #[error(
        "its memory table has more than {MAX_REGIONS} regions, or {MAX_RAM_REGIONS} that are RAM"
    )]
    TooMany,
    /// Nothing would be left of it.
    #[error("all memory in its memory table is left out; see the warnings about that")]
    NoMemory,
    /// Two regions are at the same place.
    #[error("two regions of its memory table overlap at {0:#x}")]
    Overlap(u64),
    /// The rings lie in memory that is not touched.
    #[error(
        "its driver's rings lie at {0:#x} (in the VMM's address space), in memory that is left \
         out; see the warning about that memory"
    )]
    Rings(u64),
    /// The rings lie in memory of another VM.
    #[error(
        "its driver's rings lie at {0:#x} (in the VMM's address space), in memory that another VM \
         shares or has announced as its own RAM: each VM needs a memory file of its own"
    )]
    ForeignRings(u64),
    /// The system said no.
    #[error("its descriptors cannot be looked at: {0}")]
    System(#[from] io::Error),
}

/// Why memory is not touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Its file is on no file system that is memory.
    NotMemory,
    /// Its file can lose pages, and who touches one of them then gets SIGBUS.
    Vanishing,
    /// Its file ends before the region does: mmap allows that, and who touches what is
    /// beyond gets SIGBUS.
    Short,
}

impl Fault {
    fn why(self) -> &'static str {
        match self {
            Self::NotMemory => "is neither a memfd nor on tmpfs or hugetlbfs",
            Self::Vanishing => {
                "is not sealed or on hugetlbfs, so that its VMM could take pages away"
            }
            Self::Short => "ends before the region does",
        }
    }

    fn help(self) -> &'static str {
        match self {
            Self::NotMemory => {
                "If it is the VM's RAM, start QEMU with -object \
                 memory-backend-memfd,id=m,size=SIZE,share=on -machine memory-backend=m"
            }
            Self::Vanishing => {
                "If it is the VM's RAM, start QEMU with -object \
                 memory-backend-memfd,id=m,size=SIZE,share=on -machine memory-backend=m, or, if \
                 you trust this VMM, say unsealed-ram=allow for the peer"
            }
            Self::Short => {
                "That is a bug of the VMM: all of a region has to lie in its file, from its offset on"
            }
        }
    }
}

/// A region of the memory table, as the front end describes it.
#[derive(Clone, Copy, Debug)]
struct Listed {
    gpa: u64,
    len: u64,
    /// Address in the front end.
    user: u64,
    /// Where it begins in its file.
    offset: u64,
    /// It is not passed on.
    left_out: Option<LeftOut>,
}

/// Why a region is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeftOut {
    /// Its memory is not touched, and there was a warning.
    Warned,
    /// It is memory of another VM, as windows are.
    Foreign,
}

impl Listed {
    /// The guest address of the first byte that both have.
    fn overlap(&self, other: &Self) -> Option<u64> {
        let first = self.gpa.max(other.gpa);
        let is_in = |one: &Self| first.checked_sub(one.gpa).is_some_and(|at| at < one.len);
        (is_in(self) && is_in(other)).then_some(first)
    }

    fn holds(&self, user: u64) -> bool {
        user.checked_sub(self.user).is_some_and(|at| at < self.len)
    }

    /// Whether all of it is in a file of `bytes`.
    fn is_within(&self, bytes: u64) -> bool {
        let end = self.offset.checked_add(self.len);
        end.is_some_and(|end| end <= bytes)
    }
}

/// Looks at what one front end hands in.
pub struct Admission {
    peer: PeerId,
    name: Arc<str>,
    files: Arc<Files>,
    /// Memory that can be made shorter is touched all the same.
    unsealed: bool,
    max_bytes: u64,
    table: Mutex<Vec<Listed>>,
    /// Queues that have a kick descriptor.
    kicked: Mutex<BTreeSet<u8>>,
    limiters: Arc<Limiters>,
}

impl Admission {
    /// For the front end of `peer`, whose memory table may have `max_bytes`, and
    /// memory that is `unsealed` if the operator trusts its VMM.
    #[must_use]
    pub(crate) fn new(
        peer: PeerId,
        name: Arc<str>,
        files: Arc<Files>,
        unsealed: bool,
        max_bytes: u64,
        limiters: Arc<Limiters>,
    ) -> Self {
        Self {
            peer,
            name,
            files,
            unsealed,
            max_bytes,
            table: Mutex::default(),
            kicked: Mutex::default(),
            limiters,
        }
    }

    /// Regions of the memory table that are not passed on.
    #[must_use]
    pub fn left_out(&self) -> usize {
        let table = lock(&self.table);
        table.iter().filter(|one| one.left_out.is_some()).count()
    }

    /// Looks at one message with its descriptors, and takes out memory that is not to be
    /// touched. Whether something of it is to be passed on.
    ///
    /// # Errors
    /// [`Refusal`]: the front end is not to be served any more.
    pub fn admit(
        &self,
        request: u32,
        payload: &mut Vec<u8>,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<bool, Refusal> {
        let is = |which: FrontendReq| request == u32::from(which);
        let malformed = Refusal::Malformed(request);
        if is(FrontendReq::SET_MEM_TABLE) {
            let count = word(payload, 0).map(|word| word & u64::from(u32::MAX));
            if count != u64::try_from(fds.len()).ok() {
                return Err(malformed);
            }
            let regions = (0..fds.len()).map(|index| region(payload, index));
            let regions: Option<Vec<Listed>> = regions.collect();
            lock(&self.table).clear();
            let listed = fds.len();
            let ram = self.memory(regions.ok_or(malformed)?, fds)?;
            if ram.len() < listed {
                *payload = table_of(&ram);
            }
            // Else the crate would keep the table that it has.
            return (!ram.is_empty()).then_some(true).ok_or(Refusal::NoMemory);
        }
        if is(FrontendReq::ADD_MEM_REG) {
            let region = region(payload, 0).filter(|_| fds.len() == 1);
            let ram = self.memory(vec![region.ok_or(malformed)?], fds)?;
            return Ok(!ram.is_empty());
        }
        if is(FrontendReq::REM_MEM_REG) {
            let region = region(payload, 0).ok_or(malformed)?;
            // By the specification there is none; some send one all the same.
            fds.clear();
            return Ok(self.remove(&region));
        }
        self.admit_other(request, payload, fds)?;
        Ok(true)
    }

    /// Looks at a message that is not about memory.
    fn admit_other(&self, request: u32, payload: &[u8], fds: &[OwnedFd]) -> Result<(), Refusal> {
        let is = |which: FrontendReq| request == u32::from(which);
        let malformed = Refusal::Malformed(request);
        for (which, what) in [
            (FrontendReq::SET_VRING_KICK, "kick"),
            (FrontendReq::SET_VRING_CALL, "call"),
            (FrontendReq::SET_VRING_ERR, "error"),
        ] {
            if is(which) {
                let value = word(payload, 0).ok_or(Refusal::Malformed(request))?;
                match fds {
                    [] if value & NO_FD != 0 => {}
                    [fd] if value & NO_FD == 0 => eventfd(fd, what)?,
                    _ => return Err(Refusal::Malformed(request)),
                }
                if which == FrontendReq::SET_VRING_KICK {
                    return self.kick(value, fds.first());
                }
                return Ok(());
            }
        }
        if is(FrontendReq::SET_PROTOCOL_FEATURES) {
            // One without a value is refused by the crate.
            let others = word(payload, 0).unwrap_or(0) & !features::protocol().bits();
            if others != 0 {
                return Err(Refusal::NotOffered(others));
            }
        }
        if is(FrontendReq::GET_VRING_BASE) {
            let index = word(payload, 0).map(u64::to_le_bytes);
            if let Some([index, 0, 0, 0, ..]) = index {
                lock(&self.kicked).remove(&index);
            }
        }
        if is(FrontendReq::SET_VRING_ADDR) {
            return self.rings(payload).ok_or(malformed)?;
        }
        match (is(FrontendReq::SET_BACKEND_REQ_FD), fds) {
            (true, [fd]) => channel(fd),
            // No other message that is served has one.
            (false, []) => Ok(()),
            _ => Err(malformed),
        }
    }

    /// Looks at a kick descriptor, or none, for a queue. The vhost-user crate gives
    /// one up only when the queue is stopped.
    fn kick(&self, value: u64, fd: Option<&OwnedFd>) -> Result<(), Refusal> {
        let [index, ..] = value.to_le_bytes();
        let mut kicked = lock(&self.kicked);
        if kicked.contains(&index) {
            return Err(Refusal::SecondKick(index));
        }
        if let Some(fd) = fd {
            if is_semaphore(fd)? {
                return Err(Refusal::Semaphore);
            }
            kicked.insert(index);
        }
        Ok(())
    }

    /// Looks at further regions of memory. Returns those that are to be passed on, and
    /// leaves their descriptors.
    fn memory(
        &self,
        mut regions: Vec<Listed>,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Vec<Listed>, Refusal> {
        let kinds = fds.iter().map(Kind::of);
        let kinds = kinds.collect::<io::Result<Vec<Kind>>>()?;
        let ids: Vec<FileId> = kinds
            .iter()
            .filter_map(|kind| kind.file)
            .map(|(id, _)| id)
            .collect();
        let mut kept = Vec::new();
        for ((region, fd), kind) in regions.iter_mut().zip(fds.drain(..)).zip(&kinds) {
            region.left_out = match (kind.memory, kind.file) {
                (_, Some((id, _))) if self.files.is_window(self.peer, id, &ids) => {
                    Some(LeftOut::Foreign)
                }
                (MemoryKind::Vanishing, _) if !self.unsealed => {
                    self.warn_left_out(region, &fd, Fault::Vanishing);
                    Some(LeftOut::Warned)
                }
                (_, Some((_, bytes))) if !region.is_within(bytes) => {
                    self.warn_left_out(region, &fd, Fault::Short);
                    Some(LeftOut::Warned)
                }
                (_, Some((id, _))) => {
                    self.files.announce(self.peer, id);
                    kept.push(fd);
                    continue;
                }
                // A window that shows a udmabuf, of this device or another.
                (MemoryKind::DmaBuf, None) => Some(LeftOut::Foreign),
                (_, None) => {
                    self.warn_left_out(region, &fd, Fault::NotMemory);
                    Some(LeftOut::Warned)
                }
            };
        }
        *fds = kept;
        let passed = regions.iter().filter(|one| one.left_out.is_none());
        let passed: Vec<Listed> = passed.copied().collect();
        let mut table = lock(&self.table);
        for region in regions {
            if let Some(at) = table.iter().find_map(|listed| listed.overlap(&region)) {
                return Err(Refusal::Overlap(at));
            }
            table.push(region);
        }
        let ram = table
            .iter()
            .filter(|listed| listed.left_out.is_none())
            .count();
        if table.len() > MAX_REGIONS || ram > MAX_RAM_REGIONS {
            return Err(Refusal::TooMany);
        }
        let mut lens = table.iter().map(|listed| listed.len);
        let total = lens.try_fold(0_u64, u64::checked_add);
        if total.is_none_or(|total| total > self.max_bytes) {
            return Err(Refusal::TooLarge(self.max_bytes));
        }
        Ok(passed)
    }

    /// Takes a region from the table. Whether the vhost-user crate has to hear of it:
    /// unless it was left out.
    fn remove(&self, region: &Listed) -> bool {
        let mut table = lock(&self.table);
        let is_it = |listed: &Listed| (listed.gpa, listed.len) == (region.gpa, region.len);
        // The crate refuses one that is not there.
        let Some(at) = table.iter().position(is_it) else {
            return true;
        };
        table.swap_remove(at).left_out.is_none()
    }

    fn warn_left_out(&self, region: &Listed, fd: &OwnedFd, fault: Fault) {
        let (len, gpa) = (region.len, region.gpa);
        let (file, why, help) = (path_of(fd), fault.why(), fault.help());
        self.limiters.admission.warn(
            &self.name,
            format_args!(
                "its memory of {len:#x} bytes at {gpa:#x} is left out: no buffer and no queue can \
                 be in it. Its file, {file}, {why}. {help}"
            ),
        );
    }

    /// Looks where the rings are; none if the message is too short.
    fn rings(&self, payload: &[u8]) -> Option<Result<(), Refusal>> {
        // Index and flags; then the addresses of descriptors, used ring, available
        // ring.
        let table = lock(&self.table);
        for at in [8, 16, 24] {
            let address = word(payload, at)?;
            let mut holding = table.iter().filter(|listed| listed.holds(address));
            match holding.find_map(|listed| listed.left_out) {
                Some(LeftOut::Warned) => return Some(Err(Refusal::Rings(address))),
                Some(LeftOut::Foreign) => return Some(Err(Refusal::ForeignRings(address))),
                None => {}
            }
        }
        Some(Ok(()))
    }
}

/// What a file is; if it is memory, then which and how long.
struct Kind {
    memory: MemoryKind,
    file: Option<(FileId, u64)>,
}

impl Kind {
    fn of(fd: &OwnedFd) -> io::Result<Self> {
        let memory = MemoryKind::of(fd.as_fd())?;
        let look = || Ok::<_, io::Error>((FileId::of(fd)?, backing::length(fd)?));
        Ok(Self {
            memory,
            file: memory.is_memory().then(look).transpose()?,
        })
    }
}

/// 64 bits of a payload, in the host's byte order.
fn word(payload: &[u8], at: usize) -> Option<u64> {
    let bytes = payload.get(at..at.checked_add(8)?)?;
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}

/// A region that has bytes, and ends.
fn region(payload: &[u8], index: usize) -> Option<Listed> {
    let at = index.checked_mul(REGION)?.checked_add(REGIONS_AT)?;
    let region = payload.get(at..at.checked_add(REGION)?)?;
    let region = Listed {
        gpa: word(region, 0)?,
        len: word(region, 8)?,
        user: word(region, 16)?,
        offset: word(region, 24)?,
        left_out: None,
    };
    let ends = region.gpa.checked_add(region.len).is_some();
    (ends && region.len > 0).then_some(region)
}

/// The payload of SET_MEM_TABLE with these regions.
fn table_of(regions: &[Listed]) -> Vec<u8> {
    // Their number and its padding are 32 bits each.
    let count = u32::try_from(regions.len()).unwrap_or(u32::MAX);
    let head = [count, 0].map(u32::to_ne_bytes).concat();
    let regions = regions.iter().flat_map(|region| {
        let words = [region.gpa, region.len, region.user, region.offset];
        words.into_iter().flat_map(u64::to_ne_bytes)
    });
    head.into_iter().chain(regions).collect()
}

/// What the kernel calls an open file, with nothing in it that a log takes amiss.
fn path_of(fd: &OwnedFd) -> String {
    match fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())) {
        Ok(path) => format!("{:?}", path.to_string_lossy()),
        Err(error) => format!("a file without a name ({error})"),
    }
}

/// Takes an eventfd, and makes it one that does not block; its other holders can
/// undo that (see [`super::doorbell`]).
fn eventfd(fd: &OwnedFd, what: &'static str) -> Result<(), Refusal> {
    let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    if path.as_os_str() != EVENTFD {
        return Err(Refusal::NotEventfd(path_of(fd), what));
    }
    // SAFETY: F_SETFL takes no pointer. An eventfd has no other flag that it sets.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(())
}

/// Whether reading an eventfd takes one from its count, and not all. The kernel
/// reports that since Linux 6.5; before, it is taken not to do so.
fn is_semaphore(eventfd: &OwnedFd) -> io::Result<bool> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", eventfd.as_raw_fd()))?;
    let flag = info
        .lines()
        .find_map(|line| line.strip_prefix("eventfd-semaphore:"));
    Ok(flag.is_some_and(|flag| flag.trim() != "0"))
}

/// Takes a socket whose shutdown ends every wait for it.
fn channel(fd: &OwnedFd) -> Result<(), Refusal> {
    use crate::os::sockopt::option;
    let is = |name, value| option(fd.as_raw_fd(), name).is_ok_and(|got| got == value);
    if is(libc::SO_DOMAIN, libc::AF_UNIX) && is(libc::SO_TYPE, libc::SOCK_STREAM) {
        Ok(())
    } else {
        Err(Refusal::NotSocket(path_of(fd)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::tests::memfd;
    use std::os::fd::BorrowedFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use vhost::vhost_user::message::VhostUserProtocolFeatures;

    fn admission(unsealed: bool) -> Admission {
        let files = Arc::new(Files::default());
        files.connect(PeerId(1), None);
        Admission::new(
            PeerId(1),
            "a".into(),
            files,
            unsealed,
            1 << 30,
            Arc::new(Limiters::default()),
        )
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn dup(fd: impl AsFd) -> OwnedFd {
        fd.as_fd().try_clone_to_owned().unwrap()
    }

    fn id(fd: &OwnedFd) -> FileId {
        FileId::of(fd.as_fd()).unwrap()
    }

    #[test]
    fn file_whose_file_system_may_not_answer_is_not_looked_at() {
        let admission = admission(false);
        let file = disk_file();
        let number = u32::try_from(file.as_raw_fd()).unwrap();
        let looks = [
            libc::SYS_fstat,
            libc::SYS_newfstatat,
            libc::SYS_statx,
            libc::SYS_fstatfs,
        ];
        // In this thread, which is the test's own.
        crate::deny::deny(&looks, Some(number), libc::EDEADLK).unwrap();
        let denied = FileId::of(&file).unwrap_err();
        assert_eq!(denied.raw_os_error(), Some(libc::EDEADLK));

        assert!(add(&admission, file, 0).unwrap().is_none());
    }

    fn disk_file() -> OwnedFd {
        // Whatever file system that is, it is none of memory.
        fs::File::open("/proc/self/exe").unwrap().into()
    }

    fn add(admission: &Admission, fd: OwnedFd, user: u64) -> Result<Option<OwnedFd>, Refusal> {
        add_part(admission, fd, user, 0x1000, 0)
    }

    /// Adds `len` bytes of a file from `offset` on, each time at another guest address.
    /// What is passed on.
    fn add_part(
        admission: &Admission,
        fd: OwnedFd,
        user: u64,
        len: u64,
        offset: u64,
    ) -> Result<Option<OwnedFd>, Refusal> {
        let mut fds = vec![fd];
        let request = FrontendReq::ADD_MEM_REG.into();
        let listed = u64::try_from(lock(&admission.table).len()).unwrap();
        let gpa = (listed << 20) | 0x1000;
        let mut region = words(&[0, gpa, len, user, offset]);
        let passed = admission.admit(request, &mut region, &mut fds)?;
        assert_eq!(passed, !fds.is_empty());
        Ok(fds.pop())
    }

    fn rings(admission: &Admission, at: u64) -> Result<(), Refusal> {
        let mut payload = words(&[0, 0x100, at, 0x300, 0]);
        let request = FrontendReq::SET_VRING_ADDR.into();
        admission
            .admit(request, &mut payload, &mut vec![])
            .map(drop)
    }

    #[test]
    fn sealed_memory_is_passed_on_and_other_files_are_not() {
        let sealed = dup(memfd(0x1000, true));
        let open = dup(memfd(0x1000, false));
        let passed = |admission: &Admission, fd: OwnedFd| {
            let passed = add(admission, fd, 0).unwrap();
            passed.as_ref().map(id)
        };
        let strict = admission(false);

        assert_eq!(passed(&strict, dup(&sealed)), Some(id(&sealed)));
        assert_eq!(passed(&strict, dup(&open)), None);
        assert_eq!(passed(&strict, disk_file()), None);
        assert_eq!(strict.left_out(), 2);

        let trusting = admission(true);
        assert_eq!(passed(&trusting, dup(&open)), Some(id(&open)));
        assert_eq!(passed(&trusting, disk_file()), None);
    }

    #[test]
    fn region_that_ends_beyond_its_file_is_left_out() {
        for (unsealed, seal) in [(false, true), (true, true), (true, false)] {
            let file = dup(memfd(0x3000, seal));
            let admission = admission(unsealed);
            let taken = |len, offset| {
                let passed = add_part(&admission, dup(&file), 0x7000, len, offset);
                passed.unwrap().is_some()
            };

            assert!(taken(0x3000, 0) && taken(0x1000, 0x2000));
            for (len, offset) in [
                (0x3001, 0),
                (0x2000, 0x2000),
                (0x1000, 0x3000),
                (0x1000, 1 << 40),
                (0x1000, u64::MAX),
            ] {
                assert!(!taken(len, offset), "{len:#x} at {offset:#x}");
            }
            assert!(matches!(rings(&admission, 0x7000), Err(Refusal::Rings(_))));
        }
    }

    #[test]
    fn rings_in_memory_that_is_left_out_are_refused_until_it_is_gone() {
        let admission = admission(false);
        add(&admission, disk_file(), 0x7000).unwrap();

        assert!(rings(&admission, 0x6fff).is_ok());
        assert!(matches!(rings(&admission, 0x7fff), Err(Refusal::Rings(_))));
        assert!(!remove(&admission, 0x1000, 0x1000), "passed on");
        assert!(rings(&admission, 0x7fff).is_ok());
    }

    /// Removes a region. Whether that is passed on.
    fn remove(admission: &Admission, gpa: u64, len: u64) -> bool {
        let mut region = words(&[0, gpa, len, 0, 0]);
        let mut fds = vec![disk_file()];
        let request = FrontendReq::REM_MEM_REG.into();
        let passed = admission.admit(request, &mut region, &mut fds).unwrap();
        assert!(fds.is_empty());
        passed
    }

    #[test]
    fn removal_is_passed_on_unless_the_region_was_left_out() {
        let admission = admission(false);
        let sealed = dup(memfd(0x1000, true));
        add(&admission, disk_file(), 0x7000).unwrap();
        add(&admission, sealed, 0x9000).unwrap();

        assert!(remove(&admission, 0x10_1000, 0x1000));
        assert!(
            remove(&admission, 0x1000, 0x2000),
            "it is none of the table"
        );
        assert_eq!(admission.left_out(), 1);
        assert!(!remove(&admission, 0x1000, 0x1000));
        assert!(remove(&admission, 0x1000, 0x1000), "it is gone");
    }

    #[test]
    fn regions_that_overlap_are_refused_whatever_they_are() {
        let sealed = dup(memfd(0x1000, true));
        for [first, second] in [[true, false], [false, true], [false, false], [true, true]] {
            let admission = admission(false);
            let add = |sealed_one, gpa, len| {
                let fd = if sealed_one {
                    dup(&sealed)
                } else {
                    disk_file()
                };
                let mut region = words(&[0, gpa, len, 0, 0]);
                admission.admit(FrontendReq::ADD_MEM_REG.into(), &mut region, &mut vec![fd])
            };
            add(first, 0x2000, 0x1000).unwrap();
            add(first, 0x1000, 0x1000).unwrap();
            for (gpa, len) in [(0x2000, 0x1000), (0x2800, 0x1000), (0, 0x10_0000)] {
                let result = add(second, gpa, len);
                assert!(matches!(result, Err(Refusal::Overlap(_))), "{gpa:#x}");
            }
            for (gpa, len) in [(0x8000, 0), (u64::MAX, 0x1000)] {
                let result = add(second, gpa, len);
                assert!(matches!(result, Err(Refusal::Malformed(_))), "{gpa:#x}");
            }
        }
    }

    #[test]
    fn rings_in_memory_of_another_vm_are_refused_with_that_reason() {
        let admission = admission(false);
        let foreign = dup(memfd(0x1000, true));
        admission.files.record(PeerId(1), id(&foreign), || None);
        add(&admission, foreign, 0x7000).unwrap();

        let refusal = rings(&admission, 0x7000).unwrap_err();

        assert!(matches!(refusal, Refusal::ForeignRings(_)), "{refusal}");
        assert!(!refusal.to_string().contains("warning"), "there was none");
    }

    #[test]
    fn table_is_looked_at_region_by_region() {
        let admission = admission(false);
        let ram = dup(memfd(0x1000, true));
        let mut fds = vec![disk_file(), dup(&ram)];
        let table = words(&[2, 0x10000, 0x1000, 0x9000, 0, 0x20000, 0x1000, 0x1000, 0]);
        let mut passed = table.clone();
        let request = FrontendReq::SET_MEM_TABLE.into();

        assert!(admission.admit(request, &mut passed, &mut fds).unwrap());

        assert_eq!(fds.iter().map(id).collect::<Vec<_>>(), [id(&ram)]);
        assert_eq!(passed, words(&[1, 0x20000, 0x1000, 0x1000, 0]));
        assert!(rings(&admission, 0x9000).is_err());
        for (table, count) in [(&table[..], 1), (&table[..72 - 8], 2), (&[][..], 0)] {
            let mut fds = (0..count).map(|_| dup(&ram)).collect();
            let result = admission.admit(request, &mut table.to_vec(), &mut fds);
            assert!(matches!(result, Err(Refusal::Malformed(5))));
        }
        let mut fds = vec![disk_file(), disk_file()];
        let result = admission.admit(request, &mut table.clone(), &mut fds);
        assert!(matches!(result, Err(Refusal::NoMemory)));
    }

    #[test]
    fn table_beyond_its_limits_is_refused() {
        let file = dup(memfd(1 << 30, true));
        let add = |admission: &Admission, gpa, len| {
            let mut payload = words(&[0, gpa, len, 0, 0]);
            admission.admit(
                FrontendReq::ADD_MEM_REG.into(),
                &mut payload,
                &mut vec![dup(&file)],
            )
        };
        let one = admission(false);
        add(&one, 0, 1 << 29).unwrap();
        let result = add(&one, 1 << 30, (1 << 29) + 1);
        assert!(matches!(result, Err(Refusal::TooLarge(_))));
        let result = add(&admission(false), 0, u64::MAX);
        assert!(matches!(result, Err(Refusal::TooLarge(_))));

        let many = admission(false);
        for gpa in 0..288 {
            add(&many, gpa << 12, 1 << 12).unwrap();
        }
        let result = add(&many, 1 << 30, 1 << 12);
        assert!(matches!(result, Err(Refusal::TooMany)));
    }

    #[test]
    fn queues_take_eventfds_and_make_them_not_block() {
        let admission = admission(false);
        let (_reader, pipe) = io::pipe().unwrap();
        for request in [
            FrontendReq::SET_VRING_KICK,
            FrontendReq::SET_VRING_CALL,
            FrontendReq::SET_VRING_ERR,
        ] {
            let blocking = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
            // SAFETY: open, and duplicated at once.
            let fd = dup(unsafe { BorrowedFd::borrow_raw(blocking.as_raw_fd()) });
            let mut fds = vec![fd];
            admission
                .admit(request.into(), &mut words(&[1]), &mut fds)
                .unwrap();
            assert!(blocking.read().is_err(), "it would block");

            let none = admission.admit(request.into(), &mut words(&[NO_FD | 2]), &mut vec![]);
            assert!(none.is_ok());
            let pipe = admission.admit(request.into(), &mut words(&[0]), &mut vec![dup(&pipe)]);
            assert!(matches!(pipe, Err(Refusal::NotEventfd(..))), "{pipe:?}");
            let file = memfd(0x1000, true);
            let file = admission.admit(request.into(), &mut words(&[0]), &mut vec![dup(&file)]);
            assert!(matches!(file, Err(Refusal::NotEventfd(..))));
        }
    }

    #[test]
    fn kick_descriptor_that_is_a_semaphore_is_refused() {
        let admission = admission(false);
        let semaphore = || {
            let flags = libc::EFD_SEMAPHORE | libc::EFD_NONBLOCK;
            let eventfd = vmm_sys_util::eventfd::EventFd::new(flags).unwrap();
            // SAFETY: open, and duplicated at once.
            vec![dup(unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) })]
        };
        let give = |request: FrontendReq| {
            admission.admit(request.into(), &mut words(&[0]), &mut semaphore())
        };

        let kick = give(FrontendReq::SET_VRING_KICK);

        assert!(matches!(kick, Err(Refusal::Semaphore)), "{kick:?}");
        // It is never read.
        give(FrontendReq::SET_VRING_CALL).unwrap();
    }

    #[test]
    fn queue_that_is_not_stopped_has_one_kick_descriptor() {
        let admission = admission(false);
        let admit = |request: FrontendReq, payload: &[u64], fds| {
            admission.admit(request.into(), &mut words(payload), &mut { fds })
        };
        let eventfd = || {
            let eventfd = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
            // SAFETY: open, and duplicated at once.
            vec![dup(unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) })]
        };
        let kick = FrontendReq::SET_VRING_KICK;
        // A driver that polls may be given one later.
        admit(kick, &[1 | NO_FD], vec![]).unwrap();
        admit(kick, &[1], eventfd()).unwrap();
        admit(kick, &[0], eventfd()).unwrap();

        for again in [
            admit(kick, &[1], eventfd()),
            admit(kick, &[1 | NO_FD], vec![]),
        ] {
            assert!(matches!(again, Err(Refusal::SecondKick(1))), "{again:?}");
        }
        admit(FrontendReq::GET_VRING_BASE, &[1], vec![]).unwrap();
        admit(kick, &[1], eventfd()).unwrap();
        assert!(
            admit(kick, &[0], eventfd()).is_err(),
            "another queue's stop"
        );
    }

    #[test]
    fn protocol_features_that_were_not_offered_are_refused() {
        let admission = admission(false);
        let request = FrontendReq::SET_PROTOCOL_FEATURES.into();
        let ask = |bits| admission.admit(request, &mut words(&[bits]), &mut vec![]);
        let offered = features::protocol().bits();
        let other = VhostUserProtocolFeatures::INFLIGHT_SHMFD.bits();

        ask(offered).unwrap();
        ask(0).unwrap();
        let error = ask(offered | other | 1 << 63).unwrap_err();
        assert!(matches!(error, Refusal::NotOffered(bits) if bits == other | 1 << 63));
    }

    #[test]
    fn channel_is_a_stream_socket() {
        let admission = admission(false);
        let request = FrontendReq::SET_BACKEND_REQ_FD.into();
        let (stream, _other) = UnixStream::pair().unwrap();
        let datagram = UnixDatagram::unbound().unwrap();

        assert!(
            admission
                .admit(request, &mut vec![], &mut vec![dup(&stream)])
                .is_ok()
        );
        let result = admission.admit(request, &mut vec![], &mut vec![dup(&datagram)]);
        assert!(matches!(result, Err(Refusal::NotSocket(_))));
        let result = admission.admit(request, &mut vec![], &mut vec![disk_file()]);
        assert!(matches!(result, Err(Refusal::NotSocket(_))));
    }

    #[test]
    fn no_other_message_has_a_descriptor() {
        let admission = admission(false);
        let request = FrontendReq::SET_LOG_BASE.into();

        let result = admission.admit(request, &mut words(&[0, 0]), &mut vec![disk_file()]);

        assert!(matches!(result, Err(Refusal::Malformed(6))));
        assert!(
            admission
                .admit(FrontendReq::SET_OWNER.into(), &mut vec![], &mut vec![])
                .is_ok()
        );
    }
}
