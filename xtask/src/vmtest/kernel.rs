//! Kernels to boot: Debian's packages, unpacked and not installed, kept in `target/vm`.
//!
//! Debian's versions move weekly and its pool no longer has all that its lists name, so a series is
//! asked for and the newest package that can be had is taken.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::apt::Apt;
use crate::process;

/// The series there are, oldest first; the last is the newest kernel Debian has packaged.
pub(crate) const SERIES: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", NEWEST];
const NEWEST: &str = "newest";

/// Where those are: two stable releases back, and what is packaged beside the last.
const SUITES: [&str; 7] = [
    "bullseye",
    "bullseye-security",
    "bookworm",
    "bookworm-security",
    "trixie",
    "trixie-security",
    "trixie-backports",
];

/// The flavour for virtual machines: small, and with what tcptrace needs.
const FLAVOUR: &str = "-cloud-amd64";

/// What the tests need and these kernels have as modules. What they depend on comes with them.
const MODULES: [&str; 5] = ["tcp_diag", "veth", "nft_reject_inet", "nft_ct", "nf_tables"];

/// A kernel that can be booted.
pub(crate) struct Kernel {
    /// Debian's version, like `6.12.117-1`.
    pub(crate) version: String,
    pub(crate) image: PathBuf,
    /// In the order they have to be loaded.
    pub(crate) modules: Vec<PathBuf>,
}

/// The kernels of these series, fetched where they are not there yet.
pub(crate) fn get(
    all: &BTreeSet<&'static str>,
    cache: &Path,
) -> Result<HashMap<&'static str, Kernel>> {
    let is_missing = |series: &&&str| !cache.join(series).join("version").is_file();
    let missing: Vec<_> = all.iter().filter(is_missing).collect();
    if !missing.is_empty() {
        let archive = Archive::open(&cache.join("apt"))?;
        for series in missing {
            archive
                .fetch(series, &cache.join(series))
                .with_context(|| format!("no kernel {series}"))?;
        }
    }
    all.iter()
        .map(|series| Ok((*series, cached(&cache.join(series))?)))
        .collect()
}

fn cached(directory: &Path) -> Result<Kernel> {
    let version = fs::read_to_string(directory.join("version"))?;
    let mut modules: Vec<PathBuf> = fs::read_dir(directory.join("modules"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    modules.sort();
    Ok(Kernel {
        version: version.trim().to_owned(),
        image: directory.join("vmlinuz"),
        modules,
    })
}

/// What Debian offers.
struct Archive {
    apt: Apt,
    /// Where packages are unpacked.
    scratch: PathBuf,
    /// Newest first.
    packages: Vec<Package>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Package {
    name: String,
    version: String,
}

impl Archive {
    fn open(directory: &Path) -> Result<Self> {
        println!("vmtest: looks what kernels Debian has");
        let apt = Apt::update(directory, &SUITES)?;
        let available = process::answer(
            Command::new("apt-cache")
                .args(apt.options())
                .arg("dumpavail"),
        )
        .context("apt-cache dumpavail failed")?;
        Ok(Self {
            apt,
            scratch: directory.join("scratch"),
            packages: images(&available),
        })
    }

    /// Puts the newest kernel of a series that can be had into `directory`.
    fn fetch(&self, series: &str, directory: &Path) -> Result<()> {
        let is_wanted = |package: &&Package| {
            series == NEWEST || package.version.starts_with(&format!("{series}."))
        };
        let mut refusals = String::new();
        for package in self.packages.iter().filter(is_wanted) {
            match self.unpack(package, directory) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    println!("vmtest: {} {}: {error:#}", package.name, package.version);
                    refusals = format!(
                        "{refusals}\n    {} {}: {error:#}",
                        package.name, package.version
                    );
                }
            }
        }
        bail!("of Debian's packages none could be had:{refusals}")
    }

    fn unpack(&self, package: &Package, directory: &Path) -> Result<()> {
        println!("vmtest: fetches {} {}", package.name, package.version);
        if self.scratch.exists() {
            fs::remove_dir_all(&self.scratch)?;
        }
        let tree = self.scratch.join("tree");
        fs::create_dir_all(&tree)?;
        self.download(package, &tree)?;
        if let Some(release) = package.name.strip_prefix("linux-binary-") {
            let modules = Package {
                name: format!("linux-modules-{release}"),
                version: package.version.clone(),
            };
            self.download(&modules, &tree)?;
        }
        let files = files_below(&tree)?;
        let image = files
            .iter()
            .find(|path| name_of(path).starts_with("vmlinuz"))
            .context("it holds no kernel")?;

        let ready = self.scratch.join("ready");
        fs::create_dir_all(ready.join("modules"))?;
        fs::rename(image, ready.join("vmlinuz"))?;
        for (nth, module) in with_dependencies(&files)?.iter().enumerate() {
            let name = format!("{nth:02}-{}.ko", module_name(module));
            fs::rename(module, ready.join("modules").join(name))?;
        }
        fs::write(ready.join("version"), &package.version)?;
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        fs::rename(&ready, directory)?;
        Ok(fs::remove_dir_all(&self.scratch)?)
    }

    /// Adds what a package holds to a tree.
    fn download(&self, package: &Package, tree: &Path) -> Result<()> {
        let target = format!("{}={}", package.name, package.version);
        let output = Command::new("apt-get")
            .args(self.apt.options())
            .args(["--quiet", "--quiet", "download", &target])
            .current_dir(&self.scratch)
            .output()
            .context("cannot start apt-get")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}", said.trim());
        let archive = fs::read_dir(&self.scratch)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension() == Some(OsStr::new("deb")))
            .context("apt-get downloaded no package")?;
        process::run(
            Command::new("dpkg-deb")
                .arg("--extract")
                .args([&archive, tree]),
        )?;
        Ok(fs::remove_file(archive)?)
    }
}

