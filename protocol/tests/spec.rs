// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! SPEC.md says what the headers and the crate say
//!
//! Its sections are numbered without a gap, and whatever is cited of them exists. It
//! names every constant and struct of `virtio_bufshare.h`, and none that is not there.
//! Each number in its tables is that of the tables in [`bufshare_protocol::layout`], which
//! `header_layout.rs` compares with the headers. The last tests damage a copy of it and
//! see each check notice.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use bufshare_protocol::layout::{CONSTS, LAYOUT, Struct};

/// What SPEC.md leaves out of the names of constants.
const PREFIX: &str = "VIRTIO_BUFSHARE_";

/// What it leaves out besides in running text.
const KINDS: [&str; 4] = ["", "CMD_", "EVT_", "S_"];

/// Words of capitals that are no names.
const WORDS: &[&str] = &[
    "CPU", "DMA", "DRM", "E2BIG", "EINVAL", "ID", "ITU", "MAY", "MUST", "NOT", "NUL", "QEMU",
    "RAM", "RFC", "SHOULD", "SMPTE", "ST", "TAI", "UTC", "UTF", "VM", "VMM",
];

/// Columns of a line, unless it is of a table.
const COLUMNS: usize = 100;

type Consts<'a> = &'a [(&'a str, u64)];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn spec() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("SPEC.md")).expect("SPEC.md")
}

// --- Sections ---------------------------------------------------------------

/// The number at the beginning of a text: `4.2` of `4.2, which`.
fn number(text: &str) -> Option<&str> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let number = text.get(..end.unwrap_or(text.len()))?;
    let number = number.trim_end_matches('.');
    let parts = |number: &str| number.split('.').all(|part| part.parse::<u32>().is_ok());
    parts(number).then_some(number)
}

/// The numbers of the sections, and what is wrong with the headings.
fn sections(text: &str) -> (BTreeSet<String>, Vec<String>) {
    let (mut found, mut wrong) = (BTreeSet::new(), Vec::new());
    let (mut chapter, mut section) = (0_u32, 0_u32);
    for line in text.lines().filter(|line| line.starts_with("##")) {
        let due = match line.split_once(' ') {
            Some(("##", _)) => {
                (chapter, section) = (chapter.saturating_add(1), 0);
                chapter.to_string()
            }
            Some(("###", _)) => {
                section = section.saturating_add(1);
                format!("{chapter}.{section}")
            }
            _ => String::new(),
        };
        let words: Vec<&str> = line.split(' ').collect();
        if !matches!(words[..], [_, number, _, ..] if number == due) {
            wrong.push(format!("heading {line:?}, due is {due:?}"));
        }
        found.insert(due);
    }
    (found, wrong)
}

/// The sections that SPEC.md itself refers to.
fn references(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut lists = false;
    for word in text.split_whitespace() {
        let bare = word.trim_start_matches('(');
        match number(bare) {
            Some(number) if lists => found.push(number),
            _ => lists = matches!(bare, "section" | "sections") || (lists && bare == "and"),
        }
    }
    found
}

/// The sections that a source file cites.
fn citations(text: &str) -> impl Iterator<Item = &str> {
    let cited = text.split("SPEC ").skip(1);
    cited
        .filter(|text| text.starts_with(|c: char| c.is_ascii_digit()))
        .filter_map(number)
}

/// Every source file that may cite: the crates, the daemon, the driver.
fn sources() -> Vec<PathBuf> {
    let mut sources = Vec::new();
    let mut folders = ["protocol", "device", "guest-driver"]
        .map(|top| repository().join(top))
        .to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository") {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|e| e == "rs" || e == "c" || e == "h")
            {
                sources.push(path);
            }
        }
    }
    sources
}

// --- Names ------------------------------------------------------------------

/// A line in turns out of backticks and in them.
fn spans(line: &str) -> impl Iterator<Item = (bool, &str)> {
    line.split('`')
        .enumerate()
        .map(|(n, part)| (n % 2 == 1, part))
}

/// The identifiers of a text, with a star that follows one.
fn identifiers(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '*')
        .filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()))
}

/// Whether a word is written as a constant is.
fn is_capital(word: &str) -> bool {
    word.len() > 1 && !word.contains(|c: char| c.is_ascii_lowercase())
}

