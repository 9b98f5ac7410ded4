//! What the link counts.

use super::LinkError;
use crate::telemetry::label::{Label, RedisFailure, RedisOp};
use crate::telemetry::{Counter, Exposition, Labelled, SharedHistogram, histogram::Merged};

/// Counters since start, readable from any thread.
#[derive(Debug, Default)]
pub struct LinkCounters {
    /// From sending to the answer, of jobs that were sent, failed ones included.
    pub latency: Labelled<RedisOp, SharedHistogram, { RedisOp::COUNT }>,
    /// Jobs that failed, by reason.
    pub failed: Labelled<RedisFailure, Counter, { RedisFailure::COUNT }>,
    /// Times Redis was back after it was away.
    pub reconnects: Counter,
    /// Connections opened, all kinds.
    pub connections: Counter,
    /// Times its data was found to be gone.
    pub emptied: Counter,
    /// Jobs that panicked: bugs.
    pub panics: Counter,
}

impl LinkCounters {
    /// Counts a failure, also one on a connection that is not the link's.
    pub fn failed(&self, error: &LinkError) {
        self.failed[error.label()].inc();
    }

    pub(super) fn render(&self, up: bool, waiting: usize, to: &mut Exposition<'_>) {
        to.gauge("chargegate_redis_up", "Whether Redis answers.", u8::from(up));
        to.gauge("chargegate_redis_jobs_waiting", "Jobs that wait for a connection to Redis.", waiting);
        let name = "chargegate_redis_seconds";
        to.family(name, "histogram", "From sending to Redis to its answer.");
        for (op, histogram) in self.latency.iter() {
            to.histogram(name, &[("operation", op.as_str())], &Merged::of_shared(histogram));
        }
        let name = "chargegate_redis_failed_total";
        to.family(name, "counter", "Jobs for Redis that failed.");
        for (reason, count) in self.failed.iter() {
            to.sample(name, &[("reason", reason.as_str())], count.get());
        }
        for (name, help, counter) in [
            ("chargegate_redis_reconnects_total", "Times Redis was back after it was away.", &self.reconnects),
            ("chargegate_redis_connections_total", "Connections to Redis opened.", &self.connections),
            ("chargegate_redis_emptied_total", "Times Redis was found to have lost its data.", &self.emptied),
            ("chargegate_redis_panics_total", "Jobs for Redis that panicked.", &self.panics),
        ] {
            to.counter(name, help, counter.get());
        }
    }
}
