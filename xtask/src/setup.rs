//! `cargo xtask setup`: installs what building and testing need, and only what is missing.
//!
//! The kernel half needs a compiler with `core` for BPF, and bpf-linker against the LLVM of that
//! compiler. Debian 12 packages such a compiler; elsewhere it is rustup's nightly with the source
//! of `core`. The build script finds whichever is there.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context as _, Error, Result, anyhow, bail};

use crate::apt::Apt;
use crate::process::{answer, as_root, cargo, find, run as run_command, workspace};

/// Debian 12's compiler with `core` for BPF, and the LLVM it is built on.
const DEBIAN_COMPILER: [&str; 4] = [
    "rustc-web",
    "cargo-web",
    "libstd-rust-web-dev-bpf",
    "llvm-22-dev",
];
/// What rustup brings where it is used, and Debian packages apart from the compiler.
const DEBIAN_LINTS: [&str; 2] = ["rust-web-clippy", "rustfmt-web"];
const DEBIAN_LLVM: &str = "/usr/lib/llvm-22";
/// The name under which the build script asks rustup for Debian's compiler.
pub(crate) const DEBIAN_TOOLCHAIN: &str = "bpf-debian";
/// The programs that live tests and measurements start, and the packages that hold them.
const TEST_PROGRAMS: [(&str, &str); 16] = [
    ("ip", "iproute2"),
    ("nginx", "nginx-light"),
    ("curl", "curl"),
    ("go", "golang-go"),
    ("redis-server", "redis-server"),
    ("nft", "nftables"),
    ("prometheus", "prometheus"),
    ("wrk", "wrk"),
    ("bpftrace", "bpftrace"),
    ("tcpstates", "libbpf-tools"),
    ("rsyslogd", "rsyslog"),
    ("socat", "socat"),
    ("openssl", "openssl"),
    ("journalctl", "systemd"),
    ("tmux", "tmux"),
    ("mkfs.ext4", "e2fsprogs"),
];
/// Those of the packages whose daemon the next boot would start. The tests start their own.
const SERVICES: [(&str, &str); 4] = [
    ("nginx-light", "nginx"),
    ("redis-server", "redis-server"),
    ("prometheus", "prometheus"),
    ("rsyslog", "rsyslog"),
];
/// A program whose package cannot be installed beside that of rsyslog, and what it needs to run.
const SYSLOG_NG: &str = "syslog-ng-core";
const SYSLOG_NG_NEEDS: [&str; 3] = ["libivykis0", "libnet1", "libpcre3"];
/// The browser that opens reports, without a window: 100 MB of packages, 300 MB unpacked. It is not
/// installed, because nothing else on the system needs it.
const BROWSER: &str = "chromium-headless-shell";
/// A database of metrics that takes OTLP, which Debian 12's own does not yet.
const VICTORIA_METRICS: &str = "victoria-metrics";
/// What comes from `PyPI`, and where the tests look for it: the database that `docs/fleet.md` asks, and a
/// receiver of OTLP.
const OF_PYPI: [(&str, &str); 2] = [
    ("duckdb==2.0.0", "target/duckdb"),
    ("rotel==0.0.1a15", "target/rotel"),
];
/// What that receiver is linked with.
const ROTEL_NEEDS: &str = "libpython3.11";
const BPF_LINKER: &str = "0.13.0";
/// The emulator for other kernels. Before this major version it corrupts some of them.
const EMULATOR: (&str, &str) = ("qemu-system-x86_64", "qemu-system-x86");
const EMULATOR_SINCE: u32 = 8;

