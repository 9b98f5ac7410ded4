//! Operators see which commands wait, where and why, and have a running gateway say more or less.
//!
//! A device that does not answer leaves a start on its way; a device that goes away leaves a command nobody has.

mod gateway;

use gateway::{
    Engine, Gateway, KEY, until,
    wire::{Ap3000, wire_no},
};
use serde_json::json;

const QUEUE: &str = "/api/v1/admin/queue";
const LOG_LEVEL: &str = "/api/v1/admin/log-level";
const CHARGER: &str = "40aace04";
const AWAY: &str = "40aace05";

fn start() -> Gateway {
    let keys = json!([{"name": "tests", "key": KEY}, {"name": "control", "key": "key-of-a-shop", "scopes": ["read", "control"]}]);
    Gateway::start(Engine::Mio, &[("CHARGEGATE_API_KEYS", &keys.to_string())]).expect("epoll is always there")
}

#[test]
fn the_queue_shows_each_command_on_its_way() {
    let gateway = start();
    gateway.request("GET", QUEUE, Some("key-of-a-shop"), None).refused(403, "FORBIDDEN");
    for query in ["state=gone", "device_id=xyz", "size=201", "order_no=1"] {
        gateway.get(&format!("{QUEUE}?{query}")).refused(400, "INVALID_PARAMETER");
    }
    let empty = gateway.get(QUEUE);
    assert_eq!(empty.data()["by_state"], json!({"queued": 0, "claimed": 0, "written": 0}), "{}", empty.text);
    assert_eq!(empty.data()["commands"], json!({"items": [], "total": 0, "page": 1, "size": 20}));

    let away = Ap3000::online(gateway.devices, AWAY, 1);
    gateway.knows_port(AWAY, 1);
    drop(away);
    let connections = || gateway.get("/api/v1/admin/drain").data()["connections"].as_u64();
    until("it is gone", || (connections() == Some(0)).then_some(()));
    let locate = gateway.post(&format!("devices/{AWAY}/commands"), &json!({"command": "locate", "seconds": 9}));
    assert_eq!(locate.status, 202, "{}", locate.text);

    let mut charger = Ap3000::online(gateway.devices, CHARGER, 2);
    gateway.knows_port(CHARGER, 2);
    let order_no = gateway.charge(CHARGER, &json!({"port_no": 2, "mode": "full"}));
    let number = wire_no(&order_no);
    let msg_id = charger.expect_command(0x82, &[&[0, 0, 0, 0, 0, 1, 1, 0, 0], &number[..]].concat());
    let queue = until("one is written, one waits", || {
        let answer = gateway.get(QUEUE);
        (answer.data()["by_state"] == json!({"queued": 1, "claimed": 0, "written": 1})).then_some(answer)
    });
    let commands = &queue.data()["commands"];
    assert_eq!((commands["total"].as_u64(), commands["items"].as_array().map(Vec::len)), (Some(2), Some(2)));
    let start = &commands["items"][0];
    let is = |field: &str, value: serde_json::Value| assert_eq!(start[field], value, "{field} of {start}");
    is("kind", json!("start"));
    is("device_id", json!(CHARGER));
    is("order_no", json!(order_no));
    is("port_no", json!(2));
    is("priority", json!(2));
    is("state", json!("written"));
    is("attempts", json!(1));
    is("msg_id", json!(msg_id));
    is("maybe_written", json!(false));
    is("reason", json!(null));
    assert!(start["epoch"].as_i64().is_some_and(|epoch| epoch > 0), "{start}");
    for time in ["created_at", "not_before", "not_after", "written_at", "updated_at"] {
        assert!(start[time].as_str().is_some_and(|text| text.ends_with('Z')), "{time} of {start}");
    }
    let waits = &commands["items"][1];
    assert_eq!((&waits["kind"], &waits["state"], &waits["priority"]), (&json!("locate"), &json!("queued"), &json!(5)));
    assert_eq!(waits["command_id"], locate.data()["command_id"]);
    assert_eq!(waits["epoch"], json!(null), "never claimed, so never written");
    // Nothing waits here to be written: one is written, and the other is nobody's.
    let none = json!({"emergency": 0, "high": 0, "normal": 0, "low": 0, "idle": 0});
    assert_eq!(queue.data()["by_priority"], none);
    let of_one = gateway.get(&format!("{QUEUE}?device_id={AWAY}&state=queued&size=1"));
    assert_eq!(of_one.data()["commands"]["items"], json!([waits]));

    charger.answer(msg_id, 0, 1, number);
    gateway.order_becomes(&order_no, "confirmed");
    let acked = until("it is answered", || {
        let answer = gateway.get(&format!("{QUEUE}?state=acked"));
        (answer.data()["commands"]["total"] == 1).then_some(answer)
    });
    assert_eq!(acked.data()["commands"]["items"][0]["order_no"], json!(order_no));
    assert_eq!(acked.data()["by_state"], json!({"queued": 1, "claimed": 0, "written": 0}), "whatever is listed");
}

#[test]
fn the_log_level_changes_at_once_and_until_a_reload() {
    let gateway = start();
    let level = || gateway.get(LOG_LEVEL).data()["level"].as_str().map(str::to_owned);
    assert_eq!(level().as_deref(), Some("info"));
    gateway
        .request("POST", LOG_LEVEL, Some("key-of-a-shop"), Some(&json!({"level": "debug"})))
        .refused(403, "FORBIDDEN");
    for body in [json!({}), json!({"level": "loud"}), json!({"level": "debug", "for": 1})] {
        gateway.post(LOG_LEVEL, &body).refused(400, "INVALID_PARAMETER");
    }
    assert!(!gateway.log().contains("request answered"));
    let set = gateway.post(LOG_LEVEL, &json!({"level": "debug"}));
    assert_eq!((set.status, &set.data()["level"]), (200, &json!("debug")), "{}", set.text);
    assert_eq!(level().as_deref(), Some("debug"));
    until("requests are logged", || gateway.log().contains("request answered").then_some(()));
    gateway.post(LOG_LEVEL, &json!({"level": "error"}));
    assert_eq!(level().as_deref(), Some("error"));
    let log = gateway.log();
    let audits: Vec<_> = log.lines().filter(|line| line.contains("\"action\":\"log_level\"")).collect();
    assert!(audits.len() == 2 && audits[1].contains("\"subject\":\"error\""), "{audits:?}");
    gateway.signal(libc::SIGHUP);
    until("the configuration holds again", || (level().as_deref() == Some("info")).then_some(()));
}
