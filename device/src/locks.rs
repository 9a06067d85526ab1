// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Locks of one session that survive a panic of its threads.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks what belongs to one session, or what no panic can leave half-changed. A
/// thread that panicked with the lock held ends its session, and others need what it
/// left only for that. Not for the broker, see [`crate::dispatcher::Dispatcher::failed`].
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::soon::soon as limit;

    /// Does something on another thread, as of another session. Whether that ends while
    /// this thread is where it is.
    pub(crate) fn ends_elsewhere(what: impl FnOnce() + Send + 'static) -> bool {
        let (done, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            what();
            let _ = done.send(());
        });
        end.recv_timeout(limit()).is_ok()
    }
}
