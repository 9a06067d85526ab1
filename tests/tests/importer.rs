// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver of the importing VM takes each step of the kernel's dma-buf interface
//!
//! Its device is QEMU's "edu", which does DMA to and from memory of its own. The
//! driver is that of `tests/guest/importer`.

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use bufshare_agent::ops::Op;
use bufshare_tests::client::{
    AttachKind, Client, Export, Import, Importer, Map, Sight, Step, pattern, refused,
};
use bufshare_tests::driver::{self, lacks};
use bufshare_tests::pair::{Plan, Shared, TwoVms};
use bufshare_tests::vm::Vm;
use bufshare_tests::wait;

static VMS: Shared = Shared::new(|| {
    Plan::new().second(|machine| {
        // By its usual mask its addresses would have 28 bits.
        let words = ["-device", "edu,dma_mask=0xffffffffffffffff"];
        machine.qemu.extend(words.map(str::to_owned));
    })
});
/// The first has more memory than the second, also where both get more for debugging.
static SMALL: Shared = Shared::new(|| {
    let plan = Plan::new().options(&["--shm-size", "1G", "--max-windows", "256"]);
    let plan = plan.first(|machine| machine.memory = 1024);
    plan.second(|machine| machine.memory = 256)
});
const SIZE: u64 = 1 << 20;
const PAGE: u32 = 4096;
/// Somewhere in the middle.
const OFFSET: u64 = 0x4_2000;
const ATTACHED: [AttachKind; 3] = [
    AttachKind::Static,
    AttachKind::Dynamic,
    AttachKind::Stubborn,
];
const ALL: [AttachKind; 4] = [
    AttachKind::Plain,
    AttachKind::Static,
    AttachKind::Dynamic,
    AttachKind::Stubborn,
];

/// Loads the driver into the importing VM; again only after a restart of it.
fn load(vms: &TwoVms) -> Result<()> {
    let loaded = vms.b.list_dir("/sys/module/bufshare_importer")?;
    if loaded.is_empty() {
        vms.b.insert("importer", &[])?;
    }
    Ok(())
}

/// A page of the pattern of `seed`, as it is at [`OFFSET`].
fn page(seed: u32) -> Vec<u8> {
    let start = usize::try_from(OFFSET).unwrap_or_default();
    let len = usize::try_from(PAGE).unwrap_or_default();
    pattern(seed, SIZE)
        .get(start..start + len)
        .unwrap_or_default()
        .to_vec()
}

const DMA_READ: Step = Step::DmaRead {
    offset: OFFSET,
    len: PAGE,
};
const CPU_READ: Step = Step::CpuRead {
    offset: OFFSET,
    len: PAGE,
};

fn dma_write(seed: u32) -> Step {
    Step::DmaWrite {
        offset: OFFSET,
        data: page(seed),
    }
}

fn cpu_write(seed: u32) -> Step {
    Step::CpuWrite {
        offset: OFFSET,
        data: page(seed),
    }
}

/// A buffer that both VMs have, and that the driver of the second has taken.
struct Taken {
    a: Client,
    b: Client,
    mine: Map,
    export: Export,
    import: Import,
    importer: Importer,
    seed: u32,
}

fn take(vms: &TwoVms, kind: AttachKind) -> Result<Taken> {
    // No two buffers look the same.
    static SEED: AtomicU32 = AtomicU32::new(100);
    let seed = SEED.fetch_add(100, Ordering::Relaxed);
    load(vms)?;
    let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
    b.info()?;
    let (_, mine, export) = a.offer(SIZE, seed)?;
    let import = b.import(&export.id)?;
    let importer = b.attach(import.buf, kind)?;
    Ok(Taken {
        a,
        b,
        mine,
        export,
        import,
        importer,
        seed,
    })
}

impl Taken {
    /// Has the exporter revoke the buffer, and use the memory for other things.
    fn revoke(&mut self, vms: &mut TwoVms) -> Result<()> {
        self.a.close(self.export.number)?;
        self.b.wait_event_of("Revoked", &self.export.id)?;
        vms.daemon()?
            .settles("the buffer to be the exporter's again", |now| {
                now.buffers == 0
            })?;
        self.seed += 1;
        self.a.fill(self.mine, self.seed)
    }

    /// Fails if `seen` has anything of what the exporter has written since.
    fn is_nothing_of_the_exporter(&self, seen: &[u8]) -> Result<()> {
        let live = page(self.seed);
        let words = seen.chunks_exact(8).zip(live.chunks_exact(8));
        let same = words.filter(|(seen, live)| seen == live).count();
        ensure!(same == 0, "{same} words of the exporter were seen");
        Ok(())
    }

