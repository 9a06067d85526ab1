// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A camera set up as the command line says, with mapped dma-bufs that it fills.
//!
//! The camera fills memory that we allocate in few pieces, which is what webcams
//! need, too: their drivers' own buffers are single pages. A driver that does not
//! take ours (it has no `V4L2_MEMORY_DMABUF`, or needs memory in one piece) fills
//! its own.

use std::os::fd::AsFd;

use bufshare::{DmaBuf, Image, Mapping, Rights};

use crate::args::{CameraArgs, Pixels};
use crate::content;
use crate::failure::{Failure, Result};
use crate::fourcc::{self, Fourcc, PixelFormat, ShownBy};
use crate::frame::{ReplyByte, reply_value};
use crate::output::{CameraRecord, Output};
use crate::v4l2::{self, Filled, Memory, Picture};

/// The fewest buffers of a rotation: one is filled while another is looked at.
const MIN_BUFFERS: usize = 2;
/// The size that is asked for where none is wanted: every webcam has it.
const USUAL_SIZE: Pixels = Pixels {
    width: 640,
    height: 480,
};

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
    pub(crate) fn new(
        output: Output,
        args: &CameraArgs,
        allocate: impl Fn(u64) -> Result<DmaBuf>,
    ) -> Result<Self> {
        let device = args.device.display().to_string();
        let problem =
            |what: &str, error: &std::io::Error| Failure::io(format!("{device}: {what}"), error);
        let video = v4l2::Camera::open(&args.device).map_err(|e| problem("open", &e))?;
        let offer = Offer::of(&video).map_err(|e| e.about(&device))?;
        let (format, remark) = offer.choose(args.format).map_err(|e| e.about(&device))?;
        if let Some(remark) = remark {
            output.warn(&format!("{device}: {remark}"));
        }
        let picture = agree(&video, args.size, format).map_err(|e| e.about(&device))?;
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

    /// Bytes of this frame; as many as its buffer has at most. Drivers that do not say
    /// how many they filled have filled a whole picture.
    pub(crate) fn frame_bytes(&self, filled: &Filled, slot: &Slot) -> usize {
        let bytes = match filled.bytes {
            0 => self.picture.size,
            bytes => bytes,
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

/// The pixel formats of a camera.
struct Offer {
    all: Vec<Fourcc>,
    present: Fourcc,
}

impl Offer {
    fn of(video: &v4l2::Camera) -> Result<Self> {
        Ok(Self {
            all: video
                .formats()
                .map_err(|e| Failure::io("list the pixel formats", &e))?,
            present: video
                .format()
                .map_err(|e| Failure::io("ask for the present pixel format", &e))?,
        })
    }

    /// The one to set. One that was not asked for, and that not every screen shows, comes
    /// with a remark.
    fn choose(&self, wanted: Option<PixelFormat>) -> Result<(Fourcc, Option<String>)> {
        if let Some(PixelFormat(wanted)) = wanted {
            return if self.all.contains(&wanted) {
                Ok((wanted, None))
            } else {
                Err(Failure::new(format!(
                    "no pixel format {wanted}, only {}",
                    self.names()
                )))
            };
        }
        let known = fourcc::shown().find(|(format, _)| self.all.contains(format));
        Ok(match known {
            Some((format, ShownBy::AllCards)) => (format, None),
            Some((format, ShownBy::SomeCards)) => (
                format,
                Some(format!(
                    "no pixel format XRGB8888, only {}; takes {format}, which `bufshare view` \
                     shows where a card does",
                    self.names()
                )),
            ),
            None => (
                self.present,
                Some(format!(
                    "no pixel format that `bufshare view` can show, only {}; takes {}, which is \
                     set, and shares it as it is (`bufshare view --no-display` checks it)",
                    self.names(),
                    self.present
                )),
            ),
        })
    }

    fn names(&self) -> String {
        if self.all.is_empty() {
            return "what its driver does not list".to_owned();
        }
        let names: Vec<String> = self.all.iter().map(ToString::to_string).collect();
        names.join(" ")
    }
}

/// Sets the format, and the size exactly if one is wanted.
fn agree(video: &v4l2::Camera, size: Option<Pixels>, format: Fourcc) -> Result<Picture> {
    let Pixels { width, height } = size.unwrap_or(USUAL_SIZE);
    let picture = video
        .set_format(width, height, format)
        .map_err(|e| Failure::io("set the format", &e))?;
    let other_size = size.is_some() && (picture.width, picture.height) != (width, height);
    if other_size || picture.format != format {
        let offer = match video.sizes(format) {
            Ok(sizes) if sizes.is_empty() => String::new(),
            Ok(sizes) => {
                let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
                format!("; its driver lists {}", sizes.join(", "))
            }
            Err(error) => format!("; its driver does not list its sizes: {error}"),
        };
        return Err(Failure::new(format!(
            "gives {}x{} {} instead of {width}x{height} {format}{offer}",
            picture.width, picture.height, picture.format
        )));
    }
    Ok(picture)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(all: &[&[u8; 4]], present: &[u8; 4]) -> Offer {
        Offer {
            all: all.iter().map(|code| Fourcc::new(code)).collect(),
            present: Fourcc::new(present),
        }
    }

    fn taken(all: &[&[u8; 4]], present: &[u8; 4]) -> (String, String) {
        let (format, remark) = offer(all, present).choose(None).unwrap();
        (format.to_string(), remark.unwrap_or_default())
    }

    #[test]
    fn what_every_screen_shows_is_taken_without_a_word() {
        for (all, format) in [
            (&[b"YUYV", b"AR24", b"XR24", b"BGR4"][..], "XR24"),
            // The same bytes by another name.
            (&[b"MJPG", b"YUYV", b"BGR4"][..], "BGR4"),
        ] {
            assert_eq!(taken(all, b"YUYV"), (format.to_owned(), String::new()));
        }
    }

    #[test]
    fn of_a_webcam_what_some_screens_show_is_taken_and_that_is_said() {
        // By whatever order its driver lists them, whatever is set.
        for (all, format) in [
            (&[b"MJPG", b"YUYV"][..], "YUYV"),
            (&[b"NV12", b"MJPG"][..], "NV12"),
            (&[b"MJPG", b"NV12", b"YUYV", b"H264"][..], "YUYV"),
            (&[b"GREY", b"YUYV"][..], "YUYV"),
            (&[b"YUYV", b"RGBP"][..], "RGBP"),
        ] {
            let (found, remark) = taken(all, b"MJPG");
            assert_eq!(found, format);
            let names: Vec<String> = all
                .iter()
                .map(|code| Fourcc::new(code).to_string())
                .collect();
            let why = format!(
                "no pixel format XRGB8888, only {}; takes {format}",
                names.join(" ")
            );
            assert!(remark.contains(&why), "{remark}");
        }
    }

    #[test]
    fn of_a_camera_whose_formats_no_screen_shows_the_present_one_is_taken_and_that_is_said() {
        let (format, remark) = taken(&[b"H264", b"MJPG"], b"MJPG");
        assert_eq!(format, "MJPG");
        let why = "no pixel format that `bufshare view` can show, only H264 MJPG; takes MJPG, which is set";
        assert!(remark.contains(why), "{remark}");
        // A driver that lists nothing has one all the same.
        let (format, remark) = taken(&[], b"MJPG");
        assert_eq!(format, "MJPG");
        assert!(remark.contains("does not list"), "{remark}");
    }

    #[test]
    fn what_is_asked_for_is_taken_or_refused_with_all_that_there_is() {
        let webcam = offer(&[b"MJPG", b"YUYV"], b"YUYV");
        for code in ["MJPG", "YUYV"] {
            let (format, remark) = webcam.choose(code.parse().ok()).unwrap();
            assert_eq!((format.to_string(), remark), (code.to_owned(), None));
        }
        let error = webcam.choose("XRGB8888".parse().ok()).unwrap_err();
        assert_eq!(error.to_string(), "no pixel format XR24, only MJPG YUYV");
    }
}
