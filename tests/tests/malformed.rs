// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest process may get wrong, or do on purpose
//!
//! Nothing of it does more than fail with its error, and all works afterwards.

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use core::mem::offset_of;

use anyhow::{Context as _, Result, ensure};
use bufshare_protocol::ioctl::{
    self, Access, Alloc, Close, Export, HandleToFd, Import, MetaIo, Peer, Query, Table,
};
use bufshare_protocol::wire::{Buffer, Id, Image, Meta};
use bufshare_tests::client::{Client, Patch, Sight, bytes, id_bytes, refused, share_works, status};
use bufshare_tests::driver::{bind, unbind};
use bufshare_tests::pair::{Plan, Shared};

static VMS: Shared = Shared::new(Plan::new);
const SIZE: u64 = 1 << 20;
const UNKNOWN: [u8; 16] = [0xa5; 16];

/// One ioctl that has to fail with one of these.
fn fails(
    client: &mut Client,
    what: &str,
    request: u32,
    data: &[u8],
    patches: &[Patch],
    wanted: &[i32],
) -> Result<()> {
    let (errno, _) = client
        .raw(request, data, patches)
        .with_context(|| what.to_owned())?;
    ensure!(
        wanted.contains(&errno),
        "{what}: errno {errno}, not {wanted:?}"
    );
    Ok(())
}

#[test]
fn unknown_requests_are_no_requests() {
    VMS.with(|vms| {
        let mut a = vms.a.client()?;
        for request in [
            0,
            0xb5,
            0xc004_b5ff,
            ioctl::INFO + 0x40,
            ioctl::ALLOC ^ (1 << 8),
            ioctl::EXPORT ^ (3 << 30),
        ] {
            fails(
                &mut a,
                &format!("{request:#x}"),
                request,
                &[0; 256],
                &[],
                &[libc::ENOTTY],
            )?;
        }
        Ok(())
    });
}

/// An EXPORT with these fields, to be sent with its [`metadata`].
fn export_of(fields: &[(usize, &[u8])]) -> Result<Vec<u8>> {
    let meta_size = u32::try_from(Meta::SIZE)?.to_ne_bytes();
    let access_size = u32::try_from(Access::SIZE)?.to_ne_bytes();
    let sizes = [
        (offset_of!(Export, meta_size), &meta_size[..]),
        (offset_of!(Export, access_size), &access_size),
    ];
    Ok(bytes(Export::SIZE, &[&sizes, fields].concat()))
}

/// Metadata with these fields.
fn metadata(fields: &[(usize, &[u8])]) -> Patch {
    Patch::Address {
        at: offset_of!(Export, meta),
        of: bytes(Meta::SIZE, fields),
    }
}

/// A SET_META or GET_META with these fields, to be sent with its [`record`].
fn meta_io(fields: &[(usize, &[u8])]) -> Result<Vec<u8>> {
    let size = u32::try_from(Meta::SIZE)?.to_ne_bytes();
    let size = [(offset_of!(MetaIo, meta_size), &size[..])];
    Ok(bytes(MetaIo::SIZE, &[&size, fields].concat()))
}

fn record() -> Patch {
    Patch::Address {
        at: offset_of!(MetaIo, meta),
        of: bytes(Meta::SIZE, &[]),
    }
}

/// The number of the same request with a structure of so many bytes.
fn sized(request: u32, size: usize) -> Result<u32> {
    Ok(request & !(0x3fff << 16) | u32::try_from(size)? << 16)
}

#[test]
fn programs_with_longer_structures_are_served() {
    VMS.with(|vms| {
        let mut a = vms.a.client()?;
        let mut whole = bytes(Alloc::SIZE, &[]);
        whole[..8].copy_from_slice(&4096_u64.to_ne_bytes());
        whole[8..12].copy_from_slice(&libc::O_RDWR.to_ne_bytes());
        // Of a program that knows more: what it does not use is zero.
        for more in [1, 8, 4000] {
            let mut data = whole.clone();
            data.resize(Alloc::SIZE + more, 0);
            let longer = sized(ioctl::ALLOC, data.len())?;
            let (errno, answer) = a.raw(longer, &data, &[])?;
            ensure!(errno == 0, "{more} bytes more: errno {errno}");
            ensure!(answer.len() == data.len());
            ensure!(answer[Alloc::SIZE..].iter().all(|byte| *byte == 0));
            *data.last_mut().context("a byte")? = 1;
            fails(
                &mut a,
                "ALLOC of a program that asks for more",
                longer,
                &data,
                &[],
                &[libc::E2BIG],
            )?;
        }
        // Shorter than ever, a program would not learn what it was given.
        for size in [0, 1, offset_of!(Alloc, fd_flags), Alloc::SIZE - 1] {
            fails(
                &mut a,
                &format!("ALLOC of {size} bytes"),
                sized(ioctl::ALLOC, size)?,
                &whole[..size],
                &[],
                &[libc::EINVAL],
            )?;
        }
        Ok(())
    });
}

