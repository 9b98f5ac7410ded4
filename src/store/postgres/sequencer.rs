//! The sequencer: gives committed events their positions in the log.
//!
//! Events get their `id` inside the transaction of what they tell, so ids become visible in any order. Positions are given
//! afterwards, by one process at a time, to every event that is visible and has none, in the order of ids. The log therefore
//! misses nobody, however late he commits; and an event of the same key is never before an older one, because whoever inserts
//! under a key holds the key's lock from before he takes the id until his commit is visible.
//!
//! **Leader**: holds an advisory lock of its session. The statement that gives positions runs on that very session, so a leader
//! that is cut off gives none. One that stands still is ended by the server (`idle_session_timeout`), and another takes over.
//! Followers look every [`POLL`] whether the lock is free, and tell their process how far the log is.
//!
//! **Holes**: a leader remembers which ids it has seen, so that it looks at each event once: at those behind the last id it saw, and at
//! those before it that were not visible then.
//!
//! **Watermark**: ids up to it have a position or were never committed, so that looking begins behind it. It is raised to the last id
//! given out at some time, once every transaction of that time has ended: transactions take their number before their ids
//! (their first statement writes), so those that may hold an id up to it are below a number taken afterwards.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crossbeam::channel::{Receiver, Sender, bounded, select};
use postgres::SimpleQueryMessage;

use super::{link::Link, session::PgSession};
use crate::store::{Notify, StoreError, counters::add};

/// How often the sequencer looks without being woken.
const POLL: Duration = Duration::from_millis(250);
/// Events given a position by one statement.
const EVENTS_MAX: i64 = 5_000;
/// Holes a leader remembers. With more of them, it looks at everything behind the watermark.
const HOLES_MAX: usize = 1_000;
/// A leader that does nothing for so long stands still: the server ends its session.
const LEADER_IDLE_MAX: &str = "10s";

/// Wakes the sequencer.
#[derive(Clone, Debug)]
pub struct SequencerWake {
    wake: Sender<()>,
    pub(super) state: Arc<SequencerState>,
}

/// What the sequencer is doing, readable from any thread.
#[derive(Debug, Default)]
pub struct SequencerState {
    /// This process gives the positions.
    pub leader: AtomicBool,
    /// Events given a position by this process.
    pub given: AtomicU64,
    /// Times it became leader.
    pub terms: AtomicU64,
}

impl SequencerWake {
    pub(super) fn new() -> (Self, Receiver<()>) {
        let (wake, woken) = bounded(1);
        (Self { wake, state: Arc::default() }, woken)
    }

    /// What the sequencer of this instance is doing.
    pub fn state(&self) -> &SequencerState {
        &self.state
    }

    /// Says that events were committed, here or by another instance. Never waits.
    pub fn wake(&self) {
        // Full: it is woken already.
        self.wake.try_send(()).ok();
    }
}

pub(super) struct Sequencer {
    pub(super) link: Link,
    pub(super) notify: Arc<dyn Notify>,
    pub(super) woken: Receiver<()>,
    /// Disconnected when no lane commits any more.
    pub(super) lanes: Receiver<()>,
    pub(super) state: Arc<SequencerState>,
    /// What only the leader knows.
    pub(super) term: Option<Term>,
    /// What was told last.
    pub(super) told: i64,
}

#[derive(Default)]
pub(super) struct Term {
    watermark: i64,
    /// The last id given out at some time, and a number above those of all transactions of that time.
    candidate: Option<(i64, i64)>,
    /// What it has seen behind the watermark; `None`: it does not know.
    seen: Option<Seen>,
    /// The watermark for which it was asked last what there is to see.
    asked: Option<i64>,
}

/// Ids that have a position, but for holes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// The highest one.
    last: i64,
    /// Below it, rising, first and last of each: ids of transactions that were open, or never committed.
    holes: Vec<(i64, i64)>,
}

impl Seen {
    /// These ids, which rise, have positions from now on.
    fn note(&mut self, ids: &[i64]) {
        for &id in ids {
            if id > self.last {
                if id > self.last + 1 {
                    self.holes.push((self.last + 1, id - 1));
                }
                self.last = id;
                continue;
            }
            let place = self.holes.partition_point(|hole| hole.1 < id);
            let Some(&(first, last)) = self.holes.get(place).filter(|hole| hole.0 <= id) else { continue };
            let rest = [(first, id - 1), (id + 1, last)].into_iter().filter(|hole| hole.0 <= hole.1);
            self.holes.splice(place..=place, rest);
        }
    }

    /// Nothing up to the watermark becomes visible any more.
    fn settle(&mut self, watermark: i64) {
        self.last = self.last.max(watermark);
        self.holes.retain(|hole| hole.1 > watermark);
    }
}

