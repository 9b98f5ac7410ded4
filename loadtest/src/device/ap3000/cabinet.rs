//! Alarms, and what only charging cabinets have: doors, fans, bays that stay occupied.
//!
//! In a cabinet the end of a charge is told by 0x43 at once. The record follows when the bay is empty, because it counts
//! the minutes until then; after 10 min the simulated customer comes by himself.

use chargegate::protocol::ap3000::body::{
    Alarm, CabinetHeartbeat, CabinetStop, CabinetStopReply, ChargeComplete, MultiFunction, PortEvent,
};
use chargegate::protocol::ap3000::codes::{AlarmType, PortState, StopReason};
use chargegate::protocol::ap3000::encode::{self, Header};
use chargegate::protocol::ap3000::wire::{Extra, Raw};

use super::charging::Record;
use super::{Ap3000Device, PORTS_MAX, SECOND_US};
use crate::device::charge::End;

/// A battery stays in its bay this long after the charge.
const OCCUPIED_S: u64 = 600;
/// The only event of 0x44.
const DOOR_NOT_CLOSED: u8 = 1;
/// The only function of 0x98.
const OPEN_DOOR: u8 = 0;

impl Ap3000Device {
    /// Sends 0x42. `port` is the port or the sensor, as the type wants; `trigger_bits` are for RS-485 sensors. False
    /// without a connection: alarms are not kept.
    pub fn alarm(&mut self, now_us: u64, alarm_type: AlarmType, port: u8, trigger_bits: Option<u8>) -> bool {
        if self.connected {
            let header = self.line.header(now_us);
            let alarm = Alarm { alarm_type, port, trigger_bits, extra: Extra::NONE };
            encode::alarm(&mut self.line.out, &header, &alarm);
        }
        self.connected
    }

    /// Opens or closes the door of a bay (counted from 0). A door that stays open while the bay charges is told by 0x44.
    pub fn set_door(&mut self, now_us: u64, port: u8, open: bool) {
        let bit = 1_u32.checked_shl(u32::from(port)).unwrap_or_default();
        self.door_bits = if open { self.door_bits | bit } else { self.door_bits & !bit };
        let running = self.ports.get(usize::from(port)).and_then(|port| port.running.as_ref());
        if let Some(order_no) = running.map(|running| running.origin.order_no).filter(|_| open && self.connected) {
            let header = self.line.header(now_us);
            let event = PortEvent { event_type: DOOR_NOT_CLOSED, port, order_no: Raw(order_no), extra: Extra::NONE };
            self.line.write(&header, 0x44, &event);
        }
    }

    /// Bit i = door of bay i is open.
    pub const fn doors(&self) -> u32 {
        self.door_bits
    }

    /// 0x41, with every heartbeat; the document gives no interval.
    pub(super) fn cabinet_heartbeat(&mut self, now_us: u64) {
        let fans = (0..).zip(&self.ports).filter(|(_, port)| port.running.is_some());
        let heartbeat = CabinetHeartbeat {
            port_count: u8::try_from(self.ports.len()).unwrap_or(PORTS_MAX),
            door_bits: self.door_bits,
            fan_bits: fans.fold(0, |bits, (bay, _)| bits | 1 << bay),
            extra: Extra::NONE,
        };
        let header = self.line.header(now_us);
        self.line.write(&header, 0x41, &heartbeat);
    }

    /// The charge is over, the bay is not empty.
    pub(super) fn complete(&mut self, now_us: u64, record: Record) {
        if self.connected {
            let body = record.body();
            let notice = ChargeComplete {
                duration_s: body.duration_s,
                max_power: body.max_power,
                energy: body.energy,
                port: body.port,
                start_mode: body.start_mode,
                card_or_code: body.card_or_code,
                stop_reason: body.stop_reason,
                order_no: body.order_no,
                extra: Extra::NONE,
            };
            let header = self.line.header(now_us);
            encode::charge_complete(&mut self.line.out, &header, &notice);
        }
        self.occupied.push(record);
    }

    /// The battery was taken out of a bay.
    pub(super) fn vacate(&mut self, now_us: u64, port: u8) {
        while let Some(at) = self.occupied.iter().position(|record| record.port() == port) {
            let record = self.occupied.remove(at);
            let minutes = now_us.saturating_sub(record.ended_us()) * u64::from(self.behaviour.time_factor.max(1));
            let minutes = u16::try_from(minutes / (60 * SECOND_US)).unwrap_or(u16::MAX);
            self.keep(now_us, record.vacated(minutes));
        }
    }

    pub(super) fn occupied_until_us(&self, record: &Record) -> u64 {
        record.ended_us().saturating_add(self.behaviour.scaled(OCCUPIED_S))
    }

    pub(super) fn occupied_timeout(&mut self, now_us: u64) {
        while let Some((port, until_us)) = self.occupied.iter().find_map(|record| {
            let until_us = self.occupied_until_us(record);
            (until_us <= now_us).then_some((record.port(), until_us))
        }) {
            self.vacate(until_us, port);
            if let Some(port) = self.ports.get_mut(usize::from(port))
                && port.running.is_none()
            {
                port.state = PortState::IDLE;
            }
        }
    }

    /// 0x72: the door stays shut.
    pub(super) fn cabinet_stop(&mut self, now_us: u64, header: &Header, stop: &CabinetStop<'_>) {
        let running = self.ports.get(usize::from(stop.port)).and_then(|port| port.running.as_ref());
        let is_it = running.is_some_and(|running| running.origin.order_no == stop.order_no.0);
        let ok = self.model.cabinet && is_it;
        if ok {
            self.end_charge(now_us, stop.port, End::Stopped);
        }
        let reply = CabinetStopReply { result: u8::from(!ok), order_no: stop.order_no, extra: Extra::NONE };
        self.line.write(header, 0x72, &reply);
    }

    /// 0x98. A forced door ends the charge behind it.
    pub(super) fn multi_function(&mut self, now_us: u64, function: &MultiFunction<'_>) -> u8 {
        let port = function.port;
        if !self.model.cabinet || function.function != OPEN_DOOR || usize::from(port) >= self.ports.len() {
            return 1;
        }
        self.end_charge(now_us, port, End::Fault(StopReason::SERVER_FORCED.0));
        self.set_door(now_us, port, true);
        0
    }
}
