// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `bufshare` command between two VMs: every command, and every example of
//! its help
//!
//! The examples are read from `--help` of the program in the guest. Changed is only
//! the id in them. They name the peers `camera`, `display` and `encoder`; only the
//! first two have a VM.

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bufshare_agent::wire::{Ran, Status};
use bufshare_tests::channel::Program;
use bufshare_tests::client::{Client, Export, Map, Sight};
use bufshare_tests::lab;
use bufshare_tests::pair::{Plan, Shared, TwoVms};
use bufshare_tests::vm::Vm;
use bufshare_tests::wait;
use serde_json::Value;

static VMS: Shared = Shared::new(|| {
    Plan::named("camera", "display").options(&[
        // Memory of vgem may lie in many pieces, each of which takes one.
        "--max-windows",
        "256",
        "--peer",
        "name=encoder,socket={sockets}/encoder.sock",
        "--allow",
        "camera:display:rw",
        "--allow",
        "camera:encoder:rw",
        "--peer",
        "name=reader,socket={sockets}/reader.sock",
        "--allow",
        "camera:reader:r",
    ])
});
/// The id in the help.
const ID: &str = "0123456789abcdef0123456789abcdef";
const SIZE: u64 = 1 << 20;
/// For a few frames of an emulated camera.
const FRAMES: Duration = Duration::from_secs(60);

/// The command lines under `EXAMPLE` or `EXAMPLES`.
fn examples(help: &str) -> Vec<String> {
    let section = help
        .split_once("\nEXAMPLE")
        .map_or("", |(_, section)| section);
    let lines = section.replace("\\\n", " ");
    let lines = lines.lines().map(|line| {
        let line = line.split(" #").next().unwrap_or_default();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    });
    lines.filter(|line| line.starts_with("bufshare ")).collect()
}

/// The commands that the help lists.
fn commands(help: &str) -> Vec<&str> {
    let section = help
        .split_once("\nCommands:\n")
        .map_or("", |(_, rest)| rest);
    section
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

/// The command of a command line.
fn verb(line: &str) -> Result<&str> {
    let mut words = line.split(' ').skip(1);
    let word = words.find(|word| !word.starts_with('-'));
    word.with_context(|| format!("no command in: {line}"))
}

/// All examples of the help, by command.
fn all_examples(vm: &Vm) -> Result<Vec<(String, String)>> {
    let help = vm.output(&["bufshare", "--help"])?;
    let mut lines = examples(&help);
    for command in commands(&help) {
        let own = examples(&vm.output(&["bufshare", command, "--help"])?);
        ensure!(
            !own.is_empty() || ["info", "peers", "list"].contains(&command),
            "the help of {command} has no example"
        );
        lines.extend(own);
    }
    lines
        .into_iter()
        .map(|line| Ok((verb(&line)?.to_owned(), line)))
        .collect()
}

/// A line as a shell takes it; standard error comes where standard output does.
fn shell(vm: &Vm, line: &str) -> Result<Program> {
    vm.spawn(&["sh", "-c", &format!("exec {line} 2>&1")])
}

/// As [`shell`], to its end.
fn ran(vm: &Vm, line: &str) -> Result<Ran> {
    let line = format!("exec {line}");
    let ran = vm.run(&["sh", "-c", &line], wait::COMMAND)?;
    ensure!(!ran.timed_out, "{line} did not end: {ran:?}");
    Ok(ran)
}

/// Its output, when it succeeds.
fn output(vm: &Vm, line: &str) -> Result<String> {
    let ran = ran(vm, line)?;
    ensure!(ran.status == Status::Exit(0), "{line}: {ran:?}");
    Ok(ran.stdout)
}

/// A command that does not end by itself is ended by the end of its input.
fn end(program: Program, line: &str) -> Result<()> {
    program.end_input()?;
    ends_well(program, line)
}

fn ends_well(mut program: Program, line: &str) -> Result<()> {
    let mut rest = Vec::new();
    let status = program.end(wait::COMMAND, |_, text| rest.push(text))?;
    ensure!(status == Status::Exit(0), "{line}: {status:?}: {rest:?}");
    Ok(())
}

/// The next line, which is one JSON object.
fn json(program: &mut Program) -> Result<Value> {
    let line = program.line(wait::COMMAND)?;
    serde_json::from_str(&line).with_context(|| format!("no JSON: {line}"))
}

/// A member that is text.
fn text<'a>(record: &'a Value, member: &str) -> Result<&'a str> {
    let value = record.get(member).and_then(Value::as_str);
    value.with_context(|| format!("no text '{member}' in {record}"))
}

/// A buffer of the camera's, until `client` ends.
struct Offer {
    client: Client,
    map: Map,
    export: Export,
}

fn offer(vms: &TwoVms, seed: u32) -> Result<Offer> {
    let mut client = vms.a.client()?;
    let (_, map, export) = client.offer(SIZE, seed)?;
    Ok(Offer {
        client,
        map,
        export,
    })
}

