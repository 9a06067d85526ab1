// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! libbufshare between two VMs, by tests/guest/capi.c, which has the checks

use anyhow::{Result, ensure};
use bufshare_agent::wire::Status;
use bufshare_tests::channel::Program;
use bufshare_tests::pair::{Plan, Shared};
use bufshare_tests::wait;

static VMS: Shared = Shared::new(Plan::new);
const PROGRAM: &str = "/examples/c-capi";

fn says(program: &mut Program, wanted: &str) -> Result<()> {
    let line = program.line(wait::COMMAND)?;
    ensure!(line == wanted, "{line}, not {wanted}");
    Ok(())
}

fn ends(mut program: Program) -> Result<()> {
    says(&mut program, "done")?;
    let status = program.end(wait::COMMAND, |_, _| {})?;
    ensure!(status == Status::Exit(0), "it ended by {status:?}");
    Ok(())
}

#[test]
fn programs_in_c_share_buffers_and_frames_in_foreign_memory() {
    VMS.with(|vms| {
        let mut exporter = vms.a.spawn(&[PROGRAM, "export", "b"])?;
        let id = exporter.line(wait::COMMAND)?;
        let mut importer = vms.b.spawn(&[PROGRAM, "import", "a", &id])?;
        says(&mut importer, "joined")?;
        exporter.write("x")?;
        says(&mut importer, "ended")?;
        exporter.end_input()?;
        ends(exporter)?;
        ends(importer)
    });
}

#[test]
fn what_a_program_in_c_does_wrong_is_refused_by_name_and_loses_nothing() {
    VMS.with(|vms| ends(vms.a.spawn(&[PROGRAM, "misuse"])?));
}
