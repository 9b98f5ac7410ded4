//! Names of figures, their values, and thresholds on them.
//!
//! A figure is a counter (`lost`), a rate (`settled_per_s`), or a property of a latency (`heartbeat.p99_ms`). A threshold compares one
//! with a number, of the whole run without its warm-up or, with the name of a phase in front (`storm/lost`), of that phase.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::measure::{Metric, Window};
use crate::report::Totals;

/// Values by name.
pub type Figures = BTreeMap<String, f64>;

const OF_LATENCIES: [&str; 7] = ["count", "per_s", "p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms"];
/// Figures of the whole run only.
const OF_THE_RUN: [&str; 5] = ["unsettled", "never_connected", "orders.checked", "orders.wrong", "sim.cpu_percent"];

/// The counters of a span, by name.
fn counted(span: &Totals) -> [(&'static str, i64); 23] {
    [
        ("binds", span.binds),
        ("connect_errors", span.connect_errors),
        ("closed_by_server", span.closed_by_server),
        ("closed_by_device", span.closed_by_device),
        ("malformed", span.malformed),
        ("offline_mode", span.offline_mode),
        ("lost", span.lost),
        ("abandoned", span.abandoned),
        ("mismatched", span.mismatched),
        ("commands", span.commands),
        ("charges_started", span.charges_started),
        ("charges_refused", span.charges_refused),
        ("charges_ended", span.charges_ended),
        ("settled", span.settled),
        ("rude_closed", span.rude_closed),
        ("bytes_sent", span.bytes_sent),
        ("bytes_received", span.bytes_received),
        ("api.charges", span.api_charges),
        ("api.stops", span.api_stops),
        ("api.commands", span.api_commands),
        ("api.refused", span.api_refused),
        ("api.failed", span.api_failed),
        ("api.unsent", span.api_unsent),
    ]
}

/// The figures of a span of `seconds`, in which `span` was counted and `window` recorded; `end` is how it ended.
pub fn of_span(seconds: f64, span: &Totals, end: &Totals, window: &Window) -> Figures {
    let mut figures = Figures::new();
    let per_s = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
    for (name, count) in counted(span) {
        figures.insert(name.to_owned(), count as f64);
        figures.insert(format!("{name}_per_s"), per_s(count as f64));
    }
    figures.insert("connected".to_owned(), end.connected as f64);
    figures.insert("bound".to_owned(), end.registered as f64);
    figures.insert("charging".to_owned(), end.charging as f64);
    figures.insert("rude_connected".to_owned(), end.rude_connected as f64);
    // Until all are bound, however long the span was.
    let bound_per_s = window.binding_us().map_or(0.0, |us| span.binds as f64 * 1e6 / us as f64);
    figures.insert("bound_per_s".to_owned(), bound_per_s);
    for metric in Metric::ALL {
        let Some(latency) = window.latency(metric) else {
            figures.insert(format!("{}.count", metric.as_str()), 0.0);
            continue;
        };
        let count = latency.0.len() as f64;
        let ms = |quantile: f64| latency.0.value_at_quantile(quantile) as f64 / 1e3;
        let values = [count, per_s(count), ms(0.5), ms(0.9), ms(0.99), ms(0.999), latency.0.max() as f64 / 1e3];
        for (property, value) in OF_LATENCIES.iter().zip(values) {
            figures.insert(format!("{}.{property}", metric.as_str()), value);
        }
    }
    figures
}

/// Whether there is a figure of this name.
pub fn is_known(name: &str) -> bool {
    let of_latency = |(metric, property): (&str, &str)| {
        Metric::ALL.iter().any(|known| known.as_str() == metric) && OF_LATENCIES.contains(&property)
    };
    let plain = name.strip_suffix("_per_s").unwrap_or(name);
    OF_THE_RUN.contains(&name)
        || ["connected", "bound", "bound_per_s", "charging", "rude_connected"].contains(&name)
        || counted(&Totals::default()).iter().any(|(known, _)| *known == plain)
        || name.rsplit_once('.').is_some_and(of_latency)
}

/// How a figure is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Below,
    AtMost,
    Equal,
    Unequal,
    AtLeast,
    Above,
}

