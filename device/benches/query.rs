// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Round trip of QUERY between a front end in this process and a daemon in another, and
//! how long news takes from one front end to the other
//!
//! `query [--buffers N] [--requests N] DAEMON` prints one line of JSON: the medians of
//! both, in microseconds; news is a META event, from its SET_META on. The front end sleeps until the device signals, as a
//! guest that is idle does. `scripts/bench` runs it with two daemons in turn.

#![allow(clippy::arithmetic_side_effects, clippy::unwrap_used, missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::PathBuf;
use std::time::Instant;

use bufshare_protocol::event::EventKind;
use bufshare_protocol::request::Request;
use clap::Parser;
use common::daemon::{Daemon, Setup};
use common::vm::{DATA, Vm};

/// Round trip of QUERY: median, in microseconds
#[derive(Parser)]
struct Options {
    /// Program to measure
    daemon: PathBuf,
    /// Buffers that the exporter has
    #[arg(long, default_value_t = 1)]
    buffers: u64,
    /// Requests to take the median of
    #[arg(long, default_value_t = 5000)]
    requests: usize,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn main() {
    let options = Options::parse();
    let setup = Setup {
        program: options.daemon,
        ..Setup::default()
    };
    let daemon = Daemon::spawn(&setup);
    let mut exporter = Vm::boot(&daemon.socket("a"));
    let mut importer = Vm::boot(&daemon.socket("b"));
    let ids: Vec<_> = (0..options.buffers)
        .map(|number| exporter.export(DATA + number % 1024 * 4096, 4096))
        .collect();
    let query = Request::Query {
        id: *ids.last().unwrap(),
    };
    let mut times: Vec<f64> = Vec::with_capacity(options.requests);
    // The first tenth fills caches and does not count.
    for round in 0..options.requests + options.requests / 10 {
        let start = Instant::now();
        importer.request(&query).unwrap();
        let time = start.elapsed();
        if round >= options.requests / 10 {
            times.push(time.as_secs_f64() * 1e6);
        }
    }
    while !importer.events().is_empty() {}
    let set = Request::SetMeta {
        id: *ids.last().unwrap(),
        meta: Box::default(),
    };
    let mut news: Vec<f64> = Vec::with_capacity(options.requests);
    for round in 0..options.requests + options.requests / 10 {
        let start = Instant::now();
        let ticket = exporter.submit(&set);
        importer.event_of(EventKind::Meta);
        let time = start.elapsed();
        exporter.finish(ticket).unwrap();
        if round >= options.requests / 10 {
            news.push(time.as_secs_f64() * 1e6);
        }
    }
    let (query, event) = (median(times), median(news));
    println!(r#"{{"query_us": {query:.3}, "event_us": {event:.3}}}"#);
    drop((exporter, importer));
    daemon.finish();
}
