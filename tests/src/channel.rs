// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The conversation with a guest's agent
//!
//! A reader thread sorts what comes: answers to who asked, output to who
//! started the process. A second [`Ready`] means that the guest was restarted:
//! what was under way then fails at once.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use bufshare_agent::wire::{
    Answer, Command, Failure, Message, Ran, Ready, Request, Status, Stream,
};
use serde_json::json;

use crate::wait;

/// A guest's refusal.
#[derive(Debug, Clone, thiserror::Error)]
#[error("guest {vm}: {text}")]
pub struct GuestError {
    /// Which guest.
    pub vm: String,
    /// What it said.
    pub text: String,
    /// With this error number.
    pub errno: Option<i32>,
}

/// The error number of a guest's refusal.
#[must_use]
pub fn errno_of(error: &anyhow::Error) -> Option<i32> {
    error.downcast_ref::<GuestError>()?.errno
}

/// A program's guest is not there any more; all that came from the program has been read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}: the guest was restarted or is gone")]
pub struct Gone(pub String);

/// The host's end.
#[derive(Debug)]
pub struct Channel {
    name: String,
    writer: Mutex<UnixStream>,
    state: Mutex<State>,
    changed: Condvar,
    transcript: Transcript,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    boots: Vec<Ready>,
    closed: bool,
    pending: HashMap<u64, mpsc::Sender<Result<Answer, Failure>>>,
    processes: HashMap<u64, mpsc::Sender<Event>>,
}

/// What a process in the guest did.
#[derive(Debug, Clone)]
pub enum Event {
    /// It wrote a line.
    Line(Stream, String),
    /// It ended.
    Ended(Status),
}

/// All that is said, with times, one JSON object a line.
#[derive(Debug, Clone)]
pub struct Transcript {
    file: Arc<Mutex<File>>,
    started: Instant,
}

impl Transcript {
    /// Begin one.
    ///
    /// # Errors
    /// From the file system.
    pub fn new(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self {
            file: Arc::new(Mutex::new(file)),
            started: Instant::now(),
        })
    }

    /// Add a line; long ones are cut.
    pub fn write(&self, vm: &str, direction: &str, text: &str) {
        let cut: String = text.trim_end().chars().take(2000).collect();
        let line = json!({ "ms": u64::try_from(self.started.elapsed().as_millis()).ok(), "vm": vm, direction: cut });
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(file, "{line}");
    }
}

impl Channel {
    /// Serve a connection.
    ///
    /// # Errors
    /// When it cannot be duplicated.
    pub fn new(name: &str, stream: UnixStream, transcript: Transcript) -> Result<Arc<Self>> {
        stream.set_write_timeout(Some(wait::scaled(wait::COMMAND)))?;
        let reader = stream.try_clone()?;
        let channel = Arc::new(Self {
            name: name.to_owned(),
            writer: Mutex::new(stream),
            state: Mutex::default(),
            changed: Condvar::new(),
            transcript,
            next: AtomicU64::new(1),
        });
        let other = Arc::clone(&channel);
        thread::spawn(move || other.read(reader));
        Ok(channel)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, stream: UnixStream) {
        let mut reader = BufReader::with_capacity(1 << 16, stream);
        let mut line = Vec::new();
        while let Ok(1..) = reader.read_until(b'\n', &mut line) {
            let text = String::from_utf8_lossy(&line);
            self.transcript.write(&self.name, "from", &text);
            // Lines that a restart cut are no messages.
            if let Ok(message) = serde_json::from_slice(&line) {
                self.sort(message);
            }
            line.clear();
        }
        let mut state = self.lock();
        state.closed = true;
        state.pending.clear();
        state.processes.clear();
        self.changed.notify_all();
    }

    fn sort(&self, message: Message) {
        let mut state = self.lock();
        match message {
            Message::Ready(ready) => {
                state.pending.clear();
                state.processes.clear();
                state.boots.push(ready);
                self.changed.notify_all();
            }
            Message::Answer { id, result } => {
                if let Some(sender) = state.pending.remove(&id) {
                    let _ = sender.send(result);
                }
            }
            Message::Output { key, stream, line } => {
                if let Some(sender) = state.processes.get(&key) {
                    let _ = sender.send(Event::Line(stream, line));
                }
            }
            Message::Ended { key, status } => {
                if let Some(sender) = state.processes.remove(&key) {
                    let _ = sender.send(Event::Ended(status));
                }
            }
        }
    }

