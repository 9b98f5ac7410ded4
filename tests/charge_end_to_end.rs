//! A charge goes from the third party's request to its bill, and every party sees the same.
//!
//! The real process, a scripted device on a real socket, the REST API and a webhook receiver. The device checks each frame it is sent
//! byte for byte; the receiver checks both signatures of each delivery; what was stored is read from the database itself.

#[macro_use]
mod gateway;

use std::thread;

use chargegate::protocol::ap3000::codes::StartMode;
use gateway::{
    Engine, Gateway,
    receiver::Receiver,
    until,
    wire::{Ap3000, Ap3000End, Bkv, BkvEnd, hole, wire_no},
};
use serde_json::{Value, json};

const CHARGER: &str = "40aace04";
const GATEWAY: &str = "86100000000001";

on_both_engines! {
    an_ap3000_charge_is_billed_once_and_told_in_order
    a_bkv_charge_is_billed_once_and_told_in_order
    a_settlement_is_acknowledged_after_its_commit_and_not_before
    ap3000_starts_say_what_was_ordered
    bkv_starts_say_what_was_ordered
    a_running_charge_is_stopped
    a_stop_that_the_end_report_overtakes_is_a_stop
    a_confirmed_charge_is_cancelled
    sockets_number_their_ports
    an_offline_card_becomes_an_order_of_the_device
    a_gn_listener_makes_gn_devices
    a_device_without_connection_takes_no_order
    one_port_takes_one_order
    a_refused_start_fails
}

fn start(engine: Engine) -> Option<(Gateway, Receiver)> {
    let receiver = Receiver::start();
    let endpoints = receiver.endpoints();
    let variables =
        [("CHARGEGATE_WEBHOOK_ALLOW_PRIVATE_TARGETS", "true"), ("CHARGEGATE_WEBHOOK_ENDPOINTS", &endpoints)];
    Some((Gateway::start(engine, &variables)?, receiver))
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["event_type"].as_str()).collect()
}

/// Checks that webhooks and event log tell of an order the same, in the same order and without a gap.
fn check_story(gateway: &Gateway, receiver: &Receiver, order_no: &str, expected: &[&str]) {
    let last = expected.last().expect("a story has an end");
    let delivered = receiver.events_of(order_no, last);
    assert_eq!(types(&delivered), expected);
    let numbers: Vec<u64> = delivered.iter().filter_map(|event| event["sequence_no"].as_u64()).collect();
    assert_eq!(numbers, (1..=expected.len() as u64).collect::<Vec<_>>());
    let logged = gateway.events_of(order_no);
    let without_nonce = delivered.into_iter().map(|mut event| {
        event.as_object_mut().expect("an object").remove("nonce");
        event
    });
    assert_eq!(logged, without_nonce.collect::<Vec<_>>());
    let of_order = gateway.get(&format!("orders/{order_no}/events")).data()["items"].clone();
    assert_eq!(of_order, Value::from(logged));
}

const A_WHOLE_CHARGE: [&str; 6] =
    ["order.created", "order.confirmed", "charging.started", "charging.ended", "order.completed", "order.settled"];

