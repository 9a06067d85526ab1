// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams that one virtual machine offers and others join.

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use core::mem::offset_of;

use anyhow::{Context as _, Result, ensure};
use bufshare_protocol::device::CAP_MAP;
use bufshare_protocol::ioctl::{self, Access, Close, Export, HandleToFd, Import, MetaIo, Quiesce};
use bufshare_protocol::request::{QUIESCE_ACTIVE, QUIESCE_QUIESCED};
use bufshare_protocol::types::{Way, Ways};
use bufshare_protocol::wire::Meta;
use bufshare_tests::channel::errno_of;
use bufshare_tests::client::{Patch, bytes, id_bytes, refused};
use bufshare_tests::driver::{unbind, unload_when_free};
use bufshare_tests::pair::{DRIVER, Plan, Shared};

static VMS: Shared = Shared::new(Plan::new);
/// A guest of x86-64 has no use for a region that is no multiple of 2 MiB.
static WITHOUT_REGION: Shared = Shared::new(|| Plan::new().options(&["--shm-size", "1M"]));

const SIZE: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// SPEC 6.7: the record first, then the buffers, then frames.
#[test]
fn who_joins_late_finds_the_record_and_the_buffers_and_is_given_frames() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let stream = a.create("camera", 7)?;
        let part = a.part(&stream, SIZE)?;
        let frame = a.push(&[&[&part]], 0)?;
        ensure!(a.wait_event_of("Returned", &part.id)?.value == frame);

        b.join(&stream.id)?;
        ensure!(b.get_record(&stream.id)? == (7, false));
        let listed = b.list()?;
        let found = listed
            .iter()
            .find(|one| one.stream.as_ref() == Some(&stream.id));
        let found = found.context("the part is not listed")?;
        ensure!(found.id == part.id && !found.is_stream, "{found:?}");
        let consumer = b.consume(&found.id)?;
        let frame = a.push(&[&[&part]], 1)?;
        b.wait_event("Pushed", |event| event.value == frame)?;
        b.give_back(&[(&consumer, frame)])?;
        ensure!(a.wait_event_of("Returned", &part.id)?.value == frame);
        Ok(())
    });
}

/// SPEC 6.7.
#[test]
fn a_new_record_and_the_end_of_a_stream_are_events() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        // Events are those since the device was opened.
        b.list()?;
        let stream = a.create("camera", 1)?;
        let offer = b.wait_event_of("Offer", &stream.id)?;
        ensure!(offer.value == 0, "{offer:?}");
        b.join(&stream.id)?;
        a.set_record(&stream, "camera", 1, true)?;
        b.wait_event_of("Meta", &stream.id)?;
        ensure!(b.get_record(&stream.id)? == (1, true));
        a.close(stream.number)?;
        b.wait_event_of("Revoked", &stream.id)?;
        // Its name is free again.
        a.create("camera", 2)?;
        Ok(())
    });
}

/// Programs of one VM join together, and the last leaves.
#[test]
fn who_leaves_a_stream_or_dies_is_released_with_the_last_of_its_vm() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let mut other = vms.b.client()?;
        let stream = a.create("camera", 1)?;
        let handle = b.join(&stream.id)?;
        other.join(&stream.id)?;
        ensure!(a.query(&stream.id)?.attachments == 1);
        b.close(handle)?;
        // Answers come in the order of requests: a DETACH of that would be done by now.
        b.list()?;
        ensure!(a.query(&stream.id)?.attachments == 1);
        other.kill()?;
        a.wait_event_of("Released", &stream.id)?;
        Ok(())
    });
}

/// SPEC 7.3, and SPEC 7.5.
#[test]
fn misuse_of_a_stream_is_refused() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let stream = a.create("camera", 1)?;
        let (_, _, buffer) = a.offer(SIZE, 1)?;
        let refuses = |result: Result<()>, errno: i32| -> Result<()> {
            let refused = refused(result)?;
            ensure!(refused.errno == errno, "{refused:?}");
            Ok(())
        };
        refuses(a.create("camera", 2).map(drop), libc::EEXIST)?;
        refuses(a.create("", 2).map(drop), libc::EINVAL)?;
        refuses(b.join(&buffer.id).map(drop), libc::EINVAL)?;
        refuses(b.import(&stream.id).map(drop), libc::EOPNOTSUPP)?;
        refuses(b.consume(&stream.id).map(drop), libc::EOPNOTSUPP)?;
        b.join(&stream.id)?;
        // Once joined it is no more of a buffer.
        refuses(b.import(&stream.id).map(drop), libc::EOPNOTSUPP)?;
        Ok(())
    });
}

/// There is nothing to be mapped of it.
#[test]
fn a_vm_that_cannot_import_buffers_joins_a_stream() {
    WITHOUT_REGION.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        ensure!(b.info()?.caps & CAP_MAP == 0, "it has a region");
        let stream = a.create("camera", 7)?;
        let part = a.part(&stream, PAGE)?;
        let refused = refused(b.import(&part.id))?;
        ensure!(refused.errno == libc::EOPNOTSUPP, "{refused:?}");
        let handle = b.join(&stream.id)?;
        ensure!(b.get_record(&stream.id)? == (7, false));
        ensure!(a.query(&stream.id)?.attachments == 1);
        b.close(handle)?;
        a.wait_event_of("Released", &stream.id)?;
        Ok(())
    });
}

