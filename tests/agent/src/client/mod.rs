// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/init client`: a process that holds buffers for a test
//!
//! See [`bufshare_agent::ops`] for what it is sent and what it answers.

mod device;
mod exporter;
mod files;
mod importer;
mod ioctl;
mod memory;
mod screen;
mod sources;
mod stall;
mod transport;
mod video;

use std::collections::HashMap;
use std::io::{self, BufRead as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bufshare_agent::ops::{Call, Line, Op, Patch, Refusal, Sight, Source, Yield, word};
use bufshare_media::dma_heap;
use bufshare_media::drm::{self, Imported};
use bufshare_media::v4l2::Side;

use self::device::Device;
use self::files::PrivateFiles;
use self::importer::Importer;
use self::memory::Mapping;
use self::stall::{Page, Stalled};
use self::transport::Transport;
use self::video::Video;

/// Read and written at once; whole words, and whole pages.
const CHUNK: usize = 64 * 1024;
/// Bytes that a page of page table entries maps.
const PAGE_TABLE: usize = 2 << 20;
/// Sights a watcher reports; what it finds beyond is more of the same.
const MOST_SIGHTS: usize = 100;
/// For an ioctl to come to the memory that it waits for.
const STALL: Duration = Duration::from_secs(20);

/// Serve the test until it closes our input.
pub(crate) fn run() -> Result<()> {
    memory::catch_refusals()?;
    allow_descriptors()?;
    let mut client = Client {
        device: None,
        next: 1,
        things: HashMap::new(),
        frame: Vec::new(),
    };
    report(&Line::Ready)?;
    for line in io::stdin().lock().lines() {
        let Call { id, op } = serde_json::from_str(&line?).context("not a call")?;
        let result = client.handle(op).map_err(|error| refusal(&error));
        report(&Line::Outcome { id, result })?;
    }
    Ok(())
}

/// As many descriptors as the kernel allows: the usual 1024 would end before the
/// limits that tests go to.
fn allow_descriptors() -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: room for one limit.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: a limit that was read.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn report(line: &Line) -> Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    out.flush()?;
    Ok(())
}

fn refusal(error: &anyhow::Error) -> Refusal {
    if let Some(refusal) = device::refusal(error) {
        return refusal;
    }
    let errno = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::raw_os_error)
        .unwrap_or(0);
    Refusal {
        what: format!("{error:#}"),
        errno,
        status: None,
    }
}

struct Client {
    device: Option<Device>,
    next: u64,
    things: HashMap<u64, Thing>,
    /// What frames are sent from and received into. It stays, as that of a real program does.
    frame: Vec<u8>,
}

