//! Server frames. Each function appends one whole frame to `out` and allocates only by growing it.
//!
//! A command carries the server's sequence, never 0; an answer to a device's own report carries 0, which is why those
//! functions take none. Ranges named here are checked where requests enter, not on the wire.

use std::net::Ipv4Addr;

use super::body::{
    BalanceQuery, BalanceReply, Body, CardOrder, EndAck, Level, OTA_FILE_LEN, Ota, Period, SocketEntry, SocketOnly,
    Start, Text,
};
use super::clock::DeviceTime;
use super::command::{CONTROL, HEARTBEAT, NETWORK, OTA, PACKET, packet_sub, sub};
use super::fields::Fields;
use super::frame::{Frame, GatewayId, LENGTH_MAX, MAGIC_DOWN, MAGIC_UP, TAIL, checksum, direction_code};
use super::packet::{FeeTier, Packet, PacketHeader, PacketReply, ParamQuery, ParamSet, Params, write_header};
use super::records::Record;
use super::tlv::{self, key, put};
use crate::protocol::Direction::{self, Down};
use crate::protocol::Hex;

/// Appends a frame around the payload that `payload` writes.
///
/// A payload over [`PAYLOAD_LEN_MAX`](super::frame::PAYLOAD_LEN_MAX) bytes is a bug of the caller: the receiver drops
/// such a frame.
pub fn frame(
    out: &mut Vec<u8>,
    direction: Direction,
    command: u16,
    sequence: u32,
    gateway_id: GatewayId,
    payload: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    let [m1, m0] = match direction {
        Direction::Up => MAGIC_UP,
        Down => MAGIC_DOWN,
    };
    let ([c1, c0], [s3, s2, s1, s0]) = (command.to_be_bytes(), sequence.to_be_bytes());
    let GatewayId([g6, g5, g4, g3, g2, g1, g0]) = gateway_id;
    let code = direction_code(direction);
    out.extend_from_slice(&[m1, m0, 0, 0, c1, c0, s3, s2, s1, s0, code, g6, g5, g4, g3, g2, g1, g0]);
    payload(out);
    // Checksum and tail are still to come; magic and length do not count: three more, four fewer.
    let length = out.len().saturating_sub(start).saturating_sub(1);
    debug_assert!(length <= LENGTH_MAX, "frame of length {length} is too long for the wire");
    if let Some([_, _, high, low, ..]) = out.get_mut(start..) {
        [*high, *low] = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    }
    let sum = out.get(start.saturating_add(2)..).map_or(0, checksum);
    out.extend_from_slice(&[sum, TAIL[0], TAIL[1]]);
}

/// What a frame says besides its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who sends it.
    pub direction: Direction,
    /// Command word.
    pub command: u16,
    /// 0 in a gateway's own report and in the answer to it; the server's in a command and in the answer to that.
    pub sequence: u32,
    /// Which gateway.
    pub gateway_id: GatewayId,
}

impl Header {
    /// The header of a gateway's frame.
    pub const fn up(command: u16, sequence: u32, gateway_id: GatewayId) -> Self {
        Self { direction: Direction::Up, command, sequence, gateway_id }
    }

    /// The header of a server's frame.
    pub const fn down(command: u16, sequence: u32, gateway_id: GatewayId) -> Self {
        Self { direction: Down, command, sequence, gateway_id }
    }
}

impl Frame<'_> {
    /// The header of this frame.
    pub const fn header(&self) -> Header {
        let Self { direction, command, sequence, gateway_id, .. } = *self;
        Header { direction, command, sequence, gateway_id }
    }
}

/// Appends a frame with any body, as [`Body::write`].
pub fn body(out: &mut Vec<u8>, header: &Header, body: &Body<'_>) {
    let Header { direction, command, sequence, gateway_id } = *header;
    frame(out, direction, command, sequence, gateway_id, |out| body.write(out));
}

/// Appends a frame of [`NETWORK`] or [`CONTROL`] with this sub-command and these fields.
pub fn fields<'a>(out: &mut Vec<u8>, header: &Header, sub: u8, fields: &impl Fields<'a>) {
    let Header { direction, command, sequence, gateway_id } = *header;
    frame(out, direction, command, sequence, gateway_id, |out| inner_payload(out, sub, |out| fields.write(out)));
}