pub(crate) fn run() -> Result<()> {
    // One at a time in a tree: apt-get does not wait for whoever holds its lists.
    let target = workspace().join("target");
    fs::create_dir_all(&target)?;
    let turn = fs::File::create(target.join("setup.lock"))?;
    turn.lock().context("cannot wait for another setup")?;
    let mut missing: Vec<&str> = TEST_PROGRAMS
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    let has_object = env::var_os("TCPTRACE_BPF_OBJECT").is_some();
    let compiler_is_debians = !has_object && !nightly_is_ready() && is_debian_12();
    if compiler_is_debians {
        missing.extend(uninstalled(&DEBIAN_COMPILER));
        if !has_rustup() {
            missing.extend(uninstalled(&DEBIAN_LINTS));
        }
    }
    if !emulator_is_ready() {
        if is_debian_12() {
            install_emulator_for_debian()?;
        } else {
            missing.push(EMULATOR.1);
        }
    }
    let of_pypi = OF_PYPI.map(|(package, home)| (package, workspace().join(home)));
    let lacks_some = of_pypi.iter().any(|(_, home)| !home.is_dir());
    if lacks_some && find("apt-get").is_some() {
        // Debian's Python comes without.
        missing.extend(uninstalled(&["python3-venv", ROTEL_NEEDS]));
    }
    let has_syslog_ng = programs("syslog-ng/usr/sbin/syslog-ng").exists();
    let has_victoria_metrics = programs("victoria-metrics/usr/bin/victoria-metrics").exists();
    if !has_syslog_ng {
        missing.extend(uninstalled(&SYSLOG_NG_NEEDS));
    }
    install_packages(&missing)?;
    if !has_syslog_ng {
        unpack(&[SYSLOG_NG], "syslog-ng", &[])?;
    }
    if !programs("chromium").is_dir() {
        unpack_browser()?;
    }
    if !has_victoria_metrics {
        let trixie = Apt::update(&programs("lists"), &["trixie"])?;
        unpack(&[VICTORIA_METRICS], VICTORIA_METRICS, &trixie.options())?;
    }
    for (package, home) in of_pypi.iter().filter(|(_, home)| !home.is_dir()) {
        install_from_pypi(package, home)?;
    }
    if has_rustup() {
        add_lints()?;
    }
    if compiler_is_debians {
        link_debian_toolchain()?;
        install_linker_for_debian()?;
    } else if !has_object && !nightly_is_ready() {
        install_nightly().map_err(|error| by_hand(&error))?;
    }
    Ok(())
}

/// Whether rustup's nightly can build the kernel half as it is.
fn nightly_is_ready() -> bool {
    let sysroot = answer(
        Command::new("rustup")
            .args(["run", "nightly", "rustc", "--print=sysroot"])
            .env("RUSTUP_AUTO_INSTALL", "0"),
    );
    sysroot.is_some_and(|sysroot| {
        let source = "lib/rustlib/src/rust/library/core";
        Path::new(sysroot.trim_end()).join(source).is_dir()
    }) && linker_runs()
}

fn linker_runs() -> bool {
    find("bpf-linker").is_some_and(|linker| answer(Command::new(linker).arg("--version")).is_some())
}

fn has_rustup() -> bool {
    find("rustup").is_some()
}

pub(crate) fn is_debian_12() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let says = |line| release.lines().any(|it| it == line);
    says("ID=debian") && says("VERSION_ID=\"12\"")
}

