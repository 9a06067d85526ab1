// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A daemon and two machines

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bufshare_agent::wire::Ready;

use crate::channel::Transcript;
use crate::daemon::{self, Daemon, Holdings};
use crate::factor::factor;
use crate::lab::Lab;
use crate::sockets::SocketFolder;
use crate::vm::{Machine, Vm};
use crate::{leaks, report};

/// The module under test.
pub const DRIVER: &str = "virtio_bufshare";

/// What to start.
#[derive(Debug, Clone)]
pub struct Plan {
    machines: [Machine; 2],
    more: Vec<Machine>,
    options: Option<Vec<String>>,
    command: Option<Vec<String>>,
    needs: Option<fn() -> Result<()>>,
}

impl Plan {
    /// Peers `a` and `b`, which may share everything with each other.
    #[must_use]
    pub fn new() -> Self {
        Self::named("a", "b").options(&["--allow", "a:b:rw", "--allow", "b:a:rw"])
    }

    /// Peers of these names; nothing is allowed.
    #[must_use]
    pub fn named(first: &str, second: &str) -> Self {
        Self {
            machines: [machine(first), machine(second)],
            more: Vec::new(),
            options: Some(Vec::new()),
            command: None,
            needs: None,
        }
    }

    /// No daemon, no device, no driver.
    #[must_use]
    pub fn bare() -> Self {
        Self {
            machines: [Machine::new("a"), Machine::new("b")],
            more: Vec::new(),
            options: None,
            command: None,
            needs: None,
        }
    }

    /// More words for the daemon.
    #[must_use]
    pub fn options(mut self, words: &[&str]) -> Self {
        self.options
            .get_or_insert_default()
            .extend(words.iter().map(|word| (*word).to_owned()));
        self
    }

    /// Start the daemon by these words, program and peers included, and not by
    /// the usual ones; [`daemon::SOCKETS`] in them is the folder of the sockets,
    /// where each peer has to have its own as [`daemon::socket`] names it.
    #[must_use]
    pub fn command(mut self, words: &[String]) -> Self {
        self.command = Some(words.to_owned());
        self
    }

    /// Ask this before anything is started; its error, a [`report::Skip`], says
    /// what this host does not have.
    #[must_use]
    pub fn needs(mut self, check: fn() -> Result<()>) -> Self {
        self.needs = Some(check);
        self
    }

    /// Boot one more machine, a peer of this name.
    #[must_use]
    pub fn and(mut self, name: &str) -> Self {
        self.more.push(machine(name));
        self
    }

    /// Change both machines.
    #[must_use]
    pub fn both(mut self, change: impl Fn(&mut Machine)) -> Self {
        self.machines.iter_mut().for_each(change);
        self
    }

    /// Change the first machine.
    #[must_use]
    pub fn first(mut self, change: impl Fn(&mut Machine)) -> Self {
        let [first, _] = &mut self.machines;
        change(first);
        self
    }

    /// Change the second machine.
    #[must_use]
    pub fn second(mut self, change: impl Fn(&mut Machine)) -> Self {
        let [_, second] = &mut self.machines;
        change(second);
        self
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self::new()
    }
}

/// They run.
#[derive(Debug)]
pub struct TwoVms {
    /// The first.
    pub a: Vm,
    /// The second.
    pub b: Vm,
    /// What the first said of itself.
    pub ready_a: Ready,
    /// What the second said of itself.
    pub ready_b: Ready,
    /// Those that the plan has beside these.
    pub more: Vec<Vm>,
    /// From the start of the daemon until all guests were up.
    pub boot_time: Duration,
    daemon: Option<Daemon>,
    lab: Lab,
    plan: Plan,
    transcript: Transcript,
    logs: PathBuf,
    sockets: SocketFolder,
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

impl TwoVms {
    /// Start all, both guests at the same time, and wait until they are up.
    ///
    /// # Errors
    /// A [`report::Skip`] when something is missing here, or what went wrong.
    pub fn boot(plan: Plan, logs: &Path) -> Result<Self> {
        if let Some(check) = plan.needs {
            check()?;
        }
        let lab = Lab::find()?;
        let started = Instant::now();
        let sockets = SocketFolder::new()?;
        let transcript = Transcript::new(&logs.join("transcript.jsonl"))?;
        let daemon = match &plan.options {
            Some(options) => {
                let command = match &plan.command {
                    Some(words) => words.clone(),
                    None => daemon::command(plan.machines.iter().chain(&plan.more))?,
                };
                let words = [command, options.clone()].concat();
                Some(Daemon::start(sockets.path(), &words, logs)?)
            }
            None => None,
        };
        let start = |machine: &Machine| {
            start(
                &lab,
                machine,
                daemon.is_some(),
                sockets.path(),
                logs,
                &transcript,
            )
        };
        let [first, second] = &plan.machines;
        let mut a = start(first)?;
        let mut b = start(second)?;
        let mut more: Vec<Vm> = plan.more.iter().map(start).collect::<Result<_>>()?;
        let ready_a = a.boot()?;
        let ready_b = b.boot()?;
        for vm in &mut more {
            vm.boot()?;
        }
        Ok(Self {
            a,
            b,
            more,
            ready_a,
            ready_b,
            boot_time: started.elapsed(),
            daemon,
            lab,
            plan,
            transcript,
            logs: logs.to_owned(),
            sockets,
        })
    }

