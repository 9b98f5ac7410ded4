//! Parameters, EEPROM, screens: what the server may set and ask.

use chargegate::protocol::ap3000::body::{
    EepromRead, EepromReadReply, EepromWrite, Limits, Params11, Params12, PlayVoice, QrUrl, UserCard,
};
use chargegate::protocol::ap3000::encode::Header;
use chargegate::protocol::ap3000::wire::{Extra, Raw, Rest};

use super::{Ap3000Device, Request, SECOND_US};

/// Bytes of the EEPROM.
pub const EEPROM_LEN: usize = 256;
/// Most bytes of one EEPROM access.
const EEPROM_ACCESS_MAX: u8 = 32;
/// An M1 card has sectors 0 to 15.
const CARD_SECTOR_MAX: u8 = 15;
/// A text of 0x8E; the byte behind it stays zero.
const QR_TEXT_MAX: usize = 71;

/// What the device keeps in its EEPROM, as far as commands reach it.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// 0x83.
    pub params_1_1: Params11<'static>,
    /// 0x84.
    pub params_1_2: Params12<'static>,
    /// 0x85.
    pub limits: Limits<'static>,
    /// 0x86.
    pub user_card: UserCard<'static>,
    /// 0x8D: 1 = card mode.
    pub work_mode: u8,
    /// 0x8F.
    pub tc_mode: u8,
    /// 0x97: 1 = silent.
    pub mute: u8,
    /// 0x8E: 1 = the screen shows the QR code.
    pub screen_type: u8,
    /// 0x8E.
    pub qr_text: Vec<u8>,
    /// Bytes of 0x8B and 0x8C; apart from the fields above, whose place in the EEPROM is not documented.
    pub eeprom: [u8; EEPROM_LEN],
}

impl Default for Parameters {
    /// As delivered.
    fn default() -> Self {
        Self {
            params_1_1: Params11 {
                unplug_power: 3,
                unplug_time_s: 10,
                float_percent: 20,
                float_detect_time_s: 1800,
                float_time_s: 3600,
                heartbeat_interval_s: 180,
                extra: Extra::NONE,
            },
            params_1_2: Params12 {
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
            },
            limits: Limits {
                max_duration_s: 36_000,
                // Depends on the model, says the document.
                overload_power: 10_000,
                over_voltage: Some(2700),
                under_voltage: Some(1000),
                extra: Extra::NONE,
            },
            user_card: UserCard {
                user_card_sector: 0,
                user_card_key: Raw([0x15, 0x91, 0x85, 0x19, 0x18, 0x80]),
                new_card_key: Raw([0xff; 6]),
                extra: Extra::NONE,
            },
            work_mode: 0,
            tc_mode: 0,
            mute: 0,
            screen_type: 0,
            qr_text: Vec::new(),
            eeprom: [0xff; EEPROM_LEN],
        }
    }
}

/// What is shown, spoken and lit until the power goes.
#[derive(Debug, Default)]
pub(super) struct Panel {
    pub(super) temporary_qr: Vec<u8>,
    pub(super) located_until_us: u64,
    pub(super) voice_segments: Vec<u8>,
}

/// 1 if `bad`, else 0: the results of most parameter commands.
const fn bad(bad: bool) -> u8 {
    bad as u8
}

impl Ap3000Device {
    /// What the server set, on top of what the device was delivered with.
    pub fn parameters(&self) -> Parameters {
        self.parameters.as_deref().cloned().unwrap_or_else(|| self.delivered())
    }

    /// The text of the last 0x95 since the power came.
    pub fn temporary_qr(&self) -> &[u8] {
        &self.panel.temporary_qr
    }

    /// Whether it speaks and flashes because of 0x96.
    pub const fn is_located(&self, now_us: u64) -> bool {
        now_us < self.panel.located_until_us
    }

    /// Segments of the last 0x89.
    pub fn voice_segments(&self) -> &[u8] {
        &self.panel.voice_segments
    }

    fn delivered(&self) -> Parameters {
        let mut parameters = Parameters::default();
        let interval_s = u16::try_from(self.behaviour.heartbeat_us / SECOND_US).unwrap_or(u16::MAX);
        parameters.params_1_1.heartbeat_interval_s = interval_s.max(1);
        parameters
    }

    /// The parameters, to be changed.
    pub(super) fn stored(&mut self) -> &mut Parameters {
        if self.parameters.is_none() {
            self.parameters = Some(Box::new(self.delivered()));
        }
        self.parameters.get_or_insert_default()
    }

    /// The setting of 0x85.
    pub(super) fn max_duration_s(&self) -> u16 {
        let stored = self.parameters.as_ref().map(|parameters| parameters.limits.max_duration_s);
        stored.unwrap_or_else(|| Parameters::default().limits.max_duration_s)
    }

    pub(super) fn work_mode(&self) -> u8 {
        self.parameters.as_ref().map_or(0, |parameters| parameters.work_mode)
    }

