// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the examples in C do when something fails, with a library of `stub.c` that has it fail;
//! and that README.md shows what they are
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// An example, linked with `stub.c`; each test has a program of its own.
fn example(name: &str, test: &str) -> Command {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{test}"));
    let include = |folder: &str| PathBuf::from(format!("-I{}", here().join(folder).display()));
    let status = Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o"])
        .args([&program, &include("include")])
        .arg(include("../../protocol/include"))
        .arg(here().join("../examples").join(name).with_extension("c"))
        .arg(here().join("tests/stub.c"))
        .status()
        .expect("cc: a C compiler is needed to check the examples");
    assert!(status.success());
    Command::new(program)
}

/// Its status, and what it said of that.
fn run(command: &mut Command, input: Stdio) -> (Option<i32>, String) {
    let output = command.stdin(input).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), said)
}

#[test]
fn the_producer_ends_with_its_stream_and_says_so() {
    // Nothing else ends it: no end of input comes.
    let (read, _write) = std::io::pipe().unwrap();
    let (status, said) = run(&mut example("producer", "ends"), read.into());
    assert_eq!(
        (status, said.as_str()),
        (Some(1), "this VM was suspended\n")
    );
}

#[test]
fn the_consumer_says_what_failed_last_and_only_that() {
    let mut consumer = example("consumer", "fails");
    let mut run = |read: i32, give_back: i32| {
        for (name, errno) in [("READ", read), ("RETURN", give_back)] {
            match errno {
                0 => consumer.env_remove(name),
                errno => consumer.env(name, errno.to_string()),
            };
        }
        run(&mut consumer, Stdio::null())
    };
    let (gone, broken) = (libc::ESTALE, libc::EIO);
    for (read, give_back, status, said) in [
        (0, 0, 0, ""),
        (gone, 0, 0, ""),
        (broken, 0, 1, "READ\n"),
        (0, broken, 1, "RETURN\n"),
        // Its buffer was revoked meanwhile.
        (broken, gone, 0, ""),
        (gone, broken, 1, "RETURN\n"),
    ] {
        let ended = run(read, give_back);
        assert_eq!(ended, (Some(status), said.into()), "{read} {give_back}");
    }
}

#[test]
fn the_consumer_goes_on_when_something_is_refused() {
    let mut consumer = example("consumer", "refused");
    consumer.env("REFUSED", libc::EDQUOT.to_string());
    let output = consumer.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("refused: REFUSED\nframe 1: "), "{said}");
}

#[test]
fn the_readme_shows_the_consumer_as_it_is() {
    let read = |path: &str| std::fs::read_to_string(here().join(path)).unwrap();
    let (readme, consumer) = (read("../../README.md"), read("../examples/consumer.c"));
    let shown: Vec<_> = readme.split("\n```c\n").skip(1).collect();
    assert_eq!(shown.len(), 1, "one example in C");
    let (shown, _) = shown[0].split_once("```\n").unwrap();
    // But for its first line, of SPDX.
    let (first, consumer) = consumer.split_once('\n').unwrap();
    assert!(first.contains("SPDX"));
    assert!(
        shown == consumer,
        "copy guest-driver/examples/consumer.c into README.md"
    );
}
