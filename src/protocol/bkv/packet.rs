//! Bodies of command 0x1000: tagged packets with a 16-bit sub-command of their own.
//!
//! ```text
//! 04 01 01 cmd 2 | 0A 01 02 frame_seq 8 | 09 01 03 gateway_id 7 | element ...
//! ```
//!
//! Values are read in one pass by key. A tag whose value has another size than the guide's counts as absent; it stays
//! visible in the serialised tree.

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use super::clock::{DeviceTime, TimeOfDay};
use super::command::packet_sub;
use super::fields::fields;
use super::frame::{Frame, GatewayId};
use super::records::Records;
use super::report::{EndReport, SOCKET, SOCKET_LEN, Sockets, next_socket};
use super::status::HoleStatus;
use super::tlv::{Element, Elements, Shape, TYPE, key, put};
use crate::protocol::{DecodeError, Direction, Hex};

/// What tags 02 and 03 repeat from the frame. An acknowledgement copies them from the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketHeader {
    /// The frame's sequence, extended to 8 bytes.
    pub frame_seq: [u8; 8],
    /// The frame's gateway id. Where the two differ, the frame is right.
    pub gateway_id: GatewayId,
}

impl PacketHeader {
    /// The header that belongs to a frame.
    pub fn new(sequence: u32, gateway_id: GatewayId) -> Self {
        Self { frame_seq: u64::from(sequence).to_be_bytes(), gateway_id }
    }
}

/// A tagged packet, checked to its last element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Sub-command, e.g. 0x1017.
    pub command: u16,
    /// Tags 02 and 03; from the frame where the packet lacks them.
    pub header: PacketHeader,
    /// Elements whose TYPE is not 01: never seen, tolerated, worth counting.
    pub odd_types: u16,
    elements: Elements<'a>,
    /// The sockets of a push of the usual shape; empty in any other packet.
    sockets: &'a [[u8; SOCKET_LEN]],
}

/// The three elements that begin every packet.
const HEADER_LEN: usize = 26;
static HEADER: Shape<HEADER_LEN> = Shape::new(&[(key::CMD, 2), (key::FRAME_SEQ, 8), (key::GATEWAY_ID, 7)]);

impl<'a> Packet<'a> {
    /// Reads a push that a device sends in the usual shape; `None` for any other, which [`Packet::parse`] reads.
    #[inline]
    pub(super) fn usual_push(frame: &Frame<'a>) -> Option<Self> {
        let (head, sockets) = Self::usual_header(frame, packet_sub::PUSH)?;
        let (sockets, rest) = sockets.as_chunks();
        let usual = rest.is_empty() && !sockets.is_empty() && HEADER.fits(head);
        if !usual || !sockets.iter().all(|socket| SOCKET.fits(socket)) {
            return None;
        }
        Some(Self { sockets, ..Self::of_shape(head, frame.payload) })
    }

    /// Splits off what a packet with this sub-command begins with, if a device sent it. Its shape is not checked.
    #[inline]
    fn usual_header(frame: &Frame<'a>, command: u16) -> Option<(&'a [u8; HEADER_LEN], &'a [u8])> {
        let (head, rest) = frame.payload.split_first_chunk::<HEADER_LEN>()?;
        let [_, _, _, c0, c1, ..] = head;
        (frame.direction == Direction::Up && [*c0, *c1] == command.to_be_bytes()).then_some((head, rest))
    }

    /// The packet of this payload, all of which was recognised, and which begins with a [`HEADER`].
    #[inline]
    fn of_shape(head: &[u8; HEADER_LEN], payload: &'a [u8]) -> Self {
        let &[_, _, _, c0, c1, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7, ref rest @ ..] = head;
        let &[_, _, _, ref gateway_id @ ..] = rest;
        let frame_seq = [s0, s1, s2, s3, s4, s5, s6, s7];
        Self {
            command: u16::from_be_bytes([c0, c1]),
            header: PacketHeader { frame_seq, gateway_id: GatewayId(*gateway_id) },
            odd_types: 0,
            elements: Elements::checked(payload),
            sockets: &[],
        }
    }

    /// Reads the payload of a 0x1000 frame.
    ///
    /// # Errors
    /// [`DecodeError::NotDecoded`] if the payload does not begin with the sub-command tag: some other layout, opaque
    /// here. Else what [`Elements::parse`] gives.
    #[inline]
    pub fn parse(frame: &Frame<'a>) -> Result<Self, DecodeError> {
        let &[0x04, 0x01, key::CMD, c0, c1, ..] = frame.payload else {
            return Err(DecodeError::NotDecoded { command: frame.command });
        };
        let command = u16::from_be_bytes([c0, c1]);
        let (elements, odd_types) = Elements::parse(frame.payload)?;
        let mut header = PacketHeader::new(frame.sequence, frame.gateway_id);
        // The two tags directly follow the first in every frame seen; a tag found later is honoured all the same.
        let mut wanted: u8 = 2;
        for element in elements {
            match element.key {
                key::FRAME_SEQ => header.frame_seq = element.array().unwrap_or(header.frame_seq),
                key::GATEWAY_ID => header.gateway_id = element.array().map_or(header.gateway_id, GatewayId),
                _ => continue,
            }
            wanted = wanted.saturating_sub(1);
            if wanted == 0 {
                break;
            }
        }
        Ok(Self { command, header, odd_types, elements, sockets: &[] })
    }

