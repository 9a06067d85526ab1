// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A video driver of this guest, by the ioctls of `<linux/videodev2.h>`

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::ioctl::{self, Argument};
use super::memory::Mapping;
use super::sources;

/// XRGB8888, as memory has it: blue first.
const XRGB: u32 = u32::from_le_bytes(*b"XR24");
const LIMIT: Duration = Duration::from_secs(20);

/// Which side of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Side {
    Capture = 1,
    Output = 2,
}

/// Whose memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Memory {
    Driver = 1,
    DmaBuf = 4,
}

#[repr(C, align(8))]
struct Format {
    kind: u32,
    /// The union holds pointers in members not used here, hence the alignment.
    gap: u32,
    width: u32,
    height: u32,
    pixelformat: u32,
    field: u32,
    bytesperline: u32,
    sizeimage: u32,
    rest: [u32; 44],
}

#[repr(C)]
struct RequestBuffers {
    count: u32,
    kind: u32,
    memory: u32,
    rest: [u32; 2],
}

#[repr(C)]
#[derive(Default)]
struct Buffer {
    index: u32,
    kind: u32,
    bytesused: u32,
    flags: u32,
    field: u32,
    gap: u32,
    time: [u64; 2],
    timecode: [u32; 4],
    sequence: u32,
    memory: u32,
    place: u64,
    length: u32,
    reserved: u32,
    request: u32,
    end: u32,
}

#[repr(C)]
struct Export {
    kind: u32,
    index: u32,
    plane: u32,
    flags: u32,
    fd: i32,
    reserved: [u32; 11],
}

#[repr(C)]
struct Control {
    id: u32,
    value: i32,
}

/// `struct v4l2_queryctrl`.
#[repr(C)]
struct QueryControl {
    id: u32,
    kind: u32,
    name: [u8; 32],
    minimum: i32,
    maximum: i32,
    step: i32,
    default: i32,
    flags: u32,
    reserved: [u32; 2],
}

// SAFETY: plain data without padding.
unsafe impl Argument for Format {}
// SAFETY: plain data without padding.
unsafe impl Argument for RequestBuffers {}
// SAFETY: plain data without padding.
unsafe impl Argument for Buffer {}
// SAFETY: plain data without padding.
unsafe impl Argument for Export {}
// SAFETY: plain data without padding.
unsafe impl Argument for Control {}
// SAFETY: plain data without padding.
unsafe impl Argument for QueryControl {}

const _: () =
    assert!(size_of::<Format>() == 208 && size_of::<Buffer>() == 88 && size_of::<Export>() == 64);

const S_FMT: u32 = ioctl::read_write::<Format>(b'V', 5);
const REQBUFS: u32 = ioctl::read_write::<RequestBuffers>(b'V', 8);
const QBUF: u32 = ioctl::read_write::<Buffer>(b'V', 15);
const EXPBUF: u32 = ioctl::read_write::<Export>(b'V', 16);
const DQBUF: u32 = ioctl::read_write::<Buffer>(b'V', 17);
const STREAMON: u32 = ioctl::write::<u32>(b'V', 18);
const STREAMOFF: u32 = ioctl::write::<u32>(b'V', 19);
const S_CTRL: u32 = ioctl::read_write::<Control>(b'V', 28);
const QUERYCTRL: u32 = ioctl::read_write::<QueryControl>(b'V', 36);
const S_INPUT: u32 = ioctl::read_write::<u32>(b'V', 39);
const S_OUTPUT: u32 = ioctl::read_write::<u32>(b'V', 47);

/// An open device.
pub(crate) struct Video {
    file: File,
    side: Side,
    memory: Memory,
}

