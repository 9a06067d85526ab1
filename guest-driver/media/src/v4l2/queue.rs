// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One queue of a video driver

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::abi::{self, BufferPlane, BufferType, Memory, Side, Transfer};
use super::colour::Colour;
use crate::fourcc::Fourcc;

/// A driver that has more formats, sizes or controls is taken to repeat itself.
const MAX_ENTRIES: u32 = 256;

/// Memories of a picture: as many as a DRM framebuffer has planes.
pub const MAX_PLANES: usize = 4;

/// What a driver agreed to deliver
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// V4L2's pixel format.
    pub fourcc: Fourcc,
    /// The memories of a picture, 1 to [`MAX_PLANES`].
    pub planes: Vec<PlaneFormat>,
    /// What its colours are.
    pub colour: Colour,
}

impl Format {
    /// Bytes per row of the first plane; 0 of a compressed picture.
    #[must_use]
    pub fn stride(&self) -> u32 {
        self.planes.first().map_or(0, |plane| plane.stride)
    }

    /// Bytes of the whole picture, in all its memories.
    #[must_use]
    pub fn size(&self) -> u64 {
        let sizes = self.planes.iter().map(|plane| u64::from(plane.size));
        sizes.fold(0, u64::saturating_add)
    }
}

/// One memory of a picture
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaneFormat {
    /// Bytes per row of the first plane in it.
    pub stride: u32,
    /// Bytes that the driver needs.
    pub size: u32,
}

/// A buffer that comes back from the driver
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filled {
    /// Which one.
    pub index: u32,
    /// The driver's frame counter; a gap is a frame lost for want of buffers.
    pub sequence: u32,
    /// The driver could not fill it properly.
    pub broken: bool,
    /// When, nanoseconds of CLOCK_MONOTONIC; `None` of drivers that use another clock.
    pub time: Option<i64>,
    /// That is when its exposure began; else when the picture was whole.
    pub time_is_start: bool,
    /// Two fields, line by line.
    pub field_order: Option<FieldOrder>,
    /// Its memories.
    pub planes: Vec<FilledPlane>,
}

/// Which field of a picture came first
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldOrder {
    /// The one of the first line, or nobody says.
    TopFirst,
    /// The one of the second line.
    BottomFirst,
}

/// The part of a picture that a driver writes, pixels
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Pixels left of it.
    pub x: i32,
    /// Pixels above it.
    pub y: i32,
    /// Across.
    pub width: u32,
    /// Down.
    pub height: u32,
}

/// One memory of a filled buffer
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilledPlane {
    /// Where the picture begins in it, bytes.
    pub offset: u32,
    /// Where it ends: of a compressed picture before that of others. 0 of drivers that do not
    /// say.
    pub bytes: u32,
}

/// A size, or sizes, of pictures
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// Just this one, pixels.
    One {
        /// Across.
        width: u32,
        /// Down.
        height: u32,
    },
    /// Widths and heights in between, perhaps in steps.
    Range {
        /// The smallest.
        least: (u32, u32),
        /// The largest.
        most: (u32, u32),
    },
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One { width, height } => write!(f, "{width}x{height}"),
            Self::Range { least, most } => {
                write!(f, "{}x{} to {}x{}", least.0, least.1, most.0, most.1)
            }
        }
    }
}