fn an_ap3000_charge_is_billed_once_and_told_in_order(engine: Engine) {
    let Some((gateway, receiver)) = start(engine) else { return };
    let mut device = Ap3000::online(gateway.devices, CHARGER, 2);
    assert_eq!(gateway.knows_port(CHARGER, 2)["status_text"], "idle");

    let order = json!({"port_no": 2, "mode": "time", "duration_minutes": 90, "paid_cent": 250});
    let order_no = gateway.charge(CHARGER, &order);
    let number = wire_no(&order_no);
    // Rate mode 0, balance 2.50, port 1 on the wire, start, 5,400 s.
    let msg_id = device.expect_command(0x82, &[&[0, 250, 0, 0, 0, 1, 1, 0x18, 0x15], &number[..]].concat());
    assert_eq!(gateway.order(&order_no)["status_text"], "pending");
    device.answer(msg_id, 0, 1, number);
    gateway.order_becomes(&order_no, "confirmed");
    device.report_charging(1, number, 300, 2);
    let charging = gateway.order_becomes(&order_no, "charging");
    assert!(charging["start_time"].is_string() && charging["end_time"].is_null(), "{charging}");
    let port = gateway.knows_port(CHARGER, 2);
    assert_eq!((&port["status_text"], &port["order_no"]), (&json!("charging"), &json!(order_no)));

    let end = Ap3000End {
        port: 1,
        order_no: number,
        start_mode: StartMode::ONLINE,
        reason: 1,
        duration_s: 5_000,
        energy: 123,
    };
    let msg_id = device.settle(&end);
    device.expect(msg_id, 0x03, &[0]);
    // The port is free again before a heartbeat says so.
    assert_eq!(gateway.knows_port(CHARGER, 2)["status_text"], "finished");
    let settled: Option<i64> = gateway
        .database()
        .query_row("SELECT settled_at FROM orders WHERE order_no = ?1", [&order_no], |row| row.get(0))
        .expect("the row is there");
    assert!(settled.is_some(), "acknowledged, so stored");
    let done = gateway.order_becomes(&order_no, "completed");
    let totals =
        ["duration_seconds", "energy_wh", "end_reason", "end_reason_raw", "paid_cent"].map(|field| &done[field]);
    assert_eq!(totals, [&json!(5_000), &json!(1_230), &json!("full"), &json!(1), &json!(250)]);

    // The device did not hear the acknowledgement: it sends its record again, under a new message id.
    let again = device.settle(&end);
    device.expect(again, 0x03, &[0]);
    check_story(&gateway, &receiver, &order_no, &A_WHOLE_CHARGE);
    let stored: i64 =
        gateway.database().query_row("SELECT count(*) FROM settlements", [], |row| row.get(0)).expect("a number");
    assert_eq!(stored, 1);
    assert_eq!(gateway.metric("chargegate_orders_created_total"), 1);
    assert_eq!(gateway.metric("chargegate_orders_completed_total"), 1);
}

fn a_bkv_charge_is_billed_once_and_told_in_order(engine: Engine) {
    let Some((gateway, receiver)) = start(engine) else { return };
    let mut device = Bkv::standalone(gateway.devices, GATEWAY);
    gateway.knows_port(GATEWAY, 2);
    until("hole 1 is known to be idle", || (gateway.knows_port(GATEWAY, 2)["status_text"] == "idle").then_some(()));

    let order_no = gateway.charge(GATEWAY, &json!({"port_no": 2, "mode": "time", "duration_minutes": 240}));
    // Socket 0, hole 1, on, by time, 240 min, no energy.
    let sequence = device.expect_command(0x0015, &[0, 8, 0x07, 0, 1, 1, 1, 0, 240, 0, 0]);
    device.answer(sequence, 0x07, 1, 0, 1, 77);
    assert_eq!(gateway.order_becomes(&order_no, "confirmed")["business_no"], 77);
    device.push(0, &[hole(0, 0x80, 0), hole(1, 0x90, 77)]);
    gateway.order_becomes(&order_no, "charging");

    let end = BkvEnd { socket: 0, hole: 1, status: 0xB0, business_no: 77, energy_wh: 812, minutes: 240 };
    device.settle(&end);
    device.expect_answer(0x0015, &[0, 2, 0x0C, 0, 1]);
    let done = gateway.order(&order_no);
    let totals = ["status_text", "duration_seconds", "energy_wh", "end_reason"].map(|field| &done[field]);
    assert_eq!(totals, [&json!("completed"), &json!(14_400), &json!(812), &json!("quota_reached")]);

    // Sent again although it was acknowledged: the answer comes in both forms that devices are known to take.
    device.settle(&end);
    device.expect_answer(0x0015, &[0, 2, 0x0C, 0, 1]);
    device.expect_answer(0x0015, &[0, 2, 0x02, 0, 1]);
    check_story(&gateway, &receiver, &order_no, &A_WHOLE_CHARGE);
}

