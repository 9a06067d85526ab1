// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kernel modules of the image

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// Where the image has them.
const FOLDER: &str = "/modules";

/// Load `name` and what it needs; fine if any of it is there already.
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
        let params = if index + 1 == files.len() { params } else { "" };
        let path = Path::new(FOLDER).join(file);
        let handle = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let params = CString::new(params)?;
        // SAFETY: a valid descriptor and a terminated string.
        let result = unsafe {
            libc::syscall(
                libc::SYS_finit_module,
                handle.as_raw_fd(),
                params.as_ptr(),
                0,
            )
        };
        if result != 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EEXIST) {
                return Err(error).with_context(|| format!("loading {file}"));
            }
        }
    }
    Ok(())
}

/// Remove `name`, not waiting for anybody to let go of it.
pub(crate) fn unload(name: &str) -> io::Result<()> {
    let name = CString::new(normal(name))?;
    // SAFETY: a terminated string.
    let result = unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
    if result == 0 {
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