/// The entries of a driver's list, up to [`MAX_ENTRIES`].
fn entries<T>(ask: impl FnMut(u32) -> io::Result<T>) -> io::Result<Vec<T>> {
    let mut entries = Vec::new();
    for entry in (0..MAX_ENTRIES).map(ask) {
        match entry {
            Ok(entry) => entries.push(entry),
            // So a list ends, and so drivers answer that have none.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTTY)) => {
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(entries)
}

/// An open video device with the queue of one side. Nothing here waits for a picture: the
/// descriptor is readable (of an output writable) when there is one to
/// [`dequeue`](Self::dequeue). Dropping it stops the stream and frees the queue.
#[derive(Debug)]
pub struct Queue {
    fd: OwnedFd,
    kind: BufferType,
    memory: Memory,
    /// Memories of a picture in the present format.
    planes: usize,
    /// Of pictures whose driver leaves that to the video standard.
    interlaced: FieldOrder,
    running: bool,
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Queue {
    /// Opens the device `path`. [`Unsupported`](io::ErrorKind::Unsupported): it does not have that
    /// side, or not with buffers.
    pub fn open(path: &Path, side: Side) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        let mut answer = abi::Capability::default();
        abi::QUERYCAP.run(&fd, &mut answer)?;
        let able = if answer.capabilities & abi::CAP_DEVICE_CAPS != 0 {
            answer.device_caps
        } else {
            answer.capabilities
        };
        let kind =
            kind(able, side).map_err(|lack| io::Error::new(io::ErrorKind::Unsupported, lack))?;
        Ok(Self {
            fd,
            kind,
            memory: Memory::DmaBuf,
            planes: 1,
            interlaced: FieldOrder::TopFirst,
            running: false,
        })
    }

    /// The driver takes a memory for each plane of a picture, in formats that say so.
    #[must_use]
    pub fn is_multi_planar(&self) -> bool {
        self.kind.multi_planar
    }

    /// The pixel formats on offer, as the driver orders them.
    pub fn formats(&self) -> io::Result<Vec<Fourcc>> {
        entries(|index| {
            let mut description = abi::FormatDescription {
                index,
                kind: self.kind.number(),
                ..Default::default()
            };
            abi::ENUM_FMT.run(self, &mut description)?;
            Ok(Fourcc(description.pixelformat))
        })
    }

    /// The sizes of pictures on offer; none from drivers that do not say.
    pub fn sizes(&self, format: Fourcc) -> io::Result<Vec<Sizes>> {
        entries(|index| {
            let mut size = abi::FrameSize {
                index,
                pixel_format: format.0,
                ..Default::default()
            };
            abi::ENUM_FRAMESIZES.run(self, &mut size)?;
            Ok(if size.kind == abi::FRMSIZE_TYPE_DISCRETE {
                Sizes::One {
                    width: size.min_width,
                    height: size.max_width,
                }
            } else {
                Sizes::Range {
                    least: (size.min_width, size.min_height),
                    most: (size.max_width, size.max_height),
                }
            })
        })
    }

    /// The pixel format that is set.
    pub fn format(&self) -> io::Result<Fourcc> {
        let format = if self.kind.multi_planar {
            let mut value = abi::MultiFormat::new(self.kind, abi::PixFormatMplane::default());
            abi::G_FMT_MULTI.run(self, &mut value)?;
            value.fmt.pix.pixelformat
        } else {
            let mut value = abi::SingleFormat::new(self.kind, abi::PixFormat::default());
            abi::G_FMT.run(self, &mut value)?;
            value.fmt.pix.pixelformat
        };
        Ok(Fourcc(format))
    }

    /// Asks for a format; the driver may answer with another one, also of another size.
    /// [`Unsupported`](io::ErrorKind::Unsupported): its pictures have more than [`MAX_PLANES`]
    /// memories, or are neither progressive nor interlaced.
    pub fn set_format(&mut self, width: u32, height: u32, format: Fourcc) -> io::Result<Format> {
        let format = if self.kind.multi_planar {
            let pix = abi::PixFormatMplane {
                width,
                height,
                pixelformat: format.0,
                field: abi::FIELD_NONE,
                ..Default::default()
            };
            let mut value = abi::MultiFormat::new(self.kind, pix);
            abi::S_FMT_MULTI.run(&*self, &mut value)?;
            check_field(value.fmt.pix.field)?;
            of_multi(&value.fmt.pix)?
        } else {
            let pix = abi::PixFormat {
                width,
                height,
                pixelformat: format.0,
                field: abi::FIELD_NONE,
                ..Default::default()
            };
            let mut value = abi::SingleFormat::new(self.kind, pix);
            abi::S_FMT.run(&*self, &mut value)?;
            check_field(value.fmt.pix.field)?;
            of_single(&value.fmt.pix)
        };
        self.planes = format.planes.len();
        Ok(format)
    }

    /// The part of a picture of this format that the driver writes, where that is not all of it.
    pub fn written(&self, format: &Format) -> Option<Written> {
        // Also of a multi-planar queue: all kernels that this runs on take either.
        let mut selection = abi::Selection {
            kind: self.kind.number(),
            target: abi::SEL_TGT_COMPOSE,
            ..Default::default()
        };
        // A driver that has no such request writes all.
        abi::G_SELECTION.run(self, &mut selection).ok()?;
        part(&selection, format)
    }

    /// Asks for so many pictures a second; the driver takes the nearest it can.
    pub fn set_rate(&self, per_second: u32) -> io::Result<()> {
        let mut value = abi::StreamParameters {
            kind: self.kind.number(),
            capability: 0,
            capturemode: 0,
            numerator: 1,
            denominator: per_second,
            rest: [0; 184],
        };
        abi::S_PARM.run(self, &mut value)
    }

    /// Makes a queue of about `count` places for this kind of memory, instead of the present one.
    /// The driver may give more or fewer than asked; with none the present queue is freed.
    /// [`InvalidInput`](io::ErrorKind::InvalidInput): it does not take that memory.
    pub fn request(&mut self, memory: Memory, count: u32) -> io::Result<u32> {
        let mut request = abi::RequestBuffers {
            count,
            kind: self.kind.number(),
            memory: memory as u32,
            ..Default::default()
        };
        abi::REQBUFS.run(&*self, &mut request)?;
        self.memory = memory;
        Ok(request.count)
    }

    /// The first memory of one of the driver's own buffers, as dma-buf.
    pub fn export(&self, index: u32) -> io::Result<OwnedFd> {
        let mut export = abi::ExportBuffer {
            kind: self.kind.number(),
            index,
            flags: (OFlags::RDWR | OFlags::CLOEXEC).bits(),
            fd: -1,
            ..Default::default()
        };
        abi::EXPBUF.run(self, &mut export)?;
        if export.fd < 0 {
            return Err(io::Error::other("the driver returned no file"));
        }
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(export.fd) })
    }

    /// Gives a buffer to the driver to fill all of its memories, one for each of the
    /// [format's planes](Format::planes). They are always the same for a place; of the driver's own
    /// buffers none are named.
    pub fn queue(&self, index: u32, memories: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.queue_filled(index, memories, 0)
    }

    /// Gives a buffer to an output's driver, with so many bytes to send in each of its memories.
    pub fn queue_filled(
        &self,
        index: u32,
        memories: &[BorrowedFd<'_>],
        bytes: u32,
    ) -> io::Result<()> {
        let wanted = match self.memory {
            Memory::DmaBuf => self.planes,
            Memory::Driver => 0,
        };
        if memories.len() != wanted {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{wanted} memories are wanted, not {}", memories.len()),
            ));
        }
        let mut planes = [BufferPlane::default(); MAX_PLANES];
        for (plane, memory) in planes.iter_mut().zip(memories) {
            plane.location = [memory.as_raw_fd(), 0];
            // With length 0 the driver takes all of it; it sends no more than the length.
            plane.length = bytes;
            plane.bytesused = bytes;
        }
        let mut exchange = abi::Exchange {
            index,
            ..Default::default()
        };
        self.transfer(Transfer::Queue, &mut exchange, &mut planes)
    }

    fn transfer(
        &self,
        way: Transfer,
        exchange: &mut abi::Exchange,
        planes: &mut [BufferPlane; MAX_PLANES],
    ) -> io::Result<()> {
        let planes = planes.get_mut(..self.planes).unwrap_or_default();
        abi::transfer(self, way, (self.kind, self.memory), exchange, planes)
    }

    /// Takes a buffer that the driver has filled or sent, if there is one.
    pub fn dequeue(&self) -> io::Result<Option<Filled>> {
        let mut exchange = abi::Exchange::default();
        let mut planes = [BufferPlane::default(); MAX_PLANES];
        match self.transfer(Transfer::Dequeue, &mut exchange, &mut planes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
        let filled = planes.iter().take(self.planes).map(|plane| FilledPlane {
            offset: plane.data_offset,
            bytes: plane.bytesused,
        });
        Ok(Some(Filled {
            index: exchange.index,
            sequence: exchange.sequence,
            broken: exchange.flags & abi::BUF_FLAG_ERROR != 0,
            time: time(&exchange),
            time_is_start: exchange.flags & abi::BUF_FLAG_TSTAMP_SRC_MASK
                == abi::BUF_FLAG_TSTAMP_SRC_SOE,
            field_order: match exchange.field {
                abi::FIELD_INTERLACED => Some(self.interlaced),
                abi::FIELD_INTERLACED_TB => Some(FieldOrder::TopFirst),
                abi::FIELD_INTERLACED_BT => Some(FieldOrder::BottomFirst),
                _ => None,
            },
            planes: filled.collect(),
        }))
    }

    /// Starts filling or sending.
    pub fn start(&mut self) -> io::Result<()> {
        abi::STREAMON.run(&*self, &mut self.kind.number())?;
        self.running = true;
        // It stays as it is while the driver runs.
        self.interlaced = by_standard(self.standard());
        Ok(())
    }

    /// The video standard. `None`: the driver has none, as that of a webcam, or not of the
    /// present input.
    fn standard(&self) -> Option<u64> {
        let mut standard = 0;
        abi::G_STD.run(self, &mut standard).ok()?;
        Some(standard)
    }

    /// Stops that, if it runs: the driver has no buffer any more, and none is to be dequeued.
    pub fn stop(&mut self) -> io::Result<()> {
        if self.running {
            abi::STREAMOFF.run(&*self, &mut self.kind.number())?;
            self.running = false;
        }
        Ok(())
    }

    /// Takes one of the connectors of a device that captures.
    pub fn set_input(&self, index: u32) -> io::Result<()> {
        abi::S_INPUT.run(self, &mut { index })
    }

    /// Takes one of the connectors of a device that sends.
    pub fn set_output(&self, index: u32) -> io::Result<()> {
        abi::S_OUTPUT.run(self, &mut { index })
    }

    /// Sets the control that the driver calls `name`: a number, or the entry of a menu; a button
    /// takes any. [`NotFound`](io::ErrorKind::NotFound): there is none.
    pub fn set_control(&self, name: &str, value: i32) -> io::Result<()> {
        let mut last = 0;
        let controls = entries(|_| {
            let mut query = abi::QueryControl {
                id: last | abi::CTRL_FLAG_NEXT_CTRL,
                ..Default::default()
            };
            abi::QUERYCTRL.run(self, &mut query)?;
            last = query.id;
            Ok(query)
        })?;
        let is = |control: &&abi::QueryControl| {
            let mut name_of = control.name.split(|byte| *byte == 0);
            name_of.next() == Some(name.as_bytes())
        };
        let found = controls.iter().find(is).ok_or(io::ErrorKind::NotFound)?;
        abi::S_CTRL.run(
            self,
            &mut abi::Control {
                id: found.id,
                value,
            },
        )
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // Closing the file would do the same; errors have no receiver here.
        let _ = self.stop();
        let _ = self.request(self.memory, 0);
    }
}

