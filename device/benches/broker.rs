// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the broker's operations cost for each entry, with few buffers and with many
//!
//! `cargo bench -p vhost-device-bufshare --bench broker` prints a table: nanoseconds for
//! each entry with `--few` and with `--many` buffers in turn, and the ratio of the two of a
//! round: the median of each. No
//! operation looks at buffers that it is not about, so the ratio grows with the depth of
//! the tables and with what the caches do not hold, and no more. Few buffers are in the
//! caches of the processor since they were made, so this ratio is the worst there is.
//!
//! Whoever is notified of events takes them at once, as in the daemon, and that is part of
//! what is measured. Else they would pile up, and many of them would be measured instead.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "what goes wrong ends the measurement"
)]

use std::time::Instant;

use bufshare_protocol::request::{Attach, Export, Request};
use bufshare_protocol::response::{Reply, Response};
use bufshare_protocol::types::{Access, BufferId, Extent, Name, Rights};
use clap::Parser;
use vhost_device_bufshare::broker::{
    Allow, Broker, Config, Effect, IdSource, Limits, Outcome, PeerConfig, PeerId, RamRegion, Token,
};

const PAGE: u64 = 4096;
const PEERS: u32 = 64;
/// The first peers export, the others import.
const EXPORTERS: u32 = 4;
/// Worlds with few buffers that are made and measured in a round: their times are short.
const FEW_A_ROUND: usize = 20;
/// Of each buffer.
const IMPORTERS: u32 = 3;

/// Nanoseconds for each entry, with few buffers and with many
#[derive(Parser)]
struct Options {
    /// Buffers that are few
    #[arg(long, default_value_t = 100)]
    few: u32,
    /// Buffers that are many
    #[arg(long, default_value_t = 10_000)]
    many: u32,
    /// How often each is measured
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

struct Ids(u64);

impl IdSource for Ids {
    fn fresh(&mut self) -> Option<BufferId> {
        self.0 += 1;
        let mut id = [0; 16];
        // Like random ones they are in no order.
        id[..8].copy_from_slice(&self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        id[8..].copy_from_slice(&self.0.to_le_bytes());
        Some(BufferId(id))
    }
}

fn peers() -> impl Iterator<Item = PeerId> {
    (1..=PEERS).map(PeerId)
}

struct World {
    broker: Broker,
    token: u64,
    buffers: Vec<(PeerId, BufferId)>,
    attachments: Vec<(PeerId, u64)>,
}

impl World {
    fn new(buffers: u32) -> Self {
        let exporters = 1..=EXPORTERS;
        let allow = exporters.flat_map(|exporter| {
            (EXPORTERS + 1..=PEERS).map(move |importer| Allow {
                exporter: PeerId(exporter),
                importer: PeerId(importer),
                rights: Rights::RW,
            })
        });
        let config = Config {
            peers: peers()
                .map(|peer| PeerConfig {
                    name: Name::new(&format!("peer{peer}")).unwrap(),
                    raw_ram: true,
                    enforces_ro: false,
                })
                .collect(),
            allow: allow.collect(),
            shm_size: 1 << 32,
            host_udmabuf: false,
            started_us: 0,
            limits: Limits {
                max_buffers: 65_536,
                max_attachments: 65_536,
                ..Limits::default()
            },
        };
        let mut world = Self {
            broker: Broker::new(config, Box::new(Ids(0))).unwrap(),
            token: 0,
            buffers: Vec::new(),
            attachments: Vec::new(),
        };
        let ram = RamRegion {
            addr: 0,
            len: 1 << 40,
            sealed: true,
        };
        for peer in peers() {
            world.broker.set_ram(peer, vec![ram]);
            let effects = world.broker.peer_up(peer, true);
            world.follow(effects);
        }
        for number in 0..buffers {
            world.export(number);
        }
        world
    }

    /// A buffer that some have attached.
    fn export(&mut self, number: u32) {
        let owner = PeerId(1 + number % EXPORTERS);
        let importers: Vec<PeerId> = (0..IMPORTERS)
            .map(|n| {
                PeerId(EXPORTERS + 1 + (number / EXPORTERS * IMPORTERS + n) % (PEERS - EXPORTERS))
            })
            .collect();
        let acl = importers.iter().map(|peer| Access {
            peer: peer.to_wire(),
            rights: Rights::RW,
        });
        let extent = Extent {
            addr: u64::from(number) * PAGE,
            len: PAGE,
        };
        let export = Request::Export(Box::new(Export {
            size: PAGE,
            extents: vec![extent],
            acl: acl.collect(),
            ..Export::default()
        }));
        let Ok(Response::Exported { id, .. }) = self.ask(owner, export) else {
            panic!("no export {number}");
        };
        self.buffers.push((owner, id));
        for peer in importers {
            let attach = Request::Attach(Attach::new(id, Rights::RW));
            let Ok(Response::Attached { handle, .. }) = self.ask(peer, attach) else {
                panic!("no attachment of {number}");
            };
            self.attachments.push((peer, handle));
        }
    }

