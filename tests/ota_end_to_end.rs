//! An image comes in by HTTP and ends in a device, byte by byte, although the gateway is killed on the way.
//!
//! The real process; the device is the simulator's, on a real connection.

#[macro_use]
mod gateway;

use std::fs;

use chargegate_loadtest::device::{Ap3000Device, Behaviour, ap3000::Model};
use gateway::{Answer, Engine, Gateway, KEY, driven::Driven, until};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const READER: &str = "key-that-may-read";
const IMAGE_MAX: usize = 100_000;

on_both_engines! {
    an_update_survives_the_gateway
    what_cannot_be_is_refused
}

fn image(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 % 253 + 1) as u8).collect()
}

fn start(engine: Engine) -> Option<Gateway> {
    let keys = json!([{"name": "tests", "key": KEY}, {"name": "reader", "key": READER, "scopes": ["read", "control"]}]);
    let max = IMAGE_MAX.to_string();
    Gateway::start(
        engine,
        &[
            ("CHARGEGATE_API_KEYS", &keys.to_string()),
            ("CHARGEGATE_AP3000_COMMAND_INTERVAL", "1ms"),
            ("CHARGEGATE_OTA_PACKETS_PER_S", "100000"),
            ("CHARGEGATE_OTA_POLL_INTERVAL", "100ms"),
            ("CHARGEGATE_OTA_FIRMWARE_MAX", &max),
        ],
    )
}

fn task(gateway: &Gateway, id: &Value) -> Value {
    let answer = gateway.get(&format!("ota/{id}"));
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.data().clone()
}

fn task_becomes(gateway: &Gateway, id: &Value, state: &str) -> Value {
    let mut last = Value::Null;
    until(&format!("update {id} becomes {state}, {}", gateway.log()), || {
        last = task(gateway, id);
        assert!(last["state_text"] == state || last["ended_at"].is_null(), "{last}");
        (last["state_text"] == state).then(|| last.clone())
    })
}

/// Connects a charger, and waits until it is online and has its row.
fn online(gateway: &Gateway) -> (Driven<Ap3000Device>, String) {
    let device = Ap3000Device::with_model(0, 2, Behaviour::default(), Model::default());
    let id = device.phy_id().to_string();
    let device = Driven::connect(gateway.devices, device);
    gateway.knows_port(&id, 1);
    until("the device has its row", || (gateway.get("devices").data()["total"] == 1).then_some(()));
    (device, id)
}

