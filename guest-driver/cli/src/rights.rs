// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rights that a command grants or asks for, and what there is to say about them.
//!
//! A VMM that does not enforce read-only mappings is not given any: the device
//! refuses to import for reading alone. What to do then where the command line
//! names no rights is decided in [`Info::rights_to_read`].

use bufshare::{Access, BufferId, Device, Info, Peer, Rights};

use crate::args::Grant;
use crate::failure::Result;
use crate::output::Output;
use crate::session::find_peer;

/// The rights to import `id` with: those typed, else what reading needs.
pub(crate) fn to_import(
    output: Output,
    device: &Device,
    id: BufferId,
    typed: Option<Rights>,
) -> Result<Rights> {
    if let Some(rights) = typed {
        return Ok(rights);
    }
    let info = device.info()?;
    let rights = info.rights_to_read(device.query(id)?.rights);
    if rights.contains(Rights::WRITE) {
        output.warn(
            "this machine's VMM does not enforce read-only access: \
             the buffer is imported for reading and writing",
        );
    }
    Ok(rights)
}

/// The access list that was typed.
pub(crate) fn to_grant(output: Output, device: &Device, grants: &[Grant]) -> Result<Vec<Access>> {
    let (access, warnings) = access_list(&device.info()?, &device.peers()?, grants)?;
    warnings.iter().for_each(|warning| output.warn(warning));
    Ok(access)
}

/// The access list, and what to warn of.
fn access_list(
    info: &Info,
    peers: &[Peer],
    grants: &[Grant],
) -> Result<(Vec<Access>, Vec<String>)> {
    let mut warnings = Vec::new();
    if grants.is_empty() {
        // That is all peers that the operator allows, as far as he allows.
        let all = peers.iter().filter(|peer| !peer.export_rights.is_empty());
        let writers: Vec<&str> = all
            .clone()
            .filter(|peer| peer.export_rights.contains(Rights::WRITE))
            .map(|peer| peer.name.as_str())
            .collect();
        if !writers.is_empty() {
            warnings.push(format!(
                "without --to the buffer is for all whom the host's operator allows, and these \
                 can write to it: {}",
                writers.join(" ")
            ));
        }
        warnings.extend(all.filter_map(|peer| unreadable(info, peer, peer.export_rights)));
    }
    let lines = grants
        .iter()
        .map(|grant| line(info, peers, grant, &mut warnings));
    Ok((lines.collect::<Result<_>>()?, warnings))
}

fn line(info: &Info, peers: &[Peer], grant: &Grant, warnings: &mut Vec<String>) -> Result<Access> {
    let peer = find_peer(peers, &grant.peer)?;
    let rights = match grant.rights {
        Some(rights) => rights,
        // Nothing can be granted: the host's refusal says so.
        None if peer.export_rights.is_empty() => Rights::READ,
        None => info.rights_to_read(peer.export_rights),
    };
    if grant.rights.is_none() && rights.contains(Rights::WRITE) {
        warnings.push(format!(
            "{} can write to the buffer, too: this machine's VMM does not enforce read-only access",
            peer.name
        ));
    }
    warnings.extend(unreadable(info, peer, rights));
    Ok(Access::new(peer.id, rights))
}

/// The warning that a grant to read may be of no use. The device does not say
/// what the importer's VMM enforces; it mostly is of the same kind as ours.
fn unreadable(info: &Info, peer: &Peer, rights: Rights) -> Option<String> {
    if rights.contains(Rights::WRITE) || info.enforces_read_only() {
        return None;
    }
    let name = &peer.name;
    let remedy = if peer.export_rights.contains(Rights::WRITE) {
        format!("grant {name}:rw if it may write")
    } else {
        format!("the host's operator does not allow {name} to write")
    };
    Some(format!(
        "{name} can import the buffer only if its VMM enforces read-only access, \
         which this machine's VMM does not; {remedy}"
    ))
}

#[cfg(test)]
mod tests {
    use bufshare::{CAP_RO_ENFORCED, Name};

    use super::*;

    const MAY_WRITE: &str = "display can write to the buffer, too: this machine's VMM does not enforce read-only access";
    const ALL_MAY_WRITE: &str = "without --to the buffer is for all whom the host's operator allows, and these can write to it: display";
    const UNREADABLE: &str = "can import the buffer only if its VMM enforces read-only access, which this machine's VMM does not; ";

    fn peer(id: u64, name: &str, export_rights: Rights) -> Peer {
        let mut peer = Peer::default();
        peer.id = id;
        peer.name = Name::new(name).unwrap();
        peer.export_rights = export_rights;
        peer
    }

    fn grants(info: &Info, typed: &[&str]) -> (Vec<(u64, Rights)>, Vec<String>) {
        let peers = [
            peer(1, "camera", Rights::NONE),
            peer(2, "display", Rights::RW),
            peer(3, "reader", Rights::READ),
        ];
        let typed: Vec<Grant> = typed.iter().map(|text| text.parse().unwrap()).collect();
        let (access, warnings) = access_list(info, &peers, &typed).unwrap();
        let access = access.iter().map(|line| (line.peer, line.rights));
        (access.collect(), warnings)
    }

    #[test]
    fn without_enforcement_a_grant_is_what_can_be_imported_and_that_is_said() {
        let info = Info::default();
        assert_eq!(
            grants(&info, &["display"]),
            (vec![(2, Rights::RW)], vec![MAY_WRITE.to_owned()])
        );
        assert_eq!(
            grants(&info, &["display:rw"]),
            (vec![(2, Rights::RW)], vec![])
        );
        let (access, warnings) = grants(&info, &["display:r", "reader"]);
        assert_eq!(access, [(2, Rights::READ), (3, Rights::READ)]);
        assert_eq!(
            warnings,
            [
                format!("display {UNREADABLE}grant display:rw if it may write"),
                format!("reader {UNREADABLE}the host's operator does not allow reader to write"),
            ]
        );
    }

    #[test]
    fn without_a_grant_those_are_named_who_can_write_and_who_cannot_import() {
        let (access, warnings) = grants(&Info::default(), &[]);
        assert_eq!(access, []);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert_eq!(warnings[0], ALL_MAY_WRITE);
        assert!(warnings[1].starts_with("reader can"), "{warnings:?}");
    }

    #[test]
    fn with_enforcement_a_grant_is_to_read() {
        let mut info = Info::default();
        info.caps = CAP_RO_ENFORCED;
        for typed in [&["display"][..], &["display:r"], &["2"]] {
            assert_eq!(grants(&info, typed), (vec![(2, Rights::READ)], vec![]));
        }
        assert_eq!(
            grants(&info, &["display:rw"]),
            (vec![(2, Rights::RW)], vec![])
        );
        assert_eq!(grants(&info, &[]), (vec![], vec![ALL_MAY_WRITE.to_owned()]));
    }

    #[test]
    fn a_grant_that_nobody_allows_is_left_to_the_host() {
        let (access, _) = grants(&Info::default(), &["camera"]);
        assert_eq!(access, [(1, Rights::READ)]);
    }
}
