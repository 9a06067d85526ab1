// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Fixtures of the end-to-end tests: a daemon and two real virtual machines
//!
//! | module | what it is |
//! |---|---|
//! | [`pair`] | [`pair::TwoVms`]: the daemon and two guests; [`pair::Shared`]: one pair for all tests of a file |
//! | [`vm`] | one QEMU, its monitor, its guest's agent |
//! | [`client`] | a process in a guest that holds buffers for a test |
//! | [`timing`] | what a benchmark has such processes do, timed in the guest |
//! | [`daemon`] | the program under test, and what its control socket reports |
//! | [`driver`] | the driver and its device in a guest, by sysfs |
//! | [`pci`] | that device as a PCI function |
//! | [`delay`] | holds up a function of a guest's kernel |
//! | [`channel`], [`qmp`] | the two conversations with a VM |
//! | [`child`] | processes that never outlive the test |
//! | [`lab`] | where kernel, image and programs are |
//! | [`revision`] | an earlier revision of the project, built |
//! | [`leaks`] | memory that a guest's kernel has lost |
//! | `faults` | tests that a kernel's own fault breaks |
//! | [`report`] | log folders, skips, the health of the guests' kernels |
//! | [`factor`] | how many times longer they are on this machine |
//! | [`wait`] | limits; every wait has one and says what it waited for |
//! | [`sockets`] | the folder of a pair's sockets |
//! | [`neighbour`] | other vhost back ends of a VM, beside the daemon |
//! | [`display`] | the display of a guest that shows buffers of other drivers |
//! | [`image`] | screen shots |
//!
//! Nothing here panics but [`pair::Shared::with`] and [`report::run`], which are
//! what turns an error into a failed test.

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

pub mod channel;
pub mod child;
pub mod client;
pub mod daemon;
pub mod delay;
pub mod display;
pub mod driver;
pub mod factor;
mod faults;
pub mod image;
pub mod lab;
pub mod leaks;
pub mod neighbour;
pub mod pair;
pub mod pci;
pub mod qmp;
pub mod report;
pub mod revision;
pub mod sockets;
pub mod timing;
pub mod vm;
pub mod wait;