/// SHA-256 of a file of the guest, by another program.
fn sha256(vm: &Vm, file: &str) -> Result<String> {
    let text = vm.output(&["busybox", "sha256sum", file])?;
    let hash = text.split_whitespace().next().unwrap_or_default();
    Ok(hash.to_owned())
}

/// SHA-256 of the pattern of `seed`, by another program than ours.
fn sha256_of_pattern(vm: &Vm, seed: u32) -> Result<String> {
    let file = "/tmp/pattern";
    vm.write_file(file, &bufshare_tests::client::pattern(seed, SIZE))?;
    sha256(vm, file)
}

/// The first line that is no warning, and the warnings before it.
fn first_line(program: &mut Program) -> Result<(String, Vec<String>)> {
    let mut warnings = Vec::new();
    loop {
        let line = program.line(wait::COMMAND)?;
        match line.strip_prefix("bufshare: warning: ") {
            Some(warning) => warnings.push(warning.to_owned()),
            None => return Ok((line, warnings)),
        }
    }
}

/// The id that `alloc`, `export` or `import` printed first.
fn id_of(line: &str) -> Result<&str> {
    let word = line.split(' ').next().unwrap_or_default();
    ensure!(word.len() == ID.len(), "no id first: {line}");
    Ok(word)
}

/// Runs an example of `alloc` or `export`: the other VM can read what it exports.
fn exports(vms: &TwoVms, line: &str) -> Result<()> {
    if line.contains("--vgem") {
        vms.a.load("vgem", "")?;
    }
    let mut program = if line.contains("<&7") {
        let line = format!("exec {line} 2>&1");
        let words = ["/init", "with-dmabuf", "7", "65536", "sh", "-c", &line];
        vms.a.spawn(&words)?
    } else {
        shell(&vms.a, line)?
    };
    let (printed, warnings) = first_line(&mut program)?;
    ensure!(warnings.is_empty(), "{line}: {warnings:?}");
    let dumped = output(&vms.b, &format!("bufshare dump {}", id_of(&printed)?))?;
    let hash = dumped.split(' ').next().unwrap_or_default();
    match printed.split_once("sha256 ") {
        Some((_, filled)) => ensure!(hash == filled, "filled: {printed}; read: {dumped}"),
        None => ensure!(hash.len() == 64, "{dumped}"),
    }
    end(program, line)
}

/// Runs an example that takes an id.
fn takes_id(vms: &TwoVms, verb: &str, line: &str) -> Result<()> {
    let seed = 7;
    let mut offer = offer(vms, seed)?;
    let typed = line.replace(ID, &offer.export.id);
    ensure!(typed != line, "no id in: {line}");
    match verb {
        "dump" => {
            let printed = output(&vms.b, &typed)?;
            let hash = sha256_of_pattern(&vms.b, seed)?;
            ensure!(printed.starts_with(&hash), "{printed}, not {hash}");
            if let Some((_, file)) = typed.split_once("--out ") {
                ensure!(sha256(&vms.b, file)? == hash, "the file has something else");
            }
        }
        "import" if typed.contains("--hold") => {
            let mut program = shell(&vms.b, &typed)?;
            let (printed, _) = first_line(&mut program)?;
            ensure!(id_of(&printed)? == offer.export.id, "{printed}");
            let held = offer.client.query(&offer.export.id)?.attachments;
            ensure!(held == 1, "{held} imports while one is held");
            end(program, &typed)?;
        }
        "import" => {
            // Neither the pattern nor an empty page begins so.
            let sight = offer.client.poke(offer.map, 0, &[0xa5])?;
            ensure!(sight == Sight::Pattern, "{sight:?}");
            let printed = output(&vms.b, &typed)?;
            ensure!(printed.contains("first byte 0xa5"), "{printed}");
        }
        "write" => {
            let printed = output(&vms.b, &typed)?;
            let written = offer.client.peek(offer.map, 0x1000, 2)?;
            ensure!(
                written == Some(vec![0xca, 0xfe]),
                "{written:?} was written: {printed}"
            );
        }
        _ => bail!("not tried here: {line}"),
    }
    Ok(())
}

/// Runs an example of `watch`: a buffer that was there before, one that comes.
fn watches(vms: &TwoVms, line: &str) -> Result<()> {
    let before = offer(vms, 1)?;
    let mut program = shell(&vms.b, line)?;
    let listed = program.line(wait::COMMAND)?;
    ensure!(listed.contains(&before.export.id), "{listed}");
    let after = offer(vms, 2)?;
    let event = program.line(wait::COMMAND)?;
    ensure!(
        event.contains("OFFER") && event.contains(&after.export.id),
        "{event}"
    );
    if line.contains("--count 1") {
        let status = program.end(wait::COMMAND, |_, _| {})?;
        ensure!(status == Status::Exit(0), "{line}: {status:?}");
        Ok(())
    } else {
        end(program, line)
    }
}

