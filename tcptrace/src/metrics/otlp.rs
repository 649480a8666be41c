//! Counts as OTLP has them, made of the text of `OpenMetrics`: names, labels and numbers are the same.
//! <https://github.com/open-telemetry/opentelemetry-proto/blob/v1.8.0/opentelemetry/proto/metrics/v1/metrics.proto>

use std::mem;

use crate::sink::otlp::wire::{bytes, fixed64, nested, number};
use crate::sink::otlp::{attribute, scope, string};

/// `AGGREGATION_TEMPORALITY_CUMULATIVE`
const CUMULATIVE: u64 = 2;

/// The time that counts are of, nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) begun: u64,
    pub(super) now: u64,
}

/// An `ExportMetricsServiceRequest`. The resource is that of a run's records.
pub(super) fn request(text: &str, resource: &[u8], span: Span) -> Vec<u8> {
    let mut request = Vec::new();
    nested(&mut request, 1, |to| {
        bytes(to, 1, resource);
        nested(to, 2, |to| {
            scope(to, 1);
            metrics(text, to, span);
        });
    });
    request
}

/// What the lines before its samples say of a metric, and the samples.
#[derive(Default)]
struct Family<'a> {
    name: &'a str,
    kind: &'a str,
    help: &'a str,
    unit: &'a str,
    samples: Vec<Sample<'a>>,
}

struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: &'a str,
}

fn metrics(text: &str, to: &mut Vec<u8>, span: Span) {
    let mut family = Family::default();
    for line in text.lines() {
        let Some(about) = line.strip_prefix("# ") else {
            family.samples.extend(Sample::read(line));
            continue;
        };
        let mut words = about.splitn(3, ' ');
        let (what, name) = (words.next(), words.next().unwrap_or_default());
        let value = words.next().unwrap_or_default();
        if name != family.name {
            mem::take(&mut family).write(to, span);
            family.name = name;
        }
        match what {
            Some("HELP") => family.help = value,
            Some("TYPE") => family.kind = value,
            Some("UNIT") => family.unit = value,
            _ => {}
        }
    }
    family.write(to, span);
}

impl Family<'_> {
    fn write(&self, to: &mut Vec<u8>, span: Span) {
        let Some(first) = self.samples.first() else {
            return;
        };
        nested(to, 2, |to| {
            // As in the text, where that of a counter ends with `_total`.
            let name = if self.kind == "histogram" {
                self.name
            } else {
                first.name
            };
            bytes(to, 1, name.as_bytes());
            bytes(to, 2, self.help.as_bytes());
            // <https://ucum.org/ucum>
            let unit = match self.unit {
                "seconds" => "s",
                "bytes" => "By",
                other => other,
            };
            bytes(to, 3, unit.as_bytes());
            match self.kind {
                "counter" => nested(to, 7, |to| {
                    self.points(to, span);
                    number(to, 2, CUMULATIVE);
                    number(to, 3, 1);
                }),
                "histogram" => nested(to, 9, |to| {
                    self.histogram(to, span);
                    number(to, 2, CUMULATIVE);
                }),
                _ => nested(to, 5, |to| self.points(to, span)),
            }
        });
    }

    fn points(&self, to: &mut Vec<u8>, span: Span) {
        for sample in &self.samples {
            nested(to, 1, |to| {
                times(to, span);
                match sample.value.parse::<i64>() {
                    Ok(value) => fixed64(to, 6, value.cast_unsigned()),
                    Err(_) => fixed64(to, 4, sample.number().to_bits()),
                }
                for (name, value) in &sample.labels {
                    attribute(to, 7, name, |to| string(to, value));
                }
            });
        }
    }

    /// The one series of it, which has no labels but the ends of the buckets. In the text a bucket has what
    /// the smaller ones have as well.
    fn histogram(&self, to: &mut Vec<u8>, span: Span) {
        let ends = |sample: &Sample<'_>| sample.labels.first()?.1.parse::<f64>().ok();
        let buckets = self
            .samples
            .iter()
            .filter_map(|it| Some((ends(it)?, it.count())));
        let buckets: Vec<_> = buckets.collect();
        let single = |end: &str| {
            let sample = self.samples.iter().find(|it| it.name.ends_with(end));
            sample.map_or((0, 0.0), |it| (it.count(), it.number()))
        };
        nested(to, 1, |to| {
            times(to, span);
            fixed64(to, 4, single("_count").0);
            fixed64(to, 5, single("_sum").1.to_bits());
            nested(to, 6, |to| {
                let mut below = 0;
                for &(_, count) in &buckets {
                    to.extend_from_slice(&(count - below).to_le_bytes());
                    below = count;
                }
            });
            nested(to, 7, |to| {
                for (end, _) in buckets.iter().filter(|(end, _)| end.is_finite()) {
                    to.extend_from_slice(&end.to_le_bytes());
                }
            });
        });
    }
}

fn times(to: &mut Vec<u8>, span: Span) {
    fixed64(to, 2, span.begun);
    fixed64(to, 3, span.now);
}

