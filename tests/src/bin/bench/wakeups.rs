// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who woke whom, after how long that one ran, and for how long: from what a kernel's scheduler
//! told

use std::collections::HashMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result};

use crate::statistics::median;

/// Of a frame; what is less often is not of the frame.
const SELDOM: f64 = 0.2;

/// Who wakes, and who is woken.
type Link = (String, String);

/// What there is of one link, microseconds each.
#[derive(Debug, Default, PartialEq)]
struct Costs {
    /// From the waking until it ran.
    late: Vec<f64>,
    /// For how long it then ran, until it slept.
    ran: Vec<f64>,
    /// When it was woken, from the last start of a frame.
    at: Vec<f64>,
}

/// A thread that was woken.
struct Woken {
    link: Link,
    since: f64,
    /// When it was last given a CPU, and how long it has had one.
    running: Option<f64>,
    ran: f64,
    has_run: bool,
}

/// The wake-ups of a trace.
#[derive(Debug, PartialEq)]
pub(crate) struct Wakeups {
    links: HashMap<Link, Costs>,
    /// Of the trace.
    seconds: f64,
}

impl Wakeups {
    /// Of the threads that have names. `first` begins the names of who wakes, and who is woken,
    /// at the start of a frame.
    ///
    /// # Errors
    /// When nothing was traced.
    pub(crate) fn of(
        events: impl Iterator<Item = Event>,
        names: &HashMap<u32, String>,
        first: [&str; 2],
    ) -> Result<Self> {
        let [first_by, first_woken] = first;
        let mut links: HashMap<Link, Costs> = HashMap::new();
        let mut woken: HashMap<u32, Woken> = HashMap::new();
        let (mut begin, mut end, mut start) = (None, 0.0, None);
        for event in events {
            let now = event.us;
            begin.get_or_insert(now);
            end = now;
            match event.what {
                What::Wakes { thread } => {
                    let Some(name) = names.get(&thread) else {
                        continue;
                    };
                    // Somebody else's doing: an interrupt, or a limit of time.
                    let Some(by) = names.get(&event.thread) else {
                        continue;
                    };
                    if by.starts_with(first_by) && name.starts_with(first_woken) {
                        start = Some(now);
                    }
                    let link = (by.clone(), name.clone());
                    let costs = links.entry(link.clone()).or_default();
                    costs.at.extend(start.map(|start| now - start));
                    woken.insert(
                        thread,
                        Woken {
                            link,
                            since: now,
                            running: None,
                            ran: 0.0,
                            has_run: false,
                        },
                    );
                }
                What::Switches { from, sleeps, to } => {
                    if let Some(one) = woken.get_mut(&from) {
                        one.ran += one.running.take().map_or(0.0, |since| now - since);
                    }
                    if sleeps
                        && let Some(one) = woken.remove(&from)
                        && let Some(costs) = links.get_mut(&one.link)
                    {
                        costs.ran.push(one.ran);
                    }
                    if let Some(one) = woken.get_mut(&to) {
                        one.running = Some(now);
                        if !one.has_run
                            && let Some(costs) = links.get_mut(&one.link)
                        {
                            costs.late.push(now - one.since);
                        }
                        one.has_run = true;
                    }
                }
            }
        }
        let begin = begin.context("nothing was traced")?;
        Ok(Self {
            links,
            seconds: (end - begin) / 1e6,
        })
    }

    /// How long the trace is.
    pub(crate) fn seconds(&self) -> f64 {
        self.seconds
    }

