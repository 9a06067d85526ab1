// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cards: their screens and modes, dma-bufs as framebuffers, dumb buffers

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use drm::Device as _;
use drm::buffer::{self, Buffer as _, DrmFourcc, DrmModifier, PlanarBuffer};
use drm::control::{Device as _, FbCmd2Flags, Mode, connector, crtc, framebuffer};
use drm_ffi::drm_mode_modeinfo;
use rustix::fs::OFlags;

use crate::error::{Error, Result};
use crate::image::Image;

/// An open card.
#[derive(Debug)]
pub(super) struct Card(File);

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

/// A connected screen of a card
#[derive(Debug)]
pub struct Head {
    pub(super) card: Rc<Card>,
    connector: connector::Handle,
    /// No monitor is behind it, which might not bear any mode but its own.
    is_virtual: bool,
    crtc: crtc::Handle,
    modes: Vec<Mode>,
    /// "bochs-drm".
    pub driver: String,
    /// "bochs-drm /dev/dri/card0".
    pub name: String,
}

/// A picture in dma-bufs that a card can show. Dropping it gives them back.
#[derive(Debug)]
pub struct Imported {
    card: Rc<Card>,
    handles: Vec<buffer::Handle>,
    framebuffer: Option<framebuffer::Handle>,
}

impl Imported {
    /// What the card knows it by.
    pub(super) fn framebuffer(&self) -> Option<framebuffer::Handle> {
        self.framebuffer
    }
}

impl Head {
    /// The connected screens of the card `path`, or of all cards, and why the other
    /// cards have none.
    pub fn all(path: Option<&Path>) -> (Vec<Self>, Vec<String>) {
        let (mut heads, mut without) = (Vec::new(), Vec::new());
        for path in path.map_or_else(cards, |path| vec![path.to_owned()]) {
            let found = Card::open(&path).and_then(|card| Self::of(&Rc::new(card), &path));
            match found {
                Ok(found) if found.is_empty() => {
                    without.push(format!("{}: no connected screen", path.display()));
                }
                Ok(found) => heads.extend(found),
                Err(error) => without.push(format!("{}: {error}", path.display())),
            }
        }
        (heads, without)
    }

    fn of(card: &Rc<Card>, path: &Path) -> io::Result<Vec<Self>> {
        let resources = card.resource_handles().map_err(|error| {
            match error.raw_os_error() {
                // A card that only renders.
                Some(libc::EOPNOTSUPP) => io::Error::other("no screens at all"),
                _ => error,
            }
        })?;
        let driver = card.get_driver()?.name().to_string_lossy().into_owned();
        let mut heads = Vec::new();
        for connector in resources.connectors() {
            let info = card.get_connector(*connector, true)?;
            if info.state() != connector::State::Connected || info.modes().is_empty() {
                continue;
            }
            for encoder in info.encoders() {
                let encoder = card.get_encoder(*encoder)?;
                let usable = resources.filter_crtcs(encoder.possible_crtcs());
                if let Some(crtc) = usable.first() {
                    heads.push(Self {
                        card: Rc::clone(card),
                        connector: *connector,
                        is_virtual: info.interface() == connector::Interface::Virtual,
                        crtc: *crtc,
                        modes: info.modes().to_vec(),
                        name: format!("{driver} {}", path.display()),
                        driver: driver.clone(),
                    });
                    break;
                }
            }
        }
        Ok(heads)
    }

    /// A mode of just this size: one that the screen names, or one made for a screen
    /// without a monitor, which its card may still refuse.
    pub(super) fn mode_of(&self, size: Size) -> Option<Mode> {
        self.modes
            .iter()
            .find(|mode| size_of(mode) == size)
            .copied()
            .or_else(|| self.is_virtual.then(|| make_mode(size))?)
    }

    /// The mode that a picture of this size fits best: the smallest that holds it,
    /// else the largest.
    pub(super) fn nearest_mode(&self, size: Size) -> Option<Mode> {
        self.modes
            .iter()
            .min_by_key(|mode| misfit(size_of(mode), size))
            .copied()
    }

    /// The sizes of the modes that the screen names.
    pub(super) fn sizes(&self) -> String {
        let mut sizes: Vec<Size> = self.modes.iter().map(size_of).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let names: Vec<String> = sizes.iter().map(|(w, h)| format!("{w}x{h}")).collect();
        names.join(" ")
    }

