// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bufshare import`

use std::time::Instant;

use crate::args::Import;
use crate::content;
use crate::failure::Result;
use crate::output::{self, Imported, Record, micros};
use crate::rights;
use crate::session::{Held, Session};
use crate::stop::{Input, Stop};

/// Imports, maps if asked, and holds if asked.
pub(crate) fn run(session: &Session, args: &Import) -> Result<()> {
    let mut stop = Stop::new(args.until.input(Input::End))?;
    let device = session.open()?;
    let events = args.hold.then(|| session.events()).transpose()?;
    let asked = rights::to_import(session.output, &device, args.id.0, args.rights)?;
    let start = Instant::now();
    let import = device.import(args.id.0, asked)?;
    let import_us = micros(start.elapsed());
    let mapping = args
        .mmap
        .then(|| import.buffer.map(import.rights))
        .transpose()?;
    let first_byte = mapping
        .as_ref()
        .map(|mapping| content::byte_at(mapping, 0))
        .transpose()?;
    let map_us = first_byte.is_some().then(|| micros(start.elapsed()));
    session.output.print(&Record::Imported(Imported {
        id: args.id.0.to_string(),
        owner: import.owner,
        size: import.buffer.len() as u64,
        generation: import.generation,
        rights: output::rights(import.rights),
        way: import.way.name(),
        windows: import.windows,
        import_us,
        map_us,
        first_byte,
    }))?;
    match events {
        Some(events) => session.hold(&mut stop, &events, &device, &Held::Import(&import)),
        None => Ok(()),
    }
}
