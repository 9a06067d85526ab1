// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A front end with a driver: requests on real rings, by the protocol crate.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use bufshare_protocol::event::{Event, EventKind};
use bufshare_protocol::limits::{MAX_REQUEST, MAX_RESPONSE, MIN_EVENT_SIZE};
use bufshare_protocol::request::{Attach, Export, Request};
use bufshare_protocol::response::{self, Reply, Response};
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{Access, BufferId, Extent, FrameRecord, Push, Rights};

use super::frontend::{FrontEnd, Options, RingPlace};
use super::soon;

const SIZE: u16 = 64;
/// Requests at once: each takes two descriptors.
const SLOTS: u16 = SIZE / 2;
const REQUESTS: u64 = 0x10_0000;
const REQUEST_ROOM: u64 = 0x1_0000;
const RESPONSES: u64 = 0x30_0000;
const RESPONSE_ROOM: u64 = 0x1_2000;
const EVENTS: u64 = 0x8000;
/// Where buffers may lie.
pub const DATA: u64 = 0x100_0000;

const PLACES: [RingPlace; 2] = [
    RingPlace {
        size: SIZE,
        desc: 0x1000,
        avail: 0x2000,
        used: 0x3000,
    },
    RingPlace {
        size: SIZE,
        desc: 0x4000,
        avail: 0x5000,
        used: 0x6000,
    },
];

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Where one ring of the driver is.
#[derive(Default)]
struct Ring {
    avail: u16,
    used: u16,
}

/// A request under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u16);

/// One virtual machine.
pub struct Vm {
    pub front: FrontEnd,
    rings: [Ring; 2],
    kinds: BTreeMap<u16, u32>,
    done: BTreeMap<u16, u32>,
    free: VecDeque<u16>,
    /// Each as it was parsed, and its bytes.
    events: VecDeque<(Event, Vec<u8>)>,
    next_seq: u64,
    cookie: u64,
    event_idx: bool,
    event_size: u64,
    /// Where attachments are mapped, by their handles.
    windows: BTreeMap<u64, u64>,
}

impl Vm {
    /// Connects and starts the driver.
    pub fn boot(path: &Path) -> Self {
        Self::boot_with(path, &Options::default())
    }

    pub fn boot_with(path: &Path, options: &Options) -> Self {
        let mut vm = Self::connect(path, options);
        vm.start_fresh();
        // The device serves its queues some time after they were started. Only
        // who is served is notified of others.
        vm.request(&Request::GetCaps { version: 2 }).unwrap();
        vm
    }

    /// Connects, and starts nothing.
    pub fn connect(path: &Path, options: &Options) -> Self {
        Self {
            front: FrontEnd::connect(path, options),
            rings: Default::default(),
            kinds: BTreeMap::new(),
            done: BTreeMap::new(),
            free: VecDeque::new(),
            events: VecDeque::new(),
            next_seq: 1,
            cookie: 0x1000,
            event_idx: options.event_idx,
            event_size: options.event_size,
            windows: BTreeMap::new(),
        }
    }

    /// A new driver: empty rings from 0.
    pub fn start_fresh(&mut self) {
        self.front.device_reset();
        for place in PLACES {
            for at in [place.desc, place.avail, place.used] {
                self.front.ram.write(at, &[0; 0x1000]);
            }
        }
        self.rings = Default::default();
        self.kinds.clear();
        self.done.clear();
        self.events.clear();
        self.next_seq = 1;
        self.free = (0..SLOTS).collect();
        for slot in 0..SLOTS {
            self.post_event_buffer(slot);
        }
        self.front.start(&PLACES, &[0, 0]);
        self.kick(1, 0);
    }

    /// Stops and starts the same driver, as a pause of the VM does.
    pub fn pause_and_resume(&mut self) {
        let bases = self.front.stop();
        self.resume(&bases);
    }

    pub fn resume(&mut self, bases: &[u16]) {
        self.front.start(&PLACES, bases);
    }

    /// A guest reset: GET_VRING_BASE, then a new driver.
    pub fn reset(&mut self) {
        self.front.stop();
        self.start_fresh();
    }

