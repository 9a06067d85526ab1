// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The checked configuration, from the command line and a file alike.

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use bufshare_protocol::types::{Name, Rights};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::args::Args;
use crate::broker::{self, Allow, Limits, PeerConfig, PeerId};
use crate::dispatcher::RevokeWait;

/// Default size of the shared-memory region.
const DEFAULT_SHM_SIZE: u64 = 256 << 20;

/// Name of the peer of `--socket-path` and `--fd`.
const ANONYMOUS: &str = "vm0";

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file has an error.
    #[error("{path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: toml::de::Error,
    },
    /// A value is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The broker does not take it.
    #[error("{0}")]
    Broker(#[from] broker::ConfigError),
}

/// How much to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What does not work.
    Error,
    /// And what guests do wrong.
    Warn,
    /// And who comes and goes.
    Info,
    /// And details.
    Debug,
    /// And every request.
    Trace,
}

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::Off,
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

/// Bytes, written with K, M or G.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'K' | b'k') => (text.get(..text.len().saturating_sub(1)), 10),
            Some(b'M' | b'm') => (text.get(..text.len().saturating_sub(1)), 20),
            Some(b'G' | b'g') => (text.get(..text.len().saturating_sub(1)), 30),
            _ => (Some(text), 0),
        };
        let number: u64 = digits
            .unwrap_or_default()
            .parse()
            .map_err(|_| format!("'{text}' is not a size: digits, and K, M or G if wanted"))?;
        1_u64
            .checked_shl(shift)
            .and_then(|unit| number.checked_mul(unit))
            .map(Self)
            .ok_or_else(|| format!("'{text}' is more than 64 bits"))
    }
}

/// In TOML a size is a string or a number of bytes.
impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Bytes(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Bytes(bytes) => Ok(Self(bytes)),
            Either::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

/// Whether a VM's RAM descriptor may be handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RamFd {
    /// Yes.
    Allow,
    /// No.
    #[default]
    Deny,
}

/// Whether RAM may be used that the VMM can make shorter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnsealedRam {
    /// Yes.
    Allow,
    /// No.
    #[default]
    Deny,
}

/// Where a peer's front end connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket to make.
    Path(PathBuf),
    /// A listening or connected socket that is open.
    Fd(RawFd),
}

/// One peer as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PeerSpec {
    /// Name.
    pub name: String,
    /// Path of its socket.
    pub socket: Option<PathBuf>,
    /// Or its descriptor.
    pub fd: Option<RawFd>,
    /// Whether its RAM descriptor may be handed out.
    #[serde(default)]
    pub ram_fd: RamFd,
    /// Whether its RAM may be a file that its VMM can make shorter.
    #[serde(default)]
    pub unsealed_ram: UnsealedRam,
    /// Whether its VMM enforces read-only mappings.
    #[serde(default)]
    pub enforces_ro: bool,
}

impl FromStr for PeerSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut spec = Self {
            name: String::new(),
            socket: None,
            fd: None,
            ram_fd: RamFd::Deny,
            unsealed_ram: UnsealedRam::Deny,
            enforces_ro: false,
        };
        let mut seen = BTreeSet::new();
        for part in text.split(',') {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| format!("'{part}' is not KEY=VALUE"))?;
            if !seen.insert(key) {
                return Err(format!("'{key}' is given twice"));
            }
            match (key, value) {
                ("name", _) => spec.name = value.to_owned(),
                ("socket", _) => spec.socket = Some(PathBuf::from(value)),
                ("fd", _) => {
                    let fd = value.parse();
                    spec.fd = Some(fd.map_err(|_| format!("'{value}' is not a descriptor"))?);
                }
                ("ram-fd", "allow") => spec.ram_fd = RamFd::Allow,
                ("ram-fd", "deny") => spec.ram_fd = RamFd::Deny,
                ("ram-fd", _) => return Err(format!("ram-fd is allow or deny, not '{value}'")),
                ("unsealed-ram", "allow") => spec.unsealed_ram = UnsealedRam::Allow,
                ("unsealed-ram", "deny") => spec.unsealed_ram = UnsealedRam::Deny,
                ("unsealed-ram", _) => {
                    return Err(format!("unsealed-ram is allow or deny, not '{value}'"));
                }
                ("enforces-ro", "yes") => spec.enforces_ro = true,
                ("enforces-ro", "no") => spec.enforces_ro = false,
                ("enforces-ro", _) => {
                    return Err(format!("enforces-ro is yes or no, not '{value}'"));
                }
                _ => {
                    return Err(format!(
                        "'{key}' is unknown: the keys are name, socket, fd, ram-fd, unsealed-ram, \
                         enforces-ro"
                    ));
                }
            }
        }
        Ok(spec)
    }
}

