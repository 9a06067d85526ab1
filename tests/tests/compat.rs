// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver, the command, the library and the daemon of an earlier revision with those of
//! this checkout
//!
//! Revisions stand in tests/compat.toml. The agent is always this checkout's; what a guest
//! shares, it shares by its command, or by an example of its library.

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use core::mem::offset_of;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bufshare_agent::wire::{Ran, Status};
use bufshare_protocol::ioctl::{self, Alloc};
use bufshare_tests::channel::{self, Program};
use bufshare_tests::client::bytes;
use bufshare_tests::daemon::{SOCKETS, socket};
use bufshare_tests::driver::{self, unload_when_free};
use bufshare_tests::pair::{DRIVER, Plan, Shared, TwoVms};
use bufshare_tests::revision::Revision;
use bufshare_tests::vm::Vm;
use bufshare_tests::wait;
use serde_json::Value;

/// Guests without a driver, on this checkout's daemon.
static ON_OURS: Shared = Shared::new(|| {
    Plan::new()
        .needs(|| first().map(drop))
        .both(|machine| machine.modules.clear())
});
/// The same on the earlier daemon.
static ON_THEIRS: Shared = Shared::new(|| {
    let program = first().map(|first| first.daemon().display().to_string());
    // As it was typed then.
    let mut words = vec![program.unwrap_or_default()];
    for name in ["a", "b"] {
        let socket = socket(SOCKETS.as_ref(), name);
        words.push("--peer".to_owned());
        words.push(format!(
            "name={name},socket={},ram-fd=allow",
            socket.display()
        ));
    }
    Plan::new()
        .needs(|| first().map(drop))
        .command(&words)
        .both(|machine| machine.modules.clear())
});
/// For a few frames of an emulated camera.
const FRAMES: Duration = Duration::from_secs(60);
/// The examples that [`Guest::example`] runs.
const EXAMPLES: [&str; 2] = ["exporter", "event_loop"];

fn first() -> Result<Revision> {
    Revision::find("first")
}

/// Of which revision something is.
#[derive(Clone, Copy, PartialEq)]
enum Of {
    First,
    Ours,
}

/// What runs in a guest.
#[derive(Clone, Copy)]
struct Parts {
    driver: Of,
    programs: Of,
}

const FIRST: Parts = Parts {
    driver: Of::First,
    programs: Of::First,
};
const OURS: Parts = Parts {
    driver: Of::Ours,
    programs: Of::Ours,
};

/// A guest with its parts, and the revision of them that are earlier.
struct Guest<'a> {
    vm: &'a Vm,
    parts: Parts,
    first: &'a Revision,
}

impl Guest<'_> {
    fn set_up(&self) -> Result<()> {
        self.first.install(self.vm, &EXAMPLES)?;
        // It may stay from a test before, that of the other revision.
        if driver::is_loaded(self.vm)? {
            unload_when_free(self.vm, DRIVER)?;
        }
        match self.parts.driver {
            Of::First => self.first.load(self.vm)?,
            Of::Ours => self.vm.load(DRIVER, "")?,
        }
        ensure!(driver::bound(self.vm)?.is_some(), "it took no device");
        Ok(())
    }

    /// Nothing that was shared keeps the driver.
    fn leave(&self) -> Result<()> {
        self.vm.unload(DRIVER)
    }

    fn example(&self, name: &str) -> Result<Program> {
        ensure!(EXAMPLES.contains(&name), "{name} is not installed");
        match self.parts.programs {
            Of::First => self.vm.spawn(&[&self.first.path(name)]),
            Of::Ours => self.vm.spawn(&[&format!("/examples/{name}")]),
        }
    }

    fn line(&self, rest: &str) -> String {
        let command = match self.parts.programs {
            Of::First => self.first.path("bufshare"),
            Of::Ours => "/bin/bufshare".to_owned(),
        };
        format!("{command} --json {rest}")
    }

    fn start(&self, rest: &str) -> Result<Program> {
        let line = self.line(rest);
        self.vm.spawn(&words(&line))
    }

    fn ran(&self, rest: &str) -> Result<Ran> {
        let line = self.line(rest);
        self.vm.run(&words(&line), FRAMES)
    }

    /// What it prints when it succeeds.
    fn records(&self, rest: &str) -> Result<Vec<Value>> {
        let printed = channel::succeeded(&self.line(rest), self.ran(rest)?)?;
        printed.lines().map(parse).collect()
    }

    fn record(&self, rest: &str) -> Result<Value> {
        let mut records = self.records(rest)?;
        match (records.pop(), records.pop()) {
            (Some(only), None) => Ok(only),
            (last, other) => bail!("{rest}: not one record: {other:?}, {last:?}"),
        }
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn parse(line: &str) -> Result<Value> {
    serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))
}

