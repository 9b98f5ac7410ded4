//! Element grammar of command 0x1000: a parser that checks once and then walks freely, and the writer.
//!
//! No allocation; elements borrow the frame.
//!
//! ```text
//! element = LEN 1 | TYPE 1 | KEY 1 | VALUE LEN - 2      LEN counts TYPE, KEY and VALUE
//! ```
//!
//! VALUE holds elements again when KEY is [`SOCKET_STATUS`](key::SOCKET_STATUS) or [`HOLE_ATTRS`](key::HOLE_ATTRS).
//! Elements are looked up by key, never by position: the guide's own examples order them differently. TYPE is always 01
//! in the guide and in captures; another value is tolerated and counted.
//!
//! Invariant: [`Elements::parse`] walked the whole tree, so iterating a parsed value reaches its last byte.

use serde::{Serialize, Serializer};

use super::clock::DeviceTime;
use super::status::HoleStatus;
use crate::protocol::{DecodeError, Hex};

/// The TYPE byte of every element seen.
pub(super) const TYPE: u8 = 0x01;
/// Containers inside containers accepted. The guide nests two (socket, hole); more has no meaning to read.
const DEPTH_MAX: u64 = 4;
/// Largest VALUE, because LEN is one byte and counts TYPE and KEY too.
pub const VALUE_LEN_MAX: usize = 253;

/// Keys by the names of the guide.
pub mod key {
    #![expect(missing_docs, reason = "the names say it; units stand at the typed fields in `packet`")]
    pub const CMD: u8 = 0x01;
    pub const FRAME_SEQ: u8 = 0x02;
    pub const GATEWAY_ID: u8 = 0x03;
    pub const EVENT_TIME: u8 = 0x06;
    pub const MCU_TEMP: u8 = 0x07;
    pub const HOLE: u8 = 0x08;
    pub const STATUS: u8 = 0x09;
    pub const BUSINESS_NO: u8 = 0x0A;
    pub const POWER: u8 = 0x0B;
    pub const CURRENT: u8 = 0x0C;
    pub const ENERGY: u8 = 0x0D;
    pub const CHARGED_MIN: u8 = 0x0E;
    pub const ACK: u8 = 0x0F;
    pub const OVERCURRENT_LIMIT: u8 = 0x10;
    pub const POWER_LIMIT: u8 = 0x11;
    pub const CHARGE_MODE: u8 = 0x12;
    pub const SWITCH: u8 = 0x13;
    pub const FULL_CHARGE_DELAY: u8 = 0x21;
    pub const NO_LOAD_DELAY: u8 = 0x22;
    pub const FULL_POWER_THRESHOLD: u8 = 0x23;
    pub const NO_LOAD_POWER_THRESHOLD: u8 = 0x24;
    pub const HIGH_TEMP_THRESHOLD: u8 = 0x25;
    pub const END_TIME: u8 = 0x2E;
    pub const END_REASON: u8 = 0x2F;
    pub const SOCKET_FW: u8 = 0x3E;
    pub const CONTROL_TYPE: u8 = 0x47;
    pub const SOCKET_NO: u8 = 0x4A;
    pub const SOCKET_EVENT_STATE: u8 = 0x4B;
    pub const HOLE1_EVENT_STATE: u8 = 0x4C;
    pub const HOLE2_EVENT_STATE: u8 = 0x4D;
    pub const OVERVOLTAGE: u8 = 0x4E;
    pub const UNDERVOLTAGE: u8 = 0x4F;
    pub const HOLE1_LEAKAGE: u8 = 0x50;
    pub const HOLE2_LEAKAGE: u8 = 0x51;
    pub const HOLE1_OVERTEMP: u8 = 0x52;
    pub const HOLE2_OVERTEMP: u8 = 0x53;
    pub const SOCKET_EVENT_REASON: u8 = 0x54;
    pub const HOLE1_EVENT_REASON: u8 = 0x55;
    pub const HOLE2_EVENT_REASON: u8 = 0x56;
    pub const HOLE1_STATUS: u8 = 0x57;
    pub const HOLE2_STATUS: u8 = 0x58;
    pub const MAX_CHARGE_MIN: u8 = 0x59;
    pub const TAG_5A: u8 = 0x5A;
    pub const HOLE_ATTRS: u8 = 0x5B;
    pub const TRICKLE_THRESHOLD: u8 = 0x60;
    pub const KEY_BASE_AMOUNT: u8 = 0x68;
    pub const SERVICE_FEE_MODE: u8 = 0x80;
    pub const FEE_TIERS: u8 = 0x83;
    pub const TIER_RESULTS: u8 = 0x84;
    pub const ELECTRICITY_FEE: u8 = 0x85;
    pub const SERVICE_FEE: u8 = 0x86;
    pub const PAID_AMOUNT: u8 = 0x88;
    pub const TIER_COUNT: u8 = 0x89;
    pub const ANTI_PULSE_TIME: u8 = 0x93;
    pub const SOCKET_STATUS: u8 = 0x94;
    pub const VOLTAGE: u8 = 0x95;
    pub const RSSI: u8 = 0x96;
    pub const TAG_98: u8 = 0x98;
    pub const TAG_99: u8 = 0x99;
    pub const TAG_9A: u8 = 0x9A;
    pub const TAG_9B: u8 = 0x9B;
    pub const TAG_F4: u8 = 0xF4;
}

