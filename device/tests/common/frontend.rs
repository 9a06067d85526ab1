// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMM without a VM: guest RAM in a memfd, a shared-memory region, and the
//! front end's half of the vhost-user protocol, in the order in which QEMU
//! behaves.
//!
//! Like QEMU it serves the back-end channel one request at a time from one
//! "main loop", which is blocked while it waits for the answer to GET_VRING_BASE;
//! and it acknowledges SHMEM_MAP and _UNMAP *before* it changes the mapping and
//! sends the new memory table.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vhost::VhostBackend;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserMMap, VhostUserMMapFlags,
    VhostUserProtocolFeatures, VhostUserSharedMsg, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{
    Error as VhostError, Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend,
    VhostUserFrontendReqHandler,
};
use vhost::{VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

pub const PAGE: u64 = 4096;

/// Guest-physical address of the shared-memory region.
pub const SHM_GPA: u64 = 1 << 40;

/// What the front end is like.
#[derive(Clone)]
pub struct Options {
    /// Bytes of RAM, at guest-physical 0.
    pub ram: u64,
    /// Protocol features it may negotiate.
    pub protocol: VhostUserProtocolFeatures,
    /// Whether it puts windows into the memory table, as QEMU does.
    pub list_windows: bool,
    /// Whether it maps read-only what was asked for so. QEMU does not.
    pub enforce_ro: bool,
    /// Seals of the RAM file.
    pub sealed: bool,
    /// File of its RAM, and where in it, if there is one already.
    pub ram_in: Option<(Arc<File>, u64)>,
    /// Whether the driver takes EVENT_IDX.
    pub event_idx: bool,
    /// Whether windows survive a reset of the device, as in crosvm.
    pub keep_windows: bool,
    /// A connection to the daemon that was made by somebody else.
    pub socket: Option<Arc<UnixStream>>,
    /// Bytes of the driver's buffers for events, at most 4096.
    pub event_size: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ram: 32 << 20,
            protocol: VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::BACKEND_REQ
                | VhostUserProtocolFeatures::BACKEND_SEND_FD
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::SHMEM
                | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
                | VhostUserProtocolFeatures::SHARED_OBJECT,
            list_windows: true,
            enforce_ro: false,
            sealed: true,
            ram_in: None,
            event_idx: true,
            keep_windows: false,
            socket: None,
            event_size: 1024,
        }
    }
}

/// A front end that negotiates all but these.
pub fn without(features: VhostUserProtocolFeatures) -> Options {
    let options = Options::default();
    Options {
        protocol: options.protocol - features,
        ..options
    }
}

/// Shared memory of this process: `len` bytes at `ptr`.
pub struct Mapping {
    pub ptr: *mut u8,
    pub len: u64,
}

// SAFETY: plain memory; all access is by volatile copies below.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len: u64, place: Option<(RawFd, u64)>) -> Self {
        let (flags, prot) = match place {
            Some(_) => (libc::MAP_SHARED, libc::PROT_READ | libc::PROT_WRITE),
            None => (
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                libc::PROT_NONE,
            ),
        };
        // SAFETY: a new mapping anywhere.
        let ptr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len as usize,
                prot,
                flags,
                place.map_or(-1, |(fd, _)| fd),
                place.map_or(0, |(_, offset)| offset as i64),
            )
        };
        assert_ne!(ptr, libc::MAP_FAILED);
        Self {
            ptr: ptr.cast(),
            len,
        }
    }

    fn at(&self, offset: u64, len: usize) -> *mut u8 {
        assert!(offset.checked_add(len as u64).unwrap() <= self.len);
        // SAFETY: checked to be inside.
        unsafe { self.ptr.add(offset as usize) }
    }

    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let ptr = self.at(offset, len);
        // SAFETY: inside the mapping; others may write, hence volatile.
        (0..len)
            .map(|i| unsafe { ptr.add(i).read_volatile() })
            .collect()
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let ptr = self.at(offset, bytes.len());
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: inside the mapping.
            unsafe { ptr.add(i).write_volatile(*byte) };
        }
    }

    pub fn read_u16(&self, offset: u64) -> u16 {
        let ptr = self.at(offset, 2).cast::<u16>();
        // SAFETY: inside the mapping and aligned by its callers.
        u16::from_le(unsafe {
            (*ptr.cast::<std::sync::atomic::AtomicU16>()).load(std::sync::atomic::Ordering::SeqCst)
        })
    }

    pub fn write_u16(&self, offset: u64, value: u16) {
        let ptr = self.at(offset, 2).cast::<std::sync::atomic::AtomicU16>();
        // SAFETY: inside the mapping and aligned by its callers.
        unsafe { &*ptr }.store(value.to_le(), std::sync::atomic::Ordering::SeqCst);
    }

    pub fn read_u32(&self, offset: u64) -> u32 {
        let ptr = self.at(offset, 4).cast::<std::sync::atomic::AtomicU32>();
        // SAFETY: inside the mapping and aligned by its callers.
        u32::from_le(unsafe { &*ptr }.load(std::sync::atomic::Ordering::SeqCst))
    }

    pub fn write_u32(&self, offset: u64, value: u32) {
        let ptr = self.at(offset, 4).cast::<std::sync::atomic::AtomicU32>();
        // SAFETY: inside the mapping and aligned by its callers.
        unsafe { &*ptr }.store(value.to_le(), std::sync::atomic::Ordering::SeqCst);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: ours, and nobody uses it any more.
        unsafe { libc::munmap(self.ptr.cast(), self.len as usize) };
    }
}

