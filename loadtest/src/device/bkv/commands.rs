//! What the server sends: answers to reports, and commands with their replies.

use std::net::Ipv4Addr;

use chargegate::protocol::Direction;
use chargegate::protocol::bkv::body::{HoleResult, Ota, SocketEntry, StartReply, VoiceSet};
use chargegate::protocol::bkv::command::{CONTROL, NETWORK, packet_sub, sub};
use chargegate::protocol::bkv::packet::{Exception, Packet, PacketHeader, Params};
use chargegate::protocol::bkv::{Body, Frame, HoleStatus, decode_body, device};
use chargegate::protocol::clock::DeviceTime;

use super::charging::{Kind, Levels, Order};
use super::{
    BkvDevice, DOWNLOAD_US, END_AGAIN_US, END_TRIES, Fault, NEVER, QueryReply, Request, SOCKETS_MAX, Socket, TEMP_C,
    Voice,
};
use crate::device::Event;
use crate::device::ledger::State;

/// Socket number of a voice command for every socket.
const ALL_SOCKETS: u8 = 254;
/// Most exceptions that wait for their acknowledgement.
const EXCEPTIONS_MAX: usize = 16;

/// What is wrong with a socket, for 1010. The guide lists no codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Socket number.
    pub socket: u8,
    /// Event reason of the socket, of hole 0 and of hole 1; 0 = none.
    pub reasons: [u8; 3],
    /// Voltage in 0.1 V.
    pub voltage_dv: u16,
    /// Leakage of hole 0 and 1.
    pub leakages: [u16; 2],
}

impl Trouble {
    /// Trouble of the whole socket.
    pub const fn of_socket(socket: u8, reason: u8) -> Self {
        Self { socket, reasons: [reason, 0, 0], voltage_dv: 2275, leakages: [0; 2] }
    }
}

impl BkvDevice {
    pub(super) fn handle_frame(&mut self, now_us: u64, frame: &Frame<'_>) {
        if frame.direction != Direction::Down || frame.gateway_id != self.gateway_id {
            self.events.push(Event::Malformed);
            return;
        }
        let Ok(body) = decode_body(frame) else {
            self.events.push(Event::Malformed);
            return;
        };
        match &body {
            // The guide's text and its example put 17 under different command words; devices may know either.
            Body::Unread(inner, _) if frame.command == NETWORK && inner.sub == sub::POWER_START => {
                self.handle_frame(now_us, &Frame { command: CONTROL, ..*frame });
            }
            Body::HeartbeatReply(reply) => self.handle_time(now_us, reply.server_time_bcd.0),
            Body::BalanceReply(_, reply) => self.handle_balance(now_us, reply),
            Body::CardOrder(_, order) => self.handle_card_order(now_us, frame.sequence, order),
            Body::EndAck(_, ack) if ack.result == 1 => self.settled(now_us, ack.socket),
            Body::PacketReply(reply) if reply.ack == 1 => match reply.packet.command {
                packet_sub::PUSH => {
                    if let Some(sent_us) = self.pushes.pop_front() {
                        self.events.push(Event::Answered(Request::StatusPush, now_us.saturating_sub(sent_us)));
                    }
                }
                packet_sub::FEE_END => self.settled(now_us, reply.socket.unwrap_or_default()),
                packet_sub::EVENT => {
                    self.answered(now_us, Request::TimedEvent);
                }
                packet_sub::EXCEPTION => self.exception_answered(now_us, reply.socket),
                _ => {}
            },
            // Refused: the report goes again.
            Body::EndAck(..) | Body::PacketReply(_) => {}
            command => {
                self.events.push(Event::Command);
                let start = self.out.len();
                self.handle_command(now_us, frame, command);
                if sub_of(command).is_some_and(|sub| self.faults.is(Fault::ReplyLost(sub))) {
                    self.out.truncate(start);
                }
            }
        }
    }

    fn handle_time(&mut self, now_us: u64, bcd: [u8; 7]) {
        self.clock = DeviceTime::from_bcd(bcd).to_unix().map(|unix_s| (now_us, unix_s)).or(self.clock);
        if self.answered(now_us, Request::Heartbeat) && !self.registered {
            self.registered = true;
            self.events.push(Event::Registered);
        }
    }

