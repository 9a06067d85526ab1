// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line, as people and management software use it.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::daemon::{Daemon, Setup, binary, limit_open_files};
use common::deny::deny;
use common::program::{Program, notified};
use common::vm::Vm;
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;
use vhost_device_bufshare::broker::limits::{HARD_MAX_WINDOWS, MAX_PEERS};
use vhost_device_bufshare::host::daemon::{EXIT_BUG, EXIT_STILL_MAPPED};
use vhost_device_bufshare::host::descriptors::needed;

fn run(args: &[&str]) -> Output {
    output(Command::new(binary()).args(args))
}

/// Runs a program to its end, which has to come soon.
fn output(command: &mut Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Program::start(command).output()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn print_capabilities_ignores_everything_else() {
    for args in [
        &["--print-capabilities"][..],
        &["--nonsense", "--print-capabilities", "--peer", "x"],
        &["--fd", "0", "--print-capabilities", "--socket-path", "/x"],
    ] {
        let output = run(args);

        assert_eq!(output.status.code(), Some(0));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["type"], "bufshare");
        assert_eq!(json["features"][0], "direct");
        assert_eq!(json["virtio-id"], 37);
    }
}

/// What a file of `contrib` says.
fn contrib(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/");
    std::fs::read_to_string(format!("{folder}{name}")).unwrap()
}

#[test]
fn descriptor_for_management_software_is_as_qemu_defines_it() {
    // vhost-user.json of QEMU: VhostUserBackend.
    let descriptor: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(&contrib("50-bufshare.json")).unwrap();
    let names: Vec<&str> = descriptor.keys().map(String::as_str).collect();
    assert_eq!(names, ["binary", "description", "tags", "type"]);
    for name in ["binary", "description", "type"] {
        assert!(!descriptor[name].as_str().unwrap().is_empty(), "{name}");
    }
    let tags = descriptor["tags"].as_array().unwrap();
    assert!(tags.iter().all(serde_json::Value::is_string), "{tags:?}");

    // VHostUserBackendCapabilities: a type, and features where there are some.
    let said = run(&["--print-capabilities"]).stdout;
    let capabilities: serde_json::Value = serde_json::from_slice(&said).unwrap();
    assert_eq!(capabilities["type"], descriptor["type"]);
    let features = capabilities["features"].as_array().unwrap();
    assert!(
        features.iter().all(serde_json::Value::is_string),
        "{features:?}"
    );

    let program = Path::new(descriptor["binary"].as_str().unwrap());
    assert!(program.is_absolute());
    assert_eq!(program.file_name(), binary().file_name());
}

#[test]
fn unit_starts_what_the_descriptor_names() {
    let descriptor: serde_json::Value = serde_json::from_str(&contrib("50-bufshare.json")).unwrap();
    let unit = contrib("vhost-device-bufshare.service");
    let start = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="))
        .unwrap();
    let words: Vec<&str> = start.split(' ').collect();

    let [program, options @ .., file] = &words[..] else {
        panic!("{start}")
    };
    assert_eq!(*program, descriptor["binary"]);
    // It gets as far as to the file, which is not there.
    let missing = format!("/nonexistent{file}");
    let output = run(&[options, &[&missing]].concat());
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains(&missing), "{}", stderr(&output));
}

/// The values of a key in the unit.
fn unit_values(key: &str) -> Vec<String> {
    let prefix = format!("{key}=");
    let unit = contrib("vhost-device-bufshare.service");
    let values = unit.lines().filter_map(|line| line.strip_prefix(&prefix));
    values.map(str::to_owned).collect()
}

#[test]
fn unit_gives_the_end_its_time_and_does_not_hide_its_status() {
    assert_eq!(
        unit_values("RestartPreventExitStatus"),
        [format!("{EXIT_STILL_MAPPED} {EXIT_BUG}")]
    );
    assert_eq!(unit_values("SuccessExitStatus"), [""; 0]);
    assert_eq!(unit_values("Type"), ["notify"], "it asks for more time");
    assert_eq!(unit_values("KillMode"), ["mixed"]);
    let [seconds] = &unit_values("TimeoutStopSec")[..] else {
        panic!("one TimeoutStopSec");
    };
    let seconds: u64 = seconds.parse().unwrap();
    for wait in ["5", "60", "unlimited"] {
        assert!(asked_for(wait) <= Duration::from_secs(seconds), "{wait}");
    }
}

