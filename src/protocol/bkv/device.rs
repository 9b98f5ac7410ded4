//! Frames a gateway sends, for simulators and tests. Same conventions as [`encode`](super::encode).

use super::body::{CardEnd, ChargeEnd, EndBlock, PowerEnd, StartReply, Usage};
use super::clock::DeviceTime;
use super::command::{CONTROL, HEARTBEAT, NETWORK, packet_sub, sub};
use super::encode::{count, frame, inner, packet, words};
use super::frame::GatewayId;
use super::packet::PacketHeader;
use super::report::{EndReport, HoleBlock};
use super::tlv::{self, key};
use crate::protocol::Direction::Up;

/// A heartbeat; `iccid` is cut or padded to 20 characters, `fw` to 8.
pub fn heartbeat(out: &mut Vec<u8>, gateway_id: GatewayId, iccid: &str, fw: &str, rssi: u8) {
    frame(out, Up, HEARTBEAT, 0, gateway_id, |out| {
        out.extend(padded(iccid, 20).chain(padded(fw, 8)));
        out.push(rssi);
    });
}

fn padded(text: &str, width: usize) -> impl Iterator<Item = u8> {
    text.bytes().chain(std::iter::repeat(0)).take(width)
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
            tlv::write_with(out, key::SOCKET_STATUS, |out| socket_elements(out, socket));
        }
    });
}

fn socket_elements(out: &mut Vec<u8>, socket: &Socket<'_>) {
    tlv::write(out, key::SOCKET_NO, &[socket.socket]);
    tlv::write(out, key::SOCKET_FW, &socket.fw);
    tlv::write(out, key::MCU_TEMP, &[socket.temp_c]);
    tlv::write(out, key::RSSI, &[socket.rssi]);
    for block in socket.holes {
        tlv::write_with(out, key::HOLE_ATTRS, |out| {
            tlv::write(out, key::HOLE, &[block.hole]);
            tlv::write(out, key::STATUS, &[block.status.0]);
            tlv::write(out, key::BUSINESS_NO, &block.business_no.to_be_bytes());
            tlv::write(out, key::VOLTAGE, &block.voltage_dv.to_be_bytes());
            tlv::write(out, key::POWER, &block.power_dw.to_be_bytes());
            tlv::write(out, key::CURRENT, &block.current_ma.to_be_bytes());
            tlv::write(out, key::ENERGY, &block.energy_wh.to_be_bytes());
            tlv::write(out, key::CHARGED_MIN, &block.charged_min.to_be_bytes());
        });
    }
}

/// The reply to a socket query; `sub` is 1C as in the guide's frame or 1D as in its text.
pub fn socket_reply(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, sub: u8, socket: &Socket<'_>) {
    inner(out, Up, CONTROL, sequence, gateway_id, sub, |out| {
        out.push(socket.socket);
        out.extend_from_slice(&socket.fw);
        out.extend_from_slice(&[socket.temp_c, socket.rssi]);
        for block in socket.holes {
            out.extend_from_slice(&[block.hole, block.status.0]);
            words(out, [block.business_no, block.voltage_dv, block.power_dw]);
            words(out, [block.current_ma, block.energy_wh, block.charged_min]);
        }
    });
}

/// The reply to a start or stop; `sub` is that of the command, 07 or 17.
pub fn start_reply(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, sub: u8, reply: &StartReply) {
    inner(out, Up, CONTROL, sequence, gateway_id, sub, |out| {
        out.extend_from_slice(&[reply.result, reply.socket, reply.hole]);
        words(out, [reply.business_no]);
    });
}

/// The reply to a fee start, in the assumed form: 0F, 4A, 08, 0A.
pub fn fee_start_reply(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, reply: &StartReply) {
    let header = PacketHeader::new(sequence, gateway_id);
    packet(out, Up, sequence, gateway_id, header, packet_sub::FEE_START, |out| {
        tlv::write(out, key::ACK, &[reply.result]);
        tlv::write(out, key::SOCKET_NO, &[reply.socket]);
        tlv::write(out, key::HOLE, &[reply.hole]);
        tlv::write(out, key::BUSINESS_NO, &reply.business_no.to_be_bytes());
    });
}

