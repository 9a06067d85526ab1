// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest whose kernel is hostile: its driver sends what it likes

#![allow(clippy::arithmetic_side_effects, reason = "numbers of our own choice")]

use anyhow::{Context as _, Result, bail, ensure};
use bufshare_protocol::request::{Export, Request};
use bufshare_protocol::response::{self, Reply, Response};
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{BufferId, Extent};
use bufshare_tests::client::{Sight, status};
use bufshare_tests::driver::{bind, unbind};
use bufshare_tests::lab;
use bufshare_tests::pair::{Plan, Shared};
use bufshare_tests::vm::Vm;

static VMS: Shared = Shared::new(Plan::new);
const PAGE: u64 = 4096;
/// In the RAM of every guest, and of no interest.
const SOME: u64 = 64 << 20;
const FILE: &str = "/sys/kernel/debug/bufshare_raw";
const ROOM: u32 = 4096;

/// As in `tests/guest/raw/bufshare_raw.c`.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Normal,
    Loop,
    Swapped,
    Outside,
    NoNext,
}

/// A VM whose own driver has been replaced.
struct Hostile<'a> {
    vm: &'a Vm,
    device: String,
}

impl<'a> Hostile<'a> {
    fn take(vm: &'a Vm) -> Result<Self> {
        // First, as a test cannot go on without it.
        lab::test_module("raw")?;
        let device = unbind(vm)?;
        vm.insert("raw", &[])?;
        Ok(Self { vm, device })
    }

    /// Gives the device back to its driver.
    fn leave(self) -> Result<()> {
        self.vm.output(&["/bin/busybox", "rmmod", "bufshare_raw"])?;
        bind(self.vm, &self.device)
    }

    /// What the device wrote of `room` bytes.
    fn send(&self, shape: Shape, room: u32, request: &[u8]) -> Result<Vec<u8>> {
        let mut call = (shape as u32).to_le_bytes().to_vec();
        call.extend(room.to_le_bytes());
        call.extend(request);
        self.vm
            .write_file(FILE, &call)
            .with_context(|| format!("{shape:?}: the chain was not completed"))?;
        let answer = self.vm.read_file(FILE)?;
        let (used, bytes) = answer.split_first_chunk().context("no answer")?;
        let used = usize::try_from(u32::from_le_bytes(*used))?;
        ensure!(used <= bytes.len(), "{used} bytes in a room of {room}");
        Ok(bytes.get(..used).unwrap_or_default().to_vec())
    }

    fn bytes(&self, kind: u32, request: &[u8]) -> Result<Reply> {
        let answer = self.send(Shape::Normal, ROOM, request)?;
        match response::parse(kind, &answer) {
            Ok((_, reply, _)) => Ok(reply),
            Err(status) => bail!("an answer that is none: {status}"),
        }
    }

    fn ask(&self, request: &Request) -> Result<Reply> {
        self.bytes(request.kind(), &request.encode(7))
    }

    fn refuses(&self, what: &str, request: &Request, expected: Status) -> Result<()> {
        let reply = self.ask(request)?;
        ensure!(reply == Err(expected), "{what}: {reply:?}");
        Ok(())
    }
}

fn export(extents: &[(u64, u64)]) -> Request {
    let extents = extents.iter().map(|(addr, len)| Extent {
        addr: *addr,
        len: *len,
    });
    let extents: Vec<Extent> = extents.collect();
    Request::Export(Box::new(Export {
        size: extents.iter().fold(0, |sum, e| sum.wrapping_add(e.len)),
        extents,
        ..Export::default()
    }))
}

/// The status in the header of a response.
fn status_of(answer: &[u8]) -> Option<Status> {
    let bytes = answer.get(4..8)?.try_into().ok()?;
    Status::from_wire(u32::from_le_bytes(bytes))
}

