//! Whatever instance the API is asked at, the command reaches the instance that has the device, once, and every instance tells the
//! same of it.
//!
//! Three gateways: the API is asked at the first, which also delivers the webhooks; devices connect to the others. Scripted devices check each frame byte for byte; a
//! webhook receiver checks each delivery. The second gateway's pause between commands is long, so that a command waits there for as
//! long as the test looks at it.

mod cluster;
mod gateway;
mod services;

use std::{sync::Mutex, thread};

use chargegate::protocol::ap3000::codes::StartMode;
use cluster::{Cluster, Options, assert_tells, assert_whole_story};
use gateway::{
    Gateway,
    receiver::Receiver,
    until,
    wire::{Ap3000, Ap3000End, Bkv, BkvEnd, ap3000_frame, hole, wire_no},
};
use serde_json::{Value, json};

const API: usize = 0;
const SLOW: usize = 1;
const FAST: usize = 2;

#[test]
fn command_reaches_the_other_instance() {
    let receiver = Receiver::start();
    let endpoints = receiver.endpoints();
    let options = Options {
        variables: &[("CHARGEGATE_STORE_FLUSH_INTERVAL", "500ms")],
        own: &[
            (API, "CHARGEGATE_WEBHOOK_ALLOW_PRIVATE_TARGETS", "true"),
            (API, "CHARGEGATE_WEBHOOK_ENDPOINTS", &endpoints),
            (SLOW, "CHARGEGATE_AP3000_COMMAND_INTERVAL", "60s"),
            (FAST, "CHARGEGATE_AP3000_COMMAND_INTERVAL", "0ms"),
        ],
        ..Options::default()
    };
    let cluster = Cluster::start(3, &options);
    // Each with a device of its own; one at a time, because what a process holds of the cluster is not for threads.
    a_charge_runs_from_order_to_bill(&cluster, &receiver);
    a_bkv_charge_is_stopped(&cluster, &receiver);
    named_commands_and_parameters_are_answered(&cluster);
    lists_show_all_instances(&cluster);
    a_device_that_is_gone_takes_no_order(&cluster);
    a_parked_command_goes_out_where_the_device_comes_back(&cluster);
    a_waiting_command_moves_with_its_device(&cluster);
    the_newest_connection_owns_the_device(&cluster);
    concurrent_starts_of_one_port_make_one_order(&cluster);
}

/// Every instance tells the same story of an order, and so do the webhooks.
fn check_story(cluster: &Cluster, receiver: &Receiver, order_no: &str, expected: &[&str]) {
    let delivered = receiver.events_of(order_no, expected.last().expect("a story has an end"));
    assert_whole_story(&delivered, expected);
    for gateway in &cluster.gateways {
        assert_tells(gateway, order_no, expected);
        let logged = gateway.events_of(order_no);
        let ids = |events: &[Value]| events.iter().map(|event| event["event_id"].clone()).collect::<Vec<_>>();
        assert_eq!(ids(&logged), ids(&delivered));
    }
}

fn a_charge_runs_from_order_to_bill(cluster: &Cluster, receiver: &Receiver) {
    let device_id = "40aace04";
    let api = &cluster.gateways[API];
    let mut device = Ap3000::online(cluster.gateways[FAST].devices, device_id, 2);
    let shown = cluster.shows(API, device_id, FAST);
    assert_eq!((&shown["score"], &shown["protocol"]), (&json!(100), &json!("ap3000")), "{shown}");
    let whole = api.get(&format!("devices/{device_id}"));
    assert_eq!((&whole.data()["instance"], &whole.data()["online"]), (&shown["instance"], &json!(true)));

    let order_no = api.charge(device_id, &json!({"port_no": 2, "mode": "time", "duration_minutes": 90}));
    let number = wire_no(&order_no);
    let msg_id = device.expect_command(0x82, &[&[0, 0, 0, 0, 0, 1, 1, 0x18, 0x15], &number[..]].concat());
    device.answer(msg_id, 0, 1, number);
    api.order_becomes(&order_no, "confirmed");
    device.report_charging(1, number, 300, 2);
    api.order_becomes(&order_no, "charging");
    until("the first gateway shows the charging port", || {
        let port = api.knows_port(device_id, 2);
        (port["status_text"] == "charging" && port["order_no"] == json!(order_no)).then_some(())
    });
    let active = api.get(&format!("devices/{device_id}")).data()["active_orders"].clone();
    assert_eq!(active[0]["order_no"], json!(order_no), "{active}");

    let stop = api.post(&format!("devices/{device_id}/stop"), &json!({"port_no": 2}));
    assert_eq!((stop.status, &stop.data()["status_text"]), (202, &json!("stopping")), "{}", stop.text);
    let msg_id = device.expect_command(0x82, &[&[0, 0, 0, 0, 0, 1, 0, 0, 0], &number[..]].concat());
    device.answer(msg_id, 0, 1, number);
    api.order_becomes(&order_no, "stopped");
    let (start_mode, reason) = (StartMode::ONLINE, 7);
    let end = Ap3000End { port: 1, order_no: number, start_mode, reason, duration_s: 400, energy: 3 };
    let msg_id = device.settle(&end);
    device.expect(msg_id, 0x03, &[0]);
    let done = api.order(&order_no);
    assert_eq!((&done["energy_wh"], &done["duration_seconds"]), (&json!(30), &json!(400)), "{done}");
    let story = [
        "order.created",
        "order.confirmed",
        "charging.started",
        "order.stopping",
        "charging.ended",
        "order.stopped",
        "order.settled",
    ];
    check_story(cluster, receiver, &order_no, &story);
    device.beat(&[0, 0]);
}

