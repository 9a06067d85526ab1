// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The life of one socket: a front end connects, is served, and goes, with all
//! that it had; then the next one. A second one waits in the backlog.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::Level;
use vhost::vhost_user::Error as VhostError;
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::lifeline::write_for;
use super::ram_files::{Files, Sent};
use super::relay::{Left, Relay};
use super::session::{EVENT_AGAIN, Front, Session};
use crate::backing::udmabuf;
use crate::broker::{Limits, PeerId};
use crate::dispatcher::{Connector, Dispatcher};
use crate::locks::lock;
use crate::log_rate::Limiters;
use crate::os::process::Process;
use crate::os::stop::Stop;

/// Where the front ends of one peer come from.
#[derive(Debug)]
pub enum Source {
    /// One after the other.
    Listener(UnixListener),
    /// This one, and then none.
    Connected(UnixStream),
}

impl Source {
    /// The same one once more.
    ///
    /// # Errors
    /// As `dup`.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Listener(listener) => Self::Listener(listener.try_clone()?),
            Self::Connected(stream) => Self::Connected(stream.try_clone()?),
        })
    }
}

/// Pause after a connection could not be accepted or served, so that a lack of
/// descriptors is not a busy loop; and after one that was refused in less time.
const RETRY: Duration = Duration::from_millis(100);

/// How long a front end that cannot be served any more is refused everything, so
/// that it unmaps what it has. That takes milliseconds, or kills it.
const REFUSE: Duration = Duration::from_secs(10);

/// How often a VMM that holds memory of others after its session is complained of.
const HELD_SAY: Duration = Duration::from_secs(30);

/// Why a front end was not served.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// As `accept`.
    #[error("cannot accept a connection: {0}")]
    Accept(io::Error),
    /// The relay needs a temporary folder and a few descriptors.
    #[error("cannot make a private socket in the temporary folder (TMPDIR): {0}")]
    Relay(io::Error),
    /// A thread or a descriptor could not be had.
    #[error("{0}")]
    System(io::Error),
    /// The vhost-user crate's.
    #[error("{0}")]
    Daemon(DaemonError),
}

/// What all peers' sockets have in common.
pub struct Common {
    /// The one broker.
    pub dispatcher: Arc<Dispatcher>,
    /// Whose RAM is in which files.
    pub files: Arc<Files>,
    /// When not to take another front end.
    pub closing: Stop,
    /// When to end.
    pub stop: Arc<Stop>,
    /// The host's udmabuf, if there is one.
    pub udmabuf: Option<Arc<dyn udmabuf::Maker>>,
    /// Bytes of each shared-memory region.
    pub shm_size: u64,
    /// What each peer may use.
    pub limits: Limits,
    /// Bytes that each memory table may have.
    pub max_table: u64,
}

/// One peer's socket.
pub struct Server {
    common: Arc<Common>,
    peer: PeerId,
    name: Arc<str>,
    /// Memory that its VMM can make shorter is touched all the same.
    unsealed: bool,
    current: Mutex<Weak<Session>>,
    limiters: Arc<Limiters>,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The front end went, or was sent away.
    InOrder,
    /// It broke the protocol, or was refused.
    Broken,
}

/// A front end that was served.
struct Served {
    session: Arc<Session>,
    shmem: Option<JoinHandle<()>>,
}

impl Served {
    /// Hangs up, and waits for the thread that asks for mappings: its channel is closed,
    /// so it is over at once.
    fn end(&mut self) {
        self.session.lifeline.end();
        self.session.shmem.close();
        if let Some(shmem) = self.shmem.take() {
            let _ = shmem.join();
        }
    }
}

/// Closes at its end what the vhost-user crate leaves open.
struct Reclaim(Arc<Session>);

impl Drop for Reclaim {
    fn drop(&mut self) {
        self.0.reclaim();
    }
}

/// The front end that waits for it.
fn accept(listener: &UnixListener) -> Result<UnixStream, Error> {
    let (front, _) = listener.accept().map_err(Error::Accept)?;
    Ok(front)
}

impl Server {
    /// A server for one peer, whose RAM may be `unsealed`.
    #[must_use]
    pub fn new(common: Arc<Common>, peer: PeerId, name: &str, unsealed: bool) -> Self {
        Self {
            common,
            peer,
            name: Arc::from(name),
            unsealed,
            current: Mutex::new(Weak::new()),
            limiters: Arc::new(Limiters::default()),
        }
    }

    /// Serves one front end after the other until no more are taken, or the only one.
    pub fn run(&self, source: Source) {
        match source {
            Source::Listener(listener) => {
                while self.common.closing.wait_readable(listener.as_raw_fd()) {
                    if !self.serve(|served| self.session(accept(&listener)?, served)) {
                        self.common.closing.sleep(RETRY);
                    }
                }
            }
            Source::Connected(front) => {
                self.serve(|served| self.session(front, served));
            }
        }
    }

