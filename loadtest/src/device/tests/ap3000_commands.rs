//! Commands besides start and stop: replies, and what they change.

use chargegate::protocol::Direction;
use chargegate::protocol::ap3000::body::{
    Body, CabinetStop, ChargeControl, EepromRead, EepromWrite, Limits, LocateDevice, ModifyCharge, MultiFunction,
    Params11, Params12, Params13, PlayVoice, QrUrl, ReservedFd, TcMode, TemporaryQr, UserCard, WorkMode,
};
use chargegate::protocol::ap3000::codes::{ChargeResult, ModifyMode, PortState, RateMode, StopReason};
use chargegate::protocol::ap3000::encode;
use chargegate::protocol::ap3000::wire::{Extra, Layout, Raw, Rest, Text};
use chargegate::protocol::ap3000::{Frame, decode_body};

use super::ap3000::{ORDER, charger};
use super::*;
use crate::device::ap3000::{Fault, Parameters};
use crate::device::ledger::State;

impl Wire<Ap3000Device> {
    /// Sends a command and reads the replies under the same command and message id.
    pub(super) fn command<'a, T>(
        &mut self,
        msg_id: u16,
        command: u8,
        body: &impl Layout<'a>,
        read: impl Fn(&Frame<'_>, Body<'_>) -> T,
    ) -> Vec<T> {
        self.sent.clear();
        let mut frame = Vec::new();
        encode::body(&mut frame, &self.header(msg_id), command, body).unwrap();
        self.receive(&frame);
        let replies = self.each(|item| match item {
            chargegate::protocol::ap3000::Item::Frame(frame) if frame.command == command && frame.msg_id == msg_id => {
                Some(read(&frame, decode_body(&frame, Direction::Up).expect("the body is sound")))
            }
            _ => None,
        });
        replies.into_iter().flatten().collect()
    }

    /// The one-byte result of a command.
    pub(super) fn result<'a>(&mut self, msg_id: u16, command: u8, body: &impl Layout<'a>) -> u8 {
        let results = self.command(msg_id, command, body, |_, body| match body {
            Body::ResultReply(reply) => reply.result,
            body => panic!("{body:?}"),
        });
        assert_eq!(results.len(), 1, "one reply to {command:#04x}");
        results[0]
    }
}

const NOTHING: chargegate::protocol::ap3000::body::Empty<'static> =
    chargegate::protocol::ap3000::body::Empty { extra: Extra::NONE };

#[test]
fn settings_are_stored_and_read_back() {
    let mut wire = charger();
    let delivered = Parameters::default();
    let heartbeat = Params11 { heartbeat_interval_s: 60, ..delivered.params_1_1 };
    let read = wire.command(1, 0x90, &NOTHING, |_, body| body == Body::Params11(heartbeat));
    assert_eq!(read, [true], "as delivered");

    let params_1_1 = Params11 { float_percent: 35, heartbeat_interval_s: 90, ..delivered.params_1_1 };
    let params_1_2 = Params12 { min_power: 250, qr_light: 0, ..delivered.params_1_2 };
    let limits = Limits { max_duration_s: 7200, overload_power: 8000, ..Limits::default() };
    let user_card = UserCard { user_card_sector: 3, user_card_key: Raw([7; 6]), ..delivered.user_card };
    assert_eq!(wire.result(2, 0x83, &params_1_1), 0);
    assert_eq!(wire.result(3, 0x84, &params_1_2), 0);
    assert_eq!(wire.result(4, 0x85, &limits), 0);
    assert_eq!(wire.result(5, 0x86, &user_card), 0);
    let kept = Limits { over_voltage: Some(2700), under_voltage: Some(1000), ..limits };
    for (command, expected) in [
        (0x90, Body::Params11(params_1_1)),
        (0x91, Body::Params12(params_1_2)),
        (0x92, Body::Limits(kept)),
        (0x93, Body::UserCard(user_card)),
    ] {
        let read = wire.command(u16::from(command), command, &NOTHING, |_, body| body == expected);
        assert_eq!(read, [true], "{command:#04x}");
    }
    wire.reconnect();
    assert_eq!(wire.device.parameters().limits, kept, "settings outlive the connection");
}

