// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The README's commands under "Use it with your own VMs", as they stand there
//!
//! Read from README.md itself: the host's two commands, QEMU's words for each VM
//! and the guests' commands. Changed are the sockets' paths, and `ID` to the one
//! that `bufshare list` prints. Those for the driver run in scripts/build-module
//! --dkms.

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bufshare_agent::wire::Status;
use bufshare_tests::channel::Program;
use bufshare_tests::child::Process;
use bufshare_tests::lab;
use bufshare_tests::pair::{self, Plan, TwoVms};
use bufshare_tests::report::Skip;
use bufshare_tests::vm::{SOCKET, Vm};
use bufshare_tests::{daemon, wait};

const HEADING: &str = "## Use it with your own VMs";
/// A release build from nothing, on a busy machine.
const BUILD: Duration = Duration::from_secs(600);
/// What the exporter writes at both ends of its buffer.
const MARKS: [&str; 2] = ["first-bytes", "last-bytes"];

type Words = Vec<String>;

/// What the section says to type.
#[derive(Debug)]
struct Readme {
    build: Words,
    daemon: Words,
    /// Name and socket of each peer.
    peers: [(String, String); 2],
    qemu: Words,
    guest: Vec<Words>,
    /// What an exporter's peer needs on a host without /dev/udmabuf.
    without_udmabuf: String,
}

impl Readme {
    fn read() -> Result<Self> {
        let path = lab::repo().join("README.md");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).context("README.md")
    }

    fn parse(text: &str) -> Result<Self> {
        let section = text.split_once(HEADING);
        let section = section
            .with_context(|| format!("no section '{HEADING}'"))?
            .1;
        let section = section.split("\n## ").next().unwrap_or_default();

        let host = commands(block(section, "**Host.**")?)?;
        let [build, daemon] = &host[..] else {
            bail!("not two commands for the host, to build and to start the daemon: {host:?}")
        };
        ensure!(
            build.first().is_some_and(|word| word == "cargo"),
            "the host's first command is not cargo's: {build:?}"
        );
        ensure!(
            daemon
                .first()
                .is_some_and(|word| word.starts_with("target/")),
            "the host's second command is no program of cargo's: {daemon:?}"
        );
        let peers: Vec<_> = after(daemon, "--peer").map(peer).collect::<Result<_>>()?;
        let peers = peers
            .try_into()
            .map_err(|peers| anyhow::anyhow!("not two --peer for the daemon: {peers:?}"))?;

        let without_udmabuf = "ram-fd=allow";
        ensure!(
            section.contains(&format!("`{without_udmabuf}`")),
            "it does not say any more what hosts without /dev/udmabuf need ({without_udmabuf})"
        );
        Ok(Self {
            build: build.clone(),
            daemon: daemon.clone(),
            peers,
            qemu: commands(block(section, "**QEMU")?)?.concat(),
            guest: commands(block(section, "**Guest.**")?)?,
            without_udmabuf: without_udmabuf.to_owned(),
        })
    }

    /// Who exports and who imports: `--to` of `bufshare alloc` names the latter.
    fn roles(&self) -> Result<[&str; 2]> {
        let alloc = self.guest_command("alloc")?;
        let to = after(alloc, "--to").next().context("alloc has no --to")?;
        let importer = to.split(':').next().unwrap_or_default();
        match &self.peers {
            [(other, _), (name, _)] | [(name, _), (other, _)] if name == importer => {
                Ok([other, name])
            }
            peers => bail!("alloc is --to {to}, the host has {peers:?}"),
        }
    }

    fn guest_command(&self, name: &str) -> Result<&Words> {
        let mut all = self.guest.iter();
        all.find(|words| matches!(&words[..], [program, verb, ..] if program == "bufshare" && verb == name))
            .with_context(|| format!("README.md: no 'bufshare {name}' for the guest"))
    }

    fn plan(&self) -> Result<Plan> {
        let [exporter, importer] = self.roles()?;
        let mut command = self.daemon.clone();
        let mut is_peer = false;
        for word in &mut command {
            if std::mem::replace(&mut is_peer, word == "--peer") {
                let (name, path) = peer(word)?;
                let ours = daemon::socket(Path::new(daemon::SOCKETS), &name);
                *word = word.replace(&path, &ours.display().to_string());
                if name == exporter && !lab::has_udmabuf() {
                    word.push(',');
                    word.push_str(&self.without_udmabuf);
                }
            }
        }
        if let Some(program) = command.first_mut() {
            let path = lab::target().join(program.trim_start_matches("target/"));
            *program = path.display().to_string();
        }
        let paths: Vec<_> = self.peers.iter().map(|(_, path)| path.as_str()).collect();
        let mut sockets = 0;
        let setup: Words = self
            .qemu
            .iter()
            .map(|word| {
                let Some(path) = paths
                    .iter()
                    .find(|path| word.ends_with(&format!(",path={path}")))
                else {
                    return word.clone();
                };
                sockets += 1;
                word.replace(path, SOCKET)
            })
            .collect();
        ensure!(
            sockets == 1,
            "README.md: QEMU has {sockets} chardevs with a socket of {paths:?}: {setup:?}"
        );
        Ok(Plan::named(exporter, importer)
            .command(&command)
            .both(|machine| machine.setup = Some(setup.clone())))
    }

    fn build(&self, logs: &Path) -> Result<()> {
        let cargo = std::env::var_os("CARGO").ok_or_else(|| {
            Skip::impossible("the README's first command is cargo's: run this by cargo test")
        })?;
        let mut command = Command::new(cargo);
        command
            .args(self.build.iter().skip(1))
            .current_dir(lab::repo());
        let what = self.build.join(" ");
        let log = logs.join("cargo.log");
        let status = Process::start(&what, command, Vec::new(), &log)?.wait(BUILD)?;
        ensure!(status.success(), "{what}: {status}");
        Ok(())
    }
}

