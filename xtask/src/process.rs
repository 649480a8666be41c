//! Starting other programs: cargo without what `cargo run` left in the environment, root where it
//! is needed, and errors that name the command.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, pipe};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, iter};

use anyhow::{Context as _, Result, bail, ensure};

/// The workspace's directory.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
}

/// Cargo, in the workspace. What is built is what the lock file says.
pub(crate) fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()).arg(subcommand);
    if matches!(
        subcommand,
        "bench" | "build" | "check" | "clippy" | "doc" | "test"
    ) {
        command.arg("--locked");
    }
    // `cargo run` describes xtask in the environment; a build script that looks at these would
    // run again each time a developer changes between `cargo` and `cargo xtask`.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The program as root: directly, or through sudo.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

/// Lets cargo run tests as root, and nothing else, so that its files stay the user's.
pub(crate) fn cargo_test_as_root(cargo: &mut Command) -> Result<&mut Command> {
    if !is_root() {
        let triple = host_triple()?.to_uppercase().replace('-', "_");
        cargo.env(
            format!("CARGO_TARGET_{triple}_RUNNER"),
            "sudo --preserve-env",
        );
    }
    Ok(cargo)
}

/// Runs the command to its end with our output as its own.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    ensure!(status.success(), "{}: {status}", shown(command));
    Ok(())
}

/// Runs the command like [`run`], and returns the lines it wrote (stdout and stderr in order).
pub(crate) fn run_and_keep(command: &mut Command) -> Result<Vec<String>> {
    let (reader, writer) = pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    // The command keeps our ends of the pipe open; without this the reader waits for ever.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut lines = Vec::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        lines.push(line);
    }
    let status = child.wait()?;
    ensure!(status.success(), "{}: {status}", shown(command));
    Ok(lines)
}

/// The command as a person would type it.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words: Vec<_> = iter::once(name)
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}

/// What the command writes to stdout, if it runs and succeeds.
pub(crate) fn answer(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then_some(text)
}

/// Where `PATH`, the directories of system programs or cargo's own have the program.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let inherited = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&inherited)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .chain(cargo_programs())
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

/// Where `cargo install` puts programs.
fn cargo_programs() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))?;
    Some(home.join("bin"))
}

/// The target triple of this machine, as rustc names it.
pub(crate) fn host_triple() -> Result<String> {
    let version = answer(Command::new("rustc").arg("-vV")).context("rustc does not run")?;
    match version.lines().find_map(|line| line.strip_prefix("host: ")) {
        Some(triple) => Ok(triple.to_owned()),
        None => bail!("rustc -vV names no host"),
    }
}