#[test]
fn end_asks_the_service_manager_for_the_time_that_it_may_take() {
    assert!(asked_for("0") >= Duration::from_secs(5));
    assert!(asked_for("600") >= Duration::from_secs(605));
    assert!(asked_for("unlimited") >= Duration::from_secs(65));
}

/// How long the end may take, as it is reported to the service manager.
fn asked_for(revoke_wait: &str) -> Duration {
    let dir = tempfile::tempdir().unwrap();
    let notify = dir.path().join("notify");
    let manager = UnixDatagram::bind(&notify).unwrap();
    let mut command = Command::new(binary());
    command
        .arg("--socket-path")
        .arg(dir.path().join("s"))
        .args(["--revoke-wait", revoke_wait])
        .env("NOTIFY_SOCKET", &notify)
        .stderr(Stdio::null());
    let mut program = Program::start(&mut command);
    assert_eq!(notified(&manager), "READY=1\n");
    program.signal(libc::SIGTERM);
    let said = notified(&manager);
    assert_eq!(program.wait().code(), Some(0));
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("STOPPING=1"));
    let micros = lines.next().unwrap().strip_prefix("EXTEND_TIMEOUT_USEC=");
    Duration::from_micros(micros.unwrap().parse().unwrap())
}

#[test]
fn wrong_usage_is_status_2_and_names_the_mistake() {
    for (args, word) in [
        (&[][..], "no peer"),
        (&["--nonsense"], "--nonsense"),
        (&["--peer", "name=a"], "no socket"),
        (&["--peer", "name=a,sock=/x"], "sock"),
        (&["--peer", "name=a,socket=/x", "--allow", "a:b:r"], "'b'"),
        (
            &["--peer", "name=a,socket=/x", "--allow", "a:a:r"],
            "itself",
        ),
        (&["--peer", "name=a,socket=/x", "--allow", "a:b:w"], "'w'"),
        (&["--socket-path", "/x", "--shm-size", "3M"], "power of two"),
        (&["--socket-path", "/x", "--shm-size", "3X"], "3X"),
        (&["--socket-path", "/x", "--max-windows", "449"], "448"),
        (&["--socket-path", "/x", "--fd", "3"], "--fd"),
        (&["--config", "/does/not/exist"], "/does/not/exist"),
    ] {
        let output = run(args);

        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(word), "{args:?}: {text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn mistake_in_the_file_is_shown_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    for (text, words) in [
        ("shm-size = \"64M\"\nnonsense = 1\n", ["nonsense", "line 2"]),
        ("[limits]\nmax-window = 1\n", ["max-window", "line 2"]),
        ("[limits]\nmax-windows = \"many\"\n", ["line 2", "column"]),
        ("allow = [\"a:b\"]\n", ["a:b", "line 1"]),
        (
            "[[peer]]\nname = \"a\"\nsokcet = \"/x\"\n",
            ["sokcet", "line 3"],
        ),
        ("shm-size = \"1T\"\n", ["1T", "line 1"]),
    ] {
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).unwrap();

        let output = run(&["--config", path.to_str().unwrap()]);

        let shown = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{shown}");
        for word in words {
            assert!(shown.contains(word), "'{word}' is not in: {shown}");
        }
        assert!(shown.contains("c.toml"), "{shown}");
    }
}

#[test]
fn run_time_failure_is_status_1_and_names_the_peer() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let _listener = UnixListener::bind(&live).unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let missing = dir.path().join("no/such/dir");
    for (path, word) in [
        (&live, "another process listens"),
        (&file, "not a socket"),
        (&missing, "No such file"),
    ] {
        let output = run(&["--peer", &format!("name=cam,socket={}", path.display())]);

        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(word) && text.contains("cam"), "{text}");
    }
    let output = run(&["--fd", "77"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("not open"), "{}", stderr(&output));
    assert!(file.exists() && live.exists());
}

#[test]
fn too_low_a_limit_of_open_files_is_status_1_and_says_how_many_are_needed() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary());
    command.arg("--socket-path").arg(dir.path().join("s"));
    limit_open_files(&mut command, 100, 300);

    let output = output(&mut command);

    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in [
        "descriptors are needed for 1 peers",
        "is 300",
        "LimitNOFILE=",
    ] {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
    assert!(!dir.path().join("s").exists());
}