/// A live window.
struct Window {
    len: u64,
    file: File,
    fd_offset: u64,
    writable: bool,
}

enum Commit {
    Map(u64, Window),
    Unmap(u64, u64),
}

/// What the back end asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Map {
        shm_offset: u64,
        len: u64,
        writable: bool,
    },
    Unmap {
        shm_offset: u64,
        len: u64,
    },
    RefusedMap {
        shm_offset: u64,
        len: u64,
    },
    RefusedUnmap {
        shm_offset: u64,
        len: u64,
    },
    Barrier,
}

#[derive(Default)]
struct ShmState {
    windows: BTreeMap<u64, Window>,
    commit: Vec<Commit>,
    asked: Vec<Asked>,
    /// Maps to take before the next ones are refused.
    take: usize,
    /// Maps to refuse then.
    refuse: usize,
    /// Unmaps are refused.
    keep: bool,
    /// Files that are unmapped, or refused, are kept open.
    hoards: bool,
    /// Those.
    hoard: Vec<File>,
    /// The main loop does not look at the channel.
    held: bool,
    /// From the next map on.
    hold_then: bool,
    /// A request is there meanwhile.
    waiting: bool,
    /// The device is started.
    started: bool,
    /// Requests that came while it was not. QEMU 11.1.3 dies of the first.
    while_stopped: usize,
}

/// The shared-memory region and what is in it.
pub struct Shm {
    pub region: Mapping,
    state: Mutex<ShmState>,
    changed: Condvar,
}

impl Shm {
    fn state(&self) -> MutexGuard<'_, ShmState> {
        // A test that fails with the lock held still drops its front ends.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `done` of what was asked so far.
    pub fn until(&self, what: &str, done: impl Fn(&[Asked]) -> bool) {
        self.until_state(what, |state| done(&state.asked));
    }

    /// Waits until a request is in the channel, which the main loop leaves
    /// alone.
    pub fn until_waiting(&self) {
        self.until_state("a request in the channel", |state| state.waiting);
    }

    fn until_state(&self, what: &str, done: impl Fn(&ShmState) -> bool) {
        let end = Instant::now() + super::soon();
        let mut state = self.state();
        while !done(&state) {
            let rest = end.saturating_duration_since(Instant::now());
            assert!(
                !rest.is_zero(),
                "waited for {what}; asked: {:?}",
                state.asked
            );
            state = self.changed.wait_timeout(state, rest).unwrap().0;
        }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.state().asked.clone()
    }

    pub fn forget_asked(&self) {
        self.state().asked.clear();
    }

    pub fn windows(&self) -> usize {
        self.state().windows.len()
    }

    /// Windows that show this file.
    pub fn windows_of(&self, file: &File) -> usize {
        let identity = |file: &File| {
            let meta = file.metadata().unwrap();
            (meta.dev(), meta.ino())
        };
        let wanted = identity(file);
        let state = self.state();
        let files = state.windows.values();
        files.filter(|w| identity(&w.file) == wanted).count()
    }

