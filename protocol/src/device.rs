// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device as the driver finds it: id, queues, version, capability bits

/// Virtio device id (`VIRTIO_ID_DMABUF`).
pub const ID: u32 = 37;
/// Highest version of the wire format that this crate speaks.
pub const VERSION: u32 = 2;
/// Queue of requests and responses.
pub const QUEUE_CONTROL: u32 = 0;
/// Queue of events.
pub const QUEUE_EVENT: u32 = 1;
/// Number of queues.
pub const NUM_QUEUES: u32 = 2;
/// Id of the shared-memory region in which imports appear.
pub const SHMID: u32 = 0;

/// Capability: imports can be mapped here.
pub const CAP_MAP: u32 = 0x1;
/// Capability: the host confines a VMM to the shared pages (udmabuf).
pub const CAP_UDMABUF: u32 = 0x2;
/// Capability: this peer's VMM enforces read-only mappings.
pub const CAP_RO_ENFORCED: u32 = 0x4;
