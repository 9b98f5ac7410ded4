//! What the webhooks count: plain atomics, read by the metrics page without waiting for anyone.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::{sync::Arc, time::Duration};

use super::{breaker::BreakerState, retry::Failure};
use crate::telemetry::Exposition;

/// Appends the families of all endpoints. `last_pos` is the newest committed position.
pub(super) fn render(endpoints: &[Arc<EndpointCounters>], last_pos: i64, to: &mut Exposition<'_>) {
    type Value = fn(&EndpointCounters, i64) -> u64;
    type Latency = fn(&EndpointCounters) -> &LatencyBuckets;
    let families: [(&str, &str, &str, Value); 8] = [
        ("chargegate_events_pushed_total", "counter", "Events that an endpoint took.", |of, _| {
            of.delivered.load(Ordering::Relaxed)
        }),
        ("chargegate_events_retried_total", "counter", "Delivery attempts after the first.", |of, _| {
            of.retried.load(Ordering::Relaxed)
        }),
        ("chargegate_events_dead_total", "counter", "Events out of attempts.", |of, _| of.dead.load(Ordering::Relaxed)),
        ("chargegate_events_parked", "gauge", "Events waiting for a retry, or behind one.", |of, _| {
            of.parked.load(Ordering::Relaxed)
        }),
        ("chargegate_events_in_flight", "gauge", "Delivery attempts under way.", |of, _| {
            of.in_flight.load(Ordering::Relaxed)
        }),
        ("chargegate_events_backlog", "gauge", "Committed events behind an endpoint's cursor.", |of, last_pos| {
            u64::try_from(last_pos.saturating_sub(of.cursor.load(Ordering::Relaxed))).unwrap_or(0)
        }),
        ("chargegate_webhook_breaker_open", "gauge", "Whether an endpoint is not asked, but for probes.", |of, _| {
            u64::from(of.breaker() != BreakerState::Closed)
        }),
        (
            "chargegate_webhook_endpoint_disabled",
            "gauge",
            "Whether an endpoint gets nothing until enabled.",
            |of, _| u64::from(of.disabled.load(Ordering::Relaxed)),
        ),
    ];
    for (name, kind, help, value) in families {
        to.family(name, kind, help);
        for endpoint in endpoints {
            to.sample(name, &[("endpoint", &endpoint.name)], value(endpoint, last_pos));
        }
    }
    let name = "chargegate_events_failed_total";
    to.family(name, "counter", "Delivery attempts that failed.");
    for endpoint in endpoints {
        for (reason, count) in endpoint.failures() {
            to.sample(name, &[("endpoint", &endpoint.name), ("reason", reason)], count);
        }
    }
    let latencies: [(&str, &str, Latency); 2] = [
        ("chargegate_webhook_latency_seconds", "From sending a webhook request to its response.", |of| {
            &of.attempt_latency
        }),
        ("chargegate_event_delay_seconds", "From an event's time to its acceptance by an endpoint.", |of| {
            &of.delivery_latency
        }),
    ];
    for (name, help, latency) in latencies {
        to.family(name, "histogram", help);
        for endpoint in endpoints {
            let latency = latency(endpoint);
            let buckets = latency.cumulative().map(|(bound_ms, count)| (seconds(bound_ms), count));
            to.buckets(name, &[("endpoint", &endpoint.name)], buckets, seconds(latency.sum_ms()), latency.count());
        }
    }
}

/// Milliseconds as seconds.
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1e3
}

