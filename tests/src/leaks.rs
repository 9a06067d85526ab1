// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that a guest's kernel has lost, where it has kmemleak
//!
//! The kernels of scripts/debug-kernel have it.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::report::Skip;
use crate::vm::Vm;

const FILE: &str = "/sys/kernel/debug/kmemleak";
/// Younger objects are taken for being in use: MSECS_MIN_AGE of mm/kmemleak.c, and one more.
const AGE: Duration = Duration::from_secs(6);
/// Begins each object that is found.
const OBJECT: &str = "unreferenced object";

/// Have it forget what it has found so far, but for what is of our modules.
///
/// # Errors
/// A [`Skip`] when this kernel has none; memory of ours that is lost.
pub fn forget(vm: &Vm) -> Result<()> {
    if vm.read_file(FILE).is_err() {
        let reason = "the guest kernel has no kmemleak: scripts/debug-kernel runs this";
        return Err(Skip::impossible(reason).into());
    }
    nothing_of_ours(vm)?;
    vm.write_file(FILE, b"clear")
}

/// Nothing that was allocated is lost. It takes some seconds.
///
/// # Errors
/// What is lost, or from the guest.
pub fn nothing(vm: &Vm) -> Result<()> {
    refuse(vm, &scan(vm)?)
}

/// Nothing is lost that our modules allocated, or that was for them; where the kernel has no
/// kmemleak, nobody knows.
///
/// # Errors
/// What is lost, or from the guest.
pub(crate) fn nothing_of_ours(vm: &Vm) -> Result<()> {
    if vm.read_file(FILE).is_err() {
        return Ok(());
    }
    refuse(vm, &ours(&scan(vm)?))
}

fn scan(vm: &Vm) -> Result<String> {
    thread::sleep(AGE);
    // What it finds at first may just have been on its way.
    for _ in 0..2 {
        vm.write_file(FILE, b"scan")?;
    }
    Ok(String::from_utf8_lossy(&vm.read_file(FILE)?).into_owned())
}

/// The objects whose traces name one of our modules.
fn ours(found: &str) -> String {
    let mut objects: Vec<String> = Vec::new();
    for line in found.lines() {
        match objects.last_mut() {
            Some(object) if !line.starts_with(OBJECT) => {
                object.push('\n');
                object.push_str(line);
            }
            _ => objects.push(line.to_owned()),
        }
    }
    // Not those of the command of that name alone.
    objects.retain(|object| object.contains("bufshare_") || object.contains("_bufshare]"));
    objects.join("\n")
}

fn refuse(vm: &Vm, lost: &str) -> Result<()> {
    ensure!(lost.is_empty(), "guest {} lost memory:\n{lost}", vm.name());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::ours;

    #[test]
    fn objects_of_ours_are_distinguished_from_others() {
        let object = |function: &str| {
            format!(
                "unreferenced object 0xffff888003c5d600 (size 64):\n  comm \"init\", pid 1\n  \
                 backtrace (crc 0):\n    kmalloc_trace+0x1/0x2\n    {function}+0x1/0x2\n"
            )
        };
        let other = object("acpi_ut_create");
        let own = object("bufshare_import_make");
        assert_eq!(ours(""), "");
        assert_eq!(ours(&other), "");
        assert_eq!(ours(&own), own.trim_end());
        let both = format!("{other}{own}{other}{own}");
        assert_eq!(ours(&both), format!("{own}{}", own.trim_end()));
    }
}
