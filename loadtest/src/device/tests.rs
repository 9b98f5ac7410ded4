//! Devices in virtual time: a test plays the server and reads as a script.

use chargegate::protocol::ap3000::body::{Body as ApBody, ChargeControl, ModifyCharge, Settlement};
use chargegate::protocol::ap3000::codes::{ChargeResult, ModifyMode, PortState, RateMode, StopReason};
use chargegate::protocol::ap3000::encode::{self as ap_encode, Header};
use chargegate::protocol::ap3000::wire::Extra;
use chargegate::protocol::ap3000::{self, Item, Magics};
use chargegate::protocol::bkv::body::{Body as BkvBody, Level, SocketEntry, Start, StartReply};
use chargegate::protocol::bkv::command::{CONTROL, sub};
use chargegate::protocol::bkv::encode::{self as bkv_encode, PowerOrder};
use chargegate::protocol::bkv::{self, HoleStatus};
use chargegate::protocol::{Direction, Hex, Step};

use super::*;

const ORDER: [u8; 16] = *b"0123456789ABCDEF";
const OTHER_ORDER: [u8; 16] = *b"another order no";

/// A device, the time, and what it sent that was not looked at yet.
struct Wire<D> {
    device: D,
    now_us: u64,
    sent: Vec<u8>,
}

impl<D: Device> Wire<D> {
    fn connect(device: D) -> Self {
        let mut wire = Self { device, now_us: SECOND_US, sent: Vec::new() };
        wire.device.connected(wire.now_us);
        wire.device.poll_output(&mut wire.sent);
        wire
    }

    /// Lets time pass, handling every deadline at its time.
    fn pass(&mut self, us: u64) {
        let until_us = self.now_us + us;
        while let Some(due_us) = self.device.poll_timeout().filter(|due_us| *due_us <= until_us) {
            self.now_us = self.now_us.max(due_us);
            self.device.timeout(self.now_us);
            self.device.poll_output(&mut self.sent);
            assert!(
                self.device.poll_timeout().is_none_or(|next_us| next_us > self.now_us),
                "a deadline must be gone once it was handled"
            );
        }
        self.now_us = until_us;
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.device.receive(self.now_us, bytes);
        self.device.poll_output(&mut self.sent);
    }

    fn reconnect(&mut self) {
        self.device.disconnected(self.now_us);
        self.sent.clear();
        self.device.connected(self.now_us);
        self.device.poll_output(&mut self.sent);
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.device.poll_event()).collect()
    }
}

/// An item that a charger sent, as far as the tests look at it.
#[derive(Debug, PartialEq)]
enum Sent {
    Iccid,
    Link,
    Frame(u8, u16),
}

impl Wire<Ap3000Device> {
    /// Takes what was sent.
    fn items(&mut self) -> Vec<Sent> {
        self.each(|item| match item {
            Item::Iccid(_) => Sent::Iccid,
            Item::Link => Sent::Link,
            Item::Frame(frame) => Sent::Frame(frame.command, frame.msg_id),
        })
    }

    fn commands(&mut self) -> Vec<u8> {
        let items = self.items().into_iter();
        items.filter_map(|item| if let Sent::Frame(command, _) = item { Some(command) } else { None }).collect()
    }

