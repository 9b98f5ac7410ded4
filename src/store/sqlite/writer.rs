//! The threads around the database.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::{
    cmd_log::{self, LogFile},
    db::{Db, open_reader},
};
use crate::{
    gateway::card::CardRules,
    memory,
    model::{OrderNumbers, ServerId},
    store::{
        CommandLogRow, DeliveryLogRow, Job, Latest, Notify, ReadCall, Reply, Store, StoreError, StoreHealth,
        counters::{StoreCounters, add},
        delivery::{DELIVERIES_MAX, Delivery, guarded},
        front::{Front, LogMessage},
        logs,
        sql::{Limits, conn::Conn, read::SqlReader},
        threads::{Running, Threads},
    },
    telemetry::{Exposition, MetricSource},
};

const READERS: usize = 2;
/// Under a stream of jobs, one transaction of latest values goes in between this often.
const LATEST_EVERY: Duration = Duration::from_millis(250);
/// How often an idle writer looks around.
const IDLE: Duration = Duration::from_millis(50);
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// A thread that has had no work for so long gives its page cache back. Longer than the interval at which shards hand latest values over
/// by default: the pages of a fleet that beats stay, those of the jobs that brought it here do not.
const REST_AFTER: Duration = Duration::from_millis(3_200);
/// Row changes after which the writer checkpoints between two batches.
const CHECKPOINT_CHANGES: u64 = 40_000;
/// The same for an idle writer: a lone job behind it waits only for a small one.
const CHECKPOINT_CHANGES_IDLE: u64 = 1_000;
/// Clocks of threads read apart, and small corrections.
const CLOCK_SLACK_MS: i64 = 2_000;

/// How to open the store.
#[derive(Clone, Debug)]
pub struct Options {
    /// The database file; the command log and the lock file lie beside it.
    pub path: PathBuf,
    /// Durable jobs that may wait, 1..=1_000_000.
    pub queue_jobs_max: usize,
    /// Durable jobs per transaction, 1..=256.
    pub batch_jobs_max: usize,
    /// Latest values per transaction, 1..=10_000.
    pub latest_rows_max: usize,
    /// Queries that may wait.
    pub reads_max: usize,
    /// Prefix of order numbers the store makes itself.
    pub order_prefix: [u8; 3],
    /// Tells those numbers apart from the ones other parts of the process make.
    pub order_salt: u64,
    /// Time limits that the store applies.
    pub limits: Limits,
    /// Tariffs of cards.
    pub cards: Arc<CardRules>,
    /// What this instance is called in rows that keep who did something.
    pub server_id: Option<ServerId>,
    /// The store's clock, Unix ms.
    pub clock: fn() -> i64,
}

impl Options {
    /// The defaults.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            queue_jobs_max: 16_384,
            batch_jobs_max: 256,
            latest_rows_max: 500,
            reads_max: 1024,
            order_prefix: *b"THD",
            order_salt: 0x3FF,
            limits: Limits::default(),
            cards: Arc::default(),
            server_id: None,
            clock: now,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn instant() -> Instant {
    Instant::now()
}

/// The embedded store, with its threads.
#[derive(Debug)]
pub struct SqliteStore {
    front: Front,
    health: Arc<StoreHealth>,
    counters: Arc<StoreCounters>,
    threads: Running,
}

impl SqliteStore {
    /// Opens the database, migrates it and starts the threads.
    pub fn open(options: Options, notify: Arc<dyn Notify>) -> Result<Self, StoreError> {
        let db = Db::open(&options.path, OrderNumbers::new(options.order_prefix, options.order_salt))?
            .with_limits(options.limits)
            .with_cards(Arc::clone(&options.cards))
            .with_server_id(options.server_id.clone());
        let logs = cmd_log::path_beside(&options.path);
        let log_db = cmd_log::open(&logs)?;
        let readers: Vec<_> = (0..READERS).map(|_| open_reader(&options.path, &logs)).collect::<Result<_, _>>()?;
        let health = Arc::new(StoreHealth::default());
        let counters = Arc::new(StoreCounters::default());
        let (front, back) = Front::new(1, options.queue_jobs_max, options.reads_max, Arc::clone(&counters));
        let (deliveries, deliveries_out) = bounded::<Delivery>(DELIVERIES_MAX);
        let newest = db.newest()?;
        let [jobs] = <[_; 1]>::try_from(back.jobs).expect("one lane was asked for");
        let mut writer = Writer {
            db,
            clock: options.clock,
            batch_jobs_max: options.batch_jobs_max.clamp(1, 256),
            latest_rows_max: options.latest_rows_max.clamp(1, 10_000),
            jobs,
            latest_in: back.latest,
            latest: VecDeque::new(),
            latest_at: instant(),
            latest_failed: false,
            probed_at: instant(),
            worked: Rest::default(),
            wrote: Rest::default(),
            deliveries,
            log: back.to_log,
            health: Arc::clone(&health),
            counters: Arc::clone(&counters),
            newest,
        };
        writer.set_health(None);
        let mut threads = Threads::new();
        threads.start("store-writer", move || writer.run())?;
        threads.start("store-delivery", move || {
            while let Ok(delivery) = deliveries_out.recv() {
                delivery.hand_out(&*notify);
            }
        })?;
        let log_counters = Arc::clone(&counters);
        let mut log_file = LogFile { session: log_db, instance: options.server_id };
        threads.start("store-logs", move || logs::write(&mut log_file, &back.log, &log_counters))?;
        for conn in readers {
            let calls = back.reads.clone();
            threads.start("store-reader", move || {
                let mut reader = SqlReader { conn: Conn::Sqlite(&conn) };
                let mut read = Rest::default();
                loop {
                    match calls.recv_timeout(REST_AFTER) {
                        Ok(call) => {
                            guarded("a query", || call(Ok(&mut reader)));
                            read.used(instant());
                        }
                        Err(RecvTimeoutError::Timeout) => {
                            if read.is_due(instant()) && conn.rest() {
                                memory::give_back();
                            }
                        }
                        Err(RecvTimeoutError::Disconnected) => break,
                    }
                }
            })?;
        }
        Ok(Self { front, health, counters, threads: threads.running() })
    }

