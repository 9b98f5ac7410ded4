//! Chargers: connection, charges, records.

use chargegate::protocol::ap3000::body::{Body, ChargeControl, ModifyCharge, Settlement};
use chargegate::protocol::ap3000::codes::{ChargeResult, ModifyMode, PortState, RateMode, StopReason};
use chargegate::protocol::ap3000::encode::{self, Header};
use chargegate::protocol::ap3000::wire::Extra;
use chargegate::protocol::ap3000::{Item, Magics, decode_body, deframe};
use chargegate::protocol::{Direction, Step};

use super::*;

pub(super) const ORDER: [u8; 16] = *b"0123456789ABCDEF";
pub(super) const OTHER_ORDER: [u8; 16] = *b"another order no";

/// An item that a charger sent, as far as the tests look at it.
#[derive(Debug, PartialEq)]
pub(super) enum Sent {
    Iccid,
    Link,
    Frame(u8, u16),
}

impl Wire<Ap3000Device> {
    /// Takes what was sent.
    pub(super) fn items(&mut self) -> Vec<Sent> {
        self.each(|item| match item {
            Item::Iccid(_) => Sent::Iccid,
            Item::Link => Sent::Link,
            Item::Frame(frame) => Sent::Frame(frame.command, frame.msg_id),
        })
    }

    pub(super) fn commands(&mut self) -> Vec<u8> {
        let items = self.items().into_iter();
        items.filter_map(|item| if let Sent::Frame(command, _) = item { Some(command) } else { None }).collect()
    }