/// The packages of a list, as apt-cache prints it, that hold a kernel; newest first.
fn images(available: &str) -> Vec<Package> {
    let mut packages: Vec<Package> = available.split("\n\n").filter_map(image).collect();
    packages.sort_by_key(|package| Reverse(numbers(&package.version)));
    packages.dedup();
    packages
}

/// A stanza's package when it holds a kernel of the flavour.
fn image(stanza: &str) -> Option<Package> {
    let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name));
    let name = field("Package: ")?;
    let release = name
        .strip_prefix("linux-image-")
        .or_else(|| name.strip_prefix("linux-binary-"))?;
    let is_kernel = release.starts_with(|first: char| first.is_ascii_digit())
        && release.ends_with(FLAVOUR)
        // A package that only asks for another: of a whole series, and from 6.19 on every image.
        && !field("Depends: ").is_some_and(|needs| {
            needs.contains("linux-binary-") || needs.contains("linux-image-")
        });
    is_kernel.then_some(Package {
        name: name.to_owned(),
        version: field("Version: ")?.to_owned(),
    })
}

/// The numbers in a version, by which it is compared.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|it: char| !it.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

/// [`MODULES`] among the files of a package, each after those it needs, unpacked.
fn with_dependencies(files: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let by_name: HashMap<String, &PathBuf> = files
        .iter()
        .filter(|path| name_of(path).contains(".ko"))
        .map(|path| (module_name(path), path))
        .collect();
    let mut ordered = Vec::new();
    for module in MODULES {
        add(module, &by_name, &mut ordered)?;
    }
    Ok(ordered)
}

fn add(name: &str, files: &HashMap<String, &PathBuf>, ordered: &mut Vec<PathBuf>) -> Result<()> {
    if ordered.iter().any(|path| module_name(path) == name) {
        return Ok(());
    }
    let path = files
        .get(name)
        .with_context(|| format!("it has no module {name}"))?;
    let path = if path.extension() == Some(OsStr::new("xz")) {
        process::run(Command::new("xz").arg("--decompress").arg(path))?;
        path.with_extension("")
    } else {
        PathBuf::clone(path)
    };
    for needed in dependencies(&fs::read(&path)?) {
        add(&needed, files, ordered)?;
    }
    ordered.push(path);
    Ok(())
}

/// What a module says it depends on: `depends=a,b` between zero bytes.
fn dependencies(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"depends=";
    let field = module
        .split(|byte| *byte == 0)
        .find_map(|text| text.strip_prefix(FIELD));
    String::from_utf8_lossy(field.unwrap_or_default())
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or_default()
}

/// `tcp_diag` for `…/tcp_diag.ko.xz`.
fn module_name(path: &Path) -> String {
    let name = name_of(path).split('.').next().unwrap_or_default();
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packages_with_a_kernel_come_newest_first() {
        let available = "Package: linux-image-6.12.9+deb13-cloud-amd64\nVersion: 6.12.9-1\n\n\
             Package: linux-image-6.12.117+deb13-cloud-amd64\nVersion: 6.12.117-1\n\n\
             Package: linux-image-6.12.117+deb13-cloud-amd64-unsigned\nVersion: 6.12.117-1\n\n\
             Package: linux-image-6.12.117+deb13-amd64\nVersion: 6.12.117-1\n\n\
             Package: linux-image-cloud-amd64\nVersion: 6.12.117-1\n\n\
             Package: linux-image-7.2.12+deb13-cloud-amd64\nVersion: 7.2.12-1~bpo13+1\n\
             Depends: linux-binary-7.2.12+deb13-cloud-amd64 (= 7.2.12-1~bpo13+1)\n\n\
             Package: linux-binary-7.2.12+deb13-cloud-amd64\nVersion: 7.2.12-1~bpo13+1\n";
        let found = images(available);
        let versions: Vec<&str> = found.iter().map(|it| it.version.as_str()).collect();
        assert_eq!(versions, ["7.2.12-1~bpo13+1", "6.12.117-1", "6.12.9-1"]);
        assert_eq!(found[0].name, "linux-binary-7.2.12+deb13-cloud-amd64");
    }

    #[test]
    fn a_module_names_what_it_depends_on() {
        let module = b"\x7fELF\0license=GPL\0depends=inet_diag,nf-tables\0name=tcp_diag\0";
        assert_eq!(dependencies(module), ["inet_diag", "nf_tables"]);
        assert_eq!(dependencies(b"\0depends=\0"), [""; 0]);
    }
}
