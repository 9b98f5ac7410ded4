//! Latency histograms that are recorded without locks and merged on scrape.
//!
//! An `hdrhistogram` is not shared between threads: its own concurrent recorder makes the reader wait for writers at a
//! phase change and drains the counts, which a cumulative Prometheus histogram must keep. So recording goes into a
//! fixed array of atomics with the same log-linear shape, and a scrape adds the arrays of all shards into one
//! [`hdrhistogram::Histogram`].
//!
//! Values are microseconds. Below 32 µs buckets are exact, above each power of two has 32 of them, so a value is
//! reported at most 3.2 % too high; 134 s and more share the last bucket.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hdrhistogram::Histogram;

/// Buckets per power of two, as an exponent.
const SUB_BITS: u32 = 5;
const SUB_BUCKETS: u64 = 1 << SUB_BITS;
/// Values from 2 to this power are clamped.
const VALUE_BITS: u32 = 27;
const VALUE_US_MAX: u64 = (1 << VALUE_BITS) - 1;
const BUCKETS: usize = ((VALUE_BITS - SUB_BITS + 1) as usize) << SUB_BITS;

/// Bucket of a value up to [`VALUE_US_MAX`].
#[inline]
const fn bucket(value_us: u64) -> usize {
    if value_us < SUB_BUCKETS {
        return value_us as usize;
    }
    let shift = value_us.ilog2() - SUB_BITS;
    ((shift as usize) << SUB_BITS) + (value_us >> shift) as usize
}

/// Largest value of a bucket.
const fn bucket_last(index: usize) -> u64 {
    if index < 2 * SUB_BUCKETS as usize {
        return index as u64;
    }
    let shift = (index >> SUB_BITS) - 1;
    let first = (index as u64 & (SUB_BUCKETS - 1)) + SUB_BUCKETS;
    ((first + 1) << shift) - 1
}

/// The cells behind both kinds; about 6 KiB.
#[derive(Debug)]
struct Cells {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Default for Cells {
    fn default() -> Self {
        Self { buckets: array::from_fn(|_| AtomicU64::new(0)), sum_us: AtomicU64::new(0) }
    }
}

impl Cells {
    #[inline]
    fn cell(&self, latency: Duration) -> (&AtomicU64, u64) {
        let value_us = u64::try_from(latency.as_micros()).unwrap_or(VALUE_US_MAX).min(VALUE_US_MAX);
        (&self.buckets[bucket(value_us)], value_us)
    }
}

/// A histogram that one thread records into.
#[derive(Debug, Default)]
pub struct LocalHistogram(Cells);

impl LocalHistogram {
    /// Records one latency.
    #[inline]
    pub fn record(&self, latency: Duration) {
        let (cell, value_us) = self.0.cell(latency);
        cell.store(cell.load(Relaxed).wrapping_add(1), Relaxed);
        self.0.sum_us.store(self.0.sum_us.load(Relaxed).wrapping_add(value_us), Relaxed);
    }
}

/// A histogram that several threads record into.
#[derive(Debug, Default)]
pub struct SharedHistogram(Cells);

impl SharedHistogram {
    /// Records one latency.
    pub fn record(&self, latency: Duration) {
        let (cell, value_us) = self.0.cell(latency);
        cell.fetch_add(1, Relaxed);
        self.0.sum_us.fetch_add(value_us, Relaxed);
    }
}

/// The sum of several histograms at one moment.
#[derive(Clone, Debug)]
pub struct Merged {
    /// Microseconds; for quantiles.
    pub latencies_us: Histogram<u64>,
    /// Sum of all recorded values in microseconds.
    pub sum_us: u64,
}

impl Merged {
    /// The sum of histograms of one shard each.
    pub fn of_local<'a>(parts: impl IntoIterator<Item = &'a LocalHistogram>) -> Self {
        Self::of_cells(parts.into_iter().map(|part| &part.0))
    }

    /// One shared histogram.
    pub fn of_shared(part: &SharedHistogram) -> Self {
        Self::of_cells([&part.0])
    }

    fn of_cells<'a>(parts: impl IntoIterator<Item = &'a Cells>) -> Self {
        let mut latencies_us =
            Histogram::new_with_bounds(1, VALUE_US_MAX, 3).expect("the bounds and digits are in the library's range");
        let mut sum_us: u64 = 0;
        for part in parts {
            sum_us = sum_us.wrapping_add(part.sum_us.load(Relaxed));
            for (index, cell) in part.buckets.iter().enumerate() {
                let count = cell.load(Relaxed);
                if count > 0 {
                    latencies_us.saturating_record_n(bucket_last(index), count);
                }
            }
        }
        Self { latencies_us, sum_us }
    }
}

