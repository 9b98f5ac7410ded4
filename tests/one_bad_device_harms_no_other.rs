//! Whatever one peer does on its connection, the other devices are served and their charges are billed.
//!
//! Each property lets a bad peer do its worst against the real process, then asks a good device for a heartbeat and a whole charge.
//! Both are on one shard, so the bad one had every chance. What happened to it is told by the metrics.

#[macro_use]
mod gateway;

use chargegate::protocol::{ap3000::codes::StartMode, bkv::device};
use gateway::{
    Engine, Gateway, until,
    wire::{Ap3000, Ap3000End, Bkv, Line, bkv_frame, hole, wire_no},
};
use serde_json::json;

const GOOD: &str = "40aace04";
const OTHER: &str = "41aace04";
const GATEWAY: &str = "86100000000001";

on_both_engines! {
    a_peer_of_an_unknown_protocol
    a_peer_that_sends_garbage_for_ever
    frames_with_wrong_bytes
    half_a_frame
    silent_connections
    a_peer_that_never_reads
    a_bkv_connection_that_was_replaced
    an_ap3000_socket_that_lost_one_of_its_ids
    a_device_that_is_not_admitted
    more_connections_than_allowed
}

/// One shard, so that nobody is out of harm's way.
fn start(engine: Engine, variables: &[(&str, &str)]) -> Option<(Gateway, Ap3000)> {
    let all: Vec<_> = [("CHARGEGATE_SHARD_COUNT", "1")].iter().chain(variables).copied().collect();
    let gateway = Gateway::start(engine, &all)?;
    let good = Ap3000::online(gateway.devices, GOOD, 1);
    gateway.knows_port(GOOD, 1);
    Some((gateway, good))
}

/// A heartbeat and a charge, each step answered.
fn is_served(gateway: &Gateway, good: &mut Ap3000) {
    good.beat(&[0]);
    let order_no = gateway.charge(GOOD, &json!({"port_no": 1, "mode": "time", "duration_minutes": 1}));
    let number = wire_no(&order_no);
    let msg_id = good.expect_command(0x82, &[&[0, 0, 0, 0, 0, 0, 1, 60, 0], &number[..]].concat());
    good.answer(msg_id, 0, 0, number);
    good.report_charging(0, number, 30, 1);
    gateway.order_becomes(&order_no, "charging");
    let (start_mode, reason) = (StartMode::ONLINE, 3);
    let end = Ap3000End { port: 0, order_no: number, start_mode, reason, duration_s: 60, energy: 2 };
    let msg_id = good.settle(&end);
    good.expect(msg_id, 0x03, &[0]);
    assert_eq!(gateway.order(&order_no)["status_text"], "completed");
}

fn counts(gateway: &Gateway, metric: &str, least: u64) {
    until(&format!("{metric} reaches {least}"), || (gateway.metric(metric) >= least).then_some(()));
}

fn closed(gateway: &Gateway, reason: &str, least: u64) {
    counts(gateway, &format!("chargegate_tcp_closed_total{{reason=\"{reason}\"}}"), least);
}

fn decode_errors(gateway: &Gateway, kind: &str, least: u64) {
    counts(gateway, &format!("chargegate_decode_errors_total{{kind=\"{kind}\"}}"), least);
}

fn a_peer_of_an_unknown_protocol(engine: Engine) {
    let Some((gateway, mut good)) = start(engine, &[]) else { return };
    for greeting in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[0x16, 3, 1, 0, 0xA5, 1, 0, 0]] {
        let mut peer = Line::connect(gateway.devices);
        peer.send(greeting);
        peer.expect_end();
    }
    closed(&gateway, "unknown_protocol", 3);
    is_served(&gateway, &mut good);
}

fn a_peer_that_sends_garbage_for_ever(engine: Engine) {
    let Some((gateway, mut good)) = start(engine, &[]) else { return };
    let mut peer = Bkv::connect(gateway.devices, GATEWAY);
    peer.beat();
    let garbage = [0x55; 4096];
    while peer.line.try_send(&garbage) {}
    closed(&gateway, "garbage", 1);
    decode_errors(&gateway, "noise", 1024);
    is_served(&gateway, &mut good);
}

