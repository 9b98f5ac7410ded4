//! What callers are told of their limits, by which id a request is known everywhere, and what lists and paths take.
//!
//! Over a socket: guard, server, handlers and the embedded store are the real ones.

mod api;

use std::collections::BTreeSet;

use api::{ALL, Answer, Rig, THIRD, key};
use chargegate::{
    api::auth::Limits,
    config::{ApiKey, Scope},
    gateway::directory::{PortCell, PortState},
    model::{DeviceId, PortStatus, Protocol},
    telemetry::health::{Component, ComponentState},
};
use serde_json::{Value, json};

fn ap(n: u32) -> DeviceId {
    format!("{n:08x}").parse().unwrap()
}

/// A connected device with ten idle ports.
fn connect(rig: &Rig, device_id: DeviceId) {
    let epoch = rig.bind(device_id, Protocol::Ap3000, None).epoch;
    let entry = rig.entry(device_id, Protocol::Ap3000, epoch);
    let idle =
        |port_no| PortState { status: PortStatus::Idle, updated_at: 1, ..PortState::unknown(port_no, None, None) };
    entry.set_ports((1..=10).map(|port_no| PortCell::new(&idle(port_no))).collect());
}

/// A key with so many requests at once, and one more only after hours: no test is that slow.
fn limited(name: &str, burst: u32) -> ApiKey {
    ApiKey { rate_per_s: 1, burst, ..key(name, [Scope::Read]) }
}

/// Limit and remaining, as the answer tells; a reset comes with them or not at all.
fn left(answer: &Answer) -> Option<(u32, u32)> {
    let number = |name: &str| answer.headers.get(name).map(|value| value.parse::<u32>().unwrap());
    let told = (number("ratelimit-limit"), number("ratelimit-remaining"), number("ratelimit-reset"));
    match told {
        (Some(limit), Some(remaining), Some(reset)) => {
            assert_eq!(reset == 0, remaining == limit, "{told:?}");
            Some((limit, remaining))
        }
        (None, None, None) => None,
        told => panic!("{told:?}"),
    }
}

#[test]
fn every_answer_to_a_limited_caller_tells_what_is_left() {
    let rig = Rig::new([limited("limited", 1_000_000)]);
    connect(&rig, ap(1));
    let mut before = 1_000_000;
    for (method, path, status) in [
        ("GET", format!("/devices/{}/status", ap(1)), 200),
        ("HEAD", format!("/devices/{}/status", ap(1)), 200),
        ("GET", "/orders".to_owned(), 200),
        ("GET", "/orders?colour=red".to_owned(), 400),
        ("GET", "/nothing".to_owned(), 404),
        ("DELETE", "/orders".to_owned(), 405),
        ("OPTIONS", "/orders".to_owned(), 405),
        ("POST", format!("/devices/{}/charge", ap(1)), 403),
        ("GET", format!("/devices/{}", ap(9)), 404),
    ] {
        let answer = rig.send(method, &format!("{THIRD}{path}"), Some("key-limited"), None);
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
        let (limit, remaining) = left(&answer).unwrap_or_else(|| panic!("{method} {path} says nothing"));
        assert_eq!(limit, 1_000_000);
        assert!(remaining < before || remaining == 999_999, "{method} {path}: {remaining} of {before}");
        before = remaining;
        assert_eq!(left(&rig.send(method, &format!("{THIRD}{path}"), Some(ALL), None)), None, "no limit, no headers");
        assert_eq!(left(&rig.send(method, &format!("{THIRD}{path}"), None, None)), None);
    }
}

#[test]
fn above_the_rate_the_answer_is_429_and_says_when_to_come_again() {
    let rig = Rig::new([limited("a", 2), limited("b", 2)]);
    connect(&rig, ap(1));
    for (name, path) in [("key-a", format!("/devices/{}/status", ap(1))), ("key-b", "/orders".to_owned())] {
        let refused = loop {
            let answer = rig.send("GET", &format!("{THIRD}{path}"), Some(name), None);
            if answer.status != 200 {
                break answer;
            }
        };
        refused.error(429, "RATE_LIMITED");
        assert_eq!(left(&refused), Some((2, 0)), "{path}");
        assert_eq!(refused.headers.get("retry-after").map(String::as_str), Some("1"), "{path}");
    }
    rig.get("/orders").data(200);
}

