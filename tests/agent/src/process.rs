// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Processes of the guest: started for the host, reaped whoever started them
//!
//! Process 1 gets every orphan, so one thread waits for all children. It takes
//! the table's lock before it collects one, and starting a child holds the lock
//! until the child is in the table: no end is missed, and none is taken from
//! the standard library's own wait for a child that could not be started.

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt as _;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bufshare_agent::wire::{Message, Ran, Status, Stream};

use crate::port::Port;
use crate::scaled;

/// How long after a program's end its output may stay open; less than the host waits for
/// the answer beyond the program's own time. It ends with the program unless that left
/// another behind.
const OUTPUT_END: Duration = Duration::from_secs(10);

/// All children whose end somebody waits for.
#[derive(Default)]
pub(crate) struct Children {
    table: Mutex<HashMap<i32, mpsc::Sender<Status>>>,
    started: Condvar,
}

impl Children {
    /// Start the thread that collects them.
    pub(crate) fn start() -> Arc<Self> {
        let children = Arc::new(Self::default());
        let other = Arc::clone(&children);
        thread::spawn(move || other.collect());
        children
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, mpsc::Sender<Status>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collect(&self) {
        loop {
            match wait_any() {
                Ok(pid) => {
                    let mut table = self.lock();
                    if let Some(status) = collect_one(pid)
                        && let Some(waiter) = table.remove(&pid)
                    {
                        // It may have lost interest.
                        let _ = waiter.send(status);
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                    let table = self.lock();
                    if table.is_empty() {
                        drop(
                            self.started
                                .wait(table)
                                .unwrap_or_else(PoisonError::into_inner),
                        );
                    }
                }
                Err(_) => {}
            }
        }
    }

    /// Start a program in a process group of its own, with pipes to it.
    fn spawn(&self, argv: &[String], env: &[(String, String)]) -> io::Result<Running> {
        let Some((program, arguments)) = argv.split_first() else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "no program named",
            ));
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut table = self.lock();
        let mut child = command.spawn()?;
        let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        let (sender, ended) = mpsc::channel();
        table.insert(pid, sender);
        drop(table);
        self.started.notify_all();
        Ok(Running {
            pid,
            stdin: child.stdin.take(),
            stdout: child.stdout.take().map(|pipe| Box::new(pipe) as _),
            stderr: child.stderr.take().map(|pipe| Box::new(pipe) as _),
            ended,
        })
    }
}

struct Running {
    pid: i32,
    stdin: Option<ChildStdin>,
    stdout: Option<Box<dyn Read + Send>>,
    stderr: Option<Box<dyn Read + Send>>,
    ended: mpsc::Receiver<Status>,
}

fn wait_any() -> io::Result<i32> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: room for one siginfo_t; nothing is collected.
    let result = unsafe {
        libc::waitid(
            libc::P_ALL,
            0,
            info.as_mut_ptr(),
            libc::WEXITED | libc::WNOWAIT,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zero is a valid siginfo_t, and waitid filled it.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid set the fields of a child's end.
    Ok(unsafe { info.si_pid() })
}

fn collect_one(pid: i32) -> Option<Status> {
    let mut status = 0;
    // SAFETY: room for one status.
    if unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } != pid {
        return None;
    }
    Some(if libc::WIFSIGNALED(status) {
        Status::Signal(libc::WTERMSIG(status))
    } else {
        Status::Exit(libc::WEXITSTATUS(status))
    })
}

