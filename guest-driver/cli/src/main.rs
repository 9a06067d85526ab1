// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `bufshare` command: share dma-bufs with other virtual machines.

mod advice;
mod args;
mod audience;
mod camera;
mod clock;
mod cmd;
mod content;
mod durations;
mod failure;
mod image;
mod input;
mod output;
mod pump;
mod rights;
mod rotation;
mod session;
mod stop;
mod supply;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::session::Session;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let json = cli.json;
    stop::tell_lost_buffers(json);
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.is_unread_output() => ExitCode::FAILURE,
        Err(failure) => {
            complain(&failure, json);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let session = Session {
        output: Output { json: cli.json },
        node: cli.node,
    };
    cmd::run(&session, cli.command)
}

/// Reports what is wrong with the command line; help and version come here, too.
fn refuse(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().any(|argument| argument == "--json");
    if json && error.use_stderr() {
        let text = error.render().to_string();
        let first = text.lines().next().unwrap_or_default();
        complain(&Failure::new(first.trim_start_matches("error: ")), true);
    } else if error.print().is_err() {
        return ExitCode::FAILURE;
    }
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}

fn complain(failure: &Failure, json: bool) {
    use std::io::Write as _;
    let line = if json {
        failure.to_json()
    } else {
        format!("bufshare: {failure}")
    };
    // Where this fails, there is no place to report it.
    let _ = writeln!(std::io::stderr(), "{line}");
}
