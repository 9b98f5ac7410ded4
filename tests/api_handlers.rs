//! What third parties see of devices and orders, over a socket.

mod api;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use api::{ALL, Answer, PATIENCE, Rig, THIRD, key, unix_ms};
use chargegate::{
    config::{ApiKey, Scope},
    gateway::{
        directory::{Entry, PortCell, PortState},
        order::Event,
    },
    model::{DeviceId, OrderNo, PortStatus, Protocol},
    store::{Idempotency, Job, OrderJob, OrderKey, Outcome, Requester, Store as _},
    telemetry::health::{Component, ComponentState},
};
use serde_json::{Value, json};

fn rig() -> Rig {
    let elsewhere = vec!["203.0.113.0/24".parse().unwrap()];
    Rig::new([key("reader", [Scope::Read]), ApiKey { ip_allow: elsewhere, ..key("remote", [Scope::Read]) }])
}

fn charge(rig: &Rig, device_id: DeviceId, port_no: u16) -> Answer {
    rig.post(&format!("/devices/{device_id}/charge"), &minutes(port_no))
}

fn charged(rig: &Rig, device_id: DeviceId, port_no: u16) -> OrderNo {
    let data = charge(rig, device_id, port_no).data(202);
    OrderNo::parse(data["order_no"].as_str().unwrap()).unwrap()
}

/// A connected device that was just seen, with ports in these states from port 1.
fn connect(rig: &Rig, device_id: DeviceId, protocol: Protocol, ports: &[PortStatus]) -> Arc<Entry> {
    let epoch = rig.bind(device_id, protocol, None).epoch;
    let entry = rig.entry(device_id, protocol, epoch);
    let state = |(port_no, status): (u16, &PortStatus)| {
        PortCell::new(&PortState { status: *status, updated_at: 1, ..PortState::unknown(port_no, None, None) })
    };
    entry.set_ports((1..).zip(ports).map(state).collect());
    entry
}

/// Lets something happen to an order that a device would report.
fn happens(rig: &Rig, order_no: OrderNo, event: Event) {
    let job = OrderJob {
        order: OrderKey::No(order_no),
        event,
        device_id: None,
        epoch: None,
        fence: None,
        business_no: None,
        reason: None,
        at: unix_ms(),
        request_id: None,
        requester: Requester::default(),
        idempotency: None,
    };
    assert!(matches!(rig.run(Job::Order(Box::new(job))), Outcome::Order(_)));
}

fn ap(n: u32) -> DeviceId {
    format!("{n:08x}").parse().unwrap()
}

fn bkv(n: u32) -> DeviceId {
    format!("{n:014}").parse().unwrap()
}

fn minutes(port_no: u16) -> Value {
    json!({"port_no": port_no, "mode": "time", "duration_minutes": 60, "paid_cent": 100})
}

const IDLE: [PortStatus; 2] = [PortStatus::Idle, PortStatus::Idle];

