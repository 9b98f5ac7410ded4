//! Gateways: connection, charges, end reports, network list.

use chargegate::protocol::bkv::body::{Body, Level, SocketEntry, Start, StartReply};
use chargegate::protocol::bkv::command::{CONTROL, sub};
use chargegate::protocol::bkv::encode::{self, PowerOrder};
use chargegate::protocol::bkv::{Frame, HoleStatus, decode_body, deframe};
use chargegate::protocol::{Hex, Step};

use super::*;

impl Wire<BkvDevice> {
    /// Command, sub-command and status or result of what was sent.
    pub(super) fn bodies<T>(&mut self, mut read: impl FnMut(&Frame<'_>, Body<'_>) -> Option<T>) -> Vec<T> {
        let (sent, mut at, mut all) = (std::mem::take(&mut self.sent), 0, Vec::new());
        while let Step::Item { item, consumed } = deframe(&sent[at..]) {
            all.extend(read(&item, decode_body(&item).expect("the body is sound")));
            at += consumed;
        }
        assert_eq!(at, sent.len(), "everything sent is sound");
        all
    }

    pub(super) fn kinds(&mut self) -> Vec<&'static str> {
        self.bodies(|_, body| {
            Some(match body {
                Body::Heartbeat(_) => "heartbeat",
                Body::Event(_) => "1013",
                Body::Push(_) => "1017",
                Body::StartReply(..) => "start reply",
                Body::ChargeEnd(..) => "02",
                Body::PowerEnd(..) => "18",
                Body::FeeEnd(_) => "1004",
                Body::SocketReply(..) => "1C",
                Body::NetworkResult(..) => "network result",
                _ => "other",
            })
        })
    }

    /// Socket, status and business number of each hole in the pushes that were sent.
    pub(super) fn pushed(&mut self) -> Vec<(u8, HoleStatus, u16)> {
        let mut holes = Vec::new();
        self.bodies(|_, body| -> Option<()> {
            let Body::Push(packet) = body else { return None };
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

    pub(super) fn start(&mut self, start: &Start) -> StartReply {
        self.sent.clear();
        let mut frame = Vec::new();
        encode::start(&mut frame, self.device.gateway_id(), 77, start);
        self.receive(&frame);
        let replies = self.bodies(|frame, body| match body {
            Body::StartReply(_, reply) => {
                assert_eq!(frame.sequence, 77, "copied");
                Some(reply)
            }
            _ => None,
        });
        replies[0]
    }

    pub(super) fn acknowledge(&mut self, socket: u8) {
        let mut frame = Vec::new();
        encode::end_ack(&mut frame, self.device.gateway_id(), sub::CARD_END, socket, true);
        self.receive(&frame);
    }
}

pub(super) fn gateway(sockets: u8) -> Wire<BkvDevice> {
    let mut wire = Wire::connect(BkvDevice::new(3, sockets, Behaviour::default()));
    wire.pass(3 * SECOND_US);
    wire
}

#[test]
fn beats_2_s_after_the_connect_and_sends_1013() {
    let mut wire = Wire::connect(BkvDevice::new(3, 0, Behaviour::default()));
    wire.pass(2 * SECOND_US - 1);
    assert_eq!(wire.kinds(), <[&str; 0]>::default());
    wire.pass(1);
    assert_eq!(wire.kinds(), ["heartbeat"]);
    wire.pass(SECOND_US);
    assert_eq!(wire.kinds(), ["1013"]);
    let mut reply = Vec::new();
    encode::heartbeat_reply(&mut reply, wire.device.gateway_id(), 1_596_098_745);
    wire.receive(&reply);
    assert!(wire.events().contains(&Event::Registered));
    wire.pass(60 * SECOND_US);
    assert_eq!(wire.kinds(), ["heartbeat"]);
    wire.pass(120 * SECOND_US);
    assert_eq!(wire.kinds(), ["heartbeat", "heartbeat"], "every 60 s");
}

#[test]
fn charges_reports_and_settles() {
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
fn reports_three_times_then_reconnects() {
    let mut wire = gateway(0);
    wire.start(&Start::time(0, 0, 1));
    wire.pass(60 * SECOND_US);
    let is_end = |_: &Frame<'_>, body: Body<'_>| body.end_report().map(|_| ());
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
fn delivers_one_end_report_at_a_time() {
    let mut wire = gateway(0);
    for hole in [0, 1] {
        assert_eq!(wire.start(&Start::time(0, hole, 1)).result, 1);
    }
    wire.pass(60 * SECOND_US);
    let hole = |_: &Frame<'_>, body: Body<'_>| body.end_report().map(|report| report.hole);
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
fn stops_and_refuses() {
    let mut wire = gateway(2);
    assert_eq!(wire.start(&Start::time(3, 0, 10)).result, 0, "no such socket");
    assert_eq!(wire.start(&Start::time(1, 2, 10)).result, 0, "no such hole");
    assert_eq!(wire.start(&Start::stop(1, 0)).result, 0, "nothing runs");
    assert_eq!(wire.start(&Start::energy(1, 0, 5000)).result, 1);
    assert_eq!(wire.start(&Start::time(1, 0, 10)).result, 0, "charges already");
    wire.pass(60 * SECOND_US);
    wire.sent.clear();
    let mut stop = Vec::new();
    encode::start(&mut stop, wire.device.gateway_id(), 5, &Start::stop(1, 0));
    wire.receive(&stop);
    assert_eq!(wire.kinds(), ["start reply", "02"]);
    assert_eq!(wire.device.hole_status(1, 0), Some(HoleStatus(0x80)));
}

#[test]
fn sells_power_tiers() {
    let mut wire = gateway(0);
    wire.sent.clear();
    let levels =
        [Level { power_dw: 500, price_cent: 10, minutes: 60 }, Level { power_dw: 6000, price_cent: 25, minutes: 60 }];
    let order = PowerOrder { socket: 0, hole: 0, on: true, paid_cent: 50, levels: &levels };
    let mut frame = Vec::new();
    encode::power_start(&mut frame, wire.device.gateway_id(), 6, CONTROL, &order);
    wire.receive(&frame);
    assert_eq!(wire.kinds(), ["start reply"]);
    wire.pass(7200 * SECOND_US);
    let ends = wire.bodies(|_, body| match body {
        Body::PowerEnd(_, end) => Some((end.block.charged_min, end.usage.spent_cent, end.usage.level_count)),
        _ => None,
    });
    assert_eq!(ends, [(120, 50, 2)], "25 for an hour at any power above 50 W");
}

#[test]
fn sells_energy_with_fees() {
    use chargegate::protocol::bkv::clock::TimeOfDay;
    use chargegate::protocol::bkv::packet::FeeTier;
    let mut wire = gateway(0);
    wire.sent.clear();
    let end = TimeOfDay { hour: 23, minute: 59 };
    let tiers = [FeeTier { end, electricity_cent_per_kwh: 60, service_cent_per_kwh: 40 }];
    let order =
        encode::FeeOrder { socket: 0, hole: 0, on: true, paid_amount_cent: 20, service_fee_mode: 1, tiers: &tiers };
    let mut frame = Vec::new();
    encode::fee_start(&mut frame, wire.device.gateway_id(), 6, &order);
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
fn takes_a_network_list() {
    let mut wire = gateway(0);
    wire.sent.clear();
    let entry = |socket| SocketEntry { socket, mac: Hex([0, 0, 0, 0, 0, socket]) };
    let mut frame = Vec::new();
    encode::socket_list(&mut frame, wire.device.gateway_id(), 1, 3, &[entry(1), entry(4)]);
    wire.receive(&frame);
    wire.pass(1);
    let holes: Vec<u8> = wire.pushed().into_iter().map(|(socket, ..)| socket).collect();
    assert_eq!(holes, [1, 1, 4, 4], "sockets are pushed at once");
    assert_eq!(wire.device.hole_status(0, 0), None, "no longer standalone");
    let mut frame = Vec::new();
    encode::socket_delete(&mut frame, wire.device.gateway_id(), 2, 1);
    encode::socket_query(&mut frame, wire.device.gateway_id(), 3, 1);
    encode::socket_query(&mut frame, wire.device.gateway_id(), 4, 4);
    wire.receive(&frame);
    assert_eq!(wire.kinds(), ["network result", "1C"], "a socket that is gone does not answer");
}
