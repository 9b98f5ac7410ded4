//! What AP3000 hosts, cabinets, meters and sensors tell: alarms that become events, and values that are kept as the latest.
//!
//! None of it is acknowledged by the protocol. A change of a bit that somebody has to look after raises `device.alarm`; what is
//! reported for the first time is compared with nothing, so only a state that is an alarm by itself raises one then.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    gateway::{ConnId, Core, Effects, Now, core::Cx, device::Device, slots::Key},
    model::{DeviceId, EventType, HostValues, OrderNo, OtaMethod, SubDeviceKind},
    protocol::{
        Direction, Hex,
        ap3000::{
            PhyId,
            body::{
                Alarm, CabinetHeartbeat, FskParams, FskRequest, HostHeartbeat, HostStatus, PortEvent, SubDeviceVersions,
            },
            codes::AlarmType,
            encode::{self, Header},
            wire::{Extra, Raw, U32sLe},
        },
    },
    store::CommandLogRow,
    telemetry::label::ShardEvent,
};

const FSK_PARAMS: u8 = 0x3A;
/// Recognition codes of hosts.
const HOST_CODES: [u8; 2] = [0x09, 0x0A];
/// Sub-devices a host has at most (host-server protocol v2.9, command 00).
const SUB_DEVICES_MAX: usize = 50;
/// Host type of the leakage-protection host, the one with a breaker (host-server protocol v2.9).
const LEAKAGE_HOST: u8 = 0x51;

/// A device wants firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) struct UpdateRequest {
    /// 05, 15, or an update command (E0, E1, E2, FA) that came with packet 0: begin at packet 1.
    pub(in crate::gateway) command: u8,
    /// Own type, where 05 has it.
    pub(in crate::gateway) device_type: Option<u8>,
    /// Own firmware in hundredths, where 05 has it.
    pub(in crate::gateway) fw_version: Option<u16>,
    /// Which image it wants, where 05 has it.
    pub(in crate::gateway) package_type: Option<u32>,
}

impl UpdateRequest {
    /// A request that says no more than its command.
    pub(super) const fn of(command: u8) -> Self {
        Self { command, device_type: None, fw_version: None, package_type: None }
    }
}

impl Core {
    /// Answers 3B with 3A: the frequency of the device's record, else the one in use, and the sub-devices that have spoken on this
    /// socket.
    pub(super) fn answer_fsk(
        &mut self,
        now: Now,
        conn: Key,
        device: Option<Key>,
        header: &Header,
        request: &FskRequest<'_>,
        effects: &mut Effects,
    ) {
        let configured = device.and_then(|key| self.device(key)).and_then(|device| device.fsk_frequency);
        let mut sub_ids = Vec::new();
        for id in self.devices_on(conn) {
            if let DeviceId::Ap3000(phy_id) = id
                && phy_id != header.phy_id
                && sub_ids.len() < SUB_DEVICES_MAX * 4
            {
                sub_ids.extend_from_slice(&phy_id.0);
            }
        }
        let params = FskParams {
            frequency: configured.unwrap_or(request.frequency),
            reserved: Raw::default(),
            sub_count: u8::try_from(sub_ids.len() / 4).unwrap_or(0),
            sub_ids: U32sLe::new(&sub_ids),
            extra: Extra::NONE,
        };
        let start = effects.tx.len();
        let mut sent = false;
        effects.write(ConnId::from(conn), |out| sent = encode::body(out, header, FSK_PARAMS, &params).is_ok());
        if sent {
            self.shared_mut().metrics.frames.ap3000(Direction::Down, FSK_PARAMS);
            effects.log.push(CommandLogRow {
                at: now.unix_ms,
                device_id: DeviceId::Ap3000(header.phy_id),
                up: false,
                command: u16::from(FSK_PARAMS),
                msg_id: u32::from(header.msg_id),
                epoch: device.and_then(|key| self.device(key)).and_then(Device::live_epoch),
                raw: effects.tx.get(start..).unwrap_or_default().to_vec(),
            });
        }
    }
}

impl Device {
    /// The device asks for firmware: the update under way starts over, if it is by this command; nothing begins by itself.
    pub(super) fn update_requested(&mut self, cx: &mut Cx<'_>, request: UpdateRequest) {
        cx.shared.metrics.events[ShardEvent::UpdateRequested].inc();
        log::debug!(target: "chargegate::frame", command = request.command; "firmware asked for");
        match request.command {
            0x05 => self.ota_requested(cx, OtaMethod::F8),
            0x15 => self.ota_requested(cx, OtaMethod::F9),
            _ => {}
        }
    }

