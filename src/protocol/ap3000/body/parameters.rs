//! Parameters, storage access, screens and voice (device-server protocol v8.6). Queries answer with the layout of the
//! matching set command and no result byte.

use crate::protocol::ap3000::wire::{Extra, Raw, Rest, Text, filler, layout};

layout! {
    /// 0x83: unplug and float detection, heartbeat.
    pub struct Params11 {
        /// 0.1 W, default 3.
        unplug_power: u16,
        /// Seconds, default 10.
        unplug_time_s: u16,
        /// 1–100 percent of the charging power, default 20.
        float_percent: u8,
        /// Seconds, default 1800.
        float_detect_time_s: u16,
        /// Seconds, default 3600.
        float_time_s: u16,
        /// Seconds, default 180.
        heartbeat_interval_s: u16,
    }
}

layout! {
    /// 0x84: detection limits and alarms.
    pub struct Params12 {
        /// 0.1 W, default 800; without effect since 06/2021.
        dyn_overload_power: u16,
        /// Seconds, default 30.
        dyn_overload_time_s: u16,
        /// Seconds, default 1800.
        dyn_overload_start_s: u16,
        /// 0.1 W, default 10: less than this for the next field's time means unplugged.
        unplug_noise_power: u8,
        /// Seconds, default 300.
        unplug_noise_time_s: u16,
        /// Seconds, default 10800: from here on the next field replaces the float detection time.
        float_second_point_s: u16,
        /// Seconds, default 300.
        float_second_time_s: u16,
        /// 0.1 W, default 300: stop if the peak stays below until the next field.
        min_power: u16,
        /// Seconds, default 1800.
        min_power_point_s: u16,
        /// Seconds, default 300: window of the settlement's second maximum.
        second_max_power_point_s: u16,
        /// **Plain °C**, default 80.
        ambient_alarm_temp: u8,
        /// **Plain °C**, default 80.
        port_alarm_temp: u8,
        /// 0 = unplug detection by opto-coupler is on.
        unplug_opto_disable: u8,
        /// **0 on, 1 off**, permanent; default 1.
        qr_light: u8,
    }
}

layout! {
    /// 0x97: newer settings.
    pub struct Params13 {
        /// 1 = silent.
        mute: u8,
    }
}

layout! {
    /// 0x85: limits of every charge.
    pub struct Limits {
        /// Seconds, default 36000.
        max_duration_s: u16,
        /// 0.1 W per port; the value of a 0x82 wins.
        overload_power: u16,
    }
    optional {
        /// 0.1 V, default 2700: no charging above.
        over_voltage: u16 = 2700,
        /// 0.1 V, default 1000: no charging below.
        under_voltage: u16 = 1000,
    }
}

layout! {
    /// 0x86: keys of the user cards.
    pub struct UserCard {
        /// Default 0.
        user_card_sector: u8,
        /// Key of bound cards.
        user_card_key: Raw<6>,
        /// Key of new cards.
        new_card_key: Raw<6>,
    }
}

layout! {
    /// 0x8B: read the EEPROM.
    pub struct EepromRead {
        /// First byte.
        eeprom_addr: u16,
        /// Number of bytes, at most 32.
        length: u8,
    }
}

layout! {
    /// Reply to 0x8B.
    pub struct EepromReadReply {
        /// 0 is success.
        result: u8,
    }
    optional {
        /// The bytes read.
        eeprom_data: Rest<'a>,
    }
}

layout! {
    /// 0x8C: write the EEPROM.
    pub struct EepromWrite {
        /// First byte.
        eeprom_addr: u16,
        /// Number of bytes, at most 32.
        length: u8,
    }
    lists {
        /// The bytes to write.
        eeprom_data: Rest<'a> = length,
    }
}

layout! {
    /// 0x8D: networked or card mode.
    pub struct WorkMode {
        /// 0 networked, 1 card.
        work_mode: u8,
    }
}

layout! {
    /// 0x8F: how keypad models charge money.
    pub struct TcMode {
        /// 0 timed, 1 per use, 3 metered, 4 fixed price, 5 home, 6 free by selection.
        tc_mode: u8,
    }
}

layout! {
    /// 0x8E: screen and QR text.
    pub struct QrUrl {
        /// 0 port states, 1 QR code.
        screen_type: u8,
        /// Zero.
        reserved: Raw<3>,
        /// At most 71 characters: the device needs the zero behind them.
        qr_text: Text<'a, 72>,
    }
}

layout! {
    /// 0x95: QR code shown once.
    pub struct TemporaryQr {
        /// At most 200 characters.
        qr_text: Text<'a, 200>,
    }
}

layout! {
    /// 0x89: speak. Reserved, no device can do it.
    pub struct PlayVoice {
        /// 1 = cut off what is being said.
        interrupt: u8,
        /// Number of segments.
        segment_count: u8,
    }
    lists {
        /// One byte each.
        segments: Rest<'a> = segment_count,
    }
}
