//! Calendar text from Unix time.
//!
//! No clock is read here: whoever has a `now()` passes its value in. Dates are proleptic Gregorian, UTC, without leap
//! seconds, which is what RFC 3339 and Unix time both mean.

use std::fmt;

use serde::{Serialize, Serializer};

const MS_PER_DAY: i64 = 86_400_000;
/// 0000-01-01T00:00:00.000Z and 9999-12-31T23:59:59.999Z: what four digits of a year can say.
const MS_MIN: i64 = -62_167_219_200_000;
const MS_MAX: i64 = 253_402_300_799_999;

/// Unix milliseconds, shown and serialised as RFC 3339 in UTC: `2026-01-02T03:04:05.678Z`.
///
/// Times outside the years 0000 to 9999 are shown as the nearest time inside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rfc3339(pub i64);

impl Rfc3339 {
    /// The text, always of this length. Answers have many times in them, so it is written digit by digit.
    fn text(self) -> [u8; 24] {
        let civil = Civil::from_unix_ms(self.0);
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let mut put = |digits: std::ops::Range<usize>, mut number: u32| {
            for digit in text.get_mut(digits).into_iter().flatten().rev() {
                *digit = b'0' + (number % 10) as u8;
                number /= 10;
            }
        };
        // Times are held within the years 0 to 9999.
        put(0..4, u32::try_from(civil.year).unwrap_or(0));
        put(5..7, civil.month);
        put(8..10, civil.day);
        put(11..13, civil.hour);
        put(14..16, civil.minute);
        put(17..19, civil.second);
        put(20..23, civil.milli);
        text
    }
}

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).unwrap_or_default())
    }
}

impl Serialize for Rfc3339 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(std::str::from_utf8(&self.text()).unwrap_or_default())
    }
}

/// Reads a time as RFC 3339 writes it: `2026-01-02T03:04:05Z`, with a fraction (cut to milliseconds) or an offset like `+08:00`
/// if need be. `None` for anything else, also for a day that its month does not have.
pub fn unix_ms_of_rfc3339(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
        digits.parse().ok()
    };
    let at = |index: usize| text.as_bytes().get(index).copied();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let marks = (at(4), at(7), at(10), at(13), at(16));
    let sound = marks == (Some(b'-'), Some(b'-'), Some(b'T'), Some(b':'), Some(b':'));
    if !sound || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut milli = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let end = fraction.find(|character: char| !character.is_ascii_digit())?;
        let digits = fraction.get(..end).filter(|digits| !digits.is_empty())?;
        milli = format!("{digits:0<3}").get(..3)?.parse().ok()?;
        rest = fraction.get(end..)?;
    }
    let offset_minutes = match rest.as_bytes() {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), hours @ .., b':', _, _] if hours.len() == 2 => {
            let (hours, minutes): (u8, u8) = (rest.get(1..3)?.parse().ok()?, rest.get(4..6)?.parse().ok()?);
            let digits = rest.bytes().skip(1).all(|byte| byte.is_ascii_digit() || byte == b':');
            if !digits || hours > 23 || minutes > 59 {
                return None;
            }
            let minutes = i64::from(hours) * 60 + i64::from(minutes);
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    // Days from date after Howard Hinnant's `days_from_civil`.
    let shifted = if month > 2 { year } else { year - 1 };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    let ms = days * MS_PER_DAY + ((hour * 60 + minute) * 60 + second) * 1_000 + milli;
    // A date that does not come out as it went in is none.
    let civil = Civil::from_unix_ms(ms);
    let same = (civil.year, i64::from(civil.month), i64::from(civil.day)) == (year, month, day);
    same.then_some(ms - offset_minutes * 60_000)
}

/// The `Date` header of RFC 9110 section 5.6.7: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn http_date(unix_ms: i64) -> String {
    const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let civil = Civil::from_unix_ms(unix_ms);
    // Both indexes are remainders of the array's own length.
    let weekday = WEEKDAYS[civil.weekday as usize % 7];
    let month = MONTHS[(civil.month as usize + 11) % 12];
    format!(
        "{weekday}, {:02} {month} {:04} {:02}:{:02}:{:02} GMT",
        civil.day, civil.year, civil.hour, civil.minute, civil.second
    )
}