/// What is written of a picture, if that is a part of it, and not all.
fn part(selection: &abi::Selection, format: &Format) -> Option<Written> {
    let abi::Selection {
        left: x,
        top: y,
        width,
        height,
        ..
    } = *selection;
    let within = |start: i32, length: u32, whole: u32| {
        let start = u32::try_from(start).ok();
        let end = start.and_then(|start| start.checked_add(length));
        length > 0 && end.is_some_and(|end| end <= whole)
    };
    let whole = (width, height) == (format.width, format.height);
    let fits = within(x, width, format.width) && within(y, height, format.height);
    (fits && !whole).then_some(Written {
        x,
        y,
        width,
        height,
    })
}

/// When a buffer was filled, by the clock that others have, too.
fn time(exchange: &abi::Exchange) -> Option<i64> {
    if exchange.flags & abi::BUF_FLAG_TIMESTAMP_MASK != abi::BUF_FLAG_TIMESTAMP_MONOTONIC {
        return None;
    }
    let seconds = exchange.seconds.checked_mul(1_000_000_000)?;
    seconds.checked_add(exchange.microseconds.checked_mul(1000)?)
}

/// V4L2_FIELD_INTERLACED leaves the order to the standard.
fn by_standard(standard: Option<u64>) -> FieldOrder {
    match standard {
        Some(standard) if standard & u64::from(abi::STD_525_60) != 0 => FieldOrder::BottomFirst,
        _ => FieldOrder::TopFirst,
    }
}

