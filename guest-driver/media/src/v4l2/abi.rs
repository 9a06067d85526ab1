// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The structures and ioctls of `<linux/videodev2.h>`, only what is used here
//!
//! Where the kernel has a union there is a structure here for each member that is used, of the
//! same size.

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Opcode, opcode};

use crate::ioctl::Call;

const GROUP: u8 = b'V';
const BUF_TYPE_VIDEO_CAPTURE: u32 = 1;
const BUF_TYPE_VIDEO_OUTPUT: u32 = 2;
const BUF_TYPE_VIDEO_CAPTURE_MPLANE: u32 = 9;
const BUF_TYPE_VIDEO_OUTPUT_MPLANE: u32 = 10;
/// Where in its memory a picture is written.
pub(super) const SEL_TGT_COMPOSE: u32 = 0x0100;
pub(super) const FIELD_ANY: u32 = 0;
pub(super) const FIELD_NONE: u32 = 1;
pub(super) const FIELD_TOP: u32 = 2;
pub(super) const FIELD_BOTTOM: u32 = 3;
pub(super) const FIELD_INTERLACED: u32 = 4;
pub(super) const FIELD_SEQ_TB: u32 = 5;
pub(super) const FIELD_SEQ_BT: u32 = 6;
pub(super) const FIELD_ALTERNATE: u32 = 7;
pub(super) const FIELD_INTERLACED_TB: u32 = 8;
pub(super) const FIELD_INTERLACED_BT: u32 = 9;
/// The video standards of 525 lines.
pub(super) const STD_525_60: u32 = 0xf900;
pub(super) const FRMSIZE_TYPE_DISCRETE: u32 = 1;
pub(super) const CAP_VIDEO_CAPTURE: u32 = 0x0000_0001;
pub(super) const CAP_VIDEO_OUTPUT: u32 = 0x0000_0002;
pub(super) const CAP_VIDEO_CAPTURE_MPLANE: u32 = 0x0000_1000;
pub(super) const CAP_VIDEO_OUTPUT_MPLANE: u32 = 0x0000_2000;
pub(super) const CAP_STREAMING: u32 = 0x0400_0000;
pub(super) const CAP_DEVICE_CAPS: u32 = 0x8000_0000;
pub(super) const BUF_FLAG_ERROR: u32 = 0x0000_0040;
pub(super) const BUF_FLAG_TIMESTAMP_MASK: u32 = 0x0000_e000;
pub(super) const BUF_FLAG_TIMESTAMP_MONOTONIC: u32 = 0x0000_2000;
pub(super) const BUF_FLAG_TSTAMP_SRC_MASK: u32 = 0x0007_0000;
pub(super) const BUF_FLAG_TSTAMP_SRC_SOE: u32 = 0x0001_0000;
pub(super) const CTRL_FLAG_NEXT_CTRL: u32 = 0x8000_0000;
/// Planes that the structures have room for.
pub(super) const VIDEO_MAX_PLANES: usize = 8;

/// Which side of a driver a queue is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It fills memory.
    Capture,
    /// It sends what is in memory.
    Output,
}

/// Whose memory a queue is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Memory {
    /// `V4L2_MEMORY_MMAP`: buffers of the driver.
    Driver = 1,
    /// `V4L2_MEMORY_DMABUF`: dma-bufs that others made.
    DmaBuf = 4,
}

/// `enum v4l2_buf_type`, of those without pointers in their formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BufferType {
    pub(super) side: Side,
    /// A picture has a memory for each of its planes.
    pub(super) multi_planar: bool,
}

