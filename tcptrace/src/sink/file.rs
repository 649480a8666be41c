//! A file of records: only its owner may read it, and it is moved aside when it has grown.

mod opener;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};
use rustix::fs::{AtFlags as UnlinkFlags, renameat, unlinkat};

pub use opener::Opener;
use opener::Place;

use super::{Error, Sink};
use crate::event::Event;

/// Bytes gathered before a write that nobody asked for.
const GATHER: usize = 64 * 1024;

/// When a file is moved aside, and how many of those are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// A file never grows beyond this many bytes, except by a single record that is larger.
    pub size: u64,
    /// Older files to keep, as `PATH.1` (the newest) to `PATH.N`.
    pub keep: u32,
}

/// An output file.
pub struct File {
    path: PathBuf,
    handle: fs::File,
    opener: Opener,
    rotation: Option<Rotation>,
    pending: Vec<u8>,
    /// Bytes in the file, with those pending; `None` for what is no regular file and so cannot be
    /// moved aside.
    size: Option<u64>,
}

impl File {
    /// Opens the file to add to its end, or creates it with mode 0600.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] with the path, the reason and what to do.
    pub fn open(
        path: impl Into<PathBuf>,
        rotation: Option<Rotation>,
        opener: Opener,
    ) -> Result<Self, Error> {
        let path = path.into();
        let (handle, size) = open(&path, &opener)?;
        Ok(Self {
            path,
            handle,
            opener,
            rotation,
            pending: Vec::new(),
            size,
        })
    }

    /// The calling thread may open such a file, and move aside what is there.
    #[must_use]
    pub fn may_open(path: &Path) -> bool {
        let may = |path: &Path, access| faccessat(AT_FDCWD, path, access, AtFlags::AT_EACCESS);
        let directory = directory_of(path);
        let write = AccessFlags::W_OK;
        matches!(may(path, write), Ok(()) | Err(Errno::ENOENT))
            && may(directory, write | AccessFlags::X_OK).is_ok()
    }

    fn is_due(&self, more: usize) -> bool {
        let (Some(rotation), Some(size)) = (self.rotation, self.size) else {
            return false;
        };
        size > 0 && size + more as u64 > rotation.size
    }

    fn rotate(&mut self, keep: u32) -> Result<(), Error> {
        self.flush()?;
        let path = self.path.clone();
        let rotated = self.opener.run(move || move_aside(&path, keep));
        rotated
            .flatten()
            .map_err(|error| Error::failed("rotate", &self.path.display(), &error))?;
        self.reopen()
    }
}

impl Sink for File {
    fn write(&mut self, _: &Event, record: &Bytes) -> Result<(), Error> {
        if let Some(rotation) = self.rotation
            && self.is_due(record.len())
        {
            self.rotate(rotation.keep)?;
        }
        self.pending.extend_from_slice(record);
        self.size = self.size.map(|size| size + record.len() as u64);
        if self.pending.len() >= GATHER {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<(), Error> {
        let written = self.handle.write_all(&self.pending);
        self.pending.clear();
        written.map_err(|error| Error::failed("write to", &self.path.display(), &error))
    }

    fn reopen(&mut self) -> Result<(), Error> {
        self.flush()?;
        (self.handle, self.size) = open(&self.path, &self.opener)?;
        Ok(())
    }
}

/// Makes a file of this with mode 0600, which takes its name once it is whole. A file that has the name is
/// left alone.
///
/// # Errors
///
/// [`Error::Failed`] with the path, the reason and what to do.
pub fn create(path: &Path, content: &[u8]) -> Result<(), Error> {
    let created = Place::find(path).and_then(|place| place.create(content));
    created.map_err(|error| Error::failed("create", &path.display(), &error))
}

/// The directory a file is in.
#[must_use]
pub fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    }
}

fn open(path: &Path, opener: &Opener) -> Result<(fs::File, Option<u64>), Error> {
    let owned = path.to_owned();
    let file = opener.run(move || {
        let file = Place::find(&owned)?.open()?;
        let metadata = file.metadata()?;
        Ok((file, metadata.is_file().then_some(metadata.len())))
    });
    file.flatten()
        .map_err(|error| Error::failed("open", &path.display(), &error))
}

/// `PATH` becomes `PATH.1`, that `PATH.2` and so on; the last one goes.
fn move_aside(path: &Path, keep: u32) -> io::Result<()> {
    let Place {
        directory, name, ..
    } = Place::find(path)?;
    let numbered = |number: u32| {
        let mut numbered = OsString::from(name);
        if number > 0 {
            numbered.push(format!(".{number}"));
        }
        numbered
    };
    if keep == 0 {
        gone_is_fine(unlinkat(&directory, name, UnlinkFlags::empty()))?;
    }
    for number in (1..=keep).rev() {
        let (from, to) = (numbered(number - 1), numbered(number));
        gone_is_fine(renameat(&directory, from, &directory, to))?;
    }
    Ok(())
}

