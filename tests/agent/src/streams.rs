// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/init produce STREAM SLOTS MAX_HELD`, `/init lie STREAM` and `/init consume PEER STREAM`:
//! the library's producer and consumer, which do what the lines of their input say
//!
//! A frame is in two buffers, each of which has its number at its start and its end. What happens
//! is a line of the output.

use std::io::{self, BufRead as _};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bufshare::{
    Consumer, ConsumerEvent, ConsumerOptions, Device, EventKind, ExportOptions, Frame, FrameRecord,
    Image, Mapping, Meta, Name, Plane, Producer, ProducerEvent, ProducerOptions, Push, Rights,
};

const ROW: u32 = 256;
const ROWS: u32 = 64;
const NOW: Option<Duration> = Some(Duration::ZERO);

/// The lines of the input, each in words.
fn commands() -> impl Iterator<Item = Result<Vec<String>>> {
    let lines = io::stdin().lock().lines();
    lines.map(|line| Ok(line?.split_whitespace().map(str::to_owned).collect()))
}

fn image(rows: u32) -> Image {
    Image::new(u32::from_le_bytes(*b"NV12"), ROW, ROWS)
        .plane(Plane::new(0, ROW, rows))
        .plane(Plane::new(0, ROW, ROWS / 2).buffer(1))
}

/// Offsets of the number of a frame in a buffer of so many bytes.
fn marks(length: usize) -> [usize; 2] {
    [0, length.saturating_sub(size_of::<u64>())]
}

/// What the producer does: `push COUNT`, `until WORD` (an event), `end`, `idle` (all frames are
/// back).
pub(crate) fn produce(words: &[String]) -> Result<()> {
    let [name, slots, max_held] = words else {
        bail!("produce STREAM SLOTS MAX_HELD")
    };
    let options = ProducerOptions::new(Name::new(name)?)
        .image(image(ROWS))
        .slots(slots.parse()?)
        .max_held(max_held.parse()?);
    let mut producer = Producer::new(Device::open()?, &options)?;
    println!("stream {}", producer.id());
    let mut record = FrameRecord::new();
    for words in commands() {
        let words = words?;
        match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["push", count] => {
                let first = record.sequence;
                for _ in 0..count.parse()? {
                    push(&mut producer, &record)?;
                    record.sequence += 1;
                }
                println!("pushed {first} {}", record.sequence - 1);
            }
            ["until", word] => while next(&mut producer)? != word {},
            ["end"] => producer.end()?,
            ["idle"] => {
                while producer.out() > 0 {
                    next(&mut producer)?;
                }
                println!("idle");
            }
            _ => bail!("produce: {words:?}"),
        }
    }
    Ok(())
}

fn push(producer: &mut Producer, record: &FrameRecord) -> Result<()> {
    let slot = loop {
        match producer.acquire() {
            Some(slot) => break slot,
            None => drop(next(producer)?),
        }
    };
    for index in 0..slot.buffers().len() {
        let mapping = slot.mapping(index)?;
        let access = mapping.begin(Rights::WRITE)?;
        for mark in marks(mapping.len()) {
            access.write_at(mark, &record.sequence.to_le_bytes())?;
        }
        access.finish()?;
    }
    producer.push(slot, record.clone())?;
    Ok(())
}

/// The first word of what happened next.
fn next(producer: &mut Producer) -> Result<&'static str> {
    let event = producer.next_event(None)?.context("no event")?;
    Ok(match event {
        ProducerEvent::Returned { .. } => "returned",
        ProducerEvent::Left { peer, .. } => {
            println!("left {peer}");
            "left"
        }
        ProducerEvent::Lost { slot, .. } => {
            println!("lost {slot}");
            "lost"
        }
        ProducerEvent::Ended => {
            println!("ended");
            "ended"
        }
        _ => "other",
    })
}

/// A stream whose record says more rows than its buffers have, which no host looks at. Pushes a
/// frame for each line of the input, and says when it is back.
pub(crate) fn lie(words: &[String]) -> Result<()> {
    let [name] = words else { bail!("lie STREAM") };
    let device = Device::open()?;
    let meta = Meta::new().name(Name::new(name)?).image(image(1 << 20));
    let stream = device.create_stream(&ExportOptions::new().meta(meta))?;
    let buffers = [(); 2].map(|()| device.alloc(u64::from(ROW * ROWS)));
    let mut exports = Vec::new();
    for buffer in buffers {
        exports.push(device.export_part(&stream, buffer?, &ExportOptions::new())?);
    }
    println!("stream {}", stream.id());
    for _ in commands() {
        let first = exports.first().context("no export")?;
        let mut frame = Push::new(first);
        frame.buffers = exports.iter().collect();
        let number = device.push(&[frame])?;
        loop {
            let event = device.next_event(None)?.context("no event")?;
            if event.kind == EventKind::Returned && event.value == number {
                break;
            }
        }
        println!("returned");
    }
    Ok(())
}

