// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Another process than the test's, to be taken for the VMM of a front end.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// A process that has connected a socket. Ends with this, or by [`Other::end`].
pub struct Other {
    child: Child,
    /// What it has connected.
    pub socket: Arc<UnixStream>,
}

impl Other {
    /// Has another process connect.
    pub fn connect(path: &Path) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let path = path.to_owned();
        let mut command = Command::new("cat");
        // It waits for its input until it is ended.
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let connect = move || {
            let socket = UnixStream::connect(&path)?;
            theirs
                .send_with_fd([0_u8].as_slice(), socket.as_raw_fd())
                .map(drop)
                .map_err(|error| io::Error::from_raw_os_error(error.errno()))
        };
        // SAFETY: between fork and exec it makes system calls, and allocates at the most,
        // which the C library allows.
        unsafe { command.pre_exec(connect) };
        let child = command.spawn().unwrap();
        let mut byte = [0_u8];
        let mut fds = [-1];
        let mut iovecs = [libc::iovec {
            iov_base: byte.as_mut_ptr().cast(),
            iov_len: 1,
        }];
        // SAFETY: the one entry is a byte that outlives the call.
        let got = unsafe { ours.recv_with_fds(&mut iovecs, &mut fds) }.unwrap();
        assert_eq!(got, (1, 1));
        // SAFETY: just received, and nobody else knows the number.
        let socket = Arc::new(unsafe { UnixStream::from_raw_fd(fds[0]) });
        Self { child, socket }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it, as a VMM that is killed.
    pub fn end(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
