// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Consumers and their frames

use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr;

use bufshare::{BufferId, Consumer, Frame, Mapping, Rights};
use bufshare_protocol::ioctl::{Id, Image};

use crate::device::{id_to_c, open, own, timeout};
use crate::failure::{Failure, Result, run};
use crate::from_c;
use crate::memory::{
    fill, give, object, object_mut, place, put_if_wanted, read, take, text, write,
};
use crate::producer::{count, end_all, index_of_c, no_buffer};
use crate::structs::{
    CONSUMER_FRAME, CONSUMER_JOINED, CONSUMER_OTHER, CONSUMER_OVER, CONSUMER_RECORD,
    CONSUMER_REFUSED, CONSUMER_REJECTED, CONSUMER_REJOIN, CONSUMER_REVOKED, CONSUMER_WRITE,
    ConsumerEvent, ConsumerOptions, image_to_c, name_of_c, reserved,
};

/// `struct bufshare_consumer`
#[derive(Debug)]
pub(crate) struct CConsumer {
    consumer: Consumer,
    rights: Rights,
}

/// `struct bufshare_frame`
#[derive(Debug)]
pub(crate) struct CFrame {
    frame: Frame,
    /// Of CPU access.
    rights: Rights,
    /// Buffers that it was begun to.
    begun: Vec<usize>,
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_consumer_open(
    options: *const ConsumerOptions,
    to: *mut *mut CConsumer,
) -> c_int {
    run(|| {
        let to = from_c!(place(to))?;
        let raw = from_c!(read(options))?;
        if raw.flags & !(CONSUMER_WRITE | CONSUMER_REJOIN) != 0 {
            let message = "a flag of the consumer is not known: update libbufshare";
            return Err(Failure::invalid(message));
        }
        reserved(raw.reserved)?;
        let writes = raw.flags & CONSUMER_WRITE != 0;
        let options = bufshare::ConsumerOptions::new()
            .write(writes)
            .rejoin(raw.flags & CONSUMER_REJOIN != 0)
            .max_windows(raw.max_windows);
        let (peer, name) = (from_c!(text(raw.peer))?, from_c!(text(raw.name))?);
        let consumer = match (raw.id.is_null(), peer) {
            (false, None) => {
                let id = BufferId(from_c!(object(raw.id))?.b);
                Consumer::of_stream(open(raw.path)?, id, &options)
            }
            (true, Some(peer)) => {
                Consumer::named(open(raw.path)?, peer, name_of_c(name)?, &options)?
            }
            _ => {
                let message = "name a peer and its stream, or the id of a stream";
                return Err(Failure::invalid(message));
            }
        };
        let rights = if writes { Rights::RW } else { Rights::READ };
        give(to, CConsumer { consumer, rights });
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_consumer_close(consumer: *mut CConsumer) {
    drop(from_c!(take(consumer)));
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_consumer_get_fd(consumer: *const CConsumer) -> c_int {
    run(|| Ok(from_c!(object(consumer))?.consumer.as_raw_fd()))
}

/// A frame that was returned unseen.
fn rejection(why: bufshare::Rejection) -> c_int {
    Failure::new(libc::EBADMSG, format!("a frame was returned unseen: {why}")).keep()
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_consumer_next_event(
    consumer: *mut CConsumer,
    to: *mut ConsumerEvent,
    timeout_ms: c_int,
) -> c_int {
    run(|| {
        let consumer = from_c!(object_mut(consumer))?;
        let mut raw = ConsumerEvent {
            size: 0,
            kind: CONSUMER_OTHER,
            frame: ptr::null_mut(),
            id: Id::default(),
            number: 0,
            epoch: 0,
            ended: 0,
            error: 0,
        };
        // Before there is a frame, which would be lost.
        from_c!(write(to, &raw))?;
        let Some(event) = consumer.consumer.next_event(timeout(timeout_ms))? else {
            return Ok(0);
        };
        match event {
            bufshare::ConsumerEvent::Joined { stream, record, .. } => {
                (raw.kind, raw.id) = (CONSUMER_JOINED, id_to_c(stream.id));
                (raw.epoch, raw.ended) = (record.epoch, record.ended.into());
            }
            bufshare::ConsumerEvent::Record { record, .. } => {
                raw.kind = CONSUMER_RECORD;
                (raw.epoch, raw.ended) = (record.epoch, record.ended.into());
            }
            bufshare::ConsumerEvent::Frame(frame) => {
                raw.kind = CONSUMER_FRAME;
                let frame = CFrame {
                    frame,
                    rights: consumer.rights,
                    begun: Vec::new(),
                };
                raw.frame = Box::into_raw(Box::new(frame));
            }
            bufshare::ConsumerEvent::Rejected { frame, why, .. } => {
                (raw.kind, raw.number) = (CONSUMER_REJECTED, frame);
                raw.error = rejection(why);
            }
            bufshare::ConsumerEvent::Revoked { buffer, frame, .. } => {
                (raw.kind, raw.id) = (CONSUMER_REVOKED, id_to_c(buffer));
                raw.number = frame.unwrap_or_default();
            }
            bufshare::ConsumerEvent::Refused { buffer, error, .. } => {
                (raw.kind, raw.id) = (CONSUMER_REFUSED, id_to_c(buffer.id));
                raw.error = Failure::from(error).keep();
            }
            bufshare::ConsumerEvent::Over { stream, .. } => {
                (raw.kind, raw.id) = (CONSUMER_OVER, id_to_c(stream));
            }
            _ => {}
        }
        from_c!(write(to, &raw))?;
        Ok(1)
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_frame_return(frame: *mut CFrame) -> c_int {
    run(|| {
        let Some(frame) = from_c!(take(frame)) else {
            return Ok(0);
        };
        let CFrame {
            frame,
            rights,
            begun,
        } = *frame;
        let ended = end_all(begun, |index| frame.mapping(index)?.end(rights));
        // That is not the program's to mend: whose buffer it was says it, too.
        frame.give_back().and(ended)?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_frame_number(frame: *const CFrame) -> u64 {
    from_c!(object(frame)).map_or(0, |frame| frame.frame.number())
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_frame_arrival(frame: *const CFrame) -> u64 {
    from_c!(object(frame)).map_or(0, |frame| frame.frame.arrival())
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_frame_get_record(
    frame: *const CFrame,
    record: *mut c_void,
    record_size: usize,
) {
    let bytes = from_c!(object(frame)).map(|frame| frame.frame.record().to_bytes());
    let bytes = bytes.ok().flatten().unwrap_or_default();
    from_c!(fill(record, record_size, &bytes));
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_frame_get_image(frame: *const CFrame, image: *mut Image) -> c_int {
    run(|| {
        let frame = from_c!(object(frame))?;
        let Some(found) = frame.frame.image() else {
            return Ok(0);
        };
        from_c!(put_if_wanted(image, image_to_c(found)));
        Ok(1)
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_frame_num_buffers(frame: *const CFrame) -> c_int {
    run(|| Ok(count(from_c!(object(frame))?.frame.imports().len())))
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_frame_size(frame: *const CFrame, index: u32) -> u64 {
    let frame = from_c!(object(frame));
    let import = frame.map(|frame| frame.frame.imports().nth(index_of_c(index)));
    import
        .ok()
        .flatten()
        .map_or(0, |import| import.buffer.len() as u64)
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_frame_get_buffer_id(frame: *const CFrame, index: u32, id: *mut Id) -> c_int {
    run(|| {
        let frame = from_c!(object(frame))?;
        let to = from_c!(place(id))?;
        let import = frame.frame.imports().nth(index_of_c(index));
        to.write(id_to_c(import.ok_or_else(no_buffer)?.id));
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_frame_dup_fd(frame: *const CFrame, index: u32) -> c_int {
    run(|| {
        let frame = from_c!(object(frame))?;
        let import = frame.frame.imports().nth(index_of_c(index));
        own(import.ok_or_else(no_buffer)?.as_fd())
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_frame_read(
    frame: *mut CFrame,
    index: u32,
    offset: u64,
    bytes: *mut c_void,
    length: usize,
) -> c_int {
    run(|| {
        let frame = from_c!(object(frame))?;
        if bytes.is_null() {
            return Err(Failure::invalid("there is no place for the bytes: NULL"));
        }
        let mapping = frame.frame.mapping(index_of_c(index))?;
        from_c!(copy_out(mapping, offset, bytes.cast(), length))?;
        Ok(0)
    })
}

/// Copies bytes of a buffer to a program, in an access of its own.
///
/// # Safety
/// `to` has room for so many.
unsafe fn copy_out(mapping: &Mapping, offset: u64, to: *mut u8, length: usize) -> Result<()> {
    let end = u64::try_from(length).ok();
    let end = end.and_then(|length| offset.checked_add(length));
    let end = end.and_then(|end| usize::try_from(end).ok());
    // Before anything is written, also of a length that no program can have.
    if end.is_none_or(|end| end > mapping.len()) {
        let message = "cannot read the buffer: the bytes are not all inside it";
        return Err(Failure::new(libc::ERANGE, message));
    }
    let access = mapping.begin(Rights::READ)?;
    // SAFETY: the caller's promise. Zeroes first, as what is there may be no bytes yet.
    unsafe { ptr::write_bytes(to, 0, length) };
    // SAFETY: as above; it is no longer than a mapping, and nobody else's during the call.
    let bytes = unsafe { std::slice::from_raw_parts_mut(to, length) };
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    access.read_at_checked(offset, bytes)?;
    access.finish()?;
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_frame_map(
    frame: *mut CFrame,
    index: u32,
    address: *mut *mut c_void,
    length: *mut usize,
) -> c_int {
    run(|| {
        let frame = from_c!(object_mut(frame))?;
        let to = from_c!(place(address))?;
        let index = index_of_c(index);
        let mapping = frame.frame.mapping(index)?;
        let access = mapping.begin(frame.rights)?;
        let at = access.as_ptr();
        if frame.begun.contains(&index) {
            access.finish()?;
        } else {
            frame.begun.push(index);
            std::mem::forget(access);
        }
        to.write(at.cast());
        from_c!(put_if_wanted(length, mapping.len()));
        Ok(0)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use bufshare::DmaBuf;

    use super::*;
    use crate::failure::tests::last;
    use crate::memory::tests::{NoDevice, refused};

    #[test]
    fn bytes_that_are_not_all_there_are_not_begun_to_be_read() {
        let file = NoDevice::new("bytes");
        let path = file.path();
        let mut both = File::options();
        let fd = both.read(true).write(true).open(path.to_str().unwrap());
        let fd = fd.unwrap();
        fd.set_len(4096).unwrap();
        let buffer = DmaBuf::from_fd(fd.into()).unwrap();
        let mapping = buffer.map(Rights::READ).unwrap();
        let mut bytes = [7_u8; 8];
        let mut copy = |offset, length| {
            let to = bytes.as_mut_ptr();
            // SAFETY: what has no room is not in the buffer, either.
            let copied = unsafe { copy_out(&mapping, offset, to, length) };
            (copied.unwrap_err().keep(), bytes)
        };
        for (offset, length) in [(4089, 8), (0, 4097), (u64::MAX, 1), (1, usize::MAX)] {
            assert_eq!(copy(offset, length), (-libc::ERANGE, [7; 8]));
            assert!(last().contains("not all inside"));
        }
        // Those are inside; but the file is no dma-buf.
        assert_eq!(copy(4088, 8).0, -libc::ENOTTY);
    }

    #[test]
    fn a_consumer_without_a_place_for_it_or_its_event_takes_nothing() {
        let file = NoDevice::new("consumer");
        let path = file.path();
        let id = Id { b: [1; 16] };
        let options = ConsumerOptions {
            size: u32::try_from(size_of::<ConsumerOptions>()).unwrap(),
            flags: 0,
            path: path.as_ptr(),
            peer: ptr::null(),
            name: ptr::null(),
            id: &raw const id,
            max_windows: 0,
            reserved: 0,
        };
        refused(
            bufshare_consumer_open(&raw const options, ptr::null_mut()),
            "no place for the result",
        );
        assert!(!file.is_open());
        let mut consumer = ptr::null_mut();
        let made = bufshare_consumer_open(&raw const options, &raw mut consumer);
        assert_eq!(made, 0);
        assert!(file.is_open());
        refused(
            bufshare_consumer_next_event(consumer, ptr::null_mut(), 0),
            "a structure is needed",
        );
        bufshare_consumer_close(consumer);
        assert!(!file.is_open());
        let unknown = ConsumerOptions {
            reserved: 1,
            ..options
        };
        refused(
            bufshare_consumer_open(&raw const unknown, &raw mut consumer),
            "reserved",
        );
        // That of a pointer.
        let short = ConsumerOptions { size: 8, ..options };
        refused(
            bufshare_consumer_open(&raw const short, &raw mut consumer),
            "its sizeof",
        );
    }
}