/// Cumulative counts of several histograms at one moment. Two of them tell what was recorded in between.
#[derive(Clone, Debug)]
pub struct Counts(Box<[u64]>);

impl Counts {
    /// The sum of histograms of one shard each.
    pub fn of_local<'a>(parts: impl IntoIterator<Item = &'a LocalHistogram>) -> Self {
        let mut counts = vec![0_u64; BUCKETS].into_boxed_slice();
        for LocalHistogram(cells) in parts {
            for (count, cell) in counts.iter_mut().zip(&cells.buckets) {
                *count = count.wrapping_add(cell.load(Relaxed));
            }
        }
        Self(counts)
    }

    /// The latency that a share of the values recorded since `earlier` did not exceed; `None` where there were none.
    pub fn quantile_since(&self, earlier: &Self, quantile: f64) -> Option<Duration> {
        let between = || self.0.iter().zip(&earlier.0).map(|(now, then)| now.wrapping_sub(*then));
        let total: u64 = between().sum();
        // The rank is from 1 to the total, so the cast is exact enough and in range.
        let rank = ((total as f64 * quantile).ceil() as u64).clamp(1, total.max(1));
        let mut seen = 0_u64;
        let index = between().position(|count| {
            seen = seen.saturating_add(count);
            seen >= rank
        })?;
        Some(Duration::from_micros(bucket_last(index)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_tell_what_came_in_between() {
        let shards = [LocalHistogram::default(), LocalHistogram::default()];
        let record = |shard: usize, ms| shards[shard].record(Duration::from_millis(ms));
        let none = Counts::of_local(&shards);
        assert_eq!(none.quantile_since(&none, 0.5), None);
        record(0, 4_000);
        let before = Counts::of_local(&shards);
        for ms in 1..=99 {
            record(ms as usize % 2, ms);
        }
        let after = Counts::of_local(&shards);
        let near = |found: Option<Duration>, ms: u64| {
            let found = found.expect("values were recorded").as_secs_f64() * 1e3;
            assert!(found >= ms as f64 && found <= ms as f64 * 1.04, "{found} for {ms}");
        };
        near(after.quantile_since(&before, 0.5), 50);
        near(after.quantile_since(&before, 0.99), 99);
        near(after.quantile_since(&none, 1.0), 4_000);
        assert_eq!(after.quantile_since(&after, 0.99), None);
    }

    #[test]
    fn buckets_tile_the_range() {
        let mut next = 0;
        for index in 0..BUCKETS {
            assert_eq!(bucket(next), index);
            let last = bucket_last(index);
            assert_eq!(bucket(last), index);
            next = last + 1;
        }
        assert_eq!(next, VALUE_US_MAX + 1);
    }

    #[test]
    fn error_is_bounded() {
        for exponent in 0..VALUE_BITS {
            for value in [1 << exponent, (1 << exponent) + 1, (1_u64 << (exponent + 1)) - 1] {
                let reported = bucket_last(bucket(value.min(VALUE_US_MAX)));
                assert!(reported >= value && (reported - value) * 1000 <= value * 32, "{value} as {reported}");
            }
        }
    }

    #[test]
    fn shards_are_merged() {
        let shards = [LocalHistogram::default(), LocalHistogram::default()];
        for (shard, latency_us) in [(0, 10), (0, 1_000), (1, 10), (1, 50_000)] {
            shards[shard].record(Duration::from_micros(latency_us));
        }
        let merged = Merged::of_local(&shards);
        assert_eq!((merged.latencies_us.len(), merged.sum_us), (4, 51_020));
        assert_eq!(merged.latencies_us.value_at_quantile(0.5), 10);
        assert!(merged.latencies_us.max() >= 50_000);
    }

    #[test]
    fn endless_waits_are_clamped() {
        let shared = SharedHistogram::default();
        shared.record(Duration::MAX);
        shared.record(Duration::ZERO);
        let merged = Merged::of_shared(&shared);
        assert_eq!((merged.latencies_us.len(), merged.sum_us), (2, VALUE_US_MAX));
    }
}