/// What a number names.
enum Thing {
    Buffer {
        fd: OwnedFd,
        size: u64,
        shown: Option<Imported>,
    },
    Export(device::Export),
    Consumer(device::Consumer),
    Stream(device::Stream),
    Joined(#[allow(dead_code, reason = "it is left by dropping this")] device::Joined),
    /// Kept open for its own sake.
    Path(#[expect(dead_code, reason = "kept open")] OwnedFd),
    PrivateFiles(PrivateFiles),
    Importer(Importer),
    Video(Video),
    Stalled(Stalled<(i32, Vec<u8>)>),
    Transport(Box<dyn Transport>),
    Map {
        mapping: Arc<Mapping>,
        watcher: Option<Arc<Watcher>>,
    },
}

impl Client {
    /// Opened when first needed: not every guest has it.
    fn device(&mut self) -> Result<&mut Device> {
        if self.device.is_none() {
            self.device = Some(Device::open()?);
        }
        self.device.as_mut().context("no device")
    }

    fn opened(&self) -> Result<&Device> {
        self.device.as_ref().context("no device")
    }

    fn exports(&self, numbers: &[u64]) -> Result<Vec<&device::Export>> {
        let exports = numbers.iter().map(|number| match self.things.get(number) {
            Some(Thing::Export(export)) => Ok(export),
            _ => bail!("{number} is no export"),
        });
        exports.collect()
    }

    fn stream(&self, number: u64) -> Result<&device::Stream> {
        match self.things.get(&number) {
            Some(Thing::Stream(stream)) => Ok(stream),
            _ => bail!("{number} is no stream"),
        }
    }

    fn consumer(&self, number: u64) -> Result<&device::Consumer> {
        match self.things.get(&number) {
            Some(Thing::Consumer(consumer)) => Ok(consumer),
            _ => bail!("{number} is no consumer"),
        }
    }

    fn keep(&mut self, thing: Thing) -> u64 {
        let number = self.next;
        self.next += 1;
        self.things.insert(number, thing);
        number
    }

    fn keep_buffer(&mut self, fd: OwnedFd, size: u64) -> u64 {
        self.keep(Thing::Buffer {
            fd,
            size,
            shown: None,
        })
    }

    fn keep_map(&mut self, mapping: Mapping) -> u64 {
        self.keep(Thing::Map {
            mapping: Arc::new(mapping),
            watcher: None,
        })
    }

    fn buffer(&self, number: u64) -> Result<(BorrowedFd<'_>, u64)> {
        match self.things.get(&number) {
            Some(Thing::Buffer { fd, size, .. }) => Ok((fd.as_fd(), *size)),
            _ => bail!("{number} is not a buffer"),
        }
    }

    fn mapping(&self, number: u64) -> Result<Arc<Mapping>> {
        match self.things.get(&number) {
            Some(Thing::Map { mapping, .. }) => Ok(Arc::clone(mapping)),
            _ => bail!("{number} is not a mapping"),
        }
    }

    fn handle(&mut self, op: Op) -> Result<Yield> {
        Ok(match op {
            Op::Info => Yield::Info(self.device()?.info()?),
            Op::Peers => Yield::Peers(self.device()?.peers()?),
            Op::List => Yield::Buffers(self.device()?.list()?),
            Op::Query { id } => Yield::Buffers(vec![self.device()?.query(&id)?]),
            Op::GetMeta { id } => {
                let (seq, name, blob) = self.device()?.get_meta(&id)?;
                Yield::Meta { seq, name, blob }
            }
            Op::SetMeta { export, name, blob } => {
                let Some(Thing::Export(one)) = self.things.remove(&export) else {
                    bail!("{export} is no export");
                };
                let device = self.device();
                let seq = device.and_then(|device| device.set_meta(&one, &name, &blob));
                self.things.insert(export, Thing::Export(one));
                let seq = seq?;
                Yield::Meta { seq, name, blob }
            }
            Op::Quiesce { export, quiesced } => {
                let Some(Thing::Export(one)) = self.things.remove(&export) else {
                    bail!("{export} is no export");
                };
                let device = self.device();
                let done = device.and_then(|device| device.quiesce(&one, quiesced));
                self.things.insert(export, Thing::Export(one));
                done?;
                Yield::Done
            }
            Op::Make { source, size } => {
                let (fd, size) = self.make(&source, size)?;
                Yield::Made {
                    buf: self.keep_buffer(fd, size),
                    size,
                }
            }
            Op::Move { buf } => {
                exporter::move_away(self.buffer(buf)?.0)?;
                Yield::Done
            }
            Op::Adopt { pid, index } => {
                let (fd, size) = measured(sources::adopt(pid, index)?)?;
                Yield::Made {
                    buf: self.keep_buffer(fd, size),
                    size,
                }
            }
            Op::Take { fd } => {
                // SAFETY: it was made for the test, and nothing else in this process has it.
                let (fd, size) = measured(unsafe { OwnedFd::from_raw_fd(fd) })?;
                Yield::Made {
                    buf: self.keep_buffer(fd, size),
                    size,
                }
            }
            Op::Export {
                buf,
                access,
                name,
                blob,
            } => {
                // Borrowed from the table while the device is used.
                let fd = self.buffer(buf)?.0.try_clone_to_owned()?;
                let export = self.device()?.export(fd.as_fd(), &access, &name, &blob)?;
                let (id, generation) = (export.id(), export.generation());
                Yield::Exported {
                    export: self.keep(Thing::Export(export)),
                    id,
                    generation,
                }
            }
            Op::Create { name, epoch } => {
                let stream = self.device()?.create(&name, epoch)?;
                let id = stream.id();
                Yield::Exported {
                    export: self.keep(Thing::Stream(stream)),
                    id,
                    generation: 0,
                }
            }
            Op::ExportPart { stream, buf } => {
                self.device()?;
                let (fd, _) = self.buffer(buf)?;
                let export = self
                    .opened()?
                    .export_part(self.stream(stream)?, fd.as_fd())?;
                let (id, generation) = (export.id(), export.generation());
                Yield::Exported {
                    export: self.keep(Thing::Export(export)),
                    id,
                    generation,
                }
            }
            Op::SetRecord {
                stream,
                name,
                epoch,
                ended,
            } => {
                self.device()?;
                let stream = self.stream(stream)?;
                self.opened()?.set_record(stream, &name, epoch, ended)?;
                Yield::Done
            }
            Op::GetRecord { id } => {
                let (epoch, ended) = self.device()?.get_record(&id)?;
                Yield::Record { epoch, ended }
            }
            Op::Join { id } => {
                let joined = self.device()?.join(&id)?;
                Yield::Joined {
                    joined: self.keep(Thing::Joined(joined)),
                }
            }
            Op::Import { id, write } => {
                let import = self.device()?.import(&id, write)?;
                Yield::Imported {
                    buf: self.keep_buffer(import.fd, import.size),
                    size: import.size,
                    generation: import.generation,
                    write: import.write,
                    way: import.way,
                    windows: import.windows,
                }
            }
            Op::Close { number } => {
                let thing = self
                    .things
                    .remove(&number)
                    .with_context(|| format!("{number} is nothing"))?;
                if let Thing::Map {
                    watcher: Some(watcher),
                    ..
                } = &thing
                {
                    watcher.stop();
                }
                Yield::Done
            }
            Op::Map { buf, write } => {
                let (fd, size) = self.buffer(buf)?;
                let mapping = Mapping::new(fd, usize::try_from(size)?, write).context("mmap")?;
                Yield::Mapped {
                    map: self.keep_map(mapping),
                }
            }
            Op::MapFrom { buf, offset } => {
                let (fd, size) = self.buffer(buf)?;
                let len = size.checked_sub(offset).context("beyond the end")?;
                let mapping = Mapping::part(fd, offset, usize::try_from(len)?).context("mmap")?;
                Yield::Mapped {
                    map: self.keep_map(mapping),
                }
            }
            Op::TouchTogether { bufs } => Yield::TouchedTogether {
                sights: self.touch_together(&bufs)?,
            },
            Op::Fill { map, seed } => Yield::Seen(fill(&*self.mapping(map)?, seed)?),
            Op::FillInChild { map, seed } => {
                Yield::Seen(fill_in_child(&*self.mapping(map)?, seed)?)
            }
            Op::Touch { map } => touch(&*self.mapping(map)?)?,
            Op::Poke { map, offset, data } => {
                let written = self.mapping(map)?.write(usize::try_from(offset)?, &data)?;
                Yield::Seen(if written.is_ok() {
                    Sight::Pattern
                } else {
                    Sight::Sigbus
                })
            }
            Op::Peek { map, offset, len } => {
                let mut data = vec![0; usize::try_from(len)?];
                match self
                    .mapping(map)?
                    .read(usize::try_from(offset)?, &mut data)?
                {
                    Ok(()) => Yield::Data(data),
                    Err(_) => Yield::Seen(Sight::Sigbus),
                }
            }
            Op::Compare { map, seed } => Yield::Seen(compare(&*self.mapping(map)?, seed)?),
            Op::Sync { buf, write, end } => {
                sync(self.buffer(buf)?.0, write, end).context("DMA_BUF_IOCTL_SYNC")?;
                Yield::Done
            }
            Op::Watch { map, seed } => {
                let Some(Thing::Map { mapping, watcher }) = self.things.get_mut(&map) else {
                    bail!("{map} is not a mapping");
                };
                *watcher = Some(Watcher::start(map, mapping, seed));
                Yield::Done
            }
            Op::Barrier => Yield::Done,
            Op::Watched { map } => match self.things.get(&map) {
                Some(Thing::Map {
                    watcher: Some(watcher),
                    ..
                }) => watcher.state(),
                _ => bail!("{map} has no watcher"),
            },
            Op::Cycle { id, count, seed } => self.cycle(&id, count, seed)?,
            Op::SetName { buf, name } => {
                set_name(self.buffer(buf)?.0, &name).context("DMA_BUF_SET_NAME")?;
                Yield::Done
            }
            Op::KeepPath { buf } => {
                let Some(Thing::Buffer { fd, .. }) = self.things.remove(&buf) else {
                    bail!("{buf} is not a buffer");
                };
                self.things.insert(buf, Thing::Path(files::keep_path(fd)?));
                Yield::Done
            }
            Op::PrivateFiles { count, seed } => {
                let files = PrivateFiles::new(count, seed)?;
                Yield::PrivateFiles {
                    files: self.keep(Thing::PrivateFiles(files)),
                }
            }
            Op::ComparePrivate { files } => match self.things.get(&files) {
                Some(Thing::PrivateFiles(files)) => Yield::Seen(files.compare()?),
                _ => bail!("{files} are no private files"),
            },
            Op::Attach { buf, kind } => {
                let importer = Importer::attach(self.buffer(buf)?.0, kind)?;
                Yield::Attached {
                    importer: self.keep(Thing::Importer(importer)),
                }
            }
            Op::Importer { importer, step } => match self.things.get(&importer) {
                Some(Thing::Importer(importer)) => importer.step(step)?,
                _ => bail!("{importer} is not an importer"),
            },
            Op::Consume { id, write } => {
                let consumer = self.device()?.consume(&id, write)?;
                let (fd, size) = (consumer.buffer()?, consumer.size());
                let handle = consumer.handle();
                Yield::Consumes {
                    consumer: self.keep(Thing::Consumer(consumer)),
                    buf: self.keep_buffer(fd, size),
                    size,
                    handle,
                }
            }
            Op::Push {
                frames,
                max_held,
                sequence,
            } => {
                self.device()?;
                let frames: Result<Vec<_>> = frames.iter().map(|one| self.exports(one)).collect();
                let frame = self.opened()?.push(&frames?, max_held, sequence)?;
                Yield::Pushed { frame }
            }
            Op::GiveBack { frames } => {
                let consumers = frames.iter().map(|(number, frame)| {
                    let consumer = self.consumer(*number)?;
                    Ok((consumer, *frame))
                });
                let consumers: Result<Vec<_>> = consumers.collect();
                self.opened()?.give_back(&consumers?)?;
                Yield::Done
            }
            Op::Produce {
                exports,
                frames,
                timeout_ms,
            } => {
                self.device()?;
                let limit = Duration::from_millis(timeout_ms);
                let exports = self.exports(&exports)?;
                let total = self.opened()?.produce(&exports, frames, limit)?;
                Yield::Frames {
                    sequences: Vec::new(),
                    total_us: total.as_micros().try_into()?,
                }
            }
            Op::Consumed {
                consumers,
                frames,
                timeout_ms,
            } => {
                let limit = Duration::from_millis(timeout_ms);
                let consumers = consumers.iter().map(|number| self.consumer(*number));
                let consumers: Result<Vec<_>> = consumers.collect();
                let began = Instant::now();
                let sequences = self.opened()?.consume_all(&consumers?, frames, limit)?;
                Yield::Frames {
                    sequences,
                    total_us: began.elapsed().as_micros().try_into()?,
                }
            }
            Op::HandOver {
                export,
                frames,
                timeout_ms,
            } => {
                self.device()?;
                let limit = Duration::from_millis(timeout_ms);
                let Some(Thing::Export(export)) = self.things.get(&export) else {
                    bail!("{export} is no export");
                };
                times(&self.opened()?.hand_over(export, frames, limit)?)?
            }
            Op::FirstBytes { id, count } => {
                let each = (0..count).map(|_| self.first_byte(&id));
                times(&each.collect::<Result<Vec<_>>>()?)?
            }
            Op::Ask { id, count } => {
                let device = self.device()?;
                let each = (0..count).map(|_| {
                    let started = Instant::now();
                    device.query(&id)?;
                    Ok(started.elapsed())
                });
                times(&each.collect::<Result<Vec<_>>>()?)?
            }
            Op::Open(carrier) => {
                let transport = transport::open(&carrier)?;
                Yield::Opened {
                    transport: self.keep(Thing::Transport(transport)),
                }
            }
            Op::Send {
                transport,
                size,
                frames,
            } => {
                let (transport, frame) = self.transport(transport, size)?;
                times(&transport::send(transport, frame, frames)?)?
            }
            Op::Receive {
                transport,
                size,
                frames,
            } => {
                let (transport, frame) = self.transport(transport, size)?;
                transport::receive(transport, frame, frames)?;
                Yield::Done
            }
            Op::Event { timeout_ms } => {
                Yield::Event(self.device()?.event(Duration::from_millis(timeout_ms))?)
            }
            Op::Raw {
                request,
                data,
                patches,
            } => {
                let (errno, data) = self.raw(request, data, patches)?();
                Yield::Raw { errno, data }
            }
            Op::Stall {
                request,
                mut data,
                patches,
                at,
            } => {
                let page = Page::new()?;
                put(&mut data, at, &page.address().to_ne_bytes())?;
                let call = self.raw(request, data, patches)?;
                Yield::Stalled {
                    stalled: self.keep(Thing::Stalled(Stalled::begin(
                        page,
                        crate::scaled(STALL),
                        call,
                    )?)),
                }
            }
            Op::Unstall { stalled } => match self.things.remove(&stalled) {
                Some(Thing::Stalled(stalled)) => {
                    let (errno, data) = stalled.end()?;
                    Yield::Raw { errno, data }
                }
                _ => bail!("{stalled} is no ioctl that waits"),
            },
            Op::ReadFd { number, room } => self.read_fd(number, room)?,
            Op::SetControl {
                device,
                name,
                value,
            } => {
                Video::open(&device, Side::Capture)?.set_control(&name, value)?;
                Yield::Done
            }
            Op::CaptureInto {
                buf,
                device,
                width,
                height,
            } => {
                Video::open(&device, Side::Capture)?.capture_into(
                    self.buffer(buf)?.0,
                    width,
                    height,
                )?;
                Yield::Done
            }
            Op::LendVideo {
                buf,
                device,
                width,
                height,
            } => {
                let buffer = self.buffer(buf)?.0;
                let mut video = Video::open(&device, Side::Capture)?;
                video.lend(buffer, width, height)?;
                Yield::Lent {
                    video: self.keep(Thing::Video(video)),
                }
            }
            Op::CaptureLent { video } => match self.things.get_mut(&video) {
                Some(Thing::Video(video)) => {
                    video.capture_lent()?;
                    Yield::Done
                }
                _ => bail!("{video} is not a video device"),
            },
            Op::OutputFrom {
                buf,
                output,
                capture,
                width,
                height,
            } => {
                let (fd, _) = self.buffer(buf)?;
                Yield::Data(video::send(&output, capture.as_deref(), fd, width, height)?)
            }
            Op::Show {
                buf,
                driver,
                width,
                height,
            } => {
                let picture = screen::show(&driver, self.buffer(buf)?.0, width, height)?;
                if let Some(Thing::Buffer { shown, .. }) = self.things.get_mut(&buf) {
                    *shown = Some(picture);
                }
                Yield::Done
            }
        })
    }

    fn make(&mut self, source: &Source, size: u64) -> Result<(OwnedFd, u64)> {
        let fd =
            match source {
                Source::Alloc => self.device()?.alloc(size)?,
                Source::Heap(name) => dma_heap::allocate(name, size, true)
                    .with_context(|| format!("dma-heap {name}"))?,
                Source::ReadOnlyHeap(name) => dma_heap::allocate(name, size, false)
                    .with_context(|| format!("dma-heap {name}"))?,
                Source::Udmabuf { scattered } => sources::udmabuf(size, *scattered)?,
                Source::Dumb(driver) => {
                    drm::dumb_dmabuf(driver, size).context("making a dumb buffer")?
                }
                Source::Movable(kind) => exporter::make(*kind, size)?,
                Source::Capture(device) => {
                    // The sizes that vivid's webcam has in every kernel.
                    let sizes = [
                        (320, 180),
                        (640, 360),
                        (640, 480),
                        (1280, 720),
                        (1920, 1080),
                    ];
                    let fits = |(width, height): &(u32, u32)| {
                        u64::from(*width) * u64::from(*height) * 4 >= size
                    };
                    let (width, height) = sizes
                        .into_iter()
                        .find(fits)
                        .context("no picture is that large")?;
                    Video::open(device, Side::Capture)?.export(width, height)?
                }
            };
        measured(fd)
    }

    /// What carries frames, and memory for one.
    fn transport(&mut self, number: u64, size: u64) -> Result<(&mut dyn Transport, &mut [u8])> {
        let size = usize::try_from(size)?;
        if self.frame.len() < size {
            // Not zeros, which would leave the memory to be made when it is first written.
            self.frame.resize(size, 1);
        }
        let frame = self.frame.get_mut(..size).context("no memory")?;
        match self.things.get_mut(&number) {
            Some(Thing::Transport(transport)) => Ok((&mut **transport, frame)),
            _ => bail!("{number} carries no frames"),
        }
    }

    fn touch_together(&self, bufs: &[u64]) -> Result<Vec<Sight>> {
        let bufs: Vec<_> = bufs
            .iter()
            .map(|buf| self.buffer(*buf))
            .collect::<Result<_>>()?;
        let touch = |fd, size| -> Result<Sight> {
            let mapping = Mapping::new(fd, size, false).context("mmap")?;
            Ok(match mapping.read(0, &mut [0])? {
                Ok(()) => Sight::Pattern,
                Err(_) => Sight::Sigbus,
            })
        };
        thread::scope(|scope| {
            let mut threads = Vec::new();
            for (fd, size) in bufs {
                let size = usize::try_from(size)?;
                threads.push(scope.spawn(move || touch(fd, size)));
            }
            let ended = threads.into_iter().map(|thread| thread.join().ok());
            ended
                .map(|sight| sight.context("a thread ended")?)
                .collect()
        })
    }

    /// From IMPORT until the first byte is read.
    fn first_byte(&mut self, id: &str) -> Result<Duration> {
        let started = Instant::now();
        let import = self.device()?.import(id, true)?;
        let size = usize::try_from(import.size)?;
        let mapping = Mapping::new(import.fd.as_fd(), size, true).context("mmap")?;
        let read = mapping.read(0, &mut [0])?;
        let took = started.elapsed();
        if read.is_err() {
            bail!("SIGBUS");
        }
        Ok(took)
    }

    fn cycle(&mut self, id: &str, count: u32, seed: u32) -> Result<Yield> {
        let started = Instant::now();
        let mut first = Duration::ZERO;
        for number in 0..count {
            let import = self
                .device()?
                .import(id, true)
                .with_context(|| format!("cycle {number}"))?;
            let mapping = Mapping::new(import.fd.as_fd(), usize::try_from(import.size)?, true)
                .with_context(|| format!("cycle {number}: mmap"))?;
            let mut bytes = [0; 8];
            if mapping.read(0, &mut bytes)?.is_err() {
                bail!("cycle {number}: SIGBUS");
            }
            let found = u64::from_ne_bytes(bytes);
            if found != word(seed, 0) {
                bail!("cycle {number}: the first word is {found:#x}");
            }
            if number == 0 {
                first = started.elapsed();
            }
        }
        let micros = |time: Duration| u64::try_from(time.as_micros());
        Ok(Yield::Cycled {
            count,
            first_us: micros(first)?,
            total_us: micros(started.elapsed())?,
        })
    }

    /// An ioctl that is ready to be called, which gives its error number and what it left.
    fn raw(
        &mut self,
        request: u32,
        mut data: Vec<u8>,
        mut patches: Vec<Patch>,
    ) -> Result<impl FnOnce() -> (i32, Vec<u8>) + Send + 'static> {
        for patch in &mut patches {
            match patch {
                Patch::Descriptor { at, number } => {
                    let fd = match self.things.get(number) {
                        Some(Thing::Buffer { fd, .. }) => fd.as_raw_fd(),
                        Some(Thing::Export(export)) => export.as_fd().as_raw_fd(),
                        Some(Thing::Stream(stream)) => stream.as_fd().as_raw_fd(),
                        _ => bail!("{number} has no descriptor"),
                    };
                    put(&mut data, *at, &fd.to_ne_bytes())?;
                }
                Patch::Address { at, of } => {
                    let address = of.as_mut_ptr() as u64;
                    put(&mut data, *at, &address.to_ne_bytes())?;
                }
            }
        }
        let device = self.device()?.as_fd().try_clone_to_owned()?;
        Ok(move || {
            // Room beyond, should the driver write more than the number says.
            let len = data.len();
            data.resize(len + (1 << 14), 0);
            let (fd, request) = (device.as_raw_fd(), libc::c_ulong::from(request));
            // SAFETY: more room than the number can state; the patches outlive the call.
            let result = unsafe { libc::ioctl(fd, request, data.as_mut_ptr()) };
            let errno = if result < 0 {
                io::Error::last_os_error().raw_os_error().unwrap_or(-1)
            } else {
                0
            };
            drop(patches);
            data.truncate(len);
            (errno, data)
        })
    }

    fn read_fd(&mut self, number: Option<u64>, room: usize) -> Result<Yield> {
        let mut data = vec![0; room];
        let fd = match number {
            Some(number) => self.buffer(number)?.0.as_raw_fd(),
            None => self.device()?.as_fd().as_raw_fd(),
        };
        // SAFETY: that much room.
        let count = unsafe { libc::read(fd, data.as_mut_ptr().cast(), room) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        data.truncate(count);
        Ok(Yield::Data(data))
    }
}

/// A dma-buf reports its size when its end is sought.
fn measured(fd: OwnedFd) -> Result<(OwnedFd, u64)> {
    // SAFETY: no memory is involved.
    let size = unsafe { libc::lseek(fd.as_raw_fd(), 0, libc::SEEK_END) };
    let size = u64::try_from(size)
        .map_err(|_| io::Error::last_os_error())
        .context("asking its size")?;
    Ok((fd, size))
}

fn times(times: &[Duration]) -> Result<Yield> {
    let times = times.iter().map(|time| u64::try_from(time.as_nanos()));
    Ok(Yield::Times(times.collect::<Result<_, _>>()?))
}

fn put(data: &mut [u8], at: usize, bytes: &[u8]) -> Result<()> {
    let place = data
        .get_mut(at..at + bytes.len())
        .context("a patch outside of the structure")?;
    place.copy_from_slice(bytes);
    Ok(())
}

fn chunks(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len)
        .step_by(CHUNK)
        .map(move |offset| (offset, CHUNK.min(len - offset)))
}

fn words(seed: u32, offset: usize) -> impl Iterator<Item = u64> {
    let first = (offset / 8) as u64;
    (first..).map(move |index| word(seed, index))
}

fn fill(mapping: &Mapping, seed: u32) -> Result<Sight> {
    for (offset, len) in chunks(mapping.len()) {
        let bytes: Vec<u8> = words(seed, offset)
            .take(len / 8)
            .flat_map(u64::to_ne_bytes)
            .collect();
        if mapping.write(offset, &bytes)?.is_err() {
            return Ok(Sight::Sigbus);
        }
    }
    Ok(Sight::Pattern)
}

fn fill_in_child(mapping: &Mapping, seed: u32) -> Result<Sight> {
    // The child makes nothing: a thread that it does not have may hold the heap's lock.
    let bytes: Vec<u8> = words(seed, 0)
        .take(mapping.len() / 8)
        .flat_map(u64::to_ne_bytes)
        .collect();
    // SAFETY: the child only copies memory and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let status = match mapping.write(0, &bytes) {
            Ok(Ok(())) => 0,
            _ => 1,
        };
        // SAFETY: it ends.
        unsafe { libc::_exit(status) };
    }
    if child < 0 {
        return Err(io::Error::last_os_error()).context("fork");
    }
    let mut status = 0;
    // SAFETY: room for a status; a child of ours.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
        return Err(io::Error::last_os_error()).context("waitpid");
    }
    Ok(if status == 0 {
        Sight::Pattern
    } else {
        Sight::Sigbus
    })
}

