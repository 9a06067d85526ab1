// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that both VMs see all of: the BAR of QEMU's `ivshmem-plain`
//!
//! The device signals nothing, so both sides look for what the other one wrote: first without
//! a pause, which is the least delay that there can be, then with short ones. Where the host
//! has no CPU left for the other side, looking on would only keep it from what is waited for.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Transport, deadline};

const DEVICES: &str = "/sys/bus/pci/devices";
/// Of PCI: who made it, and what it is.
const VENDOR: &str = "0x1af4";
const DEVICE: &str = "0x1110";
/// The BAR that is the memory. It may be prefetched, so the kernel has this file for it.
const RESOURCE: &str = "resource2_wc";
/// The frame lies behind the counters, in pages of its own.
const FRAME: usize = 4096;
/// How often one looks for the other's counter without a pause: about as long as it takes to
/// sleep and to be woken, on an emulated machine.
const LOOKS: u32 = 10_000;
const PAUSE: Duration = Duration::from_micros(20);

pub(super) struct Ivshmem {
    memory: NonNull<u8>,
    len: usize,
    /// Frames until now.
    frames: u64,
}

/// How many frames were put there, and how many were taken.
#[derive(Clone, Copy)]
enum Counter {
    Sent,
    Received,
}

impl Ivshmem {
    pub(super) fn open() -> Result<Self> {
        let device = device()?;
        // Where no driver is, nobody else has switched it on.
        fs::write(device.join("enable"), "1").context("switching the device on")?;
        let path = device.join(RESOURCE);
        let opened = File::options().read(true).write(true).open(&path);
        let file = opened.with_context(|| format!("opening {}", path.display()))?;
        let len = usize::try_from(file.metadata()?.len())?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = file.as_raw_fd();
        // SAFETY: at an address of the kernel's choice.
        let memory = unsafe { libc::mmap(null_mut(), len, protection, libc::MAP_SHARED, fd, 0) };
        if memory == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).context("mapping the memory");
        }
        Ok(Self {
            memory: NonNull::new(memory.cast()).context("mapped at 0")?,
            len,
            frames: 0,
        })
    }

    fn counter(&self, counter: Counter) -> &AtomicU64 {
        let index = match counter {
            Counter::Sent => 0,
            Counter::Received => 1,
        };
        // SAFETY: the first page of the mapping, which lives as long as this does.
        let place = unsafe { self.memory.cast::<AtomicU64>().add(index) };
        // SAFETY: aligned, and all access to it is atomic, in both VMs.
        unsafe { place.as_ref() }
    }

    /// Waits until the other side has counted to this.
    fn wait(&self, counter: Counter, wanted: u64) -> Result<()> {
        let there = || self.counter(counter).load(Ordering::Acquire) == wanted;
        if (0..LOOKS).any(|_| there()) {
            return Ok(());
        }
        let late = deadline();
        while !there() {
            ensure!(Instant::now() < late, "the other side does not count on");
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Where frames of this length lie.
    fn place(&self, len: usize) -> Result<*mut u8> {
        let end = FRAME.checked_add(len).context("a frame too large")?;
        ensure!(end <= self.len, "{len} bytes are too many");
        // SAFETY: within the mapping.
        Ok(unsafe { self.memory.as_ptr().add(FRAME) })
    }
}

impl Transport for Ivshmem {
    fn send(&mut self, frame: &[u8]) -> Result<()> {
        let place = self.place(frame.len())?;
        // SAFETY: both are that long. The other VM does not look at it before it is counted.
        unsafe { place.copy_from_nonoverlapping(frame.as_ptr(), frame.len()) };
        self.frames += 1;
        self.counter(Counter::Sent)
            .store(self.frames, Ordering::Release);
        self.wait(Counter::Received, self.frames)
    }

    fn receive(&mut self, frame: &mut [u8]) -> Result<()> {
        let place = self.place(frame.len())?;
        self.frames += 1;
        self.wait(Counter::Sent, self.frames)?;
        // SAFETY: both are that long. The other VM writes no more before it is counted.
        unsafe { place.copy_to_nonoverlapping(frame.as_mut_ptr(), frame.len()) };
        self.counter(Counter::Received)
            .store(self.frames, Ordering::Release);
        Ok(())
    }
}

impl Drop for Ivshmem {
    fn drop(&mut self) {
        // SAFETY: mapped by us; nothing borrows it.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.len) };
    }
}

/// The first of them in sysfs.
fn device() -> Result<PathBuf> {
    for entry in fs::read_dir(DEVICES).context(DEVICES)? {
        let path = entry?.path();
        if reads(&path, "vendor", VENDOR) && reads(&path, "device", DEVICE) {
            return Ok(path);
        }
    }
    anyhow::bail!("this VM has no ivshmem device")
}

fn reads(device: &Path, file: &str, wanted: &str) -> bool {
    fs::read_to_string(device.join(file)).is_ok_and(|text| text.trim() == wanted)
}
