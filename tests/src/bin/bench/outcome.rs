// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What was found, as tables and as JSON

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bufshare_tests::lab::Lab;
use serde::{Deserialize, Serialize};

use crate::machines::{Carrier, MEMORY};
use crate::statistics::Quartiles;

/// The frame of which half a round trip is the way of one byte back.
const SMALL: u64 = 64;
/// The frame of the two goals that name a size.
const LARGE: u64 = 8 << 20;
/// Where it begins to be flat.
const PAGE: u64 = 4 << 10;

/// Figures of rounds, microseconds, in the order of the rounds.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// From the first byte until the sender knew that the receiver has all.
    pub(crate) spans: BTreeMap<(Carrier, u64), Vec<f64>>,
    /// Imports to their first byte, that needed new mappings.
    pub(crate) new_maps: BTreeMap<u64, Vec<f64>>,
    /// The same, with mappings that were kept.
    pub(crate) kept_maps: BTreeMap<u64, Vec<f64>>,
    /// QUERY of a guest.
    pub(crate) queries: Vec<f64>,
}

impl Measured {
    /// Adds a round's.
    pub(crate) fn add(&mut self, round: Self) {
        for (key, figures) in round.spans {
            self.spans.entry(key).or_default().extend(figures);
        }
        for (into, from) in [
            (&mut self.new_maps, round.new_maps),
            (&mut self.kept_maps, round.kept_maps),
        ] {
            for (key, figures) in from {
                into.entry(key).or_default().extend(figures);
            }
        }
        self.queries.extend(round.queries);
    }

    /// How long a frame takes one way, by rounds. What comes back is as long as what goes
    /// where a frame is handed over, and one byte elsewhere.
    fn one_way(&self, carrier: Carrier, size: u64) -> Result<Vec<f64>> {
        let spans = |size| self.spans.get(&(carrier, size)).context("not measured");
        let all = spans(size)?;
        if carrier == Carrier::HandOver {
            return Ok(all.iter().map(|span| span / 2.0).collect());
        }
        let small = spans(SMALL)?;
        Ok(all
            .iter()
            .zip(small)
            .map(|(all, small)| all - small / 2.0)
            .collect())
    }
}

/// A line of the program that times QUERY beside an empty echo.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Echo {
    cpu: String,
    in_flight: u32,
    echo_per_s: f64,
    query_per_s: f64,
    /// QUERY's rate by that of the echo: quartiles of the rounds.
    ratio: [f64; 3],
    echo_cpu_us: f64,
    query_cpu_us: f64,
}

/// One carrier at one size.
#[derive(Debug, Serialize)]
struct Row {
    carrier: Carrier,
    bytes: u64,
    one_way_us: Quartiles,
    /// So many hand-overs take as long: of the rounds' ratios.
    hand_overs: Quartiles,
    rounds_us: Vec<f64>,
    rounds_hand_overs: Vec<f64>,
}

#[derive(Debug, Serialize)]
struct Map {
    bytes: u64,
    new_us: Quartiles,
    kept_us: Quartiles,
}

#[derive(Debug, Serialize)]
struct Goal {
    what: String,
    wanted: f64,
    found: Quartiles,
    /// The most or the least that it may be.
    at_most: bool,
    met: bool,
}

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    cpus: usize,
    host_kernel: String,
    /// Of the last minute, when it ended: this measurement, and what else ran here.
    load: String,
    accel: String,
    guest_kernel: String,
    guest_memory_mib: u32,
    guest_cpus: u32,
    qemu: String,
    rounds: usize,
    seconds: u64,
    rows: Vec<Row>,
    maps: Vec<Map>,
    guest_query_us: Quartiles,
    echo: Vec<Echo>,
    goals: Vec<Goal>,
}

impl Outcome {
    /// Of these figures.
    ///
    /// # Errors
    /// When some are missing.
    pub(crate) fn new(
        sizes: &[u64],
        measured: &Measured,
        echo: Vec<Echo>,
        lab: &Lab,
        took: Duration,
    ) -> Result<Self> {
        let mut rows = Vec::new();
        for bytes in sizes {
            let ours = measured.one_way(Carrier::HandOver, *bytes)?;
            for carrier in Carrier::ALL {
                let rounds_us = measured.one_way(carrier, *bytes)?;
                let rounds_hand_overs = ratios(&rounds_us, &ours);
                rows.push(Row {
                    carrier,
                    bytes: *bytes,
                    one_way_us: Quartiles::of(&rounds_us)?,
                    hand_overs: Quartiles::of(&rounds_hand_overs)?,
                    rounds_us,
                    rounds_hand_overs,
                });
            }
        }
        let maps = sizes.iter().map(|bytes| {
            let quartiles = |of: &BTreeMap<u64, Vec<f64>>| {
                Quartiles::of(of.get(bytes).context("not measured")?)
            };
            Ok(Map {
                bytes: *bytes,
                new_us: quartiles(&measured.new_maps)?,
                kept_us: quartiles(&measured.kept_maps)?,
            })
        });
        Ok(Self {
            cpus: std::thread::available_parallelism()?.get(),
            host_kernel: first_word("/proc/sys/kernel/osrelease"),
            load: first_word("/proc/loadavg"),
            accel: lab.accel.clone(),
            guest_kernel: lab.kernel_release.clone(),
            guest_memory_mib: MEMORY,
            guest_cpus: 1,
            qemu: lab.qemu_version.clone(),
            rounds: measured.queries.len(),
            seconds: took.as_secs(),
            maps: maps.collect::<Result<_>>()?,
            guest_query_us: Quartiles::of(&measured.queries)?,
            echo,
            goals: goals(sizes, measured, &rows)?,
            rows,
        })
    }

