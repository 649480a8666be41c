//! The knowledge: a page for each cause, error, TCP state and reason the kernel gives for a RST, and
//! the way from any of its names to it.

mod lookup;
pub mod show;
mod words;

pub use lookup::{Found, Unknown, find};

/// What a page is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Why something failed: [`crate::diagnose::Cause`].
    Cause,
    /// What a call returned: an errno.
    Error,
    /// A TCP state.
    State,
    /// The kernel's own reason for a RST it sent: `enum sk_rst_reason`.
    Reason,
}

impl Topic {
    /// Every topic, in the order of a list.
    pub const ALL: [Self; 4] = [Self::Cause, Self::Error, Self::State, Self::Reason];

    /// The directory of its pages.
    const fn directory(self) -> &'static str {
        match self {
            Self::Cause => "causes",
            Self::Error => "errors",
            Self::State => "states",
            Self::Reason => "reasons",
        }
    }

    /// Its pages, in the order of their names.
    pub fn pages(self) -> impl Iterator<Item = Page> {
        PAGES
            .iter()
            .filter(move |(directory, _)| *directory == self.directory())
            .flat_map(|(_, pages)| *pages)
            .map(move |&(name, text)| Page {
                topic: self,
                name,
                text,
            })
    }
}

/// Directories of `src/explain`, and in each the names and texts of its pages.
const PAGES: &[(&str, &[(&str, &str)])] = include!(concat!(env!("OUT_DIR"), "/pages.rs"));

/// A page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// What it is about.
    pub topic: Topic,
    /// What it explains, as tcptrace writes it: `close_wait_leak`, `EPIPE`, `CLOSE_WAIT`, `TCP_STATE`.
    pub name: &'static str,
    /// Its Markdown: the name as the title, the summary, sections.
    pub text: &'static str,
}

impl Page {
    /// Every page.
    pub fn all() -> impl Iterator<Item = Self> {
        Topic::ALL.into_iter().flat_map(Topic::pages)
    }

    /// The sentence under its title.
    #[must_use]
    pub fn summary(&self) -> &'static str {
        let below_title = self.text.lines().skip(1);
        below_title
            .map(str::trim)
            .find(|line| !line.is_empty())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::diagnose::Cause;
    use crate::event::{Errno, State};

    fn names(topic: Topic) -> BTreeSet<&'static str> {
        topic.pages().map(|page| page.name).collect()
    }

    #[test]
    fn every_cause_has_a_page() {
        let causes = Cause::ALL.iter().map(|cause| cause.as_str()).collect();
        assert_eq!(names(Topic::Cause), causes);
    }

    #[test]
    fn every_state_has_a_page() {
        let states: BTreeSet<_> = (1..=11)
            .filter_map(State::from_number)
            .map(|state| state.to_string())
            .collect();
        assert_eq!(states.len(), 11);
        assert!(states.iter().map(String::as_str).eq(names(Topic::State)));
    }

    /// <https://github.com/torvalds/linux/blob/v6.18/include/net/rstreason.h>
    #[test]
    fn every_reason_of_the_kernel_has_a_page() {
        let reasons = BTreeSet::from([
            "NOT_SPECIFIED",
            "NO_SOCKET",
            "TCP_INVALID_ACK_SEQUENCE",
            "TCP_RFC7323_PAWS",
            "TCP_TOO_OLD_ACK",
            "TCP_ACK_UNSENT_DATA",
            "TCP_FLAGS",
            "TCP_OLD_ACK",
            "TCP_ABORT_ON_DATA",
            "TCP_TIMEWAIT_SOCKET",
            "INVALID_SYN",
            "TCP_ABORT_ON_CLOSE",
            "TCP_ABORT_ON_LINGER",
            "TCP_ABORT_ON_MEMORY",
            "TCP_STATE",
            "TCP_KEEPALIVE_TIMEOUT",
            "TCP_DISCONNECT_WITH_DATA",
            "MPTCP_RST_EUNSPEC",
            "MPTCP_RST_EMPTCP",
            "MPTCP_RST_ERESOURCE",
            "MPTCP_RST_EPROHIBIT",
            "MPTCP_RST_EWQ2BIG",
            "MPTCP_RST_EBADPERF",
            "MPTCP_RST_EMIDDLEBOX",
            "ERROR",
        ]);
        assert_eq!(names(Topic::Reason), reasons);
    }

    #[test]
    fn every_error_explained_is_one() {
        let errors = names(Topic::Error);
        assert!(errors.contains("EPIPE"));
        for name in errors {
            assert!(Errno::from_name(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_page_begins_with_its_name_and_a_sentence() {
        for page in Page::all() {
            let name = page.name;
            let mut lines = page.text.lines();
            assert_eq!(lines.next(), Some(format!("# {name}").as_str()));
            assert_eq!(lines.next(), Some(""), "{name}");
            assert_eq!(lines.next(), Some(page.summary()), "{name}");
            assert_eq!(lines.next(), Some(""), "{name}");
            let summary = page.summary();
            let length = summary.chars().count();
            assert!((1..=90).contains(&length), "{name}: {summary}: {length}");
            assert!(summary.ends_with('.'), "{name}: {summary}");
            assert!(page.text.ends_with('\n'), "{name}");
            // With the indent of `show` a line is 100 wide.
            for line in page.text.lines() {
                assert!(line.chars().count() <= 98, "{name}: {line}");
            }
        }
    }

    #[test]
    fn errors_states_and_reasons_fit_a_screen_and_answer_the_same_questions() {
        for page in Page::all().filter(|page| page.topic != Topic::Cause) {
            let name = page.name;
            let lines = page.text.lines().count();
            assert!((15..=60).contains(&lines), "{name} has {lines} lines");
            let sections = page
                .text
                .lines()
                .filter_map(|line| line.strip_prefix("## "));
            let expected = [
                "Meaning",
                "Which cause",
                "Confirm it",
                "Fix it",
                "Often wrongly blamed",
            ];
            assert!(sections.eq(expected), "{name}");
        }
    }

    #[test]
    fn the_causes_a_page_offers_are_causes() {
        for page in Page::all().filter(|page| page.topic != Topic::Cause) {
            let name = page.name;
            let (_, offered) = page.text.split_once("## Which cause\n").expect("a section");
            let (offered, _) = offered.split_once("\n## ").expect("another section");
            let items = offered.lines().filter_map(|line| line.strip_prefix("- "));
            for item in items {
                let (causes, _) = item.split_once(':').expect("what each looks like");
                for cause in causes.split('`').skip(1).step_by(2) {
                    let is_known = Cause::ALL.iter().any(|it| it.as_str() == cause);
                    assert!(is_known, "{name} offers {cause}");
                }
            }
        }
    }
}
