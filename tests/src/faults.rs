// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests that a guest kernel's own fault breaks, and those that cannot run everywhere
//!
//! Both stand in tests/kernels.toml. A test with a fault is run all the same: it counts as
//! skipped when it fails by just what its error is said to say, and as failed when it passes
//! or fails otherwise. A test that skips itself, and does not stand there, has failed.

use anyhow::{Context as _, Result, anyhow};
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::lab;
use crate::report::{COMPLAINED, LOGS, Skip};

/// Part of the program, so that it is there in whatever machine the program runs.
const KERNELS: &str = include_str!("../kernels.toml");
/// How messages name it.
const FILE: &str = "tests/kernels.toml";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// Only checked here: scripts/test reads them.
    #[serde(default, rename = "kernel")]
    _kernels: Vec<Recorded>,
    #[serde(default, rename = "fault")]
    faults: Vec<Fault>,
    #[serde(default, rename = "skip")]
    skips: Vec<MaySkip>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    #[serde(rename = "series")]
    _series: Series,
    #[serde(rename = "release", deserialize_with = "not_empty")]
    _release: String,
}

/// One test that one series of kernels breaks.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fault {
    series: Series,
    #[serde(deserialize_with = "not_empty")]
    test: String,
    #[serde(deserialize_with = "not_empty")]
    reason: String,
    /// Part of the test's error, without which it is another.
    #[serde(deserialize_with = "not_empty")]
    says: String,
}

/// A test, or all of a file, that may find that it cannot run with these kernels.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct MaySkip {
    series: Vec<Series>,
    #[serde(deserialize_with = "not_empty")]
    test: String,
    /// Part of the reason that it gives.
    #[serde(deserialize_with = "not_empty")]
    says: String,
}

impl MaySkip {
    fn is_of(&self, test: &str) -> bool {
        let own = self.test.replace("::", ".");
        own.strip_suffix('*')
            .map_or(own == test, |file| test.starts_with(file))
    }
}

/// Faults of a kernel of scripts/debug-kernel are its own.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Series {
    Stable,
    Newest,
    StableDebug,
    NewestDebug,
}

impl Series {
    fn name(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Newest => "newest",
            Self::StableDebug => "stable-debug",
            Self::NewestDebug => "newest-debug",
        }
    }
}

fn not_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.trim().is_empty() {
        return Err(D::Error::custom("this has to say something"));
    }
    Ok(text)
}

fn parse(text: &str) -> Result<Document> {
    // toml's errors show the line.
    toml::from_str(text).context(FILE)
}

/// What a test's result means on the kernel that the guests run.
///
/// `test` is as [`crate::report::name_of`] has it: the program, then its name as cargo
/// prints it, but with dots.
///
/// # Errors
/// The result's; a [`Skip`] instead if the test is expected to fail by this; that it was and
/// did not; that it skipped itself and may not; or that tests/kernels.toml is malformed, and
/// in which line.
pub(crate) fn judge(test: &str, result: Result<()>) -> Result<()> {
    let document = parse(KERNELS)?;
    let debug = if lab::is_debug_kernel() { "-debug" } else { "" };
    judged(&document, &(lab::series() + debug), test, result)
}

fn judged(document: &Document, series: &str, test: &str, result: Result<()>) -> Result<()> {
    let result = result.map_err(|error| match error.downcast::<Skip>() {
        Ok(skip) if may_skip(&document.skips, series, test, &skip) => skip.into(),
        Ok(skip) => anyhow!(
            "skips itself, and no [[skip]] of {FILE} lets it on the {series} kernel: {skip}"
        ),
        Err(error) => error,
    });
    let mut faults = document.faults.iter();
    let fault =
        faults.find(|fault| fault.series.name() == series && fault.test.replace("::", ".") == test);
    let Some(Fault { reason, says, .. }) = fault else {
        return result;
    };
    match result {
        Ok(()) => Err(anyhow!(
            "passes again on the {series} kernel: remove it from {FILE} (it stands there for: {reason})"
        )),
        Err(error) if error.is::<Skip>() => Err(error),
        Err(error) => {
            let text = format!("{error:#}");
            // Not what the logs say.
            let text = text.split(LOGS).next().unwrap_or_default();
            if !text.contains(says) || text.contains(COMPLAINED) {
                let reason =
                    format!("fails otherwise than {FILE} expects, which is by '{says}' ({reason})");
                return Err(error.context(reason));
            }
            let said = text.lines().next().unwrap_or_default();
            let reason = format!("a fault of the {series} kernel: {reason} (it failed by: {said})");
            Err(Skip::impossible(reason).into())
        }
    }
}

