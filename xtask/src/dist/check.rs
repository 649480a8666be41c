//! What is shipped, tried.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::{TARGET, VERSION_LINE, shipped, stranger, tree, unpack};
use crate::build;
use crate::process::{answer, run as run_command, workspace};

/// The most exposure `systemd-analyze security` may see in the unit, of 10.
const EXPOSURE: f32 = 3.0;
/// What every package brings.
const INSTALLED: [&str; 11] = [
    "/usr/bin/tcptrace",
    "/etc/tcptrace.toml",
    "/lib/systemd/system/tcptrace.service",
    "/usr/share/man/man1/tcptrace.1.gz",
    "/usr/share/man/man1/tcptrace-doctor.1.gz",
    "/usr/share/man/man1/tcptrace-report.1.gz",
    "/usr/share/man/man1/tcptrace-sockets.1.gz",
    "/usr/share/man/man1/tcptrace-top.1.gz",
    "/usr/share/bash-completion/completions/tcptrace",
    "/_tcptrace",
    "/usr/share/fish/vendor_completions.d/tcptrace.fish",
];

pub(super) fn run(out: &Path) -> Result<()> {
    binary_needs_nothing(out)?;
    configuration_is_right(out)?;
    unit_is_confined()?;
    let deb = shipped(out, ".deb")?;
    let listed = answer(Command::new("dpkg-deb").arg("--contents").arg(&deb));
    holds_all("the .deb", &listed.context("dpkg-deb cannot read it")?)?;
    let rpm = shipped(out, ".rpm")?;
    let listed = answer(Command::new("rpm").arg("-qlp").arg(&rpm));
    holds_all("the .rpm", &listed.context("rpm cannot read it")?)?;
    run_command(
        Command::new("rpmlint")
            .args(["--strict", "--config"])
            .arg(workspace().join("packaging/rpmlint.toml"))
            .arg(&rpm),
    )?;
    binstall_finds_the_binary(out)?;
    published_object_is_this_source(out)?;
    stranger::try_out(out)?;
    tree::try_out(out, &deb)
}

fn holds_all(package: &str, listed: &str) -> Result<()> {
    for path in INSTALLED {
        ensure!(listed.contains(path), "{package} lacks {path}:\n{listed}");
    }
    Ok(())
}

/// It runs in a directory where nothing else is, as in the container.
fn binary_needs_nothing(out: &Path) -> Result<()> {
    let alone = out.join("alone");
    fs::create_dir(&alone)?;
    fs::copy(out.join("stage/bin/tcptrace"), alone.join("tcptrace"))?;
    let version = answer(
        Command::new("chroot")
            .arg(&alone)
            .args(["/tcptrace", "--version"]),
    );
    ensure!(
        version.as_deref() == Some(VERSION_LINE),
        "alone in a directory tcptrace says {version:?}"
    );
    fs::remove_dir_all(alone)?;
    Ok(())
}

/// The file that is shipped, as it is and with all it proposes.
fn configuration_is_right(out: &Path) -> Result<()> {
    let shipped = out.join("stage/tcptrace.toml");
    let proposed = out.join("proposed.toml");
    fs::write(&proposed, propose(&fs::read_to_string(&shipped)?))?;
    for file in [shipped, proposed.clone()] {
        run_command(
            Command::new(out.join("stage/bin/tcptrace"))
                .arg("--check-config")
                .arg("--config")
                .arg(file)
                .stdout(Stdio::null()),
        )?;
    }
    fs::remove_file(proposed)?;
    Ok(())
}