    /// The next maps are refused.
    pub fn refuse(&self, maps: usize) {
        self.refuse_after(0, maps);
    }

    /// After `take` more maps, the next ones are refused.
    pub fn refuse_after(&self, take: usize, maps: usize) {
        let mut state = self.state();
        state.take = take;
        state.refuse = maps;
    }

    /// From now on every unmap is refused, and nothing is unmapped.
    pub fn refuse_unmaps(&self) {
        self.state().keep = true;
    }

    /// From now on files are kept open that were unmapped, or refused.
    pub fn hoard(&self) {
        self.state().hoards = true;
    }

    /// From now on no more of them.
    pub fn hoard_no_more(&self) {
        self.state().hoards = false;
    }

    /// Closes them, and keeps no more.
    pub fn release(&self) {
        let mut state = self.state();
        state.hoards = false;
        state.hoard.clear();
    }

    /// Requests that came while the device was stopped, which then do not count.
    pub fn forgive_while_stopped(&self) -> usize {
        std::mem::take(&mut self.state().while_stopped)
    }

    /// Whether the main loop leaves the channel alone.
    pub fn hold(&self, held: bool) {
        let mut state = self.state();
        state.held = held;
        state.waiting = false;
        drop(state);
        self.changed.notify_all();
    }

    /// When the main loop has served the next map, it leaves the channel alone.
    pub fn hold_after_map(&self) {
        let mut state = self.state();
        state.hold_then = true;
        state.waiting = false;
    }

    fn handle(&self, request: &VhostUserMMap, fd: Option<RawFd>) -> Result<(), i32> {
        let (shm_offset, len) = (request.shm_offset, request.len);
        let mut state = self.state();
        if !state.started {
            state.while_stopped += 1;
        }
        let result = self.check(&mut state, request, fd);
        let ok = result.is_ok();
        if fd.is_some() && std::mem::take(&mut state.hold_then) {
            state.held = true;
        }
        state.asked.push(match (fd, ok) {
            (Some(_), true) => Asked::Map {
                shm_offset,
                len,
                writable: request.flags == VhostUserMMapFlags::WRITABLE.bits(),
            },
            (Some(_), false) => Asked::RefusedMap { shm_offset, len },
            (None, true) => Asked::Unmap { shm_offset, len },
            (None, false) => Asked::RefusedUnmap { shm_offset, len },
        });
        self.changed.notify_all();
        result
    }

    /// As QEMU checks.
    fn check(
        &self,
        state: &mut ShmState,
        request: &VhostUserMMap,
        fd: Option<RawFd>,
    ) -> Result<(), i32> {
        let (shm_offset, len, fd_offset) = (request.shm_offset, request.len, request.fd_offset);
        let end = shm_offset.checked_add(len).ok_or(libc::EINVAL)?;
        if request.shmid != 0 || end > self.region.len || len == 0 {
            return Err(libc::EINVAL);
        }
        let Some(fd) = fd else {
            return match state.windows.get(&shm_offset) {
                Some(window) if window.len == len && !state.keep => {
                    state.commit.push(Commit::Unmap(shm_offset, len));
                    Ok(())
                }
                _ => Err(libc::ENOENT),
            };
        };
        if state.take > 0 {
            state.take -= 1;
        } else if state.refuse > 0 {
            state.refuse -= 1;
            if state.hoards {
                state.hoard.push(duplicate(fd));
            }
            return Err(libc::ENOMEM);
        }
        let overlaps = state
            .windows
            .iter()
            .any(|(start, window)| *start < end && shm_offset < start + window.len);
        if overlaps {
            return Err(libc::EEXIST);
        }
        assert_eq!(shm_offset % PAGE, 0, "QEMU would not check this");
        let file = duplicate(fd);
        if file.metadata().unwrap().len() < fd_offset + len || fd_offset % PAGE != 0 {
            return Err(libc::EINVAL);
        }
        let window = Window {
            len,
            file,
            fd_offset,
            writable: request.flags == VhostUserMMapFlags::WRITABLE.bits(),
        };
        state.commit.push(Commit::Map(shm_offset, window));
        Ok(())
    }
}

fn duplicate(fd: RawFd) -> File {
    // SAFETY: a valid descriptor; the result is ours.
    File::from(unsafe { OwnedFd::from_raw_fd(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3)) })
}

