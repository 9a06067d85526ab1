// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vhost-user back end that shares buffers between virtual machines.
//!
//! * [`broker`]: what may happen, as a pure state machine. It emits effects.
//! * [`dispatcher`]: the one broker of the process behind one lock, and the dispatch
//!   of its effects.
//! * [`backing`]: how the bytes of one VM become a file that another VM's
//!   front end can map.
//! * [`vhost`]: one front end's session: queues, memory, mapping requests.
//! * [`host`]: options, listening sockets, signals, control socket.
//! * [`os`]: what all parts use of the operating system.
//!
//! # Locks
//!
//! Whoever holds one of these takes only those below it:
//!
//! | lock | of | while it is held |
//! |---|---|---|
//! | the vhost-user crate's handler | session | one message of the front end is served; a stop takes as long as [`dispatcher::Dispatcher::stop`] |
//! | `Session::phase` | session | the queues start or stop, or the driver is forgotten |
//! | `Control::gate`, `Events::ring` (never both) | session | a chain is taken or completed, or events are written |
//! | the crate's vring, or `Dispatcher::state` (never both) | ring, program | one access; one change of the broker |
//! | `ShmemRequests::state`, `Deadlines::queue` (never both) | session, program | a job or a deadline is queued |
//! | all others: `Session::ram`, `Session::deferred`, `Session::exit_fd`, `Outbox::replies`, `Lifeline::hangup`, `Admission::table`, `Admission::kicked`, `Files::front_ends`, `Server::current`, `Limiter`, the crate's memory table | session, program | a value is read or replaced |
//!
//! What follows from a change of the broker is done when the dispatcher is unlocked. Answers
//! to *another* session are put into its outbox, its events stay in the broker, and its
//! worker is woken: only a session's worker and its shared-memory thread write into its
//! rings. So what a guest puts there can hold up no thread of another session, nor of the
//! program; and whoever waits for that shared-memory thread waits for the VMM anyway.
//!
//! None but the handler is held while a front end is waited for. Only a session's
//! shared-memory thread asks the front end for something, and it holds nothing then. A front
//! end that maps may meanwhile send memory tables or ask for a vring's base, and gets
//! its answer.

pub mod backing;
pub mod broker;
#[cfg(test)]
#[path = "../tests/common/deny.rs"]
mod deny;
pub mod dispatcher;
pub mod host;
mod locks;
mod log_rate;
pub mod os;
#[cfg(test)]
#[allow(unreachable_pub, reason = "it is part of the tests in tests/, too")]
#[path = "../tests/common/soon.rs"]
mod soon;
pub mod vhost;
