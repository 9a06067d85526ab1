// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One session, as the vhost-user crate, the dispatcher and the shared-memory thread see it.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bufshare_protocol::device::{CAP_MAP, NUM_QUEUES, QUEUE_CONTROL, QUEUE_EVENT};
use bufshare_protocol::limits::CONFIG_SIZE;
use bufshare_protocol::request::Request;
use bufshare_protocol::response::Reply;
use log::Level;
use vhost::vhost_user::Backend;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserShMemConfig};
use vhost_user_backend::{VhostUserBackend, VringT};
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};
use vmm_sys_util::eventfd::EventFd;

use super::admission::Admission;
use super::memory::{self, Files};
use super::queue::{Control, Delivered, Events, Fault, MAX_PER_KICK, Take, Taken};
use super::relay::{Hangup, Watch};
use super::shmem_requests::ShmemRequests;
use super::{GuestMem, Vring, features};
use crate::backing::Ram;
use crate::broker::{Limits, PeerId, Token};
use crate::dispatcher::{Dispatcher, Job, Link, SessionFacts};
use crate::host::process::Process;
use crate::sync::{Limiters, lock};

/// Event of the worker's loop that says: serve the control queue again. The
/// ids up to the number of queues are the crate's.
pub const EVENT_AGAIN: u16 = 3;

/// Queue sizes that front ends may ask for. crosvm offers the highest that
/// virtio has unless configured otherwise; memory is not taken for it.
const MAX_QUEUE_SIZE: usize = 32768;

/// How long a ring that has a kick descriptor waits for its call descriptor,
/// which front ends send next: what is signalled between the two is lost. After
/// that the driver is taken to poll.
const CALL_WAIT: Duration = Duration::from_millis(100);

/// Ends a session from any of its threads.
#[derive(Default)]
pub struct Lifeline {
    closing: AtomicBool,
    hangup: Mutex<Option<Hangup>>,
}

impl Lifeline {
    /// The session has a connection now.
    pub fn connected(&self, hangup: Hangup) {
        *lock(&self.hangup) = Some(hangup);
        if self.closing() {
            self.end();
        }
    }

    /// The front end is not served any more; the accept loop does the rest.
    pub fn fail(&self) {
        self.closing.store(true, Ordering::Release);
        if let Some(hangup) = lock(&self.hangup).as_ref() {
            hangup.dismiss();
        }
    }

    /// Closes the connection; the accept loop does the rest.
    pub fn end(&self) {
        self.closing.store(true, Ordering::Release);
        if let Some(hangup) = lock(&self.hangup).as_ref() {
            hangup.hang_up();
        }
    }

    /// Whether the session ends.
    #[must_use]
    pub fn closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}

/// Ends the session when the worker thread ends, for whatever reason. The
/// vhost-user crate would say nothing, and the guest would wait for ever.
struct WorkerWatch {
    lifeline: Arc<Lifeline>,
    name: Arc<str>,
}

impl Drop for WorkerWatch {
    fn drop(&mut self) {
        if !self.lifeline.closing() {
            log::error!(
                "{}: its worker thread ended (a kick descriptor failed, or a bug): the session ends",
                self.name
            );
            self.lifeline.fail();
        }
    }
}

thread_local! {
    static WATCH: RefCell<Option<WorkerWatch>> = const { RefCell::new(None) };
    /// Of the session whose worker this thread is. Only compared.
    static WORKER_OF: Cell<*const Lifeline> = const { Cell::new(std::ptr::null()) };
}

/// What other threads have for the driver. Only the worker writes it into the rings: how
/// long that takes is up to the guest, and no other VM is to wait for it.
#[derive(Default)]
struct Outbox {
    /// Answers, at most one for each request that is under way.
    replies: Mutex<Vec<(Token, Reply)>>,
    /// How often there was an answer or an event.
    posted: AtomicU64,
    /// How much of that the worker has written.
    written: AtomicU64,
}

