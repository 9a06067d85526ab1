// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! scripts/accel finds KVM only where a guest boots with it
//!
//! QEMU is a script here, first in PATH, each of a version of its own: what one
//! trial finds is kept for the same QEMU.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use bufshare_tests::child;
use bufshare_tests::lab::{self, Lab};
use bufshare_tests::report::{self, Skip};
use bufshare_tests::wait;
use tempfile::TempDir;

/// What the trial's init writes on the console.
const UP: &str = "echo 'accel: the guest is up'";

struct Fake {
    folder: TempDir,
    version: String,
    lab: Lab,
}

#[derive(Debug)]
struct Answer {
    /// On stdout, without the line's end.
    accel: String,
    /// On stderr.
    why: String,
}

impl Fake {
    /// A QEMU that does this when it is to boot a guest, and counts the times.
    fn new(name: &str, boots: &str) -> Result<Self> {
        if !lab::has_kvm() {
            return Err(Skip::impossible("there is no usable /dev/kvm to be tried").into());
        }
        let lab = Lab::find()?;
        let fake = Self {
            folder: TempDir::new()?,
            version: format!("0.{}.{name}", std::process::id()),
            lab,
        };
        let program = fake.folder.path().join("qemu-system-x86_64");
        let text = format!(
            "#!/bin/bash\n\
             if [[ $1 == --version ]]; then echo 'QEMU emulator version {}'; exit; fi\n\
             echo \"$*\" >>{}\n\
             {boots}\n",
            fake.version,
            fake.runs().display()
        );
        fs::write(&program, text)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        Ok(fake)
    }

    fn runs(&self) -> PathBuf {
        self.folder.path().join("runs")
    }

    /// Where what a trial found is kept.
    fn kept(&self) -> PathBuf {
        let release = &self.lab.kernel_release;
        let name = format!("accel-{release}-{}", self.version);
        self.lab.folder.join(name)
    }