/// A buffer holds a whole picture, line by line.
fn check_field(field: u32) -> io::Result<()> {
    let name = match field {
        abi::FIELD_ANY
        | abi::FIELD_NONE
        | abi::FIELD_INTERLACED
        | abi::FIELD_INTERLACED_TB
        | abi::FIELD_INTERLACED_BT => return Ok(()),
        abi::FIELD_TOP => "top",
        abi::FIELD_BOTTOM => "bottom",
        abi::FIELD_SEQ_TB => "sequential, top first",
        abi::FIELD_SEQ_BT => "sequential, bottom first",
        abi::FIELD_ALTERNATE => "alternate",
        _ => "unknown",
    };
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        format!(
            "it gives single fields of a picture, or one behind the other ({name}); only \
             progressive and interlaced pictures are supported"
        ),
    ))
}

/// Which queue of a device with these capabilities is of that side, or why it has none.
fn kind(able: u32, side: Side) -> Result<BufferType, &'static str> {
    let (single, multi, lack, without) = match side {
        Side::Capture => (
            abi::CAP_VIDEO_CAPTURE,
            abi::CAP_VIDEO_CAPTURE_MPLANE,
            "not a camera",
            "a camera without buffers of its own (only read() works)",
        ),
        Side::Output => (
            abi::CAP_VIDEO_OUTPUT,
            abi::CAP_VIDEO_OUTPUT_MPLANE,
            "no output for video",
            "an output without buffers of its own (only write() works)",
        ),
    };
    if able & (single | multi) == 0 {
        return Err(lack);
    }
    if able & abi::CAP_STREAMING == 0 {
        return Err(without);
    }
    Ok(BufferType {
        side,
        multi_planar: able & single == 0,
    })
}

