// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A camera set up as the command line says, with mapped dma-bufs that it fills.
//!
//! The camera fills memory that we allocate in few pieces, which is what webcams
//! need, too: their drivers' own buffers are single pages. A driver that does not
//! take ours (it has no `V4L2_MEMORY_DMABUF`, or needs memory in one piece) fills
//! its own.

use std::os::fd::AsFd;

use bufshare::{DmaBuf, Mapping};
use bufshare_protocol::types::{Image, Rights};

use crate::args::CameraArgs;
use crate::content;
use crate::failure::{Failure, Result};
use crate::fourcc;
use crate::frame::{ReplyByte, reply_value};
use crate::output::CameraRecord;
use crate::v4l2::{self, Filled, Memory, Picture};

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
    pub(crate) video: v4l2::Camera,
    pub(crate) picture: Picture,
    pub(crate) image: Image,
    /// Why the driver's own buffers are used.
    own_buffers: Option<String>,
    device: String,
}

impl Camera {
    /// Sets the format and queues buffers; nothing runs yet. `allocate` makes a
    /// dma-buf of at least so many bytes.
    pub(crate) fn new(args: &CameraArgs, allocate: impl Fn(u64) -> Result<DmaBuf>) -> Result<Self> {
        let device = args.device.display().to_string();
        let problem =
            |what: &str, error: &std::io::Error| Failure::io(format!("{device}: {what}"), error);
        let video = v4l2::Camera::open(&args.device).map_err(|e| problem("open", &e))?;
        let picture = agree(&video, args).map_err(|e| e.about(&device))?;
        if let Some(per_second) = args.fps {
            video
                .set_rate(per_second)
                .map_err(|e| problem("set the rate", &e))?;
        }
        let image = fourcc::describe(&picture)
            .ok_or_else(|| Failure::new(format!("{device}: the picture's size makes no sense")))?;
        let mut camera = Self {
            slots: Vec::new(),
            video,
            picture,
            image,
            own_buffers: None,
            device,
        };
        camera.fill_queue(args.buffers, allocate)?;
        Ok(camera)
    }

    /// Queues dma-bufs of ours or, where the driver refuses them, its own.
    fn fill_queue(&mut self, count: u32, allocate: impl Fn(u64) -> Result<DmaBuf>) -> Result<()> {
        let bytes = u64::from(self.picture.size);
        let refusal = match self.video.request(Memory::DmaBuf, count) {
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
            .video
            .request(Memory::Driver, count)
            .map_err(|e| Failure::io("allocate buffers", &e))?;
        self.slots.clear();
        for index in 0..count {
            let fd = self
                .video
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
        if self
            .slots
            .iter()
            .any(|slot| !self.image.fits(slot.mapping.len() as u64))
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
            format: self.picture.format.to_string(),
            width: self.picture.width,
            height: self.picture.height,
            stride: self.picture.stride,
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
        self.video
            .start()
            .map_err(|e| Failure::io(format!("{device}: start"), &e))
    }

    /// Gives one buffer to the driver.
    pub(crate) fn queue(&self, index: u32) -> Result<()> {
        self.queue_slot(index, self.slot(index)?)
            .map_err(|e| e.about(&self.device))
    }

    fn queue_slot(&self, index: u32, slot: &Slot) -> Result<()> {
        self.video
            .queue(index, slot.dmabuf.as_fd())
            .map_err(|e| Failure::io(format!("queue buffer {index}"), &e))
    }

    /// Takes a filled buffer, if there is one.
    pub(crate) fn dequeue(&self) -> Result<Option<(Filled, &Slot)>> {
        let filled = self
            .video
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

/// Sets format and size, exactly those that are wanted.
fn agree(video: &v4l2::Camera, args: &CameraArgs) -> Result<Picture> {
    let wanted = args.format.0;
    let formats = video
        .formats()
        .map_err(|e| Failure::io("list the pixel formats", &e))?;
    if !formats.contains(&wanted) {
        let names: Vec<String> = formats.iter().map(ToString::to_string).collect();
        return Err(Failure::new(format!(
            "no pixel format {wanted}, only {}",
            names.join(" ")
        )));
    }
    let (width, height) = (args.size.width, args.size.height);
    let picture = video
        .set_format(width, height, wanted)
        .map_err(|e| Failure::io("set the format", &e))?;
    if (picture.width, picture.height, picture.format) != (width, height, wanted) {
        let offer = match video.sizes(wanted) {
            Ok(sizes) if sizes.is_empty() => String::new(),
            Ok(sizes) => {
                let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
                format!("; its driver lists {}", sizes.join(", "))
            }
            Err(error) => format!("; its driver does not list its sizes: {error}"),
        };
        return Err(Failure::new(format!(
            "gives {}x{} {} instead of {width}x{height} {wanted}{offer}",
            picture.width, picture.height, picture.format
        )));
    }
    Ok(picture)
}
