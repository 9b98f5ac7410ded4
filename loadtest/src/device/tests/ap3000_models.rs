//! Other kinds of chargers: OEM, legacy, cabinets, own modules; alarms.

use chargegate::protocol::ap3000::body::{Body, CabinetStop, ChargeControl, Limits, MultiFunction, OrderConfirmReply};
use chargegate::protocol::ap3000::codes::{AlarmType, ChargeResult, PortState, RateMode, StopReason};
use chargegate::protocol::ap3000::encode;
use chargegate::protocol::ap3000::wire::{Extra, Raw};

use super::ap3000::{ORDER, OTHER_ORDER, Sent};
use super::*;
use crate::device::ap3000::{Heartbeats, Model};

fn charger(model: Model) -> Wire<Ap3000Device> {
    Wire::connect(Ap3000Device::with_model(1, 2, Behaviour::default(), model))
}

#[test]
fn an_oem_device_speaks_and_hears_its_own_magic() {
    let mut wire = charger(Model { magic: [0x44, 0x22, 0x4e], ..Model::default() });
    let magics = wire.each(|item| match item {
        chargegate::protocol::ap3000::Item::Frame(frame) => Some(frame.magic),
        _ => None,
    });
    assert_eq!(magics, [None, Some([0x44, 0x22, 0x4e]), Some([0x44, 0x22, 0x4e]), Some([0x44, 0x22, 0x4e])]);
    assert_eq!(wire.start(1, 0, 60), ChargeResult::SUCCESS);
    let mut frame = Vec::new();
    let header = encode::Header { magic: *b"DNY", ..wire.header(2) };
    encode::charge_control(&mut frame, &header, &ChargeControl::stop(0, ORDER));
    wire.events();
    wire.receive(&frame);
    assert!(wire.events().contains(&Event::Malformed));
    assert_eq!(wire.device.port_state(0), Some(PortState::CHARGING));
}

#[test]
fn a_legacy_device_says_01_and_04() {
    let mut wire = charger(Model::legacy());
    assert_eq!(wire.items(), [Sent::Iccid, Sent::Frame(0x22, 1), Sent::Frame(0x01, 2)]);
    wire.acknowledge(0x01, 2);
    assert!(wire.events().contains(&Event::Registered));
    let mut start = Vec::new();
    let control = ChargeControl::start(RateMode::TIMED, 1, 600, ORDER);
    encode::charge_control(&mut start, &wire.header(50), &control);
    wire.receive(&start);
    let [Sent::Frame(0x04, msg_id), Sent::Frame(0x82, 50)] = wire.items()[..] else { panic!("04 comes first") };
    wire.pass(60 * SECOND_US);
    let again = wire.bodies(|msg_id, body| match body {
        Body::OrderConfirm(confirm) => Some((msg_id, confirm.port, confirm.duration_s, confirm.order_no.0)),
        _ => None,
    });
    let [(second_id, 1, 60, ORDER)] = again[..] else { panic!("{again:?}") };
    assert_ne!(second_id, msg_id);
    let mut reply = Vec::new();
    let confirmed = OrderConfirmReply { port: 1, result: 0, extra: Extra::NONE };
    encode::order_confirm_reply(&mut reply, &wire.header(second_id), &confirmed);
    wire.receive(&reply);
    wire.pass(240 * SECOND_US);
    let commands = wire.commands();
    assert!(!commands.contains(&0x04) && !commands.contains(&0x06));
}

#[test]
fn a_legacy_device_gives_up_after_three() {
    let mut wire = charger(Model::legacy());
    wire.pass(1000 * SECOND_US);
    let heartbeats = |wire: &mut Wire<Ap3000Device>| wire.commands().iter().filter(|cmd| **cmd == 0x01).count();
    assert_eq!(heartbeats(&mut wire), 3);
    wire.reconnect();
    assert_eq!(heartbeats(&mut wire), 1);
}

#[test]
fn a_device_of_both_kinds_stops_01_when_21_is_answered() {
    let both = Model { heartbeats: Heartbeats::Both, ..Model::default() };
    let mut wire = charger(both);
    assert_eq!(wire.commands(), [0x20, 0x22, 0x21, 0x01]);
    wire.acknowledge(0x21, 3);
    wire.pass(300 * SECOND_US);
    assert!(!wire.commands().contains(&0x01));
    let mut wire = charger(both);
    wire.pass(600 * SECOND_US);
    assert_eq!(wire.commands().iter().filter(|command| **command == 0x01).count(), 3);
}

#[test]
fn a_charger_with_a_module_says_11_and_12() {
    let mut wire = charger(Model { module: true, ..Model::default() });
    let types = wire.bodies(|_, body| match body {
        Body::HostHeartbeat(heartbeat) => heartbeat.host_type,
        _ => None,
    });
    assert_eq!(types, [0x21]);
    wire.reconnect();
    let [.., Sent::Frame(0x12, msg_id), Sent::Frame(0x21, _), Sent::Frame(0x11, _)] = wire.items()[..] else {
        panic!("no 0x12")
    };
    let mut reply = Vec::new();
    encode::time_reply(&mut reply, &wire.header(msg_id), 0x12, 1_604_934_878);
    wire.receive(&reply);
    assert_eq!(wire.device.unix_s(wire.now_us), 1_604_934_878);
    wire.pass(1800 * SECOND_US);
    let commands = wire.commands();
    assert!(commands.contains(&0x11) && !commands.contains(&0x12));
}

