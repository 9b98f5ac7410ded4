//! Settings of devices and network lists of gateways, as third parties see them, over a socket.

mod api;

use std::sync::Arc;

use api::{ALL, Rig, THIRD, key, unix_ms};
use chargegate::{
    config::Scope,
    gateway::directory::{PortCell, PortState},
    model::{Command, CommandState, HostValues, Protocol},
    store::{Bound, CommandUpdate, Job},
};
use serde_json::{Value, json};

const GATEWAY: &str = "86004459453005";
const CHARGER: &str = "40aace04";
const OPERATOR: &str = "key-operator";

fn rig() -> Rig {
    Rig::new([key("operator", [Scope::Read, Scope::Control])])
}

fn bind(rig: &Rig, id: &str, protocol: Protocol) -> Bound {
    rig.bind(id.parse().unwrap(), protocol, None)
}

/// The gateway says this to the command it was sent.
fn answers(rig: &Rig, command: &Command, state: CommandState) {
    for state in [CommandState::Written, state] {
        let update = CommandUpdate {
            device_id: command.device_id,
            id: command.id,
            epoch: command.epoch,
            state,
            order_no: None,
            attempts: 1,
            reason: None,
            result: None,
            at: unix_ms(),
        };
        rig.run(Job::Command(update));
    }
}

fn path(id: &str) -> String {
    format!("/devices/{id}")
}

fn sockets(id: &str) -> String {
    format!("/devices/{id}/sockets")
}

#[test]
fn settings_register_and_change_a_device() {
    let rig = rig();
    rig.get(&path(GATEWAY)).error(404, "DEVICE_NOT_FOUND");
    let made = rig.post(&path(GATEWAY), &json!({"protocol": "gn", "name": "yard 1", "extensions": true})).data(200);
    assert_eq!(
        made,
        json!({
            "device_id": GATEWAY, "protocol": "gn", "name": "yard 1", "extensions": true, "fsk_frequency": null,
            "registered": true,
        })
    );
    let shown = rig.get(&path(GATEWAY)).data(200);
    assert_eq!(
        (&shown["protocol"], &shown["name"], &shown["extensions"]),
        (&json!("gn"), &json!("yard 1"), &json!(true))
    );
    assert_eq!((&shown["online"], &shown["host"], &shown["imei"]), (&json!(false), &Value::Null, &Value::Null));
    // Only what is given changes; an empty name is none.
    let again = rig.post(&path(GATEWAY), &json!({"name": ""})).data(200);
    assert_eq!((&again["registered"], &again["name"], &again["protocol"]), (&json!(false), &Value::Null, &json!("gn")));
    assert_eq!(again["extensions"], true);
    let charger = rig.post(&path(CHARGER), &json!({"fsk_frequency": 470, "protocol": "ap3000"})).data(200);
    assert_eq!((&charger["protocol"], &charger["fsk_frequency"]), (&json!("ap3000"), &json!(470)));
    let shown = rig.get(&path(CHARGER)).data(200);
    assert!(shown["printed_no"].is_number(), "an AP3000 device's follows from its id");
    let told = rig.told.settings.lock();
    let told: Vec<_> = told.iter().map(|settings| settings.device_id.to_string()).collect();
    assert_eq!(told, [GATEWAY, GATEWAY, CHARGER]);
    // The record says what a gateway speaks, whatever its connection says.
    assert_eq!(bind(&rig, GATEWAY, Protocol::Bkv).protocol, Protocol::Gn);
}

#[test]
fn settings_are_for_administrators_and_checked() {
    let rig = rig();
    let body = json!({"name": "yard"});
    rig.send("POST", &format!("{THIRD}{}", path(GATEWAY)), Some(OPERATOR), Some(&body.to_string()))
        .error(403, "FORBIDDEN");
    let long = "x".repeat(65);
    for (id, body, code, part) in [
        (GATEWAY, json!({"protocol": "ap3000"}), "NOT_SUPPORTED", "its id says otherwise"),
        (CHARGER, json!({"protocol": "gn"}), "NOT_SUPPORTED", "its id says otherwise"),
        (CHARGER, json!({"extensions": true}), "NOT_SUPPORTED", "extensions"),
        (GATEWAY, json!({"fsk_frequency": 433}), "NOT_SUPPORTED", "fsk_frequency"),
        (GATEWAY, json!({"protocol": "modbus"}), "INVALID_PARAMETER", "ap3000, bkv, gn"),
        (GATEWAY, json!({"extensions": 1}), "INVALID_PARAMETER", "true or false"),
        (GATEWAY, json!({"name": long}), "INVALID_PARAMETER", "at most 64"),
        (GATEWAY, json!({"name": "a\nb"}), "INVALID_PARAMETER", "control character"),
        (CHARGER, json!({"fsk_frequency": 70_000}), "INVALID_PARAMETER", "0..=65535"),
        (GATEWAY, json!({"colour": "red"}), "INVALID_PARAMETER", "colour"),
    ] {
        let message = rig.post(&path(id), &body).error(400, code);
        assert!(message.contains(part), "{message}");
    }
    rig.get(&path(GATEWAY)).error(404, "DEVICE_NOT_FOUND");
    // A key makes a repetition the same request.
    let target = format!("{THIRD}{}", path(GATEWAY));
    let [first, again] = [(); 2].map(|()| rig.send_once(&target, ALL, "k1", Some(&body)));
    assert_eq!((first.status, &first.text), (again.status, &again.text));
    assert_eq!(first.data(200)["registered"], true);
}

