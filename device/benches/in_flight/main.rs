// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QUERYs in flight beside an empty echo: what the daemon costs over a back end that reads
//! requests and writes answers and does nothing else
//!
//! `cargo bench -p vhost-device-bufshare --bench in_flight` prints a table, and `scripts/bench`
//! has it in its own. Both back ends are processes of their own and have a front end in this
//! one, with the same driver and the same chains. They take turns in rounds so short that
//! other load seldom falls into one, and each round's two rates are divided by each other. Of
//! the quotients, as of all else, the table has the median, and their quartiles. The CPU time
//! is that of the back end's process. A run may take five minutes (see `Daemon`).
//!
//! The front end sleeps until the device signals, as a guest that is idle does. It has one
//! CPU, and the back ends are both on that one or, where there is another, both on that.
//! Left alone, the one may stay where the front end is and the other not, and who is woken
//! on an idle CPU is late by many times what a request takes. On one CPU requests come in
//! full batches, and the rates are those of the back end's own work.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "what goes wrong ends the measurement"
)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod driver;
mod echo;
mod process;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bufshare_protocol::command;
use bufshare_protocol::request::Request;
use bufshare_protocol::response::{self, Response};
use bufshare_protocol::types::BufferId;
use clap::Parser;
use common::daemon::{Daemon, Setup, binary};
use common::frontend::Options as FrontEndOptions;
use common::program::Program;
use common::until;
use common::vm::{DATA, Vm};
use driver::{Driver, SLOTS};
use process::{cpu_time, cpus, pin};
use serde::Serialize;

/// Rates of QUERY and of an empty echo
#[derive(Parser)]
struct Options {
    /// Program to measure [default: the daemon of this checkout]
    #[arg(long)]
    daemon: Option<PathBuf>,
    /// How often each is measured
    #[arg(long, default_value_t = 301, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Requests in a round
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// Requests in flight at all times
    #[arg(long, value_delimiter = ',', default_value = "1,32",
          value_parser = clap::value_parser!(u16).range(1..=i64::from(SLOTS)))]
    in_flight: Vec<u16>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Be the echo, for the front end that listens there
    #[arg(long, hide = true)]
    echo: Option<PathBuf>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// A back end in its process, and the driver of its front end.
struct Side {
    driver: Driver,
    process: u32,
    /// Requests for each second, by rounds.
    rates: Vec<f64>,
    /// Microseconds of CPU time for each request, by rounds.
    costs: Vec<f64>,
}

impl Side {
    fn new(driver: Driver, process: u32) -> Self {
        Self {
            driver,
            process,
            rates: Vec::new(),
            costs: Vec::new(),
        }
    }

    fn round(&mut self, in_flight: u16, requests: u32) {
        let before = cpu_time(self.process);
        self.rates.push(self.driver.rate(in_flight, requests));
        let time = cpu_time(self.process).saturating_sub(before);
        self.costs
            .push(time.as_secs_f64() * 1e6 / f64::from(requests));
    }

    fn forget(&mut self) {
        self.rates.clear();
        self.costs.clear();
    }
}

/// Starts the echo: its process, and the driver.
fn start_echo(dir: &Path, request: &Request) -> (Program, Side) {
    let path = dir.join("echo");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let program = Program::start(command.arg("--echo").arg(&path));
    let mut socket = None;
    until("the echo to connect", || {
        socket = listener.accept().ok();
        socket.is_some()
    });
    let (socket, _) = socket.unwrap();
    socket.set_nonblocking(false).unwrap();
    let options = FrontEndOptions {
        socket: Some(Arc::new(socket)),
        ..FrontEndOptions::default()
    };
    let side = Side::new(Driver::start(&path, &options, request), program.id());
    (program, side)
}

/// The first, the second and the third quartile.
fn quartiles(values: impl IntoIterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4])
}

fn median(values: &[f64]) -> f64 {
    quartiles(values.iter().copied())[1]
}

