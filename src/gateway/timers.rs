//! One heap of deadlines per shard.
//!
//! A connection or device has at most one live entry: its earliest deadline. Arming a later one is free, because the owner
//! looks at all its deadlines when it is called and arms again; arming an earlier one leaves a stale entry, which its owner
//! recognises by `armed`. So a heartbeat, which only ever moves deadlines back, never touches the heap.

use std::{cmp::Reverse, collections::BinaryHeap};

/// Whose deadline it is. Slots are enough: a successor in one has an `armed` of its own, and is called when that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// A connection: detection, incomplete frame, write stall, silence.
    Conn(u32),
    /// A device: offline, order deadlines, pacing, resends, bind, port sync.
    Device(u32),
    /// Latest values go to the store.
    Flush,
    /// Accepting may go on.
    Accept,
    /// Connections of a shard that is being emptied are closed.
    Drain,
}

/// A deadline and its owner in one word, since there are two for each connection: deadline << 25 | is it no connection's << 24 | slot.
/// No shard lives for 2^39 ms or has 2^24 devices. In the order of deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Armed(u64);

const SLOT_BITS: u32 = 24;
const OWNER_BITS: u32 = SLOT_BITS + 1;
const AT_MAX: u64 = u64::MAX >> OWNER_BITS;
/// Set where the deadline is no connection's.
const OTHER: u32 = 1 << SLOT_BITS;
const DRAIN: u32 = (OTHER << 1) - 1;
const ACCEPT: u32 = DRAIN - 1;
const FLUSH: u32 = ACCEPT - 1;

impl Armed {
    fn new(at: u64, timer: Timer) -> Self {
        let owner = match timer {
            Timer::Conn(slot) => slot,
            Timer::Device(slot) => OTHER | slot,
            Timer::Flush => FLUSH,
            Timer::Accept => ACCEPT,
            Timer::Drain => DRAIN,
        };
        // What is later than can be kept never comes.
        Self(at.min(AT_MAX) << OWNER_BITS | u64::from(owner))
    }

    const fn at(self) -> u64 {
        self.0 >> OWNER_BITS
    }

    const fn timer(self) -> Timer {
        match self.0 as u32 & DRAIN {
            DRAIN => Timer::Drain,
            ACCEPT => Timer::Accept,
            FLUSH => Timer::Flush,
            owner if owner & OTHER == 0 => Timer::Conn(owner),
            owner => Timer::Device(owner & !OTHER),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<Armed>>,
}

impl Timers {
    /// Arms `timer` for `at`, unless it is armed for an earlier time already. `armed` is the owner's note of its live entry;
    /// `u64::MAX`: none.
    pub(super) fn arm(&mut self, armed: &mut u64, at: u64, timer: Timer) {
        if at < *armed {
            *armed = at;
            self.heap.push(Reverse(Armed::new(at, timer)));
        }
    }

    /// The next deadline.
    pub(super) fn next(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse(armed)| armed.at())
    }

    /// Takes a deadline that has passed.
    pub(super) fn pop(&mut self, now_ms: u64) -> Option<(u64, Timer)> {
        if self.next()? > now_ms {
            return None;
        }
        self.heap.pop().map(|Reverse(armed)| (armed.at(), armed.timer()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_come_in_order_and_say_whose_they_are() {
        let last = OTHER - 1;
        let mut timers = Timers::default();
        let wanted = [
            (0, Timer::Conn(0)),
            (5, Timer::Conn(last)),
            (5, Timer::Device(0)),
            (5, Timer::Device(FLUSH - OTHER - 1)),
            (5, Timer::Flush),
            (5, Timer::Accept),
            (5, Timer::Drain),
            (6, Timer::Device(7)),
            (AT_MAX, Timer::Conn(3)),
        ];
        for (at, timer) in wanted.into_iter().rev() {
            let mut armed = u64::MAX;
            timers.arm(&mut armed, at, timer);
            timers.arm(&mut armed, at, timer);
            assert_eq!(armed, at);
        }
        assert_eq!(timers.next(), Some(0));
        let mut come = Vec::new();
        come.extend(std::iter::from_fn(|| timers.pop(6)));
        assert_eq!((timers.pop(AT_MAX - 1), timers.next()), (None, Some(AT_MAX)));
        come.extend(timers.pop(u64::MAX));
        assert_eq!(come, wanted);
    }

    #[test]
    fn what_is_too_late_to_be_kept_does_not_come_early() {
        let mut timers = Timers::default();
        timers.arm(&mut u64::MAX.clone(), u64::MAX - 1, Timer::Conn(1));
        timers.arm(&mut u64::MAX.clone(), AT_MAX + 1, Timer::Conn(2));
        assert_eq!(timers.pop(AT_MAX - 1), None);
    }
}
