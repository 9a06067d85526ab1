// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver of this guest that imports dma-bufs step by step
//!
//! See `tests/guest/importer`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use anyhow::{Context as _, Result};
use bufshare_agent::ops::{AttachKind, Step, Yield};

use super::ioctl::{self, Argument};

const DEVICE: &str = "/dev/bufshare_importer";

/// `struct importer_attach`.
#[repr(C)]
struct Attach {
    fd: i32,
    kind: u32,
}

// SAFETY: plain data without padding.
unsafe impl Argument for Attach {}

/// `struct importer_transfer`.
#[repr(C)]
struct Transfer {
    offset: u64,
    data: u64,
    len: u32,
    write: u32,
}

// SAFETY: plain data without padding.
unsafe impl Argument for Transfer {}

/// `struct importer_state`.
#[repr(C)]
struct State {
    mapped: u32,
    invalidated: u32,
}

// SAFETY: plain data without padding.
unsafe impl Argument for State {}

const LETTER: u8 = 0xb6;
const ATTACH: u32 = ioctl::write::<Attach>(LETTER, 0);
const MAP: u32 = ioctl::none(LETTER, 1);
const UNMAP: u32 = ioctl::none(LETTER, 2);
const DMA: u32 = ioctl::write::<Transfer>(LETTER, 3);
const VMAP: u32 = ioctl::none(LETTER, 4);
const VUNMAP: u32 = ioctl::none(LETTER, 5);
const COPY: u32 = ioctl::write::<Transfer>(LETTER, 6);
const BEGIN: u32 = ioctl::none(LETTER, 7);
const END: u32 = ioctl::none(LETTER, 8);
const STATE: u32 = ioctl::read::<State>(LETTER, 9);
const FENCE: u32 = ioctl::none(LETTER, 10);
const SIGNAL: u32 = ioctl::none(LETTER, 11);

/// One dma-buf that the driver imports.
pub(crate) struct Importer(File);

impl Importer {
    pub(crate) fn attach(buffer: BorrowedFd<'_>, kind: AttachKind) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(DEVICE)
            .with_context(|| format!("opening {DEVICE}"))?;
        let mut attach = Attach {
            fd: buffer.as_raw_fd(),
            kind: match kind {
                AttachKind::Plain => 0,
                AttachKind::Static => 1,
                AttachKind::Dynamic => 2,
                AttachKind::Stubborn => 3,
            },
        };
        ioctl::call(&file, ATTACH, &mut attach).context("attaching")?;
        Ok(Self(file))
    }

    pub(crate) fn step(&self, step: Step) -> Result<Yield> {
        let what = format!("{step:.60?}");
        self.take(step).context(what)
    }

    fn take(&self, step: Step) -> Result<Yield> {
        let request = match step {
            Step::Map => MAP,
            Step::Unmap => UNMAP,
            Step::Vmap => VMAP,
            Step::Vunmap => VUNMAP,
            Step::Begin => BEGIN,
            Step::End => END,
            Step::Fence => FENCE,
            Step::Signal => SIGNAL,
            Step::DmaRead { offset, len } => return Ok(Yield::Data(self.read(DMA, offset, len)?)),
            Step::CpuRead { offset, len } => return Ok(Yield::Data(self.read(COPY, offset, len)?)),
            Step::DmaWrite { offset, data } => return self.write(DMA, offset, &data),
            Step::CpuWrite { offset, data } => return self.write(COPY, offset, &data),
            Step::State => {
                let mut state = State {
                    mapped: 0,
                    invalidated: 0,
                };
                ioctl::call(&self.0, STATE, &mut state)?;
                return Ok(Yield::Importer {
                    mapped: state.mapped,
                    invalidated: state.invalidated,
                });
            }
        };
        ioctl::call(&self.0, request, &mut 0_u32)?;
        Ok(Yield::Done)
    }

    fn read(&self, request: u32, offset: u64, len: u32) -> Result<Vec<u8>> {
        let mut data = vec![0; usize::try_from(len)?];
        let mut transfer = Transfer {
            offset,
            data: data.as_mut_ptr() as u64,
            len,
            write: 0,
        };
        ioctl::call(&self.0, request, &mut transfer)?;
        Ok(data)
    }

    fn write(&self, request: u32, offset: u64, data: &[u8]) -> Result<Yield> {
        let mut transfer = Transfer {
            offset,
            data: data.as_ptr() as u64,
            len: u32::try_from(data.len()).map_err(io::Error::other)?,
            write: 1,
        };
        ioctl::call(&self.0, request, &mut transfer)?;
        Ok(Yield::Done)
    }
}
