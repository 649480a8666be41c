//! The file system of a test machine, all of it in memory: a cpio archive of the "new" format, as
//! <https://docs.kernel.org/driver-api/early-userspace/buffer-format.html> describes it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const TRAILER: &str = "TRAILER!!!";

/// An archive being written.
pub(crate) struct Initramfs<W> {
    out: W,
    written: usize,
    entries: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Initramfs<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            written: 0,
            entries: 0,
            directories: BTreeSet::new(),
        }
    }

    /// Adds a file of this machine as a program, under an absolute path.
    pub(crate) fn file(&mut self, path: &str, source: &Path) -> Result<()> {
        let content =
            fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
        self.content(path, &content)
    }

    /// Adds a file with this content, under an absolute path.
    pub(crate) fn content(&mut self, path: &str, content: &[u8]) -> Result<()> {
        for (end, _) in path.match_indices('/').skip(1) {
            self.directory(&path[..end])?;
        }
        Ok(self.entry(path, PROGRAM, content)?)
    }

    /// Adds a directory; its parents are there.
    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        if self.directories.insert(path.to_owned()) {
            self.entry(path, DIRECTORY, &[])?;
        }
        Ok(())
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let name = path.trim_start_matches('/');
        let too_large = |_| io::Error::other(format!("{path} is too large for an initramfs"));
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        let header = [
            self.entries, // inode
            mode,
            0, // user
            0, // group
            1, // links
            0, // modified
            size,
            0, // device, major and minor
            0,
            0, // the device it is
            0,
            name_size,
            0, // checksum, which this format has not
        ];
        self.write(b"070701")?;
        for field in header {
            self.write(format!("{field:08x}").as_bytes())?;
        }
        self.write(name.as_bytes())?;
        self.write(b"\0")?;
        self.pad()?;
        self.write(content)?;
        self.pad()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.out.write_all(bytes)
    }

    /// Name and content both end at a multiple of four.
    fn pad(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.write(&[0; 3][..missing])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_the_kernel_reads() {
        let mut archive = Initramfs::new(Vec::new());
        archive
            .content("/bin/x", b"hello")
            .expect("memory takes it");
        let bytes = archive.finish().expect("memory takes it");
        let text = String::from_utf8(bytes).expect("all of it is text");
        let expected = [
            "070701",
            "00000001000041ed000000000000000000000001000000000000000000000000000000000000000000000000",
            "0000000400000000bin\0\0\0",
            "070701",
            "00000002000081ed000000000000000000000001000000000000000500000000000000000000000000000000",
            "0000000600000000bin/x\0hello\0\0\0",
            "070701",
            "000000030000000000000000000000000000000100000000000000000000000000000000000000000000000",
            "00000000b00000000TRAILER!!!\0\0\0\0",
        ];
        assert_eq!(text, expected.concat());
    }
}