#[test]
fn a_charge_is_committed_before_it_is_accepted() {
    let rig = rig();
    connect(&rig, ap(1), Protocol::Ap3000, &IDLE);
    let answer = charge(&rig, ap(1), 2);
    let data = answer.data(202);
    assert_eq!((&data["status"], &data["status_text"]), (&json!(0), &json!("pending")));
    let order_no = OrderNo::parse(data["order_no"].as_str().unwrap()).unwrap();
    let order = rig.read(move |reader| reader.order(order_no)).expect("the order is stored");
    assert_eq!((order.device_id, order.port_no), (ap(1), 2));
    assert_eq!(order.request_id.as_deref(), answer.json()["request_id"].as_str());
    let events = rig.read(move |reader| reader.order_events(order_no));
    assert_eq!(events.iter().map(|event| event.event_type.as_str()).collect::<Vec<_>>(), ["order.created"]);
    let database = rusqlite::Connection::open(rig.database()).unwrap();
    let command: (String, String) = database
        .query_row("SELECT kind, state FROM outbound_queue WHERE order_no = ?1", [order_no.as_str()], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!(command, ("start".to_owned(), "claimed".to_owned()));

    let shown = rig.get(&format!("/orders/{order_no}")).data(200);
    assert_eq!((&shown["mode"], &shown["paid_cent"], &shown["end_time"]), (&json!("time"), &json!(100), &Value::Null));
    let created_at = shown["created_at"].as_str().unwrap();
    assert!(created_at.len() == 24 && created_at.ends_with('Z'), "{created_at}");
}

#[test]
fn each_mode_is_taken_by_its_protocol() {
    let rig = rig();
    connect(&rig, ap(1), Protocol::Ap3000, &[PortStatus::Idle; 4]);
    connect(&rig, bkv(2), Protocol::Bkv, &[PortStatus::Idle; 4]);
    let tiers = json!([{"power_dw": 2000, "price_cent": 100, "minutes": 60}]);
    let periods = json!([{"end_hour": 23, "end_minute": 59, "electricity_cent": 50, "service_cent": 20}]);
    for (device_id, charge) in [
        (ap(1), json!({"port_no": 1, "mode": "full"})),
        (ap(1), json!({"port_no": 2, "mode": "energy", "energy_wh": 10, "stop_when_full": true})),
        (ap(1), json!({"port_no": 3, "mode": "time", "duration_minutes": 1092, "card_no": null})),
        (bkv(2), json!({"port_no": 1, "mode": "power", "tiers": tiers, "paid_cent": 100})),
        (bkv(2), json!({"port_no": 2, "mode": "service_fee", "fee_periods": periods, "paid_cent": 100})),
        (bkv(2), json!({"port_no": 3, "mode": "energy", "energy_wh": 65_535})),
    ] {
        rig.post(&format!("/devices/{device_id}/charge"), &charge).data(202);
    }
    let mut in_body = minutes(4);
    in_body["device_id"] = json!(bkv(2));
    rig.post("/order/create", &in_body).data(202);
    for (device_id, charge, named) in [
        (ap(1), json!({"port_no": 4, "mode": "power", "tiers": tiers}), "mode power"),
        (bkv(2), json!({"port_no": 4, "mode": "full"}), "mode full"),
        (bkv(2), json!({"port_no": 4, "mode": "energy", "energy_wh": 9, "stop_when_full": true}), "stop_when_full"),
    ] {
        let message = rig.post(&format!("/devices/{device_id}/charge"), &charge).error(400, "NOT_SUPPORTED");
        assert!(message.contains(named), "{message}");
    }
}

#[test]
fn of_two_charges_on_a_port_one_wins() {
    let rig = rig();
    connect(&rig, ap(1), Protocol::Ap3000, &IDLE);
    for port_no in 1..=2 {
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let calls = [(); 8].map(|()| scope.spawn(|| charge(&rig, ap(1), port_no)));
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        let won: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 202).collect();
        assert_eq!(won.len(), 1);
        let winner = &won[0].json()["data"]["order_no"];
        for lost in answers.iter().filter(|answer| answer.status != 202) {
            let message = lost.error(409, "PORT_BUSY");
            assert_eq!(&lost.json()["data"]["order_no"], winner);
            assert!(message.contains(winner.as_str().unwrap()), "{message}");
        }
    }
    assert_eq!(rig.get("/orders").data(200)["total"], 2);
    assert_eq!(rig.api.backlog.unwritten(), 0, "no call holds a place after its answer");
}

