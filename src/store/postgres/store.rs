//! The threads of the store, and who goes to which.

use std::{
    hash::{Hash, Hasher as _},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crossbeam::channel::{Receiver, RecvTimeoutError, bounded};
use rustc_hash::FxHasher;

use super::{
    cmd_log::LogTables,
    connect::{Connector, Role, Timeouts},
    lane::Lane,
    latest,
    link::{Link, LinkCounters, Status},
    migrate::migrate,
    sequencer::{Sequencer, SequencerWake},
    turn::Turn,
};
use crate::{
    gateway::card::CardRules,
    model::{OrderNumbers, ServerId},
    store::{
        CommandLogRow, DeliveryLogRow, Job, Latest, Limits, Notify, OrderKey, OtaJob, ReadCall, Reply, Store,
        StoreCounters, StoreError, StoreHealth,
        delivery::{DELIVERIES_MAX, Delivery, guarded},
        front::Front,
        logs,
        sql::{
            apply::{Rules, device_of},
            conn::{Conn, scalar},
            read::SqlReader,
        },
        threads::{Running, Threads},
    },
    telemetry::{Exposition, MetricSource},
};

/// How often an idle reader looks after its connection.
const IDLE: Duration = Duration::from_millis(500);
/// Clocks of threads read apart, and small corrections.
const CLOCK_SLACK_MS: i64 = 2_000;

/// How to open the store.
#[derive(Clone, Debug)]
pub struct Options {
    /// The database.
    pub url: String,
    /// This instance; no other has the same name.
    pub instance: ServerId,
    /// Transactions under way at a time, 1..=32. One more does what is no device's.
    pub lanes: usize,
    /// Connections that answer queries, 1..=64.
    pub readers: usize,
    /// Time limits of connections.
    pub timeouts: Timeouts,
    /// Durable jobs that may wait, all lanes together, 1..=1_000_000.
    pub queue_jobs_max: usize,
    /// Durable jobs per transaction, 1..=256.
    pub batch_jobs_max: usize,
    /// Latest values per transaction, 1..=10_000.
    pub latest_rows_max: usize,
    /// Queries that may wait.
    pub reads_max: usize,
    /// Prefix of order numbers the store makes itself.
    pub order_prefix: [u8; 3],
    /// Tells those numbers apart from the ones other parts of the process, and other processes, make.
    pub order_salt: u64,
    /// Time limits that the store applies.
    pub limits: Limits,
    /// Tariffs of cards.
    pub cards: Arc<CardRules>,
    /// The store's clock, Unix ms.
    pub clock: fn() -> i64,
}

impl Options {
    /// The defaults.
    pub fn new(url: impl Into<String>, instance: ServerId) -> Self {
        Self {
            url: url.into(),
            instance,
            lanes: 2,
            readers: 2,
            timeouts: Timeouts::default(),
            queue_jobs_max: 16_384,
            batch_jobs_max: 256,
            latest_rows_max: 500,
            reads_max: 1024,
            order_prefix: *b"THD",
            order_salt: 0x3FF,
            limits: Limits::default(),
            cards: Arc::default(),
            clock: now_ms,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// What all threads of the store share.
pub(super) struct Shared {
    numbers: OrderNumbers,
    limits: Limits,
    cards: Arc<CardRules>,
    pub(super) instance: ServerId,
    clock: fn() -> i64,
    pub(super) batch_jobs_max: usize,
    pub(super) status: Arc<Status>,
    pub(super) counters: Arc<StoreCounters>,
    pub(super) link_counters: Arc<LinkCounters>,
    pub(super) sequencer: SequencerWake,
    /// Nothing is waited for any more.
    pub(super) closing: AtomicBool,
    /// The latest time this store has written or found, Unix ms.
    newest: AtomicI64,
    behind: AtomicBool,
}

impl Shared {
    pub(super) fn now(&self) -> i64 {
        (self.clock)()
    }

    pub(super) fn rules(&self) -> Rules<'_> {
        let instance = Some(&self.instance);
        Rules { numbers: &self.numbers, limits: self.limits, cards: &self.cards, instance, server_id: instance }
    }

    /// Something was committed at `at`.
    pub(super) fn wrote(&self, at: i64) {
        self.newest.fetch_max(at, Relaxed);
        self.check_clock();
    }

    /// A wall clock behind what is stored makes the store not ready.
    pub(super) fn check_clock(&self) {
        let (now, newest) = (self.now(), self.newest.load(Relaxed));
        let behind = now < newest - CLOCK_SLACK_MS;
        if self.behind.swap(behind, Relaxed) != behind {
            let reason = format!("wall time is {} ms below the newest stored row", newest - now);
            self.status.set(("clock", 0), behind.then_some(reason.as_str()));
        }
    }
}

/// The clustered store, with its threads.
pub struct PostgresStore {
    front: Front,
    shared: Arc<Shared>,
    connector: Arc<Connector>,
    /// Lanes that devices are spread over; the one behind them does what is no device's.
    lanes: usize,
    threads: Running,
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresStore").field("database", &self.connector.name()).finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Connects, brings the schema up to date and starts the threads.
    pub fn open(options: Options, notify: Arc<dyn Notify>) -> Result<Self, StoreError> {
        let connector = Arc::new(Connector::new(&options.url, options.timeouts)?);
        let (before, after) = migrate(&connector)?;
        if before != after {
            log::info!("{}: schema version {before} before, {after} after", connector.name());
        }
        let (counters, link_counters) = (Arc::<StoreCounters>::default(), Arc::<LinkCounters>::default());
        let status = Arc::new(Status::new(Arc::<StoreHealth>::default()));
        let link = |role, part, number| Link::open(&connector, role, (part, number), &status, &link_counters);
        let lanes = options.lanes.clamp(1, 32);
        let queue_jobs_max = (options.queue_jobs_max / lanes).max(options.batch_jobs_max);
        let (front, back) = Front::new(lanes + 1, queue_jobs_max, options.reads_max, Arc::clone(&counters));
        let mut readers = Vec::new();
        for number in 0..options.readers.clamp(1, 64) {
            readers.push(link(Role::Reader, "reader", number)?);
        }
        let newest = newest(&mut readers)?;
        let numbers = OrderNumbers::new(options.order_prefix, options.order_salt);
        // Numbers go on behind those of the process before, also if the clock has stepped back since.
        numbers.next(newest.saturating_add(1));
        let (sequencer, woken) = SequencerWake::new();
        let shared = Arc::new(Shared {
            numbers,
            limits: options.limits,
            cards: options.cards,
            instance: options.instance,
            clock: options.clock,
            batch_jobs_max: options.batch_jobs_max.clamp(1, 256),
            status: Arc::clone(&status),
            counters,
            link_counters: Arc::clone(&link_counters),
            sequencer: sequencer.clone(),
            closing: AtomicBool::new(false),
            newest: AtomicI64::new(newest),
            behind: AtomicBool::new(false),
        });
        let (deliveries, deliveries_out) = bounded::<Delivery>(DELIVERIES_MAX);
        let mut threads = Threads::new();
        // Dropped by the last lane: the sequencer's end waits for theirs.
        let (lane_ended, lanes_ended) = bounded::<()>(0);
        let turn = Turn::default();
        for (number, jobs) in back.jobs.into_iter().enumerate() {
            let row = format!("'{}/{number}'", shared.instance.as_str().replace('\'', "''"));
            let batch = i64::from_ne_bytes(getrandom::u64().unwrap_or_default().to_ne_bytes()) >> 1;
            let (shared, deliveries, log) = (Arc::clone(&shared), deliveries.clone(), back.to_log.clone());
            let link = link(Role::Durable, "lane", number)?;
            let turn = (number < lanes).then(|| turn.clone());
            let mut lane = Lane { shared, link, row, jobs, deliveries, log, turn, held: None, batch };
            let lane_ended = lane_ended.clone();
            threads.start(&format!("store-lane-{number}"), move || {
                lane.run();
                drop(lane_ended);
            })?;
        }
        drop((deliveries, lane_ended, back.to_log));
        let told = Arc::clone(&notify);
        threads.start("store-delivery", move || {
            while let Ok(delivery) = deliveries_out.recv() {
                delivery.hand_out(&*told);
            }
        })?;
        let mut writer = latest::Writer {
            shared: Arc::clone(&shared),
            link: link(Role::Lossy, "latest values", 0)?,
            queue: back.latest,
            rows_max: options.latest_rows_max.clamp(1, 10_000),
            waiting: std::collections::VecDeque::new(),
        };
        threads.start("store-latest", move || writer.run())?;
        let log_shared = Arc::clone(&shared);
        let mut tables = LogTables { link: link(Role::Lossy, "logs", 0)?, instance: shared.instance.clone() };
        threads.start("store-logs", move || logs::write(&mut tables, &back.log, &log_shared.counters))?;
        for mut link in readers {
            let calls = back.reads.clone();
            threads.start("store-reader", move || answer(&mut link, &calls))?;
        }
        let mut sequencer = Sequencer {
            link: link(Role::Durable, "sequencer", 0)?,
            notify,
            woken,
            lanes: lanes_ended,
            state: sequencer.state,
            term: None,
            told: 0,
        };
        threads.start("store-sequencer", move || sequencer.run())?;
        shared.status.set(("lane", 0), None);
        shared.check_clock();
        Ok(Self { front, shared, connector, lanes, threads: threads.running() })
    }

    /// What was counted since start.
    pub fn counters(&self) -> &StoreCounters {
        &self.shared.counters
    }

    /// Durable jobs that wait now.
    pub fn queue_depth(&self) -> usize {
        self.front.jobs_waiting()
    }

    /// Wakes the sequencer of this instance: for whoever hears that another instance committed events.
    pub fn sequencer(&self) -> SequencerWake {
        self.shared.sequencer.clone()
    }

    /// Jobs of one device, card or order go to one lane, one behind the other; what looks at many devices has a lane of its own.
    fn lane_of(&self, job: &Job) -> usize {
        let spread = |key: &dyn Fn(&mut FxHasher)| {
            let mut hasher = FxHasher::default();
            key(&mut hasher);
            // The upper half is the better mixed.
            usize::try_from(hasher.finish() >> 32).unwrap_or(0) % self.lanes
        };
        if let Some(device_id) = device_of(job) {
            return spread(&|hasher| device_id.hash(hasher));
        }
        match job {
            Job::Order(job) => match job.order {
                OrderKey::No(order_no) => spread(&|hasher| order_no.as_str().hash(hasher)),
                OrderKey::ActiveOn(device_id, _) => spread(&|hasher| device_id.hash(hasher)),
            },
            Job::Card(job) => spread(&|hasher| job.card_no.as_str().hash(hasher)),
            Job::Ota(job) => match **job {
                OtaJob::Cancel { id, .. } => spread(&|hasher| id.hash(hasher)),
                _ => self.lanes,
            },
            // Events of one endpoint stay in order, and behind its lease.
            Job::Delivery(_) | Job::Lease(_) => 0,
            _ => self.lanes,
        }
    }
}

/// The latest time stored, Unix ms; 0 in an empty database.
fn newest(readers: &mut [Link]) -> Result<i64, StoreError> {
    let Some(reader) = readers.first_mut() else { return Ok(0) };
    let sql = "SELECT greatest(coalesce((SELECT at FROM events ORDER BY id DESC LIMIT 1), 0), \
               coalesce((SELECT max(last_seen_at) FROM devices), 0))";
    Ok(scalar(Conn::Postgres(reader.session()?), sql, ())?.unwrap_or(0))
}

/// Answers queries until the queue is closed.
fn answer(link: &mut Link, calls: &Receiver<ReadCall>) {
    loop {
        match calls.recv_timeout(IDLE) {
            Ok(call) => {
                link.look_after();
                match link.session() {
                    Ok(session) => {
                        let mut reader = SqlReader { conn: Conn::Postgres(session) };
                        guarded("a query", || call(Ok(&mut reader)));
                    }
                    Err(error) => guarded("a query", || call(Err(error))),
                }
                link.lose_if_lost();
            }
            Err(RecvTimeoutError::Timeout) => link.look_after(),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

impl Store for PostgresStore {
    fn submit(&self, job: Job, reply: Reply) -> Result<(), (Job, Reply)> {
        self.front.submit(self.lane_of(&job), job, reply)
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
        &self.shared.status.health
    }

    fn close(&self, deadline: Duration) {
        self.front.close();
        self.shared.closing.store(true, Relaxed);
        self.threads.join(deadline);
        self.shared.status.close();
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        // The threads end by themselves; without this they would outlive the store for a moment.
        self.close(Duration::from_secs(5));
    }
}

impl MetricSource for PostgresStore {
    fn render(&self, to: &mut Exposition<'_>) {
        self.shared.counters.render(to);
        self.front.render(to);
        let (links, sequencer) = (&self.shared.link_counters, &self.shared.sequencer.state);
        let name = "chargegate_store_retries_total";
        to.family(name, "counter", "Transactions run again, by reason.");
        for (reason, count) in [("conflict", &links.conflicts), ("refused", &links.with_savepoints)] {
            to.sample(name, &[("reason", reason)], count.load(Relaxed));
        }
        let name = "chargegate_store_unanswered_commits_total";
        to.family(name, "counter", "Transactions whose COMMIT had no answer, by what became of them.");
        for (found, count) in [("committed", &links.found_committed), ("lost", &links.found_lost)] {
            to.sample(name, &[("found", found)], count.load(Relaxed));
        }
        for (name, help, count) in [
            (
                "chargegate_store_reconnects_total",
                "Connections to the database made again.",
                links.reconnects.load(Relaxed),
            ),
            (
                "chargegate_store_timeouts_total",
                "Calls given up because the database did not answer.",
                self.connector.timed_out(),
            ),
            (
                "chargegate_sequencer_events_total",
                "Events given a position by this instance.",
                sequencer.given.load(Relaxed),
            ),
            (
                "chargegate_sequencer_terms_total",
                "Times this instance became the one that orders events.",
                sequencer.terms.load(Relaxed),
            ),
        ] {
            to.counter(name, help, count);
        }
        let name = "chargegate_sequencer_leader";
        to.family(name, "gauge", "Whether this instance orders events.");
        to.sample(name, &[], u64::from(sequencer.leader.load(Relaxed)));
    }
}
