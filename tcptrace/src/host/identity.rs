//! What stays of a process when it is started again: its service or container, its program, its command
//! line. By these a successor is recognised.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};
use std::sync::Arc;

use super::cgroup::{self, Cgroups};
use super::{container, process};
use crate::event::{Comm, Process};

/// What a process is, beyond its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    comm: Comm,
    uid: u32,
    unit: Option<Unit>,
    /// In its own mount namespace.
    exe: Option<Arc<str>>,
    line: CommandLine,
    /// Its parent is alike: it is a worker, or another one that forked without another program.
    is_worker: bool,
}

/// What starts a process again.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Unit {
    /// A service of systemd, by the path of its cgroup.
    Service(String),
    /// The containers of a pod: one that is started again has another id.
    Pod(String),
    /// A container that no pod holds, by its id.
    Container(String),
}

/// The arguments of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
enum CommandLine {
    /// As it was started with.
    Arguments(Vec<String>),
    /// The process wrote something else over them, such as `nginx: master process`.
    Title,
    /// A kernel thread, or what has ended.
    None,
}

/// The bytes of a command line that are compared.
const LINE: usize = 4096;

impl Identity {
    /// Of a process that runs; `None` when it has ended or is ending, and of a thread of the kernel.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        // Whoever exits gives its memory up first, and its command line and program with it.
        let mut identity = Self::alone(pid).filter(|it| it.line != CommandLine::None)?;
        let parent = process::parent(pid).and_then(Self::alone);
        identity.is_worker = parent.is_some_and(|parent| identity.alike(&parent).is_some());
        Some(identity)
    }

    fn alone(pid: u32) -> Option<Self> {
        let process = process::describe(pid, None)?;
        let exe = process.exe.as_deref();
        let exe = exe.map(|exe| exe.strip_suffix(" (deleted)").unwrap_or(exe).into());
        Some(Self {
            comm: process.comm,
            uid: process.uid,
            unit: unit(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?),
            exe,
            line: CommandLine::parse(&fs::read(format!("/proc/{pid}/cmdline")).ok()?),
            is_worker: false,
        })
    }

    /// The command names under which it may begin: its own, which it may have chosen since, and those the
    /// kernel gives to its program, as a file, as a link and as a script.
    /// <https://github.com/torvalds/linux/blob/v6.18/fs/exec.c> (`begin_new_exec`)
    #[must_use]
    pub fn names(&self) -> Vec<Comm> {
        let arguments = match &self.line {
            CommandLine::Arguments(arguments) => arguments.as_slice(),
            CommandLine::Title | CommandLine::None => &[],
        };
        let started_as = arguments
            .iter()
            .take(2)
            .filter(|argument| !argument.starts_with('-'));
        let paths = self.exe.as_deref().into_iter();
        let paths = paths.chain(started_as.map(String::as_str));
        let files = paths.filter_map(|path| Path::new(path).file_name()?.to_str());
        let mut names = vec![self.comm];
        for name in files.map(Comm::from) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Why `other` is this one started again, if it looks so.
    #[must_use]
    pub fn recognise(&self, other: &Self) -> Option<String> {
        self.alike(other)
            .filter(|_| self.is_worker == other.is_worker)
    }

    /// As [`recognise`](Self::recognise), of a process that had ended before more could be read than what
    /// the kernel half told with its event.
    #[must_use]
    pub fn recognise_ended(&self, other: &Process) -> Option<String> {
        let in_service = match &self.unit {
            Some(Unit::Service(path)) => {
                let ids = Cgroups::open().and_then(|cgroups| cgroups.resolve(path));
                // A service that failed may have no cgroup left.
                ids.is_err()
                    || other
                        .cgroup
                        .is_some_and(|id| ids.is_ok_and(|ids| ids.contains(&id)))
            }
            Some(Unit::Pod(_) | Unit::Container(_)) | None => true,
        };
        let alike = self.names().contains(&other.comm) && self.is_user(other.uid) && in_service;
        alike.then(|| {
            "it had its name and user, and ended before more of it could be compared".to_owned()
        })
    }

    fn alike(&self, other: &Self) -> Option<String> {
        let same_program = self.exe.is_some() && self.exe == other.exe;
        let same_line = self.line == other.line;
        let named = matches!(self.line, CommandLine::Arguments(_));
        if self.unit != other.unit {
            return None;
        }
        if let Some(unit) = &self.unit {
            let same = match (same_program, same_line && named) {
                (true, true) => "program and command line",
                (true, false) => "program",
                (false, true) => "command line",
                (false, false) => return None,
            };
            return Some(format!("it is in {unit} too, with the same {same}"));
        }
        if !same_program || !self.is_user(other.uid) {
            return None;
        }
        match &self.line {
            CommandLine::Arguments(_) if same_line => {
                Some("it has the same program, command line and user".to_owned())
            }
            // Before it wrote its title the other one had arguments.
            CommandLine::Title => {
                Some("it has the same program and user; its command line is a title".to_owned())
            }
            CommandLine::Arguments(_) | CommandLine::None => None,
        }
    }

    /// Root may become that user yet.
    fn is_user(&self, uid: u32) -> bool {
        uid == self.uid || uid == 0
    }

    /// A process that is this, as an event names it.
    #[must_use]
    pub fn process(&self, pid: u32) -> Process {
        Process {
            pid,
            tid: None,
            comm: self.comm,
            uid: self.uid,
            exe: self.exe.clone(),
            cgroup: None,
            container: None,
            exit: None,
        }
    }

    /// Whether it is a worker of another one alike.
    #[must_use]
    pub fn is_worker(&self) -> bool {
        self.is_worker
    }
}

