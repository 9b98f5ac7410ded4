//! Hosts with chargers behind them.

use chargegate::protocol::Direction;
use chargegate::protocol::Step;
use chargegate::protocol::ap3000::body::{
    Body, ChargeControl, Empty, FskParams, HostOta, HostStatus, OtaPacket, ServerAddress,
};
use chargegate::protocol::ap3000::codes::{PortState, RateMode, UpdateResult};
use chargegate::protocol::ap3000::encode::{self, Header};
use chargegate::protocol::ap3000::update::{CHUNK, CHUNK_LEGACY, Image, Verification};
use chargegate::protocol::ap3000::wire::{Extra, Layout, Raw, Text, U32sLe};
use chargegate::protocol::ap3000::{Item, Magics, PhyId, decode_body, deframe};

use super::ap3000::ORDER;
use super::*;
use crate::device::ap3000::{Card, Fault, HostDevice, HostModel, Model};

impl Wire<HostDevice> {
    /// Id, command, message id and what `read` makes of the body of everything that was sent; greetings do not count.
    fn frames<T>(&mut self, read: impl Fn(Body<'_>) -> Option<T>) -> Vec<(PhyId, u8, u16, Option<T>)> {
        let (sent, mut at, mut all) = (std::mem::take(&mut self.sent), 0, Vec::new());
        while let Step::Item { item, consumed } = deframe(&sent[at..], &Magics::default()) {
            if let Item::Frame(frame) = item {
                let body = decode_body(&frame, Direction::Up).expect("the body is sound");
                all.push((frame.phy_id, frame.command, frame.msg_id, read(body)));
            }
            at += consumed;
        }
        assert_eq!(at, sent.len(), "everything sent is sound");
        all
    }

    fn commands(&mut self) -> Vec<(PhyId, u8)> {
        self.frames(|_| None::<()>).into_iter().map(|(phy_id, command, ..)| (phy_id, command)).collect()
    }

    fn bodies<T>(&mut self, read: impl Fn(Body<'_>) -> Option<T>) -> Vec<T> {
        self.frames(read).into_iter().filter_map(|(.., body)| body).collect()
    }

    fn down<'a>(&mut self, phy_id: PhyId, msg_id: u16, command: u8, body: &impl Layout<'a>) {
        self.sent.clear();
        let mut frame = Vec::new();
        encode::body(&mut frame, &Header { magic: *b"DNY", phy_id, msg_id }, command, body).unwrap();
        self.receive(&frame);
    }

    /// The one-byte result of a command for the host itself.
    fn result<'a>(&mut self, msg_id: u16, command: u8, body: &impl Layout<'a>) -> u8 {
        let host = self.device.phy_id();
        self.down(host, msg_id, command, body);
        let results = self.frames(|body| match body {
            Body::ResultReply(reply) => Some(reply.result),
            _ => None,
        });
        let [(from, code, id, Some(result))] = results[..] else { panic!("{results:?}") };
        assert_eq!((from, code, id), (host, command, msg_id));
        result
    }

    fn packet(&mut self, command: u8, packet: OtaPacket<'_>) -> Option<(UpdateResult, u16)> {
        let host = self.device.phy_id();
        match command {
            0xfa => self.down(host, 100 + packet.packet_no, command, &HostOta::Packet(packet)),
            _ => self.down(host, 100 + packet.packet_no, command, &packet),
        }
        self.acks().first().copied()
    }

    fn acks(&mut self) -> Vec<(UpdateResult, u16)> {
        self.bodies(|body| match body {
            Body::OtaReply(reply) => Some((reply.result, reply.packet_no)),
            _ => None,
        })
    }

    fn ids(&self) -> Vec<PhyId> {
        self.device.sub_devices().map(Ap3000Device::phy_id).collect()
    }
}

const NOTHING: Empty<'static> = Empty { extra: Extra::NONE };

fn host(sub_devices: u8) -> Wire<HostDevice> {
    Wire::connect(HostDevice::new(100, sub_devices, 2, Behaviour::default()))
}

