// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a test of the daemon does that hangs

#![allow(clippy::unwrap_used, reason = "a test that cannot do it fails")]

mod common;

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::daemon::{Daemon, Setup};
use common::program::Program;
use common::watchdog::Watchdog;

const NAME: &str = "a_test_that_hangs_ends_its_program_and_is_named";
/// Set in the program that hangs.
const HANG: &str = "BUFSHARE_TEST_HANGS";

#[test]
fn a_test_that_hangs_ends_its_program_and_is_named() {
    if std::env::var_os(HANG).is_some() {
        let _daemon = Daemon::spawn(&Setup::default());
        let _watchdog = Watchdog::new(Duration::from_millis(1));
        loop {
            std::thread::park();
        }
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", NAME, "--test-threads=2"])
        .env(HANG, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped());

    let output = Program::start(&mut command).output();

    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{said}");
    for words in [
        format!("the test {NAME} hangs: it has taken 1ms"),
        // The daemon, by its first 15 letters, and its log.
        "vhost-device-bu: in ".to_owned(),
        "---- its log".to_owned(),
    ] {
        assert!(said.contains(&words), "no '{words}' in: {said}");
    }
}
