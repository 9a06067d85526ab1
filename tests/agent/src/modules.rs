// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kernel modules of the image

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail};

/// Where the image has them.
const FOLDER: &str = "/modules";

/// Parameters of modules that others need. A console on a screen draws when the guest comes back
/// from a sleep, and then waits for the screen: where the host is slow that is a warning of the
/// kernel's.
const DEPENDENCIES: [(&str, &str); 1] = [("drm_kms_helper", "fbdev_emulation=0")];

/// The parameters that modules were loaded with, by name.
static PARAMETERS: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

fn parameters() -> MutexGuard<'static, BTreeMap<String, String>> {
    PARAMETERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Load `name` and what it needs; fine if any of it is there already, unless `name` was
/// loaded with other parameters than the `params` asked for.
pub(crate) fn load(name: &str, params: &str) -> Result<()> {
    let order = Path::new(FOLDER).join("modules.order");
    let text =
        std::fs::read_to_string(&order).with_context(|| format!("reading {}", order.display()))?;
    let wanted = normal(name);
    let Some(files) = text.lines().find_map(|line| {
        let (first, rest) = line.split_once(':')?;
        (normal(first.trim()) == wanted).then_some(rest)
    }) else {
        bail!("the image has no module {name}");
    };
    let files: Vec<&str> = files.split_whitespace().collect();
    for (index, file) in files.iter().enumerate() {
        let last = index + 1 == files.len();
        let params = if last { params } else { of_dependency(file) };
        let path = Path::new(FOLDER).join(file);
        let handle = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let text = CString::new(params)?;
        // SAFETY: a valid descriptor and a terminated string.
        let result =
            unsafe { libc::syscall(libc::SYS_finit_module, handle.as_raw_fd(), text.as_ptr(), 0) };
        let error = (result != 0).then(io::Error::last_os_error);
        match error {
            None if last => drop(parameters().insert(wanted.clone(), params.to_owned())),
            None => {}
            Some(error) if error.raw_os_error() != Some(libc::EEXIST) => {
                return Err(error).with_context(|| format!("loading {file}"));
            }
            // Whoever loaded it knew what with.
            Some(_) if !last => {}
            Some(error) => {
                let as_asked = parameters().get(&wanted).is_some_and(|has| has == params);
                if !params.is_empty() && !as_asked {
                    return Err(error).with_context(|| {
                        format!("{file} is loaded, but not with '{params}': unload it first")
                    });
                }
            }
        }
    }
    Ok(())
}

/// What a module is loaded with that is in this file of the image, and is not asked for itself.
fn of_dependency(file: &str) -> &'static str {
    let name = Path::new(file).file_name().and_then(|name| name.to_str());
    let name = name.and_then(|name| name.split('.').next()).map(normal);
    let mut all = DEPENDENCIES.iter();
    all.find(|(module, _)| name.as_deref() == Some(*module))
        .map_or("", |(_, params)| *params)
}

/// Remove `name`, not waiting for anybody to release it.
pub(crate) fn unload(name: &str) -> io::Result<()> {
    let name = normal(name);
    let text = CString::new(name.as_str())?;
    // SAFETY: a terminated string.
    let result = unsafe { libc::syscall(libc::SYS_delete_module, text.as_ptr(), libc::O_NONBLOCK) };
    if result == 0 {
        parameters().remove(&name);
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The kernel's own hash of a loaded module's sources.
pub(crate) fn srcversion(name: &str) -> Option<String> {
    let path = format!("/sys/module/{}/srcversion", normal(name));
    std::fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}
