//! One heap of deadlines per shard.
//!
//! A connection or device has at most one live entry: its earliest deadline. Arming a later one is free, because the owner
//! looks at all its deadlines when it is called and arms again; arming an earlier one leaves a stale entry, which its owner
//! recognises by `armed`. So a heartbeat, which only ever moves deadlines back, never touches the heap.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

use super::slots::Key;

/// Whose deadline it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// A connection: detection, incomplete frame, write stall, silence.
    Conn(Key),
    /// A device: offline, order deadlines, pacing, resends, bind, port sync.
    Device(Key),
    /// Latest values go to the store.
    Flush,
    /// Accepting may go on.
    Accept,
    /// Connections of a shard that is being emptied are closed.
    Drain,
}

/// A deadline and its owner in sixteen bytes: there are two for each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Armed {
    /// Deadline << 3 | kind of the owner: no shard lives for 2^61 ms.
    at_and_kind: u64,
    key: Key,
}

const KIND_BITS: u32 = 3;
const AT_MAX: u64 = u64::MAX >> KIND_BITS;
const NO_KEY: Key = Key { slot: 0, generation: 0 };

impl Armed {
    const fn new(at: u64, timer: Timer) -> Self {
        let (kind, key) = match timer {
            Timer::Conn(key) => (0, key),
            Timer::Device(key) => (1, key),
            Timer::Flush => (2, NO_KEY),
            Timer::Accept => (3, NO_KEY),
            Timer::Drain => (4, NO_KEY),
        };
        // What is later than can be kept never comes.
        let at = if at > AT_MAX { AT_MAX } else { at };
        Self { at_and_kind: at << KIND_BITS | kind, key }
    }

    const fn at(self) -> u64 {
        self.at_and_kind >> KIND_BITS
    }

    const fn timer(self) -> Timer {
        match self.at_and_kind % (1 << KIND_BITS) {
            0 => Timer::Conn(self.key),
            1 => Timer::Device(self.key),
            2 => Timer::Flush,
            3 => Timer::Accept,
            _ => Timer::Drain,
        }
    }
}

impl Ord for Armed {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at_and_kind, self.key).cmp(&(other.at_and_kind, other.key))
    }
}

impl PartialOrd for Armed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
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
