// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A consumer and a host that is none

#![allow(
    clippy::arithmetic_side_effects,
    reason = "a test that overflows fails"
)]

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;
use crate::{
    DmaBuf, FrameImport, Import, Name, Operation, Plane, Properties, PushedFrame, Rect, Rights,
    Status, Way,
};

const NOW: Option<Duration> = Some(Duration::ZERO);
const SIZE: u64 = 4096;
const PEER: u64 = 2;

/// What it answers, and what it was asked for.
struct Host {
    changes: VecDeque<Change>,
    metas: RefCell<BTreeMap<BufferId, (u64, Meta)>>,
    /// Refused, by join and consume.
    refused: BTreeMap<BufferId, Status>,
    /// Without a status, by all requests.
    failing: Option<Errno>,
    /// Not when it is asked about those.
    queries: Vec<BufferId>,
    /// Those imports are gone.
    gone: RefCell<Vec<BufferId>>,
    silent: Cell<bool>,
    /// Likewise when it is asked for metadata.
    silent_of_meta: Cell<bool>,
    asked: RefCell<Vec<String>>,
    handles: u32,
    /// That each import takes.
    windows: u32,
    now: Cell<Instant>,
    device: Arc<OwnedFd>,
    /// As many as there can be.
    joins: usize,
}

fn id(n: u8) -> BufferId {
    BufferId([n; 16])
}

fn null() -> Arc<OwnedFd> {
    Arc::new(std::fs::File::open("/dev/null").unwrap().into())
}

impl Default for Host {
    fn default() -> Self {
        Self {
            changes: VecDeque::new(),
            metas: RefCell::default(),
            refused: BTreeMap::new(),
            failing: None,
            queries: Vec::new(),
            gone: RefCell::default(),
            silent: Cell::new(false),
            silent_of_meta: Cell::new(false),
            asked: RefCell::default(),
            handles: 0,
            windows: 1,
            now: Cell::new(Instant::now()),
            device: null(),
            joins: 2,
        }
    }
}

fn too_fragmented() -> Error {
    let status = Status::TooFragmented.number();
    Error::of_host(Operation::Consume, Errno::NOSPC.into(), status)
}

impl Host {
    fn answer(&self, what: String, id: BufferId) -> Result<()> {
        if self.silent.replace(false) {
            return Err(Error::new(Operation::Join, Errno::TIMEDOUT));
        }
        self.asked.borrow_mut().push(what);
        if let Some(errno) = self.failing {
            return Err(Error::new(Operation::Join, errno));
        }
        match self.refused.get(&id) {
            None => Ok(()),
            Some(status) => {
                let errno = Errno::ACCESS.into();
                Err(Error::of_host(Operation::Join, errno, status.number()))
            }
        }
    }

    fn offer(&mut self, buffer: BufferInfo) {
        let event = None;
        self.changes.push_back(Change::Offered { buffer, event });
    }

    fn revoke(&mut self, buffer: BufferInfo) {
        let event = None;
        self.changes.push_back(Change::Revoked { buffer, event });
    }

    /// That its record of this number is there.
    fn change_record(&mut self, n: u8, meta_seq: u64) {
        let buffer = BufferInfo {
            meta_seq,
            ..stream(n)
        };
        let event = None;
        self.changes.push_back(Change::Metadata { buffer, event });
    }

    fn event(&mut self, event: Event) {
        self.changes.push_back(Change::Other(event));
    }

    /// A frame of the buffers, given by the handle.
    fn push(&mut self, handle: u64, buffers: &[u8], frame: PushedFrame) {
        let others = buffers[1..].iter().map(|n| id(*n)).collect();
        self.event(Event {
            id: id(buffers[0]),
            handle,
            value: 40,
            frame: Some(Box::new(PushedFrame { others, ..frame })),
            ..Event::new(EventKind::Pushed)
        });
    }

    fn set_image(&self, n: u8, seq: u64, rows: u32) {
        let image = Image::new(1, 16, rows).plane(Plane::new(0, 64, rows));
        let meta = Meta::new().image(image);
        self.metas.borrow_mut().insert(id(n), (seq, meta));
    }

    /// So many seconds in which nothing is to be said.
    fn wait(&mut self, following: &mut Following, seconds: u64) {
        let end = self.now.get() + Duration::from_secs(seconds);
        while self.now.get() < end {
            // As many calls as a loop that wakes up too often makes.
            self.now.set(self.now.get() + Duration::from_millis(500));
            assert_eq!(events(following, self), [""; 0]);
        }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.borrow_mut())
    }
}

impl Source for Host {
    fn now(&self) -> Instant {
        self.now.get()
    }

    /// Time passes by waits alone.
    fn next_change(&mut self, timeout: Option<Duration>) -> Result<Option<Change>> {
        let change = self.changes.pop_front();
        if change.is_none() {
            self.now.set(self.now.get() + timeout.unwrap());
        }
        Ok(change)
    }