struct Handler(Arc<Shm>);

impl VhostUserFrontendReqHandler for Handler {
    fn shmem_map(&self, request: &VhostUserMMap, fd: &dyn AsRawFd) -> HandlerResult<u64> {
        let result = self.0.handle(request, Some(fd.as_raw_fd()));
        result
            .map(|()| 0)
            .map_err(std::io::Error::from_raw_os_error)
    }

    fn shmem_unmap(&self, request: &VhostUserMMap) -> HandlerResult<u64> {
        let result = self.0.handle(request, None);
        result
            .map(|()| 0)
            .map_err(std::io::Error::from_raw_os_error)
    }

    fn shared_object_remove(&self, _uuid: &VhostUserSharedMsg) -> HandlerResult<u64> {
        self.0.state().asked.push(Asked::Barrier);
        self.0.changed.notify_all();
        Err(std::io::Error::from_raw_os_error(libc::ENOENT))
    }
}

/// One ring's place in RAM and its descriptors.
pub struct RingFds {
    pub kick: EventFd,
    pub call: EventFd,
}

/// Where a ring lies.
#[derive(Clone, Copy)]
pub struct RingPlace {
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
}

/// The front end.
pub struct FrontEnd {
    pub ram: Arc<Mapping>,
    pub ram_file: Arc<File>,
    ram_offset: u64,
    pub shm: Arc<Shm>,
    pub config: Vec<u8>,
    pub protocol: VhostUserProtocolFeatures,
    pub rings: Vec<RingFds>,
    options: Options,
    frontend: Frontend,
    /// The lock under which QEMU does everything that concerns a device.
    main_loop: Arc<Mutex<()>>,
    stop: EventFd,
    channel: Option<JoinHandle<()>>,
    table_sent: bool,
}

pub fn memfd(len: u64, sealed: bool) -> File {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is NUL-terminated; the result is ours.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), flags) };
    assert!(fd >= 0);
    // SAFETY: as above.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len).unwrap();
    if sealed {
        // SAFETY: takes no pointer.
        let rc = unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
        assert_eq!(rc, 0);
    }
    file
}

