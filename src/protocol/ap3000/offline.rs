//! What a device makes up while no server answers: the order numbers of its own charges, and verification codes
//! (device-server protocol v8.6, command 03; AP262, AP360 and later models).
//!
//! Of the order number, all but the card's UID is decimal digits, two per byte:
//!
//! ```text
//! card   | YYYYMMDDhhmmss 7 | UID 4            | device number 4 | port + 30 1 |
//! code   | YYYYMMDDhhmmss 7 | 00 1 | code 6 digits 3 | device number 4 | port + 70 1 |
//! ```
//!
//! The time is that of the device, UTC+8; an unsynchronised clock starts at 1970-01-01 08:00:00, so such numbers repeat.
//!
//! The verification code is what a keypad model asks for: six digits that server and device both compute from the device,
//! the minute and the port.

use std::fmt;

use super::codes::StartMode;
use super::{PhyId, wire::Raw};
use crate::protocol::clock::{DeviceTime, from_bcd, to_bcd};

/// What started a charge without the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Starter {
    /// A card, by its UID.
    Card(Raw<4>),
    /// A verification code, at most 999,999.
    Code(VerificationCode),
}

/// The order number of a charge that was started without the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfflineOrder {
    /// When it was made; as sent, so perhaps no calendar time.
    pub time: DeviceTime,
    /// By what.
    pub starter: Starter,
    /// The number printed on the device, at most eight digits.
    pub printed_number: u32,
    /// Counted from 0.
    pub port: u8,
}

/// What is added to the port in an order started by card. The vendor does not say that the sum is decimal digits; all
/// around it is.
const CARD_PORT: u8 = 30;
/// What is added to the port in an order started by code.
const CODE_PORT: u8 = 70;
/// Largest number that two decimal digits hold.
const DIGITS_MAX: u8 = 99;

impl OfflineOrder {
    /// Reads the order number of a 0x03, 0x04, 0x06 or 0x43; `None` if it is not one that a device makes up: started by
    /// the server, or not of this layout, as with models older than AP262.
    pub fn parse(start_mode: StartMode, order_no: [u8; 16]) -> Option<Self> {
        let [t0, t1, t2, t3, t4, t5, t6, s0, s1, s2, s3, n0, n1, n2, n3, port] = order_no;
        let time = DeviceTime::from_bcd([t0, t1, t2, t3, t4, t5, t6]);
        let decimal = |bytes: &[u8]| bytes.iter().all(|byte| byte >> 4 <= 9 && byte & 0x0f <= 9);
        if !decimal(&[t0, t1, t2, t3, t4, t5, t6, n0, n1, n2, n3, port]) {
            return None;
        }
        let (starter, first_port) = match start_mode {
            StartMode::CARD => (Starter::Card(Raw([s0, s1, s2, s3])), CARD_PORT),
            StartMode::CODE if s0 == 0 && decimal(&[s1, s2, s3]) => {
                (Starter::Code(VerificationCode::new(digits([0, s1, s2, s3]))?), CODE_PORT)
            }
            _ => return None,
        };
        let port = from_bcd(port).checked_sub(first_port)?;
        Some(Self { time, starter, printed_number: digits([n0, n1, n2, n3]), port })
    }

    /// The start mode that goes with the number.
    pub const fn start_mode(&self) -> StartMode {
        match self.starter {
            Starter::Card(_) => StartMode::CARD,
            Starter::Code(_) => StartMode::CODE,
        }
    }

    /// The number as the device makes it; `None` if a value has more digits than its field.
    pub fn build(&self) -> Option<[u8; 16]> {
        let DeviceTime { year, month, day, hour, minute, second } = self.time;
        let ([s0, s1, s2, s3], first_port) = match self.starter {
            Starter::Card(Raw(uid)) => (uid, CARD_PORT),
            Starter::Code(code) => (bcd(code.0), CODE_PORT),
        };
        let port = self.port.checked_add(first_port)?;
        let two_digits = [month, day, hour, minute, second, port];
        if year > 9999 || self.printed_number > 99_999_999 || two_digits.iter().any(|value| *value > DIGITS_MAX) {
            return None;
        }
        let [t0, t1, t2, t3, t4, t5, t6] = self.time.to_bcd();
        let [n0, n1, n2, n3] = bcd(self.printed_number);
        Some([t0, t1, t2, t3, t4, t5, t6, s0, s1, s2, s3, n0, n1, n2, n3, to_bcd(port)])
    }
}

