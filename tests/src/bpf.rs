//! What eBPF the kernel holds, and which of it no process does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

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

/// The programs a process holds by a descriptor, and how many bytes of instructions the verifier left of
/// all with one name: the kernel keeps its first 15 bytes.
///
/// # Errors
/// When the kernel does not tell.
pub fn instructions(pid: u32) -> Result<BTreeMap<String, u32>> {
    const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    /// The beginning of `struct bpf_prog_info`, in words of 4 bytes: the length, and the name.
    const XLATED_PROG_LEN: usize = 5;
    const NAME: std::ops::Range<usize> = 16..20;
    let bpf = |command: libc::c_long, attr: &mut [u32]| {
        let size = size_of_val(attr);
        // SAFETY: the kernel reads and writes `size` bytes of `attr`, and the memory it names.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size) };
        match i32::try_from(result) {
            Ok(result) if result >= 0 => Ok(result),
            _ => Err(io::Error::last_os_error()),
        }
    };
    let mut found = BTreeMap::new();
    for (sort, id) in held_by(pid)? {
        if sort != "prog_id" {
            continue;
        }
        let fd = bpf(BPF_PROG_GET_FD_BY_ID, &mut [id, 0, 0])?;
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut info = [0_u32; 20];
        let address = info.as_mut_ptr() as u64;
        let low = u32::try_from(address & u64::from(u32::MAX))?;
        let high = u32::try_from(address >> 32)?;
        let size = u32::try_from(size_of_val(&info))?;
        let fd_number = fd.as_raw_fd().cast_unsigned();
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut [fd_number, size, low, high])?;
        let name: Vec<u8> = info[NAME]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        let name = String::from_utf8_lossy(&name)
            .trim_end_matches('\0')
            .to_owned();
        *found.entry(name).or_insert(0) += info[XLATED_PROG_LEN];
    }
    Ok(found)
}