#[test]
fn entries_of_tables_have_the_size_that_a_program_says() {
    VMS.with(|vms| {
        let mut a = vms.a.client()?;
        let mut first = |entry_size: usize| -> Result<Vec<u8>> {
            let one = 1_u32.to_ne_bytes();
            let size = u32::try_from(entry_size)?.to_ne_bytes();
            let table = bytes(
                Table::SIZE,
                &[
                    (offset_of!(Table, count), &one),
                    (offset_of!(Table, entry_size), &size),
                ],
            );
            let entries = Patch::Address {
                at: offset_of!(Table, entries),
                of: vec![0xee; entry_size + 8],
            };
            let (errno, data) = a.raw(ioctl::PEERS, &table, &[entries])?;
            ensure!(errno == 0, "entries of {entry_size} bytes: errno {errno}");
            Ok(data)
        };
        for size in [8, Peer::SIZE, Peer::SIZE + 8, 1024] {
            let table = first(size)?;
            ensure!(table[offset_of!(Table, count)] == 1, "entries of {size}");
        }
        for size in [0, 1, 12, 1032, u32::MAX] {
            let one = 1_u32.to_ne_bytes();
            let table = bytes(
                Table::SIZE,
                &[
                    (offset_of!(Table, count), &one),
                    (offset_of!(Table, entry_size), &size.to_ne_bytes()),
                ],
            );
            let what = format!("PEERS with entries of {size} bytes");
            fails(&mut a, &what, ioctl::PEERS, &table, &[], &[libc::EINVAL])?;
        }
        Ok(())
    });
}

