// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An earlier revision of the project, of tests/compat.toml, as scripts/build-revision has
//! built it

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::pair::DRIVER;
use crate::report::Skip;
use crate::vm::Vm;
use crate::{child, lab, wait};

/// Part of the program, so that it is there in whatever machine the program runs.
const REVISIONS: &str = include_str!("../compat.toml");

/// What is built of it.
#[derive(Debug, Clone)]
pub struct Revision {
    name: String,
    folder: PathBuf,
}

impl Revision {
    /// Find the one of this name.
    ///
    /// # Errors
    /// A [`Skip`] when it is not built, which says whether it could be; where this is CI, it
    /// has to be.
    pub fn find(name: &str) -> Result<Self> {
        let revisions: HashMap<String, String> =
            toml::from_str(REVISIONS).context("tests/compat.toml")?;
        let commit = revisions.get(name);
        let commit = commit.with_context(|| format!("tests/compat.toml has no '{name}'"))?;
        let folder = lab::folder().join(format!("revision-{commit}/programs"));
        let driver = folder.join(format!("{DRIVER}-{}.ko", lab::series()));
        if driver.exists() {
            let name = name.to_owned();
            return Ok(Self { name, folder });
        }
        let is_ci = std::env::var("CI").as_deref() == Ok("true");
        if is_ci || has_commit(commit)? {
            let series = lab::series();
            return Err(Skip::new(format!(
                "no {}: run scripts/build-revision --kernel {series} {name}",
                driver.display()
            ))
            .into());
        }
        Err(Skip::impossible(format!(
            "the revision '{name}' of tests/compat.toml, {commit}, is not in this clone"
        ))
        .into())
    }

    /// Its daemon.
    #[must_use]
    pub fn daemon(&self) -> PathBuf {
        self.folder.join("vhost-device-bufshare")
    }

    /// Where [`Revision::install`] has put a file of this name.
    #[must_use]
    pub fn path(&self, file: &str) -> String {
        format!("/{}/{file}", self.name)
    }

    /// Put its driver, its command and these of its examples into a guest, unless they are
    /// there.
    ///
    /// # Errors
    /// As [`Vm::write_file`].
    pub fn install(&self, vm: &Vm, examples: &[&str]) -> Result<()> {
        let there = vm.list_dir(&self.path(""))?;
        vm.output(&["busybox", "mkdir", "-p", &self.path("")])?;
        let driver = format!("{DRIVER}-{}.ko", lab::series());
        let mut files = vec![
            (driver.clone(), format!("{DRIVER}.ko")),
            ("bufshare".to_owned(), "bufshare".to_owned()),
        ];
        for example in examples {
            files.push((format!("examples/{example}"), (*example).to_owned()));
        }
        for (from, to) in files {
            if there.contains(&to) {
                continue;
            }
            let from = self.folder.join(from);
            let bytes = fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
            let to = self.path(&to);
            vm.write_file(&to, &bytes)?;
            vm.output(&["busybox", "chmod", "755", &to])?;
        }
        Ok(())
    }

    /// Load its driver, once it is installed.
    ///
    /// # Errors
    /// As [`Vm::output`].
    pub fn load(&self, vm: &Vm) -> Result<()> {
        let file = self.path(&format!("{DRIVER}.ko"));
        vm.output(&["busybox", "insmod", &file]).map(drop)
    }
}

/// Whether this checkout is a clone with this commit in it.
fn has_commit(commit: &str) -> Result<bool> {
    let mut git = Command::new("git");
    git.arg("-C").arg(lab::repo());
    git.args(["cat-file", "-e", &format!("{commit}^{{commit}}")]);
    Ok(child::output("git", git, wait::COMMAND)?.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_revision_is_a_whole_commit_id() {
        let revisions: HashMap<String, String> = toml::from_str(REVISIONS).unwrap();
        assert!(revisions.contains_key("first"));
        for (name, commit) in revisions {
            let hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
            assert!(commit.len() == 40 && commit.chars().all(hex), "{name}");
        }
    }

    #[test]
    fn a_commit_that_nobody_has_made_is_not_in_this_clone() {
        assert!(!has_commit(&"0".repeat(40)).unwrap());
    }
}
