//! What the gateway acknowledged survives `kill -9`.
//!
//! The real process with its embedded store serves simulated devices over TCP while clients charge, stop, cancel and read the log
//! of events by REST, all at once. It is killed at seeded moments and started again on the same data and ports. When everything has
//! come to rest, the database is compared with what clients and devices were told:
//! - each order answered 202 exists;
//! - each record that a device was told is stored is stored once, with its totals; nothing else is; the sums agree;
//! - each event that a client was shown is where it was, unchanged, and there are no gaps before or behind it;
//! - no port ever had two orders, no device was told to start an order twice; long charges went on as if nothing were.
//!
//! `SEED=n` replays a seed, as far as real processes do.

mod crash;
mod witness;

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use chargegate::model::OrderNo;
use chargegate_loadtest::{
    device::{Ap3000Device, Behaviour, BkvDevice, Device},
    engine::Clock,
};
use crash::Gateway;
use serde_json::{Value, json};
use witness::{Draws, Record, Shared, Witness, audit};

const ROUNDS: u32 = 5;
const DEVICES: u32 = 24;
const CLIENTS: u64 = 3;
const SEED: u64 = 0x9;
const MS: u64 = 1_000;
/// Everything has come to rest after this time, or never will.
const REST_US: u64 = 100_000 * MS;

/// Waits a little before looking again.
fn pause(ms: u64) {
    thread::park_timeout(Duration::from_millis(ms));
}

/// Drives a device over TCP until `stop`; what it reads and writes may end anywhere.
fn drive(device: &mut dyn Device, clock: Clock, address: SocketAddr, stop: &dyn Fn() -> bool) {
    while !stop() {
        if let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            device.connected(clock.now_us());
            while !stop() && exchange(device, clock, &mut stream).is_ok() {}
            device.disconnected(clock.now_us());
        }
        pause(100);
        if device.poll_timeout().is_some_and(|at| at <= clock.now_us()) {
            device.timeout(clock.now_us());
        }
    }
}

fn exchange(device: &mut dyn Device, clock: Clock, stream: &mut TcpStream) -> std::io::Result<()> {
    if device.poll_timeout().is_some_and(|at| at <= clock.now_us()) {
        device.timeout(clock.now_us());
    }
    let mut out = Vec::new();
    device.poll_output(&mut out);
    stream.write_all(&out)?;
    while device.poll_event().is_some() {}
    if device.poll_close() {
        return Err(ErrorKind::ConnectionAborted.into());
    }
    let mut bytes = [0; 4096];
    match stream.read(&mut bytes) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(len) => {
            device.receive(clock.now_us(), &bytes[..len]);
            Ok(())
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The device with this index, and its id. `hasty`: minutes pass as seconds.
fn device(index: u32, hasty: bool) -> (String, Box<dyn Device + Send>, Shared) {
    // Few minutes, because a BKV gateway's lost start is recognised by its times.
    let time_factor = if hasty { 60 } else { 1 };
    let behaviour = Behaviour { time_factor, ..Behaviour::default() };
    if index.is_multiple_of(2) {
        let device = Ap3000Device::new(index, 2, behaviour);
        let id = device.phy_id().to_string();
        let (witness, seen) = Witness::new(&id, device);
        (id, Box::new(witness), seen)
    } else {
        let device = BkvDevice::new(index, 0, behaviour);
        let id = device.gateway_id().to_string();
        let (witness, seen) = Witness::new(&id, device);
        (id, Box::new(witness), seen)
    }
}

/// A client of the REST interface; requests fail while the gateway is down.
#[derive(Clone)]
struct Client {
    agent: ureq::Agent,
    base: String,
    key: String,
}

impl Client {
    fn new(gateway: &Gateway) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(10)))
            .http_status_as_error(false)
            .build();
        let base = format!("http://{}/api/v1/third", gateway.http);
        Self { agent: config.into(), base, key: gateway.api_key() }
    }

    fn get(&self, path: &str) -> Option<(u16, Value)> {
        let mut response = self.agent.get(format!("{}{path}", self.base)).header("X-Api-Key", &self.key).call().ok()?;
        Some((response.status().as_u16(), response.body_mut().read_json().ok()?))
    }

    fn post(&self, path: &str, body: &Value) -> Option<(u16, Value)> {
        let request = self.agent.post(format!("{}{path}", self.base)).header("X-Api-Key", &self.key);
        let mut response = request.send_json(body).ok()?;
        Some((response.status().as_u16(), response.body_mut().read_json().ok()?))
    }

    /// The order's number, if the answer was 202.
    fn charge(&self, device_id: &str, port_no: u64, minutes: u64) -> Option<String> {
        let body = json!({"port_no": port_no, "mode": "time", "duration_minutes": minutes});
        let (status, answer) = self.post(&format!("/devices/{device_id}/charge"), &body)?;
        match status {
            202 => Some(answer["data"]["order_no"].as_str().unwrap().to_owned()),
            400 | 404 | 409 | 503 => None,
            _ => panic!("{status} {answer}"),
        }
    }
}