/// Names of the files beside the database.
fn files(gateway: &Gateway) -> Vec<String> {
    let dir = fs::read_dir(gateway.directory().join("data/firmware")).unwrap();
    dir.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

fn created(answer: &Answer) -> Value {
    assert_eq!(answer.status, 202, "{}", answer.text);
    answer.data()["task_id"].clone()
}

fn an_update_survives_the_gateway(engine: Engine) {
    let Some(mut gateway) = start(engine) else { return };
    let image = image(80_000);
    let sha256 = Sha256::digest(&image).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let path = "firmware?name=charger&version=2.07&device_type=0x21";
    let answer = gateway.upload(path, Some(KEY), &image);
    assert_eq!(answer.status, 201, "{}", answer.text);
    let firmware = answer.data().clone();
    assert_eq!((&firmware["sha256"], &firmware["size"]), (&json!(sha256), &json!(80_000)));
    assert_eq!((&firmware["version"], &firmware["device_type"]), (&json!("V2.07"), &json!(0x21)));
    let again = gateway.upload("firmware?name=other", Some(KEY), &image);
    assert_eq!((again.status, again.data()), (200, &firmware), "the same image is the same row");
    assert_eq!(gateway.get("firmware").data()["items"], json!([firmware]));
    until("only the image stays", || (files(&gateway) == [format!("{sha256}.bin")]).then_some(()));

    let (charger, device_id) = online(&gateway);
    let ota = format!("devices/{device_id}/ota");
    // The update is not over before the test has seen it, however slow that is.
    charger.pause();
    let answer = gateway.post(&ota, &json!({"firmware": sha256, "verification": true}));
    let id = created(&answer);
    assert_eq!((&answer.data()["method"], &answer.data()["packets_total"]), (&json!("e0"), &json!(401)));
    let busy = gateway.post(&ota, &json!({"firmware": firmware["firmware_id"]}));
    busy.refused(409, "TASK_STATE");
    assert_eq!(busy.data()["task_id"], id);

    // Killed twice in the middle, with a packet on the way; the device comes back by itself.
    let mut acked = 0;
    for commands in [60, 140] {
        charger.pause_after(commands);
        until("some packets are through", || charger.is_paused().then_some(()));
        let before = until("their acknowledgement is stored", || {
            let task = task(&gateway, &id);
            (task["packets_acked"].as_u64().unwrap() > acked).then_some(task)
        });
        assert_eq!(before["state_text"], "in_progress");
        gateway = gateway.restart();
        acked = task(&gateway, &id)["packets_acked"].as_u64().unwrap();
        assert!(Some(acked) >= before["packets_acked"].as_u64());
    }
    charger.resume();
    let done = task_becomes(&gateway, &id, "done");
    assert_eq!((&done["progress"], &done["packets_acked"]), (&json!(100), &json!(401)));
    assert!(charger.with(|device, _| device.firmware() == image), "the device has the exact image");
    until("the device shows its new version", || {
        let device = gateway.get(&format!("devices/{device_id}"));
        (device.data()["firmware"] == "V2.07").then_some(())
    });

    let events: Vec<Value> =
        gateway.events().into_iter().filter(|event| event["event_type"] == "ota.progress").collect();
    let states: Vec<u64> = events.iter().map(|event| event["data"]["state"].as_u64().unwrap()).collect();
    assert!(states.is_sorted() && states.first() == Some(&0) && states.last() == Some(&3), "{states:?}");
    assert!((20..=30).contains(&events.len()), "each five percent and each state: {}", events.len());
    gateway.request("DELETE", &format!("ota/{id}"), Some(KEY), None).refused(409, "TASK_STATE");
    assert_eq!(gateway.get("ota?state=done").data()["total"], 1);
    assert_eq!(gateway.get(&format!("ota?device_id={device_id}&state=failed")).data()["total"], 0);
}

fn what_cannot_be_is_refused(engine: Engine) {
    let Some(gateway) = start(engine) else { return };
    let body = image(1_000);
    gateway.upload("firmware?name=x", None, &body).refused(401, "UNAUTHORIZED");
    gateway.upload("firmware?name=x", Some(READER), &body).refused(403, "FORBIDDEN");
    gateway.upload("firmware?nmae=x", Some(KEY), &body).refused(400, "INVALID_PARAMETER");
    gateway.upload("firmware", Some(KEY), &body).refused(400, "INVALID_PARAMETER");
    gateway.upload("firmware?name=x&version=2", Some(KEY), &body).refused(400, "INVALID_PARAMETER");
    gateway.upload("firmware?name=x", Some(KEY), b"").refused(400, "INVALID_PARAMETER");
    gateway.upload("firmware?name=x", Some(KEY), &image(IMAGE_MAX + 1)).refused(413, "PAYLOAD_TOO_LARGE");
    gateway.upload("order/create", Some(KEY), &image(70_000)).refused(413, "PAYLOAD_TOO_LARGE");
    until("nothing of it stays", || files(&gateway).is_empty().then_some(()));
    let at_most = gateway.upload("firmware?name=x", Some(KEY), &image(IMAGE_MAX));
    assert_eq!(at_most.status, 201, "{}", at_most.text);
    let firmware = at_most.data()["firmware_id"].clone();

    let post = |id: &str, body: &Value| gateway.post(&format!("devices/{id}/ota"), body);
    post("c0e1e404", &json!({"firmware": firmware})).refused(404, "DEVICE_NOT_FOUND");
    gateway.get("ota/7").refused(404, "TASK_NOT_FOUND");
    gateway.request("DELETE", "ota/7", Some(KEY), None).refused(404, "TASK_NOT_FOUND");
    let (charger, id) = online(&gateway);
    let id = id.as_str();
    for (body, code) in [
        (json!({}), "INVALID_PARAMETER"),
        (json!({"firmware": "12"}), "INVALID_PARAMETER"),
        (json!({"firmware": firmware, "method": "e5"}), "INVALID_PARAMETER"),
        (json!({"firmware": firmware, "colour": "red"}), "INVALID_PARAMETER"),
        (json!({"firmware": firmware, "verification": true}), "INVALID_PARAMETER"),
        (json!({"firmware": firmware, "ftp_host": "192.0.2.1"}), "INVALID_PARAMETER"),
        (json!({"firmware": firmware, "method": "self_update"}), "INVALID_PARAMETER"),
        (json!({"firmware": firmware, "method": "f8", "verification": true}), "NOT_SUPPORTED"),
        (json!({"method": "ftp", "ftp_host": "192.0.2.1", "file": "a.bin"}), "NOT_SUPPORTED"),
    ] {
        post(id, &body).refused(400, code);
    }
    post(id, &json!({"firmware": "00".repeat(32)})).refused(404, "NOT_FOUND");
    for body in
        [json!({"ftp_host": "example.net", "file": "a"}), json!({"ftp_host": "192.0.2.1", "file": "14-characters."})]
    {
        post("86100000000001", &body).refused(400, "INVALID_PARAMETER");
    }
    post("86100000000001", &json!({"firmware": firmware, "method": "e0"})).refused(400, "NOT_SUPPORTED");

    // An image whose file is not what it was is not sent.
    let [name] = files(&gateway).try_into().unwrap();
    fs::write(gateway.directory().join("data/firmware").join(name), image(IMAGE_MAX - 1)).unwrap();
    let task = created(&post(id, &json!({"firmware": firmware})));
    assert_eq!(task_becomes(&gateway, &task, "failed")["reason"], "firmware_corrupt");
    // Uploading it again mends it.
    assert_eq!(gateway.upload("firmware?name=x", Some(KEY), &image(IMAGE_MAX)).status, 200);
    charger.pause_after(50);
    let task = created(&post(id, &json!({"firmware": firmware})));
    until("it goes on", || (self::task(&gateway, &task)["state_text"] == "in_progress").then_some(()));
    let cancelled = gateway.request("DELETE", &format!("ota/{task}"), Some(KEY), None);
    assert_eq!((cancelled.status, &cancelled.data()["reason"]), (200, &json!("cancelled")), "{}", cancelled.text);
    let again = gateway.request("DELETE", &format!("ota/{task}"), Some(KEY), None);
    assert_eq!(again.data()["reason"], "cancelled", "{}", again.text);
    charger.resume();
    // A device updates itself on being told.
    let task = created(&post(id, &json!({"method": "self_update"})));
    task_becomes(&gateway, &task, "done");
}
