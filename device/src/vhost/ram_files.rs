// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VM's own RAM, distinguished from the windows that front ends were asked to map.
//!
//! A front end lists its windows among its memory, as every device of its VM does.
//! Exporting them again would share another VM's memory. So one registry of the
//! process knows which VM's RAM a file is, and to whom it was sent, before it is.
//! Windows are not mapped or kept either: this process has no business there, and would
//! hold what the front end releases.
//!
//! A guest cannot change what is in the table. A VMM can list any file that it has. One
//! that was given another VM's RAM (`ram-fd=allow`) cannot pass it off as its own while
//! a session of that VM lists it, which has to be in another process. When none does,
//! it can, and so keep that VM from using its own RAM when it connects again; it gains
//! nothing that it did not have. Whose a file is the kernel does not know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::limits::MAX_SENT;
use crate::backing::{FileId, Ram, Region};
use crate::broker::PeerId;
use crate::locks::lock;

/// Whose RAM is in which files, and which front ends were sent them.
#[derive(Debug, Default)]
pub struct Files {
    front_ends: Mutex<BTreeMap<PeerId, FrontEnd>>,
}

#[derive(Debug, Default)]
struct FrontEnd {
    /// The process of its front end.
    pid: Option<u32>,
    /// What it listed as its RAM.
    ram: BTreeSet<FileId>,
    /// What it was sent, to be mapped.
    sent: BTreeSet<FileId>,
}

impl FrontEnd {
    /// Whether the two are in different processes, and so of different VMs. A number of
    /// a process that has ended may be that of another one: then they count as one VM,
    /// as without any numbers.
    fn apart_from(&self, other: &Self) -> bool {
        matches!((self.pid, other.pid), (Some(one), Some(other)) if one != other)
    }
}

impl Files {
    /// A front end of this process has connected.
    pub fn connect(&self, peer: PeerId, pid: Option<u32>) {
        let session = FrontEnd {
            pid,
            ..FrontEnd::default()
        };
        lock(&self.front_ends).insert(peer, session);
    }

    /// It holds nothing any more.
    pub fn disconnect(&self, peer: PeerId) {
        lock(&self.front_ends).remove(&peer);
    }

    /// A file is about to be sent to the front end of `peer`. Those that it `has` are asked
    /// for now and then, if that is known: others cannot come back.
    pub fn record(&self, peer: PeerId, id: FileId, has: impl FnOnce() -> Option<BTreeSet<FileId>>) {
        let many = |session: &FrontEnd| session.sent.len() >= MAX_SENT;
        // The holders of a file are asked while nothing is locked.
        let full = lock(&self.front_ends).get(&peer).is_some_and(many);
        let has = full.then(has).flatten();
        if let Some(session) = lock(&self.front_ends).get_mut(&peer) {
            if let Some(has) = has {
                session.sent.retain(|sent| has.contains(sent));
            }
            session.sent.insert(id);
        }
    }

    /// The front end of `peer` listed its own RAM.
    pub fn announce(&self, peer: PeerId, id: FileId) {
        if let Some(session) = lock(&self.front_ends).get_mut(&peer) {
            session.ram.insert(id);
        }
    }

    /// What `peer` has of its own RAM now.
    fn settle(&self, peer: PeerId, ram: &Ram) {
        if let Some(session) = lock(&self.front_ends).get_mut(&peer) {
            session.ram = ram.regions.iter().map(|region| region.id).collect();
        }
    }

    /// Whether a file in the memory table of `peer`, listed beside `others`, is not
    /// its own RAM: it was sent to its VM, or it is the RAM of another VM.
    ///
    /// A VM may have several devices. One that lists RAM of another device of the same
    /// VM lists all of it.
    #[must_use]
    pub fn is_window(&self, peer: PeerId, id: FileId, others: &[FileId]) -> bool {
        let front_ends = lock(&self.front_ends);
        let Some(own) = front_ends.get(&peer) else {
            return true;
        };
        if own.ram.contains(&id) {
            return false;
        }
        let same_vm = |other: &FrontEnd| {
            let shared = own.ram.iter().chain(others).filter(|file| **file != id);
            shared.into_iter().any(|file| other.ram.contains(file))
        };
        own.sent.contains(&id)
            || front_ends.iter().any(|(number, other)| {
                let sent = other.sent.contains(&id) && same_vm(other);
                let foreign = other.ram.contains(&id) && own.apart_from(other);
                *number != peer && (sent || foreign)
            })
    }
}

/// What is sent to one front end.
#[derive(Clone, Copy, Debug)]
pub struct Sent<'a> {
    /// The registry.
    pub files: &'a Files,
    /// Whose front end.
    pub peer: PeerId,
}

impl Sent<'_> {
    /// A file is about to be sent, to whom `has` others.
    pub fn record(&self, id: FileId, has: impl FnOnce() -> Option<BTreeSet<FileId>>) {
        self.files.record(self.peer, id, has);
    }
}

