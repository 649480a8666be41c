//! Compiles the kernel half into `$OUT_DIR/tcptrace-ebpf`, which the agent embeds, and lists the
//! pages of `tcptrace explain`.
//!
//! The published package has the object and not its source. Elsewhere it takes a BPF compiler, which
//! is not part of a Rust installation, so this looks for one and takes the first it finds: an object
//! that was built before (`TCPTRACE_BPF_OBJECT`), a nightly toolchain with the
//! source of `core`, or a compiler that has `core` for BPF prebuilt (Debian's, under the name
//! `cargo xtask setup` gives it). `TCPTRACE_BPF_BUILD` tells the agent which it was.
//!
//! Lint and documentation builds need no BPF compiler: they embed an empty object.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use aya_build::{Package, Toolchain};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

const OBJECT: &str = "tcptrace-ebpf";
const SOURCE: &str = "../tcptrace-ebpf";
/// The object in the published package, where `cargo xtask dist` puts it.
const PUBLISHED: &str = "tcptrace-ebpf.o";
/// Where the pages of `tcptrace explain` are, a directory for each of its topics.
const PAGES: &str = "src/explain";
/// Every variable that decides which way is taken. Cargo runs this script again when one changes,
/// so an empty object made for clippy cannot stay behind for a build.
const DECIDING: [&str; 4] = [
    "TCPTRACE_BPF_OBJECT",
    "RUSTC_WORKSPACE_WRAPPER",
    "AYA_BUILD_SKIP",
    "DOCS_RS",
];