    fn query(&self, id: BufferId) -> Result<BufferInfo> {
        if !self.queries.contains(&id) {
            self.answer(format!("query {}", id.0[0]), id)?;
        }
        Ok(BufferInfo { id, ..part(0, 1) })
    }

    fn join(&self, id: BufferId) -> Result<Joined> {
        self.answer(format!("join {}", id.0[0]), id)?;
        // Each holds the device.
        if Arc::strong_count(&self.device) > self.joins {
            return Err(Error::new(Operation::Join, Errno::MFILE));
        }
        Ok(Joined::of_handle(Arc::clone(&self.device), 1, id, PEER))
    }

    fn get_meta(&self, id: BufferId) -> Result<(u64, Meta)> {
        self.silent
            .set(self.silent.get() || self.silent_of_meta.take());
        self.answer(format!("meta {}", id.0[0]), id)?;
        let meta = self.metas.borrow().get(&id).cloned();
        Ok(meta.unwrap_or((1, Meta::new())))
    }

    fn consume(&mut self, buffer: &BufferInfo, max_windows: u32) -> Result<Part> {
        self.answer(format!("consume {}", buffer.id.0[0]), buffer.id)?;
        if self.windows > max_windows {
            return Err(too_fragmented());
        }
        self.gone.borrow_mut().retain(|id| *id != buffer.id);
        self.handles += 1;
        let fd = memfd_create("part", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, SIZE).unwrap();
        let import = Import {
            buffer: DmaBuf::from_fd(fd).unwrap(),
            id: buffer.id,
            rights: Rights::RW,
            generation: 1,
            owner: PEER,
            way: Way::Direct,
            properties: Properties::default(),
            windows: self.windows,
        };
        let import = FrameImport::new(null(), self.handles, import);
        Ok(Part::new(import, Rights::READ))
    }

    fn is_revoked(&self, part: &Part) -> bool {
        self.gone.borrow().contains(&part.import.import().id)
    }

    fn return_frame(&self, part: &Part, frame: u64) -> Result<()> {
        let id = part.import.import().id;
        self.answer(format!("return {} {frame}", id.0[0]), id)
    }
}

fn stream(n: u8) -> BufferInfo {
    BufferInfo {
        id: id(n),
        owner: PEER,
        name: Name::new("camera").unwrap(),
        is_stream: true,
        ..BufferInfo::default()
    }
}

fn part(n: u8, of: u8) -> BufferInfo {
    BufferInfo {
        id: id(n),
        owner: PEER,
        size: SIZE,
        stream: Some(id(of)),
        ..BufferInfo::default()
    }
}

fn plain() -> PushedFrame {
    PushedFrame {
        others: Vec::new(),
        arrival: 5,
        meta_seq: 1,
        record: Default::default(),
    }
}

fn camera(rejoin: bool) -> Following {
    limited(&ConsumerOptions::new().rejoin(rejoin))
}

fn limited(options: &ConsumerOptions) -> Following {
    let name = Name::new("camera").unwrap();
    Following::new(Wanted::Named { peer: PEER, name }, options)
}

/// A host with stream 1 of the parts 2 and 3, which are consumed by handles 1 and 2.
fn joined() -> (Host, Following) {
    let (mut host, mut following) = (Host::default(), camera(false));
    host.offer(stream(1));
    host.offer(part(2, 1));
    host.offer(part(3, 1));
    assert_eq!(events(&mut following, &mut host), ["joined 1"]);
    host.asked();
    (host, following)
}

/// What there is, in short; frames are dropped, and nothing is said of calls that end early.
fn events(following: &mut Following, host: &mut Host) -> Vec<String> {
    let mut said = Vec::new();
    while let Some(event) = following.next(host, NOW).unwrap() {
        if !matches!(event, ConsumerEvent::Pending) {
            said.push(short(&event));
        }
    }
    said
}

/// How many calls end early before there is nothing.
fn pending(following: &mut Following, host: &mut Host) -> usize {
    let next = || following.next(host, NOW).unwrap();
    let early = |event| assert_eq!(short(&event), "pending");
    std::iter::from_fn(next).map(early).count()
}

fn short(event: &ConsumerEvent) -> String {
    match event {
        ConsumerEvent::Joined { stream, .. } => format!("joined {}", stream.id.0[0]),
        ConsumerEvent::Record { record } => format!("record {}", record.ended),
        ConsumerEvent::Frame(frame) => {
            let imports = frame.imports().map(|import| import.id.0[0]);
            let imports: Vec<_> = imports.collect();
            format!("frame {} {imports:?}", frame.number())
        }
        ConsumerEvent::Rejected { frame, why, .. } => format!("rejected {frame} {why:?}"),
        ConsumerEvent::Revoked { buffer, frame } => format!("revoked {} {frame:?}", buffer.0[0]),
        ConsumerEvent::Refused { buffer, error } => {
            format!("refused {} {:?}", buffer.id.0[0], error.status)
        }
        ConsumerEvent::Over { stream } => format!("over {}", stream.0[0]),
        ConsumerEvent::Pending => "pending".to_owned(),
        ConsumerEvent::Other(event) => format!("other {}", event.kind),
    }
}

