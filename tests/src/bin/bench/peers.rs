// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The hand-over beside other carriers of frames
//!
//! Every round times each carrier at each size. Within a round a figure is the median of as
//! many frames as fit into a short time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::machines::{Carrier, Machines};
use crate::outcome::{Echo, Measured, Outcome};
use crate::program::output;
use crate::statistics::median;

const FULL: [u64; 6] = [64, 4 << 10, 64 << 10, 1 << 20, 8 << 20, 64 << 20];
const QUICK: [u64; 3] = [64, 4 << 10, 8 << 20];
/// For the frames of one carrier and size in a round.
const SPAN: Duration = Duration::from_millis(150);
/// More of them make the round's figure no better.
const MOST: u64 = 100;
/// Imports that find their mapping kept, in a round.
const KEPT: u64 = 5;
/// QUERYs in a round.
const QUERIES: u64 = 50;

/// How much is measured.
#[derive(Debug, clap::Args)]
pub(crate) struct Peers {
    /// Three sizes and few rounds
    #[arg(long)]
    quick: bool,
    /// How often everything is timed [default: 31, with --quick 5]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// The program that times QUERY beside an empty echo
    #[arg(long)]
    in_flight: PathBuf,
    /// Where to write result.json and the logs
    #[arg(long)]
    out: PathBuf,
}

impl Peers {
    /// Prints the tables and writes result.json.
    pub(crate) fn run(&self) -> Result<()> {
        let started = Instant::now();
        let sizes: &[u64] = if self.quick { &QUICK } else { &FULL };
        let rounds = self.rounds.unwrap_or(if self.quick { 5 } else { 31 });
        std::fs::create_dir_all(&self.out)?;
        let mut machines = Machines::boot(sizes, &self.out.join("logs"))?;
        let mut measured = Measured::default();
        // By carrier and size: how many frames the next round has.
        let mut frames = BTreeMap::new();
        for round in 0..=rounds {
            let mut found = Measured::default();
            let step = usize::try_from(round)?;
            for size in sizes {
                // Whoever comes first finds another state of the machine than who comes last.
                let mut carriers = Carrier::ALL;
                carriers.rotate_left(step % Carrier::ALL.len());
                for carrier in carriers {
                    let count = frames.entry((carrier, *size)).or_insert(1);
                    let us = one(&mut machines, carrier, *size, *count)
                        .with_context(|| format!("{} of {size} bytes", carrier.name()))?;
                    *count = count_for(us);
                    found.spans.insert((carrier, *size), vec![us]);
                }
                let times = machines.first_bytes(*size, 1 + KEPT)?;
                let (first, kept) = times.split_first().context("nothing was imported")?;
                found.new_maps.insert(*size, vec![micros(*first)]);
                found.kept_maps.insert(*size, vec![middle(kept)?]);
            }
            found.queries.push(middle(&machines.query(QUERIES)?)?);
            let seconds = started.elapsed().as_secs();
            if round == 0 {
                // It fills caches, finds how many frames take how long, and does not count.
                eprintln!("bench: [{seconds:3} s] ready");
                continue;
            }
            eprintln!("bench: [{seconds:3} s] round {round} of {rounds}");
            measured.add(found);
        }
        let guests = machines.vms.lab().clone();
        machines.finish()?;
        let echo = self.echo(if self.quick { 31 } else { 151 })?;
        let outcome = Outcome::new(sizes, &measured, echo, &guests, started.elapsed())?;
        let path = self.out.join("result.json");
        std::fs::write(&path, serde_json::to_string_pretty(&outcome)? + "\n")?;
        outcome.print()?;
        eprintln!("bench: written: {}", path.display());
        Ok(())
    }

    /// Its two VMs would only be in the way: they are stopped.
    fn echo(&self, rounds: u32) -> Result<Vec<Echo>> {
        eprintln!("bench: QUERY beside an empty echo");
        let mut command = Command::new(&self.in_flight);
        command.args(["--json", "--rounds", &rounds.to_string()]);
        let text = output(command)?;
        serde_json::from_str(&text).with_context(|| text.clone())
    }
}

/// The median of these frames, microseconds. One more goes before them: the receiver may begin
/// late.
fn one(machines: &mut Machines, carrier: Carrier, size: u64, frames: u64) -> Result<f64> {
    let times = machines.carry(carrier, size, frames + 1)?;
    let (_, times) = times.split_first().context("nothing was carried")?;
    middle(times)
}

fn count_for(us: f64) -> u64 {
    let mut count = 1;
    while count < MOST && us * f64::from(u32::try_from(count).unwrap_or(u32::MAX)) < micros(SPAN) {
        count += 1;
    }
    count
}

fn middle(times: &[Duration]) -> Result<f64> {
    let times: Vec<f64> = times.iter().map(|time| micros(*time)).collect();
    median(&times)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_as_many_frames_as_fit_but_one_at_least() {
        assert_eq!(count_for(1e9), 1);
        assert_eq!(count_for(50_000.0), 3);
        assert_eq!(count_for(0.1), MOST);
    }
}
