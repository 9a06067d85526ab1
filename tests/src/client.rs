// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process in a guest that holds buffers for a test
//!
//! Its methods are the operations; what the guest refuses comes as
//! [`Refused`], with the error number and the host's reason.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
pub use bufshare_agent::ops::{
    AttachKind, Buffer, Event, Info, MovableKind, Patch, Peer, Sight, Source, Step, pattern, word,
};
use bufshare_agent::ops::{Call, Line, Op, Refusal, Yield};

use crate::channel::{Gone, Program};
use crate::wait;

/// Size of the buffer of [`share_works`], in bytes.
const PROBE: u64 = 1 << 20;

/// More than the process in the guest gives an ioctl to come to such memory.
const STALL: Duration = Duration::from_secs(30);

/// The guest said no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("guest {vm}: {op}: {what}: {}{}", std::io::Error::from_raw_os_error(*errno), self.reason())]
pub struct Refused {
    /// Which guest.
    pub vm: String,
    /// What was asked.
    pub op: String,
    /// Which part of it.
    pub what: String,
    /// The system's error number.
    pub errno: i32,
    /// The host's reason, by name.
    pub status: Option<String>,
}

impl Refused {
    fn reason(&self) -> String {
        self.status
            .as_ref()
            .map(|status| format!(" ({status})"))
            .unwrap_or_default()
    }
}

/// The refusal in a result.
///
/// # Errors
/// When it was no refusal: then that error, or that all went well.
pub fn refused<T: std::fmt::Debug>(result: Result<T>) -> Result<Refused> {
    match result {
        Ok(value) => bail!("was not refused: {value:?}"),
        Err(error) => match error.downcast_ref::<Refused>() {
            Some(refused) => Ok(refused.clone()),
            None => Err(error),
        },
    }
}

/// The status in a result, which must be a refusal by the host.
///
/// # Errors
/// When it was none.
pub fn status<T: std::fmt::Debug>(result: Result<T>) -> Result<String> {
    let refused = refused(result)?;
    refused
        .status
        .clone()
        .with_context(|| format!("no reason of the host: {refused}"))
}

/// Share a buffer of `a` with `b`, see that both read what the other wrote, and end it all.
///
/// # Errors
/// The step that does not work.
pub fn share_works(a: &mut Client, b: &mut Client, seed: u32) -> Result<()> {
    let (buf, mine, export) = a.offer(PROBE, seed)?;
    let import = b.import(&export.id)?;
    let map = b.map(import.buf)?;
    ensure!(b.compare(map, seed)? == Sight::Pattern);
    let answer = seed.wrapping_add(1);
    b.fill(map, answer)?;
    ensure!(a.compare(mine, answer)? == Sight::Pattern);
    for number in [map.number, import.buf.number] {
        b.close(number)?;
    }
    for number in [export.number, mine.number, buf.number] {
        a.close(number)?;
    }
    Ok(())
}

/// A structure of zeros but for these fields, at their offsets.
///
/// # Panics
/// When one is outside of the structure.
#[must_use]
pub fn bytes(size: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut data = vec![0; size];
    for (at, field) in fields {
        let place = data.iter_mut().skip(*at).take(field.len());
        assert_eq!(place.len(), field.len(), "a field outside of the structure");
        place.zip(*field).for_each(|(to, from)| *to = *from);
    }
    data
}

/// The bytes of a buffer's name.
///
/// # Errors
/// When it is none.
pub fn id_bytes(id: &str) -> Result<Vec<u8>> {
    let digit = |at| id.get(at..at + 2).context("id");
    let pairs = (0..id.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(digit(at)?, 16).context("id"))
        .collect()
}

/// The process.
#[derive(Debug)]
pub struct Client {
    vm: String,
    program: Program,
    next: u64,
    saw: VecDeque<(u64, Sight)>,
    outcomes: VecDeque<(u64, Result<Yield, Refusal>)>,
}

/// A dma-buf in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buf {
    /// Its number.
    pub number: u64,
    /// Bytes.
    pub size: u64,
}

/// For many frames to go over and come back.
const FRAMES: Duration = wait::COMMAND.saturating_mul(4);

/// An export in the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its number.
    pub number: u64,
    /// The buffer's name.
    pub id: String,
    /// Of the export.
    pub generation: u64,
}

