//! `cargo xtask build`: the binary that is shipped.

use std::path::PathBuf;

use anyhow::Result;

use crate::{process, setup};

pub(crate) fn run() -> Result<()> {
    setup::run()?;
    release()
}

/// Builds the release binary, with the kernel half whatever the environment says.
pub(crate) fn release() -> Result<()> {
    process::run(
        process::cargo("build")
            .args(["--release", "--package", "tcptrace"])
            .args(["--target-dir".as_ref(), target_directory().as_os_str()])
            .env_remove("AYA_BUILD_SKIP"),
    )
}

/// The binary [`release`] makes.
pub(crate) fn binary() -> PathBuf {
    target_directory().join("release/tcptrace")
}

fn target_directory() -> PathBuf {
    process::workspace().join("target")
}