/// The reply to a change of the network list; `sub` is that of the command.
pub fn network_result(out: &mut Vec<u8>, gateway_id: GatewayId, sequence: u32, sub: u8, ok: bool) {
    inner(out, Up, NETWORK, sequence, gateway_id, sub, |out| out.push(u8::from(ok)));
}

/// The end of an order by time or energy.
pub fn charge_end(out: &mut Vec<u8>, gateway_id: GatewayId, end: &ChargeEnd) {
    inner(out, Up, CONTROL, 0, gateway_id, sub::CHARGE_END, |out| end_block(out, &end.block));
}

/// The end of an order by power tiers.
pub fn power_end(out: &mut Vec<u8>, gateway_id: GatewayId, end: &PowerEnd<'_>) {
    inner(out, Up, CONTROL, 0, gateway_id, sub::POWER_END, |out| {
        end_block(out, &end.block);
        out.extend_from_slice(&end.end_time.to_binary());
        out.push(end.end_reason);
        usage(out, &end.usage);
    });
}

/// The end of an order paid by card.
pub fn card_end(out: &mut Vec<u8>, gateway_id: GatewayId, end: &CardEnd<'_>) {
    inner(out, Up, CONTROL, 0, gateway_id, sub::CARD_END, |out| {
        end_block(out, &end.block);
        out.extend_from_slice(&end.card.0);
        out.extend_from_slice(&[end.card_type, end.mode]);
        usage(out, &end.usage);
    });
}

fn end_block(out: &mut Vec<u8>, block: &EndBlock) {
    out.push(block.socket);
    out.extend_from_slice(&block.fw.0);
    out.extend_from_slice(&[block.temp_c, block.rssi, block.hole, block.status.0]);
    words(out, [block.business_no, block.power_dw, block.current_ma, block.energy_wh, block.charged_min]);
}

fn usage(out: &mut Vec<u8>, usage: &Usage<'_>) {
    words(out, [usage.spent_cent, usage.settle_power_dw]);
    out.push(count(usage.level_minutes.len()));
    words(out, usage.level_minutes);
}

/// The end of an order with fees, from the values of `report` that 1004 carries; `tier_results` is opaque.
pub fn fee_end(out: &mut Vec<u8>, gateway_id: GatewayId, report: &EndReport, tier_results: &[u8]) {
    packet(out, Up, 0, gateway_id, PacketHeader::new(0, gateway_id), packet_sub::FEE_END, |out| {
        let byte = |out: &mut Vec<u8>, key, value: Option<u8>| {
            if let Some(value) = value {
                tlv::write(out, key, &[value]);
            }
        };
        let word = |out: &mut Vec<u8>, key, value: Option<u16>| {
            if let Some(value) = value {
                tlv::write(out, key, &value.to_be_bytes());
            }
        };
        byte(out, key::MCU_TEMP, report.temp_c);
        byte(out, key::SOCKET_NO, Some(report.socket));
        byte(out, key::HOLE, Some(report.hole));
        byte(out, key::STATUS, Some(report.status.0));
        word(out, key::BUSINESS_NO, Some(report.business_no));
        word(out, key::POWER, report.power_dw);
        word(out, key::CURRENT, report.current_ma);
        word(out, key::ENERGY, Some(report.energy_wh));
        word(out, key::CHARGED_MIN, Some(report.charged_min));
        if let Some(time) = report.end_time {
            tlv::write(out, key::END_TIME, &DeviceTime::to_bcd(time));
        }
        byte(out, key::END_REASON, report.end_reason_raw);
        byte(out, key::CHARGE_MODE, Some(4));
        word(out, key::ELECTRICITY_FEE, report.electricity_fee_cent);
        word(out, key::SERVICE_FEE, report.service_fee_cent);
        tlv::write(out, key::TIER_COUNT, &[count(tier_results.len() / 6)]);
        tlv::write(out, key::TIER_RESULTS, tier_results);
    });
}
