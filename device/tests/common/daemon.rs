// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The real daemon as a child process.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use serde_json::Value;

use super::{SOON, until};

/// A running daemon, with its files in a directory of its own.
pub struct Daemon {
    child: Child,
    dir: tempfile::TempDir,
    /// Makes `Drop` print the log.
    quiet: bool,
}

/// How to start it.
pub struct Setup {
    /// `name=…` and further keys; the socket is added.
    pub peers: Vec<&'static str>,
    /// `--allow`.
    pub allow: Vec<&'static str>,
    /// Further options.
    pub extra: Vec<&'static str>,
}

impl Default for Setup {
    /// Peers a, b and c, which may share everything with each other.
    fn default() -> Self {
        Self {
            peers: vec![
                "name=a,ram-fd=allow",
                "name=b,ram-fd=allow",
                "name=c,ram-fd=allow",
            ],
            allow: vec!["a:b:rw", "b:a:rw", "a:c:rw", "c:a:rw", "b:c:rw", "c:b:rw"],
            extra: vec!["--shm-size", "16M"],
        }
    }
}

pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vhost-device-bufshare"))
}

impl Daemon {
    /// Starts it and waits until its sockets are there.
    pub fn start(setup: &Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let notify = dir.path().join("notify");
        let ready = UnixDatagram::bind(&notify).unwrap();
        ready.set_read_timeout(Some(SOON)).unwrap();
        let mut args: Vec<OsString> = Vec::new();
        for peer in &setup.peers {
            let name = peer.split(',').next().unwrap().trim_start_matches("name=");
            let socket = dir.path().join(name);
            args.push("--peer".into());
            args.push(format!("{peer},socket={}", socket.display()).into());
        }
        for rule in &setup.allow {
            args.extend(["--allow".into(), (*rule).into()]);
        }
        args.push("--control".into());
        args.push(dir.path().join("control").into());
        args.extend(setup.extra.iter().map(Into::into));
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new(binary())
            .args(&args)
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let daemon = Self {
            child,
            dir,
            quiet: false,
        };
        let mut buf = [0; 64];
        let n = ready.recv(&mut buf).expect("READY=1 of the daemon");
        assert_eq!(&buf[..n], b"READY=1\n");
        daemon
    }

    pub fn socket(&self, peer: &str) -> PathBuf {
        self.dir.path().join(peer)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// What the control socket says.
    pub fn report(&self) -> Value {
        let mut stream = UnixStream::connect(self.dir.path().join("control")).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
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

    /// Open descriptors, when no session changes.
    pub fn fds(&self) -> usize {
        let path = format!("/proc/{}/fd", self.child.id());
        std::fs::read_dir(path).unwrap().count()
    }

    pub fn threads(&self) -> usize {
        let path = format!("/proc/{}/task", self.child.id());
        std::fs::read_dir(path).unwrap().count()
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: our own child, not reaped yet.
        let rc = unsafe { libc::kill(self.child.id() as i32, signal) };
        assert_eq!(rc, 0);
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "waited {SOON:?} for the daemon's end");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// SIGTERM, status 0, no panic in the log, no socket left.
    pub fn finish(mut self) {
        self.signal(libc::SIGTERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{status}");
        assert!(!self.log().contains("panicked"), "{}", self.log());
        assert!(!self.socket("a").exists());
        self.quiet = true;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() && !self.quiet {
            eprintln!("---- log of the daemon\n{}", self.log());
        }
    }
}
