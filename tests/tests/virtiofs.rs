// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The importer's VM has a file system of another vhost-user back end, virtiofsd

use std::cell::RefCell;

use anyhow::Context as _;
use bufshare_tests::neighbour::{Virtiofs, goes_on, mount, restart_driver, unmount};
use bufshare_tests::pair::{self, Plan};

#[test]
fn a_file_system_beside_goes_on_with_as_many_windows_as_the_default_allows() {
    let started = RefCell::new(None);
    pair::with_own(
        |logs| {
            let beside = Virtiofs::start(logs)?;
            let plan = Plan::new().second(|machine| beside.beside(machine));
            started.replace(Some(beside));
            Ok(plan)
        },
        |vms| {
            let mut started = started.borrow_mut();
            let beside = started.as_mut().context("virtiofsd was not started")?;
            mount(&vms.b)?;
            goes_on(
                vms,
                |vm| beside.works(vm),
                |vm| {
                    unmount(vm)?;
                    restart_driver(vm, "virtiofs")?;
                    mount(vm)
                },
            )
        },
    );
}
