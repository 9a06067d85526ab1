// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Times bufshare: beside what else carries frames between two VMs, or beside another build
//!
//! `scripts/bench` builds what this needs and runs it. What is compared alternates in one
//! run: one machine is as noisy for all of it, and what counts is the ratio of a round's
//! figures.

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

mod compare;
mod guest_trace;
mod machines;
mod outcome;
mod peers;
mod profile;
mod program;
mod statistics;
mod wakeups;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Time bufshare
#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// The hand-over beside other carriers of frames, on the same two VMs
    Peers(peers::Peers),
    /// Name each wake-up of a hand-over, and what it costs
    Profile(profile::Profile),
    /// Run all legs with two builds in turn, and compare
    Compare(compare::Compare),
    /// One leg of compare: imports to their first byte in two VMs; prints JSON
    Imports(compare::Imports),
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match options.mode {
        Mode::Peers(peers) => peers.run(),
        Mode::Profile(profile) => profile.run(),
        Mode::Compare(compare) => compare.run(),
        Mode::Imports(imports) => imports.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
