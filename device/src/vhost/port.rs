// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The port: asks one front end for mappings, in order, on a thread of its own.
//!
//! The front end may take its time, and may ask the main thread for answers
//! while it does. So the thread holds no lock while it waits. The wait itself
//! has no limit, since an answer that was given up could not be told from the
//! next one: it ends with the session, which closes the channel.
//!
//! Shared-memory requests are sent only while the queues run: QEMU 11.1.3 has
//! no device to look them up in before and after, and dies of it. (One that is
//! on its way when the front end stops its device cannot be called back.) A mapping
//! that is not finished then is given up. If the hub says so, unmap requests are sent
//! all the same: the device of a guest that keeps another's memory is not worth more
//! than that memory.
//!
//! A front end that resets its device may drop the windows by itself, and a
//! guest may pretend that it did. So the host's kernel is asked, which knows who
//! holds the files (see [`crate::transport::lent`]).
//!
//! It is asked as well when a front end says that it has unmapped something, or not
//! mapped it. What the guest sees is as the VMM says, as far as anybody can know; but
//! the owner gets its memory back only when nobody holds the file any more. QEMU closes
//! it up to 0.1 s later (its RCU thread does), so nothing else waits for that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bufshare_protocol::device::SHMID;
use log::Level;
use uuid::Uuid;
use vhost::vhost_user::message::{
    VhostUserMMap, VhostUserMMapFlags, VhostUserProtocolFeatures, VhostUserSharedMsg,
};
use vhost::vhost_user::{Backend, Error as VhostError, VhostUserFrontendReqHandler};

use super::limits::{MAX_KEPT_DMABUFS, MAX_KEPT_MARKS, MAX_OWNER_FILES};
use super::memory::Sent;
use crate::broker::limits::GUARD;
use crate::broker::{EffectId, Outcome, PeerId, Piece};
use crate::host::process::Process;
use crate::host::random;
use crate::hub::{Hub, Job};
use crate::sync::{Limiters, lock};
use crate::transport::lent::Lent;
use crate::transport::zeroes::Zeroes;
use crate::transport::{self, FdPiece, FileId, PAGE, udmabuf};

/// How often the kernel is asked who holds what was lent to a VMM whose device is
/// stopped.
const LOOK: Duration = Duration::from_millis(100);

/// How long a VMM whose device is stopped may take to drop its windows by itself,
/// as part of a reset, before an unmap request is forced upon it.
const DROP_WAIT: Duration = Duration::from_millis(500);

/// How long a VMM that says it has not mapped something may take to let go of it.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);

/// How long files may be held after the VMM said that it does not have them, before the
/// operator is told; and how soon he is told of others.
const KEPT_SAY: Duration = Duration::from_secs(10);

/// How soon the kernel is asked again about the newest of them; then ever more seldom.
const KEPT_LOOK: Duration = Duration::from_millis(1);

/// How long the kernel is asked about them at one time. Whoever has a RAM file can make
/// each answer slow, by locks without number, and requests for memory of others wait
/// meanwhile.
const LOOK_TIME: Duration = Duration::from_millis(2);

/// What part of the time may go by so.
const LOOK_SHARE: u32 = 10;

/// What came of one request to the front end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Yes,
    No,
    /// The channel is broken: nothing is known.
    Broken,
}

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
    /// Tell that the VMM has dropped all windows.
    Dropped,
    /// Look who still holds what the VMM said it has not.
    Look,
}

/// A file that shows another VM's memory.
#[derive(Clone)]
struct Loan {
    lent: Arc<Lent>,
    /// Whose memory it is.
    owner: PeerId,
    /// Whether it is a dma-buf, and not a part of that VM's RAM.
    udmabuf: bool,
}

impl Loan {
    /// Whether it is a part of the RAM of `owner`.
    fn is_ram_of(&self, owner: PeerId) -> bool {
        !self.udmabuf && self.owner == owner
    }
}