#[test]
fn the_examples_of_the_help_work() {
    VMS.with(|vms| {
        let mut tried = BTreeSet::new();
        for (verb, line) in all_examples(&vms.a)? {
            // What the last one shared is not listed any more.
            vms.settled()?;
            let done = match verb.as_str() {
                "peers" => output(&vms.a, &line).map(drop),
                "list" => output(&vms.b, &line).map(drop),
                "alloc" | "export" => exports(vms, &line),
                "watch" => watches(vms, &line),
                // They need each other: below.
                "capture" | "view" => Ok(()),
                _ => takes_id(vms, &verb, &line),
            };
            done.with_context(|| format!("example: {line}"))?;
            tried.insert(verb);
        }
        let wanted = [
            "alloc", "capture", "dump", "export", "import", "list", "peers", "view", "watch",
            "write",
        ];
        ensure!(tried.iter().eq(wanted), "examples of {tried:?} only");
        Ok(())
    });
}

#[test]
fn the_examples_of_camera_and_screen_work() {
    VMS.with(|vms| {
        vms.a.load("vivid", "allocators=1")?;
        vms.b.load("bochs", "")?;
        let examples = all_examples(&vms.a)?;
        let of = |verb: &str| -> Vec<String> {
            let lines = examples.iter().filter(|(other, _)| other == verb);
            lines.map(|(_, line)| line.clone()).collect()
        };
        let (cameras, screens) = (of("capture"), of("view"));
        ensure!(
            !cameras.is_empty() && cameras.len() == screens.len(),
            "no pairs: {cameras:?}, {screens:?}"
        );
        for (capture, view) in cameras.iter().zip(&screens) {
            let mut camera = shell(&vms.a, capture)?;
            let mut screen = shell(&vms.b, view)?;
            for program in [&mut camera, &mut screen] {
                // The second is shown before the first is given back.
                let mut frames = 0;
                while frames < 2 {
                    let line = program.line(FRAMES)?;
                    let is_json = line.contains("\"type\":\"captured\"")
                        || line.contains("\"type\":\"viewed\"");
                    frames += u32::from(is_json || line.starts_with("frame "));
                }
            }
            for (program, line) in [(screen, view), (camera, capture)] {
                program.signal(libc::SIGTERM)?;
                ends_well(program, line)?;
            }
        }
        Ok(())
    });
}

#[test]
fn peers_are_listed_with_what_may_be_shared() {
    VMS.with(|vms| {
        let peers = |vm: &Vm| -> Result<Vec<Value>> {
            let printed = vm.output(&["bufshare", "--json", "peers"])?;
            let records = printed.lines().map(serde_json::from_str);
            Ok(records.collect::<Result<_, _>>()?)
        };
        let short = |peers: &[Value]| -> Result<Vec<String>> {
            let line = |peer: &Value| {
                let [up, itself] =
                    ["up", "itself"].map(|member| peer.get(member) == Some(&true.into()));
                Ok(format!(
                    "{} {} {}{}{}",
                    text(peer, "name")?,
                    text(peer, "export_rights")?,
                    text(peer, "import_rights")?,
                    if up { " up" } else { "" },
                    if itself { " itself" } else { "" }
                ))
            };
            peers.iter().map(line).collect()
        };
        let camera = short(&peers(&vms.a)?)?;
        ensure!(
            camera
                == [
                    "camera - - up itself",
                    "display rw - up",
                    "encoder rw -",
                    "reader r -"
                ],
            "{camera:?}"
        );
        let display = short(&peers(&vms.b)?)?;
        ensure!(
            display == ["camera - rw up", "display - - up itself"],
            "{display:?}"
        );
        let printed = vms.a.output(&["bufshare", "peers"])?;
        let (first, rest) = printed.split_once('\n').context("one line")?;
        ensure!(
            first.contains("camera") && first.ends_with("(this machine)"),
            "{printed}"
        );
        ensure!(
            rest.contains("encoder") && rest.contains("down"),
            "{printed}"
        );
        Ok(())
    });
}

/// A command's output, which is one JSON object.
fn one_record(vm: &Vm, line: &str) -> Result<Value> {
    let printed = output(vm, line)?;
    serde_json::from_str(printed.trim_end()).with_context(|| format!("{line}: {printed}"))
}

/// The number of a peer, as `peers` prints it.
fn number_of(vm: &Vm, name: &str) -> Result<u64> {
    let printed = output(vm, "bufshare --json peers")?;
    for line in printed.lines() {
        let peer: Value = serde_json::from_str(line)?;
        if text(&peer, "name")? == name {
            let id = peer.get("id").and_then(Value::as_u64);
            return id.with_context(|| format!("no id: {peer}"));
        }
    }
    bail!("no peer {name}: {printed}")
}

