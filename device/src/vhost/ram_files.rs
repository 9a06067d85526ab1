// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VM's own RAM, distinguished from the windows that front ends were asked to map.
//!
//! A front end lists its windows among its memory, as every device of its VM does.
//! Exporting them again would share another VM's memory. So one registry of the
//! process knows which VM's RAM a file is, and to whom it was sent, before it is.
//! Windows are not kept either: this process has no business there, and would hold
//! what the front end releases.
//!
//! A guest cannot change what is in the table. A VMM can list any file that it has. One
//! that was given another VM's RAM (`ram-fd=allow`) cannot pass it off as its own while
//! a session of that VM lists it, which has to be in another process. When none does,
//! it can, and so keep that VM from using its own RAM when it connects again; it gains
//! nothing that it did not have. Whose a file is the kernel does not know.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use super::limits::MAX_SENT;
use crate::backing::{FileId, Ram, Region, memfd};
use crate::broker::PeerId;
use crate::locks::lock;

/// Bytes of the blank file: no region of a memory table ends beyond. None of them is
/// ever touched, so it takes no memory.
const BLANK_BYTES: u64 = i64::MAX.cast_unsigned() & !0xfff;

/// Whose RAM is in which files, and which front ends were sent them.
#[derive(Debug)]
pub struct Files {
    front_ends: Mutex<BTreeMap<PeerId, FrontEnd>>,
    /// Stands for memory that is not touched.
    blank: File,
    blank_id: FileId,
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
    /// A registry of no front end.
    ///
    /// # Errors
    /// As `memfd_create`.
    pub fn new() -> io::Result<Self> {
        let blank = memfd::sealed(c"bufshare-blank", BLANK_BYTES)?;
        Ok(Self {
            front_ends: Mutex::default(),
            blank_id: FileId::of(&blank)?,
            blank,
        })
    }

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

    /// A file that stands for memory that is not touched.
    ///
    /// # Errors
    /// As `dup`.
    pub fn blank(&self) -> io::Result<OwnedFd> {
        self.blank.as_fd().try_clone_to_owned()
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

/// The own RAM in the memory table of `peer`, and the number of regions that are
/// not: windows, and what is left out.
#[must_use]
pub fn own_ram(mem: &GuestMemoryMmap, files: &Files, peer: PeerId) -> (Ram, usize) {
    let mut ram = Ram::default();
    let mut others = 0_usize;
    for region in mem.iter() {
        let own = region.file_offset().and_then(|file| {
            let region = Region::new(
                region.start_addr().0,
                region.len(),
                file.arc().clone(),
                file.start(),
            )
            .ok()?;
            (region.id != files.blank_id).then_some(region)
        });
        match own {
            Some(region) => ram.regions.push(region),
            None => others = others.saturating_add(1),
        }
    }
    files.settle(peer, &ram);
    (ram, others)
}

/// The table with private memory in the place of the blank file, which so takes no
/// descriptors. `None` if there is nothing to replace.
///
/// # Errors
/// As `mmap`.
pub fn without_blank(mem: &GuestMemoryMmap, files: &Files) -> io::Result<Option<GuestMemoryMmap>> {
    let mut replaced = None;
    for region in mem.iter() {
        let Some(file) = region.file_offset() else {
            continue;
        };
        if FileId::of(file.file())? != files.blank_id {
            continue;
        }
        let (at, len) = (region.start_addr(), region.len());
        let size = usize::try_from(len).map_err(io::Error::other)?;
        let blank = GuestRegionMmap::from_range(at, size, None).map_err(io::Error::other)?;
        let (rest, _) = replaced
            .as_ref()
            .unwrap_or(mem)
            .remove_region(at, len)
            .map_err(io::Error::other)?;
        let table = rest.insert_region(Arc::new(blank));
        replaced = Some(table.map_err(io::Error::other)?);
    }
    Ok(replaced)
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
        let files = Files::new().unwrap();
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

    fn table(files: &Files) -> GuestMemoryMmap {
        let own = memfd(0x10000, true);
        let blank = Arc::new(File::from(files.blank().unwrap()));
        GuestMemoryMmap::from_ranges_with_files([
            (GuestAddress(0), 0x10000, Some(FileOffset::from_arc(own, 0))),
            (
                GuestAddress(0x10_0000),
                0x1000,
                Some(FileOffset::from_arc(blank, 1 << 40)),
            ),
            (GuestAddress(0x20_0000), 0x1000, None),
        ])
        .unwrap()
    }

    #[test]
    fn own_ram_leaves_out_what_is_blank_and_what_has_no_file() {
        let files = shared([None; 3]);
        let mem = table(&files);

        let (ram, others) = own_ram(&mem, &files, A);

        assert_eq!(others, 2);
        assert!(ram.contains(0, 0x10000));
        assert!(!ram.contains(0x10_0000, 1));
        let front_ends = lock(&files.front_ends);
        assert_eq!(front_ends[&A].ram, [ram.regions[0].id].into());
    }

    #[test]
    fn table_without_blank_keeps_the_places() {
        let files = shared([None; 3]);
        let mem = table(&files);

        let table = without_blank(&mem, &files).unwrap().unwrap();

        let places: Vec<_> = table
            .iter()
            .map(|region| (region.start_addr().0, region.file_offset().is_some()))
            .collect();
        assert_eq!(places, [(0, true), (0x10_0000, false), (0x20_0000, false)]);
        let (own, others) = own_ram(&table, &files, A);
        assert!(own.same(&own_ram(&mem, &files, A).0));
        assert_eq!(others, 2);
        assert!(without_blank(&table, &files).unwrap().is_none());
        assert!(table.remove_region(GuestAddress(0x10_0000), 0x1000).is_ok());
    }
}