    /// A packet that is going to be written: it has no elements, the type that holds it gives them.
    pub const fn new(command: u16, header: PacketHeader) -> Self {
        Self { command, header, odd_types: 0, elements: Elements::NONE, sockets: &[] }
    }

    /// Appends the elements as they were read; of a new packet the header.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        if self.elements == Elements::NONE {
            write_header(out, self.command, self.header);
        }
        out.extend_from_slice(self.elements.as_bytes());
    }

    /// All elements, the three of the header included.
    pub const fn elements(&self) -> Elements<'a> {
        self.elements
    }

    /// The sockets of a status push; none in other packets.
    pub const fn sockets(&self) -> Sockets<'a> {
        match self.sockets {
            [] => Sockets::of_push(self.elements),
            sockets => Sockets::of_shape(sockets),
        }
    }

    fn u8(&self, key: u8) -> Option<u8> {
        self.elements.get(key)?.u8()
    }

    fn u16(&self, key: u8) -> Option<u16> {
        self.elements.get(key)?.u16()
    }
}

/// Appends the three elements that begin every packet.
pub(super) fn write_header(out: &mut Vec<u8>, command: u16, header: PacketHeader) {
    put(out, key::CMD, command);
    put(out, key::FRAME_SEQ, &header.frame_seq[..]);
    put(out, key::GATEWAY_ID, &header.gateway_id.0[..]);
}

fn need<T>(value: Option<T>, field: &'static str, need: usize) -> Result<T, DecodeError> {
    value.ok_or(DecodeError::Truncated { field, need, have: 0 })
}

/// 1004 up: a charge with electricity and service fee ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeeEnd<'a> {
    /// The packet.
    pub packet: Packet<'a>,
    /// Its values.
    pub report: EndReport,
    /// Charge mode, 4 in the only example.
    pub charge_mode: Option<u8>,
    /// Number of tiers.
    pub tier_count: Option<u8>,
    /// "Time and energy per tier", 6 bytes each, split unclear.
    pub tier_results: &'a [u8],
}

/// A fee end as the guide shows it, in front of its tiers.
const FEE_END_LEN: usize = 99;
static FEE_END: Shape<FEE_END_LEN> = Shape::new(&[
    (key::CMD, 2),
    (key::FRAME_SEQ, 8),
    (key::GATEWAY_ID, 7),
    (key::MCU_TEMP, 1),
    (key::SOCKET_NO, 1),
    (key::HOLE, 1),
    (key::STATUS, 1),
    (key::BUSINESS_NO, 2),
    (key::POWER, 2),
    (key::CURRENT, 2),
    (key::ENERGY, 2),
    (key::CHARGED_MIN, 2),
    (key::END_TIME, 7),
    (key::END_REASON, 1),
    (key::CHARGE_MODE, 1),
    (key::ELECTRICITY_FEE, 2),
    (key::SERVICE_FEE, 2),
    (key::TIER_COUNT, 1),
]);

impl<'a> FeeEnd<'a> {
    /// Reads one that a device sends in the usual shape; `None` for any other, which [`FeeEnd::read`] reads.
    #[inline]
    pub(super) fn usual(frame: &Frame<'a>) -> Option<Self> {
        let (head, _) = Packet::usual_header(frame, packet_sub::FEE_END)?;
        let (fixed, tiers) = frame.payload.split_first_chunk()?;
        let tier_results = match tiers {
            [] => tiers,
            [len, TYPE, key::TIER_RESULTS, value @ ..] if value.len().checked_add(2) == Some(usize::from(*len)) => {
                value
            }
            _ => return None,
        };
        if !FEE_END.fits(fixed) {
            return None;
        }
        let values = fixed.last_chunk::<{ FEE_END_LEN - HEADER_LEN }>()?;
        let &[_, _, _, temp_c, _, _, _, socket, _, _, _, hole, _, _, _, status, ref values @ ..] = values;
        let &[_, _, _, b0, b1, _, _, _, p0, p1, _, _, _, c0, c1, _, _, _, w0, w1, _, _, _, m0, m1, ref values @ ..] =
            values;
        let &[_, _, _, t0, t1, t2, t3, t4, t5, t6, _, _, _, end_reason, ref values @ ..] = values;
        let &[_, _, _, charge_mode, _, _, _, e0, e1, _, _, _, s0, s1, _, _, _, tier_count] = values;
        let word = |high, low| u16::from_be_bytes([high, low]);
        let report = EndReport {
            socket,
            hole,
            status: HoleStatus(status),
            business_no: word(b0, b1),
            power_dw: Some(word(p0, p1)),
            current_ma: Some(word(c0, c1)),
            energy_wh: word(w0, w1),
            charged_min: word(m0, m1),
            temp_c: Some(temp_c),
            rssi: None,
            end_reason_raw: Some(end_reason),
            spent_cent: None,
            settle_power_dw: None,
            end_time: Some(DeviceTime::from_bcd([t0, t1, t2, t3, t4, t5, t6])),
            card: None,
            electricity_fee_cent: Some(word(e0, e1)),
            service_fee_cent: Some(word(s0, s1)),
        };
        Some(Self {
            packet: Packet::of_shape(head, frame.payload),
            report,
            charge_mode: Some(charge_mode),
            tier_count: Some(tier_count),
            tier_results,
        })
    }

