//! Hosts with many chargers and gateways with network lists, simulated byte for byte, at the real process.

#[macro_use]
mod gateway;

use std::time::Duration;

use chargegate::protocol::{ap3000::body::HostStatus, bkv::status::HoleStatus};
use chargegate_loadtest::device::{
    Behaviour, BkvDevice, HostDevice,
    ap3000::{HostModel, Model},
    bkv::Fault,
};
use gateway::{Engine, Gateway, KEY, driven::Driven, until};
use serde_json::{Value, json};

on_both_engines! {
    a_host_serves_its_chargers_and_raises_alarms
    a_network_list_makes_ports_and_takes_them_away
    a_list_is_taken_by_a_gateway_that_comes_later_and_after_a_lost_reply
}

fn a_host_serves_its_chargers_and_raises_alarms(engine: Engine) {
    let Some(gateway) = Gateway::start(engine, &[]) else { return };
    let model = HostModel { recognition_code: 0x0A, host_type: 0x51, fw_version: 401, ..HostModel::default() };
    let device = HostDevice::with_model(0, 12, 2, Behaviour::default(), model, Model::default());
    let host_id = device.phy_id().to_string();
    let subs: Vec<String> = device.sub_devices().map(|sub| sub.phy_id().to_string()).collect();
    let host = Driven::connect(gateway.devices, device);
    for id in &subs {
        gateway.knows_port(id, 2);
    }
    until("the host is known", || {
        let host = gateway.get(&format!("devices/{host_id}"));
        (host.status == 200 && host.data()["host_type"] == 0x51 && host.data()["online"] == true).then_some(())
    });
    // Every charger charges for itself, all at once, over one connection.
    let charge = json!({"port_no": 1, "mode": "time", "duration_minutes": 1});
    let orders: Vec<String> = subs.iter().map(|id| gateway.charge(id, &charge)).collect();
    for order_no in &orders {
        gateway.order_becomes(order_no, "charging");
    }
    host.pass(Duration::from_secs(60));
    for order_no in &orders {
        gateway.order_becomes(order_no, "completed");
    }
    for (id, order_no) in subs.iter().zip(&orders) {
        let order = gateway.order(order_no);
        assert_eq!((&order["device_id"], &order["duration_seconds"]), (&json!(id), &json!(60)));
    }
    // The host says how it is, then that it smokes.
    let status = |smoke_alarm| HostStatus {
        breaker_state: 1,
        voltage: 2210,
        smoke_alarm,
        leak_current_ma: Some(3),
        ..HostStatus::default()
    };
    host.with(|host, now_us| host.set_status(now_us, status(0)));
    until("the host's values are shown", || {
        let host = gateway.get(&format!("devices/{host_id}"));
        (host.data()["host"]["voltage_dv"] == 2210 && host.data()["host"]["leak_current_ma"] == 3).then_some(())
    });
    host.with(|host, now_us| host.set_status(now_us, status(1)));
    let alarm =
        until("the alarm is told", || gateway.events().into_iter().find(|event| event["event_type"] == "device.alarm"));
    assert_eq!((&alarm["device_phy_id"], &alarm["data"]["reason"]), (&json!(host_id), &json!("smoke")), "{alarm}");
    host.with(|host, now_us| host.report_versions(now_us));
    until("what is behind the host is shown", || {
        let host = gateway.get(&format!("devices/{host_id}"));
        (host.data()["host"]["sub_devices"].as_array().is_some_and(|subs| subs.len() == 1)).then_some(())
    });
}

fn entry(socket: u8) -> Value {
    json!({"socket": socket, "mac": format!("00aabbccdd{socket:02x}"), "uid": format!("S{socket:03}")})
}

fn sockets(gateway: &Gateway, id: &str) -> Value {
    gateway.get(&format!("devices/{id}/sockets")).data().clone()
}

#[track_caller]
fn confirmed(gateway: &Gateway, id: &str) -> Value {
    until("the network list is confirmed", || {
        let list = sockets(gateway, id);
        (list["confirmed"] == true).then_some(list)
    })
}

fn post_list(gateway: &Gateway, id: &str, numbers: &[u8]) {
    let list: Vec<Value> = numbers.iter().map(|number| entry(*number)).collect();
    let body = json!({"action": "refresh", "channel": 5, "sockets": list});
    let answer = gateway.post(&format!("devices/{id}/sockets"), &body);
    assert_eq!(answer.status, 202, "{}", answer.text);
}

fn ports(gateway: &Gateway, id: &str) -> Vec<u64> {
    let device = gateway.get(&format!("devices/{id}"));
    let ports = device.data()["ports"].as_array().cloned().unwrap_or_default();
    ports.iter().filter_map(|port| port["port_no"].as_u64()).collect()
}

