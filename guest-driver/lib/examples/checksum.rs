// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Adds up the bytes of a dma-buf of any driver: the one that is passed as the
//! standard input

use std::os::fd::AsFd;

use bufshare::{DmaBuf, Error, Rights};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let fd = std::io::stdin().as_fd().try_clone_to_owned()?;
    let buffer = DmaBuf::from_fd(fd)?;
    let mapping = buffer.map(Rights::READ)?;
    let access = mapping.begin(Rights::READ)?;
    let mut sum = 0_u64;
    access.chunks(0, mapping.len(), |bytes| {
        let part: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
        sum = sum.wrapping_add(part);
        Ok::<(), Error>(())
    })?;
    access.finish()?;
    println!("{sum}");
    Ok(())
}