/// What clients were told.
#[derive(Default)]
struct Told {
    /// Orders answered 202: device and port.
    orders: BTreeMap<String, (String, u64)>,
    /// Events shown, by position.
    events: BTreeMap<i64, Value>,
}

fn storm(client: &Client, mut draws: Draws, devices: &[String], told: &Mutex<Told>, stop: &AtomicBool) {
    let mut mine: Vec<String> = Vec::new();
    let mut after = 0;
    while !stop.load(Relaxed) {
        match draws.below(10) {
            0..5 => {
                let device_id = &devices[usize::try_from(draws.below(devices.len() as u64)).unwrap()];
                let (port_no, minutes) = (draws.within(1, 2), draws.within(1, 2));
                if let Some(order_no) = client.charge(device_id, port_no, minutes) {
                    told.lock().unwrap().orders.insert(order_no.clone(), (device_id.clone(), port_no));
                    mine.push(order_no);
                }
            }
            kind @ 5..8 => {
                let back = usize::try_from(draws.below(mine.len().min(8) as u64)).unwrap();
                if let Some(order_no) = mine.len().checked_sub(1 + back).and_then(|at| mine.get(at)) {
                    let what = if kind == 5 { "cancel" } else { "stop" };
                    if let Some((status, answer)) = client.post(&format!("/orders/{order_no}/{what}"), &json!({})) {
                        assert!(matches!(status, 202 | 409 | 503), "{status} {answer}");
                    }
                }
            }
            _ => {
                let Some((200, answer)) = client.get(&format!("/events?after={after}&limit=500")) else { continue };
                for event in answer["data"]["items"].as_array().unwrap() {
                    let pos = event["pos"].as_i64().unwrap();
                    assert_eq!(pos, after + 1, "the log has a gap");
                    after = pos;
                    let shown = told.lock().unwrap().events.insert(pos, event.clone());
                    assert!(shown.is_none_or(|shown| shown == *event), "{event}");
                }
            }
        }
        pause(2);
    }
}