/// Counters of one endpoint. Monotonic unless said otherwise; written by the endpoint's dispatcher alone.
#[derive(Debug)]
pub struct EndpointCounters {
    /// The endpoint's name, the metric's label.
    pub name: String,
    /// Events the receiver accepted.
    pub delivered: AtomicU64,
    /// Failed attempts by reason, in the order of [`Failure::LABELS`].
    pub failed: [AtomicU64; Failure::LABELS.len()],
    /// Attempts that were not the first of their event.
    pub retried: AtomicU64,
    /// Events moved to the dead letters.
    pub dead: AtomicU64,
    /// Gauge: events waiting for a retry, or behind one.
    pub parked: AtomicU64,
    /// Gauge: attempts under way.
    pub in_flight: AtomicU64,
    /// Gauge: everything up to here is delivered, parked or dead.
    pub cursor: AtomicI64,
    /// Gauge: the receiver answered 410, or an operator disabled it; it gets nothing until it is enabled.
    pub disabled: AtomicBool,
    /// Gauge: this instance is the one that delivers to it.
    pub delivering: AtomicBool,
    /// Request to answer, of attempts that were answered.
    pub attempt_latency: LatencyBuckets,
    /// Event's time to its acceptance.
    pub delivery_latency: LatencyBuckets,
    breaker: AtomicU8,
}

impl EndpointCounters {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            delivered: AtomicU64::new(0),
            failed: Default::default(),
            retried: AtomicU64::new(0),
            dead: AtomicU64::new(0),
            parked: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            cursor: AtomicI64::new(0),
            disabled: AtomicBool::new(false),
            delivering: AtomicBool::new(false),
            attempt_latency: LatencyBuckets::default(),
            delivery_latency: LatencyBuckets::default(),
            breaker: AtomicU8::new(BreakerState::Closed as u8),
        }
    }

    /// Gauge: state of the breaker.
    pub fn breaker(&self) -> BreakerState {
        match self.breaker.load(Ordering::Relaxed) {
            0 => BreakerState::Closed,
            1 => BreakerState::HalfOpen,
            _ => BreakerState::Open,
        }
    }

    pub(super) fn set_breaker(&self, state: BreakerState) {
        self.breaker.store(state as u8, Ordering::Relaxed);
    }

    /// Failed attempts with their metric labels.
    pub fn failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Failure::LABELS.into_iter().zip(self.failed.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}

/// A histogram with fixed buckets.
#[derive(Debug, Default)]
pub struct LatencyBuckets {
    counts: [AtomicU64; Self::BOUNDS_MS.len()],
    total: AtomicU64,
    sum_ms: AtomicU64,
}

impl LatencyBuckets {
    /// Upper bounds, ms.
    pub const BOUNDS_MS: [u64; 13] = [1, 2, 5, 10, 20, 50, 100, 250, 500, 1_000, 2_500, 5_000, 60_000];

    pub(super) fn record(&self, latency: Duration) {
        let ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        // A bucket holds what is at most its bound, and whole milliseconds are rounded down: 1.4 ms belongs above 1.
        if let Some(count) = Self::BOUNDS_MS
            .iter()
            .position(|bound| latency <= Duration::from_millis(*bound))
            .and_then(|bucket| self.counts.get(bucket))
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_ms.fetch_add(ms, Ordering::Relaxed);
        self.total.fetch_add(1, Ordering::Relaxed);
    }

    /// Observations at most each bound, cumulative, as Prometheus wants them.
    pub fn cumulative(&self) -> [(u64, u64); Self::BOUNDS_MS.len()] {
        let mut sum = 0;
        std::array::from_fn(|bucket| {
            sum += self.counts.get(bucket).map_or(0, |count| count.load(Ordering::Relaxed));
            (Self::BOUNDS_MS.get(bucket).copied().unwrap_or(u64::MAX), sum)
        })
    }

    /// Observations in all.
    pub fn count(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Sum of the observations, ms.
    pub fn sum_ms(&self) -> u64 {
        self.sum_ms.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_bounds_inclusive() {
        let buckets = LatencyBuckets::default();
        for us in [0, 1_000, 1_001, 5_000, 60_000_001] {
            buckets.record(Duration::from_micros(us));
        }
        let cumulative = buckets.cumulative();
        assert_eq!(cumulative[..3], [(1, 2), (2, 3), (5, 4)]);
        assert_eq!((cumulative[12].1, buckets.count(), buckets.sum_ms()), (4, 5, 60_007));
    }
}