    /// The words of each guest that was to be booted.
    fn guests(&self) -> Vec<String> {
        let text = fs::read_to_string(self.runs()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn asked(&self, words: &[&str]) -> Result<Answer> {
        let path = std::env::var("PATH")?;
        let mut command = Command::new(lab::repo().join("scripts/accel"));
        command
            .args(words)
            .env("PATH", format!("{}:{path}", self.folder.path().display()))
            .env_remove("BUFSHARE_ACCEL");
        let output = child::output("scripts/accel", command, wait::BOOT)?;
        let why = String::from_utf8(output.stderr)?;
        ensure!(output.status.success(), "{}: {why}", output.status);
        ensure!(why.lines().count() == 1, "not one line of reason: {why}");
        Ok(Answer {
            accel: String::from_utf8(output.stdout)?.trim_end().to_owned(),
            why,
        })
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        // There is none when nothing was tried.
        let _ = fs::remove_file(self.kept());
    }
}

#[test]
fn kvm_is_found_by_a_guest_that_boots_and_is_tried_once() {
    report::run(|| {
        let fake = Fake::new("boots", UP)?;
        let first = fake.asked(&["--accel", "auto"])?;
        ensure!(first.accel == "kvm", "{first:?}");
        ensure!(
            first.why.contains("a guest booted with KVM") && first.why.contains(&fake.version),
            "{first:?}"
        );
        let second = fake.asked(&[])?;
        ensure!(
            second.accel == "kvm" && second.why == first.why,
            "{second:?}"
        );
        let guests = fake.guests();
        ensure!(guests.len() == 1, "not one trial: {guests:?}");
        ensure!(
            guests.iter().all(|words| words.contains("-accel kvm")),
            "{guests:?}"
        );
        fake.asked(&["--again"])?;
        ensure!(fake.guests().len() == 2, "--again tried nothing");
        Ok(())
    });
}

#[test]
fn a_qemu_that_ends_without_a_guest_is_no_kvm() {
    report::run(|| {
        let fake = Fake::new(
            "ends",
            "echo 'Could not access KVM kernel module' >&2; exit 3",
        )?;
        let answer = fake.asked(&[])?;
        ensure!(answer.accel == "tcg", "{answer:?}");
        ensure!(
            answer.why.contains("QEMU ended with 3")
                && answer.why.contains("Could not access KVM kernel module"),
            "{answer:?}"
        );
        let again = fake.asked(&[])?;
        ensure!(again.accel == "tcg" && again.why == answer.why, "{again:?}");
        ensure!(fake.guests().len() == 1, "the refusal was not kept");
        Ok(())
    });
}

#[test]
fn a_guest_that_kvm_stops_is_no_kvm() {
    report::run(|| {
        // QEMU itself goes on.
        let stops = "echo 'KVM internal error. Suberror: 1' >&2; sleep 1000";
        let fake = Fake::new("stops", stops)?;
        let answer = fake.asked(&["--limit", "600"])?;
        ensure!(answer.accel == "tcg", "{answer:?}");
        ensure!(
            answer.why.contains("KVM internal error. Suberror: 1"),
            "{answer:?}"
        );
        Ok(())
    });
}

#[test]
fn a_guest_that_hangs_is_no_kvm_and_is_killed() {
    report::run(|| {
        let pid = "echo $$ >\"${0%/*}/pid\"";
        let hangs = format!("trap '' TERM; {pid}; echo 'Linux version'; exec sleep 1000");
        let fake = Fake::new("hangs", &hangs)?;
        let answer = fake.asked(&["--limit", "5"])?;
        ensure!(answer.accel == "tcg", "{answer:?}");
        ensure!(
            answer.why.contains("within 5 s") && answer.why.contains("Linux version"),
            "{answer:?}"
        );
        let pid = fs::read_to_string(fake.folder.path().join("pid"))?;
        let stat = format!("/proc/{}/stat", pid.trim());
        wait::until("QEMU's end", wait::STOP, || {
            // One that nobody has collected yet has ended, too.
            let running = fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z "));
            Ok((!running).then_some(()))
        })
    });
}

#[test]
fn a_guest_that_hung_is_not_waited_for_again_within_the_hour() {
    report::run(|| {
        let fake = Fake::new("late", "exec sleep 1000")?;
        let answer = fake.asked(&["--limit", "1"])?;
        ensure!(answer.accel == "tcg", "{answer:?}");
        let again = fake.asked(&["--limit", "1"])?;
        ensure!(again.accel == "tcg" && again.why == answer.why, "{again:?}");
        ensure!(fake.guests().len() == 1, "it was waited for again");
        // More time says more.
        let longer = fake.asked(&["--limit", "2"])?;
        ensure!(longer.why.contains("within 2 s"), "{longer:?}");
        ensure!(fake.guests().len() == 2, "it was not waited for longer");
        // So does another time: the machine may have been busy.
        let text = fs::read_to_string(fake.kept())?;
        let (rest, until) = text.split_once("\nuntil ").context("it is kept for ever")?;
        let (_, limit) = until.split_once(' ').context("no limit is kept")?;
        fs::write(fake.kept(), format!("{rest}\nuntil 1 {limit}"))?;
        fake.asked(&["--limit", "1"])?;
        ensure!(fake.guests().len() == 3, "an old answer was taken");
        Ok(())
    });
}

#[test]
fn what_is_asked_for_is_taken_without_a_trial() {
    report::run(|| {
        let fake = Fake::new("asked", "exit 1")?;
        for accel in ["kvm", "tcg"] {
            let answer = fake.asked(&["--accel", accel])?;
            ensure!(
                answer.accel == accel && answer.why.contains("as asked for"),
                "{answer:?}"
            );
        }
        ensure!(fake.guests().is_empty(), "a guest was tried");
        let refusal = fake
            .asked(&["--accel", "fast"])
            .err()
            .context("'fast' was taken")?;
        ensure!(
            refusal.to_string().contains("'fast' is no accelerator"),
            "{refusal:#}"
        );
        Ok(())
    });
}
