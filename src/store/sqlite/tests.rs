//! What the contract does not show: the file's refusals, and an environment that fails and recovers.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rusqlite::Connection;

use super::*;
use crate::{
    gateway::{OrderTimes, ShardId},
    model::{ChargeMode, ChargeSpec, Command, DeviceId, Order, OrderNo, OrderNumbers, Protocol, ServerId},
    store::{
        Backstop, Bind, CommandLogRow, Created, Job, Latest, Limits, NewOrder, Notify, Outcome, Prune, Queued, Reply,
        Requester, Settlement, SettlementEnd, SettlementKey, Store, StoreError,
    },
};

const T0: i64 = 1_800_000_000_000;
/// Nothing takes this long; it keeps a broken store from hanging the suite.
const PATIENCE: Duration = Duration::from_secs(60);

fn open(path: &Path) -> Result<Db, StoreError> {
    Db::open(path, OrderNumbers::new(*b"THD", 1))
}

fn device(n: u32) -> DeviceId {
    format!("{n:08x}").parse().unwrap()
}

fn bind(n: u32) -> Job {
    let protocol = Protocol::Ap3000;
    Job::Bind(Bind { device_id: device(n), protocol, printed_no: None, known_only: false, generation: 1, at: T0 })
}

fn settlement(n: u32, raw: Vec<u8>) -> Job {
    let device_id = device(n);
    let order_ref = *OrderNo::new(*b"XYZ", u64::from(n)).as_bytes();
    let key =
        SettlementKey::Ap3000 { device_id, port: 0, start_mode: 1, order_ref, duration_seconds: 0, energy_raw: 0 };
    Job::Settle(Box::new(Settlement {
        key,
        device_id,
        port_no: 1,
        duration_seconds: 1,
        energy_wh: 1,
        amount_cent: None,
        end: SettlementEnd::Ap3000 { reason: 1 },
        epoch: None,
        card_no: None,
        at: T0,
        raw,
    }))
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn opening_twice_migrates_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sub/chargegate.db");
    for _ in 0..2 {
        drop(open(&path).unwrap());
    }
    let conn = Connection::open(&path).unwrap();
    let sql = "SELECT count(*), count(DISTINCT version) FROM refinery_schema_history";
    let (steps, versions): (i64, i64) = conn.query_row(sql, (), |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert!(steps > 0);
    assert_eq!(steps, versions, "no step ran twice");
}

#[test]
fn foreign_tables_of_our_names_are_refused_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chargegate.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE orders (id INTEGER); CREATE TABLE mine (x)").unwrap();
    let before = bytes(&path);
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("holds a table `orders` that chargegate did not make"), "{error}");
    assert!(!error.contains('\n'));
    assert_eq!(bytes(&path), before);
}

#[test]
fn a_database_of_a_newer_build_is_refused_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chargegate.db");
    drop(open(&path).unwrap());
    let conn = Connection::open(&path).unwrap();
    conn.execute(
        "INSERT INTO refinery_schema_history (version, name, applied_on, checksum) VALUES (99, 'later', 'now', '1')",
        (),
    )
    .unwrap();
    drop(conn);
    let before = bytes(&path);
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("was written by a newer build: schema version 99"), "{error}");
    assert_eq!(bytes(&path), before);
}

#[test]
fn other_migrations_under_our_history_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chargegate.db");
    drop(open(&path).unwrap());
    Connection::open(&path).unwrap().execute("UPDATE refinery_schema_history SET checksum = '1'", ()).unwrap();
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("was not made by chargegate"), "{error}");
}

#[test]
fn a_full_disk_fails_the_whole_batch_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut db = open(&dir.path().join("chargegate.db")).unwrap();
    assert!(db.apply(T0, &[bind(1)]).error.is_none());
    let pages: i64 = db.connection().pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    db.connection().pragma_update(None, "max_page_count", pages).unwrap();
    // The second frame does not fit; the first one and the bind would have.
    let jobs = [bind(1), settlement(1, vec![0; 10]), settlement(1, vec![0; 100_000]), settlement(2, vec![0; 100_000])];
    let applied = db.apply(T0, &jobs);
    assert!(matches!(applied.error, Some(StoreError::Unavailable(_))), "{applied:?}");
    assert!(applied.outcomes.iter().all(|outcome| matches!(outcome, Outcome::Failed { .. })));
    assert!(matches!(applied.outcomes[1], Outcome::Failed { key: Some(_), .. }));
    assert_eq!((applied.last_event, applied.outcomes.len()), (None, 4));

    db.connection().pragma_update(None, "max_page_count", 1_000_000).unwrap();
    db.probe().unwrap();
    let applied = db.apply(T0, &[bind(1), settlement(1, vec![0; 100_000])]);
    assert!(applied.error.is_none());
    let Outcome::Bound(bound) = &applied.outcomes[0] else { panic!() };
    assert_eq!(bound.epoch, 2, "the failed bind had no effect");
    assert!(matches!(&applied.outcomes[1], Outcome::Settled(settled) if settled.stored));
}

