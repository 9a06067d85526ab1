// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests that a guest kernel's own fault breaks
//!
//! They stand in tests/kernels.toml by name and reason. Such a test is run all the
//! same: it counts as skipped when it fails, and as failed when it passes.

use anyhow::{Context as _, Result, anyhow};
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::lab;
use crate::report::Skip;

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
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Series {
    Stable,
    Newest,
}

impl Series {
    fn name(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Newest => "newest",
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

fn parse(text: &str) -> Result<Vec<Fault>> {
    // toml's errors show the line.
    let document: Document = toml::from_str(text).context(FILE)?;
    Ok(document.faults)
}

/// What a test's result means on the kernel that the guests run.
///
/// `test` is as [`crate::report::name_of`] has it: the program, then its name as cargo
/// prints it, but with dots.
///
/// # Errors
/// The result's; a [`Skip`] instead if the test is expected to fail; that it was and
/// did not; or that tests/kernels.toml is malformed, and in which line.
pub(crate) fn judge(test: &str, result: Result<()>) -> Result<()> {
    judged(&parse(KERNELS)?, &lab::series(), test, result)
}

fn judged(faults: &[Fault], series: &str, test: &str, result: Result<()>) -> Result<()> {
    let test = test.split_once('.').map_or(test, |(_, test)| test);
    let mut faults = faults.iter();
    let fault =
        faults.find(|fault| fault.series.name() == series && fault.test.replace("::", ".") == test);
    let Some(Fault { reason, .. }) = fault else {
        return result;
    };
    match result {
        Ok(()) => Err(anyhow!(
            "passes again on the {series} kernel: remove it from {FILE} (it stands there for: {reason})"
        )),
        Err(error) if error.is::<Skip>() => Err(error),
        Err(error) => {
            let text = error.to_string();
            let said = text.lines().next().unwrap_or_default();
            let reason = format!("a fault of the {series} kernel: {reason} (it failed by: {said})");
            Err(Skip::impossible(reason).into())
        }
    }
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
test = \"a_test\"
reason = \"the kernel forgets it\"

[[fault]]
series = \"stable\"
test = \"part::other\"
reason = \"too old\"
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
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn what_is_malformed_is_named_by_its_line() {
        for (from, to, line, what) in [
            ("series = \"newest\"", "series = \"old\"", 6, "old"),
            ("test = \"a_test\"", "name = \"a_test\"", 7, "name"),
            ("test = \"a_test\"", "test = a_test", 7, "a_test"),
            ("\"too old\"", "\" \"", 13, "say something"),
            ("\"6.12.107+deb13-amd64\"", "\"\"", 3, "say something"),
            ("[[kernel]]", "[[kernels]]", 1, "kernels"),
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
    fn every_fault_is_that_of_a_test() {
        let folder = lab::repo().join("tests/tests");
        let mut sources = String::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            sources += &std::fs::read_to_string(entry.unwrap().path()).unwrap();
        }
        for fault in parse(KERNELS).unwrap() {
            let name = fault.test.rsplit("::").next().unwrap();
            let function = format!("fn {name}()");
            let mut lines = sources.lines().map(str::trim);
            let there = lines.any(|line| line.starts_with(&function));
            assert!(there, "{FILE}: there is no test {}", fault.test);
        }
    }
}
