//! The field types of bodies, and how a list of fields becomes a layout.
//!
//! A layout is read in three parts: fields that are always there, lists whose length one of those fields gives, and
//! fields that were appended over the years. An appended field is absent if the data ended before it, and cut short it is
//! an error; what follows the last one is kept in [`Extra`] and refused by nobody.
//!
//! Everything serialises to the JSON of `decode --json`: numbers as sent, bytes as hex, text without padding.

use std::fmt;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::codes;
use crate::protocol::{DecodeError, Hex, Input};

/// The data of a command in one direction.
pub trait Layout<'a>: Sized {
    /// Reads the data of a frame to its end.
    ///
    /// # Errors
    /// The data ends inside a field.
    fn read(input: &mut Input<'a>) -> Result<Self, DecodeError>;

    /// Appends the data. Absent fields at the end are left out; one that precedes a present field is written as the
    /// value with which the device keeps its own setting.
    fn write(&self, out: &mut Vec<u8>);

    /// Bytes behind the last documented field.
    fn extra(&self) -> &'a [u8];
}

/// Bytes that all fields need together.
#[expect(clippy::arithmetic_side_effects, clippy::indexing_slicing, reason = "evaluated by the compiler")]
pub(super) const fn size_of_fields(fields: &[(&'static str, usize)]) -> usize {
    let (mut size, mut field) = (0, 0);
    while field < fields.len() {
        size += fields[field].1;
        field += 1;
    }
    size
}

/// The field inside which data of `have` bytes ends.
#[cold]
pub(super) fn cut_field(mut have: usize, fields: &[(&'static str, usize)]) -> DecodeError {
    for &(field, need) in fields {
        match have.checked_sub(need) {
            Some(left) => have = left,
            None => return DecodeError::Truncated { field, need, have },
        }
    }
    DecodeError::Trailing { extra: have }
}

/// A field.
pub trait Wire<'a>: Sized {
    /// Bytes the field needs at least.
    const SIZE_MIN: usize;

    /// Reads the field called `field`.
    ///
    /// # Errors
    /// The data ends inside the field.
    fn read(input: &mut Input<'a>, field: &'static str) -> Result<Self, DecodeError>;

    /// Appends the field.
    fn write(&self, out: &mut Vec<u8>);
}

/// A list of as many items as an earlier field says.
pub trait Counted<'a>: Sized {
    /// Reads `count` items.
    ///
    /// # Errors
    /// The data ends inside the list.
    fn read(input: &mut Input<'a>, field: &'static str, count: usize) -> Result<Self, DecodeError>;

    /// Number of items.
    fn count(&self) -> usize;

    /// Appends the items.
    fn write(&self, out: &mut Vec<u8>);
}

impl<'a> Wire<'a> for u8 {
    const SIZE_MIN: usize = 1;

    #[inline]
    fn read(input: &mut Input<'a>, field: &'static str) -> Result<Self, DecodeError> {
        input.u8(field)
    }

    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        out.push(*self);
    }
}

impl<'a> Wire<'a> for u16 {
    const SIZE_MIN: usize = 2;

    #[inline]
    fn read(input: &mut Input<'a>, field: &'static str) -> Result<Self, DecodeError> {
        input.u16_le(field)
    }

    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }
}

impl<'a> Wire<'a> for u32 {
    const SIZE_MIN: usize = 4;

    #[inline]
    fn read(input: &mut Input<'a>, field: &'static str) -> Result<Self, DecodeError> {
        input.u32_le(field)
    }

    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }
}

macro_rules! code_fields {
    ($($code:ident)*) => { $(
        impl<'a> Wire<'a> for codes::$code {
            const SIZE_MIN: usize = 1;

            #[inline]
            fn read(input: &mut Input<'a>, field: &'static str) -> Result<Self, DecodeError> {
                input.u8(field).map(Self)
            }

            #[inline]
            fn write(&self, out: &mut Vec<u8>) {
                out.push(self.0);
            }
        }
    )* };
}

code_fields! { ReportState StartMode RateMode ModifyMode AccountState StopReason ChargeResult AlarmType UpdateResult }

/// `N` bytes kept in wire order: order numbers, card numbers, keys.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Raw<const N: usize>(pub [u8; N]);

impl<const N: usize> Default for Raw<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

impl<const N: usize> fmt::Display for Raw<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Hex(&self.0), f)
    }
}