#[test]
fn a_stored_row_that_does_not_read_back_harms_its_own_settlement_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut db = open(&dir.path().join("chargegate.db")).unwrap();
    let applied = db.apply(T0, &[bind(1), bind(2), settlement(1, vec![1])]);
    assert!(applied.error.is_none());
    db.connection().execute_batch("UPDATE orders SET spec = '{'").unwrap();
    let applied = db.apply(T0, &[settlement(1, vec![1]), settlement(2, vec![2])]);
    assert!(matches!(&applied.outcomes[0], Outcome::Settled(settled) if settled.quarantined), "{applied:?}");
    assert!(matches!(&applied.outcomes[1], Outcome::Settled(settled) if settled.stored));
    let kept: Vec<u8> = db.connection().query_row("SELECT raw FROM settlement_quarantine", (), |r| r.get(0)).unwrap();
    assert_eq!(kept, [1]);
}

/// Hears what shards are told.
#[derive(Default)]
struct Shards(Mutex<Vec<(ShardId, Outcome)>>);

impl Notify for Shards {
    fn shard(&self, shard: ShardId, outcome: Outcome) {
        self.0.lock().push((shard, outcome));
    }
    fn order_changed(&self, _: &Order, _: &[Command], _: &[i64], _: Option<&ServerId>) {}
    fn commands_queued(&self, _: &Queued) {}
    fn events_committed(&self, _: i64) {}
}

fn store(path: &Path, clock: fn() -> i64) -> (SqliteStore, Arc<Shards>) {
    let shards = Arc::new(Shards::default());
    let options = Options { clock, ..Options::new(path) };
    (SqliteStore::open(options, Arc::clone(&shards) as Arc<dyn Notify>).unwrap(), shards)
}

#[test]
fn the_backstop_follows_the_limits_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let orders =
        OrderTimes { start_ack: 900, start_total: 1_000, duration_least: 60_000, overrun: 0, ..OrderTimes::default() };
    let limits = Limits { orders, backstop_delay: 500, valid_for_order: 700, ..Limits::default() };
    let mut db = open(&dir.path().join("chargegate.db")).unwrap().with_limits(limits);
    let order = NewOrder {
        order_no: OrderNo::new(*b"XYZ", 1),
        device_id: device(1),
        port_no: 1,
        spec: ChargeSpec { mode: ChargeMode::Time { minutes: 3 }, paid_cent: None, stop_when_full: true },
        epoch: Some(1),
        at: T0,
        deadline: T0,
        request_id: String::new(),
        requester: Requester::default(),
        card_no: None,
        idempotency: None,
    };
    let mut apply = |job| db.apply(T0, &[job]).outcomes.remove(0);
    apply(bind(1));
    let Outcome::Created(created) = apply(Job::CreateOrder(Box::new(order))) else { panic!("not created") };
    let Created::Order { command: Some(start), .. } = *created else { panic!("{created:?}") };
    assert_eq!(start.not_after, T0 + 700);
    let mut ended = |at| match apply(Job::Backstop(Backstop {
        at,
        interrupts_from: 0,
        offline_from: 0,
        interrupt_grace: 0,
        offline_grace: 0,
    })) {
        Outcome::Backstop(outcomes) => outcomes.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!([ended(T0 + 1_499), ended(T0 + 1_500)], [0, 1]);
    let longest: i64 = db.connection().query_row("SELECT duration_max_ms FROM orders", (), |row| row.get(0)).unwrap();
    assert_eq!(longest, 180_000);
}

#[test]
fn closing_answers_what_was_handed_over() {
    let dir = tempfile::tempdir().unwrap();
    let (store, shards) = store(&dir.path().join("chargegate.db"), || T0);
    for n in 0..1000 {
        assert!(store.submit(bind(n), Reply::Shard(ShardId(3))).is_ok());
    }
    store.close(PATIENCE);
    let told = shards.0.lock();
    let ids = told.iter().map(|(shard, outcome)| match outcome {
        Outcome::Bound(bound) if *shard == ShardId(3) => bound.device_id,
        other => panic!("{other:?}"),
    });
    assert!(ids.eq((0..1000).map(device)), "in the order they were submitted");
    let counted = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counters = store.counters();
    assert_eq!((counted(&counters.jobs[0]), counted(&counters.batch_jobs)), (1000, 1000));
    assert_eq!(counters.commit.iter().map(counted).sum::<u64>(), counted(&counters.batches));
}