#[test]
fn the_record_is_read_before_the_buffers_whatever_came_first() {
    let (mut host, mut following) = (Host::default(), camera(false));
    host.offer(part(2, 1));
    host.offer(part(9, 8));
    host.offer(BufferInfo {
        owner: 7,
        ..stream(5)
    });
    host.offer(stream(1));
    host.offer(part(3, 1));
    assert_eq!(events(&mut following, &mut host), ["joined 1"]);
    let asked = [
        "join 1",
        "meta 1",
        "consume 2",
        "meta 2",
        "consume 3",
        "meta 3",
    ];
    assert_eq!(host.asked(), asked);
    assert_eq!(following.stream(), Some(id(1)));
}

#[test]
fn a_stream_is_found_by_its_id_too() {
    let mut host = Host::default();
    let mut following = Following::new(Wanted::Id(id(6)), &ConsumerOptions::new());
    host.offer(stream(1));
    host.offer(stream(6));
    host.offer(stream(7));
    assert_eq!(events(&mut following, &mut host), ["joined 6"]);
}

#[test]
fn a_frame_comes_with_its_buffers_and_asks_nothing_of_what_is_known() {
    let (mut host, mut following) = joined();
    host.push(1, &[2, 3], plain());
    host.push(2, &[3], plain());
    assert_eq!(
        events(&mut following, &mut host),
        ["frame 40 [2, 3]", "frame 40 [3]"]
    );
    assert_eq!(host.asked(), [""; 0]);
}

#[test]
fn a_buffer_of_a_frame_that_is_not_known_yet_is_asked_for() {
    let (mut host, mut following) = joined();
    host.push(1, &[2, 4], plain());
    assert_eq!(events(&mut following, &mut host), ["frame 40 [2, 4]"]);
    assert_eq!(host.asked(), ["query 4", "consume 4", "meta 4"]);
    // Its offer comes behind.
    host.offer(part(4, 1));
    assert_eq!(events(&mut following, &mut host), [""; 0]);
    assert_eq!(host.asked(), [""; 0]);

    host.refused.insert(id(5), Status::NotFound);
    host.push(1, &[2, 5], plain());
    let why = Rejection::Buffer(id(5));
    assert_eq!(
        events(&mut following, &mut host),
        [format!("rejected 40 {why:?}")]
    );
    assert_eq!(host.asked(), ["query 5", "return 2 40"]);
}

#[test]
fn the_frames_of_a_liar_are_returned_and_those_after_them_come() {
    let (mut host, mut following) = joined();
    // 65 rows of 64 bytes, and a page.
    host.set_image(2, 2, 65);
    let newer = PushedFrame {
        meta_seq: 2,
        ..plain()
    };
    host.push(1, &[2], newer.clone());
    let mut greedy = plain();
    greedy.record.bytes_used = [0, 1, 0, 0];
    host.push(2, &[3], greedy);
    assert_eq!(
        events(&mut following, &mut host),
        ["rejected 40 Image", "rejected 40 BytesUsed"]
    );
    assert_eq!(host.asked(), ["meta 2", "return 2 40", "return 3 40"]);

    host.set_image(2, 3, 64);
    let mut frame = PushedFrame {
        meta_seq: 3,
        ..newer
    };
    let crop = |x, width| Rect {
        x,
        width,
        height: 1,
        ..Rect::default()
    };
    for (rect, fits) in [
        (crop(0, 16), true),
        (crop(1, 16), false),
        (crop(-1, 2), false),
        (crop(i32::MAX, u32::MAX), false),
    ] {
        frame.record.crop = Some(rect);
        host.push(1, &[2], frame.clone());
        let wanted = if fits {
            "frame 40 [2]"
        } else {
            "rejected 40 Crop"
        };
        assert_eq!(events(&mut following, &mut host), [wanted], "{rect:?}");
    }
}

#[test]
fn the_format_of_the_stream_is_that_of_buffers_that_say_none() {
    let (mut host, mut following) = (Host::default(), camera(false));
    host.set_image(1, 1, 65);
    host.offer(stream(1));
    host.offer(part(2, 1));
    host.push(1, &[2], plain());
    assert_eq!(
        events(&mut following, &mut host),
        ["joined 1", "rejected 40 Image"]
    );
    host.set_image(1, 2, 64);
    host.change_record(1, 2);
    host.push(1, &[2], plain());
    assert_eq!(
        events(&mut following, &mut host),
        ["record false", "frame 40 [2]"]
    );
}

