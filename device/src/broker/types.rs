// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What goes into the broker and what comes out of it.

use serde::{Deserialize, Serialize};

use core::fmt;
use core::time::Duration;

use bufshare_protocol::response::Reply;
use bufshare_protocol::types::{BufferId, Extent, Name, Rights, Way};

/// One virtual machine, by its place in the operator's configuration, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerId(pub u32);

impl PeerId {
    /// The id as it stands on the wire.
    #[must_use]
    pub fn to_wire(self) -> u64 {
        u64::from(self.0)
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The adapter's name for a request whose answer may come later. Unique per
/// peer among the requests that have no answer yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Token(pub u64);

/// One effect that has to be reported back by [`super::Broker::complete`].
/// Effects of one peer have growing ids, in the order of their execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EffectId(pub u64);

impl EffectId {
    /// That of the next effect.
    pub(super) fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// One deadline, to be reported by [`super::Broker::deadline`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeadlineId(pub u64);

/// What the operator says of one peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerConfig {
    /// Its name, unique.
    pub name: Name,
    /// Whether the descriptor of its whole RAM may be handed to the VMMs of
    /// its importers (*direct*).
    pub raw_ram: bool,
    /// Whether its VMM is known to enforce read-only mappings.
    pub enforces_ro: bool,
}

/// One line of the operator's policy. What is not allowed is forbidden.
#[derive(Clone, Copy, Debug)]
pub struct Allow {
    /// Who may export.
    pub exporter: PeerId,
    /// To whom.
    pub importer: PeerId,
    /// With which rights at the most.
    pub rights: Rights,
}

/// Everything the broker is given at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The peers; the first has id 1.
    pub peers: Vec<PeerConfig>,
    /// The policy.
    pub allow: Vec<Allow>,
    /// Bytes of each peer's shared-memory region, a power of two.
    pub shm_size: u64,
    /// Whether this host can make udmabufs.
    pub host_udmabuf: bool,
    /// Limits.
    pub limits: super::Limits,
    /// Microseconds since 1970, by the host's clock. The numbers of handles, windows and
    /// exports begin there, so that those of an earlier start are not used again.
    pub started_us: u64,
}

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// There is no peer.
    #[error("no peer is configured")]
    NoPeer,
    /// There are more peers than the broker serves.
    #[error("{0} peers are configured, the limit is {max}", max = super::limits::MAX_PEERS)]
    TooManyPeers(usize),
    /// Two peers have one name.
    #[error("two peers are named '{0}'")]
    DuplicateName(String),
    /// A peer has no name.
    #[error("a peer has no name")]
    NoName,
    /// A policy line names a peer that is not configured.
    #[error("the policy names peer number {0}, which is not configured")]
    UnknownPeer(PeerId),
    /// A policy line lets a peer import from itself.
    #[error("the policy lets '{0}' import from itself")]
    SelfShare(String),
    /// A policy line grants nothing that can be attached.
    #[error("the policy grants '{0}' no read access: a share is 'r' or 'rw'")]
    NoRights(String),
    /// The shared-memory region has an impossible size.
    #[error("shared-memory size {0} is not a power of two of at least {min} bytes", min = super::limits::MIN_SHM_SIZE)]
    ShmSize(u64),
    /// The clock is so wrong that nothing could be exported.
    #[error("the host's clock says {0} microseconds since 1970: set it")]
    Clock(u64),
    /// A limit is out of its range.
    #[error("{} is {value}, it must be 1 to {max}", name.replace('_', "-"))]
    Limit {
        /// Which.
        name: &'static str,
        /// As configured.
        value: u64,
        /// Highest possible value.
        max: u64,
    },
    /// One importer that is stopped could use up its exporter's requests.
    #[error(
        "max-requests is {requests}, it must be more than max-windows ({windows}): the UNEXPORT of \
         each buffer that a stopped VM has mapped waits for that VM"
    )]
    Requests {
        /// As configured.
        requests: u32,
        /// As configured.
        windows: u32,
    },
}