/// Frames that the process is pushing.
#[derive(Debug)]
pub struct Producing(u64);

/// A handle of the process that is given frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consumer {
    /// Its number.
    pub number: u64,
    /// The dma-buf.
    pub buf: Buf,
    /// As events call it.
    pub handle: u64,
}

/// An import in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Import {
    /// The dma-buf.
    pub buf: Buf,
    /// Of the export.
    pub generation: u64,
    /// To write, too.
    pub write: bool,
    /// How.
    pub way: u32,
    /// VMM mappings that it takes.
    pub windows: u32,
}

/// A buffer that the importer driver has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Importer {
    /// Its number.
    pub number: u64,
}

/// A mapping in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Map {
    /// Its number.
    pub number: u64,
}

macro_rules! expect {
    ($outcome:expr, $pattern:pat => $value:expr) => {
        match $outcome? {
            $pattern => anyhow::Ok($value),
            other => bail!("odd outcome {other:?}"),
        }
    };
}

#[allow(
    clippy::missing_errors_doc,
    reason = "all of them: Refused, or no answer"
)]
impl Client {
    pub(crate) fn new(vm: &str, program: Program) -> Result<Self> {
        let mut client = Self {
            vm: vm.to_owned(),
            program,
            next: 1,
            saw: VecDeque::new(),
            outcomes: VecDeque::new(),
        };
        match client.line(wait::scaled(wait::COMMAND))? {
            Line::Ready => Ok(client),
            other => bail!("guest {vm}: odd first line {other:?}"),
        }
    }

    /// The limits of this and the next function are scaled ones.
    fn line(&mut self, limit: Duration) -> Result<Line> {
        let line = self.program.line_within(limit)?;
        serde_json::from_str(&line)
            .with_context(|| format!("guest {}: not a line of a client: {line}", self.vm))
    }

    fn next(&mut self, limit: Duration) -> Result<()> {
        match self.line(limit)? {
            Line::Ready => {}
            Line::Outcome { id, result } => self.outcomes.push_back((id, result)),
            Line::Saw { map, sight } => self.saw.push_back((map, sight)),
        }
        Ok(())
    }

    /// Ask and do not wait.
    pub fn begin(&mut self, op: Op) -> Result<u64> {
        let id = self.next;
        self.next += 1;
        let mut text = serde_json::to_string(&Call { id, op })?;
        text.push('\n');
        self.program.write(&text)?;
        Ok(id)
    }

    /// Wait for what was begun.
    pub fn finish(&mut self, id: u64, what: &str, limit: Duration) -> Result<Yield> {
        let deadline = Instant::now() + wait::scaled(limit);
        loop {
            let found = self.outcomes.iter().position(|(number, _)| *number == id);
            if let Some((_, result)) = found.and_then(|index| self.outcomes.remove(index)) {
                return result.map_err(
                    |Refusal {
                         what: part,
                         errno,
                         status,
                     }| {
                        let (vm, op) = (self.vm.clone(), what.to_owned());
                        Refused {
                            vm,
                            op,
                            what: part,
                            errno,
                            status,
                        }
                        .into()
                    },
                );
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            self.next(rest).with_context(|| format!("during {what}"))?;
        }
    }

    /// Ask and wait.
    pub fn call(&mut self, op: Op, limit: Duration) -> Result<Yield> {
        let what: String = format!("{op:?}").chars().take(120).collect();
        let id = self.begin(op)?;
        self.finish(id, &what, limit)
    }

    fn quick(&mut self, op: Op) -> Result<Yield> {
        self.call(op, wait::COMMAND)
    }

    /// The program, to signal or kill it.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.program.kill()
    }

    /// INFO.
    pub fn info(&mut self) -> Result<Info> {
        expect!(self.quick(Op::Info), Yield::Info(info) => info)
    }

    /// PEERS.
    pub fn peers(&mut self) -> Result<Vec<Peer>> {
        expect!(self.quick(Op::Peers), Yield::Peers(peers) => peers)
    }

    /// LIST.
    pub fn list(&mut self) -> Result<Vec<Buffer>> {
        expect!(self.quick(Op::List), Yield::Buffers(buffers) => buffers)
    }

