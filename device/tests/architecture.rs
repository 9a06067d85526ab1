// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The architecture page names what is in the code, and counts right
//!
//! Read as text, the page and the code alike. The last test damages a copy of the page and
//! sees each check notice.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Where a path of the page may begin.
const ROOTS: [&str; 3] = ["", "device/src", "guest-driver/module"];

/// Enums of which the page names all values: the file, the name, and what each value in C
/// begins with.
const ENUMS: [(&str, &str, &str); 6] = [
    ("broker/lifecycle.rs", "Lifecycle", ""),
    ("broker/windows/mod.rs", "State", ""),
    (
        "bufshare_priv.h",
        "bufshare_export_wire",
        "BUFSHARE_EXPORT_",
    ),
    (
        "bufshare_priv.h",
        "bufshare_import_wire",
        "BUFSHARE_IMPORT_",
    ),
    (
        "bufshare_priv.h",
        "bufshare_window_state",
        "BUFSHARE_WINDOW_",
    ),
    ("bufshare_priv.h", "bufshare_req_state", "BUFSHARE_REQ_"),
];

/// The project's crates by their folders.
const CRATES: [(&str, &str); 5] = [
    ("bufshare-protocol", "protocol"),
    ("vhost-device-bufshare", "device"),
    ("bufshare", "guest-driver/lib"),
    ("bufshare-media", "guest-driver/media"),
    ("bufshare-agent", "tests/agent"),
];

fn repo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page() -> String {
    fs::read_to_string(repo().join("device/ARCHITECTURE.md")).unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(find(path).unwrap()).unwrap()
}

/// The one file or folder that a path of the page means.
fn find(path: &str) -> Option<PathBuf> {
    let places = ROOTS.map(|root| repo().join(root).join(path));
    let mut found = places.into_iter().filter(|place| place.exists());
    found.next().filter(|_| found.next().is_none())
}

/// The text without its diagrams.
fn prose(page: &str) -> String {
    page.split("```").step_by(2).collect()
}

/// What stands between backticks, though it goes on in the next line.
fn tokens(text: &str) -> Vec<String> {
    let text = prose(text);
    let tokens = text.split('`').skip(1).step_by(2);
    let tokens = tokens.map(|token| token.split_whitespace().collect::<Vec<_>>());
    tokens.map(|words| words.join(" ")).collect()
}

fn is_path(token: &str) -> bool {
    let ends = [".rs", ".c", ".h", ".md"];
    let is_one = token.contains('/') || ends.iter().any(|end| token.ends_with(end));
    is_one && !token.starts_with('/') && !token.contains(['*', ' '])
}

/// `file: name, name`.
fn named(token: &str) -> Option<(&str, Vec<&str>)> {
    let (path, names) = token.split_once(": ")?;
    is_path(path).then(|| (path, names.split(", ").collect()))
}

/// Where a word begins.
fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let found = text.match_indices(word).map(|(at, _)| at);
    found.filter(move |at| {
        let after = &text[at + word.len()..];
        !text[..*at].ends_with(is_part) && !after.starts_with(is_part)
    })
}

/// Whether a file defines something of this name: for Rust an item or a field, for C a
/// function, in a header anything.
fn defines(path: &str, source: &str, name: &str) -> bool {
    let items = [
        "fn ", "struct ", "enum ", "trait ", "type ", "const ", "static ",
    ];
    source.lines().any(|line| {
        let trimmed = line.trim_start();
        if trimmed.starts_with(['*', '/']) {
            return false;
        }
        words(line, name).any(|at| {
            let (before, after) = (&line[..at], &line[at + name.len()..]);
            if path.ends_with(".h") {
                true
            } else if path.ends_with(".c") {
                let is_prototype = line.ends_with(';');
                !line.starts_with(char::is_whitespace) && after.starts_with('(') && !is_prototype
            } else {
                let is_field =
                    ["", "pub "].contains(&before.trim_start()) || before.ends_with("pub(super) ");
                items.iter().any(|item| before.ends_with(item))
                    || (is_field && after.starts_with(": "))
            }
        })
    })
}