/// What somebody can make here is another matter, see [`Skip::new`].
fn may_skip(skips: &[MaySkip], series: &str, test: &str, skip: &Skip) -> bool {
    let reason = skip.to_string();
    skip.is_fixable()
        || skips.iter().any(|may| {
            may.is_of(test)
                && may.series.iter().any(|on| on.name() == series)
                && reason.contains(&may.says)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
[[kernel]]
series = \"stable\"
release = \"6.12.107+deb13-amd64\"

[[fault]]
series = \"newest\"
test = \"driver::a_test\"
reason = \"the kernel forgets it\"
says = \"no answer\"

[[fault]]
series = \"stable\"
test = \"driver::part::other\"
reason = \"too old\"
says = \"answer\"

[[skip]]
series = [\"stable\", \"newest\"]
test = \"udmabuf::*\"
says = \"no udmabuf\"

[[skip]]
series = [\"newest\"]
test = \"driver::b_test\"
says = \"no leaks\"
";

    fn run(series: &str, test: &str, result: Result<()>) -> Result<()> {
        judged(&parse(GOOD).unwrap(), series, test, result)
    }

    #[test]
    fn a_fault_that_shows_is_a_skip_with_its_reason() {
        for (series, test, reason) in [
            ("newest", "driver.a_test", "the kernel forgets it"),
            ("stable", "driver.part.other", "too old"),
        ] {
            let error = run(series, test, Err(anyhow!("no answer\nmore"))).unwrap_err();
            assert!(error.is::<Skip>(), "{error}");
            let wanted =
                format!("a fault of the {series} kernel: {reason} (it failed by: no answer)");
            assert_eq!(error.to_string(), wanted);
        }
    }

    #[test]
    fn another_failure_of_the_same_test_is_a_failure() {
        let complaint = format!("the kernel of guest a {COMPLAINED}:\nBUG: no answer");
        let logs = format!("the importer saw other bytes{LOGS}/a.console\nno answer");
        for text in ["the importer saw other bytes", &complaint, &logs] {
            let error = run("newest", "driver.a_test", Err(anyhow!(text.to_owned()))).unwrap_err();
            assert!(!error.is::<Skip>(), "{error}");
            let said = format!("{error:#}");
            assert!(
                said.starts_with("fails otherwise than tests/kernels.toml expects")
                    && said.contains(text),
                "{said}"
            );
        }
    }

    #[test]
    fn a_fault_that_is_gone_is_a_failure() {
        let error = run("newest", "driver.a_test", Ok(())).unwrap_err();
        assert!(!error.is::<Skip>());
        let text = error.to_string();
        assert!(
            text.starts_with(
                "passes again on the newest kernel: remove it from tests/kernels.toml"
            ),
            "{text}"
        );
    }

    #[test]
    fn other_tests_and_kernels_are_as_they_are() {
        for (series, test) in [
            ("stable", "driver.a_test"),
            ("newest-debug", "driver.a_test"),
            ("newest", "death.a_test"),
            ("newest", "driver.a_test_more"),
            ("newest", "driver.part.a_test"),
            ("newest", "driver.part.other"),
        ] {
            run(series, test, Ok(())).unwrap();
            let error = run(series, test, Err(anyhow!("no answer"))).unwrap_err();
            assert!(!error.is::<Skip>() && error.to_string() == "no answer");
        }
        let skip = || Err(Skip::new("no lab").into());
        let error = run("newest", "driver.a_test", skip()).unwrap_err();
        assert!(error.is::<Skip>() && error.to_string() == "no lab");
        assert!(parse("").unwrap().faults.is_empty());
    }

    #[test]
    fn a_test_skips_itself_only_where_it_may() {
        let skips = |series: &str, test: &str, reason: &str| {
            let skip = Skip::impossible(reason.to_owned()).into();
            run(series, test, Err(skip)).unwrap_err().is::<Skip>()
        };
        assert!(skips("stable", "udmabuf.any", "this host has no udmabuf"));
        assert!(skips("newest", "driver.b_test", "it finds no leaks"));
        for (series, test, reason) in [
            ("stable", "udmabuf.any", "no camera"),
            ("stable-debug", "udmabuf.any", "no udmabuf"),
            ("stable", "udmabufs.any", "no udmabuf"),
            ("stable", "driver.b_test", "no leaks"),
            ("newest", "driver.b_tests", "no leaks"),
            ("newest", "driver.a_test", "no leaks"),
        ] {
            assert!(!skips(series, test, reason), "{series} {test} {reason}");
        }
    }

    #[test]
    fn what_is_malformed_is_named_by_its_line() {
        for (from, to, line, what) in [
            ("series = \"newest\"", "series = \"old\"", 6, "old"),
            ("test = \"driver::a", "name = \"driver::a", 7, "name"),
            ("\"driver::a_test\"", "a_test", 7, "a_test"),
            ("\"too old\"", "\" \"", 14, "say something"),
            ("says = \"answer\"", "says = \"\"", 15, "say something"),
            ("says = \"answer\"", "", 11, "says"),
            ("\"6.12.107+deb13-amd64\"", "\"\"", 3, "say something"),
            ("[[kernel]]", "[[kernels]]", 1, "kernels"),
            ("[\"newest\"]", "[\"old\"]", 23, "old"),
            ("\"no leaks\"", "\"\"", 25, "say something"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let error = format!("{:#}", parse(&GOOD.replacen(from, to, 1)).unwrap_err());
            for word in [FILE, &format!("line {line}"), what] {
                assert!(error.contains(word), "'{to}': no '{word}' in: {error}");
            }
        }
        let error = format!(
            "{:#}",
            parse("[[fault]]\nseries = \"stable\"\n").unwrap_err()
        );
        assert!(
            error.contains("line 1") && error.contains("missing field"),
            "{error}"
        );
    }

    #[test]
    fn every_line_is_that_of_a_test() {
        let document = parse(KERNELS).unwrap();
        let faults = document.faults.iter().map(|fault| &fault.test);
        let skips = document.skips.iter().map(|skip| &skip.test);
        for test in faults.chain(skips) {
            let (file, name) = test.split_once("::").unwrap();
            let file = lab::repo().join(format!("tests/tests/{file}.rs"));
            let sources = std::fs::read_to_string(file).unwrap();
            let name = name.rsplit("::").next().unwrap();
            let function = format!("fn {name}()");
            let mut lines = sources.lines().map(str::trim);
            let there = name == "*" || lines.any(|line| line.starts_with(&function));
            assert!(there, "{FILE}: there is no test {test}");
        }
    }
}