#[test]
fn reserved_fields_and_unknown_flags_are_refused() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let size = (offset_of!(Alloc, size), &4096_u64.to_ne_bytes()[..]);
        let one = 1_u32.to_ne_bytes();
        let all = u32::MAX.to_ne_bytes();
        let cloexec = libc::O_CLOEXEC.to_ne_bytes();
        let id = (offset_of!(Import, id), &UNKNOWN[..]);
        let read = (offset_of!(Import, rights), &one[..]);
        let eight = 8_u32.to_ne_bytes();
        let entry = (offset_of!(Table, entry_size), &eight[..]);
        let image = offset_of!(Meta, image);
        let buf = a.alloc(SIZE)?;
        let fd = Patch::Descriptor {
            at: offset_of!(Export, dmabuf_fd),
            number: buf.number,
        };
        let cases: &[(&str, u32, Vec<u8>, Vec<Patch>)] = &[
            (
                "ALLOC flags",
                ioctl::ALLOC,
                bytes(Alloc::SIZE, &[size, (offset_of!(Alloc, flags), &one)]),
                vec![],
            ),
            (
                "ALLOC fd_flags",
                ioctl::ALLOC,
                bytes(Alloc::SIZE, &[size, (offset_of!(Alloc, fd_flags), &all)]),
                vec![],
            ),
            (
                "IMPORT flags",
                ioctl::IMPORT,
                bytes(
                    Import::SIZE,
                    &[id, read, (offset_of!(Import, flags), &2_u32.to_ne_bytes())],
                ),
                vec![],
            ),
            (
                "IMPORT fd_flags",
                ioctl::IMPORT,
                bytes(
                    Import::SIZE,
                    &[id, read, (offset_of!(Import, fd_flags), &all)],
                ),
                vec![],
            ),
            (
                "IMPORT handle",
                ioctl::IMPORT,
                bytes(
                    Import::SIZE,
                    &[id, read, (offset_of!(Import, handle), &one)],
                ),
                vec![],
            ),
            (
                "IMPORT of a handle, and flags of a descriptor",
                ioctl::IMPORT,
                bytes(
                    Import::SIZE,
                    &[
                        id,
                        read,
                        (offset_of!(Import, flags), &one),
                        (offset_of!(Import, fd_flags), &cloexec),
                    ],
                ),
                vec![],
            ),
            (
                "HANDLE_TO_FD fd_flags",
                ioctl::HANDLE_TO_FD,
                bytes(
                    HandleToFd::SIZE,
                    &[(offset_of!(HandleToFd, fd_flags), &2_u32.to_ne_bytes())],
                ),
                vec![],
            ),
            (
                "HANDLE_TO_FD reserved",
                ioctl::HANDLE_TO_FD,
                bytes(
                    HandleToFd::SIZE,
                    &[(offset_of!(HandleToFd, reserved), &one)],
                ),
                vec![],
            ),
            (
                "CLOSE reserved",
                ioctl::CLOSE,
                bytes(Close::SIZE, &[(offset_of!(Close, reserved), &one)]),
                vec![],
            ),
            (
                "IMPORT no rights",
                ioctl::IMPORT,
                bytes(Import::SIZE, &[id]),
                vec![],
            ),
            (
                "IMPORT odd rights",
                ioctl::IMPORT,
                bytes(
                    Import::SIZE,
                    &[id, (offset_of!(Import, rights), &4_u32.to_ne_bytes())],
                ),
                vec![],
            ),
            (
                "EXPORT flags",
                ioctl::EXPORT,
                export_of(&[(offset_of!(Export, flags), &one)])?,
                vec![fd.clone(), metadata(&[])],
            ),
            (
                "EXPORT fd_flags",
                ioctl::EXPORT,
                export_of(&[(offset_of!(Export, fd_flags), &all)])?,
                vec![fd.clone(), metadata(&[])],
            ),
            (
                "EXPORT meta must_know",
                ioctl::EXPORT,
                export_of(&[])?,
                vec![
                    fd.clone(),
                    metadata(&[(offset_of!(Meta, must_know), &2_u32.to_ne_bytes())]),
                ],
            ),
            (
                "EXPORT without metadata",
                ioctl::EXPORT,
                export_of(&[(offset_of!(Export, meta_size), &[0; 4])])?,
                vec![fd.clone(), metadata(&[])],
            ),
            (
                "EXPORT image without format",
                ioctl::EXPORT,
                export_of(&[])?,
                vec![
                    fd.clone(),
                    metadata(&[(image + offset_of!(Image, width), &one)]),
                ],
            ),
            (
                "EXPORT image without planes",
                ioctl::EXPORT,
                export_of(&[])?,
                vec![
                    fd.clone(),
                    metadata(&[(image + offset_of!(Image, fourcc), &one)]),
                ],
            ),
            (
                "EXPORT image of many planes",
                ioctl::EXPORT,
                export_of(&[])?,
                vec![
                    fd.clone(),
                    metadata(&[
                        (image + offset_of!(Image, fourcc), &one),
                        (image + offset_of!(Image, num_planes), &all),
                    ]),
                ],
            ),
            (
                "EXPORT name not UTF-8",
                ioctl::EXPORT,
                export_of(&[])?,
                vec![fd.clone(), metadata(&[(0, &[0xff; 4])])],
            ),
            (
                "GET_META by descriptor",
                ioctl::GET_META,
                bytes(MetaIo::SIZE, &[(offset_of!(MetaIo, export_fd), &one)]),
                vec![],
            ),
            (
                "QUERY reserved",
                ioctl::QUERY,
                bytes(Query::SIZE, &[(offset_of!(Query, reserved), &one)]),
                vec![],
            ),
            (
                "LIST no room",
                ioctl::LIST,
                bytes(Table::SIZE, &[entry]),
                vec![],
            ),
            (
                "PEERS no room",
                ioctl::PEERS,
                bytes(Table::SIZE, &[entry]),
                vec![],
            ),
            (
                "PEERS reserved",
                ioctl::PEERS,
                bytes(
                    Table::SIZE,
                    &[
                        entry,
                        (offset_of!(Table, count), &one),
                        (offset_of!(Table, reserved), &one),
                    ],
                ),
                vec![],
            ),
        ];
        for (what, request, data, patches) in cases {
            fails(&mut a, what, *request, data, patches, &[libc::EINVAL])?;
        }
        share_works(&mut a, &mut b, 1)
    });
}

