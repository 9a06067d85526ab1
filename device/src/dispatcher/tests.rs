// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The dispatcher with sessions that only take notes.

use std::cell::Cell;
use std::time::{Duration, Instant};

use bufshare_protocol::request::{Attach, Export, Request};
use bufshare_protocol::response::Response;
use bufshare_protocol::types::{BufferId, Extent, Name, Rights};

use super::stops::Circles;
use super::*;
use crate::broker::limits::MAX_REVOKE;
use crate::broker::{Allow, Config, IdSource, Limits, PeerConfig};
use crate::locks::lock;
use crate::soon::soon as limit;

const A: PeerId = PeerId(1);
const B: PeerId = PeerId(2);
const PAGE: u64 = 4096;
const ID: BufferId = BufferId([1; 16]);

/// The first one is [`ID`].
struct Ids(u8);

impl IdSource for Ids {
    fn fresh(&mut self) -> Option<BufferId> {
        self.0 = self.0.checked_add(1)?;
        Some(BufferId([self.0; 16]))
    }
}

/// What one session was asked for.
#[derive(Default)]
struct Notes {
    jobs: Mutex<Vec<Job>>,
    replies: Mutex<BTreeMap<Token, Reply>>,
    /// How often there was news.
    news: AtomicUsize,
    /// Its driver is yet to be given something.
    late: AtomicBool,
    /// Has a bug that shows then.
    broken: AtomicBool,
    /// [`Link::fail`] was called.
    failed: AtomicBool,
    qemu: AtomicBool,
}

impl Link for Notes {
    fn job(&self, job: Job) {
        lock(&self.jobs).push(job);
    }

    fn forget_jobs(&self) {
        lock(&self.jobs).clear();
    }

    fn reply(&self, token: Token, reply: &Reply) {
        lock(&self.replies).insert(token, reply.clone());
    }

    fn events(&self) {
        self.news.fetch_add(1, Ordering::AcqRel);
        assert!(!self.broken.load(Ordering::Acquire), "as a bug would");
    }

    fn delivered(&self) -> bool {
        !self.late.load(Ordering::Acquire)
    }

    fn force(&self) {}

    fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    fn vmm_pid(&self) -> Option<u32> {
        None
    }

    fn is_qemu(&self) -> bool {
        self.qemu.load(Ordering::Acquire)
    }

    fn facts(&self) -> SessionFacts {
        SessionFacts::default()
    }
}

/// A dispatcher, and the sessions of a and b, which may import from each other.
fn dispatcher() -> (Arc<Dispatcher>, BTreeMap<PeerId, Arc<Notes>>) {
    dispatcher_that_waits(RevokeWait::Unlimited)
}

fn dispatcher_that_waits(wait: RevokeWait) -> (Arc<Dispatcher>, BTreeMap<PeerId, Arc<Notes>>) {
    let peer = |name: &str| PeerConfig {
        name: Name::new(name).unwrap(),
        raw_ram: true,
        enforces_ro: false,
    };
    let allow = |exporter, importer| Allow {
        exporter,
        importer,
        rights: Rights::RW,
    };
    let config = Config {
        peers: vec![peer("a"), peer("b")],
        allow: vec![allow(A, B), allow(B, A)],
        shm_size: 1 << 20,
        host_udmabuf: false,
        limits: Limits::default(),
        started_us: 0,
    };
    let broker = Broker::new(config, Box::new(Ids(0))).unwrap();
    let dispatcher = Dispatcher::new(broker, &["a".into(), "b".into()], wait);
    let mut sessions = BTreeMap::new();
    for peer in [A, B] {
        let notes = Arc::new(Notes::default());
        dispatcher.connect(peer, notes.clone());
        sessions.insert(peer, notes);
        let ram = RamRegion {
            addr: 0,
            len: 16 * PAGE,
            sealed: true,
        };
        dispatcher.step(|broker, _| broker.set_ram(peer, vec![ram]));
        dispatcher.start(peer, true);
    }
    (dispatcher, sessions)
}

/// The VMM does what it was asked for.
fn serve(dispatcher: &Dispatcher, notes: &Notes) {
    loop {
        let jobs = std::mem::take(&mut *lock(&notes.jobs));
        if jobs.is_empty() {
            return;
        }
        for job in jobs {
            dispatcher.complete(job.id, Outcome::Done);
        }
    }
}

/// A request and its answer, if it has one.
fn ask(dispatcher: &Dispatcher, peer: PeerId, notes: &Notes, request: Request) -> Option<Reply> {
    assert!(dispatcher.request(peer, 0, Token(0), request).is_none());
    serve(dispatcher, notes);
    lock(&notes.replies).remove(&Token(0))
}

