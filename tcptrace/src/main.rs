//! Parse, run, print the error chain once, exit.

use std::process::ExitCode;

use tcptrace::sink::Speaker;

fn main() -> ExitCode {
    match tcptrace::run::run(std::env::args_os().collect()) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            // Nobody may be left to read it, or who is there may read nothing.
            if let Ok(speaker) = Speaker::start(false, || Ok(())) {
                speaker.messages().warn(format_args!("{:#}", failure.error));
            }
            ExitCode::from(failure.status)
        }
    }
}