#[test]
fn sizes_out_of_range_are_refused() {
    VMS.with(|vms| {
        let mut a = vms.a.client()?;
        for size in [0, 1 << 40, 1 << 62, u64::MAX - 4095, u64::MAX] {
            let data = bytes(
                Alloc::SIZE,
                &[(offset_of!(Alloc, size), &size.to_ne_bytes())],
            );
            let wanted = if size == 0 { libc::EINVAL } else { libc::EFBIG };
            fails(
                &mut a,
                &format!("ALLOC of {size:#x}"),
                ioctl::ALLOC,
                &data,
                &[],
                &[wanted],
            )?;
        }
        Ok(())
    });
}

#[test]
fn bad_descriptors_and_bad_addresses_are_refused() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let minus = (-1_i32).to_ne_bytes();
        let dmabuf = offset_of!(Export, dmabuf_fd);
        let none = export_of(&[(dmabuf, &minus)])?;
        fails(
            &mut a,
            "EXPORT of no descriptor",
            ioctl::EXPORT,
            &none,
            &[metadata(&[])],
            &[libc::EBADF],
        )?;
        // Standard input is a pipe.
        let pipe = export_of(&[])?;
        fails(
            &mut a,
            "EXPORT of a pipe",
            ioctl::EXPORT,
            &pipe,
            &[metadata(&[])],
            &[libc::EINVAL],
        )?;

        let buf = a.alloc(SIZE)?;
        let fd = Patch::Descriptor {
            at: dmabuf,
            number: buf.number,
        };
        let wild = 0xdead_0000_u64.to_ne_bytes();
        let kernel = 0xffff_8880_0000_0000_u64.to_ne_bytes();
        let one = 1_u32.to_ne_bytes();
        let eight = 8_u32.to_ne_bytes();
        let blob_len = offset_of!(Meta, blob_len);
        for address in [wild, kernel] {
            let acl = export_of(&[
                (offset_of!(Export, num_acl), &one),
                (offset_of!(Export, acl), &address),
            ])?;
            fails(
                &mut a,
                "EXPORT with a wild list",
                ioctl::EXPORT,
                &acl,
                &[fd.clone(), metadata(&[])],
                &[libc::EFAULT],
            )?;
            let blob = export_of(&[(offset_of!(Export, blob), &address)])?;
            let meta = export_of(&[(offset_of!(Export, meta), &address)])?;
            fails(
                &mut a,
                "EXPORT with wild metadata",
                ioctl::EXPORT,
                &meta,
                std::slice::from_ref(&fd),
                &[libc::EFAULT],
            )?;
            fails(
                &mut a,
                "EXPORT with a wild blob",
                ioctl::EXPORT,
                &blob,
                &[fd.clone(), metadata(&[(blob_len, &one)])],
                &[libc::EFAULT],
            )?;
            let table = bytes(
                Table::SIZE,
                &[
                    (offset_of!(Table, count), &one),
                    (offset_of!(Table, entry_size), &eight),
                    (offset_of!(Table, entries), &address),
                ],
            );
            fails(
                &mut a,
                "PEERS to a wild place",
                ioctl::PEERS,
                &table,
                &[],
                &[libc::EFAULT],
            )?;
        }
        let many = 17_u32.to_ne_bytes();
        let acl = export_of(&[(offset_of!(Export, num_acl), &many)])?;
        let list = Patch::Address {
            at: offset_of!(Export, acl),
            of: vec![0; 17 * 16],
        };
        fails(
            &mut a,
            "EXPORT with a long list",
            ioctl::EXPORT,
            &acl,
            &[fd.clone(), metadata(&[]), list],
            &[libc::EINVAL],
        )?;
        let long = 4097_u32.to_ne_bytes();
        let blob = export_of(&[])?;
        let data = Patch::Address {
            at: offset_of!(Export, blob),
            of: vec![0; 4097],
        };
        fails(
            &mut a,
            "EXPORT with a long blob",
            ioctl::EXPORT,
            &blob,
            &[fd, metadata(&[(blob_len, &long)]), data],
            &[libc::EMSGSIZE],
        )?;
        share_works(&mut a, &mut b, 2)
    });
}

