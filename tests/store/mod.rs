//! What tests of any store share: a store in a directory of its own, jobs answered in place, and job makers.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    path::Path,
    sync::{Arc, OnceLock, mpsc},
    time::Duration,
};

use chargegate::{
    gateway::{ShardId, card::CardRules, order::Event},
    model::{ChargeMode, ChargeSpec, Command, DeviceId, Order, OrderNo, OrderNumbers, Protocol, ServerId},
    store::{
        Bind, Bound, Created, EventRecord, Job, NewOrder, Notify, OrderJob, OrderKey, OrderOutcome, Outcome, Queued,
        Reader, Reply, Requester, Settled, Settlement, SettlementEnd, SettlementKey, Store, StoreError,
        postgres::{self, PostgresStore},
        sqlite::{self, SqliteStore},
    },
};
use parking_lot::Mutex;

/// Nothing in a test takes this long; it only keeps a broken store from hanging the suite.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// The time jobs are given: the present, as the store's clock checks deadlines.
pub(crate) const T0: i64 = 1_800_000_000_000;

pub(crate) fn clock() -> i64 {
    T0
}

/// An order with its claimed commands and withdrawn rows.
pub(crate) type Change = (Order, Vec<Command>, Vec<i64>);

/// What the store told others.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) orders: Mutex<Vec<Change>>,
    pub(crate) queued: Mutex<Vec<DeviceId>>,
    pub(crate) pos: Mutex<i64>,
    pub(crate) shards: Mutex<Vec<ShardId>>,
}

impl Notify for Told {
    fn shard(&self, shard: ShardId, _: Outcome) {
        self.shards.lock().push(shard);
    }
    fn order_changed(&self, order: &Order, commands: &[Command], withdrawn: &[i64], _: Option<&ServerId>) {
        self.orders.lock().push((order.clone(), commands.to_vec(), withdrawn.to_vec()));
    }
    fn commands_queued(&self, queued: &Queued) {
        let device_id = queued.device_id;
        self.queued.lock().push(device_id);
    }
    fn events_committed(&self, pos: i64) {
        *self.pos.lock() = pos;
    }
}

/// A store, and what is needed to talk to it in sequence.
pub(crate) struct Bench {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) told: Arc<Told>,
    pub(crate) numbers: OrderNumbers,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) cards: Arc<CardRules>,
    /// Behind the store: it goes when nobody is connected any more.
    database: Option<Database>,
}

/// A database that is dropped with its bench; hundreds of them fill a disk.
struct Database(String);

impl Drop for Database {
    fn drop(&mut self) {
        let (_, name) = self.0.rsplit_once('/').expect("a URL of the server");
        let dropped =
            crate::services::postgres().client().batch_execute(&format!("DROP DATABASE \"{name}\" WITH (FORCE)"));
        // A test that fails may leave it in use.
        if let Err(error) = dropped {
            eprintln!("{name} is not dropped: {error}");
        }
    }
}

/// Whether this binary runs the suites over PostgreSQL; the others run them over the embedded store.
pub(crate) const ON_POSTGRES: bool = konst_eq(env!("CARGO_CRATE_NAME"), "store_on_postgres");

const fn konst_eq(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut same = a.len() == b.len();
    let mut at = 0;
    while same && at < a.len() {
        same = a[at] == b[at];
        at += 1;
    }
    same
}

/// Opens the embedded store in `dir`.
pub(crate) fn open_sqlite(dir: &Path, told: &Arc<Told>) -> Result<Arc<dyn Store>, StoreError> {
    sqlite_with_cards(dir, told, &Arc::default())
}

fn sqlite_with_cards(dir: &Path, told: &Arc<Told>, cards: &Arc<CardRules>) -> Result<Arc<dyn Store>, StoreError> {
    let options = sqlite::Options {
        clock,
        server_id: Some(ServerId::new("test")),
        cards: Arc::clone(cards),
        ..sqlite::Options::new(dir.join("chargegate.db"))
    };
    Ok(Arc::new(SqliteStore::open(options, Arc::clone(told) as Arc<dyn Notify>)?))
}