#[test]
fn a_request_of_one_idempotency_key_has_its_effect_once() {
    let rig = rig();
    let entry = connect(&rig, ap(1), Protocol::Ap3000, &IDLE);
    let target = format!("{THIRD}/devices/{}/charge", ap(1));
    let first = rig.send_once(&target, ALL, "pay-1", Some(&minutes(1)));
    first.data(202);
    assert!(!first.headers.contains_key("idempotency-replayed"));
    // What the first one started would refuse the second.
    let order_no = OrderNo::parse(first.json()["data"]["order_no"].as_str().unwrap()).unwrap();
    happens(&rig, order_no, Event::StartAcked);
    happens(&rig, order_no, Event::Evidence);
    let charging = PortState { status: PortStatus::Charging, updated_at: 1, ..PortState::unknown(1, None, None) };
    entry.set_ports([PortCell::new(&charging)].into_iter().collect());
    charge(&rig, ap(1), 1).error(409, "PORT_BUSY");
    let again = rig.send_once(&target, ALL, "pay-1", Some(&minutes(1)));
    assert_eq!((again.status, &again.text), (202, &first.text), "the very bytes");
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(again.headers["content-type"], first.headers["content-type"]);
    let message = rig.send_once(&target, ALL, "pay-1", Some(&minutes(2))).error(422, "IDEMPOTENCY_MISMATCH");
    assert_eq!(message, "Idempotency-Key \"pay-1\" was used with another body");

    // The key of one path says nothing of another, and a refusal leaves it free.
    let cancel = format!("{THIRD}/orders/{order_no}/cancel");
    rig.send_once(&cancel, ALL, "pay-1", None).error(409, "ORDER_STATE");
    let stop = format!("{THIRD}/orders/{order_no}/stop");
    let stopped = rig.send_once(&stop, ALL, "pay-1", None);
    assert_eq!(stopped.data(202)["status_text"], "stopping");
    happens(&rig, order_no, Event::StopAcked);
    assert_eq!(rig.send_once(&stop, ALL, "pay-1", None).text, stopped.text);
    rig.send("POST", &stop, Some(ALL), None).error(409, "ORDER_STATE");
    rig.send_once(&cancel, ALL, "pay-1", None).error(409, "ORDER_STATE");
    assert_eq!(rig.get("/orders").data(200)["total"], 1);

    for key in ["", &"k".repeat(256)] {
        rig.send_once(&stop, ALL, key, None).error(400, "INVALID_PARAMETER");
    }
    rig.send_once(&stop, ALL, &"k".repeat(255), None).error(409, "ORDER_STATE");
}

#[test]
fn a_request_whose_twin_is_under_way_waits_for_its_answer() {
    let rig = rig();
    connect(&rig, ap(1), Protocol::Ap3000, &IDLE);
    let target = format!("{THIRD}/devices/{}/charge", ap(1));
    let twin =
        Idempotency { api_key: "all".into(), route: format!("POST {target}"), key: "k".to_owned(), body_hash: [0; 32] };
    let claim = rig.api.in_progress.claim(twin).unwrap();
    let refused = rig.send_once(&target, ALL, "k", Some(&minutes(1)));
    refused.error(409, "IDEMPOTENCY_IN_PROGRESS");
    assert_eq!(refused.headers["retry-after"], "1");
    drop(claim);
    rig.send_once(&target, ALL, "k", Some(&minutes(1))).data(202);
    // Whoever has an answer may ask again at once.
    for _ in 0..20 {
        rig.send_once(&target, ALL, "k", Some(&minutes(1))).data(202);
    }
    assert_eq!(rig.get("/orders").data(200)["total"], 1);
}

#[test]
fn a_stop_by_number_is_claimed_by_the_commit_that_makes_it() {
    let rig = rig();
    connect(&rig, ap(1), Protocol::Ap3000, &IDLE);
    let order_no = charged(&rig, ap(1), 1);
    happens(&rig, order_no, Event::StartAcked);
    happens(&rig, order_no, Event::Evidence);
    rig.post(&format!("/orders/{order_no}/stop"), &json!({})).data(202);
    let database = rusqlite::Connection::open(rig.database()).unwrap();
    let state: String =
        database.query_row("SELECT state FROM outbound_queue WHERE kind = 'stop'", (), |row| row.get(0)).unwrap();
    assert_eq!(state, "claimed");
}

#[test]
fn devices_that_cannot_start_take_no_order() {
    let rig = rig();
    let message = charge(&rig, ap(1), 1).error(404, "DEVICE_NOT_FOUND");
    assert_eq!(message, "there is no device 00000001");
    rig.bind(ap(2), Protocol::Ap3000, None);
    charge(&rig, ap(2), 1).error(400, "DEVICE_OFFLINE");
    // The socket went down, and nothing has come since.
    connect(&rig, ap(3), Protocol::Ap3000, &IDLE).set_disconnected(unix_ms());
    charge(&rig, ap(3), 1).error(400, "DEVICE_OFFLINE");
    // Connected, but silent.
    connect(&rig, ap(4), Protocol::Ap3000, &IDLE).seen(1);
    let message = charge(&rig, ap(4), 1).error(400, "DEVICE_OFFLINE");
    assert_eq!(message, "device 00000004 is offline: its score is 0, a start needs 50");
    connect(&rig, ap(5), Protocol::Ap3000, &IDLE).set_fallback();
    charge(&rig, ap(5), 1).error(400, "DEVICE_OFFLINE");
    assert_eq!(rig.get("/orders").data(200)["total"], 0);
}

