// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Other vhost back ends of the importer's VM: each of its windows is a memory region of
//! theirs, too

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::child::Process;
use crate::client::{Sight, refused};
use crate::lab::Lab;
use crate::pair::TwoVms;
use crate::report::Skip;
use crate::sockets::SocketFolder;
use crate::vm::{Machine, Vm};
use crate::wait;

const PAGE: u64 = 4096;
/// How many windows are made between two looks at the neighbour.
const STEP: usize = 16;

/// Map all that the daemon allows the second machine, and give it back: its neighbour
/// `works` all the time, also after its driver's `restart`, and QEMU has nothing to say
/// of it.
///
/// # Errors
/// What does not go on.
pub fn goes_on(
    vms: &mut TwoVms,
    mut works: impl FnMut(&Vm) -> Result<()>,
    restart: impl Fn(&Vm) -> Result<()>,
) -> Result<()> {
    works(&vms.b)?;
    let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
    let max = b.info()?.max_windows;
    let mut imports = Vec::new();
    for seed in 0..max {
        let (_, _, export) = a.offer(PAGE, seed)?;
        let import = b.import(&export.id)?;
        b.make_window(import.buf)?;
        let map = b.map(import.buf)?;
        imports.push((import, map, seed));
        if imports.len() % STEP == 0 {
            works(&vms.b).with_context(|| format!("with {} windows", imports.len()))?;
        }
    }
    let (_, _, export) = a.offer(PAGE, max)?;
    let more = b.import(&export.id)?;
    let refusal = refused(b.make_window(more.buf))?;
    ensure!(refusal.errno == libc::ENOSPC, "{refusal}");
    // A device that starts is given all regions at once.
    restart(&vms.b).with_context(|| format!("a restart with {max} windows"))?;
    works(&vms.b).with_context(|| format!("restarted with {max} windows"))?;
    while let Some((import, map, seed)) = imports.pop() {
        ensure!(b.compare(map, seed)? == Sight::Pattern, "window {seed}");
        b.close(map.number)?;
        b.close(import.buf.number)?;
    }
    drop((a, b));
    vms.settled()?;
    works(&vms.b).context("when the windows are gone")?;
    let log = vms.logs().join(format!("{}.qemu.log", vms.b.name()));
    let said = fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
    ensure!(!said.contains("vhost"), "QEMU said:\n{said}");
    Ok(())
}

/// Have a driver of virtio devices leave its only one and take it again.
///
/// # Errors
/// When it has none, or as [`Vm::call`].
pub fn restart_driver(vm: &Vm, name: &str) -> Result<()> {
    let folder = format!("/sys/bus/virtio/drivers/{name}");
    let names = vm.list_dir(&folder)?;
    let device = names.into_iter().find(|name| name.starts_with("virtio"));
    let device = device.with_context(|| format!("{name} has no device"))?;
    vm.write_file(&format!("{folder}/unbind"), device.as_bytes())?;
    vm.write_file(&format!("{folder}/bind"), device.as_bytes())
}

/// In the lab's root, by its part 'virtiofs'.
const PROGRAM: &str = "/usr/libexec/virtiofsd";
/// Name of the file system for the guest.
const TAG: &str = "neighbour";
/// Where the guest has it.
pub const MOUNT: &str = "/mnt";
/// Bytes of a file that goes there and back.
const SIZE: usize = 1 << 20;

/// A running virtiofsd, the back end of a file system.
#[derive(Debug)]
pub struct Virtiofs {
    process: Process,
    /// The folder that it shows to the guest.
    shared: PathBuf,
    sockets: SocketFolder,
    files: u32,
}

impl Virtiofs {
    /// Start it, with its log and the folder that it shows in `logs`.
    ///
    /// # Errors
    /// A [`Skip`] when the lab has none, or when it does not start.
    pub fn start(logs: &Path) -> Result<Self> {
        let shared = logs.join("virtiofs");
        fs::create_dir(&shared).with_context(|| format!("making {}", shared.display()))?;
        Self::show(&shared, &logs.join("virtiofsd.log"), &[])
    }

    /// Start one that shows this folder, by more words than it takes to run here.
    ///
    /// # Errors
    /// As [`Virtiofs::start`].
    pub fn show(shared: &Path, log: &Path, options: &[&str]) -> Result<Self> {
        let lab = Lab::find()?;
        let root = lab.folder.join("root");
        if !root.join(PROGRAM.trim_start_matches('/')).exists() {
            return Err(Skip::new("no virtiofsd: run scripts/lab --with virtiofs").into());
        }
        let sockets = SocketFolder::new()?;
        let socket = socket(&sockets);
        let mut command = Command::new(&lab.in_lab);
        // What needs more rights than a user has inside the lab is left out.
        command
            .env("BUFSHARE_ROOT", root)
            .args(["--", PROGRAM, "--sandbox=none", "--rlimit-nofile=0"])
            .args(options)
            .arg(format!("--shared-dir={}", shared.display()))
            .arg(format!("--socket-path={}", socket.display()));
        let mut process = Process::start("virtiofsd", command, Vec::new(), log)?;
        wait::until("virtiofsd's socket", wait::COMMAND, || {
            process.alive()?;
            Ok(socket.exists().then_some(()))
        })?;
        Ok(Self {
            process,
            shared: shared.to_owned(),
            sockets,
            files: 0,
        })
    }

    /// Give a machine that is not started yet the device.
    pub fn beside(&self, machine: &mut Machine) {
        machine.qemu.extend([
            "-chardev".to_owned(),
            format!(
                "socket,id=virtiofs,path={}",
                socket(&self.sockets).display()
            ),
            "-device".to_owned(),
            format!("vhost-user-fs-pci,chardev=virtiofs,tag={TAG}"),
        ]);
    }

    /// A file of the host is read by the guest, and what it read comes back in another.
    ///
    /// # Errors
    /// When the file system does not serve that.
    pub fn works(&mut self, vm: &Vm) -> Result<()> {
        self.process.alive()?;
        // New names, of which no cache knows anything.
        self.files += 1;
        let [host, guest] = ["host", "guest"].map(|side| format!("{side}-{}", self.files));
        let mut state = self.files;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let [high, ..] = state.to_be_bytes();
            high
        })
        .take(SIZE)
        .collect();
        fs::write(self.shared.join(&host), &bytes)?;
        let [from, to] = [&host, &guest].map(|name| format!("{MOUNT}/{name}"));
        vm.output(&["busybox", "cp", &from, &to])?;
        ensure!(
            fs::read(self.shared.join(&guest))? == bytes,
            "{guest} is not what stood in {host}"
        );
        for name in [host, guest] {
            fs::remove_file(self.shared.join(name))?;
        }
        Ok(())
    }
}

fn socket(folder: &SocketFolder) -> PathBuf {
    folder.path().join("virtiofs.sock")
}

/// Have the guest mount the file system.
///
/// # Errors
/// When it cannot.
pub fn mount(vm: &Vm) -> Result<()> {
    vm.load("virtiofs", "")?;
    vm.output(&["busybox", "mount", "-t", "virtiofs", TAG, MOUNT])
        .map(drop)
}

/// Have the guest unmount it.
///
/// # Errors
/// When it cannot.
pub fn unmount(vm: &Vm) -> Result<()> {
    vm.output(&["busybox", "umount", MOUNT]).map(drop)
}
