// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fixture and the guest's init

use serde::{Deserialize, Serialize};

/// Name of the virtio-serial port.
pub const PORT: &str = "org.bufshare.agent";

/// Kernel command line word that lists the modules to load before [`Ready`].
pub const LOAD: &str = "agent.load=";

/// One line from the host.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host, returned with the answer.
    pub id: u64,
    /// What to do.
    pub command: Command,
}

/// What the agent does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Nothing.
    Ping,
    /// Run a program to its end; its process group is killed when the time is over.
    Run {
        /// Program and arguments.
        argv: Vec<String>,
        /// Added to the environment.
        #[serde(default)]
        env: Vec<(String, String)>,
        /// Standard input.
        #[serde(default)]
        stdin: String,
        /// Limit.
        timeout_ms: u64,
    },
    /// Start a program; its output comes as [`Message::Output`].
    Spawn {
        /// Program and arguments.
        argv: Vec<String>,
        /// Added to the environment.
        #[serde(default)]
        env: Vec<(String, String)>,
        /// Names the process from now on, unused before.
        key: u64,
    },
    /// Send a signal to a spawned process.
    Signal {
        /// The process.
        key: u64,
        /// Its number.
        signal: i32,
    },
    /// Write to a spawned process.
    WriteStdin {
        /// The process.
        key: u64,
        /// A line or more.
        data: String,
    },
    /// Close a spawned process's standard input.
    CloseStdin {
        /// The process.
        key: u64,
    },
    /// Read a whole file.
    ReadFile {
        /// Its path.
        path: String,
    },
    /// Write a file with one write.
    WriteFile {
        /// Its path.
        path: String,
        /// What to write.
        #[serde(with = "crate::bytes")]
        data: Vec<u8>,
    },
    /// Names in a folder, sorted; empty when there is no such folder.
    ListDir {
        /// Its path.
        path: String,
    },
    /// Load a module of the image, and what it needs.
    LoadModule {
        /// As in the image's list.
        name: String,
        /// Its parameters.
        #[serde(default)]
        params: String,
    },
    /// Remove a module.
    UnloadModule {
        /// As in the image's list.
        name: String,
    },
    /// Put the machine to sleep, and answer when it is awake. Nothing else may be
    /// asked meanwhile.
    Sleep,
    /// The kernel's log, as `dmesg` has it.
    KernelLog,
    /// Switch the machine off.
    Poweroff,
    /// Restart the machine.
    Reboot,
}

/// One line from the guest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// The guest has booted; once a boot.
    Ready(Ready),
    /// The answer to a request.
    Answer {
        /// The request's.
        id: u64,
        /// What came of it.
        result: Result<Answer, Failure>,
    },
    /// A spawned process wrote a line.
    Output {
        /// The process.
        key: u64,
        /// Where.
        stream: Stream,
        /// The line, without its end.
        line: String,
    },
    /// A spawned process ended; all of its output came before.
    Ended {
        /// The process.
        key: u64,
        /// How.
        status: Status,
    },
}

/// What a booted guest says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ready {
    /// Kernel release.
    pub kernel: String,
    /// Differs for each boot.
    pub boot_id: String,
    /// Since the kernel's start.
    pub uptime_ms: u64,
    /// What was asked for with [`LOAD`].
    pub modules: Vec<Loaded>,
}

/// One module that was to be loaded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Loaded {
    /// Its name.
    pub name: String,
    /// Why it could not be.
    pub error: Option<String>,
    /// Of a module of ours.
    pub srcversion: Option<String>,
}

/// A request done.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Nothing to report.
    Done,
    /// The program ended.
    Ran(Ran),
    /// The program runs.
    Spawned {
        /// Process id in the guest.
        pid: i32,
    },
    /// A file's content.
    Data(#[serde(with = "crate::bytes")] Vec<u8>),
    /// A text, or a folder's names.
    Lines(Vec<String>),
}

/// A request not done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// What went wrong.
    pub text: String,
    /// The system's error number, where there is one.
    pub errno: Option<i32>,
}

/// What a program that ended left.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ran {
    /// How it ended.
    pub status: Status,
    /// It was killed because the time was over.
    pub timed_out: bool,
    /// Something that it left behind went on to hold its output open: there may be more.
    #[serde(default)]
    pub left_open: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error output.
    pub stderr: String,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// With this exit status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// A process's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error output.
    Err,
}
