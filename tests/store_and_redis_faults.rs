//! PostgreSQL or Redis is stopped, killed, hung, locked or comes and goes: devices stay connected and are answered, what is not
//! committed is not acknowledged, the API says what it cannot do, and everything catches up without a restart of a gateway.
//!
//! Two gateways, a scripted device at each, the API asked at the first. A heartbeat answered behind a record that is not shows that
//! the record waits for its commit: answers of one connection come in the order they were made.

mod cluster;
mod gateway;
mod services;

use std::thread;

use chargegate::protocol::ap3000::codes::StartMode;
use cluster::{Cluster, Options};
use gateway::{
    Answer, Gateway, until,
    wire::{Ap3000, Ap3000End, wire_no},
};
use postgres::{Client, NoTls};
use serde_json::json;

const HERE: usize = 0;
const THERE: usize = 1;
const AT_HERE: &str = "40aace04";
const AT_THERE: &str = "41aace04";
const BYSTANDERS: [&str; 2] = ["42aace04", "43aace04"];
const START_FULL: [u8; 9] = [0, 0, 0, 0, 0, 0, 1, 0, 0];
/// Requests that are made while nothing can be committed; and records, which their devices send again and again.
const REFUSED: usize = 150;
/// A gateway that does not bound what waits takes more than this for them.
const GROWTH_MAX: u64 = 64 << 20;

const IMPATIENT: [(&str, &str); 7] = [
    ("CHARGEGATE_STORE_CONNECT_TIMEOUT", "1s"),
    ("CHARGEGATE_STORE_STATEMENT_TIMEOUT", "2s"),
    ("CHARGEGATE_STORE_LOCK_TIMEOUT", "1s"),
    ("CHARGEGATE_HTTP_STORE_TIMEOUT", "1s"),
    ("CHARGEGATE_QUEUE_CONNECT_TIMEOUT", "500ms"),
    ("CHARGEGATE_QUEUE_TIMEOUT", "500ms"),
    ("CHARGEGATE_AP3000_COMMAND_INTERVAL", "0ms"),
];

/// A device that charges for as long as there are faults.
struct Charger {
    device: Ap3000,
    device_id: &'static str,
    order_no: String,
}

impl Charger {
    fn on(cluster: &Cluster, number: usize, device_id: &'static str) -> Self {
        let mut device = Ap3000::online(cluster.gateways[number].devices, device_id, 1);
        cluster.shows(HERE, device_id, number);
        let order_no = charging(cluster, &mut device, device_id);
        Self { device, device_id, order_no }
    }

    /// Sends the record of the charge and gives its message id.
    fn settle(&mut self) -> u16 {
        let number = wire_no(&self.order_no);
        let (start_mode, reason) = (StartMode::ONLINE, 1);
        let end = Ap3000End { port: 0, order_no: number, start_mode, reason, duration_s: 600, energy: 10 };
        self.device.settle(&end)
    }

    /// The record, sent again, is acknowledged, so it is stored; then the next charge begins. Copies sent before may be
    /// acknowledged as well.
    fn is_settled(&mut self, cluster: &Cluster) {
        // One that met a store that failed is not answered: like every device, it sends again.
        let mut sent = vec![self.settle()];
        loop {
            let Some(frame) = self.device.line.frame_soon() else {
                assert!(sent.len() < 600, "the record is not acknowledged");
                sent.push(self.settle());
                continue;
            };
            assert_eq!(frame[11], 0x03, "{frame:02x?}");
            if sent.contains(&u16::from_le_bytes([frame[9], frame[10]])) {
                break;
            }
        }
        let stored = format!(
            "SELECT count(*) FROM settlements s JOIN orders o USING (order_no) \
             WHERE o.order_no = '{}' AND o.settled_at IS NOT NULL AND o.status = 3 AND o.energy_wh = 100",
            self.order_no
        );
        assert_eq!(cluster.number(&stored), 1, "acknowledged, so stored");
        self.device.beat(&[0]);
        self.order_no = charging(cluster, &mut self.device, self.device_id);
    }
}

/// Orders a charge at the first gateway, and starts it.
fn charging(cluster: &Cluster, device: &mut Ap3000, device_id: &str) -> String {
    let order_no = until(&format!("{device_id} takes an order"), || {
        let answer = order(&cluster.gateways[HERE], device_id, 1);
        // What came back a moment ago may be found out only by the next request, and what another gateway knows of a port is
        // as new as its last word.
        (!matches!(answer.status, 409 | 503)).then(|| {
            assert_eq!(answer.status, 202, "{}", answer.text);
            answer.data()["order_no"].as_str().expect("a number").to_owned()
        })
    });
    let number = wire_no(&order_no);
    let msg_id = device.expect_command(0x82, &[&START_FULL[..], &number].concat());
    device.answer(msg_id, 0, 0, number);
    device.report_charging(0, number, 300, 2);
    cluster.gateways[HERE].order_becomes(&order_no, "charging");
    order_no
}