/// One element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element<'a> {
    /// TYPE byte, 01 in everything seen.
    pub kind: u8,
    /// Which value this is; see [`key`].
    pub key: u8,
    /// The value's bytes.
    pub value: &'a [u8],
}

impl<'a> Element<'a> {
    /// Splits the first element off `bytes`.
    #[inline]
    fn split(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), DecodeError> {
        let Some((&len, rest)) = bytes.split_first() else {
            return Err(DecodeError::Truncated { field: "tlv len", need: 1, have: 0 });
        };
        let Some((content, rest)) = rest.split_at_checked(usize::from(len)) else {
            return Err(DecodeError::Truncated { field: "tlv element", need: usize::from(len), have: rest.len() });
        };
        let &[kind, key, ref value @ ..] = content else {
            return Err(DecodeError::Invalid { field: "tlv len", expected: "at least 2", value: u64::from(len) });
        };
        Ok((Self { kind, key, value }, rest))
    }

    /// The elements inside, if the key is a container.
    #[inline]
    pub fn children(&self) -> Option<Elements<'a>> {
        matches!(self.key, key::SOCKET_STATUS | key::HOLE_ATTRS).then_some(Elements(self.value))
    }

    /// The value, if it has `N` bytes.
    #[inline]
    pub fn array<const N: usize>(&self) -> Option<[u8; N]> {
        self.value.try_into().ok()
    }

    /// The value, if it has one byte.
    #[inline]
    pub fn u8(&self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// The value, if it has two bytes.
    #[inline]
    pub fn u16(&self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The value, if it has four bytes.
    #[inline]
    pub fn u32(&self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }
}

/// A run of checked elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    /// Checks that `bytes` are whole elements at every depth; gives them and the number whose TYPE is not 01.
    ///
    /// # Errors
    /// An element that overruns, whose LEN is below 2, or that nests deeper than four containers.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, u16), DecodeError> {
        check(bytes, 0).map(|odd_types| (Self(bytes), odd_types))
    }

    /// No elements.
    pub(super) const NONE: Self = Self(&[]);

    /// Elements that were recognised by their shape, or are part of such.
    pub(super) const fn checked(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The bytes of the elements.
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// The first element with this key, at this depth.
    #[inline]
    pub fn get(mut self, key: u8) -> Option<Element<'a>> {
        self.find(|element| element.key == key)
    }

    /// Takes the elements of the next socket: up to, not including, the second [`key::SOCKET_NO`].
    #[inline]
    pub(super) fn split_socket(&mut self) -> Option<Self> {
        let whole = self.0;
        if whole.is_empty() {
            return None;
        }
        let mut numbered = false;
        loop {
            let before = self.0;
            match self.next() {
                Some(Element { key: key::SOCKET_NO, .. }) if numbered => {
                    self.0 = before;
                    let (socket, _) = whole.split_at_checked(whole.len().saturating_sub(before.len()))?;
                    return Some(Self(socket));
                }
                Some(element) => numbered |= element.key == key::SOCKET_NO,
                None => return Some(Self(whole)),
            }
        }
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Element<'a>;

    #[inline]
    fn next(&mut self) -> Option<Element<'a>> {
        let (element, rest) = Element::split(self.0).ok()?;
        self.0 = rest;
        Some(element)
    }
}

/// A run of elements with fixed keys and sizes, as a firmware always writes it: one comparison in place of a walk.
///
/// Only a short cut. Whatever does not fit, a shape says nothing about.
pub(super) struct Shape<const N: usize> {
    /// LEN, TYPE and KEY of every element; 0 where values stand.
    heads: [u8; N],
    /// 0xFF at the heads.
    mask: [u8; N],
}

