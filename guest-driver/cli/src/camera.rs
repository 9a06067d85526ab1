// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A camera set up as the command line says, its buffers as mapped dma-bufs.

use bufshare::{DmaBuf, Mapping};
use bufshare_protocol::types::{Image, Rights};

use crate::args::CameraArgs;
use crate::content;
use crate::failure::{Failure, Result};
use crate::fourcc;
use crate::frame::{ReplyByte, reply_value};
use crate::v4l2::{self, Filled, Picture};

/// One buffer of the camera. The mapping goes before the dma-buf.
pub(crate) struct Slot {
    pub(crate) mapping: Mapping,
    pub(crate) dmabuf: DmaBuf,
}

/// Stream and buffers. The buffers go before the stream.
pub(crate) struct Camera {
    pub(crate) slots: Vec<Slot>,
    pub(crate) stream: v4l2::Stream,
    pub(crate) picture: Picture,
    pub(crate) image: Image,
    device: String,
}

impl Camera {
    /// Sets the format, allocates the buffers and maps them; nothing runs yet.
    pub(crate) fn new(args: &CameraArgs) -> Result<Self> {
        let device = args.device.display().to_string();
        let problem =
            |what: &str, error: &std::io::Error| Failure::io(format!("{device}: {what}"), error);
        let camera = v4l2::Camera::open(&args.device).map_err(|e| problem("open", &e))?;
        let wanted = args.format.0;
        let formats = camera.formats();
        if !formats.contains(&wanted) {
            let names: Vec<String> = formats.iter().map(ToString::to_string).collect();
            return Err(Failure::new(format!(
                "{device}: no pixel format {wanted}, only {}",
                names.join(" ")
            )));
        }
        let picture = camera
            .set_format(args.size.width, args.size.height, wanted)
            .map_err(|e| problem("set the format", &e))?;
        if (picture.width, picture.height) != (args.size.width, args.size.height)
            || picture.format != wanted
        {
            return Err(Failure::new(format!(
                "{device}: gives {}x{} {} instead of {}x{} {wanted}",
                picture.width, picture.height, picture.format, args.size.width, args.size.height
            )));
        }
        if let Some(per_second) = args.fps {
            camera
                .set_rate(per_second)
                .map_err(|e| problem("set the rate", &e))?;
        }
        let image = fourcc::describe(&picture)
            .ok_or_else(|| Failure::new(format!("{device}: the picture's size makes no sense")))?;
        let stream = camera
            .allocate(args.buffers)
            .map_err(|e| problem("allocate buffers", &e))?;
        let mut slots = Vec::new();
        for index in 0..stream.count() {
            let fd = stream
                .export(index)
                .map_err(|e| problem("make a dma-buf of a buffer (EXPBUF)", &e))?;
            let dmabuf = DmaBuf::from_fd(fd)?;
            let mapping = dmabuf.map(Rights::READ)?;
            slots.push(Slot { mapping, dmabuf });
        }
        let camera = Self {
            slots,
            stream,
            picture,
            image,
            device,
        };
        if camera.slots.len() < 2 {
            return Err(Failure::new(format!(
                "{}: gives fewer than two buffers",
                camera.device
            )));
        }
        if camera
            .slots
            .iter()
            .any(|slot| !camera.image.fits(slot.mapping.len() as u64))
        {
            return Err(Failure::new(format!(
                "{}: its buffers are too small",
                camera.device
            )));
        }
        Ok(camera)
    }

    /// Gives all buffers to the driver and starts it.
    pub(crate) fn start(&mut self) -> Result<()> {
        for index in 0..self.stream.count() {
            self.queue(index)?;
        }
        let device = &self.device;
        self.stream
            .start()
            .map_err(|e| Failure::io(format!("{device}: start"), &e))
    }

    /// Gives one buffer to the driver.
    pub(crate) fn queue(&self, index: u32) -> Result<()> {
        self.stream
            .queue(index)
            .map_err(|e| Failure::io(format!("{}: queue buffer {index}", self.device), &e))
    }

    /// Takes a filled buffer, if there is one.
    pub(crate) fn dequeue(&self) -> Result<Option<(Filled, &Slot)>> {
        let filled = self
            .stream
            .dequeue()
            .map_err(|e| Failure::io(format!("{}: take a frame", self.device), &e))?;
        filled
            .map(|filled| Ok((filled, self.slot(filled.index)?)))
            .transpose()
    }

    /// One buffer.
    pub(crate) fn slot(&self, index: u32) -> Result<&Slot> {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.slots.get(index))
            .ok_or_else(|| Failure::new(format!("{}: there is no buffer {index}", self.device)))
    }

    /// Bytes of a frame.
    pub(crate) fn frame_bytes(&self) -> usize {
        usize::try_from(self.picture.size).unwrap_or(usize::MAX)
    }

    /// Where and with what a viewer of this frame is to answer: behind the picture
    /// if there is room, else in its very last byte, which no XRGB screen shows.
    pub(crate) fn reply(&self, slot: &Slot, number: u64) -> Result<ReplyByte> {
        let offset = slot.mapping.len().saturating_sub(1);
        let present = content::byte_at(&slot.mapping, offset)?;
        Ok(ReplyByte {
            offset: offset as u64,
            value: reply_value(number, present),
        })
    }
}
