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
//! **Watermark**: ids up to it have a position or were never committed, so that looking begins behind it. It is raised to the last id
//! given out at some time, once every transaction of that time has ended: transactions take their number before their ids
//! (their first statement writes), so those that may hold an id up to it are below a number taken afterwards.
//!
//! **Runs**: events whose ids follow one another get positions that do, and one row of `event_runs` tells all of them. Behind the
//! watermark the leader knows which ids have a position (`Given`), so that it looks only where an event may have come since.

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

pub(super) struct Term {
    given: Given,
    /// The last id given out at some time, and a number above those of all transactions of that time.
    candidate: Option<(i64, i64)>,
}

/// Which ids have a position.
#[derive(Debug)]
struct Given {
    /// Up to here an event has one, or will never be.
    watermark: i64,
    /// Beyond it: first and last id of what has one, in their order, with something missing between any two. As long as what
    /// transactions under way hold back, and what was rolled back since the watermark.
    runs: Vec<(i64, i64)>,
}

impl Given {
    const fn up_to(watermark: i64) -> Self {
        Self { watermark, runs: Vec::new() }
    }

    /// Takes in what has a position: all or a part of a hole.
    fn add(&mut self, first: i64, last: i64) {
        let mut at = self.runs.partition_point(|(begin, _)| *begin < first);
        if at > 0 && self.runs[at - 1].1 + 1 >= first {
            at -= 1;
            self.runs[at].1 = self.runs[at].1.max(last);
        } else {
            self.runs.insert(at, (first, last));
        }
        if let Some(&(begin, end)) = self.runs.get(at + 1)
            && self.runs[at].1 + 1 >= begin
        {
            self.runs[at].1 = self.runs[at].1.max(end);
            self.runs.remove(at + 1);
        }
        self.raise(self.watermark);
    }

    fn raise(&mut self, watermark: i64) {
        self.watermark = self.watermark.max(watermark);
        while let Some(&(first, last)) = self.runs.first()
            && first <= self.watermark + 1
        {
            // Nothing is missing up to the end of one that begins right behind it.
            self.watermark = self.watermark.max(last);
            self.runs.remove(0);
        }
    }

    /// First and last ids of where events without a position may be; the last one has no end.
    fn holes(&self) -> (Vec<i64>, Vec<i64>) {
        let ends = self.runs.iter().map(|(_, last)| last + 1);
        let firsts = std::iter::once(self.watermark + 1).chain(ends).collect();
        let lasts = self.runs.iter().map(|(first, _)| first - 1).chain(std::iter::once(i64::MAX)).collect();
        (firsts, lasts)
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
            let mut given = Given::up_to(watermark);
            let statement = session.prepared(
                "SELECT r.id, r.id + r.count - 1 FROM event_runs r WHERE r.id >= \
                 coalesce((SELECT max(o.id) FROM event_runs o WHERE o.id <= $1), $1) AND r.id + r.count > $1 ORDER BY r.id",
            )?;
            for row in session.call(|client| client.query(&statement, &[&watermark]))? {
                given.add(row.get(0), row.get(1));
            }
            self.term = Some(Term { given, candidate: None });
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
        // One statement, one snapshot: what it sees of transactions holds for the events it sees.
        let statement = session.prepared(
            "WITH new AS MATERIALIZED (SELECT e.id, row_number() OVER (ORDER BY e.id) AS n FROM (SELECT v.id \
             FROM UNNEST($1::bigint[], $2::bigint[]) AS hole(first, last), \
             LATERAL (SELECT id FROM events WHERE id >= hole.first AND id <= hole.last ORDER BY id LIMIT $3) v \
             ORDER BY v.id LIMIT $3) e), \
             given AS (INSERT INTO event_runs (pos, id, count) SELECT s.pos + min(new.n), min(new.id), count(*) \
             FROM new, event_sequencer s GROUP BY s.pos, new.id - new.n RETURNING pos, id, count), \
             noted AS (UPDATE event_sequencer s SET pos = s.pos + found.count, watermark = greatest(s.watermark, $4) \
             FROM (SELECT count(*) AS count FROM new) found WHERE found.count > 0) \
             SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, given.pos, given.id, given.count \
             FROM (SELECT 1) always LEFT JOIN given ON TRUE ORDER BY given.id",
        )?;
        let (firsts, lasts) = term.given.holes();
        let rows =
            session.call(|client| client.query(&statement, &[&firsts, &lasts, &EVENTS_MAX, &term.given.watermark]))?;
        let (mut pos, mut count, mut oldest) = (0, 0, 0);
        for row in &rows {
            oldest = row.get(0);
            if let Some(first_pos) = row.get::<_, Option<i64>>(1) {
                let (first, of_run): (i64, i64) = (row.get(2), row.get(3));
                term.given.add(first, first + of_run - 1);
                pos = pos.max(first_pos + of_run - 1);
                count += of_run;
            }
        }
        let more = count >= EVENTS_MAX;
        if let Some((last, number)) = term.candidate.filter(|_| !more)
            && oldest >= number
        {
            term.given.raise(last);
            term.candidate = None;
        }
        if count > 0 {
            // Without a hole the watermark is at the log's end already.
            if term.candidate.is_none() && !term.given.runs.is_empty() {
                term.candidate = Some(candidate(session)?);
            }
            add(&self.state.given, count.unsigned_abs());
            self.tell(pos);
        }
        Ok(more)
    }
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_missing_is_looked_for() {
        let mut given = Given::up_to(5);
        given.add(6, 10);
        assert_eq!(given.holes(), (vec![11], vec![i64::MAX]), "nothing was missing");
        given.add(13, 15);
        given.add(18, 18);
        assert_eq!(given.holes(), (vec![11, 16, 19], vec![12, 17, i64::MAX]));
        given.add(16, 17);
        assert_eq!(given.holes(), (vec![11, 19], vec![12, i64::MAX]));
        given.raise(12);
        assert_eq!(given.holes(), (vec![19], vec![i64::MAX]), "nothing is missing up to 18");
        assert_eq!(given.watermark, 18);
    }

    proptest! {
        #[test]
        fn holes_are_all_that_has_no_position(
            steps in prop::collection::vec((prop::collection::btree_set(1_i64..60, 0..8), 0_i64..60), 1..20)
        ) {
            let mut given = Given::up_to(0);
            let mut free: std::collections::BTreeSet<i64> = (1..60).collect();
            for (ids, raised_to) in steps {
                // As the leader does: what is in no hole is not seen again.
                let seen: Vec<i64> = ids.into_iter().filter(|id| free.remove(id)).collect();
                for run in seen.chunk_by(|one, next| one + 1 == *next) {
                    given.add(run[0], run[run.len() - 1]);
                }
                given.raise(raised_to);
                free.retain(|id| *id > raised_to);
                let (firsts, lasts) = given.holes();
                let in_holes = (1..60).filter(|id| {
                    firsts.iter().zip(&lasts).any(|(first, last)| first <= id && id <= last)
                });
                prop_assert_eq!(in_holes.collect::<Vec<_>>(), free.iter().copied().collect::<Vec<_>>());
            }
        }
    }
}
