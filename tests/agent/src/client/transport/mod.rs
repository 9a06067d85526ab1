// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What carries a frame from this VM's memory into another's: what bufshare is measured
//! against
//!
//! Both ends are in guests, so that no host program takes part in what is timed. The sender
//! times, by the clock of its own VM: from the first byte to the byte that the receiver sends
//! back when it has all of the frame in memory of its own.

mod ivshmem;
mod net;
mod serial;
mod virtiofs;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bufshare_agent::ops::{Carrier, SERIAL};

/// For a frame to be carried by an emulated machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of a frame's number, which is both its first and its last bytes.
const NUMBER: usize = size_of::<u64>();

/// One end of something that carries frames.
pub(crate) trait Transport {
    /// Sends a frame, and waits until the receiver says that it has it.
    fn send(&mut self, frame: &[u8]) -> Result<()>;

    /// Receives a frame of that length, and says so.
    fn receive(&mut self, frame: &mut [u8]) -> Result<()>;
}

/// Opens this VM's end of it.
pub(crate) fn open(carrier: &Carrier) -> Result<Box<dyn Transport>> {
    Ok(match carrier {
        Carrier::Listen { address } => Box::new(net::Net::listen(address)?),
        Carrier::Connect { address } => Box::new(net::Net::connect(address)?),
        Carrier::Serial => Box::new(serial::Serial::open(SERIAL)?),
        Carrier::Virtiofs { file } => Box::new(virtiofs::Virtiofs::open(file)?),
        Carrier::Ivshmem => Box::new(ivshmem::Ivshmem::open()?),
    })
}

/// Sends so many frames one after the other. How long each took.
pub(crate) fn send(
    transport: &mut dyn Transport,
    frame: &mut [u8],
    frames: u64,
) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for number in 0..frames {
        let started = Instant::now();
        let bytes = number.to_ne_bytes();
        let (first, last) = ends(frame)?;
        first.copy_from_slice(&bytes);
        last.copy_from_slice(&bytes);
        transport.send(frame)?;
        times.push(started.elapsed());
    }
    Ok(times)
}

/// Receives so many frames, and sees that each is the one that was sent.
pub(crate) fn receive(transport: &mut dyn Transport, frame: &mut [u8], frames: u64) -> Result<()> {
    for number in 0..frames {
        transport.receive(frame)?;
        let (first, last) = ends(frame)?;
        let found = [first, last].map(|bytes| u64::from_ne_bytes(*bytes));
        ensure!(found == [number; 2], "frame {number} came as {found:?}");
    }
    Ok(())
}

type Number = [u8; NUMBER];

/// The first and the last bytes of a frame.
fn ends(frame: &mut [u8]) -> Result<(&mut Number, &mut Number)> {
    let (first, rest) = frame.split_first_chunk_mut().context("a frame too short")?;
    Ok((first, rest.last_chunk_mut().context("a frame too short")?))
}

/// When a frame has to be there.
fn deadline() -> Instant {
    Instant::now() + crate::scaled(LIMIT)
}