#[test]
fn names_that_are_guessed_or_anothers_are_unknown() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let one = 1_u32.to_ne_bytes();
        let rights = (offset_of!(Import, rights), &one[..]);
        for id in [[0; 16], UNKNOWN, [0xff; 16]] {
            let import = bytes(Import::SIZE, &[(offset_of!(Import, id), &id), rights]);
            fails(
                &mut a,
                "IMPORT",
                ioctl::IMPORT,
                &import,
                &[],
                &[libc::ENOENT],
            )?;
            let meta = meta_io(&[(offset_of!(MetaIo, id), &id)])?;
            fails(
                &mut a,
                "GET_META",
                ioctl::GET_META,
                &meta,
                &[record()],
                &[libc::ENOENT],
            )?;
            let query = bytes(
                Query::SIZE,
                &[(
                    offset_of!(Query, buffer) + offset_of!(Buffer, id) + offset_of!(Id, b),
                    &id,
                )],
            );
            fails(&mut a, "QUERY", ioctl::QUERY, &query, &[], &[libc::ENOENT])?;
        }
        share_works(&mut a, &mut b, 4)
    });
}

#[test]
fn metadata_is_changed_by_whoever_has_the_export() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (buf, _, export) = a.offer(SIZE, 3)?;
        let at = offset_of!(MetaIo, export_fd);
        let by = |number| Patch::Descriptor { at, number };
        let data = meta_io(&[])?;
        let (errno, answer) = a.raw(ioctl::SET_META, &data, &[record(), by(export.number)])?;
        ensure!(errno == 0, "errno {errno}");
        ensure!(answer.starts_with(&id_bytes(&export.id)?), "{answer:x?}");
        let cases = [
            (
                "no descriptor",
                meta_io(&[(at, &(-1_i32).to_ne_bytes())])?,
                vec![record()],
                libc::EBADF,
            ),
            // Standard input is a pipe.
            ("a pipe", data.clone(), vec![record()], libc::EINVAL),
            (
                "the buffer",
                data.clone(),
                vec![record(), by(buf.number)],
                libc::EINVAL,
            ),
        ];
        for (what, data, patches, wanted) in cases {
            let what = format!("SET_META by {what}");
            fails(&mut a, &what, ioctl::SET_META, &data, &patches, &[wanted])?;
        }
        // Of an export that has ended while its file is there.
        let device = unbind(&vms.a)?;
        bind(&vms.a, &device)?;
        let mut again = vms.a.client()?;
        fails(
            &mut a,
            "SET_META through a device that is gone",
            ioctl::SET_META,
            &data,
            &[record(), by(export.number)],
            &[libc::ENODEV],
        )?;
        drop(a);
        share_works(&mut again, &mut b, 5)
    });
}

#[test]
fn a_short_read_is_refused() {
    VMS.with(|vms| {
        let mut a = vms.a.client()?;
        for room in [0, 1, 71] {
            let refusal = refused(a.read_device(room))?;
            ensure!(refusal.errno == libc::EINVAL, "room for {room}: {refusal}");
        }
        // Nothing to read, and not to wait for.
        let refusal = refused(a.read_device(72))?;
        ensure!(refusal.errno == libc::EAGAIN, "{refusal}");
        Ok(())
    });
}

#[test]
fn an_export_ends_once() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (buf, _, export) = a.offer(SIZE, 5)?;
        // The same memory for others, though these are as many, is another export.
        let again = a.export_to(buf, &[("b", true)], "", b"")?;
        ensure!(again.id != export.id);
        a.close(export.number)?;
        ensure!(status(b.import(&export.id))? == "NOT_FOUND");
        let import = b.import(&again.id)?;
        let map = b.map(import.buf)?;
        ensure!(
            b.compare(map, 5)? == Sight::Pattern,
            "the end of one export ended the other"
        );
        Ok(())
    });
}

#[test]
fn more_exports_than_the_limit_are_refused() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let max = a.info()?.max_buffers;
        let mut exports = Vec::new();
        let refusal = loop {
            let buf = a.alloc(4096)?;
            match a.export(buf) {
                Ok(export) => exports.push(export),
                Err(error) => break refused::<()>(Err(error))?,
            }
            ensure!(
                exports.len() <= usize::try_from(max)?,
                "more than {max} exports"
            );
        };
        ensure!(refusal.status.as_deref() == Some("TOO_MANY"), "{refusal}");
        ensure!(
            exports.len() == usize::try_from(max)?,
            "refused after {} of {max}",
            exports.len()
        );
        ensure!(b.list()?.len() == exports.len());
        drop(a);
        vms.settled()?;
        let mut a = vms.a.client()?;
        share_works(&mut a, &mut b, 6)
    });
}