/// The cells of the table that begins with `header`, row by row.
fn table(page: &str, header: &str) -> Vec<Vec<String>> {
    let (_, rest) = page.split_once(&format!("\n{header}\n")).unwrap();
    let rows = rest
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('|'));
    let cells = |row: &str| -> Vec<String> {
        let row = row.trim_matches('|');
        row.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    rows.map(cells).collect()
}

/// Files and names that are not there.
fn missing(page: &str) -> Vec<String> {
    let mut missing = Vec::new();
    for token in tokens(page) {
        let (path, names) = named(&token).unwrap_or((&token, Vec::new()));
        if !is_path(path) {
            continue;
        }
        let Some(file) = find(path) else {
            missing.push(path.to_owned());
            continue;
        };
        for name in names {
            if !defines(path, &fs::read_to_string(&file).unwrap(), name) {
                missing.push(format!("{path}: {name}"));
            }
        }
    }
    missing
}

/// The values of an enum.
fn values(source: &str, name: &str, prefix: &str) -> BTreeSet<String> {
    let (_, body) = source.split_once(&format!("enum {name} {{")).unwrap();
    let (body, _) = body.split_once("\n}").unwrap();
    let lines = body.lines().map(str::trim_start);
    let lines = lines.filter(|line| line.starts_with(char::is_alphabetic));
    let value = |line: &str| -> String {
        let value = line.strip_prefix(prefix).unwrap();
        let is_part = |c: &char| c.is_alphanumeric() || *c == '_';
        value.chars().take_while(is_part).collect()
    };
    lines.map(value).collect()
}

/// States that the page leaves out, or that are none.
fn wrong_states(page: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (path, name, prefix) in ENUMS {
        let values = values(&read(path), name, prefix);
        let (_, section) = page.split_once(&format!("`{path}: {name}`")).unwrap();
        let section = section.split("\n##").next().unwrap();
        let found: BTreeSet<String> = tokens(section).into_iter().collect();
        let left_out = values.difference(&found);
        wrong.extend(left_out.map(|value| format!("{name} without {value}")));
        let header = "| state | leaves to, when |";
        if section.contains(header) {
            let rows = table(section, header).into_iter();
            let rows = rows.map(|row| row[0].trim_matches('`').to_owned());
            let rows = rows.filter(|row| !values.contains(row));
            wrong.extend(rows.map(|row| format!("{name} with {row}")));
        }
    }
    wrong
}

/// What is between backticks in the second column, by the first.
fn uses(page: &str, header: &str) -> Vec<(String, BTreeSet<String>)> {
    let rows = table(page, header).into_iter();
    rows.map(|row| {
        let name = row[0].trim_matches('`').to_owned();
        (name, tokens(&row[1]).into_iter().collect())
    })
    .collect()
}

fn crates_used(folder: &str) -> BTreeSet<String> {
    let manifest = fs::read_to_string(repo().join(folder).join("Cargo.toml")).unwrap();
    let (_, rest) = manifest.split_once("\n[dependencies]\n").unwrap();
    let lines = rest.lines().take_while(|line| !line.starts_with('['));
    let lines = lines.filter_map(|line| {
        let name = line.split(['.', ' ']).next()?;
        CRATES.into_iter().find(|(known, _)| *known == name)
    });
    lines.map(|(_, folder)| folder.to_owned()).collect()
}

fn rust_files(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    let Ok(entries) = fs::read_dir(place) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    let code = paths.filter(|path| path.file_stem().unwrap() != "tests");
    code.flat_map(|path| rust_files(&path)).collect()
}

