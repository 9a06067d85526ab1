// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shared-memory requests: asks one front end for mappings, in order, on a thread of its
//! own.
//!
//! The front end may take its time, and may ask the main thread for answers
//! while it does. So the thread holds no lock while it waits. The wait itself
//! has no limit, since an answer that was given up could not be distinguished from
//! the next one: it ends with the session, which closes the channel.
//!
//! Shared-memory requests are sent only while the queues run: QEMU 11.1.3 has
//! no device to look them up in before and after, and dies of it. (One that is
//! on its way when the front end stops its device cannot be called back.) A mapping
//! that is not finished then is given up. If the dispatcher says so, unmap requests are sent
//! all the same: the device of a guest that keeps another's memory is not worth more
//! than that memory.
//!
//! A front end that resets its device may drop the windows by itself, and a
//! guest may pretend that it did. So the host's kernel is asked, which knows who
//! holds the files (see [`crate::backing::file_hold`]).

mod budget;
mod sent_files;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bufshare_protocol::device::SHMID;
use bufshare_protocol::types::Way;
use log::Level;
use uuid::Uuid;
use vhost::vhost_user::message::{
    VhostUserMMap, VhostUserMMapFlags, VhostUserProtocolFeatures, VhostUserSharedMsg,
};
use vhost::vhost_user::{Backend, Error as VhostError, VhostUserFrontendReqHandler};

use super::limits::MARK_FREE;
use super::ram_files::Sent;
use crate::backing::zero_pages::ZeroPages;
use crate::backing::{self, FdPiece, PAGE, udmabuf};
use crate::broker::limits::GUARD;
use crate::broker::{EffectId, Outcome, Piece, VmmRequest};
use crate::dispatcher::{Dispatcher, Job};
use crate::locks::lock;
use crate::log_rate::Limiters;
use crate::os::process::Process;
use crate::os::random;
use budget::{Budget, Lot};
use sent_files::{Kept, WindowFile};

/// How often the kernel is asked who holds what was given to a VMM whose device is
/// stopped.
const LOOK: Duration = Duration::from_millis(100);

/// How long a VMM whose device is stopped may take to drop its windows by itself,
/// as part of a reset, before an unmap request is forced upon it.
const DROP_WAIT: Duration = Duration::from_millis(500);

/// What mapping into a VM takes.
const TO_MAP: VhostUserProtocolFeatures = VhostUserProtocolFeatures::BACKEND_REQ
    .union(VhostUserProtocolFeatures::BACKEND_SEND_FD)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::SHMEM);

/// Whether a shared-memory request may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Yes.
    Ask,
    /// It would be about a window that the VMM has dropped, as all others.
    Dropped,
    /// Not while the queues are stopped.
    Stopped,
    /// Never again.
    Closed,
}

/// What the thread does next.
enum Next {
    /// A job, where to ask, and the epoch in which it was queued.
    Job(Job, Option<Backend>, u64),
    /// Report that the VMM has dropped all windows.
    Dropped,
    /// Look who still holds those files that the VMM said it has not.
    Look(Lot),
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// What the job in hand does.
    in_hand: Option<EffectId>,
    /// The queues run.
    running: bool,
    /// Unmap requests are sent although they do not, since then.
    forced: Option<Instant>,
    closed: bool,
    /// What shows another VM's memory, by its place.
    files: BTreeMap<u64, WindowFile>,
    /// What the VMM said it has not, and somebody may hold.
    kept: Vec<Kept>,
    /// When to look at that next, by its owners.
    budgets: BTreeMap<Lot, Budget>,
    /// That was what was done last.
    looked: bool,
    /// When the operator was last notified of that.
    kept_said: Option<Instant>,
    /// How often `files` and `kept` were changed.
    file_changes: u64,
    /// How often all jobs were forgotten, because the VMM has dropped all windows by
    /// itself. A job of an earlier epoch is about windows that nobody knows any more.
    epoch: u64,
    backend: Option<Backend>,
    /// The socket of the channel.
    channel: Option<UnixStream>,
    /// Protocol features that were negotiated, once they are.
    features: Option<VhostUserProtocolFeatures>,
}

