//! From a name, however it is written, to its pages.

use std::fmt;

use super::words::WORDS;
use super::{Page, Topic};
use crate::event::Errno;

/// Words in a row that are tried as one name. The longest names have seven, with the kernel's prefix.
const LONGEST_NAME: usize = 8;
/// Letters of an unknown name that are compared with known ones: comparing takes time by the product.
const COMPARED: usize = 64;
/// How alike two names must be for one to be meant for the other; 1 is the same.
const ALIKE: f64 = 0.7;
/// Names suggested for an unknown one.
const SUGGESTED: usize = 5;

/// The pages of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The one that explains it best.
    pub page: Page,
    /// Others that the name can mean.
    pub others: Vec<Page>,
}

/// No page has this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    name: String,
    /// Names of pages that are written much like it, the nearest first.
    pub near: Vec<&'static str>,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nothing to explain is called {:?}; ", self.name)?;
        if !self.near.is_empty() {
            write!(f, "near it: {}; ", self.near.join(", "))?;
        }
        f.write_str("`tcptrace explain` lists all")
    }
}

impl std::error::Error for Unknown {}

/// The pages of a name. Case, punctuation and spaces do not matter, the kernel's prefixes may be left
/// out, and a line of a program's log is looked through for the longest name in it.
///
/// # Errors
///
/// [`Unknown`]: no page has that name, and the line holds none.
pub fn find(name: &str) -> Result<Found, Unknown> {
    let known = Known::names();
    let pages = match number(name).map(|errno| known.numbered(errno)) {
        Some(pages) if !pages.is_empty() => pages,
        _ => known.pages(&letters(name)),
    };
    let pages = if pages.is_empty() {
        known.within(name)
    } else {
        pages
    };
    let mut pages = pages.into_iter();
    match pages.next() {
        Some(page) => Ok(Found {
            page,
            others: pages.collect(),
        }),
        None => Err(Unknown {
            near: known.near(name),
            name: name.to_owned(),
        }),
    }
}

/// A name without what people write differently: its letters and digits, in lower case.
fn letters(name: &str) -> String {
    name.chars()
        .filter(|letter| letter.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

/// An error's number as it is printed: `32`, `-32`, `errno 32`, `os error 32`, `[Errno 32]`.
fn number(name: &str) -> Option<Errno> {
    let name = name.trim_matches(|c: char| c.is_whitespace() || "[]()-".contains(c));
    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    let before = letters(&name[..name.len() - digits.len()]);
    let is_number = ["", "errno", "oserror", "error"].contains(&before.as_str());
    is_number.then(|| digits.parse().ok()).flatten().map(Errno)
}

/// How directly a name leads to a page; the less, the better the page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It is the page's own.
    Own,
    /// The page's own without the kernel's prefixes, or with them.
    Prefix,
    /// What a program prints, by the place of the page in [`WORDS`].
    Word(usize),
}

/// A name, and the page it leads to.
struct Name {
    letters: String,
    rank: Rank,
    page: Page,
    /// It says what it means wherever it stands: an error's symbol, or more than one word.
    is_clear: bool,
}

/// All names.
struct Known(Vec<Name>);

impl Known {
    fn names() -> Self {
        let mut names = Vec::new();
        for page in Page::all() {
            let mut add = |rank, name: &str| {
                names.push(Name {
                    letters: letters(name),
                    rank,
                    page,
                    is_clear: page.topic == Topic::Error || name.contains('_'),
                });
            };
            add(Rank::Own, page.name);
            match page.topic {
                Topic::Cause | Topic::Error => {}
                Topic::State => add(Rank::Prefix, &format!("TCP_{}", page.name)),
                Topic::Reason => {
                    add(Rank::Prefix, &format!("SK_RST_REASON_{}", page.name));
                    if let Some(short) = page.name.strip_prefix("TCP_") {
                        add(Rank::Prefix, short);
                        add(Rank::Prefix, &format!("SK_RST_REASON_{short}"));
                    }
                }
            }
        }
        for (words, pages) in WORDS {
            for (place, name) in pages.iter().enumerate() {
                names.extend(
                    Page::all()
                        .find(|page| page.name == *name)
                        .map(|page| Name {
                            letters: letters(words),
                            rank: Rank::Word(place),
                            page,
                            is_clear: words.contains(|c: char| !c.is_alphanumeric()),
                        }),
                );
            }
        }
        Self(names)
    }

    fn numbered(&self, errno: Errno) -> Vec<Page> {
        errno
            .name()
            .map(|name| self.pages(&letters(name)))
            .unwrap_or_default()
    }

    /// The pages of exactly this name, each once, the best first.
    fn pages(&self, letters: &str) -> Vec<Page> {
        let mut names: Vec<_> = self.0.iter().filter(|it| it.letters == letters).collect();
        names.sort_by_key(|name| name.rank);
        let mut pages = Vec::new();
        for name in names {
            if !pages.contains(&name.page) {
                pages.push(name.page);
            }
        }
        pages
    }

    /// The pages of the longest clear name among the words of a line; a number is none.
    fn within(&self, line: &str) -> Vec<Page> {
        let words: Vec<_> = line
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| !word.is_empty())
            .map(letters)
            .collect();
        let mut longest = String::new();
        for begin in 0..words.len() {
            let mut run = String::new();
            for word in words.iter().skip(begin).take(LONGEST_NAME) {
                run += word;
                let is_clear = || self.0.iter().any(|it| it.is_clear && it.letters == run);
                if run.len() > longest.len() && is_clear() {
                    longest.clone_from(&run);
                }
            }
        }
        self.pages(&longest)
    }

    /// Names of pages written much like this, the nearest first.
    fn near(&self, name: &str) -> Vec<&'static str> {
        let wanted: String = letters(name).chars().take(COMPARED).collect();
        let mut near: Vec<(f64, &'static str)> = Vec::new();
        for known in &self.0 {
            let page = known.page.name;
            let likeness = likeness(&wanted, &known.letters);
            match near.iter_mut().find(|(_, seen)| *seen == page) {
                Some((best, _)) => *best = best.max(likeness),
                None => near.push((likeness, page)),
            }
        }
        near.retain(|(likeness, _)| *likeness >= ALIKE);
        near.sort_by(|(one, _), (other, _)| other.total_cmp(one));
        near.into_iter()
            .take(SUGGESTED)
            .map(|(_, page)| page)
            .collect()
    }
}

