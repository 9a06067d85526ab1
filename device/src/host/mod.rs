// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's side: options, sockets, signals, and the daemon as a whole.

pub mod args;
pub mod capabilities;
pub mod config;
pub mod control_socket;
pub mod daemon;
pub mod descriptors;
pub mod listen;
pub mod sd_notify;
pub mod signals;