#[test]
fn bad_values_are_refused_and_change_nothing() {
    let mut wire = charger();
    let before = wire.device.parameters();
    let delivered = Parameters::default();
    assert_eq!(wire.result(1, 0x83, &Params11 { float_percent: 0, ..delivered.params_1_1 }), 1);
    assert_eq!(wire.result(2, 0x83, &Params11 { float_percent: 101, ..delivered.params_1_1 }), 1);
    assert_eq!(wire.result(3, 0x83, &Params11 { heartbeat_interval_s: 0, ..delivered.params_1_1 }), 1);
    assert_eq!(wire.result(4, 0x84, &Params12 { qr_light: 2, ..delivered.params_1_2 }), 1);
    assert_eq!(wire.result(5, 0x85, &Limits { overload_power: 20_001, ..Limits::default() }), 1);
    assert_eq!(wire.result(6, 0x86, &UserCard { user_card_sector: 16, ..delivered.user_card }), 1);
    assert_eq!(wire.result(7, 0x8d, &WorkMode { work_mode: 2, extra: Extra::NONE }), 2);
    assert_eq!(wire.result(8, 0x8f, &TcMode { tc_mode: 2, extra: Extra::NONE }), 1);
    assert_eq!(wire.result(9, 0x97, &Params13 { mute: 2, extra: Extra::NONE }), 1);
    let text = [b'x'; 72];
    let qr = QrUrl { screen_type: 1, reserved: Raw([0; 3]), qr_text: Text::new(&text).unwrap(), extra: Extra::NONE };
    assert_eq!(wire.result(10, 0x8e, &qr), 1, "the last byte must be zero");
    assert_eq!(wire.result(11, 0x89, &PlayVoice::default()), 1);
    let write = EepromWrite { eeprom_addr: 255, length: 2, eeprom_data: Rest(&[1, 2]), extra: Extra::NONE };
    assert_eq!(wire.result(12, 0x8c, &write), 1, "behind the end");
    let write = EepromWrite { eeprom_addr: 0, length: 33, eeprom_data: Rest(&[0; 33]), extra: Extra::NONE };
    assert_eq!(wire.result(13, 0x8c, &write), 1, "more than 32 bytes");
    let read = EepromRead { eeprom_addr: 250, length: 7, extra: Extra::NONE };
    let replies = wire.command(14, 0x8b, &read, |frame, _| frame.data.to_vec());
    assert_eq!(replies, [[1]]);
    assert_eq!(format!("{before:?}"), format!("{:?}", wire.device.parameters()));
}

#[test]
fn a_new_heartbeat_interval_is_obeyed() {
    let mut wire = charger();
    wire.acknowledge(0x20, 1);
    let params = Params11 { heartbeat_interval_s: 20, ..Parameters::default().params_1_1 };
    assert_eq!(wire.result(1, 0x83, &params), 0);
    wire.pass(20 * SECOND_US - 1);
    assert!(!wire.commands().contains(&0x21));
    wire.pass(1);
    assert!(wire.commands().contains(&0x21));
    wire.pass(60 * SECOND_US);
    assert_eq!(wire.commands().into_iter().filter(|command| *command == 0x21).count(), 3);
}

#[test]
fn the_eeprom_keeps_what_is_written() {
    let mut wire = charger();
    let data = [9, 8, 7];
    let write = EepromWrite { eeprom_addr: 253, length: 3, eeprom_data: Rest(&data), extra: Extra::NONE };
    assert_eq!(wire.result(1, 0x8c, &write), 0);
    let read = EepromRead { eeprom_addr: 252, length: 4, extra: Extra::NONE };
    assert_eq!(wire.command(2, 0x8b, &read, |frame, _| frame.data.to_vec()), [[0, 0xff, 9, 8, 7]]);
}