struct Civil {
    year: i64,
    month: u32,
    day: u32,
    /// Days since a Thursday, as 1970-01-01 was one.
    weekday: u32,
    hour: u32,
    minute: u32,
    second: u32,
    milli: u32,
}

impl Civil {
    /// Days to date after Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is a year's last.
    fn from_unix_ms(unix_ms: i64) -> Self {
        let unix_ms = unix_ms.clamp(MS_MIN, MS_MAX);
        let days = unix_ms.div_euclid(MS_PER_DAY);
        let ms_of_day = unix_ms.rem_euclid(MS_PER_DAY) as u32;

        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u32;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 } as u32;
        let year = year_of_era + era * 400 + i64::from(month <= 2);

        Self {
            year,
            month,
            day,
            weekday: days.rem_euclid(7) as u32,
            hour: ms_of_day / 3_600_000,
            minute: ms_of_day / 60_000 % 60,
            second: ms_of_day / 1_000 % 60,
            milli: ms_of_day % 1_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        for (unix_ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_799_999, "2000-02-29T23:59:59.999Z"),
            (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
            (1_735_689_599_001, "2024-12-31T23:59:59.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (MS_MIN, "0000-01-01T00:00:00.000Z"),
            (MS_MAX, "9999-12-31T23:59:59.999Z"),
            (i64::MIN, "0000-01-01T00:00:00.000Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Rfc3339(unix_ms).to_string(), text, "{unix_ms}");
        }
    }

    #[test]
    fn times_read_back() {
        for (text, unix_ms) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T00:00:00.000Z", Some(951_782_400_000)),
            ("2024-12-31T23:59:59.001999Z", Some(1_735_689_599_001)),
            ("2026-01-01T08:00:00+08:00", Some(1_767_225_600_000)),
            ("2025-12-31T19:00:00.5-05:00", Some(1_767_225_600_500)),
            ("2023-02-29T00:00:00Z", None),
            ("2024-13-01T00:00:00Z", None),
            ("2024-00-10T00:00:00Z", None),
            ("2024-04-31T00:00:00Z", None),
            ("2024-04-00T00:00:00Z", None),
            ("2024-01-01T24:00:00Z", None),
            ("2024-01-01T00:00:00", None),
            ("2024-01-01 00:00:00Z", None),
            ("2024-01-01T00:00:00.Z", None),
            ("2024-01-01T00:00:00+0800", None),
            ("2024-01-01T00:00:00+8:00", None),
            ("2024-01-01T00:00:00++1:00", None),
            ("+024-01-01T00:00:00Z", None),
            ("２024-01-01T00:00:00Z", None),
            ("", None),
        ] {
            assert_eq!(unix_ms_of_rfc3339(text), unix_ms, "{text}");
        }
        for day in 0..100_000 {
            let unix_ms = day * MS_PER_DAY + day;
            assert_eq!(unix_ms_of_rfc3339(&Rfc3339(unix_ms).to_string()), Some(unix_ms));
        }
    }

    #[test]
    fn http_dates() {
        assert_eq!(http_date(784_111_777_000), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(http_date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(http_date(-1), "Wed, 31 Dec 1969 23:59:59 GMT");
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        let mut before = Civil::from_unix_ms(0);
        for day in 1..=146_097_i64 {
            let civil = Civil::from_unix_ms(day * MS_PER_DAY);
            let next_day = (civil.year, civil.month, civil.day) == (before.year, before.month, before.day + 1);
            let next_month = civil.day == 1
                && ((civil.year, civil.month) == (before.year, before.month + 1)
                    || (civil.year, civil.month, before.month) == (before.year + 1, 1, 12));
            assert!(next_day || (next_month && (28..=31).contains(&before.day)), "day {day}");
            assert_eq!(civil.weekday, (before.weekday + 1) % 7);
            before = civil;
        }
        assert_eq!((before.year, before.month, before.day), (2370, 1, 1));
    }
}