fn a_settlement_is_acknowledged_after_its_commit_and_not_before(engine: Engine) {
    let Some(gateway) = Gateway::start(engine, &[]) else { return };
    let mut device = Ap3000::online(gateway.devices, CHARGER, 1);
    gateway.knows_port(CHARGER, 1);
    let order_no = gateway.charge(CHARGER, &json!({"port_no": 1, "mode": "full"}));
    let number = wire_no(&order_no);
    let msg_id = device.expect_command(0x82, &[&[0, 0, 0, 0, 0, 0, 1, 0, 0], &number[..]].concat());
    device.answer(msg_id, 0, 0, number);
    device.report_charging(0, number, 300, 2);
    gateway.order_becomes(&order_no, "charging");

    // While somebody else writes to the database, nothing can be committed.
    let database = gateway.database();
    database.execute_batch("BEGIN IMMEDIATE").expect("the writer is idle");
    let (start_mode, reason) = (StartMode::ONLINE, 5);
    let end = Ap3000End { port: 0, order_no: number, start_mode, reason, duration_s: 600, energy: 10 };
    let settled = device.settle(&end);
    // The heartbeat came later and is answered first.
    device.beat(&[1]);
    assert_eq!(gateway.order(&order_no)["status_text"], "charging");
    database.execute_batch("ROLLBACK").expect("it was begun");
    device.expect(settled, 0x03, &[0]);
    let done = gateway.order(&order_no);
    assert_eq!((&done["status_text"], &done["end_reason"]), (&json!("completed"), &json!("unplugged")));
}

fn ap3000_starts_say_what_was_ordered(engine: Engine) {
    let Some(gateway) = Gateway::start(engine, &[]) else { return };
    let mut device = Ap3000::online(gateway.devices, CHARGER, 4);
    gateway.knows_port(CHARGER, 4);
    let longest = json!({"port_no": 1, "mode": "time", "duration_minutes": 1092});
    let energy = json!({"port_no": 2, "mode": "energy", "energy_wh": 655_350, "paid_cent": 100_000});
    let full = json!({"port_no": 3, "mode": "full"});
    // The full stop is the eighth optional field; those before it keep the device's own settings.
    let until_full = json!({"port_no": 4, "mode": "time", "duration_minutes": 60, "stop_when_full": true});
    let starts: [(&Value, [u8; 9], &[u8]); 4] = [
        (&longest, [0, 0, 0, 0, 0, 0, 1, 0xF0, 0xFF], &[]),
        (&energy, [2, 0xA0, 0x86, 1, 0, 1, 1, 0xFF, 0xFF], &[]),
        (&full, [0, 0, 0, 0, 0, 2, 1, 0, 0], &[]),
        (&until_full, [0, 0, 0, 0, 0, 3, 1, 0x10, 0x0E], &[0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1]),
    ];
    for (order, head, options) in starts {
        let order_no = gateway.charge(CHARGER, order);
        let number = wire_no(&order_no);
        let msg_id = device.expect_command(0x82, &[&head[..], &number, options].concat());
        device.answer(msg_id, 0, head[5], number);
        gateway.order_becomes(&order_no, "confirmed");
    }
    for (order, message) in [
        (json!({"port_no": 1, "mode": "time", "duration_minutes": 1093}), "duration_minutes must be 1..=1092"),
        (json!({"port_no": 1, "mode": "energy", "energy_wh": 15}), "energy_wh must be a multiple of 10"),
    ] {
        let answer = gateway.post(&format!("devices/{CHARGER}/charge"), &order);
        assert!(answer.refused(400, "INVALID_PARAMETER").starts_with(message), "{}", answer.text);
    }
    let tiers = json!([{"power_dw": 1000, "price_cent": 100, "minutes": 60}]);
    let power = json!({"port_no": 1, "mode": "power", "tiers": tiers});
    gateway.post(&format!("devices/{CHARGER}/charge"), &power).refused(400, "NOT_SUPPORTED");
    let answer = gateway.post(&format!("devices/{CHARGER}/charge"), &json!({"port_no": 5, "mode": "full"}));
    answer.refused(404, "PORT_NOT_FOUND");
}

