//! An operator sees what an endpoint did not get, and has it delivered.
//!
//! The real process, devices on real sockets, a receiver that answers as it is told, and the admin API.

mod gateway;

use gateway::{
    Engine, Gateway,
    receiver::{Receiver, SECRET},
    until,
    wire::Ap3000,
};
use serde_json::{Value, json};

const WEBHOOK: &str = "/api/v1/admin/webhooks/receiver";
const FIRST: &str = "40aace04";
const SECOND: &str = "40aace05";

fn start(receiver: &Receiver) -> Gateway {
    let endpoints = receiver.endpoints();
    let variables = [
        ("CHARGEGATE_WEBHOOK_ALLOW_PRIVATE_TARGETS", "true"),
        ("CHARGEGATE_WEBHOOK_RETRY_SCHEDULE", "100ms,100ms"),
        ("CHARGEGATE_WEBHOOK_ENDPOINTS", &endpoints),
    ];
    Gateway::start(Engine::Mio, &variables).expect("it may always be run")
}

fn get(gateway: &Gateway, path: &str) -> Value {
    let answer = gateway.get(path);
    assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    answer.data().clone()
}

fn post(gateway: &Gateway, path: &str, body: &Value) -> Value {
    let answer = gateway.post(path, body);
    assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    answer.data().clone()
}

fn state(gateway: &Gateway) -> Value {
    get(gateway, WEBHOOK)["state"].clone()
}

/// Positions of the events of a device, as the log has them now.
fn positions(gateway: &Gateway, device_id: &str) -> Vec<i64> {
    let of_device = gateway.events().into_iter().filter(|event| event["device_phy_id"] == device_id);
    of_device.map(|event| event["pos"].as_i64().expect("a position")).collect()
}

/// Positions that the receiver took or refused, in the order they came, of a device.
fn came(receiver: &Receiver, device_id: &str) -> Vec<i64> {
    let of_device = receiver.events().into_iter().filter(|event| event["device_phy_id"] == device_id);
    of_device.map(|event| event["pos"].as_i64().expect("a position")).collect()
}

/// Waits until the endpoint has all there is: nothing parked, nothing behind its cursor.
fn caught_up(gateway: &Gateway) -> Value {
    until("the endpoint has all", || {
        let state = state(gateway);
        (state["backlog"] == 0 && state["parked"] == 0 && state["state"] == "delivering").then_some(state)
    })
}

#[test]
fn dead_letters_are_listed_and_redriven_and_ranges_delivered_again() {
    let receiver = Receiver::start();
    let gateway = start(&receiver);
    receiver.answer(500);
    let _device = Ap3000::online(gateway.devices, FIRST, 2);
    gateway.knows_port(FIRST, 1);
    let (state, of_device) = until("all are dead letters", || {
        let (state, of_device) = (caught_up(&gateway), positions(&gateway, FIRST));
        (of_device.len() >= 2 && state["dead"].as_u64() == Some(of_device.len() as u64)).then_some((state, of_device))
    });
    assert_eq!((&state["breaker"], &state["last_pos"]), (&json!("closed"), &state["cursor"]));

    let dead = get(&gateway, &format!("{WEBHOOK}/dead?size=200"));
    assert_eq!(dead["total"].as_u64(), Some(of_device.len() as u64));
    let first = &dead["items"][0];
    let shown = ["pos", "attempts", "reason", "key", "endpoint"].map(|field| first[field].clone());
    assert_eq!(shown, [json!(of_device[0]), json!(3), json!("http_500"), json!(FIRST), json!("receiver")]);
    let log = get(&gateway, &format!("/api/v1/admin/events/{}/deliveries", of_device[0]));
    let attempts: Vec<_> =
        log["items"].as_array().expect("a list").iter().map(|row| (&row["attempt"], &row["outcome"])).collect();
    assert_eq!(attempts, [(&json!(1), &json!("retry")), (&json!(2), &json!("retry")), (&json!(3), &json!("dead"))]);
    assert_eq!(log["items"][2]["status"], 500);
    assert_eq!(log["items"][2]["event_id"], first["event_id"]);

    // Two of them, then the rest; each of a key in the order of the log.
    receiver.answer(204);
    let before = receiver.count();
    let body = json!({"positions": &of_device[..2]});
    assert_eq!(post(&gateway, &format!("{WEBHOOK}/redrive"), &body), json!({"count": 2}));
    until("two came again", || (receiver.count() >= before + 2).then_some(()));
    let rest = of_device.len() - 2;
    assert_eq!(post(&gateway, &format!("{WEBHOOK}/redrive"), &json!({"all": true})), json!({"count": rest}));
    until("all came again", || (receiver.count() >= before + of_device.len()).then_some(()));
    assert_eq!(caught_up(&gateway)["dead"], 0);
    assert_eq!(came(&receiver, FIRST)[before..], of_device[..]);
    let log = until("the log has it", || {
        let log = get(&gateway, &format!("{WEBHOOK}/deliveries?outcome=delivered&size=1"));
        (log["total"].as_u64() == Some(of_device.len() as u64)).then_some(log)
    });
    assert_eq!(log["items"][0]["pos"].as_i64(), of_device.last().copied(), "newest first");

    // A range of the log, by positions and by times.
    let before = receiver.count();
    let body = json!({"from_pos": of_device[0], "to_pos": of_device[1]});
    assert_eq!(post(&gateway, &format!("{WEBHOOK}/redeliver"), &body), json!({"count": 2}));
    until("the range came again", || (receiver.count() >= before + 2).then_some(()));
    caught_up(&gateway);
    let body = json!({"from": "2020-01-01T00:00:00Z", "to": "2100-01-01T00:00:00Z"});
    assert_eq!(post(&gateway, &format!("{WEBHOOK}/redeliver"), &body), json!({"count": of_device.len()}));
    until("all came again", || (receiver.count() >= before + 2 + of_device.len()).then_some(()));
    caught_up(&gateway);
    assert_eq!(came(&receiver, FIRST)[before..before + 2], of_device[..2]);
    assert_eq!(came(&receiver, FIRST)[before + 2..], of_device[..]);

    // What nobody has is said so.
    let unknown = "/api/v1/admin/webhooks/nobody";
    gateway.get(&format!("{unknown}/dead")).refused(404, "NOT_FOUND");
    gateway.post(&format!("{unknown}/test"), &json!({})).refused(404, "NOT_FOUND");
    gateway.get("/api/v1/admin/events/999999/deliveries").refused(404, "NOT_FOUND");
    for body in [json!({}), json!({"all": false}), json!({"all": true, "positions": [1]}), json!({"positions": [0]})] {
        gateway.post(&format!("{WEBHOOK}/redrive"), &body).refused(400, "INVALID_PARAMETER");
        gateway.post(&format!("{WEBHOOK}/purge"), &body).refused(400, "INVALID_PARAMETER");
    }
    for body in [json!({"from_pos": 1}), json!({"from_pos": 1, "from": "2020-01-01T00:00:00Z", "to_pos": 2})] {
        gateway.post(&format!("{WEBHOOK}/redeliver"), &body).refused(400, "INVALID_PARAMETER");
    }
    gateway.get(&format!("{WEBHOOK}/deliveries?outcome=lost")).refused(400, "INVALID_PARAMETER");
}

