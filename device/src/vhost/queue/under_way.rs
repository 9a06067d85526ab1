// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The requests that were taken from the control queue and are not completed yet.

use bufshare_protocol::request::Header;
use slab::Slab;

use super::Layout;
use crate::broker::Token;

/// A request that waits for its answer.
#[derive(Debug)]
pub(super) struct Pending {
    token: Token,
    /// Where the answer goes.
    pub(super) layout: Layout,
    /// What it depends on.
    pub(super) header: Header,
}

/// All of them. Memory is taken for as many as there were at once, and not given back: a
/// driver that had so many will have them again.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    slots: Slab<Pending>,
    /// By head, whether a request has it.
    heads: Vec<bool>,
    /// Requests so far, to distinguish those that have the same slot.
    taken: u64,
}

/// Where one more request goes. Stale as soon as one was added.
pub(super) struct Slot(u16);

impl UnderWay {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// A place for one more, unless there are `max` of them.
    pub(super) fn vacancy(&self, max: usize) -> Option<Slot> {
        let slot = u16::try_from(self.slots.vacant_key()).ok();
        slot.filter(|_| self.len() < max).map(Slot)
    }

    /// Whether one has this head.
    pub(super) fn has_head(&self, head: u16) -> bool {
        self.heads.get(usize::from(head)).is_some_and(|has| *has)
    }

    /// Adds one. Returns under which token it is found.
    pub(super) fn add(&mut self, Slot(slot): Slot, layout: Layout, header: Header) -> Token {
        let token = Token(self.taken << 16 | u64::from(slot));
        self.taken = self.taken.wrapping_add(1);
        self.mark(layout.head, true);
        self.slots.insert(Pending {
            token,
            layout,
            header,
        });
        token
    }

    /// Whether this one is under way.
    pub(super) fn has(&self, token: Token) -> bool {
        let found = self.slots.get(slot_of(token));
        found.is_some_and(|one| one.token == token)
    }

    /// Takes this one out, if it is under way.
    pub(super) fn remove(&mut self, token: Token) -> Option<Pending> {
        if !self.has(token) {
            return None;
        }
        let pending = self.slots.try_remove(slot_of(token))?;
        self.mark(pending.layout.head, false);
        Some(pending)
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.slots.clear();
        self.heads.clear();
    }

    fn mark(&mut self, head: u16, used: bool) {
        let at = usize::from(head);
        if self.heads.len() <= at {
            self.heads.resize(at.saturating_add(1), false);
        }
        if let Some(mark) = self.heads.get_mut(at) {
            *mark = used;
        }
    }
}

/// A token says where its request is, and which one is meant.
fn slot_of(token: Token) -> usize {
    let [.., high, low] = token.0.to_be_bytes();
    usize::from(u16::from_be_bytes([high, low]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(all: &mut UnderWay, head: u16) -> Token {
        let layout = Layout {
            head,
            ..Layout::default()
        };
        let slot = all.vacancy(2).unwrap();
        all.add(slot, layout, Header::default())
    }

    #[test]
    fn there_is_no_vacancy_for_more_than_the_limit() {
        let mut all = UnderWay::default();
        let first = add(&mut all, 7);
        add(&mut all, 3);
        assert!(all.vacancy(2).is_none());

        assert_eq!(all.remove(first).unwrap().layout.head, 7);

        assert_eq!(all.len(), 1);
        add(&mut all, 5);
        assert!(all.vacancy(2).is_none());
    }

    #[test]
    fn a_token_is_good_for_one_request() {
        let mut all = UnderWay::default();
        let first = add(&mut all, 7);
        assert!(all.has(first));
        all.remove(first).unwrap();

        let second = add(&mut all, 7);

        assert!(!all.has(first) && all.remove(first).is_none());
        assert!(all.has(second));
        all.clear();
        let third = add(&mut all, 7);
        assert!(!all.has(second) && all.has(third));
    }

    #[test]
    fn a_head_is_in_use_as_long_as_its_request() {
        let mut all = UnderWay::default();
        let seventh = add(&mut all, 7);
        add(&mut all, 3);
        assert!(all.has_head(7) && all.has_head(3) && !all.has_head(5) && !all.has_head(9));

        all.remove(seventh).unwrap();
        assert!(!all.has_head(7) && all.has_head(3));

        all.clear();
        assert!(!all.has_head(3) && all.len() == 0);
    }
}
