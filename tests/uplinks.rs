//! What devices tell, through the core and the real store: alarms, hosts with many devices on one socket, and the corners of the
//! BKV/GN family.

mod fleet;

use chargegate::{
    gateway::Listener,
    model::{DeviceId, PortStatus, Protocol},
    store::{Job, Outcome, Settings},
    telemetry::label::ShardEvent,
};
use fleet::{Gateway, ap, bkv, bkv_heartbeat, bkv_up, gateway_id, heartbeat, packet, registration, tag, up, up_as};
use serde_json::{Value, json};

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;

/// A charger with this many ports, online on a connection of its own.
fn charger(gateway: &mut Gateway, id: DeviceId, ports: u8) -> chargegate::gateway::ConnId {
    let conn = gateway.connect();
    gateway.receive(conn, &registration(id, ports));
    gateway.receive(conn, &heartbeat(id, &vec![0; usize::from(ports)]));
    gateway.take_written();
    conn
}

#[test]
fn an_alarm_says_what_its_second_byte_means() {
    let mut gateway = Gateway::new();
    let conn = charger(&mut gateway, ap(1), 2);
    for (kind, reason, port_no, sensor) in [
        (1, "mains_lost", None, None),
        (2, "water", None, Some(1)),
        (3, "fire_sensor", Some(2), None),
        (4, "smoke", None, Some(1)),
        (5, "temperature", None, Some(1)),
        (6, "water_level", None, Some(1)),
        (7, "door_sprung", Some(2), None),
        (9, "unknown_alarm", None, None),
    ] {
        gateway.receive(conn, &up(ap(1), 9, 0x42, &[kind, 1, 0b101]));
        let alarm = gateway.alarms(ap(1)).pop().expect("an alarm");
        assert_eq!(
            alarm,
            json!({
                "device_id": "00000001", "reason": reason, "raw": kind, "port_no": port_no, "sensor_address": sensor,
                "trigger_bits": 5,
            })
        );
    }
    gateway.receive(conn, &up(ap(1), 9, 0x42, &[1, 0]));
    assert_eq!(gateway.alarms(ap(1)).pop().unwrap()["trigger_bits"], Value::Null, "a field of newer devices");
    assert!(gateway.frames(conn).is_empty(), "alarms are not answered");
    assert_eq!(gateway.entry(ap(1)).ports().len(), 2, "a sensor's address is no port");
}

#[test]
fn a_door_left_open_names_the_order_behind_it() {
    let mut gateway = Gateway::new();
    let conn = charger(&mut gateway, ap(1), 2);
    let order_no = gateway.charge(ap(1), 2);
    gateway.take_written();
    gateway.receive(conn, &up(ap(1), 9, 0x44, &[&[1, 1], &order_no.as_bytes()[..]].concat()));
    gateway.receive(conn, &up(ap(1), 10, 0x44, &[&[7, 0], &[0xFF; 16][..]].concat()));
    let alarms = gateway.alarms(ap(1));
    assert_eq!((&alarms[0]["reason"], &alarms[0]["port_no"]), (&json!("door_not_closed"), &json!(2)));
    assert_eq!(alarms[0]["order_no"], order_no.as_str());
    assert_eq!((&alarms[1]["reason"], &alarms[1]["raw"]), (&json!("port_event"), &json!(7)));
    assert_eq!((&alarms[1]["order_no"], &alarms[1]["order_ref"]), (&Value::Null, &json!("ff".repeat(16))));
    assert!(gateway.frames(conn).iter().all(|frame| frame.command != 0x44));
}

#[test]
fn doors_and_fans_are_told_when_they_change() {
    let mut gateway = Gateway::new();
    let conn = charger(&mut gateway, ap(1), 2);
    let beat = |doors: u32, fans: u32| [&[4][..], &doors.to_le_bytes(), &fans.to_le_bytes()].concat();
    gateway.receive(conn, &up(ap(1), 9, 0x41, &beat(0b0001, 0)));
    assert!(gateway.alarms(ap(1)).is_empty(), "the first is compared with nothing");
    assert_eq!(gateway.entry(ap(1)).ports().len(), 4, "a bay is a port");
    gateway.receive(conn, &up(ap(1), 9, 0x41, &beat(0b0001, 0)));
    assert!(gateway.alarms(ap(1)).is_empty());
    gateway.receive(conn, &up(ap(1), 9, 0x41, &beat(0b0110, 0b1000)));
    let alarms = gateway.alarms(ap(1));
    assert_eq!(alarms.len(), 2);
    assert_eq!(alarms[0]["reason"], "cabinet_doors");
    assert_eq!((&alarms[0]["set_ports"], &alarms[0]["cleared_ports"]), (&json!([2, 3]), &json!([1])));
    assert_eq!((&alarms[1]["reason"], &alarms[1]["set_ports"]), (&json!("cabinet_fans"), &json!([4])));
    // What is known survives a restart of the connection.
    gateway.disconnect(conn);
    let conn = gateway.connect();
    gateway.receive(conn, &up(ap(1), 9, 0x41, &beat(0b0110, 0)));
    assert_eq!(gateway.alarms(ap(1)).len(), 3);
}

/// 0x17 of a leakage-protection host.
fn host_status(breaker: u8, smoke: u8, relay: u8, lock: u8) -> Vec<u8> {
    let mut data = vec![breaker, 40, 0x98, 0x08, 0x10, 0x00, 1, 0, 0, 0, 0x20, 0x00, 2, 0, 0, 0, smoke, relay];
    data.extend([12, 30, 31, lock, 1]);
    data
}

