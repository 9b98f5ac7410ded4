//! Which instance delivers to an endpoint, where several share the store: the one that holds the endpoint's lease.
//!
//! The store gives the lease for a time by its own clock; here it counts from before the question, and ends earlier. So nobody goes on
//! delivering after another may have begun, whatever the clocks say. An instance that is alone needs no lease.

/// How long a lease is good for here, from the question on.
const HELD_MS: u64 = 9_000;
/// The store keeps it from others for so much longer, beside the time of an attempt that began in its last moment.
const MARGIN_MS: u64 = 1_000;
/// A held lease is asked for again after this.
const RENEW_MS: u64 = 3_000;
/// Somebody else's is asked for after this.
const ASK_MS: u64 = 2_000;
/// A question without an answer is asked again after this.
const ANSWER_MS: u64 = 3_000;

#[derive(Debug)]
pub(super) struct Lease {
    /// An instance that is alone.
    free: bool,
    for_ms: u64,
    /// Held until then, monotonic ms; 0: not held.
    until_ms: u64,
    /// When to ask.
    ask_at: u64,
    /// The question under way: its ticket, and when it was asked.
    asked: Option<(u64, u64)>,
}

impl Lease {
    /// `shared`: other instances may hold it. `attempt_ms`: the longest time of an attempt.
    pub(super) const fn new(shared: bool, attempt_ms: u64) -> Self {
        Self { free: !shared, for_ms: HELD_MS + attempt_ms + MARGIN_MS, until_ms: 0, ask_at: 0, asked: None }
    }

    /// For how long the store is asked for it, ms.
    pub(super) const fn for_ms(&self) -> u64 {
        self.for_ms
    }

    /// Whether this instance delivers.
    pub(super) const fn is_held(&self, now_ms: u64) -> bool {
        self.free || now_ms < self.until_ms
    }

    /// Whether the store is to be asked now.
    pub(super) fn wants_asking(&mut self, now_ms: u64) -> bool {
        if self.asked.is_some_and(|(_, at)| now_ms >= at + ANSWER_MS) {
            self.asked = None;
        }
        !self.free && self.asked.is_none() && now_ms >= self.ask_at
    }

    pub(super) const fn asked(&mut self, ticket: u64, now_ms: u64) {
        self.asked = Some((ticket, now_ms));
    }

    /// The question could not be asked, or the store failed: what is held stays so until its end.
    pub(super) fn failed(&mut self, ticket: u64, now_ms: u64) {
        if self.asked.is_some_and(|(asked, _)| asked == ticket) {
            self.asked = None;
            self.ask_at = now_ms + ASK_MS;
        }
    }

    /// The store answered; late answers miss.
    pub(super) fn answered(&mut self, ticket: u64, held: bool, now_ms: u64) {
        let Some((_, at)) = self.asked.filter(|(asked, _)| *asked == ticket) else { return };
        self.asked = None;
        self.until_ms = if held { at + HELD_MS } else { 0 };
        self.ask_at = if held { at + RENEW_MS } else { now_ms + ASK_MS };
    }

    /// When it changes by itself or wants asking; `None`: never.
    pub(super) fn poll_timeout(&self, now_ms: u64) -> Option<u64> {
        if self.free {
            return None;
        }
        let ask = self.asked.map_or(self.ask_at, |(_, at)| at + ANSWER_MS);
        let end = if self.until_ms > now_ms { self.until_ms } else { u64::MAX };
        Some(ask.min(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_alone_always_delivers_and_never_asks() {
        let mut lease = Lease::new(false, 5_000);
        assert!(lease.is_held(0) && !lease.wants_asking(u64::MAX / 2) && lease.poll_timeout(0).is_none());
    }

    #[test]
    fn it_is_held_from_its_answer_until_well_before_the_stores_end() {
        let mut lease = Lease::new(true, 5_000);
        assert!(!lease.is_held(1_000) && lease.wants_asking(1_000));
        lease.asked(1, 1_000);
        assert!(!lease.wants_asking(1_500), "one question at a time");
        lease.answered(1, true, 1_900);
        assert!(lease.is_held(1_900));
        assert_eq!(lease.poll_timeout(1_900), Some(1_000 + RENEW_MS));
        let end = 1_000 + HELD_MS;
        assert!(lease.is_held(end - 1) && !lease.is_held(end), "counted from the question");
    }

    #[test]
    fn without_answers_it_ends_by_itself_and_late_ones_miss() {
        let mut lease = Lease::new(true, 5_000);
        lease.asked(1, 0);
        lease.answered(1, true, 0);
        assert!(lease.wants_asking(RENEW_MS));
        lease.asked(2, RENEW_MS);
        lease.failed(2, RENEW_MS);
        assert!(lease.is_held(RENEW_MS), "a store that fails takes nothing away");
        assert!(lease.wants_asking(RENEW_MS + ASK_MS));
        lease.asked(3, RENEW_MS + ASK_MS);
        assert!(lease.wants_asking(RENEW_MS + ASK_MS + ANSWER_MS), "nobody answered");
        lease.answered(3, true, 20_000);
        assert!(!lease.is_held(20_000), "too late");
        lease.asked(4, 20_000);
        lease.answered(4, false, 20_001);
        assert!(!lease.is_held(20_001) && !lease.wants_asking(20_002) && lease.wants_asking(20_001 + ASK_MS));
    }
}
