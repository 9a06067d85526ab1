// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The C headers and the Rust crate say the same
//!
//! Rust → C: each row of the tables becomes a `_Static_assert` that the host's
//! compiler checks, for 64 and 32 bits. C → Rust: each struct, field and
//! constant found in a header must be in the tables. The last tests damage a
//! copy of the headers and see both directions notice.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bufshare_protocol::layout::{CONSTS, LAYOUT, Struct};

const HEADERS: [&str; 2] = ["virtio_bufshare.h", "bufshare.h"];

/// Structs that both headers define, the module copies as they are; and what `bufshare.h` calls
/// them.
const TWINS: [(&str, &str); 10] = [
    ("id", "id"),
    ("access", "access"),
    ("plane", "plane"),
    ("image", "image"),
    ("meta", "meta"),
    ("peer", "peer"),
    ("buffer", "buffer"),
    ("event", "event"),
    ("rect", "rect"),
    ("frame", "frame_record"),
];

/// Constants of `virtio_bufshare.h` whose names begin so, behind `VIRTIO_`, are in `bufshare.h`,
/// too: what programs need.
const FOR_PROGRAMS: [&str; 19] = [
    "BUFSHARE_S_",
    "BUFSHARE_EVT_",
    "BUFSHARE_CAP_",
    "BUFSHARE_WAY_",
    "BUFSHARE_FRAME_",
    "BUFSHARE_CLOCK_",
    "BUFSHARE_STREAM_",
    "BUFSHARE_KNOW_",
    "BUFSHARE_BUFFER_",
    "BUFSHARE_PEER_UP",
    "BUFSHARE_COHERENT",
    "BUFSHARE_RO_HELD",
    "BUFSHARE_REVOCABLE",
    "BUFSHARE_MOVABLE",
    "BUFSHARE_SURVIVES",
    "BUFSHARE_MAX_FRAME_BUFFERS",
    "BUFSHARE_MAX_FRAME_RECORD",
    "BUFSHARE_MAX_CONSUMERS",
    "BUFSHARE_MAX_DAMAGE",
];

/// Every constant of both headers.
fn consts() -> Vec<(&'static str, u64)> {
    let all = CONSTS.concat();
    let again = all.iter().filter_map(|(name, value)| {
        let name = name.strip_prefix("VIRTIO_")?;
        let wanted = FOR_PROGRAMS.iter().any(|start| name.starts_with(start));
        wanted.then_some((name, *value))
    });
    let again: Vec<_> = again.collect();
    [all, again].concat()
}

fn include_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("include")
}

fn header(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).expect(name)
}

// --- Rust → C ---------------------------------------------------------------

/// C source that compiles only if the headers agree with the tables.
fn assertions() -> String {
    let mut c = String::from("#include <stddef.h>\n");
    for header in HEADERS {
        writeln!(c, "#include \"{header}\"").unwrap();
    }
    for Struct { name, size, fields } in LAYOUT {
        writeln!(
            c,
            "_Static_assert(sizeof(struct {name}) == {size}, \"sizeof {name}\");"
        )
        .unwrap();
        for field in *fields {
            let member = field.name;
            let is_at = format!("offsetof(struct {name}, {member}) == {}", field.offset);
            let is_long = format!("sizeof(((struct {name} *)0)->{member}) == {}", field.size);
            writeln!(
                c,
                "_Static_assert({is_at} && {is_long}, \"{name}.{member}\");"
            )
            .unwrap();
        }
    }
    for (name, value) in consts() {
        writeln!(
            c,
            "_Static_assert((unsigned long long)({name}) == {value}ULL, \"{name}\");"
        )
        .unwrap();
    }
    c
}

