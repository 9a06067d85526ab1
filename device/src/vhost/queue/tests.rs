// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Chains by the mock driver of the virtio-queue crate.

#![allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use super::*;
use bufshare_protocol::event::EventKind;
use bufshare_protocol::response::Response;
use bufshare_protocol::types::BufferId;
use bufshare_protocol::wire;
use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::GuestMemoryMmap;

/// As many requests may wait.
const MAX_REQUESTS: u32 = 1024;

type Memory = GuestMemoryMmap;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Above everything that the mock places.
const REQUEST: u64 = 0x2_0000;
const ROOM: u64 = 0x3_0000;
const TABLE: u64 = 0x4_0000;

/// Bytes of an event, and of room that is too short for it.
const EVENT: u32 = bufshare_protocol::event::SIZE as u32;
const SHORT: u32 = MIN_EVENT_SIZE as u32 - 1;

/// Bytes of the response to GET_CAPS.
const CAPS: u32 = wire::GetCapsResp::SIZE as u32;

/// Bytes of the shortest response.
const HEADER: u32 = RESPONSE_HEADER as u32;

const EVENT_OF_2: Event = Event {
    kind: EventKind::PeerUp,
    seq: 1,
    peer: 2,
    id: BufferId::ZERO,
    generation: 0,
    handle: 0,
    value: 0,
    frame: None,
};

pub(in crate::vhost) fn memory() -> GuestMem {
    GuestMem::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap())
}

fn own(addr: u64, len: u64) -> bool {
    addr.checked_add(len).is_some_and(|end| end <= 0x10_0000)
}

/// A ring of 16 with one chain.
fn ring(mem: &GuestMem, chain: &[Descriptor]) -> Vring {
    ring_of(16, mem, chain)
}

/// The chain that comes next.
fn popped(ring: &Vring, mem: &GuestMem) -> DescriptorChain<impl Deref<Target = Memory> + Clone> {
    match avail::next(ring, mem.memory()) {
        Next::Chain(chain) => chain,
        other => panic!("{other:?}"),
    }
}

/// The request that comes next.
fn request(control: &Control) -> Taken {
    match control.take(own) {
        Take::Request(taken) => taken,
        other => panic!("{other:?}"),
    }
}

/// Makes heads available, as if they came after those that were before.
pub(in crate::vhost) fn publish(mem: &GuestMem, ring: &Vring, heads: &[u16]) {
    let (at, size) = {
        let state = ring.get_ref();
        (state.get_queue().avail_ring(), state.get_queue().size())
    };
    let mem = mem.memory();
    let mut index: u16 = mem.read_obj(GuestAddress(at + 2)).unwrap();
    for head in heads {
        let entry = at + 4 + u64::from(index % size) * 2;
        mem.write_obj(*head, GuestAddress(entry)).unwrap();
        index = index.wrapping_add(1);
    }
    mem.write_obj(index, GuestAddress(at + 2)).unwrap();
}

/// A ring of `size` with one chain.
fn ring_of(size: u16, mem: &GuestMem, chain: &[Descriptor]) -> Vring {
    ring_at(0, size, mem, chain)
}

/// A ring at `start` with one chain.
pub(in crate::vhost) fn ring_at(
    start: u64,
    size: u16,
    mem: &GuestMem,
    chain: &[Descriptor],
) -> Vring {
    let guard = mem.memory();
    let mock = MockSplitQueue::create(&*guard, GuestAddress(start), size);
    let raw: Vec<RawDescriptor> = chain.iter().map(|d| RawDescriptor::from(*d)).collect();
    if !raw.is_empty() {
        // The mock makes each chain end where a descriptor has no NEXT.
        for (i, desc) in raw.iter().enumerate() {
            mock.desc_table().store(i as u16, *desc).unwrap();
        }
        mock.avail().ring().ref_at(0).unwrap().store(0_u16.to_le());
        mock.avail().idx().store(1_u16.to_le());
    }
    let ring = Vring::new(mem.clone(), size).unwrap();
    ring.set_queue_size(size);
    ring.set_queue_info(
        mock.desc_table_addr().0,
        mock.avail_addr().0,
        mock.used_addr().0,
    )
    .unwrap();
    ring.set_queue_ready(true);
    ring.set_enabled(true);
    ring
}

