//! What a charger asks the server: registration, heartbeats, time, records.

use chargegate::protocol::ap3000::body::{Heartbeat, HostHeartbeat, LegacyHeartbeat, Registration};
use chargegate::protocol::ap3000::encode;
use chargegate::protocol::ap3000::wire::{Extra, Text, U8s, U16sLe};

use super::{
    AMBIENT_TEMP, Ap3000Device, Exchange, Heartbeats, LEGACY_HEARTBEATS_MAX, MODULE_EVERY_US, NEVER, NEXT_RECORD_S,
    PORTS_MAX, REPLY_TIMEOUT_US, Request, SETTLE_AGAIN_S, TIME_AGAIN_US, TIME_RETRY_US, iccid,
};
use crate::device::Event;

impl Ap3000Device {
    pub(super) fn voltage_dv(&self) -> u16 {
        2180 + u16::try_from(self.index % 60).unwrap_or_default()
    }

    /// Sends a request, or sends it again.
    pub(super) fn send(&mut self, now_us: u64, request: Request) {
        self.give_up(request);
        let msg_id = match request {
            Request::Registration => self.send_registration(now_us),
            Request::Heartbeat => self.send_heartbeat(now_us),
            Request::Time | Request::HostTime => {
                let header = self.line.header(now_us);
                encode::empty(&mut self.line.out, &header, if request == Request::Time { 0x22 } else { 0x12 });
                header.msg_id
            }
            Request::Settlement => {
                let Some(record) = self.records.front_mut() else {
                    *self.line.exchange(request) = Exchange::IDLE;
                    return;
                };
                let header = self.line.header(now_us);
                record.first_msg_id.get_or_insert(header.msg_id);
                encode::settlement(&mut self.line.out, &header, &record.body());
                header.msg_id
            }
            Request::Card => return self.swipe_timeout(now_us),
            // Kept per charge; the rest is of hosts and BKV gateways.
            _ => return,
        };
        let again_us = match request {
            Request::Registration => self.heartbeat_us,
            Request::Heartbeat if self.is_silent() => NEVER,
            Request::Heartbeat => self.heartbeat_us,
            Request::Settlement => self.behaviour.scaled(SETTLE_AGAIN_S).max(REPLY_TIMEOUT_US),
            _ => TIME_RETRY_US,
        };
        self.line.sent(now_us, request, msg_id, again_us);
    }

    /// Whether the last 0x01 that goes without an answer went out.
    pub(super) const fn is_silent(&self) -> bool {
        matches!(self.model.heartbeats, Heartbeats::Legacy) && self.missed + 1 >= LEGACY_HEARTBEATS_MAX
    }

    pub(super) fn send_registration(&mut self, now_us: u64) -> u16 {
        let registration = Registration {
            fw_version: self.fw_version,
            port_count: u8::try_from(self.ports.len()).unwrap_or(PORTS_MAX),
            virtual_id: self.virtual_id,
            device_type: self.model.device_type,
            work_mode: Some(self.work_mode()),
            power_board_version: Some(self.power_board_version),
            extra: Extra::NONE,
        };
        let header = self.line.header(now_us);
        encode::registration(&mut self.line.out, &header, &registration);
        header.msg_id
    }

    pub(super) fn send_heartbeat(&mut self, now_us: u64) -> u16 {
        if self.model.heartbeats == Heartbeats::Legacy {
            return self.send_legacy_heartbeat(now_us);
        }
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
        let header = self.line.header(now_us);
        encode::heartbeat(&mut self.line.out, &header, &heartbeat);
        if self.model.cabinet {
            self.cabinet_heartbeat(now_us);
        }
        if self.legacy_left > 0 {
            self.legacy_left -= 1;
            self.send_legacy_heartbeat(now_us);
        }
        header.msg_id
    }

