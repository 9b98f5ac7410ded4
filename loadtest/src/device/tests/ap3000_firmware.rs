//! Firmware, packet by packet.

use chargegate::protocol::ap3000::body::{Body, Empty, OtaPacket};
use chargegate::protocol::ap3000::codes::UpdateResult;
use chargegate::protocol::ap3000::update::{CHUNK, CHUNK_LEGACY, Image, Verification};
use chargegate::protocol::ap3000::wire::{Extra, Rest};

use super::*;
use crate::device::ap3000::{Fault, Model};

const VERSION: u16 = 309;

fn firmware(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

fn charger(model: Model) -> Wire<Ap3000Device> {
    Wire::connect(Ap3000Device::with_model(1, 2, Behaviour::default(), model))
}

/// A server that sends an image: what it was answered.
struct Sender<'a> {
    command: u8,
    image: Image<'a>,
    msg_id: u16,
}

impl<'a> Sender<'a> {
    fn new(command: u8, firmware: &'a [u8], verification: Option<Verification>) -> Self {
        let chunk = if command == 0xf8 { CHUNK_LEGACY } else { CHUNK };
        Self { command, image: Image::new(firmware, chunk, verification).unwrap(), msg_id: 0 }
    }

    /// Sends a packet under a new message id; the answer, if there is one.
    fn send(&mut self, wire: &mut Wire<Ap3000Device>, packet_no: u16) -> Option<(UpdateResult, u16)> {
        let mut buffer = [0; CHUNK_LEGACY];
        let packet = self.image.packet(packet_no, &mut buffer).unwrap();
        self.send_this(wire, &packet)
    }

    fn send_this(&mut self, wire: &mut Wire<Ap3000Device>, packet: &OtaPacket<'_>) -> Option<(UpdateResult, u16)> {
        self.msg_id += 1;
        let answers = wire.command(self.msg_id, self.command, packet, |_, body| match body {
            Body::OtaReply(reply) => (reply.result, reply.packet_no),
            body => panic!("{body:?}"),
        });
        answers.first().copied()
    }

    fn send_all(&mut self, wire: &mut Wire<Ap3000Device>) {
        for packet_no in 1..=self.image.total_packets() {
            assert_eq!(self.send(wire, packet_no), Some((UpdateResult::OK, packet_no)));
        }
    }
}

/// Lets the device restart, and reads versions from its registration.
fn restarted(wire: &mut Wire<Ap3000Device>) -> (u16, u16) {
    wire.pass(2 * SECOND_US);
    assert!(wire.device.poll_close(), "it restarts");
    wire.reconnect();
    versions(wire)
}

fn versions(wire: &mut Wire<Ap3000Device>) -> (u16, u16) {
    let versions = wire.bodies(|_, body| match body {
        Body::Registration(registration) => Some((registration.fw_version, registration.power_board_version.unwrap())),
        _ => None,
    });
    versions[0]
}

#[test]
fn an_image_is_taken_checked_and_installed() {
    let (firmware, mut wire) = (firmware(450), charger(Model::default()));
    let mut sender = Sender::new(0xe0, &firmware, Some(Verification::of(&firmware, 0x21, VERSION)));
    assert_eq!(sender.image.total_packets(), 4);
    sender.send_all(&mut wire);
    assert_eq!(wire.device.fw_version(), 206);
    assert_eq!(sender.send(&mut wire, 4), Some((UpdateResult::OK, 4)), "the last acknowledgement may have got lost");
    assert_eq!(restarted(&mut wire), (VERSION, 0));
    assert_eq!(wire.device.firmware()[..450], firmware);
    assert_eq!(wire.device.firmware().len(), 600, "with padding");
    assert_eq!(sender.send(&mut wire, 4), Some((UpdateResult::OK, 4)), "after the restart too");
    wire.pass(10 * SECOND_US);
    assert!(!wire.device.poll_close());
}

#[test]
fn a_wrong_image_is_refused() {
    let firmware = firmware(200);
    let wrong = [
        (Some(Verification { byte_sum: 1, ..Verification::of(&firmware, 0x21, VERSION) }), UpdateResult::BAD_SUM),
        (Some(Verification::of(&firmware, 0x22, VERSION)), UpdateResult::WRONG_DEVICE_TYPE),
        (None, UpdateResult::NO_CHECK_PACKET),
    ];
    for (verification, result) in wrong {
        let mut wire = charger(Model { wants_check_packet: true, ..Model::default() });
        let mut sender = Sender::new(0xe0, &firmware, verification);
        let last = sender.image.total_packets();
        for packet_no in 1..last {
            assert_eq!(sender.send(&mut wire, packet_no), Some((UpdateResult::OK, packet_no)));
        }
        assert_eq!(sender.send(&mut wire, last), Some((result, last)));
        wire.pass(10 * SECOND_US);
        assert!(!wire.device.poll_close() && wire.device.firmware().is_empty());
    }
}