    /// # Errors
    /// [`DecodeError::Truncated`] naming the tag, if one is absent without which the charge cannot be settled.
    pub(super) fn read(packet: Packet<'a>) -> Result<Self, DecodeError> {
        let (mut socket, mut hole, mut status, mut business_no) = (None, None, None, None);
        let (mut energy_wh, mut charged_min) = (None, None);
        let (mut charge_mode, mut tier_count, mut tier_results) = (None, None, &[][..]);
        let mut report = EndReport {
            socket: 0,
            hole: 0,
            status: HoleStatus(0),
            business_no: 0,
            power_dw: None,
            current_ma: None,
            energy_wh: 0,
            charged_min: 0,
            temp_c: None,
            rssi: None,
            end_reason_raw: None,
            spent_cent: None,
            settle_power_dw: None,
            end_time: None,
            card: None,
            electricity_fee_cent: None,
            service_fee_cent: None,
        };
        for element in packet.elements {
            match element.key {
                key::SOCKET_NO => socket = element.u8(),
                key::HOLE => hole = element.u8(),
                key::STATUS => status = element.u8().map(HoleStatus),
                key::BUSINESS_NO => business_no = element.u16(),
                key::POWER => report.power_dw = element.u16(),
                key::CURRENT => report.current_ma = element.u16(),
                key::ENERGY => energy_wh = element.u16(),
                key::CHARGED_MIN => charged_min = element.u16(),
                key::MCU_TEMP => report.temp_c = element.u8(),
                key::RSSI => report.rssi = element.u8(),
                key::END_REASON => report.end_reason_raw = element.u8(),
                key::END_TIME => report.end_time = element.array().map(DeviceTime::from_bcd),
                key::ELECTRICITY_FEE => report.electricity_fee_cent = element.u16(),
                key::SERVICE_FEE => report.service_fee_cent = element.u16(),
                key::CHARGE_MODE => charge_mode = element.u8(),
                key::TIER_COUNT => tier_count = element.u8(),
                key::TIER_RESULTS => tier_results = element.value,
                _ => {}
            }
        }
        report.socket = need(socket, "socket_no", 1)?;
        report.hole = need(hole, "hole", 1)?;
        report.status = need(status, "status", 1)?;
        report.business_no = need(business_no, "business_no", 2)?;
        report.energy_wh = need(energy_wh, "energy_wh", 2)?;
        report.charged_min = need(charged_min, "charged_min", 2)?;
        Ok(Self { packet, report, charge_mode, tier_count, tier_results })
    }

    /// The end of a fee order, `tier_results` in the opaque form of tag 84.
    pub fn new(header: PacketHeader, report: EndReport, tier_results: &'a [u8]) -> Self {
        let tier_count = u8::try_from(tier_results.len() / TIER_RESULT_LEN).ok();
        Self {
            packet: Packet::new(packet_sub::FEE_END, header),
            report,
            charge_mode: Some(4),
            tier_count,
            tier_results,
        }
    }

    /// Appends the packet, with those values of the report that 1004 can carry.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let report = &self.report;
        write_header(out, self.packet.command, self.packet.header);
        put(out, key::MCU_TEMP, report.temp_c);
        put(out, key::SOCKET_NO, report.socket);
        put(out, key::HOLE, report.hole);
        put(out, key::STATUS, report.status);
        put(out, key::BUSINESS_NO, report.business_no);
        put(out, key::POWER, report.power_dw);
        put(out, key::CURRENT, report.current_ma);
        put(out, key::ENERGY, report.energy_wh);
        put(out, key::CHARGED_MIN, report.charged_min);
        put(out, key::END_TIME, report.end_time);
        put(out, key::END_REASON, report.end_reason_raw);
        put(out, key::CHARGE_MODE, self.charge_mode);
        put(out, key::ELECTRICITY_FEE, report.electricity_fee_cent);
        put(out, key::SERVICE_FEE, report.service_fee_cent);
        put(out, key::TIER_COUNT, self.tier_count);
        put(out, key::TIER_RESULTS, (!self.tier_results.is_empty()).then_some(self.tier_results));
        put(out, key::RSSI, report.rssi);
    }
}

