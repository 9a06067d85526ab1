// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One dma-buf that is exported several times

use anyhow::{Result, ensure};
use bufshare_tests::client::{Client, refused};
use bufshare_tests::pair::{Plan, Shared};

static VMS: Shared = Shared::new(|| {
    let allowed = [
        "--peer",
        "name=c,socket={sockets}/c.sock",
        "--allow",
        "a:b:rw",
        "--allow",
        "a:c:rw",
    ];
    Plan::named("a", "b").options(&allowed)
});
const SIZE: u64 = 64 << 10;

fn offered(b: &mut Client, id: &str) -> Result<bool> {
    Ok(b.list()?.iter().any(|one| one.id == id))
}

#[test]
fn a_dma_buf_that_is_exported_again_to_the_same_peers_is_the_same_buffer() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let buf = a.alloc(SIZE)?;
        let named = |a: &mut Client| a.export_to(buf, &[("b", true)], "one", b"blob");
        let (first, second) = (named(&mut a)?, named(&mut a)?);
        ensure!(first.id == second.id && first.generation == second.generation);
        ensure!(first.number != second.number);
        // It ends with the last.
        a.close(first.number)?;
        ensure!(offered(&mut b, &second.id)?);
        let third = named(&mut a)?;
        ensure!(third.id == second.id);
        a.close(third.number)?;
        ensure!(offered(&mut b, &second.id)?);
        b.import(&second.id)?;
        a.close(second.number)?;
        b.wait_event_of("Revoked", &second.id)?;
        let anew = named(&mut a)?;
        ensure!(anew.id != second.id);
        Ok(())
    });
}

#[test]
fn other_metadata_of_the_same_export_is_refused_and_other_peers_have_one_of_their_own() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let buf = a.alloc(SIZE)?;
        let first = a.export_to(buf, &[("b", true)], "one", b"blob")?;
        for (name, blob) in [
            ("two", &b"blob"[..]),
            ("one", &b"clob"[..]),
            ("one", &b""[..]),
        ] {
            let refused = refused(a.export_to(buf, &[("b", true)], name, blob))?;
            ensure!(refused.errno == libc::EEXIST, "{refused:?}");
        }
        let reads = a.export_to(buf, &[("b", false)], "two", b"")?;
        ensure!(reads.id != first.id);
        ensure!(offered(&mut b, &first.id)? && offered(&mut b, &reads.id)?);
        // Other memory is something else.
        let other = a.alloc(SIZE)?;
        let same_words = a.export_to(other, &[("b", true)], "one", b"blob")?;
        ensure!(same_words.id != first.id);
        Ok(())
    });
}

#[test]
fn the_same_peers_are_the_same_in_any_order() {
    VMS.with(|vms| {
        let (mut a, mut b) = (vms.a.client()?, vms.b.client()?);
        let buf = a.alloc(SIZE)?;
        let first = a.export_to(buf, &[("b", true), ("c", false)], "", b"")?;
        let second = a.export_to(buf, &[("c", false), ("b", true)], "", b"")?;
        ensure!(first.id == second.id);
        // With other rights it is for others.
        let third = a.export_to(buf, &[("c", true), ("b", true)], "", b"")?;
        ensure!(first.id != third.id);
        ensure!(offered(&mut b, &first.id)? && offered(&mut b, &third.id)?);
        Ok(())
    });
}
