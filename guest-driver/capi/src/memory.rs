// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What C passes: pointers to objects, structures that grow, texts

use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr;

use crate::failure::{Failure, Result};

/// A structure that begins with its size.
///
/// # Safety
/// It is `repr(C)`, begins with a `u32`, which is its size, and any bytes make one.
pub(crate) unsafe trait Grows: Copy {
    /// Bytes that its first version had, which every program has. So nobody passes the size of
    /// a pointer to it.
    const SIZE_VER0: usize;
}

/// Bytes of the largest structure of a later version: one more is no size at all.
const MAX_SIZE: usize = 4096;

/// The size that a structure of the program's says.
///
/// # Safety
/// It is NULL, or has at least its size.
unsafe fn size_of_theirs<T: Grows>(theirs: *const T) -> Result<usize> {
    if theirs.is_null() {
        return Err(Failure::invalid("a structure is needed, not NULL"));
    }
    // SAFETY: it begins with that.
    let size = unsafe { theirs.cast::<u32>().read() };
    let size = usize::try_from(size).ok();
    let size = size.filter(|size| (T::SIZE_VER0..=MAX_SIZE).contains(size));
    size.ok_or_else(|| Failure::invalid("set the size of the structure to its sizeof"))
}

/// What a program says.
///
/// # Safety
/// It is NULL, or as long as its size says.
pub(crate) unsafe fn read<T: Grows>(theirs: *const T) -> Result<T> {
    // SAFETY: the caller's promise.
    let size = unsafe { size_of_theirs(theirs) }?;
    let ours = size_of::<T>();
    // SAFETY: it is so long.
    let bytes = unsafe { std::slice::from_raw_parts(theirs.cast::<u8>(), size) };
    if bytes.iter().skip(ours).any(|byte| *byte != 0) {
        return Err(Failure::new(
            libc::E2BIG,
            "the program says what this version of libbufshare does not know: update libbufshare",
        ));
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: both are at least so long, and do not overlap.
    unsafe {
        ptr::copy_nonoverlapping(bytes.as_ptr(), value.as_mut_ptr().cast(), size.min(ours));
    }
    // SAFETY: any bytes make one.
    Ok(unsafe { value.assume_init() })
}

/// Whether a program has room for what [`write`] is to tell it: before there is something that
/// would be lost.
///
/// # Safety
/// As of [`write`].
pub(crate) unsafe fn has_room<T: Grows>(theirs: *const T) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { size_of_theirs(theirs) }.map(drop)
}

/// Tells a program something, as much as it has room for. The size of `value` is set here.
///
/// # Safety
/// `theirs` is NULL, or as long as its size says.
pub(crate) unsafe fn write<T: Grows>(theirs: *mut T, value: &T) -> Result<()> {
    // SAFETY: the caller's promise.
    let size = unsafe { size_of_theirs(theirs) }?;
    let size = size.min(size_of::<T>());
    // SAFETY: both are at least so long, and do not overlap.
    unsafe { ptr::copy_nonoverlapping(ptr::from_ref(value).cast::<u8>(), theirs.cast(), size) };
    let size = u32::try_from(size).unwrap_or_default();
    // SAFETY: it begins with that.
    unsafe { theirs.cast::<u32>().write(size) };
    Ok(())
}

/// An object.
///
/// # Safety
/// It is NULL, or of [`give`], and not taken, and used by this call alone.
pub(crate) unsafe fn object<'a, T>(object: *const T) -> Result<&'a T> {
    // SAFETY: the caller's promise.
    unsafe { object.as_ref() }.ok_or_else(|| Failure::invalid("an object is needed, not NULL"))
}

/// As [`object`].
///
/// # Safety
/// As of [`object`].
pub(crate) unsafe fn object_mut<'a, T>(object: *mut T) -> Result<&'a mut T> {
    // SAFETY: the caller's promise.
    unsafe { object.as_mut() }.ok_or_else(|| Failure::invalid("an object is needed, not NULL"))
}

/// Makes an object the program's, at a [place](place) that it has for it.
pub(crate) fn give<T>(to: &mut MaybeUninit<*mut T>, object: T) {
    to.write(Box::into_raw(Box::new(object)));
}

/// Takes it back; `None`: NULL.
///
/// # Safety
/// As of [`object`]; nobody uses it any more.
pub(crate) unsafe fn take<T>(object: *mut T) -> Option<Box<T>> {
    // SAFETY: the caller's promise.
    (!object.is_null()).then(|| unsafe { Box::from_raw(object) })
}

/// Where a program wants a result. Asked for first: what is made for no place would be lost.
///
/// # Safety
/// `to` is NULL, or has room for one, which lives as long as `'a` and is used by this call alone.
pub(crate) unsafe fn place<'a, T>(to: *mut T) -> Result<&'a mut MaybeUninit<T>> {
    // SAFETY: the caller's promise; it need not have a value yet.
    let place = unsafe { to.cast::<MaybeUninit<T>>().as_mut() };
    place.ok_or_else(|| Failure::invalid("there is no place for the result: NULL"))
}

/// Writes a value, where NULL says that nobody wants it.
///
/// # Safety
/// As of [`place`].
pub(crate) unsafe fn put_if_wanted<T>(to: *mut T, value: T) {
    // SAFETY: the caller's promise.
    if let Ok(to) = unsafe { place(to) } {
        to.write(value);
    }
}

