//! Charges: start, report, change, end, and the records that wait for the server.

use chargegate::protocol::ap3000::body::{
    ChargeControl, ChargeControlReply, ChargingReport, ModifyCharge, OrderConfirm, Settlement,
};
use chargegate::protocol::ap3000::codes::{
    ChargeResult, ModifyMode, PortState, RateMode, ReportState, StartMode, StopReason,
};
use chargegate::protocol::ap3000::encode;
use chargegate::protocol::ap3000::wire::{Extra, Raw};

use super::{
    AMBIENT_TEMP, Ap3000Device, FIRST_REPORT_US, NEVER, PORTS_MAX, Port, REPORT_EVERY_S, Request, SETTLE_AFTER_US,
    Waiting,
};
use crate::device::Event;
use crate::device::charge::{Charge, End, Limits};
use crate::device::ledger::{Reference, Start, State, Totals};

#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    pub(super) charge: Charge,
    pub(super) origin: Origin,
    entry: u64,
    pub(super) report_us: u64,
    /// Energy at the last report, for the debugging field of the next.
    reported_wh: u32,
    /// The 0x04 that is not answered.
    confirm: Option<Waiting>,
}

/// Who began a charge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) start_mode: StartMode,
    pub(super) card_or_code: [u8; 4],
    pub(super) order_no: [u8; 16],
    pub(super) start: Start,
}

/// A charge that ended, kept until it is acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    duration_s: u16,
    power_dw: u16,
    energy: u16,
    port: u8,
    stop_reason: StopReason,
    origin: Origin,
    entry: u64,
    /// Cabinets: when it ended, then minutes until the bay was empty.
    ended_us: u64,
    occupancy_min: Option<u16>,
    /// Message id of the first copy: its answer may come after the second was sent.
    pub(super) first_msg_id: Option<u16>,
}

impl Ap3000Device {
    /// Whether a record waits for the server or for an empty bay.
    pub fn unsettled(&self) -> usize {
        self.records.len() + self.occupied.len()
    }

    /// Ends the charge on a port (counted from 0) as if by a fault or a local operation.
    pub fn end_by(&mut self, now_us: u64, port: u8, reason: StopReason) {
        self.end_charge(now_us, port, End::Fault(reason.0));
    }

