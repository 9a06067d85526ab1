// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What several commands do with the device.

use std::path::{Path, PathBuf};

use bufshare::{BufferId, Device, Event, EventKind, Export, Import, Name, Peer};

use crate::args::Until;
use crate::failure::{Failure, Result};
use crate::output::{EventRecord, Output, Record};
use crate::pump::Pump;
use crate::stop::{Input, Stop};

/// The common part of all commands.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) output: Output,
    pub(crate) node: PathBuf,
}

impl Session {
    /// Opens the device.
    pub(crate) fn open(&self) -> Result<Device> {
        Ok(Device::open_at(Path::new(&self.node))?)
    }

    /// Opens the device for frames, or says who of host and driver cannot hand any over.
    pub(crate) fn open_for_frames(&self) -> Result<Device> {
        let device = self.open()?;
        device.check_frames()?;
        Ok(device)
    }

    /// Opens it once more, for events alone.
    pub(crate) fn events(&self) -> Result<Pump> {
        Pump::start(self.open()?)
    }

    /// Prints what happens until a stop is requested, or until `held` is revoked. A reader
    /// of the output that goes away, as `head -n 1` does, ends the printing alone.
    pub(crate) fn hold(
        &self,
        stop: &mut Stop,
        events: &Pump,
        device: &Device,
        held: &Held<'_>,
    ) -> Result<()> {
        let mut is_read = true;
        while !stop.requested() {
            let [ready] = stop.wait([events.as_fd()], None)?;
            if !ready {
                continue;
            }
            let Some((_, event)) = events.take()? else {
                continue;
            };
            if is_read {
                match self.output.print(&Record::Event(EventRecord::from(&event))) {
                    Err(failure) if failure.is_unread_output() => is_read = false,
                    printed => printed?,
                }
            }
            if held.ends_with(&event, device)? {
                return Err(Failure::revoked(format!(
                    "buffer {} was revoked",
                    held.id()
                )));
            }
        }
        Ok(())
    }
}

/// What a command holds.
pub(crate) enum Held<'a> {
    Export(&'a Export),
    Import(&'a Import),
}

impl Held<'_> {
    fn id(&self) -> BufferId {
        match self {
            Self::Export(export) => export.id(),
            Self::Import(import) => import.id,
        }
    }

    /// Whether it is of no use any more, as an event says.
    pub(crate) fn ends_with(&self, event: &Event, device: &Device) -> Result<bool> {
        match event.kind {
            EventKind::Revoked => Ok(event.id == self.id()),
            // Its REVOKED may be among those that were lost. After a suspend there is none.
            EventKind::Overflow => self.has_ended(device),
            _ => Ok(false),
        }
    }

    fn has_ended(&self, device: &Device) -> Result<bool> {
        let ended = match self {
            Self::Export(export) => export.has_ended()?,
            // The host may know the buffer, and not this import any more.
            Self::Import(import) => import.buffer.is_revoked(),
        };
        if ended {
            return Ok(true);
        }
        // The driver may have lost the event, too.
        match device.query(self.id()) {
            Ok(_) => Ok(false),
            Err(error) if error.is_absent() => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

impl Until {
    /// What of the standard input ends a hold, if `input` normally would.
    pub(crate) fn input(self, input: Input) -> Input {
        if self.ignore_stdin {
            Input::Ignored
        } else {
            input
        }
    }
}

/// A name as a stream has it.
pub(crate) fn stream_name(text: &str) -> Result<Name> {
    let name = Name::new(text).map_err(|e| Failure::new(format!("--name: {e}")))?;
    match name.is_empty() {
        true => Err(Failure::new("--name: a stream has a name")),
        false => Ok(name),
    }
}

/// The peer called `text`, a name or a number.
pub(crate) fn find_peer<'a>(peers: &'a [Peer], text: &str) -> Result<&'a Peer> {
    peers
        .iter()
        .find(|peer| peer.name.as_str() == text)
        .or_else(|| {
            let id = text.parse::<u64>().ok()?;
            peers.iter().find(|peer| peer.id == id)
        })
        .ok_or_else(|| {
            let known: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
            Failure::new(format!(
                "no peer \"{text}\"; there are: {}",
                known.join(" ")
            ))
        })
}

#[cfg(test)]
mod tests {
    use bufshare::Name;

    use super::*;

    #[test]
    fn a_stream_has_a_name() {
        assert_eq!(stream_name("camera").unwrap().as_str(), "camera");
        for text in ["", "\u{1b}", &"x".repeat(1000)] {
            let why = stream_name(text).unwrap_err().to_string();
            assert!(why.starts_with("--name: "), "{why}");
        }
    }

    fn peer(id: u64, name: &str) -> Peer {
        let mut peer = Peer::default();
        peer.id = id;
        peer.name = Name::new(name).unwrap();
        peer
    }

    #[test]
    fn a_peer_has_a_name_and_a_number() {
        let peers = [peer(1, "camera"), peer(2, "display"), peer(3, "1")];
        assert_eq!(find_peer(&peers, "display").unwrap().id, 2);
        assert_eq!(find_peer(&peers, "2").unwrap().id, 2);
        assert_eq!(find_peer(&peers, "1").unwrap().id, 3, "a name goes first");
        let unknown = find_peer(&peers, "x").unwrap_err().to_string();
        assert_eq!(unknown, "no peer \"x\"; there are: camera display 1");
    }
}
