// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A camera set up as the command line says, with mapped dma-bufs that it fills.
//!
//! They are memory that we allocate in few pieces, which is what webcams need: their drivers' own
//! buffers are single pages. A frame has one of them or, of a multi-planar camera, one for each of
//! its planes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use bufshare::{DmaBuf, Mapping, Rights};
use bufshare_media::fourcc::{PixelFormat, ShownBy};
use bufshare_media::image::Image;
use bufshare_media::v4l2::{self, Choice, Filled, Format, Offer, Queue, Side, describe};

use crate::args::CameraArgs;
use crate::content;
use crate::failure::{Failure, Result};
use crate::frame::{ReplyByte, reply_value};
use crate::image::to_metadata;
use crate::output::{CameraRecord, Output};

/// The fewest buffers of a rotation: one is filled while another is looked at.
const MIN_BUFFERS: usize = 2;
/// A dma-buf. The mapping goes before it.
pub(crate) struct Memory {
    pub(crate) mapping: Mapping,
    pub(crate) dmabuf: DmaBuf,
}

/// One buffer of the camera.
pub(crate) struct Slot {
    /// That in which the frame begins; the reply is behind it.
    pub(crate) first: Memory,
    pub(crate) others: Vec<Memory>,
}

impl Slot {
    /// In the order of the frame's planes.
    pub(crate) fn memories(&self) -> impl Iterator<Item = &Memory> {
        std::iter::once(&self.first).chain(&self.others)
    }

    pub(crate) fn dmabufs(&self) -> Vec<BorrowedFd<'_>> {
        let fds = self.memories().map(|memory| memory.dmabuf.as_fd());
        fds.collect()
    }

    pub(crate) fn mappings(&self) -> Vec<&Mapping> {
        self.memories().map(|memory| &memory.mapping).collect()
    }
}

/// Buffers and queue. The buffers go before the queue.
pub(crate) struct Camera {
    pub(crate) slots: Vec<Slot>,
    pub(crate) queue: Queue,
    pub(crate) format: Format,
    /// Of a frame that begins where its memories do.
    pub(crate) image: Image,
    device: String,
}

impl Camera {
    /// Sets the format and queues buffers; nothing runs yet. `allocate` makes a
    /// dma-buf of at least so many bytes.
    pub(crate) fn new(
        output: Output,
        args: &CameraArgs,
        allocate: impl Fn(u64) -> Result<DmaBuf>,
    ) -> Result<Self> {
        let device = args.device.display().to_string();
        let problem =
            |what: &str, error: &std::io::Error| Failure::io(format!("{device}: {what}"), error);
        let about = |error: bufshare_media::Error| Failure::from(error.about(&device));
        let mut queue =
            Queue::open(&args.device, Side::Capture).map_err(|e| problem("open", &e))?;
        let offer = Offer::of(&queue).map_err(about)?;
        let wanted = args.format.map(|PixelFormat(wanted)| wanted);
        let choice = offer.choose(wanted).map_err(about)?;
        if let Some(remark) = remark(&offer, choice) {
            output.warn(&format!("{device}: {remark}"));
        }
        let size = args.size.map(|size| (size.width, size.height));
        let format = queue.agree(size, choice.format).map_err(about)?;
        if let Some(per_second) = args.fps {
            queue
                .set_rate(per_second)
                .map_err(|e| problem("set the rate", &e))?;
        }
        let image = describe(&format, &[])
            .ok_or_else(|| Failure::new(format!("{device}: the picture's size makes no sense")))?;
        let mut camera = Self {
            slots: Vec::new(),
            queue,
            format,
            image,
            device,
        };
        camera.fill_queue(args.buffers, allocate)?;
        Ok(camera)
    }