#[test]
fn a_record_of_a_newer_version_that_has_to_be_known_is_returned_as_it_is() {
    let (mut host, mut following) = joined();
    let mut newer = plain();
    newer.record = crate::FrameRecord::parse(&[0xff; 376]).unwrap();
    host.push(1, &[2], newer);
    assert_eq!(
        events(&mut following, &mut host),
        ["rejected 40 NotUnderstood"]
    );
    assert_eq!(host.asked(), ["return 2 40"]);
}

#[test]
fn a_revocation_says_which_frame_it_took_once() {
    let (mut host, mut following) = joined();
    host.push(1, &[2], plain());
    let Some(ConsumerEvent::Frame(frame)) = following.next(&mut host, NOW).unwrap() else {
        panic!("no frame");
    };
    assert!(!frame.is_revoked());
    host.revoke(part(2, 1));
    host.event(Event {
        id: id(2),
        ..Event::new(EventKind::Revoked)
    });
    host.revoke(part(3, 1));
    // What was pushed before is nothing any more.
    host.push(2, &[3], plain());
    assert_eq!(
        events(&mut following, &mut host),
        ["revoked 2 Some(40)", "other REVOKED", "revoked 3 None"]
    );
    assert!(frame.is_revoked());
}

#[test]
fn a_stream_that_is_over_is_followed_by_the_next_if_that_was_asked_for() {
    for rejoin in [false, true] {
        let (mut host, mut following) = (Host::default(), camera(rejoin));
        host.offer(stream(1));
        host.offer(part(2, 1));
        host.revoke(stream(1));
        host.revoke(part(2, 1));
        host.offer(stream(4));
        let mut wanted = vec!["joined 1", "over 1", "revoked 2 None"];
        wanted.extend(rejoin.then_some("joined 4"));
        assert_eq!(events(&mut following, &mut host), wanted);
    }
}

#[test]
fn a_stream_that_goes_before_it_is_joined_is_no_error() {
    let (mut host, mut following) = (Host::default(), camera(false));
    host.refused.insert(id(1), Status::NotFound);
    host.offer(stream(1));
    host.offer(stream(4));
    assert_eq!(events(&mut following, &mut host), ["joined 4"]);
}

#[test]
fn what_is_refused_is_said_and_not_tried_again_until_events_are_lost() {
    let (mut host, mut following) = (Host::default(), camera(false));
    host.refused.insert(id(2), Status::RoNotEnforced);
    host.offer(stream(1));
    host.offer(part(2, 1));
    host.offer(part(3, 1));
    assert_eq!(
        events(&mut following, &mut host),
        ["joined 1", "refused 2 Some(RoNotEnforced)"]
    );
    assert_eq!(following.consumed.len(), 1);
    host.asked();
    host.wait(&mut following, 3);
    assert_eq!(host.asked(), [""; 0]);
    // Nor for a frame.
    host.push(1, &[3, 2], plain());
    let why = Rejection::Buffer(id(2));
    let rejected = format!("rejected 40 {why:?}");
    assert_eq!(events(&mut following, &mut host), [rejected]);
    assert_eq!(host.asked(), ["return 3 40"]);

    host.event(Event::new(EventKind::Overflow));
    assert_eq!(events(&mut following, &mut host), ["other OVERFLOW"]);
    assert_eq!(host.asked(), ["join 1", "consume 2"]);
    host.refused.clear();
    host.event(Event::new(EventKind::Overflow));
    assert_eq!(events(&mut following, &mut host), ["other OVERFLOW"]);
    assert_eq!(following.consumed.len(), 2);
}

#[test]
fn a_stream_that_is_refused_is_tried_again_when_events_are_lost() {
    for rejoin in [false, true] {
        let (mut host, mut following) = (Host::default(), camera(rejoin));
        host.refused.insert(id(1), Status::Denied);
        host.offer(stream(1));
        assert_eq!(
            events(&mut following, &mut host),
            ["refused 1 Some(Denied)"]
        );
        host.asked();
        host.wait(&mut following, 3);
        assert_eq!(host.asked(), [""; 0]);
        host.event(Event::new(EventKind::Overflow));
        assert_eq!(events(&mut following, &mut host), ["other OVERFLOW"]);
        assert_eq!(host.asked(), ["join 1"]);
        host.refused.clear();
        host.event(Event::new(EventKind::Overflow));
        let wanted = ["other OVERFLOW", "joined 1"];
        assert_eq!(events(&mut following, &mut host), wanted);
        host.asked();
        host.event(Event::new(EventKind::Overflow));
        assert_eq!(events(&mut following, &mut host), ["other OVERFLOW"]);
        assert_eq!(host.asked(), ["join 1"]);
    }
}

