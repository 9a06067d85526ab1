// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bufshare watch`

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bufshare::{BufferInfo, Change, Event, EventKind};

use crate::args::Watch;
use crate::failure::Result;
use crate::output::{Buffer, EventRecord, Record};
use crate::session::Session;
use crate::stop::{Input, Stop};

/// Prints the buffers there are, then the events.
pub(crate) fn run(session: &Session, args: &Watch) -> Result<()> {
    let mut stop = Stop::new(args.until.input(Input::End))?;
    let mut offers = session.open()?.offers();
    let all = offers.device().list()?;
    for buffer in all.iter().filter(|buffer| buffer.owned) {
        session
            .output
            .print(&Record::Buffer(Buffer::from(buffer)))?;
    }
    let deadline = args
        .timeout
        .and_then(|timeout| Instant::now().checked_add(timeout));
    let mut left = args.count;
    let time = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    while !stop.requested() && left != Some(0) {
        match offers.next_change(Some(Duration::ZERO))? {
            Some(change) => {
                if let Some(record) = record(&change) {
                    left = left.map(|left| left.saturating_sub(u64::from(is_event(&record))));
                    session.output.print(&record)?;
                }
                // Changes without end do not keep it from ending.
                stop.wait_for_it(Some(Duration::ZERO))?;
                if time().is_some_and(|time| time.is_zero()) {
                    break;
                }
            }
            None => {
                let [ready] = stop.wait([offers.as_fd()], time())?;
                if !ready {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// How a change is printed.
fn record(change: &Change) -> Option<Record> {
    Some(match change {
        Change::Offered {
            event: Some(event), ..
        }
        | Change::Metadata {
            event: Some(event), ..
        }
        | Change::Revoked {
            event: Some(event), ..
        }
        | Change::Other(event) => Record::Event(EventRecord::from(event)),
        Change::Offered { buffer, .. } => Record::Buffer(Buffer::from(buffer)),
        Change::Metadata { buffer, .. } => lost(EventKind::Meta, buffer, buffer.meta_seq),
        Change::Revoked { buffer, .. } => lost(EventKind::Revoked, buffer, 0),
        _ => return None,
    })
}

/// The record of an event that was lost.
fn lost(kind: EventKind, buffer: &BufferInfo, value: u64) -> Record {
    let mut event = Event::new(kind);
    (event.peer, event.id, event.value) = (buffer.owner, buffer.id, value);
    Record::Event(EventRecord::from(&event))
}

fn is_event(record: &Record) -> bool {
    matches!(record, Record::Event(_))
}
