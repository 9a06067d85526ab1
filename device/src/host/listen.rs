// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where front ends come from: listening sockets, made once, kept for life, and
//! removed by whoever made them; or one connected socket that was inherited.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::config::Endpoint;
use crate::os::sockopt::option;
use crate::vhost::server::Source;

/// Why there is no listening socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process serves the path.
    #[error("{0}: another process listens there")]
    InUse(PathBuf),
    /// The path is something else.
    #[error("{0}: exists and is not a socket; it is left alone")]
    NotASocket(PathBuf),
    /// The system said no.
    #[error("{path}: cannot {what}: {source}")]
    Io {
        /// Path.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The descriptor is no socket that a front end can come from.
    #[error("descriptor {fd} {problem}")]
    Fd {
        /// Number.
        fd: RawFd,
        /// What it is instead.
        problem: &'static str,
    },
}

/// A socket. Its file goes with it, if it was made here and is still the same.
#[derive(Debug)]
pub struct Bound {
    source: Source,
    made: Option<(PathBuf, u64, u64)>,
}

impl Bound {
    /// Makes or adopts a socket.
    ///
    /// # Errors
    /// [`Error`]
    pub fn new(endpoint: &Endpoint) -> Result<Self, Error> {
        match endpoint {
            Endpoint::Path(path) => Self::bind(path),
            Endpoint::Fd(fd) => Self::adopt(*fd),
        }
    }

    /// Makes a socket that owner and group may connect to.
    ///
    /// # Errors
    /// [`Error`]
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let error = |what| {
            move |source| Error::Io {
                path: path.to_owned(),
                what,
                source,
            }
        };
        remove_stale(path)?;
        let listener = {
            let _mask = Umask::new(0o117);
            UnixListener::bind(path).map_err(error("listen"))?
        };
        let meta = fs::symlink_metadata(path).map_err(error("look at it"))?;
        Ok(Self {
            source: Source::Listener(listener),
            made: Some((path.to_owned(), meta.dev(), meta.ino())),
        })
    }

    /// Adopts a listening or a connected socket that is open.
    fn adopt(fd: RawFd) -> Result<Self, Error> {
        let error = |problem| Error::Fd { fd, problem };
        if fd <= libc::STDERR_FILENO {
            return Err(error("is a standard stream, not a socket of a front end"));
        }
        let domain = option(fd, libc::SO_DOMAIN).map_err(|error| Error::Fd {
            fd,
            problem: match error.raw_os_error() {
                Some(libc::EBADF) => "is not open",
                _ => "is not a socket",
            },
        })?;
        if domain != libc::AF_UNIX {
            return Err(error("is not a Unix socket"));
        }
        if option(fd, libc::SO_TYPE).ok() != Some(libc::SOCK_STREAM) {
            return Err(error("is not a stream socket"));
        }
        let listening = option(fd, libc::SO_ACCEPTCONN).ok() == Some(1);
        // SAFETY: it is open, and the operator gave it to us by its number.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: F_SETFD takes no pointer. It was inherited, so it is not
        // close-on-exec yet.
        unsafe { libc::fcntl(owned.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
        let source = if listening {
            let listener = UnixListener::from(owned);
            let _ = listener.set_nonblocking(false);
            Source::Listener(listener)
        } else {
            let stream = UnixStream::from(owned);
            if stream.peer_addr().is_err() {
                return Err(error("is a socket that neither listens nor is connected"));
            }
            let _ = stream.set_nonblocking(false);
            Source::Connected(stream)
        };
        Ok(Self { source, made: None })
    }

    /// Another handle of the same socket.
    ///
    /// # Errors
    /// As `dup`.
    pub fn source(&self) -> io::Result<Source> {
        self.source.try_clone()
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Some((path, dev, ino)) = &self.made
            && let Ok(meta) = fs::symlink_metadata(path)
            && (meta.dev(), meta.ino()) == (*dev, *ino)
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes the socket of a process that is gone, and nothing else.
fn remove_stale(path: &Path) -> Result<(), Error> {
    let error = |what| {
        move |source| Error::Io {
            path: path.to_owned(),
            what,
            source,
        }
    };
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(error("look at it")(source)),
    };
    if !meta.file_type().is_socket() {
        return Err(Error::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(Error::InUse(path.to_owned())),
        Err(source) if source.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(error("remove the stale socket"))
        }
        Err(source) => Err(error("find out whether it is in use")(source)),
    }
}

/// A file mode mask for the time of its life. The daemon makes its sockets
/// before it has threads.
struct Umask(libc::mode_t);

impl Umask {
    fn new(mask: libc::mode_t) -> Self {
        // SAFETY: umask cannot fail and touches no memory.
        Self(unsafe { libc::umask(mask) })
    }
}

impl Drop for Umask {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::umask(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn bind_makes_a_group_socket_and_removes_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");

        let bound = Bound::bind(&path).unwrap();

        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn bind_replaces_a_stale_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());

        Bound::bind(&path).unwrap();
    }

    #[test]
    fn bind_leaves_a_live_socket_and_a_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, file) = (dir.path().join("s"), dir.path().join("f"));
        let _live = UnixListener::bind(&socket).unwrap();
        fs::write(&file, "x").unwrap();

        assert!(matches!(Bound::bind(&socket), Err(Error::InUse(_))));
        assert!(matches!(Bound::bind(&file), Err(Error::NotASocket(_))));

        assert!(socket.exists());
        assert_eq!(fs::read(&file).unwrap(), b"x");
    }

    #[test]
    fn drop_leaves_the_socket_of_a_successor_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let bound = Bound::bind(&path).unwrap();
        // Kept, so that the successor cannot have the same inode.
        fs::rename(&path, dir.path().join("old")).unwrap();
        let _successor = UnixListener::bind(&path).unwrap();

        drop(bound);

        assert!(path.exists());
    }

    fn lonely_socket() -> RawFd {
        // SAFETY: takes no pointer.
        let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) };
        assert!(fd >= 0);
        fd
    }

    #[test]
    fn adopt_takes_listening_and_connected_sockets_only() {
        let dir = tempfile::tempdir().unwrap();
        let listening = UnixListener::bind(dir.path().join("s")).unwrap();
        let (connected, _other) = UnixStream::pair().unwrap();
        let lonely = lonely_socket();
        let file = fs::File::open("/dev/null").unwrap();

        let lonely = Bound::adopt(lonely).unwrap_err().to_string();
        let file = Bound::adopt(file.as_raw_fd()).unwrap_err().to_string();

        assert!(Bound::adopt(listening.into_raw_fd()).is_ok());
        let connected = Bound::adopt(connected.into_raw_fd()).unwrap();
        assert!(matches!(connected.source, Source::Connected(_)));
        assert!(lonely.contains("neither"), "{lonely}");
        assert!(file.contains("not a socket"), "{file}");
        assert!(Bound::adopt(1).is_err());
        assert!(
            Bound::adopt(99_999)
                .unwrap_err()
                .to_string()
                .contains("not open")
        );
    }
}
