// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program under test

use std::fs;
use std::io::Read as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::child::Process;
use crate::vm::Machine;
use crate::{lab, wait};

/// Stands for the folder of the sockets, in words that are written before there is one.
pub const SOCKETS: &str = "{sockets}";

/// A running `vhost-device-bufshare`.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    folder: PathBuf,
    log: PathBuf,
    /// Whether it was ended by [`Daemon::end`].
    ended: bool,
    /// Stops that it has to answer unproved.
    unproved: usize,
    /// What else it may say.
    allowed: Vec<Sign>,
}

/// What the daemon says when it could not do what it promises, because of a VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It answered a stop before all importers were proved to have unmapped.
    Unproved,
    /// It cannot serve a VMM any more.
    Unserved,
    /// A VMM keeps memory of others although its session has ended.
    Keeps,
}

impl Sign {
    const ALL: [Self; 3] = [Self::Unproved, Self::Unserved, Self::Keeps];

    fn words(self) -> &'static str {
        match self {
            Self::Unproved => "did not prove that it unmapped",
            Self::Unserved => "it cannot be served any more",
            Self::Keeps => "its session has ended, but its VMM",
        }
    }
}

/// What the daemon holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    /// Open descriptors of the process.
    pub descriptors: usize,
    /// Buffers of all peers.
    pub buffers: usize,
    /// Attachments of all peers.
    pub attachments: u64,
    /// Mappings of all peers' VMMs, idle ones included.
    pub windows: u64,
}

#[derive(Deserialize)]
struct Document {
    broker: Snapshot,
    peers: Vec<PeerReport>,
}

#[derive(Deserialize)]
struct PeerReport {
    name: String,
    unproved_stops: usize,
    session: Option<Traffic>,
}

/// What has gone over the queues of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Traffic {
    /// Chains of the control queue.
    pub chains: u64,
    /// Events.
    pub events: u64,
}

/// What its control socket reports; it reports more.
#[derive(Debug, Clone, Deserialize)]
pub struct Snapshot {
    /// Each VM.
    pub peers: Vec<PeerState>,
    /// Each buffer.
    pub buffers: Vec<BufferState>,
    /// Mappings that a VMM may hold.
    pub max_windows: u64,
}

/// One VM.
#[derive(Debug, Clone, Deserialize)]
pub struct PeerState {
    /// Its name.
    pub name: String,
    /// Its driver runs.
    pub up: bool,
    /// Imports.
    pub attachments: u64,
    /// Those that are mapped.
    pub mapped: u64,
    /// Mappings of its VMM.
    pub windows: u64,
    /// Most of them at once.
    pub windows_peak: u64,
    /// Windows in use.
    pub windows_live: u64,
    /// Windows kept for reuse.
    pub windows_idle: u64,
    /// Windows that show zero pages.
    pub windows_zero: u64,
    /// Bytes shown to it through its exporters' RAM descriptors.
    pub direct_bytes: u64,
    /// Bytes shown to it through udmabufs.
    pub udmabuf_bytes: u64,
    /// Bytes that were copied for it.
    pub copied_bytes: u64,
    /// Requests of its driver.
    pub requests: u64,
    /// Those that were refused.
    pub refused: u64,
    /// MAP requests of its driver.
    pub map_requests: u64,
    /// Those that needed no request to its VMM.
    pub map_cached: u64,
    /// Mappings that its VMM was asked for.
    pub vmm_maps: u64,
    /// How often mappings that it used were taken from it, mostly as it had not released
    /// them in time.
    pub deadlines_missed: u64,
    /// How often it promised to write nothing until the end of an UNEXPORT.
    pub unexports_quiesced: u64,
    /// Frames that it was given and has not returned. Not of the first daemon.
    #[serde(default)]
    pub frames_held: u64,
}