    /// Serves one front end, and waits until nothing is left of it that could have
    /// memory of other VMs mapped; whether the next one can come at once.
    fn serve(&self, session: impl FnOnce(&mut Option<Served>) -> Result<Ended, Error>) -> bool {
        let mut served = None;
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| session(&mut served)));
        match &result {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => self.say(
                Level::Error,
                format_args!("cannot serve a front end: {error}"),
            ),
            Err(_) => log::error!("{}: a bug ended the session", self.name),
        }
        if let Some(mut served) = served {
            if result.is_err() {
                self.common.dispatcher.leave(self.peer);
            }
            served.end();
            self.wait_released(&served.session);
        }
        self.common.dispatcher.disconnect(self.peer);
        self.common.files.disconnect(self.peer);
        match result {
            Ok(Ok(Ended::InOrder)) => true,
            Ok(Ok(Ended::Broken)) => start.elapsed() >= RETRY,
            _ => false,
        }
    }

    /// Says something that front ends can repeat by coming again.
    fn say(&self, level: Level, what: fmt::Arguments<'_>) {
        self.limiters.connections.log(level, &self.name, what);
    }

    /// Returns when the VMM of a session that has ended holds nothing of other VMs, or
    /// the program ends. Usually it is dead. If it lives, its guest may go on to look.
    fn wait_released(&self, session: &Session) {
        let stopped = || self.common.stop.requested();
        while !session.shmem.wait_released(HELD_SAY, stopped) && !stopped() {
            let process = session.shmem.vmm_pid();
            log::error!(
                "{}: its session has ended, but its VMM{} or another back end of it still holds \
                 memory of other VMs, whose resets wait for that: end it",
                self.name,
                Connector(process),
            );
        }
    }

    /// Ends the current session, if there is one. To be called after the stop
    /// was requested.
    pub fn end(&self) {
        // Not in the head of the `if`: the lock would be held to its end.
        let session = lock(&self.current).upgrade();
        if let Some(session) = session {
            session.lifeline.end();
        }
    }

    /// Serves one front end to its end. It has been served from the moment that there
    /// is something in `served`.
    fn session(&self, front: UnixStream, served: &mut Option<Served>) -> Result<Ended, Error> {
        let vmm = Process::of(&front).map_err(Error::System)?;
        let vmm_pid = vmm.pid();
        let (relay, mut listener) = Relay::new(front).map_err(Error::Relay)?;
        let mem = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let front = Front {
            peer: self.peer,
            name: self.name.clone(),
            vmm,
            files: self.common.files.clone(),
            unsealed: self.unsealed,
            max_table: self.common.max_table,
            shm_size: self.common.shm_size,
            limits: self.common.limits,
            limiters: self.limiters.clone(),
        };
        let session = Session::new(self.common.dispatcher.clone(), front, mem.clone());
        let session = session.map_err(Error::System)?;
        // Dropped after the crate's threads, whatever fails before.
        let _reclaim = Reclaim(session.clone());
        let thread: String = format!("main {}", self.name).chars().take(15).collect();
        let mut daemon =
            VhostUserDaemon::new(thread, session.clone(), mem).map_err(Error::Daemon)?;
        for handler in daemon.get_epoll_handlers() {
            handler
                .register_listener(session.again_fd(), EventSet::IN, u64::from(EVENT_AGAIN))
                .map_err(Error::System)?;
        }
        session
            .lifeline
            .connected(relay.hangup().map_err(Error::System)?);
        *lock(&self.current) = Arc::downgrade(&session);
        if self.common.stop.requested() {
            session.lifeline.end();
        }
        self.common.files.connect(self.peer, vmm_pid);
        self.common.dispatcher.connect(self.peer, session.clone());
        let served = served.insert(Served {
            session: session.clone(),
            shmem: Some(self.start_shmem_requests(&session)?),
        });

        let started = daemon.start(&mut listener);
        drop(listener);
        let left = started.is_ok().then(|| {
            self.say(Level::Info, format_args!("front end connected"));
            relay.run(&*session)
        });

        let asked = session.lifeline.closing();
        let refused = matches!(left, Some(Left::Crate(_))) && !self.common.stop.requested();
        session.end_rings();
        let relayed = match left {
            Some(Left::Crate(unanswered)) => {
                self.part_from(&session, &relay, unanswered);
                Ok(())
            }
            Some(Left::Front(result)) => result,
            None => Ok(()),
        };
        session.lifeline.end();
        self.common.dispatcher.leave(self.peer);
        let crate_left = started.and_then(|()| daemon.wait());
        served.end();
        drop(daemon);
        let ended = self.log_end(relayed, crate_left, asked)?;
        Ok(if refused { Ended::Broken } else { ended })
    }

    /// The front end is not served any more, but may go on: others unmap its memory,
    /// and it what it was given, before it is left to itself. Nothing of that is for one that
    /// hangs up.
    fn part_from(&self, session: &Session, relay: &Relay, unanswered: Option<Vec<u8>>) {
        let stopped = || self.common.stop.requested() || relay.front_hung_up();
        if stopped() {
            return;
        }
        self.common.dispatcher.leave(self.peer);
        // It waits for an answer, perhaps to its stop.
        self.common.dispatcher.stop(self.peer, stopped);
        let over = || !session.shmem.may_show() || stopped();
        if over() {
            return;
        }
        self.say(
            Level::Error,
            format_args!("it cannot be served any more: its VMM is asked to unmap everything"),
        );
        session.shmem.force();
        let start = Instant::now();
        relay.refuse_all(unanswered, || over() || start.elapsed() >= REFUSE);
    }

    fn start_shmem_requests(&self, session: &Arc<Session>) -> Result<JoinHandle<()>, Error> {
        let session = session.clone();
        let dispatcher = self.common.dispatcher.clone();
        let udmabuf = self.common.udmabuf.clone();
        let limiters = self.limiters.clone();
        std::thread::Builder::new()
            .name("shmem".into())
            .spawn(move || {
                let lifeline = &session.lifeline;
                let name = &session.name;
                write_for(lifeline);
                let run = || {
                    session.shmem.run(
                        name,
                        &dispatcher,
                        Sent {
                            files: &session.files,
                            peer: session.peer,
                        },
                        udmabuf.as_deref(),
                        |why| {
                            if !lifeline.closing() {
                                let what = format_args!("{why}: the session ends");
                                limiters.connections.log(Level::Error, name, what);
                            }
                            lifeline.end();
                        },
                        || session.windows_dropped(),
                    );
                };
                if catch_unwind(AssertUnwindSafe(run)).is_err() {
                    log::error!("{name}: a bug ended its mapping requests: the session ends");
                    lifeline.end();
                }
            })
            .map_err(Error::System)
    }

    /// A front end that leaves in whatever way is no error of ours.
    fn log_end(
        &self,
        relayed: io::Result<()>,
        served: Result<(), DaemonError>,
        asked: bool,
    ) -> Result<Ended, Error> {
        let broke = match served {
            Ok(())
            | Err(DaemonError::HandleRequest(
                VhostError::Disconnected | VhostError::PartialMessage | VhostError::SocketBroken(_),
            )) => relayed.err().map(|error| error.to_string()),
            Err(DaemonError::HandleRequest(error)) => Some(error.to_string()),
            Err(error) => return Err(Error::Daemon(error)),
        };
        match broke {
            Some(_) if asked => {}
            Some(why) => {
                let what = format_args!("the front end broke the protocol: {why}");
                self.say(Level::Error, what);
                return Ok(Ended::Broken);
            }
            None => self.say(Level::Info, format_args!("front end disconnected")),
        }
        Ok(Ended::InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhost::queue::tests::memory;
    use crate::vhost::session::tests::session;

    fn server(dispatcher: &Arc<Dispatcher>, session: &Session) -> Server {
        let common = Arc::new(Common {
            dispatcher: dispatcher.clone(),
            files: session.files.clone(),
            closing: Stop::new().unwrap(),
            stop: Arc::new(Stop::new().unwrap()),
            udmabuf: None,
            shm_size: 1 << 20,
            limits: Limits::default(),
            max_table: 1 << 30,
        });
        Server::new(common, session.peer, "a", false)
    }

    #[test]
    fn session_that_cannot_be_set_up_leaves_no_descriptor_behind() {
        let (dispatcher, session) = session(&memory());
        let server = server(&dispatcher, &session);
        // The descriptors of this thread are its own from here on.
        // SAFETY: takes no pointer.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
        let threads = [libc::SYS_clone, libc::SYS_clone3];
        crate::deny::deny(&threads, None, libc::EAGAIN).unwrap();
        let open = || std::fs::read_dir("/proc/thread-self/fd").unwrap().count();
        let before = open();
        let (front, vmm) = UnixStream::pair().unwrap();

        let mut served = None;
        let error = server.session(front, &mut served).unwrap_err();

        assert!(served.is_none());
        drop(vmm);
        assert_eq!(open(), before, "after: {error}");
    }

    #[test]
    fn session_that_a_bug_ended_lasts_until_its_vmm_holds_nothing() {
        let (dispatcher, session) = session(&memory());
        let hold = session.shmem.give_a_page();
        let server = server(&dispatcher, &session);
        let connected = || dispatcher.report().peers[0].session.is_some();

        std::thread::scope(|scope| {
            let shmem = None;
            let bug = |served: &mut Option<Served>| -> Result<Ended, Error> {
                let session = session.clone();
                *served = Some(Served { session, shmem });
                panic!("as a bug would")
            };
            let serving = scope.spawn(|| server.serve(bug));
            while !session.lifeline.closing() {
                std::thread::yield_now();
            }
            for _ in 0..100 {
                assert!(connected(), "its VMM still has another VM's memory");
                std::thread::sleep(Duration::from_millis(1));
            }

            drop(hold);

            assert!(!serving.join().unwrap());
        });
        assert!(!connected());
    }
}
