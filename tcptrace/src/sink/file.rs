//! A file of records: only its owner may read it, and it is moved aside when it has grown.

mod place;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};
use rustix::fs::{renameat, statat, unlinkat};

use place::Place;

use super::Error;
use super::export::{Target, write_all};

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
    rotation: Option<Rotation>,
    /// Bytes in the file; `None` for what is no regular file and so cannot be moved aside.
    size: Option<u64>,
    /// The last record there is not whole.
    is_torn: bool,
    /// What has the name now is to be opened before anything more is written.
    is_stale: bool,
}

impl File {
    /// Opens the file to add to its end, or creates it with mode 0600.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] with the path, the reason and what to do.
    pub fn open(path: impl Into<PathBuf>, rotation: Option<Rotation>) -> Result<Self, Error> {
        let path = path.into();
        let (handle, size) = open(&path)?;
        Ok(Self {
            path,
            handle,
            rotation,
            size,
            is_torn: false,
            is_stale: false,
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

    /// How many bytes of these records go into the file before it is moved aside, to the end of a record;
    /// 0 when it is moved aside first.
    fn room_for(&self, records: &[u8]) -> usize {
        let (Some(rotation), Some(size)) = (self.rotation, self.size) else {
            return records.len();
        };
        let left = usize::try_from(rotation.size.saturating_sub(size)).unwrap_or(usize::MAX);
        let Some(fitting) = records.get(..left) else {
            return records.len();
        };
        let is_end = |&byte: &u8| byte == b'\n';
        match fitting.iter().rposition(is_end) {
            Some(end) => end + 1,
            None if size > 0 && !self.is_torn => 0,
            // Alone in a file it may be larger.
            None => records
                .iter()
                .position(is_end)
                .map_or(records.len(), |end| end + 1),
        }
    }

    fn rotate(&mut self, keep: u32) -> Result<(), Error> {
        move_aside(&self.path, keep)
            .map_err(|error| Error::failed("rotate", &self.path.display(), &error))?;
        self.reopen()
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), (usize, Error)> {
        let outcome = write_all(&mut self.handle, bytes);
        let written = outcome
            .as_ref()
            .map_or_else(|&(it, _)| it, |()| bytes.len());
        self.size = self.size.map(|size| size + written as u64);
        if let Some(last) = bytes[..written].last() {
            self.is_torn = *last != b'\n';
        }
        outcome.map_err(|(written, error)| {
            let error = Error::failed("write to", &self.path.display(), &error);
            (written, error)
        })
    }
}

impl Target for File {
    fn write(&mut self, records: &[u8]) -> Result<(), (usize, Error)> {
        let mut written = 0;
        while written < records.len() {
            let left = &records[written..];
            let outcome = match (self.room_for(left), self.rotation) {
                _ if self.is_stale => self.reopen().map_err(|error| (0, error)),
                (0, Some(rotation)) => self.rotate(rotation.keep).map_err(|error| (0, error)),
                (fitting, _) => self.append(&left[..fitting]).map(|()| written += fitting),
            };
            outcome.map_err(|(more, error)| (written + more, error))?;
        }
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), Error> {
        self.is_stale = true;
        (self.handle, self.size) = open(&self.path)?;
        (self.is_stale, self.is_torn) = (false, false);
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

fn open(path: &Path) -> Result<(fs::File, Option<u64>), Error> {
    let open = || {
        let file = Place::find(path)?.open()?;
        let metadata = file.metadata()?;
        Ok((file, metadata.is_file().then_some(metadata.len())))
    };
    open().map_err(|error| Error::failed("open", &path.display(), &error))
}

/// `PATH` becomes `PATH.1`, that `PATH.2` and so on; the last one goes. It may fail at any step and be tried
/// again: only what has become `PATH.0` moves the older ones on, and it does so once.
fn move_aside(path: &Path, keep: u32) -> io::Result<()> {
    let Place {
        directory, name, ..
    } = Place::find(path)?;
    if keep == 0 {
        let flags = rustix::fs::AtFlags::empty();
        return gone_is_fine(unlinkat(&directory, name, flags)).map(drop);
    }
    let numbered = |number: u32| {
        let mut numbered = OsString::from(name);
        numbered.push(format!(".{number}"));
        numbered
    };
    let first = numbered(0);
    let move_on = || {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        if gone_is_fine(statat(&directory, &first, flags))?.is_none() {
            return Ok(());
        }
        for number in (1..=keep).rev() {
            let (from, to) = (numbered(number - 1), numbered(number));
            gone_is_fine(renameat(&directory, from, &directory, to))?;
        }
        Ok(())
    };
    // One that was left by a try that failed.
    move_on()?;
    gone_is_fine(renameat(&directory, name, &directory, &first))?;
    move_on()
}

/// An older file that is not there, or no longer, needs no move.
fn gone_is_fine<T>(result: rustix::io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(rustix::io::Errno::NOENT) => Ok(None),
        result => Ok(Some(result?)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::PermissionsExt as _;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    fn write(file: &mut File, records: &str) {
        file.write(records.as_bytes())
            .expect("the directory is ours");
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    #[test]
    fn it_is_private_and_added_to() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("events.json");
        for record in ["one\n", "two\n"] {
            let mut file = File::open(&path, None).expect("the directory is ours");
            write(&mut file, record);
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
        // However many come at a time.
        for parcels in [
            &["aaa\nbbb\nccc\na record beyond the size\nddd\neee\n"][..],
            &[
                "aaa\nbbb\nccc\n",
                "a record beyond the size\nddd\n",
                "eee\n",
            ],
            &[
                "aaa\n",
                "bbb\n",
                "ccc\n",
                "a record beyond the size\n",
                "ddd\n",
                "eee\n",
            ],
        ] {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("events.json");
            let rotation = Some(Rotation { size: 8, keep: 2 });
            let mut file = File::open(&path, rotation).expect("the directory is ours");
            for records in parcels {
                write(&mut file, records);
            }
            let older = |number| read(&directory.path().join(format!("events.json.{number}")));
            assert_eq!(read(&path), "ddd\neee\n");
            assert_eq!(older(1), "a record beyond the size\n");
            assert_eq!(older(2), "ccc\n");
            assert!(!directory.path().join("events.json.3").exists());
        }
    }

    #[test]
    fn the_size_counts_what_was_there_before_and_nothing_need_be_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("events.json");
        fs::write(&path, "before\n").expect("the directory is ours");
        let rotation = Some(Rotation { size: 8, keep: 0 });
        let mut file = File::open(&path, rotation).expect("the directory is ours");
        write(&mut file, "after\n");
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
        let mut file = File::open(&path, None).expect("the directory is ours");
        write(&mut file, "one\n");
        fs::rename(&path, &moved).expect("the directory is ours");
        write(&mut file, "two\n");
        file.reopen().expect("the directory is ours");
        write(&mut file, "three\n");
        assert_eq!(read(&moved), "one\ntwo\n");
        assert_eq!(read(&path), "three\n");
    }

    #[test]
    fn a_record_begun_is_ended_in_its_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("events.json");
        let rotation = Some(Rotation { size: 8, keep: 1 });
        let mut file = File::open(&path, rotation).expect("the directory is ours");
        // As a disk leaves it that was full for a while.
        write(&mut file, "one\nto");
        write(&mut file, "o long\nthree\n");
        assert_eq!(
            read(&directory.path().join("events.json.1")),
            "one\ntoo long\n"
        );
        assert_eq!(read(&path), "three\n");
    }

    #[test]
    fn a_file_that_cannot_be_moved_aside_is_tried_again_and_costs_no_older_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("events.json");
        let numbered = |number| directory.path().join(format!("events.json.{number}"));
        let rotation = Some(Rotation { size: 8, keep: 2 });
        let mut file = File::open(&path, rotation).expect("the directory is ours");
        for records in ["aaa\nbbb\n", "ccc\nddd\n", "eee\nfff\n"] {
            write(&mut file, records);
        }
        fs::remove_file(numbered(1)).expect("the directory is ours");
        fs::create_dir(numbered(1)).expect("the directory is ours");
        for _ in 0..3 {
            let (there, error) = file.write(b"ggg\n").expect_err("a directory is in the way");
            assert_eq!(there, 0);
            let said = error.to_string();
            assert!(said.starts_with("cannot rotate"), "{said}");
        }
        fs::remove_dir(numbered(1)).expect("the directory is ours");
        write(&mut file, "ggg\n");
        assert_eq!(read(&path), "ggg\n");
        assert_eq!(read(&numbered(1)), "eee\nfff\n");
        assert_eq!(read(&numbered(2)), "aaa\nbbb\n");
    }

    #[test]
    fn a_file_that_cannot_be_opened_anew_is_opened_before_the_next_record() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("events.json");
        let mut file = File::open(&path, None).expect("the directory is ours");
        fs::rename(&path, directory.path().join("moved")).expect("the directory is ours");
        fs::create_dir(&path).expect("the directory is ours");
        file.reopen().expect_err("a directory has its name");
        file.write(b"one\n").expect_err("a directory has its name");
        fs::remove_dir(&path).expect("the directory is ours");
        write(&mut file, "one\n");
        assert_eq!(read(&path), "one\n");
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
        let error = File::open(&path, None)
            .err()
            .expect("there is no such directory");
        let expected = format!(
            "cannot open {}: No such file or directory (os error 2); create its directory first",
            path.display()
        );
        assert_eq!(error.to_string(), expected);

        let rotation = Some(Rotation { size: 1, keep: 1 });
        let mut full = File::open("/dev/full", rotation).expect("it is there");
        let outcome = full.write(b"a device is never moved aside\n");
        let (there, error) = outcome.expect_err("it is full");
        assert_eq!(there, 0);
        assert!(
            error
                .to_string()
                .starts_with("cannot write to /dev/full: No space"),
            "{error}"
        );
    }

    #[test]
    fn what_is_there_of_records_that_did_not_fit_is_known() {
        // A pipe that is full after so many bytes and waits for nobody.
        const ROOM: i32 = 4096;
        let (reader, writer) = io::pipe().expect("a pipe");
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(ROOM)).expect("a page is allowed");
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a pipe may be so");
        let mut file = File {
            path: "a pipe".into(),
            handle: fs::File::from(OwnedFd::from(writer)),
            rotation: None,
            size: None,
            is_torn: false,
            is_stale: false,
        };
        let line = [&[b'x'; 999][..], b"\n"].concat();
        let outcome = file.write(&line.repeat(10));
        assert_eq!(outcome.map_err(|(there, _)| there), Err(4096));
        drop(reader);
    }
}
