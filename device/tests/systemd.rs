// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon as a service of systemd, by the unit of `contrib/`
//!
//! These install it, so they run only on a machine that is thrown away afterwards,
//! with systemd as its process 1: `scripts/nested --test systemd` boots one.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot do it fails"
)]

mod common;

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;

use common::until;
use common::vm::{DATA, Vm};
use serde_json::Value;

const UNIT: &str = include_str!("../contrib/vhost-device-bufshare.service");
const NAME: &str = "vhost-device-bufshare.service";
const PROGRAM: &str = "/usr/libexec/vhost-device-bufshare";
const CONFIG: &str = "/etc/bufshare.toml";
const FOLDER: &str = "/run/bufshare";
const DROP_INS: &str = "/run/systemd/system/vhost-device-bufshare.service.d";

/// By the words of `--help`. No RAM is given away: the unit has to let the daemon use
/// `/dev/udmabuf`.
const PEERS: &str = r#"
control = "/run/bufshare/control"
allow = ["camera:display:rw"]
[[peer]]
name = "camera"
socket = "/run/bufshare/camera"
[[peer]]
name = "display"
socket = "/run/bufshare/display"
"#;

/// Of several pages, which a udmabuf makes one window.
const SIZE: u64 = 0x4000;

/// The service, installed and not started. When dropped, it is stopped.
struct Service;

impl Service {
    /// As README.md says, with further lines of the configuration.
    fn install(settings: &str) -> Self {
        assert!(
            std::env::var_os("BUFSHARE_IN_LAB").is_some(),
            "not on this machine, which would keep it: scripts/nested --test systemd"
        );
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(|| {
            fs::create_dir_all("/etc/systemd/system").unwrap();
            fs::copy(env!("CARGO_BIN_EXE_vhost-device-bufshare"), PROGRAM).unwrap();
            fs::set_permissions(PROGRAM, fs::Permissions::from_mode(0o755)).unwrap();
            fs::write(Path::new("/etc/systemd/system").join(NAME), UNIT).unwrap();
            ok("systemctl", &["daemon-reload"]);
        });
        if Path::new(DROP_INS).exists() {
            fs::remove_dir_all(DROP_INS).unwrap();
            ok("systemctl", &["daemon-reload"]);
        }
        fs::write(CONFIG, format!("{settings}{PEERS}")).unwrap();
        Self
    }

    /// With further lines of its `[Service]` section.
    fn change(&self, lines: &str) {
        fs::create_dir_all(DROP_INS).unwrap();
        let path = Path::new(DROP_INS).join("test.conf");
        fs::write(path, format!("[Service]\n{lines}\n")).unwrap();
        ok("systemctl", &["daemon-reload"]);
    }

    /// Returns when it is active, so ready: connecting is tried once.
    fn start(&self) {
        ok("systemctl", &["start", NAME]);
        assert_eq!(self.get(["ActiveState"]), ["active"]);
    }

    /// Returns when it has ended. The command succeeds however that was: its status is
    /// that of the job.
    fn stop(&self) {
        ok("systemctl", &["stop", NAME]);
    }

    /// Waits until it has ended by itself. It may wait for its next start then.
    fn until_ended(&self) {
        until("the end", || {
            let [state] = self.get(["ActiveState"]);
            state != "active" && state != "deactivating"
        });
    }

    /// Properties, in this order.
    fn get<const N: usize>(&self, names: [&str; N]) -> [String; N] {
        let text = ok("systemctl", &["show", "--property", &names.join(","), NAME]);
        names.map(|name| {
            let mut values = text.lines().filter_map(|line| line.split_once('='));
            let (_, value) = values.find(|(found, _)| *found == name).unwrap();
            value.to_owned()
        })
    }

    fn pid(&self) -> String {
        let [pid] = self.get(["MainPID"]);
        pid
    }

    /// How it ended: what systemd calls it, the exit status, the restarts by systemd.
    fn outcome(&self) -> [String; 4] {
        self.get(["ActiveState", "Result", "ExecMainStatus", "NRestarts"])
    }