#[test]
fn a_receiver_that_is_gone_stays_so_over_a_restart_until_it_is_enabled() {
    let receiver = Receiver::start();
    let mut gateway = start(&receiver);
    let device = Ap3000::online(gateway.devices, FIRST, 1);
    gateway.knows_port(FIRST, 1);
    caught_up(&gateway);
    receiver.answer(410);
    drop(device);
    let _device = Ap3000::online(gateway.devices, SECOND, 1);
    let disabled = until("it is disabled", || {
        let state = state(&gateway);
        (state["state"] == "disabled").then_some(state)
    });
    assert_eq!((&disabled["disabled_reason"], disabled["disabled_at"].is_string()), (&json!("http_410"), true));
    assert_eq!(gateway.metric("chargegate_webhook_endpoint_disabled{endpoint=\"receiver\"}"), 1);
    assert!(gateway.log().contains("webhook endpoint is disabled"));

    receiver.answer(204);
    let before = receiver.count();
    gateway.start_again();
    let again = until("the endpoint is in force", || {
        let answer = gateway.get(WEBHOOK);
        (answer.status == 200 && answer.data()["state"].is_object()).then(|| answer.data()["state"].clone())
    });
    let shown = |state: &Value| ["state", "disabled_at", "disabled_reason"].map(|field| state[field].clone());
    assert_eq!(shown(&again), shown(&disabled));

    // A test event goes through all the same; nothing else did.
    let tried = post(&gateway, &format!("{WEBHOOK}/test"), &json!({}));
    assert_eq!([&tried["delivered"], &tried["status"], &tried["reason"]], [&json!(true), &json!(204), &Value::Null]);
    let deliveries = receiver.deliveries();
    assert_eq!(deliveries.len(), before + 1);
    assert_eq!(deliveries[before].verified_by(SECRET)["event_type"], "webhook.test");
    receiver.answer(500);
    let tried = post(&gateway, &format!("{WEBHOOK}/test"), &json!({}));
    assert_eq!([&tried["delivered"], &tried["status"]], [&json!(false), &json!(500)]);
    assert_eq!(tried["reason"], "http_500");

    receiver.answer(204);
    let enabled = post(&gateway, &format!("{WEBHOOK}/enable"), &json!({}));
    assert_eq!((&enabled["disabled_at"], &enabled["disabled_reason"]), (&Value::Null, &Value::Null));
    caught_up(&gateway);
    let came = came(&receiver, SECOND);
    let of_device = positions(&gateway, SECOND);
    assert!(of_device.iter().all(|pos| came.contains(pos)), "{came:?} of {of_device:?}");

    // By hand, and without what came meanwhile.
    let body = json!({"reason": "moves"});
    assert_eq!(post(&gateway, &format!("{WEBHOOK}/disable"), &body)["disabled_reason"], "moves");
    let before = positions(&gateway, FIRST);
    let _device = Ap3000::online(gateway.devices, FIRST, 1);
    gateway.knows_port(FIRST, 1);
    let mut skipped = until("there is something to skip", || {
        let all = positions(&gateway, FIRST);
        (all.len() > before.len()).then_some(all)
    });
    skipped.retain(|pos| !before.contains(pos));
    let enabled = post(&gateway, &format!("{WEBHOOK}/enable"), &json!({"skip_backlog": true}));
    assert_eq!(enabled["disabled_at"], Value::Null);
    caught_up(&gateway);
    let came = self::came(&receiver, FIRST);
    assert!(!skipped.iter().any(|pos| came.contains(pos)), "{skipped:?} in {came:?}");
}
