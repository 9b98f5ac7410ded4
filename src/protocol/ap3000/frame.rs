//! Deframer: finds frames, ICCID greetings and keepalives in a byte stream that may begin inside one.
//!
//! No I/O and no allocation; items borrow the caller's buffer.
//!
//! ```text
//! | magic 3 | length 2 LE | physical id 4 | message id 2 LE | command 1 | data n | checksum 2 LE |
//! | "8986" + 16 letters or digits |     the SIM's ICCID, once after each connect
//! | "link" |                            after 30 s of silence
//! ```
//!
//! Invariants: each call consumes at least one byte or asks for more; bytes are only skipped up to the next place
//! where an item may start, so garbage never takes a sound frame with it.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::protocol::{Hex, SkipReason, Step, sum};

/// Smallest value of the length field: physical id, message id, command and checksum without data.
pub const LENGTH_MIN: usize = 9;
/// Largest value of the length field that is accepted. The vendor's limit of 256 bytes per packet is broken by its own
/// firmware packets F8/F9 (length 269); 512 leaves room for OEM variants and bounds what a false start can hold up.
pub const LENGTH_MAX: usize = 512;
/// Most data bytes a frame can carry.
pub const DATA_MAX: usize = LENGTH_MAX - LENGTH_MIN;
/// Bytes before the part that the length field counts.
const PREFIX_LEN: usize = 5;
/// Bytes before the data.
const HEAD_LEN: usize = 12;
/// Longest frame on the wire.
pub const FRAME_MAX: usize = PREFIX_LEN + LENGTH_MAX;
/// Most magics that can be configured: each one is compared at every byte of noise.
pub const MAGICS_MAX: usize = 8;
/// Length of the ICCID greeting.
pub const ICCID_LEN: usize = 20;

/// Keepalive of the communication module.
pub(crate) const LINK: [u8; 4] = *b"link";
/// First four characters of every ICCID (telecommunications, China).
pub(crate) const ICCID_HEAD: [u8; 4] = *b"8986";

/// The magics that start a frame. OEM variants differ only in these three bytes, and want them back in every frame sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Magics {
    list: [[u8; 3]; MAGICS_MAX],
    len: usize,
    /// The list as numbers, filled up with [`NO_MAGIC`]: all of them are compared at once.
    numbers: [u32; MAGICS_MAX],
    /// Whether an item can start with this byte, so that noise costs one look-up per byte.
    first: [bool; 256],
}

impl Magics {
    /// Checks a list of magics, in the order in which they are compared.
    ///
    /// # Errors
    /// 0 or more than [`MAGICS_MAX`] magics, a repeated one, or one that another item on the same port starts with.
    pub fn new(magics: &[[u8; 3]]) -> Result<Self, MagicsError> {
        if magics.is_empty() || magics.len() > MAGICS_MAX {
            return Err(MagicsError::Count { got: magics.len() });
        }
        let mut list = [[0; 3]; MAGICS_MAX];
        for (index, (slot, magic)) in list.iter_mut().zip(magics).enumerate() {
            let value = u32::from_be_bytes([0, magic[0], magic[1], magic[2]]);
            if magics.iter().take(index).any(|earlier| earlier == magic) {
                return Err(MagicsError::Repeated { value });
            }
            if LINK.starts_with(magic) || ICCID_HEAD.starts_with(magic) || matches!(magic, [0xfc, 0xfe | 0xff, _]) {
                return Err(MagicsError::Reserved { value });
            }
            *slot = *magic;
        }
        Ok(Self::of_checked(list, magics.len()))
    }

    /// Reads a list of magics written as six hex digits each.
    ///
    /// # Errors
    /// As [`Magics::new`], and for a string that is not six hex digits.
    pub fn from_hex<S: AsRef<str>>(magics: &[S]) -> Result<Self, MagicsError> {
        let mut list = [[0; 3]; MAGICS_MAX];
        for (slot, magic) in list.iter_mut().zip(magics) {
            let magic = magic.as_ref();
            *slot = parse_hex(magic).ok_or_else(|| MagicsError::NotHex { value: magic.to_owned() })?;
        }
        Self::new(list.get(..magics.len()).ok_or(MagicsError::Count { got: magics.len() })?)
    }

