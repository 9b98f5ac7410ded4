//! The queue of the only instance: an ordered set in memory. What it holds when the process ends is found again in the store.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{Entry, Queue, QueueError, Taken, cmp_as_text, now};
use crate::cluster::ServerId;
use crate::model::{DeviceId, Priority};
use crate::telemetry::{Counter, Exposition, MetricSource};

/// Entries that may wait: the commands of some thousand devices with full lanes.
const ENTRIES_MAX: usize = 65_536;

/// See the module.
#[derive(Debug)]
pub struct EmbeddedQueue {
    server: ServerId,
    entries_max: usize,
    state: Mutex<State>,
    arrived: Condvar,
    dropped: Counter,
}

#[derive(Debug, Default)]
struct State {
    order: BTreeSet<Place>,
    places: HashMap<i64, Place>,
    lengths: [u64; Priority::ALL.len()],
    closed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    score: f64,
    id: i64,
    device_id: Option<DeviceId>,
    priority: Priority,
}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| cmp_as_text(self.id, other.id))
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Place {}

impl EmbeddedQueue {
    /// An empty queue of `server`.
    pub fn new(server: ServerId) -> Self {
        Self::with_max(server, ENTRIES_MAX)
    }

    /// An empty queue that drops what comes when `entries_max` wait.
    pub fn with_max(server: ServerId, entries_max: usize) -> Self {
        Self { server, entries_max, state: Mutex::default(), arrived: Condvar::new(), dropped: Counter::default() }
    }

    /// Entries that found no room.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }
}

impl State {
    fn length(&mut self, priority: Priority) -> &mut u64 {
        let index = Priority::ALL.iter().position(|known| *known == priority).unwrap_or(0);
        &mut self.lengths[index]
    }

    fn insert(&mut self, place: Place) {
        self.order.insert(place);
        self.places.insert(place.id, place);
        *self.length(place.priority) += 1;
    }

    fn remove(&mut self, place: Place) {
        self.order.remove(&place);
        self.places.remove(&place.id);
        *self.length(place.priority) -= 1;
    }
}

impl Queue for EmbeddedQueue {
    fn push(&self, server: &ServerId, entries: Vec<Entry>) {
        if *server != self.server {
            // There is no other instance; the poll finds these for this one.
            self.dropped.add(entries.len() as u64);
            return;
        }
        let mut state = self.state.lock();
        for entry in entries {
            let Entry { id, device_id, priority, .. } = entry;
            let place = Place { score: entry.score(), id, device_id, priority };
            match state.places.get(&entry.id).copied() {
                Some(before) if before.score <= place.score => {}
                Some(before) => {
                    state.remove(before);
                    state.insert(place);
                }
                None if state.places.len() >= self.entries_max => self.dropped.inc(),
                None => state.insert(place),
            }
        }
        drop(state);
        self.arrived.notify_one();
    }

    fn take(&self, max: usize, wait: Duration) -> Result<Vec<Taken>, QueueError> {
        let deadline = now() + wait;
        let mut state = self.state.lock();
        while !state.closed && state.order.is_empty() && max > 0 {
            if self.arrived.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        if state.closed {
            return Err(QueueError::Closed);
        }
        let first: Vec<Place> = state.order.iter().take(max).copied().collect();
        first.iter().for_each(|place| state.remove(*place));
        Ok(first.iter().map(|place| Taken { id: place.id, device_id: place.device_id }).collect())
    }

    fn len_by_priority(&self) -> [u64; Priority::ALL.len()] {
        self.state.lock().lengths
    }

    fn forget(&self, server: &ServerId) {
        if *server == self.server {
            let mut state = self.state.lock();
            *state = State { closed: state.closed, ..State::default() };
        }
    }

    fn close(&self) {
        self.state.lock().closed = true;
        self.arrived.notify_all();
    }
}

impl MetricSource for EmbeddedQueue {
    fn render(&self, to: &mut Exposition<'_>) {
        to.counter(
            "chargegate_queue_dropped_total",
            "Entries of the command queue lost; polls find them.",
            self.dropped(),
        );
    }
}