/// A buffer of a.
fn exported(dispatcher: &Dispatcher, sessions: &BTreeMap<PeerId, Arc<Notes>>) {
    let export = Request::Export(Box::new(Export {
        size: PAGE,
        extents: vec![Extent { addr: 0, len: PAGE }],
        ..Export::default()
    }));
    ask(dispatcher, A, &sessions[&A], export).unwrap().unwrap();
}

/// A buffer of a that b has mapped: what undoes that.
fn mapped(dispatcher: &Dispatcher, sessions: &BTreeMap<PeerId, Arc<Notes>>) -> Request {
    exported(dispatcher, sessions);
    let rights = Rights::RW;
    let attach = Request::Attach(Attach::new(ID, rights));
    let Ok(Response::Attached { handle, .. }) = ask(dispatcher, B, &sessions[&B], attach).unwrap()
    else {
        panic!()
    };
    let (offset, len) = (0, PAGE);
    let map = Request::Map {
        handle,
        offset,
        len,
    };
    let Ok(Response::Mapped { window, .. }) = ask(dispatcher, B, &sessions[&B], map).unwrap()
    else {
        panic!()
    };
    Request::Unmap {
        windows: vec![window],
    }
}

#[test]
fn a_stop_is_woken_by_nothing_but_what_it_waits_for() {
    let (dispatcher, sessions) = dispatcher();
    let unmap = mapped(&dispatcher, &sessions);
    let stopping = {
        let dispatcher = dispatcher.clone();
        let end = Instant::now() + limit();
        std::thread::spawn(move || dispatcher.stop(A, || Instant::now() > end))
    };
    let end = Instant::now() + limit();
    while lock(&dispatcher.state).stopping(A).is_none() {
        assert!(Instant::now() < end, "waited {:?} for the stop", limit());
        std::thread::yield_now();
    }
    let before = dispatcher.notified.load(Ordering::Acquire);

    for _ in 0..100 {
        let caps = Request::GetCaps { version: 2 };
        ask(&dispatcher, B, &sessions[&B], caps).unwrap().unwrap();
    }
    assert_eq!(dispatcher.notified.load(Ordering::Acquire), before);
    assert!(!stopping.is_finished());

    ask(&dispatcher, B, &sessions[&B], unmap);
    stopping.join().unwrap();
    assert!(dispatcher.notified.load(Ordering::Acquire) > before);
}

/// Waits until `done`.
fn soon(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit(), "waited {:?} for {what}", limit());
        std::thread::yield_now();
    }
}

#[test]
fn two_stops_of_one_peer_at_once_wake_nobody_again_and_again() {
    let (dispatcher, sessions) = dispatcher_that_waits(RevokeWait::Limit(Duration::ZERO));
    mapped(&dispatcher, &sessions);
    dispatcher.stop(B, || true);
    let ends = [AtomicBool::new(false), AtomicBool::new(false)];
    let looks = AtomicUsize::new(0);
    let has_forced = || {
        lock(&dispatcher.state)
            .stopping(A)
            .is_some_and(|stop| !stop.forced.is_empty())
    };

    std::thread::scope(|scope| {
        let first = scope.spawn(|| dispatcher.stop(A, || ends[0].load(Ordering::Acquire)));
        soon("the first stop", has_forced);
        let second = scope.spawn(|| {
            dispatcher.stop(A, || {
                looks.fetch_add(1, Ordering::AcqRel);
                ends[1].load(Ordering::Acquire)
            });
        });
        soon("the second stop", || looks.load(Ordering::Acquire) > 0);
        ends[0].store(true, Ordering::Release);
        first.join().unwrap();
        let before = dispatcher.notified.load(Ordering::Acquire);
        let seen = looks.load(Ordering::Acquire);
        soon("looks of the second stop", || {
            looks.load(Ordering::Acquire) > seen + 9
        });
        let woken = dispatcher.notified.load(Ordering::Acquire) - before;

        ends[1].store(true, Ordering::Release);
        second.join().unwrap();
        assert!(woken <= 2, "{woken}");
    });
}

#[test]
fn all_importers_that_a_stop_forces_are_named_in_one_line() {
    let (dispatcher, sessions) = dispatcher();
    sessions[&B].qemu.store(true, Ordering::Release);
    let line = |peers: &[PeerId]| lock(&dispatcher.state).forced_line(peers);

    let both = line(&[A, B]).unwrap();
    assert!(
        both.contains("stopped while a, b are stopped too"),
        "{both}"
    );
    assert!(both.contains("QEMU 11.1 dies of that (b)"), "{both}");

    let one = line(&[A]).unwrap();
    assert!(one.contains("stopped while a is stopped too"), "{one}");
    assert!(!one.contains("QEMU"), "{one}");
    assert_eq!(line(&[]), None);
    assert_eq!(line(&[PeerId(3)]), None);
}

