//! What only the clustered store does: several instances over one database, positions of events given afterwards, and a server
//! that dies, stands still or makes others wait.

mod services;
mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use chargegate::{
    gateway::order::Event,
    model::{CommandState, DeviceId, OrderNumbers, Protocol, ServerId},
    store::{
        Bind, Bound, CommandUpdate, Created, Job, Latest, NewOrder, Notify, Outcome, Prune, Reply, Requester, Store,
        postgres::{Options, PostgresStore, Timeouts},
    },
};
use postgres::{Client, NoTls};
use services::{Postgres, PostgresOptions};
use store::{PATIENCE, T0, Told, ap, ap_settlement, clock, minutes, order_job, postgres_database, read, until};

/// One process of a cluster, as far as the store is concerned.
struct Instance {
    store: PostgresStore,
    told: Arc<Told>,
    numbers: OrderNumbers,
}

impl Instance {
    fn open(url: &str, name: &str, change: impl FnOnce(&mut Options)) -> Self {
        let told = Arc::new(Told::default());
        let mut options = Options { clock, lanes: 2, ..Options::new(url, ServerId::new(name)) };
        change(&mut options);
        let store = PostgresStore::open(options, Arc::clone(&told) as Arc<dyn Notify>).unwrap();
        Self { store, told, numbers: OrderNumbers::new(*b"THD", u64::from(name.as_bytes()[0])) }
    }

    fn submit(&self, job: Job) -> mpsc::Receiver<Outcome> {
        let (reply, answer) = mpsc::channel();
        let call = Box::new(move |outcome| drop(reply.send(outcome)));
        self.store.submit(job, Reply::Call(call)).expect("the queue has room");
        answer
    }

    fn run(&self, job: Job) -> Outcome {
        self.submit(job).recv_timeout(PATIENCE).expect("the store answers")
    }

    fn bind(&self, device_id: DeviceId) -> Bound {
        match self.run(bind(device_id)) {
            Outcome::Bound(bound) => *bound,
            other => panic!("{other:?}"),
        }
    }

    fn new_order(&self, device_id: DeviceId, port_no: u16, epoch: Option<i64>) -> NewOrder {
        NewOrder {
            order_no: self.numbers.next(T0),
            device_id,
            port_no,
            spec: minutes(60),
            epoch,
            at: T0,
            deadline: T0 + 60_000,
            request_id: String::new(),
            requester: Requester::default(),
            card_no: None,
            idempotency: None,
        }
    }

    fn ready(&self) -> bool {
        self.store.health().ready.load(Relaxed)
    }
}

fn bind(device_id: DeviceId) -> Job {
    let (protocol, at) = (Protocol::Ap3000, T0);
    Job::Bind(Bind { device_id, protocol, printed_no: None, known_only: false, generation: 1, at })
}

/// A record of a charge that nobody ordered here.
fn record(device: u32, number: u32) -> Job {
    let mut order_ref = [0xEE; 16];
    order_ref[..4].copy_from_slice(&number.to_be_bytes());
    Job::Settle(Box::new(ap_settlement(ap(device), 1, order_ref, 1, T0)))
}

fn client(url: &str) -> Client {
    Client::connect(url, NoTls).unwrap()
}

fn count(client: &mut Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).unwrap().get(0)
}

const WITHOUT_POSITION: &str =
    "SELECT count(*) FROM events e WHERE NOT EXISTS (SELECT 1 FROM event_log l WHERE l.id = e.id)";

/// The log is whole, and each key's events stand in it in their sequence.
fn assert_log_is_in_order(client: &mut Client) {
    until("every event has its position", || count(client, WITHOUT_POSITION) == 0);
    let positions = "SELECT count(*) - max(pos) + min(pos) - 1 FROM event_log";
    assert_eq!(count(client, positions), 0, "positions have no gaps");
    let rows = client.query("SELECT key, sequence_no FROM logged_events WHERE sequence_no > 0 ORDER BY pos", &[]);
    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    for row in rows.unwrap() {
        let (key, number): (String, i64) = (row.get(0), row.get(1));
        let before = last.insert(key.clone(), number).unwrap_or(0);
        assert_eq!(number, before + 1, "of {key}");
    }
}

