// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The producer and the consumer of guest-driver/examples between two VMs, in each language with
//! each; and as who may open the device

use anyhow::{Context as _, Result, ensure};
use bufshare_agent::wire::Status;
use bufshare_tests::channel::Program;
use bufshare_tests::pair::{Plan, Shared, TwoVms};
use bufshare_tests::{lab, wait};

static VMS: Shared = Shared::new(Plan::new);

/// The README's languages, by what is before their names in the guest.
const RUST: &str = "/examples/";
const C: &str = "/examples/c-";

const FRAMES: u64 = 20;

fn ends(mut program: Program) -> Result<()> {
    program.end_input()?;
    let status = program.end(wait::COMMAND, |_, _| {})?;
    ensure!(status == Status::Exit(0), "it ended by {status:?}");
    Ok(())
}

/// The number of a frame, whose bytes are as it says.
fn frame(line: &str) -> Result<u64> {
    let parts = line
        .strip_prefix("frame ")
        .and_then(|it| it.split_once(": "));
    let (number, bytes) = parts.with_context(|| format!("no frame: {line}"))?;
    let number: u64 = number.parse().with_context(|| line.to_owned())?;
    let byte = number & 0xff;
    let wanted = format!("[{byte:02x}, {byte:02x}, {byte:02x}, {byte:02x}]");
    ensure!(bytes == wanted, "{line}, not {wanted}");
    Ok(number)
}

/// Frames come in order; those that there was no slot for are left out.
fn frames(consumer: &mut Program) -> Result<()> {
    let mut last = None;
    for _ in 0..FRAMES {
        let number = frame(&consumer.line(wait::COMMAND)?)?;
        ensure!(last < Some(number), "{number} after {last:?}");
        last = Some(number);
    }
    Ok(())
}

/// Lines until one that is this. That a stream has ended is not heard by whom its end overtakes.
fn until(consumer: &mut Program, wanted: &str) -> Result<()> {
    loop {
        let line = consumer.line(wait::COMMAND)?;
        if line == wanted {
            return Ok(());
        }
        if line != "ended" {
            frame(&line)?;
        }
    }
}

/// One producer ends, and another comes, which the consumer leaves.
fn works(vms: &TwoVms, producer: &[&str], consumer: &[&str]) -> Result<()> {
    let mut consumer = vms.b.spawn(consumer)?;
    let first = vms.a.spawn(producer)?;
    until(&mut consumer, "joined")?;
    frames(&mut consumer)?;
    ends(first)?;
    until(&mut consumer, "over")?;
    let mut second = vms.a.spawn(producer)?;
    until(&mut consumer, "joined")?;
    frames(&mut consumer)?;
    ends(consumer)?;
    let left = second.line(wait::COMMAND)?;
    ensure!(
        left.starts_with("peer ") && left.ends_with(" left"),
        "{left}"
    );
    ends(second)
}

#[test]
fn a_producer_and_a_consumer_in_rust_work() {
    VMS.with(|vms| {
        let (producer, consumer) = (format!("{RUST}producer"), format!("{RUST}consumer"));
        works(vms, &[&producer], &[&consumer, "a"])
    });
}

#[test]
fn a_producer_and_a_consumer_in_c_work() {
    VMS.with(|vms| {
        let (producer, consumer) = (format!("{C}producer"), format!("{C}consumer"));
        works(vms, &[&producer], &[&consumer, "a"])
    });
}

#[test]
fn a_producer_in_c_and_a_consumer_in_rust_work() {
    VMS.with(|vms| {
        let (producer, consumer) = (format!("{C}producer"), format!("{RUST}consumer"));
        works(vms, &[&producer], &[&consumer, "a"])
    });
}

#[test]
fn a_producer_in_rust_and_a_consumer_in_c_work() {
    VMS.with(|vms| {
        let (producer, consumer) = (format!("{RUST}producer"), format!("{C}consumer"));
        works(vms, &[&producer], &[&consumer, "a"])
    });
}

