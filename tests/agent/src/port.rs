// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The virtio-serial port to the fixture

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bufshare_agent::wire::Message;

/// How long the port may take to appear after its driver was bound.
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(2);
const CLASS: &str = "/sys/class/virtio-ports";
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_console";

/// The port, shared by all threads.
pub(crate) struct Port {
    name: String,
    /// None while the port is off.
    file: Mutex<Option<Arc<File>>>,
    on: Condvar,
}

impl Port {
    /// Find the port by its name, and open it.
    pub(crate) fn open(name: &str) -> Result<Arc<Self>> {
        let file = open(name)?;
        Ok(Arc::new(Self {
            name: name.to_owned(),
            file: Mutex::new(Some(Arc::new(file))),
            on: Condvar::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<File>>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open port, once it is on.
    fn when_on(&self) -> (MutexGuard<'_, Option<Arc<File>>>, Arc<File>) {
        let mut slot = self.lock();
        loop {
            if let Some(file) = slot.clone() {
                return (slot, file);
            }
            slot = self.on.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Send one message, as soon as the port is on. Errors are for the console: there
    /// is nobody else to report them to.
    pub(crate) fn send(&self, message: &Message) {
        let mut line = match serde_json::to_vec(message) {
            Ok(line) => line,
            Err(error) => {
                eprintln!("bufshare-agent: {error}");
                return;
            }
        };
        line.push(b'\n');
        // Held while it writes, or messages would mix.
        let (_slot, file) = self.when_on();
        if let Err(error) = (&*file).write_all(&line) {
            eprintln!("bufshare-agent: writing to the port: {error}");
        }
    }

    /// Do something, a sleep of the machine, with the port's driver unbound: what is
    /// sent meanwhile waits, and what the host sends before the answer may be lost.
    ///
    /// The driver of Linux 7.3 does not bring a port through a sleep. When it wakes, it
    /// asks whether the host's side is open before it has given the device a buffer
    /// to answer in. QEMU drops the answer, and whoever writes to the port waits
    /// without end.
    ///
    /// The outer error is that the port did not come back.
    pub(crate) fn without<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let mut slot = self.lock();
        let port = find(&self.name).with_context(|| format!("no port {}", self.name))?;
        let device = std::fs::canonicalize(port.class.join("device"))
            .with_context(|| format!("the device of {}", port.class.display()))?;
        let device = device.file_name().context("a device without a name")?;
        let device = device.to_string_lossy().into_owned();
        *slot = None;
        write(&format!("{DRIVER}/unbind"), &device)?;
        let result = work();
        write(&format!("{DRIVER}/bind"), &device)?;
        *slot = Some(Arc::new(open(&self.name)?));
        self.on.notify_all();
        Ok(result)
    }
}

/// The receiving side.
pub(crate) struct Receiver(pub(crate) Arc<Port>);

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let file = self.0.when_on().1;
            match (&*file).read(buffer) {
                // The driver says end of file as long as the host's side is not open.
                Ok(0) => std::thread::sleep(PAUSE),
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                    let now = self.0.when_on().1;
                    if Arc::ptr_eq(&now, &file) {
                        return Err(error);
                    }
                }
                other => return other,
            }
        }
    }
}

fn write(path: &str, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {text} to {path}"))
}

/// The device node of the port of this name, once there is one.
pub(crate) fn node(name: &str) -> Result<PathBuf> {
    let started = Instant::now();
    loop {
        if let Some(port) = find(name) {
            return Ok(port.node);
        }
        let limit = crate::scaled(LIMIT);
        if started.elapsed() > limit {
            bail!("no virtio-serial port of name {name} appeared in {limit:?}");
        }
        std::thread::sleep(PAUSE);
    }
}

fn open(name: &str) -> Result<File> {
    let node = node(name)?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&node)
        .with_context(|| format!("opening {}", node.display()))?;
    // Ends a line that a reboot cut.
    file.write_all(b"\n").context("writing to the port")?;
    Ok(file)
}

struct Found {
    /// Of sysfs.
    class: PathBuf,
    node: PathBuf,
}

fn find(name: &str) -> Option<Found> {
    for entry in std::fs::read_dir(CLASS).ok()?.flatten() {
        let class = entry.path();
        let found = std::fs::read_to_string(class.join("name")).unwrap_or_default();
        if found.trim() == name {
            let node = Path::new("/dev").join(entry.file_name());
            return node.exists().then_some(Found { class, node });
        }
    }
    None
}
