// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One QEMU, its monitor, its guest's agent

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bufshare_agent::wire::{self, Answer, Command, Ran, Ready};
use serde_json::{Value, json};

use crate::channel::{self, Channel, Transcript};
use crate::child::{self, Process};
use crate::client::Client;
use crate::factor::{FACTOR, factor};
use crate::image::Picture;
use crate::lab::{self, Lab};
use crate::qmp::Qmp;
use crate::{report, wait};

/// Shared-memory device of QEMU that any vhost-user back end can serve.
pub const DEVICE: &str =
    "vhost-user-test-device-pci,id=bufshare,virtio-id=37,num_vqs=2,vq_size=64,config_size=256";

/// QEMU's name of each machine's card, which is also how its driver's begins.
pub const CARD: &str = "bochs";

/// What is written here is in the kernel's log.
const KERNEL_LOG: &str = "/dev/kmsg";

/// Stands for the path of the daemon's socket in [`Machine::setup`].
pub const SOCKET: &str = "{socket}";

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its name, and that of its peer.
    pub name: String,
    /// RAM, MiB.
    pub memory: u32,
    /// How many processors.
    pub processors: u32,
    /// Size of its screen.
    pub screen: (u32, u32),
    /// Memory of the card with that screen, MiB: a power of two, 4 to 256.
    pub screen_memory: u32,
    /// Modules that its agent loads first.
    pub modules: Vec<String>,
    /// RAM, machine type and device by these words, and not by the usual ones;
    /// [`SOCKET`] in them is the daemon's.
    pub setup: Option<Vec<String>>,
    /// The device that is the daemon's, unless [`Machine::setup`] has one.
    pub device: String,
    /// More words for QEMU, which come before that device.
    pub qemu: Vec<String>,
    /// More words for the kernel.
    pub kernel: Vec<String>,
    /// The daemon may hand out the descriptor of its RAM: the only way to share
    /// where the host has no /dev/udmabuf.
    pub ram_fd: bool,
    /// The daemon believes that its VMM maps read-only what was granted so. QEMU does not.
    pub enforces_ro: bool,
    /// The daemon's socket; without one there is no device.
    pub socket: Option<PathBuf>,
}

impl Machine {
    /// A plain one.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            memory: 512,
            processors: 1,
            screen: (640, 480),
            // QEMU's default.
            screen_memory: 16,
            modules: Vec::new(),
            setup: None,
            device: DEVICE.to_owned(),
            qemu: Vec::new(),
            kernel: Vec::new(),
            ram_fd: true,
            enforces_ro: false,
            socket: None,
        }
    }
}

/// A running machine.
#[derive(Debug)]
pub struct Vm {
    machine: Machine,
    process: Process,
    qmp: Qmp,
    channel: Arc<Channel>,
    console: PathBuf,
    logs: PathBuf,
    started: Instant,
    /// Boots that the test asked for.
    boots: usize,
    /// Bytes of the console that were looked at.
    scanned: usize,
    /// Lines that were written into the guest kernel's log, see [`Vm::check`].
    marks: usize,
    stopped: bool,
}

