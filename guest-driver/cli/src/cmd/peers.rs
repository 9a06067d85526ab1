// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bufshare peers`

use crate::failure::Result;
use crate::output::{Peer, Record};
use crate::session::Session;

/// Prints a line a machine.
pub(crate) fn run(session: &Session) -> Result<()> {
    let device = session.open()?;
    let own = device.info()?.peer_id;
    for peer in device.peers()? {
        session.output.print(&Record::Peer(Peer::new(&peer, own)))?;
    }
    Ok(())
}
