// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The init of a test guest
fn main() {}