#[test]
fn ports_that_cannot_start_take_no_order() {
    let rig = rig();
    let entry = connect(&rig, ap(1), Protocol::Ap3000, &PortStatus::ALL);
    for (port_no, status, code) in [
        (1, 202, ""),
        (2, 409, "PORT_BUSY"),
        (3, 202, ""),
        (4, 409, "PORT_FAULT"),
        (5, 202, ""),
        (6, 202, ""),
        (7, 404, "PORT_NOT_FOUND"),
    ] {
        let answer = charge(&rig, ap(1), port_no);
        assert_eq!(answer.status, status, "port {port_no}: {}", answer.text);
        assert!(answer.json()["error"].as_str().is_none_or(|found| found == code));
    }
    let holder = OrderNo::new(*b"THD", 9);
    entry.ports()[1].set_order(Some(holder));
    let answer = charge(&rig, ap(1), 2);
    answer.error(409, "PORT_BUSY");
    assert_eq!(answer.json()["data"]["order_no"], json!(holder));
}

#[test]
fn a_wrong_charge_is_refused_by_name_and_value() {
    let rig = rig();
    connect(&rig, ap(1), Protocol::Ap3000, &IDLE);
    connect(&rig, bkv(2), Protocol::Bkv, &IDLE);
    for (device_id, charge, message) in [
        (ap(1), json!({"mode": "full"}), "port_no is missing"),
        (ap(1), json!({"port_no": 0, "mode": "full"}), "port_no must be a whole number in 1..=65535, got 0"),
        (ap(1), json!({"port_no": "1", "mode": "full"}), "port_no must be a whole number in 1..=65535, got \"1\""),
        (ap(1), json!({"port_no": 1}), "mode is missing"),
        (
            ap(1),
            json!({"port_no": 1, "mode": "fast"}),
            "mode must be one of time, energy, full, power, service_fee, got \"fast\"",
        ),
        (ap(1), json!({"port_no": 1, "mode": "time"}), "duration_minutes is missing"),
        (
            ap(1),
            json!({"port_no": 1, "mode": "time", "duration_minutes": 1093}),
            "duration_minutes must be 1..=1092 for ap3000, got 1093",
        ),
        (
            ap(1),
            json!({"port_no": 1, "mode": "time", "duration_minutes": 1.5}),
            "duration_minutes must be a whole number in 1..=65535, got 1.5",
        ),
        (
            ap(1),
            json!({"port_no": 1, "mode": "energy", "energy_wh": 15}),
            "energy_wh must be a multiple of 10 for ap3000, got 15",
        ),
        (ap(1), json!({"port_no": 1, "mode": "full", "energy_wh": 100}), "energy_wh does not belong to mode full"),
        (
            ap(1),
            json!({"port_no": 1, "mode": "full", "stop_when_full": 1}),
            "stop_when_full must be true or false, got 1",
        ),
        (
            ap(1),
            json!({"port_no": 1, "mode": "full", "paid_cent": -1}),
            "paid_cent must be a whole number in 0..=4294967295, got -1",
        ),
        (bkv(2), json!({"port_no": 1, "mode": "power", "tiers": []}), "tiers (number) must be 1..=5 for bkv, got 0"),
        (
            bkv(2),
            json!({"port_no": 1, "mode": "power", "tiers": [{"power_dw": 1, "price_cent": 1}]}),
            "tiers[0].minutes is missing",
        ),
        (
            bkv(2),
            json!({"port_no": 1, "mode": "service_fee", "fee_periods": [{"end_hour": 24, "end_minute": 0}]}),
            "fee_periods[0].end_hour must be a whole number in 0..=23, got 24",
        ),
    ] {
        let answer = rig.post(&format!("/devices/{device_id}/charge"), &charge);
        assert_eq!(answer.error(400, "INVALID_PARAMETER"), message, "{charge}");
    }
    let unknown = rig.post(&format!("/devices/{}/charge", ap(1)), &json!({"port_no": 1, "mode": "full", "colour": 1}));
    assert!(
        unknown.error(400, "INVALID_PARAMETER").starts_with("field colour is not known, there are port_no, mode, ")
    );
    let charge = format!("{THIRD}/devices/{}/charge", ap(1));
    let broken = rig.send("POST", &charge, Some(ALL), Some("{\"port_no\":1,"));
    let message = broken.error(400, "INVALID_PARAMETER");
    assert_eq!(message, "body is not JSON: EOF while parsing a value at line 1 column 13");
    let empty = rig.send("POST", &charge, Some(ALL), None).error(400, "INVALID_PARAMETER");
    assert_eq!(empty, "body is empty, it must be a JSON object");
    let missing = rig.post("/order/create", &minutes(1)).error(400, "INVALID_PARAMETER");
    assert_eq!(missing, "device_id is missing");
    assert_eq!(rig.get("/orders").data(200)["total"], 0);
}