/// Bytes per tier in tag 84.
const TIER_RESULT_LEN: usize = 6;

/// A packet that answers: down for 1017, 1004, 1010, 1013; up for 1007, 1011, 1012.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketReply<'a> {
    /// The packet.
    pub packet: Packet<'a>,
    /// 1 is success, 0 failure.
    pub ack: u8,
    /// Socket number; absent in the reply to 1017.
    pub socket: Option<u8>,
    /// 0 or 1.
    pub hole: Option<u8>,
    /// The device's order number; expected in the reply to 1007, which the guide does not describe.
    pub business_no: Option<u16>,
    /// The values of a 1012 reply; none in others.
    pub params: Params,
}

impl<'a> PacketReply<'a> {
    /// # Errors
    /// [`DecodeError::Truncated`] if tag 0F is absent.
    pub(super) fn read(packet: Packet<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            packet,
            ack: need(packet.u8(key::ACK), "ack", 1)?,
            socket: packet.u8(key::SOCKET_NO),
            hole: packet.u8(key::HOLE),
            business_no: packet.u16(key::BUSINESS_NO),
            params: if packet.command == packet_sub::PARAM_QUERY { Params::of(&packet) } else { Params::default() },
        })
    }

    /// A reply that says no more than success or failure.
    pub fn new(command: u16, header: PacketHeader, ok: bool) -> Self {
        Self {
            packet: Packet::new(command, header),
            ack: u8::from(ok),
            socket: None,
            hole: None,
            business_no: None,
            params: Params::default(),
        }
    }

    /// Appends the packet. The guide puts the result first or second, by the command that is answered.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        write_header(out, self.packet.command, self.packet.header);
        if matches!(self.packet.command, packet_sub::PUSH | packet_sub::FEE_START | packet_sub::FEE_END) {
            put(out, key::ACK, self.ack);
            put(out, key::SOCKET_NO, self.socket);
        } else {
            put(out, key::SOCKET_NO, self.socket);
            put(out, key::ACK, self.ack);
        }
        put(out, key::HOLE, self.hole);
        put(out, key::BUSINESS_NO, self.business_no);
        self.params.write_reply(out);
    }
}

/// 1010 up: an exception event. The guide lists no codes, so they are kept raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception<'a> {
    /// The packet.
    pub packet: Packet<'a>,
    /// Socket number.
    pub socket: u8,
    /// Event state of the socket, of hole 0 and of hole 1 (the guide's "hole 1" and "hole 2").
    pub states: [Option<u8>; 3],
    /// Event reason of the socket, of hole 0 and of hole 1.
    pub reasons: [Option<u8>; 3],
    /// Voltage at the event in 0.1 V: over- and undervoltage.
    pub voltages_dv: [Option<u16>; 2],
    /// Leakage of hole 0 and 1, unit not given.
    pub leakages: [Option<u16>; 2],
    /// Over-temperature of hole 0 and 1, presumably °C.
    pub overtemps: [Option<u8>; 2],
    /// Status byte of hole 0 and 1.
    pub statuses: [Option<HoleStatus>; 2],
}

impl<'a> Exception<'a> {
    /// # Errors
    /// [`DecodeError::Truncated`] if the socket number is absent.
    pub(super) fn read(packet: Packet<'a>) -> Result<Self, DecodeError> {
        let byte = |key| packet.u8(key);
        let word = |key| packet.u16(key);
        Ok(Self {
            packet,
            socket: need(byte(key::SOCKET_NO), "socket_no", 1)?,
            states: [key::SOCKET_EVENT_STATE, key::HOLE1_EVENT_STATE, key::HOLE2_EVENT_STATE].map(byte),
            reasons: [key::SOCKET_EVENT_REASON, key::HOLE1_EVENT_REASON, key::HOLE2_EVENT_REASON].map(byte),
            voltages_dv: [key::OVERVOLTAGE, key::UNDERVOLTAGE].map(word),
            leakages: [key::HOLE1_LEAKAGE, key::HOLE2_LEAKAGE].map(word),
            overtemps: [key::HOLE1_OVERTEMP, key::HOLE2_OVERTEMP].map(byte),
            statuses: [key::HOLE1_STATUS, key::HOLE2_STATUS].map(|key| byte(key).map(HoleStatus)),
        })
    }