/// One buffer.
#[derive(Debug, Clone, Deserialize)]
pub struct BufferState {
    /// Its name.
    pub id: String,
    /// Whose.
    pub owner: String,
    /// Pieces.
    pub extents: u64,
    /// It is being revoked.
    pub revoking: bool,
    /// Its exporter has promised that nothing of it writes there.
    pub quiesced: bool,
    /// Who imported it.
    pub importers: Vec<String>,
}

impl Snapshot {
    /// One VM.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn peer(&self, name: &str) -> Result<&PeerState> {
        self.peers
            .iter()
            .find(|peer| peer.name == name)
            .with_context(|| format!("the daemon has no peer {name}"))
    }
}

impl Daemon {
    /// Start it by these words and wait until its sockets are there.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(folder: &Path, words: &[String], logs: &Path) -> Result<Self> {
        let notify = folder.join("notify");
        let ready =
            UnixDatagram::bind(&notify).with_context(|| format!("making {}", notify.display()))?;
        let sockets = folder.display().to_string();
        let mut words = words.iter().map(|word| word.replace(SOCKETS, &sockets));
        let mut command = Command::new(words.next().context("no program to start")?);
        command
            .args(words)
            .arg("--control")
            .arg(folder.join("control"))
            .env("NOTIFY_SOCKET", &notify);
        let log = logs.join("daemon.log");
        let process = Process::start("the daemon", command, Vec::new(), &log)?;
        let mut daemon = Self {
            process,
            folder: folder.to_owned(),
            log,
            ended: false,
            unproved: 0,
            allowed: Vec::new(),
        };
        ready.set_nonblocking(true)?;
        let mut message = [0; 256];
        wait::until("the daemon to say READY", wait::COMMAND, || {
            daemon.process.alive()?;
            let count = ready.recv(&mut message).unwrap_or(0);
            let text = message.get(..count).unwrap_or_default();
            Ok(text
                .split(|byte| *byte == b'\n')
                .any(|line| line == b"READY=1")
                .then_some(()))
        })?;
        Ok(daemon)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Fail if it has ended.
    ///
    /// # Errors
    /// That it has.
    pub fn alive(&mut self) -> Result<()> {
        self.process.alive()
    }

    /// The test brings this about: so many stops more are answered before all importers
    /// are proved to have unmapped. Without that one is a failure.
    pub fn expect_unproved_stops(&mut self, count: usize) {
        self.unproved = self.unproved.saturating_add(count);
    }

    /// The test brings this about. Without that it is a failure.
    pub fn allow(&mut self, sign: Sign) {
        self.allowed.push(sign);
    }

    /// Stops that were answered before all importers were proved to have unmapped are
    /// as many as expected.
    ///
    /// # Errors
    /// When they are not, or it does not answer.
    pub fn stops_are_proved(&self) -> Result<()> {
        let peers = self.document()?.peers;
        let found: usize = peers.iter().map(|peer| peer.unproved_stops).sum();
        ensure!(
            found == self.unproved,
            "the daemon answered {found} stops unproved, {} were expected",
            self.unproved
        );
        Ok(())
    }

