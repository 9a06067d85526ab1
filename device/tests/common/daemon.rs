// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The real daemon, on threads beside the test or as a process of its own.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::Parser;
use serde_json::Value;
use vhost_device_bufshare::host;
use vhost_device_bufshare::host::args::Args;
use vhost_device_bufshare::host::config::Config;

use super::program::{Program, notified};
use super::threads::Threads;
use super::watchdog::Watchdog;
use super::{hangs, soon, until};

/// One at a time: the daemon makes its sockets under a umask of its own, which
/// is that of the whole process.
static STARTING: Mutex<()> = Mutex::new(());

/// A running daemon, with its files in a directory of its own.
pub struct Daemon {
    run: Run,
    dir: tempfile::TempDir,
    ended: bool,
    finished: bool,
    _watchdog: Watchdog,
}

enum Run {
    /// In this process, until it is ended.
    Here(Threads, Option<host::daemon::Daemon>),
    /// As a process of its own.
    Child(Program),
}

/// [`Daemon::start`] or [`Daemon::spawn`].
pub type Start = fn(&Setup) -> Daemon;

/// How to start it.
pub struct Setup {
    /// What [`Daemon::spawn`] runs.
    pub program: PathBuf,
    /// `name=…` and further keys; the socket is added.
    pub peers: Vec<&'static str>,
    /// `--allow`.
    pub allow: Vec<&'static str>,
    /// Further options.
    pub extra: Vec<&'static str>,
    /// Soft and hard limit of open files of the program, if not those of the test.
    pub open_files: Option<(u64, u64)>,
    /// How long [`Daemon::start`]'s lets an importer use a revoked window, if not as long as
    /// the program does.
    pub release: Option<Duration>,
}

impl Default for Setup {
    /// Peers a, b and c, which may share everything with each other.
    fn default() -> Self {
        Self {
            program: binary().to_owned(),
            peers: vec![
                "name=a,ram-fd=allow",
                "name=b,ram-fd=allow",
                "name=c,ram-fd=allow",
            ],
            allow: vec!["a:b:rw", "b:a:rw", "a:c:rw", "c:a:rw", "b:c:rw", "c:b:rw"],
            extra: vec!["--shm-size", "16M"],
            open_files: None,
            release: None,
        }
    }
}

impl Setup {
    /// With this `--revoke-wait`.
    pub fn that_waits(revoke_wait: &'static str) -> Self {
        let mut setup = Self::default();
        setup.extra.extend(["--revoke-wait", revoke_wait]);
        setup
    }

    /// The options, for files in `dir`.
    fn options(&self, dir: &Path) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        for peer in &self.peers {
            let name = peer.split(',').next().unwrap().trim_start_matches("name=");
            let socket = dir.join(name);
            args.push("--peer".into());
            args.push(format!("{peer},socket={}", socket.display()).into());
        }
        for rule in &self.allow {
            args.extend(["--allow".into(), (*rule).into()]);
        }
        args.push("--control".into());
        args.push(dir.join("control").into());
        args.extend(self.extra.iter().map(Into::into));
        args
    }
}

/// The daemon does not wait long for front ends whose device is stopped.
pub fn impatient(start: Start) -> Daemon {
    start(&Setup::that_waits("1"))
}

pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vhost-device-bufshare"))
}