    fn of_checked(list: [[u8; 3]; MAGICS_MAX], len: usize) -> Self {
        let heads = list.iter().take(len).map(|magic| magic[0]);
        let mut first = [false; 256];
        for byte in heads.chain([LINK[0], ICCID_HEAD[0]]) {
            if let Some(starts) = first.get_mut(usize::from(byte)) {
                *starts = true;
            }
        }
        let number = |(index, magic): (usize, [u8; 3])| if index < len { number_of(magic) } else { NO_MAGIC };
        let mut numbers = [NO_MAGIC; MAGICS_MAX];
        numbers.iter_mut().zip(list.into_iter().enumerate().map(number)).for_each(|(place, number)| *place = number);
        Self { list, len, numbers, first }
    }

    /// The configured magics.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = &[u8; 3]> {
        self.list.iter().take(self.len)
    }

    /// Whether `magic` starts a frame.
    #[inline]
    pub fn contains(&self, magic: [u8; 3]) -> bool {
        let number = number_of(magic);
        self.numbers.iter().fold(false, |found, known| found | (*known == number))
    }
}

/// No three bytes are this number.
const NO_MAGIC: u32 = u32::MAX;

#[inline]
const fn number_of([m0, m1, m2]: [u8; 3]) -> u32 {
    u32::from_le_bytes([m0, m1, m2, 0])
}

/// `DNY` and the OEM variant seen in the field.
impl Default for Magics {
    fn default() -> Self {
        let mut list = [[0; 3]; MAGICS_MAX];
        list[0] = *b"DNY";
        list[1] = [0x44, 0x22, 0x4e];
        Self::of_checked(list, 2)
    }
}

impl fmt::Debug for Magics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(Hex)).finish()
    }
}

/// Why a list of magics is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MagicsError {
    /// Too few or too many.
    #[error("number of magics must be in 1..={MAGICS_MAX}, got {got}")]
    Count {
        /// Number of magics given.
        got: usize,
    },
    /// Not three bytes of hex.
    #[error("magic must be 6 hex digits, got {value:?}")]
    NotHex {
        /// The text given.
        value: String,
    },
    /// The same magic twice.
    #[error("magic {value:06x} is given twice")]
    Repeated {
        /// The magic, first byte highest.
        value: u32,
    },
    /// The start of an ICCID greeting, of a keepalive, or of a BKV/GN frame.
    #[error("magic {value:06x} is the start of another item")]
    Reserved {
        /// The magic, first byte highest.
        value: u32,
    },
}

/// Physical id: four bytes kept in wire order, as in the tail of the device's QR code (`40aace04`).
///
/// Read as a little-endian u32, the top byte is the recognition code and the low 24 bits are the printed number.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PhyId(pub [u8; 4]);

impl PhyId {
    /// The id with this recognition code and printed number, or `None` if the number needs more than 24 bits.
    pub const fn from_parts(recognition_code: u8, printed_number: u32) -> Option<Self> {
        let [low, mid, high, 0] = printed_number.to_le_bytes() else { return None };
        Some(Self([low, mid, high, recognition_code]))
    }

    /// The little-endian value.
    pub const fn as_u32(self) -> u32 {
        u32::from_le_bytes(self.0)
    }

    /// The decimal number printed under the QR code, at most 16,777,215.
    pub const fn printed_number(self) -> u32 {
        let [low, mid, high, _] = self.0;
        u32::from_le_bytes([low, mid, high, 0])
    }

    /// Kind of device: 03 single, 04 dual socket, 05, 06, 07 chargers with 10, 16, 12 ports, 09, 0A hosts. Other codes
    /// exist.
    pub const fn recognition_code(self) -> u8 {
        self.0[3]
    }