impl<const N: usize> Shape<N> {
    /// The elements in the order of their heads: key and size of the value. Those inside a container follow it.
    #[expect(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::indexing_slicing,
        reason = "evaluated by the compiler: a mistake does not build"
    )]
    pub(super) const fn new(elements: &[(u8, usize)]) -> Self {
        let (mut heads, mut mask) = ([0; N], [0; N]);
        let (mut at, mut element) = (0, 0);
        while element < elements.len() {
            let (key, size) = elements[element];
            assert!(size <= VALUE_LEN_MAX, "a value must fit its length byte");
            [heads[at], heads[at + 1], heads[at + 2]] = [size as u8 + 2, TYPE, key];
            [mask[at], mask[at + 1], mask[at + 2]] = [u8::MAX; 3];
            let is_container = matches!(key, key::SOCKET_STATUS | key::HOLE_ATTRS);
            at += if is_container { 3 } else { 3 + size };
            element += 1;
        }
        assert!(at == N, "the shape must be as long as its elements");
        Self { heads, mask }
    }

    /// Whether these are the elements of the shape.
    #[inline]
    pub(super) fn fits(&self, bytes: &[u8; N]) -> bool {
        let odd = |((bytes, mask), heads): ((&Block, &Block), &Block)| {
            (u64::from_ne_bytes(*bytes) & u64::from_ne_bytes(*mask)) ^ u64::from_ne_bytes(*heads)
        };
        let (bytes, last) = blocks(bytes);
        let (mask, last_mask) = blocks(&self.mask);
        let (heads, last_heads) = blocks(&self.heads);
        let pairs = bytes.iter().zip(mask).zip(heads);
        pairs.map(odd).fold(odd(((last, last_mask), last_heads)), |all, odd| all | odd) == 0
    }
}

/// Bytes that are compared at once.
type Block = [u8; 8];

/// All whole blocks, and the last bytes once more: a loop over what is left of them would take longer.
#[inline]
fn blocks<const N: usize>(bytes: &[u8; N]) -> (&[Block], &Block) {
    const { assert!(N >= size_of::<Block>(), "a shape has at least one block") };
    (bytes.as_chunks().0, bytes.last_chunk().unwrap_or(&[0; _]))
}

#[inline]
fn check(mut bytes: &[u8], depth: u64) -> Result<u16, DecodeError> {
    let mut odd_types: u16 = 0;
    while !bytes.is_empty() {
        let (element, rest) = Element::split(bytes)?;
        odd_types = odd_types.saturating_add(u16::from(element.kind != TYPE));
        if let Some(Elements(inside)) = element.children() {
            odd_types = odd_types.saturating_add(check_container(inside, depth.saturating_add(1))?);
        }
        bytes = rest;
    }
    Ok(odd_types)
}

fn check_container(bytes: &[u8], depth: u64) -> Result<u16, DecodeError> {
    if depth > DEPTH_MAX {
        return Err(DecodeError::Invalid { field: "tlv depth", expected: "at most 4", value: depth });
    }
    check(bytes, depth)
}

/// The exact tree: `[key, value hex]` or `[key, [children]]`.
impl Serialize for Elements<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.map(TreeNode))
    }
}

struct TreeNode<'a>(Element<'a>);

impl Serialize for TreeNode<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let key = Hex([self.0.key]);
        match self.0.children() {
            Some(children) => (key, children).serialize(serializer),
            None => (key, Hex(self.0.value)).serialize(serializer),
        }
    }
}

/// Appends an element. A value over [`VALUE_LEN_MAX`] is a bug of the caller; its excess is not written.
pub fn write(out: &mut Vec<u8>, key: u8, value: &[u8]) {
    write_with(out, key, |out| out.extend_from_slice(value));
}

/// Appends an element whose value `content` writes: a container, or a list.
pub fn write_with(out: &mut Vec<u8>, key: u8, content: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0, TYPE, key]);
    content(out);
    let counted = out.len().saturating_sub(at).saturating_sub(1);
    debug_assert!(counted <= usize::from(u8::MAX), "tlv value of {counted} bytes does not fit its length byte");
    let len = u8::try_from(counted).unwrap_or(u8::MAX);
    out.truncate(at.saturating_add(1).saturating_add(usize::from(len)));
    if let Some(byte) = out.get_mut(at) {
        *byte = len;
    }
}

