//! A BKV gateway with its sockets (integration guide V1.7; delays as seen in the field).
//!
//! ```text
//! connect ─ 2 s ─> heartbeat ─ 0.4 s ─> 1013          heartbeat every 60 s
//! 07, 17, 1007 start ─> reply with a business number ─ 0.5 s ─> 1017
//! end ─> 02, 18 or 1004 ── acknowledged ─ 1 s ─> 1017 with status 80
//!                       └─ three tries 10.5 s apart, 17 s later close; after the reconnect all over again
//! ```
//!
//! - Without sockets the device is standalone: socket 0 with two holes. A network list (08, 09, 0A) replaces that.
//! - 1D is answered by 1C. 1017 comes on changes and every 5 min, divided by the time factor while something charges.
//! - End reports go one at a time, because their acknowledgement names the socket only.
//! - The device learns the time from heartbeat replies.
//! - Absent: cards, OTA, exception events.

use std::collections::VecDeque;

use chargegate::protocol::bkv::body::{ChargeEnd, EndBlock, Level, StartReply};
use chargegate::protocol::bkv::clock::DeviceTime;
use chargegate::protocol::bkv::command::{CONTROL, PACKET, packet_sub, sub};
use chargegate::protocol::bkv::device::{self, Socket as SocketBody};
use chargegate::protocol::bkv::encode;
use chargegate::protocol::bkv::packet::Params;
use chargegate::protocol::bkv::report::HoleBlock;
use chargegate::protocol::bkv::tlv::{self, key};
use chargegate::protocol::bkv::{Body, EndReport, Frame, GatewayId, HoleStatus, decode_body, deframe};
use chargegate::protocol::{Direction, Hex, Step};

use super::charge::{Charge, End, Limits};
use super::{Behaviour, Device, Event, Events, Exchange, NEVER, Request, SECOND_US, Tail, Waiting, earliest};

/// Most sockets a gateway can have.
pub const SOCKETS_MAX: u8 = 250;
/// Gateway id of device 0, as a number.
const FIRST_ID: u64 = 82_200_520_000_000;

const FIRST_HEARTBEAT_US: u64 = 2 * SECOND_US;
const TIMED_EVENT_US: u64 = SECOND_US * 2 / 5;
const PUSH_AFTER_START_US: u64 = SECOND_US / 2;
const PUSH_AFTER_END_US: u64 = SECOND_US;
const PUSH_EVERY_S: u64 = 300;
const END_AGAIN_US: u64 = SECOND_US * 21 / 2;
const END_TRIES: u8 = 3;
const CLOSE_AFTER_US: u64 = 17 * SECOND_US;
/// A charge without load ends after this many seconds.
const NO_LOAD_S: u32 = 60;
/// Longest charge without an ordered time.
const DURATION_MAX_S: u32 = 36_000;
/// Pushes whose answer is awaited; an older one counts as unanswered.
const PUSHES_MAX: usize = 512;
const LEVELS_MAX: usize = 5;
const SOCKET_FW: [u8; 2] = [0x50, 0x36];
const TEMP_C: u8 = 28;
const RADIO: u8 = 0x1a;

/// The gateway id of a simulated device.
pub const fn gateway_id(index: u32) -> GatewayId {
    let mut id = [0; 7];
    let mut rest = FIRST_ID + index as u64;
    let mut at = id.len();
    while at > 0 {
        at -= 1;
        // Two decimal digits a byte.
        id[at] = (((rest / 10 % 10) << 4) | (rest % 10)) as u8;
        rest /= 100;
    }
    GatewayId(id)
}

/// A gateway; see the module.
#[derive(Debug)]
pub struct BkvDevice {
    gateway_id: GatewayId,
    index: u32,
    behaviour: Behaviour,
    sockets: Vec<Socket>,
    connected: bool,
    registered: bool,
    /// The server's clock when a heartbeat was last answered: our time, Unix seconds.
    clock: Option<(u64, i64)>,
    next_business_no: u16,
    heartbeat: Exchange,
    timed_event: Exchange,
    settlement: Exchange,
    tries: u8,
    pushes: VecDeque<u64>,
    records: VecDeque<Record>,
    tail: Tail,
    out: Vec<u8>,
    events: Events,
    closing: bool,
}