impl State {
    fn forget_jobs(&mut self) {
        self.jobs.clear();
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// What a job of `epoch` has to do, unless that depends on what the VMM holds.
    fn turn(&self, epoch: u64) -> Option<Turn> {
        if self.closed {
            Some(Turn::Closed)
        } else if self.epoch != epoch {
            Some(Turn::Dropped)
        } else {
            self.running.then_some(Turn::Ask)
        }
    }
}

/// The shared-memory requests of one session.
pub struct ShmemRequests {
    state: Mutex<State>,
    wake: Condvar,
    shm_size: u64,
    /// Windows that it may have.
    windows: usize,
    /// How long the thread has run.
    clock: fn() -> Duration,
    /// Whose front end it is.
    vmm: Process,
    /// For windows whose backing is gone.
    zero_pages: ZeroPages,
    /// Mapping requests that the front end refused.
    pub refused: AtomicU64,
    /// For what a guest can have said again and again.
    limiters: Arc<Limiters>,
}

impl ShmemRequests {
    /// Those to the front end of `vmm`, without a channel yet.
    ///
    /// # Errors
    /// As `memfd_create`.
    pub(crate) fn new(
        shm_size: u64,
        windows: u32,
        vmm: Process,
        limiters: Arc<Limiters>,
    ) -> io::Result<Self> {
        Ok(Self {
            state: Mutex::new(State::default()),
            wake: Condvar::new(),
            shm_size,
            windows: usize::try_from(windows).unwrap_or(usize::MAX),
            clock: budget::thread_time,
            vmm,
            zero_pages: ZeroPages::new(shm_size)?,
            refused: AtomicU64::new(0),
            limiters,
        })
    }

    /// The process that connected the front end, if it has a number here.
    #[must_use]
    pub fn vmm_pid(&self) -> Option<u32> {
        self.vmm.pid()
    }

    /// The front end chose its protocol features.
    pub fn set_features(&self, features: VhostUserProtocolFeatures) {
        lock(&self.state).features = Some(features);
    }

    /// Whether it did.
    #[must_use]
    pub fn negotiated(&self) -> bool {
        lock(&self.state).features.is_some()
    }

    /// What it chose.
    #[must_use]
    pub fn features(&self) -> VhostUserProtocolFeatures {
        let none = VhostUserProtocolFeatures::empty();
        lock(&self.state).features.unwrap_or(none)
    }

    /// Whether the front end can be asked to map, and says whether it has.
    #[must_use]
    pub fn can_map(&self) -> bool {
        self.features().contains(TO_MAP)
    }

    /// Whether it is QEMU: only that has SHARED_OBJECT.
    #[must_use]
    pub fn is_qemu(&self) -> bool {
        self.features()
            .contains(VhostUserProtocolFeatures::SHARED_OBJECT)
    }

    /// The front end gave a channel: its socket.
    pub fn set_socket(&self, socket: UnixStream) {
        let old = lock(&self.state).channel.replace(socket);
        if let Some(old) = old {
            // Nobody could end a wait for its answer any more.
            let _ = old.shutdown(Shutdown::Both);
        }
    }

    /// The front end gave a channel: the crate's end of it.
    pub fn set_channel(&self, backend: Backend) {
        lock(&self.state).backend = Some(backend);
    }

    /// Jobs that wait or run.
    #[must_use]
    pub fn jobs(&self) -> usize {
        let state = lock(&self.state);
        state
            .jobs
            .len()
            .saturating_add(usize::from(state.in_hand.is_some()))
    }

    /// Whether no job waits behind the one in hand.
    fn is_last(&self) -> bool {
        lock(&self.state).jobs.is_empty()
    }