    /// How often the guest has booted.
    #[must_use]
    pub fn boots(&self) -> usize {
        self.lock().boots.len()
    }

    /// Wait until the guest has booted for the `count`th time.
    ///
    /// # Errors
    /// When it does not in time; `alive` says why sooner.
    pub fn booted(
        &self,
        count: usize,
        limit: Duration,
        mut alive: impl FnMut() -> Result<()>,
    ) -> Result<Ready> {
        let limit = wait::scaled(limit);
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if let Some(ready) = state.boots.get(count.saturating_sub(1)) {
                return Ok(ready.clone());
            }
            if state.closed {
                bail!(
                    "guest {}: QEMU closed the channel before the guest was up",
                    self.name
                );
            }
            if Instant::now() >= deadline {
                bail!("guest {}: waited {limit:?} for boot {count}", self.name);
            }
            let pause = Duration::from_millis(200);
            state = self
                .changed
                .wait_timeout(state, pause)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            alive()?;
        }
    }

    /// Ask and do not wait.
    ///
    /// # Errors
    /// When QEMU is gone.
    pub fn ask(&self, command: Command) -> Result<Pending> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel();
        {
            let mut state = self.lock();
            if state.closed {
                bail!("guest {}: its machine is gone", self.name);
            }
            state.pending.insert(id, sender);
        }
        let mut line = serde_json::to_string(&Request { id, command })?;
        line.push('\n');
        self.transcript.write(&self.name, "to", &line);
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer
            .write_all(line.as_bytes())
            .with_context(|| format!("guest {}: sending", self.name))?;
        let what: String = line.trim_end().chars().take(200).collect();
        Ok(Pending {
            vm: self.name.clone(),
            what,
            receiver,
        })
    }

    /// Ask and wait.
    ///
    /// # Errors
    /// A [`GuestError`], or that there was no answer.
    pub fn call(&self, command: Command, limit: Duration) -> Result<Answer> {
        self.ask(command)?.wait(limit)
    }

    /// Start a program in the guest.
    ///
    /// # Errors
    /// As [`Channel::call`].
    pub fn spawn(self: &Arc<Self>, argv: &[&str]) -> Result<Program> {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, events) = mpsc::channel();
        self.lock().processes.insert(key, sender);
        let command = Command::Spawn {
            argv: owned(argv),
            env: Vec::new(),
            key,
        };
        let answer = self
            .call(command, wait::COMMAND)
            .with_context(|| format!("starting {argv:?}"))?;
        let Answer::Spawned { pid } = answer else {
            bail!("guest {}: odd answer {answer:?}", self.name)
        };
        Ok(Program {
            channel: Arc::clone(self),
            key,
            pid,
            what: argv.join(" "),
            events,
            seen: VecDeque::new(),
            status: None,
        })
    }
}

/// A question under way.
#[derive(Debug)]
pub struct Pending {
    vm: String,
    what: String,
    receiver: mpsc::Receiver<Result<Answer, Failure>>,
}

impl Pending {
    /// Wait for the answer.
    ///
    /// # Errors
    /// A [`GuestError`], or that there was no answer.
    pub fn wait(&self, limit: Duration) -> Result<Answer> {
        let limit = wait::scaled(limit);
        match self.receiver.recv_timeout(limit) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Failure { text, errno })) => Err(GuestError {
                vm: self.vm.clone(),
                text,
                errno,
            }
            .into()),
            Err(RecvTimeoutError::Timeout) => Err(anyhow!(
                "guest {}: waited {limit:?} for {}",
                self.vm,
                self.what
            )),
            Err(RecvTimeoutError::Disconnected) => Err(anyhow!(
                "guest {}: restarted or gone during {}",
                self.vm,
                self.what
            )),
        }
    }
}

/// A program that runs in the guest. It is killed when this is dropped.
#[derive(Debug)]
pub struct Program {
    channel: Arc<Channel>,
    key: u64,
    pid: i32,
    what: String,
    events: mpsc::Receiver<Event>,
    seen: VecDeque<String>,
    status: Option<Status>,
}

impl Program {
    /// Its process id in the guest.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The next line of its standard output.
    ///
    /// # Errors
    /// When it ends before, or none comes in time.
    pub fn line(&mut self, limit: Duration) -> Result<String> {
        self.line_within(wait::scaled(limit))
    }