#[derive(Debug)]
struct Socket {
    number: u8,
    holes: [Hole; 2],
    push_us: u64,
    params: Params,
}

#[derive(Debug)]
struct Hole {
    plugged: bool,
    charges: u32,
    running: Option<Box<Running>>,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    charge: Charge,
    business_no: u16,
    kind: Kind,
}

/// What was ordered, as far as the end report repeats it.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// 07: time or energy.
    Plain,
    /// 17: `tier` is the one whose power the charge draws.
    Power { levels: [Level; LEVELS_MAX], count: u8, tier: u8 },
    /// 1007: prices of the first tier in 0.01 yuan per kWh.
    Fee { electricity_cent: u16, service_cent: u16 },
}

/// An end report that is not acknowledged.
#[derive(Clone, Copy, Debug)]
struct Record {
    block: EndBlock,
    kind: Kind,
    end: End,
    ended_us: u64,
}

impl BkvDevice {
    /// The device with this index: standalone with `sockets` 0, else with sockets 1 to `sockets` (at most
    /// [`SOCKETS_MAX`]) already in its network list.
    pub fn new(index: u32, sockets: u8, behaviour: Behaviour) -> Self {
        let numbers = if sockets == 0 { 0..=0 } else { 1..=sockets.min(SOCKETS_MAX) };
        Self {
            gateway_id: gateway_id(index),
            index,
            behaviour,
            sockets: numbers.map(|number| Socket::new(number, index, &behaviour)).collect(),
            connected: false,
            registered: false,
            clock: None,
            next_business_no: 1,
            heartbeat: Exchange::IDLE,
            timed_event: Exchange::IDLE,
            settlement: Exchange::IDLE,
            tries: 0,
            pushes: VecDeque::new(),
            records: VecDeque::new(),
            tail: Tail::default(),
            out: Vec::new(),
            events: Events::default(),
            closing: false,
        }
    }

    /// Its id.
    pub const fn gateway_id(&self) -> GatewayId {
        self.gateway_id
    }

    /// End reports that the server has not acknowledged.
    pub fn unsettled(&self) -> usize {
        self.records.len()
    }

    /// Status of a hole, `None` if there is no such socket.
    pub fn hole_status(&self, socket: u8, hole: u8) -> Option<HoleStatus> {
        let socket = self.sockets.iter().find(|known| known.number == socket)?;
        socket.holes.get(usize::from(hole)).map(Hole::status)
    }

    fn voltage_dv(&self) -> u16 {
        2200 + u16::try_from(self.index % 60).unwrap_or_default()
    }

    fn exchange(&mut self, request: Request) -> &mut Exchange {
        match request {
            Request::Heartbeat => &mut self.heartbeat,
            Request::TimedEvent => &mut self.timed_event,
            _ => &mut self.settlement,
        }
    }

    /// Notes that a request went out. BKV reports carry no number, so an answer belongs to the last copy.
    fn sent(&mut self, now_us: u64, request: Request, again_us: u64) {
        let due_us = now_us.saturating_add(again_us);
        let waiting = Some(Waiting { msg_id: 0, sent_us: now_us });
        let before = std::mem::replace(self.exchange(request), Exchange { due_us, waiting });
        if before.waiting.is_some() {
            self.events.push(Event::Unanswered(request));
        }
        self.events.push(Event::Sent(request));
    }

    fn answered(&mut self, now_us: u64, request: Request) -> bool {
        let Some(waiting) = self.exchange(request).waiting.take() else { return false };
        self.events.push(Event::Answered(request, now_us.saturating_sub(waiting.sent_us)));
        true
    }

    fn send_heartbeat(&mut self, now_us: u64) {
        let iccid = "89860448160000000000";
        device::heartbeat(&mut self.out, self.gateway_id, iccid, "sim1.0", 31);
        let first = self.heartbeat.waiting.is_none() && !self.registered;
        let again_us = self.behaviour.heartbeat_us;
        let again_us = if first { self.behaviour.first_interval(again_us, self.index) } else { again_us };
        self.sent(now_us, Request::Heartbeat, again_us);
    }

