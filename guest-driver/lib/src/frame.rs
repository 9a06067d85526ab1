// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames: what is handed over from one VM to others, and comes back

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use bufshare_protocol::ioctl as abi;
use bufshare_protocol::limits::MAX_FRAME_BUFFERS;
use bufshare_protocol::wire;

use crate::error::{Error, Result};
use crate::{BufferId, Export, FrameRecord, Import, Operation, ioctl};

/// A frame that is handed over
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Push<'a> {
    /// What it is in: 1 to 4 exports, each once.
    pub buffers: Vec<&'a Export>,
    /// A VM that has so many frames of the same stream and has not returned them is not given it;
    /// 0: all are. Programs of one VM count together: a frame is returned when each that was given
    /// it has returned it, so that one that hangs stops the frames of its whole VM. The stream is that of which the first buffer is
    /// [part](crate::Device::export_part); those of no stream count together.
    pub max_held: u32,
    /// What it is.
    pub record: FrameRecord,
}

impl<'a> Push<'a> {
    /// A frame in one buffer, for all consumers, of which nothing is said.
    #[must_use]
    pub fn new(buffer: &'a Export) -> Self {
        Self {
            buffers: vec![buffer],
            max_held: 0,
            record: FrameRecord::new(),
        }
    }

    /// As an entry of PUSH of that size, or as short as it can be; `None` if it has more buffers
    /// or damage than that has room for.
    fn to_bytes(&self, size: Option<usize>) -> Option<Vec<u8>> {
        let mut buffers = [0_i32; MAX_FRAME_BUFFERS];
        let used = buffers.get_mut(..self.buffers.len())?;
        for (descriptor, export) in used.iter_mut().zip(&self.buffers) {
            *descriptor = export.as_raw_fd();
        }
        let count = u32::try_from(self.buffers.len()).ok()?;
        let buffers = buffers.iter().flat_map(|fd| fd.to_ne_bytes());
        let record = self.record.to_bytes()?;
        let record_size = u32::try_from(record.len()).ok()?;
        // Flags are zero.
        let rest = [count, self.max_held, 0, record_size];
        let rest = rest.iter().flat_map(|number| number.to_ne_bytes());
        let mut bytes: Vec<u8> = buffers.chain(rest).collect();
        if let Some(size) = size {
            bytes.resize(size.checked_sub(record.len())?, 0);
        }
        bytes.extend(record);
        Some(bytes)
    }
}

/// A frame that was handed over, beside what its event says
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PushedFrame {
    /// The frame's buffers but the first.
    pub others: Vec<BufferId>,
    /// When the driver learned of it, nanoseconds of this VM's `CLOCK_MONOTONIC`.
    pub arrival: u64,
    /// Sequence number of the first buffer's [metadata](crate::Meta) when it was pushed.
    pub meta_seq: u64,
    /// What it is.
    pub record: FrameRecord,
}

impl PushedFrame {
    /// What `read()` of the device gave behind an event; `None` if it makes no sense.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(abi::Pushed::SIZE)?;
        // It begins as the host has it.
        let (raw, arrival) = head.split_first_chunk()?;
        let raw = wire::Pushed::from_bytes(raw);
        let record = usize::try_from(raw.record_size).ok()?;
        let record = rest.get(rest.len().checked_sub(record)?..)?;
        let count = usize::try_from(raw.num_buffers).ok()?.checked_sub(1)?;
        Some(Self {
            others: raw
                .others
                .get(..count)?
                .iter()
                .map(|id| BufferId(id.b))
                .collect(),
            arrival: u64::from_ne_bytes(arrival.try_into().ok()?),
            meta_seq: raw.meta_seq,
            record: FrameRecord::parse(record)?,
        })
    }
}

/// Another VM's buffer, whose frames this program is given
///
/// The device of which it was made reads an event [`Pushed`](crate::EventKind::Pushed) of each,
/// with this [`handle`](Self::handle). It is to be returned by
/// [`Device::give_back`](crate::Device::give_back); dropping this returns it, too, and does not
/// wait.
#[derive(Debug)]
pub struct FrameImport {
    device: Arc<OwnedFd>,
    handle: u32,
    import: Import,
}

