//! What a test machine wrote to its serial console, taken apart: the other side of
//! `tests/src/bin/guest.rs`.

use std::time::Duration;

/// A machine's whole output.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Console {
    pub(crate) sections: Vec<Section>,
    /// Whether it came to its end: a kernel that panics ends QEMU without an error.
    pub(crate) is_done: bool,
}

/// One command and what it wrote.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Section {
    pub(crate) name: String,
    /// `None`: it did not end.
    pub(crate) status: Option<i32>,
    pub(crate) took: Duration,
    pub(crate) lines: Vec<String>,
}

impl Console {
    /// Takes the lines of a log apart.
    pub(crate) fn read(log: &str) -> Self {
        let mut console = Self::default();
        for line in log.lines().map(|line| line.trim_end_matches('\r')) {
            if let Some(name) = line.strip_prefix("@@ begin ") {
                console.sections.push(Section {
                    name: name.to_owned(),
                    ..Section::default()
                });
            } else if let Some(end) = line.strip_prefix("@@ end ") {
                let mut words = end.rsplit(' ');
                let took = words.next().and_then(|word| word.parse().ok());
                let status = words.next().and_then(|word| word.parse().ok());
                if let Some(section) = console.sections.last_mut() {
                    section.took = Duration::from_millis(took.unwrap_or_default());
                    section.status = status;
                }
            } else if line == "@@ done" {
                console.is_done = true;
            } else if let Some(section) = console.sections.last_mut() {
                section.lines.push(line.to_owned());
            }
        }
        console
    }

    pub(crate) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// Lines of the kernel's log that no test may cause.
    pub(crate) fn complaints(&self) -> Vec<&str> {
        const SIGNS: [&str; 6] = [
            "BUG:",
            "WARNING:",
            "Oops",
            "general protection fault",
            "Call Trace:",
            "rcu_sched self-detected stall",
        ];
        let lines = self.section("dmesg").into_iter().flat_map(|it| &it.lines);
        lines
            .map(String::as_str)
            .filter(|line| SIGNS.iter().any(|sign| line.contains(sign)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_comes_apart() {
        let console = Console::read(
            "SeaBIOS\r\n@@ begin doctor\r\n{}\r\n@@ end doctor 3 1500\r\n\
             @@ begin dmesg\r\n[ 1.0] WARNING: CPU: 0\r\n@@ end dmesg 0 1\r\n@@ done\r\n",
        );
        assert!(console.is_done);
        let doctor = console.section("doctor").expect("it ran");
        assert_eq!(doctor.status, Some(3));
        assert_eq!(doctor.took, Duration::from_millis(1500));
        assert_eq!(doctor.lines, ["{}"]);
        assert_eq!(console.complaints(), ["[ 1.0] WARNING: CPU: 0"]);
    }

    #[test]
    fn a_machine_that_died_is_not_done() {
        let console = Console::read("@@ begin resets\nrunning 9 tests\nKernel panic\n");
        assert!(!console.is_done);
        assert_eq!(console.sections[0].status, None);
    }
}