    /// 1013, as the field's devices send it; its tag 5A is not explained.
    fn send_timed_event(&mut self, now_us: u64) {
        let time = DeviceTime::from_unix(self.unix_s(now_us)).to_bcd();
        let socket = self.sockets.first().map_or(0, |socket| socket.number);
        packet(&mut self.out, self.gateway_id, 0, packet_sub::EVENT, |out| {
            tlv::write(out, key::SOCKET_NO, &[socket]);
            tlv::write(out, key::HOLE, &[0x7f]);
            tlv::write(out, key::EVENT_TIME, &time);
            tlv::write(out, key::TAG_5A, &[0, 1]);
        });
        self.sent(now_us, Request::TimedEvent, NEVER);
    }

    /// The server's time as far as the device knows it; 1970 before the first answer.
    fn unix_s(&self, now_us: u64) -> i64 {
        let Some((then_us, unix_s)) = self.clock else { return 0 };
        let since_s = now_us.saturating_sub(then_us) / SECOND_US;
        unix_s.saturating_add(i64::try_from(since_s).unwrap_or_default())
    }

    fn push(&mut self, now_us: u64, at: usize) {
        let voltage_dv = self.voltage_dv();
        let Some(socket) = self.sockets.get_mut(at) else { return };
        let every_us = if socket.is_charging() {
            self.behaviour.scaled(PUSH_EVERY_S).max(SECOND_US)
        } else {
            PUSH_EVERY_S * SECOND_US
        };
        socket.push_us = now_us.saturating_add(every_us);
        let holes = socket.blocks(now_us, voltage_dv);
        device::push(&mut self.out, self.gateway_id, &[socket.body(&holes)]);
        if self.pushes.len() == PUSHES_MAX {
            self.pushes.pop_front();
            self.events.push(Event::Unanswered(Request::StatusPush));
        }
        self.pushes.push_back(now_us);
        self.events.push(Event::Sent(Request::StatusPush));
    }

    /// Sends the oldest end report, or closes the connection when it was sent often enough.
    fn settle(&mut self, now_us: u64) {
        let Some(record) = self.records.front().copied() else {
            self.settlement.due_us = NEVER;
            return;
        };
        if self.tries == END_TRIES {
            self.settlement.due_us = NEVER;
            self.closing = true;
            return;
        }
        self.tries += 1;
        let end_time = DeviceTime::from_unix(self.unix_s(record.ended_us));
        let (out, id, block) = (&mut self.out, self.gateway_id, &record.block);
        match record.kind {
            Kind::Plain => device::charge_end(out, id, &ChargeEnd { block: *block }),
            Kind::Power { levels, count, tier } => power_end(out, id, &record, end_time, (&levels, count, tier)),
            Kind::Fee { electricity_cent, service_cent } => {
                let fee = |price: u16| saturate(u32::from(block.energy_wh) * u32::from(price) / 1000);
                let report = EndReport {
                    socket: block.socket,
                    hole: block.hole,
                    status: block.status,
                    business_no: block.business_no,
                    power_dw: Some(block.power_dw),
                    current_ma: Some(block.current_ma),
                    energy_wh: block.energy_wh,
                    charged_min: block.charged_min,
                    temp_c: Some(block.temp_c),
                    rssi: None,
                    end_reason_raw: Some(end_reason(record.end)),
                    spent_cent: None,
                    settle_power_dw: None,
                    end_time: Some(end_time),
                    card: None,
                    electricity_fee_cent: Some(fee(electricity_cent)),
                    service_fee_cent: Some(fee(service_cent)),
                };
                let [minutes, energy] = [block.charged_min, block.energy_wh].map(u16::to_be_bytes);
                let tier = [minutes[0], minutes[1], 0, 0, energy[0], energy[1]];
                device::fee_end(out, id, &report, &tier);
            }
        }
        let again_us = if self.tries == END_TRIES { CLOSE_AFTER_US } else { END_AGAIN_US };
        self.sent(now_us, Request::Settlement, again_us);
    }