fn bkv_starts_say_what_was_ordered(engine: Engine) {
    let Some(gateway) = Gateway::start(engine, &[]) else { return };
    let mut device = Bkv::standalone(gateway.devices, GATEWAY);
    gateway.knows_port(GATEWAY, 2);
    let energy = json!({"port_no": 1, "mode": "energy", "energy_wh": 65_535});
    let order_no = gateway.charge(GATEWAY, &energy);
    let sequence = device.expect_command(0x0015, &[0, 8, 0x07, 0, 0, 1, 0, 0, 0, 0xFF, 0xFF]);
    device.answer(sequence, 0x07, 1, 0, 0, 5);
    gateway.order_becomes(&order_no, "confirmed");

    let tiers = json!([
        {"power_dw": 2000, "price_cent": 100, "minutes": 60},
        {"power_dw": 3500, "price_cent": 150, "minutes": 60},
    ]);
    let power = json!({"port_no": 2, "mode": "power", "paid_cent": 500, "tiers": tiers});
    let order_no = gateway.charge(GATEWAY, &power);
    let tiers = [7, 0xD0, 0, 100, 0, 60, 0x0D, 0xAC, 0, 150, 0, 60];
    let sequence = device.expect_command(0x0015, &[&[0, 18, 0x17, 0, 1, 1, 0x01, 0xF4, 2], &tiers[..]].concat());
    device.answer(sequence, 0x17, 1, 0, 1, 6);
    gateway.order_becomes(&order_no, "confirmed");
    device.push(0, &[hole(0, 0x80, 0), hole(1, 0x90, 6)]);
    gateway.order_becomes(&order_no, "charging");
    let end = BkvEnd { socket: 0, hole: 1, status: 0x90, business_no: 6, energy_wh: 400, minutes: 100 };
    device.settle_power(&end, 250);
    device.expect_answer(0x0015, &[0, 2, 0x18, 0, 1]);
    let done = gateway.order(&order_no);
    let totals = ["status_text", "duration_seconds", "energy_wh", "amount_cent"].map(|field| &done[field]);
    assert_eq!(totals, [&json!("completed"), &json!(6_000), &json!(400), &json!(250)]);

    let full = gateway.post(&format!("devices/{GATEWAY}/charge"), &json!({"port_no": 2, "mode": "full"}));
    full.refused(400, "NOT_SUPPORTED");
}

fn a_running_charge_is_stopped(engine: Engine) {
    let Some((gateway, receiver)) = start(engine) else { return };
    let mut device = Ap3000::online(gateway.devices, CHARGER, 1);
    gateway.knows_port(CHARGER, 1);
    let order_no = gateway.charge(CHARGER, &json!({"port_no": 1, "mode": "full"}));
    let number = wire_no(&order_no);
    let msg_id = device.expect_command(0x82, &[&[0, 0, 0, 0, 0, 0, 1, 0, 0], &number[..]].concat());
    device.answer(msg_id, 0, 0, number);
    device.report_charging(0, number, 300, 2);
    gateway.order_becomes(&order_no, "charging");

    let cancel = gateway.post(&format!("orders/{order_no}/cancel"), &json!({}));
    assert_eq!(cancel.refused(409, "ORDER_STATE"), format!("order {order_no} is charging and cannot be cancelled"));
    let stop = gateway.post(&format!("devices/{CHARGER}/stop"), &json!({"port_no": 1}));
    assert_eq!((stop.status, &stop.data()["status_text"]), (202, &json!("stopping")), "{}", stop.text);
    let again = gateway.post(&format!("orders/{order_no}/stop"), &json!({}));
    assert_eq!((again.status, again.data()), (202, stop.data()), "the same answer while it is under way");
    let msg_id = device.expect_command(0x82, &[&[0, 0, 0, 0, 0, 0, 0, 0, 0], &number[..]].concat());
    device.answer(msg_id, 0, 0, number);
    gateway.order_becomes(&order_no, "stopped");
    // What it used comes after the stop, and is billed all the same.
    let (start_mode, reason) = (StartMode::ONLINE, 7);
    let end = Ap3000End { port: 0, order_no: number, start_mode, reason, duration_s: 400, energy: 3 };
    let msg_id = device.settle(&end);
    device.expect(msg_id, 0x03, &[0]);
    let story = [
        "order.created",
        "order.confirmed",
        "charging.started",
        "order.stopping",
        "charging.ended",
        "order.stopped",
        "order.settled",
    ];
    check_story(&gateway, &receiver, &order_no, &story);
    let done = gateway.order(&order_no);
    assert_eq!((&done["status_text"], &done["energy_wh"]), (&json!("stopped"), &json!(30)));
}

