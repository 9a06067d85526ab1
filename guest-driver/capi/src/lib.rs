// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! libbufshare: the guest library for C
//!
//! `include/libbufshare.h` is its interface, and has its documentation. Everything here is a thin
//! layer over the crate `bufshare`: it checks pointers and sizes, and turns errors into -errno.
//!
//! No panic crosses: one in a function that C calls (`extern "C"`) ends the process.
//!
//! | module | subject |
//! |---|---|
//! | `structs` | the structures of the header |
//! | `memory` | what C passes: pointers to objects, structures that grow, texts |
//! | `failure` | -errno, the last message and the last status |
//! | `device`, `producer`, `consumer` | the functions |

mod consumer;
mod device;
mod failure;
#[cfg(test)]
mod header;
mod memory;
mod producer;
mod structs;

/// Calls a function that trusts what C passed.
macro_rules! from_c {
    ($call:expr) => {
        // SAFETY: the caller in C keeps to libbufshare.h: each pointer is NULL or of an object,
        // a structure, a text or so many elements, as the function says, which lives and is used
        // by no other thread during the call.
        unsafe { $call }
    };
}
use from_c;