#[test]
fn a_cabinet_settles_when_the_bay_is_empty() {
    let mut wire = charger(Model::cabinet());
    wire.acknowledge(0x20, 1);
    let cabinet = wire.bodies(|_, body| match body {
        Body::CabinetHeartbeat(heartbeat) => Some((heartbeat.port_count, heartbeat.door_bits)),
        _ => None,
    });
    assert_eq!(cabinet, [(2, 0)]);
    wire.start(1, 0, 60);
    wire.device.set_door(wire.now_us, 0, true);
    wire.device.poll_output(&mut wire.sent);
    let events = wire.bodies(|_, body| match body {
        Body::PortEvent(event) => Some((event.event_type, event.port, event.order_no.0)),
        _ => None,
    });
    assert_eq!(events, [(1, 0, ORDER)]);
    wire.pass(61 * SECOND_US);
    let notices = wire.bodies(|_, body| match body {
        Body::ChargeComplete(notice) => Some((notice.duration_s, notice.stop_reason, notice.order_no.0)),
        _ => None,
    });
    assert_eq!(notices, [(60, StopReason::DURATION, ORDER)]);
    wire.pass(180 * SECOND_US);
    assert_eq!(wire.settlements(), []);
    assert_eq!(wire.device.unsettled(), 1);
    wire.device.unplug(wire.now_us, 0);
    wire.pass(2 * SECOND_US);
    assert_eq!(wire.settlements()[0].1.occupancy_min, Some(3));
}

#[test]
fn a_cabinet_is_stopped_and_opened() {
    let mut wire = charger(Model::cabinet());
    wire.start(1, 0, 600);
    let stop = |order| CabinetStop { port: 0, order_no: Raw(order), extra: Extra::NONE };
    let reply = |wire: &mut Wire<Ap3000Device>, msg_id, order| {
        wire.command(msg_id, 0x72, &stop(order), |frame, _| (frame.data[0], frame.data[1..].to_vec()))
    };
    assert_eq!(reply(&mut wire, 2, OTHER_ORDER), [(1, OTHER_ORDER.to_vec())]);
    assert_eq!(reply(&mut wire, 3, ORDER), [(0, ORDER.to_vec())]);
    assert_eq!(wire.device.doors(), 0, "the door stays shut");
    assert_eq!(wire.start(4, 1, 600), ChargeResult::SUCCESS);
    assert_eq!(wire.result(5, 0x98, &MultiFunction { function: 0, port: 1, extra: Extra::NONE }), 0);
    assert_eq!(wire.device.doors(), 0b10);
    assert_eq!(wire.device.ledger().last().unwrap().end_code, Some(StopReason::SERVER_FORCED.0));
    assert_eq!(wire.result(6, 0x98, &MultiFunction { function: 1, port: 1, extra: Extra::NONE }), 1);
    wire.pass(604 * SECOND_US);
    let reasons: Vec<_> = wire.settlements().into_iter().map(|(_, body)| (body.port, body.occupancy_min)).collect();
    assert_eq!(reasons, [(0, Some(10))], "the customer comes after 10 min; the other record waits its turn");
}

#[test]
fn alarms_are_told_once() {
    let mut wire = charger(Model::default());
    assert!(wire.device.alarm(wire.now_us, AlarmType::SMOKE, 3, Some(1)));
    wire.device.poll_output(&mut wire.sent);
    let alarms = wire.bodies(|_, body| match body {
        Body::Alarm(alarm) => Some((alarm.alarm_type, alarm.port, alarm.trigger_bits)),
        _ => None,
    });
    assert_eq!(alarms, [(AlarmType::SMOKE, 3, Some(1))]);
    wire.device.disconnected(wire.now_us);
    assert!(!wire.device.alarm(wire.now_us, AlarmType::WATER, 0, None));
}

#[test]
fn a_power_cut_forgets_numbering_and_keeps_charges() {
    let mut wire = charger(Model::default());
    let limits = Limits { max_duration_s: 999, overload_power: 5, ..Limits::default() };
    assert_eq!(wire.result(1, 0x85, &limits), 0);
    assert_eq!(wire.start(2, 0, 600), ChargeResult::SUCCESS);
    wire.device.cut_power(wire.now_us);
    let mut stop = Vec::new();
    encode::charge_control(&mut stop, &wire.header(3), &ChargeControl::stop(0, ORDER));
    wire.receive(&stop);
    assert_eq!(wire.device.port_state(0), Some(PortState::CHARGING), "it does not hear");
    assert!(wire.device.poll_close());
    wire.reconnect();
    assert_eq!(wire.items()[1], Sent::Frame(0x20, 1), "numbers begin anew");
    assert_eq!(wire.device.parameters().limits.max_duration_s, 999);
    wire.pass(602 * SECOND_US);
    assert_eq!(wire.settlements()[0].1.duration_s, 600);
}