impl Sequencer {
    pub(super) fn run(&mut self) {
        let mut open = true;
        while open {
            let woken = select! {
                recv(self.woken) -> _ => true,
                // What the lanes committed last shall not wait for another instance.
                recv(self.lanes) -> _ => {
                    open = false;
                    true
                }
                default(POLL) => false,
            };
            if let Err(error) = self.look(woken) {
                log::debug!("the sequencer stops for now: {error}");
                self.resign();
                self.link.lose(&error);
            }
        }
        self.resign();
    }

    fn resign(&mut self) {
        if self.term.take().is_some() {
            log::info!("this instance no longer orders events");
        }
        self.state.leader.store(false, Relaxed);
    }

    fn look(&mut self, woken: bool) -> Result<(), StoreError> {
        if self.term.is_none() && !self.stand()? {
            if woken {
                self.notify.events_waiting();
            }
            return Ok(());
        }
        // A statement takes a bounded number of events: there may be more.
        while self.give()? {}
        Ok(())
    }

    /// Becomes leader, if nobody is; tells how far the log is if somebody is.
    fn stand(&mut self) -> Result<bool, StoreError> {
        let session = self.link.session()?;
        let statement = session.prepared(
            "SELECT pg_try_advisory_lock(hashtext('chargegate sequencer'), hashtext(current_schema())), watermark, pos \
             FROM event_sequencer",
        )?;
        let row = session.call(|client| client.query_one(&statement, &[]))?;
        let (leader, watermark, pos): (bool, i64, i64) = (row.get(0), row.get(1), row.get(2));
        if leader {
            // Servers before 14 do not know it; there a leader that stands still holds the log up until it goes on or ends.
            drop(
                session.call(|client| client.batch_execute(&format!("SET idle_session_timeout = '{LEADER_IDLE_MAX}'"))),
            );
            self.term = Some(Term { watermark, ..Term::default() });
            self.state.leader.store(true, Relaxed);
            add(&self.state.terms, 1);
            log::info!("this instance orders events, from position {pos} on");
        }
        self.tell(pos);
        Ok(leader)
    }

    fn tell(&mut self, pos: i64) {
        if pos > self.told {
            self.told = pos;
            self.notify.events_committed(pos);
        }
    }

    /// Gives positions to events that have none; true: there may be more.
    fn give(&mut self) -> Result<bool, StoreError> {
        let session = self.link.session()?;
        let Some(term) = &mut self.term else { return Ok(false) };
        if term.seen.is_none() && term.asked != Some(term.watermark) {
            term.seen = seen(session, term.watermark)?;
            term.asked = Some(term.watermark);
        }
        // One statement, one snapshot: what it sees of transactions holds for the events it sees.
        let row = match &term.seen {
            Some(Seen { last, holes }) if holes.is_empty() => {
                let statement = session.prepared(GIVE_NEW)?;
                session.call(|client| client.query_one(&statement, &[&term.watermark, &EVENTS_MAX, last]))?
            }
            Some(Seen { last, holes }) => {
                let (first, until): (Vec<i64>, Vec<i64>) = holes.iter().copied().unzip();
                let statement = session.prepared(GIVE_UNSEEN)?;
                session.call(|client| {
                    client.query_one(&statement, &[&term.watermark, &EVENTS_MAX, last, &first, &until])
                })?
            }
            None => {
                let statement = session.prepared(GIVE_ALL)?;
                session.call(|client| client.query_one(&statement, &[&term.watermark, &EVENTS_MAX]))?
            }
        };
        let (pos, ids, oldest): (i64, Vec<i64>, i64) = (row.get(0), row.get(1), row.get(2));
        let count = i64::try_from(ids.len()).unwrap_or(i64::MAX);
        if let Some(seen) = &mut term.seen {
            seen.note(&ids);
        }
        let more = count >= EVENTS_MAX;
        if let Some((last, number)) = term.candidate.filter(|_| !more)
            && oldest >= number
        {
            term.watermark = term.watermark.max(last);
            term.candidate = None;
            if let Some(seen) = &mut term.seen {
                seen.settle(term.watermark);
            }
        }
        term.seen.take_if(|seen| seen.holes.len() > HOLES_MAX);
        if count > 0 {
            if term.candidate.is_none() {
                term.candidate = Some(candidate(session)?);
            }
            add(&self.state.given, count.unsigned_abs());
            self.tell(pos);
        }
        Ok(more)
    }
}