fn a_stop_that_the_end_report_overtakes_is_a_stop(engine: Engine) {
    let Some((gateway, receiver)) = start(engine) else { return };
    let mut device = Bkv::standalone(gateway.devices, GATEWAY);
    gateway.knows_port(GATEWAY, 1);
    let order_no = gateway.charge(GATEWAY, &json!({"port_no": 1, "mode": "time", "duration_minutes": 60}));
    let sequence = device.expect_command(0x0015, &[0, 8, 0x07, 0, 0, 1, 1, 0, 60, 0, 0]);
    device.answer(sequence, 0x07, 1, 0, 0, 12);
    gateway.order_becomes(&order_no, "confirmed");
    device.push(0, &[hole(0, 0x90, 12)]);
    gateway.order_becomes(&order_no, "charging");
    let stop = gateway.post("order/stop", &json!({"order_no": order_no}));
    assert_eq!((stop.status, &stop.data()["status_text"]), (202, &json!("stopping")), "{}", stop.text);
    let sequence = device.expect_command(0x0015, &[0, 8, 0x07, 0, 0, 0, 1, 0, 0, 0, 0]);
    device.settle(&BkvEnd { socket: 0, hole: 0, status: 0x90, business_no: 12, energy_wh: 100, minutes: 20 });
    device.answer(sequence, 0x07, 1, 0, 0, 12);
    device.expect_answer(0x0015, &[0, 2, 0x0C, 0, 1]);
    let story = [
        "order.created",
        "order.confirmed",
        "charging.started",
        "order.stopping",
        "charging.ended",
        "order.stopped",
        "order.settled",
    ];
    check_story(&gateway, &receiver, &order_no, &story);
    let done = gateway.order(&order_no);
    assert_eq!((&done["end_reason"], &done["energy_wh"]), (&json!("stopped_by_server"), &json!(100)));
    // An end report says what was, not what is: the port is free when its hole says so.
    device.push(0, &[hole(0, 0x80, 0)]);
    gateway.charge(GATEWAY, &json!({"port_no": 1, "mode": "time", "duration_minutes": 60}));
}

