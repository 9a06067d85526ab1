// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Handles: an open file of `/dev/bufshare` holds imports

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use core::mem::offset_of;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bufshare_protocol::ioctl::{self, Close, HandleToFd, Import};
use bufshare_tests::client::{Buf, Client, Sight, bytes, id_bytes, refused, share_works};
use bufshare_tests::driver::{bind, requests, unbind};
use bufshare_tests::pair::{Plan, Shared, TwoVms};

static VMS: Shared = Shared::new(Plan::new);
const SIZE: u64 = 64 << 10;
const LIMIT: Duration = Duration::from_secs(20);

fn number(data: &[u8], at: usize) -> Result<u32> {
    let field = data.get(at..at + 4).context("a short structure")?;
    Ok(u32::from_ne_bytes(field.try_into()?))
}

/// IMPORT to read and write with these flags: the error number, the handle and the descriptor.
fn import(b: &mut Client, id: &str, flags: u32) -> Result<(i32, u32, i32)> {
    let data = bytes(
        Import::SIZE,
        &[
            (offset_of!(Import, id), &id_bytes(id)?),
            (offset_of!(Import, rights), &3_u32.to_ne_bytes()),
            (offset_of!(Import, fd_flags), &libc::O_RDWR.to_ne_bytes()),
            (offset_of!(Import, flags), &flags.to_ne_bytes()),
        ],
    );
    let (errno, data) = b.raw(ioctl::IMPORT, &data, &[])?;
    let handle = number(&data, offset_of!(Import, handle))?;
    let fd = number(&data, offset_of!(Import, fd))?;
    Ok((errno, handle, fd.cast_signed()))
}

/// IMPORT that gives a handle.
fn import_handle(b: &mut Client, id: &str) -> Result<u32> {
    let (errno, handle, fd) = import(b, id, ioctl::IMPORT_HANDLE)?;
    ensure!(errno == 0, "IMPORT: error {errno}");
    ensure!(handle != 0 && fd == -1, "handle {handle}, descriptor {fd}");
    Ok(handle)
}

/// `HANDLE_TO_FD`: the error number and the descriptor.
fn handle_to_fd(b: &mut Client, handle: u32) -> Result<(i32, i32)> {
    let data = bytes(
        HandleToFd::SIZE,
        &[
            (offset_of!(HandleToFd, handle), &handle.to_ne_bytes()),
            (
                offset_of!(HandleToFd, fd_flags),
                &libc::O_CLOEXEC.to_ne_bytes(),
            ),
        ],
    );
    let (errno, data) = b.raw(ioctl::HANDLE_TO_FD, &data, &[])?;
    let fd = number(&data, offset_of!(HandleToFd, fd))?;
    Ok((errno, fd.cast_signed()))
}

/// A buffer of a handle.
fn buffer(b: &mut Client, handle: u32) -> Result<Buf> {
    let (errno, fd) = handle_to_fd(b, handle)?;
    ensure!(errno == 0, "HANDLE_TO_FD: error {errno}");
    b.take(fd)
}

/// CLOSE: the error number.
fn close(b: &mut Client, handle: u32) -> Result<i32> {
    let data = bytes(
        Close::SIZE,
        &[(offset_of!(Close, handle), &handle.to_ne_bytes())],
    );
    Ok(b.raw(ioctl::CLOSE, &data, &[])?.0)
}

fn ends_well(b: &mut Client, handle: u32) -> Result<()> {
    let errno = close(b, handle)?;
    ensure!(errno == 0, "CLOSE: error {errno}");
    Ok(())
}

/// Neither call knows such a handle.
fn unknown(b: &mut Client, handle: u32) -> Result<()> {
    let (to_fd, close) = (handle_to_fd(b, handle)?.0, close(b, handle)?);
    ensure!(to_fd == libc::ENOENT, "HANDLE_TO_FD of {handle}: {to_fd}");
    ensure!(close == libc::ENOENT, "CLOSE of {handle}: {close}");
    Ok(())
}

fn attachments_become(vms: &mut TwoVms, count: u64) -> Result<()> {
    let what = format!("{count} attachments");
    vms.daemon()?
        .settles(&what, |now| now.attachments == count)?;
    Ok(())
}

#[test]
fn an_import_that_a_handle_holds_keeps_its_window_when_its_descriptor_is_closed() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 1)?;
        let handle = import_handle(&mut b, &export.id)?;
        let first = buffer(&mut b, handle)?;
        ensure!(first.size == SIZE, "{first:?}");
        let map = b.map(first)?;
        ensure!(b.compare(map, 1)? == Sight::Pattern);
        b.close(map.number)?;
        b.close(first.number)?;

        let before = requests(&vms.b)?;
        let again = buffer(&mut b, handle)?;
        let map = b.map(again)?;
        ensure!(b.compare(map, 1)? == Sight::Pattern);
        ensure!(requests(&vms.b)? == before, "the host was asked again");
        attachments_become(vms, 1)
    });
}