/// One line of the policy as it is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowSpec {
    /// Who may export.
    pub exporter: String,
    /// To whom.
    pub importer: String,
    /// With which rights.
    pub rights: Rights,
}

impl FromStr for AllowSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(exporter), Some(importer), Some(rights), None) => Ok(Self {
                exporter: exporter.to_owned(),
                importer: importer.to_owned(),
                rights: match rights {
                    "r" => Rights::READ,
                    "rw" => Rights::RW,
                    _ => return Err(format!("rights are r or rw, not '{rights}'")),
                },
            }),
            _ => Err(format!(
                "'{text}' is not EXPORTER:IMPORTER:r or EXPORTER:IMPORTER:rw"
            )),
        }
    }
}

impl<'de> Deserialize<'de> for AllowSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Longest finite wait, seconds. The VMM that waits does nothing else meanwhile.
const MAX_REVOKE_WAIT: u64 = 3600;

/// [`RevokeWait`] as it is written down: seconds, or `unlimited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevokeWaitSpec(pub RevokeWait);

impl FromStr for RevokeWaitSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "unlimited" {
            return Ok(Self(RevokeWait::Unlimited));
        }
        match text.parse() {
            Ok(seconds) if seconds <= MAX_REVOKE_WAIT => {
                Ok(Self(RevokeWait::Limit(Duration::from_secs(seconds))))
            }
            _ => Err(format!(
                "'{text}' is neither 0 to {MAX_REVOKE_WAIT} (seconds) nor 'unlimited'"
            )),
        }
    }
}

impl<'de> Deserialize<'de> for RevokeWaitSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Value {
            Number(u64),
            Text(String),
        }
        let text = match Value::deserialize(deserializer)? {
            Value::Number(seconds) => seconds.to_string(),
            Value::Text(text) => text,
        };
        text.parse().map_err(D::Error::custom)
    }
}

/// What a file may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct FileConfig {
    peer: Vec<PeerSpec>,
    allow: Vec<AllowSpec>,
    shm_size: Option<Size>,
    limits: Limits,
    revoke_wait: Option<RevokeWaitSpec>,
    control: Option<PathBuf>,
    log_level: Option<LogLevel>,
}

/// One peer, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Name.
    pub name: String,
    /// Its socket.
    pub endpoint: Endpoint,
    /// Whether its RAM descriptor may be handed out.
    pub raw_ram: bool,
    /// Whether its RAM may be a file that its VMM can make shorter.
    pub unsealed_ram: bool,
    /// Whether its VMM enforces read-only mappings.
    pub enforces_ro: bool,
}

/// Everything, checked as far as it can be without the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The peers; the first has id 1.
    pub peers: Vec<Peer>,
    /// The policy.
    pub allow: Vec<AllowSpec>,
    /// Bytes of each shared-memory region.
    pub shm_size: u64,
    /// What each peer may use.
    pub limits: Limits,
    /// How long an exporter's stop is held up.
    pub revoke_wait: RevokeWait,
    /// The control socket.
    pub control: Option<PathBuf>,
    /// How much to log.
    pub log_level: LogLevel,
}

impl TryFrom<Args> for Config {
    type Error = Error;

    fn try_from(args: Args) -> Result<Self, Error> {
        let file = args.config.as_deref().map(read).transpose()?;
        let file = file.unwrap_or_default();
        let anonymous = (args.socket_path.is_some() || args.fd.is_some()).then(|| PeerSpec {
            name: ANONYMOUS.to_owned(),
            socket: args.socket_path,
            fd: args.fd,
            ram_fd: RamFd::Deny,
            unsealed_ram: UnsealedRam::Deny,
            enforces_ro: false,
        });
        let specs = file.peer.into_iter().chain(args.peers).chain(anonymous);
        let peers = specs.map(Peer::try_from).collect::<Result<Vec<_>, _>>()?;
        let mut endpoints: Vec<&Endpoint> = Vec::new();
        for peer in &peers {
            if endpoints.contains(&&peer.endpoint) {
                return Err(Error::Invalid(format!(
                    "peer '{}' has the socket of another peer",
                    peer.name
                )));
            }
            endpoints.push(&peer.endpoint);
        }
        let allow = file.allow.into_iter().chain(args.allow).collect();
        let mut limits = file.limits;
        limits.max_windows = args.max_windows.unwrap_or(limits.max_windows);
        let config = Self {
            peers,
            allow,
            shm_size: args
                .shm_size
                .or(file.shm_size)
                .map_or(DEFAULT_SHM_SIZE, |size| size.0),
            limits,
            revoke_wait: args
                .revoke_wait
                .or(file.revoke_wait)
                .map_or_else(RevokeWait::default, |spec| spec.0),
            control: args.control.or(file.control),
            log_level: args.log_level.or(file.log_level).unwrap_or(LogLevel::Info),
        };
        // Whatever the broker refuses is wrong usage too.
        config.broker(false)?;
        Ok(config)
    }
}