#[test]
fn host_without_asynchronous_io_is_status_1_and_says_what_to_raise() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary());
    command.arg("--socket-path").arg(dir.path().join("s"));
    // As when other programs have used fs.aio-max-nr up.
    // SAFETY: between fork and exec it makes system calls, and allocates at the most,
    // which the C library allows.
    unsafe { command.pre_exec(|| deny(&[libc::SYS_io_setup], None, libc::EAGAIN)) };

    let output = output(&mut command);

    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in ["asynchronous I/O", "temporarily", "fs.aio-max-nr"] {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
    assert!(!dir.path().join("s").exists());
}

#[test]
fn sighup_that_is_ignored_at_the_start_does_not_end_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let notify = dir.path().join("notify");
    let manager = UnixDatagram::bind(&notify).unwrap();
    let mut command = Command::new(binary());
    command
        .arg("--socket-path")
        .arg(dir.path().join("s"))
        .env("NOTIFY_SOCKET", &notify)
        .stderr(Stdio::piped());
    let ignore = || {
        // SAFETY: no handler is set.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
        Ok(())
    };
    // SAFETY: between fork and exec nothing but a system call is made.
    unsafe { command.pre_exec(ignore) };
    let program = Program::start(&mut command);
    assert_eq!(notified(&manager), "READY=1\n");

    for signal in [libc::SIGHUP, libc::SIGTERM] {
        program.signal(signal);
    }

    let output = program.output();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    // Of two the lower one is read first.
    assert!(text.contains("SIGTERM: ending"), "{text}");
    assert!(!text.contains("SIGHUP"), "{text}");
}

#[test]
fn unit_has_descriptors_for_as_many_peers_as_there_may_be() {
    let limit: u64 = unit_values("LimitNOFILE")[0].parse().unwrap();
    assert!(limit >= needed(MAX_PEERS, HARD_MAX_WINDOWS));
}

#[test]
fn unit_lets_the_kernel_end_others_first_when_memory_is_short() {
    let [adjust] = &unit_values("OOMScoreAdjust")[..] else {
        panic!("one OOMScoreAdjust");
    };
    let adjust: i32 = adjust.parse().unwrap();
    assert!((-1000..0).contains(&adjust), "{adjust}");
}

#[test]
fn failed_start_leaves_no_socket_behind() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good");
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();

    run(&[
        "--peer",
        &format!("name=a,socket={}", good.display()),
        "--peer",
        &format!("name=b,socket={}", file.display()),
    ]);

    assert!(!good.exists());
}

#[test]
fn help_is_a_manual() {
    let output = run(&["--help"]);

    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for word in [
        "--peer",
        "ram-fd",
        "enforces-ro",
        "Exit status",
        "SIGTERM",
        "Examples",
        "virtio-id=37",
        &format!("\n  {EXIT_STILL_MAPPED}  ended by a signal, but VMMs still map"),
        &format!("\n  {EXIT_BUG}  ended by a bug"),
    ] {
        assert!(text.contains(word), "'{word}' is not in the help");
    }
}

/// As somebody pastes it who has not read further.
#[test]
fn the_configuration_file_of_the_help_starts_the_program() {
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    let section = help.split_once("\nConfiguration file:\n").unwrap().1;
    let section = section.split_once("\n\n").unwrap().0;
    let example: Vec<&str> = section
        .lines()
        .filter(|line| line.starts_with("    "))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let text = example.join("\n");
    let sockets = text.matches("socket = ").count();
    let file = dir.path().join("bufshare.toml");
    let folder = dir.path().to_str().unwrap();
    std::fs::write(&file, text.replace("/run/bufshare", folder)).unwrap();
    let notify = dir.path().join("notify");
    let ready = UnixDatagram::bind(&notify).unwrap();

    let mut command = Command::new(binary());
    command
        .arg("--config")
        .arg(&file)
        .env("NOTIFY_SOCKET", &notify);
    let mut program = Program::start(&mut command);
    assert_eq!(notified(&ready), "READY=1\n");

    // None is anywhere else: these and the control socket.
    let is_socket = |entry: &std::fs::DirEntry| entry.file_type().unwrap().is_socket();
    let made = std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap);
    assert_eq!(made.filter(is_socket).count(), sockets + 2, "{text}");
    for line in example.iter().filter(|line| line.contains("socket = ")) {
        let name = line.rsplit('/').next().unwrap().trim_end_matches('"');
        drop(Vm::boot(&dir.path().join(name)));
    }
    program.signal(libc::SIGINT);
    assert_eq!(program.wait().code(), Some(0));
}

