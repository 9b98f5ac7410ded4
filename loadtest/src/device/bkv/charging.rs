//! Charges: start, end, and the reports that wait for the server.

use chargegate::protocol::Hex;
use chargegate::protocol::bkv::body::{CardEnd, ChargeEnd, EndBlock, Level, PowerEnd, StartReply, Tariff, Usage};
use chargegate::protocol::bkv::packet::FeeStart;
use chargegate::protocol::bkv::records::Records;
use chargegate::protocol::bkv::{EndReport, GatewayId, HoleStatus, device};
use chargegate::protocol::clock::DeviceTime;

use super::fees::Fees;
use super::{
    BkvDevice, CLOSE_AFTER_US, DURATION_MAX_S, END_AGAIN_US, END_TRIES, NEVER, NO_LOAD_S, PUSH_AFTER_END_US,
    PUSH_AFTER_START_US, RADIO, Request, SOCKET_FW, TEMP_C, port_no,
};
use crate::device::Event;
use crate::device::charge::{Charge, End, Limits};
use crate::device::ledger::{CardNumber, Reference, Start, State, Totals};

const LEVELS_MAX: usize = 5;

#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) charge: Charge,
    pub(super) business_no: u16,
    order: Order,
    entry: u64,
}

/// What was ordered, as far as the end report repeats it.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) kind: Kind,
    /// Number of the card that paid, and the mode of its order.
    pub(super) card: Option<([u8; 6], u8)>,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// 07: time or energy.
    Plain,
    /// 17.
    Power(Levels),
    /// 1007, with what was paid.
    Fee(Fees, Option<u16>),
}

/// Power tiers and the amount paid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Levels {
    levels: [Level; LEVELS_MAX],
    count: u8,
    paid_cent: u16,
}

/// An end report that is not acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) block: EndBlock,
    order: Order,
    end: End,
    ended_us: u64,
    /// Seconds of charging, which the block gives in minutes.
    elapsed_s: u32,
    entry: u64,
}

impl Levels {
    pub(super) fn of(tariff: &Tariff<'_>) -> Self {
        let mut levels = [Level { power_dw: 0, price_cent: 0, minutes: 0 }; LEVELS_MAX];
        levels.iter_mut().zip(tariff.levels).for_each(|(slot, level)| *slot = level);
        let count = tariff.level_count.min(LEVELS_MAX as u8);
        Self { levels, count, paid_cent: tariff.paid_cent }
    }

    /// Number of the tier with this power, and the tier; the last one takes what is above all.
    fn tier(&self, power_dw: u16) -> (u8, Level) {
        let used = || (0..self.count).zip(self.levels);
        let fits = used().find(|(_, level)| power_dw <= level.power_dw).or_else(|| used().next_back());
        fits.unwrap_or((0, self.levels[0]))
    }

    /// Minutes that were paid for at this power.
    fn paid_minutes(&self, power_dw: u16) -> u32 {
        let (_, level) = self.tier(power_dw);
        u32::from(self.paid_cent) * u32::from(level.minutes) / u32::from(level.price_cent.max(1))
    }

    fn spent_cent(&self, power_dw: u16, charged_min: u16) -> u32 {
        let (_, level) = self.tier(power_dw);
        u32::from(charged_min) * u32::from(level.price_cent) / u32::from(level.minutes.max(1))
    }
}

impl Order {
    pub(super) const PLAIN: Self = Self { kind: Kind::Plain, card: None };

    /// Limits that depend on the power, which is known only once the charge runs.
    fn limits(&self, power_dw: u16, mut limits: Limits) -> Limits {
        match &self.kind {
            Kind::Power(levels) => limits.duration_s = Some(levels.paid_minutes(power_dw) * 60),
            Kind::Fee(fees, Some(paid_cent)) => {
                let max_s = limits.duration_max_s.unwrap_or(DURATION_MAX_S);
                limits.duration_s = Some(fees.lasts_s(*paid_cent, power_dw, max_s));
            }
            Kind::Plain | Kind::Fee(_, None) => {}
        }
        limits
    }
}

impl BkvDevice {
    /// Ends the charge on a hole as if by a fault; `status` is that of the end report, e.g. 0x94 for temperature.
    pub fn end_by(&mut self, now_us: u64, socket: u8, hole: u8, status: HoleStatus) {
        self.end_charge(now_us, socket, hole, End::Fault(status.0));
    }

    /// Longest charge of a socket, and how long one without load lasts.
    fn times_s(&self, socket: u8) -> (u32, u32) {
        let params = self.sockets.iter().find(|known| known.number == socket).map(|socket| socket.params);
        let max_s = params.and_then(|params| params.max_charge_min).map_or(DURATION_MAX_S, |min| u32::from(min) * 60);
        (max_s, params.and_then(|params| params.no_load_delay_s).map_or(NO_LOAD_S, u32::from))
    }

