//! When connections are accepted: limits, rate, and the breaker on local exhaustion.
//!
//! - Over a connection limit the socket is closed at once. Over the rate nothing is closed: accepting pauses and the kernel's
//!   backlog queues.
//! - The breaker counts only local exhaustion, several in a row, and then probes after a pause that doubles with each failed one.
//!   A failing store never trips it.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::effects::AcceptRefused;

/// Connections a shard accepts in one turn, so that a storm does not starve the connected.
const ACCEPTS_PER_TURN: u64 = 64;

/// When accepting pauses because the machine has no more descriptors or memory.
#[derive(Clone, Copy, Debug)]
pub struct Breaker {
    /// Failures in a row after which it pauses.
    pub failures: u32,
    /// The first pause, ms.
    pub probe_min: u64,
    /// The longest pause, ms; no pause is shorter than the first.
    pub probe_max: u64,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: 5, probe_min: 1_000, probe_max: 30_000 }
    }
}

/// Connection counts of the whole process.
#[derive(Debug)]
pub struct ConnectionLimits {
    max: usize,
    max_per_ip: usize,
    open: AtomicUsize,
    ordinal: AtomicU64,
    per_ip: Mutex<FxHashMap<IpAddr, usize>>,
}

impl ConnectionLimits {
    /// `max` connections in all, `max_per_ip` from one address.
    pub fn new(max: usize, max_per_ip: usize) -> Self {
        Self {
            max,
            max_per_ip,
            open: AtomicUsize::new(0),
            ordinal: AtomicU64::new(0),
            per_ip: Mutex::new(FxHashMap::default()),
        }
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Counts a connection in and gives it its place in the order of accepting.
    pub(super) fn enter(&self, ip: IpAddr) -> Result<u64, AcceptRefused> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(AcceptRefused::Connections);
        }
        // With a per-address limit no lower than the limit in all, the map has nothing to say.
        if self.max_per_ip < self.max {
            let mut per_ip = self.per_ip.lock();
            let count = per_ip.entry(ip).or_default();
            if *count >= self.max_per_ip {
                self.open.fetch_sub(1, Ordering::Relaxed);
                return Err(AcceptRefused::ConnectionsPerIp);
            }
            *count += 1;
        }
        Ok(self.ordinal.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Counts a connection out.
    pub(super) fn leave(&self, ip: IpAddr) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        if self.max_per_ip < self.max {
            let mut per_ip = self.per_ip.lock();
            if let Some(count) = per_ip.get_mut(&ip) {
                *count -= 1;
                if *count == 0 {
                    per_ip.remove(&ip);
                }
            }
        }
    }
}

/// A shard's gate.
#[derive(Debug)]
pub(super) struct AcceptGate {
    per_ms_milli: u64,
    burst_milli: u64,
    tokens_milli: u64,
    filled_at: u64,
    breaker: Breaker,
    failures: u32,
    probe_ms: u64,
    closed_until: u64,
}

impl AcceptGate {
    /// `rate_per_s` and `burst` are this shard's share.
    pub(super) const fn new(rate_per_s: u64, burst: u64, breaker: Breaker) -> Self {
        let burst_milli = burst.saturating_mul(1000);
        Self {
            per_ms_milli: rate_per_s,
            burst_milli,
            tokens_milli: burst_milli,
            filled_at: 0,
            breaker,
            failures: 0,
            probe_ms: breaker.probe_min,
            closed_until: 0,
        }
    }

    /// How many may be accepted now.
    pub(super) fn allowance(&mut self, now_ms: u64) -> usize {
        if now_ms < self.closed_until {
            return 0;
        }
        let elapsed = now_ms.saturating_sub(self.filled_at);
        self.filled_at = now_ms;
        self.tokens_milli =
            self.tokens_milli.saturating_add(elapsed.saturating_mul(self.per_ms_milli)).min(self.burst_milli);
        let probing = if self.failures >= self.breaker.failures { 1 } else { ACCEPTS_PER_TURN };
        usize::try_from((self.tokens_milli / 1000).min(probing)).unwrap_or(usize::MAX)
    }

    /// When [`AcceptGate::allowance`] will be above 0 again.
    pub(super) fn opens_at(&self, now_ms: u64) -> u64 {
        let lacking = 1000_u64.saturating_sub(self.tokens_milli);
        let refill = now_ms.saturating_add(lacking.div_ceil(self.per_ms_milli.max(1)));
        self.closed_until.max(refill)
    }

    /// One was accepted.
    pub(super) fn accepted(&mut self) {
        self.tokens_milli = self.tokens_milli.saturating_sub(1000);
        self.failures = 0;
        self.probe_ms = self.breaker.probe_min;
    }

    /// Accepting failed for want of descriptors or memory. Returns whether the breaker is open now.
    pub(super) fn exhausted(&mut self, now_ms: u64) -> bool {
        self.failures = self.failures.saturating_add(1);
        if self.failures < self.breaker.failures {
            // A short pause: trying again at once would spin.
            self.closed_until = now_ms.saturating_add(10);
            return false;
        }
        self.closed_until = now_ms.saturating_add(self.probe_ms);
        self.probe_ms = (self.probe_ms * 2).min(self.breaker.probe_max).max(self.probe_ms);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn the_rate_pauses_and_refills() {
        let mut gate = AcceptGate::new(100, 2, Breaker::default());
        assert_eq!(gate.allowance(1000), 2);
        gate.accepted();
        gate.accepted();
        assert_eq!(gate.allowance(1000), 0);
        assert_eq!(gate.opens_at(1000), 1010);
        assert_eq!(gate.allowance(1010), 1);
    }

    #[test]
    fn five_exhaustions_open_the_breaker_and_probes_back_off() {
        let mut gate = AcceptGate::new(1000, 1000, Breaker::default());
        let mut now = 0;
        for _ in 0..4 {
            assert!(!gate.exhausted(now));
            now = gate.opens_at(now);
        }
        for wait in [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
            assert!(gate.exhausted(now));
            assert_eq!(gate.allowance(now + wait - 1), 0);
            assert_eq!(gate.allowance(now + wait), 1, "one probe after {wait}");
            now += wait;
        }
        gate.accepted();
        assert_eq!(gate.allowance(now), 64);
    }

    #[test]
    fn limits_count_in_and_out() {
        let limits = ConnectionLimits::new(3, 2);
        assert_eq!(limits.enter(IP), Ok(1));
        assert_eq!(limits.enter(IP), Ok(2));
        assert_eq!(limits.enter(IP), Err(AcceptRefused::ConnectionsPerIp));
        assert_eq!(limits.enter("10.0.0.1".parse().unwrap()), Ok(3));
        assert_eq!(limits.enter("10.0.0.2".parse().unwrap()), Err(AcceptRefused::Connections));
        limits.leave(IP);
        assert_eq!(limits.enter(IP), Ok(4));
        assert_eq!(limits.open(), 3);
    }
}
