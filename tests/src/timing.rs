// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a benchmark has processes in guests do, and how long that took there
//!
//! Times are those of the guest's own clock. All operations of one call follow each other in
//! the guest, so what the host does is not in them.

use std::time::Duration;

use anyhow::{Result, bail};
pub use bufshare_agent::ops::Carrier;
use bufshare_agent::ops::{Op, Yield};

use crate::client::{Client, Consumer, Export};
use crate::wait;

/// For all frames of one call, on an emulated machine.
const LIMIT: Duration = Duration::from_secs(300);

/// One VM's end of what carries frames without bufshare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transport(u64);

/// What the process was asked for and has not answered yet.
#[derive(Debug)]
#[must_use]
pub struct Begun {
    id: u64,
    what: &'static str,
}

/// # Errors
/// Of all of them: [`crate::client::Refused`], or that there was no answer.
#[allow(clippy::missing_errors_doc, reason = "said above")]
impl Client {
    /// Open an end of what carries frames.
    pub fn open(&mut self, carrier: Carrier) -> Result<Transport> {
        match self.call(Op::Open(carrier), LIMIT)? {
            Yield::Opened { transport } => Ok(Transport(transport)),
            other => bail!("odd outcome {other:?}"),
        }
    }

    /// Send frames of `size` bytes, each when the last was received: how long each took.
    pub fn send(&mut self, transport: Transport, size: u64, frames: u64) -> Result<Vec<Duration>> {
        let transport = transport.0;
        self.timed(Op::Send {
            transport,
            size,
            frames,
        })
    }

    /// Begin to receive them.
    pub fn begin_receiving(
        &mut self,
        transport: Transport,
        size: u64,
        frames: u64,
    ) -> Result<Begun> {
        let id = self.begin(Op::Receive {
            transport: transport.0,
            size,
            frames,
        })?;
        Ok(Begun {
            id,
            what: "receive frames",
        })
    }

    /// Push frames of one export, each when the last was returned: how long each took.
    pub fn hand_over(&mut self, export: &Export, frames: u64) -> Result<Vec<Duration>> {
        self.timed(Op::HandOver {
            export: export.number,
            frames,
            timeout_ms: limit_ms()?,
        })
    }

    /// Begin to give so many frames back as they come.
    pub fn begin_consuming(&mut self, consumer: &Consumer, frames: u64) -> Result<Begun> {
        let id = self.begin(Op::Consumed {
            consumers: vec![consumer.number],
            frames,
            timeout_ms: limit_ms()?,
        })?;
        Ok(Begun {
            id,
            what: "give frames back",
        })
    }

    /// Wait until it is done.
    pub fn done(&mut self, begun: Begun) -> Result<()> {
        match self.finish(begun.id, begun.what, LIMIT)? {
            Yield::Done => Ok(()),
            Yield::Frames { sequences, .. } if sequences.is_empty() => Ok(()),
            other => bail!("odd outcome {other:?}"),
        }
    }

    /// Import and map a buffer so often, each time to its first byte: how long that took.
    pub fn first_bytes(&mut self, id: &str, count: u64) -> Result<Vec<Duration>> {
        let id = id.to_owned();
        self.timed(Op::FirstBytes { id, count })
    }

    /// QUERY so often: how long each took.
    pub fn ask(&mut self, id: &str, count: u64) -> Result<Vec<Duration>> {
        let id = id.to_owned();
        self.timed(Op::Ask { id, count })
    }

    fn timed(&mut self, op: Op) -> Result<Vec<Duration>> {
        match self.call(op, LIMIT)? {
            Yield::Times(times) => Ok(times.into_iter().map(Duration::from_nanos).collect()),
            other => bail!("odd outcome {other:?}"),
        }
    }
}

fn limit_ms() -> Result<u64> {
    Ok(u64::try_from(wait::scaled(wait::COMMAND).as_millis())?)
}
