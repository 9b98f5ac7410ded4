//! Deadlines of connections: one per connection, moved far more often than they pass.
//!
//! A connection's deadline moves with every request, so moving it must cost nothing. The heap therefore holds, per
//! connection, one *armed* entry that is never later than the deadline. Moving a deadline later touches only
//! the [`Alarm`]; when the armed entry comes up, it is put back at the true deadline. Moving it earlier than the
//! armed entry adds a new one and leaves the old one to be ignored when its time comes. A connection thus has
//! at most as many entries as the longest timeout holds shortest timeouts.
//!
//! Times are milliseconds of the caller's clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No deadline.
pub(super) const NEVER: u64 = u64::MAX;

/// The deadline of one connection, kept with the connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alarm {
    deadline: u64,
    armed: u64,
}

impl Alarm {
    pub(super) const fn new() -> Self {
        Self { deadline: NEVER, armed: NEVER }
    }
}

/// The armed entries of all connections; `K` names a connection and its generation.
#[derive(Debug)]
pub(super) struct Timers<K: Ord + Copy> {
    heap: BinaryHeap<Reverse<(u64, K)>>,
}

impl<K: Ord + Copy> Timers<K> {
    pub(super) const fn new() -> Self {
        Self { heap: BinaryHeap::new() }
    }

    /// Moves the deadline of `key`; [`NEVER`] takes it away.
    pub(super) fn set(&mut self, alarm: &mut Alarm, key: K, deadline: u64) {
        alarm.deadline = deadline;
        if deadline < alarm.armed {
            alarm.armed = deadline;
            self.heap.push(Reverse((deadline, key)));
        }
    }

    /// When [`Timers::poll`] can next have something.
    pub(super) fn next(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes an entry whose time has come. The caller looks its connection up and asks [`Timers::expired`].
    pub(super) fn poll(&mut self, now: u64) -> Option<(u64, K)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    /// Whether the entry just polled means that the deadline has passed. If not, it is armed anew where need be.
    pub(super) fn expired(&mut self, alarm: &mut Alarm, entry: (u64, K), now: u64) -> bool {
        let (at, key) = entry;
        if at != alarm.armed {
            return false;
        }
        alarm.armed = NEVER;
        if alarm.deadline <= now {
            alarm.deadline = NEVER;
            return true;
        }
        if alarm.deadline != NEVER {
            alarm.armed = alarm.deadline;
            self.heap.push(Reverse((alarm.deadline, key)));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fire(timers: &mut Timers<usize>, alarms: &mut [Alarm], now: u64) -> Vec<usize> {
        let mut fired = Vec::new();
        while let Some(entry) = timers.poll(now) {
            if timers.expired(&mut alarms[entry.1], entry, now) {
                fired.push(entry.1);
            }
        }
        fired
    }

    proptest! {
        /// Beside a model that scans all deadlines, the same connections expire at the same times.
        #[test]
        fn expires_like_a_scan(steps in prop::collection::vec((0usize..4, 0u64..50, 0u64..10), 1..200)) {
            let mut timers = Timers::new();
            let mut alarms = [Alarm::new(); 4];
            let mut model = [NEVER; 4];
            let mut now = 0;
            for (key, delay, passed) in steps {
                let deadline = if delay == 0 { NEVER } else { now + delay };
                timers.set(&mut alarms[key], key, deadline);
                model[key] = deadline;
                now += passed;
                let mut fired = fire(&mut timers, &mut alarms, now);
                fired.sort_unstable();
                let expected: Vec<usize> = (0..4).filter(|&key| model[key] <= now).collect();
                for &key in &expected {
                    model[key] = NEVER;
                }
                prop_assert_eq!(fired, expected);
                prop_assert!(timers.next().is_none_or(|at| at > now));
            }
        }
    }

    #[test]
    fn pushing_a_deadline_on_costs_no_entry() {
        let mut timers = Timers::new();
        let mut alarm = Alarm::new();
        for now in 0..1_000 {
            timers.set(&mut alarm, 0, now + 60_000);
        }
        assert_eq!(timers.heap.len(), 1);
    }
}