fn used(mem: &GuestMem, ring: &Vring) -> (u16, u32, u32) {
    let at = ring.get_ref().get_queue().used_ring();
    let mem = mem.memory();
    (
        mem.read_obj::<u16>(GuestAddress(at + 2)).unwrap(),
        mem.read_obj::<u32>(GuestAddress(at + 4)).unwrap(),
        mem.read_obj::<u32>(GuestAddress(at + 8)).unwrap(),
    )
}

fn walk(chain: &[Descriptor]) -> Layout {
    let mem = memory();
    let ring = ring(&mem, chain);
    Layout::walk(popped(&ring, &mem), own)
}

fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor::new(addr, len, flags, next)
}

fn put_request(mem: &GuestMem, request: &Request) -> u32 {
    let bytes = request.encode(42);
    mem.memory()
        .write_slice(&bytes, GuestAddress(REQUEST))
        .unwrap();
    bytes.len() as u32
}

#[test]
fn walk_separates_what_is_read_from_what_is_written() {
    let layout = walk(&[
        desc(REQUEST, 10, NEXT, 1),
        desc(REQUEST + 100, 0, NEXT, 2),
        desc(ROOM, 20, WRITE | NEXT, 3),
        desc(ROOM + 50, 30, WRITE, 0),
    ]);

    assert!(!layout.malformed);
    assert_eq!(
        layout.readable,
        Segments::from_iter([Segment {
            addr: REQUEST,
            len: 10
        }])
    );
    assert_eq!(layout.room(), 50);
}

#[test]
fn walk_of_a_chain_that_ends_wrong_is_malformed() {
    for (what, chain) in [
        (
            "loop",
            vec![desc(REQUEST, 8, NEXT, 1), desc(REQUEST, 8, NEXT, 0)],
        ),
        ("index out of range", vec![desc(REQUEST, 8, NEXT, 16)]),
        (
            "read after write",
            vec![desc(ROOM, 8, WRITE | NEXT, 1), desc(REQUEST, 8, 0, 0)],
        ),
        ("outside of RAM", vec![desc(0x10_0000 - 4, 8, 0, 0)]),
        ("overflow", vec![desc(u64::MAX, 8, 0, 0)]),
        (
            "4 GiB in all",
            vec![desc(0, u32::MAX, NEXT, 1), desc(0, u32::MAX, WRITE, 0)],
        ),
        (
            "indirect table of odd length",
            vec![desc(TABLE, 17, INDIRECT, 0)],
        ),
        (
            "indirect table outside",
            vec![desc(1 << 40, 16, INDIRECT, 0)],
        ),
        ("empty indirect table", vec![desc(TABLE, 0, INDIRECT, 0)]),
    ] {
        assert!(walk(&chain).malformed, "{what}");
    }
}

#[test]
fn walk_follows_an_indirect_table() {
    let mem = memory();
    let table = [desc(REQUEST, 10, NEXT, 1), desc(ROOM, 20, WRITE, 0)];
    for (i, desc) in table.iter().enumerate() {
        let at = GuestAddress(TABLE + 16 * i as u64);
        mem.memory()
            .write_obj(RawDescriptor::from(*desc), at)
            .unwrap();
    }
    let ring = ring(&mem, &[desc(TABLE, 32, INDIRECT, 0)]);

    let layout = Layout::walk(popped(&ring, &mem), own);

    assert!(!layout.malformed);
    assert_eq!(
        (
            layout.readable.iter().count(),
            layout.writable.iter().count()
        ),
        (1, 1)
    );
}

#[test]
fn walk_looks_at_a_bounded_number_of_descriptors() {
    let mem = memory();
    for i in 0..1000_u64 {
        let one = desc(REQUEST, 1, NEXT, (i + 1) as u16);
        let at = GuestAddress(TABLE + 16 * i);
        mem.memory()
            .write_obj(RawDescriptor::from(one), at)
            .unwrap();
    }
    let ring = ring(&mem, &[desc(TABLE, 16_000, INDIRECT, 0)]);

    let layout = Layout::walk(popped(&ring, &mem), own);

    assert!(layout.malformed);
    assert_eq!(layout.readable.iter().count(), MAX_DESCRIPTORS);
}

