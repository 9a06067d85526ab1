// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Jobs of a front end while the kernel is asked what its VMM holds.

use std::cell::RefCell;
use std::os::fd::OwnedFd;

use bufshare_protocol::types::{Extent, Transport};
use log::Record;

use super::kept::KEPT_SAY;
use super::*;
use crate::broker::{EffectId, MapSource};
use crate::transport::lent::Lent;
use crate::transport::tests::ram;
use crate::vhost::backend::tests::session;
use crate::vhost::limits::{MAX_KEPT_DMABUFS, MAX_OWNER_FILES};
use crate::vhost::queue::tests::memory;

/// For what happens at once on an idle machine.
const SOON: Duration = Duration::from_secs(20);

fn port() -> Port {
    Port::new(1 << 20, Process::default(), Arc::new(Limiters::default())).unwrap()
}

fn loan(lent: Lent) -> Loan {
    Loan {
        lent: Arc::new(lent),
        owner: PeerId(2),
        udmabuf: false,
    }
}

fn job(id: u64) -> Job {
    Job::Prove { id: EffectId(id) }
}

#[test]
fn jobs_are_queued_while_the_kernel_is_asked_who_holds_a_file() {
    type Ask = fn(&Port);
    let asks: [(&str, Ask); 9] = [
        ("holds", |port| assert!(port.holds())),
        ("said_returned", |port| {
            port.said_returned(EffectId(1), 0, PAGE)
        }),
        ("look_at_kept", |port| {
            let mut state = lock(&port.state);
            let loan = state.lent_mut().remove(&0).unwrap();
            state.kept.push(Kept {
                effect: EffectId(1),
                loan,
                len: PAGE,
                since: Instant::now(),
                said: false,
            });
            drop(state);
            assert_eq!(port.look_at_kept(SOON), (vec![], 0));
            assert!(port.keeps(EffectId(1)));
        }),
        ("may_show", |port| assert!(port.may_show())),
        ("forget_dropped", |port| assert!(!port.forget_dropped())),
        ("wait_let_go", |port| {
            assert!(!port.wait_let_go(Duration::ZERO, || false));
        }),
        ("let_go", |port| {
            lock(&port.state).closed = true;
            assert!(!port.let_go(0));
        }),
        ("turn", |port| {
            lock(&port.state).forced = Instant::now().checked_sub(DROP_WAIT);
            assert_eq!(port.turn_to_unmap(0), Turn::Ask);
        }),
        ("next", |port| {
            assert!(matches!(port.next(), Some(Next::Job(..))));
        }),
    ];
    for (what, ask) in asks {
        let port = port();
        let (lent, asked, answer) = Lent::slow();
        lock(&port.state).lent_mut().insert(0, loan(lent));
        let (queued, is_queued) = std::sync::mpsc::channel();

        std::thread::scope(|scope| {
            scope.spawn(|| ask(&port));
            asked.recv_timeout(SOON).unwrap();
            scope.spawn(|| {
                port.push(job(1));
                queued.send(()).unwrap();
            });
            let in_time = is_queued.recv_timeout(SOON);
            // Or else the test does not end.
            answer.send(true).unwrap();
            assert!(in_time.is_ok(), "{what}: the hub waits");
        });
    }
}

#[test]
fn map_request_does_not_wait_while_the_queues_are_stopped() {
    let port = port();
    let (lent, asked, _answer) = Lent::slow();
    lock(&port.state).lent_mut().insert(0, loan(lent));

    assert_eq!(port.turn_to_map(0), Turn::Stopped);
    port.force();
    assert_eq!(port.turn_to_map(0), Turn::Stopped);

    assert!(asked.try_recv().is_err(), "the kernel was asked");
    port.set_running(true);
    assert_eq!(port.turn_to_map(0), Turn::Ask);
    port.forget_jobs();
    assert_eq!(port.turn_to_map(0), Turn::Dropped);
    port.close();
    assert_eq!(port.turn_to_map(0), Turn::Closed);
}

