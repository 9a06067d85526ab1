// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest process may get wrong, or do on purpose
//!
//! Nothing of it does more than fail with its error, and all works afterwards.

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use core::mem::offset_of;

use anyhow::{Context as _, Result, ensure};
use bufshare_protocol::ioctl::{self, Alloc, Export, Import, MetaIo, Query, Table};
use bufshare_protocol::wire::{Buffer, Id, Image, Meta};
use bufshare_tests::client::{Client, Patch, Sight, bytes, id_bytes, refused, share_works, status};
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
            ioctl::INFO + 1,
            ioctl::ALLOC ^ (1 << 16),
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

#[test]
fn reserved_fields_and_unknown_flags_are_refused() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let size = (offset_of!(Alloc, size), &4096_u64.to_ne_bytes()[..]);
        let one = 1_u32.to_ne_bytes();
        let all = u32::MAX.to_ne_bytes();
        let id = (offset_of!(Import, id), &UNKNOWN[..]);
        let read = (offset_of!(Import, rights), &one[..]);
        let meta = offset_of!(Export, meta);
        let buf = a.alloc(SIZE)?;
        let fd = Patch::Descriptor {
            at: offset_of!(Export, dmabuf_fd),
            number: buf.number,
        };
        let cases: &[(&str, u32, Vec<u8>, &[Patch])] = &[
            (
                "ALLOC flags",
                ioctl::ALLOC,
                bytes(Alloc::SIZE, &[size, (offset_of!(Alloc, flags), &one)]),
                &[],
            ),
            (
                "ALLOC fd_flags",
                ioctl::ALLOC,
                bytes(Alloc::SIZE, &[size, (offset_of!(Alloc, fd_flags), &all)]),
                &[],
            ),
            (
                "IMPORT flags",
                ioctl::IMPORT,
                bytes(Import::SIZE, &[id, read, (offset_of!(Import, flags), &one)]),
                &[],
            ),
            (
                "IMPORT fd_flags",
                ioctl::IMPORT,
                bytes(
                    Import::SIZE,
                    &[id, read, (offset_of!(Import, fd_flags), &all)],
                ),
                &[],
            ),
            (
                "IMPORT reserved",
                ioctl::IMPORT,
                bytes(
                    Import::SIZE,
                    &[id, read, (offset_of!(Import, reserved), &one)],
                ),
                &[],
            ),
            (
                "IMPORT no rights",
                ioctl::IMPORT,
                bytes(Import::SIZE, &[id]),
                &[],
            ),
            (
                "IMPORT odd rights",
                ioctl::IMPORT,
                bytes(
                    Import::SIZE,
                    &[id, (offset_of!(Import, rights), &4_u32.to_ne_bytes())],
                ),
                &[],
            ),
            (
                "EXPORT flags",
                ioctl::EXPORT,
                bytes(Export::SIZE, &[(offset_of!(Export, flags), &one)]),
                std::slice::from_ref(&fd),
            ),
            (
                "EXPORT fd_flags",
                ioctl::EXPORT,
                bytes(Export::SIZE, &[(offset_of!(Export, fd_flags), &all)]),
                std::slice::from_ref(&fd),
            ),
            (
                "EXPORT meta reserved",
                ioctl::EXPORT,
                bytes(Export::SIZE, &[(meta + offset_of!(Meta, reserved), &one)]),
                std::slice::from_ref(&fd),
            ),
            (
                "EXPORT image without format",
                ioctl::EXPORT,
                bytes(
                    Export::SIZE,
                    &[(
                        meta + offset_of!(Meta, image) + offset_of!(Image, width),
                        &one,
                    )],
                ),
                std::slice::from_ref(&fd),
            ),
            (
                "EXPORT image without planes",
                ioctl::EXPORT,
                bytes(
                    Export::SIZE,
                    &[(
                        meta + offset_of!(Meta, image) + offset_of!(Image, fourcc),
                        &one,
                    )],
                ),
                std::slice::from_ref(&fd),
            ),
            (
                "EXPORT image of many planes",
                ioctl::EXPORT,
                bytes(
                    Export::SIZE,
                    &[
                        (
                            meta + offset_of!(Meta, image) + offset_of!(Image, fourcc),
                            &one,
                        ),
                        (
                            meta + offset_of!(Meta, image) + offset_of!(Image, num_planes),
                            &all,
                        ),
                    ],
                ),
                std::slice::from_ref(&fd),
            ),
            (
                "EXPORT name not UTF-8",
                ioctl::EXPORT,
                bytes(Export::SIZE, &[(meta, &[0xff; 4])]),
                std::slice::from_ref(&fd),
            ),
            (
                "SET_META reserved",
                ioctl::SET_META,
                bytes(MetaIo::SIZE, &[(offset_of!(MetaIo, reserved), &one)]),
                &[],
            ),
            (
                "GET_META reserved",
                ioctl::GET_META,
                bytes(MetaIo::SIZE, &[(offset_of!(MetaIo, reserved), &one)]),
                &[],
            ),
            (
                "QUERY reserved",
                ioctl::QUERY,
                bytes(Query::SIZE, &[(offset_of!(Query, reserved), &one)]),
                &[],
            ),
            (
                "QUERY more than an id",
                ioctl::QUERY,
                bytes(
                    Query::SIZE,
                    &[(offset_of!(Query, buffer) + offset_of!(Buffer, size), &one)],
                ),
                &[],
            ),
            ("LIST no room", ioctl::LIST, bytes(Table::SIZE, &[]), &[]),
            ("PEERS no room", ioctl::PEERS, bytes(Table::SIZE, &[]), &[]),
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
        let none = bytes(Export::SIZE, &[(dmabuf, &minus)]);
        fails(
            &mut a,
            "EXPORT of no descriptor",
            ioctl::EXPORT,
            &none,
            &[],
            &[libc::EBADF],
        )?;
        // Standard input is a pipe.
        let pipe = bytes(Export::SIZE, &[]);
        fails(
            &mut a,
            "EXPORT of a pipe",
            ioctl::EXPORT,
            &pipe,
            &[],
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
        let blob_len = offset_of!(Export, meta) + offset_of!(Meta, blob_len);
        for address in [wild, kernel] {
            let acl = bytes(
                Export::SIZE,
                &[
                    (offset_of!(Export, num_acl), &one),
                    (offset_of!(Export, acl), &address),
                ],
            );
            fails(
                &mut a,
                "EXPORT with a wild list",
                ioctl::EXPORT,
                &acl,
                std::slice::from_ref(&fd),
                &[libc::EFAULT],
            )?;
            let blob = bytes(
                Export::SIZE,
                &[(blob_len, &one), (offset_of!(Export, blob), &address)],
            );
            fails(
                &mut a,
                "EXPORT with a wild blob",
                ioctl::EXPORT,
                &blob,
                std::slice::from_ref(&fd),
                &[libc::EFAULT],
            )?;
            let table = bytes(
                Table::SIZE,
                &[
                    (offset_of!(Table, count), &one),
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
        let acl = bytes(Export::SIZE, &[(offset_of!(Export, num_acl), &many)]);
        let list = Patch::Address {
            at: offset_of!(Export, acl),
            of: vec![0; 17 * 16],
        };
        fails(
            &mut a,
            "EXPORT with a long list",
            ioctl::EXPORT,
            &acl,
            &[fd.clone(), list],
            &[libc::EINVAL],
        )?;
        let long = 4097_u32.to_ne_bytes();
        let blob = bytes(Export::SIZE, &[(blob_len, &long)]);
        let data = Patch::Address {
            at: offset_of!(Export, blob),
            of: vec![0; 4097],
        };
        fails(
            &mut a,
            "EXPORT with a long blob",
            ioctl::EXPORT,
            &blob,
            &[fd, data],
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
            let meta = bytes(MetaIo::SIZE, &[(offset_of!(MetaIo, id), &id)]);
            fails(
                &mut a,
                "GET_META",
                ioctl::GET_META,
                &meta,
                &[],
                &[libc::ENOENT],
            )?;
            fails(
                &mut a,
                "SET_META",
                ioctl::SET_META,
                &meta,
                &[],
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
        // b's own buffer: a may import it, but not change or export it.
        let (_, _, export) = b.offer(SIZE, 3)?;
        let id = id_bytes(&export.id)?;
        let meta = bytes(MetaIo::SIZE, &[(offset_of!(MetaIo, id), &id)]);
        fails(
            &mut a,
            "SET_META of another's",
            ioctl::SET_META,
            &meta,
            &[],
            &[libc::ENOENT],
        )?;
        share_works(&mut a, &mut b, 4)
    });
}

#[test]
fn a_short_read_is_refused() {
    VMS.with(|vms| {
        let mut a = vms.a.client()?;
        for room in [0, 1, 63] {
            let refusal = refused(a.read_device(room))?;
            ensure!(refusal.errno == libc::EINVAL, "room for {room}: {refusal}");
        }
        // Nothing to read, and not to wait for.
        let refusal = refused(a.read_device(64))?;
        ensure!(refusal.errno == libc::EAGAIN, "{refusal}");
        Ok(())
    });
}

#[test]
fn an_export_ends_once() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (buf, _, export) = a.offer(SIZE, 5)?;
        // The same buffer twice at once is two exports.
        let again = a.export(buf)?;
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
        let buf = a.alloc(4096)?;
        let mut exports = Vec::new();
        let refusal = loop {
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
