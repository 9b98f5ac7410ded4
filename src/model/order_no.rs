//! Order numbers: 16 ASCII characters, so that they fit the order field of an AP3000 start.
//!
//! | prefix 3 letters | 13 Crockford base-32 digits of a 64-bit id |
//!
//! The id is | Unix milliseconds 42 bits | instance salt 10 bits | counter 12 bits |, so numbers sort by creation time and
//! 4,096 fit in one millisecond of one instance; the counter then borrows from the next millisecond.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const SALT_BITS: u32 = 10;
const COUNTER_BITS: u32 = 12;

/// 16 ASCII characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrderNo([u8; 16]);

impl OrderNo {
    /// Builds a number from its prefix and id.
    pub fn new(prefix: [u8; 3], id: u64) -> Self {
        let mut text = [0; 16];
        text[..3].copy_from_slice(&prefix);
        for (place, digit) in text[3..].iter_mut().rev().enumerate() {
            let shift = 5 * place as u32;
            *digit = DIGITS[(id.checked_shr(shift).unwrap_or(0) & 31) as usize];
        }
        Self(text)
    }

    /// The number in 16 wire bytes, if they are printable ASCII without spaces; device-made references are not.
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        bytes.iter().all(u8::is_ascii_graphic).then_some(Self(bytes))
    }

    /// The 16 bytes as they go on the wire.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Reads a text of exactly 16 printable characters.
    pub fn parse(text: &str) -> Option<Self> {
        text.as_bytes().try_into().ok().and_then(Self::from_bytes)
    }
}

impl fmt::Display for OrderNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for OrderNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for OrderNo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for OrderNo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("an order number is 16 characters"))
    }
}

/// Hands out order numbers of one process.
#[derive(Debug)]
pub struct OrderNumbers {
    prefix: [u8; 3],
    salt: u64,
    last: AtomicU64,
}

impl OrderNumbers {
    /// `salt` tells instances apart; its low 10 bits count.
    pub const fn new(prefix: [u8; 3], salt: u64) -> Self {
        Self { prefix, salt: salt & ((1 << SALT_BITS) - 1), last: AtomicU64::new(0) }
    }

    /// The next number; strictly rising even if the clock steps back.
    pub fn next(&self, unix_ms: i64) -> OrderNo {
        let now = (unix_ms.max(0) as u64) << COUNTER_BITS;
        let tick = |last: u64| last.saturating_add(1).max(now);
        let last = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(tick(last)));
        let tick = tick(last.unwrap_or_else(|last| last));
        let (ms, counter) = (tick >> COUNTER_BITS, tick & ((1 << COUNTER_BITS) - 1));
        OrderNo::new(self.prefix, (ms << (SALT_BITS + COUNTER_BITS)) | (self.salt << COUNTER_BITS) | counter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_sixteen_characters_and_rise() {
        let numbers = OrderNumbers::new(*b"THD", 7);
        let mut last = numbers.next(1_700_000_000_000);
        assert_eq!(last.as_str().len(), 16);
        assert!(last.as_str().starts_with("THD"));
        for ms in [1_700_000_000_000, 1_700_000_000_000, 1_600_000_000_000, 1_700_000_000_001] {
            for _ in 0..5000 {
                let next = numbers.next(ms);
                assert!(next > last, "{next} after {last}");
                last = next;
            }
        }
    }

    #[test]
    fn text_and_wire_bytes_agree() {
        let no = OrderNo::new(*b"THD", u64::MAX);
        assert_eq!(no.as_str(), "THDFZZZZZZZZZZZZ");
        assert_eq!(OrderNo::parse("THDFZZZZZZZZZZZZ"), Some(no));
        assert_eq!(OrderNo::parse("short"), None);
        assert_eq!(OrderNo::from_bytes([0; 16]), None);
    }
}
