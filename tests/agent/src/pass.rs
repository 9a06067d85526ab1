// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/init with-dmabuf NUMBER BYTES PROGRAM [ARGUMENT...]`: run a program that
//! inherits a dma-buf of the bufshare device as descriptor NUMBER, filled with the
//! pattern of seed 1

use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use bufshare::{Device, Rights};
use bufshare_agent::ops::pattern;

/// Becomes that program.
pub(crate) fn run(words: &[String]) -> Result<()> {
    let [number, size, program, arguments @ ..] = words else {
        bail!("with-dmabuf NUMBER BYTES PROGRAM [ARGUMENT...]")
    };
    let number: i32 = number.parse().context("NUMBER")?;
    let buffer = Device::open()?.alloc(size.parse().context("BYTES")?)?;
    let mapping = buffer.map(Rights::RW)?;
    let access = mapping.begin(Rights::WRITE)?;
    access.write_at(0, &pattern(1, buffer.len() as u64))?;
    access.finish()?;
    let from = std::os::fd::AsFd::as_fd(&buffer).as_raw_fd();
    // SAFETY: nothing of this program uses descriptor NUMBER: it becomes another
    // program at once. dup2 leaves out the close-on-exec flag.
    if unsafe { libc::dup2(from, number) } < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Err(Command::new(program).args(arguments).exec().into())
}