/// Appends the payload of a frame of [`NETWORK`] or [`CONTROL`]: length, sub-command, fields.
pub(super) fn inner_payload(out: &mut Vec<u8>, sub: u8, fields: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0, 0, sub]);
    fields(out);
    let len = out.len().saturating_sub(at).saturating_sub(3);
    if let Some([high, low, ..]) = out.get_mut(at..) {
        [*high, *low] = u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    }
}

/// Appends a tagged packet: the three header elements, then `elements`, which [`tlv::put`] and its like write.
pub fn packet(
    out: &mut Vec<u8>,
    direction: Direction,
    sequence: u32,
    gateway_id: GatewayId,
    header: PacketHeader,
    sub: u16,
    elements: impl FnOnce(&mut Vec<u8>),
) {
    frame(out, direction, PACKET, sequence, gateway_id, |out| {
        write_header(out, sub, header);
        elements(out);
    });
}

/// Number of records as their count byte. More than 255 is a bug of the caller.
pub(super) fn count(records: usize) -> u8 {
    debug_assert!(records <= usize::from(u8::MAX), "{records} records do not fit a count byte");
    u8::try_from(records).unwrap_or(u8::MAX)
}

/// Appends a frame of the server.
fn down<'a>(out: &mut Vec<u8>, command: u16, sequence: u32, gateway_id: GatewayId, sub: u8, body: &impl Fields<'a>) {
    fields(out, &Header::down(command, sequence, gateway_id), sub, body);
}

fn records<T: Record + Copy>(out: &mut Vec<u8>, records: &[T]) {
    records.iter().for_each(|record| Record::write(record, out));
}

fn levels(out: &mut Vec<u8>, paid_cent: u16, levels: &[Level]) {
    Record::write(&paid_cent, out);
    out.push(count(levels.len()));
    records(out, levels);
}

/// Appends a frame of the server whose fields `write` appends: those with lists, given as slices.
fn down_with(
    out: &mut Vec<u8>,
    command: u16,
    sequence: u32,
    gateway_id: GatewayId,
    sub: u8,
    write: impl FnOnce(&mut Vec<u8>),
) {
    frame(out, Down, command, sequence, gateway_id, |out| inner_payload(out, sub, write));
}

/// Answers a heartbeat with the time, given in Unix seconds and sent as UTC+8.
pub fn heartbeat_reply(out: &mut Vec<u8>, gateway_id: GatewayId, unix_s: i64) {
    heartbeat_reply_at(out, gateway_id, DeviceTime::from_unix(unix_s).to_bcd());
}

/// As [`heartbeat_reply`], with the time as [`DeviceTime::to_bcd`] writes it.
pub fn heartbeat_reply_at(out: &mut Vec<u8>, gateway_id: GatewayId, time_bcd: [u8; 7]) {
    frame(out, Down, HEARTBEAT, 0, gateway_id, |out| out.extend_from_slice(&time_bcd));
}

/// Asks for the state of a socket. Answered by 1C, 1D or a push.
pub fn socket_query(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, socket: u8) {
    down(out, CONTROL, sequence, gateway_id, sub::SOCKET_QUERY, &SocketOnly { socket });
}

/// Starts by time or energy, or stops.
pub fn start(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, start: &Start) {
    down(out, CONTROL, sequence, gateway_id, sub::START, start);
}

/// An order by power tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerOrder<'a> {
    /// Socket number.
    pub socket: u8,
    /// 0 or 1.
    pub hole: u8,
    /// Whether to switch on.
    pub on: bool,
    /// Amount paid in 0.01 yuan.
    pub paid_cent: u16,
    /// One to five tiers.
    pub levels: &'a [Level],
}

impl PowerOrder<'_> {
    /// Stops whatever runs on the hole.
    pub const fn stop(socket: u8, hole: u8) -> Self {
        Self { socket, hole, on: false, paid_cent: 0, levels: &[] }
    }
}

/// Starts by power tiers, or stops.
///
/// `command` is [`CONTROL`] by the guide's text and [`NETWORK`] in its example; use the former unless a device's record
/// says otherwise.
pub fn power_start(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, command: u16, order: &PowerOrder<'_>) {
    down_with(out, command, sequence, gateway_id, sub::POWER_START, |out| {
        out.extend_from_slice(&[order.socket, order.hole, u8::from(order.on)]);
        levels(out, order.paid_cent, order.levels);
    });
}