impl FrameImport {
    pub(crate) fn new(device: Arc<OwnedFd>, handle: u32, import: Import) -> Self {
        Self {
            device,
            handle,
            import,
        }
    }

    /// Its number, as events have it.
    #[must_use]
    pub fn handle(&self) -> u64 {
        self.handle.into()
    }

    /// The buffer.
    #[must_use]
    pub fn import(&self) -> &Import {
        &self.import
    }

    /// Whether this is the device that has it: another one has other handles.
    pub(crate) fn is_of(&self, device: &Arc<OwnedFd>) -> bool {
        Arc::ptr_eq(&self.device, device)
    }

    /// The device that has it.
    pub(crate) fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    pub(crate) fn entry(&self, frame: u64) -> abi::ReturnFrame {
        abi::ReturnFrame {
            handle: self.handle,
            reserved: 0,
            frame,
        }
    }
}

impl AsRawFd for FrameImport {
    fn as_raw_fd(&self) -> RawFd {
        self.import.as_raw_fd()
    }
}

impl AsFd for FrameImport {
    /// That of the [dma-buf](crate::DmaBuf).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.import.as_fd()
    }
}

impl Drop for FrameImport {
    fn drop(&mut self) {
        let mut close = abi::Close {
            handle: self.handle,
            ..abi::Close::default()
        };
        // Fails only if somebody else closed it.
        let _ = ioctl::close(self.device.as_fd(), &mut close);
    }
}

/// The bytes of all entries of a PUSH, each as long as the longest.
pub(crate) fn entries(frames: &[Push<'_>]) -> Result<(Vec<u8>, usize)> {
    let entries = |size| -> Result<Vec<Vec<u8>>> {
        let each = (0_u32..).zip(frames).map(|(entry, frame)| {
            let invalid = || Error::new(Operation::Push, rustix::io::Errno::INVAL);
            let bytes = frame.to_bytes(size);
            bytes.ok_or_else(|| invalid().of_entry(entry, frames.len()))
        });
        each.collect()
    };
    let shortest = entries(None)?;
    let size = shortest.iter().map(Vec::len).max().unwrap_or_default();
    Ok((entries(Some(size))?.concat(), size))
}

#[cfg(test)]
#[allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails"
)]
mod tests {
    use core::mem::offset_of;

    use super::*;
    use crate::Rect;

    #[test]
    fn an_entry_begins_as_the_kernel_has_it() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let export = Export::new(file.into(), BufferId([7; 16]), 1);
        let mut frame = Push::new(&export);
        frame.max_held = 3;
        let bytes = frame.to_bytes(None).unwrap();
        let field = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(field(0), export.as_raw_fd() as u32);
        assert_eq!(field(offset_of!(abi::PushFrame, num_buffers)), 1);
        assert_eq!(field(offset_of!(abi::PushFrame, max_held)), 3);
        let record = wire::Frame::SIZE;
        assert_eq!(
            field(offset_of!(abi::PushFrame, record_size)),
            record as u32
        );
        assert_eq!(bytes.len(), abi::PushFrame::SIZE + record);
        let longer = frame.to_bytes(Some(bytes.len() + 8)).unwrap();
        assert_eq!(
            longer[longer.len() - record..],
            bytes[bytes.len() - record..]
        );
        assert_eq!(longer.len(), bytes.len() + 8);
        frame.buffers = vec![&export; 5];
        assert_eq!(frame.to_bytes(None), None);
    }
    #[test]
    fn a_frame_that_is_no_entry_is_named() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let export = Export::new(file.into(), BufferId([7; 16]), 1);
        let (good, mut damaged) = (Push::new(&export), Push::new(&export));
        damaged.record.damage = vec![Rect::default(); 17];
        let mut spread = Push::new(&export);
        spread.buffers = vec![&export; 5];
        for wrong in [damaged, spread] {
            let frames = [good.clone(), good.clone(), wrong, good.clone()];
            let error = entries(&frames).unwrap_err();
            assert_eq!((error.entry, error.op), (Some(2), Operation::Push));
        }
        let (bytes, size) = entries(&[good.clone(), good]).unwrap();
        assert_eq!(bytes.len(), 2 * size);
    }
}
