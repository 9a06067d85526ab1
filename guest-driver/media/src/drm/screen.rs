// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One screen for pictures of one size, chosen by what works

use std::os::fd::BorrowedFd;
use std::path::Path;

use drm::control::Mode;

use super::Memory;
use super::canvas::Canvas;
use super::card::{Head, Imported, Size, fit, misfit, size_of};
use crate::error::{Error, Result};
use crate::image::Image;

/// A picture that is on the screen, with what keeps it there
#[derive(Debug)]
pub enum Shown {
    /// The card reads the dma-buf.
    Direct(Imported),
    /// The card reads its own memory.
    Copy,
}

/// A screen that we control: its card reads the pictures' dma-bufs or, where no card of this
/// machine does that, a copy
#[derive(Debug)]
pub struct Screen {
    head: Head,
    mode: Mode,
    /// The size of the pictures that it was chosen for.
    picture: Size,
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
                        picture: (image.width, image.height),
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
                        picture,
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

    /// Shows the next picture.
    pub fn show(
        &mut self,
        dmabufs: &[BorrowedFd<'_>],
        image: &Image,
        memory: &dyn Memory,
    ) -> Result<Shown> {
        check(image)?;
        let picture = (image.width, image.height);
        if picture != self.picture {
            return Err(Error::new(format!(
                "it is {}x{}, the frames before were {}x{}",
                picture.0, picture.1, self.picture.0, self.picture.1
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
        fit(self.picture, self.size())
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