    /// Whether this is one of the numbers a device with damaged memory falls back to, so that several devices may
    /// share it (device-server protocol v8.6).
    pub const fn is_fallback(self) -> bool {
        matches!(self.printed_number(), 10_011_001 | 12_000_000 | 13_000_001)
    }
}

impl fmt::Display for PhyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Hex(self.0), f)
    }
}

impl fmt::Debug for PhyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for PhyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for PhyId {
    type Err = ParsePhyIdError;

    /// Reads eight hex digits of either case, in wire order.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_hex(text).map(Self).ok_or(ParsePhyIdError)
    }
}

/// The text is not a physical id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("physical id must be 8 hex digits in wire order")]
pub struct ParsePhyIdError;

/// A frame whose length and checksum are sound. Nothing is known about its data yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Magic as received: replies and commands to this device carry the same.
    pub magic: [u8; 3],
    /// The device that speaks or is spoken to. A host's socket carries the frames of many.
    pub phy_id: PhyId,
    /// Copied into the reply; kept when a frame is resent.
    pub msg_id: u16,
    /// Command code, see [`super::command`].
    pub command: u8,
    /// Everything between command and checksum.
    pub data: &'a [u8],
    /// The whole frame, magic to checksum.
    pub raw: &'a [u8],
}

/// What an uplink stream is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A frame.
    Frame(Frame<'a>),
    /// ICCID greeting: the SIM's number as letters and digits. Never answered.
    Iccid(&'a [u8; ICCID_LEN]),
    /// Keepalive `link`. Never answered.
    Link,
}

/// Finds what stands at the start of `buf`.
///
/// A refused frame is skipped together with the noise behind it, under the reason for which it was refused.
// Inlined because a step that is handed over in memory costs as much as finding it.
#[inline(always)]
pub fn deframe<'a>(buf: &'a [u8], magics: &Magics) -> Step<Item<'a>> {
    let Some(head) = buf.first_chunk::<HEAD_LEN>() else { return deframe_rest(buf, magics) };
    let [m0, m1, m2, l0, l1, p0, p1, p2, p3, i0, i1, command] = *head;
    let magic = [m0, m1, m2];
    if !magics.contains(magic) {
        return deframe_rest(buf, magics);
    }
    let length = u16::from_le_bytes([l0, l1]);
    if !is_length(length) {
        return skip(buf, magics, SkipReason::BadLength);
    }
    let Some((raw, _)) = buf.split_at_checked(PREFIX_LEN.wrapping_add(usize::from(length))) else {
        return Step::NeedMore;
    };
    let Some((summed, sum)) = raw.split_last_chunk() else { return Step::NeedMore };
    let Some((_, data)) = summed.split_first_chunk::<HEAD_LEN>() else { return Step::NeedMore };
    if checksum(summed) != u16::from_le_bytes(*sum) {
        return skip(buf, magics, SkipReason::BadChecksum);
    }
    let (phy_id, msg_id) = (PhyId([p0, p1, p2, p3]), u16::from_le_bytes([i0, i1]));
    let frame = Frame { magic, phy_id, msg_id, command, data, raw };
    Step::Item { item: Item::Frame(frame), consumed: raw.len() }
}

/// Whether a length field is one.
#[inline]
fn is_length(length: u16) -> bool {
    (LENGTH_MIN..=LENGTH_MAX).contains(&usize::from(length))
}

/// Everything that does not begin with a magic, and the beginning of a frame.
fn deframe_rest<'a>(buf: &'a [u8], magics: &Magics) -> Step<Item<'a>> {
    match start_of(buf, magics) {
        Start::Link => Step::Item { item: Item::Link, consumed: LINK.len() },
        Start::Iccid(iccid) => Step::Item { item: Item::Iccid(iccid), consumed: ICCID_LEN },
        Start::Magic => match buf {
            [_, _, _, l0, l1, ..] if !is_length(u16::from_le_bytes([*l0, *l1])) => {
                skip(buf, magics, SkipReason::BadLength)
            }
            _ => Step::NeedMore,
        },
        Start::Incomplete => Step::NeedMore,
        Start::Nothing => skip(buf, magics, SkipReason::Noise),
    }
}