#[derive(Default)]
struct Phase {
    running: bool,
    /// The front end waits for the answer to its stop.
    stopping: bool,
    /// The session is over: nothing starts any more.
    ended: bool,
    /// Nothing is held for a driver that might go on.
    forgotten: bool,
    /// Where the control queue was when it was stopped last.
    last_base: u16,
    /// Chains that were taken before the driver was fresh.
    chains_before: u64,
    /// Since when a call descriptor is missing.
    no_call_since: Option<Instant>,
}

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
    window_regions: AtomicUsize,
    control: Control,
    events: Events,
    phase: Mutex<Phase>,
    /// Wakes the worker for what one kick left undone.
    again: EventFd,
    /// How often the worker was woken.
    wakeups: AtomicU64,
    outbox: Outbox,
    /// Requests that were read just before the rings stopped, with their epoch.
    deferred: Mutex<Vec<(u64, Token, Request)>>,
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
            window_regions: AtomicUsize::new(0),
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

    /// The rings are not ours any more. Revokes what the VM exported.
    pub fn stop(&self) {
        if !self.stop_rings(&mut lock(&self.phase)) {
            return;
        }
        self.limiters
            .session
            .log(Level::Info, &self.name, format_args!("driver stopped"));
        let windows = self
            .dispatcher
            .caps(self.peer)
            .map_or(0, |caps| caps.windows_used);
        self.stopped_mapped.store(windows > 0, Ordering::Release);
        self.dispatcher.stop(self.peer, || self.lifeline.closing());
        lock(&self.phase).stopping = false;
        // The control queue runs if only the other one was stopped, and may have been
        // kicked meanwhile.
        self.wake();
    }

    /// The rings are not ours any more, and no others come.
    pub fn end_rings(&self) {
        let mut phase = lock(&self.phase);
        phase.ended = true;
        self.stop_rings(&mut phase);
    }

    /// Whether the front end would crash if a driver started the device now.
    ///
    /// QEMU 11.1.3 drops its windows when it resets a device, but at the next
    /// start looks up the memory that they had, and does not find it. A driver
    /// that leaves in order has flushed them. After a hard reset the device is
    /// not to be started before a power cycle; a driver that goes on after a
    /// pause is safe.
    fn must_not_start(&self) -> bool {
        self.stopped_mapped.load(Ordering::Acquire) && self.shmem.is_qemu()
    }

    /// Whether they were running. If so, they are not started before `stopping` is over.
    fn stop_rings(&self, phase: &mut Phase) -> bool {
        if !phase.running {
            return false;
        }
        phase.running = false;
        phase.stopping = true;
        self.shmem.set_running(false);
        phase.no_call_since = None;
        phase.last_base = self.control.stop().unwrap_or_default();
        self.events.stop();
        true
    }

    fn own(&self) -> impl Fn(u64, u64) -> bool + use<> {
        let ram = lock(&self.ram).clone();
        move |addr, len| ram.contains(addr, len)
    }

    /// Starts to serve when the control queue runs.
    fn start_if_ready(&self, rings: &[Vring]) {
        let (Some(control), Some(events)) = (ring(rings, QUEUE_CONTROL), ring(rings, QUEUE_EVENT))
        else {
            return;
        };
        let mut phase = lock(&self.phase);
        if phase.running || phase.stopping || phase.ended || self.lifeline.closing() {
            return;
        }
        let base = {
            let state = control.get_ref();
            let queue = state.get_queue();
            if !queue.ready() || !state.is_enabled() {
                return;
            }
            queue.next_avail()
        };
        // A ring that goes on where it was belongs to a driver that was merely
        // paused. (One that was stopped at 0 after a whole round looks fresh
        // too; it is notified of what is gone, which a fresh one does not mind.)
        let chains = self.control.counters.chains.load(Ordering::Relaxed);
        let whole_round = phase.last_base == 0 && chains > phase.chains_before;
        let fresh = base == 0 && !whole_round;
        if fresh {
            phase.chains_before = chains;
            self.forget_driver(&mut phase);
        }
        phase.forgotten = false;
        let epoch = self.dispatcher.start(self.peer, self.shmem.can_map());
        phase.running = true;
        self.control.start(control.clone(), epoch);
        self.events.start(events.clone());
        self.shmem.set_running(true);
        self.stopped_mapped.store(false, Ordering::Release);
        drop(phase);
        for (epoch, token, request) in core::mem::take(&mut *lock(&self.deferred)) {
            self.request(epoch, token, request);
        }
        let how = if fresh { "started" } else { "resumed" };
        self.limiters
            .session
            .log(Level::Info, &self.name, format_args!("driver {how}"));
        self.deliver();
    }

    /// Serves the control queue, but not for ever.
    fn serve(&self) {
        let own = self.own();
        self.control.begin_batch();
        for _ in 0..MAX_PER_KICK {
            if self.lifeline.closing() {
                break;
            }
            match self.control.take(&own) {
                Take::Request(taken) => self.one(taken),
                Take::Empty => {
                    self.control.end_batch();
                    if !self.control.ask_for_kicks() {
                        return;
                    }
                    self.control.begin_batch();
                }
                Take::Idle => return self.control.end_batch(),
                Take::Fault(fault) => {
                    self.control.end_batch();
                    return self.fault("control", fault);
                }
            }
        }
        self.control.end_batch();
        self.wake();
    }

    /// Has the worker look at both queues, after the rest of its work.
    fn wake(&self) {
        // A counter that is full wakes all the same.
        let _ = self.again.write(1);
    }

    fn fault(&self, queue: &str, fault: Fault) {
        self.limiters.session.warn(
            &self.name,
            format_args!(
                "the {queue} queue is broken: {fault}; it is not served until the driver resets \
                 the device"
            ),
        );
    }

    fn one(&self, taken: Taken) {
        if taken.malformed {
            self.limiters.session.warn(
                &self.name,
                format_args!("malformed descriptor chain on the control queue"),
            );
        }
        if !taken.answerable {
            self.limiters.session.warn(
                &self.name,
                format_args!("request without room for a response"),
            );
        }
        match taken.request {
            Ok(request) => {
                log::trace!("{}: request {:?}: {request:?}", self.name, taken.token);
                self.request(taken.epoch, taken.token, request);
            }
            Err(status) => {
                self.limiters
                    .session
                    .warn(&self.name, format_args!("bad request: {status}"));
                self.dispatcher.refuse(self.peer);
                self.reply(taken.token, &Err(status));
            }
        }
    }

    /// Handles a request, or keeps it for a driver that goes on after a pause.
    fn request(&self, epoch: u64, token: Token, request: Request) {
        if let Some(request) = self.dispatcher.request(self.peer, epoch, token, request) {
            lock(&self.deferred).push((epoch, token, request));
        }
    }

    /// The old driver is gone: nobody waits for what it asked, and it holds
    /// nothing any more.
    fn forget_driver(&self, phase: &mut Phase) {
        let dropped = self.shmem.forget_dropped();
        if core::mem::replace(&mut phase.forgotten, true) && !dropped {
            return;
        }
        lock(&self.deferred).clear();
        lock(&self.outbox.replies).clear();
        self.control.forget();
        self.dispatcher.reset(self.peer, dropped);
    }

    /// The front end has dropped all windows while the queues were stopped, as it
    /// does when the device is reset.
    pub fn windows_dropped(&self) {
        let mut phase = lock(&self.phase);
        if !phase.running {
            self.forget_driver(&mut phase);
        }
    }

    /// Whether this is the worker's thread.
    fn is_worker(&self) -> bool {
        WORKER_OF.get() == Arc::as_ptr(&self.lifeline)
    }

    /// Gives the driver an answer. For the worker.
    fn answer(&self, token: Token, reply: &Reply) {
        if self.control.reply(token, reply) {
            self.wake();
        }
    }

    /// Gives the driver the answers that other threads have for it. For the worker.
    fn answer_all(&self) {
        let replies = std::mem::take(&mut *lock(&self.outbox.replies));
        for (token, reply) in replies {
            self.answer(token, &reply);
        }
    }

    /// Has the worker write what was put into the outbox, or waits in the dispatcher.
    fn post(&self) {
        self.outbox.posted.fetch_add(1, Ordering::AcqRel);
        self.wake();
    }

    /// Writes events as long as there is room, but not for ever. Whether nothing is left
    /// that could be written.
    fn deliver(&self) -> bool {
        let next = || self.dispatcher.next_event(self.peer);
        match self.events.deliver(self.own(), next) {
            Delivered::All => {}
            Delivered::Some => {
                self.wake();
                return false;
            }
            Delivered::Fault(fault) => self.fault("event", fault),
        }
        true
    }

    fn dispatch(&self, event: u16, rings: &[Vring]) {
        if event == EVENT_AGAIN {
            let _ = self.again.read();
        }
        if !self.can_signal(rings) {
            std::thread::sleep(Duration::from_millis(1));
            self.wake();
            return;
        }
        let posted = self.outbox.posted.load(Ordering::Acquire);
        self.start_if_ready(rings);
        self.answer_all();
        if (event == EVENT_AGAIN || u32::from(event) == QUEUE_EVENT) && self.deliver() {
            self.outbox.written.store(posted, Ordering::Release);
        }
        if u32::from(event) != QUEUE_EVENT {
            self.serve();
        }
    }

    /// Whether every ring that runs can be signalled, or never will be.
    fn can_signal(&self, rings: &[Vring]) -> bool {
        let missing = rings.iter().any(|ring| {
            let state = ring.get_ref();
            state.get_queue().ready() && state.is_enabled() && state.get_call().is_none()
        });
        let mut phase = lock(&self.phase);
        if !missing {
            phase.no_call_since = None;
            return true;
        }
        let since = *phase.no_call_since.get_or_insert_with(Instant::now);
        let polls = since.elapsed() >= CALL_WAIT;
        self.events.driver_polls(polls);
        polls
    }
}