fn next(program: &mut Program) -> Result<Value> {
    parse(&program.line(wait::COMMAND)?)
}

/// Its members are these.
fn has(record: &Value, members: &[(&str, Value)]) -> Result<()> {
    for (name, value) in members {
        ensure!(
            record.get(name) == Some(value),
            "{name} is not {value}: {record}"
        );
    }
    Ok(())
}

fn text<'a>(record: &'a Value, member: &str) -> Result<&'a str> {
    let value = record.get(member).and_then(Value::as_str);
    value.with_context(|| format!("no text '{member}' in {record}"))
}

/// The next record, which is this event.
fn event(program: &mut Program, kind: &str, id: &str) -> Result<()> {
    let record = next(program)?;
    is_no_guess(&record)?;
    has(&record, &[("event", kind.into()), ("id", id.into())])
}

/// The library has not found out by itself what an event should have told it.
fn is_no_guess(event: &Value) -> Result<()> {
    let seq = event.get("seq").and_then(Value::as_u64);
    ensure!(seq.is_some_and(|seq| seq > 0), "no event came: {event}");
    Ok(())
}

/// Its end, with this status.
fn ends(mut program: Program, wanted: i32) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let status = program.end(wait::COMMAND, |_, line| lines.push(line))?;
    ensure!(status == Status::Exit(wanted), "{status:?}: {lines:?}");
    Ok(lines)
}

/// Ended by the end of its input.
fn end(program: Program) -> Result<()> {
    program.end_input()?;
    ends(program, 0).map(drop)
}

/// A command that exports a buffer for `to`, until a signal.
fn alloc(to: &Guest) -> String {
    format!(
        "alloc --size 256K --fill-seed 5 --name scratch --to {}:rw --ignore-stdin",
        to.vm.name()
    )
}

/// What `to` is told of `from`: the next that it prints is an event. It has listed a buffer
/// before, whose exporter and id are the others.
fn watch(from: &Guest, to: &Guest) -> Result<(Program, Program, String)> {
    let mut exporter = from.start(&alloc(to))?;
    let id = text(&next(&mut exporter)?, "id")?.to_owned();
    let mut watch = to.start("watch")?;
    has(&next(&mut watch)?, &[("id", id.as_str().into())])?;
    Ok((watch, exporter, id))
}