/// A statement that gives positions to the events of a query; `$1` is the watermark, `$2` how many at most.
macro_rules! give {
    ($new:literal) => {
        concat!(
            "WITH new AS MATERIALIZED (",
            $new,
            "), given AS (INSERT INTO event_log (pos, id) \
             SELECT (SELECT pos FROM event_sequencer) + row_number() OVER (ORDER BY id), id FROM new RETURNING pos, id), \
             last AS (SELECT max(pos) AS pos, array_agg(id ORDER BY id) AS ids FROM given), \
             noted AS (UPDATE event_sequencer s SET pos = last.pos, watermark = greatest(s.watermark, $1) FROM last \
             WHERE last.pos IS NOT NULL) \
             SELECT coalesce(last.pos, 0), coalesce(last.ids, '{}'), pg_snapshot_xmin(pg_current_snapshot())::text::bigint \
             FROM last"
        )
    };
}

/// Looks at every event behind the watermark.
const GIVE_ALL: &str = give!(
    "SELECT e.id FROM events e WHERE e.id > $1 AND NOT EXISTS (SELECT 1 FROM event_log l WHERE l.id = e.id) \
     ORDER BY e.id LIMIT $2"
);

/// Looks at events behind `$3`: there are no holes.
const GIVE_NEW: &str = give!("SELECT e.id FROM events e WHERE e.id > $3 ORDER BY e.id LIMIT $2");

/// Looks at events behind `$3` and in the holes, hole by hole: planned while the tables are small, a join would read all of them for good.
const GIVE_UNSEEN: &str = give!(
    "SELECT id FROM ((SELECT e.id FROM events e WHERE e.id > $3 ORDER BY e.id LIMIT $2) UNION ALL \
     SELECT l.id FROM UNNEST($4::bigint[], $5::bigint[]) AS h(first, last) CROSS JOIN LATERAL \
     (SELECT e.id FROM events e WHERE e.id >= h.first AND e.id <= h.last ORDER BY e.id LIMIT $2) AS l) AS unseen \
     ORDER BY id LIMIT $2"
);

/// What has a position behind the watermark; `None`: too many holes to remember. Whoever asks gives the positions: nobody else changes
/// it, but for pruning, which takes the events as well.
fn seen(session: &PgSession, watermark: i64) -> Result<Option<Seen>, StoreError> {
    let statement = session.prepared(
        "SELECT previous + 1, id - 1 FROM (SELECT id, lag(id, 1, $1) OVER (ORDER BY id) AS previous FROM event_log \
         WHERE id > $1) AS logged WHERE id > previous + 1 ORDER BY 1 LIMIT $2",
    )?;
    let limit = i64::try_from(HOLES_MAX).unwrap_or(i64::MAX) + 1;
    let rows = session.call(|client| client.query(&statement, &[&watermark, &limit]))?;
    if rows.len() > HOLES_MAX {
        return Ok(None);
    }
    let statement = session.prepared("SELECT greatest($1, coalesce(max(id), 0)) FROM event_log")?;
    let last = session.call(|client| client.query_one(&statement, &[&watermark]))?.get(0);
    Ok(Some(Seen { last, holes: rows.iter().map(|row| (row.get(0), row.get(1))).collect() }))
}

/// The last id given out, and then a number above those of all transactions so far.
fn candidate(session: &PgSession) -> Result<(i64, i64), StoreError> {
    // In this order: who holds an id up to the first took his number before it.
    let answer = session
        .call(|client| client.simple_query("SELECT last_value FROM events_id_seq; SELECT pg_current_xact_id()"))?;
    let mut rows = answer.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse::<i64>().ok(),
        _ => None,
    });
    match (rows.next(), rows.next()) {
        (Some(last), Some(number)) => Ok((last, number)),
        _ => Err(StoreError::Corrupt("the server does not say which transactions there are".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_visible_is_a_hole_until_it_is() {
        let mut seen = Seen { last: 10, holes: Vec::new() };
        seen.note(&[11, 12, 15, 20]);
        assert_eq!(seen, Seen { last: 20, holes: vec![(13, 14), (16, 19)] });
        // In the middle, at an end, whole, and behind the last one.
        seen.note(&[14, 17, 22]);
        assert_eq!(seen, Seen { last: 22, holes: vec![(13, 13), (16, 16), (18, 19), (21, 21)] });
        seen.note(&[13, 16, 18, 19]);
        assert_eq!(seen, Seen { last: 22, holes: vec![(21, 21)] });
        // Known already.
        seen.note(&[5, 12]);
        assert_eq!(seen, Seen { last: 22, holes: vec![(21, 21)] });
    }

    #[test]
    fn what_never_committed_is_forgotten_with_the_watermark() {
        let mut seen = Seen { last: 22, holes: vec![(3, 4), (18, 20), (21, 21)] };
        seen.settle(19);
        assert_eq!(seen, Seen { last: 22, holes: vec![(18, 20), (21, 21)] });
        seen.settle(30);
        assert_eq!(seen, Seen { last: 30, holes: Vec::new() });
    }
}