#[test]
fn what_a_host_tells_is_shown() {
    let rig = rig();
    let epoch = bind(&rig, CHARGER, Protocol::Ap3000).epoch;
    let entry = rig.entry(CHARGER.parse().unwrap(), Protocol::Ap3000, epoch);
    entry.set_module(Some("866262040012345"), Some("GM5_V3.1"), Some(0x51));
    entry.set_host(Some(Arc::new(HostValues {
        smoke_alarm: Some(1),
        leak_current_ma: Some(12),
        ..HostValues::default()
    })));
    let shown = rig.get(&path(CHARGER)).data(200);
    assert_eq!(
        (&shown["imei"], &shown["module_version"], &shown["host_type"]),
        (&json!("866262040012345"), &json!("GM5_V3.1"), &json!(0x51))
    );
    assert_eq!(shown["host"], json!({"smoke_alarm": 1, "leak_current_ma": 12}));
}

#[test]
fn a_network_list_is_kept_and_confirmed_socket_by_socket() {
    use chargegate::model::CommandState::{Acked, Refused};
    let rig = rig();
    rig.get(&sockets(GATEWAY)).error(404, "DEVICE_NOT_FOUND");
    let list = json!({"action": "refresh", "channel": 3, "sockets": [
        {"socket": 2, "mac": "0000000000aa", "uid": "A-0002"}, {"socket": 1, "mac": "0000000000AB"},
    ]});
    rig.post(&sockets(GATEWAY), &list).error(404, "DEVICE_NOT_FOUND");
    bind(&rig, GATEWAY, Protocol::Bkv);
    let empty = rig.get(&sockets(GATEWAY)).data(200);
    assert_eq!((&empty["channel"], &empty["confirmed"], &empty["sockets"]), (&Value::Null, &json!(true), &json!([])));
    let target = format!("{THIRD}{}", sockets(GATEWAY));
    let [first, again] = [(); 2].map(|()| rig.send_once(&target, OPERATOR, "k1", Some(&list)));
    assert_eq!((first.status, &first.text), (again.status, &again.text));
    let stored = first.data(202);
    assert_eq!((&stored["channel"], &stored["confirmed"]), (&json!(3), &json!(false)));
    let shown: Vec<_> = stored["sockets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (&s["socket"], &s["mac"], &s["state"], &s["ports"]))
        .collect();
    assert_eq!(
        shown,
        [
            (&json!(1), &json!("0000000000ab"), &json!("desired"), &json!([1, 2])),
            (&json!(2), &json!("0000000000aa"), &json!("desired"), &json!([3, 4])),
        ]
    );
    let ports = rig.get(&path(GATEWAY)).data(200)["ports"].clone();
    let ports: Vec<_> = ports.as_array().unwrap().iter().map(|port| (&port["port_no"], &port["socket"])).collect();
    assert_eq!(
        ports,
        [(1, 1), (2, 1), (3, 2), (4, 2)]
            .map(|(port, socket)| (json!(port), json!(socket)))
            .iter()
            .map(|(a, b)| (a, b))
            .collect::<Vec<_>>()
    );
    // The gateway comes, is sent the list, and takes it.
    let bound = bind(&rig, GATEWAY, Protocol::Bkv);
    assert_eq!(bound.commands.len(), 1);
    answers(&rig, &bound.commands[0], Acked);
    let confirmed = rig.get(&sockets(GATEWAY)).data(200);
    assert_eq!((&confirmed["confirmed"], &confirmed["sockets"][1]["uid"]), (&json!(true), &json!("A-0002")));
    assert!(confirmed["sockets"][0]["confirmed_at"].is_string());
    // One more, which it refuses.
    let added = rig.post(&sockets(GATEWAY), &json!({"action": "add", "socket": 9, "mac": "0000000000ac"})).data(202);
    assert_eq!((&added["sockets"][2]["state"], &added["sockets"][2]["ports"]), (&json!("desired"), &json!([17, 18])));
    let bound = bind(&rig, GATEWAY, Protocol::Bkv);
    answers(&rig, &bound.commands[0], Refused);
    let shown = rig.get(&sockets(GATEWAY)).data(200);
    assert_eq!((&shown["sockets"][2]["refused"], &shown["confirmed"]), (&json!("device_refused"), &json!(false)));
    // One less.
    let removed = rig.delete(&format!("{}/2", sockets(GATEWAY))).data(202);
    assert_eq!((&removed["sockets"][1]["state"], &removed["sockets"][1]["ports"]), (&json!("removing"), &json!([])));
    assert_eq!(rig.get(&path(GATEWAY)).data(200)["ports"].as_array().unwrap().len(), 4);
    let told = rig.told.networks.lock();
    assert_eq!(told.len(), 3, "its owner hears of each change once");
}

#[test]
fn a_socket_with_an_order_stays() {
    let rig = rig();
    bind(&rig, GATEWAY, Protocol::Bkv);
    let list = json!({"action": "refresh", "channel": 3, "sockets": [{"socket": 1, "mac": "0000000000aa"}]});
    rig.post(&sockets(GATEWAY), &list).data(202);
    let epoch = bind(&rig, GATEWAY, Protocol::Bkv).epoch;
    let entry = rig.entry(GATEWAY.parse().unwrap(), Protocol::Bkv, epoch);
    entry.set_ports(vec![PortCell::new(&PortState::unknown(2, Some(1), Some(1)))]);
    let charge = json!({"port_no": 2, "mode": "time", "duration_minutes": 5});
    let order_no = rig.post(&format!("{}/charge", path(GATEWAY)), &charge).data(202)["order_no"].clone();
    let empty = json!({"action": "refresh", "channel": 3, "sockets": []});
    for answer in [rig.delete(&format!("{}/1", sockets(GATEWAY))), rig.post(&sockets(GATEWAY), &empty)] {
        assert_eq!(answer.json()["data"], json!({"order_no": order_no, "port_no": 2, "socket": 1}));
        let message = answer.error(409, "PORT_BUSY");
        assert!(message.contains(order_no.as_str().unwrap()), "{message}");
    }
    assert_eq!(rig.get(&sockets(GATEWAY)).data(200)["sockets"][0]["state"], "desired");
}

#[test]
fn network_lists_are_checked() {
    let rig = rig();
    bind(&rig, GATEWAY, Protocol::Bkv);
    bind(&rig, CHARGER, Protocol::Ap3000);
    let one = json!({"socket": 1, "mac": "0000000000aa"});
    let refresh = |channel: Value, sockets: Value| json!({"action": "refresh", "channel": channel, "sockets": sockets});
    rig.post(&sockets(GATEWAY), &refresh(json!(3), json!([one]))).data(202);
    for answer in [
        rig.get(&sockets(CHARGER)),
        rig.post(&sockets(CHARGER), &refresh(json!(3), json!([one]))),
        rig.delete(&format!("{}/1", sockets(CHARGER))),
    ] {
        answer.error(400, "NOT_SUPPORTED");
    }
    for (body, part) in [
        (json!({"action": "clear"}), "refresh, add"),
        (json!({}), "action is missing"),
        (refresh(json!(16), json!([one])), "channel must be a whole number in 1..=15, got 16"),
        (refresh(Value::Null, json!([one])), "channel is missing"),
        (json!({"action": "refresh", "channel": 3}), "sockets is missing"),
        (refresh(json!(3), json!([one, one])), "sockets[1].socket 1 is given twice"),
        (refresh(json!(3), json!([one, {"socket": 2, "mac": "0000000000AA"}])), "sockets[1].mac is given twice"),
        (refresh(json!(3), json!([{"socket": 251, "mac": "0000000000aa"}])), "sockets[0].socket"),
        (refresh(json!(3), json!([{"socket": 1, "mac": "00000000aa"}])), "sockets[0].mac"),
        (refresh(json!(3), json!([{"socket": 1}])), "sockets[0].mac is missing"),
        (refresh(json!(3), json!([{"socket": 1, "mac": "0000000000aa", "id": 1}])), "sockets[0].id"),
        (json!({"action": "add", "socket": 0, "mac": "0000000000aa"}), "socket must be"),
        (json!({"action": "add", "socket": 1, "mac": "0000000000ff"}), "socket 1 is in the list with another mac"),
        (json!({"action": "add", "socket": 2, "mac": "0000000000aa"}), "the mac is in the list as socket 1"),
        (json!({"action": "add", "socket": 2, "mac": "0000000000ab", "channel": 3}), "channel"),
    ] {
        let message = rig.post(&sockets(GATEWAY), &body).error(400, "INVALID_PARAMETER");
        assert!(message.contains(part), "{message}");
    }
    rig.delete(&format!("{}/7", sockets(GATEWAY))).error(404, "NOT_FOUND");
    rig.delete(&format!("{}/0", sockets(GATEWAY))).error(400, "INVALID_PARAMETER");
    rig.delete(&format!("{}/x", sockets(GATEWAY))).error(400, "INVALID_PARAMETER");
    assert_eq!(rig.told.networks.lock().len(), 1, "what is refused changes nothing");
}
