// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One front end's vhost-user session.
//!
//! Threads of a session: the *main* thread of the vhost-user crate answers the
//! front end's messages, one *worker* serves both queues, the *port* asks the
//! front end for mappings, and the accept loop waits for the others.

pub mod backend;
pub mod memory;
pub mod port;
pub mod queue;
pub mod session;
pub mod vring;

pub use vring::Vring;

/// The guest's memory as the vhost-user crate keeps it.
pub type GuestMem = vm_memory::GuestMemoryAtomic<vm_memory::GuestMemoryMmap>;
