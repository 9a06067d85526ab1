// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon as a whole: made of a configuration, ended by one call.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::config::{self, Config};
use super::listen::{self, Bound, Source};
use super::random::RandomIds;
use super::stop::Stop;
use super::{control, descriptors, notify, signals};
use crate::broker::{Broker, PeerId};
use crate::hub::{HoldReport, Hub};
use crate::transport::udmabuf;
use crate::vhost::doorbell;
use crate::vhost::limits::max_table_bytes;
use crate::vhost::memory::Files;
use crate::vhost::session::{Common, Server};

/// How long the end of the program waits for its threads. A front end that does
/// not answer cannot hold it up for longer.
const END_WAIT: Duration = Duration::from_secs(2);

/// Added to the time that the service manager is asked for at the end.
const END_MARGIN: Duration = END_WAIT.saturating_mul(3);

/// Exit status of a program that ended although a VMM may map memory of another VM.
pub const EXIT_STILL_MAPPED: u8 = 3;

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error("{0}")]
    Config(#[from] config::Error),
    /// A socket cannot be had.
    #[error("peer '{peer}': {source}")]
    Listen {
        /// Whose.
        peer: String,
        /// Why.
        source: listen::Error,
    },
    /// The control socket cannot be had.
    #[error("control socket: {0}")]
    Control(listen::Error),
    /// The broker panicked.
    #[error(
        "ended by a bug in the broker (see the log): what VMMs map of other VMs' memory stays mapped \
         until they end"
    )]
    Bug,
    /// Front ends cannot be signalled.
    #[error(
        "no asynchronous I/O, without which a front end could hold up others: {0}; raise \
         fs.aio-max-nr (sysctl), or allow io_setup and io_submit if a seccomp filter forbids them"
    )]
    Doorbell(io::Error),
    /// There are too few descriptors.
    #[error("{0}")]
    Descriptors(#[from] descriptors::Error),
    /// The system has no more of something.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { what, source }
}

/// Runs until a signal comes, or no front end can come any more. To be called
/// before any thread is started. Returns what VMMs may still map of other VMs'
/// memory: nothing, after an orderly end.
///
/// # Errors
/// [`Error`], before anything was served; [`Error::Bug`] at any time.
pub fn run(config: &Config) -> Result<Vec<HoldReport>, Error> {
    let signals = signals::Signals::block().map_err(system("block signals"))?;
    let daemon = Daemon::start(config)?;
    if let Err(error) = notify::ready() {
        log::warn!("cannot tell the service manager that all is ready: {error}");
    }
    let signal = signals.wait(&daemon.common.stop);
    match signal.map_err(system("wait for signals"))? {
        Some(name) => log::info!("{name}: ending"),
        None if daemon.common.hub.failed() => {}
        None => log::info!("no front end can come any more: ending"),
    }
    let limit = daemon.end_wait();
    if let Err(error) = notify::stopping(limit) {
        log::warn!("cannot tell the service manager that the end may take {limit:?}: {error}");
    }
    let again = || match signals.next() {
        Ok(Some(name)) => {
            log::warn!("{name} again: ending at once");
            true
        }
        Ok(None) => false,
        Err(error) => {
            log::error!("cannot read signals: {error}: ending at once");
            true
        }
    };
    let hub = daemon.common.hub.clone();
    let left = daemon.end(again);
    if hub.failed() {
        return Err(Error::Bug);
    }
    Ok(left)
}

/// A running daemon.
pub struct Daemon {
    common: Arc<Common>,
    servers: Vec<Arc<Server>>,
    threads: Vec<JoinHandle<()>>,
    /// Those of the front ends. Removes their files.
    sockets: Vec<Bound>,
    _control: Option<Bound>,
}