    /// What its control socket reports of the broker.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn snapshot(&self) -> Result<Snapshot> {
        Ok(self.document()?.broker)
    }

    /// What has gone over the queues of a peer since it connected.
    ///
    /// # Errors
    /// As [`snapshot`](Self::snapshot), or it is not connected.
    pub fn traffic(&self, name: &str) -> Result<Traffic> {
        let peers = self.document()?.peers;
        let peer = peers.into_iter().find(|peer| peer.name == name);
        let session = peer.and_then(|peer| peer.session);
        session.with_context(|| format!("{name} is not connected"))
    }

    fn document(&self) -> Result<Document> {
        let path = self.folder.join("control");
        let mut stream = UnixStream::connect(&path)
            .with_context(|| format!("connecting to {}", path.display()))?;
        stream.set_read_timeout(Some(wait::scaled(wait::COMMAND)))?;
        let mut text = String::new();
        stream
            .read_to_string(&mut text)
            .context("reading the control socket")?;
        serde_json::from_str(&text).with_context(|| format!("the control socket said {text:?}"))
    }

    /// What it holds now.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn holdings(&self) -> Result<Holdings> {
        let snapshot = self.snapshot()?;
        let buffers = snapshot.buffers.len();
        let attachments = snapshot.peers.iter().map(|peer| peer.attachments).sum();
        let windows = snapshot.peers.iter().map(|peer| peer.windows).sum();
        Ok(Holdings {
            descriptors: self.descriptors()?,
            buffers,
            attachments,
            windows,
        })
    }

    /// Open descriptors of the process.
    ///
    /// # Errors
    /// When it is gone.
    pub fn descriptors(&self) -> Result<usize> {
        let folder = format!("/proc/{}/fd", self.pid());
        Ok(fs::read_dir(&folder)
            .with_context(|| format!("reading {folder}"))?
            .count())
    }

    /// Resident memory of the process's own, KiB: not what it has mapped of the guests'
    /// RAM, of which it touches more and more.
    ///
    /// # Errors
    /// When it is gone.
    pub fn own_memory(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let number = line
            .and_then(|line| line.split_whitespace().next())
            .and_then(|word| word.parse().ok());
        number.with_context(|| format!("{path} has no RssAnon"))
    }

    /// SIGSTOP: it answers nobody, until it may go on.
    ///
    /// # Errors
    /// From the system.
    pub fn pause(&mut self) -> Result<()> {
        self.process.pause()
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// From the system.
    pub fn go_on(&mut self) -> Result<()> {
        self.process.signal(libc::SIGCONT)
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.ended = true;
        self.process.kill();
        match self.process.ended()? {
            Some(_) => Ok(()),
            None => bail!("the daemon does not end by SIGKILL"),
        }
    }

    /// What it wrote.
    ///
    /// # Errors
    /// From the file system.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("reading {}", self.log.display()))
    }

    /// Check that its log names no fault of its own, nor a promise that it could not keep
    /// unless the test expects that. It survives most of them: the session in question
    /// ends, and others go on.
    ///
    /// # Errors
    /// The lines that do.
    pub fn is_well(&self) -> Result<()> {
        let log = self.log()?;
        let faults = [faults(&log), unexpected(&log, self.unproved, &self.allowed)].concat();
        ensure!(
            faults.is_empty(),
            "the daemon has a fault:\n{}",
            faults.join("\n")
        );
        Ok(())
    }

    /// SIGTERM while VMs share, and wait for the end, however it ends.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn end(&mut self) -> Result<ExitStatus> {
        self.ended = true;
        self.process.signal(libc::SIGTERM)?;
        self.process.wait(wait::COMMAND)
    }

    /// Whether it was, by [`Daemon::end`] or [`Daemon::kill`].
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// SIGTERM, and wait for a clean end, unless it was ended before.
    ///
    /// # Errors
    /// When it does not end in time or not with 0.
    pub fn stop(&mut self) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        if self.process.ended()?.is_none() {
            self.process.signal(libc::SIGTERM)?;
        }
        let status = self.process.wait(wait::STOP)?;
        if !status.success() {
            bail!("the daemon ended badly: {status}");
        }
        Ok(())
    }

    /// Wait until `good` of what it holds.
    ///
    /// # Errors
    /// What it holds when the time is over.
    pub fn settles(&self, what: &str, good: impl Fn(&Holdings) -> bool) -> Result<Holdings> {
        let mut last = None;
        let result = wait::until(what, Duration::from_secs(15), || {
            let now = self.holdings()?;
            last = Some(now);
            Ok(good(&now).then_some(now))
        });
        result.with_context(|| format!("the daemon holds {last:?}"))
    }
}