    fn handle_command(&mut self, now_us: u64, frame: &Frame<'_>, body: &Body<'_>) {
        let (id, sequence) = (self.gateway_id, frame.sequence);
        let refused = sub_of(body).is_some_and(|sub| self.faults.is_refused(sub));
        match body {
            Body::SocketQuery(_, query) => self.answer_query(now_us, sequence, query.socket),
            Body::Start(_, start) => {
                let limits = match start.mode {
                    1 => self.limits(start.socket, Some(u32::from(start.minutes)), None),
                    _ => self.limits(start.socket, None, Some(start.energy_wh)),
                };
                let at = [start.socket, start.hole, start.switch];
                let reply = self.switch_unless(refused, now_us, at, |_| (limits, Order::PLAIN));
                device::start_reply(&mut self.out, id, sequence, sub::START, &reply);
            }
            Body::PowerStart(_, start) => {
                let order = Order { kind: Kind::Power(Levels::of(&start.tariff)), card: None };
                let at = [start.socket, start.hole, start.switch];
                let socket = start.socket;
                let reply = self.switch_unless(refused, now_us, at, |own| (own.limits(socket, None, None), order));
                device::start_reply(&mut self.out, id, sequence, sub::POWER_START, &reply);
            }
            Body::FeeStart(start) => {
                let at = [start.socket, start.hole, start.switch];
                let order = |own: &mut Self| (own.limits(start.socket, None, None), own.fee_order(now_us, start));
                let reply = self.switch_unless(refused, now_us, at, order);
                device::fee_start_reply(&mut self.out, id, sequence, &reply);
            }
            Body::SocketList(_, list) => {
                let ok = !refused && (1..=15).contains(&list.channel) && self.replace_sockets(list.sockets);
                self.network_changed(now_us, sequence, sub::SOCKET_LIST, ok);
            }
            Body::SocketAdd(_, entry) => {
                let ok = !refused && self.add_socket(*entry);
                self.network_changed(now_us, sequence, sub::SOCKET_ADD, ok);
            }
            Body::SocketDelete(_, deleted) => {
                let ok = !refused && self.delete_socket(deleted.socket);
                self.network_changed(now_us, sequence, sub::SOCKET_DELETE, ok);
            }
            Body::VoiceSet(_, voice) => {
                let ok = !refused && self.set_voice(voice);
                let reply = HoleResult { socket: voice.socket, hole: voice.hole, result: u8::from(ok) };
                device::voice_reply(&mut self.out, id, sequence, &reply);
            }
            Body::ParamSet(set) => {
                let known = self.sockets.iter_mut().find(|socket| socket.number == set.socket && !refused);
                let ok = known.map(|socket| merge(&mut socket.params, &set.params)).is_some();
                device::param_set_reply(&mut self.out, id, sequence, set.socket, ok);
            }
            Body::ParamQuery(query) => {
                let params = self.parameters(query.socket).filter(|_| !refused);
                let (ok, params) = (params.is_some(), params.unwrap_or_default());
                device::param_query_reply(&mut self.out, id, sequence, query.socket, ok, &params);
            }
            Body::Ota(ota) => self.download(now_us, ota),
            // Everything else has no reply.
            _ => {}
        }
    }

    fn switch_unless(
        &mut self,
        refused: bool,
        now_us: u64,
        at: [u8; 3],
        order: impl FnOnce(&mut Self) -> (crate::device::charge::Limits, Order),
    ) -> StartReply {
        if refused {
            if at[2] != 0 {
                self.events.push(Event::ChargeRefused(0));
            }
            return StartReply { result: 0, socket: at[0], hole: at[1], business_no: 0 };
        }
        let (limits, order) = order(self);
        self.switch(now_us, at, limits, order)
    }

    /// 1D: a socket that is unknown or out of reach does not answer.
    fn answer_query(&mut self, now_us: u64, sequence: u32, number: u8) {
        let Some(at) = self.sockets.iter().position(|socket| socket.number == number && socket.online) else { return };
        let sub = match self.options.query_reply {
            QueryReply::Sub1C => sub::SOCKET_REPLY,
            QueryReply::Sub1D => sub::SOCKET_QUERY,
            QueryReply::Push => return self.push(now_us, at),
        };
        let voltage_dv = self.voltage_dv();
        if let Some(socket) = self.sockets.get(at) {
            let holes = socket.blocks(now_us, voltage_dv);
            device::socket_reply(&mut self.out, self.gateway_id, sequence, sub, &socket.body(&holes));
        }
    }

