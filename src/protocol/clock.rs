//! Local time on the wire: UTC+8, without a zone mark, as BCD or plain binary.
//!
//! Pure calendar arithmetic; the current time is an argument.

use std::fmt;

use serde::{Serialize, Serializer};

/// Devices keep Chinese local time; their own timestamps in field captures follow it.
const OFFSET_S: i64 = 8 * 3600;
const DAY_S: i64 = 86_400;

/// A calendar time of the device, UTC+8. Holds what the device sent, valid or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceTime {
    /// Year, four digits.
    pub year: u16,
    /// 1..=12.
    pub month: u8,
    /// 1..=31.
    pub day: u8,
    /// 0..=23.
    pub hour: u8,
    /// 0..=59.
    pub minute: u8,
    /// 0..=59.
    pub second: u8,
}

impl DeviceTime {
    /// The local time of a moment in Unix seconds; clamped to the years 1970 to 9999 that the wire can carry.
    #[expect(clippy::arithmetic_side_effects, reason = "the clamp keeps every intermediate value below 2^48")]
    pub fn from_unix(unix_s: i64) -> Self {
        /// 9999-12-31T23:59:59 as seconds of local time since 1970.
        const LOCAL_S_MAX: i64 = 253_402_300_799;
        let local = unix_s.saturating_add(OFFSET_S).clamp(0, LOCAL_S_MAX);
        let of_day = local.rem_euclid(DAY_S);
        // Howard Hinnant's civil_from_days: years begin in March, so that the leap day comes last.
        let z = local.div_euclid(DAY_S) + 719_468;
        let era = z.div_euclid(146_097);
        let day_of_era = z.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        Self {
            year: u16::try_from(year).unwrap_or(u16::MAX),
            month: small(month),
            day: small(day),
            hour: small(of_day / 3600),
            minute: small(of_day / 60 % 60),
            second: small(of_day % 60),
        }
    }

    /// Unix seconds, or `None` if this is no calendar time.
    #[expect(clippy::arithmetic_side_effects, reason = "a u16 year and checked fields keep every value below 2^48")]
    pub fn to_unix(self) -> Option<i64> {
        let valid = (1..=12).contains(&self.month)
            && (1..=days_in_month(self.year, self.month)).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            && self.second < 60;
        if !valid {
            return None;
        }
        let (month, day) = (i64::from(self.month), i64::from(self.day));
        let year = i64::from(self.year) - i64::from(month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        let of_day = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        Some(days * DAY_S + of_day - OFFSET_S)
    }

    /// Reads seven BCD bytes `YYYYMMDDhhmmss` (heartbeat reply, tags 06 and 2E); a nibble above 9 counts as it stands.
    #[inline]
    pub fn from_bcd(bytes: [u8; 7]) -> Self {
        /// The lower four bits of each byte.
        const LOW: u64 = u64::from_ne_bytes([0x0F; 8]);
        let [b0, b1, b2, b3, b4, b5, b6] = bytes;
        let packed = u64::from_be_bytes([0, b0, b1, b2, b3, b4, b5, b6]);
        // All bytes at once: a byte is 16 × high + low and means 10 × high + low, so no byte borrows from its neighbour.
        let plain = packed.wrapping_sub((packed >> 4 & LOW).wrapping_mul(6));
        let [_, century, year, month, day, hour, minute, second] = plain.to_be_bytes();
        let year = u16::from(century).saturating_mul(100).saturating_add(u16::from(year));
        Self { year, month, day, hour, minute, second }
    }

    /// Seven BCD bytes `YYYYMMDDhhmmss`.
    pub fn to_bcd(self) -> [u8; 7] {
        let [century, year] = [self.year / 100, self.year % 100].map(|part| small(i64::from(part)));
        [century, year, self.month, self.day, self.hour, self.minute, self.second].map(to_bcd)
    }

    /// Reads year u16, then month to second as plain bytes (end report 0x18).
    pub const fn from_binary(bytes: [u8; 7]) -> Self {
        let [year_high, year_low, month, day, hour, minute, second] = bytes;
        Self { year: u16::from_be_bytes([year_high, year_low]), month, day, hour, minute, second }
    }

    /// Year u16, then month to second as plain bytes.
    pub const fn to_binary(self) -> [u8; 7] {
        let [year_high, year_low] = self.year.to_be_bytes();
        [year_high, year_low, self.month, self.day, self.hour, self.minute, self.second]
    }
}

impl fmt::Display for DeviceTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day, hour, minute, second } = self;
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
    }
}

