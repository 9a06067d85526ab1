// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's monitor

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::wait;

/// A connection to it.
#[derive(Debug)]
pub struct Qmp(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    partial: String,
    events: Vec<Value>,
}

impl Qmp {
    /// Greet it.
    ///
    /// # Errors
    /// When it does not answer as a monitor does.
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_write_timeout(Some(wait::scaled(wait::COMMAND)))?;
        let reader = BufReader::new(stream.try_clone()?);
        let mut inner = Inner {
            stream,
            reader,
            partial: String::new(),
            events: Vec::new(),
        };
        let greeting = inner.receive("the monitor's greeting", wait::scaled(wait::COMMAND))?;
        if greeting.get("QMP").is_none() {
            bail!("not a monitor's greeting: {greeting}");
        }
        let qmp = Self(Mutex::new(inner));
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Run a command; its answer's `return`.
    ///
    /// # Errors
    /// The monitor's own, or that it does not answer.
    pub fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        self.send(command, arguments)?;
        self.answer(command)
    }

    /// Send a command whose answer [`Self::answer`] takes before any other.
    ///
    /// # Errors
    /// That it cannot be sent.
    pub fn send(&self, command: &str, arguments: Value) -> Result<()> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        inner
            .stream
            .write_all(line.as_bytes())
            .with_context(|| format!("sending {command} to the monitor"))
    }

    /// The answer's `return` to the command that was sent last.
    ///
    /// # Errors
    /// The monitor's own, or that it does not answer.
    pub fn answer(&self, command: &str) -> Result<Value> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let what = format!("the monitor's answer to {command}");
        let deadline = Instant::now() + wait::scaled(wait::COMMAND);
        loop {
            let message =
                inner.receive(&what, deadline.saturating_duration_since(Instant::now()))?;
            if let Some(value) = message.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = message.get("error") {
                bail!(
                    "{command}: {}",
                    error
                        .get("desc")
                        .and_then(Value::as_str)
                        .unwrap_or("refused")
                );
            }
            inner.events.push(message);
        }
    }

    /// Wait for an event, which is then forgotten.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn event(&self, name: &str, limit: Duration) -> Result<Value> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + wait::scaled(limit);
        loop {
            let found = inner
                .events
                .iter()
                .position(|event| event.get("event").is_some_and(|found| found == name));
            if let Some(index) = found {
                return Ok(inner.events.remove(index));
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            let message = inner.receive(&format!("the monitor's event {name}"), rest)?;
            inner.events.push(message);
        }
    }
}

impl Inner {
    fn receive(&mut self, what: &str, limit: Duration) -> Result<Value> {
        // No time at all would mean for ever.
        self.stream
            .set_read_timeout(Some(limit.max(Duration::from_millis(1))))?;
        match self.reader.read_line(&mut self.partial) {
            Ok(0) => bail!("QEMU closed its monitor; waited for {what}"),
            Ok(_) => {
                let message = serde_json::from_str(&self.partial)
                    .with_context(|| format!("monitor: {}", self.partial))?;
                self.partial.clear();
                Ok(message)
            }
            Err(error) => Err(error).with_context(|| format!("waited {limit:?} for {what}")),
        }
    }
}
