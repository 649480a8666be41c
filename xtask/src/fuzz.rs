//! `cargo xtask fuzz`: feeds what reads bytes of others with bytes that nobody expects. Needs no nightly:
//! the readers are safe code, so a panic, an overflow or a standstill is what there is to find, and for
//! these no sanitizer is needed.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::{cargo, find, run as run_command, workspace};

const CARGO_FUZZ: &str = "0.13.2";

/// Fuzzes one target, or all of them one after the other, for so many seconds each. What makes one fail
/// is kept in `fuzz/artifacts`; new input worth keeping goes to `target/fuzz-corpus`, not among the
/// seeds.
pub(crate) fn run(target: Option<&str>, seconds: u32) -> Result<()> {
    if find("cargo-fuzz").is_none() {
        println!("fuzz: cargo install cargo-fuzz, about a minute");
        let version = ["--version", CARGO_FUZZ, "--locked"];
        run_command(cargo("install").arg("cargo-fuzz").args(version))?;
    }
    let targets = match target {
        Some(target) => vec![target.to_owned()],
        None => names()?,
    };
    for target in targets {
        let corpora = workspace().join("target/fuzz-corpus").join(&target);
        std::fs::create_dir_all(&corpora)
            .with_context(|| format!("cannot make {}", corpora.display()))?;
        run_command(
            fuzz()
                .args(["run", "--sanitizer", "none", &target])
                .arg(&corpora)
                .arg(workspace().join("fuzz/corpus").join(&target))
                .args(["--", "-max_len=8192", "-timeout=25"])
                .arg(format!("-max_total_time={seconds}")),
        )
        .with_context(|| format!("the target {target} failed"))?;
    }
    Ok(())
}

/// The targets there are.
fn names() -> Result<Vec<String>> {
    let listed = crate::process::answer(fuzz().arg("list")).context("cargo fuzz list failed")?;
    Ok(listed.lines().map(str::to_owned).collect())
}

fn fuzz() -> Command {
    let mut command = cargo("fuzz");
    // The readers are not in the kernel half.
    command.env("AYA_BUILD_SKIP", "1");
    command
}