/// Numbers stand for peers, and every command prints JSON.
#[test]
fn a_named_buffer_for_a_peers_number_is_listed_read_and_written_on_both_sides() {
    VMS.with(|vms| {
        let (camera, display) = (number_of(&vms.b, "camera")?, number_of(&vms.a, "display")?);
        let line = format!(
            "bufshare --json alloc --size 64K --name scratch --fill-seed 5 --to {display}:rw"
        );
        let mut program = shell(&vms.a, &line)?;
        let exported = json(&mut program)?;
        let id = text(&exported, "id")?;
        for (vm, owned) in [(&vms.a, true), (&vms.b, false)] {
            let listed = one_record(vm, "bufshare --json list")?;
            let number = |member: &str| listed.get(member).and_then(Value::as_u64);
            ensure!(
                text(&listed, "id")? == id
                    && text(&listed, "name")? == "scratch"
                    && listed.get("owned") == Some(&owned.into())
                    && number("owner") == Some(camera)
                    && number("size") == Some(65536),
                "{listed}"
            );
            let printed = output(vm, "bufshare list")?;
            ensure!(
                printed.lines().count() == 1 && printed.contains(id) && printed.contains("scratch"),
                "{printed}"
            );
        }
        let hash = text(&exported, "sha256")?;
        let dumped = one_record(&vms.b, &format!("bufshare --json dump {id} --rights rw"))?;
        ensure!(text(&dumped, "sha256")? == hash, "{dumped}, not {exported}");
        // Nothing but its bytes.
        let script = format!("bufshare --json dump {id} --rights rw --out - | busybox sha256sum");
        let piped = vms.b.output(&["sh", "-c", &script])?;
        ensure!(piped.starts_with(hash), "{piped}, not {exported}");
        let line = format!("bufshare --json write {id} --offset 1K --bytes cafe");
        let written = one_record(&vms.b, &line)?;
        let number = |member: &str| written.get(member).and_then(Value::as_u64);
        ensure!(
            text(&written, "type")? == "written"
                && number("offset") == Some(1024)
                && number("bytes") == Some(2),
            "{written}"
        );
        let script = format!(
            "bufshare dump {id} --rights rw --out - | busybox tail -c +1025 | busybox head -c 2 | \
             busybox od -An -tx1"
        );
        let read = vms.b.output(&["sh", "-c", &script])?;
        ensure!(read.trim() == "ca fe", "{read}");
        end(program, "bufshare --json alloc")
    });
}

#[test]
fn what_is_held_stays_after_the_end_of_input_with_ignore_stdin() {
    VMS.with(|vms| {
        let line = "bufshare alloc --size 64K --to display:rw --ignore-stdin";
        let mut alloc = shell(&vms.a, line)?;
        let (printed, _) = first_line(&mut alloc)?;
        let id = id_of(&printed)?.to_owned();
        alloc.end_input()?;
        let line = format!("bufshare import {id} --rights rw --hold --ignore-stdin");
        let mut import = shell(&vms.b, &line)?;
        import.line(wait::COMMAND)?;
        import.end_input()?;
        // What they print shows that they are there.
        output(&vms.b, &format!("bufshare import {id} --rights rw"))?;
        let other = offer(vms, 1)?;
        let event = import.line(wait::COMMAND)?;
        ensure!(event.contains(&other.export.id), "{event}");
        import.signal(libc::SIGTERM)?;
        ends_well(import, &line)?;
        let event = alloc.line(wait::COMMAND)?;
        ensure!(event.contains("RELEASED") && event.contains(&id), "{event}");
        alloc.signal(libc::SIGTERM)?;
        ends_well(alloc, "bufshare alloc")
    });
}

#[test]
fn watch_ends_after_so_many_events_or_seconds() {
    VMS.with(|vms| {
        let printed = output(&vms.b, "bufshare watch --ignore-stdin --timeout 0.2")?;
        ensure!(printed.is_empty(), "{printed}");
        let line = "bufshare --json watch --ignore-stdin --count 2";
        // What is listed is no event.
        let before = offer(vms, 1)?;
        let mut program = shell(&vms.b, line)?;
        let listed = json(&mut program)?;
        ensure!(text(&listed, "id")? == before.export.id, "{listed}");
        let _more = [offer(vms, 2)?, offer(vms, 3)?];
        ends_well(program, line)
    });
}

#[test]
fn a_wrong_command_line_is_status_2_and_the_version_is_the_packages() {
    VMS.with(|vms| {
        for line in [
            "bufshare",
            "bufshare nothing",
            "bufshare --json alloc --to display",
            "bufshare dump 12",
            "bufshare watch --timeout soon",
        ] {
            let ran = ran(&vms.a, line)?;
            ensure!(
                ran.status == Status::Exit(2) && ran.stdout.is_empty() && !ran.stderr.is_empty(),
                "{line}: {ran:?}"
            );
        }
        let printed = output(&vms.a, "bufshare --version")?;
        let version = concat!("bufshare ", env!("CARGO_PKG_VERSION"));
        ensure!(printed.trim_end() == version, "{printed}");
        Ok(())
    });
}

