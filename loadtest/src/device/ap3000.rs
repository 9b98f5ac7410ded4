//! An AP3000 charger (device-server protocol v8.6).
//!
//! ```text
//! connect ─> ICCID, 0x20, 0x22, 0x21 in one go
//!            0x20 again every heartbeat interval, 0x22 every 3 min, until answered; 0x22 then every 12 h
//!            0x21 every interval; two without an answer within 15 s: offline mode, until the next answer
//!            `link` after 30 s without traffic
//! 0x82 start ─> reply, port state 1, 0x06 after 0.5 s and then every 5 min
//! end ─> port state 2 or 3, record kept; 0x03 after 2 s, again every 30 min and after each connect until acknowledged;
//!        records go one at a time, the next 1 min after an acknowledgement
//! ```
//!
//! Periods of minutes that belong to charges are divided by the time factor; the rest keeps its time. The document does
//! not say when the first 0x06 comes, so it comes soon, as from the field's BKV gateways. Records and charges outlive
//! the connection. A command that comes again under its message id is answered by the same bytes and not carried out
//! again.

use std::collections::VecDeque;

use chargegate::protocol::ap3000::body::{
    Body, ChargeControl, ChargeControlReply, ChargingReport, Heartbeat, Limits as LimitsBody, ModifyCharge, Params11,
    Params12, Registration, Settlement, UserCard,
};
use chargegate::protocol::ap3000::codes::{
    ChargeResult, ModifyMode, PortState, RateMode, ReportState, StartMode, StopReason,
};
use chargegate::protocol::ap3000::encode::{self, Header};
use chargegate::protocol::ap3000::wire::{Extra, Raw, U8s};
use chargegate::protocol::ap3000::{Frame, Item, Magics, PhyId, Reply, deframe, frame, lookup};
use chargegate::protocol::{Direction, Step};

use super::charge::{Charge, End, Limits};
use super::{Behaviour, Device, Event, Events, Exchange, NEVER, Request, SECOND_US, Tail, Waiting, earliest};

/// Most ports of a charger.
pub const PORTS_MAX: u8 = 16;
/// Printed number of device 0. All of [`DEVICES_MAX`] fit into 24 bits, clear of the vendor's fallback numbers.
pub const FIRST_NUMBER: u32 = 15_000_000;
/// Most simulated devices.
pub const DEVICES_MAX: u32 = 1_777_216;

const MAGIC: [u8; 3] = *b"DNY";
/// Dual socket, also used for more.
const RECOGNITION_CODE: u8 = 0x04;
/// New RS-485 dual-mode device, metered.
const DEVICE_TYPE: u8 = 21;
const FW_VERSION: u16 = 206;
/// Both sides wait this long for an answer.
const REPLY_TIMEOUT_US: u64 = 15 * SECOND_US;
const LINK_AFTER_US: u64 = 30 * SECOND_US;
const TIME_RETRY_US: u64 = 180 * SECOND_US;
const TIME_AGAIN_US: u64 = 12 * 3600 * SECOND_US;
const FIRST_REPORT_US: u64 = SECOND_US / 2;
const SETTLE_AFTER_US: u64 = 2 * SECOND_US;
const REPORT_EVERY_S: u64 = 300;
const SETTLE_AGAIN_S: u64 = 1800;
const NEXT_RECORD_S: u64 = 60;
/// The setting of 0x85 as delivered.
const DURATION_MAX_S: u16 = 36_000;
/// Commands whose reply is remembered. The server resends once, so the last few are enough.
const REPLIES_MAX: usize = 4;
/// Raw 85 is 20 °C.
const AMBIENT_TEMP: u8 = 85;

/// The physical id of a simulated device.
pub const fn phy_id(index: u32) -> PhyId {
    match PhyId::from_parts(RECOGNITION_CODE, FIRST_NUMBER + index % DEVICES_MAX) {
        Some(phy_id) => phy_id,
        None => panic!("the first number and the number of devices fit 24 bits"),
    }
}

