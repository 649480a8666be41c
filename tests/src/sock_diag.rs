//! A kernel without `sock_diag`, as one program sees it.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Result;

/// To this program the kernel says that it has no `sock_diag`, as one without the module does.
///
/// # Errors
/// A number of the kernel's has more bits than its filter reads.
pub fn without_sock_diag(command: &mut Command) -> Result<()> {
    const DENY: u32 = libc::SECCOMP_RET_ERRNO | libc::EPROTONOSUPPORT as u32;
    let load = |offset| (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    // Leaves out as many instructions as are given when it is another value.
    let is = |value, skip| (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, skip, value);
    let answer = |value| (libc::BPF_RET | libc::BPF_K, 0, 0, value);
    // `struct seccomp_data`: the call, and the lower halves of its first and third argument.
    // https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/seccomp.h
    let program = [
        load(0),
        is(u32::try_from(libc::SYS_socket)?, 5),
        load(16),
        is(u32::try_from(libc::AF_NETLINK)?, 3),
        load(32),
        is(u32::try_from(libc::NETLINK_SOCK_DIAG)?, 1),
        answer(DENY),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program = program.map(|(code, jt, jf, k)| libc::sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    });
    let restrict = move || {
        let mut program = program;
        let filter = libc::sock_fprog {
            len: 8,
            filter: program.as_mut_ptr(),
        };
        // SAFETY: the kernel copies the program, which lives until the call has returned.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const filter,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(restrict) };
    Ok(())
}