#[test]
fn one_connection_carries_all() {
    let mut wire = host(50);
    let (own, ids) = (wire.device.phy_id(), wire.ids());
    assert_eq!(own.recognition_code(), 0x09);
    assert_eq!(wire.sent[..4], *b"8986", "the host greets");
    let commands = wire.commands();
    assert_eq!(commands[..4], [(own, 0x12), (own, 0x11), (own, 0x17), (own, 0x35)]);
    for id in &ids {
        let of_this: Vec<u8> = commands.iter().filter(|(from, _)| from == id).map(|(_, command)| *command).collect();
        assert_eq!(of_this, [0x20, 0x22, 0x21]);
    }
    assert_eq!(commands.len(), 4 + 3 * 50);
    assert!(ids.iter().all(|id| *id != own));
    assert_eq!(HostDevice::new(0, 99, 1, Behaviour::default()).sub_devices().count(), 50);
}

#[test]
fn frames_go_by_their_id() {
    let mut wire = host(2);
    let ids = wire.ids();
    let mut registered = Vec::new();
    encode::result_reply(&mut registered, &Header { magic: *b"DNY", phy_id: ids[0], msg_id: 1 }, 0x20, 0);
    wire.receive(&registered);
    let events = wire.events();
    assert!(events.iter().any(|event| matches!(event, Event::Answered(Request::Registration, _))));
    assert!(!events.contains(&Event::Registered), "the connection registers once, with the host");
    wire.commands();
    wire.down(ids[1], 5, 0x82, &ChargeControl::start(RateMode::TIMED, 1, 600, ORDER));
    assert_eq!(wire.commands(), [(ids[1], 0x82)]);
    let states: Vec<_> = wire.device.sub_devices().map(|device| device.port_state(1)).collect();
    assert_eq!(states, [Some(PortState::PLUGGED), Some(PortState::CHARGING)]);
    wire.pass(602 * SECOND_US);
    let settled = wire.frames(|body| match body {
        Body::Settlement(settlement) => Some(settlement.order_no.0),
        _ => None,
    });
    let settled: Vec<_> = settled.into_iter().filter_map(|(from, .., order)| Some((from, order?))).collect();
    assert_eq!(settled, [(ids[1], ORDER)]);
    let now_us = wire.now_us;
    assert!(wire.device.sub_device(0).unwrap().swipe(now_us, &Card::new([1, 2, 3, 4]), 0));
    wire.device.poll_output(&mut wire.sent);
    assert_eq!(wire.commands(), [(ids[0], 0x02)]);
    wire.events();
    wire.down(PhyId([9, 9, 9, 4]), 6, 0x81, &NOTHING);
    assert!(wire.events().contains(&Event::Malformed), "that is nobody's");
}

#[test]
fn a_charger_restarts_alone() {
    let mut wire = host(2);
    let ids = wire.ids();
    wire.commands();
    wire.down(ids[0], 5, 0x87, &NOTHING);
    assert_eq!(wire.commands(), [(ids[0], 0x87)], "its last words");
    assert!(!wire.device.poll_close(), "the connection stays");
    wire.down(ids[0], 6, 0x81, &NOTHING);
    assert_eq!(wire.commands(), []);
    wire.down(ids[1], 6, 0x81, &NOTHING);
    assert_eq!(wire.commands(), [(ids[1], 0x20), (ids[1], 0x21)]);
    wire.pass(4 * SECOND_US);
    assert_eq!(wire.commands(), [(ids[0], 0x20), (ids[0], 0x22), (ids[0], 0x21)]);
}

