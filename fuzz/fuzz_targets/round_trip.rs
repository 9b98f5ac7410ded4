//! What the encoders write, the decoders read: decode(encode(x)) is x.
//!
//! The input is a source of field values; whatever it lacks is zero.
#![no_main]

use chargegate_fuzz::direction;
use chargegate_fuzz::protocol::ap3000::{self, Magics, PhyId, encode as ap3000_encode};
use chargegate_fuzz::protocol::bkv::body::{EndAck, Level, PowerEnd, SocketEntry, Start, StartReply};
use chargegate_fuzz::protocol::bkv::clock::DeviceTime;
use chargegate_fuzz::protocol::bkv::command::{self, sub};
use chargegate_fuzz::protocol::bkv::encode::PowerOrder;
use chargegate_fuzz::protocol::bkv::packet::PacketHeader;
use chargegate_fuzz::protocol::bkv::report::{HoleBlock, HoleState};
use chargegate_fuzz::protocol::bkv::{self, Body, GatewayId, HoleStatus, decode_body, device, encode};
use chargegate_fuzz::protocol::{Direction, Hex, Step};
use libfuzzer_sys::fuzz_target;

struct Values<'a>(&'a [u8]);

impl Values<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| match self.0 {
            [first, rest @ ..] => {
                self.0 = rest;
                *first
            }
            [] => 0,
        })
    }

    fn u8(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.bytes())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes())
    }

    fn list<T>(&mut self, max: u8, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.u8() % (max + 1)).map(|_| item(self)).collect()
    }
}

fuzz_target!(|data: &[u8]| {
    let mut values = Values(data);
    if values.u8() & 1 == 0 { ap3000(&mut values) } else { bkv(&mut values) }
});

/// Any data that a layout reads, in a frame of any header.
fn ap3000(values: &mut Values<'_>) {
    let magic = if values.u8() & 1 == 0 { *b"DNY" } else { [0x44, 0x22, 0x4e] };
    let (phy_id, msg_id, command) = (PhyId(values.bytes()), values.u16(), values.u8());
    let direction = direction(values.u8() & 1 == 1);
    let Some(layout) = ap3000::lookup(command).and_then(|row| row.layout(direction)) else { return };
    let Ok(body) = (layout.decode)(values.0) else { return };
    let mut out = b"before".to_vec();
    let Ok(len) = ap3000_encode::frame(&mut out, magic, phy_id, msg_id, command, |out| body.write(out)) else {
        assert_eq!(out, b"before", "a frame that is too long leaves bytes");
        return;
    };
    let written = &out[b"before".len()..];
    assert_eq!(written.len(), len);
    let Step::Item { item: ap3000::Item::Frame(frame), consumed } = ap3000::deframe(written, &Magics::default()) else {
        panic!("a written frame is not found")
    };
    assert_eq!((consumed, frame.magic, frame.phy_id), (len, magic, phy_id));
    assert_eq!((frame.msg_id, frame.command), (msg_id, command));
    assert_eq!(ap3000::decode_body(&frame, direction), Ok(body));
}

fn read_back(bytes: &[u8], direction: Direction, id: GatewayId, sequence: u32) -> Body<'_> {
    let Step::Item { item: frame, consumed } = bkv::deframe(bytes) else { panic!("a written frame is not found") };
    assert_eq!((consumed, frame.direction), (bytes.len(), direction));
    assert_eq!((frame.gateway_id, frame.sequence), (id, sequence));
    decode_body(&frame).expect("a written body is read")
}