#[test]
fn every_source_is_exported_filled_and_read() {
    VMS.with(|vms| {
        vms.a.load("vgem", "")?;
        for source in ["--heap system", "--udmabuf", "--vgem"] {
            exports(
                vms,
                &format!("bufshare export {source} --size 256K --fill-seed 3 --to display:rw"),
            )?;
        }
        exports(
            vms,
            "bufshare export --fd 3 --fill-seed 3 --to display:rw 3<&7",
        )?;
        let refused = ran(&vms.a, "bufshare export --fd 9 --to display:rw")?;
        ensure!(
            refused.status == Status::Exit(1) && refused.stderr.contains("descriptor 9"),
            "{refused:?}"
        );
        Ok(())
    });
}

/// QEMU does not enforce read-only mappings.
#[test]
fn without_rights_commands_use_those_that_work_and_say_so() {
    VMS.with(|vms| {
        let line = "bufshare alloc --size 64K --fill c0 --to display";
        let mut program = shell(&vms.a, line)?;
        let (printed, warnings) = first_line(&mut program)?;
        ensure!(
            matches!(&warnings[..], [one] if one.starts_with("display can write to the buffer, too")),
            "{warnings:?}"
        );
        let id = id_of(&printed)?.to_owned();
        for command in ["dump", "import --mmap"] {
            let ran = ran(&vms.b, &format!("bufshare {command} {id}"))?;
            ensure!(
                ran.status == Status::Exit(0)
                    && ran.stderr.contains("imported for reading and writing"),
                "{ran:?}"
            );
            // With rights there is nothing to warn of.
            let ran = self::ran(&vms.b, &format!("bufshare {command} {id} --rights rw"))?;
            ensure!(
                ran.status == Status::Exit(0) && ran.stderr.is_empty(),
                "{ran:?}"
            );
        }
        let refused = ran(&vms.b, &format!("bufshare --json dump {id} --rights r"))?;
        let error: Value = serde_json::from_str(refused.stderr.trim_end())?;
        ensure!(
            refused.status == Status::Exit(1)
                && text(&error, "status")? == "RO_NOT_ENFORCED"
                && error.get("errno") == Some(&libc::EROFS.into()),
            "{refused:?}"
        );
        end(program, line)
    });
}

#[test]
fn a_share_that_nobody_can_import_is_warned_of() {
    VMS.with(|vms| {
        const DISPLAY: &str = "display can import the buffer only if";
        const READER: &str = "reader can import the buffer only if";
        for (to, wanted) in [
            ("--to display:r", &[DISPLAY][..]),
            ("--to reader", &[READER]),
            ("--to display:r --to reader:r", &[DISPLAY, READER]),
            ("", &["without --to the buffer is for all", READER]),
        ] {
            let line = format!("bufshare alloc --size 64K {to}");
            let mut program = shell(&vms.a, &line)?;
            let (_, warnings) = first_line(&mut program)?;
            ensure!(
                warnings.len() == wanted.len()
                    && warnings
                        .iter()
                        .zip(wanted)
                        .all(|(one, wanted)| one.starts_with(wanted)),
                "{line}: {warnings:?}"
            );
            end(program, &line)?;
        }
        // As JSON, too.
        let mut program = shell(&vms.a, "bufshare --json alloc --size 64K --to display:r")?;
        let warning = json(&mut program)?;
        ensure!(
            text(&warning, "warning")?.starts_with("display"),
            "{warning}"
        );
        let exported = json(&mut program)?;
        ensure!(text(&exported, "type")? == "exported", "{exported}");
        end(program, "bufshare --json alloc")
    });
}

#[test]
fn a_held_import_ends_when_the_buffer_is_revoked() {
    VMS.with(|vms| {
        let mut offer = offer(vms, 1)?;
        let id = offer.export.id.clone();
        let line = format!("bufshare --json import {id} --rights rw --mmap --hold");
        let mut program = shell(&vms.b, &line)?;
        let imported = json(&mut program)?;
        ensure!(
            text(&imported, "type")? == "imported" && text(&imported, "rights")? == "rw",
            "{imported}"
        );
        offer.client.close(offer.export.number)?;
        let event = json(&mut program)?;
        ensure!(
            text(&event, "event")? == "REVOKED" && text(&event, "id")? == id,
            "{event}"
        );
        let error = json(&mut program)?;
        ensure!(text(&error, "status")? == "REVOKED", "{error}");
        let status = program.end(wait::COMMAND, |_, _| {})?;
        ensure!(status == Status::Exit(1), "{status:?}");
        Ok(())
    });
}