    pub(super) fn alarm(&self, cx: &mut Cx<'_>, alarm: &Alarm<'_>) {
        let kind = alarm.alarm_type;
        // What the second byte means depends on the kind.
        let (port_no, sensor_address) = match kind {
            AlarmType::FIRE_SENSOR | AlarmType::DOOR_SPRUNG => (Some(u16::from(alarm.port) + 1), None),
            AlarmType::WATER | AlarmType::SMOKE | AlarmType::TEMPERATURE | AlarmType::WATER_LEVEL => {
                (None, Some(alarm.port))
            }
            _ => (None, None),
        };
        let data = json!({
            "device_id": self.id,
            "reason": alarm_word(kind),
            "raw": kind.0,
            "port_no": port_no,
            "sensor_address": sensor_address,
            "trigger_bits": alarm.trigger_bits,
        });
        cx.event(self.id, EventType::DeviceAlarm, data);
    }

    pub(super) fn port_event(&self, cx: &mut Cx<'_>, event: &PortEvent<'_>) {
        let data = json!({
            "device_id": self.id,
            "reason": if event.event_type == 1 { "door_not_closed" } else { "port_event" },
            "raw": event.event_type,
            "port_no": u16::from(event.port) + 1,
            "order_no": OrderNo::from_bytes(event.order_no.0),
            "order_ref": Hex(event.order_no.0),
        });
        cx.event(self.id, EventType::DeviceAlarm, data);
    }

    pub(super) fn cabinet(&mut self, cx: &mut Cx<'_>, beat: &CabinetHeartbeat<'_>) {
        let CabinetHeartbeat { port_count, door_bits, fan_bits, .. } = *beat;
        self.add_numbered_ports(port_count);
        let known = self.entry.host();
        let before = known.as_deref().map_or((None, None, None), |host| (host.bays, host.door_bits, host.fan_bits));
        if before == (Some(port_count), Some(door_bits), Some(fan_bits)) {
            return;
        }
        for (reason, now, before) in [("cabinet_doors", door_bits, before.1), ("cabinet_fans", fan_bits, before.2)] {
            if let Some(before) = before.filter(|before| *before != now) {
                let data = json!({
                    "device_id": self.id,
                    "reason": reason,
                    "bits": now,
                    "old_bits": before,
                    "set_ports": ports_of(now & !before),
                    "cleared_ports": ports_of(before & !now),
                });
                cx.event(self.id, EventType::DeviceAlarm, data);
            }
        }
        self.keep_host(|host| {
            (host.bays, host.door_bits, host.fan_bits) = (Some(port_count), Some(door_bits), Some(fan_bits));
        });
    }

    pub(super) fn host_heartbeat(&mut self, cx: &mut Cx<'_>, beat: &HostHeartbeat<'_>) {
        self.is_host(cx);
        self.entry.set_signal(beat.signal);
        if let Some(iccid) = &beat.iccid {
            self.entry.set_iccid(&String::from_utf8_lossy(iccid.as_bytes()));
        }
        // A charger with a module of its own has a version of its own, which its registration says.
        let is_host = matches!(self.id, DeviceId::Ap3000(phy_id) if HOST_CODES.contains(&phy_id.recognition_code()));
        if is_host || self.entry.firmware().is_none() {
            self.set_firmware(beat.fw_version);
        }
        if let Some(host_type) = beat.host_type {
            self.entry.set_device_type(host_type);
        }
        let text =
            |bytes: &[u8]| Some(String::from_utf8_lossy(bytes).trim().to_owned()).filter(|text| !text.is_empty());
        let imei = beat.imei.and_then(|imei| text(imei.as_bytes()));
        let module_version = beat.module_version.and_then(|version| text(version.as_bytes()));
        if self.entry.set_module(imei.as_deref(), module_version.as_deref(), beat.host_type) {
            self.host_dirty = true;
        }
        let frequency = beat.frequency.filter(|frequency| *frequency != 0);
        self.keep_host(|host| {
            host.module_type = Some(beat.module_type);
            host.frequency = frequency.or(host.frequency);
        });
    }

