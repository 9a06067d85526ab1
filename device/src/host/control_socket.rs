// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket: each connection gets one JSON document, then its end.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use crate::dispatcher::Dispatcher;
use crate::os::stop::Stop;

/// How long one reader may keep the others waiting.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// Answers until the stop.
pub fn serve(listener: &UnixListener, dispatcher: &Dispatcher, stop: &Stop) {
    while stop.wait_readable(listener.as_raw_fd()) {
        match listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = answer(&stream, dispatcher) {
                    log::debug!("control socket: {error}");
                }
            }
            Err(error) => {
                log::warn!("control socket: {error}");
                stop.sleep(Duration::from_millis(100));
            }
        }
    }
}

fn answer(mut stream: &UnixStream, dispatcher: &Dispatcher) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let mut text = serde_json::to_vec(&dispatcher.report())?;
    text.push(b'\n');
    stream.write_all(&text)
}
