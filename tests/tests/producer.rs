// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The library's producer and consumer between two VMs

use anyhow::{Context as _, Result, ensure};
use bufshare_agent::wire::Status;
use bufshare_tests::channel::Program;
use bufshare_tests::pair::{Plan, Shared, TwoVms};
use bufshare_tests::wait;

static VMS: Shared = Shared::new(Plan::new);
/// Events that the driver keeps for a file that nobody reads: BUFSHARE_FILE_EVENTS.
const KEPT_EVENTS: u64 = 256;

/// Its next lines are these. A word that ends with a blank is the start of one.
fn says(program: &mut Program, lines: &[&str]) -> Result<()> {
    for wanted in lines {
        let line = program.line(wait::COMMAND)?;
        let matches = match wanted.strip_suffix(' ') {
            Some(start) => line.starts_with(start),
            None => line == *wanted,
        };
        ensure!(matches, "{line}, not {wanted}");
    }
    Ok(())
}

fn does(program: &mut Program, command: &str, lines: &[&str]) -> Result<()> {
    program.write(&format!("{command}\n"))?;
    says(program, lines).with_context(|| command.to_owned())
}

fn ends(mut program: Program) -> Result<()> {
    program.end_input()?;
    let status = program.end(wait::COMMAND, |_, _| {})?;
    ensure!(status == Status::Exit(0), "it ended by {status:?}");
    Ok(())
}

fn produce(vms: &TwoVms, slots: &str, max_held: &str) -> Result<Program> {
    let mut program = vms
        .a
        .spawn(&["/init", "produce", "camera", slots, max_held])?;
    says(&mut program, &["stream "])?;
    Ok(program)
}

fn consume(vms: &TwoVms) -> Result<Program> {
    vms.b.spawn(&["/init", "consume", "a", "camera"])
}

/// A producer, and a consumer that has all of its buffers.
fn both(vms: &TwoVms) -> Result<(Program, Program)> {
    let producer = produce(vms, "3", "0")?;
    let mut consumer = consume(vms)?;
    does(&mut consumer, "settle", &["joined ", "settled"])?;
    Ok((producer, consumer))
}

#[test]
fn a_hundred_frames_in_two_buffers_each_come_in_order_and_go_back() {
    VMS.with(|vms| {
        let (mut producer, mut consumer) = both(vms)?;
        producer.write("push 100\n")?;
        consumer.write("take 100\n")?;
        let all = (0..100).collect::<Vec<_>>();
        says(&mut consumer, &[&format!("took {all:?}")])?;
        says(&mut producer, &["pushed 0 99"])?;
        does(&mut producer, "idle", &["idle"])?;
        does(&mut producer, "end", &[])?;
        does(&mut consumer, "until record", &["record true"])?;
        ends(producer)?;
        does(&mut consumer, "until over", &["over "])?;
        ends(consumer)
    });
}

#[test]
fn a_consumer_that_dies_has_returned_what_it_had() {
    VMS.with(|vms| {
        let (mut producer, mut consumer) = both(vms)?;
        producer.write("push 1\n")?;
        does(&mut consumer, "hold", &["holds 0"])?;
        says(&mut producer, &["pushed 0 0"])?;
        consumer.kill()?;
        producer.write("until left\nidle\n")?;
        says(&mut producer, &["left ", "idle"])?;
        ends(producer)
    });
}