fn frames_with_wrong_bytes(engine: Engine) {
    let Some((gateway, mut good)) = start(engine, &[]) else { return };
    let mut peer = Bkv::standalone(gateway.devices, GATEWAY);
    let mut sound = Vec::new();
    device::heartbeat(&mut sound, peer.gateway_id, "89860463112070319417", "1.0.0", 20);
    // A wrong byte at every place of a frame, each followed by a sound frame, which is answered; what the wrong one is taken for
    // is the codec's to say. A length that reaches into the next frame may swallow that one.
    for place in (0..2).chain(4..sound.len()) {
        let mut wrong = sound.clone();
        wrong[place] ^= 0x40;
        peer.line.send(&wrong);
        peer.beat();
    }
    decode_errors(&gateway, "bad_checksum", 1);
    decode_errors(&gateway, "bad_tail", 1);
    // A command nobody knows costs nothing but a count.
    let mut unknown = bkv_frame(peer.gateway_id, 0x7777, 1, &[]);
    unknown[1] = 0xFE;
    unknown[10] = 1;
    let end = unknown.len() - 3;
    unknown[end] = unknown[2..end].iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
    peer.line.send(&unknown);
    peer.beat();
    decode_errors(&gateway, "unknown_command", 1);
    is_served(&gateway, &mut good);
}

fn half_a_frame(engine: Engine) {
    let Some((gateway, mut good)) = start(engine, &[("CHARGEGATE_DEVICE_DETECT_TIMEOUT", "1s")]) else { return };
    let mut sound = Vec::new();
    let mut peer = Bkv::standalone(gateway.devices, GATEWAY);
    device::heartbeat(&mut sound, peer.gateway_id, "89860463112070319417", "1.0.0", 20);
    // A split frame is one frame, wherever it is split.
    for place in 1..sound.len() {
        peer.line.send(&sound[..place]);
        peer.line.send(&sound[place..]);
        peer.expect_time();
    }
    // Half a frame and then nothing but its silence: others are served meanwhile, and it is given up.
    peer.line.send(&sound[..20]);
    is_served(&gateway, &mut good);
    decode_errors(&gateway, "noise", 1);
    peer.beat();
}

fn silent_connections(engine: Engine) {
    let variables = [("CHARGEGATE_DEVICE_DETECT_TIMEOUT", "1s"), ("CHARGEGATE_DEVICE_IDLE_TIMEOUT_BKV", "1s")];
    let Some((gateway, mut good)) = start(engine, &variables) else { return };
    let mut silent: Vec<Line> = (0..50).map(|_| Line::connect(gateway.devices)).collect();
    is_served(&gateway, &mut good);
    for peer in &mut silent {
        peer.expect_end();
    }
    closed(&gateway, "detect_timeout", 50);
    let mut mute = Bkv::standalone(gateway.devices, GATEWAY);
    mute.line.expect_end();
    closed(&gateway, "idle", 1);
    is_served(&gateway, &mut good);
}

fn a_peer_that_never_reads(engine: Engine) {
    let Some((gateway, mut good)) = start(engine, &[("CHARGEGATE_DEVICE_WRITE_TIMEOUT", "1s")]) else { return };
    let mut peer = Bkv::connect(gateway.devices, GATEWAY);
    let mut frames = Vec::new();
    for _ in 0..1_000 {
        device::heartbeat(&mut frames, peer.gateway_id, "89860463112070319417", "1.0.0", 20);
    }
    // It sends until it is closed: the answers fill the kernel's buffers, then the gateway's.
    while peer.line.try_send(&frames) {}
    let sum = |gateway: &Gateway| {
        ["write_overflow", "write_stalled"]
            .map(|reason| gateway.metric(&format!("chargegate_tcp_closed_total{{reason=\"{reason}\"}}")))
            .iter()
            .sum::<u64>()
    };
    until("it is closed for not reading", || (sum(&gateway) == 1).then_some(()));
    is_served(&gateway, &mut good);
}

fn a_bkv_connection_that_was_replaced(engine: Engine) {
    let Some((gateway, mut good)) = start(engine, &[]) else { return };
    let mut old = Bkv::standalone(gateway.devices, GATEWAY);
    gateway.knows_port(GATEWAY, 1);
    let mut new = Bkv::connect(gateway.devices, GATEWAY);
    new.beat();
    old.line.expect_end();
    closed(&gateway, "replaced", 1);
    counts(&gateway, "chargegate_shard_events_total{event=\"takeover\"}", 1);
    // Commands go to the new connection alone.
    let order_no = gateway.charge(GATEWAY, &json!({"port_no": 2, "mode": "time", "duration_minutes": 2}));
    let sequence = new.expect_command(0x0015, &[0, 8, 0x07, 0, 1, 1, 1, 0, 2, 0, 0]);
    new.answer(sequence, 0x07, 1, 0, 1, 8);
    gateway.order_becomes(&order_no, "confirmed");
    new.push(0, &[hole(1, 0x90, 8)]);
    gateway.order_becomes(&order_no, "charging");
    is_served(&gateway, &mut good);
}

