// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One front end's vhost-user session.
//!
//! Threads of a session: the accept loop *relays* the front end's messages to
//! the vhost-user crate, whose *main* thread answers them, one *worker* serves
//! both queues, and [`shmem_requests`] asks the front end for mappings.

pub mod admission;
pub mod doorbell;
pub mod features;
pub mod lifeline;
pub mod limits;
pub mod queue;
pub mod ram_files;
pub mod relay;
pub mod replies;
pub mod server;
pub mod session;
pub mod shmem_requests;
pub mod vring;

pub use vring::Vring;

/// The guest's memory as the vhost-user crate keeps it.
pub type GuestMem = vm_memory::GuestMemoryAtomic<vm_memory::GuestMemoryMmap>;