/// A charger; see the module.
#[derive(Debug)]
pub struct Ap3000Device {
    phy_id: PhyId,
    index: u32,
    behaviour: Behaviour,
    heartbeat_us: u64,
    duration_max_s: u16,
    ports: Box<[Port]>,
    connected: bool,
    registered: bool,
    /// Heartbeats in a row without an answer.
    missed: u8,
    last_traffic_us: u64,
    next_msg_id: u16,
    exchanges: [Exchange; 4],
    records: VecDeque<Record>,
    replies: VecDeque<Remembered>,
    tail: Tail,
    out: Vec<u8>,
    events: Events,
    closing: bool,
}

#[derive(Debug)]
struct Port {
    state: PortState,
    charges: u32,
    running: Option<Box<Running>>,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    charge: Charge,
    order_no: [u8; 16],
    report_us: u64,
    /// Energy at the last report, for the debugging field of the next.
    reported_wh: u32,
}

/// A charge that ended, kept until it is acknowledged.
#[derive(Clone, Copy, Debug)]
struct Record {
    duration_s: u16,
    power_dw: u16,
    energy: u16,
    port: u8,
    stop_reason: StopReason,
    order_no: [u8; 16],
    /// Message id of the first copy: its answer may come after the second was sent.
    first_msg_id: Option<u16>,
}

#[derive(Debug, Default)]
struct Remembered {
    command: u8,
    msg_id: u16,
    bytes: Vec<u8>,
}

impl Ap3000Device {
    /// The device with this index and number of ports (1..=[`PORTS_MAX`]), switched on and without a connection.
    pub fn new(index: u32, ports: u8, behaviour: Behaviour) -> Self {
        let port = |port: u8| Port {
            state: if behaviour.plugged(index, u64::from(port)) { PortState::PLUGGED } else { PortState::IDLE },
            charges: 0,
            running: None,
        };
        Self {
            phy_id: phy_id(index),
            index,
            behaviour,
            heartbeat_us: behaviour.heartbeat_us,
            duration_max_s: DURATION_MAX_S,
            ports: (0..ports.clamp(1, PORTS_MAX)).map(port).collect(),
            connected: false,
            registered: false,
            missed: 0,
            last_traffic_us: 0,
            next_msg_id: 1,
            exchanges: [Exchange::IDLE; 4],
            records: VecDeque::new(),
            replies: VecDeque::new(),
            tail: Tail::default(),
            out: Vec::new(),
            events: Events::default(),
            closing: false,
        }
    }

    /// Its id.
    pub const fn phy_id(&self) -> PhyId {
        self.phy_id
    }

    /// State of a port counted from 0.
    pub fn port_state(&self, port: u8) -> Option<PortState> {
        self.ports.get(usize::from(port)).map(|port| port.state)
    }

    /// Records that the server has not acknowledged.
    pub fn unsettled(&self) -> usize {
        self.records.len()
    }

    /// Whether two heartbeats in a row went unanswered.
    pub const fn is_offline(&self) -> bool {
        self.missed >= 2
    }

    /// Plugs a charger into an idle port (counted from 0).
    pub fn plug(&mut self, port: u8) {
        if let Some(port) = self.ports.get_mut(usize::from(port))
            && port.state == PortState::IDLE
        {
            port.state = PortState::PLUGGED;
        }
    }

    /// Pulls the charger out of a port (counted from 0), which ends a running charge.
    pub fn unplug(&mut self, now_us: u64, port: u8) {
        self.end_charge(now_us, port, End::Unplugged);
        if let Some(port) = self.ports.get_mut(usize::from(port)) {
            port.state = PortState::IDLE;
        }
    }

    fn voltage_dv(&self) -> u16 {
        2180 + u16::try_from(self.index % 60).unwrap_or_default()
    }