fn an_ap3000_socket_that_lost_one_of_its_ids(engine: Engine) {
    let Some((gateway, mut good)) = start(engine, &[]) else { return };
    // A host's socket that carries the good device and another one.
    let mut host = Ap3000::online(gateway.devices, OTHER, 1);
    gateway.knows_port(OTHER, 1);
    let (own, lost) = (host.phy_id, good.phy_id);
    host.phy_id = lost;
    host.beat(&[0]);
    counts(&gateway, "chargegate_shard_events_total{event=\"takeover\"}", 1);
    // The host's connection is the newer one, so the id is its own from now on: a start comes here.
    let order_no = gateway.charge(GOOD, &json!({"port_no": 1, "mode": "full"}));
    let number = wire_no(&order_no);
    let msg_id = host.expect_command(0x82, &[&[0, 0, 0, 0, 0, 0, 1, 0, 0], &number[..]].concat());
    host.answer(msg_id, 0, 0, number);
    gateway.order_becomes(&order_no, "confirmed");
    // The old socket is answered, and its settlement is true money; it does not take the id back.
    good.beat(&[0]);
    let (start_mode, reason) = (StartMode::ONLINE, 3);
    let end = Ap3000End { port: 0, order_no: number, start_mode, reason, duration_s: 60, energy: 2 };
    let msg_id = good.settle(&end);
    good.expect(msg_id, 0x03, &[0]);
    assert_eq!(gateway.order(&order_no)["status_text"], "completed");
    assert_eq!(gateway.metric("chargegate_shard_events_total{event=\"takeover\"}"), 1);
    // A newer connection takes it over once more: the host keeps its socket and its other id.
    let mut newest = Ap3000::online(gateway.devices, GOOD, 1);
    counts(&gateway, "chargegate_shard_events_total{event=\"takeover\"}", 2);
    host.phy_id = own;
    host.beat(&[0]);
    is_served(&gateway, &mut newest);
    assert_eq!(gateway.metric("chargegate_tcp_closed_total{reason=\"replaced\"}"), 0);
}

fn a_device_that_is_not_admitted(engine: Engine) {
    let Some((gateway, good)) = start(engine, &[]) else { return };
    // Once its row is stored it is known; the next process serves nobody else.
    until("the good device is stored", || {
        let stored = gateway.database().query_row("SELECT count(*) FROM devices", [], |row| row.get::<_, i64>(0));
        (stored == Ok(1)).then_some(())
    });
    drop(good);
    let mut gateway = gateway;
    gateway.kill9();
    let gateway = gateway
        .start_beside(&[("CHARGEGATE_DEVICES_ADMISSION", "known")])
        .unwrap_or_else(|failed| panic!("{failed:?}"));
    let mut good = Ap3000::online(gateway.devices, GOOD, 1);
    gateway.knows_port(GOOD, 1);
    let mut stranger = Ap3000::connect(gateway.devices, OTHER);
    for _ in 0..5 {
        stranger.heartbeat(&[0]);
    }
    // No reply at all, then the end.
    stranger.line.expect_silent_end();
    closed(&gateway, "not_admitted", 1);
    gateway.get(&format!("devices/{OTHER}")).refused(404, "DEVICE_NOT_FOUND");
    is_served(&gateway, &mut good);
}

fn more_connections_than_allowed(engine: Engine) {
    let Some((gateway, mut good)) = start(engine, &[("CHARGEGATE_LIMITS_MAX_CONNECTIONS_PER_IP", "5")]) else { return };
    let mut kept: Vec<Bkv> = (1..5)
        .map(|number| {
            let mut device = Bkv::connect(gateway.devices, &format!("861000000001{number:02}"));
            device.beat();
            device
        })
        .collect();
    for _ in 0..3 {
        Line::connect(gateway.devices).expect_end();
    }
    closed(&gateway, "limit_per_ip", 3);
    is_served(&gateway, &mut good);
    // A place that gets free is given away again.
    kept.remove(0).line.hang_up();
    closed(&gateway, "peer", 1);
    Bkv::connect(gateway.devices, GATEWAY).beat();
}
