// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the host side of the tests and a test guest say to each other
//!
//! Two conversations, both of JSON objects, one a line:
//!
//! * [`wire`]: the fixture and the guest's init, over a virtio-serial port.
//!   Requests carry an id and run at the same time; an answer may come late.
//! * [`ops`]: a test and one process in the guest that holds buffers for it,
//!   over that process's standard input and output.

pub mod ops;
pub mod wire;

/// Bytes that travel as base64 text.
pub mod bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    /// For `#[serde(with = "bytes")]`.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    /// For `#[serde(with = "bytes")]`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}
