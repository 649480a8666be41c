//! A browser without a window: what it makes of a page, and what it wanted besides.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Where it was unpacked.
const HOME: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/programs/chromium");

/// A page that was opened.
#[derive(Debug)]
pub struct Opened {
    /// Its elements, written out again.
    pub elements: String,
    /// What it said on the console: errors, and what its policy refused.
    pub console: Vec<String>,
    /// What it asked the network for.
    pub requests: BTreeSet<String>,
}

/// Opens a page.
///
/// # Errors
/// When the browser cannot be started, or fails.
pub fn open(page: &Path) -> Result<Opened> {
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("net.json");
    let mut command = browser(directory.path());
    command.arg(format!("--log-net-log={}", log.display()));
    let output = command.args(["--enable-logging=stderr", "--dump-dom"]);
    let output = output.arg(page).output().context("no browser")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{said}");
    let console = said.lines().filter(|line| line.contains(":CONSOLE:"));
    let log: Value = serde_json::from_str(&fs::read_to_string(&log)?)?;
    let events = log["events"].as_array().context("a log of the network")?;
    let urls = events.iter().filter_map(|it| it["params"]["url"].as_str());
    Ok(Opened {
        elements: String::from_utf8(output.stdout)?,
        console: console.map(str::to_owned).collect(),
        requests: urls.map(str::to_owned).collect(),
    })
}

/// A picture of a page, in PNG, for who likes it light or dark.
///
/// # Errors
/// When the browser cannot be started, or fails.
pub fn picture(page: &Path, dark: bool) -> Result<Vec<u8>> {
    let scheme = u8::from(!dark);
    let scheme = format!("--blink-settings=preferredColorScheme={scheme}");
    made(
        page,
        "--screenshot",
        "made.png",
        &[&scheme, "--window-size=1100,1600"],
    )
}

/// A page on paper, in PDF.
///
/// # Errors
/// When the browser cannot be started, or fails.
pub fn paper(page: &Path) -> Result<Vec<u8>> {
    made(page, "--print-to-pdf", "made.pdf", &[])
}

fn made(page: &Path, what: &str, name: &str, options: &[&str]) -> Result<Vec<u8>> {
    let directory = tempfile::tempdir()?;
    let made = directory.path().join(name);
    let mut command = browser(directory.path());
    command.arg(format!("{what}={}", made.display()));
    let output = command.args(options).arg(page).output()?;
    fs::read(&made).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

fn browser(profile: &Path) -> Command {
    let libraries = format!("{HOME}/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let libraries = format!("{libraries}:{libraries}/pulseaudio");
    let mut command = Command::new(format!("{HOME}/usr/lib/chromium/chromium-headless-shell"));
    command
        .env("LD_LIBRARY_PATH", libraries)
        .arg(format!("--user-data-dir={}", profile.display()))
        // As root it has no other choice.
        .args(["--no-sandbox", "--disable-gpu"])
        .arg("--disable-background-networking");
    command
}