#[test]
fn bad_input_of_a_program_in_c_is_named_and_what_to_do() {
    VMS.with(|vms| {
        let program = format!("{C}consumer");
        let ran = vms.b.run(&[&program, "nobody"], wait::COMMAND)?;
        ensure!(ran.status == Status::Exit(1), "{ran:?}");
        let wanted = "ask for one that `bufshare peers` prints";
        ensure!(ran.stderr.contains(wanted), "{ran:?}");

        // A stream of that name is there.
        let first = vms.a.spawn(&[&format!("{C}producer")])?;
        let mut consumer = vms.b.spawn(&[&program, "a"])?;
        until(&mut consumer, "joined")?;
        let ran = vms.a.run(&[&format!("{C}producer")], wait::COMMAND)?;
        ensure!(ran.status == Status::Exit(1), "{ran:?}");
        let wanted = "give another name, or end the program that has that one";
        ensure!(ran.stderr.contains(wanted), "{ran:?}");
        consumer.kill()?;
        ends(first)
    });
}

/// A number of the rule's group, which the guest has no names of.
const GROUP: &str = "4711";
const USER: &str = "1000";

/// What the udev rule says of the device: its group and its mode.
fn rule() -> Result<(String, String)> {
    let path = lab::repo().join("guest-driver/70-bufshare.rules");
    let text = std::fs::read_to_string(path)?;
    let value = |key: &str| {
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        let value = lines.find_map(|line| line.split_once(&format!("{key}=\"")));
        let value = value.and_then(|(_, rest)| rest.split_once('"'));
        let (value, _) = value.with_context(|| format!("the rule has no {key}"))?;
        anyhow::Ok(value.to_owned())
    };
    Ok((value("GROUP")?, value("MODE")?))
}

#[test]
fn an_ordinary_user_of_the_rules_group_shares_and_another_is_told_why_not() {
    VMS.with(|vms| {
        let (group, mode) = rule()?;
        ensure!(group == "bufshare", "{group}");
        // As udev does it.
        for vm in [&vms.a, &vms.b] {
            vm.output(&[
                "/bin/busybox",
                "chown",
                &format!("0:{GROUP}"),
                "/dev/bufshare",
            ])?;
            vm.output(&["/bin/busybox", "chmod", &mode, "/dev/bufshare"])?;
        }
        let program = |name: &str| format!("{C}{name}");
        let of_group = ["/init", "as", USER, GROUP];
        let (producer, consumer) = (program("producer"), program("consumer"));
        works(
            vms,
            &[&of_group[..], &[&producer]].concat(),
            &[&of_group[..], &[&consumer, "a"]].concat(),
        )?;
        for (words, wanted) in [
            (vec![producer.as_str()], "as a member of the group bufshare"),
            (vec!["/bin/bufshare", "info"], "the group bufshare"),
        ] {
            let words = [&["/init", "as", USER, USER][..], &words].concat();
            let ran = vms.a.run(&words, wait::COMMAND)?;
            ensure!(ran.status == Status::Exit(1), "{ran:?}");
            ensure!(
                ran.stderr.contains("Permission denied") && ran.stderr.contains(wanted),
                "{ran:?}"
            );
        }
        // As it was, for the other tests.
        for vm in [&vms.a, &vms.b] {
            vm.output(&["/bin/busybox", "chown", "0:0", "/dev/bufshare"])?;
            vm.output(&["/bin/busybox", "chmod", "600", "/dev/bufshare"])?;
        }
        Ok(())
    });
}

/// By the tests above.
#[test]
fn every_example_is_run() -> Result<()> {
    let folder = lab::repo().join("guest-driver/examples");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        let name = entry?.file_name();
        found.push(name.to_string_lossy().into_owned());
    }
    found.sort();
    let wanted = ["consumer.c", "consumer.rs", "producer.c", "producer.rs"];
    ensure!(found == wanted, "{found:?}");
    Ok(())
}

#[test]
fn the_readme_shows_the_example_in_c_as_it_is() -> Result<()> {
    let read = |path: &str| std::fs::read_to_string(lab::repo().join(path));
    let (_, example) = include_str!("../../guest-driver/examples/consumer.c")
        .split_once("*/\n")
        .context("no licence line")?;
    let shown = format!("```c\n{example}```\n");
    ensure!(
        read("README.md")?.contains(&shown),
        "README.md does not show guest-driver/examples/consumer.c as it is"
    );
    Ok(())
}
