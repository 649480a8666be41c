//! The command line.

mod values;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::config::Selection;
use crate::config::fail_on::Check;
use crate::event::{Errno, Timestamp};
use crate::kernel::plan::Way;
use crate::metrics;
use crate::sink::Destination;
use values::{duration, errno, moment, network, pid, port, size, speed, user};

/// Which process, which flow and why, for every TCP socket error on this host.
///
/// Without a command it traces: one line for each reset, failed call, full queue, leaked CLOSE_WAIT
/// and descriptor that ran out, with the process it belongs to.
#[derive(Debug, Parser)]
#[command(
    name = "tcptrace",
    version,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do instead of tracing.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to trace.
    #[command(flatten)]
    pub trace: Trace,
}

/// What tcptrace does besides tracing.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what this kernel and these privileges offer, and how to mend what is missing.
    #[command(visible_alias = "check")]
    Doctor {
        /// Columns for a person, or one JSON document.
        #[arg(short, long, value_enum, default_value_t = ReportFormat::Text)]
        output: ReportFormat,
        /// Show the host, and every way to see each signal, why it is not taken and what it leaves
        /// out.
        #[arg(short, long)]
        verbose: bool,
        /// Take a way of attaching out of the plan.
        #[arg(long, value_name = "WAY", value_parser = Way::NAMES)]
        without: Vec<String>,
    },
    /// Look once at all TCP sockets: what is wrong now, by listener, process, service and state.
    ///
    /// What is wrong comes first and is marked with `!`: full accept queues, connections in CLOSE_WAIT for
    /// more than a second, processes that have 90 % of their descriptors open, local ports that run out.
    ///
    /// It needs no eBPF. Without privileges it does not see who holds the sockets of others, nor other
    /// network namespaces, and says so on standard error.
    Sockets(Sockets),
    /// Show processes, listeners and findings on a screen that is kept up to date.
    Top(Box<Top>),
    /// Provoke real failures in a private network namespace and say which were seen and named.
    Selftest(Selftest),
    /// Run recordings (what `-o json` and `--output-file` write) through the analysis once more.
    Replay(Replay),
    /// Write one self-contained page of what recordings hold, for the ticket of an incident.
    Report(Report),
    /// Say what a cause, an error, a state or the kernel's reason for a RST means, how to confirm it
    /// and how to fix it.
    Explain(Explain),
    /// Print the JSON Schema of the records.
    Schema,
    /// Print the manual page of tcptrace, or of one of its commands, for man(1).
    Man {
        /// The command; without it tcptrace itself.
        #[arg(value_name = "COMMAND")]
        command: Option<String>,
    },
    /// Print what completes this command line in a shell.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// What to show on the screen. It takes the filters of a trace, and `--output-file`, `--export` and
/// `--metrics` beside the screen.
#[derive(Debug, Args)]
#[command(mut_args(|arg| if Top::HAS_NOT.contains(&arg.get_id().as_str()) { arg.hide(true) } else { arg }))]
pub struct Top {
    /// Show these recordings (what `-o json` and `--output-file` write) at the pace they were made;
    /// `p` stops the clock.
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = REPLAY, conflicts_with_all = Top::LIVE)]
    pub replay: Vec<PathBuf>,
    /// Show them so many times as fast.
    #[arg(long, value_name = "TIMES", default_value = "1", value_parser = speed, requires = "replay", help_heading = REPLAY)]
    pub speed: f64,
    /// How to trace.
    #[command(flatten)]
    pub trace: Trace,
}

impl Top {
    /// Options of a trace that say nothing to a screen.
    const HAS_NOT: [&str; 11] = [
        "output",
        "stack",
        "rate_limit",
        "no_header",
        "quiet",
        "verbose",
        "count",
        "strict",
        "config",
        "check_config",
        "cmd",
    ];
    /// Options that say nothing to a recording.
    const LIVE: [&str; 27] = [
        "pid",
        "children",
        "follow",
        "wait",
        "comm",
        "uid",
        "port",
        "local_port",
        "peer_port",
        "addr",
        "peer",
        "netns",
        "cgroup",
        "ipv4",
        "ipv6",
        "close_wait_after",
        "last_user",
        "output_file",
        "rotate_size",
        "export",
        "tls_ca",
        "metrics",
        "duration",
        "ring_buffer",
        "max_sockets",
        "without",
        "rotate_keep",
    ];