impl fmt::Display for Identity {
    /// By what a successor will be recognised.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.unit {
            Some(unit) => write!(f, "{unit}, ")?,
            None => write!(f, "user {}, ", self.uid)?,
        }
        f.write_str(self.exe.as_deref().unwrap_or("an unreadable program"))?;
        if let CommandLine::Arguments(arguments) = &self.line {
            write!(f, ", {:?}", arguments.join(" "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(path) => {
                let name = Path::new(path).file_name().unwrap_or(OsStr::new(path));
                f.write_str(&name.to_string_lossy())
            }
            Self::Pod(uid) => write!(f, "pod {uid}"),
            Self::Container(id) => write!(f, "container {}", &id[..id.len().min(12)]),
        }
    }
}

impl CommandLine {
    fn parse(bytes: &[u8]) -> Self {
        let cut = &bytes[..bytes.len().min(LINE)];
        if cut.is_empty() {
            return Self::None;
        }
        // A title fills the place of the arguments with zeroes, and reads as a sentence.
        let is_padded = cut.ends_with(b"\0\0");
        let mut arguments = cut.strip_suffix(b"\0").unwrap_or(cut).split(|&it| it == 0);
        let first = arguments.clone().next().unwrap_or_default();
        if is_padded || first.iter().any(|it| matches!(it, b' ' | b':')) {
            return Self::Title;
        }
        let text = |argument: &[u8]| String::from_utf8_lossy(argument).into_owned();
        Self::Arguments(arguments.by_ref().map(text).collect())
    }
}