    /// The daemon.
    ///
    /// # Errors
    /// When the plan had none.
    pub fn daemon(&mut self) -> Result<&mut Daemon> {
        self.daemon
            .as_mut()
            .context("there is no daemon in this plan")
    }

    /// How often the daemon took mappings from the second machine that were in use there.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn missed_by_b(&mut self) -> Result<u64> {
        let [_, second] = &self.plan.machines;
        let name = second.name.clone();
        Ok(self.daemon()?.snapshot()?.peer(&name)?.deadlines_missed)
    }

    /// Check that there were `before` of them and no more. The second that the daemon gives a
    /// driver is one on any machine: where everything may take longer ([`factor`]) one that
    /// was missed proves nothing, and is only printed.
    ///
    /// # Errors
    /// When there were more, or the daemon does not answer.
    pub fn missed_no_more_by_b(&mut self, before: u64) -> Result<()> {
        let more = self.missed_by_b()?.saturating_sub(before);
        if more > 0 && factor() > 1 {
            // Not with eprintln, which the test harness swallows.
            let _ = writeln!(
                std::io::stderr(),
                "the importer missed {more} deadlines of one second, as it may at a factor of {}",
                factor()
            );
            return Ok(());
        }
        ensure!(more == 0, "the importer missed {more} deadlines");
        Ok(())
    }

    /// What was found of the lab.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Where the logs are.
    #[must_use]
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Start a machine again that was killed.
    ///
    /// # Errors
    /// When it does not boot.
    pub fn restart(&mut self, side: Side) -> Result<()> {
        let [first, second] = &self.plan.machines;
        let machine = match side {
            Side::A => first,
            Side::B => second,
        };
        let with_device = self.daemon.is_some();
        let mut vm = start(
            &self.lab,
            machine,
            with_device,
            self.sockets.path(),
            &self.logs,
            &self.transcript,
        )?;
        let ready = vm.boot()?;
        match side {
            Side::A => (self.a, self.ready_a) = (vm, ready),
            Side::B => (self.b, self.ready_b) = (vm, ready),
        }
        Ok(())
    }

    /// Start one of the others again that was killed.
    ///
    /// # Errors
    /// When there is none, or it does not boot.
    pub fn restart_more(&mut self, index: usize) -> Result<()> {
        let machine = self.plan.more.get(index).context("no such machine")?;
        let mut vm = start(
            &self.lab,
            machine,
            self.daemon.is_some(),
            self.sockets.path(),
            &self.logs,
            &self.transcript,
        )?;
        vm.boot()?;
        *self.more.get_mut(index).context("no such machine")? = vm;
        Ok(())
    }

    /// What the daemon holds, when no buffer is shared any more.
    ///
    /// # Errors
    /// When something stays behind.
    pub fn settled(&mut self) -> Result<Holdings> {
        self.daemon()?.settles("the daemon to hold nothing", |now| {
            now.buffers == 0 && now.attachments == 0 && now.windows == 0
        })
    }

    /// The daemon holds nothing, and as many descriptors as `before`.
    ///
    /// # Errors
    /// When something stays behind.
    pub fn settled_as(&mut self, before: usize) -> Result<()> {
        self.settled()?;
        let what = format!("the daemon's descriptors to be {before} again");
        self.daemon()?
            .settles(&what, |now| now.descriptors == before)
            .map(drop)
    }