    /// An event of this socket that says nothing yet.
    pub const fn new(header: PacketHeader, socket: u8) -> Self {
        Self {
            packet: Packet::new(packet_sub::EXCEPTION, header),
            socket,
            states: [None; 3],
            reasons: [None; 3],
            voltages_dv: [None; 2],
            leakages: [None; 2],
            overtemps: [None; 2],
            statuses: [None; 2],
        }
    }

    /// Appends the packet.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let [socket_state, hole1_state, hole2_state] = self.states;
        let [socket_reason, hole1_reason, hole2_reason] = self.reasons;
        let [overvoltage, undervoltage] = self.voltages_dv;
        let [hole1_leakage, hole2_leakage] = self.leakages;
        let [hole1_overtemp, hole2_overtemp] = self.overtemps;
        let [hole1_status, hole2_status] = self.statuses;
        write_header(out, self.packet.command, self.packet.header);
        put(out, key::SOCKET_NO, self.socket);
        put(out, key::SOCKET_EVENT_REASON, socket_reason);
        put(out, key::SOCKET_EVENT_STATE, socket_state);
        put(out, key::HOLE1_EVENT_REASON, hole1_reason);
        put(out, key::HOLE1_EVENT_STATE, hole1_state);
        put(out, key::HOLE2_EVENT_REASON, hole2_reason);
        put(out, key::HOLE2_EVENT_STATE, hole2_state);
        put(out, key::OVERVOLTAGE, overvoltage);
        put(out, key::UNDERVOLTAGE, undervoltage);
        put(out, key::HOLE1_LEAKAGE, hole1_leakage);
        put(out, key::HOLE2_LEAKAGE, hole2_leakage);
        put(out, key::HOLE1_OVERTEMP, hole1_overtemp);
        put(out, key::HOLE2_OVERTEMP, hole2_overtemp);
        put(out, key::HOLE1_STATUS, hole1_status);
        put(out, key::HOLE2_STATUS, hole2_status);
    }
}

/// 1013 up: not in the guide, seen in the field once per connection. Changes no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The packet.
    pub packet: Packet<'a>,
    /// Socket number, if given.
    pub socket: Option<u8>,
    /// 0x7F in the field: no single hole.
    pub hole: Option<u8>,
    /// Local time, close to the connect.
    pub event_time: Option<DeviceTime>,
    /// Tag 5A, unexplained; another value on each connection.
    pub tag_5a: Option<u16>,
}

impl<'a> Event<'a> {
    #[expect(clippy::unnecessary_wraps, reason = "the other packets can lack a tag they need")]
    pub(super) fn read(packet: Packet<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            packet,
            socket: packet.u8(key::SOCKET_NO),
            hole: packet.u8(key::HOLE),
            event_time: packet.elements.get(key::EVENT_TIME).and_then(|time| time.array()).map(DeviceTime::from_bcd),
            tag_5a: packet.u16(key::TAG_5A),
        })
    }

    /// Appends the packet.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        write_header(out, self.packet.command, self.packet.header);
        put(out, key::SOCKET_NO, self.socket);
        put(out, key::HOLE, self.hole);
        put(out, key::EVENT_TIME, self.event_time);
        put(out, key::TAG_5A, self.tag_5a);
    }
}

/// 1007 down: start with electricity and service fee, or stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeeStart<'a> {
    /// The packet.
    pub packet: Packet<'a>,
    /// Socket number.
    pub socket: u8,
    /// 0 or 1.
    pub hole: u8,
    /// 1 on, 0 off.
    pub switch: u8,
    /// 4, the fee mode, in the only example.
    pub charge_mode: Option<u8>,
    /// 1 in the only example, not explained.
    pub control_type: Option<u8>,
    /// Tag F4, 2 in the only example, not explained.
    pub tag_f4: Option<u8>,
    /// Amount paid in 0.01 yuan.
    pub paid_amount_cent: Option<u16>,
    /// 0 by time, 1 by energy.
    pub service_fee_mode: Option<u8>,
    /// Number of tiers.
    pub tier_count: Option<u8>,
    /// Tiers of the day, the last ending at 23:59; at most 42 fit.
    pub tiers: Records<'a, FeeTier>,
}

impl<'a> FeeStart<'a> {
    /// # Errors
    /// [`DecodeError::Truncated`] if socket, hole or switch is absent.
    pub(super) fn read(packet: Packet<'a>) -> Result<Self, DecodeError> {
        let tiers = packet.elements.get(key::FEE_TIERS).map_or(&[][..], |element| element.value);
        Ok(Self {
            packet,
            socket: need(packet.u8(key::SOCKET_NO), "socket_no", 1)?,
            hole: need(packet.u8(key::HOLE), "hole", 1)?,
            switch: need(packet.u8(key::SWITCH), "switch", 1)?,
            charge_mode: packet.u8(key::CHARGE_MODE),
            control_type: packet.u8(key::CONTROL_TYPE),
            tag_f4: packet.u8(key::TAG_F4),
            paid_amount_cent: packet.u16(key::PAID_AMOUNT),
            service_fee_mode: packet.u8(key::SERVICE_FEE_MODE),
            tier_count: packet.u8(key::TIER_COUNT),
            tiers: Records::new(tiers),
        })
    }

