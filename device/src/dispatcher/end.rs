// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whose VMM maps whose memory, for people; and the wait at the end of the program
//! until nobody's does.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::broker::Lifecycle;

use super::{Dispatcher, RevokeWait, STOP_LOOK, STOP_SAY, STOP_SAY_FIRST, State};

/// How long the end of the program waits for stopped importers if
/// [`RevokeWait::Unlimited`] says nothing about it: they lose nothing by it, and a
/// host that shuts down cannot wait for ever.
const UNLIMITED_AT_END: Duration = Duration::from_secs(60);

/// How long the end waits, when nothing else is left, until the drivers have been given
/// what they are to have: a driver can always be late, and make more to do.
const DELIVERY_WAIT: Duration = Duration::from_secs(5);

/// How often it looks whether they have.
const DELIVERY_LOOK: Duration = Duration::from_millis(1);

/// Why a VMM maps memory of another VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HolderState {
    /// Its driver runs, and can be asked to release it.
    Running,
    /// Its device is stopped: its VM is paused, or its guest has stopped it.
    Stopped,
    /// Its session is over, and nobody can ask it for anything.
    Ended,
}

impl HolderState {
    /// What an operator can do about it, to be added to a line.
    pub(super) fn way_out(self) -> &'static str {
        match self {
            Self::Running => "",
            Self::Stopped => ": resume the VM, or end it",
            Self::Ended => ": end that process, and with it whatever it shares its memory with",
        }
    }
}

/// What one VMM may still map of another VM's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HoldReport {
    /// The peer whose VMM it is.
    pub importer: String,
    /// The process that connected its socket: the VMM, unless that was handed the
    /// connection. None if the process has no number here.
    pub vmm_pid: Option<u32>,
    /// The peer whose memory it is.
    pub owner: String,
    /// Mappings.
    pub windows: u32,
    /// Bytes.
    pub bytes: u64,
    /// Whether the importer can be asked to release the memory.
    pub state: HolderState,
}

/// Which process a VMM is, as far as its socket shows, to be put after "its VMM".
pub struct Connector(pub Option<u32>);

impl fmt::Display for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(pid) => write!(f, " (connected by process {pid})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for HoldReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: its VMM{}", self.importer, Connector(self.vmm_pid))?;
        let (windows, bytes, owner) = (self.windows, self.bytes, &self.owner);
        let s = if windows == 1 { "" } else { "s" };
        write!(
            f,
            " still maps {bytes} bytes of {owner} in {windows} window{s}; "
        )?;
        f.write_str(match self.state {
            HolderState::Running => "it did not unmap them in time",
            HolderState::Stopped => "its VM is paused, or its guest has stopped the device",
            HolderState::Ended => "its session has ended, so it cannot be asked",
        })
    }
}

impl State {
    pub(super) fn holds(&self) -> Vec<HoldReport> {
        let holds = self.broker.holds().into_iter();
        holds
            .map(|hold| {
                let slot = self.slots.get(&hold.importer);
                let state = match self.broker.lifecycle(hold.importer) {
                    Lifecycle::Running => HolderState::Running,
                    Lifecycle::Connected | Lifecycle::Stopped => HolderState::Stopped,
                    Lifecycle::Leaving | Lifecycle::Absent => HolderState::Ended,
                };
                HoldReport {
                    importer: self.name(hold.importer).to_string(),
                    vmm_pid: slot.and_then(|slot| slot.link.as_ref()?.vmm_pid()),
                    owner: self.name(hold.owner).to_string(),
                    windows: hold.windows,
                    bytes: hold.bytes,
                    state,
                }
            })
            .collect()
    }
}

impl Dispatcher {
    /// The program is to end: revokes all buffers, and lets nobody export any more.
    pub fn close(&self) {
        loop {
            // Also if the broker failed.
            let mut last = true;
            self.step(|broker, _| {
                let effects;
                (last, effects) = broker.close();
                effects
            });
            if last {
                return;
            }
        }
    }

    /// How long the end of the program may take to revoke everything, and to report that.
    #[must_use]
    pub fn close_wait(&self) -> Duration {
        self.running_wait().saturating_add(DELIVERY_WAIT)
    }

    /// How long it waits for importers that run.
    fn running_wait(&self) -> Duration {
        self.wait_for_running(self.stopped_wait())
    }

    /// How long it waits for importers whose device is stopped. They are not forced:
    /// that would end their VMs, and no reset of an exporter is due.
    fn stopped_wait(&self) -> Duration {
        match self.revoke_wait {
            RevokeWait::Limit(limit) => limit,
            RevokeWait::Unlimited => UNLIMITED_AT_END,
        }
    }

    /// Whether the end has waited for long enough: for importers, of which some run
    /// (`asked`) or none; or while nothing is left, for so long, but what is to be delivered.
    pub(super) fn is_end_over(
        &self,
        asked: bool,
        waited: Duration,
        delivering: Option<Duration>,
    ) -> bool {
        match delivering {
            Some(delivering) => delivering >= DELIVERY_WAIT,
            None if asked => waited >= self.running_wait(),
            None => waited >= self.stopped_wait(),
        }
    }

    /// Waits until no VMM maps memory of another VM and all answers are delivered, or
    /// the time for the one or the other is over, or it is `interrupted`. What is left,
    /// unless the broker [failed](Dispatcher::failed).
    pub fn wait_until_closed(&self, interrupted: impl Fn() -> bool) -> Vec<HoldReport> {
        let started = Instant::now();
        let mut say = STOP_SAY_FIRST;
        let mut nothing_left = None;
        loop {
            let interrupted = interrupted();
            // Of a broker that failed nothing can be said or hoped for.
            let Some(state) = self.state() else {
                return Vec::new();
            };
            let left = state.holds();
            let waited = started.elapsed();
            let delivering = left.is_empty().then(|| {
                let since = nothing_left.get_or_insert_with(Instant::now);
                since.elapsed()
            });
            let asked = left.iter().any(|hold| hold.state == HolderState::Running);
            let over = self.is_end_over(asked, waited, delivering);
            let mut links = state.slots.values().filter_map(|slot| slot.link.as_ref());
            let delivered =
                self.delivering.load(Ordering::Acquire) == 0 && links.all(|link| link.delivered());
            if (left.is_empty() && delivered) || interrupted || over {
                return left;
            }
            if waited >= say {
                say = waited.saturating_add(STOP_SAY);
                drop(state);
                for hold in &left {
                    log::warn!("the end waits: {hold}");
                }
                continue;
            }
            // Nobody says when a worker has written what its driver is to have.
            let pause = if left.is_empty() {
                DELIVERY_LOOK
            } else {
                STOP_LOOK
            };
            // A failed one is seen above.
            drop(self.changed.wait_timeout(state, pause));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_names_whose_vmm_maps_how_much_of_whose_memory_and_why() {
        let hold = HoldReport {
            importer: "display".into(),
            vmm_pid: Some(4711),
            owner: "camera".into(),
            windows: 2,
            bytes: 8192,
            state: HolderState::Stopped,
        };

        assert_eq!(
            hold.to_string(),
            "display: its VMM (connected by process 4711) still maps 8192 bytes of camera in 2 \
             windows; its VM is paused, or its guest has stopped the device"
        );
    }
}
