// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pushes 25 frames a second as the stream "frames", until the end of the input

#![allow(
    clippy::arithmetic_side_effects,
    reason = "no time or number is so large"
)]

use std::time::{Duration, Instant};

use bufshare::{Device, FrameRecord, Image, Name, Plane};
use bufshare::{Producer, ProducerEvent, ProducerOptions, Rights, Slot};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const PERIOD: Duration = Duration::from_millis(40);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let xrgb = u32::from_le_bytes(*b"XR24");
    let image = Image::new(xrgb, 320, 240).plane(Plane::new(0, 1280, 240));
    let options = ProducerOptions::new(Name::new("frames")?).image(image);
    // A consumer that keeps more frames than it should leaves a slot for the others.
    let options = options.slots(4).max_held(3);
    let mut producer = Producer::new(Device::open()?, &options)?;
    let mut record = FrameRecord::new();
    let mut due = Instant::now();
    loop {
        // If all slots are with consumers, they miss this frame, and see that by its number.
        if let Some(slot) = producer.acquire() {
            draw(&slot, record.sequence)?;
            producer.push(slot, record.clone())?;
        }
        record.sequence += 1;
        due += PERIOD;
        if !wait(&mut producer, due)? {
            break;
        }
    }
    producer.end()?;
    // The last frames are seen before the buffers go, unless somebody keeps them.
    let limit = Instant::now() + Duration::from_secs(2);
    while producer.out() > 0 && Instant::now() < limit {
        producer.next_event(Some(PERIOD))?;
    }
    Ok(())
}

fn draw(slot: &Slot, sequence: u64) -> bufshare::Result<()> {
    let mapping = slot.mapping(0)?;
    let access = mapping.begin(Rights::WRITE)?;
    access.fill(0, 1280 * 240, sequence.to_le_bytes()[0])?;
    access.finish()
}

/// Takes events until the next frame is due; whether there is to be one.
fn wait(producer: &mut Producer, due: Instant) -> Result<bool, Box<dyn std::error::Error>> {
    loop {
        while let Some(event) = producer.next_event(Some(Duration::ZERO))? {
            match event {
                ProducerEvent::Left { peer, .. } => println!("peer {peer} left"),
                ProducerEvent::Ended => return Err("this VM was suspended".into()),
                _ => {}
            }
        }
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(true);
        }
        let input = std::io::stdin();
        let fds = &mut [
            PollFd::new(&*producer, PollFlags::IN),
            PollFd::new(&input, PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| {
            poll(fds, Some(&Timespec::try_from(left).unwrap_or_default()))
        })?;
        if !fds[1].revents().is_empty() {
            return Ok(false);
        }
    }
}
