// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device of a guest as a PCI function

use anyhow::{Context as _, Result, bail, ensure};

use crate::driver::pci_device;
use crate::vm::Vm;

/// A guest's PCI device, by its configuration space in sysfs.
#[derive(Debug)]
pub struct PciConfig<'a> {
    vm: &'a Vm,
    path: String,
}

impl<'a> PciConfig<'a> {
    /// Of the bufshare device.
    ///
    /// # Errors
    /// When there is none, or as [`Vm::call`].
    pub fn of(vm: &'a Vm) -> Result<Self> {
        let path = format!("{}/config", pci_device(vm)?);
        Ok(Self { vm, path })
    }

    /// Writes bytes at an offset, in one access.
    fn write(&self, at: usize, bytes: &[u8]) -> Result<()> {
        let text: String = bytes.iter().map(|byte| format!("\\{byte:03o}")).collect();
        let (size, place) = (bytes.len(), at / bytes.len());
        ensure!(at.is_multiple_of(size), "not one access");
        let script = format!(
            "printf '{text}' | busybox dd of={} bs={size} seek={place} conv=notrunc",
            self.path
        );
        self.vm.output(&["busybox", "sh", "-c", &script]).map(drop)
    }

    /// Switches bus mastering: without it the device is stopped, but not reset.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn set_bus_master(&self, on: bool) -> Result<()> {
        self.write(4, &[if on { 6 } else { 2 }])
    }

    /// Switches its interrupts by a pin: without them it raises one as soon as it may.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn set_interrupts(&self, on: bool) -> Result<()> {
        self.write(5, &[if on { 0 } else { 4 }])
    }

    /// Where the capability for one of the device's structures begins, and what
    /// it says of that (virtio 1.2, 4.1.4): its BAR and its offset therein.
    fn capability(&self, wanted: u8) -> Result<(usize, u8, u32)> {
        const VENDOR: u8 = 9;
        let space = self.vm.read_file(&self.path)?;
        let byte = |at: usize| space.get(at).copied().context("a short configuration");
        let mut at = usize::from(byte(0x34)?);
        while at != 0 {
            if byte(at)? == VENDOR && byte(at + 3)? == wanted {
                let offset = space.get(at + 8..at + 12).context("short")?;
                return Ok((at, byte(at + 4)?, u32::from_le_bytes(offset.try_into()?)));
            }
            at = usize::from(byte(at + 1)?);
        }
        bail!("no capability of type {wanted}")
    }

    /// Points the window that PCI configuration space has for the device's
    /// structures (virtio 1.2, 4.1.4.9) at a field of one. Returns where it is.
    fn point(&self, structure: u8, field: u32, size: u32) -> Result<usize> {
        const ACCESS: u8 = 5;
        let (access, _, _) = self.capability(ACCESS)?;
        let (_, bar, offset) = self.capability(structure)?;
        self.write(access + 4, &[bar])?;
        self.write(access + 8, &(offset + field).to_le_bytes())?;
        self.write(access + 12, &size.to_le_bytes())?;
        Ok(access + 16)
    }

    /// Writes a field of the common configuration structure.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn set_common(&self, field: u32, bytes: &[u8]) -> Result<()> {
        const COMMON: u8 = 1;
        let at = self.point(COMMON, field, u32::try_from(bytes.len())?)?;
        self.write(at, bytes)
    }

    /// Reads the first word of the device's own configuration, as a driver does
    /// that looks at it for the first time.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn read_device_config(&self) -> Result<()> {
        const DEVICE: u8 = 4;
        let at = self.point(DEVICE, 0, 4)?;
        let script = format!("busybox dd if={} bs=4 skip={} count=1", self.path, at / 4);
        self.vm.output(&["busybox", "sh", "-c", &script]).map(drop)
    }
}