fn a_confirmed_charge_is_cancelled(engine: Engine) {
    let Some((gateway, receiver)) = start(engine) else { return };
    let mut device = Bkv::standalone(gateway.devices, GATEWAY);
    gateway.knows_port(GATEWAY, 1);
    let order_no = gateway.charge(GATEWAY, &json!({"port_no": 1, "mode": "time", "duration_minutes": 900}));
    let sequence = device.expect_command(0x0015, &[0, 8, 0x07, 0, 0, 1, 1, 3, 0x84, 0, 0]);
    device.answer(sequence, 0x07, 1, 0, 0, 9);
    gateway.order_becomes(&order_no, "confirmed");
    let by_body = json!({"order_no": order_no, "device_id": GATEWAY, "port_no": 1});
    let cancel = gateway.post("order/cancel", &by_body);
    assert_eq!((cancel.status, &cancel.data()["status_text"]), (202, &json!("cancelling")), "{}", cancel.text);
    let sequence = device.expect_command(0x0015, &[0, 8, 0x07, 0, 0, 0, 1, 0, 0, 0, 0]);
    device.answer(sequence, 0x07, 1, 0, 0, 9);
    gateway.order_becomes(&order_no, "cancelled");
    let story = ["order.created", "order.confirmed", "order.cancelling", "order.cancelled"];
    check_story(&gateway, &receiver, &order_no, &story);
    let next = gateway.post("order/stop", &json!({"device_id": GATEWAY, "port_no": 1}));
    assert_eq!(next.refused(404, "ORDER_NOT_FOUND"), format!("nothing runs on port 1 of {GATEWAY}"));
}

fn sockets_number_their_ports(engine: Engine) {
    let Some(gateway) = Gateway::start(engine, &[]) else { return };
    let mut device = Bkv::connect(gateway.devices, GATEWAY);
    // What it says first is of socket 3, so it is not asked for holes of its own.
    device.push(3, &[hole(0, 0x80, 0), hole(1, 0x80, 0)]);
    let port = gateway.knows_port(GATEWAY, 6);
    assert_eq!((&port["socket"], &port["hole"]), (&json!(3), &json!(1)));
    let order_no = gateway.charge(GATEWAY, &json!({"port_no": 6, "mode": "time", "duration_minutes": 1}));
    let sequence = device.expect_command(0x0015, &[0, 8, 0x07, 3, 1, 1, 1, 0, 1, 0, 0]);
    device.answer(sequence, 0x07, 1, 3, 1, 300);
    gateway.order_becomes(&order_no, "confirmed");
    device.settle(&BkvEnd { socket: 3, hole: 1, status: 0xB0, business_no: 300, energy_wh: 2, minutes: 1 });
    device.expect_answer(0x0015, &[0, 2, 0x0C, 3, 1]);
    assert_eq!(gateway.order(&order_no)["status_text"], "completed");
}