#[test]
fn modes_texts_and_voices() {
    let mut wire = charger();
    wire.acknowledge(0x20, 1);
    assert_eq!(wire.result(1, 0x8d, &WorkMode { work_mode: 1, extra: Extra::NONE }), 0);
    wire.pass(1);
    let modes = wire.bodies(|_, body| match body {
        Body::Registration(registration) => registration.work_mode,
        _ => None,
    });
    assert_eq!(modes, [1], "a field of 0x20 changed");
    assert_eq!(wire.result(2, 0x8f, &TcMode { tc_mode: 6, extra: Extra::NONE }), 0);
    assert_eq!(wire.result(3, 0x97, &Params13 { mute: 1, extra: Extra::NONE }), 0);
    let text = Text::new(b"http://example.org/40aace04/ff").unwrap();
    let qr = QrUrl { screen_type: 1, reserved: Raw([0; 3]), qr_text: text, extra: Extra::NONE };
    assert_eq!(wire.result(4, 0x8e, &qr), 0);
    let parameters = wire.device.parameters();
    assert_eq!((parameters.work_mode, parameters.tc_mode, parameters.mute, parameters.screen_type), (1, 6, 1, 1));
    assert_eq!(parameters.qr_text, b"http://example.org/40aace04/ff");
    let temporary = TemporaryQr { qr_text: Text::new(b"pay here").unwrap(), extra: Extra::NONE };
    assert_eq!(wire.result(5, 0x95, &temporary), 0);
    assert_eq!(wire.device.temporary_qr(), b"pay here");
    let voice = PlayVoice { interrupt: 1, segment_count: 2, segments: Rest(&[4, 5]), extra: Extra::NONE };
    assert_eq!(wire.result(6, 0x89, &voice), 0);
    assert_eq!(wire.device.voice_segments(), [4, 5]);
    assert_eq!(wire.result(7, 0x96, &LocateDevice { locate_s: 30, extra: Extra::NONE }), 0);
    assert!(
        wire.device.is_located(wire.now_us + 29 * SECOND_US) && !wire.device.is_located(wire.now_us + 30 * SECOND_US)
    );
    for (function, result) in [(1, 0), (2, 0), (3, 1)] {
        let fd = ReservedFd { function, ..ReservedFd::default() };
        let replies = wire.command(10 + u16::from(function), 0xfd, &fd, |frame, _| frame.data.to_vec());
        assert_eq!(replies, [[function, result]]);
    }
}

#[test]
fn what_is_for_hosts_and_cabinets_is_not_done() {
    let mut wire = charger();
    assert_eq!(wire.start(1, 0, 600), ChargeResult::SUCCESS);
    for command in 0x31..=0x33 {
        assert_eq!(wire.command(u16::from(command), command, &NOTHING, |_, _| ()), [], "{command:#04x}");
    }
    assert_eq!(wire.result(2, 0x98, &MultiFunction::default()), 1);
    let stop = CabinetStop { port: 0, order_no: Raw(ORDER), extra: Extra::NONE };
    assert_eq!(wire.command(3, 0x72, &stop, |frame, _| frame.data[0]), [1]);
    assert_eq!(wire.device.port_state(0), Some(PortState::CHARGING));
}

#[test]
fn a_reboot_is_answered_then_done() {
    let mut wire = charger();
    wire.start(1, 0, 600);
    assert_eq!(wire.result(2, 0x87, &NOTHING), 0);
    assert!(wire.device.poll_close());
    assert!(!wire.device.poll_close(), "once");
    wire.device.disconnected(wire.now_us);
    wire.pass(4 * SECOND_US);
    wire.device.connected(wire.now_us);
    wire.device.poll_output(&mut wire.sent);
    assert_eq!(wire.commands()[0], 0x20);
    assert_eq!(wire.device.port_state(0), Some(PortState::CHARGING), "an order outlives the power");
    assert_eq!(wire.result(2, 0x87, &NOTHING), 0, "no memory of commands before");
    assert!(wire.device.poll_close());
}

#[test]
fn cleared_storage_is_as_delivered() {
    let mut wire = charger();
    wire.start(1, 0, 60);
    wire.pass(61 * SECOND_US);
    assert_eq!(wire.device.unsettled(), 1);
    let params = Params11 { heartbeat_interval_s: 20, ..Parameters::default().params_1_1 };
    assert_eq!(wire.result(2, 0x83, &params), 0);
    assert_eq!(wire.result(3, 0x88, &NOTHING), 0);
    assert_eq!(wire.device.parameters().params_1_1.heartbeat_interval_s, 60);
    assert_eq!(wire.device.unsettled(), 0);
    assert_eq!(wire.device.ledger().count(State::Erased), 1);
    wire.pass(7200 * SECOND_US);
    assert_eq!(wire.settlements(), []);
}

