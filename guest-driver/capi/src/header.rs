// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! libbufshare.h and this crate say the same: the C compiler of this machine compares them

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::structs::{assertions, const_assertions, layout, values};

const HEADER: &str = include_str!("../include/libbufshare.h");
const SOURCES: [&str; 4] = [
    include_str!("failure.rs"),
    include_str!("device.rs"),
    include_str!("producer.rs"),
    include_str!("consumer.rs"),
];

/// Compiles C or C++ against the headers; the error is the compiler's output.
fn compile(language: &str, options: &[&str], source: &str) -> Result<(), String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut cc = Command::new("cc")
        .args(["-Wall", "-Wextra", "-Wshadow", "-Werror", "-fsyntax-only"])
        .args(options)
        .args([&format!("-x{language}"), "-"])
        .arg("-I")
        .arg(here.join("include"))
        .arg("-I")
        .arg(here.join("../../protocol/include"))
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cc: a compiler of C and C++ is needed to check the header");
    let mut stdin = cc.stdin.take().unwrap();
    stdin.write_all(source.as_bytes()).unwrap();
    drop(stdin);
    let output = cc.wait_with_output().unwrap();
    let errors = || String::from_utf8_lossy(&output.stderr).into_owned();
    output.status.success().then_some(()).ok_or_else(errors)
}

fn source() -> String {
    format!(
        "#include \"libbufshare.h\"\n{}{}",
        assertions(),
        const_assertions()
    )
}

#[test]
fn structures_and_constants_are_those_of_the_header() {
    compile("c", &["-Wpadded"], &source()).unwrap_or_else(|errors| panic!("{errors}"));
}

#[test]
fn a_program_in_cpp_may_have_every_warning() {
    // Which names a function, and which the structure that an ioctl takes.
    let source = "#include \"libbufshare.h\"
        struct bufshare_alloc raw = {};
        int alloc(struct bufshare *device) { return bufshare_alloc(device, raw.size); }
        struct own { own(int); };";
    let pedantic = ["-std=c++11", "-Wconversion"];
    compile("c++", &pedantic, source).unwrap_or_else(|errors| panic!("{errors}"));
    // They are silenced in the header alone.
    let own = format!("{source}\nint own(int hidden);");
    let errors = compile("c++", &pedantic, &own).unwrap_err();
    assert!(errors.contains("-Werror=shadow"), "{errors}");
}

#[test]
fn a_difference_is_noticed() {
    let size = assertions().replacen(
        "bufshare_device_info) == 8",
        "bufshare_device_info) == 9",
        1,
    );
    assert_ne!(size, assertions());
    let value = const_assertions().replacen("== 7", "== 8", 1);
    assert_ne!(value, const_assertions());
    for damaged in [size, value] {
        let damaged = format!("#include \"libbufshare.h\"\n{damaged}");
        compile("c", &[], &damaged).unwrap_err();
    }
}

/// Each name that `before` stands in front of, and a `(` behind.
fn names<'a>(text: &'a str, before: &str) -> BTreeSet<&'a str> {
    let parts = text.split(before).skip(1);
    let name = |part: &'a str| part.split_once('(').map(|(name, _)| name);
    parts.filter_map(name).collect()
}

/// The header without comments and lines of the preprocessor.
fn code() -> String {
    let code: String = HEADER
        .split("/*")
        .filter_map(|part| part.split_once("*/").map(|(_, code)| code))
        .collect();
    let lines = code.lines().filter(|line| !line.starts_with('#'));
    lines.collect::<Vec<_>>().join("\n")
}

/// The declarations of the functions in the header, each with one blank between its words.
fn declarations() -> Vec<String> {
    let code = code().replace("extern \"C\" {", "");
    let parts = code.split(';').filter(|part| part.contains('('));
    parts
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

/// What a program that was compiled relies on.
fn abi() -> String {
    let functions = declarations().join("\n");
    format!("{functions}\n{}{}", layout(), values())
}

#[test]
#[cfg_attr(
    not(target_pointer_width = "64"),
    ignore = "abi.txt is that of 64 bits"
)]
fn programs_that_were_compiled_before_still_run() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("abi.txt");
    let stored = std::fs::read_to_string(&path).unwrap();
    let (comments, wanted): (Vec<_>, Vec<_>) = stored
        .split_inclusive('\n')
        .partition(|line| line.starts_with('#'));
    let (wanted, is) = (wanted.concat(), abi());
    if wanted != is && std::env::var_os("BUFSHARE_NEW_ABI").is_some() {
        std::fs::write(path, comments.concat() + &is).unwrap();
        return;
    }
    let (before, after) = (wanted.lines(), is.lines());
    let other = before.zip(after).find(|(before, after)| before != after);
    assert!(
        wanted == is,
        "not as guest-driver/capi/abi.txt has it, which says what to do: {other:?}"
    );
}

#[test]
fn functions_are_those_of_the_header() {
    let sources = SOURCES.concat();
    let ours = names(&sources, "extern \"C\" fn ");
    let mut theirs = BTreeSet::new();
    // What has a ( behind it is a function.
    let code = code();
    for word in code.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '(') {
        if let Some((name, _)) = word.split_once('(')
            && name.starts_with("bufshare_")
        {
            theirs.insert(name);
        }
    }
    assert_eq!(ours, theirs);
    // That it can be called from C without a name that is mangled.
    let mangled = sources.matches("#[unsafe(no_mangle)]").count();
    assert_eq!(mangled, ours.len());
}