    fn exporter_is_untouched(&mut self) -> Result<()> {
        let seen = self.a.compare(self.mine, self.seed)?;
        ensure!(seen == Sight::Pattern, "in the exporter: {seen:x?}");
        Ok(())
    }
}

#[test]
fn a_device_reads_and_writes_an_import() {
    VMS.with(|vms| {
        for kind in ATTACHED {
            let mut it = take(vms, kind)?;
            it.b.step(it.importer, Step::Map)?;
            let seen = it.b.step_read(it.importer, DMA_READ)?;
            ensure!(
                seen == page(it.seed),
                "{kind:?}: the device reads something else"
            );
            it.b.step(it.importer, dma_write(it.seed + 50))?;
            let seen = it.a.peek(it.mine, OFFSET, PAGE.into())?;
            let seen = seen.context("no memory")?;
            ensure!(
                seen == page(it.seed + 50),
                "{kind:?}: the device writes something else"
            );
            it.b.step(it.importer, Step::Unmap)?;
            // And a second time.
            it.b.step(it.importer, Step::Map)?;
            let seen = it.b.step_read(it.importer, DMA_READ)?;
            ensure!(seen == page(it.seed + 50), "{kind:?}: mapped again");
        }
        Ok(())
    });
}

/// Some importers keep one mapping while they make the next. The end of one is not
/// that of the other, and the memory is in use until both have ended.
#[test]
fn a_device_maps_an_import_twice_at_once() {
    VMS.with(|vms| {
        for kind in ATTACHED {
            let what = format!("{kind:?}");
            let mut it = take(vms, kind)?;
            for _ in 0..2 {
                it.b.step(it.importer, Step::Map)
                    .with_context(|| what.clone())?;
                let seen = it.b.step_read(it.importer, DMA_READ)?;
                ensure!(
                    seen == page(it.seed),
                    "{what}: the device reads something else"
                );
            }
            // A CPU's access is one to all of them.
            it.b.sync(it.import.buf, true, false)?;
            it.b.sync(it.import.buf, true, true)?;
            it.b.step(it.importer, Step::Unmap)?;
            ensure!(it.b.importer_state(it.importer)? == (1, 0), "{what}");
            it.b.step(it.importer, dma_write(it.seed + 50))?;
            let seen = it.a.peek(it.mine, OFFSET, PAGE.into())?;
            let seen = seen.context("no memory")?;
            ensure!(
                seen == page(it.seed + 50),
                "{what}: the device writes something else after the other mapping's end"
            );
        }
        Ok(())
    });
}

#[test]
fn a_revoked_import_leaves_its_window_when_the_last_of_two_device_mappings_ends() {
    VMS.with(|vms| {
        let mut it = take(vms, AttachKind::Static)?;
        it.b.step(it.importer, Step::Map)?;
        it.b.step(it.importer, Step::Map)?;
        it.revoke(vms)?;
        let importer = vms.b.name().to_owned();
        let daemon = vms.daemon()?;
        wait::until("the zero page", wait::COMMAND, || {
            Ok((daemon.snapshot()?.peer(&importer)?.windows_zero == 1).then_some(()))
        })?;
        let requests = driver::requests(&vms.b)?;
        it.b.step(it.importer, Step::Unmap)?;
        ensure!(
            driver::requests(&vms.b)? == requests,
            "given back while it is mapped"
        );
        it.b.step(it.importer, Step::Unmap)?;
        let daemon = vms.daemon()?;
        wait::until("the window to be free", wait::COMMAND, || {
            Ok((daemon.snapshot()?.peer(&importer)?.windows_zero == 0).then_some(()))
        })
    });
}

#[test]
fn the_kernel_reads_and_writes_an_import() {
    VMS.with(|vms| {
        for kind in ALL {
            let mut it = take(vms, kind)?;
            it.b.step(it.importer, Step::Vmap)?;
            it.b.step(it.importer, Step::Begin)?;
            let seen = it.b.step_read(it.importer, CPU_READ)?;
            ensure!(
                seen == page(it.seed),
                "{kind:?}: the kernel reads something else"
            );
            it.b.step(it.importer, cpu_write(it.seed + 50))?;
            it.b.step(it.importer, Step::End)?;
            let seen = it.a.peek(it.mine, OFFSET, PAGE.into())?;
            let seen = seen.context("no memory")?;
            ensure!(
                seen == page(it.seed + 50),
                "{kind:?}: the kernel writes something else"
            );
        }
        Ok(())
    });
}

