// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Producers and their slots

use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd as _, AsRawFd as _};

use bufshare::{FrameRecord, Producer, Rights, Slot};
use bufshare_protocol::ioctl::Id;

use crate::device::{access_of_c, blob_of_c, id_to_c, lent, open, own, timeout};
use crate::failure::{Failure, Result, run};
use crate::from_c;
use crate::memory::{
    elements, give, has_room, object, object_mut, place, put_if_wanted, read, take, text, write,
};
use crate::structs::{
    PRODUCER_ENDED, PRODUCER_LEFT, PRODUCER_LOST, PRODUCER_OTHER, PRODUCER_RETURNED, ProducerEvent,
    ProducerOptions, image_of_c, name_of_c,
};

/// `struct bufshare_producer`
#[derive(Debug)]
pub(crate) struct CProducer(Producer);

/// `struct bufshare_slot`
#[derive(Debug)]
pub(crate) struct CSlot {
    slot: Slot,
    /// Buffers that CPU access was begun to.
    begun: Vec<usize>,
}

impl CSlot {
    /// What the library has, without any access.
    fn end(self) -> Result<Slot> {
        let Self { slot, begun } = self;
        end_all(begun, |index| slot.mapping(index)?.end(Rights::RW))?;
        Ok(slot)
    }
}

/// Ends access to each of these buffers, also if it fails of one: else that to the others would
/// never end. Returns the first error.
pub(crate) fn end_all(
    begun: Vec<usize>,
    end: impl FnMut(usize) -> bufshare::Result<()>,
) -> bufshare::Result<()> {
    begun
        .into_iter()
        .map(end)
        .fold(Ok(()), std::result::Result::and)
}

/// A number of things as C counts.
pub(crate) fn count(number: usize) -> c_int {
    c_int::try_from(number).unwrap_or(c_int::MAX)
}