#[test]
fn each_bad_request_of_a_hostile_kernel_gets_its_status_and_harms_nobody() {
    VMS.with(|vms| {
        let mut b = vms.b.client()?;
        let (_, of_b, theirs) = b.offer(PAGE, 1)?;
        let hostile = Hostile::take(&vms.a)?;

        let mut unknown = Request::Flush.encode(7);
        unknown.splice(0..4, 0xdead_u32.to_le_bytes());
        let answer = hostile.send(Shape::Normal, ROOM, &unknown)?;
        ensure!(status_of(&answer) == Some(Status::Unsupported));
        let caps = Request::GetCaps { version: 2 };
        let mut short = caps.encode(7);
        short.pop();
        ensure!(hostile.bytes(caps.kind(), &short)? == Err(Status::BadLength));
        let long = [caps.encode(7), vec![0; 60_000]].concat();
        ensure!(hostile.bytes(caps.kind(), &long)? == Err(Status::BadLength));

        let high = u64::MAX - PAGE + 1;
        for (what, extents, expected) in [
            ("outside of RAM", vec![(1 << 44, PAGE)], Status::NotRam),
            (
                "an address that overflows",
                vec![(high, PAGE)],
                Status::NotRam,
            ),
            (
                "lengths that overflow",
                vec![(SOME, high), (SOME, high)],
                Status::BadField,
            ),
            (
                "extents that overlap",
                vec![(SOME, 2 * PAGE), (SOME + PAGE, PAGE)],
                Status::Overlap,
            ),
            ("unaligned", vec![(SOME + 1, PAGE)], Status::Unaligned),
        ] {
            hostile.refuses(what, &export(&extents), expected)?;
        }

        // What it exports, the other imports; and nobody is fooled by handles.
        let Ok(Response::Exported { id, .. }) = hostile.ask(&export(&[(SOME, PAGE)]))? else {
            bail!("a good export was refused");
        };
        let import = b.import(&id.to_string())?;
        b.make_window(import.buf)?;
        let not_found = Response::Batch {
            status: Status::NotFound,
            entry: 0,
        };
        for number in [0, 1, 2, u64::MAX] {
            let unmap = Request::Unmap {
                windows: vec![number],
            };
            let detach = Request::Detach {
                handles: vec![number],
            };
            for request in [unmap, detach] {
                let reply = hostile.ask(&request)?;
                ensure!(reply == Ok(not_found.clone()), "{request:?}: {reply:?}");
            }
        }
        let other: BufferId = theirs.id.parse().ok().context("an id")?;
        let unexport = Request::Unexport {
            id: other,
            quiesced: false,
        };
        hostile.refuses("UNEXPORT of another's", &unexport, Status::NotFound)?;
        let unexport = Request::Unexport {
            id,
            quiesced: false,
        };
        ensure!(hostile.ask(&unexport)? == Ok(Response::Done));
        hostile.refuses("UNEXPORT again", &unexport, Status::NotFound)?;
        ensure!(status(b.import(&id.to_string()))? == "NOT_FOUND");

        ensure!(hostile.ask(&caps)?.is_ok());
        hostile.leave()?;
        ensure!(b.compare(of_b, 1)? == Sight::Pattern);
        let mut a = vms.a.client()?;
        let import = a.import(&theirs.id)?;
        let map = a.map(import.buf)?;
        ensure!(a.compare(map, 1)? == Sight::Pattern);
        Ok(())
    });
}

#[test]
fn each_malformed_chain_of_a_hostile_kernel_is_completed_and_harms_nobody() {
    VMS.with(|vms| {
        let hostile = Hostile::take(&vms.a)?;
        let caps = Request::GetCaps { version: 2 }.encode(7);

        for (shape, room, expected) in [
            (Shape::Loop, ROOM, None),
            (Shape::NoNext, ROOM, None),
            (Shape::Swapped, ROOM, Some(Status::BadLength)),
            (Shape::Outside, ROOM, Some(Status::BadLength)),
            (Shape::Normal, 0, None),
            (Shape::Normal, 23, None),
            (Shape::Normal, 24, Some(Status::NoRoom)),
            (Shape::Normal, ROOM, Some(Status::Ok)),
        ] {
            let answer = hostile.send(shape, room, &caps)?;
            ensure!(
                status_of(&answer) == expected,
                "{shape:?} with room for {room}: {answer:x?}"
            );
        }
        ensure!(vms.a.status()? == "running");

        hostile.leave()?;
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let (_, _, offer) = a.offer(PAGE, 2)?;
        let import = b.import(&offer.id)?;
        let map = b.map(import.buf)?;
        ensure!(b.compare(map, 2)? == Sight::Pattern);
        Ok(())
    });
}