/// 1 for the same letters. A name that holds the other one is like it as well, the more of it is the
/// other one.
fn likeness(wanted: &str, known: &str) -> f64 {
    let edits = strsim::normalized_damerau_levenshtein(wanted, known);
    if wanted.len() >= 4 && known.contains(wanted) {
        ALIKE + (1.0 - ALIKE) * edits
    } else {
        edits
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use proptest::prelude::*;

    use super::*;
    use crate::diagnose::Cause;

    #[track_caller]
    fn check(names: &[&str], page: &str) {
        for name in names {
            match find(name) {
                Ok(found) => assert_eq!(found.page.name, page, "{name}"),
                Err(unknown) => panic!("{unknown}"),
            }
        }
    }

    #[test]
    fn a_page_is_found_by_its_own_name() {
        for page in Page::all() {
            check(&[page.name], page.name);
            check(&[&page.name.to_lowercase()], page.name);
            check(&[&page.name.replace('_', "-")], page.name);
            check(&[&page.name.replace('_', " ")], page.name);
        }
    }

    /// The words come from the C library, the number from the kernel.
    #[test]
    fn an_error_is_found_by_its_number_and_its_words() {
        for page in Topic::Error.pages() {
            let number = Errno::from_name(page.name).expect("an error").0;
            // `Broken pipe (os error 32)`
            let words = io::Error::from_raw_os_error(number).to_string();
            let (bare, _) = words.split_once(" (os error").expect("Rust's suffix");
            check(&[&words, bare, &bare.to_uppercase()], page.name);
            for name in [
                format!("{number}"),
                format!("-{number}"),
                format!("errno {number}"),
                format!("errno={number}"),
                format!("os error {number}"),
                format!("[Errno {number}] {bare}"),
                format!("[Errno {number}]"),
            ] {
                check(&[&name], page.name);
            }
        }
    }

    #[test]
    fn an_error_is_found_in_what_programs_print() {
        check(
            &[
                "broken-pipe",
                "write: broken pipe",
                "write tcp 10.4.0.1:443->10.0.0.2:41022: write: broken pipe",
                "BrokenPipeError: [Errno 32] Broken pipe",
                "java.io.IOException: Broken pipe",
                "error: Os { code: 32, kind: BrokenPipe, message: \"Broken pipe\" }",
                "write(5, \"x\", 1) = -1 EPIPE (Broken pipe)",
            ],
            "EPIPE",
        );
        check(
            &[
                "connection reset",
                "java.net.SocketException: Connection reset",
                "recv() failed (104: Connection reset by peer) while reading response header",
                "Error: read ECONNRESET",
                "ConnectionReset",
            ],
            "ECONNRESET",
        );
        check(
            &[
                "dial tcp 127.0.0.1:32: connect: connection refused",
                "curl: (7) Failed to connect to localhost port 32: Connection refused",
            ],
            "ECONNREFUSED",
        );
        check(&["accept4() failed (24: Too many open files)"], "EMFILE");
        check(&["accept: too many open files in system"], "ENFILE");
        check(&["EWOULDBLOCK", "would block"], "EAGAIN");
        // musl's words.
        check(&["Address not available"], "EADDRNOTAVAIL");
        check(&["Host is unreachable"], "EHOSTUNREACH");
        check(&["Operation timed out"], "ETIMEDOUT");
    }

    #[test]
    fn a_state_is_found_as_ss_netstat_and_the_rfc_write_it() {
        for (page, names) in [
            ("LISTEN", ["LISTEN", "TCP_LISTEN", "listening", "Listen"]),
            (
                "SYN_SENT",
                ["SYN-SENT", "SYN_SENT", "TCP_SYN_SENT", "syn sent"],
            ),
            (
                "SYN_RECV",
                ["SYN-RECV", "SYN_RECV", "SYN-RECEIVED", "TCP_NEW_SYN_RECV"],
            ),
            (
                "ESTABLISHED",
                ["ESTAB", "ESTABLISHED", "TCP_ESTABLISHED", "established"],
            ),
            (
                "FIN_WAIT1",
                ["FIN-WAIT-1", "FIN_WAIT1", "TCP_FIN_WAIT1", "fin_wait_1"],
            ),
            (
                "FIN_WAIT2",
                ["FIN-WAIT-2", "FIN_WAIT2", "TCP_FIN_WAIT2", "fin_wait_2"],
            ),
            (
                "TIME_WAIT",
                ["TIME-WAIT", "TIME_WAIT", "TCP_TIME_WAIT", "time wait"],
            ),
            ("CLOSE", ["CLOSED", "CLOSE", "UNCONN", "TCP_CLOSE"]),
            (
                "CLOSE_WAIT",
                ["CLOSE-WAIT", "CLOSE_WAIT", "TCP_CLOSE_WAIT", "close wait"],
            ),
            (
                "LAST_ACK",
                ["LAST-ACK", "LAST_ACK", "TCP_LAST_ACK", "last ack"],
            ),
            ("CLOSING", ["CLOSING", "closing", "TCP_CLOSING", "Closing"]),
        ] {
            check(&names, page);
        }
    }

    #[test]
    fn a_reason_is_found_with_its_prefixes_and_without() {
        for page in Topic::Reason.pages() {
            let name = page.name;
            check(&[&format!("SK_RST_REASON_{name}")], name);
        }
        check(
            &["TCP_ABORT_ON_CLOSE", "ABORT_ON_CLOSE", "abort on close"],
            "TCP_ABORT_ON_CLOSE",
        );
        check(&["STATE", "sk_rst_reason_tcp_state"], "TCP_STATE");
        check(&["closed fd 4 [kernel: TCP_STATE]"], "TCP_STATE");
        check(&["no socket"], "NO_SOCKET");
    }

    #[test]
    fn of_two_meanings_the_closer_one_comes_first() {
        let found = find("EADDRINUSE").expect("an error");
        assert_eq!(found.others, []);
        // What FIN_WAIT2 is, seen from either end.
        let found = find("half closed").expect("two states");
        assert_eq!(found.page.name, "CLOSE_WAIT");
        let others: Vec<_> = found.others.iter().map(|page| page.name).collect();
        assert_eq!(others, ["FIN_WAIT2"]);
    }

    #[test]
    fn an_unknown_name_is_told_its_neighbours() {
        for (name, near) in [
            ("EPIP", "EPIPE"),
            ("brokn pipe", "EPIPE"),
            ("ECONREFUSED", "ECONNREFUSED"),
            ("conection refused", "ECONNREFUSED"),
            ("CLOSE_WIAT", "CLOSE_WAIT"),
            ("keepalive_timout", "TCP_KEEPALIVE_TIMEOUT"),
            ("ABORT_ON", "TCP_ABORT_ON_CLOSE"),
        ] {
            let unknown = find(name).expect_err(name);
            assert!(unknown.near.contains(&near), "{name}: {:?}", unknown.near);
            assert!(unknown.near.len() <= SUGGESTED, "{name}");
            let said = unknown.to_string();
            assert!(said.contains(name) && said.contains(near), "{said}");
            assert!(said.contains("`tcptrace explain` lists all"), "{said}");
        }
    }

    #[test]
    fn what_means_nothing_is_unknown() {
        for name in [
            "",
            " - ",
            "xyzzy",
            "0",
            "99999999999999999999",
            "-",
            "10.4.0.32:104",
            "the state of the connection is listen or so",
            "ошибка",
        ] {
            let unknown = find(name).expect_err(name);
            assert_eq!(unknown.near, Vec::<&str>::new(), "{name}");
        }
    }

    #[test]
    fn words_lead_to_pages_and_each_has_one_row() {
        let mut seen = std::collections::HashSet::new();
        for (words, pages) in WORDS {
            assert!(seen.insert(letters(words)), "{words} twice");
            for name in *pages {
                assert_ne!(letters(name), letters(words), "{name} needs no row");
                let is_page = Page::all().any(|page| page.name == *name);
                let is_cause = Cause::ALL.iter().any(|cause| cause.as_str() == *name);
                assert!(is_page || is_cause, "{words}: {name}");
            }
        }
    }

    proptest! {
        #[test]
        fn every_name_has_an_answer(name in any::<String>()) {
            if let Err(unknown) = find(&name) {
                prop_assert!(unknown.near.len() <= SUGGESTED);
            }
        }

        #[test]
        fn words_around_a_name_do_not_hide_it(
            before in "[a-z0-9:., ]{0,20}",
            after in "[a-z0-9:., ]{0,20}",
        ) {
            let found = find(&format!("{before} ECONNABORTED {after}"));
            prop_assert_eq!(found.map(|it| it.page.name), Ok("ECONNABORTED"));
        }
    }
}
