// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ioctls whose argument is one structure

use std::ffi::c_void;
use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};

/// One ioctl: its number and the type of its argument.
pub(crate) struct Call<T> {
    opcode: Opcode,
    argument: std::marker::PhantomData<T>,
}

impl<T: Copy> Call<T> {
    /// Names an ioctl.
    ///
    /// # Safety
    ///
    /// The kernel takes a pointer to a structure laid out as `T` for `opcode`, touches nothing
    /// else, or only what is borrowed for as long as this exists, and any bytes it may write are
    /// a valid `T`.
    pub(crate) const unsafe fn new(opcode: Opcode) -> Self {
        Self {
            opcode,
            argument: std::marker::PhantomData,
        }
    }

    /// The request number.
    #[cfg(test)]
    pub(crate) fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// Calls it, again when a signal interrupted it.
    pub(crate) fn run(&self, fd: impl AsFd, value: &mut T) -> io::Result<()> {
        loop {
            let request = Request {
                opcode: self.opcode,
                value: &mut *value,
            };
            // SAFETY: `new` was promised that this number takes a `T`.
            match unsafe { ioctl(fd.as_fd(), request) } {
                Err(Errno::INTR) => {}
                other => return other.map_err(io::Error::from),
            }
        }
    }
}

struct Request<'a, T> {
    opcode: Opcode,
    value: &'a mut T,
}

// SAFETY: the pointer is to the exclusively borrowed value, for as long as the
// call lasts; nothing is read from what the kernel returns.
unsafe impl<T> Ioctl for Request<'_, T> {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.value).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}