    /// An acknowledgement of an end report came, for the socket that it names.
    fn settled(&mut self, now_us: u64, socket: u8) {
        if self.records.front().is_none_or(|record| record.block.socket != socket) {
            return;
        }
        if !self.answered(now_us, Request::Settlement) {
            return;
        }
        self.records.pop_front();
        self.tries = 0;
        self.settlement.due_us = if self.records.is_empty() { NEVER } else { now_us };
        self.push_by(socket, now_us.saturating_add(PUSH_AFTER_END_US));
        self.events.push(Event::Settled);
    }

    fn push_by(&mut self, number: u8, push_us: u64) {
        if let Some(socket) = self.sockets.iter_mut().find(|socket| socket.number == number) {
            socket.push_us = socket.push_us.min(push_us);
        }
    }

    fn handle_frame(&mut self, now_us: u64, frame: &Frame<'_>) {
        if frame.direction != Direction::Down || frame.gateway_id != self.gateway_id {
            self.events.push(Event::Malformed);
            return;
        }
        let Ok(body) = decode_body(frame) else {
            self.events.push(Event::Malformed);
            return;
        };
        match body {
            Body::HeartbeatReply(reply) => self.handle_time(now_us, reply.server_time_bcd.0),
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
                _ => {}
            },
            // Refused: the report goes again.
            Body::EndAck(..) | Body::PacketReply(_) => {}
            command => {
                self.events.push(Event::Command);
                self.handle_command(now_us, frame, &command);
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
        match body {
            Body::SocketQuery(_, query) => {
                let voltage_dv = self.voltage_dv();
                if let Some(socket) = self.sockets.iter().find(|socket| socket.number == query.socket) {
                    let holes = socket.blocks(now_us, voltage_dv);
                    device::socket_reply(&mut self.out, id, sequence, sub::SOCKET_REPLY, &socket.body(&holes));
                }
            }
            Body::Start(_, start) => {
                let limits = if start.mode == 1 {
                    Limits { duration_s: Some(u32::from(start.minutes) * 60), ..Limits::default() }
                } else {
                    Limits {
                        energy_wh: Some(u32::from(start.energy_wh)),
                        duration_max_s: Some(DURATION_MAX_S),
                        ..Limits::default()
                    }
                };
                let reply = self.switch(now_us, [start.socket, start.hole, start.switch], limits, |_| Kind::Plain);
                device::start_reply(&mut self.out, id, sequence, sub::START, &reply);
            }
            Body::PowerStart(_, start) => {
                let mut levels = [Level { power_dw: 0, price_cent: 0, minutes: 0 }; LEVELS_MAX];
                levels.iter_mut().zip(start.tariff.levels).for_each(|(slot, level)| *slot = level);
                let count = start.tariff.level_count.min(LEVELS_MAX as u8);
                let paid = u32::from(start.tariff.paid_cent);
                let kind = |power_dw: u16| {
                    let levels_used = levels.get(..usize::from(count)).unwrap_or_default();
                    let fits = levels_used.iter().position(|level| power_dw <= level.power_dw);
                    let tier = fits.unwrap_or_else(|| levels_used.len().saturating_sub(1));
                    Kind::Power { levels, count, tier: u8::try_from(tier).unwrap_or_default() }
                };
                let limits = Limits { duration_max_s: Some(DURATION_MAX_S), ..Limits::default() };
                let at = [start.socket, start.hole, start.switch];
                let reply = self.switch(now_us, at, limits, kind);
                self.limit_running(&reply, |running| {
                    let Kind::Power { levels, tier, .. } = running.kind else { return limits };
                    let level = levels[usize::from(tier)];
                    let minutes = paid * u32::from(level.minutes) / u32::from(level.price_cent.max(1));
                    Limits { duration_s: Some(minutes * 60), ..limits }
                });
                device::start_reply(&mut self.out, id, sequence, sub::POWER_START, &reply);
            }
            Body::FeeStart(start) => {
                let first = { start.tiers }.next();
                let (electricity_cent, service_cent) =
                    first.map_or((0, 0), |tier| (tier.electricity_cent_per_kwh, tier.service_cent_per_kwh));
                let price = (u32::from(electricity_cent) + u32::from(service_cent)).max(1);
                let limits = Limits {
                    energy_wh: start.paid_amount_cent.map(|paid| u32::from(paid) * 1000 / price),
                    duration_max_s: Some(DURATION_MAX_S),
                    ..Limits::default()
                };
                let kind = |_| Kind::Fee { electricity_cent, service_cent };
                let reply = self.switch(now_us, [start.socket, start.hole, start.switch], limits, kind);
                device::fee_start_reply(&mut self.out, id, sequence, &reply);
            }
            Body::SocketList(_, list) => {
                let numbers = list.sockets.map(|entry| entry.socket);
                let mut before = std::mem::take(&mut self.sockets);
                for number in numbers.filter(|number| (1..=SOCKETS_MAX).contains(number)) {
                    let kept = before.iter().position(|socket| socket.number == number);
                    let fresh = || Socket::new(number, self.index, &self.behaviour);
                    self.sockets.push(kept.map_or_else(fresh, |at| before.swap_remove(at)));
                }
                self.network_changed(now_us, sequence, sub::SOCKET_LIST);
            }
            Body::SocketAdd(_, entry) => {
                let numbered = (1..=SOCKETS_MAX).contains(&entry.socket);
                if numbered && !self.sockets.iter().any(|socket| socket.number == entry.socket) {
                    self.sockets.retain(|socket| socket.number != 0);
                    self.sockets.push(Socket::new(entry.socket, self.index, &self.behaviour));
                }
                self.network_changed(now_us, sequence, sub::SOCKET_ADD);
            }
            Body::SocketDelete(_, deleted) => {
                self.sockets.retain(|socket| socket.number != deleted.socket);
                self.network_changed(now_us, sequence, sub::SOCKET_DELETE);
            }
            Body::VoiceSet(_, voice) => {
                let reply = [0, 3, sub::VOICE, voice.socket, voice.hole, 1];
                encode::frame(&mut self.out, Direction::Up, CONTROL, sequence, id, |out| out.extend_from_slice(&reply));
            }
            Body::ParamSet(set) => {
                let known = self.sockets.iter_mut().find(|socket| socket.number == set.socket);
                let ok = u8::from(known.is_some());
                if let Some(socket) = known {
                    merge(&mut socket.params, &set.params);
                }
                packet(&mut self.out, id, sequence, packet_sub::PARAM_SET, |out| {
                    tlv::write(out, key::SOCKET_NO, &[set.socket]);
                    tlv::write(out, key::ACK, &[ok]);
                });
            }
            Body::ParamQuery(query) => {
                if let Some(socket) = self.sockets.iter().find(|socket| socket.number == query.socket) {
                    param_reply(&mut self.out, id, sequence, socket);
                }
            }
            // Everything else has no reply, or belongs to what this device does not have.
            _ => {}
        }
    }

    fn network_changed(&mut self, now_us: u64, sequence: u32, sub: u8) {
        device::network_result(&mut self.out, self.gateway_id, sequence, sub, true);
        self.sockets.iter_mut().for_each(|socket| socket.push_us = now_us);
    }

    /// Switches a hole on or off. A start is refused while it charges, a stop while it does not.
    fn switch(
        &mut self,
        now_us: u64,
        [socket, hole, switch]: [u8; 3],
        limits: Limits,
        kind: impl FnOnce(u16) -> Kind,
    ) -> StartReply {
        let refused = StartReply { result: 0, socket, hole, business_no: 0 };
        let business_no = self.next_business_no;
        let behaviour = self.behaviour;
        let index = u64::from(self.index);
        let Some(found) = self.hole_mut(socket, hole) else {
            self.events.push(Event::ChargeRefused(0));
            return refused;
        };
        if switch == 0 {
            let Some(running) = &found.running else { return refused };
            let business_no = running.business_no;
            self.end_charge(now_us, socket, hole, End::Stopped);
            return StartReply { result: 1, business_no, ..refused };
        }
        if found.running.is_some() {
            self.events.push(Event::ChargeRefused(0));
            return refused;
        }
        let load = if found.plugged { Ok(()) } else { Err(NO_LOAD_S) };
        let nth = [index, port_no(socket, hole).into(), u64::from(found.charges)];
        let charge = Charge::begin(now_us, &behaviour, nth, load, limits);
        found.charges = found.charges.wrapping_add(1);
        found.running = Some(Box::new(Running { charge, business_no, kind: kind(charge.power_dw()) }));
        // 0 means "no order".
        self.next_business_no = business_no.checked_add(1).unwrap_or(1);
        self.push_by(socket, now_us.saturating_add(PUSH_AFTER_START_US));
        self.events.push(Event::ChargeStarted(port_no(socket, hole)));
        StartReply { result: 1, business_no, ..refused }
    }

    /// Limits that depend on the power, which is known only once the charge runs.
    fn limit_running(&mut self, reply: &StartReply, limits: impl FnOnce(&Running) -> Limits) {
        let running = self.hole_mut(reply.socket, reply.hole).and_then(|hole| hole.running.as_mut());
        if let Some(running) = running.filter(|running| reply.result == 1 && running.business_no == reply.business_no)
            && running.charge.power_dw() > 0
        {
            let limits = limits(running);
            running.charge.limit(limits);
        }
    }

    fn hole_mut(&mut self, socket: u8, hole: u8) -> Option<&mut Hole> {
        let socket = self.sockets.iter_mut().find(|known| known.number == socket)?;
        socket.holes.get_mut(usize::from(hole))
    }

    fn end_charge(&mut self, now_us: u64, socket: u8, hole: u8, end: End) {
        let voltage_dv = self.voltage_dv();
        let Some(running) = self.hole_mut(socket, hole).and_then(|hole| hole.running.take()) else { return };
        let charge = &running.charge;
        let block = EndBlock {
            socket,
            fw: Hex(SOCKET_FW),
            temp_c: TEMP_C,
            rssi: RADIO,
            hole,
            // The moment before switch-off.
            status: match end {
                End::Duration | End::Energy | End::DurationMax => HoleStatus::QUOTA,
                End::NoLoad | End::Unplugged | End::Full => HoleStatus(0x98),
                End::Stopped => HoleStatus(if charge.power_dw() == 0 { 0x98 } else { 0x90 }),
                End::Fault(status) => HoleStatus(status),
            },
            business_no: running.business_no,
            power_dw: charge.power_dw(),
            current_ma: charge.current_ma(voltage_dv),
            energy_wh: saturate(charge.energy_wh(now_us)),
            charged_min: saturate(charge.elapsed_s(now_us) / 60),
        };
        self.records.push_back(Record { block, kind: running.kind, end, ended_us: now_us });
        if self.records.len() == 1 {
            self.settlement.due_us = now_us;
        }
        self.events.push(Event::ChargeEnded(port_no(socket, hole)));
    }

    fn charges_timeout(&mut self, now_us: u64) {
        for at in 0..self.sockets.len() {
            for hole in 0..2 {
                let Some(socket) = self.sockets.get(at) else { continue };
                let Some(running) = &socket.holes[usize::from(hole)].running else { continue };
                let (number, (ends_us, end)) = (socket.number, running.charge.ends());
                if ends_us <= now_us {
                    self.end_charge(ends_us, number, hole, end);
                }
            }
        }
    }
}

impl Device for BkvDevice {
    fn connected(&mut self, now_us: u64) {
        self.connected = true;
        self.closing = false;
        self.tries = 0;
        let first_us = now_us.saturating_add(FIRST_HEARTBEAT_US);
        self.heartbeat.due_us = first_us;
        self.timed_event.due_us = first_us.saturating_add(TIMED_EVENT_US);
        // The first frame of a connection is a heartbeat.
        self.settlement.due_us = if self.records.is_empty() { NEVER } else { first_us };
        for socket in &mut self.sockets {
            let every_us = now_us.saturating_add(PUSH_EVERY_S * SECOND_US);
            socket.push_us = if socket.is_charging() { first_us } else { every_us };
        }
    }

