//! Cgroups: what a user's name for one means to the kernel, and which one a process is in.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::mounts;

/// The cgroup v2 tree of this host.
#[derive(Clone, Debug)]
pub struct Cgroups {
    root: PathBuf,
}

impl Cgroups {
    /// Finds where the tree is mounted; on a hybrid host that is beside cgroup v1.
    ///
    /// # Errors
    ///
    /// When it is not mounted.
    pub fn open() -> Result<Self> {
        let mut mounts: Vec<_> = mounts()
            .into_iter()
            .filter(|mount| mount.fs_type == "cgroup2")
            .collect();
        // A mount of the whole tree before one of a part.
        mounts.sort_by_key(|mount| mount.root != "/");
        match mounts.into_iter().next() {
            Some(mount) => Ok(Self {
                root: mount.mount_point,
            }),
            None => bail!(
                "no cgroup v2 tree is mounted, and the kernel names cgroups by v2 only; \
                 mount one with: mount -t cgroup2 none /sys/fs/cgroup/unified"
            ),
        }
    }

    /// The ids of a cgroup and all below it, as `bpf_get_current_cgroup_id` gives them; the cgroup
    /// itself first. `name` is a path below the mount, or relative to it as `/proc/PID/cgroup` and
    /// `systemctl status` show it: `system.slice/nginx.service`.
    ///
    /// # Errors
    ///
    /// When there is no such cgroup.
    pub fn resolve(&self, name: &str) -> Result<Vec<u64>> {
        let top = self.directory(name)?;
        let mut ids = Vec::new();
        let mut pending = vec![top];
        while let Some(directory) = pending.pop() {
            // One that is removed meanwhile has no process left.
            let Ok(metadata) = fs::metadata(&directory) else {
                continue;
            };
            ids.push(metadata.ino());
            let children = fs::read_dir(&directory).into_iter().flatten().flatten();
            pending.extend(
                children
                    .filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|child| child.path()),
            );
        }
        Ok(ids)
    }

    fn directory(&self, name: &str) -> Result<PathBuf> {
        let relative = self.root.join(name.trim_start_matches('/'));
        let candidates = [PathBuf::from(name), relative];
        let found = candidates
            .iter()
            .filter(|path| path.is_absolute())
            .filter_map(|path| path.canonicalize().ok())
            .find(|path| path.starts_with(&self.root) && path.is_dir());
        found.with_context(|| {
            format!(
                "there is no cgroup {name:?} below {}; `systemd-cgls` and /proc/PID/cgroup show \
                 their names",
                self.root.display()
            )
        })
    }

    /// The id of the cgroup a process is in; `None` when it is gone or its cgroup is outside what
    /// is mounted here.
    #[must_use]
    pub fn of(&self, pid: u32) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        Some(
            fs::metadata(self.root.join(parse_unified(&text)?))
                .ok()?
                .ino(),
        )
    }
}

/// The v2 line of `/proc/PID/cgroup`, `0::/path`.
/// <https://docs.kernel.org/admin-guide/cgroup-v2.html#processes>
pub(crate) fn parse_unified(text: &str) -> Option<&Path> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // Outside our own cgroup namespace it begins with `..`.
    let is_below = |part| matches!(part, Component::Normal(_));
    Path::new(path)
        .components()
        .all(is_below)
        .then(|| Path::new(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of plain directories: the walk is the same, and needs no cgroup.
    fn tree() -> (tempfile::TempDir, Cgroups) {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(root.path().join("system.slice/nginx.service/worker"))
            .expect("below it");
        fs::create_dir_all(root.path().join("system.slice/sshd.service")).expect("below it");
        fs::write(
            root.path().join("system.slice/nginx.service/cgroup.procs"),
            "",
        )
        .expect("a file");
        let path = root.path().canonicalize().expect("it exists");
        (root, Cgroups { root: path })
    }

    #[test]
    fn a_cgroup_means_itself_and_all_below() {
        let (_directory, cgroups) = tree();
        let id = |path: &str| {
            fs::metadata(cgroups.root.join(path))
                .expect("made above")
                .ino()
        };
        let service = "system.slice/nginx.service";
        let both = vec![id(service), id("system.slice/nginx.service/worker")];
        let absolute = cgroups.root.join(service).display().to_string();
        for name in [
            service,
            "/system.slice/nginx.service",
            "system.slice/nginx.service/",
            &absolute,
        ] {
            assert_eq!(cgroups.resolve(name).expect("it exists"), both, "{name}");
        }
        assert_eq!(cgroups.resolve("/").expect("the root").len(), 5);
    }

    #[test]
    fn what_is_no_cgroup_is_refused() {
        let (_directory, cgroups) = tree();
        for name in [
            "nginx.service",
            "/usr",
            "..",
            "system.slice/nginx.service/cgroup.procs",
        ] {
            let error = cgroups.resolve(name).expect_err("no cgroup").to_string();
            assert!(
                error.contains(name) && error.contains("systemd-cgls"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_unified_line_is_read() {
        for (text, path) in [
            ("12:cpu:/a\n0::/system.slice/b\n", Some("system.slice/b")),
            ("0::/\n", Some("")),
            ("0::/../other\n", None),
            ("0::/a/../../other\n", None),
            ("0:://etc\n", None),
            ("0::/..name\n", Some("..name")),
            ("1:name=systemd:/a\n", None),
        ] {
            assert_eq!(parse_unified(text), path.map(Path::new), "{text:?}");
        }
    }
}