    /// 0x82.
    pub(super) fn charge_control(&mut self, now_us: u64, control: &ChargeControl<'_>) -> ChargeControlReply<'static> {
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
        if reply.result == ChargeResult::SUCCESS { reply } else { self.refuse(reply) }
    }

    pub(super) fn refuse(&mut self, reply: ChargeControlReply<'static>) -> ChargeControlReply<'static> {
        self.line.events.push(Event::ChargeRefused(reply.result.0));
        reply
    }

    fn start(&mut self, now_us: u64, number: u8, control: &ChargeControl<'_>) -> ChargeResult {
        let origin = Origin {
            start_mode: StartMode::ONLINE,
            card_or_code: [0; 4],
            order_no: control.order_no.0,
            start: Start::Online,
        };
        match self.begin(now_us, number, self.limits(control), origin) {
            Ok(()) => ChargeResult::SUCCESS,
            Err(result) => result,
        }
    }

    /// Switches a port on.
    pub(super) fn begin(
        &mut self,
        now_us: u64,
        number: u8,
        limits: Limits,
        mut origin: Origin,
    ) -> Result<(), ChargeResult> {
        let port = self.ports.get(usize::from(number)).ok_or(ChargeResult::NO_PORT)?;
        if port.running.is_some() {
            return Err(ChargeResult::SAME_STATE);
        }
        match port.state {
            PortState::PLUGGED | PortState::FULL => {}
            PortState::IDLE => return Err(ChargeResult::NOT_PLUGGED),
            _ => return Err(ChargeResult::PORT_FAULT),
        }
        if origin.start == Start::Online {
            origin.start = self.card_of_start(now_us, number).map_or(Start::Online, Start::Card);
        }
        let port_no = u16::from(number) + 1;
        let entry = self.ledger.begin(Reference::Order(origin.order_no), port_no, origin.start, now_us);
        let Some(port) = self.ports.get_mut(usize::from(number)) else { return Err(ChargeResult::NO_PORT) };
        let nth = [u64::from(self.index), u64::from(number), u64::from(port.charges)];
        port.charges = port.charges.wrapping_add(1);
        port.state = PortState::CHARGING;
        port.running = Some(Box::new(Running {
            charge: Charge::begin(now_us, &self.behaviour, nth, Ok(()), limits),
            origin,
            entry,
            report_us: now_us.saturating_add(FIRST_REPORT_US),
            reported_wh: 0,
            confirm: None,
        }));
        self.line.events.push(Event::ChargeStarted(port_no));
        if self.model.confirms_orders && self.connected {
            // As the document warns, the confirmation goes out before the reply to 0x82.
            self.confirm(now_us, number);
        }
        Ok(())
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
            duration_max_s: duration_s.is_none().then(|| u32::from(own_max.unwrap_or_else(|| self.max_duration_s()))),
            until_full: free || control.force_full_stop == Some(1),
        }
    }

    fn stop(&mut self, now_us: u64, control: &ChargeControl<'_>) -> ChargeResult {
        let Some(port) = self.ports.get(usize::from(control.port)) else { return ChargeResult::NO_PORT };
        // The document gives no result for another order's number; the stop is not carried out.
        if port.running.as_ref().is_none_or(|running| running.origin.order_no != control.order_no.0) {
            return ChargeResult::SAME_STATE;
        }
        self.end_charge(now_us, control.port, End::Stopped);
        ChargeResult::SUCCESS
    }

    /// 0x8A; its results are a table of their own. A value below what is used up is answered by 2 and ends the charge.
    pub(super) fn modify_charge(&mut self, now_us: u64, modify: &ModifyCharge<'_>) -> u8 {
        let max_duration_s = u32::from(self.max_duration_s());
        let Some(port) = self.ports.get_mut(usize::from(modify.port)) else { return 3 };
        let Some(running) = port.running.as_mut() else { return 1 };
        let value = u32::from(modify.duration_or_energy);
        let charge = &mut running.charge;
        // The moment of a full battery is not looked for again once it passed.
        let until_full = !charge.is_full(now_us);
        let (limits, used_up, end) = match modify.rate_mode {
            ModifyMode::TIMED | ModifyMode::TIMED_FULL => (
                Limits {
                    duration_s: Some(value),
                    until_full: until_full && modify.rate_mode == ModifyMode::TIMED_FULL,
                    ..Limits::default()
                },
                charge.elapsed_s(now_us) > value,
                End::Duration,
            ),
            ModifyMode::METERED_FULL => (
                Limits {
                    energy_wh: Some(value * 10),
                    until_full,
                    duration_max_s: Some(max_duration_s),
                    ..Limits::default()
                },
                charge.energy_wh(now_us) > value * 10,
                End::Energy,
            ),
            _ => return 3,
        };
        if used_up {
            self.end_charge(now_us, modify.port, end);
            return 2;
        }
        charge.limit(limits);
        0
    }

    /// Cuts the output of a port, if it is on, and keeps the record.
    pub(super) fn end_charge(&mut self, now_us: u64, number: u8, end: End) {
        let Some(port) = self.ports.get_mut(usize::from(number)) else { return };
        let Some(running) = port.running.take() else { return };
        port.state = if end == End::Full { PortState::FULL } else { PortState::PLUGGED };
        let charge = &running.charge;
        let record = Record {
            duration_s: saturate(charge.elapsed_s(now_us)),
            power_dw: charge.power_dw(),
            energy: saturate(charge.energy_wh(now_us) / 10),
            port: number,
            stop_reason: stop_reason(end),
            origin: running.origin,
            entry: running.entry,
            ended_us: now_us,
            occupancy_min: None,
            first_msg_id: None,
        };
        if running.confirm.is_some() {
            self.line.events.push(Event::Unanswered(Request::OrderConfirm));
        }
        let totals = Totals {
            duration_s: u32::from(record.duration_s),
            energy_wh: u32::from(record.energy) * 10,
            spent_cent: None,
            end_code: record.stop_reason.0,
        };
        self.ledger.end(running.entry, now_us, end, totals);
        if self.model.cabinet && end != End::Unplugged {
            self.complete(now_us, record);
        } else {
            self.keep(now_us, record);
        }
        self.line.events.push(Event::ChargeEnded(u16::from(number) + 1));
    }

    /// Keeps a record for the server.
    pub(super) fn keep(&mut self, now_us: u64, record: Record) {
        self.records.push_back(record);
        if self.records.len() == 1 {
            self.line.exchange(Request::Settlement).due_us = now_us.saturating_add(SETTLE_AFTER_US);
        }
    }

    /// All records are deleted, settled or not.
    pub(super) fn erase_records(&mut self) {
        for record in self.records.drain(..).chain(self.occupied.drain(..)) {
            self.ledger.set(record.entry, State::Erased);
        }
        self.line.give_up(Request::Settlement);
        self.line.exchange(Request::Settlement).due_us = NEVER;
    }

    /// The server has the oldest record.
    pub(super) fn settled(&mut self) {
        if let Some(record) = self.records.pop_front() {
            self.ledger.set(record.entry, State::Acknowledged);
            self.line.events.push(Event::Settled);
        }
    }

    pub(super) fn charges_timeout(&mut self, now_us: u64) {
        for number in 0..u8::try_from(self.ports.len()).unwrap_or(PORTS_MAX) {
            let Some(running) = self.ports.get(usize::from(number)).and_then(|port| port.running.as_deref()) else {
                continue;
            };
            let (ends_us, end) = running.charge.ends();
            if ends_us <= now_us {
                // The end may be in the past: no report says more than was ordered.
                self.end_charge(ends_us, number, end);
            } else if running.report_us <= now_us && self.connected {
                if self.model.confirms_orders {
                    self.confirm(now_us, number);
                } else {
                    self.report(now_us, number);
                }
            }
        }
    }

    /// 0x04, every heartbeat interval until it is answered.
    fn confirm(&mut self, now_us: u64, number: u8) {
        let heartbeat_us = self.heartbeat_us;
        let Some(running) = self.ports.get_mut(usize::from(number)).and_then(|port| port.running.as_mut()) else {
            return;
        };
        let header = self.line.header(now_us);
        if running.confirm.replace(Waiting { msg_id: header.msg_id, sent_us: now_us }).is_some() {
            self.line.events.push(Event::Unanswered(Request::OrderConfirm));
        }
        running.report_us = now_us.saturating_add(heartbeat_us);
        let confirm = OrderConfirm {
            port: number,
            start_mode: running.origin.start_mode,
            card_id: Raw(running.origin.card_or_code),
            duration_s: saturate(running.charge.elapsed_s(now_us)),
            order_no: Raw(running.origin.order_no),
            extra: Extra::NONE,
        };
        encode::order_confirm(&mut self.line.out, &header, &confirm);
        self.line.events.push(Event::Sent(Request::OrderConfirm));
    }

    /// 0x04 down. No result but 0 is documented; with another the confirmation goes on.
    pub(super) fn confirmed(&mut self, now_us: u64, msg_id: u16, port: u8, result: u8) {
        let Some(running) = self.ports.get_mut(usize::from(port)).and_then(|port| port.running.as_mut()) else {
            return;
        };
        let Some(waiting) = running.confirm.filter(|waiting| waiting.msg_id == msg_id) else { return };
        running.confirm = None;
        if result == 0 {
            running.report_us = NEVER;
        }
        self.line.events.push(Event::Answered(Request::OrderConfirm, now_us.saturating_sub(waiting.sent_us)));
    }

    /// No answer comes over a lost connection; confirmations go out again over the next one.
    pub(super) fn confirms_lost(&mut self) {
        for port in &mut self.ports {
            if let Some(running) = &mut port.running
                && running.confirm.take().is_some()
            {
                self.line.events.push(Event::Unanswered(Request::OrderConfirm));
            }
        }
    }

    /// After the mains returned, orders are confirmed again.
    pub(super) fn confirm_again(&mut self, now_us: u64) {
        for running in self.ports.iter_mut().filter_map(|port| port.running.as_mut()) {
            running.report_us = running.report_us.min(now_us);
        }
    }

    fn report(&mut self, now_us: u64, number: u8) {
        let voltage = self.voltage_dv();
        let again_us = self.behaviour.scaled(REPORT_EVERY_S).max(FIRST_REPORT_US);
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
            start_mode: running.origin.start_mode,
            power_now: power,
            power_max: power,
            power_min: power,
            power_avg: power,
            order_no: Raw(running.origin.order_no),
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
        let header = self.line.header(now_us);
        encode::charging_report(&mut self.line.out, &header, &report);
    }
}

impl Record {
    pub(super) const fn port(&self) -> u8 {
        self.port
    }

