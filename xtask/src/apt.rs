//! apt-get with sources of its own: Debian suites this machine does not use, from the mirror it
//! uses, without touching its configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::process;

/// What signs Debian's suites.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Package lists kept in a directory.
pub(crate) struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// Fetches the package lists of the suites, like `bookworm-backports`, into `directory`.
    pub(crate) fn update(directory: &Path, suites: &[&str]) -> Result<Self> {
        let (mirror, security) = mirrors()?;
        fs::create_dir_all(directory.join("lists/partial"))?;
        let source = |suite: &&str| {
            let mirror = if suite.ends_with("-security") {
                &security
            } else {
                &mirror
            };
            format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n")
        };
        let sources: Vec<String> = suites.iter().map(source).collect();
        fs::write(directory.join("sources.list"), sources.concat())?;
        let apt = Self {
            directory: directory.to_owned(),
        };
        process::run(
            Command::new("apt-get")
                .args(apt.options())
                .args(["--quiet", "--quiet", "update"]),
        )?;
        Ok(apt)
    }

    /// What makes apt-get and apt-cache look here and nowhere else.
    pub(crate) fn options(&self) -> Vec<String> {
        let directory = self.directory.display();
        [
            format!("Dir::Etc::SourceList={directory}/sources.list"),
            "Dir::Etc::SourceParts=-".to_owned(),
            format!("Dir::State::Lists={directory}/lists"),
            // Its own caches would make those of the machine stale, and the reverse.
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            // A suite past its support is not signed anew.
            "Acquire::Check-Valid-Until=false".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ]
        .map(|option| format!("-o{option}"))
        .to_vec()
    }
}

/// Where this machine gets Debian from: the archive, and its security updates.
pub(crate) fn mirrors() -> Result<(String, String)> {
    let listed = process::answer(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Identifier: Packages",
        "Origin: Debian",
    ]))
    .unwrap_or_default();
    let ending = |end: &str| {
        let uri = listed.lines().map(|uri| uri.trim_end_matches('/'));
        uri.into_iter().find(|uri| uri.ends_with(end))
    };
    let Some(mirror) = ending("/debian") else {
        bail!(
            "apt-get knows no mirror of Debian here. Add one to its sources, run apt-get update, \
             then run this again"
        );
    };
    let security =
        ending("/debian-security").map_or_else(|| format!("{mirror}-security"), Into::into);
    Ok((mirror.to_owned(), security))
}