    /// 0x83. The next heartbeat comes after the new interval.
    pub(super) fn set_params_1_1(&mut self, now_us: u64, params: &Params11<'_>) -> u8 {
        if !(1..=100).contains(&params.float_percent) || params.heartbeat_interval_s == 0 {
            return 1;
        }
        self.stored().params_1_1 = Params11 { extra: Extra::NONE, ..*params };
        self.set_heartbeat(now_us, u64::from(params.heartbeat_interval_s) * SECOND_US);
        0
    }

    fn set_heartbeat(&mut self, now_us: u64, heartbeat_us: u64) {
        self.heartbeat_us = heartbeat_us;
        if self.connected {
            self.line.exchange(Request::Heartbeat).due_us = now_us.saturating_add(heartbeat_us);
        }
    }

    /// 0x84.
    pub(super) fn set_params_1_2(&mut self, params: &Params12<'_>) -> u8 {
        if params.qr_light > 1 {
            return 1;
        }
        self.stored().params_1_2 = Params12 { extra: Extra::NONE, ..*params };
        0
    }

    /// 0x85; the short form leaves the voltages as they are.
    pub(super) fn set_limits(&mut self, limits: &Limits<'_>) -> u8 {
        if limits.overload_power > self.model.overload_power_max {
            return 1;
        }
        let stored = &mut self.stored().limits;
        *stored = Limits {
            over_voltage: limits.over_voltage.or(stored.over_voltage),
            under_voltage: limits.under_voltage.or(stored.under_voltage),
            extra: Extra::NONE,
            ..*limits
        };
        0
    }

    /// 0x86.
    pub(super) fn set_user_card(&mut self, card: &UserCard<'_>) -> u8 {
        if card.user_card_sector > CARD_SECTOR_MAX {
            return 1;
        }
        self.stored().user_card = UserCard { extra: Extra::NONE, ..*card };
        0
    }

    /// 0x8D: 1 switching not supported, 2 failed. The mode is a field of 0x20.
    pub(super) fn set_work_mode(&mut self, now_us: u64, work_mode: u8) -> u8 {
        if !self.model.switches_work_mode {
            return 1;
        }
        if work_mode > 1 {
            return 2;
        }
        if self.work_mode() != work_mode {
            self.stored().work_mode = work_mode;
            self.registration_changed(now_us);
        }
        0
    }

    /// 0x8F; 2 is not assigned.
    pub(super) fn set_tc_mode(&mut self, tc_mode: u8) -> u8 {
        if !matches!(tc_mode, 0 | 1 | 3..=6) {
            return 1;
        }
        self.stored().tc_mode = tc_mode;
        0
    }

    /// 0x97.
    pub(super) fn set_mute(&mut self, mute: u8) -> u8 {
        if mute > 1 {
            return 1;
        }
        self.stored().mute = mute;
        0
    }

    /// 0x8E.
    pub(super) fn set_qr_url(&mut self, qr: &QrUrl<'_>) -> u8 {
        let text = qr.qr_text.as_bytes();
        if qr.screen_type > 1 || qr.reserved != Raw([0; 3]) || text.len() > QR_TEXT_MAX {
            return 1;
        }
        let stored = self.stored();
        stored.screen_type = qr.screen_type;
        stored.qr_text = text.to_vec();
        0
    }

    /// 0x89. No device can do it today; this one keeps the segments.
    pub(super) fn play_voice(&mut self, voice: &PlayVoice<'_>) -> u8 {
        if voice.segments.0.is_empty() {
            return 1;
        }
        self.panel.voice_segments = voice.segments.0.to_vec();
        0
    }

    /// 0x8B.
    pub(super) fn eeprom_read(&mut self, header: &Header, read: &EepromRead<'_>) {
        let parameters = self.parameters();
        let data = access(read.eeprom_addr, read.length).and_then(|range| parameters.eeprom.get(range));
        let reply = EepromReadReply { result: bad(data.is_none()), eeprom_data: data.map(Rest), extra: Extra::NONE };
        self.line.write(header, 0x8b, &reply);
    }

    /// 0x8C.
    pub(super) fn eeprom_write(&mut self, write: &EepromWrite<'_>) -> u8 {
        let Some(range) = access(write.eeprom_addr, write.length) else { return 1 };
        let Some(bytes) = self.stored().eeprom.get_mut(range) else { return 1 };
        if bytes.len() != write.eeprom_data.0.len() {
            return 1;
        }
        bytes.copy_from_slice(write.eeprom_data.0);
        0
    }

    /// 0x88: everything but ids and firmware is as delivered, and records that were not acknowledged are gone.
    pub(super) fn clear_storage(&mut self, now_us: u64) {
        let before = self.work_mode();
        self.parameters = None;
        self.set_heartbeat(now_us, self.behaviour.heartbeat_us);
        self.erase_records();
        if before != 0 {
            self.registration_changed(now_us);
        }
    }
}

/// The bytes of an EEPROM access, if there are such.
fn access(address: u16, length: u8) -> Option<std::ops::Range<usize>> {
    let start = usize::from(address);
    let end = start + usize::from(length);
    ((1..=EEPROM_ACCESS_MAX).contains(&length) && end <= EEPROM_LEN).then_some(start..end)
}