#[test]
fn a_stream_that_was_refused_and_is_gone_is_not_tried_again() {
    let (mut host, mut following) = (Host::default(), camera(true));
    host.refused.insert(id(1), Status::TooMany);
    host.offer(stream(1));
    host.revoke(stream(1));
    assert_eq!(
        events(&mut following, &mut host),
        ["refused 1 Some(TooMany)"]
    );
    host.asked();
    host.wait(&mut following, 3);
    host.event(Event::new(EventKind::Overflow));
    assert_eq!(events(&mut following, &mut host), ["other OVERFLOW"]);
    host.wait(&mut following, 3);
    assert_eq!(host.asked(), [""; 0]);
}

#[test]
fn a_request_that_did_not_get_to_the_host_is_tried_again() {
    let (mut host, mut following) = (Host::default(), camera(false));
    host.failing = Some(Errno::IO);
    host.offer(stream(1));
    host.offer(part(2, 1));
    assert_eq!(events(&mut following, &mut host), ["refused 1 None"]);
    host.failing = None;
    host.now.set(host.now.get() + Duration::from_secs(1));
    assert_eq!(events(&mut following, &mut host), ["joined 1"]);
    assert_eq!(following.consumed.len(), 1);
}

#[test]
fn a_record_that_cannot_be_read_now_is_read_later() {
    let (mut host, mut following) = joined();
    host.set_image(1, 4, 64);
    host.refused.insert(id(1), Status::HostError);
    for seq in 2..5 {
        host.change_record(1, seq);
    }
    assert_eq!(
        events(&mut following, &mut host),
        ["refused 1 Some(HostError)"]
    );
    host.asked();
    host.wait(&mut following, 2);
    // Those of all that it missed are one.
    assert_eq!(host.asked(), ["meta 1"; 2]);
    host.refused.clear();
    host.failing = Some(Errno::NOMEM);
    host.event(Event::new(EventKind::Overflow));
    assert_eq!(events(&mut following, &mut host), ["other OVERFLOW"]);
    host.failing = None;
    host.now.set(host.now.get() + Duration::from_secs(3));
    assert_eq!(events(&mut following, &mut host), ["record false"]);
    assert!(following.refused.is_empty());
    host.asked();
    host.wait(&mut following, 3);
    assert_eq!(host.asked(), [""; 0]);
}

#[test]
fn a_record_that_could_not_be_read_is_none_of_the_next_stream() {
    let (mut host, mut following) = (Host::default(), camera(true));
    host.offer(stream(1));
    assert_eq!(events(&mut following, &mut host), ["joined 1"]);
    host.refused.insert(id(1), Status::HostError);
    host.change_record(1, 2);
    host.revoke(stream(1));
    host.offer(stream(4));
    assert_eq!(
        events(&mut following, &mut host),
        ["refused 1 Some(HostError)", "over 1", "joined 4"]
    );
    host.asked();
    host.wait(&mut following, 3);
    assert_eq!(host.asked(), [""; 0]);
}

#[test]
fn what_may_not_be_refused_later_is_tried_again_once_a_second() {
    let (mut host, mut following) = (Host::default(), camera(false));
    host.refused.insert(id(1), Status::TooMany);
    host.offer(stream(1));
    host.offer(part(2, 1));
    host.offer(part(3, 1));
    let refused = |n: u8| format!("refused {n} Some(TooMany)");
    assert_eq!(events(&mut following, &mut host), [refused(1)]);
    assert_eq!(events(&mut following, &mut host), [""; 0]);
    assert_eq!(host.asked(), ["join 1"]);
    host.wait(&mut following, 3);
    assert_eq!(host.asked(), ["join 1"; 3]);

    host.refused = [2, 3].map(|n| (id(n), Status::TooMany)).into();
    let event = following.next(&mut host, None).unwrap();
    assert_eq!(event.as_ref().map(short).as_deref(), Some("joined 1"));
    assert_eq!(events(&mut following, &mut host), [refused(2), refused(3)]);
    host.asked();
    // One of them at a time, and those that are gone not at all.
    host.wait(&mut following, 1);
    host.wait(&mut following, 1);
    assert_eq!(host.asked(), ["consume 2", "consume 3"]);
    host.revoke(part(2, 1));
    host.refused.clear();
    host.wait(&mut following, 2);
    assert_eq!(host.asked(), ["consume 3", "meta 3"]);
    host.push(1, &[3], plain());
    assert_eq!(events(&mut following, &mut host), ["frame 40 [3]"]);
}

#[test]
fn a_stream_that_cannot_be_joined_anew_is_tried_again() {
    let (mut host, mut following) = joined();
    host.refused.insert(id(1), Status::TooMany);
    host.event(Event::new(EventKind::Overflow));
    assert_eq!(
        events(&mut following, &mut host),
        ["other OVERFLOW", "refused 1 Some(TooMany)"]
    );
    host.refused.clear();
    host.wait(&mut following, 3);
    assert_eq!(host.asked(), ["join 1"; 2]);
}