impl<const N: usize> fmt::Debug for Raw<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const N: usize> Serialize for Raw<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'a, const N: usize> Wire<'a> for Raw<N> {
    const SIZE_MIN: usize = N;

    #[inline]
    fn read(input: &mut Input<'a>, field: &'static str) -> Result<Self, DecodeError> {
        input.array(field).map(Self)
    }

    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }
}

/// Text in a field of `N` bytes, filled up with zeros. Kept as bytes, because devices send what they like.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Text<'a, const N: usize>(&'a [u8]);

impl<'a, const N: usize> Text<'a, N> {
    /// The text without the zeros behind it, or `None` if it is longer than the field.
    pub fn new(text: &'a [u8]) -> Option<Self> {
        (text.len() <= N).then(|| Self::unpadded(text))
    }

    /// The bytes without padding.
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    fn unpadded(text: &'a [u8]) -> Self {
        let padding = text.iter().rev().take_while(|byte| **byte == 0).count();
        Self(text.get(..text.len().saturating_sub(padding)).unwrap_or_default())
    }
}

impl<const N: usize> fmt::Display for Text<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.0))
    }
}

impl<const N: usize> fmt::Debug for Text<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl<const N: usize> Serialize for Text<'_, N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'a, const N: usize> Wire<'a> for Text<'a, N> {
    const SIZE_MIN: usize = N;

    #[inline]
    fn read(input: &mut Input<'a>, field: &'static str) -> Result<Self, DecodeError> {
        input.bytes(field, N).map(Self::unpadded)
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.0);
        out.resize(out.len().saturating_add(N.saturating_sub(self.0.len())), 0);
    }
}

/// All bytes up to the end of the data.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Rest<'a>(pub &'a [u8]);

impl fmt::Debug for Rest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Hex(self.0), f)
    }
}

impl Serialize for Rest<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Hex(self.0).serialize(serializer)
    }
}

impl<'a> Wire<'a> for Rest<'a> {
    const SIZE_MIN: usize = 0;

    #[inline]
    fn read(input: &mut Input<'a>, _: &'static str) -> Result<Self, DecodeError> {
        Ok(Self(input.rest()))
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.0);
    }
}

/// Bytes behind the last documented field, from firmware newer than the document.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Extra<'a>(pub &'a [u8]);

impl Extra<'_> {
    /// No such bytes: the usual case, and the one for everything the server sends.
    pub const NONE: Self = Self(&[]);

    /// Whether the data ended where the document says.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Extra<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Hex(self.0), f)
    }
}

impl Serialize for Extra<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Hex(self.0).serialize(serializer)
    }
}

macro_rules! lists {
    ($(
        $(#[$meta:meta])*
        $name:ident of $item:ty, $size:literal bytes: $from:expr, $to:expr;
    )*) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name<'a>(&'a [u8]);

        impl<'a> $name<'a> {
            /// Takes the wire bytes; a last item that is cut short does not count.
            pub const fn new(bytes: &'a [u8]) -> Self {
                Self(bytes)
            }

            /// Writes `items` into `buffer`, in place of what it held, and borrows them from there.
            pub fn of(buffer: &'a mut Vec<u8>, items: impl IntoIterator<Item = $item>) -> Self {
                let to: fn($item) -> [u8; $size] = $to;
                buffer.clear();
                items.into_iter().for_each(|item| buffer.extend_from_slice(&to(item)));
                Self(buffer)
            }

            /// Number of items.
            #[inline]
            pub const fn len(&self) -> usize {
                self.0.len() / $size
            }

            /// Whether there are none.
            #[inline]
            pub const fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// The item at `index`, counted from 0.
            #[inline]
            pub fn get(&self, index: usize) -> Option<$item> {
                self.0.as_chunks().0.get(index).map($from)
            }

            /// The items in wire order.
            #[inline]
            pub fn iter(&self) -> impl ExactSizeIterator<Item = $item> + use<'a> {
                self.0.as_chunks().0.iter().map($from)
            }
        }

        impl fmt::Debug for $name<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_list().entries(self.iter()).finish()
            }
        }

        impl Serialize for $name<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_seq(self.iter())
            }
        }

        impl<'a> Counted<'a> for $name<'a> {
            #[inline]
            fn read(input: &mut Input<'a>, field: &'static str, count: usize) -> Result<Self, DecodeError> {
                input.bytes(field, count.saturating_mul($size)).map(Self)
            }

            fn count(&self) -> usize {
                self.len()
            }

            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(self.0);
            }
        }
    )* };
}

