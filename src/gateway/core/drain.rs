//! Emptying a shard: its connections are closed one after another, so that their devices do not come back all at once.
//!
//! A connection with a device that was told something and has not answered yet, or is about to be told, is passed over; those
//! come last, each as soon as its answer is there, and without it when the pace's patience ends. Commands that are still
//! unwritten then stay claimed for an epoch that is over: whoever binds the device claims them again.

use std::collections::VecDeque;

use super::Core;
use crate::gateway::{CloseReason, DrainPace, Effects, Now, slots::Key, timers::Timer};

/// Connections are closed in batches this far apart, ms.
const BATCH_MS: u64 = 10;
/// What a late turn may catch up with, µs.
const CATCH_UP_US: u64 = 100_000;
/// Connections whose devices owe an answer are looked at again after this, ms.
const LOOK_AGAIN_MS: u64 = 50;
/// So many of them at a time.
const LOOKS_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Drain {
    pace: DrainPace,
    /// Connections whose turn has not come. There are no new ones: nothing is accepted meanwhile.
    left: VecDeque<Key>,
    /// Connections passed over.
    owing: VecDeque<Key>,
    /// From when on nobody's answer is waited for; `None` until all others are closed.
    patient_until: Option<u64>,
    /// When the next connection may be closed, monotonic µs.
    next_us: u64,
}

impl Drain {
    /// The next connection to be closed. `owes`: `None` for one that is gone.
    fn next(&mut self, now_ms: u64, owes: impl Fn(Key) -> Option<bool>) -> Option<Key> {
        while let Some(key) = self.left.pop_front() {
            match owes(key) {
                None => {}
                Some(false) => return Some(key),
                Some(true) => self.owing.push_back(key),
            }
        }
        let until = *self.patient_until.get_or_insert_with(|| now_ms.saturating_add(self.pace.patience_ms));
        for _ in 0..self.owing.len().min(LOOKS_MAX) {
            let key = self.owing.pop_front()?;
            match owes(key) {
                None => {}
                Some(true) if now_ms < until => self.owing.push_back(key),
                Some(_) => return Some(key),
            }
        }
        None
    }
}

impl Core {
    /// Begins to close connections; where they are being closed, it goes on at the new pace.
    pub(super) fn begin_drain(&mut self, now: Now, pace: DrainPace, effects: &mut Effects) {
        let drain = self.drain.get_or_insert_with(|| Drain {
            pace,
            left: self.conns.keys().collect(),
            owing: VecDeque::new(),
            patient_until: None,
            next_us: us(now),
        });
        drain.pace = pace;
        drain.next_us = drain.next_us.min(us(now).saturating_add(pace.gap_us));
        drain.patient_until = drain.patient_until.map(|until| until.min(now.mono_ms.saturating_add(pace.patience_ms)));
        self.drain_on(now, effects);
    }

    /// Closes no more; what is open stays.
    pub(super) fn end_drain(&mut self) {
        if !self.stopping {
            self.drain = None;
        }
    }

    /// Closes what is due.
    pub(super) fn drain_on(&mut self, now: Now, effects: &mut Effects) {
        let Some(mut drain) = self.drain.take() else { return };
        let now_us = us(now);
        drain.next_us = drain.next_us.max(now_us.saturating_sub(CATCH_UP_US));
        while drain.next_us <= now_us {
            let Some(key) = drain.next(now.mono_ms, |key| self.owes_answer(now, key)) else { break };
            self.close(now, key, CloseReason::Drain, effects);
            drain.next_us = drain.next_us.saturating_add(drain.pace.gap_us);
        }
        if self.conns.len() == 0 {
            // Nothing more will change: what was seen last is not left to the timer.
            if !self.shared.dirty.is_empty() {
                self.flush(now, effects);
            }
        } else {
            let later = if drain.left.is_empty() { LOOK_AGAIN_MS } else { BATCH_MS };
            let at = drain.next_us.div_ceil(1000).max(now.mono_ms.saturating_add(later));
            self.shared.timers.arm(&mut self.drain_armed, at, Timer::Drain);
        }
        self.drain = Some(drain);
    }