impl Daemon {
    /// Makes all sockets, then serves them.
    ///
    /// # Errors
    /// [`Error`]
    pub fn start(config: &Config) -> Result<Self, Error> {
        // Sockets first: whoever sees the file can connect.
        let mut sockets = Vec::new();
        for peer in &config.peers {
            let bound = Bound::new(&peer.endpoint).map_err(|source| Error::Listen {
                peer: peer.name.clone(),
                source,
            })?;
            sockets.push(bound);
        }
        let control = config.control.as_deref().map(Bound::bind);
        let control = control.transpose().map_err(Error::Control)?;

        doorbell::prepare().map_err(Error::Doorbell)?;
        let udmabuf = find_udmabuf(config);
        descriptors::reserve(config.peers.len(), config.max_windows)?;
        let broker = Broker::new(config.broker(udmabuf.is_some())?, Box::new(RandomIds))
            .map_err(config::Error::from)?;
        let names: Vec<String> = config.peers.iter().map(|peer| peer.name.clone()).collect();
        let hub = Hub::new(broker, &names, config.revoke_wait);
        let stop = Arc::new(Stop::new().map_err(system("make an event descriptor"))?);
        hub.stop_on_failure(stop.clone());
        let common = Arc::new(Common {
            hub: hub.clone(),
            files: Arc::new(Files::new().map_err(system("make a memory file"))?),
            closing: Stop::new().map_err(system("make an event descriptor"))?,
            stop,
            udmabuf,
            shm_size: config.shm_size,
            max_table: max_table_bytes(config.peers.len()),
        });
        let timer = hub.start_timer().map_err(system("start a thread"))?;
        let mut daemon = Self {
            common: common.clone(),
            servers: Vec::new(),
            threads: vec![timer],
            sockets: Vec::new(),
            _control: None,
        };
        let served = Arc::new(AtomicUsize::new(config.peers.len()));
        for ((number, peer), socket) in (1_u32..).zip(&config.peers).zip(&sockets) {
            let server = Server::new(
                common.clone(),
                PeerId(number),
                &peer.name,
                peer.unsealed_ram,
            );
            let server = Arc::new(server);
            let source = socket.source().map_err(system("duplicate a socket"))?;
            daemon.servers.push(server.clone());
            let (served, common) = (served.clone(), common.clone());
            daemon.spawn("accept", move || {
                server.run(source);
                if served.fetch_sub(1, Ordering::AcqRel) == 1 {
                    common.stop.request();
                }
            })?;
            log::info!("{}: waits for front ends on {}", peer.name, peer.endpoint);
        }
        if let Some(control) = &control
            && let Source::Listener(listener) =
                control.source().map_err(system("duplicate a socket"))?
        {
            daemon.spawn("control", move || {
                control::serve(&listener, &hub, &common.stop);
            })?;
        }
        if config.allow.is_empty() {
            log::warn!("the policy allows nothing: no guest can import anything (--allow)");
        }
        daemon.sockets = sockets;
        daemon._control = control;
        Ok(daemon)
    }

    /// Starts a thread. The program ends if a bug ends it.
    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let (thread, stop) = (name.to_owned(), self.common.stop.clone());
        let body = move || {
            if catch_unwind(AssertUnwindSafe(body)).is_err() {
                log::error!("a bug ended the thread '{thread}': the program ends");
                stop.request();
            }
        };
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(body)
            .map_err(system("start a thread"))?;
        self.threads.push(thread);
        Ok(())
    }

    /// How long [`Daemon::end`] may take.
    #[must_use]
    pub fn end_wait(&self) -> Duration {
        self.common.hub.close_wait().saturating_add(END_MARGIN)
    }

    /// Takes no more front ends, takes all buffers back, and waits until that is
    /// proved, the time is over, or it is `interrupted`; then ends all sessions.
    /// Returns what VMMs may still map of other VMs' memory, and nobody can take from
    /// them any more.
    #[must_use]
    pub fn end(mut self, interrupted: impl Fn() -> bool) -> Vec<HoldReport> {
        self.common.closing.request();
        self.sockets.clear();
        self.common.hub.close();
        let left = self.common.hub.wait_until_closed(interrupted);
        self.end_sessions();
        left
    }

    fn end_sessions(self) {
        self.common.stop.request();
        for server in &self.servers {
            server.end();
        }
        self.common.hub.stop_timer();
        let end = Instant::now().checked_add(END_WAIT);
        for thread in self.threads {
            while !thread.is_finished() {
                if end.is_none_or(|end| Instant::now() >= end) {
                    log::warn!("a front end holds a thread up; not waiting for it");
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            // Finished, so this does not wait; a panic was logged where it was.
            let _ = thread.join();
        }
    }
}

fn find_udmabuf(config: &Config) -> Option<Arc<dyn udmabuf::Maker>> {
    match udmabuf::Device::open() {
        Ok(device) => {
            log::info!("udmabuf works here: VMMs are given no more than what is shared");
            Some(Arc::new(device))
        }
        Err(error) => {
            log::info!("no udmabuf here ({error})");
            if !config.peers.iter().any(|peer| peer.raw_ram) {
                log::warn!(
                    "without udmabuf, only peers with ram-fd=allow can share anything, and there \
                     is none"
                );
            }
            None
        }
    }
}