/// A file that somebody held when the VMM said that it has unmapped it, or not mapped it.
struct Kept {
    /// The effect that ended so.
    effect: EffectId,
    loan: Loan,
    len: u64,
    since: Instant,
    /// The operator was told.
    said: bool,
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
    lent: BTreeMap<u64, Loan>,
    /// What the VMM said it has not, and somebody holds.
    kept: Vec<Kept>,
    /// When to look at that next, and how long to wait then.
    look: Option<(Instant, Duration)>,
    /// When the operator was told of that last.
    kept_said: Option<Instant>,
    /// How often those two were changed.
    lent_changes: u64,
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
    /// What is lent now.
    fn loans(&self) -> Loans {
        let lent = |loan: &Loan| loan.lent.clone();
        Loans {
            windows: self.lent.values().map(lent).collect(),
            kept: self.kept.iter().map(|kept| lent(&kept.loan)).collect(),
            changes: self.lent_changes,
        }
    }

    /// Whether the hub is yet to hear that what the job in hand has unmapped is kept.
    fn is_keeping(&self) -> bool {
        let in_hand = |kept: &Kept| Some(kept.effect) == self.in_hand;
        self.kept.iter().any(in_hand)
    }

    /// Whether that is still all.
    fn has_only(&self, loans: &Loans) -> bool {
        self.lent_changes == loans.changes
    }

    fn lent_mut(&mut self) -> &mut BTreeMap<u64, Loan> {
        self.lent_changes = self.lent_changes.wrapping_add(1);
        &mut self.lent
    }

    /// Whether another file may be lent, of memory of `owner`.
    fn has_room(&self, owner: PeerId, udmabuf: bool, file: &File) -> bool {
        let kept = self.kept.iter().map(|kept| &kept.loan);
        if udmabuf {
            return kept.filter(|loan| loan.udmabuf).count() < MAX_KEPT_DMABUFS;
        }
        let kept = kept.filter(|loan| loan.is_ram_of(owner));
        if kept.clone().count() >= MAX_KEPT_MARKS {
            return false;
        }
        // Each window may keep one besides.
        let lent = self.lent.values().filter(|loan| loan.is_ram_of(owner));
        let lent: BTreeSet<_> = lent.map(|loan| loan.lent.descriptor()).collect();
        let mut kept: BTreeSet<_> = kept.map(|loan| loan.lent.descriptor()).collect();
        kept.retain(|file| !lent.contains(file));
        kept.len() < MAX_OWNER_FILES || kept.contains(&file.as_raw_fd())
    }