/// Compiles C source against the headers in `dir`; the error is cc's output.
fn compile(source: &str, dir: &Path, flags: &[String]) -> Result<(), String> {
    let mut cc = Command::new("cc")
        .args([
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Wpadded",
            "-Werror",
            "-fsyntax-only",
            "-xc",
            "-",
        ])
        .arg("-I")
        .arg(dir)
        .args(flags)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cc: a C compiler is needed to check the headers");
    cc.stdin
        .take()
        .unwrap()
        .write_all(source.as_bytes())
        .unwrap();
    let output = cc.wait_with_output().unwrap();
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Flags for a 32-bit compilation. No library is linked, so the kernel headers
/// of the 64-bit system serve.
fn flags_32() -> Vec<String> {
    let output = Command::new("cc")
        .arg("-print-multiarch")
        .output()
        .expect("cc");
    let multiarch = String::from_utf8(output.stdout).unwrap();
    vec![
        "-m32".into(),
        "-isystem".into(),
        format!("/usr/include/{}", multiarch.trim()),
    ]
}

#[test]
fn tables_agree_with_headers_on_64_bits() {
    compile(&assertions(), &include_dir(), &[]).unwrap_or_else(|errors| panic!("{errors}"));
}

#[test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "cc compiles for one size of words there"
)]
fn tables_agree_with_headers_on_32_bits() {
    let flags = flags_32();
    let probe = "#include <linux/types.h>\n#include <stddef.h>\n\
                 _Static_assert(sizeof(void *) == 4, \"\");";
    compile(probe, &include_dir(), &flags)
        .unwrap_or_else(|errors| panic!("cc cannot compile for 32 bits: {errors}"));
    compile(&assertions(), &include_dir(), &flags).unwrap_or_else(|errors| panic!("{errors}"));
}

// --- C → Rust ---------------------------------------------------------------

/// What a header defines.
#[derive(Default)]
struct Defined {
    /// Fields, as (type, declarator), of each struct.
    structs: BTreeMap<String, Vec<(String, String)>>,
    /// Names of the constants.
    consts: Vec<String>,
}

fn without_comments(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some((before, comment)) = rest.split_once("/*") {
        code.push_str(before);
        rest = comment.split_once("*/").expect("comment without end").1;
    }
    code.push_str(rest);
    code
}

/// Reads the subset of C that the headers consist of; the error is the first
/// text that is anything else.
fn definitions(text: &str) -> Result<Defined, String> {
    let code = without_comments(text);
    let mut defined = Defined::default();
    let mut declarations = String::new();
    for line in code.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("#define") => match (words.next(), words.next()) {
                (Some(name), Some(_)) => defined.consts.push(name.to_owned()),
                (Some(guard), None) if guard.starts_with('_') && guard.ends_with("_H") => {}
                _ => return Err(line.to_owned()),
            },
            Some("#include" | "#ifndef" | "#endif") => {}
            Some(word) if word.starts_with('#') => return Err(line.to_owned()),
            _ => declarations.extend([line, "\n"]),
        }
    }
    let mut rest = declarations.trim();
    while !rest.is_empty() {
        let parsed = (|| {
            let (name, tail) = rest.strip_prefix("struct ")?.split_once('{')?;
            let (body, tail) = tail.split_once("};")?;
            let fields = body
                .split_terminator(';')
                .map(str::trim)
                .filter(|f| !f.is_empty());
            let fields: Option<Vec<_>> = fields
                .map(|field| field.rsplit_once(char::is_whitespace))
                .map(|field| field.map(|(ty, name)| (ty.trim().to_owned(), name.to_owned())))
                .collect();
            Some((name.trim().to_owned(), fields?, tail.trim()))
        })();
        let (name, fields, tail) = parsed.ok_or_else(|| rest.to_owned())?;
        defined.structs.insert(name, fields);
        rest = tail;
    }
    Ok(defined)
}

/// Everything in a header that the tables lack.
fn missing(text: &str) -> Vec<String> {
    let defined = match definitions(text) {
        Ok(defined) => defined,
        Err(text) => return vec![format!("not understood: {text}")],
    };
    let mut missing = Vec::new();
    for name in &defined.consts {
        if !consts().iter().any(|(known, _)| known == name) {
            missing.push(name.clone());
        }
    }
    for (name, fields) in &defined.structs {
        let in_c: Vec<_> = fields
            .iter()
            .map(|(_, f)| f.split('[').next().unwrap_or_default())
            .collect();
        match LAYOUT.iter().find(|row| row.name == name) {
            None => missing.push(format!("struct {name}")),
            Some(row) => {
                let in_rust: Vec<_> = row.fields.iter().map(|field| field.name).collect();
                if in_c != in_rust {
                    missing.push(format!("struct {name}: C {in_c:?}, Rust {in_rust:?}"));
                }
            }
        }
    }
    missing
}

#[test]
fn headers_define_nothing_that_tables_lack() {
    for name in HEADERS {
        assert_eq!(
            missing(&header(&include_dir(), name)),
            Vec::<String>::new(),
            "{name}"
        );
    }
}

