// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Dma-bufs of other drivers are exported and read by the other VM

use core::mem::offset_of;

use anyhow::{Result, ensure};
use bufshare_protocol::ioctl::{self, Export};
use bufshare_tests::client::{
    Client, Import, MovableKind, Patch, Refused, Sight, Source, bytes, refused, status,
};
use bufshare_tests::driver::{bind, unbind};
use bufshare_tests::lab::{self, has_udmabuf};
use bufshare_tests::pair::{Plan, Shared, TwoVms};
use bufshare_tests::report::Skip;
use bufshare_tests::vm::Vm;
use bufshare_tests::wait;

static VMS: Shared = Shared::new(|| {
    // Without udmabuf each piece of a buffer takes one.
    Plan::new().options(&["--max-windows", "256"])
});
const PAGE: u64 = 4096;

/// Exports a buffer from `source`; the other VM reads every byte of it and
/// writes every byte. Both processes and the import are returned, to go on.
fn is_shared(vms: &mut TwoVms, source: Source, size: u64) -> Result<(Client, Client, Import)> {
    let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
    let buf = a.make(source, size)?;
    ensure!(buf.size >= size, "{buf:?}");
    let mine = a.map(buf)?;
    a.sync(buf, true, false)?;
    a.fill(mine, 1)?;
    a.sync(buf, true, true)?;
    let export = a.export(buf)?;
    let import = b.import(&export.id)?;
    ensure!(import.buf.size == buf.size, "{import:?}");
    let theirs = b.map(import.buf)?;
    ensure!(
        b.compare(theirs, 1)? == Sight::Pattern,
        "the importer reads something else"
    );
    b.fill(theirs, 2)?;
    ensure!(
        a.compare(mine, 2)? == Sight::Pattern,
        "the exporter reads something else"
    );
    // The source may be closed: the export keeps it.
    a.close(mine.number)?;
    a.close(buf.number)?;
    ensure!(
        b.compare(theirs, 2)? == Sight::Pattern,
        "the export does not keep its buffer"
    );
    Ok((a, b, import))
}

#[test]
fn a_buffer_of_the_system_heap_is_shared() {
    VMS.with(|vms| is_shared(vms, Source::Heap("system".to_owned()), 1 << 20).map(drop));
}

#[test]
fn a_udmabuf_is_shared() {
    VMS.with(|vms| is_shared(vms, Source::Udmabuf { scattered: false }, 64 * PAGE).map(drop));
}

#[test]
fn a_udmabuf_in_many_pieces_is_one_contiguous_import() {
    VMS.with(|vms| {
        let pieces = 64;
        let (_, _, import) = is_shared(vms, Source::Udmabuf { scattered: true }, pieces * PAGE)?;
        // A udmabuf of the host joins the pieces before the VMM sees them.
        if has_udmabuf() {
            ensure!(import.windows == 1, "{import:?}");
        } else {
            ensure!(
                u64::from(import.windows) > pieces / 2,
                "not scattered: {import:?}"
            );
        }
        let snapshot = vms.daemon()?.snapshot()?;
        let windows = snapshot.peer("b")?.windows;
        ensure!(
            windows == u64::from(import.windows),
            "{windows} windows instead of {}",
            import.windows
        );
        Ok(())
    });
}

#[test]
fn a_buffer_in_more_pieces_than_windows_is_refused_by_name() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let pages = 700;
        let buf = a.make(Source::Udmabuf { scattered: true }, pages * PAGE)?;
        let max = u64::from(b.info()?.max_windows);
        ensure!(max < pages, "the test needs more pages than {max}");
        let result = a.export(buf).and_then(|export| b.import(&export.id));
        if has_udmabuf() {
            ensure!(result?.windows == 1);
            return Ok(());
        }
        ensure!(status(result)? == "TOO_FRAGMENTED");
        // The same amount in few pieces is fine.
        let buf = a.alloc(pages * PAGE)?;
        let export = a.export(buf)?;
        b.import(&export.id)?;
        Ok(())
    });
}

#[test]
fn a_buffer_of_vgem_is_shared() {
    VMS.with(|vms| {
        vms.a.load("vgem", "")?;
        is_shared(vms, Source::Dumb("vgem".to_owned()), 64 * PAGE).map(drop)
    });
}

/// Two cameras: the first has buffers of vmalloc, the second contiguous ones.
fn camera(vm: &Vm, name: &str) -> Result<String> {
    vm.load("vivid", "n_devs=2 allocators=0,1 node_types=0x1,0x1")?;
    vm.video(name)
}