/// As a script does that only wants the id.
#[test]
fn a_reader_that_goes_away_does_not_end_what_is_held() {
    VMS.with(|vms| {
        let line = "bufshare alloc --size 64K --to display:rw";
        let script = format!("{{ {line}; echo status $? >&2; }} | busybox head -n 1; echo gone");
        let mut program = vms.a.spawn(&["sh", "-c", &script])?;
        let id = id_of(&program.line(wait::COMMAND)?)?.to_owned();
        // An event that it would print, of another buffer.
        let mut offer = offer(vms, 1)?;
        let mut importer = vms.b.client()?;
        let import = importer.import(&offer.export.id)?;
        importer.close(import.buf.number)?;
        offer.client.wait_event_of("Released", &offer.export.id)?;
        importer.import(&id)?;
        program.end_input()?;
        let mut rest = Vec::new();
        program.end(wait::COMMAND, |_, text| {
            rest.push(text.trim_end().to_owned())
        })?;
        ensure!(rest.iter().any(|line| line == "status 0"), "{rest:?}");
        Ok(())
    });
}

/// Pages that are gone raise SIGBUS in whoever touches them.
#[test]
fn a_buffer_revoked_while_it_is_read_is_an_error_like_others() {
    VMS.with(|vms| {
        let mut offer = offer(vms, 1)?;
        let mut witness = vms.b.client()?;
        witness.info()?;
        // The pipe is full long before the end, and then the command stands still.
        let script = format!(
            "exec 5<&0; bufshare --json dump {} --rights rw --out - 2>/tmp/error | \
             {{ busybox head -c 8 >/dev/null; echo reading; read word <&5; \
             busybox cat >/dev/null; }}",
            offer.export.id
        );
        let mut program = vms.b.spawn(&["sh", "-c", &script])?;
        ensure!(program.line(wait::COMMAND)? == "reading");
        offer.client.close(offer.export.number)?;
        witness.wait_event_of("Revoked", &offer.export.id)?;
        program.write("go on\n")?;
        program.end(wait::COMMAND, |_, _| {})?;
        let error = vms.b.read_file("/tmp/error")?;
        let error: Value = serde_json::from_slice(&error)
            .with_context(|| String::from_utf8_lossy(&error).into_owned())?;
        ensure!(text(&error, "status")? == "REVOKED", "{error}");
        Ok(())
    });
}

/// `watch` runs: it prints the next buffer that is offered.
fn still_watches(vms: &TwoVms, program: &mut Program) -> Result<()> {
    let offer = offer(vms, 1)?;
    loop {
        let line = program.line(wait::COMMAND)?;
        // Listed, when it is only starting; else an OFFER.
        if line.contains(&offer.export.id) {
            return Ok(());
        }
    }
}

#[test]
fn signals_end_a_command_but_for_those_that_its_caller_ignores() {
    VMS.with(|vms| {
        let line = "bufshare watch --ignore-stdin";
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            let mut program = shell(&vms.b, line)?;
            program.end_input()?;
            still_watches(vms, &mut program)?;
            program.signal(signal)?;
            ends_well(program, line)?;
        }
        // As nohup does, and a shell for a job in the background.
        let line = r#"trap "" HUP INT; exec bufshare watch --ignore-stdin 2>&1"#;
        let mut program = vms.b.spawn(&["sh", "-c", line])?;
        still_watches(vms, &mut program)?;
        for signal in [libc::SIGHUP, libc::SIGINT] {
            program.signal(signal)?;
            still_watches(vms, &mut program)?;
        }
        program.signal(libc::SIGTERM)?;
        ends_well(program, line)
    });
}

#[test]
fn a_descriptor_to_export_is_the_callers() {
    VMS.with(|vms| {
        // The first that the command itself would get.
        let refused = ran(&vms.a, "bufshare export --fd 3 --to display:rw")?;
        ensure!(
            refused.status == Status::Exit(1)
                && refused.stderr.contains("descriptor 3: Bad file descriptor"),
            "{refused:?}"
        );
        // The standard input can be the dma-buf; it has no end then.
        let line = "exec bufshare export --fd 0 --to display:rw 2>&1";
        let words = ["/init", "with-dmabuf", "0", "65536", "sh", "-c", line];
        let mut program = vms.a.spawn(&words)?;
        let (printed, _) = first_line(&mut program)?;
        let id = id_of(&printed)?;
        output(&vms.b, &format!("bufshare dump {id} --rights rw"))?;
        program.signal(libc::SIGTERM)?;
        ends_well(program, line)
    });
}

#[test]
fn a_dump_replaces_a_file_only_when_there_is_something_to_write() {
    VMS.with(|vms| {
        let file = "/tmp/kept";
        vms.b.write_file(file, b"the dump before")?;
        let line = format!("bufshare dump {ID} --rights rw --out {file}");
        let refused = ran(&vms.b, &line)?;
        ensure!(
            refused.status == Status::Exit(1) && refused.stderr.contains("NOT_FOUND"),
            "{refused:?}"
        );
        let kept = vms.b.read_file(file)?;
        ensure!(kept == b"the dump before", "{kept:?}");
        // It is replaced, then, and hashed as asked.
        let line = "bufshare --json alloc --size 64K --fill-seed 5 --to display:rw";
        let mut program = shell(&vms.a, line)?;
        let exported = json(&mut program)?;
        let id = text(&exported, "id")?;
        let dump = format!("bufshare --json dump {id} --rights rw --hash xxh3 --out {file}");
        let dumped: Value = serde_json::from_str(output(&vms.b, &dump)?.trim_end())?;
        ensure!(
            text(&dumped, "xxh3")? == text(&exported, "xxh3")? && dumped.get("sha256").is_none(),
            "{dumped}, not {exported}"
        );
        ensure!(
            sha256(&vms.b, file)? == text(&exported, "sha256")?,
            "the file has something else"
        );
        end(program, line)
    });
}

