// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs that take a part of the measurement

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use bufshare_tests::child;

/// Beyond the limits that the programs have of their own.
const LIMIT: Duration = Duration::from_secs(1800);

/// Run a program to its end: what it printed on standard output.
///
/// # Errors
/// When it fails, with what it said.
pub(crate) fn output(command: Command) -> Result<String> {
    let what = format!("{}", command.get_program().display());
    let output = child::output(&what, command, LIMIT)?;
    if !output.status.success() {
        bail!(
            "{what}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}