/// All that can be done with a buffer of `from`.
fn shares(from: &Guest, to: &Guest) -> Result<()> {
    let (exporter, importer) = (from.vm.name(), to.vm.name());
    for (guest, name) in [(from, exporter), (to, importer)] {
        has(&guest.record("info")?, &[("name", name.into())])?;
    }
    let (mut watch, before, id_before) = watch(from, to)?;
    let mut alloc = from.start(&alloc(to))?;
    let exported = next(&mut alloc)?;
    let id = text(&exported, "id")?;
    event(&mut watch, "OFFER", id)?;
    for (guest, owned) in [(from, true), (to, false)] {
        let listed = guest.records("list")?;
        let one = listed
            .iter()
            .find(|one| text(one, "id").is_ok_and(|it| it == id));
        let one = one.with_context(|| format!("{id} is not in {listed:?}"))?;
        let members = [
            ("name", "scratch".into()),
            ("size", (256 << 10).into()),
            ("owned", owned.into()),
            ("rights", "rw".into()),
        ];
        has(one, &members)?;
    }

    let dump = format!("dump {id} --rights rw");
    let sum = text(&exported, "sha256")?;
    has(&to.record(&dump)?, &[("sha256", sum.into())])?;
    event(&mut alloc, "RELEASED", id)?;
    to.record(&format!("write {id} --offset 4K --bytes cafe"))?;
    event(&mut alloc, "RELEASED", id)?;
    let written = to.record(&dump)?;
    ensure!(text(&written, "sha256")? != sum, "{written}");
    event(&mut alloc, "RELEASED", id)?;

    // It is taken from who holds it.
    let mut held = to.start(&format!("import {id} --rights rw --mmap --hold"))?;
    has(&next(&mut held)?, &[("id", id.into())])?;
    alloc.signal(libc::SIGTERM)?;
    ends(alloc, 0)?;
    event(&mut held, "REVOKED", id)?;
    let said = ends(held, 1)?;
    let error = parse(said.last().context("it says nothing")?)?;
    has(&error, &[("status", "REVOKED".into())])?;
    event(&mut watch, "REVOKED", id)?;
    let refused = to.ran(&dump)?;
    ensure!(refused.status == Status::Exit(1), "{refused:?}");
    has(
        &parse(refused.stderr.trim_end())?,
        &[("status", "NOT_FOUND".into())],
    )?;

    before.signal(libc::SIGTERM)?;
    ends(before, 0)?;
    event(&mut watch, "REVOKED", &id_before)?;
    end(watch)
}

/// The first commands show frames by metadata, of which events tell, and what the viewer writes
/// is seen by the exporter. Those of today hand them over, and so not to or by the first.
fn shows_frames(from: &Guest, to: &Guest) -> Result<()> {
    if from.parts.programs == Of::Ours || to.parts.programs == Of::Ours {
        return Ok(());
    }
    from.vm.load("vivid", "allocators=1")?;
    let name = to.vm.name();
    let capture = format!("capture --to {name}:rw --size 320x180 --frames 3");
    let name = from.vm.name();
    let view = format!("view --from {name} --no-display --frames 3");
    let (mut watch, before, _) = watch(from, to)?;
    let mut camera = from.start(&capture)?;
    let viewed = to.records(&view)?;
    // Viewers ask without an event, too.
    let news = loop {
        let record = next(&mut watch)?;
        match text(&record, "event") {
            Ok("META") => break record,
            Ok("REVOKED") => bail!("no event of the metadata before {record}"),
            _ => {}
        }
    };
    is_no_guess(&news)?;
    end(watch)?;
    before.signal(libc::SIGTERM)?;
    ends(before, 0)?;
    let mut captured = Vec::new();
    let status = camera.end(FRAMES, |_, line| captured.push(line))?;
    ensure!(status == Status::Exit(0), "{status:?}: {captured:?}");
    let captured = parse(captured.last().context("no summary")?)?;
    has(
        &captured,
        &[("type", "capture_summary".into()), ("replies_ok", 3.into())],
    )?;
    let viewed = viewed.last().context("no summary")?;
    has(
        viewed,
        &[
            ("type", "view_summary".into()),
            ("frames", 3.into()),
            ("hashes_match", true.into()),
        ],
    )
}

/// Of the first driver, and of the first daemon.
const OF_DRIVER: &str =
    "Operation not supported (os error 95): this VM's driver is of a version that does not";
const OF_HOST: &str = "the device does not know or does not serve this";

/// The commands of today say who cannot hand frames over.
fn refuses_frames(guest: &Guest, peer: &Guest, why: &str) -> Result<()> {
    let name = peer.vm.name();
    for line in [
        format!("capture --to {name}:rw"),
        format!("view --from {name} --no-display"),
    ] {
        let ran = guest.ran(&line)?;
        let said = format!("cannot hand frames over: {why}");
        ensure!(
            ran.status == Status::Exit(1) && ran.stderr.contains(&said),
            "{line}: {ran:?}"
        );
    }
    Ok(())
}

/// A buffer of this guest is quiesced, whichever driver says so to whichever daemon.
fn quiesces(from: &Guest) -> Result<()> {
    let mut client = from.vm.client()?;
    let (_, map, export) = client.offer(1 << 20, 1)?;
    client.quiesce(&export)?;
    ensure!(client.query(&export.id)?.quiesced, "the host does not know");
    client.fill(map, 2)?;
    let quiesced = client.query(&export.id)?.quiesced;
    ensure!(!quiesced, "the host does not know that it has ended");
    Ok(())
}