/// A database of its own, with the schema.
pub(crate) fn postgres_database(name: &str) -> String {
    static TEMPLATE: OnceLock<String> = OnceLock::new();
    let server = crate::services::postgres();
    let template = TEMPLATE.get_or_init(|| {
        let url = server.database("template");
        postgres::migrate(&url, postgres::Timeouts::default()).unwrap();
        url
    });
    server.database_like(template, name)
}

/// Opens the clustered store with the database that `dir` names, or a new one.
fn open_postgres(dir: &Path, told: &Arc<Told>, cards: &Arc<CardRules>) -> Result<Arc<dyn Store>, StoreError> {
    let file = dir.join("url");
    let url = std::fs::read_to_string(&file).unwrap_or_else(|_| postgres_database("store"));
    std::fs::write(file, &url).unwrap();
    let options = postgres::Options {
        clock,
        cards: Arc::clone(cards),
        lanes: 3,
        ..postgres::Options::new(url, ServerId::new("test"))
    };
    Ok(Arc::new(PostgresStore::open(options, Arc::clone(told) as Arc<dyn Notify>)?))
}

fn open(dir: &Path, told: &Arc<Told>, cards: &Arc<CardRules>) -> Result<Arc<dyn Store>, StoreError> {
    if ON_POSTGRES { open_postgres(dir, told, cards) } else { sqlite_with_cards(dir, told, cards) }
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::in_dir(tempfile::tempdir().unwrap())
    }

    /// Opens what is in the directory.
    pub(crate) fn in_dir(dir: tempfile::TempDir) -> Self {
        Self::with_cards(dir, Arc::default())
    }

    /// The same with other rules for cards.
    pub(crate) fn with_cards(dir: tempfile::TempDir, cards: Arc<CardRules>) -> Self {
        let told = Arc::new(Told::default());
        let store = open(dir.path(), &told, &cards).unwrap();
        let database = std::fs::read_to_string(dir.path().join("url")).ok().map(Database);
        Self { store, told, numbers: OrderNumbers::new(*b"THD", 1), dir, cards, database }
    }

    /// Closes the store and keeps the directory.
    pub(crate) fn into_dir(self) -> tempfile::TempDir {
        self.store.close(PATIENCE);
        self.dir
    }

    /// Closes the store and opens it again, as a restart does.
    pub(crate) fn reopen(mut self) -> Self {
        self.store.close(PATIENCE);
        self.store = open(self.dir.path(), &self.told, &self.cards).unwrap();
        self
    }

    /// Name of the instance that the store is of, where there may be several.
    pub(crate) fn instance(&self) -> Option<ServerId> {
        ON_POSTGRES.then(|| ServerId::new("test"))
    }

    pub(crate) fn submit(&self, job: Job) -> mpsc::Receiver<Outcome> {
        let (reply, answer) = mpsc::channel();
        let call = Box::new(move |outcome| drop(reply.send(outcome)));
        self.store.submit(job, Reply::Call(call)).expect("the queue has room");
        answer
    }

    pub(crate) fn run(&self, job: Job) -> Outcome {
        self.submit(job).recv_timeout(PATIENCE).expect("the store answers")
    }

    /// Waits until all that was handed out before is told as well: the delivery thread works in order.
    pub(crate) fn settle_down(&self) {
        drop(self.run(Job::Delivery(Vec::new())));
        drop(self.run(Job::Delivery(Vec::new())));
        if ON_POSTGRES {
            self.sequenced();
            let pos: i64 = self.client().query_one("SELECT pos FROM event_sequencer", &[]).unwrap().get(0);
            until("the positions are told", || *self.told.pos.lock() >= pos);
        }
    }

    /// A connection to the database of a clustered store.
    pub(crate) fn client(&self) -> ::postgres::Client {
        let url = std::fs::read_to_string(self.dir.path().join("url")).unwrap();
        ::postgres::Client::connect(&url, ::postgres::NoTls).unwrap()
    }

    /// Waits until all events have their position.
    fn sequenced(&self) {
        let mut client = self.client();
        let sql = "SELECT count(*) FROM events e WHERE NOT EXISTS (SELECT 1 FROM event_log l WHERE l.id = e.id)";
        until("events get their positions", || client.query_one(sql, &[]).unwrap().get::<_, i64>(0) == 0);
    }

    /// Sums of the balance and held changes of a card.
    pub(crate) fn card_log_sums(&self, card_no: &str) -> (i64, i64) {
        let sql = "SELECT coalesce(sum(balance_change), 0), coalesce(sum(held_change), 0) FROM card_balance_logs \
                   WHERE card_no = $1";
        if ON_POSTGRES {
            let sql = sql.replace("0)", "0)::bigint");
            let row = self.client().query_one(&sql, &[&card_no]).unwrap();
            return (row.get(0), row.get(1));
        }
        let conn = rusqlite::Connection::open(self.dir.path().join("chargegate.db")).unwrap();
        conn.query_row(&sql.replace('$', "?"), [card_no], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    }

    pub(crate) fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&mut dyn Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> T {
        read(&*self.store, query)
    }

    pub(crate) fn bind(&self, device_id: DeviceId, at: i64) -> Bound {
        let protocol = if matches!(device_id, DeviceId::Ap3000(_)) { Protocol::Ap3000 } else { Protocol::Bkv };
        match self.run(Job::Bind(Bind { device_id, protocol, printed_no: None, known_only: false, generation: 1, at }))
        {
            Outcome::Bound(bound) => *bound,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn new_order(&self, device_id: DeviceId, port_no: u16, epoch: Option<i64>, at: i64) -> NewOrder {
        NewOrder {
            order_no: self.numbers.next(at),
            device_id,
            port_no,
            spec: minutes(60),
            epoch,
            at,
            deadline: T0 + 5000,
            request_id: "request".to_owned(),
            requester: Requester::default(),
            card_no: None,
            idempotency: None,
        }
    }

    pub(crate) fn create(&self, device_id: DeviceId, port_no: u16, epoch: Option<i64>, at: i64) -> Created {
        match self.run(Job::CreateOrder(Box::new(self.new_order(device_id, port_no, epoch, at)))) {
            Outcome::Created(created) => *created,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn created(
        &self,
        device_id: DeviceId,
        port_no: u16,
        epoch: Option<i64>,
        at: i64,
    ) -> (Order, Option<Command>) {
        match self.create(device_id, port_no, epoch, at) {
            Created::Order { order, command } => (order, command),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn happens(&self, order_no: OrderNo, event: Event, epoch: Option<i64>, at: i64) -> OrderOutcome {
        self.order_job(OrderJob { epoch, ..order_job(order_no, event, at) })
    }

    pub(crate) fn order_job(&self, job: OrderJob) -> OrderOutcome {
        match self.run(Job::Order(Box::new(job))) {
            Outcome::Order(outcome) => *outcome,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn settle(&self, settlement: Settlement) -> Settled {
        match self.run(Job::Settle(Box::new(settlement))) {
            Outcome::Settled(settled) => *settled,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn order(&self, order_no: OrderNo) -> Order {
        self.read(move |reader| reader.order(order_no)).expect("the order exists")
    }

    pub(crate) fn events(&self, order_no: OrderNo) -> Vec<EventRecord> {
        if ON_POSTGRES {
            self.sequenced();
        }
        self.read(move |reader| reader.order_events(order_no))
    }

    pub(crate) fn event_types(&self, order_no: OrderNo) -> Vec<String> {
        let events = self.events(order_no);
        let numbers: Vec<u32> = events.iter().map(|event| event.sequence_no).collect();
        let gapless: Vec<u32> = (1..=events.len() as u32).collect();
        assert_eq!(numbers, gapless, "sequence of {order_no}");
        assert!(events.is_sorted_by_key(|event| event.pos));
        events.into_iter().map(|event| event.event_type).collect()
    }

    pub(crate) fn log(&self) -> Vec<EventRecord> {
        if ON_POSTGRES {
            self.sequenced();
        }
        self.read(|reader| reader.events_after(0, 10_000_000))
    }

    /// Reasons of all alarms, in order.
    pub(crate) fn alarms(&self) -> Vec<String> {
        let alarms = self.log().into_iter().filter(|event| event.event_type == "device.alarm");
        let reason = |event: EventRecord| {
            let data: serde_json::Value = serde_json::from_str(&event.data).unwrap();
            data["reason"].as_str().unwrap().to_owned()
        };
        alarms.map(reason).collect()
    }
}

/// What a query of the store finds.
pub(crate) fn read<T: Send + 'static>(
    store: &dyn Store,
    query: impl FnOnce(&mut dyn Reader) -> Result<T, StoreError> + Send + 'static,
) -> T {
    let (reply, answer) = mpsc::channel();
    let call = Box::new(move |reader: Result<&mut dyn Reader, StoreError>| drop(reply.send(reader.and_then(query))));
    assert!(store.read(call).is_ok(), "the queue has room");
    answer.recv_timeout(PATIENCE).expect("the reader answers").unwrap()
}

/// Looks until it is so.
pub(crate) fn until(what: &str, mut look: impl FnMut() -> bool) {
    for _ in 0..PATIENCE.as_millis() / LOOK_AGAIN.as_millis() {
        if look() {
            return;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    panic!("{what}: not within {PATIENCE:?}");
}

pub(crate) fn order_job(order_no: OrderNo, event: Event, at: i64) -> OrderJob {
    OrderJob {
        order: OrderKey::No(order_no),
        event,
        device_id: None,
        epoch: None,
        fence: None,
        business_no: None,
        reason: None,
        at,
        request_id: None,
        requester: Requester::default(),
        idempotency: None,
    }
}

pub(crate) fn ap(n: u32) -> DeviceId {
    format!("{n:08x}").parse().unwrap()
}

pub(crate) fn bkv(n: u32) -> DeviceId {
    format!("{n:014}").parse().unwrap()
}

pub(crate) const fn minutes(minutes: u16) -> ChargeSpec {
    ChargeSpec { mode: ChargeMode::Time { minutes }, paid_cent: Some(100), stop_when_full: false }
}

/// An online AP3000 record of 30 minutes and 500 Wh.
pub(crate) fn ap_settlement(device_id: DeviceId, port_no: u16, order_ref: [u8; 16], reason: u8, at: i64) -> Settlement {
    Settlement {
        key: SettlementKey::Ap3000 {
            device_id,
            port: (port_no - 1) as u8,
            start_mode: 1,
            order_ref,
            duration_seconds: 0,
            energy_raw: 0,
        },
        device_id,
        port_no,
        duration_seconds: 1800,
        energy_wh: 500,
        amount_cent: None,
        end: SettlementEnd::Ap3000 { reason },
        epoch: None,
        card_no: None,
        at,
        raw: order_ref.to_vec(),
    }
}

/// A BKV report of a standalone device.
pub(crate) fn bkv_settlement(
    device_id: DeviceId,
    business_no: u16,
    minutes: u16,
    energy_wh: u16,
    at: i64,
) -> Settlement {
    Settlement {
        key: SettlementKey::Bkv { device_id, socket: 0, hole: 0, business_no, minutes, energy_wh },
        device_id,
        port_no: 1,
        duration_seconds: u32::from(minutes) * 60,
        energy_wh: u32::from(energy_wh),
        amount_cent: None,
        end: SettlementEnd::Bkv { status: 0x90, reason: None },
        epoch: None,
        card_no: None,
        at,
        raw: business_no.to_be_bytes().to_vec(),
    }
}