    /// Whether a device of a connection was told something and may still answer; `None`: the connection is gone.
    fn owes_answer(&self, now: Now, key: Key) -> Option<bool> {
        let conn = self.conns.get(key)?;
        let owing = |device: &Key| self.devices.get(*device).is_some_and(|device| device.owes_answer(now));
        Some(conn.devices.iter().any(owing))
    }
}

const fn us(now: Now) -> u64 {
    now.mono_ms.saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, net::Ipv4Addr, sync::Arc};

    use super::*;
    use crate::{
        gateway::{ConnectionLimits, CoreConfig, Listener, Message, ShardId, directory::Directory},
        telemetry::Metrics,
    };

    const START_MS: u64 = 5_000;

    fn core(connections: usize) -> Core {
        let metrics = Metrics::new(1);
        let limits = Arc::new(ConnectionLimits::new(connections, connections));
        let directory = Arc::new(Directory::default());
        let config = CoreConfig::new(ShardId(0));
        let mut core = Core::new(config, directory, limits, metrics.claim_shard(0).expect("claimed once"));
        for _ in 0..connections {
            core.accept(at(0), Ipv4Addr::LOCALHOST.into(), Listener::Devices).expect("within the limits");
        }
        core
    }

    fn at(ms: u64) -> Now {
        Now { mono_ms: START_MS + ms, unix_ms: 0 }
    }

    fn closed(core: &mut Core, ms: u64) -> usize {
        let mut effects = Effects::default();
        core.timeout(at(ms), &mut effects);
        effects.closes.len()
    }

    #[test]
    fn connections_are_closed_at_the_pace() {
        let (mut core, mut effects) = (core(1_000), Effects::default());
        // 500 per second over two shards.
        let pace = DrainPace::of_shard(500, 2, 0);
        core.message(at(0), Message::Drain(pace), &mut effects);
        let mut all = effects.closes.len();
        assert_eq!(all, 1, "the first at once");
        for turn in 1..=100 {
            assert!(core.poll_timeout().is_some_and(|next| next <= START_MS + turn * 10));
            all += closed(&mut core, turn * 10);
            assert_eq!(all as u64, 1 + turn * 10 / 4, "after {turn} batches");
        }
        // The same again starts nothing anew; a late turn catches up with a tenth of a second.
        core.message(at(1_000), Message::Drain(pace), &mut effects);
        assert_eq!(closed(&mut core, 9_000), 26);
        core.message(at(9_000), Message::Undrain, &mut effects);
        assert!(!core.is_draining());
        assert_eq!(closed(&mut core, 9_100), 0);
        assert!(core.accept_allowance(at(9_100)) > 0);
    }

    #[test]
    fn a_stop_is_not_taken_back_and_ends_when_all_is_closed() {
        let (mut core, mut effects) = (core(100), Effects::default());
        core.message(at(0), Message::Stop(DrainPace::of_shard(1, 1, 0)), &mut effects);
        core.message(at(0), Message::Undrain, &mut effects);
        assert!(core.is_draining() && !core.is_stopped());
        core.message(at(0), Message::Stop(DrainPace::AT_ONCE), &mut effects);
        assert_eq!(effects.closes.len(), 100);
        assert!(core.is_stopped());
    }

    #[test]
    fn who_owes_an_answer_comes_last_and_not_for_ever() {
        let key = |slot| Key { slot, generation: 1 };
        let mut drain = Drain {
            pace: DrainPace { gap_us: 1, patience_ms: 100 },
            left: (0..6).map(key).collect(),
            owing: VecDeque::new(),
            patient_until: None,
            next_us: 0,
        };
        // 1 and 4 owe answers, 3 is gone.
        let owing = RefCell::new(vec![1, 4]);
        let owes = |key: Key| (key.slot != 3).then(|| owing.borrow().contains(&key.slot));
        let mut next = |ms| drain.next(ms, owes).map(|key| key.slot);
        assert_eq!([next(0), next(0), next(10), next(20), next(30)], [Some(0), Some(2), Some(5), None, None]);
        owing.borrow_mut().retain(|slot| *slot != 4);
        assert_eq!([next(40), next(50)], [Some(4), None], "answered");
        assert_eq!([next(119), next(120), next(121)], [None, Some(1), None], "patience ends");
    }
}
