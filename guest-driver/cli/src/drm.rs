// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The screen: dma-bufs as framebuffers of a DRM card, and dumb buffers of one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bufshare_protocol::types::Image;
use drm::Device as _;
use drm::buffer::{self, DrmFourcc, DrmModifier, PlanarBuffer};
use drm::control::{Device as _, FbCmd2Flags, Mode, connector, crtc, framebuffer};
use rustix::fs::OFlags;

use crate::failure::{Failure, Result};
use crate::fourcc::Fourcc;

/// An open card.
struct Card(File);

impl AsFd for Card {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl drm::Device for Card {}
impl drm::control::Device for Card {}

impl Card {
    fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map(Self)
    }
}

/// The cards of this machine, by number.
fn cards() -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/dev/dri")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix("card")?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// A screen of the size of the pictures, in our hands.
pub(crate) struct Screen {
    card: Rc<Card>,
    connector: connector::Handle,
    crtc: crtc::Handle,
    mode: Mode,
    /// "bochs-drm /dev/dri/card0".
    pub(crate) name: String,
}

/// A picture that the card can show. Dropping it gives the dma-buf back.
pub(crate) struct Picture {
    card: Rc<Card>,
    handle: buffer::Handle,
    framebuffer: Option<framebuffer::Handle>,
}

impl Screen {
    /// Finds a connected screen with a mode of `width` x `height`, on `path` only
    /// or on the first card that has one.
    pub(crate) fn find(path: Option<&Path>, width: u32, height: u32) -> Result<Self> {
        let paths = path.map_or_else(cards, |path| vec![path.to_owned()]);
        let mut seen = Vec::new();
        for path in paths {
            let attempt = Card::open(&path).and_then(|card| Self::on(card, &path, width, height));
            match attempt {
                Ok(screen) => return Ok(screen),
                Err(error) => seen.push((path, error)),
            }
        }
        if seen.is_empty() {
            return Err(Failure::new("there is no DRM card (/dev/dri/card*)"));
        }
        let reasons: Vec<String> = seen
            .iter()
            .map(|(path, error)| format!("{}: {error}", path.display()))
            .collect();
        Err(Failure::new(format!(
            "no screen for it: {}",
            reasons.join("; ")
        )))
    }

    fn on(card: Card, path: &Path, width: u32, height: u32) -> io::Result<Self> {
        let resources = card.resource_handles().map_err(|error| {
            match error.raw_os_error() {
                // A card that only renders.
                Some(libc::EOPNOTSUPP) => io::Error::other("no screens at all"),
                _ => error,
            }
        })?;
        let mut sizes: Vec<(u16, u16)> = Vec::new();
        for connector in resources.connectors() {
            let info = card.get_connector(*connector, true)?;
            if info.state() != connector::State::Connected {
                continue;
            }
            sizes.extend(info.modes().iter().map(Mode::size));
            let Some(mode) = info.modes().iter().find(|mode| {
                let (across, down) = mode.size();
                (u32::from(across), u32::from(down)) == (width, height)
            }) else {
                continue;
            };
            for encoder in info.encoders() {
                let encoder = card.get_encoder(*encoder)?;
                let usable = resources.filter_crtcs(encoder.possible_crtcs());
                if let Some(crtc) = usable.first() {
                    let driver = card.get_driver()?;
                    return Ok(Self {
                        connector: *connector,
                        crtc: *crtc,
                        mode: *mode,
                        name: format!("{} {}", driver.name().to_string_lossy(), path.display()),
                        card: Rc::new(card),
                    });
                }
            }
        }
        if sizes.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no connected screen",
            ));
        }
        sizes.sort_unstable();
        sizes.dedup();
        let sizes: Vec<String> = sizes.iter().map(|(w, h)| format!("{w}x{h}")).collect();
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "the screen has no mode {width}x{height}, only {}",
                sizes.join(" ")
            ),
        ))
    }

    /// Makes a picture of a dma-buf.
    pub(crate) fn import(&self, dmabuf: BorrowedFd<'_>, image: &Image) -> Result<Picture> {
        let handle = self
            .card
            .prime_fd_to_buffer(dmabuf)
            .map_err(|e| Failure::io(format!("{} refuses the dma-buf", self.name), &e))?;
        // From here on dropping it closes the handle.
        let mut picture = Picture {
            card: Rc::clone(&self.card),
            handle,
            framebuffer: None,
        };
        let planes = Planes::new(handle, image).map_err(|e| Failure::from(e).about(&self.name))?;
        let framebuffer = self
            .card
            .add_planar_framebuffer(&planes, FbCmd2Flags::empty())
            .map_err(|e| {
                let format = Fourcc(image.fourcc);
                let what = format!("{} cannot show pixel format {format}", self.name);
                Failure::io(what, &e)
            })?;
        picture.framebuffer = Some(framebuffer);
        Ok(picture)
    }

    /// Puts a picture on the screen; it is there when this returns.
    pub(crate) fn show(&self, picture: &Picture) -> Result<()> {
        self.card
            .set_crtc(
                self.crtc,
                picture.framebuffer,
                (0, 0),
                &[self.connector],
                Some(self.mode),
            )
            .map_err(|error| {
                let why = match error.kind() {
                    io::ErrorKind::PermissionDenied => {
                        "is in the hands of another program (a compositor?)"
                    }
                    _ => "does not show it",
                };
                Failure::io(format!("{} {why}", self.name), &error)
            })
    }
}

