// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--print-capabilities`.

use serde_json::{Value, json};

use crate::backing::udmabuf;
use crate::vhost::features;

/// What management software asks for. `type` is our own: the list of QEMU's
/// `vhost-user.json` is closed and has none for this device.
#[must_use]
pub fn capabilities() -> Value {
    let mut ways = vec!["direct"];
    if udmabuf::Device::open().is_ok() {
        ways.push("udmabuf");
    }
    json!({
        "type": "bufshare",
        "features": ways,
        "virtio-id": bufshare_protocol::device::ID,
        "queues": bufshare_protocol::device::NUM_QUEUES,
        "config-size": bufshare_protocol::limits::CONFIG_SIZE,
        "virtio-features": features::device(),
        "protocol-features": features::protocol().bits(),
    })
}