fn a_bkv_charge_is_stopped(cluster: &Cluster, receiver: &Receiver) {
    let gateway_id = "86100000000001";
    let api = &cluster.gateways[API];
    let mut device = Bkv::standalone(cluster.gateways[FAST].devices, gateway_id);
    cluster.shows(API, gateway_id, FAST);
    until("hole 1 is known to be idle", || (api.knows_port(gateway_id, 2)["status_text"] == "idle").then_some(()));
    let order_no = api.charge(gateway_id, &json!({"port_no": 2, "mode": "time", "duration_minutes": 240}));
    let sequence = device.expect_command(0x0015, &[0, 8, 0x07, 0, 1, 1, 1, 0, 240, 0, 0]);
    device.answer(sequence, 0x07, 1, 0, 1, 77);
    assert_eq!(api.order_becomes(&order_no, "confirmed")["business_no"], 77);
    let cancel = api.post(&format!("orders/{order_no}/cancel"), &json!({}));
    assert_eq!((cancel.status, &cancel.data()["status_text"]), (202, &json!("cancelling")), "{}", cancel.text);
    let sequence = device.expect_command(0x0015, &[0, 8, 0x07, 0, 1, 0, 1, 0, 0, 0, 0]);
    device.settle(&BkvEnd { socket: 0, hole: 1, status: 0x90, business_no: 77, energy_wh: 1, minutes: 1 });
    device.answer(sequence, 0x07, 1, 0, 1, 77);
    device.expect_answer(0x0015, &[0, 2, 0x0C, 0, 1]);
    api.order_becomes(&order_no, "cancelled");
    let story = ["order.created", "order.confirmed", "order.cancelling", "order.cancelled", "order.settled"];
    check_story(cluster, receiver, &order_no, &story);
}

/// Queues a command and gives its id.
fn command(gateway: &Gateway, device_id: &str, body: &Value) -> i64 {
    let answer = gateway.post(&format!("devices/{device_id}/commands"), body);
    assert_eq!(answer.status, 202, "{}", answer.text);
    answer.data()["command_id"].as_i64().expect("an id")
}

fn command_becomes(gateway: &Gateway, device_id: &str, id: i64, state: &str) -> Value {
    let mut last = Value::Null;
    until(&format!("command {id} is {state}"), || {
        last = gateway.get(&format!("devices/{device_id}/commands/{id}")).data().clone();
        (last["state"] == state).then(|| last.clone())
    })
}

fn reply(device: &mut Ap3000, msg_id: u16, command: u8, data: &[u8]) {
    let frame = ap3000_frame(device.phy_id, msg_id, command, data);
    device.line.send(&frame);
}

fn named_commands_and_parameters_are_answered(cluster: &Cluster) {
    let device_id = "41aace04";
    let api = &cluster.gateways[API];
    let mut device = Ap3000::online(cluster.gateways[FAST].devices, device_id, 1);
    cluster.shows(API, device_id, FAST);
    let id = command(api, device_id, &json!({"command": "locate", "seconds": 10}));
    let msg_id = device.expect_command(0x96, &[10]);
    reply(&mut device, msg_id, 0x96, &[0]);
    for gateway in &cluster.gateways {
        assert_eq!(command_becomes(gateway, device_id, id, "acked")["attempts"], 1);
    }
    let wanted = json!({"params": {"heartbeat_interval_s": 60}});
    let answer = api.post(&format!("devices/{device_id}/params"), &wanted);
    assert_eq!((answer.status, &answer.data()["pending"]), (202, &json!(true)), "{}", answer.text);
    let msg_id = device.expect_command(0x90, &[]);
    reply(&mut device, msg_id, 0x90, &[3, 0, 10, 0, 20, 8, 7, 0x10, 0x0E, 180, 0]);
    let has = [3, 0, 10, 0, 20, 8, 7, 0x10, 0x0E, 60, 0];
    let msg_id = device.expect_command(0x83, &has);
    reply(&mut device, msg_id, 0x83, &[0]);
    let msg_id = device.expect_command(0x90, &[]);
    reply(&mut device, msg_id, 0x90, &has);
    until("no parameter is pending", || {
        let answer = api.get(&format!("devices/{device_id}/params"));
        (answer.data()["pending"] == false).then_some(())
    });
}