#[test]
fn a_host_is_watched_for_what_somebody_must_look_after() {
    let mut gateway = Gateway::new();
    let conn = gateway.connect();
    gateway.receive(conn, &up(ap(1), 1, 0x17, &host_status(1, 0, 0, 0)));
    assert!(gateway.alarms(ap(1)).is_empty(), "all is well");
    gateway.receive(conn, &up(ap(1), 2, 0x17, &host_status(0, 1, 1, 1)));
    gateway.receive(conn, &up(ap(1), 3, 0x17, &host_status(0, 1, 1, 1)));
    let reasons: Vec<Value> = gateway.alarms(ap(1)).into_iter().map(|alarm| alarm["reason"].clone()).collect();
    assert_eq!(reasons, ["smoke", "alarm_relay", "breaker", "lock"]);
    gateway.receive(conn, &up(ap(1), 4, 0x17, &host_status(0, 0, 1, 1)));
    let cleared = gateway.alarms(ap(1)).pop().unwrap();
    assert_eq!((&cleared["reason"], &cleared["raw"], &cleared["old_raw"]), (&json!("smoke"), &json!(0), &json!(1)));
    let host = gateway.entry(ap(1)).host().expect("kept");
    assert_eq!((host.voltage_dv, host.current_ma, host.energy_wh), (Some(2200), Some(160), Some(10)));
    assert_eq!((host.meter_current_ma, host.meter_energy_wh), (Some(320), Some(20)));
    assert_eq!((host.leak_current_ma, host.lock_state, host.temp_raw), (Some(12), Some(1), Some(40)));
    gateway.pass(4 * SECOND);
    let stored = gateway.value("SELECT host FROM devices WHERE device_id = '00000001'").expect("stored");
    let stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!((&stored["breaker_state"], &stored["meter_energy_wh"]), (&json!(0), &json!(20)));
    assert!(gateway.frames(conn).is_empty(), "a host's status is not answered");
}

#[test]
fn smoke_at_first_sight_is_an_alarm() {
    let mut gateway = Gateway::new();
    let conn = gateway.connect();
    gateway.receive(conn, &up(ap(1), 1, 0x17, &host_status(0, 1, 0, 0)));
    let alarms = gateway.alarms(ap(1));
    assert_eq!(alarms.len(), 1, "an open breaker may always have been open: {alarms:?}");
    assert_eq!((&alarms[0]["reason"], &alarms[0]["old_raw"]), (&json!("smoke"), &Value::Null));
}

#[test]
fn an_ordinary_host_has_no_breaker() {
    let mut gateway = Gateway::new();
    let conn = gateway.connect();
    // Host type 3, a LoRa host, says so in 0x11.
    let mut beat = vec![100, 0, 0, 0, 0, 0, 0, 25, 6];
    beat.extend(*b"89860463112070319417");
    beat.push(3);
    gateway.receive(conn, &up(ap(1), 1, 0x11, &beat));
    gateway.receive(conn, &up(ap(1), 2, 0x17, &host_status(1, 0, 1, 0)));
    gateway.receive(conn, &up(ap(1), 3, 0x17, &host_status(0, 1, 0, 1)));
    let reasons: Vec<Value> = gateway.alarms(ap(1)).into_iter().map(|alarm| alarm["reason"].clone()).collect();
    assert_eq!(reasons, ["smoke"]);
    let host = gateway.entry(ap(1)).host().unwrap();
    assert_eq!((host.breaker_state, host.lock_state, host.voltage_dv), (None, None, Some(2200)));
}