#[test]
fn read_and_write_cross_segments() {
    let mem = memory();
    let guard = mem.memory();
    guard.write_slice(b"abc", GuestAddress(REQUEST)).unwrap();
    guard
        .write_slice(b"defg", GuestAddress(REQUEST + 100))
        .unwrap();
    let layout = Layout {
        readable: Segments::from_iter([
            Segment {
                addr: REQUEST,
                len: 3,
            },
            Segment {
                addr: REQUEST + 100,
                len: 4,
            },
        ]),
        writable: Segments::from_iter([
            Segment { addr: ROOM, len: 2 },
            Segment {
                addr: ROOM + 100,
                len: 9,
            },
        ]),
        ..Layout::default()
    };

    let mut bytes = b"of another".to_vec();
    assert_eq!(layout.read(&*guard, 5, &mut bytes).unwrap(), b"abcde");
    assert_eq!(layout.write(&*guard, b"12345"), 5);

    let mut back = [0; 3];
    guard
        .read_slice(&mut back, GuestAddress(ROOM + 100))
        .unwrap();
    assert_eq!(&back, b"345");
}

#[test]
fn control_answers_a_request_once() {
    let mem = memory();
    let len = put_request(&mem, &Request::GetCaps { version: 2 });
    let ring = ring(
        &mem,
        &[desc(REQUEST, len, NEXT, 1), desc(ROOM, 512, WRITE, 0)],
    );
    let control = Control::new(mem.clone(), MAX_REQUESTS);
    control.start(ring.clone(), 7);

    let taken = request(&control);
    assert_eq!((taken.epoch, taken.answerable), (7, true));
    assert!(matches!(taken.request, Ok(Request::GetCaps { version: 2 })));
    control.reply(taken.token, &Ok(Response::Done));
    control.reply(taken.token, &Ok(Response::Done));

    assert_eq!(used(&mem, &ring), (1, 0, CAPS));
    assert_eq!(control.pending(), 0);
    assert!(matches!(control.take(own), Take::Empty));
}

/// SPEC 4.4.
#[test]
fn control_has_nothing_done_that_cannot_be_answered() {
    let mem = memory();
    for room in [0, HEADER - 1, HEADER, CAPS - 1, CAPS] {
        let len = put_request(&mem, &Request::GetCaps { version: 2 });
        let chain = [desc(REQUEST, len, NEXT, 1), desc(ROOM, room, WRITE, 0)];
        let ring = ring(&mem, &chain);
        let control = Control::new(mem.clone(), MAX_REQUESTS);
        control.start(ring.clone(), 7);
        let taken = request(&control);
        match room {
            CAPS => assert!(taken.request.is_ok()),
            _ => assert_eq!(taken.request, Err(Status::NoRoom), "{room}"),
        }
    }
}

#[test]
fn control_does_not_touch_a_ring_that_was_stopped() {
    let mem = memory();
    let len = put_request(&mem, &Request::GetCaps { version: 2 });
    let ring = ring(
        &mem,
        &[desc(REQUEST, len, NEXT, 1), desc(ROOM, 512, WRITE, 0)],
    );
    let control = Control::new(mem.clone(), MAX_REQUESTS);
    control.start(ring.clone(), 1);
    let taken = request(&control);

    assert_eq!(control.stop(), Some(1));
    control.forget();
    control.start(ring.clone(), 2);
    control.reply(taken.token, &Ok(Response::Done));

    assert_eq!(used(&mem, &ring).0, 0);
}

#[test]
fn control_answers_after_a_pause_what_was_decided_during_it() {
    let mem = memory();
    let len = put_request(&mem, &Request::GetCaps { version: 2 });
    let ring = ring(
        &mem,
        &[desc(REQUEST, len, NEXT, 1), desc(ROOM, 512, WRITE, 0)],
    );
    let control = Control::new(mem.clone(), MAX_REQUESTS);
    control.start(ring.clone(), 1);
    let taken = request(&control);

    control.stop();
    control.reply(taken.token, &Ok(Response::Done));
    assert_eq!(used(&mem, &ring).0, 0);
    control.start(ring.clone(), 1);

    assert_eq!(used(&mem, &ring).0, 1);
    assert_eq!(control.pending(), 0);
}

#[test]
fn control_says_what_is_wrong_with_a_long_request() {
    let mem = memory();
    put_request(&mem, &Request::GetCaps { version: 2 });
    let long = MAX_REQUEST as u32 + 1;
    let ring = ring(
        &mem,
        &[desc(REQUEST, long, NEXT, 1), desc(ROOM, 512, WRITE, 0)],
    );
    let control = Control::new(mem, MAX_REQUESTS);
    control.start(ring, 0);

    let taken = request(&control);

    assert_eq!(taken.request, Err(Status::BadLength));
}