fn of_single(pix: &abi::PixFormat) -> Format {
    Format {
        width: pix.width,
        height: pix.height,
        fourcc: Fourcc(pix.pixelformat),
        planes: vec![PlaneFormat {
            stride: pix.bytesperline,
            size: pix.sizeimage,
        }],
        colour: Colour::of(
            Fourcc(pix.pixelformat),
            pix.colorspace,
            pix.transfer,
            pix.encoding,
            pix.quantization,
        ),
    }
}

/// As many planes as the driver says, or why that is wrong.
fn of_multi(pix: &abi::PixFormatMplane) -> io::Result<Format> {
    let count = usize::from(pix.num_planes);
    if !(1..=MAX_PLANES).contains(&count) {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("a picture of {count} planes; only 1 to {MAX_PLANES} are supported"),
        ));
    }
    let planes = pix.planes.iter().take(count).map(|plane| PlaneFormat {
        stride: plane.bytesperline,
        size: plane.sizeimage,
    });
    Ok(Format {
        width: pix.width,
        height: pix.height,
        fourcc: Fourcc(pix.pixelformat),
        planes: planes.collect(),
        colour: Colour::of(
            Fourcc(pix.pixelformat),
            pix.colorspace,
            pix.transfer.into(),
            pix.encoding.into(),
            pix.quantization.into(),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_ends_where_the_driver_says_so_and_other_errors_are_errors() {
        let of = |errno: i32| {
            entries(|index| match index {
                0..3 => Ok(index),
                _ => Err(io::Error::from_raw_os_error(errno)),
            })
        };
        assert_eq!(of(libc::EINVAL).unwrap(), [0, 1, 2]);
        let error = of(libc::ENODEV).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        let endless = entries(Ok).unwrap();
        assert_eq!(endless.len(), usize::try_from(MAX_ENTRIES).unwrap());
    }

    #[test]
    fn what_is_written_is_said_where_it_is_a_part_of_the_picture() {
        let format = of_single(&abi::PixFormat {
            width: 640,
            height: 480,
            ..Default::default()
        });
        let written = |left, top, width, height| {
            let selection = abi::Selection {
                left,
                top,
                width,
                height,
                ..Default::default()
            };
            part(&selection, &format).map(|part| (part.x, part.y, part.width, part.height))
        };
        assert_eq!(written(0, 0, 640, 480), None);
        assert_eq!(written(8, 0, 632, 470), Some((8, 0, 632, 470)));
        for (left, top, width, height) in [
            (8, 0, 640, 480),
            (-1, 0, 9, 9),
            (0, 0, 0, 9),
            (1, 0, u32::MAX, 9),
        ] {
            assert_eq!(written(left, top, width, height), None);
        }
    }

    #[test]
    fn the_video_standard_says_which_field_comes_first_where_the_driver_does_not() {
        // Of a webcam, and PAL-B.
        for standard in [None, Some(1)] {
            assert_eq!(by_standard(standard), FieldOrder::TopFirst);
        }
        // NTSC-M, PAL-M and PAL-60.
        for standard in [0x1000, 0x100, 0x800] {
            assert_eq!(by_standard(Some(standard)), FieldOrder::BottomFirst);
        }
    }

    #[test]
    fn a_buffer_has_a_whole_picture_line_by_line_or_the_format_is_refused() {
        for field in [0, 1, 4, 8, 9] {
            assert!(check_field(field).is_ok(), "{field}");
        }
        for field in [2, 3, 5, 6, 7, 10, u32::MAX] {
            let error = check_field(field).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{field}");
        }
        let why = check_field(abi::FIELD_ALTERNATE).unwrap_err().to_string();
        assert!(why.contains("(alternate)"), "{why}");
    }

    #[test]
    fn a_time_is_of_the_monotonic_clock_or_none() {
        let at = |flags, seconds, microseconds| {
            time(&abi::Exchange {
                flags,
                seconds,
                microseconds,
                ..Default::default()
            })
        };
        let monotonic = abi::BUF_FLAG_TIMESTAMP_MONOTONIC | abi::BUF_FLAG_ERROR;
        assert_eq!(at(monotonic, 2, 3), Some(2_000_003_000));
        assert_eq!(at(monotonic, i64::MAX, 0), None);
        assert_eq!(at(0, 2, 3), None);
        assert_eq!(at(abi::BUF_FLAG_TIMESTAMP_MASK, 2, 3), None);
    }

    #[test]
    fn a_device_is_used_by_what_it_says_that_it_can() {
        let stream = abi::CAP_STREAMING;
        let multi = |able, side| kind(able, side).map(|kind| kind.multi_planar);
        for (side, one, many, call) in [
            (
                Side::Capture,
                abi::CAP_VIDEO_CAPTURE,
                abi::CAP_VIDEO_CAPTURE_MPLANE,
                "read()",
            ),
            (
                Side::Output,
                abi::CAP_VIDEO_OUTPUT,
                abi::CAP_VIDEO_OUTPUT_MPLANE,
                "write()",
            ),
        ] {
            assert_eq!(multi(stream | one, side), Ok(false));
            assert_eq!(multi(stream | many, side), Ok(true));
            // The simpler one, of a device that has both.
            assert_eq!(multi(stream | one | many, side), Ok(false));
            assert!(multi(one, side).unwrap_err().contains(call));
        }
        let other = multi(stream | abi::CAP_VIDEO_OUTPUT, Side::Capture);
        assert_eq!(other, Err("not a camera"));
    }

    #[test]
    fn a_format_has_as_many_planes_as_its_driver_says_within_the_limit() {
        let mut pix = abi::PixFormatMplane {
            width: 640,
            height: 480,
            pixelformat: Fourcc::new(b"NM12").0,
            num_planes: 2,
            ..Default::default()
        };
        for (plane, size) in pix.planes.iter_mut().zip([307_200, 153_600]) {
            plane.bytesperline = 640;
            plane.sizeimage = size;
        }
        let format = of_multi(&pix).unwrap();
        assert_eq!((format.stride(), format.size()), (640, 460_800));
        let sizes: Vec<u32> = format.planes.iter().map(|plane| plane.size).collect();
        assert_eq!(sizes, [307_200, 153_600]);
        for wrong in [0, 5, u8::MAX] {
            pix.num_planes = wrong;
            assert!(of_multi(&pix).is_err(), "{wrong}");
        }
    }
}