    /// Prints the tables.
    ///
    /// # Errors
    /// From the system.
    pub(crate) fn print(&self) -> Result<()> {
        let text = self.text()?;
        std::io::stdout().lock().write_all(text.as_bytes())?;
        Ok(())
    }

    fn text(&self) -> Result<String> {
        let mut text = String::new();
        writeln!(
            text,
            "{} rounds in {} s on {} CPUs, Linux {}, load {}; guests: {}, 1 CPU, {} MiB, QEMU {}, Linux {}",
            self.rounds,
            self.seconds,
            self.cpus,
            self.host_kernel,
            self.load,
            self.accel,
            self.guest_memory_mib,
            self.qemu,
            self.guest_kernel
        )?;
        writeln!(
            text,
            "+- is half of what lies between the quartiles of the rounds: the noise"
        )?;

        writeln!(text, "\none way, us")?;
        self.by_carrier(&mut text, Carrier::ALL.as_slice(), |row| {
            let one_way = &row.one_way_us;
            format!("{:.1} +-{:.0}%", one_way.median, one_way.noise())
        })?;
        let [_, others @ ..] = Carrier::ALL;
        writeln!(
            text,
            "\nhand-overs that take as long (quartiles of the rounds' ratios)"
        )?;
        self.by_carrier(&mut text, &others, |row| {
            let Quartiles { low, median, high } = row.hand_overs;
            format!("{} ({} to {})", short(median), short(low), short(high))
        })?;

        writeln!(text, "\nimport to first byte, us")?;
        writeln!(text, "{:>8} {:>18} {:>18}", "", "map", "cached map")?;
        for map in &self.maps {
            let cell = |of: &Quartiles| format!("{:.0} +-{:.0}%", of.median, of.noise());
            let (new, kept) = (cell(&map.new_us), cell(&map.kept_us));
            writeln!(text, "{:>8} {new:>18} {kept:>18}", size(map.bytes))?;
        }

        let query = &self.guest_query_us;
        writeln!(
            text,
            "\nQUERY of a guest: {:.1} us +-{:.0}%",
            query.median,
            query.noise()
        )?;
        writeln!(
            text,
            "QUERY of a front end in process, beside an empty echo"
        )?;
        writeln!(
            text,
            "{:>8} {:>9} {:>10} {:>10} {:>7}  {:<14} {:>11} {:>11}",
            "CPU",
            "in flight",
            "echo 1/s",
            "QUERY 1/s",
            "ratio",
            "quartiles",
            "echo us CPU",
            "QUERY us CPU"
        )?;
        for line in &self.echo {
            let [low, ratio, high] = line.ratio;
            writeln!(
                text,
                "{:>8} {:>9} {:>10.0} {:>10.0} {ratio:>7.2}  {:<14} {:>11.2} {:>11.2}",
                line.cpu,
                line.in_flight,
                line.echo_per_s,
                line.query_per_s,
                format!("{low:.2} to {high:.2}"),
                line.echo_cpu_us,
                line.query_cpu_us
            )?;
        }

        writeln!(text, "\ngoals")?;
        for goal in &self.goals {
            let word = if goal.met { "met" } else { "MISSED" };
            let most = if goal.at_most { "at most" } else { "at least" };
            let Quartiles { low, median, high } = goal.found;
            writeln!(
                text,
                "{word:>8} {}: {} ({} to {}), {most} {}",
                goal.what,
                short(median),
                short(low),
                short(high),
                goal.wanted
            )?;
        }
        if self.goals.iter().any(|goal| !goal.met) {
            writeln!(
                text,
                "scripts/bench profile names the wake-ups of a hand-over"
            )?;
        }
        Ok(text)
    }

