// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A session's worker, called by hand.

use std::fs::File;
use std::os::fd::IntoRawFd;
use std::time::Duration;

use bufshare_protocol::request::Request;
use bufshare_protocol::response::Response;
use bufshare_protocol::types::{BufferId, Name};

use bufshare_protocol::device::QUEUE_EVENT;
use vhost_user_backend::VringT;

use super::*;
use crate::broker::{Broker, Config, IdSource, Limits, PeerConfig};
use crate::dispatcher::RevokeWait;
use crate::locks::tests::ends_elsewhere;
use crate::vhost::doorbell;
use crate::vhost::lifeline::write_for;
use crate::vhost::limits::MAX_PER_KICK;
use crate::vhost::queue::Take;
use crate::vhost::queue::tests::{control_of, event_buffer, memory, publish, ring_at};

struct NoIds;

impl IdSource for NoIds {
    fn fresh(&mut self) -> Option<BufferId> {
        None
    }
}

pub(in crate::vhost) fn session(mem: &GuestMem) -> (Arc<Dispatcher>, Arc<Session>) {
    let config = Config {
        peers: vec![PeerConfig {
            name: Name::new("a").unwrap(),
            raw_ram: true,
            enforces_ro: false,
        }],
        allow: Vec::new(),
        shm_size: 1 << 20,
        host_udmabuf: false,
        limits: Limits::default(),
        started_us: 0,
    };
    let broker = Broker::new(config, Box::new(NoIds)).unwrap();
    let dispatcher = Dispatcher::new(broker, &["a".to_owned()], RevokeWait::default());
    let front = Front {
        peer: PeerId(1),
        name: "a".into(),
        vmm: Process::default(),
        files: Arc::default(),
        unsealed: false,
        max_table: 1 << 30,
        shm_size: 1 << 20,
        limits: Limits::default(),
        limiters: Arc::new(Limiters::default()),
    };
    let session = Session::new(dispatcher.clone(), front, mem.clone()).unwrap();
    dispatcher.connect(PeerId(1), session.clone());
    (dispatcher, session)
}

/// Gives a ring something to be signalled by.
fn with_call(ring: Vring) -> Vring {
    let call = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).unwrap();
    // SAFETY: the number is given up by the one and taken by the other.
    ring.set_call(Some(unsafe { File::from_raw_fd(call.into_raw_fd()) }));
    ring
}

/// A request as it was taken from the ring.
fn get_caps(epoch: u64, token: u64) -> Taken {
    Taken {
        token: Token(token),
        request: Ok(Request::GetCaps { version: 2 }),
        epoch,
        malformed: false,
        answerable: true,
    }
}

/// Has the worker look at everything. Returns whether it wants to be woken again.
fn look(session: &Session, rings: &[Vring]) -> bool {
    session
        .handle_event(EVENT_AGAIN, EventSet::IN, rings, 0)
        .unwrap();
    session.again.read().is_ok()
}

/// Has the worker start the rings, and take nothing.
fn look_at_events(session: &Session, rings: &[Vring]) {
    session
        .handle_event(u16::try_from(QUEUE_EVENT).unwrap(), EventSet::IN, rings, 0)
        .unwrap();
}

#[test]
fn a_worker_does_not_wake_itself_for_a_ring_that_cannot_be_served() {
    type Spoil = fn(&GuestMem, &[Vring]);
    let cases: [(&str, Spoil); 5] = [
        ("nothing", |_, _| {}),
        ("disabled", |mem, rings| {
            rings[0].set_enabled(false);
            publish(mem, &rings[0], &[4]);
        }),
        ("index", |mem, rings| publish(mem, &rings[0], &[4; 17])),
        ("no such head", |mem, rings| publish(mem, &rings[0], &[16])),
        ("index of the events", |mem, rings| {
            publish(mem, &rings[1], &[4; 17]);
        }),
    ];
    for (what, spoil) in cases {
        let mem = memory();
        let (_dispatcher, session) = session(&mem);
        let (_, control) = control_of(16, &mem);
        let events = ring_at(0x8_0000, 16, &mem, &[]);
        let rings = [with_call(control), with_call(events)];
        assert!(!look(&session, &rings), "{what}: started");
        assert_eq!(session.facts().chains, 1);

        spoil(&mem, &rings);

        for _ in 0..3 {
            assert!(!look(&session, &rings), "{what}");
        }
    }
}

