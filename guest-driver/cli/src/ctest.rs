// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Test helper: have the C compiler prove numbers against the kernel's headers.

use std::fmt::Write as _;
use std::process::Command;

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
    let name = headers.join("-").replace('/', "_");
    let file = std::env::temp_dir().join(format!("bufshare-{}-{name}.c", std::process::id()));
    std::fs::write(&file, source).unwrap();
    let output = Command::new("cc")
        .args(["-std=c11", "-D_GNU_SOURCE", "-fsyntax-only"])
        .arg(&file)
        .output();
    std::fs::remove_file(&file).unwrap();
    let output = output.expect("the C compiler cc does not start");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
