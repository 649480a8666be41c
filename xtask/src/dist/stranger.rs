//! The published crates as somebody builds them who has stable Rust and nothing of ours: no workspace, no
//! nightly, no compiler for BPF.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};

use super::{VERSION_LINE, unpack};
use crate::process::{answer, run as run_command, workspace};

/// Builds and runs them in a directory of its own.
pub(super) fn try_out(out: &Path) -> Result<()> {
    // Not in target: cargo would take them for members of the workspace.
    let home = env::temp_dir().join(format!("tcptrace-stranger-{}", std::process::id()));
    fs::create_dir(&home).with_context(|| format!("cannot make {}", home.display()))?;
    let tried = build(out, &home).and_then(|binary| traces(&binary));
    fs::remove_dir_all(&home)?;
    tried
}

fn build(out: &Path, home: &Path) -> Result<PathBuf> {
    let version = env!("CARGO_PKG_VERSION");
    for name in ["tcptrace-common", "tcptrace"] {
        unpack(&out.join(format!("{name}-{version}.crate")), home)?;
    }
    let sysroot = answer(Command::new("rustc").args(["--print", "sysroot"]));
    let toolchain = Path::new(sysroot.context("rustc does not run")?.trim_end()).join("bin");
    let release = answer(Command::new(toolchain.join("rustc")).arg("--version"));
    let release = release.context("rustc does not run")?;
    ensure!(!release.contains("nightly"), "{release} is not stable Rust");

    let target = workspace().join("target/stranger");
    // Neither rustup, which could find a nightly, nor bpf-linker.
    let path = env::join_paths([&toolchain, Path::new("/usr/bin"), Path::new("/bin")])?;
    let unpublished = home.join(format!("tcptrace-common-{version}"));
    run_command(
        Command::new(toolchain.join("cargo"))
            .arg("build")
            .arg("--config")
            .arg(format!(
                "patch.crates-io.tcptrace-common.path = '{}'",
                unpublished.display()
            ))
            .arg("--target-dir")
            .arg(&target)
            .current_dir(home.join(format!("tcptrace-{version}")))
            .env("PATH", path)
            .env_remove("RUSTC")
            .env_remove("AYA_BUILD_SKIP")
            .env_remove("TCPTRACE_BPF_OBJECT"),
    )?;
    Ok(target.join("debug/tcptrace"))
}

/// The kernel half is inside, and this kernel takes it.
fn traces(binary: &Path) -> Result<()> {
    let version = answer(Command::new(binary).arg("--version"));
    ensure!(
        version.as_deref() == Some(VERSION_LINE),
        "it is {version:?}"
    );
    run_command(Command::new(binary).args(["--quiet", "--duration", "0"]))
}
