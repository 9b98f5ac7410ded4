//! One lane: a thread, a connection, one transaction at a time.
//!
//! ```text
//! BEGIN; the lane's row says which batch this is      one round trip
//! lock the batch's devices, in the order of their ids, and read what the jobs will ask for
//! the jobs, as for every store, on what was read; what they write, in a statement or two
//! COMMIT
//! ```
//!
//! | what goes wrong | what happens |
//! |---|---|
//! | something in a job is refused | the batch is run again with a savepoint per job: that job fails alone, a settlement goes to quarantine |
//! | deadlock, serialisation | run again; if that does not help, in halves |
//! | somebody holds a device for longer than `lock_timeout` | its jobs fail, the others are run without them |
//! | the connection is lost before COMMIT | nothing had an effect: once more on a new connection, else the jobs fail |
//! | the connection is lost during COMMIT | the lane's row says on a new connection whether it was committed |
//! | the server is not there | the jobs fail; whoever submitted them tries again |

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use rustc_hash::FxHashSet;

use super::{
    Shared,
    link::{Link, jitter},
    session::{Fault, PgSession},
    turn::{Held, Turn},
    watch::now,
};
use crate::{
    model::DeviceId,
    store::{
        Applied, Job, Reply, StoreError,
        counters::add,
        delivery::Delivery,
        front::LogMessage,
        sql::{
            apply::{apply_open, device_of},
            conn::Conn,
        },
    },
};

/// How often an idle lane looks after its connection.
const IDLE: Duration = Duration::from_millis(250);
/// Times a batch is run again because others are in the way.
const CONFLICTS_MAX: u32 = 4;
const CONFLICT_WAIT: Duration = Duration::from_millis(10);
/// Looking whether a batch was committed; then its jobs fail, and who submits them again finds out.
const RESOLVE_MAX: Duration = Duration::from_secs(30);
const RESOLVE_AGAIN: Duration = Duration::from_millis(50);

pub(super) struct Lane {
    pub(super) shared: Arc<Shared>,
    pub(super) link: Link,
    /// Its row in `store_lanes`, as a literal.
    pub(super) row: String,
    pub(super) jobs: Receiver<(Job, Reply)>,
    pub(super) deliveries: Sender<Delivery>,
    pub(super) log: Sender<LogMessage>,
    /// Whose turn it is among the lanes; the lane of what is no device's takes none, for some of that takes long.
    pub(super) turn: Option<Turn>,
    /// It is this lane's.
    pub(super) held: Option<Held>,
    /// Number of the last batch; begins anywhere, so that no number of another process is taken for this one's.
    pub(super) batch: i64,
}

/// Why a transaction did not come to its end. Nothing of it had an effect.
enum Stop {
    /// Something was refused, and it is not known what else would have been.
    Savepoints,
    Conflict(StoreError),
    Locked(StoreError),
    Lost(StoreError),
    Failed(StoreError),
}