fn touch(mapping: &Mapping) -> Result<Yield> {
    let before = page_faults()?;
    let mut places = 0;
    for offset in (0..mapping.len()).step_by(PAGE_TABLE) {
        if mapping.read(offset, &mut [0])?.is_err() {
            bail!("SIGBUS at {offset:#x}");
        }
        places += 1;
    }
    Ok(Yield::Touched {
        places,
        faults: page_faults()? - before,
    })
}

/// Of this thread, without reading from a disk.
fn page_faults() -> Result<u64> {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: room for it.
    if unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error()).context("getrusage");
    }
    // SAFETY: all zero is a valid value, too.
    let usage = unsafe { usage.assume_init() };
    Ok(u64::try_from(usage.ru_minflt)?)
}

fn compare(mapping: &Mapping, seed: u32) -> Result<Sight> {
    let mut bytes = vec![0; CHUNK];
    let mut blank = None;
    for (offset, len) in chunks(mapping.len()) {
        let chunk = bytes.get_mut(..len).context("chunk")?;
        if mapping.read(offset, chunk)?.is_err() {
            return Ok(Sight::Sigbus);
        }
        for (index, (found, wanted)) in chunk.chunks_exact(8).zip(words(seed, offset)).enumerate() {
            let found = u64::from_ne_bytes(found.try_into()?);
            let other = Sight::Other {
                offset: (offset + index * 8) as u64,
                word: found,
            };
            match found {
                _ if found == wanted => {}
                0 => _ = blank.get_or_insert(other),
                _ => return Ok(other),
            }
        }
    }
    Ok(blank.unwrap_or(Sight::Pattern))
}

