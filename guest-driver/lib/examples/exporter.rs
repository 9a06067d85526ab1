// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Exports a buffer that begins with "hello", until the end of the input

use bufshare::{Device, ExportOptions, Rights};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::open()?;
    let buffer = device.alloc(1 << 20)?;

    let mapping = buffer.map(Rights::RW)?;
    let access = mapping.begin(Rights::WRITE)?;
    access.write_at(0, b"hello")?;
    access.finish()?;

    let export = device.export(&buffer, &ExportOptions::default())?;
    println!("{}", export.id());
    // The export ends when `export` is dropped.
    std::io::read_to_string(std::io::stdin())?;
    Ok(())
}