/// Skips the first byte and all behind it that cannot start an item.
#[cold]
fn skip<'a>(buf: &[u8], magics: &Magics, reason: SkipReason) -> Step<Item<'a>> {
    let mut consumed = 0usize;
    for byte_may_start in buf.iter().map(|byte| magics.first.get(usize::from(*byte)) == Some(&true)) {
        let rest = buf.get(consumed..).unwrap_or_default();
        if consumed > 0 && byte_may_start && !matches!(start_of(rest, magics), Start::Nothing) {
            break;
        }
        consumed = consumed.wrapping_add(1);
    }
    Step::Skip { consumed, reason }
}

enum Start<'a> {
    /// A whole magic, whatever follows.
    Magic,
    Link,
    Iccid(&'a [u8; ICCID_LEN]),
    /// Nothing yet, or the beginning of one of the above.
    Incomplete,
    Nothing,
}

/// What may start at the first byte of `buf`.
#[inline]
fn start_of<'a>(buf: &'a [u8], magics: &Magics) -> Start<'a> {
    let begins = |whole: &[u8]| whole.starts_with(buf);
    if let Some((magic, _)) = buf.split_first_chunk()
        && magics.contains(*magic)
    {
        return Start::Magic;
    }
    if buf.starts_with(&LINK) {
        return Start::Link;
    }
    if buf.starts_with(&ICCID_HEAD) {
        // The vendor writes of hex letters; other modules send other letters, so any is taken.
        if !buf.iter().take(ICCID_LEN).all(u8::is_ascii_alphanumeric) {
            return Start::Nothing;
        }
        return buf.first_chunk().map_or(Start::Incomplete, Start::Iccid);
    }
    if begins(&LINK) || begins(&ICCID_HEAD) || magics.iter().any(|magic| begins(magic)) {
        return Start::Incomplete;
    }
    Start::Nothing
}

/// Sum of all bytes modulo 65536.
#[inline]
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    sum::sum_u16(bytes)
}

