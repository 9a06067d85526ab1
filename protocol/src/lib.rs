// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Wire format and user interface of the bufshare virtio device
//!
//! `SPEC.md` says what the device and its driver do. The two C headers in
//! `protocol/include` are the reference for what they say; this crate says the same
//! in Rust. `tests/header_layout.rs` and `tests/spec.rs` prove that the three agree. It
//! has no state, no I/O, no `unsafe`, and no input makes it panic.
//!
//! | module | subject |
//! |---|---|
//! | [`limits`] | every cap, with its reason |
//! | [`device`] | device id, queues, version, capability bits |
//! | [`command`] | numbers of the commands |
//! | [`status`] | status codes of a response |
//! | [`types`] | checked values: ids, rights, names, metadata |
//! | [`wire`] | the raw structs, field by field |
//! | [`request`] | what a driver asks: bytes ⇄ [`request::Request`] |
//! | [`response`] | what the device answers: [`response::Reply`] ⇄ bytes |
//! | [`event`] | what the device reports unasked |
//! | [`ioctl`] | structs and numbers of `/dev/bufshare` |
//! | [`layout`] | tables of sizes, offsets and constants for the tests |
//!
//! Bytes from a guest go through [`request::parse`] once and are typed from
//! then on. What needs state (who may, how much is left, does it overlap) is
//! the broker's.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod command;
pub mod device;
pub mod event;
pub mod ioctl;
pub mod layout;
pub mod limits;
pub mod request;
pub mod response;
pub mod status;
pub mod types;
pub mod wire;
