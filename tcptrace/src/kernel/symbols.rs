//! Where a kernel function's code lies, from `/proc/kallsyms`.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;

const KALLSYMS: &str = "/proc/kallsyms";
/// Longer than any line: a symbol has at most 511 bytes.
const BUFFER: usize = 1 << 16;

/// Why a function's place is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SymbolError {
    /// The kernel shows zeros instead of addresses.
    Hidden,
    /// There is no function of that name; the compiler may have inlined it.
    Absent,
    /// The file cannot be read.
    Unreadable(String),
}

impl fmt::Display for SymbolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hidden => write!(f, "{KALLSYMS} hides the addresses of kernel functions"),
            Self::Absent => write!(f, "{KALLSYMS} does not list the function"),
            Self::Unreadable(error) => write!(f, "cannot read {KALLSYMS}: {error}"),
        }
    }
}

impl std::error::Error for SymbolError {}

impl From<io::Error> for SymbolError {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// The caller of `consume_skb` for a SYN that a full accept queue drops.
pub const RCV_STATE_PROCESS: &str = "tcp_rcv_state_process";

/// The addresses of a function of the running kernel.
///
/// # Errors
/// The kernel hides its addresses, or has no such function.
pub fn function(name: &str) -> Result<Range<u64>, SymbolError> {
    find(
        BufReader::with_capacity(BUFFER, File::open(KALLSYMS)?),
        name,
    )
}

/// From the function's address up to the next one: the kernel lists its own symbols in order.
/// <https://github.com/torvalds/linux/blob/v6.18/scripts/kallsyms.c> (`sort_symbols`)
pub(crate) fn find(mut list: impl BufRead, name: &str) -> Result<Range<u64>, SymbolError> {
    let mut start = None;
    let mut line = String::new();
    while list.read_line(&mut line)? > 0 {
        let mut words = line.split_ascii_whitespace();
        let address = words
            .next()
            .and_then(|word| u64::from_str_radix(word, 16).ok());
        match (start, address) {
            (Some(start), Some(end)) if end > start => return Ok(start..end),
            (None, Some(address)) => {
                let is_code = words
                    .next()
                    .is_some_and(|kind| kind.eq_ignore_ascii_case("t"));
                // A fourth word is the name of a module, whose functions may have any name.
                if is_code && words.next() == Some(name) && words.next().is_none() {
                    start = Some(address);
                    if address == 0 {
                        return Err(SymbolError::Hidden);
                    }
                }
            }
            _ => {}
        }
        line.clear();
    }
    Err(SymbolError::Absent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "0000000000000000 A fixed_percpu_data\n\
        ffffffff82020a30 T __pfx_tcp_rcv_state_process\n\
        ffffffff82020a40 T tcp_rcv_state_process\n\
        ffffffff82020a40 T an_alias\n\
        ffffffff82021fb0 T __pfx_tcp_get_syncookie_mss\n\
        ffffffff82022000 D tcp_hashinfo\n\
        ffffffffc0000010 t helper\t[module]\n\
        ffffffffc0000020 t other\t[module]\n";

    #[test]
    fn a_function_ends_where_the_next_address_begins() {
        assert_eq!(
            find(LIST.as_bytes(), "tcp_rcv_state_process"),
            Ok(0xffff_ffff_8202_0a40..0xffff_ffff_8202_1fb0)
        );
    }

    #[test]
    fn data_modules_and_other_names_are_not_the_function() {
        for name in ["tcp_hashinfo", "helper", "tcp_rcv", ""] {
            assert_eq!(
                find(LIST.as_bytes(), name),
                Err(SymbolError::Absent),
                "{name}"
            );
        }
    }

    #[test]
    fn hidden_addresses_are_told_from_absent_functions() {
        let hidden = LIST
            .replace("ffffffff8202", "000000000000")
            .replace("0a40", "0000");
        assert_eq!(
            find(hidden.as_bytes(), "tcp_rcv_state_process"),
            Err(SymbolError::Hidden)
        );
        assert_eq!(find(hidden.as_bytes(), "gone"), Err(SymbolError::Absent));
    }

    #[test]
    fn a_list_that_is_not_one_is_no_answer() {
        assert_eq!(
            find(b"\n\n zz T x\n".as_slice(), "x"),
            Err(SymbolError::Absent)
        );
        assert!(matches!(
            find(b"\xff\xfe\n".as_slice(), "x"),
            Err(SymbolError::Unreadable(_))
        ));
    }
}