    /// QUERY.
    pub fn query(&mut self, id: &str) -> Result<Buffer> {
        let buffers = expect!(self.quick(Op::Query { id: id.to_owned() }), Yield::Buffers(buffers) => buffers)?;
        buffers.into_iter().next().context("no buffer reported")
    }

    /// GET_META: sequence number, name, opaque data.
    pub fn get_meta(&mut self, id: &str) -> Result<(u64, String, Vec<u8>)> {
        expect!(self.quick(Op::GetMeta { id: id.to_owned() }), Yield::Meta { seq, name, blob } => (seq, name, blob))
    }

    /// SET_META: the sequence number.
    pub fn set_meta(&mut self, export: &Export, name: &str, blob: &[u8]) -> Result<u64> {
        let op = Op::SetMeta {
            export: export.number,
            name: name.to_owned(),
            blob: blob.to_owned(),
        };
        expect!(self.quick(op), Yield::Meta { seq, .. } => seq)
    }

    /// QUIESCE: promise that nothing writes to the memory.
    pub fn quiesce(&mut self, export: &Export) -> Result<()> {
        let (export, quiesced) = (export.number, true);
        expect!(self.quick(Op::Quiesce { export, quiesced }), Yield::Done => ())
    }

    /// The end of that.
    pub fn resume(&mut self, export: &Export) -> Result<()> {
        let (export, quiesced) = (export.number, false);
        expect!(self.quick(Op::Quiesce { export, quiesced }), Yield::Done => ())
    }

    /// Make a dma-buf.
    pub fn make(&mut self, source: Source, size: u64) -> Result<Buf> {
        expect!(self.quick(Op::Make { source, size }), Yield::Made { buf, size } => Buf { number: buf, size })
    }

    /// ALLOC.
    pub fn alloc(&mut self, size: u64) -> Result<Buf> {
        self.make(Source::Alloc, size)
    }

    /// Have the exporter driver of the tests move a buffer of its own.
    pub fn move_away(&mut self, buf: Buf) -> Result<()> {
        expect!(self.quick(Op::Move { buf: buf.number }), Yield::Done => ())
    }

    /// Take a dma-buf that another process of the guest has open.
    pub fn adopt(&mut self, pid: i32, index: usize) -> Result<Buf> {
        expect!(self.quick(Op::Adopt { pid, index }), Yield::Made { buf, size } => Buf { number: buf, size })
    }

    /// Take a descriptor of the process that an ioctl made for a dma-buf.
    pub fn take(&mut self, fd: i32) -> Result<Buf> {
        expect!(self.quick(Op::Take { fd }), Yield::Made { buf, size } => Buf { number: buf, size })
    }

    /// EXPORT to all whom the operator allows.
    pub fn export(&mut self, buf: Buf) -> Result<Export> {
        self.export_to(buf, &[], "", &[])
    }

    /// EXPORT.
    pub fn export_to(
        &mut self,
        buf: Buf,
        access: &[(&str, bool)],
        name: &str,
        blob: &[u8],
    ) -> Result<Export> {
        let op = Op::Export {
            buf: buf.number,
            access: access
                .iter()
                .map(|(peer, write)| ((*peer).to_owned(), *write))
                .collect(),
            name: name.to_owned(),
            blob: blob.to_owned(),
        };
        expect!(self.quick(op), Yield::Exported { export, id, generation } => Export { number: export, id, generation })
    }

    /// ALLOC, fill with the pattern of `seed`, EXPORT. The mapping is kept.
    pub fn offer(&mut self, size: u64, seed: u32) -> Result<(Buf, Map, Export)> {
        let buf = self.alloc(size)?;
        let map = self.map(buf)?;
        self.fill(map, seed)?;
        let export = self.export(buf)?;
        Ok((buf, map, export))
    }

    /// IMPORT and mmap of a buffer that holds the pattern of `seed`.
    pub fn import_pattern(&mut self, id: &str, seed: u32) -> Result<Map> {
        let import = self.import(id)?;
        let map = self.map(import.buf)?;
        ensure!(self.compare(map, seed)? == Sight::Pattern);
        Ok(map)
    }

    /// IMPORT to read and write.
    pub fn import(&mut self, id: &str) -> Result<Import> {
        self.import_with(id, true)
    }

