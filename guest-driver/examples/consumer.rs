// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Prints the number and the first bytes of each frame of a peer's stream "frames", until the
//! end of the input; the peer may come and go

use std::time::Duration;

use bufshare::{Consumer, ConsumerEvent, ConsumerOptions, Device, Frame, Name, Rights};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const SECOND: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let peer = std::env::args().nth(1).ok_or("usage: consumer PEER")?;
    let options = ConsumerOptions::new().rejoin(true);
    let stream = Name::new("frames")?;
    let mut consumer = Consumer::named(Device::open()?, &peer, stream, &options)?;
    loop {
        // Before the first poll: what is there already makes no descriptor readable.
        while let Some(event) = consumer.next_event(Some(Duration::ZERO))? {
            take(event)?;
        }
        let input = std::io::stdin();
        let fds = &mut [
            PollFd::new(&consumer, PollFlags::IN),
            PollFd::new(&input, PollFlags::IN),
        ];
        // No descriptor says when what was refused is to be tried again.
        rustix::io::retry_on_intr(|| poll(fds, Some(&SECOND)))?;
        if !fds[1].revents().is_empty() {
            return Ok(());
        }
    }
}

fn take(event: ConsumerEvent) -> bufshare::Result<()> {
    match event {
        ConsumerEvent::Joined { .. } => println!("joined"),
        ConsumerEvent::Record { record, .. } if record.ended => println!("ended"),
        ConsumerEvent::Over { .. } => println!("over"),
        ConsumerEvent::Frame(frame) => match show(frame) {
            // Its producer may end at any time.
            Err(error) if error.is_revoked() => {}
            shown => shown?,
        },
        ConsumerEvent::Rejected { why, .. } => println!("rejected: {why}"),
        // The stream, or a buffer of it: other frames may come, and it may be had later.
        ConsumerEvent::Refused { error, .. } => println!("refused: {error}"),
        _ => {}
    }
    Ok(())
}

fn show(frame: Frame) -> bufshare::Result<()> {
    let mut bytes = [0; 4];
    let access = frame.mapping(0)?.begin(Rights::READ)?;
    access.read_at_checked(0, &mut bytes)?;
    access.finish()?;
    println!("frame {}: {bytes:02x?}", frame.record().sequence);
    frame.give_back()
}
