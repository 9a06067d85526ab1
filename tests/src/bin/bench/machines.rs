// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two VMs between which frames go in every way that is compared

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bufshare_agent::ops::{SERIAL, WRITTEN};
use bufshare_tests::client::{Buf, Client, Consumer, Export};
use bufshare_tests::neighbour::{self, Virtiofs};
use bufshare_tests::pair::{Plan, TwoVms};
use bufshare_tests::sockets::SocketFolder;
use bufshare_tests::timing::{Carrier as End, Transport};
use bufshare_tests::vm::Vm;
use serde::Serialize;
use tempfile::TempDir;

/// Of each VM, MiB: the buffers, and as much again for what carries them.
pub(crate) const MEMORY: u32 = 1024;
/// Of `ivshmem-plain`: a power of two, in which the largest frame leaves room for counters.
const SHARED: u64 = 128 << 20;
const PAGE: u64 = 4096;
/// Of the two VMs, which have no other network.
const ADDRESSES: [&str; 2] = ["10.9.1.1", "10.9.1.2"];
const PORT: u16 = 7000;
/// Files of a memory file system: no disk is to be measured.
const MEMORY_FILES: &str = "/dev/shm";

/// What carries a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Carrier {
    /// bufshare: PUSH and RETURN.
    HandOver,
    /// Two virtio-serial ports, joined by a socket.
    Serial,
    /// TCP between two virtio-net cards, joined by a socket.
    Net,
    /// A file, written and then read.
    Virtiofs,
    /// Copied into memory that both VMs have all of, and out of it.
    Ivshmem,
}

impl Carrier {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 5] = [
        Self::HandOver,
        Self::Serial,
        Self::Net,
        Self::Virtiofs,
        Self::Ivshmem,
    ];

    /// In the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::HandOver => "hand-over",
            Self::Serial => "virtio-serial",
            Self::Net => "virtio-net",
            Self::Virtiofs => "virtiofs",
            Self::Ivshmem => "ivshmem",
        }
    }

    /// Neither VM sees memory of the other, nor memory that both can write at any time.
    pub(crate) fn isolates(self) -> bool {
        matches!(self, Self::Serial | Self::Net | Self::Virtiofs)
    }
}

/// What is handed over, and what is mapped, of one size.
struct Shared {
    export: Export,
    consumer: Consumer,
    /// Exported anew for each mapping.
    mapped: Buf,
}

/// They run.
pub(crate) struct Machines {
    pub(crate) a: Client,
    pub(crate) b: Client,
    ends: BTreeMap<Carrier, [Transport; 2]>,
    shared: BTreeMap<u64, Shared>,
    pub(crate) vms: TwoVms,
    // What serves them goes last.
    _virtiofsds: [Virtiofs; 2],
    _files: TempDir,
    _sockets: SocketFolder,
}

impl Machines {
    /// Boots them, with one buffer of each size that is consumed and mapped.
    ///
    /// # Errors
    /// When something is missing here, or does not start.
    pub(crate) fn boot(sizes: &[u64], logs: &Path) -> Result<Self> {
        if logs.exists() {
            std::fs::remove_dir_all(logs)?;
        }
        std::fs::create_dir_all(logs)?;
        let sockets = SocketFolder::new()?;
        let files = match Path::new(MEMORY_FILES) {
            folder if folder.exists() => tempfile::tempdir_in(folder)?,
            _ => tempfile::tempdir()?,
        };
        let memory = files.path().join("ivshmem");
        File::create(&memory)?.set_len(SHARED)?;
        let folder = files.path().join("virtiofs");
        std::fs::create_dir(&folder)?;
        let virtiofs = |name: &str| {
            // What one VM has written the other is to read: without caches.
            let log = logs.join(format!("virtiofsd-{name}.log"));
            Virtiofs::show(&folder, &log, &["--cache=never"])
        };
        let virtiofsds = [virtiofs("a")?, virtiofs("b")?];
        let [first, second] = &virtiofsds;
        let plan = Plan::new()
            .options(&["--max-windows", "128"])
            .both(|machine| machine.memory = MEMORY)
            .first(|machine| {
                let words = devices(sockets.path(), "server=on", "wait=off", 1, &memory);
                machine.qemu.extend(words);
                first.beside(machine);
            })
            .second(|machine| {
                // It may be started before the other one listens.
                let again = "reconnect-ms=100";
                let words = devices(sockets.path(), again, again, 2, &memory);
                machine.qemu.extend(words);
                second.beside(machine);
            });
        let vms = TwoVms::boot(plan, logs)?;
        for (vm, address) in [&vms.a, &vms.b].into_iter().zip(ADDRESSES) {
            network(vm, address)?;
            neighbour::mount(vm)?;
        }
        let (a, b) = (vms.a.client()?, vms.b.client()?);
        let mut machines = Self {
            a,
            b,
            ends: BTreeMap::new(),
            shared: BTreeMap::new(),
            vms,
            _virtiofsds: virtiofsds,
            _files: files,
            _sockets: sockets,
        };
        machines.open()?;
        for size in sizes {
            machines.share(*size)?;
        }
        Ok(machines)
    }