/// One region of a VM's own RAM, as its front end announced it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamRegion {
    /// Guest-physical address, bytes.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
    /// Whether a udmabuf can be made of it (memfd sealed against shrinking).
    pub sealed: bool,
}

/// One VMM mapping: a piece of the shared-memory region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Piece {
    /// Bytes from the start of the region.
    pub shm_offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Where the bytes of a mapping come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapSource {
    /// The exporting peer.
    pub owner: PeerId,
    /// How.
    pub way: Way,
    /// Its RAM, in the order of the backing.
    pub extents: Vec<Extent>,
}

impl MapSource {
    /// How many VMM mappings it takes.
    #[must_use]
    pub fn mappings(&self) -> usize {
        match self.way {
            Way::Direct => self.extents.len(),
            Way::Udmabuf | Way::Pool | Way::CopyWindow => 1,
            Way::None | Way::CopyGuest => 0,
        }
    }
}

/// What a VMM is asked for. It serves one request at a time, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmmRequest {
    /// Map `source` at `shm_offset`, the extents back to back: *direct* takes one mapping
    /// for each extent, *udmabuf* one.
    Map {
        /// What.
        source: MapSource,
        /// Whether the guest may write.
        writable: bool,
        /// Bytes from the start of the region.
        shm_offset: u64,
    },
    /// Unmap exactly these mappings.
    Unmap {
        /// The mappings.
        pieces: Vec<Piece>,
    },
    /// Map zero pages, memory that is the VM's own, where a backing was that some client of
    /// its guest still looks at.
    MapZeroPages {
        /// Where.
        piece: Piece,
    },
    /// Anything that is acknowledged: since requests are served one at a time, that
    /// proves the earlier ones done.
    Barrier,
}

/// What the adapter has to do, in this order, with no lock held.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Complete the request `token` of `peer`.
    Reply {
        /// Who asked.
        peer: PeerId,
        /// The request.
        token: Token,
        /// The answer.
        reply: Reply,
    },
    /// [`super::Broker::next_event`] has something for `peer`.
    Events {
        /// Who.
        peer: PeerId,
    },
    /// Send the VMM of `peer` a request.
    Ask {
        /// To be reported.
        id: EffectId,
        /// The importing peer.
        peer: PeerId,
        /// The request.
        request: VmmRequest,
    },
    /// A VMM has one window less that shows memory of `owner`, whose driver does not
    /// run, or of anybody while the program ends.
    Unexposed {
        /// Whose memory it was.
        owner: PeerId,
    },
    /// Call [`super::Broker::deadline`] later, unless it is disarmed before. One that
    /// comes too late does nothing.
    Arm {
        /// To be reported.
        id: DeadlineId,
        /// How long from now.
        after: Duration,
    },
    /// Forget this deadline.
    Disarm {
        /// That was armed.
        id: DeadlineId,
    },
}

/// How an effect ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The VMM did it.
    Done,
    /// The VMM did it, and has acknowledged a barrier since.
    Proved,
    /// The VMM said no and nothing of it is mapped. For [`VmmRequest::Barrier`]
    /// as good as `Done`: a refusal is an acknowledgement.
    Refused,
    /// It is not known what the VMM has mapped. The adapter ends the session.
    Stuck,
    /// The VMM was not asked: the host could not provide what is needed.
    HostError,
}

struct NoIds;

impl IdSource for NoIds {
    fn fresh(&mut self) -> Option<BufferId> {
        None
    }
}

/// No source of ids.
pub(super) fn no_ids() -> Box<dyn IdSource + Send> {
    Box::new(NoIds)
}

/// Where buffer ids come from. The daemon's are random.
pub trait IdSource {
    /// A new id, not zero, that nobody can guess. `None` if the host has no
    /// randomness to give.
    fn fresh(&mut self) -> Option<BufferId>;
}

/// There is less room than an event needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;