    /// Check that nothing has ended by itself, restarted or complained, the daemon
    /// included, and that no buffer is left.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&mut self) -> Result<()> {
        for vm in [&mut self.a, &mut self.b].into_iter().chain(&mut self.more) {
            vm.check()?;
        }
        if let Some(daemon) = self.daemon.as_mut().filter(|daemon| !daemon.ended()) {
            daemon.alive()?;
            daemon.stops_are_proved()?;
            self.settled()?;
        }
        match &self.daemon {
            Some(daemon) => daemon.is_well(),
            None => Ok(()),
        }
    }

    /// Check, also for lost memory, then stop all.
    ///
    /// # Errors
    /// What is wrong, or did not stop cleanly.
    pub fn finish(mut self) -> Result<()> {
        self.check()?;
        for vm in [&self.a, &self.b].into_iter().chain(&self.more) {
            leaks::nothing_of_ours(vm)?;
        }
        self.stop()
    }

    fn stop(&mut self) -> Result<()> {
        let mut results = vec![self.a.stop(), self.b.stop()];
        results.extend(self.more.iter_mut().map(Vm::stop));
        if let Some(daemon) = &mut self.daemon {
            results.push(daemon.stop());
            results.push(daemon.is_well());
        }
        results.into_iter().collect()
    }
}

fn machine(name: &str) -> Machine {
    let mut machine = Machine::new(name);
    machine.modules.push(DRIVER.to_owned());
    machine
}

fn start(
    lab: &Lab,
    machine: &Machine,
    with_device: bool,
    sockets: &Path,
    logs: &Path,
    transcript: &Transcript,
) -> Result<Vm> {
    let mut machine = machine.clone();
    if with_device {
        machine.socket = Some(daemon::socket(sockets, &machine.name));
    }
    Vm::start(lab, machine, logs, transcript)
}

/// Run a test on a pair of its own, then check and stop that. `plan` may put files into
/// the folder of the logs.
///
/// # Panics
/// When the test failed, or could not run although it had to.
pub fn with_own<F: FnOnce(&mut TwoVms) -> Result<()>>(
    plan: impl FnOnce(&Path) -> Result<Plan>,
    body: F,
) {
    let name = report::name_of(&body);
    let result = Lab::find()
        .and_then(|_| report::folder(&name))
        .and_then(|logs| {
            let run = || {
                let mut vms = TwoVms::boot(plan(&logs)?, &logs)?;
                body(&mut vms)?;
                vms.finish()
            };
            report::catch(run).map_err(|error| explain(error, &logs))
        });
    report::conclude(&name, result);
}

/// One pair for all tests of a file: booted by the first that needs it, again
/// after one that failed, and stopped at the end of the program.
#[derive(Debug)]
pub struct Shared {
    plan: fn() -> Plan,
    pair: Mutex<Option<TwoVms>>,
}

static LIVE: Mutex<Vec<&'static Shared>> = Mutex::new(Vec::new());

