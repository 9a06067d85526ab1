// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Process 1: prepares the machine, then serves the fixture

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bufshare_agent::wire::{Answer, Command, Failure, LOAD, Loaded, Message, PORT, Ready, Request};

use crate::modules;
use crate::port::{Port, Receiver};
use crate::process::{self, Children, Named};

/// What is mounted where; the image has none of it.
const MOUNTS: &[(&str, &str)] = &[
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("debugfs", "/sys/kernel/debug"),
];

/// The DMA API's checks say the first of their findings alone, unless they are asked.
const ALL_DMA_FAULTS: &str = "/sys/kernel/debug/dma-api/all_errors";

const POWER_STATE: &str = "/sys/power/state";

/// Never returns while the machine runs.
pub(crate) fn run() -> Result<()> {
    let Err(error) = serve();
    eprintln!("bufshare-agent: {error:#}");
    power(libc::LINUX_REBOOT_CMD_POWER_OFF)?;
    Ok(())
}

struct Agent {
    port: Arc<Port>,
    children: Arc<Children>,
    named: Arc<Named>,
}

fn serve() -> Result<Infallible> {
    for (kind, folder) in MOUNTS {
        // Not every kernel has a debugfs.
        if let Err(error) = mount(kind, folder) {
            eprintln!("bufshare-agent: mounting {folder}: {error}");
        }
    }
    // Only a kernel of scripts/debug-kernel has these checks.
    if Path::new(ALL_DMA_FAULTS).exists() {
        fs::write(ALL_DMA_FAULTS, "1").context(ALL_DMA_FAULTS)?;
    }
    // SAFETY: nothing else runs yet.
    unsafe { std::env::set_var("PATH", "/bin:/sbin") };

    let command_line =
        fs::read_to_string("/proc/cmdline").context("reading the kernel's command line")?;
    let wanted = command_line
        .split_whitespace()
        .filter_map(|word| word.strip_prefix(LOAD));
    let loaded = wanted
        .flat_map(|list| list.split(','))
        .filter(|name| !name.is_empty())
        .map(load)
        .collect();

    let port = Port::open(PORT)?;
    let receiver = Receiver(Arc::clone(&port));
    let agent = Arc::new(Agent {
        port,
        children: Children::start(),
        named: Arc::default(),
    });
    agent.port.send(&Message::Ready(Ready {
        kernel: read_line("/proc/sys/kernel/osrelease")?,
        boot_id: read_line("/proc/sys/kernel/random/boot_id")?,
        uptime_ms: uptime_ms()?,
        modules: loaded,
    }));

    let mut receiver = BufReader::with_capacity(1 << 16, receiver);
    let mut line = Vec::new();
    loop {
        line.clear();
        receiver
            .read_until(b'\n', &mut line)
            .context("reading from the port")?;
        match serde_json::from_slice::<Request>(&line) {
            Ok(request) => {
                let agent = Arc::clone(&agent);
                // Writes to one process stay in order.
                if matches!(
                    request.command,
                    Command::WriteStdin { .. } | Command::CloseStdin { .. }
                ) {
                    agent.answer(request);
                } else {
                    thread::spawn(move || agent.answer(request));
                }
            }
            // A line of the time before a reboot may come cut.
            Err(error) if !line.trim_ascii().is_empty() => {
                eprintln!("bufshare-agent: not a request: {error}")
            }
            Err(_) => {}
        }
    }
}

impl Agent {
    fn answer(&self, request: Request) {
        let result = self.handle(request.command).map_err(|error| Failure {
            errno: error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::raw_os_error),
            text: format!("{error:#}"),
        });
        self.port.send(&Message::Answer {
            id: request.id,
            result,
        });
    }

    fn handle(&self, command: Command) -> Result<Answer> {
        Ok(match command {
            Command::Ping => Answer::Done,
            Command::Run {
                argv,
                env,
                stdin,
                timeout_ms,
            } => {
                let limit = Duration::from_millis(timeout_ms);
                Answer::Ran(process::run(&self.children, &argv, &env, stdin, limit)?)
            }
            Command::Spawn { argv, env, key } => {
                let pid = self
                    .named
                    .spawn(&self.children, &self.port, &argv, &env, key)?;
                Answer::Spawned { pid }
            }
            Command::Signal { key, signal } => {
                self.named.signal(key, signal)?;
                Answer::Done
            }
            Command::WriteStdin { key, data } => {
                self.named.write(key, &data)?;
                Answer::Done
            }
            Command::CloseStdin { key } => {
                self.named.close(key)?;
                Answer::Done
            }
            Command::ReadFile { path } => Answer::Data(fs::read(path)?),
            Command::WriteFile { path, data } => {
                let mut file = fs::OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .open(path)?;
                let count = file.write(&data)?;
                if count != data.len() {
                    return Err(io::Error::from(io::ErrorKind::WriteZero).into());
                }
                Answer::Done
            }
            Command::ListDir { path } => Answer::Lines(list(&path)?),
            Command::LoadModule { name, params } => {
                modules::load(&name, &params)?;
                Answer::Done
            }
            Command::UnloadModule { name } => {
                modules::unload(&name)?;
                Answer::Done
            }
            Command::Sleep => {
                match self.port.without(|| fs::write(POWER_STATE, "mem")) {
                    Ok(slept) => slept.with_context(|| format!("writing mem to {POWER_STATE}"))?,
                    Err(error) => {
                        // Without the port nobody can be answered.
                        eprintln!("bufshare-agent: {error:#}");
                        power(libc::LINUX_REBOOT_CMD_POWER_OFF)?;
                    }
                }
                Answer::Done
            }
            Command::KernelLog => Answer::Lines(kernel_log()?),
            Command::Poweroff => {
                power(libc::LINUX_REBOOT_CMD_POWER_OFF)?;
                Answer::Done
            }
            Command::Reboot => {
                power(libc::LINUX_REBOOT_CMD_RESTART)?;
                Answer::Done
            }
        })
    }
}

fn load(name: &str) -> Loaded {
    let error = modules::load(name, "")
        .err()
        .map(|error| format!("{error:#}"));
    Loaded {
        name: name.to_owned(),
        error,
        srcversion: modules::srcversion(name),
    }
}

fn mount(kind: &str, folder: &str) -> Result<()> {
    fs::create_dir_all(folder)?;
    let (kind, folder) = (CString::new(kind)?, CString::new(folder)?);
    // SAFETY: terminated strings; no data.
    let result = unsafe {
        libc::mount(
            kind.as_ptr(),
            folder.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error().into())
    }
}

fn power(command: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is involved.
    unsafe { libc::sync() };
    // SAFETY: no memory is involved.
    let result = unsafe { libc::reboot(command) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn read_line(path: &str) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    Ok(text.trim().to_owned())
}

fn uptime_ms() -> Result<u64> {
    let text = read_line("/proc/uptime")?;
    let seconds: f64 = text.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(Duration::from_secs_f64(seconds).as_millis().try_into()?)
}

fn list(path: &str) -> Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn kernel_log() -> Result<Vec<String>> {
    const READ_ALL: libc::c_int = 3;
    let mut buffer = vec![0_u8; 1 << 20];
    // SAFETY: the buffer has that many bytes.
    let count = unsafe { libc::klogctl(READ_ALL, buffer.as_mut_ptr().cast(), 1 << 20) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    buffer.truncate(count);
    Ok(String::from_utf8_lossy(&buffer)
        .lines()
        .map(str::to_owned)
        .collect())
}