    /// Orders by time, which nothing else limits, and by energy.
    pub(super) fn limits(&self, socket: u8, minutes: Option<u32>, energy_wh: Option<u16>) -> Limits {
        let (max_s, _) = self.times_s(socket);
        Limits {
            duration_s: minutes.map(|minutes| minutes.saturating_mul(60)),
            energy_wh: energy_wh.map(u32::from),
            duration_max_s: minutes.is_none().then_some(max_s),
            until_full: false,
        }
    }

    /// The tariff of a 1007.
    pub(super) fn fee_order(&self, now_us: u64, start: &FeeStart<'_>) -> Order {
        let time = DeviceTime::from_unix(self.unix_s(now_us));
        let start_s = (u32::from(time.hour) * 60 + u32::from(time.minute)) * 60 + u32::from(time.second);
        let by_energy = start.service_fee_mode != Some(0);
        let fees = Fees { tiers: start.tiers.collect(), by_energy, start_s };
        Order { kind: Kind::Fee(fees, start.paid_amount_cent), card: None }
    }

    /// Switches a hole on or off. A start is refused while it charges, a stop while it does not.
    pub(super) fn switch(
        &mut self,
        now_us: u64,
        [socket, hole, switch]: [u8; 3],
        limits: Limits,
        order: Order,
    ) -> StartReply {
        let refused = StartReply { result: 0, socket, hole, business_no: 0 };
        if switch == 0 {
            let running = self.hole_mut(socket, hole).and_then(|hole| hole.running.as_ref());
            let Some(business_no) = running.map(|running| running.business_no) else { return refused };
            self.end_charge(now_us, socket, hole, End::Stopped);
            return StartReply { result: 1, business_no, ..refused };
        }
        let business_no = self.next_business_no;
        if !self.begin(now_us, (socket, hole), business_no, limits, order) {
            self.events.push(Event::ChargeRefused(0));
            return refused;
        }
        self.take_business_no();
        StartReply { result: 1, business_no, ..refused }
    }

    /// A number for a new order.
    pub(super) fn take_business_no(&mut self) -> u16 {
        let business_no = self.next_business_no;
        // 0 means "no order".
        self.next_business_no = business_no.checked_add(1).unwrap_or(1);
        business_no
    }

    /// Switches a hole on; false if it cannot be reached or charges already.
    pub(super) fn begin(
        &mut self,
        now_us: u64,
        (socket, hole): (u8, u8),
        business_no: u16,
        limits: Limits,
        order: Order,
    ) -> bool {
        let (behaviour, index, (_, no_load_s)) = (self.behaviour, u64::from(self.index), self.times_s(socket));
        let is_online = self.sockets.iter().any(|known| known.number == socket && known.online);
        let Some(found) = self.hole_mut(socket, hole).filter(|hole| is_online && hole.running.is_none()) else {
            return false;
        };
        let load = if found.plugged { Ok(()) } else { Err(no_load_s) };
        let port_no = port_no(socket, hole);
        let nth = [index, port_no.into(), u64::from(found.charges)];
        let mut charge = Charge::begin(now_us, &behaviour, nth, load, limits);
        if charge.power_dw() > 0 {
            charge.limit(order.limits(charge.power_dw(), limits));
        }
        found.charges = found.charges.wrapping_add(1);
        let start = order.card.map_or(Start::Online, |(card, _)| Start::Card(CardNumber::Printed(card)));
        let entry = self.ledger.begin(Reference::Business(business_no), port_no, start, now_us);
        let running = Running { charge, business_no, order, entry };
        if let Some(found) = self.hole_mut(socket, hole) {
            found.running = Some(Box::new(running));
        }
        self.push_by(socket, now_us.saturating_add(PUSH_AFTER_START_US));
        self.events.push(Event::ChargeStarted(port_no));
        true
    }