#[test]
fn parser_finds_every_row_of_tables() {
    let [wire, uapi] = HEADERS.map(|name| {
        definitions(&header(&include_dir(), name))
            .map_err(drop)
            .unwrap()
    });
    assert_eq!(wire.structs.len() + uapi.structs.len(), LAYOUT.len());
    assert_eq!(wire.consts.len() + uapi.consts.len(), consts().len());
}

#[test]
fn twins_have_the_same_layout() {
    let [wire, uapi] = HEADERS.map(|name| {
        definitions(&header(&include_dir(), name))
            .map_err(drop)
            .unwrap()
    });
    let normal = |fields: &[(String, String)]| -> Vec<String> {
        fields
            .iter()
            .map(|(ty, name)| format!("{ty} {name}"))
            .map(|f| {
                f.replace("__le", "__u")
                    .replace("__s", "__u")
                    .replace("virtio_", "")
                    .replace("VIRTIO_", "")
            })
            .collect()
    };
    let row = |name: &str| LAYOUT.iter().find(|row| row.name == name).unwrap();
    for (twin, name) in TWINS {
        let (of_wire, of_uapi) = (
            format!("virtio_bufshare_{twin}"),
            format!("bufshare_{name}"),
        );
        assert_eq!(
            normal(&wire.structs[&of_wire]),
            normal(&uapi.structs[&of_uapi]),
            "{twin}"
        );
        assert_eq!(row(&of_wire).size, row(&of_uapi).size, "{twin}");
        assert_eq!(row(&of_wire).fields, row(&of_uapi).fields, "{twin}");
    }
}

// --- The checks can fail ----------------------------------------------------

/// A change of one header, which must be noticed.
struct Damage {
    header: &'static str,
    old: &'static str,
    new: &'static str,
}

impl Damage {
    /// The damaged text.
    fn text(&self) -> String {
        let text = header(&include_dir(), self.header);
        assert!(
            text.contains(self.old),
            "{} has no {:?}",
            self.header,
            self.old
        );
        text.replacen(self.old, self.new, 1)
    }

    /// cc's verdict on the damaged header beside the sound one.
    fn compile(&self) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        for name in HEADERS {
            fs::copy(include_dir().join(name), dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join(self.header), self.text()).unwrap();
        compile(&assertions(), dir.path(), &[])
    }
}

#[test]
fn compiler_notices_a_changed_header() {
    let wire = HEADERS[0];
    let uapi = HEADERS[1];
    let damages = [
        Damage {
            header: wire,
            old: "MAX_ACL\t\t16",
            new: "MAX_ACL\t\t17",
        },
        Damage {
            header: wire,
            old: "\t__le32 rights;",
            new: "\t__le64 rights;",
        },
        Damage {
            header: wire,
            old: "\t__le64 addr;\n\t__le64 len;",
            new: "\t__le64 len;\n\t__le64 addr;",
        },
        Damage {
            header: wire,
            old: "\t__le64 shm_size;\n",
            new: "",
        },
        Damage {
            header: wire,
            old: "\t__le64 next;",
            new: "\t__le64 next;\n\t__le32 pad;",
        },
        Damage {
            header: uapi,
            old: "0x08, struct bufshare_table",
            new: "0x09, struct bufshare_table",
        },
        Damage {
            header: uapi,
            old: "\t__u32 fd_flags;\n\t__u32 flags;\n\t__s32 fd;",
            new: "\t__u32 flags;\n\t__u32 fd_flags;\n\t__s32 fd;",
        },
    ];
    for damage in damages {
        let errors = damage.compile().expect_err(damage.new);
        assert!(
            errors.contains("static assertion failed") || errors.contains("no member"),
            "{errors}"
        );
    }
}

#[test]
fn parser_notices_an_addition_to_a_header() {
    let end = "#endif /* _UAPI";
    for new in [
        "#define BUFSHARE_NEW 1\n#endif /* _UAPI",
        "struct bufshare_new {\n\t__u32 a;\n};\n#endif /* _UAPI",
        "enum bufshare_new { A };\n#endif /* _UAPI",
        "#if 1\n#endif /* _UAPI",
    ] {
        let text = Damage {
            header: HEADERS[1],
            old: end,
            new,
        }
        .text();
        assert_eq!(missing(&text).len(), 1, "{new}");
    }
    let field = Damage {
        header: HEADERS[1],
        old: "\t__u64 acl;",
        new: "\t__u64 acl;\n\t__u64 b;",
    };
    assert_eq!(missing(&field.text()).len(), 1);
}