#[test]
fn info_needs_no_sysfs_and_takes_the_device_that_it_is_given() {
    VMS.with(|vms| {
        // An older driver has no file there. Here there is not even a place for it: as where
        // /sys is not mounted, or something else is.
        for other in ["busybox true", ": >/sys/dev"] {
            let script =
                format!("busybox mount -t tmpfs none /sys && {other} && exec bufshare --json info");
            let words = ["busybox", "unshare", "-m", "sh", "-c", &script];
            let ran = vms.b.run(&words, wait::COMMAND)?;
            ensure!(
                ran.status == Status::Exit(0) && ran.stderr.contains("what the kernel cannot do"),
                "{other}: {ran:?}"
            );
            let info: Value = serde_json::from_str(ran.stdout.trim_end())?;
            ensure!(info.get("missing") == Some(&Value::Null), "{info}");
        }

        vms.b
            .output(&["busybox", "ln", "-sf", "/dev/bufshare", "/tmp/node"])?;
        let named = output(&vms.b, "bufshare --node /tmp/node info")?;
        ensure!(named.contains("display"), "{named}");
        let wrong = self::ran(&vms.b, "bufshare --node /dev/null info")?;
        ensure!(
            wrong.status == Status::Exit(1)
                && wrong.stderr.contains("--node is not the bufshare device"),
            "{wrong:?}"
        );
        Ok(())
    });
}

