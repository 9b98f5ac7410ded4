//! What a device sent is shown in words, what went wrong with it is listed, and its connection can be closed: by the real process, over
//! real sockets and the admin API. `chargegate decode` says of the answers' bytes what the answers say.

#[macro_use]
mod gateway;

use chargegate::protocol::ap3000::{body::Registration, encode};
use gateway::{Engine, Gateway, binary, until, wire::Ap3000};
use serde_json::{Value, json};

const CHARGER: &str = "40aace04";

on_both_engines! {
    a_devices_frames_are_shown_in_words_and_explained_offline
    a_connection_is_closed_and_the_device_comes_back
    a_refused_start_is_an_anomaly
}

fn admin(gateway: &Gateway, path: &str) -> Value {
    let answer = gateway.get(&format!("/api/v1/admin/{path}"));
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.data().clone()
}

/// The frames of the device, once there are this many: what the gateway writes is recorded after it is on the wire.
fn frames(gateway: &Gateway, count: usize) -> Value {
    until("the frames are recorded", || {
        let recording = admin(gateway, &format!("recorder/{CHARGER}"));
        (recording["frames"].as_array().is_some_and(|frames| frames.len() >= count)).then_some(recording)
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn words(frame: &Value) -> String {
    let lines = frame["explained"].as_array().expect("lines").iter();
    lines.map(|line| line.as_str().expect("text")).collect::<Vec<_>>().join("\n")
}

fn decode(gateway: &Gateway, dump: &str, json: bool) -> String {
    let path = gateway.directory().join("dump");
    std::fs::write(&path, dump).expect("a written dump");
    let mut command = binary(gateway.directory());
    command.arg("decode").arg("--file").arg(&path);
    let output = if json { command.arg("--json") } else { &mut command }.output().expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn a_devices_frames_are_shown_in_words_and_explained_offline(engine: Engine) {
    let Some(gateway) = Gateway::start(engine, &[]) else { return };
    let mut device = Ap3000::connect(gateway.devices, CHARGER);
    device.beat(&[0, 3]);
    let mut bad = Vec::new();
    encode::result_reply(&mut bad, &encode::Header { magic: *b"DNY", phy_id: device.phy_id, msg_id: 77 }, 0x85, 0);
    *bad.last_mut().expect("a checksum") ^= 0xFF;
    device.line.send(&bad);
    let registration = Registration { fw_version: 200, port_count: 2, device_type: 4, ..Registration::default() };
    let msg_id = device.send(|out, header| encode::registration(out, header, &registration));
    device.expect(msg_id, 0x20, &[0]);

    let recording = frames(&gateway, 5);
    assert_eq!((&recording["device_id"], &recording["connected"]), (&json!(CHARGER), &json!(true)));
    let shown = recording["frames"].as_array().expect("frames");
    for (frame, (direction, skipped, said)) in shown.iter().zip([
        ("up", false, "0x21 heartbeat"),
        ("down", false, "0x21 heartbeat"),
        ("up", true, "error: checksum is"),
        ("up", false, "0x20 registration"),
        ("down", false, "0x20 registration"),
    ]) {
        assert_eq!((&frame["direction"], &frame["skipped"]), (&json!(direction), &json!(skipped)), "{frame}");
        assert!(words(frame).contains(said), "{said:?} in {frame}");
        assert_eq!(frame["bytes"].as_u64().map(|bytes| bytes * 2), frame["raw"].as_str().map(|raw| raw.len() as u64));
        assert_eq!(frame["truncated"], false);
    }
    assert_eq!(shown.len(), 5);
    assert!(words(&shown[0]).contains("port_states: 0 (idle), 3"), "{}", words(&shown[0]));
    assert_eq!(shown[2]["raw"], hex(&bad));

    let listed = gateway.get(&format!("/api/v1/admin/anomalies?kind=bad_checksum&device_id={CHARGER}"));
    assert_eq!((&listed.data()["total"], listed.data()["items"].as_array().map(Vec::len)), (&json!(1), Some(1)));
    let anomaly = &listed.data()["items"][0];
    assert_eq!((&anomaly["device_id"], &anomaly["kind"]), (&json!(CHARGER), &json!("bad_checksum")));
    let led_to_it = anomaly["frames"].as_array().expect("frames");
    assert_eq!(led_to_it.last().map(|frame| &frame["raw"]), Some(&json!(hex(&bad))));
    assert_eq!(led_to_it[..], shown[..3]);
    assert_eq!(admin(&gateway, &format!("anomalies/{}", anomaly["id"].as_str().expect("an id"))), *anomaly);
    assert_eq!(gateway.metric("chargegate_anomalies_total{kind=\"bad_checksum\"}"), 1);
    assert_eq!(admin(&gateway, "anomalies?kind=flapping")["total"], 0);

    // Offline, by the bytes alone: the same words, whatever the frames are wrapped in.
    let answer = gateway.get(&format!("/api/v1/admin/recorder/{CHARGER}"));
    for (dump, shown) in
        [(answer.text.clone(), shown), (answer.data().to_string(), shown), (listed.text.clone(), led_to_it)]
    {
        let decoded = decode(&gateway, &dump, false);
        let mut rest = &decoded[..];
        for frame in shown {
            let at = frame["at"].as_str().expect("a time");
            let raw = frame["raw"].as_str().expect("hex");
            let lines = frame["explained"].as_array().expect("lines").iter();
            let lines = lines.map(|line| line.as_str().expect("text"));
            for expected in [at, frame["direction"].as_str().expect("a word"), raw].into_iter().chain(lines) {
                let found = rest.find(expected).unwrap_or_else(|| panic!("{expected:?} in {rest}"));
                rest = &rest[found + expected.len()..];
            }
        }
        let items: Vec<Value> =
            decode(&gateway, &dump, true).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(items.len(), shown.len());
        for (item, frame) in items.iter().zip(shown) {
            assert_eq!((&item["hex"], &item["recorded"]["at"]), (&frame["raw"], &frame["at"]));
            assert_eq!(item["recorded"]["direction"], frame["direction"]);
        }
    }

    // What comes when the store has given the session its epoch belongs to it.
    gateway.knows_port(CHARGER, 1);
    until("frames have the epoch", || {
        device.beat(&[0, 3]);
        let recording = frames(&gateway, 7);
        recording["frames"].as_array()?.last()?["epoch"].as_u64()
    });
}

fn a_connection_is_closed_and_the_device_comes_back(engine: Engine) {
    let Some(gateway) = Gateway::start(engine, &[]) else { return };
    let mut device = Ap3000::online(gateway.devices, CHARGER, 2);
    gateway.knows_port(CHARGER, 1);
    let listed = admin(&gateway, &format!("connections?device_id={CHARGER}"));
    assert_eq!(listed["total"], 1);
    let open = &listed["items"][0];
    let connection = open["connection"].as_str().expect("a name").to_owned();
    for (field, expected) in [
        ("devices", json!([CHARGER])),
        ("protocol", json!("ap3000")),
        ("listener", json!("devices")),
        ("peer", json!("127.0.0.1")),
    ] {
        assert_eq!(open[field], expected, "{open}");
    }
    assert!(open["bytes_in"].as_u64() > Some(20) && open["bytes_out"].as_u64() > Some(20), "{open}");
    // One that says nothing is a connection all the same, and no device's.
    let silent = Ap3000::connect(gateway.devices, "01000004");
    until("both are listed", || (admin(&gateway, "connections?size=1")["total"] == 2).then_some(()));
    let protocols: Vec<Value> = (1..=2)
        .map(|page| admin(&gateway, &format!("connections?size=1&page={page}"))["items"][0]["protocol"].clone())
        .collect();
    assert!(protocols.contains(&json!("ap3000")) && protocols.contains(&Value::Null), "{protocols:?}");
    silent.line.hang_up();

    let before = admin(&gateway, &format!("connections/{connection}/frames"));
    assert_eq!(before["connected"], true);
    let disconnect = format!("/api/v1/admin/devices/{CHARGER}/disconnect");
    let closed = gateway.request("POST", &disconnect, Some(gateway::KEY), None);
    assert_eq!((closed.status, &closed.data()["connection"]), (200, &json!(connection)), "{}", closed.text);
    device.line.expect_end();
    assert_eq!(gateway.metric("chargegate_tcp_closed_total{reason=\"admin\"}"), 1);
    let message = gateway.post(&disconnect, &json!({})).refused(400, "DEVICE_OFFLINE").to_owned();
    assert!(message.contains(CHARGER), "{message}");
    gateway.post(&disconnect, &json!({"now": true})).refused(400, "INVALID_PARAMETER");

    let _device = Ap3000::online(gateway.devices, CHARGER, 2);
    let after = until("the device is back", || {
        let recording = admin(&gateway, &format!("recorder/{CHARGER}"));
        let last = recording["frames"].as_array().and_then(|frames| frames.last()).cloned()?;
        (recording["connected"] == true && last["connection"] != json!(connection)).then_some(recording)
    });
    // It may be another shard that has it now; what both saw is told as one.
    let frames = after["frames"].as_array().expect("frames");
    let of_both = frames.iter().map(|frame| &frame["connection"]).collect::<Vec<_>>();
    assert!(of_both.contains(&&json!(connection)) && frames[0]["connection"] == json!(connection), "{of_both:?}");
    assert_eq!((&after["ended"][0]["connection"], &after["ended"][0]["reason"]), (&json!(connection), &json!("admin")));
    let ended = admin(&gateway, &format!("connections/{connection}/frames"));
    assert_eq!((&ended["connected"], &ended["frames"]), (&json!(false), &before["frames"]));

    for path in
        ["recorder/01020304", "anomalies/0-1", "anomalies/x", "connections/0-59999-1/frames", "connections/x/frames"]
    {
        gateway.get(&format!("/api/v1/admin/{path}")).refused(404, "NOT_FOUND");
    }
    for path in
        ["anomalies?kind=rain", "connections?protocol=modbus", "connections?listener=x", "anomalies?device_id=x"]
    {
        gateway.get(&format!("/api/v1/admin/{path}")).refused(400, "INVALID_PARAMETER");
    }
}

fn a_refused_start_is_an_anomaly(engine: Engine) {
    let Some(gateway) = Gateway::start(engine, &[("CHARGEGATE_RECORDER_BYTES_PER_SHARD", "64KiB")]) else { return };
    let mut device = Ap3000::online(gateway.devices, CHARGER, 1);
    gateway.knows_port(CHARGER, 1);
    let order_no = gateway.charge(CHARGER, &json!({"port_no": 1, "mode": "full"}));
    let number = gateway::wire::wire_no(&order_no);
    let msg_id = device.expect_command(0x82, &[&[0, 0, 0, 0, 0, 0, 1, 0, 0], &number[..]].concat());
    device.answer(msg_id, 1, 0, number);
    gateway.order_becomes(&order_no, "failed");
    let listed = admin(&gateway, "anomalies?kind=start_refused");
    assert_eq!(listed["total"], 1);
    let anomaly = &listed["items"][0];
    assert_eq!(anomaly["detail"], format!("start of order {order_no} on port 1 refused with code 0x01"));
    let frames = anomaly["frames"].as_array().expect("frames");
    let [.., command, refusal] = &frames[..] else { panic!("{anomaly}") };
    assert_eq!((&command["direction"], &refusal["direction"]), (&json!("down"), &json!("up")));
    for frame in [command, refusal] {
        assert!(words(frame).contains("0x82 charge_control"), "{frame}");
    }
}