    fn descriptor(&self, ring: usize, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = Vec::new();
        bytes.extend(addr.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.front
            .ram
            .write(PLACES[ring].desc + u64::from(index) * 16, &bytes);
    }

    /// Makes a chain available. Returns the index before.
    fn publish(&mut self, ring: usize, head: u16) -> u16 {
        let place = PLACES[ring];
        let old = self.rings[ring].avail;
        let slot = u64::from(old % place.size);
        self.front.ram.write_u16(place.avail + 4 + slot * 2, head);
        fence(Ordering::SeqCst);
        self.rings[ring].avail = old.wrapping_add(1);
        self.front
            .ram
            .write_u16(place.avail + 2, self.rings[ring].avail);
        fence(Ordering::SeqCst);
        old
    }

    /// Kicks, if the device wants to be kicked.
    fn kick(&self, ring: usize, old: u16) {
        let place = PLACES[ring];
        let new = self.rings[ring].avail;
        let wanted = if self.event_idx {
            let at = place.used + 4 + u64::from(place.size) * 8;
            let event = self.front.ram.read_u16(at);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.front.ram.read_u16(place.used) & 1 == 0
        };
        if wanted {
            self.front.rings[ring].kick.write(1).unwrap();
        }
    }

    fn post_event_buffer(&mut self, slot: u16) {
        let addr = EVENTS + u64::from(slot) * self.event_size;
        self.descriptor(1, slot, addr, self.event_size as u32, WRITE, 0);
        self.publish(1, slot);
    }

    /// Sends raw bytes with the whole room for the response.
    pub fn submit_bytes(&mut self, kind: u32, bytes: &[u8]) -> Ticket {
        let slot = self.free.pop_front().expect("a free slot");
        let request = REQUESTS + u64::from(slot) * REQUEST_ROOM;
        let room = RESPONSES + u64::from(slot) * RESPONSE_ROOM;
        assert!(bytes.len() as u64 <= REQUEST_ROOM && MAX_REQUEST as u64 <= REQUEST_ROOM);
        self.front.ram.write(request, bytes);
        let head = slot * 2;
        self.descriptor(0, head, request, bytes.len() as u32, NEXT, head + 1);
        self.descriptor(0, head + 1, room, MAX_RESPONSE as u32, WRITE, 0);
        self.kinds.insert(head, kind);
        let old = self.publish(0, head);
        self.kick(0, old);
        Ticket(head)
    }

    /// Sends a chain of the caller's own descriptors, `(addr, len, writable)`.
    pub fn submit_chain(&mut self, descs: &[(u64, u32, bool)]) -> Ticket {
        let slot = self.free.pop_front().expect("a free slot");
        assert!(descs.len() <= 2);
        let head = slot * 2;
        for (i, (addr, len, writable)) in descs.iter().enumerate() {
            let last = i + 1 == descs.len();
            let flags = u16::from(!last) * NEXT + u16::from(*writable) * WRITE;
            self.descriptor(0, head + i as u16, *addr, *len, flags, head + 1);
        }
        self.kinds.insert(head, 0);
        let old = self.publish(0, head);
        self.kick(0, old);
        Ticket(head)
    }

    /// Sends a chain whose second descriptor is followed by the first.
    pub fn submit_loop(&mut self, addr: u64) -> Ticket {
        let slot = self.free.pop_front().expect("a free slot");
        let head = slot * 2;
        self.descriptor(0, head, addr, 16, NEXT, head + 1);
        self.descriptor(0, head + 1, addr, 16, NEXT, head);
        self.kinds.insert(head, 0);
        let old = self.publish(0, head);
        self.kick(0, old);
        Ticket(head)
    }

    /// Claims that more chains are available than the ring has.
    pub fn spoil_available_index(&mut self, ring: usize) {
        let index = self.rings[ring].avail.wrapping_add(SIZE + 1);
        self.front.ram.write_u16(PLACES[ring].avail + 2, index);
        self.front.rings[ring].kick.write(1).unwrap();
    }

    /// A driver whose event buffers are junk: as long as a chain may be, with no room.
    /// To be followed by [`Vm::publish_junk`].
    pub fn make_events_junk(&mut self) {
        let table = EVENTS + u64::from(SIZE) * self.event_size;
        for index in 0..1000_u64 {
            let mut bytes = Vec::new();
            bytes.extend(EVENTS.to_le_bytes());
            bytes.extend(1_u32.to_le_bytes());
            bytes.extend(NEXT.to_le_bytes());
            bytes.extend((index as u16 + 1).to_le_bytes());
            self.front.ram.write(table + index * 16, &bytes);
        }
        for head in 0..SIZE {
            self.descriptor(1, head, table, 16_000, INDIRECT, 0);
        }
    }

    /// Makes all event buffers available again, used or not.
    pub fn publish_junk(&self) {
        let place = PLACES[1];
        let used = self.front.ram.read_u16(place.used + 2);
        self.front
            .ram
            .write_u16(place.avail + 2, used.wrapping_add(SIZE));
        fence(Ordering::SeqCst);
        self.front.rings[1].kick.write(1).unwrap();
    }

    /// Makes the chain of a request available once more for every entry of the ring,
    /// whether it was used or not.
    pub fn publish_again(&mut self, ticket: Ticket) {
        for _ in 0..SIZE {
            self.publish(0, ticket.0);
        }
        self.front.rings[0].kick.write(1).unwrap();
    }

    /// A driver whose next event buffer is too short.
    pub fn post_short_event_buffer(&mut self) {
        self.front.stop();
        self.free.clear();
        for place in PLACES {
            for at in [place.desc, place.avail, place.used] {
                self.front.ram.write(at, &[0; 0x1000]);
            }
        }
        self.rings = Default::default();
        self.descriptor(1, 0, EVENTS, MIN_EVENT_SIZE as u32 - 1, WRITE, 0);
        self.publish(1, 0);
        self.front.start(&PLACES, &[0, 0]);
        self.kick(1, 0);
    }

    pub fn submit(&mut self, request: &Request) -> Ticket {
        self.cookie += 1;
        let bytes = request.encode(self.cookie);
        self.submit_bytes(request.kind(), &bytes)
    }

    /// Looks at both used rings.
    fn collect(&mut self) {
        for (ring, place) in PLACES.into_iter().enumerate() {
            loop {
                let used = self.rings[ring].used;
                if self.event_idx {
                    let at = place.avail + 4 + u64::from(place.size) * 2;
                    self.front.ram.write_u16(at, used);
                    fence(Ordering::SeqCst);
                }
                if self.front.ram.read_u16(place.used + 2) == used {
                    break;
                }
                let at = place.used + 4 + u64::from(used % place.size) * 8;
                let head = self.front.ram.read_u32(at) as u16;
                let len = self.front.ram.read_u32(at + 4);
                self.rings[ring].used = used.wrapping_add(1);
                if ring == 0 {
                    assert!(self.kinds.contains_key(&head), "completed twice: {head}");
                    assert!(
                        self.done.insert(head, len).is_none(),
                        "completed twice: {head}"
                    );
                } else {
                    self.take_event(head, len);
                }
            }
        }
    }

    fn take_event(&mut self, slot: u16, len: u32) {
        let at = EVENTS + u64::from(slot) * self.event_size;
        let bytes = self.front.ram.read(at, len as usize);
        let (event, rest) = Event::split(&bytes).unwrap();
        assert!(rest.is_empty(), "{len} bytes");
        let event = event.unwrap();
        assert_eq!(event.seq, self.next_seq, "{event:?}");
        self.next_seq += 1;
        self.events.push_back((event, bytes));
        let old = self.rings[1].avail;
        self.post_event_buffer(slot);
        self.kick(1, old);
    }

    /// Waits until the device signals, at most `limit`.
    fn wait_call(&mut self, limit: Duration) {
        let mut fds: Vec<libc::pollfd> = self
            .front
            .rings
            .iter()
            .map(|ring| libc::pollfd {
                fd: ring.call.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        let millis = limit.as_millis().clamp(1, 30_000) as i32;
        // SAFETY: the array has the given length.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as u64, millis) };
        for ring in &self.front.rings {
            let _ = ring.call.read();
        }
    }

    /// Waits for `take` to find something.
    fn wait<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut take: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        let end = Instant::now() + limit;
        loop {
            self.collect();
            if let Some(found) = take(self) {
                return found;
            }
            let rest = end.saturating_duration_since(Instant::now());
            assert!(!rest.is_zero(), "waited {limit:?} for {what}");
            self.wait_call(rest);
        }
    }

    /// Waits for the completion: bytes the device says it wrote.
    pub fn finish_raw(&mut self, ticket: Ticket) -> Vec<u8> {
        let len = self.wait("a completion", soon(), |vm| vm.done.remove(&ticket.0));
        let room = RESPONSES + u64::from(ticket.0 / 2) * RESPONSE_ROOM;
        self.kinds.remove(&ticket.0);
        self.free.push_back(ticket.0 / 2);
        self.front.ram.read(room, len as usize)
    }

    pub fn finish(&mut self, ticket: Ticket) -> Reply {
        let kind = self.kinds[&ticket.0];
        let bytes = self.finish_raw(ticket);
        response::parse(kind, &bytes).unwrap().1
    }

    /// Whether the request is answered.
    pub fn is_done(&mut self, ticket: Ticket) -> bool {
        self.collect();
        self.done.contains_key(&ticket.0)
    }

    pub fn request(&mut self, request: &Request) -> Reply {
        let ticket = self.submit(request);
        self.finish(ticket)
    }

    /// The next event; fails without one.
    pub fn event(&mut self, what: &str) -> Event {
        self.next_event(what).0
    }

    /// The bytes of the next event; fails without one.
    pub fn raw_event(&mut self, what: &str) -> Vec<u8> {
        self.next_event(what).1
    }

    fn next_event(&mut self, what: &str) -> (Event, Vec<u8>) {
        self.wait(&format!("an event: {what}"), soon(), |vm| {
            vm.events.pop_front()
        })
    }

    /// The next event of a kind; others are dropped.
    pub fn event_of(&mut self, kind: EventKind) -> Event {
        loop {
            let event = self.event(&format!("{kind:?}"));
            if event.kind == kind {
                return event;
            }
        }
    }

    /// Events so far.
    pub fn events(&mut self) -> Vec<Event> {
        self.collect();
        self.events.drain(..).map(|(event, _)| event).collect()
    }

    pub fn export_of(extents: Vec<Extent>, acl: Vec<Access>) -> Request {
        Request::Export(Box::new(Export {
            size: extents.iter().map(|e| e.len).sum(),
            extents,
            acl,
            ..Export::default()
        }))
    }

    /// Exports one piece of RAM to all.
    pub fn export(&mut self, addr: u64, len: u64) -> BufferId {
        let request = Self::export_of(vec![Extent { addr, len }], vec![]);
        match self.request(&request) {
            Ok(Response::Exported { id, .. }) => id,
            other => panic!("EXPORT: {other:?}"),
        }
    }

    pub fn attach(&mut self, id: BufferId) -> u64 {
        match self.try_attach(id) {
            Ok(handle) => handle,
            Err(status) => panic!("ATTACH: {status:?}"),
        }
    }

    pub fn try_attach(&mut self, id: BufferId) -> Result<u64, Status> {
        match self.request(&Request::Attach(Attach::new(id, Rights::RW)))? {
            Response::Attached { handle, .. } => Ok(handle),
            other => panic!("ATTACH: {other:?}"),
        }
    }

    /// Attaches to be given the frames of a buffer.
    pub fn consume(&mut self, id: BufferId) -> u64 {
        let attach = Attach {
            consumer: true,
            ..Attach::new(id, Rights::RW)
        };
        match self.request(&Request::Attach(attach)) {
            Ok(Response::Attached { handle, .. }) => handle,
            other => panic!("ATTACH: {other:?}"),
        }
    }

    /// Hands over one frame in one buffer. Returns its number.
    pub fn push(&mut self, id: BufferId) -> u64 {
        self.push_with(id, FrameRecord::default())
    }

    pub fn push_with(&mut self, id: BufferId, record: FrameRecord) -> u64 {
        let frames = vec![Push {
            buffers: vec![id],
            record,
            ..Push::default()
        }];
        match self.request(&Request::Push { frames }) {
            Ok(Response::Pushed {
                status: Status::Ok,
                entry: 1,
                frame,
            }) => frame,
            other => panic!("PUSH: {other:?}"),
        }
    }

    /// Gives back a frame that an attachment was given.
    pub fn give_back(&mut self, handle: u64, frame: u64) {
        let frames = vec![(handle, frame)];
        self.all(&Request::Return { frames });
    }

    /// The next frame that came back: its first buffer, and its number.
    pub fn returned(&mut self) -> (BufferId, u64) {
        let event = self.event_of(EventKind::Returned);
        (event.id, event.value)
    }

    /// Maps the whole buffer: where, and whether an idle window served it.
    pub fn map(&mut self, handle: u64, len: u64) -> (u64, bool) {
        match self.try_map(handle, len) {
            Ok(window) => window,
            Err(status) => panic!("MAP: {status:?}"),
        }
    }

    pub fn try_map(&mut self, handle: u64, len: u64) -> Result<(u64, bool), Status> {
        match self.request(&Request::Map {
            handle,
            offset: 0,
            len,
        })? {
            Response::Mapped {
                window,
                shm_offset,
                cached,
                ..
            } => {
                self.windows.insert(handle, window);
                Ok((shm_offset, cached))
            }
            other => panic!("MAP: {other:?}"),
        }
    }

    pub fn ok(&mut self, request: &Request) {
        match self.request(request) {
            Ok(Response::Done) => {}
            other => panic!("{request:?}: {other:?}"),
        }
    }

    /// Undoes one map of an attachment.
    pub fn unmap(&mut self, handle: u64) {
        let windows = vec![self.windows[&handle]];
        self.all(&Request::Unmap { windows });
    }

    pub fn detach(&mut self, handle: u64) {
        let handles = vec![handle];
        self.all(&Request::Detach { handles });
    }

    /// Sends a batch of which nothing is wrong.
    pub fn all(&mut self, request: &Request) {
        match self.request(request) {
            Ok(Response::Batch {
                status: Status::Ok, ..
            }) => {}
            other => panic!("{request:?}: {other:?}"),
        }
    }

    pub fn unexport(&mut self, id: BufferId) {
        self.ok(&unexport_request(id));
    }
}

pub fn unexport_request(id: BufferId) -> Request {
    Request::Unexport {
        id,
        quiesced: false,
    }
}
