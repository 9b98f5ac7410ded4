//! Token buckets: how many requests a caller may make, and what of it is left.
//!
//! No clock: the time is an argument. A bucket is a level and the time it was filled last; whoever holds the lock of both fills, looks, takes.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

const SECOND_MS: u32 = 1_000;
const MINUTE_MS: u32 = 60_000;
/// Addresses whose failures are counted apart, some 100 bytes each.
const CLIENTS_MAX: usize = 16_384;
/// The least time between two searches for addresses that can be forgotten, ms.
const SWEEP_PAUSE_MS: i64 = 1_000;

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests that a period allows.
    requests: u32,
    period_ms: u32,
    /// Requests that may come at once after a rest.
    burst: u32,
}

impl Rate {
    /// So many requests per second, `burst` at once; a burst of 0 is that of one second. `None`: 0 requests, which means no limit.
    pub const fn per_second(requests: u32, burst: u32) -> Option<Self> {
        Self::new(requests, SECOND_MS, burst)
    }

    /// So many requests per minute, all of them at once if need be. `None`: 0, which means no limit.
    pub const fn per_minute(requests: u32) -> Option<Self> {
        Self::new(requests, MINUTE_MS, 0)
    }

    const fn new(requests: u32, period_ms: u32, burst: u32) -> Option<Self> {
        if requests == 0 {
            return None;
        }
        Some(Self { requests, period_ms, burst: if burst == 0 { requests } else { burst } })
    }

    /// Requests of a period.
    pub const fn requests(&self) -> u32 {
        self.requests
    }

    /// Requests that the full bucket allows at once.
    pub const fn burst(&self) -> u32 {
        self.burst
    }

    /// What one request takes from a bucket, which gains `requests` per ms: all in whole numbers.
    const fn cost(&self) -> u64 {
        self.period_ms as u64
    }

    const fn capacity(&self) -> u64 {
        self.burst as u64 * self.cost()
    }

    /// Whole seconds in which the bucket gains so much, rounded up.
    const fn seconds_for(&self, gain: u64) -> u32 {
        let seconds = gain.div_ceil(self.requests as u64 * SECOND_MS as u64);
        if seconds > u32::MAX as u64 { u32::MAX } else { seconds as u32 }
    }

    /// What a caller is told when so many whole requests are left.
    pub const fn quota_with(&self, remaining: u32) -> Quota {
        let level = remaining as u64 * self.cost();
        Quota {
            limit: self.burst,
            remaining,
            reset_s: self.seconds_for(self.capacity().saturating_sub(level)),
            wait_s: if remaining > 0 { 0 } else { self.seconds_for(self.cost()) },
        }
    }
}

/// What is left of a rate: the `RateLimit` headers of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Requests that a full bucket allows.
    pub limit: u32,
    /// Whole requests that are left now.
    pub remaining: u32,
    /// Seconds until the bucket is full again if nothing more is asked.
    pub reset_s: u32,
    /// Seconds until there is room for one request; 0: there is now.
    pub wait_s: u32,
}

impl Quota {
    /// Header names and their values.
    pub const fn headers(&self) -> [(&'static str, u32); 3] {
        [("RateLimit-Limit", self.limit), ("RateLimit-Remaining", self.remaining), ("RateLimit-Reset", self.reset_s)]
    }

    /// Of two limits that both hold, the one that is reached first.
    #[must_use]
    pub const fn tighter(self, other: Self) -> Self {
        if other.remaining < self.remaining { other } else { self }
    }
}

/// What may still be asked, in fractions of a request.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    level: u64,
    filled_at_ms: i64,
}

impl Bucket {
    /// One that nobody has taken from.
    pub const fn full() -> Self {
        Self { level: u64::MAX, filled_at_ms: i64::MIN }
    }

    /// Adds what the time since the last call is worth.
    pub fn fill(&mut self, rate: Rate, unix_ms: i64) {
        // A clock that goes back fills nothing, and counts on from where it is.
        let passed_ms = unix_ms.saturating_sub(self.filled_at_ms).max(0).unsigned_abs();
        let gain = passed_ms.saturating_mul(u64::from(rate.requests));
        self.level = self.level.saturating_add(gain).min(rate.capacity());
        self.filled_at_ms = unix_ms;
    }