/// An older file that is not there, or no longer, needs no move.
fn gone_is_fine(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::sink::samples;

    fn write(file: &mut File, record: &'static str) {
        file.write(
            &samples::reset_sent(),
            &Bytes::from_static(record.as_bytes()),
        )
        .expect("the directory is ours");
    }

    fn opener() -> Opener {
        Opener::start().expect("a thread")
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    #[test]
    fn it_is_private_and_added_to() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("events.json");
        for record in ["one\n", "two\n"] {
            let mut file = File::open(&path, None, opener()).expect("the directory is ours");
            write(&mut file, record);
            file.flush().expect("the directory is ours");
        }
        assert_eq!(read(&path), "one\ntwo\n");
        let mode = fs::metadata(&path)
            .expect("it was written")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn it_is_moved_aside_between_records_and_the_oldest_goes() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("events.json");
        let rotation = Some(Rotation { size: 8, keep: 2 });
        let mut file = File::open(&path, rotation, opener()).expect("the directory is ours");
        for record in [
            "aaa\n",
            "bbb\n",
            "ccc\n",
            "a record beyond the size\n",
            "ddd\n",
            "eee\n",
        ] {
            write(&mut file, record);
        }
        file.flush().expect("the directory is ours");
        let older = |number| read(&directory.path().join(format!("events.json.{number}")));
        assert_eq!(read(&path), "ddd\neee\n");
        assert_eq!(older(1), "a record beyond the size\n");
        assert_eq!(older(2), "ccc\n");
        assert!(!directory.path().join("events.json.3").exists());
    }

    #[test]
    fn the_size_counts_what_was_there_before_and_nothing_need_be_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("events.json");
        fs::write(&path, "before\n").expect("the directory is ours");
        let rotation = Some(Rotation { size: 8, keep: 0 });
        let mut file = File::open(&path, rotation, opener()).expect("the directory is ours");
        write(&mut file, "after\n");
        file.flush().expect("the directory is ours");
        assert_eq!(read(&path), "after\n");
        assert_eq!(
            fs::read_dir(directory.path())
                .expect("the directory")
                .count(),
            1
        );
    }

    #[test]
    fn reopened_it_leaves_a_moved_file_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("events.json");
        let moved = directory.path().join("moved");
        let mut file = File::open(&path, None, opener()).expect("the directory is ours");
        write(&mut file, "one\n");
        fs::rename(&path, &moved).expect("the directory is ours");
        write(&mut file, "two\n");
        file.reopen().expect("the directory is ours");
        write(&mut file, "three\n");
        file.flush().expect("the directory is ours");
        assert_eq!(read(&moved), "one\ntwo\n");
        assert_eq!(read(&path), "three\n");
    }

    #[test]
    fn a_file_is_created_whole_and_private_and_never_in_the_place_of_another() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("report.html");
        create(&path, b"whole").expect("the directory is ours");
        assert_eq!(read(&path), "whole");
        let metadata = fs::metadata(&path).expect("it was written");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        let error = create(&path, b"another").expect_err("it is there");
        let expected = format!(
            "cannot create {}: File exists (os error 17); remove it, or choose another name",
            path.display()
        );
        assert_eq!(error.to_string(), expected);
        assert_eq!(read(&path), "whole");
        // Not even in the place of a link that leads nowhere.
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).expect("the directory is ours");
        create(&link, b"another").expect_err("the name is taken");
        let left = fs::read_dir(directory.path()).expect("the directory");
        assert_eq!(left.count(), 2, "nothing unfinished is left");
    }

    #[test]
    fn a_failure_names_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("missing/events.json");
        let error = File::open(&path, None, opener())
            .err()
            .expect("there is no such directory");
        let expected = format!(
            "cannot open {}: No such file or directory (os error 2); create its directory first",
            path.display()
        );
        assert_eq!(error.to_string(), expected);

        let mut full = File::open("/dev/full", Some(Rotation { size: 1, keep: 1 }), opener())
            .expect("it is there");
        write(&mut full, "a device is never moved aside\n");
        let error = full.flush().expect_err("it is full");
        assert!(
            error
                .to_string()
                .starts_with("cannot write to /dev/full: No space"),
            "{error}"
        );
    }
}
