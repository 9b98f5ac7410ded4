//! What third parties see of a device that another instance has: the same as of one that is here, by what that one tells in the
//! mirror. Without the mirror, devices that are here are served, and others are answered `NOT_READY`.

mod api;
mod services;

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use api::{PATIENCE, Rig, unix_ms};
use chargegate::{
    cluster::{
        link::{Link, LinkSettings},
        sessions::Sessions,
    },
    gateway::{
        ShardId,
        directory::{Directory, Entry, PortCell, PortState},
    },
    model::{DeviceId, PortStatus, Protocol, ServerId},
    shard::Clock,
    store::{InstanceJob, Job, Outcome},
};
use serde_json::{Value, json};
use services::{Persistence, Redis};

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn mirror(url: &str, name: &str, directory: &Arc<Directory>) -> Arc<Sessions> {
    let settings = LinkSettings {
        command_timeout: Duration::from_millis(300),
        ping_interval: Duration::from_millis(50),
        ..LinkSettings::new(url)
    };
    let link = Link::open(settings).expect("Redis answers");
    let (directory, server) = (Arc::clone(directory), ServerId::new(name));
    Sessions::start(link, directory, server, Clock::since(now()), Arc::new(|_, _| {})).expect("a thread")
}

/// The instance that is asked, and the mirrored directory of another one.
struct Two {
    here: Rig,
    there: Arc<Directory>,
    _mirror: Arc<Sessions>,
}

impl Two {
    fn start(url: &str) -> Self {
        let there = Arc::new(Directory::default().with_changes());
        let other = mirror(url, "gateway-2", &there);
        let here = Rig::beside([], None, |directory| Some(mirror(url, "gateway-1", directory)));
        Self { here, there, _mirror: other }
    }

    /// A device that the other instance has, with ports in these states from port 1, once it is told of.
    fn connect_there(&self, device_id: DeviceId, ports: &[PortStatus]) -> Arc<Entry> {
        let epoch = self.here.bind(device_id, Protocol::Bkv, None).epoch;
        let entry = self.there.bind(device_id, Protocol::Bkv, ShardId(0), 1).expect("the newest").entry;
        entry.set_connected_at(unix_ms());
        entry.seen(unix_ms());
        entry.set_timeout(3_600_000);
        let state = |(port_no, status): (u16, &PortStatus)| {
            let hole = PortState::unknown(port_no, Some(0), Some(1 - (port_no % 2) as u8));
            PortCell::new(&PortState { status: *status, updated_at: 1, raw_status: 9, ..hole })
        };
        entry.set_ports((1..).zip(ports).map(state).collect());
        entry.set_epoch(epoch);
        self.shows(device_id, "online", &json!(true));
        entry
    }

    /// Waits until the instance that is asked shows `field` of a device's status as `value`.
    fn shows(&self, device_id: DeviceId, field: &str, value: &Value) {
        eventually(&format!("{field} is {value}"), || {
            let status = self.here.get(&format!("/devices/{device_id}/status"));
            (status.status == 200 && status.data(200)[field] == *value).then_some(())
        });
    }
}

fn device(n: u32) -> DeviceId {
    format!("{n:014}").parse().expect("14 digits")
}

fn minutes(port_no: u16) -> Value {
    json!({"port_no": port_no, "mode": "time", "duration_minutes": 60, "paid_cent": 100})
}

#[test]
fn a_device_elsewhere_is_shown_as_its_instance_tells() {
    let two = Two::start(&services::redis().database());
    let entry = two.connect_there(device(1), &[PortStatus::Idle, PortStatus::Charging]);
    two.here.bind(device(2), Protocol::Bkv, None);
    entry.set_signal(21);
    entry.ack_timed_out(unix_ms());
    let status = eventually("the penalty is told of", || {
        let status = two.here.get("/devices/00000000000001/status").data(200);
        (status["score"] == 70).then_some(status)
    });
    assert_eq!(status["score_parts"], json!({"alive": 100, "tcp_down": 0, "ack_timeout": -30}));
    assert_eq!((&status["instance"], &status["signal"]), (&json!("gateway-2"), &json!(21)));
    let ports = status["ports"].as_array().unwrap();
    assert_eq!((&ports[0]["status"], &ports[1]["status_text"]), (&json!(0), &json!("charging")));

    let one = two.here.get("/devices/00000000000001").data(200);
    assert_eq!((&one["instance"], &one["online"], &one["score"]), (&json!("gateway-2"), &json!(true), &json!(70)));
    assert_eq!(one["ports"].as_array().unwrap().len(), 2);
    let list = two.here.get("/devices").data(200);
    let shown = |index: usize| (list["items"][index]["instance"].clone(), list["items"][index]["online"].clone());
    assert_eq!((shown(0), shown(1)), ((json!("gateway-2"), json!(true)), (json!(null), json!(false))));
}

