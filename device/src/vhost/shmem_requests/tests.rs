// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Jobs of a front end while the kernel is asked what its VMM holds.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::sync::Weak;
use std::sync::mpsc::{Receiver, Sender};

use bufshare_protocol::types::{Extent, Way};
use log::Record;

use super::sent_files::KEPT_SAY;
use super::*;
use crate::backing::FileId;
use crate::backing::file_hold::FileHold;
use crate::backing::tests::ram;
use crate::broker::{EffectId, MapSource, PeerId};
use crate::soon::soon as limit;
use crate::vhost::limits::{LOOK_TIME, MAX_KEPT_DMABUFS, MAX_OWNER_FILES};
use crate::vhost::queue::tests::memory;
use crate::vhost::session::tests::session;

const WINDOWS: u32 = 256;

/// Whose RAM is given out in these tests.
const LOT: Lot = Lot {
    owner: PeerId(2),
    udmabuf: false,
};

/// For a kernel that answers at once.
fn shmem() -> ShmemRequests {
    let limiters = Arc::new(Limiters::default());
    let mut shmem = ShmemRequests::new(1 << 20, WINDOWS, Process::default(), limiters).unwrap();
    shmem.clock = || Duration::ZERO;
    shmem
}

thread_local! {
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Whatever is asked of the kernel seems to take half of [`LOOK_TIME`] at least.
fn slow_clock() -> Duration {
    let half = LOOK_TIME.checked_div(2).unwrap();
    NOW.set(NOW.get().saturating_add(half));
    NOW.get()
}

fn window_file(hold: FileHold) -> WindowFile {
    WindowFile {
        hold: Arc::new(hold),
        lot: LOT,
    }
}

/// The VMM has unmapped a file. The kernel gives one answer about it for each that is sent.
fn keep(shmem: &ShmemRequests, effect: u64, lot: Lot) -> (Receiver<()>, Sender<bool>) {
    let (hold, asked, kernel) = FileHold::slow();
    let file = WindowFile {
        hold: Arc::new(hold),
        lot,
    };
    let at = effect.checked_mul(PAGE).unwrap();
    lock(&shmem.state).files_mut().insert(at, file);
    shmem.said_returned(EffectId(effect), at, PAGE);
    (asked, kernel)
}

fn job(id: u64) -> Job {
    Job {
        id: EffectId(id),
        request: VmmRequest::Barrier,
        ram: Arc::default(),
    }
}

#[test]
fn jobs_are_queued_while_the_kernel_is_asked_who_holds_a_file() {
    type Ask = fn(&ShmemRequests);
    let asks: [(&str, Ask); 8] = [
        ("holds", |shmem| assert!(shmem.holds())),
        ("look_at_kept", |shmem| {
            shmem.said_returned(EffectId(1), 0, PAGE);
            assert_eq!(shmem.look_at_kept(LOT), (vec![], 0));
            assert!(shmem.keeps(EffectId(1)));
        }),
        ("may_show", |shmem| assert!(shmem.may_show())),
        ("forget_dropped", |shmem| assert!(!shmem.forget_dropped())),
        ("wait_released", |shmem| {
            assert!(!shmem.wait_released(Duration::ZERO, || false));
        }),
        ("has_released", |shmem| {
            lock(&shmem.state).closed = true;
            assert!(!shmem.has_released(0));
        }),
        ("turn", |shmem| {
            lock(&shmem.state).forced = Instant::now().checked_sub(DROP_WAIT);
            assert_eq!(shmem.turn_to_unmap(0), Turn::Ask);
        }),
        ("next", |shmem| {
            assert!(matches!(shmem.next(), Some(Next::Job(..))));
        }),
    ];
    for (what, ask) in asks {
        let shmem = shmem();
        let (hold, asked, answer) = FileHold::slow();
        lock(&shmem.state).files_mut().insert(0, window_file(hold));
        let (queued, is_queued) = std::sync::mpsc::channel();

        std::thread::scope(|scope| {
            scope.spawn(|| ask(&shmem));
            asked.recv_timeout(limit()).unwrap();
            scope.spawn(|| {
                shmem.push(job(1));
                queued.send(()).unwrap();
            });
            let in_time = is_queued.recv_timeout(limit());
            // Or else the test does not end.
            answer.send(true).unwrap();
            assert!(in_time.is_ok(), "{what}: the dispatcher waits");
        });
    }
}

#[test]
fn map_request_does_not_wait_while_the_queues_are_stopped() {
    let shmem = shmem();
    let (hold, asked, _answer) = FileHold::slow();
    lock(&shmem.state).files_mut().insert(0, window_file(hold));

    assert_eq!(shmem.turn_to_map(0), Turn::Stopped);
    shmem.force();
    assert_eq!(shmem.turn_to_map(0), Turn::Stopped);

    assert!(asked.try_recv().is_err(), "the kernel was asked");
    shmem.set_running(true);
    assert_eq!(shmem.turn_to_map(0), Turn::Ask);
    shmem.forget_jobs();
    assert_eq!(shmem.turn_to_map(0), Turn::Dropped);
    shmem.close();
    assert_eq!(shmem.turn_to_map(0), Turn::Closed);
}

#[test]
fn vmm_that_is_given_a_file_meanwhile_has_not_dropped_all() {
    let shmem = shmem();
    let (hold, asked, answer) = FileHold::slow();
    lock(&shmem.state).files_mut().insert(0, window_file(hold));

    std::thread::scope(|scope| {
        let dropped = scope.spawn(|| shmem.forget_dropped());
        asked.recv_timeout(limit()).unwrap();
        let (other, _, _) = FileHold::slow();
        lock(&shmem.state)
            .files_mut()
            .insert(PAGE, window_file(other));
        answer.send(false).unwrap();
        assert!(!dropped.join().unwrap());
    });

    assert_eq!(lock(&shmem.state).files.len(), 2);
    assert_eq!(lock(&shmem.state).epoch, 0);
}

#[test]
fn jobs_are_forgotten_with_the_one_that_is_being_done() {
    let shmem = shmem();
    shmem.push(job(1));
    shmem.push(job(2));
    let Some(Next::Job(_, _, epoch)) = shmem.next() else {
        panic!("no job")
    };

    shmem.forget_jobs();

    // This one does not wait: it fails where the other would wait for a restart.
    assert_eq!(shmem.turn_to_map(epoch), Turn::Dropped);
    assert_eq!(shmem.turn_to_unmap(epoch), Turn::Dropped);
    assert_eq!(shmem.jobs(), 1, "it is still in hand");
    shmem.set_running(true);
    assert_eq!(shmem.turn_to_unmap(epoch), Turn::Dropped);
    shmem.push(job(3));
    let Some(Next::Job(_, _, epoch)) = shmem.next() else {
        panic!("no job")
    };
    assert_eq!(shmem.turn_to_unmap(epoch), Turn::Ask);
}

/// As often as it is asked in a test.
fn answer_always(kernel: &std::sync::mpsc::Sender<bool>, held: bool) {
    for _ in 0..16 {
        kernel.send(held).unwrap();
    }
}

#[test]
fn vmm_that_dropped_its_windows_has_dropped_them_also_if_it_keeps_another_file() {
    let shmem = shmem();
    let (_asked, held) = keep(&shmem, 1, LOT);
    let (window, _asked_too, shown) = FileHold::slow();
    lock(&shmem.state)
        .files_mut()
        .insert(0, window_file(window));

    answer_always(&held, true);
    answer_always(&shown, false);

    assert!(shmem.forget_dropped());
    assert!(shmem.keeps(EffectId(1)));
    assert!(shmem.holds());
}

#[test]
fn nothing_counts_as_dropped_while_the_dispatcher_does_not_know_what_is_kept() {
    let shmem = shmem();
    shmem.push(job(1));
    let Some(Next::Job(..)) = shmem.next() else {
        panic!("no job")
    };
    let (window, _asked, shown) = FileHold::slow();
    lock(&shmem.state)
        .files_mut()
        .insert(0, window_file(window));
    let _kept = keep(&shmem, 1, LOT);
    answer_always(&shown, false);

    assert!(!shmem.forget_dropped());

    shmem.ended();
    assert!(shmem.forget_dropped());
}

/// Held since then, whatever the kernel has said of it.
fn keep_since(shmem: &ShmemRequests, effect: u64, since: Instant) -> (Receiver<()>, Sender<bool>) {
    let (hold, asked, kernel) = FileHold::slow();
    answer_always(&kernel, true);
    lock(&shmem.state).kept.push(Kept {
        effect: EffectId(effect),
        file: window_file(hold),
        len: PAGE,
        since,
        seen: None,
        said: false,
    });
    (asked, kernel)
}

fn ago(time: Duration) -> Instant {
    Instant::now().checked_sub(time).unwrap()
}

#[test]
fn operator_is_notified_of_all_that_is_kept_but_not_again_and_again() {
    let shmem = shmem();
    let keep = |effect, since| keep_since(&shmem, effect, since);
    let _kernels = [
        keep(1, ago(KEPT_SAY)),
        keep(2, ago(KEPT_SAY)),
        keep(3, Instant::now()),
    ];
    assert_eq!(shmem.look_at_kept(LOT).1, 2 * PAGE);
    assert_eq!(shmem.look_at_kept(LOT).1, 0);

    let _kernel = keep(4, ago(KEPT_SAY));
    assert_eq!(shmem.look_at_kept(LOT).1, 0, "so soon");

    lock(&shmem.state).kept_said = Some(ago(KEPT_SAY));
    assert_eq!(shmem.look_at_kept(LOT).1, 3 * PAGE);
    lock(&shmem.state).kept_said = Some(ago(KEPT_SAY));
    assert_eq!(shmem.look_at_kept(LOT).1, 0, "nothing new");
}

#[test]
fn operator_hears_nothing_of_what_was_held_only_before_the_time_was_up() {
    let shmem = shmem();
    let other = Lot {
        owner: PeerId(3),
        ..LOT
    };
    let _kernel = keep_since(&shmem, 1, Instant::now());
    assert_eq!(shmem.look_at_kept(LOT).1, 0);
    for kept in &mut lock(&shmem.state).kept {
        kept.since = ago(KEPT_SAY);
        kept.seen = Some(ago(KEPT_SAY - Duration::from_millis(1)));
    }

    assert_eq!(shmem.look_at_kept(other).1, 0, "nobody asked since");
    assert_eq!(shmem.look_at_kept(LOT).1, PAGE);
}

#[test]
fn operator_is_notified_of_nothing_that_the_kernel_was_not_asked_about() {
    let mut shmem = shmem();
    shmem.clock = slow_clock;
    let _kernels = [1, 2, 3].map(|effect| keep_since(&shmem, effect, ago(KEPT_SAY)));

    // Two answers take all the time.
    assert_eq!(shmem.look_at_kept(LOT).1, 2 * PAGE);
    lock(&shmem.state).kept_said = Some(ago(KEPT_SAY));
    assert_eq!(shmem.look_at_kept(LOT).1, 3 * PAGE);
}

#[test]
fn unmapping_does_not_wait_for_the_kernel() {
    let shmem = shmem();
    for id in [1, 2] {
        let (hold, asked, answer) = FileHold::slow();
        lock(&shmem.state)
            .files_mut()
            .insert(id * PAGE, window_file(hold));
        // Or else the test does not end where it fails.
        answer_always(&answer, true);

        shmem.said_returned(EffectId(id), id * PAGE, PAGE);

        assert!(asked.try_recv().is_err(), "the kernel was asked");
        assert!(shmem.keeps(EffectId(id)));
    }
}

#[test]
fn nothing_is_kept_of_a_file_of_which_the_kernel_reports_nothing() {
    let shmem = shmem();
    let (socket, _) = UnixStream::pair().unwrap();
    let (_, hold) = FileHold::ram(&Arc::new(OwnedFd::from(socket).into()));
    lock(&shmem.state).files_mut().insert(0, window_file(hold));

    shmem.said_returned(EffectId(1), 0, PAGE);

    assert!(!shmem.keeps(EffectId(1)));
    assert!(lock(&shmem.state).files.is_empty());
}

#[test]
fn kernel_that_answers_slowly_is_asked_about_few_kept_files_at_a_time() {
    let mut shmem = shmem();
    shmem.clock = slow_clock;
    let kernels = [1, 2, 3].map(|id| {
        let (asked, answer) = keep(&shmem, id, LOT);
        answer_always(&answer, id != 3);
        (asked, answer)
    });
    let asked = || [0, 1, 2].map(|id: usize| kernels[id].0.try_iter().count());

    // Two answers take all the time.
    assert_eq!(shmem.look_at_kept(LOT), (vec![], 0));
    assert_eq!(asked(), [1, 1, 0]);
    let rest = lock(&shmem.state).budget(LOT).rest(Instant::now());
    assert!(rest > Duration::ZERO);
    let (wait, _) = lock(&shmem.state).next_look(Instant::now()).unwrap();
    assert!(wait > Duration::ZERO, "{wait:?}");

    assert_eq!(shmem.look_at_kept(LOT), (vec![EffectId(3)], 0));
    assert_eq!(asked(), [1, 0, 1]);
}

/// As where it is the last that has the RAM of a VM whose VMM was killed.
#[test]
fn file_that_takes_long_to_free_costs_its_owner_no_more_than_the_question_about_it() {
    thread_local! {
        static FILE: RefCell<Weak<FileHold>> = const { RefCell::new(Weak::new()) };
    }
    let mut shmem = shmem();
    shmem.clock = || {
        let there = FILE.with_borrow(|file| file.strong_count() > 0);
        Duration::from_secs(if there { 0 } else { 3600 })
    };
    let (hold, _asked, kernel) = FileHold::slow();
    let file = window_file(hold);
    FILE.set(Arc::downgrade(&file.hold));
    lock(&shmem.state).files_mut().insert(PAGE, file);
    shmem.said_returned(EffectId(1), PAGE, PAGE);
    answer_always(&kernel, false);

    assert_eq!(shmem.look_at_kept(LOT), (vec![EffectId(1)], 0));

    assert_eq!((shmem.clock)(), Duration::from_secs(3600));
    let rest = lock(&shmem.state).budget(LOT).rest(Instant::now());
    assert_eq!(rest, Duration::ZERO);
}

#[test]
fn slow_files_of_one_owner_do_not_hold_up_looks_at_those_of_others() {
    let mut shmem = shmem();
    shmem.clock = slow_clock;
    let other = Lot {
        owner: PeerId(3),
        udmabuf: false,
    };
    let slow: Vec<_> = (0..100).map(|id| keep(&shmem, 1000 + id, LOT)).collect();
    for (_, kernel) in &slow {
        answer_always(kernel, true);
    }
    let (_asked, kernel) = keep(&shmem, 1, other);
    answer_always(&kernel, false);
    let soon = Instant::now().checked_add(limit()).unwrap();

    // Whichever comes first.
    let mut lots = Vec::new();
    let mut gone = Vec::new();
    while gone.is_empty() {
        assert!(lots.len() < 2, "{lots:?}");
        let (_, lot) = lock(&shmem.state).next_look(soon).unwrap();
        lots.push(lot);
        gone = shmem.look_at_kept(lot).0;
    }

    assert_eq!(gone, [EffectId(1)]);
    assert!(shmem.keeps(EffectId(1000)));
}

#[test]
fn job_waits_for_no_more_than_one_look() {
    let shmem = shmem();
    let kernels = [2, 3, 4].map(|owner| {
        let lot = Lot {
            owner: PeerId(owner),
            udmabuf: false,
        };
        keep(&shmem, owner.into(), lot)
    });
    for budget in lock(&shmem.state).budgets.values_mut() {
        budget.keep(Instant::now().checked_sub(limit()).unwrap());
    }
    shmem.push(job(1));

    assert!(matches!(shmem.next(), Some(Next::Look(_))));
    assert!(matches!(shmem.next(), Some(Next::Job(..))));
    assert!(matches!(shmem.next(), Some(Next::Look(_))));
    assert!(matches!(shmem.next(), Some(Next::Look(_))), "no job waits");
    drop(kernels);
}

/// Gives a page of another file.
fn give_file(shmem: &ShmemRequests, at: u64, lot: Lot) -> io::Result<()> {
    let file = backing::tests::memfd(PAGE, true);
    let piece = FdPiece {
        id: FileId::of(&file).unwrap(),
        file,
        fd_offset: 0,
        len: PAGE,
        shm_offset: at,
    };
    shmem.give_file(&piece, lot, 0).map(drop)
}

#[test]
fn nothing_more_is_given_of_an_owner_whose_files_take_too_long_to_mark() {
    let mut shmem = shmem();
    // All that is asked seems to take a second.
    shmem.clock = || {
        NOW.set(NOW.get() + Duration::from_secs(1));
        NOW.get()
    };

    give_file(&shmem, 0, LOT).unwrap();

    let error = give_file(&shmem, PAGE, LOT).unwrap_err();
    assert!(error.to_string().contains("takes too long"), "{error}");
    assert_eq!(lock(&shmem.state).files.len(), 1);
    let other = Lot {
        owner: PeerId(3),
        udmabuf: false,
    };
    give_file(&shmem, PAGE, other).unwrap();
}

#[test]
fn marks_that_take_as_long_as_usual_are_not_counted() {
    let mut shmem = shmem();
    shmem.clock = || {
        NOW.set(NOW.get() + MARK_FREE);
        NOW.get()
    };

    for at in 0..100 {
        give_file(&shmem, at * PAGE, LOT).unwrap();
    }

    let rest = lock(&shmem.state).budget(LOT).rest(Instant::now());
    assert_eq!(rest, Duration::ZERO);
}

#[test]
fn effect_that_kept_several_files_is_done_with_the_last_of_them() {
    let shmem = shmem();
    let mut kernels = Vec::new();
    for (at, held) in [(1, true), (2, false), (3, true)] {
        let (hold, asked, answer) = FileHold::slow();
        lock(&shmem.state)
            .files_mut()
            .insert(at * PAGE, window_file(hold));
        shmem.said_returned(EffectId(7), at * PAGE, PAGE);
        answer.send(held).unwrap();
        answer_always(&answer, false);
        kernels.push(asked);
    }

    assert_eq!(shmem.look_at_kept(LOT), (vec![], 0));
    assert_eq!(shmem.look_at_kept(LOT), (vec![EffectId(7)], 0));
}

#[test]
fn vmm_is_given_files_again_as_long_as_few_are_kept() {
    let shmem = shmem();
    let (a, b) = (PeerId(2), PeerId(3));
    let lot = |owner, udmabuf| Lot { owner, udmabuf };
    let fits = |owner, udmabuf| {
        let other = backing::tests::memfd(PAGE, true);
        lock(&shmem.state).has_room(lot(owner, udmabuf), &other, WINDOWS as usize)
    };
    // Windows are no files that are kept.
    for id in 0..100 {
        let (hold, ..) = FileHold::slow();
        lock(&shmem.state)
            .files_mut()
            .insert(id * PAGE, window_file(hold));
    }
    assert!(fits(a, false));

    for id in 0..MAX_OWNER_FILES {
        keep(&shmem, 1000 + u64::try_from(id).unwrap(), lot(a, false));
    }
    assert!(!fits(a, false));
    assert!(fits(b, false) && fits(a, true));

    for id in 0..MAX_KEPT_DMABUFS {
        keep(&shmem, 2000 + u64::try_from(id).unwrap(), lot(b, true));
    }
    assert!(!fits(a, true) && !fits(b, true));
    assert!(fits(b, false));
}

#[test]
fn windows_that_are_kept_one_owner_after_the_other_leave_each_its_descriptors() {
    let shmem = shmem();
    let lot = |owner| Lot {
        owner: PeerId(owner),
        udmabuf: false,
    };
    let mut next = 0;
    // As many windows as there can be, each in a file of its own, and all are kept.
    let mut windows_of = |owner| {
        let mut windows = Vec::new();
        while windows.len() < WINDOWS as usize {
            let (hold, ..) = FileHold::slow();
            let file = backing::tests::memfd(PAGE, true);
            let mut state = lock(&shmem.state);
            if !state.has_room(lot(owner), &file, WINDOWS as usize) {
                break;
            }
            let window = WindowFile {
                hold: Arc::new(hold),
                lot: lot(owner),
            };
            state.files_mut().insert(next * PAGE, window);
            windows.push(next * PAGE);
            next += 1;
        }
        for at in &windows {
            shmem.said_returned(EffectId(1), *at, PAGE);
        }
        windows.len()
    };

    assert_eq!(windows_of(2), WINDOWS as usize);
    // There is one descriptor for each window, and so many for each owner.
    assert_eq!(windows_of(3), 2 * MAX_OWNER_FILES);
    assert_eq!(windows_of(4), MAX_OWNER_FILES);
    assert_eq!(windows_of(2), 0);
}

thread_local! {
    /// What this thread wrote into the log.
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        LINES.with_borrow_mut(|lines| lines.push(record.args().to_string()));
    }

    fn flush(&self) {}
}