    fn receive(&mut self, now_us: u64, bytes: &[u8]) {
        let mut tail = std::mem::take(&mut self.tail);
        tail.walk(bytes, |rest| match deframe(rest) {
            Step::Item { item, consumed } => {
                self.handle_frame(now_us, &item);
                Some(consumed)
            }
            Step::Skip { consumed, .. } => {
                self.events.push(Event::Malformed);
                Some(consumed)
            }
            Step::NeedMore => None,
        });
        self.tail = tail;
        if self.connected && self.settlement.due_us <= now_us {
            self.settle(now_us);
        }
    }

    fn timeout(&mut self, now_us: u64) {
        self.charges_timeout(now_us);
        if !self.connected {
            return;
        }
        if self.heartbeat.due_us <= now_us {
            self.send_heartbeat(now_us);
        }
        if self.timed_event.due_us <= now_us {
            self.send_timed_event(now_us);
        }
        if self.settlement.due_us <= now_us {
            self.settle(now_us);
        }
        for at in 0..self.sockets.len() {
            if self.sockets.get(at).is_some_and(|socket| socket.push_us <= now_us) {
                self.push(now_us, at);
            }
        }
    }

    fn poll_output(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.out);
    }

    fn poll_timeout(&self) -> Option<u64> {
        let charges = self.sockets.iter().flat_map(|socket| &socket.holes);
        let charges = charges.filter_map(|hole| hole.running.as_ref()).map(|running| running.charge.ends().0);
        let connection = self.connected.then(|| {
            let pushes = self.sockets.iter().map(|socket| socket.push_us).min().unwrap_or(NEVER);
            pushes.min(self.heartbeat.due_us).min(self.timed_event.due_us).min(self.settlement.due_us)
        });
        earliest(charges.chain(connection))
    }