/// The names that a text has, and what of them the headers do not have.
fn names<'a>(
    text: &'a str,
    consts: Consts<'_>,
    layout: &[Struct],
) -> (BTreeSet<&'a str>, Vec<String>) {
    let is_const = |name: &str| consts.iter().any(|(known, _)| *known == name);
    let known = |word: &str| match word.strip_suffix('*') {
        Some(family) => consts.iter().any(|(c, _)| {
            c.strip_prefix(PREFIX)
                .is_some_and(|c| c.starts_with(family))
        }),
        None => is_const(word) || is_const(&format!("{PREFIX}{word}")) || word == PREFIX,
    };
    let is_kind = |word: &str| {
        KINDS
            .iter()
            .any(|kind| is_const(&format!("{PREFIX}{kind}{word}")))
    };
    let is_field = |word: &str| {
        let mut rows = layout.iter();
        rows.any(|row| row.name == word || row.fields.iter().any(|field| field.name == word))
    };
    let (mut found, mut wrong) = (BTreeSet::new(), Vec::new());
    let prose = text.lines().filter(|line| !line.starts_with("<!--"));
    let open = |line: &&str| spans(line).count().is_multiple_of(2);
    wrong.extend(
        prose
            .clone()
            .filter(open)
            .map(|line| format!("a backtick is open: {line:?}")),
    );
    for (line, quoted, span) in prose.flat_map(|line| spans(line).map(move |(q, s)| (line, q, s))) {
        // A path.
        if quoted && span.contains('/') {
            continue;
        }
        for word in identifiers(span) {
            let singular = word
                .strip_suffix('s')
                .filter(|word| is_capital(word))
                .unwrap_or(word);
            let right = match (quoted, is_capital(singular)) {
                (true, true) => known(word),
                (true, false) => word == "struct" || is_field(word),
                (false, true) => is_kind(singular) || WORDS.contains(&singular),
                (false, false) => true,
            };
            if !right {
                wrong.push(format!("{word} is not in the headers: {line:?}"));
            }
            if quoted {
                found.insert(word);
            }
        }
    }
    (found, wrong)
}

// --- Tables -----------------------------------------------------------------

/// A table, in cells, with the line above it.
struct Table<'a> {
    caption: &'a str,
    head: Vec<&'a str>,
    rows: Vec<Vec<&'a str>>,
}

fn tables(text: &str) -> Vec<Table<'_>> {
    let mut tables: Vec<Table<'_>> = Vec::new();
    let (mut caption, mut inside) = ("", false);
    for line in text.lines() {
        let Some(cells) = line.strip_prefix('|') else {
            inside = false;
            caption = if line.is_empty() { caption } else { line };
            continue;
        };
        let cells = cells
            .trim_end_matches('|')
            .split('|')
            .map(str::trim)
            .collect();
        match tables.last_mut().filter(|_| inside) {
            Some(table) => table.rows.push(cells),
            None => tables.push(Table {
                caption,
                head: cells,
                rows: Vec::new(),
            }),
        }
        inside = true;
    }
    for table in &mut tables {
        // The line below the head.
        table.rows.remove(0);
    }
    tables
}

fn value(cell: &str) -> Option<u64> {
    match cell.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => cell.parse().ok(),
    }
}

fn name(cell: &str) -> Option<&str> {
    cell.strip_prefix('`')?.strip_suffix('`')
}