#[test]
fn control_of_a_disabled_ring_takes_nothing() {
    let mem = memory();
    let ring = ring(&mem, &[desc(ROOM, 512, WRITE, 0)]);
    ring.set_enabled(false);
    let control = Control::new(mem, MAX_REQUESTS);
    control.start(ring, 0);

    assert!(matches!(control.take(own), Take::Idle));
}

#[test]
fn events_without_an_event_leave_the_buffer_where_it_was() {
    let mem = memory();
    let ring = ring(&mem, &[desc(ROOM, 512, WRITE, 0)]);
    let events = Events::new(mem.clone());
    events.start(ring.clone());
    events.driver_polls(true);

    events.deliver(own, |_| None);
    assert_eq!(ring.queue_next_avail(), 0);

    events.deliver(own, |_| Some(Ok(EVENT_OF_2)));
    assert_eq!(used(&mem, &ring), (1, 0, EVENT));
}

#[test]
fn events_give_a_short_buffer_back_and_keep_the_event() {
    let mem = memory();
    let ring = ring(&mem, &[desc(ROOM, SHORT, WRITE, 0)]);
    let events = Events::new(mem.clone());
    events.start(ring.clone());
    events.driver_polls(true);

    events.deliver(own, |_| panic!("an event was taken without room for it"));

    assert_eq!(used(&mem, &ring), (1, 0, 0));
}

#[test]
fn events_wait_until_the_driver_can_be_signalled() {
    let mem = memory();
    let ring = ring(&mem, &[desc(ROOM, 512, WRITE, 0)]);
    let events = Events::new(mem.clone());
    events.start(ring.clone());

    events.deliver(own, |_| {
        panic!("an event was taken that cannot be signalled")
    });

    assert_eq!(used(&mem, &ring).0, 0);
}

/// A descriptor with room for one event.
pub(in crate::vhost) fn event_buffer() -> Descriptor {
    desc(ROOM, 512, WRITE, 0)
}

/// A control queue of `size` with room for one answer, and one request whose head
/// is 0.
pub(in crate::vhost) fn control_of(size: u16, mem: &GuestMem) -> (Control, Vring) {
    let len = put_request(mem, &Request::Flush);
    let chain = [desc(REQUEST, len, NEXT, 1), desc(ROOM, 512, WRITE, 0)];
    let ring = ring_of(size, mem, &chain);
    let control = Control::new(mem.clone(), MAX_REQUESTS);
    control.start(ring.clone(), 1);
    (control, ring)
}

#[test]
fn a_head_that_comes_again_before_it_is_used_ends_the_queue() {
    let mem = memory();
    let (control, ring) = control_of(16, &mem);
    let first = request(&control);
    let mut seen = Vec::new();

    for _ in 0..100_000 {
        publish(&mem, &ring, &[0]);
        if let Take::Fault(fault) = control.take(own) {
            seen.push(fault);
        }
        assert_eq!(control.pending(), 1);
    }

    assert_eq!(seen, [Fault::HeadInUse(0)], "said once");
    assert_eq!(control.counters.faults.load(Ordering::Relaxed), 1);
    control.reply(first.token, &Ok(Response::Done));
    assert_eq!(
        used(&mem, &ring),
        (1, 0, HEADER),
        "the first use is completed"
    );
    assert!(matches!(control.take(own), Take::Idle));
}

#[test]
fn a_queue_that_was_broken_is_served_after_a_restart() {
    let mem = memory();
    let (control, ring) = control_of(16, &mem);
    request(&control);
    publish(&mem, &ring, &[0, 0]);
    assert!(matches!(control.take(own), Take::Fault(_)));

    control.stop();
    control.forget();
    control.start(ring, 2);

    assert_eq!(request(&control).epoch, 2);
}

#[test]
fn a_head_comes_again_after_it_was_used() {
    let mem = memory();
    let (control, ring) = control_of(16, &mem);
    let first = request(&control).token;
    control.reply(first, &Ok(Response::Done));

    publish(&mem, &ring, &[0]);
    let second = request(&control).token;

    control.reply(first, &Ok(Response::Done));
    assert_eq!(
        control.pending(),
        1,
        "an old answer is not for a new request"
    );
    control.reply(second, &Ok(Response::Done));
    assert_eq!(used(&mem, &ring).0, 2);
}

