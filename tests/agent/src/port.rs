// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The virtio-serial port to the fixture

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bufshare_agent::wire::Message;

/// How long the port may take to appear after the kernel's start.
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(2);

/// The sending side, shared by all threads.
pub(crate) struct Sender(Mutex<File>);

impl Sender {
    /// Send one message. Errors are for the console: there is nobody else to tell.
    pub(crate) fn send(&self, message: &Message) {
        let mut line = match serde_json::to_vec(message) {
            Ok(line) => line,
            Err(error) => {
                eprintln!("bufshare-agent: {error}");
                return;
            }
        };
        line.push(b'\n');
        let mut file = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Err(error) = file.write_all(&line) {
            eprintln!("bufshare-agent: writing to the port: {error}");
        }
    }
}

/// The receiving side.
pub(crate) struct Receiver(File);

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // The driver says end of file as long as the host's side is not open.
            match self.0.read(buffer)? {
                0 => std::thread::sleep(PAUSE),
                count => return Ok(count),
            }
        }
    }
}

/// Find the port by its name, and open it.
pub(crate) fn open(name: &str) -> Result<(Sender, Receiver)> {
    let started = Instant::now();
    let path = loop {
        if let Some(path) = find(name) {
            break path;
        }
        if started.elapsed() > LIMIT {
            bail!("no virtio-serial port of name {name} appeared in {LIMIT:?}");
        }
        std::thread::sleep(PAUSE);
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    // Ends a line that a reboot cut.
    (&file).write_all(b"\n").context("writing to the port")?;
    let other = file.try_clone().context("duplicating the port")?;
    Ok((Sender(Mutex::new(file)), Receiver(other)))
}

fn find(name: &str) -> Option<PathBuf> {
    for entry in std::fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
        let found = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if found.trim() == name {
            let node = Path::new("/dev").join(entry.file_name());
            return node.exists().then_some(node);
        }
    }
    None
}