#[test]
fn a_start_is_refused_while_too_much_waits_and_a_stop_is_not() {
    let rig = rig();
    let entry = connect(&rig, ap(1), Protocol::Ap3000, &IDLE);
    charged(&rig, ap(1), 1);
    rig.waiting.store(1_001, Ordering::Relaxed);
    let refused = charge(&rig, ap(1), 2);
    refused.error(503, "QUEUE_OVERLOADED");
    assert_eq!(refused.headers["retry-after"], "1");
    rig.post(&format!("/devices/{}/stop", ap(1)), &json!({"port_no": 1})).data(202);
    rig.waiting.store(1_000, Ordering::Relaxed);
    charged(&rig, ap(1), 2);
    rig.waiting.store(0, Ordering::Relaxed);
    entry.set_waiting(16);
    charge(&rig, ap(1), 1).error(503, "QUEUE_OVERLOADED");
}

#[test]
fn stop_and_cancel_follow_the_order() {
    let rig = rig();
    connect(&rig, ap(1), Protocol::Ap3000, &IDLE);
    let stop = format!("/devices/{}/stop", ap(1));
    let on = |port_no: u16| json!({"port_no": port_no});
    let nothing = rig.post(&stop, &on(1)).error(404, "ORDER_NOT_FOUND");
    assert_eq!(nothing, "nothing runs on port 1 of 00000001");
    rig.post(&stop, &on(9)).error(404, "PORT_NOT_FOUND");
    rig.post(&format!("/devices/{}/stop", ap(7)), &on(1)).error(404, "DEVICE_NOT_FOUND");

    // The start is claimed, so a stop has to follow it; the same answer as often as it is asked.
    let first = charged(&rig, ap(1), 1);
    for _ in 0..2 {
        let data = rig.post(&stop, &on(1)).data(202);
        assert_eq!(data, json!({"order_no": first, "status": 8, "status_text": "cancelling"}));
    }
    happens(&rig, first, Event::StopAcked);
    rig.post(&stop, &on(1)).error(404, "ORDER_NOT_FOUND");
    for way in ["stop", "cancel"] {
        let refused = rig.send("POST", &format!("{THIRD}/orders/{first}/{way}"), Some(ALL), None);
        let message = refused.error(409, "ORDER_STATE");
        assert!(message.starts_with(&format!("order {first} is cancelled and cannot be ")), "{message}");
        assert_eq!(refused.json()["data"]["status_text"], "cancelled");
    }

    let second = charged(&rig, ap(1), 2);
    happens(&rig, second, Event::StartAcked);
    happens(&rig, second, Event::Evidence);
    let refused = rig.post("/order/cancel", &json!({"order_no": second})).error(409, "ORDER_STATE");
    assert_eq!(refused, format!("order {second} is charging and cannot be cancelled"));
    for body in [
        json!({"order_no": second, "device_id": ap(9)}),
        json!({"order_no": second, "device_id": ap(1), "port_no": 1}),
        json!({"order_no": OrderNo::new(*b"THD", 1)}),
    ] {
        rig.post("/order/stop", &body).error(404, "ORDER_NOT_FOUND");
    }
    for body in [
        json!({"order_no": second}),
        json!({"order_no": second, "device_id": ap(1), "port_no": 2}),
        json!({"device_id": ap(1), "port_no": 2}),
    ] {
        assert_eq!(rig.post("/order/stop", &body).data(202)["status_text"], "stopping", "{body}");
    }
    for body in [json!({}), json!({"device_id": ap(1)}), json!({"port_no": 1}), json!({"order_no": "THD"})] {
        rig.post("/order/cancel", &body).error(400, "INVALID_PARAMETER");
    }
}