/// As a host whose memory for them is used up.
struct NoDmabufs;

impl udmabuf::Maker for NoDmabufs {
    fn make(&self, _: &[udmabuf::Item]) -> io::Result<OwnedFd> {
        Err(io::Error::from_raw_os_error(libc::ENOMEM))
    }
}

#[test]
fn many_buffers_of_which_no_file_can_be_made_write_few_lines() {
    log::set_logger(&Lines).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let (dispatcher, session) = session(&memory());
    let (ram, shmem) = (ram(), &session.shmem);
    let extents = vec![Extent {
        addr: 0x10000,
        len: PAGE,
    }];
    for id in 1..=500 {
        shmem.push(Job {
            id: EffectId(id),
            ram: Arc::new(ram.downgrade()),
            request: VmmRequest::Map {
                source: MapSource {
                    owner: PeerId(2),
                    way: Way::Udmabuf,
                    extents: extents.clone(),
                },
                writable: true,
                shm_offset: 0,
            },
        });
    }
    // Without a channel it is stuck.
    shmem.push(job(501));
    let sent = Sent {
        files: &session.files,
        peer: session.peer,
    };

    shmem.run(
        "a",
        &dispatcher,
        sent,
        Some(&NoDmabufs),
        |_| shmem.close(),
        || {},
    );

    assert_eq!(shmem.jobs(), 0);
    let lines = LINES.take();
    let of_buffers = lines
        .iter()
        .filter(|line| line.contains("a buffer cannot be mapped"));
    assert!((1..=40).contains(&of_buffers.count()), "{lines:#?}");
}