/// The own RAM of `peer`: what is left of its memory table by [`super::admission`].
#[must_use]
pub fn own_ram(mem: &GuestMemoryMmap, files: &Files, peer: PeerId) -> Ram {
    let regions = mem.iter().filter_map(|region| {
        let file = region.file_offset()?;
        let (addr, len) = (region.start_addr().0, region.len());
        Region::new(addr, len, file.arc().clone(), file.start()).ok()
    });
    let ram = Ram {
        regions: regions.collect(),
    };
    files.settle(peer, &ram);
    ram
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::tests::memfd;
    use vm_memory::{FileOffset, GuestAddress};

    const A: PeerId = PeerId(1);
    const B: PeerId = PeerId(2);
    const B2: PeerId = PeerId(3);
    const A_RAM: FileId = FileId { dev: 1, ino: 1 };
    const B_RAM: FileId = FileId { dev: 1, ino: 2 };

    /// VM A has shared with VM B, which has two devices.
    fn shared(pids: [Option<u32>; 3]) -> Files {
        let files = Files::default();
        for (peer, pid) in [A, B, B2].into_iter().zip(pids) {
            files.connect(peer, pid);
        }
        for (peer, id) in [(A, A_RAM), (B, B_RAM)] {
            assert!(!files.is_window(peer, id, &[id]));
            files.announce(peer, id);
        }
        files.record(B, A_RAM, || None);
        files
    }

    #[test]
    fn file_that_was_sent_is_a_window_for_its_receiver_alone() {
        let files = shared([None; 3]);

        assert!(files.is_window(B, A_RAM, &[A_RAM]));
        assert!(!files.is_window(B, B_RAM, &[B_RAM]));
        assert!(!files.is_window(A, A_RAM, &[A_RAM]));
        files.disconnect(B);
        files.connect(B, None);
        assert!(!files.is_window(B, B_RAM, &[B_RAM]), "a new session");
    }

    #[test]
    fn file_that_was_sent_to_one_device_of_a_vm_is_a_window_for_the_others() {
        for pids in [[None; 3], [Some(1), Some(2), Some(2)], [Some(1); 3]] {
            let files = shared(pids);

            // At once, or one after the other.
            let table = [B_RAM, A_RAM];
            assert!(!files.is_window(B2, B_RAM, &table));
            assert!(files.is_window(B2, A_RAM, &table), "{pids:?}");
            files.announce(B2, B_RAM);
            assert!(files.is_window(B2, A_RAM, &[A_RAM]), "{pids:?}");
        }
    }

    #[test]
    fn second_device_of_an_exporter_has_the_same_ram() {
        for pids in [[None; 3], [Some(1), Some(2), Some(1)], [Some(1); 3]] {
            let files = shared(pids);

            // B2 is a device of A here, and comes late.
            assert!(!files.is_window(B2, A_RAM, &[A_RAM]), "{pids:?}");
        }
    }

    #[test]
    fn ram_of_another_process_is_never_own() {
        let files = shared([Some(1), Some(2), Some(3)]);

        // Its VMM lists nothing of its own beside it.
        assert!(files.is_window(B2, A_RAM, &[A_RAM]));
        assert!(files.is_window(PeerId(9), A_RAM, &[A_RAM]), "no session");
    }

    #[test]
    fn files_that_a_vmm_has_no_more_are_forgotten() {
        let files = shared([None; 3]);
        let file = |ino| FileId { dev: 2, ino };
        let had = BTreeSet::from([A_RAM, file(1)]);

        for ino in 1..=10_000 {
            let has = [file(ino)].into_iter().chain(had.clone()).collect();
            files.record(B, file(ino), || Some(has));
        }

        let sent = lock(&files.front_ends)[&B].sent.len();
        assert!(sent <= MAX_SENT, "{sent}");
        for kept in [A_RAM, file(1), file(10_000)] {
            assert!(files.is_window(B, kept, &[kept]), "{kept:?}");
        }
        // What it has is not known: nothing is forgotten.
        for ino in 1..=10_000 {
            files.record(B, file(ino), || None);
        }
        assert_eq!(lock(&files.front_ends)[&B].sent.len(), 10_001);
    }

    #[test]
    fn own_ram_that_was_listed_before_it_was_sent_stays_own() {
        let files = shared([None; 3]);
        files.record(B, B_RAM, || None);

        assert!(!files.is_window(B, B_RAM, &[B_RAM]));
    }

    #[test]
    fn own_ram_is_what_is_in_files() {
        let files = shared([None; 3]);
        let own = memfd(0x10000, true);
        let mem = GuestMemoryMmap::from_ranges_with_files([
            (GuestAddress(0), 0x10000, Some(FileOffset::from_arc(own, 0))),
            (GuestAddress(0x20_0000), 0x1000, None),
        ])
        .unwrap();

        let ram = own_ram(&mem, &files, A);

        assert!(ram.contains(0, 0x10000));
        assert!(!ram.contains(0x20_0000, 1));
        let front_ends = lock(&files.front_ends);
        assert_eq!(front_ends[&A].ram, [ram.regions[0].id].into());
    }
}
