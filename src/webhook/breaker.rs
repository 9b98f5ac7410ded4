//! Per-endpoint breaker: stops asking a receiver that does not answer at all.
//!
//! It counts attempts without any HTTP answer; a status, whatever it says, shows that the receiver is there. Open, it lets nothing
//! through until its time is up, then one probe. An unanswered attempt that ends while the breaker is not closed costs the
//! delivery nothing: an outage, however long, sends no event to the dead letters by itself.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::retry::Jitter;
use crate::gateway::Now;

/// When a breaker opens and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Unanswered attempts in a row that open it, from 1.
    pub failures: u32,
    /// First time open; doubled by each failed probe.
    pub open_min: Duration,
    /// Longest time open.
    pub open_max: Duration,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self { failures: 10, open_min: Duration::from_secs(1), open_max: Duration::from_secs(30) }
    }
}

/// State of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum BreakerState {
    /// Attempts go out.
    Closed = 0,
    /// One probe is under way.
    HalfOpen = 1,
    /// None goes out.
    Open = 2,
}

impl BreakerState {
    /// The word in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

#[derive(Debug)]
pub(super) struct Breaker {
    settings: BreakerSettings,
    state: State,
    open_for: Duration,
    jitter: Jitter,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed { failures: u32 },
    Open { until_ms: u64 },
    HalfOpen,
}

/// Whether an unanswered attempt counts for its delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Charge {
    Counts,
    Free,
}

impl Breaker {
    pub(super) const fn new(settings: BreakerSettings, seed: u64) -> Self {
        Self { settings, state: State::Closed { failures: 0 }, open_for: settings.open_min, jitter: Jitter(seed) }
    }

    pub(super) const fn state(&self) -> BreakerState {
        match self.state {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen => BreakerState::HalfOpen,
        }
    }

    /// Asks to start an attempt. Granting one that is open makes that attempt the probe, so ask only with one in hand.
    pub(super) fn permit(&mut self, now: Now) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until_ms } if now.mono_ms >= until_ms => {
                self.state = State::HalfOpen;
                true
            }
            State::Open { .. } | State::HalfOpen => false,
        }
    }

    /// When a probe may start (monotonic ms); `None` while closed or probing.
    pub(super) const fn poll_timeout(&self) -> Option<u64> {
        match self.state {
            State::Open { until_ms } => Some(until_ms),
            State::Closed { .. } | State::HalfOpen => None,
        }
    }

    /// The receiver answered.
    pub(super) const fn handle_answered(&mut self) {
        self.state = State::Closed { failures: 0 };
        self.open_for = self.settings.open_min;
    }

    /// It did not.
    pub(super) fn handle_unanswered(&mut self, now: Now) -> Charge {
        match self.state {
            State::Closed { failures } => {
                if failures + 1 >= self.settings.failures {
                    self.open(now);
                } else {
                    self.state = State::Closed { failures: failures + 1 };
                }
                Charge::Counts
            }
            State::HalfOpen => {
                self.open_for = (self.open_for * 2).min(self.settings.open_max);
                self.open(now);
                Charge::Free
            }
            State::Open { .. } => Charge::Free,
        }
    }

    /// The attempt ended without touching the receiver: if it was the probe, another one is needed.
    pub(super) fn handle_unknown(&mut self, now: Now) {
        if let State::HalfOpen = self.state {
            self.open(now);
        }
    }

    fn open(&mut self, now: Now) {
        let open_for = self.jitter.stretch(self.open_for);
        let open_ms = u64::try_from(open_for.as_millis()).unwrap_or(u64::MAX);
        self.state = State::Open { until_ms: now.mono_ms.saturating_add(open_ms) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono_ms: u64) -> Now {
        Now { mono_ms, unix_ms: 0 }
    }

    fn breaker() -> Breaker {
        let settings =
            BreakerSettings { failures: 3, open_min: Duration::from_secs(1), open_max: Duration::from_secs(2) };
        Breaker::new(settings, 7)
    }

    #[test]
    fn opens_after_failures_in_a_row_only() {
        let mut breaker = breaker();
        for _ in 0..5 {
            assert_eq!(breaker.handle_unanswered(at(0)), Charge::Counts);
            assert_eq!(breaker.handle_unanswered(at(0)), Charge::Counts);
            breaker.handle_answered();
        }
        for _ in 0..3 {
            assert_eq!(breaker.state(), BreakerState::Closed);
            assert_eq!(breaker.handle_unanswered(at(0)), Charge::Counts);
        }
        assert_eq!(breaker.state(), BreakerState::Open);
        assert_eq!(breaker.handle_unanswered(at(1)), Charge::Free, "ended after it opened");
    }

    #[test]
    fn probes_one_at_a_time_and_backs_off() {
        let mut breaker = breaker();
        (0..3).for_each(|_| assert_eq!(breaker.handle_unanswered(at(0)), Charge::Counts));
        assert!(!breaker.permit(at(999)));
        let first = breaker.poll_timeout().unwrap();
        assert!((1_000..=1_250).contains(&first));
        assert!(breaker.permit(at(first)));
        assert!(!breaker.permit(at(first)), "the probe is under way");
        assert_eq!(breaker.handle_unanswered(at(first)), Charge::Free);
        let second = breaker.poll_timeout().unwrap() - first;
        assert!((2_000..=2_500).contains(&second));
        assert!(breaker.permit(at(first + second)));
        breaker.handle_answered();
        assert!(breaker.permit(at(first + second)) && breaker.permit(at(first + second)));
    }

    #[test]
    fn a_probe_that_never_went_out_is_asked_for_again() {
        let mut breaker = breaker();
        (0..3).for_each(|_| assert_eq!(breaker.handle_unanswered(at(0)), Charge::Counts));
        assert!(breaker.permit(at(5_000)));
        breaker.handle_unknown(at(5_000));
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(breaker.permit(at(10_000)));
    }
}