#[test]
fn a_value_below_the_used_up_ends_the_charge() {
    let modify = |rate_mode, value| ModifyCharge { rate_mode, port: 0, duration_or_energy: value, extra: Extra::NONE };
    let mut wire = charger();
    wire.start(1, 0, 6000);
    wire.pass(100 * SECOND_US);
    assert_eq!(wire.result(2, 0x8a, &modify(ModifyMode::TIMED_FULL, 99)), 2);
    wire.pass(2 * SECOND_US);
    let settlement = wire.settlements()[0].1;
    assert_eq!(
        (settlement.duration_s, settlement.stop_reason),
        (100, StopReason::DURATION),
        "at once, not in the past"
    );

    let mut wire = charger();
    wire.control(1, &ChargeControl::start(RateMode::METERED, 0, 100, ORDER));
    wire.pass(3000 * SECOND_US);
    assert_eq!(wire.result(2, 0x8a, &modify(ModifyMode::METERED_FULL, 1)), 2);
    wire.pass(2 * SECOND_US);
    let settlement = wire.settlements()[0].1;
    assert_eq!(settlement.stop_reason, StopReason::ENERGY);
    assert!(settlement.energy > 1);
}

#[test]
fn limits_and_faults_of_ports() {
    let mut wire = charger();
    assert_eq!(wire.result(1, 0x85, &Limits { max_duration_s: 120, overload_power: 1, ..Limits::default() }), 0);
    assert_eq!(wire.control(2, &ChargeControl::start(RateMode::METERED, 0, 60_000, ORDER)).0, ChargeResult::SUCCESS);
    wire.pass(122 * SECOND_US);
    assert_eq!(wire.settlements()[0].1.stop_reason, StopReason::DURATION_MAX);
    wire.device.set_port_state(0, PortState::FUSE_BLOWN);
    assert_eq!(wire.start(3, 0, 60), ChargeResult::PORT_FAULT);
    assert_eq!(wire.start(4, 1, 60), ChargeResult::SUCCESS);
    wire.device.end_by(wire.now_us, 1, StopReason::OVERLOAD);
    let last = wire.device.ledger().last().unwrap();
    assert_eq!((last.end_code, last.end), (Some(0x06), Some(charge::End::Fault(0x06))));
}

#[test]
fn faults_happen_once() {
    let mut wire = charger();
    wire.device.set_fault(Fault::Refused(0x82, ChargeResult::SMOKE.0));
    wire.device.set_fault(Fault::ReplyLost(0x83));
    assert_eq!(wire.start(1, 0, 60), ChargeResult::SMOKE);
    assert_eq!(wire.start(2, 0, 60), ChargeResult::SUCCESS);
    let params = Params11 { heartbeat_interval_s: 77, ..Parameters::default().params_1_1 };
    assert_eq!(wire.command(3, 0x83, &params, |_, _| ()), []);
    assert_eq!(wire.device.parameters().params_1_1.heartbeat_interval_s, 77, "done all the same");
    assert_eq!(wire.result(3, 0x83, &params), 0, "the reply is known");
    wire.device.set_fault(Fault::Refused(0x90, 1));
    assert_eq!(wire.command(4, 0x90, &NOTHING, |_, _| ()), [], "a query has no result to refuse with");
    wire.device.set_fault(Fault::Refused(0xfd, 7));
    assert_eq!(
        wire.command(5, 0xfd, &ReservedFd { function: 1, ..ReservedFd::default() }, |frame, _| frame.data[1]),
        [7]
    );
}

#[test]
fn the_ledger_is_what_was_reported() {
    let mut wire = charger();
    wire.start(1, 1, 600);
    let running = *wire.device.ledger().last().unwrap();
    assert_eq!((running.port_no, running.state, running.end), (2, State::Running, None));
    assert_eq!(running.started_us, wire.now_us);
    wire.pass(602 * SECOND_US);
    let (msg_id, settlement) = wire.settlements()[0];
    let ended = *wire.device.ledger().last().unwrap();
    assert_eq!(ended.reference, ledger::Reference::Order(ORDER));
    assert_eq!((ended.duration_s, ended.energy_wh), (settlement.duration_s.into(), u32::from(settlement.energy) * 10));
    assert_eq!((ended.end_code, ended.state), (Some(settlement.stop_reason.0), State::Unacknowledged));
    assert_eq!(ended.ended_us, Some(running.started_us + 600 * SECOND_US));
    wire.acknowledge(0x03, msg_id);
    assert_eq!(wire.device.ledger().last().unwrap().state, State::Acknowledged);
}