#[test]
fn all_callers_together_have_a_rate() {
    let rig = Rig::new([]);
    rig.api.auth.set_limits(Limits { rate_per_s: 1, ..Limits::default() });
    let refused = loop {
        let answer = rig.get("/orders");
        assert_eq!(left(&answer).map(|(limit, _)| limit), Some(1));
        if answer.status != 200 {
            break answer;
        }
    };
    refused.error(429, "RATE_LIMITED");
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(rig.send("GET", "/healthz", None, None).status, 200, "health is asked by nobody's key");
    rig.api.auth.set_limits(Limits::default());
    assert_eq!(left(&rig.get("/orders")), None);
}

#[test]
fn who_guesses_keys_is_slowed_down_and_a_good_key_from_there_is_let_in() {
    let rig = Rig::new([]);
    rig.api.auth.set_limits(Limits { failures_per_minute_per_ip: 3, ..Limits::default() });
    connect(&rig, ap(1));
    let (orders, status, nothing) =
        (format!("{THIRD}/orders"), format!("{THIRD}/devices/{}/status", ap(1)), format!("{THIRD}/nothing"));
    rig.send("GET", &orders, Some("guess"), None).error(401, "UNAUTHORIZED");
    rig.send("GET", &status, Some("guess"), None).error(401, "UNAUTHORIZED");
    rig.send("GET", &nothing, Some("guess"), None).error(404, "NOT_FOUND");
    for target in [&orders, &status, &nothing] {
        let refused = rig.send("GET", target, Some("guess"), None);
        refused.error(429, "RATE_LIMITED");
        assert_eq!(left(&refused), None);
        let wait: u32 = refused.headers["retry-after"].parse().unwrap();
        assert!((1..=20).contains(&wait), "{wait}");
        assert_eq!(rig.send("GET", target, Some(ALL), None).status, if target == &nothing { 404 } else { 200 });
    }
}

#[test]
fn every_503_says_when_to_come_again() {
    let rig = Rig::new([]);
    rig.api.health.set(Component::Devices, ComponentState::Error { error: "not listening".to_owned() });
    let ready = rig.send("GET", "/readyz", None, None);
    assert_eq!((ready.status, ready.headers.get("retry-after").map(String::as_str)), (503, Some("1")));
}

#[test]
fn a_request_is_known_by_its_own_id_on_every_path() {
    let rig = Rig::new([]);
    connect(&rig, ap(1));
    let json_body = json!({"port_no": 0}).to_string();
    let known = |method, path: &str, body: Option<&str>| {
        for key in [Some(ALL), Some("guess"), None] {
            let mut headers = vec![("X-Request-Id", "client.id_1-2")];
            headers.extend(key.map(|key| ("X-Api-Key", key)));
            let answer = rig.send_with(method, path, &headers, body);
            assert_eq!(answer.headers["x-request-id"], "client.id_1-2", "{method} {path}");
            if method != "HEAD" && answer.headers["content-type"] == "application/json" && !path.ends_with('z') {
                assert_eq!(answer.json()["request_id"], "client.id_1-2", "{method} {path}");
            }
        }
    };
    for path in ["/healthz", "/readyz", "/metrics", "/metrics?x=1", "/nothing"] {
        known("GET", path, None);
    }
    for path in [format!("/devices/{}/status", ap(1)), format!("/devices/{}/status", ap(9)), "/orders".to_owned()] {
        known("GET", &format!("{THIRD}{path}"), None);
        known("HEAD", &format!("{THIRD}{path}"), None);
        known("DELETE", &format!("{THIRD}{path}"), None);
    }
    known("POST", &format!("{THIRD}/devices/{}/charge", ap(1)), Some(&json_body));
    known("POST", &format!("{THIRD}/firmware?name=x"), Some("xyz"));
    for (head, status) in [
        ("POST /x HTTP/1.1\r\nContent-Length: 99999999\r\n", 413),
        ("POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", 400),
        ("POST /x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n", 400),
        ("GET x HTTP/1.1\r\n", 400),
    ] {
        let answer = rig.exchange(format!("{head}X-Request-Id: client.id_1-2\r\n\r\n").as_bytes());
        assert_eq!((answer.status, &*answer.headers["x-request-id"]), (status, "client.id_1-2"), "{head}");
        assert_eq!(answer.json()["request_id"], "client.id_1-2");
    }
}

