// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Events with the time they came, whatever the main thread is doing then.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Instant;

use bufshare::{Device, Event};

use crate::failure::{Failure, Result};

/// A thread that reads events; it ends with the program.
pub(crate) struct Pump {
    events: Receiver<(Instant, Result<Event>)>,
    bell: io::PipeReader,
}

impl Pump {
    /// Starts it on a device opened for it alone: each open file has its own
    /// event queue.
    pub(crate) fn start(device: Device) -> Result<Self> {
        let (bell, ringer) = io::pipe().map_err(|e| Failure::io("cannot make a pipe", &e))?;
        let (sender, events) = channel();
        let work = move || {
            loop {
                let event = match device.next_event(None) {
                    Ok(Some(event)) => Ok(event),
                    Ok(None) => continue,
                    Err(error) => Err(Failure::from(error)),
                };
                let at = Instant::now();
                let failed = event.is_err();
                if sender.send((at, event)).is_err()
                    || rustix::io::write(&ringer, &[1]).is_err()
                    || failed
                {
                    break;
                }
            }
        };
        std::thread::Builder::new()
            .name("events".to_owned())
            .spawn(work)
            .map_err(|e| Failure::io("cannot start a thread", &e))?;
        Ok(Self { events, bell })
    }

    /// Readable when there is something to take.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The next event and when it came. Call it when the descriptor is readable.
    pub(crate) fn take(&self) -> Result<Option<(Instant, Event)>> {
        // One byte stands for one event.
        let mut byte = [0u8; 1];
        let _ = rustix::io::read(&self.bell, &mut byte);
        match self.events.try_recv() {
            Ok((at, event)) => event.map(|event| Some((at, event))),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => {
                Err(Failure::new("the device reports no events any more"))
            }
        }
    }
}
