//! What one endpoint has to deliver, in which order, and how far it is. Pure: no I/O, no thread, no clock.
//!
//! ```text
//! log ──▶ lane per key, by position ──▶ head of a ready lane ──▶ attempt
//!            head failed: lane waits, all of it is parked          │
//!            ▲                                                     ▼
//!            └──────────────── retry / next of the key ◀──── delivered, dead
//! ```
//!
//! Invariants:
//! - At most one attempt of a key is under way, and it is for the key's lowest position: deliveries of a key keep their order.
//! - `undone` holds exactly the positions that were read and are neither delivered, dead nor parked. The cursor stands just
//!   before the first of them.
//! - Updates leave in the order they arose, the cursor behind all of them: a store that applies a batch as a whole never has a
//!   cursor past an event it does not know to be parked or dead.
//!
//! Bounds: `undone` by `undone_max` and `parked` by `parked_max` + `undone_max`: at either the log is read no further, and what
//! comes stays in the log.

use std::{
    collections::{BTreeSet, HashMap, VecDeque, hash_map},
    sync::Arc,
    time::Duration,
};

use rustc_hash::FxBuildHasher;

use crate::{
    gateway::Now,
    store::{DeliveryUpdate, EventRecord, ParkedDelivery},
};

/// Updates in one job.
const UPDATES_MAX: usize = 500;
/// Why an event is parked that was not tried yet: an earlier one of its key is.
const BEHIND: &str = "behind";

/// Bounds of a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) in_flight_max: usize,
    pub(super) undone_max: usize,
    pub(super) parked_max: usize,
}

#[derive(Debug)]
pub(super) struct Queue {
    endpoint: String,
    limits: Limits,
    read_pos: i64,
    undone: BTreeSet<i64>,
    parked: BTreeSet<i64>,
    lanes: HashMap<Arc<str>, Lane, FxBuildHasher>,
    ready: VecDeque<Arc<str>>,
    /// Waiting lanes by when they are due (monotonic ms).
    due: BTreeSet<(u64, Arc<str>)>,
    in_flight: usize,
    updates: Vec<DeliveryUpdate>,
    /// The cursor last handed out.
    cursor_out: i64,
    /// More rows are parked than were loaded: nothing is read until these are done, else an event could overtake one of its key.
    parked_beyond: bool,
}

/// The events of one key. Never empty.
#[derive(Debug)]
struct Lane {
    entries: VecDeque<Entry>,
    state: LaneState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LaneState {
    /// In `ready`.
    Ready,
    /// Its head is under way.
    InFlight,
    /// In `due`.
    Waiting(u64),
}

#[derive(Debug)]
struct Entry {
    event: Arc<EventRecord>,
    attempts: u8,
    parked: bool,
    /// Not to be tried before this (monotonic ms).
    due: u64,
}

/// An attempt to make.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) key: Arc<str>,
    pub(super) event: Arc<EventRecord>,
    /// Attempts counted so far, without this one.
    pub(super) made: u8,
}

/// How an attempt moves its event on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Delivered,
    /// Not counted; to be tried again when the endpoint takes attempts, after other keys.
    Hold,
    Park {
        delay: Duration,
        reason: String,
    },
    Dead {
        reason: String,
    },
}

