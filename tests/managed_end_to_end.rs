//! Keys and endpoints made by the admin API are in force as soon as they are answered, on every instance, and without a restart.
//!
//! Real processes and scripted devices. A receiver checks each delivery with the secret that the answer to a request has shown.

mod cluster;
mod gateway;
mod services;

use std::fs;

use cluster::{Cluster, Options};
use gateway::{
    Answer, Engine, Gateway, KEY,
    receiver::{Delivery, Receiver, SECRET},
    until,
    wire::Ap3000,
};
use serde_json::{Value, json};

const KEYS: &str = "/api/v1/admin/keys";
const WEBHOOKS: &str = "/api/v1/admin/webhooks";

fn start() -> Gateway {
    let variables = [("CHARGEGATE_WEBHOOK_ALLOW_PRIVATE_TARGETS", "true")];
    Gateway::start(Engine::Mio, &variables).expect("mio runs everywhere")
}

#[track_caller]
fn done(answer: &Answer, status: u16) -> Value {
    assert_eq!(answer.status, status, "{}", answer.text);
    answer.data().clone()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

fn uses(gateway: &Gateway, key: &str, path: &str) -> u16 {
    gateway.request("GET", path, Some(key), None).status
}

/// Waits until the pusher has followed once more than `before` times.
fn pusher_follows(gateway: &Gateway, before: u64) {
    until("the pusher follows", || (pusher_reloads(gateway) > before).then_some(()));
}

fn pusher_reloads(gateway: &Gateway) -> u64 {
    gateway.metric("chargegate_managed_reloads_total{what=\"endpoints\"}")
}

/// Types and devices of what was delivered, each checked with the secret that signs first.
fn told(deliveries: &[Delivery], secret: &str) -> Vec<(String, String)> {
    let events = deliveries.iter().map(|delivery| delivery.verified_by(secret));
    events.map(|event| (text(&event["event_type"]), text(&event["device_phy_id"]))).collect()
}

fn registered(device_id: &str) -> (String, String) {
    ("device.registered".to_owned(), device_id.to_owned())
}

/// Waits for the delivery of an event of a device, and gives all there are.
fn delivered(receiver: &Receiver, event_type: &str, device_id: &str) -> Vec<Delivery> {
    until(&format!("{event_type} of {device_id} is delivered"), || {
        let deliveries = receiver.deliveries();
        let is_it = |delivery: &Delivery| {
            let event = delivery.body();
            event["event_type"] == event_type && event["device_phy_id"] == device_id
        };
        deliveries.iter().any(is_it).then_some(deliveries)
    })
}

#[test]
fn a_key_is_in_force_with_its_answer_and_over_a_restart() {
    let gateway = start();
    let made = done(&gateway.post(KEYS, &json!({"name": "billing", "scopes": ["read", "admin"]})), 201);
    let first = text(&made["key"]);
    assert_eq!((uses(&gateway, &first, "devices"), uses(&gateway, &first, KEYS)), (200, 200));
    assert_eq!(gateway.request("POST", "cards", Some(&first), Some(&json!({"card_no": "04a1b2c3"}))).status, 403);

    let path = format!("{KEYS}/billing");
    let second = text(&done(&gateway.post(&format!("{path}/rotate"), &json!({})), 200)["key"]);
    assert_eq!((uses(&gateway, &first, "devices"), uses(&gateway, &second, "devices")), (401, 200));
    done(&gateway.post(&path, &json!({"scopes": ["read"]})), 200);
    assert_eq!((uses(&gateway, &second, "devices"), uses(&gateway, &second, KEYS)), (200, 403));

    let gateway = gateway.restart();
    // The first request of this life.
    assert_eq!(uses(&gateway, &second, "devices"), 200);
    done(&gateway.request("DELETE", &path, Some(KEY), None), 200);
    assert_eq!(uses(&gateway, &second, "devices"), 401);
    assert_eq!(gateway.metric("chargegate_managed_revision"), 4);
    let log = gateway.log();
    for secret in [&first, &second] {
        assert!(!log.contains(secret.as_str()), "no key is logged");
    }
    assert!(log.contains("key.rotate") && log.contains("billing"), "who changed what is: {log}");
}

#[test]
fn an_endpoint_gets_what_comes_after_it_signed_by_the_secret_that_was_shown() {
    let gateway = start();
    let receiver = Receiver::start();
    Ap3000::online(gateway.devices, "40000001", 1);
    gateway.knows_port("40000001", 1);

    let body = json!({"name": "erp", "url": receiver.url(), "events": ["device.*"]});
    let first = text(&done(&gateway.post(WEBHOOKS, &body), 201)["secret"]);
    let mut device = Ap3000::online(gateway.devices, "40000002", 1);
    let deliveries = delivered(&receiver, "device.registered", "40000002");
    assert!(!told(&deliveries, &first).contains(&registered("40000001")), "nothing of before");
    // Heartbeats are made for nobody until somebody wants them.
    until("a heartbeat is delivered", || {
        device.beat(&[0]);
        let deliveries = receiver.deliveries();
        deliveries.iter().any(|delivery| delivery.body()["event_type"] == "device.heartbeat").then_some(())
    });

    let path = format!("{WEBHOOKS}/erp");
    let before = pusher_reloads(&gateway);
    done(&gateway.post(&path, &json!({"events": ["device.registered"]})), 200);
    pusher_follows(&gateway, before);
    let before = pusher_reloads(&gateway);
    let second = text(&done(&gateway.post(&format!("{path}/rotate"), &json!({})), 200)["secret"]);
    pusher_follows(&gateway, before);
    Ap3000::online(gateway.devices, "40000003", 1);
    let last = delivered(&receiver, "device.registered", "40000003").pop().expect("it was found");
    assert!(last.is_signed_by(&first) && last.is_signed_by(&second), "both sign while receivers change over");
    last.verified_by(&second);

    let before = pusher_reloads(&gateway);
    done(&gateway.post(&path, &json!({"secret_previous": null})), 200);
    pusher_follows(&gateway, before);
    Ap3000::online(gateway.devices, "40000004", 1);
    let last = delivered(&receiver, "device.registered", "40000004").pop().expect("it was found");
    assert!(last.is_signed_by(&second) && !last.is_signed_by(&first));

    // A restart goes on where it was; what is removed gets nothing, also under its name.
    let gateway = gateway.restart();
    Ap3000::online(gateway.devices, "40000005", 1);
    let last = delivered(&receiver, "device.registered", "40000005").pop().expect("it was found");
    last.verified_by(&second);
    let before = pusher_reloads(&gateway);
    done(&gateway.request("DELETE", &path, Some(KEY), None), 200);
    pusher_follows(&gateway, before);
    let count = receiver.count();
    Ap3000::online(gateway.devices, "40000006", 1);
    gateway.knows_port("40000006", 1);
    let again = text(&done(&gateway.post(WEBHOOKS, &body), 201)["secret"]);
    Ap3000::online(gateway.devices, "40000007", 1);
    let deliveries = delivered(&receiver, "device.registered", "40000007");
    let events = told(&deliveries[count..], &again);
    assert!(!events.contains(&registered("40000006")), "{events:?}");
    let log = gateway.log();
    for secret in [&first, &second, &again] {
        assert!(!log.contains(secret.as_str()), "no secret is logged");
    }
}

#[test]
fn a_reload_of_the_configuration_stands_beside_what_the_api_made() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("chargegate.toml");
    let write = |keys: &[(&str, &str)], endpoints: &[(&str, &Receiver)]| {
        let mut text = String::new();
        for (name, key) in keys {
            text += &format!("[[api.keys]]\nname = '{name}'\nkey = '{key}'\n");
        }
        for (name, receiver) in endpoints {
            let url = receiver.url();
            text += &format!("[[webhook.endpoints]]\nname = '{name}'\nurl = '{url}'\nsecret = '{SECRET}'\n");
        }
        fs::write(&file, text).expect("written");
    };
    write(&[("root", KEY)], &[]);
    let variables = [
        ("CHARGEGATE_API_KEYS", ""),
        ("CHARGEGATE_CONFIG", file.to_str().expect("UTF-8")),
        ("CHARGEGATE_WEBHOOK_ALLOW_PRIVATE_TARGETS", "true"),
    ];
    let gateway = Gateway::start(Engine::Mio, &variables).expect("mio runs everywhere");
    let becomes = |key: &str, status: u16| {
        until(&format!("the key's answer is {status}"), || (uses(&gateway, key, "devices") == status).then_some(()));
    };
    let made = text(&done(&gateway.post(KEYS, &json!({"name": "billing"})), 201)["key"]);
    let (of_file, of_store) = (Receiver::start(), Receiver::start());
    let body = json!({"name": "erp", "url": of_store.url(), "secret": SECRET});
    done(&gateway.post(WEBHOOKS, &body), 201);

    let before = pusher_reloads(&gateway);
    write(&[("root", KEY), ("second", "second-key")], &[("crm", &of_file)]);
    gateway.signal(libc::SIGHUP);
    becomes("second-key", 200);
    assert_eq!(uses(&gateway, &made, "devices"), 200);
    pusher_follows(&gateway, before);
    Ap3000::online(gateway.devices, "40000001", 1);
    for receiver in [&of_file, &of_store] {
        delivered(receiver, "device.registered", "40000001").iter().for_each(|delivery| drop(delivery.verified()));
    }

    // The file takes the name, and lets go of it.
    write(&[("root", KEY), ("billing", "billing-of-the-file")], &[]);
    gateway.signal(libc::SIGHUP);
    becomes("billing-of-the-file", 200);
    assert_eq!(uses(&gateway, &made, "devices"), 401);
    assert_eq!(gateway.metric("chargegate_managed_left_out{why=\"shadowed\"}"), 1);
    gateway.request("DELETE", &format!("{KEYS}/billing"), Some(KEY), None).refused(409, "READ_ONLY");
    write(&[("root", KEY)], &[]);
    gateway.signal(libc::SIGHUP);
    becomes(&made, 200);
    assert_eq!(uses(&gateway, "billing-of-the-file", "devices"), 401);
    assert_eq!(gateway.metric("chargegate_managed_left_out{why=\"shadowed\"}"), 0);
}

