//! Refuses commands while too many wait, the least urgent first.
//!
//! What counts is the number *accepted and not yet written* on this instance: commands in the shards' lanes, and API calls that are
//! on their way to become one. A call holds a [`Reservation`] until its command is committed, so that a burst cannot pass
//! the limits before the shards see its first command. Commands that are parked, paced or in flight are not counted.
//!
//! No lock is held while others wait: two atomics and a copy of the limits. Stops and cancels are never asked here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::config;
use crate::model::Priority;

/// Connections that the limits are made for; with more, they grow in proportion.
const CONNECTIONS_BASE: u64 = 10_000;

/// Unwritten commands above which commands are refused, for up to 10,000 connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Above it, statistics and firmware are refused.
    pub idle_above: u64,
    /// Above it, queries and parameters too.
    pub low_above: u64,
    /// Above it, starts too.
    pub normal_above: u64,
    /// Commands that may wait for one device. Not scaled.
    pub per_device_max: u32,
}

impl From<&config::Queue> for Limits {
    fn from(queue: &config::Queue) -> Self {
        Self {
            idle_above: queue.refuse_idle_above,
            low_above: queue.refuse_low_above,
            normal_above: queue.refuse_normal_above,
            per_device_max: queue.per_device_max,
        }
    }
}

impl Limits {
    /// The number above which a priority is refused; `None`: never.
    const fn of(&self, priority: Priority) -> Option<u64> {
        match priority {
            Priority::Emergency | Priority::High => None,
            Priority::Normal => Some(self.normal_above),
            Priority::Low => Some(self.low_above),
            Priority::Idle => Some(self.idle_above),
        }
    }
}

/// Why a command is not taken now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overload {
    /// The instance has too many.
    #[error("{unwritten} commands wait to be written, more than {above} allow no further one of priority {priority}")]
    Instance {
        /// Accepted and not yet written.
        unwritten: u64,
        /// The limit, scaled.
        above: u64,
        /// Of the refused command.
        priority: u8,
    },
    /// The device has too many.
    #[error("{waiting} commands wait for this device, at most {max} may")]
    Device {
        /// Waiting for it.
        waiting: u32,
        /// The limit.
        max: u32,
    },
}

/// Counts what waits and decides what may join it.
pub struct Backlog {
    limits: RwLock<Limits>,
    reserved: AtomicU64,
    waiting: Box<dyn Fn() -> u64 + Send + Sync>,
    connections: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Backlog {
    /// `waiting` tells the commands in the shards' lanes, `connections` the open device connections; both are asked at each
    /// command and must not block.
    pub fn new(
        limits: Limits,
        waiting: impl Fn() -> u64 + Send + Sync + 'static,
        connections: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            limits: RwLock::new(limits),
            reserved: AtomicU64::new(0),
            waiting: Box::new(waiting),
            connections: Box::new(connections),
        })
    }

    /// Replaces the limits.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.write() = limits;
    }

    /// Commands that may wait for one device.
    pub fn per_device_max(&self) -> u32 {
        self.limits.read().per_device_max
    }

    /// Commands accepted and not yet written, calls under way included.
    pub fn unwritten(&self) -> u64 {
        (self.waiting)().saturating_add(self.reserved.load(Ordering::Relaxed))
    }

    /// Reserves a place for a command of this priority for a device for which `waiting_for_device` commands wait.
    ///
    /// # Errors
    /// Says which limit is passed.
    pub fn admit(self: &Arc<Self>, priority: Priority, waiting_for_device: u32) -> Result<Reservation, Overload> {
        let limits = *self.limits.read();
        // Held before the count is read, so that of many calls at once each sees those before it.
        let reserved_before = self.reserved.fetch_add(1, Ordering::Relaxed);
        let reservation = Reservation(Arc::clone(self));
        if let Some(above) = limits.of(priority) {
            let connections = (self.connections)().max(CONNECTIONS_BASE);
            let above = above.saturating_mul(connections) / CONNECTIONS_BASE;
            let unwritten = (self.waiting)().saturating_add(reserved_before);
            if unwritten > above {
                return Err(Overload::Instance { unwritten, above, priority: priority.code() });
            }
            if waiting_for_device >= limits.per_device_max {
                return Err(Overload::Device { waiting: waiting_for_device, max: limits.per_device_max });
            }
        }
        Ok(reservation)
    }
}

/// A place among the unwritten commands, given back when dropped.
pub struct Reservation(Arc<Backlog>);

impl Drop for Reservation {
    fn drop(&mut self) {
        self.0.reserved.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backlog(waiting: u64, connections: u64) -> Arc<Backlog> {
        let limits = Limits::from(&config::Config::default().queue);
        Backlog::new(limits, move || waiting, move || connections)
    }

    #[test]
    fn the_least_urgent_are_refused_first() {
        // Emergency, high, normal, low, idle.
        for (waiting, taken) in [
            (0, [true, true, true, true, true]),
            (200, [true, true, true, true, true]),
            (201, [true, true, true, true, false]),
            (500, [true, true, true, true, false]),
            (501, [true, true, true, false, false]),
            (1_000, [true, true, true, false, false]),
            (1_001, [true, true, false, false, false]),
            (u64::MAX, [true, true, false, false, false]),
        ] {
            let backlog = backlog(waiting, 0);
            let answers = Priority::ALL.map(|priority| backlog.admit(priority, 0).is_ok());
            assert_eq!(answers, taken, "{waiting}");
            assert_eq!(backlog.reserved.load(Ordering::Relaxed), 0, "refusals hold no place");
        }
    }

    #[test]
    fn limits_grow_with_the_connections() {
        for (connections, waiting, taken) in
            [(10_000, 1_001, false), (15_000, 1_500, true), (15_000, 1_501, false), (50_000, 5_000, true)]
        {
            let admitted = backlog(waiting, connections).admit(Priority::Normal, 0).is_ok();
            assert_eq!(admitted, taken, "{waiting} of {connections}");
        }
    }

    #[test]
    fn calls_under_way_count_until_they_end() {
        let backlog = backlog(999, 0);
        let first = backlog.admit(Priority::Normal, 0).ok();
        let second = backlog.admit(Priority::Normal, 0).ok();
        assert_eq!(backlog.unwritten(), 1_001);
        let refused = backlog.admit(Priority::Normal, 0).err();
        assert_eq!(refused, Some(Overload::Instance { unwritten: 1_001, above: 1_000, priority: 2 }));
        drop(first);
        assert!(backlog.admit(Priority::Normal, 0).is_ok());
        drop(second);
        assert_eq!(backlog.unwritten(), 999);
    }

    #[test]
    fn one_device_has_a_limit_of_its_own() {
        let backlog = backlog(0, 0);
        assert!(backlog.admit(Priority::Normal, 15).is_ok());
        assert_eq!(backlog.admit(Priority::Normal, 16).err(), Some(Overload::Device { waiting: 16, max: 16 }));
        assert!(backlog.admit(Priority::High, 16).is_ok());
    }
}
