// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Holds up a function of a guest's kernel, by a module of the tests
//!
//! Who is held up keeps its processor, without interrupts. So such a machine has a second
//! one, [`apart`], where nothing else goes on by itself.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bufshare_agent::wire::{Answer, Command};

use crate::channel::{self, Pending};
use crate::vm::{Machine, Vm};
use crate::wait;

const MODULE: &str = "bufshare_delay";

/// Gives a machine its second processor.
pub fn apart(machine: &mut Machine) {
    machine.processors = 2;
    let words = ["isolcpus=1", "irqaffinity=0"];
    machine.kernel.extend(words.map(str::to_owned));
}

/// Has all that a process does from now on happen there.
///
/// # Errors
/// As [`Vm::run`].
pub fn put_apart(vm: &Vm, pid: i32) -> Result<()> {
    let words = ["/bin/busybox", "taskset", "-ap", "2", &pid.to_string()];
    channel::succeeded("taskset", vm.run(&words, wait::COMMAND)?).map(drop)
}

/// What a shell does on the second processor.
#[derive(Debug)]
pub struct Apart {
    script: String,
    limit: Duration,
    ran: Pending,
}

impl Apart {
    /// Begin it.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn begin(vm: &Vm, script: &str, limit: Duration) -> Result<Self> {
        let words = ["busybox", "taskset", "2", "busybox", "sh", "-c", script];
        let command = Command::Run {
            argv: channel::owned(&words),
            env: Vec::new(),
            stdin: String::new(),
            timeout_ms: u64::try_from(wait::scaled(limit).as_millis())?,
        };
        Ok(Self {
            script: script.to_owned(),
            limit,
            ran: vm.channel().ask(command)?,
        })
    }

    /// It has succeeded.
    ///
    /// # Errors
    /// When it has not.
    pub fn end(self) -> Result<()> {
        match self.ran.wait(self.limit + wait::COMMAND)? {
            Answer::Ran(ran) => channel::succeeded(&self.script, ran).map(drop),
            other => bail!("{}: odd answer {other:?}", self.script),
        }
    }
}

/// For how long somebody is held up at most: the test looks around meanwhile.
const HELD: Duration = Duration::from_secs(4);

/// However slow the machine is: less than the 45 s for which an unbind and a reset of the
/// function wait for each other in the driver, which are not scaled.
const HELD_MAX: Duration = Duration::from_secs(40);

/// Whoever calls the function first is held up. That has to be on the second processor.
#[derive(Debug)]
pub struct Delay<'a> {
    vm: &'a Vm,
    symbol: &'a str,
}

impl<'a> Delay<'a> {
    /// Of this function.
    ///
    /// # Errors
    /// As [`Vm::insert`].
    pub fn of(vm: &'a Vm, symbol: &'a str) -> Result<Self> {
        Self::after(vm, symbol, 0)
    }

    /// Of this function, after so many calls.
    ///
    /// # Errors
    /// As [`Vm::insert`].
    pub fn after(vm: &'a Vm, symbol: &'a str, calls: u32) -> Result<Self> {
        let most = wait::scaled(HELD).min(HELD_MAX).as_millis().to_string();
        Self::begin(vm, symbol, &[("ms", &most), ("skip", &calls.to_string())])
    }

    /// Of this function, for no time, when this process calls it.
    ///
    /// # Errors
    /// As [`Vm::insert`].
    pub fn none(vm: &'a Vm, symbol: &'a str, pid: i32) -> Result<Self> {
        Self::begin(vm, symbol, &[("pid", &pid.to_string())])
    }

    fn begin(vm: &'a Vm, symbol: &'a str, parameters: &[(&str, &str)]) -> Result<Self> {
        let delay = Self { vm, symbol };
        let isolated = vm.read_file("/sys/devices/system/cpu/isolated")?;
        ensure!(isolated == b"1\n", "the kernel keeps no processor apart");
        vm.insert("delay", &[])?;
        for (name, value) in parameters {
            delay.set(name, value)?;
        }
        delay.set("symbol", symbol)?;
        Ok(delay)
    }

    /// One that was begun before.
    #[must_use]
    pub fn begun(vm: &'a Vm, symbol: &'a str) -> Self {
        Self { vm, symbol }
    }

    fn set(&self, parameter: &str, value: &str) -> Result<()> {
        let path = format!("/sys/module/{MODULE}/parameters/{parameter}");
        self.vm
            .write_file(&path, value.as_bytes())
            .with_context(|| format!("{parameter} = {value}"))
    }

    fn says(&self, parameter: &str) -> Result<bool> {
        let path = format!("/sys/module/{MODULE}/parameters/{parameter}");
        Ok(self.vm.read_file(&path)? == b"Y\n")
    }

    /// Somebody is held up now.
    ///
    /// # Errors
    /// When nobody comes, or it is over already, or as [`Vm::call`].
    pub fn holds(&self) -> Result<()> {
        let what = format!("{} to be held up", self.symbol);
        wait::until(&what, wait::COMMAND, || {
            Ok(self.says("held")?.then_some(()))
        })?;
        ensure!(!self.over()?, "{}: for too short a time", self.symbol);
        Ok(())
    }

    /// Who was held up has gone on.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn over(&self) -> Result<bool> {
        self.says("over")
    }

    /// The kernel might have had another task run instead of who was held up.
    ///
    /// # Errors
    /// When nobody was, or as [`Vm::call`].
    pub fn preemptible(&self) -> Result<bool> {
        ensure!(self.over()?, "{}: nobody called it", self.symbol);
        self.says("preemptible")
    }

    /// Who is held up may go on.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub fn release(&self) -> Result<()> {
        self.set("release", "1")
    }

    /// Hold up nobody any more, after somebody was.
    ///
    /// # Errors
    /// When nobody was, or as [`Vm::call`].
    pub fn end(self) -> Result<()> {
        self.release()?;
        let what = format!("{} to go on", self.symbol);
        wait::until(&what, wait::COMMAND, || Ok(self.over()?.then_some(())))?;
        self.vm.unload(MODULE)
    }
}
