// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random histories against a model that knows only what users are promised.
//!
//! The simulated host of `host` checks at every step that no mapping overlaps,
//! that no budget is passed, that MAP is answered only when its range is
//! proved to be visible, and the broker's own invariants. Here the model adds
//! who may do what, that an ended export is mapped nowhere, and that whoever
//! has mapped a buffer finds in its place that buffer, zero pages, or nothing,
//! for as long as he does not unmap it.

mod frames;

use std::collections::{BTreeMap, BTreeSet};

use bufshare_protocol::request::{Attach, Request};
use bufshare_protocol::response::Response;
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{BufferId, Meta, Push, Rights, StreamState, Way, Ways};
use proptest::prelude::*;
use proptest::sample::Index;

use super::host::*;
use crate::broker::*;

#[derive(Clone, Debug)]
enum Op {
    Export(u8, u64, u64),
    /// A stream of one of two names.
    Create(u8, usize),
    /// A buffer of what may be a stream.
    Part(u8, Index),
    /// As one that is quiesced, or not.
    Unexport(u8, Index, bool),
    Quiesce(u8, Index, bool),
    /// With one of two names, and an epoch.
    SetMeta(u8, Index, usize, u64),
    /// With what ways are accepted, how many mappings at the most, and whether as a consumer.
    Attach(u8, Index, Ways, u32, bool),
    Detach(u8, Vec<Index>),
    Map(u8, Index),
    Unmap(u8, Vec<Index>),
    /// Frames, each of some buffers; and how many a consumer may have.
    Push(u8, Vec<Vec<Index>>, u32),
    Return(u8, Vec<Index>),
    Serve(u8, u8),
    Deadline,
    /// The driver is gone, and with it, perhaps, all windows.
    Reset(u8, bool),
    /// With a deadline during it, and whether its answer did not wait.
    Pause(u8, bool, bool),
    /// Stops, and goes on only when it is to ask for something, or by one of the others.
    Stop(u8),
    /// As a stop, but its session has ended, and it comes back only with another.
    Leave(u8),
    /// A step of the stop of one that has stopped.
    RevokeNext(u8),
    /// The first stops, then the second, whose stop is not held up by the first.
    StopBoth(u8, u8),
    Reconnect(u8),
    RefuseMaps(u8, Option<bool>),
    /// Whether what is asked for is proved at once.
    Proves(u8, bool),
    Events(u8),
    Flush(u8),
    /// The broker is written down and read again.
    Restore,
    /// The operator's policy is another one; and whether all steps of that follow at once.
    Policy(Policy, bool),
}

/// What each may grant to each other one.
type Policy = BTreeMap<(PeerId, PeerId), Rights>;

fn policy() -> impl Strategy<Value = Policy> {
    let rights = prop_oneof![
        1 => Just(Rights::NONE),
        1 => Just(Rights::READ),
        3 => Just(Rights::RW),
    ];
    let pairs = [(A, B), (A, C), (B, A), (B, C), (C, A), (C, B)];
    let policy = prop::collection::vec(rights, pairs.len()).prop_map(move |rights| {
        let lines = pairs.into_iter().zip(rights);
        lines.filter(|(_, rights)| !rights.is_empty()).collect()
    });
    prop_oneof![1 => Just(Policy::from(ALLOWED)), 1 => policy]
}

/// Of streams and of buffers.
const NAMES: [&str; 2] = ["camera", "screen"];

/// Mostly any.
fn ways() -> impl Strategy<Value = Ways> {
    prop_oneof![
        4 => Just(Ways::NONE),
        3 => Just(Ways::SERVED),
        1 => Just(Ways::USUAL),
        1 => Just(Ways::NONE.with(Way::None)),
        1 => Just(Ways::NONE.with(Way::Direct)),
        1 => Just(Ways::NONE.with(Way::Udmabuf)),
    ]
}

/// Mostly one, sometimes some, and among those the same ones.
fn batch() -> impl Strategy<Value = Vec<Index>> {
    let one = prop::collection::vec(any::<Index>(), 1);
    prop_oneof![2 => one, 1 => prop::collection::vec(any::<Index>(), 2..5)]
}