    /// What was counted since start.
    pub fn counters(&self) -> &StoreCounters {
        &self.counters
    }

    /// Durable jobs that wait now.
    pub fn queue_depth(&self) -> usize {
        self.front.jobs_waiting()
    }
}

impl Store for SqliteStore {
    fn submit(&self, job: Job, reply: Reply) -> Result<(), (Job, Reply)> {
        self.front.submit(0, job, reply)
    }

    fn coalesce(&self, rows: &mut Vec<Latest>) -> bool {
        self.front.coalesce(rows)
    }

    fn append(&self, rows: Vec<CommandLogRow>) {
        self.front.append(rows);
    }

    fn append_deliveries(&self, rows: Vec<DeliveryLogRow>) {
        self.front.append_deliveries(rows);
    }

    fn read(&self, call: ReadCall) -> Result<(), ReadCall> {
        self.front.read(call)
    }

    fn health(&self) -> &StoreHealth {
        &self.health
    }

    fn close(&self, deadline: Duration) {
        self.front.close();
        self.threads.join(deadline);
    }
}

impl MetricSource for SqliteStore {
    fn render(&self, to: &mut Exposition<'_>) {
        self.counters.render(to);
        self.front.render(to);
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        // Threads end by themselves once the queues are gone; without this a dropped store would leave its lock held for a
        // moment longer.
        self.close(Duration::from_secs(5));
    }
}

/// Whether a job comes by the clock, whatever devices and third parties do.
const fn is_upkeep(job: &Job) -> bool {
    matches!(job, Job::Backstop(_) | Job::Prune(_) | Job::Instance(_))
}

/// When a connection is to give its pages back.
#[derive(Debug, Default)]
struct Rest {
    /// When it was used last, unless it has rested since.
    used_at: Option<Instant>,
}

impl Rest {
    fn used(&mut self, now: Instant) {
        self.used_at = Some(now);
    }

    /// Whether it is time; once for each time of work.
    fn is_due(&mut self, now: Instant) -> bool {
        self.used_at.take_if(|used_at| now.duration_since(*used_at) >= REST_AFTER).is_some()
    }
}

struct Writer {
    db: Db,
    clock: fn() -> i64,
    batch_jobs_max: usize,
    latest_rows_max: usize,
    jobs: Receiver<(Job, Reply)>,
    latest_in: Receiver<Vec<Latest>>,
    latest: VecDeque<Latest>,
    latest_at: Instant,
    /// The last transaction of them failed: they wait a while.
    latest_failed: bool,
    probed_at: Instant,
    /// Durable jobs, but for those that come by the clock: they would put off the rest after a burst.
    worked: Rest,
    /// Anything.
    wrote: Rest,
    deliveries: Sender<Delivery>,
    log: Sender<LogMessage>,
    health: Arc<StoreHealth>,
    counters: Arc<StoreCounters>,
    /// The latest time this store has written or found, Unix ms.
    newest: i64,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.health.ready.store(false, Ordering::Release);
        *self.health.reason.lock() = Some("the store is closed".to_owned());
    }
}

