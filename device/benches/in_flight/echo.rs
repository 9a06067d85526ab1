// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A back end that does nothing: it reads each request and writes an answer as long as
//! QUERY's, with what the vhost-user crates offer and no more
//!
//! Of memory it trusts the driver, and a chain that makes no sense ends it.

use std::io;
use std::path::Path;
use std::sync::Mutex;

use bufshare_protocol::wire::{ById, QueryResp};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use virtio_queue::QueueOwnedT;
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

type Mem = GuestMemoryAtomic<GuestMemoryMmap>;

/// Bytes of a request, and of its answer.
pub const REQUEST: usize = ById::SIZE;
pub const ANSWER: usize = QueryResp::SIZE;

struct Echo {
    mem: Mem,
}

impl Echo {
    fn serve(&self, ring: &VringRwLock) {
        let mem = self.mem.memory();
        let mut answer = [0; ANSWER];
        loop {
            ring.disable_notification().unwrap();
            loop {
                let chain = {
                    let mut state = ring.get_mut();
                    let mut chains = state.get_queue_mut().iter(mem.clone()).unwrap();
                    chains.next()
                };
                let Some(chain) = chain else { break };
                let head = chain.head_index();
                let mut written = 0;
                for descriptor in chain {
                    if descriptor.is_write_only() {
                        mem.write_slice(&answer, descriptor.addr()).unwrap();
                        written = u32::try_from(ANSWER).unwrap();
                    } else {
                        mem.read_slice(&mut answer[..REQUEST], descriptor.addr())
                            .unwrap();
                    }
                }
                ring.add_used(head, written).unwrap();
            }
            if ring.needs_notification().unwrap() {
                ring.signal_used_queue().unwrap();
            }
            if !ring.enable_notification().unwrap() {
                return;
            }
        }
    }
}

impl VhostUserBackendMut for Echo {
    type Bitmap = ();
    type Vring = VringRwLock;

    /// As many as bufshare has. The second is idle.
    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn get_config(&self, _offset: u32, size: u32) -> Vec<u8> {
        vec![0; usize::try_from(size).unwrap()]
    }

    fn update_memory(&mut self, _mem: Mem) -> io::Result<()> {
        Ok(())
    }

    fn handle_event(
        &mut self,
        event: u16,
        _set: EventSet,
        rings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        if event == 0 {
            self.serve(&rings[0]);
        }
        Ok(())
    }
}

/// Connects to a front end and serves it until it is gone.
pub fn run(front_end: &Path) {
    let mem = Mem::new(GuestMemoryMmap::new());
    let echo = Echo { mem: mem.clone() };
    let backend = std::sync::Arc::new(Mutex::new(echo));
    let mut daemon = VhostUserDaemon::new("echo".into(), backend, mem).unwrap();
    daemon.start_client(front_end.to_str().unwrap()).unwrap();
    // In whatever words it says that the front end is gone.
    let _ = daemon.wait();
}
