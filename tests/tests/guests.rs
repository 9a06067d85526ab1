// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fixture itself: guests without any device of ours

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bufshare_agent::wire::Status;
use bufshare_tests::channel::errno_of;
use bufshare_tests::pair::{Plan, Shared};

static GUESTS: Shared = Shared::new(Plan::bare);
const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn programs_run_at_the_same_time_and_report_how_they_end() {
    GUESTS.with(|vms| {
        let mut sleeper = vms.a.spawn(&["/bin/busybox", "cat"])?;
        ensure!(vms.a.output(&["/bin/busybox", "echo", "hello"])? == "hello\n");
        let ran = vms
            .b
            .run(&["/bin/sh", "-c", "echo no >&2; exit 3"], LIMIT)?;
        ensure!(
            ran.status == Status::Exit(3) && ran.stderr == "no\n",
            "{ran:?}"
        );
        sleeper.write("a line\n")?;
        ensure!(sleeper.line(LIMIT)? == "a line");
        sleeper.kill()?;
        ensure!(sleeper.end(LIMIT, |_, _| {})? == Status::Signal(libc::SIGKILL));
        Ok(())
    });
}

#[test]
fn a_program_that_takes_too_long_is_killed() {
    GUESTS.with(|vms| {
        let ran = vms.a.run(
            &["/bin/busybox", "sleep", "1000"],
            Duration::from_millis(100),
        )?;
        ensure!(
            ran.timed_out && ran.status == Status::Signal(libc::SIGKILL),
            "{ran:?}"
        );
        Ok(())
    });
}

#[test]
fn files_of_a_guest_are_read_and_written() {
    GUESTS.with(|vms| {
        let data: Vec<u8> = (0..=255).cycle().take(1_000_000).collect();
        vms.a.write_file("/tmp/data", &data)?;
        ensure!(vms.a.read_file("/tmp/data")? == data);
        ensure!(vms.a.list_dir("/tmp")?.contains(&"data".to_owned()));
        let error = vms
            .a
            .read_file("/nowhere")
            .err()
            .context("a file nowhere")?;
        ensure!(errno_of(&error) == Some(libc::ENOENT), "{error:#}");
        Ok(())
    });
}

#[test]
fn a_guest_restarts_by_itself_and_by_the_reset_line() {
    GUESTS.with(|vms| {
        let mut waiting = vms.b.spawn(&["/bin/busybox", "cat"])?;
        let first = vms.ready_b.boot_id.clone();
        let second = vms.b.reboot()?.boot_id;
        let end = waiting.line(LIMIT).err();
        let end = end.context("a program outlived the restart")?.to_string();
        ensure!(end.contains("was restarted"), "{end}");
        let third = vms.b.reset()?.boot_id;
        ensure!(first != second && second != third);
        Ok(())
    });
}

#[test]
fn the_monitor_pauses_resumes_and_takes_a_picture() {
    GUESTS.with(|vms| {
        vms.a.qmp().execute("stop", serde_json::json!({}))?;
        ensure!(vms.a.status()? == "paused");
        vms.a.qmp().execute("cont", serde_json::json!({}))?;
        ensure!(vms.a.status()? == "running");
        let error = vms
            .a
            .qmp()
            .execute("no-such-command", serde_json::json!({}))
            .err()
            .context("a command that QEMU does not know was answered")?;
        ensure!(
            error.to_string().contains("has not been found"),
            "{error:#}"
        );
        let picture = vms.a.screen()?;
        ensure!(
            (picture.width, picture.height) == (640, 480),
            "{}x{}",
            picture.width,
            picture.height
        );
        Ok(())
    });
}

#[test]
fn a_complaint_of_a_kernel_is_noticed() {
    GUESTS.with(|vms| {
        vms.a
            .write_file("/dev/kmsg", b"<4>WARNING: CPU: 0 made up\n")?;
        let error = vms.a.check().err().context("it was not noticed")?;
        ensure!(error.to_string().contains("made up"), "{error:#}");
        Ok(())
    });
}