    /// Queues a job. Does not block.
    pub fn push(&self, job: Job) {
        let mut state = lock(&self.state);
        if !state.closed {
            state.jobs.push_back(job);
        }
        drop(state);
        self.wake.notify_all();
    }

    /// Whether the queues run.
    pub fn set_running(&self, running: bool) {
        let mut state = lock(&self.state);
        state.running = running;
        state.forced = None;
        drop(state);
        self.wake.notify_all();
    }

    /// From soon on unmap requests are sent although the queues do not run, until
    /// they do.
    pub fn force(&self) {
        lock(&self.state).forced.get_or_insert_with(Instant::now);
        self.wake.notify_all();
    }

    /// Whether a map request of a job of `epoch` may be sent. It does not wait: while the
    /// queues are stopped, unmap requests may be forced, and none may wait behind a
    /// mapping that is not wanted any more.
    fn turn_to_map(&self, epoch: u64) -> Turn {
        lock(&self.state).turn(epoch).unwrap_or(Turn::Stopped)
    }

    /// Waits until an unmap request of a job of `epoch` may be sent: while the queues
    /// are stopped, when it is forced.
    fn turn_to_unmap(&self, epoch: u64) -> Turn {
        loop {
            let files = {
                let state = lock(&self.state);
                match state.turn(epoch) {
                    Some(turn) => return turn,
                    None => state.window_files(),
                }
            };
            let dropped = files.dropped();
            let state = lock(&self.state);
            if let Some(turn) = state.turn(epoch) {
                return turn;
            }
            if dropped && state.has_only(&files) {
                return Turn::Dropped;
            }
            if state
                .forced
                .is_some_and(|since| since.elapsed() >= DROP_WAIT)
            {
                return Turn::Ask;
            }
            drop(
                self.wake
                    .wait_timeout(state, LOOK)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
    }

    /// Forgets all jobs. Does not block. Those that were queued after
    /// [`ShmemRequests::forget_dropped`], while the dispatcher did not know of it yet, are
    /// about windows that are gone, too.
    pub fn forget_jobs(&self) {
        lock(&self.state).forget_jobs();
    }

    /// Closes the channel, and so ends the thread.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.jobs.clear();
        if let Some(channel) = state.channel.take() {
            let _ = channel.shutdown(Shutdown::Both);
        }
        self.wake.notify_all();
    }

    /// The thread. `stuck` is called when the channel is broken, `dropped` when
    /// the VMM dropped all windows while the queues were stopped.
    pub fn run(
        &self,
        name: &str,
        dispatcher: &Dispatcher,
        sent: Sent<'_>,
        maker: Option<&dyn udmabuf::Maker>,
        stuck: impl Fn(&str),
        dropped: impl Fn(),
    ) {
        let mut thread = ShmemThread {
            shmem: self,
            name,
            sent,
            nonce: Uuid::from_bytes(random::bytes().unwrap_or([0xa5; 16])),
            epoch: 0,
            effect: EffectId(0),
            dispatcher,
        };
        while let Some(next) = self.next() {
            let (job, backend, epoch) = match next {
                Next::Job(job, backend, epoch) => (job, backend, epoch),
                Next::Dropped => {
                    dropped();
                    continue;
                }
                Next::Look(lot) => {
                    thread.look_at_kept(lot);
                    continue;
                }
            };
            thread.epoch = epoch;
            let id = job.id;
            thread.effect = id;
            let outcome = thread.serve(job, backend.as_ref(), maker);
            if self.keeps(id) {
                dispatcher.complete_held(id, outcome);
            } else {
                dispatcher.complete(id, outcome);
            }
            if outcome == Outcome::Stuck {
                stuck("its back-end channel failed in the middle of a mapping request");
            }
            self.ended();
        }
    }

    /// The dispatcher has heard what came of the job in hand.
    fn ended(&self) {
        lock(&self.state).in_hand = None;
    }

    fn next(&self) -> Option<Next> {
        let mut state = lock(&self.state);
        loop {
            if !state.running && !state.closed && !state.files.is_empty() {
                let files = state.window_files();
                drop(state);
                let dropped = files.dropped();
                state = lock(&self.state);
                if dropped && !state.running && !state.closed && state.has_only(&files) {
                    return Some(Next::Dropped);
                }
            }
            if state.closed {
                return None;
            }
            let look = state.next_look(Instant::now());
            // However many owners there are whose files are to be looked at, a job waits
            // for those of one.
            let may_look = !state.looked || state.jobs.is_empty();
            if let Some((Duration::ZERO, lot)) = look
                && may_look
            {
                state.looked = true;
                return Some(Next::Look(lot));
            }
            if let Some(job) = state.jobs.pop_front() {
                state.looked = false;
                state.in_hand = Some(job.id);
                return Some(Next::Job(job, state.backend.clone(), state.epoch));
            }
            let asks = !state.running && !state.files.is_empty();
            let wait = asks
                .then_some(LOOK)
                .into_iter()
                .chain(look.map(|(wait, _)| wait))
                .min();
            state = match wait {
                None => self
                    .wake
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(wait) => {
                    self.wake
                        .wait_timeout(state, wait)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }
}

/// What is mapped.
#[derive(Clone, Copy)]
enum What {
    /// Another VM's memory.
    Buffer {
        /// Whose it is, and whether its file is a dma-buf.
        lot: Lot,
        /// Whether the guest may write.
        writable: bool,
    },
    /// Memory of nobody.
    ZeroPages,
}

struct ShmemThread<'a> {
    shmem: &'a ShmemRequests,
    name: &'a str,
    sent: Sent<'a>,
    /// A shared object that never was.
    nonce: Uuid,
    /// Of the job in hand.
    epoch: u64,
    /// What it does.
    effect: EffectId,
    dispatcher: &'a Dispatcher,
}

impl ShmemThread<'_> {
    fn serve(
        &mut self,
        job: Job,
        backend: Option<&Backend>,
        maker: Option<&dyn udmabuf::Maker>,
    ) -> Outcome {
        match job.request {
            VmmRequest::Map {
                source,
                writable,
                shm_offset,
            } => {
                // Kept open no longer than this takes.
                let pieces = backing::pieces(&job.ram.upgrade(), &source, shm_offset, maker);
                let lot = Lot {
                    owner: source.owner,
                    udmabuf: source.way == Way::Udmabuf,
                };
                let what = What::Buffer { lot, writable };
                match (pieces, backend) {
                    (Ok(pieces), Some(backend)) => match self.map(backend, &pieces, what) {
                        // What is asked for next would be a barrier as well.
                        Outcome::Done if self.shmem.is_last() => match self.barrier(backend) {
                            Outcome::Done => Outcome::Proved,
                            other => other,
                        },
                        outcome => outcome,
                    },
                    (Ok(_), None) => Outcome::HostError,
                    (Err(error), _) => {
                        let what = format_args!("a buffer cannot be mapped: {error}");
                        self.shmem.limiters.shmem.warn(self.name, what);
                        Outcome::HostError
                    }
                }
            }
            VmmRequest::Unmap { pieces } => {
                backend.map_or(Outcome::Stuck, |backend| self.unmap(backend, &pieces))
            }
            VmmRequest::MapZeroPages { piece } => backend.map_or(Outcome::HostError, |backend| {
                self.map_zero_pages(backend, piece)
            }),
            VmmRequest::Barrier => backend.map_or(Outcome::Stuck, |backend| self.barrier(backend)),
        }
    }

    /// Maps all pieces or none.
    fn map(&mut self, backend: &Backend, pieces: &[FdPiece], what: What) -> Outcome {
        if !self.shmem.can_map() {
            return Outcome::HostError;
        }
        if let Some(piece) = pieces.iter().find(|piece| !self.fits(piece)) {
            log::error!(
                "{}: not asked for: {:#x} bytes at {:#x} cannot be mapped",
                self.name,
                piece.len,
                piece.shm_offset
            );
            return Outcome::HostError;
        }
        let flags = match what {
            What::Buffer {
                writable: false, ..
            } => VhostUserMMapFlags::empty(),
            _ => VhostUserMMapFlags::WRITABLE,
        };
        let mut done = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let request = mmap(piece.shm_offset, piece.len, piece.fd_offset, flags);
            match self.shmem.turn_to_map(self.epoch) {
                Turn::Ask => {}
                // Those that were mapped are gone, too.
                Turn::Dropped => return Outcome::Refused,
                Turn::Stopped if done.is_empty() => return Outcome::HostError,
                Turn::Stopped => return self.undo(backend, &done),
                Turn::Closed => return Outcome::Stuck,
            }
            let file = match what {
                What::ZeroPages => {
                    self.sent.record(piece.id, || self.shmem.file_ids());
                    piece.file.clone()
                }
                What::Buffer { lot, .. } => {
                    // No VM's RAM is a dma-buf.
                    if !lot.udmabuf {
                        self.sent.record(piece.id, || self.shmem.file_ids());
                    }
                    match self.shmem.give_file(piece, lot, self.epoch) {
                        Ok(Some(file)) => file,
                        Ok(None) => return Outcome::Refused,
                        Err(error) => {
                            let what = format_args!("a buffer cannot be mapped: {error}");
                            self.shmem.limiters.shmem.warn(self.name, what);
                            let undone = self.undo(backend, &done);
                            return if done.is_empty() {
                                Outcome::HostError
                            } else {
                                undone
                            };
                        }
                    }
                }
            };
            let reply = answer(backend.shmem_map(&request, &*file));
            // From here on only others hold it.
            match what {
                What::Buffer { lot, .. } => self.shmem.spend(lot, MARK_FREE, || drop(file)),
                What::ZeroPages => drop(file),
            }
            match reply {
                Outcome::Done => done.push(Piece {
                    shm_offset: piece.shm_offset,
                    len: piece.len,
                }),
                Outcome::Refused => {
                    self.shmem
                        .said_returned(self.effect, piece.shm_offset, piece.len);
                    self.count_refusal(piece);
                    return self.undo(backend, &done);
                }
                other => return other,
            }
        }
        Outcome::Done
    }

    /// Maps zero pages.
    fn map_zero_pages(&mut self, backend: &Backend, piece: Piece) -> Outcome {
        let piece = self.shmem.zero_pages.piece(piece);
        self.map(backend, &[piece], What::ZeroPages)
    }

    /// Unmaps the first pieces of a mapping whose next one was refused or not asked for.
    fn undo(&mut self, backend: &Backend, done: &[Piece]) -> Outcome {
        if done.is_empty() {
            return Outcome::Refused;
        }
        // A refused unmap is of a mapping that the front end dropped itself.
        match (self.unmap(backend, done), self.barrier(backend)) {
            (Outcome::Done | Outcome::Refused, Outcome::Done) => Outcome::Refused,
            _ => Outcome::Stuck,
        }
    }

    /// Unmaps all pieces, also if one is refused.
    fn unmap(&mut self, backend: &Backend, pieces: &[Piece]) -> Outcome {
        let mut outcome = Outcome::Done;
        for piece in pieces {
            let request = mmap(piece.shm_offset, piece.len, 0, VhostUserMMapFlags::empty());
            match self.shmem.turn_to_unmap(self.epoch) {
                Turn::Ask => match answer(backend.shmem_unmap(&request)) {
                    Outcome::Done => {
                        self.shmem
                            .said_returned(self.effect, piece.shm_offset, piece.len);
                    }
                    // QEMU unmaps by itself when the device is reset, and knows
                    // nothing of the mapping afterwards.
                    Outcome::Refused if self.shmem.has_released(piece.shm_offset) => {
                        log::debug!(
                            "{}: {:#x} bytes at {:#x} were unmapped before",
                            self.name,
                            piece.len,
                            piece.shm_offset
                        );
                        self.shmem.returned(piece.shm_offset);
                        outcome = Outcome::Refused;
                    }
                    Outcome::Refused => {
                        let (len, at) = (piece.len, piece.shm_offset);
                        self.shmem.limiters.shmem.log(
                            Level::Error,
                            self.name,
                            format_args!(
                                "the front end refused to unmap {len:#x} bytes at {at:#x}, and \
                                 holds them"
                            ),
                        );
                        return Outcome::Stuck;
                    }
                    other => return other,
                },
                Turn::Dropped => outcome = Outcome::Refused,
                Turn::Stopped | Turn::Closed => return Outcome::Stuck,
            }
            if let Err(error) = self.shmem.zero_pages.release(*piece) {
                let what = format_args!("zero pages are kept: {error}");
                self.shmem.limiters.shmem.warn(self.name, what);
            }
        }
        outcome
    }

    /// One request that changes nothing and is acknowledged.
    fn barrier(&mut self, backend: &Backend) -> Outcome {
        let quiet = self
            .shmem
            .features()
            .contains(VhostUserProtocolFeatures::SHARED_OBJECT);
        let result = if quiet {
            answer(backend.shared_object_remove(&VhostUserSharedMsg { uuid: self.nonce }))
        } else {
            match self.shmem.turn_to_unmap(self.epoch) {
                Turn::Ask => answer(backend.shmem_unmap(&self.guard())),
                // The kernel's word serves as the barrier.
                Turn::Dropped => Outcome::Done,
                Turn::Stopped | Turn::Closed => Outcome::Stuck,
            }
        };
        match result {
            // A refusal is an acknowledgement.
            Outcome::Refused => Outcome::Done,
            other => other,
        }
    }

    /// The request to unmap what is never mapped.
    fn guard(&self) -> VhostUserMMap {
        let offset = self.shmem.shm_size.saturating_sub(GUARD);
        mmap(offset, GUARD, 0, VhostUserMMapFlags::empty())
    }

    /// Everything that can be known to be wrong before the front end is asked,
    /// since QEMU neither checks it all nor says why it refuses.
    fn fits(&self, piece: &FdPiece) -> bool {
        let end = piece.shm_offset.checked_add(piece.len);
        piece.len > 0
            && piece.len.is_multiple_of(PAGE)
            && piece.shm_offset.is_multiple_of(PAGE)
            && piece.fd_offset.is_multiple_of(PAGE)
            && end.is_some_and(|end| end <= self.shmem.shm_size.saturating_sub(GUARD))
    }

    fn count_refusal(&self, piece: &FdPiece) {
        self.shmem.refused.fetch_add(1, Ordering::Relaxed);
        let (len, at) = (piece.len, piece.shm_offset);
        self.shmem.limiters.shmem.warn(
            self.name,
            format_args!("the front end refused to map {len:#x} bytes at {at:#x}"),
        );
    }
}

fn mmap(shm_offset: u64, len: u64, fd_offset: u64, flags: VhostUserMMapFlags) -> VhostUserMMap {
    VhostUserMMap {
        shmid: u8::try_from(SHMID).unwrap_or_default(),
        padding: [0; 7],
        fd_offset,
        shm_offset,
        len,
        flags: flags.bits(),
    }
}

/// The vhost crate's own error in an I/O error.
fn vhost_error(error: &io::Error) -> Option<&VhostError> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

fn answer(result: io::Result<u64>) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        Err(error) => match vhost_error(&error) {
            Some(VhostError::FrontendInternalError) => Outcome::Refused,
            _ => Outcome::Stuck,
        },
    }
}

#[cfg(test)]
mod tests;
