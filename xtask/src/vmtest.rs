//! `cargo xtask vmtest`: tcptrace on other kernels, each in an emulated machine that has nothing
//! but the kernel, tcptrace and the live tests.

mod console;
mod initramfs;
mod kernel;
mod machine;
mod payload;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub(crate) use kernel::SERIES;
use kernel::Kernel;
use payload::{Payload, TESTS};

use crate::process;

/// How long a machine may take for everything. Emulated, all is five to twenty times as slow.
const LIMIT: Duration = Duration::from_mins(15);

/// The live tests that need only our own programs.
const LIVE: [&str; 1] = ["resets"];

/// Runs on the kernels of these series; none: all.
pub(crate) fn run(series: &[String]) -> Result<()> {
    let wanted: Vec<&'static str> = SERIES
        .into_iter()
        .filter(|it| series.is_empty() || series.iter().any(|series| series == it))
        .collect();
    let directory = process::workspace().join("target/vm");
    let kernels = kernel::get(&wanted, &directory)?;
    let payload = Payload::build(&directory.join("payload"), &LIVE)?;
    let mut failed = Vec::new();
    for kernel in &kernels {
        println!("\n== {} ({})", kernel.series, kernel.version);
        if let Err(error) = test(kernel, &payload) {
            println!("{error:#}");
            failed.push(kernel.series);
        }
    }
    if !failed.is_empty() {
        bail!("tcptrace fails on {}", failed.join(", "));
    }
    Ok(())
}

fn test(kernel: &Kernel, payload: &Payload) -> Result<()> {
    let directory = process::workspace().join("target/vm").join(kernel.series);
    let initramfs = directory.join("initramfs.cpio");
    let mut commands = String::from(
        "doctor\t/bin/tcptrace\tdoctor\nselftest\t/bin/tcptrace\tselftest\n",
    );
    for test in LIVE {
        commands += &format!("{test}\t{TESTS}/{test}\t--test-threads=1\n");
    }
    payload.write(&initramfs, kernel, &commands)?;
    let start = Instant::now();
    let console = machine::boot(&kernel.image, &initramfs, &directory.join("console.log"), LIMIT)?;
    println!("{} s", start.elapsed().as_secs());
    for section in &console.sections {
        println!("{} {:?} {:?}", section.name, section.status, section.took);
        if section.name != "dmesg" {
            println!("{}", section.lines.join("\n"));
        }
    }
    for complaint in console.complaints() {
        println!("{complaint}");
    }
    Ok(())
}