impl TryFrom<PeerSpec> for Peer {
    type Error = Error;

    fn try_from(spec: PeerSpec) -> Result<Self, Error> {
        let name = spec.name;
        if Name::new(&name).is_err() || name.is_empty() || name.contains([':', ',']) {
            return Err(Error::Invalid(format!(
                "'{name}' cannot be the name of a peer: 1 to 31 bytes without control \
                 characters, ':' and ','"
            )));
        }
        let endpoint = match (spec.socket, spec.fd) {
            (Some(path), None) => Endpoint::Path(path),
            (None, Some(fd)) => Endpoint::Fd(fd),
            (None, None) => {
                return Err(Error::Invalid(format!(
                    "peer '{name}' has no socket: socket=PATH or fd=N"
                )));
            }
            (Some(_), Some(_)) => {
                return Err(Error::Invalid(format!(
                    "peer '{name}' has both socket and fd"
                )));
            }
        };
        Ok(Self {
            name,
            endpoint,
            raw_ram: spec.ram_fd == RamFd::Allow,
            unsealed_ram: spec.unsealed_ram == UnsealedRam::Allow,
            enforces_ro: spec.enforces_ro,
        })
    }
}

impl Config {
    /// The same for the broker.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn broker(&self, host_udmabuf: bool) -> Result<broker::Config, Error> {
        let id = |name: &str| {
            (1_u32..)
                .zip(&self.peers)
                .find(|(_, peer)| peer.name == name)
                .map(|(number, _)| PeerId(number))
                .ok_or_else(|| {
                    Error::Invalid(format!("the policy names '{name}', which is no peer"))
                })
        };
        let allow = self
            .allow
            .iter()
            .map(|line| {
                Ok(Allow {
                    exporter: id(&line.exporter)?,
                    importer: id(&line.importer)?,
                    rights: line.rights,
                })
            })
            .collect::<Result<_, Error>>()?;
        let peers = self
            .peers
            .iter()
            .map(|peer| {
                let name = Name::new(&peer.name)
                    .map_err(|_| Error::Invalid(format!("'{}' is no name", peer.name)))?;
                Ok(PeerConfig {
                    name,
                    raw_ram: peer.raw_ram,
                    enforces_ro: peer.enforces_ro,
                })
            })
            .collect::<Result<_, Error>>()?;
        let config = broker::Config {
            peers,
            allow,
            shm_size: self.shm_size,
            host_udmabuf,
            limits: self.limits,
            started_us: now_us(),
        };
        broker::Broker::new(config.clone(), Box::new(crate::os::random::RandomIds))?;
        Ok(config)
    }
}

/// Microseconds since 1970, as far as the clock is right.
fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(0))
}

