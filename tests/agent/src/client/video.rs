// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A video driver of this guest

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bufshare_media::dma_heap;
use bufshare_media::fourcc::Fourcc;
use bufshare_media::v4l2::{Memory, Queue, Side};

use super::memory::Mapping;

/// XRGB8888, as memory has it: blue first.
const XRGB: Fourcc = Fourcc::new(b"XR24");
const LIMIT: Duration = Duration::from_secs(20);
/// So many are received before the one that is waited for is given up.
const PICTURES: u32 = 100;

/// An open device.
pub(crate) struct Video {
    queue: Queue,
    side: Side,
}

impl Video {
    pub(crate) fn open(path: &str, side: Side) -> Result<Self> {
        let queue =
            Queue::open(Path::new(path), side).with_context(|| format!("opening {path}"))?;
        Ok(Self { queue, side })
    }

    /// Bytes of a picture of exactly this size.
    fn set_format(&mut self, width: u32, height: u32) -> Result<u32> {
        let format = self.queue.set_format(width, height, XRGB);
        let format = format.context("VIDIOC_S_FMT")?;
        if (format.width, format.height, format.fourcc) != (width, height, XRGB) {
            bail!(
                "the driver offers {}x{} {}",
                format.width,
                format.height,
                format.fourcc
            );
        }
        Ok(u32::try_from(format.size())?)
    }

    fn request(&mut self, count: u32, memory: Memory) -> Result<u32> {
        let found = self.queue.request(memory, count);
        found.context("VIDIOC_REQBUFS")
    }

    fn queue(&self, index: u32, buffer: BorrowedFd<'_>, bytes: u32) -> Result<()> {
        self.queue
            .queue_filled(index, &[buffer], bytes)
            .context("VIDIOC_QBUF")
    }

    fn dequeue(&self) -> Result<u32> {
        let started = Instant::now();
        loop {
            if let Some(filled) = self.queue.dequeue().context("VIDIOC_DQBUF")? {
                if filled.broken {
                    bail!("the driver marked the buffer as broken");
                }
                return Ok(filled.index);
            }
            let limit = crate::scaled(LIMIT);
            if started.elapsed() > limit {
                bail!("waited {limit:?} for a buffer from the driver");
            }
            let events = match self.side {
                Side::Capture => libc::POLLIN,
                Side::Output => libc::POLLOUT,
            };
            let mut poll = libc::pollfd {
                fd: self.queue.as_fd().as_raw_fd(),
                events,
                revents: 0,
            };
            // SAFETY: one structure.
            unsafe { libc::poll(&raw mut poll, 1, 100) };
        }
    }

    fn start(&mut self) -> Result<()> {
        self.queue.start().context("VIDIOC_STREAMON")
    }

    fn stop(&mut self) -> Result<()> {
        self.queue.stop().context("VIDIOC_STREAMOFF")
    }

    /// A buffer of the driver's own.
    pub(crate) fn export(mut self, width: u32, height: u32) -> Result<OwnedFd> {
        self.set_format(width, height)?;
        self.request(1, Memory::Driver)?;
        self.queue.export(0).context("VIDIOC_EXPBUF")
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
        self.stop()?;
        self.request(0, Memory::DmaBuf)?;
        Ok(())
    }

    /// Give the driver a foreign buffer. It has it mapped from here on, and
    /// until the device is closed.
    pub(crate) fn lend(&mut self, buffer: BorrowedFd<'_>, width: u32, height: u32) -> Result<()> {
        let bytes = self.set_format(width, height)?;
        // Once, see queue_everywhere().
        self.request(1, Memory::DmaBuf)?;
        self.queue(0, buffer, bytes)
    }

    /// Capture into it, until one picture is complete.
    pub(crate) fn capture_lent(&mut self) -> Result<()> {
        self.start()?;
        self.dequeue().map(drop)
    }

    /// vivid sends a buffer once there is another: all are the same. To be read only:
    /// Linux 6.12's DMA debugging takes overlapping mappings to write for a fault.
    fn queue_everywhere(&mut self, buffer: BorrowedFd<'_>, bytes: u32) -> Result<()> {
        for index in 0..self.request(1, Memory::DmaBuf)? {
            self.queue(index, buffer, bytes)?;
        }
        Ok(())
    }

    /// The control of this name, set to the entry of a menu or a number.
    pub(crate) fn set_control(&self, name: &str, value: i32) -> Result<()> {
        self.queue
            .set_control(name, value)
            .with_context(|| format!("setting {name}"))
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
    sender.start()?;
    let picture = match receiver {
        Some(receiver) => receive(receiver, &sender, buffer, (width, height, bytes))?,
        None => Vec::new(),
    };
    if picture.is_empty() {
        sender.dequeue()?;
    }
    sender.stop()?;
    sender.request(0, Memory::DmaBuf)?;
    Ok(picture)
}

/// A cable between the output and the input of one vivid instance.
fn connect(sender: &Video, receiver: &Video) -> Result<()> {
    sender.queue.set_output(0).context("VIDIOC_S_OUTPUT")?;
    receiver.queue.set_input(0).context("VIDIOC_S_INPUT")?;
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
        .map(|_| dma_heap::allocate("system", u64::from(bytes), true))
        .collect::<io::Result<Vec<_>>>()?;
    let target = |index: u32| {
        let target = targets.get(usize::try_from(index)?);
        target.with_context(|| format!("the driver has no buffer {index}"))
    };
    for (index, target) in (0..).zip(&targets) {
        receiver.queue(index, target.as_fd(), bytes)?;
    }
    receiver.start()?;
    let len = usize::try_from(bytes)?;
    let wanted = contents(buffer, len)?;
    let mut picture = Vec::new();
    // The first may be of before the cable, and any of while the output has no buffer.
    for _ in 0..PICTURES {
        let index = receiver.dequeue()?;
        let target = target(index)?;
        picture = contents(target.as_fd(), len)?;
        if picture == wanted {
            break;
        }
        receiver.queue(index, target.as_fd(), bytes)?;
        let sent = sender.dequeue()?;
        sender.queue(sent, buffer, bytes)?;
    }
    receiver.stop()?;
    receiver.request(0, Memory::DmaBuf)?;
    Ok(picture)
}

/// What a buffer has now.
fn contents(buffer: BorrowedFd<'_>, len: usize) -> Result<Vec<u8>> {
    let mapping = Mapping::new(buffer, len, false)?;
    let mut bytes = vec![0; len];
    mapping
        .read(0, &mut bytes)?
        .map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    Ok(bytes)
}
