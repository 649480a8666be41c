//! `cargo xtask demo`: failures provoked in a private network namespace, and their stories.

use anyhow::Result;

use crate::{build, process};

pub(crate) fn run() -> Result<()> {
    build::run()?;
    process::run(process::as_root(build::binary()).args(["selftest", "--stories"]))
}