    /// The next line of its standard output. The limit is not scaled.
    ///
    /// # Errors
    /// As [`Program::line`].
    pub fn line_within(&mut self, limit: Duration) -> Result<String> {
        match self.try_line(limit)? {
            Some(line) => Ok(line),
            None => bail!(
                "{}: waited {limit:?} for a line of output{}",
                self.what,
                self.complaint()
            ),
        }
    }

    /// The next line of its standard output, if one comes within just this time.
    ///
    /// # Errors
    /// When it ends before.
    pub fn try_line(&mut self, limit: Duration) -> Result<Option<String>> {
        let deadline = Instant::now() + limit;
        loop {
            match self.next(deadline.saturating_duration_since(Instant::now()))? {
                Some(Event::Line(Stream::Out, line)) => return Ok(Some(line)),
                Some(Event::Line(Stream::Err, line)) => {
                    if self.seen.len() == 20 {
                        self.seen.pop_front();
                    }
                    self.seen.push_back(line);
                }
                Some(Event::Ended(status)) => {
                    bail!("{}: it ended ({status:?}){}", self.what, self.complaint())
                }
                None => return Ok(None),
            }
        }
    }

    /// Wait for its end; lines of output on the way are given to `line`, after those of its
    /// standard error that came before lines of its standard output.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn end(&mut self, limit: Duration, mut line: impl FnMut(Stream, String)) -> Result<Status> {
        let limit = wait::scaled(limit);
        let deadline = Instant::now() + limit;
        for text in self.seen.drain(..) {
            line(Stream::Err, text);
        }
        loop {
            match self.next(deadline.saturating_duration_since(Instant::now()))? {
                Some(Event::Line(stream, text)) => line(stream, text),
                Some(Event::Ended(status)) => return Ok(status),
                None => bail!(
                    "{}: waited {limit:?} for its end{}",
                    self.what,
                    self.complaint()
                ),
            }
        }
    }

    fn next(&mut self, limit: Duration) -> Result<Option<Event>> {
        if let Some(status) = self.status {
            return Ok(Some(Event::Ended(status)));
        }
        match self.events.recv_timeout(limit) {
            Ok(event) => {
                if let Event::Ended(status) = event {
                    self.status = Some(status);
                }
                Ok(Some(event))
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Gone(self.what.clone()).into()),
        }
    }

    fn complaint(&self) -> String {
        self.seen
            .iter()
            .fold(String::new(), |text, line| text + "; " + line)
    }

    /// Write to its standard input.
    ///
    /// # Errors
    /// As [`Channel::call`].
    pub fn write(&self, data: &str) -> Result<()> {
        let command = Command::WriteStdin {
            key: self.key,
            data: data.to_owned(),
        };
        self.channel.call(command, wait::COMMAND).map(drop)
    }

    /// Close its standard input.
    ///
    /// # Errors
    /// As [`Channel::call`].
    pub fn end_input(&self) -> Result<()> {
        let command = Command::CloseStdin { key: self.key };
        self.channel.call(command, wait::COMMAND).map(drop)
    }

    /// Send a signal to it and all that it started.
    ///
    /// # Errors
    /// As [`Channel::call`].
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.channel
            .call(
                Command::Signal {
                    key: self.key,
                    signal,
                },
                wait::COMMAND,
            )
            .map(drop)
    }

    /// SIGKILL, and wait for the end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(libc::SIGKILL)?;
        self.end(wait::COMMAND, |_, _| {}).map(drop)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.status.is_none() {
            // Not waited for; the guest may be gone.
            let _ = self.channel.ask(Command::Signal {
                key: self.key,
                signal: libc::SIGKILL,
            });
        }
    }
}

/// Output of a program that was to succeed.
///
/// # Errors
/// When it did not.
pub fn succeeded(what: &str, ran: Ran) -> Result<String> {
    if ran.timed_out {
        bail!(
            "{what}: killed after its time was over: {}{}",
            ran.stdout.trim_end(),
            ran.stderr.trim_end()
        );
    }
    if ran.left_open {
        bail!("{what}: it left something behind that holds its output open");
    }
    if ran.status != Status::Exit(0) {
        bail!(
            "{what}: {:?}: {}{}",
            ran.status,
            ran.stdout.trim_end(),
            ran.stderr.trim_end()
        );
    }
    Ok(ran.stdout)
}

pub(crate) fn owned(argv: &[&str]) -> Vec<String> {
    argv.iter().map(|word| (*word).to_owned()).collect()
}