/// A field of the record that no program knows yet may come to mean something.
#[test]
fn what_is_not_known_of_a_stream_record_is_refused_by_the_driver() {
    VMS.with(|vms| {
        let mut a = vms.a.client()?;
        let stream = a.create("camera", 1)?;
        let meta_size = u32::try_from(Meta::SIZE)?.to_ne_bytes();
        let access_size = u32::try_from(Access::SIZE)?.to_ne_bytes();
        let export = bytes(
            Export::SIZE,
            &[
                (offset_of!(Export, dmabuf_fd), &(-1_i32).to_ne_bytes()),
                (
                    offset_of!(Export, flags),
                    &ioctl::EXPORT_STREAM.to_ne_bytes(),
                ),
                (offset_of!(Export, meta_size), &meta_size),
                (offset_of!(Export, access_size), &access_size),
            ],
        );
        let set = bytes(MetaIo::SIZE, &[(offset_of!(MetaIo, meta_size), &meta_size)]);
        let record = |at: usize, field: usize, value: u32| Patch::Address {
            at,
            of: bytes(Meta::SIZE, &[(0, b"camera"), (field, &value.to_ne_bytes())]),
        };
        let fd = Patch::Descriptor {
            at: offset_of!(MetaIo, export_fd),
            number: stream.number,
        };
        for (field, value) in [
            (offset_of!(Meta, flags), 2),
            (offset_of!(Meta, reserved), 1),
        ] {
            let patches = [record(offset_of!(Export, meta), field, value)];
            let (errno, _) = a.raw(ioctl::EXPORT, &export, &patches)?;
            ensure!(errno == libc::EINVAL, "EXPORT: errno {errno} of {field}");
            let patches = [record(offset_of!(MetaIo, meta), field, value), fd.clone()];
            let (errno, _) = a.raw(ioctl::SET_META, &set, &patches)?;
            ensure!(errno == libc::EINVAL, "SET_META: errno {errno} of {field}");
        }
        // It is for these alone that it is refused.
        let patches = [
            record(offset_of!(MetaIo, meta), offset_of!(Meta, flags), 1),
            fd,
        ];
        let (errno, _) = a.raw(ioctl::SET_META, &set, &patches)?;
        ensure!(errno == 0, "SET_META: errno {errno}");
        ensure!(a.get_record(&stream.id)? == (0, true));
        Ok(())
    });
}

/// What stands for it is no memory.
#[test]
fn a_stream_is_neither_quiesced_nor_given_a_descriptor() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let stream = a.create("camera", 1)?;
        let fd = Patch::Descriptor {
            at: offset_of!(Quiesce, export_fd),
            number: stream.number,
        };
        for mode in [QUIESCE_ACTIVE, QUIESCE_QUIESCED] {
            let data = bytes(
                Quiesce::SIZE,
                &[(offset_of!(Quiesce, mode), &mode.to_ne_bytes())],
            );
            let (errno, _) = a.raw(ioctl::QUIESCE, &data, std::slice::from_ref(&fd))?;
            ensure!(errno == libc::EOPNOTSUPP, "QUIESCE {mode}: errno {errno}");
        }

        let ways = Ways::NONE.with(Way::None).to_wire();
        let import = bytes(
            Import::SIZE,
            &[
                (offset_of!(Import, id), &id_bytes(&stream.id)?),
                (offset_of!(Import, rights), &1_u32.to_ne_bytes()),
                (
                    offset_of!(Import, flags),
                    &ioctl::IMPORT_HANDLE.to_ne_bytes(),
                ),
                (offset_of!(Import, ways), &ways.to_ne_bytes()),
            ],
        );
        let (errno, joined) = b.raw(ioctl::IMPORT, &import, &[])?;
        ensure!(errno == 0, "IMPORT: errno {errno}");
        let at = offset_of!(Import, handle);
        let handle = joined.get(at..at + 4).context("a short structure")?;
        let to_fd = bytes(
            HandleToFd::SIZE,
            &[(offset_of!(HandleToFd, handle), handle)],
        );
        let (errno, _) = b.raw(ioctl::HANDLE_TO_FD, &to_fd, &[])?;
        ensure!(errno == libc::EINVAL, "HANDLE_TO_FD: errno {errno}");
        let close = bytes(Close::SIZE, &[(offset_of!(Close, handle), handle)]);
        let (errno, _) = b.raw(ioctl::CLOSE, &close, &[])?;
        ensure!(errno == 0, "CLOSE: errno {errno}");
        a.wait_event_of("Released", &stream.id)?;
        Ok(())
    });
}

/// A consumer has a frame then, and nobody has read that another one was returned.
#[test]
fn streams_end_with_their_driver_and_nothing_of_them_keeps_it() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        b.list()?;
        let stream = a.create("camera", 1)?;
        let (held, given) = (a.part(&stream, PAGE)?, a.part(&stream, PAGE)?);
        b.join(&stream.id)?;
        let consumers = [b.consume(&held.id)?, b.consume(&given.id)?];
        let frame = a.push(&[&[&held], &[&given]], 1)?;
        b.wait_event("Pushed", |event| event.value == frame + 1)?;
        b.give_back(&[(&consumers[1], frame + 1)])?;
        unbind(&vms.a)?;
        b.wait_event_of("Revoked", &held.id)?;
        let refusal = refused(b.give_back(&[(&consumers[0], frame)]))?;
        ensure!(refusal.errno == libc::EINVAL, "{refusal}");
        b.join(&stream.id).err().context("it is still offered")?;
        unbind(&vms.b)?;
        for vm in [&vms.a, &vms.b] {
            let error = vm.unload(DRIVER).err();
            let error = error.context("the module was removed while files were open")?;
            ensure!(errno_of(&error) == Some(libc::EAGAIN), "{error:#}");
        }
        drop((a, b));
        for vm in [&vms.a, &vms.b] {
            unload_when_free(vm, DRIVER)?;
            vm.load(DRIVER, "")?;
        }
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let stream = a.create("camera", 2)?;
        b.join(&stream.id)?;
        Ok(())
    });
}
