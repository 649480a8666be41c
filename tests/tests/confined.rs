//! What the tracer's threads can no longer do once it traces, and that they can do all they are for.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{AT_FDCWD, renameat};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{UnlinkatFlags, unlinkat};
use tcptrace::kernel::confinement::{Confinement, Part, confine, keep_to};
use tcptrace_tests::*;

const NONE: libc::c_long = -1;
const NULL: libc::c_long = 0;

/// Calls that fail for what they are told, where they may be made at all.
const FORBIDDEN: [(&str, libc::c_long, [libc::c_long; 4]); 22] = [
    ("exec", libc::SYS_execve, [NULL; 4]),
    ("exec at", libc::SYS_execveat, [NONE, NULL, NULL, NULL]),
    ("ptrace", libc::SYS_ptrace, [16, NONE, NULL, NULL]),
    (
        "read memory",
        libc::SYS_process_vm_readv,
        [NONE, NULL, 1, NULL],
    ),
    (
        "write memory",
        libc::SYS_process_vm_writev,
        [NONE, NULL, 1, NULL],
    ),
    ("signal others", libc::SYS_kill, [1, 12345, 0, 0]),
    ("take descriptors", libc::SYS_pidfd_getfd, [NONE, 0, 0, 0]),
    // CLONE_SIGHAND without CLONE_VM
    ("fork", libc::SYS_clone, [0x800, 0, 0, 0]),
    ("load programs", libc::SYS_bpf, [5, NULL, 1, 0]),
    ("make maps", libc::SYS_bpf, [0, NULL, 1, 0]),
    ("pin", libc::SYS_bpf, [6, NULL, 1, 0]),
    ("open events", libc::SYS_perf_event_open, [NULL, 0, 0, 0]),
    ("listen", libc::SYS_listen, [NONE, 0, 0, 0]),
    ("have raw sockets", libc::SYS_socket, [17, 99, 0, 0]),
    ("mount", libc::SYS_mount, [NULL; 4]),
    ("leave namespaces", libc::SYS_unshare, [1, 0, 0, 0]),
    ("enter mounts", libc::SYS_setns, [NONE, 0x0002_0000, 0, 0]),
    ("load modules", libc::SYS_finit_module, [NONE, 0, 0, 0]),
    ("change modes", libc::SYS_fchmod, [NONE, 0, 0, 0]),
    ("change owners", libc::SYS_fchown, [NONE, 0, 0, 0]),
    ("make directories", libc::SYS_mkdirat, [NONE, NULL, 0, 0]),
    // PROT_EXEC of nothing
    ("map code", libc::SYS_mmap, [NULL, 0, 4, 0]),
];

/// What only the thread of the output file may.
const OF_FILES: [(&str, libc::c_long, [libc::c_long; 4]); 4] = [
    ("open for writing", libc::SYS_openat, [NONE, NULL, 1, 0]),
    ("create", libc::SYS_openat, [NONE, NULL, 0o100, 0]),
    ("rename", libc::SYS_renameat, [NONE, NULL, NONE, NULL]),
    ("remove", libc::SYS_unlinkat, [NONE, NULL, 0, 0]),
];

/// What only the threads of exports may.
const OF_EXPORTS: [(&str, libc::c_long, [libc::c_long; 4]); 5] = [
    ("connect", libc::SYS_connect, [NONE, NULL, 0, 0]),
    ("have IPv4", libc::SYS_socket, [2, 99, 0, 0]),
    ("have IPv6", libc::SYS_socket, [10, 99, 0, 0]),
    ("have Unix sockets", libc::SYS_socket, [1, 99, 0, 0]),
    (
        "have files in memory",
        libc::SYS_memfd_create,
        [NULL, 0, 0, 0],
    ),
];

/// Calls whose arguments a filter cannot see.
const OPAQUE: [(&str, libc::c_long, [libc::c_long; 4]); 2] = [
    ("clone3", libc::SYS_clone3, [NULL; 4]),
    ("openat2", libc::SYS_openat2, [NONE, NULL, NULL, 0]),
];

fn error_of((name, number, args): (&str, libc::c_long, [libc::c_long; 4])) -> Result<i32> {
    // SAFETY: no pointer among the arguments is anything but null.
    let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3]) };
    ensure!(result == -1, "{name} was done");
    io::Error::last_os_error()
        .raw_os_error()
        .context("an error")
}

