// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VM's own RAM, told apart from the windows that we mapped into it.
//!
//! A front end lists its windows among its memory. Exporting them again would
//! share another VM's memory, so every file that this session ever asked its
//! front end to map is remembered, before it is sent. Nor are they kept: this
//! process has no business there, and would hold what the front end lets go.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::sync::lock;
use crate::transport::{FileId, Ram, Region};

/// Files that were sent to one front end.
#[derive(Debug, Default)]
pub struct Sent(Mutex<SentFiles>);

#[derive(Debug, Default)]
struct SentFiles {
    /// RAM files of other VMs: no more than those have.
    files: BTreeSet<(u64, u64)>,
    /// The file system of udmabufs. No VM's RAM is a dma-buf, so it need not
    /// be known which one it was.
    dmabuf_dev: Option<u64>,
}

impl Sent {
    /// Remembers a file, before it is sent.
    pub fn record(&self, id: FileId, udmabuf: bool) {
        let mut sent = lock(&self.0);
        if udmabuf {
            sent.dmabuf_dev = Some(id.dev);
        } else {
            sent.files.insert((id.dev, id.ino));
        }
    }

    fn is_window(&self, id: FileId) -> bool {
        let sent = lock(&self.0);
        sent.dmabuf_dev == Some(id.dev) || sent.files.contains(&(id.dev, id.ino))
    }
}

/// The own RAM in a front end's memory table, and the number of regions that
/// are not: windows, and memory without a file.
#[must_use]
pub fn own_ram(mem: &GuestMemoryMmap, sent: &Sent) -> (Ram, usize) {
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
            (!sent.is_window(region.id)).then_some(region)
        });
        match own {
            Some(region) => ram.regions.push(region),
            None => others = others.saturating_add(1),
        }
    }
    (ram, others)
}

/// The table with private memory, of which none is touched, in the place of each
/// window: the front end will name it again to take it away. `None` if there is
/// nothing to replace.
///
/// # Errors
/// As `mmap`.
pub fn without_windows(mem: &GuestMemoryMmap, sent: &Sent) -> io::Result<Option<GuestMemoryMmap>> {
    let mut replaced = None;
    for region in mem.iter() {
        let Some(file) = region.file_offset() else {
            continue;
        };
        if !sent.is_window(FileId::of(file.file())?) {
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
    use crate::transport::tests::memfd;
    use vm_memory::{FileOffset, GuestAddress};

    fn table() -> (GuestMemoryMmap, FileId) {
        let own = memfd(0x10000, true);
        let foreign = memfd(0x10000, true);
        let id = FileId::of(&foreign).unwrap();
        let mem = GuestMemoryMmap::from_ranges_with_files([
            (GuestAddress(0), 0x10000, Some(FileOffset::from_arc(own, 0))),
            (
                GuestAddress(0x10_0000),
                0x1000,
                Some(FileOffset::from_arc(foreign, 0x2000)),
            ),
            (GuestAddress(0x20_0000), 0x1000, None),
        ])
        .unwrap();
        (mem, id)
    }

    #[test]
    fn own_ram_leaves_out_what_was_sent_and_what_has_no_file() {
        let (mem, id) = table();
        let sent = Sent::default();
        sent.record(id, false);

        let (ram, others) = own_ram(&mem, &sent);

        assert_eq!(others, 2);
        assert!(ram.contains(0, 0x10000));
        assert!(!ram.contains(0x10_0000, 1));
    }

    #[test]
    fn table_without_windows_keeps_their_places_and_not_their_files() {
        let (mem, id) = table();
        let sent = Sent::default();
        assert!(without_windows(&mem, &sent).unwrap().is_none());
        sent.record(id, false);

        let table = without_windows(&mem, &sent).unwrap().unwrap();

        let files: Vec<_> = table
            .iter()
            .map(|region| (region.start_addr().0, region.file_offset().is_some()))
            .collect();
        assert_eq!(files, [(0, true), (0x10_0000, false), (0x20_0000, false)]);
        let (own, others) = own_ram(&table, &sent);
        assert!(own.same(&own_ram(&mem, &sent).0));
        assert_eq!(others, 2);
        assert!(table.remove_region(GuestAddress(0x10_0000), 0x1000).is_ok());
    }

    #[test]
    fn own_ram_leaves_out_every_dmabuf_once_one_was_sent() {
        let (mem, id) = table();
        let sent = Sent::default();
        sent.record(
            FileId {
                ino: id.ino + 1000,
                ..id
            },
            true,
        );

        let (ram, _) = own_ram(&mem, &sent);

        assert!(ram.regions.is_empty(), "memfds stand for dma-bufs here");
    }
}
