//! `cargo xtask soak`: the test of the same name for longer than a test may take.

use anyhow::Result;

use crate::process::{self, cargo};
use crate::{build, setup};

/// Runs it for so many minutes.
pub(crate) fn run(minutes: u32) -> Result<()> {
    setup::run()?;
    build::release()?;
    process::run(
        process::cargo_test_as_root(&mut cargo("test"))?
            .args(["--package", "tcptrace-tests", "--test", "soak"])
            .args(["--", "--nocapture"])
            .env("TCPTRACE_BIN", build::binary())
            .env(
                "TCPTRACE_SOAK_SECONDS",
                (u64::from(minutes) * 60).to_string(),
            ),
    )
}
