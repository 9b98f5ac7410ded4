//! One heap of deadlines per shard.
//!
//! A connection or device has at most one live entry: its earliest deadline. Arming a later one is free, because the owner
//! looks at all its deadlines when it is called and arms again; arming an earlier one leaves a stale entry, which its owner
//! recognises by `armed`. So a heartbeat, which only ever moves deadlines back, never touches the heap.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::slots::Key;

/// Whose deadline it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(u64, Timer)>>,
}

impl Timers {
    /// Arms `timer` for `at`, unless it is armed for an earlier time already. `armed` is the owner's note of its live entry;
    /// `u64::MAX`: none.
    pub(super) fn arm(&mut self, armed: &mut u64, at: u64, timer: Timer) {
        if at < *armed {
            *armed = at;
            self.heap.push(Reverse((at, timer)));
        }
    }

    /// The next deadline.
    pub(super) fn next(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes a deadline that has passed.
    pub(super) fn pop(&mut self, now_ms: u64) -> Option<(u64, Timer)> {
        if self.next()? > now_ms {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }
}