    pub(super) const fn ended_us(&self) -> u64 {
        self.ended_us
    }

    /// The bay is empty.
    pub(super) const fn vacated(self, occupancy_min: u16) -> Self {
        Self { occupancy_min: Some(occupancy_min), ..self }
    }

    pub(super) fn body(&self) -> Settlement<'static> {
        Settlement {
            duration_s: self.duration_s,
            max_power: self.power_dw,
            energy: self.energy,
            port: self.port,
            start_mode: self.origin.start_mode,
            card_or_code: Raw(self.origin.card_or_code),
            stop_reason: self.stop_reason,
            order_no: Raw(self.origin.order_no),
            second_max_power: Some(self.power_dw),
            timestamp: None,
            occupancy_min: self.occupancy_min,
            extra: Extra::NONE,
        }
    }
}

const fn stop_reason(end: End) -> StopReason {
    match end {
        End::Duration => StopReason::DURATION,
        End::Energy => StopReason::ENERGY,
        End::DurationMax => StopReason::DURATION_MAX,
        End::Full => StopReason::FULL,
        End::NoLoad => StopReason::POWER_MIN,
        End::Stopped => StopReason::SERVER,
        End::Unplugged => StopReason::UNPLUGGED,
        End::Fault(code) => StopReason(code),
    }
}

/// What the device's u16 counters hold; whether real ones saturate or wrap is not documented.
fn saturate(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}