    fn disconnected(&mut self, _now_us: u64) {
        self.connected = false;
        self.registered = false;
        self.tail = Tail::default();
        self.out.clear();
        for request in [Request::Heartbeat, Request::TimedEvent, Request::Settlement] {
            if self.exchange(request).waiting.take().is_some() {
                self.events.push(Event::Unanswered(request));
            }
        }
        for _ in self.pushes.drain(..) {
            self.events.push(Event::Unanswered(Request::StatusPush));
        }
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    fn poll_close(&mut self) -> bool {
        std::mem::take(&mut self.closing)
    }
}

impl Socket {
    fn new(number: u8, index: u32, behaviour: &Behaviour) -> Self {
        let hole =
            |hole| Hole { plugged: behaviour.plugged(index, port_no(number, hole).into()), charges: 0, running: None };
        Self { number, holes: [hole(0), hole(1)], push_us: NEVER, params: Params::default() }
    }

    fn is_charging(&self) -> bool {
        self.holes.iter().any(|hole| hole.running.is_some())
    }

    fn blocks(&self, now_us: u64, voltage_dv: u16) -> [HoleBlock; 2] {
        [0, 1].map(|number: u8| {
            let hole = &self.holes[usize::from(number)];
            let idle = HoleBlock {
                hole: number,
                status: hole.status(),
                business_no: 0,
                voltage_dv,
                power_dw: 0,
                current_ma: 0,
                energy_wh: 0,
                charged_min: 0,
            };
            hole.running.as_ref().map_or(idle, |running| HoleBlock {
                business_no: running.business_no,
                power_dw: running.charge.power_dw(),
                current_ma: running.charge.current_ma(voltage_dv),
                energy_wh: saturate(running.charge.energy_wh(now_us)),
                charged_min: saturate(running.charge.elapsed_s(now_us) / 60),
                ..idle
            })
        })
    }

