// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The broker against a simulated host, by example and by a random model.

#![allow(
    clippy::arithmetic_side_effects,
    reason = "a test that overflows fails"
)]

mod frames;
mod host;
mod invariants;
mod model;
mod requests;
mod scenarios;
mod streams;
