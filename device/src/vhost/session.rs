// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One session, as the vhost-user crate, the dispatcher and the shared-memory thread see it.

mod ring_worker;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bufshare_protocol::device::{CAP_MAP, NUM_QUEUES};
use bufshare_protocol::limits::CONFIG_SIZE;
use bufshare_protocol::response::Reply;
use log::Level;
use vhost::vhost_user::Backend;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserShMemConfig};
use vhost_user_backend::VhostUserBackend;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};
use vmm_sys_util::eventfd::EventFd;

use super::admission::Admission;
use super::lifeline::{Lifeline, watch_worker, writes_for};
use super::limits::MAX_QUEUE_SIZE;
use super::queue::{Control, Events, Taken};
use super::ram_files::{self, Files};
use super::relay::{Verdict, Watch};
use super::shmem_requests::ShmemRequests;
use super::{GuestMem, Vring, features};
use crate::backing::Ram;
use crate::broker::{Limits, PeerId, Token};
use crate::dispatcher::{Dispatcher, Job, Link, SessionFacts};
use crate::locks::lock;
use crate::log_rate::Limiters;
use crate::os::process::Process;
use ring_worker::{Outbox, Phase};

/// Event of the worker's loop that says: serve the control queue again. The
/// ids up to the number of queues are the crate's.
pub const EVENT_AGAIN: u16 = 3;

/// What is known of a front end before it says anything.
pub struct Front {
    /// The peer.
    pub peer: PeerId,
    /// Its name.
    pub name: Arc<str>,
    /// The process that connected it.
    pub vmm: Process,
    /// Whose RAM is in which files.
    pub files: Arc<Files>,
    /// Memory that its VMM can make shorter is touched all the same.
    pub unsealed: bool,
    /// Bytes that its memory table may have.
    pub max_table: u64,
    /// Bytes of its shared-memory region.
    pub shm_size: u64,
    /// What it may use.
    pub limits: Limits,
    /// For what its peer can have said again and again.
    pub(crate) limiters: Arc<Limiters>,
}

/// One front end's session.
pub struct Session {
    /// The peer.
    pub peer: PeerId,
    /// Its name, for the log.
    pub name: Arc<str>,
    /// Ends it.
    pub lifeline: Arc<Lifeline>,
    /// Its mapping requests.
    pub shmem: ShmemRequests,
    /// Whose RAM is in which files.
    pub files: Arc<Files>,
    admission: Admission,
    dispatcher: Arc<Dispatcher>,
    ram: Mutex<Arc<Ram>>,
    control: Control,
    events: Events,
    phase: Mutex<Phase>,
    /// Wakes the worker for what one kick left undone.
    again: EventFd,
    /// How often the worker was woken.
    wakeups: AtomicU64,
    outbox: Outbox,
    /// Requests that were read just before the rings stopped.
    deferred: Mutex<Vec<Taken>>,
    /// Windows were mapped when the rings stopped last.
    stopped_mapped: AtomicBool,
    /// Given away to the vhost-user crate, which never closes it.
    exit_fd: Mutex<Option<RawFd>>,
    shm_size: u64,
    limiters: Arc<Limiters>,
}

