// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bufshare info`

use bufshare::{CAP_MAP, CAP_RO_ENFORCED, CAP_UDMABUF};

use crate::failure::Result;
use crate::output::{Info, Missing, Record};
use crate::session::Session;

/// Prints the device's description of itself.
pub(crate) fn run(session: &Session) -> Result<()> {
    let device = session.open()?;
    let info = device.info()?;
    // Where /sys cannot be read, the rest is still worth saying.
    let missing = device.missing_features().unwrap_or_else(|error| {
        session.output.warn(&error.to_string());
        None
    });
    let missing = missing.map(|features| {
        let missing = features.iter().map(|feature| Missing {
            feature: feature.name().to_owned(),
            cannot: feature.to_string(),
        });
        missing.collect()
    });
    let names = [
        (CAP_MAP, "map"),
        (CAP_UDMABUF, "udmabuf"),
        (CAP_RO_ENFORCED, "ro_enforced"),
    ];
    let caps = names
        .into_iter()
        .filter(|(bit, _)| info.caps & bit != 0)
        .map(|(_, name)| name)
        .collect();
    session.output.print(&Record::Info(Info {
        name: info.name.to_string(),
        peer_id: info.peer_id,
        version: info.version,
        caps,
        max_windows: info.max_windows,
        windows_used: info.windows_used,
        max_extents: info.max_extents,
        max_buffers: info.max_buffers,
        max_attachments: info.max_attachments,
        max_blob: info.max_blob,
        map_align: info.map_align,
        shm_size: info.shm_size,
        max_buffer_size: info.max_buffer_size,
        missing,
    }))
}