    /// Which of the options that say nothing to a screen were given.
    #[must_use]
    pub fn misplaced(&self) -> Option<&'static str> {
        let trace = &self.trace;
        let given = [
            (trace.output != Output::Columns, "--output"),
            (trace.stack, "--stack"),
            (trace.no_header, "--no-header"),
            (trace.quiet, "--quiet"),
            (trace.verbose, "--verbose"),
            (trace.count.is_some(), "--count"),
            (trace.strict, "--strict"),
            (trace.rate_limit.is_some(), "--rate-limit"),
            (trace.config.is_some(), "--config"),
            (!trace.cmd.is_empty(), "-- CMD"),
        ];
        let first = given.into_iter().find(|(given, _)| *given);
        first.map(|(_, option)| option)
    }
}

/// What to explain.
#[derive(Debug, Args)]
pub struct Explain {
    /// What to explain, as tcptrace, `ss`, the kernel or a program writes it; without it, a list.
    ///
    /// For example: close-wait-leak, EPIPE, 32, broken pipe, CLOSE-WAIT, TCP-STATE, or a line of a
    /// program's log that holds the error.
    #[arg(value_name = "NAME", allow_negative_numbers = true)]
    pub name: Vec<String>,
    /// When to use colour.
    #[arg(long, value_enum, default_value_t = ColorChoice::Auto)]
    pub color: ColorChoice,
}

/// Recordings, and what of them.
#[derive(Debug, Args)]
pub struct Recorded {
    /// Recordings: of one run, of its rotated files, or of several hosts; `-` is standard input.
    ///
    /// Their events are judged and printed in the order of their time, those of all files together. The
    /// findings they carry are made anew.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Only what happened at this time or later: `2026-11-20T11:10:03Z`, or local time without `Z`.
    #[arg(long, value_name = "TIME", value_parser = moment, help_heading = WHAT)]
    pub from: Option<Timestamp>,
    /// Only what happened until this time.
    #[arg(long, value_name = "TIME", value_parser = moment, help_heading = WHAT)]
    pub to: Option<Timestamp>,
}

/// What to replay.
#[derive(Debug, Args)]
pub struct Replay {
    /// What to read.
    #[command(flatten)]
    pub recorded: Recorded,
    /// Events to print, by name or first word; `+NAME` adds to the usual ones, `all` is all.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        help_heading = WHAT,
        long_help = Selection::help()
    )]
    pub event: Vec<String>,
    /// Print only failures with these errors, and what caused them.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = errno, help_heading = WHAT)]
    pub errno: Vec<Errno>,
    /// How to write events to standard output.
    #[arg(short, long, value_enum, default_value_t = Output::Columns, help_heading = OUTPUT)]
    pub output: Output,
    /// Say nothing on standard error but errors, and lines that could not be read.
    #[arg(long, help_heading = OUTPUT)]
    pub quiet: bool,
    /// When to use colour.
    #[arg(long, value_enum, default_value_t = ColorChoice::Auto, help_heading = OUTPUT)]
    pub color: ColorChoice,
    /// Leave out the names of the columns.
    #[arg(long, help_heading = OUTPUT)]
    pub no_header: bool,
    /// Go on as the files grow, also where they are rotated, until SIGINT or SIGTERM.
    #[arg(short, long, help_heading = END)]
    pub follow: bool,
    /// End after this many events.
    #[arg(short, long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..), help_heading = END)]
    pub count: Option<u64>,
}

/// What to report, and how.
#[derive(Debug, Args)]
pub struct Report {
    /// What to read.
    #[command(flatten)]
    pub recorded: Recorded,
    /// Make a new file, which only its owner may read; `-` is standard output. A file that is there is
    /// left alone.
    #[arg(short, long, value_name = "PATH", default_value = "-", help_heading = OUTPUT)]
    pub output: PathBuf,
    /// Write Markdown, for pasting into a ticket, instead of a page for a browser.
    #[arg(long, help_heading = OUTPUT)]
    pub markdown: bool,
    /// Say nothing on standard error but errors, and lines that could not be read.
    #[arg(long, help_heading = OUTPUT)]
    pub quiet: bool,
}

/// How to prove this kernel.
#[derive(Debug, Args)]
pub struct Selftest {
    /// A table for a person, or one JSON document.
    #[arg(short, long, value_enum, default_value_t = ReportFormat::Text)]
    pub output: ReportFormat,
    /// Provoke only these failures.
    #[arg(value_name = "FAILURE")]
    pub only: Vec<String>,
    /// Show what tcptrace printed for each failure.
    #[arg(long)]
    pub stories: bool,
    /// Provoke also what needs a setting of the whole host changed for a moment.
    #[arg(long)]
    pub allow_host_changes: bool,
    /// Take a way of attaching out of the tracer's plan.
    #[arg(long, value_name = "WAY", value_parser = Way::NAMES)]
    pub without: Vec<String>,
    /// Play this part in a failure: for the selftest itself.
    #[arg(long, value_name = "PART", hide = true)]
    pub act: Option<String>,
}

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For a person.
    #[value(alias = "columns")]
    Text,
    /// One JSON document.
    Json,
}

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// One line an event, for a person.
    Columns,
    /// JSON Lines in the OpenTelemetry log shape.
    Json,
    /// The same, spread over lines.
    Jsonpretty,
    /// JSON as OTLP's files have it, a request with one record a line.
    OtlpJson,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Which sockets are meant. An option may be repeated; its values are separated by commas where a name
