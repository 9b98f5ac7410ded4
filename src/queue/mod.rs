//! The order in which waiting commands are looked at: ids on their way to the instance that holds the device.
//!
//! Ids only. The row in the store is the truth of a command, and its claim decides who writes it, so losing or doubling an entry here is
//! harmless: what is lost is found again by the command poll, the backstop or the next bind.
//!
//! | implementation | where | for |
//! |---|---|---|
//! | [`EmbeddedQueue`] | this process | one instance |
//! | [`RedisQueue`] | a sorted set per instance, `outbound:queue:{server_id}` | any number |
//!
//! **Score** = priority × 10^12 + Unix nanoseconds, lowest first: a step of priority is worth 1,000 s of waiting, so what is less urgent is
//! delayed and never starved. Scores are doubles, which step by 256 ns at this size. Entries of the same step are in the order of their
//! ids *as decimal text*, so "10" comes before "9": Redis compares members so, and both implementations do the same.
//!
//! Pushing an id that waits already keeps one entry with the lower score of the two: doubling never delays.
//!
//! An entry may name its device. That decides nothing: it tells whom to wake without a look into the store.

mod embedded;
mod redis;

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster::ServerId;
use crate::model::{DeviceId, Priority};

pub use self::embedded::EmbeddedQueue;
pub use self::redis::RedisQueue;

/// A step of priority, in nanoseconds of waiting.
const STEP_NS: i64 = 1_000_000_000_000;

/// A waiting command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of its row.
    pub id: i64,
    /// Whom it is for, a hint; the same at each push of the same command.
    pub device_id: Option<DeviceId>,
    /// How urgent.
    pub priority: Priority,
    /// Since when it waits, Unix nanoseconds. The same at each push of the same command keeps its place.
    pub at_ns: i64,
}

impl Entry {
    /// Where it stands; lowest first.
    pub fn score(&self) -> f64 {
        // Whole nanoseconds below the sum: the conversion rounds once, as Redis does with the same number as text.
        self.at_ns.saturating_add(i64::from(self.priority.code()) * STEP_NS) as f64
    }
}

/// What was taken out of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Of the command's row.
    pub id: i64,
    /// Whom it is for, as who pushed it knew; `None`: that did not say.
    pub device_id: Option<DeviceId>,
}

/// Why there is nothing to pop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// [`Queue::close`] was called.
    #[error("the queue is closed")]
    Closed,
    /// The queue cannot be reached; popping again is tried again.
    #[error("the queue is away: {0}")]
    Away(Arc<str>),
}

/// Entries by server. Any thread may push; one pops.
pub trait Queue: Send + Sync {
    /// Adds entries to a server's queue. Never waits: what cannot be taken is dropped and counted.
    fn push(&self, server: &ServerId, entries: Vec<Entry>);

    /// Takes at most `max` entries of this server, lowest score first; waits up to `wait` for the first one. May return fewer than there
    /// are. Empty after `wait`, or if `max` is 0.
    ///
    /// # Errors
    /// Closed at once; away after at most `wait` and the time of a command.
    fn take(&self, max: usize, wait: Duration) -> Result<Vec<Taken>, QueueError>;

    /// The ids of [`Queue::take`].
    ///
    /// # Errors
    /// As there.
    fn pop(&self, max: usize, wait: Duration) -> Result<Vec<i64>, QueueError> {
        Ok(self.take(max, wait)?.into_iter().map(|taken| taken.id).collect())
    }

    /// Waiting entries of this server, as [`Priority::ALL`]. Never waits: where counting takes time, what was counted before, while the
    /// next count is asked for.
    fn len_by_priority(&self) -> [u64; Priority::ALL.len()];

    /// Drops the queue of a server that is gone for good.
    fn forget(&self, server: &ServerId);

    /// Ends a pop under way and refuses further ones. Pushing goes on where others pop.
    fn close(&self);
}

/// Orders entries of the same score.
fn cmp_as_text(a: i64, b: i64) -> Ordering {
    if a == b { Ordering::Equal } else { a.to_string().cmp(&b.to_string()) }
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_NS: i64 = 1_700_000_000_000_000_000;

    #[test]
    fn a_step_of_priority_is_worth_a_thousand_seconds() {
        let entry = |priority, at_ns| Entry { id: 1, device_id: None, priority, at_ns };
        let high = entry(Priority::High, NOW_NS);
        let normal = |waited_s: i64| entry(Priority::Normal, NOW_NS - waited_s * 1_000_000_000);
        assert!(high.score() < normal(999).score());
        assert!(high.score() > normal(1_001).score());
        assert_eq!(high.score(), normal(1_000).score());
        assert!(entry(Priority::Idle, i64::MAX).score().is_finite());
    }

    #[test]
    fn scores_step_by_256_ns() {
        let at = |at_ns| Entry { id: 1, device_id: None, priority: Priority::Emergency, at_ns }.score();
        let even = NOW_NS / 256 * 256;
        assert_eq!(at(even), at(even + 100));
        assert!(at(even) < at(even + 256));
    }
}
