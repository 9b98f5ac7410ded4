//! Prometheus text format 0.0.4.

use std::fmt::{Display, Write};

use super::histogram::Merged;

/// Upper bounds of the exposed histogram buckets in microseconds: 100 µs to 60 s.
const BOUNDS_US: [u64; 17] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 60_000_000,
];

/// Appends metric families to a text. Each name is one family, begun once and followed by all of its samples.
#[derive(Debug)]
pub struct Exposition<'a>(pub(super) &'a mut String);

/// A part of the gateway that counts for itself and whose figures stand in the exposition with all others.
///
/// It is asked on the thread that answers the scrape, which must not wait: no lock that is held during work. Family names are its
/// own, labels come from closed sets or from the configuration.
pub trait MetricSource: Send + Sync {
    /// Appends its families.
    fn render(&self, to: &mut Exposition<'_>);
}

impl Exposition<'_> {
    /// Starts a family; its samples follow.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.0.extend(["# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind, "\n"]);
    }

    /// A sample of the family begun last.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            self.0.extend([if index == 0 { "{" } else { "," }, label, "=\""]);
            for character in text.chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        self.0.push_str(if labels.is_empty() { " " } else { "} " });
        writeln!(self.0, "{value}").expect("writing to a String does not fail");
    }

    /// A family of one counter.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }

    /// A family of one gauge.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    /// The samples of one histogram in seconds; the family is started by the caller.
    pub fn histogram(&mut self, name: &str, labels: &[(&str, &str)], merged: &Merged) {
        let mut counts = [0_u64; BOUNDS_US.len()];
        for step in merged.latencies_us.iter_recorded() {
            // Bounds ascend: a value counts in its own bucket here, and the sums below make them cumulative.
            let index = BOUNDS_US.partition_point(|bound| *bound < step.value_iterated_to());
            if let Some(count) = counts.get_mut(index) {
                *count += step.count_since_last_iteration();
            }
        }
        let mut below = 0;
        let cumulative = counts.map(|count| {
            below += count;
            below
        });
        let buckets = BOUNDS_US.into_iter().map(seconds).zip(cumulative);
        self.buckets(name, labels, buckets, seconds(merged.sum_us), merged.latencies_us.len());
    }

    /// The samples of one histogram that was counted in buckets: upper bounds in seconds, ascending, each with the observations
    /// at most that; the sum in seconds; and the number of all observations. The family is started by the caller.
    pub fn buckets(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        buckets: impl IntoIterator<Item = (f64, u64)>,
        sum_s: f64,
        count: u64,
    ) {
        let bucket_name = format!("{name}_bucket");
        let mut below = 0;
        for (bound_s, observations) in buckets {
            below = observations;
            let bound = bound_s.to_string();
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.sample(&bucket_name, &labels, below);
        }
        // Counters are read one after the other while others write: the last bucket must not be below the one before it.
        let count = count.max(below);
        let labels_inf: Vec<_> = labels.iter().copied().chain([("le", "+Inf")]).collect();
        self.sample(&bucket_name, &labels_inf, count);
        self.sample(&format!("{name}_sum"), labels, sum_s);
        self.sample(&format!("{name}_count"), labels, count);
    }
}

/// Microseconds as seconds.
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}
