//! What the server sends: answers to requests, and commands with their replies.

use chargegate::protocol::ap3000::body::{
    Body, CabinetStop, CabinetStopReply, ChargeControlReply, EepromReadReply, FirmwareUpdateRequest, OtaPacket,
    OtaReply, ReservedFdReply,
};
use chargegate::protocol::ap3000::codes::{ChargeResult, UpdateResult};
use chargegate::protocol::ap3000::encode::{self, Header};
use chargegate::protocol::ap3000::wire::{Extra, Raw};
use chargegate::protocol::ap3000::{Frame, Reply, decode_body, lookup};
use chargegate::protocol::{DecodeError, Direction};

use super::firmware::{ASK_EVERY_US, Accepts, Ack};
use super::model::{Fault, Faults};
use super::{Ap3000Device, Closing, Line, Request, SECOND_US};
use crate::device::Event;

/// A device that downloads by itself is done after this long.
const DOWNLOAD_US: u64 = 60 * SECOND_US;

impl Ap3000Device {
    /// A frame with this device's id.
    pub(super) fn handle_frame(&mut self, now_us: u64, frame: &Frame<'_>) {
        if self.closing == Closing::PowerCut {
            return;
        }
        match self.handle_answer(now_us, frame) {
            Ok(true) => return,
            Ok(false) => {}
            Err(_) => return self.line.events.push(Event::Malformed),
        }
        if self.line.repeat(frame) {
            return;
        }
        let start = self.line.out.len();
        match decode_body(frame, Direction::Down) {
            Ok(body) => {
                self.line.events.push(Event::Command);
                self.handle_command(now_us, frame, &body);
            }
            Err(_) => self.line.events.push(Event::Malformed),
        }
        self.line.remember(frame, start);
        if self.faults.is(Fault::ReplyLost(frame.command)) {
            self.line.out.truncate(start);
        }
    }

    /// Whether the frame answers a request of ours.
    fn handle_answer(&mut self, now_us: u64, frame: &Frame<'_>) -> Result<bool, DecodeError> {
        let request = match frame.command {
            0x20 => Request::Registration,
            0x01 | 0x21 => Request::Heartbeat,
            0x22 => Request::Time,
            0x12 => Request::HostTime,
            0x03 => Request::Settlement,
            0x02 => Request::Card,
            0x04 => Request::OrderConfirm,
            _ => return Ok(false),
        };
        let (msg_id, body) = (frame.msg_id, decode_body(frame, Direction::Down)?);
        match body {
            Body::CardReply(reply) => self.handle_card_reply(now_us, msg_id, &reply),
            Body::OrderConfirmReply(reply) => self.confirmed(now_us, msg_id, reply.port, reply.result),
            Body::TimeReply(time) => self.handle_time(now_us, request, msg_id, time.timestamp),
            Body::ResultReply(reply) => self.handle_result(now_us, request, msg_id, reply.result),
            _ => {}
        }
        Ok(true)
    }

    fn handle_command(&mut self, now_us: u64, frame: &Frame<'_>, body: &Body<'_>) {
        let (header, command) = (frame.header(), frame.command);
        if let Some(result) = self.faults.take(|fault| match fault {
            Fault::Refused(refused, result) if refused == command => Some(result),
            _ => None,
        }) {
            return self.refuse_command(&header, body, command, result);
        }
        let result = match body {
            Body::ChargeControl(control) => {
                let reply = self.charge_control(now_us, control);
                return encode::charge_control_reply(&mut self.line.out, &header, &reply);
            }
            Body::CabinetStop(stop) => return self.cabinet_stop(now_us, &header, stop),
            Body::EepromRead(read) => return self.eeprom_read(&header, read),
            Body::OtaPacket(packet) => return self.handle_packet(now_us, &header, command, packet),
            Body::ReservedFd(fd) => {
                let result = u8::from(!(1..=2).contains(&fd.function));
                let reply = ReservedFdReply { function: fd.function, result, extra: Extra::NONE };
                return self.line.write(&header, command, &reply);
            }
            Body::Empty(_) => return self.handle_empty(now_us, &header, command),
            Body::ModifyCharge(modify) => self.modify_charge(now_us, modify),
            Body::Params11(params) => self.set_params_1_1(now_us, params),
            Body::Params12(params) => self.set_params_1_2(params),
            Body::Params13(params) => self.set_mute(params.mute),
            Body::Limits(limits) => self.set_limits(limits),
            Body::UserCard(card) => self.set_user_card(card),
            Body::PlayVoice(voice) => self.play_voice(voice),
            Body::EepromWrite(write) => self.eeprom_write(write),
            Body::WorkMode(mode) => self.set_work_mode(now_us, mode.work_mode),
            Body::TcMode(mode) => self.set_tc_mode(mode.tc_mode),
            Body::QrUrl(qr) => self.set_qr_url(qr),
            Body::TemporaryQr(qr) => {
                self.panel.temporary_qr = qr.qr_text.as_bytes().to_vec();
                0
            }
            Body::LocateDevice(locate) => {
                self.panel.located_until_us = now_us.saturating_add(u64::from(locate.locate_s) * SECOND_US);
                0
            }
            Body::MultiFunction(function) => self.multi_function(now_us, function),
            // Commands for hosts, and those without meaning.
            _ => return,
        };
        self.line.result(&header, command, result);
    }

