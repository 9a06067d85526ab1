// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Processes that never outlive the test
//!
//! Each has a process group of its own and gets SIGKILL when the test program
//! ends however it ends. That signal really comes at the end of the *thread*
//! that started the process, so one thread that never ends starts them all.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::wait;

type Job = (Command, Vec<OwnedFd>, mpsc::Sender<io::Result<Child>>);

/// A running process.
#[derive(Debug)]
pub struct Process {
    child: Child,
    what: String,
    status: Option<ExitStatus>,
}

impl Process {
    /// Start a program; `keep` are descriptors that it inherits under the same
    /// numbers, and all that it writes goes to `log`.
    ///
    /// # Errors
    /// When the log cannot be made or the program not be started.
    pub fn start(what: &str, mut command: Command, keep: Vec<OwnedFd>, log: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("making {}", log.display()))?;
        command.stdout(file.try_clone()?).stderr(file);
        Self::spawn(what, command, keep)
    }

    /// The same of a command that says where its output goes.
    fn spawn(what: &str, mut command: Command, keep: Vec<OwnedFd>) -> Result<Self> {
        command.stdin(Stdio::null()).process_group(0);
        let numbers: Vec<i32> = keep.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect();
        let test = std::process::id();
        let prepare = move || prepare(&numbers, test);
        // SAFETY: only async-signal-safe calls in there.
        unsafe { command.pre_exec(prepare) };
        let (sender, receiver) = mpsc::channel();
        starter()
            .send((command, keep, sender))
            .ok()
            .context("the starting thread is gone")?;
        let child = receiver.recv().context("the starting thread is gone")?;
        let child = child.with_context(|| format!("starting {what}"))?;
        Ok(Self {
            child,
            what: what.to_owned(),
            status: None,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// From the system.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    /// Fail if it has ended.
    ///
    /// # Errors
    /// That it has.
    pub fn alive(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended: {status}", self.what),
        }
    }

    /// Wait for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.what);
        wait::until(&what, limit, || self.ended())
    }

    /// Send it a signal.
    ///
    /// # Errors
    /// From the system.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        if self.ended()?.is_none() {
            let pid = i32::try_from(self.pid())?;
            // SAFETY: no memory is involved, and the process is not reaped yet.
            if unsafe { libc::kill(pid, signal) } != 0 {
                return Err(io::Error::last_os_error())
                    .with_context(|| format!("signalling {}", self.what));
            }
        }
        Ok(())
    }

    /// SIGSTOP, and wait until no thread of it runs any more.
    ///
    /// # Errors
    /// From the system, or when one goes on.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(libc::SIGSTOP)?;
        let tasks = format!("/proc/{}/task", self.pid());
        wait::until("all threads to be stopped", wait::COMMAND, || {
            for task in std::fs::read_dir(&tasks).with_context(|| tasks.clone())? {
                // A thread may end meanwhile.
                let stat = std::fs::read_to_string(task?.path().join("stat"));
                if stat.is_ok_and(|stat| !stat.contains(") T ")) {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
    }

    /// SIGKILL for it and all that it started, and reap it.
    pub fn kill(&mut self) {
        if let Ok(group) = i32::try_from(self.child.id())
            && self.status.is_none()
        {
            // SAFETY: no memory is involved; not reaped, so the number is its own.
            unsafe { libc::kill(-group, libc::SIGKILL) };
            let started = Instant::now();
            while self.ended().is_ok_and(|status| status.is_none())
                && started.elapsed() < wait::scaled(wait::STOP)
            {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Run a program to its end; all that it writes is kept apart.
///
/// # Errors
/// When it cannot be started or does not end in time.
pub fn output(what: &str, mut command: Command, limit: Duration) -> Result<Output> {
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?);
    let mut process = Process::spawn(what, command, Vec::new())?;
    let status = process.wait(limit);
    let read = |file: &mut File| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let (stdout, stderr) = (read(&mut stdout)?, read(&mut stderr)?);
    let status = status.with_context(|| String::from_utf8_lossy(&stderr).into_owned())?;
    Ok(Output {
        status,
        stdout,
        stderr,
    })
}

fn starter() -> &'static mpsc::Sender<Job> {
    static STARTER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    STARTER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, keep, answer) in receiver {
                let child = command.spawn();
                drop(keep);
                // Nobody waiting: the child is dropped, and killed with us.
                let _ = answer.send(child);
            }
        });
        sender
    })
}

/// In the child, before it becomes the program.
fn prepare(keep: &[i32], test: u32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no memory is involved.
    if u32::try_from(unsafe { libc::getppid() }) != Ok(test) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // A VM that aborts would write its RAM to the disk.
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a limit that lives during the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for number in keep {
        // SAFETY: no memory is involved.
        if unsafe { libc::fcntl(*number, libc::F_SETFD, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The number of a descriptor that a program will inherit.
#[must_use]
pub fn number(descriptor: &OwnedFd) -> i32 {
    descriptor.as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_that_is_run_to_its_end_leaves_all_it_wrote() {
        let limit = Duration::from_secs(60);
        let output = output("a shell", shell("echo out; echo err >&2; exit 3"), limit).unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(output.stdout, b"out\n");
        assert_eq!(output.stderr, b"err\n");
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_and_quoted() {
        let command = shell("echo why >&2; exec sleep 1000");
        let error = output("a shell", command, Duration::from_secs(1)).unwrap_err();
        let said = format!("{error:#}");
        assert!(
            said.contains("why") && said.contains("the end of a shell"),
            "{said}"
        );
    }
}
