//! Cards through the real gateway: accounts over the API, simulated devices whose readers are held a card, and a third party that
//! keeps the cards.

#[macro_use]
mod gateway;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    sync::mpsc,
    thread,
    time::Duration,
};

use chargegate_loadtest::device::{
    Ap3000Device, Behaviour, BkvDevice,
    ap3000::{Card, SwipeState},
    bkv,
    ledger::{CardNumber, Start, State},
};
use gateway::{Engine, Gateway, PATIENCE, driven::Driven, until};
use serde_json::{Value, json};

on_both_engines! {
    an_ap3000_card_pays_for_its_charge
    a_bkv_card_pays_for_its_charge
}

const UID: [u8; 4] = [0x7A, 0x8D, 0x05, 0xDD];
const DIGITS: [u8; 6] = [0x12, 0x34, 0x56, 0x78, 0x90, 0x12];
const MINUTE: Duration = Duration::from_secs(60);
/// 1 cent a minute.
const TARIFFS: (&str, &str) = (
    "CHARGEGATE_TARIFFS",
    r#"[{"name":"hour","kind":"time","price_cent":60},{"name":"kwh","kind":"energy","price_cent":100}]"#,
);

fn start(engine: Engine, more: &[(&str, &str)]) -> Option<Gateway> {
    Gateway::start(engine, &[&[TARIFFS], more].concat())
}

fn charger() -> Ap3000Device {
    Ap3000Device::new(1, 2, Behaviour::default())
}

/// Status and body of an answer, and whether it is a repetition's.
fn posted(gateway: &Gateway, path: &str, key: Option<&str>, body: &Value) -> (u16, Value, bool) {
    let answer = match key {
        Some(key) => gateway.post_once(path, key, body),
        None => gateway.post(path, body),
    };
    let replayed = answer.headers.contains_key("Idempotency-Replayed");
    (answer.status, answer.body, replayed)
}

/// Registers a card and gives it money.
fn fund(gateway: &Gateway, card_no: &str, cent: u32) {
    assert_eq!(posted(gateway, "cards", None, &json!({"card_no": card_no})).0, 201);
    let path = format!("cards/{card_no}/recharge");
    assert_eq!(posted(gateway, &path, Some(card_no), &json!({"amount_cent": cent})).0, 200);
}

fn card(gateway: &Gateway, card_no: &str) -> Value {
    let answer = gateway.get(&format!("cards/{card_no}"));
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.data().clone()
}

fn order_of(gateway: &Gateway, device_id: &str) -> Value {
    until("the swipe makes an order", || {
        gateway.get(&format!("orders?device_id={device_id}")).data()["items"].get(0).cloned()
    })
}

fn an_ap3000_card_pays_for_its_charge(engine: Engine) {
    let Some(gateway) = start(engine, &[]) else { return };
    // By the printed number, which names the same card.
    fund(&gateway, "2056062429", 20);
    assert_eq!(card(&gateway, "7A8D05DD")["card_no"], "7a8d05dd");
    let device = charger();
    let id = device.phy_id().to_string();
    let device = Driven::connect(gateway.devices, device);
    gateway.knows_port(&id, 1);
    let swipe = |port| {
        assert!(device.with(|device, now_us| device.swipe(now_us, &Card::new(UID), port)));
        until("the swipe is answered", || match device.with(|device, _| device.last_swipe().copied())?.state {
            SwipeState::Answered(reply) | SwipeState::Charging(reply) => Some(reply),
            SwipeState::Asked => None,
            SwipeState::Unanswered => panic!("no answer"),
        })
    };
    let balance = swipe(0xFF);
    assert_eq!((balance.account_state.0, balance.balance_or_expiry), (0, 20));
    let reply = swipe(0);
    assert_eq!((reply.account_state.0, reply.balance_or_expiry, reply.port), (0, 20, 0));
    let order = order_of(&gateway, &id);
    let order_no = order["order_no"].as_str().unwrap();
    assert_eq!((&order["card_no"], &order["hold_cent"]), (&json!("7a8d05dd"), &json!(20)));
    let held = card(&gateway, "7a8d05dd");
    assert_eq!((&held["balance_cent"], &held["held_cent"], &held["free_cent"]), (&json!(20), &json!(20), &json!(0)));
    gateway.order_becomes(order_no, "charging");
    device.pass(20 * MINUTE);
    let ended = gateway.order_becomes(order_no, "completed");
    assert_eq!((&ended["charged_cent"], &ended["unpaid_cent"]), (&json!(20), &json!(0)), "{ended}");
    // The device's own book: one charge, by this card, acknowledged.
    let entry = until("the record is acknowledged", || {
        let entry = device.with(|device, _| device.ledger().last().copied())?;
        (entry.state == State::Acknowledged).then_some(entry)
    });
    assert_eq!((entry.start, device.with(|device, _| device.ledger().begun())), (Start::Card(CardNumber::Uid(UID)), 1));
    assert_eq!(ended["duration_seconds"], entry.duration_s);
    let paid = card(&gateway, "7a8d05dd");
    assert_eq!((&paid["balance_cent"], &paid["held_cent"]), (&json!(0), &json!(0)));
    assert_eq!(swipe(0).account_state.0, 6, "nothing is left");
    let moved = gateway.get("cards/7a8d05dd/transactions");
    assert_eq!((&moved.data()["total"], &moved.data()["items"][0]["amount_cent"]), (&json!(2), &json!(-20)));
    let types: Vec<String> = gateway
        .events()
        .iter()
        .filter_map(|event| event["event_type"].as_str().filter(|kind| kind.starts_with("card.")).map(str::to_owned))
        .collect();
    assert_eq!(types, ["card.transaction", "card.swiped", "card.swiped", "card.transaction", "card.swiped"]);
    assert!(!gateway.log().contains("7a8d05dd"), "numbers are masked in the log");
}