/// An order with electricity and service fee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeeOrder<'a> {
    /// Socket number.
    pub socket: u8,
    /// 0 or 1.
    pub hole: u8,
    /// Whether to switch on. Off stops the hole (assumed: the guide shows no stop).
    pub on: bool,
    /// Amount paid in 0.01 yuan.
    pub paid_amount_cent: u16,
    /// 0 by time, 1 by energy.
    pub service_fee_mode: u8,
    /// Tiers of the day, the last ending at 23:59; at most 42 fit.
    pub tiers: &'a [FeeTier],
}

/// Starts with electricity and service fee, or stops.
pub fn fee_start(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, order: &FeeOrder<'_>) {
    let header = PacketHeader::new(sequence, gateway_id);
    packet(out, Down, sequence, gateway_id, header, packet_sub::FEE_START, |out| {
        put(out, key::SOCKET_NO, order.socket);
        put(out, key::HOLE, order.hole);
        put(out, key::SWITCH, u8::from(order.on));
        // 12 is the fee mode; 47 and F4 are unexplained and copied from the guide's only example.
        put(out, key::CHARGE_MODE, 4u8);
        put(out, key::CONTROL_TYPE, 1u8);
        put(out, key::TAG_F4, 2u8);
        put(out, key::PAID_AMOUNT, order.paid_amount_cent);
        put(out, key::SERVICE_FEE_MODE, order.service_fee_mode);
        put(out, key::TIER_COUNT, count(order.tiers.len()));
        tlv::write_with(out, key::FEE_TIERS, |out| records(out, order.tiers));
    });
}

/// Acknowledges an end report 0x02, 0x18 or 0x0C under the sub-command `sub`.
///
/// For 0x02 the form that stopped the repetition in the field is [`sub::CARD_END`]; the echo [`sub::CHARGE_END`] is
/// untested and meant for a report that repeats all the same.
pub fn end_ack(out: &mut Vec<u8>, gateway_id: GatewayId, sub: u8, socket: u8, ok: bool) {
    down(out, CONTROL, 0, gateway_id, sub, &EndAck { socket, result: u8::from(ok) });
}

/// Acknowledges a 1004 end report; `header` is the report's.
pub fn fee_end_ack(out: &mut Vec<u8>, gateway_id: GatewayId, header: PacketHeader, socket: u8, hole: u8, ok: bool) {
    let ack = PacketReply::new(packet_sub::FEE_END, header, ok);
    packet_ack(out, gateway_id, PacketReply { socket: Some(socket), hole: Some(hole), ..ack });
}

/// Acknowledges a 1017 push; `header` is the push's.
pub fn push_ack(out: &mut Vec<u8>, gateway_id: GatewayId, header: PacketHeader, ok: bool) {
    packet_ack(out, gateway_id, PacketReply::new(packet_sub::PUSH, header, ok));
}

/// Acknowledges a 1010 exception; `header` is the report's.
pub fn exception_ack(out: &mut Vec<u8>, gateway_id: GatewayId, header: PacketHeader, socket: u8, ok: bool) {
    let ack = PacketReply::new(packet_sub::EXCEPTION, header, ok);
    packet_ack(out, gateway_id, PacketReply { socket: Some(socket), ..ack });
}

/// Acknowledges a 1013 event; `header` is the event's. The form is assumed: the guide does not know the event.
pub fn event_ack(out: &mut Vec<u8>, gateway_id: GatewayId, header: PacketHeader, socket: u8, ok: bool) {
    let ack = PacketReply::new(packet_sub::EVENT, header, ok);
    packet_ack(out, gateway_id, PacketReply { socket: Some(socket), ..ack });
}

fn packet_ack(out: &mut Vec<u8>, gateway_id: GatewayId, ack: PacketReply<'_>) {
    body(out, &Header::down(PACKET, 0, gateway_id), &Body::PacketReply(ack));
}

/// Replaces the network list: `channel` 1..=15, at most 250 sockets.
pub fn socket_list(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, channel: u8, sockets: &[SocketEntry]) {
    down_with(out, NETWORK, sequence, gateway_id, sub::SOCKET_LIST, |out| {
        out.push(channel);
        records(out, sockets);
    });
}