#[test]
fn a_contiguous_buffer_of_vivid_is_shared_as_one_piece() {
    VMS.with(|vms| {
        let device = camera(&vms.a, "vivid-001-vid-cap")?;
        let (_, _, import) = is_shared(vms, Source::Capture(device), 1 << 20)?;
        ensure!(import.windows == 1, "{import:?}");
        Ok(())
    });
}

#[test]
fn a_scattered_buffer_of_vivid_is_shared_while_it_fits_the_windows() {
    VMS.with(|vms| {
        let device = camera(&vms.a, "vivid-000-vid-cap")?;
        is_shared(vms, Source::Capture(device.clone()), 56 * PAGE)?;
        // A large frame of single pages: in how many pieces they are is luck, what
        // comes of it is not.
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let buf = a.make(Source::Capture(device), 8_000_000)?;
        let export = match a.export(buf) {
            Ok(export) => export,
            Err(error) => {
                // More than a request can describe.
                ensure!(u64::from(a.info()?.max_extents) < buf.size / PAGE);
                ensure!(status::<()>(Err(error))? == "TOO_FRAGMENTED");
                return Ok(());
            }
        };
        let pieces = a.query(&export.id)?.extents;
        let windows = if has_udmabuf() { 1 } else { pieces };
        let result = b.import(&export.id);
        if windows <= b.info()?.max_windows {
            ensure!(result?.windows == windows, "{pieces} pieces");
        } else {
            ensure!(status(result)? == "TOO_FRAGMENTED", "{pieces} pieces");
        }
        Ok(())
    });
}

#[test]
fn a_buffer_that_is_open_for_reading_only_is_not_exported_for_writing() {
    VMS.with(|vms| {
        let mut a = vms.a.client()?;
        let buf = a.make(Source::ReadOnlyHeap("system".to_owned()), 1 << 20)?;
        for access in [&[][..], &[("b", true)][..]] {
            let refusal = refused(a.export_to(buf, access, "", &[]))?;
            ensure!(refusal.errno == libc::EACCES, "{refusal}");
            ensure!(refusal.what.contains("open for reading only"), "{refusal}");
        }
        // To read it is fine, whatever this VMM then makes of it.
        a.export_to(buf, &[("b", false)], "", &[])?;
        Ok(())
    });
}

/// Nothing when so much memory may not be pinned now.
fn unless_over_quota<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.downcast_ref::<Refused>() {
            Some(refusal) if refusal.errno == libc::EDQUOT => Ok(None),
            _ => Err(error),
        },
    }
}

#[test]
fn memory_of_other_drivers_is_pinned_up_to_a_limit() {
    VMS.with(|vms| {
        const LIMIT: &str = "/sys/module/virtio_bufshare/parameters/pin_limit_mb";
        let mut a = vms.a.client()?;
        let heap = Source::Heap("system".to_owned());
        let (first, second) = (a.make(heap.clone(), 3 << 20)?, a.make(heap, 2 << 20)?);
        vms.a.write_file(LIMIT, b"4")?;
        // What earlier processes had pinned is given back after their end.
        let export = wait::until("the first to fit", wait::COMMAND, || {
            unless_over_quota(a.export(first))
        });
        let export = match export {
            Ok(export) => export,
            Err(error) => {
                vms.a.write_file(LIMIT, b"0")?;
                return Err(error);
            }
        };
        let refusal = refused(a.export(second));
        // Our own memory is not meant.
        let own = a.alloc(8 << 20)?;
        let own = a.export(own);
        a.close(export.number)?;
        let released = wait::until("the first to be unpinned", wait::COMMAND, || {
            unless_over_quota(a.export(second).map(drop))
        });
        vms.a.write_file(LIMIT, b"0")?;
        let refusal = refusal?;
        ensure!(refusal.errno == libc::EDQUOT, "{refusal}");
        let log = vms.a.kernel_log()?;
        ensure!(
            log.iter().any(|line| line.contains("(pin_limit_mb)")),
            "the kernel's log does not name the limit"
        );
        own?;
        released
    });
}

#[test]
fn an_imported_buffer_is_not_exported_again() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, export) = a.offer(1 << 20, 1)?;
        let import = b.import(&export.id)?;
        // The driver knows its own: the host is not even asked.
        let refusal = refused(b.export(import.buf))?;
        ensure!(
            refusal.errno == libc::EPERM && refusal.status.is_none(),
            "{refusal}"
        );
        Ok(())
    });
}

