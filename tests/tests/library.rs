// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The examples of the guest library between two VMs
//!
//! Its documentation shows them as they are, from guest-driver/lib/examples/. They
//! name the peer `display`.

use anyhow::{Context as _, Result, ensure};
use bufshare_agent::wire::Status;
use bufshare_tests::channel::Program;
use bufshare_tests::client::{Sight, pattern};
use bufshare_tests::pair::{Plan, Shared};
use bufshare_tests::wait;
use bufshare_tests::{lab, vm::Vm};

static VMS: Shared =
    Shared::new(|| Plan::named("camera", "display").options(&["--allow", "camera:display:rw"]));
const SIZE: u64 = 1 << 20;

/// Where it is in the guest.
fn example(name: &str) -> String {
    format!("/examples/{name}")
}

fn start(vm: &Vm, path: &str) -> Result<Program> {
    vm.spawn(&[path])
}

/// An example that exports is ended by the end of its input.
fn end(mut program: Program) -> Result<()> {
    program.end_input()?;
    let status = program.end(wait::COMMAND, |_, _| {})?;
    ensure!(status == Status::Exit(0), "it ended by {status:?}");
    Ok(())
}

#[test]
fn the_importer_sees_what_was_offered_before_it_and_after_it() {
    VMS.with(|vms| {
        let mut first = start(&vms.a, &example("exporter"))?;
        let before = first.line(wait::COMMAND)?;
        let mut importer = start(&vms.b, &example("importer"))?;
        ensure!(importer.line(wait::COMMAND)? == format!("{before} hello"));

        let mut second = start(&vms.a, &example("exporter"))?;
        let after = second.line(wait::COMMAND)?;
        ensure!(importer.line(wait::COMMAND)? == format!("{after} hello"));
        // Each is revoked once, and nothing else comes in between.
        end(first)?;
        ensure!(importer.line(wait::COMMAND)? == format!("{before} revoked"));
        end(second)?;
        ensure!(importer.line(wait::COMMAND)? == format!("{after} revoked"));
        importer.kill()
    });
}

#[test]
fn a_buffer_for_one_peer_has_its_name_there() {
    VMS.with(|vms| {
        let mut exporter = start(&vms.a, &example("export_to"))?;
        let id = exporter.line(wait::COMMAND)?;
        let mut display = vms.b.client()?;
        let offered = display.query(&id)?;
        ensure!(
            offered.name == "frame 1" && offered.size == 4096,
            "{offered:?}"
        );
        display.import(&id)?;
        end(exporter)
    });
}

#[test]
fn a_machine_knows_who_it_is_and_what_it_can() {
    VMS.with(|vms| {
        for vm in [&vms.a, &vms.b] {
            let printed = vm.output(&[&example("limits")])?;
            let wanted = format!("{}: imported buffers can be mapped", vm.name());
            ensure!(printed.trim_end() == wanted, "{printed}, not {wanted}");
        }
        Ok(())
    });
}

#[test]
fn any_dma_buf_is_read() {
    VMS.with(|vms| {
        let printed =
            vms.a
                .output(&["/init", "with-dmabuf", "0", "65536", &example("checksum")])?;
        let bytes = pattern(1, 65536);
        let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
        ensure!(
            printed.trim_end() == sum.to_string(),
            "{printed}, not {sum}"
        );
        Ok(())
    });
}

#[test]
fn checked_access_survives_a_revocation() {
    VMS.with(|vms| {
        let mut exporter = vms.a.client()?;
        let (buf, map, export) = exporter.offer(SIZE, 1)?;
        let mut survivor = vms.b.spawn(&[&example("survivor"), &export.id])?;
        ensure!(survivor.line(wait::COMMAND)? == "mapped");
        // Its copy of the first page arrives in the second.
        let first = exporter.peek(map, 0, 4096)?.context("own memory")?;
        wait::until("the importer's copy", wait::COMMAND, || {
            let second = exporter.peek(map, 4096, 4096)?;
            Ok((second.as_ref() == Some(&first)).then_some(()))
        })?;
        exporter.close(export.number)?;
        ensure!(survivor.line(wait::COMMAND)? == "revoked");
        let status = survivor.end(wait::COMMAND, |_, _| {})?;
        ensure!(status == Status::Exit(0), "it ended by {status:?}");
        // The memory is the exporter's alone again.
        exporter.fill(map, 2)?;
        ensure!(exporter.compare(map, 2)? == Sight::Pattern);
        exporter.close(buf.number)
    });
}

/// By the tests above, which name them so.
#[test]
fn every_example_is_run() -> Result<()> {
    let (tests, _) = include_str!("library.rs")
        .split_once("fn every_example_is_run")
        .context("this test")?;
    let folder = lab::repo().join("guest-driver/lib/examples");
    let mut count = 0;
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{}", path.display()))?;
        ensure!(
            tests.contains(&format!("example(\"{name}\")")),
            "no test runs the example {name}"
        );
        count += 1;
    }
    ensure!(count > 0, "no example in {}", folder.display());
    Ok(())
}