    fn open(&mut self) -> Result<()> {
        let [listening, _] = ADDRESSES;
        let address = format!("{listening}:{PORT}");
        let file = format!("{}/frame", neighbour::MOUNT);
        let listen = End::Listen {
            address: address.clone(),
        };
        let virtiofs = End::Virtiofs { file };
        for (carrier, first, second) in [
            (Carrier::Serial, End::Serial, End::Serial),
            (Carrier::Net, listen, End::Connect { address }),
            (Carrier::Virtiofs, virtiofs.clone(), virtiofs),
            (Carrier::Ivshmem, End::Ivshmem, End::Ivshmem),
        ] {
            let ends = [self.a.open(first)?, self.b.open(second)?];
            self.ends.insert(carrier, ends);
        }
        Ok(())
    }

    fn share(&mut self, size: u64) -> Result<()> {
        let size_of_buffer = size.next_multiple_of(PAGE);
        let buf = self.a.alloc(size_of_buffer)?;
        let export = self.a.export(buf)?;
        let consumer = self.b.consume(&export.id)?;
        // A consumer that reads what it is given has it mapped.
        let map = self.b.map(consumer.buf)?;
        self.b.touch(map)?;
        let mapped = self.a.alloc(size_of_buffer)?;
        let shared = Shared {
            export,
            consumer,
            mapped,
        };
        self.shared.insert(size, shared);
        Ok(())
    }

    /// Carries frames from the first VM to the second. For each, how long it took until the
    /// first VM knew that the second one has it.
    ///
    /// # Errors
    /// When a frame does not arrive whole.
    pub(crate) fn carry(
        &mut self,
        carrier: Carrier,
        size: u64,
        frames: u64,
    ) -> Result<Vec<Duration>> {
        if carrier == Carrier::HandOver {
            let shared = self.shared.get(&size).context("no such buffer")?;
            let consuming = self.b.begin_consuming(&shared.consumer, frames)?;
            let times = self.a.hand_over(&shared.export, frames)?;
            self.b.done(consuming)?;
            return Ok(times);
        }
        let [from, to] = *self.ends.get(&carrier).context("no such carrier")?;
        let receiving = self.b.begin_receiving(to, size, frames)?;
        let times = self.a.send(from, size, frames)?;
        self.b.done(receiving)?;
        Ok(times)
    }

    /// Imports a buffer so often, each time to its first byte. The first needs new mappings
    /// of QEMU, which are kept for the others.
    ///
    /// # Errors
    /// From the guests.
    pub(crate) fn first_bytes(&mut self, size: u64, count: u64) -> Result<Vec<Duration>> {
        let buf = self.shared.get(&size).context("no such buffer")?.mapped;
        let export = self.a.export(buf)?;
        let times = self.b.first_bytes(&export.id, count)?;
        self.a.close(export.number)?;
        Ok(times)
    }

    /// QUERY from the second VM, so often.
    ///
    /// # Errors
    /// From the guest.
    pub(crate) fn query(&mut self, count: u64) -> Result<Vec<Duration>> {
        let (_, shared) = self.shared.first_key_value().context("no buffer")?;
        let id = shared.export.id.clone();
        self.b.ask(&id, count)
    }

    /// Ends it all.
    ///
    /// # Errors
    /// When a guest is not well, or something does not stop.
    pub(crate) fn finish(self) -> Result<()> {
        let Self { a, b, vms, .. } = self;
        drop((a, b));
        vms.finish()
    }
}

/// A VM's devices. `net` and `chardev` say which side of the sockets it is.
fn devices(sockets: &Path, net: &str, chardev: &str, number: u8, memory: &Path) -> Vec<String> {
    let server = if net.starts_with("server") {
        "server=on,"
    } else {
        ""
    };
    let socket = |name: &str| sockets.join(name).display().to_string();
    let mut words = vec![
        "-netdev".to_owned(),
        format!(
            "stream,id=frames,{net},addr.type=unix,addr.path={}",
            socket("net")
        ),
        "-device".to_owned(),
        format!("virtio-net-pci,netdev=frames,mac=52:54:00:00:00:0{number},romfile="),
        "-device".to_owned(),
        "virtio-serial-pci,id=frames".to_owned(),
    ];
    for name in [SERIAL, WRITTEN] {
        words.extend([
            "-chardev".to_owned(),
            format!("socket,id={name},path={},{server}{chardev}", socket(name)),
            "-device".to_owned(),
            format!("virtserialport,bus=frames.0,chardev={name},name={name}"),
        ]);
    }
    words.extend([
        "-object".to_owned(),
        format!(
            "memory-backend-file,id=ivshmem,share=on,mem-path={},size={SHARED}",
            memory.display()
        ),
        "-device".to_owned(),
        "ivshmem-plain,memdev=ivshmem".to_owned(),
    ]);
    words
}

fn network(vm: &Vm, address: &str) -> Result<()> {
    vm.load("virtio_net", "")?;
    let words = ["busybox", "ifconfig", "eth0", address, "up"];
    vm.output(&words).map(drop)
}