    /// Appends the packet.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        write_header(out, self.packet.command, self.packet.header);
        put(out, key::SOCKET_NO, self.socket);
        put(out, key::HOLE, self.hole);
        put(out, key::SWITCH, self.switch);
        put(out, key::CHARGE_MODE, self.charge_mode);
        put(out, key::CONTROL_TYPE, self.control_type);
        put(out, key::TAG_F4, self.tag_f4);
        put(out, key::PAID_AMOUNT, self.paid_amount_cent);
        put(out, key::SERVICE_FEE_MODE, self.service_fee_mode);
        put(out, key::TIER_COUNT, self.tier_count);
        put(out, key::FEE_TIERS, (!self.tiers.is_empty()).then_some(self.tiers.as_bytes()));
    }
}

fields! {
    /// One tier of tag 83.
    pub struct FeeTier {
        /// When the tier ends; it begins where the one before ends.
        #[serde(rename = "end_hhmm")]
        end: TimeOfDay,
        /// Electricity price in 0.01 yuan per kWh.
        electricity_cent_per_kwh: u16,
        /// Service fee: 0.01 yuan per kWh when charged by energy; the basis by time is not stated.
        service_cent_per_kwh: u16,
    }
}

/// Parameters of one socket (1011 sets any of the first seven, a 1012 reply carries all).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Params {
    /// Seconds to go on after "full".
    pub full_charge_delay_s: Option<u16>,
    /// Seconds without load before the end.
    pub no_load_delay_s: Option<u16>,
    /// Power below which a battery counts as full, 0.1 W.
    pub full_power_threshold_dw: Option<u16>,
    /// Power below which nothing is plugged in, 0.1 W.
    pub no_load_power_threshold_dw: Option<u16>,
    /// No unit given; presumably °C.
    pub high_temp_threshold: Option<u8>,
    /// Largest power, 0.1 W.
    pub power_limit_dw: Option<u16>,
    /// Largest charge, minutes.
    pub max_charge_min: Option<u16>,
    /// Largest current, mA; only reported.
    pub overcurrent_limit_ma: Option<u16>,
    /// Trickle threshold, %; only reported.
    pub trickle_threshold_pct: Option<u8>,
    /// Base amount of the push-button; only reported.
    pub key_base_amount: Option<u32>,
    /// Unit not given; only reported.
    pub anti_pulse_time: Option<u16>,
    /// Tags 98 to 9B, unexplained; only reported.
    pub tags_98_to_9b: [Option<u8>; 4],
}

impl Params {
    /// Reads whatever parameters a packet carries.
    pub fn of(packet: &Packet<'_>) -> Self {
        let mut params = Self::default();
        for element in packet.elements {
            match element.key {
                key::FULL_CHARGE_DELAY => params.full_charge_delay_s = element.u16(),
                key::NO_LOAD_DELAY => params.no_load_delay_s = element.u16(),
                key::FULL_POWER_THRESHOLD => params.full_power_threshold_dw = element.u16(),
                key::NO_LOAD_POWER_THRESHOLD => params.no_load_power_threshold_dw = element.u16(),
                key::HIGH_TEMP_THRESHOLD => params.high_temp_threshold = element.u8(),
                key::POWER_LIMIT => params.power_limit_dw = element.u16(),
                key::MAX_CHARGE_MIN => params.max_charge_min = element.u16(),
                key::OVERCURRENT_LIMIT => params.overcurrent_limit_ma = element.u16(),
                key::TRICKLE_THRESHOLD => params.trickle_threshold_pct = element.u8(),
                key::KEY_BASE_AMOUNT => params.key_base_amount = element.u32(),
                key::ANTI_PULSE_TIME => params.anti_pulse_time = element.u16(),
                key => {
                    let at = UNEXPLAINED.iter().position(|unexplained| *unexplained == key);
                    if let Some(tag) = at.and_then(|at| params.tags_98_to_9b.get_mut(at)) {
                        *tag = element.u8();
                    }
                }
            }
        }
        params
    }

    /// Appends what 1011 can set.
    fn write_set(&self, out: &mut Vec<u8>) {
        put(out, key::FULL_CHARGE_DELAY, self.full_charge_delay_s);
        put(out, key::NO_LOAD_DELAY, self.no_load_delay_s);
        put(out, key::FULL_POWER_THRESHOLD, self.full_power_threshold_dw);
        put(out, key::NO_LOAD_POWER_THRESHOLD, self.no_load_power_threshold_dw);
        put(out, key::HIGH_TEMP_THRESHOLD, self.high_temp_threshold);
        put(out, key::POWER_LIMIT, self.power_limit_dw);
        put(out, key::MAX_CHARGE_MIN, self.max_charge_min);
    }

