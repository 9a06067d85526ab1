// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the control socket reports.

use serde::Serialize;

use super::{Dispatcher, HoldReport};
use crate::broker::Snapshot;

/// What the control socket reports about one session.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SessionFacts {
    /// Protocol features that the front end negotiated.
    pub features: Vec<&'static str>,
    /// Whether the front end can be asked to map.
    pub can_map: bool,
    /// Whether the queues run.
    pub running: bool,
    /// Regions of the VM's own RAM.
    pub ram_regions: usize,
    /// Regions of its memory table that are windows, and so cannot be exported.
    pub window_regions: usize,
    /// Requests that wait for their answer.
    pub pending: usize,
    /// Chains taken from the control queue.
    pub chains: u64,
    /// Chains that were malformed.
    pub malformed: u64,
    /// Chains that had no room for a response.
    pub no_room: u64,
    /// Queues that made no sense, and were not served until the driver's next reset.
    pub ring_faults: u64,
    /// How often its worker was woken.
    pub wakeups: u64,
    /// Events written.
    pub events: u64,
    /// Event buffers that were too small.
    pub short_event_buffers: u64,
    /// Mapping jobs that wait or run.
    pub jobs: usize,
    /// Mapping requests that the front end refused.
    pub refused: u64,
}

/// One peer on the control socket.
#[derive(Debug, Serialize)]
pub struct PeerReport {
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Sessions until now.
    pub sessions: u64,
    /// Stops that were answered before all importers were proved to have released the
    /// memory.
    pub unproved_stops: u64,
    /// The process that connected the front end: the VMM, unless that was handed the
    /// connection. None if the process has no number here.
    pub vmm_pid: Option<u32>,
    /// The session, if a front end is connected.
    pub session: Option<SessionFacts>,
}

/// All that the control socket reports.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Version of the program.
    pub version: &'static str,
    /// The program revokes everything in order to end.
    pub ending: bool,
    /// The peers.
    pub peers: Vec<PeerReport>,
    /// Whose VMM may map whose memory now.
    pub holds: Vec<HoldReport>,
    /// The broker.
    pub broker: Snapshot,
}

impl Report {
    /// Nothing is known any more.
    fn of_failed() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            ending: true,
            peers: Vec::new(),
            holds: Vec::new(),
            broker: Snapshot::default(),
        }
    }
}

impl Dispatcher {
    /// Everything, for the control socket.
    #[must_use]
    pub fn report(&self) -> Report {
        let (broker, ending, holds, rows) = {
            let Some(state) = self.state() else {
                return Report::of_failed();
            };
            let rows: Vec<_> = state
                .slots
                .iter()
                .map(|(id, slot)| {
                    let report = PeerReport {
                        id: id.0,
                        name: slot.name.to_string(),
                        sessions: slot.sessions,
                        unproved_stops: slot.unproved_stops,
                        vmm_pid: slot.link.as_ref().and_then(|link| link.vmm_pid()),
                        session: None,
                    };
                    (report, slot.link.clone())
                })
                .collect();
            let broker = &state.broker;
            (broker.snapshot(), broker.closed(), state.holds(), rows)
        };
        let peers = rows
            .into_iter()
            .map(|(mut report, link)| {
                report.session = link.map(|link| link.facts());
                report
            })
            .collect();
        Report {
            version: env!("CARGO_PKG_VERSION"),
            ending,
            peers,
            holds,
            broker,
        }
    }
}
