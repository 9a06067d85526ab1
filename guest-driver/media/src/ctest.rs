// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Test helper: have the C compiler prove numbers against the kernel's headers.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// Compiles one static assertion a row. A missing compiler is a failure:
/// linking Rust needs one, too.
pub(crate) fn check(headers: &[&str], rows: &[(&str, usize)]) {
    let mut source = String::from("#include <stddef.h>\n");
    for header in headers {
        writeln!(source, "#include <{header}>").unwrap();
    }
    for (expression, value) in rows {
        writeln!(
            source,
            "_Static_assert((unsigned long)({expression}) == {value}ul, \"{expression} is not {value}\");"
        )
        .unwrap();
    }
    let mut compiler = Command::new("cc")
        .args(["-std=c11", "-D_GNU_SOURCE", "-fsyntax-only", "-x", "c", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the C compiler cc does not start");
    let mut input = compiler.stdin.take().unwrap();
    input.write_all(source.as_bytes()).unwrap();
    drop(input);
    let output = compiler.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
