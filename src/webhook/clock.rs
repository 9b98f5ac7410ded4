//! Where time enters this module.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::gateway::Now;

/// Both clocks, the monotonic one from this clock's making.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { start: instant() }
    }

    #[expect(clippy::disallowed_methods, reason = "the clock enters here")]
    pub(super) fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            mono_ms: u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX),
            unix_ms: i64::try_from(unix.as_millis()).unwrap_or(i64::MAX),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
pub(super) fn instant() -> Instant {
    Instant::now()
}
