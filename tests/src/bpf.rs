//! What eBPF the kernel holds, and which of it no process does.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use anyhow::{Context, Result};

/// A sort of object, as its descriptors name it in `/proc/PID/fdinfo`, and the commands that give the
/// ids of all.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h> (`enum bpf_cmd`)
const SORTS: [(&str, libc::c_long); 4] = [
    ("prog_id", 11),
    ("map_id", 12),
    ("btf_id", 23),
    ("link_id", 31),
];

/// An object: its sort and its id, which is never given to another.
pub type Object = (&'static str, u32);

/// The objects that a process holds by a descriptor.
///
/// # Errors
/// When it has ended.
pub fn held_by(pid: u32) -> io::Result<BTreeSet<Object>> {
    let mut held = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor closed meanwhile holds nothing.
        let Ok(info) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        for (sort, _) in SORTS {
            let id = info.lines().find_map(|line| line.strip_prefix(sort));
            let id = id.and_then(|it| it.strip_prefix(':')?.trim().parse().ok());
            held.extend(id.map(|id| (sort, id)));
        }
    }
    Ok(held)
}

/// The objects no descriptor of any process holds: attached or pinned for good, or still on their way
/// out.
///
/// # Errors
/// When the kernel does not tell.
pub fn held_by_nobody() -> Result<BTreeSet<Object>> {
    let mut objects = BTreeSet::new();
    for (sort, command) in SORTS {
        let mut id = 0;
        while let Some(next) =
            next_id(command, id).with_context(|| format!("the kernel does not list its {sort}"))?
        {
            objects.insert((sort, next));
            id = next;
        }
    }
    for process in fs::read_dir("/proc")? {
        let name = process?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        for object in pid.and_then(|pid| held_by(pid).ok()).into_iter().flatten() {
            objects.remove(&object);
        }
    }
    Ok(objects)
}

fn next_id(command: libc::c_long, after: u32) -> io::Result<Option<u32>> {
    // start_id, next_id, open_flags
    let mut attr = [after, 0, 0];
    let size = size_of_val(&attr);
    // SAFETY: the kernel reads and writes `size` bytes of `attr`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size) };
    if result == 0 {
        return Ok(Some(attr[1]));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        error => Err(error),
    }
}
