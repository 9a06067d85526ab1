// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The life of one socket: a front end connects, is served, and goes, with all
//! that it had; then the next one. A second one waits in the backlog.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::backend::{EVENT_AGAIN, Session};
use crate::broker::PeerId;
use crate::host::stop::Stop;
use crate::hub::Hub;
use crate::sync::lock;
use crate::transport::udmabuf;

/// How long the end of a session waits for its port thread. It is over at once
/// unless the front end keeps its back-end channel open after it left.
const PORT_WAIT: Duration = Duration::from_secs(3);

/// Pause after a connection could not be accepted or served, so that a lack of
/// descriptors is not a busy loop.
const RETRY: Duration = Duration::from_millis(100);

/// One peer's socket.
pub struct Server {
    /// The peer.
    pub peer: PeerId,
    /// Its name.
    pub name: Arc<str>,
    /// The one broker.
    pub hub: Arc<Hub>,
    /// When to end.
    pub stop: Arc<Stop>,
    /// The host's udmabuf, if there is one.
    pub udmabuf: Option<Arc<dyn udmabuf::Maker>>,
    /// Bytes of the shared-memory region.
    pub shm_size: u64,
    current: Mutex<Weak<Session>>,
}

impl Server {
    /// A server for one peer.
    #[must_use]
    pub fn new(
        peer: PeerId,
        name: &str,
        hub: Arc<Hub>,
        stop: Arc<Stop>,
        udmabuf: Option<Arc<dyn udmabuf::Maker>>,
        shm_size: u64,
    ) -> Self {
        Self {
            peer,
            name: Arc::from(name),
            hub,
            stop,
            udmabuf,
            shm_size,
            current: Mutex::new(Weak::new()),
        }
    }

    /// Serves one front end after the other until the stop.
    pub fn run(&self, listener: UnixListener) {
        let mut listener = Listener::from(listener);
        while self.stop.wait_readable(listener.as_raw_fd()) {
            let session = catch_unwind(AssertUnwindSafe(|| self.session(&mut listener)));
            match session {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    log::error!("{}: cannot serve a front end: {error}", self.name);
                    self.stop.sleep(RETRY);
                }
                Err(_) => {
                    log::error!("{}: a bug ended the session", self.name);
                    self.stop.sleep(RETRY);
                }
            }
            self.hub.disconnect(self.peer);
        }
    }

    /// Ends the current session, if there is one. To be called after the stop
    /// was requested.
    pub fn end(&self) {
        if let Some(session) = lock(&self.current).upgrade() {
            session.lifeline.end();
        }
    }

    fn session(&self, listener: &mut Listener) -> Result<(), DaemonError> {
        let mem = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let session = Session::new(
            self.hub.clone(),
            self.peer,
            self.name.clone(),
            mem.clone(),
            self.shm_size,
        )
        .map_err(DaemonError::StartDaemon)?;
        let thread: String = format!("main {}", self.name).chars().take(15).collect();
        let mut daemon = VhostUserDaemon::new(thread, session.clone(), mem)?;
        for handler in daemon.get_epoll_handlers() {
            handler
                .register_listener(session.again_fd(), EventSet::IN, u64::from(EVENT_AGAIN))
                .map_err(DaemonError::StartDaemon)?;
        }
        *lock(&self.current) = Arc::downgrade(&session);
        self.hub.connect(self.peer, session.clone());
        let port = self.start_port(&session)?;

        let result = daemon.start(listener).and_then(|()| {
            log::info!("{}: front end connected", self.name);
            session.lifeline.connected(daemon.shutdown_handle());
            if self.stop.requested() {
                session.lifeline.end();
            }
            daemon.wait()
        });

        let asked = session.lifeline.closing();
        session.lifeline.end();
        session.stop_rings();
        self.hub.disconnect(self.peer);
        session.port.close();
        if session.port.wait_ended(PORT_WAIT) {
            // Ended, so this does not wait.
            let _ = port.join();
        } else {
            log::error!(
                "{}: the front end left, but holds its back-end channel open without answering; \
                 a thread waits for it",
                self.name
            );
        }
        session.lifeline.connected(None);
        drop(daemon);
        session.reclaim();
        self.log_end(result, asked)
    }

    fn start_port(
        &self,
        session: &Arc<Session>,
    ) -> Result<std::thread::JoinHandle<()>, DaemonError> {
        let session = session.clone();
        let hub = self.hub.clone();
        let udmabuf = self.udmabuf.clone();
        std::thread::Builder::new()
            .name("port".into())
            .spawn(move || {
                let lifeline = &session.lifeline;
                let name = &session.name;
                session
                    .port
                    .run(name, &hub, &session.sent, udmabuf.as_deref(), |why| {
                        if !lifeline.closing() {
                            log::error!("{name}: {why}: the session ends");
                        }
                        lifeline.end();
                    });
            })
            .map_err(DaemonError::StartDaemon)
    }

    /// A front end that leaves in whatever way is no error of ours.
    fn log_end(&self, result: Result<(), DaemonError>, asked: bool) -> Result<(), DaemonError> {
        match result {
            Ok(())
            | Err(DaemonError::HandleRequest(
                VhostError::Disconnected | VhostError::PartialMessage | VhostError::SocketBroken(_),
            )) => {
                log::info!("{}: front end disconnected", self.name);
                Ok(())
            }
            Err(DaemonError::HandleRequest(_)) if asked => Ok(()),
            Err(DaemonError::HandleRequest(error)) => {
                log::error!("{}: the front end broke the protocol: {error}", self.name);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
