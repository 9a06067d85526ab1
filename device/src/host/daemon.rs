// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon as a whole: made of a configuration, ended by one call.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::config::{self, Config};
use super::listen::{self, Bound};
use super::{control_socket, descriptors, sd_notify, signals};
use crate::backing::udmabuf;
use crate::broker::{Broker, PeerId};
use crate::dispatcher::{Dispatcher, HoldReport};
use crate::os::random::RandomIds;
use crate::os::stop::Stop;
use crate::vhost::doorbell;
use crate::vhost::limits::max_table_bytes;
use crate::vhost::server::{Common, Server, Source};

/// How long the end of the program waits for its threads. A front end that does
/// not answer cannot hold it up for longer.
const END_WAIT: Duration = Duration::from_secs(2);

/// Added to the time that the service manager is asked for at the end.
const END_MARGIN: Duration = END_WAIT.saturating_mul(3);

/// Exit status of a program that ended although a VMM may map memory of another VM.
pub const EXIT_STILL_MAPPED: u8 = 3;

/// Exit status of a program that a bug ended, so that nobody knows what VMMs map.
pub const EXIT_BUG: u8 = 4;

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
    /// A thread panicked that the program cannot do without.
    #[error(
        "ended by a bug (see the log): VMMs may still map other VMs' memory; end every VM that \
         imports before an exporter is reset or reboots"
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
    if let Err(error) = sd_notify::ready() {
        log::warn!("cannot report to the service manager that all is ready: {error}");
    }
    let signal = signals.wait(&daemon.common.stop);
    match signal.map_err(system("wait for signals"))? {
        Some(name) => log::info!("{name}: ending"),
        None if daemon.has_bug() => {}
        None => log::info!("no front end can come any more: ending"),
    }
    let limit = daemon.end_wait();
    if let Err(error) = sd_notify::stopping(limit) {
        log::warn!("cannot ask the service manager for {limit:?} to end: {error}");
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
    daemon.end(again)
}

/// A running daemon.
pub struct Daemon {
    common: Arc<Common>,
    servers: Vec<Arc<Server>>,
    threads: Vec<JoinHandle<()>>,
    /// A bug ended one of them.
    bug: Arc<AtomicBool>,
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
        descriptors::reserve(config.peers.len(), config.limits.max_windows)?;
        let broker = Broker::new(config.broker(udmabuf.is_some())?, Box::new(RandomIds))
            .map_err(config::Error::from)?;
        let names: Vec<String> = config.peers.iter().map(|peer| peer.name.clone()).collect();
        let dispatcher = Dispatcher::new(broker, &names, config.revoke_wait);
        let stop = Arc::new(Stop::new().map_err(system("make an event descriptor"))?);
        dispatcher.stop_on_failure(stop.clone());
        let common = Arc::new(Common {
            dispatcher: dispatcher.clone(),
            files: Arc::default(),
            closing: Stop::new().map_err(system("make an event descriptor"))?,
            stop,
            udmabuf,
            shm_size: config.shm_size,
            limits: config.limits,
            max_table: max_table_bytes(config.peers.len()),
        });
        let deadlines = dispatcher
            .start_deadlines()
            .map_err(system("start a thread"))?;
        let mut daemon = Self {
            common: common.clone(),
            servers: Vec::new(),
            threads: vec![deadlines],
            bug: Arc::default(),
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
                control_socket::serve(&listener, &dispatcher, &common.stop);
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
        let bug = self.bug.clone();
        let body = move || {
            if catch_unwind(AssertUnwindSafe(body)).is_err() {
                log::error!("a bug ended the thread '{thread}': the program ends");
                bug.store(true, Ordering::Release);
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
        self.common
            .dispatcher
            .close_wait()
            .saturating_add(END_MARGIN)
    }

    /// A bug has ended a thread, or left the broker in the middle of a change.
    fn has_bug(&self) -> bool {
        self.common.dispatcher.failed() || self.bug.load(Ordering::Acquire)
    }

    /// Takes no more front ends, revokes all buffers, and waits until they are proved to
    /// be mapped nowhere, the time is over, or it is `interrupted`; then ends all
    /// sessions. Returns what VMMs may still map of other VMs' memory, and nobody can take
    /// from them any more.
    ///
    /// # Errors
    /// [`Error::Bug`], if there was one: then a session may be lost, and with it what is
    /// known of its VMM.
    pub fn end(mut self, interrupted: impl Fn() -> bool) -> Result<Vec<HoldReport>, Error> {
        self.common.closing.request();
        self.sockets.clear();
        self.common.dispatcher.close();
        let left = self.common.dispatcher.wait_until_closed(interrupted);
        let (dispatcher, bug) = (self.common.dispatcher.clone(), self.bug.clone());
        self.end_sessions();
        if dispatcher.failed() || bug.load(Ordering::Acquire) {
            return Err(Error::Bug);
        }
        Ok(left)
    }

    fn end_sessions(self) {
        self.common.stop.request();
        for server in &self.servers {
            server.end();
        }
        self.common.dispatcher.stop_deadlines();
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::host::args::Args;

    #[test]
    fn a_bug_that_ends_a_thread_ends_the_program_and_is_its_result() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let line = ["bufshare", "--socket-path", socket.to_str().unwrap()];
        let config = Config::try_from(Args::try_parse_from(line).unwrap()).unwrap();
        let mut daemon = Daemon::start(&config).unwrap();
        let stop = daemon.common.stop.clone();
        assert!(!daemon.has_bug());

        daemon.spawn("accept", || panic!("as a bug would")).unwrap();
        daemon.threads.pop().unwrap().join().unwrap();

        assert!(stop.requested() && daemon.has_bug());
        assert!(matches!(daemon.end(|| false), Err(Error::Bug)));
    }
}