/// or a path that holds one is out of the question.
#[derive(Args, Clone, Debug, Default)]
pub struct SocketFilter {
    /// Only sockets of this process, and their other ends on this host.
    #[arg(short, long, value_name = "PID,...", value_delimiter = ',', value_parser = pid, help_heading = FILTER)]
    pub pid: Vec<u32>,
    /// Only sockets of processes with this command name (its first 15 bytes).
    #[arg(long, value_name = "NAME", help_heading = FILTER)]
    pub comm: Vec<String>,
    /// Only sockets of this user, by number or name.
    #[arg(long, value_name = "USER,...", value_delimiter = ',', value_parser = user, help_heading = FILTER)]
    pub uid: Vec<u32>,
    /// Only connections with this port at either end.
    #[arg(long, value_name = "PORT,...", value_delimiter = ',', value_parser = port, help_heading = FILTER)]
    pub port: Vec<u16>,
    /// Only connections with this port at this end.
    #[arg(short = 'L', long, value_name = "PORT,...", value_delimiter = ',', value_parser = port, help_heading = FILTER)]
    pub local_port: Vec<u16>,
    /// Only connections with this port at the other end.
    #[arg(short = 'D', long, value_name = "PORT,...", value_delimiter = ',', value_parser = port, help_heading = FILTER)]
    pub peer_port: Vec<u16>,
    /// Only connections with an address in this network at either end.
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', value_parser = network, help_heading = FILTER)]
    pub addr: Vec<IpNet>,
    /// Only connections whose other end is in this network.
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', value_parser = network, help_heading = FILTER)]
    pub peer: Vec<IpNet>,
    /// Only this network namespace: an inode number, a pid, a path or a name in /run/netns.
    #[arg(long, value_name = "NETNS", help_heading = FILTER)]
    pub netns: Vec<String>,
    /// Only processes in this cgroup (v2) or below it.
    #[arg(long, value_name = "PATH", help_heading = FILTER)]
    pub cgroup: Vec<String>,
    /// Only IPv4 traffic.
    #[arg(short = '4', long, conflicts_with = "ipv6", help_heading = FILTER)]
    pub ipv4: bool,
    /// Only IPv6 traffic.
    #[arg(short = '6', long, help_heading = FILTER)]
    pub ipv6: bool,
}

/// What to list.
#[derive(Args, Debug)]
#[command(mut_arg("pid", |pid| pid.help("Only sockets of this process, not of its children")))]
pub struct Sockets {
    /// Which sockets.
    #[command(flatten)]
    pub filter: SocketFilter,

    /// List each socket too, and every row of the tables.
    #[arg(short, long, help_heading = LOOK)]
    pub all: bool,
    /// Exit with status 6 when one of these holds, e.g. `close-wait:100,overflow,fd:90%`.
    ///
    /// `close-wait:N`, so many connections in CLOSE_WAIT (1 where no number is given);
    /// `overflow:N`, so many listeners whose accept queue is full (1);
    /// `queue:P%`, an accept queue at so much of its limit (90 %);
    /// `fd:P%`, a process with so much of its descriptors open (90 %).
    /// What held is said on standard error.
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = LOOK)]
    pub fail_on: Vec<Check>,

    /// How to write what is found.
    #[arg(short, long, value_enum, default_value_t = Output::Columns, help_heading = OUTPUT)]
    pub output: Output,
    /// Say nothing on standard error but errors, and what --fail-on found.
    #[arg(long, help_heading = OUTPUT)]
    pub quiet: bool,
    /// When to use colour.
    #[arg(long, value_enum, default_value_t = ColorChoice::Auto, help_heading = OUTPUT)]
    pub color: ColorChoice,
}