/// Eight decimal digits.
fn digits(bytes: [u8; 4]) -> u32 {
    bytes.iter().fold(0u32, |value, byte| value.wrapping_mul(100).wrapping_add(u32::from(from_bcd(*byte))))
}

/// The last eight decimal digits of a number.
fn bcd(value: u32) -> [u8; 4] {
    let (mut bytes, mut rest) = ([0; 4], value);
    for byte in bytes.iter_mut().rev() {
        *byte = to_bcd(u8::try_from(rest % 100).unwrap_or_default());
        rest /= 100;
    }
    bytes
}

/// Seconds of a minute, for each of which a device makes one code.
const MINUTE_S: u32 = 60;
/// How far the clocks of device and server may be apart: two minutes either way.
const OFFSETS_S: [i32; 5] = [0, -60, 60, -120, 120];

/// The six digits that start a charge on a keypad model. Shown with leading zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VerificationCode(u32);

impl VerificationCode {
    /// A code; `None` over 999,999.
    pub const fn new(code: u32) -> Option<Self> {
        if code <= 999_999 { Some(Self(code)) } else { None }
    }

    /// The code of this device, port (counted from 0) and moment (Unix seconds).
    ///
    /// The vendor names neither the variant of the CRC nor the base of the port; this is the common CRC-32, over the whole
    /// physical id, with ports from 0. It is not confirmed on hardware.
    pub fn at(phy_id: PhyId, port: u8, unix_s: u32) -> Self {
        let minute_s = unix_s.wrapping_sub(unix_s % MINUTE_S);
        let [p0, p1, p2, p3] = phy_id.0;
        let [t0, t1, t2, t3] = minute_s.to_le_bytes();
        Self(crc32([p0, p1, p2, p3, t0, t1, t2, t3, port]) % 1_000_000)
    }

    /// Whether the device would take this code at this moment: it is that of a minute at most two away.
    pub fn is_valid(self, phy_id: PhyId, port: u8, unix_s: u32) -> bool {
        let mut moments = OFFSETS_S.iter().filter_map(|offset_s| unix_s.checked_add_signed(*offset_s));
        moments.any(|moment| self == Self::at(phy_id, port, moment))
    }

    /// The code in `card_or_code` of a 0x03 or 0x43, and in `card_id` of a 0x04, with start mode 3. Their layout is not
    /// documented: read as a little-endian number, or as decimal digits if that is too large.
    pub fn from_field(Raw(bytes): Raw<4>) -> Option<Self> {
        let decimal = bytes.iter().all(|byte| byte >> 4 <= 9 && byte & 0x0f <= 9);
        let by_digits = || decimal.then(|| Self::new(digits(bytes))).flatten();
        Self::new(u32::from_le_bytes(bytes)).or_else(by_digits)
    }

    /// The number.
    pub const fn as_u32(self) -> u32 {
        self.0
    }
}

impl fmt::Display for VerificationCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06}", self.0)
    }
}