    const fn body<'a>(&self, holes: &'a [HoleBlock]) -> SocketBody<'a> {
        SocketBody { socket: self.number, fw: SOCKET_FW, temp_c: TEMP_C, rssi: RADIO, holes }
    }
}

impl Hole {
    fn status(&self) -> HoleStatus {
        match &self.running {
            None => HoleStatus(0x80),
            Some(running) if running.charge.power_dw() == 0 => HoleStatus(0x98),
            Some(_) => HoleStatus(0x90),
        }
    }
}

/// The API's number of a hole: standalone holes are ports 1 and 2, as are those of socket 1.
fn port_no(socket: u8, hole: u8) -> u16 {
    u16::from(socket.saturating_sub(1)) * 2 + u16::from(hole) + 1
}

/// The reason byte has no list in the guide; its two examples of ends without load show 02 and 08.
const fn end_reason(end: End) -> u8 {
    match end {
        End::NoLoad | End::Unplugged | End::Full => 0x02,
        End::Duration | End::Energy | End::DurationMax | End::Stopped | End::Fault(_) => 0x00,
    }
}

/// 0x18. Written by hand: the codec's list of tier minutes can only be made from received bytes.
fn power_end(
    out: &mut Vec<u8>,
    id: GatewayId,
    record: &Record,
    end_time: DeviceTime,
    (levels, count, tier): (&[Level; LEVELS_MAX], u8, u8),
) {
    let block = &record.block;
    let used = levels.get(usize::from(tier)).copied().unwrap_or(levels[0]);
    let spent = u32::from(block.charged_min) * u32::from(used.price_cent) / u32::from(used.minutes.max(1));
    encode::frame(out, Direction::Up, CONTROL, 0, id, |out| {
        let inner_len = 30 + 2 * u16::from(count);
        out.extend_from_slice(&inner_len.to_be_bytes());
        out.extend_from_slice(&[sub::POWER_END, block.socket, block.fw.0[0], block.fw.0[1], block.temp_c, block.rssi]);
        out.extend_from_slice(&[block.hole, block.status.0]);
        for word in [block.business_no, block.power_dw, block.current_ma, block.energy_wh, block.charged_min] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.extend_from_slice(&end_time.to_binary());
        out.push(end_reason(record.end));
        out.extend_from_slice(&saturate(spent).to_be_bytes());
        out.extend_from_slice(&block.power_dw.to_be_bytes());
        out.push(count);
        for level in 0..count {
            let minutes = if level == tier { block.charged_min } else { 0 };
            out.extend_from_slice(&minutes.to_be_bytes());
        }
    });
}

