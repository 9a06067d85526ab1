// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The end of a session, from any of its threads.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::relay::Hangup;
use crate::locks::lock;

/// Ends a session from any of its threads.
#[derive(Default)]
pub struct Lifeline {
    closing: AtomicBool,
    hangup: Mutex<Option<Hangup>>,
}

impl Lifeline {
    /// The session has a connection now.
    pub fn connected(&self, hangup: Hangup) {
        *lock(&self.hangup) = Some(hangup);
        if self.closing() {
            self.end();
        }
    }

    /// The front end is not served any more; the accept loop does the rest.
    pub fn fail(&self) {
        self.closing.store(true, Ordering::Release);
        if let Some(hangup) = lock(&self.hangup).as_ref() {
            hangup.dismiss();
        }
    }

    /// Closes the connection; the accept loop does the rest.
    pub fn end(&self) {
        self.closing.store(true, Ordering::Release);
        if let Some(hangup) = lock(&self.hangup).as_ref() {
            hangup.hang_up();
        }
    }

    /// Whether the session ends.
    #[must_use]
    pub fn closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}

/// Ends the session when the worker thread ends, for whatever reason. The
/// vhost-user crate would say nothing, and the guest would wait for ever.
struct WorkerWatch {
    lifeline: Arc<Lifeline>,
    name: Arc<str>,
}

impl Drop for WorkerWatch {
    fn drop(&mut self) {
        if !self.lifeline.closing() {
            log::error!(
                "{}: its worker thread ended (a kick descriptor failed, or a bug): the session ends",
                self.name
            );
            self.lifeline.fail();
        }
    }
}

thread_local! {
    static WATCH: RefCell<Option<WorkerWatch>> = const { RefCell::new(None) };
    /// Of the session into whose rings this thread writes. Only compared.
    static WRITES_FOR: Cell<*const Lifeline> = const { Cell::new(std::ptr::null()) };
}

/// This thread is one of the session of `lifeline` alone, and may wait for what its guest
/// does.
pub(super) fn write_for(lifeline: &Arc<Lifeline>) {
    WRITES_FOR.set(Arc::as_ptr(lifeline));
}

/// Whether it is.
pub(super) fn writes_for(lifeline: &Arc<Lifeline>) -> bool {
    WRITES_FOR.get() == Arc::as_ptr(lifeline)
}

/// This thread is the worker of the session of `lifeline`: it ends when this thread does.
pub(super) fn watch_worker(lifeline: &Arc<Lifeline>, name: &Arc<str>) {
    write_for(lifeline);
    WATCH.with_borrow_mut(|watch| {
        watch.get_or_insert_with(|| WorkerWatch {
            lifeline: lifeline.clone(),
            name: name.clone(),
        });
    });
}