#[test]
fn instances_share_devices_and_ports() {
    const DEVICES: u32 = 12;
    const BINDS: i64 = 15;
    let url = postgres_database("shared");
    let instances = [Instance::open(&url, "a", |_| {}), Instance::open(&url, "b", |_| {})];
    let start = Barrier::new(instances.len());
    let (epochs, winners) = (parking_lot::Mutex::new(BTreeMap::new()), parking_lot::Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for (index, instance) in instances.iter().enumerate() {
            let (start, epochs, winners) = (&start, &epochs, &winners);
            scope.spawn(move || {
                start.wait();
                for round in 0..BINDS {
                    // All at a time, so that batches of both instances hold the same devices in different orders.
                    let devices = (1..=DEVICES).map(|n| if index == 0 { n } else { DEVICES + 1 - n });
                    let answers: Vec<_> = devices.map(|n| (n, instance.submit(bind(ap(n))))).collect();
                    for (n, answer) in answers {
                        let Outcome::Bound(bound) = answer.recv_timeout(PATIENCE).unwrap() else { panic!() };
                        let taken = epochs.lock().insert((n, bound.epoch), (index, bound.superseded.clone()));
                        assert!(taken.is_none(), "epoch {} of device {n} was given twice", bound.epoch);
                    }
                    if round == 0 {
                        for n in 1..=DEVICES {
                            let new = instance.new_order(ap(n), 1, None);
                            match instance.run(Job::CreateOrder(Box::new(new))) {
                                Outcome::Created(created) => match *created {
                                    Created::Order { order, .. } => winners.lock().push((n, order.order_no)),
                                    Created::PortBusy { .. } => {}
                                    other => panic!("{other:?}"),
                                },
                                other => panic!("{other:?}"),
                            }
                        }
                    }
                }
            });
        }
    });
    let winners: Vec<u32> = winners.into_inner().into_iter().map(|(n, _)| n).collect();
    assert_eq!(winners.len(), DEVICES as usize, "one order a port");
    assert_eq!(winners.into_iter().collect::<BTreeSet<_>>().len(), DEVICES as usize);
    let epochs = epochs.into_inner();
    for n in 1..=DEVICES {
        let mut before: Option<usize> = None;
        for epoch in 1..=2 * BINDS {
            let (index, superseded) = &epochs[&(n, epoch)];
            let from = before.filter(|owner| owner != index).map(|owner| ServerId::new(["a", "b"][owner]));
            assert_eq!(*superseded, from, "epoch {epoch} of device {n}");
            before = Some(*index);
        }
    }
    assert_log_is_in_order(&mut client(&url));
}

/// Whatever the planner made of the tables while they were empty: what a batch costs does not grow with them.
#[test]
fn a_start_reads_its_own_rows_and_changes_its_order_in_place() {
    const ORDERS: u32 = 300;
    let url = postgres_database("plans");
    let instance = Instance::open(&url, "a", |_| {});
    for device in 0..ORDERS / 10 {
        instance.bind(ap(device));
    }
    for n in 0..ORDERS {
        let new = instance.new_order(ap(n / 10), (n % 10) as u16 + 1, Some(1));
        let Outcome::Created(created) = instance.run(Job::CreateOrder(Box::new(new))) else { panic!() };
        let Created::Order { order, command: Some(command) } = *created else { panic!("no claimed start") };
        let written = CommandUpdate {
            device_id: order.device_id,
            id: command.id,
            epoch: 1,
            state: CommandState::Written,
            order_no: Some(order.order_no),
            attempts: 1,
            reason: None,
            result: None,
            at: T0,
        };
        assert!(matches!(instance.run(Job::Command(written)), Outcome::Done));
        for event in [Event::StartAcked, Event::Evidence] {
            let job = order_job(order.order_no, event, T0);
            assert!(matches!(instance.run(Job::Order(Box::new(job))), Outcome::Order(_)));
        }
    }
    let mut reads_no_index = client(&url);
    reads_no_index
        .batch_execute("SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off")
        .unwrap();
    assert_log_is_in_order(&mut reads_no_index);
    // What a session counted is told when it ends.
    drop(instance);
    let mut client = client(&url);
    let orders = "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'orders'";
    until("the sessions have told what they did", || count(&mut client, orders) == i64::from(ORDERS) * 3);
    let in_place = count(&mut client, "SELECT n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'orders'");
    assert!(in_place >= i64::from(ORDERS) * 5 / 2, "{in_place} in place");
    for table in ["orders", "outbound_queue", "events", "event_runs"] {
        let sql = format!(
            "SELECT coalesce(sum(idx_tup_read), 0)::bigint FROM pg_stat_user_indexes WHERE relname = '{table}'"
        );
        let read = count(&mut client, &sql);
        assert!(read <= i64::from(ORDERS) * 40, "{read} entries of indexes of {table} were read for {ORDERS} starts");
    }
}

