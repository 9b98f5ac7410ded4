//! The clock of a shard, read once per wait and turn: devices of one turn share one `now`.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::gateway::Now;

/// Where time enters a shard.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    now: Now,
}

impl Clock {
    /// A clock whose monotonic milliseconds count from `start`; all shards and workers of a process share it.
    pub fn since(start: Instant) -> Self {
        let mut clock = Self { start, now: Now { mono_ms: 0, unix_ms: 0 } };
        clock.refresh();
        clock
    }

    /// The time of the last refresh.
    pub const fn now(&self) -> Now {
        self.now
    }

    /// Reads both clocks.
    #[expect(clippy::disallowed_methods, reason = "the clock enters here")]
    pub fn refresh(&mut self) -> Now {
        // One millisecond is added so that no deadline is ever 0, which means "none" in several places.
        let mono_ms = u64::try_from(Instant::now().duration_since(self.start).as_millis()).unwrap_or(u64::MAX) + 1;
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.now = Now { mono_ms, unix_ms: i64::try_from(unix.as_millis()).unwrap_or(i64::MAX) };
        self.now
    }
}