#[test]
fn ring_of_stops_is_seen_whoever_else_they_wait_for() {
    let waits = |peer, others: &[u32]| (PeerId(peer), others.iter().copied().map(PeerId).collect());
    // The last two wait for nobody.
    let circles = Circles([waits(1, &[2]), waits(2, &[3, 8, 9]), waits(3, &[1])].into());

    for (one, other) in [(1, 2), (2, 1), (1, 3), (3, 2)] {
        assert!(circles.hold(PeerId(one), PeerId(other)), "{one} {other}");
    }
    assert!(!circles.hold(PeerId(2), PeerId(9)));
}

#[test]
fn a_reset_leaves_no_job_about_windows_that_the_vmm_has_dropped() {
    let (dispatcher, sessions) = dispatcher();
    let unmap = mapped(&dispatcher, &sessions);
    ask(&dispatcher, B, &sessions[&B], unmap);
    dispatcher.stop(B, || true);
    // Between the look at what b's VMM holds and the reset, a job comes.
    let back = dispatcher.request(
        A,
        0,
        Token(1),
        Request::Unexport {
            id: ID,
            quiesced: false,
        },
    );
    assert!(back.is_none());
    assert_eq!(lock(&sessions[&B].jobs).len(), 1, "to unmap it");

    dispatcher.reset(B, true);

    let jobs = std::mem::take(&mut *lock(&sessions[&B].jobs));
    assert!(jobs.is_empty(), "{jobs:?}");
    assert_eq!(dispatcher.report().holds, []);
    dispatcher.start(B, true);
    assert!(lock(&sessions[&B].jobs).is_empty());
}

#[test]
fn a_reset_that_overtakes_a_stop_revokes_the_rest_in_steps() {
    // Whether the stop has begun, or is still to come.
    for begun in [true, false] {
        let (dispatcher, sessions) = dispatcher();
        let news = || sessions[&B].news.load(Ordering::Acquire);
        for _ in 0..=3 * MAX_REVOKE {
            exported(&dispatcher, &sessions);
        }
        if begun {
            dispatcher.step(|broker, _| broker.peer_stopped(A));
        }
        let before = news();

        dispatcher.reset(A, false);

        // That a is down is reported first.
        assert_eq!(news() - before, if begun { 4 } else { 5 });
        assert!(dispatcher.report().broker.buffers.is_empty());
    }
}

#[test]
fn a_stop_looks_by_the_clock_however_often_others_wake_it() {
    let (dispatcher, sessions) = dispatcher();
    mapped(&dispatcher, &sessions);
    let answered = AtomicBool::new(false);
    let end = Instant::now() + limit();

    std::thread::scope(|scope| {
        let stop = scope.spawn(|| {
            let late = Cell::new(false);
            dispatcher.stop(A, || {
                late.set(Instant::now() > end);
                late.get()
            });
            answered.store(true, Ordering::Release);
            late.get()
        });
        soon("the stop", || lock(&dispatcher.state).stopping(A).is_some());
        scope.spawn(|| {
            while !answered.load(Ordering::Acquire) {
                dispatcher.changed.notify_all();
                std::thread::sleep(STOP_LOOK / 10);
            }
        });
        // As what nobody says, such as that another stop of a ring was answered.
        lock(&dispatcher.state).broker.windows_gone(B);
        assert!(!stop.join().unwrap(), "it waits");
    });
}

#[test]
fn a_bug_in_one_session_keeps_nothing_from_the_others() {
    let (dispatcher, sessions) = dispatcher();
    mapped(&dispatcher, &sessions);
    let news = || sessions[&B].news.load(Ordering::Acquire);
    let before = news();
    sessions[&A].broken.store(true, Ordering::Release);

    // First a is notified, then b.
    dispatcher.close();

    assert!(sessions[&A].failed.load(Ordering::Acquire), "it ends");
    assert!(!sessions[&B].failed.load(Ordering::Acquire));
    assert!(news() > before);
    assert_eq!(
        dispatcher.delivering.load(Ordering::Acquire),
        0,
        "all is done"
    );
    assert!(!dispatcher.failed(), "the broker is whole");
}