impl FrontEnd {
    /// Connects and negotiates, as far as a VMM does before a driver comes.
    pub fn connect(path: &Path, options: &Options) -> Self {
        let mut frontend = match &options.socket {
            Some(socket) => Frontend::from_stream(socket.try_clone().unwrap(), 2),
            None => Frontend::connect(path, 2).unwrap(),
        };
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        assert_ne!(
            offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(),
            0
        );
        let protocol = frontend.get_protocol_features().unwrap() & options.protocol;
        frontend.set_protocol_features(protocol).unwrap();
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        assert_eq!(frontend.get_queue_num().unwrap(), 2);
        let (_, config) = frontend
            .get_config(0, 64, VhostUserConfigFlags::empty(), &[0; 64])
            .unwrap();
        let mut shm_size = PAGE;
        if protocol.contains(VhostUserProtocolFeatures::SHMEM) {
            let shm = frontend.get_shmem_config().unwrap();
            assert_eq!(shm.nregions, 1);
            shm_size = { shm.memory_sizes }[0];
        }
        let new = || (Arc::new(memfd(options.ram, options.sealed)), 0);
        let (ram_file, ram_offset) = options.ram_in.clone().unwrap_or_else(new);
        let place = (ram_file.as_raw_fd(), ram_offset);
        let ram = Arc::new(Mapping::new(options.ram, Some(place)));
        let mut this = Self {
            ram,
            ram_file,
            ram_offset,
            shm: Arc::new(Shm {
                region: Mapping::new(shm_size, None),
                state: Mutex::default(),
                changed: Condvar::new(),
            }),
            config,
            protocol,
            rings: Vec::new(),
            options: options.clone(),
            frontend,
            main_loop: Arc::default(),
            stop: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            channel: None,
            table_sent: false,
        };
        if protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            this.open_channel();
        }
        this
    }

    fn open_channel(&mut self) {
        let mut handler = FrontendReqHandler::new(Arc::new(Handler(self.shm.clone()))).unwrap();
        handler.set_reply_ack_flag(self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK));
        struct Tx(RawFd);
        impl AsRawFd for Tx {
            fn as_raw_fd(&self) -> RawFd {
                self.0
            }
        }
        let tx = Tx(handler.get_tx_raw_fd());
        self.frontend.set_backend_request_fd(&tx).unwrap();
        let shm = self.shm.clone();
        let main_loop = self.main_loop.clone();
        let stop = self.stop.try_clone().unwrap();
        let frontend = self.frontend.clone();
        let options = self.options.clone();
        self.channel = Some(std::thread::spawn(move || {
            while readable(handler.as_raw_fd(), stop.as_raw_fd()) {
                {
                    let mut state = shm.state();
                    if state.held {
                        state.waiting = true;
                        shm.changed.notify_all();
                        // Woken by the release, or looks for the stop.
                        let _ = shm.changed.wait_timeout(state, Duration::from_millis(10));
                        continue;
                    }
                }
                // As QEMU's main loop: not while it waits for an answer.
                let _busy = main_loop.lock().unwrap();
                if shm.state().held {
                    continue;
                }
                match handler.handle_request() {
                    Ok(_) | Err(VhostError::ReqHandlerError(_)) => {}
                    Err(_) => return,
                }
                // After the acknowledgement, as QEMU.
                commit(&shm, &frontend, &options);
            }
        }));
    }

    /// Driver features that are taken.
    pub fn features(&self) -> u64 {
        let mut features = (1 << 32) | (1 << 28);
        if self.options.event_idx {
            features |= 1 << 29;
        }
        features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    /// Starts the rings (DRIVER_OK).
    pub fn start(&mut self, places: &[RingPlace], bases: &[u16]) {
        let _busy = self.main_loop.lock().unwrap();
        self.frontend.set_features(self.features()).unwrap();
        if !self.table_sent {
            self.frontend.set_mem_table(&[self.ram_region()]).unwrap();
            self.table_sent = true;
        }
        self.rings.clear();
        let va = |gpa: u64| self.ram.ptr as u64 + gpa;
        for (index, (place, base)) in places.iter().zip(bases).enumerate() {
            self.frontend.set_vring_num(index, place.size).unwrap();
            self.frontend.set_vring_base(index, *base).unwrap();
            let data = VringConfigData {
                queue_max_size: place.size,
                queue_size: place.size,
                flags: 0,
                desc_table_addr: va(place.desc),
                used_ring_addr: va(place.used),
                avail_ring_addr: va(place.avail),
                log_addr: None,
            };
            self.frontend.set_vring_addr(index, &data).unwrap();
            let fds = RingFds {
                kick: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
                call: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            };
            self.frontend.set_vring_kick(index, &fds.kick).unwrap();
            self.frontend.set_vring_call(index, &fds.call).unwrap();
            self.rings.push(fds);
        }
        self.shm.state().started = true;
        for index in 0..places.len() {
            self.frontend.set_vring_enable(index, true).unwrap();
        }
    }

    /// Enables or disables a ring that is started.
    pub fn enable(&mut self, ring: usize, enable: bool) {
        let _busy = self.main_loop.lock().unwrap();
        self.frontend.set_vring_enable(ring, enable).unwrap();
    }

    /// The RAM as it stands in the memory table.
    pub fn ram_region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: self.options.ram,
            userspace_addr: self.ram.ptr as u64,
            mmap_offset: self.ram_offset,
            mmap_handle: self.ram_file.as_raw_fd(),
        }
    }

    /// The windows as they stand in the memory table.
    pub fn window_regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let state = self.shm.state();
        let windows = state.windows.iter();
        windows
            .map(|(at, window)| window_region(&self.shm, *at, window))
            .collect()
    }

    /// Stops the rings: returns where they were. Blocks the main loop.
    pub fn stop(&mut self) -> Vec<u16> {
        let _busy = self.main_loop.lock().unwrap();
        let count = self.rings.len();
        let bases = (0..count)
            .map(|index| self.frontend.get_vring_base(index).unwrap() as u16)
            .collect();
        self.shm.state().started = false;
        bases
    }

    /// What a VMM does at a reset of the device, after the stop: QEMU takes all
    /// windows away by itself, crosvm none.
    pub fn device_reset(&mut self) {
        let _busy = self.main_loop.lock().unwrap();
        if self.options.keep_windows {
            return;
        }
        let windows: Vec<Commit> = {
            let state = self.shm.state();
            let windows = state.windows.iter();
            windows.map(|(at, w)| Commit::Unmap(*at, w.len)).collect()
        };
        self.shm.state().commit.extend(windows);
        commit(&self.shm, &self.frontend, &self.options);
    }

    /// A handle for use from another thread while this one waits.
    pub fn raw(&self) -> Frontend {
        self.frontend.clone()
    }

    /// Reads the configuration space anew.
    pub fn read_config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>, vhost::Error> {
        let _busy = self.main_loop.lock().unwrap();
        let zeroes = vec![0; len as usize];
        self.frontend
            .get_config(offset, len, VhostUserConfigFlags::empty(), &zeroes)
            .map(|(_, bytes)| bytes)
    }
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        self.stop.write(1).unwrap();
        self.shm.hold(false);
        if let Some(channel) = self.channel.take() {
            let _ = channel.join();
        }
        // A process that ends unmaps all, whoever still looks at this object.
        self.shm.release();
        let windows = std::mem::take(&mut self.shm.state().windows);
        for (shm_offset, window) in windows {
            hide(&self.shm, shm_offset, window.len);
        }
        let violations = self.shm.forgive_while_stopped();
        if !std::thread::panicking() {
            assert_eq!(
                violations, 0,
                "shared-memory requests while the device was stopped"
            );
        }
    }
}