/// Lines of a daemon's log that report a fault of the daemon.
fn faults(log: &str) -> Vec<&str> {
    // A warning may speak of a bug of the VMM.
    let own = |line: &&str| line.contains("ERROR") && line.contains("a bug");
    let bad = |line: &&str| line.contains("panicked at") || own(line);
    log.lines().filter(bad).collect()
}

/// Lines of a daemon's log with a [`Sign`] that nobody expects, and all those of unproved
/// stops if they are not as many as expected.
fn unexpected<'a>(log: &'a str, unproved: usize, allowed: &[Sign]) -> Vec<&'a str> {
    let with = |sign: Sign| log.lines().filter(move |line| line.contains(sign.words()));
    let expected = |sign: &Sign| match sign {
        Sign::Unproved => with(*sign).count() == unproved,
        _ => allowed.contains(sign),
    };
    let signs = Sign::ALL.into_iter().filter(|sign| !expected(sign));
    signs.flat_map(with).collect()
}

/// The program and a peer for each machine.
///
/// # Errors
/// When the program is not built.
pub fn command<'a>(machines: impl IntoIterator<Item = &'a Machine>) -> Result<Vec<String>> {
    let mut words = vec![lab::daemon_program()?.display().to_string()];
    for machine in machines {
        let Machine {
            name,
            ram_fd,
            enforces_ro,
            ..
        } = machine;
        let socket = socket(Path::new(SOCKETS), name);
        let ram_fd = if *ram_fd { "allow" } else { "deny" };
        let enforces_ro = if *enforces_ro { "yes" } else { "no" };
        words.push("--peer".to_owned());
        words.push(format!(
            "name={name},socket={},ram-fd={ram_fd},enforces-ro={enforces_ro}",
            socket.display()
        ));
    }
    Ok(words)
}

/// Where the daemon listens for a peer.
#[must_use]
pub fn socket(folder: &Path, peer: &str) -> PathBuf {
    folder.join(format!("{peer}.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the daemon and Rust's runtime say them.
    #[test]
    fn faults_of_the_daemon_are_found_in_its_log() {
        let bad = [
            "thread 'a' (7) panicked at device/src/dispatcher.rs:12:3:",
            "[ERROR] a: a bug ended the session",
            "[ERROR] a: a bug ended its mapping requests: the session ends",
            "[ERROR] a: a bug stopped its worker: the session ends",
            "[ERROR] a bug stopped the broker in the middle of a change: the daemon ends",
            "[ERROR] a bug: the count of windows is wrong; please report this",
        ];
        for line in bad {
            let log = format!("[INFO] a: connected\n{line}\n[WARN] debug: x\n");
            assert_eq!(faults(&log), [line]);
        }
        let good = "[INFO] a: connected\n[WARN] a: debug\n[WARN] a: that is a bug of the VMM\n";
        assert!(faults(good).is_empty());
    }

    /// As the daemon says them.
    #[test]
    fn promises_that_the_daemon_did_not_keep_are_found_unless_expected() {
        let unproved = "[ERROR] a: stopped, but the VMM of b did not prove that it unmapped this";
        let unserved = "[ERROR] b: it cannot be served any more: its VMM is asked to unmap";
        let keeps = "[ERROR] b: its session has ended, but its VMM (connected by process 7) still";
        let log = format!("[INFO] a: connected\n{unserved}\n{keeps}\n{unproved}\n{unproved}\n");
        let all = [unproved, unproved, unserved, keeps];
        assert_eq!(unexpected(&log, 0, &[]), all);
        assert_eq!(unexpected(&log, 1, &[]), all, "more than expected");
        assert_eq!(unexpected(&log, 2, &[Sign::Keeps]), [unserved]);
        let none = unexpected(&log, 2, &[Sign::Unserved, Sign::Keeps]);
        assert!(none.is_empty());
        assert!(unexpected("[INFO] a: connected\n", 0, &[]).is_empty());
    }
}