    pub(super) fn host_status(&mut self, cx: &mut Cx<'_>, status: &HostStatus<'_>) {
        self.is_host(cx);
        let known = self.entry.host();
        let before = known.as_deref();
        // Of other hosts the fields of breaker, relay and lock say nothing. One that has not told its type yet shows by the fields
        // that only such a host has.
        let guards = match self.entry.host_type() {
            Some(host_type) => host_type == LEAKAGE_HOST,
            None => status.leak_current_ma.is_some(),
        };
        let of_guard = |raw: u8| guards.then_some(raw);
        let breaker = of_guard(status.breaker_state);
        let relay = of_guard(status.alarm_relay);
        let lock = status.lock_state.filter(|_| guards);
        // What stands by itself as an alarm is told when it is seen first; of the others only a change.
        let changes = [
            ("smoke", Some(status.smoke_alarm), before.and_then(|host| host.smoke_alarm), Some(0)),
            ("alarm_relay", relay, before.and_then(|host| host.alarm_relay), Some(0)),
            ("breaker", breaker, before.and_then(|host| host.breaker_state), None),
            ("lock", lock, before.and_then(|host| host.lock_state), None),
        ];
        for (reason, now, before, usual) in changes {
            let Some(now) = now else { continue };
            if before.or(usual).is_some_and(|before| before != now) {
                let data = json!({ "device_id": self.id, "reason": reason, "raw": now, "old_raw": before });
                cx.event(self.id, EventType::DeviceAlarm, data);
            }
        }
        self.keep_host(|host| {
            host.breaker_state = breaker;
            host.smoke_alarm = Some(status.smoke_alarm);
            host.alarm_relay = relay;
            host.leak_current_ma = status.leak_current_ma.filter(|_| guards);
            host.live_temp_raw = status.live_temp.filter(|_| guards);
            host.neutral_temp_raw = status.neutral_temp.filter(|_| guards);
            host.lock_state = lock;
            host.breaker_model = status.breaker_model.filter(|_| guards);
            host.temp_raw = Some(status.temp);
            host.voltage_dv = Some(status.voltage);
            host.current_ma = Some(u32::from(status.current_10ma) * 10);
            host.energy_wh = Some(u64::from(status.energy) * 10);
            host.meter_current_ma = Some(u32::from(status.meter_current_10ma) * 10);
            host.meter_energy_wh = Some(u64::from(status.meter_energy) * 10);
        });
    }

    pub(super) fn sub_devices(&mut self, versions: &SubDeviceVersions<'_>) {
        let sub_devices = versions.types.iter().map(|kind| SubDeviceKind {
            device_type: kind.device_type,
            firmware: version_text(kind.min_version),
            device_id: PhyId(kind.phy_id.to_le_bytes()).to_string(),
        });
        let sub_devices = sub_devices.collect();
        self.keep_host(|host| host.sub_devices = sub_devices);
    }

    pub(super) fn set_firmware(&self, hundredths: u16) {
        self.entry.set_firmware(version_text(hundredths).as_bytes());
    }

    fn keep_host(&mut self, change: impl FnOnce(&mut HostValues)) {
        let known = self.entry.host();
        let mut values = known.as_deref().cloned().unwrap_or_default();
        change(&mut values);
        if known.as_deref() != Some(&values) {
            self.entry.set_host(Some(Arc::new(values)));
            self.host_dirty = true;
        }
    }
}

/// A firmware version in hundredths, as the vendor writes it.
fn version_text(hundredths: u16) -> String {
    format!("V{}.{:02}", hundredths / 100, hundredths % 100)
}

/// Bits as port numbers.
fn ports_of(bits: u32) -> Value {
    (0..u32::BITS).filter(|bit| bits >> bit & 1 == 1).map(|bit| bit + 1).collect()
}

const fn alarm_word(kind: AlarmType) -> &'static str {
    match kind {
        AlarmType::MAINS_LOST => "mains_lost",
        AlarmType::WATER => "water",
        AlarmType::FIRE_SENSOR => "fire_sensor",
        AlarmType::SMOKE => "smoke",
        AlarmType::TEMPERATURE => "temperature",
        AlarmType::WATER_LEVEL => "water_level",
        AlarmType::DOOR_SPRUNG => "door_sprung",
        _ => "unknown_alarm",
    }
}
