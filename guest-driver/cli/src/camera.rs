// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A camera set up as the command line says, to fill dma-bufs that it is given.
//!
//! They are memory that we allocate in few pieces, which is what webcams need: their drivers' own
//! buffers are single pages. A frame has one of them or, of a multi-planar camera, one for each of
//! its planes.

use std::io;
use std::os::fd::BorrowedFd;

use bufshare::{
    Clock, FRAME_BOTTOM_FIRST, FRAME_EXPOSURE_END, FRAME_INTERLACED, FrameRecord, FrameTime, Rect,
};
use bufshare_media::fourcc::{PixelFormat, ShownBy};
use bufshare_media::image::Image;
use bufshare_media::v4l2::{
    self, Choice, FieldOrder, Filled, Format, Offer, Queue, Side, Written, describe,
};

use crate::args::CameraArgs;
use crate::failure::{Failure, Result};
use crate::image::to_metadata;
use crate::output::{CameraRecord, Output};
use crate::rotation::{self, MIN_BUFFERS};

/// A camera with a queue that buffers are to be given to.
pub(crate) struct Camera {
    pub(crate) queue: Queue,
    pub(crate) format: Format,
    /// Of a frame that begins where its memories do.
    pub(crate) image: Image,
    /// How many the queue takes.
    pub(crate) buffers: u32,
    /// Where that is not all of a frame.
    written: Option<Written>,
    device: String,
}

impl Camera {
    /// Sets the format and makes the queue, for so many machines that view; nothing runs yet.
    pub(crate) fn new(output: Output, args: &CameraArgs, machines: usize) -> Result<Self> {
        let buffers = rotation::buffers(args.buffers, machines)?;
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
        let written = queue.written(&format);
        let mut camera = Self {
            queue,
            format,
            image,
            buffers: 0,
            written,
            device,
        };
        camera.make_queue(buffers)?;
        if let Some(warning) = rotation::shortage(camera.buffers, machines) {
            output.warn(&format!("{}: {warning}", camera.device));
        }
        Ok(camera)
    }

    /// For dma-bufs of ours.
    fn make_queue(&mut self, count: u32) -> Result<()> {
        let given = self.queue.request(v4l2::Memory::DmaBuf, count);
        self.buffers = given.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => Failure::new(format!(
                "{}: its driver fills no memory but its own (it has no V4L2_MEMORY_DMABUF)",
                self.device
            )),
            _ => Failure::io(
                format!("{}: make a queue for dma-bufs", self.device),
                &error,
            ),
        })?;
        if self.buffers < MIN_BUFFERS {
            return Err(Failure::new(format!(
                "{}: gives fewer than two buffers",
                self.device
            )));
        }
        if to_metadata(&self.image).fits_frame(&self.sizes()) {
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
            buffers: self.buffers,
            planes: self.format.planes.len(),
        }
    }

    /// Bytes that the dma-bufs of each buffer have to have, in the order of the frame's planes.
    pub(crate) fn sizes(&self) -> Vec<u64> {
        sizes(&self.format)
    }

    /// Starts the driver.
    pub(crate) fn start(&mut self) -> Result<()> {
        let device = &self.device;
        self.queue
            .start()
            .map_err(|e| Failure::io(format!("{device}: start"), &e))
    }

    /// Gives a buffer to the driver to be filled. A place has the same dma-bufs always.
    pub(crate) fn fill(&self, index: u32, dmabufs: &[BorrowedFd<'_>]) -> Result<()> {
        let queued = self.queue.queue(index, dmabufs);
        queued.map_err(|e| Failure::io(format!("{}: queue buffer {index}", self.device), &e))
    }

    /// Takes a filled buffer, if there is one.
    pub(crate) fn dequeue(&self) -> Result<Option<Filled>> {
        let filled = self.queue.dequeue();
        let filled =
            filled.map_err(|e| Failure::io(format!("{}: take a frame", self.device), &e))?;
        Ok(filled.map(|mut filled| {
            filled.broken |= !holds_frame(&self.format, &filled);
            filled
        }))
    }

    /// Bytes of this frame in each of its memories; as many as the driver was to fill at most.
    /// Drivers that do not say how many they filled have filled a whole picture.
    pub(crate) fn frame_bytes(&self, filled: &Filled) -> Vec<u32> {
        let planes = self.format.planes.iter().zip(&filled.planes);
        let bytes = planes.map(|(plane, filled)| match filled.bytes {
            0 => plane.size,
            bytes => bytes.min(plane.size),
        });
        bytes.collect()
    }

    /// What is in this buffer, for others.
    pub(crate) fn image_of(&self, filled: &Filled) -> Result<bufshare::Image> {
        image_of(&self.format, filled).ok_or_else(|| self.nonsense())
    }

    /// What the driver says of this frame.
    pub(crate) fn frame_record(&self, filled: &Filled) -> FrameRecord {
        let mut record = FrameRecord::new();
        record.sequence = filled.sequence.into();
        record.time = filled.time.map(|ns| FrameTime::new(Clock::Monotonic, ns));
        if filled.time.is_some() && !filled.time_is_start {
            record.flags |= FRAME_EXPOSURE_END;
        }
        match filled.field_order {
            Some(FieldOrder::TopFirst) => record.flags |= FRAME_INTERLACED,
            Some(FieldOrder::BottomFirst) => {
                record.flags |= FRAME_INTERLACED | FRAME_BOTTOM_FIRST;
            }
            None => {}
        }
        record.crop = self.written.map(|part| Rect {
            x: part.x,
            y: part.y,
            width: part.width,
            height: part.height,
        });
        let colour = self.format.colour;
        record.colour.primaries = colour.primaries;
        record.colour.transfer = colour.transfer;
        record.colour.matrix = colour.matrix;
        record.colour.range = colour.range;
        for (to, bytes) in record.bytes_used.iter_mut().zip(self.frame_bytes(filled)) {
            *to = bytes;
        }
        record
    }
}

