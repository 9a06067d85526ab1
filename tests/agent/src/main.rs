// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The init of a test guest
//!
//! As process 1 it prepares the machine and serves the fixture (`init`). As
//! `/init client` it is the process of a test that holds buffers (`client`), and
//! `/init with-dmabuf` passes one to another program (`pass`); `/init as` runs one as an ordinary user (`user`); `/init produce`, `lie` and `consume`
//! push and take frames of a stream (`streams`).

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
mod streams;
mod user;

use std::process::ExitCode;
use std::time::Duration;

/// `limit`, on this machine.
fn scaled(limit: Duration) -> Duration {
    limit * factor::factor()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rest = arguments.get(1..).unwrap_or_default();
    let result = match arguments.first().map(String::as_str) {
        _ if std::process::id() == 1 => init::run(),
        Some("client") => client::run(),
        Some("with-dmabuf") => pass::run(rest),
        Some("as") => user::run(rest),
        Some("produce") => streams::produce(rest),
        Some("lie") => streams::lie(rest),
        Some("consume") => streams::consume(rest),
        other => Err(anyhow::anyhow!(
            "{other:?}: this is the init of bufshare's test guests; its subcommands are 'client', \
             'with-dmabuf', 'as', 'produce', 'lie' and 'consume'"
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