/// What would start a process again, from the text of its `/proc/PID/cgroup`.
fn unit(cgroups: &str) -> Option<Unit> {
    if let Some(container) = container::parse(cgroups) {
        return Some(match container.pod {
            Some(pod) => Unit::Pod(pod),
            None => Unit::Container(container.id),
        });
    }
    let path = cgroup::parse_unified(cgroups)?;
    // What systemd has below a service, such as `user@1000.service/app.slice/x.scope`, is not that service.
    // <https://www.freedesktop.org/software/systemd/man/257/systemd.unit.html>
    let is_unit = |name: &OsStr| {
        let name = name.as_bytes();
        [&b".service"[..], b".scope", b".slice"]
            .iter()
            .any(|suffix| name.ends_with(suffix))
    };
    let names: Vec<_> = path.components().map(Component::as_os_str).collect();
    let last = names.iter().rposition(|name| is_unit(name))?;
    let is_service = names[last].as_bytes().ends_with(b".service");
    let path: std::path::PathBuf = names[..=last].iter().collect();
    is_service.then(|| Unit::Service(path.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Identity {
        Identity {
            comm: "python3".into(),
            uid: 33,
            unit: None,
            exe: Some("/usr/bin/python3.11".into()),
            line: CommandLine::parse(b"/usr/bin/python3\0/srv/orders.py\0--port\080\0"),
            is_worker: false,
        }
    }

    fn service(path: &str) -> Option<Unit> {
        unit(&format!("0::{path}\n"))
    }

    #[test]
    fn a_service_is_the_innermost_unit() {
        let named = |path: &str| Some(Unit::Service(path.to_owned()));
        for (path, unit) in [
            (
                "/system.slice/nginx.service",
                named("system.slice/nginx.service"),
            ),
            (
                "/system.slice/a.service/worker",
                named("system.slice/a.service"),
            ),
            (
                "/user.slice/user@1000.service/app.slice/b.service",
                named("user.slice/user@1000.service/app.slice/b.service"),
            ),
            (
                "/user.slice/user@1000.service/app.slice/terminal.scope",
                None,
            ),
            ("/user.slice/user-1000.slice/session-3.scope", None),
            ("/", None),
        ] {
            assert_eq!(service(path), unit, "{path}");
        }
        let id = "0a".repeat(32);
        let docker = service(&format!("/system.slice/docker-{id}.scope"));
        assert_eq!(docker, Some(Unit::Container(id.clone())));
        let pod = format!("/kubepods/burstable/pod1b4c6d7e-0123-4567-89ab-cdef01234567/{id}");
        let uid = "1b4c6d7e-0123-4567-89ab-cdef01234567".to_owned();
        assert_eq!(service(&pod), Some(Unit::Pod(uid)));
    }

    #[test]
    fn without_a_unit_program_command_line_and_user_are_the_same() {
        let before = server();
        let why = before.recognise(&server()).expect("nothing differs");
        assert!(why.contains("program, command line and user"), "{why}");
        let root = Identity { uid: 0, ..server() };
        assert!(before.recognise(&root).is_some(), "it may become the user");
        let of_unit = service("/system.slice/orders.service");
        let line = CommandLine::parse(b"/usr/bin/python3\0/srv/orders.py\0--port\081\0");
        for (other, what) in [
            (
                Identity {
                    uid: 34,
                    ..server()
                },
                "another user",
            ),
            (Identity { line, ..server() }, "another command line"),
            (
                Identity {
                    exe: Some("/opt/python3.11".into()),
                    ..server()
                },
                "another program",
            ),
            (
                Identity {
                    is_worker: true,
                    ..server()
                },
                "a worker",
            ),
            (
                Identity {
                    unit: of_unit,
                    ..server()
                },
                "a service",
            ),
        ] {
            assert_eq!(before.recognise(&other), None, "{what}");
        }
    }

    #[test]
    fn in_a_unit_the_program_or_the_command_line_may_change() {
        let of = |service_name: &str| Identity {
            unit: service(&format!("/system.slice/{service_name}.service")),
            ..server()
        };
        let before = of("orders");
        let line = CommandLine::parse(b"/usr/bin/python3\0/srv/orders.py\0--port\081\0");
        let moved = Identity {
            line: line.clone(),
            ..of("orders")
        };
        let why = before.recognise(&moved).expect("the same program");
        assert!(why.contains("orders.service") && why.ends_with("same program"));
        let updated = Identity {
            exe: Some("/usr/bin/python3.12".into()),
            uid: 1000,
            ..of("orders")
        };
        let why = before.recognise(&updated).expect("the same line");
        assert!(why.ends_with("same command line"), "{why}");
        let neither = Identity { line, ..updated };
        assert_eq!(before.recognise(&neither), None, "a helper of the service");
        assert_eq!(before.recognise(&of("billing")), None, "another service");
    }

    #[test]
    fn a_title_is_no_command_line() {
        let titled = |line: &[u8]| Identity {
            comm: "nginx".into(),
            exe: Some("/usr/sbin/nginx".into()),
            uid: 0,
            line: CommandLine::parse(line),
            ..server()
        };
        let master = titled(b"nginx: master process nginx -g daemon off;\0");
        let started = titled(b"nginx\0-g\0daemon off;\0");
        let why = master.recognise(&started).expect("the same program");
        assert!(why.contains("title"), "{why}");
        assert_eq!(titled(b"my-app\0\0\0\0").line, CommandLine::Title);
        assert_eq!(titled(b"").line, CommandLine::None);
    }

    #[test]
    fn it_may_begin_under_the_name_of_its_file_its_link_and_its_script() {
        let names = |identity: &Identity| -> Vec<String> {
            identity.names().iter().map(ToString::to_string).collect()
        };
        assert_eq!(names(&server()), ["python3", "python3.11", "orders.py"]);
        let option = Identity {
            line: CommandLine::parse(b"node\0--inspect\0app.js\0"),
            exe: Some("/usr/local/bin/a-name-longer-than-fits".into()),
            comm: "MainThread".into(),
            ..server()
        };
        assert_eq!(names(&option), ["MainThread", "a-name-longer-t", "node"]);
    }

    #[test]
    fn this_process_is_itself_and_no_worker() {
        let pid = std::process::id();
        let own = Identity::of(pid).expect("it runs");
        assert!(
            own.recognise(&Identity::of(pid).expect("it runs"))
                .is_some()
        );
        assert!(!own.is_worker(), "a test runner is another program");
        assert_eq!(Identity::of(u32::MAX), None);
    }
}
