//! What the store counts, readable from any thread.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::store::{Applied, Job, Outcome};
use crate::telemetry::Exposition;

/// Job kinds in the order of their counters.
pub const KINDS: [&str; 22] = [
    "bind",
    "create_order",
    "order",
    "settle",
    "device",
    "report",
    "command",
    "claim",
    "backstop",
    "delivery",
    "prune",
    "swipe",
    "card",
    "call",
    "set_params",
    "ota",
    "settings",
    "network",
    "instance",
    "lease",
    "endpoint",
    "managed",
];
/// Upper bounds of the commit latency buckets, µs; a last one is open.
pub const COMMIT_BUCKETS_US: [u64; 10] = [250, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 200_000, 1_000_000];

/// Index of a job's kind in [`KINDS`].
pub(super) const fn kind(job: &Job) -> usize {
    match job {
        Job::Bind(_) => 0,
        Job::CreateOrder(_) => 1,
        Job::Order(_) => 2,
        Job::Settle(_) => 3,
        Job::Device(_) => 4,
        Job::Report(_) => 5,
        Job::Command(_) => 6,
        Job::Claim { .. } => 7,
        Job::Backstop(_) => 8,
        Job::Delivery(_) => 9,
        Job::Prune(_) => 10,
        Job::Swipe(_) => 11,
        Job::Card(_) => 12,
        Job::Call(_) => 13,
        Job::SetParams(_) => 14,
        Job::Ota(_) => 15,
        Job::Settings(_) => 16,
        Job::Network(_) => 17,
        Job::Instance(_) => 18,
        Job::Lease(_) => 19,
        Job::Endpoint(_) => 20,
        Job::Managed(_) => 21,
    }
}

/// Counters since start. All are relaxed: each is exact, they are not a snapshot of one instant.
#[derive(Debug, Default)]
pub struct StoreCounters {
    /// Jobs committed, by [`KINDS`].
    pub jobs: [AtomicU64; KINDS.len()],
    /// Jobs answered [`Outcome::Failed`], by [`KINDS`].
    pub failures: [AtomicU64; KINDS.len()],
    /// Settlements put into quarantine.
    pub quarantined: AtomicU64,
    /// Jobs given back because the queue was full or the store closing.
    pub refused: AtomicU64,
    /// Transactions committed with durable jobs.
    pub batches: AtomicU64,
    /// Jobs in them.
    pub batch_jobs: AtomicU64,
    /// Transactions that failed.
    pub batches_failed: AtomicU64,
    /// Durable transactions by duration; [`COMMIT_BUCKETS_US`].
    pub commit: [AtomicU64; COMMIT_BUCKETS_US.len() + 1],
    /// Sum of those durations, µs.
    pub commit_us: AtomicU64,
    /// Latest values written.
    pub latest_rows: AtomicU64,
    /// Latest values given back because the queue was full.
    pub latest_refused: AtomicU64,
    /// Latest values lost in a failed transaction.
    pub latest_lost: AtomicU64,
    /// Command-log rows written.
    pub log_rows: AtomicU64,
    /// Command-log rows dropped: the queue was full, or the file failed.
    pub log_dropped: AtomicU64,
    /// Rows of the delivery log written.
    pub delivery_rows: AtomicU64,
    /// Rows of the delivery log dropped: the queue was full, or the file failed.
    pub delivery_dropped: AtomicU64,
    /// Queries given back because the queue was full.
    pub reads_refused: AtomicU64,
    /// Checkpoints that moved pages.
    pub checkpoints: AtomicU64,
    /// Events pruned before an endpoint had them.
    pub events_lost: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl StoreCounters {
    /// Counts what became of the jobs of a transaction.
    pub(super) fn count(&self, jobs: &[Job], applied: &Applied) {
        for (job, outcome) in jobs.iter().zip(&applied.outcomes) {
            let failed = matches!(outcome, Outcome::Failed { .. });
            let kinds = if failed { &self.failures } else { &self.jobs };
            if let Some(counter) = kinds.get(kind(job)) {
                add(counter, 1);
            }
            if matches!(outcome, Outcome::Settled(settled) if settled.quarantined) {
                add(&self.quarantined, 1);
            }
        }
        add(&self.events_lost, applied.events_lost);
        if applied.error.is_some() {
            add(&self.batches_failed, 1);
        } else {
            add(&self.batches, 1);
            add(&self.batch_jobs, jobs.len() as u64);
        }
    }

    pub(super) fn render(&self, to: &mut Exposition<'_>) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (name, help, counters) in [
            ("chargegate_store_jobs_total", "Durable changes committed, by kind.", &self.jobs),
            ("chargegate_store_failed_total", "Durable changes that could not be committed, by kind.", &self.failures),
        ] {
            to.family(name, "counter", help);
            for (kind, count) in KINDS.into_iter().zip(counters) {
                to.sample(name, &[("kind", kind)], load(count));
            }
        }
        let name = "chargegate_store_refused_total";
        to.family(name, "counter", "What was given back or dropped because a queue of the store was full.");
        for (queue, count) in [
            ("jobs", &self.refused),
            ("latest", &self.latest_refused),
            ("command_log", &self.log_dropped),
            ("delivery_log", &self.delivery_dropped),
            ("reads", &self.reads_refused),
        ] {
            to.sample(name, &[("queue", queue)], load(count));
        }
        for (name, help, count) in [
            ("chargegate_store_batches_total", "Transactions committed with durable changes.", &self.batches),
            ("chargegate_store_batches_failed_total", "Transactions that failed.", &self.batches_failed),
            ("chargegate_store_latest_rows_total", "Latest values written.", &self.latest_rows),
            ("chargegate_store_latest_lost_total", "Latest values lost with a transaction.", &self.latest_lost),
            ("chargegate_store_command_log_rows_total", "Command log rows written.", &self.log_rows),
            ("chargegate_store_delivery_log_rows_total", "Rows of the delivery log written.", &self.delivery_rows),
            ("chargegate_store_checkpoints_total", "Checkpoints that moved pages.", &self.checkpoints),
            ("chargegate_events_lost_total", "Events dropped by retention before their delivery.", &self.events_lost),
        ] {
            to.counter(name, help, load(count));
        }
        let name = "chargegate_store_commit_seconds";
        to.family(name, "histogram", "Time of transactions with durable changes.");
        let mut below = 0;
        let cumulative = self.commit.each_ref().map(|bucket| {
            below += load(bucket);
            below
        });
        let buckets = COMMIT_BUCKETS_US.map(seconds).into_iter().zip(cumulative);
        to.buckets(name, &[], buckets, seconds(load(&self.commit_us)), below);
    }

    pub(super) fn committed_in(&self, us: u64) {
        let bucket = COMMIT_BUCKETS_US.partition_point(|bound| *bound < us);
        if let Some(bucket) = self.commit.get(bucket) {
            add(bucket, 1);
        }
        add(&self.commit_us, us);
    }
}

/// Microseconds as seconds.
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}