/// Mostly one, in one buffer.
fn frames() -> impl Strategy<Value = Vec<Vec<Index>>> {
    let buffers = prop_oneof![
        3 => prop::collection::vec(any::<Index>(), 1),
        1 => prop::collection::vec(any::<Index>(), 2..5),
    ];
    prop_oneof![
        2 => prop::collection::vec(buffers.clone(), 1),
        1 => prop::collection::vec(buffers, 2..4),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let peer = 1u8..4;
    prop_oneof![
        3 => (peer.clone(), 1u64..60, 1u64..4).prop_map(|(p, n, k)| Op::Export(p, n, k)),
        1 => (peer.clone(), 0usize..2).prop_map(|(p, name)| Op::Create(p, name)),
        1 => (peer.clone(), any::<Index>()).prop_map(|(p, stream)| Op::Part(p, stream)),
        2 => (peer.clone(), any::<Index>(), any::<bool>()).prop_map(|(p, i, q)| Op::Unexport(p, i, q)),
        2 => (peer.clone(), any::<Index>(), 0usize..NAMES.len(), 0u64..2)
            .prop_map(|(p, i, name, epoch)| Op::SetMeta(p, i, name, epoch)),
        3 => (peer.clone(), any::<Index>(), any::<bool>()).prop_map(|(p, i, q)| Op::Quiesce(p, i, q)),
        5 => (
            peer.clone(),
            any::<Index>(),
            ways(),
            prop_oneof![3 => Just(0), 1 => 1u32..4],
            prop::bool::weighted(0.7),
        )
            .prop_map(|(p, i, ways, most, consumer)| Op::Attach(p, i, ways, most, consumer)),
        3 => (peer.clone(), batch()).prop_map(|(p, i)| Op::Detach(p, i)),
        8 => (peer.clone(), any::<Index>()).prop_map(|(p, i)| Op::Map(p, i)),
        6 => (peer.clone(), batch()).prop_map(|(p, i)| Op::Unmap(p, i)),
        4 => (peer.clone(), frames(), prop_oneof![2 => Just(0), 1 => 1u32..3])
            .prop_map(|(p, frames, most)| Op::Push(p, frames, most)),
        4 => (peer.clone(), batch()).prop_map(|(p, i)| Op::Return(p, i)),
        9 => (peer.clone(), 1u8..5).prop_map(|(p, n)| Op::Serve(p, n)),
        1 => Just(Op::Deadline),
        1 => (peer.clone(), any::<bool>()).prop_map(|(p, dropped)| Op::Reset(p, dropped)),
        1 => (peer.clone(), any::<bool>(), any::<bool>()).prop_map(|(p, d, u)| Op::Pause(p, d, u)),
        1 => peer.clone().prop_map(Op::Stop),
        1 => peer.clone().prop_map(Op::Leave),
        2 => peer.clone().prop_map(Op::RevokeNext),
        1 => (peer.clone(), peer.clone()).prop_map(|(p, q)| Op::StopBoth(p, q)),
        1 => peer.clone().prop_map(Op::Reconnect),
        1 => (peer.clone(), any::<Option<bool>>()).prop_map(|(p, b)| Op::RefuseMaps(p, b)),
        1 => (peer.clone(), any::<bool>()).prop_map(|(p, b)| Op::Proves(p, b)),
        3 => peer.clone().prop_map(Op::Events),
        1 => peer.prop_map(Op::Flush),
        1 => Just(Op::Restore),
        1 => (policy(), any::<bool>()).prop_map(|(policy, done)| Op::Policy(policy, done)),
    ]
}

/// What has to do with frames, above all.
fn frame_op() -> impl Strategy<Value = Op> {
    let peer = 1u8..4;
    let push = (1u8..3, frames(), prop_oneof![1 => Just(0), 1 => 1u32..3]);
    let index = any::<Index>();
    prop_oneof![
        2 => (1u8..3, 1u64..60).prop_map(|(p, n)| Op::Export(p, n, 1)),
        1 => (1u8..3, 0usize..2).prop_map(|(p, name)| Op::Create(p, name)),
        2 => (1u8..3, any::<Index>()).prop_map(|(p, stream)| Op::Part(p, stream)),
        8 => (peer.clone(), index.clone(), prop::bool::weighted(0.9))
            .prop_map(|(p, i, consumer)| Op::Attach(p, i, Ways::SERVED, 0, consumer)),
        8 => push.prop_map(|(p, frames, most)| Op::Push(p, frames, most)),
        6 => (peer.clone(), batch()).prop_map(|(p, i)| Op::Return(p, i)),
        5 => peer.clone().prop_map(Op::Events),
        1 => (peer.clone(), batch()).prop_map(|(p, i)| Op::Detach(p, i)),
        1 => (peer.clone(), index).prop_map(|(p, i)| Op::Unexport(p, i, false)),
        1 => (peer, any::<bool>()).prop_map(|(p, dropped)| Op::Reset(p, dropped)),
        1 => Just(Op::Restore),
    ]
}

#[derive(Debug)]
struct Export {
    owner: PeerId,
    /// Address and pages of each piece; none of a stream.
    list: Vec<(u64, u64)>,
    stream: BufferId,
    name: Name,
    epoch: u64,
    /// How often its metadata was set.
    seq: u64,
    /// To whom, as the policy was then.
    granted: BTreeMap<PeerId, Rights>,
    revoked: bool,
    /// Nothing of its owner's VM writes to it.
    quiesced: bool,
}

impl Export {
    fn is_stream(&self) -> bool {
        self.list.is_empty()
    }

    fn pages(&self) -> u64 {
        self.list.iter().map(|(_, pages)| pages).sum()
    }
}

/// A place that an attachment has mapped.
#[derive(Debug)]
struct Held {
    buffer: BufferId,
    window: u64,
    offset: u64,
    maps: u32,
}

#[derive(Debug)]
struct Attachment {
    buffer: BufferId,
    pages: u64,
    revoked: bool,
}

struct Model {
    host: Host,
    exports: BTreeMap<BufferId, Export>,
    attachments: BTreeMap<(PeerId, u64), Attachment>,
    /// Requests whose answer may come later.
    maps: BTreeMap<(PeerId, Token), u64>,
    /// By peer and handle.
    held: BTreeMap<(PeerId, u64), Held>,
    /// Every handle and window that a peer was ever given.
    given: BTreeSet<(PeerId, u64)>,
    unexports: BTreeMap<(PeerId, Token), BufferId>,
    flushes: BTreeSet<(PeerId, Token)>,
    /// Own exports that ended unasked since a peer last took its events.
    ended: BTreeMap<PeerId, usize>,
    frames: frames::Frames,
    /// Does not run.
    stopped: BTreeSet<PeerId>,
    /// Its session has ended.
    left: BTreeSet<PeerId>,
    policy: Policy,
    max_windows: u32,
    udmabuf: bool,
}

/// As [`config`] says.
const ALLOWED: [((PeerId, PeerId), Rights); 3] = [
    ((A, B), Rights::RW),
    ((A, C), Rights::RW),
    ((B, A), Rights::RW),
];

impl Model {
    fn new(max_windows: u32, udmabuf: bool) -> Self {
        let limits = Limits {
            max_windows,
            max_buffers: 8,
            max_attachments: 12,
            ..Limits::default()
        };
        let mut config = config(limits);
        config.host_udmabuf = udmabuf;
        let mut host = Host::with(config);
        host.broker.at_once = 2;
        Self {
            host,
            policy: Policy::from(ALLOWED),
            max_windows,
            udmabuf,
            exports: BTreeMap::new(),
            attachments: BTreeMap::new(),
            maps: BTreeMap::new(),
            held: BTreeMap::new(),
            given: BTreeSet::new(),
            unexports: BTreeMap::new(),
            flushes: BTreeSet::new(),
            ended: BTreeMap::new(),
            frames: frames::Frames::default(),
            stopped: BTreeSet::new(),
            left: BTreeSet::new(),
        }
    }

    /// The driver of `peer` runs: as anew, or after a stop.
    fn up(&mut self, peer: PeerId) {
        if self.left.contains(&peer) {
            // What its session does late is of no use.
            let effects = self.host.broker.peer_up(peer, true);
            self.host.take(effects);
            assert_eq!(self.host.broker.lifecycle(peer), Lifecycle::Leaving);
            return self.reconnect(peer);
        }
        self.stopped.remove(&peer);
        let effects = self.host.broker.peer_up(peer, true);
        self.host.take(effects);
    }

    /// Another front end connects.
    fn reconnect(&mut self, peer: PeerId) {
        self.forget_driver(peer);
        self.host.disconnect(peer);
        self.host.connect(peer);
        self.stopped.remove(&peer);
        self.left.remove(&peer);
    }

    /// Whoever asks for something runs.
    fn asks(&mut self, op: &Op) {
        if let Op::Export(p, ..)
        | Op::Create(p, _)
        | Op::Part(p, _)
        | Op::Unexport(p, ..)
        | Op::SetMeta(p, ..)
        | Op::Quiesce(p, ..)
        | Op::Attach(p, ..)
        | Op::Detach(p, _)
        | Op::Map(p, _)
        | Op::Unmap(p, _)
        | Op::Push(p, ..)
        | Op::Return(p, _)
        | Op::Flush(p) = op
            && self.stopped.contains(&PeerId((*p).into()))
        {
            self.up(PeerId((*p).into()));
        }
    }

    fn now(&mut self, peer: PeerId, request: Request) -> bufshare_protocol::response::Reply {
        let token = self.host.send(peer, request);
        self.host
            .answer(peer, token)
            .cloned()
            .expect("this request is answered at once")
    }

    /// Any buffer ever seen, own or not, gone or not.
    fn some_buffer(&self, index: &Index) -> Option<BufferId> {
        let all: Vec<BufferId> = self.exports.keys().copied().collect();
        (!all.is_empty()).then(|| *index.get(&all))
    }

    /// Mostly one of the peer's own buffers, sometimes another one, or nonsense.
    fn some_own_buffer(&self, peer: PeerId, index: &Index) -> BufferId {
        let exports = self.exports.iter();
        let own = exports.filter(|(_, export)| export.owner == peer && !export.revoked);
        let mut all: Vec<BufferId> = own.flat_map(|(id, _)| [*id; 6]).collect();
        all.extend(self.exports.keys().next_back());
        all.push(BufferId::ZERO);
        *index.get(&all)
    }

    /// Mostly a frame that the peer has, sometimes one that it has not.
    fn some_frame(&self, peer: PeerId, index: &Index) -> (u64, u64) {
        let handles = self.attachments.keys().filter(|(p, _)| *p == peer);
        let mut all = Vec::new();
        for (_, handle) in handles.clone() {
            if let Some(number) = self.frames.held((peer, *handle)) {
                all.extend([(*handle, number); 4]);
            }
        }
        all.extend(handles.map(|(_, handle)| (*handle, 1)).next());
        all.push((0, 0));
        *index.get(&all)
    }

    /// Mostly one of the peer's handles, sometimes nonsense.
    fn some_handle(&self, peer: PeerId, index: &Index) -> u64 {
        let all: Vec<u64> = self
            .attachments
            .keys()
            .filter(|(p, _)| *p == peer)
            .map(|(_, handle)| *handle)
            .chain([0])
            .collect();
        *index.get(&all)
    }

    /// Mostly one of the peer's windows, sometimes one that is gone, or nonsense.
    fn some_window(&self, peer: PeerId, index: &Index) -> u64 {
        let held = self.held.iter().filter(|((p, _), _)| *p == peer);
        let mut all: Vec<u64> = held.map(|(_, held)| held.window).collect();
        all.push(0);
        let mut given = self.given.iter().filter(|(p, _)| *p == peer);
        all.extend(given.next_back().map(|(_, number)| *number));
        *index.get(&all)
    }

    /// Sends a batch whose first wrong entry is to be this one, for this reason. Returns
    /// whether none was wrong.
    fn batch(
        &mut self,
        peer: PeerId,
        request: Request,
        entries: usize,
        wrong: Option<(usize, Status)>,
    ) -> bool {
        let (entry, status) = wrong.unwrap_or((entries, Status::Ok));
        let entry = u32::try_from(entry).unwrap();
        let answer = self.now(peer, request);
        assert_eq!(answer, Ok(Response::Batch { status, entry }));
        wrong.is_none()
    }

    fn unmap(&mut self, peer: PeerId, windows: Vec<u64>) -> bool {
        let mut left: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
        for ((p, handle), held) in &self.held {
            if *p == peer {
                left.insert(held.window, (*handle, held.maps));
            }
        }
        let mut ended = Vec::new();
        let mut wrong = None;
        for (entry, window) in windows.iter().enumerate() {
            match left.get_mut(window) {
                Some((handle, maps)) if *maps > 0 => {
                    *maps -= 1;
                    ended.push(*handle);
                }
                _ => {
                    wrong = Some((entry, Status::NotFound));
                    break;
                }
            }
        }
        let entries = windows.len();
        let done = self.batch(peer, Request::Unmap { windows }, entries, wrong);
        for handle in ended.into_iter().filter(|_| done) {
            self.release(peer, handle);
        }
        done
    }

    fn detach(&mut self, peer: PeerId, handles: Vec<u64>) -> bool {
        let wrong = handles.iter().enumerate().find_map(|(entry, handle)| {
            let key = (peer, *handle);
            let waits = self.maps.iter().any(|((p, _), h)| (*p, *h) == key);
            if !self.attachments.contains_key(&key) {
                Some((entry, Status::NotFound))
            } else if waits || self.held.contains_key(&key) {
                Some((entry, Status::Busy))
            } else if handles[..entry].contains(handle) {
                Some((entry, Status::NotFound))
            } else {
                None
            }
        });
        let request = Request::Detach {
            handles: handles.clone(),
        };
        let done = self.batch(peer, request, handles.len(), wrong);
        if done {
            for handle in handles {
                assert!(self.attachments.remove(&(peer, handle)).is_some());
                self.frames.detach((peer, handle));
            }
        }
        done
    }

    fn push(&mut self, peer: PeerId, frames: Vec<Push>) {
        let wrong = self.wrong_push(peer, &frames);
        let entries = frames.len();
        let answer = self.now(
            peer,
            Request::Push {
                frames: frames.clone(),
            },
        );
        let Ok(Response::Pushed {
            status,
            entry,
            frame,
        }) = answer
        else {
            panic!("{answer:?}");
        };
        let (at, wanted) = wrong.unwrap_or((entries, Status::Ok));
        assert_eq!((status, entry as usize), (wanted, at));
        if status == Status::Ok {
            for (number, pushed) in (frame..).zip(&frames) {
                assert!(self.given.insert((peer, number)), "{number} again");
                let stream = |id| self.exports[&id].stream;
                let own = stream(pushed.buffers[0]);
                self.frames
                    .push(peer, number, pushed, |id| stream(id) == own);
            }
        }
    }

    /// The first frame that is wrong, and why.
    fn wrong_push(&self, peer: PeerId, frames: &[Push]) -> Option<(usize, Status)> {
        let mut named = BTreeSet::new();
        for (entry, frame) in frames.iter().enumerate() {
            for id in &frame.buffers {
                let own = self.exports.get(id).is_some_and(|one| one.owner == peer);
                let status = match self.listed(*id) {
                    Some(_) if own && self.exports[id].is_stream() => Status::BadField,
                    Some(_) if own && self.exports[id].revoked => Status::Revoked,
                    Some(_) if own && named.insert(*id) => self.frames.busy(peer, *id, false),
                    Some(_) if own => Status::Busy,
                    _ => Status::NotFound,
                };
                if status != Status::Ok {
                    return Some((entry, status));
                }
            }
            if self.frames.busy(peer, frame.buffers[0], true) != Status::Ok {
                return Some((entry, Status::Busy));
            }
        }
        None
    }

    fn give_back(&mut self, peer: PeerId, frames: Vec<(u64, u64)>) {
        let wrong = frames.iter().enumerate().find_map(|(entry, frame)| {
            let holder = (peer, frame.0);
            if !self.attachments.contains_key(&holder) {
                Some((entry, Status::NotFound))
            } else if self.frames.held(holder) != Some(frame.1) || frames[..entry].contains(frame) {
                Some((entry, Status::Unbalanced))
            } else {
                None
            }
        });
        let request = Request::Return {
            frames: frames.clone(),
        };
        if self.batch(peer, request, frames.len(), wrong) {
            for (handle, _) in frames {
                self.frames.release((peer, handle));
            }
        }
    }

    /// To whom a peer may export.
    fn allowed(&self, peer: PeerId) -> Result<BTreeMap<PeerId, Rights>, Status> {
        let importers = self.policy.iter().filter(|((p, _), _)| *p == peer);
        let granted: BTreeMap<PeerId, Rights> =
            importers.map(|((_, to), rights)| (*to, *rights)).collect();
        if granted.is_empty() {
            Err(Status::Denied)
        } else {
            Ok(granted)
        }
    }

    /// Exports a buffer, or a stream of no pieces, which is then granted so, or refused.
    fn export(
        &mut self,
        peer: PeerId,
        list: &[(u64, u64)],
        stream: BufferId,
        name: Name,
        granted: Result<BTreeMap<PeerId, Rights>, Status>,
    ) {
        let buffers = self.host.broker.snapshot().buffers;
        let own = buffers
            .iter()
            .filter(|b| b.owner == ["a", "b", "c"][peer.0 as usize - 1]);
        let live = own.count();
        let Request::Export(mut request) = export(list) else {
            unreachable!()
        };
        (request.stream, request.meta.name) = (stream, name);
        match (self.now(peer, Request::Export(request)), granted) {
            (Ok(Response::Exported { id, .. }), Ok(granted)) => {
                self.exports.insert(
                    id,
                    Export {
                        owner: peer,
                        list: list.to_vec(),
                        stream,
                        name,
                        epoch: 0,
                        seq: 1,
                        granted,
                        revoked: false,
                        quiesced: false,
                    },
                );
            }
            (Err(Status::TooMany), Ok(_)) => {
                let ended = self.ended.get(&peer).copied().unwrap_or_default();
                assert!(live == 8 || ended >= 8, "{live} live, {ended} ended");
            }
            (Err(status), Err(expected)) => assert_eq!(status, expected),
            other => panic!("{other:?}"),
        }
    }

    /// Sets the metadata of a buffer or a stream, which all then have who may.
    fn set_meta(&mut self, peer: PeerId, id: BufferId, name: Name, epoch: u64) {
        let export = &self.exports[&id];
        let wanted = match self.listed(id) {
            Some(_) if export.owner != peer => Err(Status::NotFound),
            None => Err(Status::NotFound),
            Some(_) if export.is_stream() && export.name != name => Err(Status::BadMeta),
            Some(_) if !export.is_stream() && epoch != 0 => Err(Status::BadMeta),
            Some(buffer) if buffer.revoking => Err(Status::Revoked),
            Some(_) => Ok(Response::MetaSet {
                seq: export.seq + 1,
            }),
        };
        let meta = Meta {
            name,
            stream: StreamState {
                epoch,
                ended: false,
            },
            ..Meta::default()
        };
        let request = Request::SetMeta {
            id,
            meta: Box::new(meta),
        };
        assert_eq!(self.now(peer, request), wanted);
        let export = self.exports.get_mut(&id).unwrap();
        if wanted.is_ok() {
            (export.name, export.epoch, export.seq) = (name, epoch, export.seq + 1);
        }
        let (name, epoch, seq) = (export.name, export.epoch, export.seq);
        let hidden = export.revoked || wanted.is_err();
        let importers = export.granted.keys().copied();
        for peer in importers.chain([export.owner]).collect::<Vec<_>>() {
            if self.stopped.contains(&peer) || self.left.contains(&peer) {
                continue;
            }
            match self.now(peer, Request::GetMeta { id }) {
                Ok(Response::Meta { seq: found, meta }) => {
                    assert_eq!((found, meta.name), (seq, name));
                    assert_eq!(meta.stream.epoch, epoch);
                }
                Err(Status::NotFound) => assert!(hidden, "{peer} has no metadata"),
                other => panic!("{other:?}"),
            }
        }
    }

    /// What an ATTACH for reading and writing is to be answered, unless there are too many.
    fn attach_status(&self, peer: PeerId, id: BufferId, ways: Ways, most: u32) -> Status {
        let export = &self.exports[&id];
        let granted = export.granted.get(&peer);
        let way = match (export.is_stream(), self.udmabuf) {
            (true, _) => Way::None,
            (false, true) => Way::Udmabuf,
            (false, false) => Way::Direct,
        };
        let most = if most == 0 { u32::MAX } else { most };
        let pieces = u32::try_from(export.list.len()).unwrap();
        if export.owner == peer {
            // It sees its own until that is gone.
            match self.host.broker.owned(peer, id) {
                Some(_) => Status::Denied,
                None => Status::NotFound,
            }
        } else if export.revoked || granted.is_none() {
            Status::NotFound
        } else if granted != Some(&Rights::RW) {
            Status::Denied
        } else if !ways.accept(way) {
            Status::NoWay
        } else if export.is_stream() {
            Status::Ok
        } else if !self.udmabuf && pieces > self.max_windows.min(most) {
            Status::TooFragmented
        } else {
            Status::Ok
        }
    }

    /// The policy is another one: what grants more than that is revoked, nothing else.
    fn set_policy(&mut self, policy: Policy, done: bool) {
        let line = |(&(exporter, importer), &rights): (&(PeerId, PeerId), &Rights)| Allow {
            exporter,
            importer,
            rights,
        };
        let lines: Vec<Allow> = policy.iter().map(line).collect();
        let (owners, effects) = self.host.broker.set_policy(&lines).unwrap();
        self.host.take(effects);
        let too_much = |export: &Export| {
            export.granted.iter().any(|(peer, granted)| {
                let allowed = policy.get(&(export.owner, *peer));
                !allowed.is_some_and(|allowed| allowed.contains(*granted))
            })
        };
        let lost = self
            .exports
            .iter()
            .filter(|(_, e)| !e.revoked && too_much(e));
        let lost: Vec<(BufferId, PeerId)> = lost.map(|(id, e)| (*id, e.owner)).collect();
        for (id, owner) in lost {
            assert!(owners.contains(&owner), "nobody goes on with {owner}");
            *self.ended.entry(owner).or_default() += 1;
            self.revoke(id);
        }
        if done {
            for owner in owners {
                while !self.host.revoke_next(owner) {}
            }
        }
        self.policy = policy;
    }

    fn revoke_of(&mut self, owner: PeerId) {
        let gone: BTreeSet<BufferId> = self
            .exports
            .iter()
            .filter(|(_, e)| e.owner == owner && !e.revoked)
            .map(|(id, _)| *id)
            .collect();
        *self.ended.entry(owner).or_default() += gone.len();
        for export in self.exports.values_mut().filter(|e| e.owner == owner) {
            export.quiesced = false;
        }
        for id in gone {
            self.revoke(id);
        }
    }

    fn revoke(&mut self, id: BufferId) {
        if let Some(export) = self.exports.get_mut(&id) {
            export.revoked = true;
        }
        for attachment in self.attachments.values_mut().filter(|a| a.buffer == id) {
            attachment.revoked = true;
        }
    }

    fn forget_driver(&mut self, peer: PeerId) {
        self.revoke_of(peer);
        self.attachments.retain(|(p, _), _| *p != peer);
        self.frames.forget(peer);
        self.maps.retain(|(p, _), _| *p != peer);
        self.held.retain(|(p, _), _| *p != peer);
        self.unexports.retain(|(p, _), _| *p != peer);
        self.flushes.retain(|(p, _)| *p != peer);
        self.ended.remove(&peer);
        self.host.unanswered.retain(|(p, _)| *p != peer);
    }

    fn deadline(&mut self) {
        if let Some(deadline) = self.host.deadlines.pop_front() {
            let effects = self.host.broker.deadline(deadline);
            self.host.take(effects);
        }
    }

    fn apply(&mut self, op: Op) {
        self.asks(&op);
        match op {
            Op::Export(p, page, pieces) => {
                let peer = PeerId(p.into());
                let pages = 60 / pieces;
                let list: Vec<(u64, u64)> = (0..pieces)
                    .map(|i| (RAM + (page + i * 100) * PAGE, pages))
                    .collect();
                let allowed = self.allowed(peer);
                self.export(peer, &list, BufferId::ZERO, Name::EMPTY, allowed);
            }
            Op::Create(p, name) => {
                let peer = PeerId(p.into());
                let name = Name::new(NAMES[name]).unwrap();
                let taken = self.exports.iter().any(|(id, export)| {
                    let same = export.is_stream() && export.name == name;
                    same && self.host.broker.owned(peer, *id).is_some()
                });
                let granted = if taken {
                    Err(Status::Exists)
                } else {
                    self.allowed(peer)
                };
                self.export(peer, &[], BufferId::ZERO, name, granted);
            }
            Op::Part(p, index) => {
                let peer = PeerId(p.into());
                let Some(stream) = self.some_buffer(&index) else {
                    return;
                };
                let of = &self.exports[&stream];
                let granted = if self.host.broker.owned(peer, stream).is_none() {
                    Err(Status::NotFound)
                } else if !of.is_stream() {
                    Err(Status::BadField)
                } else if of.revoked {
                    Err(Status::Revoked)
                } else {
                    Ok(of.granted.clone())
                };
                self.export(peer, &[(RAM, 1)], stream, Name::EMPTY, granted);
            }
            Op::Unexport(p, index, quiesced) => {
                let peer = PeerId(p.into());
                let Some(id) = self.some_buffer(&index) else {
                    return;
                };
                let token = self.host.send(peer, Request::Unexport { id, quiesced });
                let export = &self.exports[&id];
                if export.owner != peer {
                    let answer = self.host.answer(peer, token);
                    assert_eq!(answer, Some(&Err(Status::NotFound)));
                } else if export.revoked {
                    match self.host.answer(peer, token) {
                        Some(Err(Status::NotFound | Status::Busy)) => {}
                        // The policy has it revoked, and that step is yet to come.
                        Some(Err(Status::BadField)) => assert!(quiesced && !export.quiesced),
                        // At once: a driver of before has left without the answer.
                        None | Some(Ok(Response::Done)) => {
                            assert!(self.unexports.insert((peer, token), id).is_none());
                        }
                        other => panic!("{other:?}"),
                    }
                } else if quiesced && !export.quiesced {
                    let answer = self.host.answer(peer, token);
                    assert_eq!(answer, Some(&Err(Status::BadField)));
                } else {
                    self.revoke(id);
                    self.unexports.insert((peer, token), id);
                }
            }
            Op::SetMeta(p, index, name, epoch) => {
                let peer = PeerId(p.into());
                if let Some(id) = self.some_buffer(&index) {
                    self.set_meta(peer, id, Name::new(NAMES[name]).unwrap(), epoch);
                }
            }
            Op::Quiesce(p, index, quiesced) => {
                let peer = PeerId(p.into());
                let Some(id) = self.some_buffer(&index) else {
                    return;
                };
                let there = self.listed(id).is_some();
                let answer = self.now(peer, quiesce(id, quiesced));
                let export = self.exports.get_mut(&id).unwrap();
                if export.owner == peer && there {
                    assert_eq!(answer, Ok(Response::Done));
                    export.quiesced = quiesced;
                } else {
                    assert_eq!(answer, Err(Status::NotFound));
                }
            }
            Op::Attach(p, index, ways, max_windows, consumer) => {
                let peer = PeerId(p.into());
                let Some(id) = self.some_buffer(&index) else {
                    return;
                };
                let held = self.attachments.keys().filter(|k| k.0 == peer).count();
                let rights = Rights::RW;
                let is_stream = self.exports[&id].is_stream();
                let expected = match self.attach_status(peer, id, ways, max_windows) {
                    Status::Ok if consumer && is_stream => Status::BadField,
                    Status::Ok if consumer && self.frames.consumers(peer, id) >= 4 => {
                        Status::TooMany
                    }
                    status => status,
                };
                let attach = Attach {
                    ways,
                    max_windows,
                    consumer,
                    ..Attach::new(id, rights)
                };
                match self.now(peer, Request::Attach(attach)) {
                    Ok(Response::Attached { handle, size, .. }) => {
                        assert_eq!(expected, Status::Ok);
                        let pages = self.exports[&id].pages();
                        assert_eq!(size, pages * PAGE);
                        let new = Attachment {
                            buffer: id,
                            pages,
                            revoked: false,
                        };
                        assert!(self.attachments.insert((peer, handle), new).is_none());
                        assert!(self.given.insert((peer, handle)), "{handle} again");
                        if consumer {
                            self.frames.attach(peer, handle, id);
                        }
                    }
                    Err(Status::TooMany) => {
                        let full = expected == Status::Ok && held == 12;
                        assert!(full || expected == Status::TooMany, "{expected:?}, {held}");
                    }
                    Err(status) => assert_eq!(status, expected),
                    other => panic!("{other:?}"),
                }
            }
            Op::Detach(p, indexes) => {
                let peer = PeerId(p.into());
                let handles = indexes.iter().map(|index| self.some_handle(peer, index));
                self.detach(peer, handles.collect());
            }
            Op::Map(p, index) => {
                let peer = PeerId(p.into());
                let handle = self.some_handle(peer, &index);
                let attachment = self.attachments.get(&(peer, handle));
                let pages = attachment.map_or(1, |a| a.pages);
                let revoked = attachment.map(|a| a.revoked);
                let token = self.host.send(peer, map(handle, pages));
                match (revoked, self.host.answer(peer, token)) {
                    (None, answer) => assert_eq!(answer, Some(&Err(Status::NotFound))),
                    (Some(true), answer) => assert_eq!(answer, Some(&Err(Status::Revoked))),
                    (_, answer) if pages == 0 => assert_eq!(answer, Some(&Err(Status::BadField))),
                    (Some(false), _) => {
                        self.maps.insert((peer, token), handle);
                    }
                }
            }
            Op::Unmap(p, indexes) => {
                let peer = PeerId(p.into());
                let windows = indexes.iter().map(|index| self.some_window(peer, index));
                self.unmap(peer, windows.collect());
            }
            Op::Push(p, frames, max_held) => {
                let peer = PeerId(p.into());
                let frames = frames.iter().map(|buffers| Push {
                    buffers: buffers
                        .iter()
                        .map(|index| self.some_own_buffer(peer, index))
                        .collect(),
                    max_held,
                    ..Push::default()
                });
                let frames = frames.collect();
                self.push(peer, frames);
            }
            Op::Return(p, indexes) => {
                let peer = PeerId(p.into());
                let frames = indexes.iter().map(|index| self.some_frame(peer, index));
                let frames = frames.collect();
                self.give_back(peer, frames);
            }
            Op::Serve(p, n) => {
                for _ in 0..n {
                    self.host.serve(PeerId(p.into()));
                }
            }
            Op::Deadline => self.deadline(),
            Op::Reset(p, dropped) => {
                let peer = PeerId(p.into());
                self.forget_driver(peer);
                let mut effects = Vec::new();
                if dropped {
                    self.host.vmms.insert(peer, Vmm::default());
                    effects = self.host.broker.windows_gone(peer);
                }
                effects.extend(self.host.broker.peer_reset(peer));
                self.host.take(effects);
                if dropped {
                    let vmm = &self.host.vmms[&peer];
                    assert_eq!(vmm.requests, [], "about windows that are gone");
                }
                self.up(peer);
            }
            Op::Pause(p, deadline, unproved) => {
                let peer = PeerId(p.into());
                self.revoke_of(peer);
                self.host.stop(peer);
                if deadline {
                    self.deadline();
                }
                if unproved {
                    self.host.broker.stop_unproved(peer);
                }
                self.up(peer);
            }
            Op::Stop(p) => {
                let peer = PeerId(p.into());
                self.revoke_of(peer);
                let effects = self.host.broker.peer_stopped(peer);
                self.host.take(effects);
                self.stopped.insert(peer);
            }
            Op::RevokeNext(p) => {
                let peer = PeerId(p.into());
                if self.host.revoke_next(peer) && self.stopped.contains(&peer) {
                    let listed = self.host.broker.snapshot();
                    let name = ["a", "b", "c"][p as usize - 1];
                    let mut own = listed.buffers.iter().filter(|b| b.owner == name);
                    assert!(own.all(|b| b.revoking));
                }
            }
            Op::StopBoth(p, q) => {
                let (first, second) = (PeerId(p.into()), PeerId(q.into()));
                for peer in [first, second] {
                    self.revoke_of(peer);
                    self.host.stop(peer);
                }
                let (_, effects) = self.host.broker.revoke_from_stopped(second);
                self.host.take(effects);
                self.host.settle();
                let vmm = &self.host.vmms[&first];
                assert!(!vmm.shows(second) || first == second);
                self.check();
                for peer in [first, second] {
                    self.up(peer);
                }
            }
            Op::Leave(p) => {
                let peer = PeerId(p.into());
                self.revoke_of(peer);
                self.frames.leave(peer);
                let effects = self.host.broker.peer_leaves(peer);
                self.host.take(effects);
                self.stopped.insert(peer);
                self.left.insert(peer);
            }
            Op::Reconnect(p) => self.reconnect(PeerId(p.into())),
            Op::RefuseMaps(p, asked) => {
                if let Some(vmm) = self.host.vmms.get_mut(&PeerId(p.into())) {
                    vmm.no_map = asked.map(|asked| match asked {
                        true => Outcome::Refused,
                        false => Outcome::HostError,
                    });
                }
            }
            Op::Proves(p, proves) => {
                if let Some(vmm) = self.host.vmms.get_mut(&PeerId(p.into())) {
                    vmm.proves = proves;
                }
            }
            Op::Events(p) => {
                let peer = PeerId(p.into());
                let events = self.host.events(peer);
                self.frames.heard(peer, &events);
                self.ended.remove(&peer);
            }
            Op::Flush(p) => {
                let peer = PeerId(p.into());
                let token = self.host.send(peer, Request::Flush);
                self.flushes.insert((peer, token));
            }
            Op::Restore => self.host.restore(),
            Op::Policy(policy, done) => self.set_policy(policy, done),
        }
        self.check();
    }

    fn release(&mut self, peer: PeerId, handle: u64) {
        let held = self.held.get_mut(&(peer, handle)).expect("mapped before");
        held.maps -= 1;
        if held.maps == 0 {
            self.held.remove(&(peer, handle));
        }
    }

    /// Takes the answers to MAP.
    fn take_maps(&mut self) {
        let host = &self.host;
        let held = &mut self.held;
        let attachments = &self.attachments;
        let given = &mut self.given;
        self.maps.retain(|key, handle| {
            let Some(answer) = host.replies.get(key) else {
                return true;
            };
            if let &Ok(Response::Mapped {
                window, shm_offset, ..
            }) = answer
            {
                let place = (key.0, *handle);
                let one = held.entry(place).or_insert_with(|| {
                    assert!(given.insert((key.0, window)), "{window} again");
                    Held {
                        buffer: attachments[&place].buffer,
                        window,
                        offset: shm_offset,
                        maps: 0,
                    }
                });
                assert_eq!(one.offset, shm_offset, "one buffer at two places");
                assert_eq!(one.window, window, "two numbers of one mapping");
                one.maps += 1;
            }
            false
        });
    }

    /// Whoever has something mapped finds that, zero pages or nothing there.
    fn check_places(&self) {
        for ((peer, handle), held) in &self.held {
            let export = &self.exports[&held.buffer];
            let mut pieces = Vec::new();
            let mut end = held.offset;
            for (addr, pages) in &export.list {
                pieces.push((end, *addr, pages * PAGE));
                end += pages * PAGE;
            }
            if self.udmabuf {
                // One file of all of them.
                pieces = vec![(held.offset, export.list[0].0, end - held.offset)];
            }
            for (at, shown) in &self.host.vmms[peer].mappings {
                if at + shown.len <= held.offset || end <= *at || shown.owner == NOBODY {
                    continue;
                }
                let piece = (*at, shown.addr, shown.len);
                assert!(
                    shown.owner == export.owner && pieces.contains(&piece),
                    "{peer} has {handle} mapped, and finds {shown:?} there"
                );
            }
        }
    }

    fn check(&mut self) {
        self.take_maps();
        self.check_places();
        // What has no answer waits for one, and nothing else does.
        for peer in [A, B, C] {
            let open = self.host.unanswered.iter().filter(|(p, _)| *p == peer);
            assert_eq!(self.host.broker.unanswered(peer), open.count());
        }
        let mut offered = BTreeSet::new();
        for buffer in self.host.broker.snapshot().buffers {
            let export = self
                .exports
                .iter()
                .find(|(id, _)| id.to_string() == buffer.id);
            let (id, export) = export.unwrap();
            assert_eq!(buffer.quiesced, export.quiesced, "{}", buffer.id);
            if !buffer.revoking {
                offered.insert(*id);
            }
        }
        self.frames.revoke_but(&offered);
        // An export whose end was answered is mapped nowhere.
        let done: Vec<(PeerId, Token)> = self
            .unexports
            .keys()
            .filter(|key| self.host.replies.contains_key(key))
            .copied()
            .collect();
        for key in done {
            let id = self.unexports.remove(&key).unwrap();
            assert_eq!(self.host.replies[&key], Ok(Response::Done));
            let listed = self.host.broker.snapshot();
            assert!(listed.buffers.iter().all(|b| b.id != id.to_string()));
        }
        // A peer that is not exposed is mapped nowhere, whatever lags behind.
        for peer in [A, B, C] {
            if !self.host.broker.exposed(peer) {
                for (other, vmm) in &self.host.vmms {
                    assert!(!vmm.shows(peer), "{peer} is still shown to {other}");
                }
            }
        }
    }

    /// What the operator sees of a buffer, if it is there.
    fn listed(&self, id: BufferId) -> Option<queries::BufferSnapshot> {
        let all = self.host.broker.snapshot().buffers;
        all.into_iter().find(|b| b.id == id.to_string())
    }

    /// Ends everything and sees that nothing is left.
    fn finish(mut self) {
        for vmm in self.host.vmms.values_mut() {
            vmm.no_map = None;
        }
        for peer in self.stopped.clone() {
            self.up(peer);
        }
        self.host.settle();
        self.take_maps();
        assert!(self.maps.is_empty(), "no answer to {:?}", self.maps);
        for key in &self.flushes {
            let answer = self.host.replies.get(key);
            assert_eq!(answer, Some(&Ok(Response::Done)), "of a FLUSH");
        }
        let handles: Vec<(PeerId, u64)> = self.attachments.keys().copied().collect();
        for (peer, handle) in handles {
            while let Some(held) = self.held.get(&(peer, handle)) {
                let window = held.window;
                assert!(self.unmap(peer, vec![window]));
            }
            assert!(self.detach(peer, vec![handle]));
        }
        assert!(self.frames.is_idle(), "a frame that nobody can return");
        let ids: Vec<(BufferId, PeerId)> =
            self.exports.iter().map(|(id, e)| (*id, e.owner)).collect();
        for (id, owner) in ids {
            self.host.send(owner, unexport_request(id));
        }
        self.host.settle();
        let snapshot = self.host.broker.snapshot();
        assert_eq!(snapshot.buffers, []);
        for peer in &snapshot.peers {
            assert_eq!((peer.windows, peer.attachments), (0, 0), "{}", peer.name);
            assert_eq!(peer.vmm_requests_outstanding, 0);
        }
        for vmm in self.host.vmms.values() {
            let left = vmm.mappings.len();
            assert!(left == 0, "{left} mappings are left");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_history_keeps_the_promises(
        ops in prop::collection::vec(op(), 1..120),
        max_windows in 2u32..8,
        udmabuf in prop::bool::weighted(0.25),
    ) {
        let mut model = Model::new(max_windows, udmabuf);
        for op in ops {
            model.apply(op);
        }
        model.finish();
    }

    #[test]
    fn any_history_of_frames_keeps_the_promises(
        ops in prop::collection::vec(frame_op(), 1..120),
    ) {
        let mut model = Model::new(4, false);
        for op in ops {
            model.apply(op);
        }
        model.finish();
    }
}
