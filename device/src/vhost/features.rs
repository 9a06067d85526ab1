// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is offered to a front end, and what it costs if it declines.

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use VhostUserProtocolFeatures as Protocol;

const NO_MAP: &str = "this VM can export, but nothing can be mapped into it";

/// Protocol features that are offered, by their names in the vhost-user
/// specification, and what is lost without each.
const PROTOCOL: [(Protocol, &str, &str); 8] = [
    (Protocol::BACKEND_REQ, "BACKEND_REQ", NO_MAP),
    (Protocol::BACKEND_SEND_FD, "BACKEND_SEND_FD", NO_MAP),
    (
        Protocol::SHMEM,
        "SHMEM (bit 22; older software used 20 and 21)",
        NO_MAP,
    ),
    (
        Protocol::REPLY_ACK,
        "REPLY_ACK",
        "no mapping can be known to exist, so this VM can export, but nothing can be mapped into \
         it",
    ),
    (
        Protocol::CONFIG,
        "CONFIG",
        "the driver sees no configuration space and does not start",
    ),
    (
        Protocol::MQ,
        "MQ",
        "the front end does not learn that there are two queues, and may offer the driver one, \
         which does not start then",
    ),
    (
        Protocol::CONFIGURE_MEM_SLOTS,
        "CONFIGURE_MEM_SLOTS",
        "the front end can list eight regions of memory at the most, its windows among them, so \
         few buffers can be mapped at once",
    ),
    (
        Protocol::SHARED_OBJECT,
        "SHARED_OBJECT",
        "mappings are proved by requests that the front end refuses, which it may log",
    ),
];

/// Device features.
#[must_use]
pub fn device() -> u64 {
    (1 << VIRTIO_F_VERSION_1)
        | (1 << VIRTIO_RING_F_EVENT_IDX)
        | (1 << VIRTIO_RING_F_INDIRECT_DESC)
        | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

/// Protocol features.
#[must_use]
pub fn protocol() -> Protocol {
    PROTOCOL
        .iter()
        .fold(Protocol::empty(), |all, (feature, _, _)| all | *feature)
}

/// Those that are not in `negotiated`, and what each costs.
pub fn missing(negotiated: Protocol) -> impl Iterator<Item = (&'static str, &'static str)> {
    PROTOCOL
        .into_iter()
        .filter(move |(feature, _, _)| !negotiated.contains(*feature))
        .map(|(_, name, cost)| (name, cost))
}

/// Those that are, for people.
#[must_use]
pub fn names(negotiated: Protocol) -> Vec<&'static str> {
    PROTOCOL
        .iter()
        .filter(|(feature, _, _)| negotiated.contains(*feature))
        .filter_map(|(_, name, _)| name.split_whitespace().next())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offered_feature_is_missed_by_its_name() {
        let all: Vec<_> = missing(Protocol::empty()).map(|(name, _)| name).collect();

        assert_eq!(all.len(), 8);
        assert_eq!(missing(protocol()).count(), 0);
        let without = protocol().difference(Protocol::BACKEND_SEND_FD);
        let one: Vec<_> = missing(without).map(|(name, _)| name).collect();
        assert_eq!(one, ["BACKEND_SEND_FD"]);
    }

    #[test]
    fn names_are_those_of_the_specification() {
        let negotiated = Protocol::SHMEM | Protocol::MQ;

        assert_eq!(names(negotiated), ["SHMEM", "MQ"]);
    }
}