#[test]
fn an_impossible_ring_is_not_looked_at_again() {
    type Spoil = fn(&GuestMem, &Vring);
    let cases: [(Fault, Spoil); 3] = [
        (Fault::AvailIndex, |mem, ring| {
            publish(mem, ring, &[2; 17]);
        }),
        (Fault::NoSuchHead(16), |mem, ring| {
            publish(mem, ring, &[16]);
        }),
        (Fault::NoMemory, |_, ring| {
            ring.set_queue_info(0x10_0000, 0x10_0000, 0x10_0000)
                .unwrap();
        }),
    ];
    for (fault, spoil) in cases {
        let mem = memory();
        let (control, ring) = control_of(16, &mem);
        request(&control);
        spoil(&mem, &ring);

        let taken = control.take(own);
        assert!(
            matches!(taken, Take::Fault(found) if found == fault),
            "{taken:?}"
        );
        assert!(matches!(control.take(own), Take::Idle));

        let mem = memory();
        let ring = self::ring(&mem, &[desc(ROOM, 512, WRITE, 0)]);
        let events = Events::new(mem.clone());
        events.start(ring.clone());
        events.driver_polls(true);
        let event = |_| Some(Ok(EVENT_OF_2));
        spoil(&mem, &ring);
        // Those that came before in the ring are good.
        let delivered = events.deliver(own, event);
        assert_eq!(delivered, Delivered::Fault(fault));
        assert_eq!(events.deliver(own, event), Delivered::All);
        assert_eq!(events.counters.faults.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn no_more_requests_are_taken_than_may_wait_until_one_is_answered() {
    let mem = memory();
    let (control, ring) = control_of(4096, &mem);
    let heads: Vec<u16> = (1..4096).collect();
    publish(&mem, &ring, &heads);

    let mut tokens = Vec::new();
    while let Take::Request(taken) = control.take(own) {
        tokens.push(taken.token);
    }
    assert_eq!(
        (tokens.len(), control.pending()),
        (MAX_REQUESTS as usize, MAX_REQUESTS as usize)
    );
    assert!(matches!(control.take(own), Take::Idle));

    assert!(control.reply(tokens[0], &Ok(Response::Done)), "go on now");
    assert!(!control.reply(tokens[1], &Ok(Response::Done)), "said once");
    request(&control);
    request(&control);
    assert!(matches!(control.take(own), Take::Idle));
    assert_eq!(control.pending(), MAX_REQUESTS as usize);
}

#[test]
fn more_events_than_are_written_at_once_are_written_later() {
    let mem = memory();
    let ring = ring_of(1024, &mem, &[]);
    {
        let at = ring.get_ref().get_queue().desc_table();
        for head in 0..1024_u64 {
            let one = RawDescriptor::from(desc(ROOM, 512, WRITE, 0));
            let mem = mem.memory();
            mem.write_obj(one, GuestAddress(at + head * 16)).unwrap();
        }
    }
    let heads: Vec<u16> = (0..1024).collect();
    publish(&mem, &ring, &heads);
    let events = Events::new(mem.clone());
    events.start(ring.clone());
    events.driver_polls(true);
    let left = std::cell::Cell::new(600);
    let next = |_| {
        left.set(left.get() - 1);
        (left.get() >= 0).then_some(Ok(EVENT_OF_2))
    };

    let mut turns = 1;
    while events.deliver(own, next) == Delivered::Some {
        turns += 1;
    }

    assert_eq!(turns, 3);
    assert_eq!(used(&mem, &ring).0, 600);
}

#[test]
fn chains_that_take_long_to_walk_make_a_batch_shorter() {
    let mem = memory();
    let ring = ring_of(256, &mem, &[]);
    let at = ring.get_ref().get_queue().desc_table();
    let guard = mem.memory();
    for i in 0..1000_u64 {
        let one = RawDescriptor::from(desc(REQUEST, 1, NEXT, (i + 1) as u16));
        guard.write_obj(one, GuestAddress(TABLE + 16 * i)).unwrap();
    }
    let junk = RawDescriptor::from(desc(TABLE, 16_000, INDIRECT, 0));
    for head in 0..256_u64 {
        guard.write_obj(junk, GuestAddress(at + head * 16)).unwrap();
    }
    let heads: Vec<u16> = (0..256).collect();
    publish(&mem, &ring, &heads);
    let events = Events::new(mem.clone());
    events.start(ring.clone());
    events.driver_polls(true);

    assert_eq!(events.deliver(own, |_| None), Delivered::Some);
    let walked = usize::from(used(&mem, &ring).0) * MAX_DESCRIPTORS;
    assert!(walked <= MAX_WALKED_PER_KICK, "{walked}");

    while events.deliver(own, |_| None) == Delivered::Some {}
    assert_eq!(used(&mem, &ring).0, 256);
}