/// What the core keeps of a mapping differs between kernels, and drivers differ in
/// what they do when they are asked to unmap.
#[test]
fn no_device_reads_or_writes_what_the_exporter_has_after_a_revocation() {
    VMS.with(|vms| {
        let cached = lacks(&vms.b, "refusal-when-revoked")?;
        for kind in ATTACHED {
            // What the core keeps of a mapping is that of importers that can follow.
            let refuses = kind == AttachKind::Static || !cached;
            for mapped in [true, false] {
                let what = format!("{kind:?}, mapped before: {mapped}");
                let mut it = take(vms, kind)?;
                if mapped {
                    it.b.step(it.importer, Step::Map)?;
                    let seen = it.b.step_read(it.importer, DMA_READ)?;
                    ensure!(seen == page(it.seed), "{what}");
                }
                it.revoke(vms)?;
                let (still, asked) = it.b.importer_state(it.importer)?;
                if mapped && kind != AttachKind::Static {
                    ensure!(asked == 1, "{what}: asked {asked} times to unmap");
                }
                if still == 0 {
                    let step = it.b.step(it.importer, Step::Map);
                    if refuses {
                        let refusal = refused(step).with_context(|| what.clone())?;
                        ensure!(refusal.errno == libc::ENODEV, "{what}: {refusal}");
                        it.exporter_is_untouched().context(what)?;
                        continue;
                    }
                    step.with_context(|| what.clone())?;
                }
                let seen = it.b.step_read(it.importer, DMA_READ)?;
                it.is_nothing_of_the_exporter(&seen)
                    .with_context(|| what.clone())?;
                it.b.step(it.importer, dma_write(it.seed + 50))?;
                it.exporter_is_untouched().with_context(|| what.clone())?;
                // What it wrote is lost, and is nobody's.
                let seen = it.b.step_read(it.importer, DMA_READ)?;
                it.is_nothing_of_the_exporter(&seen).context(what)?;
            }
        }
        Ok(())
    });
}

/// The kernel's dma-buf core warns of a kernel mapping that fails.
#[test]
fn a_kernel_mapping_made_after_a_revocation_is_scratch_memory() {
    VMS.with(|vms| {
        for kind in ALL {
            let mut it = take(vms, kind)?;
            it.revoke(vms)?;
            it.b.step(it.importer, Step::Vmap)?;
            let seen = it.b.step_read(it.importer, CPU_READ)?;
            ensure!(seen.iter().all(|byte| *byte == 0), "{kind:?}: not zero");
            it.b.step(it.importer, cpu_write(it.seed + 50))?;
            it.exporter_is_untouched()
                .with_context(|| format!("{kind:?}"))?;
            it.b.step(it.importer, Step::Vunmap)?;
            // Nothing of it is left in the next one.
            it.b.step(it.importer, Step::Vmap)?;
            let seen = it.b.step_read(it.importer, CPU_READ)?;
            ensure!(
                seen.iter().all(|byte| *byte == 0),
                "{kind:?}: not zero again"
            );
        }
        Ok(())
    });
}

/// It warns of one that the host does not make, too.
#[test]
fn a_kernel_mapping_that_the_host_does_not_make_is_scratch_memory_and_ends_the_import() {
    VMS.with(|vms| {
        const PATIENCE: &str = "/sys/module/virtio_bufshare/parameters/request_timeout_ms";
        let mut it = take(vms, AttachKind::Plain)?;
        let before = vms.b.read_file(PATIENCE)?;
        vms.b.write_file(PATIENCE, b"500")?;
        vms.daemon()?.pause()?;
        let mapped = it.b.step(it.importer, Step::Vmap);
        vms.daemon()?.go_on()?;
        vms.b.write_file(PATIENCE, before.trim_ascii())?;
        mapped?;
        let seen = it.b.step_read(it.importer, CPU_READ)?;
        ensure!(seen.iter().all(|byte| *byte == 0), "not zero");
        it.b.step(it.importer, cpu_write(it.seed + 50))?;
        it.exporter_is_untouched()?;
        // Nobody takes that for the buffer, and the window is given back.
        let refusal = refused(it.b.sync(it.import.buf, true, false))?;
        ensure!(refusal.errno == libc::ENODEV, "{refusal}");
        let refusal = refused(it.b.map(it.import.buf))?;
        ensure!(refusal.errno == libc::ENODEV, "{refusal}");
        let importer = vms.b.name().to_owned();
        let daemon = vms.daemon()?;
        wait::until("the late mapping to go", wait::COMMAND, || {
            Ok((daemon.snapshot()?.peer(&importer)?.mapped == 0).then_some(()))
        })?;
        it.b.step(it.importer, Step::Vunmap)?;
        // The buffer is still there for another import.
        let again = it.b.import(&it.export.id)?;
        let map = it.b.map(again.buf)?;
        ensure!(it.b.compare(map, it.seed)? == Sight::Pattern);
        Ok(())
    });
}

