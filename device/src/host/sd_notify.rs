// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `sd_notify(3)`: reports to the service manager that the sockets are there, and
//! how long the end may take.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Sends `READY=1` to `$NOTIFY_SOCKET`, if it is set.
///
/// # Errors
/// As `sendto`.
pub fn ready() -> io::Result<()> {
    notify(b"READY=1\n")
}

/// Says that the program ends, which may take as long as `limit`: so a unit need not
/// know the options.
///
/// # Errors
/// As `sendto`.
pub fn stopping(limit: Duration) -> io::Result<()> {
    let micros = limit.as_micros();
    let state = format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}\nSTATUS=Revoking all buffers\n");
    notify(state.as_bytes())
}

fn notify(state: &[u8]) -> io::Result<()> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(socket) => send(&socket, state),
        None => Ok(()),
    }
}

fn send(socket: &OsStr, state: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state, &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_reaches_a_path_and_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("bufshare-notify-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();

        send(path.as_os_str(), b"READY=1\n").unwrap();
        send(OsStr::new(&format!("@{name}")), b"READY=1\n").unwrap();

        for socket in [by_path, by_name] {
            let mut buf = [0; 32];
            let n = socket.recv(&mut buf).unwrap();
            assert_eq!(&buf[..n], b"READY=1\n");
        }
    }
}