impl<'a> Sample<'a> {
    /// `name 1`, `name{label="value",…} 1.5`.
    fn read(line: &'a str) -> Option<Self> {
        let (name, value) = line.rsplit_once(' ')?;
        let Some((name, mut rest)) = name.split_once('{') else {
            return Some(Self {
                name,
                labels: Vec::new(),
                value,
            });
        };
        let mut labels = Vec::new();
        while let Some((label, quoted)) = rest.split_once("=\"") {
            let (text, after) = unquoted(quoted)?;
            labels.push((label, text));
            rest = after.trim_start_matches(',');
        }
        Some(Self {
            name,
            labels,
            value,
        })
    }

    fn number(&self) -> f64 {
        self.value.parse().unwrap_or_default()
    }

    fn count(&self) -> u64 {
        self.value.parse().unwrap_or_default()
    }
}

/// Text up to the quote that ends it, and what comes after that.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut plain = String::new();
    let mut characters = text.chars();
    loop {
        match characters.next()? {
            '"' => return Some((plain, characters.as_str())),
            '\\' => plain.push(match characters.next()? {
                'n' => '\n',
                other => other,
            }),
            other => plain.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
    use opentelemetry_proto::tonic::metrics::v1::metric::Data;
    use opentelemetry_proto::tonic::metrics::v1::{Metric, NumberDataPoint};
    use prost::Message as _;
    use serde_json::json;

    use super::*;
    use crate::sink::otlp::tests::flat;
    use crate::sink::{resource, samples};

    const TEXT: &str = "\
# HELP a_resets How many.
# TYPE a_resets counter
a_resets_total{cause=\"x, y\",to=\"C:\\\\\\\"a\\\"\\n\"} 3
a_resets_total{cause=\"\",to=\"b\"} 4
# HELP a_none Nobody.
# TYPE a_none counter
# HELP a_build What runs.
# TYPE a_build info
a_build_info{version=\"1\"} 1
# HELP a_age_seconds How old.
# TYPE a_age_seconds histogram
# UNIT a_age_seconds seconds
a_age_seconds_sum 7.5
a_age_seconds_count 6
a_age_seconds_bucket{le=\"1.0\"} 1
a_age_seconds_bucket{le=\"5.0\"} 4
a_age_seconds_bucket{le=\"+Inf\"} 6
# HELP a_cpu_seconds How much.
# TYPE a_cpu_seconds counter
a_cpu_seconds_total 0.25
# EOF
";

    fn read(text: &str) -> Vec<Metric> {
        let span = Span { begun: 7, now: 9 };
        let resource = resource(&samples::context());
        let request = request(text, &resource, span);
        let request = ExportMetricsServiceRequest::decode(&request[..]);
        let mut request = request.expect("it is of the schema");
        let metrics = request.resource_metrics.remove(0);
        let resource = flat(&metrics.resource.expect("a resource").attributes);
        assert_eq!(resource["service.name"], "tcptrace");
        metrics.scope_metrics[0].metrics.clone()
    }

    fn numbers(points: &[NumberDataPoint]) -> serde_json::Value {
        let point = |it: &NumberDataPoint| {
            assert_eq!((it.start_time_unix_nano, it.time_unix_nano), (7, 9));
            json!([
                flat(&it.attributes),
                serde_json::to_value(it.value).expect("a number")
            ])
        };
        points.iter().map(point).collect()
    }

    #[test]
    fn counters_gauges_and_histograms_keep_what_the_text_says() {
        let metrics = read(TEXT);
        let names: Vec<_> = metrics.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "a_resets_total",
                "a_build_info",
                "a_age_seconds",
                "a_cpu_seconds_total"
            ]
        );
        let [resets, build, age, cpu] = &metrics[..] else {
            panic!("{names:?}")
        };
        assert_eq!(resets.description, "How many.");
        let Some(Data::Sum(resets)) = &resets.data else {
            panic!("{resets:?}")
        };
        assert!(resets.is_monotonic);
        assert_eq!(resets.aggregation_temporality, 2);
        assert_eq!(
            numbers(&resets.data_points),
            json!([
                [{"cause": "x, y", "to": "C:\\\"a\"\n"}, {"asInt": "3"}],
                [{"cause": "", "to": "b"}, {"asInt": "4"}],
            ])
        );
        let Some(Data::Gauge(build)) = &build.data else {
            panic!("{build:?}")
        };
        assert_eq!(
            numbers(&build.data_points),
            json!([[{"version": "1"}, {"asInt": "1"}]])
        );
        assert_eq!(age.unit, "s");
        let Some(Data::Histogram(age)) = &age.data else {
            panic!("{age:?}")
        };
        let [point] = &age.data_points[..] else {
            panic!("{age:?}")
        };
        assert_eq!((point.count, point.sum), (6, Some(7.5)));
        assert_eq!(point.bucket_counts, [1, 3, 2]);
        assert_eq!(point.explicit_bounds, [1.0, 5.0]);
        let Some(Data::Sum(cpu)) = &cpu.data else {
            panic!("{cpu:?}")
        };
        assert_eq!(numbers(&cpu.data_points), json!([[{}, {"asDouble": 0.25}]]));
    }
}
