// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file in a folder of the host that both VMs have mounted by virtiofs
//!
//! The file system tells nobody that a file was written: a virtio-serial port does, and
//! carries the answer.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result};
use bufshare_agent::ops::WRITTEN;

use super::Transport;
use super::serial::Serial;

pub(super) struct Virtiofs {
    file: File,
    port: Serial,
}

impl Virtiofs {
    /// The file is made if it is not there.
    pub(super) fn open(file: &str) -> Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let opened = options.open(file);
        Ok(Self {
            file: opened.with_context(|| format!("opening {file}"))?,
            port: Serial::open(WRITTEN)?,
        })
    }
}

impl Transport for Virtiofs {
    fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.file.write_all_at(frame, 0).context("writing")?;
        self.port.signal()?;
        self.port.wait()
    }

    fn receive(&mut self, frame: &mut [u8]) -> Result<()> {
        self.port.wait()?;
        self.file.read_exact_at(frame, 0).context("reading")?;
        self.port.signal()
    }
}
