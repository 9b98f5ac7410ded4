//! What `/orders/{no}/proof` says of an order is what happened: the frames are those the device's end of the socket saw, byte for
//! byte, and whoever asked, sent and received is named.
//!
//! Real processes, scripted devices, a webhook receiver. The devices leave the first start unanswered, so that it is sent again.

mod cluster;
mod gateway;
mod services;

use std::fs;

use chargegate::protocol::ap3000::codes::StartMode;
use cluster::{Cluster, Options};
use gateway::{
    Engine, Gateway, KEY,
    receiver::Receiver,
    until,
    wire::{Ap3000, Ap3000End, Bkv, BkvEnd, hole, wire_no},
};
use serde_json::{Value, json};

const CHARGER: &str = "40aace04";
const GATEWAY: &str = "86100000000001";
const TILL: &str = "key-of-the-till";

fn start() -> Option<(Gateway, Receiver)> {
    let receiver = Receiver::start();
    let endpoints = receiver.endpoints();
    let keys = json!([{"name": "tests", "key": KEY}, {"name": "till", "key": TILL}]).to_string();
    let variables = [
        ("CHARGEGATE_WEBHOOK_ALLOW_PRIVATE_TARGETS", "true"),
        ("CHARGEGATE_WEBHOOK_ENDPOINTS", &*endpoints),
        ("CHARGEGATE_API_KEYS", &keys),
    ];
    Some((Gateway::start(Engine::Mio, &variables)?, receiver))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The proof once it has so many answers to end reports, and the settlement is delivered: logs are written a moment behind.
fn proof(gateway: &Gateway, order_no: &str, end_answers: usize) -> Value {
    until(&format!("the logs tell all of {order_no}"), || {
        let answer = gateway.get(&format!("orders/{order_no}/proof"));
        assert_eq!(answer.status, 200, "{}", answer.text);
        let proof = answer.data().clone();
        let answered = of_role(&proof, "end_answer").len() == end_answers;
        (answered && proof["summary"]["delivered_at"].is_string()).then_some(proof)
    })
}

fn entries(proof: &Value) -> &[Value] {
    proof["entries"].as_array().expect("a list")
}

/// What entries of a kind are about.
fn of_kind<'a>(proof: &'a Value, kind: &str) -> Vec<&'a Value> {
    entries(proof).iter().filter(|entry| entry["kind"] == kind).map(|entry| &entry[kind]).collect()
}

fn of_role<'a>(proof: &'a Value, role: &str) -> Vec<&'a Value> {
    of_kind(proof, "frame").into_iter().filter(|frame| frame["role"] == role).collect()
}

fn titles(proof: &Value) -> Vec<&str> {
    entries(proof).iter().filter_map(|entry| entry["title"].as_str()).collect()
}

/// Where an entry with such a title stands; there must be one.
#[track_caller]
fn place(proof: &Value, title: &str) -> usize {
    let titles = titles(proof);
    titles.iter().position(|found| found.contains(title)).unwrap_or_else(|| panic!("no {title:?} in {titles:#?}"))
}

/// Entries with such titles follow each other in this order.
#[track_caller]
fn assert_follow(proof: &Value, order: &[&str]) {
    let places: Vec<_> = order.iter().map(|title| place(proof, title)).collect();
    assert!(places.is_sorted(), "{places:?} of {:#?}", titles(proof));
}

/// What holds of every proof: entries by time, each with what its kind names, and a summary in the order things happen.
#[track_caller]
fn assert_sound(proof: &Value) {
    assert_eq!((&proof["truncated"], &proof["gaps"]), (&json!(false), &json!([])), "{proof:#}");
    let times: Vec<_> = entries(proof).iter().map(|entry| entry["at"].as_str().expect("a time")).collect();
    assert!(times.is_sorted(), "{times:?}");
    for entry in entries(proof) {
        let kind = entry["kind"].as_str().expect("a kind");
        assert!(entry[kind].is_object(), "{entry}");
        assert_eq!(entry.as_object().map(serde_json::Map::len), Some(4), "{entry}");
    }
    let summary = &proof["summary"];
    let steps = ["requested_at", "sent_at", "acked_at", "started_at", "settled_at", "delivered_at"];
    let steps = steps.map(|step| summary[step].as_str().unwrap_or_else(|| panic!("{step}: {summary}")));
    assert!(steps.is_sorted(), "{summary}");
}

