// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reads and writes the buffer of the given id until its exporter revokes it

use bufshare::{Device, Mapping, Result, Rights};

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let id = std::env::args().nth(1).ok_or("name the buffer's id")?;
    let import = Device::open()?.import_if_offered(id.parse()?, Rights::RW)?;
    let Some(import) = import else {
        println!("not offered");
        return Ok(());
    };
    let mapping = import.buffer.map(Rights::RW)?;
    println!("mapped");
    loop {
        match copy(&mapping) {
            Ok(()) => {}
            Err(error) if error.is_revoked() => break,
            Err(error) => return Err(error.into()),
        }
    }
    println!("revoked");
    Ok(())
}

/// Copies the first page to the second.
fn copy(mapping: &Mapping) -> Result<()> {
    let access = mapping.begin(Rights::RW)?;
    let mut page = [0; 4096];
    access.read_at_checked(0, &mut page)?;
    access.write_at_checked(page.len(), &page)?;
    access.finish()
}