/// The names behind `crate::` in a room, but in its comments and tests.
fn rooms_used(room: &str) -> BTreeSet<String> {
    let src = repo().join("device/src");
    let mut files = rust_files(&src.join(room));
    files.extend(rust_files(&src.join(format!("{room}.rs"))));
    assert!(!files.is_empty(), "no room {room}");
    let mut used = BTreeSet::new();
    for file in files {
        let source = fs::read_to_string(file).unwrap();
        let tests = source.find("mod tests {").unwrap_or(source.len());
        let lines = source[..tests].lines();
        for line in lines.filter(|line| !line.trim_start().starts_with("//")) {
            for part in line.split("crate::").skip(1) {
                let name = part
                    .split(|c: char| !c.is_alphanumeric() && c != '_')
                    .next();
                used.insert(name.unwrap().to_owned());
            }
        }
    }
    used.remove(room);
    used
}

/// Uses that the page does not have, and those that the code does not.
fn wrong_uses(page: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut compare = |who: &str, code: &BTreeSet<String>, page: &BTreeSet<String>| {
        let more = code.difference(page);
        wrong.extend(more.map(|used| format!("{who} uses {used}")));
        let less = page.difference(code);
        wrong.extend(less.map(|used| format!("{who} does not use {used}")));
    };
    for (folder, uses) in uses(page, "| crate | uses |") {
        compare(&folder, &crates_used(&folder), &uses);
    }
    for (room, uses) in uses(page, "| room | uses |") {
        compare(&room, &rooms_used(&room), &uses);
    }
    wrong
}

/// The functions of a C file that others may call, and the file without its comments.
fn functions(source: &str) -> (BTreeSet<String>, String) {
    let mut code = String::new();
    for part in source.split("/*") {
        code.push_str(part.split_once("*/").map_or(part, |(_, after)| after));
    }
    let definitions = code.lines().filter(|line| {
        let is_code = line.starts_with(|c: char| c.is_alphabetic() || c == '_');
        is_code && !line.starts_with("static") && line.contains('(')
    });
    let names = definitions.filter_map(|line| {
        let name = line.split('(').next()?;
        let name = name.rsplit([' ', '*']).next()?;
        name.starts_with("bufshare_").then(|| name.to_owned())
    });
    (names.collect(), code)
}

/// Calls of the driver that go up and that the page does not name, and the reverse.
fn wrong_calls(page: &str) -> Vec<String> {
    let lines = uses(page, "| line | files |");
    let mut heights = BTreeMap::new();
    for (height, (_, files)) in lines.iter().enumerate() {
        heights.extend(files.iter().map(|file| (file.as_str(), height)));
    }
    let (_, up) = page.split_once("calls go up:").unwrap();
    let up = tokens(up.split("\n\n").next().unwrap());
    let mut named: BTreeSet<String> = up.chunks(2).map(|pair| pair.join(" -> ")).collect();

    let mut wrong = Vec::new();
    let mut sources = BTreeMap::new();
    for entry in fs::read_dir(repo().join("guest-driver/module")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".c") && heights.contains_key(name.as_str()) {
            sources.insert(name.clone(), functions(&read(&name)));
        } else if name.starts_with("bufshare_") && name.ends_with(".c") {
            wrong.push(format!("{name} is on no line"));
        }
    }
    for (caller, (_, code)) in &sources {
        for (callee, (functions, _)) in &sources {
            if heights[callee.as_str()] >= heights[caller.as_str()] {
                continue;
            }
            for function in functions {
                let call = format!("{caller} -> {function}");
                if words(code, function).next().is_some() && !named.remove(&call) {
                    wrong.push(call);
                }
            }
        }
    }
    wrong.extend(named.into_iter().map(|call| format!("not called: {call}")));
    wrong
}

