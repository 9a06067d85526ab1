// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A display driver of this guest

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use drm::buffer::{Buffer, DrmFourcc, Handle};
use drm::control::{Device as _, connector, framebuffer};
use drm::{Device as _, buffer};

#[derive(Debug)]
struct Card(File);

impl AsFd for Card {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl drm::Device for Card {}
impl drm::control::Device for Card {}

fn card(driver: &str) -> Result<Card> {
    let mut seen = Vec::new();
    for entry in std::fs::read_dir("/dev/dri").context("reading /dev/dri")? {
        let path = entry?.path();
        if !path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("card"))
        {
            continue;
        }
        let card = Card(File::options().read(true).write(true).open(&path)?);
        let found = card.get_driver()?.name().to_string_lossy().into_owned();
        if found == driver {
            return Ok(card);
        }
        seen.push(found);
    }
    bail!("no card of driver {driver}, only {seen:?}");
}

/// A dumb buffer of at least `size` bytes.
pub(crate) fn dumb(driver: &str, size: u64) -> Result<OwnedFd> {
    let card = card(driver)?;
    // 1024 pixels of 4 bytes are one page.
    let rows = u32::try_from(size.div_ceil(4096))?;
    let dumb = card
        .create_dumb_buffer((1024, rows), DrmFourcc::Xrgb8888, 32)
        .context("making a dumb buffer")?;
    let flags = u32::try_from(libc::O_RDWR | libc::O_CLOEXEC)?;
    let fd = card
        .buffer_to_prime_fd(dumb.handle(), flags)
        .context("PRIME_HANDLE_TO_FD")?;
    card.destroy_dumb_buffer(dumb)?;
    Ok(fd)
}

/// A buffer on the screen, until this is dropped.
#[derive(Debug)]
pub(crate) struct Shown {
    card: Arc<Card>,
    handle: Handle,
    framebuffer: Option<framebuffer::Handle>,
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(framebuffer) = self.framebuffer {
            let _ = self.card.destroy_framebuffer(framebuffer);
        }
        let _ = self.card.close_buffer(self.handle);
    }
}

/// Show it.
pub(crate) fn show(driver: &str, dmabuf: BorrowedFd<'_>, width: u32, height: u32) -> Result<Shown> {
    let card = Arc::new(card(driver)?);
    let handle = card
        .prime_fd_to_buffer(dmabuf)
        .context("PRIME_FD_TO_HANDLE")?;
    let mut shown = Shown {
        card: Arc::clone(&card),
        handle,
        framebuffer: None,
    };
    let picture = Picture {
        handle,
        size: (width, height),
    };
    let framebuffer = card.add_framebuffer(&picture, 24, 32).context("ADDFB")?;
    shown.framebuffer = Some(framebuffer);

    let resources = card.resource_handles()?;
    for connector in resources.connectors() {
        let info = card.get_connector(*connector, true)?;
        if info.state() != connector::State::Connected {
            continue;
        }
        let wanted = |mode: &&drm::control::Mode| {
            let (across, down) = mode.size();
            (u32::from(across), u32::from(down)) == (width, height)
        };
        let mode = info.modes().iter().find(wanted);
        let crtc = resources.crtcs().first();
        if let (Some(mode), Some(crtc)) = (mode, crtc) {
            card.set_crtc(*crtc, Some(framebuffer), (0, 0), &[*connector], Some(*mode))
                .context("SETCRTC")?;
            return Ok(shown);
        }
    }
    Err(io::Error::from(io::ErrorKind::NotFound)).context("no connected screen has this size")
}

struct Picture {
    handle: Handle,
    size: (u32, u32),
}

impl buffer::Buffer for Picture {
    fn size(&self) -> (u32, u32) {
        self.size
    }

    fn format(&self) -> DrmFourcc {
        DrmFourcc::Xrgb8888
    }

    fn pitch(&self) -> u32 {
        self.size.0 * 4
    }

    fn handle(&self) -> Handle {
        self.handle
    }
}
