// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Video capture by the ioctls of `<linux/videodev2.h>`, only what is used here:
//! single-planar capture queues that fill foreign dma-bufs, or buffers of the
//! driver that it exports as dma-bufs.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::opcode;

use crate::fourcc::Fourcc;
use crate::ioctl::Call;

const GROUP: u8 = b'V';
const BUF_TYPE_VIDEO_CAPTURE: u32 = 1;
const FIELD_NONE: u32 = 1;
const FRMSIZE_TYPE_DISCRETE: u32 = 1;
const CAP_VIDEO_CAPTURE: u32 = 0x0000_0001;
const CAP_VIDEO_CAPTURE_MPLANE: u32 = 0x0000_1000;
const CAP_STREAMING: u32 = 0x0400_0000;
const CAP_DEVICE_CAPS: u32 = 0x8000_0000;
const BUF_FLAG_ERROR: u32 = 0x0000_0040;

/// A driver that has more formats or sizes is taken to repeat itself.
const MAX_ENTRIES: u32 = 256;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Capability {
    driver: [u8; 16],
    card: [u8; 32],
    bus_info: [u8; 32],
    version: u32,
    capabilities: u32,
    device_caps: u32,
    reserved: [u32; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FormatDescription {
    index: u32,
    kind: u32,
    flags: u32,
    description: [u8; 32],
    pixelformat: u32,
    mbus_code: u32,
    reserved: [u32; 3],
}

/// Of the union the larger member; a discrete size is in the first two of it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FrameSize {
    index: u32,
    pixel_format: u32,
    kind: u32,
    min_width: u32,
    max_width: u32,
    step_width: u32,
    min_height: u32,
    max_height: u32,
    step_height: u32,
    reserved: [u32; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PixFormat {
    width: u32,
    height: u32,
    pixelformat: u32,
    field: u32,
    bytesperline: u32,
    sizeimage: u32,
    colorspace: u32,
    private: u32,
    flags: u32,
    encoding: u32,
    quantization: u32,
    transfer: u32,
}

/// The union holds pointers in members not used here, hence the alignment.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct FormatUnion {
    pix: PixFormat,
    rest: [u8; 152],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Format {
    kind: u32,
    fmt: FormatUnion,
}

impl Format {
    /// Of a capture queue of one plane.
    fn of(pix: PixFormat) -> Self {
        Self {
            kind: BUF_TYPE_VIDEO_CAPTURE,
            fmt: FormatUnion {
                pix,
                rest: [0; 152],
            },
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct StreamParameters {
    kind: u32,
    capability: u32,
    capturemode: u32,
    numerator: u32,
    denominator: u32,
    rest: [u8; 184],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RequestBuffers {
    count: u32,
    kind: u32,
    memory: u32,
    capabilities: u32,
    flags: u8,
    reserved: [u8; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Timecode {
    kind: u32,
    flags: u32,
    fields: [u8; 8],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Buffer {
    index: u32,
    kind: u32,
    bytesused: u32,
    flags: u32,
    field: u32,
    seconds: i64,
    microseconds: i64,
    timecode: Timecode,
    sequence: u32,
    memory: u32,
    /// A union: the descriptor of a dma-buf is its first four bytes.
    location: [i32; 2],
    length: u32,
    reserved2: u32,
    request_fd: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ExportBuffer {
    kind: u32,
    index: u32,
    plane: u32,
    flags: u32,
    fd: i32,
    reserved: [u32; 11],
}

// SAFETY: struct v4l2_capability, plain data.
const QUERYCAP: Call<Capability> = unsafe { Call::new(opcode::read::<Capability>(GROUP, 0)) };
// SAFETY: struct v4l2_fmtdesc, plain data.
const ENUM_FMT: Call<FormatDescription> =
    unsafe { Call::new(opcode::read_write::<FormatDescription>(GROUP, 2)) };
// SAFETY: struct v4l2_format; for the one buffer type used here plain data.
const G_FMT: Call<Format> = unsafe { Call::new(opcode::read_write::<Format>(GROUP, 4)) };
// SAFETY: as G_FMT.
const S_FMT: Call<Format> = unsafe { Call::new(opcode::read_write::<Format>(GROUP, 5)) };
// SAFETY: struct v4l2_requestbuffers, plain data.
const REQBUFS: Call<RequestBuffers> =
    unsafe { Call::new(opcode::read_write::<RequestBuffers>(GROUP, 8)) };
// SAFETY: struct v4l2_buffer; with the memory types used here no member is a pointer.
const QBUF: Call<Buffer> = unsafe { Call::new(opcode::read_write::<Buffer>(GROUP, 15)) };
// SAFETY: struct v4l2_streamparm, plain data.
const S_PARM: Call<StreamParameters> =
    unsafe { Call::new(opcode::read_write::<StreamParameters>(GROUP, 22)) };
// SAFETY: struct v4l2_exportbuffer, plain data.
const EXPBUF: Call<ExportBuffer> =
    unsafe { Call::new(opcode::read_write::<ExportBuffer>(GROUP, 16)) };
// SAFETY: as QBUF.
const DQBUF: Call<Buffer> = unsafe { Call::new(opcode::read_write::<Buffer>(GROUP, 17)) };
// SAFETY: struct v4l2_frmsizeenum, plain data.
const ENUM_FRAMESIZES: Call<FrameSize> =
    unsafe { Call::new(opcode::read_write::<FrameSize>(GROUP, 74)) };
// SAFETY: an int.
const STREAMON: Call<u32> = unsafe { Call::new(opcode::write::<u32>(GROUP, 18)) };
// SAFETY: an int.
const STREAMOFF: Call<u32> = unsafe { Call::new(opcode::write::<u32>(GROUP, 19)) };

/// What the driver agreed to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) format: Fourcc,
    /// Bytes per row of the first plane.
    pub(crate) stride: u32,
    /// Bytes of the whole picture.
    pub(crate) size: u32,
}

/// A filled buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    pub(crate) index: u32,
    /// The driver's frame counter; a gap is a frame lost for want of buffers.
    pub(crate) sequence: u32,
    /// What was filled of it: of a compressed picture less than of others.
    pub(crate) bytes: u32,
    /// The driver could not fill it properly.
    pub(crate) broken: bool,
}

/// Whose memory a camera fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Memory {
    /// `V4L2_MEMORY_MMAP`: buffers of the driver.
    Driver = 1,
    /// `V4L2_MEMORY_DMABUF`: dma-bufs that others made.
    DmaBuf = 4,
}

/// A size, or sizes, of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sizes {
    One { width: u32, height: u32 },
    Range { least: (u32, u32), most: (u32, u32) },
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

/// An open capture device with its queue. Dropping it stops the stream and frees
/// the queue.
pub(crate) struct Camera {
    fd: OwnedFd,
    memory: Memory,
    running: bool,
}

impl AsFd for Camera {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Camera {
    /// Opens `path`, which must be able to capture into buffers of one plane.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        let mut answer = Capability::default();
        QUERYCAP.run(&fd, &mut answer)?;
        let able = if answer.capabilities & CAP_DEVICE_CAPS != 0 {
            answer.device_caps
        } else {
            answer.capabilities
        };
        if let Some(lack) = lacks(able) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, lack));
        }
        Ok(Self {
            fd,
            memory: Memory::DmaBuf,
            running: false,
        })
    }

    /// The pixel formats on offer.
    pub(crate) fn formats(&self) -> io::Result<Vec<Fourcc>> {
        entries(|index| {
            let mut description = FormatDescription {
                index,
                kind: BUF_TYPE_VIDEO_CAPTURE,
                ..Default::default()
            };
            ENUM_FMT.run(self, &mut description)?;
            Ok(Fourcc(description.pixelformat))
        })
    }

    /// The sizes of pictures on offer; none from drivers that do not say.
    pub(crate) fn sizes(&self, format: Fourcc) -> io::Result<Vec<Sizes>> {
        entries(|index| {
            let mut size = FrameSize {
                index,
                pixel_format: format.0,
                ..Default::default()
            };
            ENUM_FRAMESIZES.run(self, &mut size)?;
            Ok(if size.kind == FRMSIZE_TYPE_DISCRETE {
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
    pub(crate) fn format(&self) -> io::Result<Fourcc> {
        let mut value = Format::of(PixFormat::default());
        G_FMT.run(self, &mut value)?;
        Ok(Fourcc(value.fmt.pix.pixelformat))
    }

    /// Asks for a format; the driver may answer with another one.
    pub(crate) fn set_format(
        &self,
        width: u32,
        height: u32,
        format: Fourcc,
    ) -> io::Result<Picture> {
        let mut value = Format::of(PixFormat {
            width,
            height,
            pixelformat: format.0,
            field: FIELD_NONE,
            ..Default::default()
        });
        S_FMT.run(self, &mut value)?;
        let pix = value.fmt.pix;
        Ok(Picture {
            width: pix.width,
            height: pix.height,
            format: Fourcc(pix.pixelformat),
            stride: pix.bytesperline,
            size: pix.sizeimage,
        })
    }

    /// Asks for so many pictures a second; the driver takes the nearest it can.
    pub(crate) fn set_rate(&self, per_second: u32) -> io::Result<()> {
        let mut value = StreamParameters {
            kind: BUF_TYPE_VIDEO_CAPTURE,
            capability: 0,
            capturemode: 0,
            numerator: 1,
            denominator: per_second,
            rest: [0; 184],
        };
        S_PARM.run(self, &mut value)
    }

    /// Makes a queue of about `count` places for this kind of memory, instead of
    /// the present one. The driver may give more or fewer than asked; with none the
    /// present queue is freed.
    pub(crate) fn request(&mut self, memory: Memory, count: u32) -> io::Result<u32> {
        let mut request = RequestBuffers {
            count,
            kind: BUF_TYPE_VIDEO_CAPTURE,
            memory: memory as u32,
            ..Default::default()
        };
        REQBUFS.run(&*self, &mut request)?;
        self.memory = memory;
        Ok(request.count)
    }

    /// One of the driver's own buffers as dma-buf.
    pub(crate) fn export(&self, index: u32) -> io::Result<OwnedFd> {
        let mut export = ExportBuffer {
            kind: BUF_TYPE_VIDEO_CAPTURE,
            index,
            flags: (OFlags::RDWR | OFlags::CLOEXEC).bits(),
            fd: -1,
            ..Default::default()
        };
        EXPBUF.run(self, &mut export)?;
        if export.fd < 0 {
            return Err(io::Error::other("the driver returned no file"));
        }
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(export.fd) })
    }

    /// Gives a buffer to the driver to fill. `dmabuf` is what it is to be filled
    /// into, always the same for a place; the driver's own buffers need none.
    pub(crate) fn queue(&self, index: u32, dmabuf: BorrowedFd<'_>) -> io::Result<()> {
        let mut buffer = Buffer {
            index,
            kind: BUF_TYPE_VIDEO_CAPTURE,
            memory: self.memory as u32,
            ..Default::default()
        };
        if self.memory == Memory::DmaBuf {
            // With length 0 the driver takes all of it.
            buffer.location = [dmabuf.as_raw_fd(), 0];
        }
        QBUF.run(self, &mut buffer)
    }

    /// Takes a filled buffer, if there is one.
    pub(crate) fn dequeue(&self) -> io::Result<Option<Filled>> {
        let mut buffer = Buffer {
            kind: BUF_TYPE_VIDEO_CAPTURE,
            memory: self.memory as u32,
            ..Default::default()
        };
        match DQBUF.run(self, &mut buffer) {
            Ok(()) => Ok(Some(Filled {
                index: buffer.index,
                sequence: buffer.sequence,
                bytes: buffer.bytesused,
                broken: buffer.flags & BUF_FLAG_ERROR != 0,
            })),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Starts filling.
    pub(crate) fn start(&mut self) -> io::Result<()> {
        let mut kind = BUF_TYPE_VIDEO_CAPTURE;
        STREAMON.run(&*self, &mut kind)?;
        self.running = true;
        Ok(())
    }

    /// Stops filling; queued buffers come back unfilled.
    pub(crate) fn stop(&mut self) -> io::Result<()> {
        if self.running {
            self.running = false;
            let mut kind = BUF_TYPE_VIDEO_CAPTURE;
            STREAMOFF.run(&*self, &mut kind)?;
        }
        Ok(())
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        // Closing the file would do the same; errors have no receiver here.
        let _ = self.stop();
        let _ = self.request(self.memory, 0);
    }
}

/// What a device with these capabilities cannot do that is needed here.
fn lacks(able: u32) -> Option<&'static str> {
    if able & CAP_VIDEO_CAPTURE == 0 {
        Some(if able & CAP_VIDEO_CAPTURE_MPLANE != 0 {
            "a multi-planar camera; only single-planar capture is supported"
        } else {
            "not a camera"
        })
    } else if able & CAP_STREAMING == 0 {
        Some("a camera without buffers of its own (only read() works)")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;
    use crate::ctest;

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
    fn layout_and_numbers_are_those_of_the_kernel_headers() {
        ctest::check(
            &["sys/time.h", "linux/videodev2.h"],
            &[
                ("sizeof(struct v4l2_capability)", size_of::<Capability>()),
                (
                    "sizeof(struct v4l2_fmtdesc)",
                    size_of::<FormatDescription>(),
                ),
                ("sizeof(struct v4l2_pix_format)", size_of::<PixFormat>()),
                ("sizeof(struct v4l2_format)", size_of::<Format>()),
                (
                    "sizeof(struct v4l2_requestbuffers)",
                    size_of::<RequestBuffers>(),
                ),
                ("sizeof(struct v4l2_buffer)", size_of::<Buffer>()),
                (
                    "sizeof(struct v4l2_exportbuffer)",
                    size_of::<ExportBuffer>(),
                ),
                ("offsetof(struct v4l2_format, fmt)", offset_of!(Format, fmt)),
                (
                    "offsetof(struct v4l2_capability, device_caps)",
                    offset_of!(Capability, device_caps),
                ),
                (
                    "offsetof(struct v4l2_fmtdesc, pixelformat)",
                    offset_of!(FormatDescription, pixelformat),
                ),
                (
                    "offsetof(struct v4l2_pix_format, sizeimage)",
                    offset_of!(PixFormat, sizeimage),
                ),
                (
                    "offsetof(struct v4l2_buffer, timestamp)",
                    offset_of!(Buffer, seconds),
                ),
                (
                    "offsetof(struct v4l2_buffer, sequence)",
                    offset_of!(Buffer, sequence),
                ),
                (
                    "offsetof(struct v4l2_buffer, memory)",
                    offset_of!(Buffer, memory),
                ),
                (
                    "offsetof(struct v4l2_buffer, m)",
                    offset_of!(Buffer, location),
                ),
                (
                    "offsetof(struct v4l2_buffer, m.fd)",
                    offset_of!(Buffer, location),
                ),
                (
                    "offsetof(struct v4l2_buffer, length)",
                    offset_of!(Buffer, length),
                ),
                (
                    "offsetof(struct v4l2_buffer, request_fd)",
                    offset_of!(Buffer, request_fd),
                ),
                (
                    "offsetof(struct v4l2_exportbuffer, fd)",
                    offset_of!(ExportBuffer, fd),
                ),
                ("sizeof(struct v4l2_frmsizeenum)", size_of::<FrameSize>()),
                (
                    "offsetof(struct v4l2_frmsizeenum, discrete.width)",
                    offset_of!(FrameSize, min_width),
                ),
                (
                    "offsetof(struct v4l2_frmsizeenum, discrete.height)",
                    offset_of!(FrameSize, max_width),
                ),
                (
                    "offsetof(struct v4l2_frmsizeenum, stepwise.max_width)",
                    offset_of!(FrameSize, max_width),
                ),
                (
                    "offsetof(struct v4l2_frmsizeenum, stepwise.min_height)",
                    offset_of!(FrameSize, min_height),
                ),
                (
                    "offsetof(struct v4l2_frmsizeenum, stepwise.max_height)",
                    offset_of!(FrameSize, max_height),
                ),
                ("VIDIOC_ENUM_FRAMESIZES", ENUM_FRAMESIZES.opcode() as usize),
                ("V4L2_FRMSIZE_TYPE_DISCRETE", FRMSIZE_TYPE_DISCRETE as usize),
                ("VIDIOC_S_PARM", S_PARM.opcode() as usize),
                (
                    "sizeof(struct v4l2_streamparm)",
                    size_of::<StreamParameters>(),
                ),
                (
                    "offsetof(struct v4l2_streamparm, parm.capture.timeperframe)",
                    offset_of!(StreamParameters, numerator),
                ),
                ("VIDIOC_QUERYCAP", QUERYCAP.opcode() as usize),
                ("VIDIOC_ENUM_FMT", ENUM_FMT.opcode() as usize),
                ("VIDIOC_G_FMT", G_FMT.opcode() as usize),
                ("VIDIOC_S_FMT", S_FMT.opcode() as usize),
                ("VIDIOC_REQBUFS", REQBUFS.opcode() as usize),
                ("VIDIOC_QBUF", QBUF.opcode() as usize),
                ("VIDIOC_EXPBUF", EXPBUF.opcode() as usize),
                ("VIDIOC_DQBUF", DQBUF.opcode() as usize),
                ("VIDIOC_STREAMON", STREAMON.opcode() as usize),
                ("VIDIOC_STREAMOFF", STREAMOFF.opcode() as usize),
                (
                    "V4L2_BUF_TYPE_VIDEO_CAPTURE",
                    BUF_TYPE_VIDEO_CAPTURE as usize,
                ),
                ("V4L2_MEMORY_MMAP", Memory::Driver as usize),
                ("V4L2_MEMORY_DMABUF", Memory::DmaBuf as usize),
                ("V4L2_FIELD_NONE", FIELD_NONE as usize),
                ("V4L2_CAP_VIDEO_CAPTURE", CAP_VIDEO_CAPTURE as usize),
                (
                    "V4L2_CAP_VIDEO_CAPTURE_MPLANE",
                    CAP_VIDEO_CAPTURE_MPLANE as usize,
                ),
                ("V4L2_CAP_STREAMING", CAP_STREAMING as usize),
                ("V4L2_CAP_DEVICE_CAPS", CAP_DEVICE_CAPS as usize),
                ("V4L2_BUF_FLAG_ERROR", BUF_FLAG_ERROR as usize),
            ],
        );
    }
}