/// The fenced block of the paragraph that begins with `mark`.
fn block<'a>(section: &'a str, mark: &str) -> Result<&'a str> {
    let start = section.split_once(&format!("\n{mark}"));
    let rest = start
        .with_context(|| format!("no paragraph '{mark}' under '{HEADING}'"))?
        .1;
    let paragraph = rest.split("\n**").next().unwrap_or_default();
    let fenced = paragraph.split_once("\n```\n");
    let fenced = fenced.and_then(|(_, rest)| rest.split("\n```").next());
    fenced.with_context(|| format!("no block of commands in the paragraph '{mark}'"))
}

/// The words of each line.
fn commands(block: &str) -> Result<Vec<Words>> {
    let mut all = Vec::new();
    for line in block.replace("\\\n", " ").lines() {
        let line = line.split(" #").next().unwrap_or_default();
        ensure!(
            !line.contains(['\'', '"', '\\', '$', '|', '&', ';', '<', '>', '*', '#']),
            "only a shell understands this command: {line}"
        );
        let words: Words = line.split_whitespace().map(str::to_owned).collect();
        if !words.is_empty() {
            all.push(words);
        }
    }
    Ok(all)
}

/// The word after each `option`.
fn after<'a>(words: &'a [String], option: &str) -> impl Iterator<Item = &'a str> {
    let pairs = words
        .windows(2)
        .filter(move |pair| pair.first().is_some_and(|word| word == option));
    pairs.filter_map(|pair| pair.get(1).map(String::as_str))
}

/// Name and socket of `--peer`.
fn peer(text: &str) -> Result<(String, String)> {
    let value = |key: &str| {
        let found = text.split(',').find_map(|part| part.strip_prefix(key));
        found
            .map(str::to_owned)
            .with_context(|| format!("--peer {text} has no {key}"))
    };
    Ok((value("name=")?, value("socket=")?))
}

/// `4M` and the like.
fn bytes(text: &str) -> Result<u64> {
    let units = [("K", 10), ("M", 20), ("G", 30)];
    let unit = units
        .iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (number, shift) = unit.unwrap_or((text, 0));
    let number: u64 = number.parse().with_context(|| format!("no size: {text}"))?;
    Ok(number << shift)
}

