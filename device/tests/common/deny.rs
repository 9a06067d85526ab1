// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! System calls that fail as on another host.

#![allow(clippy::unwrap_used, reason = "a test that cannot do it fails")]

use std::io;

/// From now on these system calls fail with `error` in this thread, and in what it
/// starts, where their first argument is `first`, or whatever that is.
pub(crate) fn deny(calls: &[libc::c_long], first: Option<u32>, error: i32) -> io::Result<()> {
    let op = |code: u32, k: u32, jt: usize, jf: usize| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: u8::try_from(jt).unwrap(),
        jf: u8::try_from(jf).unwrap(),
        k,
    };
    let load = |at| op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0);
    let equal = |k, jt, jf| op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k, jt, jf);
    let answer = |k| op(libc::BPF_RET | libc::BPF_K, k, 0, 0);
    // struct seccomp_data: number of the call, architecture, address, arguments.
    let mut program = vec![load(0)];
    for (index, call) in calls.iter().enumerate() {
        let rest = calls.len().saturating_sub(index);
        program.push(equal(u32::try_from(*call).unwrap(), rest, 0));
    }
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    if let Some(first) = first {
        program.extend([
            load(16),
            equal(first, 1, 0),
            answer(libc::SECCOMP_RET_ALLOW),
        ]);
    }
    program.push(answer(
        libc::SECCOMP_RET_ERRNO | u32::try_from(error).unwrap(),
    ));
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap(),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: takes no pointer.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the program outlives the call.
    let rc = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