impl Drop for Picture {
    fn drop(&mut self) {
        // Both only fail if they are gone already, with the card.
        if let Some(framebuffer) = self.framebuffer {
            let _ = self.card.destroy_framebuffer(framebuffer);
        }
        let _ = self.card.close_buffer(self.handle);
    }
}

/// An image for the `drm` crate.
struct Planes {
    size: (u32, u32),
    format: DrmFourcc,
    handles: [Option<buffer::Handle>; 4],
    pitches: [u32; 4],
    offsets: [u32; 4],
}

impl Planes {
    fn new(handle: buffer::Handle, image: &Image) -> io::Result<Self> {
        let unsupported = |what: &str| io::Error::new(io::ErrorKind::Unsupported, what.to_owned());
        if image.modifier != 0 {
            return Err(unsupported("only linear pictures can be shown"));
        }
        let format = DrmFourcc::try_from(image.fourcc).map_err(|_| {
            unsupported(&format!("pixel format {} is unknown", Fourcc(image.fourcc)))
        })?;
        let mut planes = Self {
            size: (image.width, image.height),
            format,
            handles: [None; 4],
            pitches: [0; 4],
            offsets: [0; 4],
        };
        let places = planes
            .handles
            .iter_mut()
            .zip(&mut planes.pitches)
            .zip(&mut planes.offsets);
        for (plane, ((to_handle, pitch), offset)) in image.planes.iter().zip(places) {
            *to_handle = Some(handle);
            *pitch = plane.stride;
            *offset = u32::try_from(plane.offset)
                .map_err(|_| unsupported("a plane begins beyond 4 GiB"))?;
        }
        Ok(planes)
    }
}

impl PlanarBuffer for Planes {
    fn size(&self) -> (u32, u32) {
        self.size
    }

    fn format(&self) -> DrmFourcc {
        self.format
    }

    fn modifier(&self) -> Option<DrmModifier> {
        None
    }

    fn pitches(&self) -> [u32; 4] {
        self.pitches
    }

    fn handles(&self) -> [Option<buffer::Handle>; 4] {
        self.handles
    }

    fn offsets(&self) -> [u32; 4] {
        self.offsets
    }
}

/// Makes a dma-buf of at least `size` bytes on the first card of `driver`.
pub(crate) fn dumb_dmabuf(driver: &str, size: u64) -> io::Result<OwnedFd> {
    const PAGE: u64 = 4096;
    for path in cards() {
        let Ok(card) = Card::open(&path) else {
            continue;
        };
        if card.get_driver().is_ok_and(|found| found.name() == driver) {
            // 1024 pixels of 32 bits are one page.
            let rows = u32::try_from(size.div_ceil(PAGE))
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "too large"))?;
            let dumb = card.create_dumb_buffer((1024, rows), DrmFourcc::Xrgb8888, 32)?;
            let fd = card.buffer_to_prime_fd(
                buffer_handle(&dumb),
                (OFlags::CLOEXEC | OFlags::RDWR).bits(),
            );
            card.destroy_dumb_buffer(dumb)?;
            return fd;
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("no card of driver {driver}; load it: modprobe {driver}"),
    ))
}

fn buffer_handle(buffer: &impl drm::buffer::Buffer) -> buffer::Handle {
    buffer.handle()
}
