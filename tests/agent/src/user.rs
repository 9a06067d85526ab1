// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/init as USER GROUP PROGRAM [ARGUMENT...]`: run a program as an ordinary user of one group,
//! both by number

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Becomes that program.
pub(crate) fn run(words: &[String]) -> Result<()> {
    let [user, group, program, arguments @ ..] = words else {
        bail!("as USER GROUP PROGRAM [ARGUMENT...]")
    };
    let user = user.parse().context("USER")?;
    let group = group.parse().context("GROUP")?;
    // SAFETY: no groups are read.
    if unsafe { libc::setgroups(0, std::ptr::null()) } != 0 {
        return Err(io::Error::last_os_error()).context("setgroups");
    }
    let mut command = Command::new(program);
    // It sets the group first.
    Err(command.args(arguments).gid(group).uid(user).exec().into())
}