/// What the tables say else than `consts` and `layout` do, or do not say, or say twice.
fn tables_wrong(text: &str, consts: Consts<'_>, layout: &[Struct]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for Table {
        caption,
        head,
        rows,
    } in tables(text)
    {
        match head[..] {
            ["Name", "Value", ..] => {
                for row in rows {
                    let constant = row.first().copied().and_then(name).unwrap_or_default();
                    let constant = format!("{PREFIX}{constant}");
                    let said = row.get(1).copied().and_then(value);
                    let is = consts.iter().find(|(known, _)| *known == constant);
                    if said.is_none() || said != is.map(|(_, value)| *value) {
                        wrong.push(format!("{row:?}: the value of {constant} is {is:?}"));
                    }
                    let said = times.entry(constant).or_default();
                    *said = said.saturating_add(1);
                }
            }
            ["Offset", "Size", "Field", ..] => {
                let parts = caption
                    .strip_prefix("`struct ")
                    .and_then(|c| c.split_once("`, "));
                let (of, bytes) = parts.unwrap_or_default();
                let said = bytes.strip_suffix(" bytes").and_then(value);
                let as_said = |row: &Vec<&str>| match row[..] {
                    [offset, size, field, ..] => {
                        Some((value(offset)?, value(size)?, name(field)?.to_owned()))
                    }
                    _ => None,
                };
                let said = (said, rows.iter().map(as_said).collect::<Vec<_>>());
                let known = layout.iter().find(|known| known.name == of);
                let is = known.map(|known| {
                    let fields = known.fields.iter().map(|field| {
                        Some((
                            field.offset as u64,
                            field.size as u64,
                            field.name.to_owned(),
                        ))
                    });
                    (Some(known.size as u64), fields.collect::<Vec<_>>())
                });
                if is.as_ref() != Some(&said) {
                    wrong.push(format!("{caption:?} says {said:?}, it is {is:?}"));
                }
                let said = times.entry(of.to_owned()).or_default();
                *said = said.saturating_add(1);
            }
            // Nobody would compare a number in another table.
            _ => wrong.extend(
                rows.iter()
                    .flatten()
                    .filter(|cell| value(cell).is_some())
                    .map(|cell| {
                        format!(
                            "{caption:?}: {cell} stands in a table of neither values nor fields"
                        )
                    }),
            ),
        }
    }
    for due in due(consts, layout) {
        match times.get(due) {
            Some(1) => {}
            said => wrong.push(format!("{due} is in {said:?} tables")),
        }
    }
    wrong
}

/// The constants and structs of `virtio_bufshare.h`.
fn due<'a>(consts: Consts<'a>, layout: &'a [Struct]) -> impl Iterator<Item = &'a str> {
    let consts = consts
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| name.starts_with(PREFIX));
    let structs = layout.iter().map(|row| row.name);
    consts.chain(structs.filter(|name| name.starts_with("virtio_")))
}

// --- All of it --------------------------------------------------------------

/// Everything that is wrong with a specification of `consts` and `layout`.
fn wrong(text: &str, consts: Consts<'_>, layout: &[Struct]) -> Vec<String> {
    let (sections, mut wrong) = sections(text);
    for reference in references(text) {
        if !sections.contains(reference) {
            wrong.push(format!("there is no section {reference}"));
        }
    }
    for line in text.lines().filter(|line| !line.starts_with('|')) {
        if line.chars().count() > COLUMNS {
            wrong.push(format!("longer than {COLUMNS} columns: {line:?}"));
        }
    }
    let (named, unknown) = names(text, consts, layout);
    wrong.extend(unknown);
    for due in due(consts, layout) {
        if !named.contains(due) && !named.contains(due.strip_prefix(PREFIX).unwrap_or(due)) {
            wrong.push(format!("no section names {due}"));
        }
    }
    wrong.extend(tables_wrong(text, consts, layout));
    wrong
}

/// The citations of a source file that lead nowhere.
fn dangling(source: &str, sections: &BTreeSet<String>) -> Vec<String> {
    citations(source)
        .filter(|cited| !sections.contains(*cited))
        .map(str::to_owned)
        .collect()
}

#[test]
fn specification_agrees_with_headers() {
    assert_eq!(
        wrong(&spec(), &CONSTS.concat(), LAYOUT),
        Vec::<String>::new()
    );
}

#[test]
fn cited_sections_exist() {
    let (sections, _) = sections(&spec());
    let mut citing = 0_usize;
    for path in sources() {
        let source = fs::read_to_string(&path).unwrap();
        assert_eq!(
            dangling(&source, &sections),
            Vec::<String>::new(),
            "{}",
            path.display()
        );
        citing = citing.saturating_add(usize::from(citations(&source).next().is_some()));
    }
    assert!(
        citing >= 2,
        "the tests of the wire and of the broker cite it"
    );
}

// --- The checks can fail ----------------------------------------------------

/// What is found wrong with SPEC.md when `old` is `new` in it.
fn damaged(old: &str, new: &str) -> Vec<String> {
    let text = spec();
    assert!(text.contains(old), "SPEC.md has no {old:?}");
    wrong(&text.replacen(old, new, 1), &CONSTS.concat(), LAYOUT)
}