fn order(gateway: &Gateway, device_id: &str, port_no: usize) -> Answer {
    gateway.post(&format!("devices/{device_id}/charge"), &json!({"port_no": port_no, "mode": "full"}))
}

/// Devices that never answer, one at each gateway: what is ordered of them is written at most.
struct Bystanders([Ap3000; 2]);

impl Bystanders {
    fn on(cluster: &Cluster) -> Self {
        let online = |number: usize| {
            let id = BYSTANDERS[number];
            let device = Ap3000::online(cluster.gateways[number].devices, id, 8);
            cluster.shows(HERE, id, number);
            device
        };
        Self([online(HERE), online(THERE)])
    }

    fn beat(&mut self) {
        for device in &mut self.0 {
            device.heartbeat(&[0; 8]);
        }
    }
}

fn healthy(cluster: &Cluster) {
    for gateway in &cluster.gateways {
        let answer = gateway.request("GET", "/healthz", None, None);
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
}

#[test]
fn store_faults_lose_nothing() {
    let options = Options { variables: &IMPATIENT, ..Options::default() };
    let mut cluster = Cluster::start(2, &options);
    let mut chargers = [Charger::on(&cluster, HERE, AT_HERE), Charger::on(&cluster, THERE, AT_THERE)];
    let mut bystanders = Bystanders::on(&cluster);

    for fault in ["stopped", "killed", "hung"] {
        println!("PostgreSQL is {fault}");
        match fault {
            "stopped" => cluster.postgres.stop_fast(),
            "killed" => cluster.postgres.kill9(),
            _ => cluster.postgres.pause(),
        }
        for charger in chargers.iter_mut() {
            charger.settle();
        }
        for number in [HERE, THERE] {
            let reason = cluster.is_not_ready(number, "database");
            println!("gateway {number}: {reason}");
            assert_eq!(cluster.readyz(number).body["redis"]["status"], "ok");
        }
        for charger in &mut chargers {
            // Behind the record, and answered before it.
            charger.device.beat(&[1]);
        }
        bystanders.beat();
        for device_id in BYSTANDERS {
            order(&cluster.gateways[HERE], device_id, 1).refused(503, "NOT_READY");
        }
        let status = cluster.gateways[HERE].get(&format!("devices/{AT_HERE}/status"));
        assert_eq!((status.status, &status.data()["online"]), (200, &json!(true)), "{}", status.text);
        healthy(&cluster);
        if fault == "hung" {
            memory_stays_bounded(&cluster, &mut chargers);
            cluster.postgres.resume();
        } else {
            cluster.postgres.restart();
        }
        for number in [HERE, THERE] {
            cluster.is_ready(number);
        }
        for charger in &mut chargers {
            charger.is_settled(&cluster);
        }
    }
    a_lock_keeps_records_waiting(&cluster, &mut chargers);
    what_comes_and_goes_loses_nothing(&mut cluster, &mut chargers);
    let quarantined = cluster.rows("SELECT device_id, error FROM settlement_quarantine");
    assert!(quarantined.is_empty(), "{quarantined:?}");
    // Nobody was taken for gone.
    let types = "SELECT DISTINCT event_type FROM events WHERE event_type IN ('device.offline', 'order.interrupted')";
    assert_eq!(cluster.rows(types), Vec::<cluster::Row>::new());
    for gateway in &mut cluster.gateways {
        assert!(gateway.sigterm().success());
    }
}

/// Requests are refused and records are sent again, many of them.
fn memory_stays_bounded(cluster: &Cluster, chargers: &mut [Charger; 2]) {
    let before = cluster.gateways[HERE].resident();
    let gateway = &cluster.gateways[HERE];
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let answers = (0..REFUSED / 8).map(|_| order(gateway, BYSTANDERS[HERE], 1));
                answers.for_each(|answer| assert_eq!(answer.status, 503, "{}", answer.text));
            });
        }
        for charger in chargers {
            scope.spawn(|| {
                for _ in 0..REFUSED {
                    charger.settle();
                    charger.device.beat(&[1]);
                }
            });
        }
    });
    let grown = cluster.gateways[HERE].resident().saturating_sub(before);
    assert!(grown < GROWTH_MAX, "{grown} bytes more");
    healthy(cluster);
}

