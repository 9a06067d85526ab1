// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Screen shots

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// Three bytes a pixel: red, green, blue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Row after row.
    pub pixels: Vec<u8>,
}

impl Picture {
    /// Read a binary PPM file, as QEMU writes it.
    ///
    /// # Errors
    /// When it is not one.
    pub fn read_ppm(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse_ppm(&bytes).with_context(|| format!("{}: not a picture", path.display()))
    }

    fn parse_ppm(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut word = || {
            let end = rest.iter().position(u8::is_ascii_whitespace)?;
            let (head, tail) = rest.split_at_checked(end)?;
            rest = tail.get(1..)?;
            std::str::from_utf8(head).ok()
        };
        let kind = word()?;
        let width = word()?.parse().ok()?;
        let height = word()?.parse().ok()?;
        let depth = word()?;
        // QEMU 11.1 ends each row at a multiple of four bytes.
        let row = usize::try_from(width).ok()?.checked_mul(3)?;
        let padded = row.next_multiple_of(4);
        let rows = usize::try_from(height).ok()?;
        let pixels = if rest.len() == padded.checked_mul(rows)? {
            let rows = rest.chunks_exact(padded.max(1));
            rows.flat_map(|line| line.iter().take(row))
                .copied()
                .collect()
        } else {
            rest.to_vec()
        };
        let picture = Self {
            width,
            height,
            pixels,
        };
        (kind == "P6" && depth == "255" && picture.pixels.len() == picture.bytes()?)
            .then_some(picture)
    }

    /// From the memory of a frame of 32-bit pixels, blue in the lowest byte (XRGB8888).
    ///
    /// # Errors
    /// When the memory is too small.
    pub fn from_xrgb(memory: &[u8], width: u32, height: u32, stride: u32) -> Result<Self> {
        let (row, stride) = (usize::try_from(width)? * 4, usize::try_from(stride)?);
        let mut pixels = Vec::new();
        for number in 0..usize::try_from(height)? {
            let start = number.checked_mul(stride).context("frame too large")?;
            let line = memory
                .get(start..start + row)
                .context("frame memory too small")?;
            for pixel in line.chunks_exact(4) {
                if let [blue, green, red, _] = *pixel {
                    pixels.extend([red, green, blue]);
                }
            }
        }
        Ok(Self {
            width,
            height,
            pixels,
        })
    }

    /// How a screen of this size shows it: in the middle on black, and made smaller,
    /// by leaving pixels out, if there is no room for it.
    #[must_use]
    pub fn on_screen(&self, width: u32, height: u32) -> Self {
        let (mut across, mut down) = (self.width, self.height);
        if across > width || down > height {
            let wide = u64::from(width) * u64::from(self.height);
            let high = u64::from(height) * u64::from(self.width);
            let part = |whole: u64, of: u32| u32::try_from(whole / u64::from(of)).unwrap_or(0);
            (across, down) = if wide <= high {
                (width, part(wide, self.width).max(1))
            } else {
                (part(high, self.height).max(1), height)
            };
        }
        let (left, top) = ((width - across) / 2, (height - down) / 2);
        let source = |at: u32, start: u32, shown: u32, whole: u32| {
            let at = at.checked_sub(start).filter(|at| *at < shown)?;
            Some(u64::from(at) * u64::from(whole) / u64::from(shown))
        };
        let mut pixels = Vec::with_capacity(usize::try_from(width * height * 3).unwrap_or(0));
        for row in 0..height {
            let row = source(row, top, down, self.height);
            for column in 0..width {
                let column = source(column, left, across, self.width);
                let pixel = row.zip(column).and_then(|(row, column)| {
                    let at = (row * u64::from(self.width) + column) * 3;
                    self.pixels.get(usize::try_from(at).ok()?..)?.get(..3)
                });
                pixels.extend_from_slice(pixel.unwrap_or(&[0; 3]));
            }
        }
        Self {
            width,
            height,
            pixels,
        }
    }

