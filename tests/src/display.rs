// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The display of a guest that shows buffers of other drivers

use anyhow::Result;

use crate::image::Picture;
use crate::lab;
use crate::vm::{CARD, Machine, Vm};

/// A display card of QEMU and its DRM driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Display {
    /// QEMU's name of the card, and the kernel module.
    card: &'static str,
    /// What DRM calls the driver.
    pub driver: &'static str,
}

impl Display {
    /// One whose driver takes foreign buffers of 640x480 in the guests' kernel: bochs
    /// of Linux 6.12 refuses every PRIME import, whoever exported the buffer.
    #[must_use]
    pub fn that_imports() -> Self {
        if lab::series() == "stable" {
            Self {
                card: "cirrus",
                driver: "cirrus",
            }
        } else {
            Self {
                card: CARD,
                driver: "bochs-drm",
            }
        }
    }

    /// Give a machine this card, unless each has it.
    pub fn add_to(self, machine: &mut Machine) {
        if self.card != CARD {
            let device = format!("{}-vga,id={}", self.card, self.card);
            machine.qemu.extend(["-device".to_owned(), device]);
        }
    }

    /// Load its driver.
    ///
    /// # Errors
    /// From the guest.
    pub fn load(self, vm: &Vm) -> Result<()> {
        vm.load(self.card, "")
    }

    /// What it shows.
    ///
    /// # Errors
    /// From QEMU.
    pub fn screen(self, vm: &Vm) -> Result<Picture> {
        vm.screen_of(self.card)
    }
}