fn read(path: &Path) -> Result<FileConfig, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|source| Error::Parse {
        path: path.to_owned(),
        source,
    })
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Fd(fd) => write!(f, "descriptor {fd}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(peers: &[&str]) -> Args {
        Args {
            peers: peers.iter().map(|p| p.parse().unwrap()).collect(),
            ..Args::default()
        }
    }

    #[test]
    fn size_takes_suffixes_and_refuses_overflow() {
        assert_eq!("4096".parse(), Ok(Size(4096)));
        assert_eq!("16K".parse(), Ok(Size(16 << 10)));
        assert_eq!("256M".parse(), Ok(Size(256 << 20)));
        assert_eq!("4g".parse(), Ok(Size(4 << 30)));
        for bad in ["", "M", "1.5G", "-1", "1T", "99999999999G"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn peer_takes_all_keys_in_any_order() {
        let peer: PeerSpec = "ram-fd=allow,unsealed-ram=allow,enforces-ro=yes,fd=5,name=a"
            .parse()
            .unwrap();

        assert_eq!(
            peer,
            PeerSpec {
                name: "a".into(),
                socket: None,
                fd: Some(5),
                ram_fd: RamFd::Allow,
                unsealed_ram: UnsealedRam::Allow,
                enforces_ro: true,
            }
        );
    }

    #[test]
    fn peer_with_a_mistake_is_refused_by_its_word() {
        for (text, word) in [
            ("name=a,sock=/x", "'sock'"),
            ("name", "'name'"),
            ("name=a,name=b", "twice"),
            ("name=a,ram-fd=yes", "'yes'"),
            ("name=a,fd=x", "'x'"),
        ] {
            let error = text.parse::<PeerSpec>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn config_names_what_is_wrong() {
        let mut bad_size = args(&["name=a,socket=/a"]);
        bad_size.shm_size = Some(Size(3 << 20));
        let mut bad_windows = args(&["name=a,socket=/a"]);
        bad_windows.max_windows = Some(449);
        let mut bad_policy = args(&["name=a,socket=/a"]);
        bad_policy.allow = vec!["a:b:r".parse().unwrap()];
        for (args, word) in [
            (args(&[]), "no peer"),
            (args(&["name=a"]), "no socket"),
            (args(&["name=a,socket=/a,fd=3"]), "both"),
            (args(&["name=a,socket=/a", "name=a,socket=/b"]), "two peers"),
            (
                args(&["name=a,socket=/a", "name=b,socket=/a"]),
                "of another peer",
            ),
            (args(&["name=,socket=/a"]), "cannot be the name"),
            (bad_size, "power of two"),
            (bad_windows, "448"),
            (bad_policy, "'b'"),
        ] {
            let error = Config::try_from(args).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn config_file_and_options_add_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        let text = "shm-size = \"64M\"\nallow = [\"a:b:r\"]\n\
                    revoke-wait = \"unlimited\"\n\
                    [limits]\nmax-windows = 10\nmax-buffers = 10000\n\
                    [[peer]]\nname = \"a\"\nsocket = \"/a\"\nram-fd = \"allow\"\n";
        std::fs::write(&path, text).unwrap();
        let mut args = args(&["name=b,socket=/b"]);
        args.config = Some(path);
        args.max_windows = Some(20);

        let config = Config::try_from(args).unwrap();

        assert_eq!(config.shm_size, 64 << 20);
        assert_eq!(config.limits.max_windows, 20);
        assert_eq!(config.limits.max_buffers, 10_000);
        assert_eq!(config.limits.max_events, Limits::default().max_events);
        assert_eq!(config.revoke_wait, RevokeWait::Unlimited);
        assert_eq!(config.peers.len(), 2);
        assert!(config.peers[0].raw_ram);
        assert_eq!(config.allow.len(), 1);
    }

    #[test]
    fn one_stopped_importer_cannot_use_up_the_requests_of_its_exporter() {
        let mut limits = Limits {
            max_requests: 256,
            max_windows: 255,
            ..Limits::default()
        };
        let config = |limits| Config {
            limits,
            ..Config::try_from(args(&["name=a,socket=/a"])).unwrap()
        };
        config(limits).broker(false).unwrap();
        limits.max_windows = 256;
        let error = config(limits).broker(false).unwrap_err().to_string();
        assert!(error.contains("max-requests is 256"), "{error}");
    }

    #[test]
    fn help_states_every_limit_with_its_default() {
        use clap::CommandFactory as _;

        let help = Args::command().render_long_help().to_string();
        let table = help.split_once("    [limits]").unwrap().1;
        let table: Vec<&str> = table
            .lines()
            .skip(1)
            .take_while(|line| !line.is_empty())
            .collect();
        let limits: Limits = toml::from_str(&table.join("\n")).unwrap();
        assert_eq!(limits, Limits::default());
        assert_eq!(table.len(), limits.all().count());
        for (name, _, max) in limits.all() {
            let name = name.replace('_', "-");
            let line = table.iter().find(|line| line.trim().starts_with(&name));
            let (_, up_to) = line.unwrap().split_once("up to ").unwrap_or_default();
            assert!(up_to.is_empty() || up_to == max.to_string(), "{name}");
        }
    }

    #[test]
    fn revoke_wait_is_seconds_or_unlimited() {
        let parse = |text: &str| text.parse::<RevokeWaitSpec>().map(|spec| spec.0);

        assert_eq!(parse("0"), Ok(RevokeWait::Limit(Duration::ZERO)));
        assert_eq!(
            parse("3600"),
            Ok(RevokeWait::Limit(Duration::from_secs(3600)))
        );
        assert_eq!(parse("unlimited"), Ok(RevokeWait::Unlimited));
        for wrong in ["", "-1", "3601", "5s", "never"] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(&format!("'{wrong}'")), "{error}");
        }
        let file: FileConfig = toml::from_str("revoke-wait = 7").unwrap();
        let wait = file.revoke_wait.unwrap().0;
        assert_eq!(wait, RevokeWait::Limit(Duration::from_secs(7)));
    }
}