    /// The answer; VMMs do what they are asked at once.
    fn ask(&mut self, peer: PeerId, request: Request) -> Reply {
        self.token += 1;
        let effects = self.broker.handle(peer, Token(self.token), request);
        self.follow(effects).unwrap()
    }

    /// Does what these effects say. Returns the answer among them.
    fn follow(&mut self, mut effects: Vec<Effect>) -> Option<Reply> {
        let mut answer = None;
        while !effects.is_empty() {
            let mut next = Vec::new();
            for effect in effects {
                match effect {
                    Effect::Reply { reply, .. } => answer = Some(reply),
                    Effect::Ask { id, .. } => next.extend(self.broker.complete(id, Outcome::Done)),
                    Effect::Events { peer } => {
                        while self.broker.next_event(peer, usize::MAX).is_some() {}
                    }
                    _ => {}
                }
            }
            effects = next;
        }
        answer
    }
}

/// An operation on a world: for how many entries.
type Operation = fn(&mut World) -> usize;

fn list(world: &mut World) -> usize {
    let (mut cursor, mut entries) = (0, 0);
    loop {
        let Ok(Response::Buffers {
            entries: page,
            more,
        }) = world.ask(PeerId(1), Request::List { cursor })
        else {
            panic!("no list");
        };
        entries += page.len();
        if !more {
            return entries;
        }
        cursor = page.last().unwrap().generation;
    }
}

fn query(world: &mut World) -> usize {
    for (owner, id) in world.buffers.clone() {
        world.ask(owner, Request::Query { id }).unwrap();
    }
    world.buffers.len()
}

fn detach(world: &mut World) -> usize {
    let attachments = core::mem::take(&mut world.attachments);
    for (peer, handle) in &attachments {
        world
            .ask(
                *peer,
                Request::Detach {
                    handles: vec![*handle],
                },
            )
            .unwrap();
    }
    attachments.len()
}

fn unexport(world: &mut World) -> usize {
    let buffers = core::mem::take(&mut world.buffers);
    for (owner, id) in &buffers {
        world
            .ask(
                *owner,
                Request::Unexport {
                    id: *id,
                    quiesced: false,
                },
            )
            .unwrap();
    }
    buffers.len()
}

fn stop(world: &mut World) -> usize {
    let owner = PeerId(1);
    let effects = world.broker.peer_stopped(owner);
    world.follow(effects);
    loop {
        let (last, effects) = world.broker.revoke_next(owner);
        world.follow(effects);
        if last {
            break;
        }
    }
    world.buffers.iter().filter(|(of, _)| *of == owner).count()
}

fn snapshot(world: &mut World) -> usize {
    world.broker.snapshot().buffers.len()
}

const OPERATIONS: [(&str, Operation); 6] = [
    ("LIST", list),
    ("QUERY", query),
    ("DETACH", detach),
    ("UNEXPORT", unexport),
    ("stop", stop),
    ("snapshot", snapshot),
];

/// Nanoseconds for each entry.
fn time(buffers: u32, operation: Operation) -> f64 {
    let mut world = World::new(buffers);
    let started = Instant::now();
    let entries = operation(&mut world);
    let took = started.elapsed().as_secs_f64() * 1e9;
    took / f64::from(u32::try_from(entries).unwrap())
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap()
}

fn main() {
    let options = Options::parse();
    println!(
        "{:<10} {:>14} {:>14} {:>6}",
        "for each",
        format!("{} buffers", options.few),
        format!("{} buffers", options.many),
        "ratio"
    );
    for (name, operation) in OPERATIONS {
        let (mut few, mut many, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            // In turn, as the machine has faster and slower times.
            let mut times: Vec<f64> = (0..FEW_A_ROUND)
                .map(|_| time(options.few, operation))
                .collect();
            let (one_few, one_many) = (median(&mut times), time(options.many, operation));
            few.push(one_few);
            many.push(one_many);
            ratios.push(one_many / one_few);
        }
        println!(
            "{name:<10} {:>11.0} ns {:>11.0} ns {:>6.2}",
            median(&mut few),
            median(&mut many),
            median(&mut ratios)
        );
    }
}