#[test]
fn vmm_that_is_lent_a_file_meanwhile_has_not_dropped_all() {
    let port = port();
    let (lent, asked, answer) = Lent::slow();
    lock(&port.state).lent_mut().insert(0, loan(lent));

    std::thread::scope(|scope| {
        let dropped = scope.spawn(|| port.forget_dropped());
        asked.recv_timeout(SOON).unwrap();
        let (other, _, _) = Lent::slow();
        lock(&port.state).lent_mut().insert(PAGE, loan(other));
        answer.send(false).unwrap();
        assert!(!dropped.join().unwrap());
    });

    assert_eq!(lock(&port.state).lent.len(), 2);
    assert_eq!(lock(&port.state).epoch, 0);
}

#[test]
fn jobs_are_forgotten_with_the_one_that_is_being_done() {
    let port = port();
    port.push(job(1));
    port.push(job(2));
    let Some(Next::Job(Job::Prove { .. }, _, epoch)) = port.next() else {
        panic!("no job")
    };

    port.forget_jobs();

    // This one does not wait: it fails where the other would wait for a restart.
    assert_eq!(port.turn_to_map(epoch), Turn::Dropped);
    assert_eq!(port.turn_to_unmap(epoch), Turn::Dropped);
    assert_eq!(port.jobs(), 1, "it is still in hand");
    port.set_running(true);
    assert_eq!(port.turn_to_unmap(epoch), Turn::Dropped);
    port.push(job(3));
    let Some(Next::Job(_, _, epoch)) = port.next() else {
        panic!("no job")
    };
    assert_eq!(port.turn_to_unmap(epoch), Turn::Ask);
}

/// As often as it is asked in a test.
fn answer_always(kernel: &std::sync::mpsc::Sender<bool>, held: bool) {
    for _ in 0..16 {
        kernel.send(held).unwrap();
    }
}

#[test]
fn vmm_that_dropped_its_windows_has_dropped_them_also_if_it_keeps_another_file() {
    let port = port();
    let (kept, _asked, held) = Lent::slow();
    let (window, _asked_too, shown) = Lent::slow();
    lock(&port.state).lent_mut().insert(0, loan(kept));
    answer_always(&held, true);
    port.said_returned(EffectId(1), 0, PAGE);
    lock(&port.state).lent_mut().insert(PAGE, loan(window));

    answer_always(&shown, false);

    assert!(port.forget_dropped());
    assert!(port.keeps(EffectId(1)));
    assert!(port.holds());
}

#[test]
fn nothing_counts_as_dropped_while_the_hub_does_not_know_what_is_kept() {
    let port = port();
    port.push(job(1));
    let Some(Next::Job(..)) = port.next() else {
        panic!("no job")
    };
    let (kept, _asked, held) = Lent::slow();
    let (window, _asked_too, shown) = Lent::slow();
    lock(&port.state).lent_mut().insert(0, loan(kept));
    lock(&port.state).lent_mut().insert(PAGE, loan(window));
    answer_always(&held, true);
    port.said_returned(EffectId(1), 0, PAGE);
    answer_always(&shown, false);

    assert!(!port.forget_dropped());

    port.ended();
    assert!(port.forget_dropped());
}

#[test]
fn operator_is_told_of_all_that_is_kept_but_not_again_and_again() {
    let port = port();
    let ago = |time| Instant::now().checked_sub(time).unwrap();
    let keep = |effect, since| {
        let (lent, asked, kernel) = Lent::slow();
        answer_always(&kernel, true);
        lock(&port.state).kept.push(Kept {
            effect: EffectId(effect),
            loan: loan(lent),
            len: PAGE,
            since,
            said: false,
        });
        (asked, kernel)
    };
    let _kernels = [
        keep(1, ago(KEPT_SAY)),
        keep(2, ago(KEPT_SAY)),
        keep(3, Instant::now()),
    ];
    assert_eq!(port.look_at_kept(SOON).1, 2 * PAGE);
    assert_eq!(port.look_at_kept(SOON).1, 0);

    let _kernel = keep(4, ago(KEPT_SAY));
    assert_eq!(port.look_at_kept(SOON).1, 0, "so soon");

    lock(&port.state).kept_said = Some(ago(KEPT_SAY));
    assert_eq!(port.look_at_kept(SOON).1, 3 * PAGE);
    lock(&port.state).kept_said = Some(ago(KEPT_SAY));
    assert_eq!(port.look_at_kept(SOON).1, 0, "nothing new");
}