impl BufferType {
    pub(super) fn number(self) -> u32 {
        match (self.side, self.multi_planar) {
            (Side::Capture, false) => BUF_TYPE_VIDEO_CAPTURE,
            (Side::Output, false) => BUF_TYPE_VIDEO_OUTPUT,
            (Side::Capture, true) => BUF_TYPE_VIDEO_CAPTURE_MPLANE,
            (Side::Output, true) => BUF_TYPE_VIDEO_OUTPUT_MPLANE,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Capability {
    pub(super) driver: [u8; 16],
    pub(super) card: [u8; 32],
    pub(super) bus_info: [u8; 32],
    pub(super) version: u32,
    pub(super) capabilities: u32,
    pub(super) device_caps: u32,
    pub(super) reserved: [u32; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct FormatDescription {
    pub(super) index: u32,
    pub(super) kind: u32,
    pub(super) flags: u32,
    pub(super) description: [u8; 32],
    pub(super) pixelformat: u32,
    pub(super) mbus_code: u32,
    pub(super) reserved: [u32; 3],
}

/// Of the union the larger member; a discrete size is in the first two of it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct FrameSize {
    pub(super) index: u32,
    pub(super) pixel_format: u32,
    pub(super) kind: u32,
    pub(super) min_width: u32,
    pub(super) max_width: u32,
    pub(super) step_width: u32,
    pub(super) min_height: u32,
    pub(super) max_height: u32,
    pub(super) step_height: u32,
    pub(super) reserved: [u32; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct PixFormat {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) pixelformat: u32,
    pub(super) field: u32,
    pub(super) bytesperline: u32,
    pub(super) sizeimage: u32,
    pub(super) colorspace: u32,
    pub(super) private: u32,
    pub(super) flags: u32,
    pub(super) encoding: u32,
    pub(super) quantization: u32,
    pub(super) transfer: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct PlanePixFormat {
    pub(super) sizeimage: u32,
    pub(super) bytesperline: u32,
    pub(super) reserved: [u16; 6],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct PixFormatMplane {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) pixelformat: u32,
    pub(super) field: u32,
    pub(super) colorspace: u32,
    pub(super) planes: [PlanePixFormat; VIDEO_MAX_PLANES],
    pub(super) num_planes: u8,
    pub(super) flags: u8,
    pub(super) encoding: u8,
    pub(super) quantization: u8,
    pub(super) transfer: u8,
    pub(super) reserved: [u8; 7],
}

/// A member of the union and `REST` bytes behind it. The union holds pointers in members not used
/// here, hence the alignment.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct FormatUnion<P, const REST: usize> {
    pub(super) pix: P,
    rest: [u8; REST],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Format<P, const REST: usize> {
    kind: u32,
    pub(super) fmt: FormatUnion<P, REST>,
}

impl<P, const REST: usize> Format<P, REST> {
    /// Of a queue of this type.
    pub(super) fn new(kind: BufferType, pix: P) -> Self {
        let rest = [0; REST];
        let fmt = FormatUnion { pix, rest };
        Self {
            kind: kind.number(),
            fmt,
        }
    }
}

/// Of a queue whose pictures have one memory.
pub(super) type SingleFormat = Format<PixFormat, 152>;
/// Of a queue whose pictures have a memory for each plane.
pub(super) type MultiFormat = Format<PixFormatMplane, 8>;

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct StreamParameters {
    pub(super) kind: u32,
    pub(super) capability: u32,
    pub(super) capturemode: u32,
    pub(super) numerator: u32,
    pub(super) denominator: u32,
    pub(super) rest: [u8; 184],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct RequestBuffers {
    pub(super) count: u32,
    pub(super) kind: u32,
    pub(super) memory: u32,
    pub(super) capabilities: u32,
    pub(super) flags: u8,
    pub(super) reserved: [u8; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Timecode {
    kind: u32,
    flags: u32,
    fields: [u8; 8],
}

/// `LOCATION` is the member of the union.
#[repr(C)]
#[derive(Clone, Copy)]
struct Buffer<LOCATION> {
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
    location: LOCATION,
    length: u32,
    reserved2: u32,
    request_fd: i32,
}

/// A descriptor is the first four bytes of the union.
type SingleBuffer = Buffer<[i32; 2]>;
type MultiBuffer = Buffer<*mut BufferPlane>;

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct BufferPlane {
    pub(super) bytesused: u32,
    pub(super) length: u32,
    /// A union: the descriptor of a dma-buf is its first four bytes.
    pub(super) location: [i32; 2],
    pub(super) data_offset: u32,
    pub(super) reserved: [u32; 11],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct ExportBuffer {
    pub(super) kind: u32,
    pub(super) index: u32,
    pub(super) plane: u32,
    pub(super) flags: u32,
    pub(super) fd: i32,
    pub(super) reserved: [u32; 11],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Control {
    pub(super) id: u32,
    pub(super) value: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct QueryControl {
    pub(super) id: u32,
    pub(super) kind: u32,
    pub(super) name: [u8; 32],
    pub(super) minimum: i32,
    pub(super) maximum: i32,
    pub(super) step: i32,
    pub(super) default: i32,
    pub(super) flags: u32,
    pub(super) reserved: [u32; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Selection {
    pub(super) kind: u32,
    pub(super) target: u32,
    pub(super) flags: u32,
    pub(super) left: i32,
    pub(super) top: i32,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) reserved: [u32; 9],
}

const _: () = {
    assert!(size_of::<Selection>() == 64);
    assert!(size_of::<Capability>() == 104);
    assert!(size_of::<FormatDescription>() == 64);
    assert!(size_of::<FrameSize>() == 44);
    assert!(size_of::<PixFormat>() == 48);
    assert!(size_of::<PlanePixFormat>() == 20);
    assert!(size_of::<PixFormatMplane>() == 192);
    assert!(size_of::<SingleFormat>() == 208);
    assert!(size_of::<MultiFormat>() == 208);
    assert!(size_of::<StreamParameters>() == 204);
    assert!(size_of::<RequestBuffers>() == 20);
    assert!(size_of::<SingleBuffer>() == 88);
    assert!(size_of::<MultiBuffer>() == 88);
    assert!(size_of::<BufferPlane>() == 64);
    assert!(size_of::<ExportBuffer>() == 64);
    assert!(size_of::<Control>() == 8);
    assert!(size_of::<QueryControl>() == 68);
};

// SAFETY: struct v4l2_capability, plain data.
pub(super) const QUERYCAP: Call<Capability> =
    unsafe { Call::new(opcode::read::<Capability>(GROUP, 0)) };
// SAFETY: struct v4l2_fmtdesc, plain data.
pub(super) const ENUM_FMT: Call<FormatDescription> =
    unsafe { Call::new(opcode::read_write::<FormatDescription>(GROUP, 2)) };
// SAFETY: struct v4l2_format, plain data by each BufferType.
pub(super) const G_FMT: Call<SingleFormat> =
    unsafe { Call::new(opcode::read_write::<SingleFormat>(GROUP, 4)) };
// SAFETY: as G_FMT.
pub(super) const G_FMT_MULTI: Call<MultiFormat> =
    unsafe { Call::new(opcode::read_write::<MultiFormat>(GROUP, 4)) };
// SAFETY: as G_FMT.
pub(super) const S_FMT: Call<SingleFormat> =
    unsafe { Call::new(opcode::read_write::<SingleFormat>(GROUP, 5)) };
// SAFETY: as G_FMT.
pub(super) const S_FMT_MULTI: Call<MultiFormat> =
    unsafe { Call::new(opcode::read_write::<MultiFormat>(GROUP, 5)) };
// SAFETY: struct v4l2_requestbuffers, plain data.
pub(super) const REQBUFS: Call<RequestBuffers> =
    unsafe { Call::new(opcode::read_write::<RequestBuffers>(GROUP, 8)) };
// SAFETY: struct v4l2_exportbuffer, plain data.
pub(super) const EXPBUF: Call<ExportBuffer> =
    unsafe { Call::new(opcode::read_write::<ExportBuffer>(GROUP, 16)) };
// SAFETY: an int.
pub(super) const STREAMON: Call<u32> = unsafe { Call::new(opcode::write::<u32>(GROUP, 18)) };
// SAFETY: an int.
pub(super) const STREAMOFF: Call<u32> = unsafe { Call::new(opcode::write::<u32>(GROUP, 19)) };
// SAFETY: struct v4l2_selection, plain data.
pub(super) const G_SELECTION: Call<Selection> =
    unsafe { Call::new(opcode::read_write::<Selection>(GROUP, 94)) };
// SAFETY: struct v4l2_streamparm, plain data.
pub(super) const S_PARM: Call<StreamParameters> =
    unsafe { Call::new(opcode::read_write::<StreamParameters>(GROUP, 22)) };
// SAFETY: a v4l2_std_id, which is a number of 64 bits.
pub(super) const G_STD: Call<u64> = unsafe { Call::new(opcode::read::<u64>(GROUP, 23)) };
// SAFETY: struct v4l2_control, plain data.
pub(super) const S_CTRL: Call<Control> =
    unsafe { Call::new(opcode::read_write::<Control>(GROUP, 28)) };
// SAFETY: struct v4l2_queryctrl, plain data.
pub(super) const QUERYCTRL: Call<QueryControl> =
    unsafe { Call::new(opcode::read_write::<QueryControl>(GROUP, 36)) };
// SAFETY: an int.
pub(super) const S_INPUT: Call<u32> = unsafe { Call::new(opcode::read_write::<u32>(GROUP, 39)) };
// SAFETY: an int.
pub(super) const S_OUTPUT: Call<u32> = unsafe { Call::new(opcode::read_write::<u32>(GROUP, 47)) };
// SAFETY: struct v4l2_frmsizeenum, plain data.
pub(super) const ENUM_FRAMESIZES: Call<FrameSize> =
    unsafe { Call::new(opcode::read_write::<FrameSize>(GROUP, 74)) };

/// QBUF or DQBUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// To the driver.
    Queue,
    /// From it.
    Dequeue,
}

impl Transfer {
    const fn opcode<T>(self) -> Opcode {
        let number = match self {
            Self::Queue => 15,
            Self::Dequeue => 17,
        };
        opcode::read_write::<T>(GROUP, number)
    }
}

/// What QBUF takes and DQBUF leaves beside the planes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Exchange {
    pub(super) index: u32,
    pub(super) flags: u32,
    pub(super) sequence: u32,
    pub(super) field: u32,
    pub(super) seconds: i64,
    pub(super) microseconds: i64,
}

/// Gives a buffer to the driver, or takes one. Without several memories `planes` is one, of the
/// whole picture.
pub(super) fn transfer(
    fd: impl AsFd,
    way: Transfer,
    (kind, memory): (BufferType, Memory),
    exchange: &mut Exchange,
    planes: &mut [BufferPlane],
) -> io::Result<()> {
    let mut buffer = Buffer {
        index: exchange.index,
        kind: kind.number(),
        bytesused: 0,
        flags: exchange.flags,
        field: FIELD_NONE,
        seconds: 0,
        microseconds: 0,
        timecode: Timecode::default(),
        sequence: exchange.sequence,
        memory: memory as u32,
        location: (),
        length: 0,
        reserved2: 0,
        request_fd: 0,
    };
    *exchange = if kind.multi_planar {
        buffer.length = u32::try_from(planes.len()).map_err(io::Error::other)?;
        let mut buffer = buffer.with(planes.as_mut_ptr());
        // SAFETY: struct v4l2_buffer; by a multi-planar type the kernel reads and writes `length`
        // planes at the pointer, which are borrowed until the call has ended.
        let call = unsafe { Call::new(way.opcode::<MultiBuffer>()) };
        call.run(fd, &mut buffer)?;
        buffer.exchange()
    } else {
        let whole = planes.first_mut().ok_or(io::ErrorKind::InvalidInput)?;
        buffer.bytesused = whole.bytesused;
        buffer.length = whole.length;
        let mut buffer = buffer.with(whole.location);
        // SAFETY: struct v4l2_buffer; by the other types, and by each Memory, no member is a
        // pointer.
        let call = unsafe { Call::new(way.opcode::<SingleBuffer>()) };
        call.run(fd, &mut buffer)?;
        whole.bytesused = buffer.bytesused;
        whole.length = buffer.length;
        buffer.exchange()
    };
    Ok(())
}

impl<LOCATION> Buffer<LOCATION> {
    /// The same with this member of the union.
    fn with<OTHER>(self, location: OTHER) -> Buffer<OTHER> {
        Buffer {
            index: self.index,
            kind: self.kind,
            bytesused: self.bytesused,
            flags: self.flags,
            field: self.field,
            seconds: self.seconds,
            microseconds: self.microseconds,
            timecode: self.timecode,
            sequence: self.sequence,
            memory: self.memory,
            location,
            length: self.length,
            reserved2: self.reserved2,
            request_fd: self.request_fd,
        }
    }

    fn exchange(&self) -> Exchange {
        Exchange {
            index: self.index,
            flags: self.flags,
            sequence: self.sequence,
            field: self.field,
            seconds: self.seconds,
            microseconds: self.microseconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::ctest;

    const HEADERS: [&str; 2] = ["sys/time.h", "linux/videodev2.h"];

    #[test]
    fn sizes_are_those_of_the_kernel_headers() {
        ctest::check(
            &HEADERS,
            &[
                ("sizeof(struct v4l2_capability)", size_of::<Capability>()),
                (
                    "sizeof(struct v4l2_fmtdesc)",
                    size_of::<FormatDescription>(),
                ),
                ("sizeof(struct v4l2_frmsizeenum)", size_of::<FrameSize>()),
                ("sizeof(struct v4l2_pix_format)", size_of::<PixFormat>()),
                (
                    "sizeof(struct v4l2_plane_pix_format)",
                    size_of::<PlanePixFormat>(),
                ),
                (
                    "sizeof(struct v4l2_pix_format_mplane)",
                    size_of::<PixFormatMplane>(),
                ),
                ("sizeof(struct v4l2_format)", size_of::<SingleFormat>()),
                ("sizeof(struct v4l2_format)", size_of::<MultiFormat>()),
                (
                    "sizeof(struct v4l2_streamparm)",
                    size_of::<StreamParameters>(),
                ),
                (
                    "sizeof(struct v4l2_requestbuffers)",
                    size_of::<RequestBuffers>(),
                ),
                ("sizeof(struct v4l2_buffer)", size_of::<SingleBuffer>()),
                ("sizeof(struct v4l2_buffer)", size_of::<MultiBuffer>()),
                ("sizeof(struct v4l2_plane)", size_of::<BufferPlane>()),
                (
                    "sizeof(struct v4l2_exportbuffer)",
                    size_of::<ExportBuffer>(),
                ),
                ("sizeof(struct v4l2_control)", size_of::<Control>()),
                ("sizeof(struct v4l2_queryctrl)", size_of::<QueryControl>()),
            ],
        );
    }

    #[test]
    fn members_are_where_the_kernel_headers_have_them() {
        ctest::check(
            &HEADERS,
            &[
                (
                    "offsetof(struct v4l2_format, fmt)",
                    offset_of!(SingleFormat, fmt),
                ),
                (
                    "offsetof(struct v4l2_format, fmt)",
                    offset_of!(MultiFormat, fmt),
                ),
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
                    "offsetof(struct v4l2_pix_format, xfer_func)",
                    offset_of!(PixFormat, transfer),
                ),
                (
                    "offsetof(struct v4l2_pix_format_mplane, xfer_func)",
                    offset_of!(PixFormatMplane, transfer),
                ),
                (
                    "offsetof(struct v4l2_pix_format_mplane, plane_fmt)",
                    offset_of!(PixFormatMplane, planes),
                ),
                (
                    "offsetof(struct v4l2_pix_format_mplane, num_planes)",
                    offset_of!(PixFormatMplane, num_planes),
                ),
                (
                    "offsetof(struct v4l2_plane_pix_format, bytesperline)",
                    offset_of!(PlanePixFormat, bytesperline),
                ),
                (
                    "offsetof(struct v4l2_buffer, timestamp)",
                    offset_of!(SingleBuffer, seconds),
                ),
                (
                    "offsetof(struct v4l2_buffer, sequence)",
                    offset_of!(SingleBuffer, sequence),
                ),
                (
                    "offsetof(struct v4l2_buffer, memory)",
                    offset_of!(SingleBuffer, memory),
                ),
                (
                    "offsetof(struct v4l2_buffer, m.fd)",
                    offset_of!(SingleBuffer, location),
                ),
                (
                    "offsetof(struct v4l2_buffer, length)",
                    offset_of!(SingleBuffer, length),
                ),
                (
                    "offsetof(struct v4l2_buffer, request_fd)",
                    offset_of!(SingleBuffer, request_fd),
                ),
                (
                    "offsetof(struct v4l2_buffer, m.planes)",
                    offset_of!(MultiBuffer, location),
                ),
                (
                    "offsetof(struct v4l2_buffer, length)",
                    offset_of!(MultiBuffer, length),
                ),
                (
                    "offsetof(struct v4l2_plane, length)",
                    offset_of!(BufferPlane, length),
                ),
                (
                    "offsetof(struct v4l2_plane, m.fd)",
                    offset_of!(BufferPlane, location),
                ),
                (
                    "offsetof(struct v4l2_plane, data_offset)",
                    offset_of!(BufferPlane, data_offset),
                ),
                (
                    "offsetof(struct v4l2_exportbuffer, plane)",
                    offset_of!(ExportBuffer, plane),
                ),
                (
                    "offsetof(struct v4l2_exportbuffer, fd)",
                    offset_of!(ExportBuffer, fd),
                ),
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
                (
                    "offsetof(struct v4l2_streamparm, parm.capture.timeperframe)",
                    offset_of!(StreamParameters, numerator),
                ),
                (
                    "offsetof(struct v4l2_selection, r.left)",
                    offset_of!(Selection, left),
                ),
                (
                    "offsetof(struct v4l2_selection, r.height)",
                    offset_of!(Selection, height),
                ),
                (
                    "offsetof(struct v4l2_control, value)",
                    offset_of!(Control, value),
                ),
                (
                    "offsetof(struct v4l2_queryctrl, name)",
                    offset_of!(QueryControl, name),
                ),
                (
                    "offsetof(struct v4l2_queryctrl, flags)",
                    offset_of!(QueryControl, flags),
                ),
            ],
        );
    }

    #[test]
    fn ioctls_have_the_numbers_of_the_kernel_headers() {
        ctest::check(
            &HEADERS,
            &[
                ("VIDIOC_QUERYCAP", QUERYCAP.opcode() as usize),
                ("VIDIOC_ENUM_FMT", ENUM_FMT.opcode() as usize),
                ("VIDIOC_G_FMT", G_FMT.opcode() as usize),
                ("VIDIOC_S_FMT", S_FMT.opcode() as usize),
                ("VIDIOC_REQBUFS", REQBUFS.opcode() as usize),
                ("VIDIOC_EXPBUF", EXPBUF.opcode() as usize),
                ("VIDIOC_STREAMON", STREAMON.opcode() as usize),
                ("VIDIOC_STREAMOFF", STREAMOFF.opcode() as usize),
                ("VIDIOC_G_SELECTION", G_SELECTION.opcode() as usize),
                ("VIDIOC_S_PARM", S_PARM.opcode() as usize),
                ("VIDIOC_G_STD", G_STD.opcode() as usize),
                ("VIDIOC_S_CTRL", S_CTRL.opcode() as usize),
                ("VIDIOC_QUERYCTRL", QUERYCTRL.opcode() as usize),
                ("VIDIOC_S_INPUT", S_INPUT.opcode() as usize),
                ("VIDIOC_S_OUTPUT", S_OUTPUT.opcode() as usize),
                ("VIDIOC_ENUM_FRAMESIZES", ENUM_FRAMESIZES.opcode() as usize),
                ("VIDIOC_G_FMT", G_FMT_MULTI.opcode() as usize),
                ("VIDIOC_S_FMT", S_FMT_MULTI.opcode() as usize),
                (
                    "VIDIOC_QBUF",
                    Transfer::Queue.opcode::<SingleBuffer>() as usize,
                ),
                (
                    "VIDIOC_QBUF",
                    Transfer::Queue.opcode::<MultiBuffer>() as usize,
                ),
                (
                    "VIDIOC_DQBUF",
                    Transfer::Dequeue.opcode::<SingleBuffer>() as usize,
                ),
                (
                    "VIDIOC_DQBUF",
                    Transfer::Dequeue.opcode::<MultiBuffer>() as usize,
                ),
            ],
        );
    }

    #[test]
    fn constants_are_those_of_the_kernel_headers() {
        ctest::check(
            &HEADERS,
            &[
                (
                    "V4L2_BUF_TYPE_VIDEO_CAPTURE",
                    BUF_TYPE_VIDEO_CAPTURE as usize,
                ),
                ("V4L2_BUF_TYPE_VIDEO_OUTPUT", BUF_TYPE_VIDEO_OUTPUT as usize),
                (
                    "V4L2_BUF_TYPE_VIDEO_CAPTURE_MPLANE",
                    BUF_TYPE_VIDEO_CAPTURE_MPLANE as usize,
                ),
                (
                    "V4L2_BUF_TYPE_VIDEO_OUTPUT_MPLANE",
                    BUF_TYPE_VIDEO_OUTPUT_MPLANE as usize,
                ),
                ("V4L2_SEL_TGT_COMPOSE", SEL_TGT_COMPOSE as usize),
                ("V4L2_FIELD_ANY", FIELD_ANY as usize),
                ("V4L2_FIELD_NONE", FIELD_NONE as usize),
                ("V4L2_FIELD_TOP", FIELD_TOP as usize),
                ("V4L2_FIELD_BOTTOM", FIELD_BOTTOM as usize),
                ("V4L2_FIELD_SEQ_TB", FIELD_SEQ_TB as usize),
                ("V4L2_FIELD_SEQ_BT", FIELD_SEQ_BT as usize),
                ("V4L2_FIELD_ALTERNATE", FIELD_ALTERNATE as usize),
                ("V4L2_STD_525_60", STD_525_60 as usize),
                ("V4L2_FRMSIZE_TYPE_DISCRETE", FRMSIZE_TYPE_DISCRETE as usize),
                ("V4L2_CAP_VIDEO_CAPTURE", CAP_VIDEO_CAPTURE as usize),
                ("V4L2_CAP_VIDEO_OUTPUT", CAP_VIDEO_OUTPUT as usize),
                (
                    "V4L2_CAP_VIDEO_CAPTURE_MPLANE",
                    CAP_VIDEO_CAPTURE_MPLANE as usize,
                ),
                (
                    "V4L2_CAP_VIDEO_OUTPUT_MPLANE",
                    CAP_VIDEO_OUTPUT_MPLANE as usize,
                ),
                ("V4L2_CAP_STREAMING", CAP_STREAMING as usize),
                ("V4L2_CAP_DEVICE_CAPS", CAP_DEVICE_CAPS as usize),
                ("V4L2_FIELD_INTERLACED", FIELD_INTERLACED as usize),
                ("V4L2_FIELD_INTERLACED_TB", FIELD_INTERLACED_TB as usize),
                ("V4L2_FIELD_INTERLACED_BT", FIELD_INTERLACED_BT as usize),
                ("V4L2_BUF_FLAG_ERROR", BUF_FLAG_ERROR as usize),
                (
                    "V4L2_BUF_FLAG_TIMESTAMP_MASK",
                    BUF_FLAG_TIMESTAMP_MASK as usize,
                ),
                (
                    "V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC",
                    BUF_FLAG_TIMESTAMP_MONOTONIC as usize,
                ),
                (
                    "V4L2_BUF_FLAG_TSTAMP_SRC_MASK",
                    BUF_FLAG_TSTAMP_SRC_MASK as usize,
                ),
                (
                    "V4L2_BUF_FLAG_TSTAMP_SRC_SOE",
                    BUF_FLAG_TSTAMP_SRC_SOE as usize,
                ),
                ("V4L2_CTRL_FLAG_NEXT_CTRL", CTRL_FLAG_NEXT_CTRL as usize),
                ("V4L2_MEMORY_MMAP", Memory::Driver as usize),
                ("V4L2_MEMORY_DMABUF", Memory::DmaBuf as usize),
                ("VIDEO_MAX_PLANES", VIDEO_MAX_PLANES),
            ],
        );
    }
}