/// A line of the table.
#[derive(Serialize)]
struct Line {
    cpu: &'static str,
    in_flight: u16,
    echo_per_s: f64,
    query_per_s: f64,
    /// QUERY's rate by that of the echo: quartiles of the rounds.
    ratio: [f64; 3],
    echo_cpu_us: f64,
    query_cpu_us: f64,
}

/// Measures both in turns.
fn compare(
    echo: &mut Side,
    query: &mut Side,
    (place, cpu): (&'static str, usize),
    in_flight: u16,
    options: &Options,
) -> Line {
    for side in [&mut *echo, &mut *query] {
        pin(side.process, cpu);
        // One round fills caches and does not count.
        side.round(in_flight, options.requests);
        side.forget();
    }
    for round in 0..options.rounds {
        if round % options.rounds.div_ceil(5) == 0 {
            eprintln!(
                "{place} CPU, {in_flight} in flight: round {} of {}",
                round + 1,
                options.rounds
            );
        }
        let mut sides = [&mut *echo, &mut *query];
        if round % 2 == 1 {
            sides.reverse();
        }
        for side in sides {
            side.round(in_flight, options.requests);
        }
    }
    let ratios = query.rates.iter().zip(&echo.rates).map(|(q, e)| q / e);
    Line {
        cpu: place,
        in_flight,
        echo_per_s: median(&echo.rates),
        query_per_s: median(&query.rates),
        ratio: quartiles(ratios),
        echo_cpu_us: median(&echo.costs),
        query_cpu_us: median(&query.costs),
    }
}

fn print_table(options: &Options, lines: &[Line]) {
    println!(
        "{} rounds of {} requests\n    CPU in flight  echo [1/s] QUERY [1/s]   ratio  quartiles      \
         echo [us CPU] QUERY [us CPU]",
        options.rounds, options.requests
    );
    for line in lines {
        let [low, ratio, high] = line.ratio;
        println!(
            "{:>7} {:>9} {:>12.0} {:>12.0} {ratio:>7.3}  {low:.3} to {high:.3} {:>11.3} {:>11.3}",
            line.cpu,
            line.in_flight,
            line.echo_per_s,
            line.query_per_s,
            line.echo_cpu_us,
            line.query_cpu_us
        );
    }
}

/// What is timed has to be QUERY.
fn check(driver: &Driver, id: BufferId) {
    let bytes = driver.answer(0);
    match response::parse(command::QUERY, &bytes).unwrap().1 {
        Ok(Response::Buffer(info)) => assert_eq!(info.id, id),
        other => unreachable!("{other:?}"),
    }
}

fn main() {
    let options = Options::parse();
    if let Some(front_end) = &options.echo {
        return echo::run(front_end);
    }
    let cpus = cpus();
    let own = cpus[0];
    pin(std::process::id(), own);
    let daemon = Daemon::spawn(&Setup {
        program: options.daemon.clone().unwrap_or_else(|| binary().into()),
        ..Setup::default()
    });
    let mut exporter = Vm::boot(&daemon.socket("a"));
    let id = exporter.export(DATA, 4096);
    let request = Request::Query { id };
    let driver = Driver::start(&daemon.socket("b"), &FrontEndOptions::default(), &request);
    let mut query = Side::new(driver, daemon.id());
    let dir = tempfile::tempdir().unwrap();
    let (program, mut echo) = start_echo(dir.path(), &request);

    let places = [("same", own), ("other", cpus[cpus.len() - 1])];
    let places = &places[..cpus.len().min(2)];
    let mut lines = Vec::new();
    for place in places {
        for in_flight in &options.in_flight {
            let line = compare(&mut echo, &mut query, *place, *in_flight, &options);
            lines.push(line);
        }
    }
    check(&query.driver, id);
    if options.json {
        println!("{}", serde_json::to_string(&lines).unwrap());
    } else {
        print_table(&options, &lines);
    }
    drop((exporter, query, echo, program));
    daemon.finish();
}
