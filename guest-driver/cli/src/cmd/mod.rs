// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The commands, a file each.

mod alloc;
mod capture;
mod dump;
mod export;
mod import;
mod info;
mod list;
mod peers;
mod selftest;
mod view;
mod watch;
mod write;

use crate::args::Command;
use crate::failure::Result;
use crate::session::Session;

/// Runs one.
pub(crate) fn run(session: &Session, command: Command) -> Result<()> {
    match command {
        Command::Info => info::run(session),
        Command::Peers => peers::run(session),
        Command::List => list::run(session),
        Command::Alloc(args) => alloc::run(session, &args),
        Command::Export(args) => export::run(session, &args),
        Command::Import(args) => import::run(session, &args),
        Command::Dump(args) => dump::run(session, &args),
        Command::Write(args) => write::run(session, &args),
        Command::Watch(args) => watch::run(session, &args),
        Command::Capture(args) => capture::run(session, &args),
        Command::View(args) => view::run(session, &args),
        Command::Selftest(args) => selftest::run(session, &args),
    }
}