fn a_bkv_card_pays_for_its_charge(engine: Engine) {
    let Some(gateway) = start(engine, &[]) else { return };
    fund(&gateway, "123456789012", 10);
    let device = BkvDevice::new(1, 0, Behaviour::default());
    let id = device.gateway_id().to_string();
    let device = Driven::connect(gateway.devices, device);
    gateway.knows_port(&id, 1);
    assert!(device.with(|device, now_us| device.ask_balance(now_us, DIGITS, 0, 0)));
    until("the balance is told", || {
        device.with(|device, _| device.last_balance()).filter(|told| *told == (DIGITS, 10))
    });
    let swipe = |card| {
        assert!(device.with(|device, now_us| device.swipe(now_us, card, 0, 0)));
        until("the swipe is answered", || {
            let swipe = device.with(|device, _| device.last_swipe(0, 0).copied())?;
            (swipe.state != bkv::SwipeState::Asked).then_some(swipe)
        })
    };
    assert_eq!(swipe([9; 6]).state, bkv::SwipeState::Refused);
    let started = swipe(DIGITS);
    assert_eq!(started.state, bkv::SwipeState::Charging);
    let order = order_of(&gateway, &id);
    assert_eq!((&order["business_no"], &order["hold_cent"]), (&json!(started.business_no), &json!(10)));
    let order_no = order["order_no"].as_str().unwrap();
    gateway.order_becomes(order_no, "charging");
    device.pass(10 * MINUTE);
    let ended = gateway.order_becomes(order_no, "completed");
    assert_eq!(
        (&ended["charged_cent"], &ended["unpaid_cent"], &ended["duration_seconds"]),
        (&json!(10), &json!(0), &json!(600))
    );
    until("the record is acknowledged", || {
        device
            .with(|device, _| device.ledger().last().map(|entry| entry.state))
            .filter(|state| *state == State::Acknowledged)
    });
    assert_eq!(card(&gateway, "123456789012")["balance_cent"], 0);
    assert_eq!(swipe(DIGITS).state, bkv::SwipeState::Refused, "nothing is left");
}

