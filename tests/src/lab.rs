// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where kernel, image and programs are
//!
//! All of it is made by the scripts before a test runs; what is missing is a
//! [`Skip`], which says what to run.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};

use crate::report::Skip;
use crate::{child, wait};

/// Environment variable: the series of the guests' kernel, see [`series`].
const KERNEL: &str = "BUFSHARE_KERNEL";
/// What it is if nobody says.
const DEFAULT_KERNEL: &str = "stable";
/// Environment variable: MiB of RAM that every guest has in addition.
const EXTRA_MEMORY: &str = "BUFSHARE_EXTRA_MEMORY";
/// Environment variable: kvm, tcg, or auto, which is what scripts/accel finds.
const ACCEL: &str = "BUFSHARE_ACCEL";

/// The parts of a test machine.
#[derive(Debug, Clone)]
pub struct Lab {
    /// Where scripts/lab made it.
    pub folder: PathBuf,
    /// Runs a command in the lab's root.
    pub in_lab: PathBuf,
    /// The guests' kernel.
    pub kernel: PathBuf,
    /// Its release.
    pub kernel_release: String,
    /// The guests' image.
    pub initramfs: PathBuf,
    /// QEMU's version.
    pub qemu_version: String,
    /// Accelerator of QEMU: kvm or tcg.
    pub accel: String,
    /// RAM that this kernel takes of every guest beyond what Debian's does, MiB.
    pub extra_memory: u32,
}

impl Lab {
    /// Find them.
    ///
    /// # Errors
    /// A [`Skip`] when something is missing.
    pub fn find() -> Result<Self> {
        let folder = folder();
        let series = series();
        let mut values = HashMap::new();
        for name in ["lab.env", &format!("kernel-{series}.env")] {
            let path = folder.join(name);
            let text = std::fs::read_to_string(&path).map_err(|error| {
                Skip::new(format!(
                    "no lab ({}: {error}): run scripts/lab --kernel {series}",
                    path.display()
                ))
            })?;
            values.extend(assignments(&text));
        }
        let get = |name: &str| {
            values.get(name).cloned().with_context(|| {
                format!("{}: no {name}: run scripts/lab --force", folder.display())
            })
        };
        let initramfs = env_path("BUFSHARE_INITRAMFS")
            .unwrap_or_else(|| target().join(format!("guest/initramfs-{series}.cpio")));
        if !initramfs.exists() {
            return Err(Skip::new(format!(
                "no guest image {}: run scripts/guest-image --kernel {series}",
                initramfs.display()
            ))
            .into());
        }
        Ok(Self {
            folder: folder.clone(),
            in_lab: repo().join("scripts/in-lab"),
            kernel: get("KERNEL_IMAGE")?.into(),
            kernel_release: get("KERNEL_RELEASE")?,
            initramfs,
            qemu_version: get("QEMU_VERSION")?,
            accel: match accel_of(&std::env::var(ACCEL).unwrap_or_default())? {
                Some(accel) => accel.to_owned(),
                None => accel_found()?,
            },
            extra_memory: match std::env::var(EXTRA_MEMORY) {
                Ok(text) => text.parse().context(EXTRA_MEMORY)?,
                Err(_) => 0,
            },
        })
    }
}

/// The series of the guests' kernel: `stable`, that of Debian's stable release, or
/// `newest`, that of its backports suite. `BUFSHARE_KERNEL` names it.
#[must_use]
pub fn series() -> String {
    std::env::var(KERNEL)
        .ok()
        .filter(|series| !series.is_empty())
        .unwrap_or_else(|| DEFAULT_KERNEL.to_owned())
}

/// Whether the guests' kernel is one of scripts/debug-kernel.
pub(crate) fn is_debug_kernel() -> bool {
    let path = folder().join(format!("kernel-{}.env", series()));
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let values = assignments(&text);
    let release = values.get("KERNEL_RELEASE");
    release.is_some_and(|release| release.ends_with("-debug"))
}

/// Where scripts/lab made the lab.
pub(crate) fn folder() -> PathBuf {
    env_path("BUFSHARE_LAB").unwrap_or_else(|| cache_folder().join("bufshare/lab"))
}

/// Whether this host shares by udmabuf, found as the daemon does: a node that cannot be
/// opened is of no use.
#[must_use]
pub fn has_udmabuf() -> bool {
    opens("/dev/udmabuf")
}

/// Whether /dev/kvm can be opened. Whether a guest boots with it is another question, see
/// scripts/accel.
#[must_use]
pub fn has_kvm() -> bool {
    opens("/dev/kvm")
}