/// It asked for that.
#[test]
fn a_producer_that_dies_takes_its_frames_and_the_next_is_joined() {
    VMS.with(|vms| {
        let (mut producer, mut consumer) = both(vms)?;
        producer.write("push 1\n")?;
        does(&mut consumer, "hold", &["holds 0"])?;
        producer.kill()?;
        // In which order is the kernel's to say, which closes the files.
        consumer.write("until over\nsettle\n")?;
        let (mut over, mut held) = (0, 0);
        loop {
            match consumer.line(wait::COMMAND)?.as_str() {
                "settled" => break,
                "revoked true" => held += 1,
                "revoked false" => {}
                line if line.starts_with("over ") => over += 1,
                line => anyhow::bail!("{line}"),
            }
        }
        ensure!(over == 1, "over {over} times");
        if held == 0 {
            does(&mut consumer, "until revoked", &["revoked true"])?;
        }
        does(&mut consumer, "release", &["was revoked"])?;

        let mut producer = produce(vms, "2", "0")?;
        consumer.write("until joined\nsettle\n")?;
        while !consumer.line(wait::COMMAND)?.starts_with("joined ") {}
        says(&mut consumer, &["settled"])?;
        producer.write("push 3\n")?;
        does(&mut consumer, "take 3", &["took [0, 1, 2]"])?;
        says(&mut producer, &["pushed 0 2"])?;
        ends(producer)?;
        ends(consumer)
    });
}

#[test]
fn who_joins_late_is_given_what_comes_then() {
    VMS.with(|vms| {
        let mut producer = produce(vms, "2", "0")?;
        // Nobody is there: each is back at once.
        does(&mut producer, "push 5", &["pushed 0 4"])?;
        let mut consumer = consume(vms)?;
        does(&mut consumer, "settle", &["joined ", "settled"])?;
        producer.write("push 2\n")?;
        does(&mut consumer, "take 2", &["took [5, 6]"])?;
        says(&mut producer, &["pushed 5 6"])?;
        ends(producer)?;
        ends(consumer)
    });
}

#[test]
fn a_consumer_may_wait_before_there_is_a_producer() {
    VMS.with(|vms| {
        let mut consumer = consume(vms)?;
        does(&mut consumer, "settle", &["settled"])?;
        let producer = produce(vms, "1", "0")?;
        does(&mut consumer, "until joined", &["joined "])?;
        ends(producer)?;
        ends(consumer)
    });
}

#[test]
fn who_keeps_a_frame_is_given_no_more_than_the_producer_allows_and_holds_nobody_up() {
    VMS.with(|vms| {
        let mut producer = produce(vms, "2", "1")?;
        let mut consumer = consume(vms)?;
        does(&mut consumer, "settle", &["joined ", "settled"])?;
        producer.write("push 1\n")?;
        does(&mut consumer, "hold", &["holds 0"])?;
        says(&mut producer, &["pushed 0 0"])?;
        does(&mut producer, "push 4", &["pushed 1 4"])?;
        does(&mut consumer, "release", &["released"])?;
        does(&mut producer, "idle", &["idle"])?;
        producer.write("push 1\n")?;
        does(&mut consumer, "take 1", &["took [5]"])?;
        says(&mut producer, &["pushed 5 5"])?;
        ends(producer)?;
        ends(consumer)
    });
}

/// The host does not know the buffers of a stream's record.
#[test]
fn the_frames_of_a_producer_that_lies_of_its_planes_are_returned_and_not_seen() {
    VMS.with(|vms| {
        let mut liar = vms.a.spawn(&["/init", "lie", "camera"])?;
        says(&mut liar, &["stream "])?;
        let mut consumer = consume(vms)?;
        does(&mut consumer, "settle", &["joined ", "settled"])?;
        for _ in 0..3 {
            liar.write("push\n")?;
            does(&mut consumer, "until rejected", &["rejected Image"])?;
            says(&mut liar, &["returned"])?;
        }
        ends(liar)?;
        ends(consumer)
    });
}

/// Lines up to one that is this.
fn lines_until(program: &mut Program, last: &str) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let line = program.line(wait::COMMAND)?;
        if line == last {
            return Ok(lines);
        }
        lines.push(line);
    }
}

fn starting(lines: &[String], start: &str) -> usize {
    lines.iter().filter(|line| line.starts_with(start)).count()
}