    pub(super) fn each<T>(&mut self, mut read: impl FnMut(Item<'_>) -> T) -> Vec<T> {
        let (sent, mut at, mut all) = (std::mem::take(&mut self.sent), 0, Vec::new());
        while let Step::Item { item, consumed } = deframe(&sent[at..], &Magics::default()) {
            all.push(read(item));
            at += consumed;
        }
        assert_eq!(at, sent.len(), "everything sent is sound");
        all
    }

    /// The bodies of one command among what was sent.
    pub(super) fn bodies<T>(&mut self, read: impl Fn(u16, Body<'_>) -> Option<T>) -> Vec<T> {
        let bodies = self.each(|item| {
            let Item::Frame(frame) = item else { return None };
            read(frame.msg_id, decode_body(&frame, Direction::Up).expect("the body is sound"))
        });
        bodies.into_iter().flatten().collect()
    }

    pub(super) fn settlements(&mut self) -> Vec<(u16, Settlement<'static>)> {
        self.bodies(|msg_id, body| match body {
            Body::Settlement(body) => Some((msg_id, Settlement { extra: Extra::NONE, ..body })),
            _ => None,
        })
    }

    pub(super) fn header(&self, msg_id: u16) -> Header {
        Header { magic: self.device.magic(), phy_id: self.device.phy_id(), msg_id }
    }

    pub(super) fn acknowledge(&mut self, command: u8, msg_id: u16) {
        let mut frame = Vec::new();
        encode::result_reply(&mut frame, &self.header(msg_id), command, 0);
        self.receive(&frame);
    }

    /// Sends 0x82 and gives the result.
    pub(super) fn control(
        &mut self,
        msg_id: u16,
        control: &ChargeControl<'_>,
    ) -> (ChargeResult, Option<u8>, Option<u16>) {
        self.sent.clear();
        let mut frame = Vec::new();
        encode::charge_control(&mut frame, &self.header(msg_id), control);
        self.receive(&frame);
        let replies = self.bodies(|id, body| match body {
            Body::ChargeControlReply(reply) => {
                assert_eq!((id, reply.order_no), (msg_id, Some(control.order_no)), "both are copied");
                Some((reply.result, reply.port, reply.pending_ports))
            }
            _ => None,
        });
        assert_eq!(replies.len(), 1);
        replies[0]
    }

    pub(super) fn start(&mut self, msg_id: u16, port: u8, seconds: u16) -> ChargeResult {
        self.control(msg_id, &ChargeControl::start(RateMode::TIMED, port, seconds, ORDER)).0
    }
}

pub(super) fn charger() -> Wire<Ap3000Device> {
    Wire::connect(Ap3000Device::new(1, 2, Behaviour::default()))
}

#[test]
fn greets_and_repeats_what_is_not_answered() {
    let mut wire = charger();
    assert_eq!(
        wire.items(),
        [Sent::Iccid, Sent::Frame(0x20, 1), Sent::Frame(0x22, 2), Sent::Frame(0x21, 3)],
        "in one go"
    );
    wire.acknowledge(0x21, 3);
    wire.pass(59 * SECOND_US);
    assert!(!wire.commands().contains(&0x20));
    wire.pass(2 * SECOND_US);
    assert!(wire.items().contains(&Sent::Frame(0x20, 5)), "0x20 is repeated after the heartbeat interval");
    wire.acknowledge(0x20, 5);
    wire.pass(119 * SECOND_US);
    assert!(wire.commands().contains(&0x22), "0x22 is repeated after 3 min");
    wire.pass(600 * SECOND_US);
    assert!(!wire.commands().contains(&0x20), "0x20 was answered");
    assert_eq!(wire.events().into_iter().filter(|event| *event == Event::Registered).count(), 1);
}

#[test]
fn says_link_after_30_s_without_traffic() {
    let mut wire =
        Wire::connect(Ap3000Device::new(1, 2, Behaviour { heartbeat_us: 1000 * SECOND_US, ..Behaviour::default() }));
    wire.acknowledge(0x22, 2);
    wire.items();
    wire.pass(29 * SECOND_US);
    assert_eq!(wire.items(), []);
    wire.pass(SECOND_US);
    assert_eq!(wire.items(), [Sent::Link]);
    wire.pass(60 * SECOND_US);
    assert_eq!(wire.items(), [Sent::Link, Sent::Link]);
}

#[test]
fn goes_offline_after_two_heartbeats_and_back() {
    let mut wire = charger();
    wire.pass(16 * SECOND_US);
    assert!(!wire.device.is_offline());
    wire.pass(60 * SECOND_US);
    assert!(wire.device.is_offline());
    assert!(wire.events().contains(&Event::OfflineMode));
    wire.items();
    let msg_id = (0..60).find_map(|_| {
        wire.pass(SECOND_US);
        wire.items().into_iter().find_map(|item| if let Sent::Frame(0x21, id) = item { Some(id) } else { None })
    });
    wire.acknowledge(0x21, msg_id.expect("heartbeats go on"));
    assert!(!wire.device.is_offline());
}

#[test]
fn refuses_what_cannot_start() {
    let mut wire = charger();
    wire.device.unplug(SECOND_US, 0);
    assert_eq!(wire.start(1, 0, 60), ChargeResult::NOT_PLUGGED);
    assert_eq!(wire.start(2, 2, 60), ChargeResult::NO_PORT);
    assert_eq!(wire.start(3, 1, 60), ChargeResult::SUCCESS);
    assert_eq!(wire.start(4, 1, 60), ChargeResult::SAME_STATE);
    assert_eq!(wire.device.port_state(1), Some(PortState::CHARGING));
}

#[test]
fn chooses_the_only_waiting_port() {
    let any = ChargeControl::start(RateMode::TIMED, 0xff, 60, ORDER);
    let mut wire = charger();
    assert_eq!(wire.control(1, &any), (ChargeResult::SEVERAL_WAITING, Some(0xff), Some(0b11)));
    wire.device.unplug(SECOND_US, 0);
    assert_eq!(wire.control(2, &any), (ChargeResult::SUCCESS, Some(1), None));
    assert_eq!(wire.control(3, &any), (ChargeResult::NOT_PLUGGED, Some(0xff), None));
}

#[test]
fn does_not_act_twice_on_a_message_id() {
    let mut wire = charger();
    let start = ChargeControl::start(RateMode::TIMED, 0, 60, ORDER);
    assert_eq!(wire.control(9, &start).0, ChargeResult::SUCCESS);
    assert_eq!(wire.control(9, &start).0, ChargeResult::SUCCESS, "the same reply");
    assert_eq!(wire.control(10, &start).0, ChargeResult::SAME_STATE, "a new message id is a new command");
    let started = wire.events().into_iter().filter(|event| matches!(event, Event::ChargeStarted(_))).count();
    assert_eq!(started, 1);
}

#[test]
fn settles_2_s_after_the_end_and_every_30_min_until_acknowledged() {
    let mut wire = charger();
    wire.start(1, 1, 600);
    wire.pass(SECOND_US);
    let reports = wire.bodies(|_, body| match body {
        Body::ChargingReport(report) => Some((report.port, report.port_state.is_charging(), report.order_no.0)),
        _ => None,
    });
    assert_eq!(reports, [(1, true, ORDER)]);
    wire.pass(599 * SECOND_US);
    assert_eq!(wire.bodies(|_, body| matches!(body, Body::ChargingReport(_)).then_some(())).len(), 1);
    assert_eq!(wire.device.port_state(1), Some(PortState::PLUGGED));
    wire.pass(2 * SECOND_US - 1);
    assert_eq!(wire.settlements(), []);
    wire.pass(1);
    let [(first_id, settlement)] = wire.settlements()[..] else { panic!("one settlement") };
    assert_eq!((settlement.duration_s, settlement.stop_reason), (600, StopReason::DURATION));
    assert_eq!(settlement.energy, settlement.max_power / 600, "10 min at this power, in 10 Wh");
    assert_eq!((settlement.port, settlement.order_no.0), (1, ORDER));
    wire.pass(1800 * SECOND_US);
    let [(second_id, again)] = wire.settlements()[..] else { panic!("one settlement") };
    assert_eq!(again, settlement);
    wire.reconnect();
    wire.pass(2 * SECOND_US);
    let [(third_id, again)] = wire.settlements()[..] else { panic!("sent again after the reconnect") };
    assert_eq!(again, settlement);
    assert!(first_id != second_id && second_id != third_id);
    wire.acknowledge(0x03, third_id);
    assert_eq!(wire.device.unsettled(), 0);
    wire.pass(7200 * SECOND_US);
    assert_eq!(wire.settlements(), []);
}

#[test]
fn delivers_one_record_at_a_time() {
    let mut wire = charger();
    wire.start(1, 0, 60);
    assert_eq!(wire.control(2, &ChargeControl::start(RateMode::TIMED, 1, 60, OTHER_ORDER)).0, ChargeResult::SUCCESS);
    wire.pass(62 * SECOND_US);
    let [(msg_id, first)] = wire.settlements()[..] else { panic!("one of two") };
    assert_eq!(first.order_no.0, ORDER);
    wire.acknowledge(0x03, msg_id);
    wire.pass(60 * SECOND_US - 1);
    assert_eq!(wire.settlements(), []);
    wire.pass(1);
    let [(msg_id, second)] = wire.settlements()[..] else { panic!("the other, a minute later") };
    assert_eq!(second.order_no.0, OTHER_ORDER);
    wire.acknowledge(0x03, msg_id);
    assert_eq!(wire.device.unsettled(), 0);
}

#[test]
fn stops_only_the_order_it_is_told() {
    let mut wire = charger();
    wire.start(1, 0, 600);
    wire.pass(60 * SECOND_US);
    assert_eq!(wire.control(2, &ChargeControl::stop(0, OTHER_ORDER)).0, ChargeResult::SAME_STATE);
    assert_eq!(wire.device.port_state(0), Some(PortState::CHARGING));
    assert_eq!(wire.control(3, &ChargeControl::stop(0, ORDER)).0, ChargeResult::SUCCESS);
    assert_eq!(wire.control(4, &ChargeControl::stop(0, ORDER)).0, ChargeResult::SAME_STATE);
    wire.pass(2 * SECOND_US);
    let [(_, settlement)] = wire.settlements()[..] else { panic!("one settlement") };
    assert_eq!((settlement.duration_s, settlement.stop_reason), (60, StopReason::SERVER));
}

#[test]
fn ends_by_energy_full_and_unplugging() {
    let reason = |control: ChargeControl<'_>, unplug: bool| {
        let mut wire = charger();
        assert_eq!(wire.control(1, &control).0, ChargeResult::SUCCESS);
        if unplug {
            wire.device.unplug(wire.now_us, control.port);
        }
        wire.pass(36_010 * SECOND_US);
        let settlements = wire.settlements();
        (settlements[0].1.stop_reason, settlements[0].1.energy, wire.device.port_state(control.port).unwrap())
    };
    let (by_energy, energy, state) = reason(ChargeControl::start(RateMode::METERED, 0, 10, ORDER), false);
    assert_eq!((by_energy, energy, state), (StopReason::ENERGY, 10, PortState::PLUGGED));
    let (full, _, state) = reason(ChargeControl::start(RateMode::TIMED, 0, 0, ORDER), false);
    assert_eq!((full, state), (StopReason::FULL, PortState::FULL));
    let (longest, ..) =
        reason(ChargeControl { max_duration_s: Some(60), ..ChargeControl::start(RateMode::TIMED, 0, 0, ORDER) }, false);
    assert_eq!(longest, StopReason::DURATION_MAX);
    let (unplugged, _, state) = reason(ChargeControl::start(RateMode::TIMED, 0, 600, ORDER), true);
    assert_eq!((unplugged, state), (StopReason::UNPLUGGED, PortState::IDLE));
}

#[test]
fn charges_on_without_a_connection() {
    let mut wire = charger();
    wire.start(1, 0, 600);
    wire.device.disconnected(wire.now_us);
    wire.sent.clear();
    wire.pass(5000 * SECOND_US);
    assert!(wire.sent.is_empty(), "nothing is sent into no connection");
    assert_eq!(wire.device.unsettled(), 1);
    wire.device.connected(wire.now_us);
    wire.pass(2 * SECOND_US);
    assert_eq!(wire.settlements()[0].1.duration_s, 600, "the end was on time");
}

#[test]
fn modifies_a_running_charge() {
    let mut wire = charger();
    let modify = |wire: &mut Wire<Ap3000Device>, msg_id, rate_mode, seconds| {
        wire.sent.clear();
        let modify = ModifyCharge { rate_mode, port: 0, duration_or_energy: seconds, extra: Extra::NONE };
        let mut frame = Vec::new();
        encode::modify_charge(&mut frame, &wire.header(msg_id), &modify);
        wire.receive(&frame);
        let results = wire.bodies(|_, body| match body {
            Body::ResultReply(reply) => Some(reply.result),
            _ => None,
        });
        results[0]
    };
    assert_eq!(modify(&mut wire, 1, ModifyMode::TIMED, 60), 1);
    wire.start(2, 0, 600);
    assert_eq!(modify(&mut wire, 3, ModifyMode(9), 60), 3);
    assert_eq!(modify(&mut wire, 4, ModifyMode::TIMED, 120), 0);
    wire.pass(122 * SECOND_US);
    assert_eq!(wire.settlements()[0].1.duration_s, 120);
}

#[test]
fn answers_a_status_query_by_20_and_21() {
    let mut wire = charger();
    wire.items();
    let mut query = Vec::new();
    encode::query_status(&mut query, &wire.header(5));
    wire.receive(&query);
    assert_eq!(wire.commands(), [0x20, 0x21]);
}

#[test]
fn takes_frames_split_anywhere() {
    let mut frame = Vec::new();
    let start = ChargeControl::start(RateMode::TIMED, 0, 60, ORDER);
    encode::charge_control(&mut frame, &charger().header(1), &start);
    for cut in 0..=frame.len() {
        let mut wire = charger();
        wire.items();
        wire.receive(&frame[..cut]);
        wire.receive(&frame[cut..]);
        assert_eq!(wire.items(), [Sent::Frame(0x82, 1)], "cut at {cut}");
    }
}