impl Shared {
    /// Of this plan.
    #[must_use]
    pub const fn new(plan: fn() -> Plan) -> Self {
        Self {
            plan,
            pair: Mutex::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<TwoVms>> {
        self.pair.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Run a test on the pair, then check the pair.
    ///
    /// # Panics
    /// When the test failed, or could not run although it had to.
    pub fn with<F: FnOnce(&mut TwoVms) -> Result<()>>(&'static self, body: F) {
        let name = report::name_of(&body);
        let mut slot = self.lock();
        let result = match slot.take() {
            Some(pair) => report::link(&name, &pair.logs).map(|()| pair),
            None => report::folder(&name).and_then(|logs| {
                let result = TwoVms::boot((self.plan)(), &logs);
                result.map_err(|error| explain(error, &logs))
            }),
        };
        let result = result.and_then(|mut pair| {
            pair.transcript.write("", "test", &name);
            let logs = pair.logs.clone();
            let (usable, result) = run_and_check(&mut pair, body, TwoVms::check);
            let result = result.map_err(|error| explain(error, &logs));
            if usable {
                self.keep(&mut slot, pair);
            }
            result
        });
        drop(slot);
        report::conclude(&name, result);
    }

    fn keep(&'static self, slot: &mut Option<TwoVms>, pair: TwoVms) {
        let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
        if live.is_empty() {
            // SAFETY: a function that takes nothing and does not unwind.
            unsafe { libc::atexit(stop_all) };
        }
        if !live.iter().any(|other| std::ptr::eq(*other, self)) {
            live.push(self);
        }
        *slot = Some(pair);
    }
}

/// What came of a test, and whether the next one can use its machines. Those of a test that
/// skips itself are checked too: it may have done something before.
fn run_and_check<P>(
    pair: &mut P,
    body: impl FnOnce(&mut P) -> Result<()>,
    check: impl FnOnce(&mut P) -> Result<()>,
) -> (bool, Result<()>) {
    let ran = report::catch(|| body(pair));
    if ran.as_ref().is_err_and(|error| !error.is::<report::Skip>()) {
        return (false, ran);
    }
    match report::catch(|| check(pair)) {
        Ok(()) => (true, ran),
        wrong => (false, wrong),
    }
}

/// The error with the ends of all logs; what is a skip stays one.
fn explain(error: anyhow::Error, logs: &Path) -> anyhow::Error {
    if error.is::<report::Skip>() {
        return error;
    }
    // The reason once more at the end: the logs may be long.
    let (tails, mark) = (report::tails(logs), report::LOGS);
    let logs = logs.display();
    anyhow::anyhow!("{error:#}{mark}the logs are in {logs}{tails}{mark}{error:#}")
}

/// At the end of the program: no pair is left without its last check.
extern "C" fn stop_all() {
    let shared = std::mem::take(&mut *LIVE.lock().unwrap_or_else(PoisonError::into_inner));
    let mut failed = false;
    for one in shared {
        let Some(pair) = one.lock().take() else {
            continue;
        };
        let logs = pair.logs.clone();
        if let Err(error) = report::catch(|| pair.finish()) {
            eprintln!("at the end: {:#}", explain(error, &logs));
            failed = true;
        }
    }
    if failed {
        // SAFETY: ends the program; nothing of it is needed any more.
        unsafe { libc::_exit(101) };
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;
    use crate::report::Skip;

    type Step = fn(&mut Vec<&'static str>) -> Result<()>;

    const PASSES: Step = |seen| {
        seen.push("pass");
        Ok(())
    };
    const SKIPS: Step = |seen| {
        seen.push("skip");
        Err(Skip::impossible("not here").into())
    };
    const FAILS: Step = |seen| {
        seen.push("fail");
        bail!("wrong")
    };
    const PANICS: Step = |seen| {
        seen.push("panic");
        panic!("wrong")
    };

    /// Whether the machines are kept, what was done with them, and the error.
    fn run(body: Step, check: Step) -> (bool, Vec<&'static str>, Option<anyhow::Error>) {
        let mut seen = Vec::new();
        let (usable, result) = run_and_check(&mut seen, body, check);
        (usable, seen, result.err())
    }

    #[test]
    fn machines_of_a_test_that_skips_itself_are_checked_and_kept() {
        let (usable, seen, error) = run(SKIPS, PASSES);
        assert!(usable);
        assert_eq!(seen, ["skip", "pass"]);
        assert!(error.unwrap().is::<Skip>());
    }

    #[test]
    fn a_fault_of_the_machines_of_a_test_that_skips_itself_is_a_failure() {
        for (check, name) in [(FAILS, "fail"), (PANICS, "panic")] {
            let (usable, seen, error) = run(SKIPS, check);
            assert!(!usable);
            assert_eq!(seen, ["skip", name]);
            let error = error.unwrap();
            assert!(!error.is::<Skip>() && error.to_string().contains("wrong"));
        }
    }

    #[test]
    fn machines_of_a_test_that_passes_are_checked_and_kept_if_they_are_well() {
        let (usable, seen, error) = run(PASSES, PASSES);
        assert!(usable && error.is_none());
        assert_eq!(seen, ["pass", "pass"]);
        let (usable, _, error) = run(PASSES, FAILS);
        assert!(!usable && error.is_some());
    }

    #[test]
    fn machines_of_a_test_that_fails_are_not_kept() {
        for body in [FAILS, PANICS] {
            let (usable, seen, error) = run(body, PASSES);
            assert!(!usable);
            assert_eq!(seen.len(), 1, "its own error is reported, not theirs");
            assert!(!error.unwrap().is::<Skip>());
        }
    }
}