    fn handle_empty(&mut self, now_us: u64, header: &Header, command: u8) {
        let parameters = |device: &Self| device.parameters();
        match command {
            0x81 => self.report_status(now_us),
            0x87 => {
                self.line.result(header, command, 0);
                self.closing = Closing::Reboot;
            }
            0x88 => {
                self.clear_storage(now_us);
                self.line.result(header, command, 0);
            }
            0x90 => self.line.write(header, command, &parameters(self).params_1_1),
            0x91 => self.line.write(header, command, &parameters(self).params_1_2),
            0x92 => self.line.write(header, command, &parameters(self).limits),
            0x93 => self.line.write(header, command, &parameters(self).user_card),
            0xe4 => self.update.get_or_insert_default().download(now_us.saturating_add(DOWNLOAD_US), self.fw_version),
            _ => {}
        }
    }

    /// A reply with a result that a test asked for.
    fn refuse_command(&mut self, header: &Header, body: &Body<'_>, command: u8, result: u8) {
        match body {
            Body::ChargeControl(control) => {
                let reply = ChargeControlReply {
                    result: ChargeResult(result),
                    order_no: Some(control.order_no),
                    port: Some(control.port),
                    pending_ports: None,
                    extra: Extra::NONE,
                };
                let reply = if control.charge_cmd == 1 { self.refuse(reply) } else { reply };
                encode::charge_control_reply(&mut self.line.out, header, &reply);
            }
            Body::CabinetStop(CabinetStop { order_no, .. }) => {
                let reply = CabinetStopReply { result, order_no: Raw(order_no.0), extra: Extra::NONE };
                self.line.write(header, command, &reply);
            }
            Body::EepromRead(_) => {
                let reply = EepromReadReply { result, eeprom_data: None, extra: Extra::NONE };
                self.line.write(header, command, &reply);
            }
            Body::OtaPacket(packet) => {
                let reply = OtaReply { result: UpdateResult(result), packet_no: packet.packet_no, extra: Extra::NONE };
                self.line.write(header, command, &reply);
            }
            Body::ReservedFd(fd) => {
                let reply = ReservedFdReply { function: fd.function, result, extra: Extra::NONE };
                self.line.write(header, command, &reply);
            }
            // Queries have no result to refuse with: 0x90 to 0x93 are not answered then, like those without a reply.
            _ if (0x90..=0x93).contains(&command) => {}
            _ if lookup(command).is_some_and(|row| matches!(row.reply, Reply::Mandatory | Reply::BestEffort)) => {
                self.line.result(header, command, result);
            }
            _ => {}
        }
    }

    /// E0, E1 or F8; those that are not for this model are not answered.
    fn handle_packet(&mut self, now_us: u64, header: &Header, command: u8, packet: &OtaPacket<'_>) {
        let fw_version = match command {
            0xe1 if self.power_board_version > 0 => self.power_board_version,
            command if command == self.model.update_command => self.fw_version,
            _ => return,
        };
        let accepts = Accepts {
            device_type: self.model.device_type,
            fw_version,
            wants_check_packet: self.model.wants_check_packet,
        };
        let update = self.update.get_or_insert_default();
        match take_packet(&mut self.line, &mut self.faults, update, (now_us, *header, command), packet, accepts) {
            Taken::Kept => {}
            Taken::GaveUp => {
                self.ask_for_update(now_us);
            }
            Taken::PowerCut => {
                self.closing = Closing::PowerCut;
                self.line.out.clear();
            }
        }
    }

    /// Asks the server to begin an update: again after a failure, or on demand. Legacy devices send 0x05, others their
    /// update command with packet 0.
    pub fn ask_for_update(&mut self, now_us: u64) -> bool {
        if !self.connected {
            return false;
        }
        let update = self.update.get_or_insert_default();
        update.ask_us = now_us.saturating_add(ASK_EVERY_US);
        let header = self.line.header(now_us);
        if self.model.update_command == 0xf8 {
            let request = FirmwareUpdateRequest {
                device_type: Some(self.model.device_type),
                fw_version: Some(self.fw_version),
                package_type: Some(u32::from(self.model.device_type)),
                extra: Extra::NONE,
            };
            self.line.write(&header, 0x05, &request);
        } else {
            ask_for_first(&mut self.line, &header, self.model.update_command);
        }
        true
    }
}

/// What became of a firmware packet.
pub(super) enum Taken {
    /// It was acknowledged, or the acknowledgement got lost.
    Kept,
    /// The device wants to begin anew.
    GaveUp,
    /// Power failed.
    PowerCut,
}

/// Takes a firmware packet with all that may go wrong, and acknowledges it.
pub(super) fn take_packet(
    line: &mut Line,
    faults: &mut Faults,
    update: &mut super::firmware::Update,
    (now_us, header, command): (u64, Header, u8),
    packet: &OtaPacket<'_>,
    accepts: Accepts,
) -> Taken {
    let packet_no = packet.packet_no;
    if faults.is(Fault::UpdatePowerCut(packet_no)) {
        return Taken::PowerCut;
    }
    let refused = faults.take(|fault| match fault {
        Fault::UpdateRefused(no, result) if no == packet_no => Some(result),
        _ => None,
    });
    let ack = match refused {
        Some(result) => update.failed(command, packet_no, result),
        None => update.packet(now_us, command, packet, accepts),
    };
    if faults.is(Fault::UpdateAckLost(packet_no)) {
        return Taken::Kept;
    }
    let Ack { result, packet_no, gave_up } = ack;
    line.write(&header, command, &OtaReply { result, packet_no, extra: Extra::NONE });
    if gave_up { Taken::GaveUp } else { Taken::Kept }
}

/// Packet 0 under an update command: "start at packet 1".
pub(super) fn ask_for_first(line: &mut Line, header: &Header, command: u8) {
    line.write(header, command, &OtaReply { result: UpdateResult::OK, packet_no: 0, extra: Extra::NONE });
}