#[test]
fn an_id_that_is_not_sane_is_replaced_and_the_new_one_holds() {
    let rig = Rig::new([]);
    let long = "x".repeat(65);
    for id in [None, Some("a b"), Some("a\"b"), Some(long.as_str())] {
        let mut headers = vec![("X-Api-Key", ALL)];
        headers.extend(id.map(|id| ("X-Request-Id", id)));
        let answer = rig.send_with("GET", &format!("{THIRD}/orders"), &headers, None);
        let made = &answer.headers["x-request-id"];
        assert!(made.len() == 16 && Some(made.as_str()) != id, "{id:?}: {made}");
        assert_eq!(answer.json()["request_id"], made.as_str());
    }
    for bytes in [&b"\x16\x03\x01\x02\x00"[..], b"GET / HTTP/2.0\r\n\r\n"] {
        let answer = rig.exchange(bytes);
        assert_eq!(answer.json()["request_id"], answer.headers["x-request-id"].as_str());
    }
}

#[test]
fn order_commands_and_events_name_the_request_they_came_from() {
    let rig = Rig::new([]);
    connect(&rig, ap(1));
    let body = json!({"port_no": 1, "mode": "full"}).to_string();
    let as_request = |id| [("X-Api-Key", ALL), ("X-Request-Id", id)];
    let charge = format!("{THIRD}/devices/{}/charge", ap(1));
    let order = rig.send_with("POST", &charge, &as_request("the-start"), Some(&body)).data(202);
    let order_no = order["order_no"].as_str().unwrap();
    rig.send_with("POST", &format!("{THIRD}/orders/{order_no}/stop"), &as_request("the-stop"), None).data(202);
    assert_eq!(rig.get(&format!("/orders/{order_no}")).data(200)["request_id"], "the-start");
    let events = rig.get(&format!("/orders/{order_no}/events")).data(200);
    let events = events["items"].as_array().unwrap();
    assert!(events.len() >= 2 && events.iter().all(|event| event["data"]["request_id"] == "the-start"), "{events:?}");
    let commands = rig.get(&format!("/devices/{}/commands", ap(1))).data(200);
    let of = |name: &str| {
        let mut found = commands["items"].as_array().unwrap().iter().filter(|command| command["command"] == name);
        found.next().map(|command| command["request_id"].clone())
    };
    assert_eq!((of("start"), of("stop")), (Some(json!("the-start")), Some(json!("the-stop"))), "{commands}");
}

#[test]
fn lists_take_their_filters_and_refuse_what_they_do_not_know() {
    let rig = Rig::new([]);
    connect(&rig, ap(1));
    for port_no in 1..=3 {
        let body = json!({"port_no": port_no, "mode": "full"});
        rig.post(&format!("/devices/{}/charge", ap(1)), &body).data(202);
    }
    let total = |path: &str| rig.get(path).data(200)["total"].clone();
    let (past, future) = ("2001-01-01T00:00:00Z", "2101-01-01T08:00:00%2B08:00");
    for (path, expected) in [
        (format!("/orders?created_from={past}"), 3),
        (format!("/orders?created_from={future}"), 0),
        (format!("/orders?created_to={past}"), 0),
        (format!("/orders?created_from={past}&created_to={future}&port_no=2"), 1),
        ("/orders?business_no=1".to_owned(), 0),
        (format!("/devices/{}/commands?state=acked", ap(1)), 0),
        ("/firmware?device_type=0x29".to_owned(), 0),
        ("/ota?state=0".to_owned(), 0),
        ("/cards?state=0".to_owned(), 0),
    ] {
        assert_eq!(total(&path), expected, "{path}");
    }
    for path in [
        "/orders?created_from=yesterday".to_owned(),
        "/orders?created_to=2026-02-30T00:00:00Z".to_owned(),
        "/orders?business_no=65536".to_owned(),
        "/orders?status=0&status=0".to_owned(),
        "/orders?%73tatus=0&status=0".to_owned(),
        format!("/devices/{}/commands?state=lost", ap(1)),
        "/firmware?device_type=256".to_owned(),
        "/devices?search=".to_owned(),
    ] {
        rig.get(&path).error(400, "INVALID_PARAMETER");
    }
    // An escape in a key or a value is the character it stands for.
    assert_eq!(total("/orders?%73tatus=%30"), 3);
}