fn signal_group(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    if unsafe { libc::kill(-pid, signal) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Run a program to its end.
pub(crate) fn run(
    children: &Children,
    argv: &[String],
    env: &[(String, String)],
    stdin: String,
    limit: Duration,
) -> io::Result<Ran> {
    let running = children.spawn(argv, env)?;
    if let Some(mut pipe) = running.stdin {
        // The program need not read it.
        thread::spawn(move || pipe.write_all(stdin.as_bytes()));
    }
    let stdout = read_all(running.stdout);
    let stderr = read_all(running.stderr);
    let (status, timed_out) = match running.ended.recv_timeout(limit) {
        Ok(status) => (status, false),
        Err(RecvTimeoutError::Timeout) => {
            let _ = signal_group(running.pid, libc::SIGKILL);
            // A process in an uninterruptible wait is not waited for.
            let status = running.ended.recv_timeout(scaled(Duration::from_secs(2)));
            (status.unwrap_or(Status::Signal(0)), true)
        }
        Err(RecvTimeoutError::Disconnected) => (Status::Signal(0), false),
    };
    let deadline = Instant::now() + scaled(OUTPUT_END);
    let mut left_open = false;
    let mut collect = |pipe: mpsc::Receiver<Vec<u8>>| {
        let mut bytes = Vec::new();
        loop {
            match pipe.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(part) => bytes.extend(part),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    left_open = true;
                    break;
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (stdout, stderr) = (collect(stdout), collect(stderr));
    Ok(Ran {
        status,
        timed_out,
        left_open,
        stdout,
        stderr,
    })
}

fn read_all(pipe: Option<Box<dyn Read + Send>>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    if let Some(mut pipe) = pipe {
        thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                if sender
                    .send(buffer.get(..count).unwrap_or_default().to_vec())
                    .is_err()
                {
                    break;
                }
            }
        });
    }
    receiver
}

/// The processes that the host named.
#[derive(Default)]
pub(crate) struct Named(Mutex<HashMap<u64, Handle>>);

struct Handle {
    pid: i32,
    stdin: Option<ChildStdin>,
}

impl Named {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Start a program whose output goes to the host line by line.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        children: &Children,
        port: &Arc<Port>,
        argv: &[String],
        env: &[(String, String)],
        key: u64,
    ) -> io::Result<i32> {
        let running = children.spawn(argv, env)?;
        let pid = running.pid;
        self.lock().insert(
            key,
            Handle {
                pid,
                stdin: running.stdin,
            },
        );
        let readers = [(Stream::Out, running.stdout), (Stream::Err, running.stderr)]
            .map(|(stream, pipe)| forward(port, key, stream, pipe));
        let (named, port) = (Arc::clone(self), Arc::clone(port));
        let ended = running.ended;
        thread::spawn(move || {
            let status = ended.recv().unwrap_or(Status::Signal(0));
            // Its number may soon be somebody else's.
            named.lock().remove(&key);
            for reader in readers.into_iter().flatten() {
                let _ = reader.join();
            }
            port.send(&Message::Ended { key, status });
        });
        Ok(pid)
    }

    /// Send a signal to one.
    pub(crate) fn signal(&self, key: u64, signal: i32) -> io::Result<()> {
        let table = self.lock();
        let handle = table.get(&key).ok_or_else(ended)?;
        signal_group(handle.pid, signal)
    }

    /// Write to one.
    pub(crate) fn write(&self, key: u64, data: &str) -> io::Result<()> {
        let mut table = self.lock();
        let pipe = table
            .get_mut(&key)
            .and_then(|handle| handle.stdin.as_mut())
            .ok_or_else(ended)?;
        pipe.write_all(data.as_bytes())
    }

    /// Close one's standard input.
    pub(crate) fn close(&self, key: u64) -> io::Result<()> {
        self.lock().get_mut(&key).ok_or_else(ended)?.stdin = None;
        Ok(())
    }
}

fn ended() -> io::Error {
    io::Error::from_raw_os_error(libc::ESRCH)
}

fn forward(
    port: &Arc<Port>,
    key: u64,
    stream: Stream,
    pipe: Option<Box<dyn Read + Send>>,
) -> Option<thread::JoinHandle<()>> {
    let pipe = pipe?;
    let port = Arc::clone(port);
    Some(thread::spawn(move || {
        let mut reader = BufReader::with_capacity(1 << 16, pipe);
        let mut line = Vec::new();
        while let Ok(1..) = reader.read_until(b'\n', &mut line) {
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            let text = String::from_utf8_lossy(&line).into_owned();
            port.send(&Message::Output {
                key,
                stream,
                line: text,
            });
            line.clear();
        }
    }))
}