#[test]
fn a_buffer_for_which_there_is_no_room_waits_for_it_and_asks_nobody() {
    let mut host = Host::default();
    let mut following = limited(&ConsumerOptions::new().max_windows(1));
    host.offer(stream(1));
    host.offer(part(2, 1));
    host.offer(part(3, 1));
    assert_eq!(
        events(&mut following, &mut host),
        ["joined 1", "refused 3 None"]
    );
    host.asked();
    host.wait(&mut following, 3);
    assert_eq!(host.asked(), [""; 0]);
    host.revoke(part(2, 1));
    assert_eq!(events(&mut following, &mut host), ["revoked 2 None"]);
    assert_eq!(host.asked(), ["consume 3", "meta 3"]);
}

#[test]
fn a_host_that_does_not_answer_is_asked_again_and_nothing_is_lost() {
    let (mut host, mut following) = (Host::default(), camera(false));
    host.offer(stream(1));
    host.offer(part(2, 1));
    host.push(
        1,
        &[2],
        PushedFrame {
            meta_seq: 2,
            ..plain()
        },
    );
    let mut said = Vec::new();
    // Each call is one answer late.
    loop {
        host.silent.set(true);
        let first = following.next(&mut host, NOW);
        host.silent.set(false);
        match first {
            Err(_) => {
                if let Some(event) = following.next(&mut host, NOW).unwrap() {
                    said.push(short(&event));
                }
            }
            Ok(Some(event)) => said.push(short(&event)),
            Ok(None) => break,
        }
    }
    assert_eq!(said, ["joined 1", "frame 40 [2]"]);
}

#[test]
fn after_lost_events_what_is_gone_is_reported_and_imported_again() {
    let (mut host, mut following) = joined();
    host.gone.borrow_mut().push(id(2));
    host.event(Event::new(EventKind::Overflow));
    assert_eq!(
        events(&mut following, &mut host),
        ["other OVERFLOW", "revoked 2 None"]
    );
    assert_eq!(host.asked(), ["join 1", "consume 2", "meta 2"]);
    // Its frames have another handle; one of the old handle was taken back.
    host.push(1, &[2], plain());
    host.push(3, &[2], plain());
    assert_eq!(events(&mut following, &mut host), ["frame 40 [2]"]);
}

#[test]
fn a_producer_of_many_buffers_takes_no_more_mappings_than_are_allowed() {
    let (mut host, mut following) = (Host::default(), camera(false));
    host.offer(stream(1));
    for n in 10..50 {
        host.offer(part(n, 1));
    }
    let mut wanted = vec!["joined 1".to_owned()];
    wanted.extend((42..50).map(|n| format!("refused {n} None")));
    assert_eq!(events(&mut following, &mut host), wanted);
    let asked = host.asked();
    assert_eq!(
        asked.iter().filter(|it| it.starts_with("consume")).count(),
        32
    );
}

#[test]
fn a_buffer_in_many_pieces_counts_as_many_buffers() {
    let mut host = Host {
        windows: 3,
        ..Host::default()
    };
    let mut following = limited(&ConsumerOptions::new().max_windows(7));
    host.offer(stream(1));
    for n in 2..5 {
        host.offer(part(n, 1));
    }
    assert_eq!(
        events(&mut following, &mut host),
        ["joined 1", "refused 4 None"]
    );
    host.asked();
    host.wait(&mut following, 3);
    assert_eq!(host.asked(), [""; 0]);
    host.revoke(part(2, 1));
    assert_eq!(events(&mut following, &mut host), ["revoked 2 None"]);
    assert_eq!(host.asked(), ["consume 4", "meta 4"]);
    // One that all would not be enough for is asked for until all is there.
    host.windows = 8;
    host.offer(part(5, 1));
    for n in [3, 4] {
        host.revoke(part(n, 1));
    }
    let wanted = ["refused 5 None", "revoked 3 None", "revoked 4 None"];
    assert_eq!(events(&mut following, &mut host), wanted);
    assert_eq!(host.asked(), ["consume 5"; 3]);
    host.wait(&mut following, 3);
    assert_eq!(host.asked(), [""; 0]);
}