/// Has a program end by the signals that whoever runs the tests may ignore: `nohup` does,
/// and so does a shell for what it runs in the background.
fn end_by_signals(command: &mut Command) {
    let set = || {
        for signal in [libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
            // SAFETY: no handler is set.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec nothing but system calls are made.
    unsafe { command.pre_exec(set) };
}

/// Gives a program other limits of open files.
pub fn limit_open_files(command: &mut Command, soft: u64, hard: u64) {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    let set = move || {
        // SAFETY: the structure is initialised.
        match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec nothing but setrlimit is called.
    unsafe { command.pre_exec(set) };
}

/// With the output of the test that started the logging thread.
fn log_to_test() {
    let _ = env_logger::Builder::new()
        .filter_level(log::LevelFilter::Info)
        .filter_module("virtio_queue", log::LevelFilter::Off)
        .parse_default_env()
        .is_test(true)
        .try_init();
}

impl Daemon {
    /// Starts it in this process, as the command line would.
    pub fn start(setup: &Setup) -> Self {
        let watchdog = Watchdog::new(hangs());
        log_to_test();
        let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let line = std::iter::once(binary().into()).chain(setup.options(dir.path()));
        let args = Args::try_parse_from(line).unwrap();
        let mut config = Config::try_from(args).unwrap();
        if let Some(time) = setup.release {
            config.limits.release_ms = time.as_millis().try_into().unwrap();
        }
        let (threads, daemon) = Threads::of(|| host::daemon::Daemon::start(&config).unwrap());
        Self {
            run: Run::Here(threads, Some(daemon)),
            dir,
            ended: false,
            finished: false,
            _watchdog: watchdog,
        }
    }

    /// Starts the program, and waits until it says that its sockets are there.
    pub fn spawn(setup: &Setup) -> Self {
        let watchdog = Watchdog::new(hangs());
        let starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let notify = dir.path().join("notify");
        let ready = UnixDatagram::bind(&notify).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new(&setup.program);
        command
            .args(setup.options(dir.path()))
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some((soft, hard)) = setup.open_files {
            limit_open_files(&mut command, soft, hard);
        }
        end_by_signals(&mut command);
        let child = Program::start(&mut command);
        drop(starting);
        let daemon = Self {
            run: Run::Child(child),
            dir,
            ended: false,
            finished: false,
            _watchdog: watchdog,
        };
        assert_eq!(notified(&ready), "READY=1\n");
        daemon
    }

    pub fn socket(&self, peer: &str) -> PathBuf {
        self.dir.path().join(peer)
    }

    /// What the control socket says.
    pub fn report(&self) -> Value {
        let mut stream = UnixStream::connect(self.dir.path().join("control")).unwrap();
        stream.set_read_timeout(Some(soon())).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// The session of one peer in the report.
    pub fn session(&self, peer: &str) -> Value {
        self.peer(peer)["session"].clone()
    }

    pub fn peer(&self, peer: &str) -> Value {
        let report = self.report();
        let peers = report["peers"].as_array().unwrap();
        peers.iter().find(|p| p["name"] == peer).unwrap().clone()
    }

    /// One peer as the broker sees it.
    pub fn broker(&self, peer: &str) -> Value {
        let report = self.report();
        let peers = report["broker"]["peers"].as_array().unwrap();
        peers.iter().find(|p| p["name"] == peer).unwrap().clone()
    }

    /// Waits until the session of `peer` is over.
    pub fn until_gone(&self, peer: &str) {
        until(&format!("the end of the session of {peer}"), || {
            self.session(peer).is_null()
        });
    }

    fn child(&self) -> &Program {
        match &self.run {
            Run::Here(..) => panic!("only a daemon that was spawned has this to itself"),
            Run::Child(child) => child,
        }
    }

    /// The program's process.
    pub fn id(&self) -> u32 {
        self.child().id()
    }

    /// What the program wrote on standard error.
    pub fn log(&self) -> String {
        self.child();
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Open descriptors of the program, when no session changes.
    pub fn fds(&self) -> usize {
        let path = format!("/proc/{}/fd", self.child().id());
        std::fs::read_dir(path).unwrap().count()
    }

    pub fn threads(&self) -> usize {
        match &self.run {
            Run::Here(threads, _) => threads.count(),
            Run::Child(child) => {
                let path = format!("/proc/{}/task", child.id());
                std::fs::read_dir(path).unwrap().count()
            }
        }
    }

    /// Whether one of the program's threads waits in this system call.
    pub fn is_in(&self, call: libc::c_long) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child().id())).unwrap();
        let mut calls = tasks.map(|task| task.unwrap().path().join("syscall"));
        let number = call.to_string();
        calls.any(|path| {
            let now = std::fs::read_to_string(path).unwrap_or_default();
            now.split_whitespace().next() == Some(number.as_str())
        })
    }

    pub fn signal(&self, signal: libc::c_int) {
        self.child().signal(signal);
    }

    /// Whether the program has ended.
    pub fn has_ended(&mut self) -> bool {
        let Run::Child(child) = &mut self.run else {
            panic!("not a process of its own");
        };
        child.ended().is_some()
    }

    /// Waits for the end of the program.
    pub fn wait(&mut self) -> ExitStatus {
        let Run::Child(child) = &mut self.run else {
            panic!("not a process of its own");
        };
        child.wait()
    }

    /// Ends it: the program by SIGTERM, whose status is 0 then.
    pub fn end(&mut self) {
        self.ended = true;
        match &mut self.run {
            Run::Here(_, daemon) => {
                let left = daemon.take().unwrap().end(|| false).unwrap();
                assert!(left.is_empty(), "{left:?}");
            }
            Run::Child(_) => {
                self.signal(libc::SIGTERM);
                let status = self.wait();
                assert_eq!(status.code(), Some(0), "{status}");
            }
        }
        assert!(!self.socket("a").exists());
    }

    /// Ends it while somebody still maps memory of another VM, and does not wait for
    /// that: the program by two SIGTERMs. What it says of it.
    pub fn end_at_once(&mut self) -> Vec<String> {
        self.ended = true;
        let left = match &mut self.run {
            Run::Here(_, daemon) => {
                let left = daemon.take().unwrap().end(|| true).unwrap();
                left.iter().map(ToString::to_string).collect()
            }
            Run::Child(_) => {
                self.signal(libc::SIGTERM);
                until("the end to begin", || self.report()["ending"] == true);
                self.signal(libc::SIGTERM);
                self.wait_still_mapped()
            }
        };
        assert!(!self.socket("a").exists());
        left
    }

    /// Waits for the end of a program that was asked to end, and has to say that
    /// somebody still maps memory of another VM: what it says of it.
    pub fn wait_still_mapped(&mut self) -> Vec<String> {
        self.ended = true;
        let status = self.wait();
        let expected = i32::from(host::daemon::EXIT_STILL_MAPPED);
        assert_eq!(status.code(), Some(expected), "{status}");
        let log = self.log();
        let lines = log
            .lines()
            .filter_map(|line| line.strip_prefix("vhost-device-bufshare: "));
        lines.map(str::to_owned).collect()
    }

    /// As [`Daemon::finish`], of a program that has ended.
    pub fn finish_ended(mut self) {
        assert!(self.has_ended());
        self.ended = true;
        self.finish();
    }

    /// Ends it, unless that was done, and sees that nothing of it is left and
    /// that nothing in it panicked.
    pub fn finish(mut self) {
        if !self.ended {
            self.end();
        }
        self.finished = true;
        match &self.run {
            Run::Here(threads, _) => {
                until("the end of its threads", || threads.count() == 0);
                assert_eq!(threads.panics(), [""; 0]);
            }
            Run::Child(_) => {
                let log = self.log();
                // A warning may speak of a bug of the VMM.
                let own = |line: &str| line.contains("ERROR") && line.contains("a bug");
                let bad = |line: &str| line.contains("panicked") || own(line);
                assert!(!log.lines().any(bad), "{log}");
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        match &mut self.run {
            Run::Here(_, daemon) => {
                if let Some(daemon) = daemon.take() {
                    let _ = daemon.end(|| true);
                }
            }
            Run::Child(child) => {
                if std::thread::panicking() {
                    // Before its log is read.
                    child.kill();
                    eprintln!("---- log of the daemon\n{}", self.log());
                }
            }
        }
        // Or else a panic of it could go unnoticed.
        assert!(
            self.finished || std::thread::panicking(),
            "Daemon::finish was not called"
        );
    }
}