impl Lane {
    pub(super) fn run(&mut self) {
        let (mut jobs, mut replies) = (Vec::new(), Vec::new());
        loop {
            match self.jobs.recv_timeout(IDLE) {
                Ok(first) => {
                    let full = || self.jobs.len() + 1 >= self.shared.batch_jobs_max;
                    self.held = self.turn.as_ref().and_then(|turn| turn.wait(full));
                    let more = self.jobs.try_iter().take(self.shared.batch_jobs_max - 1);
                    for (job, reply) in std::iter::once(first).chain(more) {
                        jobs.push(job);
                        replies.push(reply);
                    }
                    self.write_batch(&mut jobs, &mut replies);
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.link.look_after();
                    self.shared.check_clock();
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    }

    fn write_batch(&mut self, jobs: &mut Vec<Job>, replies: &mut Vec<Reply>) {
        let at = self.shared.now();
        let start = now();
        let applied = self.apply(at, jobs);
        let us = u64::try_from(now().duration_since(start).as_micros()).unwrap_or(u64::MAX);
        self.shared.status.health.commit_us.store(us, Relaxed);
        self.shared.counters.committed_in(us);
        self.shared.counters.count(jobs, &applied);
        if applied.error.is_none() {
            self.shared.wrote(at);
        }
        if applied.last_event.is_some() {
            self.shared.sequencer.wake();
        }
        for job in jobs.drain(..) {
            if let Job::Prune(prune) = job {
                // Lossy as its rows are: an hour later it is asked again.
                if self.log.try_send(LogMessage::Prune(prune.into())).is_err() {
                    log::warn!("the logs are not pruned this time: their queue is full");
                }
            }
        }
        let outcomes = replies.drain(..).zip(applied.outcomes).collect();
        let Applied { queued, owners, .. } = applied;
        // Positions are the sequencer's to give.
        if self.deliveries.send(Delivery { outcomes, queued, owners, last_pos: None }).is_err() {
            log::error!("outcomes are not delivered: the delivery thread has ended");
        }
    }

    fn apply(&mut self, at: i64, jobs: &[Job]) -> Applied {
        let (mut savepoints, mut conflicts, mut lost) = (false, 0, 0);
        loop {
            let applied = self.transaction(at, jobs, savepoints);
            // Nobody else waits while this lane pauses, connects anew or tries again.
            self.held = None;
            match applied {
                Ok(applied) => return applied,
                Err(Stop::Savepoints) if !savepoints => {
                    add(&self.shared.link_counters.with_savepoints, 1);
                    savepoints = true;
                }
                Err(Stop::Savepoints) => {
                    let error = StoreError::Unavailable("savepoints did not help".into());
                    return self.in_halves(at, jobs, error);
                }
                Err(Stop::Conflict(error)) => {
                    add(&self.shared.link_counters.conflicts, 1);
                    conflicts += 1;
                    if conflicts > CONFLICTS_MAX {
                        return self.in_halves(at, jobs, error);
                    }
                    std::thread::sleep(jitter(CONFLICT_WAIT * conflicts));
                }
                Err(Stop::Locked(error)) => return self.around_the_locked(at, jobs, error),
                Err(Stop::Lost(error)) => {
                    lost += 1;
                    if lost > 1 || self.link.session().is_err() {
                        return Applied::failed(jobs, error);
                    }
                }
                Err(Stop::Failed(error)) => return Applied::failed(jobs, error),
            }
        }
    }

    /// Finds out which of the jobs cannot go in by trying fewer at a time.
    fn in_halves(&mut self, at: i64, jobs: &[Job], error: StoreError) -> Applied {
        if jobs.len() <= 1 {
            return Applied::failed(jobs, error);
        }
        let (first, second) = jobs.split_at(jobs.len() / 2);
        let applied = self.apply(at, first);
        joined(applied, self.apply(at, second))
    }

    /// Fails the jobs of devices that somebody else holds, and runs the others: one wait is enough for all of them.
    fn around_the_locked(&mut self, at: i64, jobs: &[Job], error: StoreError) -> Applied {
        let locked = match self.link.session().and_then(|session| locked_devices(session, jobs)) {
            Ok(locked) => locked,
            Err(error) => {
                self.link.lose_if_lost();
                return Applied::failed(jobs, error);
            }
        };
        let is_locked = |job: &Job| device_of(job).is_some_and(|device_id| locked.contains(&device_id));
        if !jobs.iter().any(is_locked) {
            // It is another row, or was let go just now.
            return self.in_halves(at, jobs, error);
        }
        let mut applied: Option<Applied> = None;
        for run in jobs.chunk_by(|one, next| is_locked(one) == is_locked(next)) {
            let of_run = match run.first() {
                Some(first) if is_locked(first) => Applied::failed(run, error.clone()),
                _ => self.apply(at, run),
            };
            applied = Some(match applied {
                Some(before) => joined(before, of_run),
                None => of_run,
            });
        }
        applied.unwrap_or_default()
    }

    /// One transaction, from begin to commit.
    fn transaction(&mut self, at: i64, jobs: &[Job], savepoints: bool) -> Result<Applied, Stop> {
        let session = self.link.session().map_err(Stop::Failed)?;
        self.batch += 1;
        let batch = self.batch;
        let result = begin(session, &self.row, batch, savepoints)
            .and_then(|()| apply_open(Conn::Postgres(session), self.shared.rules(), at, jobs))
            .and_then(|applied| {
                // What is left to write is of this lane's devices: the others go on beside it, and while it waits for the disk.
                self.held = None;
                session.flush().map(|()| applied)
            });
        let applied = match result {
            Ok(applied) => applied,
            Err(error) => {
                let (fault, wanted) = (session.take_fault(), session.wants_savepoints());
                if fault == Some(Fault::Lost) || session.roll_back().is_err() {
                    self.link.lose(&error);
                    return Err(Stop::Lost(error));
                }
                return Err(match fault {
                    Some(Fault::Conflict) => Stop::Conflict(error),
                    Some(Fault::Locked) => Stop::Locked(error),
                    _ if wanted => Stop::Savepoints,
                    Some(Fault::Data) => Stop::Savepoints,
                    _ => Stop::Failed(error),
                });
            }
        };
        let Err(error) = session.commit() else { return Ok(applied) };
        match session.take_fault() {
            Some(Fault::Conflict | Fault::Locked) => Err(Stop::Conflict(error)),
            Some(Fault::Data) => Err(Stop::Savepoints),
            Some(Fault::Unable) => Err(Stop::Failed(error)),
            // The server did not say.
            Some(Fault::Lost) | None => {
                let pid = session.pid();
                self.link.lose(&error);
                match self.was_committed(batch, pid) {
                    Some(true) => {
                        add(&self.shared.link_counters.found_committed, 1);
                        log::info!("a transaction whose COMMIT had no answer was committed");
                        Ok(applied)
                    }
                    Some(false) => {
                        add(&self.shared.link_counters.found_lost, 1);
                        log::info!("a transaction whose COMMIT had no answer was not committed");
                        Err(Stop::Lost(error))
                    }
                    None => Err(Stop::Failed(StoreError::Unavailable(format!(
                        "whether it was committed is not known: {error}"
                    )))),
                }
            }
        }
    }

    /// Whether a batch of the connection that is lost was committed; `None`: the server does not say.
    fn was_committed(&mut self, batch: i64, pid: i32) -> Option<bool> {
        let began = now();
        loop {
            if let Ok(session) = self.link.session() {
                // The lock waits for the end of a transaction that the server still holds open.
                let sql = format!("SELECT batch FROM store_lanes WHERE lane = {} FOR UPDATE", self.row);
                match session.one(&sql, &[], |row| row.get::<i64>(0)) {
                    Ok(found) => return Some(found == Some(batch)),
                    Err(error) => match session.take_fault() {
                        Some(Fault::Conflict | Fault::Locked | Fault::Unable) => {
                            log::warn!("a lost connection holds its transaction open and is ended: {error}");
                            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 \
                                       AND application_name = current_setting('application_name')";
                            // Looked at again below, whatever comes of it.
                            drop(session.call(|client| client.execute(end, &[&pid])));
                        }
                        _ => self.link.lose(&error),
                    },
                }
            }
            if now().duration_since(began) >= RESOLVE_MAX || self.shared.closing.load(Relaxed) {
                return None;
            }
            std::thread::sleep(RESOLVE_AGAIN);
        }
    }
}

/// What two parts of a batch came to.
fn joined(mut first: Applied, second: Applied) -> Applied {
    first.outcomes.extend(second.outcomes);
    first.queued.extend(second.queued);
    first.owners.extend(second.owners);
    first.last_event = second.last_event.or(first.last_event);
    first.events_lost += second.events_lost;
    // Something was committed unless all failed.
    first.error = first.error.and(second.error);
    first
}

/// Devices of a batch that cannot be locked now.
fn locked_devices(session: &PgSession, jobs: &[Job]) -> Result<FxHashSet<DeviceId>, StoreError> {
    let devices: FxHashSet<DeviceId> = jobs.iter().filter_map(device_of).collect();
    let texts: Vec<String> = devices.iter().map(ToString::to_string).collect();
    let free = session.prepared(
        "SELECT device_id FROM devices WHERE device_id = ANY($1) ORDER BY device_id FOR NO KEY UPDATE SKIP LOCKED",
    )?;
    let all = session.prepared("SELECT device_id FROM devices WHERE device_id = ANY($1)")?;
    let free = session.call(|client| client.query(&free, &[&texts]))?;
    let all = session.call(|client| client.query(&all, &[&texts]))?;
    let free: FxHashSet<&str> = free.iter().map(|row| row.get(0)).collect();
    let locked = all.iter().map(|row| row.get::<_, &str>(0)).filter(|device| !free.contains(device));
    Ok(locked.filter_map(|device| device.parse().ok()).collect())
}

fn begin(session: &PgSession, row: &str, batch: i64, savepoints: bool) -> Result<(), StoreError> {
    // Prepared by name and called by text, so that it goes with BEGIN and is planned once.
    session.prepare_by_name(
        "mark_batch",
        "INSERT INTO store_lanes (lane, batch) VALUES ($1::text, $2::bigint) \
         ON CONFLICT (lane) DO UPDATE SET batch = excluded.batch",
    )?;
    session.begin(&format!("EXECUTE mark_batch({row}, {batch})"), savepoints)
}
