// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bufshare export`

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use bufshare::{Device, DmaBuf, ExportOptions, Meta, Name};
use bufshare_media::{dma_heap, drm, udmabuf};

use crate::args::{Export, Offer, Source};
use crate::content::{self, Pattern};
use crate::failure::{Failure, Result};
use crate::output::{Exported, Record};
use crate::rights;
use crate::session::{Held, Session};
use crate::stop::{Input, Stop};

/// Has another driver make a dma-buf, exports it and holds.
pub(crate) fn run(session: &Session, args: &Export) -> Result<()> {
    let size = args.size.map_or(0, |size| size.0);
    // Before anything else is opened: --fd names a descriptor of the caller's.
    let (fd, source) = make(&args.source, size)?;
    let buffer = DmaBuf::from_fd(fd)?;
    // A dma-buf is no input that could end.
    let input = match args.source.fd {
        Some(0) => Input::Ignored,
        _ => args.offer.until.input(Input::End),
    };
    let stop = Stop::new(input)?;
    let device = session.open()?;
    offer(session, &device, stop, &buffer, source, &args.offer)
}

fn make(source: &Source, size: u64) -> Result<(OwnedFd, &'static str)> {
    if let Some(name) = &source.heap {
        let fd = dma_heap::allocate(name, size, true)
            .map_err(|e| Failure::io(format!("dma-heap {name}"), &e))?;
        Ok((fd, "heap"))
    } else if source.udmabuf {
        let fd = udmabuf::allocate(size).map_err(|e| Failure::io("/dev/udmabuf", &e))?;
        Ok((fd, "udmabuf"))
    } else if source.vgem {
        let fd = drm::dumb_dmabuf("vgem", size).map_err(|e| Failure::io("vgem", &e))?;
        Ok((fd, "vgem"))
    } else {
        let number = source
            .fd
            .and_then(|fd| RawFd::try_from(fd).ok())
            .unwrap_or(-1);
        Ok((duplicate(number)?, "fd"))
    }
}

/// A copy of a descriptor that the caller passed.
fn duplicate(number: RawFd) -> Result<OwnedFd> {
    let wrong = |error: &std::io::Error| Failure::io(format!("descriptor {number}"), error);
    // SAFETY: only asks whether the number is open; nothing here closes it.
    if number < 0 || unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(wrong(&std::io::Error::from_raw_os_error(libc::EBADF)));
    }
    // SAFETY: it is open, and stays so: the caller passed it for us to use.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fd.try_clone_to_owned().map_err(|e| wrong(&e))
}

/// Fills if asked, exports, prints and holds until a stop is requested.
pub(crate) fn offer(
    session: &Session,
    device: &Device,
    mut stop: Stop,
    buffer: &DmaBuf,
    source: &'static str,
    offer: &Offer,
) -> Result<()> {
    let pattern = match (&offer.fill, offer.fill_seed) {
        (Some(bytes), _) => Some(Pattern::Repeat(&bytes.0)),
        (None, Some(seed)) => Some(Pattern::Seed(seed)),
        (None, None) => None,
    };
    let hashes = pattern
        .map(|pattern| content::fill(buffer, &pattern))
        .transpose()?;
    let (sha256, xxh3) = hashes.unzip();
    let name = Name::new(&offer.name).map_err(|error| Failure::new(format!("--name: {error}")))?;
    let mut options = ExportOptions::new().meta(Meta::new().name(name));
    options.access = rights::to_grant(session.output, device, &offer.to)?;
    let events = session.events()?;
    let export = device.export(buffer, &options)?;
    let extents = device.query(export.id())?.extents;
    session.output.print(&Record::Exported(Exported {
        id: export.id().to_string(),
        generation: export.generation(),
        size: buffer.len() as u64,
        extents,
        source,
        buffer: None,
        plane: None,
        image: None,
        sha256,
        xxh3,
    }))?;
    session.hold(&mut stop, &events, device, &Held::Export(&export))
}
