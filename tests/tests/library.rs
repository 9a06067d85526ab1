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
/// Events that the driver keeps for a file that nobody reads: BUFSHARE_FILE_EVENTS.
const KEPT_EVENTS: u64 = 256;
/// An id that no buffer has.
const NOBODYS: &str = "0123456789abcdef0123456789abcdef";

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

#[test]
fn a_buffer_that_is_not_there_any_more_is_no_error_to_its_importer() {
    VMS.with(|vms| {
        let mut exporter = vms.a.client()?;
        let (_, _, export) = exporter.offer(SIZE, 1)?;
        let revoked = export.id.clone();
        exporter.close(export.number)?;
        for id in [&revoked, NOBODYS] {
            let printed = vms.b.output(&[&example("survivor"), id])?;
            ensure!(printed.trim_end() == "not offered", "{id}: {printed}");
        }
        Ok(())
    });
}

#[test]
fn an_event_loop_sees_each_change_once_and_ends_with_its_input() {
    VMS.with(|vms| {
        let mut exporter = start(&vms.a, &example("exporter"))?;
        let before = exporter.line(wait::COMMAND)?;
        let mut program = start(&vms.b, &example("event_loop"))?;
        ensure!(program.line(wait::COMMAND)? == format!("{before} hello"));

        let mut client = vms.a.client()?;
        let (_, map, export) = client.offer(SIZE, 1)?;
        let first = client.peek(map, 0, 5)?.context("own memory")?;
        let after = format!("{} {}", export.id, first.escape_ascii());
        ensure!(program.line(wait::COMMAND)? == after);
        client.set_meta(&export, "renamed", b"")?;
        ensure!(program.line(wait::COMMAND)? == format!("{} metadata 2", export.id));
        client.close(export.number)?;
        ensure!(program.line(wait::COMMAND)? == format!("{} revoked", export.id));
        end(exporter)?;
        ensure!(program.line(wait::COMMAND)? == format!("{before} revoked"));
        end(program)
    });
}

#[test]
fn an_event_loop_that_stood_still_misses_no_change() {
    VMS.with(|vms| {
        let (mut exporter, mut witness) = (vms.a.client()?, vms.b.client()?);
        // It opens the device now: its events begin.
        witness.info()?;
        let (_, _, kept) = exporter.offer(SIZE, 1)?;
        let (_, _, ended) = exporter.offer(SIZE, 2)?;
        let mut program = start(&vms.b, &example("event_loop"))?;
        for export in [&kept, &ended] {
            let line = program.line(wait::COMMAND)?;
            ensure!(line.starts_with(&export.id), "{line}");
        }
        program.signal(libc::SIGSTOP)?;
        // One by one, or the host makes one event of several. They are more than are kept.
        let last = 1 + KEPT_EVENTS + 32;
        for seq in 2..=last {
            exporter.set_meta(&kept, "renamed", b"")?;
            witness.wait_event("of the metadata", |event| {
                event.kind == "Meta" && event.value == seq
            })?;
        }
        exporter.close(ended.number)?;
        witness.wait_event_of("Revoked", &ended.id)?;
        let (_, _, new) = exporter.offer(SIZE, 3)?;
        witness.wait_event_of("Offer", &new.id)?;
        program.signal(libc::SIGCONT)?;

        let newest = format!("{} metadata {last}", kept.id);
        let revoked = format!("{} revoked", ended.id);
        let mut lines = Vec::new();
        let seen = |lines: &[String], wanted: &str| {
            lines.iter().filter(|line| line.starts_with(wanted)).count()
        };
        while [&newest, &revoked, &new.id]
            .iter()
            .any(|wanted| seen(&lines, wanted) == 0)
        {
            lines.push(program.line(wait::COMMAND)?);
        }
        program.end_input()?;
        let status = program.end(wait::COMMAND, |_, line| lines.push(line))?;
        ensure!(status == Status::Exit(0), "it ended by {status:?}");
        for wanted in [&newest, &revoked, &new.id] {
            ensure!(seen(&lines, wanted) == 1, "{wanted}: {lines:?}");
        }
        // Else nothing was lost.
        let metadata = format!("{} metadata", kept.id);
        let reported = u64::try_from(seen(&lines, &metadata))?;
        ensure!(reported < last - 1, "{reported} of {}", last - 1);
        Ok(())
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