/// How to trace.
#[derive(Args, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command line"
)]
pub struct Trace {
    /// Which sockets.
    #[command(flatten)]
    pub filter: SocketFilter,
    /// Trace the children of the processes of --pid too.
    #[arg(long, help_heading = FILTER)]
    pub children: bool,
    /// When a process of --pid ends, go on with the one that is started in its place.
    ///
    /// That is one in the same service of systemd, pod or container, with the same program or command line;
    /// elsewhere one with the same program, command line and user. Several that are alike are all followed. Who
    /// is followed, and why, is told. The trace ends when it is told to.
    #[arg(long, help_heading = FILTER)]
    pub follow: bool,
    /// Wait for a process or cgroup that is not there yet. Names and users need no waiting for: whoever has
    /// them is traced.
    ///
    /// A process is waited for by its number. Who does not know it filters by --comm, or by the cgroup of the
    /// service: system.slice/NAME.service.
    #[arg(long, help_heading = FILTER)]
    pub wait: bool,

    /// Events to print, by name or first word; `+NAME` adds to the usual ones, `all` is all.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        help_heading = WHAT,
        long_help = Selection::help()
    )]
    pub event: Vec<String>,
    /// Print only failures with these errors, and what caused them.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = errno, help_heading = WHAT)]
    pub errno: Vec<Errno>,
    /// How long a connection may stay in CLOSE_WAIT before it is shown; 0 shows every entry.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration, help_heading = WHAT)]
    pub close_wait_after: Duration,
    /// Name the last user of a socket instead of the last one seen accepting, closing or failing.
    /// Costs a table look-up on every send and receive of the host.
    #[arg(long, help_heading = WHAT)]
    pub last_user: bool,
    /// Show the line of code: the stack of the program, and of the kernel, where a call of a process
    /// closed, reset or failed. Since Linux 5.15.
    ///
    /// Names and lines come from the program's own file and its debug information. Each such event copies
    /// up to 16 KiB of the program's stack; no other event costs more.
    #[arg(long, help_heading = WHAT)]
    pub stack: bool,

    /// How to write events to standard output.
    #[arg(short, long, value_enum, default_value_t = Output::Columns, help_heading = OUTPUT)]
    pub output: Output,
    /// Write JSON Lines to this file as well. SIGHUP opens it anew.
    ///
    /// In another user's directory root keeps the right to do so while it traces.
    #[arg(long, value_name = "PATH", help_heading = OUTPUT)]
    pub output_file: Option<PathBuf>,
    /// Move the output file aside when it reaches this size, e.g. 100MiB.
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "output_file", help_heading = OUTPUT)]
    pub rotate_size: Option<u64>,
    /// Files to keep that were moved aside.
    #[arg(long, value_name = "COUNT", default_value_t = 5, requires = "rotate_size", help_heading = OUTPUT)]
    pub rotate_keep: u32,
    /// Send each record to a log pipeline as well: `otlp=grpc://HOST:PORT`, `otlp=http://HOST:PORT`,
    /// `journald`, `syslog=tcp://HOST:PORT`, `syslog=udp://HOST:PORT`, `syslog=unix:/PATH`, or as JSON Lines
    /// `tcp://HOST:PORT`, `unix:/PATH`; over TLS `grpcs`, `https` and `tls`. Where it was built in, to Kafka:
    /// `kafka=HOST:PORT/TOPIC`.
    ///
    /// May be given more than once. What cannot be delivered waits, up to 65536 records or 16 MiB for
    /// each, and at the end for up to 5 seconds; what is lost is counted and told. Headers of OTLP, such as
    /// credentials, come from `OTEL_EXPORTER_OTLP_HEADERS` in the environment.
    #[arg(long, value_name = "DEST", help_heading = OUTPUT)]
    pub export: Vec<Destination>,
    /// Trust servers over TLS that have a certificate from those in this file, and no others; PEM.
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub tls_ca: Option<PathBuf>,
    /// Show this certificate to servers over TLS; PEM.
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"], help_heading = OUTPUT)]
    pub tls_cert: Option<PathBuf>,
    /// The key of that certificate; PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = OUTPUT)]
    pub tls_key: Option<PathBuf>,
    /// Answer Prometheus on this port, at /metrics; /healthz and /readyz say how tcptrace is. Or send the
    /// same counts to a receiver of OTLP each minute and at the end: `otlp=grpc://HOST:PORT`,
    /// `otlp=http://HOST:PORT`.
    ///
    /// A port alone is on loopback. Whoever reaches the port may read it. May be given more than once.
    #[arg(long, value_name = "ADDR", value_parser = metrics::to, help_heading = OUTPUT)]
    pub metrics: Vec<metrics::To>,
    /// Print at most this many events a second of one kind and cause from one process; how many were
    /// not is told each second. Findings, and the events they rest on, are always printed.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..), help_heading = OUTPUT)]
    pub rate_limit: Option<u32>,
    /// Say nothing on standard error but errors.
    #[arg(long, conflicts_with = "verbose", help_heading = OUTPUT)]
    pub quiet: bool,
    /// Show the kernel half's own diagnostics.
    #[arg(short, long, help_heading = OUTPUT)]
    pub verbose: bool,
    /// When to use colour.
    #[arg(long, value_enum, default_value_t = ColorChoice::Auto, help_heading = OUTPUT)]
    pub color: ColorChoice,
    /// Leave out the names of the columns.
    #[arg(long, help_heading = OUTPUT)]
    pub no_header: bool,

    /// End after this long, e.g. 30s or 5m.
    #[arg(short, long, value_name = "TIME", value_parser = duration, help_heading = END)]
    pub duration: Option<Duration>,
    /// End after this many events.
    #[arg(short, long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..), help_heading = END)]
    pub count: Option<u64>,
    /// Exit with status 5 if any event was lost, or a record not delivered to an export or to standard
    /// output.
    #[arg(long, help_heading = END)]
    pub strict: bool,

    /// Take options from this file of TOML, by the names they have here. What is given here as well
    /// holds instead. SIGHUP reads it again.
    #[arg(long, value_name = "FILE", help_heading = CONFIG)]
    pub config: Option<PathBuf>,
    /// Say whether that file is right, and end.
    #[arg(long, requires = "config", help_heading = CONFIG)]
    pub check_config: bool,

    /// Size of the buffer between the kernel and tcptrace.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size, help_heading = KERNEL)]
    pub ring_buffer: u64,
    /// Sockets whose owner is remembered; about 210 bytes of kernel memory each.
    #[arg(long, value_name = "COUNT", default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(1024..=16_777_216), help_heading = KERNEL)]
    pub max_sockets: u32,
    /// Take a way of attaching out of the plan.
    #[arg(long, value_name = "WAY", value_parser = Way::NAMES, help_heading = KERNEL)]
    pub without: Vec<String>,

    /// Trace this command and its children; its exit status becomes tcptrace's.
    #[arg(last = true, value_name = "CMD", conflicts_with = "pid")]
    pub cmd: Vec<OsString>,
}

