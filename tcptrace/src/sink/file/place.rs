//! Where an output file is, and how it is opened: in a directory that others may write to no link is followed
//! and no file of theirs taken.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, linkat, openat, statat, unlinkat,
};
use rustix::process::geteuid;

/// The directory of a file, and its name there.
pub(super) struct Place<'a> {
    pub(super) directory: OwnedFd,
    pub(super) name: &'a OsStr,
    stat: Stat,
}

impl<'a> Place<'a> {
    /// Goes down a path to the file's directory.
    ///
    /// # Errors
    /// The directory cannot be reached, or only by a link that another user may have put there.
    pub(super) fn find(path: &'a Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
        let way = path.parent().unwrap_or(Path::new(""));
        let root = if way.is_absolute() { "/" } else { "." };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut directory = openat(CWD, root, flags, Mode::empty())?;
        let mut stat = fstat(&directory)?;
        for part in way.components() {
            if matches!(part, Component::RootDir | Component::CurDir) {
                continue;
            }
            let part = part.as_os_str();
            refuse_link(&directory, &stat, part)?;
            let follow = if is_shared(&stat) {
                OFlags::NOFOLLOW
            } else {
                OFlags::empty()
            };
            directory = openat(&directory, part, flags | follow, Mode::empty())?;
            stat = fstat(&directory)?;
        }
        Ok(Self {
            directory,
            name,
            stat,
        })
    }

    /// Opens the file to add to its end, or creates it with mode 0600.
    ///
    /// # Errors
    /// It cannot be opened; or others may write to its directory, and it is a link, no regular file, or
    /// neither ours nor the directory's owner's.
    pub(super) fn open(&self) -> io::Result<fs::File> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        if !is_shared(&self.stat) {
            return Ok(openat(&self.directory, self.name, flags, mode)?.into());
        }
        refuse_link(&self.directory, &self.stat, self.name)?;
        // A pipe that nobody reads must not hold us up.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = openat(&self.directory, self.name, flags, mode)?;
        let stat = fstat(&file)?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let is_known = [geteuid().as_raw(), self.stat.st_uid].contains(&stat.st_uid);
        if is_file && is_known && stat.st_nlink == 1 {
            Ok(file.into())
        } else {
            Err(io::Error::other(
                "it is another user's, in a directory that others may write to",
            ))
        }
    }

    /// Creates the file with mode 0600 and this in it. It has another name until it is whole.
    ///
    /// # Errors
    /// It is there already, or cannot be written.
    pub(super) fn create(&self, content: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let unfinished = format!(".tcptrace-{}", std::process::id());
        let file = openat(
            &self.directory,
            &*unfinished,
            flags,
            Mode::RUSR | Mode::WUSR,
        )?;
        let mut file = fs::File::from(file);
        let written = file.write_all(content).and_then(|()| file.sync_all());
        // Unlike a rename it fails where the name is taken.
        let named = written.and_then(|()| {
            let flags = AtFlags::empty();
            Ok(linkat(
                &self.directory,
                &*unfinished,
                &self.directory,
                self.name,
                flags,
            )?)
        });
        unlinkat(&self.directory, &*unfinished, AtFlags::empty())?;
        named
    }
}

/// Somebody else may put files there: anybody or a group, or an owner who is not this user.
fn is_shared(directory: &Stat) -> bool {
    let others = Mode::WGRP | Mode::WOTH;
    let owner = directory.st_uid;
    Mode::from_raw_mode(directory.st_mode).intersects(others)
        || (owner != 0 && owner != geteuid().as_raw())
}

/// Says in words what `O_NOFOLLOW` refuses all the same.
fn refuse_link(directory: &OwnedFd, stat: &Stat, name: &OsStr) -> io::Result<()> {
    let is_link = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    let there = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    if is_shared(stat) && there.is_ok_and(|there| is_link(&there)) {
        return Err(io::Error::other(format!(
            "{} is a link, in a directory that others may write to",
            name.display()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn in_a_shared_directory_no_link_and_no_doubtful_file_is_taken() {
        let root = tempfile::tempdir().expect("a directory");
        let at = |name: &str| root.path().join(name);
        let open = |name: &str| {
            let path = at(name);
            Place::find(&path).and_then(|place| place.open())
        };
        fs::create_dir(at("aim")).expect("the directory is ours");
        fs::write(at("aim/file"), "").expect("the directory is ours");
        fs::hard_link(at("aim/file"), at("second-name")).expect("the directory is ours");
        symlink("aim/file", at("link")).expect("the directory is ours");
        symlink("aim", at("way")).expect("the directory is ours");
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU)
            .expect("the directory is ours");
        let mode = |mode| {
            let permissions = fs::Permissions::from_mode(mode);
            fs::set_permissions(root.path(), permissions).expect("the directory is ours");
        };
        for name in ["aim/file", "second-name", "link", "way/file", "way/../link"] {
            open(name).unwrap_or_else(|error| panic!("{name} in our own: {error}"));
        }
        for shared in [0o1777, 0o777, 0o770] {
            mode(shared);
            open("aim/file").expect("the directory below is ours alone");
            open("new").expect("nobody was there before");
            open("new").expect("it is ours");
            for (name, why) in [
                ("link", "link is a link, in a directory that others"),
                ("way/file", "way is a link, in a directory that others"),
                ("second-name", "it is another user's, in a directory"),
                ("pipe", "No such device"),
            ] {
                let error = open(name).err().map(|error| error.to_string());
                let error = error.unwrap_or_else(|| panic!("{name} in {shared:o} was opened"));
                assert!(error.starts_with(why), "{name}: {error}");
            }
        }
    }
}
