// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The open device: what there is, exports, imports, events

use std::ffi::{c_char, c_int, c_void};
use std::os::fd::{AsRawFd as _, BorrowedFd, IntoRawFd as _, OwnedFd};
use std::time::Duration;

use bufshare::{BufferId, Device, Meta, Rights};
use bufshare_protocol::ioctl::{Access, Id};

use crate::failure::{Failure, Result, run};
use crate::from_c;
use crate::memory::{
    elements, fill, give, has_room, object, place, put_if_wanted, read, take, text, write,
};
use crate::structs::{
    BUFFER_INFO_OWNED, BUFFER_INFO_STREAM, BufferInfo, DeviceInfo, EventInfo, ExportOptions,
    ImportInfo, MetaInfo, PeerInfo, image_of_c, meta_to_c, name_of_c, name_to_c, reserved,
};

/// `struct bufshare`
#[derive(Debug)]
pub(crate) struct CDevice(Device);

/// The device at a path; NULL: where it is.
pub(crate) fn open(path: *const c_char) -> Result<Device> {
    Ok(match from_c!(text(path))? {
        Some(path) => Device::open_at(path)?,
        None => Device::open()?,
    })
}

/// As the library takes it.
pub(crate) fn timeout(ms: c_int) -> Option<Duration> {
    u64::try_from(ms).ok().map(Duration::from_millis)
}

pub(crate) fn id_to_c(id: BufferId) -> Id {
    Id { b: id.0 }
}

/// A list of who may have it.
pub(crate) fn access_of_c(first: *const Access, count: u32) -> Result<Vec<bufshare::Access>> {
    let lines = from_c!(elements(first, count))?.iter();
    let line = |line: &Access| {
        reserved(line.reserved)?;
        Ok(bufshare::Access::new(line.peer, rights_of_c(line.rights)?))
    };
    lines.map(line).collect()
}

pub(crate) fn blob_of_c(first: *const c_void, length: u32) -> Result<Vec<u8>> {
    Ok(from_c!(elements(first.cast::<u8>(), length))?.to_vec())
}

/// Rights that a program names.
fn rights_of_c(bits: u32) -> Result<Rights> {
    let rights = Rights::known(bits);
    if rights.to_wire() != bits {
        return Err(Failure::invalid(
            "rights are BUFSHARE_READ, or BUFSHARE_READ | BUFSHARE_WRITE",
        ));
    }
    Ok(rights)
}

