//! Frames a gateway sends, for simulators and tests. Same conventions as [`encode`]; what has no function
//! here is written by [`encode::body`] or [`encode::fields`].

use super::body::{
    BalanceQuery, Body, CardEnd, CardSwipe, ChargeEnd, Heartbeat, HoleResult, NetworkResult, PowerEnd, StartReply, Text,
};
use super::command::{CONTROL, HEARTBEAT, NETWORK, PACKET, packet_sub, sub};
use super::encode::{self, Header, fields, inner_payload, packet};
use super::fields::Fields;
use super::frame::GatewayId;
use super::packet::{Event, Exception, FeeEnd, PacketHeader, PacketReply, Params};
use super::records::Record;
use super::report::{EndReport, HoleBlock, HoleState};
use super::tlv::{self, key, put};
use crate::protocol::Direction::Up;

/// A heartbeat; `iccid` is cut or padded to 20 characters, `fw` to 8.
pub fn heartbeat(out: &mut Vec<u8>, gateway_id: GatewayId, iccid: &str, fw: &str, rssi: u8) {
    let beat = Heartbeat { iccid: Text::new(iccid.as_bytes()), fw: Text::new(fw.as_bytes()), rssi: Some(rssi) };
    encode::body(out, &Header::up(HEARTBEAT, 0, gateway_id), &Body::Heartbeat(beat));
}

/// State of a socket: the body of a query reply, and one container of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket<'a> {
    /// Socket number.
    pub socket: u8,
    /// Socket firmware.
    pub fw: [u8; 2],
    /// Temperature in °C.
    pub temp_c: u8,
    /// Radio signal, raw.
    pub rssi: u8,
    /// The holes; a push has room for five.
    pub holes: &'a [HoleBlock],
}