    fn by_carrier(
        &self,
        text: &mut String,
        carriers: &[Carrier],
        cell: impl Fn(&Row) -> String,
    ) -> Result<()> {
        write!(text, "{:>8}", "")?;
        for carrier in carriers {
            write!(text, " {:>20}", carrier.name())?;
        }
        writeln!(text)?;
        for map in &self.maps {
            write!(text, "{:>8}", size(map.bytes))?;
            for carrier in carriers {
                let mut rows = self.rows.iter();
                let row = rows.find(|row| row.bytes == map.bytes && row.carrier == *carrier);
                write!(text, " {:>20}", cell(row.context("not measured")?))?;
            }
            writeln!(text)?;
        }
        Ok(())
    }
}

/// What the hand-over is to reach.
fn goals(sizes: &[u64], measured: &Measured, rows: &[Row]) -> Result<Vec<Goal>> {
    let mut goals = Vec::new();
    let large = |carrier: &Carrier| {
        let mut rows = rows.iter();
        rows.find(|row| row.bytes == LARGE && row.carrier == *carrier)
    };
    // The best of them by its median.
    let isolated = Carrier::ALL
        .into_iter()
        .filter(|carrier| carrier.isolates());
    let best = isolated
        .filter_map(|carrier| large(&carrier))
        .min_by(|one, other| {
            let median = |row: &Row| row.one_way_us.median;
            median(one).total_cmp(&median(other))
        });
    for (row, wanted) in [(best, 150.0), (large(&Carrier::Ivshmem), 100.0)] {
        let row = row.context("not measured")?;
        goals.push(Goal {
            what: format!(
                "hand-overs in one of {} by {}",
                size(LARGE),
                row.carrier.name()
            ),
            wanted,
            found: row.hand_overs,
            at_most: false,
            met: row.hand_overs.median >= wanted,
        });
    }

    let page = measured.one_way(Carrier::HandOver, PAGE)?;
    for bytes in sizes.iter().filter(|bytes| **bytes > PAGE) {
        let ours = measured.one_way(Carrier::HandOver, *bytes)?;
        let found = Quartiles::of(&ratios(&ours, &page))?;
        goals.push(Goal {
            what: format!("hand-over of {} by that of {}", size(*bytes), size(PAGE)),
            wanted: 1.1,
            found,
            at_most: true,
            met: found.median <= 1.1,
        });
    }

    let ours = measured.one_way(Carrier::HandOver, SMALL)?;
    let bare = measured.one_way(Carrier::Serial, SMALL)?;
    let found = Quartiles::of(&ratios(&ours, &bare))?;
    goals.push(Goal {
        what: "hand-over by half a round trip of 64 bytes over virtio-serial".to_owned(),
        wanted: 1.3,
        found,
        at_most: true,
        met: found.median <= 1.3,
    });
    Ok(goals)
}

/// Round by round.
fn ratios(figures: &[f64], by: &[f64]) -> Vec<f64> {
    figures
        .iter()
        .zip(by)
        .map(|(one, other)| one / other)
        .collect()
}

/// With as many digits as say something.
fn short(number: f64) -> String {
    match number.abs() {
        0.0..10.0 => format!("{number:.2}"),
        10.0..100.0 => format!("{number:.1}"),
        _ => format!("{number:.0}"),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

/// Of a file of the host's kernel.
fn first_word(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace()
        .next()
        .unwrap_or("unknown")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(spans: &[(Carrier, u64, &[f64])]) -> Measured {
        let mut measured = Measured::default();
        for (carrier, size, figures) in spans {
            measured.spans.insert((*carrier, *size), figures.to_vec());
        }
        measured
    }

    #[test]
    fn one_way_is_half_where_the_ways_are_alike_and_all_but_a_byte_back_elsewhere() {
        let measured = measured(&[
            (Carrier::HandOver, SMALL, &[200.0]),
            (Carrier::HandOver, LARGE, &[210.0]),
            (Carrier::Serial, SMALL, &[100.0, 80.0]),
            (Carrier::Serial, LARGE, &[5050.0, 6040.0]),
        ]);
        let one_way = |carrier, size| measured.one_way(carrier, size).unwrap();
        assert_eq!(one_way(Carrier::HandOver, LARGE), [105.0]);
        assert_eq!(one_way(Carrier::Serial, SMALL), [50.0, 40.0]);
        assert_eq!(one_way(Carrier::Serial, LARGE), [5000.0, 6000.0]);
    }

    #[test]
    fn a_ratio_is_of_one_round() {
        assert_eq!(ratios(&[10.0, 40.0], &[5.0, 10.0]), [2.0, 4.0]);
    }

    #[test]
    fn rounds_add_up_in_their_order() {
        let mut all = Measured::default();
        for span in [1.0, 2.0] {
            all.add(measured(&[(Carrier::Net, SMALL, &[span])]));
        }
        assert_eq!(all.spans[&(Carrier::Net, SMALL)], [1.0, 2.0]);
    }
}