fn argv(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// What the exporter holds.
struct Offer {
    program: Program,
    id: String,
    size: u64,
}

/// `bufshare alloc`, held; then its memory is written by another process of that VM.
fn alloc(vm: &Vm, words: &[String]) -> Result<Offer> {
    let size = bytes(
        after(words, "--size")
            .next()
            .context("alloc has no --size")?,
    )?;
    let mut program = vm.spawn(&argv(words))?;
    let line = program.line(wait::COMMAND)?;
    let parts: Vec<&str> = line.split_whitespace().collect();
    let [id, size_said, "bytes", "in", _, "pieces"] = parts[..] else {
        bail!("alloc printed: {line}")
    };
    ensure!(
        size_said.parse() == Ok(size),
        "alloc of {size} bytes printed: {line}"
    );

    let mut client = vm.client()?;
    let buf = client.adopt(program.pid(), 0)?;
    ensure!(
        buf.size == size,
        "its dma-buf has {} bytes, not {size}",
        buf.size
    );
    let map = client.map(buf)?;
    let [first, last] = MARKS;
    client.poke(map, 0, first.as_bytes())?;
    client.poke(map, size - last.len() as u64, last.as_bytes())?;
    let id = id.to_owned();
    Ok(Offer { program, id, size })
}

/// SHA-256 of the marks and the zeros between them, by other programs.
fn wanted_hash(vm: &Vm, size: u64) -> Result<String> {
    let [first, last] = MARKS;
    let zeros = size - (first.len() + last.len()) as u64;
    let script = format!(
        "{{ printf {first}; busybox head -c {zeros} /dev/zero; printf {last}; }} | busybox sha256sum"
    );
    let text = vm.output(&["sh", "-c", &script])?;
    let hash = text.split_whitespace().next().unwrap_or_default();
    ensure!(hash.len() == 64, "sha256sum printed: {text}");
    Ok(hash.to_owned())
}

/// `bufshare list`, which has to show one buffer, the other's: its ID.
fn list(vm: &Vm, words: &[String], offer: &Offer) -> Result<String> {
    let text = vm.output(&argv(words))?;
    let parts: Vec<&str> = text.split_whitespace().collect();
    let [id, size, "bytes", rights, "of", "peer", ..] = parts[..] else {
        bail!("list printed: {text}")
    };
    ensure!(
        text.lines().count() == 1
            && id == offer.id
            && size.parse() == Ok(offer.size)
            && rights == "rw",
        "{} of {} bytes is offered, and list printed: {text}",
        offer.id,
        offer.size
    );
    Ok(id.to_owned())
}

/// `bufshare dump ID`.
fn dump(vm: &Vm, words: &[String], id: &str, offer: &Offer) -> Result<()> {
    ensure!(
        words.iter().any(|word| word == "ID"),
        "README.md: dump has no ID: {words:?}"
    );
    let words: Vec<&str> = words
        .iter()
        .map(|word| if word == "ID" { id } else { word })
        .collect();
    let text = vm.output(&words)?;
    let way = if lab::has_udmabuf() {
        "udmabuf"
    } else {
        "direct"
    };
    let hash = wanted_hash(vm, offer.size)?;
    let wanted = format!("{hash}  {id} ({} bytes, {way})", offer.size);
    ensure!(
        text.trim_end() == wanted,
        "dump printed: {text}, not: {wanted}"
    );
    Ok(())
}

fn type_it(readme: &Readme, vms: &mut TwoVms) -> Result<()> {
    let mut offer = None;
    let mut found = None;
    for words in &readme.guest {
        let verb = match &words[..] {
            [program, verb, ..] if program == "bufshare" => verb.as_str(),
            _ => "",
        };
        match verb {
            "info" => {
                for vm in [&vms.a, &vms.b] {
                    let text = vm.output(&argv(words))?;
                    let name: Vec<&str> = text
                        .lines()
                        .next()
                        .unwrap_or_default()
                        .split_whitespace()
                        .collect();
                    ensure!(
                        name == ["name", vm.name()],
                        "{}: info printed: {text}",
                        vm.name()
                    );
                    ensure!(text.contains("windows  "), "info prints no limits: {text}");
                }
            }
            "alloc" => offer = Some(alloc(&vms.a, words)?),
            "list" => {
                let offer = offer.as_ref().context("README.md: list before alloc")?;
                found = Some(list(&vms.b, words, offer)?);
            }
            "dump" => {
                let offer = offer.as_ref().context("README.md: dump before alloc")?;
                let id = found.as_deref().context("README.md: dump before list")?;
                dump(&vms.b, words, id, offer)?;
            }
            _ => bail!(
                "README.md has a command for the guest that is not tried here: {}",
                words.join(" ")
            ),
        }
    }
    // Until end of input.
    let mut offer = offer.context("nothing was offered")?;
    offer.program.end_input()?;
    let status = offer.program.end(wait::COMMAND, |_, _| {})?;
    ensure!(status == Status::Exit(0), "alloc ended by {status:?}");
    let left = vms.b.output(&argv(readme.guest_command("list")?))?;
    ensure!(left.is_empty(), "alloc has ended, and list printed: {left}");
    Ok(())
}

#[test]
fn what_the_readme_says_to_type_works() {
    let plan = |logs: &Path| {
        let readme = Readme::read()?;
        for verb in ["info", "alloc", "list", "dump"] {
            readme.guest_command(verb)?;
        }
        readme.build(logs)?;
        readme.plan()
    };
    pair::with_own(plan, |vms| type_it(&Readme::read()?, vms));
}

#[test]
fn a_readme_that_lost_a_command_is_noticed() -> Result<()> {
    let text = std::fs::read_to_string(lab::repo().join("README.md"))?;
    let complaint = |from: &str, to: &str| -> Result<String> {
        ensure!(text.contains(from), "README.md has no '{from}'");
        let tried = Readme::parse(&text.replace(from, to)).and_then(|readme| {
            readme.guest_command("dump")?;
            readme.plan().map(drop)
        });
        Ok(tried
            .err()
            .map(|error| format!("{error:#}"))
            .unwrap_or_default())
    };
    ensure!(complaint(HEADING, HEADING)?.is_empty());
    for (from, to, part) in [
        (HEADING, "## Use it", "no section"),
        ("**Guest.**", "**VM.**", "no paragraph '**Guest.**'"),
        ("bufshare dump ID", "bufshare hash ID", "no 'bufshare dump'"),
        ("--to display:rw", "--to screen:rw", "--to screen:rw"),
        (
            "--peer name=display",
            "--pear name=display",
            "not two --peer",
        ),
        ("path=/tmp/camera.sock", "path=/tmp/cam.sock", "0 chardevs"),
        ("cargo build", "cd device; cargo build", "only a shell"),
        ("`ram-fd=allow`", "`--ram`", "ram-fd=allow"),
    ] {
        let text = complaint(from, to)?;
        ensure!(text.contains(part), "'{from}' to '{to}': {text:?}");
    }
    Ok(())
}