#[test]
fn a_start_that_was_sent_twice_shows_both_frames_and_the_one_request() {
    let Some((gateway, receiver)) = start() else { return };
    let server_id = fs::read_to_string(gateway.directory().join("data/server_id")).expect("made at the first start");
    let server_id = server_id.trim();
    let mut device = Ap3000::online(gateway.devices, CHARGER, 2);
    gateway.knows_port(CHARGER, 2);

    let path = format!("devices/{CHARGER}/charge");
    let body = json!({"port_no": 2, "mode": "time", "duration_minutes": 90});
    let charged = gateway.post_once(&path, "k-1", &body);
    assert_eq!(charged.status, 202, "{}", charged.text);
    let order_no = charged.data()["order_no"].as_str().expect("a number").to_owned();
    // The client did not hear the answer, and asked again.
    assert_eq!(gateway.post_once(&path, "k-1", &body).body, charged.body);
    let number = wire_no(&order_no);

    let start = [&[0, 0, 0, 0, 0, 1, 1, 0x18, 0x15], &number[..]].concat();
    let sent = device.line.frame();
    let again = device.line.frame();
    assert_eq!(sent, again, "sent again as it was");
    let msg_id = u16::from_le_bytes([sent[9], sent[10]]);
    device.answer(msg_id, 0, 1, number);
    gateway.order_becomes(&order_no, "confirmed");
    device.report_charging(1, number, 300, 2);
    gateway.order_becomes(&order_no, "charging");

    let stop = gateway.request("POST", &format!("orders/{order_no}/stop"), Some(TILL), None);
    assert_eq!(stop.status, 202, "{}", stop.text);
    let stop_id = device.expect_command(0x82, &[&[0, 0, 0, 0, 0, 1, 0, 0, 0], &number[..]].concat());
    device.answer(stop_id, 0, 1, number);
    gateway.order_becomes(&order_no, "stopped");
    let (start_mode, reason) = (StartMode::ONLINE, 7);
    let end = Ap3000End { port: 1, order_no: number, start_mode, reason, duration_s: 400, energy: 3 };
    let end_id = device.settle(&end);
    device.expect(end_id, 0x03, &[0]);
    // It did not hear that, either: the same record under a new message id.
    let end_again = device.settle(&end);
    device.expect(end_again, 0x03, &[0]);
    // The end of another charge is none of this order's.
    let own = Ap3000End { order_no: [7; 16], start_mode: StartMode::CARD, duration_s: 60, ..end };
    let own_id = device.settle(&own);
    device.expect(own_id, 0x03, &[0]);
    receiver.events_of(&order_no, "order.settled");

    let proof = proof(&gateway, &order_no, 2);
    assert_sound(&proof);
    assert_eq!(proof["order"], gateway.order(&order_no));
    assert_eq!((&proof["summary"]["sends"], &proof["order"]["status_text"]), (&json!(2), &json!("stopped")));

    let requests = of_kind(&proof, "request");
    let [charge, stopped] = &requests[..] else { panic!("{requests:#?}") };
    let expected = json!({
        "wish": "create", "request_id": charged.body["request_id"], "api_key": "tests", "idempotency_key": "k-1",
        "client_ip": "127.0.0.1", "instance": server_id,
    });
    assert_eq!(**charge, expected);
    assert_eq!((&stopped["wish"], &stopped["api_key"]), (&json!("stop"), &json!("till")));
    assert_eq!((&stopped["request_id"], &stopped["idempotency_key"]), (&stop.body["request_id"], &Value::Null));

    let starts = of_role(&proof, "start");
    let [first, second] = &starts[..] else { panic!("{starts:#?}") };
    assert_eq!((&first["raw"], &second["raw"]), (&json!(hex(&sent)), &json!(hex(&sent))));
    assert_eq!((&first["msg_id"], &second["msg_id"]), (&json!(msg_id), &json!(msg_id)));
    assert_eq!((&first["write"], &first["same_bytes"]), (&json!(1), &Value::Null));
    assert_eq!((&second["write"], &second["same_bytes"]), (&json!(2), &json!(true)));
    assert_eq!((&first["epoch"], &first["instance"]), (&json!(1), &json!(server_id)));
    assert_eq!(first["command_id"], second["command_id"]);
    let explained: Vec<_> = first["explained"].as_array().expect("lines").iter().filter_map(Value::as_str).collect();
    assert!(explained.contains(&"  charge_cmd: 1 (start)"), "{explained:#?}");
    assert!(start.len() < sent.len());

    let replies = of_role(&proof, "reply");
    let [ack, stop_ack] = &replies[..] else { panic!("{replies:#?}") };
    assert_eq!((&ack["msg_id"], &ack["ok"], &ack["direction"]), (&json!(msg_id), &json!(true), &json!("up")));
    assert_eq!((&stop_ack["msg_id"], &stop_ack["ok"]), (&json!(stop_id), &json!(true)));
    assert_eq!(of_role(&proof, "stop").len(), 1);
    let reports: Vec<_> = of_role(&proof, "end_report").iter().map(|frame| frame["msg_id"].clone()).collect();
    assert_eq!(reports, [json!(end_id), json!(end_again)]);
    let answers: Vec<_> = of_role(&proof, "end_answer").iter().map(|frame| frame["msg_id"].clone()).collect();
    assert_eq!(answers, reports);

    let settlements = of_kind(&proof, "settlement");
    let [settlement] = &settlements[..] else { panic!("{settlements:#?}") };
    assert_eq!((&settlement["match"], &settlement["energy_wh"]), (&json!("exact"), &json!(30)));
    assert_eq!((&settlement["orphan"], &settlement["late"]), (&json!(false), &json!(false)));
    assert_eq!(settlement["raw"], of_role(&proof, "end_report")[0]["raw"]);

    let events = of_kind(&proof, "event");
    assert_eq!(
        events.iter().map(|event| event["event_type"].clone()).collect::<Vec<_>>(),
        gateway.events_of(&order_no).iter().map(|event| event["event_type"].clone()).collect::<Vec<_>>()
    );
    let deliveries = of_kind(&proof, "delivery");
    assert_eq!(deliveries.len(), events.len(), "{deliveries:#?}");
    for delivery in &deliveries {
        assert_eq!((&delivery["endpoint"], &delivery["status"]), (&json!("receiver"), &json!(204)), "{delivery}");
        assert_eq!((&delivery["outcome"], &delivery["attempt"]), (&json!("delivered"), &json!(1)), "{delivery}");
    }
    let rows = of_kind(&proof, "command");
    assert!(rows.iter().all(|row| row["state"] == "acked" && row["epoch"] == 1), "{rows:#?}");
    assert_eq!((&rows[0]["attempts"], &rows[0]["request_id"]), (&json!(2), &charged.body["request_id"]));

    let message = format!("message 0x{msg_id:04x}");
    assert_follow(
        &proof,
        &[
            "charge requested by key tests",
            "queued",
            &format!("{message}, {} bytes, sent to the device", sent.len()),
            "again, the same bytes, write 2",
            &format!("device acknowledged {message} with 'ok'"),
            "event order.confirmed",
            "stop requested by key till",
            "event order.stopped",
            "device reported the end of the charge",
            "settlement stored: 400 s, 30 Wh, match exact",
            "event order.settled",
            "gateway told the device that its end report is stored",
        ],
    );
    place(&proof, "webhook receiver: 204 in ");
    gateway.get("orders/THD0000000000000/proof").refused(404, "ORDER_NOT_FOUND");
}