#[test]
fn a_request_that_was_read_before_a_reset_is_not_handled_after_it() {
    let mem = memory();
    let (_dispatcher, session) = session(&mem);
    let rings = [
        with_call(ring_at(0, 16, &mem, &[])),
        with_call(ring_at(0x8_0000, 16, &mem, &[])),
    ];
    look(&session, &rings);
    let epoch = session.dispatcher.start(session.peer, false);
    session.stop();
    // As when the worker is between the dispatcher and here while the driver is forgotten.
    session.windows_dropped();
    lock(&session.deferred).push(get_caps(epoch, 0));
    let handled = || session.dispatcher.report().broker.peers[0].requests;
    let before = handled();

    look(&session, &rings);

    assert!(lock(&session.phase).running);
    assert_eq!(handled(), before);
}

#[test]
fn a_session_ends_when_its_worker_does() {
    let mem = memory();
    let (_dispatcher, session) = session(&mem);
    let rings = [ring_at(0, 16, &mem, &[]), ring_at(0x8_0000, 16, &mem, &[])];

    let worker = session.clone();
    let thread = std::thread::spawn(move || look(&worker, &rings));
    thread.join().unwrap();

    assert!(session.lifeline.closing());
}

#[test]
fn a_worker_sleeps_while_its_session_ends() {
    let mem = memory();
    let (_dispatcher, session) = session(&mem);
    let rings = [
        with_call(ring_at(0, 16, &mem, &[])),
        with_call(ring_at(0x8_0000, 16, &mem, &[])),
    ];
    look(&session, &rings);

    session.wake();
    session.lifeline.fail();

    assert!(!look(&session, &rings), "its descriptor is still readable");
}

#[test]
fn others_do_not_wait_while_a_session_looks_at_what_its_driver_made_available() {
    let mem = memory();
    let (_dispatcher, session) = session(&mem);
    let (_, control) = control_of(16, &mem);
    let events = ring_at(0x8_0000, 16, &mem, &[event_buffer()]);
    let rings = [with_call(control), with_call(events)];
    look_at_events(&session, &rings);

    // The event ring is locked. (The first buffer was given back: it is in no RAM.)
    publish(&mem, &rings[1], &[0]);
    let link = session.clone();
    let ended = std::cell::Cell::new(None);
    session.events.deliver(
        |_, _| true,
        |_| {
            let link = link.clone();
            ended.set(Some(ends_elsewhere(move || Link::events(&*link))));
            None
        },
    );
    assert_eq!(ended.take(), Some(true), "an event");
    assert!(!session.delivered());

    // The control queue is locked.
    let Take::Request(taken) = session.control.take(|_, _| {
        if ended.get().is_none() {
            let link = link.clone();
            let reply = move || Link::reply(&*link, Token(0), &Ok(Response::Done));
            ended.set(Some(ends_elsewhere(reply)));
        }
        true
    }) else {
        panic!("no request");
    };
    assert_eq!(ended.take(), Some(true), "an answer");

    // Its own worker gives the driver what is the driver's.
    let link = session.clone();
    assert!(ends_elsewhere(move || {
        Link::reply(&*link, taken.token, &Ok(Response::Done));
    }));
    assert_eq!(session.facts().pending, 1);
    assert!(session.again.read().is_ok(), "woken");
    look(&session, &rings);
    assert_eq!(session.facts().pending, 0);
    assert!(session.delivered());
}

fn is_signalled(ring: &Vring) -> bool {
    let state = ring.get_ref();
    let call = state.get_call().as_ref();
    call.is_some_and(|call| doorbell::read(call.as_raw_fd()).is_ok())
}

/// As the shared-memory thread.
fn answer_by_own_thread(session: &Arc<Session>, token: Token) {
    let link = session.clone();
    assert!(ends_elsewhere(move || {
        write_for(&link.lifeline);
        Link::reply(&*link, token, &Ok(Response::Done));
    }));
}

