// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a driver's available ring holds, and what makes no sense in it.

use std::ops::Deref;
use std::sync::atomic::Ordering;

use vhost_user_backend::VringT;
use virtio_queue::{DescriptorChain, Error, QueueOwnedT, QueueT};
use vm_memory::GuestMemory;

use crate::vhost::Vring;

/// Why a ring is not served any more until its driver starts it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// More chains than the ring has entries.
    #[error("its available index is ahead by more than its size")]
    AvailIndex,
    /// The answer to the first use could not be distinguished from that to the second.
    #[error("descriptor {0} was made available again before it was used")]
    HeadInUse(u16),
    /// Such a chain cannot be completed.
    #[error("descriptor {0} was made available, which it does not have")]
    NoSuchHead(u16),
    /// It was there when the ring was set up.
    #[error("it lies where no memory is")]
    NoMemory,
}

/// What an available ring has next.
#[derive(Debug)]
pub(super) enum Next<M> {
    /// A chain, which is taken with that.
    Chain(DescriptorChain<M>),
    /// Nothing.
    Empty,
    /// The ring is stopped or disabled: it must not be looked at.
    Off,
    /// It cannot be served.
    Fault(Fault),
}

/// Takes the next chain.
pub(super) fn next<M>(ring: &Vring, mem: M) -> Next<M>
where
    M: Clone + Deref,
    M::Target: GuestMemory,
{
    let mut state = ring.get_mut();
    if !state.is_enabled() || !state.get_queue().ready() {
        return Next::Off;
    }
    let queue = state.get_queue_mut();
    let size = queue.size();
    let mut empty = true;
    loop {
        match queue.iter(mem.clone()).map(|mut chains| chains.next()) {
            Ok(Some(chain)) if chain.head_index() < size => return Next::Chain(chain),
            Ok(Some(chain)) => return Next::Fault(Fault::NoSuchHead(chain.head_index())),
            Err(Error::InvalidAvailRingIndex) => return Next::Fault(Fault::AvailIndex),
            Ok(None) if empty => {}
            Ok(None) | Err(_) => return Next::Fault(Fault::NoMemory),
        }
        // Either there was none, or its entry cannot be read.
        match queue.avail_idx(mem.deref(), Ordering::Acquire) {
            Ok(index) if index.0 == queue.next_avail() => return Next::Empty,
            Ok(_) => empty = false,
            Err(_) => return Next::Fault(Fault::NoMemory),
        }
    }
}