#[test]
fn buffers_that_need_more_room_than_there_is_are_asked_for_when_it_grows_and_stop_nobody() {
    let mut host = Host::default();
    let mut following = limited(&ConsumerOptions::new().max_windows(4));
    host.offer(stream(1));
    for n in 2..5 {
        host.offer(part(n, 1));
    }
    assert_eq!(events(&mut following, &mut host), ["joined 1"]);
    host.windows = 3;
    for n in 5..7 {
        host.offer(part(n, 1));
    }
    assert_eq!(
        events(&mut following, &mut host),
        ["refused 5 None", "refused 6 None"]
    );
    host.asked();
    host.wait(&mut following, 3);
    assert_eq!(host.asked(), [""; 0]);
    host.revoke(part(2, 1));
    assert_eq!(events(&mut following, &mut host), ["revoked 2 None"]);
    // Each once a second, and once for this room.
    assert_eq!(host.asked(), ["consume 5"]);
    host.wait(&mut following, 5);
    assert_eq!(host.asked(), ["consume 6"]);
    // One that is refused for another reason comes meanwhile.
    host.windows = 1;
    host.refused.insert(id(7), Status::TooMany);
    host.offer(part(7, 1));
    assert_eq!(
        events(&mut following, &mut host),
        ["refused 7 Some(TooMany)"]
    );
    host.refused.clear();
    host.asked();
    host.wait(&mut following, 2);
    assert_eq!(host.asked(), ["consume 7", "meta 7"]);
    host.windows = 3;
    for n in [3, 4] {
        host.revoke(part(n, 1));
    }
    assert_eq!(
        events(&mut following, &mut host),
        ["revoked 3 None", "revoked 4 None"]
    );
    let consumed = |following: &Following| {
        let consumed = following.consumed.keys().map(|id| id.0[0]);
        consumed.collect::<Vec<_>>()
    };
    host.wait(&mut following, 2);
    assert_eq!(consumed(&following), [5, 7]);
    host.revoke(part(7, 1));
    host.revoke(part(5, 1));
    assert_eq!(
        events(&mut following, &mut host),
        ["revoked 7 None", "revoked 5 None"]
    );
    host.wait(&mut following, 2);
    assert_eq!(consumed(&following), [6]);
}

#[test]
fn a_linear_image_has_the_rows_and_bytes_that_it_says() {
    let linear = |height, planes: &[(u32, u32)]| {
        let planes = planes
            .iter()
            .map(|(stride, rows)| Plane::new(0, *stride, *rows));
        planes.fold(Image::new(1, 16, height), Image::plane)
    };
    for (image, fits) in [
        (linear(64, &[(64, 64)]), true),
        (linear(60, &[(64, 64), (32, 30)]), true),
        (linear(100_000, &[(0, 0)]), false),
        (linear(64, &[(0, 64)]), false),
        (linear(64, &[(64, 0)]), false),
        (linear(65, &[(64, 64)]), false),
        (linear(64, &[(64, 64), (0, 32)]), false),
        (linear(64, &[]), false),
        // A compressed picture, say.
        (linear(64, &[(0, 0)]).modifier(1), true),
    ] {
        let (mut host, mut following) = joined();
        let meta = Meta::new().image(image.clone());
        host.metas.borrow_mut().insert(id(2), (2, meta));
        let newer = PushedFrame {
            meta_seq: 2,
            ..plain()
        };
        host.push(1, &[2], newer);
        let wanted = match fits {
            true => "frame 40 [2]",
            false => "rejected 40 Image",
        };
        assert_eq!(events(&mut following, &mut host), [wanted], "{image:?}");
    }
}

#[test]
fn changes_of_which_nothing_comes_end_a_call_when_they_are_many() {
    let (mut host, mut following) = joined();
    for n in 0..200 {
        // Of another stream.
        host.offer(part(n, 250));
    }
    assert_eq!(pending(&mut following, &mut host), 3);
    // Nor are these any more.
    for n in 0..200 {
        host.push(n.into(), &[n], plain());
    }
    assert_eq!(pending(&mut following, &mut host), 6);
}

#[test]
fn requests_and_returned_frames_of_which_nothing_comes_end_a_call_too() {
    let (mut host, mut following) = (Host::default(), camera(false));
    for n in 10..210 {
        host.offer(part(n, 1));
        host.refused.insert(id(n), Status::NotFound);
    }
    host.offer(part(2, 1));
    host.offer(stream(1));
    let mut next = || following.next(&mut host, NOW).unwrap().unwrap();
    let early = std::iter::from_fn(|| Some(short(&next())));
    assert_eq!(early.take_while(|event| event != "joined 1").count(), 3);
    assert_eq!(pending(&mut following, &mut host), 3);
    assert_eq!(following.consumed.len(), 1);
    host.asked();
    host.revoke(stream(1));
    assert_eq!(events(&mut following, &mut host), ["over 1"]);
    for _ in 0..100 {
        host.push(1, &[2], plain());
    }
    assert_eq!(pending(&mut following, &mut host), 3);
    assert_eq!(host.asked().len(), 100);
}

#[test]
fn frames_of_a_stream_that_is_over_are_returned_unseen() {
    let (mut host, mut following) = (Host::default(), camera(true));
    host.offer(stream(1));
    host.offer(part(2, 1));
    host.revoke(stream(1));
    host.push(1, &[2], plain());
    assert_eq!(events(&mut following, &mut host), ["joined 1", "over 1"]);
    assert_eq!(host.asked().last().unwrap(), "return 2 40");
    host.offer(stream(4));
    host.offer(part(5, 4));
    host.push(1, &[2], plain());
    host.push(2, &[5], plain());
    // Nor is an old buffer one of a new frame.
    host.push(2, &[5, 2], plain());
    let rejected = format!("rejected 40 {:?}", Rejection::Buffer(id(2)));
    assert_eq!(
        events(&mut following, &mut host),
        ["joined 4", "frame 40 [5]", &rejected]
    );
    let asked = host.asked();
    let returned = asked.iter().filter(|it| it.starts_with("return"));
    assert_eq!(returned.collect::<Vec<_>>(), ["return 2 40", "return 5 40"]);
}