/// There is no REVOKED then, only an OVERFLOW of an unknown number of events.
#[test]
fn a_consumer_whose_vm_was_suspended_says_so_and_consumes_the_buffers_anew() {
    VMS.with(|vms| {
        let (mut producer, mut consumer) = both(vms)?;
        producer.write("push 1\n")?;
        does(&mut consumer, "hold", &["holds 0"])?;
        says(&mut producer, &["pushed 0 0"])?;
        vms.b.suspend()?;
        consumer.write("until revoked\nsettle\n")?;
        let lines = lines_until(&mut consumer, "settled")?;
        ensure!(starting(&lines, "overflow") == 1, "{lines:?}");
        // Three slots of two buffers; one had the frame.
        ensure!(starting(&lines, "revoked ") == 6, "{lines:?}");
        ensure!(starting(&lines, "revoked true") == 1, "{lines:?}");
        does(&mut consumer, "release", &["was revoked"])?;
        does(&mut producer, "idle", &["left ", "idle"])?;
        producer.write("push 6\n")?;
        does(&mut consumer, "take 6", &["took [1, 2, 3, 4, 5, 6]"])?;
        says(&mut producer, &["pushed 1 6"])?;
        ends(producer)?;
        ends(consumer)
    });
}

#[test]
fn a_producer_whose_vm_was_suspended_loses_its_stream_and_the_next_is_joined() {
    VMS.with(|vms| {
        let (mut producer, mut consumer) = both(vms)?;
        vms.a.suspend()?;
        producer.write("until ended\nidle\n")?;
        let lines = lines_until(&mut producer, "ended")?;
        ensure!(starting(&lines, "lost ") <= 3, "{lines:?}");
        consumer.write("until over\n")?;
        while !consumer.line(wait::COMMAND)?.starts_with("over ") {}
        producer.kill()?;
        let mut producer = produce(vms, "2", "0")?;
        consumer.write("until joined\nsettle\n")?;
        lines_until(&mut consumer, "settled")?;
        producer.write("push 3\n")?;
        does(&mut consumer, "take 3", &["took [0, 1, 2]"])?;
        says(&mut producer, &["pushed 0 2"])?;
        ends(producer)?;
        ends(consumer)
    });
}

/// Its events were lost meanwhile, and frames were not.
#[test]
fn a_consumer_that_stood_still_finds_the_next_producer() {
    VMS.with(|vms| {
        let (mut producer, mut consumer) = both(vms)?;
        consumer.signal(libc::SIGSTOP)?;
        let (mut other, mut witness) = (vms.a.client()?, vms.b.client()?);
        witness.info()?;
        // One by one, or the host makes one event of several.
        let (_, _, export) = other.offer(4096, 1)?;
        for seq in 2..=KEPT_EVENTS + 32 {
            other.set_meta(&export, "renamed", b"")?;
            witness.wait_event("of the metadata", |event| {
                event.kind == "Meta" && event.value == seq
            })?;
        }
        does(&mut producer, "push 1", &["pushed 0 0"])?;
        producer.kill()?;
        let mut producer = produce(vms, "2", "0")?;
        consumer.signal(libc::SIGCONT)?;
        consumer.write("until joined\nsettle\n")?;
        let lines = lines_until(&mut consumer, "settled")?;
        ensure!(starting(&lines, "overflow") == 1, "{lines:?}");
        ensure!(starting(&lines, "over ") == 1, "{lines:?}");
        ensure!(starting(&lines, "revoked ") == 6, "{lines:?}");
        producer.write("push 3\n")?;
        does(&mut consumer, "take 3", &["took [0, 1, 2]"])?;
        says(&mut producer, &["pushed 0 2"])?;
        ends(producer)?;
        ends(consumer)
    });
}

#[test]
fn a_peer_that_there_is_not_is_named_as_what_is_wrong() {
    VMS.with(|vms| {
        let ran = vms
            .b
            .run(&["/init", "consume", "nobody", "camera"], wait::COMMAND)?;
        let wanted = "cannot find the peer: No such file or directory (os error 2): the host's \
                      operator allows this VM to share with no peer of that name";
        ensure!(ran.stderr.contains(wanted), "{}", ran.stderr);
        Ok(())
    });
}
