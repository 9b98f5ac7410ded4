//! Deframer: finds BKV/GN frames in a byte stream that may begin inside one (integration guide V1.7, frame format).
//!
//! No I/O and no allocation; the caller owns the buffer.
//!
//! ```text
//! | magic 2 | length 2 | command 2 | sequence 4 | direction 1 | gateway 7 | payload n | sum 1 | FC EE |
//! ```
//!
//! `length` counts from `command` to the end of the tail, so a frame is `length + 4` bytes and `length` is `17 + n`.
//! `sum` is the byte sum from `length` to the last payload byte. The tail can occur inside a frame, so the end comes
//! from `length` alone and is never searched for.
//!
//! Invariant: each call consumes at least one byte, or asks for more.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::command;
use super::tlv::key;
use crate::protocol::{Direction, Hex, SkipReason, Step, sum};

/// Smallest value of the length field: no payload.
pub const LENGTH_MIN: usize = 17;
/// Largest length accepted. The longest legal frame, a network list of 250 sockets, has length 1771.
pub const LENGTH_MAX: usize = 4096;
/// Largest payload a frame can carry.
pub const PAYLOAD_LEN_MAX: usize = LENGTH_MAX - LENGTH_MIN;

pub(in crate::protocol) const MAGIC_UP: [u8; 2] = [0xFC, 0xFE];
pub(super) const MAGIC_DOWN: [u8; 2] = [0xFC, 0xFF];
pub(super) const TAIL: [u8; 2] = [0xFC, 0xEE];

/// Bytes in front of the payload.
pub(in crate::protocol) const HEAD_LEN: usize = 18;
/// Checksum and tail.
const END_LEN: usize = 3;
/// Magic and length field, which the length does not count.
const UNCOUNTED_LEN: usize = 4;

/// The 7-byte id that stands in every frame, shown as 14 digits.
///
/// The guide calls it BCD; it is kept as an opaque key because nothing is gained by refusing a nibble above 9.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GatewayId(pub [u8; 7]);

impl fmt::Display for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Hex(self.0), f)
    }
}