/// Tells a program bytes, as many as it has room for; the rest of that is zero.
///
/// # Safety
/// `to` is NULL, or has so much room.
pub(crate) unsafe fn fill(to: *mut c_void, room: usize, bytes: &[u8]) {
    let to: *mut u8 = to.cast();
    if to.is_null() {
        return;
    }
    let used = bytes.len().min(room);
    // SAFETY: the caller's promise.
    unsafe { ptr::write_bytes(to, 0, room) };
    // SAFETY: both are so long, and do not overlap.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, used) };
}

/// So many elements.
///
/// # Safety
/// They live as long as `'a`, and nobody changes them.
pub(crate) unsafe fn elements<'a, T>(first: *const T, count: u32) -> Result<&'a [T]> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count == 0 {
        return Ok(&[]);
    }
    if first.is_null() {
        return Err(Failure::invalid("there is a count of what is NULL"));
    }
    // More than any list may have; bytes of a blob are counted by the host.
    if count > 1 << 20 {
        return Err(Failure::invalid("there are too many elements"));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(first, count) })
}

/// A text; `None`: NULL.
///
/// # Safety
/// It ends with a NUL, lives as long as `'a`, and nobody changes it.
pub(crate) unsafe fn text<'a>(text: *const c_char) -> Result<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    let text = text.to_str();
    text.map(Some)
        .map_err(|_| Failure::invalid("a text is no UTF-8"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::ffi::{CString, c_int};
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::failure::tests::last;

    /// That a program was told by EINVAL what it does wrong.
    pub(crate) fn refused(result: c_int, why: &str) {
        assert_eq!(result, -libc::EINVAL);
        assert!(last().contains(why), "{}", last());
    }

    /// An empty file, which is no device
    pub(crate) struct NoDevice(PathBuf);

    impl NoDevice {
        pub(crate) fn new(name: &str) -> Self {
            let name = format!("bufshare-capi-{}-{name}", std::process::id());
            let path = fs::canonicalize(std::env::temp_dir()).unwrap().join(name);
            fs::write(&path, "").unwrap();
            Self(path)
        }

        pub(crate) fn path(&self) -> CString {
            CString::new(self.0.to_str().unwrap()).unwrap()
        }

        /// Whether this process has a descriptor of it.
        pub(crate) fn is_open(&self) -> bool {
            let mut all = fs::read_dir("/proc/self/fd").unwrap();
            // Other tests close theirs meanwhile.
            all.any(|fd| fs::read_link(fd.unwrap().path()).is_ok_and(|of| of == self.0))
        }
    }

    impl Drop for NoDevice {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    struct Ours {
        size: u32,
        one: u32,
        two: u64,
    }

    // SAFETY: numbers, of which the first is the size.
    unsafe impl Grows for Ours {
        // Its last field was added later.
        const SIZE_VER0: usize = 8;
    }

    #[repr(C)]
    struct Theirs {
        ours: Ours,
        three: u64,
    }

    fn theirs(size: u32, three: u64) -> Theirs {
        let (one, two) = (1, 2);
        let ours = Ours { size, one, two };
        Theirs { ours, three }
    }

    #[test]
    fn a_structure_of_an_older_or_newer_program_is_read() {
        // SAFETY: they are as long as they say.
        let read = |theirs: &Theirs| unsafe { read::<Ours>(&raw const theirs.ours) };
        assert_eq!(read(&theirs(16, 9)).unwrap().two, 2);
        let older = read(&theirs(8, 9)).unwrap();
        assert_eq!((older.one, older.two), (1, 0));
        assert_eq!(read(&theirs(24, 0)).unwrap().two, 2);
        assert_eq!(read(&theirs(24, 9)).unwrap_err().keep(), -libc::E2BIG);
        for size in [0, 4, 1 << 20] {
            refused(read(&theirs(size, 0)).unwrap_err().keep(), "its sizeof");
        }
    }

    #[test]
    fn what_is_written_ends_where_the_program_has_no_room() {
        let ours = Ours {
            size: 0,
            one: 5,
            two: 6,
        };
        for (size, wanted) in [(8, (8, 5, 2, 3)), (16, (16, 5, 6, 3)), (24, (16, 5, 6, 3))] {
            let mut to = theirs(size, 3);
            // SAFETY: it is as long as it says.
            unsafe { write(&raw mut to.ours, &ours) }.unwrap();
            let Ours { size, one, two } = to.ours;
            assert_eq!((size, one, two, to.three), wanted);
        }
    }

    #[test]
    fn bytes_are_told_as_far_as_there_is_room() {
        for (room, wanted) in [(0, [9; 4]), (1, [1, 9, 9, 9]), (3, [1, 2, 0, 9])] {
            let mut to = [9_u8; 4];
            // SAFETY: there is more room.
            unsafe { fill(to.as_mut_ptr().cast(), room, &[1, 2]) };
            assert_eq!(to, wanted);
        }
    }

    #[test]
    fn nothing_is_done_with_null() {
        // SAFETY: NULL is allowed everywhere.
        unsafe {
            assert!(read::<Ours>(ptr::null()).is_err());
        }
        // SAFETY: as above.
        unsafe {
            assert!(write(ptr::null_mut(), &Ours::default()).is_err());
        }
        // SAFETY: as above.
        unsafe {
            assert!(elements::<u32>(ptr::null(), 1).is_err());
        }
        // SAFETY: as above.
        unsafe {
            assert!(text(ptr::null()).unwrap().is_none());
        }
    }
}
