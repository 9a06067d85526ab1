// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One screen for pictures of one size, chosen by what works: the card shows the
//! picture's dma-buf itself or, where no card of this machine does that, a copy.

use std::os::fd::BorrowedFd;
use std::path::Path;

use bufshare::{Image, Mapping};
use drm::control::Mode;

use crate::canvas::Canvas;
use crate::drm::{Head, Imported, Size, fit, misfit, size_of};
use crate::failure::{Failure, Result};
use crate::fourcc;
use crate::output::ScreenRecord;

/// A picture that is on the screen, with what keeps it there.
pub(crate) enum Shown {
    /// The card reads the dma-buf.
    Direct(#[expect(dead_code, reason = "held for its drop")] Imported),
    /// The card reads its own memory.
    Copy,
}

/// A screen that we control.
pub(crate) struct Screen {
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
    pub(crate) fn open(
        path: Option<&Path>,
        dmabuf: BorrowedFd<'_>,
        image: &Image,
        mapping: &Mapping,
    ) -> Result<(Self, Shown)> {
        check(image)?;
        let (mut heads, mut reasons) = Head::all(path);
        if heads.is_empty() && reasons.is_empty() {
            return Err(Failure::new(
                "there is no DRM card (/dev/dri/card*); --no-display does without",
            ));
        }
        for index in 0..heads.len() {
            let Some(head) = heads.get(index) else {
                break;
            };
            match direct(head, dmabuf, image) {
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
                Err(failure) => reasons.push(failure.to_string()),
            }
        }
        Self::by_copy(heads, image, mapping, reasons)
    }

    /// Of the screens and their modes the one that shows most of the picture.
    fn by_copy(
        mut heads: Vec<Head>,
        image: &Image,
        mapping: &Mapping,
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
            match copy(head, mode, image, mapping) {
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
                Err(failure) => reasons.push(failure.to_string()),
            }
        }
        Err(Failure::new(format!(
            "no screen for it: {}",
            reasons.join("; ")
        )))
    }

    /// Shows the next picture.
    pub(crate) fn show(
        &mut self,
        dmabuf: BorrowedFd<'_>,
        image: &Image,
        mapping: &Mapping,
    ) -> Result<Shown> {
        check(image)?;
        let picture = (image.width, image.height);
        if picture != self.picture {
            return Err(Failure::new(format!(
                "it is {}x{}, the frames before were {}x{}",
                picture.0, picture.1, self.picture.0, self.picture.1
            )));
        }
        match &mut self.canvas {
            None => {
                let imported = self.head.import(dmabuf, image)?;
                self.head.show(self.mode, imported.framebuffer())?;
                Ok(Shown::Direct(imported))
            }
            Some(canvas) => {
                canvas.paint(mapping, image)?;
                self.head.show(self.mode, Some(canvas.framebuffer))?;
                Ok(Shown::Copy)
            }
        }
    }

    /// "bochs-drm /dev/dri/card0".
    pub(crate) fn name(&self) -> &str {
        &self.head.name
    }

    /// Bytes copied to the screen so far.
    pub(crate) fn copied(&self) -> u64 {
        self.canvas.as_ref().map_or(0, |canvas| canvas.copied)
    }

    /// What is to be said of it.
    pub(crate) fn record(&self) -> ScreenRecord {
        let (width, height) = size_of(&self.mode);
        let (shown_width, shown_height) = fit(self.picture, (width, height));
        ScreenRecord {
            screen: self.head.name.clone(),
            driver: self.head.driver.clone(),
            width,
            height,
            shows: if self.canvas.is_none() {
                "dmabuf"
            } else {
                "copy"
            },
            shown_width,
            shown_height,
            why: self.why.clone(),
        }
    }
}

/// Whether a card can show it at all, itself or a copy.
fn check(image: &Image) -> Result<()> {
    fourcc::unshowable(image).map_or(Ok(()), |why| Err(Failure::new(why)))
}

/// Has the card read the dma-buf.
fn direct(head: &Head, dmabuf: BorrowedFd<'_>, image: &Image) -> Result<(Mode, Imported)> {
    let mode = head.mode_of((image.width, image.height)).ok_or_else(|| {
        Failure::new(format!(
            "{} has no mode {}x{}, only {}",
            head.name,
            image.width,
            image.height,
            head.sizes()
        ))
    })?;
    let imported = head.import(dmabuf, image)?;
    head.show(mode, imported.framebuffer())?;
    Ok((mode, imported))
}

/// Has the card read a copy.
fn copy(head: &Head, mode: Mode, image: &Image, mapping: &Mapping) -> Result<Canvas> {
    let mut canvas = Canvas::new(head, size_of(&mode), image.fourcc)?;
    canvas.paint(mapping, image)?;
    head.show(mode, Some(canvas.framebuffer))?;
    Ok(canvas)
}
