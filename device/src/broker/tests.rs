// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The broker against a simulated host, by example and by a random model.

mod host;
mod model;
mod scenarios;