#[test]
fn devices_are_shown_live_and_from_the_store() {
    let rig = rig();
    rig.bind(ap(1), Protocol::Ap3000, Some(42));
    let entry = connect(&rig, bkv(2), Protocol::Bkv, &IDLE);
    entry.set_signal(21);
    entry.set_iccid("89860000000000000001");
    let order_no = charged(&rig, bkv(2), 1);

    let live = rig.get(&format!("/devices/{}", bkv(2))).data(200);
    assert_eq!((&live["online"], &live["score"], &live["instance"]), (&json!(true), &json!(100), &json!("gateway-1")));
    assert_eq!(live["score_parts"], json!({"alive": 100, "tcp_down": 0, "ack_timeout": 0}));
    assert_eq!((&live["signal"], &live["iccid"]), (&json!(21), &json!("89860000000000000001")));
    assert_eq!(live["active_orders"][0]["order_no"], json!(order_no));
    assert_eq!(live["ports"].as_array().unwrap().len(), 2);
    assert_eq!((&live["ports"][0]["port_no"], &live["ports"][0]["order_no"]), (&json!(1), &json!(order_no)));
    let fields = [
        "device_id",
        "protocol",
        "printed_no",
        "online",
        "score",
        "score_parts",
        "last_seen_at",
        "connected_at",
        "instance",
        "signal",
        "firmware",
        "iccid",
        "name",
        "extensions",
        "imei",
        "module_version",
        "host_type",
        "fsk_frequency",
        "host",
        "ports",
        "active_orders",
    ];
    assert!(fields.iter().all(|field| live.get(field).is_some()) && live.as_object().unwrap().len() == fields.len());

    let stored = rig.get(&format!("/devices/{}", ap(1))).data(200);
    assert_eq!((&stored["online"], &stored["score"], &stored["printed_no"]), (&json!(false), &json!(0), &json!(42)));
    assert_eq!(stored["instance"], Value::Null);
    rig.get(&format!("/devices/{}", ap(9))).error(404, "DEVICE_NOT_FOUND");
    rig.get(&format!("/devices/{}/status", ap(9))).error(404, "DEVICE_NOT_FOUND");
    assert_eq!(rig.get(&format!("/devices/{}/status", ap(1))).data(200)["online"], false);

    let ids = |query: &str| -> Vec<String> {
        let data = rig.get(&format!("/devices{query}")).data(200);
        let items = data["items"].as_array().unwrap();
        assert_eq!(data["total"], items.len());
        items.iter().map(|item| item["device_id"].as_str().unwrap().to_owned()).collect()
    };
    let (stored, live) = (ap(1).to_string(), bkv(2).to_string());
    assert_eq!(ids(""), [live.as_str(), stored.as_str()]);
    let by_id = format!("?search={}", &live[..13]);
    for (query, id) in [
        ("?online=true", &live),
        ("?online=false", &stored),
        ("?protocol=bkv", &live),
        ("?printed_no=42&online=false", &stored),
        ("?search=42", &stored),
        (by_id.as_str(), &live),
    ] {
        assert_eq!(ids(query), std::slice::from_ref(id), "{query}");
    }
    assert!(ids("?protocol=gn").is_empty());
    for query in ["online=1", "protocol=x", "printed_no=-1", "size=201", "page=0", "colour=red", "search="] {
        rig.get(&format!("/devices?{query}")).error(400, "INVALID_PARAMETER");
    }
}