fn an_offline_card_becomes_an_order_of_the_device(engine: Engine) {
    let Some((gateway, receiver)) = start(engine) else { return };
    let mut device = Ap3000::online(gateway.devices, CHARGER, 2);
    let device_ref = *b"offline card 001";
    let end =
        Ap3000End { port: 1, order_no: device_ref, start_mode: StartMode(0), reason: 3, duration_s: 3_600, energy: 55 };
    for _ in 0..2 {
        let msg_id = device.settle(&end);
        device.expect(msg_id, 0x03, &[0]);
    }
    let orders = gateway.get(&format!("orders?device_id={CHARGER}"));
    assert_eq!(orders.data()["total"], 1, "{}", orders.text);
    let order = &orders.data()["items"][0];
    let totals = ["status_text", "port_no", "duration_seconds", "energy_wh", "end_reason"].map(|field| &order[field]);
    assert_eq!(totals, [&json!("completed"), &json!(2), &json!(3_600), &json!(550), &json!("time_reached")]);
    let (origin, stored): (String, Vec<u8>) = gateway
        .database()
        .query_row("SELECT origin, device_ref FROM orders", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .expect("one row");
    assert_eq!((origin.as_str(), stored.as_slice()), ("device", &device_ref[..]));
    let order_no = order["order_no"].as_str().expect("a number").to_owned();
    check_story(&gateway, &receiver, &order_no, &["order.completed", "order.settled"]);
}

fn a_gn_listener_makes_gn_devices(engine: Engine) {
    let Some(gateway) = Gateway::start(engine, &[("CHARGEGATE_DEVICE_LISTEN_GN", "127.0.0.1:0")]) else { return };
    assert_ne!(gateway.gn_devices, gateway.devices);
    let mut gn = Bkv::standalone(gateway.gn_devices, GATEWAY);
    let mut bkv = Bkv::standalone(gateway.devices, "86100000000002");
    gateway.knows_port(GATEWAY, 1);
    gateway.knows_port("86100000000002", 1);
    let protocol = |id: &str| gateway.get(&format!("devices/{id}")).data()["protocol"].clone();
    assert_eq!((protocol(GATEWAY), protocol("86100000000002")), (json!("gn"), json!("bkv")));
    let order_no = gateway.charge(GATEWAY, &json!({"port_no": 1, "mode": "time", "duration_minutes": 30}));
    let sequence = gn.expect_command(0x0015, &[0, 8, 0x07, 0, 0, 1, 1, 0, 30, 0, 0]);
    gn.answer(sequence, 0x07, 1, 0, 0, 1);
    gateway.order_becomes(&order_no, "confirmed");
    bkv.beat();
}

fn a_device_without_connection_takes_no_order(engine: Engine) {
    let Some(gateway) = Gateway::start(engine, &[]) else { return };
    let order = json!({"port_no": 1, "mode": "full"});
    let path = format!("devices/{CHARGER}/charge");
    gateway.post(&path, &order).refused(404, "DEVICE_NOT_FOUND");
    let device = Ap3000::online(gateway.devices, CHARGER, 1);
    gateway.knows_port(CHARGER, 1);
    device.line.hang_up();
    until("the connection is gone", || {
        (gateway.metric("chargegate_tcp_closed_total{reason=\"peer\"}") == 1).then_some(())
    });
    gateway.post(&path, &order).refused(400, "DEVICE_OFFLINE");
    // Neither after a restart, when only the database knows it.
    let gateway = gateway.restart();
    gateway.post(&path, &order).refused(400, "DEVICE_OFFLINE");
    assert_eq!(gateway.get("orders").data()["total"], 0);
}

fn one_port_takes_one_order(engine: Engine) {
    let Some(gateway) = Gateway::start(engine, &[]) else { return };
    let mut device = Ap3000::online(gateway.devices, CHARGER, 1);
    gateway.knows_port(CHARGER, 1);
    let order = json!({"port_no": 1, "mode": "full"});
    let path = format!("devices/{CHARGER}/charge");
    let answers: Vec<_> = thread::scope(|scope| {
        let mut asking = Vec::new();
        for _ in 0..8 {
            asking.push(scope.spawn(|| gateway.post(&path, &order)));
        }
        asking.into_iter().map(|thread| thread.join().expect("answered")).collect()
    });
    let (taken, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 202);
    assert_eq!((taken.len(), refused.len()), (1, 7));
    let winner = &taken[0].data()["order_no"];
    for answer in refused {
        answer.refused(409, "PORT_BUSY");
        assert_eq!(answer.data()["order_no"], *winner);
    }
    let number = wire_no(winner.as_str().expect("a number"));
    device.expect_command(0x82, &[&[0, 0, 0, 0, 0, 0, 1, 0, 0], &number[..]].concat());
    assert_eq!(gateway.get("orders").data()["total"], 1);
}

fn a_refused_start_fails(engine: Engine) {
    let Some((gateway, receiver)) = start(engine) else { return };
    let mut device = Ap3000::online(gateway.devices, CHARGER, 1);
    gateway.knows_port(CHARGER, 1);
    let order_no = gateway.charge(CHARGER, &json!({"port_no": 1, "mode": "full"}));
    let number = wire_no(&order_no);
    let msg_id = device.expect_command(0x82, &[&[0, 0, 0, 0, 0, 0, 1, 0, 0], &number[..]].concat());
    device.answer(msg_id, 1, 0, number);
    let failed = gateway.order_becomes(&order_no, "failed");
    assert_eq!(failed["failure_reason"], "device_refused_01");
    check_story(&gateway, &receiver, &order_no, &["order.created", "order.failed"]);
    assert_eq!(gateway.metric("chargegate_orders_failed_total{reason=\"refused\"}"), 1);
}