#[test]
fn a_record_is_read_and_reported_once_however_often_it_changed_before() {
    let (mut host, mut following) = (Host::default(), camera(false));
    host.set_image(1, 3, 64);
    host.offer(stream(1));
    host.change_record(1, 2);
    host.change_record(1, 3);
    assert_eq!(events(&mut following, &mut host), ["joined 1"]);
    assert_eq!(host.asked(), ["join 1", "meta 1"]);
    host.set_image(1, 7, 64);
    host.change_record(1, 4);
    host.change_record(1, 5);
    assert_eq!(events(&mut following, &mut host), ["record false"]);
    assert_eq!(host.asked(), ["meta 1"]);
}

#[test]
fn a_buffer_whose_metadata_is_late_is_consumed_all_the_while() {
    let (mut host, mut following) = joined();
    host.offer(part(4, 1));
    host.silent_of_meta.set(true);
    assert!(following.next(&mut host, NOW).is_err());
    // Pushed meanwhile.
    host.push(3, &[4], plain());
    assert_eq!(events(&mut following, &mut host), ["frame 40 [4]"]);
    assert_eq!(host.asked(), ["consume 4", "meta 4"]);
}

#[test]
fn what_is_revoked_before_its_offer_is_read_is_forgotten() {
    let (mut host, mut following) = joined();
    host.push(1, &[2, 4], plain());
    host.refused.insert(id(5), Status::RoNotEnforced);
    host.queries.push(id(5));
    host.push(1, &[2, 5], plain());
    assert_eq!(events(&mut following, &mut host).len(), 3);
    assert_eq!(following.offered.len(), 4);
    for n in [4, 5] {
        host.event(Event {
            id: id(n),
            ..Event::new(EventKind::Revoked)
        });
    }
    assert_eq!(
        events(&mut following, &mut host),
        ["revoked 4 None", "other REVOKED"]
    );
    assert_eq!(following.offered.len(), 2);
    assert!(following.refused.is_empty());
}

#[test]
fn damage_that_is_not_all_in_the_image_is_none() {
    let rect = |x, y, width, height| Rect {
        x,
        y,
        width,
        height,
    };
    let (mut host, mut following) = joined();
    host.set_image(2, 2, 64);
    for (wrong, left) in [
        (rect(0, 0, 16, 64), 2),
        (rect(0, 0, 0, 0), 2),
        (rect(1, 0, 16, 64), 0),
        (rect(0, -5, 1, 1), 0),
        (rect(i32::MAX, 0, u32::MAX, u32::MAX), 0),
    ] {
        let mut frame = PushedFrame {
            meta_seq: 2,
            ..plain()
        };
        frame.record.damage = vec![rect(0, 0, 1, 1), wrong];
        host.push(1, &[2], frame);
        let Some(ConsumerEvent::Frame(frame)) = following.next(&mut host, NOW).unwrap() else {
            panic!("no frame");
        };
        assert_eq!(frame.record().damage.len(), left, "{wrong:?}");
    }
}

#[test]
fn a_join_is_renewed_also_if_there_is_room_for_one_alone() {
    let (mut host, mut following) = joined();
    host.joins = 1;
    host.event(Event::new(EventKind::Overflow));
    assert_eq!(events(&mut following, &mut host), ["other OVERFLOW"]);
    assert_eq!(host.asked(), ["join 1", "join 1"]);
    assert_eq!(Arc::strong_count(&host.device), 2);
}

#[test]
fn the_blob_of_a_frame_is_that_of_its_first_buffer_and_read_anew_where_it_is_newer() {
    let (mut host, mut following) = joined();
    for (seq, asked) in [(1, 0), (2, 1), (2, 0)] {
        let meta = Meta::new().blob([u8::try_from(seq).unwrap()]);
        host.metas.borrow_mut().insert(id(2), (seq, meta));
        let frame = PushedFrame {
            meta_seq: seq,
            ..plain()
        };
        host.push(1, &[2, 3], frame);
        let Some(ConsumerEvent::Frame(frame)) = following.next(&mut host, NOW).unwrap() else {
            panic!("no frame");
        };
        // What was read when the buffer was consumed had none.
        let wanted = if seq == 1 { &[][..] } else { &[2] };
        assert_eq!(frame.blob(), wanted);
        assert_eq!(host.asked().len(), asked);
    }
}
