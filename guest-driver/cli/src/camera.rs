// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A camera set up as the command line says, with mapped dma-bufs that it fills.
//!
//! The camera fills memory that we allocate in few pieces, which is what webcams
//! need, too: their drivers' own buffers are single pages. A driver that does not
//! take ours (it has no `V4L2_MEMORY_DMABUF`, or needs memory in one piece) fills
//! its own.

use std::os::fd::AsFd;

use bufshare::{DmaBuf, Mapping, Rights};
use bufshare_media::fourcc::{PixelFormat, ShownBy};
use bufshare_media::image::Image;
use bufshare_media::v4l2::{Choice, Filled, Format, Memory, Offer, Queue, Side, describe};

use crate::args::CameraArgs;
use crate::content;
use crate::failure::{Failure, Result};
use crate::frame::{ReplyByte, reply_value};
use crate::image::to_metadata;
use crate::output::{CameraRecord, Output};

/// The fewest buffers of a rotation: one is filled while another is looked at.
const MIN_BUFFERS: usize = 2;
/// One buffer of the camera. The mapping goes before the dma-buf.
pub(crate) struct Slot {
    pub(crate) mapping: Mapping,
    pub(crate) dmabuf: DmaBuf,
}

/// Buffers and queue. The buffers go before the queue.
pub(crate) struct Camera {
    pub(crate) slots: Vec<Slot>,
    pub(crate) queue: Queue,
    pub(crate) format: Format,
    pub(crate) image: Image,
    /// Why the driver's own buffers are used.
    own_buffers: Option<String>,
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
        if queue.is_multi_planar() {
            return Err(Failure::new(format!(
                "{device}: a multi-planar camera; only single-planar capture is supported"
            )));
        }
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
            own_buffers: None,
            device,
        };
        camera.fill_queue(args.buffers, allocate)?;
        Ok(camera)
    }

    /// Queues dma-bufs of ours or, where the driver refuses them, its own.
    fn fill_queue(&mut self, count: u32, allocate: impl Fn(u64) -> Result<DmaBuf>) -> Result<()> {
        let bytes = self.format.size();
        let refusal = match self.queue.request(Memory::DmaBuf, count) {
            Ok(count) => {
                for _ in 0..count {
                    self.add(allocate(bytes)?)?;
                }
                self.queue_all().err()
            }
            Err(error) => Some(Failure::io("make a queue for dma-bufs", &error)),
        };
        let Some(refusal) = refusal else {
            return self.check();
        };
        self.own_buffers = Some(refusal.to_string());
        self.queue_own(count).map_err(|own| {
            Failure::new(format!(
                "{}: it takes no dma-bufs ({refusal}) and its own buffers cannot be used ({own})",
                self.device
            ))
        })?;
        self.check()
    }

    fn queue_own(&mut self, count: u32) -> Result<()> {
        let count = self
            .queue
            .request(Memory::Driver, count)
            .map_err(|e| Failure::io("allocate buffers", &e))?;
        self.slots.clear();
        for index in 0..count {
            let fd = self
                .queue
                .export(index)
                .map_err(|e| Failure::io("make a dma-buf of a buffer (EXPBUF)", &e))?;
            self.add(DmaBuf::from_fd(fd)?)?;
        }
        self.queue_all()
    }

    fn add(&mut self, dmabuf: DmaBuf) -> Result<()> {
        let mapping = dmabuf.map(Rights::READ)?;
        self.slots.push(Slot { mapping, dmabuf });
        Ok(())
    }

    fn queue_all(&self) -> Result<()> {
        (0u32..)
            .zip(&self.slots)
            .try_for_each(|(index, slot)| self.queue_slot(index, slot))
    }

    fn check(&self) -> Result<()> {
        if self.slots.len() < MIN_BUFFERS {
            return Err(Failure::new(format!(
                "{}: gives fewer than two buffers",
                self.device
            )));
        }
        let image = to_metadata(&self.image);
        if self
            .slots
            .iter()
            .any(|slot| !image.fits(slot.mapping.len() as u64))
        {
            return Err(Failure::new(format!(
                "{}: its buffers are too small",
                self.device
            )));
        }
        Ok(())
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
            memory: if self.own_buffers.is_none() {
                "dmabuf"
            } else {
                "mmap"
            },
            why: self.own_buffers.clone(),
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
            .map_err(|e| e.about(&self.device))
    }

    fn queue_slot(&self, index: u32, slot: &Slot) -> Result<()> {
        let own = self.own_buffers.is_some();
        let memories = [slot.dmabuf.as_fd()];
        let memories = if own { &[][..] } else { &memories };
        self.queue
            .queue(index, memories)
            .map_err(|e| Failure::io(format!("queue buffer {index}"), &e))
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

    /// Bytes of this frame; as many as its buffer has at most. Drivers that do not say
    /// how many they filled have filled a whole picture.
    pub(crate) fn frame_bytes(&self, filled: &Filled, slot: &Slot) -> usize {
        let bytes = match filled.planes.first().map_or(0, |plane| plane.bytes) {
            0 => self.format.size(),
            bytes => bytes.into(),
        };
        usize::try_from(bytes)
            .unwrap_or(usize::MAX)
            .min(slot.mapping.len())
    }

    /// Where and with what a viewer of this frame is to answer: behind the picture
    /// if there is room, else in its very last byte. No screen shows that of an XRGB
    /// picture.
    pub(crate) fn reply(&self, slot: &Slot, number: u64) -> Result<ReplyByte> {
        let offset = slot.mapping.len().saturating_sub(1);
        let present = content::byte_at(&slot.mapping, offset)?;
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
             set, and shares it as it is (`bufshare view --no-display` checks it)"
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
