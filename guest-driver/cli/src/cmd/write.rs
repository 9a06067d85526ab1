// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bufshare write`

use bufshare::Rights;

use crate::args::Write;
use crate::content;
use crate::failure::{Failure, Result};
use crate::output::{Record, Written};
use crate::session::Session;

/// Imports a buffer for writing, writes, and releases it.
pub(crate) fn run(session: &Session, args: &Write) -> Result<()> {
    let device = session.open()?;
    let import = device.import(args.id.0, Rights::RW)?;
    let offset = usize::try_from(args.offset.0).unwrap_or(usize::MAX);
    let end = offset.checked_add(args.bytes.0.len());
    if end.is_none_or(|end| end > import.buffer.len()) {
        return Err(Failure::new(format!(
            "{} bytes at {offset:#x} are not inside the buffer's {} bytes",
            args.bytes.0.len(),
            import.buffer.len()
        )));
    }
    let mapping = import.buffer.map(Rights::RW)?;
    content::write_at(&mapping, offset, &args.bytes.0)?;
    session.output.print(&Record::Written(Written {
        id: args.id.0.to_string(),
        offset: args.offset.0,
        bytes: args.bytes.0.len(),
        way: import.way.name(),
    }))
}
