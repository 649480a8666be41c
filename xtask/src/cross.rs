//! Both halves checked for arm64, which nobody here can run.
//!
//! The standard library of that machine comes from rustup where it has it; else on Debian 12 from the
//! package of the compiler that also builds the kernel half, unpacked beside the build and not
//! installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::process::{answer, cargo, find, run, workspace};
use crate::setup::{DEBIAN_TOOLCHAIN, is_debian_12};

const TARGET: &str = "aarch64-unknown-linux-gnu";
/// Debian's name of it.
const ARCHITECTURE: &str = "arm64";
/// Debian's package of the standard library, of the same version as its compiler.
const LIBRARY: &str = "libstd-rust-web-dev";

/// Type-checks the agent for arm64, and compiles the kernel half with that machine's constants.
pub(crate) fn check() -> Result<()> {
    let directory = workspace().join("target").join(TARGET);
    let mut command = if has_library(answer(&mut rustc("--print=target-libdir"))) {
        cargo("check")
    } else if is_debian_12() {
        let library = debian_library(&directory)?;
        let mut command = debian_cargo();
        command.env(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            format!("--sysroot={} --deny=warnings", library.display()),
        );
        command
    } else {
        run(Command::new("rustup").args(["target", "add", TARGET]))?;
        cargo("check")
    };
    command
        .args(["--package", "tcptrace", "--lib", "--bins"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&directory)
        .env_remove("AYA_BUILD_SKIP")
        .env_remove("TCPTRACE_BPF_OBJECT");
    run(&mut command)
}

fn rustc(question: &str) -> Command {
    let mut command = Command::new("rustc");
    command.args([question, "--target", TARGET]);
    command
}

fn has_library(directory: Option<String>) -> bool {
    let directory = directory.unwrap_or_default();
    fs::read_dir(directory.trim_end()).is_ok_and(|files| files.count() > 0)
}

/// The cargo of Debian's compiler, whose library is of no use to any other.
fn debian_cargo() -> Command {
    if find("rustup").is_none() {
        return cargo("check");
    }
    let mut command = Command::new("rustup");
    command.args(["run", DEBIAN_TOOLCHAIN, "cargo", "check"]);
    command.current_dir(workspace());
    command
}

/// Where Debian's standard library for arm64 is unpacked, of the version of the compiler.
fn debian_library(directory: &Path) -> Result<PathBuf> {
    let version = answer(Command::new("dpkg-query").args(["-f", "${Version}", "-W", "rustc-web"]))
        .context("rustc-web is not installed: run `cargo xtask setup`")?;
    let unpacked = directory.join(format!("library-{version}"));
    if !unpacked.is_dir() {
        let apt = directory.join("apt");
        fs::create_dir_all(apt.join("lists/partial"))?;
        let options = [
            // Lists of its own: those of the machine stay as they are.
            format!("-oDir::State::Lists={}/lists", apt.display()),
            "-oDir::Cache::pkgcache=".to_owned(),
            "-oDir::Cache::srcpkgcache=".to_owned(),
            "-oAcquire::Retries=3".to_owned(),
            "-oAcquire::Languages=none".to_owned(),
            format!("-oAPT::Architectures::={ARCHITECTURE}"),
        ];
        let apt_get = |arguments: &[&str]| {
            let mut command = Command::new("apt-get");
            command.args(&options).arg("--quiet").args(arguments);
            run(command.current_dir(&apt))
        };
        // One broken source of many need not be the one that holds the package.
        let updated = apt_get(&["update", "--quiet"]);
        let package = format!("{LIBRARY}:{ARCHITECTURE}={version}");
        apt_get(&["download", &package])
            .or_else(|error| updated.and(Err(error)))
            .with_context(|| format!("{package} is what {TARGET} is checked with"))?;
        let deb = fs::read_dir(&apt)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|it| it == "deb"));
        let deb = deb.context("apt-get downloaded no package")?;
        let partial = directory.join("library-partial");
        run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&partial))?;
        fs::rename(&partial, &unpacked)?;
        fs::remove_dir_all(&apt)?;
    }
    let library = unpacked.join("usr");
    ensure!(
        library.join("lib/rustlib").join(TARGET).is_dir(),
        "{LIBRARY} does not hold {TARGET}; remove {} to fetch it again",
        unpacked.display()
    );
    Ok(library)
}
