// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bufshare list`

use crate::failure::Result;
use crate::output::{Buffer, Record};
use crate::session::Session;

/// Prints a line a buffer.
pub(crate) fn run(session: &Session) -> Result<()> {
    for buffer in session.open()?.list()? {
        session
            .output
            .print(&Record::Buffer(Buffer::from(&buffer)))?;
    }
    Ok(())
}