/// Runs this on a thread that ends with what was taken from it.
fn apart<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

#[test]
fn no_thread_can_do_more_than_its_part() -> Result<()> {
    let special = OF_FILES.into_iter().chain(OF_EXPORTS).chain(OPAQUE);
    for call in FORBIDDEN.into_iter().chain(special) {
        let error = error_of(call)?;
        // Some kernels have no modules.
        ensure!(error != libc::EPERM, "{} is refused before", call.0);
    }
    for (part, _) in Part::ALL {
        apart(|| {
            confine(part)?;
            for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
                let is_left = SigSet::thread_get_mask()?.contains(signal);
                ensure!(is_left, "{signal} may come to {part:?}");
            }
            for call in FORBIDDEN {
                let error = error_of(call)?;
                ensure!(error == libc::EPERM, "{} by {part:?}: {error}", call.0);
            }
            for call in OF_FILES {
                let refused = error_of(call)? == libc::EPERM;
                ensure!(refused == (part != Part::Files), "{} by {part:?}", call.0);
            }
            for call in OF_EXPORTS {
                let refused = error_of(call)? == libc::EPERM;
                ensure!(refused == (part != Part::Export), "{} by {part:?}", call.0);
            }
            for call in OPAQUE {
                let error = error_of(call)?;
                ensure!(error == libc::ENOSYS, "{} by {part:?}: {error}", call.0);
            }
            let enters = error_of(("enter", libc::SYS_setns, [NONE, 0x4000_0000, 0, 0]))?;
            let may = enters == libc::EBADF;
            ensure!(may == (part == Part::Door), "setns by {part:?}: {enters}");
            // And for that thread's own threads.
            apart(|| {
                let error = error_of(FORBIDDEN[0])?;
                ensure!(error == libc::EPERM, "exec by a new thread: {error}");
                Ok(())
            })
        })?;
    }
    Ok(())
}

#[test]
fn files_are_opened_for_writing_in_one_directory_only() -> Result<()> {
    let (own, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    fs::write(other.path().join("theirs"), "")?;
    let append = |path: &Path| OpenOptions::new().append(true).create(true).open(path);
    let has_landlock = Confinement::of_kernel().landlock;
    apart(|| {
        keep_to([own.path()])?;
        confine(Part::Files)?;
        append(&own.path().join("events"))?;
        let aside = own.path().join("events.1");
        renameat(AT_FDCWD, &own.path().join("events"), AT_FDCWD, &aside)?;
        append(&own.path().join("events"))?;
        unlinkat(AT_FDCWD, &aside, UnlinkatFlags::NoRemoveDir)?;
        for name in ["theirs", "new"] {
            let opened = append(&other.path().join(name)).map_err(|error| error.kind());
            let refused = matches!(opened, Err(io::ErrorKind::PermissionDenied));
            ensure!(refused == has_landlock, "{name}: {opened:?}");
        }
        let read = fs::read_to_string("/etc/passwd").is_err();
        ensure!(read == has_landlock, "what is elsewhere is not read either");
        Ok(())
    })
}

#[test]
fn every_thread_of_a_tracer_is_confined() {
    in_netns(|netns| {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("events.json");
        let path = path.to_str().context("a path of this test")?;
        // Its own output, so that the tracer's ends with the tracer.
        let command = ["sh", "-c", "exec sleep 5 >/dev/null 2>&1"];
        let tracer = trace(
            netns,
            &[
                &["--output-file", path, "--export", "journald"][..],
                &["--metrics", "otlp=http://127.0.0.1:9", "--"],
                &command,
            ]
            .concat(),
        )?;
        let mut names = vec![];
        wait_until("every thread to be confined", || {
            names.clear();
            let mut all = true;
            for thread in threads(tracer.pid()).map_err(io::Error::other)? {
                all &= thread["Seccomp"] == "2" && thread["NoNewPrivs"] == "1";
                names.push(thread["Name"].clone());
            }
            Ok(all)
        })?;
        for thread in [
            "files",
            "netns",
            "command",
            "export",
            "metrics-push",
            "stdout",
            "stderr",
            "tcptrace",
        ] {
            ensure!(names.iter().any(|it| it == thread), "{thread}: {names:?}");
        }
        tracer.stop()?;
        Ok(())
    });
}
