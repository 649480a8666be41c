//! `cargo xtask build`: the binary that is shipped.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{process, setup};

pub(crate) fn run() -> Result<()> {
    setup::run()?;
    release()
}

/// Builds the release binary, with the kernel half whatever the environment says.
pub(crate) fn release() -> Result<()> {
    with(&["--release"])
}

/// Builds it with the export to Kafka, in the same place.
pub(crate) fn release_with_kafka() -> Result<()> {
    with(&["--release", "--features", "kafka"])
}

fn with(options: &[&str]) -> Result<()> {
    process::run(
        process::cargo("build")
            .args(["--package", "tcptrace"])
            .args(options)
            .args(["--target-dir".as_ref(), target_directory().as_os_str()])
            .env_remove("AYA_BUILD_SKIP"),
    )
}

/// Builds the release binary with further arguments for cargo, and tells where the kernel half inside
/// lies by itself.
pub(crate) fn object(arguments: &[&str]) -> Result<PathBuf> {
    let output = process::cargo("build")
        .args(["--release", "--package", "tcptrace"])
        .args(arguments)
        .args([
            "--message-format",
            "json-render-diagnostics",
            "--target-dir",
        ])
        .arg(target_directory())
        .env_remove("AYA_BUILD_SKIP")
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "cargo build: {}", output.status);
    let messages = String::from_utf8(output.stdout)?;
    let own = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|message| {
            let id = message["package_id"].as_str().unwrap_or_default();
            message["reason"] == "build-script-executed" && id.contains("/tcptrace#")
        });
    let own = own.context("cargo told nothing of tcptrace's build script")?;
    let directory = own["out_dir"].as_str().context("it has no OUT_DIR")?;
    Ok(Path::new(directory).join("tcptrace-ebpf"))
}

/// The binary [`release`] makes.
pub(crate) fn binary() -> PathBuf {
    target_directory().join("release/tcptrace")
}

fn target_directory() -> PathBuf {
    process::workspace().join("target")
}
