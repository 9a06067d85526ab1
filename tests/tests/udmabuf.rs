// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! *udmabuf*: the importer's VMM gets the shared pages and no more
//!
//! No VM's RAM descriptor may be handed out here, which is the daemon's default.
//! It takes a host with `/dev/udmabuf`; `scripts/test --nested` makes one.

use std::collections::BTreeSet;
use std::fs;
use std::os::linux::fs::MetadataExt as _;

use anyhow::{Context as _, Result, ensure};
use bufshare_protocol::types::Way;
use bufshare_tests::client::{Client, Export, Import, Map, Sight, Source, status};
use bufshare_tests::lab::has_udmabuf;
use bufshare_tests::pair::{Plan, Shared, Side};
use bufshare_tests::report::Skip;
use bufshare_tests::wait;

static VMS: Shared = Shared::new(|| {
    Plan::new()
        .both(|machine| machine.ram_fd = false)
        .needs(a_udmabuf_host)
});
const PAGE: u64 = 4096;
/// More than a VMM may hold mappings: only a udmabuf makes them one.
const PAGES: u64 = 700;
const SIZE: u64 = PAGES * PAGE;
const SCATTERED: Source = Source::Udmabuf { scattered: true };

fn a_udmabuf_host() -> Result<()> {
    if has_udmabuf() {
        return Ok(());
    }
    let reason = "this host has no usable /dev/udmabuf: scripts/test --nested runs it";
    Err(Skip::impossible(reason).into())
}

/// A buffer of scattered pages, filled with the pattern of `seed`.
fn offer(a: &mut Client, seed: u32) -> Result<(Map, Export)> {
    let buf = a.make(SCATTERED, SIZE)?;
    let map = a.map(buf)?;
    a.sync(buf, true, false)?;
    a.fill(map, seed)?;
    a.sync(buf, true, true)?;
    Ok((map, a.export(buf)?))
}

fn import(b: &mut Client, export: &Export) -> Result<(Import, Map)> {
    let import = b.import(&export.id)?;
    ensure!(import.way == Way::Udmabuf.to_wire(), "{import:?}");
    b.make_window(import.buf)?;
    let map = b.map(import.buf)?;
    Ok((import, map))
}

/// An open file of a process.
#[derive(Debug)]
struct Open {
    name: String,
    file: (u64, u64),
    size: u64,
}

fn open_files(pid: u32) -> Result<Vec<Open>> {
    let folder = format!("/proc/{pid}/fd");
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("reading {folder}"))? {
        let path = entry?.path();
        // One that was closed meanwhile is none.
        if let (Ok(name), Ok(meta)) = (fs::read_link(&path), fs::metadata(&path)) {
            let (name, file) = (
                name.to_string_lossy().into_owned(),
                (meta.st_dev(), meta.st_ino()),
            );
            files.push(Open {
                name,
                file,
                size: meta.st_size(),
            });
        }
    }
    Ok(files)
}

fn dmabufs(pid: u32) -> Result<Vec<u64>> {
    let files = open_files(pid)?;
    Ok(files
        .iter()
        .filter(|open| open.name.starts_with("/dmabuf"))
        .map(|open| open.size)
        .collect())
}

/// Memory files that a process has open or mapped.
fn memory(pid: u32) -> Result<BTreeSet<(u64, u64)>> {
    const MEMORY: &str = "/memfd:";
    let open = open_files(pid)?
        .into_iter()
        .filter(|open| open.name.starts_with(MEMORY))
        .map(|open| open.file);
    let mut files: BTreeSet<_> = open.collect();
    let path = format!("/proc/{pid}/maps");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    for line in text.lines().filter(|line| line.contains(MEMORY)) {
        files.insert(mapped_file(line).with_context(|| format!("{path}: odd line {line}"))?);
    }
    Ok(files)
}

/// Device and inode of a line like `7f00-7f01 rw-s 00000000 00:01 1034 /memfd:ram`.
fn mapped_file(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_whitespace().skip(3);
    let (major, minor) = words.next()?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    Some((
        libc::makedev(number(major)?, number(minor)?),
        words.next()?.parse().ok()?,
    ))
}

#[test]
fn scattered_pages_are_one_window_and_every_byte_is_right() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let max = u64::from(b.info()?.max_windows);
        ensure!(max < PAGES, "the test needs more pages than {max}");
        let (mine, export) = offer(&mut a, 1)?;
        let (import, theirs) = import(&mut b, &export)?;
        ensure!(
            import.buf.size == SIZE && import.write && import.windows == 1,
            "{import:?}"
        );
        ensure!(b.compare(theirs, 1)? == Sight::Pattern);

        b.sync(import.buf, true, false)?;
        b.fill(theirs, 2)?;
        b.sync(import.buf, true, true)?;
        ensure!(a.compare(mine, 2)? == Sight::Pattern);
        a.poke(mine, SIZE - 5, b"hello")?;
        ensure!(b.peek(theirs, SIZE - 5, 5)? == Some(b"hello".to_vec()));

        let snapshot = vms.daemon()?.snapshot()?;
        let extents = snapshot.buffers.first().map_or(0, |buffer| buffer.extents);
        ensure!(extents > max, "not scattered: {extents} pieces");
        let peer = snapshot.peer("b")?;
        let bytes = (peer.udmabuf_bytes, peer.direct_bytes, peer.copied_bytes);
        ensure!(peer.windows == 1 && bytes == (SIZE, 0, 0), "{peer:?}");
        Ok(())
    });
}