fn main() -> Result<()> {
    for variable in DECIDING {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // `build_ebpf` watches the kernel half; these are what it is made from besides.
    for path in [
        "build.rs",
        PAGES,
        "../tcptrace-common",
        "../Cargo.toml",
        "../Cargo.lock",
    ] {
        // The published package has not all of them, and what is not there always counts as changed.
        if Path::new(path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    list_pages(&out.join("pages.rs"))?;
    let object = out.join(OBJECT);

    let way = if let Some(reason) = object_not_needed() {
        fs::write(&object, [])?;
        if reason == "AYA_BUILD_SKIP" {
            println!("cargo:warning=AYA_BUILD_SKIP leaves out the kernel half: this cannot trace");
        }
        format!("none ({reason})")
    } else if let Some(prebuilt) = env::var_os("TCPTRACE_BPF_OBJECT") {
        copy(Path::new(&prebuilt), &object).context("TCPTRACE_BPF_OBJECT")?;
        "TCPTRACE_BPF_OBJECT".to_owned()
    } else if !Path::new(SOURCE).is_dir() {
        copy(Path::new(PUBLISHED), &object).context(
            "neither the kernel half nor its source is in this package; set TCPTRACE_BPF_OBJECT to \
             the object of the same release",
        )?;
        "published".to_owned()
    } else {
        compile(&object)?
    };
    println!("cargo:rustc-env=TCPTRACE_BPF_BUILD={way}");
    Ok(())
}

/// Writes the pages by topic, in the order of their names: a file that is added or taken away needs
/// no other change.
fn list_pages(list: &Path) -> Result<()> {
    let mut text = "&[\n".to_owned();
    for topic in sorted(Path::new(PAGES))?.iter().filter(|it| it.is_dir()) {
        writeln!(text, "    ({:?}, &[", name(topic)?)?;
        let is_page = |it: &&PathBuf| it.extension() == Some(OsStr::new("md"));
        for page in sorted(topic)?.iter().filter(is_page) {
            let path = page.canonicalize()?;
            let path = path.to_str().context("a path to include is UTF-8")?;
            writeln!(text, "        ({:?}, include_str!({path:?})),", name(page)?)?;
        }
        text += "    ]),\n";
    }
    fs::write(list, text + "]\n")?;
    Ok(())
}

/// The last part of a path, without the extension.
fn name(path: &Path) -> Result<&str> {
    let name = path.file_stem().and_then(OsStr::to_str);
    name.with_context(|| format!("{} has no name in UTF-8", path.display()))
}

fn sorted(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)
        .with_context(|| format!("cannot list {}", directory.display()))?
        .map(|entry| Ok(entry?.path()));
    let mut paths = entries.collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Why nothing will run what is built now, if so.
fn object_not_needed() -> Option<&'static str> {
    let wrapper = env::var_os("RUSTC_WORKSPACE_WRAPPER").map(PathBuf::from);
    if wrapper.is_some_and(|wrapper| wrapper.file_stem().is_some_and(|it| it == "clippy-driver")) {
        Some("clippy")
    } else if env::var_os("DOCS_RS").is_some() {
        Some("documentation")
    } else if env::var_os("AYA_BUILD_SKIP").is_some_and(|it| it == "1" || it == "true") {
        Some("AYA_BUILD_SKIP")
    } else {
        None
    }
}

fn copy(prebuilt: &Path, object: &Path) -> Result<()> {
    println!("cargo:rerun-if-changed={}", prebuilt.display());
    let bytes =
        fs::read(prebuilt).with_context(|| format!("cannot read {}", prebuilt.display()))?;
    ensure!(
        bytes.starts_with(b"\x7fELF"),
        "{} is not an ELF object",
        prebuilt.display()
    );
    fs::write(object, bytes)?;
    Ok(())
}

/// Compiles the kernel half with the first compiler that can, and names it.
fn compile(object: &Path) -> Result<String> {
    let compiler = Compiler::find()?;
    compiler.prepare_environment()?;
    // What an earlier run left must not pass for what this run makes.
    fs::remove_file(object).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    let package = Package {
        name: OBJECT,
        root_dir: SOURCE,
        ..Package::default()
    };
    aya_build::build_ebpf([package], Toolchain::Custom(compiler.toolchain)).with_context(|| {
        format!(
            "the kernel half does not build with {}",
            compiler.description
        )
    })?;
    let made = fs::read(object)
        .with_context(|| format!("the build of {OBJECT} left no {}", object.display()))?;
    let stripped = without_debug_sections(&made).context("the kernel half cannot be stripped")?;
    fs::write(object, stripped)?;
    Ok(compiler.description)
}

/// The object without what only debuggers and linkers read: five sixths of it, and each start would go
/// through all its relocations. What the kernel is told of types and lines, in `.BTF` and `.BTF.ext`, has
/// its numbers already.
fn without_debug_sections(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read64(object)?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        let prefixes: [&[u8]; 3] = [b".debug", b".rel.debug", b".rel.BTF"];
        section.delete = prefixes.iter().any(|prefix| name.starts_with(prefix));
    }
    builder.delete_orphans();
    // LLVM has the names of sections among those of symbols, which `object` does not.
    let names = builder.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}

/// A rustc that can make BPF code.
struct Compiler {
    /// The name rustup knows it by; without rustup the compiler on `PATH` is asked instead.
    toolchain: &'static str,
    description: String,
    llvm_major: String,
    core_is_prebuilt: bool,
}

impl Compiler {
    fn find() -> Result<Self> {
        let mut tried = String::new();
        let candidates: [fn() -> Result<Self>; 2] = [Self::nightly, Self::prebuilt];
        for candidate in candidates {
            match candidate().and_then(Self::with_linker) {
                Ok(compiler) => return Ok(compiler),
                Err(error) => writeln!(tried, "  - {error:#}")?,
            }
        }
        bail!(
            "no compiler for the kernel half (BPF):\n{tried}\
             Run `cargo xtask setup`, or set TCPTRACE_BPF_OBJECT to an object that was built before."
        )
    }

    /// A nightly compiler, which builds `core` from source.
    fn nightly() -> Result<Self> {
        let rustc = Rustc::ask("nightly")?;
        let core = rustc.sysroot.join("lib/rustlib/src/rust/library/core");
        ensure!(
            rustc.release.contains("nightly"),
            "rustc {} is not a nightly",
            rustc.release
        );
        ensure!(
            core.is_dir(),
            "rustc {} has no rust-src component",
            rustc.release
        );
        Ok(Self {
            toolchain: "nightly",
            description: format!("rustc {}, core built from source", rustc.release),
            llvm_major: rustc.llvm_major,
            core_is_prebuilt: false,
        })
    }

    /// A compiler of any channel that brings `core` for BPF, as Debian packages it.
    fn prebuilt() -> Result<Self> {
        let rustc = Rustc::ask("bpf-debian")?;
        let big_endian = env::var("CARGO_CFG_TARGET_ENDIAN").is_ok_and(|endian| endian == "big");
        let target = if big_endian {
            "bpfeb-unknown-none"
        } else {
            "bpfel-unknown-none"
        };
        let libraries = rustc.sysroot.join("lib/rustlib").join(target).join("lib");
        let has_core = fs::read_dir(&libraries)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"));
        ensure!(has_core, "rustc {} has no core for {target}", rustc.release);
        Ok(Self {
            toolchain: "bpf-debian",
            description: format!("rustc {}, core prebuilt", rustc.release),
            llvm_major: rustc.llvm_major,
            core_is_prebuilt: true,
        })
    }

    /// This compiler, if the linker it needs is installed.
    fn with_linker(self) -> Result<Self> {
        let version = Command::new("bpf-linker")
            .arg("--version")
            .env("PATH", self.path()?)
            .output();
        let runs = version.is_ok_and(|output| output.status.success());
        ensure!(
            runs,
            "{}: bpf-linker is not installed or does not run",
            self.description
        );
        Ok(self)
    }

    /// `PATH` with the LLVM of this compiler first, because bpf-linker must read its bitcode, and
    /// with cargo's own directory last, which rustup's cargo adds and a packaged cargo does not.
    fn path(&self) -> Result<OsString> {
        let llvm = PathBuf::from(format!("/usr/lib/llvm-{}/bin", self.llvm_major));
        let cargo_home = env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| env::home_dir().map(|home| home.join(".cargo")));
        let inherited = env::var_os("PATH").unwrap_or_default();
        let directories = llvm
            .is_dir()
            .then_some(llvm)
            .into_iter()
            .chain(env::split_paths(&inherited))
            .chain(cargo_home.map(|home| home.join("bin")));
        Ok(env::join_paths(directories)?)
    }

    /// Sets what the cargo that `build_ebpf` starts has to find in its environment.
    fn prepare_environment(&self) -> Result<()> {
        // Progress of that cargo would come out as warnings of this package.
        set_variable("CARGO_TERM_QUIET", "true");
        set_variable("PATH", &self.path()?);
        if self.core_is_prebuilt {
            // aya-ebpf uses unstable features. Only the named crate gets them; the value "1" would
            // make aya-build build core as well, for which a stable compiler has no source.
            set_variable("RUSTC_BOOTSTRAP", "aya_ebpf");
        }
        Ok(())
    }
}