    /// The table of them, of so many frames.
    ///
    /// # Errors
    /// None but those of numbers.
    pub(crate) fn text(&self, frames: f64) -> Result<String> {
        let mut lines = Vec::new();
        for ((by, name), costs) in &self.links {
            let count = f64::from(u32::try_from(costs.late.len())?) / frames;
            if count < SELDOM {
                continue;
            }
            let [late, ran] = [&costs.late, &costs.ran].map(|times| median(times));
            // Before the first start there is no time of it.
            let at = median(&costs.at).unwrap_or(0.0);
            let line = format!(
                "{count:>9.2} {:>10.1} {:>10.1}  {by} -> {name}",
                late?, ran?
            );
            lines.push((at, line));
        }
        lines.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let mut text = String::new();
        writeln!(
            text,
            "a frame has    late us     ran us  who wakes -> who is woken (medians)"
        )?;
        for (_, line) in lines {
            writeln!(text, "{line}")?;
        }
        Ok(text)
    }
}

/// What the scheduler did.
pub(crate) struct Event {
    /// Who had the CPU.
    pub(crate) thread: u32,
    /// When.
    pub(crate) us: f64,
    pub(crate) what: What,
}

#[derive(Debug, PartialEq)]
pub(crate) enum What {
    Wakes { thread: u32 },
    Switches { from: u32, sleeps: bool, to: u32 },
}

impl What {
    /// From what a kernel writes of `sched_waking` and `sched_switch`, if it is one of them,
    /// and what stands before that. A thread's name may be anything.
    pub(crate) fn parse(line: &str) -> Option<(&str, Self)> {
        let number = |text: &str, name: &str| {
            let (_, value) = text.rsplit_once(name)?;
            value.split_whitespace().next()?.parse().ok()
        };
        if let Some((head, rest)) = line.split_once("sched_waking: ") {
            let thread = number(rest, " pid=")?;
            return Some((head, Self::Wakes { thread }));
        }
        let (head, rest) = line.split_once("sched_switch: ")?;
        let (prev, next) = rest.split_once(" ==> ")?;
        let (_, state) = prev.rsplit_once("prev_state=")?;
        let switch = Self::Switches {
            from: number(prev, " prev_pid=")?,
            // One that may run on was only pushed aside.
            sleeps: !state.starts_with('R'),
            to: number(next, " next_pid=")?,
        };
        Some((head, switch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_scheduler_is_read() {
        let line = "1 2.0: sched:sched_waking: comm=a pid=7 b pid=2 prio=120 target_cpu=000";
        let (head, what) = What::parse(line).unwrap();
        assert_eq!((head, what), ("1 2.0: sched:", What::Wakes { thread: 2 }));
        let line = "1 2.0: sched_switch: prev_comm=x prev_pid=1 prev_prio=120 prev_state=R+ ==> next_comm=y next_pid=9 next_prio=120";
        let (from, to) = (1, 9);
        let switch = What::Switches {
            from,
            sleeps: false,
            to,
        };
        assert_eq!(What::parse(line).unwrap().1, switch);
        assert!(What::parse("irq_handler_entry: irq=11 name=virtio1").is_none());
    }

    #[test]
    fn a_wakeup_costs_what_passes_until_it_runs_and_what_it_then_runs() {
        let event = |us, thread, what| Event { thread, us, what };
        let switch = |from, sleeps, to| What::Switches { from, sleeps, to };
        let events = [
            event(10.0, 1, What::Wakes { thread: 2 }),
            event(15.0, 1, switch(1, true, 2)),
            event(20.0, 2, switch(2, false, 9)),
            event(30.0, 9, switch(9, true, 2)),
            event(34.0, 2, What::Wakes { thread: 9 }),
            event(40.0, 2, switch(2, true, 9)),
        ];
        let names = HashMap::from([(1, "a: CPU 0".to_owned()), (2, "daemon".to_owned())]);
        let found = Wakeups::of(events.into_iter(), &names, ["a: CPU", "daemon"]).unwrap();
        let link = ("a: CPU 0".to_owned(), "daemon".to_owned());
        assert_eq!(found.links.len(), 1, "that of a stranger is none");
        let costs = &found.links[&link];
        assert_eq!((&costs.late[..], &costs.ran[..]), (&[5.0][..], &[15.0][..]));
        assert_eq!(found.seconds(), 30e-6);
    }
}