#[test]
fn pages_are_given_back_where_that_is_worth_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut db = open(&dir.path().join("chargegate.db")).unwrap();
    assert!(!db.rest(), "an empty database keeps next to nothing");
    for n in 0..10 {
        assert!(db.apply(T0, &[bind(n), settlement(n, vec![0; 100_000])]).error.is_none());
    }
    assert!(db.rest());
    assert!(!db.rest(), "they are gone");
    let applied = db.apply(T0, &[bind(1)]);
    assert!(matches!(&applied.outcomes[0], Outcome::Bound(bound) if bound.epoch == 2), "{applied:?}");
}

#[test]
fn latest_values_wait_for_a_file_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chargegate.db");
    let (store, _shards) = store(&path, || T0);
    let (reply, answer) = crossbeam::channel::bounded(1);
    let reply = Reply::Call(Box::new(move |outcome| drop(reply.send(outcome))));
    assert!(store.submit(bind(1), reply).is_ok());
    assert!(matches!(answer.recv_timeout(PATIENCE).unwrap(), Outcome::Bound(_)));
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let told = Latest::Device {
        device_id: device(1),
        last_seen_at: T0 + 1,
        offline_at: T0 + 2,
        signal: None,
        firmware: Some("5.1".to_owned()),
        iccid: None,
        networked: false,
        device_type: None,
    };
    assert!(store.coalesce(&mut vec![told]));
    let until = |what: &str, is: &dyn Fn() -> bool| {
        let step = Duration::from_millis(10);
        let mut left = PATIENCE;
        while !is() {
            left = left.checked_sub(step).unwrap_or_else(|| panic!("{what}"));
            std::thread::sleep(step);
        }
    };
    until("the store says that it cannot write", &|| !store.health().ready.load(Ordering::Acquire));
    other.execute_batch("ROLLBACK").unwrap();
    until("it is written", &|| store.counters().latest_rows.load(Ordering::Relaxed) == 1);
    store.close(PATIENCE);
    let firmware: String = other.query_row("SELECT firmware FROM devices", (), |row| row.get(0)).unwrap();
    assert_eq!((firmware.as_str(), store.counters().latest_lost.load(Ordering::Relaxed)), ("5.1", 0));
}

#[test]
fn the_command_log_is_written_and_pruned_in_its_own_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chargegate.db");
    let row = |at| CommandLogRow {
        at,
        device_id: device(1),
        up: true,
        command: 0x03,
        msg_id: 7,
        epoch: Some(3),
        raw: vec![0xFF, 0],
    };
    let (store, _) = store(&path, || T0);
    store.append(vec![row(T0), row(T0 + 1), row(T0 + 2)]);
    store.close(PATIENCE);
    store.append(vec![row(T0)]);
    assert_eq!(store.counters().log_dropped.load(Ordering::Relaxed), 1);
    drop(store);
    let rows = || -> Vec<(i64, Vec<u8>)> {
        let conn = Connection::open(dir.path().join("chargegate-cmd_log.db")).unwrap();
        let mut rows = conn.prepare("SELECT at, raw FROM cmd_log ORDER BY at").unwrap();
        rows.query_map((), |row| Ok((row.get(0)?, row.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap()
    };
    assert_eq!(rows(), [T0, T0 + 1, T0 + 2].map(|at| (at, vec![0xFF, 0])));
    let (store, _) = self::store(&path, || T0);
    assert!(store.submit(Job::Prune(Prune::all(T0 + 2, 10)), Reply::None).is_ok());
    store.close(PATIENCE);
    assert_eq!(rows().len(), 1);
}

#[test]
fn a_wall_clock_below_the_newest_row_is_not_ready() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chargegate.db");
    let ready = |store: &SqliteStore| store.health().ready.load(Ordering::Relaxed);
    let (first, _) = store(&path, || T0);
    assert!(first.submit(bind(1), Reply::None).is_ok());
    assert!(ready(&first));
    first.close(PATIENCE);

    let (stepped_back, _) = store(&path, || T0 - 3_600_000);
    assert!(!ready(&stepped_back));
    let reason = stepped_back.health().reason.lock().clone().unwrap();
    assert_eq!(reason, "wall time is 3600000 ms below the newest stored row");
    stepped_back.close(PATIENCE);

    let (set_right, _) = store(&path, || T0 + 1);
    assert!(ready(&set_right));
}