#[test]
fn a_late_commit_is_not_left_out_of_the_log() {
    let url = postgres_database("late");
    let instance = Instance::open(&url, "a", |_| {});
    let mut late = client(&url);
    let mut watch = client(&url);
    late.batch_execute(
        "BEGIN; SELECT pg_current_xact_id(); INSERT INTO events (event_id, event_type, key, sequence_no, at, data) \
         VALUES ('late', 'device.alarm', 'somebody', 1, 0, '{}')",
    )
    .unwrap();
    // Far more batches than it takes to raise the watermark, had it not to wait.
    for n in 1..=30 {
        instance.bind(ap(n));
        until("the others have their position", || count(&mut watch, WITHOUT_POSITION) == 0);
    }
    assert_eq!(count(&mut watch, "SELECT count(*) FROM event_log"), 30);
    assert_eq!(count(&mut watch, "SELECT watermark FROM event_sequencer"), 0, "an older transaction goes on");
    late.batch_execute("COMMIT").unwrap();
    let sql = "SELECT coalesce(max(pos), 0) FROM logged_events WHERE event_id = 'late'";
    until("the late event has its position", || count(&mut watch, sql) == 31);
    for n in 31.. {
        instance.bind(ap(n));
        if count(&mut watch, "SELECT watermark FROM event_sequencer") > 0 {
            break;
        }
    }
    assert_log_is_in_order(&mut watch);
}