    fn each<T>(&mut self, mut read: impl FnMut(Item<'_>) -> T) -> Vec<T> {
        let (sent, mut at, mut all) = (std::mem::take(&mut self.sent), 0, Vec::new());
        while let Step::Item { item, consumed } = ap3000::deframe(&sent[at..], &Magics::default()) {
            all.push(read(item));
            at += consumed;
        }
        assert_eq!(at, sent.len(), "everything sent is sound");
        all
    }

    /// The bodies of one command among what was sent.
    fn bodies<T>(&mut self, read: impl Fn(u16, ApBody<'_>) -> Option<T>) -> Vec<T> {
        let bodies = self.each(|item| {
            let Item::Frame(frame) = item else { return None };
            read(frame.msg_id, ap3000::decode_body(&frame, Direction::Up).expect("the body is sound"))
        });
        bodies.into_iter().flatten().collect()
    }

    fn settlements(&mut self) -> Vec<(u16, Settlement<'static>)> {
        self.bodies(|msg_id, body| match body {
            ApBody::Settlement(body) => Some((msg_id, Settlement { extra: Extra::NONE, ..body })),
            _ => None,
        })
    }

    fn header(&self, msg_id: u16) -> Header {
        Header { magic: *b"DNY", phy_id: self.device.phy_id(), msg_id }
    }

    fn acknowledge(&mut self, command: u8, msg_id: u16) {
        let mut frame = Vec::new();
        ap_encode::result_reply(&mut frame, &self.header(msg_id), command, 0);
        self.receive(&frame);
    }

    /// Sends 0x82 and gives the result.
    fn control(&mut self, msg_id: u16, control: &ChargeControl<'_>) -> (ChargeResult, Option<u8>, Option<u16>) {
        self.sent.clear();
        let mut frame = Vec::new();
        ap_encode::charge_control(&mut frame, &self.header(msg_id), control);
        self.receive(&frame);
        let replies = self.bodies(|id, body| match body {
            ApBody::ChargeControlReply(reply) => {
                assert_eq!((id, reply.order_no), (msg_id, Some(control.order_no)), "both are copied");
                Some((reply.result, reply.port, reply.pending_ports))
            }
            _ => None,
        });
        assert_eq!(replies.len(), 1);
        replies[0]
    }

    fn start(&mut self, msg_id: u16, port: u8, seconds: u16) -> ChargeResult {
        self.control(msg_id, &ChargeControl::start(RateMode::TIMED, port, seconds, ORDER)).0
    }
}

fn charger() -> Wire<Ap3000Device> {
    Wire::connect(Ap3000Device::new(1, 2, Behaviour::default()))
}

#[test]
fn ap3000_greets_and_repeats_what_is_not_answered() {
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
fn ap3000_says_link_after_30_s_without_traffic() {
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
fn ap3000_goes_offline_after_two_heartbeats_and_back() {
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
fn ap3000_refuses_what_cannot_start() {
    let mut wire = charger();
    wire.device.unplug(SECOND_US, 0);
    assert_eq!(wire.start(1, 0, 60), ChargeResult::NOT_PLUGGED);
    assert_eq!(wire.start(2, 2, 60), ChargeResult::NO_PORT);
    assert_eq!(wire.start(3, 1, 60), ChargeResult::SUCCESS);
    assert_eq!(wire.start(4, 1, 60), ChargeResult::SAME_STATE);
    assert_eq!(wire.device.port_state(1), Some(PortState::CHARGING));
}

#[test]
fn ap3000_chooses_the_only_waiting_port() {
    let any = ChargeControl::start(RateMode::TIMED, 0xff, 60, ORDER);
    let mut wire = charger();
    assert_eq!(wire.control(1, &any), (ChargeResult::SEVERAL_WAITING, Some(0xff), Some(0b11)));
    wire.device.unplug(SECOND_US, 0);
    assert_eq!(wire.control(2, &any), (ChargeResult::SUCCESS, Some(1), None));
    assert_eq!(wire.control(3, &any), (ChargeResult::NOT_PLUGGED, Some(0xff), None));
}

#[test]
fn ap3000_does_not_act_twice_on_a_message_id() {
    let mut wire = charger();
    let start = ChargeControl::start(RateMode::TIMED, 0, 60, ORDER);
    assert_eq!(wire.control(9, &start).0, ChargeResult::SUCCESS);
    assert_eq!(wire.control(9, &start).0, ChargeResult::SUCCESS, "the same reply");
    assert_eq!(wire.control(10, &start).0, ChargeResult::SAME_STATE, "a new message id is a new command");
    let started = wire.events().into_iter().filter(|event| matches!(event, Event::ChargeStarted(_))).count();
    assert_eq!(started, 1);
}

#[test]
fn ap3000_settles_2_s_after_the_end_and_every_30_min_until_acknowledged() {
    let mut wire = charger();
    wire.start(1, 1, 600);
    wire.pass(SECOND_US);
    let reports = wire.bodies(|_, body| match body {
        ApBody::ChargingReport(report) => Some((report.port, report.port_state.is_charging(), report.order_no.0)),
        _ => None,
    });
    assert_eq!(reports, [(1, true, ORDER)]);
    wire.pass(599 * SECOND_US);
    assert_eq!(wire.bodies(|_, body| matches!(body, ApBody::ChargingReport(_)).then_some(())).len(), 1);
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
fn ap3000_delivers_one_record_at_a_time() {
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
fn ap3000_stops_only_the_order_it_is_told() {
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
fn ap3000_ends_by_energy_full_and_unplugging() {
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
fn ap3000_charges_on_without_a_connection() {
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
fn ap3000_modifies_a_running_charge() {
    let mut wire = charger();
    let modify = |wire: &mut Wire<Ap3000Device>, msg_id, rate_mode, seconds| {
        wire.sent.clear();
        let modify = ModifyCharge { rate_mode, port: 0, duration_or_energy: seconds, extra: Extra::NONE };
        let mut frame = Vec::new();
        ap_encode::modify_charge(&mut frame, &wire.header(msg_id), &modify);
        wire.receive(&frame);
        let results = wire.bodies(|_, body| match body {
            ApBody::ResultReply(reply) => Some(reply.result),
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
fn ap3000_answers_a_status_query_by_20_and_21() {
    let mut wire = charger();
    wire.items();
    let mut query = Vec::new();
    ap_encode::query_status(&mut query, &wire.header(5));
    wire.receive(&query);
    assert_eq!(wire.commands(), [0x20, 0x21]);
}

#[test]
fn ap3000_takes_frames_split_anywhere() {
    let mut frame = Vec::new();
    let start = ChargeControl::start(RateMode::TIMED, 0, 60, ORDER);
    ap_encode::charge_control(&mut frame, &charger().header(1), &start);
    for cut in 0..=frame.len() {
        let mut wire = charger();
        wire.items();
        wire.receive(&frame[..cut]);
        wire.receive(&frame[cut..]);
        assert_eq!(wire.items(), [Sent::Frame(0x82, 1)], "cut at {cut}");
    }
}

impl Wire<BkvDevice> {
    /// Command, sub-command and status or result of what was sent.
    fn bodies<T>(&mut self, mut read: impl FnMut(&bkv::Frame<'_>, BkvBody<'_>) -> Option<T>) -> Vec<T> {
        let (sent, mut at, mut all) = (std::mem::take(&mut self.sent), 0, Vec::new());
        while let Step::Item { item, consumed } = bkv::deframe(&sent[at..]) {
            all.extend(read(&item, bkv::decode_body(&item).expect("the body is sound")));
            at += consumed;
        }
        assert_eq!(at, sent.len(), "everything sent is sound");
        all
    }

    fn kinds(&mut self) -> Vec<&'static str> {
        self.bodies(|_, body| {
            Some(match body {
                BkvBody::Heartbeat(_) => "heartbeat",
                BkvBody::Event(_) => "1013",
                BkvBody::Push(_) => "1017",
                BkvBody::StartReply(..) => "start reply",
                BkvBody::ChargeEnd(..) => "02",
                BkvBody::PowerEnd(..) => "18",
                BkvBody::FeeEnd(_) => "1004",
                BkvBody::SocketReply(..) => "1C",
                BkvBody::NetworkResult(..) => "network result",
                _ => "other",
            })
        })
    }

    /// Socket, status and business number of each hole in the pushes that were sent.
    fn pushed(&mut self) -> Vec<(u8, HoleStatus, u16)> {
        let mut holes = Vec::new();
        self.bodies(|_, body| -> Option<()> {
            let BkvBody::Push(packet) = body else { return None };
            for socket in packet.sockets() {
                let holed = socket.holes();
                holes.extend(
                    holed.map(|hole| (socket.socket.unwrap(), hole.status.unwrap(), hole.business_no.unwrap())),
                );
            }
            None
        });
        holes
    }

    fn start(&mut self, start: &Start) -> StartReply {
        self.sent.clear();
        let mut frame = Vec::new();
        bkv_encode::start(&mut frame, self.device.gateway_id(), 77, start);
        self.receive(&frame);
        let replies = self.bodies(|frame, body| match body {
            BkvBody::StartReply(_, reply) => {
                assert_eq!(frame.sequence, 77, "copied");
                Some(reply)
            }
            _ => None,
        });
        replies[0]
    }

    fn acknowledge(&mut self, socket: u8) {
        let mut frame = Vec::new();
        bkv_encode::end_ack(&mut frame, self.device.gateway_id(), sub::CARD_END, socket, true);
        self.receive(&frame);
    }
}

fn gateway(sockets: u8) -> Wire<BkvDevice> {
    let mut wire = Wire::connect(BkvDevice::new(3, sockets, Behaviour::default()));
    wire.pass(3 * SECOND_US);
    wire
}

#[test]
fn bkv_beats_2_s_after_the_connect_and_sends_1013() {
    let mut wire = Wire::connect(BkvDevice::new(3, 0, Behaviour::default()));
    wire.pass(2 * SECOND_US - 1);
    assert_eq!(wire.kinds(), <[&str; 0]>::default());
    wire.pass(1);
    assert_eq!(wire.kinds(), ["heartbeat"]);
    wire.pass(SECOND_US);
    assert_eq!(wire.kinds(), ["1013"]);
    let mut reply = Vec::new();
    bkv_encode::heartbeat_reply(&mut reply, wire.device.gateway_id(), 1_596_098_745);
    wire.receive(&reply);
    assert!(wire.events().contains(&Event::Registered));
    wire.pass(60 * SECOND_US);
    assert_eq!(wire.kinds(), ["heartbeat"]);
    wire.pass(120 * SECOND_US);
    assert_eq!(wire.kinds(), ["heartbeat", "heartbeat"], "every 60 s");
}

#[test]
fn bkv_charges_reports_and_settles() {
    let mut wire = gateway(0);
    wire.pushed();
    let reply = wire.start(&Start::time(0, 1, 10));
    assert_eq!(reply, StartReply { result: 1, socket: 0, hole: 1, business_no: 1 });
    wire.pass(SECOND_US / 2);
    assert_eq!(wire.pushed(), [(0, HoleStatus(0x80), 0), (0, HoleStatus(0x90), 1)]);
    wire.pass(300 * SECOND_US);
    assert_eq!(wire.pushed().len(), 2, "every 5 min");
    wire.pass(300 * SECOND_US);
    let ends = wire.bodies(|frame, body| {
        let report = body.end_report()?;
        assert_eq!(frame.sequence, 0);
        Some((report.hole, report.status, report.business_no, report.charged_min, report.energy_wh, report.power_dw))
    });
    let [(1, HoleStatus::QUOTA, 1, 10, energy_wh, Some(power_dw))] = ends[..] else { panic!("{ends:?}") };
    assert_eq!(energy_wh, power_dw / 60, "10 min at this power");
    wire.acknowledge(0);
    assert_eq!(wire.device.unsettled(), 0);
    wire.pass(SECOND_US - 1);
    wire.sent.clear();
    wire.pass(1);
    assert_eq!(wire.pushed(), [(0, HoleStatus(0x80), 0), (0, HoleStatus(0x80), 0)]);
    assert_eq!(wire.start(&Start::time(0, 1, 10)).business_no, 2);
}

#[test]
fn bkv_reports_three_times_then_reconnects() {
    let mut wire = gateway(0);
    wire.start(&Start::time(0, 0, 1));
    wire.pass(60 * SECOND_US);
    let is_end = |_: &bkv::Frame<'_>, body: BkvBody<'_>| body.end_report().map(|_| ());
    assert_eq!(wire.bodies(is_end).len(), 1);
    wire.pass(21 * SECOND_US);
    assert_eq!(wire.bodies(is_end).len(), 2);
    wire.pass(17 * SECOND_US - 1);
    assert!(!wire.device.poll_close());
    wire.pass(1);
    assert!(wire.device.poll_close());
    assert!(!wire.device.poll_close(), "once");
    wire.reconnect();
    wire.pass(2 * SECOND_US);
    assert_eq!(wire.kinds(), ["heartbeat", "02"], "at once after the first heartbeat");
    wire.acknowledge(0);
    assert_eq!(wire.device.unsettled(), 0);
}

#[test]
fn bkv_delivers_one_end_report_at_a_time() {
    let mut wire = gateway(0);
    for hole in [0, 1] {
        assert_eq!(wire.start(&Start::time(0, hole, 1)).result, 1);
    }
    wire.pass(60 * SECOND_US);
    let hole = |_: &bkv::Frame<'_>, body: BkvBody<'_>| body.end_report().map(|report| report.hole);
    assert_eq!(wire.bodies(hole), [0]);
    wire.acknowledge(9);
    assert_eq!(wire.device.unsettled(), 2, "another socket's acknowledgement");
    wire.acknowledge(0);
    assert_eq!(wire.bodies(hole), [1]);
    wire.acknowledge(0);
    assert_eq!(wire.device.unsettled(), 0);
    wire.acknowledge(0);
    let settled = wire.events().into_iter().filter(|event| *event == Event::Settled).count();
    assert_eq!(settled, 2);
}

#[test]
fn bkv_stops_and_refuses() {
    let mut wire = gateway(2);
    assert_eq!(wire.start(&Start::time(3, 0, 10)).result, 0, "no such socket");
    assert_eq!(wire.start(&Start::time(1, 2, 10)).result, 0, "no such hole");
    assert_eq!(wire.start(&Start::stop(1, 0)).result, 0, "nothing runs");
    assert_eq!(wire.start(&Start::energy(1, 0, 5000)).result, 1);
    assert_eq!(wire.start(&Start::time(1, 0, 10)).result, 0, "charges already");
    wire.pass(60 * SECOND_US);
    wire.sent.clear();
    let mut stop = Vec::new();
    bkv_encode::start(&mut stop, wire.device.gateway_id(), 5, &Start::stop(1, 0));
    wire.receive(&stop);
    assert_eq!(wire.kinds(), ["start reply", "02"]);
    assert_eq!(wire.device.hole_status(1, 0), Some(HoleStatus(0x80)));
}

#[test]
fn bkv_sells_power_tiers() {
    let mut wire = gateway(0);
    wire.sent.clear();
    let levels =
        [Level { power_dw: 500, price_cent: 10, minutes: 60 }, Level { power_dw: 6000, price_cent: 25, minutes: 60 }];
    let order = PowerOrder { socket: 0, hole: 0, on: true, paid_cent: 50, levels: &levels };
    let mut frame = Vec::new();
    bkv_encode::power_start(&mut frame, wire.device.gateway_id(), 6, CONTROL, &order);
    wire.receive(&frame);
    assert_eq!(wire.kinds(), ["start reply"]);
    wire.pass(7200 * SECOND_US);
    let ends = wire.bodies(|_, body| match body {
        BkvBody::PowerEnd(_, end) => Some((end.block.charged_min, end.usage.spent_cent, end.usage.level_count)),
        _ => None,
    });
    assert_eq!(ends, [(120, 50, 2)], "25 for an hour at any power above 50 W");
}

#[test]
fn bkv_sells_energy_with_fees() {
    use chargegate::protocol::bkv::clock::TimeOfDay;
    use chargegate::protocol::bkv::packet::FeeTier;
    let mut wire = gateway(0);
    wire.sent.clear();
    let end = TimeOfDay { hour: 23, minute: 59 };
    let tiers = [FeeTier { end, electricity_cent_per_kwh: 60, service_cent_per_kwh: 40 }];
    let order =
        bkv_encode::FeeOrder { socket: 0, hole: 0, on: true, paid_amount_cent: 20, service_fee_mode: 1, tiers: &tiers };
    let mut frame = Vec::new();
    bkv_encode::fee_start(&mut frame, wire.device.gateway_id(), 6, &order);
    wire.receive(&frame);
    wire.sent.clear();
    wire.pass(5 * 3600 * SECOND_US);
    let ends = wire.bodies(|_, body| {
        let report = body.end_report()?;
        Some((report.energy_wh, report.electricity_fee_cent, report.service_fee_cent))
    });
    assert_eq!(ends[0], (200, Some(12), Some(8)));
}

#[test]
fn bkv_takes_a_network_list() {
    let mut wire = gateway(0);
    wire.sent.clear();
    let entry = |socket| SocketEntry { socket, mac: Hex([0, 0, 0, 0, 0, socket]) };
    let mut frame = Vec::new();
    bkv_encode::socket_list(&mut frame, wire.device.gateway_id(), 1, 3, &[entry(1), entry(4)]);
    wire.receive(&frame);
    wire.pass(1);
    let holes: Vec<u8> = wire.pushed().into_iter().map(|(socket, ..)| socket).collect();
    assert_eq!(holes, [1, 1, 4, 4], "sockets are pushed at once");
    assert_eq!(wire.device.hole_status(0, 0), None, "no longer standalone");
    let mut frame = Vec::new();
    bkv_encode::socket_delete(&mut frame, wire.device.gateway_id(), 2, 1);
    bkv_encode::socket_query(&mut frame, wire.device.gateway_id(), 3, 1);
    bkv_encode::socket_query(&mut frame, wire.device.gateway_id(), 4, 4);
    wire.receive(&frame);
    assert_eq!(wire.kinds(), ["network result", "1C"], "a socket that is gone does not answer");
}

#[test]
fn a_tail_gives_the_same_items_however_the_stream_is_split() {
    // Items are a length byte and as many bytes.
    let stream = [2, 7, 7, 0, 3, 1, 2, 3, 1, 9];
    for first in 0..=stream.len() {
        for second in first..=stream.len() {
            let (mut tail, mut items) = (Tail::default(), Vec::new());
            for part in [&stream[..first], &stream[first..second], &stream[second..]] {
                tail.walk(part, |rest| {
                    let len = usize::from(rest[0]) + 1;
                    let item = rest.get(..len)?;
                    items.push(item.to_vec());
                    Some(len)
                });
            }
            assert_eq!(items, [&[2, 7, 7][..], &[0], &[3, 1, 2, 3], &[1, 9]], "cut at {first} and {second}");
            assert!(tail.0.is_empty());
        }
    }
}

#[test]
fn events_keep_the_newest() {
    let mut events = Events::default();
    for port in 0..1100 {
        events.push(Event::ChargeEnded(port));
    }
    assert_eq!(events.pop(), Some(Event::ChargeEnded(1100 - 1024)));
    assert_eq!(events.0.len(), EVENTS_MAX - 1);
}