    /// IMPORT.
    pub fn import_with(&mut self, id: &str, write: bool) -> Result<Import> {
        let outcome = self.quick(Op::Import {
            id: id.to_owned(),
            write,
        });
        expect!(outcome, Yield::Imported { buf, size, generation, write, way, windows } => Import {
            buf: Buf { number: buf, size },
            generation,
            write,
            way,
            windows,
        })
    }

    /// A stream for all whom the operator allows.
    pub fn create(&mut self, name: &str, epoch: u64) -> Result<Export> {
        let op = Op::Create {
            name: name.to_owned(),
            epoch,
        };
        expect!(self.quick(op), Yield::Exported { export, id, generation } => Export { number: export, id, generation })
    }

    /// ALLOC, EXPORT as part of a stream.
    pub fn part(&mut self, stream: &Export, size: u64) -> Result<Export> {
        let op = Op::ExportPart {
            stream: stream.number,
            buf: self.alloc(size)?.number,
        };
        expect!(self.quick(op), Yield::Exported { export, id, generation } => Export { number: export, id, generation })
    }

    /// SET_META of a stream.
    pub fn set_record(
        &mut self,
        stream: &Export,
        name: &str,
        epoch: u64,
        ended: bool,
    ) -> Result<()> {
        let op = Op::SetRecord {
            stream: stream.number,
            name: name.to_owned(),
            epoch,
            ended,
        };
        expect!(self.quick(op), Yield::Done => ())
    }

    /// GET_META of a stream: its epoch, and whether it has ended.
    pub fn get_record(&mut self, id: &str) -> Result<(u64, bool)> {
        let op = Op::GetRecord { id: id.to_owned() };
        expect!(self.quick(op), Yield::Record { epoch, ended } => (epoch, ended))
    }

    /// Joins a stream: the number of that.
    pub fn join(&mut self, id: &str) -> Result<u64> {
        let op = Op::Join { id: id.to_owned() };
        expect!(self.quick(op), Yield::Joined { joined } => joined)
    }

    /// IMPORT to read and write, with a handle that is given the buffer's frames.
    pub fn consume(&mut self, id: &str) -> Result<Consumer> {
        let op = Op::Consume {
            id: id.to_owned(),
            write: true,
        };
        expect!(self.quick(op), Yield::Consumes { consumer, buf, size, handle } => Consumer {
            number: consumer,
            buf: Buf { number: buf, size },
            handle,
        })
    }

    /// PUSH of frames for all, each in some exports: the number of the first.
    pub fn push(&mut self, frames: &[&[&Export]], sequence: u64) -> Result<u64> {
        self.push_with(frames, 0, sequence)
    }

    /// PUSH.
    pub fn push_with(
        &mut self,
        frames: &[&[&Export]],
        max_held: u32,
        sequence: u64,
    ) -> Result<u64> {
        let numbers = |exports: &&[&Export]| exports.iter().map(|one| one.number).collect();
        let op = Op::Push {
            frames: frames.iter().map(numbers).collect(),
            max_held,
            sequence,
        };
        expect!(self.quick(op), Yield::Pushed { frame } => frame)
    }

    /// RETURN.
    pub fn give_back(&mut self, frames: &[(&Consumer, u64)]) -> Result<()> {
        let frames = frames.iter().map(|(one, frame)| (one.number, *frame));
        let frames = frames.collect();
        expect!(self.quick(Op::GiveBack { frames }), Yield::Done => ())
    }

    /// Begin to push so many frames in turn, each when the last of its export was returned.
    pub fn begin_producing(&mut self, exports: &[&Export], frames: u64) -> Result<Producing> {
        let op = Op::Produce {
            exports: exports.iter().map(|export| export.number).collect(),
            frames,
            timeout_ms: u64::try_from(wait::scaled(wait::COMMAND).as_millis())?,
        };
        Ok(Producing(self.begin(op)?))
    }

    /// Wait until all of them were returned: microseconds that it took.
    pub fn finish_producing(&mut self, producing: Producing) -> Result<u64> {
        let outcome = self.finish(producing.0, "push frames", FRAMES);
        expect!(outcome, Yield::Frames { total_us, .. } => total_us)
    }