    /// How long until the kept files are to be looked at; none if there are none.
    fn until_look(&self) -> Option<Duration> {
        let (at, _) = self.look?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// How many bytes of `kept` are held for too long, if the operator is to be told of
    /// that: if he was not of all of them, but not again and again.
    fn say_late(&mut self, kept: &mut [Kept]) -> u64 {
        if self.kept_said.is_some_and(|at| at.elapsed() < KEPT_SAY) {
            return 0;
        }
        let late = || kept.iter().filter(|one| one.since.elapsed() >= KEPT_SAY);
        if late().all(|one| one.said) {
            return 0;
        }
        let bytes = late().fold(0_u64, |sum, one| sum.saturating_add(one.len));
        for one in kept {
            one.said |= one.since.elapsed() >= KEPT_SAY;
        }
        self.kept_said = Some(Instant::now());
        bytes
    }

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

/// What was lent at one time. The kernel is asked about it while nothing is locked:
/// whoever has one of the files can make its answers slow, by locks of its own, and
/// the broker's lock is held while jobs are queued here.
struct Loans {
    /// Windows that the VMM did not say it has unmapped.
    windows: Vec<Arc<Lent>>,
    /// What it said it has not, and somebody held.
    kept: Vec<Arc<Lent>>,
    changes: u64,
}

impl Loans {
    /// Whether the VMM had windows and is known to have none of them any more, whatever
    /// else it holds.
    fn dropped(&self) -> bool {
        let dropped = |lent: &Arc<Lent>| lent.held() == Some(false);
        !self.windows.is_empty() && self.windows.iter().all(dropped)
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Lent>> {
        self.windows.iter().chain(&self.kept)
    }
}

/// One session's port.
pub struct Port {
    state: Mutex<State>,
    wake: Condvar,
    shm_size: u64,
    /// Whose front end it is.
    vmm: Process,
    /// For windows whose buffer is gone.
    zeroes: Zeroes,
    /// Mapping requests that the front end refused.
    pub refused: AtomicU64,
    /// For what a guest can have said again and again.
    limiters: Arc<Limiters>,
}

impl Port {
    /// A port without a channel, to the front end of `vmm`.
    ///
    /// # Errors
    /// As `memfd_create`.
    pub(crate) fn new(shm_size: u64, vmm: Process, limiters: Arc<Limiters>) -> io::Result<Self> {
        Ok(Self {
            state: Mutex::new(State::default()),
            wake: Condvar::new(),
            shm_size,
            vmm,
            zeroes: Zeroes::new(shm_size)?,
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
            let loans = {
                let state = lock(&self.state);
                match state.turn(epoch) {
                    Some(turn) => return turn,
                    None => state.loans(),
                }
            };
            let dropped = loans.dropped();
            let state = lock(&self.state);
            if let Some(turn) = state.turn(epoch) {
                return turn;
            }
            if dropped && state.has_only(&loans) {
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

    /// Whether the VMM may have any window that it was asked for.
    #[must_use]
    pub fn may_show(&self) -> bool {
        let windows: Vec<Loan> = lock(&self.state).lent.values().cloned().collect();
        let held = |window: &Loan| window.lent.held() != Some(false);
        windows.iter().any(held)
    }

    /// Whether the VMM, or what it has passed files on to, holds any. Where the kernel
    /// does not tell, it does until it has ended.
    fn holds(&self) -> bool {
        let held = |lent: &Arc<Lent>| lent.held().unwrap_or_else(|| !self.vmm.has_ended());
        self.loans().all().any(held)
    }

    fn loans(&self) -> Loans {
        lock(&self.state).loans()
    }

    /// Whether the VMM had windows and has dropped them all by itself. If so,
    /// forgets them and all jobs, which are about them; the one that the thread has
    /// in hand ends before its next request. What is kept of windows before is not
    /// forgotten.
    pub fn forget_dropped(&self) -> bool {
        let loans = self.loans();
        if !loans.dropped() {
            return false;
        }
        let mut state = lock(&self.state);
        // Else it may have been asked for another one meanwhile. The hub does not hear of
        // what is kept by an effect that it has forgotten.
        let dropped = state.has_only(&loans) && !state.is_keeping();
        if dropped {
            // The files are closed with `loans`, when nothing is locked.
            state.lent_mut().clear();
            state.forget_jobs();
        }
        dropped
    }

    /// Forgets all jobs. Does not block. Those that were queued after
    /// [`Port::forget_dropped`], while the hub did not know of it yet, are about windows
    /// that are gone, too.
    pub fn forget_jobs(&self) {
        lock(&self.state).forget_jobs();
    }

    /// Waits while the VMM holds what it was lent, at most for `limit` or until
    /// `ended`. Returns whether it does not.
    pub fn wait_let_go(&self, limit: Duration, ended: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        let mut pause = Duration::from_millis(1);
        while self.holds() {
            if start.elapsed() >= limit || ended() {
                return false;
            }
            std::thread::sleep(pause);
            pause = pause.saturating_mul(2).min(LOOK);
        }
        true
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
        hub: &Hub,
        sent: Sent<'_>,
        maker: Option<&dyn udmabuf::Maker>,
        stuck: impl Fn(&str),
        dropped: impl Fn(),
    ) {
        let mut worker = Worker {
            port: self,
            name,
            sent,
            nonce: Uuid::from_bytes(random::bytes().unwrap_or([0xa5; 16])),
            epoch: 0,
            effect: EffectId(0),
            hub,
        };
        while let Some(next) = self.next() {
            let (job, backend, epoch) = match next {
                Next::Job(job, backend, epoch) => (job, backend, epoch),
                Next::Dropped => {
                    dropped();
                    continue;
                }
                Next::Look => {
                    worker.look_at_kept();
                    continue;
                }
            };
            worker.epoch = epoch;
            worker.effect = job.id();
            let (id, outcome) = match job {
                Job::Map {
                    id,
                    ram,
                    source,
                    writable,
                    shm_offset,
                } => {
                    // Kept open no longer than this takes.
                    let pieces = transport::pieces(&ram.upgrade(), &source, shm_offset, maker);
                    let udmabuf = source.transport == bufshare_protocol::types::Transport::Udmabuf;
                    let what = What::Buffer {
                        owner: source.owner,
                        writable,
                        udmabuf,
                    };
                    let outcome = match (pieces, backend) {
                        (Ok(pieces), Some(backend)) => worker.map(&backend, &pieces, what),
                        (Err(error), _) => {
                            let what = format_args!("a buffer cannot be mapped: {error}");
                            self.limiters.port.warn(name, what);
                            Outcome::HostError
                        }
                        (_, None) => Outcome::HostError,
                    };
                    (id, outcome)
                }
                Job::Unmap { id, pieces } => (
                    id,
                    backend.map_or(Outcome::Stuck, |backend| worker.unmap(&backend, &pieces)),
                ),
                Job::Fill { id, piece } => (
                    id,
                    backend.map_or(Outcome::HostError, |backend| worker.fill(&backend, piece)),
                ),
                Job::Prove { id } => (
                    id,
                    backend.map_or(Outcome::Stuck, |backend| worker.prove(&backend)),
                ),
            };
            if self.keeps(id) {
                hub.complete_held(id, outcome);
            } else {
                hub.complete(id, outcome);
            }
            if outcome == Outcome::Stuck {
                stuck("its back-end channel failed in the middle of a mapping request");
            }
            self.ended();
        }
    }

    /// The hub has heard what came of the job in hand.
    fn ended(&self) {
        lock(&self.state).in_hand = None;
    }

    fn next(&self) -> Option<Next> {
        let mut state = lock(&self.state);
        loop {
            if !state.running && !state.closed && !state.lent.is_empty() {
                let loans = state.loans();
                drop(state);
                let dropped = loans.dropped();
                state = lock(&self.state);
                if dropped && !state.running && !state.closed && state.has_only(&loans) {
                    return Some(Next::Dropped);
                }
            }
            if state.closed {
                return None;
            }
            if state.until_look().is_some_and(|wait| wait.is_zero()) {
                return Some(Next::Look);
            }
            if let Some(job) = state.jobs.pop_front() {
                state.in_hand = Some(job.id());
                return Some(Next::Job(job, state.backend.clone(), state.epoch));
            }
            let asks = !state.running && !state.lent.is_empty();
            let wait = asks
                .then_some(LOOK)
                .into_iter()
                .chain(state.until_look())
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

    /// Whether somebody holds files that the VMM said it has not, by this effect.
    fn keeps(&self, effect: EffectId) -> bool {
        lock(&self.state)
            .kept
            .iter()
            .any(|kept| kept.effect == effect)
    }

    /// Asks the kernel who still holds the files that the VMM said it has not: at least
    /// about one, and for at most `time`; about the next ones the next time. Returns the
    /// effects of which nothing is left, and what the operator is to be told of now: how
    /// many bytes are held for too long.
    fn look_at_kept(&self, time: Duration) -> (Vec<EffectId>, u64) {
        let all: Vec<Arc<Lent>> = {
            let state = lock(&self.state);
            let kept = state.kept.iter().map(|kept| kept.loan.lent.clone());
            kept.collect()
        };
        let started = Instant::now();
        let mut asked = 0_usize;
        let mut gone = BTreeSet::new();
        for lent in &all {
            asked = asked.saturating_add(1);
            if lent.held() != Some(true) {
                gone.insert(Arc::as_ptr(lent));
            }
            if started.elapsed() >= time {
                break;
            }
        }
        let took = started.elapsed();
        let mut state = lock(&self.state);
        let mut kept = std::mem::take(&mut state.kept);
        // Those that were asked about are the last the next time.
        let next = asked.min(kept.len());
        kept.rotate_left(next);
        let is_gone = |kept: &Kept| gone.contains(&Arc::as_ptr(&kept.loan.lent));
        let (gone, mut kept): (Vec<Kept>, Vec<Kept>) = kept.into_iter().partition(is_gone);
        let late = state.say_late(&mut kept);
        let mut done: BTreeSet<EffectId> = gone.iter().map(|gone| gone.effect).collect();
        for left in &kept {
            done.remove(&left.effect);
        }
        if !gone.is_empty() {
            state.lent_changes = state.lent_changes.wrapping_add(1);
        }
        state.look = state.look.filter(|_| !kept.is_empty()).map(|(_, pause)| {
            let pause = pause.saturating_mul(2).min(LOOK);
            let rest = took.saturating_mul(LOOK_SHARE).min(KEPT_SAY);
            (after(pause.max(rest)), pause)
        });
        state.kept = kept;
        drop(state);
        if let Some(longest) = gone.iter().map(|gone| gone.since.elapsed()).max() {
            log::debug!("{} files were held for up to {longest:?}", gone.len());
        }
        // They may be the last of a VM's RAM, which takes its time.
        drop((gone, all));
        (done.into_iter().collect(), late)
    }

    /// Lends a file for a window: what is to be sent, and kept until that is done.
    /// None if the epoch has passed.
    ///
    /// From here on the mark counts as held, so that the VMM cannot seem to have
    /// dropped a window that it is about to be asked for.
    fn lend(
        &self,
        piece: &FdPiece,
        owner: PeerId,
        udmabuf: bool,
        epoch: u64,
    ) -> io::Result<Option<Arc<File>>> {
        if !lock(&self.state).has_room(owner, udmabuf, &piece.file) {
            return Err(io::Error::other(
                "its VMM said that it has unmapped, or not mapped, many others, but it or another \
                 back end of its VM still holds them",
            ));
        }
        let (file, lent) = if udmabuf {
            Lent::dmabuf(&piece.file)?
        } else {
            Lent::ram(&piece.file)
        };
        if !lent.is_marked() && !self.vmm.is_known() {
            return Err(io::Error::other(
                "the host tells neither who has it mapped (it belongs to another user, or its VMM \
                 keeps it from being opened) nor when the importer's VMM ends (something else \
                 connected its socket)",
            ));
        }
        let mut state = lock(&self.state);
        if state.epoch != epoch {
            return Ok(None);
        }
        let loan = Loan {
            lent: Arc::new(lent),
            owner,
            udmabuf,
        };
        let old = state.lent_mut().insert(piece.shm_offset, loan);
        drop(state);
        drop(old);
        Ok(Some(file))
    }

    /// Lends a file of a page, as for a window at the start of the region.
    #[cfg(test)]
    pub(super) fn lend_a_page(&self) -> Arc<File> {
        let file = transport::tests::memfd(PAGE, true);
        let piece = FdPiece {
            id: transport::FileId::of(&file).unwrap(),
            file,
            fd_offset: 0,
            len: PAGE,
            shm_offset: 0,
        };
        self.lend(&piece, PeerId(2), false, 0).unwrap().unwrap()
    }

    /// There is no window here any more.
    fn returned(&self, shm_offset: u64) {
        let lent = lock(&self.state).lent_mut().remove(&shm_offset);
        // It may be the last of a VM's RAM, which takes its time.
        drop(lent);
    }

    /// The VMM says that it has no window of `len` bytes here any more, by `effect`. What
    /// nobody can know counts as it says.
    fn said_returned(&self, effect: EffectId, shm_offset: u64, len: u64) {
        let loan = lock(&self.state).lent.get(&shm_offset).cloned();
        let held = loan.filter(|loan| loan.lent.held() == Some(true));
        let Some(loan) = held else {
            return self.returned(shm_offset);
        };
        let mut state = lock(&self.state);
        state.lent_mut().remove(&shm_offset);
        state.kept.push(Kept {
            effect,
            loan,
            len,
            since: Instant::now(),
            said: false,
        });
        state.look = Some((after(KEPT_LOOK), KEPT_LOOK));
    }

    /// Which files the VMM has.
    fn files(&self) -> Option<BTreeSet<FileId>> {
        let loans = self.loans();
        let ids = loans.all().map(|lent| lent.id().ok());
        ids.chain([Some(self.zeroes.id())]).collect()
    }

    /// The VMM says that it has no window here: whether that is to be believed. If
    /// nobody knows, then of one whose queues run, and which so looked it up.
    fn let_go(&self, shm_offset: u64) -> bool {
        let start = Instant::now();
        loop {
            let loan = lock(&self.state).lent.get(&shm_offset).cloned();
            let Some(loan) = loan else {
                return true;
            };
            let held = loan.lent.held();
            let state = lock(&self.state);
            match held {
                Some(true) => {}
                Some(false) => return true,
                None => return state.running,
            }
            if state.closed || start.elapsed() >= REFUSAL_WAIT {
                return false;
            }
            drop(
                self.wake
                    .wait_timeout(state, LOOK)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
    }
}

/// What is mapped.
#[derive(Clone, Copy)]
enum What {
    /// Another VM's memory.
    Buffer {
        /// Whose it is.
        owner: PeerId,
        /// Whether the guest may write.
        writable: bool,
        /// Whether its file is a dma-buf.
        udmabuf: bool,
    },
    /// Memory of nobody.
    Zeroes,
}

struct Worker<'a> {
    port: &'a Port,
    name: &'a str,
    sent: Sent<'a>,
    /// A shared object that never was.
    nonce: Uuid,
    /// Of the job in hand.
    epoch: u64,
    /// What it does.
    effect: EffectId,
    hub: &'a Hub,
}

impl Worker<'_> {
    /// Tells the hub what nobody holds any more, and the operator what somebody does.
    fn look_at_kept(&self) {
        let (done, late) = self.port.look_at_kept(LOOK_TIME);
        for effect in done {
            self.hub.let_go(self.sent.peer, effect);
        }
        if late > 0 {
            // Nothing else that the VMM does may have this line left out; it has a limit of
            // its own.
            log::warn!(
                "{}: its VMM said that it has unmapped, or not mapped, {late:#x} bytes of other \
                 VMs, but it or another back end of its VM still holds them: their owners do not \
                 get them back until that lets go or ends",
                self.name
            );
        }
    }

    /// Maps all pieces or none.
    fn map(&mut self, backend: &Backend, pieces: &[FdPiece], what: What) -> Outcome {
        if !self.port.can_map() {
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
            match self.port.turn_to_map(self.epoch) {
                Turn::Ask => {}
                // Those that were mapped are gone, too.
                Turn::Dropped => return Outcome::Refused,
                Turn::Stopped if done.is_empty() => return Outcome::HostError,
                Turn::Stopped => return self.undo(backend, &done),
                Turn::Closed => return Outcome::Stuck,
            }
            let file = match what {
                What::Zeroes => {
                    self.sent.record(piece.id, || self.port.files());
                    piece.file.clone()
                }
                What::Buffer { owner, udmabuf, .. } => {
                    // No VM's RAM is a dma-buf.
                    if !udmabuf {
                        self.sent.record(piece.id, || self.port.files());
                    }
                    match self.port.lend(piece, owner, udmabuf, self.epoch) {
                        Ok(Some(file)) => file,
                        Ok(None) => return Outcome::Refused,
                        Err(error) => {
                            let what = format_args!("a buffer cannot be lent: {error}");
                            self.port.limiters.port.warn(self.name, what);
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
            drop(file);
            match reply {
                Answer::Yes => done.push(Piece {
                    shm_offset: piece.shm_offset,
                    len: piece.len,
                }),
                Answer::No => {
                    self.port
                        .said_returned(self.effect, piece.shm_offset, piece.len);
                    self.count_refusal(piece);
                    return self.undo(backend, &done);
                }
                Answer::Broken => return Outcome::Stuck,
            }
        }
        Outcome::Done
    }

    /// Maps zeroes.
    fn fill(&mut self, backend: &Backend, piece: Piece) -> Outcome {
        let piece = self.port.zeroes.piece(piece);
        self.map(backend, &[piece], What::Zeroes)
    }

    /// Takes back the first pieces of a mapping whose next one was refused or not asked
    /// for.
    fn undo(&mut self, backend: &Backend, done: &[Piece]) -> Outcome {
        if done.is_empty() {
            return Outcome::Refused;
        }
        // A refused unmap is of a mapping that the front end dropped itself.
        match (self.unmap(backend, done), self.prove(backend)) {
            (Outcome::Done | Outcome::Refused, Outcome::Done) => Outcome::Refused,
            _ => Outcome::Stuck,
        }
    }

    /// Unmaps all pieces, also if one is refused.
    fn unmap(&mut self, backend: &Backend, pieces: &[Piece]) -> Outcome {
        let mut outcome = Outcome::Done;
        for piece in pieces {
            let request = mmap(piece.shm_offset, piece.len, 0, VhostUserMMapFlags::empty());
            match self.port.turn_to_unmap(self.epoch) {
                Turn::Ask => match answer(backend.shmem_unmap(&request)) {
                    Answer::Yes => {
                        self.port
                            .said_returned(self.effect, piece.shm_offset, piece.len);
                    }
                    // QEMU unmaps by itself when the device is reset, and knows
                    // nothing of the mapping afterwards.
                    Answer::No if self.port.let_go(piece.shm_offset) => {
                        log::debug!(
                            "{}: {:#x} bytes at {:#x} were unmapped before",
                            self.name,
                            piece.len,
                            piece.shm_offset
                        );
                        self.port.returned(piece.shm_offset);
                        outcome = Outcome::Refused;
                    }
                    Answer::No => {
                        let (len, at) = (piece.len, piece.shm_offset);
                        self.port.limiters.port.log(
                            Level::Error,
                            self.name,
                            format_args!(
                                "the front end refused to unmap {len:#x} bytes at {at:#x}, and \
                                 holds them"
                            ),
                        );
                        return Outcome::Stuck;
                    }
                    Answer::Broken => return Outcome::Stuck,
                },
                Turn::Dropped => outcome = Outcome::Refused,
                Turn::Stopped | Turn::Closed => return Outcome::Stuck,
            }
            if let Err(error) = self.port.zeroes.release(*piece) {
                let what = format_args!("zeroes are kept: {error}");
                self.port.limiters.port.warn(self.name, what);
            }
        }
        outcome
    }

    /// One request that changes nothing and is acknowledged.
    fn prove(&mut self, backend: &Backend) -> Outcome {
        let quiet = self
            .port
            .features()
            .contains(VhostUserProtocolFeatures::SHARED_OBJECT);
        let result = if quiet {
            answer(backend.shared_object_remove(&VhostUserSharedMsg { uuid: self.nonce }))
        } else {
            match self.port.turn_to_unmap(self.epoch) {
                Turn::Ask => answer(backend.shmem_unmap(&self.guard())),
                // The kernel's word is proof enough.
                Turn::Dropped => Answer::Yes,
                Turn::Stopped | Turn::Closed => Answer::Broken,
            }
        };
        match result {
            // A refusal is an acknowledgement.
            Answer::Yes | Answer::No => Outcome::Done,
            Answer::Broken => Outcome::Stuck,
        }
    }

    /// The request to unmap what is never mapped.
    fn guard(&self) -> VhostUserMMap {
        let offset = self.port.shm_size.saturating_sub(GUARD);
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
            && end.is_some_and(|end| end <= self.port.shm_size.saturating_sub(GUARD))
    }

    fn count_refusal(&self, piece: &FdPiece) {
        self.port.refused.fetch_add(1, Ordering::Relaxed);
        let (len, at) = (piece.len, piece.shm_offset);
        self.port.limiters.port.warn(
            self.name,
            format_args!("the front end refused to map {len:#x} bytes at {at:#x}"),
        );
    }
}

/// The time after a `pause`.
fn after(pause: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(pause).unwrap_or(now)
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

fn answer(result: io::Result<u64>) -> Answer {
    match result {
        Ok(_) => Answer::Yes,
        Err(error) => match vhost_error(&error) {
            Some(VhostError::FrontendInternalError) => Answer::No,
            _ => Answer::Broken,
        },
    }
}

#[cfg(test)]
mod tests;
