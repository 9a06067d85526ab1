// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A ring of the guest: the vhost-user crate's, but for two things.
//!
//! When a ring is stopped and started again at once, the crate's worker may
//! still have an event of the old kick descriptor in hand, reads the new one,
//! which holds nothing yet, and takes that for a reason to end. Here it is a
//! kick like any other: one too many does no harm.
//!
//! The crate reads and writes kick and call descriptors so that their other holder,
//! the front end, can make it wait, with the ring locked. Here nobody can (see
//! [`super::doorbell`]).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vhost_user_backend::{VringRwLock, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error;

use super::{GuestMem, doorbell};

type Inner = VringRwLock<GuestMem>;

/// A ring of the guest.
#[derive(Clone)]
pub struct Vring(Inner);

impl<'a> VringStateGuard<'a, GuestMem> for Vring {
    type G = <Inner as VringStateGuard<'a, GuestMem>>::G;
}

impl<'a> VringStateMutGuard<'a, GuestMem> for Vring {
    type G = <Inner as VringStateMutGuard<'a, GuestMem>>::G;
}

impl VringT<GuestMem> for Vring {
    fn new(mem: GuestMem, max_queue_size: u16) -> Result<Self, Error> {
        Inner::new(mem, max_queue_size).map(Self)
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, GuestMem>>::G {
        self.0.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, GuestMem>>::G {
        self.0.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), Error> {
        self.0.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        match self.get_ref().get_call() {
            Some(call) => doorbell::signal(call.as_raw_fd()),
            None => Ok(()),
        }
    }

    fn enable_notification(&self) -> Result<bool, Error> {
        self.0.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), Error> {
        self.0.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        self.0.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.0.set_enabled(enabled);
    }

    fn set_queue_info(&self, desc: u64, avail: u64, used: u64) -> Result<(), Error> {
        self.0.set_queue_info(desc, avail, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.0.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.0.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.0.set_queue_next_used(idx);
    }

    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.0.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        self.0.set_queue_size(num);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.0.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.0.set_queue_ready(ready);
    }

    fn set_kick(&self, file: Option<File>) {
        self.0.set_kick(file);
    }

    fn read_kick(&self) -> io::Result<bool> {
        let state = self.get_ref();
        if let Some(kick) = state.get_kick() {
            match doorbell::read(kick.as_raw_fd()) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
        Ok(state.is_enabled())
    }

    fn set_call(&self, file: Option<File>) {
        self.0.set_call(file);
    }

    fn set_err(&self, file: Option<File>) {
        self.0.set_err(file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{FromRawFd, IntoRawFd};
    use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
    use vmm_sys_util::eventfd::EventFd;

    #[test]
    fn a_kick_descriptor_that_holds_nothing_is_no_error() {
        let ring = Vring::new(GuestMemoryAtomic::new(GuestMemoryMmap::new()), 16).unwrap();
        let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        // SAFETY: the number is given up by the one and taken by the other.
        let file = unsafe { File::from_raw_fd(kick.into_raw_fd()) };
        ring.set_kick(Some(file));
        ring.set_enabled(true);

        assert!(ring.read_kick().unwrap());
    }
}