    /// Give so many frames back as they come. Returns their sequence numbers, unless these are
    /// in order from 0.
    pub fn consume_all(&mut self, consumers: &[&Consumer], frames: u64) -> Result<Vec<u64>> {
        let op = Op::Consumed {
            consumers: consumers.iter().map(|consumer| consumer.number).collect(),
            frames,
            timeout_ms: u64::try_from(wait::scaled(wait::COMMAND).as_millis())?,
        };
        expect!(self.call(op, FRAMES), Yield::Frames { sequences, .. } => sequences)
    }

    /// Close a buffer, an export or a mapping.
    pub fn close(&mut self, number: u64) -> Result<()> {
        expect!(self.quick(Op::Close { number }), Yield::Done => ())
    }

    /// Begin and end an access, which has an import mapped into the VM.
    pub fn make_window(&mut self, buf: Buf) -> Result<()> {
        self.sync(buf, false, false)?;
        self.sync(buf, false, true)
    }

    /// mmap to read and write, which asks nobody.
    pub fn map(&mut self, buf: Buf) -> Result<Map> {
        self.map_with(buf, true)
    }

    /// mmap.
    pub fn map_with(&mut self, buf: Buf, write: bool) -> Result<Map> {
        expect!(self.quick(Op::Map { buf: buf.number, write }), Yield::Mapped { map } => Map { number: map })
    }

    /// mmap to read and write, from an offset of whole pages to the end.
    pub fn map_from(&mut self, buf: Buf, offset: u64) -> Result<Map> {
        expect!(self.quick(Op::MapFrom { buf: buf.number, offset }), Yield::Mapped { map } => Map { number: map })
    }

    /// Read a byte in each page of page table entries that the mapping needs: how many
    /// that were, and how many page faults that took.
    pub fn touch(&mut self, map: Map) -> Result<(u64, u64)> {
        expect!(self.quick(Op::Touch { map: map.number }), Yield::Touched { places, faults } => (places, faults))
    }

    /// Have a child of the process write the pattern of `seed` everywhere, by the mapping
    /// that it inherits.
    pub fn fill_in_child(&mut self, map: Map, seed: u32) -> Result<Sight> {
        expect!(self.quick(Op::FillInChild { map: map.number, seed }), Yield::Seen(sight) => sight)
    }

    /// Write the pattern of `seed` everywhere.
    pub fn fill(&mut self, map: Map, seed: u32) -> Result<()> {
        let sight =
            expect!(self.quick(Op::Fill { map: map.number, seed }), Yield::Seen(sight) => sight)?;
        match sight {
            Sight::Pattern => Ok(()),
            other => bail!("guest {}: writing gave {other:?}", self.vm),
        }
    }

    /// Write bytes; returns whether there was memory.
    pub fn poke(&mut self, map: Map, offset: u64, data: &[u8]) -> Result<Sight> {
        let op = Op::Poke {
            map: map.number,
            offset,
            data: data.to_owned(),
        };
        expect!(self.quick(op), Yield::Seen(sight) => sight)
    }

    /// Read bytes; none is SIGBUS.
    pub fn peek(&mut self, map: Map, offset: u64, len: u64) -> Result<Option<Vec<u8>>> {
        match self.quick(Op::Peek {
            map: map.number,
            offset,
            len,
        })? {
            Yield::Data(data) => Ok(Some(data)),
            Yield::Seen(Sight::Sigbus) => Ok(None),
            other => bail!("odd outcome {other:?}"),
        }
    }

    /// Compare with the pattern of `seed`.
    pub fn compare(&mut self, map: Map, seed: u32) -> Result<Sight> {
        expect!(self.quick(Op::Compare { map: map.number, seed }), Yield::Seen(sight) => sight)
    }

    /// DMA_BUF_IOCTL_SYNC.
    pub fn sync(&mut self, buf: Buf, write: bool, end: bool) -> Result<()> {
        expect!(self.quick(Op::Sync { buf: buf.number, write, end }), Yield::Done => ())
    }

    /// Set a control of a video device, or press it.
    pub fn set_control(&mut self, device: &str, name: &str, value: i32) -> Result<()> {
        let op = Op::SetControl {
            device: device.to_owned(),
            name: name.to_owned(),
            value,
        };
        expect!(self.quick(op), Yield::Done => ())
    }

