// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The importer's VM has a network device that the host's kernel serves, vhost-net
//!
//! It takes a host with `/dev/vhost-net`, and changes that host's network: it is run in
//! the one that `scripts/test --nested` makes, and nowhere else.

use std::process::Command;

use anyhow::{Result, ensure};
use bufshare_tests::neighbour::{goes_on, restart_driver};
use bufshare_tests::pair::{self, Plan};
use bufshare_tests::report::Skip;
use bufshare_tests::vm::Vm;
use bufshare_tests::{child, wait};

/// Of the host, where QEMU makes it.
const TAP: &str = "bufshare0";
const HOST: &str = "10.9.0.1";
const GUEST: &str = "10.9.0.2";
const MASK: &str = "255.255.255.0";

fn a_nested_host() -> Result<()> {
    if std::env::var_os("BUFSHARE_IN_LAB").is_some() {
        return Ok(());
    }
    let reason = "this would change the host's network: scripts/test --nested runs it";
    Err(Skip::impossible(reason).into())
}

/// Runs `ip` on the host.
fn ip(words: &[&str]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(words);
    let output = child::output("ip", command, wait::COMMAND)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {said}", words.join(" "));
    Ok(())
}

fn up(vm: &Vm) -> Result<()> {
    let words = ["ifconfig", "eth0", GUEST, "netmask", MASK, "up"];
    vm.output(&[&["busybox"][..], &words].concat()).map(drop)
}

fn answers(vm: &Vm) -> Result<()> {
    let words = ["busybox", "ping", "-c", "1", "-W", "15", HOST];
    vm.output(&words).map(drop)
}

#[test]
fn a_network_of_the_hosts_kernel_goes_on_with_as_many_windows_as_the_default_allows() {
    pair::with_own(
        |_| {
            a_nested_host()?;
            Ok(Plan::new().second(|machine| {
                let back = format!("tap,id=net,ifname={TAP},script=no,downscript=no,vhost=on");
                let front = "virtio-net-pci,netdev=net,romfile=".to_owned();
                let words = ["-netdev".to_owned(), back, "-device".to_owned(), front];
                machine.qemu.extend(words);
            }))
        },
        |vms| {
            ip(&["address", "add", &format!("{HOST}/24"), "dev", TAP])?;
            ip(&["link", "set", TAP, "up"])?;
            vms.b.load("virtio_net", "")?;
            up(&vms.b)?;
            goes_on(vms, answers, |vm| {
                restart_driver(vm, "virtio_net")?;
                up(vm)
            })
        },
    );
}