    /// Makes a framebuffer of the picture in these dma-bufs.
    pub(super) fn import(&self, dmabufs: &[BorrowedFd<'_>], image: &Image) -> Result<Imported> {
        // From here on dropping it closes the handles.
        let mut imported = Imported {
            card: Rc::clone(&self.card),
            handles: Vec::new(),
            framebuffer: None,
        };
        for dmabuf in dmabufs {
            let handle = self
                .card
                .prime_fd_to_buffer(*dmabuf)
                .map_err(|e| Error::io(format!("{} refuses the dma-buf", self.name), e))?;
            imported.handles.push(handle);
        }
        imported.framebuffer = Some(self.framebuffer(&imported.handles, image)?);
        Ok(imported)
    }

    /// Has the card read the picture's dma-bufs, in a mode of just its size; it is shown for as
    /// long as the result exists, or until something else is.
    pub fn show_dmabufs(&self, dmabufs: &[BorrowedFd<'_>], image: &Image) -> Result<Imported> {
        let (_, imported) = self.show_in_its_size(dmabufs, image)?;
        Ok(imported)
    }

    /// The same, and which mode that is.
    pub(super) fn show_in_its_size(
        &self,
        dmabufs: &[BorrowedFd<'_>],
        image: &Image,
    ) -> Result<(Mode, Imported)> {
        let mode = self.mode_of((image.width, image.height)).ok_or_else(|| {
            Error::new(format!(
                "{} has no mode {}x{}, only {}",
                self.name,
                image.width,
                image.height,
                self.sizes()
            ))
        })?;
        let imported = self.import(dmabufs, image)?;
        self.show(mode, imported.framebuffer())?;
        Ok((mode, imported))
    }

    /// Has the card look at these buffers as this image.
    pub(super) fn framebuffer(
        &self,
        handles: &[buffer::Handle],
        image: &Image,
    ) -> Result<framebuffer::Handle> {
        let planes = Planes::new(handles, image).map_err(|e| Error::io(&self.name, e))?;
        self.card
            .add_planar_framebuffer(&planes, FbCmd2Flags::empty())
            .map_err(|e| {
                let format = image.fourcc;
                let size = format!("{}x{}", image.width, image.height);
                let what = format!("{} cannot show {size} in pixel format {format}", self.name);
                Error::io(what, e)
            })
    }

    /// Puts a framebuffer on the screen; it is there when this returns.
    pub(super) fn show(&self, mode: Mode, picture: Option<framebuffer::Handle>) -> Result<()> {
        self.card
            .set_crtc(self.crtc, picture, (0, 0), &[self.connector], Some(mode))
            .map_err(|error| {
                let (width, height) = size_of(&mode);
                let why = match error.kind() {
                    io::ErrorKind::PermissionDenied => {
                        "is in use by another program (a compositor?)".to_owned()
                    }
                    _ => format!("does not show it in a mode of {width}x{height}"),
                };
                Error::io(format!("{} {why}", self.name), error)
            })
    }
}

/// Pixels across and down.
pub(super) type Size = (u32, u32);

/// That of a mode.
pub(super) fn size_of(mode: &Mode) -> Size {
    let (width, height) = mode.size();
    (width.into(), height.into())
}

/// How badly a picture of a size is shown by a mode: first those that hold it, by
/// what is left over, then the others, by what they show of it.
pub(super) fn misfit(mode: Size, picture: Size) -> (bool, u64) {
    let area = |(width, height): Size| u64::from(width).saturating_mul(height.into());
    let holds = mode.0 >= picture.0 && mode.1 >= picture.1;
    if holds {
        (false, area(mode))
    } else {
        let (width, height) = fit(picture, mode);
        (true, u64::MAX.saturating_sub(area((width, height))))
    }
}

/// The largest size within `screen` of the same shape as `picture`; its own if
/// there is room.
pub(super) fn fit(picture: Size, screen: Size) -> Size {
    if picture.0 <= screen.0 && picture.1 <= screen.1 {
        return picture;
    }
    let [(width, height), (across, down)] =
        [picture, screen].map(|(width, height)| (u64::from(width), u64::from(height)));
    let scaled = |length: u64, room: u64, other: u64| {
        let length = length.saturating_mul(room).checked_div(other).unwrap_or(0);
        u32::try_from(length.max(1)).unwrap_or(u32::MAX)
    };
    // Which side reaches its end first?
    if across.saturating_mul(height) <= down.saturating_mul(width) {
        (screen.0, scaled(height, across, width))
    } else {
        (scaled(width, down, height), screen.1)
    }
}

/// A mode of 60 pictures a second. None: too large for one.
fn make_mode((width, height): Size) -> Option<Mode> {
    const BLANK: [u16; 3] = [16, 48, 80];
    let (across, down) = (u16::try_from(width).ok()?, u16::try_from(height).ok()?);
    let ends = |start: u16| {
        let mut at = start;
        let mut ends = [0; 3];
        for (end, blank) in ends.iter_mut().zip(BLANK) {
            at = at.checked_add(blank)?;
            *end = at;
        }
        Some(ends)
    };
    let ([hsync_start, hsync_end, htotal], [vsync_start, vsync_end, vtotal]) =
        (ends(across)?, ends(down)?);
    let pixels = u32::from(htotal).checked_mul(vtotal.into())?;
    Some(Mode::from(drm_mode_modeinfo {
        // In kHz.
        clock: pixels.checked_div(1000)?.checked_mul(60)?,
        hdisplay: across,
        hsync_start,
        hsync_end,
        htotal,
        vdisplay: down,
        vsync_start,
        vsync_end,
        vtotal,
        vrefresh: 60,
        ..Default::default()
    }))
}

impl Drop for Imported {
    fn drop(&mut self) {
        // They only fail if they are gone already, with the card.
        if let Some(framebuffer) = self.framebuffer {
            let _ = self.card.destroy_framebuffer(framebuffer);
        }
        for handle in &self.handles {
            let _ = self.card.close_buffer(*handle);
        }
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
    fn new(handles: &[buffer::Handle], image: &Image) -> io::Result<Self> {
        let unsupported = |what: &str| io::Error::new(io::ErrorKind::Unsupported, what.to_owned());
        let format = DrmFourcc::try_from(image.fourcc.0)
            .map_err(|_| unsupported(&format!("pixel format {} is unknown", image.fourcc)))?;
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
            let memory = usize::try_from(plane.buffer).unwrap_or(usize::MAX);
            let handle = handles.get(memory);
            *to_handle = Some(*handle.ok_or_else(|| unsupported("a plane is in no memory"))?);
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
pub fn dumb_dmabuf(driver: &str, size: u64) -> io::Result<OwnedFd> {
    const PAGE: u64 = 4096;
    let card = card_of(driver, cards())?;
    // 1024 pixels of 32 bits are one page.
    let rows = u32::try_from(size.div_ceil(PAGE))
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "too large"))?;
    let dumb = card.create_dumb_buffer((1024, rows), DrmFourcc::Xrgb8888, 32)?;
    let fd = card.buffer_to_prime_fd(dumb.handle(), (OFlags::CLOEXEC | OFlags::RDWR).bits());
    card.destroy_dumb_buffer(dumb)?;
    fd
}

/// The first card of `driver` at `paths`.
fn card_of(driver: &str, paths: Vec<PathBuf>) -> io::Result<Card> {
    let mut refusals = Vec::new();
    for path in paths {
        let named = Card::open(&path).and_then(|card| {
            let name = card.get_driver()?.name().to_owned();
            Ok((card, name))
        });
        match named {
            Ok((card, name)) if name == driver => return Ok(card),
            Ok(_) => {}
            Err(error) => refusals.push((path, error)),
        }
    }
    let Some((_, first)) = refusals.first() else {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("no card of driver {driver}; load it: modprobe {driver}"),
        ));
    };
    let kind = first.kind();
    let refusals: Vec<String> = refusals
        .iter()
        .map(|(path, error)| format!("{}: {error}", path.display()))
        .collect();
    Err(io::Error::new(
        kind,
        format!(
            "no card of driver {driver} can be opened: {}",
            refusals.join("; ")
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_mode_that_holds_a_picture_is_best_then_the_one_that_shows_most() {
        let modes = [(640, 480), (800, 600), (1920, 1080), (1080, 1920)];
        let best = |picture| {
            modes
                .into_iter()
                .min_by_key(|mode| misfit(*mode, picture))
                .unwrap()
        };
        assert_eq!(best((640, 480)), (640, 480));
        assert_eq!(best((160, 120)), (640, 480));
        assert_eq!(best((641, 480)), (800, 600));
        assert_eq!(best((3840, 2160)), (1920, 1080));
        assert_eq!(best((2160, 3840)), (1080, 1920));
    }

    #[test]
    fn a_picture_keeps_its_shape_and_is_not_enlarged() {
        for (picture, screen, shown) in [
            ((160, 120), (640, 480), (160, 120)),
            ((1280, 720), (640, 480), (640, 360)),
            ((720, 1280), (640, 480), (270, 480)),
            ((1280, 480), (640, 480), (640, 240)),
            ((16384, 1), (640, 480), (640, 1)),
        ] {
            assert_eq!(fit(picture, screen), shown, "{picture:?} on {screen:?}");
        }
    }

    #[test]
    fn a_card_that_cannot_be_opened_is_no_missing_driver() {
        let error = card_of("vgem", Vec::new()).err().unwrap().to_string();
        assert!(error.ends_with("modprobe vgem"), "{error}");
        let paths = vec![PathBuf::from("/nonexistent/card0"), "/dev/null".into()];
        let error = card_of("vgem", paths).err().unwrap().to_string();
        for part in ["/nonexistent/card0: No such file", "/dev/null: "] {
            assert!(error.contains(part), "{error}");
        }
        assert!(!error.contains("modprobe"), "{error}");
    }

    #[test]
    fn a_made_mode_is_consistent() {
        let mode = make_mode((1366, 768)).unwrap();
        assert_eq!(size_of(&mode), (1366, 768));
        let (start, end, total) = mode.hsync();
        assert!(1366 < start && start < end && end < total);
        let (start, end, total) = mode.vsync();
        assert!(768 < start && start < end && end < total);
        assert!(make_mode((65535, 1)).is_none());
    }
}
