//! Least privilege: what `doctor` names is enough, each required capability is missed aloud, and what
//! attaching needed is gone once everything is attached.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use caps::{CapSet, Capability, CapsHashSet};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use tcptrace::host::{door, netns};
use tcptrace::kernel::privileges::{keep_only, rehearse};
use tcptrace_tests::*;
use tempfile::TempDir;

/// A user with no rights of its own.
const NOBODY: u32 = 65_534;

/// The program under test as a file of its own that gives capabilities to whoever runs it.
struct Granted {
    _directory: TempDir,
    path: PathBuf,
}

impl Granted {
    fn new(capabilities: &[Capability]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
        let path = directory.path().join("tcptrace");
        fs::copy(tcptrace().get_program(), &path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        grant(&path, capabilities)?;
        Ok(Self {
            _directory: directory,
            path,
        })
    }

    /// With those that the command grants which `doctor` prints.
    fn as_doctor_says() -> Result<Self> {
        let granted = Self::new(&[])?;
        grant(&granted.path, &granted.doctors()?)?;
        Ok(granted)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.uid(NOBODY).gid(NOBODY);
        command
    }

    fn doctor(&self) -> Result<Value> {
        doctor(self.command())
    }

    /// The capabilities in the command that `doctor` prints for this file.
    fn doctors(&self) -> Result<Vec<Capability>> {
        let report = self.doctor()?;
        let command = report["grant"].as_str().context("nothing is missing")?;
        let (names, file) = command
            .strip_prefix("sudo setcap ")
            .and_then(|rest| rest.split_once("+ep "))
            .context("no command that grants")?;
        let path = self.path.to_str().context("a path of this test")?;
        ensure!(file.contains(path), "{command} is not about {path}");
        names
            .split(',')
            .map(|name| Ok(name.to_uppercase().parse()?))
            .collect()
    }
}

fn doctor(mut command: Command) -> Result<Value> {
    let output = command.args(["doctor", "-o", "json"]).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Sets the capabilities of a file as `setcap NAMES+ep` does.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/capability.h> (`vfs_cap_data`)
fn grant(path: &Path, capabilities: &[Capability]) -> Result<()> {
    const REVISION_2: u32 = 0x0200_0000;
    const EFFECTIVE: u32 = 1;
    let permitted = capabilities.iter().fold(0, |set, it| set | it.bitmask());
    let [low, high] = [permitted & 0xFFFF_FFFF, permitted >> 32];
    let words = [u64::from(REVISION_2 | EFFECTIVE), low, 0, high, 0];
    let mut value = vec![];
    for word in words {
        value.extend(u32::try_from(word)?.to_le_bytes());
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both strings end with a zero, and the value is as long as it says.
    let set = unsafe {
        libc::setxattr(
            path.as_ptr(),
            c"security.capability".as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    ensure!(set == 0, "setxattr: {}", io::Error::last_os_error());
    Ok(())
}

/// Mounts tracefs for the calling thread and what it starts, as most hosts have it for all.
fn mount_tracefs() -> Result<()> {
    let nothing = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing)?;
    let tracefs = Some("tracefs");
    mount(
        tracefs,
        "/sys/kernel/tracing",
        tracefs,
        MsFlags::empty(),
        nothing,
    )?;
    Ok(())
}

fn start(mut command: Command, netns: &Netns, args: &[&str]) -> Result<Tracer> {
    command.args(["-o", "json", "--netns"]).arg(netns.path());
    command.args(args);
    Tracer::start(command)
}

#[test]
fn a_user_with_what_doctor_grants_sees_what_root_sees() {
    in_netns(|netns| {
        mount_tracefs()?;
        let granted = Granted::as_doctor_says()?;
        let report = granted.doctor()?;
        let signals = report["signals"].as_array().context("a list")?;
        let blind = signals.iter().filter(|signal| signal["seen"] != true);
        assert_eq!(blind.count(), 0, "{signals:#?}");

        let tracer = start(granted.command(), netns, &[])?;
        // Both are root's.
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let pair = connected(&mut server, &mut client, "127.0.0.1:0")?;
        close_unread(&mut server, &mut client, &pair, 100)?;
        let (listener, addr) = listen(&mut server, "127.0.0.1:0", 8)?;
        server.close(listener)?;
        client.connected(addr).expect_err("nobody listens");
        let events = Events::of(tracer)?;
        let reset = events.named("reset.sent").error("closed_with_unread_data");
        assert_eq!(reset.pids(), [server.pid()]);
        let owner = reset.one()?;
        assert_eq!(owner.text("tcptrace.owner.confidence"), Some("exact"));
        assert!(owner.text("process.executable.path").is_some(), "{owner:?}");
        let refused = events.named("connect.failed").error("ECONNREFUSED");
        assert_eq!(refused.pids(), [client.pid()]);
        Ok(())
    });
}

#[test]
fn each_required_capability_is_missed_by_name_and_with_the_command() {
    let all = Granted::new(&[]).and_then(|it| it.doctors());
    let all = all.expect("doctor names them");
    for required in [Capability::CAP_BPF, Capability::CAP_PERFMON] {
        let others: Vec<_> = all.iter().copied().filter(|&it| it != required).collect();
        assert_eq!(
            others.len() + 1,
            all.len(),
            "doctor does not name {required}"
        );
        let granted = Granted::new(&others).expect("a file");
        let output = granted.command().args(["-d", "0"]).output();
        let output = output.expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{said}");
        let path = granted.path.display();
        for words in [
            format!("{required} missing"),
            "sudo setcap cap_bpf,cap_perfmon,".to_owned(),
            format!("+ep '{path}'"),
        ] {
            assert!(said.contains(&words), "{said} lacks {words}");
        }
    }
}

#[test]
fn where_processes_have_other_numbers_it_names_none() -> Result<()> {
    let inside = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc"]);
        command.arg(tcptrace().get_program()).args(arguments);
        command.output().context("unshare comes with util-linux")
    };
    let output = inside(&["-d", "0"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(3), "{said}");
    ensure!(said.contains("--pid=host"), "{said}");
    let output = inside(&["doctor"])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{said}");
    for words in ["Nothing was tried: in this PID namespace", "--pid=host"] {
        ensure!(said.contains(words), "{said} lacks {words}");
    }
    Ok(())
}

/// The first thread, which is named after the file.
const MAIN: &str = "main";

/// What the status of each thread of a process says, by the thread's name.
fn threads_by_name(pid: u32) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let named = |mut fields: BTreeMap<String, String>| {
        let name = fields.remove("Name").context("a name")?;
        let is_first = fields.get("Pid") == Some(&pid.to_string());
        Ok((if is_first { MAIN.to_owned() } else { name }, fields))
    };
    threads(pid)?.into_iter().map(named).collect()
}

fn set(thread: &BTreeMap<String, String>, name: &str) -> Result<u64> {
    Ok(u64::from_str_radix(thread.get(name).context("a set")?, 16)?)
}

/// What `doctor` says is kept, by every thread and by the one that enters namespaces.
fn kept(report: &Value) -> Result<[u64; 2]> {
    let mut kept = [0, 0];
    for it in report["capabilities"].as_array().context("a list")? {
        let only_when_asked = || it["kept_for"].as_str()?.strip_prefix("with --");
        if it["effective"] == true && !it["kept_for"].is_null() && only_when_asked().is_none() {
            let name: Capability = it["name"].as_str().context("a name")?.parse()?;
            kept[usize::from(it["kept_by_one_thread"] == true)] |= name.bitmask();
        }
    }
    Ok(kept)
}

fn ensure_kept(pid: u32, report: &Value, bounding_is_empty: bool) -> Result<()> {
    let [by_all, by_one] = kept(report)?;
    let gone = [
        Capability::CAP_BPF,
        Capability::CAP_PERFMON,
        Capability::CAP_SYS_ADMIN,
    ];
    let gone = gone.iter().fold(0, |set, it| set | it.bitmask());
    ensure!(by_all & gone == 0, "this kernel needs CAP_BPF for its maps");
    let threads = threads_by_name(pid)?;
    ensure!(threads.contains_key(MAIN), "{threads:#?}");
    ensure!(
        threads.contains_key(door::NAME) == (by_one != 0),
        "{threads:#?}"
    );
    for (name, thread) in threads {
        let expected = match name.as_str() {
            door::NAME => by_one,
            // They write, and that is all.
            "stdout" | "stderr" => 0,
            _ => by_all,
        };
        for which in ["CapEff", "CapPrm"] {
            let held = set(&thread, which)?;
            ensure!(
                held == expected,
                "{which} of {name}: {held:x}, not {expected:x}"
            );
        }
        for which in ["CapInh", "CapAmb"] {
            ensure!(set(&thread, which)? == 0, "{which} of {name}");
        }
        ensure!(!bounding_is_empty || set(&thread, "CapBnd")? == 0, "{name}");
        ensure!(thread["NoNewPrivs"] == "1", "{name}");
        ensure!(thread["Seccomp"] == "2", "{name}");
    }
    Ok(())
}

#[test]
fn once_attached_only_what_doctor_says_is_kept() {
    in_netns(|netns| {
        mount_tracefs()?;
        let tracer = start(tcptrace(), netns, &[])?;
        ensure_kept(tracer.pid(), &doctor(tcptrace())?, true)?;
        tracer.stop()?;

        let granted = Granted::as_doctor_says()?;
        let tracer = start(granted.command(), netns, &[])?;
        ensure_kept(tracer.pid(), &granted.doctor()?, false)?;
        tracer.stop()?;
        Ok(())
    });
}

#[test]
fn a_command_keeps_what_its_user_has_while_the_tracer_does_not() {
    in_netns(|netns| {
        let directory = tempfile::tempdir()?;
        let (status, end) = (
            directory.path().join("status"),
            directory.path().join("end"),
        );
        mkfifo(&end, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let script = format!(
            "cat /proc/self/status >{}; cat {}",
            status.display(),
            end.display()
        );
        let tracer = start(tcptrace(), netns, &["--", "sh", "-c", &script])?;
        // Opened once the command is there, so its status is written.
        let end = File::options().write(true).open(&end)?;
        let command = fs::read_to_string(&status)?;
        let effective = command
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:\t"));
        let own = fs::read_to_string("/proc/self/status")?;
        assert!(own.contains(effective.context("a set")?), "{command}");
        assert!(command.contains("NoNewPrivs:\t0"), "{command}");

        let report = doctor(tcptrace())?;
        // It gives its own up when the command has begun.
        wait_until("the thread that waits for the command", || {
            let threads = threads_by_name(tracer.pid()).map_err(io::Error::other)?;
            let waits = threads.get("command").map(|it| set(it, "CapPrm"));
            Ok(waits.is_some_and(|set| set.is_ok_and(|set| set == 0)))
        })?;
        let [by_all, _] = kept(&report)?;
        assert_eq!(
            set(&threads_by_name(tracer.pid())?[MAIN], "CapPrm")?,
            by_all
        );
        drop(end);
        assert_eq!(tracer.finish()?.status.code(), Some(0));
        Ok(())
    });
}

#[test]
fn the_output_file_is_opened_anew_without_privileges_or_with_the_one_it_takes() {
    in_netns(|netns| {
        mount_tracefs()?;
        let override_all = Capability::CAP_DAC_OVERRIDE.bitmask();
        let granted = Granted::as_doctor_says()?;
        for (command, owner, takes_it) in [
            (tcptrace(), 0, false),
            (tcptrace(), NOBODY, true),
            (granted.command(), NOBODY, false),
        ] {
            let directory = tempfile::tempdir()?;
            std::os::unix::fs::chown(directory.path(), Some(owner), Some(owner))?;
            let path = directory.path().join("events.json");
            let moved = directory.path().join("moved.json");
            let path_text = path.to_str().context("a path of this test")?;
            let tracer = start(command, netns, &["--output-file", path_text])?;
            let held = set(&threads_by_name(tracer.pid())?["files"], "CapEff")?;
            assert_eq!(held & override_all != 0, takes_it, "owner {owner}");
            fs::rename(&path, &moved)?;
            tracer.signal(Signal::SIGHUP)?;
            wait_until("a new file", || Ok(path.exists()))?;
            let mut client = actor("client")?;
            client.call("be_refused", &[1.into(), 1.into()])?;
            let trace = tracer.stop()?;
            assert_eq!(trace.status.code(), Some(0), "{}", trace.stderr.join("\n"));
            let written = fs::read_to_string(&path)?;
            assert!(written.contains("connect.failed"), "{written}");
        }
        Ok(())
    });
}

#[test]
fn other_namespaces_are_looked_into_all_the_same() {
    in_netns(|netns| {
        let tracer = netns.outside(|| start(tcptrace(), netns, &[]))?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let pair = connected(&mut server, &mut client, "127.0.0.1:0")?;
        client.send(pair.client, b"unread!")?;
        client.close(pair.client)?;
        // How much is unread only the namespace itself tells, long after the start.
        let stuck = tracer.wait_for("a socket left open", SOON, |record| {
            record.name() == "close_wait.stuck"
        })?;
        assert_eq!(stuck.number("tcptrace.socket.unread"), Some(7), "{stuck:?}");
        tracer.stop()?;
        Ok(())
    });
}

/// Loads the smallest program that the kernel half's kind can be: `return 0`.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h> (`union bpf_attr`)
fn load_program() -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const RAW_TRACEPOINT: u32 = 17;
    /// `r0 = 0; exit`
    const INSTRUCTIONS: [u64; 2] = [0xb7, 0x95];
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        licence: u64,
    }
    let load = Load {
        kind: RAW_TRACEPOINT,
        count: 2,
        instructions: INSTRUCTIONS.as_ptr() as u64,
        licence: c"GPL".as_ptr() as u64,
    };
    let size = size_of::<Load>();
    // SAFETY: the kernel reads the attributes, as long as they say, and what they point to.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just given it to us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[test]
fn who_gave_its_privileges_up_loads_no_program_any_more() {
    load_program().expect("root may");
    let kept = [Capability::CAP_SYS_PTRACE, Capability::CAP_DAC_READ_SEARCH];
    let refused = rehearse(&kept.into(), || load_program().map(drop)).expect("a thread");
    assert_eq!(
        refused.expect_err("it gave that up").raw_os_error(),
        Some(libc::EPERM)
    );
}

#[test]
fn the_thread_that_enters_namespaces_can_do_nothing_else_with_its_privilege() {
    in_netns(|_| {
        // Until it has given its own up, a thread may do all of it.
        load_program()?;
        door::keep()?;
        keep_only(&CapsHashSet::new())?;
        let there = netns::of(std::process::id())?;
        ensure!(there.inode != netns::current()?, "another namespace");
        let (inside, held, refused) = netns::enter(&there, || {
            let nothing = None::<&str>;
            let refused = [
                ("bpf", load_program().err().and_then(|it| it.raw_os_error())),
                ("unshare", errno(unshare(CloneFlags::CLONE_NEWNS))),
                ("setns", errno(setns(own_mounts(), CloneFlags::CLONE_NEWNS))),
                (
                    "mount",
                    errno(mount(nothing, "/", nothing, MsFlags::MS_REMOUNT, nothing)),
                ),
            ];
            let held = caps::read(None, CapSet::Effective);
            (netns::current(), held, refused)
        })?;
        assert_eq!(inside?, there.inode);
        assert_eq!(held?, [Capability::CAP_SYS_ADMIN].into());
        for (call, error) in refused {
            assert_eq!(error, Some(libc::EPERM), "{call}");
        }
        Ok(())
    });
}

fn errno(result: nix::Result<()>) -> Option<i32> {
    result.err().map(|error| error as i32)
}

fn own_mounts() -> File {
    File::open("/proc/thread-self/ns/mnt").expect("our own")
}