/// What the consumer does: `until WORD` (an event, other frames are given back), `settle` (take
/// what there is), `take COUNT` frames, `hold` one, `release` it.
pub(crate) fn consume(words: &[String]) -> Result<()> {
    let [peer, name] = words else {
        bail!("consume PEER STREAM")
    };
    let options = ConsumerOptions::new().rejoin(true);
    let mut consumer = Consumer::named(Device::open()?, peer, Name::new(name)?, &options)?;
    let mut held = None;
    for words in commands() {
        let words = words?;
        match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["until", word] => loop {
                let event = consumer.next_event(None)?.context("no event")?;
                if say(&event) == word {
                    break;
                }
            },
            ["settle"] => {
                while let Some(event) = consumer.next_event(NOW)? {
                    say(&event);
                }
                println!("settled");
            }
            ["take", count] => {
                let mut taken = Vec::new();
                for _ in 0..count.parse()? {
                    let frame = frame(&mut consumer)?;
                    check(&frame)?;
                    taken.push(frame.record().sequence);
                    frame.give_back()?;
                }
                println!("took {taken:?}");
            }
            ["hold"] => {
                let frame = frame(&mut consumer)?;
                check(&frame)?;
                println!("holds {}", frame.record().sequence);
                held = Some(frame);
            }
            ["release"] => match held.take().context("no frame is held")? {
                frame if frame.is_revoked() => match frame.give_back() {
                    Err(error) if error.is_revoked() => println!("was revoked"),
                    other => bail!("a revoked frame was given back: {other:?}"),
                },
                frame => {
                    check(&frame)?;
                    frame.give_back()?;
                    println!("released");
                }
            },
            _ => bail!("consume: {words:?}"),
        }
    }
    Ok(())
}

fn frame(consumer: &mut Consumer) -> Result<Frame> {
    loop {
        match consumer.next_event(None)?.context("no event")? {
            ConsumerEvent::Frame(frame) => return Ok(frame),
            other => say(&other),
        };
    }
}

/// That both of its buffers have its number, and its image is the one that was meant.
fn check(frame: &Frame) -> Result<()> {
    ensure!(frame.image() == Some(&image(ROWS)), "{:?}", frame.image());
    ensure!(frame.imports().len() == 2, "{frame:?}");
    for index in 0..frame.imports().len() {
        let mapping = frame.mapping(index)?;
        let wanted = frame.record().sequence;
        for mark in marks(mapping.len()) {
            let found = number(mapping, mark)?;
            ensure!(
                found == wanted,
                "{found} at {mark}, not {wanted}: {frame:?}"
            );
        }
    }
    Ok(())
}

fn number(mapping: &Mapping, offset: usize) -> Result<u64> {
    let access = mapping.begin(Rights::READ)?;
    let mut bytes = [0; 8];
    access.read_at_checked(offset, &mut bytes)?;
    access.finish()?;
    Ok(u64::from_le_bytes(bytes))
}

/// Prints what happened, and returns its first word.
fn say(event: &ConsumerEvent) -> &'static str {
    match event {
        ConsumerEvent::Joined { stream, .. } => {
            println!("joined {}", stream.id);
            "joined"
        }
        ConsumerEvent::Record { record, .. } => {
            println!("record {}", record.ended);
            "record"
        }
        ConsumerEvent::Frame(_) => "frame",
        ConsumerEvent::Rejected { why, .. } => {
            println!("rejected {why:?}");
            "rejected"
        }
        ConsumerEvent::Revoked { frame, .. } => {
            println!("revoked {}", frame.is_some());
            "revoked"
        }
        ConsumerEvent::Refused { error, .. } => {
            println!("refused {error}");
            "refused"
        }
        ConsumerEvent::Over { stream, .. } => {
            println!("over {stream}");
            "over"
        }
        ConsumerEvent::Other(event) if event.kind == EventKind::Overflow => {
            println!("overflow");
            "overflow"
        }
        _ => "other",
    }
}
