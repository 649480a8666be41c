//! Parse, run, print the error chain once, exit.

use std::process::ExitCode;

use tcptrace::sink::text::printable;

fn main() -> ExitCode {
    match tcptrace::run::run(std::env::args_os().collect()) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            // Nobody may be left to read it.
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("tcptrace: {}\n", printable(format!("{:#}", failure.error))).as_bytes(),
            );
            ExitCode::from(failure.status)
        }
    }
}
