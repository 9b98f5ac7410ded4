//! What one instance does alone, three do once: webhooks are delivered once per endpoint, and orders that nobody owns end once.
//!
//! Three gateways with the same two endpoints. While no instance dies, each event is delivered once to each endpoint, whatever
//! instance committed it. Then the instance that delivers is killed, with a start that its device never answered: another one takes
//! the lease over and delivers on, and the two that are left end the order once.

mod cluster;
mod gateway;
mod services;

use std::collections::BTreeMap;

use chargegate_loadtest::device::{Ap3000Device, Behaviour, Device as _};
use cluster::{Cluster, Options, assert_tells};
use gateway::{
    driven::Driven,
    receiver::Receiver,
    until,
    wire::{Ap3000, wire_no},
};
use serde_json::{Value, json};

const GATEWAYS: usize = 3;
const DEVICES: u32 = 6;
const SILENT: &str = "40aace04";

#[test]
fn jobs_are_not_doubled() {
    let receivers = [Receiver::start(), Receiver::start()];
    let mut endpoints = Vec::new();
    for (number, receiver) in receivers.iter().enumerate() {
        let mut of_one: Vec<Value> = serde_json::from_str(&receiver.endpoints()).expect("a list");
        of_one[0]["name"] = json!(format!("receiver-{number}"));
        endpoints.append(&mut of_one);
    }
    let endpoints = Value::from(endpoints).to_string();
    let variables = [
        ("CHARGEGATE_WEBHOOK_ALLOW_PRIVATE_TARGETS", "true"),
        ("CHARGEGATE_WEBHOOK_ENDPOINTS", endpoints.as_str()),
        ("CHARGEGATE_ORDERS_START_RESEND", "1s"),
        ("CHARGEGATE_ORDERS_CONFIRM_TIMEOUT", "2s"),
        ("CHARGEGATE_ORDERS_CREATE_TIMEOUT", "3s"),
        ("CHARGEGATE_ORDERS_BACKSTOP_DELAY", "1s"),
        ("CHARGEGATE_JOBS_ORDER_BACKSTOP_INTERVAL", "1s"),
        ("CHARGEGATE_SESSION_OFFLINE_GRACE", "1s"),
    ];
    let mut cluster = Cluster::start(GATEWAYS, &Options { variables: &variables, ..Options::default() });
    charges_everywhere(&cluster);
    for receiver in &receivers {
        let delivered = all_delivered(&cluster, receiver);
        let again: Vec<_> = delivered.iter().filter(|(_, times)| **times != 1).collect();
        assert!(again.is_empty(), "nobody died, and these were not delivered once: {again:?}");
    }
    let holder = deliverer(&cluster, "receiver-0").expect("somebody delivers");
    the_lease_moves(&mut cluster, &receivers, &holder);
}

/// Which gateway has the lease of an endpoint.
fn deliverer(cluster: &Cluster, endpoint: &str) -> Option<String> {
    cluster.value(&format!("SELECT owner FROM event_leases WHERE endpoint = '{endpoint}'"))
}

/// Orders asked for at each gateway, for devices at each gateway, from order to bill.
fn charges_everywhere(cluster: &Cluster) {
    let behaviour = Behaviour { time_factor: 120, ..Behaviour::default() };
    let devices: Vec<_> = (0..DEVICES)
        .map(|index| {
            let device = Ap3000Device::new(index, 2, behaviour);
            let id = device.phy_id().to_string();
            let on = index as usize % GATEWAYS;
            (id, on, Driven::connect(cluster.gateways[on].devices, device))
        })
        .collect();
    let mut orders = Vec::new();
    for (at, (id, on, _)) in devices.iter().enumerate() {
        for port_no in [1, 2] {
            // At the device's own gateway and at another.
            let asked = (at + port_no) % GATEWAYS;
            cluster.shows(asked, id, *on);
            cluster.gateways[asked].knows_port(id, 2);
            let body = json!({"port_no": port_no, "mode": "time", "duration_minutes": 2});
            orders.push((asked, cluster.gateways[asked].charge(id, &body)));
        }
    }
    for (asked, order_no) in &orders {
        let done = cluster.gateways[*asked].order_becomes(order_no, "completed");
        assert_eq!(done["duration_seconds"], 120, "{done}");
    }
    for (.., device) in devices {
        device.with(|device, _| device.quieten());
    }
}

/// Waits until the whole log is delivered, and says how often each event was.
fn all_delivered(cluster: &Cluster, receiver: &Receiver) -> BTreeMap<String, u32> {
    let wanted = until("all events have their positions", || {
        let waiting = cluster.number("SELECT (SELECT count(*) FROM events) - (SELECT count(*) FROM event_log)");
        let ids =
            "SELECT event_id FROM logged_events WHERE event_type NOT IN ('device.heartbeat', 'charging.progress')";
        (waiting == 0).then(|| cluster.rows(ids))
    });
    until("everything is delivered", || {
        let mut times = BTreeMap::new();
        for event in receiver.events() {
            *times.entry(event["event_id"].as_str().expect("an id").to_owned()).or_insert(0) += 1;
        }
        let wanted = wanted.iter().flatten().flatten();
        wanted.into_iter().all(|id| times.contains_key(id)).then_some(times)
    })
}

fn the_lease_moves(cluster: &mut Cluster, receivers: &[Receiver], holder: &str) {
    let dies = (0..GATEWAYS).find(|number| cluster.server_id(*number) == holder).expect("one of them");
    let api = (dies + 1) % GATEWAYS;
    let mut device = Ap3000::online(cluster.gateways[dies].devices, SILENT, 1);
    cluster.shows(api, SILENT, dies);
    let order_no = cluster.gateways[api].charge(SILENT, &json!({"port_no": 1, "mode": "full"}));
    device.expect_command(0x82, &[&[0, 0, 0, 0, 0, 0, 1, 0, 0], &wire_no(&order_no)[..]].concat());
    cluster.gateways[dies].kill9();
    cluster.gateways[api].order_becomes(&order_no, "timeout");
    for receiver in receivers {
        let told = receiver.events_of(&order_no, "order.timeout");
        let mut ids: Vec<_> = told.iter().map(|event| event["event_id"].to_string()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 2, "created and timed out, each once in the log: {told:?}");
        all_delivered(cluster, receiver);
    }
    assert_tells(&cluster.gateways[api], &order_no, &["order.created", "order.timeout"]);
    let next = deliverer(cluster, "receiver-0").expect("somebody delivers");
    assert_ne!(next, holder, "a killed instance delivers nothing");
    cluster.gateways[dies].start_again();
    cluster.is_ready(dies);
    charges_everywhere(cluster);
    for receiver in receivers {
        all_delivered(cluster, receiver);
    }
}
