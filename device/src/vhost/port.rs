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
//! on its way when the front end stops its device cannot be called back.)

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use bufshare_protocol::device::SHMID;
use uuid::Uuid;
use vhost::vhost_user::message::{
    VhostUserMMap, VhostUserMMapFlags, VhostUserProtocolFeatures, VhostUserSharedMsg,
};
use vhost::vhost_user::{Backend, Error as VhostError, VhostUserFrontendReqHandler};

use super::memory::Sent;
use crate::broker::limits::GUARD;
use crate::broker::{Outcome, Piece};
use crate::host::random;
use crate::hub::{Hub, Job};
use crate::sync::lock;
use crate::transport::zeroes::Zeroes;
use crate::transport::{self, FdPiece, PAGE, udmabuf};

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

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    busy: bool,
    /// The queues run.
    running: bool,
    closed: bool,
    backend: Option<Backend>,
    /// The socket of the channel.
    channel: Option<UnixStream>,
    /// Protocol features that were negotiated, once they are.
    features: Option<VhostUserProtocolFeatures>,
}

/// One session's port.
pub struct Port {
    state: Mutex<State>,
    wake: Condvar,
    shm_size: u64,
    /// For windows whose buffer is gone.
    zeroes: Zeroes,
    /// Mapping requests that the front end refused.
    pub refused: AtomicU64,
}

impl Port {
    /// A port without a channel.
    ///
    /// # Errors
    /// As `memfd_create`.
    pub fn new(shm_size: u64) -> io::Result<Self> {
        Ok(Self {
            state: Mutex::new(State::default()),
            wake: Condvar::new(),
            shm_size,
            zeroes: Zeroes::new(shm_size)?,
            refused: AtomicU64::new(0),
        })
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
        state.jobs.len().saturating_add(usize::from(state.busy))
    }

    /// Queues a job. Does not block.
    pub fn push(&self, job: Job) {
        lock(&self.state).jobs.push_back(job);
        self.wake.notify_all();
    }

    /// Whether the queues run.
    pub fn set_running(&self, running: bool) {
        lock(&self.state).running = running;
        self.wake.notify_all();
    }

    /// Waits until the queues run; `false` if they never will.
    fn wait_running(&self) -> bool {
        let mut state = lock(&self.state);
        while !state.running && !state.closed {
            state = self
                .wake
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        !state.closed
    }

    fn running(&self) -> bool {
        lock(&self.state).running
    }

    /// Forgets what waits, because it is about windows that are gone.
    pub fn drop_jobs(&self) {
        lock(&self.state).jobs.clear();
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

    /// The thread. `stuck` is called when the channel is broken.
    pub fn run(
        &self,
        name: &str,
        hub: &Hub,
        sent: &Sent,
        maker: Option<&dyn udmabuf::Maker>,
        stuck: impl Fn(&str),
    ) {
        let mut worker = Worker {
            port: self,
            name,
            sent,
            nonce: Uuid::from_bytes(random::bytes().unwrap_or([0xa5; 16])),
        };
        while let Some((job, backend)) = self.next() {
            let (id, outcome) = match job {
                Job::Map {
                    id,
                    ram,
                    source,
                    writable,
                    shm_offset,
                } => {
                    let pieces = transport::pieces(&ram, &source, shm_offset, maker);
                    let udmabuf = source.transport == bufshare_protocol::types::Transport::Udmabuf;
                    let outcome = match (pieces, backend) {
                        (Ok(pieces), Some(backend)) => {
                            worker.map(&backend, &pieces, writable, udmabuf)
                        }
                        (Err(error), _) => {
                            log::warn!("{name}: a buffer cannot be mapped: {error}");
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
            hub.complete(id, outcome);
            if outcome == Outcome::Stuck {
                stuck("its back-end channel failed in the middle of a mapping request");
            }
            lock(&self.state).busy = false;
        }
    }

    fn next(&self) -> Option<(Job, Option<Backend>)> {
        let mut state = lock(&self.state);
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                state.busy = true;
                return Some((job, state.backend.clone()));
            }
            state = self
                .wake
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

struct Worker<'a> {
    port: &'a Port,
    name: &'a str,
    sent: &'a Sent,
    /// A shared object that never was.
    nonce: Uuid,
}

impl Worker<'_> {
    /// Maps all pieces or none.
    fn map(
        &mut self,
        backend: &Backend,
        pieces: &[FdPiece],
        writable: bool,
        udmabuf: bool,
    ) -> Outcome {
        // What waited while the queues were stopped is not wanted any more.
        if !self.port.running() || !self.port.can_map() {
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
        let flags = if writable {
            VhostUserMMapFlags::WRITABLE
        } else {
            VhostUserMMapFlags::empty()
        };
        let mut done = Vec::with_capacity(pieces.len());
        for piece in pieces {
            self.sent.record(piece.id, udmabuf);
            let request = mmap(piece.shm_offset, piece.len, piece.fd_offset, flags);
            if done.is_empty() && !self.port.running() {
                return Outcome::HostError;
            }
            if !self.port.wait_running() {
                return Outcome::Stuck;
            }
            match answer(backend.shmem_map(&request, &*piece.file)) {
                Answer::Yes => done.push(Piece {
                    shm_offset: piece.shm_offset,
                    len: piece.len,
                }),
                Answer::No => {
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
        self.map(backend, &[piece], true, false)
    }

    /// Takes back the first pieces of a mapping whose next one was refused.
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
            if !self.port.wait_running() {
                return Outcome::Stuck;
            }
            match answer(backend.shmem_unmap(&request)) {
                Answer::Yes => {}
                Answer::No => {
                    // QEMU unmaps by itself when the device is reset, and
                    // knows nothing of the mapping afterwards.
                    log::debug!(
                        "{}: {:#x} bytes at {:#x} were unmapped before",
                        self.name,
                        piece.len,
                        piece.shm_offset
                    );
                    outcome = Outcome::Refused;
                }
                Answer::Broken => return Outcome::Stuck,
            }
            if let Err(error) = self.port.zeroes.release(*piece) {
                log::warn!("{}: zeroes are kept: {error}", self.name);
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
        } else if !self.port.wait_running() {
            Answer::Broken
        } else {
            answer(backend.shmem_unmap(&self.guard()))
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
        log::warn!(
            "{}: the front end refused to map {:#x} bytes at {:#x}",
            self.name,
            piece.len,
            piece.shm_offset
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

fn answer(result: io::Result<u64>) -> Answer {
    match result {
        Ok(_) => Answer::Yes,
        Err(error) => match vhost_error(&error) {
            Some(VhostError::FrontendInternalError) => Answer::No,
            _ => Answer::Broken,
        },
    }
}