#[test]
fn a_bug_that_ends_the_deadlines_ends_the_program() {
    let (dispatcher, sessions) = dispatcher();
    mapped(&dispatcher, &sessions);
    let stop = Arc::new(Stop::new().unwrap());
    dispatcher.stop_on_failure(stop.clone());
    let deadlines = dispatcher.start_deadlines().unwrap();
    lock(&dispatcher.deadlines.queue).bug = true;
    dispatcher.deadlines.wake.notify_one();

    deadlines.join().unwrap();

    assert!(dispatcher.failed() && stop.requested());
}

#[test]
fn a_broker_that_a_panic_left_half_changed_is_not_used_again() {
    let (dispatcher, sessions) = dispatcher();
    let stop = Arc::new(Stop::new().unwrap());
    dispatcher.stop_on_failure(stop.clone());
    mapped(&dispatcher, &sessions);
    dispatcher.close();
    assert!(dispatcher.next_event(B, usize::MAX).is_some(), "of several");

    let panicked = std::thread::scope(|scope| {
        let change = || dispatcher.step(|_, _| panic!("as a bug would"));
        scope.spawn(change).join().is_err()
    });

    assert!(panicked && dispatcher.failed());
    assert!(stop.requested(), "the daemon ends");
    let caps = Request::GetCaps { version: 2 };
    assert_eq!(ask(&dispatcher, B, &sessions[&B], caps), None);
    assert_eq!(dispatcher.next_event(B, usize::MAX), None);
    assert_eq!(dispatcher.caps(B), None);
    assert!(dispatcher.report().ending);
    // Nobody knows whether b has unmapped it: no stop is answered before its end.
    let looks = AtomicUsize::new(0);
    dispatcher.stop(A, || looks.fetch_add(1, Ordering::AcqRel) == 2);
    assert_eq!(looks.load(Ordering::Acquire), 3);
    dispatcher.disconnect(B);
    assert_eq!(dispatcher.wait_until_closed(|| false), []);
    assert!(lock(&sessions[&B].jobs).is_empty());
}

#[test]
fn a_driver_that_makes_more_to_do_holds_the_end_up_for_some_seconds() {
    let seconds = Duration::from_secs;
    let limit = RevokeWait::Limit(seconds(30));
    for (wait, stopped) in [(limit, 30), (RevokeWait::Unlimited, 60)] {
        let (dispatcher, _) = dispatcher_that_waits(wait);
        let over = |asked, waited, delivering: Option<u64>| {
            dispatcher.is_end_over(asked, seconds(waited), delivering.map(seconds))
        };

        // However long it took until nothing was left.
        for waited in [0, 1000] {
            assert!(!over(false, waited, Some(4)));
            assert!(over(false, waited, Some(5)));
        }
        assert!(!over(false, stopped - 1, None) && over(false, stopped, None));
        assert!(!over(true, stopped + 4, None) && over(true, stopped + 5, None));
        assert_eq!(dispatcher.close_wait(), seconds(stopped + 10));
    }
}

#[test]
fn the_end_waits_until_every_session_has_delivered() {
    // However little of the time is left when the last importer is gone.
    let (dispatcher, sessions) = dispatcher_that_waits(RevokeWait::Limit(Duration::ZERO));
    mapped(&dispatcher, &sessions);
    dispatcher.close();
    serve(&dispatcher, &sessions[&B]);
    dispatcher.disconnect(B);
    sessions[&A].late.store(true, Ordering::Release);
    let looks = AtomicUsize::new(0);

    let left = dispatcher.wait_until_closed(|| {
        if looks.fetch_add(1, Ordering::AcqRel) == 3 {
            sessions[&A].late.store(false, Ordering::Release);
        }
        false
    });

    assert_eq!(left, []);
    assert_eq!(looks.load(Ordering::Acquire), 4);
}

#[test]
fn deadline_that_is_disarmed_does_not_come() {
    let deadlines = Deadlines::default();
    for id in [1, 2, 3] {
        deadlines.arm(DeadlineId(id), Duration::ZERO);
    }

    deadlines.disarm(DeadlineId(1));
    deadlines.disarm(DeadlineId(7));

    assert_eq!(deadlines.next(), Some(DeadlineId(2)));
    assert_eq!(deadlines.next(), Some(DeadlineId(3)));
    deadlines.stop();
    assert_eq!(deadlines.next(), None);
}

#[test]
fn importers_that_run_are_waited_for_longer_than_they_have_to_release() {
    let (dispatcher, _) = dispatcher();
    let second = Duration::from_secs(1);
    assert_eq!(dispatcher.release, second);

    let forced = super::stops::FORCED_WAIT;
    assert_eq!(dispatcher.wait_for_running(Duration::ZERO), second + forced);
    assert_eq!(
        dispatcher.wait_for_running(10 * second),
        10 * second + forced
    );
}