impl Video {
    pub(crate) fn open(path: &str, side: Side) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .with_context(|| format!("opening {path}"))?;
        Ok(Self {
            file,
            side,
            memory: Memory::Driver,
        })
    }

    fn kind(&self) -> u32 {
        self.side as u32
    }

    /// Bytes of a picture of exactly this size.
    fn set_format(&self, width: u32, height: u32) -> Result<u32> {
        let mut format = Format {
            kind: self.kind(),
            gap: 0,
            width,
            height,
            pixelformat: XRGB,
            field: 1,
            bytesperline: 0,
            sizeimage: 0,
            rest: [0; 44],
        };
        ioctl::call(&self.file, S_FMT, &mut format).context("VIDIOC_S_FMT")?;
        if (format.width, format.height, format.pixelformat) != (width, height, XRGB) {
            bail!(
                "the driver offers {}x{} {:#x}",
                format.width,
                format.height,
                format.pixelformat
            );
        }
        Ok(format.sizeimage)
    }

    fn request(&mut self, count: u32, memory: Memory) -> Result<u32> {
        self.memory = memory;
        let mut request = RequestBuffers {
            count,
            kind: self.kind(),
            memory: memory as u32,
            rest: [0; 2],
        };
        ioctl::call(&self.file, REQBUFS, &mut request).context("VIDIOC_REQBUFS")?;
        Ok(request.count)
    }

    fn queue(&self, index: u32, buffer: Option<BorrowedFd<'_>>, bytes: u32) -> Result<()> {
        let mut argument = Buffer {
            index,
            kind: self.kind(),
            bytesused: bytes,
            field: 1,
            memory: self.memory as u32,
            length: bytes,
            ..Buffer::default()
        };
        if let Some(fd) = buffer {
            argument.place = u64::try_from(fd.as_raw_fd())?;
        }
        ioctl::call(&self.file, QBUF, &mut argument)
            .context("VIDIOC_QBUF")
            .map(drop)
    }

    fn dequeue(&self) -> Result<u32> {
        let started = Instant::now();
        loop {
            let mut argument = Buffer {
                kind: self.kind(),
                memory: self.memory as u32,
                ..Buffer::default()
            };
            match ioctl::call(&self.file, DQBUF, &mut argument) {
                Ok(_) if argument.flags & 0x40 != 0 => {
                    bail!("the driver marked the buffer as broken")
                }
                Ok(_) => return Ok(argument.index),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let limit = crate::scaled(LIMIT);
                    if started.elapsed() > limit {
                        bail!("waited {limit:?} for a buffer from the driver");
                    }
                    let events = if self.side == Side::Capture {
                        libc::POLLIN
                    } else {
                        libc::POLLOUT
                    };
                    let mut poll = libc::pollfd {
                        fd: self.file.as_raw_fd(),
                        events,
                        revents: 0,
                    };
                    // SAFETY: one structure.
                    unsafe { libc::poll(&raw mut poll, 1, 100) };
                }
                Err(error) => return Err(error).context("VIDIOC_DQBUF"),
            }
        }
    }

    fn stream(&self, on: bool) -> Result<()> {
        let (request, name) = if on {
            (STREAMON, "VIDIOC_STREAMON")
        } else {
            (STREAMOFF, "VIDIOC_STREAMOFF")
        };
        ioctl::call(&self.file, request, &mut self.kind())
            .context(name)
            .map(drop)
    }

    /// A buffer of the driver's own.
    pub(crate) fn export(mut self, width: u32, height: u32) -> Result<(OwnedFd, u32)> {
        let bytes = self.set_format(width, height)?;
        self.request(1, Memory::Driver)?;
        let flags = u32::try_from(libc::O_RDWR | libc::O_CLOEXEC)?;
        let mut export = Export {
            kind: self.kind(),
            index: 0,
            plane: 0,
            flags,
            fd: -1,
            reserved: [0; 11],
        };
        ioctl::call(&self.file, EXPBUF, &mut export).context("VIDIOC_EXPBUF")?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok((unsafe { OwnedFd::from_raw_fd(export.fd) }, bytes))
    }

    /// Capture into a foreign buffer, until one picture is complete.
    pub(crate) fn capture_into(
        mut self,
        buffer: BorrowedFd<'_>,
        width: u32,
        height: u32,
    ) -> Result<()> {
        self.lend(buffer, width, height)?;
        self.capture_lent()?;
        self.stream(false)?;
        self.request(0, Memory::DmaBuf)?;
        Ok(())
    }

    /// Give the driver a foreign buffer. It has it mapped from here on, and
    /// until the device is closed.
    pub(crate) fn lend(&mut self, buffer: BorrowedFd<'_>, width: u32, height: u32) -> Result<()> {
        let bytes = self.set_format(width, height)?;
        // Once, see queue_everywhere().
        self.request(1, Memory::DmaBuf)?;
        self.queue(0, Some(buffer), bytes)
    }

    /// Capture into it, until one picture is complete.
    pub(crate) fn capture_lent(&self) -> Result<()> {
        self.stream(true)?;
        self.dequeue().map(drop)
    }

    /// vivid sends a buffer once there is another: all are the same. To be read only:
    /// Linux 6.12's DMA debugging takes overlapping mappings to write for a fault.
    fn queue_everywhere(&mut self, buffer: BorrowedFd<'_>, bytes: u32) -> Result<()> {
        for index in 0..self.request(1, Memory::DmaBuf)? {
            self.queue(index, Some(buffer), bytes)?;
        }
        Ok(())
    }

    /// The control of this name, set to the entry of a menu or a number.
    pub(crate) fn set_control(&self, name: &str, value: i32) -> Result<()> {
        const NEXT: u32 = 0x8000_0000;
        let mut id = 0;
        loop {
            let mut query = QueryControl {
                id: id | NEXT,
                kind: 0,
                name: [0; 32],
                minimum: 0,
                maximum: 0,
                step: 0,
                default: 0,
                flags: 0,
                reserved: [0; 2],
            };
            ioctl::call(&self.file, QUERYCTRL, &mut query)
                .with_context(|| format!("no control {name}"))?;
            id = query.id;
            let end = query
                .name
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(query.name.len());
            if query.name.get(..end) == Some(name.as_bytes()) {
                let mut control = Control { id, value };
                ioctl::call(&self.file, S_CTRL, &mut control)
                    .with_context(|| format!("setting {name}"))?;
                return Ok(());
            }
        }
    }
}