    /// What it wrote since its last start.
    fn journal(&self) -> String {
        ok("journalctl", &["--sync"]);
        let invocation = format!("_SYSTEMD_INVOCATION_ID={}", self.get(["InvocationID"])[0]);
        ok("journalctl", &["--no-pager", "--output=cat", &invocation])
    }

    fn socket(&self, name: &str) -> PathBuf {
        Path::new(FOLDER).join(name)
    }

    fn report(&self) -> Value {
        let mut text = String::new();
        UnixStream::connect(self.socket("control"))
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Two front ends; the display's maps memory of the camera's.
    fn share(&self) -> Pair {
        let mut camera = Vm::boot(&self.socket("camera"));
        let mut display = Vm::boot(&self.socket("display"));
        let id = camera.export(DATA, SIZE);
        let handle = display.attach(id);
        let (window, _) = display.map(handle, SIZE);
        let pair = Pair {
            camera,
            display,
            window,
        };
        assert!(pair.reads_what_is_written(1));
        pair
    }
}

/// Two VMs that share a buffer.
struct Pair {
    camera: Vm,
    display: Vm,
    window: u64,
}

impl Pair {
    /// Whether the importer sees what the exporter writes now.
    fn reads_what_is_written(&self, byte: u8) -> bool {
        self.camera.front.ram.write(DATA, &[byte]);
        self.display.front.shm.region.read(self.window, 1) == [byte]
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = Command::new("systemctl")
                .args(["status", "--no-pager", "--full", NAME])
                .status();
            let _ = Command::new("journalctl")
                .args(["--no-pager", "--unit", NAME])
                .status();
        }
        for verb in ["stop", "reset-failed"] {
            // Fails if there is nothing of it.
            let _ = Command::new("systemctl")
                .args([verb, NAME])
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// The output of a command that succeeds.
fn ok(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// The number of a group.
fn group(name: &str) -> u32 {
    let line = ok("getent", &["group", name]);
    line.split(':').nth(2).unwrap().parse().unwrap()
}

/// The line about the display, whose front end is this process.
fn holds() -> String {
    let pid = std::process::id();
    format!(
        "vhost-device-bufshare: display: its VMM (connected by process {pid}) still maps {SIZE} \
         bytes of camera in 1 window; "
    )
}

/// Status 3, not started again; the journal says who maps whose memory, and that is so.
fn ended_with_memory_mapped(service: &Service, pair: &mut Pair) {
    assert_eq!(service.outcome(), ["failed", "exit-code", "3", "0"]);
    let journal = service.journal();
    assert!(journal.contains(&holds()), "{journal}");
    assert!(pair.reads_what_is_written(2));
}

#[test]
#[ignore = "needs a machine with systemd that is thrown away: scripts/nested --test systemd"]
fn it_is_started_when_its_sockets_are_there_and_its_group_may_connect() {
    let service = Service::install("");
    assert!(!Path::new(FOLDER).exists());

    service.start();

    for name in ["camera", "display", "control"] {
        let meta = fs::metadata(service.socket(name)).unwrap();
        assert!(meta.file_type().is_socket(), "{name}");
        let found = (meta.mode() & 0o7777, meta.uid(), meta.gid());
        assert_eq!(found, (0o660, 0, group("kvm")), "{name}");
    }
    // Which QEMU's user has to pass.
    assert_eq!(fs::metadata(FOLDER).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(service.report()["ending"], false);
    // Its sockets are there before libvirt starts VMs, and longer than these.
    let [before] = service.get(["Before"]);
    for unit in ["libvirtd", "virtqemud", "libvirt-guests"] {
        let unit = format!("{unit}.service");
        assert!(
            before.split(' ').any(|name| name == unit),
            "{unit}: {before}"
        );
    }

    service.stop();

    assert_eq!(service.outcome(), ["inactive", "success", "0", "0"]);
    assert!(!Path::new(FOLDER).exists());
}

#[test]
#[ignore = "needs a machine with systemd that is thrown away: scripts/nested --test systemd"]
fn a_stop_that_revokes_everything_is_a_success() {
    let service = Service::install("");
    service.start();
    let pair = service.share();

    service.stop();

    assert!(!pair.reads_what_is_written(2));
    assert_eq!(service.outcome(), ["inactive", "success", "0", "0"]);
    assert!(!service.journal().contains("still maps"));
}

#[test]
#[ignore = "needs a machine with systemd that is thrown away: scripts/nested --test systemd"]
fn a_stop_under_a_paused_importer_fails_and_the_journal_names_it() {
    let service = Service::install("revoke-wait = 1\n");
    service.start();
    let mut pair = service.share();
    pair.display.front.stop();

    service.stop();

    assert_eq!(service.outcome(), ["failed", "exit-code", "3", "0"]);
    assert_eq!(ok("systemctl", &["is-failed", NAME]), "failed\n");
    let journal = service.journal();
    assert!(journal.contains(&holds()), "{journal}");
    assert!(pair.reads_what_is_written(2));
}

#[test]
#[ignore = "needs a machine with systemd that is thrown away: scripts/nested --test systemd"]
fn a_stop_that_takes_longer_than_the_units_limit_is_waited_for() {
    let service = Service::install("revoke-wait = 4\n");
    service.change("TimeoutStopSec=1");
    service.start();
    let mut pair = service.share();
    pair.display.front.stop();

    service.stop();

    // Not 'timeout', which is SIGKILL.
    ended_with_memory_mapped(&service, &mut pair);
}

#[test]
#[ignore = "needs a machine with systemd that is thrown away: scripts/nested --test systemd"]
fn it_is_not_started_again_when_it_ended_with_memory_still_mapped() {
    let service = Service::install("revoke-wait = 1\n");
    service.start();
    let mut pair = service.share();
    pair.display.front.stop();

    // No stop by systemd, after which it never starts a service again.
    ok(
        "systemctl",
        &["kill", "--kill-whom=main", "--signal=TERM", NAME],
    );
    service.until_ended();

    // Not 'activating', as one that waits for its next start.
    ended_with_memory_mapped(&service, &mut pair);
}

#[test]
#[ignore = "needs a machine with systemd that is thrown away: scripts/nested --test systemd"]
fn it_is_started_again_when_it_was_killed() {
    let service = Service::install("");
    service.start();
    let first = service.pid();
    let pair = service.share();

    ok(
        "systemctl",
        &["kill", "--kill-whom=main", "--signal=KILL", NAME],
    );

    until("the second start", || {
        service.get(["NRestarts", "ActiveState"]) == ["1", "active"]
    });
    assert_ne!(service.pid(), first);
    // As README.md says: nothing was revoked.
    assert!(pair.reads_what_is_written(2));
    drop(pair);
    service.share();
}

/// No request makes the daemon end by a bug, so a shell plays it.
#[test]
#[ignore = "needs a machine with systemd that is thrown away: scripts/nested --test systemd"]
fn it_is_not_started_again_after_a_bug_but_after_another_failure() {
    let service = Service::install("");
    service.change(
        "ExecStart=\nExecStart=/bin/sh -c 'systemd-notify --ready; exit $$(cat /run/status)'\n\
         NotifyAccess=all\nRestartSec=1h",
    );
    let end_with = |status: &str| {
        fs::write("/run/status", status).unwrap();
        // The job fails if the end comes before the word has arrived.
        let _ = Command::new("systemctl")
            .args(["start", NAME])
            .stderr(Stdio::null())
            .status();
        service.until_ended();
        let state = service.get(["ExecMainStatus", "ActiveState", "SubState"]);
        service.stop();
        state
    };

    assert_eq!(end_with("4"), ["4", "failed", "failed"]);
    assert_eq!(end_with("1"), ["1", "activating", "auto-restart"]);
}