#[test]
fn the_log_is_read_and_pruned_across_its_runs() {
    const EVENTS: i64 = 40;
    let url = postgres_database("runs");
    let mut other = client(&url);
    // Ids that were never committed, and a third of the log one event at a time.
    for n in 1..=EVENTS {
        let end = if n % 9 == 0 { "ROLLBACK; BEGIN" } else { "" };
        let insert = format!(
            "INSERT INTO events (event_id, event_type, key, sequence_no, at, data) \
             VALUES ('e{n}', 'device.alarm', 'k{n}', 1, {n}, '{{}}')"
        );
        other.batch_execute(&format!("BEGIN; {insert}; {end}; COMMIT")).unwrap();
    }
    let instance = Instance::open(&url, "a", |_| {});
    until("every event has its position", || count(&mut other, WITHOUT_POSITION) == 0);
    assert!(count(&mut other, "SELECT count(*) FROM event_runs") > 1);
    let mut log = |after: i64| -> Vec<(i64, String)> {
        let sql = "SELECT pos, event_id FROM logged_events WHERE pos > $1 ORDER BY pos";
        other.query(sql, &[&after]).unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    let assert_reads_are_whole = |log: &[(i64, String)]| {
        for limit in [1, 3, 7, 1_000] {
            let mut all = Vec::new();
            loop {
                let after = all.last().map_or(0, |(pos, _)| *pos);
                let piece = read(&instance.store, move |reader| reader.events_after(after, limit));
                assert!(piece.len() <= limit as usize);
                if piece.is_empty() {
                    break;
                }
                all.extend(piece.into_iter().map(|event| (event.pos, event.event_id)));
            }
            assert_eq!(all, log, "{limit} at a time");
        }
        for (pos, event_id) in log {
            let at = event_id[1..].parse().unwrap();
            assert_eq!(read(&instance.store, move |reader| reader.pos_at(at)), *pos, "of {event_id}");
        }
    };
    let mut left = log(0);
    let last = left.last().cloned();
    while left.len() > 1 {
        assert_reads_are_whole(&left);
        // Everything is past its retention but for the newest, which stays.
        assert!(matches!(instance.run(Job::Prune(Prune::all(i64::MAX, 5))), Outcome::Pruned { .. }));
        let after = log(0);
        assert_eq!(after, left[left.len().min(6) - 1..], "the five oldest are gone");
        left = after;
    }
    assert_eq!(left.last(), last.as_ref());
    assert_reads_are_whole(&left);
    instance.bind(ap(1));
    until("the next event has its position", || log(0).len() == 2);
    assert_eq!(log(0)[1].0, left[0].0 + 1, "no position is given twice");
}

#[test]
fn another_instance_orders_events_when_the_leader_goes() {
    let url = postgres_database("leader");
    let mut watch = client(&url);
    let mut first = Some(Instance::open(&url, "a", |_| {}));
    let leads = |instance: &Instance| instance.store.sequencer().state().leader.load(Relaxed);
    until("the first instance leads", || leads(first.as_ref().unwrap()));
    let second = Instance::open(&url, "b", |_| {});
    second.bind(ap(1));
    until("the leader orders the other's events", || count(&mut watch, WITHOUT_POSITION) == 0);
    until("the other hears of it", || *second.told.pos.lock() == 1);
    assert!(!leads(&second));
    // Its connection dies: it may take the lead again, or the other does.
    let killed = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND granted \
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    for n in 2..20 {
        assert_eq!(count(&mut watch, killed), 1, "one leader");
        second.bind(ap(n));
        until("there is a leader", || leads(&second) || leads(first.as_ref().unwrap()));
        until("events get their positions", || count(&mut watch, WITHOUT_POSITION) == 0);
        until("there is one lock", || {
            count(
                &mut watch,
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted \
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            ) == 1
        });
    }
    drop(first.take());
    until("the second instance leads", || leads(&second));
    second.bind(ap(20));
    assert_log_is_in_order(&mut watch);
    until("it is told", || *second.told.pos.lock() == 20);
}

#[test]
fn a_device_that_somebody_holds_makes_no_other_wait_for_ever() {
    let url = postgres_database("locked");
    let short = Timeouts { lock: Duration::from_millis(100), ..Timeouts::default() };
    let instance = Instance::open(&url, "a", |options| {
        options.timeouts = short;
        options.lanes = 1;
    });
    for n in 1..=8 {
        instance.bind(ap(n));
    }
    let mut holder = client(&url);
    let hold = |client: &mut Client| {
        client.batch_execute("BEGIN; SELECT 1 FROM devices WHERE device_id = '00000005' FOR UPDATE").unwrap();
    };
    hold(&mut holder);
    let answers: Vec<_> = (1..=8).map(|n| instance.submit(bind(ap(n)))).collect();
    for (n, answer) in (1..=8).zip(answers) {
        match answer.recv_timeout(PATIENCE).unwrap() {
            Outcome::Bound(bound) if n != 5 => assert_eq!(bound.epoch, 2),
            Outcome::Failed { device_id, .. } if n == 5 => assert_eq!(device_id, Some(ap(5))),
            other => panic!("{n}: {other:?}"),
        }
    }
    // Latest values pass by what is held, and come back to it.
    let seen = |n, at| Latest::Device {
        device_id: ap(n),
        last_seen_at: at,
        signal: None,
        firmware: Some("7.1\0".to_owned()),
        iccid: None,
        networked: false,
        device_type: None,
        offline_at: T0,
    };
    assert!(instance.store.coalesce(&mut vec![seen(4, T0 + 4), seen(5, T0 + 5), seen(6, T0 + 6)]));
    let mut watch = client(&url);
    let known = "SELECT count(*) FROM devices WHERE firmware = '7.1'";
    until("the free ones are written", || count(&mut watch, known) == 2);
    holder.batch_execute("ROLLBACK").unwrap();
    assert_eq!(instance.bind(ap(5)).epoch, 2, "the one that failed had no effect");
    instance.store.close(PATIENCE);
    let written = |what: &str| {
        let counters = instance.store.counters();
        let counter = if what == "written" { &counters.latest_rows } else { &counters.latest_lost };
        counter.load(Relaxed)
    };
    assert_eq!(written("written") + written("lost"), 3);
    assert_eq!(count(&mut watch, known), i64::try_from(written("written")).unwrap());
}

#[test]
fn a_server_that_dies_under_load_loses_nothing_that_was_acknowledged() {
    const DEVICES: u32 = 24;
    const RECORDS: u32 = 60;
    let mut server = Postgres::start(&PostgresOptions::default());
    let url = server.database("dies");
    let instance = Instance::open(&url, "a", |options| options.lanes = 3);
    for n in 1..=DEVICES {
        instance.bind(ap(n));
    }
    let (acknowledged, failed) = (AtomicBool::new(false), AtomicBool::new(false));
    let once = thread::scope(|scope| {
        let devices: Vec<_> = (1..=DEVICES)
            .map(|n| {
                let (instance, acknowledged, failed) = (&instance, &acknowledged, &failed);
                // Each record is sent until it is acknowledged, as devices do. Says which were acknowledged at the first answer.
                scope.spawn(move || {
                    for number in 0..RECORDS {
                        loop {
                            match instance.run(record(n, number)) {
                                Outcome::Settled(settled) => {
                                    assert!(!settled.quarantined);
                                    acknowledged.store(true, Relaxed);
                                    break;
                                }
                                Outcome::Failed { .. } => {
                                    failed.store(true, Relaxed);
                                    thread::sleep(Duration::from_millis(20));
                                }
                                other => panic!("{other:?}"),
                            }
                        }
                    }
                })
            })
            .collect();
        for _ in 0..3 {
            acknowledged.store(false, Relaxed);
            until("it is under load", || {
                acknowledged.load(Relaxed) || devices.iter().all(|device| device.is_finished())
            });
            server.kill9();
            failed.store(false, Relaxed);
            until("jobs fail", || failed.load(Relaxed) || devices.iter().all(|device| device.is_finished()));
            server.restart();
        }
        devices.into_iter().map(|device| device.join().unwrap()).count()
    });
    assert_eq!(once, DEVICES as usize);
    until("it is ready again", || instance.ready());
    let mut watch = client(&url);
    let all = i64::from(DEVICES * RECORDS);
    assert_eq!(count(&mut watch, "SELECT count(*) FROM settlements"), all, "each record once");
    assert_eq!(count(&mut watch, "SELECT count(DISTINCT key) FROM settlements"), all);
    assert_eq!(count(&mut watch, "SELECT count(*) FROM orders"), all);
    assert_eq!(count(&mut watch, "SELECT count(*) FROM events WHERE event_type = 'order.settled'"), all);
    assert_log_is_in_order(&mut watch);
}

#[test]
fn a_server_that_stands_still_is_given_up_and_found_again() {
    let server = Postgres::start(&PostgresOptions { fsync: false, ..PostgresOptions::default() });
    let url = server.database("still");
    let second = Duration::from_secs(1);
    let instance = Instance::open(&url, "a", |options| {
        options.timeouts = Timeouts { connect: second, statement: second, lock: second };
        options.lanes = 1;
    });
    instance.bind(ap(1));
    assert!(instance.ready());
    server.pause();
    let (answer, read) = (instance.submit(bind(ap(1))), mpsc::channel());
    let reply = read.0;
    let asked = instance.store.read(Box::new(move |reader| {
        drop(reply.send(reader.and_then(|reader| reader.device(ap(1)).map(|_| ()))));
    }));
    assert!(asked.is_ok());
    assert!(matches!(answer.recv_timeout(PATIENCE), Ok(Outcome::Failed { .. })));
    assert!(read.1.recv_timeout(PATIENCE).unwrap().is_err());
    assert!(!instance.ready());
    assert!(instance.store.health().reason.lock().is_some());
    server.resume();
    until("it is ready again", || instance.ready());
    // The server may have been given the first bind before it stood still; it was not acknowledged either way.
    assert!([2, 3].contains(&instance.bind(ap(1)).epoch));
    let (reply, read) = mpsc::channel();
    let asked = instance.store.read(Box::new(move |reader| {
        drop(reply.send(reader.and_then(|reader| reader.device(ap(1)))));
    }));
    assert!(asked.is_ok());
    assert!(read.recv_timeout(PATIENCE).unwrap().unwrap().is_some());
}

/// What becomes of the next COMMIT that passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// It passes.
    No,
    /// The server never gets it, and the connection ends.
    Before,
    /// The server makes it, but the connection ends without its answer.
    Behind,
}