/// Send a foreign buffer as video; the picture that arrives, if anybody looks.
pub(crate) fn send(
    output: &str,
    capture: Option<&str>,
    buffer: BorrowedFd<'_>,
    width: u32,
    height: u32,
) -> Result<Vec<u8>> {
    let mut sender = Video::open(output, Side::Output)?;
    let receiver = capture
        .map(|path| Video::open(path, Side::Capture))
        .transpose()?;
    if let Some(receiver) = &receiver {
        connect(&sender, receiver).context("connecting the driver's two sides")?;
    }
    let bytes = sender.set_format(width, height)?;
    sender.queue_everywhere(buffer, bytes)?;
    sender.stream(true)?;
    let picture = match receiver {
        Some(receiver) => receive(receiver, &sender, buffer, (width, height, bytes))?,
        None => Vec::new(),
    };
    if picture.is_empty() {
        sender.dequeue()?;
    }
    sender.stream(false)?;
    sender.request(0, Memory::DmaBuf)?;
    Ok(picture)
}

/// A cable between the output and the input of one vivid instance.
fn connect(sender: &Video, receiver: &Video) -> Result<()> {
    ioctl::call(&sender.file, S_OUTPUT, &mut 0_u32).context("VIDIOC_S_OUTPUT")?;
    ioctl::call(&receiver.file, S_INPUT, &mut 0_u32).context("VIDIOC_S_INPUT")?;
    // Entry 0 is "TPG", the generator; 1 is "None"; then the outputs.
    receiver.set_control("HDMI 000-0 Is Connected To", 2)?;
    // No text over the picture.
    receiver.set_control("OSD Text Mode", 2)
}

fn receive(
    mut receiver: Video,
    sender: &Video,
    buffer: BorrowedFd<'_>,
    (width, height, bytes): (u32, u32, u32),
) -> Result<Vec<u8>> {
    receiver.set_format(width, height)?;
    let targets = (0..receiver.request(1, Memory::DmaBuf)?)
        .map(|_| sources::heap("system", u64::from(bytes), true))
        .collect::<Result<Vec<_>>>()?;
    let target = |index: u32| {
        let target = targets.get(usize::try_from(index)?);
        target.with_context(|| format!("the driver has no buffer {index}"))
    };
    for (index, target) in (0..).zip(&targets) {
        receiver.queue(index, Some(target.as_fd()), bytes)?;
    }
    receiver.stream(true)?;
    // The first pictures may be of before the cable: take a later one.
    for _ in 0..4 {
        let index = receiver.dequeue()?;
        receiver.queue(index, Some(target(index)?.as_fd()), bytes)?;
        let sent = sender.dequeue()?;
        sender.queue(sent, Some(buffer), bytes)?;
    }
    let target = target(receiver.dequeue()?)?;
    receiver.stream(false)?;
    receiver.request(0, Memory::DmaBuf)?;
    let len = usize::try_from(bytes)?;
    let mapping = Mapping::new(target.as_fd(), len, false)?;
    let mut picture = vec![0; len];
    mapping
        .read(0, &mut picture)?
        .map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    Ok(picture)
}
