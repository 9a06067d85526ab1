// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Video capture by the ioctls of `<linux/videodev2.h>`, only what is used here:
//! single-planar capture queues with buffers of the driver, handed out as dma-bufs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::opcode;

use crate::fourcc::Fourcc;
use crate::ioctl::Call;

const GROUP: u8 = b'V';
const BUF_TYPE_VIDEO_CAPTURE: u32 = 1;
const MEMORY_MMAP: u32 = 1;
const FIELD_NONE: u32 = 1;
const CAP_VIDEO_CAPTURE: u32 = 0x0000_0001;
const CAP_STREAMING: u32 = 0x0400_0000;
const CAP_DEVICE_CAPS: u32 = 0x8000_0000;
const BUF_FLAG_ERROR: u32 = 0x0000_0040;

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
    location: u64,
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
const S_FMT: Call<Format> = unsafe { Call::new(opcode::read_write::<Format>(GROUP, 5)) };
// SAFETY: struct v4l2_requestbuffers, plain data.
const REQBUFS: Call<RequestBuffers> =
    unsafe { Call::new(opcode::read_write::<RequestBuffers>(GROUP, 8)) };
// SAFETY: struct v4l2_buffer; with the memory type used here no member is a pointer.
const QBUF: Call<Buffer> = unsafe { Call::new(opcode::read_write::<Buffer>(GROUP, 15)) };
// SAFETY: struct v4l2_streamparm, plain data.
const S_PARM: Call<StreamParameters> =
    unsafe { Call::new(opcode::read_write::<StreamParameters>(GROUP, 22)) };
// SAFETY: struct v4l2_exportbuffer, plain data.
const EXPBUF: Call<ExportBuffer> =
    unsafe { Call::new(opcode::read_write::<ExportBuffer>(GROUP, 16)) };
// SAFETY: as QBUF.
const DQBUF: Call<Buffer> = unsafe { Call::new(opcode::read_write::<Buffer>(GROUP, 17)) };
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
    pub(crate) bytes: u32,
    /// The driver could not fill it properly.
    pub(crate) broken: bool,
}

/// An open capture device.
pub(crate) struct Camera {
    fd: OwnedFd,
}

impl Camera {
    /// Opens `path`, which must be able to capture into buffers.
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
        if able & CAP_VIDEO_CAPTURE == 0 || able & CAP_STREAMING == 0 {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "not a single-planar capture device that streams",
            ));
        }
        Ok(Self { fd })
    }

    /// The pixel formats on offer.
    pub(crate) fn formats(&self) -> Vec<Fourcc> {
        let mut formats = Vec::new();
        for index in 0..256 {
            let mut description = FormatDescription {
                index,
                kind: BUF_TYPE_VIDEO_CAPTURE,
                ..Default::default()
            };
            if ENUM_FMT.run(&self.fd, &mut description).is_err() {
                break;
            }
            formats.push(Fourcc(description.pixelformat));
        }
        formats
    }

    /// Asks for a format; the driver may answer with another one.
    pub(crate) fn set_format(
        &self,
        width: u32,
        height: u32,
        format: Fourcc,
    ) -> io::Result<Picture> {
        let mut value = Format {
            kind: BUF_TYPE_VIDEO_CAPTURE,
            fmt: FormatUnion {
                pix: PixFormat {
                    width,
                    height,
                    pixelformat: format.0,
                    field: FIELD_NONE,
                    ..Default::default()
                },
                rest: [0; 152],
            },
        };
        S_FMT.run(&self.fd, &mut value)?;
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
        S_PARM.run(&self.fd, &mut value)
    }

    /// Has the driver allocate buffers. It may give more or fewer than asked.
    pub(crate) fn allocate(self, count: u32) -> io::Result<Stream> {
        let granted = self.request_buffers(count)?;
        Ok(Stream {
            camera: self,
            count: granted,
            running: false,
        })
    }

    fn request_buffers(&self, count: u32) -> io::Result<u32> {
        let mut request = RequestBuffers {
            count,
            kind: BUF_TYPE_VIDEO_CAPTURE,
            memory: MEMORY_MMAP,
            ..Default::default()
        };
        REQBUFS.run(&self.fd, &mut request)?;
        Ok(request.count)
    }
}

/// A device with its buffers; dropping it stops the stream and frees them.
pub(crate) struct Stream {
    camera: Camera,
    count: u32,
    running: bool,
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.camera.fd.as_fd()
    }
}

impl Stream {
    /// Number of buffers.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// One buffer as dma-buf.
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

    /// Gives a buffer to the driver to fill.
    pub(crate) fn queue(&self, index: u32) -> io::Result<()> {
        let mut buffer = Buffer {
            index,
            kind: BUF_TYPE_VIDEO_CAPTURE,
            memory: MEMORY_MMAP,
            ..Default::default()
        };
        QBUF.run(self, &mut buffer)
    }

    /// Takes a filled buffer, if there is one.
    pub(crate) fn dequeue(&self) -> io::Result<Option<Filled>> {
        let mut buffer = Buffer {
            kind: BUF_TYPE_VIDEO_CAPTURE,
            memory: MEMORY_MMAP,
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
        STREAMON.run(self.as_fd(), &mut kind)?;
        self.running = true;
        Ok(())
    }

    /// Stops filling; queued buffers come back unfilled.
    pub(crate) fn stop(&mut self) -> io::Result<()> {
        if self.running {
            self.running = false;
            let mut kind = BUF_TYPE_VIDEO_CAPTURE;
            STREAMOFF.run(self.as_fd(), &mut kind)?;
        }
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Closing the file would do the same; errors have no receiver here.
        let _ = self.stop();
        let _ = self.camera.request_buffers(0);
    }
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;
    use crate::ctest;

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
                ("V4L2_MEMORY_MMAP", MEMORY_MMAP as usize),
                ("V4L2_FIELD_NONE", FIELD_NONE as usize),
                ("V4L2_CAP_VIDEO_CAPTURE", CAP_VIDEO_CAPTURE as usize),
                ("V4L2_CAP_STREAMING", CAP_STREAMING as usize),
                ("V4L2_CAP_DEVICE_CAPS", CAP_DEVICE_CAPS as usize),
                ("V4L2_BUF_FLAG_ERROR", BUF_FLAG_ERROR as usize),
            ],
        );
    }
}