    /// Sends a request, or sends it again.
    fn send(&mut self, now_us: u64, request: Request) {
        self.give_up(request);
        let header = Header { magic: MAGIC, phy_id: self.phy_id, msg_id: self.next_msg_id };
        self.next_msg_id = self.next_msg_id.wrapping_add(1);
        let again_us = match request {
            Request::Registration => {
                let registration = self.registration();
                encode::registration(&mut self.out, &header, &registration);
                self.heartbeat_us
            }
            Request::Heartbeat => {
                let mut states = [0; PORTS_MAX as usize];
                states.iter_mut().zip(&self.ports).for_each(|(state, port)| *state = port.state.0);
                let states = states.get(..self.ports.len()).unwrap_or_default();
                let heartbeat = Heartbeat {
                    voltage: self.voltage_dv(),
                    port_count: u8::try_from(states.len()).unwrap_or(PORTS_MAX),
                    port_states: U8s::new(states),
                    signal: Some(0),
                    ambient_temp: Some(AMBIENT_TEMP),
                    extra: Extra::NONE,
                };
                encode::heartbeat(&mut self.out, &header, &heartbeat);
                self.heartbeat_us
            }
            Request::Time => {
                encode::time_request(&mut self.out, &header);
                TIME_RETRY_US
            }
            Request::Settlement => {
                let Some(record) = self.records.front_mut() else {
                    self.exchanges[request.index()] = Exchange::IDLE;
                    return;
                };
                record.first_msg_id.get_or_insert(header.msg_id);
                encode::settlement(&mut self.out, &header, &record.body());
                self.behaviour.scaled(SETTLE_AGAIN_S).max(REPLY_TIMEOUT_US)
            }
            // Only BKV gateways have these.
            Request::StatusPush | Request::TimedEvent => return,
        };
        let waiting = Some(Waiting { msg_id: header.msg_id, sent_us: now_us });
        self.exchanges[request.index()] = Exchange { due_us: now_us.saturating_add(again_us), waiting };
        self.last_traffic_us = now_us;
        self.events.push(Event::Sent(request));
    }