#[test]
fn accounts_are_kept_over_the_api() {
    let Some(gateway) = start(Engine::Mio, &[]) else { return };
    let post = |path: &str, key: Option<&str>, body: Value| posted(&gateway, path, key, &body);
    let (status, made, _) = post("cards", None, json!({"card_no": "7A8D05DD", "tariff": "kwh"}));
    assert_eq!(status, 201);
    let data = &made["data"];
    assert_eq!((&data["card_no"], &data["printed_no"]), (&json!("7a8d05dd"), &json!("2056062429")));
    assert_eq!((&data["state"], &data["state_text"], &data["tariff"]), (&json!(0), &json!("normal"), &json!("kwh")));
    for (status, error, path, body) in [
        (409, "CARD_EXISTS", "cards", json!({"card_no": "2056062429"})),
        (400, "INVALID_PARAMETER", "cards", json!({"card_no": "1"})),
        (400, "INVALID_PARAMETER", "cards", json!({"card_no": "abcd", "tariff": "none"})),
        (400, "INVALID_PARAMETER", "cards", json!({"card_no": "abcd", "state": "blocked"})),
        (400, "INVALID_PARAMETER", "cards", json!({"card_no": "abcd", "balance_cent": 5})),
        (404, "CARD_NOT_FOUND", "cards/abcd", json!({"state": "normal"})),
        (400, "INVALID_PARAMETER", "cards/7a8d05dd", json!({})),
        (400, "INVALID_PARAMETER", "cards/7a8d05dd", json!({"expires_at": "tomorrow"})),
        (400, "INVALID_PARAMETER", "cards/7a8d05dd/recharge", json!({"amount_cent": 5})),
    ] {
        let (found, answer, _) = post(path, None, body.clone());
        assert_eq!((found, answer["error"].as_str()), (status, Some(error)), "{path} {body}");
    }
    for (status, error, path, body) in [
        (404, "CARD_NOT_FOUND", "cards/abcd/recharge", json!({"amount_cent": 5})),
        (400, "INVALID_PARAMETER", "cards/7a8d05dd/recharge", json!({"amount_cent": 0})),
        (400, "INVALID_PARAMETER", "cards/7a8d05dd/recharge", json!({"amount_cent": -5})),
        (400, "INVALID_PARAMETER", "cards/7a8d05dd/recharge", json!({})),
    ] {
        let (found, answer, _) = post(path, Some("k0"), body.clone());
        assert_eq!((found, answer["error"].as_str()), (status, Some(error)), "{path} {body}");
    }
    // A recharge is made once, and its repetition told the same.
    let body = json!({"amount_cent": 500, "reference": "till 7"});
    let (status, first, replayed) = post("cards/7a8d05dd/recharge", Some("k1"), body.clone());
    assert_eq!((status, replayed), (200, false));
    assert_eq!(
        (&first["data"]["balance_cent"], &first["data"]["transaction"]["reference"]),
        (&json!(500), &json!("till 7"))
    );
    assert_eq!(post("cards/7a8d05dd/recharge", Some("k1"), body), (200, first, true));
    assert_eq!(post("cards/7a8d05dd/recharge", Some("k1"), json!({"amount_cent": 501})).0, 422);
    let (status, answer, _) = post("cards/7a8d05dd/recharge", Some("k2"), json!({"amount_cent": 4_294_967_295_u32}));
    assert_eq!((status, answer["error"].as_str()), (400, Some("INVALID_PARAMETER")), "{answer}");
    // State, tariff and plan.
    let update = json!({"state": "foreign_card", "tariff": null, "expires_at": "2030-01-01T08:00:00+08:00"});
    let (status, changed, _) = post("cards/7a8d05dd", None, update);
    let data = &changed["data"];
    assert_eq!((status, &data["state"], &data["tariff"]), (200, &json!(11), &Value::Null));
    assert_eq!((&data["expires_at"], &data["balance_cent"]), (&json!("2030-01-01T00:00:00.000Z"), &json!(500)));
    let (_, changed, _) = post("cards/7a8d05dd", None, json!({"expires_at": null}));
    assert_eq!((&changed["data"]["expires_at"], &changed["data"]["state"]), (&Value::Null, &json!(11)));
    // Lists.
    assert_eq!(post("cards", None, json!({"card_no": "123456789012"})).0, 201);
    let total = |path: &str| gateway.get(path).data()["total"].clone();
    assert_eq!(
        (total("cards"), total("cards?state=foreign_card"), total("cards?state=6")),
        (json!(2), json!(1), json!(0))
    );
    gateway.get("cards?state=blocked").refused(400, "INVALID_PARAMETER");
    gateway.get("cards/abcd").refused(404, "CARD_NOT_FOUND");
    gateway.get("cards/abcd/transactions").refused(404, "CARD_NOT_FOUND");
    gateway.get("cards/%20/transactions").refused(400, "INVALID_PARAMETER");
    assert_eq!((total("cards/7a8d05dd/transactions"), total("cards/123456789012/transactions")), (json!(1), json!(0)));
}

