// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One screen for pictures of one kind, chosen by what works

use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::Path;

use drm::control::Mode;

use super::Memory;
use super::canvas::Canvas;
use super::card::{Head, Imported, Size, fit, misfit, size_of};
use crate::error::{Error, Result};
use crate::fourcc::Fourcc;
use crate::image::{Image, LINEAR};

/// A picture that is on the screen, with what keeps it there
#[derive(Debug)]
pub enum Shown {
    /// The card reads the dma-buf.
    Direct(Imported),
    /// The card reads its own memory.
    Copy,
}

/// What a screen is chosen by
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    size: Size,
    fourcc: Fourcc,
    modifier: u64,
}

impl Kind {
    fn of(image: &Image) -> Self {
        Self {
            size: (image.width, image.height),
            fourcc: image.fourcc,
            modifier: image.modifier,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((width, height), fourcc) = (self.size, self.fourcc);
        write!(f, "{width}x{height} {fourcc}")?;
        match self.modifier {
            LINEAR => Ok(()),
            modifier => write!(f, " of modifier {modifier:#x}"),
        }
    }
}

/// A screen that we control: its card reads the pictures' dma-bufs or, where no card of this
/// machine does that, a copy
#[derive(Debug)]
pub struct Screen {
    head: Head,
    mode: Mode,
    /// The pictures that it was chosen for.
    kind: Kind,
    canvas: Option<Canvas>,
    /// Why a copy is shown.
    why: Option<String>,
}

impl Screen {
    /// Shows a picture on the card `path`, or on the one that does it best. What
    /// works for this picture is taken for all that follow.
    pub fn open(
        path: Option<&Path>,
        dmabufs: &[BorrowedFd<'_>],
        image: &Image,
        memory: &dyn Memory,
    ) -> Result<(Self, Shown)> {
        check(image)?;
        let (mut heads, mut reasons) = Head::all(path);
        if heads.is_empty() && reasons.is_empty() {
            return Err(Error::new("there is no DRM card (/dev/dri/card*)"));
        }
        for index in 0..heads.len() {
            let Some(head) = heads.get(index) else {
                break;
            };
            match head.show_in_its_size(dmabufs, image) {
                Ok((mode, imported)) => {
                    let screen = Self {
                        head: heads.swap_remove(index),
                        mode,
                        kind: Kind::of(image),
                        canvas: None,
                        why: None,
                    };
                    return Ok((screen, Shown::Direct(imported)));
                }
                Err(error) => reasons.push(error.to_string()),
            }
        }
        Self::by_copy(heads, image, memory, reasons)
    }

    /// Of the screens and their modes the one that shows most of the picture.
    fn by_copy(
        mut heads: Vec<Head>,
        image: &Image,
        memory: &dyn Memory,
        mut reasons: Vec<String>,
    ) -> Result<(Self, Shown)> {
        let picture = (image.width, image.height);
        let why = reasons.join("; ");
        let mut places: Vec<(usize, Mode)> = Vec::new();
        for (index, head) in heads.iter().enumerate() {
            // A mode made for it may be refused: then there are those of the screen.
            let made = head.mode_of(picture);
            let named = head
                .nearest_mode(picture)
                .filter(|mode| made.is_none_or(|made| size_of(&made) != size_of(mode)));
            places.extend(
                [made, named]
                    .into_iter()
                    .flatten()
                    .map(|mode| (index, mode)),
            );
        }
        places.sort_by_key(|(_, mode)| misfit(size_of(mode), picture));
        for (index, mode) in places {
            let Some(head) = heads.get(index) else {
                continue;
            };
            match copy(head, mode, image, memory) {
                Ok(canvas) => {
                    let screen = Self {
                        head: heads.swap_remove(index),
                        mode,
                        kind: Kind::of(image),
                        canvas: Some(canvas),
                        why: Some(why),
                    };
                    return Ok((screen, Shown::Copy));
                }
                Err(error) => reasons.push(error.to_string()),
            }
        }
        Err(Error::new(format!(
            "no screen for it: {}",
            reasons.join("; ")
        )))
    }

    /// Whether what works for the pictures before may be taken to work for this one, too: it has
    /// their size, pixel format and modifier. For another one a screen is opened anew, when this
    /// one and what it [shows](Shown) are dropped.
    #[must_use]
    pub fn fits(&self, image: &Image) -> bool {
        self.kind == Kind::of(image)
    }

    /// Shows the next picture, which [fits](Self::fits).
    pub fn show(
        &mut self,
        dmabufs: &[BorrowedFd<'_>],
        image: &Image,
        memory: &dyn Memory,
    ) -> Result<Shown> {
        check(image)?;
        if !self.fits(image) {
            let (kind, before) = (Kind::of(image), self.kind);
            return Err(Error::new(format!(
                "it is {kind}, the frames before were {before}"
            )));
        }
        match &mut self.canvas {
            None => {
                let imported = self.head.import(dmabufs, image)?;
                self.head.show(self.mode, imported.framebuffer())?;
                Ok(Shown::Direct(imported))
            }
            Some(canvas) => {
                canvas.paint(memory, image)?;
                self.head.show(self.mode, Some(canvas.framebuffer))?;
                Ok(Shown::Copy)
            }
        }
    }

    /// "bochs-drm /dev/dri/card0".
    #[must_use]
    pub fn name(&self) -> &str {
        &self.head.name
    }

    /// "bochs-drm".
    #[must_use]
    pub fn driver(&self) -> &str {
        &self.head.driver
    }

    /// Its pixels across and down.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        size_of(&self.mode)
    }

    /// Of these, those that a picture takes.
    #[must_use]
    pub fn shown_size(&self) -> (u32, u32) {
        fit(self.kind.size, self.size())
    }

    /// Why its card reads a copy; `None`: it reads the dma-bufs.
    #[must_use]
    pub fn copies_because(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// Bytes copied to it so far.
    #[must_use]
    pub fn copied(&self) -> u64 {
        self.canvas.as_ref().map_or(0, |canvas| canvas.copied)
    }
}

/// Whether a card can show it at all, itself or a copy.
fn check(image: &Image) -> Result<()> {
    image
        .unshowable()
        .map_or(Ok(()), |why| Err(Error::new(why)))
}

/// Has the card read a copy.
fn copy(head: &Head, mode: Mode, image: &Image, memory: &dyn Memory) -> Result<Canvas> {
    let mut canvas = Canvas::new(head, size_of(&mode), image.fourcc)?;
    canvas.paint(memory, image)?;
    head.show(mode, Some(canvas.framebuffer))?;
    Ok(canvas)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_of_a_kind_have_their_size_their_pixel_format_and_their_modifier() {
        let image = |width, height, fourcc, modifier| Image {
            fourcc: Fourcc::new(fourcc),
            width,
            height,
            modifier,
            planes: Vec::new(),
        };
        let first = Kind::of(&image(640, 480, b"XR24", LINEAR));
        assert_eq!(first, Kind::of(&image(640, 480, b"XR24", LINEAR)));
        assert_eq!(first.to_string(), "640x480 XR24");
        for (other, name) in [
            (image(480, 640, b"XR24", LINEAR), "480x640 XR24"),
            (image(640, 480, b"RG16", LINEAR), "640x480 RG16"),
            (image(640, 480, b"XR24", 7), "640x480 XR24 of modifier 0x7"),
        ] {
            assert_ne!(first, Kind::of(&other));
            assert_eq!(Kind::of(&other).to_string(), name);
        }
    }
}