fn bkv(values: &mut Values<'_>) {
    let (id, sequence, out) = (GatewayId(values.bytes()), values.u32(), &mut Vec::new());
    match values.u8() % 8 {
        0 => {
            let [socket, hole, switch, mode] = values.bytes();
            let start = Start { socket, hole, switch, mode, minutes: values.u16(), energy_wh: values.u16() };
            encode::start(out, id, sequence, &start);
            let Body::Start(_, read) = read_back(out, Direction::Down, id, sequence) else { panic!() };
            assert_eq!(read, start);
        }
        1 => {
            let [result, socket, hole, which] = values.bytes();
            let sub = if which & 1 == 0 { sub::START } else { sub::POWER_START };
            let reply = StartReply { result, socket, hole, business_no: values.u16() };
            device::start_reply(out, id, sequence, sub, &reply);
            let Body::StartReply(inner, read) = read_back(out, Direction::Up, id, sequence) else { panic!() };
            assert_eq!((inner.sub, read), (sub, reply));
        }
        2 => {
            let [socket, hole, on] = values.bytes();
            let paid_cent = values.u16();
            let levels = values.list(5, |values| Level {
                power_dw: values.u16(),
                price_cent: values.u16(),
                minutes: values.u16(),
            });
            let order = PowerOrder { socket, hole, on: on & 1 == 1, paid_cent, levels: &levels };
            encode::power_start(out, id, sequence, command::CONTROL, &order);
            let Body::PowerStart(_, read) = read_back(out, Direction::Down, id, sequence) else { panic!() };
            assert_eq!((read.socket, read.hole, read.switch), (socket, hole, on & 1));
            assert_eq!((read.tariff.paid_cent, read.tariff.levels.collect::<Vec<_>>()), (paid_cent, levels));
        }
        3 => {
            let channel = values.u8();
            let list = values.list(250, |values| SocketEntry { socket: values.u8(), mac: Hex(values.bytes()) });
            encode::socket_list(out, id, sequence, channel, &list);
            let Body::SocketList(_, read) = read_back(out, Direction::Down, id, sequence) else { panic!() };
            assert_eq!((read.channel, read.sockets.collect::<Vec<_>>()), (channel, list));
        }
        4 => {
            let holes = values.list(4, |values| HoleBlock {
                hole: values.u8(),
                status: HoleStatus(values.u8()),
                business_no: values.u16(),
                voltage_dv: values.u16(),
                power_dw: values.u16(),
                current_ma: values.u16(),
                energy_wh: values.u16(),
                charged_min: values.u16(),
            });
            let [socket, temp_c, rssi] = values.bytes();
            let sent = device::Socket { socket, fw: values.bytes(), temp_c, rssi, holes: &holes };
            device::push(out, id, &[sent]);
            let body = read_back(out, Direction::Up, id, 0);
            let read: Vec<_> = body.sockets().expect("a push has sockets").collect();
            let [read] = &read[..] else { panic!("{read:?}") };
            assert_eq!((read.socket, read.temp_c, read.rssi), (Some(socket), Some(temp_c), Some(rssi)));
            assert_eq!(read.holes().collect::<Vec<_>>(), holes.into_iter().map(HoleState::from).collect::<Vec<_>>());
        }
        5 => {
            let [socket, ok, which] = values.bytes();
            let sub = [sub::CHARGE_END, sub::CARD_END, sub::POWER_END][usize::from(which) % 3];
            encode::end_ack(out, id, sub, socket, ok & 1 == 1);
            let Body::EndAck(inner, read) = read_back(out, Direction::Down, id, 0) else { panic!() };
            assert_eq!((inner.sub, read), (sub, EndAck { socket, result: ok & 1 }));
        }
        6 => {
            let header = PacketHeader { frame_seq: values.bytes(), gateway_id: GatewayId(values.bytes()) };
            let [socket, hole, ok] = values.bytes();
            encode::fee_end_ack(out, id, header, socket, hole, ok & 1 == 1);
            let Body::PacketReply(read) = read_back(out, Direction::Down, id, 0) else { panic!() };
            assert_eq!((read.packet.header, read.ack), (header, ok & 1));
            assert_eq!((read.socket, read.hole), (Some(socket), Some(hole)));
        }
        _ => {
            // A report that was read is written as it came.
            let mut payload = values.0.to_vec();
            payload.truncate(60);
            encode::frame(out, Direction::Up, command::CONTROL, 0, id, |out| {
                out.extend_from_slice(&[0, payload.len() as u8, sub::POWER_END]);
                out.extend_from_slice(&payload);
            });
            let Step::Item { item: frame, .. } = bkv::deframe(out) else { panic!("a written frame is not found") };
            let Ok(Body::PowerEnd(_, end)) = decode_body(&frame) else { return };
            let again = &mut Vec::new();
            device::power_end(again, id, &end);
            let Body::PowerEnd(_, read) = read_back(again, Direction::Up, id, 0) else { panic!() };
            assert_eq!(read, PowerEnd { end_time: DeviceTime::from_binary(end.end_time.to_binary()), ..end });
            assert_eq!(read, end);
        }
    }
}