#[test]
fn a_charge_request_holds_the_money_of_its_card() {
    let Some(gateway) = start(Engine::Mio, &[]) else { return };
    fund(&gateway, "7a8d05dd", 30);
    let device = charger();
    let id = device.phy_id().to_string();
    let device = Driven::connect(gateway.devices, device);
    gateway.knows_port(&id, 2);
    let path = format!("devices/{id}/charge");
    let charge = |port_no: u16, minutes: u16, card_no: &str| json!({"port_no": port_no, "mode": "time", "duration_minutes": minutes, "card_no": card_no});
    gateway.post(&path, &charge(1, 5, "abcd")).refused(404, "CARD_NOT_FOUND");
    let short = gateway.post(&path, &charge(1, 31, "7a8d05dd"));
    short.refused(402, "INSUFFICIENT_BALANCE");
    assert_eq!(*short.data(), json!({"free_cent": 30, "needed_cent": 31}));
    let order_no = gateway.charge(&id, &charge(1, 10, "7a8d05dd"));
    gateway.post(&path, &charge(2, 21, "7a8d05dd")).refused(402, "INSUFFICIENT_BALANCE");
    gateway.order_becomes(&order_no, "charging");
    device.pass(10 * MINUTE);
    let ended = gateway.order_becomes(&order_no, "completed");
    assert_eq!(
        (&ended["hold_cent"], &ended["price_cent"], &ended["charged_cent"]),
        (&json!(10), &json!(10), &json!(10))
    );
    assert_eq!(card(&gateway, "7a8d05dd")["free_cent"], 20);
    assert_eq!(posted(&gateway, "cards/7a8d05dd", None, &json!({"state": "foreign_card"})).0, 200);
    let blocked = gateway.post(&path, &charge(2, 5, "7a8d05dd"));
    blocked.refused(400, "INVALID_PARAMETER");
    assert_eq!(blocked.data()["state_text"], "foreign_card");
}

#[test]
fn a_third_party_that_keeps_the_cards_is_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/swipes", listener.local_addr().unwrap());
    let (told, asked) = mpsc::channel();
    thread::spawn(move || {
        let answers = [
            r#"{"account_state":11}"#,
            r#"{"allow":true,"balance_cent":990,"spec":{"mode":"time","duration_minutes":5}}"#,
        ];
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut length = 0;
            for line in reader.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty()) {
                if let Some(given) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
                    length = given.parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            told.send(serde_json::from_slice::<Value>(&body).unwrap()).unwrap();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", answer.len());
            stream.write_all(format!("{head}{answer}").as_bytes()).unwrap();
        }
    });
    let settings = [
        ("CHARGEGATE_CARDS_MODE", "webhook"),
        ("CHARGEGATE_CARDS_WEBHOOK_URL", url.as_str()),
        ("CHARGEGATE_CARDS_WEBHOOK_SECRET", "s"),
        ("CHARGEGATE_CARDS_WEBHOOK_TIMEOUT", "10s"),
        ("CHARGEGATE_WEBHOOK_ALLOW_PRIVATE_TARGETS", "true"),
    ];
    let Some(mut gateway) = start(Engine::Mio, &settings) else { return };
    let device = charger();
    let id = device.phy_id().to_string();
    let device = Driven::connect(gateway.devices, device);
    gateway.knows_port(&id, 1);
    let swipe = || {
        assert!(device.with(|device, now_us| device.swipe(now_us, &Card::new(UID), 0)));
        let question = asked.recv_timeout(PATIENCE).expect("the third party is asked");
        assert_eq!(
            (&question["card_no"], &question["device_id"], &question["port_no"]),
            (&json!("7a8d05dd"), &json!(id), &json!(1))
        );
        until("the swipe is answered", || match device.with(|device, _| device.last_swipe().copied())?.state {
            SwipeState::Answered(reply) | SwipeState::Charging(reply) => Some(reply),
            SwipeState::Asked | SwipeState::Unanswered => None,
        })
    };
    assert_eq!(swipe().account_state.0, 11);
    let reply = swipe();
    assert_eq!((reply.account_state.0, reply.balance_or_expiry), (0, 990));
    let order = order_of(&gateway, &id);
    let order_no = order["order_no"].as_str().unwrap();
    gateway.order_becomes(order_no, "charging");
    device.pass(5 * MINUTE);
    let ended = gateway.order_becomes(order_no, "completed");
    assert_eq!((&ended["card_no"], &ended["charged_cent"]), (&json!("7a8d05dd"), &Value::Null), "its own affair");
    let no_account =
        gateway.post(&format!("devices/{id}/charge"), &json!({"port_no": 1, "mode": "full", "card_no": "7a8d05dd"}));
    no_account.refused(400, "NOT_SUPPORTED");
    assert_eq!(gateway.metric("chargegate_card_questions_total{result=\"answered\"}"), 2);
    drop(device);
    assert!(gateway.sigterm().success(), "it stops with the threads that ask");
}