/// What a compiler says about itself.
struct Rustc {
    release: String,
    llvm_major: String,
    sysroot: PathBuf,
}

impl Rustc {
    /// Asks the compiler of a rustup toolchain, or the one on `PATH` where there is no rustup:
    /// the same rule `build_ebpf` follows.
    fn ask(toolchain: &str) -> Result<Self> {
        let version = answer(toolchain, "-vV")?;
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .with_context(|| format!("rustc of {toolchain} does not say its {name}"))
        };
        let llvm = field("LLVM version: ")?;
        Ok(Self {
            release: field("release: ")?.to_owned(),
            llvm_major: llvm.split('.').next().unwrap_or(llvm).to_owned(),
            sysroot: answer(toolchain, "--print=sysroot")?.trim_end().into(),
        })
    }
}

fn answer(toolchain: &str, question: &str) -> Result<String> {
    let rustup_is_there = Command::new("rustup").arg("--version").output().is_ok();
    let mut command = if rustup_is_there {
        let mut command = Command::new("rustup");
        command.args(["run", toolchain, "rustc"]);
        command
    } else {
        Command::new("rustc")
    };
    // A look must not download a toolchain.
    let output = command
        .env("RUSTUP_AUTO_INSTALL", "0")
        .arg(question)
        .output();
    let output = output.context("rustc does not run")?;
    ensure!(
        output.status.success(),
        "rustup has no toolchain named {toolchain}"
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn set_variable(name: &str, value: impl AsRef<OsStr>) {
    // SAFETY: this program has one thread until `build_ebpf`, which starts its own later.
    unsafe { env::set_var(name, value) };
}