lists! {
    /// A list of bytes that are numbers.
    U8s of u8, 1 bytes: |[byte]: &[u8; 1]| *byte, |byte| [byte];

    /// A list of little-endian u16.
    U16sLe of u16, 2 bytes: |bytes: &[u8; 2]| u16::from_le_bytes(*bytes), u16::to_le_bytes;

    /// A list of little-endian u32.
    U32sLe of u32, 4 bytes: |bytes: &[u8; 4]| u32::from_le_bytes(*bytes), u32::to_le_bytes;

    /// What 0x35 says of each device type.
    SubDeviceTypes of SubDeviceType, 8 bytes: SubDeviceType::from_bytes, SubDeviceType::to_bytes;
}

/// Sub-devices of one type behind a host, in 0x35.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SubDeviceType {
    /// Device type, as in 0x20.
    pub device_type: u8,
    /// Zero.
    pub reserved: u8,
    /// Lowest firmware version among them, hundredths.
    pub min_version: u16,
    /// Physical id of the device that has it, as a little-endian number.
    pub phy_id: u32,
}

impl SubDeviceType {
    const fn from_bytes([device_type, reserved, v0, v1, p0, p1, p2, p3]: &[u8; 8]) -> Self {
        Self {
            device_type: *device_type,
            reserved: *reserved,
            min_version: u16::from_le_bytes([*v0, *v1]),
            phy_id: u32::from_le_bytes([*p0, *p1, *p2, *p3]),
        }
    }

    const fn to_bytes(self) -> [u8; 8] {
        let [v0, v1] = self.min_version.to_le_bytes();
        let [p0, p1, p2, p3] = self.phy_id.to_le_bytes();
        [self.device_type, self.reserved, v0, v1, p0, p1, p2, p3]
    }
}

impl<'a> Counted<'a> for Rest<'a> {
    #[inline]
    fn read(input: &mut Input<'a>, field: &'static str, count: usize) -> Result<Self, DecodeError> {
        input.bytes(field, count).map(Self)
    }

    fn count(&self) -> usize {
        self.0.len()
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.0);
    }
}

/// Long card number of 0x02: a length byte and that many bytes. Serialises as the two fields `card2_len` and `card2`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct LongCard<'a>(&'a [u8]);

impl<'a> LongCard<'a> {
    /// A number of at most 255 bytes.
    pub fn new(number: &'a [u8]) -> Option<Self> {
        (number.len() <= usize::from(u8::MAX)).then_some(Self(number))
    }

    /// The number; empty for card types without one.
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    fn len(&self) -> u8 {
        u8::try_from(self.0.len()).unwrap_or(u8::MAX)
    }
}

impl fmt::Debug for LongCard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Hex(self.0), f)
    }
}

impl Serialize for LongCard<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("card2_len", &self.len())?;
        if !self.0.is_empty() {
            map.serialize_entry("card2", &Hex(self.0))?;
        }
        map.end()
    }
}

impl<'a> Wire<'a> for LongCard<'a> {
    const SIZE_MIN: usize = 1;

    fn read(input: &mut Input<'a>, _: &'static str) -> Result<Self, DecodeError> {
        let len = input.u8("card2_len")?;
        input.bytes("card2", usize::from(len)).map(Self)
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(self.len());
        out.extend_from_slice(self.0);
    }
}

/// The first of one or two expressions: a filler if one is given, else the default.
macro_rules! filler {
    ($filler:expr; $default:expr) => {
        $filler
    };
    (; $default:expr) => {
        $default
    };
}