fn ring(rings: &[Vring], index: u32) -> Option<&Vring> {
    rings.get(usize::try_from(index).ok()?)
}

impl Link for Session {
    fn job(&self, job: Job) {
        self.shmem.push(job);
    }

    fn forget_jobs(&self) {
        self.shmem.forget_jobs();
    }

    fn reply(&self, token: Token, reply: &Reply) {
        if self.is_worker() {
            return self.answer(token, reply);
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
            window_regions: self.window_regions.load(Ordering::Relaxed),
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

    fn admit(&self, request: u32, payload: &[u8], fds: &mut Vec<OwnedFd>) -> bool {
        let result = self.admission.admit(request, payload, fds);
        if let Err(refusal) = &result {
            self.limiters.admission.log(
                Level::Error,
                &self.name,
                format_args!("the front end is refused: {refusal}"),
            );
        }
        result.is_ok()
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
        if let Some(table) = memory::without_blank(&mem.memory(), &self.files)? {
            mem.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .replace(table);
        }
        let (mut ram, others) = memory::own_ram(&mem.memory(), &self.files, self.peer);
        self.window_regions.store(others, Ordering::Relaxed);
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
        WORKER_OF.set(Arc::as_ptr(&self.lifeline));
        WATCH.with_borrow_mut(|watch| {
            watch.get_or_insert_with(|| WorkerWatch {
                lifeline: self.lifeline.clone(),
                name: self.name.clone(),
            });
        });
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
