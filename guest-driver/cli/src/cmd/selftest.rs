// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bufshare selftest`: camera to screen within one machine, as `capture` and `view`
//! do it but with nothing in between. When this fails, so will they.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use bufshare::{DmaBuf, Mapping, Rights};
use bufshare_media::dma_heap;
use bufshare_media::drm::Screen;

use crate::args::Selftest;
use crate::camera::Camera;
use crate::content;
use crate::durations::Durations;
use crate::failure::{Failure, Result};
use crate::image::{self, Mapped};
use crate::output::{self, Record, ScreenRecord, micros};
use crate::session::Session;
use crate::stop::{Input, Stop};
use crate::verify::{ReplyByte, reply_byte};

const TIMEOUT: Duration = Duration::from_secs(30);

/// One buffer of the camera: its memories in the order of the frame's planes. The mappings go
/// first.
struct Buffer {
    mappings: Vec<Mapping>,
    dmabufs: Vec<DmaBuf>,
}

impl Buffer {
    fn new(sizes: &[u64]) -> Result<Self> {
        let dmabufs = sizes.iter().map(|bytes| {
            let fd = dma_heap::allocate("system", *bytes, true)
                .map_err(|e| Failure::io("allocate of the system heap", &e))?;
            Ok(DmaBuf::from_fd(fd)?)
        });
        let dmabufs = dmabufs.collect::<Result<Vec<_>>>()?;
        let mappings = dmabufs.iter().map(|dmabuf| dmabuf.map(Rights::RW));
        Ok(Self {
            mappings: mappings.collect::<std::result::Result<_, _>>()?,
            dmabufs,
        })
    }

    fn dmabufs(&self) -> Vec<BorrowedFd<'_>> {
        self.dmabufs.iter().map(AsFd::as_fd).collect()
    }
}

/// Shows some frames.
pub(crate) fn run(session: &Session, args: &Selftest) -> Result<()> {
    let mut stop = Stop::new(Input::Ignored)?;
    let mut camera = Camera::new(session.output, &args.camera, 1)?;
    let sizes = camera.sizes();
    let buffers: Vec<Buffer> = (0..camera.buffers)
        .map(|_| Buffer::new(&sizes))
        .collect::<Result<_>>()?;
    for (index, buffer) in (0..).zip(&buffers) {
        camera.fill(index, &buffer.dmabufs())?;
    }
    camera.start()?;
    let (mut screen, mut on_screen) = (None::<Screen>, None);
    let (mut hashes, mut times, mut replies_ok, mut frames) =
        (HashSet::new(), Durations::default(), 0, 0);
    while frames < args.frames {
        let [ready] = stop.wait([camera.queue.as_fd()], Some(TIMEOUT))?;
        if stop.requested() {
            break;
        }
        if !ready {
            return Err(Failure::timeout("the camera gave no frame"));
        }
        let Some(filled) = camera.dequeue()? else {
            continue;
        };
        let buffer = usize::try_from(filled.index)
            .ok()
            .and_then(|index| buffers.get(index))
            .ok_or_else(|| Failure::new("the camera filled an unknown buffer"))?;
        frames = frames.saturating_add(1);
        let bytes = camera.frame_bytes(&filled);
        let bytes = bytes.iter().map(|bytes| *bytes as usize);
        hashes.insert(content::xxh3(buffer.mappings.iter().zip(bytes))?);
        let memory = buffer.mappings.first();
        let memory = memory.ok_or_else(|| Failure::new("the camera fills nothing"))?;
        let ReplyByte { offset, value } = reply_byte(memory, frames)?;
        let start = Instant::now();
        let image = &image::from_metadata(&camera.image_of(&filled)?);
        let dmabufs = buffer.dmabufs();
        let pixels = Mapped(buffer.mappings.iter().collect());
        let picture = if let Some(screen) = &mut screen {
            screen.show(&dmabufs, image, &pixels)?
        } else {
            let (found, shown) = Screen::open(args.card.as_deref(), &dmabufs, image, &pixels)?;
            screen = Some(found);
            shown
        };
        times.push(micros(start.elapsed()));
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        content::write_at(memory, offset, &[value])?;
        if content::byte_at(memory, offset)? == value {
            replies_ok = u64::saturating_add(replies_ok, 1);
        }
        if let Some((index, dmabufs, previous)) =
            on_screen.replace((filled.index, dmabufs, picture))
        {
            drop(previous);
            camera.fill(index, &dmabufs)?;
        }
    }
    session.output.print(&Record::Selftest(output::Selftest {
        frames,
        format: camera.format.fourcc.to_string(),
        width: camera.format.width,
        height: camera.format.height,
        stride: camera.format.stride(),
        frame_bytes: camera.format.size(),
        different_frames: hashes.len(),
        replies_ok,
        show_us: times.spread(),
        screen: screen.as_ref().map(|screen| screen.name().to_owned()),
        screen_shows: screen
            .as_ref()
            .map(|screen| ScreenRecord::from(screen).shows),
    }))?;
    if args.hold && !stop.requested() {
        stop.listen_to(Input::Line)?;
        stop.wait_for_it(None)?;
    }
    drop(on_screen);
    Ok(())
}
