//! An instance that is drained loses nothing: its devices go elsewhere, one after another, and come back when it takes them again.
//!
//! - Alone, on both engines: who was told something is closed after its answer; listeners are closed meanwhile, and open again.
//! - Two instances, two hundred devices, third parties who charge, stop, cancel, command and read all the time: one instance is
//!   drained, then taken back, then the other. All devices are at the other one then; nobody was declared offline; every order and
//!   record is accounted for, by the devices' own books.

mod cluster;
#[macro_use]
mod gateway;
mod services;
mod storm;
mod witness;

use std::{
    collections::BTreeMap,
    net::TcpStream,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

use chargegate_loadtest::engine::Clock;
use cluster::{Cluster, Options};
use gateway::{
    Answer, Engine, Gateway, KEY, until,
    wire::{Ap3000, Bkv, wire_no},
};
use serde_json::{Value, json};
use storm::{
    Client, MS, Party, SetOnDrop, Told, answers_are_kept, device, drive, pause,
    verdict::{check, what_is_open},
};
use witness::{Draws, Shared, books::Books};

const DRAIN: &str = "/api/v1/admin/drain";
const CHARGER: &str = "40aace04";
const STANDALONE: &str = "86100000000001";
const DEVICES: u32 = 200;
const PARTIES: u64 = 3;
/// Everything has come to rest after this time, or never will.
const REST_US: u64 = 120_000 * MS;

on_both_engines! {
    who_was_told_something_goes_last_and_all_may_come_back
}

fn drain(gateway: &Gateway, draining: bool) -> Answer {
    let answer = gateway.post(DRAIN, &json!({ "draining": draining }));
    assert_eq!((answer.status, &answer.data()["draining"]), (202, &json!(draining)), "{}", answer.text);
    answer
}

fn connections(gateway: &Gateway) -> u64 {
    let answer = gateway.get(DRAIN);
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.data()["connections"].as_u64().expect("a number")
}

fn who_was_told_something_goes_last_and_all_may_come_back(engine: Engine) {
    let reader =
        json!([{"name": "tests", "key": KEY}, {"name": "reader", "key": "key-of-a-reader", "scopes": ["read"]}]);
    let Some(mut gateway) = Gateway::start(engine, &[("CHARGEGATE_API_KEYS", &reader.to_string())]) else { return };
    let mut charger = Ap3000::online(gateway.devices, CHARGER, 2);
    let mut standalone = Bkv::standalone(gateway.devices, STANDALONE);
    gateway.knows_port(CHARGER, 2);
    gateway.knows_port(STANDALONE, 1);
    assert_eq!(connections(&gateway), 2);
    gateway.request("POST", DRAIN, Some("key-of-a-reader"), Some(&json!({"draining": true}))).refused(403, "FORBIDDEN");
    for body in [json!({}), json!({"draining": "yes"}), json!({"draining": true, "now": true})] {
        gateway.post(DRAIN, &body).refused(400, "INVALID_PARAMETER");
    }

    let order_no = gateway.charge(CHARGER, &json!({"port_no": 1, "mode": "full"}));
    let number = wire_no(&order_no);
    let msg_id = charger.expect_command(0x82, &[&[0, 0, 0, 0, 0, 0, 1, 0, 0], &number[..]].concat());
    drain(&gateway, true);
    standalone.line.expect_end();
    let ready = gateway.request("GET", "/readyz", None, None);
    assert_eq!((ready.status, &ready.body["stage"]), (503, &json!("draining")), "{}", ready.text);
    assert_eq!(gateway.request("GET", "/healthz", None, None).status, 200, "alive all the same");
    assert_eq!(gateway.metric("chargegate_draining"), 1);
    until("nobody listens", || TcpStream::connect(gateway.devices).is_err().then_some(()));
    // The charger is still there, because it owes an answer; with it, it may go.
    charger.answer(msg_id, 0, 0, number);
    charger.line.expect_end();
    gateway.order_becomes(&order_no, "confirmed");
    until("all are gone", || (connections(&gateway) == 0).then_some(()));
    // Those who looked whether somebody listens may be among them.
    assert!(gateway.metric("chargegate_tcp_closed_total{reason=\"drain\"}") >= 2);
    assert_eq!(drain(&gateway, true).data()["connections"], 0, "again is the same");
    // What they may do here does not depend on the devices.
    assert_eq!(gateway.get("devices").data()["total"], 2);
    gateway
        .post(&format!("devices/{STANDALONE}/charge"), &json!({"port_no": 1, "mode": "time", "duration_minutes": 9}))
        .refused(400, "DEVICE_OFFLINE");

    drain(&gateway, false);
    assert_eq!(gateway.request("GET", "/readyz", None, None).status, 200);
    assert_eq!(gateway.metric("chargegate_draining"), 0);
    until("somebody listens", || TcpStream::connect(gateway.devices).ok());
    let mut charger = Ap3000::online(gateway.devices, CHARGER, 2);
    // A report that comes before its bind is committed is nobody's: devices go on reporting.
    until("the order is charging", || {
        charger.report_charging(0, number, 30, 1);
        (gateway.order(&order_no)["status_text"] == "charging").then_some(())
    });
    let log = gateway.log();
    let audits: Vec<_> = log.lines().filter(|line| line.contains("chargegate::audit")).collect();
    assert_eq!(audits.len(), 3, "{audits:?}");
    for part in ["\"key\":\"tests\"", "\"action\":\"drain\"", "\"subject\":\"true\"", "\"request_id\":\""] {
        assert!(audits[0].contains(part), "{part}: {}", audits[0]);
    }
    // A stop in the middle of a drain is a stop.
    drain(&gateway, true);
    assert_eq!(gateway.sigterm().code(), Some(0));
    charger.line.expect_end();
}

#[test]
fn two_hundred_devices_move_and_nothing_is_lost() {
    let clock = Clock::start();
    let variables = [("CHARGEGATE_SHUTDOWN_DRAIN_PER_S", "100"), ("CHARGEGATE_LOG_LEVEL", "warn")];
    let cluster = Cluster::start(2, &Options { variables: &variables, ..Options::default() });
    let devices_at: Vec<_> = cluster.gateways.iter().map(|gateway| gateway.devices).collect();
    let client = Client::new(&cluster.gateways.iter().map(|gateway| gateway.http).collect::<Vec<_>>());
    let devices: Vec<_> = (0..DEVICES).map(|index| device(index, true)).collect();
    let ids: Vec<_> = devices.iter().map(|(id, ..)| id.clone()).collect();
    let seen: BTreeMap<String, Shared> = devices.iter().map(|(id, _, seen)| (id.clone(), seen.clone())).collect();
    let (no_devices, no_parties, told) = (AtomicBool::new(false), AtomicBool::new(false), Mutex::<Told>::default());
    thread::scope(|scope| {
        for (_, mut device, _) in devices {
            let (devices_at, no_devices) = (&devices_at, &no_devices);
            // All at the first instance; a device that is refused goes to the other.
            scope.spawn(move || drive(device.as_mut(), clock, devices_at, 0, &|| no_devices.load(Relaxed)));
        }
        let _ends = (SetOnDrop(&no_devices), SetOnDrop(&no_parties));
        are_online_at(&cluster, 0);
        for number in 0..PARTIES {
            let (client, draws) = (client.clone(), Draws::new(number));
            let party = Party { number, client, draws, devices: &ids, told: &told, stop: &no_parties };
            scope.spawn(move || party.run());
        }
        for from in [0, 1] {
            let to = 1 - from;
            let orders = || told.lock().unwrap().orders.len();
            let before = orders();
            until("there are charges", || (orders() > before + 20).then_some(()));
            drain(&cluster.gateways[from], true);
            let draining = json!({ "server_id": cluster.server_id(from), "draining": true });
            until("the other one knows", || {
                let instances = cluster.gateways[to].get("/api/v1/admin/instances");
                let known =
                    |one: &Value| json!({"server_id": one["server_id"], "draining": one["draining"]}) == draining;
                instances.data().as_array()?.iter().any(known).then_some(())
            });
            assert_eq!(cluster.readyz(from).status, 503);
            are_online_at(&cluster, to);
            assert_eq!(connections(&cluster.gateways[from]), 0);
            println!("all are at {to}, with {} orders", orders());
            // Requests go to both instances all the time: orders go on by way of the one without devices, too.
            let before = orders();
            until("orders go on", || (orders() > before + 20).then_some(()));
            drain(&cluster.gateways[from], false);
            cluster.is_ready(from);
        }
        no_parties.store(true, Relaxed);
        println!("no more orders");
        let books = Books::postgres(&cluster.url);
        let rested_by = clock.now_us() + REST_US;
        while let Some(open) = what_is_open(&books, seen.values()) {
            assert!(clock.now_us() < rested_by, "{open}");
            pause(100);
        }
        println!("everything has come to rest");
        answers_are_kept(&client, &told.lock().unwrap());
        let offline = books.events().into_iter().filter(|event| event.event_type == "device.offline").count();
        assert_eq!(offline, 0, "a device was declared offline");
    });
    let Cluster { mut gateways, url, .. } = cluster;
    for gateway in &mut gateways {
        assert!(gateway.sigterm().success(), "a stop that is not clean");
    }
    check(&Books::postgres(&url), &seen, &told.lock().unwrap());
}

/// Waits until every device is connected to an instance and online, as both instances tell it.
fn are_online_at(cluster: &Cluster, number: usize) {
    let instance = cluster.server_id(number);
    for gateway in &cluster.gateways {
        until(&format!("all devices are at {number}"), || {
            let answer = gateway.get(&format!("devices?online=true&size={DEVICES}"));
            // A reader may be behind for a moment.
            let items = answer.data()["items"].as_array()?;
            let there = items.iter().filter(|one| one["instance"] == *instance && !one["connected_at"].is_null());
            (there.count() == DEVICES as usize).then_some(())
        });
    }
}
