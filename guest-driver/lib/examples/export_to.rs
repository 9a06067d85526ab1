// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Exports a buffer with a name to the peer "display" alone, until the end of the
//! input

use bufshare::{Device, ExportOptions, Meta, Name};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::open()?;
    let display = device.peer("display")?;
    let display = display.ok_or("there is no peer \"display\"")?;
    // To read is enough. A VMM that does not enforce that needs all rights.
    let rights = device.info()?.rights_to_read(display.export_rights);
    let meta = Meta::new().name(Name::new("frame 1")?);
    let options = ExportOptions::new().allow(display.id, rights).meta(meta);
    let export = device.export(device.alloc(4096)?, &options)?;
    println!("{}", export.id());
    std::io::read_to_string(std::io::stdin())?;
    Ok(())
}
