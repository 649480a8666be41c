//! What a test machine runs: the release binary and the live tests, the very files that run on
//! this machine, with the libraries they are linked to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::initramfs::Initramfs;
use super::kernel::Kernel;
use crate::{build, process};

/// Where the machine has the test programs; the programs they start lie beside them as cargo puts them.
pub(crate) const TESTS: &str = "/tests/deps";

/// Files of this machine by the path they have in the test machine.
pub(crate) struct Payload {
    files: BTreeMap<String, PathBuf>,
}

impl Payload {
    /// Builds what is needed, and keeps copies without debug information in `directory`.
    pub(crate) fn build(directory: &Path, tests: &[&str]) -> Result<Self> {
        build::release()?;
        let programs = build_tests(tests)?;
        fs::create_dir_all(directory)?;
        let mut files = BTreeMap::new();
        let mut add = |path: String, program: &Path| -> Result<()> {
            let copy = directory.join(path.rsplit('/').next().unwrap_or_default());
            process::run(
                Command::new("strip")
                    .arg("--strip-debug")
                    .arg("-o")
                    .args([&copy, &program.to_owned()]),
            )?;
            files.insert(path, copy);
            Ok(())
        };
        add("/bin/tcptrace".to_owned(), &build::binary())?;
        add("/bin/sh".to_owned(), Path::new("/bin/sh"))?;
        for (name, program) in &programs {
            match name.as_str() {
                "guest" => add("/init".to_owned(), program)?,
                "actor" | "incarnation" => add(format!("/tests/{name}"), program)?,
                name if tests.contains(&name) => add(format!("{TESTS}/{name}"), program)?,
                _ => {}
            }
        }
        let mut libraries = BTreeSet::new();
        for program in files.values() {
            libraries.extend(libraries_of(program)?);
        }
        for library in libraries {
            files.insert(library.clone(), library.into());
        }
        Ok(Self { files })
    }

    /// Writes the file system of a machine with this kernel, which does these commands.
    pub(crate) fn write(&self, path: &Path, kernel: &Kernel, commands: &str) -> Result<()> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut archive = Initramfs::new(BufWriter::new(file));
        archive.content("/commands", commands.as_bytes())?;
        archive.directory("/modules")?;
        for module in &kernel.modules {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            archive.file(&format!("/modules/{name}"), module)?;
        }
        for (path, source) in &self.files {
            archive.file(path, source)?;
        }
        archive.finish()?;
        Ok(())
    }
}

/// Builds these live tests and the package's programs, and returns where each is.
fn build_tests(tests: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    let mut command = process::cargo("test");
    command
        .args(["--no-run", "--package", "tcptrace-tests"])
        .args(["--message-format", "json-render-diagnostics"])
        .args(tests.iter().flat_map(|test| ["--test", test]));
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "the live tests do not build");
    let messages = String::from_utf8(output.stdout)?;
    let mut programs = BTreeMap::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line)?;
        let name = message["target"]["name"].as_str();
        if let (Some(name), Some(path)) = (name, message["executable"].as_str()) {
            programs.insert(name.to_owned(), path.into());
        }
    }
    for wanted in tests.iter().chain(&["guest", "actor", "incarnation"]) {
        ensure!(
            programs.contains_key(*wanted),
            "cargo did not say where it built {wanted}"
        );
    }
    Ok(programs)
}

/// The libraries a program is linked to, the loader included.
fn libraries_of(program: &Path) -> Result<Vec<String>> {
    let listed = process::answer(Command::new("ldd").arg(program))
        .with_context(|| format!("ldd cannot read {}", program.display()))?;
    // `libc.so.6 => /lib/libc.so.6 (0x7f)`, and `/lib64/ld-linux-x86-64.so.2 (0x7f)`.
    let paths = listed.lines().filter_map(|line| {
        let words = line.split_whitespace();
        words.into_iter().find(|word| word.starts_with('/'))
    });
    Ok(paths.map(str::to_owned).collect())
}