#[test]
fn packets_out_of_order_are_asked_for() {
    let (firmware, mut wire) = (firmware(1000), charger(Model::default()));
    let mut sender = Sender::new(0xe0, &firmware, None);
    assert_eq!(sender.send(&mut wire, 3), Some((UpdateResult::RESEND, 1)), "the beginning is missing");
    assert_eq!(sender.send(&mut wire, 1), Some((UpdateResult::OK, 1)));
    assert_eq!(sender.send(&mut wire, 2), Some((UpdateResult::OK, 2)));
    assert_eq!(sender.send(&mut wire, 2), Some((UpdateResult::OK, 2)), "again, not twice");
    assert_eq!(sender.send(&mut wire, 4), Some((UpdateResult::RESEND, 3)));
    let short = OtaPacket { total_packets: 5, packet_no: 3, chunk: Rest(&firmware[..199]), extra: Extra::NONE };
    assert_eq!(sender.send_this(&mut wire, &short), Some((UpdateResult::RESEND, 3)), "only the last may be short");
    wire.reconnect();
    for packet_no in 3..=4 {
        assert_eq!(sender.send(&mut wire, packet_no), Some((UpdateResult::OK, packet_no)), "a reconnect loses nothing");
    }
    let short = OtaPacket { total_packets: 5, packet_no: 5, chunk: Rest(&firmware[800..990]), extra: Extra::NONE };
    assert_eq!(sender.send_this(&mut wire, &short), Some((UpdateResult::OK, 5)));
    assert_eq!(restarted(&mut wire).0, 207, "a bare image does not say its version");
    assert_eq!(wire.device.firmware(), &firmware[..990]);
}

#[test]
fn faults_on_demand() {
    let (firmware, mut wire) = (firmware(600), charger(Model::default()));
    let mut sender = Sender::new(0xe0, &firmware, None);
    wire.device.set_fault(Fault::UpdateAckLost(1));
    wire.device.set_fault(Fault::UpdateRefused(2, UpdateResult::RESEND));
    wire.device.set_fault(Fault::UpdatePowerCut(3));
    assert_eq!(sender.send(&mut wire, 1), None);
    assert_eq!(sender.send(&mut wire, 1), Some((UpdateResult::OK, 1)));
    assert_eq!(sender.send(&mut wire, 2), Some((UpdateResult::RESEND, 2)));
    assert_eq!(sender.send(&mut wire, 2), Some((UpdateResult::OK, 2)));
    assert_eq!(sender.send(&mut wire, 3), None);
    assert!(wire.device.poll_close());
    wire.reconnect();
    wire.pass(181 * SECOND_US);
    let asks = wire.bodies(|_, body| match body {
        Body::OtaReply(reply) => Some((reply.result, reply.packet_no)),
        _ => None,
    });
    assert_eq!(asks, [(UpdateResult::OK, 0); 2], "begin at packet 1, again after 3 min");
    assert_eq!(sender.send(&mut wire, 2), Some((UpdateResult::RESEND, 1)));
    sender.send_all(&mut wire);
    assert_eq!(restarted(&mut wire).0, 207);
    assert_eq!(wire.device.firmware(), firmware);
    wire.pass(400 * SECOND_US);
    assert!(!wire.commands().contains(&0xe0), "it has what it wanted");
    wire.device.set_fault(Fault::UpdateRefused(1, UpdateResult::REFUSED));
    assert_eq!(sender.send(&mut wire, 1), Some((UpdateResult::REFUSED, 1)));
}

#[test]
fn a_legacy_device_starts_over_after_two_failed_retransmissions() {
    let (firmware, mut wire) = (firmware(600), charger(Model::legacy()));
    wire.sent.clear();
    let mut sender = Sender::new(0xf8, &firmware, None);
    assert_eq!(sender.image.total_packets(), 3);
    assert_eq!(sender.send(&mut wire, 1), Some((UpdateResult::OK, 1)));
    for _ in 0..3 {
        wire.device.set_fault(Fault::UpdateRefused(2, UpdateResult::RESEND));
    }
    for _ in 0..2 {
        assert_eq!(sender.send(&mut wire, 2), Some((UpdateResult::RESEND, 2)));
    }
    let mut frame = Vec::new();
    let mut buffer = [0; CHUNK_LEGACY];
    let packet = sender.image.packet(2, &mut buffer).unwrap();
    chargegate::protocol::ap3000::encode::body(&mut frame, &wire.header(99), 0xf8, &packet).unwrap();
    wire.receive(&frame);
    assert_eq!(wire.commands(), [0xf8, 0x05], "refused a third time, and asks to begin anew");
    assert_eq!(sender.send(&mut wire, 2), Some((UpdateResult::RESEND, 1)));
    sender.send_all(&mut wire);
    wire.pass(2 * SECOND_US);
    assert_eq!(wire.device.fw_version(), 206);
    assert_eq!(wire.device.firmware()[..600], firmware);
}

#[test]
fn a_power_board_is_updated_without_a_restart() {
    let firmware = firmware(200);
    let mut wire = charger(Model::default());
    let mut sender = Sender::new(0xe1, &firmware, None);
    assert_eq!(sender.send(&mut wire, 1), None, "it has no power board");
    assert_eq!(Sender::new(0xf8, &firmware, None).send(&mut wire, 1), None, "nor is it a legacy device");
    let mut wire = charger(Model { power_board_version: 101, ..Model::default() });
    wire.acknowledge(0x20, 1);
    let mut sender = Sender::new(0xe1, &firmware, Some(Verification::of(&firmware, 0x21, 150)));
    sender.send_all(&mut wire);
    wire.pass(2 * SECOND_US);
    assert_eq!(versions(&mut wire), (206, 150), "a field of 0x20 changed");
    assert!(!wire.device.poll_close());
}

#[test]
fn a_device_that_downloads_by_itself_is_triggered() {
    let mut wire = charger(Model::default());
    assert_eq!(wire.command(1, 0xe4, &Empty::default(), |_, _| ()), []);
    wire.pass(58 * SECOND_US);
    assert!(!wire.device.poll_close());
    assert_eq!(restarted(&mut wire).0, 207);
}