#[test]
fn close_detaches_an_import_that_has_no_descriptor() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 2)?;
        let handle = import_handle(&mut b, &export.id)?;
        attachments_become(vms, 1)?;
        ensure!(a.query(&export.id)?.attachments == 1);
        ends_well(&mut b, handle)?;
        attachments_become(vms, 0)?;
        ensure!(a.query(&export.id)?.attachments == 0);
        unknown(&mut b, handle)?;
        share_works(&mut a, &mut b, 20)
    });
}

#[test]
fn a_descriptor_outlives_its_handle() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 3)?;
        let handle = import_handle(&mut b, &export.id)?;
        let buf = buffer(&mut b, handle)?;
        ends_well(&mut b, handle)?;
        let map = b.map(buf)?;
        ensure!(b.compare(map, 3)? == Sight::Pattern);
        attachments_become(vms, 1)?;
        b.close(map.number)?;
        b.close(buf.number)?;
        attachments_become(vms, 0)
    });
}

#[test]
fn the_end_of_an_open_file_closes_its_handles() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 4)?;
        import_handle(&mut b, &export.id)?;
        import_handle(&mut b, &export.id)?;
        attachments_become(vms, 1)?;
        b.kill()?;
        attachments_become(vms, 0)
    });
}

#[test]
fn handles_are_of_one_open_file_and_others_do_not_know_them() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let mut other = vms.b.client()?;
        let (_, _, export) = a.offer(SIZE, 5)?;
        let handle = import_handle(&mut b, &export.id)?;
        unknown(&mut other, handle)?;
        for number in [0, handle + 1, ioctl::MAX_HANDLES + 1, u32::MAX] {
            unknown(&mut b, number)?;
        }
        ends_well(&mut b, handle)?;
        unknown(&mut b, handle)
    });
}

#[test]
fn an_import_without_the_flag_gives_a_descriptor_and_no_handle() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 6)?;
        let (errno, handle, fd) = import(&mut b, &export.id, 0)?;
        ensure!((errno, handle) == (0, 0), "error {errno}, handle {handle}");
        let buf = b.take(fd)?;
        let map = b.map(buf)?;
        ensure!(b.compare(map, 6)? == Sight::Pattern);
        Ok(())
    });
}

/// What was not imported leaves no handle: the numbers are not used up.
#[test]
fn a_refused_import_takes_no_handle() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 7)?;
        let nobodys = "0123456789abcdef0123456789abcdef";
        let (errno, handle, _) = import(&mut b, nobodys, ioctl::IMPORT_HANDLE)?;
        ensure!((errno, handle) == (libc::ENOENT, 0), "{errno}, {handle}");
        let handle = import_handle(&mut b, &export.id)?;
        ensure!(handle == 1, "it is {handle}");
        Ok(())
    });
}

#[test]
fn a_file_has_no_more_handles_than_its_limit_and_imports_nothing_beyond() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 8)?;
        let last = (0..ioctl::MAX_HANDLES).try_fold(0, |_, _| import_handle(&mut b, &export.id))?;
        let (errno, handle, _) = import(&mut b, &export.id, ioctl::IMPORT_HANDLE)?;
        ensure!((errno, handle) == (libc::EMFILE, 0), "{errno}, {handle}");
        attachments_become(vms, 1)?;
        // Another file has its own.
        let mut other = vms.b.client()?;
        import_handle(&mut other, &export.id)?;
        ends_well(&mut b, last)?;
        import_handle(&mut b, &export.id)?;
        drop((b, other));
        attachments_become(vms, 0)
    });
}

#[test]
fn a_handle_of_a_revoked_buffer_gives_a_descriptor_and_is_closed() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        b.info()?;
        let (_, _, export) = a.offer(SIZE, 9)?;
        let handle = import_handle(&mut b, &export.id)?;
        a.close(export.number)?;
        b.wait_event_of("Revoked", &export.id)?;
        let buf = buffer(&mut b, handle)?;
        let refusal = refused(b.sync(buf, false, false))?;
        ensure!(refusal.errno == libc::ENODEV, "{refusal}");
        b.close(buf.number)?;
        ends_well(&mut b, handle)?;
        attachments_become(vms, 0)?;
        share_works(&mut a, &mut b, 90)
    });
}

#[test]
fn handles_outlive_an_unbind_and_are_closed_then() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(SIZE, 10)?;
        let used = import_handle(&mut b, &export.id)?;
        let left = import_handle(&mut b, &export.id)?;
        let map = buffer(&mut b, used)?;
        let map = b.map(map)?;
        b.watch(map, 10)?;
        let device = unbind(&vms.b)?;
        b.wait_sigbus(map, LIMIT)?;
        let (errno, handle, _) = import(&mut b, &export.id, ioctl::IMPORT_HANDLE)?;
        ensure!((errno, handle) == (libc::ENODEV, 0), "{errno}, {handle}");
        let buf = buffer(&mut b, left)?;
        let refusal = refused(b.sync(buf, false, false))?;
        ensure!(refusal.errno == libc::ENODEV, "{refusal}");
        ends_well(&mut b, used)?;
        unknown(&mut b, used)?;
        // The other is closed with its file, while another binding is there.
        bind(&vms.b, &device)?;
        let mut new = vms.b.client()?;
        unknown(&mut new, left)?;
        drop(b);
        share_works(&mut a, &mut new, 100)
    });
}
