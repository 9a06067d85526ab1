// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bufshare watch`

use std::time::Instant;

use crate::args::Watch;
use crate::failure::Result;
use crate::output::{Buffer, EventRecord, Record};
use crate::session::Session;
use crate::stop::{Input, Stop};

/// Prints the buffers there are, then the events.
pub(crate) fn run(session: &Session, args: &Watch) -> Result<()> {
    let mut stop = Stop::new(args.until.input(Input::End))?;
    // Events first, so that nothing between the two is missed.
    let events = session.events()?;
    for buffer in session.open()?.list()? {
        session
            .output
            .print(&Record::Buffer(Buffer::from(&buffer)))?;
    }
    let deadline = args
        .timeout
        .and_then(|timeout| Instant::now().checked_add(timeout));
    let mut left = args.count;
    while !stop.told() && left != Some(0) {
        let time = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let [ready] = stop.wait([events.as_fd()], time)?;
        if !ready {
            break;
        }
        if let Some((_, event)) = events.take()? {
            session
                .output
                .print(&Record::Event(EventRecord::from(&event)))?;
            left = left.map(|left| left.saturating_sub(1));
        }
    }
    Ok(())
}
