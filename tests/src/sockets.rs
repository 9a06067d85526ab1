// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The folder of a pair's sockets, among the temporary files: a socket's path has at
//! most 107 bytes
//!
//! A test that a signal ends removes nothing. So each folder is locked as long as its test
//! lives, and those that nobody has locked are removed when the next one is made.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

const PREFIX: &str = "bufshare-test-";
/// A younger folder may be one that its test is about to lock.
const MIN_AGE: Duration = Duration::from_secs(60);

/// Removed with all that is in it when it is dropped.
#[derive(Debug)]
pub struct SocketFolder {
    folder: TempDir,
    _lock: File,
}

impl SocketFolder {
    /// Makes one.
    ///
    /// # Errors
    /// As those of the system.
    pub fn new() -> io::Result<Self> {
        Self::new_in(&std::env::temp_dir())
    }

    fn new_in(parent: &Path) -> io::Result<Self> {
        for entry in fs::read_dir(parent)?.flatten() {
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(PREFIX.as_bytes())
            {
                // It may be another user's, or vanish meanwhile.
                let _ = remove_if_left(&entry.path());
            }
        }
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        let lock = File::open(folder.path())?;
        if !try_lock(&lock)? {
            return Err(io::Error::other("somebody else has locked a new folder"));
        }
        Ok(Self {
            folder,
            _lock: lock,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

fn remove_if_left(path: &Path) -> io::Result<()> {
    let folder = File::open(path)?;
    let age = folder.metadata()?.modified()?.elapsed().unwrap_or_default();
    if age >= MIN_AGE && try_lock(&folder)? {
        fs::remove_dir_all(path)?;
    }
    Ok(())
}

/// Whether nobody else has it; it is ours as long as the file is open.
fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: takes no address; the descriptor is open.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(true),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn make_old(path: &Path) {
        let time = SystemTime::now() - MIN_AGE;
        File::open(path).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn what_a_killed_test_left_is_removed_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let [left, young, foreign] = [
            format!("{PREFIX}left"),
            format!("{PREFIX}young"),
            "bufshare-lab".to_owned(),
        ]
        .map(|name| parent.path().join(name));
        for path in [&left, &young, &foreign] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("a.sock"), "").unwrap();
        }
        make_old(&left);
        make_old(&foreign);
        let held = SocketFolder::new_in(parent.path()).unwrap();
        make_old(held.path());
        assert!(!left.exists());
        drop(SocketFolder::new_in(parent.path()).unwrap());
        for path in [&young, &foreign, held.path()] {
            assert!(path.exists(), "{}", path.display());
        }
        let path = held.path().to_owned();
        drop(held);
        assert!(!path.exists());
    }
}
