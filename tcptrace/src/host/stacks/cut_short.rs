//! A binary that is cut short while its symbols are read: what is no longer there reads as zeroes.
//!
//! Symbols are read from memory that files are mapped into. A file that is made shorter, by who copies a
//! new library over the old one or by who wants the trace to end, takes pages out of that memory, and
//! the kernel answers a look at one of them with SIGBUS, which ends a program that does not handle it.

use std::ffi::{c_int, c_void};
use std::ptr;

use libc::{MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_PRIVATE, PROT_READ, siginfo_t};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// From now on, in the whole program.
pub(super) fn reads_as_zeroes() {
    let fill = SigHandler::SigAction(fill);
    let action = SigAction::new(fill, SaFlags::SA_SIGINFO, SigSet::empty());
    // SAFETY: `fill` does only what a handler may.
    let set = unsafe { sigaction(Signal::SIGBUS, &action) };
    debug_assert!(set.is_ok(), "a signal that may be handled");
}

/// Any other reason for the signal ends the program, as does a page that cannot be put there.
extern "C" fn fill(signal: c_int, about: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel hands over what it says of the signal.
    let about = unsafe { &*about };
    if about.si_code == libc::BUS_ADRERR {
        // SAFETY: of a fault it says the address.
        let address = unsafe { about.si_addr() };
        if put_zeroes(address) {
            return;
        }
    }
    // SAFETY: it takes a signal that may be handled.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: as before. It comes once this function has returned.
    unsafe { libc::raise(signal) };
}

/// Puts a page of zeroes where one is missing.
fn put_zeroes(address: *mut c_void) -> bool {
    // SAFETY: it looks at a constant.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let Ok(size) = usize::try_from(size) else {
        return false;
    };
    let page = address.map_addr(|address| address & !(size - 1));
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    // SAFETY: the page is of a file's mapping, which has nothing there.
    let mapped = unsafe { libc::mmap(page, size, PROT_READ, flags, -1, 0) };
    !ptr::eq(mapped, MAP_FAILED)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn what_is_left_stays_and_what_is_gone_is_zero() {
        const PAGE: usize = 65_536;
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&vec![0xaa; 4 * PAGE]).expect("room");
        let (size, fd) = (4 * PAGE, file.as_raw_fd());
        // SAFETY: a new mapping, which stays to the end of the process.
        let mapped = unsafe { libc::mmap(ptr::null_mut(), size, PROT_READ, MAP_PRIVATE, fd, 0) };
        assert!(!ptr::eq(mapped, MAP_FAILED), "no mapping");
        let at = |place: usize| {
            let byte = mapped.cast::<u8>().wrapping_add(place);
            // SAFETY: within the mapping. Volatile, because the file changes under it.
            unsafe { byte.read_volatile() }
        };
        reads_as_zeroes();
        assert_eq!(at(3 * PAGE), 0xaa);
        file.set_len(PAGE as u64).expect("it is ours");
        assert_eq!([at(0), at(PAGE - 1)], [0xaa; 2]);
        for place in [PAGE, 3 * PAGE + 17, size - 1] {
            assert_eq!(at(place), 0, "{place}");
        }
    }
}
