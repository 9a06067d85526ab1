// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the operator allows: who may share what with whom. It can be replaced between any two
//! requests; the daemon has no command for that yet.

use std::collections::BTreeMap;

use bufshare_protocol::status::Status;
use bufshare_protocol::types::{Access, Rights};

use serde::{Deserialize, Serialize};

use super::backing::{Grant, PeerMap};
use super::types::{Allow, ConfigError, Effect, PeerId};
use super::{Broker, Peer};

/// What is not allowed is forbidden.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Policy {
    /// By exporter and importer.
    rights: BTreeMap<(PeerId, PeerId), Rights>,
}

impl Policy {
    /// Of these lines about `peers`; the last of two about the same pair counts.
    ///
    /// # Errors
    /// What is wrong with a line.
    pub(super) fn new(
        peers: &BTreeMap<PeerId, Peer>,
        lines: &[Allow],
    ) -> Result<Self, ConfigError> {
        let mut rights = BTreeMap::new();
        for line in lines {
            let Some(exporter) = peers.get(&line.exporter) else {
                return Err(ConfigError::UnknownPeer(line.exporter));
            };
            if !peers.contains_key(&line.importer) {
                return Err(ConfigError::UnknownPeer(line.importer));
            }
            let name = exporter.config.name.as_str();
            if line.exporter == line.importer {
                return Err(ConfigError::SelfShare(name.to_owned()));
            }
            if !line.rights.contains(Rights::READ) {
                return Err(ConfigError::NoRights(name.to_owned()));
            }
            rights.insert((line.exporter, line.importer), line.rights);
        }
        Ok(Self { rights })
    }

    /// What `exporter` may grant to `importer`.
    pub(super) fn allowed(&self, exporter: PeerId, importer: PeerId) -> Rights {
        let rights = self.rights.get(&(exporter, importer));
        rights.copied().unwrap_or(Rights::NONE)
    }

    /// Whether the two may share anything, and so know of each other.
    pub(super) fn related(&self, a: PeerId, b: PeerId) -> bool {
        !self.allowed(a, b).is_empty() || !self.allowed(b, a).is_empty()
    }

    /// To whom `exporter` may grant anything, and what.
    pub(super) fn importers(&self, exporter: PeerId) -> impl Iterator<Item = (PeerId, Rights)> {
        let first = (exporter, PeerId(0));
        let last = (exporter, PeerId(u32::MAX));
        let lines = self.rights.range(first..=last);
        lines.map(|((_, importer), rights)| (*importer, *rights))
    }

    /// The exporter's access list within the operator's policy. An exporter
    /// can only narrow that: a line beyond it is an error, not cut.
    ///
    /// # Errors
    /// The status of the EXPORT.
    pub(super) fn narrow(&self, owner: PeerId, acl: &[Access]) -> Result<PeerMap<Grant>, Status> {
        let mut grants = PeerMap::default();
        let grant = |rights| Grant { rights, reached: 0 };
        if acl.is_empty() {
            for (importer, rights) in self.importers(owner) {
                grants.insert(importer, grant(rights));
            }
            if grants.is_empty() {
                return Err(Status::Denied);
            }
        }
        for line in acl {
            let peer = PeerId(u32::try_from(line.peer).map_err(|_| Status::Denied)?);
            if !line.rights.contains(Rights::READ) {
                return Err(Status::BadField);
            }
            if !self.allowed(owner, peer).contains(line.rights) {
                return Err(Status::Denied);
            }
            if !grants.insert(peer, grant(line.rights)) {
                return Err(Status::BadField);
            }
        }
        Ok(grants)
    }
}

impl Broker {
    /// Replaces the policy. Backings that grant more than it allows are not there for
    /// importers any more, and are to be revoked by [`Broker::revoke_next`] of their
    /// owners, which are returned; others are not touched. A driver that was granted less
    /// than it allows now has to export again.
    ///
    /// # Errors
    /// What is wrong with a line; then nothing has changed.
    pub fn set_policy(
        &mut self,
        lines: &[Allow],
    ) -> Result<(Vec<PeerId>, Vec<Effect>), ConfigError> {
        self.policy = Policy::new(&self.peers, lines)?;
        let mut owners = Vec::new();
        for backing in self.backings.iter() {
            let owner = backing.owner;
            let mut grants = backing.grants.iter();
            let is_allowed = |(importer, grant): (PeerId, &Grant)| {
                self.policy.allowed(owner, importer).contains(grant.rights)
            };
            if backing.revoking.is_some() || grants.all(is_allowed) {
                continue;
            }
            if let Some(state) = self.peers.get_mut(&owner) {
                state.lost.insert(backing.number);
            }
            if owners.last() != Some(&owner) {
                owners.push(owner);
            }
        }
        Ok((owners, self.finish()))
    }
}