/// Maps a page of a file and says that it is unmapped, and the file held.
fn keep_a_page(port: &Port, effect: u64, owner: PeerId, udmabuf: bool) {
    let (lent, _asked, held) = Lent::slow();
    answer_always(&held, true);
    let loan = Loan {
        lent: Arc::new(lent),
        owner,
        udmabuf,
    };
    let at = effect.checked_mul(PAGE).unwrap();
    lock(&port.state).lent_mut().insert(at, loan);
    port.said_returned(EffectId(effect), at, PAGE);
}

#[test]
fn kernel_that_answers_slowly_is_asked_about_one_kept_file_at_a_time() {
    let port = port();
    let mut kernels = Vec::new();
    for id in [1, 2] {
        let (lent, asked, answer) = Lent::slow();
        lock(&port.state).lent_mut().insert(id * PAGE, loan(lent));
        answer.send(true).unwrap();
        port.said_returned(EffectId(id), id * PAGE, PAGE);
        asked.recv_timeout(SOON).unwrap();
        answer.send(id == 1).unwrap();
        kernels.push((asked, answer));
    }

    assert_eq!(port.look_at_kept(Duration::ZERO), (vec![], 0));
    assert!(kernels[0].0.try_recv().is_ok());
    assert!(kernels[1].0.try_recv().is_err(), "asked about both");

    assert_eq!(port.look_at_kept(Duration::ZERO), (vec![EffectId(2)], 0));
    assert!(
        kernels[0].0.try_recv().is_err(),
        "asked about the first again"
    );
}

#[test]
fn effect_that_kept_several_files_is_done_with_the_last_of_them() {
    let port = port();
    let mut kernels = Vec::new();
    for (at, held) in [(1, true), (2, false), (3, true)] {
        let (lent, asked, answer) = Lent::slow();
        lock(&port.state).lent_mut().insert(at * PAGE, loan(lent));
        answer.send(true).unwrap();
        port.said_returned(EffectId(7), at * PAGE, PAGE);
        answer.send(held).unwrap();
        answer_always(&answer, false);
        kernels.push(asked);
    }

    assert_eq!(port.look_at_kept(SOON), (vec![], 0));
    assert_eq!(port.look_at_kept(SOON), (vec![EffectId(7)], 0));
}

#[test]
fn vmm_is_lent_files_again_as_long_as_few_are_kept() {
    let port = port();
    let (a, b) = (PeerId(2), PeerId(3));
    let fits = |owner, udmabuf| {
        let other = transport::tests::memfd(PAGE, true);
        lock(&port.state).has_room(owner, udmabuf, &other)
    };
    // Windows are no files that are kept.
    for id in 0..100 {
        let (lent, ..) = Lent::slow();
        lock(&port.state).lent_mut().insert(id * PAGE, loan(lent));
    }
    assert!(fits(a, false));

    for id in 0..MAX_OWNER_FILES {
        keep_a_page(&port, 1000 + u64::try_from(id).unwrap(), a, false);
    }
    assert!(!fits(a, false));
    assert!(fits(b, false) && fits(a, true));

    for id in 0..MAX_KEPT_DMABUFS {
        keep_a_page(&port, 2000 + u64::try_from(id).unwrap(), b, true);
    }
    assert!(!fits(a, true) && !fits(b, true));
    assert!(fits(b, false));
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
    let (hub, session) = session(&memory());
    let (ram, port) = (ram(), &session.port);
    let extents = vec![Extent {
        addr: 0x10000,
        len: PAGE,
    }];
    for id in 1..=500 {
        port.push(Job::Map {
            id: EffectId(id),
            ram: Arc::new(ram.downgrade()),
            source: MapSource {
                owner: PeerId(2),
                transport: Transport::Udmabuf,
                extents: extents.clone(),
            },
            writable: true,
            shm_offset: 0,
        });
    }
    // Without a channel it is stuck.
    port.push(job(501));
    let sent = Sent {
        files: &session.files,
        peer: session.peer,
    };

    port.run("a", &hub, sent, Some(&NoDmabufs), |_| port.close(), || {});

    assert_eq!(port.jobs(), 0);
    let lines = LINES.take();
    let of_buffers = lines
        .iter()
        .filter(|line| line.contains("a buffer cannot be mapped"));
    assert!((1..=40).contains(&of_buffers.count()), "{lines:#?}");
}