impl fmt::Debug for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for GatewayId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Text that is not a [`GatewayId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("gateway id must be 14 hex digits")]
pub struct GatewayIdError;

impl FromStr for GatewayId {
    type Err = GatewayIdError;

    fn from_str(text: &str) -> Result<Self, GatewayIdError> {
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != 7 || !rest.is_empty() {
            return Err(GatewayIdError);
        }
        let mut id = [0; 7];
        for (byte, [high, low]) in id.iter_mut().zip(pairs) {
            *byte = nibble(*high)? << 4 | nibble(*low)?;
        }
        Ok(Self(id))
    }
}

fn nibble(digit: u8) -> Result<u8, GatewayIdError> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok()).ok_or(GatewayIdError)
}

/// One frame whose tail, checksum and direction agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Who sent it, by magic and direction byte.
    pub direction: Direction,
    /// Command word.
    pub command: u16,
    /// 0 when a gateway reports on its own; a reply copies the command's.
    pub sequence: u32,
    /// Which gateway.
    pub gateway_id: GatewayId,
    /// Bytes between the gateway id and the checksum.
    pub payload: &'a [u8],
    /// The whole frame, magic to tail.
    pub raw: &'a [u8],
}

impl Frame<'_> {
    /// The sub-command, where the command has one and the payload is long enough to hold it.
    pub const fn sub(&self) -> Option<u16> {
        match (self.command, self.payload) {
            (command::NETWORK | command::CONTROL, [_, _, sub, ..]) => Some(*sub as u16),
            (command::PACKET, [0x04, 0x01, key::CMD, high, low, ..]) => Some(u16::from_be_bytes([*high, *low])),
            _ => None,
        }
    }
}

/// Looks at the start of `buf` for one frame.
///
/// A run of bytes that cannot start a frame is skipped in one step; a frame that fails a check costs one byte, so a
/// frame hidden behind a false start is still found.
// Inlined because a step that is handed over in memory costs as much as finding it.
#[inline(always)]
pub fn deframe(buf: &[u8]) -> Step<Frame<'_>> {
    let Some(head) = buf.first_chunk::<HEAD_LEN>() else { return deframe_rest(buf) };
    let &[m0, m1, l0, l1, c0, c1, s0, s1, s2, s3, direction_byte, gateway_id @ ..] = head;
    let direction = match [m0, m1] {
        MAGIC_UP => Direction::Up,
        MAGIC_DOWN => Direction::Down,
        _ => return deframe_rest(buf),
    };
    let length = u16::from_be_bytes([l0, l1]);
    if !is_length(length) {
        return refuse(SkipReason::BadLength);
    }
    let Some((raw, _)) = buf.split_at_checked(usize::from(length).wrapping_add(UNCOUNTED_LEN)) else {
        return Step::NeedMore;
    };
    let Some((body, &[sum, tail @ ..])) = raw.split_last_chunk::<END_LEN>() else { return Step::NeedMore };
    let (Some((_, counted)), Some((_, payload))) =
        (body.split_first_chunk::<{ MAGIC_UP.len() }>(), body.split_first_chunk::<HEAD_LEN>())
    else {
        return Step::NeedMore;
    };
    if tail != TAIL {
        return refuse(SkipReason::BadTail);
    }
    if checksum(counted) != sum {
        return refuse(SkipReason::BadChecksum);
    }
    if direction_byte != direction_code(direction) {
        return refuse(SkipReason::BadDirection);
    }
    let frame = Frame {
        direction,
        command: u16::from_be_bytes([c0, c1]),
        sequence: u32::from_be_bytes([s0, s1, s2, s3]),
        gateway_id: GatewayId(gateway_id),
        payload,
        raw,
    };
    Step::Item { item: frame, consumed: raw.len() }
}

/// Everything that does not begin with a magic, and the beginning of a frame.
fn deframe_rest(buf: &[u8]) -> Step<Frame<'_>> {
    match *buf {
        [0xFC, 0xFE | 0xFF, l0, l1, ..] if !is_length(u16::from_be_bytes([l0, l1])) => refuse(SkipReason::BadLength),
        [] | [0xFC] | [0xFC, 0xFE | 0xFF, ..] => Step::NeedMore,
        _ => Step::Skip { consumed: noise_len(buf), reason: SkipReason::Noise },
    }
}

/// Whether a length field is one.
#[inline]
fn is_length(length: u16) -> bool {
    (LENGTH_MIN..=LENGTH_MAX).contains(&usize::from(length))
}

/// The byte sum modulo 256.
#[inline]
pub(in crate::protocol) fn checksum(bytes: &[u8]) -> u8 {
    sum::sum_u8(bytes)
}

/// The direction byte that goes with a magic.
pub(super) const fn direction_code(direction: Direction) -> u8 {
    match direction {
        Direction::Up => 1,
        Direction::Down => 0,
    }
}

const fn refuse<T>(reason: SkipReason) -> Step<T> {
    Step::Skip { consumed: 1, reason }
}

/// Length of the run up to the next magic. A trailing `FC` may be half a magic and is left standing.
#[cold]
fn noise_len(buf: &[u8]) -> usize {
    let magic = buf.windows(2).position(|pair| pair == MAGIC_UP || pair == MAGIC_DOWN);
    magic.unwrap_or(match buf {
        [head @ .., 0xFC] => head.len(),
        _ => buf.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateway_id_keeps_all_digits() {
        let id: GatewayId = "00120000000009".parse().unwrap();
        assert_eq!(id, GatewayId([0, 0x12, 0, 0, 0, 0, 9]));
        assert_eq!(id.to_string(), "00120000000009");
        for bad in ["", "0012000000000", "001200000000090", "0012000000000g", "+0120000000009", "0012000000000é"] {
            assert_eq!(bad.parse::<GatewayId>(), Err(GatewayIdError), "{bad}");
        }
    }

    #[test]
    fn noise_goes_in_one_step_and_half_a_magic_stays() {
        let skip = |consumed| Step::Skip { consumed, reason: SkipReason::Noise };
        assert_eq!(deframe(&[]), Step::NeedMore);
        assert_eq!(deframe(&[0xFC]), Step::NeedMore);
        assert_eq!(deframe(&[0xFC, 0xFE]), Step::NeedMore);
        assert_eq!(deframe(&[1, 2, 3]), skip(3));
        assert_eq!(deframe(&[1, 2, 0xFC]), skip(2));
        assert_eq!(deframe(&[0xFC, 0xFC]), skip(1));
        assert_eq!(deframe(&[0xFC, 0xEE, 0xFC, 0xFE, 0]), skip(2));
    }

    #[test]
    fn length_bounds() {
        let bad = Step::Skip { consumed: 1, reason: SkipReason::BadLength };
        let head = |length: u16| [[0xFC, 0xFE], length.to_be_bytes()].concat();
        assert_eq!(deframe(&head(0)), bad);
        assert_eq!(deframe(&head(16)), bad);
        assert_eq!(deframe(&head(17)), Step::NeedMore);
        assert_eq!(deframe(&head(4096)), Step::NeedMore);
        assert_eq!(deframe(&head(4097)), bad);
        assert_eq!(deframe(&head(u16::MAX)), bad);
        for (length, expected) in [(16, bad), (17, Step::NeedMore), (4096, Step::NeedMore), (4097, bad)] {
            for more in 0..17 {
                assert_eq!(
                    deframe(&[&head(length)[..], &vec![0; more]].concat()),
                    expected,
                    "{more} bytes behind {length}"
                );
            }
        }
    }
}