/// Somebody else holds a lock on the orders.
fn a_lock_keeps_records_waiting(cluster: &Cluster, chargers: &mut [Charger; 2]) {
    println!("the orders are locked");
    let mut somebody = Client::connect(&cluster.url, NoTls).expect("it takes connections");
    somebody.batch_execute("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE").expect("in the end");
    for charger in chargers.iter_mut() {
        charger.settle();
    }
    order(&cluster.gateways[HERE], BYSTANDERS[HERE], 2).refused(503, "NOT_READY");
    for charger in chargers.iter_mut() {
        charger.device.beat(&[1]);
    }
    healthy(cluster);
    somebody.batch_execute("ROLLBACK").expect("it was begun");
    for charger in chargers {
        charger.is_settled(cluster);
    }
}

/// The server is killed again and again, while orders are made and records are sent: what was told stays true.
fn what_comes_and_goes_loses_nothing(cluster: &mut Cluster, chargers: &mut [Charger; 2]) {
    println!("PostgreSQL comes and goes");
    let mut told = Vec::new();
    for charger in chargers.iter_mut() {
        charger.settle();
    }
    for port_no in 3..7 {
        cluster.postgres.kill9();
        cluster.postgres.restart();
        let answer = order(&cluster.gateways[HERE], BYSTANDERS[HERE], port_no);
        match answer.data()["order_no"].as_str() {
            Some(order_no) => told.push(order_no.to_owned()),
            None => drop(answer.refused(503, "NOT_READY").to_owned()),
        }
    }
    for number in [HERE, THERE] {
        cluster.is_ready(number);
    }
    for order_no in &told {
        assert_eq!(cluster.number(&format!("SELECT count(*) FROM orders WHERE order_no = '{order_no}'")), 1);
    }
    for charger in chargers {
        charger.is_settled(cluster);
    }
}

#[test]
fn redis_faults_stop_only_what_needs_redis() {
    let options = Options { variables: &IMPATIENT, ..Options::default() };
    let mut cluster = Cluster::start(2, &options);
    let mut chargers = [Charger::on(&cluster, HERE, AT_HERE), Charger::on(&cluster, THERE, AT_THERE)];
    let mut bystanders = Bystanders::on(&cluster);
    for fault in ["killed", "hung"] {
        println!("Redis is {fault}");
        match fault {
            "killed" => cluster.redis.kill9(),
            _ => cluster.redis.pause(),
        }
        for number in [HERE, THERE] {
            let reason = cluster.is_not_ready(number, "redis");
            println!("gateway {number}: {reason}");
            assert_eq!(cluster.readyz(number).body["database"]["status"], "ok");
        }
        healthy(&cluster);
        // Local devices go on: heartbeats, records, and orders asked for where they are.
        for charger in &mut chargers {
            charger.device.beat(&[1]);
        }
        let msg_id = chargers[HERE].settle();
        chargers[HERE].device.expect(msg_id, 0x03, &[0]);
        chargers[HERE].device.beat(&[0]);
        let order_no = charging(&cluster, &mut chargers[HERE].device, AT_HERE);
        chargers[HERE].order_no = order_no;
        // Remote ones cannot be found.
        bystanders.beat();
        order(&cluster.gateways[HERE], BYSTANDERS[THERE], 1).refused(503, "NOT_READY");
        cluster.gateways[HERE].get(&format!("devices/{AT_THERE}/status")).refused(503, "NOT_READY");
        match fault {
            "killed" => cluster.redis.restart(),
            _ => cluster.redis.resume(),
        }
        everything_is_back(&cluster, &mut chargers);
    }
    println!("Redis is emptied");
    cluster.redis.flush();
    everything_is_back(&cluster, &mut chargers);
    println!("Redis comes and goes");
    for _ in 0..4 {
        cluster.redis.restart_empty();
        for charger in &mut chargers {
            charger.device.beat(&[1]);
        }
    }
    everything_is_back(&cluster, &mut chargers);
    let types = "SELECT DISTINCT event_type FROM events WHERE event_type IN ('device.offline', 'order.interrupted')";
    assert_eq!(cluster.rows(types), Vec::<cluster::Row>::new());
    for gateway in &mut cluster.gateways {
        assert!(gateway.sigterm().success());
    }
    for device_id in [AT_HERE, AT_THERE] {
        assert_eq!(cluster.session(device_id), None, "a clean stop removes its sessions");
    }
}

/// The devices are found from everywhere, and what they are told reaches them.
fn everything_is_back(cluster: &Cluster, chargers: &mut [Charger; 2]) {
    for number in [HERE, THERE] {
        cluster.is_ready(number);
        cluster.shows(number, AT_HERE, HERE);
        cluster.shows(number, AT_THERE, THERE);
    }
    for charger in chargers {
        charger.is_settled(cluster);
    }
}