#[test]
fn a_bkv_start_that_was_sent_again_after_a_question_shows_both_frames() {
    let Some((gateway, receiver)) = start() else { return };
    let mut device = Bkv::standalone(gateway.devices, GATEWAY);
    until("hole 1 is known to be idle", || (gateway.knows_port(GATEWAY, 2)["status_text"] == "idle").then_some(()));
    let order_no = gateway.charge(GATEWAY, &json!({"port_no": 2, "mode": "time", "duration_minutes": 240}));
    let start = [0, 8, 0x07, 0, 1, 1, 1, 0, 240, 0, 0];
    let sequence = device.expect_command(0x0015, &start);
    let asked = device.expect_command(0x0015, &[0, 1, 0x1D, 0]);
    device.answer_query(asked, 0, &[hole(0, 0x80, 0), hole(1, 0x80, 0)]);
    assert_eq!(device.expect_command(0x0015, &start), sequence, "the same message id");
    device.answer(sequence, 0x07, 1, 0, 1, 77);
    gateway.order_becomes(&order_no, "confirmed");
    device.push(0, &[hole(0, 0x80, 0), hole(1, 0x90, 77)]);
    gateway.order_becomes(&order_no, "charging");
    let end = BkvEnd { socket: 0, hole: 1, status: 0xB0, business_no: 77, energy_wh: 812, minutes: 240 };
    device.settle(&end);
    device.expect_answer(0x0015, &[0, 2, 0x0C, 0, 1]);
    device.settle(&end);
    device.expect_answer(0x0015, &[0, 2, 0x0C, 0, 1]);
    device.expect_answer(0x0015, &[0, 2, 0x02, 0, 1]);
    // Of nobody's order.
    device.settle(&BkvEnd { business_no: 99, energy_wh: 5, minutes: 1, ..end });
    device.expect_answer(0x0015, &[0, 2, 0x0C, 0, 1]);
    receiver.events_of(&order_no, "order.settled");

    let proof = proof(&gateway, &order_no, 3);
    assert_sound(&proof);
    assert_eq!(proof["summary"]["sends"], 2);
    let starts = of_role(&proof, "start");
    let [first, second] = &starts[..] else { panic!("{starts:#?}") };
    assert_eq!((&first["msg_id"], &second["msg_id"]), (&json!(sequence), &json!(sequence)));
    assert_eq!((&first["raw"], &second["same_bytes"]), (&second["raw"], &json!(true)));
    assert_eq!((&first["epoch"], of_role(&proof, "end_report").len()), (&json!(1), 2));
    let reports = of_role(&proof, "end_report");
    assert!(reports.iter().all(|report| report["epoch"] == 1 && report["direction"] == "up"), "{reports:#?}");
    let replies = of_role(&proof, "reply");
    assert_eq!((replies.len(), &replies[0]["ok"]), (1, &json!(true)));
    let settlements = of_kind(&proof, "settlement");
    assert_eq!((&settlements[0]["match"], &settlements[0]["business_no"]), (&json!("exact"), &json!(77)));
    let [_, orphan] = &settlements[..] else { panic!("{settlements:#?}") };
    assert_eq!((&orphan["orphan"], &orphan["business_no"], &orphan["match"]), (&json!(true), &json!(99), &Value::Null));
    assert_follow(
        &proof,
        &[
            "charge requested by key tests",
            &format!("message 0x{sequence:08x}, 32 bytes, sent to the device"),
            "again, the same bytes, write 2",
            &format!("device acknowledged message 0x{sequence:08x} with 'ok'"),
            "device reported the end of the charge",
            "settlement stored: 14400 s, 812 Wh, match exact",
            "device reported the end of the charge, once more",
            "settlement stored for this port, without an order",
        ],
    );
}