/// There is no REVOKED then, only an OVERFLOW of an unknown number of events.
#[test]
fn what_is_held_over_a_suspend_ends_as_revoked() {
    VMS.with(|vms| {
        let ends_as_revoked = |mut program: Program, line: &str| -> Result<()> {
            let mut lines = Vec::new();
            let status = program.end(wait::COMMAND, |_, text| lines.push(text))?;
            let said = |word: &str| lines.iter().any(|line| line.contains(word));
            ensure!(
                status == Status::Exit(1) && said("OVERFLOW") && said(r#""status":"REVOKED""#),
                "{line}: {status:?}: {lines:?}"
            );
            Ok(())
        };
        let line = "bufshare --json alloc --size 64K --to display:rw";
        let mut holder = shell(&vms.a, line)?;
        json(&mut holder)?;
        vms.a.suspend()?;
        ends_as_revoked(holder, line)?;

        let mut offer = offer(vms, 1)?;
        let id = offer.export.id.clone();
        let line = format!("bufshare --json import {id} --rights rw --hold");
        let mut holder = shell(&vms.b, &line)?;
        json(&mut holder)?;
        vms.b.suspend()?;
        ends_as_revoked(holder, &line)?;
        // It was this import that ended, and not the buffer.
        offer.client.query(&id).map(drop)
    });
}

/// The driver finds them in the headers and symbols of the kernel that it is built
/// for; here stands what they are for the kernels of the lab.
#[test]
fn info_says_what_the_kernel_cannot_do() {
    VMS.with(|vms| {
        let expected: &[&str] = match lab::series().as_str() {
            "stable" => &[
                "contiguous-alloc",
                "refusal-when-revoked",
                "fixed-backing",
                "function-reset",
            ],
            "newest" => &[],
            other => bail!("nobody has said what the kernel '{other}' lacks"),
        };
        let said: Value = serde_json::from_str(&output(&vms.b, "bufshare --json info")?)?;
        let missing = said.get("missing").and_then(Value::as_array);
        let missing = missing.with_context(|| format!("no list: {said}"))?;
        let mut sentences = Vec::new();
        for (feature, expected) in missing.iter().zip(expected) {
            ensure!(text(feature, "feature")? == *expected, "{said}");
            sentences.push(format!("kernel cannot    {}", text(feature, "cannot")?));
        }
        ensure!(missing.len() == expected.len(), "{said}");
        let printed = output(&vms.b, "bufshare info")?;
        let printed: Vec<&str> = printed
            .lines()
            .filter(|line| line.starts_with("kernel cannot"))
            .collect();
        ensure!(printed == sentences, "{printed:?}, not {sentences:?}");
        Ok(())
    });
}

#[test]
fn what_does_not_fit_is_not_written() {
    VMS.with(|vms| {
        let mut offer = offer(vms, 1)?;
        let id = &offer.export.id;
        for offset in ["0xfffff", "1M", "16G"] {
            let line = format!("bufshare write {id} --offset {offset} --bytes cafe");
            let refused = ran(&vms.b, &line)?;
            ensure!(
                refused.status == Status::Exit(1) && refused.stderr.contains("not inside"),
                "{refused:?}"
            );
        }
        let seen = offer.client.compare(offer.map, 1)?;
        ensure!(seen == Sight::Pattern, "something was written: {seen:x?}");
        let end = offer.client.peek(offer.map, SIZE - 2, 2)?;
        let line = format!("bufshare write {id} --offset 0xffffe --bytes cafe");
        output(&vms.b, &line)?;
        let now = offer.client.peek(offer.map, SIZE - 2, 2)?;
        ensure!(
            now == Some(vec![0xca, 0xfe]) && now != end,
            "{end:?}, then {now:?}"
        );
        Ok(())
    });
}

/// A vivid that fills memory of the system heap by a kernel mapping, as webcams do. Where it
/// maps memory for DMA it names no maximum length of a segment, and Linux 7.3's debugging of
/// that complains of the heap's pieces.
const HEAP_CAMERA: &str = "allocators=0";

/// Whether a console is drawn on screens.
const FBDEV: &str = "/sys/module/drm_kms_helper/parameters/fbdev_emulation";

#[test]
fn selftest_shows_a_camera_within_one_vm() {
    VMS.with(|vms| {
        vms.b.load("vivid", HEAP_CAMERA)?;
        vms.b.load("bochs", "")?;
        // Else the kernel may complain of that when the guest comes back from a sleep.
        let console = vms.b.read_file(FBDEV)?;
        ensure!(console == b"N\n", "a console draws on the screen");
        // No --fps: when vivid is late for a high rate, the kernel complains of its timeouts.
        let line = "bufshare --json selftest --frames 3 --hold";
        let mut program = shell(&vms.b, line)?;
        let record = json(&mut program)?;
        let number = |member: &str| record.get(member).and_then(Value::as_u64);
        ensure!(
            ["frames", "replies_ok"].map(number) == [Some(3); 2]
                && number("different_frames") > Some(1),
            "{record}"
        );
        // The last frame stays on the screen until a line.
        program.write("\n")?;
        ends_well(program, line)
    });
}

#[test]
fn selftest_takes_the_camera_the_screen_and_the_size_that_it_is_given() {
    VMS.with(|vms| {
        vms.b.load("vivid", HEAP_CAMERA)?;
        vms.b.load("bochs", "")?;
        let line = "bufshare selftest --frames 2 --size 320x180 --format XRGB8888 --buffers 3 \
                    --device /dev/video0 --card /dev/dri/card0";
        let printed = output(&vms.b, line)?;
        ensure!(
            printed.starts_with("2 frames of 320x180 XR24") && printed.contains("2 replies right"),
            "{printed}"
        );
        for (option, value) in [("--device", "/dev/video9"), ("--card", "/dev/dri/card9")] {
            let line = format!("bufshare selftest --frames 2 {option} {value}");
            let refused = ran(&vms.b, &line)?;
            ensure!(
                refused.status == Status::Exit(1) && refused.stderr.contains(value),
                "{refused:?}"
            );
        }
        Ok(())
    });
}

/// The camera waits for a viewer, the viewer for the camera.
#[test]
fn capture_and_view_wait_for_each_other_until_their_timeout() {
    VMS.with(|vms| {
        vms.a.load("vivid", "allocators=1")?;
        // In which the camera has to give its frames.
        let long = wait::scaled(Duration::from_millis(2500)).as_secs_f64();
        let capture = format!("bufshare --json capture --to display:rw --timeout {long}");
        for (vm, line, said) in [
            (
                &vms.a,
                capture.as_str(),
                format!("nobody viewed the stream \"camera\" within {long} s"),
            ),
            (
                &vms.b,
                "bufshare --json view --from camera --no-display --timeout 0.5",
                "within 0.5 s".to_owned(),
            ),
        ] {
            let ran = ran(vm, line)?;
            let error: Value = serde_json::from_str(ran.stderr.trim_end())
                .with_context(|| format!("{line}: {ran:?}"))?;
            ensure!(
                ran.status == Status::Exit(1)
                    && text(&error, "error")?.contains(&said)
                    && error.get("errno") == Some(&libc::ETIMEDOUT.into())
                    && ran.stdout.contains(r#""ended":"failed""#),
                "{line}: {ran:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn an_example_is_found_with_its_continuation_and_without_its_comment() {
    let help = "Usage\n\nCommands:\n  info   x\n  view   y\n\nEXAMPLES\n  Text:\n      bufshare a b   # c\n  bufshare --json d \\\n      --e\n";
    assert_eq!(commands(help), ["info", "view"]);
    let found = examples(help);
    assert_eq!(found, ["bufshare a b", "bufshare --json d --e"]);
    assert_eq!(verb(&found[1]).unwrap(), "d");
    assert_eq!(examples("no section"), [""; 0]);
}
