// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vhost-user back end that shares buffers between virtual machines.
//!
//! * [`broker`]: what may happen, as a pure state machine. It emits effects.
//! * [`hub`]: the one broker of the process behind one lock, and the dispatch
//!   of its effects.
//! * [`transport`]: how the bytes of one VM become a file that another VM's
//!   front end can map.
//! * [`vhost`]: one front end's session: queues, memory, mapping requests.
//! * [`host`]: options, listening sockets, signals, control socket.
//!
//! # Locks
//!
//! Taken only in this order, each for a bounded time: session phase, queue
//! gate, vring, hub, port queue. None is held while a front end is waited for:
//! only a session's port thread asks the front end for something, and it holds
//! nothing then. A front end that maps may meanwhile send memory tables or ask
//! for a vring's base, and gets its answer.

pub mod broker;
pub mod host;
pub mod hub;
mod sync;
pub mod transport;
pub mod vhost;
