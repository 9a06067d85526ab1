// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bufshare dump`

use std::fs::File;
use std::io::{self, StdoutLock, Write as _};
use std::path::Path;
use std::time::Instant;

use bufshare::Rights;

use crate::args::Dump;
use crate::content::{self, Hasher};
use crate::failure::{Failure, Result};
use crate::output::{self, Record, micros};
use crate::rights;
use crate::session::Session;

/// Reads a buffer once, hashes it and writes it where asked.
pub(crate) fn run(session: &Session, args: &Dump) -> Result<()> {
    let device = session.open()?;
    let asked = rights::to_import(session.output, &device, args.id.0, args.rights)?;
    let start = Instant::now();
    let import = device.import(args.id.0, asked)?;
    let mapping = import.buffer.map(Rights::READ)?;
    content::byte_at(&mapping, 0)?;
    let map_us = micros(start.elapsed());
    // Not before: what is in the file stays there when there is nothing to write.
    let mut out = args.out.as_deref().map(Out::open).transpose()?;
    let mut hash = Hasher::new(args.hash);
    let start = Instant::now();
    content::each_chunk(&mapping, mapping.len(), |bytes| {
        hash.update(bytes);
        match &mut out {
            Some(out) => out.write(bytes),
            None => Ok(()),
        }
    })?;
    let read_us = micros(start.elapsed());
    if let Some(Out::Stdout(mut out)) = out {
        return out.flush().map_err(|e| Failure::stdout(&e));
    }
    let (sha256, xxh3) = hash.finish();
    session.output.print(&Record::Dump(output::Dump {
        id: args.id.0.to_string(),
        size: mapping.len() as u64,
        way: import.way.name(),
        sha256,
        xxh3,
        out: args.out.as_ref().map(|path| path.display().to_string()),
        map_us,
        read_us,
    }))
}

/// Where the bytes go.
enum Out<'a> {
    Stdout(StdoutLock<'static>),
    File(&'a Path, File),
}

impl<'a> Out<'a> {
    /// A file is made empty.
    fn open(path: &'a Path) -> Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdout(io::stdout().lock()));
        }
        let file = File::create(path).map_err(|e| Failure::io(path.display(), &e))?;
        Ok(Self::File(path, file))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Stdout(out) => out.write_all(bytes).map_err(|e| Failure::stdout(&e)),
            Self::File(path, file) => file
                .write_all(bytes)
                .map_err(|e| Failure::io(format!("cannot write to {}", path.display()), &e)),
        }
    }
}