impl Queue {
    /// A queue that goes on behind `cursor`.
    pub(super) fn resume(endpoint: &str, limits: Limits, cursor: i64) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            limits,
            read_pos: cursor,
            undone: BTreeSet::new(),
            parked: BTreeSet::new(),
            lanes: HashMap::default(),
            ready: VecDeque::new(),
            due: BTreeSet::new(),
            in_flight: 0,
            updates: Vec::new(),
            cursor_out: cursor,
            parked_beyond: false,
        }
    }

    /// Parked rows to ask the store for; if that many come, there may be more.
    pub(super) fn parked_limit(&self) -> u32 {
        u32::try_from(self.limits.parked_max + self.limits.undone_max).unwrap_or(u32::MAX)
    }

    /// Takes over the stored parked rows, by position, in the place of those it has. `complete`: there are no others. Nothing may be
    /// under way or undone, and all updates must be stored: then the rows are what it has, but for what others changed of them.
    pub(super) fn handle_parked(&mut self, rows: Vec<(ParkedDelivery, EventRecord)>, complete: bool, now: Now) {
        debug_assert!(
            self.is_settled() && !self.has_updates(),
            "parked rows are taken over by a queue that is at rest"
        );
        self.lanes.clear();
        self.ready.clear();
        self.due.clear();
        self.parked.clear();
        self.parked_beyond = !complete;
        for (row, event) in rows {
            let wait_ms = u64::try_from(row.next_at.saturating_sub(now.unix_ms)).unwrap_or(0);
            let due = now.mono_ms.saturating_add(wait_ms);
            self.parked.insert(event.pos);
            let key: Arc<str> = Arc::from(event.key.as_str());
            let mut entry = Entry { event: Arc::new(event), attempts: row.attempts, parked: true, due };
            match self.lanes.entry(Arc::clone(&key)) {
                hash_map::Entry::Occupied(mut lane) => {
                    // One that was not tried waits for nothing but those before it.
                    entry.due = if entry.attempts > 0 { due } else { 0 };
                    lane.get_mut().entries.push_back(entry);
                }
                hash_map::Entry::Vacant(slot) => {
                    slot.insert(Lane { entries: VecDeque::from([entry]), state: LaneState::Waiting(due) });
                    self.due.insert((due, key));
                }
            }
        }
    }

    /// Whether parked rows must be loaded again.
    pub(super) fn wants_parked(&self) -> bool {
        self.parked_beyond && self.parked.is_empty() && self.undone.is_empty()
    }

    /// Whether something that was read is neither delivered nor dead nor parked.
    pub(super) fn has_undone(&self) -> bool {
        !self.undone.is_empty()
    }

    /// Whether [`Queue::handle_parked`] may be called, once the updates are stored.
    pub(super) fn is_settled(&self) -> bool {
        self.undone.is_empty() && self.in_flight == 0
    }

    /// Events that may be read now.
    pub(super) fn room(&self) -> usize {
        if self.parked_beyond || self.parked.len() >= self.limits.parked_max {
            0
        } else {
            self.limits.undone_max.saturating_sub(self.undone.len())
        }
    }

    /// Takes in the wanted events of the log up to `read_pos`.
    pub(super) fn handle_events(&mut self, events: Vec<Arc<EventRecord>>, read_pos: i64, now: Now) {
        for event in events {
            let pos = event.pos;
            // Parked in an earlier run, with the cursor held back by an event before it.
            if pos <= self.read_pos || self.parked.contains(&pos) {
                continue;
            }
            let key: Arc<str> = Arc::from(event.key.as_str());
            let entry = Entry { event, attempts: 0, parked: false, due: 0 };
            match self.lanes.entry(Arc::clone(&key)) {
                hash_map::Entry::Occupied(mut slot) => {
                    let lane = slot.get_mut();
                    lane.entries.push_back(entry);
                    self.undone.insert(pos);
                    if let LaneState::Waiting(due) = lane.state {
                        Self::park_behind(
                            &self.endpoint,
                            lane,
                            due,
                            now,
                            &mut self.undone,
                            &mut self.parked,
                            &mut self.updates,
                        );
                    }
                }
                hash_map::Entry::Vacant(slot) => {
                    slot.insert(Lane { entries: VecDeque::from([entry]), state: LaneState::Ready });
                    self.undone.insert(pos);
                    self.ready.push_back(key);
                }
            }
        }
        self.read_pos = self.read_pos.max(read_pos);
    }

    /// Whether [`Queue::poll_attempt`] has one.
    pub(super) fn has_attempt(&mut self, now: Now) -> bool {
        while let Some((due, _)) = self.due.first()
            && *due <= now.mono_ms
        {
            let Some((_, key)) = self.due.pop_first() else { break };
            if let Some(lane) = self.lanes.get_mut(&key) {
                lane.state = LaneState::Ready;
                self.ready.push_back(key);
            }
        }
        self.in_flight < self.limits.in_flight_max && !self.ready.is_empty()
    }

    /// The next attempt to start. Its end must be told to [`Queue::handle_step`].
    pub(super) fn poll_attempt(&mut self, now: Now) -> Option<Attempt> {
        if !self.has_attempt(now) {
            return None;
        }
        let key = self.ready.pop_front()?;
        let lane = self.lanes.get_mut(&key)?;
        let head = lane.entries.front()?;
        lane.state = LaneState::InFlight;
        self.in_flight += 1;
        Some(Attempt { key, event: Arc::clone(&head.event), made: head.attempts })
    }

    /// When [`Queue::poll_attempt`] has one for the passing of time alone (monotonic ms).
    pub(super) fn poll_timeout(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| *due)
    }

    /// An attempt ended.
    pub(super) fn handle_step(&mut self, key: &Arc<str>, step: Step, now: Now) {
        let Some(lane) = self.lanes.get_mut(key).filter(|lane| lane.state == LaneState::InFlight) else {
            debug_assert!(false, "no attempt of this key is under way");
            return;
        };
        self.in_flight = self.in_flight.saturating_sub(1);
        match step {
            Step::Hold => {
                lane.state = LaneState::Ready;
                self.ready.push_back(Arc::clone(key));
            }
            Step::Park { delay, reason } => {
                let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                let due = now.mono_ms.saturating_add(delay_ms);
                lane.state = LaneState::Waiting(due);
                self.due.insert((due, Arc::clone(key)));
                if let Some(head) = lane.entries.front_mut() {
                    head.attempts = head.attempts.saturating_add(1);
                    head.parked = true;
                    head.due = due;
                    self.undone.remove(&head.event.pos);
                    self.parked.insert(head.event.pos);
                    self.updates.push(DeliveryUpdate::Park(head.delivery(&self.endpoint, wall(now, due), reason)));
                }
                Self::park_behind(
                    &self.endpoint,
                    lane,
                    due,
                    now,
                    &mut self.undone,
                    &mut self.parked,
                    &mut self.updates,
                );
            }
            Step::Delivered => {
                if let Some(head) = lane.entries.pop_front() {
                    self.undone.remove(&head.event.pos);
                    if head.parked {
                        self.parked.remove(&head.event.pos);
                        let (endpoint, pos) = (self.endpoint.clone(), head.event.pos);
                        self.updates.push(DeliveryUpdate::Unpark { endpoint, pos });
                    }
                }
                self.advance(key, now);
            }
            Step::Dead { reason } => {
                if let Some(mut head) = lane.entries.pop_front() {
                    head.attempts = head.attempts.saturating_add(1);
                    self.undone.remove(&head.event.pos);
                    self.parked.remove(&head.event.pos);
                    self.updates.push(DeliveryUpdate::Dead(head.delivery(&self.endpoint, now.unix_ms, reason)));
                }
                self.advance(key, now);
            }
        }
    }

    /// The lane's head is gone: its next event may go at once, unless it was tried before and is not due again.
    fn advance(&mut self, key: &Arc<str>, now: Now) {
        let hash_map::Entry::Occupied(mut slot) = self.lanes.entry(Arc::clone(key)) else { return };
        let lane = slot.get_mut();
        match lane.entries.front().map(|head| head.due) {
            None => drop(slot.remove()),
            Some(due) if due > now.mono_ms => {
                lane.state = LaneState::Waiting(due);
                self.due.insert((due, Arc::clone(key)));
                Self::park_behind(
                    &self.endpoint,
                    lane,
                    due,
                    now,
                    &mut self.undone,
                    &mut self.parked,
                    &mut self.updates,
                );
            }
            Some(_) => {
                lane.state = LaneState::Ready;
                self.ready.push_back(Arc::clone(key));
            }
        }
    }

    /// Parks what stands behind a parked head, so that the cursor can pass it.
    fn park_behind(
        endpoint: &str,
        lane: &mut Lane,
        due: u64,
        now: Now,
        undone: &mut BTreeSet<i64>,
        parked: &mut BTreeSet<i64>,
        updates: &mut Vec<DeliveryUpdate>,
    ) {
        // New entries come at the back: the parked ones are all in front of them.
        for entry in lane.entries.iter_mut().rev().take_while(|entry| !entry.parked) {
            entry.parked = true;
            undone.remove(&entry.event.pos);
            parked.insert(entry.event.pos);
            updates.push(DeliveryUpdate::Park(entry.delivery(endpoint, wall(now, due), BEHIND.to_owned())));
        }
    }

    /// The position up to which everything is delivered, parked or dead.
    pub(super) fn cursor(&self) -> i64 {
        self.undone.first().map_or(self.read_pos, |pos| pos - 1)
    }

    /// Changes to store since the last call; the cursor is last, once all changes before it are out.
    pub(super) fn poll_updates(&mut self) -> Option<Vec<DeliveryUpdate>> {
        if self.updates.len() > UPDATES_MAX {
            return Some(self.updates.drain(..UPDATES_MAX).collect());
        }
        let cursor = self.cursor();
        let mut updates = std::mem::take(&mut self.updates);
        if cursor != self.cursor_out {
            self.cursor_out = cursor;
            updates.push(DeliveryUpdate::Cursor { endpoint: self.endpoint.clone(), pos: cursor });
        }
        (!updates.is_empty()).then_some(updates)
    }

    /// Whether [`Queue::poll_updates`] has any.
    pub(super) fn has_updates(&self) -> bool {
        !self.updates.is_empty() || self.cursor() != self.cursor_out
    }

    pub(super) const fn read_pos(&self) -> i64 {
        self.read_pos
    }

    pub(super) const fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn parked(&self) -> usize {
        self.parked.len()
    }
}

