// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two builds of bufshare side by side

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bufshare_tests::client::Client;
use bufshare_tests::pair::{Plan, TwoVms};
use serde::{Deserialize, Serialize};

use crate::program::output;
use crate::statistics::median;

/// For one import on an emulated machine.
const LIMIT: Duration = Duration::from_secs(60);
const PAGE: u64 = 4096;
/// Windows of the importer at which an import is timed.
const WINDOWS: [u32; 4] = [1, 50, 150, 250];

/// The leg that is run by itself.
#[derive(Debug, clap::Args)]
pub(crate) struct Imports {
    /// Imports timed at each number of windows. Most of one is QEMU's and the scheduler's
    /// time: of 15, the medians of two runs of one build differ by a fifth
    #[arg(long, default_value_t = 100)]
    samples: u32,
    /// Where to write the logs
    #[arg(long)]
    logs: PathBuf,
}

impl Imports {
    /// Prints what it measured.
    pub(crate) fn run(&self) -> Result<()> {
        let figures = imports(self.samples, &self.logs)?;
        println!("{}", serde_json::to_string(&figures)?);
        Ok(())
    }
}

/// Both builds, and how often.
#[derive(Debug, clap::Args)]
pub(crate) struct Compare {
    /// Folder of the build that is the measure: daemon, demo, full.cpio, client.cpio
    #[arg(long)]
    base: PathBuf,
    /// Its name in the table
    #[arg(long)]
    base_name: String,
    /// Folder of the build to judge
    #[arg(long)]
    this: PathBuf,
    /// The program of the query leg
    #[arg(long)]
    query: PathBuf,
    /// How often each build runs each leg
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Frames that the demo hands over
    #[arg(long, default_value_t = 100)]
    frames: u32,
    /// Pixels of the demo's frames, as WIDTHxHEIGHT; once for each size
    #[arg(long = "size", default_values = ["640x480", "1920x1080", "3840x2160"])]
    sizes: Vec<String>,
    /// Where to write result.json and the logs
    #[arg(long)]
    out: PathBuf,
}

/// What a leg measured: metric to value, microseconds.
type Figures = BTreeMap<String, f64>;

/// Time imports while the importer has so many windows in use, each of a buffer of
/// its own. Every timed import is of a new buffer, so it needs a new window.
fn imports(samples: u32, logs: &Path) -> Result<Figures> {
    if logs.exists() {
        std::fs::remove_dir_all(logs)?;
    }
    std::fs::create_dir_all(logs)?;
    let plan = Plan::new().options(&["--max-windows", "256"]);
    let vms = TwoVms::boot(plan, logs)?;
    let mut figures = Figures::new();
    {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let mut held = 0;
        for windows in WINDOWS {
            while held < windows {
                held += 1;
                let (_, _, export) = a.offer(PAGE, held)?;
                let import = b.import(&export.id)?;
                b.make_window(import.buf)?;
            }
            let mut times = Vec::new();
            for sample in 0..samples {
                times.push(one_import(&mut a, &mut b, 1000 + sample)?);
            }
            figures.insert(format!("import at {windows} windows"), median(&times)?);
        }
    }
    vms.finish()?;
    Ok(figures)
}

fn one_import(a: &mut Client, b: &mut Client, seed: u32) -> Result<f64> {
    let (buf, map, export) = a.offer(PAGE, seed)?;
    let (first_us, _) = b.cycle(&export.id, 1, seed, LIMIT)?;
    for number in [export.number, map.number, buf.number] {
        a.close(number)?;
    }
    Ok(f64::from(u32::try_from(first_us)?))
}

/// One of the two builds.
struct Build<'a> {
    name: &'a str,
    folder: &'a Path,
}

#[derive(Debug, Serialize)]
struct Row {
    metric: String,
    base_us: Vec<f64>,
    this_us: Vec<f64>,
    /// Of each round: this divided by base.
    ratios: Vec<f64>,
    ratio_median: f64,
}

impl Compare {
    /// Prints the table and writes result.json.
    pub(crate) fn run(&self) -> Result<()> {
        run_compare(self)
    }
}

fn run_compare(options: &Compare) -> Result<()> {
    let started = Instant::now();
    std::fs::create_dir_all(&options.out)?;
    let builds = [
        Build {
            name: &options.base_name,
            folder: &options.base,
        },
        Build {
            name: "this",
            folder: &options.this,
        },
    ];
    let mut figures: [BTreeMap<String, Vec<f64>>; 2] = Default::default();
    for round in 1..=options.rounds {
        // Whoever is second finds warmer caches: take turns at that, too.
        let order = if round % 2 == 1 { [0, 1] } else { [1, 0] };
        for leg in [query, import_leg, demos] {
            for index in order {
                let (Some(build), Some(into)) = (builds.get(index), figures.get_mut(index)) else {
                    continue;
                };
                let found = leg(options, build)
                    .with_context(|| format!("round {round}, build {}", build.name))?;
                for (metric, value) in found {
                    eprintln!(
                        "bench: [{:5.0} s] round {round} of {}: {}: {metric}: {value:.1} us",
                        started.elapsed().as_secs_f64(),
                        options.rounds,
                        build.name
                    );
                    into.entry(metric).or_default().push(value);
                }
            }
        }
    }
    let [base, this] = figures;
    let rows = rows(base, this)?;
    let path = options.out.join("result.json");
    std::fs::write(&path, serde_json::to_string_pretty(&rows)? + "\n")?;
    print_table(&options.base_name, &rows)?;
    eprintln!("bench: written: {}", path.display());
    Ok(())
}

