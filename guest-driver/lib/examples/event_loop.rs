// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Prints the first bytes and the names of the buffers that other VMs offer, until the end of
//! the input, in a loop that waits in `poll` alone; what asks the host is done by a thread

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bufshare::{BufferInfo, Change, Device, Result, Rights};
use rustix::event::{PollFd, PollFlags, poll};

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let (sender, offered) = channel();
    let importer = std::thread::spawn(move || import_all(&offered));
    let mut offers = Device::open()?.offers();
    loop {
        // Before the first poll: what is there already makes no descriptor readable.
        while let Some(change) = offers.next_change(Some(Duration::ZERO))? {
            match change {
                // It has no bytes, but buffers that are part of it, which are offered, too.
                Change::Offered { buffer, .. } if buffer.is_stream => {
                    println!("{} stream {}", buffer.id, buffer.name);
                }
                Change::Offered { buffer, .. } => sender.send(buffer)?,
                Change::Metadata { buffer, .. } => {
                    println!("{} metadata {}", buffer.id, buffer.meta_seq);
                }
                Change::Revoked { buffer, .. } => println!("{} revoked", buffer.id),
                _ => {}
            }
        }
        let input = std::io::stdin();
        let mut ready = [
            PollFd::new(&offers, PollFlags::IN),
            PollFd::new(&input, PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| poll(&mut ready, None))?;
        let [_, input] = &ready;
        if !input.revents().is_empty() {
            break;
        }
    }
    drop(sender);
    importer.join().map_err(|_| "the importer panicked")??;
    Ok(())
}

/// Prints what is offered, as long as anybody says so.
fn import_all(offered: &Receiver<BufferInfo>) -> Result<()> {
    let device = Device::open()?;
    for buffer in offered {
        match first_bytes(&device, &buffer) {
            Ok(Some(bytes)) => println!("{} {}", buffer.id, bytes.escape_ascii()),
            // Its exporter has ended already.
            Ok(None) => {}
            Err(error) if error.is_absent() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn first_bytes(device: &Device, buffer: &BufferInfo) -> Result<Option<[u8; 5]>> {
    // To read is enough. A VMM that does not enforce that needs all rights.
    let rights = device.info()?.rights_to_read(buffer.rights);
    let Some(import) = device.import_if_offered(buffer.id, rights)? else {
        return Ok(None);
    };
    let mapping = import.buffer.map(Rights::READ)?;
    let access = mapping.begin(Rights::READ)?;
    let mut bytes = [0; 5];
    access.read_at_checked(0, &mut bytes)?;
    access.finish()?;
    Ok(Some(bytes))
}
