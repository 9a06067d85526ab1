// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The init of a test guest
//!
//! As process 1 it prepares the machine and serves the fixture (`init`). As
//! `/init client` it is the process of a test that holds buffers (`client`), and
//! `/init with-dmabuf` passes one to another program (`pass`).

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

mod client;
/// By the kernel's command line, which the host writes.
#[allow(unreachable_pub, reason = "it is part of the fixture, too")]
#[path = "../../src/factor.rs"]
mod factor;
mod init;
mod modules;
mod pass;
mod port;
mod process;

use std::process::ExitCode;
use std::time::Duration;

/// `limit`, on this machine.
fn scaled(limit: Duration) -> Duration {
    limit * factor::factor()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.first().map(String::as_str) {
        _ if std::process::id() == 1 => init::run(),
        Some("client") => client::run(),
        Some("with-dmabuf") => pass::run(arguments.get(1..).unwrap_or_default()),
        other => Err(anyhow::anyhow!(
            "{other:?}: this is the init of bufshare's test guests; its subcommands are 'client' and \
             'with-dmabuf'"
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bufshare-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