/// The options that the file has as comments are in force: `#key`, where a sentence is `# Words`.
fn propose(text: &str) -> String {
    let lines = text.lines().map(|line| match line.strip_prefix('#') {
        Some(option) if !option.is_empty() && !option.starts_with(' ') => option,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn unit_is_confined() -> Result<()> {
    let unit = workspace().join("packaging/tcptrace.service");
    let report = answer(
        Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(&unit),
    );
    let exposure = exposure(&report.context("systemd-analyze cannot read the unit")?)?;
    println!("dist: the unit's exposure is {exposure} of 10");
    ensure!(exposure <= EXPOSURE, "at most {EXPOSURE} may it be");
    Ok(())
}

/// The number in `→ Overall exposure level for tcptrace.service: 2.9 OK`.
fn exposure(report: &str) -> Result<f32> {
    let line = report
        .lines()
        .find(|line| line.contains("Overall exposure"));
    let number = line
        .and_then(|line| line.rsplit(": ").next()?.split(' ').next())
        .context("systemd-analyze tells no exposure")?;
    Ok(number.parse()?)
}

/// What the manifest tells cargo-binstall is true of the archive, wherever it is downloaded from.
/// <https://github.com/cargo-bins/cargo-binstall/blob/main/SUPPORT.md>
fn binstall_finds_the_binary(out: &Path) -> Result<()> {
    let manifest = fs::read_to_string(workspace().join("tcptrace/Cargo.toml"))?;
    let url = told_to_binstall(&manifest, "pkg-url").context("no pkg-url")?;
    let binary = told_to_binstall(&manifest, "bin-dir").context("no bin-dir")?;
    let archive = url.rsplit('/').next().unwrap_or_default();
    let listed = answer(
        Command::new("tar")
            .args(["--list", "--gzip", "--file"])
            .arg(out.join(archive)),
    );
    let listed = listed.with_context(|| format!("{archive} is not shipped"))?;
    ensure!(
        listed.lines().any(|path| path == binary),
        "{archive} lacks {binary}"
    );
    Ok(())
}

/// A template of `[package.metadata.binstall]`, filled in.
fn told_to_binstall(manifest: &str, key: &str) -> Option<String> {
    let (_, section) = manifest.split_once("[package.metadata.binstall]")?;
    let value = section.lines().find_map(|line| line.strip_prefix(key))?;
    let mut value = value
        .trim_start_matches([' ', '='])
        .trim_matches('"')
        .to_owned();
    for (name, is) in [
        ("name", "tcptrace"),
        ("bin", "tcptrace"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("target", TARGET),
        ("archive-format", "tar.gz"),
    ] {
        value = value.replace(&format!("{{ {name} }}"), is);
    }
    Some(value)
}

/// The kernel half in the published package is what this source makes, built once more elsewhere.
fn published_object_is_this_source(out: &Path) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let unpacked = out.join("unpacked");
    fs::create_dir(&unpacked)?;
    unpack(&out.join(format!("tcptrace-{version}.crate")), &unpacked)?;
    let published = fs::read(unpacked.join(format!("tcptrace-{version}/tcptrace-ebpf.o")))?;
    let again = fs::read(build::object(&[])?)?;
    ensure!(
        published == again,
        "the kernel half of the published package ({} bytes) is not what its source makes ({} bytes)",
        published.len(),
        again.len()
    );
    fs::remove_dir_all(unpacked)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_proposed_is_what_follows_the_mark_at_once() {
        let text = "# Words.\n#\noutput = \"json\"\n#port = [80]\n";
        assert_eq!(propose(text), "# Words.\n#\noutput = \"json\"\nport = [80]");
    }

    #[test]
    fn binstall_is_told_by_templates() {
        let manifest = "[package.metadata.binstall]\n\
                        pkg-url = \"{ repo }/v{ version }/{ name }-{ target }.{ archive-format }\"\n";
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            told_to_binstall(manifest, "pkg-url"),
            Some(format!("{{ repo }}/v{version}/tcptrace-{TARGET}.tar.gz"))
        );
        assert_eq!(told_to_binstall(manifest, "bin-dir"), None);
    }

    #[test]
    fn the_exposure_is_the_number_at_the_end() {
        let report =
            "  NAME  DESCRIPTION: x\n\n→ Overall exposure level for tcptrace.service: 2.9 OK 🙂\n";
        assert!((exposure(report).expect("a number") - 2.9).abs() < f32::EPSILON);
        assert!(exposure("").is_err());
    }
}