fn a_network_list_makes_ports_and_takes_them_away(engine: Engine) {
    let variables = [("CHARGEGATE_DEVICES_ADMISSION", "known")];
    let Some(gateway) = Gateway::start(engine, &variables) else { return };
    let device = BkvDevice::new(0, 1, Behaviour::default());
    let id = device.gateway_id().to_string();
    // A device becomes known by its settings.
    let answer = gateway.post(&format!("devices/{id}"), &json!({"protocol": "gn", "name": "yard"}));
    assert_eq!((answer.status, &answer.data()["registered"]), (200, &json!(true)), "{}", answer.text);
    let device = Driven::connect(gateway.devices, device);
    until("the gateway is online", || {
        let device = gateway.get(&format!("devices/{id}"));
        (device.data()["online"] == true && device.data()["protocol"] == "gn").then_some(())
    });
    post_list(&gateway, &id, &[1, 2, 7]);
    let list = confirmed(&gateway, &id);
    assert_eq!(list["sockets"][2]["uid"], "S007");
    let taken: Vec<_> = device.with(|device, _| device.sockets().collect());
    assert_eq!(taken.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 7]);
    assert_eq!(taken[2].1, [0, 0xAA, 0xBB, 0xCC, 0xDD, 7]);
    assert_eq!(ports(&gateway, &id), [1, 2, 3, 4, 13, 14]);
    // A charge on the second hole of the last socket.
    let order_no = gateway.charge(&id, &json!({"port_no": 14, "mode": "time", "duration_minutes": 900}));
    gateway.order_becomes(&order_no, "charging");
    let status: Option<HoleStatus> = device.with(|device, _| device.hole_status(7, 1));
    assert!(status.is_some_and(HoleStatus::charging), "{status:?}");
    gateway.request("DELETE", &format!("devices/{id}/sockets/7"), Some(KEY), None).refused(409, "PORT_BUSY");
    assert_eq!(gateway.post(&format!("orders/{order_no}/stop"), &json!({})).status, 202);
    gateway.order_becomes(&order_no, "stopped");
    let removal = gateway.request("DELETE", &format!("devices/{id}/sockets/7"), Some(KEY), None);
    assert_eq!(removal.status, 202, "{}", removal.text);
    // The device's shard hears of it after the answer.
    until("the ports are gone", || (ports(&gateway, &id) == [1, 2, 3, 4]).then_some(()));
    gateway
        .post(&format!("devices/{id}/charge"), &json!({"port_no": 14, "mode": "time", "duration_minutes": 2}))
        .refused(404, "PORT_NOT_FOUND");
    let added = json!({"action": "add", "socket": 3, "mac": "00aabbccdd03"});
    assert_eq!(gateway.post(&format!("devices/{id}/sockets"), &added).status, 202);
    confirmed(&gateway, &id);
    let taken: Vec<u8> = device.with(|device, _| device.sockets().map(|(number, _)| number).collect());
    assert_eq!(taken, [1, 2, 3]);
    assert_eq!(ports(&gateway, &id), [1, 2, 3, 4, 5, 6]);
}

fn a_list_is_taken_by_a_gateway_that_comes_later_and_after_a_lost_reply(engine: Engine) {
    let Some(gateway) = Gateway::start(engine, &[]) else { return };
    let mut device = BkvDevice::new(1, 0, Behaviour::default());
    let id = device.gateway_id().to_string();
    gateway.post(&format!("devices/{id}"), &json!({}));
    post_list(&gateway, &id, &[1, 4]);
    assert_eq!(ports(&gateway, &id), [1, 2, 7, 8], "they are there before the gateway is");
    // It takes the list, and its answer gets lost; it is asked once more.
    device.set_fault(Fault::ReplyLost(0x08));
    let device = Driven::connect(gateway.devices, device);
    until("the gateway has the list", || {
        let numbers: Vec<u8> = device.with(|device, _| device.sockets().map(|(number, _)| number).collect());
        (numbers == [1, 4]).then_some(())
    });
    confirmed(&gateway, &id);
    // A list survives the loss of the gateway process, and what it lacks is sent by the next.
    let refused = json!({"action": "add", "socket": 9, "mac": "00aabbccdd09"});
    device.with(|device, _| device.set_fault(Fault::Refused(0x09)));
    assert_eq!(gateway.post(&format!("devices/{id}/sockets"), &refused).status, 202);
    until("the refusal is shown", || {
        (sockets(&gateway, &id)["sockets"][2]["refused"] == "device_refused").then_some(())
    });
    drop(device);
    let gateway = gateway.restart();
    let list = sockets(&gateway, &id);
    assert_eq!((&list["confirmed"], &list["sockets"][2]["state"]), (&json!(false), &json!("desired")));
    let device = Driven::connect(gateway.devices, BkvDevice::new(1, 0, Behaviour::default()));
    confirmed(&gateway, &id);
    let numbers: Vec<u8> = device.with(|device, _| device.sockets().map(|(number, _)| number).collect());
    assert_eq!(numbers, [1, 4, 9]);
}