/// The pin protects the memory until the host has said that no other VM reaches it,
/// however late that is.
#[test]
fn a_buffer_that_can_move_stays_until_no_other_vm_reaches_it() {
    VMS.with(|vms| {
        load_exporter(&vms.a)?;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        b.info()?;
        let buf = a.make(Source::Movable(MovableKind::Movable), 64 * PAGE)?;
        let mine = a.map(buf)?;
        a.fill(mine, 7)?;
        let export = a.export(buf)?;
        let import = b.import(&export.id)?;
        let theirs = b.map(import.buf)?;
        ensure!(b.compare(theirs, 7)? == Sight::Pattern);
        let refusal = refused(a.move_away(buf))?;
        ensure!(refusal.errno == libc::EBUSY, "{refusal}");
        vms.daemon()?.pause()?;
        let closed = a.close(export.number);
        let pinned = refused(a.move_away(buf));
        let seen = b.compare(theirs, 7);
        vms.daemon()?.go_on()?;
        closed?;
        let pinned = pinned?;
        ensure!(pinned.errno == libc::EBUSY, "{pinned}");
        ensure!(seen? == Sight::Pattern);
        wait::until("the buffer to be free to move", wait::COMMAND, || {
            match a.move_away(buf) {
                Ok(()) => Ok(Some(())),
                Err(error) => {
                    let refusal = refused::<()>(Err(error))?;
                    ensure!(refusal.errno == libc::EBUSY, "{refusal}");
                    Ok(None)
                }
            }
        })?;
        ensure!(a.compare(mine, 7)? == Sight::Pattern);
        ensure!(b.compare(theirs, 7)? == Sight::Sigbus);
        Ok(())
    });
}

/// Nobody can promise for other VMs that they unmap in time: who needs that refuses
/// the export, and who moves a pinned buffer all the same ends it, where the kernel
/// reports that.
#[test]
fn a_buffer_that_has_to_be_revocable_is_not_exported() {
    VMS.with(|vms| {
        load_exporter(&vms.a)?;
        let mut a = vms.a.client()?;
        let buf = a.make(Source::Movable(MovableKind::Revocable), 64 * PAGE)?;
        let refusal = refused(a.export(buf))?;
        ensure!(refusal.errno == libc::EOPNOTSUPP, "{refusal}");
        // Nothing is left pinned or attached.
        a.move_away(buf)
    });
}

#[test]
fn a_buffer_that_moves_although_it_is_pinned_is_revoked_where_the_kernel_says_so() {
    VMS.with(|vms| {
        if lab::series() != "stable" {
            let reason = "this kernel lets an importer leave the callback out";
            return Err(Skip::impossible(reason).into());
        }
        load_exporter(&vms.a)?;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        b.info()?;
        let buf = a.make(Source::Movable(MovableKind::Rude), 64 * PAGE)?;
        let mine = a.map(buf)?;
        a.fill(mine, 8)?;
        let export = a.export(buf)?;
        let import = b.import(&export.id)?;
        let theirs = b.map(import.buf)?;
        ensure!(b.compare(theirs, 8)? == Sight::Pattern);
        a.move_away(buf)?;
        b.wait_event_of("Revoked", &export.id)?;
        ensure!(b.compare(theirs, 8)? == Sight::Sigbus);
        ensure!(status(b.import(&export.id))? == "NOT_FOUND");
        ensure!(a.compare(mine, 8)? == Sight::Pattern);
        Ok(())
    });
}

/// The list of peers is looked at when the buffer is pinned already: that is undone before
/// the driver is gone.
#[test]
fn an_export_that_is_refused_leaves_nothing_pinned_when_the_driver_is_unbound() {
    VMS.with(|vms| {
        load_exporter(&vms.a)?;
        let mut a = vms.a.client()?;
        let buf = a.make(Source::Movable(MovableKind::Movable), 64 * PAGE)?;
        let one = 1_u32.to_ne_bytes();
        let data = bytes(Export::SIZE, &[(offset_of!(Export, num_acl), &one)]);
        let patches = [
            Patch::Descriptor {
                at: offset_of!(Export, dmabuf_fd),
                number: buf.number,
            },
            // A peer without rights.
            Patch::Address {
                at: offset_of!(Export, acl),
                of: vec![0; 16],
            },
        ];
        let (errno, _) = a.raw(ioctl::EXPORT, &data, &patches)?;
        ensure!(errno == libc::EINVAL, "errno {errno}");
        let device = unbind(&vms.a)?;
        a.move_away(buf)?;
        bind(&vms.a, &device)?;
        drop(a);
        is_shared(vms, Source::Movable(MovableKind::Movable), 64 * PAGE).map(drop)
    });
}

/// Loads the exporter driver of the tests; again only after a restart.
fn load_exporter(vm: &Vm) -> Result<()> {
    if vm.list_dir("/sys/module/bufshare_exporter")?.is_empty() {
        vm.insert("exporter", &[])?;
    }
    Ok(())
}
