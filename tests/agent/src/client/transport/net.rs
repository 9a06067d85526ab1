// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! TCP over virtio-net

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context as _, Result};

use super::{LIMIT, Transport};

pub(super) struct Net {
    /// Until somebody has connected.
    listener: Option<TcpListener>,
    stream: Option<TcpStream>,
}

impl Net {
    /// The end that is connected to.
    pub(super) fn listen(address: &str) -> Result<Self> {
        let listener = TcpListener::bind(address);
        Ok(Self {
            listener: Some(listener.with_context(|| format!("listening on {address}"))?),
            stream: None,
        })
    }

    /// The other one.
    pub(super) fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address);
        let stream = stream.with_context(|| format!("connecting to {address}"))?;
        Ok(Self {
            listener: None,
            stream: Some(prepared(stream)?),
        })
    }

    fn stream(&mut self) -> Result<&mut TcpStream> {
        if let Some(listener) = self.listener.take() {
            self.stream = Some(prepared(listener.accept().context("accepting")?.0)?);
        }
        self.stream.as_mut().context("nobody has connected")
    }
}

/// A byte that answers is not to wait for more.
fn prepared(stream: TcpStream) -> Result<TcpStream> {
    stream.set_nodelay(true)?;
    let limit = Some(crate::scaled(LIMIT));
    stream.set_read_timeout(limit)?;
    stream.set_write_timeout(limit)?;
    Ok(stream)
}

impl Transport for Net {
    fn send(&mut self, frame: &[u8]) -> Result<()> {
        let stream = self.stream()?;
        stream.write_all(frame).context("sending")?;
        stream
            .read_exact(&mut [0])
            .context("waiting for the answer")
    }

    fn receive(&mut self, frame: &mut [u8]) -> Result<()> {
        let stream = self.stream()?;
        stream.read_exact(frame).context("receiving")?;
        stream.write_all(&[1]).context("answering")
    }
}