#[test]
fn a_live_status_needs_no_store() {
    let rig = rig();
    connect(&rig, ap(1), Protocol::Ap3000, &IDLE);
    rig.store.close(PATIENCE);
    let path = format!("/devices/{}/status", ap(1));
    let status = rig.get(&path).data(200);
    assert_eq!((&status["online"], &status["ports"][1]["status_text"]), (&json!(true), &json!("idle")));
    let path = format!("{THIRD}{path}");
    rig.send("GET", &path, None, None).error(401, "UNAUTHORIZED");
    for answer in [rig.get("/orders"), charge(&rig, ap(1), 1)] {
        answer.error(503, "NOT_READY");
        assert_eq!(answer.headers["retry-after"], "1");
    }
}

#[test]
fn orders_and_events_come_in_pages() {
    let rig = rig();
    connect(&rig, ap(1), Protocol::Ap3000, &[PortStatus::Idle; 5]);
    connect(&rig, ap(2), Protocol::Ap3000, &IDLE);
    let mut numbers: Vec<OrderNo> = (1..=5).map(|port_no| charged(&rig, ap(1), port_no)).collect();
    happens(&rig, numbers[4], Event::StartAcked);
    charged(&rig, ap(2), 1);
    numbers.reverse();
    let mut paged = Vec::new();
    for page in 1..=3 {
        let data = rig.get(&format!("/orders?device_id={}&page={page}&size=2", ap(1))).data(200);
        assert_eq!((&data["total"], &data["page"], &data["size"]), (&json!(5), &json!(page), &json!(2)));
        paged.extend(data["items"].as_array().unwrap().iter().map(|order| order["order_no"].clone()));
    }
    assert_eq!(json!(paged), json!(numbers), "newest first");
    for (query, total) in [
        ("", 6),
        ("?port_no=1", 2),
        ("?status=0", 5),
        ("?status=confirmed", 1),
        ("?status=completed", 0),
        ("?page=4294967295&size=200", 6),
    ] {
        assert_eq!(rig.get(&format!("/orders{query}")).data(200)["total"], total, "{query}");
    }
    for query in ["status=11", "status=x", "port_no=0", "device_id=1", "from=1"] {
        rig.get(&format!("/orders?{query}")).error(400, "INVALID_PARAMETER");
    }

    let confirmed = numbers[0];
    let events = rig.get(&format!("/orders/{confirmed}/events")).data(200);
    assert_eq!(events["total"], 2);
    assert_eq!(events["items"][1]["event_type"], "order.confirmed");
    assert_eq!(events["items"][1]["data"]["new_status"], 1);
    let second = rig.get(&format!("/orders/{confirmed}/events?page=2&size=1")).data(200);
    assert_eq!(second["items"][0]["sequence_no"], 2);
    let unknown = OrderNo::new(*b"THD", 1);
    rig.get(&format!("/orders/{unknown}")).error(404, "ORDER_NOT_FOUND");
    rig.get(&format!("/orders/{unknown}/events")).error(404, "ORDER_NOT_FOUND");

    let by_port = rig.get(&format!("/order/query?device_id={}&port_no=5", ap(1))).data(200);
    assert_eq!(by_port, rig.get(&format!("/order/query?order_no={confirmed}")).data(200));
    rig.get(&format!("/order/query?device_id={}&port_no=2", ap(2))).error(404, "ORDER_NOT_FOUND");
    rig.get(&format!("/order/query?device_id={}&port_no=2", ap(9))).error(404, "DEVICE_NOT_FOUND");
    rig.get("/order/query").error(400, "INVALID_PARAMETER");

    let all = rig.get("/events").data(200);
    let all = all["items"].as_array().unwrap();
    let (mut after, mut walked) = (0, Vec::new());
    loop {
        let data = rig.get(&format!("/events?after={after}&limit=3")).data(200);
        let items = data["items"].as_array().unwrap();
        after = data["next_after"].as_i64().unwrap();
        if items.is_empty() {
            break;
        }
        walked.extend(items.iter().cloned());
    }
    assert_eq!(&walked, all, "walking the log finds all of it");
    assert!(walked.is_sorted_by_key(|event| event["pos"].as_i64()));
    for query in ["after=-1", "after=x", "limit=0", "limit=501", "size=1"] {
        rig.get(&format!("/events?{query}")).error(400, "INVALID_PARAMETER");
    }
}

