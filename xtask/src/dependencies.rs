//! Every crate the published ones depend on has its reason in ARCHITECTURE.md, and every reason its crate.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result};

use crate::process::workspace;

/// The manifests of what is published; the tests' and this tool's crates reach nobody.
const MANIFESTS: [&str; 3] = [
    "tcptrace/Cargo.toml",
    "tcptrace-common/Cargo.toml",
    "tcptrace-ebpf/Cargo.toml",
];
const PAGE: &str = "ARCHITECTURE.md";
const HEADING: &str = "## Dependencies";

/// What lacks the other.
pub(crate) fn complaints() -> Result<Vec<String>> {
    let read = |name: &str| {
        fs::read_to_string(workspace().join(name)).with_context(|| format!("cannot read {name}"))
    };
    let mut used = BTreeSet::new();
    for manifest in MANIFESTS {
        used.extend(of_manifest(&read(manifest)?));
    }
    Ok(compare(&used, &of_page(&read(PAGE)?)))
}

/// The crates a manifest names for what is published; not those of its tests.
fn of_manifest(text: &str) -> BTreeSet<String> {
    let mut counts = false;
    let mut crates = BTreeSet::new();
    for line in text.lines() {
        if let Some(section) = line.strip_prefix('[') {
            counts =
                section.starts_with("dependencies]") || section.starts_with("build-dependencies]");
        } else if counts && let Some((name, _)) = line.split_once(" = ") {
            crates.insert(name.to_owned());
        }
    }
    // Our own need no reason.
    crates.retain(|name| !name.starts_with("tcptrace"));
    crates
}

/// The crates of the page: its section has a line `- `NAME`, `NAME`: reason` for each.
fn of_page(text: &str) -> BTreeSet<String> {
    let section = text.split(HEADING).nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let names = section
        .lines()
        .filter_map(|line| line.strip_prefix("- ")?.split_once(": "));
    names
        .flat_map(|(names, _)| names.split(", "))
        .map(|name| name.trim_matches('`').to_owned())
        .collect()
}

fn compare(used: &BTreeSet<String>, told: &BTreeSet<String>) -> Vec<String> {
    let untold = used
        .difference(told)
        .map(|name| format!("{PAGE}: no reason for the dependency {name}"));
    let unused = told
        .difference(used)
        .map(|name| format!("{PAGE}: a reason for {name}, which nothing depends on"));
    untold.chain(unused).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "[package]\nname = \"x\"\n\n[dependencies]\ntcptrace-common = \"1\"\n\
        libc = { workspace = true }\nbytes = \"1\"\n\n[dev-dependencies]\ninsta = \"1\"\n\n\
        [build-dependencies]\naya-build = \"1\"\n";

    #[test]
    fn each_dependency_has_a_reason_and_each_reason_a_dependency() {
        let used = of_manifest(MANIFEST);
        let page = "# X\n\n## Dependencies\n\n- `libc`, `bytes`: because.\n- `aya-build`: too.\n\n\
            ## Next\n\n- `insta`: no\n";
        assert_eq!(compare(&used, &of_page(page)), [""; 0]);
        let page = page.replace("`bytes`", "`byte`");
        let complaints = compare(&used, &of_page(&page));
        assert_eq!(
            complaints,
            [
                "ARCHITECTURE.md: no reason for the dependency bytes",
                "ARCHITECTURE.md: a reason for byte, which nothing depends on",
            ]
        );
    }
}