#[test]
fn a_start_elsewhere_is_checked_by_what_is_told() {
    let two = Two::start(&services::redis().database());
    let ports = [PortStatus::Idle, PortStatus::Charging, PortStatus::Fault];
    let entry = two.connect_there(device(1), &ports);
    let charge = |port_no| two.here.post("/devices/00000000000001/charge", &minutes(port_no));
    charge(2).error(409, "PORT_BUSY");
    assert!(charge(3).error(409, "PORT_FAULT").contains("0x09"));
    charge(4).error(404, "PORT_NOT_FOUND");
    let full = json!({"port_no": 1, "mode": "full"});
    two.here.post("/devices/00000000000001/charge", &full).error(400, "NOT_SUPPORTED");
    let order = charge(1).data(202);
    assert_eq!(order["status_text"], "pending");
    let commands = two.here.get("/devices/00000000000001/commands").data(200);
    assert_eq!(commands["items"][0]["state"], "queued", "claimed by who has the device: {commands}");
    let stop = two.here.post("/devices/00000000000001/stop", &json!({"port_no": 4}));
    stop.error(404, "PORT_NOT_FOUND");
    two.here.post("/devices/00000000000001/stop", &json!({"port_no": 2})).error(404, "ORDER_NOT_FOUND");

    // Told of together with its signal. Asking before would fill the device's queue in the store, which is another reason.
    entry.set_waiting(16);
    entry.set_signal(21);
    entry.mark();
    two.shows(device(1), "signal", &json!(21));
    let call = json!({"command": "query_socket", "socket": 0});
    let full = two.here.post("/devices/00000000000001/commands", &call).error(503, "QUEUE_OVERLOADED");
    assert_eq!(full, "16 commands wait for this device, at most 16 may");
    entry.set_waiting(0);
    entry.set_disconnected(unix_ms());
    two.shows(device(1), "instance", &Value::Null);
    charge(1).error(400, "DEVICE_OFFLINE");
    let accepted = two.here.post("/devices/00000000000001/commands", &call);
    accepted.data(202);
}

#[test]
fn without_the_mirror_only_what_is_here_is_served() {
    let redis = Redis::start(Persistence::None);
    let two = Two::start(&redis.url());
    two.connect_there(device(1), &[PortStatus::Idle]);
    let epoch = two.here.bind(device(2), Protocol::Bkv, None).epoch;
    let here = two.here.entry(device(2), Protocol::Bkv, epoch);
    here.set_ports(vec![PortCell::new(&PortState::unknown(1, Some(0), Some(0)))]);
    redis.pause();
    for path in ["/devices/00000000000001/status", "/devices/00000000000001", "/devices"] {
        two.here.get(path).error(503, "NOT_READY");
    }
    two.here.post("/devices/00000000000001/charge", &minutes(1)).error(503, "NOT_READY");
    let call = json!({"command": "query_socket", "socket": 0});
    two.here.post("/devices/00000000000001/commands", &call).error(503, "NOT_READY");
    two.here.post("/devices/00000000000001/stop", &json!({"port_no": 1})).error(404, "ORDER_NOT_FOUND");
    assert_eq!(two.here.get("/devices/00000000000002/status").data(200)["instance"], "gateway-1");
    two.here.post("/devices/00000000000002/charge", &minutes(1)).data(202);
    two.here.post("/devices/00000000000002/commands", &call).data(202);
    redis.resume();
    eventually("others are found again", || {
        (two.here.get("/devices/00000000000001/status").status == 200).then_some(())
    });
}

#[test]
fn frames_of_a_device_elsewhere_are_there() {
    let two = Two::start(&services::redis().database());
    two.connect_there(device(1), &[PortStatus::Idle]);
    for (method, path) in
        [("GET", "/api/v1/admin/recorder/00000000000001"), ("POST", "/api/v1/admin/devices/00000000000001/disconnect")]
    {
        let refused = two.here.send(method, path, Some(api::ALL), None);
        let message = refused.error(404, "NOT_FOUND");
        assert_eq!(message, "device 00000000000001 is connected to instance gateway-2: ask that one");
        assert_eq!(refused.json()["data"], json!({"instance": "gateway-2"}));
    }
    // Nobody has this one, and nobody has heard of it.
    two.here.send("GET", "/api/v1/admin/recorder/00000000000002", Some(api::ALL), None).error(404, "NOT_FOUND");
    let disconnect = "/api/v1/admin/devices/00000000000002/disconnect";
    two.here.send("POST", disconnect, Some(api::ALL), None).error(400, "DEVICE_OFFLINE");
}

#[test]
fn an_operator_sees_the_instances() {
    let rig = Rig::new([api::key("reader", [chargegate::config::Scope::Read])]);
    let join = InstanceJob::Join { server: ServerId::new("gateway-1"), version: "1.2".to_owned() };
    assert!(matches!(rig.run(Job::Instance(join)), Outcome::Instance(_)));
    let path = "/api/v1/admin/instances";
    rig.send("GET", path, Some("key-reader"), None).error(403, "FORBIDDEN");
    let shown = rig.send("GET", path, Some(api::ALL), None).data(200);
    assert_eq!((&shown[0]["server_id"], &shown[0]["version"]), (&json!("gateway-1"), &json!("1.2")));
    assert_eq!((&shown[0]["connections"], &shown[0]["draining"]), (&json!(0), &json!(false)));
}