/// Stands between a store and its server.
struct Proxy {
    port: u16,
    cut: Arc<parking_lot::Mutex<Cut>>,
}

impl Proxy {
    fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let cut = Arc::new(parking_lot::Mutex::new(Cut::No));
        let shared = Arc::clone(&cut);
        // Ends with the test process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(("127.0.0.1", server)).unwrap());
                let silent = Arc::new(AtomicBool::new(false));
                let (cut, silenced) = (Arc::clone(&shared), Arc::clone(&silent));
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || {
                    pass(&mut from, &mut to, |bytes| {
                        if !bytes.windows(7).any(|word| word == b"COMMIT\0") {
                            return true;
                        }
                        match std::mem::replace(&mut *cut.lock(), Cut::No) {
                            Cut::No => true,
                            Cut::Before => false,
                            Cut::Behind => {
                                silenced.store(true, Relaxed);
                                true
                            }
                        }
                    });
                });
                let (mut from, mut to) = (server, client);
                thread::spawn(move || pass(&mut from, &mut to, |_| !silent.load(Relaxed)));
            }
        });
        Self { port, cut }
    }
}

/// Passes bytes on until either side ends, or `may` says no; then both end.
fn pass(from: &mut TcpStream, to: &mut TcpStream, may: impl Fn(&[u8]) -> bool) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if !may(&buffer[..length]) || to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // Either may be down already.
    drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
}