/// Numbers of the MAP's summary that are not those of its tables.
fn wrong_counts(page: &str) -> Vec<String> {
    let after = table(page, "| step | context | functions | locks | wakes |");
    let before = table(page, "| step | before | after |");
    let tokens = after.iter().flat_map(|row| tokens(&row[2]));
    let tokens: Vec<String> = tokens.collect();
    let files = tokens.iter().map(|token| named(token).unwrap());
    let (paths, names): (BTreeSet<_>, Vec<_>) =
        files.map(|(path, names)| (path, names.len())).unzip();
    let wakes = after.iter().flat_map(|row| row[4].split(": "));
    let wakes = wakes.filter_map(|part| part.rsplit(' ').next()?.parse::<usize>().ok());
    let names_before = before.iter().map(|row| row[1].split(", ").count());
    let count = |numbers: &mut dyn Iterator<Item = usize>| numbers.sum::<usize>().to_string();

    let summary = table(page, "| | before | after |");
    let summary: BTreeMap<_, _> = summary.iter().map(|row| (&*row[0], &row[1..])).collect();
    let expected = [
        ("functions", 0, count(&mut names_before.into_iter())),
        ("functions", 1, count(&mut names.into_iter())),
        ("files of the project", 1, paths.len().to_string()),
        ("wake-ups", 1, wakes.max().unwrap().to_string()),
    ];
    let wrong = expected
        .into_iter()
        .filter(|(what, column, number)| summary[what][*column] != *number);
    wrong
        .map(|(what, column, number)| format!("{what}, column {column}: {number}"))
        .collect()
}

/// Lines of more than 100 columns outside of tables and diagrams.
fn long_lines(page: &str) -> Vec<String> {
    let text = prose(page);
    let lines = text.lines().filter(|line| !line.starts_with('|'));
    let long = lines.filter(|line| line.chars().count() > 100);
    long.map(str::to_owned).collect()
}

#[test]
fn every_file_and_function_on_the_page_exists() {
    let page = page();
    let named = tokens(&page).iter().filter(|t| is_path(t)).count();
    assert!(named > 20, "{named} paths: the page was not read");
    assert_eq!(missing(&page), [""; 0]);
}

#[test]
fn every_state_is_on_the_page() {
    assert_eq!(wrong_states(&page()), [""; 0]);
}

#[test]
fn rooms_use_those_that_the_page_says() {
    assert_eq!(wrong_uses(&page()), [""; 0]);
}

#[test]
fn files_of_the_driver_call_no_file_above_them() {
    assert_eq!(wrong_calls(&page()), [""; 0]);
}

#[test]
fn summary_of_a_map_counts_what_its_tables_name() {
    assert_eq!(wrong_counts(&page()), [""; 0]);
}

#[test]
fn lines_of_the_page_fit_into_100_columns() {
    assert_eq!(long_lines(&page()), [""; 0]);
}

#[test]
fn what_the_page_has_wrong_is_found() {
    type Check = fn(&str) -> Vec<String>;
    let damages: [(&str, &str, Check); 12] = [
        ("`host/control_socket.rs: serve`", "`host/no.rs`", missing),
        (
            "`bufshare_revoke.c: bufshare_imp_zap`",
            "`bufshare_mmap.c: bufshare_imp_zap`",
            missing,
        ),
        (
            "`vhost/queue.rs: reply`",
            "`vhost/queue.rs: answered`",
            missing,
        ),
        ("`broker/mod.rs: handle`", "`broker/mod.rs: hand`", missing),
        ("| `Empty` | gone", "| `Hollow` | gone", wrong_states),
        ("`Connected`", "`Linked`", wrong_states),
        ("| `device` | `protocol` |", "| `device` | |", wrong_uses),
        ("| `broker` | |", "| `broker` | `os` |", wrong_uses),
        ("| `locks` | |", "| `locks` | `broker` |", wrong_uses),
        (
            "`bufshare_import.c`, `bufshare_handle.c` |",
            "`bufshare_handle.c` |",
            wrong_calls,
        ),
        (
            "`bufshare_event_free`",
            "`bufshare_event_fill`",
            wrong_calls,
        ),
        ("one, request, Hub::request,", "one, request,", wrong_counts),
    ];
    for (old, new, check) in damages {
        let page = page();
        assert!(page.contains(old), "{old}");
        let damaged = page.replace(old, new);
        assert!(!check(&damaged).is_empty(), "{old} -> {new}");
    }
}