/// A buffer of the system heap, exported by one and read by the other.
fn heap(owner: &mut Client, user: &mut Client, seed: u32) -> Result<()> {
    let buf = owner.make(Source::Heap("system".to_owned()), 1 << 20)?;
    let mine = owner.map(buf)?;
    owner.fill(mine, seed)?;
    let export = owner.export(buf)?;
    let (import, theirs) = import(user, &export)?;
    ensure!(import.windows == 1, "{import:?}");
    ensure!(user.compare(theirs, seed)? == Sight::Pattern);
    Ok(())
}

#[test]
fn a_buffer_of_the_system_heap_is_shared_in_both_directions() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        heap(&mut a, &mut b, 3)?;
        heap(&mut b, &mut a, 4)
    });
}

#[test]
fn the_importers_vmm_gets_the_shared_pages_and_nothing_else_of_the_exporter() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (exporter, importer, daemon) = (vms.a.pid(), vms.b.pid(), vms.daemon()?.pid());
        let before = dmabufs(importer)?;
        ensure!(before.is_empty(), "{before:?}");
        let (_, export) = offer(&mut a, 5)?;
        let (_, theirs) = import(&mut b, &export)?;
        ensure!(b.compare(theirs, 5)? == Sight::Pattern);

        let shared = dmabufs(importer)?;
        ensure!(
            !shared.is_empty() && shared.iter().all(|size| *size == SIZE),
            "dma-bufs of {shared:?} bytes"
        );
        let (of_a, of_b, of_daemon) = (memory(exporter)?, memory(importer)?, memory(daemon)?);
        let common: Vec<_> = of_a.intersection(&of_b).collect();
        ensure!(common.is_empty(), "both VMMs have {common:?}");
        // It would have been found: the daemon does have the RAM of both.
        ensure!(
            of_a.intersection(&of_daemon).count() == 1,
            "{of_a:?} {of_daemon:?}"
        );
        ensure!(
            of_b.intersection(&of_daemon).count() == 1,
            "{of_b:?} {of_daemon:?}"
        );
        Ok(())
    });
}

#[test]
fn what_no_udmabuf_can_carry_is_refused_and_not_shared_by_descriptor() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        // The Linux driver's limit is 64 MiB.
        let buf = a.alloc((64 << 20) + PAGE)?;
        let export = a.export(buf)?;
        ensure!(status(b.import(&export.id))? == "NO_WAY");
        Ok(())
    });
}

#[test]
fn after_an_unexport_every_access_fails_and_nothing_stays_behind() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        b.info()?;
        let baseline = vms.settled()?;
        let importer = vms.b.pid();
        for seed in [6, 7] {
            let (mine, export) = offer(&mut a, seed)?;
            let (_, theirs) = import(&mut b, &export)?;
            ensure!(b.compare(theirs, seed)? == Sight::Pattern);
            ensure!(vms.daemon()?.holdings()?.windows == 1);

            a.close(export.number)?;
            b.wait_event_of("Revoked", &export.id)?;
            ensure!(b.compare(theirs, seed)? == Sight::Sigbus);
            ensure!(b.poke(theirs, SIZE - 8, b"written!")? == Sight::Sigbus);
            ensure!(status(b.import(&export.id))? == "NOT_FOUND");
            // The exporter's memory is its own.
            ensure!(a.compare(mine, seed)? == Sight::Pattern);
        }
        let what = "windows and descriptors to be as before";
        vms.daemon()?.settles(what, |now| {
            now.windows == 0 && now.descriptors <= baseline.descriptors
        })?;
        wait::until(
            "the importer's VMM to close the dma-buf",
            wait::COMMAND,
            || Ok(dmabufs(importer)?.is_empty().then_some(())),
        )
    });
}

/// Its VMM drops the windows by itself and notifies nobody: the kernel knows.
#[test]
fn an_importer_that_is_reset_is_known_to_have_unmapped() {
    VMS.with(|vms| {
        let mut a = vms.a.client()?;
        let mut b = vms.b.client()?;
        let (mine, export) = offer(&mut a, 8)?;
        let (_, theirs) = import(&mut b, &export)?;
        ensure!(b.compare(theirs, 8)? == Sight::Pattern);
        vms.b.reset()?;
        a.wait_event_of("Released", &export.id)?;
        vms.daemon()?
            .settles("the window to go", |now| now.windows == 0)?;
        ensure!(vms.b.status()? == "running", "its VMM did not survive");
        ensure!(a.compare(mine, 8)? == Sight::Pattern);
        // Only then may its driver start again.
        vms.b.kill()?;
        vms.restart(Side::B)?;
        let mut b = vms.b.client()?;
        let (_, theirs) = import(&mut b, &export)?;
        ensure!(b.compare(theirs, 8)? == Sight::Pattern);
        // The VMM lists its windows as memory each time its memory changes; they are no
        // memory that a guest could miss.
        let log = vms.daemon()?.log()?;
        ensure!(
            !log.contains("is left out"),
            "a warning of a window:\n{log}"
        );
        Ok(())
    });
}