    /// Whether there is room for one request.
    pub const fn has_one(&self, rate: Rate) -> bool {
        self.level >= rate.cost()
    }

    /// Takes one request's worth; the bucket has it.
    pub const fn take(&mut self, rate: Rate) {
        self.level = self.level.saturating_sub(rate.cost());
    }

    /// What is left of a bucket just filled.
    pub fn quota(&self, rate: Rate) -> Quota {
        Quota {
            limit: rate.burst,
            remaining: u32::try_from(self.level / rate.cost()).unwrap_or(u32::MAX),
            reset_s: rate.seconds_for(rate.capacity().saturating_sub(self.level)),
            wait_s: rate.seconds_for(rate.cost().saturating_sub(self.level)),
        }
    }

    const fn is_full(&self, rate: Rate) -> bool {
        self.level >= rate.capacity()
    }
}

/// Counts failed attempts by the client's address, in a bounded amount of memory.
#[derive(Debug)]
pub struct Failures {
    by_client: HashMap<IpAddr, Bucket>,
    /// Of all for whom there is no room.
    others: Bucket,
    max: usize,
    swept_at_ms: i64,
}

impl Default for Failures {
    fn default() -> Self {
        Self::new(CLIENTS_MAX)
    }
}

impl Failures {
    fn new(max: usize) -> Self {
        Self { by_client: HashMap::new(), others: Bucket::full(), max, swept_at_ms: i64::MIN }
    }

    /// Counts a failure of this address.
    ///
    /// # Errors
    /// It had as many as it may; the value is when there is room for one more, in seconds.
    pub fn count(&mut self, client: IpAddr, rate: Rate, unix_ms: i64) -> Result<(), u32> {
        let network = network_of(client);
        if self.by_client.len() >= self.max && !self.by_client.contains_key(&network) {
            self.sweep(rate, unix_ms);
        }
        let has_room = self.by_client.len() < self.max;
        let bucket = match self.by_client.get_mut(&network) {
            Some(bucket) => bucket,
            None if has_room => self.by_client.entry(network).or_insert_with(Bucket::full),
            None => &mut self.others,
        };
        bucket.fill(rate, unix_ms);
        if !bucket.has_one(rate) {
            return Err(bucket.quota(rate).wait_s.max(1));
        }
        bucket.take(rate);
        Ok(())
    }

    /// Forgets whose bucket is full again: it says nothing that a new one would not.
    fn sweep(&mut self, rate: Rate, unix_ms: i64) {
        // Under an attack from more addresses than there is room for, not with each of them.
        if unix_ms.abs_diff(self.swept_at_ms) < SWEEP_PAUSE_MS.unsigned_abs() {
            return;
        }
        self.swept_at_ms = unix_ms;
        self.by_client.retain(|_, bucket| {
            bucket.fill(rate, unix_ms);
            !bucket.is_full(rate)
        });
    }
}