#[test]
fn what_was_acknowledged_survives() {
    let seed = std::env::var("SEED").map_or(SEED, |seed| seed.parse().expect("SEED is a number"));
    println!("seed {seed}");
    let clock = Clock::start();
    let mut gateway = Gateway::start(&[("SHARD_COUNT", "2"), ("LOG_LEVEL", "error")]);
    let client = Client::new(&gateway);
    let address = gateway.device;
    let (no_devices, no_clients) = (AtomicBool::new(false), AtomicBool::new(false));
    let told = Mutex::<Told>::default();
    let hasty: Vec<_> = (0..DEVICES).map(|index| device(index, true)).collect();
    let steady: Vec<_> = (DEVICES..DEVICES + 2).map(|index| device(index, false)).collect();
    let [ids, steady_ids] = [&hasty, &steady].map(|all| all.iter().map(|(id, ..)| id.clone()).collect::<Vec<_>>());
    let seen: Vec<Shared> = hasty.iter().chain(&steady).map(|(.., seen)| seen.clone()).collect();
    thread::scope(|scope| {
        for (_, mut device, _) in hasty.into_iter().chain(steady) {
            let no_devices = &no_devices;
            scope.spawn(move || drive(device.as_mut(), clock, address, &|| no_devices.load(Relaxed)));
        }
        // Also where an assertion fails: threads that go on would keep the test from ending.
        let _ends = (SetOnDrop(&no_devices), SetOnDrop(&no_clients));
        let long: Vec<_> = steady_ids.iter().map(|id| charge_when_online(&client, id, clock)).collect();
        for number in 0..CLIENTS {
            let (client, draws) = (client.clone(), Draws::new(seed.wrapping_add(number << 32)));
            let (ids, told, no_clients) = (&ids, &told, &no_clients);
            scope.spawn(move || storm(&client, draws, ids, told, no_clients));
        }
        let mut draws = Draws::new(seed);
        for round in 0..ROUNDS {
            pause(draws.within(1_500, 5_000));
            gateway.kill();
            println!("round {round}: killed with {} orders", told.lock().unwrap().orders.len());
            gateway.start_again();
        }
        pause(3_000);
        no_clients.store(true, Relaxed);
        for order_no in &long {
            let status = client.get(&format!("/orders/{order_no}")).unwrap().1["data"]["status"].clone();
            assert_eq!(status, 2, "{order_no} is charging still");
            assert_eq!(client.post(&format!("/orders/{order_no}/stop"), &json!({})).unwrap().0, 202);
        }
        let rested_by = clock.now_us() + REST_US;
        let active = "SELECT count(*) FROM orders WHERE status IN (0, 1, 2, 8, 9, 10)";
        let sql = gateway.sql();
        let open = || sql.query_row(active, [], |row| row.get::<_, u32>(0)).unwrap();
        while open() > 0 || !seen.iter().all(|seen| seen.lock().is_quiet()) {
            assert!(clock.now_us() < rested_by, "{} orders stay open", open());
            pause(100);
        }
        assert_long_charges_went_on(&sql, &long);
    });
    assert!(gateway.stop(), "stopped with an error:\n{}", gateway.log());
    audit(&gateway.sql(), &seen, &told.lock().unwrap());
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Orders an hour, as soon as the device takes orders, and waits until it charges.
fn charge_when_online(client: &Client, device_id: &str, clock: Clock) -> String {
    let deadline = clock.now_us() + 30_000 * MS;
    let order_no = loop {
        if let Some(order_no) = client.charge(device_id, 1, 60) {
            break order_no;
        }
        assert!(clock.now_us() < deadline, "{device_id} does not come online");
        pause(50);
    };
    loop {
        let (_, answer) = client.get(&format!("/orders/{order_no}")).unwrap();
        if answer["data"]["status"] == 2 {
            return order_no;
        }
        assert!(clock.now_us() < deadline, "{answer}");
        pause(50);
    }
}

fn assert_long_charges_went_on(sql: &rusqlite::Connection, long: &[String]) {
    for order_no in long {
        let mut statement = sql.prepare("SELECT event_type FROM events WHERE key = ?1 ORDER BY pos").unwrap();
        let events = statement.query_map([order_no], |row| row.get::<_, String>(0)).unwrap();
        let events: Vec<_> = events.map(Result::unwrap).collect();
        let before = ["order.created", "order.confirmed", "charging.started", "order.stopping"];
        assert_eq!(events[..4], before, "{events:?}");
    }
}

fn audit(sql: &rusqlite::Connection, seen: &[Shared], told: &Told) {
    let faults: Vec<_> = seen.iter().flat_map(|seen| seen.lock().faults.clone()).collect();
    assert!(faults.is_empty(), "{faults:#?}");
    let records: Vec<Record> = seen.iter().flat_map(|seen| seen.lock().acknowledged.clone()).collect();
    let started: usize = seen.iter().map(|seen| seen.lock().started).sum();
    println!("{} orders, {started} charges, {} events shown", told.orders.len(), told.events.len());
    assert_eq!(records.len(), started);
    assert!(started > 50, "the storm was a breeze: {started} charges");
    audit::records_are_stored_once(sql, &records);
    audit::events_are_gapless(sql);
    audit::orders_live_one_after_the_other(sql);
    for (order_no, (device_id, port_no)) in &told.orders {
        let place: (String, u32) = sql
            .query_row("SELECT device_id, port_no FROM orders WHERE order_no = ?1", [order_no], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap_or_else(|error| panic!("{order_no}: {error}"));
        assert_eq!(place, (device_id.clone(), *port_no as u32));
    }
    let mut statement =
        sql.prepare("SELECT event_id, event_type, sequence_no, data FROM events WHERE pos = ?1").unwrap();
    for (pos, shown) in &told.events {
        let stored = statement.query_row([pos], |row| {
            let data: Value = serde_json::from_str(&row.get::<_, String>(3)?).unwrap();
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, u32>(2)?, data))
        });
        let (event_id, event_type, sequence_no, data) = stored.unwrap_or_else(|error| panic!("{shown}: {error}"));
        let stored = [json!(event_id), json!(event_type), json!(sequence_no), data];
        assert_eq!(stored, ["event_id", "event_type", "sequence_no", "data"].map(|field| shown[field].clone()));
    }
    let doubled = "SELECT count(*) FROM (SELECT order_no FROM outbound_queue WHERE kind = 'start' GROUP BY order_no \
                   HAVING count(*) > 1)";
    assert_eq!(sql.query_row(doubled, [], |row| row.get::<_, u32>(0)).unwrap(), 0, "two start commands for one order");
}

