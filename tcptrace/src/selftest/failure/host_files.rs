//! Too many open files in system: the limit of the whole host, lowered for a moment.

use std::fs;

use anyhow::{Context, Result};

use super::{Expect, Failure, Named, Shown};
use crate::event::Cause;

const FILE_MAX: &str = "/proc/sys/fs/file-max";

pub(super) const FAILURE: Failure = Failure {
    name: "fd_exhausted.host",
    symptom: "socket: too many open files in system",
    changes_host: Some("fs.file-max"),
    provoke: |stage| {
        let mut program = stage.actor("is-unlucky")?;
        // The limit does not hold for root.
        let nobody = 65534;
        program.sys(
            libc::SYS_setresuid,
            &[nobody.into(), nobody.into(), nobody.into()],
        )?;
        let lowered = Lowered::new("1")?;
        let error = program.socket(libc::AF_INET, 0);
        drop(lowered);
        error.expect_err("no file is left");
        Ok(Shown {
            events: vec![
                Expect::new("fd.exhausted", "socket")
                    .with("tcptrace.syscall.name", "socket")
                    .owner(&program)
                    .says("error.type", "ENFILE"),
            ],
            findings: vec![Named::new(Cause::FdExhausted, "of the whole host").of(&program)],
        })
    },
};

/// The host's limit while it is lowered; dropping this puts it back.
struct Lowered {
    before: String,
}

impl Lowered {
    fn new(limit: &str) -> Result<Self> {
        let before = fs::read_to_string(FILE_MAX).with_context(|| format!("read {FILE_MAX}"))?;
        let lowered = Self { before };
        fs::write(FILE_MAX, limit).with_context(|| format!("cannot set {FILE_MAX}"))?;
        Ok(lowered)
    }
}

impl Drop for Lowered {
    fn drop(&mut self) {
        if let Err(error) = fs::write(FILE_MAX, &self.before) {
            eprintln!(
                "cannot set {FILE_MAX} back to {}: {error}",
                self.before.trim()
            );
        }
    }
}