/// Bytes that a guest's kernel has to give.
fn ram_of(vm: &Vm) -> Result<u64> {
    let text = String::from_utf8(vm.read_file("/proc/meminfo")?)?;
    let words = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .context("no MemTotal")?;
    let kib: u64 = words.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

/// Who waits for such a mapping is killed: the wait goes on until the host answers, and
/// the import is as good for others as before.
#[test]
fn a_kernel_mapping_whose_process_is_killed_is_made_and_does_not_end_the_import() {
    VMS.with(|vms| {
        let mut it = take(vms, AttachKind::Plain)?;
        let pid = it.b.program().pid();
        let mut other = vms.b.client()?;
        let buf = other.adopt(pid, 0)?;
        let maps = |vms: &mut TwoVms| -> Result<u64> {
            Ok(vms.daemon()?.snapshot()?.peer("b")?.map_requests)
        };
        let before = maps(vms)?;
        let requests = driver::requests(&vms.b)?;
        vms.daemon()?.pause()?;
        let killed = (|| {
            it.b.begin(Op::Importer {
                importer: it.importer.number,
                step: Step::Vmap,
            })?;
            wait::until("the request for the mapping", wait::COMMAND, || {
                Ok((driver::requests(&vms.b)? > requests).then_some(()))
            })?;
            it.b.program().signal(libc::SIGKILL)
        })();
        vms.daemon()?.go_on()?;
        killed?;
        it.b.program().end(wait::COMMAND, |_, _| {})?;
        ensure!(maps(vms)? == before + 1, "the mapping was not asked for");
        let map = other.map(buf)?;
        ensure!(other.compare(map, it.seed)? == Sight::Pattern);
        Ok(())
    });
}

/// The memory that a kernel mapping needs grows with the buffer, and its exporter says
/// how large that is.
#[test]
fn a_buffer_larger_than_the_ram_has_no_kernel_mapping() {
    SMALL.with(|vms| {
        let size = ram_of(&vms.b)?.next_multiple_of(64 << 20) + (64 << 20);
        vms.b.insert("importer", &[])?;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let buf = a.alloc(size)?;
        let export = a.export(buf)?;
        let import = b.import(&export.id)?;
        let importer = b.attach(import.buf, AttachKind::Plain)?;
        let refusal = refused(b.step(importer, Step::Vmap))?;
        ensure!(refusal.errno == libc::EINVAL, "{refusal}");
        a.close(export.number)?;
        b.wait_event_of("Revoked", &export.id)?;
        let refusal = refused(b.step(importer, Step::Vmap))?;
        ensure!(refusal.errno == libc::EINVAL, "{refusal}");
        Ok(())
    });
}

#[test]
fn a_kernel_mapping_leads_to_nothing_of_the_exporter_after_a_revocation() {
    VMS.with(|vms| {
        for kind in ALL {
            let mut it = take(vms, kind)?;
            it.b.step(it.importer, Step::Vmap)?;
            it.revoke(vms)?;
            let importer = vms.b.name().to_owned();
            let daemon = vms.daemon()?;
            wait::until("the zero page", wait::COMMAND, || {
                let filled = daemon.snapshot()?.peer(&importer)?.windows_zero;
                Ok((filled == 1).then_some(()))
            })?;
            let seen = it.b.step_read(it.importer, CPU_READ)?;
            it.is_nothing_of_the_exporter(&seen)?;
            it.b.step(it.importer, cpu_write(it.seed + 50))?;
            it.exporter_is_untouched()?;
            drop(it);
            vms.settled()?;
        }
        Ok(())
    });
}

/// Who says that an access ends has to have said that it began, and who does so in
/// the kernel does no harm to anybody.
#[test]
fn accesses_of_the_kernel_are_counted_with_those_of_programs() {
    VMS.with(|vms| {
        let mut it = take(vms, AttachKind::Plain)?;
        let refusal = refused(it.b.step(it.importer, Step::End))?;
        ensure!(refusal.errno == libc::EINVAL, "{refusal}");
        it.b.step(it.importer, Step::Begin)?;
        it.b.sync(it.import.buf, true, false)?;
        it.b.step(it.importer, Step::End)?;
        it.b.sync(it.import.buf, true, true)?;
        let refusal = refused(it.b.sync(it.import.buf, true, true))?;
        ensure!(refusal.errno == libc::EINVAL, "{refusal}");
        Ok(())
    });
}