/// The unit of what is counted per address: an IPv4 address, or the /64 that one IPv6 customer has to himself.
pub(super) fn network_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_700_000_000_000;

    fn take(bucket: &mut Bucket, rate: Rate, unix_ms: i64) -> bool {
        bucket.fill(rate, unix_ms);
        let has_one = bucket.has_one(rate);
        if has_one {
            bucket.take(rate);
        }
        has_one
    }

    #[test]
    fn a_bucket_is_a_burst_then_a_steady_flow() {
        let rate = Rate::per_second(2, 3).unwrap();
        let mut bucket = Bucket::full();
        assert!((0..3).all(|_| take(&mut bucket, rate, NOW_MS)));
        assert!(!take(&mut bucket, rate, NOW_MS));
        assert_eq!(bucket.quota(rate), Quota { limit: 3, remaining: 0, reset_s: 2, wait_s: 1 });
        assert!(!take(&mut bucket, rate, NOW_MS + 499));
        assert!(take(&mut bucket, rate, NOW_MS + 500));
        assert!(!take(&mut bucket, rate, NOW_MS + 400), "a clock that goes back fills nothing");
        bucket.fill(rate, NOW_MS + 100_000);
        assert_eq!(
            bucket.quota(rate),
            Quota { limit: 3, remaining: 3, reset_s: 0, wait_s: 0 },
            "rest is worth a burst"
        );
    }

    #[test]
    fn zero_is_no_limit_and_a_burst_of_zero_is_a_period() {
        assert_eq!((Rate::per_second(0, 9), Rate::per_minute(0)), (None, None));
        assert_eq!(Rate::per_second(7, 0).unwrap().burst(), 7);
        assert_eq!(Rate::per_minute(60).unwrap().burst(), 60);
    }

    #[test]
    fn waits_are_rounded_up_to_whole_seconds() {
        let slow = Rate::per_minute(6).unwrap();
        let mut bucket = Bucket::full();
        assert!((0..6).all(|_| take(&mut bucket, slow, NOW_MS)));
        assert_eq!(bucket.quota(slow), Quota { limit: 6, remaining: 0, reset_s: 60, wait_s: 10 });
        bucket.fill(slow, NOW_MS + 1);
        assert_eq!(bucket.quota(slow).wait_s, 10);
        bucket.fill(slow, NOW_MS + 9_001);
        assert_eq!(bucket.quota(slow).wait_s, 1);
        let largest = Rate::per_second(1_000_000, 1_000_000).unwrap();
        assert_eq!(largest.quota_with(0), Quota { limit: 1_000_000, remaining: 0, reset_s: 1, wait_s: 1 });
    }

    #[test]
    fn of_two_quotas_the_smaller_counts() {
        let quota = |remaining| Rate::per_second(9, 0).unwrap().quota_with(remaining);
        assert_eq!(quota(3).tighter(quota(4)).remaining, 3);
        assert_eq!(quota(4).tighter(quota(3)).remaining, 3);
    }

    #[test]
    fn failures_count_by_address_and_an_ipv6_customer_has_one() {
        let rate = Rate::per_minute(2).unwrap();
        let mut failures = Failures::default();
        let mut count = |ip: &str, unix_ms| failures.count(ip.parse().unwrap(), rate, unix_ms);
        assert_eq!((count("192.0.2.1", NOW_MS), count("192.0.2.1", NOW_MS)), (Ok(()), Ok(())));
        assert_eq!(count("192.0.2.1", NOW_MS), Err(30));
        assert_eq!(count("192.0.2.2", NOW_MS), Ok(()));
        assert_eq!(count("192.0.2.1", NOW_MS + 30_000), Ok(()));
        assert_eq!((count("2001:db8::1", NOW_MS), count("2001:db8::2", NOW_MS)), (Ok(()), Ok(())));
        assert!(count("2001:db8::3", NOW_MS).is_err());
        assert_eq!(count("2001:db8:0:1::3", NOW_MS), Ok(()));
    }

    #[test]
    fn failures_take_a_bounded_amount_of_memory() {
        let rate = Rate::per_minute(1).unwrap();
        let mut failures = Failures::new(2);
        let mut count = |last: u8, unix_ms| failures.count([192, 0, 2, last].into(), rate, unix_ms);
        assert_eq!((count(1, NOW_MS), count(2, NOW_MS)), (Ok(()), Ok(())));
        assert_eq!((count(3, NOW_MS), count(4, NOW_MS)), (Ok(()), Err(60)), "whoever has no place shares one");
        assert_eq!((count(1, NOW_MS), count(2, NOW_MS)), (Err(60), Err(60)), "and nobody is forgotten for them");
        assert_eq!(count(3, NOW_MS + 60_000), Ok(()));
        assert_eq!(count(3, NOW_MS + 60_000), Err(60));
        assert_eq!(failures.by_client.len(), 1, "what is full again was forgotten");
    }
}