/// Declares a layout: its struct, its JSON, and how it is read and written.
///
/// `lists { name: Type = count_field, }` reads as many items as the named field says; the two must agree when written.
/// `optional { name: Type = filler, }` is absent if the data ends before it; the filler (0 if not given) is written in
/// place of an absent field that has a present one behind it.
macro_rules! layout {
    (
        $(#[$meta:meta])*
        pub struct $name:ident { $( $(#[$field_meta:meta])* $field:ident: $ty:ty, )* }
        $( lists { $( $(#[$list_meta:meta])* $list:ident: $list_ty:ty = $count:ident, )* } )?
        $( optional { $( $(#[$opt_meta:meta])* $opt:ident: $opt_ty:ty $(= $filler:expr)?, )* } )?
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
        pub struct $name<'a> {
            $( $(#[$field_meta])* pub $field: $ty, )*
            $($( $(#[$list_meta])* pub $list: $list_ty, )*)?
            $($(
                $(#[$opt_meta])*
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $opt: Option<$opt_ty>,
            )*)?
            /// Bytes behind the last documented field.
            #[serde(rename = "extra_hex", skip_serializing_if = "Extra::is_empty")]
            pub extra: $crate::protocol::ap3000::wire::Extra<'a>,
        }

        impl<'a> $name<'a> {
            /// Name and size of the fields that are always there.
            const FIXED: &'static [(&'static str, usize)] = &[$(
                (stringify!($field), <$ty as $crate::protocol::ap3000::wire::Wire<'a>>::SIZE_MIN),
            )*];
            const FIXED_SIZE: usize = $crate::protocol::ap3000::wire::size_of_fields(Self::FIXED);
            $(
                /// Bytes of all appended fields together, at least.
                const OPTIONAL_SIZE: usize = $crate::protocol::ap3000::wire::size_of_fields(&[$((
                    stringify!($opt),
                    <$opt_ty as $crate::protocol::ap3000::wire::Wire<'a>>::SIZE_MIN,
                ),)*]);
            )?
        }

        impl<'a> $crate::protocol::ap3000::wire::Layout<'a> for $name<'a> {
            #[inline]
            fn read(
                input: &mut $crate::protocol::Input<'a>,
            ) -> Result<Self, $crate::protocol::DecodeError> {
                // One check for all fixed fields; the compiler then drops those at each field.
                if input.remaining() < Self::FIXED_SIZE {
                    return Err($crate::protocol::ap3000::wire::cut_field(input.remaining(), Self::FIXED));
                }
                // They are passed over here, but for counts, and read when it is known which of the others are there: until then
                // they would only take up registers.
                #[allow(unused_variables, unused_mut, reason = "some layouts have none")]
                let mut fixed = *input;
                $(
                    #[allow(unused_variables, reason = "only some count a list")]
                    let $field = <$ty as $crate::protocol::ap3000::wire::Wire<'a>>::read(input, stringify!($field))?;
                )*
                $($(
                    let $list = <$list_ty as $crate::protocol::ap3000::wire::Counted<'a>>::read(
                        input,
                        stringify!($list),
                        usize::from($count),
                    )?;
                )*)?
                $(
                    let ($($opt,)*) = if input.remaining() >= Self::OPTIONAL_SIZE {
                        // All are there: one check, as above.
                        ($(
                            Some(<$opt_ty as $crate::protocol::ap3000::wire::Wire<'a>>::read(input, stringify!($opt))?),
                        )*)
                    } else {
                        ($(
                            if input.is_empty() {
                                None
                            } else {
                                Some(<$opt_ty as $crate::protocol::ap3000::wire::Wire<'a>>::read(input, stringify!($opt))?)
                            },
                        )*)
                    };
                )?
                Ok(Self {
                    $( $field: <$ty as $crate::protocol::ap3000::wire::Wire<'a>>::read(&mut fixed, stringify!($field))?, )*
                    $($( $list, )*)?
                    $($( $opt, )*)?
                    extra: $crate::protocol::ap3000::wire::Extra(input.rest()),
                })
            }

            fn write(&self, out: &mut Vec<u8>) {
                $( $crate::protocol::ap3000::wire::Wire::write(&self.$field, out); )*
                $($(
                    debug_assert_eq!(
                        $crate::protocol::ap3000::wire::Counted::count(&self.$list),
                        usize::from(self.$count),
                        concat!(stringify!($count), " must count ", stringify!($list)),
                    );
                    $crate::protocol::ap3000::wire::Counted::write(&self.$list, out);
                )*)?
                $(
                    let mut present = out.len();
                    $(
                        match &self.$opt {
                            Some(value) => {
                                $crate::protocol::ap3000::wire::Wire::write(value, out);
                                present = out.len();
                            }
                            None => {
                                let filler: $opt_ty = filler!($($filler)?; Default::default());
                                $crate::protocol::ap3000::wire::Wire::write(&filler, out);
                            }
                        }
                    )*
                    if self.extra.is_empty() {
                        out.truncate(present);
                    }
                )?
                out.extend_from_slice(self.extra.0);
            }

            fn extra(&self) -> &'a [u8] {
                self.extra.0
            }
        }
    };
}

pub(super) use {filler, layout};