/// Whether the channel has something; `false` at the stop.
fn readable(channel: RawFd, stop: RawFd) -> bool {
    let entry = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    loop {
        let mut fds = [entry(stop), entry(channel)];
        // SAFETY: the array has the given length.
        unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
        if fds[0].revents != 0 {
            return false;
        }
        if fds[1].revents != 0 {
            return true;
        }
    }
}

/// Carries out what was acknowledged, sends the back end the new memory table,
/// and waits for its answer.
fn commit(shm: &Shm, frontend: &Frontend, options: &Options) {
    let todo = std::mem::take(&mut shm.state().commit);
    let mut frontend = frontend.clone();
    for commit in todo {
        match commit {
            Commit::Map(shm_offset, window) => {
                place(shm, shm_offset, &window, options);
                let region = window_region(shm, shm_offset, &window);
                if options.list_windows {
                    let _ = frontend.add_mem_region(&region);
                }
                shm.state().windows.insert(shm_offset, window);
            }
            Commit::Unmap(shm_offset, _) => {
                let window = shm.state().windows.remove(&shm_offset).unwrap();
                if options.list_windows {
                    let region = window_region(shm, shm_offset, &window);
                    let _ = frontend.remove_mem_region(&region);
                }
                hide(shm, shm_offset, window.len);
                let mut state = shm.state();
                if state.hoards {
                    state.hoard.push(window.file);
                }
            }
        }
        shm.changed.notify_all();
    }
}

fn window_region(shm: &Shm, shm_offset: u64, window: &Window) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: SHM_GPA + shm_offset,
        memory_size: window.len,
        userspace_addr: shm.region.ptr as u64 + shm_offset,
        mmap_offset: window.fd_offset,
        mmap_handle: window.file.as_raw_fd(),
    }
}

fn place(shm: &Shm, shm_offset: u64, window: &Window, options: &Options) {
    let mut prot = libc::PROT_READ;
    if window.writable || !options.enforce_ro {
        prot |= libc::PROT_WRITE;
    }
    let ptr = shm.region.at(shm_offset, window.len as usize);
    // SAFETY: replaces a part of our own reserved region.
    let mapped = unsafe {
        libc::mmap(
            ptr.cast(),
            window.len as usize,
            prot,
            libc::MAP_SHARED | libc::MAP_FIXED,
            window.file.as_raw_fd(),
            window.fd_offset as i64,
        )
    };
    assert_ne!(mapped, libc::MAP_FAILED);
}

/// An unmapped range reads as zeroes, as it does under QEMU's TCG.
fn hide(shm: &Shm, shm_offset: u64, len: u64) {
    let ptr = shm.region.at(shm_offset, len as usize);
    // SAFETY: replaces a part of our own reserved region.
    let mapped = unsafe {
        libc::mmap(
            ptr.cast(),
            len as usize,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert_ne!(mapped, libc::MAP_FAILED);
}
