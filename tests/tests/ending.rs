// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The end of the daemon under VMs that share
//!
//! It has to revoke everything first: afterwards nobody can, and what the
//! exporter writes into that memory is none of the importer's business.

use anyhow::ensure;
use bufshare_tests::client::Sight;
use bufshare_tests::pair::{self, Plan};
use bufshare_tests::wait;
use serde_json::json;

const SIZE: u64 = 4 << 20;

#[test]
fn an_importer_never_reads_what_is_written_after_the_daemon_has_ended() {
    pair::with_own(
        |_| Ok(Plan::new()),
        |vms| {
            let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
            a.info()?;
            b.info()?;
            let (_, mine, export) = a.offer(SIZE, 1)?;
            let import = b.import(&export.id)?;
            let map = b.map(import.buf)?;
            b.watch(map, 1)?;

            let status = vms.daemon()?.end()?;

            ensure!(status.code() == Some(0), "the daemon ended by {status}");
            a.fill(mine, 2)?;
            b.wait_sigbus(map, wait::COMMAND)?;
            ensure!(b.compare(map, 1)? == Sight::Sigbus);
            let sights = b.sights()?;
            ensure!(sights == [Sight::Sigbus], "the importer saw {sights:x?}");
            b.wait_event_of("Revoked", &export.id)?;
            a.wait_event_of("Revoked", &export.id)?;
            Ok(())
        },
    );
}

#[test]
fn a_daemon_that_ends_while_an_importer_is_paused_names_it() {
    pair::with_own(
        |_| Ok(Plan::new()),
        |vms| {
            let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
            let (_, _, export) = a.offer(SIZE, 1)?;
            let import = b.import(&export.id)?;
            b.make_window(import.buf)?;
            vms.b.qmp().execute("stop", json!({}))?;
            let daemon = vms.daemon()?;
            wait::until("the importer's stop", wait::COMMAND, || {
                Ok((!daemon.snapshot()?.peer("b")?.up).then_some(()))
            })?;

            let status = daemon.end()?;

            ensure!(status.code() == Some(3), "the daemon ended by {status}");
            let log = daemon.log()?;
            let said = format!(
                "b: its VMM (connected by process {}) still maps {SIZE} bytes of a in ",
                vms.b.pid()
            );
            ensure!(log.contains(&said), "it did not say '{said}'");
            // QEMU 11.1.3 aborts when its back end leaves while the VM is paused. One that
            // does not has to be ended, as the line says.
            drop(b);
            vms.b.kill()
        },
    );
}