#[test]
fn a_module_is_known_by_its_numbers() {
    let mut gateway = Gateway::new();
    let conn = charger(&mut gateway, ap(1), 2);
    let mut beat = vec![205, 0, 0, 0, 0, 0, 0, 25, 6];
    beat.extend(*b"89860463112070319417");
    beat.push(0x20);
    beat.extend([0xB1, 1]);
    beat.extend(*b"866262040012345");
    beat.extend(*b"GM5_V3.1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    gateway.receive(conn, &up(ap(1), 9, 0x11, &beat));
    let entry = gateway.entry(ap(1));
    assert_eq!(
        (entry.imei().as_deref(), entry.module_version().as_deref()),
        (Some("866262040012345"), Some("GM5_V3.1"))
    );
    assert_eq!(
        (entry.host_type(), entry.signal(), entry.iccid().as_deref()),
        (Some(0x20), Some(25), Some("89860463112070319417"))
    );
    assert_eq!(entry.firmware().as_deref(), Some("V1.00"), "its registration's, not its module's");
    assert_eq!(entry.host().unwrap().frequency, Some(433));
    gateway.pass(4 * SECOND);
    assert_eq!(gateway.value("SELECT imei FROM devices").as_deref(), Some("866262040012345"));
    // A shorter one of the same device takes nothing back.
    gateway.receive(conn, &up(ap(1), 10, 0x11, &beat[..9]));
    gateway.pass(4 * SECOND);
    assert_eq!(entry.imei().as_deref(), Some("866262040012345"));
    assert_eq!(gateway.value("SELECT module_version FROM devices").as_deref(), Some("GM5_V3.1"));
}

#[test]
fn requests_for_firmware_are_counted() {
    let mut gateway = Gateway::new();
    let conn = charger(&mut gateway, ap(1), 2);
    gateway.receive(conn, &up(ap(1), 1, 0x05, &[0x20, 100, 0, 1, 0, 0, 0]));
    gateway.receive(conn, &up(ap(1), 2, 0x05, &[]));
    gateway.receive(conn, &up(ap(1), 3, 0xFA, &[0, 0, 0]));
    gateway.receive(conn, &up(ap(1), 4, 0xE0, &[0, 0, 0]));
    assert!(gateway.frames(conn).is_empty(), "these are not answered");
    gateway.receive(conn, &up(ap(1), 5, 0x15, &[]));
    let answers = gateway.frames(conn);
    assert_eq!((answers[0].command, answers[0].msg_id, &answers[0].data[..]), (0x15, 5, &[1][..]), "there is none");
    gateway.receive(conn, &up(ap(1), 6, 0xE0, &[0, 3, 0]));
    assert_eq!(gateway.counted(ShardEvent::UpdateRequested), 5, "an acknowledged packet is no request");
}

#[test]
fn the_oldest_devices_know_only_01() {
    let mut gateway = Gateway::new();
    let conn = gateway.connect();
    // V1.20, 220.0 V, two ports: one charges with 12.0 W.
    let beat = up(ap(1), 7, 0x01, &[120, 0, 0x98, 0x08, 2, 0, 1, 0, 0, 120, 0, 0, 0, 130, 0]);
    gateway.receive(conn, &beat);
    let answers = gateway.frames(conn);
    assert_eq!((answers[0].command, answers[0].msg_id, &answers[0].data[..]), (0x01, 7, &[0][..]));
    let entry = gateway.entry(ap(1));
    assert_eq!(entry.firmware().as_deref(), Some("V1.20"));
    let port = entry.port(2).expect("it has two ports");
    assert_eq!((port.status, port.power_dw, port.voltage_dv), (PortStatus::Charging, 120, 2200));
    let order_no = gateway.charge(ap(1), 1);
    let start = gateway.frames(conn).remove(0);
    assert_eq!(start.command, 0x82);
    gateway.receive(conn, &up(ap(1), start.msg_id, 0x82, &[&[0], &order_no.as_bytes()[..], &[0]].concat()));
    assert_eq!(gateway.status(order_no), 1);
    gateway.receive(conn, &up(ap(1), 8, 0x01, &[120, 0, 0x98, 0x08, 2, 1, 1, 50, 0, 120, 0, 50, 0, 130, 0]));
    assert_eq!(gateway.status(order_no), 2, "charging is seen in 01");
    // A device that speaks 21 is not answered in the old way any more.
    gateway.receive(conn, &heartbeat(ap(1), &[1, 1]));
    gateway.take_written();
    gateway.receive(conn, &beat);
    assert!(gateway.frames(conn).is_empty());
}

/// A host `ap(1)` with sub-devices `ap(101)` to `ap(100 + count)`, two ports each.
fn host(gateway: &mut Gateway, count: u32) -> chargegate::gateway::ConnId {
    let conn = gateway.connect();
    gateway.receive(conn, b"89860463112070319417");
    gateway.receive(conn, &up(ap(1), 1, 0x11, &[100, 0, 0, 0, 0, 0, 0, 25, 6]));
    for n in 1..=count {
        gateway.receive(conn, &registration(ap(100 + n), 2));
        gateway.receive(conn, &heartbeat(ap(100 + n), &[0, 0]));
    }
    gateway.take_written();
    conn
}

#[test]
fn fifty_devices_share_a_socket_and_keep_apart() {
    let mut gateway = Gateway::new();
    let conn = host(&mut gateway, 50);
    for n in 1..=50 {
        let entry = gateway.entry(ap(100 + n));
        assert!(entry.connected() && gateway.online(ap(100 + n)) && entry.live_epoch().is_some(), "{n}");
        assert_eq!((entry.ports().len(), entry.iccid().as_deref()), (2, Some("89860463112070319417")));
    }
    // Each takes its own orders; what one is sent names it.
    let orders: Vec<_> = (1..=50).map(|n| gateway.charge(ap(100 + n), 1)).collect();
    let starts = gateway.frames(conn);
    assert_eq!(starts.len(), 50, "the pause between commands is each device's own");
    for (n, (start, order_no)) in (1..).zip(starts.iter().zip(&orders)) {
        assert_eq!(DeviceId::Ap3000(start.phy_id), ap(100 + n));
        assert_eq!(start.command, 0x82);
        gateway.receive(conn, &up(ap(100 + n), start.msg_id, 0x82, &[&[0], &order_no.as_bytes()[..], &[0]].concat()));
        gateway.receive(conn, &heartbeat(ap(100 + n), &[1, 0]));
    }
    assert!(orders.iter().all(|order_no| gateway.status(*order_no) == 2));
    // The reply of one device is not that of another, though the message ids are alike.
    let other = gateway.charge(ap(101), 2);
    let start = gateway.frames(conn).pop().map(|start| start.msg_id);
    gateway.pass(SECOND);
    let start = start.or_else(|| gateway.frames(conn).pop().map(|start| start.msg_id)).expect("written");
    gateway.receive(conn, &up(ap(102), start, 0x82, &[&[0], &other.as_bytes()[..], &[0]].concat()));
    assert_eq!(gateway.status(other), 0);
}

#[test]
fn on_a_shared_socket_each_device_speaks_for_itself() {
    let mut gateway = Gateway::new();
    let conn = host(&mut gateway, 2);
    // 101 goes on beating, 102 is silent; the module keeps the socket alive.
    for _ in 0..16 {
        gateway.pass(30 * SECOND);
        gateway.receive(conn, b"link");
        gateway.receive(conn, &heartbeat(ap(101), &[0, 0]));
    }
    assert!(gateway.online(ap(101)));
    assert!(!gateway.online(ap(102)), "silent for 480 s");
    assert_eq!(gateway.events(ap(102), "device.offline").len(), 1);
    assert!(gateway.entry(ap(102)).connected(), "its socket lives");
    // The host itself is heard of every half hour.
    assert!(gateway.online(ap(1)));
    for _ in 0..125 {
        gateway.pass(30 * SECOND);
        gateway.receive(conn, b"link");
    }
    assert!(!gateway.online(ap(1)), "two of its heartbeats are missing");
    gateway.receive(conn, &heartbeat(ap(102), &[0, 0]));
    assert!(gateway.online(ap(102)), "it speaks again");
    // Without a socket a host counts as gone as soon as its devices do.
    gateway.receive(conn, &up(ap(1), 1, 0x11, &[100, 0, 0, 0, 0, 0, 0, 25, 6]));
    gateway.pass(MINUTE);
    assert!(gateway.online(ap(1)));
    gateway.disconnect(conn);
    gateway.pass(6 * MINUTE);
    assert!(!gateway.online(ap(1)));
}

#[test]
fn a_device_that_beats_seldom_is_waited_for() {
    let mut gateway = Gateway::new();
    let conn = host(&mut gateway, 2);
    // 101 says that it beats every 600 s; 102 beats as all do.
    gateway.receive(conn, &up(ap(101), 9, 0x90, &[3, 0, 10, 0, 20, 8, 7, 0x10, 0x0E, 0x58, 2]));
    for _ in 0..40 {
        gateway.pass(30 * SECOND);
        gateway.receive(conn, b"link");
    }
    assert!(gateway.online(ap(101)), "silent for 1200 s, which is two of its heartbeats");
    assert!(!gateway.online(ap(102)));
    gateway.pass(31 * SECOND);
    assert!(!gateway.online(ap(101)));
}

#[test]
fn a_charger_that_tells_as_a_host_is_no_host() {
    let mut gateway = Gateway::new();
    let conn = host(&mut gateway, 1);
    gateway.receive(conn, &up(ap(101), 1, 0x11, &[100, 0, 0, 0, 0, 0, 0, 25, 6]));
    // Also one that tells so before it registers.
    gateway.receive(conn, &up(ap(102), 1, 0x11, &[100, 0, 0, 0, 0, 0, 0, 25, 6]));
    gateway.receive(conn, &registration(ap(102), 2));
    for _ in 0..14 {
        gateway.pass(30 * SECOND);
        gateway.receive(conn, b"link");
    }
    assert_eq!([ap(101), ap(102)].map(|id| gateway.online(id)), [false, false], "silent for 420 s");
    assert_eq!(gateway.events(ap(102), "device.offline").len(), 1);
}

#[test]
fn a_newer_socket_takes_single_devices() {
    let mut gateway = Gateway::new();
    let old = host(&mut gateway, 3);
    let new = gateway.connect();
    gateway.receive(new, &heartbeat(ap(102), &[0, 0]));
    assert!(gateway.closed.is_empty(), "a live AP3000 socket is never closed");
    gateway.take_written();
    gateway.charge(ap(102), 1);
    let written = gateway.take_written();
    assert!(written.iter().all(|(conn, _)| *conn == new) && written.len() == 1);
    gateway.charge(ap(101), 1);
    assert!(gateway.take_written().iter().all(|(conn, _)| *conn == old));
    // The older socket is still answered, and takes nothing back while the newer lives.
    gateway.receive(old, &heartbeat(ap(102), &[0, 0]));
    assert_eq!(gateway.frames(old).len(), 1);
    gateway.pass(SECOND);
    gateway.charge(ap(102), 2);
    assert!(gateway.take_written().iter().all(|(conn, _)| *conn == new));
    // The end of the old socket is no loss to what has moved on.
    gateway.disconnect(old);
    assert!(gateway.entry(ap(102)).connected() && !gateway.entry(ap(101)).connected());
}

#[test]
fn what_is_left_alone_on_a_shared_socket_still_speaks_for_itself() {
    let mut gateway = Gateway::new();
    let old = host(&mut gateway, 1);
    let new = gateway.connect();
    gateway.receive(new, &heartbeat(ap(101), &[0, 0]));
    gateway.receive(old, &heartbeat(ap(102), &[0, 0]));
    let third = gateway.connect();
    gateway.receive(third, &up(ap(1), 1, 0x11, &[100, 0, 0, 0, 0, 0, 0, 25, 6]));
    for _ in 0..14 {
        gateway.pass(30 * SECOND);
        gateway.receive(old, b"link");
    }
    assert!(!gateway.online(ap(102)), "only its socket was heard of");
}

#[test]
fn each_device_is_answered_and_commanded_in_its_own_magic() {
    let mut gateway = Gateway::with(|config| config.known_only = true);
    let oem = [0x44, 0x22, 0x4E];
    for id in [ap(1), ap(2)] {
        let settings = gateway.settings(id);
        gateway.call(Job::Settings(Box::new(settings)));
    }
    // A command that waits when the device comes is the first thing it is sent.
    let conn = gateway.connect();
    gateway.receive(conn, &up_as(oem, ap(1), 1, 0x20, &[100, 0, 2, 1, 0x20]));
    let order_no = gateway.charge(ap(1), 1);
    gateway.disconnect(conn);
    gateway.take_written();
    let conn = gateway.connect();
    gateway.receive(conn, &registration(ap(2), 2));
    gateway.receive(conn, &up_as(oem, ap(1), 1, 0x21, &[0x98, 0x08, 2, 0, 0]));
    gateway.charge(ap(2), 1);
    gateway.pass(6 * SECOND);
    let frames = gateway.frames(conn);
    assert!(
        frames.iter().any(|frame| frame.command == 0x82 && frame.data.windows(16).any(|w| w == order_no.as_bytes()))
    );
    for frame in frames {
        let magic = if DeviceId::Ap3000(frame.phy_id) == ap(1) { oem } else { *b"DNY" };
        assert_eq!(frame.magic, magic, "{frame:?}");
    }
}

#[test]
fn a_socket_carries_64_devices() {
    let mut gateway = Gateway::new();
    let conn = gateway.connect();
    for n in 1..=66 {
        gateway.receive(conn, &heartbeat(ap(n), &[0]));
    }
    assert_eq!(gateway.frames(conn).len(), 66, "all are answered");
    assert!(gateway.entry(ap(64)).connected());
    assert!(gateway.directory.find(ap(65)).is_none(), "and the last two are not bound");
    assert_eq!(gateway.counted(ShardEvent::SocketFull), 2);
    // One that leaves makes room.
    let new = gateway.connect();
    gateway.receive(new, &heartbeat(ap(1), &[0]));
    gateway.receive(conn, &heartbeat(ap(65), &[0]));
    assert!(gateway.entry(ap(65)).connected());
}

#[test]
fn a_stranger_behind_a_host_harms_no_other() {
    let mut gateway = Gateway::with(|config| config.known_only = true);
    for id in [ap(1), ap(101)] {
        let settings = gateway.settings(id);
        gateway.call(Job::Settings(Box::new(settings)));
    }
    let conn = gateway.connect();
    // The stranger speaks first.
    for _ in 0..3 {
        gateway.receive(conn, &heartbeat(ap(102), &[0]));
    }
    assert!(gateway.frames(conn).is_empty());
    for _ in 0..10 {
        gateway.receive(conn, &heartbeat(ap(101), &[0]));
        gateway.receive(conn, &heartbeat(ap(102), &[0]));
    }
    let frames = gateway.frames(conn);
    assert_eq!(frames.len(), 10);
    assert!(frames.iter().all(|frame| DeviceId::Ap3000(frame.phy_id) == ap(101)));
    assert!(gateway.closed.is_empty() && gateway.counted(ShardEvent::Stranger) == 13);
    assert!(gateway.directory.find(ap(102)).is_none());
    // Alone, it is closed after five.
    let conn = gateway.connect();
    for _ in 0..5 {
        gateway.receive(conn, &heartbeat(ap(103), &[0]));
    }
    assert_eq!(gateway.closed, [conn]);
}

#[test]
fn a_question_about_a_device_that_moved_on_holds_up_nobody() {
    let mut gateway = Gateway::with(|config| config.known_only = true);
    for id in [ap(101), ap(102)] {
        let settings = gateway.settings(id);
        gateway.call(Job::Settings(Box::new(settings)));
    }
    let old = gateway.connect();
    gateway.receive(old, &heartbeat(ap(101), &[0]));
    gateway.store_waits = true;
    gateway.receive(old, &heartbeat(ap(102), &[0]));
    let new = gateway.connect();
    gateway.receive(new, &heartbeat(ap(102), &[0]));
    gateway.store_goes_on();
    gateway.take_written();
    gateway.receive(old, &heartbeat(ap(101), &[0]));
    let frames = gateway.frames(old);
    assert!(frames.iter().any(|frame| DeviceId::Ap3000(frame.phy_id) == ap(101)), "{frames:?}");
}

#[test]
fn a_host_asks_for_the_radio_of_its_devices() {
    let mut gateway = Gateway::new();
    let conn = host(&mut gateway, 2);
    gateway.receive(conn, &up(ap(1), 0x77, 0x3B, &[0xB1, 1]));
    let answer = gateway.frames(conn).remove(0);
    assert_eq!((answer.command, answer.msg_id, DeviceId::Ap3000(answer.phy_id)), (0x3A, 0x77, ap(1)));
    assert_eq!(answer.data, [0xB1, 1, 0, 0, 0, 2, 0, 0, 0, 101, 0, 0, 0, 102]);
    let logged: Vec<_> = gateway.log.iter().rev().take(2).map(|row| (row.up, row.command)).collect();
    assert!(logged.contains(&(false, 0x3A)) && logged.contains(&(true, 0x3B)), "{logged:?}");
    // What the operator sets goes first.
    let settings = gateway.settings(ap(1));
    gateway.call(Job::Settings(Box::new(Settings { fsk_frequency: Some(470), ..settings })));
    gateway.receive(conn, &up(ap(1), 0x78, 0x3B, &[0xB1, 1]));
    assert_eq!(gateway.frames(conn).remove(0).data[..2], 470_u16.to_le_bytes());
    // As many as a host can have.
    for n in 3..=60 {
        gateway.receive(conn, &heartbeat(ap(100 + n), &[0]));
    }
    gateway.take_written();
    gateway.receive(conn, &up(ap(1), 0x79, 0x3B, &[0xB1, 1]));
    let answer = gateway.frames(conn).remove(0);
    assert_eq!((answer.data[5], answer.data.len()), (50, 6 + 200));
}

#[test]
fn a_host_tells_what_is_behind_it() {
    let mut gateway = Gateway::new();
    let conn = host(&mut gateway, 1);
    gateway.receive(conn, &up(ap(1), 2, 0x35, &[1, 0x25, 0, 105, 0, 0, 0, 0, 101]));
    let host = gateway.entry(ap(1)).host().unwrap();
    let sub = &host.sub_devices[0];
    assert_eq!((sub.device_type, sub.firmware.as_str(), sub.device_id.as_str()), (0x25, "V1.05", "00000065"));
    assert!(gateway.frames(conn).is_empty());
}

#[test]
fn a_frame_that_cannot_be_read_is_a_sign_of_life() {
    let mut gateway = Gateway::new();
    let conn = host(&mut gateway, 1);
    for _ in 0..16 {
        gateway.pass(30 * SECOND);
        gateway.receive(conn, b"link");
        gateway.receive(conn, &up(ap(101), 9, 0x07, &[1, 2]));
    }
    assert!(gateway.online(ap(101)));
}

#[test]
fn a_finished_bay_shows_its_totals_before_it_is_settled() {
    let mut gateway = Gateway::new();
    let conn = charger(&mut gateway, ap(1), 2);
    let order_no = gateway.charge(ap(1), 1);
    let start = gateway.frames(conn).remove(0);
    gateway.receive(conn, &up(ap(1), start.msg_id, 0x82, &[&[0], &order_no.as_bytes()[..], &[0]].concat()));
    gateway.receive(conn, &heartbeat(ap(1), &[1, 0]));
    let complete = [&[0x10, 0x0E, 0xE8, 3, 50, 0, 0, 1, 0, 0, 0, 0, 1], &order_no.as_bytes()[..]].concat();
    gateway.receive(conn, &up(ap(1), 9, 0x43, &complete));
    assert_eq!(gateway.entry(ap(1)).port(1).unwrap().status, PortStatus::Finished);
    assert_eq!(gateway.status(order_no), 2, "not settled yet");
    gateway.pass(4 * SECOND);
    let totals = gateway.value("SELECT duration_seconds || ' ' || energy_wh FROM orders");
    assert_eq!(totals.as_deref(), Some("3600 500"));
}

/// A gateway that has said hello.
fn networked(gateway: &mut Gateway, id: DeviceId) -> chargegate::gateway::ConnId {
    let conn = gateway.connect();
    gateway.receive(conn, &bkv_heartbeat(id));
    gateway.take_written();
    conn
}

/// Elements of one hole in a status push.
fn hole(hole: u8, status: u8, business_no: u16, energy_wh: u16) -> Vec<u8> {
    let elements = [
        tag(0x08, &[hole]),
        tag(0x09, &[status]),
        tag(0x0A, &business_no.to_be_bytes()),
        tag(0x95, &2300_u16.to_be_bytes()),
        tag(0x0D, &energy_wh.to_be_bytes()),
        tag(0x0E, &3_u16.to_be_bytes()),
    ];
    tag(0x5B, &elements.concat())
}

#[test]
fn a_push_may_carry_several_sockets() {
    let mut gateway = Gateway::new();
    let conn = networked(&mut gateway, bkv(1));
    let first = tag(0x94, &[tag(0x4A, &[1]), hole(0, 0x80, 0, 0), hole(1, 0x90, 7, 12)].concat());
    // Two in one container.
    let second = tag(0x94, &[tag(0x4A, &[2]), hole(0, 0x98, 9, 5), tag(0x4A, &[4]), hole(1, 0x00, 0, 0)].concat());
    gateway.receive(conn, &packet(bkv(1), 0x1017, &[first, second].concat()));
    let entry = gateway.entry(bkv(1));
    let shown = |port_no| entry.port(port_no).map(|port| (port.socket, port.hole, port.status, port.raw_status));
    assert_eq!(shown(1), Some((Some(1), Some(0), PortStatus::Idle, 0x80)));
    assert_eq!(shown(2), Some((Some(1), Some(1), PortStatus::Charging, 0x90)));
    assert_eq!(shown(3), Some((Some(2), Some(0), PortStatus::Charging, 0x98)));
    assert_eq!(shown(8), Some((Some(4), Some(1), PortStatus::Unknown, 0x00)));
    assert!(entry.networked());
    let answers = gateway.bkv_frames(conn);
    assert_eq!(answers.len(), 1, "one push, one acknowledgement");
}

#[test]
fn what_a_push_leaves_out_keeps_its_value() {
    let mut gateway = Gateway::new();
    let conn = networked(&mut gateway, bkv(1));
    let whole = tag(0x94, &[tag(0x4A, &[1]), hole(0, 0x90, 7, 12)].concat());
    gateway.receive(conn, &packet(bkv(1), 0x1017, &whole));
    let part = tag(0x5B, &[tag(0x08, &[0]), tag(0x0B, &900_u16.to_be_bytes())].concat());
    gateway.receive(conn, &packet(bkv(1), 0x1017, &tag(0x94, &[tag(0x4A, &[1]), part].concat())));
    let port = gateway.entry(bkv(1)).port(1).unwrap();
    assert_eq!((port.status, port.voltage_dv, port.energy_wh, port.power_dw), (PortStatus::Charging, 2300, 12, 900));
    // A container without a socket number is nobody's.
    gateway.receive(conn, &packet(bkv(1), 0x1017, &tag(0x94, &hole(0, 0x80, 0, 0))));
    assert_eq!(gateway.entry(bkv(1)).port(1).unwrap().status, PortStatus::Charging);
}

#[test]
fn business_number_0_is_no_order() {
    let mut gateway = Gateway::new();
    let conn = networked(&mut gateway, bkv(1));
    let push = |status, business_no, energy| {
        packet(bkv(1), 0x1017, &tag(0x94, &[tag(0x4A, &[1]), hole(0, status, business_no, energy)].concat()))
    };
    gateway.receive(conn, &push(0x80, 0, 0));
    let order_no = gateway.charge(bkv(1), 1);
    let start = gateway.bkv_frames(conn).into_iter().find(|(command, ..)| *command == 0x15).expect("a start");
    gateway.receive(conn, &bkv_up(bkv(1), 0x15, start.1, &[0, 5, 7, 1, 1, 0, 0, 42]));
    assert_eq!(gateway.status(order_no), 1);
    // Power for no order is not this order's power.
    gateway.receive(conn, &push(0x90, 0, 0));
    assert_eq!(gateway.status(order_no), 1);
    gateway.receive(conn, &push(0x90, 42, 30));
    assert_eq!(gateway.status(order_no), 2);
    gateway.pass(4 * SECOND);
    // The end, whose report is still to come: the totals of no order are not those of this one.
    gateway.receive(conn, &push(0x80, 0, 0));
    gateway.pass(4 * SECOND);
    assert_eq!(gateway.value("SELECT energy_wh || '' FROM orders").as_deref(), Some("30"));
}

#[test]
fn an_exception_is_acknowledged_when_it_is_stored() {
    let mut gateway = Gateway::new();
    let conn = networked(&mut gateway, bkv(1));
    let elements = [tag(0x4A, &[2]), tag(0x54, &[8]), tag(0x57, &[0x80]), tag(0xEE, &[1, 2, 3])].concat();
    gateway.store_waits = true;
    gateway.receive(conn, &packet(bkv(1), 0x1010, &elements));
    assert!(gateway.bkv_frames(conn).is_empty() && gateway.alarms(bkv(1)).is_empty());
    gateway.store_goes_on();
    assert_eq!(gateway.bkv_frames(conn).len(), 1);
    let alarm = gateway.alarms(bkv(1)).remove(0);
    assert_eq!(
        (&alarm["reason"], &alarm["socket"], &alarm["reasons"]),
        (&json!("exception"), &json!(2), &json!([8, null, null]))
    );
    // A tag in no table is kept with the frame.
    let row = gateway.log.iter().rev().find(|row| row.up && row.command == 0x1000).expect("logged");
    assert!(row.raw.windows(6).any(|bytes| bytes == [5, 1, 0xEE, 1, 2, 3]));
}

#[test]
fn exceptions_that_were_not_stored_leave_room_for_others() {
    let mut gateway = Gateway::new();
    let conn = networked(&mut gateway, bkv(1));
    let exception = packet(bkv(1), 0x1010, &[tag(0x4A, &[2]), tag(0x54, &[8])].concat());
    gateway.store_fails = true;
    // More than may wait for the store at one time.
    for _ in 0..5_000 {
        gateway.receive(conn, &exception);
    }
    assert!(gateway.bkv_frames(conn).is_empty());
    gateway.store_fails = false;
    gateway.receive(conn, &exception);
    assert_eq!(gateway.bkv_frames(conn).len(), 1, "acknowledged");
}

#[test]
fn a_timed_event_is_answered_and_changes_nothing() {
    let mut gateway = Gateway::new();
    let conn = networked(&mut gateway, bkv(1));
    let ports = gateway.entry(bkv(1)).ports().len();
    let elements = [tag(0x4A, &[5]), tag(0x08, &[0x7F]), tag(0x5A, &[0x2A, 7])].concat();
    gateway.receive(conn, &packet(bkv(1), 0x1013, &elements));
    let answers = gateway.bkv_frames(conn);
    assert!(answers[0].2.ends_with(&[tag(0x4A, &[5]), tag(0x0F, &[1])].concat()), "{answers:?}");
    let entry = gateway.entry(bkv(1));
    assert!(!entry.networked() && entry.ports().len() == ports);
}

#[test]
fn firmware_reports_are_logged_and_not_answered() {
    let mut gateway = Gateway::new();
    let conn = networked(&mut gateway, bkv(1));
    gateway.receive(conn, &bkv_up(bkv(1), 0x07, 3, &[1, 2, 3, 4]));
    assert!(gateway.bkv_frames(conn).is_empty());
    assert!(gateway.log.iter().any(|row| row.up && row.command == 0x07 && row.msg_id == 3));
}

#[test]
fn a_heartbeat_of_another_length_wants_the_time_too() {
    let mut gateway = Gateway::new();
    for (n, payload) in [(1, &[][..]), (2, &[0x38; 12]), (3, &[0x38; 28]), (4, &[0x38; 40])] {
        let conn = gateway.connect();
        gateway.receive(conn, &bkv_up(bkv(n), 0, 0, payload));
        let answers = gateway.bkv_frames(conn);
        let time = answers.iter().find(|(command, ..)| *command == 0).expect("answered");
        assert_eq!(time.2.len(), 7);
        assert!(gateway.closed.is_empty() && gateway.online(bkv(n)));
    }
}

#[test]
fn a_gateway_is_gn_by_its_record_or_its_listener() {
    let mut gateway = Gateway::with(|config| config.timeouts.session_gn = 77_000);
    let conn = gateway.connect_to(Listener::Gn);
    gateway.receive(conn, &bkv_heartbeat(bkv(1)));
    assert_eq!(gateway.entry(bkv(1)).protocol(), Protocol::Gn);
    let other = networked(&mut gateway, bkv(2));
    assert_eq!(gateway.entry(bkv(2)).protocol(), Protocol::Bkv);
    // The record decides, at once and from then on.
    for (n, protocol) in [(1, Protocol::Bkv), (2, Protocol::Gn)] {
        let settings = gateway.settings(bkv(n));
        gateway.call(Job::Settings(Box::new(Settings { protocol: Some(protocol), ..settings })));
        assert_eq!(gateway.entry(bkv(n)).protocol(), protocol);
    }
    gateway.disconnect(conn);
    let conn = gateway.connect_to(Listener::Gn);
    gateway.receive(conn, &bkv_heartbeat(bkv(1)));
    assert_eq!(gateway.entry(bkv(1)).protocol(), Protocol::Bkv);
    gateway.disconnect(other);
    networked(&mut gateway, bkv(2));
    assert_eq!(gateway.entry(bkv(2)).protocol(), Protocol::Gn);
    gateway.pass(100 * SECOND);
    assert_eq!((gateway.online(bkv(1)), gateway.online(bkv(2))), (true, false), "each has its protocol's timeout");
}

#[test]
fn extension_commands_need_leave_of_the_record() {
    let mut gateway = Gateway::new();
    let conn = networked(&mut gateway, bkv(1));
    let unknown = |gateway: &mut Gateway| gateway.decode_errors("unknown_command");
    for command in [0x1001, 0x2000, 0x2001, 0x3000, 0x3001, 0x4000] {
        gateway.receive(conn, &bkv_up(bkv(1), command, 5, &[1, 2]));
    }
    assert_eq!((unknown(&mut gateway), gateway.counted(ShardEvent::Extension)), (6, 0));
    assert!(gateway.alarms(bkv(1)).is_empty());
    let settings = gateway.settings(bkv(1));
    gateway.call(Job::Settings(Box::new(Settings { extensions: Some(true), ..settings })));
    let logged = gateway.log.len();
    for command in [0x1001, 0x2000, 0x2001, 0x3000, 0x3001, 0x4000] {
        gateway.receive(conn, &bkv_up(bkv(1), command, 5, &[1, 2]));
    }
    assert_eq!((unknown(&mut gateway), gateway.counted(ShardEvent::Extension)), (6, 6));
    assert_eq!(gateway.log.len(), logged + 6);
    let alarms = gateway.alarms(bkv(1));
    let told: Vec<_> = alarms.iter().map(|alarm| (alarm["reason"].as_str(), alarm["payload"].as_str())).collect();
    assert_eq!(told, [(Some("gn_control_end"), Some("0102")), (Some("gn_exception"), Some("0102"))]);
    assert!(gateway.bkv_frames(conn).is_empty(), "nothing is sent, whether known or not");
    // It holds over a reconnect.
    gateway.disconnect(conn);
    let conn = networked(&mut gateway, bkv(1));
    gateway.receive(conn, &bkv_up(bkv(1), 0x4000, 5, &[]));
    assert_eq!(gateway.alarms(bkv(1)).len(), 3);
}

#[test]
fn a_payload_that_is_not_tagged_is_opaque() {
    let mut gateway = Gateway::new();
    let conn = networked(&mut gateway, bkv(1));
    let before = gateway.decode_errors("not_decoded");
    gateway.receive(conn, &bkv_up(bkv(1), 0x1000, 0, &[0x4A, 1, 5, 9, 9]));
    assert_eq!((gateway.decode_errors("not_decoded"), gateway.counted(ShardEvent::Opaque)), (before, 1));
    assert!(gateway.log.iter().any(|row| row.up && row.command == 0x1000));
    assert!(gateway.bkv_frames(conn).is_empty() && gateway.closed.is_empty());
    // One that is tagged and broken is an error.
    gateway.receive(conn, &packet(bkv(1), 0x1017, &[0x20, 1, 0x94]));
    assert_eq!(gateway.counted(ShardEvent::Opaque), 1);
    assert!(gateway.closed.is_empty());
}

#[test]
fn settings_register_a_device_that_was_never_seen() {
    let mut gateway = Gateway::with(|config| config.known_only = true);
    let settings = gateway.settings(bkv(1));
    let settings = Settings { protocol: Some(Protocol::Gn), name: Some("yard".to_owned()), ..settings };
    let Outcome::Settings(made) = gateway.call(Job::Settings(Box::new(settings.clone()))) else { panic!() };
    assert!(made.registered && made.protocol == Protocol::Gn);
    assert_eq!(made.details.name.as_deref(), Some("yard"));
    let told = gateway.events(bkv(1), "device.registered");
    assert_eq!((told.len(), &told[0]["online"], &told[0]["protocol"]), (1, &json!(false), &json!("gn")));
    let clear = Settings { name: Some(String::new()), protocol: None, ..settings };
    let Outcome::Settings(again) = gateway.call(Job::Settings(Box::new(clear))) else { panic!() };
    assert!(!again.registered && again.protocol == Protocol::Gn && again.details.name.is_none());
    networked(&mut gateway, bkv(1));
    assert!(gateway.online(bkv(1)));
    assert_eq!(gateway.events(bkv(1), "device.registered").len(), 1);
    assert_eq!(gateway_id(bkv(1)).to_string(), bkv(1).to_string());
}