impl Writer {
    fn run(&mut self) {
        let mut jobs = Vec::new();
        let mut replies = Vec::new();
        loop {
            let nothing_latest = self.latest.is_empty() && self.latest_in.is_empty();
            let wait = if nothing_latest || self.latest_failed { IDLE } else { Duration::ZERO };
            match self.jobs.recv_timeout(wait) {
                Ok((job, reply)) => {
                    jobs.push(job);
                    replies.push(reply);
                    for (job, reply) in self.jobs.try_iter().take(self.batch_jobs_max - 1) {
                        jobs.push(job);
                        replies.push(reply);
                    }
                    self.write_batch(&mut jobs, &mut replies);
                    if instant().duration_since(self.latest_at) >= LATEST_EVERY {
                        self.write_latest();
                    }
                    if self.db.changes() >= CHECKPOINT_CHANGES {
                        self.checkpoint();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    if !self.write_latest() {
                        self.idle();
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.latest_failed = false;
        while self.write_latest() {}
        // What could not be written now never will be.
        add(&self.counters.latest_lost, self.latest.len() as u64);
        self.checkpoint();
    }

    fn write_batch(&mut self, jobs: &mut Vec<Job>, replies: &mut Vec<Reply>) {
        let now = (self.clock)();
        let start = instant();
        let of_a_fleet = !jobs.iter().all(is_upkeep);
        let applied = self.db.apply(now, jobs);
        let us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.health.commit_us.store(us, Ordering::Relaxed);
        self.counters.committed_in(us);
        self.counters.count(jobs, &applied);
        if of_a_fleet {
            self.worked.used(start);
        }
        self.wrote.used(start);
        let error = applied.error.as_ref().map(ToString::to_string);
        if error.is_none() {
            self.newest = self.newest.max(now);
        }
        self.set_health(error);
        for job in jobs.drain(..) {
            if let Job::Prune(prune) = job {
                // Lossy as its rows are: an hour later it is asked again.
                if self.log.try_send(LogMessage::Prune(prune.into())).is_err() {
                    log::warn!("the logs are not pruned this time: their queue is full");
                }
            }
        }
        let outcomes = replies.drain(..).zip(applied.outcomes).collect();
        let delivery =
            Delivery { outcomes, queued: applied.queued, owners: applied.owners, last_pos: applied.last_event };
        if self.deliveries.send(delivery).is_err() {
            log::error!("outcomes are not delivered: the delivery thread has ended");
        }
    }

    /// Writes one transaction of latest values; false: there are none, or they have to wait.
    fn write_latest(&mut self) -> bool {
        let now = instant();
        if self.latest_failed && now.duration_since(self.latest_at) < LATEST_EVERY {
            return false;
        }
        self.latest_at = now;
        while self.latest.len() < self.latest_rows_max {
            let Ok(rows) = self.latest_in.try_recv() else { break };
            self.latest.extend(rows);
        }
        let rows: Vec<Latest> = self.latest.drain(..self.latest.len().min(self.latest_rows_max)).collect();
        if self.latest.is_empty() {
            // The flush of a whole fleet takes a megabyte or two, the next ones a fraction.
            self.latest = VecDeque::new();
        }
        if rows.is_empty() {
            return false;
        }
        self.wrote.used(self.latest_at);
        let written = self.db.apply_latest(&rows);
        self.latest_failed = written.is_err();
        match written {
            Ok(()) => {
                add(&self.counters.latest_rows, rows.len() as u64);
                self.set_health(None);
            }
            Err(error) => {
                // What a device told is not told again with its next report: kept until the file can be written. Meanwhile the queue
                // fills, and then values stay with the shards.
                for row in rows.into_iter().rev() {
                    self.latest.push_front(row);
                }
                self.set_health(Some(error.to_string()));
            }
        }
        !self.latest_failed
    }

    fn idle(&mut self) {
        if self.db.changes() >= CHECKPOINT_CHANGES_IDLE {
            self.checkpoint();
        }
        let now = instant();
        // Both are asked: that of all work is due with that of jobs.
        if self.worked.is_due(now) | self.wrote.is_due(now) && self.db.rest() {
            memory::give_back();
        }
        let due = instant().duration_since(self.probed_at) >= PROBE_EVERY;
        if due && !self.health.ready.load(Ordering::Acquire) {
            self.probed_at = instant();
            let error = self.db.probe().err().map(|error| error.to_string());
            self.set_health(error);
        }
    }

    fn checkpoint(&mut self) {
        match self.db.checkpoint() {
            Ok(()) => add(&self.counters.checkpoints, 1),
            // Nothing is lost: the log keeps growing and the next one tries again.
            Err(error) => log::warn!("checkpoint failed: {error}"),
        }
    }

    fn set_health(&self, error: Option<String>) {
        let now = (self.clock)();
        let reason = error.or_else(|| {
            (now < self.newest - CLOCK_SLACK_MS)
                .then(|| format!("wall time is {} ms below the newest stored row", self.newest - now))
        });
        let was_ready = self.health.ready.swap(reason.is_none(), Ordering::AcqRel);
        if let Some(reason) = reason.as_ref().filter(|_| was_ready) {
            log::error!("store is not ready: {reason}");
        }
        // The lock is shared with whoever shows the reason; it is touched only when there is one, or was.
        if reason.is_some() || !was_ready {
            *self.health.reason.lock() = reason;
        }
    }
}
