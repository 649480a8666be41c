//! What code a process has mapped, and the files it comes from.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use procfs::process::{MMPermissions, MMapPath, MemoryMap};

/// A process at one moment.
#[derive(Debug)]
pub(super) struct Process {
    /// In order.
    mappings: Vec<Mapping>,
}

/// A piece of memory that holds code.
#[derive(Debug)]
pub(super) struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
    inode: u64,
    /// The last part of its file's path, or what else it is.
    pub(super) name: String,
    /// Its file, opened through the mapping.
    pub(super) file: Option<Arc<Mapped>>,
    /// Why there is no file.
    pub(super) why: Option<String>,
}

/// An open file.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) file: File,
    pub(super) key: Key,
}

/// What names the content of a file, as far as the file system says.
pub(super) type Key = [i64; 5];

/// What was found under a process's number.
pub(super) enum Seen {
    /// It runs the program that was meant.
    Maps(Vec<MemoryMap>),
    /// It runs another one.
    Another,
}

impl Process {
    /// The code of a process, if it still is the program whose stack begins at `start`.
    pub(super) fn read(tgid: u32, start: u64) -> Result<Seen, String> {
        let gone = || "the process was gone before it could be looked at".to_owned();
        let pid = i32::try_from(tgid).unwrap_or(i32::MAX);
        let process = procfs::process::Process::new(pid).map_err(|_| gone())?;
        let maps = process.maps().map_err(|_| gone())?;
        // After the maps: whatever was started meanwhile shows.
        let status = process.stat().map_err(|_| gone())?;
        if maps.len() == 0 {
            // Nobody has asked for its status yet.
            return Err(gone());
        }
        if status.startstack != start {
            return Ok(Seen::Another);
        }
        let code = maps
            .into_iter()
            .filter(|it| it.perms.contains(MMPermissions::EXECUTE));
        Ok(Seen::Maps(code.collect()))
    }

    /// Opens the files of its code. Those it had `before` in the same places are not opened again.
    pub(super) fn open(tgid: u32, maps: &[MemoryMap], before: Option<&Self>) -> Self {
        let mappings = maps.iter().map(|map| {
            let (start, end) = map.address;
            let known = before.and_then(|it| it.at(start));
            let known =
                known.filter(|it| (it.end, it.offset, it.inode) == (end, map.offset, map.inode));
            let file = match known.and_then(|it| it.file.as_ref()) {
                Some(file) => Ok(Some(Arc::clone(file))),
                None if map.inode == 0 => Ok(None),
                None => Mapped::open(format!("/proc/{tgid}/map_files/{start:x}-{end:x}")).map(Some),
            };
            let name = name(&map.pathname);
            let why = match &file {
                Ok(Some(_)) => None,
                Ok(None) if name.starts_with('[') => None,
                Ok(None) => Some("no file says what code made at run time is".to_owned()),
                Err(error) => Some(format!("{name} cannot be opened: {error}")),
            };
            Mapping {
                start,
                end,
                offset: map.offset,
                inode: map.inode,
                name,
                file: file.ok().flatten(),
                why,
            }
        });
        Self {
            mappings: mappings.collect(),
        }
    }

    /// The code at an address.
    pub(super) fn at(&self, address: u64) -> Option<&Mapping> {
        let after = self.mappings.partition_point(|it| it.start <= address);
        let mapping = self.mappings.get(after.checked_sub(1)?)?;
        (address < mapping.end).then_some(mapping)
    }
}

/// As `maps` has it; `(deleted)` is no part of the name.
fn name(path: &MMapPath) -> String {
    match path {
        MMapPath::Path(path) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.strip_suffix(" (deleted)").unwrap_or(&name).to_owned()
        }
        MMapPath::Vdso => "[vdso]".to_owned(),
        MMapPath::Vsyscall => "[vsyscall]".to_owned(),
        _ => "anonymous".to_owned(),
    }
}

impl Mapping {
    /// Where in its file an address is.
    pub(super) fn offset_of(&self, address: u64) -> u64 {
        address - self.start + self.offset
    }

    /// Its addresses.
    pub(super) fn range(&self) -> std::ops::Range<u64> {
        self.start..self.end
    }

    /// An address of which no file says more: what moves with each start is left out.
    pub(super) fn name_of(&self, address: u64) -> String {
        match &self.why {
            Some(_) if self.inode == 0 => format!("{address:#x}"),
            _ => format!("{}+{:#x}", self.name, self.offset_of(address)),
        }
    }
}

impl Mapped {
    fn open(path: impl AsRef<Path>) -> std::io::Result<Arc<Self>> {
        let file = File::open(path)?;
        let about = file.metadata()?;
        let key = [
            about.dev().cast_signed(),
            about.ino().cast_signed(),
            about.size().cast_signed(),
            about.mtime(),
            about.mtime_nsec(),
        ];
        Ok(Arc::new(Self { file, key }))
    }
}