/// A descriptor that a program lends.
///
/// # Safety
/// It stays open as long as what is returned is used.
pub(crate) unsafe fn lent<'a>(fd: c_int) -> Result<BorrowedFd<'a>> {
    if fd < 0 {
        return Err(Failure::new(libc::EBADF, "a descriptor is below 0"));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_open(path: *const c_char, device: *mut *mut CDevice) -> c_int {
    run(|| {
        let to = from_c!(place(device))?;
        give(to, CDevice(open(path)?));
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_close(device: *mut CDevice) {
    drop(from_c!(take(device)));
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_get_fd(device: *const CDevice) -> c_int {
    run(|| Ok(from_c!(object(device))?.0.as_raw_fd()))
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_get_info(device: *mut CDevice, to: *mut DeviceInfo) -> c_int {
    run(|| {
        let device = from_c!(object(device))?;
        from_c!(has_room(to))?;
        let info = device.0.info()?;
        let info = DeviceInfo {
            size: 0,
            version: info.version,
            caps: info.caps,
            max_windows: info.max_windows,
            windows_used: info.windows_used,
            max_buffers: info.max_buffers,
            max_attachments: info.max_attachments,
            map_align: info.map_align,
            max_buffer_size: info.max_buffer_size,
            shm_size: info.shm_size,
            peer_id: info.peer_id,
            name: name_to_c(info.name),
        };
        from_c!(write(to, &info))?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_find_peer(
    device: *mut CDevice,
    name: *const c_char,
    to: *mut PeerInfo,
) -> c_int {
    run(|| {
        let device = from_c!(object(device))?;
        from_c!(has_room(to))?;
        let name = from_c!(text(name))?;
        let name = name.ok_or_else(|| Failure::invalid("a name is needed, not NULL"))?;
        let peer = device.0.peer(name)?;
        let peer = peer.ok_or_else(|| {
            let message = "the host's operator allows this VM to share with no peer of that name; \
                           ask for one that `bufshare peers` prints";
            Failure::new(libc::ENOENT, message)
        })?;
        let info = PeerInfo {
            size: 0,
            up: peer.up.into(),
            id: peer.id,
            export_rights: peer.export_rights.to_wire(),
            import_rights: peer.import_rights.to_wire(),
            name: name_to_c(peer.name),
        };
        from_c!(write(to, &info))?;
        Ok(0)
    })
}

/// What [`bufshare_list`] calls.
type Each = unsafe extern "C" fn(data: *mut c_void, buffer: *const BufferInfo) -> c_int;

#[unsafe(no_mangle)]
extern "C" fn bufshare_list(device: *mut CDevice, each: Option<Each>, data: *mut c_void) -> c_int {
    run(|| {
        let device = from_c!(object(device))?;
        let each = each.ok_or_else(|| Failure::invalid("a function is needed, not NULL"))?;
        for buffer in device.0.list()? {
            let owned = if buffer.owned { BUFFER_INFO_OWNED } else { 0 };
            let stream = if buffer.is_stream {
                BUFFER_INFO_STREAM
            } else {
                0
            };
            let info = BufferInfo {
                size: u32::try_from(size_of::<BufferInfo>()).unwrap_or_default(),
                flags: owned | stream,
                id: id_to_c(buffer.id),
                stream: buffer.stream.map(id_to_c).unwrap_or_default(),
                owner: buffer.owner,
                bytes: buffer.size,
                generation: buffer.generation,
                meta_seq: buffer.meta_seq,
                rights: buffer.rights.to_wire(),
                fourcc: buffer.fourcc,
                attachments: buffer.attachments,
                reserved: 0,
                name: name_to_c(buffer.name),
            };
            match from_c!(each(data, &raw const info)) {
                0 => {}
                other => return Ok(other),
            }
        }
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_alloc(device: *mut CDevice, bytes: u64) -> c_int {
    run(|| {
        let buffer = from_c!(object(device))?.0.alloc(bytes)?;
        Ok(OwnedFd::from(buffer).into_raw_fd())
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_export(
    device: *mut CDevice,
    dmabuf: c_int,
    options: *const ExportOptions,
    id: *mut Id,
) -> c_int {
    run(|| {
        let device = from_c!(object(device))?;
        let dmabuf = from_c!(lent(dmabuf))?;
        let mut all = bufshare::ExportOptions::new();
        if !options.is_null() {
            let options = from_c!(read(options))?;
            reserved(options.reserved)?;
            all.access = access_of_c(options.access, options.num_access)?;
            let mut meta = Meta::new().name(name_of_c(from_c!(text(options.name))?)?);
            if !options.image.is_null() {
                meta = meta.image(image_of_c(from_c!(object(options.image))?)?);
            }
            all.meta = meta.blob(blob_of_c(options.blob, options.blob_len)?);
        }
        let export = device.0.export(dmabuf, &all)?;
        from_c!(put_if_wanted(id, id_to_c(export.id())));
        Ok(OwnedFd::from(export).into_raw_fd())
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_import(
    device: *mut CDevice,
    id: *const Id,
    rights: u32,
    info: *mut ImportInfo,
) -> c_int {
    run(|| {
        let device = from_c!(object(device))?;
        let id = BufferId(from_c!(object(id))?.b);
        if !info.is_null() {
            from_c!(has_room(info))?;
        }
        let import = device.0.import(id, rights_of_c(rights)?)?;
        if !info.is_null() {
            let about = ImportInfo {
                size: 0,
                rights: import.rights.to_wire(),
                bytes: import.buffer.len() as u64,
                owner: import.owner,
                generation: import.generation,
                way: import.way.number(),
                properties: import.properties.bits(),
            };
            from_c!(write(info, &about))?;
        }
        Ok(OwnedFd::from(import.buffer).into_raw_fd())
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_get_meta(
    device: *mut CDevice,
    id: *const Id,
    to: *mut MetaInfo,
    blob: *mut c_void,
    blob_size: usize,
) -> c_int {
    run(|| {
        let device = from_c!(object(device))?;
        let id = BufferId(from_c!(object(id))?.b);
        from_c!(has_room(to))?;
        if blob_size > 0 {
            from_c!(place(blob.cast::<u8>()))?;
        }
        let (seq, meta) = device.0.get_meta(id)?;
        from_c!(write(to, &meta_to_c(seq, &meta)))?;
        from_c!(fill(blob, blob_size, &meta.blob));
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_next_event(
    device: *mut CDevice,
    to: *mut EventInfo,
    timeout_ms: c_int,
) -> c_int {
    run(|| {
        let device = from_c!(object(device))?;
        from_c!(has_room(to))?;
        let Some(event) = device.0.next_event(timeout(timeout_ms))? else {
            return Ok(0);
        };
        let event = EventInfo {
            size: 0,
            kind: event.kind.number(),
            seq: event.seq,
            peer: event.peer,
            id: id_to_c(event.id),
            handle: event.handle,
            generation: event.generation,
            value: event.value,
        };
        from_c!(write(to, &event))?;
        Ok(1)
    })
}

/// A descriptor of its own, of one that an object has.
pub(crate) fn own(fd: BorrowedFd<'_>) -> Result<c_int> {
    let own = fd.try_clone_to_owned();
    let own = own.map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(libc::EMFILE);
        Failure::new(errno, format!("cannot duplicate the descriptor: {error}"))
    });
    Ok(own?.into_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;
    use crate::memory::tests::{NoDevice, refused};

    /// A device that answers nothing.
    fn device() -> *mut CDevice {
        let mut device = ptr::null_mut();
        assert_eq!(bufshare_open(c"/dev/null".as_ptr(), &raw mut device), 0);
        device
    }

    #[test]
    fn a_device_without_a_place_for_it_is_not_opened() {
        let file = NoDevice::new("device");
        let path = file.path();
        refused(
            bufshare_open(path.as_ptr(), ptr::null_mut()),
            "no place for the result",
        );
        assert!(!file.is_open());
        let mut device = ptr::null_mut();
        assert_eq!(bufshare_open(path.as_ptr(), &raw mut device), 0);
        assert!(file.is_open());
        bufshare_close(device);
        assert!(!file.is_open());
    }

    #[test]
    fn an_event_is_not_taken_without_room_for_it() {
        let device = device();
        let needed = "a structure is needed";
        refused(bufshare_next_event(device, ptr::null_mut(), 0), needed);
        refused(bufshare_get_info(device, ptr::null_mut()), needed);
        let name = c"a".as_ptr();
        refused(bufshare_find_peer(device, name, ptr::null_mut()), needed);
        // That of a pointer: all structures are longer.
        let mut event = [8_u32, 1];
        let to: *mut EventInfo = event.as_mut_ptr().cast();
        refused(bufshare_next_event(device, to, 0), "its sizeof");
        assert_eq!(event, [8, 1]);
        let id = Id { b: [1; 16] };
        let to: *mut ImportInfo = event.as_mut_ptr().cast();
        refused(bufshare_import(device, &raw const id, 1, to), "its sizeof");
        bufshare_close(device);
    }

    #[test]
    fn metadata_is_not_asked_for_without_room_for_it() {
        let device = device();
        let id = Id { b: [1; 16] };
        let mut info = meta_to_c(0, &Meta::new());
        let get = |to, room| bufshare_get_meta(device, &raw const id, to, ptr::null_mut(), room);
        refused(get(ptr::null_mut(), 0), "a structure is needed");
        refused(get(&raw mut info, 0), "its sizeof");
        info.size = u32::try_from(size_of::<MetaInfo>()).unwrap();
        refused(get(&raw mut info, 1), "no place for the result");
        assert_eq!(get(&raw mut info, 0), -libc::ENOTTY, "what is no device");
        bufshare_close(device);
    }

    #[test]
    fn what_has_no_meaning_yet_is_not_passed_over() {
        let line = |rights, reserved| {
            let peer = 7;
            let line = Access {
                peer,
                rights,
                reserved,
            };
            access_of_c(&raw const line, 1)
        };
        assert_eq!(line(3, 0).unwrap()[0].rights, Rights::RW);
        refused(line(5, 0).unwrap_err().keep(), "rights are");
        refused(line(1, 1).unwrap_err().keep(), "reserved");
        let device = device();
        let file = NoDevice::new("reserved");
        let fd = std::fs::File::open(file.path().to_str().unwrap()).unwrap();
        let options = ExportOptions {
            size: u32::try_from(size_of::<ExportOptions>()).unwrap(),
            num_access: 0,
            access: ptr::null(),
            name: ptr::null(),
            image: ptr::null(),
            blob: ptr::null(),
            blob_len: 0,
            reserved: 1,
        };
        let options = &raw const options;
        refused(
            bufshare_export(device, fd.as_raw_fd(), options, ptr::null_mut()),
            "reserved",
        );
        bufshare_close(device);
    }

    #[test]
    fn a_list_for_no_function_is_not_asked_for() {
        let device = device();
        let listed = bufshare_list(device, None, ptr::null_mut());
        refused(listed, "a function is needed");
        bufshare_close(device);
    }
}
