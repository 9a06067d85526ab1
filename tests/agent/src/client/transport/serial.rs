// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio-serial port that is joined to one of the other VM

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{Transport, deadline};
use crate::port;

/// Between two looks whether the other VM's QEMU is there yet.
const PAUSE: Duration = Duration::from_millis(2);

pub(super) struct Serial(File);

impl Serial {
    /// The port of this name.
    pub(super) fn open(name: &str) -> Result<Self> {
        let node = port::node(name)?;
        let file = File::options().read(true).write(true).open(&node);
        let file = file.with_context(|| format!("opening {}", node.display()))?;
        Ok(Self(file))
    }

    fn read(&mut self, mut bytes: &mut [u8]) -> Result<()> {
        let mut late: Option<Instant> = None;
        while !bytes.is_empty() {
            match self.0.read(bytes) {
                // The driver's word for an end of the other side that is not open yet.
                Ok(0) => {
                    if Instant::now() > *late.get_or_insert_with(deadline) {
                        bail!("nobody is at the port's other end");
                    }
                    thread::sleep(PAUSE);
                }
                Ok(count) => bytes = bytes.get_mut(count..).context("more than was asked for")?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("reading from the port"),
            }
        }
        Ok(())
    }

    /// One byte to the other end.
    pub(super) fn signal(&mut self) -> Result<()> {
        self.0.write_all(&[1]).context("writing to the port")
    }

    /// Waits for one.
    pub(super) fn wait(&mut self) -> Result<()> {
        self.read(&mut [0])
    }
}

impl Transport for Serial {
    fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.0.write_all(frame).context("writing to the port")?;
        self.wait()
    }

    fn receive(&mut self, frame: &mut [u8]) -> Result<()> {
        self.read(frame)?;
        self.signal()
    }
}