    /// Appends what 1012 reports.
    fn write_reply(&self, out: &mut Vec<u8>) {
        put(out, key::FULL_POWER_THRESHOLD, self.full_power_threshold_dw);
        put(out, key::TRICKLE_THRESHOLD, self.trickle_threshold_pct);
        put(out, key::FULL_CHARGE_DELAY, self.full_charge_delay_s);
        put(out, key::NO_LOAD_POWER_THRESHOLD, self.no_load_power_threshold_dw);
        put(out, key::NO_LOAD_DELAY, self.no_load_delay_s);
        put(out, key::MAX_CHARGE_MIN, self.max_charge_min);
        put(out, key::HIGH_TEMP_THRESHOLD, self.high_temp_threshold);
        put(out, key::POWER_LIMIT, self.power_limit_dw);
        put(out, key::OVERCURRENT_LIMIT, self.overcurrent_limit_ma);
        put(out, key::KEY_BASE_AMOUNT, self.key_base_amount);
        put(out, key::ANTI_PULSE_TIME, self.anti_pulse_time);
        UNEXPLAINED.iter().zip(self.tags_98_to_9b).for_each(|(key, value)| put(out, *key, value));
    }
}

/// Keys of [`Params::tags_98_to_9b`].
const UNEXPLAINED: [u8; 4] = [key::TAG_98, key::TAG_99, key::TAG_9A, key::TAG_9B];

/// 1011 down: change parameters of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamSet<'a> {
    /// The packet.
    pub packet: Packet<'a>,
    /// Socket number.
    pub socket: u8,
    /// The parameters to change.
    pub params: Params,
}

impl<'a> ParamSet<'a> {
    /// # Errors
    /// [`DecodeError::Truncated`] if the socket number is absent.
    pub(super) fn read(packet: Packet<'a>) -> Result<Self, DecodeError> {
        let socket = need(packet.u8(key::SOCKET_NO), "socket_no", 1)?;
        Ok(Self { packet, socket, params: Params::of(&packet) })
    }

    /// Appends the packet; parameters that are only reported are left out.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        write_header(out, self.packet.command, self.packet.header);
        put(out, key::SOCKET_NO, self.socket);
        self.params.write_set(out);
    }
}

/// 1012 down: ask for the parameters of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamQuery<'a> {
    /// The packet.
    pub packet: Packet<'a>,
    /// Socket number.
    pub socket: u8,
}

impl<'a> ParamQuery<'a> {
    /// # Errors
    /// [`DecodeError::Truncated`] if the socket number is absent.
    pub(super) fn read(packet: Packet<'a>) -> Result<Self, DecodeError> {
        Ok(Self { packet, socket: need(packet.u8(key::SOCKET_NO), "socket_no", 1)? })
    }

    /// Appends the packet.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        write_header(out, self.packet.command, self.packet.header);
        put(out, key::SOCKET_NO, self.socket);
    }
}

/// The named values, then `tlv`: the exact tree.
impl Serialize for Packet<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        serialize_named(&mut map, self.elements)?;
        map.serialize_entry("tlv", &self.elements)?;
        map.end()
    }
}

/// One level of elements as a map: the first value of each key, containers grouped.
struct Named<'a>(Elements<'a>);

impl Serialize for Named<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        serialize_named(&mut map, self.0)?;
        map.end()
    }
}

fn serialize_named<M: SerializeMap>(map: &mut M, elements: Elements<'_>) -> Result<(), M::Error> {
    let mut seen = [false; 256];
    for element in elements {
        let seen = seen.get_mut(usize::from(element.key));
        if seen.is_some_and(|seen| std::mem::replace(seen, true)) {
            continue;
        }
        match (element.key, name(element.key)) {
            (key::SOCKET_STATUS, _) => map.serialize_entry("socket_status", &NamedSockets(elements))?,
            (key::HOLE_ATTRS, _) => map.serialize_entry("hole_attrs", &NamedHoles(elements))?,
            (_, Some(name)) => map.serialize_entry(name, &Value(element))?,
            (key, None) => map.serialize_entry(&format_args!("tag_{key:02x}"), &Value(element))?,
        }
    }
    Ok(())
}

/// All sockets of a packet: one stands alone, several make a list.
struct NamedSockets<'a>(Elements<'a>);

impl Serialize for NamedSockets<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (mut container, mut packet) = (None, self.0);
        let mut sockets = std::iter::from_fn(|| next_socket(&mut container, &mut packet)).map(Named);
        let first = sockets.next();
        let Some(second) = sockets.next() else {
            return first.serialize(serializer);
        };
        let mut list = serializer.serialize_seq(None)?;
        for socket in first.into_iter().chain([second]).chain(sockets) {
            list.serialize_element(&socket)?;
        }
        list.end()
    }
}