#[test]
fn every_instance_follows_and_none_forgets_while_the_store_is_away() {
    let options = Options { variables: &[("CHARGEGATE_WEBHOOK_ALLOW_PRIVATE_TARGETS", "true")], ..Options::default() };
    let mut cluster = Cluster::start(2, &options);
    let [a, b] = cluster.gateways.as_slice() else { panic!("two were asked for") };
    let becomes = |gateway: &Gateway, key: &str, status: u16| {
        until(&format!("the key's answer is {status}"), || (uses(gateway, key, "devices") == status).then_some(()));
    };
    let key = text(&done(&a.post(KEYS, &json!({"name": "billing"})), 201)["key"]);
    assert_eq!(uses(a, &key, "devices"), 200);
    becomes(b, &key, 200);
    // What is made on one is changed on the other.
    let rotated = text(&done(&b.post(&format!("{KEYS}/billing/rotate"), &json!({})), 200)["key"]);
    becomes(a, &key, 401);
    becomes(a, &rotated, 200);
    b.post(KEYS, &json!({"name": "billing"})).refused(409, "NAME_TAKEN");

    let receiver = Receiver::start();
    let body = json!({"name": "erp", "url": receiver.url(), "events": ["device.registered"]});
    let secret = text(&done(&a.post(WEBHOOKS, &body), 201)["secret"]);
    Ap3000::online(b.devices, "40000001", 1);
    Ap3000::online(a.devices, "40000002", 1);
    for device in ["40000001", "40000002"] {
        delivered(&receiver, "device.registered", device);
    }
    let mut all = told(&receiver.deliveries(), &secret);
    all.sort();
    assert_eq!(all, [registered("40000001"), registered("40000002")], "one of them delivers");

    cluster.postgres.kill9();
    let [a, b] = cluster.gateways.as_slice() else { panic!("two were asked for") };
    for gateway in [a, b] {
        let failures = || {
            let reasons = ["unavailable", "timeout", "busy"];
            let count = |why| gateway.metric(&format!("chargegate_managed_failures_total{{reason=\"{why}\"}}"));
            reasons.map(count).iter().sum::<u64>()
        };
        until("a look at the store fails", || (failures() > 0).then_some(()));
        assert_eq!(uses(gateway, &rotated, "devices"), 503, "the key is known, the store is not there");
        assert_eq!(uses(gateway, &key, "devices"), 401);
    }
    cluster.postgres.restart();
    let [a, b] = cluster.gateways.as_slice() else { panic!("two were asked for") };
    becomes(b, &rotated, 200);
    until("keys are removed again", || {
        let answer = b.request("DELETE", &format!("{KEYS}/billing"), Some(KEY), None);
        [200, 404].contains(&answer.status).then_some(())
    });
    becomes(a, &rotated, 401);
}