/// Programs of the libraries find each other's buffers and see them go.
fn libraries_share(from: &Guest, to: &Guest) -> Result<()> {
    let mut exporter = from.example("exporter")?;
    let id = exporter.line(wait::COMMAND)?;
    let mut importer = to.example("event_loop")?;
    ensure!(importer.line(wait::COMMAND)? == format!("{id} hello"));
    end(exporter)?;
    ensure!(importer.line(wait::COMMAND)? == format!("{id} revoked"));
    end(importer)
}

/// Everything, in both directions, by these parts, until nothing is left.
fn work_together(vms: &mut TwoVms, daemon: Of, a: Parts, b: Parts) -> Result<()> {
    let first = &first()?;
    let [a, b] = [(&vms.a, a), (&vms.b, b)].map(|(vm, parts)| Guest { vm, parts, first });
    a.set_up().context("a")?;
    b.set_up().context("b")?;
    for (from, to) in [(&a, &b), (&b, &a)] {
        let what = || format!("from {} to {}", from.vm.name(), to.vm.name());
        shares(from, to).with_context(what)?;
        quiesces(from).with_context(what)?;
        libraries_share(from, to).with_context(what)?;
        shows_frames(from, to).with_context(what)?;
        if from.parts.programs == Of::Ours {
            match (from.parts.driver, daemon) {
                (Of::First, _) => refuses_frames(from, to, OF_DRIVER)?,
                (Of::Ours, Of::First) => refuses_frames(from, to, OF_HOST)?,
                (Of::Ours, Of::Ours) => {}
            }
        }
    }
    a.leave()?;
    b.leave()?;
    vms.settled().map(drop)
}

#[test]
fn the_first_guests_share_on_this_daemon() {
    ON_OURS.with(|vms| work_together(vms, Of::Ours, FIRST, FIRST));
}

#[test]
fn a_first_guest_and_one_of_ours_share_on_this_daemon() {
    ON_OURS.with(|vms| work_together(vms, Of::Ours, FIRST, OURS));
}

#[test]
fn the_first_programs_work_with_this_driver_and_these_with_the_first() {
    ON_OURS.with(|vms| {
        let first_on_ours = Parts {
            driver: Of::Ours,
            programs: Of::First,
        };
        let ours_on_first = Parts {
            driver: Of::First,
            programs: Of::Ours,
        };
        work_together(vms, Of::Ours, first_on_ours, ours_on_first)
    });
}

#[test]
fn these_guests_share_on_the_first_daemon() {
    ON_THEIRS.with(|vms| work_together(vms, Of::First, OURS, OURS));
}

#[test]
fn what_the_first_driver_does_not_know_is_refused_as_that() {
    ON_OURS.with(|vms| {
        let first = &first()?;
        let guest = Guest {
            vm: &vms.a,
            parts: FIRST,
            first,
        };
        guest.set_up()?;
        let mut client = vms.a.client()?;
        let (errno, _) = client.raw(ioctl::INFO + 0x40, &[0; 256], &[])?;
        ensure!(errno == libc::ENOTTY, "an unknown ioctl: errno {errno}");

        // A structure that has grown: what the driver does not know of it is not used, or
        // is.
        let size = 4096_u64.to_ne_bytes();
        let flags = libc::O_RDWR.to_ne_bytes();
        let fields = [
            (offset_of!(Alloc, size), &size[..]),
            (offset_of!(Alloc, fd_flags), &flags),
        ];
        for (used, wanted) in [(0, 0), (1, libc::E2BIG)] {
            let mut data = bytes(Alloc::SIZE + 64, &fields);
            *data.last_mut().context("a byte")? = used;
            let number = ioctl::ALLOC & !(0x3fff << 16) | u32::try_from(data.len())? << 16;
            let (errno, _) = client.raw(number, &data, &[])?;
            ensure!(errno == wanted, "errno {errno}, not {wanted}");
        }
        drop(client);
        unload_when_free(guest.vm, DRIVER)
    });
}