/// Those of the packages that dpkg does not have.
fn uninstalled(packages: &[&'static str]) -> Vec<&'static str> {
    // dpkg-query fails when it does not know one of them, and still lists the others.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\n"])
        .args(packages)
        .output();
    let listed = output.map(|output| output.stdout).unwrap_or_default();
    let listed = String::from_utf8_lossy(&listed);
    let installed: HashSet<&str> = listed
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect();
    let is_missing = |package: &&str| !installed.contains(package);
    packages.iter().copied().filter(is_missing).collect()
}

pub(crate) fn install_packages(packages: &[&str]) -> Result<()> {
    const ATTEMPTS: u64 = 3;
    if packages.is_empty() {
        return Ok(());
    }
    let wanted = packages.join(" ");
    if find("apt-get").is_none() {
        bail!(
            "the tests start programs that are not installed. Install what this system calls \
             these Debian packages, then run this again: {wanted}"
        );
    }
    say(&format!("apt-get install {wanted}"));
    let simulation = ["install", "--simulate", "--quiet", "--quiet"];
    let mut lists_are_current = answer(apt_get(&simulation).args(packages)).is_some();
    for attempt in 1..=ATTEMPTS {
        if !lists_are_current && run_command(&mut apt_get(&["update", "--quiet"])).is_err() {
            // One broken source of many need not be the one that holds these packages.
            say("apt-get update had errors; trying to install all the same");
        }
        let install = ["install", "--yes", "--quiet", "--no-install-recommends"];
        match run_command(apt_get(&install).args(packages)) {
            Ok(()) => break,
            Err(error) if attempt == ATTEMPTS => return Err(error),
            Err(_) => sleep(Duration::from_secs(5 * attempt)),
        }
        lists_are_current = false;
    }
    if Path::new("/run/systemd/system").exists() {
        for (_, service) in SERVICES.iter().filter(|(it, _)| packages.contains(it)) {
            run_command(as_root("systemctl").args(["--quiet", "disable", service]))?;
        }
    }
    Ok(())
}

/// Where the live tests find programs that are unpacked, not installed.
fn programs(path: &str) -> PathBuf {
    workspace().join("target/programs").join(path)
}

/// Unpacks packages into a directory of this name.
fn unpack(packages: &[&str], name: &str, options: &[String]) -> Result<()> {
    say(&format!(
        "apt-get download {}, to unpack beside the tests",
        packages.join(" ")
    ));
    let (downloads, partial) = (programs("packages"), programs("partial"));
    for directory in [&downloads, &partial] {
        let _ = fs::remove_dir_all(directory);
        fs::create_dir_all(directory)?;
    }
    run_command(
        Command::new("apt-get")
            .args([
                "--quiet",
                "--quiet",
                "-oAPT::Sandbox::User=root",
                "-oAcquire::Retries=3",
            ])
            .args(options)
            .arg("download")
            .args(packages)
            .current_dir(&downloads),
    )?;
    for package in fs::read_dir(&downloads)? {
        run_command(
            Command::new("dpkg-deb")
                .arg("--extract")
                .arg(package?.path())
                .arg(&partial),
        )?;
    }
    fs::remove_dir_all(&downloads)?;
    let home = programs(name);
    // One that is not whole.
    let _ = fs::remove_dir_all(&home);
    fs::rename(partial, home)?;
    Ok(())
}

/// The browser with those of its libraries that this system does not have.
fn unpack_browser() -> Result<()> {
    let simulate = ["install", "--simulate", "--no-install-recommends", BROWSER];
    let simulated = || answer(Command::new("apt-get").args(simulate));
    let known = if let Some(known) = simulated() {
        known
    } else {
        run_command(&mut apt_get(&["update", "--quiet"]))?;
        simulated().ok_or_else(|| anyhow!("apt-get knows no {BROWSER}: see its sources"))?
    };
    let installs = known.lines().filter_map(|line| line.strip_prefix("Inst "));
    let packages: Vec<_> = installs.filter_map(|it| it.split(' ').next()).collect();
    unpack(&packages, "chromium", &[])
}

/// `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)`.
fn emulator_is_ready() -> bool {
    let said = answer(Command::new(EMULATOR.0).arg("--version")).unwrap_or_default();
    let version = said.split_whitespace().nth(3).unwrap_or_default();
    let major = version
        .split('.')
        .next()
        .and_then(|it| it.parse::<u32>().ok());
    major.is_some_and(|major| major >= EMULATOR_SINCE)
}

/// Debian 12 has a newer emulator in its backports, which the machine need not have among its sources.
fn install_emulator_for_debian() -> Result<()> {
    let suites = ["bookworm", "bookworm-security", "bookworm-backports"];
    say("apt-get install qemu-system-x86 from bookworm-backports");
    let lists = workspace().join("target/vm/emulator");
    let apt = Apt::update(&lists, &suites)?;
    let install = ["install", "--yes", "--quiet", "--no-install-recommends"];
    let from = ["--no-remove", "--target-release", "bookworm-backports"];
    run_command(
        apt_get(&install)
            .args(apt.options())
            .args(from)
            .arg(EMULATOR.1),
    )
}

fn install_from_pypi(package: &str, home: &Path) -> Result<()> {
    say(&format!("pip install {package}"));
    let partial = home.with_extension("partial");
    run_command(Command::new("python3").args(["-m", "venv"]).arg(&partial))?;
    run_command(
        Command::new(partial.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--only-binary=:all:"])
            .arg(package),
    )?;
    fs::rename(partial, home)?;
    Ok(())
}

/// apt-get as root, asking nothing, with packages kept from starting the daemons they bring
/// (`SYSTEMD_OFFLINE` for systemd, `RUNLEVEL` for init scripts). Only errors are shown.
fn apt_get(arguments: &[&str]) -> Command {
    let mut command = as_root("env");
    command
        .args([
            "DEBIAN_FRONTEND=noninteractive",
            "SYSTEMD_OFFLINE=1",
            "RUNLEVEL=1",
        ])
        .args([
            "apt-get",
            "-oAcquire::Retries=3",
            "-oDPkg::Lock::Timeout=300",
        ])
        .args(arguments)
        .stdout(Stdio::null());
    command
}

/// Adds the formatter and the linter to a minimal rustup installation.
fn add_lints() -> Result<()> {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if answer(cargo(subcommand).arg("--version")).is_none() {
            say(&format!("rustup component add {component}"));
            run_command(Command::new("rustup").args(["component", "add", component]))?;
        }
    }
    Ok(())
}

/// Makes Debian's compiler one that rustup can be asked for; without rustup it is the only one.
fn link_debian_toolchain() -> Result<()> {
    let Some(toolchains) = answer(Command::new("rustup").args(["toolchain", "list"])) else {
        return Ok(());
    };
    let is_linked = |line: &str| line.split_whitespace().next() == Some(DEBIAN_TOOLCHAIN);
    if toolchains.lines().any(is_linked) {
        return Ok(());
    }
    say(&format!("rustup toolchain link {DEBIAN_TOOLCHAIN} /usr"));
    run_command(Command::new("rustup").args(["toolchain", "link", DEBIAN_TOOLCHAIN, "/usr"]))
}

fn install_linker_for_debian() -> Result<()> {
    if linker_runs() {
        return Ok(());
    }
    say("cargo install bpf-linker, about a minute");
    run_command(
        cargo("install")
            .args(["bpf-linker", "--version", BPF_LINKER, "--locked", "--force"])
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("LLVM_PREFIX", DEBIAN_LLVM),
    )
}

fn install_nightly() -> Result<()> {
    say("rustup toolchain install nightly, with the source of core");
    run_command(Command::new("rustup").args(NIGHTLY))?;
    if linker_runs() {
        return Ok(());
    }
    if answer(cargo("binstall").arg("-V")).is_none() {
        say("cargo install cargo-binstall, a few minutes");
        run_command(cargo("install").args(["cargo-binstall", "--locked"]))?;
    }
    say("cargo binstall bpf-linker");
    let linker = format!("bpf-linker@{BPF_LINKER}");
    run_command(cargo("binstall").args(["--no-confirm", &linker]))
}

const NIGHTLY: [&str; 7] = [
    "toolchain",
    "install",
    "nightly",
    "--profile",
    "minimal",
    "--component",
    "rust-src",
];

fn by_hand(error: &Error) -> Error {
    anyhow!(
        "no compiler for the kernel half, and setup could not install one ({error:#}). By hand:\n    \
         rustup {}\n    cargo install cargo-binstall --locked\n    \
         cargo binstall bpf-linker@{BPF_LINKER}\n\
         or set TCPTRACE_BPF_OBJECT to the object of a release.",
        NIGHTLY.join(" ")
    )
}

fn say(what: &str) {
    println!("setup: {what}");
}
