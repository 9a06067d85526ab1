// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A count in a request takes no memory that its length does not back
//!
//! Alone in its file, since it measures the allocator of the whole process.
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use bufshare_protocol::limits::MAX_REQUEST;
use bufshare_protocol::request::{Export, Request, parse};
use bufshare_protocol::types::{Access, BufferId, Extent, Meta, Rights};

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is System's; the count does not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above; `ptr` came from `System`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// Bytes that parsing takes from the allocator, freed or not. The least of a few times: the
/// harness has a thread of its own, which allocates now and then.
fn cost(bytes: &[u8]) -> usize {
    let once = || {
        let before = ALLOCATED.load(Ordering::Relaxed);
        let _ = std::hint::black_box(parse(bytes));
        ALLOCATED.load(Ordering::Relaxed).wrapping_sub(before)
    };
    (0..3).map(|_| once()).min().unwrap_or(0)
}

#[test]
fn parse_allocates_no_more_than_the_request_backs() {
    let export = Request::Export(Box::new(Export {
        size: 1 << 20,
        extents: vec![
            Extent {
                addr: 4096,
                len: 4096
            };
            3
        ],
        acl: vec![
            Access {
                peer: 1,
                rights: Rights::RW
            };
            2
        ],
        meta: Meta {
            blob: vec![7; 5],
            ..Meta::default()
        },
        ..Export::default()
    }));
    let meta = Request::SetMeta {
        id: BufferId::ZERO,
        meta: Box::default(),
    };
    for request in [export, meta] {
        let sound = request.encode(1);
        // Slack: a Vec that grows step by step takes less than four times its
        // final size in sum, and starts with four elements.
        assert!(cost(&sound) <= sound.len() * 4, "{}", cost(&sound));
        // Each word in turn, counts among them, becomes a big number.
        for word in (0..sound.len() / 4).map(|n| n * 4) {
            for value in [1024u32, 4096, 1 << 20, u32::MAX] {
                let mut lie = sound.clone();
                lie[word..]
                    .first_chunk_mut()
                    .map(|w| *w = value.to_le_bytes())
                    .expect("a word");
                assert!(
                    cost(&lie) <= sound.len() * 4,
                    "word {word} = {value}: {}",
                    cost(&lie)
                );
            }
        }
    }
    let nonsense = vec![0xff; MAX_REQUEST];
    assert_eq!(cost(&nonsense), 0);
}
