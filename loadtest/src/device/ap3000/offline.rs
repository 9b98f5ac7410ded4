//! Charges that begin without the server: by a card, or by a verification code.
//!
//! The device makes their order number (device-server protocol v8.6, 0x03). The port byte is read as BCD of the decimal
//! sum, a verification code in the record as a little-endian number, and its checksum as CRC-32/ISO-HDLC; the document
//! leaves all three open.

use chargegate::protocol::ap3000::PhyId;
use chargegate::protocol::ap3000::codes::StartMode;
use chargegate::protocol::bkv::clock::DeviceTime;

use super::charging::Origin;
use super::{Ap3000Device, Card, SECOND_US};
use crate::device::charge::Limits;
use crate::device::ledger::Start;

/// A code is good for this many minutes before and behind its own.
const CODE_MINUTES: u32 = 2;
const CODES: u32 = 1_000_000;

impl Ap3000Device {
    /// Begins a charge by card without asking the server, on a port counted from 0 with a charger plugged in. It ends
    /// after `duration_s` seconds, or when the battery is full if that is `None`. False if the port cannot start.
    pub fn offline_charge(&mut self, now_us: u64, card: &Card, port: u8, duration_s: Option<u32>) -> bool {
        let mut order_no = self.own_order_no(now_us, port, 30);
        order_no[7..11].copy_from_slice(&card.id);
        let origin = Origin {
            start_mode: StartMode::CARD,
            card_or_code: card.id,
            order_no,
            start: Start::OfflineCard(card.number()),
        };
        self.begin_own(now_us, port, duration_s, origin)
    }

    /// Begins a charge by verification code, on a port counted from 0 with a charger plugged in. False if the code is not
    /// good at the device's time (see [`verification_code`]), or the port cannot start.
    pub fn code_charge(&mut self, now_us: u64, code: u32, port: u8, duration_s: Option<u32>) -> bool {
        let unix_s = self.unix_s(now_us);
        let minutes = (0..=2 * CODE_MINUTES).map(|minute| (unix_s + minute * 60).saturating_sub(CODE_MINUTES * 60));
        if !minutes.into_iter().any(|unix_s| verification_code(self.line.phy_id, unix_s, port) == code) {
            return false;
        }
        let mut order_no = self.own_order_no(now_us, port, 70);
        order_no[8..11].copy_from_slice(&bcd::<3>(code));
        let origin = Origin {
            start_mode: StartMode::CODE,
            card_or_code: code.to_le_bytes(),
            order_no,
            start: Start::Code(code),
        };
        self.begin_own(now_us, port, duration_s, origin)
    }

    /// The code that starts `port` (counted from 0) at the device's present time.
    pub fn code(&self, now_us: u64, port: u8) -> u32 {
        verification_code(self.line.phy_id, self.unix_s(now_us), port)
    }

    fn begin_own(&mut self, now_us: u64, port: u8, duration_s: Option<u32>, origin: Origin) -> bool {
        let limits = Limits {
            duration_s,
            duration_max_s: Some(u32::from(self.max_duration_s())),
            until_full: duration_s.is_none(),
            ..Limits::default()
        };
        self.begin(now_us, port, limits, origin).is_ok()
    }

    /// Time, device number and port; the bytes between are the card's or the code's.
    fn own_order_no(&self, now_us: u64, port: u8, port_base: u8) -> [u8; 16] {
        let time = DeviceTime::from_unix(i64::from(self.unix_s(now_us))).to_bcd();
        let number = bcd::<4>(self.line.phy_id.printed_number());
        let [port] = bcd::<1>(u32::from(port_base) + u32::from(port));
        let mut order_no = [0; 16];
        order_no[..7].copy_from_slice(&time);
        order_no[11..15].copy_from_slice(&number);
        order_no[15] = port;
        order_no
    }

    /// The device's clock in Unix seconds. Until the server gave it the time it counts from 0, when the power came.
    pub(super) fn unix_s(&self, now_us: u64) -> u32 {
        let (then_us, unix_s) = self.clock;
        let since_s = now_us.saturating_sub(then_us) / SECOND_US;
        unix_s.saturating_add(u32::try_from(since_s).unwrap_or(u32::MAX))
    }
}

/// The six-digit code that starts `port` (counted from 0) in the minute of `unix_s`.
pub fn verification_code(phy_id: PhyId, unix_s: u32, port: u8) -> u32 {
    let minute = unix_s - unix_s % 60;
    let bytes = phy_id.0.into_iter().chain(minute.to_le_bytes()).chain([port]);
    crc32(bytes) % CODES
}

/// CRC-32/ISO-HDLC, bit by bit: nine bytes need no table.
fn crc32(bytes: impl Iterator<Item = u8>) -> u32 {
    let crc = bytes.fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    });
    !crc
}

/// The last `2 * N` decimal digits of a number.
fn bcd<const N: usize>(number: u32) -> [u8; N] {
    let (mut digits, mut rest) = ([0; N], number);
    for byte in digits.iter_mut().rev() {
        let pair = u8::try_from(rest % 100).unwrap_or_default();
        *byte = ((pair / 10) << 4) | (pair % 10);
        rest /= 100;
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_example_of_a_code() {
        let phy_id = PhyId([0x40, 0xaa, 0xce, 0x04]);
        assert_eq!(verification_code(phy_id, 1_604_934_878, 0), 54_358);
        assert_eq!(crc32(b"123456789".iter().copied()), 0xcbf4_3926, "the check value of the algorithm");
    }

    #[test]
    fn digits_in_pairs() {
        assert_eq!(bcd::<4>(13_544_000), [0x13, 0x54, 0x40, 0x00]);
        assert_eq!(bcd::<1>(80), [0x80]);
        assert_eq!(bcd::<3>(54_358), [0x05, 0x43, 0x58]);
    }
}
