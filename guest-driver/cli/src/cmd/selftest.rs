// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bufshare selftest`: camera to screen within one machine, as `capture` and `view`
//! do it but with nothing in between. When this fails, so will they.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bufshare::{DmaBuf, Rights};
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

const TIMEOUT: Duration = Duration::from_secs(30);

/// Shows some frames.
pub(crate) fn run(session: &Session, args: &Selftest) -> Result<()> {
    let mut stop = Stop::new(Input::Ignored)?;
    let mut camera = Camera::new(session.output, &args.camera, |bytes| {
        let fd = dma_heap::allocate("system", bytes, true)
            .map_err(|e| Failure::io("allocate of the system heap", &e))?;
        Ok(DmaBuf::from_fd(fd)?)
    })?;
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
        let slot = camera.slot(filled.index)?;
        frames = frames.saturating_add(1);
        let bytes = camera.frame_bytes(&filled, slot);
        hashes.insert(content::xxh3(slot.mappings().into_iter().zip(bytes))?);
        let reply = camera.reply(slot, frames)?;
        let start = Instant::now();
        let image = &image::from_metadata(&camera.image_of(&filled)?);
        let (dmabufs, memory) = (slot.dmabufs(), Mapped(slot.mappings()));
        let picture = if let Some(screen) = &mut screen {
            screen.show(&dmabufs, image, &memory)?
        } else {
            let (found, shown) = Screen::open(args.card.as_deref(), &dmabufs, image, &memory)?;
            screen = Some(found);
            shown
        };
        times.push(micros(start.elapsed()));
        let offset = usize::try_from(reply.offset).unwrap_or(usize::MAX);
        let writable = slot.first.dmabuf.map(Rights::RW)?;
        content::write_at(&writable, offset, &[reply.value])?;
        if content::byte_at(&slot.first.mapping, offset)? == reply.value {
            replies_ok = u64::saturating_add(replies_ok, 1);
        }
        if let Some((index, previous)) = on_screen.replace((filled.index, picture)) {
            drop(previous);
            camera.refill(index)?;
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