impl Entry {
    fn delivery(&self, endpoint: &str, next_at: i64, reason: String) -> ParkedDelivery {
        ParkedDelivery {
            endpoint: endpoint.to_owned(),
            pos: self.event.pos,
            key: self.event.key.clone(),
            attempts: self.attempts,
            next_at,
            reason,
        }
    }
}

/// Unix ms of a monotonic instant ahead.
fn wall(now: Now, mono_ms: u64) -> i64 {
    now.unix_ms.saturating_add_unsigned(mono_ms.saturating_sub(now.mono_ms))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { in_flight_max: 4, undone_max: 16, parked_max: 16 };

    fn at(mono_ms: u64) -> Now {
        Now { mono_ms, unix_ms: 1_000_000 + i64::try_from(mono_ms).unwrap() }
    }

    fn event(pos: i64, key: &str) -> Arc<EventRecord> {
        Arc::new(EventRecord {
            pos,
            event_id: format!("e-{pos}"),
            event_type: "order.created".to_owned(),
            key: key.to_owned(),
            device_id: None,
            order_no: None,
            sequence_no: 1,
            at: 0,
            data: "{}".to_owned(),
        })
    }

    fn queue(events: &[(i64, &str)]) -> Queue {
        let mut queue = Queue::resume("e", LIMITS, 0);
        queue.handle_events(events.iter().map(|(pos, key)| event(*pos, key)).collect(), events.len() as i64, at(0));
        queue
    }

    fn park(reason: &str, delay_ms: u64) -> Step {
        Step::Park { delay: Duration::from_millis(delay_ms), reason: reason.to_owned() }
    }

    /// Positions of the attempts that can start now.
    fn start(queue: &mut Queue, now: Now) -> Vec<i64> {
        std::iter::from_fn(|| queue.poll_attempt(now)).map(|attempt| attempt.event.pos).collect()
    }

    fn rows(updates: Option<Vec<DeliveryUpdate>>) -> Vec<String> {
        let row = |update: &DeliveryUpdate| match update {
            DeliveryUpdate::Cursor { pos, .. } => format!("cursor {pos}"),
            DeliveryUpdate::Park(row) => format!("park {} {} {} {}", row.pos, row.attempts, row.next_at, row.reason),
            DeliveryUpdate::Unpark { pos, .. } => format!("unpark {pos}"),
            DeliveryUpdate::Dead(row) => format!("dead {} {} {}", row.pos, row.attempts, row.reason),
            DeliveryUpdate::Disable { reason, .. } => format!("disable {reason}"),
        };
        updates.unwrap_or_default().iter().map(row).collect()
    }

    #[test]
    fn one_attempt_per_key_and_the_cursor_waits_for_the_slowest() {
        let mut queue = queue(&[(1, "a"), (2, "a"), (3, "b")]);
        assert_eq!(start(&mut queue, at(0)), [1, 3]);
        queue.handle_step(&"b".into(), Step::Delivered, at(1));
        assert_eq!(queue.cursor(), 0);
        queue.handle_step(&"a".into(), Step::Delivered, at(1));
        assert_eq!(queue.cursor(), 1);
        assert_eq!(start(&mut queue, at(1)), [2]);
        queue.handle_step(&"a".into(), Step::Delivered, at(2));
        assert_eq!(rows(queue.poll_updates()), ["cursor 3"]);
        assert!(!queue.has_updates() && queue.poll_updates().is_none());
        assert!(queue.lanes.is_empty());
    }

    #[test]
    fn a_failed_head_parks_its_key_and_frees_the_cursor() {
        let mut queue = queue(&[(1, "a"), (2, "a"), (3, "b")]);
        assert_eq!(start(&mut queue, at(0)), [1, 3]);
        queue.handle_step(&"a".into(), park("http_500", 1_000), at(10));
        queue.handle_step(&"b".into(), Step::Delivered, at(10));
        // A later event of the parked key joins it at once.
        queue.handle_events(vec![event(4, "a")], 4, at(20));
        assert_eq!(
            rows(queue.poll_updates()),
            ["park 1 1 1001010 http_500", "park 2 0 1001010 behind", "park 4 0 1001010 behind", "cursor 4"]
        );
        assert_eq!(queue.poll_timeout(), Some(1_010));
        assert!(start(&mut queue, at(1_009)).is_empty());
        assert_eq!(start(&mut queue, at(1_010)), [1]);
        queue.handle_step(&"a".into(), Step::Delivered, at(1_020));
        assert_eq!(start(&mut queue, at(1_020)), [2]);
        queue.handle_step(&"a".into(), Step::Dead { reason: "http_400".to_owned() }, at(1_030));
        assert_eq!(start(&mut queue, at(1_030)), [4]);
        queue.handle_step(&"a".into(), Step::Delivered, at(1_040));
        assert_eq!(rows(queue.poll_updates()), ["unpark 1", "dead 2 1 http_400", "unpark 4"]);
    }

    #[test]
    fn a_held_event_costs_nothing_and_lets_other_keys_pass() {
        let mut queue = queue(&[(1, "a"), (2, "b")]);
        let first = queue.poll_attempt(at(0)).unwrap();
        assert_eq!(first.event.pos, 1);
        queue.handle_step(&first.key, Step::Hold, at(1));
        assert_eq!(start(&mut queue, at(1)), [2, 1]);
        assert_eq!((queue.cursor(), queue.has_updates()), (0, false));
    }

    #[test]
    fn resumed_rows_keep_attempts_and_are_not_read_twice() {
        let mut queue = Queue::resume("e", LIMITS, 4);
        let row = |pos, attempts| ParkedDelivery {
            endpoint: "e".to_owned(),
            pos,
            key: "a".to_owned(),
            attempts,
            next_at: 1_000_500,
            reason: "timeout".to_owned(),
        };
        let record = |pos| Arc::unwrap_or_clone(event(pos, "a"));
        queue.handle_parked(vec![(row(3, 2), record(3)), (row(6, 0), record(6))], true, at(0));
        queue.handle_events(vec![event(5, "b"), event(6, "a"), event(7, "a")], 7, at(0));
        assert_eq!(rows(queue.poll_updates()), ["park 7 0 1000500 behind"]);
        assert_eq!(start(&mut queue, at(0)), [5]);
        let retry = queue.poll_attempt(at(500)).unwrap();
        assert_eq!((retry.event.pos, retry.made), (3, 2));
    }

    #[test]
    fn rows_that_came_back_go_first_and_those_that_were_tried_keep_their_delay() {
        let mut queue = Queue::resume("e", LIMITS, 4);
        queue.handle_events(vec![event(5, "a"), event(6, "a"), event(7, "b")], 7, at(0));
        assert_eq!(start(&mut queue, at(0)), [5, 7]);
        assert!(queue.has_undone() && !queue.is_settled());
        queue.handle_step(&"b".into(), Step::Delivered, at(1));
        queue.handle_step(&"a".into(), park("http_503", 1_000), at(1));
        assert!(queue.is_settled());
        drop(queue.poll_updates());
        let row = |pos, attempts, next_at| {
            let (endpoint, key, reason) = ("e".to_owned(), "a".to_owned(), String::new());
            let row = ParkedDelivery { endpoint, pos, key, attempts, next_at, reason };
            (row, Arc::unwrap_or_clone(event(pos, "a")))
        };
        // Somebody let 2 and 3 be delivered again.
        let rows = vec![row(2, 0, 1_000_000), row(3, 0, 1_000_000), row(5, 1, 1_001_001), row(6, 0, 1_001_001)];
        queue.handle_parked(rows, true, at(10));
        assert_eq!((queue.parked(), queue.cursor(), queue.has_updates()), (4, 7, false));
        assert_eq!(start(&mut queue, at(10)), [2]);
        queue.handle_step(&"a".into(), Step::Delivered, at(20));
        assert_eq!(start(&mut queue, at(20)), [3]);
        queue.handle_events(vec![event(8, "a")], 8, at(21));
        queue.handle_step(&"a".into(), Step::Delivered, at(30));
        assert_eq!(
            rows_of(&mut queue),
            ["unpark 2", "unpark 3", "park 8 0 1001001 behind", "cursor 8"],
            "what came behind waits with it"
        );
        assert!(start(&mut queue, at(1_000)).is_empty());
        for (pos, now_ms) in [(5, 1_001), (6, 1_002), (8, 1_003)] {
            assert_eq!(start(&mut queue, at(now_ms)), [pos]);
            queue.handle_step(&"a".into(), Step::Delivered, at(now_ms));
        }
        assert!(queue.lanes.is_empty());
    }

    fn rows_of(queue: &mut Queue) -> Vec<String> {
        rows(queue.poll_updates())
    }

    #[test]
    fn full_queues_read_no_further() {
        let mut queue = Queue::resume("e", Limits { in_flight_max: 1, undone_max: 2, parked_max: 2 }, 0);
        assert_eq!(queue.room(), 2);
        queue.handle_events(vec![event(1, "a"), event(2, "a")], 2, at(0));
        assert_eq!(queue.room(), 0);
        assert_eq!(start(&mut queue, at(0)), [1]);
        queue.handle_step(&"a".into(), park("timeout", 100), at(0));
        assert_eq!((queue.parked(), queue.room()), (2, 0), "two are parked");
        assert_eq!(start(&mut queue, at(100)), [1]);
        queue.handle_step(&"a".into(), Step::Delivered, at(100));
        assert_eq!(queue.room(), 2);
        drop(queue.poll_updates());
        let reason = "timeout".to_owned();
        let row =
            ParkedDelivery { endpoint: "e".to_owned(), pos: 2, key: "a".to_owned(), attempts: 0, next_at: 0, reason };
        queue.handle_parked(vec![(row, Arc::unwrap_or_clone(event(2, "a")))], false, at(100));
        assert_eq!((queue.room(), queue.wants_parked()), (0, false), "more rows are parked than loaded");
        assert_eq!(start(&mut queue, at(100)), [2]);
        queue.handle_step(&"a".into(), Step::Delivered, at(100));
        assert_eq!((queue.room(), queue.wants_parked()), (0, true), "now they can be");
    }

    proptest! {
        /// Whatever the receiver does, each event ends delivered or dead, each key's in order, and a cursor never passes an
        /// event that the updates so far do not account for.
        #[test]
        fn every_event_ends_once_and_in_order(
            keys in prop::collection::vec(0_u8..4, 1..60),
            answers in prop::collection::vec(0_u8..8, 1..400),
        ) {
            let mut queue = Queue::resume("e", LIMITS, 0);
            let keys: Vec<String> = keys.iter().map(u8::to_string).collect();
            let mut answers = answers.into_iter().chain(std::iter::repeat(0));
            let (mut next, mut now_ms) = (1_usize, 0_u64);
            let mut flying: Vec<Attempt> = Vec::new();
            let mut ended: BTreeMap<String, Vec<i64>> = BTreeMap::new();
            let mut accounted: BTreeSet<i64> = BTreeSet::new();
            while queue.cursor() < keys.len() as i64 || queue.parked() > 0 || queue.has_updates() {
                now_ms += 1;
                let now = at(now_ms);
                while queue.room() > 0 && next <= keys.len() {
                    queue.handle_events(vec![event(next as i64, &keys[next - 1])], next as i64, now);
                    next += 1;
                }
                flying.extend(std::iter::from_fn(|| queue.poll_attempt(now)));
                prop_assert!(queue.in_flight() <= LIMITS.in_flight_max);
                let answer = answers.next().unwrap_or(0);
                if !flying.is_empty() {
                    let attempt = flying.remove(usize::from(answer) % flying.len());
                    let step = match answer {
                        5 => park("timeout", 3),
                        6 => Step::Hold,
                        7 => Step::Dead { reason: "http_400".to_owned() },
                        _ => Step::Delivered,
                    };
                    if matches!(step, Step::Delivered | Step::Dead { .. }) {
                        ended.entry(attempt.event.key.clone()).or_default().push(attempt.event.pos);
                        accounted.insert(attempt.event.pos);
                    }
                    queue.handle_step(&attempt.key, step, now);
                }
                for update in queue.poll_updates().unwrap_or_default() {
                    match update {
                        DeliveryUpdate::Park(row) | DeliveryUpdate::Dead(row) => drop(accounted.insert(row.pos)),
                        DeliveryUpdate::Cursor { pos, .. } => {
                            prop_assert!((1..=pos).all(|done| accounted.contains(&done)), "cursor {}", pos);
                        }
                        DeliveryUpdate::Unpark { .. } | DeliveryUpdate::Disable { .. } => {}
                    }
                }
            }
            prop_assert!(ended.values().all(|positions| positions.is_sorted()));
            prop_assert_eq!(ended.values().map(Vec::len).sum::<usize>(), keys.len());
        }
    }
}