/// CRC-32/ISO-HDLC, that of zlib and Ethernet. Nine bytes a charge need no table.
fn crc32(bytes: [u8; 9]) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEVICE: PhyId = PhyId([0x40, 0xaa, 0xce, 0x04]);

    #[test]
    fn worked_code() {
        assert_eq!(crc32(*b"123456789"), 0xcbf4_3926, "the check value of CRC-32/ISO-HDLC");
        let code = VerificationCode::at(DEVICE, 0, 1_604_934_878);
        assert_eq!(code.to_string(), "054358");
        assert_eq!(code, VerificationCode::at(DEVICE, 0, 1_604_934_840));
        assert_ne!(code, VerificationCode::at(DEVICE, 0, 1_604_934_839));
        assert_ne!(code, VerificationCode::at(DEVICE, 1, 1_604_934_878));
    }

    #[test]
    fn a_code_is_good_for_two_minutes_either_way() {
        const MADE_S: u32 = 1_604_934_840;
        let code = VerificationCode::at(DEVICE, 3, MADE_S);
        for (unix_s, valid) in
            [(MADE_S - 121, false), (MADE_S - 120, true), (MADE_S, true), (MADE_S + 179, true), (MADE_S + 180, false)]
        {
            assert_eq!(code.is_valid(DEVICE, 3, unix_s), valid, "{unix_s}");
        }
        assert!(!code.is_valid(DEVICE, 2, MADE_S));
        assert!(VerificationCode::at(DEVICE, 0, 0).is_valid(DEVICE, 0, 119));
        assert!(VerificationCode::at(DEVICE, 0, u32::MAX).is_valid(DEVICE, 0, u32::MAX));
    }

    #[test]
    fn codes_in_a_settlement() {
        let code = VerificationCode::new(54_358);
        assert_eq!(VerificationCode::from_field(Raw([0x56, 0xd4, 0x00, 0x00])), code);
        assert_eq!(VerificationCode::from_field(Raw([0x00, 0x05, 0x43, 0x58])), code);
        assert_eq!(VerificationCode::from_field(Raw([0x00, 0x0a, 0x43, 0x58])), None);
        assert_eq!(VerificationCode::new(1_000_000), None);
    }

    /// The order number of `03_settlement_up_offline_card` in the test vectors.
    #[test]
    fn order_by_card() {
        let order_no = [0x20, 0x20, 0x11, 0x09, 0x23, 0x14, 0x38, 0x7a, 0x8d, 0x05, 0xdd, 0x13, 0x54, 0x40, 0x00, 0x32];
        let order = OfflineOrder::parse(StartMode::CARD, order_no).unwrap();
        assert_eq!(order.time.to_string(), "2020-11-09 23:14:38");
        assert_eq!(order.starter, Starter::Card(Raw([0x7a, 0x8d, 0x05, 0xdd])));
        assert_eq!((order.printed_number, order.port), (13_544_000, 2));
        assert_eq!((order.build(), order.start_mode()), (Some(order_no), StartMode::CARD));
        assert_eq!(OfflineOrder::parse(StartMode::ONLINE, order_no), None);
        assert_eq!(OfflineOrder::parse(StartMode::CODE, order_no), None, "no zero in front of the code");
    }

    #[test]
    fn order_by_code() {
        let starter = Starter::Code(VerificationCode::new(54_358).unwrap());
        let time = DeviceTime::from_unix(0);
        let order = OfflineOrder { time, starter, printed_number: 13_544_000, port: 10 };
        let order_no = [0x19, 0x70, 0x01, 0x01, 0x08, 0, 0, 0x00, 0x05, 0x43, 0x58, 0x13, 0x54, 0x40, 0x00, 0x80];
        assert_eq!(order.build(), Some(order_no));
        assert_eq!(OfflineOrder::parse(StartMode::CODE, order_no), Some(order));
        for wrong in [
            OfflineOrder { port: 30, ..order },
            OfflineOrder { printed_number: 100_000_000, ..order },
            OfflineOrder { time: DeviceTime { year: 10_000, ..time }, ..order },
            OfflineOrder { time: DeviceTime { month: 100, ..time }, ..order },
        ] {
            assert_eq!(wrong.build(), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_parsed_is_built(order_no: [u8; 16], decimal: bool, mode in 0u8..5) {
            let order_no = if decimal { order_no.map(|byte| to_bcd(byte % 100)) } else { order_no };
            if let Some(order) = OfflineOrder::parse(StartMode(mode), order_no) {
                prop_assert_eq!(order.build(), Some(order_no));
                prop_assert_eq!(order.start_mode(), StartMode(mode));
            }
        }

        #[test]
        fn what_is_built_is_parsed(
            unix_s in 0_i64..200_000_000_000, uid: [u8; 4], code in 0u32..1_000_000, by_code: bool,
            printed_number in 0u32..100_000_000, port in 0u8..30,
        ) {
            let starter =
                if by_code { Starter::Code(VerificationCode::new(code).unwrap()) } else { Starter::Card(Raw(uid)) };
            let order = OfflineOrder { time: DeviceTime::from_unix(unix_s), starter, printed_number, port };
            prop_assert_eq!(OfflineOrder::parse(order.start_mode(), order.build().unwrap()), Some(order));
        }
    }
}