impl Vm {
    /// Start QEMU and do not wait for the guest.
    ///
    /// # Errors
    /// When QEMU does not start.
    pub fn start(
        lab: &Lab,
        machine: Machine,
        logs: &Path,
        transcript: &Transcript,
    ) -> Result<Self> {
        let name = &machine.name;
        let (agent, agent_end) = UnixStream::pair()?;
        let (monitor, monitor_end) = UnixStream::pair()?;
        let ends = vec![OwnedFd::from(agent_end), OwnedFd::from(monitor_end)];
        let console = logs.join(format!("{name}.console"));
        let mut command = Program::new(&lab.in_lab);
        // As the lab is: it is not made anew in the midst of a test.
        command
            .env("BUFSHARE_ROOT", lab.folder.join("root"))
            .arg("--")
            .arg("qemu-system-x86_64")
            .args(words(lab, &machine, &ends, &console));
        let log = logs.join(format!("{name}.qemu.log"));
        let started = Instant::now();
        let mut process = Process::start(&format!("QEMU of {name}"), command, ends, &log)?;
        let channel = Channel::new(name, agent, transcript.clone())?;
        let qmp =
            Qmp::new(monitor).map_err(|error| match process.wait(Duration::from_millis(200)) {
                Ok(status) => error.context(format!(
                    "QEMU of {name} ended: {status}; see {}",
                    log.display()
                )),
                Err(_) => error,
            })?;
        Ok(Self {
            machine,
            process,
            qmp,
            channel,
            console,
            logs: logs.to_owned(),
            started,
            boots: 0,
            scanned: 0,
            marks: 0,
            stopped: false,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.machine.name
    }

    /// The daemon's socket for it.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        self.machine.socket.as_deref()
    }

    /// QEMU's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// SIGSTOP: QEMU does nothing, until it may go on.
    ///
    /// # Errors
    /// From the system.
    pub fn pause_process(&mut self) -> Result<()> {
        self.process.pause()
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// From the system.
    pub fn resume_process(&mut self) -> Result<()> {
        self.process.signal(libc::SIGCONT)
    }

    /// The monitor.
    #[must_use]
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// The agent.
    #[must_use]
    pub fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// Since QEMU's start.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Wait for the guest's next boot.
    ///
    /// # Errors
    /// When it does not come up, or a module of it could not be loaded.
    pub fn boot(&mut self) -> Result<Ready> {
        self.boots += 1;
        let process = &mut self.process;
        let ready = self
            .channel
            .booted(self.boots, wait::BOOT, || process.alive())?;
        for module in &ready.modules {
            if let Some(error) = &module.error {
                bail!("guest {}: {}: {error}", self.name(), module.name);
            }
        }
        Ok(ready)
    }

    /// Run a program in the guest to its end.
    ///
    /// # Errors
    /// When it could not be run.
    pub fn run(&self, argv: &[&str], limit: Duration) -> Result<Ran> {
        // The guest is no slower to kill it than we are to give up.
        let timeout_ms = u64::try_from(wait::scaled(limit).as_millis())?;
        let command = Command::Run {
            argv: channel::owned(argv),
            env: Vec::new(),
            stdin: String::new(),
            timeout_ms,
        };
        match self.channel.call(command, limit + wait::COMMAND)? {
            Answer::Ran(ran) => Ok(ran),
            other => bail!("guest {}: odd answer {other:?}", self.name()),
        }
    }

    /// Output of a program that has to succeed.
    ///
    /// # Errors
    /// When it does not.
    pub fn output(&self, argv: &[&str]) -> Result<String> {
        let what = format!("guest {}: {}", self.name(), argv.join(" "));
        channel::succeeded(&what, self.run(argv, wait::COMMAND)?)
    }

    /// Start a program in the guest.
    ///
    /// # Errors
    /// When it could not be started.
    pub fn spawn(&self, argv: &[&str]) -> Result<channel::Program> {
        self.channel.spawn(argv)
    }

    /// A process in the guest that holds buffers.
    ///
    /// # Errors
    /// When it could not be started.
    pub fn client(&self) -> Result<Client> {
        Client::new(self.name(), self.spawn(&["/init", "client"])?)
    }

    /// Have the agent do something.
    ///
    /// # Errors
    /// A [`channel::GuestError`], or that there was no answer.
    pub fn call(&self, command: Command) -> Result<Answer> {
        self.channel.call(command, wait::COMMAND)
    }

    /// Read a file of the guest.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        let answer = self.call(Command::ReadFile {
            path: path.to_owned(),
        });
        match answer.with_context(|| format!("reading {path}"))? {
            Answer::Data(data) => Ok(data),
            other => bail!("guest {}: odd answer {other:?}", self.name()),
        }
    }

    /// Write a file of the guest.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn write_file(&self, path: &str, data: &[u8]) -> Result<()> {
        let command = Command::WriteFile {
            path: path.to_owned(),
            data: data.to_owned(),
        };
        self.call(command)
            .with_context(|| format!("writing {path}"))
            .map(drop)
    }

    /// Returns when a process of the guest waits in a function of its kernel.
    ///
    /// # Errors
    /// As [`Vm::call`]; it does not come to wait there.
    pub fn waits_in(&self, pid: i32, symbol: &str) -> Result<()> {
        let path = format!("/proc/{pid}/stack");
        wait::until(&format!("{pid} to wait in {symbol}"), wait::COMMAND, || {
            let stack = self.read_file(&path)?;
            let waits = String::from_utf8_lossy(&stack).contains(symbol);
            Ok(waits.then_some(()))
        })
    }

    /// Names in a folder of the guest.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn list_dir(&self, path: &str) -> Result<Vec<String>> {
        match self.call(Command::ListDir {
            path: path.to_owned(),
        })? {
            Answer::Lines(names) => Ok(names),
            other => bail!("guest {}: odd answer {other:?}", self.name()),
        }
    }

    /// What its kernel has said since the boot.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn kernel_log(&self) -> Result<Vec<String>> {
        match self.call(Command::KernelLog)? {
            Answer::Lines(lines) => Ok(lines),
            other => bail!("guest {}: odd answer {other:?}", self.name()),
        }
    }

    /// Load a module of the image.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn load(&self, name: &str, params: &str) -> Result<()> {
        let command = Command::LoadModule {
            name: name.to_owned(),
            params: params.to_owned(),
        };
        self.call(command)
            .with_context(|| format!("loading {name}"))
            .map(drop)
    }

    /// Load a module of the tests' own, that of `tests/guest/FOLDER`.
    ///
    /// # Errors
    /// A [`report::Skip`] when it is not built, or as [`Vm::output`].
    pub fn insert(&self, folder: &str, params: &[&str]) -> Result<()> {
        let path = format!("/tmp/bufshare_{folder}.ko");
        self.write_file(&path, &lab::test_module(folder)?)?;
        let words = [&["busybox", "insmod", &path], params].concat();
        self.output(&words).map(drop)
    }

    /// Remove a module.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn unload(&self, name: &str) -> Result<()> {
        self.call(Command::UnloadModule {
            name: name.to_owned(),
        })
        .with_context(|| format!("unloading {name}"))
        .map(drop)
    }

    /// The video device of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn video(&self, name: &str) -> Result<String> {
        const CLASS: &str = "/sys/class/video4linux";
        for entry in self.list_dir(CLASS)? {
            if self
                .read_file(&format!("{CLASS}/{entry}/name"))?
                .trim_ascii()
                == name.as_bytes()
            {
                return Ok(format!("/dev/{entry}"));
            }
        }
        bail!("guest {} has no video device {name}", self.name())
    }

    /// Have the guest sleep as its `/sys/power/pm_test` says, and wait until it is awake.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn sleep(&self) -> Result<()> {
        self.call(Command::Sleep).map(drop)
    }

    /// Have the guest's devices sleep and wake, which ends its exports and imports.
    ///
    /// # Errors
    /// A [`report::Skip`] when its kernel cannot, or as [`Vm::call`].
    pub fn suspend(&self) -> Result<()> {
        const TEST: &str = "/sys/power/pm_test";
        if self.read_file(TEST).is_err() {
            let why = "the guest kernel has no /sys/power/pm_test";
            return Err(report::Skip::impossible(why).into());
        }
        self.write_file(TEST, b"devices")?;
        self.sleep()
    }

    /// Pull the reset line, and wait for the guest to boot again.
    ///
    /// # Errors
    /// When it does not.
    pub fn reset(&mut self) -> Result<Ready> {
        self.qmp.execute("system_reset", json!({}))?;
        self.boot()
    }

    /// Have the guest restart itself, and wait for it to boot again.
    ///
    /// # Errors
    /// When it does not.
    pub fn reboot(&mut self) -> Result<Ready> {
        // Answered by nobody.
        drop(self.channel.ask(Command::Reboot)?);
        self.boot()
    }

    /// SIGKILL for QEMU.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.stopped = true;
        self.process.kill();
        match self.process.ended()? {
            Some(_) => Ok(()),
            None => bail!("QEMU of {} does not end by SIGKILL", self.name()),
        }
    }

    /// QEMU ends by itself, however badly.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_end(&mut self) -> Result<()> {
        self.stopped = true;
        self.process.wait(wait::STOP).map(drop)
    }

    /// QEMU's own word on the machine's state.
    ///
    /// # Errors
    /// When there is none.
    pub fn status(&self) -> Result<String> {
        let status = self.qmp.execute("query-status", json!({}))?;
        Ok(status
            .get("status")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned())
    }

    /// What its screen shows.
    ///
    /// # Errors
    /// From QEMU.
    pub fn screen(&self) -> Result<Picture> {
        self.screen_of(CARD)
    }

    /// What the screen of QEMU's device `card` shows.
    ///
    /// # Errors
    /// From QEMU.
    pub fn screen_of(&self, card: &str) -> Result<Picture> {
        let path = self.logs.join(format!("{}.ppm", self.name()));
        self.qmp
            .execute("screendump", json!({ "filename": path, "device": card }))?;
        Picture::read_ppm(&path)
    }

    /// Check that QEMU runs, the guest was not restarted by anything but the
    /// test, and its kernel has not complained since the last check.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&mut self) -> Result<()> {
        // One that cannot be asked any more may have said why.
        let said = if self.stopped {
            Ok(())
        } else {
            self.said_all()
        };
        let mut text = report::console(&self.console, self.scanned)?;
        if !self.stopped {
            // A line that is not complete yet belongs to the next check.
            let end = text.iter().rposition(|byte| *byte == b'\n');
            text.truncate(end.map_or(0, |end| end + 1));
        }
        self.scanned += text.len();
        let complaints = report::complaints(&text);
        if !complaints.is_empty() {
            bail!(
                "the kernel of guest {} {}:\n{}",
                self.name(),
                report::COMPLAINED,
                complaints.join("\n")
            );
        }
        if self.stopped {
            return Ok(());
        }
        self.process.alive()?;
        let boots = self.channel.boots();
        if boots != self.boots {
            bail!(
                "guest {} booted {boots} times, not {}",
                self.name(),
                self.boots
            );
        }
        said
    }

    /// Wait until the console shows all that the kernel has said so far. A thread of the
    /// kernel writes it there, some time after it was said (Linux 7.3's serial console).
    fn said_all(&mut self) -> Result<()> {
        self.marks += 1;
        // The console may show what a machine of this name said before it was started again.
        let mark = format!("bufshare-tests: mark {} of {}.", self.marks, self.pid());
        // Shown at the log level that the guests are started with. Without the end of its
        // line, the kernel would wait for the rest.
        self.write_file(KERNEL_LOG, format!("<5>{mark}\n").as_bytes())?;
        let what = format!("'{mark}' on the console of {}", self.name());
        let from = self.scanned;
        wait::until(&what, wait::COMMAND, || {
            let text = report::console(&self.console, from)?;
            let shown = String::from_utf8_lossy(&text)
                .lines()
                .any(|line| line.ends_with(&mark));
            Ok(shown.then_some(()))
        })
    }

    /// Stop QEMU.
    ///
    /// # Errors
    /// When it had to be killed or ended badly.
    pub fn stop(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.stopped, true) {
            return Ok(());
        }
        // It may not even answer before it is gone.
        let _ = self.qmp.execute("quit", json!({}));
        let status = self.process.wait(wait::STOP)?;
        if !status.success() {
            bail!("QEMU of {} ended badly: {status}", self.name());
        }
        Ok(())
    }
}

