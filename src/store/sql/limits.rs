//! Time limits that the store applies by itself, in its own transactions.

use crate::gateway::OrderTimes;

/// Time limits, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What the owner of an order acts on.
    pub orders: OrderTimes,
    /// How far each deadline of the backstop lies behind the owner's.
    pub backstop_delay: i64,
    /// Stored silence after which nobody owns a device: the longest time limit of a session, and the flush of `last_seen_at`.
    pub silent: i64,
    /// A settlement this long after its order's end is `late`.
    pub late_after: i64,
    /// How far back a BKV/GN number is looked for.
    pub match_window: i64,
    /// A start or stop is not written later than this after it was asked for.
    pub valid_for_order: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            orders: OrderTimes::default(),
            backstop_delay: 30_000,
            silent: 393_000,
            late_after: 60_000,
            match_window: 24 * 3_600_000,
            valid_for_order: 30_000,
        }
    }
}

/// A duration as it is added to Unix time.
pub(super) fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}
