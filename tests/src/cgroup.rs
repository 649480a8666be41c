//! A cgroup of its own for a test.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A cgroup v2; gone once it is dropped and the processes in it are.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Where one of this name would be, below the cgroup v2 tree of this host.
    ///
    /// # Errors
    /// There is no such tree.
    pub fn place(name: &str) -> Result<PathBuf> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        let tree = mounts.lines().find_map(|mount| {
            let mut words = mount.split(' ').skip(1);
            let (at, kind) = (words.next()?, words.next()?);
            (kind == "cgroup2").then_some(at)
        });
        let tree = tree.context("no cgroup v2 is mounted here, and this test needs one")?;
        Ok(Path::new(tree).join(name))
    }

    /// Makes one.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        let path = Self::place(name)?;
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// It cannot be moved.
    pub fn take(&self, pid: u32) -> Result<()> {
        Ok(fs::write(self.0.join("cgroup.procs"), pid.to_string())?)
    }

    /// Its directory.
    ///
    /// # Errors
    /// Its name is not the test's.
    pub fn path(&self) -> Result<&str> {
        self.0.to_str().context("a name of this test")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}
