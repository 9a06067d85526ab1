// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Says who this machine is, and whether it can map what it imports

use bufshare::{CAP_MAP, Device};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let info = Device::open()?.info()?;
    let can = if info.caps & CAP_MAP == 0 {
        "cannot"
    } else {
        "can"
    };
    println!("{}: imported buffers {can} be mapped", info.name);
    Ok(())
}