    pub(super) fn end_charge(&mut self, now_us: u64, socket: u8, hole: u8, end: End) {
        let voltage_dv = self.voltage_dv();
        let Some(running) = self.hole_mut(socket, hole).and_then(|hole| hole.running.take()) else { return };
        let charge = &running.charge;
        let elapsed_s = charge.elapsed_s(now_us);
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
            charged_min: saturate(elapsed_s / 60),
        };
        let (order, entry) = (running.order, running.entry);
        let record = Record { block, order, end, ended_us: now_us, elapsed_s, entry };
        let totals = Totals {
            duration_s: u32::from(block.charged_min) * 60,
            energy_wh: u32::from(block.energy_wh),
            spent_cent: record.spent_cent(),
            end_code: block.status.0,
        };
        self.ledger.end(entry, now_us, end, totals);
        self.records.push_back(record);
        if self.settlement.due_us == NEVER {
            self.settlement.due_us = now_us;
        }
        self.events.push(Event::ChargeEnded(port_no(socket, hole)));
    }

    pub(super) fn charges_timeout(&mut self, now_us: u64) {
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

    /// The oldest record whose socket the gateway can hear.
    pub(super) fn next_record(&self) -> Option<usize> {
        let is_heard = |record: &Record| {
            let socket = self.sockets.iter().find(|socket| socket.number == record.block.socket);
            socket.is_none_or(|socket| socket.online)
        };
        self.records.iter().position(is_heard)
    }

    /// Sends the next end report, or closes the connection when it was sent often enough.
    pub(super) fn settle(&mut self, now_us: u64) {
        let Some(record) = self.next_record().and_then(|at| self.records.get(at)) else {
            self.settlement.due_us = NEVER;
            return;
        };
        if self.tries == END_TRIES {
            self.settlement.due_us = NEVER;
            self.closing = true;
            return;
        }
        // A copy is measured anew: repeated reports are not the same bytes.
        let block = EndBlock { power_dw: record.block.power_dw.saturating_add(u16::from(self.tries)), ..record.block };
        let end_time = DeviceTime::from_unix(self.unix_s(record.ended_us));
        record.write(&mut self.out, self.gateway_id, block, end_time);
        self.tries += 1;
        let again_us = if self.tries == END_TRIES { CLOSE_AFTER_US } else { END_AGAIN_US };
        self.sent(now_us, Request::Settlement, again_us);
    }

    /// An acknowledgement of an end report came, for the socket that it names.
    pub(super) fn settled(&mut self, now_us: u64, socket: u8) {
        let Some(at) = self.next_record() else { return };
        if self.records.get(at).is_none_or(|record| record.block.socket != socket) {
            return;
        }
        if !self.answered(now_us, Request::Settlement) {
            return;
        }
        if let Some(record) = self.records.remove(at) {
            self.ledger.set(record.entry, State::Acknowledged);
        }
        self.tries = 0;
        self.settlement.due_us = if self.next_record().is_none() { NEVER } else { now_us };
        self.push_by(socket, now_us.saturating_add(PUSH_AFTER_END_US));
        self.events.push(Event::Settled);
    }
}

impl Running {
    pub(super) const fn entry(&self) -> u64 {
        self.entry
    }
}

impl Record {
    fn spent_cent(&self) -> Option<u32> {
        match &self.order.kind {
            Kind::Plain => None,
            Kind::Power(levels) => Some(levels.spent_cent(self.block.power_dw, self.block.charged_min)),
            Kind::Fee(fees, _) => {
                let uses = fees.split(self.elapsed_s, u32::from(self.block.energy_wh));
                Some(fees.cost_cent(&uses).iter().sum())
            }
        }
    }

    fn write(&self, out: &mut Vec<u8>, id: GatewayId, block: EndBlock, end_time: DeviceTime) {
        let mut buffer = Vec::new();
        if let Some((card, mode)) = self.order.card {
            let usage = self.usage(&mut buffer);
            let end = CardEnd { block, card: Hex(card), card_type: 0, mode, usage };
            return device::card_end(out, id, &end);
        }
        match &self.order.kind {
            Kind::Plain => device::charge_end(out, id, &ChargeEnd { block }),
            Kind::Power(_) => {
                let usage = self.usage(&mut buffer);
                device::power_end(out, id, &PowerEnd { block, end_time, end_reason: end_reason(self.end), usage });
            }
            Kind::Fee(fees, _) => {
                let uses = fees.split(self.elapsed_s, u32::from(block.energy_wh));
                let [electricity_cent, service_cent] = fees.cost_cent(&uses).map(saturate);
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
                    end_reason_raw: Some(end_reason(self.end)),
                    spent_cent: None,
                    settle_power_dw: None,
                    end_time: Some(end_time),
                    card: None,
                    electricity_fee_cent: Some(electricity_cent),
                    service_fee_cent: Some(service_cent),
                };
                // Time and energy per tier; how the six bytes are split is not documented.
                for used in &uses {
                    buffer.extend_from_slice(&used.minutes.to_be_bytes());
                    buffer.extend_from_slice(&used.energy_wh.to_be_bytes());
                }
                device::fee_end(out, id, &report, &buffer);
            }
        }
    }

    fn usage<'a>(&self, buffer: &'a mut Vec<u8>) -> Usage<'a> {
        let Kind::Power(levels) = &self.order.kind else {
            return Usage { spent_cent: 0, settle_power_dw: 0, level_count: 0, level_minutes: Records::new(&[]) };
        };
        let (tier, _) = levels.tier(self.block.power_dw);
        let minutes = (0..levels.count).map(|level| if level == tier { self.block.charged_min } else { 0 });
        Usage {
            spent_cent: saturate(levels.spent_cent(self.block.power_dw, self.block.charged_min)),
            settle_power_dw: self.block.power_dw,
            level_count: levels.count,
            level_minutes: Records::of(buffer, minutes),
        }
    }
}

/// The reason byte has no list in the guide; its two examples of ends without load show 02 and 08.
const fn end_reason(end: End) -> u8 {
    match end {
        End::NoLoad | End::Unplugged | End::Full => 0x02,
        End::Duration | End::Energy | End::DurationMax | End::Stopped | End::Fault(_) => 0x00,
    }
}

pub(super) fn saturate(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}