/// What an element can hold besides elements.
pub trait Value {
    /// Appends the element; nothing for a value that is absent.
    fn put(&self, out: &mut Vec<u8>, key: u8);
}

/// Appends an element with this value.
pub fn put(out: &mut Vec<u8>, key: u8, value: impl Value) {
    value.put(out, key);
}

macro_rules! numbers {
    ($($number:ty)*) => { $(
        impl Value for $number {
            fn put(&self, out: &mut Vec<u8>, key: u8) {
                write(out, key, &self.to_be_bytes());
            }
        }
    )* };
}

numbers! { u8 u16 u32 }

impl Value for HoleStatus {
    fn put(&self, out: &mut Vec<u8>, key: u8) {
        write(out, key, &[self.0]);
    }
}

/// As BCD: the plain binary form occurs in 0x18 only.
impl Value for DeviceTime {
    fn put(&self, out: &mut Vec<u8>, key: u8) {
        write(out, key, &self.to_bcd());
    }
}

impl Value for &[u8] {
    fn put(&self, out: &mut Vec<u8>, key: u8) {
        write(out, key, self);
    }
}

impl<V: Value> Value for Option<V> {
    fn put(&self, out: &mut Vec<u8>, key: u8) {
        if let Some(value) = self {
            value.put(out, key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tree(bytes: &[u8]) -> String {
        let (elements, _) = Elements::parse(bytes).unwrap();
        serde_json::to_string(&elements).unwrap()
    }

    #[test]
    fn boundaries() {
        assert_eq!(tree(&[]), "[]");
        assert_eq!(tree(&[2, 1, 0x0F]), r#"[["0f",""]]"#);
        assert_eq!(tree(&[2, 1, 0x94]), r#"[["94",[]]]"#);
        for (bytes, error) in [
            (&[0][..], DecodeError::Invalid { field: "tlv len", expected: "at least 2", value: 0 }),
            (&[1, 1], DecodeError::Invalid { field: "tlv len", expected: "at least 2", value: 1 }),
            (&[2, 1], DecodeError::Truncated { field: "tlv element", need: 2, have: 1 }),
            (&[5, 1, 0x94, 3, 1, 0x4A], DecodeError::Truncated { field: "tlv element", need: 3, have: 2 }),
        ] {
            assert_eq!(Elements::parse(bytes), Err(error));
        }
    }

    #[test]
    fn odd_types_are_counted_at_every_depth() {
        let bytes = [3, 2, 0x0F, 1, 5, 1, 0x94, 2, 0, 0x4A, 2, 1, 0x08];
        assert_eq!(Elements::parse(&bytes).unwrap().1, 2);
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| {
            let mut bytes = vec![3, 1, 0x4A, 1];
            for _ in 0..depth {
                let mut outer = Vec::new();
                write(&mut outer, 0x94, &bytes);
                bytes = outer;
            }
            bytes
        };
        assert!(Elements::parse(&nested(4)).is_ok());
        assert_eq!(
            Elements::parse(&nested(5)),
            Err(DecodeError::Invalid { field: "tlv depth", expected: "at most 4", value: 5 })
        );
    }

    #[test]
    fn a_further_socket_number_starts_a_socket() {
        let bytes = [3, 1, 7, 9, 3, 1, 0x4A, 1, 2, 1, 0x5B, 3, 1, 0x4A, 2, 3, 1, 0x4A, 3, 2, 1, 0x5B];
        let (mut elements, _) = Elements::parse(&bytes).unwrap();
        let mut numbers = Vec::new();
        while let Some(socket) = elements.split_socket() {
            numbers.push((socket.get(key::SOCKET_NO).and_then(|number| number.u8()), socket.count()));
        }
        assert_eq!(numbers, [(Some(1), 3), (Some(2), 1), (Some(3), 2)]);
    }

    proptest! {
        #[test]
        fn a_parsed_tree_is_walked_to_its_end(bytes in proptest::collection::vec(prop_oneof![0_u8..6, Just(0x94), any::<u8>()], 0..64)) {
            if let Ok((elements, _)) = Elements::parse(&bytes) {
                let mut again = Vec::new();
                let mut odd = false;
                for element in elements {
                    odd |= element.kind != TYPE;
                    write(&mut again, element.key, element.value);
                }
                prop_assert!(odd || again == bytes);
            }
        }
    }
}