/// The request comes to one instance, the device is at the other; the stop comes there, by another key.
#[test]
fn every_instance_that_had_a_part_is_named() {
    let receiver = Receiver::start();
    let endpoints = receiver.endpoints();
    let options = Options {
        variables: &[
            ("CHARGEGATE_WEBHOOK_ALLOW_PRIVATE_TARGETS", "true"),
            ("CHARGEGATE_WEBHOOK_ENDPOINTS", &endpoints),
        ],
        ..Options::default()
    };
    let cluster = Cluster::start(2, &options);
    let (asked, has) = (cluster.server_id(0), cluster.server_id(1));
    let mut device = Ap3000::online(cluster.gateways[1].devices, CHARGER, 1);
    cluster.shows(0, CHARGER, 1);
    let api = &cluster.gateways[0];
    let order_no = api.charge(CHARGER, &json!({"port_no": 1, "mode": "full"}));
    let number = wire_no(&order_no);
    let msg_id = device.expect_command(0x82, &[&[0, 0, 0, 0, 0, 0, 1, 0, 0], &number[..]].concat());
    device.answer(msg_id, 0, 0, number);
    api.order_becomes(&order_no, "confirmed");
    device.report_charging(0, number, 300, 2);
    api.order_becomes(&order_no, "charging");
    // Asked for where the device is, by another key.
    let stop = format!("orders/{order_no}/stop");
    let stop = cluster.gateways[1].request("POST", &stop, Some("key-of-the-storm"), None);
    assert_eq!(stop.status, 202, "{}", stop.text);
    let stop_id = device.expect_command(0x82, &[&[0, 0, 0, 0, 0, 0, 0, 0, 0], &number[..]].concat());
    device.answer(stop_id, 0, 0, number);
    api.order_becomes(&order_no, "stopped");
    let (start_mode, reason) = (StartMode::ONLINE, 7);
    let end = Ap3000End { port: 0, order_no: number, start_mode, reason, duration_s: 400, energy: 3 };
    let end_id = device.settle(&end);
    device.expect(end_id, 0x03, &[0]);
    receiver.events_of(&order_no, "order.settled");

    let at_both = [0, 1].map(|number| proof(&cluster.gateways[number], &order_no, 1));
    let [proof, other] = &at_both;
    assert_eq!(entries(proof).len(), entries(other).len(), "every instance tells the same");
    assert_sound(proof);
    let requests = of_kind(proof, "request");
    let by: Vec<_> =
        requests.iter().map(|request| (&request["wish"], &request["api_key"], &request["instance"])).collect();
    let [(create, tests), (stop, storm)] =
        [("create", "tests"), ("stop", "storm")].map(|(wish, key)| (json!(wish), json!(key)));
    assert_eq!(by, [(&create, &tests, &json!(asked)), (&stop, &storm, &json!(has))]);
    let frames = of_kind(proof, "frame");
    assert_eq!(frames.len(), 6, "{frames:#?}");
    let epoch = cluster.epoch(CHARGER);
    assert!(frames.iter().all(|frame| frame["instance"] == json!(has) && frame["epoch"] == epoch), "{frames:#?}");
    let deliveries = of_kind(proof, "delivery");
    assert!(deliveries.iter().all(|delivery| delivery["instance"].is_string()), "{deliveries:#?}");
}