#[test]
fn paths_methods_and_query_keys_are_known() {
    let rig = rig();
    rig.get("/nowhere").error(404, "NOT_FOUND");
    let wrong = rig.get(&format!("/devices/{}/charge", ap(1)));
    wrong.error(405, "METHOD_NOT_ALLOWED");
    assert_eq!(wrong.headers["allow"], "POST");
    rig.send("DELETE", &format!("{THIRD}/orders"), Some(ALL), None).error(405, "METHOD_NOT_ALLOWED");
    let message = rig.get("/orders?colour=red").error(400, "INVALID_PARAMETER");
    assert_eq!(message, "query key \"colour\" is not known here");
    rig.get("/devices/40AACE04").error(400, "INVALID_PARAMETER");
    rig.send("POST", "/healthz", None, Some("{}")).error(405, "METHOD_NOT_ALLOWED");
    rig.send("GET", "/metrics?x=1", None, None).error(400, "INVALID_PARAMETER");
    let request = ureq::http::Request::post(format!("http://{}{THIRD}/order/stop", rig.addr()))
        .header("X-Api-Key", "key-all")
        .header("Content-Type", "text/plain")
        .body("{}".to_owned());
    assert_eq!(rig.agent.run(request.unwrap()).unwrap().status(), 415);
}

#[test]
fn callers_have_keys_scopes_and_addresses() {
    let rig = rig();
    let orders = format!("{THIRD}/orders");
    let stop = format!("{THIRD}/order/stop");
    rig.send("GET", &orders, None, None).error(401, "UNAUTHORIZED");
    rig.send("GET", &orders, Some("key-none"), None).error(401, "UNAUTHORIZED");
    rig.send("GET", &orders, Some("key-reader"), None).data(200);
    let message = rig.send("POST", &stop, Some("key-reader"), Some("{}")).error(403, "FORBIDDEN");
    assert_eq!(message, "key reader does not have the scope control");
    let message = rig.send("GET", &orders, Some("key-remote"), None).error(403, "FORBIDDEN");
    assert_eq!(message, "key remote may not be used from 127.0.0.1");
    rig.api.auth.reload(vec![key("reader", [Scope::Control])]);
    rig.send("GET", &orders, Some("key-reader"), None).error(403, "FORBIDDEN");
    rig.send("GET", &orders, Some(ALL), None).error(401, "UNAUTHORIZED");
}

#[test]
fn an_oversize_body_is_refused() {
    let rig = rig();
    let mut stream = TcpStream::connect(rig.addr()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("POST {THIRD}/order/create HTTP/1.1\r\nX-Api-Key: key-all\r\nContent-Length: 65537\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("\"PAYLOAD_TOO_LARGE\""), "{answer}");
}

#[test]
fn health_readiness_and_metrics_need_no_key() {
    let rig = rig();
    let get = |path: &str| rig.send("GET", path, None, None);
    assert_eq!((get("/healthz").status, get("/healthz").json()["alive"].clone()), (200, json!(true)));
    let starting = get("/readyz");
    assert_eq!((starting.status, &starting.json()["devices"]["status"]), (503, &json!("starting")));
    for component in [Component::Devices, Component::Http] {
        rig.api.health.set(component, ComponentState::ok(Duration::from_millis(1)));
    }
    rig.api.health.set(Component::Redis, ComponentState::Skipped);
    rig.api.health.set_stage("ready", true);
    // A commit is what proves the database.
    rig.bind(ap(1), Protocol::Ap3000, None);
    let ready = get("/readyz");
    assert_eq!(ready.status, 200, "{}", ready.text);
    let ready = ready.json();
    assert_eq!((&ready["redis"]["status"], &ready["database"]["status"]), (&json!("skipped"), &json!("ok")));
    assert!(ready["database"]["latency_ms"].is_number());
    let metrics = get("/metrics");
    assert_eq!(metrics.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert!(metrics.text.contains("\nchargegate_http_responses_total{status=\"5xx\"} 1\n"), "{}", metrics.text);
    assert!(rig.store.health().ready.load(Ordering::Relaxed));
}