    fn registration(&self) -> Registration<'static> {
        Registration {
            fw_version: FW_VERSION,
            port_count: u8::try_from(self.ports.len()).unwrap_or(PORTS_MAX),
            virtual_id: 0,
            device_type: DEVICE_TYPE,
            work_mode: Some(0),
            power_board_version: Some(0),
            extra: Extra::NONE,
        }
    }

    /// Stops waiting for the last copy of a request.
    fn give_up(&mut self, request: Request) {
        if self.exchanges[request.index()].waiting.take().is_none() {
            return;
        }
        self.events.push(Event::Unanswered(request));
        if request == Request::Heartbeat {
            self.missed = self.missed.saturating_add(1);
            if self.missed == 2 {
                self.events.push(Event::OfflineMode);
            }
        }
    }

    /// Takes the answer to a request of ours.
    fn handle_answer(&mut self, now_us: u64, request: Request, frame: &Frame<'_>, ok: bool) {
        let first = self.records.front().and_then(|record| record.first_msg_id);
        let exchange = &mut self.exchanges[request.index()];
        let late = request == Request::Settlement && first == Some(frame.msg_id);
        let Some(waiting) = exchange.waiting.filter(|waiting| waiting.msg_id == frame.msg_id || late) else { return };
        exchange.waiting = None;
        self.events.push(Event::Answered(request, now_us.saturating_sub(waiting.sent_us)));
        match request {
            Request::Registration => exchange.due_us = NEVER,
            Request::Heartbeat => self.missed = 0,
            Request::Time => exchange.due_us = now_us.saturating_add(TIME_AGAIN_US),
            // Refused: the record stays and goes again with the next repetition.
            Request::Settlement if !ok => {}
            Request::Settlement => {
                self.records.pop_front();
                let next_us = now_us.saturating_add(self.behaviour.scaled(NEXT_RECORD_S));
                exchange.due_us = if self.records.is_empty() { NEVER } else { next_us };
                self.events.push(Event::Settled);
            }
            Request::StatusPush | Request::TimedEvent => {}
        }
        if request == Request::Registration && !self.registered {
            self.registered = true;
            self.events.push(Event::Registered);
        }
    }

    fn handle_frame(&mut self, now_us: u64, frame: &Frame<'_>) {
        // A frame for another device is none of ours: one socket may carry many, but this one carries one.
        if frame.phy_id != self.phy_id {
            self.events.push(Event::Malformed);
            return;
        }
        let ok = frame.data.first().is_none_or(|result| *result == 0);
        match frame.command {
            0x20 => return self.handle_answer(now_us, Request::Registration, frame, ok),
            0x21 => return self.handle_answer(now_us, Request::Heartbeat, frame, ok),
            0x22 => return self.handle_answer(now_us, Request::Time, frame, true),
            0x03 => return self.handle_answer(now_us, Request::Settlement, frame, ok),
            _ => {}
        }
        if let Some(known) =
            self.replies.iter().find(|reply| reply.command == frame.command && reply.msg_id == frame.msg_id)
        {
            self.out.extend_from_slice(&known.bytes);
            return;
        }
        let start = self.out.len();
        if self.handle_command(now_us, frame) {
            self.events.push(Event::Command);
        } else {
            self.events.push(Event::Malformed);
        }
        self.remember(frame, start);
    }

    /// Keeps the reply that was written from `start` on, for when the command comes again.
    fn remember(&mut self, frame: &Frame<'_>, start: usize) {
        let reply = self.out.get(start..).unwrap_or_default();
        if reply.is_empty() || frame.command == 0x81 {
            return;
        }
        let oldest = if self.replies.len() < REPLIES_MAX { None } else { self.replies.pop_front() };
        let Remembered { mut bytes, .. } = oldest.unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(reply);
        self.replies.push_back(Remembered { command: frame.command, msg_id: frame.msg_id, bytes });
    }

    /// Carries out a command and writes its reply. False if it cannot be read.
    fn handle_command(&mut self, now_us: u64, frame: &Frame<'_>) -> bool {
        let header = frame.header();
        let Ok(body) = chargegate::protocol::ap3000::decode_body(frame, Direction::Down) else { return false };
        let mut result = 0;
        match (frame.command, body) {
            (_, Body::ChargeControl(control)) => {
                let reply = self.charge_control(now_us, &control);
                encode::charge_control_reply(&mut self.out, &header, &reply);
                return true;
            }
            (_, Body::ModifyCharge(modify)) => result = self.modify_charge(&modify),
            (0x81, _) => {
                self.send(now_us, Request::Registration);
                self.send(now_us, Request::Heartbeat);
                return true;
            }
            (0x83, Body::Params11(params)) => {
                self.heartbeat_us = u64::from(params.heartbeat_interval_s.max(1)) * SECOND_US;
                let due_us = now_us.saturating_add(self.heartbeat_us);
                self.exchanges[Request::Heartbeat.index()].due_us = due_us;
            }
            (0x85, Body::Limits(limits)) => self.duration_max_s = limits.max_duration_s,
            (0x87, _) => self.closing = true,
            (0x90, _) => {
                let heartbeat_interval_s = u16::try_from(self.heartbeat_us / SECOND_US).unwrap_or(u16::MAX);
                return self.answer(&header, 0x90, &Params11 { heartbeat_interval_s, ..PARAMS_1_1 });
            }
            (0x91, _) => return self.answer(&header, 0x91, &PARAMS_1_2),
            (0x92, _) => {
                let limits = LimitsBody { max_duration_s: self.duration_max_s, ..LimitsBody::default() };
                return self.answer(&header, 0x92, &limits);
            }
            (0x93, _) => return self.answer(&header, 0x93, &UserCard::default()),
            _ => {}
        }
        if lookup(frame.command).is_some_and(|row| matches!(row.reply, Reply::Mandatory | Reply::BestEffort)) {
            encode::result_reply(&mut self.out, &header, frame.command, result);
        }
        true
    }

    fn answer<'a>(
        &mut self,
        header: &Header,
        command: u8,
        body: &impl chargegate::protocol::ap3000::wire::Layout<'a>,
    ) -> bool {
        encode::body(&mut self.out, header, command, body).is_ok()
    }

    fn charge_control(&mut self, now_us: u64, control: &ChargeControl<'_>) -> ChargeControlReply<'static> {
        let mut reply = ChargeControlReply {
            result: ChargeResult::SUCCESS,
            order_no: Some(control.order_no),
            port: Some(control.port),
            pending_ports: None,
            extra: Extra::NONE,
        };
        if control.charge_cmd == ChargeControl::STOP {
            reply.result = self.stop(now_us, control);
            return reply;
        }
        let mut chosen = control.port;
        if chosen == 0xff {
            let waiting = |(_, port): &(u8, &Port)| matches!(port.state, PortState::PLUGGED | PortState::FULL);
            let mut waiting = (0..).zip(&self.ports).filter(waiting).map(|(number, _)| number);
            match (waiting.next(), waiting.next()) {
                (Some(only), None) => chosen = only,
                (None, _) => {
                    reply.result = ChargeResult::NOT_PLUGGED;
                    return self.refuse(reply);
                }
                (Some(first), Some(second)) => {
                    let bits = [first, second].into_iter().chain(waiting).fold(0, |bits, port| bits | 1 << port);
                    reply.result = ChargeResult::SEVERAL_WAITING;
                    reply.pending_ports = Some(bits);
                    return self.refuse(reply);
                }
            }
        }
        reply.port = Some(chosen);
        reply.result = self.start(now_us, chosen, control);
        if reply.result == ChargeResult::SUCCESS {
            self.events.push(Event::ChargeStarted(u16::from(chosen) + 1));
            return reply;
        }
        self.refuse(reply)
    }

    fn refuse(&mut self, reply: ChargeControlReply<'static>) -> ChargeControlReply<'static> {
        self.events.push(Event::ChargeRefused(reply.result.0));
        reply
    }

    fn start(&mut self, now_us: u64, number: u8, control: &ChargeControl<'_>) -> ChargeResult {
        let limits = self.limits(control);
        let Some(port) = self.ports.get_mut(usize::from(number)) else { return ChargeResult::NO_PORT };
        if port.running.is_some() {
            return ChargeResult::SAME_STATE;
        }
        if port.state == PortState::IDLE {
            return ChargeResult::NOT_PLUGGED;
        }
        let nth = [u64::from(self.index), u64::from(number), u64::from(port.charges)];
        port.charges = port.charges.wrapping_add(1);
        port.state = PortState::CHARGING;
        port.running = Some(Box::new(Running {
            charge: Charge::begin(now_us, &self.behaviour, nth, Ok(()), limits),
            order_no: control.order_no.0,
            report_us: now_us.saturating_add(FIRST_REPORT_US),
            reported_wh: 0,
        }));
        ChargeResult::SUCCESS
    }

    /// What ends a charge, by the document's table for `duration_or_energy`.
    fn limits(&self, control: &ChargeControl<'_>) -> Limits {
        let value = u32::from(control.duration_or_energy);
        let ordered = value > 0;
        let metered = control.rate_mode == RateMode::METERED;
        let own_max = control.max_duration_s.filter(|seconds| *seconds > 0);
        let free = !ordered || matches!(control.rate_mode, RateMode::MONTHLY | RateMode::PER_USE);
        let duration_s = (ordered && !metered).then_some(value);
        Limits {
            duration_s,
            energy_wh: (ordered && metered).then_some(value * 10),
            duration_max_s: duration_s.is_none().then(|| u32::from(own_max.unwrap_or(self.duration_max_s))),
            until_full: free || control.force_full_stop == Some(1),
        }
    }

    fn stop(&mut self, now_us: u64, control: &ChargeControl<'_>) -> ChargeResult {
        let Some(port) = self.ports.get(usize::from(control.port)) else { return ChargeResult::NO_PORT };
        // The document gives no result for another order's number; the stop is not carried out.
        if port.running.as_ref().is_none_or(|running| running.order_no != control.order_no.0) {
            return ChargeResult::SAME_STATE;
        }
        self.end_charge(now_us, control.port, End::Stopped);
        ChargeResult::SUCCESS
    }

    /// 0x8A; its results are a table of their own.
    fn modify_charge(&mut self, modify: &ModifyCharge<'_>) -> u8 {
        let Some(port) = self.ports.get_mut(usize::from(modify.port)) else { return 3 };
        let Some(running) = port.running.as_mut() else { return 1 };
        let value = u32::from(modify.duration_or_energy);
        let limits = match modify.rate_mode {
            ModifyMode::TIMED => Limits { duration_s: Some(value), ..Limits::default() },
            ModifyMode::TIMED_FULL => Limits { duration_s: Some(value), until_full: true, ..Limits::default() },
            ModifyMode::METERED_FULL => Limits { energy_wh: Some(value * 10), until_full: true, ..Limits::default() },
            _ => return 3,
        };
        running.charge.limit(limits);
        0
    }

    /// Cuts the output of a port, if it is on, and keeps the record.
    fn end_charge(&mut self, now_us: u64, number: u8, end: End) {
        let Some(port) = self.ports.get_mut(usize::from(number)) else { return };
        let Some(running) = port.running.take() else { return };
        port.state = if end == End::Full { PortState::FULL } else { PortState::PLUGGED };
        let charge = &running.charge;
        self.records.push_back(Record {
            duration_s: saturate(charge.elapsed_s(now_us)),
            power_dw: charge.power_dw(),
            energy: saturate(charge.energy_wh(now_us) / 10),
            port: number,
            stop_reason: match end {
                End::Duration => StopReason::DURATION,
                End::Energy => StopReason::ENERGY,
                End::DurationMax => StopReason::DURATION_MAX,
                End::Full => StopReason::FULL,
                End::NoLoad => StopReason::POWER_MIN,
                End::Stopped => StopReason::SERVER,
                End::Unplugged => StopReason::UNPLUGGED,
            },
            order_no: running.order_no,
            first_msg_id: None,
        });
        if self.records.len() == 1 {
            self.exchanges[Request::Settlement.index()].due_us = now_us.saturating_add(SETTLE_AFTER_US);
        }
        self.events.push(Event::ChargeEnded(u16::from(number) + 1));
    }

    fn charges_timeout(&mut self, now_us: u64) {
        for number in 0..u8::try_from(self.ports.len()).unwrap_or(PORTS_MAX) {
            let Some(running) = self.ports.get(usize::from(number)).and_then(|port| port.running.as_deref()) else {
                continue;
            };
            let (ends_us, end) = running.charge.ends();
            if ends_us <= now_us {
                // The end may be in the past: no report says more than was ordered.
                self.end_charge(ends_us, number, end);
            } else if running.report_us <= now_us && self.connected {
                self.report(now_us, number);
            }
        }
    }

    fn report(&mut self, now_us: u64, number: u8) {
        let voltage = self.voltage_dv();
        let again_us = self.behaviour.scaled(REPORT_EVERY_S).max(FIRST_REPORT_US);
        let header = Header { magic: MAGIC, phy_id: self.phy_id, msg_id: self.next_msg_id };
        let Some(running) = self.ports.get_mut(usize::from(number)).and_then(|port| port.running.as_mut()) else {
            return;
        };
        let (charge, energy_wh) = (&running.charge, running.charge.energy_wh(now_us));
        let power = charge.power_dw();
        let report = ChargingReport {
            port: number,
            port_state: ReportState::CHARGING,
            duration_s: saturate(charge.elapsed_s(now_us)),
            energy: saturate(energy_wh / 10),
            start_mode: StartMode::ONLINE,
            power_now: power,
            power_max: power,
            power_min: power,
            power_avg: power,
            order_no: Raw(running.order_no),
            segment_energy_raw: Some(saturate(energy_wh.saturating_sub(running.reported_wh).saturating_mul(24) / 5)),
            peak_power: Some(power),
            voltage: Some(voltage),
            current_ma: Some(charge.current_ma(voltage)),
            ambient_temp: Some(AMBIENT_TEMP),
            port_temp: Some(AMBIENT_TEMP + 10),
            timestamp: None,
            occupancy_min: None,
            extra: Extra::NONE,
        };
        running.reported_wh = energy_wh;
        running.report_us = now_us.saturating_add(again_us);
        self.next_msg_id = self.next_msg_id.wrapping_add(1);
        encode::charging_report(&mut self.out, &header, &report);
        self.last_traffic_us = now_us;
    }

    /// When the wait for a heartbeat's answer ends.
    fn heartbeat_deadline_us(&self) -> u64 {
        let waiting = self.exchanges[Request::Heartbeat.index()].waiting;
        waiting.map_or(NEVER, |waiting| waiting.sent_us.saturating_add(REPLY_TIMEOUT_US))
    }
}

impl Device for Ap3000Device {
    fn connected(&mut self, now_us: u64) {
        self.connected = true;
        self.closing = false;
        self.last_traffic_us = now_us;
        encode::iccid(&mut self.out, &iccid(self.index));
        for request in [Request::Registration, Request::Time, Request::Heartbeat] {
            self.send(now_us, request);
        }
        let first_us = self.behaviour.first_interval(self.heartbeat_us, self.index);
        self.exchanges[Request::Heartbeat.index()].due_us = now_us.saturating_add(first_us);
        let settle = &mut self.exchanges[Request::Settlement.index()];
        settle.due_us = if self.records.is_empty() { NEVER } else { now_us.saturating_add(SETTLE_AFTER_US) };
    }

    fn receive(&mut self, now_us: u64, bytes: &[u8]) {
        self.last_traffic_us = now_us;
        let magics = Magics::default();
        let mut tail = std::mem::take(&mut self.tail);
        tail.walk(bytes, |rest| match deframe(rest, &magics) {
            Step::Item { item, consumed } => {
                match item {
                    Item::Frame(frame) => self.handle_frame(now_us, &frame),
                    // Only modules greet and say `link`.
                    Item::Iccid(_) | Item::Link => self.events.push(Event::Malformed),
                }
                Some(consumed)
            }
            Step::Skip { consumed, .. } => {
                self.events.push(Event::Malformed);
                Some(consumed)
            }
            Step::NeedMore => None,
        });
        self.tail = tail;
    }

    fn timeout(&mut self, now_us: u64) {
        self.charges_timeout(now_us);
        if !self.connected {
            return;
        }
        if self.heartbeat_deadline_us() <= now_us {
            self.give_up(Request::Heartbeat);
        }
        for request in [Request::Registration, Request::Heartbeat, Request::Time, Request::Settlement] {
            if self.exchanges[request.index()].due_us <= now_us {
                self.send(now_us, request);
            }
        }
        if self.last_traffic_us.saturating_add(LINK_AFTER_US) <= now_us {
            encode::link(&mut self.out);
            self.last_traffic_us = now_us;
        }
    }

    fn poll_output(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.out);
    }

    fn poll_timeout(&self) -> Option<u64> {
        let charges = self.ports.iter().filter_map(|port| port.running.as_deref()).map(|running| {
            let (ends_us, _) = running.charge.ends();
            if self.connected { ends_us.min(running.report_us) } else { ends_us }
        });
        let connection = self.connected.then(|| {
            let due_us = self.exchanges.iter().map(|exchange| exchange.due_us).min().unwrap_or(NEVER);
            due_us.min(self.heartbeat_deadline_us()).min(self.last_traffic_us.saturating_add(LINK_AFTER_US))
        });
        earliest(charges.chain(connection))
    }

    fn disconnected(&mut self, _now_us: u64) {
        self.connected = false;
        self.registered = false;
        self.tail = Tail::default();
        self.out.clear();
        for request in [Request::Registration, Request::Heartbeat, Request::Time, Request::Settlement] {
            if self.exchanges[request.index()].waiting.take().is_some() {
                self.events.push(Event::Unanswered(request));
            }
        }
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    fn poll_close(&mut self) -> bool {
        std::mem::take(&mut self.closing)
    }
}

impl Record {
    fn body(&self) -> Settlement<'static> {
        Settlement {
            duration_s: self.duration_s,
            max_power: self.power_dw,
            energy: self.energy,
            port: self.port,
            start_mode: StartMode::ONLINE,
            card_or_code: Raw([0; 4]),
            stop_reason: self.stop_reason,
            order_no: Raw(self.order_no),
            second_max_power: Some(self.power_dw),
            timestamp: None,
            occupancy_min: None,
            extra: Extra::NONE,
        }
    }
}