fn sync(buffer: BorrowedFd<'_>, write: bool, end: bool) -> io::Result<()> {
    const SYNC: u32 = ioctl::write::<u64>(b'b', 0);
    // DMA_BUF_SYNC_READ 1, _WRITE 2, _END 4
    let mut flags = if write { 3_u64 } else { 1 } | if end { 4 } else { 0 };
    ioctl::call(&buffer, SYNC, &mut flags).map(drop)
}

fn set_name(buffer: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    const SET_NAME: u32 = ioctl::write::<u64>(b'b', 1);
    // The argument is the text itself.
    let mut text = [0_u8; 32];
    text.get_mut(..name.len())
        .ok_or(io::ErrorKind::InvalidInput)?
        .copy_from_slice(name.as_bytes());
    ioctl::call(&buffer, SET_NAME, &mut text).map(drop)
}

/// Reads one mapping in a loop.
struct Watcher {
    stop: AtomicBool,
    rounds: AtomicU64,
    last: Mutex<Option<Sight>>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Watcher {
    fn start(map: u64, mapping: &Arc<Mapping>, seed: u32) -> Arc<Self> {
        let watcher = Arc::new(Self {
            stop: AtomicBool::new(false),
            rounds: AtomicU64::new(0),
            last: Mutex::new(None),
            thread: Mutex::new(None),
        });
        let (other, mapping) = (Arc::clone(&watcher), Arc::clone(mapping));
        let thread = thread::spawn(move || other.watch(map, &mapping, seed));
        *watcher
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(thread);
        watcher
    }

    fn watch(&self, map: u64, mapping: &Mapping, seed: u32) {
        let mut reported = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let Ok(sight) = compare(mapping, seed) else {
                break;
            };
            // Whoever knows of this round has been sent what it saw.
            if sight != Sight::Pattern && !reported.contains(&sight) && reported.len() < MOST_SIGHTS
            {
                reported.push(sight);
                if report(&Line::Saw { map, sight }).is_err() {
                    break;
                }
            }
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(sight);
            self.rounds.fetch_add(1, Ordering::Release);
            if sight == Sight::Sigbus {
                break;
            }
        }
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    fn state(&self) -> Yield {
        Yield::Watched {
            rounds: self.rounds.load(Ordering::Acquire),
            last: *self.last.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}
