// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Version 2 of the format as it was first: each request and answer, and each event, byte
//! for byte
//!
//! None of the bytes here ever changes, as drivers of that revision send and expect them.
//! What the format gains stands in other tests; see section 4.3 of SPEC.md.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use std::collections::HashMap;

use bufshare_protocol::limits::{MAX_EVENT_SIZE, MAX_STRUCT, MIN_EVENT_SIZE};
use common::daemon::{Daemon, Setup};
use common::frontend::Options;
use common::vm::Vm;

/// What happens, in this order. Bytes are hexadecimal, and behind `#` is what they are.
/// `..` is any byte, `*` repeats, and a name stands for bytes that the device chooses: they
/// are the same at every place.
enum Step {
    /// A driver asks: the request's structure, what follows it, and both of the answer.
    Ask(Who, [&'static str; 2], [&'static str; 2]),
    /// A driver gets an event.
    Event(Who, &'static str),
    /// The driver of the importer goes.
    ImporterGoes,
    /// The VM of the exporter is paused and resumed.
    ExporterIsPaused,
}

#[derive(Clone, Copy)]
enum Who {
    /// `a`, peer 1.
    Exporter,
    /// `b`, peer 2.
    Importer,
}

use Step::{Ask, Event, ExporterIsPaused, ImporterGoes};
use Who::{Exporter, Importer};

const META: &str = "
    6672616d65 00*27                    # name: frame
    58523234 01000000 10000000 10000000 # image: XR24, 1 plane, 16 x 16
    0000000000000000                    # modifier
    0000000000000000 40000000 10000000 0000000000000000 # plane: offset, stride 64, 16 rows
    00*72                               # no other planes
    04000000 00000000                   # blob_len, must_know
";
const BUFFER: &str = "
    ID
    0100000000000000 0010000000000000   # owner, size
    GENERATION
    0100000000000000                    # meta_seq
    03000000 00000000                   # rights, flags
    00000000 00000000 00000000          # extents, attachments, mapped
    58523234                            # fourcc
    6672616d65 00*27                    # name
";
const BLOB: &str = "deadbeef";

fn story() -> Vec<Step> {
    vec![
        Event(
            Exporter,
            "
            00100000 00000000 48000000 00000000 # PEER_UP, flags, length, reserved
            0100000000000000 0200000000000000   # seq, peer
            00*16 00*8 00*8 00*8                # id, handle, generation, value
            ",
        ),
        Ask(
            Importer,
            [
                "
                00010000 00000000 20000000 40010000 # GET_CAPS, flags, length, resp_length
                0101010101010101                    # cookie
                02000000 00000000                   # version, reserved
                ",
                "",
            ],
            [
                "
                00010000 00000000 40010000 00000000 # type, status, length, flags
                0101010101010101                    # cookie
                02000000 ........                   # version, caps
                07000000 ........ ........ ........ # max_windows, _extents, _buffers, _attachments
                ........ 00100000                   # max_blob, map_align
                0000000100000000 00f0ff0000000000   # shm_size, max_buffer_size
                0200000000000000                    # peer_id
                ........ ........ ........ ........ # event_size, max_batch, ways, backings
                ..*184                              # reserved then
                62 00*31                            # name
                00000000 00000000                   # windows_used, reserved
                ",
                "",
            ],
        ),
        Ask(
            Importer,
            [
                "
                01010000 00000000 28000000 28000000 # PEERS
                0202020202020202
                0000000000000000 38000000 00000000  # cursor, entry_size, reserved
                ",
                "",
            ],
            [
                "
                01010000 00000000 28000000 00000000
                0202020202020202
                0000000000000000 02000000 00000000  # next, count, reserved
                ",
                "
                0100000000000000 61 00*31           # id, name
                01000000 03000000 03000000 00000000 # state, export_, import_rights, reserved
                0200000000000000 62 00*31
                01000000 00000000 00000000 00000000
                ",
            ],
        ),
        Ask(
            Exporter,
            [
                "
                00020000 00000000 50000000 30000000 # EXPORT
                0303030303030303
                0010000000000000                    # size
                00000000 a0000000                   # backing, meta_size
                01000000 10000000                   # num_acl, access_size
                01000000 10000000                   # num_extents, extent_size
                00*16 00*8                          # pool, offset
                ",
                "
                META
                0200000000000000 03000000 00000000  # peer, rights, reserved
                0000000100000000 0010000000000000   # addr, len
                BLOB
                ",
            ],
            [
                "
                00020000 00000000 30000000 00000000
                0303030303030303
                ID
                GENERATION
                ",
                "",
            ],
        ),
        Event(
            Importer,
            "
            02100000 00000000 48000000 00000000 # OFFER
            0100000000000000 0100000000000000   # seq, peer
            ID
            0000000000000000                    # handle
            GENERATION
            0010000000000000                    # value: size
            ",
        ),
        Ask(
            Importer,
            [
                "
                03030000 00000000 28000000 28000000 # LIST
                0404040404040404
                0000000000000000 68000000 00000000  # cursor, entry_size, reserved
                ",
                "",
            ],
            [
                "
                03030000 00000000 28000000 00000000
                0404040404040404
                0000000000000000 01000000 00000000  # next, count, reserved
                ",
                "BUFFER",
            ],
        ),
        Ask(
            Importer,
            [
                "
                02030000 00000000 28000000 80000000 # QUERY
                0505050505050505
                ID
                ",
                "",
            ],
            [
                "
                02030000 00000000 80000000 00000000
                0505050505050505
                BUFFER
                ",
                "",
            ],
        ),
        Ask(
            Importer,
            [
                "
                01030000 00000000 30000000 20000000 # GET_META
                0606060606060606
                ID
                a0000000 00000000                   # meta_size, reserved
                ",
                "",
            ],
            [
                "
                01030000 00000000 20000000 00000000
                0606060606060606
                0100000000000000                    # seq
                ",
                "META BLOB",
            ],
        ),
        Ask(
            Importer,
            [
                "
                02020000 00000000 38000000 48000000 # ATTACH
                0707070707070707
                ID
                03000000 00000000                   # rights, ways
                01000000 00000000                   # required: COHERENT; max_windows
                ",
                "",
            ],
            [
                "
                02020000 00000000 48000000 00000000
                0707070707070707
                HANDLE
                0010000000000000                    # size
                GENERATION
                0100000000000000                    # owner
                03000000 ........                   # rights, way
                01000000 01000000                   # properties, windows
                ",
                "",
            ],
        ),
        Ask(
            Importer,
            [
                "
                04020000 00000000 30000000 38000000 # MAP
                0808080808080808
                HANDLE
                0000000000000000 0010000000000000   # offset, len
                ",
                "",
            ],
            [
                "
                04020000 00000000 38000000 00000000
                0808080808080808
                WINDOW
                ..*8 0010000000000000               # shm_offset, len
                00000000 00000000                   # flags, reserved
                ",
                "",
            ],
        ),
        Ask(
            Importer,
            [
                "
                06020000 00000000 48000000 18000000 # SYNC
                0909090909090909
                HANDLE
                00*16                               # id
                00000000 03000000                   # op: begin; access
                0000000000000000 0010000000000000   # offset, len
                ",
                "",
            ],
            [
                "
                06020000 00000000 18000000 00000000
                0909090909090909
                ",
                "",
            ],
        ),
        Ask(
            Importer,
            [
                "
                06020000 00000000 48000000 18000000 # SYNC
                0a0a0a0a0a0a0a0a
                HANDLE
                00*16
                01000000 03000000                   # op: end; access
                0000000000000000 0010000000000000
                ",
                "",
            ],
            [
                "
                06020000 00000000 18000000 00000000
                0a0a0a0a0a0a0a0a
                ",
                "",
            ],
        ),
        Ask(
            Exporter,
            [
                "
                00030000 00000000 30000000 20000000 # SET_META
                0b0b0b0b0b0b0b0b
                ID
                a0000000 00000000                   # meta_size, reserved
                ",
                "META BLOB",
            ],
            [
                "
                00030000 00000000 20000000 00000000
                0b0b0b0b0b0b0b0b
                0200000000000000                    # seq
                ",
                "",
            ],
        ),
        Event(
            Importer,
            "
            05100000 00000000 48000000 00000000 # META
            0200000000000000 0100000000000000   # seq, peer
            ID
            0000000000000000                    # handle
            GENERATION
            0200000000000000                    # value: seq of the metadata
            ",
        ),
        Ask(
            Importer,
            [
                "
                05020000 00000000 20000000 20000000 # UNMAP
                0c0c0c0c0c0c0c0c
                01000000 08000000                   # count, entry_size
                ",
                "WINDOW",
            ],
            [
                "
                05020000 00000000 20000000 00000000
                0c0c0c0c0c0c0c0c
                01000000 00000000                   # entry, reserved
                ",
                "",
            ],
        ),
        Ask(
            Importer,
            [
                "
                03020000 00000000 20000000 20000000 # DETACH
                0d0d0d0d0d0d0d0d
                01000000 08000000                   # count, entry_size
                ",
                "HANDLE",
            ],
            [
                "
                03020000 00000000 20000000 00000000
                0d0d0d0d0d0d0d0d
                01000000 00000000                   # entry, reserved
                ",
                "",
            ],
        ),
        Event(
            Exporter,
            "
            03100000 00000000 48000000 00000000 # RELEASED
            0200000000000000 0200000000000000   # seq, peer
            ID
            0000000000000000                    # handle
            GENERATION
            0000000000000000                    # value
            ",
        ),
        Ask(
            Importer,
            [
                "
                07020000 00000000 18000000 18000000 # FLUSH
                0e0e0e0e0e0e0e0e
                ",
                "",
            ],
            [
                "
                07020000 00000000 18000000 00000000
                0e0e0e0e0e0e0e0e
                ",
                "",
            ],
        ),
        Ask(
            Exporter,
            [
                "
                01020000 00000000 30000000 18000000 # UNEXPORT
                0f0f0f0f0f0f0f0f
                ID
                00000000 00000000                   # mode, deadline_ms
                ",
                "",
            ],
            [
                "
                01020000 00000000 18000000 00000000
                0f0f0f0f0f0f0f0f
                ",
                "",
            ],
        ),
        Event(
            Importer,
            "
            04100000 00000000 48000000 00000000 # REVOKED
            0300000000000000 0100000000000000   # seq, peer
            ID
            0000000000000000                    # handle
            GENERATION
            0000000000000000                    # value
            ",
        ),
        ImporterGoes,
        Event(
            Exporter,
            "
            01100000 00000000 48000000 00000000 # PEER_DOWN
            0300000000000000 0200000000000000   # seq, peer
            00*16 00*8 00*8 00*8                # id, handle, generation, value
            ",
        ),
        ExporterIsPaused,
        Event(
            Exporter,
            "
            06100000 00000000 48000000 00000000 # OVERFLOW
            0400000000000000 0000000000000000   # seq, peer
            00*16 00*8 00*8 ..*8                # id, handle, generation, value
            ",
        ),
    ]
}

/// What the device has chosen, by its name.
type Names = HashMap<&'static str, Vec<u8>>;

/// One place of a text.
enum Place {
    Byte(u8),
    Any,
    /// So many bytes with a name.
    Named(&'static str, usize),
}

impl Place {
    fn size(&self) -> usize {
        match self {
            Self::Byte(_) | Self::Any => 1,
            Self::Named(_, size) => *size,
        }
    }
}

fn places(text: &'static str) -> Vec<Place> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    let mut places = Vec::new();
    for word in lines.flat_map(str::split_whitespace) {
        match word {
            "META" => places.extend(self::places(META)),
            "BUFFER" => places.extend(self::places(BUFFER)),
            "BLOB" => places.extend(self::places(BLOB)),
            "ID" => places.push(Place::Named(word, 16)),
            "GENERATION" | "HANDLE" | "WINDOW" => places.push(Place::Named(word, 8)),
            _ => {
                let (digits, times) = word.split_once('*').unwrap_or((word, "1"));
                assert!(digits.len().is_multiple_of(2), "{word}");
                for _ in 0..times.parse().unwrap() {
                    for at in (0..digits.len()).step_by(2) {
                        places.push(match &digits[at..at + 2] {
                            ".." => Place::Any,
                            byte => Place::Byte(u8::from_str_radix(byte, 16).unwrap()),
                        });
                    }
                }
            }
        }
    }
    places
}

fn bytes(text: &'static str, names: &Names) -> Vec<u8> {
    let mut bytes = Vec::new();
    for place in places(text) {
        match place {
            Place::Byte(byte) => bytes.push(byte),
            Place::Any => panic!("a byte that nobody knows: {text}"),
            Place::Named(name, _) => bytes.extend(&names[name]),
        }
    }
    bytes
}

/// Compares, and takes in what the device has chosen.
fn compare(text: &'static str, found: &[u8], names: &mut Names) {
    let mut rest = found;
    for place in places(text) {
        let at = found.len() - rest.len();
        let (here, behind) = rest
            .split_at_checked(place.size())
            .unwrap_or_else(|| panic!("{at} bytes only:{text}{found:02x?}"));
        rest = behind;
        match place {
            Place::Any => {}
            Place::Byte(byte) => assert_eq!(here, [byte], "at {at}:{text}{found:02x?}"),
            Place::Named(name, _) => {
                let known = names.entry(name).or_insert_with(|| here.to_vec());
                assert_eq!(here, known, "at {at}, {name}:{text}{found:02x?}");
            }
        }
    }
    assert!(rest.is_empty(), "more than:{text}{found:02x?}");
}

/// Makes a request of a driver that knows more: its structure is so long, and so is that of
/// the answer for which it asks by so many bytes.
fn grown(structure: &[u8], rest: &[u8], size: usize, wanted: u32) -> Vec<u8> {
    let mut bytes = structure.to_vec();
    bytes.resize(size, 0);
    bytes[8..12].copy_from_slice(&(size as u32).to_le_bytes());
    let length = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) + wanted;
    bytes[12..16].copy_from_slice(&length.to_le_bytes());
    bytes.extend(rest);
    bytes
}

/// How long a driver's structure is, if it is so long in version 2.
type Size = fn(usize) -> usize;

const AS_EVER: Size = |size| size;
const LONGER: Size = |size| size + 8;
/// Than any has grown since.
const MUCH_LONGER: Size = |size| size + 64;
const LONGEST: Size = |_| MAX_STRUCT;

/// How a driver differs from those of the first revision.
struct Driver {
    size: Size,
    /// Bytes more that it wants of the structure of an answer.
    wanted: u32,
    /// Bytes of its buffers for events.
    event_size: u64,
    /// Before each request it sends one of this size, which ends with something unknown.
    unknown: Option<Size>,
}

const FIRST: Driver = Driver {
    size: AS_EVER,
    wanted: 0,
    event_size: MIN_EVENT_SIZE as u64,
    unknown: None,
};

fn run(driver: &Driver) {
    let daemon = Daemon::start(&Setup {
        peers: vec!["name=a,ram-fd=allow", "name=b,ram-fd=allow"],
        allow: vec!["a:b:rw", "b:a:rw"],
        extra: vec!["--shm-size", "16M", "--max-windows", "7"],
        ..Setup::default()
    });
    let options = Options {
        event_size: driver.event_size,
        ..Options::default()
    };
    let mut vms = ["a", "b"].map(|name| Some(Vm::boot_with(&daemon.socket(name), &options)));
    let mut names = Names::new();
    for step in story() {
        match step {
            Event(who, text) => {
                let mut found = vms[who as usize].as_mut().unwrap().raw_event(text);
                // It may be longer by what is new.
                let known: usize = places(text).iter().map(Place::size).sum();
                assert_eq!(found[8..12], (found.len() as u32).to_le_bytes(), "{text}");
                found.truncate(known);
                found[8..12].copy_from_slice(&(known as u32).to_le_bytes());
                compare(text, &found, &mut names);
            }
            ImporterGoes => drop(vms[Importer as usize].take()),
            ExporterIsPaused => vms[Exporter as usize].as_mut().unwrap().pause_and_resume(),
            Ask(who, [structure, rest], [answer, follows]) => {
                let vm = vms[who as usize].as_mut().unwrap();
                let (structure, rest) = (bytes(structure, &names), bytes(rest, &names));
                let mut ask = |bytes: &[u8]| {
                    let ticket = vm.submit_bytes(0, bytes);
                    vm.finish_raw(ticket)
                };
                if let Some(unknown) = driver.unknown {
                    let size = unknown(structure.len());
                    let mut asked = grown(&structure, &rest, size, 0);
                    asked[size - 1] = 1;
                    // The header alone, with UNSUPPORTED.
                    let refused = [
                        &asked[..4],
                        &[1, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0],
                        &asked[16..24],
                    ];
                    assert_eq!(ask(&asked), refused.concat(), "{answer}");
                }
                let size = (driver.size)(structure.len());
                let mut found = ask(&grown(&structure, &rest, size, driver.wanted));
                // What is new there is not looked at.
                let known: usize = places(answer).iter().map(Place::size).sum();
                let length = u32::from_le_bytes(found[8..12].try_into().unwrap());
                assert_eq!(length, known as u32 + driver.wanted, "{answer}{found:02x?}");
                found.drain(known..length as usize);
                found[8..12].copy_from_slice(&(known as u32).to_le_bytes());
                let rest = found.split_off(known);
                compare(answer, &found, &mut names);
                compare(follows, &rest, &mut names);
            }
        }
    }
    drop(vms);
    daemon.finish();
}

#[test]
fn drivers_of_the_first_revision_are_answered_as_ever() {
    run(&FIRST);
}

#[test]
fn longer_structures_that_end_in_zeroes_mean_what_the_first_ones_do() {
    for size in [LONGER, LONGEST] {
        run(&Driver { size, ..FIRST });
    }
}

#[test]
fn longer_structures_that_end_in_something_unknown_are_unsupported_and_do_nothing() {
    for unknown in [MUCH_LONGER, LONGEST] {
        run(&Driver {
            unknown: Some(unknown),
            ..FIRST
        });
    }
}

#[test]
fn answers_of_which_more_is_wanted_begin_as_ever() {
    run(&Driver { wanted: 8, ..FIRST });
}

#[test]
fn larger_buffers_get_the_same_events() {
    for event_size in [1024, MAX_EVENT_SIZE as u64] {
        run(&Driver {
            event_size,
            ..FIRST
        });
    }
}