/// The page of devices that a filter gives, by id.
fn listed(gateway: &Gateway, filter: &str) -> Vec<String> {
    let answer = gateway.get(&format!("devices?size=200{filter}"));
    assert_eq!(answer.status, 200, "{}", answer.text);
    let items = answer.data()["items"].as_array().expect("a list");
    assert_eq!(answer.data()["total"], json!(items.len()));
    items.iter().filter_map(|item| item["device_id"].as_str()).map(str::to_owned).collect()
}

fn lists_show_all_instances(cluster: &Cluster) {
    let ids = ["42aace04", "43aace04", "44aace04"];
    let devices: Vec<_> =
        ids.iter().zip(&cluster.gateways).map(|(id, gateway)| Ap3000::online(gateway.devices, id, 1)).collect();
    for (at, gateway) in cluster.gateways.iter().enumerate() {
        for (on, id) in ids.iter().enumerate() {
            cluster.shows(at, id, on);
        }
        let all = listed(gateway, "");
        assert!(ids.iter().all(|id| all.iter().any(|listed| listed == id)), "{all:?}");
        // The filter follows a little later.
        until(&format!("gateway {at} lists them as online"), || {
            let [online, offline] = ["true", "false"].map(|which| listed(gateway, &format!("&online={which}")));
            let all_of_them = |listed: &[String]| ids.iter().all(|id| listed.iter().any(|listed| listed == id));
            let none_of_them = |listed: &[String]| !listed.iter().any(|listed| ids.contains(&listed.as_str()));
            (all_of_them(&online) && none_of_them(&offline)).then_some(())
        });
        for item in gateway.get("devices?size=200").data()["items"].as_array().expect("a list") {
            if let Some(on) = ids.iter().position(|id| item["device_id"] == *id) {
                assert_eq!(item["instance"], json!(cluster.server_id(on)), "{item}");
                assert_eq!(item["online"], true, "{item}");
            }
        }
    }
    drop(devices);
}

fn a_device_that_is_gone_takes_no_order(cluster: &Cluster) {
    let device_id = "45aace04";
    let api = &cluster.gateways[API];
    let device = Ap3000::online(cluster.gateways[FAST].devices, device_id, 1);
    cluster.shows(API, device_id, FAST);
    device.line.hang_up();
    let order = json!({"port_no": 1, "mode": "full"});
    // The others hear of it a little later. An order that was taken in between is nobody's to write, and times out.
    until("the device is offline at the first gateway", || {
        let answer = api.post(&format!("devices/{device_id}/charge"), &order);
        (answer.body["error"] == "DEVICE_OFFLINE").then(|| answer.refused(400, "DEVICE_OFFLINE").to_owned())
    });
    let session = cluster.session(device_id).expect("it is kept for a while");
    assert_eq!((&session["conn_id"], &session["server_id"]), (&Value::Null, &json!(cluster.server_id(FAST))));
}

fn a_parked_command_goes_out_where_the_device_comes_back(cluster: &Cluster) {
    let device_id = "46aace04";
    let api = &cluster.gateways[API];
    let device = Ap3000::online(cluster.gateways[SLOW].devices, device_id, 1);
    cluster.shows(API, device_id, SLOW);
    device.line.hang_up();
    until("the device is gone", || cluster.session(device_id).is_some_and(|it| it["conn_id"].is_null()).then_some(()));
    let id = command(api, device_id, &json!({"command": "locate", "seconds": 3, "valid_seconds": 3600}));
    assert_eq!(command_becomes(api, device_id, id, "queued")["attempts"], 0);
    let mut device = Ap3000::connect(cluster.gateways[FAST].devices, device_id);
    device.beat(&[0]);
    let msg_id = device.expect_command(0x96, &[3]);
    reply(&mut device, msg_id, 0x96, &[0]);
    command_becomes(api, device_id, id, "acked");
    // Nothing else was waiting for it.
    device.beat(&[0]);
}

