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

#[derive(Default)]
pub(super) struct Term {
    watermark: i64,
    /// The last id given out at some time, and a number above those of all transactions of that time.
    candidate: Option<(i64, i64)>,
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
            self.term = Some(Term { watermark, candidate: None });
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
            "WITH new AS MATERIALIZED (SELECT e.id FROM events e WHERE e.id > $1 \
             AND NOT EXISTS (SELECT 1 FROM event_log l WHERE l.id = e.id) ORDER BY e.id LIMIT $2), \
             given AS (INSERT INTO event_log (pos, id) \
             SELECT (SELECT pos FROM event_sequencer) + row_number() OVER (ORDER BY id), id FROM new RETURNING pos), \
             last AS (SELECT max(pos) AS pos, count(*) AS count FROM given), \
             noted AS (UPDATE event_sequencer s SET pos = last.pos, watermark = greatest(s.watermark, $1) FROM last \
             WHERE last.count > 0) \
             SELECT coalesce(last.pos, 0), last.count, pg_snapshot_xmin(pg_current_snapshot())::text::bigint FROM last",
        )?;
        let row = session.call(|client| client.query_one(&statement, &[&term.watermark, &EVENTS_MAX]))?;
        let (pos, count, oldest): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        let more = count >= EVENTS_MAX;
        if let Some((last, number)) = term.candidate.filter(|_| !more)
            && oldest >= number
        {
            term.watermark = term.watermark.max(last);
            term.candidate = None;
        }
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
