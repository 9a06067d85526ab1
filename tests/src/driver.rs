// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver and its device in a guest, by sysfs

use std::time::Duration;

use anyhow::{Context as _, Result};
use bufshare_agent::wire::Command;

use crate::channel::errno_of;
use crate::vm::Vm;
use crate::wait;

const FOLDER: &str = "/sys/bus/virtio/drivers/virtio_bufshare";

/// For an unbind: with an importer that is stuck, the driver and the daemon wait for 15 s.
const UNBIND: Duration = Duration::from_secs(60);

/// Where the driver says what it does.
pub const STATE: &str = "/sys/kernel/debug/bufshare/state";

/// How many requests the device has had.
///
/// # Errors
/// When the driver does not say, or as [`Vm::call`].
pub fn requests(vm: &Vm) -> Result<u64> {
    counter(vm, "requests")
}

/// How many events the driver has taken.
///
/// # Errors
/// As [`requests`].
pub fn events(vm: &Vm) -> Result<u64> {
    counter(vm, "events")
}

/// How many waits for the host have ended because it did not answer in time.
///
/// # Errors
/// When the driver does not say, or as [`Vm::call`].
pub fn timeouts(vm: &Vm) -> Result<u64> {
    counter(vm, "timeouts")
}

fn counter(vm: &Vm, name: &str) -> Result<u64> {
    let state = String::from_utf8(vm.read_file(STATE)?)?;
    let mut words = state.lines().filter_map(|line| line.split_once(' '));
    let number = words.find_map(|(word, number)| (word == name).then_some(number));
    let number = number.with_context(|| format!("no number of {name}: {state}"))?;
    number.parse().with_context(|| format!("{name}: {number}"))
}

/// Whether it is loaded, bound to a device or not.
///
/// # Errors
/// As [`Vm::call`].
pub fn is_loaded(vm: &Vm) -> Result<bool> {
    Ok(!vm.list_dir(FOLDER)?.is_empty())
}

/// The virtio device that the driver is bound to, if there is one.
///
/// # Errors
/// As [`Vm::call`].
pub fn bound(vm: &Vm) -> Result<Option<String>> {
    let names = vm.list_dir(FOLDER)?;
    Ok(names.into_iter().find(|name| name.starts_with("virtio")))
}

/// Unbind the driver from its device; the device's name, for [`bind`].
///
/// # Errors
/// When there is no device, or as [`Vm::call`].
pub fn unbind(vm: &Vm) -> Result<String> {
    let device = bound(vm)?.context("the driver has no device")?;
    let unbinding = vm.channel().ask(Command::WriteFile {
        path: format!("{FOLDER}/unbind"),
        data: device.as_bytes().to_vec(),
    })?;
    unbinding.wait(UNBIND).context("unbinding")?;
    Ok(device)
}

/// Bind the driver to a device.
///
/// # Errors
/// As [`Vm::call`].
pub fn bind(vm: &Vm, device: &str) -> Result<()> {
    vm.write_file(&format!("{FOLDER}/bind"), device.as_bytes())
}

/// Remove a module as soon as nobody uses it.
///
/// # Errors
/// When that does not come, or as [`Vm::call`].
pub fn unload_when_free(vm: &Vm, module: &str) -> Result<()> {
    let what = format!("the module {module} to be free");
    wait::until(&what, wait::COMMAND, || match vm.unload(module) {
        Ok(()) => Ok(Some(())),
        Err(error) if errno_of(&error) == Some(libc::EAGAIN) => Ok(None),
        Err(error) => Err(error),
    })
}

/// Whether the driver cannot do what it calls `feature` because of its kernel.
///
/// # Errors
/// As [`Vm::call`].
pub fn lacks(vm: &Vm, feature: &str) -> Result<bool> {
    let missing = vm.read_file("/sys/class/misc/bufshare/missing_features")?;
    Ok(String::from_utf8(missing)?
        .lines()
        .any(|name| name == feature))
}

/// The folder of the PCI device that the driver's device is part of.
///
/// # Errors
/// When there is no device, or as [`Vm::call`].
pub fn pci_device(vm: &Vm) -> Result<String> {
    let name = bound(vm)?.context("the driver has no device")?;
    let device = vm.output(&["busybox", "readlink", "-f", &format!("{FOLDER}/{name}")])?;
    let (parent, _) = device.trim().rsplit_once('/').context("no parent")?;
    Ok(parent.to_owned())
}