/// Adds one socket to the network list.
pub fn socket_add(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, entry: &SocketEntry) {
    down(out, NETWORK, sequence, gateway_id, sub::SOCKET_ADD, entry);
}

/// Removes one socket from the network list. The form is assumed: the guide announces it without an example.
pub fn socket_delete(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, socket: u8) {
    down(out, NETWORK, sequence, gateway_id, sub::SOCKET_DELETE, &SocketOnly { socket });
}

/// What a swiped card may charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CardTerms<'a> {
    /// Minutes by analogy with 07; the guide's example only makes sense in seconds.
    Time(u16),
    /// In Wh. The mode number is assumed from the card end report.
    Energy(u16),
    /// Amount in 0.01 yuan and one to five tiers.
    Power(u16, &'a [Level]),
    /// Nothing: the card is refused (assumed, the guide shows no refusal).
    Refused,
}

/// Answers a card swipe with the order for it; `business_no` is copied from the swipe.
pub fn card_order(
    out: &mut Vec<u8>,
    gateway_id: GatewayId,
    sequence: u32,
    (socket, hole): (u8, u8),
    business_no: u16,
    terms: CardTerms<'_>,
) {
    let (switch, mode, time, energy_wh) = match terms {
        CardTerms::Time(time) => (1, CardOrder::TIME, time, 0),
        CardTerms::Energy(energy_wh) => (1, CardOrder::ENERGY, 0, energy_wh),
        CardTerms::Power(..) => (1, CardOrder::POWER, 0, 0),
        CardTerms::Refused => (0, CardOrder::TIME, 0, 0),
    };
    down_with(out, CONTROL, sequence, gateway_id, sub::CARD, |out| {
        out.extend_from_slice(&[socket, hole]);
        Record::write(&business_no, out);
        out.extend_from_slice(&[switch, mode]);
        Record::write(&time, out);
        Record::write(&energy_wh, out);
        if let CardTerms::Power(paid_cent, tiers) = terms {
            levels(out, paid_cent, tiers);
        }
    });
}

/// Answers a balance query. `sequence` is a fresh one, unlike in other answers.
pub fn balance_reply(
    out: &mut Vec<u8>,
    gateway_id: GatewayId,
    sequence: u32,
    (socket, hole): (u8, u8),
    card: [u8; 6],
    balance_cent: u32,
) {
    let reply = BalanceReply { query: BalanceQuery { socket, hole, card: Hex(card) }, balance_cent };
    down(out, CONTROL, sequence, gateway_id, sub::BALANCE, &reply);
}

/// Sets buzzer and voice inside at most two periods; socket 254 is every socket.
pub fn voice_set(
    out: &mut Vec<u8>,
    gateway_id: GatewayId,
    sequence: u32,
    (socket, hole): (u8, u8),
    buzzer: bool,
    voice: bool,
    periods: &[Period],
) {
    down_with(out, CONTROL, sequence, gateway_id, sub::VOICE, |out| {
        out.extend_from_slice(&[socket, hole, u8::from(buzzer), u8::from(voice), count(periods.len())]);
        records(out, periods);
    });
}

/// Tells the gateway to fetch its firmware by FTP; `file` has at most [`OTA_FILE_LEN`] ASCII characters.
pub fn ota(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, ftp_ip: Ipv4Addr, ftp_port: u16, file: &str) {
    debug_assert!(file.len() <= OTA_FILE_LEN, "file name {file:?} does not fit its field");
    let ota = Ota { target: Ota::GATEWAY, ftp_ip, ftp_port, file: Text::new(file.as_bytes()) };
    body(out, &Header::down(OTA, sequence, gateway_id), &Body::Ota(ota));
}

/// Changes the parameters that are set in `params`; those only reported are not sent.
pub fn param_set(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, socket: u8, params: &Params) {
    let packet = Packet::new(packet_sub::PARAM_SET, PacketHeader::new(sequence, gateway_id));
    let set = ParamSet { packet, socket, params: *params };
    body(out, &Header::down(PACKET, sequence, gateway_id), &Body::ParamSet(set));
}

/// Asks for the parameters of a socket.
pub fn param_query(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, socket: u8) {
    let packet = Packet::new(packet_sub::PARAM_QUERY, PacketHeader::new(sequence, gateway_id));
    body(out, &Header::down(PACKET, sequence, gateway_id), &Body::ParamQuery(ParamQuery { packet, socket }));
}