    /// 08. False, and nothing changes, if a number is out of range.
    fn replace_sockets(&mut self, entries: impl Iterator<Item = SocketEntry> + Clone) -> bool {
        if entries.clone().any(|entry| !(1..=SOCKETS_MAX).contains(&entry.socket)) {
            return false;
        }
        let mut before = std::mem::take(&mut self.sockets);
        for entry in entries {
            if self.sockets.iter().any(|socket| socket.number == entry.socket) {
                continue;
            }
            let kept = before.iter().position(|socket| socket.number == entry.socket);
            let fresh = || Socket::new(entry.socket, self.index, &self.behaviour);
            let mut socket = kept.map_or_else(fresh, |at| before.swap_remove(at));
            socket.mac = entry.mac.0;
            self.sockets.push(socket);
        }
        before.iter().for_each(|socket| self.forget(socket));
        true
    }

    /// 09.
    fn add_socket(&mut self, entry: SocketEntry) -> bool {
        if !(1..=SOCKETS_MAX).contains(&entry.socket) {
            return false;
        }
        if let Some(known) = self.sockets.iter_mut().find(|socket| socket.number == entry.socket) {
            known.mac = entry.mac.0;
            return true;
        }
        // A device with a network list is no longer standalone.
        self.sockets.retain(|socket| socket.number != 0);
        let mut socket = Socket::new(entry.socket, self.index, &self.behaviour);
        socket.mac = entry.mac.0;
        self.sockets.push(socket);
        true
    }

    /// 0A.
    fn delete_socket(&mut self, number: u8) -> bool {
        let Some(at) = self.sockets.iter().position(|socket| socket.number == number) else { return false };
        let socket = self.sockets.remove(at);
        self.forget(&socket);
        true
    }

    /// What a socket charges that is no longer in the network is never reported.
    fn forget(&mut self, socket: &Socket) {
        for running in socket.holes.iter().filter_map(|hole| hole.running.as_ref()) {
            self.ledger.set(running.entry(), State::Erased);
        }
    }

    fn network_changed(&mut self, now_us: u64, sequence: u32, sub: u8, ok: bool) {
        device::network_result(&mut self.out, self.gateway_id, sequence, sub, ok);
        if ok {
            self.sockets.iter_mut().for_each(|socket| socket.push_us = now_us);
        }
    }

    fn set_voice(&mut self, set: &VoiceSet<'_>) -> bool {
        let periods: Vec<_> = set.periods.collect();
        if set.buzzer > 1 || set.voice > 1 || periods.len() > 2 {
            return false;
        }
        let sockets = self.sockets.iter_mut().filter(|socket| set.socket == ALL_SOCKETS || socket.number == set.socket);
        let mut any = false;
        for socket in sockets {
            any = true;
            socket.voice = Some(Voice { buzzer: set.buzzer == 1, voice: set.voice == 1, periods: periods.clone() });
        }
        any
    }

    /// 0007: the file is fetched, and runs after a restart.
    fn download(&mut self, now_us: u64, ota: &Ota<'_>) {
        if ota.target != Ota::GATEWAY {
            return;
        }
        self.download = Some(Download {
            ftp_ip: ota.ftp_ip,
            ftp_port: ota.ftp_port,
            file: ota.file.as_bytes().to_vec(),
            done_us: now_us.saturating_add(DOWNLOAD_US),
        });
    }

    pub(super) fn download_timeout(&mut self, now_us: u64) {
        let Some(download) = self.download.as_mut().filter(|download| download.done_us <= now_us) else { return };
        download.done_us = NEVER;
        if self.faults.is(Fault::DownloadFails) {
            return;
        }
        self.fw_minor = self.fw_minor.wrapping_add(1);
        self.closing = true;
    }