impl Comparison {
    // Longer ones first.
    const ALL: [(&'static str, Self); 6] = [
        ("<=", Self::AtMost),
        (">=", Self::AtLeast),
        ("==", Self::Equal),
        ("!=", Self::Unequal),
        ("<", Self::Below),
        (">", Self::Above),
    ];
}

/// A condition on a figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    text: String,
    phase: Option<String>,
    figure: String,
    comparison: Comparison,
    limit: f64,
}

impl Threshold {
    /// The phase that it is about; `None`: the whole run.
    pub fn phase(&self) -> Option<&str> {
        self.phase.as_deref()
    }

    /// The figure.
    pub fn figure(&self) -> &str {
        &self.figure
    }

    /// Whether the figure is a latency, which a late generator spoils.
    pub fn is_latency(&self) -> bool {
        self.figure.ends_with("_ms")
    }

    /// Whether a value is as it should be.
    pub fn holds(&self, value: f64) -> bool {
        match self.comparison {
            Comparison::Below => value < self.limit,
            Comparison::AtMost => value <= self.limit,
            // Counters are whole numbers below 2^53.
            Comparison::Equal => (value - self.limit).abs() < f64::EPSILON,
            Comparison::Unequal => (value - self.limit).abs() >= f64::EPSILON,
            Comparison::AtLeast => value >= self.limit,
            Comparison::Above => value > self.limit,
        }
    }
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("must be FIGURE < NUMBER or PHASE/FIGURE with <, <=, ==, !=, >= or >, got {text:?}");
        let split = |(sign, comparison)| text.split_once(sign).map(|(name, limit)| (name, comparison, limit));
        let (name, comparison, limit) = Comparison::ALL.into_iter().find_map(split).ok_or_else(wrong)?;
        let limit: f64 = limit.trim().parse().map_err(|_| wrong())?;
        let (phase, figure) = match name.trim().split_once('/') {
            Some((phase, figure)) => (Some(phase.to_owned()), figure),
            None => (None, name.trim()),
        };
        if figure.is_empty() || !limit.is_finite() {
            return Err(wrong());
        }
        Ok(Self { text: text.to_owned(), phase, figure: figure.to_owned(), comparison, limit })
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Threshold {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_read_and_compared() {
        let holds = |text: &str, value| text.parse::<Threshold>().unwrap().holds(value);
        assert!(holds("heartbeat.p99_ms < 1000", 999.9) && !holds("heartbeat.p99_ms < 1000", 1000.0));
        assert!(holds("lost == 0", 0.0) && !holds("lost == 0", 1.0) && holds("lost != 0", 1.0));
        assert!(holds("bound_per_s>=5000", 5000.0) && !holds("bound_per_s > 5000", 5000.0) && holds("lost <= 3", 3.0));
        let threshold: Threshold = "storm/api.status.p99_ms < 10".parse().unwrap();
        assert_eq!((threshold.phase(), threshold.figure()), (Some("storm"), "api.status.p99_ms"));
        for bad in ["lost", "lost = 0", "lost < many", "< 3", "lost < inf"] {
            assert!(bad.parse::<Threshold>().is_err(), "{bad}");
        }
    }

    #[test]
    fn figures_of_a_span_are_known_by_their_names() {
        let mut window = Window::default();
        for us in 1..=100 {
            window.record(Metric::ApiStatus, us * 1000);
        }
        (window.connects_from_us, window.bound_until_us) = (Some(1_000_000), Some(3_000_000));
        let span = Totals { binds: 100, settled: 30, ..Totals::default() };
        let figures = of_span(10.0, &span, &span, &window);
        assert!(figures.keys().all(|name| is_known(name)), "{figures:?}");
        assert_eq!((figures["bound_per_s"], figures["settled_per_s"], figures["api.status.per_s"]), (50.0, 3.0, 10.0));
        assert!((98.0..=100.0).contains(&figures["api.status.p99_ms"]));
        assert!(!is_known("heartbeat.p98_ms") && !is_known("speed"));
    }
}