fn words(lab: &Lab, machine: &Machine, ends: &[OwnedFd], console: &Path) -> Vec<String> {
    let mut words = Vec::new();
    let mut add = |text: &str| words.extend(text.split(' ').map(str::to_owned));
    let fd = |index: usize| ends.get(index).map_or(-1, child::number);
    add("-nodefaults -no-user-config -display none -boot strict=on");
    add(&format!("-name {},debug-threads=on", machine.name));
    add(&format!("-accel {}", lab.accel));
    add(&format!(
        "-cpu {}",
        if lab.accel == "kvm" { "host" } else { "qemu64" }
    ));
    add(&format!("-smp {}", machine.processors));
    match (&machine.setup, &machine.socket) {
        (Some(setup), Some(socket)) => {
            for word in setup {
                add(&word.replace(SOCKET, &socket.display().to_string()));
            }
        }
        _ => {
            add("-machine q35,memory-backend=ram,usb=off,vmport=off");
            add(&format!(
                "-object memory-backend-memfd,id=ram,size={}M,share=on",
                machine.memory.saturating_add(lab.extra_memory)
            ));
        }
    }
    add(&format!(
        "-chardev file,id=console,append=on,path={}",
        console.display()
    ));
    add("-serial chardev:console");
    add(&format!("-chardev socket,id=agent,fd={}", fd(0)));
    add(&format!(
        "-device virtio-serial-pci -device virtserialport,chardev=agent,name={}",
        wire::PORT
    ));
    add(&format!(
        "-chardev socket,id=monitor,fd={} -object monitor-qmp,id=qmp,chardev=monitor",
        fd(1)
    ));
    // Its driver needs no firmware. Where a screen's mode does not fit the first timing of an
    // EDID, as 3840x2160 does not, that of SeaBIOS takes the screen to be 0x0, and divides by
    // that for ever when the boot code of a compressed kernel asks it for modes.
    add(&format!(
        "-device bochs-display,id={CARD},xres={},yres={},vgamem={}M,romfile=",
        machine.screen.0, machine.screen.1, machine.screen_memory
    ));
    words.extend(machine.qemu.iter().cloned());
    if let (None, Some(socket)) = (&machine.setup, &machine.socket) {
        words.extend([
            "-chardev".to_owned(),
            format!("socket,id=bufshare,path={}", socket.display()),
            "-device".to_owned(),
            format!("{},chardev=bufshare", machine.device),
        ]);
    }
    let mut kernel = "console=ttyS0 loglevel=6 panic=-1 oops=panic mitigations=off audit=0 apparmor=0 cryptomgr.notests".to_owned();
    // Tests stop a QEMU, have it wait for its device, and hold up a processor: a kernel
    // takes that for a stall.
    kernel.push_str(" nowatchdog rcupdate.rcu_cpu_stall_timeout=300");
    if lab.accel == "tcg" {
        // An emulated machine on a busy host has no steady clock.
        kernel.push_str(" tsc=reliable no_timer_check");
    }
    for word in &machine.kernel {
        kernel.push(' ');
        kernel.push_str(word);
    }
    if !machine.modules.is_empty() {
        kernel.push_str(&format!(" {}{}", wire::LOAD, machine.modules.join(",")));
    }
    // What the kernel does not know becomes the environment of init.
    kernel.push_str(&format!(" {FACTOR}={}", factor()));
    words.extend(["-kernel".to_owned(), lab.kernel.display().to_string()]);
    words.extend(["-initrd".to_owned(), lab.initramfs.display().to_string()]);
    words.extend(["-append".to_owned(), kernel]);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words_of(machine: &Machine, accel: &str) -> Vec<String> {
        let lab = Lab {
            folder: PathBuf::new(),
            in_lab: PathBuf::new(),
            kernel: PathBuf::from("vmlinuz"),
            kernel_release: String::new(),
            initramfs: PathBuf::from("initramfs"),
            qemu_version: String::new(),
            accel: accel.to_owned(),
            extra_memory: 0,
        };
        words(&lab, machine, &[], Path::new("console"))
    }

    #[test]
    fn a_kernel_takes_it_for_no_stall_that_a_test_has_it_stand_still() {
        for accel in ["kvm", "tcg"] {
            let words = words_of(&Machine::new("a"), accel);
            let line = words.last().unwrap();
            for word in ["nowatchdog", "rcupdate.rcu_cpu_stall_timeout=300"] {
                assert!(line.split(' ').any(|had| had == word), "{accel}: {line}");
            }
        }
    }
}
