//! The manual pages and the shell completions, made from the command line itself.

use std::io;

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::cli::Cli;

/// What the exit statuses of [`crate::run::status`] mean.
const EXIT_STATUS: [(&str, &str); 8] = [
    ("0", "It ended as asked."),
    ("1", "It failed."),
    ("2", "Wrong usage."),
    (
        "3",
        "A privilege is missing. It is named, with the command that grants it.",
    ),
    ("4", "This kernel lacks what was asked for, which is named."),
    ("5", "Events were lost, under --strict."),
    ("6", "tcptrace sockets found what --fail-on names."),
    ("130", "A second SIGINT or SIGTERM."),
];

/// The examples of the first page: a command, and what it is for. `tests/tests/examples.rs` runs them.
pub const EXAMPLES: [(&str, &str); 8] = [
    (
        "sudo tcptrace --pid 1234",
        "Trace the sockets of a process, and their other ends on this host, until it ends.",
    ),
    (
        "sudo tcptrace --pid 1234 --children --follow",
        "Trace it and the processes it starts, and go on when it is started again.",
    ),
    (
        "sudo tcptrace --cgroup system.slice/nginx.service --wait",
        "Trace a service from its start.",
    ),
    (
        "sudo tcptrace --port 443 --errno ECONNRESET,EPIPE --duration 5m",
        "Print the failures with these errors, with what caused them.",
    ),
    (
        "sudo tcptrace -o json -- curl http://127.0.0.1:1/",
        "Trace a command, and write records for other programs.",
    ),
    (
        "sudo tcptrace --output-file incident.json --rotate-size 100MiB",
        "Keep a recording.",
    ),
    (
        "tcptrace replay --event finding incident.json",
        "Explain what it holds once more.",
    ),
    (
        "tcptrace explain broken pipe",
        "Say what an error of a program's log means.",
    ),
];

/// The page of tcptrace, or of one of its commands, in roff; `None` when there is no such command.
#[must_use]
pub fn page(command: Option<&str>) -> Option<String> {
    let mut tcptrace = Cli::command();
    tcptrace.build();
    let described = match command {
        None => &tcptrace,
        Some(name) => tcptrace.find_subcommand(name)?,
    };
    let man = Man::new(described.clone());
    Some(text(|page| {
        if command.is_some() {
            return man.render(page);
        }
        man.render_title(page)?;
        man.render_name_section(page)?;
        man.render_synopsis_section(page)?;
        man.render_description_section(page)?;
        man.render_options_section(page)?;
        man.render_subcommands_section(page)?;
        exit_status().to_writer(page)?;
        examples().to_writer(page)?;
        man.render_version_section(page)
    }))
}

/// What completes the command line in this shell.
#[must_use]
pub fn completions(shell: Shell) -> String {
    text(|script| {
        clap_complete::generate(shell, &mut Cli::command(), "tcptrace", script);
        Ok(())
    })
}

fn text(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
    let mut bytes = vec![];
    write(&mut bytes).expect("memory takes every write");
    String::from_utf8(bytes).expect("the command line is text")
}

fn exit_status() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (status, meaning) in EXIT_STATUS {
        roff.control("TP", []);
        roff.text([bold(status)]);
        roff.text([roman(meaning)]);
    }
    roff.control("PP", []);
    roff.text([roman(
        "tcptrace -- CMD has the status of CMD unless that is 0.",
    )]);
    roff
}

fn examples() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXAMPLES"]);
    for (command, what) in EXAMPLES {
        roff.control("TP", []);
        roff.text([bold(command)]);
        roff.text([roman(what)]);
    }
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_the_first_page_names_it() {
        let first = page(None).expect("a page");
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let page = page(Some(name)).expect("a page");
            assert!(page.contains(&format!("tcptrace\\-{name}")), "{page}");
            assert!(first.contains(&format!("tcptrace\\-{name}(1)")), "{name}");
        }
        assert_eq!(page(Some("nothing")), None);
    }

    #[test]
    fn the_first_page_has_every_option_and_every_exit_status() {
        let page = page(None).expect("a page");
        let command = Cli::command();
        let options = command.get_arguments().filter_map(|it| it.get_long());
        for option in options {
            let option = option.replace('-', "\\-");
            assert!(page.contains(&format!("\\-\\-{option}")), "{option}");
        }
        for (status, _) in EXIT_STATUS {
            assert!(page.contains(&format!("\\fB{status}\\fR")), "{status}");
        }
    }

    #[test]
    fn every_page_has_the_options_of_its_command() {
        for command in Cli::command().get_subcommands() {
            let page = page(Some(command.get_name())).expect("a page");
            for option in shown(command) {
                let option = format!("\\-\\-{}", option.replace('-', "\\-"));
                assert!(page.contains(&option), "{}: {option}", command.get_name());
            }
        }
    }

    #[test]
    fn every_shell_completes_the_commands_and_their_options() {
        let tcptrace = Cli::command();
        let commands = || std::iter::once(&tcptrace).chain(tcptrace.get_subcommands());
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completions(shell);
            for command in commands() {
                let name = command.get_name();
                assert!(script.contains(name), "{shell} lacks {name}");
                for option in shown(command) {
                    assert!(script.contains(option), "{shell} lacks {name} --{option}");
                }
            }
        }
    }

    /// The options a user is told of.
    fn shown(command: &clap::Command) -> impl Iterator<Item = &str> {
        let shown = command.get_arguments().filter(|it| !it.is_hide_set());
        shown.filter_map(clap::Arg::get_long)
    }
}
