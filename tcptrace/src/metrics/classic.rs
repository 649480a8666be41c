//! The text format of before `OpenMetrics`, made of it: the samples are the same.

/// What `promtool` and older scrapers read.
/// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>
///
/// There the family of a counter or an info is named as its samples are, an info is a gauge, and there
/// are neither units nor an end mark.
pub(super) fn from_open_metrics(text: &str) -> String {
    let mut classic = String::with_capacity(text.len());
    // `HELP` comes before the `TYPE` its name depends on, as our encoder writes it.
    let mut help = None;
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), words) => {
                help = Some((name, words.unwrap_or_default()));
            }
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    kind => ("", kind),
                };
                if let Some((_, words)) = help.take_if(|(of, _)| *of == name) {
                    classic.extend(["# HELP ", name, suffix, " ", words, "\n"]);
                }
                classic.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
            }
            (Some("#"), ..) => {}
            _ => classic.extend([line, "\n"]),
        }
    }
    classic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_named_as_their_samples() {
        let open = "\
# HELP a_resets How many.
# TYPE a_resets counter
a_resets_total{cause=\"x y\"} 3
# HELP a_build What runs.
# TYPE a_build info
a_build_info{version=\"1\"} 1
# HELP a_age_seconds How old.
# TYPE a_age_seconds histogram
# UNIT a_age_seconds seconds
a_age_seconds_sum 1.5
# HELP a_open How many now.
# TYPE a_open gauge
a_open 2
# EOF
";
        let classic = "\
# HELP a_resets_total How many.
# TYPE a_resets_total counter
a_resets_total{cause=\"x y\"} 3
# HELP a_build_info What runs.
# TYPE a_build_info gauge
a_build_info{version=\"1\"} 1
# HELP a_age_seconds How old.
# TYPE a_age_seconds histogram
a_age_seconds_sum 1.5
# HELP a_open How many now.
# TYPE a_open gauge
a_open 2
";
        assert_eq!(from_open_metrics(open), classic);
    }
}