#[test]
fn paths_are_compared_as_sent_and_methods_told() {
    let rig = Rig::new([]);
    connect(&rig, ap(1));
    let third = |path: &str| format!("{THIRD}{path}");
    for path in ["/orders/", "/Orders", "//orders", "/%6frders", "/orders/../orders", "/orders;a=b"] {
        rig.send("GET", &third(path), Some(ALL), None).error(404, "NOT_FOUND");
    }
    rig.send("GET", &third("/orders/"), Some(ALL), None).error(404, "NOT_FOUND");
    for (path, allow) in [
        ("/orders", "GET, HEAD"),
        ("/order/create", "POST"),
        ("/cards", "GET, POST, HEAD"),
        ("/ota/1", "GET, DELETE, HEAD"),
        (&format!("/devices/{}/status", ap(1)), "GET, HEAD"),
    ] {
        for method in ["OPTIONS", "PUT", "PATCH", "BREW"] {
            // Without a body the client would send chunks with some of them.
            let body = matches!(method, "PUT" | "PATCH").then_some("");
            let answer = rig.send(method, &third(path), Some(ALL), body);
            answer.error(405, "METHOD_NOT_ALLOWED");
            assert_eq!(answer.headers["allow"], allow, "{method} {path}");
        }
    }
    for path in ["/orders".to_owned(), format!("/devices/{}/status", ap(1)), format!("/devices/{}", ap(9))] {
        let (get, head) = (rig.get(&path), rig.send("HEAD", &third(&path), Some(ALL), None));
        assert_eq!((head.status, head.text.as_str()), (get.status, ""));
        assert_eq!(head.headers["content-type"], "application/json");
        assert_ne!(head.headers["content-length"], "0");
    }
    for accept in ["text/html", "application/xml;q=1, */*;q=0", ""] {
        let answer = rig.send_with("GET", &third("/orders"), &[("X-Api-Key", ALL), ("Accept", accept)], None);
        answer.data(200);
        assert_eq!(answer.headers["content-type"], "application/json");
    }
}

#[test]
fn objects_have_all_their_fields_whatever_is_known() {
    let rig = Rig::new([]);
    connect(&rig, ap(1));
    let body = json!({"port_no": 1, "mode": "full"});
    let order = rig.post(&format!("/devices/{}/charge", ap(1)), &body).data(202);
    let order_no = order["order_no"].as_str().unwrap();
    let has = |object: &Value, fields: &str| {
        let object: BTreeSet<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
        let missing: Vec<&str> = fields.split(' ').filter(|field| !object.contains(field)).collect();
        assert!(missing.is_empty(), "{missing:?} of {object:?}");
    };
    let order_fields = "order_no device_id port_no status status_text mode paid_cent start_time end_time \
        duration_seconds energy_wh amount_cent end_reason end_reason_raw business_no failure_reason created_at updated_at";
    let port_fields = "port_no socket hole status status_text raw_status power_dw current_ma voltage_dv energy_wh \
        charged_seconds order_no updated_at";
    let live_fields = "device_id protocol online score score_parts last_seen_at connected_at instance signal ports";
    has(&rig.get(&format!("/orders/{order_no}")).data(200), order_fields);
    has(&rig.get("/orders").data(200)["items"][0], order_fields);
    let device = rig.get(&format!("/devices/{}", ap(1))).data(200);
    has(&device, live_fields);
    has(&device, "printed_no firmware iccid active_orders");
    has(&device["active_orders"][0], order_fields);
    has(&device["ports"][0], port_fields);
    has(&rig.get("/devices").data(200)["items"][0], live_fields);
    let status = rig.get(&format!("/devices/{}/status", ap(1))).data(200);
    has(&status, live_fields);
    has(&status["ports"][0], port_fields);
    let event = rig.get(&format!("/orders/{order_no}/events")).data(200)["items"][0].clone();
    has(&event, "event_id event_type device_phy_id order_no sequence_no pos timestamp data");
    has(&event["data"], order_fields);
    has(&event["data"], "old_status new_status");
}