#[test]
fn a_commit_without_an_answer_is_neither_lost_nor_made_twice() {
    let direct = postgres_database("unanswered");
    let server = services::postgres().port();
    let proxy = Proxy::to(server);
    let url = direct.replace(&format!(":{server}/"), &format!(":{}/", proxy.port));
    let instance = Instance::open(&url, "a", |options| options.lanes = 1);
    let mut epoch = instance.bind(ap(1)).epoch;
    for cut in [Cut::Behind, Cut::Before, Cut::Behind, Cut::Before] {
        *proxy.cut.lock() = cut;
        epoch += 1;
        assert_eq!(instance.bind(ap(1)).epoch, epoch, "{cut:?}");
        assert_eq!(*proxy.cut.lock(), Cut::No, "it was cut");
    }
    assert_log_is_in_order(&mut client(&direct));
}

/// Has a server take TLS, with the certificate of `testdata/tls`: for `localhost` and `127.0.0.1`.
fn encrypt(server: &Postgres) {
    let data = std::fs::metadata(server.directory().join("data")).unwrap();
    for name in ["server.pem", "server.key"] {
        let path = server.directory().join(name);
        std::fs::copy(tls_file(name), &path).unwrap();
        // The server takes no key that others may read.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(data.uid()), Some(data.gid())).unwrap();
        let setting = if name == "server.key" { "ssl_key_file" } else { "ssl_cert_file" };
        server.client().batch_execute(&format!("ALTER SYSTEM SET {setting} = '{}'", path.display())).unwrap();
    }
    server.client().batch_execute("ALTER SYSTEM SET ssl = on").unwrap();
    server.client().batch_execute("SELECT pg_reload_conf()").unwrap();
    until("the server takes TLS", || {
        count(&mut server.client(), "SELECT count(*) FROM pg_settings WHERE name = 'ssl' AND setting = 'on'") == 1
    });
}

fn tls_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tls").join(name)
}

#[test]
fn a_connection_is_as_safe_as_its_url_says() {
    let settings = vec![("log_connections".to_owned(), "on".to_owned())];
    let server = Postgres::start(&PostgresOptions { fsync: false, settings });
    let connect = |host: &str, query: &str| {
        let url = format!("postgres://postgres@{host}:{}/postgres?{query}", server.port());
        let before = server.log().matches("SSL enabled").count();
        let result = chargegate::store::postgres::migrate(&url, Timeouts::default());
        let encrypted = server.log().matches("SSL enabled").count() > before;
        result.map(|_| encrypted).map_err(|error| error.to_string())
    };
    assert_eq!(connect("127.0.0.1", ""), Ok(false), "it takes no TLS yet");
    assert!(connect("127.0.0.1", "sslmode=require").is_err());
    encrypt(&server);
    let root = format!("sslrootcert={}", tls_file("ca.pem").display());
    assert_eq!(connect("127.0.0.1", ""), Ok(true), "TLS where the server can");
    assert_eq!(connect("127.0.0.1", "sslmode=disable"), Ok(false));
    assert_eq!(connect("127.0.0.1", "sslmode=require"), Ok(true));
    assert_eq!(connect("127.0.0.1", &format!("sslmode=verify-full&{root}")), Ok(true));
    assert_eq!(connect("localhost", &format!("sslmode=verify-full&{root}")), Ok(true));
    let elsewhere = "hostaddr=127.0.0.1";
    assert_eq!(connect("db.example", &format!("{elsewhere}&sslmode=verify-ca&{root}")), Ok(true));
    assert_eq!(connect("db.example", &format!("{elsewhere}&sslmode=require")), Ok(true));
    for (host, query, why) in [
        ("db.example", format!("{elsewhere}&sslmode=verify-full&{root}"), "not valid for name"),
        ("localhost", "sslmode=verify-full".to_owned(), "UnknownIssuer"),
        ("localhost", "sslmode=verify-ca".to_owned(), "UnknownIssuer"),
        ("localhost", "sslmode=verify-ca&sslrootcert=missing.pem".to_owned(), "missing.pem"),
    ] {
        let error = connect(host, &query).expect_err(&query);
        assert!(error.contains(why) && !error.contains('\n'), "{query}: {error}");
    }
}