/// All holes of a socket.
struct NamedHoles<'a>(Elements<'a>);

impl Serialize for NamedHoles<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let holes = self.0.filter(|element| element.key == key::HOLE_ATTRS);
        serializer.collect_seq(holes.filter_map(|hole| hole.children()).map(Named))
    }
}

/// A value in the form its key asks for; as prefixed hex if its size is not the guide's.
struct Value<'a>(Element<'a>);

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let element = &self.0;
        match element.key {
            key::FRAME_SEQ | key::GATEWAY_ID | key::EVENT_TIME | key::END_TIME | key::SOCKET_FW | key::TIER_RESULTS => {
                Hex(element.value).serialize(serializer)
            }
            key::CMD | key::TAG_5A | key::TAG_98 | key::TAG_99 | key::TAG_9A | key::TAG_9B | key::TAG_F4 => {
                prefixed_hex(element, serializer)
            }
            key::STATUS | key::HOLE1_STATUS | key::HOLE2_STATUS => match element.u8() {
                Some(raw) => HoleStatus(raw).serialize(serializer),
                None => prefixed_hex(element, serializer),
            },
            key::FEE_TIERS => Records::<FeeTier>::new(element.value).serialize(serializer),
            _ if (1..=8).contains(&element.value.len()) => {
                let number = element.value.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
                serializer.serialize_u64(number)
            }
            _ => prefixed_hex(element, serializer),
        }
    }
}

fn prefixed_hex<S: Serializer>(element: &Element<'_>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("0x{}", Hex(element.value)))
}

/// The name of a key in serialised form; `None` for a key in no table.
const fn name(key: u8) -> Option<&'static str> {
    Some(match key {
        key::CMD => "cmd",
        key::FRAME_SEQ => "frame_seq",
        key::GATEWAY_ID => "gateway_id",
        key::EVENT_TIME => "event_time",
        key::MCU_TEMP => "mcu_temp_c",
        key::HOLE => "hole",
        key::STATUS => "status",
        key::BUSINESS_NO => "business_no",
        key::POWER => "power_dw",
        key::CURRENT => "current_ma",
        key::ENERGY => "energy_wh",
        key::CHARGED_MIN => "charged_min",
        key::ACK => "ack",
        key::OVERCURRENT_LIMIT => "overcurrent_limit_ma",
        key::POWER_LIMIT => "power_limit_dw",
        key::CHARGE_MODE => "charge_mode",
        key::SWITCH => "switch",
        key::FULL_CHARGE_DELAY => "full_charge_delay_s",
        key::NO_LOAD_DELAY => "no_load_delay_s",
        key::FULL_POWER_THRESHOLD => "full_power_threshold_dw",
        key::NO_LOAD_POWER_THRESHOLD => "no_load_power_threshold_dw",
        key::HIGH_TEMP_THRESHOLD => "high_temp_threshold",
        key::END_TIME => "end_time",
        key::END_REASON => "end_reason",
        key::SOCKET_FW => "socket_fw",
        key::CONTROL_TYPE => "control_type",
        key::SOCKET_NO => "socket_no",
        key::SOCKET_EVENT_STATE => "socket_event_state",
        key::HOLE1_EVENT_STATE => "hole1_event_state",
        key::HOLE2_EVENT_STATE => "hole2_event_state",
        key::OVERVOLTAGE => "overvoltage_dv",
        key::UNDERVOLTAGE => "undervoltage_dv",
        key::HOLE1_LEAKAGE => "hole1_leakage",
        key::HOLE2_LEAKAGE => "hole2_leakage",
        key::HOLE1_OVERTEMP => "hole1_overtemp",
        key::HOLE2_OVERTEMP => "hole2_overtemp",
        key::SOCKET_EVENT_REASON => "socket_event_reason",
        key::HOLE1_EVENT_REASON => "hole1_event_reason",
        key::HOLE2_EVENT_REASON => "hole2_event_reason",
        key::HOLE1_STATUS => "hole1_status",
        key::HOLE2_STATUS => "hole2_status",
        key::MAX_CHARGE_MIN => "max_charge_min",
        key::TRICKLE_THRESHOLD => "trickle_threshold_pct",
        key::KEY_BASE_AMOUNT => "key_base_amount",
        key::SERVICE_FEE_MODE => "service_fee_mode",
        key::FEE_TIERS => "fee_tiers",
        key::TIER_RESULTS => "tier_results",
        key::ELECTRICITY_FEE => "electricity_fee_cent",
        key::SERVICE_FEE => "service_fee_cent",
        key::PAID_AMOUNT => "paid_amount_cent",
        key::TIER_COUNT => "tier_count",
        key::ANTI_PULSE_TIME => "anti_pulse_time",
        key::VOLTAGE => "voltage_dv",
        key::RSSI => "rssi",
        _ => return None,
    })
}