/// A status push, one container per socket.
pub fn push(out: &mut Vec<u8>, gateway_id: GatewayId, sockets: &[Socket<'_>]) {
    packet(out, Up, 0, gateway_id, PacketHeader::new(0, gateway_id), packet_sub::PUSH, |out| {
        for socket in sockets {
            let Socket { socket, fw, temp_c, rssi, holes } = *socket;
            let state = (Some(socket), Some(fw), Some(temp_c), Some(rssi));
            socket_container(out, state, holes.iter().copied().map(HoleState::from));
        }
    });
}

/// A status push of one socket that leaves out what is `None`, as a device may.
pub fn partial_push(
    out: &mut Vec<u8>,
    gateway_id: GatewayId,
    socket: Option<u8>,
    fw: Option<[u8; 2]>,
    temp_c: Option<u8>,
    rssi: Option<u8>,
    holes: &[HoleState],
) {
    packet(out, Up, 0, gateway_id, PacketHeader::new(0, gateway_id), packet_sub::PUSH, |out| {
        socket_container(out, (socket, fw, temp_c, rssi), holes.iter().copied());
    });
}

fn socket_container(
    out: &mut Vec<u8>,
    (socket, fw, temp_c, rssi): (Option<u8>, Option<[u8; 2]>, Option<u8>, Option<u8>),
    holes: impl Iterator<Item = HoleState>,
) {
    tlv::write_with(out, key::SOCKET_STATUS, |out| {
        put(out, key::SOCKET_NO, socket);
        put(out, key::SOCKET_FW, fw.as_ref().map(|fw| &fw[..]));
        put(out, key::MCU_TEMP, temp_c);
        put(out, key::RSSI, rssi);
        for hole in holes {
            tlv::write_with(out, key::HOLE_ATTRS, |out| {
                put(out, key::HOLE, hole.hole);
                put(out, key::STATUS, hole.status);
                put(out, key::BUSINESS_NO, hole.business_no);
                put(out, key::VOLTAGE, hole.voltage_dv);
                put(out, key::POWER, hole.power_dw);
                put(out, key::CURRENT, hole.current_ma);
                put(out, key::ENERGY, hole.energy_wh);
                put(out, key::CHARGED_MIN, hole.charged_min);
            });
        }
    });
}

/// The reply to a socket query; `sub` is 1C as in the guide's frame or 1D as in its text.
pub fn socket_reply(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, sub: u8, socket: &Socket<'_>) {
    encode::frame(out, Up, CONTROL, sequence, gateway_id, |out| {
        inner_payload(out, sub, |out| {
            out.push(socket.socket);
            out.extend_from_slice(&socket.fw);
            out.extend_from_slice(&[socket.temp_c, socket.rssi]);
            socket.holes.iter().for_each(|block| Record::write(block, out));
        });
    });
}

/// The reply to a start or stop; `sub` is that of the command, 07 or 17.
pub fn start_reply(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, sub: u8, reply: &StartReply) {
    control(out, gateway_id, sequence, sub, reply);
}

/// The reply to a fee start, in the assumed form: 0F, 4A, 08, 0A.
pub fn fee_start_reply(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, reply: &StartReply) {
    let answer = PacketReply::new(packet_sub::FEE_START, PacketHeader::new(sequence, gateway_id), false);
    let StartReply { result: ack, socket, hole, business_no } = *reply;
    let (socket, hole, business_no) = (Some(socket), Some(hole), Some(business_no));
    packet_reply(out, gateway_id, sequence, PacketReply { ack, socket, hole, business_no, ..answer });
}

/// The reply to a change of the network list; `sub` is that of the command.
pub fn network_result(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, sub: u8, ok: bool) {
    fields(out, &Header::up(NETWORK, sequence, gateway_id), sub, &NetworkResult { result: u8::from(ok) });
}

/// The end of an order by time or energy.
pub fn charge_end(out: &mut Vec<u8>, gateway_id: GatewayId, end: &ChargeEnd) {
    control(out, gateway_id, 0, sub::CHARGE_END, end);
}

/// The end of an order by power tiers.
pub fn power_end(out: &mut Vec<u8>, gateway_id: GatewayId, end: &PowerEnd<'_>) {
    control(out, gateway_id, 0, sub::POWER_END, end);
}

/// A card was swiped.
pub fn card_swipe(out: &mut Vec<u8>, gateway_id: GatewayId, swipe: &CardSwipe) {
    control(out, gateway_id, 0, sub::CARD, swipe);
}

/// Confirms the order for a swiped card, whose sequence this copies.
pub fn card_confirm(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, confirm: &HoleResult) {
    control(out, gateway_id, sequence, sub::CARD_CONFIRM, confirm);
}

/// The end of an order paid by card.
pub fn card_end(out: &mut Vec<u8>, gateway_id: GatewayId, end: &CardEnd<'_>) {
    control(out, gateway_id, 0, sub::CARD_END, end);
}

/// Asks for the balance of a card.
pub fn balance_query(out: &mut Vec<u8>, gateway_id: GatewayId, query: &BalanceQuery) {
    control(out, gateway_id, 0, sub::BALANCE, query);
}

/// The reply to the voice window.
pub fn voice_reply(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, reply: &HoleResult) {
    control(out, gateway_id, sequence, sub::VOICE, reply);
}

/// The end of an order with fees, from the values of `report` that 1004 carries; `tier_results` is opaque.
pub fn fee_end(out: &mut Vec<u8>, gateway_id: GatewayId, report: &EndReport, tier_results: &[u8]) {
    let end = FeeEnd::new(PacketHeader::new(0, gateway_id), *report, tier_results);
    encode::body(out, &Header::up(PACKET, 0, gateway_id), &Body::FeeEnd(end));
}

/// An exception event.
pub fn exception(out: &mut Vec<u8>, gateway_id: GatewayId, exception: &Exception<'_>) {
    encode::body(out, &Header::up(PACKET, 0, gateway_id), &Body::Exception(*exception));
}

/// The event that is sent once per connection.
pub fn event(out: &mut Vec<u8>, gateway_id: GatewayId, event: &Event<'_>) {
    encode::body(out, &Header::up(PACKET, 0, gateway_id), &Body::Event(*event));
}

/// The reply to a change of parameters.
pub fn param_set_reply(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, socket: u8, ok: bool) {
    let reply = PacketReply::new(packet_sub::PARAM_SET, PacketHeader::new(sequence, gateway_id), ok);
    packet_reply(out, gateway_id, sequence, PacketReply { socket: Some(socket), ..reply });
}

/// The reply to a query of parameters.
pub fn param_query_reply(
    out: &mut Vec<u8>,
    gateway_id: GatewayId,
    sequence: u32,
    socket: u8,
    ok: bool,
    params: &Params,
) {
    let reply = PacketReply::new(packet_sub::PARAM_QUERY, PacketHeader::new(sequence, gateway_id), ok);
    packet_reply(out, gateway_id, sequence, PacketReply { socket: Some(socket), params: *params, ..reply });
}

fn control<'a>(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, sub: u8, body: &impl Fields<'a>) {
    fields(out, &Header::up(CONTROL, sequence, gateway_id), sub, body);
}

fn packet_reply(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, reply: PacketReply<'_>) {
    encode::body(out, &Header::up(PACKET, sequence, gateway_id), &Body::PacketReply(reply));
}