#[test]
fn a_host_asks_for_time_and_radio_and_reports() {
    let mut wire = host(1);
    let own = wire.device.phy_id();
    let mut time = Vec::new();
    encode::time_reply(&mut time, &Header { magic: *b"DNY", phy_id: own, msg_id: 1 }, 0x12, 1_604_934_878);
    wire.receive(&time);
    assert_eq!(wire.device.unix_s(wire.now_us + 2 * SECOND_US), 1_604_934_880);
    assert!(wire.events().contains(&Event::Registered));
    wire.sent.clear();
    wire.pass(30 * SECOND_US);
    let asked = wire.frames(|body| match body {
        Body::FskRequest(request) => Some(request.frequency),
        _ => None,
    });
    let (_, _, msg_id, _) = *asked.iter().find(|(_, command, ..)| *command == 0x3b).unwrap();
    let ids: Vec<u8> = wire.ids().iter().flat_map(|id| id.0).collect();
    let params = FskParams {
        frequency: 433,
        reserved: Raw([0; 3]),
        sub_count: 1,
        sub_ids: U32sLe::new(&ids),
        extra: Extra::NONE,
    };
    assert_eq!(wire.result(msg_id, 0x3a, &params), 0);
    assert_eq!((wire.device.frequency(), wire.device.radio_sub_ids()), (433, &wire.ids()[..]));
    assert!(wire.events().iter().any(|event| matches!(event, Event::Answered(Request::HostRadio, _))));
    wire.sent.clear();
    wire.pass(1800 * SECOND_US);
    let commands: Vec<u8> = wire.commands().into_iter().filter(|(from, _)| *from == own).map(|(_, cmd)| cmd).collect();
    assert!(commands.contains(&0x11) && commands.contains(&0x17) && !commands.contains(&0x12));
    wire.device.set_status(wire.now_us, HostStatus { smoke_alarm: 1, ..HostStatus::default() });
    wire.device.poll_output(&mut wire.sent);
    let smoke = wire.bodies(|body| match body {
        Body::HostStatus(status) => Some(status.smoke_alarm),
        _ => None,
    });
    assert_eq!(smoke, [1]);
}

#[test]
fn host_commands() {
    let mut wire = host(1);
    let address = ServerAddress {
        server_port: 7054,
        module_type: 3,
        socket_b: 1,
        server_addr: Text::new(b"gate.example.org").unwrap(),
        extra: Extra::NONE,
    };
    assert_eq!(wire.result(1, 0x34, &address), 0);
    assert_eq!(wire.device.server(), Some(("gate.example.org", 7054)));
    assert_eq!(wire.result(2, 0x33, &NOTHING), 0);
    wire.device.set_fault(Fault::Refused(0x31, 1));
    assert_eq!(wire.result(3, 0x31, &NOTHING), 1);
    assert!(!wire.device.poll_close());
    for command in [0x32, 0x31] {
        assert_eq!(wire.result(4, command, &NOTHING), 0);
        assert!(wire.device.poll_close());
        wire.reconnect();
    }
    let own = wire.device.phy_id();
    let first = wire.frames(|_| None::<()>)[0];
    assert_eq!((first.0, first.2), (own, 1), "0x31 begins numbering anew");
    wire.down(own, 9, 0x82, &ChargeControl::stop(0, ORDER));
    assert_eq!(wire.commands(), [], "a host charges nothing");
}

#[test]
fn a_host_takes_its_firmware() {
    let firmware: Vec<u8> = (0..500u16).map(|at| at.to_le_bytes()[0]).collect();
    let mut wire = host(1);
    let own = wire.device.phy_id();
    wire.device.set_fault(Fault::UpdatePowerCut(2));
    wire.device.set_fault(Fault::Refused(0xfa, 1));
    wire.down(own, 1, 0xfa, &HostOta::Trigger);
    assert_eq!(wire.acks(), [(UpdateResult::RESEND, 0)], "the server repeats the trigger");
    wire.down(own, 2, 0xfa, &HostOta::Trigger);
    assert_eq!(wire.acks(), [(UpdateResult::OK, 0)]);
    let image = Image::new(&firmware, CHUNK, None).unwrap();
    let mut buffer = [0; CHUNK_LEGACY];
    assert_eq!(wire.packet(0xfa, image.packet(1, &mut buffer).unwrap()), Some((UpdateResult::OK, 1)));
    assert_eq!(wire.packet(0xfa, image.packet(2, &mut buffer).unwrap()), None);
    assert!(wire.device.poll_close());
    wire.reconnect();
    wire.sent.clear();
    wire.pass(SECOND_US);
    assert_eq!(wire.acks(), [(UpdateResult::OK, 0)], "it asks to begin anew");
    for packet_no in 1..=3 {
        let packet = image.packet(packet_no, &mut buffer).unwrap();
        assert_eq!(wire.packet(0xfa, packet), Some((UpdateResult::OK, packet_no)));
    }
    wire.pass(2 * SECOND_US);
    assert!(wire.device.poll_close());
    assert_eq!((wire.device.fw_version(), &wire.device.firmware()[..500]), (502, &firmware[..]));
}