const FILTER: &str = "Which sockets";
const WHAT: &str = "Which events";
const LOOK: &str = "What to look for";
const OUTPUT: &str = "Where to";
const END: &str = "Until when";
const CONFIG: &str = "Configuration";
const REPLAY: &str = "A recording instead of this host";
const KERNEL: &str = "In the kernel";

/// Adds what to do where clap only says that a word is not expected.
#[must_use]
pub fn with_remedy(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    if error.kind() != ErrorKind::UnknownArgument || word.starts_with('-') {
        return error;
    }
    let remedy = remedy(word, error.get(ContextKind::Usage));
    if let Some(remedy) = remedy {
        let remedy = ContextValue::StyledStrs(vec![remedy.into()]);
        error.insert(ContextKind::Suggested, remedy);
    }
    error
}

/// What somebody may have meant by a word that belongs to no option, where this is the usage.
fn remedy(word: &str, usage: Option<&ContextValue>) -> Option<String> {
    if word.parse::<u32>().is_ok() {
        return Some(
            "several processes or ports are separated by commas: --pid 12,34, as pgrep -d, prints them"
                .to_owned(),
        );
    }
    let Some(ContextValue::StyledStr(usage)) = usage else {
        return None;
    };
    if !usage.to_string().contains("<CMD>") {
        return None;
    }
    let commands = Cli::command();
    let names = commands.get_subcommands().map(clap::Command::get_name);
    if let Some(name) = nearest(word, names) {
        return Some(format!("a similar command exists: tcptrace {name}"));
    }
    let comm = word.rsplit('/').next().unwrap_or(word);
    Some(format!(
        "to run it and trace it: tcptrace -- {word}; to trace what has its name: --comm {comm}"
    ))
}

/// The name that this may be meant to be.
pub(crate) fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Of 1, which is the same.
    const ALIKE: f64 = 0.6;
    names
        .map(|name| (strsim::normalized_damerau_levenshtein(word, name), name))
        .filter(|(near, _)| *near > ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn several_values_are_separated_by_commas() {
        let line = ["tcptrace", "--pid", "12,34", "-p5", "--addr=10.0.0.0/8,::1"];
        let filter = Cli::try_parse_from(line).expect("right usage").trace.filter;
        assert_eq!(filter.pid, [12, 34, 5]);
        let networks: Vec<_> = filter.addr.iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["10.0.0.0/8", "::1/128"]);
    }
}
