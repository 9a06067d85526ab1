// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Prints the first bytes of each buffer that another VM offers, also of those
//! that were offered before this program was started

use bufshare::{BufferInfo, Change, Device, Result, Rights};

fn main() -> Result<()> {
    let mut offers = Device::open()?.offers();
    while let Some(change) = offers.next_change(None)? {
        match change {
            // It has no bytes, but buffers that are part of it, which are offered, too.
            Change::Offered { buffer, .. } if buffer.is_stream => {
                println!("{} stream {}", buffer.id, buffer.name);
            }
            Change::Offered { buffer, .. } => match read(offers.device(), &buffer) {
                Ok(bytes) => println!("{} {}", buffer.id, bytes.escape_ascii()),
                // Its exporter has ended already.
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            },
            Change::Revoked { buffer, .. } => println!("{} revoked", buffer.id),
            _ => {}
        }
    }
    Ok(())
}

fn read(device: &Device, buffer: &BufferInfo) -> Result<[u8; 5]> {
    // To read is enough. A VMM that does not enforce that needs all rights.
    let rights = device.info()?.rights_to_read(buffer.rights);
    let import = device.import(buffer.id, rights)?;
    let mapping = import.buffer.map(Rights::READ)?;
    let access = mapping.begin(Rights::READ)?;
    let mut bytes = [0; 5];
    access.read_at_checked(0, &mut bytes)?;
    access.finish()?;
    Ok(bytes)
}