/// An AP3000 device is given half a second between commands: the second start waits, its device goes away, the gateway is lost.
/// Whoever comes back after the start's time must not find it.
#[test]
fn a_start_that_was_not_written_does_not_fire_late() {
    let clock = Clock::start();
    let mut gateway = Gateway::start(&[("SHARD_COUNT", "1"), ("LOG_LEVEL", "error")]);
    let client = Client::new(&gateway);
    let address = gateway.device;
    let (id, mut device, seen) = device(1_000, true);
    let away = Arc::new(AtomicBool::new(false));
    let (orders, ordered_us) = thread::scope(|scope| {
        let gone = SetOnDrop(&away);
        let (device, seen, away) = (&mut device, &seen, &away);
        scope.spawn(move || {
            drive(device.as_mut(), clock, address, &|| away.load(Relaxed) || seen.lock().starts > 0);
        });
        let deadline = clock.now_us() + 30_000 * MS;
        let first = loop {
            if let Some(order_no) = client.charge(&id, 1, 2) {
                break order_no;
            }
            assert!(clock.now_us() < deadline, "{id} does not come online");
            pause(20);
        };
        let second = client.charge(&id, 2, 2);
        drop(gone);
        (second.map(|second| [first, second]), clock.now_us())
    });
    let Some([first, second]) = orders else {
        println!("the device was gone before the second order");
        return;
    };
    gateway.kill();
    gateway.start_again();
    // A start is good for 30 s.
    while clock.now_us() < ordered_us + 31_000 * MS {
        pause(100);
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let is_done = &done;
        let device = &mut device;
        let settled = scope.spawn(move || drive(device.as_mut(), clock, address, &|| is_done.load(Relaxed)));
        let ends = SetOnDrop(&done);
        let deadline = clock.now_us() + 60_000 * MS;
        let is_final = |order_no: &String| {
            let answer = client.get(&format!("/orders/{order_no}"));
            answer.is_some_and(|(_, answer)| matches!(answer["data"]["status"].as_u64(), Some(3..=7)))
        };
        while !(is_final(&first) && is_final(&second) && seen.lock().is_quiet()) {
            assert!(clock.now_us() < deadline, "the orders stay open");
            pause(50);
        }
        drop(ends);
        settled.join().unwrap();
    });
    let [first, second]: [OrderNo; 2] = [first, second].map(|order_no| OrderNo::parse(&order_no).unwrap());
    assert!(seen.lock().was_started(first));
    assert!(!seen.lock().was_started(second), "it fired late");
    let status: u8 = gateway
        .sql()
        .query_row("SELECT status FROM orders WHERE order_no = ?1", [second.as_str()], |row| row.get(0))
        .unwrap();
    assert_eq!(status, 7, "timeout");
}
