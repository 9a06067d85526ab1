// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bufshare alloc`

use crate::args::Alloc;
use crate::cmd::export;
use crate::failure::Result;
use crate::session::Session;
use crate::stop::{Input, Stop};

/// Allocates, exports and holds.
pub(crate) fn run(session: &Session, args: &Alloc) -> Result<()> {
    let stop = Stop::new(args.offer.until.input(Input::End))?;
    let device = session.open()?;
    let buffer = device.alloc(args.size.0)?;
    export::offer(session, &device, stop, &buffer, "alloc", &args.offer)
}