#[test]
fn a_legacy_host_asks_by_15() {
    let firmware = vec![7; 300];
    let device = HostDevice::with_model(1, 1, 2, Behaviour::default(), HostModel::legacy(), Model::default());
    let mut wire = Wire::connect(device);
    let image = Image::new(&firmware, CHUNK_LEGACY, None).unwrap();
    let mut buffer = [0; CHUNK_LEGACY];
    wire.device.set_fault(Fault::UpdatePowerCut(2));
    assert_eq!(wire.packet(0xf9, image.packet(1, &mut buffer).unwrap()), Some((UpdateResult::OK, 1)));
    assert_eq!(wire.packet(0xf9, image.packet(2, &mut buffer).unwrap()), None);
    wire.reconnect();
    wire.sent.clear();
    wire.pass(SECOND_US);
    let own = wire.device.phy_id();
    let asked = wire.frames(|_| None::<()>).into_iter().find(|(from, ..)| *from == own).unwrap();
    assert_eq!(asked.1, 0x15);
    let mut reply = Vec::new();
    encode::result_reply(&mut reply, &Header { magic: *b"DNY", phy_id: own, msg_id: asked.2 }, 0x15, 0);
    wire.receive(&reply);
    assert!(wire.events().iter().any(|event| matches!(event, Event::Answered(Request::HostUpdate, _))));
    for packet_no in 1..=2 {
        let packet = image.packet(packet_no, &mut buffer).unwrap();
        assert_eq!(wire.packet(0xf9, packet), Some((UpdateResult::OK, packet_no)));
    }
    wire.pass(2 * SECOND_US);
    assert_eq!(wire.device.fw_version(), 204);
}

#[test]
fn an_image_for_the_chargers_is_distributed() {
    let firmware = vec![3; 200];
    let mut wire = host(2);
    let bare = Image::new(&firmware, CHUNK, None).unwrap();
    let mut buffer = [0; CHUNK_LEGACY];
    let refused = wire.packet(0xe2, bare.packet(1, &mut buffer).unwrap());
    assert_eq!(refused, Some((UpdateResult::NO_CHECK_PACKET, 1)));
    let image = Image::new(&firmware, CHUNK, Some(Verification::of(&firmware, 0x21, 321))).unwrap();
    wire.reconnect();
    wire.pass(0);
    for packet_no in 1..=2 {
        let packet = image.packet(packet_no, &mut buffer).unwrap();
        wire.down(wire.device.phy_id(), 200 + packet_no, 0xe2, &packet);
        assert_eq!(wire.acks(), [(UpdateResult::OK, packet_no)]);
    }
    assert_eq!(wire.device.sub_firmware(), firmware);
    wire.pass(7 * SECOND_US);
    let versions = wire.bodies(|body| match body {
        Body::Registration(registration) => Some(registration.fw_version),
        _ => None,
    });
    assert_eq!(versions, [321, 321]);
    assert!(wire.device.report_versions(wire.now_us));
    wire.device.poll_output(&mut wire.sent);
    let types = wire.bodies(|body| match body {
        Body::SubDeviceVersions(versions) => versions.types.get(0),
        _ => None,
    });
    assert_eq!((types[0].device_type, types[0].min_version), (0x21, 321));
}