/// Whether a device can be opened to read and write.
fn opens(device: &str) -> bool {
    let mut options = std::fs::File::options();
    let file = options.read(true).write(true).open(device);
    file.and_then(|file| file.metadata())
        .is_ok_and(|found| found.file_type().is_char_device())
}

/// The accelerator that the variable names; none: one has to be found.
fn accel_of(word: &str) -> Result<Option<&str>> {
    match word {
        "" | "auto" => Ok(None),
        "kvm" | "tcg" => Ok(Some(word)),
        other => bail!("{ACCEL} is '{other}'; it has to be kvm, tcg or auto"),
    }
}

/// What scripts/accel finds, asked once. It says why on our stderr.
fn accel_found() -> Result<String> {
    static FOUND: OnceLock<Result<String, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| ask_accel().map_err(|error| format!("{error:#}")));
    found.clone().map_err(anyhow::Error::msg)
}

fn ask_accel() -> Result<String> {
    let script = repo().join("scripts/accel");
    let mut command = Command::new(&script);
    command.args(["--accel", "auto", "--kernel", &series()]);
    // It may have to boot a guest.
    let output = child::output("scripts/accel", command, wait::BOOT)?;
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    let word = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() {
        bail!("{} failed: {}", script.display(), output.status);
    }
    match accel_of(&word)? {
        Some(accel) => Ok(accel.to_owned()),
        None => bail!("{} names no accelerator", script.display()),
    }
}

/// The daemon's program.
///
/// # Errors
/// A [`Skip`] when it is not built.
pub fn daemon_program() -> Result<PathBuf> {
    let path = env_path("BUFSHARE_DAEMON").or_else(|| beside_us("vhost-device-bufshare"));
    let found = path.filter(|path| path.exists());
    found.ok_or_else(|| {
        Skip::new(
            "no daemon: run cargo build -p vhost-device-bufshare, or name it in BUFSHARE_DAEMON",
        )
        .into()
    })
}

/// A kernel module of `tests/guest/FOLDER`, for the guests' kernel.
///
/// # Errors
/// A [`Skip`] when it is not built.
pub fn test_module(folder: &str) -> Result<Vec<u8>> {
    let path = target()
        .join(format!("{folder}-module-{}", series()))
        .join(format!("bufshare_{folder}.ko"));
    std::fs::read(&path).map_err(|error| {
        Skip::new(format!("no {} ({error}): run scripts/test", path.display())).into()
    })
}

/// The checkout.
#[must_use]
pub fn repo() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// Cargo's target folder.
#[must_use]
pub fn target() -> PathBuf {
    let folder = env_path("CARGO_TARGET_DIR").unwrap_or_else(|| repo().join("target"));
    std::path::absolute(&folder).unwrap_or(folder)
}

/// Built in the same profile as this program.
fn beside_us(name: &str) -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let mut folder = program.parent()?;
    if folder.ends_with("deps") {
        folder = folder.parent()?;
    }
    Some(folder.join(name))
}

fn env_path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

fn cache_folder() -> PathBuf {
    env_path("XDG_CACHE_HOME").unwrap_or_else(|| {
        let home = std::env::var_os("HOME").unwrap_or_else(|| OsString::from("/tmp"));
        PathBuf::from(home).join(".cache")
    })
}

/// Read `NAME=VALUE` lines as a shell's `printf %q` writes them.
fn assignments(text: &str) -> HashMap<String, String> {
    let mut values = HashMap::new();
    for line in text.lines() {
        let Some((name, quoted)) = line.split_once('=') else {
            continue;
        };
        let mut value = String::new();
        let mut characters = quoted.chars();
        while let Some(character) = characters.next() {
            match character {
                '\\' => value.extend(characters.next()),
                '\'' => {}
                other => value.push(other),
            }
        }
        values.insert(name.to_owned(), value);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accelerator_is_named_or_to_be_found() {
        for word in ["", "auto"] {
            assert_eq!(accel_of(word).unwrap(), None, "'{word}'");
        }
        for word in ["kvm", "tcg"] {
            assert_eq!(accel_of(word).unwrap(), Some(word));
        }
        let error = accel_of("KVM").unwrap_err().to_string();
        assert!(
            error.contains("BUFSHARE_ACCEL is 'KVM'") && error.contains("kvm, tcg or auto"),
            "{error}"
        );
    }

    #[test]
    fn assignments_are_unquoted() {
        let values = assignments("A=/x/y\nB=/with\\ space\nC=''\n# no assignment\n");
        assert_eq!(values["A"], "/x/y");
        assert_eq!(values["B"], "/with space");
        assert_eq!(values["C"], "");
    }
}