/// A tagged packet of the device.
fn packet(out: &mut Vec<u8>, id: GatewayId, sequence: u32, sub: u16, elements: impl FnOnce(&mut Vec<u8>)) {
    encode::frame(out, Direction::Up, PACKET, sequence, id, |out| {
        tlv::write(out, key::CMD, &sub.to_be_bytes());
        tlv::write(out, key::FRAME_SEQ, &u64::from(sequence).to_be_bytes());
        tlv::write(out, key::GATEWAY_ID, &id.0);
        elements(out);
    });
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

/// 1012 up, in the order of the guide's example; its unexplained tags are left out.
fn param_reply(out: &mut Vec<u8>, id: GatewayId, sequence: u32, socket: &Socket) {
    let params = &socket.params;
    packet(out, id, sequence, packet_sub::PARAM_QUERY, |out| {
        let word = |out: &mut Vec<u8>, key, value: u16| tlv::write(out, key, &value.to_be_bytes());
        tlv::write(out, key::SOCKET_NO, &[socket.number]);
        tlv::write(out, key::ACK, &[1]);
        word(out, key::FULL_POWER_THRESHOLD, params.full_power_threshold_dw.unwrap_or(300));
        tlv::write(out, key::TRICKLE_THRESHOLD, &[20]);
        word(out, key::FULL_CHARGE_DELAY, params.full_charge_delay_s.unwrap_or(3600));
        word(out, key::NO_LOAD_POWER_THRESHOLD, params.no_load_power_threshold_dw.unwrap_or(30));
        word(out, key::NO_LOAD_DELAY, params.no_load_delay_s.unwrap_or(60));
        word(out, key::MAX_CHARGE_MIN, params.max_charge_min.unwrap_or(600));
        tlv::write(out, key::HIGH_TEMP_THRESHOLD, &[params.high_temp_threshold.unwrap_or(85)]);
        word(out, key::POWER_LIMIT, params.power_limit_dw.unwrap_or(10_000));
        word(out, key::OVERCURRENT_LIMIT, 10_000);
    });
}

fn saturate(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}