fn sizes(format: &Format) -> Vec<u64> {
    let planes = format.planes.iter();
    planes.map(|plane| plane.size.into()).collect()
}

fn image_of(format: &Format, filled: &Filled) -> Option<bufshare::Image> {
    let offsets: Vec<u32> = filled.planes.iter().map(|plane| plane.offset).collect();
    Some(to_metadata(&describe(format, &offsets)?))
}

/// Whether what a driver says of a buffer can be: its picture is in it, and a compressed one has
/// bytes.
fn holds_frame(format: &Format, filled: &Filled) -> bool {
    let image = image_of(format, filled);
    let mut planes = format.planes.iter().zip(&filled.planes);
    image.is_some_and(|image| image.fits_frame(&sizes(format)))
        && planes.all(|(plane, filled)| plane.stride > 0 || filled.bytes > 0)
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
    use bufshare_media::v4l2::{Colour, FilledPlane, PlaneFormat};

    use super::*;

    #[test]
    fn a_buffer_whose_picture_cannot_be_in_it_holds_no_frame() {
        for (code, stride, size, offset, bytes, holds) in [
            (b"XR24", 64, 1024, 0, 1024, true),
            // Its driver does not say how many.
            (b"XR24", 64, 1024, 0, 0, true),
            (b"XR24", 64, 1024, 1, 1024, false),
            (b"XR24", 64, 1024, u32::MAX, 1024, false),
            (b"MJPG", 0, 1024, 0, 1, true),
            (b"MJPG", 0, 1024, 0, 0, false),
        ] {
            let format = Format {
                width: 16,
                height: 16,
                fourcc: Fourcc::new(code),
                planes: vec![PlaneFormat { stride, size }],
                colour: Colour::default(),
            };
            let filled = Filled {
                index: 0,
                sequence: 0,
                broken: false,
                time: None,
                time_is_start: false,
                field_order: None,
                planes: vec![FilledPlane { offset, bytes }],
            };
            assert_eq!(holds_frame(&format, &filled), holds, "{filled:?}");
        }
    }

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