/// A session that has taken a request, and whose worker has not ended that batch.
fn in_a_batch() -> (Arc<Dispatcher>, Arc<Session>, [Vring; 2], Taken) {
    let mem = memory();
    let (dispatcher, session) = session(&mem);
    let (_, control) = control_of(16, &mem);
    let rings = [
        with_call(control),
        with_call(ring_at(0x8_0000, 16, &mem, &[])),
    ];
    look_at_events(&session, &rings);
    let Take::Request(taken) = session.control.take(|_, _| true) else {
        panic!("no request");
    };
    (dispatcher, session, rings, taken)
}

#[test]
fn an_answer_of_a_sessions_own_thread_is_written_without_its_worker() {
    let (_dispatcher, session, rings, taken) = in_a_batch();
    session.control.end_batch();

    answer_by_own_thread(&session, taken.token);

    assert_eq!(session.facts().pending, 0);
    assert!(session.again.read().is_err(), "woken");
    assert!(session.delivered());
    assert!(is_signalled(&rings[0]));
}

#[test]
fn an_answer_that_cannot_be_signalled_yet_is_signalled_by_the_worker() {
    let (_dispatcher, session, rings, taken) = in_a_batch();
    session.control.end_batch();
    rings[0].set_call(None);

    answer_by_own_thread(&session, taken.token);

    assert_eq!(session.facts().pending, 0);
    assert!(session.again.read().is_ok(), "not woken");
    let rings = rings.map(with_call);
    look(&session, &rings);
    assert!(is_signalled(&rings[0]));
}

#[test]
fn an_answer_that_was_written_during_a_batch_is_signalled_although_the_rings_stop() {
    let (_dispatcher, session, rings, taken) = in_a_batch();
    answer_by_own_thread(&session, taken.token);
    assert!(!is_signalled(&rings[0]), "the batch has not ended");

    session.stop();

    assert!(is_signalled(&rings[0]));
}

#[test]
fn an_answer_without_a_call_descriptor_is_signalled_when_there_is_one() {
    let mem = memory();
    let (control, ring) = control_of(16, &mem);
    let Take::Request(taken) = control.take(|_, _| true) else {
        panic!("no request");
    };
    control.reply(taken.token, &Ok(Response::Done));
    control.end_batch();

    let ring = with_call(ring);
    control.end_batch();

    assert!(is_signalled(&ring));
}

#[test]
fn what_one_batch_leaves_for_the_next_is_not_delivered() {
    let mem = memory();
    let (_dispatcher, session) = session(&mem);
    let (_, control) = control_of(16, &mem);
    let events = ring_at(0x8_0000, 512, &mem, &[event_buffer()]);
    let rings = [with_call(control), with_call(events)];
    look(&session, &rings);
    // In no RAM: given back, and the event is for the next one.
    publish(&mem, &rings[1], &[0; MAX_PER_KICK + 44]);
    Link::events(&*session);

    assert!(look(&session, &rings));

    assert!(!session.delivered());
    look(&session, &rings);
    assert!(session.delivered());
}

/// Requests of a driver that goes on are served, and some are kept once more.
#[test]
fn a_stop_that_comes_while_kept_requests_are_served_ends() {
    const ROUNDS: usize = 20;
    for round in 0..ROUNDS {
        let mem = memory();
        let (_dispatcher, session) = session(&mem);
        let rings = [
            with_call(ring_at(0, 16, &mem, &[])),
            with_call(ring_at(0x8_0000, 16, &mem, &[])),
        ];
        look(&session, &rings);
        session.stop();
        // As after a pause and a whole round of the ring: it is no new driver.
        session.control.counters.chains.store(5, Ordering::Relaxed);
        let epoch = session.dispatcher.start(session.peer, false);
        session.dispatcher.stop(session.peer, || false);
        let requests = (0..1000).map(|n| get_caps(epoch, n));
        lock(&session.deferred).extend(requests);
        let worker = session.clone();
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            look(&worker, &rings);
            let _ = done.send(());
        });
        while !lock(&session.phase).running {
            std::hint::spin_loop();
        }
        session.stop();
        let ended = ended.recv_timeout(Duration::from_secs(60));
        assert!(ended.is_ok(), "round {round}: waited 60 s for the worker");
    }
}