    /// Read the mapping in a loop from now on; it has been read once, and was the
    /// pattern, when this returns.
    pub fn watch(&mut self, map: Map, seed: u32) -> Result<()> {
        let op = Op::Watch {
            map: map.number,
            seed,
        };
        expect!(self.quick(op), Yield::Done => ())?;
        self.rounds_of_the_pattern(map, 1)
    }

    /// A watcher goes on to read: it ends a round that began after this call, and has
    /// seen nothing but the pattern.
    pub fn reads_on(&mut self, map: Map) -> Result<()> {
        let (rounds, _) = self.watched(map)?;
        // The round under way began before.
        self.rounds_of_the_pattern(map, rounds + 2)
    }

    fn rounds_of_the_pattern(&mut self, map: Map, wanted: u64) -> Result<()> {
        wait::until("a round of a watcher", wait::COMMAND, || {
            let (rounds, last) = self.watched(map)?;
            let saw = self.saw.iter().find(|(number, _)| *number == map.number);
            ensure!(
                saw.is_none() && matches!(last, None | Some(Sight::Pattern)),
                "guest {}: a watcher saw {saw:x?}, and last {last:x?}",
                self.vm
            );
            Ok((rounds >= wanted).then_some(()))
        })
    }

    /// Rounds that a watcher has ended, and what it saw in the last.
    pub fn watched(&mut self, map: Map) -> Result<(u64, Option<Sight>)> {
        let op = Op::Watched { map: map.number };
        expect!(self.quick(op), Yield::Watched { rounds, last } => (rounds, last))
    }

    /// What watchers have seen so far that was not the pattern.
    pub fn sights(&mut self) -> Result<Vec<Sight>> {
        expect!(self.quick(Op::Barrier), Yield::Done => ())?;
        Ok(self.saw.drain(..).map(|(_, sight)| sight).collect())
    }