    pub(super) fn send_legacy_heartbeat(&mut self, now_us: u64) -> u16 {
        let states: Vec<u8> = self.ports.iter().map(|port| port.state.0).collect();
        let power: Vec<u8> = self
            .ports
            .iter()
            .flat_map(|port| port.running.as_ref().map_or(0, |running| running.charge.power_dw()).to_le_bytes())
            .collect();
        let heartbeat = LegacyHeartbeat {
            fw_version: self.fw_version,
            voltage: self.voltage_dv(),
            port_count: u8::try_from(states.len()).unwrap_or(PORTS_MAX),
            port_states: U8s::new(&states),
            port_power: U16sLe::new(&power),
            port_peak_power: U16sLe::new(&power),
            virtual_id: Some(self.virtual_id),
            signal: Some(0),
            device_type: Some(self.model.device_type),
            ambient_temp: Some(AMBIENT_TEMP),
            work_mode: Some(self.work_mode()),
            extra: Extra::NONE,
        };
        let header = self.line.header(now_us);
        encode::legacy_heartbeat(&mut self.line.out, &header, &heartbeat);
        header.msg_id
    }

    /// 0x11 of chargers with a module of their own.
    pub(super) fn send_module(&mut self, now_us: u64) {
        let iccid = iccid(self.index);
        let heartbeat = HostHeartbeat {
            fw_version: self.fw_version,
            rtc_module: 0,
            timestamp: 0,
            signal: 25,
            module_type: 7,
            iccid: Text::new(&iccid),
            host_type: Some(self.model.device_type),
            frequency: None,
            imei: None,
            module_version: None,
            extra: Extra::NONE,
        };
        let header = self.line.header(now_us);
        encode::host_heartbeat(&mut self.line.out, &header, &heartbeat);
        self.module_us = now_us.saturating_add(MODULE_EVERY_US);
    }

    /// The reaction to 0x81.
    pub(super) fn report_status(&mut self, now_us: u64) {
        if self.model.heartbeats != Heartbeats::Legacy {
            self.send(now_us, Request::Registration);
        }
        self.send(now_us, Request::Heartbeat);
    }

    /// A field of 0x20 changed.
    pub(super) fn registration_changed(&mut self, now_us: u64) {
        if self.connected && self.model.heartbeats != Heartbeats::Legacy {
            self.line.exchange(Request::Registration).due_us = now_us;
        }
    }

    /// Stops waiting for the last copy of a request.
    pub(super) fn give_up(&mut self, request: Request) {
        if request == Request::Card || !self.line.give_up(request) {
            return;
        }
        if request == Request::Heartbeat {
            self.missed = self.missed.saturating_add(1);
            if self.missed == 2 {
                self.line.events.push(Event::OfflineMode);
            }
        }
    }

    /// Takes the one-byte answer to a request of ours.
    pub(super) fn handle_result(&mut self, now_us: u64, request: Request, msg_id: u16, result: u8) {
        let first = self.records.front().and_then(|record| record.first_msg_id);
        let other_id = first.filter(|_| request == Request::Settlement);
        if !self.line.answered(now_us, request, msg_id, other_id) {
            return;
        }
        match request {
            Request::Registration => self.line.exchange(request).due_us = NEVER,
            Request::Heartbeat => {
                (self.missed, self.legacy_left) = (0, 0);
                let again_us = now_us.saturating_add(self.heartbeat_us);
                let due_us = &mut self.line.exchange(request).due_us;
                *due_us = (*due_us).min(again_us);
            }
            // With another result the record stays and goes again with the next repetition.
            Request::Settlement if result == 0 => {
                self.settled();
                let next_us = now_us.saturating_add(self.behaviour.scaled(NEXT_RECORD_S));
                self.line.exchange(request).due_us = if self.records.is_empty() { NEVER } else { next_us };
            }
            _ => {}
        }
        let registers = match self.model.heartbeats {
            Heartbeats::Legacy => Request::Heartbeat,
            Heartbeats::Modern | Heartbeats::Both => Request::Registration,
        };
        if request == registers && !self.registered {
            self.registered = true;
            self.line.events.push(Event::Registered);
        }
    }

    pub(super) fn handle_time(&mut self, now_us: u64, request: Request, msg_id: u16, unix_s: u32) {
        if self.line.answered(now_us, request, msg_id, None) {
            self.clock = (now_us, unix_s);
            self.line.exchange(request).due_us = now_us.saturating_add(TIME_AGAIN_US);
        }
    }

    /// When the wait for a heartbeat's answer ends.
    pub(super) fn heartbeat_deadline_us(&self) -> u64 {
        let waiting = self.line.exchanges[Request::Heartbeat.index()].waiting;
        waiting.map_or(NEVER, |waiting| waiting.sent_us.saturating_add(REPLY_TIMEOUT_US))
    }
}
