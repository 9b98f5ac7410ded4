//! The log's newest events, read once for all endpoints.
//!
//! ```text
//! commit ──▶ wake ──▶ feed thread ──▶ one query ──▶ ring ──▶ wake of every dispatcher
//! ```
//!
//! Ten endpoints that keep up cost one query per commit, not ten. An endpoint that is further behind than the ring reads the log
//! itself until it is back in it. The ring holds every event with `from` < pos ≤ `to`, none else.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::RwLock;

use crate::store::EventRecord;

/// Events kept.
const EVENTS_MAX: usize = 4_096;

#[derive(Debug, Default)]
pub(super) struct Tail {
    ring: RwLock<Option<Ring>>,
}

#[derive(Debug)]
struct Ring {
    from: i64,
    to: i64,
    events: VecDeque<Arc<EventRecord>>,
}

/// What the tail has behind a position.
#[derive(Debug)]
pub(super) enum Taken {
    /// The wanted events up to `read_pos`.
    Events { events: Vec<Arc<EventRecord>>, read_pos: i64 },
    /// Nothing newer.
    UpToDate,
    /// The position lies before the ring, which begins behind `from` (`None`: there is no ring yet).
    Behind { from: Option<i64> },
}

impl Tail {
    /// Begins an empty ring behind a position.
    pub(super) fn begin(&self, pos: i64) {
        *self.ring.write() = Some(Ring { from: pos, to: pos, events: VecDeque::new() });
    }

    /// Gives the ring up.
    pub(super) fn end(&self) {
        *self.ring.write() = None;
    }

    /// Position of the newest event.
    pub(super) fn to(&self) -> Option<i64> {
        self.ring.read().as_ref().map(|ring| ring.to)
    }

    /// Appends what the log has behind [`Tail::to`].
    pub(super) fn append(&self, events: Vec<EventRecord>) {
        if let Some(ring) = self.ring.write().as_mut() {
            for event in events {
                if event.pos <= ring.to {
                    continue;
                }
                ring.to = event.pos;
                ring.events.push_back(Arc::new(event));
                if ring.events.len() > EVENTS_MAX
                    && let Some(oldest) = ring.events.pop_front()
                {
                    ring.from = oldest.pos;
                }
            }
        }
    }

    /// At most `limit` wanted events behind `pos`.
    pub(super) fn after(&self, pos: i64, limit: usize, wants: impl Fn(&EventRecord) -> bool) -> Taken {
        let guard = self.ring.read();
        let Some(ring) = guard.as_ref() else {
            return Taken::Behind { from: None };
        };
        if pos < ring.from {
            return Taken::Behind { from: Some(ring.from) };
        }
        if pos >= ring.to {
            return Taken::UpToDate;
        }
        let first = ring.events.partition_point(|event| event.pos <= pos);
        let (mut events, mut read_pos) = (Vec::new(), pos);
        for event in ring.events.range(first..) {
            if wants(event) {
                if events.len() == limit {
                    return Taken::Events { events, read_pos };
                }
                events.push(Arc::clone(event));
            }
            read_pos = event.pos;
        }
        Taken::Events { events, read_pos: ring.to }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(pos: i64) -> EventRecord {
        EventRecord {
            pos,
            event_id: String::new(),
            event_type: if pos % 2 == 0 { "even" } else { "odd" }.to_owned(),
            key: String::new(),
            device_id: None,
            order_no: None,
            sequence_no: 0,
            at: 0,
            data: String::new(),
        }
    }

    fn even(tail: &Tail, pos: i64, limit: usize) -> (Vec<i64>, i64) {
        match tail.after(pos, limit, |event| event.event_type == "even") {
            Taken::Events { events, read_pos } => (events.iter().map(|event| event.pos).collect(), read_pos),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn takes_what_is_wanted_and_passes_the_rest() {
        let tail = Tail::default();
        assert!(matches!(tail.after(5, 9, |_| true), Taken::Behind { from: None }));
        tail.begin(10);
        assert!(matches!(tail.after(10, 9, |_| true), Taken::UpToDate));
        assert!(matches!(tail.after(9, 9, |_| true), Taken::Behind { from: Some(10) }));
        tail.append([11, 13, 14, 15, 16, 17].map(event).to_vec());
        assert_eq!(even(&tail, 10, 9), (vec![14, 16], 17));
        assert_eq!(even(&tail, 10, 1), (vec![14], 15));
        assert_eq!(even(&tail, 12, 0), (vec![], 13));
        assert_eq!(even(&tail, 16, 9), (vec![], 17));
        tail.append(vec![event(16), event(18)]);
        assert_eq!(even(&tail, 14, 9), (vec![16, 18], 18));
    }

    #[test]
    fn oldest_events_leave() {
        let tail = Tail::default();
        tail.begin(0);
        let last = i64::try_from(EVENTS_MAX).unwrap() + 5;
        tail.append((1..=last).map(event).collect());
        assert!(matches!(tail.after(4, 9, |_| true), Taken::Behind { from: Some(5) }));
        assert!(matches!(tail.after(5, 1, |_| true), Taken::Events { read_pos: 6, .. }));
    }
}