/// Exactly `2 * N` hex digits of either case.
fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    if pairs.len() != N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
        *byte = (digit(*high)? << 4) | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Time request of the vendor: its checksum is worked out in the document.
    const TIME_REQUEST: [u8; 14] = [0x44, 0x4e, 0x59, 0x09, 0x00, 0x3b, 0x37, 0xab, 0x04, 0xb9, 0x00, 0x22, 0xf0, 0x02];

    fn step(buf: &[u8]) -> Step<Item<'_>> {
        deframe(buf, &Magics::default())
    }

    #[test]
    fn vendor_time_request() {
        let Step::Item { item: Item::Frame(frame), consumed: 14 } = step(&TIME_REQUEST) else { panic!("no frame") };
        assert_eq!(frame.phy_id.to_string(), "3b37ab04");
        assert_eq!((frame.msg_id, frame.command, frame.data), (0x00b9, 0x22, &[][..]));
        assert_eq!(frame.raw, TIME_REQUEST);
    }

    #[test]
    fn oem_magic_is_summed_as_received() {
        let mut bytes = TIME_REQUEST;
        bytes[1] = 0x22;
        bytes[2] = 0x4e;
        assert_eq!(step(&bytes), Step::Skip { consumed: 14, reason: SkipReason::BadChecksum });
        let sum = checksum(&bytes[..12]).to_le_bytes();
        bytes[12..].copy_from_slice(&sum);
        assert!(matches!(step(&bytes), Step::Item { item: Item::Frame(Frame { magic: [0x44, 0x22, 0x4e], .. }), .. }));
        assert_eq!(
            deframe(&bytes, &Magics::new(&[*b"DNY"]).unwrap()),
            Step::Skip { consumed: 14, reason: SkipReason::Noise }
        );
    }

    #[test]
    fn length_field_bounds() {
        for (length, expected) in [(0u16, false), (8, false), (9, true), (512, true), (513, false), (u16::MAX, false)] {
            let mut bytes = *b"DNY\0\0";
            bytes[3..].copy_from_slice(&length.to_le_bytes());
            for more in 0..9 {
                let bytes = [&bytes[..], &vec![0; more]].concat();
                let refused = Step::Skip { consumed: bytes.len(), reason: SkipReason::BadLength };
                assert_eq!(
                    step(&bytes),
                    if expected { Step::NeedMore } else { refused },
                    "{more} bytes behind {length}"
                );
            }
        }
    }

    #[test]
    fn every_truncation_asks_for_more() {
        for item in [&TIME_REQUEST[..], b"link", b"89860448161870064815"] {
            for len in 0..item.len() {
                assert_eq!(step(&item[..len]), Step::NeedMore, "{len} bytes");
            }
            assert!(matches!(step(item), Step::Item { consumed, .. } if consumed == item.len()));
        }
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        for bit in 40..TIME_REQUEST.len() * 8 {
            let mut bytes = TIME_REQUEST;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(step(&bytes), Step::Skip { consumed: 14, reason: SkipReason::BadChecksum }, "bit {bit}");
        }
    }

    #[test]
    fn noise_goes_in_one_step_up_to_the_next_start() {
        for next in
            [&TIME_REQUEST[..], b"link", b"89860448161870064815", b"D", b"DN", b"l", b"8", b"8986044816187006481"]
        {
            let mut bytes = vec![0xff; 3000];
            bytes.extend_from_slice(next);
            assert_eq!(step(&bytes), Step::Skip { consumed: 3000, reason: SkipReason::Noise });
        }
        assert_eq!(step(b"linDNY"), Step::Skip { consumed: 3, reason: SkipReason::Noise });
        assert_eq!(step(b"8986123DNY\x09"), Step::Skip { consumed: 7, reason: SkipReason::Noise });
    }

    #[test]
    fn magics_are_checked() {
        assert_eq!(Magics::from_hex(&["444e59", "44224E"]), Ok(Magics::default()));
        assert_eq!(Magics::new(&[]), Err(MagicsError::Count { got: 0 }));
        assert_eq!(Magics::from_hex(&["010203"; 9]), Err(MagicsError::Count { got: 9 }));
        assert_eq!(Magics::new(&[*b"DNY", *b"DNY"]), Err(MagicsError::Repeated { value: 0x44_4e59 }));
        assert_eq!(Magics::new(&[*b"898"]), Err(MagicsError::Reserved { value: 0x38_3938 }));
        assert_eq!(Magics::new(&[[0xfc, 0xff, 0]]), Err(MagicsError::Reserved { value: 0xfc_ff00 }));
        for text in ["444e5", "444e5g", "444e5959", "+44e59"] {
            assert_eq!(Magics::from_hex(&[text]), Err(MagicsError::NotHex { value: text.to_owned() }));
        }
        assert_eq!(Magics::from_hex(&["x"]).unwrap_err().to_string(), "magic must be 6 hex digits, got \"x\"");
    }

    #[test]
    fn physical_id_and_printed_number() {
        let id: PhyId = "40AAce04".parse().unwrap();
        assert_eq!((id.recognition_code(), id.printed_number(), id.as_u32()), (4, 13_544_000, 0x04ce_aa40));
        assert_eq!(id.to_string(), "40aace04");
        assert_eq!(PhyId::from_parts(4, 13_544_000), Some(id));
        assert_eq!(PhyId::from_parts(4, 1 << 24), None);
        assert!(PhyId::from_parts(5, 12_000_000).unwrap().is_fallback() && !id.is_fallback());
        for text in ["", "40aace0", "40aace040", "40aace0g", "+0aace04"] {
            assert_eq!(text.parse::<PhyId>(), Err(ParsePhyIdError));
        }
    }

    proptest! {
        #[test]
        fn checksum_is_the_sum_of_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let sum: usize = bytes.iter().map(|byte| usize::from(*byte)).sum();
            prop_assert_eq!(usize::from(checksum(&bytes)), sum % 65536);
        }
    }
}