    /// The same of a process whose guest has ended or was restarted: all that came from it.
    pub fn last_sights(&mut self) -> Result<Vec<Sight>> {
        loop {
            match self.next(wait::scaled(wait::COMMAND)) {
                Ok(()) => {}
                Err(error) if error.is::<Gone>() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(self.saw.drain(..).map(|(_, sight)| sight).collect())
    }

    /// Wait until a watcher's access is refused.
    pub fn wait_sigbus(&mut self, map: Map, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + wait::scaled(limit);
        while !self.saw.contains(&(map.number, Sight::Sigbus)) {
            let rest = deadline.saturating_duration_since(Instant::now());
            self.next(rest).context("waiting for a watcher's SIGBUS")?;
        }
        Ok(())
    }

    /// DMA_BUF_SET_NAME.
    pub fn set_name(&mut self, buf: Buf, name: &str) -> Result<()> {
        let op = Op::SetName {
            buf: buf.number,
            name: name.to_owned(),
        };
        expect!(self.quick(op), Yield::Done => ())
    }

    /// Keep a buffer by an O_PATH descriptor alone.
    pub fn keep_path(&mut self, buf: Buf) -> Result<()> {
        expect!(self.quick(Op::KeepPath { buf: buf.number }), Yield::Done => ())
    }

    /// Open anonymous files, each with a page mapped privately and written to.
    pub fn private_files(&mut self, count: u32, seed: u32) -> Result<u64> {
        expect!(self.quick(Op::PrivateFiles { count, seed }), Yield::PrivateFiles { files } => files)
    }

    /// Compare what was written into private files.
    pub fn compare_private(&mut self, files: u64) -> Result<Sight> {
        expect!(self.quick(Op::ComparePrivate { files }), Yield::Seen(sight) => sight)
    }

    /// Have the importer driver of the tests take a buffer.
    pub fn attach(&mut self, buf: Buf, kind: AttachKind) -> Result<Importer> {
        expect!(self.quick(Op::Attach { buf: buf.number, kind }), Yield::Attached { importer } => Importer { number: importer })
    }

    /// Have the importer driver do something that gives nothing.
    pub fn step(&mut self, importer: Importer, step: Step) -> Result<()> {
        let importer = importer.number;
        expect!(self.quick(Op::Importer { importer, step }), Yield::Done => ())
    }

    /// Have the importer driver or its device read.
    pub fn step_read(&mut self, importer: Importer, step: Step) -> Result<Vec<u8>> {
        let importer = importer.number;
        expect!(self.quick(Op::Importer { importer, step }), Yield::Data(data) => data)
    }

    /// How often the importer driver has it mapped for its device, and how often it
    /// was asked to end that.
    pub fn importer_state(&mut self, importer: Importer) -> Result<(u32, u32)> {
        let op = Op::Importer {
            importer: importer.number,
            step: Step::State,
        };
        expect!(self.quick(op), Yield::Importer { mapped, invalidated } => (mapped, invalidated))
    }

    /// The next event, if one comes in time.
    pub fn event(&mut self, limit: Duration) -> Result<Option<Event>> {
        let timeout_ms = u64::try_from(wait::scaled(limit).as_millis())?;
        expect!(self.call(Op::Event { timeout_ms }, limit + wait::COMMAND), Yield::Event(event) => event)
    }

    /// Wait for an event; others before it are dropped.
    pub fn wait_event(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        let mut others = Vec::new();
        let deadline = Instant::now() + wait::scaled(wait::COMMAND);
        while Instant::now() < deadline {
            match self.event(Duration::from_secs(1))? {
                Some(event) if wanted(&event) => return Ok(event),
                Some(event) => others.push(event.kind),
                None => {}
            }
        }
        bail!("guest {}: no event {what}; others: {others:?}", self.vm)
    }

    /// Wait for an event of this kind about this buffer.
    pub fn wait_event_of(&mut self, kind: &str, id: &str) -> Result<Event> {
        self.wait_event(&format!("{kind} of {id}"), |event| {
            event.kind == kind && event.id == id
        })
    }

    /// An ioctl of `/dev/bufshare`, byte for byte: its error number and what it left.
    pub fn raw(&mut self, request: u32, data: &[u8], patches: &[Patch]) -> Result<(i32, Vec<u8>)> {
        let op = Op::Raw {
            request,
            data: data.to_owned(),
            patches: patches.to_owned(),
        };
        expect!(self.quick(op), Yield::Raw { errno, data } => (errno, data))
    }

    /// The same up to where the kernel accesses memory that is not there, whose
    /// address is put `at` that place: its number.
    pub fn stall(
        &mut self,
        request: u32,
        data: &[u8],
        patches: &[Patch],
        at: usize,
    ) -> Result<u64> {
        let op = Op::Stall {
            request,
            data: data.to_owned(),
            patches: patches.to_owned(),
            at,
        };
        expect!(self.call(op, STALL), Yield::Stalled { stalled } => stalled)
    }

    /// Provide that memory: the ioctl's error number.
    pub fn unstall(&mut self, stalled: u64) -> Result<i32> {
        expect!(self.quick(Op::Unstall { stalled }), Yield::Raw { errno, .. } => errno)
    }

    /// read() of the device.
    pub fn read_device(&mut self, room: usize) -> Result<Vec<u8>> {
        expect!(self.quick(Op::ReadFd { number: None, room }), Yield::Data(data) => data)
    }

    /// Import, map, compare the first word, unmap and close, `count` times:
    /// microseconds for the first and for all.
    pub fn cycle(
        &mut self,
        id: &str,
        count: u32,
        seed: u32,
        limit: Duration,
    ) -> Result<(u64, u64)> {
        let outcome = self.call(
            Op::Cycle {
                id: id.to_owned(),
                count,
                seed,
            },
            limit,
        );
        expect!(outcome, Yield::Cycled { first_us, total_us, .. } => (first_us, total_us))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixStream;
    use std::thread::{self, JoinHandle};

    use bufshare_agent::wire::{Answer, Command, Message, Request, Stream};

    use super::*;
    use crate::channel::{Channel, Transcript};

    const MAP: Map = Map { number: 7 };
    const BAD: Sight = Sight::Other {
        offset: 8,
        word: 0xbad,
    };
    const SAW: Line = Line::Saw { map: 7, sight: BAD };

    /// A process of a guest that is none: it answers each call by what `reply` gives, until
    /// that gives nothing, and its guest ends. How many calls came is what the thread returns.
    fn client(
        mut reply: impl FnMut(Op) -> Option<Vec<Result<Yield, Line>>> + Send + 'static,
    ) -> (Client, JoinHandle<usize>) {
        let (host, guest) = UnixStream::pair().unwrap();
        let mut process = None;
        let thread = thread::spawn(move || {
            let mut calls = 0;
            let send = |message: &Message| {
                let mut line = serde_json::to_vec(message).unwrap();
                line.push(b'\n');
                (&guest).write_all(&line).unwrap();
            };
            let output = |key: u64, line: &Line| Message::Output {
                key,
                stream: Stream::Out,
                line: serde_json::to_string(line).unwrap(),
            };
            for line in BufReader::new(&guest).lines() {
                let Request { id, command } = serde_json::from_str(&line.unwrap()).unwrap();
                let answer = |answer| Message::Answer {
                    id,
                    result: Ok(answer),
                };
                match command {
                    Command::Spawn { key, .. } => {
                        process = Some(key);
                        send(&answer(Answer::Spawned { pid: 2 }));
                        send(&output(key, &Line::Ready));
                    }
                    Command::WriteStdin { data, .. } => {
                        calls += 1;
                        send(&answer(Answer::Done));
                        let Call { id, op } = serde_json::from_str(&data).unwrap();
                        let Some(lines) = reply(op) else { break };
                        for line in lines {
                            let line = line.map_or_else(
                                |line| line,
                                |value| Line::Outcome {
                                    id,
                                    result: Ok(value),
                                },
                            );
                            send(&output(process.unwrap(), &line));
                        }
                    }
                    // The end of the client.
                    Command::Signal { .. } => break,
                    other => panic!("{other:?}"),
                }
            }
            calls
        });
        let folder = tempfile::tempdir().unwrap();
        let transcript = Transcript::new(&folder.path().join("transcript")).unwrap();
        let channel = Channel::new("a", host, transcript).unwrap();
        let client = Client::new("a", channel.spawn(&["client"]).unwrap()).unwrap();
        (client, thread)
    }

    #[test]
    fn what_a_watcher_saw_is_taken_although_nothing_else_was_read() {
        let (mut client, _) = client(|op| {
            assert!(matches!(op, Op::Barrier), "{op:?}");
            Some(vec![Err(SAW), Ok(Yield::Done)])
        });
        assert_eq!(client.sights().unwrap(), [BAD]);
        assert!(client.saw.is_empty());
    }

    #[test]
    fn what_a_watcher_saw_before_its_guest_ended_is_taken() {
        let mut ends = false;
        let (mut client, thread) = client(move |_| {
            if std::mem::replace(&mut ends, true) {
                return None;
            }
            Some(vec![Ok(Yield::Done), Err(SAW), Err(SAW)])
        });
        client.set_name(Buf { number: 1, size: 1 }, "x").unwrap();
        client.begin(Op::Barrier).unwrap();
        thread.join().unwrap();
        assert_eq!(client.last_sights().unwrap(), [BAD, BAD]);
    }

    /// Gives the yields one after the other to whoever asks what a watcher sees.
    fn watched(yields: Vec<(u64, Option<Sight>)>) -> (Result<()>, usize) {
        let mut yields = yields.into_iter();
        let (mut client, thread) = client(move |op| match op {
            Op::Watch { .. } => Some(vec![Ok(Yield::Done)]),
            Op::Watched { .. } => {
                let (rounds, last) = yields.next()?;
                Some(vec![Ok(Yield::Watched { rounds, last })])
            }
            other => panic!("{other:?}"),
        });
        let result = client.watch(MAP, 1).and_then(|()| client.reads_on(MAP));
        drop(client);
        (result, thread.join().unwrap())
    }

    #[test]
    fn a_watcher_has_read_before_it_counts_as_one_that_reads() {
        let good = Some(Sight::Pattern);
        let (result, calls) = watched(vec![
            (0, None),
            (1, good),
            (1, good),
            (1, good),
            (2, good),
            (3, good),
        ]);
        result.unwrap();
        assert_eq!(calls, 7);
        // It never reads, or reads something else.
        assert!(watched(vec![(0, None), (0, None)]).0.is_err());
        for rounds in [1, 3] {
            let (result, _) = watched(vec![(1, good), (1, good), (rounds, Some(BAD))]);
            let said = result.unwrap_err().to_string();
            assert!(said.contains("a watcher saw"), "{said}");
        }
    }
}