    /// Queues dma-bufs of ours.
    fn fill_queue(&mut self, count: u32, allocate: impl Fn(u64) -> Result<DmaBuf>) -> Result<()> {
        let given = self.queue.request(v4l2::Memory::DmaBuf, count);
        let given = given.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => Failure::new(format!(
                "{}: its driver fills no memory but its own (it has no V4L2_MEMORY_DMABUF)",
                self.device
            )),
            _ => Failure::io(
                format!("{}: make a queue for dma-bufs", self.device),
                &error,
            ),
        })?;
        for _ in 0..given {
            let mut memories = self.format.planes.iter().map(|plane| {
                let dmabuf = allocate(plane.size.into())?;
                let mapping = dmabuf.map(Rights::READ)?;
                Ok(Memory { mapping, dmabuf })
            });
            let first = memories.next().unwrap_or_else(|| Err(self.nonsense()))?;
            let others = memories.collect::<Result<_>>()?;
            self.slots.push(Slot { first, others });
        }
        for (index, slot) in (0u32..).zip(&self.slots) {
            self.queue_slot(index, slot)?;
        }
        if self.slots.len() < MIN_BUFFERS {
            return Err(Failure::new(format!(
                "{}: gives fewer than two buffers",
                self.device
            )));
        }
        let fits = |slot: &Slot| {
            let sizes = slot.memories().map(|memory| memory.dmabuf.len() as u64);
            to_metadata(&self.image).fits_frame(&sizes.collect::<Vec<_>>())
        };
        if self.slots.iter().all(fits) {
            Ok(())
        } else {
            Err(self.nonsense())
        }
    }

    fn nonsense(&self) -> Failure {
        Failure::new(format!(
            "{}: the picture's size makes no sense",
            self.device
        ))
    }

    /// What is to be said of it.
    pub(crate) fn record(&self) -> CameraRecord {
        CameraRecord {
            device: self.device.clone(),
            format: self.format.fourcc.to_string(),
            width: self.format.width,
            height: self.format.height,
            stride: self.format.stride(),
            buffers: self.slots.len(),
            planes: self.format.planes.len(),
        }
    }

    /// Starts the driver, which has all buffers.
    pub(crate) fn start(&mut self) -> Result<()> {
        let device = &self.device;
        self.queue
            .start()
            .map_err(|e| Failure::io(format!("{device}: start"), &e))
    }

    /// Gives one buffer to the driver.
    pub(crate) fn refill(&self, index: u32) -> Result<()> {
        self.queue_slot(index, self.slot(index)?)
    }

    fn queue_slot(&self, index: u32, slot: &Slot) -> Result<()> {
        let queued = self.queue.queue(index, &slot.dmabufs());
        queued.map_err(|e| Failure::io(format!("{}: queue buffer {index}", self.device), &e))
    }

    /// Takes a filled buffer, if there is one.
    pub(crate) fn dequeue(&self) -> Result<Option<Filled>> {
        self.queue
            .dequeue()
            .map_err(|e| Failure::io(format!("{}: take a frame", self.device), &e))
    }

    /// One buffer.
    pub(crate) fn slot(&self, index: u32) -> Result<&Slot> {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.slots.get(index))
            .ok_or_else(|| Failure::new(format!("{}: there is no buffer {index}", self.device)))
    }

    /// Bytes of this frame in each of its buffers; as many as that has at most. Drivers that do
    /// not say how many they filled have filled a whole picture.
    pub(crate) fn frame_bytes(&self, filled: &Filled, slot: &Slot) -> Vec<usize> {
        let sizes = self.format.planes.iter().zip(&filled.planes);
        let sizes = sizes.zip(slot.memories()).map(|((plane, filled), memory)| {
            let bytes = match filled.bytes {
                0 => plane.size,
                bytes => bytes,
            };
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            bytes.min(memory.mapping.len())
        });
        sizes.collect()
    }

    /// What is in this buffer, for others.
    pub(crate) fn image_of(&self, filled: &Filled) -> Result<bufshare::Image> {
        let offsets: Vec<u32> = filled.planes.iter().map(|plane| plane.offset).collect();
        let image = describe(&self.format, &offsets).ok_or_else(|| self.nonsense())?;
        Ok(to_metadata(&image))
    }

    /// Where and with what a viewer of this frame is to answer: in the first buffer, behind the
    /// picture if there is room, else in its very last byte. No screen shows that of an XRGB
    /// picture.
    pub(crate) fn reply(&self, slot: &Slot, number: u64) -> Result<ReplyByte> {
        let mapping = &slot.first.mapping;
        let offset = mapping.len().saturating_sub(1);
        let present = content::byte_at(mapping, offset)?;
        Ok(ReplyByte {
            offset: offset as u64,
            value: reply_value(number, present),
        })
    }
}

/// What is to be said of a pixel format that was not asked for, and that not every screen shows.
fn remark(offer: &Offer, choice: Choice) -> Option<String> {
    let (names, format) = (offer.names(), choice.format);
    match choice.shown_by? {
        ShownBy::AllCards => None,
        ShownBy::SomeCards => Some(format!(
            "no pixel format XRGB8888, only {names}; takes {format}, which `bufshare view` shows \
             where a card does"
        )),
        ShownBy::NoCard => Some(format!(
            "no pixel format that `bufshare view` can show, only {names}; takes {format}, which is \
             set, and shares it as it is (`bufshare view --no-display` takes it)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use bufshare_media::fourcc::Fourcc;

    use super::*;

    #[test]
    fn a_format_that_not_every_screen_shows_is_said_to_be_taken_and_of_which() {
        let offer = Offer {
            all: vec![Fourcc::new(b"MJPG"), Fourcc::new(b"YUYV")],
            present: Fourcc::new(b"MJPG"),
        };
        let said = |code, shown_by| {
            let format = Fourcc::new(code);
            remark(&offer, Choice { format, shown_by })
        };
        for (code, shown_by, why) in [
            (
                b"YUYV",
                ShownBy::SomeCards,
                "no pixel format XRGB8888, only MJPG YUYV; takes YUYV",
            ),
            (
                b"MJPG",
                ShownBy::NoCard,
                "no pixel format that `bufshare view` can show, only MJPG YUYV; takes MJPG, which is set",
            ),
        ] {
            let remark = said(code, Some(shown_by)).unwrap();
            assert!(remark.contains(why), "{remark}");
        }
        assert_eq!(said(b"XR24", Some(ShownBy::AllCards)), None);
        assert_eq!(said(b"MJPG", None), None);
    }
}
