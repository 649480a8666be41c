//! `cargo xtask dist`: everything that is shipped, in target/dist, and each thing tried as its user
//! would.

mod check;
mod stranger;
mod tree;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::process::{answer, cargo, find, is_root, run as run_command, workspace};
use crate::{build, setup};

/// What is shipped must start on every Linux, so it links no library of the machine that built it.
const TARGET: &str = "x86_64-unknown-linux-musl";
/// What makes and tries packages, and the Debian packages that hold it.
const PROGRAMS: [(&str, &str); 5] = [
    ("strip", "binutils"),
    ("rpm", "rpm"),
    ("rpmlint", "rpmlint"),
    ("debootstrap", "debootstrap"),
    ("systemd-analyze", "systemd"),
];
const CARGO_PROGRAMS: [(&str, &str); 2] =
    [("cargo-deb", "3.8.0"), ("cargo-generate-rpm", "0.21.1")];
/// Each shell's completions, by the name it looks for them.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "tcptrace"),
    ("zsh", "_tcptrace"),
    ("fish", "tcptrace.fish"),
];
/// What `tcptrace --version` says.
const VERSION_LINE: &str = concat!("tcptrace ", env!("CARGO_PKG_VERSION"), "\n");
/// Where build.rs looks for the kernel half in the published package.
const PUBLISHED_OBJECT: &str = "tcptrace/tcptrace-ebpf.o";

pub(crate) fn run() -> Result<()> {
    ensure!(
        is_root(),
        "this installs the packages in a fresh Debian and boots it: run it as root"
    );
    setup::run()?;
    install_tools()?;
    let out = workspace().join("target/dist");
    match fs::remove_dir_all(&out) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot empty {}", out.display()));
        }
        _ => {}
    }
    let stage = out.join("stage");
    fs::create_dir_all(&stage)?;

    let object = build::object(&["--target", TARGET])?;
    stage_files(&stage, &object)?;
    let name = format!("tcptrace-{}-{TARGET}", env!("CARGO_PKG_VERSION"));
    run_command(
        Command::new("tar")
            .args([
                "--create",
                "--gzip",
                "--sort=name",
                "--owner=0",
                "--group=0",
            ])
            .arg(format!("--transform=s,^stage,{name},"))
            .arg(format!("--file={name}.tar.gz"))
            .arg("stage")
            .current_dir(&out),
    )?;
    run_command(
        cargo("deb")
            .args([
                "--package",
                "tcptrace",
                "--no-build",
                "--no-strip",
                "--output",
            ])
            .arg(&out),
    )?;
    run_command(
        cargo("generate-rpm")
            .args(["--package", "tcptrace", "--output"])
            .arg(&out),
    )?;
    make_crates(&object, &out)?;
    sum(&out)?;
    check::run(&out)?;
    println!("dist: {}", out.display());
    Ok(())
}

fn install_tools() -> Result<()> {
    let missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    setup::install_packages(&missing)?;
    for (program, version) in CARGO_PROGRAMS {
        if find(program).is_none() {
            println!("dist: cargo install {program}, a few minutes");
            run_command(cargo("install").args([program, "--version", version, "--locked"]))?;
        }
    }
    let library = Command::new("rustc")
        .args(["--print=target-libdir", "--target", TARGET])
        .stderr(Stdio::null())
        .output()?;
    let library = String::from_utf8(library.stdout)?;
    if Path::new(library.trim_end()).is_dir() {
        return Ok(());
    }
    println!("dist: rustup target add {TARGET}");
    run_command(Command::new("rustup").args(["target", "add", TARGET])).with_context(|| {
        format!("a static binary takes the standard library for {TARGET}, which rustup has")
    })
}