fn a_waiting_command_moves_with_its_device(cluster: &Cluster) {
    let device_id = "47aace04";
    let api = &cluster.gateways[API];
    let mut old = Ap3000::online(cluster.gateways[SLOW].devices, device_id, 1);
    cluster.shows(API, device_id, SLOW);
    let first = command(api, device_id, &json!({"command": "locate", "seconds": 1, "valid_seconds": 3600}));
    let msg_id = old.expect_command(0x96, &[1]);
    reply(&mut old, msg_id, 0x96, &[0]);
    command_becomes(api, device_id, first, "acked");
    // The pause between commands keeps this one in the slow gateway's lane.
    let second = command(api, device_id, &json!({"command": "locate", "seconds": 2, "valid_seconds": 3600}));
    command_becomes(api, device_id, second, "claimed");
    let before = cluster.epoch(device_id);
    let mut new = Ap3000::connect(cluster.gateways[FAST].devices, device_id);
    new.beat(&[0]);
    let msg_id = new.expect_command(0x96, &[2]);
    reply(&mut new, msg_id, 0x96, &[0]);
    let done = command_becomes(api, device_id, second, "acked");
    assert_eq!(done["attempts"], 1, "{done}");
    assert!(cluster.epoch(device_id) > before);
    // The old connection had nothing since the first command.
    old.line.hang_up();
    old.line.expect_silent_end();
    new.beat(&[0]);
}

fn the_newest_connection_owns_the_device(cluster: &Cluster) {
    let api = &cluster.gateways[API];
    let gateway_id = "86100000000002";
    let mut old = Bkv::standalone(cluster.gateways[SLOW].devices, gateway_id);
    cluster.shows(API, gateway_id, SLOW);
    let mut new = Bkv::connect(cluster.gateways[FAST].devices, gateway_id);
    new.beat();
    // Its old connection ends at the other gateway.
    old.line.expect_end();
    cluster.shows(API, gateway_id, FAST);
    let order_no = api.charge(gateway_id, &json!({"port_no": 1, "mode": "time", "duration_minutes": 60}));
    let start = [0, 8, 0x07, 0, 0, 1, 1, 0, 60, 0, 0];
    // It may be asked for its holes first: the new gateway has never seen them.
    let frame = new.line.frame();
    let mut sequence = u32::from_be_bytes([frame[6], frame[7], frame[8], frame[9]]);
    if frame[18..frame.len() - 3] != start {
        new.answer_query(sequence, 0, &[hole(0, 0x80, 0), hole(1, 0x80, 0)]);
        sequence = new.expect_command(0x0015, &start);
    }
    new.answer(sequence, 0x07, 1, 0, 0, 5);
    api.order_becomes(&order_no, "confirmed");

    // An AP3000 socket only loses the id.
    let device_id = "48aace04";
    let mut old = Ap3000::online(cluster.gateways[SLOW].devices, device_id, 1);
    cluster.shows(API, device_id, SLOW);
    let mut new = Ap3000::connect(cluster.gateways[FAST].devices, device_id);
    new.beat(&[0]);
    cluster.shows(API, device_id, FAST);
    let epoch = cluster.epoch(device_id);
    until("the slow gateway has let go", || {
        (cluster.gateways[SLOW].get(&format!("devices/{device_id}/status")).data()["instance"]
            == json!(cluster.server_id(FAST)))
        .then_some(())
    });
    // The old one never takes the id back while the newer lives.
    old.heartbeat(&[0]);
    let order_no = api.charge(device_id, &json!({"port_no": 1, "mode": "full"}));
    let number = wire_no(&order_no);
    let msg_id = new.expect_command(0x82, &[&[0, 0, 0, 0, 0, 0, 1, 0, 0], &number[..]].concat());
    new.answer(msg_id, 0, 0, number);
    api.order_becomes(&order_no, "confirmed");
    assert_eq!(cluster.epoch(device_id), epoch);
}

/// The same port is ordered at all instances at once.
fn concurrent_starts_of_one_port_make_one_order(cluster: &Cluster) {
    let device_id = "49aace04";
    let mut device = Ap3000::online(cluster.gateways[FAST].devices, device_id, 1);
    for at in 0..cluster.gateways.len() {
        cluster.shows(at, device_id, FAST);
    }
    let order = json!({"port_no": 1, "mode": "full"});
    let answers = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for gateway in cluster.gateways.iter().flat_map(|gateway| [gateway, gateway]) {
            scope.spawn(|| {
                let answer = gateway.post(&format!("devices/{device_id}/charge"), &order);
                answers.lock().expect("nobody panicked").push(answer);
            });
        }
    });
    let answers = answers.into_inner().expect("nobody panicked");
    let taken: Vec<_> = answers.iter().filter(|answer| answer.status == 202).collect();
    assert_eq!(taken.len(), 1, "{answers:?}");
    for answer in answers.iter().filter(|answer| answer.status != 202) {
        answer.refused(409, "PORT_BUSY");
    }
    let number = wire_no(taken[0].data()["order_no"].as_str().expect("a number"));
    let msg_id = device.expect_command(0x82, &[&[0, 0, 0, 0, 0, 0, 1, 0, 0], &number[..]].concat());
    device.answer(msg_id, 0, 0, number);
    device.beat(&[1]);
}