/// Settings as delivered.
const PARAMS_1_1: Params11<'static> = Params11 {
    unplug_power: 3,
    unplug_time_s: 10,
    float_percent: 20,
    float_detect_time_s: 1800,
    float_time_s: 3600,
    heartbeat_interval_s: 180,
    extra: Extra::NONE,
};

const PARAMS_1_2: Params12<'static> = Params12 {
    dyn_overload_power: 800,
    dyn_overload_time_s: 30,
    dyn_overload_start_s: 1800,
    unplug_noise_power: 10,
    unplug_noise_time_s: 300,
    float_second_point_s: 10_800,
    float_second_time_s: 300,
    min_power: 300,
    min_power_point_s: 1800,
    second_max_power_point_s: 300,
    ambient_alarm_temp: 80,
    port_alarm_temp: 80,
    unplug_opto_disable: 0,
    qr_light: 1,
    extra: Extra::NONE,
};

/// SIM number of a device: the country's prefix and the index.
fn iccid(index: u32) -> [u8; frame::ICCID_LEN] {
    let mut iccid = *b"89860448160000000000";
    let mut rest = index;
    for digit in iccid.iter_mut().rev().take(10) {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
    }
    iccid
}

/// What the device's u16 counters hold; whether real ones saturate or wrap is not documented.
fn saturate(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}