/// Lays out what the packages hold. Manual pages and completions are what the shipped binary itself
/// prints, so they cannot be older.
fn stage_files(stage: &Path, object: &Path) -> Result<()> {
    for directory in ["bin", "lib", "man", "completions"] {
        fs::create_dir_all(stage.join(directory))?;
    }
    let binary = stage.join("bin/tcptrace");
    let built = workspace()
        .join("target")
        .join(TARGET)
        .join("release/tcptrace");
    run_command(
        Command::new("strip")
            .args(["--strip-debug", "-o"])
            .arg(&binary)
            .arg(built),
    )?;
    fs::copy(object, stage.join("lib/tcptrace-ebpf.o"))?;
    for name in ["README.md", "LICENSE-MIT", "LICENSE-APACHE", "CHANGELOG.md"] {
        fs::copy(workspace().join(name), stage.join(name))?;
    }
    for name in ["tcptrace.service", "tcptrace.toml"] {
        fs::copy(workspace().join("packaging").join(name), stage.join(name))?;
    }

    let says = |arguments: &[&str]| {
        answer(Command::new(&binary).args(arguments))
            .with_context(|| format!("tcptrace {} fails", arguments.join(" ")))
    };
    let first = says(&["man"])?;
    fs::write(stage.join("man/tcptrace.1"), &first)?;
    for name in pages_named(&first) {
        let page = says(&["man", &name])?;
        fs::write(stage.join(format!("man/tcptrace-{name}.1")), page)?;
    }
    run_command(
        Command::new("gzip")
            .args(["--best", "--no-name"])
            .args(files(&stage.join("man"))?),
    )?;
    for (shell, file) in COMPLETIONS {
        fs::write(
            stage.join("completions").join(file),
            says(&["completions", shell])?,
        )?;
    }
    Ok(())
}

/// The commands whose pages the first page refers to, as `tcptrace\-doctor(1)`.
fn pages_named(page: &str) -> Vec<String> {
    page.lines()
        .filter_map(|line| line.strip_prefix("tcptrace\\-")?.strip_suffix("(1)"))
        .map(|name| name.replace("\\-", "-"))
        .collect()
}

/// Packs what `cargo install` builds from, the kernel half in it. It is built where it is tried.
fn make_crates(object: &Path, out: &Path) -> Result<()> {
    let placed = workspace().join(PUBLISHED_OBJECT);
    fs::copy(object, &placed)?;
    let packed = run_command(
        cargo("package")
            .args(["--package", "tcptrace-common", "--package", "tcptrace"])
            .args(["--locked", "--allow-dirty", "--no-verify", "--target-dir"])
            .arg(workspace().join("target"))
            .env_remove("AYA_BUILD_SKIP")
            .env_remove("TCPTRACE_BPF_OBJECT"),
    );
    fs::remove_file(&placed)?;
    packed?;
    for name in ["tcptrace-common", "tcptrace"] {
        let file = format!("{name}-{}.crate", env!("CARGO_PKG_VERSION"));
        fs::copy(
            workspace().join("target/package").join(&file),
            out.join(file),
        )?;
    }
    Ok(())
}

fn unpack(package: &Path, to: &Path) -> Result<()> {
    run_command(
        Command::new("tar")
            .args(["--extract", "--gzip", "--file"])
            .arg(package)
            .arg("--directory")
            .arg(to),
    )
}

/// The shipped file whose name ends so.
fn shipped(out: &Path, end: &str) -> Result<PathBuf> {
    let mut found = files(out)?;
    found.retain(|path| path.to_string_lossy().ends_with(end));
    match found.as_slice() {
        [one] => Ok(one.clone()),
        _ => bail!("one *{end} was to be in {}: {found:?}", out.display()),
    }
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![];
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn sum(out: &Path) -> Result<()> {
    let names = files(out)?;
    let names = names.iter().filter_map(|path| path.file_name());
    let sums = File::create(out.join("SHA256SUMS"))?;
    run_command(
        Command::new("sha256sum")
            .args(names)
            .current_dir(out)
            .stdout(sums),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_are_those_the_first_one_refers_to() {
        let page = ".SH SUBCOMMANDS\n.TP\ntcptrace\\-doctor(1)\nSay\n.TP\ntcptrace\\-two\\-words(1)\n\
                    tcptrace traces\n";
        assert_eq!(pages_named(page), ["doctor", "two-words"]);
    }
}