/// Starts the program with `--fd`, and waits until it is ready.
fn start_with(fd: RawFd) -> Program {
    let dir = tempfile::tempdir().unwrap();
    let notify = dir.path().join("notify");
    let ready = UnixDatagram::bind(&notify).unwrap();
    let mut command = Command::new(binary());
    command
        .args(["--fd", &fd.to_string()])
        .env("NOTIFY_SOCKET", &notify)
        .stderr(Stdio::null());
    let inherit = move || {
        // SAFETY: takes no pointer. The socket is not closed on exec any more.
        match unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec nothing but fcntl is called.
    unsafe { command.pre_exec(inherit) };
    let program = Program::start(&mut command);
    assert_eq!(notified(&ready), "READY=1\n");
    program
}

#[test]
fn inherited_listening_socket_is_served_and_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let mut program = start_with(listener.as_raw_fd());

    drop(Vm::boot(&path));
    drop(Vm::boot(&path));

    program.signal(libc::SIGINT);
    assert_eq!(program.wait().code(), Some(0));
    assert!(path.exists());
}

#[test]
fn inherited_connected_socket_is_served_until_its_front_end_leaves() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut program = start_with(theirs.as_raw_fd());
    drop(theirs);
    let front = Frontend::from_stream(ours, 2);

    front.set_owner().unwrap();
    assert_ne!(front.get_features().unwrap(), 0);
    assert!(program.ended().is_none());
    drop(front);

    assert_eq!(program.wait().code(), Some(0));
}

#[test]
fn config_file_alone_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    let socket = dir.path().join("cam");
    let text = format!(
        "shm-size = \"4M\"\nlog-level = \"debug\"\n[[peer]]\nname = \"cam\"\nsocket = \"{}\"\n",
        socket.display()
    );
    std::fs::write(&path, text).unwrap();
    let config: &'static str = path.to_str().unwrap().to_owned().leak();

    let daemon = Daemon::spawn(&Setup {
        peers: vec![],
        allow: vec![],
        extra: vec!["--config", config],
        ..Setup::default()
    });

    let vm = Vm::boot(&socket);
    assert_eq!(vm.front.shm.region.len, 4 << 20);
    drop(vm);
    daemon.finish();
    assert!(!socket.exists());
}

#[test]
fn control_socket_survives_readers_that_leave() {
    let daemon = Daemon::spawn(&Setup::default());
    for _ in 0..20 {
        let mut stream = std::os::unix::net::UnixStream::connect(daemon.socket("control")).unwrap();
        let _ = stream.read(&mut [0; 1]);
    }

    let report = daemon.report();

    assert_eq!(report["peers"].as_array().unwrap().len(), 3);
    assert_eq!(report["broker"]["shm_size"], 16 << 20);
    daemon.finish();
}

#[test]
fn status_is_right_though_nobody_reads_standard_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(binary());
    command
        .args(["--config", "/nonexistent/bufshare.toml"])
        .stderr(writer);
    let status = Program::start(&mut command).wait();

    assert_eq!(status.code(), Some(2), "{status}");
}

#[test]
fn program_of_a_test_that_fails_does_not_outlive_it() {
    let dir = tempfile::tempdir().unwrap();
    let notify = dir.path().join("notify");
    let manager = UnixDatagram::bind(&notify).unwrap();
    let socket = dir.path().join("s");
    let (path, said) = (socket.clone(), notify.clone());
    let fails = std::thread::spawn(move || {
        let mut command = Command::new(binary());
        command
            .arg("--socket-path")
            .arg(path)
            .env("NOTIFY_SOCKET", said)
            .stderr(Stdio::null());
        let _program = Program::start(&mut command);
        assert_eq!(notified(&manager), "READY=1\n");
        std::panic::resume_unwind(Box::new("as a failed assertion does"));
    });

    assert!(fails.join().is_err());
    assert!(UnixStream::connect(&socket).is_err(), "nobody listens");
}