impl Serialize for DeviceTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An hour and minute of the day, plain binary on the wire. Holds what was sent, valid or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeOfDay {
    /// 0..=23.
    pub hour: u8,
    /// 0..=59.
    pub minute: u8,
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.hour, self.minute)
    }
}

impl Serialize for TimeOfDay {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn small(value: i64) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

pub(super) const fn from_bcd(byte: u8) -> u8 {
    (byte >> 4).wrapping_mul(10).wrapping_add(byte & 0x0F)
}

pub(super) const fn to_bcd(value: u8) -> u8 {
    ((value / 10 % 10) << 4) | (value % 10)
}

const fn days_in_month(year: u16, month: u8) -> u8 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_moments() {
        let text = |unix_s| DeviceTime::from_unix(unix_s).to_string();
        assert_eq!(text(0), "1970-01-01 08:00:00");
        assert_eq!(text(1_596_098_745), "2020-07-30 16:45:45");
        assert_eq!(text(1_709_135_999), "2024-02-28 23:59:59");
        assert_eq!(text(1_709_136_000), "2024-02-29 00:00:00");
        assert_eq!(text(1_709_222_400), "2024-03-01 00:00:00");
        assert_eq!(text(i64::MIN), "1970-01-01 00:00:00");
        assert_eq!(text(i64::MAX), "9999-12-31 23:59:59");
        assert_eq!(
            DeviceTime::from_unix(1_596_098_745).to_bcd(),
            [0x20, 0x20, 0x07, 0x30, 0x16, 0x45, 0x45],
            "the guide's heartbeat reply"
        );
    }

    #[test]
    fn what_is_no_calendar_time() {
        let good = DeviceTime { year: 2023, month: 2, day: 28, hour: 23, minute: 59, second: 59 };
        assert!(good.to_unix().is_some());
        for bad in [
            DeviceTime { day: 29, ..good },
            DeviceTime { year: 1900, day: 29, ..good },
            DeviceTime { month: 0, ..good },
            DeviceTime { month: 13, ..good },
            DeviceTime { day: 0, ..good },
            DeviceTime { hour: 24, ..good },
            DeviceTime { minute: 60, ..good },
            DeviceTime { second: 60, ..good },
        ] {
            assert_eq!(bad.to_unix(), None, "{bad}");
        }
        assert!(DeviceTime { year: 2000, day: 29, ..good }.to_unix().is_some());
    }

    proptest! {
        #[test]
        fn there_and_back(unix_s in 0_i64..253_402_271_999) {
            let time = DeviceTime::from_unix(unix_s);
            prop_assert_eq!(time.to_unix(), Some(unix_s));
            prop_assert_eq!(DeviceTime::from_bcd(time.to_bcd()), time);
            prop_assert_eq!(DeviceTime::from_binary(time.to_binary()), time);
        }

        #[test]
        fn total(bytes: [u8; 7]) {
            let time = DeviceTime::from_bcd(bytes);
            let _ = time.to_unix();
            let [century, year, rest @ ..] = bytes.map(from_bcd);
            prop_assert_eq!([time.month, time.day, time.hour, time.minute, time.second], rest);
            prop_assert_eq!(time.year, u16::from(century).saturating_mul(100).saturating_add(u16::from(year)));
            let _ = DeviceTime::from_binary(bytes).to_unix();
            let _ = DeviceTime::from_binary(bytes).to_bcd();
        }
    }
}