    fn bytes(&self) -> Option<usize> {
        usize::try_from(
            u64::from(self.width)
                .checked_mul(u64::from(self.height))?
                .checked_mul(3)?,
        )
        .ok()
    }

    /// Fail unless both show the same.
    ///
    /// # Errors
    /// Where they first differ and how many pixels do.
    pub fn same_as(&self, other: &Self) -> Result<()> {
        if (self.width, self.height) != (other.width, other.height) {
            bail!(
                "{}x{} pixels are not {}x{}",
                self.width,
                self.height,
                other.width,
                other.height
            );
        }
        let pairs = self
            .pixels
            .chunks_exact(3)
            .zip(other.pixels.chunks_exact(3));
        let wrong: Vec<usize> = pairs
            .enumerate()
            .filter(|(_, (one, two))| one != two)
            .map(|(index, _)| index)
            .collect();
        if let Some(first) = wrong.first() {
            let width = usize::try_from(self.width)?;
            bail!(
                "{} pixels differ, first at row {} column {}",
                wrong.len(),
                first / width,
                first % width
            );
        }
        Ok(())
    }

    /// How many different colours it shows, up to `most`.
    #[must_use]
    pub fn colours(&self, most: usize) -> usize {
        let mut seen = std::collections::HashSet::new();
        for pixel in self.pixels.chunks_exact(3) {
            seen.insert(pixel);
            if seen.len() >= most {
                break;
            }
        }
        seen.len()
    }

    /// Write it as PNG.
    ///
    /// # Errors
    /// From the file system.
    pub fn write_png(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
        let mut encoder = png::Encoder::new(BufWriter::new(file), self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.pixels)?;
        writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ppm_is_read_and_a_cut_one_is_not() {
        let picture = Picture::parse_ppm(b"P6\n2 1\n255\nabcdef").unwrap();
        assert_eq!((picture.width, picture.height), (2, 1));
        assert_eq!(picture.pixels, b"abcdef");
        assert!(Picture::parse_ppm(b"P6\n2 1\n255\nabcde").is_none());
        assert!(Picture::parse_ppm(b"P6\n2").is_none());
    }

    #[test]
    fn rows_of_a_ppm_may_be_padded() {
        let plain = Picture::parse_ppm(b"P6\n1 2\n255\nabcdef").unwrap();
        assert_eq!(plain.pixels, b"abcdef");
        let padded = Picture::parse_ppm(b"P6\n1 2\n255\nabc.def.").unwrap();
        assert_eq!(padded, plain);
    }

    #[test]
    fn frame_memory_becomes_pixels_without_its_row_padding() {
        let memory = [1, 2, 3, 0, 9, 9, 9, 9, 4, 5, 6, 0, 9, 9, 9, 9];
        let picture = Picture::from_xrgb(&memory, 1, 2, 8).unwrap();
        assert_eq!(picture.pixels, [3, 2, 1, 6, 5, 4]);
        assert!(Picture::from_xrgb(&memory, 1, 3, 8).is_err());
    }

    #[test]
    fn a_screen_shows_it_in_the_middle_or_smaller() {
        let one = Picture {
            width: 2,
            height: 2,
            pixels: b"aaabbbcccddd".to_vec(),
        };
        assert_eq!(one.on_screen(2, 2), one);
        let wide = one.on_screen(4, 2);
        assert_eq!(&wide.pixels, b"\0\0\0aaabbb\0\0\0\0\0\0cccddd\0\0\0");
        let small = one.on_screen(3, 1);
        assert_eq!(&small.pixels, b"\0\0\0aaa\0\0\0");
    }

    #[test]
    fn one_wrong_pixel_is_found() {
        let one = Picture {
            width: 2,
            height: 1,
            pixels: b"abcdef".to_vec(),
        };
        let mut two = one.clone();
        two.pixels[5] = 0;
        assert!(one.same_as(&one.clone()).is_ok());
        assert!(
            one.same_as(&two)
                .unwrap_err()
                .to_string()
                .contains("row 0 column 1")
        );
    }
}
