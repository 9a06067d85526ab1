// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vhost-user back end that shares buffers between virtual machines.

use std::fmt::Display;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use vhost_device_bufshare::host::args::Args;
use vhost_device_bufshare::host::capabilities::capabilities;
use vhost_device_bufshare::host::config::{Config, LogLevel};
use vhost_device_bufshare::host::daemon;

fn main() -> ExitCode {
    // Whatever else is there, and however wrong.
    if std::env::args_os().any(|arg| arg == "--print-capabilities") {
        println!("{}", capabilities());
        return ExitCode::SUCCESS;
    }
    let config = match Config::try_from(Args::parse()) {
        Ok(config) => config,
        Err(error) => {
            say(&error);
            return ExitCode::from(2);
        }
    };
    log_to_stderr(config.log_level);
    match daemon::run(&config) {
        Ok(left) if left.is_empty() => ExitCode::SUCCESS,
        Ok(left) => {
            for hold in left {
                say(&hold);
            }
            ExitCode::from(daemon::EXIT_STILL_MAPPED)
        }
        Err(error) => {
            say(&error);
            match error {
                daemon::Error::Bug => ExitCode::from(daemon::EXIT_BUG),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// One line on standard error. Whoever read it may have gone: the status still counts.
fn say(what: &dyn Display) {
    let _ = writeln!(std::io::stderr(), "vhost-device-bufshare: {what}");
}

/// `RUST_LOG` wins. The queue crate logs errors of guests without limit, and the back-end
/// crate those of front ends; we say them ourselves.
fn log_to_stderr(level: LogLevel) {
    let mut builder = env_logger::Builder::new();
    builder
        .filter_level(level.into())
        .filter_module("virtio_queue", log::LevelFilter::Off)
        .filter_module("vhost_user_backend", log::LevelFilter::Off)
        .parse_default_env()
        .format_timestamp_millis()
        .init();
}