pub(crate) fn index_of_c(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_producer_open(
    options: *const ProducerOptions,
    producer: *mut *mut CProducer,
) -> c_int {
    run(|| {
        let to = from_c!(place(producer))?;
        let raw = from_c!(read(options))?;
        let mut options = bufshare::ProducerOptions::new(name_of_c(from_c!(text(raw.name))?)?);
        options.access = access_of_c(raw.access, raw.num_access)?;
        if !raw.image.is_null() {
            options.image = Some(image_of_c(from_c!(object(raw.image))?)?);
        }
        options.blob = blob_of_c(raw.blob, raw.blob_len)?;
        options.slots = raw.slots;
        options.sizes = from_c!(elements(raw.sizes, raw.num_sizes))?.to_vec();
        options.max_held = raw.max_held;
        options.epoch = raw.epoch;
        let made = Producer::new(open(raw.path)?, &options)?;
        give(to, CProducer(made));
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_producer_close(producer: *mut CProducer) {
    drop(from_c!(take(producer)));
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_producer_get_fd(producer: *const CProducer) -> c_int {
    run(|| Ok(from_c!(object(producer))?.0.as_raw_fd()))
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_producer_get_id(producer: *const CProducer, id: *mut Id) {
    if let Ok(producer) = from_c!(object(producer)) {
        from_c!(put_if_wanted(id, id_to_c(producer.0.id())));
    }
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_producer_add(
    producer: *mut CProducer,
    dmabufs: *const c_int,
    number: u32,
) -> c_int {
    run(|| {
        let producer = from_c!(object_mut(producer))?;
        let mut copies = Vec::new();
        for fd in from_c!(elements(dmabufs, number))? {
            let fd = from_c!(lent(*fd))?;
            let copy = fd.try_clone_to_owned();
            copies.push(copy.map_err(|error| {
                let errno = error.raw_os_error().unwrap_or(libc::EMFILE);
                Failure::new(errno, format!("cannot duplicate the descriptor: {error}"))
            })?);
        }
        let number = producer.0.add(copies)?;
        Ok(c_int::try_from(number).unwrap_or(c_int::MAX))
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_producer_remove(producer: *mut CProducer, number: u32) -> c_int {
    run(|| {
        let producer = from_c!(object_mut(producer))?;
        Ok(producer.0.remove(number).into())
    })
}

/// The number of a slot; `None`: whichever is free.
fn which(number: c_int) -> Result<Option<u32>> {
    if number == -1 {
        return Ok(None);
    }
    let number = u32::try_from(number).map(Some);
    number.map_err(|_| Failure::invalid("a slot's number is 0 or more, or -1 for any"))
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_producer_acquire(
    producer: *mut CProducer,
    number: c_int,
    to: *mut *mut CSlot,
) -> c_int {
    run(|| {
        let producer = from_c!(object_mut(producer))?;
        let to = from_c!(place(to))?;
        let slot = match which(number)? {
            Some(number) => producer.0.acquire_number(number),
            None => producer.0.acquire(),
        };
        let Some(slot) = slot else {
            return Ok(0);
        };
        let begun = Vec::new();
        give(to, CSlot { slot, begun });
        Ok(1)
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_slot_release(slot: *mut CSlot) {
    if let Some(slot) = from_c!(take(slot)) {
        // If the access does not end, the slot goes back all the same.
        drop(slot.end());
    }
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_slot_number(slot: *const CSlot) -> c_int {
    run(|| {
        let number = from_c!(object(slot))?.slot.number();
        Ok(c_int::try_from(number).unwrap_or(c_int::MAX))
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_slot_num_buffers(slot: *const CSlot) -> c_int {
    run(|| Ok(count(from_c!(object(slot))?.slot.buffers().len())))
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_slot_dup_fd(slot: *const CSlot, index: u32) -> c_int {
    run(|| {
        let slot = from_c!(object(slot))?;
        let buffer = slot.slot.buffers().nth(index_of_c(index));
        let buffer = buffer.ok_or_else(no_buffer)?;
        own(buffer.as_fd())
    })
}

pub(crate) fn no_buffer() -> Failure {
    Failure::invalid("there is no buffer of that index")
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_slot_map(
    slot: *mut CSlot,
    index: u32,
    address: *mut *mut c_void,
    length: *mut usize,
) -> c_int {
    run(|| {
        let slot = from_c!(object_mut(slot))?;
        let to = from_c!(place(address))?;
        let index = index_of_c(index);
        let mapping = slot.slot.mapping(index)?;
        let access = mapping.begin(Rights::RW)?;
        let at = access.as_ptr();
        if slot.begun.contains(&index) {
            access.finish()?;
        } else {
            slot.begun.push(index);
            std::mem::forget(access);
        }
        to.write(at.cast());
        from_c!(put_if_wanted(length, mapping.len()));
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_producer_push(
    producer: *mut CProducer,
    slot: *mut CSlot,
    record: *const c_void,
    record_size: usize,
    frame: *mut u64,
) -> c_int {
    run(|| {
        // First, as it is not the program's any more.
        let slot = from_c!(take(slot));
        let slot = slot.ok_or_else(|| Failure::invalid("a slot is needed, not NULL"))?;
        let slot = slot.end()?;
        let producer = from_c!(object_mut(producer))?;
        let size = match record.is_null() {
            true => 0,
            false => u32::try_from(record_size).unwrap_or(u32::MAX),
        };
        let record = from_c!(elements(record.cast::<u8>(), size))?;
        let record = FrameRecord::parse(record).filter(|_| record.len() % 8 == 0);
        let record = record.ok_or_else(|| {
            let message = "a record is a multiple of 8 bytes, up to BUFSHARE_MAX_FRAME_RECORD";
            Failure::invalid(message)
        })?;
        let number = producer.0.push(slot, record)?;
        from_c!(put_if_wanted(frame, number));
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_producer_out(producer: *const CProducer) -> c_int {
    run(|| Ok(count(from_c!(object(producer))?.0.out())))
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_producer_consumers(producer: *mut CProducer) -> c_int {
    run(|| {
        let consumers = from_c!(object(producer))?.0.consumers()?;
        Ok(c_int::try_from(consumers).unwrap_or(c_int::MAX))
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_producer_end(producer: *mut CProducer) -> c_int {
    run(|| {
        from_c!(object_mut(producer))?.0.end()?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn bufshare_producer_next_event(
    producer: *mut CProducer,
    to: *mut ProducerEvent,
    timeout_ms: c_int,
) -> c_int {
    run(|| {
        let producer = from_c!(object_mut(producer))?;
        from_c!(has_room(to))?;
        let Some(event) = producer.0.next_event(timeout(timeout_ms))? else {
            return Ok(0);
        };
        let mut raw = ProducerEvent {
            size: 0,
            kind: PRODUCER_OTHER,
            slot: 0,
            reserved: 0,
            frame: 0,
            peer: 0,
            arrival: 0,
        };
        match event {
            bufshare::ProducerEvent::Returned {
                slot,
                frame,
                arrival,
                ..
            } => {
                (raw.kind, raw.slot, raw.frame) = (PRODUCER_RETURNED, slot, frame);
                raw.arrival = arrival;
            }
            bufshare::ProducerEvent::Left { peer, .. } => {
                (raw.kind, raw.peer) = (PRODUCER_LEFT, peer);
            }
            bufshare::ProducerEvent::Lost { slot, .. } => {
                (raw.kind, raw.slot) = (PRODUCER_LOST, slot);
            }
            bufshare::ProducerEvent::Ended => raw.kind = PRODUCER_ENDED,
            _ => {}
        }
        from_c!(write(to, &raw))?;
        Ok(1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::refused;

    #[test]
    fn an_access_that_does_not_end_leaves_none_of_the_others() {
        let mut asked = Vec::new();
        let ended = end_all(vec![0, 2, 1], |index| {
            asked.push(index);
            let no_device = || bufshare::Device::open_at("/nonexistent/bufshare").map(drop);
            if index == 2 { no_device() } else { Ok(()) }
        });
        assert_eq!(ended.unwrap_err().errno.raw_os_error(), Some(libc::ENOENT));
        assert_eq!(asked, [0, 2, 1]);
    }

    #[test]
    fn a_slot_has_a_number_or_any_is_asked_for_by_minus_1_alone() {
        assert_eq!(which(-1).unwrap(), None);
        assert_eq!(which(3).unwrap(), Some(3));
        for number in [-2, c_int::MIN] {
            refused(which(number).unwrap_err().keep(), "0 or more");
        }
    }
}