impl Session {
    /// A session before its front end has said anything.
    ///
    /// # Errors
    /// As `eventfd` and `memfd_create`.
    pub fn new(dispatcher: Arc<Dispatcher>, front: Front, mem: GuestMem) -> io::Result<Arc<Self>> {
        let Front {
            peer,
            name,
            vmm,
            files,
            unsealed,
            max_table,
            shm_size,
            limits,
            limiters,
        } = front;
        let admission = Admission::new(
            peer,
            name.clone(),
            files.clone(),
            unsealed,
            max_table,
            limiters.clone(),
        );
        let again = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Arc::new(Self {
            peer,
            name,
            lifeline: Arc::default(),
            shmem: ShmemRequests::new(shm_size, limits.max_windows, vmm, limiters.clone())?,
            files,
            admission,
            dispatcher,
            control: Control::new(mem.clone(), limits.max_requests),
            events: Events::new(mem),
            ram: Mutex::default(),
            phase: Mutex::default(),
            again,
            wakeups: AtomicU64::new(0),
            outbox: Outbox::default(),
            deferred: Mutex::default(),
            stopped_mapped: AtomicBool::new(false),
            exit_fd: Mutex::new(None),
            shm_size,
            limiters,
        }))
    }

    /// To be registered for [`EVENT_AGAIN`].
    #[must_use]
    pub fn again_fd(&self) -> RawFd {
        self.again.as_raw_fd()
    }

    /// Closes what the vhost-user crate leaves open, when its threads are gone.
    pub fn reclaim(&self) {
        if let Some(fd) = lock(&self.exit_fd).take() {
            // SAFETY: the crate turned the consumer into this number and never
            // closes it; its epoll is gone, and nobody else knows the number.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

impl Link for Session {
    fn job(&self, job: Job) {
        self.shmem.push(job);
    }

    fn forget_jobs(&self) {
        self.shmem.forget_jobs();
    }

    fn reply(&self, token: Token, reply: &Reply) {
        if writes_for(&self.lifeline) {
            if self.control.reply(token, reply) {
                self.wake();
            }
            return;
        }
        lock(&self.outbox.replies).push((token, reply.clone()));
        self.post();
    }

    fn events(&self) {
        self.post();
    }

    fn delivered(&self) -> bool {
        let written = self.outbox.written.load(Ordering::Acquire);
        self.lifeline.closing() || written >= self.outbox.posted.load(Ordering::Acquire)
    }

    fn force(&self) {
        self.shmem.force();
    }

    fn fail(&self) {
        log::error!(
            "{}: a bug kept an answer or an event from it: the session ends",
            self.name
        );
        self.lifeline.fail();
    }

    fn vmm_pid(&self) -> Option<u32> {
        self.shmem.vmm_pid()
    }

    fn is_qemu(&self) -> bool {
        self.shmem.is_qemu()
    }

    fn facts(&self) -> SessionFacts {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (control, events) = (&self.control.counters, &self.events.counters);
        // Not in the expression below, which would hold both to its end.
        let running = lock(&self.phase).running;
        let ram_regions = lock(&self.ram).regions.len();
        SessionFacts {
            features: features::names(self.shmem.features()),
            can_map: self.shmem.can_map(),
            running,
            ram_regions,
            window_regions: self.admission.left_out(),
            pending: self.control.pending(),
            chains: load(&control.chains),
            malformed: load(&control.malformed).saturating_add(load(&events.malformed)),
            no_room: load(&control.no_room),
            ring_faults: load(&control.faults).saturating_add(load(&events.faults)),
            wakeups: load(&self.wakeups),
            events: load(&events.events),
            short_event_buffers: load(&events.no_room),
            jobs: self.shmem.jobs(),
            refused: load(&self.shmem.refused),
        }
    }
}

impl Watch for Session {
    fn negotiated(&self, negotiated: VhostUserProtocolFeatures) {
        self.shmem.set_features(negotiated);
        for (missing, cost) in features::missing(negotiated) {
            self.limiters.session.warn(
                &self.name,
                format_args!("the front end did not negotiate {missing}: {cost}"),
            );
        }
    }

    fn channel(&self, socket: UnixStream) {
        self.shmem.set_socket(socket);
    }

    fn admit(&self, request: u32, payload: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> Verdict {
        match self.admission.admit(request, payload, fds) {
            Ok(true) => Verdict::Pass,
            Ok(false) => Verdict::Acknowledge,
            Err(refusal) => {
                self.limiters.admission.log(
                    Level::Error,
                    &self.name,
                    format_args!("the front end is refused: {refusal}"),
                );
                Verdict::Refuse
            }
        }
    }
}

impl VhostUserBackend for Session {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        usize::try_from(NUM_QUEUES).unwrap_or_default()
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        features::device()
    }

    fn acked_features(&self, features: u64) {
        log::debug!("{}: features {features:#x}", self.name);
        if !self.shmem.negotiated() {
            self.negotiated(VhostUserProtocolFeatures::empty());
        }
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        features::protocol()
    }

    fn set_event_idx(&self, _enabled: bool) {}

    /// Always as long as asked for: QEMU aborts and Cloud Hypervisor panics at
    /// anything else.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut phase = lock(&self.phase);
        // A driver that goes on after a pause does not ask. But one whose VMM still
        // has windows was not reset, whatever its guest does.
        if !phase.running && !self.shmem.may_show() {
            self.forget_driver(&mut phase);
        }
        drop(phase);
        let refused = self.must_not_start();
        if refused {
            self.limiters.session.warn(
                &self.name,
                format_args!(
                    "stopped with windows mapped, and now a driver looks at the device: it is asked \
                     not to start, because QEMU would crash if there was a reset; power the VM off \
                     and on"
                ),
            );
        }
        let space = self.dispatcher.caps(self.peer).filter(|_| !refused).map_or(
            [0; CONFIG_SIZE],
            |mut caps| {
                // Drivers read this before their queues run.
                if self.shmem.can_map() {
                    caps.caps |= CAP_MAP;
                }
                caps.config_space()
            },
        );
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let size = usize::try_from(size).unwrap_or_default();
        space
            .iter()
            .copied()
            .skip(offset)
            .chain(std::iter::repeat(0))
            .take(size)
            .collect()
    }

    fn update_memory(&self, mem: GuestMem) -> io::Result<()> {
        let mut ram = ram_files::own_ram(&mem.memory(), &self.files, self.peer);
        let mut current = lock(&self.ram);
        if current.same(&ram) {
            return Ok(());
        }
        ram.keep_files(&current);
        let ram = Arc::new(ram);
        let old = std::mem::replace(&mut *current, ram.clone());
        drop(current);
        // It may be the last of this RAM, which takes its time.
        drop(old);
        self.dispatcher.set_ram(self.peer, &ram);
        Ok(())
    }

    fn set_backend_req_fd(&self, backend: Backend) {
        self.shmem.set_channel(backend);
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        match new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC) {
            Ok((consumer, notifier)) => {
                *lock(&self.exit_fd) = Some(consumer.as_raw_fd());
                Some((consumer, notifier))
            }
            Err(error) => {
                log::error!("{}: no event descriptor: {error}", self.name);
                None
            }
        }
    }

    fn stop_vring(&self, _index: u32) -> io::Result<()> {
        self.stop();
        Ok(())
    }

    fn handle_event(
        &self,
        event: u16,
        _set: EventSet,
        rings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        self.wakeups.fetch_add(1, Ordering::Relaxed);
        watch_worker(&self.lifeline, &self.name);
        if event == EVENT_AGAIN {
            // Of a session that ends, too: its worker would be woken without a pause.
            let _ = self.again.read();
        }
        if !self.lifeline.closing()
            && catch_unwind(AssertUnwindSafe(|| self.dispatch(event, rings))).is_err()
        {
            log::error!("{}: a bug stopped its worker: the session ends", self.name);
            self.lifeline.fail();
        }
        // An error would end the worker without a word.
        Ok(())
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        Ok(VhostUserShMemConfig::new(1, &[self.shm_size]))
    }
}

#[cfg(test)]
pub(super) mod tests;
