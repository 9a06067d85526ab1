// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A session, as the dispatcher sees it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bufshare_protocol::response::Reply;

use super::SessionFacts;
use crate::backing::WeakRam;
use crate::broker::{EffectId, Token, VmmRequest};

/// A request to one front end, for its session's shared-memory thread.
#[derive(Clone, Debug)]
pub struct Job {
    /// To be reported.
    pub id: EffectId,
    /// The request.
    pub request: VmmRequest,
    /// For one to map: the owner's RAM at the time the broker decided.
    pub ram: Arc<WeakRam>,
}

/// A session, as the dispatcher sees it.
pub trait Link: Send + Sync {
    /// Queues a mapping job. Called with the broker locked: must not block.
    fn job(&self, job: Job);
    /// The front end has unmapped its windows itself: forgets all jobs, also the one
    /// that is being done. Called with the broker locked: must not block.
    fn forget_jobs(&self);
    /// Answers a request. Called by any thread: must not wait for what the guest does, unless
    /// the thread is of this session alone.
    fn reply(&self, token: Token, reply: &Reply);
    /// There is something at [`super::Dispatcher::next_event`], to be taken as long as there is
    /// room.
    /// Called by any thread: must not wait for what the guest does.
    fn events(&self);
    /// Whether all answers and events were written that there was room for. Called with
    /// the broker locked: must not block.
    fn delivered(&self) -> bool;
    /// Unmap requests are to be sent although the device is stopped. Called with the
    /// broker locked: must not block.
    fn force(&self);
    /// A bug kept something from it that it cannot do without: ends it. Must not block.
    fn fail(&self);
    /// The process that connected the front end, if it is known. Called with the
    /// broker locked: must not block.
    fn vmm_pid(&self) -> Option<u32>;
    /// Whether the front end is QEMU, as far as that can be known. Called with the broker
    /// locked: must not block.
    fn is_qemu(&self) -> bool;
    /// For the control socket.
    fn facts(&self) -> SessionFacts;
}

/// Delivers something to one session. If a bug keeps it from that, only this session
/// ends, and the others get what is theirs, whoever's thread this is.
pub(super) fn deliver(link: &dyn Link, delivery: impl FnOnce(&dyn Link)) {
    if catch_unwind(AssertUnwindSafe(|| delivery(link))).is_err() {
        link.fail();
    }
}