    /// Sends 1010 and repeats it like an end report, three times in all; the guide shows no repetition. False without a
    /// connection.
    pub fn exception(&mut self, now_us: u64, trouble: Trouble) -> bool {
        if !self.connected {
            return false;
        }
        if self.troubles.len() == EXCEPTIONS_MAX {
            self.troubles.pop_front();
        }
        self.troubles.push_back((trouble, 0));
        if self.exception.due_us == NEVER {
            self.send_exception(now_us);
        }
        true
    }

    pub(super) fn send_exception(&mut self, now_us: u64) {
        if self.troubles.front().is_some_and(|(_, tries)| *tries == END_TRIES) {
            self.troubles.pop_front();
        }
        let Some((trouble, tries)) = self.troubles.front_mut() else {
            self.exception.due_us = NEVER;
            if self.exception.waiting.take().is_some() {
                self.events.push(Event::Unanswered(Request::Exception));
            }
            return;
        };
        *tries += 1;
        let trouble = *trouble;
        let socket = self.sockets.iter().find(|socket| socket.number == trouble.socket);
        let statuses = [0, 1].map(|hole: usize| {
            socket.and_then(|socket| socket.holes.get(hole)).map_or(HoleStatus(0), |hole| hole.status())
        });
        let exception = Exception {
            packet: Packet::new(packet_sub::EXCEPTION, PacketHeader::new(0, self.gateway_id)),
            socket: trouble.socket,
            states: trouble.reasons.map(|reason| Some(u8::from(reason != 0))),
            reasons: trouble.reasons.map(Some),
            voltages_dv: [Some(trouble.voltage_dv); 2],
            leakages: trouble.leakages.map(Some),
            overtemps: [Some(TEMP_C); 2],
            statuses: statuses.map(Some),
        };
        device::exception(&mut self.out, self.gateway_id, &exception);
        self.sent(now_us, Request::Exception, END_AGAIN_US);
    }

    fn exception_answered(&mut self, now_us: u64, socket: Option<u8>) {
        let is_it =
            self.troubles.front().is_some_and(|(trouble, _)| socket.is_none_or(|socket| socket == trouble.socket));
        if is_it && self.answered(now_us, Request::Exception) {
            self.troubles.pop_front();
            self.exception.due_us = if self.troubles.is_empty() { NEVER } else { now_us };
        }
    }

    /// Parameters of a socket.
    pub fn parameters(&self, socket: u8) -> Option<Params> {
        self.sockets.iter().find(|known| known.number == socket).map(|socket| socket.params)
    }
}

/// A file to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Download {
    /// FTP server.
    pub ftp_ip: Ipv4Addr,
    /// Its port.
    pub ftp_port: u16,
    /// Name of the file.
    pub file: Vec<u8>,
    pub(super) done_us: u64,
}

/// The sub-command under which faults know a command.
const fn sub_of(body: &Body<'_>) -> Option<u16> {
    Some(match body {
        Body::SocketList(inner, _) => inner.sub as u16,
        Body::SocketAdd(inner, _) => inner.sub as u16,
        Body::SocketDelete(inner, _) | Body::SocketQuery(inner, _) => inner.sub as u16,
        Body::Start(inner, _) => inner.sub as u16,
        Body::PowerStart(inner, _) => inner.sub as u16,
        Body::VoiceSet(inner, _) => inner.sub as u16,
        Body::FeeStart(_) => packet_sub::FEE_START,
        Body::ParamSet(_) => packet_sub::PARAM_SET,
        Body::ParamQuery(_) => packet_sub::PARAM_QUERY,
        _ => return None,
    })
}

fn merge(params: &mut Params, set: &Params) {
    params.full_charge_delay_s = set.full_charge_delay_s.or(params.full_charge_delay_s);
    params.no_load_delay_s = set.no_load_delay_s.or(params.no_load_delay_s);
    params.full_power_threshold_dw = set.full_power_threshold_dw.or(params.full_power_threshold_dw);
    params.no_load_power_threshold_dw = set.no_load_power_threshold_dw.or(params.no_load_power_threshold_dw);
    params.high_temp_threshold = set.high_temp_threshold.or(params.high_temp_threshold);
    params.power_limit_dw = set.power_limit_dw.or(params.power_limit_dw);
    params.max_charge_min = set.max_charge_min.or(params.max_charge_min);
}