fn rows(
    base: BTreeMap<String, Vec<f64>>,
    mut this: BTreeMap<String, Vec<f64>>,
) -> Result<Vec<Row>> {
    base.into_iter()
        .map(|(metric, base_us)| {
            let this_us = this
                .remove(&metric)
                .with_context(|| format!("{metric}: only one build measured it"))?;
            let ratios: Vec<f64> = this_us.iter().zip(&base_us).map(|(a, b)| a / b).collect();
            let ratio_median = median(&ratios)?;
            Ok(Row {
                metric,
                base_us,
                this_us,
                ratios,
                ratio_median,
            })
        })
        .collect()
}

/// The in-process front end and the daemon, on one CPU, where the cost of waking
/// the other is the same every time, and as batch processes: else a request takes longer if
/// who is woken preempts its waker, which the scheduler decides by the time that each has had.
fn query(options: &Compare, build: &Build<'_>) -> Result<Figures> {
    let mut figures = Figures::new();
    for buffers in ["1", "1000"] {
        let mut command = Command::new("chrt");
        command
            .args(["--batch", "0", "taskset", "-c", "0"])
            .arg(&options.query)
            .args(["--buffers", buffers])
            .arg(build.folder.join("daemon"));
        let text = output(command)?;
        let found: Figures = serde_json::from_str(&text).with_context(|| text.clone())?;
        let value = found.get("query_us").context("no query_us")?;
        figures.insert(format!("QUERY with {buffers} buffers"), *value);
    }
    Ok(figures)
}

/// The environment by which a program of the fixtures takes this build.
fn with_build(command: &mut Command, build: &Build<'_>, image: &str) {
    command
        .env("BUFSHARE_DAEMON", build.folder.join("daemon"))
        .env("BUFSHARE_INITRAMFS", build.folder.join(image));
}

fn import_leg(options: &Compare, build: &Build<'_>) -> Result<Figures> {
    let mut command = Command::new(std::env::current_exe()?);
    with_build(&mut command, build, "client.cpio");
    command
        .arg("imports")
        .arg("--logs")
        .arg(options.out.join("logs"));
    let text = output(command)?;
    serde_json::from_str(&text).with_context(|| text.clone())
}

#[derive(Deserialize)]
struct DemoResult {
    handover_us_p50: Option<f64>,
    first_map_us: Option<f64>,
}

fn demos(options: &Compare, build: &Build<'_>) -> Result<Figures> {
    let mut figures = Figures::new();
    for size in &options.sizes {
        figures.extend(demo(options, build, size)?);
    }
    Ok(figures)
}

fn demo(options: &Compare, build: &Build<'_>, size: &str) -> Result<Figures> {
    let out = options.out.join("demo");
    let mut command = Command::new(build.folder.join("demo"));
    with_build(&mut command, build, "full.cpio");
    // The demo of another revision looks for kernel and QEMU in its own way.
    let lab = build.folder.join("lab");
    if lab.exists() {
        let root = std::fs::canonicalize(lab.join("root"))?;
        command
            .env_remove("BUFSHARE_KERNEL")
            .env("BUFSHARE_LAB", &lab)
            .env("BUFSHARE_ROOT", root);
    }
    command
        .args(["--frames", &options.frames.to_string(), "--size", size])
        .arg("--out")
        .arg(&out);
    output(command)?;
    let text = std::fs::read_to_string(out.join("result.json"))?;
    let result: DemoResult = serde_json::from_str(&text)?;
    let handover = result
        .handover_us_p50
        .context("the demo measured no hand-over")?;
    let first = result.first_map_us.context("the demo measured no map")?;
    Ok([("hand-over", handover), ("first map", first)]
        .map(|(metric, value)| (format!("demo {metric} at {size}"), value))
        .into())
}

fn print_table(base: &str, rows: &[Row]) -> Result<()> {
    ensure!(!rows.is_empty(), "nothing was measured");
    let mut stdout = std::io::stdout().lock();
    writeln!(
        stdout,
        "{:<24} {:>12} {:>12} {:>8} {:>15}",
        "median of the rounds", base, "this", "ratio", "ratios of rounds"
    )?;
    for row in rows {
        let mut ratios = row.ratios.clone();
        ratios.sort_by(f64::total_cmp);
        let ends = ratios.first().zip(ratios.last());
        let (least, most) = ends.context("no ratios")?;
        writeln!(
            stdout,
            "{:<24} {:>9.1} us {:>9.1} us {:>8.2} {:>7.2} to {:.2}",
            row.metric,
            median(&row.base_us)?,
            median(&row.this_us)?,
            row.ratio_median,
            least,
            most
        )?;
    }
    Ok(())
}