#[test]
fn damage_to_the_specification_is_noticed() {
    let damages = [
        ("### 4.3 Growth", "### 4.4 Growth", "heading"),
        ("### 4.3 Growth", "Growth", "heading"),
        ("## 5 Identifiers", "## 6 Identifiers", "heading"),
        ("## 5 Identifiers", "#### 5 Identifiers", "heading"),
        (
            "(section 4.9)",
            "(section 4.19)",
            "there is no section 4.19",
        ),
        ("6.5, 6.6", "6.15, 6.6", "there is no section 6.15"),
        (
            "`MAP_CACHED`",
            "`MAP_KEPT`",
            "MAP_KEPT is not in the headers",
        ),
        ("`CAP_*`", "`KAP_*`", "KAP_* is not in the headers"),
        (
            "`deadline_ms`",
            "`deadline_us`",
            "deadline_us is not in the headers",
        ),
        ("`fourcc`", "`fourcc", "a backtick is open"),
        (
            "(TOO_FRAGMENTED)",
            "(TOO_BROKEN)",
            "TOO_BROKEN is not in the headers",
        ),
        (
            "gets an OFFER",
            "gets OFFERINGs",
            "OFFERINGs is not in the headers",
        ),
        (
            "| `MAX_ACL` | 16 |",
            "| `MAX_ACL` | 17 |",
            "the value of VIRTIO_BUFSHARE_MAX_ACL",
        ),
        (
            "| `CMD_MAP` | 0x0204 |",
            "| `CMD_MAP` | 0x0205 |",
            "the value of VIRTIO_BUFSHARE_CMD_MAP",
        ),
        (
            "| `S_BUSY` | 15 |",
            "| `S_BUSY` | |",
            "the value of VIRTIO_BUFSHARE_S_BUSY",
        ),
        (
            "| 72 | 184 |",
            "| 72 | 176 |",
            "`struct virtio_bufshare_config`",
        ),
        (
            "virtio_bufshare_config`, 256",
            "virtio_bufshare_config`, 255",
            "255",
        ),
        (
            "virtio_bufshare_plane`, 24",
            "virtio_bufshare_window`, 24",
            "virtio_bufshare_plane",
        ),
        (
            "| mappings of the VMM |",
            "| 7 |",
            "7 stands in a table of neither",
        ),
    ];
    for (old, new, notice) in damages {
        let found = damaged(old, new);
        assert!(
            found.iter().any(|wrong| wrong.contains(notice)),
            "{new:?}: {found:?}"
        );
    }
}

#[test]
fn line_that_is_left_out_is_noticed() {
    let text = spec();
    for (line, notice) in [
        ("| `EVT_META` |", "VIRTIO_BUFSHARE_EVT_META is in None"),
        ("| 16 | 8 | `cookie` |", "`struct virtio_bufshare_req`"),
    ] {
        let line = text
            .lines()
            .find(|found| found.starts_with(line))
            .expect(line);
        let found = damaged(&format!("{line}\n"), "");
        assert!(
            found.iter().any(|wrong| wrong.contains(notice)),
            "{line}: {found:?}"
        );
    }
}

#[test]
fn line_that_is_said_twice_or_is_too_long_is_noticed() {
    let text = spec();
    let line = text
        .lines()
        .find(|line| line.starts_with("| `SHMID` |"))
        .unwrap();
    let found = damaged(line, &format!("{line}\n{line}"));
    assert_eq!(found, ["VIRTIO_BUFSHARE_SHMID is in Some(2) tables"]);
    let found = damaged(
        "## 1 Introduction",
        &format!("{}\n\n## 1 Introduction", "x".repeat(101)),
    );
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn addition_to_the_headers_is_noticed() {
    let mut consts = CONSTS.concat();
    consts.push(("VIRTIO_BUFSHARE_CMD_NEW", 0x0500));
    let found = wrong(&spec(), &consts, LAYOUT);
    assert!(
        found.contains(&"no section names VIRTIO_BUFSHARE_CMD_NEW".to_owned()),
        "{found:?}"
    );
    let mut layout = LAYOUT.to_vec();
    layout.push(Struct {
        name: "virtio_bufshare_new",
        ..layout[0]
    });
    let found = wrong(&spec(), &CONSTS.concat(), &layout);
    assert!(
        found.contains(&"no section names virtio_bufshare_new".to_owned()),
        "{found:?}"
    );
}

#[test]
fn citation_of_no_section_is_noticed() {
    let (sections, _) = sections(&spec());
    let cite = |section| format!("/// As SPEC {section} says.");
    assert_eq!(dangling(&cite("4.3"), &sections), Vec::<String>::new());
    assert_eq!(dangling(&cite("4.33"), &sections), ["4.33"]);
    assert_eq!(dangling(&cite("99"), &sections), ["99"]);
}
