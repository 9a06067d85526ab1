// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What all parts use of the operating system.

pub mod process;
pub mod random;
pub(crate) mod sockopt;
pub mod stop;
