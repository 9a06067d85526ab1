// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a front end is answered in the place of the vhost-user crate: that a message was
//! served, or, when nobody serves it any more, that it is refused.
//!
//! The vhost-user crate ends a connection at the first message that it does not
//! like, and a guest can bring its VMM to send such: rings at odd addresses will
//! do. The VMM lives on, with all that it has mapped, and would wait for an
//! answer and serve no unmap request. So everything is refused, until it has.
//!
//! Semantics: vhost-user specification, "Message Specification" and "Communication"
//! (which messages have a reply), and `VHOST_USER_PROTOCOL_F_REPLY_ACK`.

use vhost::vhost_user::message::FrontendReq;

use super::relay::{HEADER, word};

/// Flag of a message that wants an acknowledgement.
const NEED_REPLY: u32 = 1 << 3;

/// Flags of a reply: protocol version 1, and that it is one.
const REPLY: u32 = 1 | 1 << 2;

/// Bytes before the contents in the payload of GET_CONFIG: offset, size, flags.
const CONFIG_HEAD: usize = 12;

fn is(request: u32, which: FrontendReq) -> bool {
    request == u32::from(which)
}

/// The answer that says that a message was served, if it wants one.
#[must_use]
pub fn acknowledgement(message: &[u8]) -> Option<Vec<u8>> {
    let (request, flags) = (word(message, 0)?, word(message, 4)?);
    let wants = flags & NEED_REPLY != 0;
    wants
        .then(|| reply(request, &0_u64.to_ne_bytes()))
        .flatten()
}

/// The reply with this payload.
fn reply(request: u32, payload: &[u8]) -> Option<Vec<u8>> {
    let size = u32::try_from(payload.len()).ok()?;
    let header = [request, REPLY, size].map(u32::to_ne_bytes).concat();
    Some([&header, payload].concat())
}

/// The answer that refuses a message, if it has one. Nothing is said to one whose
/// answer would need more than a number.
#[must_use]
pub fn refusal(message: &[u8]) -> Option<Vec<u8>> {
    let (request, flags) = (word(message, 0)?, word(message, 4)?);
    let payload = message.get(HEADER..)?;
    let answer = if is(request, FrontendReq::GET_VRING_BASE) {
        // Index and base: 0, as if nothing had been taken.
        let index = word(payload, 0)?;
        [index.to_ne_bytes(), [0; 4]].concat()
    } else if is(request, FrontendReq::GET_CONFIG) {
        let head = payload.get(..CONFIG_HEAD)?;
        let mut answer = head.to_vec();
        answer.resize(payload.len(), 0);
        answer
    } else if is(request, FrontendReq::GET_FEATURES)
        || is(request, FrontendReq::GET_PROTOCOL_FEATURES)
        || is(request, FrontendReq::GET_QUEUE_NUM)
        || is(request, FrontendReq::GET_MAX_MEM_SLOTS)
    {
        0_u64.to_ne_bytes().to_vec()
    } else if flags & NEED_REPLY != 0 {
        // Not done.
        1_u64.to_ne_bytes().to_vec()
    } else {
        return None;
    };
    reply(request, &answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(request: FrontendReq, flags: u32, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap();
        let header = [u32::from(request), 1 | flags, size].map(u32::to_ne_bytes);
        [header.concat(), payload.to_vec()].concat()
    }

    fn number(answer: &[u8]) -> u64 {
        assert_eq!(word(answer, 4), Some(REPLY));
        assert_eq!(word(answer, 8), Some(8));
        u64::from_ne_bytes(answer[HEADER..].try_into().unwrap())
    }

    #[test]
    fn message_that_wants_an_acknowledgement_gets_a_failure() {
        let enable = message(FrontendReq::SET_VRING_ENABLE, NEED_REPLY, &[1; 8]);

        let answer = refusal(&enable).unwrap();

        assert_eq!(word(&answer, 0), Some(FrontendReq::SET_VRING_ENABLE.into()));
        assert_eq!(number(&answer), 1);
    }

    #[test]
    fn message_that_was_served_gets_a_success_if_it_wants_one() {
        let add = |flags| message(FrontendReq::ADD_MEM_REG, flags, &[1; 40]);

        let answer = acknowledgement(&add(NEED_REPLY)).unwrap();

        assert_eq!(word(&answer, 0), Some(FrontendReq::ADD_MEM_REG.into()));
        assert_eq!(number(&answer), 0);
        assert_eq!(acknowledgement(&add(0)), None);
    }

    #[test]
    fn message_that_wants_no_answer_has_none() {
        let enable = message(FrontendReq::SET_VRING_ENABLE, 0, &[1; 8]);

        assert_eq!(refusal(&enable), None);
    }

    #[test]
    fn base_of_a_ring_is_0() {
        let get = message(FrontendReq::GET_VRING_BASE, 0, &[1, 0, 0, 0, 9, 9, 9, 9]);

        assert_eq!(
            number(&refusal(&get).unwrap()).to_ne_bytes(),
            [1, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn configuration_is_as_long_as_asked_for_and_zero() {
        let payload = [&[0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0][..], &[7; 4]].concat();
        let get = message(FrontendReq::GET_CONFIG, 0, &payload);

        let answer = refusal(&get).unwrap();

        assert_eq!(&answer[HEADER..HEADER + 12], &payload[..12]);
        assert_eq!(&answer[HEADER + 12..], [0; 4]);
    }

    #[test]
    fn numbers_that_are_asked_for_are_0() {
        for request in [FrontendReq::GET_FEATURES, FrontendReq::GET_QUEUE_NUM] {
            assert_eq!(number(&refusal(&message(request, 0, &[])).unwrap()), 0);
        }
    }

    #[test]
    fn short_messages_have_no_answer() {
        let get = message(FrontendReq::GET_VRING_BASE, 0, &[1, 0]);
        assert_eq!(refusal(&get), None);
        let get = message(FrontendReq::GET_CONFIG, 0, &[0; 8]);
        assert_eq!(refusal(&get), None);
        assert_eq!(refusal(&get[..8]), None);
    }
}
